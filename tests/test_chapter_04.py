"""The game's value, the best discriminator and the step from scratch of chapter 04, against SciPy, search and nnopt."""

import numpy as np
import pytest
from notebook_cells import from_scratch
from scipy.spatial.distance import jensenshannon
from scipy.special import expit

CHAPTER = from_scratch("04_generative_adversarial_networks")
RANDOM = np.random.default_rng(0)


def densities(size=50):
    p, q = RANDOM.uniform(0.01, 1, size=(2, size))
    return p / p.sum(), q / q.sum()


def test_the_distance_is_scipys():
    p, q = densities()
    assert CHAPTER["jensen_shannon"](p, q) == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-9)
    p[:10] = 0
    assert CHAPTER["jensen_shannon"](p / p.sum(), q) == pytest.approx(jensenshannon(p / p.sum(), q) ** 2, rel=1e-9)


def test_distributions_with_nothing_in_common_are_log_2_apart():
    p, q = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.3, 0.7])
    assert CHAPTER["jensen_shannon"](p, q) == pytest.approx(np.log(2))
    assert CHAPTER["jensen_shannon"](p, p) == pytest.approx(0)


def test_the_best_discriminator_is_the_best_number_at_each_point():
    p, q = densities(20)
    grid = np.linspace(0.0005, 0.9995, 2000)
    found = [grid[np.argmax(one * np.log(grid) + other * np.log(1 - grid))] for one, other in zip(p, q)]
    np.testing.assert_allclose(CHAPTER["best_discriminator"](p, q), found, atol=0.0005)


def test_the_game_is_worth_the_distance_but_for_constants():
    p, q = densities()
    worth = CHAPTER["value"](CHAPTER["best_discriminator"](p, q), p, q)
    assert worth == pytest.approx(2 * jensenshannon(p, q) ** 2 - np.log(4), abs=1e-12)


def test_gradients_by_hand_are_finite_differences():
    weights = [RANDOM.normal(size=shape) for shape in ((3, 5), (5,), (5, 2), (2,))]
    x, slope = RANDOM.normal(size=(7, 3)), RANDOM.normal(size=(7, 2))
    forward = CHAPTER["forward"]
    gradients, by_input = CHAPTER["backward"](weights, forward(weights, x)[1], slope)
    for values, gradient in zip([*weights, x], [*gradients, by_input]):
        for place in np.ndindex(values.shape):
            at = values[place]
            ends = []
            for moved in (at + 1e-6, at - 1e-6):
                values[place] = moved
                ends.append(np.sum(slope * forward(weights, x)[0]))
            values[place] = at
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_the_sigmoid_is_scipys():
    x = np.linspace(-20, 20, 41)
    np.testing.assert_allclose(CHAPTER["sigmoid"](x), expit(x), rtol=1e-12)


def test_steps_from_scratch_have_the_weights_of_nnopts():
    assert CHAPTER["check_against_nnopt"](5) < 1e-4
