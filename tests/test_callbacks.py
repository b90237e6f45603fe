"""The callbacks: curves set from outside, early stopping, gradients by layer."""

import inspect
import math
import os
import pickle
import signal
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    (lambda: OneCycleLR(0.1, total_steps=15), schedules.OneCycle(0.1, total_steps=15)),
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
    monkeypatch.setattr("nnopt.callbacks.learning_rate.BLOCK", 4)
    recorder = Rates()
    fit(network(keras.optimizers.SGD(0.5)), [CyclicalLR(0.01, 0.1, step_size=3), recorder], epochs=2)
    schedule = schedules.CyclicalLearningRate(0.01, 0.1, step_size=3)
    np.testing.assert_allclose(recorder.seen, [float(schedule(step)) for step in range(12)], rtol=1e-6)


def test_steps_are_batches_under_gradient_accumulation_as_for_a_schedule_inside():
    recorder = Rates()
    fit(network(keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)), [CyclicalLR(0.01, 0.1, 3), recorder], 2)
    schedule = schedules.CyclicalLearningRate(0.01, 0.1, step_size=3)
    np.testing.assert_allclose(recorder.seen, ops.convert_to_numpy(schedule(np.arange(12))), rtol=1e-6)


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
    lambda: OneCycleLR(0.1, 10),
]


@pytest.mark.parametrize("callback", ANY_RATE)
def test_an_optimizer_compiled_with_a_schedule_is_refused_with_advice(callback):
    model = network(keras.optimizers.SGD(schedules.StepDecay(0.1, [3], 0.5)))
    with pytest.raises(ValueError, match=r"compiled with a number .*Received: optimizer="):
        fit(model, [callback()])


def test_epochs_are_those_of_fit_so_that_a_second_one_begins_anew_whatever_its_batches_unless_told_where_it_begins():
    model, callback = network(keras.optimizers.SGD(0.5)), StepDecayLR(0.8, [2, 4], 0.5)
    first = fit(model, [callback], epochs=3)
    again = fit(model, [callback], epochs=3, batch_size=12)
    on = fit(model, [callback], initial_epoch=3, epochs=6)
    assert first["learning_rate"] == again["learning_rate"] == pytest.approx([0.8, 0.8, 0.4])
    assert on["learning_rate"] == pytest.approx([0.4, 0.2, 0.2])


def test_epochs_go_on_after_a_restart(tmp_path):
    class Failure(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("on purpose")

    def callbacks():
        return [StepDecayLR(0.8, 1, 0.5), keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    with pytest.raises(RuntimeError, match="on purpose"):
        fit(network(keras.optimizers.SGD(0.5)), [*callbacks(), Failure()], epochs=4)
    again = fit(network(keras.optimizers.SGD(0.5)), callbacks(), epochs=4)
    assert again["learning_rate"] == pytest.approx([0.2, 0.1])


def test_the_exponential_decay_in_stairs_falls_every_few_epochs():
    history = fit(network(keras.optimizers.SGD(0.5)), [ExponentialDecayLR(0.8, 2, 0.25, staircase=True)], epochs=5)
    assert history["learning_rate"] == pytest.approx([0.8, 0.8, 0.2, 0.2, 0.05])


@pytest.mark.parametrize("callback", ANY_RATE)
def test_a_rate_callback_can_be_pickled(callback):
    used = callback()
    fit(network(keras.optimizers.SGD(0.5)), [used])
    used.set_model(None)
    expected, model = fit(network(keras.optimizers.SGD(0.5)), [callback()], 2), network(keras.optimizers.SGD(0.5))
    assert fit(model, [pickle.loads(pickle.dumps(used))], 2)["learning_rate"] == expected["learning_rate"]


class Failure(keras.callbacks.Callback):
    def __init__(self, error, epoch):
        super().__init__()
        self.error, self.epoch = error, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


class Metric(keras.callbacks.Callback):
    """Dictates a metric, and keeps the weights of each epoch."""

    def __init__(self, curve):
        super().__init__()
        self.curve, self.weights = curve, []

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.curve[epoch]
        self.weights.append(self.model.get_weights())


class Stub:
    """What EarlyStopping uses of a model: its weights are the number of the epoch."""

    stop_training = False

    def get_weights(self):
        return [self.epoch]

    def set_weights(self, weights):
        self.weights = weights


def course(callback, curve):
    model = Stub()
    callback.set_model(model)
    callback.on_train_begin()
    for model.epoch, value in enumerate(curve):
        callback.on_epoch_end(model.epoch, {"score": value})
        if model.stop_training:
            break
    callback.on_train_end()
    names = ("best", "best_epoch", "best_weights", "wait", "stopped_epoch")
    return model.epoch, getattr(model, "weights", None), [getattr(callback, name) for name in names]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(-8, 8).map(float) | st.floats(-8, 8), min_size=1, max_size=20),
    st.fixed_dictionaries(
        {
            "min_delta": st.sampled_from([0, 0.5]),
            "patience": st.integers(0, 4),
            "mode": st.sampled_from(["min", "max"]),
            "baseline": st.none() | st.floats(-8, 8),
            "restore_best_weights": st.booleans(),
            "start_from_epoch": st.integers(0, 4),
        }
    ),
)
def test_without_nan_it_is_the_early_stopping_of_keras(curve, arguments):
    expected = course(keras.callbacks.EarlyStopping("score", **arguments), curve)
    assert course(EarlyStopping("score", **arguments), curve) == expected


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


def test_the_monitor_builds_a_model_that_is_not_built_and_leaves_its_training_as_it_is():
    ends = []
    for callbacks in ([], [GradientMonitor(X, Y)]):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(4, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
        model = keras.Sequential(layers)
        model.compile("sgd", loss="mse")
        fit(model, callbacks)
        ends.append(values(model.weights))
    assert callbacks[0].history["gradient_norm"].shape == (6, 2)
    assert (callbacks[0].history["gradient_norm"] > 0).all()
    assert_equal(*ends)


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e4])
def test_gradients_under_mixed_float16_are_those_of_float32(size):
    norms = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(4, "tanh", dtype=policy), keras.layers.Dense(2, dtype=policy)]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile(keras.optimizers.SGD(0.0), loss=lambda y, prediction: size * ops.mean(ops.square(y - prediction)))
        monitor = GradientMonitor(X, Y)
        fit(model, [monitor], batch_size=24)
        norms.append(monitor.history["gradient_norm"])
    np.testing.assert_allclose(norms[1], norms[0], rtol=2e-2)


MIRRORED = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from test_callbacks import ANY_RATE, X, Y, EarlyStopping, GradientMonitor, fit, network
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def run(make):
    model, monitor = network(keras.optimizers.SGD(0.5)), GradientMonitor(X, Y, every=2)
    history = fit(model, [make(), monitor, EarlyStopping("loss")], epochs=2)
    return [np.array(history["learning_rate"]), *monitor.history.values(), *model.get_weights()]

for make in ANY_RATE:
    with strategy.scope():
        two = run(make)
    for a, b in zip(two, run(make)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_all_callbacks_do_on_two_replicas_what_they_do_on_one():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", MIRRORED]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert output.returncode == 0, output.stderr


BAD = {
    StepDecayLR: dict(initial_learning_rate=0, milestones=[2, 1], decay_rate=1.5),
    ExponentialDecayLR: dict(initial_learning_rate=-1, decay_epochs=1.5, decay_rate="1", staircase=1),
    CyclicalLR: dict(initial_learning_rate=-1, maximal_learning_rate=0.05, step_size=0, mode="linear", gamma=0),
    OneCycleLR: dict(
        maximal_learning_rate=math.nan, total_steps=0, pct_start=1.1, div_factor=0.5, final_div_factor=0,
        anneal="cosine", three_phase=1,
    ),
    EarlyStopping: dict(
        monitor=1, min_delta=-1, patience=-1, verbose=-1, mode="up", baseline=math.nan, restore_best_weights=1,
        start_from_epoch=-1,
    ),
    GradientMonitor: dict(every=0),
}  # fmt: skip
GOOD = {
    StepDecayLR: (0.1, [1], 0.5),
    ExponentialDecayLR: (0.1, 1, 0.5),
    CyclicalLR: (0.1, 0.5, 2),
    OneCycleLR: (0.1, 9),
    EarlyStopping: (),
    GradientMonitor: (X, Y),
}
CASES = [(kind, name, value) for kind, bad in BAD.items() for name, value in bad.items()]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_bad_argument_is_refused_with_its_name_and_value(kind, name, value):
    arguments = inspect.signature(kind).bind_partial(*GOOD[kind]).arguments
    with pytest.raises((TypeError, ValueError), match=rf"`{name}[`\[](.|\n)*Received: .*{name}[=\[]"):
        kind(**{**arguments, name: value})
