"""The Transformer, encoder and decoder: one sequence of tokens becomes another, by attention alone.

It is trained by teacher forcing, `model([source, target])`, and decodes step by step: `initial_state`, then `step`.
"""

import math

import keras
from keras import ops

from nnopt.checks import check_integer, check_number
from nnopt.models._common import check_seed
from nnopt.models._encoder_decoder import EncoderDecoder, Layers, check_vocabularies, never_empty, pair, tokens_of


def transformer(
    source_vocabulary,
    target_vocabulary,
    width,
    *,
    depth=2,
    heads=4,
    hidden=None,
    maximal_length=256,
    dropout=0.0,
    seed=None,
):
    """Returns a Transformer, encoder and decoder, that ends in logits.

    Each block adds to its input what attention and a feedforward network make of it, `x + F(normalize(x))`
    (normalization first, which trains without warm-up); one more normalization ends the encoder and the decoder.
    A head computes `softmax(Q K^T / sqrt(width / heads)) V`. The encoder's positions see the whole source, the
    decoder's the whole source and the target up to themselves. Token vectors are multiplied by sqrt(width); to them is
    added `PE(t, 2i) = sin(t / 10000^(2i / width))` and `PE(t, 2i + 1) = cos(...)`, which has no weights and no end.

    Token 0 is padding and stands at the end. Padded source positions get a weight of exactly 0; padded target
    positions count neither in the loss nor in the metrics (see `seq2seq`). A source that is all padding is read as one
    padding token.

    Args:
        source_vocabulary: Number of different source tokens, >= 2, the padding token 0 among them.
        target_vocabulary: Number of different target tokens, >= 2, the padding token 0 among them.
        width: Width of the vectors that all blocks read and write, even and a multiple of `heads`.
        depth: Number of blocks of the encoder and of the decoder, >= 1.
        heads: Number of attention heads, >= 1, each of width / heads.
        hidden: Units of the feedforward networks' hidden layer, >= 1. None means 4 * width.
        maximal_length: Steps that `step` has room for, >= 1 (later logits are NaN).
        dropout: Share set to zero in training of the token vectors' entries and of what each part of a block adds, in
            [0, 1).
        seed: Integer >= 0 from which every kernel and every dropout layer derives a seed of its own. With None Keras
            draws them, so that `keras.utils.set_random_seed` decides.

    Returns:
        A `keras.Model` with its weights made: `model([source, target])`, integers (batch, source time) and (batch,
        target time), -> float32 logits (batch, target time, target_vocabulary). `target` is what the decoder reads,
        from the start token on; the logits at each position are those of the next token. Further methods:

        - `initial_state(source)` -> state, a dict of tensors whose first axis is the batch; `maximal_length=` gives
          room for another number of steps;
        - `step(tokens, state)` -> (logits (batch, target_vocabulary), new state), from the previous tokens (batch,);
        - `attention_weights([source, target])` -> (batch, target time, source time): how the last decoder block
          weighs the source, the mean of its heads; each row of sum 1.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> import numpy as np
    >>> model = transformer(20, 30, 16, depth=1, heads=2, seed=0)
    >>> source, target = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[1, 4], [1, 5]])
    >>> tuple(model([source, target]).shape)
    (2, 2, 30)
    >>> logits, state = model.step(target[:, 0], model.initial_state(source, maximal_length=2))
    >>> tuple(logits.shape)
    (2, 30)

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3, eq. 1; normalization first: Xiong et al.
    2020, "On layer normalization in the Transformer architecture", figure 1b.
    """
    heads = check_integer("heads", heads, at_least=1)
    width = check_integer("width", width, at_least=2)
    if width % heads or width % 2:
        raise ValueError(f"`width` must be even and a multiple of heads={heads}. Received: width={width}")
    return Transformer(
        {
            **check_vocabularies(source_vocabulary, target_vocabulary),
            "width": width,
            "depth": check_integer("depth", depth, at_least=1),
            "heads": heads,
            "hidden": 4 * width if hidden is None else check_integer("hidden", hidden, at_least=1),
            "maximal_length": check_integer("maximal_length", maximal_length, at_least=1),
            "dropout": check_number("dropout", dropout, at_least=0, below=1),
            "seed": check_seed(seed),
        }
    )


@keras.saving.register_keras_serializable("nnopt")
class Transformer(EncoderDecoder):
    """The network that `transformer` describes and makes, from its checked arguments, `settings`."""

    def __init__(self, settings, name="transformer", **arguments):
        super().__init__(settings, name=name, **arguments)
        self.width, self.maximal_length = settings["width"], settings["maximal_length"]
        layers = Layers(settings["seed"], settings["dropout"], self.dtype_policy, most=8 + 16 * settings["depth"])
        deviation = self.width**-0.5  # the product with sqrt(width) then has a variance of 1
        self.source_embedding, self.target_embedding = (
            layers.embedding(settings[f"{side}_vocabulary"], self.width, f"{side}_embedding", deviation)
            for side in ("source", "target")
        )
        self.source_dropout, self.target_dropout = (layers.dropout(f"{side}_dropout") for side in ("source", "target"))
        self.encoder, self.decoder = (
            [_Block(layers, settings, side == "decoder", f"{side}_{i + 1}") for i in range(settings["depth"])]
            for side in ("encoder", "decoder")
        )
        self.encoder_normalization = _normalization(layers, self.width, "encoder_normalization")
        self.decoder_normalization = _normalization(layers, self.width, "decoder_normalization")
        self.logits = layers.logits(settings["target_vocabulary"], self.width)
        self.built = True

    def _teacher_forced(self, source, target, training):
        memory, visible = self._encode(source, training)
        x = self._embed(target, "target", training)
        for block in self.decoder:
            x, _ = block(x, memory=memory, visible=visible, training=training)
        return self.logits(self.decoder_normalization(x))

    def initial_state(self, source, maximal_length=None):
        """Returns the state from which `step` decodes `source`, integers (batch, source time): a dict of tensors.

        `maximal_length` is the number of steps that it has room for, that of the model by default.
        """
        length = self.maximal_length
        if maximal_length is not None:
            length = check_integer("maximal_length", maximal_length, at_least=1)
        source = tokens_of("source", source, 2)
        memory, visible = self._encode(source)
        state = {"position": ops.zeros_like(source[:, 0]), "visible": visible}
        for number, block in enumerate(self.decoder):
            for name, value in block.initial_state(memory, length).items():
                state[f"{name}_{number}"] = value
        return state

    def step(self, tokens, state):
        """Returns the logits (batch, target_vocabulary) after the previous `tokens`, (batch,), and the new state."""
        position = state["position"]
        x = self.target_embedding(tokens_of("tokens", tokens, 1)) * math.sqrt(self.width)
        x = (x + self._positions(position))[:, None]
        new = {**state, "position": position + 1}
        for number, block in enumerate(self.decoder):
            own = {name: state[f"{name}_{number}"] for name in block.cached}
            x, own = block.step(x, own, position, state["visible"])
            new.update({f"{name}_{number}": value for name, value in own.items()})
        logits = self.logits(self.decoder_normalization(x))[:, 0]
        room = ops.shape(state["keys_0"])[1]
        return ops.where((position < room)[:, None], logits, float("nan")), new

    def attention_weights(self, inputs):
        """Returns how the last decoder block weighs the source, mean of heads: (batch, target time, source time)."""
        source, target = pair(inputs)
        source = tokens_of("source", source, 2)
        memory, visible = self._encode(source)
        x = self._embed(tokens_of("target", target, 2), "target")
        for block in self.decoder:
            x, weights = block(x, memory=memory, visible=visible, return_weights=block is self.decoder[-1])
        weights = ops.mean(ops.cast(weights, "float32"), axis=1)
        return weights * ops.cast(ops.not_equal(source, 0), "float32")[:, None]

    def _encode(self, source, training=None):
        """Returns the memory (batch, source time, width) and which of its positions count."""
        visible = never_empty(ops.not_equal(source, 0))
        x = self._embed(source, "source", training)
        for block in self.encoder:
            x, _ = block(x, visible=visible, training=training)
        return self.encoder_normalization(x), visible

    def _embed(self, tokens, side, training=None):
        x = getattr(self, f"{side}_embedding")(tokens) * math.sqrt(self.width)
        x = x + self._positions(ops.arange(ops.shape(tokens)[1], dtype="int32"))
        return getattr(self, f"{side}_dropout")(x, training=training)

    def _positions(self, positions):
        return ops.cast(_sinusoids(positions, self.width), self.compute_dtype)


class _Block(keras.layers.Layer):
    """One block: self-attention, attention over a memory if the block reads one, and a feedforward network.

    A block that reads a memory belongs to a decoder: its self-attention is causal.
    """

    def __init__(self, layers, settings, reads_memory, name):
        # The block's name is in those of its layers, so that no two weights have the same path.
        super().__init__(dtype=layers.policy, name=name)
        width, heads, hidden = settings["width"], settings["heads"], settings["hidden"]
        self.reads_memory = reads_memory
        self.own = _attention(layers, width, heads, f"{name}_self_attention")
        self.own_normalization = _normalization(layers, width, f"{name}_self_attention_normalization")
        self.own_dropout = layers.dropout(f"{name}_self_attention_dropout")
        if reads_memory:
            self.cross = _attention(layers, width, heads, f"{name}_cross_attention")
            self.cross_normalization = _normalization(layers, width, f"{name}_cross_attention_normalization")
            self.cross_dropout = layers.dropout(f"{name}_cross_attention_dropout")
        self.hidden = layers.dense(hidden, width, f"{name}_hidden", activation="relu", use_bias=True)
        self.output_layer = layers.dense(width, hidden, f"{name}_output", use_bias=True)
        self.normalization = _normalization(layers, width, f"{name}_normalization")
        self.dropout = layers.dropout(f"{name}_dropout")
        self.cached = ("keys", "values", "memory_keys", "memory_values")
        self.built = True

    def call(self, x, visible, memory=None, training=None, return_weights=False):
        """Returns the block's output and, if wanted, the weights (batch, heads, target time, source time)."""
        # `visible`, (batch, source time), is not called mask, which Keras would attach to the outputs.
        visible = visible[:, None]
        y = self.own_normalization(x)
        # Target padding needs no mask: it is at the end, where no position that counts sees it.
        which = {"use_causal_mask": True} if self.reads_memory else {"attention_mask": visible}
        y = self.own(y, y, **which)
        x, weights = x + self.own_dropout(y, training=training), None
        if self.reads_memory:
            y = self.cross_normalization(x)
            y = self.cross(y, memory, attention_mask=visible, return_attention_scores=return_weights)
            if return_weights:
                y, weights = y
            x = x + self.cross_dropout(y, training=training)
        return x + self.dropout(self._feed_forward(x), training=training), weights

    def _feed_forward(self, x):
        return self.output_layer(self.hidden(self.normalization(x)))

    def initial_state(self, memory, length):
        """Returns room for the keys and values of `length` steps, and those of the memory, by name."""
        keys, values = self.cross.key_dense(memory), self.cross.value_dense(memory)
        room = ops.repeat(ops.zeros_like(keys[:, :1]), length, axis=1)  # (batch, length, heads, width / heads)
        return dict(zip(self.cached, (room, room, keys, values)))

    def step(self, x, state, position, visible):
        """Returns the output for one position, `x` (batch, 1, width), and the state with its keys and values."""
        times = ops.arange(ops.shape(state["keys"])[1], dtype=position.dtype)[None]
        here = ops.equal(times, position[:, None])[:, :, None, None]
        y = self.own_normalization(x)
        keys = ops.where(here, self.own.key_dense(y), state["keys"])
        values = ops.where(here, self.own.value_dense(y), state["values"])
        x = x + _attend(self.own, y, keys, values, times <= position[:, None])
        y = self.cross_normalization(x)
        x = x + _attend(self.cross, y, state["memory_keys"], state["memory_values"], visible)
        return x + self._feed_forward(x), {**state, "keys": keys, "values": values}


def _attend(layer, x, keys, values, mask):
    """Returns what `layer`, a MultiHeadAttention, does for `x` with keys and values that are computed already."""
    y = ops.dot_product_attention(layer.query_dense(x), keys, values, mask=mask[:, None, None])
    return layer.output_dense(y)


def _attention(layers, width, heads, name):
    """Returns multi-head attention whose kernels are Glorot's for matrices of width x width.

    Keras would give queries, keys and values the same numbers where there is a seed, and takes the fans from the
    three-dimensional kernel as if it were a convolution's.
    """
    layer = keras.layers.MultiHeadAttention(heads, width // heads, dtype=layers.policy, name=name)
    layer.build((None, None, width), (None, None, width))
    for dense in (layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense):
        kernel = layers.glorot()((width, width), dtype=dense.kernel.dtype)
        dense.kernel.assign(ops.reshape(kernel, dense.kernel.shape))
    return layer


def _normalization(layers, width, name):
    layer = keras.layers.LayerNormalization(epsilon=1e-5, dtype=layers.policy, name=name)
    layer.build((None, None, width))
    return layer


def _sinusoids(positions, width):
    """Returns the positional encoding of `positions`, integers of any shape, as float32 (..., width)."""
    rates = ops.exp(ops.arange(0, width, 2, dtype="float32") * (-math.log(10000.0) / width))
    angles = ops.cast(positions, "float32")[..., None] * rates
    pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (..., width / 2, 2)
    return ops.reshape(pairs, (*ops.shape(positions), width))
