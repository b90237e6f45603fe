"""Grid search over the fields of the translation recipe, by KerasTuner."""

import dataclasses
import itertools
import json
import math
import tempfile

import keras
import numpy as np

from nnopt.callbacks import Resume
from nnopt.checks import check_choice, check_instance
from nnopt.recipes import running
from nnopt.recipes.translation import ValidationBLEU, built, choose_jit, prepared

# What a search does not vary: what decides the data, and what its measurements do not depend on.
FIXED = (
    "data", "direction", "pairs", "vocabulary", "longest", "batch_size", "seed", "averaging", "patience", "monitor",
    "beam_width", "length_penalty",
)  # fmt: skip
MEASURED = ("val_loss", "val_bleu")  # after each epoch


def grid_search(recipe, grid, output, objective="val_loss"):
    """Trains a recipe at every point of a grid by KerasTuner's `GridSearch`. Killed, it goes on where it was.

    KerasTuner can spread the search: run the same script with KERASTUNER_TUNER_ID=chief and as worker_1, worker_2, ...,
    each with KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT of the chief, which trains nothing, and with the folder of
    the search in common. What is kept of a search are its trainings: each has a folder with checkpoints in `trainings`,
    and result.json in it when it is finished. (KerasTuner's own record of a GridSearch cannot be taken up again.)

    Args:
        recipe: A `TranslationRecipe`: what the grid leaves open.
        grid: Lists of values by field, fields of the network or of its training.
        output: Folder of this search, new or one that the same call began.
        objective: What the best point has the best value of, after the last epoch: "val_loss" or "val_bleu".

    Returns:
        A list of dicts, best first: the fields of the grid, val_loss and val_bleu. A loss of NaN stands last.

    Raises:
        TypeError, ValueError: The grid is empty or has a field that is none of these, or a value breaks its rule; the
            folder holds another search.
        ImportError: keras-tuner is not installed.
        keras_tuner.errors.FatalError: A training failed.
    """
    import keras_tuner

    check_choice("objective", objective, MEASURED)
    points = _points(recipe, grid)
    folder, devices, data = running.RunFolder(output), running.Devices(), recipe.load()
    folder.check(recipe)  # before anything is put there
    with folder.in_turn():
        folder.check(recipe)
        subwords, batches, validation = prepared(recipe, data, folder)
        settings = folder.begin(recipe, devices, choose_jit)
        folder.write("subwords.model", bytes(subwords))
        own = json.dumps({"objective": objective, "grid": {name: list(map(str, grid[name])) for name in grid}}) + "\n"
        if (folder.path / "grid.json").exists() and folder.read("grid.json") != own:
            raise ValueError(f"The folder {folder.path} holds a search of another grid. Received: {own.strip()}")
        folder.write("grid.json", own)

    def train(label):
        place = running.RunFolder(folder.path / "trainings" / label)
        if not (place.path / "result.json").exists():
            place.path.mkdir(parents=True, exist_ok=True)
            with place.alone():
                keras.utils.clear_session()
                point = recipe.replace(**points[label])
                model = built(point, subwords, batches, devices, settings["jit_compile"])
                callbacks = [ValidationBLEU(subwords, data.validation), Resume(place.path / "checkpoints", batches)]
                past = model.fit(
                    batches, validation_data=validation, epochs=point.epochs, verbose=0, callbacks=callbacks
                )
                place.write("result.json", json.dumps({name: past.history[name][-1] for name in MEASURED}) + "\n")
        return json.loads(place.read("result.json"))

    class Search(keras_tuner.GridSearch):
        def run_trial(self, trial, **options):
            try:
                return train(_label({name: trial.hyperparameters.values[name] for name in grid}))
            except Exception as error:  # KerasTuner would go on without this point
                raise keras_tuner.errors.FatalError(str(error)) from error

    space, sign = keras_tuner.HyperParameters(), {"val_loss": 1, "val_bleu": -1}[objective]
    for name, values in grid.items():
        # As strings, since a Choice of KerasTuner knows no None and no bool.
        space.Choice(name, list(dict.fromkeys(map(str, values))))
    direction = keras_tuner.Objective(objective, "min" if sign == 1 else "max")
    with tempfile.TemporaryDirectory() as record:
        search = Search(
            hyperparameters=space, objective=direction, directory=record, max_consecutive_failed_trials=len(points) + 1
        )
        search.search(verbose=0)
    table = [{**point, **train(label)} for label, point in points.items()]
    return sorted(table, key=lambda row: (math.isnan(row[objective]), sign * row[objective]))


def _points(recipe, grid):
    """Returns the fields of each point of the grid, by label."""
    check_instance("grid", grid, dict, "a dict of lists")
    free = tuple(field.name for field in dataclasses.fields(recipe) if field.name not in FIXED)
    for name, values in grid.items():
        check_choice("grid", name, free)
        check_instance(f"grid[{name!r}]", values, (list, tuple, range, np.ndarray), "a list of values")
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    if not grid or not points:
        raise ValueError(f"`grid` must hold a list of values, none of them empty. Received: grid={grid!r}")
    if recipe.patience is not None:
        raise ValueError(f"`patience` must be None in a search, which measures at the end. Received: {recipe.patience}")
    for point in points:
        recipe.replace(**point)
    return {_label(point): point for point in points}


def _label(point):
    return ", ".join(f"{name}={value}" for name, value in point.items())
