"""Training that survives `kill -9`: the same final weights as if it had never been interrupted."""

import json
import os
import pathlib
import random
import warnings

import keras
import numpy as np
from keras import ops
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from nnopt._keras import callback_list as _callback_list
from nnopt.callbacks import _checkpoints as checkpoints
from nnopt.callbacks.early_stopping import _STATE_OF_EARLY_STOPPING
from nnopt.callbacks.learning_rate import _own_variables
from nnopt.checks import check_integer
from nnopt.data.ordered import FollowEpoch

# Keras' own callbacks with a state that decides how training goes on.
_STATES_OF_KERAS = (
    (keras.callbacks.History, ("history", "epoch")),
    (keras.callbacks.EarlyStopping, _STATE_OF_EARLY_STOPPING),
    (keras.callbacks.ReduceLROnPlateau, ("best", "wait", "cooldown_counter")),
    (keras.callbacks.ModelCheckpoint, ("best",)),
)


class Resume(keras.callbacks.Callback):
    """Lets training survive `kill -9`: run the same script again, and it ends with the same weights, bit for bit.

        model.fit(data, epochs=20, shuffle=False, callbacks=[EarlyStopping(), Resume("runs/first", data)])

    A checkpoint holds the variables of model and optimizer (weights, slots, iterations, learning rate, seed
    generators), the states of the random generators of Python, NumPy, Keras and torch, the history, the state of the
    other callbacks, and, within an epoch, the metrics and the number of batches done. It is one file, without pickle,
    with a checksum; it is written under a temporary name, flushed to the disk and renamed, and the one before is kept.
    A damaged file is recognised, renamed to *.corrupt with a warning, and the one before is used. After the last epoch,
    running the script again trains no more. `fit` called again with more epochs goes on where it ended; to start anew,
    delete the folder. Each `fit` of a script needs a folder of its own.

    Bit for bit holds on the same machine and versions, where one uninterrupted run repeats itself (a seed set by
    `keras.utils.set_random_seed`; no stateful random operations of TensorFlow, whose state nobody can read), and where
    the order of the data is known: for an `OrderedDataset`. For other data a warning says that nothing is promised.

    Callbacks with methods `get_state()` and `set_state(state)` and Keras' own EarlyStopping, ReduceLROnPlateau,
    ModelCheckpoint and History keep their state. An epoch taken up in its middle is read from its beginning; the
    other callbacks hear only of the batches that are trained.

    Args:
        directory: Folder for the checkpoints of this run; it is created.
        data: The OrderedDataset that `fit` is given, or None.
        save_freq: "epoch" to save after each epoch, or an integer n >= 1 to save after every n batches of an epoch,
            too; that needs `data`.
        keep: Number of checkpoints kept, an integer >= 2.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; in `fit`: the checkpoint is of
            another model, optimizer, backend, data set or list of callbacks.

    Example:

    >>> import tempfile
    >>> from nnopt.data.ordered import OrderedDataset
    >>> data = OrderedDataset(np.ones((4, 2)), np.ones(4), batch_size=2)
    >>> def run(directory):
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile("sgd", loss="mse")
    ...     return model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[Resume(directory, data)])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     run(directory).history["loss"] == run(directory).history["loss"]
    True
    """

    def __init__(self, directory, data=None, save_freq="epoch", keep=2):
        super().__init__()
        if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
            raise TypeError(
                f"`directory` must be a path. Received: directory={directory!r} (of type {type(directory).__name__})"
            )
        self.directory = pathlib.Path(directory)
        self.data = data
        self._clock = None if data is None else FollowEpoch(data)
        if save_freq != "epoch":
            save_freq = check_integer("save_freq", save_freq, at_least=1)
            if data is None:
                raise ValueError(
                    "`save_freq` must be 'epoch' without an OrderedDataset as `data`: an epoch can only be taken "
                    f"up in its middle where its order is known. Received: save_freq={save_freq}, data=None"
                )
        self.save_freq = save_freq
        self.keep = check_integer("keep", keep, at_least=2)
        self._others = []
        self._first_batch = 0

    def set_params(self, params):
        super().set_params(params)
        if self._clock is not None:
            self._clock.set_params(params)

    def set_model(self, model):
        super().set_model(model)
        callback_list = _callback_list()
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
        self._metrics = self._identity = None
        if self._clock is None:
            warnings.warn(
                "Resume restores model, optimizer and random states, but cannot promise the same result: it does "
                "not know in which order these data come. Pass an OrderedDataset to both `fit` and Resume.",
                stacklevel=2,
            )
        else:
            self._clock.on_train_begin()
        stored = checkpoints.newest(self.directory)
        if stored is None:
            return
        self._restore(*stored)

    def on_epoch_begin(self, epoch, logs=None):
        # Keras would begin every later `fit` of this model there, too.
        self.model._initial_epoch = None
        self._epoch = epoch
        if self._clock is not None:
            self._clock.on_epoch_begin(epoch)
        if self._metrics is not None:
            # Keras has just reset them.
            _assign_all(self.model.metrics_variables, self._metrics)
            self._metrics = None
        self._saved = self._first_batch
        if self._first_batch:
            self._skip_batches(self._first_batch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.save_freq == "epoch":
            return
        if batch - self._saved >= self.save_freq:
            self._saved = batch
            self._save(self._epoch, batch)

    def on_epoch_end(self, epoch, logs=None):
        self._first_batch = 0
        if self._clock is not None:
            self._clock.on_epoch_end(epoch)
        self._save(epoch + 1, 0)

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None

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
                _set_random_states(self._random)
            return ({}, arguments[0]) if keras.backend.backend() == "jax" else {}

        model.train_function = skip

    def _save(self, epoch, batch):
        model = self.model
        state = {
            "identity": self._own_identity(),
            "epoch": epoch,
            "batch": batch,
            "stopped": bool(model.stop_training),
            "model": [_numpy(variable) for variable in model.variables],
            "optimizer": [_numpy(variable) for variable in _own_variables(model.optimizer)],
            "metrics": [_numpy(variable) for variable in model.metrics_variables] if batch else None,
            "random": _random_states(),
            "data": None if self._clock is None else {"shift": self._clock.shift, "next_epoch": self.data.next_epoch},
            "callbacks": [[type(callback).__name__, _state_of(callback)] for callback in self._stateful()],
        }
        checkpoints.write(self.directory, state, self.keep)

    def _restore(self, path, state):
        model = self.model
        self._build(state)
        self._check(path, state)
        _assign_all(model.variables, state["model"])
        _assign_all(_own_variables(model.optimizer), state["optimizer"])
        for callback, (_, callback_state) in zip(self._stateful(), state["callbacks"]):
            _set_state_of(callback, callback_state)
        for callback in self._others:
            if not type(callback).__module__.startswith("keras.") and callback not in self._stateful():
                warnings.warn(
                    f"{type(callback).__name__} has no get_state and set_state: what it remembered is lost.",
                    stacklevel=2,
                )
        self._first_batch, self._metrics = state["batch"], state["metrics"]
        if self._clock is not None:
            self._clock.shift = state["data"]["shift"]
            self.data.next_epoch = state["data"]["next_epoch"]
        # Read by `fit` after this method; BackupAndRestore does the same, and there is no public way.
        model._initial_epoch = self.params["epochs"] if state["stopped"] else state["epoch"]
        self._random = state["random"]
        _set_random_states(self._random)

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
            model.test_on_batch(*self.data.batch(0))
            model.reset_metrics()
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    def _stateful(self):
        return [callback for callback in self._others if _state_of(callback) is not None]

    def _own_identity(self):
        if self._identity is None:
            model = self.model
            self._identity = {
                "backend": keras.backend.backend(),
                "steps_per_execution": model.steps_per_execution,
                "model": [[variable.name, list(variable.shape), str(variable.dtype)] for variable in model.variables],
                "optimizer": [
                    [list(variable.shape), str(variable.dtype)] for variable in _own_variables(model.optimizer)
                ],
                "optimizer's arguments": _arguments(keras.saving.serialize_keras_object(model.optimizer)),
                "data": None if self.data is None else self.data.fingerprint(),
            }
        return self._identity

    def _check(self, path, state):
        # Through JSON, as the stored one went.
        own = json.loads(json.dumps(self._own_identity(), default=str))
        names = [type(callback).__name__ for callback in self._stateful()]
        own["callbacks"] = names
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


def _numpy(variable):
    return np.array(ops.convert_to_numpy(variable))


def _assign_all(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)


def _random_states():
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "keras": None if generator is None else _numpy(generator.state),
    }
    if keras.backend.backend() == "torch":
        import torch

        states["torch"] = torch.get_rng_state().numpy()
        states["cuda"] = (
            [state.numpy() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
        )
    return states


def _set_random_states(states):
    if states["keras"] is None:
        # Keras makes it at its first use, by Python's generator.
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    else:
        global_seed_generator().state.assign(states["keras"])
    if "torch" in states:
        import torch

        torch.set_rng_state(torch.from_numpy(states["torch"]))
        if states["cuda"]:
            torch.cuda.set_rng_state_all([torch.from_numpy(state) for state in states["cuda"]])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])
