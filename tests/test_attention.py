import keras
import numpy as np
import pytest
import torch_models
from sequences import (
    BUILDERS,
    LOGITS,
    MODELS,
    REAL,
    SOURCE,
    TARGET,
    USUALLY_FOUR,
    USUALLY_ONE,
    array,
    compiled,
    padded,
)  # fmt: skip

from nnopt.callbacks import Resume
from nnopt.data import OrderedDataset
from nnopt.models import seq2seq, transformer

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_padding_a_batch_further_changes_nothing_at_real_positions(kind):
    longer = array(compiled(MODELS[kind])([padded(SOURCE, 3), padded(TARGET, 4)]))[:, : TARGET.shape[1]]
    np.testing.assert_allclose(longer[REAL], LOGITS[kind][REAL], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_a_sentence_alone_gets_the_logits_that_it_has_in_a_batch(kind):
    for row in (1, 2):
        source, target = SOURCE[row][SOURCE[row] != 0][None], TARGET[row][TARGET[row] != 0][None]
        alone = array(compiled(MODELS[kind])([source, target]))[0]
        np.testing.assert_allclose(alone, LOGITS[kind][row, : target.size], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_logits_depend_on_the_source_and_on_the_target_so_far_only(kind):
    later, other = TARGET.copy(), SOURCE.copy()
    later[:, 3:], other[:, 0] = (later[:, 3:] + 1) % 13, other[:, 0] % 10 + 1
    changed = array(compiled(MODELS[kind])([SOURCE, later]))
    np.testing.assert_allclose(changed[:, :3], LOGITS[kind][:, :3], atol=1e-6)
    assert np.abs(changed[:, 3:] - LOGITS[kind][:, 3:]).max() > 1e-3
    assert np.abs(array(compiled(MODELS[kind])([other, TARGET])) - LOGITS[kind]).max(axis=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_decoding_step_by_step_gives_the_logits_of_teacher_forcing(kind):
    state, found = compiled(MODELS[kind].initial_state)(SOURCE), []
    for time in range(TARGET.shape[1]):
        one, state = compiled(MODELS[kind].step)(TARGET[:, time], state)
        found.append(array(one))
    np.testing.assert_allclose(np.stack(found, axis=1)[REAL], LOGITS[kind][REAL], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_rows_of_a_state_may_be_gathered(kind):
    _, state = compiled(MODELS[kind].step)(TARGET[:, 0], compiled(MODELS[kind].initial_state)(SOURCE))
    rows = np.array([2, 0, 0, 2, 2])
    state = {name: keras.ops.take(value, rows, axis=0) for name, value in state.items()}
    gathered, _ = compiled(MODELS[kind].step)(TARGET[rows, 1], state)
    np.testing.assert_allclose(array(gathered), LOGITS[kind][rows, 1], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_attention_weights_sum_to_one_and_are_exactly_zero_on_padding(kind):
    if kind.startswith("none"):
        pytest.skip("no attention, no weights")
    weights = array(compiled(MODELS[kind].attention_weights)([padded(SOURCE, 2), TARGET]))
    assert weights.shape == (4, 5, 8)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    empty = np.broadcast_to((padded(SOURCE, 2) == 0)[:, None], weights.shape)
    assert (weights[empty] == 0).all()
    assert (weights[~empty] > 0).all()
    np.testing.assert_allclose(
        array(compiled(MODELS[kind].attention_weights)([SOURCE, TARGET])), weights[..., :6], atol=1e-5
    )


def test_there_are_no_weights_without_attention():
    with pytest.raises(ValueError, match=r"^`attention` must .*Received: attention=None"):
        MODELS["none"].attention_weights([SOURCE, TARGET])


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_sequences_that_are_all_padding_give_numbers_and_train_nothing_else(kind):
    model = BUILDERS[kind](seed=0)
    source, target = np.concatenate([SOURCE, SOURCE[:2] * 0]), np.concatenate([TARGET, TARGET[:1], TARGET[:1] * 0])
    assert np.isfinite(array(compiled(model)([source, target]))).all()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=keras.backend.backend() == "tensorflow")
    assert np.isfinite(model.train_on_batch([source, target], target))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    if not kind.startswith("none"):
        assert (array(compiled(model.attention_weights)([source, target]))[4:] == 0).all()


@pytest.mark.parametrize("kind", USUALLY_ONE)
def test_padding_counts_neither_in_the_loss_nor_in_the_metrics_nor_in_the_training(kind):
    following = np.where(REAL, GENERATOR.integers(2, 13, TARGET.shape), 0)
    results = []
    for more in (0, 3):
        model = BUILDERS[kind](seed=0)
        logits = array(compiled(model)([SOURCE, TARGET]))[REAL]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        inputs, outputs = [padded(SOURCE, more), padded(TARGET, more)], padded(following, more)
        values = model.fit(inputs, outputs, verbose=0).history
        probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        own = following[REAL]
        assert values["loss"][0] == pytest.approx(-np.log(probabilities[range(own.size), own]).mean(), rel=1e-4)
        assert values["accuracy"][0] == pytest.approx((logits.argmax(axis=-1) == own).mean(), abs=1e-6)
        results.append(model.get_weights())
    for first, second in zip(*results):
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_models_compute_what_pytorchs_layers_and_the_articles_equations_do(kind):
    expected = torch_models.recorded()
    np.testing.assert_allclose(LOGITS[kind][REAL], expected[f"{kind} logits"], rtol=1e-4, atol=1e-5)
    if not kind.startswith("none"):
        weights = array(compiled(MODELS[kind].attention_weights)([SOURCE, TARGET]))
        np.testing.assert_allclose(weights[REAL], expected[f"{kind} attention"], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="no Keras is in it: once is enough")
def test_pytorch_still_computes_what_is_recorded_of_it():
    recorded, anew = torch_models.recorded(), torch_models.computed()
    assert recorded.keys() == anew.keys()
    for name, values in anew.items():
        np.testing.assert_allclose(values, recorded[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_the_seed_repeats_the_network_and_another_changes_it(kind):
    drawn = [BUILDERS[kind](seed=seed).get_weights() for seed in (5, 5, 6)]
    kernels = [[weight for weight in weights if weight.std() > 0] for weights in drawn]
    for first, again, other in zip(*kernels):
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other) or set(np.unique(first)) == {0, 1}  # the forget gate's bias
    random = [weight for weight in kernels[0] if set(np.unique(weight)) != {0, 1}]
    for i, first in enumerate(random):
        assert not any(first.size == other.size and np.allclose(first.ravel(), other.ravel()) for other in random[:i])


@pytest.mark.parametrize("kind", USUALLY_ONE)
def test_dropout_acts_in_training_only_and_follows_the_seed(kind):
    twins = [BUILDERS[kind](dropout=0.5, seed=0) for _ in range(2)]
    trained = [array(model([SOURCE, TARGET], training=True)) for model in twins]
    np.testing.assert_allclose(*trained, atol=1e-6)
    exact = array(compiled(twins[0])([SOURCE, TARGET]))
    assert not np.allclose(trained[0], exact)
    np.testing.assert_allclose(array(compiled(BUILDERS[kind](seed=0))([SOURCE, TARGET])), exact, atol=1e-6)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_saved_and_loaded_model_computes_the_same(tmp_path, kind):
    MODELS[kind].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(MODELS[kind])
    np.testing.assert_array_equal(array(compiled(loaded)([SOURCE, TARGET])), LOGITS[kind])
    logits_of_step, _ = compiled(loaded.step)(TARGET[:, 0], compiled(loaded.initial_state)(SOURCE))
    np.testing.assert_allclose(array(logits_of_step), LOGITS[kind][:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_FOUR)
def test_no_two_weights_have_the_same_path(kind):
    """Keras stores an optimizer's slots by the paths of the weights: twins would overwrite each other."""
    paths = [weight.path for weight in MODELS[kind].weights]
    assert len(set(paths)) == len(paths)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["luong", "transformer"])
def test_resumed_training_equals_uninterrupted_training(tmp_path, kind):
    def train(epochs, directory):
        keras.utils.set_random_seed(0)
        model = BUILDERS[kind](dropout=0.1, seed=0)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = OrderedDataset((SOURCE, TARGET), TARGET, batch_size=2, seed=0)
        model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=[Resume(directory, data)])
        return model.get_weights()

    train(1, tmp_path / "stopped")
    for whole, resumed in zip(train(2, tmp_path / "whole"), train(2, tmp_path / "stopped")):
        np.testing.assert_array_equal(whole, resumed)


@pytest.mark.parametrize("kind", USUALLY_ONE)
def test_logits_are_float32_under_a_mixed_policy_which_is_saved_with_the_model(tmp_path, kind):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = BUILDERS[kind](seed=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights} == {"float32"}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.compute_dtype == "float16"
    for one in (model, loaded):
        assert {layer.compute_dtype for layer in one._flatten_layers() if layer.weights} == {"float16", "float32"}
        logits = compiled(one)([SOURCE, TARGET])
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        np.testing.assert_allclose(array(logits), array(compiled(BUILDERS[kind](seed=0))([SOURCE, TARGET])), atol=2e-2)
    step, _ = compiled(model.step)(TARGET[:, 0], compiled(model.initial_state)(SOURCE))
    np.testing.assert_allclose(array(step), array(logits)[:, 0], atol=1e-2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("luong", lambda: seq2seq(8, 8, 32, embedding=16, seed=0)),
        ("bahdanau", lambda: seq2seq(8, 8, 32, embedding=16, attention="bahdanau", seed=0)),
        ("none", lambda: seq2seq(8, 8, 48, embedding=16, attention=None, cell="gru", seed=0)),
        ("transformer", lambda: transformer(8, 8, 32, seed=0)),
    ],
)
def test_learns_to_reverse_a_sequence_of_any_length(kind, build):
    generator = np.random.default_rng(0)
    source, target = np.zeros((512, 5), int), np.zeros((512, 7), int)
    for row in range(512):
        length = generator.integers(2, 6)
        tokens = generator.integers(3, 8, length)
        source[row, :length] = tokens
        target[row, : length + 2] = [1, *tokens[::-1], 2]
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    keras.utils.set_random_seed(0)
    history = model.fit([source, target[:, :-1]], target[:, 1:], epochs=25, batch_size=64, verbose=0).history
    assert max(history["accuracy"]) > 0.95


# Several layers, and one draw of dropout for a sentence


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("attention", ["luong", "bahdanau", None])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_number_of_parameters_is_that_of_the_formula(cell, attention, layers):
    source, target, units, embedding = 11, 13, 6, 5
    gates, biases, states = {"lstm": (4, 1, 2), "gru": (3, 2, 1)}[cell]

    def recurrent(inputs):
        return gates * units * (inputs + units + biases)

    memory = 2 * units
    context = 0 if attention is None else memory
    reads = embedding + (context if attention == "bahdanau" else 0)
    expected = (source + target) * embedding
    expected += 2 * recurrent(embedding) + (layers - 1) * 2 * recurrent(memory)
    expected += layers * states * units * (memory + 1)
    expected += recurrent(reads) + (layers - 1) * recurrent(units)
    expected += {"luong": units * memory, "bahdanau": units * (memory + units + 1), None: 0}[attention]
    expected += units * (units + context) + target * (units + 1)
    model = seq2seq(source, target, units, embedding=embedding, cell=cell, attention=attention, layers=layers)
    assert model.count_params() == expected


def test_a_state_has_what_each_layer_remembers():
    kinds = {"luong gru deep": {"h", "h_1"}, "none deep": {"h", "c", "h_1", "c_1"}}
    for kind, names in kinds.items():
        state = compiled(MODELS[kind].initial_state)(SOURCE)
        assert set(state) - {"memory", "keys", "mask"} == names
        assert {tuple(state[name].shape) for name in names} == {(4, 6)}


def dropouts(model):
    inputs = [model.source_dropout, model.target_dropout, *model.encoder_dropouts[1:], *model.upper_dropouts]
    return [*inputs, model.output_dropout]


def test_there_is_dropout_before_the_first_layer_and_between_two_and_before_the_logits():
    model = seq2seq(11, 13, 6, embedding=5, layers=3, dropout=0.5)
    names = ["source", "target", "encoder_1", "encoder_2", "decoder_1", "decoder_2", "output"]
    assert [layer.name for layer in dropouts(model)] == [f"{name}_dropout" for name in names]
    assert {layer.rate for layer in dropouts(model)} == {0.5}


@pytest.mark.parametrize("variational", [False, True])
def test_variational_dropout_has_one_draw_for_all_positions_of_a_sentence(variational):
    model = seq2seq(11, 13, 6, embedding=5, layers=2, dropout=0.5, variational=variational, seed=0)
    for layer in dropouts(model):
        drawn = array(layer(np.ones((3, 7, 20), "float32"), training=True))
        assert set(np.unique(drawn)) == {0.0, 2.0}
        assert (drawn == drawn[:, :1]).all() == variational
        assert not np.array_equal(drawn[0], drawn[1])  # another for each sentence


def test_variational_dropout_acts_in_training_only_and_is_saved(tmp_path):
    model, exact = (seq2seq(11, 13, 6, embedding=5, layers=2, dropout=d, variational=True, seed=0) for d in (0.5, 0.0))
    expected = array(compiled(exact)([SOURCE, TARGET]))
    assert not np.allclose(array(model([SOURCE, TARGET], training=True)), expected, atol=1e-4)
    np.testing.assert_allclose(array(compiled(model)([SOURCE, TARGET])), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    drawn = array(loaded.source_dropout(np.ones((3, 7, 20), "float32"), training=True))
    assert (drawn == drawn[:, :1]).all()
    assert (drawn == 0).any()


RECURRENT = {"source_vocabulary": 11, "target_vocabulary": 13, "units": 6, "embedding": 5}


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"source_vocabulary": 1}, ValueError, "source_vocabulary"),
        ({"target_vocabulary": 1}, ValueError, "target_vocabulary"),
        ({"units": 0}, ValueError, "units"),
        ({"embedding": None}, TypeError, "embedding"),
        ({"cell": "simple"}, ValueError, "cell"),
        ({"attention": "general"}, ValueError, "attention"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"layers": 0}, ValueError, "layers"),
        ({"layers": 1.5}, TypeError, "layers"),
        ({"variational": 1}, TypeError, "variational"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_arguments_of_seq2seq_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        seq2seq(**{**RECURRENT, **arguments})


@pytest.mark.parametrize("kind", ["luong", "transformer"])
def test_wrong_inputs_are_named(kind):
    with pytest.raises(ValueError, match=r"`inputs` must be \[source, target\].*Received: "):
        MODELS[kind](SOURCE)
    with pytest.raises(ValueError, match=r"^`source` must have the shape .*Received: "):
        MODELS[kind].initial_state(SOURCE[0])
    with pytest.raises(ValueError, match=r"^`tokens` must have the shape .*Received: "):
        MODELS[kind].step(TARGET, compiled(MODELS[kind].initial_state)(SOURCE))
