"""What a schedule or a callback adds to a training step, against the same training at a constant rate.

    python benchmarks/schedules.py        # on the backend of KERAS_BACKEND, TensorFlow by default

The network is 64-64-64-10 on the digits, batch size 32, Adam: so small that a step is nearly all overhead, which makes
it the hardest case for a claim of "at most so many percent". A step is one batch of a plain `fit` (steps_per_execution=1),
with everything that a user waits for: data, callbacks, logs. Compilation is not counted.

All variants are trained in turn, a few epochs each, in an order that rotates; each is compared with the constant rate
of the same round, and the median of the rounds' ratios is printed with its quartiles. "constant, again" is a second model
without any schedule: what it shows is the noise of the measurement.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import nnopt.callbacks as callbacks
import nnopt.schedules as schedules
from nnopt.data import digits
from nnopt.models import mlp

BATCH, EPOCHS, ROUNDS = 32, 3, 25
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
CALLBACKS = {
    "StepDecayLR": lambda: callbacks.StepDecayLR(RATE, 2, 0.9),
    "ExponentialDecayLR": lambda: callbacks.ExponentialDecayLR(RATE, 2, 0.9),
    "CyclicalLR": lambda: callbacks.CyclicalLR(RATE / 10, RATE, 200),
    "OneCycleLR": lambda: callbacks.OneCycleLR(RATE, 5000),
    "EarlyStopping": lambda: callbacks.EarlyStopping("loss", patience=1000),
    "GradientMonitor, every 50": lambda: callbacks.GradientMonitor(*PROBE, every=50),
    "GradientMonitor, every step": lambda: callbacks.GradientMonitor(*PROBE),
}


def training(learning_rate=RATE, make_callback=None):
    """Returns a function that trains some epochs and returns the seconds of a step; its `fit` is compiled already."""
    model = mlp(input_shape=(64,), units=[64, 64], classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss)
    callback = [make_callback()] if make_callback else []

    def train(epochs=EPOCHS):
        start = time.perf_counter()
        model.fit(*data.train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callback)
        return (time.perf_counter() - start) / (epochs * BATCHES)

    train(1)
    return train


def measure(variants):
    """Seconds of a step of each variant in each round, the variants in turn."""
    names = list(variants)
    seconds = {name: [] for name in names}
    for first in range(ROUNDS):
        first %= len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(variants[name]())
    return {name: np.array(values) for name, values in seconds.items()}


def report(seconds, allowed):
    constant = seconds["constant"]
    for name, own in seconds.items():
        low, median, high = np.percentile(own / constant, [25, 50, 75])
        limit = allowed.get(name)
        verdict = "" if limit is None else f"   at most {limit:.2f}: {'yes' if median <= limit else 'NO'}"
        extra = statistics.median(own - constant) * 1e6
        print(f"{name:28} {median:5.3f}  ({low:5.3f} to {high:5.3f})  {extra:+7.1f} us{verdict}")


def main():
    print(
        f"Keras {keras.__version__} on {keras.backend.backend()}, {os.cpu_count()} CPUs; {ROUNDS} rounds, "
        f"{EPOCHS} epochs of {BATCHES} steps each"
    )
    variants = {"constant": training()}
    variants.update({name: training(schedule) for name, schedule in SCHEDULES.items()})
    variants.update({name: training(make_callback=make) for name, make in CALLBACKS.items()})
    seconds = measure(variants)
    print(f"a step at a constant rate: {statistics.median(seconds['constant']) * 1e6:.0f} us")
    print("ratio to it (quartiles of the rounds), extra time of a step")
    ours = [name for name in SCHEDULES if name not in ("constant, again", "keras ExponentialDecay")]
    report(seconds, {**dict.fromkeys(ours, 1.02), **dict.fromkeys(CALLBACKS, 1.05)})


if __name__ == "__main__":
    main()
