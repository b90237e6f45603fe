"""Learning rates set from outside the optimizer, by its own count of batches or by the epoch."""

import warnings

import keras
import numpy as np
from keras import ops

from nnopt import schedules
from nnopt._keras import batch_counter
from nnopt.checks import check_integer

# Steps for which a curve is evaluated at once: one call of the schedule in a thousand batches costs next to nothing.
BLOCK = 1024


class _RateCallback(keras.callbacks.Callback):
    """What the four curves share: the schedule, and the way a rate gets into the optimizer."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

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

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))


class _EpochRate(_RateCallback):
    """A rate for each epoch, by the number that `fit` gives it."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = float(self.schedule(epoch))


class StepDecayLR(_EpochRate):
    """Multiplies the rate by `decay_rate` at each milestone, counted in epochs.

        rate(epoch) = initial_learning_rate * decay_rate ** (number of milestones <= epoch)

    The curve is `nnopt.schedules.StepDecay`, taken at the number that `fit` gives the epoch, from 0. So a second `fit`
    begins the curve anew, as every callback of Keras does, whatever the size of its batches; to go on, tell `fit`:
    `fit(..., initial_epoch=3, epochs=6)`. After a restart by `Resume` or `keras.callbacks.BackupAndRestore` the numbers
    go on by themselves.

    Args:
        initial_learning_rate: Rate before the first milestone, > 0.
        milestones: Epochs (from 0) at which the rate drops, a list of strictly increasing integers >= 1; or one integer
            n for n, 2n, 3n, ...
        decay_rate: Factor of each drop, in (0, 1].

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

    def __init__(self, initial_learning_rate, milestones, decay_rate):
        super().__init__(schedules.StepDecay(initial_learning_rate, milestones, decay_rate))


class ExponentialDecayLR(_EpochRate):
    """Shrinks the rate by the factor `decay_rate` every `decay_epochs` epochs; it changes between epochs, not within.

        rate(epoch) = initial_learning_rate * decay_rate ** (epoch / decay_epochs)
        rate(epoch) = initial_learning_rate * decay_rate ** floor(epoch / decay_epochs)      with staircase=True

    The curve is `nnopt.schedules.ExponentialDecay`, taken at the epoch. Epochs are those of `StepDecayLR`.

    Args:
        initial_learning_rate: Rate of epoch 0, > 0.
        decay_epochs: Epochs for one factor of `decay_rate`, an integer >= 1.
        decay_rate: The factor, in (0, 1].
        staircase: Whether the rate falls only at multiples of `decay_epochs`.

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

    def __init__(self, initial_learning_rate, decay_epochs, decay_rate, staircase=False):
        decay_epochs = check_integer("decay_epochs", decay_epochs, at_least=1, at_most=schedules.LARGEST_STEP)
        super().__init__(schedules.ExponentialDecay(initial_learning_rate, decay_epochs, decay_rate, staircase))


class _StepRate(_RateCallback):
    """A rate for each batch, by the optimizer's own count of them."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self._first, self._rates = 0, []

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
        # Reading `self.model` brings JAX's state up to date.
        optimizer = self.model.optimizer
        step = int(ops.convert_to_numpy(batch_counter(optimizer)))
        if not 0 <= step - self._first < len(self._rates):
            self._first = step
            self._rates = ops.convert_to_numpy(self.schedule(np.arange(step, step + BLOCK))).tolist()
        optimizer.learning_rate = self._rates[step - self._first]


class CyclicalLR(_StepRate):
    """Lets the rate rise and fall in triangles: `nnopt.schedules.CyclicalLearningRate`, set from outside.

    Steps are the batches that the optimizer has seen, over all its `fit`s, as a schedule inside the optimizer counts
    them: with `gradient_accumulation_steps=n`, n steps are one update. With `steps_per_execution` > 1 the rate is held
    for that many batches, and a warning says so.

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
    """Takes the rate up and down once: `nnopt.schedules.OneCycle`, set from outside.

    Steps are counted as in `CyclicalLR`; from step T - 1 on the rate stays what it is there, so that a second cycle
    needs a new `compile`. The method lets the momentum fall while the rate rises; that needs a schedule inside the
    optimizer, the momentum of `nnopt.optimizers.SGD` or the beta_1 of `nnopt.optimizers.AdamW`:

        cycle = nnopt.schedules.OneCycle(0.1, total_steps=1000)
        model.compile(nnopt.optimizers.SGD(cycle, momentum=cycle.momentum()), loss)

    Args:
        maximal_learning_rate: The highest rate, > 0.
        total_steps: Steps of the whole training (epochs * batches of an epoch), an integer >= 1.
        pct_start: Share of the steps in which the rate rises, in [0, 1].
        div_factor: Maximal rate / first rate, >= 1.
        final_div_factor: First rate / final rate.
        anneal: "cos" or "linear".
        three_phase: Whether the rate first comes down as it went up and then falls to its final value.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`, the optimizer was
            compiled with a schedule.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), loss="mse")
    >>> cycle = OneCycleLR(0.5, total_steps=5, pct_start=0.4, div_factor=4, final_div_factor=0.5, anneal="linear")
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=5, verbose=0, callbacks=[cycle])
    >>> [round(rate, 4) for rate in history.history["learning_rate"]]
    [0.125, 0.5, 0.4167, 0.3333, 0.25]

    Reference: L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2019, section 3.
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
    ):
        super().__init__(
            schedules.OneCycle(
                maximal_learning_rate, total_steps, pct_start, div_factor, final_div_factor, anneal, three_phase
            )
        )
