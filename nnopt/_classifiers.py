"""What attacks and explanations share: a classifier that is checked, its inputs, and its logits as a pure function."""

import keras
import numpy as np
from keras import ops

from nnopt.checks import check_instance, shown


def check_classifier(name, model):
    """Returns a built model from inputs to logits (batch, classes >= 2), or says what is wrong with it."""
    check_instance(name, model, keras.Model, "a keras.Model")
    shape = getattr(model, "output_shape", None) if model.built else None
    if not isinstance(shape, tuple) or len(shape) != 2 or (shape[-1] or 0) < 2:
        raise ValueError(f"`{name}` must be built and return logits (batch, classes >= 2). Received: {name} to {shape}")
    if getattr(model.layers[-1], "activation", None) is keras.activations.softmax:
        raise ValueError(
            f"`{name}` must return logits: behind a softmax gradients vanish, and an attack only seems to fail. "
            f"Received: {name} that ends in the softmax of {model.layers[-1].name!r}"
        )
    return model


def checked_examples(model, x, y):
    """Returns inputs as float32 and labels as int32 arrays."""
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype.kind != "f" or not len(x) or x.ndim != len(model.input_shape) or not np.all(np.isfinite(x)):
        raise ValueError(f"`x` must hold finite, floating-point inputs (examples >= 1, ...). Received: x={shown(x)}")
    most = model.output_shape[-1] - 1
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or y.min() < 0 or y.max() > most:
        raise ValueError(
            f"`y` must hold an integer from 0 to {most} for each of the {len(x)} inputs. Received: y={shown(y)}"
        )
    return x.astype("float32"), y.astype("int32")


def weights_of(model):
    """Returns the tensors of all weights, as `logits_of` takes them."""
    return [[one.value for one in part] for part in (model.trainable_variables, model.non_trainable_variables)]


def logits_of(model, weights, x):
    """Returns the logits in inference mode, (batch, classes) in float32; `weights` are the model's present ones."""
    # JAX would take the weights that a compiled function reads as constants.
    jax = keras.backend.backend() == "jax"
    logits = model.stateless_call(*weights, x, training=False)[0] if jax else model(x, training=False)
    return ops.cast(logits, "float32")


def of_class(logits, y):
    """Returns each example's logit of its class, (batch,)."""
    return ops.sum(logits * ops.one_hot(y, logits.shape[-1], dtype="float32"), axis=-1)


def in_batches(function, *arrays, size=256):
    """Returns the outputs of a function of a batch of each array, for all examples, as NumPy arrays."""
    parts = []
    for begin in range(0, len(arrays[0]), size):
        outputs = function(*(ops.convert_to_tensor(array[begin : begin + size]) for array in arrays))
        parts.append([ops.convert_to_numpy(output) for output in outputs])
    return [np.concatenate(part) for part in zip(*parts)]
