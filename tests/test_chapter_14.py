"""The from-scratch cells of chapter 14 against closed forms and the library."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy import stats

import nnopt
from nnopt import explain

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)


def network(activation="relu"):
    return nnopt.models.cnn(
        (8, 8, 1), [4, 6], 10, padding="valid", pooling=None, units=[12], activation=activation, seed=0
    )


CHAPTER = from_scratch("14_interpretability", explain=explain, stats=stats, network=network)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(size=(4, 8, 8, 1)).astype("float32")
LABELS = np.array([3, 1, 4, 1])


@pytest.fixture(scope="module")
def model():
    """A network whose biases are no zeros, so that a bias forgotten shows."""
    one = network()
    one.set_weights([weight + RANDOM.normal(0, 0.1, weight.shape) for weight in one.get_weights()])
    return one


def test_the_slope_of_a_square_is_known():
    at = np.array([1.0, -2.0, 0.5], "float32")
    np.testing.assert_allclose(CHAPTER["slope"](lambda x: ops.sum(x**3), at), 3 * at**2, rtol=1e-6)


def test_saliency_and_integrated_gradients_are_the_library_s(model):
    found = CHAPTER["my_saliency"](model, IMAGES, LABELS)
    np.testing.assert_allclose(found, explain.saliency(model, IMAGES, LABELS), atol=1e-5)
    for baseline in (0.0, 0.5):
        mine, delta = CHAPTER["my_integrated_gradients"](model, IMAGES, LABELS, baseline=baseline, steps=8)
        theirs, their_delta = explain.integrated_gradients(model, IMAGES, LABELS, baseline=baseline, steps=8)
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
        np.testing.assert_allclose(delta, their_delta, atol=1e-5)


def test_more_points_are_taken_until_the_sum_is_complete(model):
    error, taken = CHAPTER["complete"](model, IMAGES, LABELS, most=256)
    _, delta = explain.integrated_gradients(model, IMAGES[:1], LABELS[:1], steps=int(taken[0]))
    change = (ops.convert_to_numpy(model(IMAGES[:1])) - ops.convert_to_numpy(model(0 * IMAGES[:1])))[0, LABELS[0]]
    np.testing.assert_allclose(error[0], abs(delta[0] / change), rtol=1e-3)
    assert set(taken.tolist()) <= {64, 128, 256}


def test_grad_cam_is_the_library_s(model):
    heat = CHAPTER["my_grad_cam"](model, IMAGES, LABELS, "activation_1")
    assert heat.shape == (4, 6, 6)
    expected = explain.grad_cam(model, IMAGES, model.get_layer("activation_1"), LABELS)
    resized = ops.convert_to_numpy(ops.image.resize(heat[..., None], (8, 8)))[..., 0]
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_guided_relu_lets_only_positive_signals_back():
    u, g = np.array([-1.0, 2.0, 3.0, -4.0], "float32"), np.array([5.0, 6.0, -7.0, -8.0], "float32")
    found = CHAPTER["slope"](lambda at: ops.sum(CHAPTER["guided_relu"](at) * g), u)
    np.testing.assert_array_equal(found, [0.0, 6.0, 0.0, 0.0])
    np.testing.assert_array_equal(ops.convert_to_numpy(CHAPTER["guided_relu"](ops.convert_to_tensor(u))), [0, 2, 3, 0])


def test_the_guide_has_the_model_s_weights(model):
    guide = network(CHAPTER["guided_relu"])
    found = CHAPTER["guided_backpropagation"](model, guide, IMAGES, LABELS)
    np.testing.assert_allclose(guide(IMAGES), model(IMAGES), atol=1e-5)
    assert np.abs(found - explain.saliency(model, IMAGES, LABELS)).max() > 1e-3


def test_the_rank_correlation_is_scipy_s():
    one, other = RANDOM.normal(size=(2, 5, 8, 8, 1))
    other[0] = 1.0  # the same everywhere: no relation
    other[1] = one[1] ** 3
    found = CHAPTER["rank_correlation"](one, other)
    assert found[0] == 0
    for number in range(1, 5):
        expected = stats.spearmanr(one[number].ravel(), other[number].ravel())[0]
        np.testing.assert_allclose(found[number], expected, atol=1e-12)
    np.testing.assert_allclose(found[1], 1)


def test_only_the_upper_layers_are_random(model):
    weights, fresh = model.get_weights(), CHAPTER["fresh_weights"](1)
    for layers in range(5):
        found = CHAPTER["randomized"](weights, fresh, layers)
        same = [one is other for one, other in zip(found, weights)]
        assert same == [True] * (8 - 2 * layers) + [False] * (2 * layers)


def test_a_shifted_network_is_the_same_function_and_a_black_baseline_is_not(model):
    moved = network()
    moved.set_weights(CHAPTER["shifted"](model.get_weights(), 0.5))
    shifted = IMAGES + np.float32(0.5)
    np.testing.assert_allclose(moved(shifted), model(IMAGES), atol=1e-4)
    before, _ = explain.integrated_gradients(model, IMAGES, LABELS)
    with_it, _ = explain.integrated_gradients(moved, shifted, LABELS, baseline=0.5)
    without, _ = explain.integrated_gradients(moved, shifted, LABELS)
    np.testing.assert_allclose(with_it, before, atol=1e-3)
    assert np.abs(without - before).max() > 1e-2


def test_the_mark_tells_the_label():
    told = np.arange(10)
    x = CHAPTER["marked"](np.ones((10, 8, 8, 1), "float32"), told)
    read = x[:, :2, :2, 0].reshape(10, 4) @ np.array([1, 2, 4, 8])
    np.testing.assert_array_equal(read - 1, told)
    np.testing.assert_allclose(x[:, 2:], 0.3)
    np.testing.assert_allclose(x[:, :2, 2:], 0.3)


def test_tokens_are_padded_behind():
    numbers = CHAPTER["vocabulary"](["b a", "a c"])
    assert numbers == {"a": 3, "b": 4, "c": 5}
    np.testing.assert_array_equal(CHAPTER["tokens"](["a", "c b d"], numbers, after=[2]), [[3, 2, 0], [5, 4, 2]])
