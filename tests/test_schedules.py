"""What nnopt.schedules promises: PyTorch's curves, exact at any step, wherever the step comes from."""

import json
import math
import os
import subprocess
import sys
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from torch_golden import CYCLES, FILE, ONE_CYCLES, curves

from nnopt._gradients import compiled
from nnopt.schedules import (
    Chain,
    CyclicalLearningRate,
    ExponentialDecay,
    OneCycle,
    OneCycleMomentum,
    StepDecay,
    Warmup,
)

RELATIVE = 1e-6
BIG_STEPS = [2**24 + 1, 2**24 + 12345, 2**30, 2**30 + 7, 2**31 - 2]

EXAMPLES = {
    "StepDecay": StepDecay(0.1, [3, 7, 11], 0.3),
    "StepDecay every 4": StepDecay(0.1, 4, 0.3),
    "ExponentialDecay": ExponentialDecay(0.1, 5, 0.5),
    "ExponentialDecay staircase": ExponentialDecay(0.1, 5, 0.5, staircase=True),
    "triangular": CyclicalLearningRate(0.01, 0.1, 3),
    "triangular2": CyclicalLearningRate(0.01, 0.1, 3, "triangular2"),
    "exp_range": CyclicalLearningRate(0.01, 0.1, 3, "exp_range", 0.9),
    "OneCycle": OneCycle(0.1, 14),
    "OneCycle linear": OneCycle(0.1, 14, anneal="linear"),
    "OneCycle three phases": OneCycle(0.1, 14, three_phase=True),
    "OneCycle momentum": OneCycle(0.1, 14).momentum(0.5, 0.9),
    "Warmup": Warmup(keras.optimizers.schedules.CosineDecay(0.1, 9), 4),
    "Warmup of a constant": Warmup(0.1, 4, 0.02),
    "Chain": Chain([(0.05, 2), (Warmup(OneCycle(0.1, 5), 2), 7), StepDecay(0.01, 2, 0.5)]),
}
ALL = pytest.mark.parametrize("schedule", EXAMPLES.values(), ids=EXAMPLES.keys())


def rates(schedule, steps):
    return np.asarray(ops.convert_to_numpy(schedule(np.asarray(steps))), dtype="float64")


TORCH = json.loads(FILE.read_text())["curves"]
AS_IN_TORCH = {
    "StepDecay list": StepDecay(1.0, [3, 4, 10], 0.3),
    "StepDecay 1": StepDecay(1.0, 1, 0.3),
    "StepDecay 4": StepDecay(1.0, 4, 0.3),
    "ExponentialDecay": ExponentialDecay(1.0, 1, 0.93),
    **{
        name: CyclicalLearningRate(0.001, 0.3, cycle["step_size_up"], cycle["mode"], gamma=0.99)
        for name, cycle in CYCLES.items()
    },
    **{
        name: OneCycle(0.5, **{"anneal" if key == "anneal_strategy" else key: value for key, value in cycle.items()})
        for name, cycle in ONE_CYCLES.items()
    },
}


@pytest.mark.parametrize("name", AS_IN_TORCH)
def test_a_schedule_equals_that_of_torch_at_every_step(name):
    schedule, curve = AS_IN_TORCH[name], TORCH[name]
    np.testing.assert_allclose(rates(schedule, curve["steps"]), curve["rate"], rtol=RELATIVE)
    if isinstance(schedule, OneCycle):
        np.testing.assert_allclose(rates(schedule.momentum(), curve["steps"]), curve["momentum"], rtol=RELATIVE)


def test_the_curves_of_torch_are_what_torch_computes():
    pytest.importorskip("torch")
    for name, curve in curves().items():
        for key, values in curve.items():
            np.testing.assert_allclose(values, TORCH[name][key], rtol=1e-12)


def test_exponential_decay_equals_keras_own():
    steps = np.arange(40)
    for staircase in (False, True):
        own = keras.optimizers.schedules.ExponentialDecay(0.1, 7, 0.5, staircase)
        expected = [float(own(step)) for step in steps]
        np.testing.assert_allclose(rates(ExponentialDecay(0.1, 7, 0.5, staircase), steps), expected, rtol=RELATIVE)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_stays_at_its_final_rate(anneal, three_phase):
    schedule = OneCycle(0.5, 20, anneal=anneal, three_phase=three_phase)
    final = 0.5 / 25 / 1e4
    np.testing.assert_allclose(rates(schedule, [19, 20, 21, 1000, 2**31 - 1]), final, rtol=RELATIVE)
    np.testing.assert_allclose(rates(schedule.momentum(), [19, 20, 21, 2**31 - 1]), 0.95, rtol=RELATIVE)
    assert rates(schedule, [18])[0] > final


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_is_finite_where_torch_divides_by_zero(anneal):
    first_is_peak = rates(OneCycle(1.0, 10, 0.1, anneal=anneal), range(12))
    assert first_is_peak[0] == 1.0
    assert np.all(np.diff(first_is_peak) <= 0)
    np.testing.assert_allclose(first_is_peak[9:], 1 / 25e4, rtol=RELATIVE)
    only_rises = rates(OneCycle(1.0, 10, 1.0, anneal=anneal), range(12))
    assert np.all(np.diff(only_rises) >= 0)
    np.testing.assert_allclose(only_rises[[0, 9, 10, 11]], [1 / 25, 1, 1, 1], rtol=RELATIVE)
    for total in (1, 2, 3):
        for pct_start in (0.0, 1 / total, 0.5, 1.0):
            assert np.all(np.isfinite(rates(OneCycle(1.0, total, pct_start, anneal=anneal), range(5))))
    assert np.all(np.isfinite(rates(OneCycle(1.0, 10, 0.1, anneal=anneal, three_phase=True), range(12))))


def test_step_decay_drops_at_the_milestone_where_keras_drops_after_it():
    ours = StepDecay(1.0, [5], 0.5)
    keras_own = keras.optimizers.schedules.PiecewiseConstantDecay([5], [1.0, 0.5])
    assert [float(ours(step)) for step in (4, 5, 6)] == [1.0, 0.5, 0.5]
    assert [float(keras_own(step)) for step in (4, 5, 6)] == [1.0, 1.0, 0.5]


def test_warmup_is_followed_by_the_whole_schedule():
    inner = keras.optimizers.schedules.CosineDecay(0.5, 30)
    schedule = Warmup(inner, 10, initial_learning_rate=0.05)
    whole = rates(inner, range(32))
    np.testing.assert_allclose(rates(schedule, range(10, 42)), whole, rtol=RELATIVE)
    np.testing.assert_allclose(rates(schedule, range(11)), np.linspace(0.05, 0.5, 11), rtol=RELATIVE)
    np.testing.assert_allclose(rates(Warmup(0.5, 10), range(12)), [*np.linspace(0, 0.5, 11), 0.5], rtol=RELATIVE)


def test_warmup_of_no_steps_is_the_schedule_itself():
    np.testing.assert_array_equal(rates(Warmup(OneCycle(0.1, 9), 0), range(12)), rates(OneCycle(0.1, 9), range(12)))
    np.testing.assert_allclose(rates(Warmup(0.1, 0), range(3)), [0.1, 0.1, 0.1], rtol=RELATIVE)


def test_warmup_can_come_down_to_a_rate_a_million_times_smaller():
    expected = 1 + (1e-6 - 1) * np.arange(1001) / 1000
    np.testing.assert_allclose(rates(Warmup(1e-6, 1000, 1.0), range(1001)), expected, rtol=RELATIVE)


def test_chain_gives_each_part_its_own_steps():
    first, second, last = OneCycle(0.1, 5), CyclicalLearningRate(0.01, 0.02, 2), StepDecay(0.3, [4], 0.5)
    chain = Chain([(first, 5), (second, 3), (0.7, 1), last])
    expected = [*rates(first, range(5)), *rates(second, range(3)), np.float32(0.7), *rates(last, range(8))]
    np.testing.assert_array_equal(rates(chain, range(17)), expected)
    np.testing.assert_array_equal(rates(Chain([last]), range(8)), rates(last, range(8)))
    np.testing.assert_allclose(rates(Chain([0.25]), [[0, 1]]), [[0.25, 0.25]])


@pytest.mark.parametrize("every", [1000003, 2**24 + 1])
def test_step_decay_is_right_above_two_to_the_24(every):
    steps = [*BIG_STEPS, every * 20 - 1, every * 20, every * 20 + 1]
    expected = [0.1 * 0.9 ** (step // every) for step in steps]
    np.testing.assert_allclose(rates(StepDecay(0.1, every, 0.9), steps), expected, rtol=RELATIVE, atol=1e-37)
    milestones = [2**24, 2**24 + 1, 2**30 + 7]
    expected = [0.1 * 0.9 ** sum(step >= milestone for milestone in milestones) for step in BIG_STEPS]
    np.testing.assert_allclose(rates(StepDecay(0.1, milestones, 0.9), BIG_STEPS), expected, rtol=RELATIVE)


def test_exponential_decay_is_right_above_two_to_the_24():
    for decay_steps, decay_rate in [(2**24 + 3, 0.9), (10**8, 0.01), (1, 1 - 1e-8), (999, 0.9999)]:
        expected = [0.1 * math.exp(math.log(decay_rate) * (step / decay_steps)) for step in BIG_STEPS]
        schedule = ExponentialDecay(0.1, decay_steps, decay_rate)
        np.testing.assert_allclose(rates(schedule, BIG_STEPS), expected, rtol=RELATIVE, atol=1e-37)
        expected = [0.1 * math.exp(math.log(decay_rate) * (step // decay_steps)) for step in BIG_STEPS]
        schedule = ExponentialDecay(0.1, decay_steps, decay_rate, staircase=True)
        np.testing.assert_allclose(rates(schedule, BIG_STEPS), expected, rtol=RELATIVE, atol=1e-37)


def exact_triangle(step, low, high, size):
    cycle = 1 + step // (2 * size)
    distance = abs(Fraction(step, size) - 2 * cycle + 1)
    return cycle, Fraction(low), Fraction(high) - Fraction(low), 1 - distance


@pytest.mark.parametrize("size", [1, 7, 4096, 2**24 + 3, 2**29 + 1, 2**30 - 1])
def test_cyclical_is_right_above_two_to_the_24(size):
    for step in [*BIG_STEPS, 3 * 2**24 + 5, 2**31 - 1]:
        cycle, low, span, height = exact_triangle(step, 1e-4, 0.3, size)
        schedule = CyclicalLearningRate(1e-4, 0.3, size)
        assert float(schedule(step)) == pytest.approx(float(low + span * height), rel=RELATIVE)
        scale = math.ldexp(1.0, 1 - cycle) if cycle < 1000 else 0.0
        schedule = CyclicalLearningRate(1e-4, 0.3, size, "triangular2")
        assert float(schedule(step)) == pytest.approx(float(low) + float(span * height) * scale, rel=RELATIVE)
        schedule = CyclicalLearningRate(1e-4, 0.3, size, "exp_range", gamma=1 - 1e-9)
        scale = math.exp(step * math.log1p((1 - 1e-9) - 1))
        assert float(schedule(step)) == pytest.approx(float(low) + float(span * height) * scale, rel=RELATIVE)


@pytest.mark.parametrize("total", [2**24 + 7, 2**30 + 1, 2**31 - 1])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_is_right_above_two_to_the_24(total, three_phase):
    knots = [0, 0.3 * total - 1, 0.6 * total - 2, total - 1] if three_phase else [0, 0.3 * total - 1, total - 1]
    levels = [0.04, 1.0, 0.04, 0.04 / 1e4] if three_phase else [0.04, 1.0, 0.04 / 1e4]
    ends = [math.floor(knot) + shift for knot in knots for shift in (-1, 0, 1)]
    for step in [step for step in [*BIG_STEPS, *ends] if 0 <= step < total]:
        phase = next(index for index, knot in enumerate(knots[1:]) if step <= knot)
        share = (step - knots[phase]) / (knots[phase + 1] - knots[phase])
        first, last = levels[phase : phase + 2]
        cosine = last + (first - last) * math.sin(math.pi / 2 * (1 - share)) ** 2
        linear = last + (first - last) * (1 - share)
        assert float(OneCycle(1.0, total, three_phase=three_phase)(step)) == pytest.approx(cosine, rel=RELATIVE)
        schedule = OneCycle(1.0, total, anneal="linear", three_phase=three_phase)
        assert float(schedule(step)) == pytest.approx(linear, rel=RELATIVE)


def test_warmup_and_chain_count_whole_steps_above_two_to_the_24():
    triangle = CyclicalLearningRate(0.0, 1.0, 2)
    start = 2**24 + 1
    expected = rates(triangle, range(8))
    np.testing.assert_array_equal(rates(Warmup(triangle, start), np.arange(start, start + 8)), expected)
    np.testing.assert_array_equal(rates(Chain([(0.3, start), triangle]), np.arange(start, start + 8)), expected)
    assert float(Warmup(1.0, 2**31 - 1)(2**30)) == pytest.approx(2**30 / (2**31 - 1), rel=RELATIVE)


@ALL
def test_any_kind_of_step_gives_the_same_float32_rate(schedule):
    expected = rates(schedule, range(16))
    variable = keras.Variable(0, dtype="int32", trainable=False)
    for step in (0, 1, 4, 7, 13, 15):
        variable.assign(step)
        kinds = [step, np.int64(step), np.uint8(step), np.asarray(step), ops.convert_to_tensor(step), variable]
        results = [schedule(kind) for kind in kinds]
        assert {keras.backend.standardize_dtype(result.dtype) for result in results} == {"float32"}
        assert {tuple(result.shape) for result in results} == {()}
        assert len({float(result) for result in results}) == 1
        assert float(results[0]) == pytest.approx(expected[step], rel=RELATIVE)
    np.testing.assert_array_equal(rates(schedule, np.arange(16).reshape(2, 8)), expected.reshape(2, 8))
    np.testing.assert_array_equal(rates(schedule, np.arange(16, dtype="uint16")), expected)


@pytest.mark.parametrize("step", [0.5, np.zeros(3), True])
def test_a_step_that_is_no_integer_is_refused(step):
    with pytest.raises(TypeError, match="`step` must be an integer"):
        StepDecay(0.1, [2], 0.5)(step)


@pytest.fixture
def float16():
    before = keras.config.floatx()
    keras.config.set_floatx("float16")
    yield
    keras.config.set_floatx(before)


@ALL
def test_floatx_changes_no_rate_of_ours(schedule, request):
    if "CosineDecay" in repr(schedule):
        schedule = Warmup(OneCycle(0.1, 9), 4)
    steps = [*range(16), 70_000, *BIG_STEPS]
    expected = rates(schedule, steps)
    single = [float(schedule(step)) for step in (0, 1, 4, 13)]
    request.getfixturevalue("float16")
    result = schedule(np.asarray(steps))
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(result), expected)
    assert keras.backend.standardize_dtype(schedule(3).dtype) == "float32"
    assert [float(schedule(step)) for step in (0, 1, 4, 13)] == single


class Recorder(keras.optimizers.SGD):
    """Writes the rate that each update gets into a row of the weights, and moves nothing."""

    start = 0

    def update_step(self, gradient, variable, learning_rate):
        row = ops.one_hot(self._iterations - self.start, variable.shape[0], dtype="float32")
        self.assign_add(variable, ops.expand_dims(row * ops.cast(learning_rate, "float32"), -1))


def rates_inside_fit(schedule, fits=(15,), start=0, **arguments):
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", dtype="float32")]
    )
    optimizer = Recorder(schedule)
    model.compile(optimizer, loss="mse", **arguments)
    optimizer.start = start
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(start)
    for batches in fits:
        x = np.ones((batches, 20), "float32")
        model.fit(x, np.ones((batches, 1)), batch_size=1, shuffle=False, verbose=0)
    assert int(optimizer.iterations) == start + sum(fits)
    return model.get_weights()[0][: sum(fits), 0]


@ALL
def test_fit_uses_the_same_rates_as_an_eager_call(schedule):
    np.testing.assert_allclose(rates_inside_fit(schedule), rates(schedule, range(15)), rtol=RELATIVE)


def test_a_second_fit_and_a_plot_in_between_leave_the_curve_as_it_is():
    schedule = EXAMPLES["Chain"]
    rates(schedule, range(100))
    np.testing.assert_allclose(rates_inside_fit(schedule, (5, 2, 8)), rates(schedule, range(15)), rtol=RELATIVE)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch refuses steps_per_execution above 1")
def test_several_steps_per_execution_leave_the_curve_as_it_is():
    schedule = EXAMPLES["Chain"]
    result = rates_inside_fit(schedule, (8, 7), steps_per_execution=3)
    np.testing.assert_allclose(result, rates(schedule, range(15)), rtol=RELATIVE)


def test_fit_is_right_above_two_to_the_24_and_under_float16(float16):
    start = 2**24 + 1
    schedule = Warmup(CyclicalLearningRate(0.001, 1.0, 3, "exp_range", gamma=0.9), start + 4, 0.01)
    result = rates_inside_fit(schedule, start=start)
    np.testing.assert_allclose(result, rates(schedule, np.arange(start, start + 15)), rtol=RELATIVE)


def test_under_gradient_accumulation_a_schedule_counts_batches():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    optimizer = keras.optimizers.SGD(StepDecay(1.0, [2 * 3], 0.5), gradient_accumulation_steps=2)
    model.compile(optimizer, loss=lambda y, prediction: ops.mean(prediction))
    weights = []
    for _ in range(6):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), batch_size=1, verbose=0)
        weights.append(float(model.get_weights()[0][0, 0]))
    np.testing.assert_allclose(np.diff([0.0, *weights]), [-1, -1, -1, -0.5, -0.5, -0.5], rtol=RELATIVE)


@ALL
def test_a_schedule_comes_back_from_its_config(schedule):
    expected = rates(schedule, range(16))
    config = json.loads(json.dumps(schedule.get_config()))
    untouched = json.dumps(config)
    np.testing.assert_array_equal(rates(type(schedule).from_config(config), range(16)), expected)
    assert json.dumps(config) == untouched
    serialized = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    again = keras.optimizers.schedules.deserialize(serialized)
    assert type(again) is type(schedule)
    np.testing.assert_array_equal(rates(again, range(16)), expected)
    assert again.get_config() == schedule.get_config()


LOADER = """
import json, sys
import keras, numpy as np
import nnopt.schedules
found = {}
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    schedule = model.optimizer.get_config()["learning_rate"]
    again = keras.optimizers.schedules.deserialize(schedule)
    rates = keras.ops.convert_to_numpy(again(np.arange(16))).tolist()
    model.fit(np.ones((2, 1)), np.ones((2, 1)), batch_size=1, shuffle=False, verbose=0)
    found[path] = [rates, int(model.optimizer.iterations), float(model.optimizer.learning_rate),
                   float(model.get_weights()[0][0, 0])]
print(json.dumps(found))
"""


@pytest.mark.thorough
def test_a_saved_model_goes_on_with_its_schedule_in_a_fresh_process(tmp_path):
    expected = {}
    for name in ("StepDecay", "exp_range", "OneCycle", "Warmup", "Chain"):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(EXAMPLES[name], momentum=0.9), loss="mse")
        x = np.ones((3, 1))
        model.fit(x, x, batch_size=1, shuffle=False, verbose=0)
        path = str(tmp_path / f"{name}.keras")
        model.save(path)
        model.fit(x[:2], x[:2], batch_size=1, shuffle=False, verbose=0)
        curve = rates(EXAMPLES[name], range(16)).tolist()
        expected[path] = [curve, 5, curve[5], float(model.get_weights()[0][0, 0])]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    output = subprocess.run(
        [sys.executable, "-c", LOADER, *expected], capture_output=True, text=True, env=environment, check=False
    )
    assert output.returncode == 0, output.stderr
    found = json.loads(output.stdout.splitlines()[-1])
    assert found.keys() == expected.keys()
    for path, (curve, iterations, rate, weight) in expected.items():
        assert found[path][0] == pytest.approx(curve, rel=RELATIVE)
        assert found[path][1:] == pytest.approx([iterations, rate, weight], rel=RELATIVE)


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.int16])
def test_milestones_may_be_any_sequence_of_integers(kind):
    expected = rates(StepDecay(0.1, [1, 2, 3], 0.5), range(5))
    np.testing.assert_array_equal(rates(StepDecay(0.1, range(1, 4), 0.5), range(5)), expected)
    milestones = 1 if kind is np.int16 else [1, 2, 3]
    schedule = StepDecay(np.float32(0.1), kind(milestones), np.float64(0.5))
    assert json.loads(json.dumps(schedule.get_config()))["milestones"] == milestones
    if kind is not np.int16:
        np.testing.assert_allclose(rates(schedule, range(5)), expected, rtol=RELATIVE)


RATE = st.floats(1e-6, 1e3)
FACTOR = st.floats(1e-3, 1)
COUNT = st.integers(1, 10**6)


@st.composite
def schedules_with_bounds(draw, depth=1):
    """A valid schedule with the lowest and the highest rate that it may give."""
    rate, factor = draw(RATE), draw(FACTOR)
    kind = draw(st.sampled_from(["step", "exponential", "cyclical", "cycle", "warmup", "chain"][: 6 if depth else 4]))
    if kind == "step":
        milestones = draw(COUNT | st.lists(COUNT, min_size=1, max_size=5, unique=True).map(sorted))
        return StepDecay(rate, milestones, factor), 0, rate
    if kind == "exponential":
        return ExponentialDecay(rate, draw(COUNT), factor, draw(st.booleans())), 0, rate
    if kind == "cyclical":
        mode = draw(st.sampled_from(["triangular", "triangular2", "exp_range"]))
        return CyclicalLearningRate(factor * rate, rate, draw(COUNT), mode, draw(FACTOR)), factor * rate, rate
    if kind == "cycle":
        three = draw(st.booleans())
        share, anneal = draw(st.floats(0, 0.5 if three else 1)), draw(st.sampled_from(["cos", "linear"]))
        div, final = draw(st.floats(1, 100)), draw(st.floats(1, 1e6))
        return OneCycle(rate, draw(COUNT), share, div, final, anneal, three), rate / div / final, rate
    schedule, low, high = draw(schedules_with_bounds(depth=0))
    if kind == "warmup":
        return Warmup(schedule, draw(COUNT), factor * rate), min(low, factor * rate), max(high, factor * rate)
    other, other_low, other_high = draw(schedules_with_bounds(depth=0))
    return Chain([(schedule, draw(COUNT)), other]), min(low, other_low), max(high, other_high)


@settings(deadline=None, max_examples=60)
@given(schedules_with_bounds(), st.lists(st.integers(0, 2**31 - 1) | COUNT | st.integers(0, 30), min_size=1))
def test_any_valid_schedule_stays_within_its_bounds_and_is_the_same_in_a_graph_and_from_its_config(case, steps):
    schedule, low, high = case
    steps = np.array((steps * 16)[:16], "int64")
    eager = rates(schedule, steps)
    assert np.all(np.isfinite(eager))
    assert np.all(eager >= low * (1 - RELATIVE))
    assert np.all(eager <= high * (1 + RELATIVE))
    np.testing.assert_allclose(ops.convert_to_numpy(in_graph(schedule, steps)), eager, rtol=RELATIVE, atol=1e-37)
    again = type(schedule).from_config(json.loads(json.dumps(schedule.get_config())))
    np.testing.assert_array_equal(rates(again, steps), eager)


@pytest.mark.parametrize("decay_rate", [0.99, 0.5, 0.013])
def test_a_decay_is_exact_over_its_whole_range_in_a_graph_as_outside_of_it(decay_rate):
    """XLA merges a product of exponentials into the exponential of a sum, which is off by 1e-5 here."""
    schedule = ExponentialDecay(1.0, 57, decay_rate)
    steps = np.linspace(0, 80 * 57 / -np.log(decay_rate), 500).astype("int64")
    exact = decay_rate ** (steps / 57)
    for found in (rates(schedule, steps), ops.convert_to_numpy(in_graph(schedule, steps))):
        np.testing.assert_allclose(found.astype("float64"), exact, rtol=5e-7)


def in_graph(schedule, steps):
    return compiled(schedule)(ops.convert_to_tensor(steps))


STEP, EXPONENTIAL = (StepDecay, (0.1, [2, 4], 0.5)), (ExponentialDecay, (0.1, 4, 0.5, False))
CYCLICAL = (CyclicalLearningRate, (0.1, 0.2, 3, "exp_range", 0.9))
ONE = (OneCycle, (0.1, 9, 0.3, 25.0, 1e4, "cos", False))
BAD = [
    (STEP, "initial_learning_rate", 0),
    (STEP, "milestones", [4, 2]),
    (STEP, "milestones", []),
    (STEP, "milestones", "24"),
    (STEP, "milestones", 0),
    (STEP, "decay_rate", 1.5),
    (EXPONENTIAL, "initial_learning_rate", math.nan),
    (EXPONENTIAL, "decay_steps", 3.0),
    (EXPONENTIAL, "decay_rate", -0.9),
    (EXPONENTIAL, "staircase", 1),
    (CYCLICAL, "initial_learning_rate", -0.1),
    (CYCLICAL, "maximal_learning_rate", 0.0999),
    (CYCLICAL, "step_size", 2**30),
    (CYCLICAL, "mode", "Triangular"),
    (CYCLICAL, "gamma", 0),
    (ONE, "maximal_learning_rate", "0.1"),
    (ONE, "total_steps", 0),
    (ONE, "pct_start", 30),
    (ONE, "div_factor", 0.99),
    (ONE, "final_div_factor", 0.0399),
    (ONE, "anneal", "cosine"),
    (ONE, "three_phase", None),
    ((OneCycleMomentum, (OneCycle(0.1, 9), 0.8, 0.9)), "cycle", 0.1),
    ((OneCycleMomentum, (OneCycle(0.1, 9), 0.8, 0.9)), "low", -0.1),
    ((OneCycleMomentum, (OneCycle(0.1, 9), 0.8, 0.9)), "high", 0.7),
    ((Warmup, (0.1, 3, 0.0)), "schedule", StepDecay),
    ((Warmup, (0.1, 3, 0.0)), "warmup_steps", -1),
    ((Warmup, (0.1, 3, 0.0)), "initial_learning_rate", math.inf),
    ((Chain, ([(0.1, 2), 0.2],)), "parts", [(0.1, 2)]),
    ((Chain, ([(0.1, 2), 0.2],)), "parts", [0.1, 0.2]),
    ((Chain, ([(0.1, 2), 0.2],)), "parts", [(0.1, 2**30), (0.1, 2**30), 0.2]),
]


@pytest.mark.parametrize(("good", "name", "value"), BAD)
def test_a_bad_argument_is_refused_with_its_name_the_rule_and_the_value(good, name, value):
    kind, arguments = good
    arguments = dict(zip(kind._arguments, arguments))
    kind(**arguments)
    with pytest.raises(
        (TypeError, ValueError), match=rf"`{name}[`\[].* must .*Received: {name}|steps of `{name}` must"
    ):
        kind(**{**arguments, name: value})


def test_every_argument_of_every_schedule_has_a_bad_case():
    assert {(kind, name) for (kind, _), name, _ in BAD} == {
        (kind, name) for (kind, _), _, _ in BAD for name in kind._arguments
    }


def test_three_phases_need_a_rise_of_at_most_half_the_steps():
    with pytest.raises(ValueError, match=r"`pct_start` must be .* <= 0\.5"):
        OneCycle(0.1, 10, 0.51, three_phase=True)
