"""The from-scratch network of chapter 01, against Keras, finite differences and the definitions of its functions."""

import itertools

import numpy as np
import pytest
from notebook_cells import from_scratch

CHAPTER = from_scratch("01_feedforward_neural_networks")
RANDOM = np.random.default_rng(0)


def random_network(sizes):
    return [(RANDOM.normal(size=(m, n)), RANDOM.normal(size=n)) for m, n in itertools.pairwise(sizes)]


@pytest.mark.parametrize("units", [[], [5], [7, 6, 5]])
def test_outputs_and_gradients_equal_keras(units):
    x, labels = RANDOM.normal(size=(20, 4)).astype("float32"), RANDOM.integers(10, size=20)
    largest = CHAPTER["check_against_keras"](x, labels, units)
    assert max(largest) < 1e-5


def test_the_comparison_notices_a_wrong_gradient(monkeypatch):
    right = CHAPTER["cross_entropy_error"]
    monkeypatch.setitem(CHAPTER, "cross_entropy_error", lambda logits, labels: 1.01 * right(logits, labels))
    x, labels = RANDOM.normal(size=(20, 4)).astype("float32"), RANDOM.integers(10, size=20)
    with pytest.raises(AssertionError):
        CHAPTER["check_against_keras"](x, labels, [5])


def test_backward_agrees_with_finite_differences():
    weights, x, target = random_network([3, 6, 5, 2]), RANDOM.normal(size=(8, 3)), RANDOM.normal(size=(8, 2))

    def loss():
        return np.sum((CHAPTER["forward"](weights, x)[-1] - target) ** 2) / 2

    values = CHAPTER["forward"](weights, x)
    gradients = CHAPTER["backward"](weights, values, values[-1] - target)
    for pair, gradient_pair in zip(weights, gradients):
        for array, gradient in zip(pair, gradient_pair):
            place = tuple(RANDOM.integers(array.shape))
            kept, step = array[place], 1e-6
            array[place] = kept + step
            above = loss()
            array[place] = kept - step
            below = loss()
            array[place] = kept
            np.testing.assert_allclose(gradient[place], (above - below) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [np.cos, np.abs, lambda x: np.exp(2 * x) - 3])
@pytest.mark.parametrize("width", [1, 3, 40])
def test_hinges_are_the_chain_through_the_knots(function, width):
    assert CHAPTER["check_hinges"](function, width).word == "exact"


def test_the_error_of_the_chain_falls_by_four_when_the_width_doubles():
    x = np.linspace(-1, 1, 4001)
    errors = [np.abs(CHAPTER["forward"](CHAPTER["hinges"](np.sin, n), x[:, None])[-1][:, 0] - np.sin(x)).max()
              for n in (16, 32, 64)]  # fmt: skip
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.05)
    assert errors[0] <= (2 / 16) ** 2 / 8  # h**2 max|f''| / 8


@pytest.mark.parametrize("folds", range(1, 9))
def test_a_saw_of_k_layers_has_two_to_the_k_pieces(folds):
    verdict, pieces = CHAPTER["check_saw"](folds)
    assert verdict.word == "exact"
    assert pieces == 2**folds
    assert [kernel.shape[1] for kernel, _ in CHAPTER["saw"](folds)] == [2] * folds + [1]
