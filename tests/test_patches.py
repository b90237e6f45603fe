"""Convolutions as products of patches are the convolutions of Keras."""

import keras
import numpy as np
import pytest
from keras import layers

from nnopt._patches import multiply_patches

SAME = {
    "strides and padding": ((9, 7, 2), layers.Conv2D(3, (3, 2), strides=(2, 1), padding="same")),
    "dilation": ((9, 7, 2), layers.Conv2D(2, (3, 2), dilation_rate=(2, 3))),
    "dilation and padding": ((9, 7, 2), layers.Conv2D(2, (2, 3), dilation_rate=2, padding="same")),
    "one axis": ((10, 3), layers.Conv1D(4, 3, strides=2, padding="same", use_bias=False)),
    "a stride beyond the kernel": ((10, 3), layers.Conv1D(4, 2, strides=3)),
}
LEFT_ALONE = {
    "groups": ((8, 8, 4), layers.Conv2D(4, 3, groups=2)),
    "causal padding": ((8, 3), layers.Conv1D(4, 3, padding="causal")),
    "a transposed one": ((8, 8, 3), layers.Conv2DTranspose(4, 3)),
}
GROUPS_NEED_A_GPU = pytest.param(
    "groups", marks=pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow has none on a CPU")
)


def before_and_after(shape, layer):
    model = keras.Sequential([keras.Input(shape), keras.Sequential([keras.Input(shape), layer])])
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    expected = model(x)
    multiply_patches(model)
    return [keras.ops.convert_to_numpy(one) for one in (expected, model(x))]


@pytest.mark.parametrize("case", SAME)
def test_a_convolution_inside_an_inner_network_keeps_its_values(case):
    shape, layer = SAME[case]
    expected, found = before_and_after(shape, layer)
    assert "convolution_op" in vars(layer)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [GROUPS_NEED_A_GPU, "causal padding", "a transposed one"])
def test_what_it_cannot_multiply_is_left_alone(case):
    shape, layer = LEFT_ALONE[case]
    expected, found = before_and_after(shape, layer)
    assert "convolution_op" not in vars(layer)
    np.testing.assert_array_equal(found, expected)
