"""How long an epoch of many small networks takes: nnopt.lab.sweep, Keras' fit run after run, JAX written by hand.

    python benchmarks/sweep.py            # TensorFlow and JAX, one after the other, in one table

64 dense networks 64-64-64-10 and 16 convolutional ones (8 and 16 filters) on the digits, batch size 32, Adam; every
epoch trains and then evaluates on the validation part. Compilation and building are not counted: each figure is an
epoch's share of a longer training. Each side is repeated, the sides in turn, and the medians are compared.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import nnopt
from nnopt import lab
from nnopt.data import digits, epoch_order
from nnopt.recipes.running import machine

RUNS, CONVOLUTIONAL_RUNS, BATCH, REPEATS, FITS = 64, 16, 32, 5, 4
data, images = digits(), digits(images=True)
cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STEPS = -(-len(data.train[1]) // BATCH)


def dense():
    return nnopt.models.mlp(input_shape=(64,), units=[64, 64], classes=10)


def convolutional():
    return nnopt.models.cnn(images.train[0].shape[1:], filters=[8, 16], classes=10)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class SweepClock:
    """Seconds of an epoch of all runs of a sweep: the first two, which compile, do not count."""

    def __init__(self, network, data, runs, epochs=12):
        self.runs = runs
        self.train = functools.partial(
            lab.sweep, network, data, keras.optimizers.Adam, seeds=range(runs), epochs=epochs, batch_size=BATCH
        )

    def __call__(self):
        ends = []  # (time, epochs of single runs so far): stacks side by side end theirs one by one
        from nnopt.lab import training

        class Bar(training.tqdm):
            def update(self, number=1):
                ends.append((time.perf_counter(), number + (ends[-1][1] if ends else 0)))

        shown, training.tqdm = training.tqdm, Bar
        try:
            self.train(progress=False)
        finally:
            training.tqdm = shown
        began, compiled = next(end for end in ends if end[1] >= 2 * self.runs)
        return (ends[-1][0] - began) * self.runs / (ends[-1][1] - compiled)


def prepared_fits(network, data, steps_per_execution=1):
    models = []
    for seed in range(FITS):
        keras.utils.set_random_seed(seed)
        model = network()
        model.compile("adam", cross_entropy, metrics=["accuracy"], steps_per_execution=steps_per_execution)
        model.fit(*data.train, batch_size=BATCH, validation_data=data.validation, verbose=0)  # compiles
        models.append(model)
    return models


def fit_epoch(models, data, runs, epochs=3):
    """Seconds of an epoch of all fits, one after the other, from the mean over some of them."""

    def train():
        for model in models:
            model.fit(*data.train, batch_size=BATCH, epochs=epochs, validation_data=data.validation, verbose=0)

    return runs * seconds(train) / (len(models) * epochs)


def jax_by_hand():
    """Returns a function that trains and evaluates one epoch of 64 networks, all in JAX, with vmap and scan."""
    import jax
    import jax.numpy as jnp

    (x, y), (x_validation, y_validation) = [
        [jnp.asarray(part) for part in pair] for pair in (data.train, data.validation)
    ]

    def initial(seed):
        sizes, keys = [64, 64, 64, 10], jax.random.split(jax.random.key(seed), 3)
        he = jax.nn.initializers.he_uniform()
        return [(he(key, (i, o)), jnp.zeros(o)) for key, i, o in zip(keys, sizes[:-1], sizes[1:])]

    def scores(parameters, x, y):
        for kernel, bias in parameters[:-1]:
            x = jax.nn.relu(x @ kernel + bias)
        logits = x @ parameters[-1][0] + parameters[-1][1]
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()
        return loss, (logits.argmax(axis=1) == y).mean()

    def step(state, rows):
        parameters, first, second, count = state
        (loss, accuracy), gradient = jax.value_and_grad(scores, has_aux=True)(parameters, x[rows], y[rows])
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        rate = 1e-3 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        parameters = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), parameters, first, second)
        return (parameters, first, second, count), jnp.stack([loss, accuracy])

    steps = jax.vmap(step, in_axes=((0, 0, 0, None), 0), out_axes=((0, 0, 0, None), 0))

    @jax.jit
    def epoch(state, rows, rest):
        state, curve = jax.lax.scan(steps, state, rows)
        state, last = steps(state, rest)
        return state, curve, last, jax.vmap(scores, in_axes=(0, None, None))(state[0], x_validation, y_validation)

    zeros = jax.tree.map(jnp.zeros_like, jax.vmap(initial)(jnp.arange(RUNS)))
    state = jax.vmap(initial)(jnp.arange(RUNS)), zeros, zeros, jnp.array(0)

    def train(epochs=1):
        nonlocal state
        for number in range(epochs):
            order = np.stack([epoch_order(len(y), seed, number) for seed in range(RUNS)])
            full = len(y) // BATCH * BATCH
            rows = order[:, :full].reshape(RUNS, -1, BATCH).transpose(1, 0, 2)
            state, *rest = epoch(state, rows, order[:, full:])
            jax.block_until_ready(rest)

    train()  # compiles
    return train


def measured():
    """Returns name -> milliseconds of an epoch, on the backend of this process."""
    assert len(data.train[1]) % BATCH, "the hand-written epoch expects a last, smaller batch"
    by_hand = jax_by_hand()
    fits = {
        "64 dense, fit run after run": (prepared_fits(dense, data), data, RUNS),
        "64 dense, fit, steps_per_execution": (prepared_fits(dense, data, STEPS), data, RUNS),
        "16 convolutional, fit run after run": (prepared_fits(convolutional, images), images, CONVOLUTIONAL_RUNS),
    }
    sides = {
        "64 dense, sweep": SweepClock(dense, data, RUNS),
        "64 dense, JAX by hand": lambda: seconds(lambda: by_hand(30)) / 30,
        "16 convolutional, sweep": SweepClock(convolutional, images, CONVOLUTIONAL_RUNS),
        **{name: functools.partial(fit_epoch, *parts) for name, parts in fits.items()},
    }
    times = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, measure in sides.items():
            times[name].append(1000 * measure())
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    if "--measure" in sys.argv:
        print(json.dumps(measured()))
        return
    tables = {}
    for backend in ("tensorflow", "jax"):
        call = [sys.executable, __file__, "--measure"]
        out = subprocess.run(call, env={**os.environ, "KERAS_BACKEND": backend}, stdout=subprocess.PIPE, check=True)
        tables[backend] = json.loads(out.stdout.splitlines()[-1])
    place = machine()
    print(f"{place['processor']}, {place['cores']} cores; keras {keras.__version__}")
    print(f"milliseconds of an epoch, median of {REPEATS} repeats")
    for backend, times in tables.items():
        print(f"\n{backend}")
        for name, milliseconds in times.items():
            sweep = times[name.split(",")[0] + ", sweep"]
            print(f"  {name:38} {milliseconds:9.1f} ms   {milliseconds / sweep:7.2f} times the sweep here")
    for name in ("64 dense, sweep", "16 convolutional, sweep"):
        ratio = tables["jax"][name.replace("sweep", "fit run after run")] / tables["tensorflow"][name]
        print(f"\n{name} on TensorFlow: {ratio:.1f} times as fast as fit on JAX")
    for backend, times in tables.items():
        print(f"sweep on {backend}: {times['64 dense, sweep'] / times['64 dense, JAX by hand']:.2f} of JAX by hand")


if __name__ == "__main__":
    main()
