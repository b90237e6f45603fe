"""The three recurrent cells of chapter 03, against Keras' layers, PyTorch's, and each other run by run."""

import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt

CELLS = {"RNN": "simple", "GRU": "gru", "LSTM": "lstm"}
CHAPTER = from_scratch("03_recurrent_neural_networks")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("cell", CELLS.values())
def test_the_cells_are_those_of_keras(cell):
    assert CHAPTER["check_cell"](cell, seed=1).verdict == "exact"


def test_a_wrong_gate_is_noticed(monkeypatch):
    def forgetful(x, states, *weights):
        hidden, memory = CHAPTER["lstm_step"](x, states, *weights)
        return hidden, 0.99 * memory

    monkeypatch.setitem(CHAPTER["STEPS"], "lstm", forgetful)
    assert CHAPTER["check_cell"]("lstm").verdict == "refuted"


@pytest.mark.parametrize("cell", CELLS.values())
def test_the_cells_are_those_of_pytorch(cell):
    torch = pytest.importorskip("torch")
    kind = {"simple": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    layer, units = kind(3, 5, batch_first=True), 5
    # The order of the gates: PyTorch's LSTM has that of Keras; its GRU has reset before update.
    order = {"simple": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}[cell]

    def gates(array):  # (gates x units, ...) -> (..., gates x units)
        parts = np.split(array.detach().cpu().numpy(), len(order))
        return np.concatenate([parts[number] for number in order]).T

    kernel, recurrent = gates(layer.weight_ih_l0), gates(layer.weight_hh_l0)
    biases = [gates(layer.bias_ih_l0), gates(layer.bias_hh_l0)]
    bias = np.stack(biases) if cell == "gru" else sum(biases)
    x = RANDOM.normal(size=(2, 7, 3)).astype("float32")
    expected = layer(torch.from_numpy(x))[0].detach().cpu().numpy()
    weights = [ops.convert_to_tensor(np.ascontiguousarray(weight)) for weight in (kernel, recurrent, bias)]
    ours = ops.convert_to_numpy(CHAPTER["read"](cell, ops.convert_to_tensor(x), weights))
    assert ours.shape == (2, 7, units)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS.values())
def test_runs_side_by_side_are_the_runs_alone(cell):
    models = [nnopt.models.rnn((None, 3), [5], 2, cell=cell, seed=seed) for seed in range(3)]
    weights = CHAPTER["stacked"](models)
    x = RANDOM.normal(size=(3, 2, 3)).astype("float32")  # (runs, batch, features): one step
    states = [RANDOM.normal(size=(3, 2, 5)).astype("float32") for _ in range(2 if cell == "lstm" else 1)]
    step = CHAPTER["STEPS"][cell]
    together = step(*[ops.convert_to_tensor(x), [ops.convert_to_tensor(one) for one in states]],
                    *[ops.convert_to_tensor(weight) for weight in weights[:3]])  # fmt: skip
    for run, model in enumerate(models):
        own = CHAPTER["of_run"](weights, run)
        for ours, theirs in zip(own, model.get_weights()):
            np.testing.assert_array_equal(ours, theirs)
        alone = step(ops.convert_to_tensor(x[run]), [ops.convert_to_tensor(one[run]) for one in states],
                     *[ops.convert_to_tensor(weight) for weight in own[:3]])  # fmt: skip
        for one, other in zip(together, alone):
            np.testing.assert_allclose(ops.convert_to_numpy(one)[run], ops.convert_to_numpy(other), atol=1e-5)
