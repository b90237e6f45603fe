"""Data and model parallelism by hand, the ring and the estimate of chapter 13, against one device and brute force."""

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

CHAPTER = from_scratch("13_scalability")
RANDOM = np.random.default_rng(0)
X, Y, WEIGHTS = RANDOM.normal(size=(24, 5)), RANDOM.integers(0, 3, 24), RANDOM.normal(size=(5, 3))


def shares(*sizes):
    ends = np.cumsum(sizes)
    return [(X[end - size : end], Y[end - size : end]) for size, end in zip(sizes, ends)]


def test_the_gradient_matches_finite_differences():
    def loss(weights):
        logits = X @ weights
        return np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(Y)), Y])

    steps = 1e-6 * np.eye(WEIGHTS.size).reshape(-1, *WEIGHTS.shape)
    expected = [(loss(WEIGHTS + step) - loss(WEIGHTS - step)) / 2e-6 for step in steps]
    found = CHAPTER["gradient"](WEIGHTS, X, Y)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-8)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (20, 3, 1)])
def test_the_weighted_mean_is_the_gradient_of_one_device(sizes):
    whole = CHAPTER["gradient"](WEIGHTS, X, Y)
    np.testing.assert_allclose(CHAPTER["weighted_mean"](WEIGHTS, shares(*sizes)), whole)
    plain = CHAPTER["plain_mean"](WEIGHTS, shares(*sizes))
    assert np.allclose(plain, whole) == (len(set(sizes)) == 1)


def test_workers_that_average_their_gradients_train_the_network_of_one_device():
    one, many = WEIGHTS, WEIGHTS
    for _ in range(20):
        one = one - 0.5 * CHAPTER["gradient"](one, X, Y)
        many = many - 0.5 * CHAPTER["plain_mean"](many, shares(6, 6, 6, 6))
    np.testing.assert_allclose(many, one, rtol=1e-12)


def test_the_synchronized_moments_are_those_of_the_batch():
    mean, variance = CHAPTER["synchronized_moments"](np.split(X, 4))
    np.testing.assert_allclose(mean, X.mean(axis=0))
    np.testing.assert_allclose(variance, X.var(axis=0))


@pytest.mark.parametrize(("workers", "size"), [(2, 6), (4, 12), (5, 10), (3, 7)])
def test_the_ring_gives_everybody_the_sum_for_twice_the_bytes_at_most(workers, size):
    vectors = RANDOM.normal(size=(workers, size))
    before = vectors.copy()
    held, sent = CHAPTER["ring_all_reduce"](vectors)
    np.testing.assert_array_equal(vectors, before)
    for parts in held:
        np.testing.assert_allclose(np.concatenate(parts), vectors.sum(axis=0))
    if size % workers == 0:
        assert set(sent) == {2 * (workers - 1) * size // workers}


def test_after_the_first_half_of_the_ring_each_worker_has_one_finished_part():
    held, _ = CHAPTER["ring_all_reduce"](np.ones((5, 10)), rounds=4)
    finished = np.array([[part[0] == 5 for part in parts] for parts in held])
    assert (finished.sum(axis=0) == 1).all()
    assert (finished.sum(axis=1) == 1).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_split_matrix_product_is_the_product(count):
    x, first, second = RANDOM.normal(size=(3, 8)), RANDOM.normal(size=(8, 12)), RANDOM.normal(size=(12, 4))
    np.testing.assert_allclose(CHAPTER["column_split"](x, first, count), x @ first)
    np.testing.assert_allclose(CHAPTER["row_split"](x, first, count), x @ first)
    np.testing.assert_allclose(CHAPTER["split_layers"](x, first, second, count), np.maximum(x @ first, 0) @ second)


def test_the_estimate_follows_the_ring_round_by_round():
    seconds = CHAPTER["ring_seconds"](1000, 4, bandwidth=500.0, latency=0.25)
    assert seconds == pytest.approx(6 * (0.25 + 250 / 500))
    assert CHAPTER["ring_seconds"](1000, 1, 500.0, 0.25) == 0


def test_the_estimate_of_a_training():
    job = {"examples": 3600 * 100, "speed": 100.0, "half": 20, "bytes": 800.0, "bandwidth": 100.0,
           "bandwidth between hosts": 10.0, "latency": 0.0}  # fmt: skip
    assert CHAPTER["training_hours"](job, 1, 80) == pytest.approx(4500 * 1.0 / 3600)
    assert CHAPTER["step_seconds"](job, 4, 80) == pytest.approx(0.4 + 2 * 3 / 4 * 800 / 100)
    assert CHAPTER["step_seconds"](job, 16, 80) == pytest.approx(0.25 + 2 * 15 / 16 * 800 / 10)
