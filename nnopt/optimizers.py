"""SGD and AdamW of Keras, whose momentum, beta_1 and weight decay may be schedules, as the learning rate may be.

A schedule is evaluated inside the training step as a pure function of the optimizer's step, and so survives whatever
the optimizer survives: a second `fit`, a restart from a file, compilation, several replicas. It sees the step that the
learning-rate schedule sees: the number of batches, also under `gradient_accumulation_steps=n`, where n of them make one
update of the weights.
"""

import contextlib

import keras
from keras import ops

from nnopt._keras import batch_counter, class_made_by, slot_of
from nnopt.schedules import check_schedule


class _Scheduled:
    """What both optimizers share: a schedule stands in for its value of this step while an update is made."""

    def _take(self, **arguments):
        """Keeps the schedules among the arguments, in place of the numbers that Keras' constructor was given."""
        for name, value in arguments.items():
            setattr(self, name, value)
        self._scheduled = tuple(name for name, value in arguments.items() if _is_schedule(value))
        # Beside the attributes: under a strategy the replicas are inside of `apply` at the same time.
        self._schedules = tuple(arguments[name] for name in self._scheduled)

    def apply(self, grads, trainable_variables=None):
        """Updates the weights, with the values of the schedules at this step."""
        if trainable_variables is not None and not self.built:
            # While the attributes still are schedules: Keras asks in Python whether there is any momentum.
            with keras.name_scope(self.name):
                self.build(list(trainable_variables))
        with self._values_of_this_step():
            super().apply(grads, trainable_variables)

    @contextlib.contextmanager
    def _values_of_this_step(self):
        try:
            for name, schedule in zip(self._scheduled, self._schedules):
                # Not 0, where Keras would leave the velocity as it is.
                setattr(self, name, ops.maximum(schedule(batch_counter(self)), 1e-30))
            yield
        finally:
            for name, schedule in zip(self._scheduled, self._schedules):
                setattr(self, name, schedule)

    def get_config(self):
        config = super().get_config()
        schedules = zip(self._scheduled, self._schedules)
        return {**config, **{name: keras.saving.serialize_keras_object(schedule) for name, schedule in schedules}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {
            name: keras.saving.deserialize_keras_object(value, custom_objects) if isinstance(value, dict) else value
            for name, value in config.items()
        }
        return super().from_config(config, custom_objects)


@keras.saving.register_keras_serializable("nnopt")
class SGD(_Scheduled, class_made_by(keras.optimizers.SGD)):
    """Gradient descent with momentum: `keras.optimizers.SGD`, whose momentum and weight decay may be schedules.

        w = w - weight_decay(t) * learning_rate(t) * w
        velocity = momentum(t) * velocity - learning_rate(t) * gradient
        w = w + velocity                                                       nesterov=False
        w = w + momentum(t) * velocity - learning_rate(t) * gradient           nesterov=True

    t counts batches from 0. Keras has the rate inside the velocity, torch.optim.SGD outside: with a changing rate the
    two agree only where momentum(t) of Keras is torch's times learning_rate(t) / learning_rate(t - 1).

    Args:
        learning_rate: A float > 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: A number in [0, 1], or a schedule of such numbers, such as `OneCycle(...).momentum()`.
        nesterov: Whether the gradient is, in effect, taken where the velocity leads.
        weight_decay: A number >= 0, a schedule of such numbers, or None. It is multiplied by the rate, as in AdamW.
        **keywords: The other arguments of `keras.optimizers.SGD`.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> from nnopt.schedules import OneCycle
    >>> cycle = OneCycle(0.1, total_steps=4)
    >>> optimizer = SGD(cycle, momentum=cycle.momentum(low=0.85, high=0.95))
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer, loss="mse")
    >>> history = model.fit(ops.ones((4, 2)), ops.ones((4, 1)), batch_size=1, verbose=0)
    >>> round(float(optimizer.momentum(optimizer.iterations)), 3)
    0.95

    Reference: L. N. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018, section 4.3;
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 1 (its schedule multiplier).
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=None, **keywords):
        momentum = check_schedule("momentum", momentum, at_least=0, at_most=1)
        weight_decay = _check_weight_decay(weight_decay)
        super().__init__(learning_rate, _number(momentum), nesterov, _number(weight_decay), **keywords)
        self._take(momentum=momentum, weight_decay=weight_decay)

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable."""
        if "momentum" not in self._scheduled:
            super().update_step(gradient, variable, learning_rate)
            return
        # Keras' own rule asks in Python whether the momentum is 0, which a compiled step cannot tell.
        velocity = slot_of(self, self.momentums, variable)
        momentum, move = (ops.cast(value, variable.dtype) for value in (self.momentum, gradient * learning_rate))
        self.assign(velocity, velocity * momentum - move)
        self.assign_add(variable, velocity * momentum - move if self.nesterov else velocity)


@keras.saving.register_keras_serializable("nnopt")
class AdamW(_Scheduled, class_made_by(keras.optimizers.AdamW)):
    """`keras.optimizers.AdamW`, whose beta_1 and weight decay may be schedules.

        w = w - weight_decay(t) * learning_rate(t) * w
        m = beta_1(t) * m + (1 - beta_1(t)) * gradient,        v = beta_2 * v + (1 - beta_2) * gradient**2
        w = w - learning_rate(t) * sqrt(1 - beta_2**n) / (1 - beta_1(t)**n) * m / (sqrt(v) + epsilon)

    t counts batches from 0, n updates from 1. The correction of the bias takes the present beta_1 to the power n, as
    torch.optim.AdamW does under OneCycleLR; exact would be 1 - beta_1(0) * ... * beta_1(t), from which it differs only
    in the first steps, when a cycle has hardly begun.

    Args:
        learning_rate: A float > 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: A number >= 0, or a schedule of such numbers. It is multiplied by the rate.
        beta_1: A number in [0, 1), or a schedule of such numbers, such as `OneCycle(...).momentum()`.
        **keywords: The other arguments of `keras.optimizers.AdamW`.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> from nnopt.schedules import OneCycle, StepDecay
    >>> cycle = OneCycle(0.01, total_steps=100)
    >>> optimizer = AdamW(cycle, weight_decay=StepDecay(0.1, [50], 0.1), beta_1=cycle.momentum())
    >>> optimizer.get_config()["beta_1"]["class_name"]
    'OneCycleMomentum'

    Reference: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; D. P. Kingma and
    J. Ba, "Adam: a method for stochastic optimization", 2015, the form before section 2.1.
    """

    def __init__(self, learning_rate=0.001, weight_decay=0.004, beta_1=0.9, **keywords):
        beta_1 = check_schedule("beta_1", beta_1, at_least=0, below=1)
        weight_decay = _check_weight_decay(weight_decay)
        super().__init__(learning_rate, _number(weight_decay), _number(beta_1), **keywords)
        self._take(weight_decay=weight_decay, beta_1=beta_1)


def _check_weight_decay(value):
    return None if value is None else check_schedule("weight_decay", value, at_least=0)


def _is_schedule(value):
    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)


def _number(value):
    """What Keras' constructor is given in place of a schedule."""
    return 0.5 if _is_schedule(value) else value
