"""nnopt.optimizers: momentum, beta_1 and weight decay as schedules, as PyTorch cycles them, wherever training goes."""

import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import ops
from torch_golden import FILE, STEPS, X, Y

from nnopt.optimizers import SGD, AdamW
from nnopt.schedules import Chain, ExponentialDecay, OneCycle, StepDecay

BACKEND = keras.backend.backend()
TRAININGS = json.loads(FILE.read_text())["trainings"]
CYCLE = OneCycle(0.3, STEPS)
MOMENTUM = CYCLE.momentum(low=0.4, high=0.9)


def linear(optimizer, **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")])
    model.compile(optimizer, loss="mse", **arguments)
    return model


def fit(model, first=0, last=STEPS):
    x, y = X[first:last].reshape(-1, 3), Y[first:last].reshape(-1, 2)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    return model.get_weights()[0]


class Weights(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights()[0].ravel())


def weights_after_each_step(optimizer):
    weights = Weights()
    x, y = X.reshape(-1, 3), Y.reshape(-1, 2)
    linear(optimizer).fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[weights])
    return weights.seen


class TorchMomentum(keras.optimizers.schedules.LearningRateSchedule):
    """What brings the rule of Keras to that of torch, which multiplies the velocity by the present rate."""

    def __call__(self, step):
        return MOMENTUM(step) * CYCLE(step) / CYCLE(ops.maximum(step - 1, 0))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("SGD, rate in the velocity", lambda: SGD(CYCLE, MOMENTUM)),
        ("SGD nesterov, rate in the velocity", lambda: SGD(CYCLE, MOMENTUM, nesterov=True)),
        ("SGD", lambda: SGD(CYCLE, TorchMomentum())),
        ("AdamW", lambda: AdamW(CYCLE, weight_decay=0.1, beta_1=MOMENTUM, epsilon=1e-12)),
    ],
)
def test_a_training_under_one_cycle_equals_that_of_torch_weight_for_weight(name, make):
    np.testing.assert_allclose(weights_after_each_step(make()), TRAININGS[name], rtol=2e-5, atol=2e-6)


def test_the_trainings_of_torch_are_what_torch_computes():
    pytest.importorskip("torch")
    from torch_golden import trainings

    for name, weights in trainings().items():
        np.testing.assert_allclose(weights, TRAININGS[name], rtol=1e-9, atol=1e-12)


SCHEDULED = {
    "SGD": lambda **more: SGD(CYCLE, MOMENTUM, weight_decay=StepDecay(0.1, [5], 0.5), **more),
    "SGD nesterov": lambda **more: SGD(0.1, MOMENTUM, nesterov=True, **more),
    "AdamW": lambda **more: AdamW(CYCLE, ExponentialDecay(0.1, 3, 0.5), MOMENTUM, **more),
}
EACH = pytest.mark.parametrize("make", SCHEDULED.values(), ids=SCHEDULED)


@pytest.mark.parametrize("arguments", [{}, {"run_eagerly": True}])
@EACH
def test_a_chain_of_one_number_equals_the_number_of_keras(make, arguments):
    own = type(make())
    kind = getattr(keras.optimizers, own.__name__)
    name = "momentum" if own is SGD else "beta_1"
    constant = own(CYCLE, weight_decay=Chain([0.05]), **{name: Chain([0.8])})
    theirs = kind(CYCLE, weight_decay=0.05, **{name: 0.8})
    np.testing.assert_allclose(fit(linear(constant, **arguments)), fit(linear(theirs)), rtol=1e-5, atol=1e-7)


@EACH
def test_weight_decay_and_momentum_take_effect(make):
    constant = make()
    constant = type(constant)(0.1, weight_decay=0.1)
    assert np.abs(fit(linear(make())) - fit(linear(constant))).max() > 1e-3


@EACH
def test_a_second_fit_goes_on_where_the_first_one_ended(make):
    model = linear(make())
    fit(model, 0, 5)
    np.testing.assert_allclose(fit(model, 5), fit(linear(make())), rtol=1e-6)


@EACH
def test_a_model_from_a_file_goes_on_as_if_nothing_had_been(make, tmp_path):
    expected, model = fit(linear(make())), linear(make())
    fit(model, 0, 5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    np.testing.assert_allclose(fit(loaded, 5), expected, rtol=1e-6)


@EACH
def test_attributes_hold_what_was_given_before_and_after_a_training_and_after_one_that_failed(make):
    optimizer = make()
    names = ("momentum", "weight_decay") if isinstance(optimizer, SGD) else ("beta_1", "weight_decay")
    given = [getattr(optimizer, name) for name in names]
    model = linear(optimizer)
    fit(model)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ops.ones(1)], [keras.Variable([1.0])])
    assert [getattr(optimizer, name) for name in names] == given


def test_under_gradient_accumulation_momentum_sees_the_batches_as_the_rate_does():
    # Updates come at the batches 1, 3, 5 (from 0), where the rate is that of this step.
    at = {1: (0.5, 0.25), 3: (0.25, 0.5), 5: (0.125, 0.75)}
    rate = Chain([(9.0, 1), (0.5, 2), (0.25, 2), 0.125])
    momentum = Chain([(0.99, 1), (0.25, 2), (0.5, 2), 0.75])
    model = linear(SGD(rate, momentum, gradient_accumulation_steps=2))
    result = fit(model, 0, 6)
    weights, velocity = np.zeros((3, 2)), np.zeros((3, 2))
    for batch, (rate_now, momentum_now) in at.items():
        x, y = (part[batch - 1 : batch + 1].reshape(8, -1) for part in (X, Y))
        velocity = momentum_now * velocity - rate_now * x.T @ (x @ weights - y) * 2 / y.size
        weights = weights + velocity
    np.testing.assert_allclose(result, weights, rtol=1e-5, atol=1e-6)


def test_a_momentum_that_passes_through_0_is_not_forgotten():
    momentum = Chain([(0.9, 3), (1e-35, 2), 0.9])
    zero = OneCycle(1.0, 7, 0.5, anneal="linear").momentum(low=0.0, high=0.9)
    result = [fit(linear(SGD(0.1, schedule))) for schedule in (momentum, zero)]
    for schedule, weights in zip((momentum, zero), result):
        expected, velocity = np.zeros((3, 2)), np.zeros((3, 2))
        for step in range(STEPS):
            gradient = X[step].T @ (X[step] @ expected - Y[step]) * 2 / Y[step].size
            velocity = float(schedule(step)) * velocity - 0.1 * gradient
            expected = expected + velocity
        np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_with_numbers_the_update_is_the_one_of_keras(kind):
    keras_kind = getattr(keras.optimizers, kind.__name__)
    own, theirs = kind(0.1), keras_kind(0.1)
    assert isinstance(own, type(theirs))
    np.testing.assert_array_equal(fit(linear(own)), fit(linear(theirs)))
    assert len(own.variables) == len(theirs.variables)


@EACH
def test_a_loss_scale_around_it_changes_nothing(make):
    scaled = keras.optimizers.LossScaleOptimizer(make(), initial_scale=4.0)
    np.testing.assert_allclose(fit(linear(scaled)), fit(linear(make())), rtol=1e-5, atol=1e-7)


MIRRORED = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from test_optimizers import SCHEDULED, fit, linear
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for make in SCHEDULED.values():
    with strategy.scope():
        model = linear(make())
    np.testing.assert_allclose(fit(model), fit(linear(make())), rtol=1e-5, atol=1e-6)
"""


def run_mirrored(script):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": here}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert output.returncode == 0, output.stderr


@pytest.mark.thorough
@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_two_replicas_train_as_one():
    run_mirrored(MIRRORED)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (SGD, "momentum", 1.1),
        (SGD, "momentum", "0.9"),
        (SGD, "weight_decay", -0.1),
        (AdamW, "beta_1", 1.0),
        (AdamW, "weight_decay", None),
    ],
)
def test_a_bad_argument_is_refused_by_name(kind, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"`{name}` must be .*Received: .*{name}={value!r}"):
        kind(0.1, **{name: value})
