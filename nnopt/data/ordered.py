"""Data whose order is a pure function of the number of the epoch.

`fit`'s own shuffling starts anew after a restart, so a resumed run would see other batches than one that was never
interrupted. Here the batches of epoch 7 are the same whoever asks for them, and whenever: nothing counts epochs, and a
model that trains leaves no trace in the data. `nnopt.callbacks.Resume` takes whatever keeps the protocol `EpochData`:
`OrderedDataset` for arrays in memory, `EpochPipeline` for a pipeline of tf.data (TFDS) or Grain.
"""

import hashlib
import itertools
import typing

import keras
import numpy as np

from nnopt import _keras
from nnopt.checks import check_boolean, check_callable, check_integer, shown


@typing.runtime_checkable
class EpochData(typing.Protocol):
    """What `Resume` asks of data; `fit` asks, besides, that they be a `keras.utils.PyDataset`."""

    def __len__(self):
        """Returns the number of batches of an epoch."""

    def batches(self, epoch, start=0):
        """Returns an iterable of the batches of an epoch from batch `start` on, the same ones at every call."""

    def fingerprint(self):
        """Returns what tells these data and their order from others, made of numbers, strings, lists and dicts."""


def epoch_order(examples, seed, epoch):
    """Returns the order in which one epoch visits the examples: a permutation of 0 ... examples - 1, int64.

    Args:
        examples: Number of examples.
        seed: Integer >= 0.
        epoch: Number of the epoch, from 0.

    Example:

    >>> epoch_order(5, seed=0, epoch=3).tolist() == epoch_order(5, seed=0, epoch=3).tolist()
    True
    """
    return np.random.default_rng([seed, epoch]).permutation(examples)


class OrderedDataset(keras.utils.PyDataset):
    """Cuts batches out of arrays in memory: in training by `epoch_order(examples, seed, epoch)`, otherwise as they are.

        data = OrderedDataset(x, y, batch_size=32, seed=0)
        model.fit(data, epochs=20, callbacks=[Resume("runs/first", data)])
        model.predict(data)     # a row for each example, in the order of x

    Training goes through `nnopt.callbacks.Resume`, which knows the epoch. `fit` alone would shuffle whole batches only,
    and in another way after a restart: it raises RuntimeError.

    Args:
        x: Inputs: an array, or a tuple, list or dict of arrays, all with the same length along the first axis.
        y: Targets, in the same forms; or None.
        sample_weight: Weights of the examples, in the same forms; or None. Needs `y`.
        batch_size: Examples in a batch, an integer >= 1. The last batch of an epoch has what is left.
        seed: Integer >= 0.
        shuffle: Whether to change the order in every epoch; otherwise the examples come as they are.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or the lengths differ.

    Example:

    >>> data = OrderedDataset(np.arange(5), np.arange(5) * 10, batch_size=2, seed=0)
    >>> len(data)
    3
    >>> x, y = next(data.batches(epoch=3))
    >>> x.tolist() == epoch_order(5, seed=0, epoch=3)[:2].tolist(), y.tolist() == (10 * x).tolist()
    (True, True)
    >>> data[0][0].tolist()
    [0, 1]
    """

    def __init__(self, x, y=None, sample_weight=None, batch_size=32, seed=0, shuffle=True):
        super().__init__()
        if sample_weight is not None and y is None:
            raise ValueError(f"`sample_weight` needs `y`. Received: sample_weight={shown(sample_weight)}, y=None")
        given = {"x": x, "y": y, "sample_weight": sample_weight}
        self._parts = tuple(_arrays(name, part) for name, part in given.items() if part is not None or name == "x")
        lengths = {len(array) for array in keras.tree.flatten(self._parts)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "`x`, `y` and `sample_weight` must have one and the same length >= 1. "
                f"Received: lengths={sorted(lengths)}"
            )
        self.examples = lengths.pop()
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        self.shuffle = check_boolean("shuffle", shuffle)

    def __len__(self):
        return -(-self.examples // self.batch_size)

    def __getitem__(self, index):
        """Returns batch `index` in the order of the arrays, as `evaluate` and `predict` read them."""
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be an integer >= 0 and < {len(self)}. Received: index={index}")
        return self._cut(slice(index * self.batch_size, (index + 1) * self.batch_size))

    def batches(self, epoch, start=0):
        """Yields the batches of an epoch in its order, from batch `start` on.

        Args:
            epoch: Number of the epoch, an integer >= 0.
            start: Number of the first batch, an integer >= 0.
        """
        epoch = check_integer("epoch", epoch, at_least=0)
        start = check_integer("start", start, at_least=0)
        order = epoch_order(self.examples, self.seed, epoch) if self.shuffle else np.arange(self.examples)
        for first in range(start * self.batch_size, self.examples, self.batch_size):
            yield self._cut(order[first : first + self.batch_size])

    def fingerprint(self):
        """Returns what identifies the data and their order: sizes, seed, and a checksum of 64 rows of each array."""
        rows = np.linspace(0, self.examples - 1, num=min(64, self.examples)).astype("int64")
        return {
            "examples": self.examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "checksum": _checksum(self._cut(rows), [array.shape for array in keras.tree.flatten(self._parts)]),
        }

    def on_epoch_begin(self):
        """Called by Keras at the beginning of a pass over the data, unless Resume reads them in its place."""
        _refuse_plain_fit(self)

    def _cut(self, rows):
        return keras.tree.map_structure(lambda array: array[rows], self._parts)


class EpochPipeline(keras.utils.PyDataset):
    """Gives `Resume` a pipeline: of tf.data, such as TFDS makes, of Grain, or any function of the epoch.

        def make(epoch):
            images = tfds.load("cifar10", split="train", as_supervised=True)
            return images.shuffle(10_000, seed=epoch).batch(64)

        data = EpochPipeline(make, steps_per_epoch=782, fingerprint="cifar10 3.0.2, batches of 64")
        model.fit(data, epochs=20, callbacks=[Resume("runs/cifar10", data, save_freq=100)])

    Args:
        make: Function of the number of the epoch (an integer >= 0) that returns an iterable of batches, (x,), (x, y) or
            (x, y, sample_weight), always the same ones: its shuffling and its augmentation are seeded by the epoch. To
            take up an epoch at its batch k, the k batches before are made and dropped.
        steps_per_epoch: Batches of an epoch, an integer >= 1. What `make` gives beyond is left out; less raises.
        fingerprint: What tells these data and their order from others: a string, a number, or lists and dicts of them.
            A checksum of the first batch is added.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`, `make(0)` begins with two
            different batches when it is called twice, or an epoch has too few batches.

    `evaluate` and `predict` read epoch 0. The batches come to Keras as NumPy arrays.

    Example:

    >>> def make(epoch):
    ...     for batch in np.random.default_rng([7, epoch]).permutation(6).reshape(3, 2):
    ...         yield batch, 10 * batch
    >>> data = EpochPipeline(make, steps_per_epoch=3, fingerprint="six numbers")
    >>> [y.tolist() for x, y in data.batches(2, start=1)] == [y.tolist() for x, y in data.batches(2)][1:]
    True
    """

    def __init__(self, make, steps_per_epoch, fingerprint):
        super().__init__()
        self._make = check_callable("make", make)
        self._steps = check_integer("steps_per_epoch", steps_per_epoch, at_least=1)
        self._fingerprint = fingerprint
        self._outside = EpochReader(self)

    def __len__(self):
        return self._steps

    def __getitem__(self, index):
        return self._outside[index]

    def batches(self, epoch, start=0):
        """Yields the batches of an epoch in its order, from batch `start` on, as tuples of NumPy arrays."""
        number = start
        for batch in itertools.islice(self._make(epoch), start, self._steps):
            yield keras.tree.map_structure(np.asarray, tuple(batch) if isinstance(batch, list) else batch)
            number += 1
        if number < self._steps:
            raise ValueError(
                f"`make({epoch})` must give steps_per_epoch={self._steps} batches. Received: {number} batches"
            )

    def fingerprint(self):
        """Returns the fingerprint given, and a checksum of the first batch, which is made twice to compare."""
        first, again = (_checksum(next(iter(self.batches(0)))) for _ in range(2))
        if first != again:
            raise ValueError(
                "`make` must return the same batches whenever it is called for the same epoch: seed its shuffling "
                "and its augmentation by the epoch. Received: two calls of make(0) whose first batches differ"
            )
        return {"fingerprint": self._fingerprint, "steps_per_epoch": self._steps, "checksum": first}

    def on_epoch_begin(self):
        """Called by Keras at the beginning of a pass over the data, unless Resume reads them in its place."""
        _refuse_plain_fit(self)


class EpochReader(keras.utils.PyDataset):
    """Shows Keras one epoch of EpochData after another: what Resume puts in the place of the data given to `fit`.

    Keras can begin an epoch only at its first batch: those before `start`, which are not trained, are stood in for by
    batch `start`.

    Args:
        data: EpochData.

    Example:

    >>> reader = EpochReader(OrderedDataset(np.arange(6), batch_size=2, shuffle=False))
    >>> reader.turn_to(epoch=3, start=1)
    >>> [reader[index][0].tolist() for index in range(3)]
    [[2, 3], [2, 3], [4, 5]]
    """

    def __init__(self, data):
        super().__init__()
        self._data = data
        self.turn_to(0)

    def turn_to(self, epoch, start=0):
        """Begins with batch `start` of an epoch."""
        self._epoch, self._start = epoch, start
        self._iterator = self._batch = self._number = None

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index):
        index = max(index, self._start)
        if index != self._number:
            if self._number is None or index != self._number + 1:
                self._iterator = iter(self._data.batches(self._epoch, index))
            self._batch = next(self._iterator)
            self._number = index
        return self._batch


def _refuse_plain_fit(data):
    if _keras.trains():
        raise RuntimeError(
            f"Only a Resume that is given the same data knows their order in each epoch: "
            f"`fit(data, callbacks=[Resume(directory, data)])`. Received: data={shown(data)} without it"
        )


def _arrays(name, value):
    # TensorFlow turns a list inside a batch into one tensor; a tuple stays what it is.
    value = tuple(value) if isinstance(value, list) and value and hasattr(value[0], "shape") else value
    structure = keras.tree.map_structure(np.asarray, value)
    for array in keras.tree.flatten(structure):
        if array.ndim == 0 or array.dtype == object:
            raise TypeError(
                f"`{name}` must be an array, or a tuple, list or dict of arrays, with a row for each example. "
                f"Received: {name}={shown(value)} (of type {type(value).__name__})"
            )
    return structure


def _checksum(arrays, *others):
    digest = hashlib.sha256(repr(others).encode())
    for array in keras.tree.flatten(arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
