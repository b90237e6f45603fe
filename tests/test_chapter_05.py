"""The from-scratch optimizers and gradients of chapter 05, against Keras and finite differences."""

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

import nnopt

CHAPTER = from_scratch("05_gradient_descent_and_variants")
RATE = 0.005
KERAS = {
    "sgd": lambda: keras.optimizers.SGD(RATE),
    "momentum": lambda: keras.optimizers.SGD(RATE, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(RATE, rho=0.9),
    "adam": lambda: keras.optimizers.Adam(RATE),
}
RULES = CHAPTER["RULES"]


@pytest.mark.parametrize("name", RULES)
def test_each_rule_equals_keras_for_two_hundred_steps(name):
    verdict = CHAPTER["equal"](name, CHAPTER["own_path"](RULES[name], RATE), CHAPTER["keras_path"](KERAS[name]()))
    assert verdict.word == "exact"
    assert verdict.effect <= 1e-6


def test_every_rule_has_a_counterpart_in_keras():
    assert set(RULES) == set(KERAS)


@pytest.mark.parametrize("name", RULES)
def test_the_comparison_notices_a_slightly_different_rate(name):
    ours, theirs = CHAPTER["own_path"](RULES[name], RATE * 1.001), CHAPTER["keras_path"](KERAS[name]())
    with pytest.raises(AssertionError):
        CHAPTER["equal"](name, ours, theirs)


def test_momentum_forms_are_equal_at_the_factor_one_over_one_minus_beta():
    assert CHAPTER["check_momentum_forms"]().word == "exact"


def test_momentum_forms_differ_at_equal_rates():
    summing = CHAPTER["own_path"](CHAPTER["momentum"], RATE)
    averaging = CHAPTER["own_path"](CHAPTER["averaging_momentum"], RATE)
    assert np.abs(summing - averaging).max() > 0.1


def test_adam_without_momentum_and_correction_is_rmsprop():
    assert CHAPTER["check_adam_is_rmsprop"]().word == "exact"


def test_rmsprop_with_momentum_is_not_uncorrected_adam():
    theirs = CHAPTER["keras_path"](keras.optimizers.RMSprop(RATE / 10, rho=0.999, momentum=0.9, epsilon=0.0))
    ours = CHAPTER["own_path"](CHAPTER["adam"], RATE, epsilon=0.0, correct=False)
    assert np.abs(theirs - ours).max() > 0.01


def test_example_gradients_match_finite_differences():
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in ((4, 3), (3,), (3, 2), (2,))]
    x, y = generator.normal(size=(5, 4)), np.array([0, 1, 1, 0, 1])

    def loss(weights):
        logits = np.maximum(x @ weights[0] + weights[1], 0) @ weights[2] + weights[3]
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), y]

    differences = []
    for number, weight in enumerate(weights):
        for index in np.ndindex(weight.shape):
            shifted = [[one.copy() for one in weights] for _ in range(2)]
            shifted[0][number][index] += 1e-6
            shifted[1][number][index] -= 1e-6
            differences.append((loss(shifted[0]) - loss(shifted[1])) / 2e-6)
    np.testing.assert_allclose(CHAPTER["example_gradients"](weights, x, y), np.array(differences).T, atol=1e-7)


def test_a_full_batch_step_moves_the_weights_by_the_mean_gradient():
    x, y = (part[:50] for part in nnopt.data.digits().train)
    keras.utils.set_random_seed(0)
    model = nnopt.models.mlp(input_shape=(64,), units=[8], classes=10)
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    model.train_on_batch(x, y)
    moved = CHAPTER["flat"](model.get_weights()) - CHAPTER["flat"](before)
    np.testing.assert_allclose(moved, -CHAPTER["example_gradients"](before, x, y).mean(axis=0), atol=1e-6)
