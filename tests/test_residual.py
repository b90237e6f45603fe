import subprocess
import sys

import keras
import numpy as np
import pytest
import torch_models

from nnopt.models import resnet
from nnopt.models.normalization import FusedBatchNormalization

GENERATOR = np.random.default_rng(0)
THOROUGH = pytest.mark.thorough


def array(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))  # a copy: a training step may reuse the tensor's memory


def images(count, size, channels=3):
    return GENERATOR.normal(size=(count, size, size, channels)).astype("float32")


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def gradients(model, x, y):
    """The gradients of one training step, read off what plain gradient descent at rate 1 does to the weights."""
    before = [array(weight) for weight in model.trainable_weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=keras.backend.backend() == "jax")
    model.train_on_batch(x, y)
    return [old - array(weight) for old, weight in zip(before, model.trainable_weights)]


def test_resnet_computes_the_function_of_pytorchs():
    logits = torch_models.small_resnet().predict(torch_models.IMAGES, verbose=0)
    np.testing.assert_allclose(logits, torch_models.recorded()["resnet logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(50, 25_557_032), pytest.param(101, 44_549_160, marks=THOROUGH), pytest.param(152, 60_192_808, marks=THOROUGH)],
)
def test_bottleneck_networks_have_the_published_parameters(depth, parameters):
    assert trainable(resnet(depth, (64, 64, 3), 1000)) == parameters


@pytest.mark.parametrize(("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (56, 0.85e6)])
def test_small_networks_have_the_layers_and_parameters_of_the_article(depth, parameters):
    model = resnet(depth, (32, 32, 3), 10)
    assert len(layers_of(model, (keras.layers.Conv2D, keras.layers.Dense))) == depth
    assert trainable(model) == pytest.approx(parameters, rel=0.02)
    shapes = [model.get_layer(f"stage_{stage}_block_1_output").output.shape[1:] for stage in (1, 2, 3)]
    assert shapes == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]


@pytest.mark.parametrize("depth", [8, 20])
def test_plain_and_residual_twin_differ_only_in_the_additions(depth):
    residual, plain = (resnet(depth, (16, 16, 3), 10, residual=kind, seed=3) for kind in (True, False))
    assert residual.count_params() == plain.count_params()
    for own, other in zip(residual.weights, plain.weights):
        assert own.path == other.path
        np.testing.assert_array_equal(array(own), array(other))
    own_names, plain_names = ({layer.name for layer in model.layers[1:]} for model in (residual, plain))
    only_residual = own_names - plain_names
    assert plain_names < own_names
    blocks = (depth - 2) // 2
    assert sum(name.endswith("_add") for name in only_residual) == blocks
    assert all("_add" in name or "_shortcut_" in name or name.startswith("pad") for name in only_residual)


def test_twins_with_projections_share_all_weights_but_the_projections():
    residual, plain = (
        resnet(14, (16, 16, 3), 10, width=4, shortcut="projection", residual=kind, seed=3) for kind in (True, False)
    )
    shared = [weight for weight in residual.weights if "shortcut" not in weight.path]
    assert len(residual.weights) - len(shared) == 2 * 5
    for own, other in zip(shared, plain.weights):
        assert own.path == other.path
        np.testing.assert_array_equal(array(own), array(other))


@pytest.mark.parametrize("size", [8, 9])
def test_a_block_computes_what_its_formula_says(size):
    model = resnet(8, (size, size, 3), 10, seed=0)
    names = ["stage_1_block_1_output", "stage_2_block_1_normalization_2", "stage_2_block_1_output"]
    parts = keras.Model(model.input, [model.get_layer(name).output for name in names])
    before, branch, after = (array(tensor) for tensor in parts(images(4, size), training=False))
    shortcut = np.concatenate([before[:, ::2, ::2], np.zeros_like(before[:, ::2, ::2])], axis=-1)
    np.testing.assert_allclose(after, np.maximum(branch + shortcut, 0), rtol=1e-5, atol=1e-6)


def test_blocks_start_as_the_identity_where_the_last_gamma_is_zero():
    model = resnet(14, (16, 16, 3), 10, zero_last_gamma=True, seed=0)
    outputs = [model.get_layer(name).output for name in ("stem_output", "stage_1_block_2_output")]
    first, last = keras.Model(model.input, outputs)(images(2, 16), training=True)
    np.testing.assert_array_equal(array(first), array(last))


def test_stem_and_width_can_be_chosen():
    model = resnet(50, (32, 32, 3), 10, width=8, stem=3)
    assert model.get_layer("stage_1_block_1_output").output.shape == (None, 32, 32, 32)
    model = resnet(8, (64, 64, 1), 10, width=4, stem=7)
    assert model.get_layer("stage_1_block_1_output").output.shape == (None, 16, 16, 4)


@pytest.mark.parametrize("depth", [20, pytest.param(152, marks=pytest.mark.thorough)])
def test_gradients_are_finite_and_reach_the_first_layer(depth):
    model = resnet(depth, (16, 16, 3), 10, width=8, stem=3, seed=0)
    found = gradients(model, images(8, 16), np.arange(8))
    assert all(np.isfinite(gradient).all() for gradient in found)
    assert np.abs(found[0]).max() > 0


def test_the_seed_repeats_the_network_and_another_changes_it():
    first, again, other = (array(resnet(8, (8, 8, 3), 10, seed=seed).weights[0]) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_layers_of_one_shape_are_no_twins():
    model = resnet(14, (8, 8, 3), 10, seed=5)
    first, second = (array(model.get_layer(f"stage_1_block_{block}_convolution_1").kernel) for block in (1, 2))
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    "settings",
    [
        {"depth": 8},
        {"depth": 8, "shortcut": "projection"},
        {"depth": 14, "residual": False},
        pytest.param({"depth": 50, "zero_last_gamma": True}, marks=pytest.mark.thorough),
    ],
)
def test_saved_and_loaded_model_predicts_the_same(tmp_path, settings):
    model = resnet(**settings, input_shape=(16, 16, 3), classes=10, width=4, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = images(4, 16)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.thorough
def test_keras_alone_loads_the_models(tmp_path):
    x = images(2, 32)
    models = [resnet(depth, (32, 32, 3), 10, seed=0) for depth in (8, 50)]  # with and without projections
    for model in models:
        model.save(tmp_path / f"{model.name}.keras")
    np.save(tmp_path / "images.npy", x)
    code = """
import sys, keras, numpy as np
for name in ("resnet_8", "resnet_50"):
    logits = keras.saving.load_model(f"{name}.keras").predict(np.load("images.npy"), verbose=0)
    np.save(f"{name}.npy", logits)
assert "nnopt" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model in models:
        logits = np.load(tmp_path / f"{model.name}.npy")
        np.testing.assert_allclose(logits, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_fused_normalization_gives_the_same_network(tmp_path):
    usual, fused = (resnet(8, (16, 16, 3), 10, fused_normalization=kind, seed=0) for kind in (False, True))
    x, y = images(8, 16), np.arange(8)
    for own, other in zip(gradients(usual, x, y), gradients(fused, x, y)):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)
    fused.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert layers_of(loaded, FusedBatchNormalization)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), fused.predict(x, verbose=0))


def test_logits_are_float32_under_a_mixed_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = resnet(8, (8, 8, 3), 10, seed=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights} == {"float32"}
    assert model.get_layer("stage_3_block_1_output").compute_dtype == "float16"
    x = images(4, 8)
    logits = model(x, training=True)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    exact = resnet(8, (8, 8, 3), 10, seed=0)(x, training=True)
    np.testing.assert_allclose(array(logits), array(exact), atol=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": False},
        {"center": False},
        {"momentum": 0.5, "epsilon": 0.1},
        {"dtype": "mixed_bfloat16"},
        {"trainable": False},
        {"renorm": True},
        {"axis": 1},
    ],
)
def test_fused_normalization_is_the_layer_of_keras(settings):
    fused, keras_own = FusedBatchNormalization(**settings), keras.layers.BatchNormalization(**settings)
    tolerance = {"rtol": 1e-5, "atol": 0.02 if "dtype" in settings else 1e-5}
    for training in (True, True, False):
        x = 3 * images(5, 6) + 1
        np.testing.assert_allclose(
            array(keras.ops.cast(fused(x, training=training), "float32")),
            array(keras.ops.cast(keras_own(x, training=training), "float32")),
            **tolerance,
        )
    for own, other in zip(fused.weights, keras_own.weights):
        np.testing.assert_allclose(array(own), array(other), **tolerance)


def test_fused_normalization_trains_like_the_layer_of_keras():
    x, y = 3 * images(6, 8) + 1, np.arange(6) % 3
    ends = []
    for layer in (FusedBatchNormalization, keras.layers.BatchNormalization):
        kernel = keras.initializers.GlorotUniform(seed=1)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(4, 3, kernel_initializer=kernel),
                layer(name="normalization"),
                keras.layers.Flatten(),
                keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        for _ in range(3):
            model.train_on_batch(x, y)
        ends.append(model.get_weights())
    for own, other in zip(*ends):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"depth": 18}, ValueError, "depth"),
        ({"input_shape": (32, 32)}, ValueError, "input_shape"),
        ({"classes": 0}, ValueError, "classes"),
        ({"residual": 1}, TypeError, "residual"),
        ({"shortcut": "zeros"}, ValueError, "shortcut"),
        ({"width": 0}, ValueError, "width"),
        ({"stem": 5}, ValueError, "stem"),
        ({"zero_last_gamma": True, "residual": False}, ValueError, "zero_last_gamma"),
        ({"fused_normalization": 1}, TypeError, "fused_normalization"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_arguments_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        resnet(**{"depth": 8, "input_shape": (8, 8, 3), "classes": 10, **arguments})
