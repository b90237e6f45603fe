"""What is done about the import of TensorFlow and Keras: its notices are held back, and it is made faster.

TensorFlow prints two notices on each start, with no news in them. They would stand in red at the top of every notebook.
Nothing else is held back: other lines are passed on at once.
"""

import contextlib
import gc
import os
import subprocess
import sys

_NOTICES = (
    "All log messages before absl::InitializeLog() is called",
    "oneDNN custom operations are on",
    "Could not find cuda drivers",
)
# A process of its own: what it has read reaches the terminal even if the import takes this process down.
_FILTER = """
import sys
for line in sys.stdin.buffer:
    if not any(notice.encode() in line for notice in sys.argv[1:]):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def without_garbage_collection():
    """Pauses Python's collector of cycles: an import makes a million objects that stay, and a search costs a second."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def without_tensorflow_notices():
    """Drops TensorFlow's start-up notices from the standard error of the process while the block runs."""
    if "tensorflow" in sys.modules:
        yield
        return
    # Only errors later on; whoever wants more sets the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
        # In a session of its own, so that Ctrl-C does not end it before it has passed on the traceback.
        lines = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTER, *_NOTICES], stdin=subprocess.PIPE, start_new_session=True
        )
    except (AttributeError, OSError, ValueError):  # no standard error, or no interpreter to start
        yield
        return
    os.dup2(lines.stdin.fileno(), 2)  # the notices come from C++, which knows no sys.stderr
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        lines.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child of the import may hold the other end open
            lines.wait(timeout=5)


def import_tensorflow():
    """Imports TensorFlow without its notices; `keras.utils.set_random_seed` would, with them, on any backend."""
    with without_tensorflow_notices():
        import tensorflow  # noqa: F401
