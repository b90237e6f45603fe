import keras
import numpy as np
import pytest
import torch_models

from nnopt.models import rnn

CELLS = ["simple", "lstm", "gru"]
# Where a case costs seconds, the plain runs take one cell and the thorough ones all.
USUALLY_LSTM = [
    pytest.param("simple", marks=pytest.mark.thorough),
    "lstm",
    pytest.param("gru", marks=pytest.mark.thorough),
]
GENERATOR = np.random.default_rng(0)
SEQUENCES = GENERATOR.normal(size=(4, 6, 3)).astype("float32")
LENGTHS = [6, 4, 1, 5]
TOKENS = GENERATOR.integers(1, 11, (4, 6)).astype("int32")
for _row, _length in enumerate(LENGTHS):
    TOKENS[_row, _length:] = 0


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def padded(batch, more, value=0):
    widths = [(0, 0), (0, more), (0, 0)][: batch.ndim]
    return np.pad(batch, widths, constant_values=value)


@pytest.mark.parametrize("cell", CELLS)
def test_network_computes_what_pytorchs_layer_does(cell):
    sequences, expected = torch_models.SEQUENCES, torch_models.recorded()[f"rnn {cell} logits"]
    model = torch_models.small_rnn(cell, return_sequences=True)
    np.testing.assert_allclose(model.predict(sequences, verbose=0), expected, rtol=1e-4, atol=1e-5)
    model = torch_models.small_rnn(cell, return_sequences=False)
    np.testing.assert_allclose(model.predict(sequences, verbose=0), expected[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("return_sequences", [False, True])
def test_padding_a_batch_of_tokens_further_changes_nothing(cell, return_sequences):
    model = rnn((None,), [8, 6], 4, cell=cell, vocabulary=11, embedding=5, return_sequences=return_sequences, seed=0)
    output = model.predict(TOKENS, verbose=0)
    longer = model.predict(padded(TOKENS, 5), verbose=0)
    for row, length in enumerate(LENGTHS):
        alone = model.predict(TOKENS[row : row + 1, :length], verbose=0)[0]
        ends = [part[row, :length] if return_sequences else part[row] for part in (output, longer)]
        np.testing.assert_allclose(ends[0], alone, atol=1e-5)
        np.testing.assert_allclose(ends[1], alone, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_a_batch_of_real_values_further_changes_nothing(cell):
    sequences = SEQUENCES.copy()
    sequences[1, 4:] = -9
    model = rnn((None, 3), [8, 6], 4, cell=cell, mask_value=-9, seed=0)
    output = model.predict(sequences, verbose=0)
    np.testing.assert_allclose(model.predict(padded(sequences, 5, -9), verbose=0), output, atol=1e-5)
    np.testing.assert_allclose(model.predict(sequences[1:2, :4], verbose=0)[0], output[1], atol=1e-5)


@pytest.mark.parametrize("cell", USUALLY_LSTM)
def test_without_a_mask_value_every_step_counts(cell):
    model = rnn((None, 3), [8], 4, cell=cell, seed=0)
    model.weights[-1].assign(np.ones(4))
    for weight in model.get_layer("recurrent_1").weights:
        weight.assign(array(weight) + 0.2)
    longer = model.predict(padded(SEQUENCES, 3), verbose=0)
    assert np.abs(longer - model.predict(SEQUENCES, verbose=0)).max() > 1e-3


@pytest.mark.parametrize("cell", USUALLY_LSTM)
def test_padding_counts_neither_in_the_loss_nor_in_the_training(cell):
    labels = GENERATOR.integers(0, 4, (4, 6))
    weights = []
    for more in (0, 3):
        model = rnn((None,), [8], 4, cell=cell, vocabulary=11, embedding=5, return_sequences=True, seed=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.train_on_batch(padded(TOKENS, more), padded(labels, more, 3))
        weights.append(model.get_weights())
    for first, second in zip(*weights):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_the_forget_gate_starts_open():
    bias = array(rnn((None, 3), [8], 2, cell="lstm").get_layer("recurrent_1").weights[2])
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 8))


def test_dropout_acts_in_training_only_and_follows_the_seed():
    models = [rnn((None, 3), [16], 4, dropout=0.5, seed=seed) for seed in (0, 0)]
    trained = [array(model(SEQUENCES, training=True)) for model in models]
    np.testing.assert_array_equal(*trained)
    assert not np.allclose(trained[0], models[0].predict(SEQUENCES, verbose=0))


@pytest.mark.parametrize("cell", USUALLY_LSTM)
def test_the_seed_repeats_the_network_and_another_changes_it(cell):
    drawn = [
        rnn((None,), [8, 8], 4, cell=cell, vocabulary=5, embedding=8, seed=seed).get_weights() for seed in (5, 5, 6)
    ]
    for first, again in zip(drawn[0], drawn[1]):
        np.testing.assert_array_equal(first, again)
    assert not np.allclose(drawn[0][0], drawn[2][0])
    assert not np.allclose(drawn[0][1], drawn[0][4])  # kernels of two layers of one shape
    assert not np.allclose(drawn[0][2], drawn[0][5])


@pytest.mark.parametrize("cell", USUALLY_LSTM)
@pytest.mark.parametrize("tokens", [False, True])
def test_saved_and_loaded_model_predicts_the_same(tmp_path, cell, tokens):
    settings = {"vocabulary": 11, "embedding": 5, "return_sequences": True} if tokens else {"mask_value": 0.0}
    model = rnn((None,) if tokens else (None, 3), [8, 6], 4, cell=cell, dropout=0.1, seed=0, **settings)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = TOKENS if tokens else SEQUENCES
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("cell", USUALLY_LSTM)
def test_logits_are_float32_under_a_mixed_policy(cell):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = rnn((None,), [8], 4, cell=cell, vocabulary=11, embedding=5, seed=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights} == {"float32"}
    assert model.get_layer("recurrent_1").compute_dtype == "float16"
    assert keras.backend.standardize_dtype(model(TOKENS).dtype) == "float32"
    exact = rnn((None,), [8], 4, cell=cell, vocabulary=11, embedding=5, seed=0)
    np.testing.assert_allclose(array(model(TOKENS)), array(exact(TOKENS)), atol=5e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("cell", CELLS)
def test_learns_which_symbol_came_first(cell):
    x = GENERATOR.integers(1, 5, (256, 4))
    model = rnn((None,), [16], 5, cell=cell, vocabulary=5, embedding=8, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, metrics=["accuracy"])
    keras.utils.set_random_seed(0)
    model.fit(x, x[:, 0], epochs=15, batch_size=64, verbose=0)
    assert model.evaluate(x, x[:, 0], verbose=0)[1] > 0.9


TOKEN_ARGUMENTS = {"input_shape": (None,), "vocabulary": 11, "embedding": 5}


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"input_shape": 3}, TypeError, "input_shape"),
        ({**TOKEN_ARGUMENTS, "input_shape": (None, 3)}, ValueError, "input_shape"),
        ({**TOKEN_ARGUMENTS, "embedding": None}, ValueError, "embedding"),
        ({**TOKEN_ARGUMENTS, "vocabulary": None}, ValueError, "vocabulary"),
        ({**TOKEN_ARGUMENTS, "mask_value": 0.0}, ValueError, "mask_value"),
        ({"units": 64}, TypeError, "units"),
        ({"classes": 0}, ValueError, "classes"),
        ({"cell": "rnn"}, ValueError, "cell"),
        ({"return_sequences": 1}, TypeError, "return_sequences"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_arguments_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        rnn(**{"input_shape": (None, 3), "units": [8], "classes": 2, **arguments})
