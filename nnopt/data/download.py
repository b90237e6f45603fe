"""One way to fetch a file: it says what it will fetch, checks what came, and never leaves half a file."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

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
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            _transfer(url, temporary, size, advice)
            check_file(temporary, sha256, name=url)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        check_file(path, sha256, name=path)
    return path


def check_file(path, sha256, name):
    """Raises ValueError, which names the file as `name`, unless its checksum is the one given."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"The sha256 of {name} must be {sha256}. Received: {digest.hexdigest()}. Delete it and retry.")


def _transfer(url, path, size, advice):
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name.split(".")[0])
    try:
        with urllib.request.urlopen(url, timeout=60) as source, open(path, "wb") as target, bar:
            while block := source.read(BLOCK):
                target.write(block)
                bar.update(len(block))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ConnectionError(f"{url} cannot be reached: {error}. {advice}".strip()) from error
