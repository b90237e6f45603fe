"""Two networks that train each other: a generator of samples, and a discriminator that tells them from real ones.

The training step is written once, without side effects, for the three backends.
"""

import math

import keras
from keras import ops

from nnopt._gradients import value_and_gradients
from nnopt._keras import inner_optimizer
from nnopt._state import stateless
from nnopt.checks import check_choice, check_instance, check_integer
from nnopt.models._common import check_activation, check_seed, check_sizes, derived_seeds
from nnopt.models.feedforward import mlp

# For each loss what the discriminator's logits of real and of generated examples cost the discriminator, and what those
# of generated ones cost the generator; of each the mean is taken.
LOSSES = {
    "non_saturating": (lambda real: ops.softplus(-real), ops.softplus, lambda fake: ops.softplus(-fake)),
    "saturating": (lambda real: ops.softplus(-real), ops.softplus, lambda fake: -ops.softplus(fake)),
}


def gan(
    input_shape,
    noise_size,
    units,
    *,
    loss="non_saturating",
    activation="leaky_relu",
    output_activation="linear",
    normalization=None,
    initialization="glorot_uniform",
    seed=None,
):
    """Returns an `AdversarialNetwork` of two multilayer perceptrons, one the mirror of the other.

    The generator maps noise, standard normal, through the hidden layers to an example; the discriminator maps an
    example through hidden layers of the same widths, in the opposite order, to one logit. For other networks, such as
    convolutional ones, make an `AdversarialNetwork` of them.

    Args:
        input_shape: Shape of one example, such as (2,) or (8, 8, 1).
        noise_size: Numbers of noise for one example, >= 1.
        units: Widths of the generator's hidden layers, such as [64, 64].
        loss: As in `AdversarialNetwork`.
        activation: Name of a Keras activation, or a callable, for the hidden layers of both.
        output_activation: The same for the examples: "sigmoid" keeps pixels in 0 ... 1, "linear" leaves them free.
        normalization: As in `mlp`, for the generator.
        initialization: As in `mlp`, for both.
        seed: Integer >= 0 from which the weights of both networks and the noise of the training derive seeds. With None
            Keras draws them, so that `keras.utils.set_random_seed` decides.

    Returns:
        An `AdversarialNetwork`: (batch, noise_size) -> (batch, *input_shape).

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> model = gan(input_shape=(2,), noise_size=4, units=[16], seed=0)
    >>> model.compile(keras.optimizers.Adam(0.001))
    >>> history = model.fit(keras.random.normal((64, 2), seed=1), verbose=0)
    >>> sorted(history.history)
    ['discriminator_gradient_norm', 'discriminator_loss', 'generator_gradient_norm', 'generator_loss']
    >>> model.generate(3, seed=2).shape
    (3, 2)

    Reference: Goodfellow et al. 2014, algorithm 1 with one step of the discriminator.
    """
    input_shape = check_sizes("input_shape", input_shape, least=1)
    noise_size = check_integer("noise_size", noise_size, at_least=1)
    units = check_sizes("units", units, least=0)
    output_activation = check_activation("output_activation", output_activation)
    generator_seed, discriminator_seed, noise_seed = derived_seeds(seed, 3)
    hidden = {"activation": activation, "initialization": initialization}

    inner = mlp(
        (noise_size,), units, math.prod(input_shape), normalization=normalization, seed=generator_seed, **hidden
    )
    examples = keras.layers.Activation(output_activation, dtype="float32", name="output_activation")(inner.output)
    examples = keras.layers.Reshape(input_shape, dtype="float32", name="examples")(examples)
    generator = keras.Model(inner.input, examples, name="generator")
    judge = mlp(input_shape, units[::-1], 1, seed=discriminator_seed, **hidden)
    logits = keras.layers.Activation("linear", dtype="float32", name="logits_float32")(judge.output)
    discriminator = keras.Model(judge.input, logits, name="discriminator")
    return AdversarialNetwork(generator, discriminator, loss=loss, seed=noise_seed)


@keras.saving.register_keras_serializable("nnopt")
class AdversarialNetwork(keras.Model):
    """A generator G and a discriminator D, trained in turn on each batch of `fit(x)`.

    With logits D(x), noise z, standard normal, and softplus(t) = log(1 + exp(t)), a step takes

        discriminator_loss = mean softplus(-D(x)) + mean softplus(D(G(z)))      and updates D by its gradient, then
        generator_loss     = mean softplus(-D(G(z')))                           and updates G, with new noise z'.

    This is the loss "non_saturating" of Goodfellow et al. 2014. "saturating" has mean -softplus(D(G(z'))), the
    generator's side of their equation 1. Penalties that layers add, such as `kernel_regularizer`, count for the network
    they belong to.

    A network's moving averages and dropout seeds move in its own step only: the generator's step leaves all of the
    discriminator as it is, and the other way round. The discriminator meets real and generated examples in two calls,
    so that its batch normalization takes the statistics of each by itself.

    `fit`, with `x` alone (labels and sample weights play no part), logs the means over the epoch of both losses and of
    both gradients' norms. `evaluate` and validation data give the losses, at noise that stays the same until the next
    training step. Calling the model, or `predict`, maps noise to examples.

    A `.keras` file holds both networks, both optimizers with their states, and the state of the noise; of dropout
    layers Keras saves no seed state. `nnopt.callbacks.Resume` keeps that, too.

    Args:
        generator: A built keras.Model with one input, the noise, and one output, the examples. The shape of the noise
            is that of its input and must be known but for the batch.
        discriminator: A built keras.Model with one input, the examples, and one output of logits, (batch, ..., 1).
        loss: "non_saturating" or "saturating".
        seed: Integer >= 0 for the noise of the training. With None Keras draws it.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or the networks do not fit.

    Example:

    >>> generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> discriminator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model = AdversarialNetwork(generator, discriminator, seed=0)
    >>> model.compile(keras.optimizers.Adam(0.001), keras.optimizers.Adam(0.004))
    >>> logs = model.train_on_batch(keras.random.normal((8, 2), seed=1), return_dict=True)
    >>> len(logs), int(model.optimizer.iterations), int(model.discriminator_optimizer.iterations)
    (4, 1, 1)

    Reference: Goodfellow et al. 2014, algorithm 1 and section 3.
    """

    def __init__(self, generator, discriminator, *, loss="non_saturating", seed=None, name=None):
        super().__init__(name=name)
        _check_networks(generator, discriminator)
        self.generator = generator
        self.discriminator = discriminator
        self.loss_name = check_choice("loss", loss, tuple(LOSSES))
        self.seed = check_seed(seed)
        self.noise_seed = keras.random.SeedGenerator(self.seed)
        self.discriminator_optimizer = None
        names = [
            f"{network}_{value}" for value in ("loss", "gradient_norm") for network in ("generator", "discriminator")
        ]
        self._means = [keras.metrics.Mean(name=name) for name in names]
        self.built = True

    def compile(
        self,
        optimizer="adam",
        discriminator_optimizer=None,
        *,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
    ):
        """Sets the two optimizers, new or with the state that they have.

        Args:
            optimizer: The generator's: a keras.optimizers.Optimizer or a name. It is `model.optimizer`, so callbacks
                that set a rate set the generator's; give the discriminator's optimizer a schedule of `nnopt.schedules`.
            discriminator_optimizer: The discriminator's; None for a copy of the generator's as it is now.
            run_eagerly, steps_per_execution, jit_compile: As in `keras.Model.compile`.

        Raises:
            ValueError: Both are the same object, or one has `use_ema`, whose averages Keras would put into both
                networks.
        """
        optimizer = keras.optimizers.get(optimizer)
        if discriminator_optimizer is None:
            discriminator_optimizer = type(optimizer).from_config(optimizer.get_config())
        discriminator_optimizer = keras.optimizers.get(discriminator_optimizer)
        if optimizer is discriminator_optimizer:
            raise ValueError(
                "`discriminator_optimizer` must be another object than `optimizer`, or None for a copy of it. "
                f"Received: discriminator_optimizer={discriminator_optimizer!r}"
            )
        optimizer = _prepared("optimizer", optimizer, self.generator)
        self.discriminator_optimizer = _prepared("discriminator_optimizer", discriminator_optimizer, self.discriminator)
        super().compile(
            optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=False,
        )

    @property
    def variables(self):
        """All state of the training but that of `optimizer` and the metrics: so JAX and `Resume` carry it along."""
        if self.discriminator_optimizer is None:
            return super().variables
        return [*super().variables, *self.discriminator_optimizer.variables]

    @property
    def metrics(self):
        """The means of losses and gradient norms."""
        return self._means

    def call(self, inputs, training=False):
        """Maps noise to examples."""
        return self.generator(inputs, training=training)

    def generate(self, count, seed=None, batch_size=1024):
        """Returns examples of the generator as it is in prediction.

        Args:
            count: Number of examples, >= 1.
            seed: Integer >= 0 for the noise; None for keras.random's own stream. The noise of the training is not
                touched.
            batch_size: Examples computed at once, >= 1. It changes none of them but by rounding.

        Returns:
            A NumPy array, (count, *shape of an example).
        """
        count = check_integer("count", count, at_least=1)
        batch_size = check_integer("batch_size", batch_size, at_least=1)
        seed = check_seed(seed)
        noise = keras.random.normal((count, *self.generator.input_shape[1:]), seed=seed)
        batches = [self.generator(noise[i : i + batch_size], training=False) for i in range(0, count, batch_size)]
        return ops.convert_to_numpy(ops.concatenate(batches))

    def train_step(self, *arguments):
        """One step of the discriminator and one of the generator; JAX hands over all state and takes it back."""
        if keras.backend.backend() != "jax":
            return self._train(*arguments)
        parts = [
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        ]
        return stateless(self._train, parts, *arguments)

    def test_step(self, *arguments):
        """Both losses, without a step."""
        if keras.backend.backend() != "jax":
            return self._test(*arguments)
        parts = [self.trainable_variables, self.non_trainable_variables, self.metrics_variables]
        return stateless(self._test, parts, *arguments)

    def _train(self, data):
        real = keras.utils.unpack_x_y_sample_weight(data)[0]
        noise, other_noise = self._noise(real), self._noise(real)
        fake, _, _ = _call(self.generator, _values(self.generator.trainable_variables), noise)
        fake = ops.stop_gradient(fake)
        discriminator = self._update(
            self.discriminator,
            self.discriminator_optimizer,
            lambda weights: self._discriminator_loss(weights, real, fake),
        )
        generator = self._update(
            self.generator, self.optimizer, lambda weights: self._generator_loss(weights, other_noise)
        )
        return self._log(real, generator[0], discriminator[0], generator[1], discriminator[1])

    def _test(self, data):
        real = keras.utils.unpack_x_y_sample_weight(data)[0]
        state = self.noise_seed.state
        with keras.StatelessScope(state_mapping=[(state, ops.copy(state))]):
            noise = self._noise(real)
        weights, other_weights = (_values(part.trainable_variables) for part in (self.generator, self.discriminator))
        fake, _, _ = _call(self.generator, weights, noise, training=False)
        discriminator_loss, _ = self._discriminator_loss(other_weights, real, fake, training=False)
        generator_loss, _ = self._generator_loss(weights, noise, training=False)
        return self._log(real, generator_loss, discriminator_loss)

    def _noise(self, real):
        return keras.random.normal((ops.shape(real)[0], *self.generator.input_shape[1:]), seed=self.noise_seed)

    def _discriminator_loss(self, weights, real, fake, training=True):
        """Returns the loss at other weights than the discriminator has, and its state afterwards."""
        of_real, of_fake, _ = LOSSES[self.loss_name]
        logits, state, _ = _call(self.discriminator, weights, real, training=training)
        fake_logits, state, penalty = _call(self.discriminator, weights, fake, state, training)
        return ops.mean(of_real(logits)) + ops.mean(of_fake(fake_logits)) + penalty, state

    def _generator_loss(self, weights, noise, training=True):
        _, _, deceiving = LOSSES[self.loss_name]
        fake, state, penalty = _call(self.generator, weights, noise, training=training)
        logits, _, _ = _call(
            self.discriminator, _values(self.discriminator.trainable_variables), fake, training=training
        )
        return ops.mean(deceiving(logits)) + penalty, state

    def _update(self, network, optimizer, loss_function):
        """Makes one step of one network; returns its loss and the norm of its gradient before the step."""
        scale = optimizer.scale_loss(ops.ones(()))

        def scaled(weights):
            loss, state = loss_function(weights)
            return loss * scale, (loss, state)

        variables = network.trainable_variables
        (_, (loss, state)), gradients = value_and_gradients(scaled, _values(variables))
        norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients)) / scale
        for variable, value in zip(network.non_trainable_variables, state):
            variable.assign(value)
        _apply(optimizer, gradients, variables)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            norm = ops.where(ops.isfinite(norm), norm, 0.0)  # the optimizer leaves such a step out
        return loss, norm

    def _log(self, real, *values):
        for mean, value in zip(self._means, values):
            mean.update_state(value, sample_weight=ops.cast(ops.shape(real)[0], "float32"))
        return {mean.name: mean.result() for mean, _ in zip(self._means, values)}

    def get_config(self):
        networks = {
            "generator": keras.saving.serialize_keras_object(self.generator),
            "discriminator": keras.saving.serialize_keras_object(self.discriminator),
        }
        return {**networks, "loss": self.loss_name, "seed": self.seed, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        networks = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("generator", "discriminator")
        }
        return cls(**{**config, **networks})

    def get_compile_config(self):
        """Returns what `compile` was given, for a `.keras` file."""
        if not self.compiled:
            return {}
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "discriminator_optimizer": keras.saving.serialize_keras_object(self.discriminator_optimizer),
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
            "jit_compile": self.jit_compile,
        }

    def compile_from_config(self, config):
        """Compiles as the saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def save_own_variables(self, store):
        """Saves the state of the noise: Keras leaves out seed generators."""
        store["noise"] = ops.convert_to_numpy(self.noise_seed.state)

    def load_own_variables(self, store):
        """Takes back what `save_own_variables` saved."""
        self.noise_seed.state.assign(store["noise"][()])


def _call(network, weights, inputs, state=None, training=True):
    """Returns output (logits and examples in float32), state afterwards and penalty of a network at given weights."""
    state = _values(network.non_trainable_variables) if state is None else state
    output, state, penalties = network.stateless_call(weights, state, inputs, training=training, return_losses=True)
    return ops.cast(output, "float32"), state, sum(penalties, ops.zeros(()))


def _values(variables):
    return [ops.copy(variable) for variable in variables]


def _apply(optimizer, gradients, variables):
    if keras.backend.backend() != "jax":
        optimizer.apply(gradients, variables)
        return
    # Stateless even though this runs inside a scope: a loss scale's branches may assign nothing outside them.
    values, state = optimizer.stateless_apply(_values(optimizer.variables), gradients, _values(variables))
    for variable, value in zip([*variables, *optimizer.variables], [*values, *state]):
        variable.assign(value)


def _prepared(name, optimizer, network):
    """Returns an optimizer with variables for one network, with a loss scale where it computes in float16."""
    inner = inner_optimizer(optimizer)
    if inner.use_ema:
        raise ValueError(
            f"`{name}` must have use_ema=False: Keras would put its averages into both networks. "
            f"Received: {name}={optimizer!r} with use_ema=True"
        )
    if inner is optimizer and any(layer.compute_dtype == "float16" for layer in network.layers):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if not optimizer.built:
        optimizer.build(network.trainable_variables)
    return optimizer


def _check_networks(generator, discriminator):
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        check_instance(name, network, keras.Model, "a keras.Model")
        shapes = (network.input_shape, network.output_shape) if network.built and network.inputs else (None, None)
        if not all(isinstance(shape, tuple) and all(isinstance(size, int) for size in shape[1:]) for shape in shapes):
            raise ValueError(
                f"`{name}` must have one input and one output of known shapes: begin it with keras.Input. "
                f"Received: {name} from {shapes[0]} to {shapes[1]}"
            )
        if not network.trainable_variables:
            raise ValueError(f"`{name}` must have weights to train. Received: {name}={network!r}")
    if generator.output_shape != discriminator.input_shape:
        raise ValueError(
            "`discriminator` must take what `generator` makes. Received: "
            f"generator to {generator.output_shape}, discriminator from {discriminator.input_shape}"
        )
    if discriminator.output_shape[-1] != 1:
        raise ValueError(
            "`discriminator` must end in one logit (batch, ..., 1). "
            f"Received: discriminator to {discriminator.output_shape}"
        )
    own = {id(variable) for variable in generator.variables}
    if any(id(variable) in own for variable in discriminator.variables):
        raise ValueError(f"`discriminator` must share no weights with `generator`. Received: {discriminator!r}")
