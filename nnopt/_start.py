"""Holds back what TensorFlow prints to the terminal while it is imported: two notices on each start, no news in them.

They would stand in red at the top of every notebook. Nothing else is held back: other lines are passed on.
"""

import contextlib
import os
import sys
import tempfile

_NOTICES = (
    b"All log messages before absl::InitializeLog() is called",
    b"oneDNN custom operations are on",
    b"Could not find cuda drivers",
)


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
    except (AttributeError, OSError):  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)  # the notices come from C++, which knows no sys.stderr
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            lines = [line for line in held if not any(notice in line for notice in _NOTICES)]
            os.write(2, b"".join(lines))
