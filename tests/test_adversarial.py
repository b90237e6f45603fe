import keras
import numpy as np
import pytest
import torch_models
from keras import layers, ops

import nnopt
from nnopt.callbacks import CyclicalLR, Resume
from nnopt.data.ordered import OrderedDataset
from nnopt.models import AdversarialNetwork, gan

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(0)
EXAMPLES = RANDOM.normal([1.0, -1.0], 0.3, size=(24, 2)).astype("float32")
LOGS = {"generator_loss", "discriminator_loss", "generator_gradient_norm", "discriminator_gradient_norm"}


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def arrays(variables):
    return [array(variable) for variable in variables]


def compiled(model, rate=0.05, other_rate=0.1, **options):
    sgd = keras.optimizers.SGD
    model.compile(sgd(rate, momentum=0.9), sgd(other_rate, momentum=0.9), **options)
    return model


def small(**options):
    return gan((2,), 3, [6], seed=1, **options)


def fit(model, epochs=2, **options):
    return model.fit(EXAMPLES, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options).history


def state(model):
    return arrays([*model.variables, *model.optimizer.variables])


def assert_same(first, second, **tolerance):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        np.testing.assert_allclose(one, other, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


def assert_other(first, second):
    assert all(np.any(one != other) for one, other in zip(first, second))


def with_layers(*inner):
    # Names of their own: Resume takes a model with other names for another one.
    generator = keras.Sequential(
        [keras.Input((3,)), layers.Dense(6, name="first"), *inner, layers.Dense(2, name="last")], name="generator"
    )
    twins = [layer.__class__.from_config(layer.get_config()) for layer in inner]
    discriminator = keras.Sequential(
        [keras.Input((2,)), layers.Dense(6, name="first"), *twins, layers.Dense(1, name="last")], name="discriminator"
    )
    return AdversarialNetwork(generator, discriminator, seed=0)


@pytest.mark.parametrize("loss", torch_models.LOSSES)
def test_a_step_is_pytorchs_on_the_written_out_loss(loss, monkeypatch):
    model, noises = torch_models.small_gan(loss), iter(torch_models.NOISES)
    model.compile(*(keras.optimizers.SGD(rate) for rate in torch_models.RATES), run_eagerly=True)
    monkeypatch.setattr(model, "_noise", lambda real: ops.convert_to_tensor(next(noises)))
    logs = model.train_on_batch(torch_models.EXAMPLES, return_dict=True)
    expected = torch_models.recorded()
    weights = np.concatenate(
        [part.ravel() for part in arrays([*model.generator.weights, *model.discriminator.weights])]
    )
    np.testing.assert_allclose(weights, expected[f"{loss} weights"], rtol=1e-4, atol=1e-5)
    names = ("generator_loss", "generator_gradient_norm", "discriminator_loss", "discriminator_gradient_norm")
    assert [float(logs[name]) for name in names] == pytest.approx(expected[f"{loss} logs"].tolist(), rel=1e-4)


def test_each_step_changes_the_weights_of_its_own_network_only():
    for rates in ((0.0, 0.1), (0.1, 0.0)):
        model = compiled(small(), *rates)
        before = arrays(model.generator.weights), arrays(model.discriminator.weights)
        fit(model)
        for rate, weights, network in zip(rates, before, (model.generator, model.discriminator)):
            (assert_other if rate else assert_same)(weights, arrays(network.weights))


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_however_the_step_is_run_it_is_the_same(options):
    if BACKEND == "torch" and "run_eagerly" not in options:
        pytest.skip("Keras runs torch eagerly, one step at a time")
    plain, other = compiled(small()), compiled(small(), **options)
    histories = [fit(model) for model in (plain, other)]
    assert_same(state(plain), state(other))
    assert set(histories[0]) == LOGS
    for name in LOGS:
        assert histories[0][name] == pytest.approx(histories[1][name], rel=1e-4)


@pytest.mark.thorough
def test_the_step_compiles_with_xla():
    if BACKEND == "torch":
        pytest.skip("torch has another compiler")
    model = compiled(small(), jit_compile=True)  # TensorFlow draws other numbers then
    assert np.all(np.isfinite(list(fit(model).values())))
    assert int(model.optimizer.iterations) == int(model.discriminator_optimizer.iterations) == 6


def test_a_file_holds_networks_optimizers_and_noise_so_that_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    model = compiled(with_layers(layers.BatchNormalization()))
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(state(loaded), state(model), rtol=0, atol=0)
    assert int(loaded.discriminator_optimizer.iterations) == int(loaded.optimizer.iterations) == 6
    np.testing.assert_array_equal(loaded.generate(5, seed=3), model.generate(5, seed=3))
    histories = [fit(one) for one in (model, loaded)]
    for name in LOGS:
        assert histories[0][name] == pytest.approx(histories[1][name])
    assert_same(state(loaded), state(model))


def test_a_file_of_an_uncompiled_model_loads(tmp_path):
    model = small(loss="saturating", output_activation="sigmoid")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.loss_name, loaded.seed) == ("saturating", model.seed)
    np.testing.assert_array_equal(loaded.generate(5, seed=3), model.generate(5, seed=3))


def test_resume_gives_the_weights_of_an_uninterrupted_run(tmp_path):
    def run(epochs, folder):
        data = OrderedDataset(EXAMPLES, EXAMPLES, batch_size=8, seed=0)
        model = compiled(with_layers(layers.BatchNormalization(name="normalization"), layers.Dropout(0.3, seed=0)))
        resume = Resume(tmp_path / folder, data)
        return model, model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=[resume]).history

    keras.utils.set_random_seed(0)
    whole, history = run(2, "whole")
    keras.utils.set_random_seed(0)
    run(1, "parts")
    resumed, resumed_history = run(2, "parts")
    assert_same(state(resumed), state(whole), rtol=0, atol=0)
    assert {name: values[-1] for name, values in resumed_history.items()} == pytest.approx(
        {name: values[-1] for name, values in history.items()}
    )


def test_moving_averages_move_in_the_own_step_only():
    normalization = layers.BatchNormalization(momentum=0.5)
    model = compiled(with_layers(normalization), 0.0, 0.0)
    generator_layer, discriminator_layer = (part.layers[1] for part in (model.generator, model.discriminator))
    noise_seed = keras.random.SeedGenerator(0)
    noise, other_noise = (array(keras.random.normal((8, 3), seed=noise_seed)) for _ in range(2))
    model.train_on_batch(EXAMPLES[:8])

    kernel, bias = arrays(model.generator.layers[0].weights)
    mean = (other_noise @ kernel + bias).mean(axis=0)
    np.testing.assert_allclose(array(generator_layer.moving_mean), 0.5 * mean, rtol=1e-4, atol=1e-6)
    kernel, bias = arrays(model.discriminator.layers[0].weights)
    # The generator's output on the first noise, normalized by its own batch.
    inside = arrays(model.generator.layers[0].weights)
    hidden = noise @ inside[0] + inside[1]
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + generator_layer.epsilon)
    out = arrays(model.generator.layers[2].weights)
    fake = hidden @ out[0] + out[1]
    means = [(part @ kernel + bias).mean(axis=0) for part in (EXAMPLES[:8], fake)]
    expected = 0.25 * means[0] + 0.5 * means[1]
    np.testing.assert_allclose(array(discriminator_layer.moving_mean), expected, rtol=1e-4, atol=1e-5)


def test_dropout_draws_anew_in_each_step():
    model = compiled(with_layers(layers.Dropout(0.5, seed=0)), 0.0, 0.0)
    seeds = [part.layers[1].seed_generator.state for part in (model.generator, model.discriminator)]
    before = arrays(seeds)
    fit(model, epochs=1)
    assert_other(before, arrays(seeds))


def test_penalties_of_layers_count_for_their_network():
    penalty = keras.regularizers.L2(0.1)
    generator = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_regularizer=penalty)])
    discriminator = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model = compiled(AdversarialNetwork(generator, discriminator, seed=0), 0.0, 0.0)
    own = {name: float(value) for name, value in model.test_on_batch(EXAMPLES[:8], return_dict=True).items()}
    generator.layers[0].kernel_regularizer = None
    bare = AdversarialNetwork(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), discriminator, seed=0)
    bare.generator.set_weights(generator.get_weights())
    without = {
        name: float(value) for name, value in compiled(bare).test_on_batch(EXAMPLES[:8], return_dict=True).items()
    }
    kernel = array(generator.layers[0].kernel)
    assert own["generator_loss"] - without["generator_loss"] == pytest.approx(0.1 * np.sum(kernel**2), rel=1e-4)
    assert own["discriminator_loss"] == pytest.approx(without["discriminator_loss"], rel=1e-5)


def test_evaluation_and_validation_change_nothing():
    model, validated = compiled(small()), compiled(small())
    fit(model)
    history = fit(validated, validation_data=(EXAMPLES[:10],))
    assert {"val_generator_loss", "val_discriminator_loss"} <= set(history)
    assert_same(state(model), state(validated))
    before = state(model)
    first, second = (model.evaluate(EXAMPLES, batch_size=8, verbose=0, return_dict=True) for _ in range(2))
    assert first == second
    assert set(first) == {"generator_loss", "discriminator_loss"}
    assert_same(state(model), before, rtol=0, atol=0)


def test_generated_examples_follow_from_the_seed_and_leave_the_training_alone():
    model = compiled(small())
    before = state(model)
    examples = model.generate(7, seed=2)
    np.testing.assert_array_equal(examples, model.generate(7, seed=2))
    np.testing.assert_allclose(examples, model.generate(7, seed=2, batch_size=3), atol=1e-6)
    assert np.all(examples != model.generate(7, seed=3))
    assert not np.array_equal(model.generate(7), model.generate(7))
    assert_same(state(model), before, rtol=0, atol=0)
    noise = array(keras.random.normal((7, 3), seed=2))
    np.testing.assert_allclose(model.predict(noise, verbose=0), examples, atol=1e-6)


def test_a_curve_of_nnopt_sets_the_generators_rate():
    model = compiled(small())
    history = fit(model, callbacks=[CyclicalLR(0.25, 0.75, step_size=3)])
    assert history["learning_rate"] == pytest.approx([0.25 + 2 / 6, 0.25 + 1 / 6])
    assert float(array(model.optimizer.learning_rate)) == pytest.approx(0.25 + 1 / 6)
    assert float(array(model.discriminator_optimizer.learning_rate)) == pytest.approx(0.1)


def test_the_discriminator_follows_a_schedule():
    model = small()
    schedule = nnopt.schedules.StepDecay(0.5, [2], 0.1)
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(schedule))
    fit(model, epochs=1)
    assert float(array(model.discriminator_optimizer.learning_rate)) == pytest.approx(0.05)


def test_the_range_test_refuses_two_optimizers():
    with pytest.raises(ValueError, match="must train with one optimizer"):
        nnopt.find_learning_rate(compiled(small()), EXAMPLES)


@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.thorough)])
def test_a_mixed_policy_trains_and_saves(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = small(normalization="batch")
    finally:
        keras.config.set_dtype_policy(before)
    exact = small(normalization="batch")
    assert model.generator.get_layer("hidden_1").compute_dtype == policy.removeprefix("mixed_")
    assert model.generate(2, seed=0).dtype == "float32"
    scaled = isinstance(compiled(model).optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    logs, expected = (one.train_on_batch(EXAMPLES[:8], return_dict=True) for one in (model, compiled(exact)))
    for name in LOGS - {"generator_gradient_norm" if scaled else ""}:  # a first step of float16 may be left out
        assert float(logs[name]) == pytest.approx(float(expected[name]), rel=0.05)
    assert np.all(np.isfinite(list(fit(model).values())))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(state(loaded), state(model), rtol=0, atol=0)


def test_networks_may_be_convolutional_and_judge_by_patches():
    generator = keras.Sequential(
        [keras.Input((4,)), layers.Dense(16), layers.Reshape((4, 4, 1)), layers.Conv2DTranspose(1, 2, strides=2)]
    )
    discriminator = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 3, strides=2), layers.Conv2D(1, 1)])
    model = compiled(AdversarialNetwork(generator, discriminator, seed=0))
    model.fit(RANDOM.random((8, 8, 8, 1)).astype("float32"), verbose=0)
    assert model.generate(3, seed=0).shape == (3, 8, 8, 1)


def test_one_seed_gives_one_model_and_other_seeds_others():
    weights = [arrays(gan((2,), 3, [6], seed=seed).weights[::2]) for seed in (4, 4, 5)]
    assert_same(weights[0], weights[1], rtol=0, atol=0)
    assert_other(weights[0], weights[2])
    keras.utils.set_random_seed(3)
    first = fit(compiled(gan((2,), 3, [6])))
    keras.utils.set_random_seed(3)
    assert fit(compiled(gan((2,), 3, [6]))) == first


def test_the_copied_optimizer_is_another_one_of_the_same_settings():
    model = small()
    model.compile(keras.optimizers.Adam(0.003, beta_1=0.5))
    assert model.discriminator_optimizer is not model.optimizer
    settings = [optimizer.get_config() for optimizer in (model.optimizer, model.discriminator_optimizer)]
    assert settings[0] == settings[1]


@pytest.mark.thorough
def test_the_game_moves_generated_examples_to_the_real_ones():
    model = gan((2,), 2, [16], seed=0)
    model.compile(keras.optimizers.Adam(0.01, beta_1=0.5))

    def distance():
        return np.abs(model.generate(500, seed=0).mean(axis=0) - EXAMPLES.mean(axis=0)).max()

    before, distances = distance(), []
    for epochs in (100, 20, 20, 20):  # the two circle each other: no single moment counts
        model.fit(EXAMPLES, batch_size=24, epochs=epochs, verbose=0)
        distances.append(distance())
    assert np.mean(distances) < before / 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((), 3, [6]), ValueError, "`input_shape` must hold at least 1 integer"),
        (((2,), 0, [6]), ValueError, "`noise_size` must be an integer >= 1. Received: noise_size=0"),
        (((2,), 3, 6), TypeError, "`units` must be a list or tuple"),
    ],
)
def test_a_builder_names_the_wrong_argument(arguments, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        gan(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "wasserstein"}, "`loss` must be one of 'non_saturating'"),
        ({"output_activation": "sigmoidal"}, "`output_activation` must be the name of a Keras activation"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
    ],
)
def test_a_builder_names_the_wrong_option(options, message):
    with pytest.raises(ValueError, match=message):
        gan((2,), 3, [6], **options)


def dense(size, outputs):
    return keras.Sequential([keras.Input((size,)), layers.Dense(outputs)])


@pytest.mark.parametrize(
    ("networks", "error", "message"),
    [
        ((layers.Dense(2), dense(2, 1)), TypeError, "`generator` must be a keras.Model"),
        ((keras.Sequential([layers.Dense(2)]), dense(2, 1)), ValueError, "begin it with keras.Input"),
        ((dense(3, 2), dense(3, 1)), ValueError, "`discriminator` must take what `generator` makes"),
        ((dense(3, 2), dense(2, 2)), ValueError, "`discriminator` must end in one logit"),
        ((keras.Sequential([keras.Input((2,)), layers.ReLU()]), dense(2, 1)), ValueError, "must have weights to train"),
    ],
)
def test_networks_that_do_not_fit_are_refused(networks, error, message):
    with pytest.raises(error, match=message):
        AdversarialNetwork(*networks)


def test_networks_that_share_weights_are_refused():
    shared = layers.Dense(1)
    generator, discriminator = (keras.Sequential([keras.Input((1,)), shared]) for _ in range(2))
    with pytest.raises(ValueError, match="`discriminator` must share no weights"):
        AdversarialNetwork(generator, discriminator)


def test_optimizers_that_would_go_wrong_are_refused():
    model, optimizer = small(), keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match="`discriminator_optimizer` must be another object"):
        model.compile(optimizer, optimizer)
    with pytest.raises(ValueError, match="`optimizer` must have use_ema=False"):
        model.compile(keras.optimizers.SGD(0.1, use_ema=True), keras.optimizers.SGD(0.1))
