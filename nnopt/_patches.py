"""Convolutions as products of matrices: over many kernels at once much faster than one convolution after another."""

import functools

import numpy as np
from keras import Model, layers, ops


def multiply_patches(model):
    """Lets the convolutions of a network multiply matrices of patches, with the same values up to rounding.

    Conv1D and Conv2D do so, also in networks within the network; what has groups, causal padding or channels first
    stays as it is.

    Args:
        model: A built keras.Model.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3)])
    >>> image = keras.random.normal((1, 8, 8, 1), seed=0)
    >>> before = model(image)
    >>> multiply_patches(model)
    >>> bool(ops.all(ops.abs(model(image) - before) < 1e-5))
    True
    """
    for layer in model.layers:
        if isinstance(layer, Model):
            multiply_patches(layer)
        plain = type(layer) in (layers.Conv1D, layers.Conv2D) and layer.groups == 1 and layer.padding != "causal"
        if plain and layer.data_format == "channels_last":
            layer.convolution_op = functools.partial(_patch_product, layer)


def _patch_product(layer, inputs, kernel):
    """The convolution of a Conv1D or Conv2D layer as one product: (positions, patch) times (patch, filters)."""
    lengths = layer.compute_output_shape(inputs.shape)[1:-1]
    axes = list(zip(layer.kernel_size, layer.dilation_rate, layer.strides, lengths, inputs.shape[1:-1]))
    if layer.padding == "same":
        missing = [
            max((positions - 1) * stride + (size - 1) * dilation + 1 - length, 0)
            for size, dilation, stride, positions, length in axes
        ]
        inputs = ops.pad(inputs, [(0, 0), *((one // 2, one - one // 2) for one in missing), (0, 0)])
    shifted = []
    for offsets in np.ndindex(*layer.kernel_size):
        cuts = [
            slice(offset * dilation, offset * dilation + (positions - 1) * stride + 1, stride)
            for offset, (_, dilation, stride, positions, _) in zip(offsets, axes)
        ]
        shifted.append(inputs[(slice(None), *cuts)])
    patches = ops.concatenate(shifted, axis=-1)  # (batch, ..., size * channels)
    product = ops.matmul(ops.reshape(patches, (-1, patches.shape[-1])), ops.reshape(kernel, (-1, kernel.shape[-1])))
    return ops.reshape(product, (-1, *lengths, kernel.shape[-1]))
