"""Case study 2: translation by a recurrent network with attention, at four sizes with one code path.

    recipe = TranslationRecipe.preset("laptop")
    report = train_translation(recipe, "runs/phrases")
    Translator("runs/phrases")(["twenty-one horses"])

The same from the command line: `python -m nnopt train translation --preset laptop --output runs/phrases`.
"""

import dataclasses
import functools
import json
import math
import pathlib
import tempfile
import time
from typing import Literal

import keras
import numpy as np
from keras import ops

from nnopt import optimizers, schedules
from nnopt._backend import quiet_tensorflow
from nnopt.callbacks import EarlyStopping
from nnopt.checks import check_boolean, check_integer, check_number
from nnopt.data import text
from nnopt.data.text import END, PAD, START, UNKNOWN
from nnopt.decoding import beam_search
from nnopt.models import seq2seq
from nnopt.recipes import running
from nnopt.recipes.hosts import Hosts
from nnopt.recipes.recipe import Recipe

BATCH = 64  # sentences that are decoded at once
WIDTH = 6  # sources are padded to multiples of it, so that a decoder is compiled for few shapes
PHRASES = 6000  # training pairs of `phrases`, where a recipe names no number
SHOWN = 3  # test sentences whose attention the report draws


@dataclasses.dataclass(frozen=True)
class TranslationRecipe(Recipe):
    """Every setting of the second case study.

    Args:
        data: "phrases" (embedded), "multi30k" or "wmt14"; see `nnopt.data`.
        direction: "en-de" or "de-en".
        pairs: The first so many training pairs are used, an integer >= 1; None for all (of `phrases` 6,000).
        vocabulary: Subwords of the joint vocabulary, >= 8, the four marks among them.
        longest: Training pairs with a side of more subwords are left out, >= 1.
        cell: "gru" or "lstm".
        attention: "bahdanau", "luong" or "none"; see `nnopt.models.seq2seq`.
        layers: Layers of the encoder and of the decoder, >= 1.
        units: Units of each, >= 1.
        embedding: Width of the subwords' vectors, >= 1.
        dropout: Share set to zero in training, in [0, 1).
        variational: Whether dropout has one draw for all positions of a sentence.
        l2: Weight of the sum of the squared kernels in the loss, >= 0.
        label_smoothing: In [0, 1): this share of the target is spread over all subwords.
        optimizer: "adamw", or "adam", the article's.
        learning_rate: Its highest value, > 0.
        weight_decay: AdamW's, >= 0; must be 0 for "adam".
        warmup: Share of the steps in which the rate rises from 0, in [0, 1).
        final_share: What is left of the rate at the end, in (0, 1]; it falls exponentially.
        clip: Largest norm of the gradient, > 0.
        epochs: >= 1.
        batch_size: Pairs, >= 1.
        averaging: The weights that are tested are a moving average over about so many epochs, >= 0; 0 for the last
            ones. Polyak's average, the same in effect as one over the last checkpoints.
        patience: Epochs without improvement after which training stops and the best weights come back, or None. It
            needs averaging=0, since the average has no best epoch.
        monitor: What must improve: "val_loss" or "val_bleu" (of greedy search).
        beam_width: Beams of the test, >= 1.
        length_penalty: Its exponent, >= 0, as in `nnopt.decoding.beam_search`.
        precision: "float32" or "mixed_bfloat16".
        seed: Integer >= 0 of the initial weights, the order of the pairs and dropout.

    Raises:
        TypeError, ValueError: A field is of the wrong type or out of its range.

    Example:

    >>> recipe = TranslationRecipe.preset("cpu")
    >>> recipe.data, recipe.units, recipe.replace(units=64).units
    ('multi30k', 256, 64)
    """

    data: Literal["phrases", "multi30k", "wmt14"] = "phrases"
    direction: Literal["en-de", "de-en"] = "en-de"
    pairs: int | None = None
    vocabulary: int = 400
    longest: int = 40
    cell: Literal["gru", "lstm"] = "gru"
    attention: Literal["bahdanau", "luong", "none"] = "luong"
    layers: int = 1
    units: int = 128
    embedding: int = 128
    dropout: float = 0.1
    variational: bool = False
    l2: float = 0.0
    label_smoothing: float = 0.1
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    final_share: float = 0.05
    clip: float = 1.0
    epochs: int = 10
    batch_size: int = 64
    averaging: float = 1.0
    patience: int | None = None
    monitor: Literal["val_loss", "val_bleu"] = "val_bleu"
    beam_width: int = 4
    length_penalty: float = 1.0
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self):
        self.check_choices()
        least = {"vocabulary": 8, "longest": 1, "layers": 1, "units": 1, "embedding": 1, "epochs": 1, "batch_size": 1,
                 "beam_width": 1, "seed": 0, "pairs": 1, "patience": 0}  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) is not None or name not in ("pairs", "patience"):
                check_integer(name, getattr(self, name), at_least=value)
        for name in ("dropout", "label_smoothing", "warmup"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        for name in ("l2", "weight_decay", "averaging", "length_penalty"):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("learning_rate", "clip"):
            check_number(name, getattr(self, name), above=0)
        check_number("final_share", self.final_share, above=0, at_most=1)
        check_boolean("variational", self.variational)
        self.refuse_broken(
            {
                "weight_decay": (
                    "0 with optimizer='adam', which has none: take 'adamw', or set it to 0",
                    self.optimizer != "adam" or self.weight_decay == 0,
                ),
                "patience": (
                    "None where averaging > 0, whose average has no best epoch",
                    self.patience is None or self.averaging == 0,
                ),
            }
        )

    def load(self, train=True):
        """Returns the sentence pairs, a `Dataset`; without the training part, where that saves a download."""
        if self.data == "multi30k":
            data = text.multi30k(self.direction)
        elif self.data == "wmt14":
            data = text.wmt14(self.direction, train=train)
        else:
            from nnopt.data.number_phrases import phrases

            data = phrases(pairs=(self.pairs or PHRASES, 500, 500))
            if self.direction == "de-en":
                parts = {part: getattr(data, part)[::-1] for part in ("train", "validation", "test")}
                data = dataclasses.replace(data, **parts)
        return dataclasses.replace(data, train=tuple(side[: self.pairs] for side in data.train))

    def batches(self, pairs, subwords, **options):
        """Returns the `PairBatches` of one part of the data.

        Args:
            pairs: The part, (x, y).
            subwords: The vocabulary, `Subwords`.
            **options: Other arguments of `PairBatches`.
        """
        sources, targets = map(subwords.encode, pairs)
        options = {"batch_size": self.batch_size, "seed": self.seed, "longest": self.longest, **options}
        return text.PairBatches(sources, targets, **options)

    def build_optimizer(self, steps_per_epoch):
        """Returns the optimizer with its schedule, clipping and averaging; decay leaves biases alone.

        Args:
            steps_per_epoch: Batches of an epoch, an integer >= 1.
        """
        total = self.epochs * check_integer("steps_per_epoch", steps_per_epoch, at_least=1)
        rising = round(self.warmup * total)
        falling = schedules.ExponentialDecay(self.learning_rate, max(total - rising, 1), self.final_share)
        options = {"learning_rate": schedules.Warmup(falling, rising), "global_clipnorm": self.clip}
        if self.averaging:
            momentum = 1 - 1 / max(1.0, self.averaging * steps_per_epoch)
            options.update(use_ema=True, ema_momentum=momentum)
        if self.optimizer == "adam":
            return keras.optimizers.Adam(**options)
        optimizer = optimizers.AdamW(weight_decay=self.weight_decay, **options)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    def build_network(self, vocabulary):
        """Returns the network, ending in logits; see `nnopt.models.seq2seq`.

        Args:
            vocabulary: Number of tokens, an integer >= 2.
        """
        with running.dtype_policy(self.precision):
            network = seq2seq(
                vocabulary, vocabulary, self.units, embedding=self.embedding, cell=self.cell,
                attention=None if self.attention == "none" else self.attention, layers=self.layers,
                dropout=self.dropout, variational=self.variational, seed=self.seed,
            )  # fmt: skip
        for weight in network.trainable_weights if self.l2 else ():
            if "kernel" in weight.name:
                weight.regularizer = keras.regularizers.L2(self.l2)
        return network

    def build_training_model(self, vocabulary, steps_per_epoch, jit_compile="auto"):
        """Returns the network, compiled.

        Args:
            vocabulary: Number of tokens, an integer >= 2.
            steps_per_epoch: Batches of an epoch, an integer >= 1.
            jit_compile: As in `keras.Model.compile`.
        """
        network = self.build_network(vocabulary)
        network.compile(
            self.build_optimizer(steps_per_epoch),
            loss=functools.partial(smoothed_cross_entropy, smoothing=self.label_smoothing),
            jit_compile=jit_compile,
        )
        return network


def smoothed_cross_entropy(labels, logits, smoothing):
    """Returns the cross-entropy with smoothed labels, float (batch, time), in nats.

    With z the logits, y the label and e the smoothing, `-(1 - e) log p_y - e mean_k log p_k`, which is
    `-log p_y + e (z_y - mean_k z_k)`: no label has to be written out over the vocabulary.

    Args:
        labels: Integers (batch, time).
        logits: (batch, time, vocabulary).
        smoothing: e, in [0, 1).

    Reference: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", section 7.
    """
    labels = ops.cast(labels, "int32")
    loss = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    if not smoothing:
        return loss
    own = ops.squeeze(ops.take_along_axis(logits, labels[..., None], axis=-1), -1)
    return loss + smoothing * (own - ops.mean(logits, axis=-1))


def laptop():
    """The notebook's data in minutes: phrases about numbers, a GRU of 128 units with attention.

    python -m nnopt train translation --preset laptop --output runs/phrases

    Took 3.6 minutes on two cores that were busy with other work. Reached BLEU 97.9 by greedy search, and 95.9 with a
    beam of 4, which finds shorter sentences of a higher score; 95 % interval 95.0 to 96.9. Without L2, and at a rate of
    0.003, greedy search reached 27.4.
    """
    return TranslationRecipe(learning_rate=1e-2, l2=1e-4)


def cpu():
    """Real data in under an hour on two cores: Multi30k, 4,000 subwords, a GRU of 256 units, Bahdanau's attention.

    KERAS_BACKEND=jax python -m nnopt train translation --preset cpu --output runs/multi30k

    Took 54.6 minutes on two cores that were busy with other work, on JAX. Reached BLEU 34.1 on test2016 with a beam of
    4, 95 % interval 32.5 to 35.7, and 33.3 by greedy search.
    """
    return TranslationRecipe(
        data="multi30k", vocabulary=4000, attention="bahdanau", units=256, embedding=256, dropout=0.3,
        learning_rate=2e-3, epochs=18,
    )  # fmt: skip


def gpu():
    """Minutes on one GPU: Multi30k, 8,000 subwords, two layers of LSTM of 512 units.

    KERAS_BACKEND=jax python -m nnopt train translation --preset gpu --output runs/multi30k-gpu

    Not run yet.
    """
    return TranslationRecipe(
        data="multi30k", vocabulary=8000, cell="lstm", attention="bahdanau", layers=2, units=512, embedding=512,
        dropout=0.3, learning_rate=1e-3, epochs=25, batch_size=128, beam_width=5,
    )  # fmt: skip


def paper():
    """The article's case: WMT14, 32,000 subwords, four layers of LSTM of 1,024 units.

    KERAS_BACKEND=jax python -m nnopt train translation --preset paper --strategy jax --output runs/wmt14

    Not run yet. The article's literal optimizer: --set optimizer=adam weight_decay=0
    """
    return TranslationRecipe(
        data="wmt14", vocabulary=32000, longest=50, cell="lstm", attention="bahdanau", layers=4, units=1024,
        embedding=1024, dropout=0.2, l2=1e-6, learning_rate=5e-4, weight_decay=0.0, epochs=10, batch_size=256,
        averaging=0.1, beam_width=10, precision="mixed_bfloat16",
    )  # fmt: skip


TranslationRecipe.presets = {function.__name__: function for function in (laptop, cpu, gpu, paper)}


class ValidationBLEU(keras.callbacks.Callback):
    """Adds "val_bleu", of greedy search on the validation part, to the logs of each epoch.

    Args:
        subwords: The vocabulary, `Subwords`.
        pairs: The validation part, (x, y).
    """

    def __init__(self, subwords, pairs):
        super().__init__()
        self._subwords, self._pairs = subwords, pairs

    def on_epoch_end(self, epoch, logs=None):
        logs["val_bleu"] = math.nan  # of weights that are no numbers, which the search would refuse
        if math.isfinite(logs["val_loss"]):
            logs["val_bleu"] = bleu(decode(self.model, self._subwords, self._pairs[0]), self._pairs[1])


def bleu(translations, references):
    """Returns sacreBLEU's BLEU (cased, 13a), 0 to 100."""
    import sacrebleu

    return sacrebleu.corpus_bleu(list(translations), [list(references)], force=True).score


def decode(network, subwords, sentences, beam_width=1, length_penalty=0.0):
    """Returns the best translation of each sentence.

    Args:
        network: What `seq2seq` or `transformer` returns.
        subwords: The vocabulary, `Subwords`.
        sentences: Strings, or arrays of tokens as `subwords.encode` returns them.
        beam_width: Beams, an integer >= 1; 1 is greedy search.
        length_penalty: As in `nnopt.decoding.beam_search`.
    """
    rows = [subwords.encode([row])[0] if isinstance(row, str) else row for row in sentences]
    found = [()] * len(rows)
    for places, batch in _batches(rows):
        with quiet_tensorflow():  # which would warn that it compiles for several shapes
            state = _encoder(network).predict_on_batch(batch)
        best = beam_search(
            network.step, state, START, END, beam_width, max_length=2 * batch.shape[1] + 8,
            length_penalty=length_penalty, forbidden_tokens=(PAD, UNKNOWN, START),
        )  # fmt: skip
        for place, tokens in zip(places, ops.convert_to_numpy(best.tokens)[:, 0]):
            found[place] = tokens[tokens != PAD]
    return subwords.decode(found)


def _batches(rows):
    """Yields places in `rows` and the batch of these rows, all of one padded length.

    So there is little padding and few shapes, and how long a translation may get does not depend on other sentences.
    """
    widths = [-(-(len(row) + 1) // WIDTH) * WIDTH for row in rows]
    for width in sorted(set(widths)):
        alike = [place for place in range(len(rows)) if widths[place] == width]
        for first in range(0, len(alike), BATCH):
            places = alike[first : first + BATCH]
            batch = np.full((1 << (len(places) - 1).bit_length(), width), PAD, "int32")
            batch[:, 0] = END  # also of the rows that only make the number of rows a power of two
            for row, place in zip(batch, places):
                row[: len(rows[place]) + 1] = [*rows[place], END]
            yield places, batch


@functools.lru_cache(maxsize=8)  # what is compiled is kept, such as from one epoch's validation to the next
def _encoder(network):
    return _Encoder(network)


class _Encoder(keras.Model):
    """Compiles `initial_state` on every backend."""

    def __init__(self, network):
        super().__init__(name="encoder")
        self.network = network

    def call(self, source):
        return self.network.initial_state(source)


def train_translation(recipe, output, *, strategy="none", save_every=200, hosts=(), index=0):
    """Trains by a recipe, tests, and writes a run folder that describes itself. Killed, it goes on where it was.

    The folder holds what `train_images` writes, and subwords.model (the vocabulary), and translations.tsv (source,
    reference and translation of each test sentence).

    Args:
        recipe: A `TranslationRecipe`.
        output: Folder of this run, new or one that the same call began.
        strategy: "none", "mirrored" (TensorFlow's devices) or "jax" (JAX's devices).
        save_every: Batches between two checkpoints within an epoch, an integer >= 1.
        hosts, index: With strategy "jax" the addresses of all hosts that train together, and this one's place among
            them: see `nnopt.recipes.hosts.Hosts`. Only the first one writes to `output`.

    Returns:
        The report, a dict.

    Raises:
        ValueError: The folder holds another run, another process trains in it, or the strategy does not fit backend or
            data.
        OSError: The data set is missing, or the folder cannot be written.
        ImportError: sentencepiece or sacrebleu is not installed.
        ConnectionError: Another host has left the training.
        FloatingPointError: The loss became NaN.
    """
    hosts = Hosts(hosts, index, strategy)
    with hosts.together():
        return _train(recipe, hosts.folder(output), running.Devices(strategy), hosts, save_every)


def _train(recipe, folder, devices, hosts, save_every):
    folder.check(recipe)
    data = recipe.load()
    devices.check_batches([], recipe.batch_size)  # the others are filled
    subwords, train, validation = prepared(recipe, data, folder, devices.divisor)
    settings = folder.begin(recipe, devices, choose_jit)
    folder.write("subwords.model", bytes(subwords))
    callbacks = [ValidationBLEU(subwords, data.validation)]
    if recipe.patience is not None:
        callbacks.append(_early_stopping(recipe))
    with folder.alone():
        model = built(recipe, subwords, train, devices, settings["jit_compile"])
        training = running.fit(
            model, train, validation, train.examples, recipe.epochs, folder, devices, hosts, save_every, callbacks
        )
        network = recipe.build_network(len(subwords))  # without an optimizer
        network.set_weights(model.get_weights())
        folder.save_model(network)
        training |= {"pairs": train.examples, "dropped": train.dropped, "padding_share": train.padding_share}
        return _report(folder, recipe, data, {**training, **settings})


def prepared(recipe, data, folder, divisor=1):
    """Returns the vocabulary, and the training and the validation batches; nothing is written, since it may be refused.

    Args:
        recipe: A `TranslationRecipe`.
        data: What its `load` returned.
        folder: The `RunFolder`, whose vocabulary is taken where it has one.
        divisor: As in `PairBatches`.
    """
    path = folder.path / "subwords.model"
    if path.exists():
        subwords = text.Subwords(path)
    else:
        with tempfile.TemporaryDirectory() as place:
            sentences = [*data.train[0], *data.train[1]]
            subwords = text.train_subwords(sentences, recipe.vocabulary, pathlib.Path(place, path.name))
    batches = [recipe.batches(part, subwords, divisor=divisor) for part in (data.train, data.validation)]
    return subwords, *batches


def choose_jit():
    """Returns what a run gives to `compile` as `jit_compile`.

    TensorFlow's XLA would compile each shape of a batch, and cannot compile Bahdanau's attention in training.
    """
    return False if keras.backend.backend() == "tensorflow" else "auto"


def built(recipe, subwords, train, devices, jit_compile):
    """Returns the model compiled on its devices, with the random generators at the recipe's seed.

    Args:
        recipe: A `TranslationRecipe`.
        subwords: The vocabulary, `Subwords`.
        train: The training batches.
        devices: The `Devices`.
        jit_compile: As in `keras.Model.compile`.
    """
    keras.utils.set_random_seed(recipe.seed)
    with devices.scope():
        return recipe.build_training_model(len(subwords), len(train), jit_compile)


def _early_stopping(recipe):
    mode = "max" if recipe.monitor == "val_bleu" else "min"
    return EarlyStopping(recipe.monitor, patience=recipe.patience, mode=mode)


def test_translation(output):
    """Tests the network of a finished run again, and writes its report and its translations anew.

    Args:
        output: The run folder.

    Returns:
        The report, a dict.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """
    folder = running.RunFolder(output)
    recipe = folder.recipe(TranslationRecipe)
    return _report(folder, recipe, recipe.load(train=False), folder.report()["training"])


def _report(folder, recipe, data, training):
    from nnopt.recipes import translation_report as reports

    network, subwords = _loaded(folder)
    beam = {"beam_width": recipe.beam_width, "length_penalty": recipe.length_penalty}
    began = time.perf_counter()
    translations = decode(network, subwords, data.test[0], **beam)
    seconds = time.perf_counter() - began
    validation = {name: bleu(decode(network, subwords, data.validation[0], **options), data.validation[1])
                  for name, options in {"greedy": {}, "beam": beam}.items()}  # fmt: skip
    report = {
        "recipe": json.loads(recipe.to_json()),
        "data": data.description,
        "parameters": network.count_params(),
        **reports.measure(translations, data.test[1]),
        "bleu_greedy": bleu(decode(network, subwords, data.test[0]), data.test[1]),
        "validation_bleu": validation,
        "sentences_per_second": len(translations) / seconds,
        "training": training,
    }
    pictures = []
    if recipe.attention != "none":
        pictures = [attention(network, subwords, *pair) for pair in zip(data.test[0][:SHOWN], translations)]
    reports.draw(report, folder.history(), pictures, folder.path)
    rows = zip(data.test[0], data.test[1], translations)
    folder.write("translations.tsv", "".join("\t".join(row) + "\n" for row in rows))
    folder.write("report.json", json.dumps(report, indent=1) + "\n")
    return report


def _loaded(folder):
    network, subwords = folder.load_model(), text.Subwords(folder.path / "subwords.model")
    if (size := network.settings["source_vocabulary"]) != len(subwords):
        raise ValueError(f"The vocabulary of {folder.path} must have {size} subwords. Received: {len(subwords)}")
    return network, subwords


def attention(network, subwords, source, translation):
    """Returns the weights (target subwords, source subwords), END included, and the subwords of both sides.

    Args:
        network: What `seq2seq` returns, with attention.
        subwords: The vocabulary, `Subwords`.
        source: A sentence.
        translation: Its translation, by which the decoder is led.

    Returns:
        (weights, target pieces, source pieces).
    """
    x, y = subwords.encode([source, translation])
    weights = network.attention_weights([np.array([[*x, END]]), np.array([[START, *y]])])
    pieces = [[*subwords.pieces(sentence), "end"] for sentence in (translation, source)]
    return ops.convert_to_numpy(weights)[0], *pieces


class Translator:
    """The network of a finished run with its vocabulary: a function from sentences to translations.

    Args:
        output: The run folder.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """

    def __init__(self, output):
        folder = running.RunFolder(output)
        self.recipe = folder.recipe(TranslationRecipe)
        self.network, self.subwords = _loaded(folder)

    def __call__(self, sentences, beam_width=None):
        """Returns the translations, and a list of remarks for each sentence: what was unknown, what was cut.

        A sentence of more subwords than the recipe's `longest` is translated in pieces of that length; white space
        alone becomes "".

        Args:
            sentences: Strings.
            beam_width: Beams, an integer >= 1; None for the recipe's.
        """
        longest = self.recipe.longest
        pieces, owners, remarks = [], [], [[] for _ in sentences]
        for number, tokens in enumerate(self.subwords.encode(sentences)):
            cut = [tokens[first : first + longest] for first in range(0, len(tokens), longest)]
            pieces += cut
            owners += [number] * len(cut)
            if unknown := int(np.sum(tokens == UNKNOWN)):
                remarks[number].append(f"places with characters unknown to the vocabulary: {unknown}")
            if len(cut) > 1:
                remarks[number].append(f"{len(tokens)} subwords, translated in {len(cut)} pieces")
        width = self.recipe.beam_width if beam_width is None else beam_width
        found = [[] for _ in sentences]
        for owner, piece in zip(owners, decode(self.network, self.subwords, pieces, width, self.recipe.length_penalty)):
            found[owner].append(piece)
        return [" ".join(parts) for parts in found], remarks

    def stream(self, source, beam_width=None, block=2**16):
        """Yields translation and remarks for each line of UTF-8 text, as soon as it comes, many at once where many are.

        Args:
            source: A binary file.
            beam_width: As in a call.
            block: Bytes that are read at once.
        """
        for lines in _arriving(source, block):
            texts = [line.decode("utf-8", "replace") for line in lines]
            for line, sentence, translation, remarks in zip(lines, texts, *self(texts, beam_width)):
                if sentence.encode() != line:
                    remarks.insert(0, "bytes that are not UTF-8, read as \N{REPLACEMENT CHARACTER}")
                yield translation, remarks


def _arriving(source, block):
    """Yields the lines that are there, as lists of bytes; waits for a whole line where there is none."""
    rest = b""
    while chunk := source.read1(block):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield [line.removesuffix(b"\r") for line in lines]
    if rest:
        yield [rest]
