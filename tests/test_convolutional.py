import keras
import numpy as np
import pytest

import nnopt
from nnopt.models import cnn

X = np.random.default_rng(0).normal(size=(6, 9, 8, 2)).astype("float32")


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def convolved(images, kernel, bias, padding):
    """The definition: cross-correlation, by loops over the kernel's places."""
    size = kernel.shape[0]
    if padding == "same":
        before = (size - 1) // 2
        images = np.pad(images, [(0, 0), (before, size - 1 - before), (before, size - 1 - before), (0, 0)])
    height, width = images.shape[1] - size + 1, images.shape[2] - size + 1
    total = sum(images[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(size) for j in range(size))
    return total + bias


def pooled(maps, kind):
    height, width = maps.shape[1] // 2 * 2, maps.shape[2] // 2 * 2
    corners = [maps[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return {"max": np.max, "average": np.mean}[kind](corners, axis=0)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pooling", ["max", "average", None])
@pytest.mark.parametrize(("head", "kernel_size"), [("flatten", 3), ("average", 2)])
def test_network_computes_what_its_formula_says(padding, pooling, head, kernel_size):
    model = cnn((9, 8, 2), [4], 3, padding=padding, pooling=pooling, head=head, kernel_size=kernel_size, seed=0)
    model.weights[1].assign(np.linspace(-1, 1, 4))
    kernel, bias, dense, offset = (array(weight).astype("float64") for weight in model.weights)
    maps = np.maximum(convolved(X, kernel, bias, padding), 0)
    maps = maps if pooling is None else pooled(maps, pooling)
    features = maps.reshape(len(maps), -1) if head == "flatten" else maps.mean(axis=(1, 2))
    np.testing.assert_allclose(model.predict(X, verbose=0), features @ dense + offset, rtol=1e-4, atol=1e-5)


def test_layers_stand_in_the_order_of_the_formula():
    model = cnn((8, 8, 1), [4], 10, normalization="batch", units=[16], dropout=0.1)
    names = [layer.name for layer in model.layers[1:]]
    assert names == [
        "convolution_1",
        "normalization_1",
        "activation_1",
        "pooling_1",
        "head",
        "dropout_1",
        "hidden_1",
        "dropout_2",
        "logits",
    ]
    assert model.get_layer("convolution_1").bias is None


def test_with_padding_and_mean_a_shifted_pattern_gives_the_same_logits():
    images = np.zeros((2, 16, 16, 1), "float32")
    images[0, 4:7, 4:7, 0] = images[1, 8:11, 6:9, 0] = np.arange(9).reshape(3, 3)
    first, second = cnn((16, 16, 1), [4], 3, head="average", seed=0).predict(images, verbose=0)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_output_are_logits_not_probabilities():
    output = cnn((9, 8, 2), [4, 4], 10, seed=0).predict(X, verbose=0)
    assert output.min() < 0
    assert not np.allclose(output.sum(axis=1), 1)


def test_dropout_acts_in_training_only_and_follows_the_seed():
    models = [cnn((9, 8, 2), [4], 10, dropout=0.5, seed=seed) for seed in (0, 0, 1)]
    trained = [array(model(X, training=True)) for model in models]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert not np.allclose(trained[0], models[0].predict(X, verbose=0))
    assert not np.allclose(trained[0], trained[2])
    np.testing.assert_array_equal(array(models[0](X)), array(models[0](X)))


def test_layers_of_one_shape_are_no_twins():
    for seed in (None, 0):
        model = cnn((9, 8, 2), [2, 2], 10, initialization=keras.initializers.HeNormal(seed=1), seed=seed)
        assert not np.allclose(
            array(model.get_layer("convolution_1").kernel), array(model.get_layer("convolution_2").kernel)
        )


@pytest.mark.parametrize("pooling", ["max", "average", None])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_saved_and_loaded_model_predicts_the_same(tmp_path, pooling, normalization):
    model = cnn((9, 8, 2), [4, 4], 5, pooling=pooling, normalization=normalization, units=[8], dropout=0.1, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_logits_are_float32_under_a_mixed_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = cnn((9, 8, 2), [4], 10, seed=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights} == {"float32"}
    assert model.get_layer("convolution_1").compute_dtype == "float16"
    assert keras.backend.standardize_dtype(model(X).dtype) == "float32"


def test_learns_the_digits():
    data = nnopt.data.digits()
    (x, y), (x_validation, y_validation) = (
        (part.reshape(-1, 8, 8, 1), label) for part, label in (data.train, data.validation)
    )
    model = cnn((8, 8, 1), [16, 32], 10, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    keras.utils.set_random_seed(0)
    model.fit(x, y, epochs=5, batch_size=64, verbose=0)
    assert model.evaluate(x_validation, y_validation, verbose=0)[1] > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"input_shape": 8}, TypeError, "input_shape"),
        ({"input_shape": (2, 8, 1), "filters": [4, 4]}, ValueError, "input_shape"),
        ({"filters": 16}, TypeError, "filters"),
        ({"classes": 0}, ValueError, "classes"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"padding": "full"}, ValueError, "padding"),
        ({"pooling": "mean"}, ValueError, "pooling"),
        ({"head": "max"}, ValueError, "head"),
        ({"units": 64}, TypeError, "units"),
        ({"units": [0]}, ValueError, r"units\[0\]"),
        ({"activation": "rellu"}, ValueError, "activation"),
        ({"normalization": "layer"}, ValueError, "normalization"),
        ({"initialization": "he"}, ValueError, "initialization"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_arguments_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        cnn(**{"input_shape": (8, 8, 1), "filters": [4], "classes": 10, **arguments})
