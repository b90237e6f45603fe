"""Data whose order is a pure function of the number of the epoch."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnopt.callbacks import Resume
from nnopt.data.ordered import EpochData, EpochPipeline, EpochReader, OrderedDataset, epoch_order

X = np.arange(10, dtype="float32")[:, None]


def model():
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    network.compile("sgd", loss="mse")
    return network


def data(**arguments):
    return OrderedDataset(**{"x": X, "y": X, "batch_size": 4, "seed": 1, **arguments})


class Recorded(EpochReader):
    """Keeps which examples each epoch of a `fit` has read."""

    seen: dict = {}  # noqa: RUF012

    def __getitem__(self, index):
        batch = super().__getitem__(index)
        self.seen.setdefault(self._epoch, []).extend(batch[0][:, 0].astype(int).tolist())
        return batch


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(Recorded, "seen", {})
    monkeypatch.setattr("nnopt.callbacks.resume.EpochReader", Recorded)
    return Recorded.seen


def orders(*epochs):
    return {epoch: epoch_order(10, 1, epoch).tolist() for epoch in epochs}


def pipeline(x=X, steps=3, **arguments):
    """The batches of `data()`, as a function of the epoch."""

    def make(epoch):
        order = epoch_order(10, 1, epoch)
        return [(x[order[first : first + 4]], x[order[first : first + 4]]) for first in (0, 4, 8)]

    return EpochPipeline(**{"make": make, "steps_per_epoch": steps, "fingerprint": "ten numbers", **arguments})


@given(st.integers(1, 200), st.integers(0, 2**40), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(examples, seed, epoch):
    first = epoch_order(examples, seed, epoch)
    np.random.default_rng(0).permutation(7)
    np.testing.assert_array_equal(epoch_order(examples, seed, epoch), first)
    np.testing.assert_array_equal(np.sort(first), np.arange(examples))


def test_orders_of_many_epochs_are_uniform():
    firsts = [epoch_order(4, seed=0, epoch=epoch)[0] for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=4)
    # The 99.99 % point of chi-square with three degrees of freedom.
    assert ((counts - 500) ** 2 / 500).sum() < 21.1


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.booleans())
@settings(max_examples=50, deadline=None)
def test_batches_from_the_middle_on_are_the_rest_of_the_whole_epoch(examples, batch_size, start, shuffle):
    ordered = OrderedDataset(np.arange(examples), batch_size=batch_size, shuffle=shuffle)
    whole = [x.tolist() for (x,) in ordered.batches(5)]
    assert [x.tolist() for (x,) in ordered.batches(5, start)] == whole[start:]
    assert len(whole) == len(ordered)
    order = epoch_order(examples, 0, 5) if shuffle else np.arange(examples)
    assert np.concatenate(whole).tolist() == order.tolist()


@pytest.mark.parametrize("make", [data, pipeline])
@pytest.mark.parametrize("arguments", [{}, {"steps_per_epoch": 3}, {"shuffle": False}])
def test_fit_reads_each_epoch_in_its_order_and_goes_on_in_a_second_fit(tmp_path, seen, make, arguments):
    ordered, network = make(), model()
    for folder in ("first", "second"):
        network.fit(ordered, epochs=2, verbose=0, callbacks=[Resume(tmp_path / folder, ordered)], **arguments)
    assert seen == orders(0, 1, 2, 3)


def test_a_second_model_on_the_same_data_begins_with_epoch_0(tmp_path, seen):
    ordered = data()
    for folder in ("first", "second"):
        seen.clear()
        model().fit(ordered, epochs=2, verbose=0, callbacks=[Resume(tmp_path / folder, ordered)])
        assert seen == orders(0, 1)


def test_predictions_come_in_the_order_of_the_data_also_while_fit_reads_it(tmp_path, seen):
    class Predicts(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rows = self.model.predict(ordered, verbose=0)
            np.testing.assert_allclose(rows, X * float(self.model.get_weights()[0][0, 0]), rtol=1e-5)

        on_epoch_end = on_train_batch_end

    ordered, network = data(), model()
    np.testing.assert_allclose(network.predict(ordered, verbose=0), X)
    callbacks = [Predicts(), Resume(tmp_path, ordered)]
    network.fit(ordered, epochs=2, verbose=0, validation_data=ordered, callbacks=callbacks)
    Predicts.on_epoch_end(callbacks[0], 2)
    assert seen == orders(0, 1)


def test_structures_and_weights_are_cut_alike():
    dataset = OrderedDataset({"a": X, "b": (2 * X, 3 * X)}, [X, X], np.arange(10), batch_size=4, seed=1)
    x, y, weight = next(dataset.batches(2, start=1))
    expected = epoch_order(10, 1, 2)[4:8]
    for array, factor in [(x["a"], 1), (x["b"][0], 2), (x["b"][1], 3), (y[0], 1), (y[1], 1), (weight[:, None], 1)]:
        np.testing.assert_array_equal(array[:, 0], factor * expected)


def test_fit_takes_several_inputs_and_weights(tmp_path):
    first, second = keras.Input((1,)), keras.Input((1,))
    network = keras.Model([first, second], keras.layers.Add()([first, keras.layers.Dense(1)(second)]))
    network.compile("sgd", loss="mse")
    ordered = OrderedDataset((X, X), X, np.ones(10), batch_size=4, seed=1)
    history = network.fit(ordered, verbose=0, callbacks=[Resume(tmp_path, ordered)])
    assert np.isfinite(history.history["loss"][0])


@pytest.mark.parametrize("make", [data, pipeline])
@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_without_resume_is_refused_and_evaluate_is_not(make, shuffle):
    network, ordered = model(), make()
    assert network.evaluate(ordered, verbose=0) == 0
    with pytest.raises(RuntimeError, match=r"fit\(data, callbacks=\[Resume\(directory, data\)\]\)"):
        network.fit(ordered, shuffle=shuffle, verbose=0)


def test_epochs_cut_short_are_refused(tmp_path):
    ordered = data()
    with pytest.raises(ValueError, match="Received: steps_per_epoch=2"):
        model().fit(ordered, steps_per_epoch=2, verbose=0, callbacks=[Resume(tmp_path, ordered)])


@pytest.mark.parametrize("given", [data, lambda: X])
def test_a_fit_on_other_data_than_those_of_resume_is_refused(tmp_path, given):
    with pytest.raises(ValueError, match="must be the same object"):
        model().fit(given(), X if given is not data else None, verbose=0, callbacks=[Resume(tmp_path, data())])


def test_the_fingerprint_tells_data_seed_and_batches_apart():
    first = data().fingerprint()
    assert first == data().fingerprint()
    for other in (data(seed=2), data(batch_size=5), data(shuffle=False), data(x=X + 1), data(y=X.astype("float64"))):
        assert other.fingerprint() != first


def test_the_fingerprint_of_a_pipeline_holds_the_users_and_its_first_batch():
    first = pipeline().fingerprint()
    assert first == pipeline().fingerprint()
    for other in (pipeline(fingerprint="others"), pipeline(steps=2), pipeline(x=X + 1)):
        assert other.fingerprint() != first


def test_a_pipeline_reads_tensors_and_lists_and_leaves_out_what_lies_beyond():
    tensors = pipeline(make=lambda epoch: ([keras.ops.ones((2, 1)), keras.ops.ones((2,))] for _ in range(9)))
    batches = list(tensors.batches(0))
    assert len(batches) == 3
    assert all(isinstance(batch, tuple) and isinstance(batch[1], np.ndarray) for batch in batches)
    assert tensors[2][0].tolist() == tensors[0][0].tolist() == [[1.0], [1.0]]


def test_a_pipeline_with_too_few_batches_names_the_epoch(tmp_path):
    short = pipeline(make=lambda epoch: [(X[:4], X[:4])] * (2 if epoch else 3))
    # TensorFlow wraps the error in its own.
    with pytest.raises(Exception, match=r"`make\(1\)` must give steps_per_epoch=3 batches. Received: 2 batches"):
        model().fit(short, epochs=2, verbose=0, callbacks=[Resume(tmp_path, short)])


def test_a_pipeline_that_is_not_seeded_is_refused_when_fit_begins(tmp_path):
    generator = np.random.default_rng(0)
    unseeded = pipeline(make=lambda epoch: [(X[generator.permutation(10)], X)] * 3)
    with pytest.raises(ValueError, match="seed its shuffling"):
        model().fit(unseeded, verbose=0, callbacks=[Resume(tmp_path, unseeded)])


def test_both_kinds_of_data_keep_the_protocol():
    assert isinstance(data(), EpochData)
    assert isinstance(pipeline(), EpochData)
    assert not isinstance(X, EpochData)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": 3.0}, "`x` must be an array"),
        ({"y": "targets"}, "`y` must be an array"),
        ({"x": np.array([X, None], dtype=object)}, r"`x` must be an array(.|\n)*ndarray of shape \(2,\)"),
        ({"x": X[:9]}, r"lengths=\[9, 10\]"),
        ({"x": X[:0], "y": X[:0]}, r"lengths=\[0\]"),
        ({"y": None, "sample_weight": np.ones(10)}, r"`sample_weight` needs `y`. .*shape \(10,\)"),
        ({"batch_size": 0}, "`batch_size` must be .* Received: batch_size="),
        ({"seed": -1}, "`seed` must be .* Received: seed="),
        ({"shuffle": 1}, "`shuffle` must be .* Received: shuffle="),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"), [({"make": [1, 2]}, "make"), ({"steps_per_epoch": 0}, "steps_per_epoch")]
)
def test_a_bad_argument_of_a_pipeline_is_refused(arguments, name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be .*Received: {name}="):
        pipeline(**arguments)


@pytest.mark.parametrize("arguments", [{"epoch": -1}, {"epoch": 0, "start": 1.5}])
def test_a_bad_epoch_or_start_is_refused(arguments):
    with pytest.raises((TypeError, ValueError), match="must be an integer >= 0"):
        next(data().batches(**arguments))


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match=f"index={index}"):
        data()[index]
