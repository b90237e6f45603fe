"""The normalizations, gradients, training and checks of chapter 08, against Keras, PyTorch and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt

CHAPTER = from_scratch("08_batch_normalization")
deep_network = CHAPTER["deep_network"]
X, Y = (part[:64] for part in nnopt.data.digits().train)
PLACES = [(None, False), ("batch", False), ("batch", True), ("layer", False), ("group", True), ("rms", False)]


@pytest.mark.parametrize("shape", [(16, 8), (6, 4, 4, 8)])
def test_our_layer_equals_keras_in_training_and_inference_for_units_and_for_channels(shape):
    verdict = CHAPTER["check_batch_norm"](shape, steps=10)
    assert verdict.word == "exact"
    assert verdict.claim.tolerance <= 1e-6


def test_the_comparison_notices_the_variance_with_one_fewer_example(monkeypatch):
    class Unbiased(CHAPTER["BatchNorm"]):
        def __call__(self, z, training):
            before = self.moving_variance
            output = super().__call__(z, training)
            if training:
                seen = (self.moving_variance - self.momentum * before) * (z.shape[0] / (z.shape[0] - 1))
                self.moving_variance = self.momentum * before + seen
            return output

    monkeypatch.setitem(CHAPTER, "BatchNorm", Unbiased)
    assert CHAPTER["check_batch_norm"](steps=5).word == "refuted"


def test_our_layer_equals_torch_in_training():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(8, eps=1e-3, momentum=0.01)
    ours = CHAPTER["BatchNorm"](8)
    z = np.random.default_rng(0).normal(1, 2, (16, 8)).astype("float32")
    actual = ops.convert_to_numpy(ours(ops.convert_to_tensor(z), training=True))
    np.testing.assert_allclose(actual, theirs(torch.as_tensor(z)).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(ours.moving_mean), theirs.running_mean.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", CHAPTER["KINDS"])
def test_the_normalizations_are_one_formula_along_other_axes(kind):
    assert CHAPTER["check_along_other_axes"](kind).word == "exact"


@pytest.mark.parametrize(("kind", "after"), PLACES)
def test_our_gradients_equal_those_of_keras(kind, after):
    assert CHAPTER["check_gradients"](kind, after, depth=2).word == "exact"


def in_double_precision(layers):
    return [[one.astype("float64") for one in layer] for layer in layers]


@pytest.mark.parametrize(("kind", "after"), [*PLACES, ("frozen", False)])
def test_gradients_of_several_runs_match_finite_differences(kind, after):
    random = np.random.default_rng(0)
    layers = in_double_precision(CHAPTER["initial_layers"](2, [0, 1], width=8))
    layers[0][1] = layers[0][1] + random.normal(size=(2, 1, 8))
    x, y = random.uniform(size=(2, 6, 64)), random.integers(10, size=(2, 6))
    statistics = [(random.normal(size=(2, 1, 8)), random.uniform(0.5, 2, (2, 1, 8))) for _ in range(2)]
    options = (kind, after, statistics if kind == "frozen" else None)
    found, loss, _ = CHAPTER["gradients"](layers, x, y, *options)
    np.testing.assert_allclose(loss, CHAPTER["loss_of"](layers, x, y, *options))
    places = [(0, 0, (3, 2)), (0, 1, (0, 1)), (1, 0, (1, 3)), (2, 0, (2, 7)), (2, 1, (0, 4))]
    places += [(1, 2, (0, 2))] if kind else []
    places += [(1, 3, (0, 5))] if kind not in (None, "rms") else []
    for depth, part, index in places:
        shifted = [[[one.copy() for one in layer] for layer in layers] for _ in range(2)]
        for side, move in zip(shifted, (1e-6, -1e-6)):
            side[depth][part][(slice(None), *index)] += move
        slope = np.subtract(*(CHAPTER["loss_of"](side, x, y, *options) for side in shifted)) / 2e-6
        np.testing.assert_allclose(found[depth][part][(slice(None), *index)], slope, atol=1e-7)


def test_a_bias_before_a_batch_normalization_has_no_gradient():
    layers = in_double_precision(CHAPTER["initial_layers"](2, [0]))
    found, _, _ = CHAPTER["gradients"](layers, X[None].astype("float64"), Y[None], "batch")
    assert not found[0][1].any()
    assert np.abs(found[0][0]).max() > 1e-3
    found, _, _ = CHAPTER["gradients"](layers, X[None].astype("float64"), Y[None], "batch", after=True)
    assert np.abs(found[0][1]).max() > 1e-3


@pytest.mark.parametrize(("rule", "kind"), [("momentum_sgd", "batch"), ("adam", None)])
def test_a_training_is_that_of_keras_moving_statistics_included(rule, kind):
    keras.utils.set_random_seed(3)
    model = deep_network(kind and CHAPTER["KINDS"][kind], depth=2)
    layers, _ = CHAPTER["read"](model)
    layers = [[one.astype("float32") for one in layer] for layer in layers]
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9) if rule == "momentum_sgd" else keras.optimizers.Adam(0.05)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=keras.backend.backend() != "jax")
    steps = CHAPTER["training"](layers, (X[None], Y[None]), [5], [0.05], 4, kind, rule=CHAPTER[rule])
    for update in steps:
        _, updated, x, y, moving, loss = update
        theirs = model.train_on_batch(x[0], y[0])
        np.testing.assert_allclose(loss[0], float(np.ravel(theirs)[0]), rtol=1e-3)
    expected, statistics = CHAPTER["read"](model)
    moving = moving if kind else []
    for ours, keras_ones in zip([*updated, *moving], [*expected, *statistics]):
        for one, other in zip(ours, keras_ones):
            np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("kind", [None, "batch"])
def test_runs_trained_together_learn_and_do_not_touch_each_other(kind):
    data = tuple(np.stack([part] * 3) for part in (X, Y))

    def last(seeds, rates):
        start = CHAPTER["initial_layers"](2, seeds)
        mine = tuple(part[: len(seeds)] for part in data)
        *_, (_, layers, *_) = CHAPTER["training"](start, mine, seeds, rates, 30, kind)
        return layers, CHAPTER["loss_of"](start, *mine, kind), CHAPTER["loss_of"](layers, *mine, kind)

    together, before, after = last([0, 0, 1], [0.03, 0.001, 0.03])
    assert (after < before).all()
    assert after[0] < 0.8 * before[0]
    alone, *_ = last([1], [0.03])
    for one, other in zip(together, alone):
        np.testing.assert_allclose(one[0][2], other[0][0], rtol=1e-5, atol=1e-6)


def test_an_epoch_sees_every_digit_once_and_each_run_its_own_order():
    data = tuple(np.stack([part] * 2) for part in (X, Y))
    start = CHAPTER["initial_layers"](1, [0, 1])
    seen = [x for _, _, x, *_ in CHAPTER["training"](start, data, [0, 1], [0.01, 0.01], 4, batch=16)]
    seen = np.concatenate(seen, axis=1)
    assert not np.array_equal(seen[0], seen[1])
    for of_run in seen:
        np.testing.assert_array_equal(np.sort(of_run, axis=0), np.sort(X, axis=0))


def test_frozen_statistics_stay_and_inference_uses_them():
    data = (X[None], Y[None])
    start = CHAPTER["initial_layers"](2, [0])
    *_, (_, layers, _, _, moving, _) = CHAPTER["training"](start, data, [0], [0.03], 6, "batch")
    *_, (_, tuned, _, _, kept, _) = CHAPTER["training"](layers, data, [0], [0.01], 3, "frozen", batch=2, moving=moving)
    assert kept is moving
    assert not np.array_equal(tuned[0][0], layers[0][0])
    options = ("frozen", False, moving)
    one_by_one = [CHAPTER["loss_of"](layers, X[None, n : n + 1], Y[None, n : n + 1], *options)[0] for n in range(64)]
    assert CHAPTER["loss_of"](layers, *data, *options)[0] == pytest.approx(np.mean(one_by_one), rel=1e-4)


def test_a_twin_with_normalization_reproduces_the_plain_network():
    keras.utils.set_random_seed(1)
    plain = deep_network(depth=3)
    twin = CHAPTER["normalized_twin"](plain, depth=3, seed=1)
    logits = [ops.convert_to_numpy(model(X, training=False)) for model in (twin, plain)]
    np.testing.assert_allclose(*logits, atol=1e-5 * np.abs(logits[1]).max())
    layer = next(one for one in twin.layers if isinstance(one, keras.layers.BatchNormalization))
    layer.gamma.assign(layer.gamma * 1.01)
    assert np.abs(ops.convert_to_numpy(twin(X, training=False)) - logits[1]).max() > 1e-4


def test_normalized_gradients_shrink_as_their_kernel_grows(monkeypatch):
    monkeypatch.setitem(CHAPTER, "EPSILON", 1e-12)
    layers = in_double_precision(CHAPTER["initial_layers"](3, [0]))
    grown = [layers[0], [100 * layers[1][0], *layers[1][1:]], *layers[2:]]
    x, y = X[None].astype("float64"), Y[None]
    before, after = (CHAPTER["gradients"](one, x, y, "batch")[0][1][0] for one in (layers, grown))
    np.testing.assert_allclose(100 * after, before, atol=1e-6)


DEVIATIONS = {"He": 0.25, "Keras' default": 0.1768, "half of He": 0.125, "twice He": 0.5}


@pytest.mark.parametrize(("scale", "deviation"), DEVIATIONS.items())
def test_initial_weights_have_their_deviation(scale, deviation):
    layers = CHAPTER["initial_layers"](2, range(8), scale)
    assert layers[1][0].std() == pytest.approx(deviation, rel=0.03)
    np.testing.assert_array_equal(layers[1][0][3], CHAPTER["initial_layers"](2, [3], scale)[1][0][0])


def test_shifts_are_zero_without_an_update_and_known_for_a_known_one():
    layers = CHAPTER["initial_layers"](2, [0, 1])
    x, y = (np.stack([part[:32]] * 2) for part in (X, Y))
    change, relative, cosine = CHAPTER["gradient_shifts"](layers, layers, x, y, "batch")
    assert not change.any()
    assert not relative.any()
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    # Without normalization, a last hidden layer twice as large doubles the inputs of the logits' kernel.
    doubled = [layers[0], [2 * layers[1][0], *layers[1][1:]], layers[2]]
    old, new = (CHAPTER["gradients"](one, x, y)[0][2][0] for one in (layers, doubled))
    change, relative, _ = CHAPTER["gradient_shifts"](layers, doubled, x, y, None)
    expected = np.sqrt(((new - old) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(change[1], expected, rtol=1e-4)
    np.testing.assert_allclose(relative[1], expected / np.sqrt((old**2).sum(axis=(1, 2))), rtol=1e-4)
    inputs = np.random.default_rng(0).normal(size=(2, 1000, 5))
    inputs = (inputs - inputs.mean(axis=1, keepdims=True)) / inputs.std(axis=1, keepdims=True)
    np.testing.assert_allclose(CHAPTER["moment_shift"](inputs, inputs), 0, atol=1e-12)
    np.testing.assert_allclose(CHAPTER["moment_shift"](inputs, 1.5 * inputs + 2), np.hypot(2, 0.5))


def test_the_two_checks_catch_their_bugs_and_pass_honest_code():
    model = deep_network(CHAPTER["KINDS"]["batch"], depth=2)
    x = X[:40]
    CHAPTER["assert_independent"](lambda x: model(x, training=False), x)
    CHAPTER["assert_unchanged_by"](lambda: model(x, training=False), model)
    before = model.get_weights()
    with pytest.raises(AssertionError, match="companions"):
        CHAPTER["assert_independent"](lambda x: model(x, training=True), x)
    model.set_weights(before)
    with pytest.raises(AssertionError, match="moving_mean"):
        CHAPTER["assert_unchanged_by"](lambda: model(x, training=True), model)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights()))
