"""What every chapter begins with, in one call."""

import contextlib

import keras

from nnopt import _backend
from nnopt._start import import_tensorflow
from nnopt.checks import check_integer
from nnopt.lab import plots


def open_chapter(threads=1):
    """Sets the book's look, and how many threads one operation may use.

    Small networks run a tenth faster on one thread, and their numbers then depend less on the reader's processor.

    Args:
        threads: Threads of one operation on TensorFlow, an integer >= 1; JAX and torch keep theirs.
    """
    check_integer("threads", threads, at_least=1)
    plots.use_style()
    import_tensorflow()
    if keras.backend.backend() == "tensorflow":
        # Too late where something has been computed: the chapter then runs on the threads that there are.
        with contextlib.suppress(RuntimeError):
            _backend.threads(threads)
