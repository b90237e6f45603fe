"""Sentence pairs in English and German, subwords, and batches of pairs of similar length."""

import gzip
import io
import json
import os
import zlib
from pathlib import Path

import keras
import numpy as np

from nnopt.checks import check_boolean, check_choice, check_integer, shown
from nnopt.data.download import fetch, through_tfds, whole
from nnopt.data.embedded import Dataset
from nnopt.data.ordered import EpochPipeline, epoch_order

PAD, UNKNOWN, START, END = MARKS = tuple(range(4))  # the first tokens of every `Subwords`


def multi30k(direction="en-de"):
    """Returns Multi30k: 29,000 / 1,014 / 1,000 English captions of photographs and their German translations.

    The six official files (1.3 MB) are taken from the folder `multi30k` of the folder that the environment variable
    NNOPT_DATA names, where there is one. Otherwise they are fetched once, into Keras' folder for data sets. Either way
    their checksums are compared. The test part is test2016, "flickr".

    Args:
        direction: "en-de" for English x and German y, or "de-en".

    Returns:
        A `Dataset` of arrays of strings (dtype object), of shape (pairs,).

    Raises:
        TypeError, ValueError: `direction` is no such string, or the checksum of a file is wrong.
        ConnectionError: A file is not here and cannot be fetched.

    Source: github.com/multi30k/dataset, Elliott et al. 2016, "Multi30K: Multilingual English-German image
    descriptions". Licence: CC BY-NC-SA 4.0, for research and teaching.
    """
    languages = check_choice("direction", direction, ("en-de", "de-en")).split("-")
    local, home = _local("multi30k"), Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    folder = local if local.is_dir() else home / "datasets" / "multi30k"
    # Address (with the commit), bytes and sha256 of each file.
    files = json.loads(Path(__file__).with_name("multi30k.json").read_text(encoding="utf-8"))

    def read(url, size, sha256):
        advice = "Run it once with a network, or set NNOPT_DATA to a folder that holds multi30k with the six files."
        about = {"size": size, "sha256": sha256, "licence": "CC BY-NC-SA 4.0", "advice": advice}
        return _lines(fetch(url, folder / Path(url).name, **about))

    parts = {part: tuple(read(*files[part][language]) for language in languages) for part in files}
    return Dataset(**parts, description="Multi30k (Elliott et al. 2016), test2016; licence CC BY-NC-SA 4.0")


def wmt14(direction="en-de", *, train=True):
    """Returns WMT14: 4.5 million English-German pairs, newstest2013 (3,000) to validate, newstest2014 (3,003) to test.

    They come through tensorflow-datasets, which fetches 1.6 GB once. In their place it takes local copies, so that a
    model can be tested without the rest: `newstest/newstest2013.en.gz` and `.de.gz` in the folder that the environment
    variable NNOPT_DATA names, `newstest2014` and `train` alike.

    Args:
        direction: "en-de" for English x and German y, or "de-en".
        train: If False, the training part is left out: its arrays are empty.

    Returns:
        A `Dataset` of arrays of strings (dtype object), of shape (pairs,).

    Raises:
        TypeError, ValueError: An argument is of the wrong type or not one of the choices, or a local file is damaged.
        FileNotFoundError: A part is not here and cannot be fetched.

    Source: statmt.org/wmt14, TFDS `wmt14_translate/de-en`; Bojar et al. 2014, "Findings of the 2014 workshop on
    statistical machine translation". Free for research.
    """
    languages = check_choice("direction", direction, ("en-de", "de-en")).split("-")
    files = {"train": "train", "validation": "newstest2013", "test": "newstest2014"}
    parts = {} if check_boolean("train", train) else {"train": (np.array([], object),) * 2}
    for part in set(files) - set(parts):
        paths = [_local(f"newstest/{files[part]}.{language}.gz") for language in languages]
        if all(path.is_file() for path in paths):
            parts[part] = tuple(map(_lines, paths))
            continue
        with through_tfds("wmt14_translate/de-en", "Run it once with a network.") as tfds:
            found = list(tfds.as_numpy(tfds.load("wmt14_translate/de-en", split=part, batch_size=1000)))
        texts = ([text.decode() for batch in found for text in batch[language]] for language in languages)
        parts[part] = tuple(np.array(column, object) for column in texts)
    return Dataset(**parts, description="WMT14 (Bojar et al. 2014), newstest2013 and newstest2014; free for research")


def _local(name):
    """Returns the path of a local copy; where NNOPT_DATA names no folder, a path that cannot be."""
    return Path(os.environ.get("NNOPT_DATA") or os.devnull, name)


def _lines(path):
    """Returns the lines of a compressed file; only "\\n" ends one, whatever Unicode has besides."""
    try:
        # Not NumPy's own strings: each would take the room of the longest, 4 bytes a character.
        return np.array(gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n"), object)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def train_subwords(sentences, size, path):
    """Learns a vocabulary of subwords by byte-pair encoding, writes it to a file, and returns it.

    Starting from single characters, the most frequent pair of neighbouring pieces is joined, again and again, until
    there are `size` pieces. Give it the training text only; of both languages for a joint vocabulary.

    Args:
        sentences: Strings: a list, an array, or anything to run through.
        size: Number of different tokens, PAD, UNKNOWN, START and END among them, an integer >= 8.
        path: Path of the file, such as "runs/first/joint.model". It is there whole or not at all.

    Returns:
        The `Subwords`.

    Raises:
        TypeError, ValueError: An argument is of the wrong type, or `size` is out of its range or more than these
            sentences have pieces.
        ImportError: sentencepiece is not installed.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     subwords = train_subwords(["low lower lowest", "new newer newest"], 24, Path(folder, "small.model"))
    >>> subwords.pieces("newest low")
    ['▁ne', 'west', '▁low']
    >>> subwords.decode(subwords.encode(["newest low"]))
    ['newest low']

    Reference: Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units"; Kudo and
    Richardson 2018, "SentencePiece" (Apache 2.0).
    """
    import sentencepiece

    texts = [] if isinstance(sentences, (str, bytes)) else [_utf8(sentence) for sentence in sentences]
    if not any(map(bytes.strip, texts)):
        raise ValueError(f"`sentences` must hold strings, not all of them empty. Received: {shown(sentences)}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="bpe", character_coverage=1.0, minloglevel=2,
            vocab_size=check_integer("size", size, at_least=8), pad_id=PAD, unk_id=UNKNOWN, bos_id=START, eos_id=END,
        )  # fmt: skip
    except RuntimeError as error:
        # What stands in brackets is a line of its source.
        raise ValueError(f"`size` must fit: {str(error).rpartition('] ')[2]} Received: size={size}") from error
    with whole(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return Subwords(path)


class Subwords:
    """A vocabulary of subwords: tokens 0 to 3 are PAD, UNKNOWN, START and END, the others pieces of words.

    Text is brought to one form of Unicode (NFKC), and white space to single spaces. A character that the training text
    lacked becomes UNKNOWN, which decodes to "⁇".

    Args:
        path: The file that `train_subwords` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or the first four tokens are others.
        ImportError: sentencepiece is not installed.
    """

    def __init__(self, path):
        import sentencepiece

        try:
            self._model = model = sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{str(path)!r} is damaged, or no vocabulary of SentencePiece") from error
        if (marks := (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id())) != MARKS:
            raise ValueError(f"PAD, UNKNOWN, START, END must be 0, 1, 2, 3 in {str(path)!r}. Received: {marks}")

    def __len__(self):
        return self._model.get_piece_size()

    def __bytes__(self):
        """Returns the content of the file."""
        return self._model.serialized_model_proto()

    def encode(self, sentences):
        """Returns a list of int32 arrays (subwords,), one for each string; START and END are not among them."""
        return [np.array(tokens, "int32") for tokens in self._model.encode([_utf8(text) for text in sentences])]

    def decode(self, rows):
        """Returns a string for each row of tokens, read up to its first END; PAD and START are skipped.

        Args:
            rows: Integers (batch, time), or a list of arrays (subwords,).
        """
        rows = [np.asarray(row).tolist() for row in rows]
        return self._model.decode([row[: row.index(END)] if END in row else row for row in rows])

    def pieces(self, sentence):
        """Returns the pieces of one string as text; "▁" stands for a space."""
        return [self._model.id_to_piece(int(token)) for token in self.encode([sentence])[0]]


def _utf8(text):
    return str(text).encode("utf-8", "replace")  # half a surrogate pair, which no UTF-8 has, becomes "?"


class PairBatches(EpochPipeline):
    """Cuts batches out of pairs of token sequences, each of pairs of similar length, to pad little.

    Both sides of a pair are padded to a multiple of `width`, so there are few shapes: 7 where `longest` is 40. Pairs
    are shuffled, sorted by that multiple, cut into batches, and the batches shuffled. What is left of one length goes
    into the first batch of the next, so that only one batch of an epoch is smaller. Keras' loss is the mean over
    batches, so tokens of short sentences weigh a little more.

        data = PairBatches(english.encode(x), german.encode(y), batch_size=64, seed=0)
        model.fit(data, epochs=20, callbacks=[Resume("runs/multi30k", data)])

    Args:
        sources: List of integer arrays (subwords,), as `Subwords.encode` returns them.
        targets: The same for the other side.
        batch_size: Pairs in a batch, an integer >= 1.
        seed: Integer >= 0. It and the number of the epoch decide the batches.
        longest: Most subwords of a side, an integer >= 1. Pairs with a longer one are left out. END is not counted.
        width: Sequences are padded to multiples of it, an integer >= 1.
        divisor: Batches are filled to a multiple of it with rows of PAD alone, which count nowhere, so that as many
            devices can share each batch equally; an integer >= 1.

    Attributes:
        examples: Number of pairs kept.
        dropped: Number of pairs left out.
        padding_share: Share of padding among the positions of both sides, the same in every epoch.
        shapes: List of the different (pairs, time) of the batches.

    A batch is ((source, target), labels), int32 of shape (pairs, time) each: a source ends with END, a target begins
    with START, and the labels are the same target one step ahead, with END behind it. An empty sentence is END alone.
    `evaluate` reads the batches by length, the longest first, then from the shortest up.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, the two lists differ in length, no
            pair is left, or PAD, START or END stand in a sequence.

    Example:

    >>> data = PairBatches([[4, 5], [6], [7, 8, 9]], [[5], [6, 7], [8, 9, 4]], batch_size=2, longest=2, width=2)
    >>> (source, target), labels = data[0]
    >>> source.tolist(), target.tolist(), labels.tolist()
    ([[4, 5, 3, 0], [6, 3, 0, 0]], [[2, 5, 0, 0], [2, 6, 7, 0]], [[5, 3, 0, 0], [6, 7, 3, 0]])
    >>> data.dropped, data.padding_share
    (1, 0.375)
    """

    def __init__(self, sources, targets, batch_size, seed=0, longest=40, width=6, divisor=1):
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        longest, width = check_integer("longest", longest, at_least=1), check_integer("width", width, at_least=1)
        self._divisor = check_integer("divisor", divisor, at_least=1)
        if len(sources) != len(targets):
            raise ValueError(f"`sources` and `targets` must be equally many. Received: {len(sources)}, {len(targets)}")
        kept = [pair for pair in zip(sources, targets) if max(map(len, pair)) <= longest]
        if not kept:
            raise ValueError(f"`longest` must leave some of {len(sources)} pairs. Received: longest={longest}")
        self.examples, self.dropped = len(kept), len(sources) - len(kept)
        (sources, targets), most = zip(*kept), -(-(longest + 1) // width) * width
        self._source, self._labels = _ended("sources", sources, most), _ended("targets", targets, most)
        lengths = [np.sum(side != PAD, axis=1) for side in (self._source, self._labels)]  # with END; (pairs,)
        self._widths = -(-np.maximum(*lengths) // width) * width
        *shorter, last = self._cuts(np.arange(self.examples))
        # The longest first: Keras on TensorFlow takes for fixed what the first two batches have in common.
        self._by_length = [last, *shorter]
        sizes = [(len(rows) + self._missing(rows), int(self._widths[rows[-1]])) for rows in self._by_length]
        self.shapes = sorted(set(sizes))
        self.padding_share = float(1 - np.sum(lengths) / (2 * np.sum(np.prod(sizes, axis=1))))
        settings = {"examples": self.examples, "batch_size": self.batch_size, "seed": self.seed, "width": width}
        super().__init__(self.batches, steps_per_epoch=len(sizes), fingerprint=settings)

    def __getitem__(self, index):
        """Returns batch `index` in the order in which `evaluate` reads them."""
        return self._batch(self._by_length[index])

    def batches(self, epoch, start=0):
        """Yields the batches of an epoch in its order, from batch `start` on.

        Args:
            epoch: Number of the epoch, an integer >= 0.
            start: Number of the first batch, an integer >= 0.
        """
        cuts = self._cuts(epoch_order(self.examples, self.seed, epoch))
        for number in np.random.default_rng([self.seed, epoch, 1]).permutation(len(cuts))[start:]:
            yield self._batch(cuts[number])

    def _cuts(self, order):
        """Returns the rows of each batch: those of `order`, by length."""
        order = order[np.argsort(self._widths[order], kind="stable")]
        return np.split(order, range(self.batch_size, self.examples, self.batch_size))

    def _missing(self, rows):
        return -len(rows) % self._divisor

    def _batch(self, rows):
        source, labels = (side[rows, : self._widths[rows[-1]]] for side in (self._source, self._labels))
        target = np.full_like(labels, START)
        target[:, 1:] = np.where(labels == END, PAD, labels)[:, :-1]
        if missing := self._missing(rows):
            source, target, labels = (np.pad(side, ((0, missing), (0, 0))) for side in (source, target, labels))
        return (source, target), labels


def _ended(name, sequences, time):
    """Returns the sequences with END behind each, int32 of shape (sequences, time)."""
    tokens = np.concatenate(sequences)
    if np.isin(tokens, (PAD, START, END)).any():
        raise ValueError(f"`{name}` must not hold PAD, START or END. Received: one of these tokens in a sequence")
    padded = keras.utils.pad_sequences(sequences, time, padding="post", value=PAD)
    padded[np.arange(len(padded)), list(map(len, sequences))] = END
    return padded
