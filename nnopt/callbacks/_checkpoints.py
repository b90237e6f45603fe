"""The file behind `Resume`: a tree of numbers, strings and arrays, whole or recognised as damaged, without pickle.

A checkpoint is written under a temporary name, flushed to the disk and renamed; its first lines are a magic word and a
checksum of the rest, which is NumPy's own archive format with the tree as JSON beside the arrays.
"""

import hashlib
import io
import json
import os
import warnings

import numpy as np

MAGIC = b"nnopt checkpoint 1\n"


def write(directory, state, keep):
    """Writes a checkpoint so that at every moment a whole one is on the disk, and removes all but `keep`.

    Args:
        directory: A pathlib.Path; created if it is missing.
        state: A tree of dicts with strings as keys, lists, numbers, strings, None and NumPy arrays.
        keep: Number of checkpoints that stay, the new one included.
    """
    payload = _payload(state)
    directory.mkdir(parents=True, exist_ok=True)
    checkpoints = _checkpoints(directory)
    number = _number(checkpoints[-1]) + 1 if checkpoints else 1
    path = directory / f"checkpoint-{number:08d}.nnopt"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.write(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _flush_directory(directory)
    for old in [*checkpoints[: len(checkpoints) + 1 - keep], *directory.glob("checkpoint-*.tmp")]:
        old.unlink()


def check(state):
    """Raises TypeError where a state holds something that a checkpoint cannot."""
    json.dumps(_pack(state, []), default=_json)


def _payload(state):
    arrays = []
    manifest = {"state": _pack(state, arrays)}
    # NumPy's format knows no bfloat16: bytes, with the type in the manifest.
    manifest["arrays"] = [[array.dtype.name, list(array.shape)] for array in arrays]
    raw = {str(index): np.frombuffer(array.tobytes(), "uint8") for index, array in enumerate(arrays)}
    stream = io.BytesIO()
    np.savez(stream, manifest=np.frombuffer(json.dumps(manifest, default=_json).encode(), "uint8"), **raw)
    return stream.getvalue()


def _flush_directory(directory):
    # Windows opens no directories, and needs it not.
    if os.name != "nt":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checkpoints(directory):
    return sorted(directory.glob("checkpoint-*.nnopt"), key=_number)


def _number(path):
    return int(path.stem.split("-")[1])


def newest(directory):
    """Returns (path, state) of the newest whole checkpoint, or None. Damaged ones are put aside."""
    for path in reversed(_checkpoints(directory)):
        try:
            return path, _read(path)
        except _CorruptCheckpoint as error:
            warnings.warn(f"The checkpoint {path} is damaged ({error}); the one before is used.", stacklevel=2)
            path.replace(path.with_suffix(".corrupt"))
    return None


class _CorruptCheckpoint(Exception):
    pass


def _read(path):
    content = path.read_bytes()
    header = len(MAGIC) + 65
    if len(content) < header or not content.startswith(MAGIC):
        raise _CorruptCheckpoint("its beginning is missing")
    payload = content[header:]
    if hashlib.sha256(payload).hexdigest().encode() != content[len(MAGIC) : header - 1]:
        raise _CorruptCheckpoint("its checksum is wrong")
    with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
        manifest = json.loads(archive["manifest"].tobytes().decode())
        arrays = [
            archive[str(index)].view(np.dtype(name)).reshape(shape).copy()
            for index, (name, shape) in enumerate(manifest["arrays"])
        ]
    return _unpack(manifest["state"], arrays)


def _pack(value, arrays):
    """A tree of plain values, with its arrays taken out and numbered."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):  # JSON would make a string of it
                raise _not_storable(key)
        return {"dict": {key: _pack(item, arrays) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(item, arrays) for item in value]
    return value


def _unpack(value, arrays):
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: _unpack(item, arrays) for key, item in value["dict"].items()}
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    return value


def _json(value):
    if isinstance(value, np.generic):
        return value.item()
    raise _not_storable(value)


def _not_storable(value):
    return TypeError(
        "The state of a callback must be made of numbers, strings, None, lists, dicts with strings as keys, and NumPy "
        f"arrays. Received: {repr(value)[:200]} (of type {type(value).__name__})"
    )
