"""Residual networks and their plain twins: He et al.'s small ones for 32x32 images, and ResNet-50, -101 and -152."""

import keras

from nnopt.checks import check_boolean, check_choice, check_integer
from nnopt.models._common import check_image_shape, derived_seeds, logits_dtype
from nnopt.models.normalization import FusedBatchNormalization

BOTTLENECK_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4  # a bottleneck's last convolution has so many times the channels of its 3x3


def resnet(
    depth,
    input_shape,
    classes,
    *,
    residual=True,
    shortcut=None,
    width=None,
    stem=None,
    zero_last_gamma=False,
    fused_normalization=False,
    seed=None,
):
    """Returns a residual network, or its plain twin, that ends in logits.

    Each block computes `relu(x + F(x))`, the plain twin's `relu(F(x))`. With depth 6n + 2 (8, 14, 20, 32, 56 ...),
    He et al.'s design for CIFAR-10: three stages of n blocks of two 3x3 convolutions. Depths 50, 101 and 152 are
    the bottleneck designs for ImageNet in their v1.5 form: four stages of blocks 1x1, 3x3, 1x1, and the stride stands
    in the 3x3 (in the article's 1x1 it would skip three quarters of the input). Every convolution is without bias and
    followed by batch normalization (epsilon 1e-5, momentum 0.9, which PyTorch calls 0.1). Padding is PyTorch's, the
    same on both sides, so that weights trained there compute the same function here. `resnet(50, (224, 224, 3), 1000)`
    has 25,557,032 parameters, not counting moving statistics.

    Args:
        depth: Number of layers with weights, shortcuts not counted: 50, 101 or 152 for bottleneck blocks, else 6n + 2
            with n >= 1. (50 and 152 are of the form 6n + 2, too; they mean the bottleneck designs.)
        input_shape: Shape of one image, (height, width, channels).
        classes: Number of logits, >= 1.
        residual: False leaves out the additions, and with them the shortcuts: the plain twin. Everything else is the
            same, also the initial weights of the same `seed`.
        shortcut: What stands in for the identity where a block changes the shape. "identity" (He et al.'s option A):
            every second pixel, new channels filled with zeros, no parameters; so plain and residual twins have
            equally many. "projection" (option B): a 1x1 convolution and batch normalization. None means "identity"
            for depths 6n + 2 and "projection" for 50, 101 and 152.
        width: Channels of the first stage's 3x3 convolutions, doubled from stage to stage. None means 16 for depths
            6n + 2, 64 for 50, 101 and 152.
        stem: Size of the first convolution's kernel: 7 (stride 2, followed by a 3x3 maximum of stride 2), or 3 for
            small images (stride 1, nothing more). None means 3 for depths 6n + 2, 7 for 50, 101 and 152.
        zero_last_gamma: True lets the last normalization of each residual branch start at gamma = 0, so that each
            block starts as the identity (Goyal et al. 2017, section 5.1). Only for residual networks.
        fused_normalization: True computes batch normalization by the backend's own kernel, the same function. A file
            of such a model loads only where nnopt is imported; without, plain Keras loads it.
        seed: Integer >= 0 from which every kernel derives a seed of its own. With None Keras draws them, so that
            `keras.utils.set_random_seed` decides.

    Returns:
        A functional `keras.Model`: (batch, height, width, channels) -> (batch, classes), in float32 also under a mixed
        dtype policy. Layers are named by place and kind ("stage_1_block_2_convolution_1", "stage_1_block_2_add",
        "stage_1_block_2_output", ..., "logits").

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> model = resnet(8, (32, 32, 3), 10, seed=0)
    >>> model.output_shape
    (None, 10)
    >>> plain = resnet(8, (32, 32, 3), 10, residual=False, seed=0)
    >>> model.count_params() == plain.count_params()
    True

    Reference: He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition", eq. 1, tables 1 and 6.
    The v1.5 form: Gross and Wilber 2016, "Training and investigating residual nets".
    """
    depth, blocks = _check_depth(depth)
    bottleneck = depth in BOTTLENECK_BLOCKS
    input_shape = check_image_shape(input_shape)
    classes = check_integer("classes", classes, at_least=1)
    check_boolean("residual", residual)
    shortcut = _check_shortcut(shortcut, bottleneck)
    width = check_integer("width", (64 if bottleneck else 16) if width is None else width, at_least=1)
    stem = _check_stem((7 if bottleneck else 3) if stem is None else stem)
    if check_boolean("zero_last_gamma", zero_last_gamma) and not residual:
        raise ValueError(
            "`zero_last_gamma` must be False with residual=False: without additions, a gamma of zero leaves nothing. "
            f"Received: zero_last_gamma={zero_last_gamma!r}"
        )
    normalization = keras.layers.BatchNormalization
    if check_boolean("fused_normalization", fused_normalization):
        normalization = FusedBatchNormalization
    layers = _Layers(seed, 1 + sum(blocks) * (3 if bottleneck else 2), len(blocks), normalization)
    block = _bottleneck_block if bottleneck else _basic_block

    inputs = keras.Input(input_shape)
    x = _stem(layers, inputs, width, stem)
    for stage, count in enumerate(blocks):
        for number in range(count):
            name = f"stage_{stage + 1}_block_{number + 1}"
            stride = 2 if stage > 0 and number == 0 else 1
            branch = block(layers, x, width * 2**stage, stride, zero_last_gamma, name)
            if residual:
                branch = keras.layers.Add(name=f"{name}_add")(
                    [branch, _shortcut(layers, x, branch, stride, shortcut, name)]
                )
            x = keras.layers.ReLU(name=f"{name}_output")(branch)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pooling")(x)
    kind = "resnet" if residual else "plain"
    return keras.Model(inputs, layers.logits(x, classes), name=f"{kind}_{depth}")


def _stem(layers, x, width, size):
    x = layers.convolution(x, width, size, 2 if size == 7 else 1, "stem_convolution")
    x = keras.layers.ReLU(name="stem_output")(layers.normalization(x, "stem_normalization"))
    if size == 3:
        return x
    # Nothing after a ReLU is below zero: padding with zeros gives the maxima that padding with -infinity would.
    x = keras.layers.ZeroPadding2D(1, data_format="channels_last", name="stem_pooling_padding")(x)
    return keras.layers.MaxPooling2D(3, 2, data_format="channels_last", name="stem_pooling")(x)


def _basic_block(layers, x, width, stride, zero_last_gamma, name):
    x = layers.convolution(x, width, 3, stride, f"{name}_convolution_1")
    x = keras.layers.ReLU(name=f"{name}_activation_1")(layers.normalization(x, f"{name}_normalization_1"))
    x = layers.convolution(x, width, 3, 1, f"{name}_convolution_2")
    return layers.normalization(x, f"{name}_normalization_2", zero_gamma=zero_last_gamma)


def _bottleneck_block(layers, x, width, stride, zero_last_gamma, name):
    x = layers.convolution(x, width, 1, 1, f"{name}_convolution_1")
    x = keras.layers.ReLU(name=f"{name}_activation_1")(layers.normalization(x, f"{name}_normalization_1"))
    x = layers.convolution(x, width, 3, stride, f"{name}_convolution_2")
    x = keras.layers.ReLU(name=f"{name}_activation_2")(layers.normalization(x, f"{name}_normalization_2"))
    x = layers.convolution(x, EXPANSION * width, 1, 1, f"{name}_convolution_3")
    return layers.normalization(x, f"{name}_normalization_3", zero_gamma=zero_last_gamma)


def _shortcut(layers, x, branch, stride, kind, name):
    """Returns `x` in the shape of `branch`."""
    if tuple(x.shape) == tuple(branch.shape):
        return x
    new_channels = branch.shape[-1] - x.shape[-1]
    if kind == "projection":
        x = layers.projection(x, branch.shape[-1], stride, f"{name}_shortcut_convolution")
        return layers.normalization(x, f"{name}_shortcut_normalization")
    if stride > 1:
        x = keras.layers.AveragePooling2D(1, stride, data_format="channels_last", name=f"{name}_shortcut_pixels")(x)
    return keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, new_channels]])


class _Layers:
    """Makes the layers of one network, each with the next seed of its kind."""

    def __init__(self, seed, convolutions, stages, normalization):
        self.kind_of_normalization = normalization
        # Shortcuts draw from a stream of their own: twins with and without them start with the same weights.
        self.seeds = iter(derived_seeds(seed, convolutions + 1))
        self.shortcut_seeds = iter(derived_seeds(seed, stages, stream=1))

    def convolution(self, x, filters, size, stride, name):
        return self._convolution(x, filters, size, stride, name, next(self.seeds))

    def projection(self, x, filters, stride, name):
        return self._convolution(x, filters, 1, stride, name, next(self.shortcut_seeds))

    def _convolution(self, x, filters, size, stride, name, seed):
        padding = "same"
        if stride > 1 and size > 1:  # "same" would pad more at the end than at the beginning
            x = keras.layers.ZeroPadding2D(size // 2, data_format="channels_last", name=f"{name}_padding")(x)
            padding = "valid"
        layer = keras.layers.Conv2D(
            filters,
            size,
            stride,
            padding,
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=seed),
            name=name,
        )
        return layer(x)

    def normalization(self, x, name, zero_gamma=False):
        return self.kind_of_normalization(
            momentum=0.9, epsilon=1e-5, gamma_initializer="zeros" if zero_gamma else "ones", name=name
        )(x)

    def logits(self, x, classes):
        initializer = keras.initializers.GlorotUniform(seed=next(self.seeds))
        return keras.layers.Dense(classes, kernel_initializer=initializer, dtype=logits_dtype(), name="logits")(x)


def _check_depth(depth):
    check_integer("depth", depth, at_least=8)
    if depth in BOTTLENECK_BLOCKS:
        return int(depth), BOTTLENECK_BLOCKS[depth]
    if (depth - 2) % 6:
        raise ValueError(f"`depth` must be 50, 101, 152 or 6n + 2 (8, 14, 20, 32, 56 ...). Received: depth={depth!r}")
    return int(depth), ((depth - 2) // 6,) * 3


def _check_shortcut(shortcut, bottleneck):
    if shortcut is None:
        return "projection" if bottleneck else "identity"
    return check_choice("shortcut", shortcut, ("identity", "projection"))


def _check_stem(stem):
    if check_integer("stem", stem) not in (3, 7):
        raise ValueError(f"`stem` must be 3 or 7, the size of the first kernel. Received: stem={stem!r}")
    return stem
