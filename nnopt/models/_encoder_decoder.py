"""What `seq2seq` and `transformer` share: their form, the mask of their logits, saving, the layers that both use."""

import keras
from keras import ops

from nnopt.checks import check_integer
from nnopt.models._common import derived_seeds, logits_dtype


class EncoderDecoder(keras.Model):
    """A model [source, target] -> logits. A subclass fills in `_teacher_forced(source, target, training)`."""

    def __init__(self, settings, **arguments):
        super().__init__(**arguments)
        self.settings = settings
        self.mark = _Mark(dtype=self.dtype_policy, name="mark")

    def call(self, inputs, training=None):
        source, target = pair(inputs)
        return self.mark(self._teacher_forced(source, target, training), mask=ops.not_equal(target, 0))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # Once more, since on JAX the mask does not outlive the computation of the gradient.
        y_pred = self.mark(y_pred, mask=ops.not_equal(pair(x)[1], 0))
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self):
        return {**super().get_config(), "settings": dict(self.settings)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


class _Mark(keras.layers.Layer):
    """Attaches `mask` to its input, for the loss and the metrics.

    Inside `call`, since Keras on JAX trains by a way that passes the `compute_mask` of the model itself by.
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.supports_masking = True
        self.autocast = False  # logits stay in float32

    def call(self, x, mask=None):
        return x


class Layers:
    """Makes the layers of one network, built, each with the next seed of its kind and the network's dtype policy."""

    def __init__(self, seed, dropout, policy, most=1024, noise_shape=None):
        self.rate, self.policy, self.noise_shape = dropout, policy, noise_shape
        self.seeds, self.dropout_seeds = iter(derived_seeds(seed, most)), iter(derived_seeds(seed, most, stream=1))

    def glorot(self):
        return keras.initializers.GlorotUniform(seed=next(self.seeds))

    def embedding(self, vocabulary, width, name, deviation=None):
        """Returns learned vectors, uniform in -0.1 ... 0.1 at first, or normal with a standard deviation."""
        seed = next(self.seeds)
        initializer = keras.initializers.RandomUniform(-0.1, 0.1, seed=seed)
        if deviation is not None:
            initializer = keras.initializers.RandomNormal(stddev=deviation, seed=seed)
        # Not mask_zero: masks are computed once, where they are used.
        layer = keras.layers.Embedding(vocabulary, width, initializer, dtype=self.policy, name=name)
        layer.build()
        return layer

    def dense(self, units, inputs, name, activation=None, use_bias=False):
        layer = keras.layers.Dense(units, activation, use_bias, self.glorot(), dtype=self.policy, name=name)
        layer.build((None, inputs))
        return layer

    def dropout(self, name):
        seed = next(self.dropout_seeds)
        return keras.layers.Dropout(self.rate, self.noise_shape, seed, dtype=self.policy, name=name)

    def logits(self, vocabulary, inputs):
        dtype = logits_dtype(self.policy)
        layer = keras.layers.Dense(vocabulary, kernel_initializer=self.glorot(), dtype=dtype, name="logits")
        layer.build((None, inputs))
        return layer


def never_empty(mask):
    """Returns `mask`, (batch, time), with the first position of rows that are all padding counted, too.

    Attention over nothing is NaN on some backends, and cuDNN refuses sequences without a step.
    """
    empty = ops.logical_not(ops.any(mask, axis=1, keepdims=True))
    first = ops.equal(ops.arange(ops.shape(mask)[1], dtype="int32"), 0)[None]
    return ops.logical_or(mask, ops.logical_and(empty, first))


def pair(inputs):
    """Returns `inputs` if it is [source, target]."""
    if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
        raise ValueError(
            "`inputs` must be [source, target], integers (batch, source time) and (batch, target time). "
            f"Received: inputs={inputs!r} (of type {type(inputs).__name__})"
        )
    return inputs


def tokens_of(name, tokens, rank):
    """Returns `tokens` as an int32 tensor, checked to have as many axes as `rank`."""
    tokens = ops.cast(ops.convert_to_tensor(tokens), "int32")
    if len(tokens.shape) != rank:
        rule = "(batch,)" if rank == 1 else "(batch, time)"
        raise ValueError(f"`{name}` must have the shape {rule}. Received: {name} of shape {tuple(tokens.shape)}")
    return tokens


def check_vocabularies(source_vocabulary, target_vocabulary):
    """Returns both sizes by name: token 0 is padding, and one more is needed to say anything."""
    return {
        "source_vocabulary": check_integer("source_vocabulary", source_vocabulary, at_least=2),
        "target_vocabulary": check_integer("target_vocabulary", target_vocabulary, at_least=2),
    }
