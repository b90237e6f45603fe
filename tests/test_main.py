"""The command line: what it takes, and the one sentence in which each fault ends."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from small_images import FAST, small

from nnopt.__main__ import main
from nnopt.data import images
from nnopt.recipes import ImageRecipe, image

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["train", "image", "--preset", "laptop"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, made by the command, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "load", small)
        assert main([*TRAIN, "--set", *FAST, "augmentation=flip", "--output", str(folder)]) == 0
        yield folder


def fault(capsys, words, status):
    """Runs a command that must fail, and returns its one line on the standard error."""
    assert main([str(word) for word in words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nnopt: ")
    return line


@pytest.fixture
def trained(monkeypatch):
    """Keeps what `train` would have trained with."""
    kept = {}

    def train(recipe, output, **options):
        kept.update(recipe=recipe, output=output, **options)
        raise KeyboardInterrupt

    monkeypatch.setitem(__import__("nnopt.__main__").__main__.RECIPES, "image", (ImageRecipe, train, None, None))
    return kept


# What it takes


@pytest.mark.parametrize("preset", ImageRecipe.presets)
def test_a_preset_is_trained_as_it_is(preset, trained):
    assert main(["train", "image", "--preset", preset, "--output", "runs/x"]) == 130
    expected = {"recipe": ImageRecipe.preset(preset), "output": "runs/x", "strategy": "none", "save_every": 200}
    assert trained == expected


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("learning_rate=1", "learning_rate", 1.0),
        ("width=null", "width", None),
        ("width=8", "width", 8),
        ("augmentation=crop,flip", "augmentation", ("crop", "flip")),
        ("augmentation=[flip]", "augmentation", ("flip",)),
        ("augmentation=", "augmentation", ()),
        ("jit_compile=auto", "jit_compile", "auto"),
        ("jit_compile=true", "jit_compile", True),
        ("precision=mixed_bfloat16", "precision", "mixed_bfloat16"),
    ],
)
def test_set_changes_one_field(word, field, value, trained):
    main([*TRAIN, "--set", word, "--output", "x"])
    assert trained["recipe"] == ImageRecipe.preset("laptop").replace(**{field: value})


def test_several_fields_may_follow_one_set_or_several_or_stand_alone(trained):
    expected = ImageRecipe.preset("laptop").replace(epochs=2, seed=3)
    for words in (
        ["--set", "epochs=2", "seed=3"],
        ["--set", "epochs=2", "--set", "seed=3"],
        ["--epochs=2", "--seed", "3"],
    ):
        main([*TRAIN, *words, "--output", "x"])
        assert trained["recipe"] == expected


def test_options_reach_the_training(trained):
    main([*TRAIN, "--strategy", "jax", "--save_every=7", "--output", "x"])
    assert (trained["strategy"], trained["save_every"]) == ("jax", 7)


def test_the_recipe_is_printed_before_it_is_trained(trained, capsys):
    main([*TRAIN, "--output", "x"])
    assert str(ImageRecipe.preset("laptop")) in capsys.readouterr().out


def test_help_names_the_commands_and_of_train_each_field_and_preset(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"python -m nnopt {command} " in shown for command in ("train", "test", "classify", "translate"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "image", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"--{name}" in shown for name in json.loads(ImageRecipe().to_json()))
    assert all(f"--preset {name}" in shown for name in ImageRecipe.presets)


def test_a_run_prints_its_result_and_is_tested_again_alike(run, capsys):
    assert main(["test", str(run)]) == 0
    stored = json.loads((run / "report.json").read_text())
    first = capsys.readouterr().out.splitlines()[0]
    low, high = stored["top_1_interval"]
    assert first == (
        f"top-1 {stored['top_1']:.2%} (95 % interval {low:.2%} to {high:.2%}), top-5 {stored['top_5']:.2%}, "
        "on 32 test examples"
    )


def test_a_picture_gets_its_five_best_classes(run, tmp_path, capsys):
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path, pixels in zip(paths, small().test[0]):
        Image.fromarray(pixels).resize((70, 50)).save(path)
    assert main(["classify", str(run), *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[6]] == [str(path) for path in paths]
    assert len(lines) == 12
    names = json.loads((run / "report.json").read_text())["class_names"]
    for first in (1, 7):
        shares, classes = zip(*(line.split(maxsplit=1) for line in lines[first : first + 5]))
        numbers = [float(share.rstrip("%")) for share in shares]
        assert numbers == sorted(numbers, reverse=True)
        assert set(classes) <= set(names)


# A wrong command: status 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frain"], "must be one of train, test, classify, translate. Received: frain"),
        (["train"], "must be followed by one of image, translation. Received: nothing"),
        (["train", "video"], "must be followed by one of image, translation. Received: video"),
        (["train", "image", "--output", "x"], "preset"),
        ([*TRAIN], "output"),
        ([*TRAIN[:3], "huge", "--output", "x"], "'huge' (choose from 'laptop', 'cpu', 'gpu', 'paper')"),
        ([*TRAIN, "--set", "lr=1", "--output", "x"], "a name of data, image_size, depth, width"),
        ([*TRAIN, "--set", "epochs", "--output", "x"], "takes name=value"),
        ([*TRAIN, "--epoch=3", "--output", "x"], "--epoch=3"),
        ([*TRAIN, "--set", "epochs=many", "--output", "x"], "`epochs` must be of type int. Received: epochs=many"),
        ([*TRAIN, "--set", "epochs=2.5", "--output", "x"], "`epochs` must be of type int. Received: epochs=2.5"),
        ([*TRAIN, "--set", "learning_rate=nan", "--output", "x"], "`learning_rate` must be of type float"),
        ([*TRAIN, "--set", "width=None", "--output", "x"], "`width` must be of type int | None"),
        ([*TRAIN, "--set", "optimizer=lion", "--output", "x"], "'adamw', 'adam', 'sgd'"),
        ([*TRAIN, "--set", "epochs=0", "--output", "x"], "`epochs` must be an integer >= 1. Received: epochs=0"),
        ([*TRAIN, "--set", "augmentation=blur", "--output", "x"], "Received: augmentation=('blur',)"),
        ([*TRAIN, "--set", "optimizer=adam", "--output", "x"], "`weight_decay` must be 0 with optimizer='adam'"),
        ([*TRAIN, "--strategy", "horovod", "--output", "x"], "'horovod' (choose from 'none', 'mirrored', 'jax')"),
        (["test"], "output"),
        (["classify", "x"], "pictures"),
    ],
)
def test_a_wrong_command_is_one_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in fault(capsys, words, 2)
    assert list(tmp_path.iterdir()) == []


# What fails: status 1


def test_an_output_that_cannot_be_made_is_named(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = fault(capsys, [*TRAIN, "--set", *FAST, "--output", tmp_path / "file" / "run"], 1)
    assert line == f"nnopt: {tmp_path / 'file' / 'run'}: Not a directory"


def test_an_output_that_may_not_be_written_is_named(run, tmp_path, capsys, monkeypatch):
    def refused(path, *arguments, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    line = fault(capsys, [*TRAIN, "--set", *FAST, "--output", tmp_path / "run"], 1)
    assert line == f"nnopt: {tmp_path / 'run'}: Permission denied"


def test_the_folder_of_another_recipe_is_refused(run, capsys):
    line = fault(capsys, [*TRAIN, "--set", *FAST, "augmentation=crop", "--output", run], 1)
    assert "another folder, or repeat the former command" in line
    assert line.endswith("Received: augmentation ('crop',), not ('flip',)")


def test_missing_data_are_one_sentence(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise FileNotFoundError("The data set 'cifar10' is not here.")

    monkeypatch.setattr(images, "load", missing)
    line = fault(capsys, [*TRAIN, "--output", tmp_path / "run"], 1)
    assert line == "nnopt: The data set 'cifar10' is not here."
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_one_sentence(run, tmp_path, capsys):
    words = [*TRAIN, "--set", *FAST, "optimizer=sgd", "learning_rate=1e30", "--output", tmp_path / "run"]
    assert "`learning_rate`" in fault(capsys, words, 1)


def test_a_full_disk_is_one_sentence(run, tmp_path, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image.running, "fit", full)
    line = fault(capsys, [*TRAIN, "--set", *FAST, "--output", tmp_path / "run"], 1)
    assert "the disk is full" in line


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="it is the backend that this strategy needs")
def test_a_strategy_of_another_backend_is_refused(run, tmp_path, capsys):
    line = fault(capsys, [*TRAIN, "--strategy", "jax", "--output", tmp_path / "run"], 1)
    assert "needs the backend jax: set KERAS_BACKEND=jax" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_refused(tmp_path, capsys):
    assert "holds no finished run" in fault(capsys, ["test", tmp_path], 1)
    assert "holds no finished run" in fault(capsys, ["classify", tmp_path, "x.png"], 1)


def broken(folder):
    """Returns files that hold no readable picture, by what is wrong with them."""
    whole = folder / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8")).save(whole)
    contents = {"empty": b"", "truncated": whole.read_bytes()[:600], "no_picture": b"at the sea\n" * 40}
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return whole


@pytest.mark.parametrize("name", ["missing", "empty", "truncated", "no_picture"])
def test_a_picture_that_cannot_be_read_is_named_and_no_other_classified(name, run, tmp_path, capsys):
    whole = broken(tmp_path)
    line = fault(capsys, ["classify", run, whole, tmp_path / f"{name}.jpg"], 1)
    assert f"{name}.jpg" in line


def test_an_enormous_picture_is_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    line = fault(capsys, ["classify", run, broken(tmp_path)], 1)
    assert "whole.jpg" in line
    assert "pixels" in line


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("L", (40, 30), 200),
        Image.new("RGBA", (30, 40), (10, 20, 30, 40)),
        Image.new("RGB", (1, 1), (255, 0, 0)),
        Image.new("P", (9, 9)),
    ],
    ids=["grey", "alpha", "one pixel", "palette"],
)
def test_unusual_pictures_are_classified(picture, run, tmp_path, capsys):
    picture.save(tmp_path / "picture.png")
    assert main(["classify", str(run), str(tmp_path / "picture.png")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_fault_of_a_library_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(image.running.RunFolder, "check", lambda *_: json.loads("no JSON"))
    with pytest.raises(json.JSONDecodeError):
        main([*TRAIN, "--output", "x"])


# Processes of their own


@pytest.mark.thorough
def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "small_images.py"), *TRAIN]
    command += ["--set", *FAST, "epochs=400", "augmentation=flip", "--save_every=2", "--output", str(tmp_path / "run")]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("checkpoints/*.nnopt")):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "nnopt: interrupted; run the same command again to go on"
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_disk_that_fills_up_ends_in_one_sentence_and_with_room_the_run_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk in memory")
    command = [sys.executable, str(ROOT / "tests" / "small_images.py"), *TRAIN]
    command += ["--set", *FAST, "augmentation=flip", "--output", str(disk / "run")]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert "the disk is full" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not {"report.json", "model.keras"} & {path.name for path in (disk / "run").iterdir()}
        assert not [path for path in disk.rglob("*") if ".part" in path.name or path.suffix == ".tmp"]
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert subprocess.run(command, capture_output=True).returncode == 0
        assert (disk / "run" / "report.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
