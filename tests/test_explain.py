"""Maps of attributions against closed forms, their axioms, and another library."""

import keras
import numpy as np
import pytest
from keras import ops

from nnopt import explain
from nnopt.models import cnn, mlp, resnet


def linear(weights):
    """A model whose logits are x W, from a matrix (inputs, classes)."""
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(len(weights[0]), use_bias=False)])
    model.set_weights([np.array(weights, "float32")])
    return model


@pytest.fixture(scope="module")
def network():
    return mlp((6,), [12, 8], classes=3, activation="tanh", seed=0)


@pytest.fixture(scope="module")
def images():
    """A small convolutional network, and images."""
    x = np.random.default_rng(0).uniform(size=(3, 8, 8, 2)).astype("float32")
    return cnn((8, 8, 2), [4, 5], classes=3, seed=0), x


def logits(model, x):
    return ops.convert_to_numpy(model(x)).astype("float64")


def inputs(count, size=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype("float32")


def test_saliency_is_the_slope_of_the_logit(network):
    x, y = inputs(4), np.array([0, 1, 2, 1])
    found = explain.saliency(network, x, y)
    for place in range(6):
        moved = np.eye(6)[place] * 1e-2
        up, down = logits(network, (x + moved).astype("float32")), logits(network, (x - moved).astype("float32"))
        expected = (up - down)[np.arange(4), y] / 2e-2
        np.testing.assert_allclose(found[:, place], expected, atol=2e-3)


def test_without_a_class_the_model_s_own_answer_is_explained(network):
    x = 3 * inputs(40)
    answers = logits(network, x).argmax(axis=1)
    assert len(set(answers)) > 1
    np.testing.assert_array_equal(explain.saliency(network, x), explain.saliency(network, x, answers))


def test_smooth_grad_is_the_mean_saliency_of_noisy_copies(network):
    x, y = inputs(3), np.array([0, 1, 2])
    np.testing.assert_allclose(explain.smooth_grad(network, x, y, noise=0), explain.saliency(network, x, y), rtol=1e-5)
    one = explain.smooth_grad(network, x, y, noise=0.2, samples=100, seed=0)
    other = explain.smooth_grad(network, x, y, noise=0.2, samples=100, seed=1)
    spread = np.abs(one - other).max()
    assert 0 < spread < np.abs(one - explain.saliency(network, x, y)).max()
    first = explain.smooth_grad(network, x, y, noise=0.2, samples=1, seed=5)
    scale = 0.2 * (x.max(axis=1) - x.min(axis=1))[:, None]
    moved = (x + scale * np.random.default_rng(5).normal(size=x.shape)).astype("float32")
    np.testing.assert_allclose(first, explain.saliency(network, moved, y), atol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.3, np.linspace(-1, 1, 6)])
def test_integrated_gradients_add_up(baseline, network):
    x, y = inputs(7), np.arange(7) % 3
    attributions, delta = explain.integrated_gradients(network, x, y, baseline=baseline)
    start = np.broadcast_to(np.asarray(baseline, "float32"), x.shape)
    change = (logits(network, x) - logits(network, start))[np.arange(7), y]
    np.testing.assert_allclose(attributions.sum(axis=1), change, atol=1e-4)
    np.testing.assert_allclose(delta, attributions.sum(axis=1) - change, atol=1e-5)
    few, error = explain.integrated_gradients(network, x, y, baseline=baseline, steps=1)
    np.testing.assert_allclose(error, few.sum(axis=1) - change, atol=1e-5)
    assert np.abs(error).max() > 1e-3


def test_an_input_that_changes_nothing_gets_nothing():
    model = linear([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]])
    attributions, _ = explain.integrated_gradients(model, inputs(4, 3), np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(attributions[:, 1], 0)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="captum explains torch's modules")
def test_another_library_integrates_alike(network):
    captum = pytest.importorskip("captum.attr")
    torch = pytest.importorskip("torch")
    x, y = inputs(5), np.array([0, 1, 2, 0, 1])
    for steps in (4, 32):
        expected, error = captum.IntegratedGradients(lambda batch: network(batch)).attribute(
            torch.tensor(x), target=torch.tensor(y), n_steps=steps, return_convergence_delta=True
        )
        found, delta = explain.integrated_gradients(network, x, y, steps=steps)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(delta, error.numpy(), atol=1e-4)


def test_grad_cam_is_its_formula_on_the_last_convolution(images):
    """Behind it stand a pooling over positions and one dense layer: all slopes are known."""
    x = images[1]
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), keras.layers.Conv2D(5, 3, name="maps"), keras.layers.GlobalAveragePooling2D(),
         keras.layers.Dense(3)]
    )  # fmt: skip
    maps = ops.convert_to_numpy(model.get_layer("maps")(x))  # (3, 6, 6, 5)
    y = np.array([2, 0, 1])
    slopes = model.layers[-1].get_weights()[0].T[y] / 36  # (3, 5)
    heat = np.maximum(np.einsum("bk,bhwk->bhw", slopes, maps), 0)
    found = explain.grad_cam(model, x, model.get_layer("maps"), y)
    assert found.shape == (3, 8, 8)
    expected = ops.convert_to_numpy(ops.image.resize(heat[..., None], (8, 8)))[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_grad_cam_reaches_into_a_network_within_the_network(images):
    inner, x = images
    outside = keras.Input((8, 8, 2))
    nested = keras.Model(outside, keras.layers.Dense(2)(keras.Model(inner.input, inner.output, name="body")(outside)))
    layer = [layer for layer in inner.layers if isinstance(layer, keras.layers.Conv2D)][-1]
    before = logits(nested, x)
    found = explain.grad_cam(nested, x, layer, np.array([0, 1, 1]))
    assert found.shape == (3, 8, 8)
    assert found.max() > 0
    np.testing.assert_array_equal(logits(nested, x), before)  # the layer is as it was
    assert "call" not in vars(layer)
    network = resnet(8, (8, 8, 2), classes=3, seed=0)
    last = [layer for layer in network.layers if len(layer.output.shape) == 4][-1]
    assert explain.grad_cam(network, x, last).shape == (3, 8, 8)


def test_grad_cam_refuses_a_layer_without_maps(images):
    model, x = images
    with pytest.raises(ValueError, match=r"`layer` must be called once by the model and return \(batch, height"):
        explain.grad_cam(model, x, model.layers[-1])
    stranger = keras.layers.Conv2D(2, 3)
    with pytest.raises(ValueError, match=r"`layer` must be called once.*which returned \[\]"):
        explain.grad_cam(model, x, stranger)
    with pytest.raises(TypeError, match="`layer` must be a layer of the model"):
        explain.grad_cam(model, x, "conv")


def test_occlusion_of_a_linear_model_is_what_the_window_held():
    weights = np.random.default_rng(1).normal(size=(16, 2))
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([weights.astype("float32")])
    x, y = inputs(3, 16).reshape(3, 4, 4, 1), np.array([0, 1, 1])
    share = x[..., 0] * weights.T[y].reshape(3, 4, 4)
    np.testing.assert_allclose(explain.occlusion(model, x, y, size=1), share, atol=1e-5)
    blocks = explain.occlusion(model, x, y, size=2, stride=2)
    expected = share.reshape(3, 2, 2, 2, 2).sum(axis=(2, 4)).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(blocks, expected, atol=1e-5)
    against_itself = explain.occlusion(model, x, y, size=3, fill=x)
    np.testing.assert_allclose(against_itself, 0, atol=1e-6)


def test_the_curves_cover_and_uncover_the_largest_first():
    weights = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0], [0.0, -3.0]])
    model = linear(weights)
    x, y = np.ones((2, 4), "float32"), np.array([1, 0])
    attributions = np.array([[1.0, 2.0, 4.0, -3.0], [0.0, 0.0, -1.0, 5.0]])
    sums = np.array([[4.0, 0.0, -2.0, -3.0, 0.0], [4.0, 7.0, 6.0, 4.0, 0.0]])  # of the logit of class 1
    expected = 1 / (1 + np.exp(-sums * np.array([[1], [-1]])))
    np.testing.assert_allclose(explain.deletion_curve(model, x, attributions, y, steps=4), expected, atol=1e-6)
    sums = np.array([[0.0, 4.0, 6.0, 7.0, 4.0], [0.0, -3.0, -2.0, 0.0, 4.0]])
    expected = 1 / (1 + np.exp(-sums * np.array([[1], [-1]])))
    found = explain.deletion_curve(model, x, attributions, y, steps=4, insertion=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_map_without_channels_covers_all_of_them(images):
    model, x = images
    heat = np.random.default_rng(0).normal(size=x.shape[:3])
    alone = explain.deletion_curve(model, x, heat, steps=4)
    assert alone.shape == (3, 5)
    covered = np.where(heat[..., None] >= np.sort(heat.reshape(3, -1))[:, -16][:, None, None, None], 0, x)
    values = logits(model, covered.astype("float32"))
    shares = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    answers = logits(model, x).argmax(axis=1)
    np.testing.assert_allclose(alone[:, 1], shares[np.arange(3), answers], atol=1e-5)


def test_new_weights_are_explained_anew(network):
    model = keras.models.clone_model(network)
    x, y = inputs(2), np.array([0, 1])
    before = explain.saliency(model, x, y)
    model.set_weights([2 * weight for weight in model.get_weights()])
    assert np.abs(explain.saliency(model, x, y) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        ("saliency", {"x": np.zeros((2, 6), int)}, "`x` must hold finite, floating-point inputs"),
        ("saliency", {"x": np.full((2, 6), np.inf)}, "`x` must hold finite"),
        ("saliency", {"y": np.array([0, 3])}, "`y` must hold an integer from 0 to 2 for each of the 2 inputs"),
        ("smooth_grad", {"noise": -1}, "`noise` must be a finite number >= 0"),
        ("smooth_grad", {"samples": 0}, "`samples` must be an integer >= 1"),
        ("smooth_grad", {"seed": -1}, "`seed` must be an integer >= 0"),
        ("integrated_gradients", {"steps": 0}, "`steps` must be an integer >= 1"),
        ("integrated_gradients", {"baseline": np.zeros(5)}, "`baseline` must be a number or an array that fits x"),
        ("integrated_gradients", {"baseline": "black"}, "`baseline` must be a number or an array that fits x"),
        ("deletion_curve", {"attributions": np.zeros((2, 5))}, "`attributions` must be finite and of the shape of x"),
        ("deletion_curve", {"attributions": np.full((2, 6), np.nan)}, "`attributions` must be finite"),
        ("deletion_curve", {"attributions": np.zeros((2, 6)), "steps": 0}, "`steps` must be an integer >= 1"),
        ("occlusion", {}, "`x` must be images"),
    ],
)
def test_a_wrong_argument_is_named(function, options, text, network):
    with pytest.raises(ValueError, match=text):
        getattr(explain, function)(**{"model": network, "x": inputs(2), **options})
