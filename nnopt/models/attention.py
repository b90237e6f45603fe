"""Networks that turn one sequence of tokens into another: recurrent ones with or without attention, the Transformer.

Both are trained by teacher forcing, `model([source, target])`, and decode step by step: `initial_state`, then `step`.
"""

import math

import keras
from keras import ops

from nnopt.checks import check_choice, check_integer, check_number
from nnopt.models.feedforward import _seeds

RECURRENT = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
CELLS = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}


def seq2seq(
    source_vocabulary,
    target_vocabulary,
    units,
    *,
    embedding,
    cell="lstm",
    attention="luong",
    dropout=0.0,
    seed=None,
):
    """Returns a recurrent encoder-decoder network, with or without attention, that ends in logits.

    A bidirectional layer reads the source into memory vectors m_j (both directions side by side). The decoder starts
    at `tanh(W s + b)`, s being the encoder's last states, and has the states h_t. Logits follow from
    `tanh(W_c [c_t; h_t])`, where the context `c_t = sum_j a_tj m_j` has the weights `a_t = softmax_j(score)`:

    - "luong": `score = h_t . W m_j`, Luong's "general" score, computed for all target positions at once after the
      recurrence, which so stays one fused layer. There is no input feeding: c_t does not enter the next state.
    - "bahdanau": `score = v . tanh(W h_{t-1} + U m_j)`, inside the recurrence: the decoder attends with its previous
      state and then reads the embedded token and c_t. Slower: one step after the other.
    - None: no c_t anywhere. All that the decoder knows of the source is its initial state (as Sutskever et al. 2014).

    Token 0 is padding and stands at the end. Padded source positions get a weight of exactly 0 and change no state;
    padded target positions count neither in the loss nor in the metrics: the logits carry a mask that Keras uses. (A
    metric of Keras' weighs a token by 1 / the padded length of its batch, and the loss of an epoch is the mean over
    batches: both are means over tokens where all batches have equally many of them.) A source that is all padding is
    read as one padding token, and its context is 0.

    Args:
        source_vocabulary: Number of different source tokens, >= 2, the padding token 0 among them.
        target_vocabulary: Number of different target tokens, >= 2, the padding token 0 among them.
        units: Number of units of the decoder and of each direction of the encoder, >= 1.
        embedding: Width of the learned token vectors, >= 1.
        cell: "lstm" or "gru".
        attention: "luong", "bahdanau" or None.
        dropout: Share of the token vectors' entries, and of those before the logits, set to zero in training, in
            [0, 1).
        seed: Integer >= 0 from which every kernel and every dropout layer derives a seed of its own. With None Keras
            draws them, so that `keras.utils.set_random_seed` decides.

    Returns:
        A `keras.Model` with its weights made: `model([source, target])`, integers (batch, source time) and (batch,
        target time), -> float32 logits (batch, target time, target_vocabulary). `target` is what the decoder reads,
        from the start token on; the logits at each position are those of the next token. Further methods:

        - `initial_state(source)` -> state, a dict of tensors whose first axis is the batch;
        - `step(tokens, state)` -> (logits (batch, target_vocabulary), new state), from the previous tokens (batch,);
        - `attention_weights([source, target])` -> (batch, target time, source time), each row of sum 1.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> import numpy as np
    >>> model = seq2seq(20, 30, 16, embedding=8, attention="luong", seed=0)
    >>> source, target = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[1, 4], [1, 5]])
    >>> tuple(model([source, target]).shape)
    (2, 2, 30)
    >>> tuple(model.attention_weights([source, target]).shape)
    (2, 2, 3)
    >>> logits, state = model.step(target[:, 0], model.initial_state(source))
    >>> tuple(logits.shape)
    (2, 30)

    Reference: Bahdanau, Cho and Bengio 2015, "Neural machine translation by jointly learning to align and translate",
    section 3 and appendix A.1.2; Luong, Pham and Manning 2015, "Effective approaches to attention-based neural machine
    translation", eqs. 5, 7, 8; Sutskever, Vinyals and Le 2014 (no attention).
    """
    if attention is not None:
        check_choice("attention", attention, ("luong", "bahdanau"))
    return Seq2Seq(
        check_integer("source_vocabulary", source_vocabulary, at_least=2),
        check_integer("target_vocabulary", target_vocabulary, at_least=2),
        check_integer("units", units, at_least=1),
        embedding=check_integer("embedding", embedding, at_least=1),
        cell=check_choice("cell", cell, tuple(RECURRENT)),
        attention=attention,
        dropout=check_number("dropout", dropout, at_least=0, below=1),
        seed=_check_seed(seed),
    )


def transformer(
    source_vocabulary,
    target_vocabulary,
    width,
    *,
    depth=2,
    heads=4,
    hidden=None,
    maximal_length=256,
    positions="sinusoidal",
    dropout=0.0,
    seed=None,
):
    """Returns a Transformer, encoder and decoder, that ends in logits.

    Each block adds to its input what attention and a feedforward network make of it, `x + F(normalize(x))`
    (normalization first, which trains without warm-up); one more normalization ends the encoder and the decoder.
    A head computes `softmax(Q K^T / sqrt(width / heads)) V`. The encoder's positions see the whole source, the
    decoder's the whole source and the target up to themselves. Token vectors are multiplied by sqrt(width); to them is
    added `PE(t, 2i) = sin(t / 10000^(2i / width))` and `PE(t, 2i + 1) = cos(...)`, or learned vectors.

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
        maximal_length: Steps that `step` has room for, >= 1 (later logits are NaN), and, with learned positions, the
            longest source and target.
        positions: "sinusoidal", which has no weights and no end, or "learned".
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
        - `attention_weights([source, target], layer=-1)` -> (batch, target time, source time): how a decoder block
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
        check_integer("source_vocabulary", source_vocabulary, at_least=2),
        check_integer("target_vocabulary", target_vocabulary, at_least=2),
        width,
        depth=check_integer("depth", depth, at_least=1),
        heads=heads,
        hidden=4 * width if hidden is None else check_integer("hidden", hidden, at_least=1),
        maximal_length=check_integer("maximal_length", maximal_length, at_least=1),
        positions=check_choice("positions", positions, ("sinusoidal", "learned")),
        dropout=check_number("dropout", dropout, at_least=0, below=1),
        seed=_check_seed(seed),
    )


class _EncoderDecoder(keras.Model):
    """What both models have in common: their form, the mask of the logits, saving."""

    def __init__(self, settings, name, dtype, **arguments):
        super().__init__(name=name, dtype=dtype, **arguments)
        self.settings = settings
        self.mark = _Mark(dtype=self.dtype_policy, name="mark")

    def call(self, inputs, training=None):
        source, target = _pair(inputs)
        return self.mark(self._teacher_forced(source, target, training), mask=ops.not_equal(target, 0))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # Once more, since on JAX the mask does not outlive the computation of the gradient.
        y_pred = self.mark(y_pred, mask=ops.not_equal(_pair(x)[1], 0))
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self):
        return {**super().get_config(), **self.settings}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    def _logits(self, seed):
        """Returns the output layer, in float32 where half-precision logits would overflow or lose the loss."""
        half = self.compute_dtype in ("float16", "bfloat16")
        return keras.layers.Dense(
            self.settings["target_vocabulary"],
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            dtype="float32" if half else self.dtype_policy,
            name="logits",
        )


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


@keras.saving.register_keras_serializable("nnopt")
class Seq2Seq(_EncoderDecoder):
    """The network that `seq2seq` describes and makes."""

    def __init__(
        self,
        source_vocabulary,
        target_vocabulary,
        units,
        *,
        embedding,
        cell,
        attention,
        dropout,
        seed,
        name="seq2seq",
        dtype=None,
        **arguments,
    ):
        settings = {
            "source_vocabulary": source_vocabulary,
            "target_vocabulary": target_vocabulary,
            "units": units,
            "embedding": embedding,
            "cell": cell,
            "attention": attention,
            "dropout": dropout,
            "seed": seed,
        }
        super().__init__(settings, name, dtype, **arguments)
        seeds, dropout_seeds = iter(_seeds(seed, 16)), _seeds(seed, 3, stream=1)
        dtype = self.dtype_policy
        self.attention = attention

        def recurrent(kind, *places, **more):
            kernel = keras.initializers.GlorotUniform(seed=next(seeds))
            orthogonal = keras.initializers.Orthogonal(seed=next(seeds))
            return kind(
                units, *places, kernel_initializer=kernel, recurrent_initializer=orthogonal, dtype=dtype, **more
            )

        def sequences(name, **more):
            return recurrent(RECURRENT[cell], return_sequences=True, return_state=True, name=name, **more)

        self.source_embedding = _embedding(source_vocabulary, embedding, next(seeds), dtype, "source_embedding")
        self.target_embedding = _embedding(target_vocabulary, embedding, next(seeds), dtype, "target_embedding")
        self.source_dropout, self.target_dropout, self.output_dropout = (
            keras.layers.Dropout(dropout, seed=one, dtype=dtype, name=f"{place}_dropout")
            for place, one in zip(("source", "target", "output"), dropout_seeds)
        )
        self.encoder = keras.layers.Bidirectional(
            sequences("encoder"),
            backward_layer=sequences("encoder_backward", go_backwards=True),
            dtype=dtype,
            name="encoder",
        )
        self.state_names = ("h", "c") if cell == "lstm" else ("h",)
        self.bridges = [
            _dense(units, next(seeds), dtype, f"initial_{state}", activation="tanh", use_bias=True)
            for state in self.state_names
        ]
        if attention == "bahdanau":
            self.decoder = recurrent(CELLS[cell], name="decoder")
            self.query = _dense(units, next(seeds), dtype, "query")
            self.score = _dense(1, next(seeds), dtype, "score")
        else:
            self.decoder = sequences("decoder")
        if attention is not None:
            self.keys = _dense(units, next(seeds), dtype, "keys")
        self.combine = _dense(units, next(seeds), dtype, "combine", activation="tanh")
        self.logits = self._logits(next(seeds))
        self._build_layers(units, embedding)

    def _build_layers(self, units, embedding):
        context = 0 if self.attention is None else 2 * units
        self.source_embedding.build()
        self.target_embedding.build()
        self.encoder.build((None, None, embedding))
        for bridge in self.bridges:
            bridge.build((None, 2 * units))
        if self.attention == "bahdanau":
            self.decoder.build((None, embedding + context))
            self.query.build((None, units))
            self.score.build((None, None, units))
        else:
            self.decoder.build((None, None, embedding))
        if self.attention is not None:
            self.keys.build((None, None, context))
        self.combine.build((None, None, units + context))
        self.logits.build((None, None, units))
        self.built = True

    def _teacher_forced(self, source, target, training):
        states, context, _ = self._decode(target, self._encode(source, training), training)
        return self._read_out(states, context, training)

    def initial_state(self, source):
        """Returns the state from which `step` decodes `source`, integers (batch, source time): a dict of tensors."""
        return self._encode(_tokens("source", source, 2))

    def step(self, tokens, state):
        """Returns the logits (batch, target_vocabulary) after the previous `tokens`, (batch,), and the new state."""
        x = self.target_embedding(_tokens("tokens", tokens, 1))
        if self.attention == "bahdanau":
            carry, context, _ = self._attend_and_step(x, [state[name] for name in self.state_names], state)
            new = dict(zip(self.state_names, carry))
            return self._read_out(new["h"], context), {**state, **new}
        _, carry = self.decoder.cell(x, [state[name] for name in self.state_names])
        new = dict(zip(self.state_names, carry))
        context = None
        if self.attention == "luong":
            context = ops.squeeze(self._luong(new["h"][:, None], state)[0], 1)
        return self._read_out(new["h"], context), {**state, **new}

    def attention_weights(self, inputs):
        """Returns the weights of the source positions at each target position, (batch, target time, source time)."""
        if self.attention is None:
            raise ValueError("`attention` must be 'luong' or 'bahdanau' for weights to exist. Received: attention=None")
        source, target = _pair(inputs)
        weights = self._decode(_tokens("target", target, 2), self._encode(_tokens("source", source, 2)))[2]
        return ops.cast(weights, "float32")

    def _encode(self, source, training=None):
        """Returns the decoder's initial states, and what attention needs, by name."""
        mask = ops.not_equal(source, 0)
        x = self.source_dropout(self.source_embedding(source), training=training)
        memory, *last = self.encoder(x, mask=_never_empty(mask), training=training)
        count = len(self.state_names)
        state = {
            name: bridge(ops.concatenate([last[i], last[count + i]], axis=-1))
            for i, (name, bridge) in enumerate(zip(self.state_names, self.bridges))
        }
        if self.attention is not None:
            state.update(memory=memory, keys=self.keys(memory), mask=mask)
        return state

    def _decode(self, target, state, training=None):
        """Returns h_t, c_t and a_t of all target positions."""
        x = self.target_dropout(self.target_embedding(target), training=training)  # (batch, target time, embedding)
        initial = [state[name] for name in self.state_names]
        if self.attention == "bahdanau":
            return self._scan(x, initial, state)
        # No mask: the padding of the target is at its end, where nothing that counts follows.
        states = self.decoder(x, initial_state=initial, training=training)[0]
        return (states, *(self._luong(states, state) if self.attention else (None, None)))

    def _luong(self, states, state):
        """Returns the contexts and the weights for all `states`, (batch, target time, units), at once."""
        scores = ops.matmul(states, ops.transpose(state["keys"], (0, 2, 1)))  # (batch, target time, source time)
        weights = _masked_softmax(scores, state["mask"][:, None])
        return ops.matmul(weights, state["memory"]), weights

    def _attend_and_step(self, x, states, state):
        """Returns the new states, the context and the weights after one step of the decoder that reads `x`."""
        hidden = ops.tanh(self.query(states[0])[:, None] + state["keys"])  # (batch, source time, units)
        weights = _masked_softmax(ops.squeeze(self.score(hidden), -1), state["mask"])
        context = ops.squeeze(ops.matmul(weights[:, None], state["memory"]), 1)
        _, new = self.decoder(ops.concatenate([x, context], axis=-1), states)
        return new, context, weights

    def _scan(self, x, initial, state):
        def step(carry, x):
            new, context, weights = self._attend_and_step(x, carry[: len(initial)], state)
            carry = (*new, context, weights)
            return carry, carry

        # ops.scan wants outputs shaped as the carry: context and weights travel along, though no step reads them.
        context, weights = ops.zeros_like(state["memory"][:, 0]), ops.zeros_like(state["keys"][:, :, 0])
        _, outputs = ops.scan(step, (*initial, context, weights), ops.transpose(x, (1, 0, 2)))
        states, context, weights = (ops.transpose(outputs[i], (1, 0, 2)) for i in (0, -2, -1))
        return states, context, weights

    def _read_out(self, states, context, training=None):
        x = states if context is None else ops.concatenate([context, states], axis=-1)
        return self.logits(self.output_dropout(self.combine(x), training=training))


@keras.saving.register_keras_serializable("nnopt")
class Transformer(_EncoderDecoder):
    """The network that `transformer` describes and makes."""

    def __init__(
        self,
        source_vocabulary,
        target_vocabulary,
        width,
        *,
        depth,
        heads,
        hidden,
        maximal_length,
        positions,
        dropout,
        seed,
        name="transformer",
        dtype=None,
        **arguments,
    ):
        settings = {
            "source_vocabulary": source_vocabulary,
            "target_vocabulary": target_vocabulary,
            "width": width,
            "depth": depth,
            "heads": heads,
            "hidden": hidden,
            "maximal_length": maximal_length,
            "positions": positions,
            "dropout": dropout,
            "seed": seed,
        }
        super().__init__(settings, name, dtype, **arguments)
        seeds, dropout_seeds = iter(_seeds(seed, 5 + 16 * depth)), iter(_seeds(seed, 2 + 5 * depth, stream=1))
        dtype = self.dtype_policy
        self.width, self.maximal_length, self.positions = width, maximal_length, positions
        self.source_embedding = _embedding(source_vocabulary, width, next(seeds), dtype, "source_embedding", "normal")
        self.target_embedding = _embedding(target_vocabulary, width, next(seeds), dtype, "target_embedding", "normal")
        self.source_dropout, self.target_dropout = (
            keras.layers.Dropout(dropout, seed=next(dropout_seeds), dtype=dtype, name=f"{place}_dropout")
            for place in ("source", "target")
        )
        self.encoder, self.decoder = (
            [
                _Block(width, heads, hidden, dropout, seeds, dropout_seeds, side == "decoder", dtype, f"{side}_{i + 1}")
                for i in range(depth)
            ]
            for side in ("encoder", "decoder")
        )
        self.encoder_normalization = _normalization(width, dtype, "encoder_normalization")
        self.decoder_normalization = _normalization(width, dtype, "decoder_normalization")
        self.logits = self._logits(next(seeds))
        self.logits.build((None, None, width))
        if positions == "learned":
            self.source_positions = _embedding(maximal_length, width, next(seeds), dtype, "source_positions", "normal")
            self.target_positions = _embedding(maximal_length, width, next(seeds), dtype, "target_positions", "normal")
            self.source_positions.build()
            self.target_positions.build()
        self.source_embedding.build()
        self.target_embedding.build()
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
            most = self.maximal_length if self.positions == "learned" else None
            length = check_integer("maximal_length", maximal_length, at_least=1, at_most=most)
        source = _tokens("source", source, 2)
        memory, visible = self._encode(source)
        state = {"position": ops.zeros_like(source[:, 0]), "visible": visible}
        for number, block in enumerate(self.decoder):
            for name, value in block.initial_state(memory, length).items():
                state[f"{name}_{number}"] = value
        return state

    def step(self, tokens, state):
        """Returns the logits (batch, target_vocabulary) after the previous `tokens`, (batch,), and the new state."""
        position = state["position"]
        x = self.target_embedding(_tokens("tokens", tokens, 1)) * math.sqrt(self.width)
        x = (x + self._positions(position, "target"))[:, None]
        new = {**state, "position": position + 1}
        for number, block in enumerate(self.decoder):
            own = {name: state[f"{name}_{number}"] for name in block.cached}
            x, own = block.step(x, own, position, state["visible"])
            new.update({f"{name}_{number}": value for name, value in own.items()})
        logits = self.logits(self.decoder_normalization(x))[:, 0]
        room = ops.shape(state["keys_0"])[1]
        return ops.where((position < room)[:, None], logits, float("nan")), new

    def attention_weights(self, inputs, layer=-1):
        """Returns how decoder block `layer` weighs the source, mean of the heads: (batch, target time, source time)."""
        depth = len(self.decoder)
        layer = check_integer("layer", layer, at_least=-depth, at_most=depth - 1) % depth
        source, target = _pair(inputs)
        memory, visible = self._encode(_tokens("source", source, 2))
        x = self._embed(_tokens("target", target, 2), "target")
        for block in self.decoder[: layer + 1]:
            x, weights = block(x, memory=memory, visible=visible, return_weights=block is self.decoder[layer])
        weights = ops.mean(ops.cast(weights, "float32"), axis=1)
        return weights * ops.cast(ops.not_equal(ops.convert_to_tensor(source), 0), "float32")[:, None]

    def _encode(self, source, training=None):
        """Returns the memory (batch, source time, width) and which of its positions count."""
        visible = _never_empty(ops.not_equal(source, 0))
        x = self._embed(source, "source", training)
        for block in self.encoder:
            x, _ = block(x, visible=visible, training=training)
        return self.encoder_normalization(x), visible

    def _embed(self, tokens, side, training=None):
        time = tokens.shape[1]
        if self.positions == "learned" and time is not None and time > self.maximal_length:
            raise ValueError(
                f"`{side}` must have at most maximal_length={self.maximal_length} tokens, as many as there are learned "
                f"positions. Received: {side} of shape {tuple(tokens.shape)}"
            )
        x = getattr(self, f"{side}_embedding")(tokens) * math.sqrt(self.width)
        x = x + self._positions(ops.arange(ops.shape(tokens)[1], dtype="int32"), side)
        return getattr(self, f"{side}_dropout")(x, training=training)

    def _positions(self, positions, side):
        if self.positions == "learned":
            return getattr(self, f"{side}_positions")(ops.minimum(positions, self.maximal_length - 1))
        return ops.cast(_sinusoids(positions, self.width), self.compute_dtype)


class _Block(keras.layers.Layer):
    """One block: self-attention, attention over a memory if the block reads one, and a feedforward network.

    A block that reads a memory belongs to a decoder: its self-attention is causal.
    """

    def __init__(self, width, heads, hidden, dropout, seeds, dropout_seeds, reads_memory, dtype, name):
        # The block's name is in those of its layers, so that no two weights have the same path.
        super().__init__(dtype=dtype, name=name)
        dtype, self.reads_memory = self.dtype_policy, reads_memory
        self.own = _attention(width, heads, seeds, dtype, f"{name}_self_attention")
        self.own_normalization = _normalization(width, dtype, f"{name}_self_attention_normalization")
        self.own_dropout = keras.layers.Dropout(dropout, seed=next(dropout_seeds), dtype=dtype)
        if reads_memory:
            self.cross = _attention(width, heads, seeds, dtype, f"{name}_cross_attention")
            self.cross_normalization = _normalization(width, dtype, f"{name}_cross_attention_normalization")
            self.cross_dropout = keras.layers.Dropout(dropout, seed=next(dropout_seeds), dtype=dtype)
        self.hidden = _dense(hidden, next(seeds), dtype, f"{name}_hidden", activation="relu", use_bias=True)
        self.output_layer = _dense(width, next(seeds), dtype, f"{name}_output", use_bias=True)
        self.hidden.build((None, None, width))
        self.output_layer.build((None, None, hidden))
        self.normalization = _normalization(width, dtype, f"{name}_normalization")
        self.dropout = keras.layers.Dropout(dropout, seed=next(dropout_seeds), dtype=dtype)
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


def _attention(width, heads, seeds, dtype, name):
    """Returns multi-head attention whose kernels are Glorot's for matrices of width x width.

    Keras would give queries, keys and values the same numbers where there is a seed, and takes the fans from the
    three-dimensional kernel as if it were a convolution's.
    """
    layer = keras.layers.MultiHeadAttention(heads, width // heads, dtype=dtype, name=name)
    layer.build((None, None, width), (None, None, width))
    for dense in (layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense):
        kernel = keras.initializers.GlorotUniform(seed=next(seeds))((width, width), dtype=dense.kernel.dtype)
        dense.kernel.assign(ops.reshape(kernel, dense.kernel.shape))
    return layer


def _normalization(width, dtype, name):
    layer = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name)
    layer.build((None, None, width))
    return layer


def _dense(units, seed, dtype, name, activation=None, use_bias=False):
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(units, activation, use_bias, initializer, dtype=dtype, name=name)


def _embedding(vocabulary, width, seed, dtype, name, kind="uniform"):
    initializer = keras.initializers.RandomUniform(-0.1, 0.1, seed=seed)
    if kind == "normal":  # the product with sqrt(width) then has a variance of 1
        initializer = keras.initializers.RandomNormal(stddev=width**-0.5, seed=seed)
    # Not mask_zero: masks are computed once, where they are used.
    return keras.layers.Embedding(vocabulary, width, initializer, dtype=dtype, name=name)


def _sinusoids(positions, width):
    """Returns the positional encoding of `positions`, integers of any shape, as float32 (..., width)."""
    rates = ops.exp(ops.arange(0, width, 2, dtype="float32") * (-math.log(10000.0) / width))
    angles = ops.cast(positions, "float32")[..., None] * rates
    pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (..., width / 2, 2)
    return ops.reshape(pairs, (*ops.shape(positions), width))


def _masked_softmax(scores, mask):
    """Returns weights that are exactly 0 where `mask` is False, also where it is nowhere True."""
    scores, dtype = ops.where(mask, ops.cast(scores, "float32"), -1e9), scores.dtype
    # Not ops.softmax, which warns of sources of one token.
    weights = ops.where(mask, ops.exp(scores - ops.max(scores, axis=-1, keepdims=True)), 0.0)
    total = ops.sum(weights, axis=-1, keepdims=True)
    return ops.cast(weights / ops.maximum(total, 1e-9), dtype)


def _never_empty(mask):
    """Returns `mask`, (batch, time), with the first position of rows that are all padding counted, too.

    Attention over nothing is NaN on some backends, and cuDNN refuses sequences without a step.
    """
    empty = ops.logical_not(ops.any(mask, axis=1, keepdims=True))
    first = ops.equal(ops.arange(ops.shape(mask)[1], dtype="int32"), 0)[None]
    return ops.logical_or(mask, ops.logical_and(empty, first))


def _pair(inputs):
    if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
        raise ValueError(
            "`inputs` must be [source, target], integers (batch, source time) and (batch, target time). "
            f"Received: inputs={inputs!r} (of type {type(inputs).__name__})"
        )
    return inputs


def _tokens(name, tokens, rank):
    tokens = ops.cast(ops.convert_to_tensor(tokens), "int32")
    if len(tokens.shape) != rank:
        rule = "(batch,)" if rank == 1 else "(batch, time)"
        raise ValueError(f"`{name}` must have the shape {rule}. Received: {name} of shape {tuple(tokens.shape)}")
    return tokens


def _check_seed(seed):
    return None if seed is None else check_integer("seed", seed, at_least=0)
