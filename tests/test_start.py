"""Importing nnopt prints nothing of its own and swallows nothing of others."""

import os
import subprocess
import sys

import pytest

from nnopt._start import without_tensorflow_notices


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_importing_nnopt_prints_nothing():
    assert run("import nnopt") == ""


def test_other_lines_are_passed_on_and_notices_are_not(capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with without_tensorflow_notices():
        os.write(2, b"I0000 oneDNN custom operations are on. You may see\na real warning\n")
    assert capfd.readouterr().err == "a real warning\n"


def test_standard_error_comes_back_after_an_exception(capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)

    def failing_import():
        with without_tensorflow_notices():
            os.write(2, b"why it failed\n")
            raise ImportError

    with pytest.raises(ImportError):
        failing_import()
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "why it failed\nlater\n"
