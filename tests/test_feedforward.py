import keras
import numpy as np
import pytest

import nnopt
from nnopt.models import mlp

X = np.random.default_rng(0).normal(size=(16, 64)).astype("float32")


def kernels(model):
    return [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers if isinstance(layer, keras.layers.Dense)]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_network_computes_what_its_formula_says(activation):
    model = mlp((64,), [32, 16], 10, activation=activation, seed=0)
    weights = [keras.ops.convert_to_numpy(weight).astype("float64") for weight in model.weights]
    for i in (1, 3, 5):
        model.weights[i].assign(weights[i] + 0.1)
        weights[i] = weights[i] + 0.1
    function = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]
    hidden = function(function(X @ weights[0] + weights[1]) @ weights[2] + weights[3])
    np.testing.assert_allclose(model.predict(X, verbose=0), hidden @ weights[4] + weights[5], rtol=1e-4, atol=1e-5)


def test_output_are_logits_not_probabilities():
    output = mlp((64,), [32], 10, seed=0).predict(X, verbose=0)
    assert output.min() < 0
    assert not np.allclose(output.sum(axis=1), 1)


def test_without_hidden_layers_the_model_is_linear():
    model = mlp((64,), [], 3)
    assert model.count_params() == 64 * 3 + 3
    np.testing.assert_allclose(model.predict(2 * X, verbose=0), 2 * model.predict(X, verbose=0), rtol=1e-4, atol=1e-5)


def test_inputs_of_any_shape_are_flattened():
    flat, images = mlp((64,), [32], 10, seed=0), mlp([8, 4, 2], (32,), 10, seed=0)
    np.testing.assert_allclose(
        images.predict(X.reshape(-1, 8, 4, 2), verbose=0), flat.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("normalization", ["batch", "layer", "group"])
def test_normalization_stands_between_kernel_and_activation(normalization):
    model = mlp((64,), [32], 10, normalization=normalization, seed=0)
    assert [layer.name for layer in model.layers[1:]] == ["hidden_1", "normalization_1", "activation_1", "logits"]
    assert (model.get_layer("hidden_1").bias is None) == (normalization == "batch")
    inner = keras.Model(model.input, model.get_layer("normalization_1").output)
    output = keras.ops.convert_to_numpy(inner(X, training=True)).astype("float64")
    grouped = {"batch": output.T, "layer": output, "group": output.reshape(-1, 8)}[normalization]
    np.testing.assert_allclose(grouped.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(grouped.std(axis=1), 1, atol=2e-2)


def test_penalties_are_those_of_the_formula_on_every_kernel():
    model = mlp((64,), [32, 16], 10, l1=0.01, l2=0.1, seed=0)
    expected = sum(0.01 * np.abs(kernel).sum() + 0.1 * (kernel**2).sum() for kernel in kernels(model))
    assert float(keras.ops.convert_to_numpy(sum(model.losses))) == pytest.approx(expected, rel=1e-5)
    assert mlp((64,), [32], 10).losses == []


def test_dropout_works_in_training_only_after_each_activation():
    model = mlp((64,), [400, 400], 10, dropout=0.25, seed=0)
    inner = keras.Model(model.input, [model.get_layer("activation_1").output, model.get_layer("dropout_1").output])
    before, after = (keras.ops.convert_to_numpy(output) for output in inner(X, training=True))
    kept = after[before > 0] > 0
    assert np.mean(kept) == pytest.approx(0.75, abs=0.03)
    np.testing.assert_allclose(after[after > 0], before[after > 0] / 0.75, rtol=1e-5)
    before, after = (keras.ops.convert_to_numpy(output) for output in inner(X, training=False))
    np.testing.assert_array_equal(before, after)
    assert model.get_layer("dropout_2").seed != model.get_layer("dropout_1").seed


def test_one_seed_gives_one_network_and_another_seed_another():
    first, again, other = (kernels(mlp((64,), [64, 64], 10, seed=seed)) for seed in (1, 1, 2))
    for one, same, different in zip(first, again, other):
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, different)
    models = [mlp((64,), [64], 10, dropout=0.5, seed=1) for _ in range(2)]
    dropped = [keras.ops.convert_to_numpy(model(X, training=True)) for model in models]
    np.testing.assert_array_equal(*dropped)


def test_without_a_seed_that_of_keras_decides():
    networks = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        networks.append(kernels(mlp((64,), [64, 64], 10)))
    np.testing.assert_array_equal(networks[0][1], networks[1][1])
    assert not np.allclose(networks[0][1], networks[2][1])


@pytest.mark.parametrize(
    "initialization",
    [
        "he_normal",
        keras.initializers.HeNormal(),
        keras.initializers.HeNormal(seed=3),
        keras.initializers.HeNormal(seed=keras.random.SeedGenerator(3)),
    ],
)
@pytest.mark.parametrize("seed", [None, 0])
def test_layers_of_one_shape_are_no_twins(initialization, seed):
    drawn = kernels(mlp((64,), [64, 64], 64, initialization=initialization, seed=seed))
    assert not np.allclose(drawn[0], drawn[1])
    assert not np.allclose(drawn[1], drawn[2])
    for kernel in drawn:
        assert kernel.std() == pytest.approx(np.sqrt(2 / 64), rel=0.1)


def test_the_seed_of_an_initializer_repeats_the_network():
    first, again = (
        kernels(mlp((64,), [64, 64], 10, initialization=keras.initializers.RandomNormal(stddev=0.3, seed=7)))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first[1], again[1])
    assert first[1].std() == pytest.approx(0.3, rel=0.1)


def test_initializers_without_randomness_serve_too():
    model = mlp((64,), [8], 2, initialization=keras.initializers.Constant(0.5), seed=0)
    assert all((kernel == 0.5).all() for kernel in kernels(model))


@pytest.mark.parametrize("normalization", [None, "batch", "layer", "group"])
def test_saved_and_loaded_model_predicts_the_same(tmp_path, normalization):
    model = mlp((8, 8, 1), [32, 16], 10, normalization=normalization, activation="elu", dropout=0.1, l2=1e-3, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = X.reshape(-1, 8, 8, 1)
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))
    assert float(keras.ops.convert_to_numpy(sum(loaded.losses))) == pytest.approx(
        float(keras.ops.convert_to_numpy(sum(model.losses)))
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_under_a_mixed_policy(policy):
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = mlp((64,), [32], 10, normalization="batch", seed=0)
    finally:
        keras.config.set_dtype_policy(usual)
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights} == {"float32"}
    assert model.get_layer("hidden_1").compute_dtype == policy.removeprefix("mixed_")
    logits = model(X)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    exact = mlp((64,), [32], 10, normalization="batch", seed=0)(X)
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(one) for one in (logits, exact)), atol=0.1)


def test_learns_the_digits():
    data = nnopt.data.digits()
    model = mlp((64,), [64, 64], 10, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    keras.utils.set_random_seed(0)
    model.fit(*data.train, epochs=6, batch_size=64, verbose=0)
    assert model.evaluate(*data.validation, verbose=0)[1] > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"input_shape": 64}, TypeError, "input_shape"),
        ({"units": 64}, TypeError, "units"),
        ({"units": [64, 0]}, ValueError, r"units\[1\]"),
        ({"units": [12], "normalization": "group"}, ValueError, "units"),
        ({"classes": 0}, ValueError, "classes"),
        ({"activation": "rellu"}, ValueError, "activation"),
        ({"normalization": "weight"}, ValueError, "normalization"),
        ({"initialization": "he"}, ValueError, "initialization"),
        ({"l1": -0.1}, ValueError, "l1"),
        ({"l2": float("inf")}, ValueError, "l2"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_arguments_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        mlp(**{"input_shape": (64,), "units": [8], "classes": 10, **arguments})
