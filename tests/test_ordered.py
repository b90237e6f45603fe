"""Data whose order is a pure function of a seed and the epoch."""

import warnings

import keras
import numpy as np
import pytest

from nnopt.data.ordered import FollowEpoch, OrderedDataset, epoch_order

X = np.arange(10, dtype="float32")[:, None]


def model():
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    network.compile("sgd", loss="mse")
    return network


class Recorded(OrderedDataset):
    """Keeps which examples each epoch of a `fit` has read, by the data set's own number of the epoch."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = {}

    def __getitem__(self, index):
        batch = super().__getitem__(index)
        if self._told:
            self.seen.setdefault(self.epoch, []).extend(batch[0][:, 0].astype(int).tolist())
        return batch


def data(**arguments):
    return Recorded(**{"x": X, "y": X, "batch_size": 4, "seed": 1, **arguments})


def orders(*epochs):
    return {epoch: epoch_order(10, 1, epoch).tolist() for epoch in epochs}


def fit(dataset, network=None, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (network or model()).fit(dataset, verbose=0, shuffle=False, callbacks=[dataset.follow()], **arguments)


def test_the_order_depends_on_seed_and_epoch_alone():
    np.random.seed(0)
    first = epoch_order(100, seed=5, epoch=7)
    np.random.seed(1)
    epoch_order(100, seed=5, epoch=8)
    np.testing.assert_array_equal(epoch_order(100, seed=5, epoch=7), first)
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    assert (epoch_order(100, 5, 8) != first).any()
    assert (epoch_order(100, 6, 7) != first).any()


def test_orders_of_many_epochs_are_uniform():
    firsts = [epoch_order(4, seed=0, epoch=epoch)[0] for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=4)
    # The 99.99 % point of chi-square with three degrees of freedom.
    assert ((counts - 500) ** 2 / 500).sum() < 21.1


@pytest.mark.parametrize("arguments", [{}, {"steps_per_epoch": 3}])
def test_fit_reads_each_epoch_in_its_order_and_goes_on_in_a_second_fit(arguments):
    dataset, network = data(), model()
    fit(dataset, network, epochs=2, **arguments)
    fit(dataset, network, epochs=2, **arguments)
    assert dataset.seen == orders(0, 1, 2, 3)


def test_initial_epoch_gives_the_order_of_that_epoch():
    dataset = data()
    fit(dataset, initial_epoch=5, epochs=7)
    assert dataset.seen == orders(5, 6)


def test_an_evaluation_in_between_changes_nothing():
    dataset, network = data(), model()
    fit(dataset, network, epochs=2, validation_data=(X, X))
    network.evaluate(dataset, verbose=0)
    fit(dataset, network)
    assert dataset.seen == orders(0, 1, 2)


def test_without_shuffle_the_examples_come_as_they_are():
    dataset = data(shuffle=False)
    fit(dataset, epochs=2)
    assert dataset.seen == {0: list(range(10)), 1: list(range(10))}


def test_structures_and_weights_are_cut_alike():
    dataset = OrderedDataset({"a": X, "b": (2 * X, 3 * X)}, [X, X], np.arange(10), batch_size=4, seed=1)
    dataset.set_epoch(2)
    x, y, weight = dataset[1]
    expected = epoch_order(10, 1, 2)[4:8]
    for array, factor in [(x["a"], 1), (x["b"][0], 2), (x["b"][1], 3), (y[0], 1), (y[1], 1), (weight[:, None], 1)]:
        np.testing.assert_array_equal(array[:, 0], factor * expected)


def test_fit_takes_several_inputs_and_weights_or_no_targets():
    first, second = keras.Input((1,)), keras.Input((1,))
    network = keras.Model([first, second], keras.layers.Add()([first, keras.layers.Dense(1)(second)]))
    network.compile("sgd", loss="mse")
    fit(OrderedDataset((X, X), X, np.ones(10), batch_size=4, seed=1), network)
    assert OrderedDataset(X, batch_size=4)[0][0].shape == (4, 1)


def test_batches_shuffled_by_keras_are_noticed():
    dataset = OrderedDataset(np.zeros((4000, 1)), np.zeros(4000), batch_size=4, seed=1)
    # TensorFlow wraps the error in its own.
    with pytest.raises(Exception, match=r"fit\(data, shuffle=False\)"):
        model().fit(dataset, verbose=0, callbacks=[dataset.follow()])


def test_a_data_set_that_is_not_told_the_epoch_warns():
    dataset = data()
    with pytest.warns(UserWarning, match="does not know which epoch"):
        model().fit(dataset, epochs=3, verbose=0, shuffle=False)


def test_epochs_cut_short_are_refused():
    with pytest.raises(ValueError, match="Received: steps_per_epoch=2"):
        fit(data(), steps_per_epoch=2)


def test_following_one_data_set_and_reading_another_is_noticed():
    with pytest.raises(RuntimeError, match="did not read the OrderedDataset"):
        model().fit(data(), verbose=0, shuffle=False, callbacks=[data().follow()])


def test_the_fingerprint_tells_data_seed_and_batches_apart():
    first = data().fingerprint()
    assert first == data().fingerprint()
    for other in (data(seed=2), data(batch_size=5), data(shuffle=False), data(x=X + 1), data(y=X.astype("float64"))):
        assert other.fingerprint() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": 3.0}, "`x` must be an array"),
        ({"x": None}, "`x` must be an array"),
        ({"x": np.array(["a", None], dtype=object)}, "`x` must be an array"),
        ({"y": "targets"}, "`y` must be an array"),
        ({"x": X[:9]}, r"lengths=\[9, 10\]"),
        ({"x": X[:0], "y": X[:0]}, r"lengths=\[0\]"),
        ({"sample_weight": np.ones(9)}, r"lengths=\[9, 10\]"),
        ({"y": None, "sample_weight": np.ones(10)}, "`sample_weight` needs `y`"),
        *[
            ({"batch_size": value}, "`batch_size` must be .* Received: batch_size=")
            for value in (0, -1, 1.5, "4", None, True)
        ],
        *[({"seed": value}, "`seed` must be .* Received: seed=") for value in (-1, 1.5, "4", None, True)],
        *[({"shuffle": value}, "`shuffle` must be .* Received: shuffle=") for value in (1, "yes", None)],
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data(**arguments)


@pytest.mark.parametrize("value", [-1, 1.5, "2", None, True])
def test_a_bad_epoch_is_refused(value):
    with pytest.raises((TypeError, ValueError), match=r"`epoch` must be .* Received: epoch="):
        data().set_epoch(value)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match=f"index={index}"):
        data()[index]


@pytest.mark.parametrize("value", [None, X, "data"])
def test_only_an_ordered_data_set_can_be_followed(value):
    with pytest.raises(TypeError, match="`data` must be an OrderedDataset"):
        FollowEpoch(value)
