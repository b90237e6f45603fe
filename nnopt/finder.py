"""The learning-rate range test: one short run with a rising rate, after which the model is as it was before.

`find_learning_rate` runs the test and returns a `LearningRateCurve`, which suggests a rate and draws itself.
"""

import contextlib
import dataclasses
import itertools

import keras
import numpy as np
from keras import ops
from scipy import signal
from tqdm import tqdm

from nnopt import _keras, _state
from nnopt.checks import check_boolean, check_choice, check_instance, check_integer, check_number, shown
from nnopt.data.ordered import OrderedDataset

RULES = ("valley", "steepest", "minimum")
FLOAT32 = np.finfo("float32")


def find_learning_rate(
    model,
    x,
    y=None,
    *,
    sample_weight=None,
    batch_size=32,
    minimal_learning_rate=1e-6,
    maximal_learning_rate=10.0,
    steps=100,
    smoothing=0.9,
    divergence_factor=4.0,
    seed=0,
    progress=True,
):
    """Trains with a rate that rises exponentially, records the loss of each batch, and puts everything back.

        rate(i) = minimal_learning_rate * (maximal_learning_rate / minimal_learning_rate) ** (i / (steps - 1))

    The loss of step i is the loss of its batch, regularization included, before the update with rate(i). The run ends
    early when the loss is NaN or infinite, or when its exponential mean (see `LearningRateCurve`) exceeds its least
    value so far, m, by more than (divergence_factor - 1) * abs(m): for positive losses, divergence_factor * m.

    Afterwards, also after an exception or Ctrl-C, all of this is bit for bit what it was before: weights, BatchNorm
    statistics, seed generators and metrics of the model; slots, iterations and rate of the optimizer; the compiled
    training step; the random states of Python, NumPy, Keras, and of TensorFlow and PyTorch where they are loaded. A
    copy of all variables is held in main memory meanwhile. Generators of random numbers inside a data set of your own,
    or in a tf.data pipeline, do move on.

    What was not built yet is built afterwards, with its initial values. (On JAX and PyTorch the first `fit` draws
    more random numbers if it has metrics or an optimizer to build: without the test it would shuffle otherwise.)

    An optimizer compiled with a schedule follows the sweep instead, and has its schedule back afterwards. With
    `gradient_accumulation_steps=n` a step is an update: n batches, and the mean of their losses. A LossScaleOptimizer
    skips updates whose gradients overflow; with a schedule inside, the rate waits too, and the curve holds the rates
    that were set.

    Args:
        model: A compiled keras.Model, trained or not; its own `train_step` is used. The logs must have a "loss".
        x: Inputs: an array, or a tuple, list or dict of arrays with the examples along the first axis; for a model with
            one input also a tuple (x, y) or (x, y, sample_weight) of arrays. Or batches,
            (x,), (x, y) or (x, y, sample_weight): a keras.utils.PyDataset, a tf.data.Dataset, a torch DataLoader or any
            iterable, begun again when it ends.
        y: Targets, in the same forms as arrays in `x`; None for batches.
        sample_weight: Weights of the examples; None for batches.
        batch_size: Examples in a batch, an integer >= 1. Not used for batches. An incomplete last batch is left out.
        minimal_learning_rate: First rate, > 0.
        maximal_learning_rate: Last rate, > minimal_learning_rate.
        steps: Number of rates, an integer >= 10.
        smoothing: Weight of the past in the exponential mean, in [0, 1).
        divergence_factor: Rise of the loss at which the run ends, > 1.
        seed: Order of the examples, an integer >= 0. Not used for batches.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        A `LearningRateCurve`.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; the model is not compiled, has no
            variables to train or several optimizers; the data have no batch, or are an iterator that ran out.

    Example:

    >>> inputs = np.linspace(-1, 1, 64, dtype="float32").reshape(64, 1)
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    >>> model.compile(keras.optimizers.SGD(0.01), loss="mse")
    >>> curve = find_learning_rate(model, inputs, 3 * inputs, batch_size=64, minimal_learning_rate=1e-3)
    >>> 0.01 < curve.suggest("valley") < 3
    True
    >>> model.get_weights()[0].tolist(), int(model.optimizer.iterations.numpy())
    ([[0.0]], 0)

    Reference: L. N. Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3; smoothing and the
    end at divergence as in S. Gugger, "How do you find a good learning rate", 2018.
    """
    _check_model(model)
    batch_size = check_integer("batch_size", batch_size, at_least=1)
    lowest = check_number("minimal_learning_rate", minimal_learning_rate, at_least=float(FLOAT32.tiny))
    highest = check_number("maximal_learning_rate", maximal_learning_rate, above=lowest, at_most=float(FLOAT32.max))
    steps = check_integer("steps", steps, at_least=10)
    smoothing = check_number("smoothing", smoothing, at_least=0, below=1)
    divergence_factor = check_number("divergence_factor", divergence_factor, above=1)
    seed = check_integer("seed", seed, at_least=0)
    check_boolean("progress", progress)
    batches = _batches(*_unpacked(model, x, y, sample_weight), batch_size, seed)

    with _state.preserved_random_state(), _generator_of(x), _preserved(model) as variables:
        first = next(batches)
        _build(model, first)
        variables.add(_variables(model))
        rates = np.geomspace(lowest, highest, steps)
        with tqdm(total=steps, unit="step", desc="range test", disable=not progress or None) as bar:
            return _sweep(model, itertools.chain([first], batches), rates, smoothing, divergence_factor, bar)


@dataclasses.dataclass(eq=False, repr=False)
class LearningRateCurve:
    """The losses of a range test, one for each rate.

        smoothed_losses[i] = sum_j smoothing**(i - j) * losses[j] / sum_j smoothing**(i - j),    j = 0 ... i

    This is the exponential mean, corrected for its beginning at zero.

    Args:
        learning_rates: Rates that rise, all > 0, shape (steps,).
        losses: Loss of the batch before the update with that rate, shape (steps,). It may end in NaN or infinity.
        smoothing: Weight of the past in the exponential mean, in [0, 1).
        diverged: Whether the run ended before its last rate since the loss had risen too far.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> curve = LearningRateCurve([0.01, 0.1, 1.0], [4.0, 2.0, 3.0], smoothing=0.5)
    >>> curve.smoothed_losses.round(3).tolist()
    [4.0, 2.667, 2.857]

    Reference: D. P. Kingma and J. Ba, "Adam", 2015, section 3 (the correction).
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothing: float = 0.0
    diverged: bool = False

    def __post_init__(self):
        rates = self.learning_rates = np.array(self.learning_rates, dtype="float64")
        losses = self.losses = np.array(self.losses, dtype="float64")
        if rates.ndim != 1 or losses.shape != rates.shape or not len(rates):
            raise ValueError(
                "`learning_rates` and `losses` must be of one shape (steps,), steps >= 1. "
                f"Received: shapes {rates.shape} and {losses.shape}"
            )
        if not (np.all(np.isfinite(rates)) and rates[0] > 0 and np.all(np.diff(rates) >= 0)):
            raise ValueError(
                "`learning_rates` must be finite, > 0 and never fall. "
                f"Received: learning_rates={np.array2string(rates, precision=4, threshold=6)}"
            )
        self.smoothing = check_number("smoothing", self.smoothing, at_least=0, below=1)
        check_boolean("diverged", self.diverged)

    @property
    def smoothed_losses(self):
        """The exponential mean of the losses, shape (steps,)."""
        return _exponential_mean(self.losses, self.smoothing)

    def suggest(self, rule="valley"):
        """Returns a learning rate to train with.

        The rules look at the smoothed losses up to the last finite one, without the first tenth of them (rounded
        down), which are means of few batches. A fall of the loss from i to i + 1 is the work of the update in between,
        at rate i.

        - "valley": of the longest strictly falling subsequence, L losses the last of which is i = e (the least such e),
          the rate i = e - L + floor(L / 3) + floor(L / 6), or the first if that is negative: the middle of the L steps
          before e. This is fastai's rule; its documentation calls the point "roughly 2/3 through".
        - "steepest": the rate i at which (loss[i+1] - loss[i]) / (log rate[i+1] - log rate[i]) is least, of those
          before the least loss: a loss that recovers from a rise falls steeply as well (fastai's rule counts it in).
        - "minimum": a tenth of the rate at which the loss is least.

        Args:
            rule: "valley", "steepest" or "minimum".

        Raises:
            TypeError, ValueError: `rule` is none of these; or the loss never fell, so that no rate can be suggested.

        Example:

        >>> curve = LearningRateCurve([1e-3, 1e-2, 1e-1, 1.0], [4.0, 3.5, 1.0, 9.0])
        >>> [round(curve.suggest(rule), 6) for rule in ("valley", "steepest", "minimum")]
        [0.001, 0.01, 0.01]

        Reference: fastai, callback/schedule.py, `valley`, `steep` and `minimum`.
        """
        check_choice("rule", rule, RULES)
        rates, losses = self._usable()
        if len(losses) < 2 or not np.min(losses) < losses[0]:
            raise ValueError(
                "No learning rate can be suggested, since the smoothed loss never fell below its first value. Begin "
                "with a smaller minimal_learning_rate, or look at the data and the loss. "
                f"Received: smoothed losses {np.array2string(losses, precision=4, threshold=6)} for rates "
                f"{self.learning_rates[0]:.3g} to {self.learning_rates[-1]:.3g}"
            )
        return float({"valley": _valley, "steepest": _steepest, "minimum": _minimum}[rule](rates, losses))

    def plot(self, ax=None, suggest="valley"):
        """Draws the losses over the rates, thin, their exponential mean, bold, and a dot at the suggested rate.

        Args:
            ax: Matplotlib axes; None for new ones.
            suggest: Rule of the suggestion, see `suggest`; None for no dot. Where the loss never fell, a line says so.

        Returns:
            The axes.

        Example:

        >>> curve = LearningRateCurve([1e-3, 1e-2, 1e-1, 1.0], [4.0, 3.5, 1.0, 9.0])
        >>> ax = curve.plot()
        >>> ax.get_xscale(), ax.get_xlabel()
        ('log', 'learning rate')
        """
        from matplotlib import pyplot as plt

        from nnopt.lab import plots

        if suggest is not None:
            check_choice("suggest", suggest, RULES)
        ax = plt.subplots()[1] if ax is None else ax
        smoothed, shade = self.smoothed_losses, plots.color("range test")
        ax.plot(self.learning_rates, self.losses, color=shade, linewidth=0.8, alpha=0.5)
        ax.plot(self.learning_rates, smoothed, color=shade)
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss of a batch; bold: smoothed")
        _limit(ax, self.losses, smoothed)
        if suggest is not None:
            self._mark(ax, suggest, plots.color("one cycle"))
        return ax

    def _usable(self):
        rates, losses = self.learning_rates, self.smoothed_losses
        broken = np.flatnonzero(~np.isfinite(losses))
        last = broken[0] if len(broken) else len(losses)
        return rates[len(rates) // 10 : last], losses[len(rates) // 10 : last]

    def _mark(self, ax, rule, shade):
        try:
            rate = self.suggest(rule)
        except ValueError:
            ax.annotate("no suggestion: the loss never fell", (0.02, 0.02), xycoords="axes fraction", color=shade)
            return
        rates, losses = self._usable()
        height = np.interp(np.log(rate), np.log(rates), losses)
        ax.plot(rate, height, "o", color=shade)
        label = f"{rule}: {rate:.2g}"
        ax.annotate(label, (rate, height), (7, 7), textcoords="offset points", color=shade, fontweight="bold")

    def __repr__(self):
        end = ", diverged" if self.diverged else ""
        rates = self.learning_rates
        return f"LearningRateCurve({len(rates)} rates from {rates[0]:.3g} to {rates[-1]:.3g}{end})"


def _exponential_mean(losses, smoothing):
    weights = 1 - smoothing ** np.arange(1, len(losses) + 1)
    return signal.lfilter([1 - smoothing], [1, -smoothing], losses) / weights


def _valley(rates, losses):
    # Patience sorting: tops[k] is the largest -(-loss) at which a falling subsequence of k + 1 losses can end so far.
    tops, end = [], 0
    for index, loss in enumerate(losses):
        length = int(np.searchsorted(tops, -loss))
        if length == len(tops):
            tops.append(-loss)
            end = index
        else:
            tops[length] = -loss
    length = len(tops)
    return rates[max(end - length + length // 3 + length // 6, 0)]


def _steepest(rates, losses):
    rise = np.diff(np.log(rates))
    slopes = np.divide(np.diff(losses), rise, out=np.full(len(rise), np.inf), where=rise > 0)
    return rates[np.argmin(slopes[: np.argmin(losses)])]


def _minimum(rates, losses):
    return rates[np.argmin(losses)] / 10


def _limit(ax, losses, smoothed):
    """Leaves the divergence above the picture, which would flatten all the rest."""
    finite = np.isfinite(smoothed)
    if not np.any(finite):
        return
    before = smoothed[finite][: np.argmin(smoothed[finite]) + 1]
    low = np.min(losses[np.isfinite(losses)])
    height = max(np.max(before), losses[0]) - low
    if height > 0:
        ax.set_ylim(low - 0.1 * height, low + 1.4 * height)


def _sweep(model, batches, rates, smoothing, divergence_factor, bar):
    rate = _Rate(model, rates)
    losses, used, best, diverged = [], [], np.inf, False
    for index in range(len(rates)):
        used.append(rate.set(index))
        losses.append(np.mean([_train(model, next(batches)) for _ in range(rate.every)]))
        mean = _exponential_mean(losses, smoothing)[-1]
        bar.update()
        bar.set_postfix(rate=f"{used[-1]:.1e}", loss=f"{mean:.4g}", refresh=False)
        diverged = not np.isfinite(mean) or bool(mean > best + (divergence_factor - 1) * abs(best))
        if diverged:
            break
        best = min(best, mean)
    return LearningRateCurve(np.array(used), np.array(losses), smoothing, diverged)


def _train(model, batch):
    # Resets the metrics before the step, so that "loss" is the mean over this batch alone; in `fit` it is not.
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    logs = model.train_on_batch(x, y, sample_weight, return_dict=True)
    if "loss" not in logs:
        raise ValueError(
            f'The `train_step` of `model` must return logs with the key "loss". Received: logs with {sorted(logs)}'
        )
    return float(logs["loss"])


class _Rate:
    """The optimizer's rate, settable also where it is a schedule; the optimizer is put back by `_preserved`."""

    def __init__(self, model, rates):
        self.rates = rates
        self.optimizer = model.optimizer
        self.every = _keras.inner_optimizer(self.optimizer).gradient_accumulation_steps or 1
        self.settable = isinstance(self.optimizer.learning_rate, keras.Variable)
        if not self.settable:
            first = int(ops.convert_to_numpy(_keras.batch_counter(self.optimizer)))
            self.optimizer.learning_rate = _Steps(rates, first, self.every)
            # The compiled step has the other schedule in it. JAX would find that one again, also for a new `jit` of the
            # same method, and ours in a later `fit`: hence another function.
            model.train_function = None
            train_step = model.train_step
            model.train_step = lambda *arguments: train_step(*arguments)

    def set(self, index):
        """Sets the rate, if that can be done, and returns the one that the next update will use."""
        if self.settable:
            self.optimizer.learning_rate = self.rates[index]
        return float(ops.convert_to_numpy(self.optimizer.learning_rate))


class _Steps(keras.optimizers.schedules.LearningRateSchedule):
    """One rate for each update, as a schedule: the optimizer asks with the number of batches it has seen."""

    def __init__(self, rates, first, every):
        self.rates, self.first, self.every = rates.astype("float32"), first, every

    def __call__(self, step):
        index = ops.floor_divide(ops.cast(step, "int32") - self.first, self.every)
        return ops.take(ops.convert_to_tensor(self.rates), ops.clip(index, 0, len(self.rates) - 1))

    def get_config(self):
        return {"rates": self.rates, "first": self.first, "every": self.every}


@contextlib.contextmanager
def _preserved(model):
    """Puts back all that a sweep changes in a model; gives its variables, to which those made later can be added."""
    variables = _state.SavedVariables(_variables(model))
    train_function, stop_training = model.train_function, model.stop_training
    train_step = vars(model).get("train_step")  # None for the method of the class
    rate = _keras.learning_rate(model.optimizer)

    def restore():
        _keras.drop_unwritten_state(model)
        if not isinstance(rate, keras.Variable):
            model.optimizer.learning_rate = rate
        if train_step is not None:
            model.train_step = train_step
        elif "train_step" in vars(model):
            del model.train_step
        model.train_function, model.stop_training = train_function, stop_training
        # Variables that metrics made in the sweep.
        model.reset_metrics()
        variables.restore()

    try:
        yield variables
    finally:
        try:
            restore()
        except KeyboardInterrupt:  # a second Ctrl-C
            restore()
            raise


def _variables(model):
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    return [*model.variables, *model.metrics_variables, *metrics, *model.optimizer.variables]


@contextlib.contextmanager
def _generator_of(data):
    """Puts back the random generator that a torch DataLoader was given."""
    generator = getattr(data, "generator", None)
    state = generator.get_state() if hasattr(generator, "get_state") else None
    try:
        yield
    finally:
        if state is not None:
            generator.set_state(state)


def _check_model(model):
    check_instance("model", model, keras.Model, "a keras.Model")
    if not model.compiled or model.optimizer is None:
        raise ValueError(f"`model` must be compiled: call `model.compile(...)` first. Received: model={model!r}")
    inner = _keras.inner_optimizer(model.optimizer)
    optimizers = [name for name, value in vars(model).items() if isinstance(value, keras.optimizers.Optimizer)]
    others = [name for name in optimizers if vars(model)[name] not in (model.optimizer, inner)]
    if others or hasattr(inner, "optimizers"):
        raise ValueError(
            "`model` must train with one optimizer, `model.optimizer`: a range test has one rate. "
            f"Received: model={model!r} with further optimizers in {others or 'its optimizer'}"
        )


def _build(model, batch):
    """Makes the variables that the first step would make, so that their initial values can be put back."""
    if not model.built:
        # A model with a train_step of its own may do without `call`.
        with contextlib.suppress(NotImplementedError):
            model(keras.utils.unpack_x_y_sample_weight(batch)[0])
    if not model.trainable_variables:
        raise ValueError(f"`model` must have variables to train. Received: model={model!r}, whose are none")
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _unpacked(model, x, y, sample_weight):
    """Takes (x, y) and (x, y, sample_weight) apart for a model with one input, and says it where `y` is missing."""
    if y is not None or sample_weight is not None or not _is_arrays(x):
        return x, y, sample_weight
    if isinstance(x, tuple) and len(x) in (2, 3) and len(getattr(model, "inputs", None) or ()) == 1:
        return keras.utils.unpack_x_y_sample_weight(x)
    own = any(getattr(type(model), name) is not getattr(keras.Model, name) for name in ("train_step", "compute_loss"))
    if model.loss is not None and not own:
        raise ValueError(f"`y` must be the targets, since `model` has a loss. Received: x={shown(x)}, y=None")
    return x, y, sample_weight


def _batches(x, y, sample_weight, batch_size, seed):
    """Returns an iterator over batches that never ends, except with an error; it has read nothing yet."""
    if y is None and sample_weight is None and not _is_arrays(x):
        if isinstance(x, (str, bytes)) or not (hasattr(x, "__iter__") or isinstance(x, keras.utils.PyDataset)):
            raise TypeError(
                "`x` must be an array, a tuple, list or dict of arrays, or an iterable of batches. "
                f"Received: x={shown(x)} (of type {type(x).__name__})"
            )
        return _tensors(_repeated(x))
    if isinstance(x, keras.utils.PyDataset) or not _is_arrays(x):
        raise ValueError(
            "`y` and `sample_weight` must be None where `x` gives batches: they are part of them. "
            f"Received: x, y, sample_weight of types {', '.join(type(part).__name__ for part in (x, y, sample_weight))}"
        )
    return _tensors(_batches_of_arrays(OrderedDataset(x, y, sample_weight, batch_size, seed)))


def _is_arrays(x):
    if isinstance(x, (list, tuple)):
        return bool(x) and not any(isinstance(part, (list, tuple, dict)) for part in x)
    return isinstance(x, dict) or (hasattr(x, "shape") and hasattr(x, "__getitem__"))


def _batches_of_arrays(data):
    complete = max(data.examples // data.batch_size, 1)
    for epoch in itertools.count():
        for batch in itertools.islice(data.batches(epoch), complete):
            yield keras.tree.map_structure(_as_fit_does, batch)


def _as_fit_does(array):
    return array.astype(keras.config.floatx()) if np.issubdtype(array.dtype, np.floating) else array


def _repeated(data):
    """Goes through the batches again and again, without the calls by which a PyDataset changes between epochs."""
    batches = 0
    for passes in itertools.count(1):
        before = batches
        for batch in data:
            batches += 1
            yield batch
        if batches == before:
            rule = "give at least one batch" if passes == 1 else "not be an iterator that runs out during the sweep"
            raise ValueError(f"`x` must {rule}. Received: x={shown(data)}, which gave {batches} batches")


def _tensors(batches):
    return (keras.tree.map_structure(_tensor, batch) for batch in batches)


def _tensor(array):
    if array is None or ops.is_tensor(array):
        return array
    if hasattr(array, "detach"):  # a torch tensor under another backend
        array = array.detach().cpu().numpy()
    return ops.convert_to_tensor(np.asarray(array))
