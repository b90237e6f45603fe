"""The package as a whole: what the wheel holds, who imports whom, where private names stand, how large it is."""

import ast
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8"))
           for path in sorted((ROOT / "nnopt").rglob("*.py"))}  # fmt: skip
# Who may import whom: only what stands in its own line or above.
LEVELS = (
    ("checks", "_start", "_keras", "_gradients", "_state", "_backend", "_patches", "_classifiers"),
    ("schedules", "optimizers"),
    ("finder", "callbacks", "models", "data", "decoding", "attacks", "explain"),
    ("lab",),
    ("recipes",),
    ("__main__",),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy: setuptools would leave a build folder in the checkout, and pack what is still in it."""
    folder = tmp_path_factory.mktemp("wheel")
    copytree(ROOT / "nnopt", folder / "nnopt", ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    pip(folder, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", ".", ".")
    return next(folder.glob("*.whl"))


def pip(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_every_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(".py")} == set(MODULES)
        tables = {"data/multi30k.json", "data/number_phrases.json", "lab/article.csv", "lab/book.mplstyle"}
        tables.add("lab/colors.csv")
        assert {f"nnopt/{name}" for name in tables} <= set(archive.namelist())


def test_what_is_installed_from_the_wheel_is_imported_from_there(wheel, tmp_path):
    pip(tmp_path, "install", "--no-deps", "--no-index", "--target", "installed", str(wheel))
    parts = "callbacks, data, lab, models, optimizers, schedules"
    code = f"import nnopt\nfrom nnopt import {parts}\nprint(*(part.__file__ for part in (nnopt, {parts})), sep='\\n')"
    place = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(tmp_path / "installed") for line in done.stdout.splitlines())


def imported(tree, inside_functions):
    """Returns the full names of what a module imports, at its top or everywhere."""
    names, nodes = [], [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        if inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_backend_at_its_top(module):
    names = {name.split(".")[0] for name in imported(MODULES[module], inside_functions=False)}
    assert not names & {"tensorflow", "jax", "torch", "tensorflow_datasets"}


def level(part):
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "nnopt/__init__.py"])
def test_modules_import_from_their_own_level_or_below(module):
    own = level(Path(module).parts[1].removesuffix(".py"))
    names = [name.split(".") for name in imported(MODULES[module], inside_functions=True)]
    upwards = {".".join(name) for name in names if name[0] == "nnopt" and len(name) > 1 and level(name[1]) > own}
    # A figure is drawn where someone asks for it, by a function of its own.
    drawing = {name for name in upwards if name.startswith("nnopt.lab.plots")}
    assert not upwards - drawing
    assert not drawing & set(imported(MODULES[module], inside_functions=False))


def private(names):
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def private_names_of_keras():
    """Returns the private members of the Keras objects that the package touches."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    objects = [
        model,
        model.optimizer,
        keras.optimizers.AdamW(),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    ]
    objects += [model.layers[0], model.weights[0], keras.callbacks.Callback(), keras.callbacks.CallbackList()]
    objects += [keras.callbacks.EarlyStopping(), keras.random.SeedGenerator(0), keras.metrics.Mean()]
    return set().union(*(private([*dir(kind), *vars(kind)]) for kind in objects))


KERAS_PRIVATE = private_names_of_keras()
# Defined by the package itself, for itself.
OWN = {
    node.name
    for tree in MODULES.values()
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
} | {
    node.attr
    for tree in MODULES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
}


@pytest.mark.parametrize("module", [module for module in MODULES if module != "nnopt/_keras.py"])
def test_private_names_of_keras_stand_in_one_file(module):
    tree = MODULES[module]
    assert not [name for name in imported(tree, inside_functions=True) if name.startswith("keras.src")]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and private([node.attr])]
    of_others = {node.attr for node in found if not (isinstance(node.value, ast.Name) and node.value.id == "self")}
    assert not of_others & KERAS_PRIVATE
    assert not {node.attr for node in found} - OWN


@pytest.fixture(scope="module")
def sizes():
    spec = importlib.util.spec_from_file_location("sizes", ROOT / ".ci" / "sizes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_of_code_are_counted_without_docstrings_comments_and_blank_lines(sizes):
    docs, code = '"""Docs,\n\nlong ones."""\n\n', "x = 1  # why\n# and more\n\n\ndef f(\n    y,\n):\n"
    source = docs + code + '    """What."""\n    return """a\nb"""\n'
    assert sizes.code_lines(source) == 1 + 3 + 2


def test_a_limit_that_is_passed_is_named(sizes):
    assert sizes.too_long({"a.py": 350, **{f"lab/{i}.py": 324 for i in range(4)}}) == []
    assert sizes.too_long({"a.py": 351})[0].startswith("a.py has 351 lines of code")
    assert sizes.too_long({f"lab/{i}.py": 325 for i in range(4)})[0].startswith("lab has 1300 lines of code")


def test_every_group_and_every_file_keeps_to_the_sizes_of_the_design(sizes):
    assert sizes.too_long(sizes.counted()) == []
