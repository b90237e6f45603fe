"""The three recurrent cells of chapter 03, against Keras' layers, and each other run by run."""

import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt

CELLS = {"RNN": "simple", "GRU": "gru", "LSTM": "lstm"}
CHAPTER = from_scratch("03_recurrent_neural_networks")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("cell", CELLS.values())
def test_the_cells_are_those_of_keras(cell):
    assert CHAPTER["check_cell"](cell, seed=1).word == "exact"


def test_a_wrong_gate_is_noticed(monkeypatch):
    def forgetful(x, states, *weights):
        hidden, memory = CHAPTER["lstm_step"](x, states, *weights)
        return hidden, 0.99 * memory

    monkeypatch.setitem(CHAPTER["STEPS"], "lstm", forgetful)
    assert CHAPTER["check_cell"]("lstm").word == "refuted"


@pytest.mark.parametrize("cell", CELLS.values())
def test_runs_side_by_side_are_the_runs_alone(cell):
    models = [nnopt.models.rnn((None, 3), [5], 2, cell=cell, seed=seed) for seed in range(3)]
    weights = CHAPTER["stacked"](models)
    x = RANDOM.normal(size=(3, 2, 3)).astype("float32")  # (runs, batch, features): one step
    states = [RANDOM.normal(size=(3, 2, 5)).astype("float32") for _ in range(2 if cell == "lstm" else 1)]
    step = CHAPTER["STEPS"][cell]
    together = step(*[ops.convert_to_tensor(x), [ops.convert_to_tensor(one) for one in states]],
                    *[ops.convert_to_tensor(weight) for weight in weights[:3]])  # fmt: skip
    for run, model in enumerate(models):
        own = CHAPTER["of_run"](weights, run)
        for ours, theirs in zip(own, model.get_weights()):
            np.testing.assert_array_equal(ours, theirs)
        alone = step(ops.convert_to_tensor(x[run]), [ops.convert_to_tensor(one[run]) for one in states],
                     *[ops.convert_to_tensor(weight) for weight in own[:3]])  # fmt: skip
        for one, other in zip(together, alone):
            np.testing.assert_allclose(ops.convert_to_numpy(one)[run], ops.convert_to_numpy(other), atol=1e-5)
