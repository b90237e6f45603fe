"""The from-scratch cells of chapter 04 against SciPy, Keras, search, and plain networks trained one by one."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, jensenshannon
from scipy.special import expit

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

CHAPTER = from_scratch("04_generative_adversarial_networks")
RANDOM = np.random.default_rng(0)


def densities(size=50):
    p, q = RANDOM.uniform(0.01, 1, size=(2, size))
    return p / p.sum(), q / q.sum()


def test_the_divergence_is_scipys_distance_squared():
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


def test_the_game_is_worth_the_divergence_but_for_constants():
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


def test_steps_from_scratch_and_in_plain_keras_have_the_weights_of_nnopts():
    assert CHAPTER["check_against_nnopt"](4) < 1e-4


@pytest.mark.parametrize("name", ["step", "play"])
def test_a_step_that_trains_the_generator_first_is_noticed(name, monkeypatch):
    right = CHAPTER[name]

    def other_noise_first(generator, discriminator, *arguments, **rates):
        *start, noise, other_noise = arguments
        return right(generator, discriminator, *start, other_noise, noise, **rates)

    monkeypatch.setitem(CHAPTER, name, other_noise_first)
    with pytest.raises(AssertionError):
        CHAPTER["check_against_nnopt"](4)


def test_the_losses_are_keras_cross_entropy():
    generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    discriminator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    real, noise = RANDOM.normal(size=(8, 2)).astype("float32"), RANDOM.normal(size=(8, 3)).astype("float32")
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    ones, zeros = np.ones((8, 1)), np.zeros((8, 1))
    fake = generator(noise)
    expected = float(cross_entropy(ones, discriminator(real)) + cross_entropy(zeros, discriminator(fake)))
    optimizers = keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)
    losses = CHAPTER["play"](generator, discriminator, optimizers, real, noise, noise)
    assert float(losses["discriminator_loss"]) == pytest.approx(expected, rel=1e-5)
    deceived = float(cross_entropy(ones, discriminator(fake)))
    assert float(losses["generator_loss"]) == pytest.approx(deceived, rel=1e-5)


def test_the_measures_count_modes_and_what_lies_between():
    centres, spread = CHAPTER["CENTRES"], CHAPTER["SPREAD"]
    assert CHAPTER["covered"](centres) == 8
    assert CHAPTER["covered"](np.concatenate([np.repeat(centres[1:], 10, axis=0), centres[:1]])) == 7
    assert CHAPTER["covered"](centres * (1 + 3.1 * spread)) == 0
    assert CHAPTER["between"](centres) == 0
    half = np.pi / 8
    turn = np.array([[np.cos(half), -np.sin(half)], [np.sin(half), np.cos(half)]])
    assert CHAPTER["between"](centres @ turn.T) == 1
    counts = CHAPTER["histogram"](np.array([[-5.0, 5.0], [0.05, 0.05], [0.15, 0.15]]))
    assert counts.sum() == pytest.approx(1)
    assert np.count_nonzero(counts) == 2


def test_the_rivals_keep_what_they_promise():
    points = CHAPTER["ring"](0, 20_000)
    turned = CHAPTER["turned"](0, 20_000)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1), rtol=1e-5)
    assert CHAPTER["between"](turned) == pytest.approx(0.5, abs=0.02)
    real = RANDOM.normal(size=(500, 3)) @ RANDOM.normal(size=(3, 3)) + 2
    drawn = CHAPTER["matched_normal"](0, 50_000, real)
    np.testing.assert_allclose(drawn.mean(axis=0), real.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(real.T), atol=0.1)


def test_the_energy_distance_is_the_mean_over_scipys_distances():
    x, y = RANDOM.normal(size=(2, 30, 4)).astype("float32"), RANDOM.normal(1, 1, size=(2, 30, 4)).astype("float32")
    found = ops.convert_to_numpy(CHAPTER["energy_distance"](x, y))
    for one, other, distance in zip(x, y, found):
        within = [cdist(side, side).sum() / (30 * 29) for side in (one, other)]
        assert distance == pytest.approx(2 * cdist(one, other).mean() - sum(within), abs=0.01)


def test_the_frechet_distance_is_that_of_scipys_matrix_root():
    one, other = RANDOM.normal(size=(60, 5)), RANDOM.normal(1, 2, size=(60, 5)) @ RANDOM.normal(size=(5, 5))
    first, second = CHAPTER["moments_of"](one), CHAPTER["moments_of"](other)
    root = sqrtm(first[1] @ second[1]).real
    expected = np.sum((first[0] - second[0]) ** 2) + np.trace(first[1] + second[1] - 2 * root)
    assert CHAPTER["frechet"](first, second) == pytest.approx(expected, rel=1e-6)
    assert CHAPTER["frechet"](first, first) == pytest.approx(0, abs=1e-6)


def test_told_apart_counts_the_neighbours_that_a_tree_finds():
    real, samples = RANDOM.normal(size=(80, 3)), RANDOM.normal(0.8, 1, size=(80, 3))
    heap, kind = np.concatenate([real, samples]), np.repeat([0, 1], 80)
    neighbours = cKDTree(heap).query(heap, k=2)[1][:, 1]
    assert CHAPTER["told_apart"](real, samples) == pytest.approx(np.mean(kind[neighbours] == kind))
    assert CHAPTER["told_apart"](real, samples + 100) == 1


def test_each_run_of_a_stack_is_the_run_alone():
    rates, sizes = [0.01, 0.001, 0.03], [2, 5, 3]
    stacked = CHAPTER["stack"](sizes, seeds=[7, 8, 9], batch=16, stream=1)
    hidden = [keras.layers.Dense(5, activation="leaky_relu") for _ in rates]
    alone = [keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(3)]) for layer in hidden]
    for run, network in enumerate(alone):
        network.set_weights([weight[run].reshape(own.shape) for weight, own in
                             zip(stacked.get_weights(), network.get_weights())])  # fmt: skip
        network.compile(keras.optimizers.Adam(rates[run], beta_1=0.5), "mse")
    stacked.compile(CHAPTER["StackedAdam"](rates), "mse")
    for _ in range(5):
        x, y = RANDOM.normal(size=(3, 16, 2)).astype("float32"), RANDOM.normal(size=(3, 16, 3)).astype("float32")
        stacked.train_on_batch(x, y)
        for run, network in enumerate(alone):
            network.train_on_batch(x[run], y[run])
    for run, network in enumerate(alone):
        for ours, theirs in zip(stacked.get_weights(), network.get_weights()):
            np.testing.assert_allclose(ours[run].reshape(theirs.shape), theirs, atol=1e-5)


def test_packs_are_judged_together():
    judge = CHAPTER["stack"]([2, 4, 1], seeds=[1, 2], batch=8, stream=2, pack=4)
    x = RANDOM.normal(size=(2, 8, 2)).astype("float32")
    before = ops.convert_to_numpy(judge(x))
    x[:, 1] += 1
    after = ops.convert_to_numpy(judge(x))
    assert before.shape == (2, 2, 1)
    assert np.all(before[:, 0] != after[:, 0])
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
