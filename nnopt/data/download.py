"""One way to fetch a file: it says what it will fetch, checks what came, and never leaves half a file."""

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import keras
from tqdm import tqdm

BLOCK = 2**16  # bytes


def fetch(url, path, *, sha256, size, licence, advice=""):
    """Downloads a file unless it is there; returns its path.

    URL, size and licence are printed before a download starts. It is written under a temporary name in the same folder
    and renamed once its checksum is right, so that a file under `path` is always whole.

    Args:
        url: Where from.
        path: Where to; its folder is made.
        sha256: Checksum of the file, 64 hexadecimal digits; a file that is there already is checked, too.
        size: Size in bytes, for the notice and the progress bar.
        licence: Name of the licence, for the notice.
        advice: What to do where there is no network, for the error message.

    Raises:
        ConnectionError: The file cannot be reached; nothing is left behind.
        ValueError: The checksum is wrong: the file was changed, or the transfer was cut off.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "abc.txt")
    ...     _ = path.write_bytes(b"abc")
    ...     digest = hashlib.sha256(b"abc").hexdigest()
    ...     fetch("https://example.org/abc.txt", path, sha256=digest, size=3, licence="none") == path
    True
    """
    path = Path(path)
    if not path.exists():
        print(f"Downloading {url} ({size / 1e6:.1f} MB, licence: {licence}) to {path}")
        with whole(path) as temporary:
            _transfer(url, temporary, size, advice)
            check_file(temporary, sha256, name=url)
    else:
        check_file(path, sha256, name=path)
    return path


@contextlib.contextmanager
def whole(path):
    """Gives a temporary path in the same folder, which is made; what is written there then gets the name `path`.

    After an error nothing of it is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path, sha256, name):
    """Raises ValueError, which names the file as `name`, unless its checksum is the one given."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(f"The sha256 of {name} must be {sha256}. Received: {digest}. Delete it and retry.")


def _transfer(url, path, size, advice):
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name.split(".")[0])
    try:
        with urllib.request.urlopen(url, timeout=60) as source, open(path, "wb") as target, bar:
            while block := source.read(BLOCK):
                target.write(block)
                bar.update(len(block))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ConnectionError(f"{url} cannot be reached: {error}. {advice}".strip()) from error


@contextlib.contextmanager
def through_tfds(name, advice):
    """Gives tensorflow_datasets, and turns whatever keeps it from preparing a data set into one sentence.

    Args:
        name: Name of the data set.
        advice: What to do about it, for the error message.

    Raises:
        FileNotFoundError: The data set cannot be prepared.
    """
    import tensorflow_datasets as tfds

    try:
        _hide_accelerators()
        yield tfds
    except Exception as error:  # of its own, of requests, of the file system, of a proxy
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"The data set {name!r} is not on this machine, and tensorflow-datasets cannot prepare it in "
            f"{os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')}: {reason[:200]}. {advice}"
        ) from error


def _hide_accelerators():
    """Keeps TensorFlow, which only reads the data where another backend computes, from taking the GPU's memory."""
    if keras.backend.backend() != "tensorflow":
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # it runs already
            tf.config.set_visible_devices([], "GPU")
