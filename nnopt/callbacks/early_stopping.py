"""Early stopping that keeps its state over a restart and gives the best weights back after Ctrl-C, too."""

import math
import signal
import threading

import keras

from nnopt.checks import check_boolean, check_choice, check_instance, check_integer, check_number


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Stops when a metric no longer improves: Keras' own, made safe against NaN, Ctrl-C and a restart.

    - NaN and infinity never become the best value: such an epoch counts as one without improvement.
    - The weights of the best epoch come back at the end, at an early stop and on Ctrl-C. Ctrl-C (SIGINT, also Jupyter's
      stop button) is held back until the batch at hand is done, then the weights are put back and KeyboardInterrupt
      goes on its way; a second Ctrl-C acts at once. In what cannot be noticed (`fit` in a thread, a KeyboardInterrupt
      raised by the data or a callback, a SIGINT handler of your own), call `restore()` in your `except`.
    - `Resume` keeps its state, best weights included, so that patience is not begun anew by a restart.

    Args:
        monitor: Name of the metric, as in the logs.
        min_delta: Smallest change that counts as an improvement, >= 0.
        patience: Epochs without improvement after which training stops, an integer >= 0.
        verbose: 0, or 1 or more (reports what it does).
        mode: "min", "max", or "auto": by the metric.
        baseline: Value that has to be beaten for patience to begin anew, or None.
        restore_best_weights: Whether to put back the weights of the best epoch. Unlike Keras', the default is True.
        start_from_epoch: Epochs before the first that counts, an integer >= 0.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(1e30), loss="mse")
    >>> stop = EarlyStopping(monitor="loss", patience=2)
    >>> history = model.fit(np.ones((4, 2)), np.ones(4), epochs=9, verbose=0, callbacks=[stop])
    >>> len(history.history["loss"]), stop.best_epoch, bool(np.isfinite(stop.best))
    (3, 0, True)

    Reference: L. Prechelt, "Early stopping - but when?", 1998.
    """

    def __init__(
        self,
        monitor="val_loss",
        min_delta=0,
        patience=0,
        verbose=0,
        mode="auto",
        baseline=None,
        restore_best_weights=True,
        start_from_epoch=0,
    ):
        super().__init__(
            monitor=check_instance("monitor", monitor, str, "the name of a metric"),
            min_delta=check_number("min_delta", min_delta, at_least=0),
            patience=check_integer("patience", patience, at_least=0),
            verbose=check_integer("verbose", verbose, at_least=0),
            mode=check_choice("mode", mode, ("auto", "min", "max")),
            baseline=None if baseline is None else check_number("baseline", baseline),
            restore_best_weights=check_boolean("restore_best_weights", restore_best_weights),
            start_from_epoch=check_integer("start_from_epoch", start_from_epoch, at_least=0),
        )
        self._interrupted = False
        self._handler_before = self._trained = None

    def restore(self):
        """Puts the weights of the best epoch so far into the model; does nothing when there is none."""
        if self.restore_best_weights and self.best_weights is not None:
            self.model.set_weights(self.best_weights)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._interrupted = False
        # Kept for the handler: reading `self.model` there would write JAX's state in the middle of a step.
        self._trained = self.model
        if self.restore_best_weights and threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before is signal.default_int_handler or isinstance(getattr(before, "__self__", None), EarlyStopping):
                self._handler_before = before
                signal.signal(signal.SIGINT, self._interrupt)

    def on_epoch_end(self, epoch, logs=None):
        self._raise_if_interrupted()
        current = (logs or {}).get(self.monitor)
        if current is None or math.isfinite(current) or epoch < self.start_from_epoch:
            super().on_epoch_end(epoch, logs)
            return
        self.wait += 1
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_batch_begin(self, batch, logs=None):
        self._raise_if_interrupted()

    def on_test_batch_begin(self, batch, logs=None):
        self._raise_if_interrupted()

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self._let_interrupts_through()
        self._raise_if_interrupted()

    def get_state(self):
        """Returns the best value, its epoch and weights, and the patience used up."""
        return {name: getattr(self, name) for name in _STATE}

    def set_state(self, state):
        """Takes back what `get_state` returned."""
        for name in _STATE:
            setattr(self, name, state[name])

    def _interrupt(self, number, frame):
        """Notes a Ctrl-C. A second one acts at once, and so does one after `fit` failed and left this handler here."""
        while frame is not None and frame.f_locals.get("self") is not self._trained:
            frame = frame.f_back
        if self._interrupted or frame is None:
            self._let_interrupts_through()
            raise KeyboardInterrupt
        self._interrupted = True

    def _let_interrupts_through(self):
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, self._handler_before)

    def _raise_if_interrupted(self):
        if self._interrupted:
            self._interrupted = False
            self._let_interrupts_through()
            self.restore()
            raise KeyboardInterrupt


_STATE = ("best", "best_epoch", "best_weights", "wait", "stopped_epoch")
