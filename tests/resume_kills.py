"""Kills a training script with SIGKILL, runs it again, and compares its weights with those of an undisturbed run.

    KERAS_BACKEND=jax python tests/resume_kills.py --kills 20

Half of the kills come at a random time after training began, half at a random point of the writing of a checkpoint, and
after some of them the run that resumed is killed as well. Every run is a process of its own, forked from one that has
imported Keras but used it for nothing yet, which saves the seconds of the import. The last line is a summary; the exit
status tells whether all weights were the same.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import kills
import numpy as np

from nnopt.callbacks import CyclicalLR, EarlyStopping, Resume
from nnopt.data.ordered import EpochPipeline, OrderedDataset

EPOCHS, BATCHES = 5, 10
PIPELINE = False
STAGES = ("before the write", "half written", "written", "flushed", "renamed", "old ones removed")


class Noise(keras.callbacks.Callback):
    """Changes the weights by what the global random generators draw, and by what it remembers of former epochs."""

    def __init__(self):
        super().__init__()
        self.total = 0.0

    def on_epoch_end(self, epoch, logs=None):
        self.total += random.random() + np.random.rand()
        kernel = self.model.layers[0].kernel
        kernel.assign(kernel + 1e-3 * self.total)

    def get_state(self):
        return {"total": self.total}

    def set_state(self, state):
        self.total = state["total"]


class Signal(keras.callbacks.Callback):
    """Tells the supervisor that training begins, and slows it down enough to be hit."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def on_train_begin(self, logs=None):
        os.write(self.pipe, b"x")

    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(0.005)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def train(directory, pipe):
    """The script under test: nothing in it knows of kills."""
    keras.utils.set_random_seed(7)
    numbers = np.random.default_rng(0)
    x, y = numbers.normal(size=(76, 6)).astype("float32"), numbers.integers(0, 3, 76)
    data = OrderedDataset(x, y, batch_size=8, seed=3)
    if PIPELINE:
        data = EpochPipeline(data.batches, BATCHES, "the same batches, as a function of the epoch")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
    callbacks = [
        Signal(pipe),
        CyclicalLR(0.001, 0.02, step_size=7),
        Noise(),
        EarlyStopping("loss", patience=9),
        Resume(directory, data, save_freq=3),
    ]
    history = model.fit(data, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    result = {str(i): np.array(keras.ops.convert_to_numpy(v)) for i, v in enumerate(model.variables)}
    result |= {f"slot {i}": np.array(keras.ops.convert_to_numpy(v)) for i, v in enumerate(model.optimizer.variables)}
    return result | {name: np.array(values) for name, values in history.history.items()}


def kill_in_save(number, stage):
    """Makes the present process kill itself at a stage of the writing of its checkpoint `number`."""
    replace, fsync, unlink = os.replace, os.fsync, pathlib.Path.unlink
    calls = {"fsync": 0, "replace": 0, "unlink": 0}

    def die(name, at, *events):
        if stage in events and calls[name] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_fsync(descriptor):
        calls["fsync"] += 1
        if stage == "half written" and calls["fsync"] == 2 * number - 1:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        die("fsync", 2 * number - 1, "half written", "written")
        fsync(descriptor)
        die("fsync", 2 * number - 1, "flushed")

    def counted_replace(source, target):
        calls["replace"] += 1
        replace(source, target)
        die("replace", number, "renamed")

    def counted_unlink(path, missing_ok=False):
        calls["unlink"] += 1
        unlink(path, missing_ok)
        # The first checkpoints leave nothing to remove.
        die("unlink", max(number - 2, 1), "old ones removed")

    def counted_open(*arguments, **keywords):
        if "w" in str(arguments[1:2]) and str(arguments[0]).endswith(".tmp"):
            calls["open"] = calls.get("open", 0) + 1
            file = open(*arguments, **keywords)  # noqa: SIM115
            die("open", number, "before the write")
            return file
        return open(*arguments, **keywords)

    import nnopt.callbacks._checkpoints

    os.fsync, os.replace, pathlib.Path.unlink, nnopt.callbacks._checkpoints.open = (
        counted_fsync,
        counted_replace,
        counted_unlink,
        counted_open,
    )


def run(directory, result, after=None, save=None):
    """Runs the script in a process, and kills it `after` seconds of training, or in a `save` (number, stage).

    Returns the seconds from the beginning of training to its end, or None if it was killed.
    """
    reader, writer = os.pipe()

    def task():
        os.close(reader)
        if save is not None:
            kill_in_save(*save)
        arrays = train(directory, writer)
        # A kill here must not leave half a result.
        np.savez(result.with_suffix(".part.npz"), **arrays)
        os.rename(result.with_suffix(".part.npz"), result)

    child = kills.start(task)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return kills.end(child, after)


def differing(first, second):
    """Names of the variables and curves in which two runs differ."""
    with np.load(first) as a, np.load(second) as b:
        return [
            name
            for name in {*a.files, *b.files}
            if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()
        ]


def newest(directory):
    return max((path.name for path in directory.glob("checkpoint-*.nnopt")), default="no checkpoint")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline", action="store_true", help="an EpochPipeline instead of an OrderedDataset")
    arguments = parser.parse_args()
    global PIPELINE
    PIPELINE = arguments.pipeline
    choose = random.Random(arguments.seed)
    folder = pathlib.Path(tempfile.mkdtemp())

    def trial(number, done):
        directory, result, places = folder / f"run-{number}", folder / f"result-{number}.npz", []
        while not result.exists():
            hit, count = {}, done + len(places)
            if count < arguments.kills and (not places or choose.random() < 0.3):
                hit = (
                    {"after": choose.uniform(0, 0.9 * seconds)}
                    if count % 2
                    else {"save": (choose.randint(1, 12), STAGES[(count // 2) % len(STAGES)])}
                )
            if run(directory, result, **hit) is None:
                places.append(f"{hit} (then on disk: {newest(directory)})")
        return places, differing(folder / "whole.npz", result)

    try:
        seconds = run(folder / "whole", folder / "whole.npz")
        done, trials, failures = kills.repeat(trial, arguments.kills, most=10)
        print(
            f"{keras.backend.backend()}: {done} kills in {trials} runs, {failures} runs with other weights "
            f"(seed {arguments.seed}; undisturbed training takes {seconds:.1f} s)"
        )
    finally:
        shutil.rmtree(folder)
    raise SystemExit(int(failures > 0))


if __name__ == "__main__":
    main()
