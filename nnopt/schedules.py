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

from nnopt.checks import check_boolean, check_choice, check_integer, check_number

# JAX counts in int32, and a rate has to fit into float32.
LARGEST_STEP = 2**31 - 1
LARGEST_RATE = 3e38


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """What all schedules share: the step as an integer tensor, the arguments as attributes of the same name."""

    _arguments = ()

    def __call__(self, step):
        return self._rate(_integer_tensor(step))

    def get_config(self):
        return {name: getattr(self, name) for name in self._arguments}

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
        if isinstance(self.milestones, int):
            self._decay = _IntegerPowers(math.log(self.decay_rate))
        else:
            drops = np.arange(1, len(self.milestones) + 1, dtype="float64")
            self._rates = (self.initial_learning_rate * self.decay_rate**drops).astype("float32")

    def _rate(self, step):
        if isinstance(self.milestones, int):
            return _float32(self.initial_learning_rate) * self._decay(step // self.milestones)
        reached = ops.expand_dims(step, -1) >= ops.convert_to_tensor(self.milestones, step.dtype)  # (..., milestones)
        return ops.min(ops.where(reached, self._rates, _float32(self.initial_learning_rate)), axis=-1)


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
        self._decay = _IntegerPowers(math.log(self.decay_rate) / (1 if staircase else self.decay_steps))

    def _rate(self, step):
        count = step // self.decay_steps if self.staircase else step
        return _float32(self.initial_learning_rate) * self._decay(count)


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
        self._scale = _IntegerPowers(-math.log(2) if mode == "triangular2" else math.log(self.gamma))

    def _rate(self, step):
        half = self.step_size
        height = ops.cast(half - ops.abs(step % (2 * half) - half), "float32") / _float32(half)
        if self.mode == "triangular2":
            height = height * self._scale(step // (2 * half))
        elif self.mode == "exp_range":
            height = height * self._scale(step)
        span = self.maximal_learning_rate - self.initial_learning_rate
        return _float32(self.initial_learning_rate) + _float32(span) * height


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

    def momentum(self, step, base_momentum=0.85, max_momentum=0.95):
        """Returns the momentum that goes with the rate: highest where the rate is low, lowest at the rate's peak.

        It passes from `max_momentum` to `base_momentum` while the rate rises, back while it falls, and stays there in a
        third phase; on the same curve, and equal to that of torch's OneCycleLR.

        Args:
            step: Integer, or an array of integers.
            base_momentum: Momentum at the peak of the rate, in [0, 1).
            max_momentum: Momentum at both ends, in [base_momentum, 1).

        Returns:
            The momentum, float32, in the shape of `step`.

        Example:

        >>> schedule = OneCycle(1.0, total_steps=9, pct_start=1 / 3, anneal="linear")
        >>> [round(float(schedule.momentum(step, 0.5, 0.75)), 3) for step in range(9)]
        [0.75, 0.625, 0.5, 0.542, 0.583, 0.625, 0.667, 0.708, 0.75]
        """
        low = check_number("base_momentum", base_momentum, at_least=0, below=1)
        high = check_number("max_momentum", max_momentum, at_least=low, below=1)
        levels = [high, low, high, high] if self.three_phase else [high, low, high]
        return self._curve(_integer_tensor(step), levels)

    def _curve(self, step, levels):
        """Passes through `levels`, one more than there are phases, at the ends of the phases."""
        peak = self.pct_start * self.total_steps - 1
        last = self.total_steps - 1
        knots = [0.0, peak, 2 * self.pct_start * self.total_steps - 2, last] if self.three_phase else [0.0, peak, last]
        phases = [_phase(*ends) for ends in zip(knots[:-1], knots[1:], levels[:-1], levels[1:])]
        step = ops.minimum(step, last)
        passed = [step > math.floor(knot) for knot in knots[1:-1]]

        # Whole steps first: their difference is exact, whatever the size of the step.
        anchor, sign, offset, length, low, span = zip(*phases)
        whole = _select(passed, [step - a if s > 0 else a - step for a, s in zip(anchor, sign)])
        share = (ops.cast(whole, "float32") + _pick(passed, offset)) / _pick(passed, length)
        if self.anneal == "cos":
            # (1 - cos(pi x)) / 2, without the cancellation that would blur the small rates at the end.
            share = ops.square(ops.sin(share * _float32(math.pi / 2)))
        return _pick(passed, low) + _pick(passed, span) * share


def _phase(start, end, first, last):
    """Returns how to get from `first` (at step `start`) to `last` (at step `end`), seen from the lower of the two.

    The curve is low + span * shape(share), share = ((step - anchor) * sign + offset) / length: a sum of positive terms,
    so that small rates keep their digits.
    """
    if end <= start:
        return 0, 1, 0.0, 1.0, last, 0.0
    rises = first <= last
    zero, sign = (start, 1) if rises else (end, -1)
    anchor = math.floor(zero)
    return anchor, sign, sign * (anchor - zero), end - start, min(first, last), abs(first - last)


def _pick(passed, values):
    """Returns the constant of the phase a step lies in, float32."""
    return _float32(values[0]) if len(set(values)) == 1 else _select(passed, [_float32(value) for value in values])


def _select(passed, values):
    """Returns the first value, or the one after the last knot passed."""
    result = values[0]
    for mask, value in zip(passed, values[1:]):
        result = ops.where(mask, value, result)
    return result


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
        self.schedule = _check_schedule("schedule", schedule)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, at_least=0, at_most=LARGEST_STEP)
        self.initial_learning_rate = _check_rate("initial_learning_rate", initial_learning_rate, zero=True)

    def _rate(self, step):
        following = _evaluate(self.schedule, ops.maximum(step - self.warmup_steps, 0))
        if self.warmup_steps == 0:
            return following
        done = ops.minimum(step, self.warmup_steps)
        length = _float32(self.warmup_steps)
        rate = following * (ops.cast(done, "float32") / length)
        if self.initial_learning_rate == 0:
            return rate
        left = ops.cast(self.warmup_steps - done, "float32") / length
        return rate + _float32(self.initial_learning_rate) * left

    def get_config(self):
        return {**super().get_config(), "schedule": _serialize(self.schedule)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": _deserialize(config["schedule"])})


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
        rates, passed = [], []
        for schedule, steps in [*self.parts[:-1], (self.parts[-1], None)]:
            rates.append(_evaluate(schedule, ops.maximum(step - start, 0)))
            if steps is not None:
                start += steps
                passed.append(step >= start)
        return _select(passed, rates)

    def get_config(self):
        *timed, last = self.parts
        return {"parts": [*([_serialize(schedule), steps] for schedule, steps in timed), _serialize(last)]}

    @classmethod
    def from_config(cls, config):
        *timed, last = config["parts"]
        return cls([*((_deserialize(schedule), steps) for schedule, steps in timed), _deserialize(last)])


class _IntegerPowers:
    """exp(log_base * n) for integers n >= 0 and log_base <= 0, to a few units of float32's last place.

    `pow` in float32 would be wrong by 0.2 % at 0.9999**100000: rounding the base alone does that. So the powers come
    from float64 tables, one for each digit of n in the number system of base 2**11; no more digits than it takes until
    the power is zero in float32.
    """

    def __init__(self, log_base):
        # exp(-104) is less than half of float32's smallest number.
        self.largest = LARGEST_STEP if log_base > -104 / LARGEST_STEP else math.ceil(-104 / log_base)
        places = 2 ** np.arange(0, self.largest.bit_length(), 11, dtype="float64")
        digits = np.arange(2**11, dtype="float64")
        self.tables = [np.exp(log_base * digits * place).astype("float32") for place in places]

    def __call__(self, n):
        n = ops.minimum(n, self.largest)
        result = 1.0
        for table in self.tables[:-1]:
            result = result * ops.take(table, n % 2**11)
            n = n // 2**11
        return result * ops.take(self.tables[-1], n)


def _integer_tensor(step):
    step = ops.convert_to_tensor(step)
    dtype = keras.backend.standardize_dtype(step.dtype)
    if "int" not in dtype:
        raise TypeError(f"`step` must be an integer or an array of integers. Received: step={step!r} (of type {dtype})")
    return step if dtype in ("int32", "int64") else ops.cast(step, "int64" if dtype[-2:] in ("32", "64") else "int32")


def _float32(value):
    return ops.convert_to_tensor(value, "float32")


def _evaluate(schedule, step):
    if isinstance(schedule, float):
        return ops.full_like(step, schedule, dtype="float32")
    return ops.cast(schedule(step), "float32")


def _serialize(schedule):
    return schedule if isinstance(schedule, float) else keras.saving.serialize_keras_object(schedule)


def _deserialize(schedule):
    return keras.saving.deserialize_keras_object(schedule) if isinstance(schedule, dict) else schedule


def _check_rate(name, value, zero=False):
    bound = {"at_least": 0} if zero else {"above": 0}
    return check_number(name, value, at_most=LARGEST_RATE, **bound)


def _check_schedule(name, value):
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    try:
        return _check_rate(name, value)
    except TypeError:
        rule = "a keras.optimizers.schedules.LearningRateSchedule or a number > 0"
        message = f"`{name}` must be {rule}. Received: {name}={value!r} (of type {type(value).__name__})"
        raise TypeError(message) from None


def _check_milestones(milestones):
    rule = "`milestones` must be a list of strictly increasing integers, not empty, or one integer."
    if isinstance(milestones, numbers.Integral):
        return check_integer("milestones", milestones, at_least=1, at_most=LARGEST_STEP)
    if not isinstance(milestones, (list, tuple)):
        raise TypeError(f"{rule} Received: milestones={milestones!r} (of type {type(milestones).__name__})")
    result = [
        check_integer(f"milestones[{index}]", step, at_least=1, at_most=LARGEST_STEP)
        for index, step in enumerate(milestones)
    ]
    if not result or any(later <= earlier for earlier, later in itertools.pairwise(result)):
        raise ValueError(f"{rule} Received: milestones={milestones!r}")
    return result


def _check_parts(parts):
    rule = "`parts` must be a list [(schedule, steps), ..., schedule]."
    if not isinstance(parts, (list, tuple)):
        raise TypeError(f"{rule} Received: parts={parts!r} (of type {type(parts).__name__})")
    if not parts:
        raise ValueError(f"{rule} Received: parts={parts!r}")
    *timed, last = parts
    for index, part in enumerate(timed):
        if not isinstance(part, (list, tuple)) or len(part) != 2:
            raise TypeError(f"{rule} Received: parts[{index}]={part!r}")
    timed = [
        (
            _check_schedule(f"parts[{index}][0]", schedule),
            check_integer(f"parts[{index}][1]", steps, at_least=1, at_most=LARGEST_STEP),
        )
        for index, (schedule, steps) in enumerate(timed)
    ]
    total = sum(steps for _, steps in timed)
    if total > LARGEST_STEP:
        raise ValueError(f"The steps of `parts` must sum to at most {LARGEST_STEP}. Received: parts={parts!r}")
    return [*timed, _check_schedule(f"parts[{len(timed)}]", last)]
