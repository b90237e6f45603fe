"""The from-scratch normalization, gradients and checks of chapter 08, against Keras, PyTorch and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt

CHAPTER = from_scratch("08_batch_normalization", data=nnopt.data.digits())


def test_our_layer_equals_keras_in_training_and_inference():
    verdict = CHAPTER["check_batch_norm"]()
    assert verdict.word == "exact"
    assert verdict.claim.tolerance <= 1e-6


def test_the_comparison_notices_the_variance_with_one_fewer_example(monkeypatch):
    class Unbiased(CHAPTER["BatchNorm"]):
        def __call__(self, z, training):
            before = self.moving_variance
            output = super().__call__(z, training)
            correction = z.shape[0] / (z.shape[0] - 1)
            if training:
                seen = (self.moving_variance - self.momentum * before) * correction
                self.moving_variance = self.momentum * before + seen
            return output

    monkeypatch.setitem(CHAPTER, "BatchNorm", Unbiased)
    assert CHAPTER["check_batch_norm"]().word == "refuted"


def test_our_layer_equals_torch_in_training():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(8, eps=1e-3, momentum=0.01)
    ours = CHAPTER["BatchNorm"](8)
    z = np.random.default_rng(0).normal(1, 2, (16, 8)).astype("float32")
    actual = ops.convert_to_numpy(ours(ops.convert_to_tensor(z), training=True))
    np.testing.assert_allclose(actual, theirs(torch.as_tensor(z)).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(ours.moving_mean), theirs.running_mean.numpy(), atol=1e-6)


def test_layer_and_group_normalization_are_the_same_formula_along_other_axes():
    assert [check.word for check in CHAPTER["check_along_other_axes"]()] == ["exact", "exact"]


@pytest.mark.parametrize("normalized", [False, True])
def test_our_gradients_equal_those_of_keras(normalized):
    assert CHAPTER["check_gradients"](normalized, depth=3).word == "exact"


def mean_loss(layers, x, y, normalized):
    logits = CHAPTER["forward"](layers, x, normalized)[0][-1]
    logits = logits - logits.max(axis=2, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return -np.take_along_axis(logs, y[..., None], axis=2).mean(axis=(1, 2))


def in_double_precision(layers):
    return [[one.astype("float64") for one in layer] for layer in layers]


@pytest.mark.parametrize("normalized", [False, True])
def test_gradients_of_several_runs_match_finite_differences(normalized):
    generator = np.random.default_rng(0)
    layers = in_double_precision(CHAPTER["initial_layers"](2, 1.0, [0, 1], width=4))
    x, y = generator.uniform(size=(2, 6, 64)), generator.integers(10, size=(2, 6))
    found = CHAPTER["gradients"](layers, x, y, normalized)
    for depth, part, index in [(0, 0, (3, 2)), (0, 2, (0, 1)), (1, 0, (1, 3)), (1, 1, (0, 2)), (2, 0, (2, 7))]:
        shifted = [[[one.copy() for one in layer] for layer in layers] for _ in range(2)]
        for side, move in zip(shifted, (1e-6, -1e-6)):
            side[depth][part][(slice(None), *index)] += move
        slope = np.subtract(*(mean_loss(side, x, y, normalized) for side in shifted)) / 2e-6
        np.testing.assert_allclose(found[depth][part][(slice(None), *index)], slope, atol=1e-7)


def test_a_twin_with_normalization_reproduces_the_plain_network():
    keras.utils.set_random_seed(1)
    plain = CHAPTER["network"](3)
    twin = CHAPTER["normalized_twin"](plain, depth=3, seed=1)
    x = nnopt.data.digits().test[0]
    assert CHAPTER["check_capacity"](plain, twin, x).word == "exact"
    twin.get_layer("normalization_2").gamma.assign(twin.get_layer("normalization_2").gamma * 1.001)
    assert CHAPTER["check_capacity"](plain, twin, x).word == "refuted"


def test_normalized_gradients_shrink_as_their_kernel_grows():
    layers = in_double_precision(CHAPTER["initial_layers"](3, 1.0, [0]))
    x, y = (part[None, :64] for part in nnopt.data.digits().train)
    grown = [layers[0], [100 * layers[1][0], *layers[1][1:]], *layers[2:]]
    before, after = (CHAPTER["gradients"](one, x, y, True, epsilon=1e-12)[1][0] for one in (layers, grown))
    np.testing.assert_allclose(100 * after, before, atol=1e-6)


def test_shifts_are_zero_without_an_update_and_known_for_a_known_one():
    layers = CHAPTER["initial_layers"](2, 1.0, [0, 1])
    x, y = (np.stack([part[:32]] * 2) for part in nnopt.data.digits().train)
    assert not CHAPTER["gradient_shift"](layers, layers, x, y, True).any()
    inputs = np.random.default_rng(0).normal(size=(2, 1000, 5))
    inputs = (inputs - inputs.mean(axis=1, keepdims=True)) / inputs.std(axis=1, keepdims=True)
    np.testing.assert_allclose(CHAPTER["moment_shift"](inputs, inputs), 0, atol=1e-12)
    np.testing.assert_allclose(CHAPTER["moment_shift"](inputs, 1.5 * inputs + 2), np.hypot(2, 0.5))


def test_a_step_is_that_of_keras_momentum():
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    weight = keras.Variable(np.ones(3, "float32"))
    layers, velocity = [[np.ones(3)]], [[np.zeros(3)]]
    for gradient in ([1.0, 2.0, 3.0], [0.0, 1.0, -1.0], [2.0, 0.0, 0.5]):
        layers, velocity = CHAPTER["step"](layers, velocity, [[np.array(gradient)]], 0.1)
        optimizer.apply([ops.convert_to_tensor(np.array(gradient, "float32"))], [weight])
    np.testing.assert_allclose(layers[0][0], ops.convert_to_numpy(weight), rtol=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_runs_trained_together_learn_and_do_not_touch_each_other(normalized):
    def last(seeds, rates):
        start = CHAPTER["initial_layers"](2, 1.0, seeds)
        *_, (_, layers, x, y) = CHAPTER["training"](start, np.array(rates)[:, None, None], normalized, seeds, 30)
        return layers, mean_loss(start, x, y, normalized), mean_loss(layers, x, y, normalized)

    together, before, after = last([0, 0, 1], [0.03, 0.001, 0.03])
    assert (after < before).all()
    assert after[0] < 0.8 * before[0]
    alone, *_ = last([1], [0.03])
    for one, other in zip(together, alone):
        np.testing.assert_allclose(one[0][2], other[0][0], rtol=1e-6, atol=1e-9)


def test_the_two_checks_catch_their_bugs_and_pass_honest_code():
    model = CHAPTER["network"](2, "batch")
    x = nnopt.data.digits().test[0][:40]
    CHAPTER["assert_independent"](lambda x: model(x, training=False), x)
    CHAPTER["assert_unchanged_by"](lambda: model(x, training=False), model)
    before = model.get_weights()
    with pytest.raises(AssertionError, match="companions"):
        CHAPTER["assert_independent"](lambda x: model(x, training=True), x)
    model.set_weights(before)
    with pytest.raises(AssertionError, match="moving_mean"):
        CHAPTER["assert_unchanged_by"](lambda: model(x, training=True), model)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights()))
