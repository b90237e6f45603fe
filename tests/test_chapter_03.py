"""The cells of chapter 03 against Keras' layers, run by run; its loop, its windows and gates."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

CELLS = {"RNN": "simple", "GRU": "gru", "LSTM": "lstm"}
CHAPTER = from_scratch("03_recurrent_neural_networks")
RANDOM = np.random.default_rng(0)
FEATURES, UNITS = 8, 5


def weights_of(cell, runs=1):
    """Stacked weights with no zeros in the biases, so that a gate mistaken for another shows."""
    models = [nnopt.models.rnn((None, FEATURES), [UNITS], 4, cell=cell, seed=seed) for seed in range(runs)]
    for seed, model in enumerate(models):
        generator = np.random.default_rng(seed)
        model.set_weights([generator.normal(0, 0.5, weight.shape) for weight in model.get_weights()])
    return models, CHAPTER["stacked"](models)


def padded_tokens():
    """One-hot sequences (batch, time, features) of lags 1 to 12, padded with rows of zeros."""
    tokens, _ = CHAPTER["recall"](3, 20, 12, 1)
    return np.eye(9, dtype="float32")[tokens][..., 1:]


@pytest.mark.parametrize("cell", CELLS.values())
def test_the_cells_are_those_of_keras(cell):
    assert CHAPTER["check_cell"](cell, seed=1).word == "exact"


def test_a_wrong_gate_is_noticed(monkeypatch):
    def forgetful(x, states, *weights):
        hidden, memory = CHAPTER["lstm_step"](x, states, *weights)
        return hidden, 0.99 * memory

    monkeypatch.setitem(CHAPTER["STEPS"], "lstm", forgetful)
    assert CHAPTER["check_cell"]("lstm").word == "refuted"


@pytest.mark.parametrize("cell", CELLS.values())
def test_runs_side_by_side_are_the_runs_alone(cell):
    models, weights = weights_of(cell, runs=3)
    x = RANDOM.normal(size=(3, 2, FEATURES)).astype("float32")  # (runs, batch, features): one step
    states = [RANDOM.normal(size=(3, 2, UNITS)).astype("float32") for _ in range(2 if cell == "lstm" else 1)]
    step = CHAPTER["STEPS"][cell]
    tensor = ops.convert_to_tensor
    together = step(tensor(x), [tensor(one) for one in states], *[tensor(weight) for weight in weights[:3]])
    for run, model in enumerate(models):
        own = CHAPTER["of_run"](weights, run)
        for ours, theirs in zip(own, model.get_weights()):
            np.testing.assert_array_equal(ours, theirs)
        alone = step(tensor(x[run]), [tensor(one[run]) for one in states], *[tensor(weight) for weight in own[:3]])
        for one, other in zip(together, alone):
            np.testing.assert_allclose(ops.convert_to_numpy(one)[run], ops.convert_to_numpy(other), atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("cell", CELLS.values())
def test_the_last_state_is_that_of_keras_with_a_mask_whatever_the_window(cell, window):
    models, weights = weights_of(cell, runs=2)
    x = padded_tokens()
    stacks = [ops.convert_to_tensor(weight) for weight in weights]
    ours = CHAPTER["last_state"](cell, np.stack([x, x]).transpose(2, 0, 1, 3), stacks, window)
    for run, model in enumerate(models):
        layer = CHAPTER["LAYERS"][cell](UNITS)
        masked = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.Masking(0.0), layer])
        masked.set_weights(model.get_weights()[:3])
        np.testing.assert_allclose(ops.convert_to_numpy(ours)[run], ops.convert_to_numpy(masked(x)), atol=1e-5)


@pytest.mark.parametrize("window", [1, 4, 10])
@pytest.mark.parametrize("cell", CELLS.values())
def test_truncated_backpropagation_reaches_exactly_the_steps_of_the_last_window(cell, window):
    _, weights = weights_of(cell)
    reach = CHAPTER["reached"](cell, weights, 24, window)
    for lag, steps in enumerate(reach, start=1):
        assert np.flatnonzero(steps).tolist() == list(range(lag // window * window, lag + 1)), lag


@pytest.mark.parametrize("cell", CELLS.values())
def test_without_a_window_the_gradient_reaches_every_real_step_and_no_padding(cell):
    _, weights = weights_of(cell)
    reach = CHAPTER["reached"](cell, weights, 12, None)
    np.testing.assert_array_equal(reach, np.arange(13) <= np.arange(1, 13)[:, None])


def test_the_gradient_is_the_slope():
    _, weights = weights_of("gru")
    x = np.eye(FEATURES, dtype="float32")[RANDOM.integers(0, FEATURES, (3, 1, 2))]
    direction = np.random.default_rng(0).normal(size=(1, 2, UNITS)).astype("float32")
    stacks = [ops.convert_to_tensor(weight) for weight in weights]

    def score(x):
        return float(ops.sum(direction * CHAPTER["last_state"]("gru", x.astype("float32"), stacks)))

    slopes = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        little = np.zeros_like(x)
        little[place] = 1e-2
        slopes[place] = (score(x + little) - score(x - little)) / 2e-2
    norms = CHAPTER["differentiate"]("gru", weights, x)
    np.testing.assert_allclose(norms, np.linalg.norm(slopes, axis=-1), rtol=0.02)


@pytest.mark.parametrize(("cell", "place"), [("lstm", 1), ("gru", 0)])
def test_the_gate_that_keeps_is_read_off_keras_states(cell, place):
    (model,), weights = weights_of(cell)
    kernel, recurrent, bias = model.get_weights()[:3]
    x = RANDOM.normal(size=(6, 1, 2, FEATURES)).astype("float32")  # (time, runs, batch, features)
    layer = CHAPTER["LAYERS"][cell](UNITS, return_sequences=True)
    layer.build((None, 6, FEATURES))
    layer.set_weights([kernel, recurrent, bias])
    states = ops.convert_to_numpy(layer(x[:, 0].swapaxes(0, 1)))  # (batch, time, units)
    before = np.concatenate([np.zeros((2, 1, UNITS)), states[:, :-1]], axis=1)
    own = slice(place * UNITS, (place + 1) * UNITS)
    bias = bias if cell == "lstm" else bias.sum(axis=0)
    expected = 1 / (1 + np.exp(-(x[:, 0].swapaxes(0, 1) @ kernel[:, own] + before @ recurrent[:, own] + bias[own])))
    gates = CHAPTER["kept"](cell, x, [ops.convert_to_tensor(weight) for weight in weights])
    np.testing.assert_allclose(gates[:, 0].swapaxes(0, 1), expected, atol=1e-5)


def test_the_task_asks_for_the_first_symbol_at_every_lag():
    tokens, symbols = CHAPTER["recall"](0, 4000, 10, 1)
    lags = (tokens > 0).sum(axis=1) - 1
    assert sorted(set(lags)) == list(range(1, 11))
    np.testing.assert_array_equal(tokens[:, 0], symbols + 1)
    assert set(np.unique(tokens[:, 1:])) == {0, 5, 6, 7, 8}
    np.testing.assert_allclose(np.bincount(symbols) / 4000, 0.25, atol=0.03)
    assert CHAPTER["recall"](0, 5, 10)[0].all()
