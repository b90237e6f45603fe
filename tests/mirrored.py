"""Saves, restores and resumes under MirroredStrategy on two logical CPUs.

A script, not a test, since TensorFlow splits a processor only before its first use.
"""

# ruff: noqa: E402

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras

from nnopt import _state
from nnopt.callbacks import Resume
from nnopt.data import OrderedDataset

STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
NUMBERS = np.random.default_rng(0)
X, Y = NUMBERS.normal(size=(24, 3)).astype("float32"), NUMBERS.normal(size=(24, 1)).astype("float32")


class Killed(BaseException):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, step=None):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if self.step == int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)):
            raise Killed

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def run(directory, kill=None):
    keras.utils.set_random_seed(5)
    layers = keras.layers
    with STRATEGY.scope():
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(1)]
        )
        model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    data = OrderedDataset(X, Y, batch_size=4, seed=3)
    resume = Resume(directory, data, save_freq=2)
    history = model.fit(data, epochs=3, verbose=0, callbacks=[Kill(kill), resume])
    return history.history, _state.values([*model.variables, *model.optimizer.variables])


def flat(values):
    return [np.asarray(part).tobytes() for value in values for part in (value if isinstance(value, list) else [value])]


def state():
    with STRATEGY.scope():
        variable = keras.layers.BatchNormalization()
        variable.build((None, 2))
    mean = variable.moving_mean
    parts = STRATEGY.experimental_local_results(mean.value)
    for number, part in enumerate(parts):
        part.assign([number, number + 0.5])
    saved = _state.values([mean])
    mean.assign([7.0, 7.0])
    _state.assign([mean], saved)
    assert [part.numpy().tolist() for part in parts] == [[0.0, 0.5], [1.0, 1.5]]


def resume():
    folder = tempfile.mkdtemp()
    whole = run(f"{folder}/whole")
    for step in (9, 15):
        try:
            run(f"{folder}/killed", kill=step)
        except Killed:
            print("killed at step", step)
    resumed = run(f"{folder}/killed")
    assert whole[0] == resumed[0], (whole[0], resumed[0])
    assert flat(whole[1]) == flat(resumed[1])


if __name__ == "__main__":
    state()
    resume()
