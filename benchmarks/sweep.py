"""How long an epoch of 64 small networks takes: nnopt.sweep, Keras' fit of one after the other, JAX written by hand.

    python benchmarks/sweep.py            # on the backend of KERAS_BACKEND, TensorFlow by default

The network is 64-64-64-10 on the digits, batch size 32, Adam; every epoch trains and then evaluates on the validation
part. Compilation and building are not counted: each figure is an epoch's share of a longer training. Each side is
repeated, the sides in turn, and the medians are compared.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import nnopt
from nnopt.data import digits, epoch_order

RUNS, BATCH, REPEATS, FITS = 64, 32, 5, 4
data = digits()
cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    return nnopt.models.mlp(input_shape=(64,), units=[64, 64], classes=10)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def sweep_epoch(epochs=30):
    """Seconds of an epoch of 64 runs: what thirty more epochs add to a sweep of ten (both long enough for XLA)."""

    def train(epochs):
        nnopt.lab.sweep(
            network, data, keras.optimizers.Adam, seeds=range(RUNS), epochs=epochs, batch_size=BATCH, progress=False
        )

    return (seconds(lambda: train(10 + epochs)) - seconds(lambda: train(10))) / epochs


def prepared_fits(steps_per_execution):
    models = []
    for seed in range(FITS):
        keras.utils.set_random_seed(seed)
        model = network()
        model.compile("adam", cross_entropy, metrics=["accuracy"], steps_per_execution=steps_per_execution)
        model.fit(*data.train, batch_size=BATCH, validation_data=data.validation, verbose=0)  # compiles
        models.append(model)
    return models


def fit_epoch(models, epochs=5):
    """Seconds of an epoch of 64 fits, one after the other: 64 times the mean over some of them."""

    def train():
        for model in models:
            model.fit(*data.train, batch_size=BATCH, epochs=epochs, validation_data=data.validation, verbose=0)

    return RUNS * seconds(train) / (len(models) * epochs)


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


def main():
    assert len(data.train[1]) % BATCH, "the hand-written epoch expects a last, smaller batch"
    steps = len(data.train[1]) // BATCH + 1
    by_hand, models, one_call = jax_by_hand(), prepared_fits(1), prepared_fits(steps)
    sides = {
        "nnopt.sweep": sweep_epoch,
        "fit, run after run": lambda: fit_epoch(models),
        f"fit, steps_per_execution={steps}": lambda: fit_epoch(one_call),
        "JAX by hand": lambda: seconds(lambda: by_hand(30)) / 30,
    }
    times = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, measure in sides.items():
            times[name].append(measure())
    medians = {name: statistics.median(values) for name, values in times.items()}
    import jax

    print(f"keras {keras.__version__} on {keras.backend.backend()}, jax {jax.__version__}, {os.cpu_count()} cores")
    print(f"an epoch of {RUNS} networks, {steps} steps and an evaluation; median of {REPEATS} repeats")
    for name, median in medians.items():
        print(f"{name:32} {1000 * median:9.1f} ms   {median / medians['nnopt.sweep']:7.2f} times nnopt.sweep")


if __name__ == "__main__":
    main()
