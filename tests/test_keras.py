"""Each private name of Keras that the package leans on still does what it is used for."""

import keras
import numpy as np
import pytest

from nnopt import _keras

X = np.ones((4, 1), "float32")


def model(optimizer="sgd"):
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    network.compile(optimizer, loss="mse")
    return network


def test_the_adapter_of_fit_is_found_and_tells_training_from_evaluation():
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return X, X

        def on_epoch_begin(self):
            seen.append((_keras.trains(), _keras.data_adapter().py_dataset is self))

    seen, network = [], model()
    assert _keras.data_adapter() is None
    assert not _keras.trains()
    network.fit(Data(), epochs=2, verbose=0, validation_data=Data(), validation_freq=2)
    trained = [trains for trains, _ in seen]
    # JAX and torch read a batch before, to build the model.
    assert trained[-3:] == [True, True, False]
    assert not any(trained[:-3])
    assert all(own for _, own in seen)


def test_an_adapter_reads_what_is_put_in_the_place_of_its_data_and_does_not_shuffle_it():
    class Data(keras.utils.PyDataset):
        def __init__(self, log):
            super().__init__()
            self.log = log

        def __len__(self):
            return 50

        def __getitem__(self, index):
            self.log.append(index)
            return X, X

    class Swap(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            adapter = _keras.data_adapter()
            adapter.py_dataset, adapter.shuffle = Data(read), False

    read = []
    model().fit(Data([]), epochs=2, verbose=0, callbacks=[Swap()])
    assert read == [*range(50)] * 2


def test_fit_begins_at_the_epoch_that_a_callback_sets():
    class Later(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _keras.begin_at_epoch(self.model, 3)

    network = model()
    assert network.fit(X, X, epochs=5, verbose=0, callbacks=[Later()]).epoch == [3, 4]
    _keras.begin_at_epoch(network, None)
    assert network.fit(X, X, epochs=1, verbose=0).epoch == [0]


def test_the_schedule_inside_an_optimizer_is_found():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert _keras.learning_rate(keras.optimizers.SGD(schedule)) is schedule
    assert isinstance(_keras.learning_rate(keras.optimizers.SGD(0.1)), keras.Variable)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule))
    assert _keras.learning_rate(scaled) is schedule
    assert _keras.batch_counter(scaled) is scaled.inner_optimizer.iterations


@pytest.mark.parametrize("dropped", [True, False])
def test_what_jax_holds_back_of_a_step_that_was_cut_off_can_be_dropped(dropped):
    network = model()
    network.train_on_batch(X, X)

    def fails(*arguments):
        raise KeyboardInterrupt

    network.train_function = fails
    with pytest.raises(KeyboardInterrupt):
        network.train_on_batch(X, X)
    network.trainable_variables[0].assign([[7.0]])
    if dropped:
        _keras.drop_unwritten_state(network)
    holds_back = keras.backend.backend() == "jax"
    if holds_back:
        network.jax_state_sync()
    assert (float(network.get_weights()[0][0, 0]) == 7.0) == (dropped or not holds_back)


def test_the_generator_behind_keras_random_can_be_taken_away_and_put_back():
    keras.utils.set_random_seed(1)
    assert _keras.global_seed_generator() is None
    made = _keras.made_global_seed_generator()
    assert _keras.global_seed_generator() is made
    before = made.state.numpy().tolist()
    keras.random.uniform(())
    assert made.state.numpy().tolist() != before
    _keras.set_global_seed_generator(None)
    keras.random.uniform(())
    assert _keras.global_seed_generator() is not made


def test_the_counter_counts_batches_also_under_gradient_accumulation_and_inside_a_loss_scale():
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    for optimizer in (inner, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))):
        network = model(optimizer)
        network.fit(X, X, batch_size=1, verbose=0)
        assert int(keras.ops.convert_to_numpy(_keras.batch_counter(optimizer))) == 4
    assert int(keras.ops.convert_to_numpy(inner.iterations)) == 2


def test_the_class_made_by_an_optimizers_class_is_that_of_its_objects():
    for kind in (keras.optimizers.SGD, keras.optimizers.AdamW):
        assert _keras.class_made_by(kind) is type(kind(0.1))


def test_the_slot_of_a_variable_is_its_own():
    optimizer, variables = keras.optimizers.SGD(0.1, momentum=0.9), [keras.Variable([1.0]), keras.Variable([[2.0]])]
    optimizer.build(variables)
    assert [_keras.slot_of(optimizer, optimizer.momentums, variable).shape for variable in variables] == [(1,), (1, 1)]


def test_batches_are_counted_under_gradient_accumulation_and_loss_scaling():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    network = model(keras.optimizers.LossScaleOptimizer(optimizer))
    for _ in range(4):
        network.train_on_batch(X, X)
    assert int(keras.ops.convert_to_numpy(_keras.batch_counter(network.optimizer))) == 4
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 1
    assert _keras.inner_optimizer(network.optimizer) is optimizer is _keras.inner_optimizer(optimizer)


def test_variables_without_weight_decay_are_known():
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    kernel, bias = network.trainable_variables
    optimizer = keras.optimizers.AdamW(0.1)
    assert _keras.undecayed_names(optimizer) is None
    assert not _keras.undecayed_variables(optimizer)
    optimizer.exclude_from_weight_decay(var_list=[kernel], var_names=["bias"])
    assert _keras.undecayed_names(optimizer) == ["bias"]
    assert len(_keras.undecayed_variables(optimizer)) == 1
    assert not _keras.decays(optimizer, kernel)
    assert not _keras.decays(optimizer, bias)
    assert _keras.decays(keras.optimizers.AdamW(0.1), kernel)


def test_the_slot_of_a_variable_is_found():
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(network.trainable_variables)
    slots = optimizer.add_optimizer_variables(network.trainable_variables, "extra")
    assert [_keras.slot_of(optimizer, slots, variable).shape for variable in network.trainable_variables] == [
        (1, 3),
        (3,),
    ]


def test_the_class_of_an_optimizers_objects_is_known():
    for kind in (keras.optimizers.SGD, keras.optimizers.AdamW):
        assert type(kind(0.1)) is _keras.class_made_by(kind)


def test_the_mask_that_an_embedding_makes_is_found():
    tokens = np.array([[1, 2, 0]])
    output = keras.layers.Embedding(3, 2, mask_zero=True)(tokens)
    assert keras.ops.convert_to_numpy(_keras.mask(output)).tolist() == [[True, True, False]]
    assert _keras.mask(keras.ops.ones(2)) is None
