"""Callbacks: learning rates set from outside, early stopping, training that survives `kill -9`, gradients by layer.

The clock of all of them is the optimizer's own count of steps, never a counter in Python: a second `fit`, a resumed one
or `steps_per_execution` cannot put a curve out of step.

Callbacks that have a state of their own keep it over a restart by two methods that `Resume` calls: `get_state()`
returns a dict of numbers, strings, None, lists, dicts and NumPy arrays, and `set_state(state)`, called after
`on_train_begin`, takes it back.
"""

import inspect
import json
import math
import os
import pathlib
import random
import signal
import threading
import warnings

import keras
import numpy as np
from keras import ops

# The generator behind keras.random without a seed has no public name.
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from nnopt import checkpoints, schedules
from nnopt.checks import check_boolean, check_choice, check_integer, check_number
from nnopt.data.ordered import FollowEpoch

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


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Stops when a metric no longer improves: Keras' own, made safe against NaN, Ctrl-C and a restart.

    - NaN and infinity never become the best value: such an epoch counts as one without improvement.
    - The weights of the best epoch come back at the end, at an early stop and on Ctrl-C. Ctrl-C (SIGINT, also Jupyter's
      stop button) is held back until the batch at hand is done, then the weights are put back and KeyboardInterrupt
      goes on its way; a second Ctrl-C acts at once. A KeyboardInterrupt raised by another callback is noticed as well.
      In what cannot be noticed (`fit` in a thread, an interrupt raised by the data, a SIGINT handler of your own), call
      `restore()` in your `except`.
    - `Resume` keeps its state, best weights included, so that patience is not begun anew by a restart.

    Args:
        monitor: Name of the metric, as in the logs.
        min_delta: Smallest change that counts as an improvement, >= 0.
        patience: Epochs without improvement after which training stops, an integer >= 0.
        verbose: 0 or 1 (reports what it does).
        mode: "min", "max", or "auto": by the metric.
        baseline: Value that has to be beaten for patience to begin anew, or None.
        restore_best_weights: Whether to put back the weights of the best epoch. Unlike Keras', the default is True.
        start_from_epoch: Epochs before the first that counts, an integer >= 0.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(1e30), loss="mse")
    >>> stop = EarlyStopping(monitor="loss", patience=2)
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=9, verbose=0, callbacks=[stop])
    >>> len(history.history["loss"]), stop.best_epoch, bool(np.isfinite(stop.best))
    (3, 0, True)

    Reference: L. Prechelt, "Early stopping - but when?", 1998.
    """

    def __init__(
        self,
        monitor="val_loss",
        min_delta=0,
        patience=0,
        verbose=0,
        mode="auto",
        baseline=None,
        restore_best_weights=True,
        start_from_epoch=0,
    ):
        if not isinstance(monitor, str):
            raise TypeError(
                f"`monitor` must be the name of a metric. Received: monitor={monitor!r} "
                f"(of type {type(monitor).__name__})"
            )
        super().__init__(
            monitor=monitor,
            min_delta=check_number("min_delta", min_delta, at_least=0),
            patience=check_integer("patience", patience, at_least=0),
            verbose=check_integer("verbose", verbose, at_least=0, at_most=1),
            mode=check_choice("mode", mode, ("auto", "min", "max")),
            baseline=None if baseline is None else check_number("baseline", baseline),
            restore_best_weights=check_boolean("restore_best_weights", restore_best_weights),
            start_from_epoch=check_integer("start_from_epoch", start_from_epoch, at_least=0),
        )
        self._interrupted = False
        self._handler = None

    def restore(self):
        """Puts the weights of the best epoch so far into the model; does nothing when there is none."""
        if self.restore_best_weights and self.best_weights is not None:
            self.model.set_weights(self.best_weights)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._interrupted = False
        if self.restore_best_weights:
            self._guard(_callback_list())
            self._hold_back_interrupts()

    def on_epoch_end(self, epoch, logs=None):
        self._raise_if_interrupted()
        current = (logs or {}).get(self.monitor)
        if current is None or math.isfinite(current) or epoch < self.start_from_epoch:
            super().on_epoch_end(epoch, logs)
            return
        self.wait += 1
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_batch_begin(self, batch, logs=None):
        self._raise_if_interrupted()

    def on_test_batch_begin(self, batch, logs=None):
        self._raise_if_interrupted()

    def on_train_end(self, logs=None):
        self._let_interrupts_through()
        super().on_train_end(logs)
        self._raise_if_interrupted()

    def get_state(self):
        """Returns the best value, its epoch and weights, and the patience used up."""
        return {name: getattr(self, name) for name in _STATE_OF_EARLY_STOPPING}

    def set_state(self, state):
        """Takes back what `get_state` returned."""
        for name in _STATE_OF_EARLY_STOPPING:
            setattr(self, name, state[name])

    def _guard(self, callback_list):
        """Callbacks hear of no exception. What another callback raises passes through the list that calls them."""
        if callback_list is None:
            return
        for event in ("epoch", "train_batch", "test_batch"):
            for name in (f"on_{event}_begin", f"on_{event}_end"):
                setattr(callback_list, name, self._guarded(getattr(callback_list, name)))

    def _guarded(self, method):
        def guarded(*arguments, **keywords):
            try:
                return method(*arguments, **keywords)
            except BaseException as error:
                self._let_interrupts_through()
                if isinstance(error, KeyboardInterrupt):
                    self.restore()
                raise

        return guarded

    def _hold_back_interrupts(self):
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        owner = getattr(handler, "__self__", None)
        left_over = isinstance(owner, EarlyStopping) and not owner._trains(inspect.currentframe())
        if handler is signal.default_int_handler or left_over:
            # One object, kept: Python makes a new bound method at every access.
            self._handler = self._interrupt
            signal.signal(signal.SIGINT, self._handler)

    def _let_interrupts_through(self):
        if self._handler is not None and signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._handler = None

    def _interrupt(self, number, frame):
        # After an exception in `fit` this handler may still be in place: it acts only while the model trains.
        if self._interrupted or not self._trains(frame):
            self._let_interrupts_through()
            raise KeyboardInterrupt
        self._interrupted = True

    def _trains(self, frame):
        """Whether a method of the model, `fit` that is, is among the callers."""
        while frame is not None and frame.f_locals.get("self") is not self._model:
            frame = frame.f_back
        return frame is not None

    def _raise_if_interrupted(self):
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt


_STATE_OF_EARLY_STOPPING = ("best", "best_epoch", "best_weights", "wait", "stopped_epoch")

# Keras' own callbacks with a state that decides how training goes on.
_STATES_OF_KERAS = (
    (keras.callbacks.History, ("history", "epoch")),
    (keras.callbacks.EarlyStopping, _STATE_OF_EARLY_STOPPING),
    (keras.callbacks.ReduceLROnPlateau, ("best", "wait", "cooldown_counter")),
    (keras.callbacks.ModelCheckpoint, ("best",)),
)


def _callback_list():
    """The list that `fit` made of its callbacks: one of the callers, as Keras gives callbacks no way to it."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


class Resume(keras.callbacks.Callback):
    """Lets training survive `kill -9`: run the same script again, and it ends with the same weights, bit for bit.

        model.fit(data, epochs=20, shuffle=False, callbacks=[EarlyStopping(), Resume("runs/first", data)])

    A checkpoint holds the variables of model and optimizer (weights, slots, iterations, learning rate, seed
    generators), the states of the random generators of Python, NumPy, Keras and torch, the history, the state of the
    other callbacks, and, within an epoch, the metrics and the number of batches done. It is one file, without pickle,
    with a checksum; it is written under a temporary name, flushed to the disk and renamed, and the one before is kept.
    A damaged file is recognised, renamed to *.corrupt with a warning, and the one before is used. After the last epoch,
    running the script again trains no more. `fit` called again with more epochs goes on where it ended; to start anew,
    delete the folder. Each `fit` of a script needs a folder of its own.

    Bit for bit holds on the same machine and versions, where one uninterrupted run repeats itself (a seed set by
    `keras.utils.set_random_seed`; no stateful random operations of TensorFlow, whose state nobody can read), and where
    the order of the data is known: for an `OrderedDataset`. For other data a warning says that nothing is promised.

    Callbacks with methods `get_state()` and `set_state(state)` and Keras' own EarlyStopping, ReduceLROnPlateau,
    ModelCheckpoint and History keep their state. An epoch taken up in its middle is read from its beginning; the
    other callbacks hear only of the batches that are trained.

    Args:
        directory: Folder for the checkpoints of this run; it is created.
        data: The OrderedDataset that `fit` is given, or None.
        save_freq: "epoch" to save after each epoch, or an integer n >= 1 to save after every n batches of an epoch,
            too; that needs `data`.
        keep: Number of checkpoints kept, an integer >= 2.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`: the checkpoint is of
            another model, optimizer, backend, data set or list of callbacks.

    Example:

    >>> import tempfile
    >>> from nnopt.data.ordered import OrderedDataset
    >>> data = OrderedDataset(np.ones((4, 2)), np.ones(4), batch_size=2)
    >>> def run(directory):
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile("sgd", loss="mse")
    ...     return model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[Resume(directory, data)])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     run(directory).history["loss"] == run(directory).history["loss"]
    True
    """

    def __init__(self, directory, data=None, save_freq="epoch", keep=2):
        super().__init__()
        if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
            raise TypeError(
                f"`directory` must be a path. Received: directory={directory!r} (of type {type(directory).__name__})"
            )
        self.directory = pathlib.Path(directory)
        self.data = data
        self._clock = None if data is None else FollowEpoch(data)
        if save_freq != "epoch":
            save_freq = check_integer("save_freq", save_freq, at_least=1)
            if data is None:
                raise ValueError(
                    "`save_freq` must be 'epoch' without an OrderedDataset as `data`: an epoch can only be taken "
                    f"up in its middle where its order is known. Received: save_freq={save_freq}, data=None"
                )
        self.save_freq = save_freq
        self.keep = check_integer("keep", keep, at_least=2)
        self._others = []
        self._first_batch = 0

    def set_params(self, params):
        super().set_params(params)
        if self._clock is not None:
            self._clock.set_params(params)

    def set_model(self, model):
        super().set_model(model)
        callback_list = _callback_list()
        if callback_list is None:
            raise RuntimeError("Resume works only in a keras.callbacks.CallbackList, such as `fit` makes.")
        # Last in the list, it sees the state of the others when they are done with an epoch. A new list, since Keras is
        # just running through this one.
        self._others = [callback for callback in callback_list.callbacks if callback is not self]
        callback_list.callbacks = [*self._others, self]
        for name in ("on_train_batch_begin", "on_train_batch_end"):
            setattr(callback_list, name, self._unless_skipped(getattr(callback_list, name)))

    def on_train_begin(self, logs=None):
        self._first_batch = self._epoch = 0
        self._metrics = self._identity = None
        if self._clock is None:
            warnings.warn(
                "Resume restores model, optimizer and random states, but cannot promise the same result: it does "
                "not know in which order these data come. Pass an OrderedDataset to both `fit` and Resume.",
                stacklevel=2,
            )
        else:
            self._clock.on_train_begin()
        stored = checkpoints.newest(self.directory)
        if stored is None:
            return
        self._restore(*stored)

    def on_epoch_begin(self, epoch, logs=None):
        # Keras would begin every later `fit` of this model there, too.
        self.model._initial_epoch = None
        self._epoch = epoch
        if self._clock is not None:
            self._clock.on_epoch_begin(epoch)
        if self._metrics is not None:
            # Keras has just reset them.
            _assign_all(self.model.metrics_variables, self._metrics)
            self._metrics = None
        self._saved = self._first_batch
        if self._first_batch:
            self._skip_batches(self._first_batch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.save_freq == "epoch":
            return
        if batch - self._saved >= self.save_freq:
            self._saved = batch
            self._save(self._epoch, batch)

    def on_epoch_end(self, epoch, logs=None):
        self._first_batch = 0
        if self._clock is not None:
            self._clock.on_epoch_end(epoch)
        self._save(epoch + 1, 0)

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None

    def _unless_skipped(self, method):
        def called(batch, logs=None):
            if batch >= self._first_batch:
                method(batch, logs)

        return called

    def _skip_batches(self, batches):
        """Lets `fit` read the batches that were done before, and do nothing with them.

        An epoch cannot begin in its middle. Data that end too soon would not do either: when TensorFlow runs out of
        them, it has already counted one step more.
        """
        model = self.model
        train, steps, left = model.train_function, model.steps_per_execution, batches

        def skip(*arguments):
            nonlocal left
            left -= steps
            if keras.backend.backend() != "torch":
                for _ in range(steps):
                    next(arguments[-1])
            if left <= 0:
                model.train_function = train
                # A torch DataLoader draws a number when an epoch begins.
                _set_random_states(self._random)
            return ({}, arguments[0]) if keras.backend.backend() == "jax" else {}

        model.train_function = skip

    def _save(self, epoch, batch):
        model = self.model
        state = {
            "identity": self._own_identity(),
            "epoch": epoch,
            "batch": batch,
            "stopped": bool(model.stop_training),
            "model": [_numpy(variable) for variable in model.variables],
            "optimizer": [_numpy(variable) for variable in _own_variables(model.optimizer)],
            "metrics": [_numpy(variable) for variable in model.metrics_variables] if batch else None,
            "random": _random_states(),
            "data": None if self._clock is None else {"shift": self._clock.shift, "next_epoch": self.data.next_epoch},
            "callbacks": [[type(callback).__name__, _state_of(callback)] for callback in self._stateful()],
        }
        checkpoints.write(self.directory, state, self.keep)

    def _restore(self, path, state):
        model = self.model
        self._build(state)
        self._check(path, state)
        _assign_all(model.variables, state["model"])
        _assign_all(_own_variables(model.optimizer), state["optimizer"])
        for callback, (_, callback_state) in zip(self._stateful(), state["callbacks"]):
            _set_state_of(callback, callback_state)
        for callback in self._others:
            if not type(callback).__module__.startswith("keras.") and callback not in self._stateful():
                warnings.warn(
                    f"{type(callback).__name__} has no get_state and set_state: what it remembered is lost.",
                    stacklevel=2,
                )
        self._first_batch, self._metrics = state["batch"], state["metrics"]
        if self._clock is not None:
            self._clock.shift = state["data"]["shift"]
            self.data.next_epoch = state["data"]["next_epoch"]
        # Read by `fit` after this method; BackupAndRestore does the same, and there is no public way.
        model._initial_epoch = self.params["epochs"] if state["stopped"] else state["epoch"]
        self._random = state["random"]
        _set_random_states(self._random)

    def _build(self, state):
        """TensorFlow makes variables in the first step, too late to load them."""
        model = self.model
        lacks_metrics = state["metrics"] is not None and len(model.metrics_variables) != len(state["metrics"])
        if not model.built or lacks_metrics:
            if self.data is None:
                raise ValueError(
                    "Resume needs a model whose variables exist: begin it with keras.Input, or call it on a "
                    f"batch before `fit`. Received: model={model!r}"
                )
            model.test_on_batch(*self.data.batch(0))
            model.reset_metrics()
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    def _stateful(self):
        return [callback for callback in self._others if _state_of(callback) is not None]

    def _own_identity(self):
        if self._identity is None:
            model = self.model
            self._identity = {
                "backend": keras.backend.backend(),
                "steps_per_execution": model.steps_per_execution,
                "model": [[variable.name, list(variable.shape), str(variable.dtype)] for variable in model.variables],
                "optimizer": [
                    [list(variable.shape), str(variable.dtype)] for variable in _own_variables(model.optimizer)
                ],
                "optimizer's arguments": _arguments(keras.saving.serialize_keras_object(model.optimizer)),
                "data": None if self.data is None else self.data.fingerprint(),
            }
        return self._identity

    def _check(self, path, state):
        # Through JSON, as the stored one went.
        own = json.loads(json.dumps(self._own_identity(), default=str))
        names = [type(callback).__name__ for callback in self._stateful()]
        own["callbacks"] = names
        theirs = {**state["identity"], "callbacks": [name for name, _ in state["callbacks"]]}
        for part, value in own.items():
            if value != theirs[part]:
                raise ValueError(
                    f"The checkpoint {path} belongs to another run: its {part} is not this one's. Delete the "
                    "folder, or give this run one of its own. "
                    f"Received: {_difference(theirs[part], value)}"
                )


def _difference(theirs, own):
    """The first entry in which two lists or dicts differ, for a message."""
    if isinstance(own, list) and isinstance(theirs, list) and len(own) == len(theirs):
        theirs, own = next((a, b) for a, b in zip(theirs, own) if a != b)
    elif isinstance(own, dict) and isinstance(theirs, dict) and own.keys() == theirs.keys():
        key = next(key for key in own if own[key] != theirs[key])
        return f"{key}: {_difference(theirs[key], own[key])}"
    return f"stored {theirs!r}, now {own!r}"[:500]


def _arguments(config):
    """A serialized optimizer without what may differ: names that count up in a process, and a rate that is state."""
    if isinstance(config, dict):
        return {
            key: _arguments(value)
            for key, value in config.items()
            if key != "name" and not (key == "learning_rate" and isinstance(value, float))
        }
    return config


def _state_of(callback):
    if hasattr(callback, "get_state") and hasattr(callback, "set_state"):
        return callback.get_state()
    for kind, names in _STATES_OF_KERAS:
        if isinstance(callback, kind):
            return {name: getattr(callback, name, None) for name in names}
    return None


def _set_state_of(callback, state):
    if hasattr(callback, "set_state"):
        callback.set_state(state)
        return
    for name, value in state.items():
        setattr(callback, name, value)


def _numpy(variable):
    return np.array(ops.convert_to_numpy(variable))


def _assign_all(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)


def _random_states():
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "keras": None if generator is None else _numpy(generator.state),
    }
    if keras.backend.backend() == "torch":
        import torch

        states["torch"] = torch.get_rng_state().numpy()
        states["cuda"] = (
            [state.numpy() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
        )
    return states


def _set_random_states(states):
    if states["keras"] is None:
        # Keras makes it at its first use, by Python's generator.
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    else:
        global_seed_generator().state.assign(states["keras"])
    if "torch" in states:
        import torch

        torch.set_rng_state(torch.from_numpy(states["torch"]))
        if states["cuda"]:
            torch.cuda.set_rng_state_all([torch.from_numpy(state) for state in states["cuda"]])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])


class GradientMonitor(keras.callbacks.Callback):
    """Records, layer by layer, how large the gradient and the weights are, and by how much a step changes the weights.

        gradient_norm[layer] = |dL/dw|      weight_norm[layer] = |w|      update_ratio[layer] = |w_after - w| / |w|

    with Euclidean norms over all trainable variables of the layer and L the model's loss, with its penalties, on the
    batch given here, in training mode, at the weights w before the step: the same batch every time, so that the records
    can be compared. The update is the optimizer's own, on the batch that `fit` has drawn. Training is not disturbed:
    weights, slots, normalization statistics and random states stay bit for bit what they would be without the monitor.

    Layers are those of the model, those of nested models by the path "outer/inner"; a layer made of others counts as
    one, and one without trainable variables is left out.

    Args:
        x: Inputs of the batch, an array, or a tuple, list or dict of arrays.
        y: Targets of the batch, or None.
        sample_weight: Weights of its examples, or None.
        every: Steps between two records, an integer >= 1: steps 0, every, 2 every, ... of the optimizer. With
            `steps_per_execution` > 1 a step is looked at only where an execution begins there, and the update is that
            of the whole execution.

    Raises:
        TypeError, ValueError: `every` is of the wrong type or out of its range.

    Attributes:
        layers: Names of the layers, in the model's order, known from the beginning of `fit`.

    Example:

    >>> x, y = np.ones((4, 2)), np.ones((4, 1))
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    >>> model.compile("sgd", loss="mse")
    >>> monitor = GradientMonitor(x, y)
    >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[monitor])
    >>> len(monitor.layers), monitor.history["gradient_norm"].shape, monitor.history["step"].tolist()
    (2, (5, 2), [0, 1, 2, 3, 4])

    Reference: X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    2010, section 4.2.
    """

    def __init__(self, x, y=None, sample_weight=None, every=1):
        super().__init__()
        self._batch = keras.tree.map_structure(
            lambda part: None if part is None else np.asarray(part), (x, y, sample_weight), none_is_leaf=True
        )
        self.every = check_integer("every", every, at_least=1)
        self.layers = []
        self._records = {"step": [], "gradient_norm": [], "weight_norm": [], "update_ratio": []}
        self._gradients = self._pending = None

    @property
    def history(self):
        """Dict of "step", an array (records,), and of the three norms, arrays (records, layers)."""
        shape = (len(self._records["step"]), len(self.layers))
        norms = {
            name: np.asarray(rows, "float64").reshape(shape) for name, rows in self._records.items() if name != "step"
        }
        return {"step": np.asarray(self._records["step"], "int64"), **norms}

    def table(self):
        """Returns the last record as a list of dicts, one for a layer."""
        history = self.history
        names = ("gradient_norm", "weight_norm", "update_ratio")
        return (
            [
                {"layer": layer, **{name: float(history[name][-1, index]) for name in names}}
                for index, layer in enumerate(self.layers)
            ]
            if len(history["step"])
            else []
        )

    def on_train_begin(self, logs=None):
        groups = _layers_with_weights(self.model)
        self.layers = [name for name, _ in groups]
        self._variables = [variables for _, variables in groups]
        self._iteration = _iteration(self.model.optimizer)
        self._gradients = _gradient_function(self.model, self._batch, [v for group in self._variables for v in group])

    def on_train_batch_begin(self, batch, logs=None):
        _ = self.model
        step = int(self._iteration.value)
        self._pending = None
        if step % self.every == 0:
            gradients = iter(self._gradients())
            norms = [_norm([next(gradients) for _ in group]) for group in self._variables]
            self._pending = (step, norms, self._weights())

    def on_train_batch_end(self, batch, logs=None):
        if self._pending is None:
            return
        _ = self.model
        step, gradient_norms, before = self._pending
        self._pending = None
        weight_norms = np.array([_norm(group) for group in before])
        updates = [_norm([new - old for new, old in zip(*groups)]) for groups in zip(self._weights(), before)]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.array(updates) / weight_norms
        for name, value in zip(self._records, (step, gradient_norms, weight_norms, ratios)):
            self._records[name].append(value)

    def get_state(self):
        """Returns the records."""
        return self.history

    def set_state(self, state):
        """Takes back what `get_state` returned."""
        self._records = {name: list(state[name]) for name in self._records}

    def _weights(self):
        return [[_numpy(variable) for variable in group] for group in self._variables]


def _norm(arrays):
    return math.sqrt(sum(float(np.sum(np.square(array.astype("float64")))) for array in arrays))


def _layers_with_weights(model, prefix="", seen=None):
    """Pairs (name, trainable variables) of the model's layers, each variable once."""
    seen = set() if seen is None else seen
    groups = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            groups += _layers_with_weights(layer, f"{prefix}{layer.name}/", seen)
            continue
        groups.append((prefix + layer.name, _unseen(layer, seen)))
    groups.append((prefix.rstrip("/") or model.name, _unseen(model, seen)))
    return [(name, variables) for name, variables in groups if variables]


def _unseen(layer, seen):
    variables = [variable for variable in layer.trainable_variables if id(variable) not in seen]
    seen.update(id(variable) for variable in variables)
    return variables


def _gradient_function(model, batch, variables):
    """Returns a function without side effects that gives the gradients on the batch as NumPy arrays."""
    batch = keras.tree.map_structure(
        lambda part: None if part is None else ops.convert_to_tensor(part), batch, none_is_leaf=True
    )
    x, y, sample_weight = batch
    others = [variable for variable in model.variables if not any(variable is own for own in variables)]

    def loss(values, other_values):
        # Inside the scope nothing is assigned: statistics, seeds and metrics stay as they are.
        mapping = [*zip(variables, values), *zip(others, other_values)]
        with keras.StatelessScope(mapping, collect_losses=True):
            y_pred = model(x, training=True)
            return model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)

    gradient = _gradient_of(loss)

    def gradients():
        values = gradient([variable.value for variable in variables], [variable.value for variable in others])
        return [
            np.zeros(variable.shape) if value is None else np.array(ops.convert_to_numpy(value))
            for variable, value in zip(variables, values)
        ]

    return gradients


def _gradient_of(loss):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(jax.grad(loss))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def gradient(values, others):
            values = [tf.convert_to_tensor(value) for value in values]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                value = loss(values, [tf.convert_to_tensor(other) for other in others])
            return [
                tf.convert_to_tensor(part)
                for part in tape.gradient(value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            ]

        return gradient
    import torch

    def gradient(values, others):
        values = [value.detach().clone().requires_grad_(True) for value in values]
        # Dropout draws from torch's global generator there.
        with torch.enable_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return torch.autograd.grad(loss(values, others), values, allow_unused=True)

    return gradient
