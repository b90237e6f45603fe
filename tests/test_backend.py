"""Threads of one operation, and notes of TensorFlow that are held back for a while."""

import contextlib
import logging
import os
import subprocess
import sys

import keras
import pytest

from nnopt import _backend


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX takes no number of threads")
def test_the_number_of_threads_is_set_before_anything_is_computed():
    code = "import keras\nfrom nnopt import _backend\nprint(_backend.threads(3), _backend.threads())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "3 3\n"


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX takes no number of threads")
def test_jax_takes_no_number_of_threads():
    assert _backend.threads(3) is None


def test_notes_of_tensorflow_are_held_back_also_where_the_block_fails_and_no_longer():
    logger = logging.getLogger("tensorflow")
    before = logger.level
    with contextlib.suppress(KeyError), _backend.quiet_tensorflow():
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
        raise KeyError
    assert logger.level == before
