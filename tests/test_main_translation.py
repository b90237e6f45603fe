"""The command line of the second case study: what it takes, and the one sentence in which each fault ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import pytest
from small_phrases import FAST, quicken
from test_main import fault

from nnopt.__main__ import RECIPES, main
from nnopt.recipes import ImageRecipe, TranslationRecipe, Translator, translation, translation_report

if keras.backend.backend() != "tensorflow":
    pytest.skip(
        "the command line is the same on all backends, and compiles for minutes on JAX", allow_module_level=True
    )

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["train", "translation", "--preset", "laptop"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        assert main([*TRAIN, "--set", *FAST, "attention=none", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to be damaged."""
    names = ("recipe.json", "report.json", "history.csv", "subwords.model", "model.keras")
    for name in names:
        shutil.copy(run / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Keeps what `train` would have trained with."""
    kept = {}

    def train(recipe, output, **options):
        kept.update(recipe=recipe, output=output, **options)
        raise KeyboardInterrupt

    monkeypatch.setitem(RECIPES, "translation", (TranslationRecipe, train, None, None))
    return kept


# Training and testing


@pytest.mark.parametrize("preset", TranslationRecipe.presets)
def test_a_preset_is_trained_as_it_is_and_printed_before(preset, trained, capsys):
    assert main(["train", "translation", "--preset", preset, "--output", "runs/x"]) == 130
    recipe = TranslationRecipe.preset(preset)
    assert trained == {"recipe": recipe, "output": "runs/x", "strategy": "none", "save_every": 200}
    assert str(recipe) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("pairs=null", "pairs", None),
        ("pairs=20", "pairs", 20),
        ("attention=none", "attention", "none"),
        ("variational=true", "variational", True),
        ("l2=1e-6", "l2", 1e-6),
        ("averaging=0", "averaging", 0.0),
    ],
)
def test_set_changes_one_field(word, field, value, trained):
    main([*TRAIN, "--set", word, "--output", "x"])
    assert trained["recipe"] == TranslationRecipe.preset("laptop").replace(**{field: value})


def test_the_article_s_optimizer_is_set_as_the_preset_says(trained):
    words = next(line for line in translation.paper.__doc__.splitlines() if "--set" in line).split("--set")[1].split()
    main(["train", "translation", "--preset", "paper", "--set", *words, "--output", "x"])
    assert (trained["recipe"].optimizer, trained["recipe"].weight_decay) == ("adam", 0.0)


def test_a_training_prints_its_summary_and_where_it_is(run, tmp_path, monkeypatch, capsys):
    quicken(monkeypatch)
    stored = json.loads((run / "report.json").read_text())
    parts = TranslationRecipe, lambda *_, **__: stored, None, translation_report.summary
    monkeypatch.setitem(RECIPES, "translation", parts)
    assert main([*TRAIN, "--output", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{translation_report.summary(stored)}\nwritten to {tmp_path / 'x'}\n")


def test_a_run_is_tested_again_alike(run, monkeypatch, capsys):
    quicken(monkeypatch)
    before = json.loads((run / "report.json").read_text())
    assert main(["test", str(run)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == translation_report.summary(before).splitlines()[0]
    assert f"BLEU {before['bleu']:.2f} " in shown[0]
    assert before["bleu"] > 50
    assert json.loads((run / "report.json").read_text())["chrf"] == before["chrf"]


def test_help_names_each_field_and_preset(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "translation", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"--{name}" in shown for name in json.loads(TranslationRecipe().to_json()))
    assert all(f"--preset {name}" in shown for name in TranslationRecipe.presets)


# Translating

# Lines, and what is said of each.
UNUSUAL = [
    (b"the tower is high .\r", None),
    (b"", None),
    (b" \t  ", None),
    (b"the tower is high . " * 30, "subwords, translated in"),
    ("der Türm ☃ 😀".encode(), "unknown to the vocabulary"),
    (b"\xff\xfet\x00h\x00e\x00", "not UTF-8"),
    (b"half a character \xc3", "not UTF-8"),
    (b"a NUL \x00 in it", "unknown to the vocabulary"),
    ("one\u2028line\u0085only\x0b\x0c\x1c".encode(), ""),
    (b"\x1b[31mred\x1b[0m", "unknown to the vocabulary"),
    (b"carriage\rreturn", ""),
    ("\ufeffthe tower".encode(), ""),
    ("\u202eright to left, \u05d0\u05d1\u05d2".encode(), "unknown to the vocabulary"),
    (b"the last line has no end", None),
]


@pytest.mark.parametrize("ended", [False, True])
def test_every_line_gets_a_line_whatever_is_in_it(ended, run, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(b"\n".join(line for line, _ in UNUSUAL) + (b"\n" if ended else b""))
    assert main(["translate", str(run), str(tmp_path / "text.txt"), "--beam_width=1"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(UNUSUAL)
    said = {}
    for remark in printed.err.splitlines():
        name, number, text = remark.split(": ", 2)
        assert name == "nnopt"
        said[int(number.removeprefix("line "))] = text
    for number, (_, expected) in enumerate(UNUSUAL, 1):
        assert (number in said) == bool(expected) or expected == ""
        assert (expected or "") in said.get(number, "")
    assert [lines[1], lines[2]] == ["", ""]
    plain = [UNUSUAL[0][0].decode().rstrip("\r"), UNUSUAL[-1][0].decode()]
    assert [lines[0], lines[-1]] == Translator(run)(plain, beam_width=1)[0]


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n"])
def test_no_lines_get_no_lines_and_empty_ones_empty_ones(content, run, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(content)
    assert main(["translate", str(run), str(tmp_path / "text.txt")]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (content.decode(), "")


@pytest.mark.parametrize(("words", "width"), [([], 4), (["--beam_width", "2"], 2), (["--beam_width=1"], 1)])
def test_the_beam_width_is_the_recipes_or_the_one_given(words, width, run, tmp_path, monkeypatch, capsys):
    widths = []

    def decode(network, subwords, rows, beam_width, length_penalty):
        widths.append((beam_width, length_penalty))
        return ["ja"] * len(rows)

    monkeypatch.setattr(translation, "decode", decode)
    (tmp_path / "text.txt").write_bytes(b"the tower")
    assert main(["translate", str(run), str(tmp_path / "text.txt"), *words]) == 0
    assert capsys.readouterr().out == "ja\n"
    assert widths == [(width, 1.0)]


# A wrong command: status 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["translate"], "output"),
        (["translate", "x", "y", "z"], "z"),
        (["translate", "x", "--beams=3"], "--beams=3"),
        (["translate", "x", "--beam_width=0"], "beam_width"),
        (["translate", "x", "--beam_width=-2"], "beam_width"),
        (["translate", "x", "--beam_width=x"], "beam_width"),
        (["translate", "x", "--beam_width=2.5"], "beam_width"),
        (["translate", "x", "--beam_width"], "beam_width"),
        (["test", "x", "y"], "y"),
        ([*TRAIN[:3], "huge", "--output", "x"], "'huge' (choose from 'laptop', 'cpu', 'gpu', 'paper')"),
        ([*TRAIN, "--set", "depth=8", "--output", "x"], "a name of data, direction, pairs, vocabulary"),
        ([*TRAIN, "--set", "units=many", "--output", "x"], "`units` must be of type int. Received: units=many"),
        ([*TRAIN, "--set", "units=0", "--output", "x"], "`units` must be an integer >= 1. Received: units=0"),
        ([*TRAIN, "--set", "variational=perhaps", "--output", "x"], "`variational` must be of type bool"),
        ([*TRAIN, "--set", "attention=dot", "--output", "x"], "'bahdanau', 'luong', 'none'"),
        ([*TRAIN, "--set", "patience=2", "--output", "x"], "`patience` must be None where averaging > 0"),
        ([*TRAIN, "--set", "optimizer=adam", "--output", "x"], "`weight_decay` must be 0 with optimizer='adam'"),
        ([*TRAIN, "--set", "dropout=nan", "--output", "x"], "`dropout` must be"),
    ],
)
def test_a_wrong_command_is_one_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in fault(capsys, words, 2)
    assert list(tmp_path.iterdir()) == []


# What fails: status 1


def test_an_unknown_or_unfinished_run_is_one_sentence(tmp_path, capsys):
    for command in (["translate"], ["test"]):
        assert "holds no finished run" in fault(capsys, [*command, tmp_path / "nowhere"], 1)
        assert "holds no finished run" in fault(capsys, [*command, tmp_path], 1)
    (tmp_path / "recipe.json").write_text(TranslationRecipe().to_json())
    assert "no model.keras" in fault(capsys, ["translate", tmp_path], 1)


def test_a_run_of_images_translates_nothing(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(ImageRecipe().to_json())
    line = fault(capsys, ["translate", tmp_path], 1)
    assert f"{tmp_path / 'recipe.json'} cannot be read: A recipe must have exactly the fields of Translation" in line


def test_a_run_of_translation_classifies_nothing(copy, capsys):
    assert "must have exactly the fields of ImageRecipe" in fault(capsys, ["classify", copy, "x.png"], 1)


def test_a_recipe_of_neither_case_study_is_refused(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text('{"epochs": 3}')
    assert "must be that of one of image, translation" in fault(capsys, ["test", tmp_path], 1)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b"null", b'{"data": '])
@pytest.mark.parametrize("name", ["recipe.json", "report.json"])
def test_a_damaged_description_is_named(name, content, copy, capsys, monkeypatch):
    quicken(monkeypatch)
    (copy / name).write_bytes(content)
    assert f"{copy / name}" in fault(capsys, ["test", copy], 1)


@pytest.mark.parametrize("content", [b"", b"at the sea", None])
@pytest.mark.parametrize("name", ["model.keras", "subwords.model"])
def test_a_damaged_network_or_vocabulary_is_named(name, content, copy, capsys):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert f"{copy / name}" in fault(capsys, ["translate", copy], 1)


@pytest.mark.parametrize("name", ["model.keras", "subwords.model"])
def test_a_missing_network_or_vocabulary_is_named(name, copy, capsys):
    (copy / name).unlink()
    assert name in fault(capsys, ["translate", copy], 1)


def test_a_vocabulary_of_another_size_is_refused(copy, tmp_path, capsys):
    from nnopt.data import train_subwords

    train_subwords(["the tower is high"] * 9, 24, copy / "subwords.model")
    line = fault(capsys, ["translate", copy], 1)
    assert "24" in line
    assert "150" in line


def test_a_file_that_cannot_be_read_is_named(run, tmp_path, capsys):
    line = fault(capsys, ["translate", run, tmp_path / "missing.txt"], 1)
    assert line == f"nnopt: {tmp_path / 'missing.txt'}: No such file or directory"
    assert fault(capsys, ["translate", run, tmp_path], 1) == f"nnopt: {tmp_path}: Is a directory"
    assert "No such file" in fault(capsys, ["translate", run, ""], 1)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, capsys, monkeypatch):
    quicken(monkeypatch)
    (tmp_path / "file").write_text("")
    for words in (["translate", tmp_path / "file"], ["test", tmp_path / "file"]):
        assert str(tmp_path / "file") in fault(capsys, words, 1)
    line = fault(capsys, [*TRAIN, "--set", *FAST, "--output", tmp_path / "file" / "run"], 1)
    assert line == f"nnopt: {tmp_path / 'file' / 'run'}: Not a directory"


def test_the_folder_of_another_recipe_is_refused(run, capsys, monkeypatch):
    quicken(monkeypatch)
    line = fault(capsys, [*TRAIN, "--set", *FAST, "--output", run], 1)
    assert "another folder, or repeat the former command" in line
    assert line.endswith("Received: attention 'luong', not 'none'")
    line = fault(capsys, ["train", "image", "--preset", "laptop", "--output", run], 1)
    assert line.endswith("Received: another case study")


def test_missing_data_are_one_sentence_and_leave_no_folder(tmp_path, capsys, monkeypatch):
    def refused(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("NNOPT_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    line = fault(capsys, ["train", "translation", "--preset", "cpu", "--output", tmp_path / "run"], 1)
    assert "cannot be reached" in line
    assert "NNOPT_DATA" in line
    assert not (tmp_path / "run").exists()


def test_more_subwords_than_the_text_has_are_one_sentence(tmp_path, capsys, monkeypatch):
    quicken(monkeypatch)
    line = fault(capsys, [*TRAIN, "--set", *FAST, "vocabulary=9000", "--output", tmp_path / "run"], 1)
    assert "Vocabulary size too high (9000)" in line
    right = [*TRAIN, "--set", *FAST, "vocabulary=10", "--output", tmp_path / "run"]
    assert "smaller than required_chars" in fault(capsys, right, 1)  # and not: another recipe


def test_sentences_that_are_all_too_long_are_one_sentence(tmp_path, capsys, monkeypatch):
    quicken(monkeypatch)
    line = fault(capsys, [*TRAIN, "--set", *FAST, "longest=2", "--output", tmp_path / "run"], 1)
    assert "`longest` must leave some of 120 pairs. Received: longest=2" in line


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="it is the backend that this strategy needs")
def test_a_strategy_of_another_backend_is_refused(tmp_path, capsys):
    line = fault(capsys, [*TRAIN, "--strategy", "jax", "--output", tmp_path / "run"], 1)
    assert "needs the backend jax" in line


# Processes of their own


def started(*words, **more):
    """Starts the command in a process of its own, in which Ctrl-C raises KeyboardInterrupt."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    command = [sys.executable, str(ROOT / "tests" / "small_phrases.py"), *map(str, words)]
    return subprocess.Popen(
        command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **pipes
    )


def errors_of(process):
    """Returns what a process wrote to the standard error until its end, without what TensorFlow says there."""
    lines = process.stderr.read().decode().splitlines()
    process.wait(timeout=300)
    return [line for line in lines if line.startswith("nnopt: ") or "Traceback" in line or "Error" in line]


def test_the_standard_input_is_translated_as_it_comes(run):
    process = started("translate", run, "--beam_width=1")
    for line in (b"the tower\r\n", b"\n", b"the \xff sea\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n")  # before the next line is there
    process.stdin.close()
    assert errors_of(process) == ["nnopt: line 3: bytes that are not UTF-8, read as \N{REPLACEMENT CHARACTER}"]
    assert process.returncode == 0


@pytest.mark.thorough
def test_an_output_that_nobody_reads_any_longer_ends_in_one_sentence(run, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"the tower\n" * 20_000)
    process = started("translate", run, tmp_path / "text.txt", "--beam_width=1")
    assert process.stdout.readline().endswith(b"\n")
    process.stdout.close()
    assert errors_of(process) == ["nnopt: nobody reads the output any longer"]
    assert process.returncode == 1


@pytest.mark.thorough
def test_ctrl_c_ends_a_translation_that_waits_for_its_input(run):
    process = started("translate", run, "--beam_width=1")
    process.stdin.write(b"the tower\n")
    process.stdin.flush()
    assert process.stdout.readline().endswith(b"\n")
    process.send_signal(signal.SIGINT)
    assert errors_of(process) == ["nnopt: interrupted; run the same command again to go on"]
    assert process.returncode == 130


@pytest.mark.thorough
def test_ctrl_c_ends_a_training_which_goes_on_later(tmp_path):
    words = [*TRAIN, "--set", *FAST, "epochs=400", "--save_every=1", "--output", tmp_path / "run"]
    process = started(*words, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "run").glob("checkpoints/*.nnopt")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert errors_of(process) == ["nnopt: interrupted; run the same command again to go on"]
    assert process.returncode == 130
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.thorough
@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize(("redirection", "status"), [("<&-", 2), ("</dev/null", 0)])
def test_an_input_that_is_closed_or_empty_ends_without_traceback(redirection, status, run):
    command = f'exec "{sys.executable}" -m nnopt translate "{run}" {redirection}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (status, "")
    said = ["nnopt: `file` must be given where the standard input is closed. Received: no file"]
    assert done.stderr.splitlines() == (said if status else [])
