"""`nnopt.lab.run_grid` and what it returns."""

import random

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnopt
from nnopt.lab.grid import SweepResult, identity, run_grid, settings_of


def noisy(setting, seed):
    """A training function without a network: what it draws depends on the global random states alone."""
    values = [setting["learning_rate"] + np.random.random() + random.random() for _ in range(4)]
    return {"loss": values, "val_accuracy": 1 - np.array(values)}


def adversarial(setting, seed):
    """Two small networks against each other, with the training step of `AdversarialNetwork`."""
    model = nnopt.models.gan((2,), noise_size=2, units=[4], seed=seed)
    rate = setting["learning_rate"]
    model.compile(keras.optimizers.Adam(rate), keras.optimizers.Adam(rate))
    x = np.random.default_rng(seed).normal(size=(64, 2)).astype("float32")
    return model.fit(x, epochs=2, batch_size=16, verbose=0).history


def curved(values, name="val_loss"):
    """A result with one setting for each row of values (settings, seeds), all constant over two epochs."""
    values = np.array(values, "float64")
    runs = [{"setting": row, "seed": seed} for row, seed in np.ndindex(*values.shape)]
    history = {name: np.repeat(values.reshape(-1, 1), 2, axis=1)}
    return SweepResult(runs, history, np.isnan(values).ravel())


def test_runs_come_by_setting_and_then_by_seed_and_begin_with_their_seed():
    result = run_grid(noisy, {"learning_rate": [0.1, 0.2]}, seeds=[5, 3], progress=False)
    assert [tuple(run.values()) for run in result.runs] == [(0.1, 5), (0.1, 3), (0.2, 5), (0.2, 3)]
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(result.history["loss"][3], noisy({"learning_rate": 0.2}, 3)["loss"])


def test_global_random_states_are_left_alone():
    random.seed(11)
    np.random.seed(11)
    expected = random.random(), np.random.random()
    random.seed(11)
    np.random.seed(11)
    run_grid(noisy, {"learning_rate": [0.1]}, seeds=[0], progress=False)
    assert (random.random(), np.random.random()) == expected


def test_a_label_stands_in_runs_and_its_value_reaches_the_function():
    def train(setting, seed):
        return {"loss": [setting["network"].sum()]}

    grid = {"network": {"ones": np.ones(3), "twos": np.full(3, 2.0)}}
    result = run_grid(train, grid, seeds=[0], progress=False)
    assert result.settings == [{"network": "ones"}, {"network": "twos"}]
    assert result.final("loss").tolist() == [3.0, 6.0]


@pytest.mark.thorough
def test_adversarial_networks_side_by_side_give_the_bits_of_one_after_the_other():
    def train(setting, seed):  # in no module that another process could import, as a notebook's functions
        return adversarial(setting, seed)

    grid = {"learning_rate": [0.001, 0.01]}
    alone, beside = [run_grid(train, grid, range(2), processes=count, progress=False) for count in (1, 2)]
    assert len(alone.history) >= 2
    for name, curves in alone.history.items():
        np.testing.assert_array_equal(beside.history[name], curves)
    assert len(np.unique(next(iter(alone.history.values()))[:, -1])) == 4


def test_a_run_that_diverges_is_nan_from_then_on():
    def train(setting, seed):
        return {"loss": [1.0, np.inf if seed else 0.5, 0.4], "val_accuracy": [0.5, 0.6, 0.7]}

    result = run_grid(train, seeds=[0, 1], progress=False)
    assert result.diverged.tolist() == [False, True]
    np.testing.assert_array_equal(result.history["val_accuracy"], [[0.5, 0.6, 0.7], [0.5, np.nan, np.nan]])
    assert "1 diverged" in repr(result)


@given(values=st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_best_is_the_setting_of_the_best_mean_in_the_direction_of_the_metric(values):
    means = np.array(values).mean(axis=1)
    assert means[curved(values, "val_loss").best("val_loss")["setting"]] == means.min()
    assert means[curved(values, "val_auc").best("val_auc")["setting"]] == means.max()


@pytest.mark.parametrize("name", ["loss", "val_mean_squared_error", "test_nats", "train_categorical_crossentropy"])
def test_losses_and_errors_are_minimized(name):
    assert curved([[2.0], [1.0]], name).best(name) == {"setting": 1}


@pytest.mark.parametrize(
    "name", ["accuracy", "val_top_k_categorical_accuracy", "val_auc", "test_f1", "precision", "bleu"]
)
def test_accuracies_and_their_like_are_maximized(name):
    assert curved([[2.0], [1.0]], name).best(name) == {"setting": 0}


@pytest.mark.parametrize("name", ["val_distance", "accuracy_loss"])
def test_a_metric_of_unknown_direction_needs_a_mode(name):
    result = curved([[2.0], [1.0]], name)
    with pytest.raises(ValueError, match="`mode`"):
        result.best(name)
    assert result.best(name, mode="max") == {"setting": 0}


def test_a_setting_with_a_diverged_run_is_never_best():
    assert curved([[0.1, np.nan], [0.5, 0.5]]).best() == {"setting": 1}
    with pytest.raises(ValueError, match="diverged run"):
        curved([[0.1, np.nan]]).best()


def test_select_keeps_the_runs_of_a_setting_in_their_order():
    result = curved([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    assert result.select(setting=0).final().tolist() == [1.0, 2.0, 3.0]
    assert len(result.select(seed=1)) == 2


def test_lists_and_arrays_may_be_entries_of_a_grid():
    def train(setting, seed):
        return {"loss": [float(np.sum(setting["units"]))]}

    grid = {"units": [[4, 4], np.ones(3), [1]]}
    result = run_grid(train, grid, seeds=[0, 1], progress=False)
    assert len(result.settings) == 3
    assert result.select(units=[4, 4]).final("loss").tolist() == [8.0, 8.0]
    assert result.select(units=np.ones(3)).final("loss").tolist() == [3.0, 3.0]


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=3)), st.integers(1, 2))
def test_settings_are_all_combinations_of_all_grids(grid, times):
    settings = settings_of([grid] * times)
    assert len(settings) == times * int(np.prod([len(values) for values in grid.values()]))
    assert all(labels == setting and list(labels) == list(grid) for labels, setting in settings)


def test_identity_tells_apart_what_repr_does_not():
    first, second = np.zeros(5000), np.zeros(5000)
    second[2500] = 1
    assert repr(first) == repr(second)
    assert identity([first]) != identity([second])
    assert identity([first]) == identity([first.copy()])
    assert identity(1) != identity(True)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"train": 3}, TypeError, "`train`"),
        ({"train": lambda setting, seed: 3}, TypeError, "dict of metric name"),
        ({"train": lambda setting, seed: {"loss": []}}, ValueError, "one length >= 1"),
        ({"train": lambda setting, seed: {"loss": [1, 2], "val_loss": [1]}}, ValueError, "one length >= 1"),
        ({"train": lambda setting, seed: {"loss": [1] * (1 + seed)}}, ValueError, "one length >= 1"),
        ({"grid": 3}, TypeError, "`grid`"),
        ({"grid": []}, ValueError, "at least one dict"),
        ({"grid": {"rate": 0.1}}, TypeError, "rate=0.1"),
        ({"grid": {"rate": []}}, ValueError, "at least one value"),
        ({"grid": {"seed": [1]}}, ValueError, "pass `seeds`"),
        ({"grid": np.arange(1000.0)}, TypeError, r"array of shape \(1000,\)"),
        ({"seeds": 3}, TypeError, "list or range of integers"),
        ({"seeds": []}, ValueError, "at least one integer"),
        ({"seeds": [1, 1]}, ValueError, "none of them twice"),
        ({"seeds": [-1]}, ValueError, "`seeds`"),
        ({"seeds": [0.5]}, TypeError, "`seeds`"),
        ({"processes": 0}, ValueError, "`processes`"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    arguments = {"train": lambda setting, seed: {"loss": [1.0]}, "grid": None, "seeds": [0, 1], **changed}
    with pytest.raises(error, match=message):
        run_grid(**arguments, progress=False)


def test_unknown_metrics_entries_and_runs_are_named():
    result = curved([[1.0]])
    with pytest.raises(ValueError, match="val_los"):
        result.final("val_los")
    with pytest.raises(ValueError, match="'units': 3"):
        result.select(units=3)
    with pytest.raises(ValueError, match="keeps no networks"):
        result.model(0)
    with pytest.raises(ValueError, match="`mode`"):
        result.best("val_loss", mode="least")
