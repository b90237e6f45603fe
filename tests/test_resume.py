"""Training that survives kill -9: what is stored, what is refused, and that nothing is lost."""

import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from nnopt.callbacks import EarlyStopping, Resume, StepDecayLR
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


def curves():
    return [StepDecayLR(0.05, [1, 3], 0.5)]


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
        (plateau, (3, 3), 1, {}),
        (stops_early, (1, 1), 2, {"validation_data": (X, Y)}),
        (curves, (2, 3), 2, {"shuffle": False}),
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


@pytest.mark.thorough
@given(
    st.sampled_from([list, plateau, curves]), st.integers(0, 3), st.integers(0, 4), st.sampled_from(["epoch", 1, 2, 3])
)
@settings(max_examples=20, deadline=None)
def test_a_run_killed_anywhere_equals_one_that_was_never_interrupted(uninterrupted, callbacks, epoch, batch, save_freq):
    with tempfile.TemporaryDirectory() as folder:
        killed(folder, place=(epoch, batch), callbacks=callbacks(), save_freq=save_freq)
        resumed = run(folder, [*callbacks(), nobody()], save_freq=save_freq)
    assert_equal(uninterrupted(callbacks)[0], resumed[1])
    assert uninterrupted(callbacks)[1].history == resumed[2].history


@pytest.mark.parametrize(("callbacks", "end"), [(list, "complete: 4"), (stops_early, "stopped by a callback: 2")])
def test_after_its_end_the_same_script_trains_no_more_says_so_and_has_the_same_result(tmp_path, callbacks, end):
    arguments = {"validation_data": (X, Y)}
    first = run(tmp_path, callbacks(), **arguments)
    files = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    with pytest.warns(UserWarning, match=f"The run in {tmp_path} is {end} epochs. Nothing is trained"):
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
    with pytest.warns(UserWarning, match="complete: 2 epochs"):
        again = script(tmp_path / "killed")
    assert_equal(whole[1], again[1])


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


def bit_flipped(content):
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"", bit_flipped])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(tmp_path, damage):
    for number in range(3):
        checkpoints.write(tmp_path, {"number": number, "array": np.full(100, number)}, keep=3)
    third, second, first = sorted(tmp_path.glob("*.nnopt"), reverse=True)
    third.write_bytes(damage(third.read_bytes()))
    with pytest.warns(UserWarning, match=f"{third.name} is damaged"):
        path, state = checkpoints.newest(tmp_path)
    assert (path, state["number"]) == (second, 1)
    assert third.with_suffix(".corrupt").exists()
    for path in (first, second):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.newest(tmp_path) is None


def test_a_run_whose_newest_checkpoint_is_damaged_still_ends_the_same(tmp_path, uninterrupted, stored):
    folder = shutil.copytree(stored, tmp_path / "killed")
    newest = max(folder.glob("*.nnopt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
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


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
LEAVES |= st.tuples(
    st.sampled_from(["float32", "int8", "bfloat16", "bool"]), st.lists(st.integers(0, 3), max_size=3)
).map(lambda pair: np.arange(np.prod(pair[1])).reshape(pair[1]).astype(np.dtype(pair[0])))


@given(st.recursive(LEAVES, lambda nodes: st.lists(nodes, max_size=3) | st.dictionaries(st.text(), nodes, max_size=3)))
@settings(max_examples=60, deadline=None)
def test_the_state_of_callbacks_comes_back_as_it_was(tree):
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write(pathlib.Path(folder), tree, keep=2)
        back = checkpoints.newest(pathlib.Path(folder))[1]
    np.testing.assert_equal(back, tree)
    arrays = [value for value in keras.tree.flatten([tree, back]) if isinstance(value, np.ndarray)]
    half = len(arrays) // 2
    assert [array.dtype for array in arrays[:half]] == [array.dtype for array in arrays[half:]]


@pytest.mark.parametrize("state", [{"thing": object()}, {1: "one"}, {"arrays": np.array([None])}])
def test_a_state_that_cannot_be_written_is_found_before_anything_is_trained(tmp_path, state):
    class Odd(Kill):
        def get_state(self):
            return state

        def on_epoch_begin(self, epoch, logs=None):
            raise AssertionError("training began")

    with pytest.raises(TypeError, match=r"The state of Odd cannot be written(.|\n)*Received: "):
        run(tmp_path, [Odd(-1, -1)])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": lambda: network(units=5)}, "model"),
        ({"model": lambda: network(keras.optimizers.Adam(0.01, beta_1=0.8))}, "beta_1"),
        ({"data": lambda: dataset(seed=4)}, "seed"),
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
        ({"directory": 3}, "directory"),
        ({"directory": ""}, "directory"),
        ({"data": X}, "data"),
        ({"save_freq": 0}, "save_freq"),
        ({"save_freq": 3, "data": None}, "save_freq"),
        ({"keep": 1}, "keep"),
    ],
)
def test_a_bad_argument_is_refused_with_its_name_and_value(arguments, name):
    with pytest.raises((TypeError, ValueError), match=rf"`{name}` must be (.|\n)*Received: {name}="):
        Resume(**{"directory": "runs", "data": dataset(), **arguments})


def tfds_pipeline():
    """Five batches of a mocked MNIST, shuffled and read by TensorFlow Datasets."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets")
    with tfds.testing.mock_data(num_examples=20):
        images = tfds.load("mnist", split="train", as_supervised=True)

    def make(epoch):
        # Three pixels of each image, and its label.
        batches = images.shuffle(20, seed=epoch).batch(4)
        return batches.map(
            lambda x, y: (ops.cast(x[:, 14, 12:15, 0], "float32") / 255, ops.cast(y[:, None], "float32"))
        )

    return EpochPipeline(make, 5, "mocked mnist")


def grain_pipeline():
    grain = pytest.importorskip("grain", reason="needs grain")

    def make(epoch):
        return grain.MapDataset.range(20).seed(epoch).shuffle().map(lambda row: (X[row], Y[row])).batch(4)

    return EpochPipeline(make, 5, "grain")


def generator_pipeline():
    def make(epoch):
        for rows in epoch_order(20, 7, epoch).reshape(5, 4):
            yield X[rows], Y[rows]

    return EpochPipeline(make, 5, "a generator")


# One of each world; Grain beside TensorFlow, too, would take as long again.
PIPELINES = [tfds_pipeline if keras.backend.backend() == "tensorflow" else grain_pipeline, generator_pipeline]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_killed_in_the_middle_of_an_epoch_resumes(tmp_path, pipeline):
    data = pipeline()
    whole = run(tmp_path / "whole", [nobody()], epochs=3, data=data, save_freq=2)
    killed(tmp_path / "killed", place=(1, 3), epochs=3, data=data, save_freq=2)
    resumed = run(tmp_path / "killed", [nobody()], epochs=3, data=pipeline(), save_freq=2)
    assert_equal(whole[1], resumed[1])
    assert whole[2].history == resumed[2].history


@pytest.mark.thorough
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's distribution strategies")
def test_a_run_on_two_replicas_resumes_and_replicas_that_differ_keep_their_own_values():
    script = pathlib.Path(__file__).with_name("mirrored.py")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed at step 9\nkilled at step 15" in done.stdout


MANY = 50 if keras.backend.backend() == "tensorflow" else 20


@pytest.mark.parametrize("kills", [2, pytest.param(MANY, marks=pytest.mark.thorough)])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_processes_killed_with_sigkill_end_with_the_same_weights(kills):
    script = pathlib.Path(__file__).with_name("resume_kills.py")
    output = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--kills", str(kills), "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert output.returncode == 0, output.stdout + output.stderr
    assert re.search(rf": {kills} kills in \d+ runs, 0 runs with other weights", output.stdout)
