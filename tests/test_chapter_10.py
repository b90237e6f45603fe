"""The scores, heads, positions, decoding and costs of chapter 10, against Keras, PyTorch and counting by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt

CHAPTER = from_scratch("10_attention")
RANDOM = np.random.default_rng(0)


def slow_on_jax(test):
    """Without a compiled function around it, JAX compiles every operation on its own."""
    return pytest.mark.thorough(test) if keras.backend.backend() == "jax" else test


def normal(*shape):
    return ops.convert_to_tensor(RANDOM.normal(size=shape).astype("float32"))


def seen(lengths, time):
    return ops.convert_to_tensor(np.arange(time) < np.array(lengths)[:, None])


def test_the_three_scores_give_the_context_and_the_shares_of_keras():
    mask = seen([5, 3, 1], 5)
    assert CHAPTER["check_scores"](normal(3, 4, 8), normal(3, 5, 8), normal(3, 5, 8), mask) < 1e-5


@pytest.mark.parametrize("heads", [2, *(pytest.param(heads, marks=pytest.mark.thorough) for heads in (1, 4))])
def test_multi_head_attention_is_that_of_keras_with_padding_and_causal_masks(heads):
    assert CHAPTER["check_multi_head"](normal(3, 4, 8), normal(3, 5, 8), seen([5, 3, 1], 5), heads) < 1e-5


def test_scaled_attention_is_that_of_torch():
    torch = pytest.importorskip("torch")
    query, key, value = (RANDOM.normal(size=(2, time, 8)).astype("float32") for time in (3, 6, 6))
    mask = np.arange(6) < np.array([[[6]], [[2]]])
    ours, _ = CHAPTER["attend"](
        CHAPTER["scaled_dot_product"](*map(ops.convert_to_tensor, (query, key))),
        ops.convert_to_tensor(value),
        ops.convert_to_tensor(mask),
    )
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (query, key, value)), attn_mask=torch.from_numpy(np.broadcast_to(mask, (2, 3, 6)).copy())
    )
    np.testing.assert_allclose(ops.convert_to_numpy(ours), theirs.numpy(), atol=1e-5)


def test_shares_sum_to_one_and_are_zero_where_nobody_may_look():
    _, shares = CHAPTER["attend"](normal(2, 3, 4), normal(2, 4, 5), CHAPTER["causal"](4)[:, :3])
    shares = ops.convert_to_numpy(shares)
    np.testing.assert_allclose(shares.sum(axis=-1), 1, atol=1e-6)
    assert (shares[:, np.triu_indices(4, 1)[0][:3], np.triu_indices(4, 1)[1][:3]] == 0).all()


def test_the_code_of_positions_tells_their_distance_alone():
    code = CHAPTER["positions"](30, 16)
    assert code.shape == (30, 16)
    np.testing.assert_allclose(code[7, :2], [np.sin(7), np.cos(7)])
    np.testing.assert_allclose(code[7, 6:8], [np.sin(7 * 10000 ** (-6 / 16)), np.cos(7 * 10000 ** (-6 / 16))])
    products = code @ code.T
    for apart in (1, 5, 20):
        np.testing.assert_allclose(np.diagonal(products, apart), products[0, apart], atol=1e-9)


def test_the_loss_is_the_mean_over_words_and_ignores_padding():
    y = np.array([[4, 2, 0, 0], [3, 3, 3, 2]], "int32")
    logits = RANDOM.normal(size=(2, 4, 6)).astype("float32")
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    words = [-np.log(chances[i, j, y[i, j]]) for i in range(2) for j in range(4) if y[i, j]]
    ours = CHAPTER["word_loss"](ops.convert_to_tensor(y), ops.convert_to_tensor(logits))
    assert float(ours) == pytest.approx(np.mean(words), rel=1e-5)


class Counting:
    """Writes 10, 11, 12, ... and the end token, 2, after as many words as the source's first token says."""

    def initial_state(self, source):
        return {"left": source[:, 0], "word": ops.zeros_like(source[:, 0])}

    def step(self, tokens, state):
        last = ops.convert_to_numpy(tokens)
        assert (last[ops.convert_to_numpy(state["word"]) == 0] == 1).all()  # each sentence begins with the start token
        token = ops.where(state["left"] > 0, 10 + state["word"], 2)
        return ops.one_hot(token, 20), {"left": state["left"] - 1, "word": state["word"] + 1}


def test_greedy_decoding_ends_each_sentence_on_its_own_and_pads_behind_it():
    rows = CHAPTER["greedy"](Counting(), np.array([[3], [0], [1]], "int32"), most=8)
    np.testing.assert_array_equal(rows, [[10, 11, 12, 2], [2, 0, 0, 0], [10, 2, 0, 0]])
    assert CHAPTER["greedy"](Counting(), np.array([[9]], "int32"), most=5).shape == (1, 5)


@slow_on_jax
@pytest.mark.parametrize("attention", ["luong", pytest.param(None, marks=pytest.mark.thorough)])
def test_greedy_tokens_are_the_likeliest_of_the_models_logits(attention):
    model = nnopt.models.seq2seq(9, 12, 8, embedding=8, cell="gru", attention=attention, seed=1)
    bias = model.logits.bias
    bias.assign(np.array([-99, -99, -1] + [0] * 9, "float32"))  # no padding, no start token
    source = np.array([[3, 4, 5], [6, 7, 0]], "int32")
    rows = CHAPTER["greedy"](model, source, most=5)
    target = np.concatenate([np.ones((2, 1), "int32"), rows[:, :-1]], axis=1)
    likeliest = ops.convert_to_numpy(model([source, target])).argmax(axis=-1)
    np.testing.assert_array_equal(rows[rows > 0], likeliest[rows > 0])


@slow_on_jax
def test_costs_count_every_matrix_of_the_models():
    vocabulary = 11
    network = nnopt.models.seq2seq(7, vocabulary, 16, embedding=16, cell="gru", attention="bahdanau", seed=0)
    assert CHAPTER["matrices"](network) == CHAPTER["recurrent_cost"](16, vocabulary, 1, 1) - 2 * 16
    network = nnopt.models.transformer(7, vocabulary, 16, depth=1, heads=2, hidden=24, seed=0)
    assert CHAPTER["matrices"](network) == CHAPTER["transformer_cost"](16, 24, vocabulary, 1, 1) - 6 * 16


def test_costs_grow_with_words_as_counted_by_hand():
    cost = CHAPTER["transformer_cost"]
    keys_and_values, attention = 2 * 8 * 8, 2 * 8 * (4 * 4 - 3 * 3 + (4 - 3) * 5)
    assert cost(8, 16, 10, 4, 5) - cost(8, 16, 10, 3, 5) == 4 * 64 + 2 * 8 * 16 + keys_and_values + attention
    cost = CHAPTER["recurrent_cost"]
    assert cost(8, 10, 4, 5) - cost(8, 10, 3, 5) == 2 * 3 * 8 * (8 + 8) + 2 * 8 * 8 + 3 * 8 * 5


def test_the_diagonal_goes_from_the_first_word_to_the_last():
    np.testing.assert_array_equal(CHAPTER["diagonal"](3, 5), [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(CHAPTER["diagonal"](4, 1), [0])


def test_five_and_forty_crosses_and_the_words_around_it_do_not():
    links = [(0, 0), (1, 3), (2, 1), (3, 4)]  # the forty five eggs; die fünf und vierzig Eier
    assert CHAPTER["crossing"](links) == [(1, 3), (2, 1)]
    assert CHAPTER["aligned"](np.array([0, 2, 9, 0, 3]), links) == [True, True, False, True]


def test_a_word_with_two_sources_is_aligned_by_either():
    links = [(0, 0), (1, 0)]
    assert CHAPTER["aligned"](np.array([1]), links) == [True]
    assert CHAPTER["aligned"](np.array([2]), links) == [False]


def test_self_attention_without_positions_only_moves_with_its_words():
    layer = keras.layers.MultiHeadAttention(2, 4)
    x, order = normal(1, 5, 8), [4, 2, 0, 1, 3]
    layer.build(x.shape, x.shape)
    weights = [ops.convert_to_tensor(variable) for variable in layer.weights]
    moved, _ = CHAPTER["multi_head"](ops.take(x, order, axis=1), ops.take(x, order, axis=1), weights)
    expected = ops.convert_to_numpy(CHAPTER["multi_head"](x, x, weights)[0])[:, order]
    np.testing.assert_allclose(ops.convert_to_numpy(moved), expected, atol=1e-5)
