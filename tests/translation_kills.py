"""Kills trainings of the translation recipe, or grid searches, with SIGKILL at random, and runs them again.

    KERAS_BACKEND=jax python tests/translation_kills.py --kills 10
    python tests/translation_kills.py --task search --kills 10

Each trial is killed once or more, at a moment drawn from the time that a whole run takes, and then run to its end. It
must give what an undisturbed run gives: of a training, the weights of model and optimizer in the last checkpoint and
those of the network, bit for bit, history.csv, translations.tsv, and the report without its times; of a search, the
table and the result of each training, none of which may have gone back by more than the epoch in which it was killed.
Every run is a process of its own, forked from one that has imported Keras but used it for nothing yet. The last line is
a summary; the exit status tells whether all was the same.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import tempfile
import warnings
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TQDM_DISABLE"] = "1"

import h5py
import keras
import kills
import small_search
from small_phrases import small

from nnopt.callbacks import _checkpoints
from nnopt.data import number_phrases
from nnopt.recipes import TranslationRecipe, grid_search, train_translation

RECIPE = TranslationRecipe(
    pairs=120, vocabulary=150, longest=23, units=8, embedding=8, epochs=8, batch_size=16, learning_rate=0.02,
    beam_width=2,
)  # fmt: skip


def train(folder):
    number_phrases.phrases = small
    train_translation(RECIPE, folder, save_every=2)


def search(folder):
    def note(point, epoch):
        with open(folder / "epochs.part.txt", "a") as log:
            log.write(f"{point}; {epoch}\n")

    small_search.patch(note)
    table = grid_search(small_search.RECIPE, small_search.GRID, folder)
    (folder / "table.json").write_text(json.dumps(table))


def run(task, folder, after=None):
    """Does the task in a process of its own, killed after some seconds; returns its seconds, or None if killed."""

    def quietly():
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task(folder)

    return kills.end(kills.start(quietly), after)


def stored_weights(path):
    """Returns the weights of a saved model by path; read without Keras, whose backend must not run before a fork."""
    found = {}

    def note(name, part):
        if isinstance(part, h5py.Dataset):
            found[name] = part[()].tobytes()

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
        weights.visititems(note)
    assert len(found) > 10
    return found


def of_training(folder):
    """Returns what must be the same."""
    _, state = _checkpoints.newest(folder / "checkpoints")
    parts = {part: keras.tree.flatten(state[part]) for part in ("model", "optimizer")}
    found = {part: [value.tobytes() for value in arrays] for part, arrays in parts.items()}
    found["network"] = stored_weights(folder / "model.keras")
    found |= {name: (folder / name).read_text("utf-8") for name in ("history.csv", "translations.tsv")}
    report = json.loads((folder / "report.json").read_text())
    training = {name: report["training"][name] for name in ("epochs", "steps", "pairs", "dropped")}
    return found | {"report": {**report, "sentences_per_second": None, "training": training}}


def of_search(folder):
    """Returns what must be the same."""
    epochs = {}
    for line in (folder / "epochs.part.txt").read_text().splitlines():
        point, epoch = line.split("; ")
        epochs.setdefault(point, []).append(int(epoch))
    results = {path.parent.name: path.read_text() for path in folder.glob("trainings/*/result.json")}
    return {
        "table": (folder / "table.json").read_text(),
        "results": results,
        "epochs of each training": {point: sorted(set(done)) for point, done in epochs.items()},
        "trainings that went back": [point for point, done in epochs.items() if done != sorted(done)],
    }


def stood(folder):
    """Returns how far a killed run had come, for the log."""
    finished = len(list(folder.glob("trainings/*/result.json")))
    return max((path.name for path in folder.glob("checkpoints/*.nnopt")), default=f"{finished} trainings finished")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("training", "search"), default="training")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    task, result = {"training": (train, of_training), "search": (search, of_search)}[arguments.task]
    choose, folder = random.Random(arguments.seed), pathlib.Path(tempfile.mkdtemp())

    def trial(number, done):
        nonlocal seconds
        places, directory = [], folder / f"run-{number}"
        while not places or (done + len(places) < arguments.kills and choose.random() < 0.6):
            after = choose.uniform(0, seconds)
            if run(task, directory, after) is not None:  # the machine is less busy than before
                seconds *= 0.8
                break
            places.append(f"{after:.1f} s ({stood(directory)})")
        run(task, directory)
        found = result(directory)
        return places, [name for name, value in expected.items() if found[name] != value]

    try:
        undisturbed = seconds = run(task, folder / "whole")
        expected = result(folder / "whole")
        done, trials, failures = kills.repeat(trial, arguments.kills, most=5)
        print(
            f"{keras.backend.backend()}, {arguments.task}: {done} kills in {trials} runs, {failures} runs with another "
            f"result (seed {arguments.seed}; an undisturbed run takes {undisturbed:.1f} s)"
        )
    finally:
        shutil.rmtree(folder)
    raise SystemExit(int(failures > 0))


if __name__ == "__main__":
    main()
