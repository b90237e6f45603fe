"""The subwords, network, searches and shared trainings of chapter 12, against references and the library."""

import collections
import functools
import itertools
import math
import re
import tempfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from notebook_cells import from_scratch

import nnopt
from nnopt import decoding
from nnopt.data.text import END, PAD, START, UNKNOWN, train_subwords

CHAPTER = from_scratch(
    "12_case_study_translation",
    PAD=PAD,
    START=START,
    END=END,
    UNKNOWN=UNKNOWN,
    functools=functools,
    itertools=itertools,
    math=math,
    tempfile=tempfile,
    PLAN=SimpleNamespace(full=False),
    LAYERS=[1],
    HIDDEN_UNITS=[4],
    DROPOUT=[0.0],
    WIDTHS=[1],
    VOCABULARY=12,
    BATCH=8,
    cross_entropy=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
)
LAYER_NAMES = ("source_embedding", "target_embedding", "encoder", "start", "decoder", "keys", "combine", "logits")


def merges_of(words, most):
    """The pairs that the chapter joins, one after the other, the words after it, and how often the best pair occurs."""
    for _ in range(most):
        if max(map(len, words)) == 1:
            return
        pair, count = CHAPTER["most_frequent_pair"](words)
        words = [CHAPTER["joined"](pieces, pair) for pieces in words]
        yield pair, count, words


def random_words(seed, count):
    """Words of letters that differ in how frequent they are; no letter follows itself."""
    random, words = np.random.default_rng(seed), []
    while len(words) < count:
        letters = random.choice(list("abcdef"), random.integers(2, 7), p=[0.35, 0.25, 0.15, 0.1, 0.1, 0.05])
        if all(one != other for one, other in itertools.pairwise(letters)):
            words.append("".join(letters))
    return words


@pytest.mark.parametrize("seed", range(3))
def test_the_most_frequent_pair_is_joined_as_the_regular_expression_of_sennrich_et_al_does(seed):
    text = [" ".join("▁" + word) for word in [*random_words(seed, 40), "aaaa", "aab", "baaa"]]
    for pair, count, words in merges_of([one.split() for one in text], most=12):
        counts = collections.Counter(neighbours for one in text for neighbours in itertools.pairwise(one.split()))
        assert counts[pair] == count == max(counts.values())
        bigram = re.compile(r"(?<!\S)" + re.escape(" ".join(pair)) + r"(?!\S)")
        text = [bigram.sub("".join(pair), one) for one in text]
        assert [one.split() for one in text] == words


@pytest.mark.parametrize("seed", range(3))
def test_sentencepiece_learns_the_same_pieces_in_the_same_order(seed, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    words = random_words(seed, 2000)
    pieces, merges = [list("▁" + word) for word in words], []
    for pair, count, after in merges_of(pieces, most=12):
        counts = collections.Counter(neighbours for one in pieces for neighbours in itertools.pairwise(one))
        if list(counts.values()).count(count) > 1:
            break  # of two pairs that are equally frequent, each may take another one
        merges, pieces = [*merges, "".join(pair)], after
    assert len(merges) >= 4
    letters = len(set("".join(words))) + 1
    size = 4 + len(merges) + letters
    subwords = train_subwords(words, size, tmp_path / "small.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "small.model"))
    assert [model.id_to_piece(token) for token in range(4, size - letters)] == merges
    assert [subwords.pieces(word) for word in words] == pieces


def both_networks(random, vocabulary, units, scale=0.6, end=0.0):
    """The chapter's network and the library's, with the same random weights; `end` makes END more probable."""
    ours = CHAPTER["translator"](vocabulary, units)
    weights = [random.normal(scale=scale, size=weight.shape) for weight in ours.get_weights()]
    weights[-1][END] += end  # the bias of the logits
    ours.set_weights(weights)
    theirs = nnopt.models.seq2seq(vocabulary, vocabulary, units, embedding=units, cell="gru", attention="luong", seed=0)
    theirs.set_weights([weight for name in LAYER_NAMES for weight in ours.get_layer(name).get_weights()])
    return ours, theirs


def sentences(random, vocabulary, lengths, time):
    """Random subwords with END behind them, and padding behind that, (sentences, time)."""
    tokens = random.integers(END + 1, vocabulary, (len(lengths), time)).astype("int32")
    place, last = np.arange(time), np.array(lengths)[:, None] - 1
    return np.where(place < last, tokens, np.where(place == last, END, PAD)).astype("int32")


@pytest.mark.parametrize(("vocabulary", "units"), [(30, 8), pytest.param(9, 3, marks=pytest.mark.thorough)])
def test_the_translator_computes_what_the_library_does_whatever_the_padding(vocabulary, units):
    random = np.random.default_rng(0)
    ours, theirs = both_networks(random, vocabulary, units)
    assert ours.count_params() == theirs.count_params()
    source, labels = sentences(random, vocabulary, [7, 1, 4], 7), sentences(random, vocabulary, [3, 5, 1], 5)
    target = np.concatenate([np.full((3, 1), START, "int32"), labels[:, :-1]], axis=1)
    logits, expected = (ops.convert_to_numpy(network([source, target])) for network in (ours, theirs))
    assert logits.shape == (3, 5, vocabulary)
    np.testing.assert_allclose(logits[labels != PAD], expected[labels != PAD], atol=1e-5)
    alone = ops.convert_to_numpy(ours([source[2:, :4], target[2:, :1]]))  # the last sentence without its padding
    np.testing.assert_allclose(alone[0], logits[2, :1], atol=1e-5)


def up_to_the_end(row):
    row = row.tolist()
    return row[: row.index(END) + 1] if END in row else row


def test_greedy_writes_what_the_library_does():
    random = np.random.default_rng(0)
    ours, theirs = both_networks(random, 9, 6, scale=1.0, end=3.0)
    source, most = sentences(random, 9, [6, 2, 4, 5, 3, 6, 1, 5] * 5, 6), 5
    written = CHAPTER["greedy"](ours, source, most)
    found = decoding.greedy_search(theirs.step, theirs.initial_state(source), START, END, most)
    assert written.shape == (40, most)  # not all of them end
    expected = [up_to_the_end(row) for row in ops.convert_to_numpy(found.tokens)[:, 0]]
    assert [up_to_the_end(row) for row in written] == expected
    assert {END in row for row in expected} == {True, False}


def following(tokens, state):
    """The logits of a table (rows, 7, 7) that the state brings."""
    return ops.take_along_axis(state["table"], tokens[:, None, None], axis=1)[:, 0], state


@pytest.mark.parametrize(("width", "early"), [(1, True), (2, True), (3, True), (3, False)])
def test_the_steps_of_the_picture_find_what_the_librarys_beam_search_finds(width, early):
    most = 4
    tables = np.random.default_rng(0).normal(scale=1.5, size=(20, 7, 7))
    tables[:, :, :END] = -30  # these words never come
    tables -= np.log(np.sum(np.exp(tables), axis=-1, keepdims=True))
    state = {"table": tables.astype("float32")}
    found = decoding.beam_search(following, state, START, END, width, most, early_stopping=early)
    tokens, totals = map(ops.convert_to_numpy, (found.tokens, found.log_probabilities))
    ended = 0
    for table, rows, log_probabilities in zip(tables, tokens, totals):
        pool = []
        for candidates in CHAPTER["beam_steps"](table, width, most):
            if early and len(pool) >= width:
                break
            pool += [(score, list(words[1:])) for score, words, kept in candidates if kept and words[-1] == END]
        expected = sorted(pool, reverse=True)[:width]
        ended += len(expected)
        if expected:
            assert [up_to_the_end(row) for row in rows[: len(expected)]] == [words for _, words in expected]
            np.testing.assert_allclose(log_probabilities[: len(expected)], [score for score, _ in expected], atol=1e-5)
            assert np.isinf(log_probabilities[len(expected) :]).all()
        else:
            assert not np.isin(END, rows)
    assert ended >= 8 * width


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_the_mean_over_the_subwords_that_are_no_padding(masked):
    random = np.random.default_rng(0)
    source, labels = sentences(random, 12, [6, 2, 4, 5], 6), sentences(random, 12, [3, 6, 1, 4], 6)
    target = np.concatenate([np.full((4, 1), START, "int32"), labels[:, :-1]], axis=1)
    target = np.where(labels == PAD, PAD, target)
    network = both_networks(random, 12, 4)[int(masked)]  # the library's tells Keras what is padding
    logits = ops.convert_to_numpy(network([source, target]))
    log_probabilities = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    expected = [-log_probabilities[row, place, labels[row, place]] for row, place in np.argwhere(labels != PAD)]
    assert len(expected) == 14
    assert CHAPTER["loss_of"](network, (source, target, labels)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_training_reads_every_pair_once_an_epoch_in_an_order_of_its_seed(monkeypatch):
    monkeypatch.setitem(CHAPTER, "STEPS", 10)
    part = [np.arange(20), 100 + np.arange(20)]
    first, second = CHAPTER["drawn"](part, 3)
    np.testing.assert_array_equal(first + 100, second)
    assert len(first) == 80
    for epoch in np.split(first, 4):
        assert sorted(epoch) == list(range(20))
    assert not np.array_equal(first[:20], first[20:40])
    assert not np.array_equal(first, CHAPTER["drawn"](part, 4)[0])


def test_l2_adds_the_squares_of_all_kernels_to_the_loss_and_of_nothing_else(monkeypatch):
    monkeypatch.setitem(CHAPTER, "COMPILED", {})
    network = CHAPTER["compiled"](2, 4, 0.0, 0.01)
    kernels = [ops.convert_to_numpy(weight) for weight in network.trainable_weights if "kernel" in weight.path]
    assert len(kernels) == 2 * 2 * 2 + 2 * 2 + 2 + 3  # encoders, decoders, their first states; keys, combine, logits
    found = float(sum(network.losses))
    assert found == pytest.approx(0.01 * sum(np.sum(kernel**2) for kernel in kernels), rel=1e-5)
    assert CHAPTER["compiled"](2, 4, 0.0, 0.01) is network
    assert not CHAPTER["compiled"](2, 4, 0.0, 0.0).losses


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the tuner knows no backend")
def test_the_tuner_asks_for_every_point_and_files_each_loss_under_its_own(monkeypatch):
    grid = {"layers": [1, 2], "units": [4, 8], "dropout": [0.1]}
    points = list(itertools.product(*grid.values()))
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    asked = []

    def trained(point, l2, part, seed):
        asked.append(point)
        return point

    monkeypatch.setitem(CHAPTER, "GRID", grid)
    monkeypatch.setitem(CHAPTER, "POINTS", points)
    monkeypatch.setitem(CHAPTER, "compiled", lambda *point: network)
    monkeypatch.setitem(CHAPTER, "trained", trained)
    monkeypatch.setitem(CHAPTER, "loss_of", lambda point, part: 100 * point[0] + point[1] + point[2])
    found = CHAPTER["search"]({"train": None, "validation": None}, 0)
    assert found == {"val_loss": [100 * layers + units + dropout for layers, units, dropout in points]}
    assert sorted(asked) == sorted(points)


@pytest.mark.thorough
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="it has no steps_per_execution, which the chapter uses")
def test_a_training_does_not_depend_on_the_one_before_it(monkeypatch):
    monkeypatch.setitem(CHAPTER, "STEPS", 40)
    monkeypatch.setitem(CHAPTER, "COMPILED", {})
    random = np.random.default_rng(0)
    labels = sentences(random, 12, [3, 6, 5, 4, 2, 6, 6, 1, 4, 5], 6)
    part = sentences(random, 12, [6, 2, 4, 5, 3, 6, 1, 5, 2, 4], 6), np.where(labels == END, PAD, labels), labels

    def loss(seed):
        return CHAPTER["loss_of"](CHAPTER["trained"]((1, 4, 0.2), 0.0, part, seed), part)

    first, other = loss(1), loss(2)
    assert loss(1) == pytest.approx(first, rel=1e-6)
    assert other != pytest.approx(first, rel=1e-3)


def test_the_share_of_end_leaves_out_what_is_not_written():
    source = np.array([[9, END, PAD], [9, 9, END]])
    labels = np.array([[9, END], [END, PAD]])
    weights = np.array([[[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]], [[0.5, 0.4, 0.1], [0.0, 0.0, 1.0]]])
    network = SimpleNamespace(attention_weights=lambda inputs: weights)
    assert CHAPTER["share_of_end"](network, source, None, labels) == pytest.approx(100 * (0.75 + 0.5 + 0.1) / 3)
