"""Importing nnopt prints nothing of its own and swallows nothing of others, not even where the import dies."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnopt
from nnopt._start import without_garbage_collection, without_tensorflow_notices

ALONE = f"""
import os, sys
sys.path.insert(0, {str(Path(nnopt.__file__).parent)!r})
from _start import without_tensorflow_notices
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_nnopt_prints_nothing():
    done = run("import nnopt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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


@pytest.mark.parametrize("death", ["os.abort()", "os._exit(1)", "__import__('ctypes').string_at(0)"])
def test_an_import_that_takes_the_process_down_still_says_why(death):
    done = run(f"{ALONE}\nwith without_tensorflow_notices():\n    os.write(2, b'no AVX\\n')\n    {death}")
    assert done.returncode != 0
    assert "no AVX\n" in done.stderr


def test_without_an_interpreter_to_start_nothing_is_held_back():
    notice = "oneDNN custom operations are on"
    code = f"sys.executable = 'nowhere'\nwith without_tensorflow_notices():\n    os.write(2, b'{notice}')"
    done = run(f"{ALONE}\n{code}")
    assert (done.returncode, done.stderr) == (0, notice)


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_collected_after_an_import_where_it_was_before(before, monkeypatch):
    monkeypatch.setattr(gc, "isenabled", lambda: before)
    states = []
    monkeypatch.setattr(gc, "disable", lambda: states.append(False))
    monkeypatch.setattr(gc, "enable", lambda: states.append(True))
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError
    assert states == ([False, True] if before else [False])
