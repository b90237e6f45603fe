"""`nnopt.lab.sweep`: stacked runs are the runs of a plain Keras loop, each on its own."""

import itertools
import random
import threading
import time
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

import nnopt
from nnopt.data.ordered import epoch_order
from nnopt.lab.stack import _numbers, _stacked_optimizer, _table

STACKS = keras.backend.backend() in ("tensorflow", "jax")
only_stacked = pytest.mark.skipif(not STACKS, reason="runs are trained one after the other on this backend")

cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small_data(shape=(8,), examples=48, seed=0):
    """A learnable three-class problem whose last batch is smaller than the others."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(examples + 48, *shape)).astype("float32")
    y = x.reshape(len(x), -1)[:, :3].argmax(axis=1).astype("int32")
    parts = np.split(np.arange(len(x)), [examples, examples + 24])
    train, validation, test = [(x[rows], y[rows]) for rows in parts]
    return SimpleNamespace(train=train, validation=validation, test=test)


def dense(units=16, rate=0.0, l2=None):
    middle = [layers.Dropout(rate)] if rate else []
    penalty = keras.regularizers.L2(l2) if l2 else None
    first = layers.Dense(units, activation="relu", kernel_regularizer=penalty)
    return keras.Sequential([keras.Input((8,)), first, *middle, layers.Dense(3)])


def normalized():
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(3),
        ]
    )


def gated():
    return keras.Sequential([keras.Input((5, 4)), layers.GRU(8), layers.Dense(3)])


def attentive():
    inputs = keras.Input((5, 4))
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=4)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(attended)))


def convolutional():
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])


NETWORKS = {"dense": (dense, (8,)), "normalized": (normalized, (8,)), "gated": (gated, (5, 4)),
            "attentive": (attentive, (5, 4)), "convolutional": (convolutional, (4, 4, 1))}  # fmt: skip
OPTIMIZERS = {
    "sgd": partial(keras.optimizers.SGD, learning_rate=0.05),
    "momentum": partial(keras.optimizers.SGD, learning_rate=0.02, momentum=0.9),
    "nesterov": partial(keras.optimizers.SGD, learning_rate=0.02, momentum=0.9, nesterov=True),
    "rmsprop": partial(keras.optimizers.RMSprop, learning_rate=0.002),
    "adam": partial(keras.optimizers.Adam, learning_rate=0.005),
    "adamw": partial(keras.optimizers.AdamW, learning_rate=0.005, weight_decay=0.05),
}


def plain_keras_loop(build, optimizer, data, seed, epochs, batch_size=32):
    """Returns the curves of one run, written as one would without nnopt."""
    keras.utils.set_random_seed(seed)
    model = build()
    # Eagerly: six steps take less time than compiling them.
    model.compile(optimizer=optimizer, loss=cross_entropy, metrics=["accuracy"], run_eagerly=True)
    x, y = data.train
    curves = {name: [] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    for epoch in range(epochs):
        order = epoch_order(len(y), seed, epoch)
        log = model.fit(x[order], y[order], batch_size=batch_size, shuffle=False, verbose=0).history
        scores = [log["loss"][0], log["accuracy"][0], *model.evaluate(*data.validation, verbose=0)]
        for curve, score in zip(curves.values(), scores):
            curve.append(float(score))
    return {name: np.array(curve) for name, curve in curves.items()}, model


def assert_equals_plain_runs(build, optimizer, data, result, arguments=lambda run: {}, numbers=None):
    for number in range(len(result)) if numbers is None else numbers:
        run = result.runs[number]
        curves, model = plain_keras_loop(build, optimizer(**arguments(run)), data, run["seed"], epochs=3)
        for name, curve in curves.items():
            np.testing.assert_allclose(result.history[name][number], curve, rtol=1e-4, atol=1e-6, err_msg=name)
        for ours, theirs in zip(result.model(number).get_weights(), model.get_weights()):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        for ours, variable in zip(result.weights(number), model.trainable_weights):
            np.testing.assert_allclose(ours, keras.ops.convert_to_numpy(variable), rtol=1e-3, atol=1e-4)


def combinations():
    """Every optimizer on one network and two other networks; the other pairs only in thorough runs."""
    for network in ("dense", "normalized", "gated", "attentive"):
        for optimizer in OPTIMIZERS:
            usual = network == "dense" or (network, optimizer) in {("normalized", "momentum"), ("gated", "adam")}
            marks = [] if usual else [pytest.mark.thorough]
            yield pytest.param(network, optimizer, marks=marks)


@only_stacked
@pytest.mark.parametrize(("network", "optimizer"), list(combinations()))
def test_stacked_run_equals_plain_keras_loop(network, optimizer):
    build, shape = NETWORKS[network]
    data = small_data(shape)
    result = nnopt.lab.sweep(build, data, OPTIMIZERS[optimizer], seeds=[3, 0], epochs=3, progress=False)
    assert_equals_plain_runs(build, OPTIMIZERS[optimizer], data, result, numbers=[1])


def test_convolution_and_one_by_one_training_equal_plain_keras_loop():
    data = small_data((4, 4, 1))
    for stacked in (True, False):
        result = nnopt.lab.sweep(
            convolutional, data, OPTIMIZERS["momentum"], seeds=[1, 2], epochs=3, stacked=stacked, progress=False
        )
        assert_equals_plain_runs(convolutional, OPTIMIZERS["momentum"], data, result)


def test_every_number_of_a_setting_reaches_its_own_run():
    data = small_data()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 9)
    grid = [
        {"learning_rate": {"cosine": schedule}, "momentum": [0.0, 0.9]},
        {"learning_rate": [0.02], "weight_decay": [0.1]},
    ]
    result = nnopt.lab.sweep(dense, data, keras.optimizers.SGD, grid, seeds=[4], epochs=3, progress=False)

    def arguments(run):
        chosen = {name: run[name] for name in ("momentum", "weight_decay") if name in run}
        return {**chosen, "learning_rate": schedule if run["learning_rate"] == "cosine" else run["learning_rate"]}

    assert_equals_plain_runs(dense, keras.optimizers.SGD, data, result, arguments)


NUMBERS = {
    "SGD": {"momentum": [0.0, 0.9], "weight_decay": [None, 0.1]},
    "RMSprop": {"rho": [0.8, 0.95], "epsilon": [1e-7, 0.1]},
    "Adam": {"beta_1": [0.5, 0.9], "beta_2": [0.9, 0.99], "epsilon": [1e-7, 0.1]},
    "AdamW": {"beta_1": [0.5, 0.9], "weight_decay": [0.0, 0.1]},
    "Nadam": {"epsilon": [1e-7, 0.1], "weight_decay": [None, 0.1]},
    "Adamax": {"beta_1": [0.5, 0.9], "beta_2": [0.9, 0.99]},
    "Adagrad": {"epsilon": [1e-7, 0.1]},
    "Adadelta": {"rho": [0.5, 0.9], "epsilon": [1e-7, 0.1]},
    "Lion": {"beta_1": [0.5, 0.9], "beta_2": [0.9, 0.99]},
    "Ftrl": {"weight_decay": [None, 0.1]},
}


@only_stacked
@pytest.mark.parametrize("name", NUMBERS)
def test_stacked_optimizer_is_as_many_optimizers_with_numbers_of_their_own(name):
    choices = {"learning_rate": [0.01, 0.05], **NUMBERS[name]}
    settings = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
    optimizers = [getattr(keras.optimizers, name)(**setting) for setting in settings]
    generator = np.random.default_rng(0)
    start = generator.normal(size=(len(settings), 5)).astype("float32")
    alone = [keras.Variable(row) for row in start]
    together = keras.Variable(start)
    numbers = _numbers(optimizers, steps=1)
    stacked = _stacked_optimizer(optimizers, numbers)
    stacked.build([together])
    stacked.take({number: keras.ops.convert_to_tensor(table[0]) for number, table in numbers.items()})
    for _ in range(4):
        gradient = generator.normal(size=start.shape).astype("float32")
        stacked.apply([keras.ops.convert_to_tensor(gradient)], [together])
        for optimizer, variable, row in zip(optimizers, alone, gradient):
            optimizer.apply([keras.ops.convert_to_tensor(row)], [variable])
    expected = np.stack([keras.ops.convert_to_numpy(variable) for variable in alone])
    assert len(np.unique(expected.round(6), axis=0)) == len(settings), "every number must matter"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(together), expected, rtol=1e-5, atol=1e-6)


def test_runs_of_one_seed_start_equal_and_runs_of_two_seeds_do_not():
    grid = {"learning_rate": [1e-30, 2e-30]}
    result = nnopt.lab.sweep(dense, small_data(), keras.optimizers.SGD, grid, seeds=[0, 1], epochs=1, progress=False)
    first, second, other_rate, _ = [result.model(number).get_weights() for number in range(4)]
    assert all(np.allclose(a, b, atol=1e-20) for a, b in zip(first, other_rate))
    assert not np.array_equal(first[0], second[0])


def test_stacks_of_limited_size_change_no_run():
    def train(runs_at_once):
        grid = {"learning_rate": [0.1, 0.05]}
        return nnopt.lab.sweep(
            dense, small_data(), keras.optimizers.Adam, grid, seeds=range(3), epochs=2,
            runs_at_once=runs_at_once, progress=False,
        )  # fmt: skip

    whole, pieces = train(128), train(4)
    assert whole.runs == pieces.runs
    np.testing.assert_allclose(whole.history["val_loss"], pieces.history["val_loss"], rtol=1e-4)


def test_a_diverging_run_becomes_nan_alone():
    alone = nnopt.lab.sweep(dense, small_data(), keras.optimizers.SGD, {"learning_rate": [0.05]}, seeds=[0], epochs=3,
                        progress=False)  # fmt: skip
    grid = {"learning_rate": [0.05, 1e25]}
    both = nnopt.lab.sweep(dense, small_data(), keras.optimizers.SGD, grid, seeds=[0], epochs=3, progress=False)
    assert both.diverged.tolist() == [False, True]
    assert np.isnan(both.history["val_accuracy"][1, -1])
    np.testing.assert_allclose(both.history["loss"][0], alone.history["loss"][0], rtol=1e-5)
    assert "1 diverged" in repr(both)
    assert both.best("val_loss") == {"learning_rate": 0.05}
    with pytest.raises(ValueError, match="diverged run"):
        both.select(learning_rate=1e25).best("val_loss")


def test_each_run_has_its_own_dropout():
    def build(seed):
        ones = keras.initializers.Ones()
        return keras.Sequential(
            [keras.Input((8,)), layers.Dropout(0.5), layers.Dense(3, kernel_initializer=ones, name="head")]
        )

    data = small_data()
    data.train = (np.ones((32, 8), "float32"), np.zeros(32, "int32"))
    result = nnopt.lab.sweep(build, data, OPTIMIZERS["sgd"], seeds=range(4), epochs=1, progress=False)
    kernels = [result.model(number).get_layer("head").get_weights()[0] for number in range(4)]
    assert all(not np.allclose(kernels[i], kernels[j]) for i in range(4) for j in range(i))


def test_dropout_and_penalties_train_as_in_keras():
    data = small_data()
    build = partial(dense, l2=0.05)
    result = nnopt.lab.sweep(build, data, OPTIMIZERS["adam"], seeds=[0, 1], epochs=3, progress=False)
    assert_equals_plain_runs(build, OPTIMIZERS["adam"], data, result)
    dropped = nnopt.lab.sweep(partial(dense, rate=0.5), data, OPTIMIZERS["adam"], seeds=[0], epochs=3, progress=False)
    assert np.isfinite(dropped.final("val_loss")).all()


def test_data_of_its_own_for_every_seed():
    result = nnopt.lab.sweep(
        dense, lambda seed: small_data(seed=seed), OPTIMIZERS["adam"], seeds=[2, 7], epochs=3, progress=False
    )
    for number, seed in enumerate([2, 7]):
        curves, _ = plain_keras_loop(dense, OPTIMIZERS["adam"](), small_data(seed=seed), seed, epochs=3)
        np.testing.assert_allclose(result.history["val_loss"][number], curves["val_loss"], rtol=1e-4)
        np.testing.assert_allclose(result.history["loss"][number], curves["loss"], rtol=1e-4)


def test_inputs_may_be_a_dict_and_the_loss_a_name():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")

    def build():
        joined = layers.Concatenate()([left, right])
        return keras.Model({"left": left, "right": right}, layers.Dense(1)(joined))

    generator = np.random.default_rng(0)
    x = {"left": generator.normal(size=(40, 4)).astype("float32"), "right": np.ones((40, 4), "float32")}
    data = SimpleNamespace(train=(x, x["left"].sum(axis=1, keepdims=True)), validation=None, test=None)
    result = nnopt.lab.sweep(
        build, data, OPTIMIZERS["adam"], seeds=[0], epochs=2, loss="mean_squared_error",
        metrics=["mean_absolute_error"], progress=False,
    )  # fmt: skip
    assert set(result.history) == {"loss", "mean_absolute_error"}
    assert result.history["loss"][0, 1] < result.history["loss"][0, 0]


def test_test_data_are_evaluated_only_when_asked_for():
    data = small_data()
    silent = nnopt.lab.sweep(dense, data, OPTIMIZERS["sgd"], seeds=[0], epochs=1, progress=False)
    asked = nnopt.lab.sweep(dense, data, OPTIMIZERS["sgd"], seeds=[0], epochs=1, evaluate_on=("test",), progress=False)
    assert not any(name.startswith("test_") for name in silent.history)
    assert {"test_loss", "test_accuracy"} < set(asked.history)
    assert not any(name.startswith("val_") for name in asked.history)


def test_training_data_are_evaluated_at_the_end_of_the_epoch():
    data = small_data()
    result = nnopt.lab.sweep(dense, data, OPTIMIZERS["adam"], seeds=[0], epochs=2, evaluate_on="train", progress=False)
    model = result.model(0)
    expected = cross_entropy(data.train[1], model(data.train[0]))
    np.testing.assert_allclose(result.final("train_loss")[0], float(expected), rtol=1e-5)
    assert result.final("train_loss")[0] < result.final("loss")[0]


def test_evaluation_may_skip_epochs_but_not_the_last():
    every = nnopt.lab.sweep(dense, small_data(), OPTIMIZERS["sgd"], seeds=[0], epochs=5, progress=False)
    for stacked in (True, False):
        arguments = dict(seeds=[0], epochs=5, evaluate_every=2, stacked=stacked, progress=False)
        some = nnopt.lab.sweep(dense, small_data(), OPTIMIZERS["sgd"], **arguments)
        assert np.isnan(some.history["val_loss"][0, [0, 2]]).all()
        np.testing.assert_allclose(
            some.history["val_loss"][0, [1, 3, 4]], every.history["val_loss"][0, [1, 3, 4]], rtol=1e-5
        )
        np.testing.assert_allclose(some.history["loss"], every.history["loss"], rtol=1e-5)
        assert not some.diverged.any()


@only_stacked
def test_schedules_of_every_kind_give_the_table_of_their_single_steps():
    kinds = [
        nnopt.schedules.OneCycle(0.5, 40),
        keras.optimizers.schedules.CosineDecay(0.1, 30, warmup_target=0.3, warmup_steps=5),
        keras.optimizers.schedules.PiecewiseConstantDecay([10, 20], [0.3, 0.2, 0.1]),
        keras.optimizers.schedules.ExponentialDecay(0.1, 7, 0.5, staircase=True),
    ]
    expected = [[float(kind(step)) for step in range(45)] for kind in kinds]
    np.testing.assert_allclose(_table(kinds, 45).T, expected, rtol=1e-5)


def test_a_model_with_its_own_train_step_is_trained_one_by_one_with_a_warning():
    class Doubled(keras.Model):
        def train_step(self, *args, **kwargs):
            return super().train_step(*args, **kwargs)

    def build():
        inputs = keras.Input((8,))
        return Doubled(inputs, layers.Dense(3)(inputs))

    data = small_data()
    arguments = dict(seeds=[0, 1], epochs=2, progress=False)
    if STACKS:
        with pytest.warns(UserWarning, match="its own train_step"):
            own = nnopt.lab.sweep(build, data, OPTIMIZERS["sgd"], **arguments)
    else:
        own = nnopt.lab.sweep(build, data, OPTIMIZERS["sgd"], **arguments)
    plain = nnopt.lab.sweep(
        lambda: keras.Sequential([keras.Input((8,)), layers.Dense(3)]), data, OPTIMIZERS["sgd"], **arguments
    )
    np.testing.assert_allclose(own.history["val_loss"], plain.history["val_loss"], rtol=1e-4)


def test_global_random_states_are_left_alone():
    random.seed(11)
    np.random.seed(11)
    expected = random.random(), np.random.random()
    random.seed(11)
    np.random.seed(11)
    nnopt.lab.sweep(dense, small_data(), OPTIMIZERS["sgd"], seeds=[0], epochs=1, progress=False)
    assert (random.random(), np.random.random()) == expected


@only_stacked
@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (keras.optimizers.Muon, "not known to update each weight on its own"),
        (partial(keras.optimizers.SGD, clipnorm=1.0), "`clipnorm` set"),
        (partial(keras.optimizers.Adam, use_ema=True), "`use_ema` set"),
        (type("Mine", (keras.optimizers.SGD,), {}), "not known to update each weight on its own"),
    ],
)
def test_an_optimizer_that_cannot_be_stacked_is_refused_by_name(optimizer, reason):
    name = getattr(optimizer, "func", optimizer).__name__
    with pytest.raises(ValueError, match=rf"{name} cannot be trained stacked.*{reason}.*stacked=False"):
        nnopt.lab.sweep(dense, small_data(), optimizer, seeds=[0], epochs=1, progress=False)


def test_weights_excluded_from_decay_by_name_stay_excluded():
    def optimizer(learning_rate=0.02):
        made = keras.optimizers.AdamW(learning_rate, weight_decay=0.5)
        made.exclude_from_weight_decay(var_names=["bias", "beta"])
        return made

    build, shape = NETWORKS["normalized"]
    data = small_data(shape)
    result = nnopt.lab.sweep(build, data, optimizer, {"learning_rate": [0.02]}, seeds=[3, 0], epochs=3, progress=False)
    assert_equals_plain_runs(build, optimizer, data, result, numbers=[1])


@only_stacked
def test_weights_excluded_from_decay_one_by_one_are_refused():
    def optimizer(learning_rate=0.02):
        made = keras.optimizers.AdamW(learning_rate, weight_decay=0.5)
        made.exclude_from_weight_decay(var_list=[keras.Variable(0.0)])
        return made

    with pytest.raises(ValueError, match="excludes variables from weight decay other than by their names"):
        nnopt.lab.sweep(dense, small_data(), optimizer, {"learning_rate": [0.02]}, seeds=[0], epochs=1, stacked=True)


def test_a_refused_optimizer_trains_one_by_one():
    result = nnopt.lab.sweep(
        dense, small_data(), keras.optimizers.Lamb, {"learning_rate": [0.01]}, seeds=[0], epochs=3, stacked=False,
        progress=False,
    )  # fmt: skip
    assert result.history["loss"][0, -1] < result.history["loss"][0, 0]


def test_groups_are_put_back_in_the_order_of_the_grid():
    grid = {"units": [4, 8], "learning_rate": [0.1, 0.2]}
    result = nnopt.lab.sweep(dense, small_data(), keras.optimizers.SGD, grid, seeds=[5, 6], epochs=1, progress=False)
    names = ("units", "learning_rate", "seed")
    expected = [dict(zip(names, values)) for values in itertools.product([4, 8], [0.1, 0.2], [5, 6])]
    assert result.runs == expected
    assert [result.model(number).layers[0].units for number in range(8)] == [4, 4, 4, 4, 8, 8, 8, 8]


def test_momentum_and_weight_decay_may_be_schedules():
    cycle = nnopt.schedules.OneCycle(0.05, 6)
    optimizer = partial(nnopt.optimizers.SGD, learning_rate=cycle, momentum=cycle.momentum(0.5, 0.9))
    result = nnopt.lab.sweep(dense, small_data(), optimizer, seeds=[3], epochs=3, progress=False)
    assert_equals_plain_runs(dense, optimizer, small_data(), result)


def rescaled(factor):
    return keras.Sequential([keras.Input((8,)), layers.Rescaling(factor), layers.Dense(3)])


LONG = np.ones(2000, "float32"), np.concatenate([np.ones(1000), np.full(1000, 5.0)]).astype("float32")
# What a stack would train wrong: name of the case -> build and grid.
UNSTACKABLE = {
    "a constraint": (
        lambda: keras.Sequential(
            [keras.Input((8,)), layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.3))]
        ),
        {},
    ),
    "a constant that depends on the seed": (lambda seed: rescaled(1.0 + seed), {}),
    "a dropout rate that depends on the seed": (
        lambda seed: keras.Sequential([keras.Input((8,)), layers.Dropout(0.4 * seed), layers.Dense(3)]),
        {},
    ),
    "long arrays that look alike": (
        lambda table: rescaled(float(table.mean())),
        {"table": dict(zip(("ones", "fives"), LONG))},
    ),
}


@only_stacked
@pytest.mark.filterwarnings("ignore:The network:UserWarning")
@pytest.mark.parametrize("case", UNSTACKABLE)
def test_what_a_stack_would_train_wrong_is_trained_as_fit_trains_it(case):
    build, grid = UNSTACKABLE[case]
    arguments = dict(seeds=[0, 1], epochs=1, evaluate_on=(), progress=False)
    ours, alone = [
        nnopt.lab.sweep(build, small_data(), OPTIMIZERS["sgd"], grid, stacked=stacked, **arguments)
        for stacked in (True, False)
    ]
    for number in range(len(ours)):
        for one, other in zip(ours.weights(number), alone.weights(number)):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@only_stacked
def test_a_constraint_is_named():
    build, _ = UNSTACKABLE["a constraint"]
    with pytest.warns(UserWarning, match="constraint, MaxNorm, on its weight"):
        nnopt.lab.sweep(build, small_data(), OPTIMIZERS["sgd"], seeds=[0], epochs=1, progress=False)


@pytest.mark.parametrize("change", ["longer", "float64", "int64"])
def test_parts_may_differ_in_length_and_dtype(change):
    data = small_data((5, 4))
    x, y = data.test
    data.test = {
        "longer": (np.concatenate([x, x], axis=1), y),
        "float64": (x.astype("float64"), y),
        "int64": (x, y.astype("int64")),
    }[change]

    def build():
        return keras.Sequential([keras.Input((None, 4)), layers.GlobalAveragePooling1D(), layers.Dense(3)])

    parts = ("validation", "test")
    result = nnopt.lab.sweep(build, data, OPTIMIZERS["sgd"], seeds=[0], epochs=1, evaluate_on=parts, progress=False)
    expected = cross_entropy(y, result.model(0)(data.test[0].astype("float32")))
    np.testing.assert_allclose(result.final("test_loss")[0], float(expected), rtol=1e-5)


def test_two_threads_do_not_change_each_others_seeds():
    def build():
        model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
        time.sleep(0.01)  # gives way to the other thread
        model.add(layers.Dense(3))
        return model

    def train(name, seeds):
        arguments = dict(seeds=seeds, epochs=1, evaluate_on=(), progress=False)
        losses[name] = nnopt.lab.sweep(build, small_data(), OPTIMIZERS["sgd"], **arguments).history["loss"]

    losses = {}
    train("alone", range(4))
    threads = [threading.Thread(target=train, args=pair) for pair in (("beside", range(4)), ("other", range(9, 13)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(losses["beside"], losses["alone"], rtol=1e-5)


def test_several_convolutions_with_strides_padding_and_dilation_equal_keras():
    def build():
        return keras.Sequential(
            [
                keras.Input((9, 7, 2)),
                layers.Conv2D(3, (3, 2), strides=(2, 1), padding="same"),
                layers.Conv2D(2, 2, dilation_rate=2),
                layers.Reshape((-1, 2)),
                layers.Conv1D(3, 3, strides=2, padding="same"),
                layers.GlobalAveragePooling1D(),
            ]
        )

    data = small_data((9, 7, 2))
    result = nnopt.lab.sweep(build, data, OPTIMIZERS["sgd"], seeds=[0], epochs=1, progress=False)
    x, y = data.validation
    expected = float(cross_entropy(y, result.model(0)(x)))
    np.testing.assert_allclose(result.final("val_loss")[0], expected, rtol=1e-4)


def bad_data(**changed):
    return SimpleNamespace(**{**vars(small_data()), **changed})


x, y = small_data().train
EMPTY = x[:0], y[:0]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"build": 3}, TypeError, "`build`"),
        ({"build": lambda: 3}, TypeError, "keras.Model.*Received: 3"),
        ({"build": lambda: keras.Sequential([layers.Dense(3)])}, TypeError, "input shape"),
        ({"build": lambda: nnopt.models.seq2seq(9, 9, 4, embedding=4)}, TypeError, "carry no mask.*run_grid"),
        ({"optimizer": "adam"}, TypeError, "`optimizer`"),
        ({"optimizer": lambda: 3}, TypeError, "returned 3"),
        ({"grid": {"momentumm": [0.1]}}, ValueError, "momentumm"),
        ({"epochs": 0}, ValueError, "`epochs`"),
        ({"batch_size": True}, TypeError, "`batch_size`"),
        ({"evaluate_every": 0}, ValueError, "`evaluate_every`"),
        ({"runs_at_once": 0}, ValueError, "`runs_at_once`"),
        ({"stacked": 1}, TypeError, "`stacked`"),
        ({"evaluate_on": ("trian",)}, ValueError, "`evaluate_on`"),
        ({"loss": "no_such_loss"}, ValueError, "no_such_loss"),
        ({"metrics": ["no_such_metric"]}, ValueError, "no_such_metric"),
        ({"metrics": [keras.metrics.SparseCategoricalAccuracy()]}, ValueError, "Metric object"),
        ({"metrics": ["accuracy", "accuracy"]}, ValueError, "'accuracy' twice"),
        ({"metrics": [lambda y, p: keras.ops.mean(p)]}, ValueError, "one value for each example"),
        ({"data": SimpleNamespace(validation=(x, y))}, TypeError, "`data.train`"),
        ({"data": bad_data(train=EMPTY)}, ValueError, "data.train.*number of examples >= 1"),
        ({"data": bad_data(validation=EMPTY)}, ValueError, "data.validation.*number of examples >= 1"),
        ({"data": bad_data(train=(x, (y, y)))}, TypeError, "one array of targets.*run_grid"),
        ({"data": lambda seed: small_data(examples=40 + seed)}, ValueError, "as many examples for every seed"),
    ],
)
def test_bad_arguments_are_named_and_no_array_is_printed(changed, error, message):
    if not STACKS and message in ("one value for each example", "as many examples for every seed"):
        pytest.skip("a rule of stacks only")
    arguments = dict(build=dense, data=small_data(), optimizer=keras.optimizers.SGD, seeds=[0, 1], epochs=1)
    with pytest.raises(error, match=message) as caught:
        nnopt.lab.sweep(**{**arguments, "progress": False, **changed})
    assert len(str(caught.value)) < 400
