"""Attacks against closed forms, exhaustive search and another library; adversarial training against plain steps."""

import keras
import numpy as np
import pytest
from keras import ops

from nnopt.attacks import AdversarialTraining, fgsm, pgd
from nnopt.models import cnn, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(weights):
    """A model of two classes whose logits are -w x / 2 and w x / 2."""
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([np.stack([-np.array(weights) / 2, np.array(weights) / 2], axis=1)])
    return model


def examples(count, size, classes=2, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0.2, 0.8, (count, size)).astype("float32"), random.integers(0, classes, count)


@pytest.fixture(scope="module")
def blobs():
    """A small network that has learned to tell three clouds of points in the unit cube, and the points."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 240)
    x = np.clip(0.5 + 0.25 * np.eye(4)[y] + 0.08 * random.normal(size=(240, 4)), 0, 1).astype("float32")
    model = mlp((4,), [16], classes=3, seed=0)
    model.compile(keras.optimizers.Adam(0.02), CROSS_ENTROPY, metrics=["accuracy"])
    model.fit(x, y, epochs=12, verbose=0)
    return model, x, y


def accuracy(model, x, y):
    return np.mean(ops.convert_to_numpy(model(x)).argmax(axis=1) == y)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_an_attack_is_the_closed_form(steps, targeted):
    weights = np.array([1.5, -0.5, 0.0, 2.0])
    x, y = examples(9, 4)
    away = np.where(y == 1, -1, 1) * (-1 if targeted else 1)
    straight = np.outer(away, np.sign(weights))
    found = pgd(linear(weights), x, y, 0.1, steps=steps, step_size=0.1, random_start=False, targeted=targeted)
    np.testing.assert_allclose(found, x + 0.1 * straight, atol=1e-6)
    along = np.outer(away, weights / np.linalg.norm(weights))
    found = pgd(linear(weights), x, y, 0.1, norm="l2", steps=steps, random_start=False, targeted=targeted)
    np.testing.assert_allclose(found, x + 0.1 * along, atol=1e-5)


def test_fgsm_is_one_step_along_the_sign(blobs):
    model, x, y = blobs
    expected = pgd(model, x, y, 0.05, steps=1, step_size=0.05, random_start=False)
    np.testing.assert_array_equal(fgsm(model, x, y, 0.05), expected)
    assert accuracy(model, expected, y) < accuracy(model, x, y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_an_attack_stays_in_the_ball_and_within_the_bounds(norm, loss, blobs):
    model, x, y = blobs
    found = pgd(model, x, y, 0.3, norm=norm, loss=loss, steps=5, restarts=2, seed=0)
    change = found - x
    size = np.abs(change).max() if norm == "linf" else np.linalg.norm(change, axis=1).max()
    assert 0.2 < size <= 0.3 + 1e-5
    assert found.min() >= 0
    assert found.max() <= 1
    assert accuracy(model, found, y) < 0.5 < 0.9 < accuracy(model, x, y)


def test_the_attack_finds_what_an_exhaustive_search_finds(blobs):
    model, x, y = blobs
    x, y = x[:40], y[:40]
    grid = np.stack(np.meshgrid(*[np.linspace(-0.1, 0.1, 5)] * 4), axis=-1).reshape(-1, 4)
    everywhere = np.clip(x[:, None] + grid, 0, 1).reshape(-1, 4).astype("float32")
    wrong = ops.convert_to_numpy(model(everywhere)).argmax(axis=1).reshape(len(x), -1) != y[:, None]
    found = pgd(model, x, y, 0.1, steps=20, restarts=3, loss="margin", seed=0)
    fooled = ops.convert_to_numpy(model(found)).argmax(axis=1) != y
    assert 0 < fooled.sum() < len(x)
    assert np.sum(wrong.any(axis=1) & ~fooled) <= 1  # an ascent may end on a lower hill


def test_the_strongest_attempt_is_kept(blobs):
    model, x, y = blobs

    def losses(restarts):
        found = pgd(model, x, y, 0.06, steps=2, restarts=restarts, seed=3)
        logits = ops.convert_to_numpy(model(found))
        return logits.argmax(axis=1) != y, ops.convert_to_numpy(
            ops.sparse_categorical_crossentropy(y, logits, from_logits=True)
        )

    (fooled, loss), (more_fooled, more_loss) = losses(1), losses(4)
    assert np.all(more_fooled >= fooled)
    assert np.all(more_loss[more_fooled == fooled] >= loss[more_fooled == fooled] - 1e-6)
    assert np.any(more_loss > loss + 1e-4)


def test_the_weights_of_the_moment_are_attacked(blobs):
    x, y = examples(5, 3, seed=1)
    model = linear([1.0, 1.0, 1.0])
    before = fgsm(model, x, y, 0.1)
    model.set_weights([-weight for weight in model.get_weights()])
    np.testing.assert_allclose(fgsm(model, x, y, 0.1) - x, -(before - x), atol=1e-6)


def test_batches_and_seeds(blobs):
    model, x, y = blobs
    options = {"steps": 3, "random_start": False}
    whole = pgd(model, x, y, 0.1, **options)
    np.testing.assert_allclose(pgd(model, x, y, 0.1, batch_size=50, **options), whole, atol=1e-6)
    first, again, other = (pgd(model, x, y, 0.1, steps=3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_is_uniform_in_the_ball(norm):
    x = np.full((4000, 3), 0.5, "float32")
    flat = linear([0.0, 0.0, 0.0])  # no gradient: the point stays where it began
    found = pgd(flat, x, np.zeros(4000, int), 0.2, norm=norm, steps=1, seed=0) - x
    if norm == "linf":
        assert np.abs(found.mean(axis=0)).max() < 0.01
        assert found.std() == pytest.approx(0.2 / np.sqrt(3), rel=0.02)
    else:
        radii = np.linalg.norm(found, axis=1) / 0.2
        assert radii.max() <= 1 + 1e-5
        assert np.mean(radii**3) == pytest.approx(0.5, abs=0.02)  # uniform in the volume


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_another_library_finds_as_many(norm, blobs):
    estimators = pytest.importorskip("art.estimators.classification")
    evasion = pytest.importorskip("art.attacks.evasion")
    torch = pytest.importorskip("torch")
    model, x, y = blobs
    twin = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    for layer, weight in zip(twin.parameters(), model.get_weights(), strict=True):
        layer.data = torch.tensor(weight.T.copy())
    classifier = estimators.PyTorchClassifier(
        twin, torch.nn.CrossEntropyLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.ProjectedGradientDescent(
        classifier, norm=np.inf if norm == "linf" else 2, eps=0.15, eps_step=0.02, max_iter=20, verbose=False
    )
    ours = pgd(model, x, y, 0.15, norm=norm, steps=20, step_size=0.02, random_start=False)
    theirs = attack.generate(x, y)
    assert 0.02 < accuracy(model, ours, y) < 0.9
    assert accuracy(model, ours, y) == pytest.approx(accuracy(model, theirs, y), abs=0.02)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epsilon": -0.1}, "`epsilon` must be a finite number >= 0"),
        ({"norm": "l1"}, "`norm` must be one of 'linf', 'l2'"),
        ({"steps": 0}, "`steps` must be an integer >= 1"),
        ({"step_size": -1}, "`step_size` must be a finite number >= 0"),
        ({"restarts": 0}, "`restarts` must be an integer >= 1"),
        ({"loss": "mse"}, "`loss` must be one of"),
        ({"bounds": (1, 0)}, "`bounds` must be a smaller and a larger number"),
        ({"bounds": (0, 0.3)}, "`x` must lie within `bounds`"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"x": np.zeros((2, 3), int)}, "`x` must hold finite, floating-point inputs"),
        ({"x": np.full((2, 3), np.nan)}, "`x` must hold finite"),
        ({"x": np.zeros((0, 3))}, "`x` must hold finite, floating-point inputs"),
        ({"y": np.array([0, 2])}, "`y` must hold an integer from 0 to 1 for each of the 2 inputs"),
        ({"y": np.array([0])}, "`y` must hold an integer from"),
    ],
)
def test_a_wrong_argument_is_named(change, text):
    arguments = {"model": linear([1.0, 1.0, 1.0]), "x": np.full((2, 3), 0.5), "y": np.array([0, 1]), "epsilon": 0.1}
    with pytest.raises(ValueError, match=text):
        pgd(**{**arguments, **change})


def test_a_softmax_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    with pytest.raises(ValueError, match="must return logits"):
        fgsm(model, np.full((1, 3), 0.5), np.array([0]), 0.1)
    with pytest.raises(ValueError, match=r"must be built and return logits \(batch, classes >= 2\)"):
        fgsm(mlp((3,), [4], classes=1), np.full((1, 3), 0.5), np.array([0]), 0.1)


# Adversarial training


def test_training_against_nothing_is_plain_training():
    x, y = examples(64, 4)
    plain, wrapped = (mlp((4,), [8], classes=2, seed=1) for _ in range(2))
    plain.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, metrics=["accuracy"])
    model = AdversarialTraining(wrapped, epsilon=0.0, steps=1, seed=0)
    model.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, metrics=["accuracy"])
    histories = [one.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history for one in (plain, model)]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(*[history[name] for history in histories], rtol=1e-4)
    for expected, actual in zip(plain.get_weights(), wrapped.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("trades", [None, 3.0])
def test_a_step_minimizes_the_loss_of_the_attacked_batch(trades):
    x, y = examples(32, 4)
    weights = np.array([2.0, -1.0, 0.5, 1.0])
    classifier = linear(weights)
    model = AdversarialTraining(classifier, epsilon=0.1, steps=3, trades=trades, seed=0)
    model.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, metrics=["accuracy"])
    logs = model.train_on_batch(x, y, return_dict=True)

    def probabilities(inputs):
        logits = inputs @ weights
        return np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=1)

    def cross_entropy(inputs):
        return -np.log(probabilities(inputs)[np.arange(len(y)), y]).mean()

    attacked = x + 0.1 * np.outer(np.where(y == 1, -1, 1), np.sign(weights))
    if trades is None:
        assert float(logs["loss"]) == pytest.approx(cross_entropy(attacked), rel=1e-4)
        assert float(logs["accuracy"]) == pytest.approx(np.mean(probabilities(attacked).argmax(axis=1) == y))
        return
    clean = probabilities(x)
    divergences = [
        np.sum(clean * np.log(clean / probabilities(x + sign * 0.1 * np.sign(weights))), axis=1) for sign in (-1, 1)
    ]
    least, most = np.min(divergences, axis=0).mean(), np.max(divergences, axis=0).mean()
    divergence = (float(logs["loss"]) - cross_entropy(x)) / trades
    assert least - 1e-5 < divergence < most + 1e-5
    assert divergence > 0.9 * most  # a random start may lead to the other end
    assert float(logs["accuracy"]) == pytest.approx(np.mean(clean.argmax(axis=1) == y))


@pytest.mark.parametrize("trades", [None, 2.0])
def test_a_trained_network_withstands_more(trades, blobs):
    standard, x, y = blobs
    classifier = mlp((4,), [16], classes=3, seed=0)
    model = AdversarialTraining(classifier, epsilon=0.12, steps=4, trades=trades, seed=0)
    model.compile(keras.optimizers.Adam(0.02), CROSS_ENTROPY, metrics=["accuracy"])
    history = model.fit(x, y, epochs=12, validation_data=(x, y), verbose=0).history
    attacked = [pgd(one, x, y, 0.12, seed=0) for one in (standard, classifier)]
    robust = [accuracy(one, its, y) for one, its in zip((standard, classifier), attacked)]
    assert robust[1] > robust[0] + 0.02
    assert history["val_accuracy"][-1] == pytest.approx(accuracy(classifier, x, y), abs=1e-6)  # without an attack


def test_images_and_batch_normalization():
    x = np.random.default_rng(0).uniform(size=(16, 8, 8, 1)).astype("float32")
    y = np.arange(16) % 3
    classifier = cnn((8, 8, 1), [4], classes=3, normalization="batch", seed=0)
    model = AdversarialTraining(classifier, epsilon=0.1, norm="l2", steps=2, seed=0)
    model.compile("adam", CROSS_ENTROPY)
    before = [ops.convert_to_numpy(variable) for variable in classifier.non_trainable_variables]
    model.fit(x, y, verbose=0)
    moved = [
        np.any(ops.convert_to_numpy(variable) != old)
        for variable, old in zip(classifier.non_trainable_variables, before)
    ]
    assert any(moved)
    now = [ops.convert_to_numpy(variable) for variable in classifier.non_trainable_variables]
    found = pgd(classifier, x, y, 0.5, norm="l2", steps=2, seed=0)
    assert np.linalg.norm((found - x).reshape(16, -1), axis=1).max() <= 0.5 + 1e-5
    for variable, old in zip(classifier.non_trainable_variables, now):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)  # an attack leaves the statistics alone


def test_the_random_starts_are_drawn_anew_and_repeatably():
    x, y = examples(8, 4)

    def losses(seed):
        model = AdversarialTraining(mlp((4,), [8], classes=2, seed=1), epsilon=0.3, steps=1, step_size=0.0, seed=seed)
        model.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY)
        return [float(model.train_on_batch(x, y, return_dict=True)["loss"]) for _ in range(3)]

    first = losses(0)
    assert len(set(first)) == 3
    assert losses(0) == first
    assert losses(1) != first


def test_a_saved_model_trains_on_alike(tmp_path):
    x, y = examples(16, 4)
    model = AdversarialTraining(mlp((4,), [8], classes=2, seed=1), epsilon=0.0, steps=2, trades=1.0, seed=0)
    model.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    logs = [one.fit(x, y, epochs=3, shuffle=False, verbose=0).history["loss"] for one in (model, loaded)]
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5)
    assert loaded.get_config()["trades"] == 1.0
