"""Many training runs at once: every setting of a grid, over several seeds, as one stacked computation.

On a laptop, the time of a small network goes into calling it, not into arithmetic. So `sweep` stacks the weights of
all runs on a first axis and trains them in one compiled loop: 64 networks cost about as much as two `fit`s of one.
"""

import contextlib
import inspect
import itertools
import math
import random
import warnings
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from nnopt.checks import check_boolean, check_choice, check_integer
from nnopt.data.ordered import epoch_order

# The numbers of each optimizer that may differ from run to run in one stack. An optimizer stands here if its update
# works entry by entry: applied to stacked weights it is then as many independent optimizers as there are runs.
_ELEMENTWISE = {
    "SGD": {"learning_rate", "momentum", "weight_decay"},
    "RMSprop": {"learning_rate", "rho", "momentum", "epsilon", "weight_decay"},
    "Adam": {"learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay"},
    "AdamW": {"learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay"},
    "Nadam": {"learning_rate", "epsilon", "weight_decay"},
    "Adamax": {"learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay"},
    "Adagrad": {"learning_rate", "epsilon", "weight_decay"},
    "Adadelta": {"learning_rate", "rho", "epsilon", "weight_decay"},
    "Lion": {"learning_rate", "beta_1", "beta_2", "weight_decay"},
    "Ftrl": {"learning_rate", "weight_decay"},
}
_MIXING = {
    "Muon": "orthogonalizes each weight matrix",
    "Lamb": "scales each update by the norm of its weights",
    "Adafactor": "factors the second moment over rows and columns",
    "ScheduleFreeAdamW": "keeps one scalar state for all weights and other weights for evaluation than for training",
    "LossScaleOptimizer": "keeps one loss scale for all weights",
}
_WORTH_FUSING = 1e8  # updates of single weights: XLA spares 5 ns at each (AdamW), and takes 0.4 s to compile
_PREFIXES = {"train": "train_", "validation": "val_", "test": "test_"}
_WHOLE_GRADIENT = ("clipnorm", "global_clipnorm", "use_ema", "gradient_accumulation_steps", "loss_scale_factor")


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
    that change the network are trained group by group. A network that cannot be stacked (one with its own
    `train_step`, say) and every network on the torch backend is trained run after run, with the same type of result.

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
        ValueError: An argument is out of range, a setting is taken by neither `build` nor the optimizer, or the
            optimizer cannot be stacked: the message names it and says why.
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
        build=_checked_callable("build", build),
        optimizer=_checked_callable("optimizer", optimizer),
        loss=_resolved_loss(loss),
        metrics=tuple(metrics),
        seeds=_checked_seeds(seeds),
        epochs=check_integer("epochs", epochs, at_least=1),
        batch_size=check_integer("batch_size", batch_size, at_least=1),
        data=_Data(data, _checked_parts(evaluate_on)),
        evaluate_every=check_integer("evaluate_every", evaluate_every, at_least=1),
    )
    check_integer("runs_at_once", runs_at_once, at_least=1)
    stacked = check_boolean("stacked", stacked) and keras.backend.backend() in ("tensorflow", "jax")
    groups = plan.groups(_settings(grid), stacked)
    runs = [run for group in groups for run in group]
    with tqdm(total=len(runs) * plan.epochs, unit="epoch", desc="sweep", disable=not progress or None) as bar:
        for group in groups:
            _train_group(plan, group, stacked, runs_at_once, bar.update)
    runs.sort(key=lambda run: run.position)
    return _result(plan, runs)


class SweepResult:
    """The learning curves of many runs.

    Attributes:
        runs: List of dicts, one a run: the setting's entries and "seed".
        history: Dict of metric name -> array (runs, epochs), float64: "loss", "accuracy", "val_loss", ... Training
            metrics are means over an epoch's batches while the weights change, as in `fit`; every loss, of validation
            and test data, too, contains the penalties of regularizers, as in `fit` (a metric function does not).
        diverged: Array (runs,) of booleans: whether a training metric became infinite or NaN.
    """

    def __init__(self, runs, history, diverged, plan, trained):
        self.runs = runs
        self.history = history
        self.diverged = diverged
        self._plan = plan
        self._trained = trained

    def __len__(self):
        return len(self.runs)

    def __repr__(self):
        epochs = next(iter(self.history.values())).shape[1]
        lost = int(self.diverged.sum())
        report = f", {lost} diverged" if lost else ""
        return f"<SweepResult: {len(self.settings)} settings, {len(self)} runs of {epochs} epochs{report}>"

    @property
    def settings(self):
        """List of the distinct settings, dicts without "seed", in the order of the grid."""
        found = []
        for run in self.runs:
            setting = _without_seed(run)
            if setting not in found:
                found.append(setting)
        return found

    def final(self, metric="val_loss"):
        """Returns the values after the last epoch, array (runs,); NaN where a run diverged."""
        return self._curves(metric)[:, -1].copy()

    def select(self, **entries):
        """Returns the result of those runs whose description has these entries, in the same order.

        Two selections over the same seeds are paired, seed by seed, and can be subtracted.

        Raises:
            ValueError: No run has these entries.
        """
        kept = [
            number
            for number, run in enumerate(self.runs)
            if all(name in run and run[name] == value for name, value in entries.items())
        ]
        if not kept:
            raise ValueError(f"No run of this sweep has these entries. Received: {entries!r}")
        history = {name: curves[kept] for name, curves in self.history.items()}
        trained = [self._trained[number] for number in kept]
        return SweepResult([self.runs[number] for number in kept], history, self.diverged[kept], self._plan, trained)

    def best(self, metric="val_loss", mode=None):
        """Returns the setting, a dict without "seed", whose mean over the seeds after the last epoch is best.

        A setting of which any run diverged counts as worst: nothing is dropped.

        Args:
            metric: A name in `history`.
            mode: "min" or "max"; default: "min" for losses and errors, "max" for accuracies.

        Raises:
            ValueError: Every setting has a diverged run.
        """
        largest = _larger_is_better(metric, mode)
        means = np.array([self.select(**setting).final(metric).mean() for setting in self.settings])
        if np.isnan(means).all():
            raise ValueError(
                f"Every setting of this sweep has a diverged run: none is best. Received: metric={metric!r}"
            )
        return self.settings[int(np.nanargmax(means) if largest else np.nanargmin(means))]

    def table(self):
        """Returns one row a setting: seeds, diverged runs, mean and standard deviation of each metric at the end.

        A pandas DataFrame where pandas is installed, else a list of dicts. The mean is NaN where a run diverged.
        """
        rows = []
        for setting in self.settings:
            chosen = self.select(**setting)
            row = {**setting, "runs": len(chosen), "diverged": int(chosen.diverged.sum())}
            for metric in self.history:
                values = chosen.final(metric)
                row[metric] = float(values.mean())
                row[metric + "_std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            rows.append(row)
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    def plot(self, metric="val_loss", ax=None):
        """Draws the mean curve of each setting with its 95 % band over the seeds; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        from nnopt.lab import plots

        ax = plt.subplots()[1] if ax is None else ax
        epochs = np.arange(1, self._curves(metric).shape[1] + 1)
        for setting in self.settings:
            label = ", ".join(f"{name} {_short(value)}" for name, value in setting.items()) or metric
            plots.curves(ax, epochs, self.select(**setting).history[metric], label=label)
        plots.label_lines(ax)
        ax.set(xlabel="epoch", ylabel=metric)
        return ax

    def model(self, run):
        """Returns the trained network of a run, numbered as in `.runs`, as an ordinary, uncompiled keras model."""
        trained = self._trained[check_integer("run", run, at_least=0, at_most=len(self) - 1)]
        model = self._plan.new_model(trained)
        for variable, value in zip(model.trainable_variables + _state(model), trained.weights + trained.state):
            variable.assign(value)
        return model

    def weights(self, run):
        """Returns the trained weights of a run, numbered as in `.runs`: arrays as of `model.trainable_weights`."""
        trained = self._trained[check_integer("run", run, at_least=0, at_most=len(self) - 1)]
        return [array.copy() for array in trained.weights]

    def _curves(self, metric):
        if metric not in self.history:
            raise ValueError(f"`metric` must be one of {', '.join(self.history)}. Received: metric={metric!r}")
        return self.history[metric]


def _without_seed(run):
    return {name: value for name, value in run.items() if name != "seed"}


def _short(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def _larger_is_better(metric, mode):
    if mode is not None:
        return check_choice("mode", mode, ("min", "max")) == "max"
    return "acc" in metric


@dataclass
class _Run:
    """One training run: what it is called, what it is made with, and, after training, what came out of it."""

    position: int
    description: dict
    model_arguments: dict
    optimizer_arguments: dict
    optimizer: object  # shared by all seeds of a setting: a stack only reads its numbers
    seed: int
    curves: dict = field(default_factory=dict)  # metric name -> (epochs,)
    weights: list = None  # arrays in the order of model.trainable_variables
    state: list = None  # the other variables', as `_state` lists them


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
    data: "_Data"
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
                _refuse_if_mixing(optimizer)
            key = repr(sorted(of_model.items())), _structure(optimizer) if stacked else repr(setting_number)
            for seed_number, seed in enumerate(self.seeds):
                run = _Run(
                    position=setting_number * len(self.seeds) + seed_number,
                    description={**labels, "seed": seed},
                    model_arguments=of_model,
                    optimizer_arguments=of_optimizer,
                    optimizer=optimizer,
                    seed=seed,
                )
                groups.setdefault(key, []).append(run)
        return list(groups.values())

    def new_model(self, run):
        arguments = dict(run.model_arguments)
        if "seed" in _parameters(self.build):
            arguments.setdefault("seed", run.seed)
        with _seeded(run.seed):
            model = self.build(**arguments)
        if not isinstance(model, keras.Model):
            raise TypeError(f"`build` must return a keras.Model. Received: {model!r} (of type {type(model).__name__})")
        if not model.built:
            raise ValueError("`build` must return a model with weights: give it an input shape or call it once")
        if (
            not hasattr(model, "output_shape")
            or getattr(getattr(model, "output", None), "_keras_mask", None) is not None
        ):
            raise ValueError(
                "`build` must return a functional or sequential model whose outputs carry no mask: "
                f"the losses of a sweep would count the padding. Received: {model.name} ({type(model).__name__})"
            )
        return model

    def new_optimizer(self, arguments):
        optimizer = self.optimizer(**arguments)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(
                "`optimizer` must be an optimizer class or a function that returns an optimizer. "
                f"Received: a callable that returned {optimizer!r}"
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


def _structure(optimizer):
    """Returns what must be equal for optimizers to stand in one stack: all but the numbers that may differ."""
    name = type(optimizer).__name__
    config = {key: value for key, value in optimizer.get_config().items() if key not in _ELEMENTWISE[name] | {"name"}}
    return repr((name, sorted(config.items()), _undecayed_names(optimizer)))


def _undecayed_names(optimizer):
    """Returns the names given to `exclude_from_weight_decay`, of which the optimizer's config says nothing."""
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    return None if pattern is None else sorted(pattern.pattern.split("|"))


def _refuse_if_mixing(optimizer):
    name = type(optimizer).__name__
    reason = None
    if name in _MIXING:
        reason = _MIXING[name]
    elif type(optimizer) is not getattr(keras.optimizers, name, None) or name not in _ELEMENTWISE:
        reason = "is not known to update each weight on its own"
    else:
        active = [option for option in _WHOLE_GRADIENT if getattr(optimizer, option, None)]
        if getattr(optimizer, "_exclude_from_weight_decay", None):
            reason = "excludes variables from weight decay other than by their names"
        elif active:
            reason = f"has `{active[0]}` set, which looks at more than one weight or step at a time"
    if reason:
        raise ValueError(
            f"The optimizer {name} cannot be trained stacked, since it {reason}, "
            f"and in a stack the weights of all runs stand in one array. Pass stacked=False to train run after run. "
            f"Received: optimizer={name}"
        )


@contextlib.contextmanager
def _seeded(seed):
    """Seeds what Keras draws its default seeds from, as `keras.utils.set_random_seed` does, and puts it back."""
    states = random.getstate(), np.random.get_state(), _torch_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if states[2] is not None:
        import torch

        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        _torch_state(states[2])


def _torch_state(state=None):
    """Returns, and with a state sets, torch's global random state, from which Keras' unseeded dropout draws there."""
    if keras.backend.backend() != "torch":
        return None
    import torch

    if state is not None:
        torch.set_rng_state(state)
    return torch.get_rng_state()


def _settings(grid):
    """Returns the list of (labels, setting), two dicts of equal keys, of a grid or a list of grids."""
    grids = [{}] if grid is None else [grid] if isinstance(grid, dict) else grid
    if not isinstance(grids, (list, tuple)) or not all(isinstance(one, dict) for one in grids):
        raise TypeError(f"`grid` must be a dict of lists or a list of such dicts. Received: grid={grid!r}")
    settings = []
    for one in grids:
        choices = [_choices(name, values) for name, values in one.items()]
        for combination in itertools.product(*choices):
            labels = {name: label for name, (label, _) in zip(one, combination)}
            settings.append((labels, {name: value for name, (_, value) in zip(one, combination)}))
    return settings


def _choices(name, values):
    """Returns the pairs (label, value) of one entry of a grid."""
    if name == "seed":
        raise ValueError(f"`grid` must not hold 'seed': pass `seeds`. Received: seed={values!r}")
    if isinstance(values, dict):
        pairs = list(values.items())
    elif isinstance(values, (list, tuple, range, np.ndarray)):
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        pairs = list(zip(values, values))
    else:
        raise TypeError(f"`grid` must hold a list of values for each argument. Received: {name}={values!r}")
    if not pairs:
        raise ValueError(f"`grid` must hold at least one value for each argument. Received: {name}={values!r}")
    return pairs


def _checked_seeds(seeds):
    seeds = [check_integer("seeds", seed, at_least=0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must hold at least one integer, none of them twice. Received: seeds={seeds!r}")
    return seeds


def _checked_callable(name, value):
    if not callable(value):
        raise TypeError(f"`{name}` must be a class or a function. Received: {name}={value!r}")
    return value


def _checked_parts(parts):
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    for part in parts:
        if part not in _PREFIXES:
            raise ValueError(f"`evaluate_on` must name parts of {list(_PREFIXES)}. Received: evaluate_on={parts!r}")
    return parts


def _resolved_loss(loss):
    if loss is None:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = keras.losses.get(loss)
    return loss


class _Data:
    """The data sets of a sweep: one for all runs, or one for each seed."""

    def __init__(self, source, evaluate_on):
        self.source = source
        self.own = callable(source) and not hasattr(source, "train")
        self.evaluate_on = evaluate_on
        self._sets = {}

    def of(self, seed, part):
        """Returns (x, y) of a part for a seed, as NumPy arrays, or None."""
        key = seed if self.own else None
        if key not in self._sets:
            self._sets[key] = self.source(seed) if self.own else self.source
        pair = getattr(self._sets[key], part, None)
        if pair is None and part == "train":
            raise ValueError(f"`data` must have an attribute `train`, a pair (x, y). Received: data={self.source!r}")
        return None if pair is None else keras.tree.map_structure(np.asarray, tuple(pair))

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


def _train_group(plan, group, stacked, runs_at_once, advance):
    """Trains runs of one network, stacked where that is possible."""
    model = plan.new_model(group[0])
    reason = _why_not_stackable(model)
    if stacked and reason is None:
        for number in range(pieces := math.ceil(len(group) / runs_at_once)):
            with _quiet_tensorflow():
                _train_stack(plan, group[number::pieces], model, advance)
        return
    if stacked:
        warnings.warn(f"The network {model.name} {reason}: its runs are trained one after the other.", stacklevel=3)
    for run in group:
        with _seeded(run.seed):
            _train_alone(plan, run, advance)


def _why_not_stackable(model):
    if type(model).train_step is not keras.Model.train_step or type(model).compute_loss is not keras.Model.compute_loss:
        return "has its own train_step or compute_loss"
    return None


def _train_alone(plan, run, advance):
    """Trains one run with Keras' own fit, an epoch at a time, in our order."""
    model = plan.new_model(run)
    metrics = [_metric(name, plan.data.of(run.seed, "train")[1], model.output_shape) for name in plan.metrics]
    metrics = [keras.metrics.MeanMetricWrapper(function, name=name) for name, function in metrics]
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
    run.weights, run.state = [
        [np.array(ops.convert_to_numpy(variable)) for variable in variables]
        for variables in (model.trainable_variables, _state(model))
    ]


def _state(model):
    """Returns the variables beside the weights: moving statistics and the seeds of dropout, not metrics."""
    of_metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.non_trainable_variables if id(variable) not in of_metrics]


def _metric(metric, y, output_shape):
    """Returns (name, function of (y_true, y_pred) with one value for each example)."""
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric != "accuracy":
        function = getattr(keras.metrics, str(metric), None)
        if not inspect.isfunction(function):
            raise ValueError(
                f"`metrics` must name functions of keras.metrics, one value an example. Received: {metric!r}"
            )
        return metric, function
    if output_shape[-1] == 1:
        return metric, keras.metrics.binary_accuracy
    one_hot = y.ndim == len(output_shape) and y.shape[-1] == output_shape[-1]
    return metric, keras.metrics.categorical_accuracy if one_hot else keras.metrics.sparse_categorical_accuracy


def _train_stack(plan, group, model, advance):
    """Trains runs together and stores their curves and weights in them."""
    stack = _STACKS[keras.backend.backend()](plan, group, model)
    seeds = [run.seed for run in group]
    x, y, start = plan.data.stacked(seeds, "train")
    examples = len(plan.data.of(seeds[0], "train")[1])
    stack.load(x, y)
    steps = math.ceil(examples / plan.batch_size)
    rates = _rate_table(stack.optimizers, plan.epochs * steps)
    parts = [(prefix, _evaluation_batches(plan, seeds, part)) for prefix, part in plan.data.parts(seeds[0])]
    rows = []
    for epoch in range(plan.epochs):
        orders = {seed: epoch_order(examples, seed, epoch) for seed in seeds}
        indices = np.stack([orders[seed] + first for seed, first in zip(seeds, start)]).astype("int32")
        row = _train_epoch(stack, indices, rates[epoch * steps : (epoch + 1) * steps], plan.batch_size)
        for prefix, batches in parts if plan.evaluates(epoch) else []:
            row.update({prefix + name: values for name, values in _evaluate(stack, batches).items()})
        rows.append(row)
        advance(len(group))
    weights, state = stack.weights()
    for number, run in enumerate(group):
        run.curves = {
            name: np.array([row[name][number] if name in row else np.nan for row in rows]) for name in rows[-1]
        }
        run.weights, run.state = [[array[number] for array in arrays] for arrays in (weights, state)]


def _train_epoch(stack, indices, rates, batch_size):
    """Trains one epoch on rows `indices` (runs, examples) and returns metric name -> (runs,)."""
    runs, examples = indices.shape
    full = examples // batch_size
    whole = indices[:, : full * batch_size].reshape(runs, full, batch_size).transpose(1, 0, 2)  # (steps, runs, batch)
    total = np.zeros((len(stack.names), runs))
    if full:
        total += ops.convert_to_numpy(stack.train(whole, rates[:full])) * batch_size
    if rest := examples % batch_size:
        total += ops.convert_to_numpy(stack.train(indices[None, :, -rest:], rates[full:])) * rest
    return dict(zip(stack.names, total / examples))


def _evaluation_batches(plan, seeds, part, size=512):
    """Returns [(x, y, examples)]; with data for each run, x and y have a first axis of runs."""
    if not plan.data.own:
        x, y = plan.data.of(seeds[0], part)
    else:
        x, y = keras.tree.map_structure(lambda *arrays: np.stack(arrays), *[plan.data.of(s, part) for s in seeds])
    examples = len(plan.data.of(seeds[0], part)[1])
    cut = [slice(begin, begin + size) for begin in range(0, examples, size)]
    if plan.data.own:
        cut = [(slice(None), one) for one in cut]
    batches = [keras.tree.map_structure(lambda array: ops.convert_to_tensor(array[one]), (x, y)) for one in cut]  # noqa: B023
    return [(*batch, min(size, examples - number * size)) for number, batch in enumerate(batches)]


def _evaluate(stack, batches):
    """Returns metric name -> (runs,) over all batches."""
    total = sum(ops.convert_to_numpy(stack.evaluate(x, y)) * examples for x, y, examples in batches)
    return dict(zip(stack.names, total / sum(examples for _, _, examples in batches)))


def _rate_table(optimizers, steps):
    """Returns the learning rate of every step and run, (steps, runs), float32."""
    # Private, since the public property evaluates a schedule instead of giving it.
    rates = [optimizer._learning_rate for optimizer in optimizers]
    schedules = {id(rate): rate for rate in rates if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)}
    columns = dict(zip(schedules, _rates_over(list(schedules.values()), steps)))
    for rate in rates:
        if id(rate) not in columns:
            value = rate if isinstance(rate, keras.Variable) else rate()
            columns[id(rate)] = np.full(steps, ops.convert_to_numpy(value), "float32")
    return np.stack([columns[id(rate)] for rate in rates], axis=1)


def _rates_over(schedules, steps):
    """Returns the rates of schedules, (schedules, steps), float32."""
    numbers = ops.arange(steps, dtype="int32")
    table = [_elementwise(rate, numbers) for rate in schedules]
    one_by_one = [rate for rate, rates in zip(schedules, table) if rates is None]
    if one_by_one:
        mapped = _compiled(
            lambda numbers: ops.map(lambda step: ops.stack([rate(step) for rate in one_by_one]), numbers)
        )
        rows = iter(ops.convert_to_numpy(mapped(numbers)).T)
        table = [next(rows) if rates is None else rates for rates in table]
    return np.array(table, "float32")


def _elementwise(schedule, numbers):
    """Returns the rates of all steps from one call, or None where a schedule takes only one step at a time."""
    try:
        rates = ops.convert_to_numpy(schedule(numbers))
    except Exception:  # whatever the backend says to an array where it wants a number
        return None
    tried = np.unique(np.linspace(0, len(numbers) - 1, 5).astype(int))
    singly = [float(schedule(ops.convert_to_tensor(step, dtype="int32"))) for step in tried]
    same = rates.shape == (len(numbers),) and np.allclose(rates[tried], singly, rtol=1e-5, atol=0)
    return rates if same else None


def _compiled(function, **options):
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        return tensorflow.function(function, **options)
    import jax

    return jax.jit(function, **options)


class _PerRun(np.ndarray):
    """Momentum that differs from run to run, (runs, 1). As a whole it compares like one number.

    Keras' SGD and RMSprop ask `if self.momentum != 0` or `> 0` to know whether there is any momentum.
    """

    def __ne__(self, other):
        return bool(np.any(np.asarray(self) != other))

    def __gt__(self, other):
        return bool(np.any(np.asarray(self) > other))

    __hash__ = None


def _stacked_optimizer(optimizers):
    """Returns one optimizer for the stack, whose numbers are arrays (runs, 1) where they differ."""

    class Stacked(type(optimizers[0])):
        current_rates = None  # (runs, 1), set while a step is traced

        @property
        def learning_rate(self):
            return self.current_rates

    stacked = Stacked(**{**optimizers[0].get_config(), "learning_rate": 0.0})
    stacked.exclude_from_weight_decay(var_names=_undecayed_names(optimizers[0]))
    for name in _ELEMENTWISE[type(optimizers[0]).__name__] - {"learning_rate"}:
        values = [getattr(optimizer, name) or 0.0 for optimizer in optimizers]
        if len(set(values)) > 1:
            column = np.array(values, "float32")[:, None]
            setattr(stacked, name, column.view(_PerRun) if name == "momentum" else ops.convert_to_tensor(column))
    return stacked


class _Stack:
    """The runs of one network: each of its weights as a matrix (runs, entries), and the step that trains all rows.

    Matrices rather than the weights' own shapes: numbers that differ from run to run, (runs, 1), fit them all.
    """

    def __init__(self, plan, group, model):
        self.model, self.loss, self.runs = model, plan.loss, len(group)
        self.metrics = [
            _metric(one, plan.data.of(group[0].seed, "train")[1], model.output_shape) for one in plan.metrics
        ]
        self.names = ["loss"] + [name for name, _ in self.metrics]
        self.own_data = plan.data.own
        self.shapes = [tuple(variable.shape) for variable in model.trainable_variables]
        initial = self._initial_weights(plan, group)
        count = len(self.shapes)
        rows = zip(*([array.ravel() for array in initial[run.seed][:count]] for run in group))
        names = [variable.name for variable in model.trainable_variables]
        self.parameters = [
            keras.Variable(np.stack(arrays), dtype=arrays[0].dtype, name=name) for name, arrays in zip(names, rows)
        ]
        states = zip(*(initial[run.seed][count:] for run in group))
        self.state = [keras.Variable(np.stack(arrays), dtype=arrays[0].dtype, trainable=False) for arrays in states]
        self.optimizers = [run.optimizer for run in group]
        self.optimizer = _stacked_optimizer(self.optimizers)
        self.optimizer.build(self.parameters)

    def _initial_weights(self, plan, group):
        first_of_seed = {run.seed: run for run in reversed(group)}
        weights = {}
        for seed, run in first_of_seed.items():
            model = plan.new_model(run)
            weights[seed] = [ops.convert_to_numpy(variable) for variable in model.trainable_variables + _state(model)]
        return weights

    def load(self, x, y):
        """Takes the training data of all runs, arrays (examples, ...)."""
        self.x, self.y = keras.tree.map_structure(ops.convert_to_tensor, (x, y))

    def weights(self):
        """Returns the weights and the state, two lists in the model's order of arrays (runs, ...)."""
        matrices = [ops.convert_to_numpy(variable) for variable in self.parameters]
        stacked = [matrix.reshape(self.runs, *shape) for matrix, shape in zip(matrices, self.shapes)]
        return stacked, [ops.convert_to_numpy(variable) for variable in self.state]

    def _scores(self, parameters, state, x, y, training):
        """Returns the total loss and the metrics, (metrics, runs), and the new state of all runs."""

        def one(weights, state, x, y):
            predictions, state, penalties = self.model.stateless_call(
                weights, state, x, training=training, return_losses=True
            )
            loss = sum(penalties, ops.mean(self.loss(y, predictions)))
            return ops.cast(loss, "float32"), predictions, state

        weights = [ops.reshape(matrix, (self.runs, *shape)) for matrix, shape in zip(parameters, self.shapes)]
        own = training or self.own_data
        if own:
            loss, predictions, state = ops.vectorized_map(lambda all: one(*all), (weights, state, x, y))
        else:
            loss, predictions, state = ops.vectorized_map(lambda both: one(*both, x, y), (weights, state))
        if not own:
            y = keras.tree.map_structure(lambda array: ops.repeat(array[None], self.runs, axis=0), y)
        return ops.stack([loss, *self._metric_values(y, predictions)]), state

    def _metric_values(self, y, predictions):
        """Returns each metric as (runs,), from arrays (runs, batch, ...); no map over the runs, which costs more."""
        y, predictions = keras.tree.map_structure(
            lambda array: ops.reshape(array, (-1, *ops.shape(array)[2:])), (y, predictions)
        )
        for _, function in self.metrics:
            values = ops.cast(function(y, predictions), "float32")  # one value for each example of each run
            yield ops.mean(ops.reshape(values, (self.runs, -1)), axis=1)

    def _batch(self, data, rows):
        """Returns x and y of the rows (runs, batch) as arrays (runs, batch, ...)."""
        return keras.tree.map_structure(lambda array: ops.take(array, rows, axis=0), data)


@contextlib.contextmanager
def _quiet_tensorflow():
    """Holds back TensorFlow's notes that it maps some operations (dropout's) by a loop, and that it traces often.

    Each network of a sweep is traced once, as it must be.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow

    logger = tensorflow.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


class _TensorFlowStack(_Stack):
    def __init__(self, plan, group, model):
        import tensorflow

        super().__init__(plan, group, model)
        # A free number of steps and examples: the last, smaller batch runs in the same graph.
        signature = [tensorflow.TensorSpec([None, self.runs, None], "int32"), tensorflow.TensorSpec([None, self.runs])]
        self.train = _compiled(self._train, input_signature=signature, autograph=False)
        # XLA fuses the optimizer's dozen passes over all weights into one; around the whole step it is far slower.
        fuse = tensorflow.test.is_built_with_xla() and self._weight_updates(plan, group) > _WORTH_FUSING
        self.update = _compiled(self._update, autograph=False, jit_compile=fuse)
        self._evaluate_compiled = None

    def _weight_updates(self, plan, group):
        steps = math.ceil(len(plan.data.of(group[0].seed, "train")[1]) / plan.batch_size)
        return plan.epochs * steps * sum(math.prod(variable.shape) for variable in self.parameters)

    def evaluate(self, x, y):
        import tensorflow

        def free(array):  # a free number of examples, here too: one graph for all parts and their last batches
            shape = list(array.shape)
            shape[1 if self.own_data else 0] = None
            return tensorflow.TensorSpec(shape, array.dtype)

        if self._evaluate_compiled is None:
            signature = keras.tree.map_structure(free, (x, y))
            self._evaluate_compiled = _compiled(self._evaluate, input_signature=signature, autograph=False)
        return self._evaluate_compiled(x, y)

    def _train(self, rows, rates):
        import tensorflow

        def step(number, total):
            x, y = self._batch((self.x, self.y), rows[number])
            parameters = [one.value for one in self.parameters]
            with tensorflow.GradientTape() as tape:
                scores, state = self._scores(parameters, [one.value for one in self.state], x, y, training=True)
                loss = scores[0]
            gradients = tape.gradient(loss, parameters, unconnected_gradients="zero")
            self.update(gradients, rates[number])
            for variable, value in zip(self.state, state):
                variable.assign(value)
            return number + 1, total + scores

        steps = tensorflow.shape(rows)[0]
        start = (0, tensorflow.zeros([len(self.names), self.runs]))
        _, total = tensorflow.while_loop(lambda number, _: number < steps, step, start, parallel_iterations=1)
        return total

    def _update(self, gradients, rates):
        self.optimizer.current_rates = rates[:, None]
        self.optimizer.apply(gradients, self.parameters)

    def _evaluate(self, x, y):
        parameters, state = [[one.value for one in variables] for variables in (self.parameters, self.state)]
        return self._scores(parameters, state, x, y, training=False)[0]


class _JaxStack(_Stack):
    def __init__(self, plan, group, model):
        super().__init__(plan, group, model)
        self._train_compiled = _compiled(self._train, donate_argnums=0)
        self._evaluate_compiled = _compiled(self._evaluate)

    def _variables(self):
        return self.parameters, self.state, self.optimizer.variables

    def _values(self):
        return [[variable.value for variable in variables] for variables in self._variables()]

    def train(self, rows, rates):
        values, total = self._train_compiled(self._values(), (self.x, self.y), rows, rates)
        for variables, new in zip(self._variables(), values):
            for variable, value in zip(variables, new):
                variable.assign(value)
        return total

    def evaluate(self, x, y):
        parameters, state, _ = self._values()
        return self._evaluate_compiled(parameters, state, x, y)

    def _train(self, values, data, rows, rates):
        import jax

        def loss(parameters, state, x, y):
            scores, state = self._scores(parameters, state, x, y, training=True)
            return ops.sum(scores[0]), (scores, state)  # the runs are independent: the sum's gradient is each one's own

        def step(values, row_and_rate):
            parameters, state, of_optimizer = values
            rows, rates = row_and_rate
            x, y = self._batch(data, rows)
            gradients, (scores, state) = jax.grad(loss, has_aux=True)(parameters, state, x, y)
            self.optimizer.current_rates = rates[:, None]
            parameters, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, parameters)
            return [parameters, state, of_optimizer], scores

        values, scores = jax.lax.scan(step, values, (rows, rates))
        self.optimizer.current_rates = None
        return values, ops.sum(scores, axis=0)

    def _evaluate(self, parameters, state, x, y):
        return self._scores(parameters, state, x, y, training=False)[0]


_STACKS = {"tensorflow": _TensorFlowStack, "jax": _JaxStack}


def _result(plan, runs):
    names = list(runs[0].curves)
    history = {name: np.stack([run.curves[name] for run in runs]) for name in names}  # (runs, epochs)
    training = [curves for name, curves in history.items() if not name.startswith(tuple(_PREFIXES.values()))]
    lost = np.logical_or.accumulate(~np.isfinite(training).all(axis=0), axis=1)
    for curves in history.values():
        curves[lost] = np.nan
    return SweepResult([run.description for run in runs], history, lost[:, -1], plan, runs)
