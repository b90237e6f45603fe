"""Small changes of the input that make a classifier err, and training against them.

The attack is one pure function of the inputs and the weights, on the three backends.
"""

import functools
import math

import keras
from keras import ops

from nnopt._classifiers import check_classifier, checked_examples, in_batches, logits_of, of_class, weights_of
from nnopt._gradients import compiled, value_and_gradients
from nnopt._state import stateless
from nnopt.checks import check_boolean, check_choice, check_instance, check_integer, check_number

NORMS = ("linf", "l2")
LOSSES = {
    "cross_entropy": lambda logits, y: -of_class(ops.log_softmax(logits), y),
    "margin": lambda logits, y: _best_other(logits, y) - of_class(logits, y),
}


def fgsm(model, x, y, epsilon, *, targeted=False, bounds=(0.0, 1.0), batch_size=256):
    """Returns x + epsilon * sign(gradient of the loss by x), clipped to the bounds: the fast gradient sign method.

    It is `pgd` with one step of size epsilon from x itself; arguments, result and errors are described there.

    Reference: Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples", section 4.
    """
    one_step = {"steps": 1, "step_size": epsilon, "random_start": False}
    return pgd(model, x, y, epsilon, targeted=targeted, bounds=bounds, batch_size=batch_size, **one_step)


def pgd(
    model,
    x,
    y,
    epsilon,
    *,
    norm="linf",
    steps=20,
    step_size=None,
    restarts=1,
    random_start=True,
    targeted=False,
    loss="cross_entropy",
    bounds=(0.0, 1.0),
    batch_size=256,
    seed=None,
):
    """Returns inputs at most epsilon away from x that the model gets wrong, found by projected gradient ascent:

        x' <- the nearest point to x' + step_size * direction(gradient of the loss by x') within epsilon of x,

    clipped to the bounds. The direction is the gradient's sign for the norm "linf", and the gradient divided by its
    Euclidean norm for "l2". The model runs in inference mode.

    Args:
        model: A keras.Model from x to logits (batch, classes), classes >= 2.
        x: Array of floating-point inputs, (examples, ...), within the bounds.
        y: Integer labels, (examples,): the true ones, or with `targeted` those that the model shall give.
        epsilon: Largest distance from x, >= 0: of a single number of the input ("linf"), or Euclidean ("l2").
        norm: "linf" or "l2".
        steps: Steps of an attempt, >= 1.
        step_size: Length of a step, > 0; 2.5 * epsilon / steps by default, so that a run can cross the whole ball.
        restarts: Attempts, >= 1. Of an example the strongest attempt is kept: one that succeeds before one that does
            not, then the one with the larger loss.
        random_start: Whether an attempt begins at a random point of the ball instead of at x.
        targeted: Whether to lead to the class y instead of away from it.
        loss: "cross_entropy", or "margin", the largest other logit minus that of y, whose gradient does not vanish
            where the model is very sure.
        bounds: The smallest and the largest number that an input may have; the pixels of nnopt.data are in (0, 1).
        batch_size: Examples computed at once, >= 1.
        seed: Integer >= 0 for the random starts. With None keras.random draws.

    Returns:
        A NumPy array of the shape of x.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or the model ends in a softmax,
            which hides gradients: give it logits.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1.0, -1.0], [0.0, 0.0]])])  # class 0 where x[0] > 0
    >>> pgd(model, np.array([[0.3, 0.5]]), np.array([0]), 0.2, random_start=False).astype(float).round(3).tolist()
    [[0.1, 0.5]]

    Reference: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1; the
    margin is Carlini and Wagner's 2017 (their f6).
    """
    epsilon = check_number("epsilon", epsilon, at_least=0)
    steps = check_integer("steps", steps, at_least=1)
    restarts = check_integer("restarts", restarts, at_least=1)
    batch_size = check_integer("batch_size", batch_size, at_least=1)
    check_boolean("random_start", random_start)
    check_choice("norm", norm, NORMS)
    check_choice("loss", loss, tuple(LOSSES))
    step_size, (low, high) = _step_size(step_size, epsilon, steps), _checked_bounds(bounds)
    x, y = checked_examples(check_classifier("model", model), x, y)
    if x.min() < low or x.max() > high:
        raise ValueError(f"`x` must lie within `bounds`. Received: x from {x.min()} to {x.max()}, bounds={bounds}")
    seeds = keras.random.SeedGenerator(seed if seed is None else check_integer("seed", seed, at_least=0))
    attack, score = _functions(model, norm, loss, check_boolean("targeted", targeted))
    weights = weights_of(model)
    numbers = [ops.convert_to_tensor(number, "float32") for number in (epsilon, step_size, low, high)]

    def attempt(original, labels):
        start = _start(original, epsilon, norm, (low, high), seeds) if random_start else original
        return attack(weights, original, labels, start, ops.convert_to_tensor(steps), *numbers)

    def strongest(original, labels):
        found = attempt(original, labels)
        successes, losses = score(weights, found, labels) if restarts > 1 else (None, None)
        for _ in range(restarts - 1):
            other = attempt(original, labels)
            success, its_losses = score(weights, other, labels)
            better = (success & ~successes) | ((success == successes) & (its_losses > losses))
            found = ops.where(ops.reshape(better, (-1, *[1] * (x.ndim - 1))), other, found)
            successes, losses = success | successes, ops.where(better, its_losses, losses)
        return [found]

    return in_batches(strongest, x, y, size=batch_size)[0]


@keras.saving.register_keras_serializable("nnopt")
class AdversarialTraining(keras.Model):
    """A classifier whose `fit` trains on the examples that `pgd` makes of each batch.

    A step of `fit` attacks the batch with the weights as they are, in inference mode, and then minimizes

        mean loss(y, f(x'))                                          (Madry et al. 2018), or with `trades`
        mean loss(y, f(x)) + trades * mean KL(softmax f(x) || softmax f(x'))          (Zhang et al. 2019),

    where f gives the logits and x' maximizes the cross-entropy of y, or with `trades` the divergence itself. The
    metrics that `fit` logs are those of x', with `trades` those of x. `evaluate`, `predict` and calling the model are
    the classifier's own, without an attack. A `.keras` file does not hold how far the random starts have come.

    Args:
        classifier: A built keras.Model from inputs to logits (batch, classes); it is trained in place.
        epsilon, norm, steps, step_size, bounds: As in `pgd`.
        trades: Weight of the divergence, > 0; None for training on x' alone.
        seed: Integer >= 0 for the random starts of the attacks.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> from nnopt.models import mlp
    >>> model = AdversarialTraining(mlp((4,), [8], classes=2, seed=0), epsilon=0.1, steps=3, seed=0)
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> x = keras.random.uniform((32, 4), seed=1)
    >>> sorted(model.fit(x, ops.cast(x[:, 0] > 0.5, "int32"), verbose=0).history)
    ['accuracy', 'loss']

    Reference: Madry et al. 2018; Zhang et al. 2019, "Theoretically principled trade-off between robustness and
    accuracy", equation 5.
    """

    def __init__(
        self, classifier, epsilon, *, norm="linf", steps=10, step_size=None, bounds=(0.0, 1.0), trades=None, seed=None,
        name=None,
    ):  # fmt: skip
        super().__init__(name=name)
        self.classifier = check_classifier("classifier", classifier)
        self.epsilon = check_number("epsilon", epsilon, at_least=0)
        self.norm = check_choice("norm", norm, NORMS)
        self.steps = check_integer("steps", steps, at_least=1)
        self.step_size = _step_size(step_size, self.epsilon, self.steps)
        self.bounds = _checked_bounds(bounds)
        self.trades = None if trades is None else check_number("trades", trades, above=0)
        self.seed = seed if seed is None else check_integer("seed", seed, at_least=0)
        self.start_seed = keras.random.SeedGenerator(self.seed)
        self._both = False  # whether a prediction holds x and x', one after the other
        self.built = True

    def call(self, inputs, training=False):
        """The classifier's logits."""
        return self.classifier(inputs, training=training)

    def train_step(self, *arguments):
        """One step on the attacked batch; JAX hands over all state and takes it back."""
        *state, data = arguments
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if state:
            parts = self.trainable_variables, self.non_trainable_variables
            x, now = stateless(lambda pair: self._attacked(*pair), parts, state[0], (x, y))
            state = [(*now, *state[0][2:])]
        else:
            x = self._attacked(x, y)
        try:
            self._both = self.trades is not None
            return super().train_step(*state, (x, y, weight))
        finally:
            self._both = False

    def _attacked(self, x, y):
        """Returns x', or x and x' one after the other."""
        x = ops.cast(ops.convert_to_tensor(x), "float32")
        clean = ops.stop_gradient(self.classifier(x, training=False)) if self.trades else None

        def losses(logits):
            return _divergence(clean, logits) if self.trades else LOSSES["cross_entropy"](logits, y)

        start = _start(x, self.epsilon, self.norm, self.bounds, self.start_seed)
        found = _ascend(
            lambda inputs: losses(self.classifier(inputs, training=False)),
            x, start, self.steps, self.norm, self.epsilon, self.step_size, *self.bounds,
        )  # fmt: skip
        found = ops.stop_gradient(found)
        return ops.concatenate([x, found]) if self.trades else found

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The compiled loss, with `trades` in training that of x plus the divergence."""
        if not self._both:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        clean, attacked = ops.split(y_pred, 2)
        divergence = _divergence(clean, attacked)
        if sample_weight is not None:
            divergence = divergence * ops.cast(sample_weight, divergence.dtype)
        return super().compute_loss(x, y, clean, sample_weight, training) + self.trades * ops.mean(divergence)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The compiled metrics, with `trades` in training those of x."""
        return super().compute_metrics(x, y, ops.split(y_pred, 2)[0] if self._both else y_pred, sample_weight)

    def get_config(self):
        names = ("epsilon", "norm", "steps", "step_size", "bounds", "trades", "seed", "name")
        own = {name: getattr(self, name) for name in names}
        return {"classifier": keras.saving.serialize_keras_object(self.classifier), **own}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects=custom_objects)
        return cls(**{**config, "classifier": classifier})


@functools.lru_cache(maxsize=16)
def _functions(model, norm, loss, targeted):
    """Returns the compiled attack and the compiled judge of its success; the weights are arguments of both."""
    sign = -1 if targeted else 1

    @compiled
    def attack(weights, original, labels, start, steps, *numbers):
        def objective(inputs):
            return sign * LOSSES[loss](logits_of(model, weights, inputs), labels)

        return _ascend(objective, original, start, steps, norm, *numbers)

    @compiled
    def score(weights, inputs, labels):
        logits = logits_of(model, weights, inputs)
        wrong = ops.cast(ops.argmax(logits, axis=-1), labels.dtype) != labels
        return ~wrong if targeted else wrong, sign * LOSSES[loss](logits, labels)

    return attack, score


def _ascend(objective, original, start, steps, norm, epsilon, step_size, low, high):
    """Returns where `steps` projected steps lead that make the sum of the objective, (inputs) -> (batch,), larger."""

    def step(_, inputs):
        _, (gradient,) = value_and_gradients(lambda tensors: (ops.sum(objective(tensors[0])), None), [inputs])
        direction = ops.sign(gradient) if norm == "linf" else gradient / ops.maximum(_length(gradient), 1e-12)
        change = _projected(inputs + step_size * direction - original, epsilon, norm)
        return ops.clip(original + change, low, high)

    return ops.fori_loop(0, steps, step, start)


def _start(original, epsilon, norm, bounds, seeds):
    """Returns a point drawn uniformly from the ball of each example, clipped to the bounds."""
    shape = ops.shape(original)
    if norm == "linf":
        change = keras.random.uniform(shape, -epsilon, epsilon, seed=seeds)
    else:
        size = math.prod(original.shape[1:])
        radius = keras.random.uniform((shape[0], *[1] * (len(shape) - 1)), seed=seeds) ** (1 / size)
        change = keras.random.normal(shape, seed=seeds)
        change = epsilon * radius * change / ops.maximum(_length(change), 1e-12)
    return ops.clip(original + change, *bounds)


def _projected(change, epsilon, norm):
    if norm == "linf":
        return ops.clip(change, -epsilon, epsilon)
    return change * ops.minimum(1.0, epsilon / ops.maximum(_length(change), 1e-12))


def _length(change):
    """The Euclidean norm of each example, (batch, 1, ...)."""
    return ops.sqrt(ops.sum(ops.square(change), axis=tuple(range(1, len(change.shape))), keepdims=True))


def _best_other(logits, y):
    return ops.max(logits - 1e9 * ops.one_hot(y, logits.shape[-1], dtype=logits.dtype), axis=-1)


def _divergence(clean, attacked):
    """The Kullback-Leibler divergence of the attacked prediction from the clean one, (batch,), in nats."""
    clean, attacked = (ops.log_softmax(ops.cast(logits, "float32")) for logits in (clean, attacked))
    return ops.sum(ops.exp(clean) * (clean - attacked), axis=-1)


def _step_size(step_size, epsilon, steps):
    return 2.5 * epsilon / steps if step_size is None else check_number("step_size", step_size, at_least=0)


def _checked_bounds(bounds):
    check_instance("bounds", bounds, (tuple, list), "a pair of numbers")
    low, high = (check_number("bounds", bound) for bound in bounds) if len(bounds) == 2 else (1, 0)
    if low >= high:
        raise ValueError(f"`bounds` must be a smaller and a larger number. Received: bounds={bounds!r}")
    return low, high
