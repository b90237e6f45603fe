"""Several hosts that train one network together, on JAX: each computes its share of every batch."""

import atexit
import contextlib
import pathlib
import re
import sys
import tempfile
from os import _exit

import keras

from nnopt.checks import check_integer
from nnopt.recipes.running import RunFolder

# How JAX's ways to reach another process say that it is gone.
LOST = re.compile("gloo|connection|coordination|heartbeat|unavailable|deadline|peer", re.IGNORECASE)


class Hosts:
    """The processes that train together, each started by the same command with an index of its own.

    The first one writes the run's folder, which all must be able to read: after an interruption, all take up its last
    checkpoint. Every host prepares whole batches and computes with its rows of them.

    Args:
        addresses: "name:port" of each host, the first one's first; none for a process that trains alone.
        index: The place of this process among them, from 0.
        strategy: That of the run's `Devices`, which must be "jax" where there are addresses.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or the backend is not JAX.
    """

    def __init__(self, addresses=(), index=0, strategy="jax"):
        self.addresses, self.index = list(addresses), 0
        if not self.addresses:
            return
        for address in self.addresses:
            if not re.fullmatch(r"[^:,\s]+:\d+", str(address)):
                raise ValueError(f"`hosts` must be addresses name:port, set off by commas. Received: {address!r}")
        if len(set(self.addresses)) < max(2, len(self.addresses)):
            raise ValueError(f"`hosts` must name two different addresses or more. Received: {self.addresses}")
        self.index = check_integer("index", index, at_least=0, at_most=len(self.addresses) - 1)
        if strategy != "jax":
            raise ValueError(f"`strategy` must be 'jax' where hosts are given. Received: strategy={strategy!r}")
        if keras.backend.backend() != "jax":
            raise ValueError(
                "`hosts` needs the backend jax: TensorFlow's MultiWorkerMirroredStrategy does not work with Keras 3. "
                f"Received: KERAS_BACKEND={keras.backend.backend()}"
            )
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # before a device is touched
        keras.distribution.initialize(",".join(self.addresses), len(self.addresses), self.index)

    def folder(self, output):
        """Returns the `RunFolder`: on other hosts than the first a temporary one, with the run's checkpoints."""
        if self.index == 0:
            return RunFolder(output)
        place = tempfile.TemporaryDirectory()
        atexit.register(place.cleanup)
        return RunFolder(place.name, checkpoints=pathlib.Path(output, "checkpoints"))

    def share(self, data):
        """Returns the data set of which `fit` reads this host's rows of each batch."""
        return _Share(data, len(self.addresses), self.index) if self.addresses else data

    @contextlib.contextmanager
    def together(self):
        """Ends this process, and so the others', where the body fails; says so where another one is gone."""
        try:
            yield
        except BaseException as error:
            if self.addresses:
                status = 130 if isinstance(error, KeyboardInterrupt) else 1
                atexit.register(_leave, status)  # runs first: JAX would wait for the others for minutes
                if isinstance(error, RuntimeError) and LOST.search(str(error)):  # no download that failed, say
                    raise ConnectionError(
                        f"Another host has left the training, and host {self.index} stops: repeat the command on all "
                        "hosts to go on from the last checkpoint."
                    ) from error
            raise


class _Share(keras.utils.PyDataset):
    """An `EpochData` of one host's rows of each batch."""

    def __init__(self, data, count, index):
        super().__init__()
        self._data, self._count, self._index = data, count, index

    def __len__(self):
        return len(self._data)

    def __getitem__(self, number):
        return self._rows(self._data[number])

    def batches(self, epoch, start=0):
        return map(self._rows, self._data.batches(epoch, start))

    def fingerprint(self):
        return self._data.fingerprint()  # the same on all hosts

    def _rows(self, batch):
        def cut(array):
            size = len(array) // self._count
            return array[self._index * size : (self._index + 1) * size]

        return keras.tree.map_structure(cut, batch)


def _leave(status):
    sys.stdout.flush()
    sys.stderr.flush()
    _exit(status)
