"""Scores, heads, positions, blocks, measures and costs of chapter 10, against Keras, PyTorch and counting by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt
from nnopt import lab

if keras.backend.backend() == "torch":
    pytest.skip("The chapters run on TensorFlow and on JAX", allow_module_level=True)

VOCABULARY = [12, 14]
WORDS = {"fünf": 3, "und": 4, "vierzig": 5, "Eier": 6, "die": 7}
CHAPTER = from_scratch(
    "10_attention", lab=lab, SIZES=VOCABULARY, ENGLISH={"five": 3, "forty": 4, "eggs": 5, "the": 6}, GERMAN=WORDS,
    WORDS={number: word for word, number in WORDS.items()},
)  # fmt: skip
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return ops.convert_to_tensor(RANDOM.normal(size=shape).astype("float32"))


def seen(lengths, time):
    return ops.convert_to_tensor(np.arange(time) < np.array(lengths)[:, None])


def test_the_three_scores_give_the_contexts_and_the_weights_of_keras():
    pairs = list(CHAPTER["scores_in_keras"](normal(3, 4, 8), normal(3, 5, 8), normal(3, 5, 8), seen([5, 3, 1], 5)))
    assert len(pairs) == 3
    assert CHAPTER["largest_difference"](pairs) < 1e-5


def test_a_wrong_score_is_noticed():
    pairs = list(CHAPTER["scores_in_keras"](normal(3, 4, 8), normal(3, 5, 8), normal(3, 5, 8), seen([5, 3, 1], 5)))
    mixed = [(pairs[0][0], pairs[1][1])]
    assert CHAPTER["largest_difference"](mixed) > 0.01


@pytest.mark.parametrize("heads", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_multi_head_attention_is_that_of_keras_with_padding_and_causal_masks(heads):
    pairs = CHAPTER["heads_in_keras"](normal(3, 4, 8), normal(3, 5, 8), seen([5, 3, 1], 5), heads)
    assert CHAPTER["largest_difference"](pairs) < 1e-5


def test_scaled_attention_is_that_of_torch():
    torch = pytest.importorskip("torch")
    query, key, value = (RANDOM.normal(size=(2, time, 8)).astype("float32") for time in (3, 6, 6))
    mask = np.arange(6) < np.array([[[6]], [[2]]])
    scores = CHAPTER["scaled_dot_product"](*map(ops.convert_to_tensor, (query, key)))
    ours, _ = CHAPTER["attend"](scores, ops.convert_to_tensor(value), ops.convert_to_tensor(mask))
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (query, key, value)), attn_mask=torch.from_numpy(np.broadcast_to(mask, (2, 3, 6)).copy())
    )
    np.testing.assert_allclose(ops.convert_to_numpy(ours), theirs.numpy(), atol=1e-5)


def test_weights_sum_to_one_and_are_zero_where_nobody_may_look():
    _, weights = CHAPTER["attend"](normal(2, 4, 4), normal(2, 4, 5), CHAPTER["causal"](4))
    weights = ops.convert_to_numpy(weights)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    later = np.triu_indices(4, 1)
    assert (weights[:, later[0], later[1]] == 0).all()


def test_the_code_of_positions_turns_with_the_distance():
    code = CHAPTER["positions"](30, 16)
    np.testing.assert_allclose(code[7, 6:8], [np.sin(7 * 10000 ** (-6 / 16)), np.cos(7 * 10000 ** (-6 / 16))])
    for steps in (1, 5, 20):
        np.testing.assert_allclose(CHAPTER["turned"](code[:-steps], steps), code[steps:], atol=1e-9)
        assert np.abs(CHAPTER["turned"](code[: -steps - 1], steps + 1) - code[steps:-1]).max() > 0.1


def test_self_attention_without_positions_only_moves_with_its_words():
    layer = keras.layers.MultiHeadAttention(2, 4)
    x, order = normal(1, 5, 8), [4, 2, 0, 1, 3]
    layer.build(x.shape, x.shape)
    weights = [ops.convert_to_tensor(variable) for variable in layer.weights]
    moved, _ = CHAPTER["multi_head"](ops.take(x, order, axis=1), ops.take(x, order, axis=1), weights)
    expected = ops.convert_to_numpy(CHAPTER["multi_head"](x, x, weights)[0])[:, order]
    np.testing.assert_allclose(ops.convert_to_numpy(moved), expected, atol=1e-5)


def test_a_block_by_hand_is_the_block_of_keras_also_with_padding():
    words, allowed = keras.Input((5, 64)), keras.Input((1, 5), dtype="bool")
    block = keras.Model([words, allowed], CHAPTER["encoder_block"](words, allowed))
    block.set_weights([weight + 0.1 * RANDOM.normal(size=weight.shape) for weight in block.get_weights()])
    x, mask = normal(2, 5, 64), seen([5, 3], 5)[:, None]
    weights = [ops.convert_to_tensor(variable) for variable in block.weights]
    theirs = ops.convert_to_numpy(block([x, mask]))
    np.testing.assert_allclose(ops.convert_to_numpy(CHAPTER["block_by_hand"](x, weights, mask)), theirs, atol=1e-4)
    assert np.abs(ops.convert_to_numpy(CHAPTER["block_by_hand"](x, weights, None)) - theirs).max() > 1e-3


def test_the_loss_is_the_mean_over_words_and_ignores_padding():
    labels = np.array([[4, 2, 0, 0], [3, 3, 3, 2]], "int32")
    logits = RANDOM.normal(size=(2, 4, 6)).astype("float32")
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    words = [-np.log(chances[i, j, labels[i, j]]) for i in range(2) for j in range(4) if labels[i, j]]
    assert float(CHAPTER["word_loss"](labels, ops.convert_to_tensor(logits))) == pytest.approx(np.mean(words), rel=1e-5)


class Counting:
    """Writes 10, 11, 12, ... and the end token, 2, after as many words as the source's first token says."""

    def predict_on_batch(self, inputs):
        source, written = inputs
        assert (written[:, 0] == 1).all()  # each sentence begins with the start token
        places = np.arange(written.shape[1])
        return np.eye(20)[np.where(places < source[:, :1], 10 + places, 2)]


def test_greedy_decoding_ends_each_sentence_on_its_own_and_pads_behind_it():
    rows = CHAPTER["greedy"](Counting(), np.array([[3], [0], [1]], "int32"), steps=6)
    np.testing.assert_array_equal(rows, [[10, 11, 12, 2, 0, 0], [2, 0, 0, 0, 0, 0], [10, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(CHAPTER["greedy"](Counting(), np.array([[9]]), steps=2), [[10, 11]])


@pytest.fixture(scope="module")
def networks():
    """A translator with attention and a Transformer, with weights in which nothing is zero."""
    keras.utils.set_random_seed(0)
    found = {"with": CHAPTER["translator"](True, units=8), "transformer": CHAPTER["transformer"](width=8)}
    for model in found.values():
        model.set_weights([weight + 0.1 * RANDOM.normal(size=weight.shape) for weight in model.get_weights()])
    return found


@pytest.mark.parametrize("side", ["with", "transformer"])
def test_padding_and_later_words_change_no_logit(networks, side):
    source, target = np.array([[5, 6, 7, 0]], "int32"), np.array([[1, 4, 6, 0]], "int32")
    logits = ops.convert_to_numpy(networks[side]([source, target]))
    longer = ops.convert_to_numpy(networks[side]([np.array([[5, 6, 7, 0, 0]]), np.array([[1, 4, 6, 9]])]))
    np.testing.assert_allclose(longer[:, :3], logits[:, :3], atol=1e-5)
    other = ops.convert_to_numpy(networks[side]([np.array([[5, 6, 8, 0]]), target]))
    assert np.abs(other - logits).max() > 1e-3


@pytest.mark.parametrize("side", ["with", "transformer"])
def test_looks_are_shares_of_the_words_and_none_is_on_padding(networks, side):
    source, target = np.array([[5, 6, 7, 0], [4, 0, 0, 0]], "int32"), np.array([[1, 4, 6], [1, 5, 5]], "int32")
    weights = ops.convert_to_numpy(CHAPTER["looking"](networks[side])([source, target]))
    assert weights.shape == (2, 3, 4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert (weights[0, :, 3] < 1e-6).all()
    np.testing.assert_allclose(weights[1, :, 0], 1, atol=1e-5)


def test_costs_count_every_matrix(networks):
    width, vocabulary, hidden = 8, VOCABULARY[1], CHAPTER["HIDDEN"]
    assert CHAPTER["matrices"](networks["with"]) == CHAPTER["recurrent_cost"](width, vocabulary, 1, 1) - 3 * width
    cost = CHAPTER["transformer_cost"](width, hidden, vocabulary, 1, 1)
    assert CHAPTER["matrices"](networks["transformer"]) == cost - 6 * width


def test_costs_grow_with_words_as_counted_by_hand():
    cost = CHAPTER["transformer_cost"]
    keys_and_values, attention = 2 * 8 * 8, 2 * 8 * (4 * 4 - 3 * 3 + (4 - 3) * 5)
    assert cost(8, 16, 10, 4, 5) - cost(8, 16, 10, 3, 5) == 4 * 64 + 2 * 8 * 16 + keys_and_values + attention
    cost = CHAPTER["recurrent_cost"]
    assert cost(8, 10, 4, 5) - cost(8, 10, 3, 5) == 2 * 3 * 8 * (8 + 8) + 2 * 8 * 8 + 3 * 8 * 5


def sentence():
    """the forty five eggs | die fünf und vierzig Eier"""
    return CHAPTER["Part"](["the forty five eggs"], ["die fünf und vierzig Eier"], [[(0, 0), (1, 3), (2, 1), (3, 4)]])


def test_looks_are_counted_by_word():
    weights = np.zeros((1, 14, 11))
    for place, look in ((0, 0), (1, 2), (2, 0), (3, 2), (4, 3)):  # vierzig looks at five
        weights[0, place, look] = 1
    linked, hit = CHAPTER["words_hit"](weights, sentence())
    assert {word: (linked[number], hit[number]) for word, number in WORDS.items()} == {
        "die": (1, 1), "fünf": (1, 1), "und": (0, 0), "vierzig": (1, 0), "Eier": (1, 1),
    }  # fmt: skip


def test_chance_and_diagonal_are_those_counted_by_hand():
    found = CHAPTER["guesses"](sentence())  # the diagonal from 5 German places to 4 English ones: 0 1 2 2 3
    np.testing.assert_allclose(found["numbers"], [0.25, 0.0])
    np.testing.assert_allclose(found["frames"], [0.25, 1.0])
    assert [CHAPTER["diagonal"](place, 3, 5) for place in range(5)] == [0, 0, 1, 2, 2]


def test_bleu_of_the_reference_is_100_and_lengths_choose_sentences():
    part = CHAPTER["Part"](["a b c d", "a b c d e f"], ["w x y z", "w x y z v u"], [[], []])
    assert CHAPTER["bleu"](part.german, part) == pytest.approx(100)
    written = ["w x y z", "q q q q q q"]
    assert CHAPTER["bleu"](written, part, 4, 4) == pytest.approx(100)
    assert CHAPTER["bleu"](written, part, 5, 6) < 10


def test_the_floor_keeps_frame_words_and_deals_number_words_anew():
    texts = [f"die {word} Eier ." for word in ("zwei", "drei", "vier", "elf", "acht", "neun")]
    dealt = CHAPTER["numbers_dealt_anew"](CHAPTER["Part"](texts, texts, [[]] * 6))
    assert sorted(dealt) == sorted(texts)
    assert dealt != texts


def test_shuffled_words_are_the_same_words_with_the_padding_behind():
    source = np.array([[5, 6, 7, 8, 0, 0], [3, 4, 0, 0, 0, 0]] * 5)
    rows = CHAPTER["shuffled"](source)
    np.testing.assert_array_equal(np.sort(rows), np.sort(source))
    np.testing.assert_array_equal(rows == 0, source == 0)
    assert (rows != source).any()


def test_updates_to_a_target_lie_on_a_straight_line_of_logarithms():
    seen_at = np.array([20, 40, 60])
    updates = CHAPTER["updates_to"]
    assert updates(0.1, np.array([1.0, 0.01, 0.001]), seen_at) == pytest.approx(30)
    assert updates(1.0, np.array([0.5, 0.01, 0.001]), seen_at) == 20
    assert updates(0.1, np.array([1.0, 0.5, 0.2]), seen_at) == np.inf


@pytest.mark.thorough
def test_the_builders_are_the_same_functions():
    source, target = np.array([[5, 6, 7, 0]], "int32"), np.array([[1, 4, 6]], "int32")
    ours = CHAPTER["transformer"]()
    theirs = nnopt.models.transformer(*VOCABULARY, 64, depth=1, heads=4, hidden=128)
    assert ours.count_params() == theirs.count_params()
    ours = CHAPTER["translator"](True)
    theirs = nnopt.models.seq2seq(*VOCABULARY, 64, embedding=64, cell="gru", attention="luong")
    assert ours.count_params() == theirs.count_params()
    assert ours([source, target]).shape == theirs([source, target]).shape
