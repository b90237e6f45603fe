"""Every private Keras name that the package leans on, each with a test in tests/test_keras.py."""

import inspect

import keras


def callback_list():
    """The list that `fit` made of its callbacks: one of the callers, as Keras gives callbacks no way to it."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
