"""The second case study's recipe, its loss, its decoding, its training, its report, its run folder, and its search."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import sacrebleu
from devices import losses_on_one_and_two
from ports import free_ports
from small_phrases import FAST, quicken, small

from nnopt import recipes
from nnopt.data import number_phrases, train_subwords
from nnopt.data.text import END, PAD, START, UNKNOWN, Subwords
from nnopt.decoding import beam_search
from nnopt.recipes import TranslationRecipe, Translator, grid_search, running, search, translation, translation_report

ROOT = Path(__file__).resolve().parents[1]
TINY = TranslationRecipe(
    pairs=120, vocabulary=150, longest=23, units=8, embedding=8, epochs=2, batch_size=32, learning_rate=0.02,
    beam_width=3, length_penalty=0.6,
)  # fmt: skip
QUICK = TINY.replace(attention="none", longest=17, batch_size=16)  # one batch of short pairs
# KerasTuner's own.
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName)", "ignore:All-NaN axis:RuntimeWarning")


# The recipe


@pytest.mark.parametrize("name", TranslationRecipe.presets)
def test_a_preset_survives_json_and_is_shown_whole(name):
    recipe = TranslationRecipe.preset(name)
    assert TranslationRecipe.from_json(recipe.to_json()) == recipe
    assert [line.split()[0] for line in str(recipe).splitlines()] == list(json.loads(recipe.to_json()))
    assert getattr(translation, name) is TranslationRecipe.presets[name]


@pytest.mark.parametrize("name", TranslationRecipe.presets)
def test_a_presets_docstring_says_what_the_committed_run_reached(name):
    text = TranslationRecipe.presets[name].__doc__
    assert f"--preset {name}" in text
    path = ROOT / "figures" / "results" / f"translation_{name}.json"
    if not path.exists():
        assert "Not run yet." in text
        return
    stored = json.loads(path.read_text("utf-8"))
    assert TranslationRecipe.from_json(json.dumps(stored["recipe"])) == TranslationRecipe.preset(name)
    assert f"{stored['bleu']:.1f}" in text
    minutes = float(re.search(r"([\d.]+) minutes", text)[1])
    assert minutes == pytest.approx(stored["training"]["seconds"] / 60, abs=0.6)


WRONG = {
    "data": ("wmt16", None), "direction": ("en-fr", 1), "pairs": (0, 2.5), "vocabulary": (7, "400"),
    "longest": (0, None), "cell": ("rnn", 3), "attention": ("dot", None), "layers": (0, 1.0), "units": (0, "8"),
    "embedding": (0, None), "dropout": (1.0, "0.1"), "variational": (1, "yes"), "l2": (-1e-9, None),
    "label_smoothing": (1.0, True), "optimizer": ("sgd", None), "learning_rate": (0.0, "1e-3"),
    "weight_decay": (-0.1, None), "warmup": (1.0, "0"), "final_share": (0.0, None), "clip": (0.0, None),
    "epochs": (0, 1.5), "batch_size": (0, None), "averaging": (-1.0, None), "patience": (-1, 1.5),
    "monitor": ("loss", None), "beam_width": (0, 2.0), "length_penalty": (-0.5, "average"),
    "precision": ("float16", None), "seed": (-1, None),
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TranslationRecipe)])
def test_a_field_of_a_wrong_range_or_type_is_named_with_its_rule_and_value(name):
    for value in WRONG[name]:
        expected = f"^`{name}` must be .*Received: {name}={re.escape(repr(value))}"
        with pytest.raises((TypeError, ValueError), match=expected):
            TranslationRecipe().replace(**{"averaging": 0.0, name: value})


@pytest.mark.parametrize("name", ["learning_rate", "l2", "dropout", "averaging", "length_penalty", "clip"])
def test_no_number_may_be_infinite_or_none_at_all(name):
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number"):
            TranslationRecipe().replace(**{name: value})


def test_adam_with_weight_decay_and_patience_with_an_average_are_refused():
    with pytest.raises(ValueError, match=r"`weight_decay` must be 0 with optimizer='adam'.*weight_decay=0\.01"):
        TranslationRecipe(optimizer="adam")
    with pytest.raises(ValueError, match=r"`patience` must be None where averaging > 0.*Received: patience=2"):
        TranslationRecipe(patience=2)
    assert TranslationRecipe(optimizer="adam", weight_decay=0.0, patience=2, averaging=0.0).patience == 2


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="lr"):
        TranslationRecipe().replace(lr=0.1)


@pytest.mark.parametrize("text", ["[]", '{"data": "phrases"}', "no JSON", ""])
def test_a_file_that_is_no_recipe_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError, match=r"^A recipe must .*Received: "):
        TranslationRecipe.from_json(text)


def test_the_rate_rises_in_a_line_and_then_falls_exponentially_to_its_share():
    recipe = TranslationRecipe(learning_rate=0.2, warmup=0.25, final_share=0.1, epochs=4)
    rate = recipe.build_optimizer(steps_per_epoch=5)._learning_rate
    steps = np.arange(21)
    expected = np.where(steps < 5, 0.2 * steps / 5, 0.2 * 0.1 ** ((steps - 5) / 15))
    np.testing.assert_allclose([float(rate(step)) for step in steps], expected, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_step_without_gradient_shrinks_all_but_biases(optimizer):
    decay = 0.5 if optimizer == "adamw" else 0.0
    recipe = TINY.replace(optimizer=optimizer, weight_decay=decay, warmup=0.0, learning_rate=0.1, averaging=0.0)
    weights = recipe.build_network(20).trainable_weights
    for weight in weights:
        weight.assign(np.ones(weight.shape))
    recipe.build_optimizer(5).apply([keras.ops.zeros(weight.shape) for weight in weights], weights)
    for weight in weights:
        expected = 1.0 if weight.path.endswith("bias") else 1 - 0.1 * decay
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), expected, rtol=1e-6)


def test_the_network_is_that_of_the_fields():
    recipe = TINY.replace(cell="lstm", attention="bahdanau", layers=3, dropout=0.3, variational=True, seed=4)
    expected = {"units": 8, "embedding": 8, "cell": "lstm", "attention": "bahdanau", "layers": 3, "dropout": 0.3}
    expected |= {"variational": True, "seed": 4, "source_vocabulary": 20, "target_vocabulary": 20}
    assert recipe.build_network(20).settings == expected
    assert TINY.replace(attention="none").build_network(20).attention is None
    assert TINY.replace(precision="mixed_bfloat16").build_network(20).compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_the_article_s_network_has_four_layers_of_1024_units():
    settings = TranslationRecipe.preset("paper").replace(vocabulary=8)
    assert (settings.cell, settings.layers, settings.units, settings.beam_width) == ("lstm", 4, 1024, 10)


# The loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_smoothed_loss_is_that_of_keras_on_labels_written_out(smoothing, seed):
    random = np.random.default_rng(seed)
    batch, time, vocabulary = random.integers(1, 9, 3)
    logits = (random.normal(size=(batch, time, vocabulary)) * 10 ** random.uniform(-2, 1.5)).astype("float32")
    labels = random.integers(0, vocabulary, (batch, time))
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    found = translation.smoothed_cross_entropy(labels, logits, smoothing)
    expected = np.asarray(keras.ops.convert_to_numpy(expected(np.eye(vocabulary)[labels], logits)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_is_a_mean_over_tokens_without_padding():
    model = TINY.replace(label_smoothing=0.3, dropout=0.0).build_training_model(20, 5, jit_compile=False)
    source, target = np.array([[5, 6, END], [7, END, PAD]]), np.array([[START, 8, 9], [START, PAD, PAD]])
    labels = np.array([[8, 9, END], [END, PAD, PAD]])
    logits = keras.ops.convert_to_numpy(model([source, target]))
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    real = labels != PAD
    expected = float(expected(np.eye(20)[labels[real]], logits[real]))
    assert float(model.evaluate([source, target], labels, verbose=0)) == pytest.approx(expected, rel=1e-5)


def test_l2_adds_the_squares_of_the_kernels_alone():
    model = TINY.replace(l2=0.25).build_network(20)
    for weight in model.trainable_weights:
        weight.assign(np.full(weight.shape, 0.5))
    kinds = {weight.path.split("/")[-1] for weight in model.trainable_weights}
    assert kinds == {"kernel", "recurrent_kernel", "bias", "embeddings"}
    numbers = sum(math.prod(w.shape) for w in model.trainable_weights if w.path.endswith("kernel"))
    assert float(keras.ops.convert_to_numpy(sum(model.losses))) == pytest.approx(0.25 * numbers * 0.5**2, rel=1e-5)
    assert not TINY.build_network(20).losses


# Decoding


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    data = small(pairs=(120, 8, 8))
    return train_subwords([*data.train[0], *data.train[1]], 150, tmp_path_factory.mktemp("subwords") / "joint.model")


@pytest.fixture(scope="module")
def network():
    """A network that says different things of different sentences, and ends at different lengths."""
    model, random = TINY.build_network(150), np.random.default_rng(3)
    for weight in model.trainable_weights:
        weight.assign(0.7 * random.normal(size=weight.shape))
    model.logits.bias.assign(np.where(np.arange(150) == END, 2.0, model.logits.bias))
    return model


class Tokens:
    """In the place of the vocabulary: tokens stay what they are."""

    @staticmethod
    def decode(rows):
        return [tuple(np.asarray(row).tolist()) for row in rows]


def sentences(count, longest, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(4, 150, random.integers(0, longest + 1)).astype("int32") for _ in range(count)]


def test_a_translation_depends_neither_on_the_other_sentences_nor_on_their_order(network):
    rows = [*sentences(5, 11), *sentences(2, 5, seed=1)]
    together = translation.decode(network, Tokens, rows, 2, 0.6)
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = translation.decode(network, Tokens, [rows[place] for place in order], 2, 0.6)
    assert shuffled == [together[place] for place in order]
    assert [translation.decode(network, Tokens, [row], 2, 0.6)[0] for row in rows] == together
    assert len(set(together)) > 1


def test_how_long_a_translation_may_get_depends_on_its_own_sentence_alone():
    endless = TINY.build_network(150)
    endless.logits.bias.assign(np.where(np.arange(150) == END, -100.0, 0.0))
    short, long = np.full(2, 7), np.full(9, 7)
    alone = translation.decode(endless, Tokens, [short])
    assert [len(row) for row in translation.decode(endless, Tokens, [short, long])] == [2 * 6 + 8, 2 * 12 + 8]
    assert translation.decode(endless, Tokens, [long, short])[1:] == alone


def test_more_sentences_than_are_decoded_at_once_come_back_in_their_order(network):
    rows = sentences(translation.BATCH + 3, 5)
    found = translation.decode(network, Tokens, rows)
    first = translation.decode(network, Tokens, rows[:4])
    last = translation.decode(network, Tokens, rows[-4:])
    assert len(found) == translation.BATCH + 3
    assert (found[:4], found[-4:]) == (first, last)


def test_nothing_to_translate_gives_nothing(network, vocabulary):
    assert list(translation.decode(network, vocabulary, [])) == []


def test_an_empty_sentence_is_translated_like_any_other(network, vocabulary):
    (found,) = translation.decode(network, vocabulary, [""])
    assert isinstance(found, str)
    assert translation.decode(network, vocabulary, ["a", ""])[1] == found


def log_probabilities(network, rows, translations):
    """The sums over each translation and its END, by teacher forcing."""
    source, target = np.zeros((len(rows), 50), int), np.zeros((len(rows), 50), int)
    for number, (row, tokens) in enumerate(zip(rows, translations)):
        source[number, : len(row) + 1] = [*row, END]
        target[number, : len(tokens) + 1] = [START, *tokens]
    shares = keras.ops.convert_to_numpy(keras.ops.log_softmax(network([source, target])))
    return np.array(
        [
            sum(own[place, token] for place, token in enumerate([*tokens, END]))
            for own, tokens in zip(shares, translations)
        ]
    )


def test_more_beams_find_translations_of_a_higher_probability(network):
    rows = sentences(6, 5, seed=2)
    searched = {width: translation.decode(network, Tokens, rows, width) for width in (1, 6)}
    found = log_probabilities(network, [*rows, *rows], [*searched[1], *searched[6]])
    greedy, beam = found[:6], found[6:]
    assert (beam >= greedy - 1e-4).all()
    assert beam.mean() > greedy.mean() + 0.1


def test_decoding_is_beam_search_without_the_marks(network):
    row = sentences(1, 5, seed=4)[0][:5]
    source = np.array([[*row, END] + [PAD] * (5 - len(row))])
    expected = beam_search(
        network.step, network.initial_state(source), START, END, 3, 20, 0.6, forbidden_tokens=(PAD, UNKNOWN, START)
    )
    tokens = keras.ops.convert_to_numpy(expected.tokens)[0, 0]
    (found,) = translation.decode(network, Tokens, [row], 3, 0.6)
    assert found == tuple(tokens[tokens != PAD])
    assert not {PAD, UNKNOWN, START} & set(found)


def test_other_weights_of_the_same_network_give_other_translations(network):
    rows = sentences(4, 5)
    before = translation.decode(network, Tokens, rows)
    kept = network.get_weights()
    network.set_weights([-weight for weight in kept])
    assert translation.decode(network, Tokens, rows) != before
    network.set_weights(kept)
    assert translation.decode(network, Tokens, rows) == before


# The report


TEXTS = ["der alte Mann liest ein Buch .", "ein Hund läuft schnell .", "zwei Männer reiten über die Brücke .", ""]
REFERENCES = ["Der alte Mann liest ein Buch .", "der Hund läuft .", "drei Männer reiten über die Brücke .", "ja ."]


def test_the_measures_are_sacrebleus():
    found = translation_report.measure(TEXTS, REFERENCES)
    assert found["bleu"] == sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score == translation.bleu(TEXTS, REFERENCES)
    lower = sacrebleu.corpus_bleu(TEXTS, [REFERENCES], lowercase=True)
    assert found["bleu_lowercase"] == lower.score > found["bleu"] > 20
    assert found["chrf"] == sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score
    words = [sum(len(text.split()) for text in side) for side in (TEXTS, REFERENCES)]
    assert found["length_ratio"] == pytest.approx(words[0] / words[1])
    resampled = sacrebleu.metrics.BLEU(force=True).corpus_score(TEXTS, [REFERENCES], n_bootstrap=1000)
    interval = [resampled._mean - resampled._ci, resampled._mean + resampled._ci]
    assert found["bleu_interval"] == pytest.approx(interval, abs=2e-4)
    assert found["bleu_interval"][0] < found["bleu"] < found["bleu_interval"][1]
    assert all("tok:13a" in signature for signature in found["signatures"][:2])
    json.dumps(found)
    assert translation_report.measure(["x"], ["y"])["bleu_interval"] == [0.0, 0.0]


# The run


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(number_phrases, "phrases", small)
        yield


@pytest.fixture(scope="module")
def trajectory():
    """Weights after each batch of the run."""
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory, patched, trajectory):
    """An undisturbed run of TINY: its folder and what it returned."""
    after_batch = running.Progress.on_train_batch_end

    def note(progress, batch, logs=None):
        trajectory.append(progress.model.get_weights())
        after_batch(progress, batch, logs)

    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.Progress, "on_train_batch_end", note)
        return folder, recipes.train_translation(TINY, folder, save_every=2)


def weights(folder):
    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


def columns(path):
    return [list(column) for column in zip(*(line.split("\t") for line in path.read_text("utf-8").splitlines()))]


def without_times(report):
    return {**report, "sentences_per_second": None, "training": None}


def test_a_run_folder_describes_itself(run):
    folder, returned = run
    names = {path.name for path in folder.iterdir()}
    expected = {"recipe.json", "versions.json", "history.csv", "checkpoints", "model.keras", "report.json"}
    expected |= {"report.png", "subwords.model", "translations.tsv"}
    assert names - {"tensorboard"} == expected
    assert ("tensorboard" in names) == (keras.backend.backend() == "tensorflow")
    assert TranslationRecipe.from_json((folder / "recipe.json").read_text()) == TINY
    assert json.loads((folder / "versions.json").read_text())["versions"]["keras"] == keras.__version__
    assert json.loads((folder / "report.json").read_text()) == returned


def test_the_report_says_what_was_trained_and_tested(run):
    folder, report = run
    data, subwords = small(pairs=(120, 8, 8)), Subwords(folder / "subwords.model")
    lengths = [max(map(len, pair)) for pair in zip(*map(subwords.encode, data.train))]
    kept = sum(length <= 23 for length in lengths)
    assert 0 < kept < 120
    training = report["training"]
    assert (training["pairs"], training["dropped"]) == (kept, 120 - kept)
    assert (training["epochs"], training["steps"], training["starts"]) == (2, 2 * math.ceil(kept / 32), 1)
    assert (training["backend"], training["strategy"]) == (keras.backend.backend(), "none")
    assert report["parameters"] == TINY.build_network(150).count_params()
    assert report["recipe"] == json.loads(TINY.to_json())
    assert report["examples"] == 8
    expected = {"recipe", "data", "parameters", "examples", "bleu", "bleu_interval", "bleu_lowercase", "chrf"}
    expected |= {"length_ratio", "signatures", "bleu_greedy", "validation_bleu", "sentences_per_second", "training"}
    assert set(report) == expected
    shown = translation_report.summary(report)
    assert f"BLEU {report['bleu']:.2f} " in shown
    assert "with a beam of 3" in shown


def test_the_bleu_of_the_report_is_that_of_the_translations_beside_it(run):
    folder, report = run
    sources, references, translations = columns(folder / "translations.tsv")
    data = small(pairs=(120, 8, 8))
    assert (sources, references) == (data.test[0].tolist(), data.test[1].tolist())
    assert report["bleu"] == pytest.approx(sacrebleu.corpus_bleu(translations, [references]).score, abs=1e-12)
    assert report["chrf"] == pytest.approx(sacrebleu.corpus_chrf(translations, [references]).score, abs=1e-12)
    assert report["chrf"] > 0
    found, remarks = Translator(folder)(sources)
    assert found == translations
    assert remarks == [[]] * 8


def test_the_greedy_and_the_validation_bleu_are_of_other_translations(run):
    folder, report = run
    network, subwords = running.RunFolder(folder).load_model(), Subwords(folder / "subwords.model")
    data = small(pairs=(120, 8, 8))
    greedy = sacrebleu.corpus_bleu(translation.decode(network, subwords, data.test[0]), [data.test[1].tolist()]).score
    assert report["bleu_greedy"] == pytest.approx(greedy, abs=1e-12)
    beam = translation.decode(network, subwords, data.validation[0], 3, 0.6)
    assert report["validation_bleu"]["beam"] == pytest.approx(translation.bleu(beam, data.validation[1]), abs=1e-12)


def test_the_history_has_a_line_for_each_epoch_and_the_rate_in_it(run):
    history, steps = running.RunFolder(run[0]).history(), run[1]["training"]["steps"] // 2
    rate = TINY.build_optimizer(steps)._learning_rate
    assert history["epoch"] == [1, 2]
    assert history["learning_rate"] == pytest.approx([float(rate(steps)), float(rate(2 * steps))])
    assert set(history) == {"epoch", "loss", "val_loss", "val_bleu", "learning_rate"}


def test_the_weights_that_are_tested_are_the_moving_average_of_the_trajectory(run, trajectory):
    steps = len(trajectory) // 2
    momentum = 1 - 1 / steps
    average = trajectory[0]
    for after in trajectory[1:]:
        average = [momentum * old + (1 - momentum) * new for old, new in zip(average, after)]
    assert len(trajectory) == run[1]["training"]["steps"]
    for found, expected, last in zip(weights(run[0]), average, trajectory[-1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(found, last, rtol=1e-4, atol=1e-6)


def test_testing_again_gives_the_same_report(run):
    before = (run[0] / "translations.tsv").read_text("utf-8")
    assert without_times(recipes.test_translation(run[0])) == without_times(run[1])
    assert json.loads((run[0] / "report.json").read_text())["training"] == run[1]["training"]
    assert (run[0] / "translations.tsv").read_text("utf-8") == before


def test_the_attention_that_is_drawn_has_a_row_for_each_subword_and_its_end(run):
    network, subwords = running.RunFolder(run[0]).load_model(), Subwords(run[0] / "subwords.model")
    drawn, target, source = translation.attention(network, subwords, "the tower", "der Turm ist")
    assert (target, source) == ([*subwords.pieces("der Turm ist"), "end"], [*subwords.pieces("the tower"), "end"])
    assert drawn.shape == (len(target), len(source))
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-5)


def test_a_folder_of_another_recipe_is_refused_by_name(run):
    with pytest.raises(ValueError, match=r"another recipe.*Received: epochs 4, not 2; seed 1, not 0"):
        recipes.train_translation(TINY.replace(epochs=4, seed=1), run[0])


def test_a_folder_of_the_other_case_study_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="Received: another case study"):
        recipes.train_images(recipes.ImageRecipe(data="photos"), run[0])
    with pytest.raises(ValueError, match=r"recipe\.json cannot be read: A recipe must have exactly the fields of "):
        recipes.test_images(run[0])
    (tmp_path / "recipe.json").write_text(recipes.ImageRecipe().to_json())
    for use in (recipes.test_translation, Translator):
        with pytest.raises(ValueError, match=r"cannot be read: A recipe must have exactly the fields of Translation"):
            use(tmp_path)


def test_a_run_goes_on_only_with_its_own_backend(run):
    path = run[0] / "versions.json"
    stored = path.read_text()
    try:
        path.write_text(stored.replace(f'"backend": "{keras.backend.backend()}"', '"backend": "mxnet"'))
        with pytest.raises(ValueError, match=r"began with backend mxnet.*Received: backend "):
            recipes.train_translation(TINY, run[0])
    finally:
        path.write_text(stored)


def test_two_processes_do_not_train_in_one_folder(run):
    with running.RunFolder(run[0]).alone(), pytest.raises(ValueError, match="Another process is training in this"):
        recipes.train_translation(TINY, run[0])


def test_an_unfinished_run_is_neither_tested_nor_used(tmp_path):
    for use in (recipes.test_translation, Translator):
        with pytest.raises(FileNotFoundError, match="holds no finished run"):
            use(tmp_path)


def test_missing_data_leave_no_folder(tmp_path, monkeypatch):
    def missing(direction):
        raise ConnectionError("multi30k is not here")

    monkeypatch.setattr(translation.text, "multi30k", missing)
    with pytest.raises(ConnectionError, match="multi30k is not here"):
        recipes.train_translation(TINY.replace(data="multi30k"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("direction", ["en-de", "de-en"])
def test_the_direction_decides_which_side_is_the_source(direction, patched):
    data, forwards = TINY.replace(direction=direction, pairs=50).load(), small(pairs=(50, 8, 8))
    for part in ("train", "validation", "test"):
        sides = getattr(forwards, part) if direction == "en-de" else getattr(forwards, part)[::-1]
        assert [side.tolist() for side in getattr(data, part)] == [side.tolist() for side in sides]
    assert len(data.train[0]) == 50


def test_pairs_cuts_the_other_data_sets_alike(monkeypatch):
    monkeypatch.setattr(translation.text, "wmt14", lambda direction, train: small(pairs=(20, 8, 8)))
    data = TINY.replace(data="wmt14", pairs=7).load()
    assert (len(data.train[0]), len(data.train[1]), len(data.test[0])) == (7, 7, 8)


@pytest.fixture
def quick(monkeypatch):
    """See `quicken`."""
    quicken(monkeypatch)


class Measured:
    """In the place of BLEU: given values for the epochs, then 0; None is a Ctrl-C."""

    def __init__(self, *values):
        self.values = iter(values)

    def __call__(self, translations, references):
        value = next(self.values, 0.0)
        if value is None:
            raise KeyboardInterrupt
        return value


@pytest.mark.filterwarnings("ignore:The run in .* is stopped by a callback")
def test_patience_stops_early_and_gives_the_best_weights_also_over_a_restart(tmp_path, quick, monkeypatch):
    recipe = QUICK.replace(epochs=6, averaging=0.0, patience=1, monitor="val_bleu")
    kept = []
    epoch_end = running.HistoryFile.on_epoch_end

    def note(history, epoch, logs=None):
        kept.append(history.model.get_weights())
        epoch_end(history, epoch, logs)

    monkeypatch.setattr(running.HistoryFile, "on_epoch_end", note)
    monkeypatch.setattr(translation, "bleu", Measured(1.0, None))
    with pytest.raises(KeyboardInterrupt):
        recipes.train_translation(recipe, tmp_path)
    assert not (tmp_path / "report.json").exists()
    monkeypatch.setattr(translation, "bleu", Measured(5.0, 4.0))
    report = recipes.train_translation(recipe, tmp_path)
    again = recipes.train_translation(recipe, tmp_path)
    assert len(kept) == 3  # the last call trains nothing
    assert running.RunFolder(tmp_path).history()["val_bleu"] == [1.0, 5.0, 4.0]
    for training, starts in ((report["training"], 2), (again["training"], 3)):
        assert (training["epochs"], training["steps"], training["starts"]) == (3, 3, starts)
    for found, best, last in zip(weights(tmp_path), kept[1], kept[2], strict=True):
        np.testing.assert_array_equal(found, best)
        assert not np.array_equal(found, last)
    _, references, translations = columns(tmp_path / "translations.tsv")
    assert 50 < report["bleu"] == pytest.approx(sacrebleu.corpus_bleu(translations, [references]).score)


def test_a_loss_that_is_no_number_stops_the_run_and_reports_nothing(tmp_path, quick):
    recipe = QUICK.replace(learning_rate=1e38, warmup=0.0, epochs=3)
    with pytest.raises(FloatingPointError, match=r"The loss became (nan|inf) in epoch [123].*`learning_rate`"):
        recipes.train_translation(recipe, tmp_path / "run")
    assert not {"report.json", "model.keras"} & {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.thorough
def test_an_interrupted_run_ends_with_the_same_weights_and_report(run, tmp_path, monkeypatch):
    counted = {"batches": 0}
    after_batch = running.Progress.on_train_batch_end

    def interrupt(progress, batch, logs=None):
        counted["batches"] += 1
        if counted["batches"] in (3, 6):  # in the first epoch; in the second
            raise KeyboardInterrupt
        after_batch(progress, batch, logs)

    monkeypatch.setattr(running.Progress, "on_train_batch_end", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recipes.train_translation(TINY, tmp_path, save_every=1)
    report = recipes.train_translation(TINY, tmp_path, save_every=1)
    assert report["training"]["starts"] == 3
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(tmp_path), weights(run[0]), strict=True))
    assert (tmp_path / "history.csv").read_text() == (run[0] / "history.csv").read_text()
    assert without_times(report) == without_times(run[1])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "lstm", "attention": "bahdanau", "layers": 2, "variational": True, "dropout": 0.3, "l2": 1e-4},
        {"optimizer": "adam", "weight_decay": 0.0, "averaging": 0.5, "direction": "de-en", "label_smoothing": 0.0},
        {"precision": "mixed_bfloat16"},
        {"averaging": 0.0, "patience": 0, "monitor": "val_loss", "beam_width": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_recipes_train_and_are_tested_too(changes, patched, tmp_path):
    report = recipes.train_translation(TINY.replace(**changes), tmp_path)
    assert math.isfinite(report["bleu"])
    assert np.isfinite(running.RunFolder(tmp_path).history()["val_loss"]).all()
    assert without_times(recipes.test_translation(tmp_path)) == without_times(report)


# Using it


def test_a_translator_says_what_was_unknown_and_what_was_cut(run):
    translator = Translator(run[0])
    pieces = len(translator.subwords.encode([" ".join(["the tower"] * 20)])[0])
    lines = ["the tower", "the ☃ tower ☃☃", " ".join(["the tower"] * 20), "", " \t "]
    found, remarks = translator(lines, beam_width=1)
    assert remarks == [
        [],
        ["places with characters unknown to the vocabulary: 2"],
        [f"{pieces} subwords, translated in {math.ceil(pieces / 23)} pieces"],
        [],
        [],
    ]
    assert [len(text) > 0 for text in found] == [True, True, True, False, False]
    assert translator([lines[0]], beam_width=1)[0] == found[:1]


def test_a_long_sentence_is_the_translations_of_its_pieces(run):
    translator = Translator(run[0])
    (tokens,) = translator.subwords.encode([" ".join(["the tower is high"] * 6)])
    pieces = [tokens[first : first + 23] for first in range(0, len(tokens), 23)]
    expected = translation.decode(translator.network, translator.subwords, pieces, 3, 0.6)
    assert len(pieces) > 1
    assert translator([" ".join(["the tower is high"] * 6)])[0] == [" ".join(expected)]


class Source:
    """A binary file that gives what is there in given portions."""

    def __init__(self, *portions):
        self.portions = list(portions)

    def read1(self, size):
        return self.portions.pop(0) if self.portions else b""


def test_a_stream_is_translated_line_by_line_as_it_comes(run):
    translator = Translator(run[0])
    source = Source(b"the ", b"tower\r\nthe se", b"a\n\nder T\xc3", b"\xbcr\n", b"\xff")
    found = list(translator.stream(source, beam_width=1))
    lines = ["the tower", "the sea", "", "der T\xfcr", "\N{REPLACEMENT CHARACTER}"]
    assert [text for text, _ in found] == translator(lines, beam_width=1)[0]
    assert [len(remarks) for _, remarks in found[:3]] == [0, 0, 0]
    assert found[-1][1][0] == "bytes that are not UTF-8, read as \N{REPLACEMENT CHARACTER}"
    early = translator.stream(source := Source(b"the tower\nthe", b" sea\n"), beam_width=1)
    assert next(early)[0] == found[0][0]
    assert source.portions == [b" sea\n"]  # the first line did not wait for the second


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one bit": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "text": lambda content: b"at the sea\n" * 40,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["model.keras", "subwords.model", "recipe.json"])
def test_a_damaged_file_of_a_run_is_named(name, damage, run, tmp_path):
    for other in ("model.keras", "subwords.model", "recipe.json"):
        (tmp_path / other).write_bytes((run[0] / other).read_bytes())
    (tmp_path / name).write_bytes(DAMAGE[damage]((run[0] / name).read_bytes()))
    if (name, damage) == ("subwords.model", "one bit"):
        pytest.skip("it has no checksum")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        Translator(tmp_path)


# The search


class Trained:
    """In the place of a model: what its training measures is a function of the recipe."""

    def __init__(self, recipe, measured):
        self.recipe, self.measured = recipe, measured

    def fit(self, *_, epochs, callbacks, **__):
        assert epochs == self.recipe.epochs
        loss, bleu = self.measured(self.recipe)
        return type("History", (), {"history": {"val_loss": [9.0, loss], "val_bleu": [0.0, bleu]}})


@pytest.fixture
def trained(monkeypatch, patched):
    """Spares the trainings of a search; `trained(measured)` says what they measure, and returns whom it trained."""
    pytest.importorskip("keras_tuner")

    def given(measured):
        recipes_trained = []

        def built(recipe, *_):
            recipes_trained.append(recipe)
            return Trained(recipe, measured)

        monkeypatch.setattr(search, "built", built)
        monkeypatch.setattr(keras.utils, "clear_session", lambda: None)
        return recipes_trained

    return given


def losses(recipe):
    loss = math.nan if recipe.units == 5 else recipe.units + recipe.dropout + recipe.variational
    return loss, 100 - 2 * loss + 10 * recipe.variational


GRID = {"units": [4, 5], "dropout": [0, 0.5], "variational": [False, True]}


def test_a_search_trains_every_point_once_and_gives_the_best_first(trained, tmp_path):
    found = trained(losses)
    table = grid_search(TINY, GRID, tmp_path / "search")
    points = [(recipe.units, recipe.dropout, recipe.variational) for recipe in found]
    expected = [(u, d, v) for u in GRID["units"] for d in GRID["dropout"] for v in GRID["variational"]]
    assert sorted(points) == sorted(expected)
    assert all(recipe == TINY.replace(units=u, dropout=d, variational=v) for recipe, (u, d, v) in zip(found, points))
    rows = [{"units": u, "dropout": d, "variational": v} for u, d, v in expected]
    rows = [row | dict(zip(("val_loss", "val_bleu"), losses(TINY.replace(**row)))) for row in rows]
    finite = sorted((row for row in rows if row["units"] != 5), key=lambda row: row["val_loss"])
    assert table[:4] == finite
    assert [row["units"] for row in table[4:]] == [5] * 4
    again = grid_search(TINY, GRID, tmp_path / "search")
    assert again[:4] == finite
    assert len(found) == 8


def test_a_search_for_bleu_puts_the_highest_first(trained, tmp_path):
    trained(losses)
    table = grid_search(TINY, {"units": [4, 2], "variational": [False, True]}, tmp_path, objective="val_bleu")
    assert [(row["units"], row["variational"]) for row in table] == [(2, True), (4, True), (2, False), (4, False)]
    assert [row["val_bleu"] for row in table] == pytest.approx([103.8, 99.8, 95.8, 91.8])


def test_a_search_of_another_grid_objective_or_recipe_is_refused_in_its_folder(trained, tmp_path):
    found = trained(losses)
    grid_search(TINY, {"units": [4]}, tmp_path)
    for grid, objective in (({"units": [4, 2]}, "val_loss"), ({"units": [4]}, "val_bleu")):
        with pytest.raises(ValueError, match="holds a search of another grid"):
            grid_search(TINY, grid, tmp_path, objective)
    with pytest.raises(ValueError, match=r"another recipe.*Received: epochs 3, not 2"):
        grid_search(TINY.replace(epochs=3), {"units": [4]}, tmp_path)
    assert len(found) == 1


def test_a_failed_training_ends_the_search_and_is_not_lost(trained, tmp_path):
    import keras_tuner

    def fails(recipe):
        if recipe.units == 2:
            raise OSError("the disk is full")
        return losses(recipe)

    trained(fails)
    with pytest.raises(keras_tuner.errors.FatalError, match="the disk is full"):
        grid_search(TINY, {"units": [4, 2, 3]}, tmp_path)
    found = trained(losses)
    assert [row["units"] for row in grid_search(TINY, {"units": [4, 2, 3]}, tmp_path)] == [2, 3, 4]
    assert [recipe.units for recipe in found] == [2, 3]


@pytest.mark.parametrize(
    ("grid", "error", "text"),
    [
        ({}, ValueError, "`grid` must hold"),
        ({"units": []}, ValueError, "`grid` must hold"),
        ([("units", [4])], TypeError, "`grid` must be a dict of lists"),
        ({"units": 4}, TypeError, r"`grid\['units'\]` must be a list of values"),
        ({"cell": "gru"}, TypeError, r"`grid\['cell'\]` must be a list of values"),
        ({"width": [4]}, ValueError, "`grid` must be one of 'cell', .*Received: grid='width'"),
        ({"seed": [1, 2]}, ValueError, "Received: grid='seed'"),
        ({"beam_width": [1, 2]}, ValueError, "Received: grid='beam_width'"),
        ({"patience": [1, 2]}, ValueError, "Received: grid='patience'"),
        ({"units": [4, 0]}, ValueError, r"`units` must be .* Received: units=0"),
        ({"optimizer": ["adamw", "adam"]}, ValueError, "`weight_decay` must be 0 with optimizer='adam'"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_made(grid, error, text, patched, tmp_path):
    pytest.importorskip("keras_tuner")
    with pytest.raises(error, match=text):
        grid_search(TINY, grid, tmp_path / "search")
    with pytest.raises(ValueError, match="`objective` must be one of 'val_loss', 'val_bleu'"):
        grid_search(TINY, {"units": [4]}, tmp_path / "search", objective="bleu")
    with pytest.raises(ValueError, match="`patience` must be None in a search"):
        grid_search(TINY.replace(averaging=0.0, patience=1), {"units": [4]}, tmp_path / "search")
    assert not (tmp_path / "search").exists()


@pytest.mark.thorough
def test_a_point_is_trained_as_train_translation_trains_it(run, patched, tmp_path):
    pytest.importorskip("keras_tuner")
    history = running.RunFolder(run[0]).history()
    good, bad = grid_search(TINY, {"learning_rate": [1e38, 0.02]}, tmp_path)
    assert good == {"learning_rate": 0.02, "val_loss": history["val_loss"][-1], "val_bleu": history["val_bleu"][-1]}
    assert bad["learning_rate"] == 1e38
    assert math.isnan(bad["val_loss"])


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="each training compiles; the search knows no backend")
def test_a_search_that_was_interrupted_goes_on_in_the_middle_of_a_training(quick, tmp_path, monkeypatch):
    pytest.importorskip("keras_tuner")
    trained = []
    epoch_end = translation.ValidationBLEU.on_epoch_end

    def note(judge, epoch, logs=None):
        trained.append((judge.model.settings["units"], epoch))
        if len(trained) == 4:
            raise KeyboardInterrupt
        epoch_end(judge, epoch, logs)

    monkeypatch.setattr(translation.ValidationBLEU, "on_epoch_end", note)
    with pytest.raises(KeyboardInterrupt):
        grid_search(QUICK, {"units": [4, 6]}, tmp_path)
    table = grid_search(QUICK, {"units": [4, 6]}, tmp_path)
    assert trained == [(4, 0), (4, 1), (6, 0), (6, 1), (6, 1)]
    assert sorted(row["units"] for row in table) == [4, 6]


def test_two_searches_do_not_train_the_same_point_at_once(trained, tmp_path):
    import keras_tuner

    trained(losses)
    place = running.RunFolder(tmp_path / "trainings" / "units=4")
    place.path.mkdir(parents=True)
    running.RunFolder(tmp_path).write("recipe.json", TINY.to_json())
    with place.alone(), pytest.raises(keras_tuner.errors.FatalError, match="Another process is training in this"):
        grid_search(TINY, {"units": [4]}, tmp_path)


# The whole, in processes of their own


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["training", "search"])
@pytest.mark.parametrize("backend", ["tensorflow"])  # JAX by hand: it compiles for minutes
def test_kills_change_nothing(backend, task):
    pytest.importorskip(backend)
    pytest.importorskip("keras_tuner")
    command = [sys.executable, str(ROOT / "tests" / "translation_kills.py"), "--task", task, "--kills", "3"]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(("strategy", "backend"), [("mirrored", "tensorflow"), ("jax", "jax")])
def test_two_devices_share_the_batches_and_learn_as_one(strategy, backend, tmp_path):
    pytest.importorskip(backend)
    words = ["small_phrases.py", "train", "translation", "--preset", "laptop", "--set", *FAST, "pairs=115", "epochs=1"]
    one, two = losses_on_one_and_two(words, strategy, backend, tmp_path)
    # JAX takes the mean over the whole batch, as one device does; TensorFlow's replicas each over their own words.
    assert two == pytest.approx(one, rel=1e-4 if strategy == "jax" else 0.05)


@pytest.mark.thorough
def test_two_workers_share_a_search(tmp_path):
    pytest.importorskip("keras_tuner")
    command = [sys.executable, str(ROOT / "tests" / "small_search.py")]
    alone = subprocess.run([*command, str(tmp_path / "alone")], capture_output=True, text=True, check=True)
    place = {**os.environ, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_ports(1)[0])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*command, str(tmp_path / "shared")], env={**place, "KERASTUNER_TUNER_ID": name}, **pipes)
        for name in ("chief", "worker_1", "worker_2")
    ]
    ended = [process.communicate(timeout=1500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    found = [json.loads(output.splitlines()[-1]) for output, _ in ended]
    expected = json.loads(alone.stdout.splitlines()[-1])
    assert [one["table"] for one in found] == [expected["table"]] * 3
    trained = [one["trained"] for one in found]
    assert trained[0] == []  # the chief only deals
    assert sorted(trained[1] + trained[2]) == sorted(expected["trained"])
    assert all(trained[1:])
