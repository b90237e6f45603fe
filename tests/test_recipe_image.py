"""The first case study's recipe, its training, its report and its run folder."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from devices import losses_on_one_and_two
from small_images import FAST, LOAD, small

from nnopt import _keras, recipes
from nnopt.data import images
from nnopt.recipes import ImageRecipe, image, report, running
from nnopt.schedules import OneCycle

ROOT = Path(__file__).resolve().parents[1]
TINY = ImageRecipe(data="photos", depth=8, width=4, epochs=3, batch_size=16, augmentation=("flip",), jit_compile=False)


# The recipe


@pytest.mark.parametrize("name", ImageRecipe.presets)
def test_a_preset_survives_json_and_is_shown_whole(name):
    recipe = ImageRecipe.preset(name)
    assert ImageRecipe.from_json(recipe.to_json()) == recipe
    assert [line.split()[0] for line in str(recipe).splitlines()] == list(json.loads(recipe.to_json()))


@pytest.mark.parametrize("name", ImageRecipe.presets)
def test_a_presets_docstring_says_what_the_committed_run_reached(name):
    text = ImageRecipe.presets[name].__doc__
    assert f"--preset {name}" in text
    path = ROOT / "figures" / "results" / f"image_{name}.json"
    if not path.exists():
        assert "Not run yet." in text
        return
    stored = json.loads(path.read_text("utf-8"))
    assert ImageRecipe.from_json(json.dumps(stored["recipe"])) == ImageRecipe.preset(name)
    assert f"{100 * stored['top_1']:.1f} %" in text
    minutes = float(re.search(r"([\d.]+) minutes", text)[1])
    assert minutes == pytest.approx(stored["training"]["seconds"] / 60, abs=0.6)


WRONG = {
    "data": "mnist", "image_size": 4, "depth": 21, "width": 0, "stem": 5, "epochs": 0, "batch_size": 2.5,
    "optimizer": "lion", "learning_rate": 0.0, "momentum": 1.0, "weight_decay": -1e-3, "schedule": "step",
    "warmup": 1.0, "final_share": 0.0, "augmentation": ("blur",), "label_smoothing": 1.0, "precision": "float16",
    "jit_compile": "yes", "seed": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ImageRecipe)])
def test_a_wrong_field_is_named_with_its_rule_and_value(name):
    with pytest.raises((TypeError, ValueError), match=f"(?s)`{name}` must be .*Received: {name}="):
        dataclasses.replace(ImageRecipe(), **{name: WRONG[name]})


def test_adam_with_weight_decay_is_refused():
    with pytest.raises(ValueError, match=r"`weight_decay` must be 0 with optimizer='adam'"):
        ImageRecipe(optimizer="adam", weight_decay=0.1)


def test_grey_images_have_no_colours_to_jitter():
    with pytest.raises(ValueError, match=r"`augmentation` must be .* without 'jitter' for the grey fashion_mnist"):
        ImageRecipe(data="fashion_mnist", augmentation=("jitter",))


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="lr"):
        ImageRecipe().replace(lr=0.1)


@pytest.mark.parametrize("text", ["[]", '{"data": "photos"}', "no JSON"])
def test_a_file_that_is_no_recipe_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - json's own for the last
        ImageRecipe.from_json(text)


def test_the_papers_network_has_resnet_50s_parameters():
    network = ImageRecipe.preset("paper").build_network(channels=3, classes=1000)
    assert sum(np.prod(weight.shape) for weight in network.trainable_weights) == 25_557_032
    assert network.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_the_papers_rate_falls_by_a_twentieth_an_epoch_to_about_a_hundredth():
    steps = 1239
    rate = ImageRecipe.preset("paper").learning_rate_schedule(steps)
    rates = [float(rate(epoch * steps)) for epoch in range(91)]
    assert max(rates) == pytest.approx(1e-3, rel=1e-6)
    assert rates[5:] == pytest.approx([1e-3 * 0.95**epoch for epoch in range(86)], rel=1e-3)
    assert rates[90] / max(rates) == pytest.approx(0.01, abs=0.003)


def test_the_rates_end_does_not_depend_on_epochs_and_batches():
    for epochs, steps in ((1, 1), (1, 7), (30, 100)):
        rate = ImageRecipe(epochs=epochs, final_share=0.02).learning_rate_schedule(steps)
        assert float(rate(epochs * steps)) == pytest.approx(0.02 * 1e-3, rel=1e-4)


def test_one_cycle_is_the_schedules_own():
    recipe = ImageRecipe(optimizer="sgd", schedule="one_cycle", learning_rate=0.4, epochs=3, warmup=0.25)
    expected = OneCycle(0.4, total_steps=30, pct_start=0.25)
    steps = np.arange(30)
    np.testing.assert_array_equal(recipe.learning_rate_schedule(10)(steps), expected(steps))


@pytest.mark.parametrize("name", ImageRecipe.presets)
def test_weight_decay_touches_no_norm_and_no_bias(name):
    recipe = ImageRecipe.preset(name).replace(width=4, image_size=32, depth=8)
    network = recipe.build_network(channels=3, classes=10)
    optimizer = recipe.build_optimizer(steps_per_epoch=5)
    optimizer.build(network.trainable_weights)
    decayed = {weight.path.split("/")[-1] for weight in network.trainable_weights if _keras.decays(optimizer, weight)}
    spared = {
        weight.path.split("/")[-1] for weight in network.trainable_weights if not _keras.decays(optimizer, weight)
    }
    assert (decayed, spared) == ({"kernel"}, {"gamma", "beta", "bias"})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_without_gradient_shrinks_kernels_alone(optimizer):
    recipe = TINY.replace(optimizer=optimizer, weight_decay=0.5, warmup=0.0, learning_rate=0.1)
    network = recipe.build_network(channels=3, classes=10)
    weights = network.trainable_weights
    for weight in weights:
        weight.assign(np.ones(weight.shape))
    recipe.build_optimizer(5).apply([keras.ops.zeros(weight.shape) for weight in weights], weights)
    for weight in weights:
        expected = 0.95 if weight.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), expected, rtol=1e-6)


def test_the_network_sees_pixels_from_minus_two_to_two_and_kernels_follow_the_seed():
    networks = [TINY.replace(seed=seed).build_network(channels=1, classes=3) for seed in (1, 1, 2)]
    scaling = networks[0].get_layer("scaling")
    np.testing.assert_array_equal(np.asarray(scaling(np.array([0.0, 128.0, 256.0]))), [-2.0, 0.0, 2.0])
    first = [keras.ops.convert_to_numpy(network.trainable_weights[0]) for network in networks]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_smoothed_loss_is_that_of_keras():
    recipe = TINY.replace(label_smoothing=0.1, augmentation=())
    network = recipe.build_network(3, 10)
    model = recipe.build_training_model(network, 10, 5, jit_compile=False)
    x, y = (part[:8] for part in small().test)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    loss = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(float(expected(np.eye(10)[y], network.predict(x, verbose=0))), rel=1e-5)


@pytest.mark.thorough
def test_half_precision_computes_in_it_and_keeps_weights_and_augmentation_in_float32():
    recipe = TINY.replace(precision="mixed_bfloat16", augmentation=("crop", "flip", "jitter"))
    network = recipe.build_network(3, 10)
    model = recipe.build_training_model(network, 10, 5, jit_compile="auto")
    inner = next(layer for layer in network.layers if isinstance(layer, keras.Model))
    assert inner.get_layer("stem_convolution").compute_dtype == "bfloat16"
    assert {weight.dtype for weight in network.weights} == {"float32"}
    assert model.get_layer("augmentation").output.dtype == "float32"
    x, y = (part[:8] for part in small().train)
    before = keras.ops.convert_to_numpy(network.trainable_weights[0])
    for _ in range(2):  # the warm-up's first rate is 0
        loss = model.train_on_batch(x, y)[0]
    assert np.isfinite(loss)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(network.trainable_weights[0]))


# The report


@pytest.fixture(scope="module")
def tested():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 12)) * 2, random.integers(0, 12, 200)
    logits[np.arange(200), labels] += 1.5
    return logits, labels, report.measure(logits, labels, [f"class {k}" for k in range(12)])


def test_top_1_and_top_5_count_as_sorting_does(tested):
    logits, labels, found = tested
    order = np.argsort(-logits, axis=1)
    assert found["top_1"] == np.mean(order[:, 0] == labels)
    assert found["top_5"] == np.mean([label in row[:5] for label, row in zip(labels, order)])


def test_the_interval_is_wilsons(tested):
    n, p, z = 200, tested[2]["top_1"], 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert tested[2]["top_1_interval"] == pytest.approx([middle - half, middle + half])


def test_confusion_counts_each_pair(tested):
    logits, labels, found = tested
    counted = np.zeros((12, 12), int)
    for label, row in zip(labels, logits):
        counted[label, np.argmax(row)] += 1
    assert found["confusion"] == counted.tolist()


def test_a_network_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    # Two classes, 75 % sure, and right in three of four.
    logits = np.tile([np.log(3.0), 0.0], (400, 1))
    labels = np.arange(400) % 4 == 3
    assert report.measure(logits, labels.astype(int), ["a", "b"])["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    overconfident = report.measure(logits * 20, labels.astype(int), ["a", "b"])
    assert overconfident["calibration_error"] == pytest.approx(0.25, abs=1e-6)


def test_the_loss_is_keras_cross_entropy(tested):
    logits, labels, found = tested
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits.astype("float32"))
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_thousand_classes_need_no_matrix():
    found = report.measure(np.eye(101), np.arange(101), [""] * 101)
    assert (found["confusion"], found["top_1"]) == (None, 1.0)


# The run


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "load", small)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, patched):
    """An undisturbed run of TINY: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, recipes.train_images(TINY, folder, save_every=2)


def weights(folder):
    network = keras.saving.load_model(folder / "model.keras", compile=False)
    return [keras.ops.convert_to_numpy(weight) for weight in network.weights]


def test_a_run_folder_describes_itself(run):
    folder, returned = run
    names = {path.name for path in folder.iterdir()}
    expected = {
        "recipe.json",
        "versions.json",
        "history.csv",
        "checkpoints",
        "model.keras",
        "report.json",
        "report.png",
    }
    assert names - {"tensorboard"} == expected
    assert ("tensorboard" in names) == (keras.backend.backend() == "tensorflow")
    assert ImageRecipe.from_json((folder / "recipe.json").read_text()) == TINY
    assert json.loads((folder / "versions.json").read_text())["versions"]["keras"] == keras.__version__
    assert json.loads((folder / "report.json").read_text()) == returned
    assert returned["training"]["steps"] == 18
    assert returned["class_names"][0] == "astronaut"


def test_the_history_has_a_line_for_each_epoch_and_the_rate_in_it(run):
    history = running.RunFolder(run[0]).history()
    rate = TINY.learning_rate_schedule(6)
    assert history["epoch"] == [1, 2, 3]
    assert history["learning_rate"] == pytest.approx([float(rate(6 * epoch)) for epoch in (1, 2, 3)])
    assert {"loss", "accuracy", "top_5", "val_loss", "val_accuracy", "val_top_5"} <= set(history)


def test_plain_keras_loads_the_model_and_gets_the_reports_accuracy(run, tmp_path):
    x, y = small().test
    np.savez(tmp_path / "test.npz", x=x, y=y)
    code = (
        "import sys, keras, numpy as np\n"
        "test = np.load(sys.argv[2])\n"
        "logits = keras.saving.load_model(sys.argv[1]).predict(test['x'], verbose=0)\n"
        "assert 'nnopt' not in sys.modules\n"
        "print(float(np.mean(np.argmax(logits, axis=1) == test['y'])))"
    )
    words = [sys.executable, "-c", code, str(run[0] / "model.keras"), str(tmp_path / "test.npz")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert float(done.stdout.splitlines()[-1]) == run[1]["top_1"]


@pytest.mark.thorough
def test_an_interrupted_run_ends_with_the_same_weights_and_history(run, tmp_path, monkeypatch):
    folder = tmp_path / "interrupted"
    counted = {"batches": 0}
    after_batch = running.Progress.on_train_batch_end

    def interrupt(progress, batch, logs=None):
        counted["batches"] += 1
        if counted["batches"] in (4, 13):  # in the first epoch; in the third
            raise KeyboardInterrupt
        after_batch(progress, batch, logs)

    monkeypatch.setattr(running.Progress, "on_train_batch_end", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recipes.train_images(TINY, folder, save_every=2)
        assert not (folder / "report.json").exists()
    found = recipes.train_images(TINY, folder, save_every=2)
    assert found["training"]["starts"] == 3
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(folder), weights(run[0]), strict=True))
    assert (folder / "history.csv").read_text() == (run[0] / "history.csv").read_text()
    assert found["top_1"] == run[1]["top_1"]


@pytest.mark.filterwarnings("ignore:The run in .* is complete")
def test_a_complete_run_is_reported_again_and_trained_no_more(run):
    before = weights(run[0])
    again = recipes.train_images(TINY, run[0], save_every=2)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(weights(run[0]), before, strict=True))
    assert {**again, "training": None} == {**run[1], "training": None}


def test_two_processes_do_not_train_in_one_folder(run):
    before = (run[0] / "history.csv").read_text()
    message = r"Another process is training in this folder\. Received: .*whole"
    with running.RunFolder(run[0]).alone(), pytest.raises(ValueError, match=message):
        recipes.train_images(TINY, run[0], save_every=2)
    assert (run[0] / "history.csv").read_text() == before


def test_a_killed_process_gives_its_folder_free(tmp_path):
    script = f"""
import os
from nnopt.recipes.running import RunFolder
with RunFolder({str(tmp_path)!r}).alone():
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    with running.RunFolder(tmp_path).alone():
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_testing_again_gives_the_same_report(run):
    before = (run[0] / "report.json").read_text()
    assert recipes.test_images(run[0])["top_1"] == run[1]["top_1"]
    assert {**json.loads(before), "training": 0} == {**json.loads((run[0] / "report.json").read_text()), "training": 0}


def test_a_picture_of_the_test_is_classified_as_in_the_test(run, tmp_path):
    from PIL import Image

    x, _ = small().test
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for path, pixels in zip(paths, x):
        Image.fromarray(pixels).save(path)
    network = keras.saving.load_model(run[0] / "model.keras", compile=False)
    best = np.argmax(network.predict(x[:3], verbose=0), axis=1)
    found = recipes.classify(run[0], paths, top=10)
    assert [names[0][0] for names in found] == [run[1]["class_names"][k] for k in best]
    for classes in found:
        probabilities = [probability for _, probability in classes]
        assert sum(probabilities) == pytest.approx(1.0)
        assert probabilities == sorted(probabilities, reverse=True)


def test_a_folder_of_another_recipe_is_refused_by_name(run):
    with pytest.raises(ValueError, match=r"another recipe.*Received: epochs 4, not 3; seed 1, not 0"):
        recipes.train_images(TINY.replace(epochs=4, seed=1), run[0])


def test_a_folder_of_other_files_is_refused(tmp_path, patched):
    (tmp_path / "holiday.txt").write_text("at the sea")
    with pytest.raises(ValueError, match="must be a new folder or one of this run"):
        recipes.train_images(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_what_a_killed_run_was_just_writing_is_no_other_file(tmp_path):
    (tmp_path / "recipe.part.json").write_text("{")
    running.RunFolder(tmp_path).check(TINY)


def test_a_run_goes_on_only_with_its_own_strategy_and_backend(run):
    stored = (run[0] / "versions.json").read_text()
    try:
        (run[0] / "versions.json").write_text(stored.replace('"devices": 1', '"devices": 8'))
        with pytest.raises(ValueError, match=r"began with devices 8.*Received: devices 1"):
            recipes.train_images(TINY, run[0])
    finally:
        (run[0] / "versions.json").write_text(stored)


def test_an_unfinished_run_is_neither_tested_nor_used(tmp_path):
    for use in (lambda: recipes.test_images(tmp_path), lambda: recipes.classify(tmp_path, ["x.png"])):
        with pytest.raises(FileNotFoundError, match="holds no finished run"):
            use()


def test_a_loss_that_is_no_number_stops_the_run_and_reports_nothing(tmp_path, patched):
    with pytest.raises(FloatingPointError, match=r"The loss became (nan|inf) in epoch 1.*`learning_rate`"):
        recipes.train_images(TINY.replace(optimizer="sgd", learning_rate=1e30, warmup=0.0), tmp_path / "run")
    assert not {"report.json", "model.keras"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_missing_data_leave_no_folder(tmp_path, monkeypatch):
    def missing(name):
        raise FileNotFoundError("cifar10 is not here")

    monkeypatch.setattr(images, "load", missing)
    with pytest.raises(FileNotFoundError, match="cifar10 is not here"):
        recipes.train_images(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    folder = running.RunFolder(tmp_path)
    folder.write("history.csv", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write("history.csv", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("history.csv", "old")]


def test_what_a_library_raises_on_a_full_disk_is_called_by_its_name(tmp_path, monkeypatch):
    folder = running.RunFolder(tmp_path)
    for free, kind in ((0, OSError), (10**9, RuntimeError)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(running.shutil, "disk_usage", lambda path, usage=usage: usage)
        with pytest.raises(kind), folder.told_of_full_disk():
            raise RuntimeError("Unable to flush file")


# Devices and compilation


@pytest.mark.parametrize(("strategy", "backend"), [("mirrored", "tensorflow"), ("jax", "jax")])
def test_a_strategy_of_another_backend_is_refused(strategy, backend):
    if keras.backend.backend() == backend:
        running.Devices(strategy)
        return
    with pytest.raises(ValueError, match=f"needs the backend {backend}: .*Received: KERAS_BACKEND="):
        running.Devices(strategy)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="`strategy` must be one of 'none', 'mirrored', 'jax'"):
        running.Devices("horovod")


@pytest.mark.thorough
@pytest.mark.parametrize(("strategy", "backend"), [("mirrored", "tensorflow"), ("jax", "jax")])
def test_two_devices_share_the_batches_and_learn_as_one(strategy, backend, tmp_path):
    pytest.importorskip(backend)
    words = ["small_images.py", "train", "image", "--preset", "laptop", "--set", *FAST, "augmentation=[]", "warmup=0.5"]
    one, two = losses_on_one_and_two(words, strategy, backend, tmp_path)
    # JAX normalizes over the whole batch, as one device does; TensorFlow's replicas each over their half.
    assert two == pytest.approx(one, rel=1e-3 if strategy == "jax" else 0.2)


def test_jax_refuses_batches_that_its_devices_cannot_share():
    devices = running.Devices("none")
    devices.strategy, devices.count = "jax", 2
    devices.check_batches([96, 32], 16)
    with pytest.raises(ValueError, match=r"`batch_size` must leave batches.* Received: batches of \[0, 3, 16\]"):
        devices.check_batches([96, 35], 16)


@pytest.mark.parametrize("seconds", [(2.0, 1.0), (1.0, 2.0)])
def test_the_faster_compilation_is_chosen_and_said(seconds, monkeypatch, capsys):
    class Model:
        def __init__(self, jit):
            self.jit = jit

        def train_on_batch(self, x):
            clock["now"] += seconds[self.jit]

    class Batches:
        def batches(self, epoch):
            yield (None,)

    clock = {"now": 0.0}
    monkeypatch.setattr(running.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    pytest.importorskip("tensorflow")
    chosen = running.choose_jit("auto", running.Devices("none"), Model, Batches())
    assert chosen == (seconds[1] < seconds[0])
    assert f"jit_compile={chosen}" in capsys.readouterr().out


def test_jax_and_torch_compile_as_they_do_by_themselves(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert running.choose_jit(False, running.Devices("none"), None, None) == "auto"


# The whole, in processes of their own


@pytest.mark.thorough
def test_the_paper_preset_trains_on_imagenets_schema(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(images, "load", LOAD)  # other tests of this module, if they ran before, left `small` there
    recipe = ImageRecipe.preset("paper").replace(batch_size=8, epochs=1, precision="float32", jit_compile=False)
    with tfds.testing.mock_data(num_examples=17):
        found = recipes.train_images(recipe, tmp_path / "run")
    assert (found["parameters"], found["training"]["steps"]) == (25_557_032, 2)
    assert (len(found["class_names"]), found["confusion"]) == (1000, None)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_kills_change_nothing(backend):
    pytest.importorskip(backend)
    command = [sys.executable, str(ROOT / "tests" / "recipe_kills.py"), "--kills", "3"]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout


def test_presets_are_functions_of_the_module():
    assert all(getattr(image, name) is function for name, function in ImageRecipe.presets.items())
