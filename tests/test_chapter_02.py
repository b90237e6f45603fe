"""The convolution, pooling, receptive field and operations of chapter 02, against Keras, SciPy and counting by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy.signal import correlate

import nnopt

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

CHAPTER = from_scratch("02_convolutional_neural_networks", layers=keras.layers)
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def of(name, *arguments, **options):
    return ops.convert_to_numpy(CHAPTER[name](*arguments, **options))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_convolution_is_scipys_correlation(padding, size):
    x, kernel = normal(2, 9, 7, 3), normal(size, size, 3, 4)
    for image, maps in zip(x, of("convolve", x, kernel, 0.5, padding)):
        for number in range(4):
            planes = [correlate(image[:, :, c], kernel[:, :, c, number], mode=padding) for c in range(3)]
            np.testing.assert_allclose(maps[:, :, number], 0.5 + np.sum(planes, axis=0), atol=1e-4)


@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_leaves_values_out(stride):
    x, kernel = normal(2, 11, 8, 3), normal(3, 3, 3, 4)
    every = of("convolve", x, kernel, padding="valid")
    strided = of("convolve", x, kernel, padding="valid", stride=stride)
    np.testing.assert_allclose(strided, every[:, ::stride, ::stride], atol=1e-5)
    np.testing.assert_allclose(strided, ops.conv(x, kernel, stride, "valid", data_format="channels_last"), atol=1e-4)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pooling", ["max", None])
def test_the_network_has_the_logits_of_keras(padding, pooling):
    images = normal(5, 13, 11, 3)
    model = nnopt.models.cnn((13, 11, 3), [4, 6], 10, padding=padding, pooling=pooling, seed=0)
    weights = [array + 0.1 for array in model.get_weights()]  # no biases of zero
    model.set_weights(weights)
    ours = of("forward", weights, images, padding, pooled=pooling is not None)
    np.testing.assert_allclose(ours, ops.convert_to_numpy(model(images)), atol=1e-4)


def test_pooling_takes_the_largest_of_each_block_and_leaves_an_odd_border():
    x = np.arange(15, dtype="float32").reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(of("pool", x)[0, :, :, 0], [[6, 8]])


def test_the_matrix_of_a_convolution_repeats_nine_weights_for_neighbours_only():
    kernel = (1 + np.arange(9, dtype="float32")).reshape(3, 3, 1, 1)
    matrix, image = CHAPTER["as_matrix"](kernel, 6), normal(6, 6)
    expected = correlate(image, kernel[:, :, 0, 0], mode="same")
    np.testing.assert_allclose(image.ravel() @ matrix, expected.ravel(), atol=1e-4)
    assert set(np.unique(matrix)) == set(range(10))
    rows, columns = np.nonzero(matrix)
    assert np.abs(rows // 6 - columns // 6).max() <= 1
    assert np.abs(rows % 6 - columns % 6).max() <= 1


@pytest.mark.parametrize("stages", [[(3, 1)] * 3, [(5, 1), (2, 2), (3, 1)], [(3, 1), (2, 2), (3, 1), (2, 2), (3, 1)]])
def test_the_receptive_field_is_the_square_that_a_value_sees(stages):
    seen = CHAPTER["paths"](stages, side=32) > 0
    field = CHAPTER["receptive_field"](stages)
    assert seen.any(axis=0).sum() == seen.any(axis=1).sum() == field
    assert seen.sum() == field**2


def test_operations_are_two_for_every_weight_at_every_place():
    model = nnopt.models.cnn((8, 8, 1), [8, 16], 10, units=(5,))
    assert CHAPTER["operations"](model) == 2 * (64 * 9 * 8 + 16 * 9 * 8 * 16 + 2 * 2 * 16 * 5 + 5 * 10)
    valid = nnopt.models.cnn((8, 8, 1), [8], 10, padding="valid", pooling=None)
    assert CHAPTER["operations"](valid) == 2 * (36 * 9 * 8 + 36 * 8 * 10)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_influence_counts_the_ways_of_two_convolutions(padding):
    once = np.convolve(np.ones(12 if padding == "same" else 8), np.ones(3), "same" if padding == "same" else "full")
    twice = np.convolve(once, np.ones(3), "same" if padding == "same" else "full")  # back from the last map to pixels
    np.testing.assert_allclose(CHAPTER["influence"](padding), np.outer(twice, twice), atol=1e-3)


def test_the_tasks_share_their_digits_and_differ_in_what_they_say():
    sets = {task: CHAPTER["arranged"](task, 3) for task in ("scattered", "shuffled", "few", "centre")}
    assert all(len(one.train[1]) == 300 and one.train[0].shape[1:] == (12, 12, 1) for one in sets.values())
    for part in ("train", "validation", "test"):
        (x, y), (mixed, labels) = getattr(sets["scattered"], part), getattr(sets["shuffled"], part)
        np.testing.assert_array_equal(y, labels)
        np.testing.assert_array_equal(np.sort(x.reshape(len(x), -1)), np.sort(mixed.reshape(len(x), -1)))
        assert not np.array_equal(x, mixed)
        centred = getattr(sets["centre"], part)[0]
        assert centred[:, 2:10, 3:9].sum() == centred.sum()
    assert len(np.unique(sets["few"].train[0], axis=0)) == 75
    inked = sets["scattered"].train[0].sum(axis=(0, 3))
    assert min(inked[0].sum(), inked[-1].sum(), inked[:, 0].sum(), inked[:, -1].sum()) > 5  # ink at all four edges
