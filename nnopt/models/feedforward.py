"""The feedforward network: the plainest one, on which most claims of the article can be tried in seconds."""

import keras

from nnopt.checks import check_choice, check_integer, check_number
from nnopt.models._common import check_activation, check_sizes, derived_seeds, initializer, logits_dtype

GROUP_SIZE = 8  # units that share one mean and variance under normalization="group"


def mlp(
    input_shape,
    units,
    classes,
    *,
    activation="relu",
    normalization=None,
    initialization="glorot_uniform",
    l1=0.0,
    l2=0.0,
    dropout=0.0,
    seed=None,
):
    """Returns a multilayer perceptron that ends in logits: compile it with a loss of `from_logits=True`.

    Each hidden layer computes `dropout(activation(normalization(x W + b)))`; the last one `x W + b`. Under batch
    normalization the hidden layers have no `b`, since the subtraction of the mean would cancel it.

    Args:
        input_shape: Shape of one example, such as (64,) or (8, 8, 1); anything of more than one axis is flattened.
        units: Widths of the hidden layers, such as [64, 64]; with [] the model is linear.
        classes: Number of logits, >= 1.
        activation: Name of a Keras activation, or a callable, for the hidden layers.
        normalization: None, "batch", "layer" or "group" (groups of 8 units: each width must be a multiple of 8).
        initialization: Name of a Keras initializer, or an instance, for all kernels. An instance serves as a template:
            with a `seed`, here or in the template, each layer draws from a copy with a seed of its own.
            The default is Keras' own, Glorot and Bengio 2010; "he_normal" suits deep ReLU networks.
        l1: Strength >= 0 of the penalty `l1 * sum(|W|)` on every kernel, added to the loss.
        l2: Strength >= 0 of the penalty `l2 * sum(W**2)` on every kernel, added to the loss.
        dropout: Share of the hidden activations set to zero in training, in [0, 1).
        seed: Integer >= 0 from which every kernel and every dropout layer derives a seed of its own. With None Keras
            draws them, so that `keras.utils.set_random_seed` decides.

    Returns:
        A functional `keras.Model`: (batch, *input_shape) -> (batch, classes), in float32 also under a mixed dtype
        policy. Layers are named by what they are and their depth ("hidden_1", "normalization_1", ..., "logits").

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> model = mlp(input_shape=(64,), units=[64, 64], classes=10, seed=0)
    >>> model.count_params()
    8970
    >>> model.output_shape
    (None, 10)
    """
    input_shape = check_sizes("input_shape", input_shape, least=1)
    units = check_sizes("units", units, least=0)
    classes = check_integer("classes", classes, at_least=1)
    l1, l2 = check_number("l1", l1, at_least=0), check_number("l2", l2, at_least=0)
    dropout = check_number("dropout", dropout, at_least=0, below=1)
    _check_normalization(normalization, units)
    activation = check_activation("activation", activation)
    kernel_seeds, dropout_seeds = derived_seeds(seed, len(units) + 1), derived_seeds(seed, len(units), stream=1)
    initializers = [initializer(initialization, kernel_seed, depth) for depth, kernel_seed in enumerate(kernel_seeds)]

    def dense(width, depth, name, **settings):
        penalty = keras.regularizers.L1L2(l1, l2) if l1 or l2 else None
        return keras.layers.Dense(
            width, kernel_initializer=initializers[depth], kernel_regularizer=penalty, name=name, **settings
        )

    inputs = x = keras.Input(input_shape)
    if len(input_shape) > 1:
        x = keras.layers.Flatten()(x)
    for depth, width in enumerate(units):
        number = depth + 1
        x = dense(width, depth, f"hidden_{number}", use_bias=normalization != "batch")(x)
        if normalization is not None:
            x = _normalization(normalization, width, name=f"normalization_{number}")(x)
        x = keras.layers.Activation(activation, name=f"activation_{number}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=dropout_seeds[depth], name=f"dropout_{number}")(x)
    logits = dense(classes, len(units), "logits", dtype=logits_dtype())(x)
    return keras.Model(inputs, logits, name="mlp")


def _normalization(kind, width, name):
    if kind == "batch":
        return keras.layers.BatchNormalization(name=name)
    if kind == "layer":
        return keras.layers.LayerNormalization(name=name)
    return keras.layers.GroupNormalization(groups=width // GROUP_SIZE, name=name)


def _check_normalization(normalization, units):
    if normalization is None:
        return
    check_choice("normalization", normalization, ("batch", "layer", "group"))
    if normalization == "group" and any(width % GROUP_SIZE for width in units):
        raise ValueError(
            f"`units` must be multiples of {GROUP_SIZE}, the size of a group, with normalization='group'. "
            f"Received: units={list(units)}"
        )
