"""The norm of the gradient, layer by layer, while a network trains."""

import math

import keras
import numpy as np
from keras import ops

from nnopt._gradients import compiled, value_and_gradients
from nnopt._keras import batch_counter
from nnopt._state import preserved_random_state
from nnopt.checks import check_integer

# Of the loss, where layers compute in float16, in which small gradients would be 0: the largest that overflows nowhere.
SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0)


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
        every: Steps between two records, an integer >= 1: steps 0, every, 2 every, ... of the optimizer, counted in
            batches. With `steps_per_execution` > 1 a step is looked at only where an execution begins there, and the
            update is that of the whole execution.

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

    def on_train_begin(self, logs=None):
        if not self.model.built:
            self.model(self._batch[0])
        groups = _layers_with_weights(self.model)
        self.layers = [name for name, _ in groups]
        self._variables = [variables for _, variables in groups]
        self._gradients = _gradient_function(self.model, self._batch, [v for group in self._variables for v in group])

    def on_train_batch_begin(self, batch, logs=None):
        # Reading `self.model` brings JAX's state up to date.
        step = int(ops.convert_to_numpy(batch_counter(self.model.optimizer)))
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
        return [[np.array(ops.convert_to_numpy(variable)) for variable in group] for group in self._variables]


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
    others = [variable for variable in model.variables if not any(variable is own for own in variables)]
    is_float16 = any(layer.compute_dtype == "float16" for layer in [model, *model.layers])

    def scaled_loss(values, other_values, batch, scale):
        x, y, sample_weight = batch
        # Inside the scope nothing is assigned: statistics, seeds and metrics stay as they are.
        mapping = [*zip(variables, values), *zip(others, other_values)]
        with keras.StatelessScope(mapping, collect_losses=True):
            y_pred = model(x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
        return loss * (scale * _replicas()), None

    @compiled
    def gradients_of(values, *rest):
        return value_and_gradients(lambda tensors: scaled_loss(tensors, *rest), values)[1]

    def gradients():
        values, other_values = ([ops.convert_to_tensor(variable) for variable in part] for part in (variables, others))
        for scale in SCALES if is_float16 else (1.0,):
            with preserved_random_state():
                result = gradients_of(values, other_values, batch, ops.convert_to_tensor(scale, "float32"))
            result = [ops.convert_to_numpy(gradient).astype("float64") / scale for gradient in result]
            if all(np.isfinite(gradient).all() for gradient in result):
                break
        return result

    return gradients


def _replicas():
    """By how many Keras divides a loss under a distribution strategy of TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
