"""Training that survives kill -9: what is stored, what is refused, and that nothing is lost."""

import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from nnopt.callbacks import CyclicalLR, EarlyStopping, Resume, StepDecayLR
from nnopt.callbacks import _checkpoints as checkpoints
from nnopt.data.ordered import EpochPipeline, OrderedDataset, epoch_order

NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(20, 3)).astype("float32")
Y = NUMBERS.normal(size=(20, 1)).astype("float32")


class Killed(BaseException):
    """Stands for a kill inside this process."""


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.place, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise Killed

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def dataset(**arguments):
    return OrderedDataset(**{"x": X, "y": Y, "batch_size": 4, "seed": 3, **arguments})


def network(optimizer=None, units=4, **compile_arguments):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss="mse", **compile_arguments)
    return model


def run(directory, callbacks=(), epochs=4, save_freq="epoch", data=None, model=None, **arguments):
    """The script: returns the model, its arrays and its history."""
    model = model or network()
    data = data or dataset()
    resume = Resume(directory, data, save_freq=save_freq)
    history = model.fit(data, epochs=epochs, verbose=0, callbacks=[*callbacks, resume], **arguments)
    variables = [*model.variables, *model.optimizer.variables]
    return model, [np.array(ops.convert_to_numpy(variable)) for variable in variables], history


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Gives the arrays and the history of the undisturbed script, which is trained once for each kind of callbacks."""
    results = {}

    def result(callbacks=list, **arguments):
        if callbacks not in results:
            _, arrays, history = run(tmp_path_factory.mktemp("whole"), [*callbacks(), nobody()], **arguments)
            results[callbacks] = arrays, history
        return results[callbacks]

    return result


def killed(*arguments, place, callbacks=(), **keywords):
    with pytest.raises(Killed):
        run(*arguments, callbacks=[*callbacks, Kill(*place)], **keywords)


def assert_equal(first, second):
    assert len(first) == len(second)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second))


def nobody():
    return Kill(-1, -1)


def stops_early():
    return [EarlyStopping("val_loss", patience=1, min_delta=10.0)]


def plateau():
    return [keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0), Draws()]


class Draws(keras.callbacks.Callback):
    """Draws from the global generators of Python, NumPy and Keras, as augmentation would."""

    def on_epoch_end(self, epoch, logs=None):
        kernel = self.model.layers[0].kernel
        kernel.assign(kernel * (1 + 0.01 * (random.random() + np.random.rand() + keras.random.uniform(()))))

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


@pytest.mark.parametrize(
    ("callbacks", "place", "save_freq", "arguments"),
    [
        (list, (2, 1), "epoch", {}),
        pytest.param(list, (0, 0), "epoch", {}, marks=pytest.mark.thorough),
        (list, (2, 3), 2, {}),
        pytest.param(list, (0, 4), 3, {}, marks=pytest.mark.thorough),
        pytest.param(plateau, (2, 1), "epoch", {}, marks=pytest.mark.thorough),
        (plateau, (3, 3), 1, {}),
        (stops_early, (1, 1), 2, {"validation_data": (X, Y)}),
        pytest.param(lambda: [CyclicalLR(0.01, 0.05, step_size=7)], (2, 3), 2, {}, marks=pytest.mark.thorough),
        (lambda: [StepDecayLR(0.05, [1, 3], 0.5)], (2, 3), 2, {}),
    ],
)
def test_a_resumed_run_equals_one_that_was_never_interrupted(
    tmp_path, uninterrupted, callbacks, place, save_freq, arguments
):
    arrays, history = uninterrupted(callbacks, **arguments)
    killed(tmp_path, place=place, callbacks=callbacks(), save_freq=save_freq, **arguments)
    resumed = run(tmp_path, [*callbacks(), nobody()], save_freq=save_freq, **arguments)
    assert_equal(arrays, resumed[1])
    assert history.history == resumed[2].history
    assert history.epoch == resumed[2].epoch


@pytest.mark.parametrize("callbacks", [list, stops_early])
def test_after_its_end_the_same_script_trains_no_more_and_has_the_same_result(tmp_path, callbacks):
    arguments = {"validation_data": (X, Y)}
    first = run(tmp_path, callbacks(), **arguments)
    files = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    again = run(tmp_path, callbacks(), **arguments)
    assert_equal(first[1], again[1])
    assert first[2].history == again[2].history
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()) == files


def test_a_stop_in_the_middle_is_kept_by_the_state_of_early_stopping(tmp_path):
    """Keras' own forgets: with patience 3, killed in epoch 2 and resumed, it would stop at epoch 5 instead of 3."""

    def callbacks():
        return [EarlyStopping("loss", patience=3, min_delta=10.0), nobody()]

    killed(tmp_path, place=(2, 1), callbacks=callbacks()[:1], epochs=9)
    assert run(tmp_path, callbacks(), epochs=9)[2].epoch == [0, 1, 2, 3]


def test_more_epochs_go_on_where_the_first_ended(tmp_path, uninterrupted):
    run(tmp_path, [nobody()], epochs=2)
    resumed = run(tmp_path, [nobody()], epochs=4)
    assert_equal(uninterrupted()[0], resumed[1])
    assert uninterrupted()[1].history == resumed[2].history


def test_two_fits_of_a_script_resume_in_two_folders(tmp_path):
    def script(folder, place=(-1, -1)):
        model, data = network(), dataset()
        run(folder / "first", [nobody()], epochs=2, data=data, model=model)
        return run(folder / "second", [Kill(*place)], epochs=2, data=data, model=model, save_freq=2)

    whole = script(tmp_path / "whole")
    with pytest.raises(Killed):
        script(tmp_path / "killed", (1, 3))
    assert_equal(whole[1], script(tmp_path / "killed")[1])


def test_a_model_that_is_built_by_its_first_batch_resumes(tmp_path):
    whole = run(tmp_path / "whole", [nobody()], model=_unbuilt(), save_freq=2)
    with pytest.raises(Killed):
        run(tmp_path / "killed", [Kill(2, 3)], model=_unbuilt(), save_freq=2)
    resumed = run(tmp_path / "killed", [nobody()], model=_unbuilt(), save_freq=2)
    assert_equal(whole[1], resumed[1])
    assert whole[2].history == resumed[2].history


def _unbuilt():
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    return model


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch refuses steps_per_execution > 1")
def test_an_epoch_in_executions_of_several_steps_resumes_in_its_middle(tmp_path):
    def model():
        return network(steps_per_execution=2)

    whole = run(tmp_path / "whole", [nobody()], save_freq=2, model=model())
    killed(tmp_path / "killed", place=(1, 3), save_freq=2, model=model())
    assert_equal(whole[1], run(tmp_path / "killed", [nobody()], save_freq=2, model=model())[1])


def test_other_callbacks_hear_only_of_batches_that_are_trained(tmp_path):
    class Heard(Kill):
        def __init__(self):
            super().__init__(-1, -1)
            self.batches = []

        def on_train_batch_begin(self, batch, logs=None):
            self.batches.append((self.epoch, batch))

    Heard.__name__ = "Kill"
    killed(tmp_path, place=(1, 3), save_freq=2, epochs=2)
    heard = Heard()
    run(tmp_path, [heard], epochs=2, save_freq=2)
    assert heard.batches == [(1, 2), (1, 3), (1, 4)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the checkpoints of a run that was killed in its fourth epoch."""
    folder = tmp_path_factory.mktemp("stored")
    killed(folder, place=(3, 0))
    return folder


def damage_by_truncation(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_to_nothing(path):
    path.write_bytes(b"")


def damage_of_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_to_nothing, damage_of_a_bit])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(tmp_path, uninterrupted, stored, damage):
    folder = shutil.copytree(stored, tmp_path / "killed")
    newest = max(folder.glob("*.nnopt"))
    damage(newest)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        resumed = run(folder, [nobody()])
    assert_equal(uninterrupted()[0], resumed[1])
    assert newest.with_suffix(".corrupt").exists()


def test_when_every_checkpoint_is_damaged_training_begins_anew(tmp_path, uninterrupted, stored):
    folder = shutil.copytree(stored, tmp_path / "killed")
    for path in folder.glob("*.nnopt"):
        damage_to_nothing(path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert_equal(uninterrupted()[0], run(folder, [nobody()])[1])


STEPS_OF_A_WRITE = ["open", "write", "fsync", "replace", "fsync of the folder", "unlink"]


@pytest.mark.parametrize("step", range(len(STEPS_OF_A_WRITE)), ids=STEPS_OF_A_WRITE)
def test_a_write_that_ends_anywhere_leaves_a_whole_checkpoint(tmp_path, monkeypatch, step):
    def write(number):
        array = np.full(1000, number)
        checkpoints.write(tmp_path, {"a": array}, keep=2)

    for number in range(3):
        write(number)
    real = {"fsync": os.fsync, "replace": os.replace, "unlink": pathlib.Path.unlink}
    calls = iter(range(10))

    def dying(name):
        def call(*arguments):
            if next(calls) == step - 2:
                raise Killed
            return real[name](*arguments)

        return call

    def dying_open(path, mode):
        if step == 0:
            raise Killed
        file = open(path, mode)  # noqa: SIM115
        if step == 1:
            file.write(b"half")
            file.close()
            raise Killed
        return file

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying("fsync"))
        patch.setattr(os, "replace", dying("replace"))
        patch.setattr(pathlib.Path, "unlink", dying("unlink"))
        patch.setattr(checkpoints, "open", dying_open, raising=False)
        with pytest.raises(Killed):
            write(3)
    _, state = checkpoints.newest(tmp_path)
    assert state["a"][0] == (3 if step > 3 else 2)
    write(4)
    assert checkpoints.newest(tmp_path)[1]["a"][0] == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_the_state_of_callbacks_comes_back_as_it_was(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tree = {
        "a": [1, 2.5, None, "text", True],
        "nan": float("nan"),
        "array": {"array": np.arange(6.0).reshape(2, 3)},
        "half": np.ones(2, ml_dtypes.bfloat16),
        "scalar": np.array(3, "int64"),
        "dict": {},
    }
    checkpoints.write(tmp_path, tree, keep=2)
    back = checkpoints.newest(tmp_path)[1]
    np.testing.assert_equal(back, tree)
    assert back["half"].dtype == ml_dtypes.bfloat16
    assert back["scalar"].shape == ()


def test_a_state_that_cannot_be_stored_is_named(tmp_path):
    class Odd(Kill):
        def get_state(self):
            return {"thing": object()}

    with pytest.raises(TypeError, match="state of a callback must be made of"):
        run(tmp_path, [Odd(-1, -1)])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": lambda: network(units=5)}, "model"),
        ({"model": lambda: network(keras.optimizers.SGD(0.01))}, "optimizer"),
        ({"model": lambda: network(keras.optimizers.Adam(0.01, beta_1=0.8))}, "beta_1"),
        ({"data": lambda: dataset(seed=4)}, "seed"),
        ({"data": lambda: dataset(batch_size=5)}, "batch_size"),
        ({"data": lambda: dataset(x=X + 1)}, "checksum"),
        ({"callbacks": lambda: [EarlyStopping("loss")]}, "callbacks"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_left_alone(stored, change, part):
    files = sorted(path.name for path in stored.iterdir())
    with pytest.raises(ValueError, match=rf"belongs to another run(.|\n)*{part}"):
        run(stored, **{"callbacks": [nobody()], **{name: make() for name, make in change.items()}})
    assert sorted(path.name for path in stored.iterdir()) == files


def test_data_of_unknown_order_bring_a_warning_instead_of_a_promise(tmp_path):
    with pytest.warns(UserWarning, match="cannot promise the same result"):
        network().fit(X, Y, verbose=0, callbacks=[Resume(tmp_path)])


def test_a_callback_that_keeps_no_state_is_named_and_a_later_fit_begins_at_epoch_0(tmp_path, stored):
    class Forgetful(keras.callbacks.Callback):
        pass

    with pytest.warns(UserWarning, match="Forgetful has no get_state"):
        model, _, _ = run(shutil.copytree(stored, tmp_path / "killed"), [nobody(), Forgetful()])
    assert model.fit(X, Y, epochs=1, verbose=0).epoch == [0]


def test_only_whole_checkpoints_are_kept_and_as_many_as_asked_for(tmp_path):
    model, data = network(), dataset()
    model.fit(data, epochs=6, verbose=0, callbacks=[Resume(tmp_path, data, keep=3)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{n:08d}.nnopt" for n in (4, 5, 6)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        *[({"directory": value}, "directory") for value in (None, 3, "", b"")],
        *[({"data": value}, "data") for value in (X, "data", 3)],
        *[({"save_freq": value}, "save_freq") for value in (0, -1, 1.5, "batch", None, True)],
        ({"save_freq": 3, "data": None}, "save_freq"),
        *[({"keep": value}, "keep") for value in (1, 0, 2.5, "2", None)],
    ],
)
def test_a_bad_argument_is_refused_with_its_name_and_value(arguments, name):
    with pytest.raises((TypeError, ValueError), match=rf"`{name}` must be (.|\n)*Received: {name}="):
        Resume(**{"directory": "runs", "data": dataset(), **arguments})


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_processes_killed_with_sigkill_end_with_the_same_weights():
    script = pathlib.Path(__file__).with_name("resume_kills.py")
    # One within a save, one within an epoch; `python tests/resume_kills.py --kills 20` does it at length.
    output = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--kills", "2", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert output.returncode == 0, output.stdout + output.stderr
    assert re.search(r": 2 kills in \d+ runs, 0 runs with other weights", output.stdout)
