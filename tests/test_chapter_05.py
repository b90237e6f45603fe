"""The from-scratch gradient, optimizers and races of chapter 05, against Keras, finite differences and plain loops."""

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

import nnopt

CHAPTER = from_scratch("05_gradient_descent_and_variants")
RULES = {name: CHAPTER[name] for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")}
RATE = 0.005
KERAS = {
    "sgd": lambda: keras.optimizers.SGD(RATE),
    "momentum": lambda: keras.optimizers.SGD(RATE, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    "adagrad": lambda: keras.optimizers.Adagrad(RATE),
    "rmsprop": lambda: keras.optimizers.RMSprop(RATE, rho=0.9),
    "adam": lambda: keras.optimizers.Adam(RATE),
}


def apart(ours, theirs):
    """The largest difference, relative to the largest weight of each update."""
    return np.abs(np.subtract(*CHAPTER["scaled"](ours, theirs))).max()


@pytest.mark.parametrize("name", RULES)
def test_each_rule_equals_keras_for_two_hundred_updates(name):
    theirs = CHAPTER["keras_path"](KERAS[name]())
    assert apart(CHAPTER["own_path"](RULES[name], RATE), theirs) <= 1e-6
    assert apart(CHAPTER["own_path"](RULES[name], RATE * 1.001), theirs) > 1e-5


def test_momentum_forms_are_equal_only_at_the_factor_one_over_one_minus_beta():
    summing = CHAPTER["keras_path"](KERAS["momentum"]())
    assert apart(CHAPTER["own_path"](CHAPTER["averaging_momentum"], RATE / (1 - 0.9)), summing) <= 1e-6
    assert apart(CHAPTER["own_path"](CHAPTER["averaging_momentum"], RATE), summing) > 0.1


def test_the_look_ahead_is_keras_nesterov_and_not_its_momentum():
    ahead = CHAPTER["look_ahead_path"](RATE)
    assert apart(ahead, CHAPTER["keras_path"](KERAS["nesterov"]())) <= 1e-6
    assert apart(ahead, CHAPTER["keras_path"](KERAS["momentum"]())) > 1e-3


def test_adam_without_momentum_and_correction_is_rmsprop():
    assert apart(*CHAPTER["bare_adam_and_rmsprop"]()) <= 1e-6


def test_rmsprop_with_momentum_is_not_uncorrected_adam():
    theirs = CHAPTER["keras_path"](keras.optimizers.RMSprop(RATE / 10, rho=0.999, momentum=0.9, epsilon=0.0))
    assert np.abs(theirs - CHAPTER["own_path"](CHAPTER["adam"], RATE, epsilon=0.0, correct=False)).max() > 0.01


def test_the_gradient_matches_finite_differences_also_for_many_networks_at_once():
    draws, shapes = np.random.default_rng(0), ((4, 3), (3,), (3, 2), (2,))
    weights = draws.normal(size=(5, 23))  # five networks, each with one example of its own
    x, y = draws.normal(size=(5, 1, 4)), np.array([[0], [1], [1], [0], [1]])

    def loss(weights):
        kernel, bias, kernel_out, bias_out = CHAPTER["parts_of"](weights, shapes)
        logits = np.maximum(x @ kernel + bias[:, None], 0) @ kernel_out + bias_out[:, None]
        return np.log(np.exp(logits).sum(axis=-1))[:, 0] - np.take_along_axis(logits[:, 0], y, axis=1)[:, 0]

    steps = 1e-6 * np.eye(23)
    expected = np.array([(loss(weights + step) - loss(weights - step)) / 2e-6 for step in steps]).T
    np.testing.assert_allclose(CHAPTER["gradient"](weights, x, y, shapes), expected, atol=1e-7)


def digits(examples=200):
    return tuple(part[:examples] for part in nnopt.data.digits().train)


def model_of(weights, optimizer):
    model = nnopt.models.mlp(input_shape=(64,), units=[32], classes=10)
    model.set_weights(CHAPTER["parts_of"](weights))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_the_initial_weights_have_the_spread_of_keras():
    ours = CHAPTER["parts_of"](np.array([CHAPTER["fresh_weights"](seed) for seed in range(20)]))
    model = nnopt.models.mlp(input_shape=(64,), units=[32], classes=10)
    for own, theirs in zip(ours, model.get_weights()):
        np.testing.assert_allclose(own.std(), theirs.std(), rtol=0.1, atol=1e-7)


def test_a_race_of_adam_is_what_keras_trains():
    x, y = digits()
    model = model_of(CHAPTER["fresh_weights"](3), keras.optimizers.Adam(0.01))
    for rows in CHAPTER["batches_of"](3, len(y), 32, 15):
        model.train_on_batch(x[rows], y[rows])
    expected = float(model.evaluate(x, y, verbose=0))
    needed, history = CHAPTER["race"](CHAPTER["adam"], {"rate": [0.01]}, (x, y), [3], 32, 15, target=0.0)
    np.testing.assert_allclose(history[-1, 0, 0], expected, rtol=1e-4)
    assert needed.tolist() == [[15]]  # the budget, since the target is out of reach


def test_runs_of_a_race_are_independent_and_end_at_the_target():
    data = digits()
    both, _ = CHAPTER["race"](CHAPTER["sgd"], {"rate": [0.3, 0.6]}, data, [1, 2], 32, 60, target=0.8)
    alone, history = CHAPTER["race"](CHAPTER["sgd"], {"rate": [0.6]}, data, [2], 32, 60, target=0.8)
    assert both[1, 1] == alone[0, 0] < 60
    times, losses = CHAPTER["looks"](60), history[:, 0, 0]
    assert losses[-1] <= 0.8 < losses[:-1].min()
    assert times[len(losses) - 1] == alone[0, 0]


def test_a_race_counts_a_run_that_diverges_as_late():
    needed, _ = CHAPTER["race"](CHAPTER["sgd"], {"rate": [1e4]}, digits(), [1], 32, 30, target=0.1)
    assert needed.tolist() == [[30]]


def test_batches_of_an_epoch_hold_each_example_once():
    rows = CHAPTER["batches_of"](0, 100, 32, 7)
    assert rows.shape == (7, 32)
    assert len(set(rows[:3].ravel())) == len(set(rows[3:6].ravel())) == 96


def test_looks_are_at_most_a_twentieth_apart():
    times = np.array(CHAPTER["looks"](3000))
    assert times[0] == 1
    assert times[-1] == 3000
    assert np.all(np.diff(times) <= np.maximum(1, 0.05 * times[:-1]))


def test_the_noise_of_batches_is_the_spread_over_the_batch_size():
    x, y = digits(400)
    spread, signal, centred = CHAPTER["spread_and_signal"](CHAPTER["fresh_weights"](0), x, y)
    noise = CHAPTER["noise_of_batches"](centred, np.array([4, 40, 400]), seed=0, batches=2000)
    np.testing.assert_allclose(noise[:2], spread / np.array([4, 40]) * (1 - np.array([4, 40]) / 400), rtol=0.05)
    assert noise[2] < 1e-9
    exact = CHAPTER["gradient"](CHAPTER["fresh_weights"](0), x, y)
    np.testing.assert_allclose(signal, np.sum(exact**2), rtol=1e-3)


@pytest.mark.parametrize("problem", ["quadratic", "rosenbrock"])
def test_gradients_of_the_landscapes_match_finite_differences(problem):
    function, start = CHAPTER[problem]([0, 1, 2])
    expected = [
        (function(start + step)[0] - function(start - step)[0]) / 2e-6 for step in 1e-6 * np.eye(2)
    ]  # the seeds are independent
    np.testing.assert_allclose(function(start)[1], np.array(expected).T, rtol=1e-5, atol=1e-4)


def test_descent_on_the_quadratic_takes_what_theory_says():
    best = 2 / 101  # contracts by 99 / 101 an update
    needed, losses, points = CHAPTER["descend"](
        CHAPTER["quadratic"], CHAPTER["sgd"], {"rate": [best, 2.01 / 100]}, [0], 1000, 1e-3
    )
    shrink = np.linalg.norm(points[301, 0]) / np.linalg.norm(points[300, 0])
    np.testing.assert_allclose(shrink, 99 / 101, rtol=1e-6)
    assert losses[needed[0, 0], 0] <= 1e-3 < losses[needed[0, 0] - 1, 0]
    assert needed[1, 0] == 1000  # above 2 / 100 it diverges


def test_clipping_shortens_only_long_gradients():
    gradients = np.array([[3.0, 4.0], [0.3, 0.4]])
    np.testing.assert_allclose(CHAPTER["clip"](gradients, 1.0), [[0.6, 0.8], [0.3, 0.4]])
