"""The attacks, the defence and the corruptions of chapter 15, against nnopt, finite differences and brute force."""

import itertools

import keras
import numpy as np
import pytest
from notebook_cells import from_scratch

import nnopt
from nnopt import attacks

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

CHAPTER = from_scratch("15_robustness")


@pytest.fixture(scope="module")
def network():
    """A network that has learned the digits a little, and 100 test digits."""
    data = nnopt.data.digits(seed=0)
    model = nnopt.models.mlp((64,), [16], classes=10, seed=0)
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data.train, batch_size=64, epochs=4, verbose=0)
    x, y = (part[:100] for part in data.test)
    return model, model.get_weights(), x, y


def accuracy(weights, x, y):
    return np.mean(CHAPTER["forward"](weights, x)[1].argmax(axis=1) == y)


def test_no_corner_of_the_cube_is_worse_than_the_closed_form():
    random = np.random.default_rng(0)
    x, sign, w = random.random((5, 6)), np.array([1, -1, 1, 1, -1]), random.normal(size=6)
    corners = 0.3 * np.array(list(itertools.product((-1, 1), repeat=6)))
    scores = sign * (np.clip(x + corners[:, None], 0, 1) @ w)  # (corners, examples)
    np.testing.assert_allclose(sign * (CHAPTER["worst"](x, sign, w, 0.3) @ w), scores.min(axis=0))


@pytest.mark.parametrize("size", [0.0, 0.2])
def test_linear_training_follows_the_gradient_of_the_worst_case_loss(size):
    random = np.random.default_rng(0)
    x, sign = random.random((20, 4)), random.choice([-1, 1], 20)

    def loss(w, b):
        return np.mean(np.log1p(np.exp(-sign * (CHAPTER["worst"](x, sign, w, size) @ w + b))))

    (w, b), (later_w, later_b) = (CHAPTER["train_linear"](x, sign, size, steps=steps, rate=0.01) for steps in (50, 51))
    steps = 1e-6 * np.eye(4)
    slopes = np.array([(loss(w + step, b) - loss(w - step, b)) / 2e-6 for step in steps])
    np.testing.assert_allclose((later_w - w) / -0.01, slopes, atol=1e-6)
    assert (later_b - b) / -0.01 == pytest.approx((loss(w, b + 1e-6) - loss(w, b - 1e-6)) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("slope", ["cross_entropy_slope", "margin_slope"])
def test_the_gradient_by_the_pixels_matches_finite_differences(slope, network):
    _, weights, x, y = network
    weights = [weight.astype("float64") for weight in weights]
    x, y = x[:10].astype("float64"), y[:10]

    def losses(pictures):
        logits = CHAPTER["forward"](weights, pictures)[1]
        if slope == "margin_slope":
            return CHAPTER["margin"](logits, y)
        return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]

    expected = [(losses(x + step) - losses(x - step)) / 2e-6 for step in 1e-6 * np.eye(64)]
    gradient = CHAPTER["input_gradient"](weights, x, y, CHAPTER[slope])
    np.testing.assert_allclose(gradient, np.array(expected).T, atol=1e-6)


def test_the_attacks_are_those_of_the_library(network):
    model, weights, x, y = network
    pairs = [
        (CHAPTER["fgsm"](weights, x, y, 0.1), attacks.fgsm(model, x, y, 0.1)),
        (CHAPTER["pgd"](weights, x, y, 0.1, steps=5), attacks.pgd(model, x, y, 0.1, steps=5, random_start=False)),
        (CHAPTER["pgd"](weights, x, y, 0.1, steps=5, slope=CHAPTER["margin_slope"]),
         attacks.pgd(model, x, y, 0.1, steps=5, random_start=False, loss="margin")),
    ]  # fmt: skip
    for ours, theirs in pairs:
        assert np.mean(np.abs(ours - theirs) > 1e-5) <= 2e-3
    assert np.mean(np.abs(pairs[0][0] - pairs[1][0]) > 1e-5) > 0.05  # one step is not five


def test_every_attack_stays_in_the_cube_and_hurts(network):
    _, weights, x, y = network
    for attack in ("fgsm", "pgd", "random_search"):
        found = CHAPTER[attack](weights, x, y, 0.15)
        assert np.abs(found - x).max() <= 0.15 + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
        assert accuracy(weights, found, y) < accuracy(weights, x, y) - 0.2


def test_the_margin_is_positive_exactly_where_the_answer_is_wrong(network):
    _, weights, x, y = network
    logits = CHAPTER["forward"](weights, x)[1]
    np.testing.assert_array_equal(CHAPTER["margin"](logits, y) > 0, logits.argmax(axis=1) != y)


def test_large_logits_hide_the_gradient_from_one_loss_only(network):
    _, weights, x, y = network
    masked = [*weights[:2], 1000 * weights[2], 1000 * weights[3]]
    with_loss, with_margin = (
        CHAPTER["pgd"](masked, x, y, 0.15, slope=CHAPTER[slope]) for slope in ("cross_entropy_slope", "margin_slope")
    )
    assert accuracy(masked, x, y) == accuracy(weights, x, y)
    assert accuracy(masked, with_loss, y) > accuracy(masked, with_margin, y) + 0.3


def test_search_only_asks_for_logits_and_keeps_what_helps(network):
    _, weights, x, y = network
    few, many = (CHAPTER["random_search"](weights, x, y, 0.1, tries=tries) for tries in (1, 200))
    margins = [CHAPTER["margin"](CHAPTER["forward"](weights, found)[1], y) for found in (x, few, many)]
    assert np.all(margins[1] >= margins[0])
    assert np.mean(margins[2]) > np.mean(margins[1])


def test_an_epoch_of_the_defence_is_that_of_the_library(network):
    _, weights, _, _ = network
    x, y = (part[:192] for part in nnopt.data.digits(seed=0).train)
    trained = []
    for wrapped in (False, True):
        model = nnopt.models.mlp((64,), [16], classes=10)
        model.set_weights(weights)
        fitted = attacks.AdversarialTraining(model, 0.15, steps=3, seed=4) if wrapped else model
        fitted.compile(keras.optimizers.SGD(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if wrapped:
            fitted.fit(x, y, batch_size=64, shuffle=False, verbose=0)
        else:
            CHAPTER["adversarial_epoch"](model, x, y, 0.15, steps=3, seed=4)
        trained.append(model.get_weights())
    for ours, theirs, before in zip(*trained, weights):
        assert np.mean(np.abs(ours - theirs)) < 0.03 * np.mean(np.abs(ours - before))


@pytest.mark.parametrize("kind", ["noise", "blur", "contrast", "rotation", "fog"])
def test_a_corruption_grows_with_its_severity_and_keeps_the_range(kind, network):
    _, _, x, _ = network
    changes = []
    for severity in range(6):
        changed = CHAPTER["corrupted"](kind, x, severity, seed=1)
        np.testing.assert_array_equal(changed, CHAPTER["corrupted"](kind, x, severity, seed=1))
        assert changed.shape == x.shape
        assert changed.min() >= 0
        assert changed.max() <= 1
        changes.append(np.abs(changed - x).mean())
    assert changes[0] == 0
    assert np.all(np.diff(changes) > 0)


def test_contrast_and_fog_follow_their_formulas():
    x = np.random.default_rng(0).random((3, 8, 8))
    halved = CHAPTER["contrast"](x, 2, None)
    np.testing.assert_allclose(halved.mean(axis=(1, 2)), x.mean(axis=(1, 2)))
    np.testing.assert_allclose(halved.std(axis=(1, 2)), 0.5 * x.std(axis=(1, 2)))
    dark = CHAPTER["fog"](np.zeros((50, 8, 8)), 3, np.random.default_rng(0))
    assert 0 <= dark.min() < dark.max() <= 0.5
    bright = CHAPTER["fog"](np.ones((1, 8, 8)), 3, np.random.default_rng(0))
    np.testing.assert_allclose(bright - dark[:1], 0.5, atol=1e-9)


def test_a_rotation_by_ninety_degrees_would_be_exact():
    x = np.random.default_rng(0).random((1, 8, 8))
    turned = CHAPTER["rotation"](x, 9, np.random.default_rng(0))[0]
    assert any(np.allclose(turned, np.rot90(x[0], turns), atol=1e-6) for turns in (1, 3))
