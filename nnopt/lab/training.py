"""`sweep`: one network trained for every setting and seed, as one stacked computation where that is possible.

On a laptop, the time of a small network goes into calling it, not into arithmetic. So `sweep` stacks the weights of
all runs on a first axis and trains them in one compiled loop: 64 networks cost about as much as two `fit`s of one.
"""

import inspect
import math
import warnings
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from nnopt import _keras
from nnopt.checks import check_boolean, check_integer
from nnopt.data.ordered import epoch_order
from nnopt.lab import stack
from nnopt.lab.grid import SweepResult, check_callable, check_seeds, identity, joined, seeded, settings_of, shown

_PREFIXES = {"train": "train_", "validation": "val_", "test": "test_"}


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
    plan = _Plan(
        build=check_callable("build", build),
        optimizer=check_callable("optimizer", optimizer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True) if loss is None else keras.losses.get(loss),
        metrics=_checked_metrics(metrics),
        seeds=check_seeds(seeds),
        epochs=check_integer("epochs", epochs, at_least=1),
        batch_size=check_integer("batch_size", batch_size, at_least=1),
        data=Data(data, _checked_parts(evaluate_on)),
        evaluate_every=check_integer("evaluate_every", evaluate_every, at_least=1),
    )
    check_integer("runs_at_once", runs_at_once, at_least=1)
    stacked = check_boolean("stacked", stacked) and keras.backend.backend() in stack.STACKS
    groups = plan.groups(settings_of(grid), stacked)
    runs = [run for group in groups for run in group]
    with tqdm(total=len(runs) * plan.epochs, unit="epoch", desc="sweep", disable=not progress or None) as bar:
        for group in groups:
            _train_group(plan, group, stacked, runs_at_once, bar.update)
    runs.sort(key=lambda run: run.position)
    return SweepResult([run.description for run in runs], *joined([run.curves for run in runs]), runs)


@dataclass
class _Run:
    """One training run: what it is called, what it is made with, and, after training, what came out of it."""

    plan: "_Plan"
    position: int
    description: dict
    model_arguments: dict
    optimizer_arguments: dict
    optimizer: object  # shared by all seeds of a setting: a stack only reads its numbers
    seed: int
    curves: dict = field(default_factory=dict)  # metric name -> (epochs,)
    weights: list = None  # arrays in the order of model.trainable_variables
    state: list = None  # the other variables', as `state_variables` lists them

    def model(self):
        model = self.plan.new_model(self)
        variables = model.trainable_variables + stack.state_variables(model)
        for variable, value in zip(variables, self.weights + self.state):
            variable.assign(value)
        return model


@dataclass
class _Plan:
    """What all runs of a sweep share."""

    build: callable
    optimizer: callable
    loss: object
    metrics: tuple
    seeds: list
    epochs: int
    batch_size: int
    data: "Data"
    evaluate_every: int

    def evaluates(self, epoch):
        """Returns whether the parts of the data are evaluated after this epoch, counted from 0."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    def groups(self, settings, stacked):
        """Returns lists of runs that can be trained in one stack."""
        groups = {}
        for setting_number, (labels, setting) in enumerate(settings):
            of_optimizer, of_model = self._assign(setting)
            optimizer = self.new_optimizer(of_optimizer)
            if stacked:
                stack.refuse_if_mixing(optimizer)
            key = identity(of_model), identity(stack.structure(optimizer)) if stacked else setting_number
            for seed_number, seed in enumerate(self.seeds):
                position, description = setting_number * len(self.seeds) + seed_number, {**labels, "seed": seed}
                run = _Run(self, position, description, of_model, of_optimizer, optimizer, seed)
                groups.setdefault(key, []).append(run)
        return list(groups.values())

    def new_model(self, run):
        arguments = dict(run.model_arguments)
        if "seed" in _parameters(self.build):
            arguments.setdefault("seed", run.seed)
        with seeded(run.seed):
            model = self.build(**arguments)
        if not isinstance(model, keras.Model):
            raise TypeError(f"`build` must return a keras.Model. Received: {shown(model)} ({type(model).__name__})")
        if not model.built:
            raise ValueError("`build` must return a model with weights: give it an input shape or call it once")
        if not hasattr(model, "output_shape") or _keras.mask(getattr(model, "output", None)) is not None:
            raise ValueError(
                "`build` must return a functional or sequential model whose outputs carry no mask (the losses of a "
                "sweep would count the padding): train other models through `nnopt.lab.run_grid`. "
                f"Received: {model.name} ({type(model).__name__})"
            )
        return model

    def new_optimizer(self, arguments):
        optimizer = self.optimizer(**arguments)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(
                "`optimizer` must be an optimizer class or a function that returns an optimizer. "
                f"Received: a callable that returned {shown(optimizer)}"
            )
        return optimizer

    def _assign(self, setting):
        """Splits a setting into what the optimizer takes and what `build` takes."""
        names = _parameters(self.optimizer)
        of_optimizer = {name: value for name, value in setting.items() if name in names}
        of_model = {name: value for name, value in setting.items() if name not in names}
        known = _parameters(self.build)
        unknown = [name for name in of_model if name not in known and "**" not in known]
        if unknown:
            raise ValueError(
                f"`grid` must name arguments of the optimizer ({', '.join(sorted(names))}) or of `build` "
                f"({', '.join(sorted(known)) or 'none'}). Received: {unknown[0]!r}"
            )
        return of_optimizer, of_model


def _parameters(function):
    """Returns the names that a class or function takes; "**" stands for any other."""
    names = set()
    for parameter in inspect.signature(function).parameters.values():
        names.add("**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name)
    if isinstance(function, type) and issubclass(function, keras.optimizers.Optimizer) and "**" in names:
        names = (names - {"**", "kwargs"}) | set(inspect.signature(keras.optimizers.Optimizer).parameters)
    return names


def _checked_parts(parts):
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    for part in parts:
        if part not in _PREFIXES:
            raise ValueError(f"`evaluate_on` must name parts of {list(_PREFIXES)}. Received: evaluate_on={parts!r}")
    return parts


def _checked_metrics(metrics):
    """Returns a list of (name, function), None for the accuracy: which one it is, the output and targets tell."""
    chosen = {}
    for metric in (metrics,) if isinstance(metrics, str) else metrics:
        if isinstance(metric, keras.metrics.Metric) or inspect.isclass(metric):
            raise TypeError(
                "`metrics` must hold names or functions with one value an example: a Metric object has one state, "
                f"which all runs would share. Received: {shown(metric)}"
            )
        function = metric if callable(metric) else getattr(keras.metrics, str(metric), None)
        if metric != "accuracy" and not inspect.isroutine(function) and not callable(metric):
            raise ValueError(
                f"`metrics` must name functions of keras.metrics, one value an example. Received: {shown(metric)}"
            )
        name = getattr(metric, "__name__", "metric") if callable(metric) else metric
        if name in chosen:
            raise ValueError(f"`metrics` must have names of their own. Received: {name!r} twice")
        chosen[name] = None if metric == "accuracy" else function
    return list(chosen.items())


def metric_functions(plan, seed, output_shape):
    """Returns a list of (name, function of (y_true, y_pred) with one value for each example)."""
    y = plan.data.of(seed, "train")[1]
    one_hot = y.ndim == len(output_shape) and y.shape[-1] == output_shape[-1]
    accuracy = keras.metrics.categorical_accuracy if one_hot else keras.metrics.sparse_categorical_accuracy
    if output_shape[-1] == 1:
        accuracy = keras.metrics.binary_accuracy
    return [(name, function or accuracy) for name, function in plan.metrics]


class Data:
    """The data sets of a sweep: one for all runs, or one for each seed."""

    def __init__(self, source, evaluate_on):
        self.source = source
        self.own = callable(source) and not hasattr(source, "train")
        self.evaluate_on = evaluate_on
        self._sets, self._pairs = {}, {}

    def of(self, seed, part):
        """Returns (x, y) of a part for a seed, as NumPy arrays, or None."""
        key = seed if self.own else None
        if key not in self._sets:
            self._sets[key] = self.source(seed) if self.own else self.source
        if (key, part) not in self._pairs:
            self._pairs[key, part] = _checked_pair(getattr(self._sets[key], part, None), part)
        return self._pairs[key, part]

    def examples(self, seed, part="train"):
        """Returns the number of examples of a part."""
        return len(self.of(seed, part)[1])

    def stacked(self, seeds, part):
        """Returns (x, y, start): the arrays of all distinct seeds one after the other, and each run's first row."""
        pairs = {seed: self.of(seed, part) for seed in (dict.fromkeys(seeds) if self.own else seeds[:1])}
        lengths = {len(pair[1]) for pair in pairs.values()}
        if len(lengths) > 1:
            raise ValueError(
                f"`data` must have as many examples for every seed. Received: {sorted(lengths)} in `{part}`"
            )
        x, y = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *pairs.values())
        start = [list(pairs).index(seed) * lengths.copy().pop() if self.own else 0 for seed in seeds]
        return x, y, np.array(start)

    def parts(self, seed):
        """Returns (prefix, part) for the parts that are there and are to be evaluated."""
        return [(_PREFIXES[part], part) for part in self.evaluate_on if self.of(seed, part) is not None]


def _checked_pair(pair, part):
    """Returns (x, y) as arrays, floating-point ones in Keras' precision as in `fit`, or None where there is none."""
    if pair is None and part != "train":
        return None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"`data` must have an attribute `{part}`, a pair (x, y) of arrays. Received: {shown(pair)}")
    if not hasattr(pair[1], "shape"):
        raise TypeError(
            f"`data.{part}` must have one array of targets; train several through `nnopt.lab.run_grid`. "
            f"Received: y={shown(pair[1])} (of type {type(pair[1]).__name__})"
        )
    x, y = keras.tree.map_structure(_precise, tuple(pair))
    lengths = {array.shape[0] if array.ndim else 0 for array in keras.tree.flatten((x, y))}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"`data.{part}` must be arrays of one and the same number of examples >= 1. "
            f"Received: {sorted(lengths)} examples"
        )
    return x, y


def _precise(array):
    array = np.asarray(array)
    return array.astype(keras.config.floatx()) if np.issubdtype(array.dtype, np.floating) else array


def _train_group(plan, group, stacked, runs_at_once, advance):
    """Trains runs of one network, stacked where that is possible."""
    if stacked:
        x, _ = plan.data.of(group[0].seed, "train")
        first_of_seed = {run.seed: run for run in reversed(group)}
        builds = {seed: lambda run=run: plan.new_model(run) for seed, run in first_of_seed.items()}
        template, initial, reason = stack.template_of(builds, keras.tree.map_structure(lambda array: array[:2], x))
        if reason is None:
            for number in range(pieces := math.ceil(len(group) / runs_at_once)):
                _train_stack(plan, group[number::pieces], template, initial, advance)
            return
        warnings.warn(f"The network {template.name} {reason}: its runs are trained one by one.", stacklevel=3)
    for run in group:
        with seeded(run.seed):
            _train_alone(plan, run, advance)


def _train_alone(plan, run, advance):
    """Trains one run with Keras' own fit, an epoch at a time, in our order."""
    model = plan.new_model(run)
    metrics = [
        keras.metrics.MeanMetricWrapper(function, name=name)
        for name, function in metric_functions(plan, run.seed, model.output_shape)
    ]
    model.compile(optimizer=plan.new_optimizer(run.optimizer_arguments), loss=plan.loss, metrics=metrics)
    x, y = plan.data.of(run.seed, "train")
    rows = []
    for epoch in range(plan.epochs):
        order = epoch_order(len(y), run.seed, epoch)
        ordered = keras.tree.map_structure(lambda array: array[order], (x, y))  # noqa: B023
        log = model.fit(*ordered, batch_size=plan.batch_size, shuffle=False, verbose=0).history
        row = {name: values[-1] for name, values in log.items()}
        for prefix, part in plan.data.parts(run.seed) if plan.evaluates(epoch) else []:
            scores = model.evaluate(*plan.data.of(run.seed, part), batch_size=512, verbose=0, return_dict=True)
            row.update({prefix + name: score for name, score in scores.items()})
        rows.append(row)
        advance(1)
    run.curves = {name: np.array([float(row.get(name, np.nan)) for row in rows]) for name in rows[-1]}
    variables = model.trainable_variables, stack.state_variables(model)
    run.weights, run.state = [[np.array(ops.convert_to_numpy(one)) for one in ones] for ones in variables]


def _train_stack(plan, group, template, initial, advance):
    """Trains runs together and stores their curves and weights in them."""
    seeds = [run.seed for run in group]
    examples = plan.data.examples(seeds[0])
    steps = math.ceil(examples / plan.batch_size)
    metrics = metric_functions(plan, seeds[0], template.output_shape)
    networks = stack.STACKS[keras.backend.backend()](
        template, [initial[seed] for seed in seeds], [run.optimizer for run in group], plan.epochs * steps,
        plan.loss, metrics, plan.data.own,
    )  # fmt: skip
    x, y, start = plan.data.stacked(seeds, "train")
    networks.load(x, y)
    parts = [(prefix, _evaluation_batches(plan, seeds, part)) for prefix, part in plan.data.parts(seeds[0])]
    rows = []
    for epoch in range(plan.epochs):
        orders = {seed: epoch_order(examples, seed, epoch) for seed in seeds}
        indices = np.stack([orders[seed] + first for seed, first in zip(seeds, start)]).astype("int32")
        row = dict(zip(networks.names, networks.train_epoch(indices, epoch * steps, plan.batch_size)))
        for prefix, batches in parts if plan.evaluates(epoch) else []:
            row.update({prefix + name: values for name, values in zip(networks.names, networks.evaluate(batches))})
        rows.append(row)
        advance(len(group))
    weights, state = networks.weights()
    for number, run in enumerate(group):
        run.curves = {
            name: np.array([row[name][number] if name in row else np.nan for row in rows]) for name in rows[-1]
        }
        run.weights, run.state = [[array[number] for array in arrays] for arrays in (weights, state)]


def _evaluation_batches(plan, seeds, part, size=512):
    """Returns [(x, y, examples)]; with data for each run, x and y have a first axis of runs."""
    lengths = {plan.data.examples(seed, part) for seed in seeds}
    if len(lengths) > 1:
        raise ValueError(f"`data` must have as many examples for every seed. Received: {sorted(lengths)} in `{part}`")
    pairs = [plan.data.of(seed, part) for seed in (seeds if plan.data.own else seeds[:1])]
    x, y = keras.tree.map_structure(lambda *arrays: np.stack(arrays), *pairs) if plan.data.own else pairs[0]
    batches = []
    for begin in range(0, examples := lengths.pop(), size):
        cut = slice(begin, begin + size)
        cut = (slice(None), cut) if plan.data.own else cut
        batch = keras.tree.map_structure(lambda array: ops.convert_to_tensor(array[cut]), (x, y))  # noqa: B023
        batches.append((*batch, min(size, examples - begin)))
    return batches
