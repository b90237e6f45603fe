"""Runs the from-scratch cells of a chapter under the running backend, so that the tests copy nothing."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np

import nnopt
from nnopt.lab import evidence, plots

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def from_scratch(notebook, **names):
    """Returns the names that a notebook's cells tagged "scratch" define.

    Args:
        notebook: File name without ".ipynb".
        names: What these cells use beside `nnopt`, `keras`, `ops`, `np`, `evidence` and `plots`.
    """
    book = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in book["cells"] if "scratch" in cell["metadata"].get("tags", [])]
    if not cells:
        raise ValueError(f'`notebook` must have a cell tagged "scratch". Received: notebook={notebook!r}')
    space = {"nnopt": nnopt, "keras": keras, "ops": keras.ops, "np": np, "evidence": evidence, "plots": plots, **names}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{notebook}, scratch cell {number}", "exec"), space)
    return space


def load_book():
    """Returns the module .ci/book.py."""
    spec = importlib.util.spec_from_file_location("book", NOTEBOOKS.parent / ".ci" / "book.py")
    book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)
    return book
