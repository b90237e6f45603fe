"""The from-scratch cells of chapter 06 against Keras, SciPy and NumPy."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy import optimize

from nnopt import callbacks

CHAPTER = from_scratch("06_regularization")
LIBRARIES = {"ours": CHAPTER["dropout"], "Keras'": CHAPTER["library_dropout"]}


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_penalty_equals_keras():
    w = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    expected = keras.regularizers.L1L2(0.3, 0.7)(ops.convert_to_tensor(w))
    np.testing.assert_allclose(numpy(CHAPTER["penalty"](w, 0.3, 0.7)), numpy(expected), rtol=1e-6)


def test_penalty_gradient_matches_finite_differences():
    w = np.random.default_rng(0).normal(size=6)
    slopes = optimize.approx_fprime(w, lambda w: 0.3 * np.abs(w).sum() + 0.7 * np.square(w).sum(), 1e-7)
    gradient = CHAPTER["penalty_gradient"](ops.convert_to_tensor(w), 0.3, 0.7)
    np.testing.assert_allclose(numpy(gradient), slopes, atol=1e-5)


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 0.0), (0.0, 0.5), (0.4, 0.3)])
def test_best_weight_is_the_minimum_that_scipy_finds(l1, l2):
    a = np.linspace(-2, 2, 21)
    found = [
        optimize.minimize_scalar(
            lambda w: (w - one) ** 2 / 2 + l1 * abs(w) + l2 * w**2,  # noqa: B023
            bounds=(-3, 3),
            method="bounded",
            options={"xatol": 1e-9},
        ).x
        for one in a
    ]
    np.testing.assert_allclose(numpy(CHAPTER["best_weight"](ops.convert_to_tensor(a), l1, l2)), found, atol=1e-5)


@pytest.mark.parametrize("name", ["under SGD, L2 is decay", "Adam with L2", "AdamW"])
def test_our_decays_equal_keras(name):
    ours, theirs = CHAPTER["decay_paths"]()[name]
    assert np.abs(ours - 1).max() > 0.1  # something has moved
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_l2_is_not_decay_under_adam():
    coupled = CHAPTER["own_path"](CHAPTER["with_l2"](CHAPTER["adam"], 0.05), 0.01)
    decoupled = CHAPTER["own_path"](CHAPTER["with_decay"](CHAPTER["adam"], 0.1), 0.01)
    assert np.abs(coupled - decoupled).max() > 0.1


def test_the_comparison_notices_a_slightly_different_strength():
    ours = CHAPTER["own_path"](CHAPTER["with_l2"](CHAPTER["sgd"], 0.0505), 0.01)
    theirs = CHAPTER["keras_path"](keras.optimizers.SGD(0.01, weight_decay=0.1))
    assert np.abs(ours - theirs).max() > 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_of_a_linear_layer(rate):
    mean, without = CHAPTER["mean_output"](rate)
    np.testing.assert_allclose(mean, without, rtol=1e-5)


def test_dropout_does_not_keep_the_mean_behind_a_relu():
    mean, without = CHAPTER["mean_output"](0.5, activation=lambda z: np.maximum(z, 0))
    assert np.abs(mean - without).max() > 0.1


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", LIBRARIES)
def test_dropped_units_of_a_row_are_binomial(name, rate):
    share, p_value = CHAPTER["check_dropout"](LIBRARIES[name], rate, seed=7)
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / 100_000)
    assert p_value > 1e-6


def test_the_binomial_check_notices_units_that_fall_together():
    def in_pairs(x, rate, seed, training=True):
        if not training:
            return x
        kept = np.random.default_rng(seed).random((len(x), 10)) >= rate
        return CHAPTER["drop"](x, np.repeat(kept, 2, axis=1), rate)

    assert CHAPTER["check_dropout"](in_pairs, 0.5, seed=7)[1] < 1e-6


def test_the_dropout_check_notices_a_missing_division():
    def unscaled(x, rate, seed, training=True):
        return CHAPTER["dropout"](x, rate, seed, training) * (1 - rate if training else 1)

    with pytest.raises(AssertionError):
        CHAPTER["check_dropout"](unscaled, 0.5, seed=7)


def test_the_same_seed_drops_the_same_units():
    x = ops.ones((4, 50))
    first, again, other = [numpy(CHAPTER["dropout"](x, 0.5, seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_early_stopping_equals_the_callback_on_random_curves(patience):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    for seed in range(20):
        losses = np.random.default_rng(seed).integers(10, size=30) / 10  # with ties
        callback = callbacks.EarlyStopping(patience=patience, restore_best_weights=False, mode="min")
        callback.set_model(model)
        model.stop_training = False
        callback.on_train_begin()
        for epoch, loss in enumerate(losses):
            callback.on_epoch_end(epoch, {"val_loss": float(loss)})
            if model.stop_training:
                break
        assert CHAPTER["early_stopping"](losses, patience) == (epoch + 1, callback.best_epoch)


@pytest.mark.parametrize("strengths", [{"l1": 1.7}, {"l2": 0.65}, {"l1": 0.4, "l2": 0.2}, {}])
def test_the_touching_point_is_the_minimum_that_scipy_finds(strengths):
    minimum, curvature = CHAPTER["MINIMUM"], CHAPTER["CURVATURE"]

    def price(w):
        away = w - minimum
        penalties = strengths.get("l1", 0) * np.abs(w).sum() + strengths.get("l2", 0) * np.square(w).sum()
        return away @ curvature @ away / 2 + penalties

    found = CHAPTER["with_penalty"](**strengths)
    best = optimize.minimize(price, [0.1, 0.1], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    np.testing.assert_allclose(found, best, atol=1e-4)


def test_l1_ends_in_a_corner_and_l2_does_not():
    assert CHAPTER["with_penalty"](l1=1.7)[0] == 0
    assert (CHAPTER["with_penalty"](l2=0.65) > 0.1).all()


def test_shifted_moves_one_pixel_and_fills_with_zeros():
    picture = np.zeros((1, 8, 8))
    picture[0, 3, 5] = 1
    for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        moved = CHAPTER["shifted"](picture.reshape(1, 64), down, right).reshape(8, 8)
        assert moved[3 + down, 5 + right] == moved.sum() == 1
    assert CHAPTER["shifted"](np.ones((1, 64)), 1, 0).reshape(8, 8)[0].sum() == 0


def test_augmented_keeps_each_label_with_its_picture():
    x, y = np.random.default_rng(0).random((4, 64)), np.array([3, 1, 4, 1])
    copies, labels = CHAPTER["augmented"](x, y)
    np.testing.assert_array_equal(copies[:4], x)
    np.testing.assert_array_equal(labels.reshape(5, 4), [y] * 5)
    np.testing.assert_array_equal(copies[4:8], CHAPTER["shifted"](x, -1, 0))


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_smoothed_equals_keras_label_smoothing(epsilon):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(7, 10)).astype("float32"), random.integers(10, size=7)
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=epsilon, reduction=None)
    expected = numpy(keras_loss(np.eye(10, dtype="float32")[labels], logits))
    np.testing.assert_allclose(numpy(CHAPTER["smoothed"](labels, logits, epsilon)), expected, rtol=1e-4)


def test_after_deletions_equals_a_network_without_these_units():
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)])
    x, y = random.normal(size=(40, 6)).astype("float32"), random.integers(3, size=40)
    kept = random.random((4, 5)) > 0.4
    weights = model.get_weights()
    accuracies = CHAPTER["after_deletions"](weights, x, y, kept)
    for pattern, accuracy in zip(kept, accuracies):
        model.set_weights([weights[0], weights[1], weights[2] * pattern[:, None], weights[3]])
        assert accuracy == pytest.approx(np.mean(model.predict(x, verbose=0).argmax(axis=1) == y))


def test_deletions_take_each_unit_once_and_the_named_shares():
    alone, growing = CHAPTER["deletions"](units=128, seed=3, draws=2)
    assert (alone.sum(axis=1) == 127).all()
    assert (~alone).any(axis=0).all()
    np.testing.assert_array_equal(growing.sum(axis=1).reshape(-1, 2)[:, 0], [128, 96, 64, 32, 13])


@pytest.mark.parametrize("count", [20, 60, 200])
def test_least_squares_equals_numpy_and_the_normal_equations(count):
    random = np.random.default_rng(0)
    x, targets = random.normal(size=(60, 8)), random.normal(size=(60, 3))
    features = CHAPTER["random_features"](x, count, seed=1)
    smallest, ridge = CHAPTER["least_squares"](features, targets, [0.0, 0.5])
    np.testing.assert_allclose(smallest, np.linalg.lstsq(features, targets, rcond=1e-6)[0], atol=1e-6)
    expected = np.linalg.solve(features.T @ features + 0.5 * np.eye(count), features.T @ targets)
    np.testing.assert_allclose(ridge, expected, atol=1e-8)
