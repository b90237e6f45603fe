"""The from-scratch penalties, decays, dropout and early stopping of chapter 06, against Keras and theory."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy import optimize, stats

from nnopt import callbacks

CHAPTER = from_scratch("06_regularization", stats=stats)
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


def test_l2_is_decay_under_sgd_and_both_adams_equal_keras():
    assert [verdict.word for verdict in CHAPTER["check_decay"]()] == ["exact"] * 3


def test_l2_is_not_decay_under_adam():
    coupled = CHAPTER["own_path"](CHAPTER["with_l2"](CHAPTER["adam"], 0.05), 0.01)
    decoupled = CHAPTER["own_path"](CHAPTER["with_decay"](CHAPTER["adam"], 0.1), 0.01)
    assert np.abs(coupled - decoupled).max() > 0.1


def test_the_comparison_notices_a_slightly_different_strength():
    ours = CHAPTER["own_path"](CHAPTER["with_l2"](CHAPTER["sgd"], 0.0505), 0.01)
    theirs = CHAPTER["keras_path"](keras.optimizers.SGD(0.01, weight_decay=0.1))
    assert np.abs(ours - theirs).max() > 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_over_all_patterns(rate):
    assert CHAPTER["check_expectation"](rate).word == "exact"


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
