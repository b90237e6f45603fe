"""nnopt.data.text: sentence pairs from local files, subwords, and batches of pairs of similar length."""

import gzip
import io
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

import nnopt
from nnopt.callbacks import Resume
from nnopt.data import Dataset, PairBatches, multi30k, train_subwords, wmt14
from nnopt.data import text as module
from nnopt.data.text import END, PAD, START, UNKNOWN, Subwords

FILES = json.loads(Path(module.__file__).with_name("multi30k.json").read_text("utf-8"))
REAL = Path(os.environ.get("NNOPT_DATA") or os.devnull)

ENGLISH = ["the old man reads a book", "a girl reads", "the dog runs", "two men ride horses near the old bridge"]
GERMAN = ["der alte Mann liest ein Buch", "ein Mädchen liest", "der Hund läuft", "zwei Männer reiten über die Brücke"]


def refused(url, timeout):
    raise urllib.error.URLError("no network")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no local copy, and an empty folder of Keras."""
    monkeypatch.delenv("NNOPT_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    return tmp_path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    pytest.importorskip("sentencepiece")
    return train_subwords(ENGLISH + GERMAN, 70, tmp_path_factory.mktemp("subwords") / "joint.model")


def compressed(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


# multi30k and wmt14 --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "multi30k").is_dir(), reason="NNOPT_DATA names no folder with multi30k")
def test_multi30k_has_its_pairs_in_both_directions():
    data, reverse = multi30k(), multi30k("de-en")
    assert repr(data) == "Dataset(train=29000, validation=1014, test=1000, classes=None)"
    assert data.train[0][0] == "Two young, White males are outside near many bushes."
    assert data.train[1][0] == "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche."
    assert data.test[0][0] == "A man in an orange hat starring at something."
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(data, part)[0], getattr(reverse, part)[1])
        np.testing.assert_array_equal(getattr(data, part)[1], getattr(reverse, part)[0])


@pytest.mark.skipif(not (REAL / "multi30k").is_dir(), reason="NNOPT_DATA names no folder with multi30k")
def test_multi30k_is_fetched_once_from_the_addresses_of_its_table(offline, monkeypatch):
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return io.BytesIO((REAL / "multi30k" / Path(url).name).read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    first = multi30k()
    assert sorted(asked) == sorted(side[0] for part in FILES.values() for side in part.values())
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    np.testing.assert_array_equal(multi30k().test[1], first.test[1])


def test_every_file_of_multi30k_has_an_address_at_the_pinned_commit():
    places = [side for part in FILES.values() for side in part.values()]
    assert len({url for url, _, _ in places}) == len({sha256 for _, _, sha256 in places}) == 6
    assert all("/multi30k/dataset/raw/a3d2e0d/data/task1/raw/" in url for url, _, _ in places)
    assert all(size > 0 and len(sha256) == 64 for _, size, sha256 in places)


def test_without_network_and_copy_multi30k_says_what_to_do_and_leaves_nothing(offline):
    with pytest.raises(ConnectionError, match=r"train\.en\.gz cannot be reached: .*NNOPT_DATA"):
        multi30k()
    assert not [path for path in offline.rglob("*") if path.is_file()]


def test_a_file_of_multi30k_with_another_content_is_refused(offline, monkeypatch):
    monkeypatch.setenv("NNOPT_DATA", str(offline))
    for part in FILES.values():
        for url, _, _ in part.values():
            compressed(offline / "multi30k" / Path(url).name, ["another text"])
    with pytest.raises(ValueError, match=r"The sha256 of .*\.gz must be [0-9a-f]{64}"):
        multi30k()


@pytest.fixture
def newstest(offline, monkeypatch):
    monkeypatch.setenv("NNOPT_DATA", str(offline))
    for year, lines in ((2013, ["one", "two\u2028parts"]), (2014, ["three", "", "five"])):
        for language in ("en", "de"):
            compressed(offline / "newstest" / f"newstest{year}.{language}.gz", [f"{language} {line}" for line in lines])
    return offline / "newstest"


def test_newstest_is_read_from_local_files_and_only_a_newline_ends_a_line(newstest):
    data = wmt14(train=False)
    assert repr(data) == "Dataset(train=0, validation=2, test=3, classes=None)"
    assert data.validation[0].tolist() == ["en one", "en two\u2028parts"]
    assert data.test[1].tolist() == ["de three", "de ", "de five"]
    assert wmt14("de-en", train=False).test[1].tolist() == ["en three", "en ", "en five"]


def test_a_damaged_or_shortened_newstest_is_refused(newstest):
    path = newstest / "newstest2014.de.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"newstest2014\.de\.gz is damaged"):
        wmt14(train=False)
    compressed(path, ["one line"])
    with pytest.raises(ValueError, match="`test` must be a pair"):
        wmt14(train=False)


def test_wmt14_comes_through_tfds_where_there_is_no_local_file(offline):
    with tfds.testing.mock_data(num_examples=5):
        data = wmt14()
    assert isinstance(data, Dataset)
    for x, y in (data.train, data.validation, data.test):
        assert len(x) == len(y) == 5
        assert all(isinstance(text, str) for text in [*x, *y])


def test_without_network_wmt14_says_what_to_do(offline, monkeypatch):
    def load(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(tfds, "load", load)
    with pytest.raises(FileNotFoundError, match=r"'wmt14_translate/de-en' is not on this machine.*Run it once"):
        wmt14(train=False)


@pytest.mark.skipif(not (REAL / "newstest").is_dir(), reason="NNOPT_DATA names no folder with newstest")
def test_newstest_has_its_pairs():
    data = wmt14(train=False)
    assert (len(data.validation[0]), len(data.test[0])) == (3000, 3003)


# subwords ------------------------------------------------------------------------------------------------------------


def test_subwords_bring_text_back_umlauts_and_a_decomposed_one_included(vocabulary):
    assert vocabulary.decode(vocabulary.encode(ENGLISH + GERMAN)) == ENGLISH + GERMAN
    assert vocabulary.decode(vocabulary.encode(["la\u0308uft", "der   Hund\t läuft\n"])) == ["läuft", "der Hund läuft"]


def test_tokens_are_int32_below_the_size_and_hold_no_marks(vocabulary):
    tokens = vocabulary.encode(ENGLISH)
    assert len(vocabulary) == 70
    assert all(row.dtype == np.int32 for row in tokens)
    assert all(END < token < 70 for row in tokens for token in row)
    assert "".join(vocabulary.pieces(ENGLISH[0])).replace("▁", " ").strip() == ENGLISH[0]


def test_unknown_characters_become_one_token_each_and_the_rest_is_kept(vocabulary):
    (tokens,) = vocabulary.encode(["the ☃ old"])
    assert np.sum(tokens == UNKNOWN) == 1
    assert vocabulary.decode([tokens])[0].split() == ["the", "⁇", "old"]
    assert len(vocabulary.encode(["half a pair: \ud800"])) == 1


def test_empty_sentences_are_empty_arrays_and_come_back(vocabulary):
    tokens = vocabulary.encode(["", "  ", "the dog"])
    assert [len(row) for row in tokens[:2]] == [0, 0]
    assert tokens[0].dtype == np.int32
    assert vocabulary.decode(tokens) == ["", "", "the dog"]
    assert vocabulary.encode([]) == []


def test_decoding_stops_at_the_end_and_skips_padding(vocabulary):
    dog, man = vocabulary.encode(["the dog", "old man"])
    rows = np.full((2, 30), PAD)
    rows[0, : len(dog) + 2] = [START, *dog, END]
    rows[1, : len(man) + 1 + len(dog)] = [*man, END, *dog]
    assert vocabulary.decode(rows) == ["the dog", "old man"]


def test_a_word_of_the_test_alone_has_no_piece_of_its_own(vocabulary):
    assert len(vocabulary.pieces("the")) == 1
    assert len(vocabulary.pieces("gardener")) > 3


def test_the_file_decides_the_vocabulary_and_training_repeats_itself(vocabulary, tmp_path):
    paths = [tmp_path / "new" / "one.model", tmp_path / "other.model"]
    for path in paths:
        again = train_subwords(np.array(ENGLISH + GERMAN), 70, path)
        for one, other in zip(again.encode(GERMAN), vocabulary.encode(GERMAN)):
            np.testing.assert_array_equal(one, other)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    np.testing.assert_array_equal(Subwords(str(paths[0])).encode(GERMAN)[0], vocabulary.encode(GERMAN)[0])
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["one.model", "other.model"]


@pytest.mark.parametrize(
    ("sentences", "size", "error", "text"),
    [
        (ENGLISH, 7, ValueError, "`size` must be an integer >= 8"),
        (ENGLISH, 70.0, TypeError, "`size` must be an integer"),
        (ENGLISH, 4000, ValueError, r"`size` must fit: Vocabulary size too high \(4000\).*Received: size=4000"),
        (ENGLISH, 10, ValueError, "`size` must fit: Vocabulary size is smaller than required_chars"),
        (["", " "], 70, ValueError, "`sentences` must hold strings, not all of them empty"),
        ("one string", 70, ValueError, "Received: 'one string'"),
    ],
)
def test_what_cannot_be_trained_is_named_and_leaves_no_file(sentences, size, error, text, tmp_path):
    pytest.importorskip("sentencepiece")
    with pytest.raises(error, match=text):
        train_subwords(sentences, size, tmp_path / "a.model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_damaged_or_of_other_marks_is_refused(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    with pytest.raises(FileNotFoundError, match=r"none\.model"):
        Subwords(tmp_path / "none.model")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.model' is damaged"):
        Subwords(tmp_path / "junk.model")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH), model_writer=model, vocab_size=26, minloglevel=2
    )
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match="PAD, UNKNOWN, START, END must be 0, 1, 2, 3"):
        Subwords(tmp_path / "foreign.model")


# batches -------------------------------------------------------------------------------------------------------------


def made_pairs(count=203, longest=45, seed=0):
    """Pairs of random lengths, 0 among them; the first subword of a source tells the pair where there is one."""
    random = np.random.default_rng(seed)
    sides = []
    for first in (10, 10 + count):
        lengths = random.integers(0, longest + 1, count)
        sides.append([np.full(length, first + row, "int32") for row, length in enumerate(lengths)])
    return sides


def content(batch):
    (source, target), labels = batch
    return [source.tolist(), target.tolist(), labels.tolist()]


def test_batches_are_a_function_of_seed_and_epoch():
    data, again = (PairBatches(*made_pairs(), 16, seed=3) for _ in range(2))
    other = PairBatches(*made_pairs(), 16, seed=4)
    first = list(map(content, data.batches(5)))
    assert first == list(map(content, again.batches(5)))
    assert first != list(map(content, data.batches(6)))
    assert first != list(map(content, other.batches(5)))
    assert len(first) == len(data)


def test_an_epoch_is_taken_up_at_any_batch():
    data = PairBatches(*made_pairs(), 16)
    for start in (0, 1, 7, len(data)):
        assert list(map(content, data.batches(2, start))) == list(map(content, data.batches(2)))[start:]


def pairs_of(batches):
    found = []
    for (source, target), labels in batches:
        assert source.dtype == target.dtype == labels.dtype == np.int32
        for one, other, label in zip(source.tolist(), target.tolist(), labels.tolist()):
            ends = one.index(END), label.index(END)
            assert set(one[ends[0] + 1 :]) | set(label[ends[1] + 1 :]) <= {PAD}
            # What the decoder reads is one step behind, and holds no END, for which there would be no label.
            assert other == [START, *label[: ends[1]]] + [PAD] * (len(label) - ends[1] - 1)
            found.append((tuple(one[: ends[0]]), tuple(label[: ends[1]])))
    return sorted(found)


def test_every_pair_that_is_kept_comes_once_an_epoch():
    sources, targets = made_pairs()
    data = PairBatches(sources, targets, 16, longest=40)
    kept = [(tuple(one), tuple(other)) for one, other in zip(sources, targets) if max(len(one), len(other)) <= 40]
    assert data.examples == len(kept) == len(sources) - data.dropped
    assert pairs_of(data.batches(0)) == pairs_of(data.batches(9)) == sorted(kept)
    assert pairs_of(data[index] for index in range(len(data))) == sorted(kept)
    assert pairs_of(data) == sorted(kept)  # Python's own way through a sequence ends, too


def test_the_filter_keeps_pairs_of_exactly_the_limit():
    sides = [[[5] * 4, [5] * 5, [5], [5] * 9], [[6], [6] * 2, [6] * 5, [6]]]
    assert (PairBatches(*sides, 2, longest=5).examples, PairBatches(*sides, 2, longest=5).dropped) == (3, 1)
    assert (PairBatches(*sides, 2, longest=4).examples, PairBatches(*sides, 2, longest=4).dropped) == (1, 3)
    assert PairBatches([[5] * 40, [5] * 41], [[6], [6]], 2).dropped == 1


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_padding_share_is_that_of_every_epoch(epoch):
    data = PairBatches(*made_pairs(), 16)
    arrays = [side for (source, _), labels in data.batches(epoch) for side in (source, labels)]
    assert data.padding_share == pytest.approx(sum(np.sum(a == PAD) for a in arrays) / sum(a.size for a in arrays))
    assert data.padding_share < 0.5


def test_shapes_are_few_and_the_same_in_every_epoch():
    data = PairBatches(*made_pairs(1001), 32)
    for epoch in range(3):
        shapes = {labels.shape for _, labels in data.batches(epoch)}
        assert sorted(shapes) == data.shapes
    assert len({time for _, time in data.shapes}) <= 7  # 6, 12, ... 42
    assert [pairs for pairs, _ in data.shapes if pairs != 32] == [data.examples % 32]  # one smaller batch, no more


def test_the_first_two_batches_differ_in_length_so_that_tensorflow_fixes_none():
    data = PairBatches(*made_pairs(1001), 32)
    times = [labels.shape[1] for _, labels in data]
    assert times == [max(times), *sorted(times[1:])]
    assert times[0] != times[1]


@pytest.mark.parametrize("attention", [None, "luong"])
def test_rows_that_fill_a_batch_count_nowhere(attention):
    pairs = made_pairs(45, longest=11)
    data, filled = PairBatches(*pairs, 8), PairBatches(*pairs, 8, divisor=4)
    assert {labels.shape[0] for _, labels in data} == {8, 5}
    assert {rows for rows, _ in filled.shapes} == {labels.shape[0] for _, labels in filled} == {8}
    model = nnopt.models.seq2seq(200, 200, 6, embedding=5, cell="gru", attention=attention, seed=0)
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, weighted_metrics=["accuracy"], jit_compile=jit)
    for (x, y), (more, labels) in zip(data, filled):
        expected = model.test_on_batch(list(x), y)
        np.testing.assert_allclose(model.test_on_batch(list(more), labels), expected, rtol=1e-5)


def test_batches_hold_pairs_of_similar_length():
    for (source, _), labels in PairBatches(*made_pairs(1001), 32).batches(0):
        longest = np.maximum(np.sum(source != PAD, axis=1), np.sum(labels != PAD, axis=1))
        assert longest.min() > source.shape[1] - 12  # all of one multiple of 6, or of two neighbouring ones


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"longest": 0}, ValueError, "`longest` must be an integer >= 1"),
        ({"width": 1.5}, TypeError, "`width` must be an integer >= 1"),
        ({"divisor": 0}, ValueError, "`divisor` must be an integer >= 1"),
        ({"targets": [[5]]}, ValueError, r"`sources` and `targets` must be equally many. Received: 2, 1"),
        ({"longest": 1}, ValueError, "`longest` must leave some of 2 pairs. Received: longest=1"),
        ({"sources": [[4, 5, END], [6, 7]]}, ValueError, "`sources` must not hold PAD, START or END"),
        ({"targets": [[START, 5], [6, 7]]}, ValueError, "`targets` must not hold PAD, START or END"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, text):
    settings = {"sources": [[4, 5], [6, 7]], "targets": [[8, 9], [4, 5]], "batch_size": 2} | arguments
    with pytest.raises(error, match=text):
        PairBatches(**settings)


@pytest.mark.parametrize("function", [multi30k, wmt14])
def test_another_direction_is_refused(function):
    with pytest.raises(ValueError, match=r"`direction` must be one of 'en-de', 'de-en'\."):
        function("en-fr")


class Kill(keras.callbacks.Callback):
    """Ends a training in the middle of an epoch as an error would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise InterruptedError


def trained(folder, kill=None):
    """Trains two epochs; returns the history and the weights."""
    data = PairBatches(*made_pairs(60, longest=11), 8, seed=1)
    validation = PairBatches(*made_pairs(20, longest=11, seed=1), 8)
    keras.utils.set_random_seed(0)
    source, target = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    sentence = keras.layers.GlobalAveragePooling1D(keepdims=True)(keras.layers.Embedding(200, 8)(source))
    hidden = keras.layers.Add()([keras.layers.Embedding(200, 8)(target), sentence])
    logits = keras.layers.Dense(200)(keras.layers.Dropout(0.1, seed=0)(hidden))
    model = keras.Model([source, target], logits)
    # XLA would compile the step once for each shape.
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit)
    callbacks = [Kill(*kill)] if kill else []
    callbacks.append(Resume(folder, data, save_freq=1))
    history = model.fit(data, validation_data=validation, epochs=2, verbose=0, callbacks=callbacks)
    assert len(data.shapes) > 1
    return history.history, model.get_weights()


@pytest.mark.filterwarnings("ignore:Kill has no get_state")
def test_a_training_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(tmp_path):
    history, weights = trained(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(tmp_path / "killed", kill=(1, 5))
    again, resumed = trained(tmp_path / "killed")
    assert again == history
    for one, other in zip(weights, resumed):
        np.testing.assert_array_equal(one, other)


def test_the_fingerprint_tells_other_pairs_and_settings():
    pairs = made_pairs()
    known = PairBatches(*pairs, 8).fingerprint()
    assert known == PairBatches(*made_pairs(), 8).fingerprint()
    others = [PairBatches(*pairs, 9), PairBatches(*pairs, 8, seed=1), PairBatches(*pairs, 8, longest=30)]
    others += [PairBatches(*pairs, 8, width=5), PairBatches(*made_pairs(seed=1), 8)]
    assert not [other for other in others if other.fingerprint() == known]
