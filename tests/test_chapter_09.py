"""The blocks, gradients, paths, twins and directions of chapter 09."""

import itertools

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

import nnopt

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

CHAPTER = from_scratch("09_residual_networks", EXAMPLES=64, BATCH=16)
RANDOM = np.random.default_rng(0)


def small_network(depth=8, networks=2):
    return CHAPTER["initial"](depth, range(networks)), RANDOM.normal(size=(networks, 1, 8, 8, 16)).astype("float32")


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (8, 2)])
def test_the_block_is_that_of_keras(channels, stride, residual):
    assert CHAPTER["check_block"](channels, stride, residual) < 1e-4


def test_the_network_by_hand_is_the_packages():
    by_hand = CHAPTER["keras_network"](8)
    short = nnopt.models.resnet(8, (8, 8, 1), 10, width=4)
    assert [weight.shape for weight in short.weights] == [weight.shape for weight in by_hand.weights]


@pytest.mark.parametrize("residual", [True, False])
def test_the_gradient_is_that_of_keras(residual):
    assert CHAPTER["check_gradient"](8, residual) < 1e-4


def test_a_forgotten_addition_on_the_way_back_is_noticed(monkeypatch):
    right = CHAPTER["block_back"]
    monkeypatch.setitem(CHAPTER, "block_back", lambda slope, saved: right(slope, (*saved[:4], False, saved[5])))
    assert CHAPTER["check_gradient"](8, True) > 0.01


def test_networks_side_by_side_do_not_disturb_each_other():
    weights, x = small_network()
    labels = RANDOM.integers(10, size=(2, 16))
    loss, right, slopes = CHAPTER["gradient"](weights, x, labels, True)
    for number in range(2):
        own = [[part[number : number + 1] for part in parts] for parts in weights]
        one = CHAPTER["gradient"](own, x[number : number + 1], labels[number : number + 1], True)
        np.testing.assert_allclose(loss[number], one[0][0], rtol=1e-5)
        np.testing.assert_allclose(slopes[1][0][number], one[2][1][0][0], atol=1e-5)
        assert right[number] == one[1][0]


@pytest.mark.parametrize("residual", [True, False])
def test_jacobians_of_the_blocks_multiply_to_finite_differences(residual):
    assert CHAPTER["check_jacobian"](residual) < 1e-6


def test_a_wrong_jacobian_is_noticed():
    blocks, x = CHAPTER["dense_blocks"]([1.0] * 3), RANDOM.normal(size=16)
    _, right = CHAPTER["through"](x, blocks)
    _, plain = CHAPTER["through"](x, blocks, residual=False)
    assert np.abs(CHAPTER["by_length"](right).sum(axis=0) - CHAPTER["by_length"](plain).sum(axis=0)).max() > 0.1


def test_paths_are_sorted_by_their_length():
    one, other, third = RANDOM.normal(size=(3, 4, 4))
    paths = CHAPTER["by_length"]([one, other, third])
    expected = [np.eye(4), one + other + third, one @ other + one @ third + other @ third, one @ other @ third]
    np.testing.assert_allclose(paths, expected)


def test_the_predicted_shares_are_those_of_the_number_of_paths():
    np.testing.assert_allclose(CHAPTER["predicted"](np.ones(4)), np.array([1, 4, 6, 4, 1]) / 16)
    measured = np.mean([CHAPTER["carried"](np.ones(4), seed) for seed in range(50)], axis=0)
    np.testing.assert_allclose(measured, np.array([1, 4, 6, 4, 1]) / 16, atol=0.05)


@pytest.mark.parametrize("depth", [8, 14])
def test_twins_differ_in_the_additions_only(depth):
    widths = [1, 4] + [4] * (depth // 3) + [8] * (depth // 3) + [16] * (depth // 3)
    kernels = sum(9 * old * new for old, new in itertools.pairwise(widths))
    assert CHAPTER["check_twins"](depth) == kernels + 2 * sum(widths[1:]) + 16 * 10 + 10


def test_silenced_branches_leave_the_shortcuts():
    CHAPTER["check_silenced"](8)


def test_initial_weights_are_distributed_as_the_packages():
    model = nnopt.models.resnet(8, (8, 8, 1), 10, width=16, seed=0)
    drawn = [part for parts in CHAPTER["initial"](8, [1], width=16) for part in parts]
    assert [part.shape[1:] for part in drawn] == [tuple(weight.shape) for weight in model.trainable_weights]
    for part, weight in zip(drawn, model.trainable_weights):
        own = keras.ops.convert_to_numpy(weight)
        assert part.std() == pytest.approx(own.std(), rel=0.15)
        assert part.mean() == pytest.approx(own.mean(), abs=4 * own.std() / np.sqrt(own.size) + 1e-7)


def test_training_is_that_of_keras():
    x, y = RANDOM.normal(size=(64, 8, 8, 1)).astype("float32"), RANDOM.integers(10, size=64)
    order = np.arange(64)[::-1]
    weights = CHAPTER["initial"](8, [3])
    model = nnopt.models.resnet(8, (8, 8, 1), 10, width=4)
    for weight, part in zip(model.trainable_weights, [part for parts in weights for part in parts]):
        weight.assign(part[0])
    trained, notes = CHAPTER["train"](weights, x, y, order[None], [0.02], True)
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = model.fit(x[order], y[order], batch_size=16, epochs=1, shuffle=False, verbose=0).history
    assert notes[:, 0].mean() == pytest.approx(history["loss"][0], rel=1e-3)
    for weight, part in zip(model.trainable_weights, [part for parts in trained for part in parts]):
        np.testing.assert_allclose(part[0], keras.ops.convert_to_numpy(weight), atol=2e-3)


def test_clipping_cuts_each_network_alone():
    slope = np.stack([np.full((3, 2), 0.01), np.full((3, 2), 1.0)]).astype("float32")
    cut = CHAPTER["clipped"](slope, 0.1)
    np.testing.assert_array_equal(cut[0], slope[0])
    assert np.linalg.norm(cut[1]) == pytest.approx(0.1)


def test_a_direction_is_as_long_as_each_filter_and_leaves_the_rest():
    weights = [[part[0] for part in parts] for parts in CHAPTER["initial"](8, [0])]
    for parts, directions in zip(weights, CHAPTER["filter_direction"](weights, seed=0)):
        lengths = [np.linalg.norm(one.reshape(-1, one.shape[-1]), axis=0) for one in (parts[0], directions[0])]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        assert not any(one.any() for one in directions[1:])
