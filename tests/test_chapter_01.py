"""The from-scratch cells of chapter 01, against Keras, finite differences and the definitions of its functions."""

import itertools

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch
from sklearn.datasets import make_moons

CHAPTER = from_scratch("01_feedforward_neural_networks", make_moons=make_moons)
RANDOM = np.random.default_rng(0)
ACTIVATIONS = ("relu", "tanh", "sigmoid")


def random_network(sizes):
    return [(RANDOM.normal(size=(m, n)), RANDOM.normal(size=n)) for m, n in itertools.pairwise(sizes)]


def flat(pairs):
    return np.concatenate([np.ravel(array) for pair in pairs for array in pair])


def keras_twin(weights, activation):
    layers = [keras.layers.Dense(len(bias), activation=activation) for _, bias in weights[:-1]]
    model = keras.Sequential([keras.Input((len(weights[0][0]),)), *layers, keras.layers.Dense(len(weights[-1][1]))])
    model.set_weights([array for pair in weights for array in pair])
    return model


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("units", [[], [5], [7, 6, 5]])
def test_outputs_and_gradients_equal_keras(units, activation):
    weights = random_network([4, *units, 3])
    x, labels = RANDOM.normal(size=(20, 4)).astype("float32"), RANDOM.integers(3, size=20)
    model = keras_twin(weights, activation)
    values = CHAPTER["forward"](weights, x, activation)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), values[-1], atol=1e-4)
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(x, labels)
    moved = np.concatenate([(old - new).ravel() for old, new in zip(before, model.get_weights())])
    slope = CHAPTER["cross_entropy"](values[-1], labels)[1]
    gradient = flat(CHAPTER["backward"](weights, values, slope, activation))
    np.testing.assert_allclose(moved, gradient, atol=2e-5)
    assert np.abs(moved - 1.01 * gradient).max() > 1e-4  # the comparison would notice one per cent


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_agrees_with_finite_differences(activation):
    weights, x, targets = random_network([3, 6, 5, 2]), RANDOM.normal(size=(8, 3)), RANDOM.normal(size=(8, 2))

    def loss():
        return CHAPTER["squared_error"](CHAPTER["forward"](weights, x, activation)[-1], targets)[0]

    values = CHAPTER["forward"](weights, x, activation)
    slope = CHAPTER["squared_error"](values[-1], targets)[1]
    gradients = CHAPTER["backward"](weights, values, slope, activation)
    for pair, gradient_pair in zip(weights, gradients):
        for array, gradient in zip(pair, gradient_pair):
            place = tuple(RANDOM.integers(array.shape))
            kept, step = array[place], 1e-6
            array[place] = kept + step
            above = loss()
            array[place] = kept - step
            below = loss()
            array[place] = kept
            np.testing.assert_allclose(gradient[place], (above - below) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_their_slopes(activation):
    function, slope = CHAPTER["ACTIVATIONS"][activation]
    z = np.linspace(-4.05, 4, 90)  # not at zero, where ReLU has no slope
    theirs = getattr(keras.activations, activation)(z.astype("float32"))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(theirs), function(z), atol=1e-5)
    np.testing.assert_allclose(slope(function(z)), (function(z + 1e-6) - function(z - 1e-6)) / 2e-6, atol=1e-6)


def test_losses_equal_keras_and_their_slopes_are_slopes():
    outputs, targets, labels = RANDOM.normal(size=(8, 3)), RANDOM.normal(size=(8, 3)), RANDOM.integers(3, size=8)
    theirs = (
        (CHAPTER["squared_error"], targets, keras.losses.MeanSquaredError()),
        (CHAPTER["cross_entropy"], labels, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    )
    for ours, wanted, loss in theirs:
        value, slope = ours(outputs, wanted)
        np.testing.assert_allclose(value, float(loss(wanted, outputs)), rtol=1e-5)
        step = 1e-6 * RANDOM.normal(size=outputs.shape)
        change = ours(outputs + step, wanted)[0] - ours(outputs - step, wanted)[0]
        np.testing.assert_allclose(np.sum(2 * step * slope), change, rtol=1e-5)


def test_cross_entropy_survives_large_logits():
    loss, slope = CHAPTER["cross_entropy"](np.array([[1000.0, 0.0]]), np.array([0]))
    assert loss == 0
    assert np.isfinite(slope).all()


def test_the_loop_takes_the_steps_of_keras():
    data = CHAPTER["moons"](seed=3)
    start = CHAPTER["random_weights"]([2, 16, 2], seed=1)
    model = keras_twin(start, "relu")
    model.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    for _ in range(2):
        order = random.permutation(200)
        model.fit(data.train[0][order], data.train[1][order], batch_size=20, shuffle=False, verbose=0)
    weights, losses = CHAPTER["descend"](start, *data.train, epochs=2, rate=0.3)
    for theirs, ours in zip(model.get_weights(), [array for pair in weights for array in pair]):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert losses[1] < losses[0]


def test_moons_are_three_disjoint_parts_of_two_classes():
    data = CHAPTER["moons"](seed=0)
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [200, 200, 2000]
    assert len(np.unique(np.concatenate([data.train[0], data.validation[0], data.test[0]]), axis=0)) == 2400
    assert not np.array_equal(CHAPTER["moons"](seed=1).train[0], data.train[0])


@pytest.mark.parametrize("function", [np.cos, np.abs, lambda x: np.exp(2 * x) - 3])
@pytest.mark.parametrize("width", [1, 3, 40])
def test_hinges_are_the_chain_through_the_knots(function, width):
    x, knots = np.linspace(-1, 1, 401), np.linspace(-1, 1, width + 1)
    drawn = CHAPTER["forward"](CHAPTER["hinges"](function, width), x[:, None])[-1][:, 0]
    np.testing.assert_allclose(drawn, np.interp(x, knots, function(knots)), atol=1e-9)


def test_the_error_of_the_chain_falls_by_four_when_the_width_doubles():
    x = np.linspace(-1, 1, 4001)
    errors = [np.abs(CHAPTER["forward"](CHAPTER["hinges"](np.sin, n), x[:, None])[-1][:, 0] - np.sin(x)).max()
              for n in (16, 32, 64)]  # fmt: skip
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.05)
    assert errors[0] <= (2 / 16) ** 2 / 8  # d**2 max|f''| / 8


@pytest.mark.parametrize("folds", range(1, 9))
def test_a_saw_of_k_layers_has_two_to_the_k_pieces(folds):
    weights, x = CHAPTER["saw"](folds), (np.arange(2**12) + 0.5) / 2**12
    drawn = CHAPTER["forward"](weights, x[:, None])[-1][:, 0]
    np.testing.assert_array_equal(drawn, CHAPTER["tents"](x, folds))
    np.testing.assert_allclose(drawn, np.abs(2 * (2 ** (folds - 1) * x - np.round(2 ** (folds - 1) * x))), atol=1e-9)
    assert CHAPTER["pieces"](weights, x) == 2**folds
    assert [kernel.shape[1] for kernel, _ in weights] == [2] * folds + [1]


def test_pieces_of_hinges_are_one_for_each_unit():
    x = np.linspace(-0.999, 0.999, 10_001)
    assert CHAPTER["pieces"](CHAPTER["hinges"](np.sin, 12), x) == 12
