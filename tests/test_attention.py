import functools

import keras
import numpy as np
import pytest

from nnopt.callbacks import Resume
from nnopt.data import OrderedDataset
from nnopt.models import seq2seq, transformer

GENERATOR = np.random.default_rng(0)
SOURCE, TARGET = GENERATOR.integers(2, 11, (4, 6)), GENERATOR.integers(2, 13, (4, 5))
TARGET[:, 0] = 1
for _row, (_source, _target) in enumerate([(6, 5), (4, 2), (1, 4), (5, 1)]):
    SOURCE[_row, _source:] = 0
    TARGET[_row, _target:] = 0
REAL = TARGET != 0

BUILDERS = {
    "luong": lambda **more: seq2seq(11, 13, 6, embedding=5, **more),
    "luong gru": lambda **more: seq2seq(11, 13, 6, embedding=5, cell="gru", **more),
    "bahdanau": lambda **more: seq2seq(11, 13, 6, embedding=5, attention="bahdanau", **more),
    "bahdanau gru": lambda **more: seq2seq(11, 13, 6, embedding=5, cell="gru", attention="bahdanau", **more),
    "none": lambda **more: seq2seq(11, 13, 6, embedding=5, attention=None, **more),
    "transformer": lambda **more: transformer(11, 13, 8, heads=2, **more),
    "learned": lambda **more: transformer(11, 13, 8, depth=1, heads=2, hidden=6, positions="learned", **more),
}
# Where a case costs seconds, the plain runs take a few kinds and the thorough ones all.
USUALLY_THREE = [
    kind if kind in ("luong", "bahdanau", "transformer") else pytest.param(kind, marks=pytest.mark.thorough)
    for kind in BUILDERS
]
USUALLY_ONE = ["luong", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in BUILDERS if kind != "luong")]


class Made(dict):
    """What a function returns for each key, made when first asked for."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, key):
        self[key] = self.make(key)
        return self[key]


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


@functools.cache
def compiled(function):
    """On JAX, where compiling each operation by itself takes far longer, the function compiled as a whole."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def padded(batch, more):
    return np.pad(batch, ((0, 0), (0, more)))


@pytest.fixture(scope="module")
def models():
    """One model of each kind, with random numbers also where initial weights are all 0 or 1."""

    def make(kind):
        model = BUILDERS[kind](seed=0)
        for weight in model.weights:
            weight.assign(array(weight) + 0.3 * GENERATOR.normal(size=weight.shape))
        return model

    return Made(make)


@pytest.fixture(scope="module")
def logits(models):
    return Made(lambda kind: array(compiled(models[kind])([SOURCE, TARGET])))


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_padding_a_batch_further_changes_nothing_at_real_positions(models, logits, kind):
    longer = array(compiled(models[kind])([padded(SOURCE, 3), padded(TARGET, 4)]))[:, : TARGET.shape[1]]
    np.testing.assert_allclose(longer[REAL], logits[kind][REAL], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_a_sentence_alone_gets_the_logits_that_it_has_in_a_batch(models, logits, kind):
    for row in (1, 2):
        source, target = SOURCE[row][SOURCE[row] != 0][None], TARGET[row][TARGET[row] != 0][None]
        alone = array(compiled(models[kind])([source, target]))[0]
        np.testing.assert_allclose(alone, logits[kind][row, : target.size], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_logits_depend_on_the_source_and_on_the_target_so_far_only(models, logits, kind):
    later, other = TARGET.copy(), SOURCE.copy()
    later[:, 3:], other[:, 0] = (later[:, 3:] + 1) % 13, other[:, 0] % 10 + 1
    changed = array(compiled(models[kind])([SOURCE, later]))
    np.testing.assert_allclose(changed[:, :3], logits[kind][:, :3], atol=1e-6)
    assert np.abs(changed[:, 3:] - logits[kind][:, 3:]).max() > 1e-3
    assert np.abs(array(compiled(models[kind])([other, TARGET])) - logits[kind]).max(axis=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_decoding_step_by_step_gives_the_logits_of_teacher_forcing(models, logits, kind):
    state, found = compiled(models[kind].initial_state)(SOURCE), []
    for time in range(TARGET.shape[1]):
        one, state = compiled(models[kind].step)(TARGET[:, time], state)
        found.append(array(one))
    np.testing.assert_allclose(np.stack(found, axis=1)[REAL], logits[kind][REAL], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_rows_of_a_state_may_be_gathered(models, logits, kind):
    _, state = compiled(models[kind].step)(TARGET[:, 0], compiled(models[kind].initial_state)(SOURCE))
    rows = np.array([2, 0, 0, 2, 2])
    state = {name: keras.ops.take(value, rows, axis=0) for name, value in state.items()}
    gathered, _ = compiled(models[kind].step)(TARGET[rows, 1], state)
    np.testing.assert_allclose(array(gathered), logits[kind][rows, 1], atol=1e-5)


def test_a_step_beyond_the_room_of_the_state_gives_no_number(models):
    state = models["transformer"].initial_state(SOURCE, maximal_length=2)
    for room in (True, True, False):
        logits, state = models["transformer"].step(TARGET[:, 0], state)
        assert np.isfinite(array(logits)).all() if room else np.isnan(array(logits)).all()


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_attention_weights_sum_to_one_and_are_exactly_zero_on_padding(models, kind):
    if kind == "none":
        pytest.skip("no attention, no weights")
    weights = array(compiled(models[kind].attention_weights)([padded(SOURCE, 2), TARGET]))
    assert weights.shape == (4, 5, 8)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    empty = np.broadcast_to((padded(SOURCE, 2) == 0)[:, None], weights.shape)
    assert (weights[empty] == 0).all()
    assert (weights[~empty] > 0).all()
    np.testing.assert_allclose(
        array(compiled(models[kind].attention_weights)([SOURCE, TARGET])), weights[..., :6], atol=1e-5
    )


def test_there_are_no_weights_without_attention(models):
    with pytest.raises(ValueError, match=r"^`attention` must .*Received: attention=None"):
        models["none"].attention_weights([SOURCE, TARGET])


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_sequences_that_are_all_padding_give_numbers_and_train_nothing_else(kind):
    model = BUILDERS[kind](seed=0)
    source, target = np.concatenate([SOURCE, SOURCE[:2] * 0]), np.concatenate([TARGET, TARGET[:1], TARGET[:1] * 0])
    assert np.isfinite(array(compiled(model)([source, target]))).all()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=keras.backend.backend() == "tensorflow")
    assert np.isfinite(model.train_on_batch([source, target], target))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    if kind != "none":
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


def torch_recurrent(torch, cell, *weights):
    """PyTorch's recurrent layer with the weights of one or two directions of Keras' (a GRU's gates: r, z, n)."""
    width, units = weights[0].shape[0], weights[1].shape[0]
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    twin = kind(width, units, batch_first=True, bidirectional=len(weights) == 6)
    values = {}
    for end, direction in zip(("_l0", "_l0_reverse"), (weights[:3], weights[3:])):
        if direction:
            kernel, recurrent, bias = (array(weight) for weight in direction)
            inputs, hidden = bias if cell == "gru" else (bias, np.zeros_like(bias))
            matrices = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": inputs, "bias_hh": hidden}
            for name, value in matrices.items():
                if cell == "gru":
                    value = np.concatenate([np.split(value, 3)[i] for i in (1, 0, 2)])
                values[name + end] = torch.tensor(np.array(value))
    twin.load_state_dict(values)
    return twin


def torch_seq2seq(torch, model, cell, attention):
    """Returns logits and weights of `SOURCE`, `TARGET` as PyTorch's layers and the articles' equations give them."""

    def matrix(layer, i=0):
        return torch.tensor(array(layer.weights[i]))

    source, target = torch.from_numpy(SOURCE), torch.from_numpy(TARGET)
    lengths = (source != 0).sum(1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        matrix(model.source_embedding)[source], lengths, batch_first=True, enforce_sorted=False
    )
    memory, last = torch_recurrent(torch, cell, *model.encoder.weights)(packed)
    memory = torch.nn.utils.rnn.pad_packed_sequence(memory, batch_first=True)[0]
    last = last if cell == "lstm" else (last,)
    states = [
        torch.tanh(torch.cat([*state], dim=-1) @ matrix(bridge) + matrix(bridge, 1))[None]
        for state, bridge in zip(last, model.bridges)
    ]
    x, decoder = matrix(model.target_embedding)[target], torch_recurrent(torch, cell, *model.decoder.weights)
    outputs, all_weights = [], []
    for time in range(target.shape[1]):
        now, before = x[:, time : time + 1], states[0][0]

        def advance(inputs, states=tuple(states)):
            after = decoder(inputs, states if cell == "lstm" else states[0])[1]
            return list(after) if cell == "lstm" else [after]

        if attention == "luong":
            states = advance(now)
            scores = torch.einsum("bu,bsk,ku->bs", states[0][0], memory, matrix(model.keys))
        elif attention == "bahdanau":
            hidden = torch.tanh((before @ matrix(model.query))[:, None] + memory @ matrix(model.keys))
            scores = (hidden @ matrix(model.score))[..., 0]
        if attention is None:
            states = advance(now)
            read = states[0][0]
        else:
            weights = torch.softmax(scores.masked_fill(source == 0, -torch.inf), dim=-1)
            context = torch.einsum("bs,bsk->bk", weights, memory)
            if attention == "bahdanau":
                states = advance(torch.cat([now, context[:, None]], dim=-1))
            read = torch.cat([context, states[0][0]], dim=-1)
            all_weights.append(weights.numpy())
        combined = torch.tanh(read @ matrix(model.combine))
        outputs.append((combined @ matrix(model.logits) + matrix(model.logits, 1)).numpy())
    return np.stack(outputs, axis=1), np.stack(all_weights, axis=1) if all_weights else None


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in ("transformer", "learned")])
def test_seq2seq_computes_what_pytorchs_layers_and_the_articles_equations_do(models, logits, kind):
    torch = pytest.importorskip("torch")
    attention, cell = kind.split()[0], "gru" if "gru" in kind else "lstm"
    with torch.no_grad():
        expected, weights = torch_seq2seq(torch, models[kind], cell, None if attention == "none" else attention)
    np.testing.assert_allclose(logits[kind][REAL], expected[REAL], rtol=1e-4, atol=1e-5)
    if weights is not None:
        found = array(compiled(models[kind].attention_weights)([SOURCE, TARGET]))
        np.testing.assert_allclose(found[REAL], weights[REAL], rtol=1e-4, atol=1e-5)


def torch_attention(torch, layer, width):
    """The weights of a Keras MultiHeadAttention under the names of PyTorch's."""
    projections = (layer.query_dense, layer.key_dense, layer.value_dense)
    kernels = [array(dense.kernel).reshape(width, width).T for dense in projections]
    biases = [array(dense.bias).reshape(width) for dense in projections]
    values = {
        "in_proj_weight": np.concatenate(kernels),
        "in_proj_bias": np.concatenate(biases),
        "out_proj.weight": array(layer.output_dense.kernel).reshape(width, width).T,
        "out_proj.bias": array(layer.output_dense.bias),
    }
    return {name: torch.tensor(np.array(value)) for name, value in values.items()}


def torch_transformer(torch, model, width, depth, heads, hidden):
    """torch.nn.Transformer with the weights of ours, and the cross-attention's weights of its last block."""
    twin = torch.nn.Transformer(width, heads, depth, depth, hidden, 0.0, batch_first=True, norm_first=True)

    def load(module, layer):
        first, second = (torch.tensor(np.array(array(weight).T)) for weight in layer.weights)
        module.load_state_dict({"weight": first, "bias": second})

    for ours, theirs in [*zip(model.encoder, twin.encoder.layers), *zip(model.decoder, twin.decoder.layers)]:
        theirs.self_attn.load_state_dict(torch_attention(torch, ours.own, width))
        load(theirs.norm1, ours.own_normalization)
        if ours.reads_memory:
            theirs.multihead_attn.load_state_dict(torch_attention(torch, ours.cross, width))
            load(theirs.norm2, ours.cross_normalization)
        load(theirs.norm3 if ours.reads_memory else theirs.norm2, ours.normalization)
        load(theirs.linear1, ours.hidden)
        load(theirs.linear2, ours.output_layer)
    load(twin.encoder.norm, model.encoder_normalization)
    load(twin.decoder.norm, model.decoder_normalization)
    return twin.eval()


def sinusoids(length, width):
    """Section 3.5 of Vaswani et al. 2017, entry by entry."""
    table = np.zeros((length, width), "float32")
    for position in range(length):
        for i in range(width // 2):
            table[position, 2 * i] = np.sin(position / 10000 ** (2 * i / width))
            table[position, 2 * i + 1] = np.cos(position / 10000 ** (2 * i / width))
    return table


@pytest.mark.parametrize(("kind", "depth", "hidden"), [("transformer", 2, 32), ("learned", 1, 6)])
def test_transformer_computes_what_pytorchs_does(models, logits, kind, depth, hidden):
    torch = pytest.importorskip("torch")
    model = models[kind]
    twin = torch_transformer(torch, model, 8, depth, 2, hidden)
    sides = []
    for tokens, side in ((SOURCE, "source"), (TARGET, "target")):
        vectors = array(getattr(model, f"{side}_embedding").weights[0])[tokens] * np.float32(8**0.5)
        positions = sinusoids(tokens.shape[1], 8)
        if kind == "learned":
            positions = array(getattr(model, f"{side}_positions").weights[0])[: tokens.shape[1]]
        sides.append(torch.from_numpy(vectors + positions))
    padding = torch.from_numpy(SOURCE == 0)
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    seen = {}
    inner = twin.decoder.layers[-1].multihead_attn
    inner.register_forward_pre_hook(lambda _, arguments: seen.update(query=arguments[0], memory=arguments[1]))
    with torch.no_grad():
        states = twin(*sides, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding)
        weights = inner(seen["query"], seen["memory"], seen["memory"], key_padding_mask=padding)[1].numpy()
    expected = states.numpy() @ array(model.logits.kernel) + array(model.logits.bias)
    np.testing.assert_allclose(logits[kind][REAL], expected[REAL], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        array(compiled(model.attention_weights)([SOURCE, TARGET])), weights, rtol=1e-4, atol=1e-5
    )


def test_weights_of_an_earlier_layer_differ_and_layers_that_are_not_there_are_refused(models):
    first, last = (array(models["transformer"].attention_weights([SOURCE, TARGET], layer)) for layer in (0, 1))
    assert np.abs(first - last).max() > 1e-3
    with pytest.raises(ValueError, match=r"^`layer` must .*Received: layer=2"):
        models["transformer"].attention_weights([SOURCE, TARGET], layer=2)


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_the_seed_repeats_the_network_and_another_changes_it(kind):
    drawn = [BUILDERS[kind](seed=seed).get_weights() for seed in (5, 5, 6)]
    kernels = [[weight for weight in weights if weight.std() > 0] for weights in drawn]
    for first, again, other in zip(*kernels):
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other) or set(np.unique(first)) == {0, 1}  # the forget gate's bias
    random = [weight for weight in kernels[0] if set(np.unique(weight)) != {0, 1}]
    for i, first in enumerate(random):
        assert not any(first.size == other.size and np.allclose(first.ravel(), other.ravel()) for other in random[:i])


def test_attention_kernels_start_as_glorots_for_square_matrices():
    model = transformer(5, 5, 64, depth=1, heads=8, seed=0)
    limit = (6 / 128) ** 0.5
    attention = model.decoder[0].cross
    for dense in (attention.query_dense, attention.key_dense, attention.value_dense, attention.output_dense):
        kernel = array(dense.kernel)
        assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
        assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.03)


@pytest.mark.parametrize("kind", USUALLY_ONE)
def test_dropout_acts_in_training_only_and_follows_the_seed(kind):
    twins = [BUILDERS[kind](dropout=0.5, seed=0) for _ in range(2)]
    trained = [array(model([SOURCE, TARGET], training=True)) for model in twins]
    np.testing.assert_allclose(*trained, atol=1e-6)
    exact = array(compiled(twins[0])([SOURCE, TARGET]))
    assert not np.allclose(trained[0], exact)
    np.testing.assert_allclose(array(compiled(BUILDERS[kind](seed=0))([SOURCE, TARGET])), exact, atol=1e-6)


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_saved_and_loaded_model_computes_the_same(tmp_path, models, logits, kind):
    models[kind].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(models[kind])
    np.testing.assert_array_equal(array(compiled(loaded)([SOURCE, TARGET])), logits[kind])
    logits_of_step, _ = compiled(loaded.step)(TARGET[:, 0], compiled(loaded.initial_state)(SOURCE))
    np.testing.assert_allclose(array(logits_of_step), logits[kind][:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", USUALLY_THREE)
def test_no_two_weights_have_the_same_path(models, kind):
    """Keras stores an optimizer's slots by the paths of the weights: twins would overwrite each other."""
    paths = [weight.path for weight in models[kind].weights]
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


RECURRENT = {"source_vocabulary": 11, "target_vocabulary": 13, "units": 6, "embedding": 5}


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"source_vocabulary": 1}, ValueError, "source_vocabulary"),
        ({"source_vocabulary": 11.0}, TypeError, "source_vocabulary"),
        ({"target_vocabulary": 1}, ValueError, "target_vocabulary"),
        ({"units": 0}, ValueError, "units"),
        ({"units": [6]}, TypeError, "units"),
        ({"embedding": None}, TypeError, "embedding"),
        ({"cell": "simple"}, ValueError, "cell"),
        ({"attention": "general"}, ValueError, "attention"),
        ({"attention": False}, TypeError, "attention"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": "0"}, TypeError, "seed"),
    ],
)
def test_wrong_arguments_of_seq2seq_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        seq2seq(**{**RECURRENT, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"source_vocabulary": 1}, ValueError, "source_vocabulary"),
        ({"target_vocabulary": None}, TypeError, "target_vocabulary"),
        ({"width": 0}, ValueError, "width"),
        ({"width": 10}, ValueError, "width"),
        ({"width": 9, "heads": 3}, ValueError, "width"),
        ({"depth": 0}, ValueError, "depth"),
        ({"heads": 0}, ValueError, "heads"),
        ({"hidden": 0}, ValueError, "hidden"),
        ({"maximal_length": 0}, ValueError, "maximal_length"),
        ({"positions": None}, TypeError, "positions"),
        ({"positions": "rotary"}, ValueError, "positions"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"seed": 1.5}, TypeError, "seed"),
    ],
)
def test_wrong_arguments_of_the_transformer_are_named_with_their_rule_and_value(arguments, error, named):
    with pytest.raises(error, match=f"^`{named}` must .*Received: "):
        transformer(**{"source_vocabulary": 11, "target_vocabulary": 13, "width": 8, **arguments})


@pytest.mark.parametrize("kind", ["luong", "transformer"])
def test_wrong_inputs_are_named(models, kind):
    with pytest.raises(ValueError, match=r"`inputs` must be \[source, target\].*Received: "):
        models[kind](SOURCE)
    with pytest.raises(ValueError, match=r"^`source` must have the shape .*Received: "):
        models[kind].initial_state(SOURCE[0])
    with pytest.raises(ValueError, match=r"^`tokens` must have the shape .*Received: "):
        models[kind].step(TARGET, compiled(models[kind].initial_state)(SOURCE))


def test_sequences_longer_than_the_learned_positions_are_refused():
    model = transformer(11, 13, 8, positions="learned", maximal_length=5, seed=0)
    with pytest.raises(ValueError, match=r"`source` must have at most maximal_length=5 tokens.*Received: "):
        model([SOURCE, TARGET])
    with pytest.raises(ValueError, match=r"^`maximal_length` must .*Received: "):
        model.initial_state(SOURCE[:, :5], maximal_length=6)
