"""Data whose order is a pure function of a seed and the number of the epoch.

`fit`'s own shuffling starts anew after a restart, so a resumed run would see other batches than one that was never
interrupted. Here the order of epoch 7 is the same whoever asks for it, and whenever.
"""

import hashlib
import warnings

import keras
import numpy as np

from nnopt.checks import check_boolean, check_integer


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
    """Cuts batches out of arrays in memory, in the order `epoch_order(examples, seed, epoch)`.

    Keras does not tell a data set which epoch it is in, so a callback does: pass `data` to `nnopt.callbacks.Resume`,
    or, without Resume, the callback `data.follow()` to `fit`. Epochs go on counting in a second `fit`, unless its
    `initial_epoch` says otherwise. Always call `fit(..., shuffle=False)`: with its default, `shuffle=True`, Keras draws
    the batches of a PyDataset in an order of its own; that is noticed and raises RuntimeError.

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
    >>> data.set_epoch(3)
    >>> x, y = data[0]
    >>> x.tolist() == epoch_order(5, seed=0, epoch=3)[:2].tolist(), y.tolist() == (10 * x).tolist()
    (True, True)
    """

    def __init__(self, x, y=None, sample_weight=None, batch_size=32, seed=0, shuffle=True):
        super().__init__()
        if sample_weight is not None and y is None:
            raise ValueError(f"`sample_weight` needs `y`. Received: sample_weight={sample_weight!r}, y=None")
        parts = [_arrays("x", x)]
        parts += [
            _arrays(name, part) for name, part in [("y", y), ("sample_weight", sample_weight)] if part is not None
        ]
        self._parts = tuple(parts)
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
        # The epoch that a new `fit` begins with, and whether anybody has read the present one.
        self.next_epoch = 0
        self._told = self._warned = self._iterating = self.read = False
        self._requests = self._untold = 0
        self._turn_to(0)

    def set_epoch(self, epoch):
        """Turns to an epoch: an integer >= 0."""
        self._turn_to(check_integer("epoch", epoch, at_least=0))
        self._told = True
        self._untold = 0
        self.read = False
        self.next_epoch = epoch + 1

    def follow(self):
        """Returns a callback for `fit` that tells this data set the epoch; `Resume(directory, data)` does so itself."""
        return FollowEpoch(self)

    def __len__(self):
        return -(-self.examples // self.batch_size)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be an integer >= 0 and < {len(self)}. Received: index={index}")
        self._check_sequence(index)
        return self.batch(index)

    def batch(self, index):
        """Returns batch `index` of the present epoch, in whatever order batches are asked for."""
        start = index * self.batch_size
        chosen = self.order[start : start + self.batch_size]
        return keras.tree.map_structure(lambda array: array[chosen], self._parts)

    def on_epoch_begin(self):
        """Called by Keras at the beginning of a pass over the data."""
        self._requests = 0
        self._iterating = self.read = True
        if self._told or not self.shuffle or self._warned:
            return
        # JAX and torch read one batch before the first epoch, to build the model.
        self._untold += 1
        if self._untold > 1:
            self._warned = True
            warnings.warn(
                "OrderedDataset does not know which epoch this is and repeats the order of epoch "
                f"{self.epoch}. Pass callbacks=[data.follow()] to `fit`, or Resume(directory, data); for "
                "evaluation use shuffle=False.",
                stacklevel=2,
            )

    def on_epoch_end(self):
        """Called by Keras at the end of a pass over the data."""
        self._iterating = self._told = False

    def fingerprint(self):
        """Returns what identifies the data and their order: sizes, seed, and a checksum of 64 rows of each array."""
        digest = hashlib.sha256()
        rows = np.linspace(0, self.examples - 1, num=min(64, self.examples)).astype("int64")
        for array in keras.tree.flatten(self._parts):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array[rows]).tobytes())
        return {
            "examples": self.examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "checksum": digest.hexdigest(),
        }

    def _turn_to(self, epoch):
        self.epoch = epoch
        self.order = epoch_order(self.examples, self.seed, epoch) if self.shuffle else np.arange(self.examples)

    def _check_sequence(self, index):
        # Two requests tell: a shuffled pass starts with 0, 1 in one epoch of n (n - 1).
        if self._iterating and self._requests < 2:
            if index != self._requests:
                raise RuntimeError(
                    "The batches of an OrderedDataset were asked for out of their order: call "
                    "`fit(data, shuffle=False)`, since fit's default, shuffle=True, shuffles the batches "
                    f"of a PyDataset. Received: index={index} as request {self._requests} of the epoch"
                )
            self._requests += 1


class FollowEpoch(keras.callbacks.Callback):
    """Tells an OrderedDataset the epoch: Keras' own number, shifted in a second `fit` so that epochs go on counting.

    Args:
        data: The OrderedDataset that `fit` is given.

    Raises:
        TypeError: `data` is no OrderedDataset.
        ValueError: At the beginning of `fit`: its `steps_per_epoch` cuts epochs short.
        RuntimeError: At the end of an epoch: `fit` was given other data.
    """

    def __init__(self, data):
        super().__init__()
        if not isinstance(data, OrderedDataset):
            raise TypeError(
                f"`data` must be an OrderedDataset. Received: data={data!r} (of type {type(data).__name__})"
            )
        self.data = data
        self.shift = None

    def on_train_begin(self, logs=None):
        self.shift = None
        steps = (self.params or {}).get("steps")
        if steps != len(self.data):
            raise ValueError(
                f"`steps_per_epoch` must be None or {len(self.data)}, the number of batches: shorter epochs "
                f"would mix the orders of two of them. Received: steps_per_epoch={steps}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        if self.shift is None:
            self.shift = self.data.next_epoch if epoch == 0 else 0
        self.data.set_epoch(epoch + self.shift)

    def on_epoch_end(self, epoch, logs=None):
        if not self.data.read:
            raise RuntimeError(
                "`fit` did not read the OrderedDataset that its callback follows: pass the same object to both."
            )


def _arrays(name, value):
    # TensorFlow turns a list inside a batch into one tensor; a tuple stays what it is.
    value = tuple(value) if isinstance(value, list) and value and hasattr(value[0], "shape") else value
    structure = keras.tree.map_structure(np.asarray, value)
    for array in keras.tree.flatten(structure):
        if array.ndim == 0 or array.dtype == object:
            raise TypeError(
                f"`{name}` must be an array, or a tuple, list or dict of arrays, with a row for each example. "
                f"Received: {name}={value!r} (of type {type(value).__name__})"
            )
    return structure
