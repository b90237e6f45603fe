"""Training that survives `kill -9`: the same final weights as if it had never been interrupted."""

import contextlib
import json
import os
import pathlib
import warnings

import keras
from keras import ops

from nnopt import _backend, _keras, _state
from nnopt.callbacks import _checkpoints as checkpoints
from nnopt.checks import check_integer, shown
from nnopt.data.ordered import EpochData, EpochReader

# Keras' own callbacks with a state that decides how training goes on.
_STATES_OF_KERAS = (
    (keras.callbacks.History, ("history", "epoch")),
    (keras.callbacks.EarlyStopping, ("best", "best_epoch", "best_weights", "wait", "stopped_epoch")),
    (keras.callbacks.ReduceLROnPlateau, ("best", "wait", "cooldown_counter")),
    (keras.callbacks.ModelCheckpoint, ("best",)),
)


class Resume(keras.callbacks.Callback):
    """Lets training survive `kill -9`: run the same script again, and it ends with the same weights, bit for bit.

        data = OrderedDataset(x, y, batch_size=32, seed=0)
        model.fit(data, epochs=20, callbacks=[EarlyStopping(), Resume("runs/first", data)])

    A checkpoint holds the variables of model and optimizer (weights, slots, iterations, learning rate, seed
    generators), the states of the random generators of Python, NumPy, Keras, torch and TensorFlow, the history, the
    state of the other callbacks, and, within an epoch, the metrics and the number of batches done. It is one file,
    without pickle, with a checksum; it is written under a temporary name, flushed to the disk and renamed, and the one
    before is kept. A damaged file is recognised, renamed to *.corrupt with a warning, and the one before is used.

    After the last epoch, running the script again trains no more, and a warning says so. `fit` called again with more
    epochs goes on where it ended; to start anew, delete the folder. Each `fit` of a script needs a folder of its own. A
    later `fit` of the same model goes on in the order of the data: its first epoch is `optimizer.iterations` divided by
    the batches of an epoch. Whether `fit` is told to shuffle does not matter.

    Bit for bit holds on the same machine and versions, where one uninterrupted run repeats itself (a seed set by
    `keras.utils.set_random_seed`; no stateful random operations of TensorFlow, whose state nobody can read), and where
    the order of the data is known: `nnopt.data.OrderedDataset` for arrays, `nnopt.data.EpochPipeline` for TFDS and
    Grain, or what else keeps `nnopt.data.EpochData`. For other data a warning says that nothing is promised.

    Where several processes of JAX train together, the first one writes and all read, so all must see the folder.

    Callbacks with methods `get_state()` and `set_state(state)` and Keras' own EarlyStopping, ReduceLROnPlateau,
    ModelCheckpoint and History keep their state. The other callbacks hear only of the batches that are trained.

    Args:
        directory: Folder for the checkpoints of this run; it is created.
        data: The EpochData that `fit` is given, or None.
        save_freq: "epoch" to save after each epoch, or an integer n >= 1 to save after every n batches of an epoch,
            too; that needs `data`.
        keep: Number of checkpoints kept, an integer >= 2.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; when `fit` begins: it reads other
            data, its epochs are cut short, a callback has a state that cannot be written, or the checkpoint is of
            another model, optimizer, backend, data set or list of callbacks.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from nnopt.data.ordered import OrderedDataset
    >>> data = OrderedDataset(np.ones((4, 2)), np.ones(4), batch_size=2)
    >>> def run(directory, epochs):
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    ...     model.compile("sgd", loss="mse")
    ...     return model.fit(data, epochs=epochs, verbose=0, callbacks=[Resume(directory, data)])
    >>> with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
    ...     _ = run(one, epochs=1)
    ...     run(one, epochs=3).history["loss"] == run(other, epochs=3).history["loss"]
    True
    """

    def __init__(self, directory, data=None, save_freq="epoch", keep=2):
        super().__init__()
        if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
            raise TypeError(
                f"`directory` must be a path. Received: directory={directory!r} (of type {type(directory).__name__})"
            )
        self.directory = pathlib.Path(directory)
        if data is not None and not (isinstance(data, EpochData) and isinstance(data, keras.utils.PyDataset)):
            raise TypeError(
                "`data` must be an OrderedDataset, an EpochPipeline or another PyDataset with the methods of "
                f"nnopt.data.EpochData. Received: data={shown(data)} (of type {type(data).__name__})"
            )
        self.data = data
        if save_freq != "epoch":
            save_freq = check_integer("save_freq", save_freq, at_least=1)
            if data is None:
                raise ValueError(
                    "`save_freq` must be 'epoch' without `data`: an epoch can only be taken up in its middle where "
                    f"its order is known. Received: save_freq={save_freq}, data=None"
                )
        self.save_freq = save_freq
        self.keep = check_integer("keep", keep, at_least=2)
        self._others = []
        self._first_batch = 0

    def set_model(self, model):
        super().set_model(model)
        callback_list = _keras.callback_list()
        if callback_list is None:
            raise RuntimeError("Resume works only in a keras.callbacks.CallbackList, such as `fit` makes.")
        # Last in the list, it sees the state of the others when they are done with an epoch. A new list, since Keras is
        # just running through this one.
        self._others = [callback for callback in callback_list.callbacks if callback is not self]
        callback_list.callbacks = [*self._others, self]
        for name in ("on_train_batch_begin", "on_train_batch_end"):
            setattr(callback_list, name, self._unless_skipped(getattr(callback_list, name)))

    def on_train_begin(self, logs=None):
        self._first_batch = self._epoch = 0
        self._metrics = self._identity = self._reader = self._shift = self._fingerprint = None
        if self.data is None:
            warnings.warn(
                "Resume restores model, optimizer and random states, but cannot promise the same result: it does "
                "not know in which order these data come. Pass an OrderedDataset or an EpochPipeline to both `fit` "
                "and Resume.",
                stacklevel=2,
            )
        else:
            self._read_in_order()
        for callback in self._stateful():
            _check_storable(callback)
        stored = checkpoints.newest(self.directory)
        if stored is not None:
            self._restore(*stored)

    def on_epoch_begin(self, epoch, logs=None):
        # Keras would begin every later `fit` of this model there, too.
        _keras.begin_at_epoch(self.model, None)
        self._epoch = epoch
        if self._reader is not None:
            if self._shift is None:
                self._shift = self._batches_done() // len(self.data) - epoch
            self._reader.turn_to(epoch + self._shift, self._first_batch)
        if self._metrics is not None:
            # Keras has just reset them.
            _state.assign(self.model.metrics_variables, self._metrics)
            self._metrics = None
        self._saved = self._first_batch
        if self._first_batch:
            self._skip_batches(self._first_batch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.save_freq != "epoch" and batch - self._saved >= self.save_freq:
            self._saved = batch
            self._save(self._epoch, batch)

    def on_epoch_end(self, epoch, logs=None):
        self._first_batch = 0
        self._save(epoch + 1, 0)

    def on_train_end(self, logs=None):
        _keras.begin_at_epoch(self.model, None)

    def _read_in_order(self):
        """Lets `fit` read its data through a reader that knows the epoch, one batch after the other."""
        adapter, steps = _keras.data_adapter(), (self.params or {}).get("steps")
        if getattr(adapter, "py_dataset", None) is not self.data:
            raise ValueError("`data` of Resume and the data of `fit` must be the same object. Received: two objects")
        if steps != len(self.data):
            raise ValueError(
                f"`steps_per_epoch` must be None or {len(self.data)}, the number of batches: shorter epochs "
                f"would mix the orders of two of them. Received: steps_per_epoch={steps}"
            )
        self._reader = adapter.py_dataset = EpochReader(self.data)
        adapter.shuffle = False
        self._fingerprint = self.data.fingerprint()

    def _batches_done(self):
        optimizer = self.model.optimizer
        return 0 if optimizer is None else int(ops.convert_to_numpy(_keras.batch_counter(optimizer)))

    def _unless_skipped(self, method):
        def called(batch, logs=None):
            if batch >= self._first_batch:
                method(batch, logs)

        return called

    def _skip_batches(self, batches):
        """Lets `fit` read the batches that were done before, and do nothing with them.

        An epoch cannot begin in its middle. Data that end too soon would not do either: when TensorFlow runs out of
        them, it has already counted one step more.
        """
        model = self.model
        train, steps, left = model.train_function, model.steps_per_execution, batches

        def skip(*arguments):
            nonlocal left
            left -= steps
            if keras.backend.backend() != "torch":
                for _ in range(steps):
                    next(arguments[-1])
            if left <= 0:
                model.train_function = train
                # A torch DataLoader draws a number when an epoch begins.
                _state.set_random_states(self._random)
            return ({}, arguments[0]) if keras.backend.backend() == "jax" else {}

        model.train_function = skip

    def _save(self, epoch, batch):
        if not _backend.first_process():
            return
        model = self.model
        state = {
            "identity": self._own_identity(),
            "epoch": epoch,
            "batch": batch,
            "stopped": bool(model.stop_training),
            "model": _state.values(model.variables),
            "optimizer": _state.values(model.optimizer.variables),
            "metrics": _state.values(model.metrics_variables) if batch else None,
            "random": _state.random_states(),
            "shift": self._shift,
            "callbacks": [[type(callback).__name__, _state_of(callback)] for callback in self._stateful()],
        }
        checkpoints.write(self.directory, state, self.keep)

    def _restore(self, path, state):
        model = self.model
        self._build(state)
        self._check(path, state)
        _state.assign(model.variables, state["model"])
        _state.assign(model.optimizer.variables, state["optimizer"])
        for callback, (_, callback_state) in zip(self._stateful(), state["callbacks"]):
            _set_state_of(callback, callback_state)
        for callback in self._others:
            if not type(callback).__module__.startswith(("keras.", "nnopt.")) and callback not in self._stateful():
                warnings.warn(
                    f"{type(callback).__name__} has no get_state and set_state: what it remembered is lost.",
                    stacklevel=2,
                )
        self._first_batch, self._metrics, self._shift = state["batch"], state["metrics"], state["shift"]
        # Read by `fit` after this method.
        _keras.begin_at_epoch(model, self.params["epochs"] if state["stopped"] else state["epoch"])
        self._random = state["random"]
        _state.set_random_states(self._random)
        if state["stopped"] or state["epoch"] >= self.params["epochs"]:
            end = "stopped by a callback" if state["stopped"] else "complete"
            warnings.warn(
                f"The run in {self.directory} is {end}: {state['epoch']} epochs. Nothing is trained; its weights and "
                "history are here. To train anew, delete the folder or give this `fit` one of its own.",
                stacklevel=2,
            )

    def _build(self, state):
        """TensorFlow makes variables in the first step, too late to load them."""
        model = self.model
        lacks_metrics = state["metrics"] is not None and len(model.metrics_variables) != len(state["metrics"])
        if not model.built or lacks_metrics:
            if self.data is None:
                raise ValueError(
                    "Resume needs a model whose variables exist: begin it with keras.Input, or call it on a "
                    f"batch before `fit`. Received: model={model!r}"
                )
            model.test_on_batch(*self.data[0])
            model.reset_metrics()
        if not model.optimizer.built:
            with _scope(model):
                model.optimizer.build(model.trainable_variables)

    def _stateful(self):
        return [callback for callback in self._others if _state_of(callback) is not None]

    def _own_identity(self):
        if self._identity is None:
            model = self.model
            self._identity = {
                "backend": keras.backend.backend(),
                "replicas": getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1),
                "steps_per_execution": model.steps_per_execution,
                "model": [[variable.name, list(variable.shape), str(variable.dtype)] for variable in model.variables],
                "optimizer": [[list(variable.shape), str(variable.dtype)] for variable in model.optimizer.variables],
                "optimizer's arguments": _arguments(keras.saving.serialize_keras_object(model.optimizer)),
                "data": self._fingerprint,
            }
        return self._identity

    def _check(self, path, state):
        # Through JSON, as the stored one went.
        own = json.loads(json.dumps(self._own_identity(), default=str))
        own["callbacks"] = [type(callback).__name__ for callback in self._stateful()]
        theirs = {**state["identity"], "callbacks": [name for name, _ in state["callbacks"]]}
        for part, value in own.items():
            if value != theirs[part]:
                raise ValueError(
                    f"The checkpoint {path} belongs to another run: its {part} is not this one's. Delete the "
                    "folder, or give this run one of its own. "
                    f"Received: {_difference(theirs[part], value)}"
                )


def _difference(theirs, own):
    """The first entry in which two lists or dicts differ, for a message."""
    if isinstance(own, list) and isinstance(theirs, list) and len(own) == len(theirs):
        theirs, own = next((a, b) for a, b in zip(theirs, own) if a != b)
    elif isinstance(own, dict) and isinstance(theirs, dict) and own.keys() == theirs.keys():
        key = next(key for key in own if own[key] != theirs[key])
        return f"{key}: {_difference(theirs[key], own[key])}"
    return f"stored {theirs!r}, now {own!r}"[:500]


def _arguments(config):
    """A serialized optimizer without what may differ: names that count up in a process, and a rate that is state."""
    if isinstance(config, dict):
        return {
            key: _arguments(value)
            for key, value in config.items()
            if key != "name" and not (key == "learning_rate" and isinstance(value, float))
        }
    return config


def _scope(model):
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _check_storable(callback):
    try:
        checkpoints.check(_state_of(callback))
    except TypeError as error:
        raise TypeError(f"The state of {type(callback).__name__} cannot be written. {error}") from None


def _state_of(callback):
    if hasattr(callback, "get_state") and hasattr(callback, "set_state"):
        return callback.get_state()
    for kind, names in _STATES_OF_KERAS:
        if isinstance(callback, kind):
            return {name: getattr(callback, name, None) for name in names}
    return None


def _set_state_of(callback, state):
    if hasattr(callback, "set_state"):
        callback.set_state(state)
        return
    for name, value in state.items():
        setattr(callback, name, value)
