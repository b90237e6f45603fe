"""`sweep`: one network trained for every setting and seed, as one stacked computation where that is possible.

On a laptop, the time of a small network goes into calling it, not into arithmetic. So `sweep` stacks the weights of
all runs on a first axis and trains them in one compiled loop: 64 networks cost about as much as two `fit`s of one.
"""

import concurrent.futures
import functools
import inspect
import math
import warnings
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops
from keras.config import floatx
from tqdm import tqdm

from nnopt import _keras, _state
from nnopt._backend import quiet_tensorflow
from nnopt.checks import check_boolean, check_callable, check_choice, check_integer, check_seeds, identity, shown
from nnopt.data.ordered import epoch_order
from nnopt.lab import stack
from nnopt.lab.grid import SweepResult, joined, settings_of

_PREFIXES = {"train": "train_", "validation": "val_", "test": "test_"}


@quiet_tensorflow()
def sweep(
    build,
    data,
    optimizer,
    grid=None,
    seeds=range(5),
    epochs=10,
    batch_size=32,
    *,
    loss=None,
    metrics=("accuracy",),
    evaluate_on=("validation",),
    evaluate_every=1,
    stacked=True,
    runs_at_once=128,
    progress=True,
):
    """Trains every setting of a grid with every seed and returns all learning curves as arrays.

    Settings that differ only in numbers of the optimizer (rate, momentum, weight decay, the parameters of a schedule)
    and in the seed are trained together, with their weights stacked on a first axis in one compiled loop. Settings
    that change the network are trained group by group. Run after run, with the same type of result and a warning that
    says why, are trained networks with a `train_step` or `compute_loss` of their own, with constraints on weights, or
    with constants that depend on the seed; and every network on the torch backend.
    What needs more than `compile(optimizer, loss)` and `fit(x, y)` (two networks against each other, sequences with
    padding, several targets, sample weights, pipelines) is refused: train it through `nnopt.lab.run_grid`.

    A run is what a plain loop gives: `keras.utils.set_random_seed(seed)`, `build(...)`, then for each epoch `fit` of
    the examples in the order `nnopt.data.epoch_order(examples, seed, epoch)`, not shuffled again. So runs of equal
    seed have equal initial weights and equal batches whatever their setting: they are pairs.
    Python's, NumPy's and Keras' global random states are the same after the call as before it.

    Args:
        build: Function that returns a new, uncompiled `keras.Model`; called with the entries of a setting that the
            optimizer does not take and, if it has an argument `seed`, with the seed.
        data: Object with `.train`, `.validation`, `.test`, each a pair (x, y) of arrays of shape (examples, ...), or
            None where there is none; x may be a tuple or dict of arrays. Or a function of the seed that returns such
            an object: every run then has data of its own.
        optimizer: Optimizer class such as `keras.optimizers.Adam`, or a function (a `functools.partial`, say) that
            returns an optimizer; it is called with the entries of a setting that it takes.
        grid: Dict of argument name -> list of values, of which every combination is a setting; or a list of such dicts,
            whose combinations are joined. A dict label -> value instead of a list gives values a name
            (`{"learning_rate": {"step": StepDecay(...), "constant": 0.1}}`), which is then what `.runs` tells.
        seeds: Distinct integers >= 0.
        epochs: Number of passes over the training data, integer >= 1.
        batch_size: Examples of a batch, integer >= 1.
        loss: Loss name, function or `keras.losses.Loss`; default: sparse categorical cross-entropy of logits, in nats.
        metrics: Names of Keras' metric functions, or functions (y_true, y_pred) -> one value for each example.
        evaluate_on: Parts of the data, "train", "validation" and "test", to evaluate after each epoch, as far as they
            are there; their metrics are called "train_...", "val_..." and "test_...". Unlike "loss", which is a mean
            over the batches while the weights change, "train_loss" is that of the weights at the epoch's end.
        evaluate_every: Epochs from one such evaluation to the next, integer >= 1; the last epoch is always evaluated.
            Those curves are NaN in between.
        stacked: False trains run after run with Keras' own `fit`: for optimizers that cannot be stacked.
        runs_at_once: Largest number of runs in one stack; bounds the memory.
        progress: Whether to show a progress bar of runs x epochs (`TQDM_DISABLE=1` hides it, too).

    Returns:
        `SweepResult`. A run that diverges is NaN from that epoch on, in all its metrics, and disturbs no other.

    Raises:
        ValueError: An argument is out of range, a setting is taken by neither `build` nor the optimizer, a part of the
            data is empty, or the optimizer cannot be stacked: the message names it and says why.
        TypeError: An argument has the wrong type.

    Example:

    >>> import keras, nnopt
    >>> result = nnopt.lab.sweep(
    ...     build=lambda units=8: nnopt.models.mlp(input_shape=(64,), units=[units], classes=10),
    ...     data=nnopt.data.digits(), optimizer=keras.optimizers.Adam,
    ...     grid={"learning_rate": [1e-3, 1e-2]}, seeds=range(3), epochs=2, progress=False)
    >>> result.history["val_loss"].shape
    (6, 2)
    >>> result.runs[0]
    {'learning_rate': 0.001, 'seed': 0}
    >>> result.best("val_loss")
    {'learning_rate': 0.01}
    """
    plan = _Plan(build, data, optimizer, seeds, epochs, batch_size, loss, metrics, evaluate_on, evaluate_every)
    check_integer("runs_at_once", runs_at_once, at_least=1)
    stacked = check_boolean("stacked", stacked) and keras.backend.backend() in stack.STACKS
    runs, groups = plan.runs(settings_of(grid), stacked)
    with tqdm(total=len(runs) * plan.epochs, unit="epoch", desc="sweep", disable=not progress or None) as bar:
        for group in groups:
            if not stacked or not _train_stacked(plan, group, runs_at_once, bar.update):
                _train_alone(plan, group, bar.update)
    return SweepResult([run.description for run in runs], *joined([run.curves for run in runs]), runs)


@dataclass
class _Run:
    """One training run; its `curves`, `weights` and `state` are what came out of it."""

    description: dict
    seed: int
    build: callable  # function without arguments, returns the network
    new_optimizer: callable
    optimizer: object  # shared by all seeds of a setting: a stack only reads its numbers

    def model(self):
        model = self.build()
        for variables, values in zip(stack.variables_of(model), (self.weights, self.state)):
            _state.assign(variables, values)
        return model


class _Plan:
    """What all runs of a sweep share."""

    def __init__(self, build, data, optimizer, seeds, epochs, batch_size, loss, metrics, evaluate_on, evaluate_every):
        self.build, self.optimizer = check_callable("build", build), check_callable("optimizer", optimizer)
        self.loss = keras.losses.get(loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        self.metrics, self.seeds = _checked_metrics(metrics), check_seeds(seeds)
        self.epochs = check_integer("epochs", epochs, at_least=1)
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.evaluate_every = check_integer("evaluate_every", evaluate_every, at_least=1)
        parts = (evaluate_on,) if isinstance(evaluate_on, str) else evaluate_on
        self.parts = [check_choice("evaluate_on", part, tuple(_PREFIXES)) for part in parts]
        self.data = _Data(data)

    def runs(self, settings, stacked):
        """Returns all runs, in the order of the grid, and lists of those that can be trained in one stack."""
        runs, groups = [], {}
        for number, (labels, setting) in enumerate(settings):
            of_optimizer, of_model = self._assign(setting)
            new_optimizer = functools.partial(self.new_optimizer, of_optimizer)
            optimizer = new_optimizer()
            if stacked:
                stack.refuse_if_mixing(optimizer)
            key = identity([of_model, stack.structure(optimizer)]) if stacked else number
            for seed in self.seeds:
                build = functools.partial(self.new_model, of_model, seed)
                runs.append(_Run({**labels, "seed": seed}, seed, build, new_optimizer, optimizer))
                groups.setdefault(key, []).append(runs[-1])
        return runs, groups.values()

    def new_model(self, arguments, seed):
        own = {"seed": seed} if "seed" in _parameters(self.build) else {}
        with _state.seeded(seed):
            model = self.build(**{**own, **arguments})
        whole = isinstance(model, keras.Model) and model.built and hasattr(model, "output_shape")
        if not whole or _keras.mask(getattr(model, "output", None)) is not None:
            raise TypeError(
                "`build` must return a functional or sequential keras.Model with an input shape whose outputs carry no "
                "mask (the loss would count the padding): train others through `nnopt.lab.run_grid`. "
                f"Received: {shown(model)}"
            )
        return model

    def new_optimizer(self, arguments):
        optimizer = self.optimizer(**arguments)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(f"`optimizer` must be a class of optimizers, or return one. It returned {shown(optimizer)}")
        return optimizer

    def metric_functions(self, output_shape):
        """Returns a list of (name, function of (y_true, y_pred) with one value for each example)."""
        y = self.data.of(self.seeds[0], "train")[1]
        one_hot = y.ndim == len(output_shape) and y.shape[-1] == output_shape[-1]
        accuracy = keras.metrics.categorical_accuracy if one_hot else keras.metrics.sparse_categorical_accuracy
        if output_shape[-1] == 1:
            accuracy = keras.metrics.binary_accuracy
        return [(name, function or accuracy) for name, function in self.metrics]

    def _assign(self, setting):
        """Splits a setting into what the optimizer takes and what `build` takes."""
        names, known = _parameters(self.optimizer), _parameters(self.build)
        of_optimizer = {name: value for name, value in setting.items() if name in names}
        of_model = {name: value for name, value in setting.items() if name not in names}
        if "**" not in known and (unknown := of_model.keys() - known):
            raise ValueError(
                f"`grid` must name arguments of the optimizer or of `build`: {', '.join(sorted(names | known))}. "
                f"Received: {', '.join(unknown)}"
            )
        return of_optimizer, of_model


def _parameters(function):
    """Returns the names that a class or function takes; "**" stands for any other."""
    parameters = inspect.signature(function).parameters.values()
    names = {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}
    of_optimizer = isinstance(function, type) and issubclass(function, keras.optimizers.Optimizer)
    return names | (_parameters(keras.optimizers.Optimizer.__init__) if of_optimizer else set())


def _checked_metrics(metrics):
    """Returns a list of (name, function), None for the accuracy: which one it is, the output and targets tell."""
    chosen = {}
    for metric in (metrics,) if isinstance(metrics, str) else metrics:
        function = metric if callable(metric) else getattr(keras.metrics, str(metric), None)
        wrong = isinstance(function, keras.metrics.Metric) or inspect.isclass(function)
        if wrong or (function is None and metric != "accuracy"):
            raise ValueError(
                "`metrics` must hold functions or names of keras.metrics' functions, no Metric object, which has one "
                f"state for all runs. Received: {shown(metric)}"
            )
        name = getattr(metric, "__name__", "metric") if callable(metric) else metric
        if name in chosen:
            raise ValueError(f"`metrics` must have names of their own. Received: {name!r} twice")
        chosen[name] = function
    return list(chosen.items())


class _Data:
    """The data sets of a sweep: one for all runs, or one for each seed."""

    def __init__(self, source):
        self.own = callable(source) and not hasattr(source, "train")
        self._set = functools.cache(source if self.own else lambda seed: source)
        self._pair = functools.cache(lambda key, part: _checked_pair(getattr(self._set(key), part, None), part))

    def of(self, seed, part):
        """Returns (x, y) of a part for a seed, as NumPy arrays, or None."""
        return self._pair(seed if self.own else None, part)

    def joined(self, seeds, part):
        """Returns (x, y, rows): the arrays of all data sets one after the other, and each run's rows in them."""
        pairs = {seed: self.of(seed, part) for seed in (seeds if self.own else seeds[:1])}
        lengths = {len(y) for _, y in pairs.values()}
        if len(lengths) > 1:
            raise ValueError(f"`data` must have as many examples for every seed. Received: {lengths} in `{part}`")
        x, y = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *pairs.values())
        rows = np.arange(len(y), dtype="int32").reshape(len(pairs), -1)  # (data sets, examples)
        return x, y, rows[[list(pairs).index(seed) if self.own else 0 for seed in seeds]]

    def batches(self, seeds, part, own, size=512):
        """Returns [(x, y, examples)]; with data for each run, `own`, x and y have a first axis of runs."""
        x, y, rows = self.joined(seeds, part)
        batches = []
        for begin in range(0, rows.shape[1], size):
            cut = rows[:, begin : begin + size] if own else rows[0, begin : begin + size]
            batch = keras.tree.map_structure(lambda array: ops.convert_to_tensor(array[cut]), (x, y))  # noqa: B023
            batches.append((*batch, cut.shape[-1]))
        return batches


def _checked_pair(pair, part):
    """Returns (x, y) as arrays, floating-point ones in Keras' precision as in `fit`, or None where there is none."""
    if pair is None and part != "train":
        return None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not hasattr(pair[1], "shape"):
        raise TypeError(
            f"`data.{part}` must be a pair (x, y) with one array of targets; train several through "
            f"`nnopt.lab.run_grid`. Received: {shown(pair)}"
        )
    arrays = keras.tree.map_structure(np.asarray, tuple(pair))
    x, y = keras.tree.map_structure(lambda one: one.astype(floatx()) if one.dtype.kind == "f" else one, arrays)
    lengths = {len(array) if array.ndim else 0 for array in keras.tree.flatten((x, y))}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"`data.{part}` must be arrays of one number of examples >= 1. Received: {lengths} examples")
    return x, y


def _train_alone(plan, group, advance):
    """Trains runs one by one."""
    for run in group:
        with _state.seeded(run.seed):
            model = run.build()
            network = stack.Alone(model, run.new_optimizer(), plan.loss, plan.metric_functions(model.output_shape))
            _train(plan, [run], network, False, advance)


def _train_stacked(plan, group, runs_at_once, advance):
    """Trains runs of one network together, and returns True, if that is possible."""
    x, _, rows = plan.data.joined([run.seed for run in group], "train")
    steps = plan.epochs * math.ceil(rows.shape[1] / plan.batch_size)
    networks = {run.seed: run.build for run in reversed(group)}
    template, initial, reason = stack.template_of(networks, keras.tree.map_structure(lambda array: array[:2], x))
    if reason:
        warnings.warn(f"The network {template.name} {reason}: its runs are trained one by one.", stacklevel=3)
        return False
    metrics, threads = plan.metric_functions(template.output_shape), stack.THREADS[keras.backend.backend()]
    pieces = max(math.ceil(len(group) / runs_at_once), min(threads, len(group)))

    def train(number):
        piece = group[number::pieces]
        networks = stack.STACKS[keras.backend.backend()](
            piece[0].build() if threads > 1 else template, [initial[run.seed] for run in piece],
            [run.optimizer for run in piece], steps, plan.loss, metrics, plan.data.own,
        )  # fmt: skip
        _train(plan, piece, networks, plan.data.own, advance)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list((pool.map if threads > 1 else map)(train, range(pieces)))
    return True


def _train(plan, group, networks, own, advance):
    """Trains runs together and stores their curves and weights in them."""
    seeds = [run.seed for run in group]
    x, y, rows = plan.data.joined(seeds, "train")
    networks.load(x, y)
    held = (part for part in plan.parts if plan.data.of(seeds[0], part) is not None)
    parts = {_PREFIXES[part]: plan.data.batches(seeds, part, own) for part in held}
    steps, table = math.ceil(rows.shape[1] / plan.batch_size), []
    for epoch in range(plan.epochs):
        order = np.stack([its[epoch_order(len(its), seed, epoch)] for seed, its in zip(seeds, rows)])
        row = dict(zip(networks.names, networks.train_epoch(order, epoch * steps, plan.batch_size)))
        if (epoch + 1) % plan.evaluate_every == 0 or epoch + 1 == plan.epochs:
            for prefix, batches in parts.items():
                row.update(zip((prefix + name for name in networks.names), networks.evaluate(batches)))
        table.append(row)
        advance(len(group))
    # name -> (epochs, runs)
    curves = {name: np.stack([row.get(name, np.full(len(group), np.nan)) for row in table]) for name in table[-1]}
    weights, state = networks.weights()
    for number, run in enumerate(group):
        run.curves = {name: values[:, number] for name, values in curves.items()}
        run.weights, run.state = [[array[number] for array in arrays] for arrays in (weights, state)]
