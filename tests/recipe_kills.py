"""Kills trainings of the image recipe with SIGKILL at random, runs them again, and compares with an undisturbed run.

    KERAS_BACKEND=jax python tests/recipe_kills.py --kills 10
    python tests/recipe_kills.py --kills 10 --strategy mirrored

Each trial is killed once or more, at a moment drawn from the second half of the time that a whole run takes, and
then run to its end. Compared are the weights of model and optimizer in the last checkpoint, bit for bit, history.csv,
and the report's accuracy. Every run is a process of its own, forked from one that has imported Keras but used it for
nothing yet. A strategy has two devices, halves of the processor. The last line is a summary; the exit status tells
whether all was the same.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TQDM_DISABLE"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import kills
from devices import split_processor
from small_images import small

from nnopt.callbacks import _checkpoints
from nnopt.data import images
from nnopt.recipes import ImageRecipe, train_images

RECIPE = ImageRecipe.preset("laptop").replace(depth=8, width=4, epochs=8, batch_size=16)
DATA = small()  # once: each child has it


def run(folder, strategy, after=None):
    """Trains in a process of its own, killed after some seconds; returns its seconds, or None if it was killed."""

    def train():
        images.load = lambda name: DATA
        if strategy == "mirrored":
            split_processor(2)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_images(RECIPE, folder, strategy=strategy, save_every=2)

    return kills.end(kills.start(train), after)


def result(folder):
    """Returns what must be the same."""
    _, state = _checkpoints.newest(folder / "checkpoints")
    # Replicas may hold unlike values: a list of arrays.
    parts = {part: keras.tree.flatten(state[part]) for part in ("model", "optimizer")}
    values = {part: [value.tobytes() for value in arrays] for part, arrays in parts.items()}
    accuracy = json.loads((folder / "report.json").read_text())["top_1"]
    return {**values, "history": (folder / "history.csv").read_text(), "top_1": accuracy}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", default="none")
    arguments = parser.parse_args()
    choose, folder = random.Random(arguments.seed), pathlib.Path(tempfile.mkdtemp())

    def trial(number, done):
        places, directory = [], folder / f"run-{number}"
        while not places or (done + len(places) < arguments.kills and choose.random() < 0.4):
            after = choose.uniform(0.5 * seconds, seconds)
            if run(directory, arguments.strategy, after) is not None:
                break
            newest = max((path.name for path in directory.glob("checkpoints/*.nnopt")), default="no checkpoint")
            places.append(f"{after:.1f} s ({newest})")
        run(directory, arguments.strategy)
        found = result(directory)
        return places, [name for name, value in expected.items() if found[name] != value]

    try:
        seconds = run(folder / "whole", arguments.strategy)
        expected = result(folder / "whole")
        done, trials, failures = kills.repeat(trial, arguments.kills, most=5)
        name = f"{keras.backend.backend()}, strategy {arguments.strategy}"
        print(
            f"{name}: {done} kills in {trials} runs, {failures} runs with another result (seed {arguments.seed}; an "
            f"undisturbed run takes {seconds:.1f} s)"
        )
    finally:
        shutil.rmtree(folder)
    raise SystemExit(int(failures > 0))


if __name__ == "__main__":
    main()
