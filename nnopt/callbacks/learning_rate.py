"""Learning rates set from outside the optimizer, by its own count of steps."""

import warnings

import keras
import numpy as np
from keras import ops

from nnopt import schedules
from nnopt.checks import check_boolean, check_integer, check_number

# Steps for which a curve is evaluated at once: one call of the schedule in a thousand batches costs next to nothing.
BLOCK = 1024


class _RateCallback(keras.callbacks.Callback):
    """What the four curves share: the schedule, the clock, and the way the rate gets into the optimizer."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        self._rates = _Table(schedule)

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        if hasattr(optimizer, "optimizers"):
            raise ValueError(
                f"{type(self).__name__} sets the rate of one optimizer; the model has several. "
                f"Received: optimizer={optimizer!r}"
            )
        if not isinstance(optimizer.learning_rate, keras.Variable):
            raise ValueError(
                f"{type(self).__name__} needs an optimizer compiled with a number as its learning rate, since "
                "a schedule inside the optimizer cannot be overruled from outside. Compile with, say, "
                "`learning_rate=0.01`, or leave this callback out and compile with the schedule of "
                f"nnopt.schedules. Received: optimizer={optimizer!r}"
            )
        self._iteration = _iteration(optimizer)
        self._rate = optimizer.learning_rate
        self._micro_steps = getattr(_inner(optimizer), "gradient_accumulation_steps", None) or 1

    def _batches(self):
        """Batches seen by the optimizer: the clock. Reading `self.model` brings JAX's state up to date."""
        _ = self.model
        return _count(self._iteration)


class _EpochRate(_RateCallback):
    """A rate for each epoch.

    Keras numbers the epochs of each `fit` anew. The epoch meant here is the first one's, found from the clock, plus the
    epochs since.
    """

    def __init__(self, schedule, steps_per_epoch):
        super().__init__(schedule)
        if steps_per_epoch is not None:
            steps_per_epoch = check_integer("steps_per_epoch", steps_per_epoch, at_least=1)
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0
        # Where the clock stood when that many epochs were done: lets a second fit begin where the first one ended.
        self._reached = (0, 0)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._shift = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._shift is None:
            self._shift = self._first_epoch() - epoch
        self.epoch = epoch + self._shift
        _assign(self._rate, self._rates(self.epoch))

    def on_epoch_end(self, epoch, logs=None):
        self._reached = (self._batches(), self.epoch + 1)
        if logs is not None:
            logs["learning_rate"] = self._rates(self.epoch)

    def get_state(self):
        """Returns the epoch in which the clock stands."""
        batches = self._batches()
        return {"batches": batches, "epoch": self._reached[1] if batches == self._reached[0] else self.epoch}

    def set_state(self, state):
        """Takes back what `get_state` returned."""
        self._reached = (state["batches"], state["epoch"])

    def _first_epoch(self):
        batches = self._batches()
        if batches == 0:
            return 0
        if batches == self._reached[0]:
            return self._reached[1]
        steps = self.steps_per_epoch or (self.params or {}).get("steps")
        if not steps:
            raise ValueError(
                f"{type(self).__name__} cannot tell which epoch this is: the optimizer has made {batches} "
                "steps, and the data set does not say how many batches it has. Pass steps_per_epoch, or the "
                f"same callback as to the first fit. Received: steps_per_epoch={self.steps_per_epoch}"
            )
        return batches // steps


class StepDecayLR(_EpochRate):
    """Multiplies the rate by `decay_rate` at each milestone, counted in epochs.

        rate(epoch) = initial_learning_rate * decay_rate ** (number of milestones <= epoch)

    The curve is `nnopt.schedules.StepDecay`, taken at the epoch. Epochs count from the first step of the optimizer: a
    second `fit` goes on where the first one ended. With data of another size in between, pass the same callback object
    to both, which knows how many epochs there were; otherwise they are the optimizer's steps divided by the batches
    of an epoch.

    Args:
        initial_learning_rate: Rate before the first milestone, > 0.
        milestones: Epochs (from 0) at which the rate drops, a list of strictly increasing integers >= 1; or one integer
            n for n, 2n, 3n, ...
        decay_rate: Factor of each drop, in (0, 1].
        steps_per_epoch: Batches of an epoch. Needed only where neither the data nor this callback know: in a second
            `fit`, by another callback object, on data of unknown size.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`, the optimizer was
            compiled with a schedule.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), loss="mse")
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=3, verbose=0,
    ...                     callbacks=[StepDecayLR(0.5, milestones=[2], decay_rate=0.5)])
    >>> history.history["learning_rate"]
    [0.5, 0.5, 0.25]

    Reference: Y. Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.1; K. He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """

    def __init__(self, initial_learning_rate, milestones, decay_rate, steps_per_epoch=None):
        super().__init__(schedules.StepDecay(initial_learning_rate, milestones, decay_rate), steps_per_epoch)


class ExponentialDecayLR(_EpochRate):
    """Shrinks the rate by the factor `decay_rate` every `decay_epochs` epochs; it changes between epochs, not within.

        rate(epoch) = initial_learning_rate * decay_rate ** (epoch / decay_epochs)
        rate(epoch) = initial_learning_rate * decay_rate ** floor(epoch / decay_epochs)      with staircase=True

    The curve is `nnopt.schedules.ExponentialDecay`, taken at the epoch. Epochs are counted as in `StepDecayLR`.

    Args:
        initial_learning_rate: Rate of epoch 0, > 0.
        decay_epochs: Epochs for one factor of `decay_rate`, an integer >= 1.
        decay_rate: The factor, in (0, 1].
        staircase: Whether the rate falls only at multiples of `decay_epochs`.
        steps_per_epoch: As in `StepDecayLR`.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`, the optimizer was
            compiled with a schedule.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), loss="mse")
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=3, verbose=0,
    ...                     callbacks=[ExponentialDecayLR(0.5, decay_epochs=1, decay_rate=0.5)])
    >>> history.history["learning_rate"]
    [0.5, 0.25, 0.125]

    Reference: Y. Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.1.
    """

    def __init__(self, initial_learning_rate, decay_epochs, decay_rate, staircase=False, steps_per_epoch=None):
        decay_epochs = check_integer("decay_epochs", decay_epochs, at_least=1, at_most=schedules.LARGEST_STEP)
        curve = schedules.ExponentialDecay(initial_learning_rate, decay_epochs, decay_rate, staircase)
        super().__init__(curve, steps_per_epoch)


class _StepRate(_RateCallback):
    """A rate for each update of the weights, set before the batch."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        steps = self.model.steps_per_execution
        if steps > 1:
            warnings.warn(
                f"{type(self).__name__} can set the rate only once per execution, every {steps} batches, and holds "
                "it in between. For the exact curve compile with the schedule of nnopt.schedules, or with "
                f"steps_per_execution=1. Received: steps_per_execution={steps}",
                stacklevel=2,
            )

    def on_train_batch_begin(self, batch, logs=None):
        self._apply(self._batches() // self._micro_steps)

    def on_epoch_end(self, epoch, logs=None):
        # The last update's, which a resumed epoch must report alike, wherever it was taken up again.
        last = max(self._batches() - 1, 0) // self._micro_steps
        if logs is not None:
            logs.update(self._report(last))

    def _apply(self, step):
        _assign(self._rate, self._rates(step))

    def _report(self, step):
        return {"learning_rate": self._rates(step)}


class CyclicalLR(_StepRate):
    """Lets the rate rise and fall in triangles: `nnopt.schedules.CyclicalLearningRate`, set from outside.

    Steps are updates of the weights, `optimizer.iterations`: with `gradient_accumulation_steps=n`, n batches are one
    step (a schedule inside the optimizer counts batches instead). With `steps_per_execution` > 1 the rate is held for
    that many batches, and a warning says so.

    Args:
        initial_learning_rate: Lower bound, the rate at step 0, >= 0.
        maximal_learning_rate: Upper bound, the rate at step `step_size`, >= initial_learning_rate.
        step_size: Steps of half a cycle, an integer >= 1.
        mode: "triangular", "triangular2" (each triangle is half as high as the one before) or "exp_range".
        gamma: Base of the decay in the mode "exp_range", in (0, 1].

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`, the optimizer was
            compiled with a schedule.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), loss="mse")
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=5, verbose=0,
    ...                     callbacks=[CyclicalLR(0.25, 0.75, step_size=2)])
    >>> history.history["learning_rate"]
    [0.25, 0.5, 0.75, 0.5, 0.25]

    Reference: L. N. Smith, "Cyclical learning rates for training neural networks", 2017, section 3.2.
    """

    def __init__(self, initial_learning_rate, maximal_learning_rate, step_size, mode="triangular", gamma=1.0):
        super().__init__(
            schedules.CyclicalLearningRate(initial_learning_rate, maximal_learning_rate, step_size, mode, gamma)
        )


class OneCycleLR(_StepRate):
    """Takes the rate up and down once, and the momentum the other way: `nnopt.schedules.OneCycle`, set from outside.

    Momentum falls from `max_momentum` to `base_momentum` while the rate rises and comes back with it. It is `momentum`
    of SGD, RMSprop and Muon, `beta_1` of Adam, AdamW, Adamax, Nadam, Lamb and Lion. A compiled training step has the
    number built in, and would ignore a new one: on TensorFlow and JAX it is therefore replaced by a variable while
    `fit` runs, and the step is compiled anew; afterwards the optimizer is as it was. (After an exception the variable
    stays until the next `fit` with this callback has ended.) What cannot take effect raises ValueError. Steps are
    counted as in `CyclicalLR`; past `total_steps` both stay at their final values, so that a second cycle needs a new
    `compile`.

    Args:
        maximal_learning_rate: The highest rate, > 0.
        total_steps: Steps of the whole training (epochs * batches of an epoch), an integer >= 1.
        pct_start: Share of the steps in which the rate rises, in [0, 1].
        div_factor: Maximal rate / first rate, >= 1.
        final_div_factor: First rate / final rate.
        anneal: "cos" or "linear".
        three_phase: Whether the rate first comes down as it went up and then falls to its final value.
        cycle_momentum: Whether to cycle the momentum. The default is that of the method and of torch: True.
        base_momentum: Momentum at the peak of the rate, in (0, 1).
        max_momentum: Momentum at both ends, in [base_momentum, 1).

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`, the optimizer was
            compiled with a schedule, or its momentum cannot be cycled.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1, momentum=0.5), loss="mse")
    >>> cycle = OneCycleLR(0.5, total_steps=5, pct_start=0.4, div_factor=4, final_div_factor=0.5, anneal="linear")
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=5, verbose=0, callbacks=[cycle])
    >>> [round(rate, 4) for rate in history.history["learning_rate"]]
    [0.125, 0.5, 0.4167, 0.3333, 0.25]
    >>> [round(momentum, 4) for momentum in history.history["momentum"]]
    [0.95, 0.85, 0.8833, 0.9167, 0.95]
    >>> model.optimizer.momentum
    0.5

    Reference: L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2019, section 3; L. N. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018,
    section 4.3.
    """

    def __init__(
        self,
        maximal_learning_rate,
        total_steps,
        pct_start=0.3,
        div_factor=25.0,
        final_div_factor=1e4,
        anneal="cos",
        three_phase=False,
        cycle_momentum=True,
        base_momentum=0.85,
        max_momentum=0.95,
    ):
        curve = schedules.OneCycle(
            maximal_learning_rate, total_steps, pct_start, div_factor, final_div_factor, anneal, three_phase
        )
        super().__init__(curve)
        self.cycle_momentum = check_boolean("cycle_momentum", cycle_momentum)
        self.base_momentum = check_number("base_momentum", base_momentum, above=0, below=1)
        self.max_momentum = check_number("max_momentum", max_momentum, at_least=self.base_momentum, below=1)
        self._momenta = _Table(lambda step: curve.momentum(step, self.base_momentum, self.max_momentum))
        self._cycled = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if self.cycle_momentum:
            self._cycled = _CycledMomentum(self.model)

    def on_train_end(self, logs=None):
        if self._cycled is not None:
            self._cycled.release(self.model)
            self._cycled = None

    def _apply(self, step):
        super()._apply(step)
        if self._cycled is not None:
            self._cycled.assign(self._momenta(step))

    def _report(self, step):
        momentum = {"momentum": self._momenta(step)} if self.cycle_momentum else {}
        return {**super()._report(step), **momentum}


class _Table:
    """A curve's values, evaluated for a block of steps at once: the schedule stays the one definition of the curve."""

    def __init__(self, curve):
        self._curve = curve
        self._first = 0
        self._values = ()

    def __call__(self, step):
        if not 0 <= step - self._first < len(self._values):
            self._first = step
            self._values = ops.convert_to_numpy(self._curve(np.arange(step, step + BLOCK))).tolist()
        return self._values[step - self._first]


def _count(variable):
    """Returns a counter's value as an int."""
    if tensorflow := _tensorflow_of(variable):
        value = variable.value
        return int(tensorflow.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype))
    return int(variable.value)


def _assign(variable, value):
    if tensorflow := _tensorflow_of(variable):
        tensor = tensorflow.constant(value, variable.value.dtype)
        tensorflow.raw_ops.AssignVariableOp(resource=variable.value.handle, value=tensor)
    else:
        variable.assign(value)


def _tensorflow_of(variable):
    """Returns TensorFlow where its own operations can be used: half of Keras' time, in a place before every batch."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow

    return None if isinstance(variable.value, tensorflow.distribute.DistributedValues) else tensorflow


def _inner(optimizer):
    """The optimizer inside a LossScaleOptimizer, or the optimizer itself."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _iteration(optimizer):
    """The variable that counts batches. `optimizer.iterations` is a tensor, not it, under gradient accumulation."""
    return next(variable for variable in _inner(optimizer).variables if variable.name == "iteration")


class _MomentumVariable(keras.Variable):
    """A momentum that a compiled training step reads anew each time.

    Optimizers ask `momentum != 0` or `momentum > 0` in Python, while they are traced, to see whether they have slots
    for
    it: the answer is yes, a cycle is never at 0.
    """

    __hash__ = keras.Variable.__hash__

    def __ne__(self, other):
        return True

    def __gt__(self, other):
        return True


# Where the optimizers keep it. Others may use a number only while they are built or traced.
_MOMENTUM = {
    **dict.fromkeys(("SGD", "RMSprop", "Muon"), "momentum"),
    **dict.fromkeys(("Adam", "AdamW", "Adamax", "Nadam", "Lamb", "Lion"), "beta_1"),
}


class _CycledMomentum:
    """Replaces the momentum of a model's optimizer by one that can be changed during `fit`."""

    def __init__(self, model):
        self._optimizer = optimizer = _inner(model.optimizer)
        self._name = self._check(model, optimizer)
        value = getattr(optimizer, self._name)
        self._variable = value if isinstance(value, _MomentumVariable) else None
        # After a `fit` that failed the value is one of the cycle; the config tells what the optimizer was made with.
        self._original = optimizer.get_config()[self._name]
        # torch calls the optimizer anew at every step, and its fast path wants a number.
        if keras.backend.backend() != "torch" and self._variable is None:
            self._variable = _MomentumVariable(self._original, trainable=False, name=self._name)
            setattr(optimizer, self._name, self._variable)
        self._hide()
        if self._variable is not None:
            model.make_train_function(force=True)

    def assign(self, value):
        if self._variable is None:
            setattr(self._optimizer, self._name, value)
        else:
            _assign(self._variable, value)

    def release(self, model):
        optimizer = self._optimizer
        if self._variable is not None:
            # Keras has no public way to take a variable out of an optimizer, and saved slots would not fit with it in.
            optimizer._untrack_variable(self._variable)
            model.train_function = None
        setattr(optimizer, self._name, self._original)
        del optimizer.get_config, optimizer.save_own_variables

    def _check(self, model, optimizer):
        name = _MOMENTUM.get(type(optimizer).__name__)
        reason = None
        if name is None or not type(optimizer).__module__.startswith("keras."):
            reason = f"of {type(optimizer).__name__} is not known to take effect"
        elif name == "momentum" and not isinstance(optimizer.momentum, _MomentumVariable) and not optimizer.momentum:
            reason = f"needs a {type(optimizer).__name__} compiled with momentum > 0: with 0 it has no slots for it"
        elif keras.backend.backend() == "torch" and model.jit_compile and not model.run_eagerly:
            reason = "would not reach a step compiled by torch (jit_compile=True)"
        if reason:
            raise ValueError(
                f"Cycling the momentum {reason}. Pass cycle_momentum=False, or change what is named. "
                f"Received: cycle_momentum=True, optimizer={type(optimizer).__name__}"
            )
        return name

    def _hide(self):
        """A model saved during `fit` must hold the number it was compiled with, and no extra variable."""
        optimizer, kind = self._optimizer, type(self._optimizer)

        def get_config():
            return {**kind.get_config(optimizer), self._name: self._original}

        def save_own_variables(store):
            for index, variable in enumerate(_own_variables(optimizer)):
                store[str(index)] = variable.numpy()

        optimizer.get_config = get_config
        optimizer.save_own_variables = save_own_variables


def _own_variables(optimizer):
    return [variable for variable in optimizer.variables if not isinstance(variable, _MomentumVariable)]
