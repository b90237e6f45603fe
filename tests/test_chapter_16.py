"""The from-scratch optimizers and race tools of chapter 16, against Keras, NumPy's SVD and brute force."""

import itertools
from functools import cache, partial

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

KERAS = {
    "momentum": partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "lion": keras.optimizers.Lion,
    "muon": partial(keras.optimizers.Muon, exclude_layers=["logits", "bias"]),
}
SIDES = ("adam", "sam")
RANGES = {"adam": {"rate": (0.003, 0.3), "1 - beta_1": (0.02, 0.5)}, "sam": {"rate": (0.02, 2), "rho": (0.01, 0.5)}}
BATCHES, BUDGETS = {"toy": 4}, {"toy": 30}
CHAPTER = from_scratch(
    "16_efficient_optimizers", partial=partial, cache=cache, layers=keras.layers, KERAS=KERAS, SIDES=SIDES,
    RANGES=RANGES, BATCHES=BATCHES, BUDGETS=BUDGETS, TARGETS={"toy": 0.1}, FIRST_LOOK=10, LOOK_EVERY=1.06,
)  # fmt: skip
KERAS["schedule free"] = CHAPTER["ScheduleFree"]


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw", "lion", "muon", "schedule free", "sam"])
def test_each_rule_equals_keras(name):
    theirs = CHAPTER["keras_path"](name, steps=10)
    ours = CHAPTER["own_path"](name, steps=10)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(CHAPTER["own_path"](name, rate=0.011, steps=10) - theirs).max() > 1e-4


def test_newton_schulz_keeps_the_directions_and_brings_the_singular_values_near_one():
    matrices = np.random.default_rng(0).normal(size=(3, 6, 4))
    for matrix, step in zip(matrices, CHAPTER["newton_schulz"](matrices)):
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ step @ right.T  # diagonal, if the directions are kept
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-6)
        assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.25))


def test_muon_treats_flattened_kernels_and_leaves_biases_words_and_logits_to_adam():
    shapes = {"embedding/table": (5, 3), "conv/kernel": (3, 3, 2, 4), "gru/bias": (2, 6), "logits/kernel": (4, 2)}
    variables = [keras.Variable(np.zeros(shape), name="value") for shape in shapes.values()]
    named = [type("Named", (), {"path": path, "shape": one.shape}) for path, one in zip(shapes, variables)]
    assert CHAPTER["matrices"](named) == [(15, 87, 4)]


def test_schedule_free_averages_the_wandering_points():
    draws, w = np.random.default_rng(0), np.ones((1, 3))
    state, wandering = (w, np.zeros_like(w)), []
    for t in range(1, 8):
        w, state = CHAPTER["schedule_free"](w, draws.normal(size=w.shape), state, t, 0.1, beta=0.8)
        wandering.append(state[0])
    np.testing.assert_allclose(CHAPTER["average"](w, state[0], 0.8), np.mean(wandering, axis=0), rtol=1e-6)


def test_keras_own_schedule_free_is_a_plain_average_on_tensorflow():
    """Fails once Keras is repaired: then section 5 and the row of the plan must change."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the bug needs variables that share their memory")
    variable, optimizer = keras.Variable(np.ones(1, "float32")), keras.optimizers.ScheduleFreeAdamW(0.1)
    w, state = np.ones(1, "float32"), (np.ones(1, "float32"), np.zeros(1, "float32"))
    for t, g in enumerate(np.array([1.0, 2.0, -1.0], "float32"), start=1):
        optimizer.apply([keras.ops.convert_to_tensor([g])], [variable])
        w, state = CHAPTER["plain_average"](w, g, state, t, 0.1)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), w, rtol=1e-5)


def test_sam_steps_from_home_with_the_gradient_of_the_worst_point():
    def slope(w):
        return w**3 + np.array([1.0, -2.0])

    w = np.array([[1.0, 2.0]])
    state = (np.zeros_like(w), w)
    climbed = w + 0.1 * slope(w) / np.linalg.norm(slope(w))
    up, state = CHAPTER["sam"](w, slope(w), state, 1, 0.01, beta=0.0, rho=0.1)
    np.testing.assert_allclose(up, climbed)
    down, _ = CHAPTER["sam"](up, slope(up), state, 2, 0.01, beta=0.0, rho=0.1)
    np.testing.assert_allclose(down, w - 0.01 * slope(climbed))


@pytest.mark.parametrize(("stride", "padding"), [(1, "same"), (2, "valid")])
def test_a_convolution_is_a_product_with_one_matrix(stride, padding):
    if keras.backend.backend() == "torch":
        pytest.skip("the chapter runs on TensorFlow and JAX")
    layer = keras.layers.Conv2D(4, 3, stride, padding, use_bias=False)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(layer(x))
    ours = CHAPTER["as_product"](layer, keras.ops.convert_to_tensor(x), layer.kernel)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_best_of_k_is_the_median_over_all_draws(k):
    needed = np.array([40.0, np.inf, 12.0, 33.0, np.inf])
    every = sorted(min(draw) for draw in itertools.combinations(needed, k))
    assert CHAPTER["median_best_of"](needed, k) == every[(len(every) - 1) // 2]


def test_a_failure_is_never_solved_in_a_profile():
    needed = np.array([[10.0, 40.0, np.inf], [20.0, 20.0, np.inf]])
    np.testing.assert_allclose(CHAPTER["profile"](needed, [1, 2, 100]), [[1 / 3, 2 / 3, 2 / 3], [1 / 3, 2 / 3, 2 / 3]])


def test_trials_stay_in_their_ranges_and_differ_by_seed():
    drawn = CHAPTER["trials"]("adam", seed=1, count=8)
    rates = np.array([numbers["rate"] for numbers in drawn])
    assert len({*rates}) == 8
    assert rates.min() >= 0.003
    assert rates.max() <= 0.3
    assert all(0.5 <= numbers["beta_1"] <= 0.98 for numbers in drawn)
    assert np.sum(rates < 0.03) == 4  # spread evenly: half of them in the lower half of the logarithmic range
    assert drawn != CHAPTER["trials"]("adam", seed=2, count=8)


def test_sam_sees_each_batch_twice_and_the_looks_find_it_at_home():
    task = type("Toy", (), {"name": "toy"})
    once = CHAPTER["batches_of"](task, 22, 5, "adam")
    twice = CHAPTER["batches_of"](task, 22, 5, "sam")
    assert once.shape == twice.shape == (30, 4)
    assert len({*once[:5].ravel()}) == 20
    np.testing.assert_array_equal(twice[::2], once[:15])
    np.testing.assert_array_equal(twice[1::2], once[:15])
    assert all(look % 2 == 0 for look in CHAPTER["looks"](160))
    assert CHAPTER["looks"](160)[-1] == 160


def test_each_rule_updates_its_own_rows_only():
    w = np.ones((3, 2), "float32")
    runs = type("Runs", (), {})()
    runs.w, runs.side = w.copy(), np.array(["sam", "adam", "sam"])
    runs.state = [np.zeros_like(w), np.zeros_like(w)]
    runs.numbers = {name: np.full((3, 1), 0.1, "float32") for name in ("rate", "beta_1", "rho")}
    task = type("Toy", (), {"rules": {"adam": CHAPTER["adam"], "sam": CHAPTER["sam"]}})
    CHAPTER["update"](task, runs, np.array([0, 1]), np.ones((2, 2), "float32"), 1)
    np.testing.assert_allclose(runs.w[0], 1 + 0.1 / np.sqrt(2), rtol=1e-5)  # climbed
    np.testing.assert_allclose(runs.w[1], 0.9, rtol=1e-4)  # Adam's first step has the length of the rate
    np.testing.assert_array_equal(runs.w[2], w[2])  # not running
