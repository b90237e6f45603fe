"""Learning rate as a pure function of the optimizer's step: decays, cycles, one-cycle, and two ways to combine them.

Keras has cosine, exponential, polynomial, inverse-time and piecewise-constant decay; here is what it lacks. Each class
is a `keras.optimizers.schedules.LearningRateSchedule`: pass it to an optimizer as `learning_rate`, or call it with a
step, or with an array of steps to draw it. All compute in float32 whatever `keras.config.floatx()` is, and keep the
step an integer as long as possible: float32 has no odd numbers above 2**24.

Steps count from 0, so that the first update uses the rate of step 0. Under `gradient_accumulation_steps=n` Keras hands
a schedule the number of micro-steps (batches), n for one update of the weights. Give counts in batches then: multiply
`milestones`, `decay_steps`, `step_size`, `total_steps`, `warmup_steps` and the steps of a chain by n.
"""

import itertools
import math
import numbers

import keras
import numpy as np
from keras import ops

from nnopt.checks import check_boolean, check_choice, check_instance, check_integer, check_number

# JAX counts in int32, and a rate has to fit into float32.
LARGEST_STEP = 2**31 - 1
LARGEST_RATE = 3e38


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """What all schedules share: the step as an integer tensor, the arguments as attributes of the same name."""

    _arguments = ()

    def __call__(self, step):
        return self._rate(_integer_tensor(step))

    def get_config(self):
        return {name: _serialize(getattr(self, name)) for name in self._arguments}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: _deserialize(value) for name, value in config.items()})

    def __repr__(self):
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._arguments)
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable("nnopt")
class StepDecay(_Schedule):
    """Multiplies the rate by `decay_rate` at each milestone.

        rate(t) = initial_learning_rate * decay_rate ** (number of milestones <= t)

    Args:
        initial_learning_rate: Rate before the first milestone, > 0.
        milestones: Steps at which the rate drops, a list of strictly increasing integers >= 1; or one integer n >= 1
            for n, 2n, 3n, ...
        decay_rate: Factor of each drop, in (0, 1].

    Returns (when called with a step, or an array of steps): the rate, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> schedule = StepDecay(1.0, milestones=[2, 4], decay_rate=0.5)
    >>> [float(schedule(step)) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    >>> float(StepDecay(1.0, milestones=100, decay_rate=0.5)(250))
    0.25

    Reference: Y. Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.1; K. He et al., "Deep residual learning for image recognition", 2016, section 4.2.

    Others: the same as `MultiStepLR` (list) and `StepLR` (integer) of torch.optim.lr_scheduler, and as
    `optax.piecewise_constant_schedule`. Keras' `PiecewiseConstantDecay` still has the old rate at step == boundary and
    drops one step later.
    """

    _arguments = ("initial_learning_rate", "milestones", "decay_rate")

    def __init__(self, initial_learning_rate, milestones, decay_rate):
        self.initial_learning_rate = _check_rate("initial_learning_rate", initial_learning_rate)
        self.milestones = _check_milestones(milestones)
        self.decay_rate = check_number("decay_rate", decay_rate, above=0, at_most=1)

    def _rate(self, step):
        if isinstance(self.milestones, int):
            drops = step // self.milestones
        else:
            milestones = ops.convert_to_tensor(self.milestones, step.dtype)
            drops = ops.sum(ops.cast(ops.expand_dims(step, -1) >= milestones, "int32"), axis=-1)  # (..., milestones)
        return self.initial_learning_rate * _power(math.log(self.decay_rate), drops)


@keras.saving.register_keras_serializable("nnopt")
class ExponentialDecay(_Schedule):
    """Shrinks the rate by the factor `decay_rate` every `decay_steps` steps, smoothly or in stairs.

        rate(t) = initial_learning_rate * decay_rate ** (t / decay_steps)
        rate(t) = initial_learning_rate * decay_rate ** floor(t / decay_steps)      with staircase=True

    Args:
        initial_learning_rate: Rate at step 0, > 0.
        decay_steps: Steps for one factor of `decay_rate`, an integer >= 1.
        decay_rate: The factor, in (0, 1].
        staircase: Whether the rate falls only at multiples of `decay_steps`.

    Returns (when called with a step, or an array of steps): the rate, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> schedule = ExponentialDecay(1.0, decay_steps=2, decay_rate=0.25)
    >>> [float(schedule(step)) for step in range(5)]
    [1.0, 0.5, 0.25, 0.125, 0.0625]

    Reference: Y. Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.1.

    Others: the formula of `keras.optimizers.schedules.ExponentialDecay` and `optax.exponential_decay`. Keras' own
    accepts any arguments (a decay rate of -0.9, a string), computes in floatx, and rounds the step to it: with float16
    it gives NaN at step 70,000. `torch.optim.lr_scheduler.ExponentialLR(gamma)` is the case decay_steps=1.
    """

    _arguments = ("initial_learning_rate", "decay_steps", "decay_rate", "staircase")

    def __init__(self, initial_learning_rate, decay_steps, decay_rate, staircase=False):
        self.initial_learning_rate = _check_rate("initial_learning_rate", initial_learning_rate)
        self.decay_steps = check_integer("decay_steps", decay_steps, at_least=1, at_most=LARGEST_STEP)
        self.decay_rate = check_number("decay_rate", decay_rate, above=0, at_most=1)
        self.staircase = check_boolean("staircase", staircase)

    def _rate(self, step):
        if self.staircase:
            power = _power(math.log(self.decay_rate), step // self.decay_steps)
        else:
            power = _power(math.log(self.decay_rate) / self.decay_steps, step)
        return self.initial_learning_rate * power


@keras.saving.register_keras_serializable("nnopt")
class CyclicalLearningRate(_Schedule):
    """Lets the rate rise and fall in triangles between two bounds.

        cycle(t) = floor(1 + t / (2 step_size)),    x(t) = |t / step_size - 2 cycle(t) + 1|
        rate(t) = initial + (maximal - initial) * max(0, 1 - x(t)) * scale(t)
        scale(t) = 1 (triangular),  2 ** (1 - cycle(t)) (triangular2),  gamma ** t (exp_range)

    Args:
        initial_learning_rate: Lower bound, the rate at step 0, >= 0.
        maximal_learning_rate: Upper bound, the rate at step `step_size`, >= initial_learning_rate.
        step_size: Steps of half a cycle, an integer >= 1 (Smith advises 2 to 10 epochs).
        mode: "triangular", "triangular2" (each triangle is half as high as the one before) or "exp_range".
        gamma: Base of the decay in the mode "exp_range", in (0, 1]; the others ignore it.

    Returns (when called with a step, or an array of steps): the rate, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> schedule = CyclicalLearningRate(1.0, 3.0, step_size=2, mode="triangular2")
    >>> [float(schedule(step)) for step in range(9)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.0, 1.5, 1.0]

    Reference: L. N. Smith, "Cyclical learning rates for training neural networks", 2017, section 3.2 and its code.

    Others: the same as `CyclicLR` of torch.optim.lr_scheduler (which can also make the two legs unequal, and cycles
    momentum unless told not to). TensorFlow Addons' `CyclicalLearningRate` took the same arguments, with a function
    `scale_fn` in place of `mode`, and let it see the cycle or the step by `scale_mode`. Neither Keras, optax nor fastai
    has a triangular schedule; optax chains one from `join_schedules`, fastai from `combine_scheds`.
    """

    _arguments = ("initial_learning_rate", "maximal_learning_rate", "step_size", "mode", "gamma")

    def __init__(self, initial_learning_rate, maximal_learning_rate, step_size, mode="triangular", gamma=1.0):
        self.initial_learning_rate = _check_rate("initial_learning_rate", initial_learning_rate, zero=True)
        self.maximal_learning_rate = check_number(
            "maximal_learning_rate", maximal_learning_rate, at_least=self.initial_learning_rate, at_most=LARGEST_RATE
        )
        # A whole cycle has to be countable, too.
        self.step_size = check_integer("step_size", step_size, at_least=1, at_most=LARGEST_STEP // 2)
        self.mode = check_choice("mode", mode, ("triangular", "triangular2", "exp_range"))
        self.gamma = check_number("gamma", gamma, above=0, at_most=1)

    def _rate(self, step):
        half = self.step_size
        height = ops.cast(half - ops.abs(step % (2 * half) - half), "float32") / half
        if self.mode == "triangular2":
            height = height * _power(-math.log(2), step // (2 * half))
        elif self.mode == "exp_range":
            height = height * _power(math.log(self.gamma), step)
        return self.initial_learning_rate + (self.maximal_learning_rate - self.initial_learning_rate) * height


@keras.saving.register_keras_serializable("nnopt")
class OneCycle(_Schedule):
    """Raises the rate to a maximum and anneals it far below its start, once, in a training of known length.

    The rate passes through levels, reached at steps that need not be whole (p = pct_start, T = total_steps):

        two phases:    max / div  at 0,   max  at p T - 1,   max / div / final_div  at T - 1
        three phases:  max / div  at 0,   max  at p T - 1,   max / div  at 2 p T - 2,   max / div / final_div  at T - 1

    and between levels a (at step s) and b (at step e), with x = (t - s) / (e - s):

        linear:  rate(t) = a + (b - a) x                   cos:  rate(t) = b + (a - b) (1 + cos(pi x)) / 2

    Args:
        maximal_learning_rate: The highest rate, > 0.
        total_steps: Steps of the whole training, an integer >= 1. From step T - 1 on the rate stays what it is there.
        pct_start: Share of the steps in which the rate rises, in [0, 1]; with three phases in [0, 0.5]. At
            pct_start * total_steps == 1 the first step is the peak; at pct_start = 1 the rate only rises, and stays.
        div_factor: Maximal rate / first rate, >= 1.
        final_div_factor: First rate / final rate, > 0, and div_factor * final_div_factor >= 1.
        anneal: "cos" or "linear".
        three_phase: Whether the rate first comes down as it went up and then falls to its final value.

    Returns (when called with a step, or an array of steps): the rate, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> schedule = OneCycle(25.0, total_steps=10, div_factor=25.0, final_div_factor=2.0, anneal="linear")
    >>> [round(float(schedule(step)), 3) for step in range(12)]
    [1.0, 13.0, 25.0, 21.5, 18.0, 14.5, 11.0, 7.5, 4.0, 0.5, 0.5, 0.5]

    Reference: L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2019, section 3; L. N. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018.

    Others: the same as `OneCycleLR` of torch.optim.lr_scheduler at the steps 0 ... T - 1. That one goes on at step T
    (climbing again with cos, falling below its final rate with linear) and raises after it, divides by zero at
    pct_start * total_steps == 1, and with three phases and pct_start > 0.5 never gets to its third.
    `optax.cosine_onecycle_schedule` peaks at int(p T) and ends at T, one step later; fastai's `fit_one_cycle` peaks at
    p T, starts at max / 25 and ends at max / 1e5. Keras and TensorFlow Addons have none.
    """

    _arguments = (
        "maximal_learning_rate",
        "total_steps",
        "pct_start",
        "div_factor",
        "final_div_factor",
        "anneal",
        "three_phase",
    )

    def __init__(
        self,
        maximal_learning_rate,
        total_steps,
        pct_start=0.3,
        div_factor=25.0,
        final_div_factor=1e4,
        anneal="cos",
        three_phase=False,
    ):
        self.maximal_learning_rate = _check_rate("maximal_learning_rate", maximal_learning_rate)
        self.total_steps = check_integer("total_steps", total_steps, at_least=1, at_most=LARGEST_STEP)
        self.three_phase = check_boolean("three_phase", three_phase)
        self.pct_start = check_number("pct_start", pct_start, at_least=0, at_most=0.5 if three_phase else 1)
        self.div_factor = check_number("div_factor", div_factor, at_least=1)
        # Else the final rate would be the highest.
        self.final_div_factor = check_number("final_div_factor", final_div_factor, at_least=1 / self.div_factor)
        self.anneal = check_choice("anneal", anneal, ("cos", "linear"))

    def _rate(self, step):
        highest = self.maximal_learning_rate
        first = highest / self.div_factor
        final = first / self.final_div_factor
        return self._curve(step, [first, highest, first, final] if self.three_phase else [first, highest, final])

    def momentum(self, low=0.85, high=0.95):
        """Returns the schedule of the momentum that goes with the rate: low at the rate's peak, high at both ends.

        It falls from `high` to `low` while the rate rises, comes back while the rate falls, and stays at `high` in a
        third phase; the same as that of torch's OneCycleLR. Pass it to `nnopt.optimizers.SGD` as `momentum`, or to
        `nnopt.optimizers.AdamW` as `beta_1`.

        Args:
            low: Momentum at the peak of the rate, in [0, 1).
            high: Momentum at both ends, in [low, 1).

        Returns:
            A `OneCycleMomentum`.

        Example:

        >>> momentum = OneCycle(1.0, total_steps=9, pct_start=1 / 3, anneal="linear").momentum(0.5, 0.75)
        >>> [round(float(momentum(step)), 3) for step in range(9)]
        [0.75, 0.625, 0.5, 0.542, 0.583, 0.625, 0.667, 0.708, 0.75]
        """
        return OneCycleMomentum(self, low, high)

    def _curve(self, step, levels):
        """Passes from level to level, one more than there are phases."""
        peak, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        knots = [0, peak, 2 * peak, last] if self.three_phase else [0, peak, last]
        step = ops.minimum(step, last)
        value = ops.full_like(step, levels[-1], dtype="float32")
        for phase in reversed([*zip(knots, knots[1:], levels, levels[1:])]):
            value = ops.where(step <= math.floor(phase[1]), self._phase(step, *phase), value)
        return value

    def _phase(self, step, start, end, first, final):
        """Seen from the lower of its two levels: a sum of positive terms, so that small rates keep their digits."""
        if end <= start:
            return final
        anchor, sign = (start, 1) if first <= final else (end, -1)
        # Whole steps first: their difference is exact, whatever the size of the step.
        distance = ops.cast(sign * (step - math.floor(anchor)), "float32") - sign * (anchor % 1)
        share = distance / (end - start)
        if self.anneal == "cos":
            # (1 - cos(pi x)) / 2, without the cancellation that would blur the small rates at the end.
            share = ops.square(ops.sin(math.pi / 2 * share))
        return min(first, final) + abs(final - first) * share


@keras.saving.register_keras_serializable("nnopt")
class OneCycleMomentum(_Schedule):
    """The momentum that goes with a `OneCycle`, as its method `momentum` returns it.

    Args:
        cycle: A OneCycle.
        low: Momentum at the peak of the rate, in [0, 1).
        high: Momentum at both ends, in [low, 1).

    Returns (when called with a step, or an array of steps): the momentum, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.
    """

    _arguments = ("cycle", "low", "high")

    def __init__(self, cycle, low=0.85, high=0.95):
        self.cycle = check_instance("cycle", cycle, OneCycle, "a OneCycle")
        self.low = check_number("low", low, at_least=0, below=1)
        self.high = check_number("high", high, at_least=self.low, below=1)

    def _rate(self, step):
        ends = [self.high, self.high] if self.cycle.three_phase else [self.high]
        return self.cycle._curve(step, [self.high, self.low, *ends])


@keras.saving.register_keras_serializable("nnopt")
class Warmup(_Schedule):
    """Puts a linear rise in front of a schedule, which then follows whole: it sees its own step 0 at `warmup_steps`.

        rate(t) = initial_learning_rate + (schedule(0) - initial_learning_rate) * t / warmup_steps,    t < warmup_steps
        rate(t) = schedule(t - warmup_steps),                                                          t >= warmup_steps

    Args:
        schedule: Any `keras.optimizers.schedules.LearningRateSchedule`, or a number > 0 for a constant rate.
        warmup_steps: Steps before the schedule begins, an integer >= 0 (0: none).
        initial_learning_rate: Rate at step 0, >= 0. With the default 0 the first update changes nothing.

    Returns (when called with a step, or an array of steps): the rate, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> schedule = Warmup(StepDecay(1.0, milestones=[2], decay_rate=0.5), warmup_steps=4)
    >>> [float(schedule(step)) for step in range(8)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]

    Reference: P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.

    Others: `optax.join_schedules([linear_schedule(initial, peak, warmup_steps), schedule], [warmup_steps])` is the
    same; torch's `SequentialLR` of a `LinearLR` and a schedule, too, but it cannot start from 0. Keras warms up only
    `CosineDecay`, by its `warmup_target` and `warmup_steps`, and there too the decay follows whole.
    `optax.warmup_cosine_decay_schedule` counts the warm-up as part of its `decay_steps`.
    """

    _arguments = ("schedule", "warmup_steps", "initial_learning_rate")

    def __init__(self, schedule, warmup_steps, initial_learning_rate=0.0):
        self.schedule = _check_part("schedule", schedule)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, at_least=0, at_most=LARGEST_STEP)
        self.initial_learning_rate = _check_rate("initial_learning_rate", initial_learning_rate, zero=True)

    def _rate(self, step):
        following = _evaluate(self.schedule, ops.maximum(step - self.warmup_steps, 0))
        if self.warmup_steps == 0:
            return following
        done = ops.minimum(step, self.warmup_steps)
        left = self.warmup_steps - done
        rise = following * ops.cast(done, "float32") + self.initial_learning_rate * ops.cast(left, "float32")
        return rise / self.warmup_steps


@keras.saving.register_keras_serializable("nnopt")
class Chain(_Schedule):
    """Runs schedules one after the other; each sees its own steps, from 0.

        rate(t) = schedule_k(t - start_k)  for  start_k <= t < start_{k+1},  where start_{k+1} = start_k + steps_k

    Args:
        parts: A list [(schedule, steps), ..., schedule]: each schedule with the number of steps it runs (an integer
            >= 1), but the last one, which runs on. A schedule is any
            `keras.optimizers.schedules.LearningRateSchedule`, or a number > 0 for a constant rate.

    Returns (when called with a step, or an array of steps): the rate, float32, in the shape of the step.

    Raises:
        TypeError, ValueError: `parts` is no such list, or a part is of the wrong type or out of its range.

    Example:

    >>> schedule = Chain([(0.5, 2), (ExponentialDecay(1.0, decay_steps=1, decay_rate=0.5), 3), 0.125])
    >>> [float(schedule(step)) for step in range(7)]
    [0.5, 0.5, 1.0, 0.5, 0.25, 0.125, 0.125]

    Reference: I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, section 3, is
    such a chain of equal parts.

    Others: `optax.join_schedules(schedules, boundaries)` and torch's `SequentialLR(schedulers, milestones)` take the
    sums of the steps in place of the steps; fastai's `combine_scheds` takes shares of the training. Keras has none.
    """

    _arguments = ("parts",)

    def __init__(self, parts):
        self.parts = _check_parts(parts)

    def _rate(self, step):
        start = 0
        rate = _evaluate(self.parts[0] if len(self.parts) == 1 else self.parts[0][0], step)
        for (_, steps), part in zip(self.parts, self.parts[1:]):
            start += steps
            schedule = part[0] if isinstance(part, tuple) else part
            rate = ops.where(step >= start, _evaluate(schedule, ops.maximum(step - start, 0)), rate)
        return rate


def _power(log_base, exponent):
    """Returns exp(log_base * exponent), for log_base <= 0 and integers in 0 ... 2**31 - 1, to 5e-7 relative.

    One product in float32 would be off by 2**-24 of a possibly large exponent, and a compiler may merge exponentials of
    its parts into one. So the power is the product of four numbers looked up by the exponent's bytes.
    """
    places = 256 ** np.arange(4)
    powers = np.exp(log_base * np.outer(places, np.arange(256))).astype("float32")  # (places, values of a byte)
    exponent = ops.expand_dims(ops.minimum(exponent, LARGEST_STEP), -1)
    places, rows = (ops.convert_to_tensor(numbers, exponent.dtype) for numbers in (places, 256 * np.arange(4)))
    return ops.prod(ops.take(ops.convert_to_tensor(powers.ravel()), exponent // places % 256 + rows), axis=-1)


def _integer_tensor(step):
    step = ops.convert_to_tensor(step)
    dtype = keras.backend.standardize_dtype(step.dtype)
    if "int" not in dtype:
        raise TypeError(f"`step` must be an integer or an array of integers. Received: step={step!r} (of type {dtype})")
    return step if dtype in ("int32", "int64") else ops.cast(step, "int64" if dtype[-2:] in ("32", "64") else "int32")


def _evaluate(schedule, step):
    if isinstance(schedule, float):
        return ops.full_like(step, schedule, dtype="float32")
    return ops.cast(schedule(step), "float32")


def _serialize(value):
    """What JSON can hold: schedules by their class and config, also in the lists of a chain."""
    if isinstance(value, (list, tuple)):
        return [_serialize(item) for item in value]
    is_schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    return keras.saving.serialize_keras_object(value) if is_schedule else value


def _deserialize(value):
    if isinstance(value, (list, tuple)):
        return [_deserialize(item) for item in value]
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value


def _check_rate(name, value, zero=False):
    bound = {"at_least": 0} if zero else {"above": 0}
    return check_number(name, value, at_most=LARGEST_RATE, **bound)


def check_schedule(name, value, **bounds):
    """Returns a schedule as it is, and a number within the bounds of `check_number` as a float."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    try:
        return check_number(name, value, **bounds)
    except TypeError as error:
        message = str(error).replace("must be a", "must be a keras.optimizers.schedules.LearningRateSchedule or a", 1)
        raise TypeError(message) from None


def _check_part(name, value):
    return check_schedule(name, value, above=0, at_most=LARGEST_RATE)


def _check_milestones(milestones):
    if isinstance(milestones, numbers.Integral):
        return check_integer("milestones", milestones, at_least=1, at_most=LARGEST_STEP)
    rule = "`milestones` must be strictly increasing integers >= 1, at least one, or one integer."
    steps = [
        check_integer(f"milestones[{index}]", step, at_least=1, at_most=LARGEST_STEP)
        for index, step in enumerate(_listed("milestones", milestones, rule))
    ]
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"{rule} Received: milestones={milestones!r}")
    return steps


def _check_parts(parts):
    rule = "`parts` must be a list [(schedule, steps), ..., schedule]."
    *timed, last = _listed("parts", parts, rule)
    result = []
    for index, part in enumerate(timed):
        if not isinstance(part, (list, tuple)) or len(part) != 2:
            raise TypeError(f"{rule} Received: parts[{index}]={part!r}")
        steps = check_integer(f"parts[{index}][1]", part[1], at_least=1, at_most=LARGEST_STEP)
        result.append((_check_part(f"parts[{index}][0]", part[0]), steps))
    if sum(steps for _, steps in result) > LARGEST_STEP:
        raise ValueError(f"The steps of `parts` must sum to at most {LARGEST_STEP}. Received: parts={parts!r}")
    return [*result, _check_part(f"parts[{len(timed)}]", last)]


def _listed(name, values, rule):
    """Returns the list of what is one, a tuple, a range or a NumPy array; not of a string or a set."""
    result = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(result, (list, tuple, range)):
        raise TypeError(f"{rule} Received: {name}={values!r} (of type {type(values).__name__})")
    if not result:
        raise ValueError(f"{rule} Received: {name}={values!r}")
    return list(result)
