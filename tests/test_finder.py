"""`find_learning_rate`: an exact range test that leaves no trace, and suggestions with known answers."""

import functools
import itertools
import random
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from nnopt import _keras
from nnopt.data.ordered import OrderedDataset, epoch_order
from nnopt.finder import LearningRateCurve, find_learning_rate

BACKEND = keras.backend.backend()
generator = np.random.default_rng(0)
X = generator.normal(size=(100, 5)).astype("float32")
Y = X[:, :3].argmax(axis=1).astype("int32")
TARGETS = (X @ [1.0, -2.0, 0.5, 0.0, 3.0] + 0.1 * generator.normal(size=100)).astype("float32")[:, None]


def full_model(optimizer, seed=1):
    """Everything with a state: weights, BatchNorm statistics, a seed generator, slots, two metrics."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model


def linear_model(optimizer, kind=keras.Model, l2=0.0):
    """Least squares from zero, whose descent is a line of NumPy."""
    inputs = keras.Input((5,))
    layer = layers.Dense(1, use_bias=False, kernel_initializer="zeros", kernel_regularizer=keras.regularizers.L2(l2))
    model = kind(inputs, layer(inputs))
    model.compile(optimizer, loss="mse")
    return model


def arrays(model):
    """Every array of the model and its optimizer, as bytes."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [(variable.path, str(variable.dtype), ops.convert_to_numpy(variable).tobytes()) for variable in variables]


def random_states():
    """What each generator of random numbers would give next."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)["state"]
    states = [python, numpy["key"].tobytes(), numpy["pos"]]
    if "torch" in sys.modules:
        states.append(sys.modules["torch"].get_rng_state().numpy().tobytes())
    return states


@functools.cache
def trained_model(name):
    """One for all tests, each of which must leave it as it was."""
    model = full_model(OPTIMIZERS[name]())
    for _ in range(5):  # in the middle of an accumulation
        model.train_on_batch(X[:25], Y[:25])
    return model


@pytest.fixture(scope="module")
def least_squares():
    model = linear_model(keras.optimizers.SGD())
    model.make_train_function()  # otherwise each test would compile it anew
    return model


def everything(model):
    return arrays(model), random_states(), model.train_function, model.stop_training


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "momentum and schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.01, 50), 0.9),
    "amsgrad with ema": lambda: keras.optimizers.AdamW(0.01, amsgrad=True, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_array_and_random_state_of_a_trained_model_is_bit_identical_afterwards(name):
    model = trained_model(name)
    keras.random.uniform(())  # the generator behind keras.random exists from here on
    before, schedule = everything(model), model.optimizer.get_config()
    curve = find_learning_rate(model, X, Y, batch_size=25, steps=12, maximal_learning_rate=0.1)
    assert len(curve.losses) == 12
    assert everything(model) == before
    assert model.optimizer.get_config() == schedule


@pytest.mark.parametrize("name", ["momentum and schedule", "loss scale"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("good", [0, 7])
def test_every_array_and_random_state_is_bit_identical_after_an_exception_in_the_data(name, error, good):
    def batches():
        for _ in range(good):
            yield X[:25] + np.random.normal(size=(25, 5)).astype("float32") * random.random(), Y[:25]
        raise error("from the data")

    model = trained_model(name)
    before, rate = everything(model), _keras.learning_rate(model.optimizer)
    with pytest.raises(error, match="from the data"):
        find_learning_rate(model, batches())
    assert everything(model) == before
    assert _keras.learning_rate(model.optimizer) is rate


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_inside_a_training_step_leaves_no_state_that_is_written_later(error):
    class Failing(keras.Model):
        calls = 0

        def train_step(self, *arguments):
            result = super().train_step(*arguments)
            self.calls += 1
            if self.calls > 3:
                self.stop_training = True
                raise error
            return result

    model = linear_model(keras.optimizers.Adam(0.1), Failing)
    model.run_eagerly = True
    model.train_on_batch(X, TARGETS)
    before = everything(model)
    with pytest.raises(error):
        find_learning_rate(model, X, TARGETS)
    if BACKEND == "jax":
        model.jax_state_sync()
    assert model.calls == 4
    assert everything(model) == before


def test_a_second_ctrl_c_while_things_are_put_back_does_not_stop_that(monkeypatch):
    model = linear_model(keras.optimizers.Adam(0.1))
    model.train_on_batch(X, TARGETS)
    before = everything(model)
    reset, calls = model.reset_metrics, []

    def interrupted():
        calls.append(1)
        if len(calls) == 11:  # ten steps, then putting back
            raise KeyboardInterrupt
        reset()

    monkeypatch.setattr(model, "reset_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(model, X, TARGETS, steps=10, maximal_learning_rate=1e-2)
    assert len(calls) == 12
    assert everything(model) == before


@pytest.mark.parametrize(("optimizer", "trained"), [("adam", True), ("momentum and schedule", False)])
def test_training_after_the_test_equals_training_without_it(optimizer, trained):
    results = []
    for tested in (False, True):
        model = full_model(OPTIMIZERS[optimizer]())
        if trained:
            model.fit(X, Y, batch_size=25, epochs=1, verbose=0)
        else:  # `fit` on JAX and torch would draw random numbers to do so
            model.test_on_batch(X, Y)
            model.optimizer.build(model.trainable_variables)
        if tested:
            find_learning_rate(model, X, Y, batch_size=25, steps=10)
        # JAX keeps compiled steps by their shapes: those of the sweep come first.
        model.train_on_batch(X[:25], Y[:25])
        history = model.fit(X, Y, batch_size=25, epochs=2, verbose=0).history
        variables = [*model.variables, *model.optimizer.variables]
        results.append((history, [ops.convert_to_numpy(variable).tobytes() for variable in variables]))
    assert results[0] == results[1]


def test_an_optimizer_that_was_not_built_has_its_initial_values_afterwards():
    model = full_model(keras.optimizers.Adagrad(0.01, initial_accumulator_value=0.25))
    weights = model.get_weights()
    find_learning_rate(model, X, Y, steps=10)
    assert all(np.array_equal(new, old) for new, old in zip(model.get_weights(), weights))
    assert int(model.optimizer.iterations.numpy()) == 0
    slots = [variable for variable in model.optimizer.variables if variable.ndim > 0]
    assert slots
    assert all(np.all(ops.convert_to_numpy(slot) == 0.25) for slot in slots)
    assert all(not np.any(ops.convert_to_numpy(variable)) for variable in model.metrics_variables)


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalize, self.dense = layers.BatchNormalization(), layers.Dense(3)

    def call(self, x, training=False):
        return self.dense(self.normalize(x, training=training))


def test_a_model_that_was_not_built_has_its_initial_weights_afterwards():
    values = []
    for tested in (False, True):
        keras.utils.set_random_seed(3)
        model = Subclass()
        model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        find_learning_rate(model, X, Y, steps=10) if tested else model(X)
        values.append([ops.convert_to_numpy(variable).tobytes() for variable in model.variables])
    assert values[0] == values[1]


def test_the_generator_behind_keras_random_is_not_left_behind():
    class Noisy(keras.Model):
        def train_step(self, *arguments):
            keras.random.uniform(())
            return super().train_step(*arguments)

    draws = []
    for tested in (False, True):
        keras.backend.clear_session()
        model = linear_model(keras.optimizers.SGD(0.1), Noisy)
        model.run_eagerly = True
        keras.utils.set_random_seed(5)
        if tested:
            find_learning_rate(model, X, TARGETS, steps=10)
        draws.append([float(ops.convert_to_numpy(keras.random.uniform(()))) for _ in range(3)])
    assert draws[0] == draws[1]


def test_tensorflows_own_random_numbers_go_on_as_if_nothing_had_been(least_squares):
    tf = pytest.importorskip("tensorflow")
    draws = []
    for tested in (False, True):
        tf.random.set_seed(7)
        tf.random.set_global_generator(tf.random.Generator.from_seed(7))
        if tested:
            data = (
                (X[:20] + tf.random.get_global_generator().normal((20, 5)).numpy(), TARGETS[:20]) for _ in range(20)
            )
            find_learning_rate(least_squares, data, steps=10)
        draws.append([float(tf.random.uniform(())), float(tf.random.get_global_generator().uniform(()))])
    assert draws[0] == draws[1]


def expected_losses(rates, every=1, batch_size=20, seed=0, l2=0.0):
    """Mean squared error of each batch before its update, by plain gradient descent in double precision."""
    weights, losses, batches = np.zeros((5, 1)), [], iter(orders(batch_size, seed))
    for rate in rates:
        parts = [(X[rows].astype("float64"), TARGETS[rows]) for rows in itertools.islice(batches, every)]
        losses.append(np.mean([np.mean((x @ weights - y) ** 2) for x, y in parts]) + l2 * np.sum(weights**2))
        gradient = np.mean([2 * x.T @ (x @ weights - y) / len(x) for x, y in parts], axis=0)
        weights = weights - rate * (gradient + 2 * l2 * weights)
    return np.array(losses)


def orders(batch_size, seed):
    for epoch in itertools.count():
        order = epoch_order(100, seed, epoch)
        yield from order[: 100 // batch_size * batch_size].reshape(-1, batch_size)


@pytest.mark.parametrize(
    ("rate", "every"),
    [
        ("number", 1),
        ("number", 3),
        ("schedule", 1),
        ("schedule", 3),
        ("callable", 1),
        ("loss scale", 1),
        ("loss scale and schedule", 3),
    ],
)
def test_losses_are_those_of_the_batches_before_their_updates_at_the_given_rates(rate, every):
    kinds = {"schedule": keras.optimizers.schedules.ExponentialDecay(7.0, 3, 0.9), "callable": lambda: 5.0}
    kinds["loss scale and schedule"] = kinds["schedule"]
    optimizer = keras.optimizers.SGD(kinds.get(rate, 3.0), gradient_accumulation_steps=every if every > 1 else None)
    if rate.startswith("loss scale"):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model = linear_model(optimizer, l2=0.01)
    bounds = {"minimal_learning_rate": 1e-3, "maximal_learning_rate": 0.3}
    curve = find_learning_rate(model, X, TARGETS, batch_size=20, steps=30, seed=4, **bounds)
    rates = 1e-3 * 300 ** (np.arange(30) / 29)
    np.testing.assert_allclose(curve.learning_rates, rates, rtol=1e-6)
    np.testing.assert_allclose(curve.losses, expected_losses(rates, every, seed=4, l2=0.01), rtol=2e-5)
    assert not curve.diverged


def test_a_trained_model_with_a_schedule_sweeps_from_the_first_rate_on():
    model = linear_model(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1e-9, 3, 0.9)))
    for _ in range(10):  # compiles a step for the very shapes of the sweep, with the schedule in it
        model.train_on_batch(X[:20], TARGETS[:20])
    train_function, schedule = model.train_function, _keras.learning_rate(model.optimizer)
    curve = find_learning_rate(model, X, TARGETS, batch_size=20, steps=20, maximal_learning_rate=0.3)
    np.testing.assert_allclose(curve.losses, expected_losses(1e-6 * 3e5 ** (np.arange(20) / 19)), rtol=1e-4)
    assert model.train_function is train_function
    assert _keras.learning_rate(model.optimizer) is schedule
    assert int(model.optimizer.iterations.numpy()) == 10
    assert "train_step" not in vars(model)
    model.train_on_batch(X[:20], TARGETS[:20])
    assert np.abs(model.get_weights()[0]).max() < 1e-6


def test_a_pair_of_inputs_and_targets_is_taken_apart_for_a_model_with_one_input(least_squares):
    weights = np.arange(100, dtype="float32")
    for data in ((X, TARGETS), (X, TARGETS, weights)):
        together = find_learning_rate(least_squares, data, steps=10)
        apart = find_learning_rate(least_squares, X, TARGETS, sample_weight=[None, weights][len(data) - 2], steps=10)
        np.testing.assert_array_equal(together.losses, apart.losses)


def test_a_pair_of_inputs_stays_one_for_a_model_with_two():
    first, second = keras.Input((5,)), keras.Input((1,))
    model = keras.Model([first, second], layers.Dense(1)(layers.Concatenate()([first, second])))
    model.compile(keras.optimizers.SGD(), loss="mse")
    assert len(find_learning_rate(model, (X, TARGETS), TARGETS, steps=10).losses) == 10
    with pytest.raises(ValueError, match="`y` must be the targets"):
        find_learning_rate(model, (X, TARGETS))


def test_sample_weights_count(least_squares):
    weights = np.arange(100, dtype="float32") / 50
    curve = find_learning_rate(least_squares, X, TARGETS, sample_weight=weights, batch_size=20, steps=10)
    rows = epoch_order(100, 0, 0)[:20]
    # The rate is too small for the weights to leave zero.
    assert curve.losses[0] == pytest.approx(np.mean(weights[rows, None] * TARGETS[rows] ** 2), rel=1e-5)


def test_a_training_step_of_ones_own_is_used():
    class Doubled(keras.Model):
        def train_step(self, *arguments):
            result = super().train_step(*arguments)
            logs = result[0] if BACKEND == "jax" else result
            logs["loss"] = 2 * logs["loss"]
            return result

    curve = find_learning_rate(linear_model(keras.optimizers.SGD(), Doubled), X, TARGETS, batch_size=20, steps=10)
    np.testing.assert_allclose(curve.losses[:6], 2 * expected_losses(curve.learning_rates)[:6], rtol=1e-5)


def test_a_training_step_put_into_the_model_itself_stays_there():
    model = linear_model(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1.0, 3, 0.9)))
    original, calls = model.train_step, []

    def counted(*arguments):
        calls.append(1)
        return original(*arguments)

    model.train_step = counted
    find_learning_rate(model, X, TARGETS, steps=10)
    assert calls
    assert model.train_step is counted


def test_a_training_step_without_a_loss_in_its_logs_is_refused():
    class Silent(keras.Model):
        def train_step(self, *arguments):
            result = super().train_step(*arguments)
            (result[0] if BACKEND == "jax" else result).pop("loss")
            return result

    with pytest.raises(ValueError, match='must return logs with the key "loss"'):
        find_learning_rate(linear_model(keras.optimizers.SGD(), Silent), X, TARGETS)


class Batches(keras.utils.PyDataset):
    """Notes the calls that a PyDataset gets between epochs, which may change its state."""

    calls = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[20 * index : 20 * index + 20], TARGETS[20 * index : 20 * index + 20]

    def on_epoch_begin(self):
        self.calls += 1

    def on_epoch_end(self):
        self.calls += 1


class Endless(Batches):
    __len__ = None
    num_batches = None

    def __getitem__(self, index):
        return super().__getitem__(index % 5)


def tensorflow_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X, TARGETS)).batch(20)


def torch_data():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(TARGETS))
    return torch.utils.data.DataLoader(data, batch_size=20)


def python_data():
    return [Batches()[index] for index in range(5)]


SOURCES = [Batches, Endless, python_data, lambda: itertools.cycle(python_data()), tensorflow_data, torch_data]
SOURCES += [lambda: OrderedDataset(X, TARGETS, batch_size=20, shuffle=False), lambda: tuple(python_data())]


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_data_gives_its_batches_in_their_order(least_squares, source):
    data = source()
    curve = find_learning_rate(least_squares, data, steps=12, maximal_learning_rate=1e-5)
    y = TARGETS.reshape(5, 20)
    # The weights stay near zero: what is seen is which targets came.
    np.testing.assert_allclose(curve.losses, [np.mean(y[step % 5] ** 2) for step in range(12)], rtol=1e-3)
    assert getattr(data, "calls", 0) == 0


def test_an_incomplete_last_batch_is_left_out_unless_it_is_all_there_is(least_squares):
    few = find_learning_rate(least_squares, X, TARGETS, batch_size=1000, steps=10, maximal_learning_rate=1e-5)
    np.testing.assert_allclose(few.losses, np.full(10, np.mean(TARGETS**2)), rtol=1e-3)
    rest = find_learning_rate(least_squares, X, TARGETS, batch_size=60, steps=10, maximal_learning_rate=1e-5)
    rows = [epoch_order(100, 0, epoch)[:60] for epoch in range(10)]
    np.testing.assert_allclose(rest.losses, [np.mean(TARGETS[row] ** 2) for row in rows], rtol=1e-3)


def test_the_generator_of_a_torch_loader_does_not_move_on(least_squares):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(TARGETS))
    loader = torch.utils.data.DataLoader(data, batch_size=20, shuffle=True, generator=generator)
    before, shared = generator.get_state(), torch.get_rng_state()
    find_learning_rate(least_squares, loader, steps=10)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), shared)


def test_the_same_seed_gives_the_same_curve_and_another_one_another(least_squares):
    first, second, other = [
        find_learning_rate(least_squares, X, TARGETS, steps=10, seed=seed).losses for seed in (1, 1, 2)
    ]
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_sweep_ends_at_the_first_loss_above_the_divergence_factor_times_the_best(least_squares):
    curve = find_learning_rate(
        least_squares, X, TARGETS, maximal_learning_rate=1e4, divergence_factor=3.0, smoothing=0.5
    )
    past, means = 0.0, []
    for step, loss in enumerate(curve.losses, start=1):
        past = 0.5 * past + 0.5 * loss
        means.append(past / (1 - 0.5**step))
    np.testing.assert_allclose(curve.smoothed_losses, means, rtol=1e-12)
    above = [mean > 3 * min(means[: index or 1]) for index, mean in enumerate(means)]
    assert above == [False] * (len(means) - 1) + [True]
    assert curve.diverged
    assert len(means) < 100
    assert curve.learning_rates[-1] == pytest.approx(1e-6 * 1e10 ** ((len(means) - 1) / 99), rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_sweep_ends_at_a_loss_that_is_not_finite(least_squares, value):
    data = [(X[:20], TARGETS[:20])] * 6 + [(X[:20], np.full((20, 1), value, "float32"))]
    curve = find_learning_rate(least_squares, data, maximal_learning_rate=1e-3)
    assert len(curve.losses) == 7
    assert curve.diverged
    assert np.isfinite(curve.losses).tolist() == [True] * 6 + [False]


def test_a_loss_that_is_negative_may_fall_without_end():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(1, kernel_initializer="zeros")(inputs))
    model.compile(keras.optimizers.SGD(), loss=lambda y, prediction: prediction - 1)
    curve = find_learning_rate(model, X, TARGETS, steps=20)
    assert not curve.diverged
    assert curve.losses[0] == -1
    assert curve.losses[-1] < -5


def longest_fall(losses):
    """By trying every subsequence: the length of the longest strictly falling one, and where the first of them ends."""
    for length in range(len(losses), 0, -1):
        falls = [
            chosen[-1]
            for chosen in itertools.combinations(range(len(losses)), length)
            if all(losses[a] > losses[b] for a, b in itertools.pairwise(chosen))
        ]
        if falls:
            return length, min(falls)


@given(st.lists(st.integers(0, 12), min_size=11, max_size=11))
@settings(max_examples=40, deadline=None)
def test_valley_is_the_middle_of_the_longest_falling_subsequence(losses):
    losses = np.array(losses, dtype="float64")
    losses[1], losses[-1] = 20, 0  # something falls
    rates = np.geomspace(1e-4, 1, 11)
    length, end = longest_fall(losses[1:])  # without the first tenth
    index = max(end - length + length // 3 + length // 6, 0)
    assert LearningRateCurve(rates, losses).suggest("valley") == rates[1:][index]


def test_valley_of_a_single_fall_lies_in_its_middle():
    rates = np.geomspace(1e-5, 1, 100)
    losses = np.concatenate([np.full(30, 2.0), np.linspace(1.9, 0.1, 40), np.linspace(0.2, 9, 30)])
    # 41 losses fall, from the last 2.0 at index 29 to 0.1 at 69.
    assert LearningRateCurve(rates, losses).suggest() == rates[69 - 41 + 13 + 6]


@given(st.floats(-5, -0.5))
@settings(max_examples=20, deadline=None)
def test_steepest_is_where_a_logistic_curve_is_known_to_fall_fastest(center):
    rates = np.geomspace(1e-6, 1, 200)
    losses = 2 / (1 + np.exp(5 * (np.log10(rates) - center)))
    step = 6 / 199
    assert np.log10(LearningRateCurve(rates, losses).suggest("steepest")) == pytest.approx(center, abs=step)


def test_steepest_leaves_out_the_fall_after_a_rise():
    losses = [3.0, 2.9, 2.5, 2.4, 9.0, 3.0]
    assert LearningRateCurve(np.geomspace(1e-5, 1, 6), losses).suggest("steepest") == pytest.approx(1e-4)


@pytest.mark.parametrize("bottom", [-3.0, -1.0])
def test_minimum_is_a_tenth_of_the_rate_at_the_bottom_of_a_parabola(bottom):
    rates = np.geomspace(1e-6, 1, 121)
    curve = LearningRateCurve(rates, 1 + (np.log10(rates) - bottom) ** 2)
    assert curve.suggest("minimum") == pytest.approx(10**bottom / 10)


@pytest.mark.parametrize("rule", ["valley", "steepest", "minimum"])
def test_suggestions_do_not_see_the_first_tenth_nor_what_follows_divergence(rule):
    rates = np.geomspace(1e-6, 1, 40)
    losses = np.linspace(3, 1, 40)
    losses[20:] = np.linspace(2, 8, 20)
    plain = LearningRateCurve(rates, losses).suggest(rule)
    losses[:4], losses[35:] = [0, 9, 0, -9], [np.nan, -50, 0, -99, -100]
    assert LearningRateCurve(rates, losses).suggest(rule) == plain


@pytest.mark.parametrize("rule", ["valley", "steepest", "minimum"])
@pytest.mark.parametrize("losses", [[1.0] * 12, [np.nan] * 12, [1.0] * 3 + [np.inf] * 9])
def test_a_loss_that_never_fell_gives_an_error_instead_of_a_rate(rule, losses):
    with pytest.raises(ValueError, match="never fell below its first value"):
        LearningRateCurve(np.geomspace(1e-5, 1, 12), losses, smoothing=0.5).suggest(rule)


@given(st.floats(0, 0.99))
@settings(max_examples=20, deadline=None)
def test_smoothed_losses_are_the_weighted_means_of_their_formula(smoothing):
    losses = np.random.default_rng(2).normal(size=50)
    weights = [smoothing ** np.arange(i, -1, -1) for i in range(50)]
    expected = [np.average(losses[: i + 1], weights=weights[i]) for i in range(50)]
    curve = LearningRateCurve(np.geomspace(1e-5, 1, 50), losses, smoothing)
    np.testing.assert_allclose(curve.smoothed_losses, expected, rtol=1e-10, atol=1e-12)


def test_the_picture_has_a_logarithmic_axis_and_names_the_suggested_rate():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    curve = LearningRateCurve([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [4.0, 3.5, 1.0, 99.0, np.nan])
    figure, ax = plt.subplots()
    assert curve.plot(ax, suggest="steepest") is ax
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "loss of a batch; bold: smoothed")
    assert [text.get_text() for text in ax.texts] == ["steepest: 0.001"]
    assert ax.lines[-1].get_xydata().ravel() == pytest.approx([1e-3, 3.5])
    assert ax.get_ylim()[1] < 10  # the divergence does not flatten the rest
    assert ax.get_legend() is None
    figure.canvas.draw()
    assert not curve.plot(suggest=None).texts
    rising = LearningRateCurve([1e-2, 1e-1], [1.0, 2.0]).plot()
    assert [text.get_text() for text in rising.texts] == ["no suggestion: the loss never fell"]
    plt.close("all")


def test_a_curve_names_its_range():
    assert repr(LearningRateCurve([1e-4, 1e-3], [1, 2])) == "LearningRateCurve(2 rates from 0.0001 to 0.001)"
    assert repr(LearningRateCurve([0.5], [1], diverged=True)) == "LearningRateCurve(1 rates from 0.5 to 0.5, diverged)"


NUMBERS = {
    "batch_size": 0,
    "minimal_learning_rate": 1e-50,
    "maximal_learning_rate": 1e39,
    "steps": 9,
    "smoothing": 1,
    "divergence_factor": 1,
    "seed": -1,
    "progress": 1,
}


@pytest.mark.parametrize(("name", "value"), NUMBERS.items())
def test_numbers_out_of_range_are_refused_by_name(least_squares, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"`{name}` must be .*Received: {name}="):
        find_learning_rate(least_squares, X, TARGETS, **{name: value})


BAD_DATA = [
    (dict(x=3), "`x` must be an array"),
    (dict(x="data"), "`x` must be an array"),
    (dict(x=iter([])), "`x` must give at least one batch"),
    (dict(x=iter([(X, TARGETS)] * 5)), "iterator that runs out during the sweep"),
    (dict(x=[(X, TARGETS)], y=TARGETS), "`y` and `sample_weight` must be None"),
    (dict(x=Batches(), y=TARGETS), "`y` and `sample_weight` must be None"),
    (dict(x=X, y=TARGETS[:50]), "one and the same length"),
    (
        dict(x=X),
        r"`y` must be the targets, since `model` has a loss. Received: x=<ndarray of shape \(100, 5\), float32>",
    ),
    (dict(x=[X, TARGETS]), "`y` must be the targets"),
    (dict(x=X, sample_weight=TARGETS), "`sample_weight` needs `y`"),
    (dict(x=(X, TARGETS[:50])), "one and the same length"),
]


@pytest.mark.parametrize(("data", "message"), BAD_DATA)
def test_data_that_cannot_be_used_are_refused_and_nothing_changes(data, message):
    model = linear_model(keras.optimizers.SGD(0.5))
    before = everything(model)
    with pytest.raises((TypeError, ValueError), match=message):
        find_learning_rate(model, **data)
    assert everything(model)[1:] == before[1:]
    assert {name: value for name, *value in arrays(model)}.items() >= {
        name: value for name, *value in before[0]
    }.items()


def with_second_optimizer():
    model = linear_model(keras.optimizers.SGD())
    model.generator_optimizer = keras.optimizers.SGD()
    return model


def frozen():
    model = linear_model(keras.optimizers.SGD())
    model.trainable = False
    return model


BAD_MODELS = [
    (lambda: None, TypeError, "`model` must be a keras.Model"),
    (lambda: layers.Dense(1), TypeError, "`model` must be a keras.Model"),
    (lambda: keras.Sequential([layers.Dense(1)]), ValueError, "`model` must be compiled"),
    (with_second_optimizer, ValueError, "one optimizer.*generator_optimizer"),
    (frozen, ValueError, "variables to train"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_MODELS)
def test_models_that_cannot_be_used_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        find_learning_rate(make(), X, TARGETS)


BAD_CURVES = [
    (([1.0], [1.0, 2.0]), "one shape"),
    ((range(1000), range(1000)), r"finite, > 0(.|\n)*\[ *0. .{,60}\.\.\.(.|\n){,60}$"),
    (([1.0], [1.0], 1.0), "`smoothing`"),
    (([1.0], [1.0], 0.5, 1), "`diverged`"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CURVES)
def test_curves_that_are_none_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LearningRateCurve(*arguments)


def test_unknown_rules_are_refused_by_name():
    curve = LearningRateCurve([1e-2, 1e-1], [2.0, 1.0])
    with pytest.raises(ValueError, match="`rule` must be one of 'valley', 'steepest', 'minimum'"):
        curve.suggest("deepest")
    with pytest.raises(ValueError, match="`suggest` must be one of"):
        curve.plot(suggest="deepest")
