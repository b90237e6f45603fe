"""What a schedule or a callback adds to a training step, against the same training at a constant rate.

    python benchmarks/schedules.py        # on the backend of KERAS_BACKEND, TensorFlow by default

The network is 64-64-64-10 on the digits, batch size 32, Adam: so small that a step is nearly all overhead, which makes
it the hardest case for a claim of "at most so many percent". A step is one batch of a plain `fit` (one step per
execution) with everything that a user waits for: data, callbacks, logs. Compilation is not counted; what comes once
in a `fit` is shown in a column of its own.

All variants are trained in turn, a few epochs each, in an order that rotates, and the medians of their epochs are
compared with that of the constant rate. Beside it stands the ratio of the fastest tenths, which other programs on the
machine disturb less. "constant, again" is a second model without a schedule: it shows how far to trust the figures.
What decides is a column that resolves less than a percent, where two trainings differ by more than that for no reason:
each schedule evaluated alone, many times in one graph (on TensorFlow), and each callback's hooks called alone, the
batch's at every step and the epoch's once an epoch.

A second table has the optimizers whose momentum, beta_1 or weight decay is a schedule, each against the same of Keras
with numbers.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from turns import here

from nnopt import callbacks, optimizers, schedules
from nnopt.data import digits
from nnopt.models import mlp

BATCH, EPOCHS, ROUNDS = 32, 5, 7
RATE = 0.01
data = digits()
BATCHES = -(-len(data.train[0]) // BATCH)
PROBE = (data.train[0][:BATCH], data.train[1][:BATCH])

SCHEDULES = {
    "constant, again": RATE,
    "keras ExponentialDecay": keras.optimizers.schedules.ExponentialDecay(RATE, 1000, 0.5),
    "StepDecay, list": schedules.StepDecay(RATE, [500, 1000, 1500], 0.5),
    "StepDecay, every": schedules.StepDecay(RATE, 1000, 0.5),
    "ExponentialDecay": schedules.ExponentialDecay(RATE, 1000, 0.5),
    "Cyclical triangular": schedules.CyclicalLearningRate(RATE / 10, RATE, 200),
    "Cyclical exp_range": schedules.CyclicalLearningRate(RATE / 10, RATE, 200, "exp_range", gamma=0.9999),
    "OneCycle": schedules.OneCycle(RATE, 5000),
    "OneCycle, three phases": schedules.OneCycle(RATE, 5000, three_phase=True),
    "Warmup of OneCycle": schedules.Warmup(schedules.OneCycle(RATE, 5000), 100),
    "Chain of three": schedules.Chain(
        [(schedules.Warmup(RATE, 100), 500), (schedules.OneCycle(RATE, 5000), 5000), 1e-4]
    ),
}
CYCLE = schedules.OneCycle(RATE, 5000)
# Each against the same optimizer of Keras with numbers, whose name stands beside it.
OPTIMIZERS = {
    "SGD, numbers": ("SGD", lambda: optimizers.SGD(RATE)),
    "SGD, momentum a number": ("SGD, momentum", lambda: optimizers.SGD(RATE, 0.9)),
    "SGD, momentum of OneCycle": ("SGD, momentum", lambda: optimizers.SGD(RATE, CYCLE.momentum())),
    "AdamW, beta_1 of OneCycle": ("AdamW", lambda: optimizers.AdamW(RATE, beta_1=CYCLE.momentum())),
    "AdamW, decay a schedule": ("AdamW", lambda: optimizers.AdamW(RATE, schedules.StepDecay(0.004, 1000, 0.5))),
}
PEERS = {
    "SGD": lambda: keras.optimizers.SGD(RATE),
    "SGD, momentum": lambda: keras.optimizers.SGD(RATE, 0.9),
    "AdamW": lambda: keras.optimizers.AdamW(RATE),
}
CALLBACKS = {
    "StepDecayLR": lambda: callbacks.StepDecayLR(RATE, 2, 0.9),
    "ExponentialDecayLR": lambda: callbacks.ExponentialDecayLR(RATE, 2, 0.9),
    "CyclicalLR": lambda: callbacks.CyclicalLR(RATE / 10, RATE, 200),
    "OneCycleLR": lambda: callbacks.OneCycleLR(RATE, 5000),
    "EarlyStopping": lambda: callbacks.EarlyStopping("loss", patience=1000),
    "GradientMonitor, every 50": lambda: callbacks.GradientMonitor(*PROBE, every=50),
    "GradientMonitor, every step": lambda: callbacks.GradientMonitor(*PROBE),
}


def compiled(optimizer):
    model = mlp(input_shape=(64,), units=[64, 64], classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


class Stopwatch(keras.callbacks.Callback):
    """Notes when each epoch has ended, after all other callbacks."""

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.perf_counter())


def training(learning_rate=RATE, make_callback=None, make_optimizer=None):
    """Returns a function that trains: (seconds of a step in each epoch but the first, seconds of the first epoch)."""
    model = compiled(make_optimizer() if make_optimizer else keras.optimizers.Adam(learning_rate))
    watch = Stopwatch()
    every = [make_callback(), watch] if make_callback else [watch]

    def train(epochs=EPOCHS):
        watch.times = [time.perf_counter()]
        model.fit(*data.train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=every)
        begin, *epoch_times = np.diff(watch.times)
        return [seconds / BATCHES for seconds in epoch_times], begin

    train(1)
    return train


def measure(variants):
    """Seconds of a step (rounds x epochs) and of the first epoch (rounds) of each variant, the variants in turn."""
    names = list(variants)
    steps, begins = {name: [] for name in names}, {name: [] for name in names}
    for shift in range(ROUNDS):
        shift %= len(names)
        for name in names[shift:] + names[:shift]:
            seconds, begin = variants[name]()
            steps[name] += seconds
            begins[name].append(begin)
    return {name: (np.array(steps[name]), statistics.median(begins[name])) for name in names}


def alone(schedule, repeats=20, rounds=60):
    """Seconds of one evaluation of a schedule inside a graph of TensorFlow, the counter's increment excluded."""
    import tensorflow as tf

    counter = tf.Variable(0, dtype="int64")

    def graph(function):
        evaluate = tf.function(lambda: tf.add_n([function(counter.assign_add(1)) for _ in range(repeats)]))
        evaluate()
        return evaluate

    pair = [graph(schedule), graph(lambda step: tf.cast(step, "float32"))]
    seconds = [[], []]
    for _ in range(rounds):
        for own, evaluate in zip(seconds, pair):
            start = time.perf_counter()
            evaluate()
            own.append(time.perf_counter() - start)
    return (statistics.median(seconds[0]) - statistics.median(seconds[1])) / repeats


def hooks_alone(make_callback, repeats=20):
    """Seconds of a callback's hooks in a step, the epoch's shared out among its batches; called inside a `fit`."""
    model = compiled(keras.optimizers.Adam(RATE))
    callback, seconds = make_callback(), []

    class Caller(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            for _ in range(repeats):
                start = time.perf_counter()
                callback.on_epoch_begin(0, {})
                for batch in range(BATCHES):
                    callback.on_train_batch_begin(batch, {})
                    callback.on_train_batch_end(batch, {"loss": 1.0})
                callback.on_epoch_end(0, {"loss": 1.0})
                seconds.append((time.perf_counter() - start) / BATCHES)

    model.fit(*data.train, batch_size=BATCH, verbose=0, callbacks=[callback, Caller()])
    return statistics.median(seconds)


def report(measured):
    constant, begin = measured["constant"]
    step = statistics.median(constant)
    print(f"a step at a constant rate: {step * 1e6:.0f} us (fastest tenth: {np.percentile(constant, 10) * 1e6:.0f} us)")
    print(f"{'ratio to it':28} median  fastest tenth   once a fit              alone    allowed")
    for name, (own, own_begin) in measured.items():
        if name in OPTIMIZERS or name in PEERS:
            continue
        ratio, quiet = (np.percentile(own, q) / np.percentile(constant, q) for q in (50, 10))
        line = f"{name:28} {ratio:6.3f}  {quiet:13.3f}   {(own_begin - begin) * 1e3:+7.1f} ms"
        schedule = SCHEDULES.get(name)
        seconds = None
        if name in CALLBACKS and not name.startswith("GradientMonitor"):  # it works only where the clock has moved on
            seconds = hooks_alone(CALLBACKS[name])
        elif keras.backend.backend() == "tensorflow" and callable(schedule):
            seconds = alone(schedule)
        if seconds is not None:
            line += f"   {seconds * 1e6:6.1f} us ({1 + seconds / step:5.3f})"
        print(line.ljust(86) + f"{1.02 if callable(schedule) else 1.05 if name in CALLBACKS else 1.0:.2f}")


def report_optimizers(measured):
    print(f"{'ratio to the one of Keras':28} median  fastest tenth   allowed")
    for name, (peer, _) in OPTIMIZERS.items():
        own, theirs = measured[name][0], measured[peer][0]
        ratio, quiet = (np.percentile(own, q) / np.percentile(theirs, q) for q in (50, 10))
        print(f"{name:28} {ratio:6.3f}  {quiet:13.3f}   {1.0 if 'number' in name else 1.05:7.2f}")


def main():
    print(here("numpy"))
    print(f"{ROUNDS} rounds, {EPOCHS - 1} epochs of {BATCHES} steps each")
    variants = {"constant": training()}
    variants.update({name: training(schedule) for name, schedule in SCHEDULES.items()})
    variants.update({name: training(make_callback=make) for name, make in CALLBACKS.items()})
    makers = {**PEERS, **{name: make for name, (_, make) in OPTIMIZERS.items()}}
    variants.update({name: training(make_optimizer=make) for name, make in makers.items()})
    measured = measure(variants)
    report(measured)
    report_optimizers(measured)


if __name__ == "__main__":
    main()
