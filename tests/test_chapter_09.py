"""The residual block, its Jacobian, the twins and the filter-normalized direction of chapter 09."""

import itertools

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

import nnopt

CHAPTER = from_scratch("09_residual_networks")


@pytest.mark.parametrize("residual", [True, False])
def test_the_block_is_the_packages(residual):
    assert CHAPTER["check_block"](residual) < 1e-4


@pytest.mark.parametrize("residual", [True, False])
def test_jacobians_of_the_blocks_multiply_to_finite_differences(residual):
    assert CHAPTER["check_jacobian"](residual).word == "exact"


def test_a_wrong_jacobian_is_noticed():
    blocks = CHAPTER["dense_blocks"](3, lambda number: 1.0)
    x = np.random.default_rng(1).normal(size=16)
    _, right = CHAPTER["through"](x, blocks)
    _, plain = CHAPTER["through"](x, blocks, residual=False)
    assert np.abs(CHAPTER["by_length"](right).sum(axis=0) - CHAPTER["by_length"](plain).sum(axis=0)).max() > 0.1


def test_paths_are_sorted_by_their_length():
    one, other, third = np.random.default_rng(0).normal(size=(3, 4, 4))
    paths = CHAPTER["by_length"]([one, other, third])
    expected = [np.eye(4), one + other + third, one @ other + one @ third + other @ third, one @ other @ third]
    np.testing.assert_allclose(paths, expected)


@pytest.mark.parametrize("depth", [8, 20])
def test_twins_differ_in_the_additions_only(depth):
    convolutions = [3, 4] + [4] * (depth // 3) + [8] * (depth // 3) + [16] * (depth // 3)
    kernels = sum(9 * a * b for a, b in itertools.pairwise(convolutions))
    assert CHAPTER["check_twins"](depth) == kernels + 4 * sum(convolutions[1:]) + 16 * 10 + 10


def test_silenced_branches_leave_the_shortcuts():
    CHAPTER["check_silenced"](8)


def test_initial_weights_are_distributed_as_the_packages():
    model = nnopt.models.resnet(8, (8, 8, 3), 10, width=16, seed=0)
    flat, start = CHAPTER["initial"](model, seed=1), 0
    for weight in model.trainable_weights:
        own = keras.ops.convert_to_numpy(weight).ravel()
        drawn = flat[start : start + own.size]
        start += own.size
        assert drawn.std() == pytest.approx(own.std(), rel=0.15)
        assert drawn.mean() == pytest.approx(own.mean(), abs=4 * own.std() / np.sqrt(own.size) + 1e-7)
    assert start == len(flat)
    np.testing.assert_array_equal(flat, CHAPTER["initial"](model, seed=1))
    assert not np.array_equal(flat, CHAPTER["initial"](model, seed=2))


def test_a_direction_is_as_long_as_each_filter_and_leaves_the_rest():
    shapes, generator = [(3, 3, 2, 5), (5,), (5, 4), (4,)], np.random.default_rng(0)
    flat = generator.normal(size=90 + 5 + 20 + 4)
    direction = CHAPTER["filter_direction"](flat, shapes, seed=0)
    for start, stop, filters in ((0, 90, 5), (95, 115, 4)):
        lengths = [np.linalg.norm(one[start:stop].reshape(-1, filters), axis=0) for one in (flat, direction)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert not direction[90:95].any()
    assert not direction[115:].any()
