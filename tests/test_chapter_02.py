"""The convolution, pooling and count of operations of chapter 02, against Keras, SciPy and counting by hand."""

import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy.signal import correlate

import nnopt

CHAPTER = from_scratch("02_convolutional_neural_networks")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pooling", ["max", None])
def test_the_network_has_the_logits_of_keras(padding, pooling):
    images = RANDOM.normal(size=(5, 13, 11, 3)).astype("float32")
    assert CHAPTER["check_against_keras"](images, padding, pooling) < 1e-4


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_convolution_is_scipys_correlation(padding, size):
    x, kernel = RANDOM.normal(size=(2, 9, 7, 3)), RANDOM.normal(size=(size, size, 3, 4))
    x, kernel = x.astype("float32"), kernel.astype("float32")
    ours = ops.convert_to_numpy(
        CHAPTER["convolve"](ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), 0.5, padding)
    )
    for image, maps in zip(x, ours):
        for number in range(4):
            planes = [correlate(image[:, :, c], kernel[:, :, c, number], mode=padding) for c in range(3)]
            np.testing.assert_allclose(maps[:, :, number], 0.5 + np.sum(planes, axis=0), atol=1e-4)


def test_pooling_takes_the_largest_of_each_block_and_leaves_an_odd_border():
    x = np.arange(15, dtype="float32").reshape(1, 3, 5, 1)
    pooled = ops.convert_to_numpy(CHAPTER["pool"](ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[6, 8]])


def test_the_matrix_of_a_convolution_repeats_nine_weights_for_neighbours_only():
    kernel = (1 + np.arange(9, dtype="float32")).reshape(3, 3, 1, 1)
    matrix = CHAPTER["as_matrix"](kernel, 6)
    image = RANDOM.normal(size=(6, 6)).astype("float32")
    expected = correlate(image, kernel[:, :, 0, 0], mode="same")
    np.testing.assert_allclose(image.ravel() @ matrix, expected.ravel(), atol=1e-4)
    assert set(np.unique(matrix)) == set(range(10))
    rows, columns = np.nonzero(matrix)
    assert np.abs(rows // 6 - columns // 6).max() <= 1
    assert np.abs(rows % 6 - columns % 6).max() <= 1


def test_operations_are_two_for_every_weight_at_every_place():
    model = nnopt.models.cnn((8, 8, 1), [8, 16], 10, units=(5,))
    by_hand = 2 * (64 * 9 * 8 + 16 * 9 * 8 * 16 + 2 * 2 * 16 * 5 + 5 * 10)
    assert CHAPTER["operations"](model) == by_hand
    valid = nnopt.models.cnn((8, 8, 1), [8], 10, padding="valid", pooling=None)
    assert CHAPTER["operations"](valid) == 2 * (36 * 9 * 8 + 36 * 8 * 10)
