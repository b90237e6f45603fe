"""The convolutional network: convolutions, each followed by an optional pooling, and a small head on top."""

import keras

from nnopt.checks import check_choice, check_integer, check_number
from nnopt.models._common import (
    check_activation,
    check_image_shape,
    check_sizes,
    derived_seeds,
    initializer,
    logits_dtype,
)


def cnn(
    input_shape,
    filters,
    classes,
    *,
    kernel_size=3,
    padding="same",
    pooling="max",
    head="flatten",
    units=(),
    activation="relu",
    normalization=None,
    initialization="glorot_uniform",
    dropout=0.0,
    seed=None,
):
    """Returns a convolutional network that ends in logits: compile it with a loss of `from_logits=True`.

    Each stage computes `pooling(activation(normalization(x * W + b)))`, `*` the cross-correlation over the image; then
    come the head, hidden layers of `units`, each followed by dropout, and the logits. Under batch normalization the
    convolutions have no `b`, since the subtraction of the mean would cancel it.

    Args:
        input_shape: Shape of one image, (height, width, channels).
        filters: Numbers of filters of the convolutions, such as [16, 32].
        classes: Number of logits, >= 1.
        kernel_size: Height and width of every kernel, >= 1.
        padding: "same" (zeros around the image, which keeps its size) or "valid" (none: it shrinks by
            `kernel_size - 1`).
        pooling: "max", "average" (2x2, stride 2, after every convolution; an odd last row or column is left out) or
            None.
        head: "flatten" (every pixel of the last feature maps has weights of its own) or "average" (the mean of each
            map, so that the place in the image no longer counts).
        units: Widths of hidden layers between head and logits, such as [64]; none by default.
        activation: Name of a Keras activation, or a callable, for convolutions and hidden layers.
        normalization: None or "batch", for the convolutions.
        initialization: Name of a Keras initializer, or an instance, for all kernels; as in `mlp`.
        dropout: Share of the head's output and of each hidden layer's set to zero in training, in [0, 1).
        seed: Integer >= 0 from which every kernel and every dropout layer derives a seed of its own. With None Keras
            draws them, so that `keras.utils.set_random_seed` decides.

    Returns:
        A functional `keras.Model`: (batch, height, width, channels) -> (batch, classes), in float32 also under a mixed
        dtype policy. Layers are named by what they are and their depth ("convolution_1", "normalization_1",
        "activation_1", "pooling_1", ..., "head", "hidden_1", "logits").

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or nothing is left of the image.

    Example:

    >>> model = cnn(input_shape=(8, 8, 1), filters=[16, 32], classes=10, seed=0)
    >>> model.count_params()
    6090
    >>> model.output_shape
    (None, 10)

    Reference: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition",
    section II.
    """
    input_shape = check_image_shape(input_shape)
    filters, units = check_sizes("filters", filters, least=1), check_sizes("units", units, least=0)
    classes = check_integer("classes", classes, at_least=1)
    kernel_size = check_integer("kernel_size", kernel_size, at_least=1)
    check_choice("padding", padding, ("same", "valid"))
    check_choice("head", head, ("flatten", "average"))
    if pooling is not None:
        check_choice("pooling", pooling, ("max", "average"))
    if normalization is not None:
        check_choice("normalization", normalization, ("batch",))
    dropout = check_number("dropout", dropout, at_least=0, below=1)
    activation = check_activation("activation", activation)
    _check_image_lasts(input_shape, len(filters), kernel_size, padding, pooling)
    seeds = derived_seeds(seed, len(filters) + len(units) + 1)
    kernels = iter([initializer(initialization, own, depth) for depth, own in enumerate(seeds)])
    dropout_seeds = iter(derived_seeds(seed, len(units) + 1, stream=1))

    inputs = x = keras.Input(input_shape)
    for number, count in enumerate(filters, start=1):
        x = keras.layers.Conv2D(
            count,
            kernel_size,
            padding=padding,
            data_format="channels_last",
            use_bias=normalization is None,
            kernel_initializer=next(kernels),
            name=f"convolution_{number}",
        )(x)
        if normalization is not None:
            x = keras.layers.BatchNormalization(name=f"normalization_{number}")(x)
        x = keras.layers.Activation(activation, name=f"activation_{number}")(x)
        if pooling is not None:
            kind = {"max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D}[pooling]
            x = kind(2, data_format="channels_last", name=f"pooling_{number}")(x)
    if head == "average":
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="head")(x)
    else:
        x = keras.layers.Flatten(data_format="channels_last", name="head")(x)
    for number, count in enumerate((*units, None), start=1):
        if dropout:
            x = keras.layers.Dropout(dropout, seed=next(dropout_seeds), name=f"dropout_{number}")(x)
        if count is not None:
            x = keras.layers.Dense(count, activation, kernel_initializer=next(kernels), name=f"hidden_{number}")(x)
    logits = keras.layers.Dense(classes, kernel_initializer=next(kernels), dtype=logits_dtype(), name="logits")
    return keras.Model(inputs, logits(x), name="cnn")


def _check_image_lasts(input_shape, stages, kernel_size, padding, pooling):
    """Raises ValueError if convolutions and poolings leave no pixel of the image."""
    size = min(input_shape[:2])
    for _ in range(stages):
        size -= kernel_size - 1 if padding == "valid" else 0
        size //= 2 if pooling is not None else 1
        if size < 1:
            raise ValueError(
                f"`input_shape` must be large enough for {stages} stages with kernel_size={kernel_size}, "
                f"padding={padding!r}, pooling={pooling!r}: nothing is left of the image. "
                f"Received: input_shape={input_shape!r}"
            )
