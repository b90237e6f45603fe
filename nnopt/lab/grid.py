"""Every setting of a grid with several seeds: the runs, where they are trained, and their learning curves as arrays."""

import functools
import itertools
import pickle
import re
import warnings

import numpy as np
from tqdm import tqdm

from nnopt import _backend
from nnopt._start import import_tensorflow
from nnopt._state import seeded
from nnopt.checks import check_callable, check_choice, check_integer, check_seeds, identity, shown

_HELD_OUT = ("train_", "val_", "test_")
_SMALLER_IS_BETTER = r"\b(loss|errors?|(cross)?entropy|nats|perplexity|divergence|hinge|poisson|r?mse|mae|mape|msle)\b"
_LARGER_IS_BETTER = r"\b(acc|accuracy|auc|precision|recall|f1|fbeta|iou|dice|r2|bleu|sensitivity|specificity)\b"


def run_grid(train, grid=None, seeds=range(5), *, processes=1, progress=True):
    """Calls your own training function for every setting of a grid and every seed, and returns all learning curves.

    For whatever `sweep` cannot stack: a training step of your own, two networks against each other, sequences.
    Every call begins with `keras.utils.set_random_seed(seed)`; afterwards the random states of Python, NumPy and Keras
    are what they were before.

    Args:
        train: Function (setting, seed) -> dict of metric name -> learning curve, a list or an array (epochs,) of
            numbers: the same names and the same number of epochs in every run. `setting` is a dict with one value
            for each argument of the grid.
        grid, seeds, progress: As in `sweep`; the bar counts runs.
        processes: Number of runs at a time, each in a process of its own, with as many threads as this one. The
            curves are, bit for bit, those of one run after the other. The processes take some 4 s to start, once, so
            that two pay from about 10 s of training on. What `train` changes outside itself stays in its process.

    Returns:
        `SweepResult`, without the trained networks. A name without "train_", "val_" or "test_" in front is a training
        metric: a run is NaN in all its curves from the epoch on in which one of these is infinite or NaN.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or a curve has no epoch, more than
            one axis, or not the length of the others.

    Example:

    >>> def train(setting, seed):
    ...     weights, losses = np.random.default_rng(seed).normal(size=3), []
    ...     for _ in range(4):
    ...         weights = weights - setting["learning_rate"] * weights
    ...         losses.append(np.sum(weights**2))
    ...     return {"loss": losses}
    >>> result = run_grid(train, {"learning_rate": [0.1, 0.5]}, seeds=range(3), progress=False)
    >>> result.best("loss")
    {'learning_rate': 0.5}
    """
    check_callable("train", train)
    seeds = check_seeds(seeds)
    check_integer("processes", processes, at_least=1)
    runs = [({**labels, "seed": seed}, (setting, seed)) for labels, setting in settings_of(grid) for seed in seeds]
    descriptions, tasks = zip(*runs)
    one_by_one = (_seeded(train, *task) for task in tasks)
    trained = one_by_one if processes == 1 else _side_by_side(train, tasks, processes)
    curves = []
    for description in tqdm(descriptions, unit="run", desc="run_grid", disable=not progress or None):
        curves.append(_checked_curves(next(trained), description, curves))
    return SweepResult(list(descriptions), *joined(curves))


def _seeded(train, setting, seed):
    with seeded(seed):
        return train(dict(setting), seed)


def _side_by_side(train, tasks, processes):
    # Not threads: the random states are the process's. Not fork: TensorFlow hangs in it.
    import cloudpickle
    from joblib import Parallel, delayed

    function, threads = cloudpickle.dumps(train), _backend.threads()
    calls = (delayed(_in_a_process)(function, threads, *task) for task in tasks)
    with warnings.catch_warnings():
        # A process whose memory has grown is replaced, and its run given to the next.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        yield from Parallel(processes, return_as="generator", batch_size=1, max_nbytes=None)(calls)


def _in_a_process(function, threads, setting, seed):
    return _seeded(_loaded(function, threads), setting, seed)


@functools.lru_cache(maxsize=1)  # once in each process, where what `train` keeps outside itself then stays
def _loaded(function, threads):
    # Sums over other numbers of threads have other last bits; operations side by side only take from other processes.
    _backend.threads(threads, operations=1)
    import_tensorflow()
    return pickle.loads(function)


def _checked_curves(curves, description, others):
    """Returns the curves as arrays, or says which run gave what."""
    if not isinstance(curves, dict) or not curves:
        raise TypeError(f"`train` must return a dict of metric name -> curve. Received: {shown(curves)}, {description}")
    arrays = {name: np.asarray(curve, "float64") for name, curve in curves.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    first = others[0] if others else arrays
    length = next(iter(first.values())).size
    if not length or shapes != dict.fromkeys(first, (length,)):
        raise ValueError(
            "`train` must return curves of the same names and of one length >= 1 in every run (pad with NaN what "
            f"stopped early because it diverged). Received: shapes {shapes}, {description}"
        )
    return arrays


def joined(curves):
    """Returns (history, diverged) of a list of dicts name -> (epochs,): NaN from the epoch on that diverged."""
    history = {name: np.stack([one[name] for one in curves]) for name in curves[0]}  # (runs, epochs)
    lost = np.zeros(next(iter(history.values())).shape, bool)
    for name, array in history.items():
        if not name.startswith(_HELD_OUT):
            lost |= ~np.isfinite(array)
    lost = np.logical_or.accumulate(lost, axis=1)
    return {name: np.where(lost, np.nan, array) for name, array in history.items()}, lost[:, -1]


class SweepResult:
    """The learning curves of many runs.

    Attributes:
        runs: List of dicts, one a run: the setting's entries and "seed".
        history: Dict of metric name -> array (runs, epochs), float64: "loss", "accuracy", "val_loss", ... Training
            metrics are means over an epoch's batches while the weights change, as in `fit`; every loss, of validation
            and test data, too, contains the penalties of regularizers, as in `fit` (a metric function does not).
        diverged: Array (runs,) of booleans: whether a training metric became infinite or NaN.
    """

    def __init__(self, runs, history, diverged, trained=None):
        self.runs = runs
        self.history = history
        self.diverged = diverged
        self._trained = trained

    def __len__(self):
        return len(self.runs)

    def __repr__(self):
        runs, epochs = next(iter(self.history.values())).shape
        lost = f", {self.diverged.sum()} diverged" if self.diverged.any() else ""
        return f"<SweepResult: {len(self.settings)} settings, {runs} runs of {epochs} epochs{lost}>"

    @property
    def settings(self):
        """List of the distinct settings, dicts without "seed", in the order of the grid."""
        settings = [{name: value for name, value in run.items() if name != "seed"} for run in self.runs]
        return list({identity(setting): setting for setting in settings}.values())

    def final(self, metric="val_loss"):
        """Returns the values after the last epoch, array (runs,); NaN where a run diverged."""
        if metric not in self.history:
            raise ValueError(f"`metric` must be one of {', '.join(self.history)}. Received: metric={metric!r}")
        return self.history[metric][:, -1].copy()

    def select(self, **entries):
        """Returns the result of those runs whose description has these entries, in the same order.

        Two selections over the same seeds are paired, seed by seed, and can be subtracted.

        Raises:
            ValueError: No run has these entries.
        """
        fits = [all(name in run and _equal(run[name], value) for name, value in entries.items()) for run in self.runs]
        kept = np.flatnonzero(fits)
        if not kept.size:
            raise ValueError(f"No run has these entries. Received: {shown(entries)}")
        history = {name: curves[kept] for name, curves in self.history.items()}
        trained = self._trained and [self._trained[number] for number in kept]
        return SweepResult([self.runs[number] for number in kept], history, self.diverged[kept], trained)

    def best(self, metric="val_loss", mode=None):
        """Returns the setting, a dict without "seed", whose mean over the seeds after the last epoch is best.

        A setting of which any run diverged counts as worst: nothing is dropped.

        Args:
            metric: A name in `history`.
            mode: "min" or "max"; by default what the words of the name say: "min" for losses, errors, entropies and
                perplexities, "max" for accuracies, AUC, precision, recall, F1, IoU and BLEU.

        Raises:
            ValueError: Every setting has a diverged run, or the name says nothing and `mode` is None.
        """
        largest = larger_is_better(metric, mode)
        means = np.array([self.select(**setting).final(metric).mean() for setting in self.settings])
        if np.isnan(means).all():
            raise ValueError(f"Every setting has a diverged run: none is best. Received: metric={metric!r}")
        return self.settings[int(np.nanargmax(means) if largest else np.nanargmin(means))]

    def model(self, run):
        """Returns the trained network of a run, numbered as in `.runs`, as an ordinary, uncompiled keras model."""
        return self._of(run).model()

    def weights(self, run):
        """Returns the trained weights of a run, numbered as in `.runs`: arrays as of `model.trainable_weights`."""
        return [array.copy() for array in self._of(run).weights]

    def _of(self, run):
        if self._trained is None:
            raise ValueError("`run_grid` keeps no networks: let `train` save what you need of them")
        return self._trained[check_integer("run", run, at_least=0, at_most=len(self) - 1)]


def _equal(one, other):
    return identity(one) == identity(other) or np.array_equal(one, other)


def larger_is_better(metric, mode):
    """Returns whether larger values of a metric are better, by `mode` or, where it is None, by the metric's name."""
    if mode is not None:
        return check_choice("mode", mode, ("min", "max")) == "max"
    words = metric.lower().replace("_", " ")
    smaller, larger = re.search(_SMALLER_IS_BETTER, words), re.search(_LARGER_IS_BETTER, words)
    if bool(smaller) == bool(larger):
        raise ValueError(f'`mode` must be "min" or "max" for a metric of this name. Received: metric={metric!r}')
    return bool(larger)


def settings_of(grid):
    """Returns the list of (labels, setting), two dicts of equal keys, of a grid or a list of grids."""
    grids = [{}] if grid is None else [grid] if isinstance(grid, dict) else grid
    if not isinstance(grids, (list, tuple)) or not all(isinstance(one, dict) for one in grids):
        raise TypeError(f"`grid` must be a dict of lists or a list of such dicts. Received: grid={shown(grid)}")
    if not grids:
        raise ValueError("`grid` must hold at least one dict; None stands for one setting. Received: grid=[]")
    settings = []
    for one in grids:
        for pairs in itertools.product(*(_choices(name, values) for name, values in one.items())):
            settings.append(tuple(dict(zip(one, column)) for column in zip(*pairs)) or ({}, {}))
    return settings


def _choices(name, values):
    """Returns the pairs (label, value) of one entry of a grid."""
    if name == "seed":
        raise ValueError("`grid` must not hold 'seed': pass `seeds`")
    if not isinstance(values, (dict, list, tuple, range)) and not np.ndim(values):
        raise TypeError(f"`grid` must hold a list of values for each argument. Received: {name}={shown(values)}")
    values = values.tolist() if isinstance(values, np.ndarray) else values
    pairs = list(values.items() if isinstance(values, dict) else zip(values, values))
    if not pairs:
        raise ValueError(f"`grid` must hold at least one value for each argument. Received: {name}={shown(values)}")
    return pairs
