"""Variables and random states: saved, changed, and back as they were."""

import contextlib
import random

import keras
import numpy as np
import pytest

from nnopt import _state
from nnopt.callbacks import _checkpoints as checkpoints

DRAWS = [random.random, np.random.rand, np.random.randn, lambda: float(keras.random.uniform(()))]
if keras.backend.backend() == "torch":
    torch = pytest.importorskip("torch")
    DRAWS.append(lambda: float(torch.rand(())))
if keras.backend.backend() == "tensorflow":
    tensorflow = pytest.importorskip("tensorflow")
    DRAWS.append(lambda: float(tensorflow.random.get_global_generator().uniform(())))


def drawn():
    return [draw() for draw in DRAWS]


def seed(number):
    keras.utils.set_random_seed(number)
    if keras.backend.backend() == "tensorflow":
        tensorflow.random.get_global_generator().reset_from_seed(number)


@pytest.mark.parametrize("used_before", [False, True])
def test_random_generators_go_on_where_they_were_also_through_a_file(tmp_path, used_before):
    seed(5)
    if used_before:
        drawn()
    checkpoints.write(tmp_path, _state.random_states(), keep=2)
    first = drawn()
    _state.set_random_states(checkpoints.newest(tmp_path)[1])
    assert drawn() == first


def test_a_body_that_seeds_and_draws_and_fails_leaves_no_trace_in_the_generators():
    seed(5)
    drawn()
    expected = drawn()
    seed(5)
    drawn()
    with contextlib.suppress(KeyboardInterrupt), _state.preserved_random_state():
        seed(0)
        drawn()
        raise KeyboardInterrupt
    assert drawn() == expected


def test_keras_generator_is_the_same_object_afterwards_for_compiled_functions_hold_it():
    keras.random.uniform(())
    before = _state._keras.global_seed_generator()
    with _state.preserved_random_state():
        keras.utils.set_random_seed(0)
    assert _state._keras.global_seed_generator() is before


def test_variables_of_all_kinds_come_back_and_later_ones_keep_their_first_values():
    first = keras.Variable(np.arange(4), dtype="int32", trainable=False)
    half = keras.Variable(1.5, dtype="bfloat16")
    late = keras.Variable([2.0])
    saved = _state.SavedVariables([first, half])
    first.assign(first + 1)
    saved.add([first, late])
    for variable in (first, half, late):
        variable.assign(variable * 0)
    for _ in range(2):
        saved.restore()
    assert first.numpy().tolist() == [0, 1, 2, 3]
    assert float(np.array(keras.ops.convert_to_numpy(half))) == 1.5
    assert late.numpy().tolist() == [2.0]
