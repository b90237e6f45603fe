"""The callbacks: curves set from outside, early stopping, gradients by layer."""

import math
import os
import signal
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from nnopt import schedules
from nnopt.callbacks import CyclicalLR, EarlyStopping, ExponentialDecayLR, GradientMonitor, OneCycleLR, StepDecayLR

BACKEND = keras.backend.backend()
NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(24, 3)).astype("float32")
Y = NUMBERS.normal(size=(24, 2)).astype("float32")


def network(optimizer, **compile_arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh", name="first"), keras.layers.Dense(2, name="last")]
    )
    model.compile(optimizer, loss="mse", **compile_arguments)
    return model


def fit(model, callbacks, epochs=1, batch_size=4, **arguments):
    return model.fit(
        X, Y, epochs=epochs, batch_size=batch_size, shuffle=False, verbose=0, callbacks=callbacks, **arguments
    ).history


def values(variables):
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def assert_equal(first, second):
    assert len(first) == len(second)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second))


class Rates(keras.callbacks.Callback):
    """What the optimizer really holds when a batch begins."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(ops.convert_to_numpy(self.model.optimizer.learning_rate)))


CURVES = [
    (
        lambda: CyclicalLR(0.01, 0.1, step_size=3, mode="triangular2"),
        schedules.CyclicalLearningRate(0.01, 0.1, step_size=3, mode="triangular2"),
    ),
    (lambda: OneCycleLR(0.1, total_steps=15, cycle_momentum=False), schedules.OneCycle(0.1, total_steps=15)),
]


@pytest.mark.parametrize(("callback", "schedule"), CURVES)
def test_a_curve_set_from_outside_ends_with_the_weights_of_the_schedule_inside_also_after_a_second_fit(
    callback, schedule
):
    outside, inside = network(keras.optimizers.SGD(0.5)), network(keras.optimizers.SGD(schedule))
    for epochs in (1, 2):
        recorder = Rates()
        history = fit(outside, [callback(), recorder], epochs)
        fit(inside, [], epochs)
    steps = np.arange(6, 18)
    np.testing.assert_allclose(recorder.seen, ops.convert_to_numpy(schedule(steps)), rtol=1e-6)
    assert history["learning_rate"] == pytest.approx([float(schedule(11)), float(schedule(17))], rel=1e-6)
    for a, b in zip(values(outside.weights), values(inside.weights)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_curve_crosses_from_one_block_of_its_table_to_the_next(monkeypatch):
    monkeypatch.setattr("nnopt.callbacks.BLOCK", 4)
    recorder = Rates()
    fit(network(keras.optimizers.SGD(0.5)), [CyclicalLR(0.01, 0.1, step_size=3), recorder], epochs=2)
    schedule = schedules.CyclicalLearningRate(0.01, 0.1, step_size=3)
    np.testing.assert_allclose(recorder.seen, [float(schedule(step)) for step in range(12)], rtol=1e-6)


def test_steps_are_updates_under_gradient_accumulation():
    recorder = Rates()
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    fit(network(optimizer), [CyclicalLR(0.01, 0.1, step_size=3), recorder], epochs=2)
    schedule = schedules.CyclicalLearningRate(0.01, 0.1, step_size=3)
    np.testing.assert_allclose(recorder.seen, [float(schedule(step // 2)) for step in range(12)], rtol=1e-6)
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 6


@pytest.mark.skipif(BACKEND == "torch", reason="torch refuses steps_per_execution > 1")
def test_several_steps_per_execution_hold_the_rate_but_do_not_shift_the_curve():
    recorder = Rates()
    model = network(keras.optimizers.SGD(0.5), steps_per_execution=4)
    with pytest.warns(UserWarning, match="once per execution"):
        fit(model, [CyclicalLR(0.01, 0.1, step_size=3), recorder], epochs=2)
    schedule = schedules.CyclicalLearningRate(0.01, 0.1, step_size=3)
    np.testing.assert_allclose(recorder.seen, [float(schedule(step)) for step in (0, 4, 6, 10)], rtol=1e-6)


def test_the_rate_reaches_the_optimizer_inside_a_loss_scale_optimizer():
    model = network(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=4.0))
    recorder = Rates()
    fit(model, [CyclicalLR(0.01, 0.1, step_size=3), recorder])
    schedule = schedules.CyclicalLearningRate(0.01, 0.1, step_size=3)
    np.testing.assert_allclose(recorder.seen, [float(schedule(step)) for step in range(6)], rtol=1e-6)


ANY_RATE = [
    lambda: StepDecayLR(0.1, [1], 0.5),
    lambda: ExponentialDecayLR(0.1, 1, 0.5),
    lambda: CyclicalLR(0.01, 0.1, 3),
    lambda: OneCycleLR(0.1, 10, cycle_momentum=False),
]


@pytest.mark.parametrize("callback", ANY_RATE)
def test_an_optimizer_compiled_with_a_schedule_is_refused_with_advice(callback):
    model = network(keras.optimizers.SGD(schedules.StepDecay(0.1, [3], 0.5)))
    with pytest.raises(ValueError, match=r"compiled with a number .*Received: optimizer="):
        fit(model, [callback()])


def test_epochs_go_on_counting_in_a_second_fit_and_heed_initial_epoch():
    model = network(keras.optimizers.SGD(0.5))
    first = fit(model, [StepDecayLR(0.8, [2, 4], 0.5)], epochs=3)
    second = fit(model, [StepDecayLR(0.8, [2, 4], 0.5)], epochs=2)
    third = fit(model, [ExponentialDecayLR(0.8, 1, 0.5)], initial_epoch=5, epochs=7)
    assert first["learning_rate"] == pytest.approx([0.8, 0.8, 0.4])
    assert second["learning_rate"] == pytest.approx([0.4, 0.2])
    assert third["learning_rate"] == pytest.approx([0.8 / 32, 0.8 / 64])


def test_the_exponential_decay_in_stairs_falls_every_few_epochs():
    history = fit(network(keras.optimizers.SGD(0.5)), [ExponentialDecayLR(0.8, 2, 0.25, staircase=True)], epochs=5)
    assert history["learning_rate"] == pytest.approx([0.8, 0.8, 0.2, 0.2, 0.05])


def test_epochs_are_those_of_the_data_under_gradient_accumulation():
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=4)
    model = network(optimizer)
    fit(model, [StepDecayLR(0.8, 1, 0.5)], epochs=2)
    assert fit(model, [StepDecayLR(0.8, 1, 0.5)])["learning_rate"] == pytest.approx([0.2])


def test_the_same_callback_knows_its_epoch_when_batches_change_their_size():
    model, callback = network(keras.optimizers.SGD(0.5)), StepDecayLR(0.8, 1, 0.5)
    fit(model, [callback], epochs=2)
    assert fit(model, [callback], batch_size=12)["learning_rate"] == pytest.approx([0.2])


def batches():
    for start in range(0, 24, 4):
        yield X[start : start + 4], Y[start : start + 4]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_on_data_of_unknown_size_the_epoch_is_known_to_the_same_callback_or_from_steps_per_epoch():
    model, callback = network(keras.optimizers.SGD(0.5)), StepDecayLR(0.8, 1, 0.5)
    model.fit(batches(), epochs=1, shuffle=False, verbose=0, callbacks=[callback])
    # TensorFlow counts one step more when data run out, so that 6 or 7 batches are done.
    second = model.fit(batches(), shuffle=False, verbose=0, callbacks=[callback])
    assert second.history["learning_rate"] == pytest.approx([0.4])
    with pytest.raises(ValueError, match="cannot tell which epoch"):
        model.fit(batches(), shuffle=False, verbose=0, callbacks=[StepDecayLR(0.8, 1, 0.5)])
    third = model.fit(batches(), shuffle=False, verbose=0, callbacks=[StepDecayLR(0.8, 1, 0.5, steps_per_epoch=6)])
    assert third.history["learning_rate"] == pytest.approx([0.2])


def cycle(**arguments):
    return OneCycleLR(0.1, total_steps=12, base_momentum=0.4, max_momentum=0.9, **arguments)


def linear_sgd(nesterov, rates, momenta):
    """Gradient descent with momentum as Keras defines it, on a linear model, in float64."""
    weights, velocity = np.zeros((3, 2)), np.zeros((3, 2))
    for step, (rate, momentum) in enumerate(zip(rates, momenta)):
        rows = slice(4 * (step % 6), 4 * (step % 6) + 4)
        x, y = X[rows].astype("float64"), Y[rows].astype("float64")
        gradient = x.T @ (x @ weights - y) * 2 / y.size
        velocity = momentum * velocity - rate * gradient
        weights = weights + (momentum * velocity - rate * gradient if nesterov else velocity)
    return weights


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_cycled_momentum_of_sgd_takes_effect_as_in_a_loop_written_by_hand(nesterov, run_eagerly):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9, nesterov=nesterov), loss="mse", run_eagerly=run_eagerly)
    history = fit(model, [cycle()], epochs=2)
    schedule = schedules.OneCycle(0.1, total_steps=12)
    rates = [float(schedule(step)) for step in range(12)]
    momenta = [float(schedule.momentum(step, 0.4, 0.9)) for step in range(12)]
    expected = linear_sgd(nesterov, rates, momenta)
    np.testing.assert_allclose(values(model.weights)[0], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected - linear_sgd(nesterov, rates, [0.9] * 12)).max() > 1e-2
    assert history["momentum"] == pytest.approx([momenta[5], momenta[11]])


def linear_adam(rates, betas):
    """Adam (Kingma and Ba 2015, the form before section 2.1) on a linear model, in float64, a beta_1 for each step."""
    weights, first, second = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2))
    for step, (rate, beta) in enumerate(zip(rates, betas)):
        rows = slice(4 * (step % 6), 4 * (step % 6) + 4)
        x, y = X[rows].astype("float64"), Y[rows].astype("float64")
        gradient = x.T @ (x @ weights - y) * 2 / y.size
        first = beta * first + (1 - beta) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(1 - 0.999 ** (step + 1)) / (1 - beta ** (step + 1))
        weights = weights - rate * corrected * first / (np.sqrt(second) + 1e-7)
    return weights


def test_cycled_beta_1_of_adam_takes_effect_as_in_a_loop_written_by_hand():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.Adam(0.5), loss="mse")
    fit(model, [cycle()], epochs=2)
    schedule = schedules.OneCycle(0.1, total_steps=12)
    rates = [float(schedule(step)) for step in range(12)]
    expected = linear_adam(rates, [float(schedule.momentum(step, 0.4, 0.9)) for step in range(12)])
    np.testing.assert_allclose(values(model.weights)[0], expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected - linear_adam(rates, [0.9] * 12)).max() > 1e-2


CYCLED = {
    "SGD": dict(momentum=0.9),
    "RMSprop": dict(momentum=0.9),
    "Muon": dict(),
    "Adam": dict(),
    "AdamW": dict(),
    "Adamax": dict(),
    "Nadam": dict(),
    "Lamb": dict(),
    "Lion": dict(),
}


@pytest.mark.parametrize("name", CYCLED)
def test_cycling_takes_effect_in_every_optimizer_that_is_not_refused_and_leaves_it_as_it_was(name):
    ends = []
    for low, high in ((0.4, 0.9), (0.9, 0.9)):
        optimizer = getattr(keras.optimizers, name)(0.5, **CYCLED[name])
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="ones")])
        model.compile(optimizer, loss="mse")
        config = optimizer.get_config()
        fit(model, [OneCycleLR(0.1, total_steps=12, base_momentum=low, max_momentum=high)], epochs=2)
        ends.append(np.concatenate([value.ravel() for value in values(model.weights)]))
        assert {**optimizer.get_config(), "learning_rate": 0} == {**config, "learning_rate": 0}
        assert not any(type(variable).__name__ == "_MomentumVariable" for variable in optimizer.variables)
    assert np.abs(ends[0] - ends[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (lambda: keras.optimizers.SGD(0.1), "momentum > 0"),
        (lambda: keras.optimizers.Adagrad(0.1), "not known to take effect"),
        (lambda: type("Mine", (keras.optimizers.Adam,), {})(0.1), "not known to take effect"),
    ],
)
def test_cycling_that_would_be_ignored_is_refused(optimizer, reason):
    model = network(optimizer())
    with pytest.raises(ValueError, match=rf"{reason}.*cycle_momentum=False"):
        fit(model, [cycle()])
    fit(model, [cycle(cycle_momentum=False)])


@pytest.mark.skipif(BACKEND != "torch", reason="torch's own compiler")
def test_cycling_is_refused_where_torch_compiles_the_step():
    with pytest.raises(ValueError, match="jit_compile"):
        fit(network(keras.optimizers.Adam(0.1), jit_compile=True), [cycle()])


def test_a_model_saved_during_a_cycle_loads_with_its_number_and_all_its_slots(tmp_path):
    model = network(keras.optimizers.Adam(0.1, beta_1=0.7))
    path = tmp_path / "saved.keras"
    fit(model, [cycle(), keras.callbacks.ModelCheckpoint(path)])
    loaded = keras.models.load_model(path)
    assert loaded.optimizer.beta_1 == model.optimizer.beta_1 == 0.7
    assert_equal(values(loaded.optimizer.variables), values(model.optimizer.variables))


class Failure(keras.callbacks.Callback):
    def __init__(self, error, epoch):
        super().__init__()
        self.error, self.epoch = error, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


def test_a_cycle_after_one_that_failed_puts_the_number_back():
    model = network(keras.optimizers.Adam(0.1, beta_1=0.7))
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, [cycle(), Failure(RuntimeError("on purpose"), 1)], epochs=3)
    assert model.optimizer.get_config()["beta_1"] == 0.7
    fit(model, [cycle()])
    assert model.optimizer.beta_1 == 0.7
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables)


class Metric(keras.callbacks.Callback):
    """Dictates a metric, and keeps the weights of each epoch."""

    def __init__(self, curve):
        super().__init__()
        self.curve, self.weights = curve, []

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.curve[epoch]
        self.weights.append(self.model.get_weights())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_never_becomes_the_best(bad, mode):
    sign = 1 if mode == "min" else -1
    metric = Metric([bad, sign * 3.0, sign * 2.0, bad, sign * 2.5, bad, sign * 1.0])
    model, stop = network("sgd"), EarlyStopping("score", patience=3, mode=mode)
    fit(model, [metric, stop], epochs=7)
    assert (len(metric.weights), stop.best_epoch, stop.best, stop.stopped_epoch) == (6, 2, sign * 2.0, 5)
    assert_equal(model.get_weights(), metric.weights[2])


def test_training_without_any_finite_value_stops_and_restores_nothing():
    metric = Metric([math.nan] * 9)
    model, stop = network("sgd"), EarlyStopping("score", patience=2, mode="min")
    fit(model, [metric, stop], epochs=9)
    assert len(metric.weights) == 2
    assert stop.best is None
    assert_equal(model.get_weights(), metric.weights[-1])


def test_the_best_weights_come_back_at_the_regular_end():
    metric = Metric([3.0, 1.0, 2.0])
    model = network("sgd")
    fit(model, [metric, EarlyStopping("score", patience=9, mode="min")], epochs=3)
    assert_equal(model.get_weights(), metric.weights[1])


def test_restoring_can_be_turned_off():
    metric = Metric([3.0, 1.0, 2.0])
    model = network("sgd")
    fit(model, [metric, EarlyStopping("score", patience=9, mode="min", restore_best_weights=False)], epochs=3)
    assert_equal(model.get_weights(), metric.weights[2])


class CtrlC(keras.callbacks.Callback):
    """Sends the process the signal of Ctrl-C, from within an epoch or from its validation."""

    def __init__(self, place):
        super().__init__()
        self.place, self.epoch, self.batches = place, 0, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append((self.epoch, batch))
        if self.place == "training" and (self.epoch, batch) == (3, 2):
            os.kill(os.getpid(), signal.SIGINT)

    def on_test_batch_end(self, batch, logs=None):
        if self.place == "validation" and self.epoch == 3:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_terminal():
    """Programs that a shell starts in the background begin with Ctrl-C ignored, and would pass that on to the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("place", ["training", "validation"])
def test_ctrl_c_ends_the_batch_brings_the_best_weights_back_and_interrupts(place):
    metric, presser = Metric([3.0, 1.0, 2.0, 2.0, 2.0]), CtrlC(place)
    model = network("sgd")
    validation = {"validation_data": (X, Y)} if place == "validation" else {}
    with pytest.raises(KeyboardInterrupt):
        fit(model, [metric, EarlyStopping("score", patience=9, mode="min"), presser], epochs=5, **validation)
    assert_equal(model.get_weights(), metric.weights[1])
    assert presser.batches[-1] == ((3, 2) if place == "training" else (3, 5))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(model, [])


def test_an_interrupt_raised_by_another_callback_brings_the_best_weights_back():
    metric = Metric([3.0, 1.0, 2.0, 2.0])
    model = network("sgd")
    with pytest.raises(KeyboardInterrupt):
        fit(model, [metric, EarlyStopping("score", patience=9, mode="min"), Failure(KeyboardInterrupt(), 3)], epochs=4)
    assert_equal(model.get_weights(), metric.weights[1])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Broken(keras.layers.Layer):
    """Fails within a step, where no callback can notice."""

    def call(self, inputs):
        raise RuntimeError("on purpose")

    def compute_output_shape(self, shape):
        return shape


def test_a_handler_left_over_by_a_failed_step_lets_ctrl_c_through():
    model = keras.Sequential([keras.layers.Dense(2), Broken()])
    model.compile("sgd", loss="mse")
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, [EarlyStopping("loss")])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_another_exception_ctrl_c_works_as_ever_and_restore_can_be_called():
    metric, stop = Metric([3.0, 1.0, 2.0, 2.0]), EarlyStopping("score", patience=9, mode="min")
    model = network("sgd")
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, [metric, stop, Failure(RuntimeError("on purpose"), 3)], epochs=4)
    stop.restore()
    assert_equal(model.get_weights(), metric.weights[1])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(),
        StepDecayLR(0.1, [1], 0.5),
        GradientMonitor(X, Y),
    ],
)
def test_a_state_goes_round(callback):
    model = network("sgd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, [callback], epochs=2)
    state = callback.get_state()
    callback.set_state(state)
    np.testing.assert_equal(callback.get_state(), state)


def test_gradients_weights_and_updates_agree_with_arithmetic():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="only", kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    model.compile(keras.optimizers.SGD(0.05), loss="mse")
    monitor = GradientMonitor(X[:8], Y[:8])
    before = [value.astype("float64") for value in values(model.weights)]
    fit(model, [monitor], batch_size=24)
    after = [value.astype("float64") for value in values(model.weights)]

    residual = X[:8].astype("float64") @ before[0] + before[1] - Y[:8]
    gradients = [X[:8].T @ residual / 8 + 0.2 * before[0], residual.sum(axis=0) / 8]

    def norm(arrays):
        return math.sqrt(sum((array**2).sum() for array in arrays))

    history = monitor.history
    assert history["gradient_norm"] == pytest.approx(np.array([[norm(gradients)]]), rel=1e-5)
    assert history["weight_norm"] == pytest.approx(np.array([[norm(before)]]), rel=1e-6)
    update = norm([a - b for a, b in zip(after, before)]) / norm(before)
    assert history["update_ratio"] == pytest.approx(np.array([[update]]), rel=1e-4)
    assert monitor.table() == [{"layer": "only", **{name: history[name][0, 0] for name in list(history)[1:]}}]


def deep():
    keras.utils.set_random_seed(2)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense"), layers.BatchNormalization(name="norm")], name="inner"
    )
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name="dense"), inner, layers.Dropout(0.5), layers.Dense(2, name="last")]
    )
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    return model


def test_the_monitor_leaves_training_bit_for_bit_as_it_is():
    ends = []
    for callbacks in ([], [GradientMonitor(X, Y)]):
        model = deep()
        curve = fit(model, callbacks, epochs=2)["loss"]
        ends.append([*values(model.variables), *values(model.optimizer.variables), np.array(curve)])
    assert_equal(*ends)


def test_the_monitor_names_nested_layers_and_records_every_few_steps_over_two_fits():
    model, monitor = deep(), GradientMonitor(X, Y, np.ones(24), every=4)
    for _ in range(2):
        fit(model, [monitor])
    history = monitor.history
    assert monitor.layers == ["dense", "inner/dense", "inner/norm", "last"]
    assert history["step"].tolist() == [0, 4, 8]
    for name in ("gradient_norm", "weight_norm", "update_ratio"):
        assert history[name].shape == (3, 4)
        assert (history[name] > 0).all()


@pytest.mark.skipif(BACKEND == "torch", reason="torch refuses steps_per_execution > 1")
def test_the_monitor_sees_whole_executions():
    model, monitor = network("sgd", steps_per_execution=3), GradientMonitor(X, Y)
    fit(model, [monitor])
    assert monitor.history["step"].tolist() == [0, 3]


def cases(make, **arguments):
    return [
        pytest.param(make, name, value, id=f"{make.__name__}-{name}-{value!r}")
        for name, bad in arguments.items()
        for value in bad
    ]


NOT_A_NUMBER = ("0.1", None, True, [0.1], np.ones(2))
NOT_FINITE = (math.nan, math.inf, -math.inf)
NOT_A_FLAG = (1, "yes", None)
NOT_A_COUNT = (0, -1, 1.5, "2", None, True)


def step_decay(**arguments):
    return StepDecayLR(**{"initial_learning_rate": 0.1, "milestones": [1], "decay_rate": 0.5, **arguments})


def exponential(**arguments):
    return ExponentialDecayLR(**{"initial_learning_rate": 0.1, "decay_epochs": 1, "decay_rate": 0.5, **arguments})


def cyclical(**arguments):
    return CyclicalLR(**{"initial_learning_rate": 0.1, "maximal_learning_rate": 0.5, "step_size": 2, **arguments})


def one_cycle(**arguments):
    return OneCycleLR(**{"maximal_learning_rate": 0.1, "total_steps": 9, **arguments})


def monitor_of(**arguments):
    return GradientMonitor(X, Y, **arguments)


BAD = [
    *cases(
        step_decay,
        initial_learning_rate=(*NOT_A_NUMBER, *NOT_FINITE, 0, -1),
        decay_rate=(*NOT_FINITE, 0, -1, 1.5, "1"),
        milestones=([], [2, 1], [1, 1], [0], [-1], [1.5], ["1"], 0, -1, "3", None),
        steps_per_epoch=(0, -1, 1.5, "2", True),
    ),
    *cases(
        exponential,
        initial_learning_rate=(*NOT_A_NUMBER, *NOT_FINITE, 0, -1),
        decay_epochs=NOT_A_COUNT,
        decay_rate=(*NOT_FINITE, 0, -1, 1.5, "1"),
        staircase=NOT_A_FLAG,
        steps_per_epoch=(0, -1, 1.5, "2", True),
    ),
    *cases(
        cyclical,
        initial_learning_rate=(*NOT_A_NUMBER, *NOT_FINITE, -1),
        maximal_learning_rate=(*NOT_FINITE, 0.05, "1"),
        step_size=NOT_A_COUNT,
        mode=("linear", None, 1),
        gamma=(*NOT_FINITE, 0, 1.5, "1"),
    ),
    *cases(
        one_cycle,
        maximal_learning_rate=(*NOT_A_NUMBER, *NOT_FINITE, 0, -1),
        total_steps=NOT_A_COUNT,
        pct_start=(*NOT_FINITE, -0.1, 1.1, "0.3"),
        div_factor=(*NOT_FINITE, 0.5, "25"),
        final_div_factor=(*NOT_FINITE, 0, "1"),
        anneal=("cosine", None),
        three_phase=NOT_A_FLAG,
        cycle_momentum=NOT_A_FLAG,
        base_momentum=(*NOT_FINITE, 0, 1, -0.1, "0.8"),
        max_momentum=(*NOT_FINITE, 0.5, 1, "0.9"),
    ),
    *cases(
        EarlyStopping,
        monitor=(None, 1),
        min_delta=(*NOT_FINITE, -1, "0", None),
        patience=(-1, 1.5, "2", None, True),
        verbose=(-1, 2, "1", None),
        mode=("up", None, 1),
        baseline=(*NOT_FINITE, "1"),
        restore_best_weights=NOT_A_FLAG,
        start_from_epoch=(-1, 1.5, "2", None),
    ),
    *cases(monitor_of, every=NOT_A_COUNT),
]


@pytest.mark.parametrize(("make", "name", "value"), BAD)
def test_a_bad_argument_is_refused_with_its_name_and_value(make, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"`{name}[`\[](.|\n)*Received: .*{name}[=\[]"):
        make(**{name: value})
