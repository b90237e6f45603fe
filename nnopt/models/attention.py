"""The recurrent encoder-decoder, with or without attention: one sequence of tokens becomes another.

It is trained by teacher forcing, `model([source, target])`, and decodes step by step: `initial_state`, then `step`.
"""

import keras
from keras import ops

from nnopt.checks import check_boolean, check_choice, check_integer, check_number
from nnopt.models._common import check_seed
from nnopt.models._encoder_decoder import EncoderDecoder, Layers, check_vocabularies, never_empty, pair, tokens_of

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
    layers=1,
    dropout=0.0,
    variational=False,
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

    With several layers, each reads the states of the one below. The memory is that of the encoder's last layer, whose
    layers are all bidirectional, and each decoder layer starts at the last states of the encoder layer beside it.
    Luong's score and the logits take the decoder's last layer; Bahdanau's attends with the first one, which alone reads
    c_t (as in Wu et al. 2016).

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
        layers: Number of layers of the encoder and of the decoder, >= 1.
        dropout: Share of the token vectors' entries, of those between two layers, and of those before the logits, set
            to zero in training, in [0, 1).
        variational: Whether dropout draws the entries once for all positions of a sequence (Gal and Ghahramani 2016,
            on the inputs), and not for each position anew.
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
    translation", eqs. 5, 7, 8; Sutskever, Vinyals and Le 2014 (no attention); Gal and Ghahramani 2016, "A theoretically
    grounded application of dropout in recurrent neural networks".
    """
    if attention is not None:
        check_choice("attention", attention, ("luong", "bahdanau"))
    return Seq2Seq(
        {
            **check_vocabularies(source_vocabulary, target_vocabulary),
            "units": check_integer("units", units, at_least=1),
            "embedding": check_integer("embedding", embedding, at_least=1),
            "cell": check_choice("cell", cell, tuple(RECURRENT)),
            "attention": attention,
            "layers": check_integer("layers", layers, at_least=1),
            "dropout": check_number("dropout", dropout, at_least=0, below=1),
            "variational": check_boolean("variational", variational),
            "seed": check_seed(seed),
        }
    )


@keras.saving.register_keras_serializable("nnopt")
class Seq2Seq(EncoderDecoder):
    """The network that `seq2seq` describes and makes, from its checked arguments, `settings`."""

    def __init__(self, settings, name="seq2seq", **arguments):
        super().__init__(settings, name=name, **arguments)
        self.attention = settings["attention"]
        kinds = ("h", "c") if settings["cell"] == "lstm" else ("h",)
        # The names of each layer's states: h, c, h_1, c_1, ...
        self.state_names = [
            tuple(f"{kind}_{layer}" if layer else kind for kind in kinds) for layer in range(settings["layers"])
        ]
        shape = (None, 1, None) if settings["variational"] else None  # of a draw: one for all positions
        layers = Layers(settings["seed"], settings["dropout"], self.dtype_policy, noise_shape=shape)
        self._make_encoder(layers, settings["units"], settings["embedding"])
        self._make_decoder(layers, settings["units"], settings["embedding"])
        self.built = True

    def _make_encoder(self, layers, units, embedding):
        self.source_embedding = layers.embedding(self.settings["source_vocabulary"], embedding, "source_embedding")
        self.target_embedding = layers.embedding(self.settings["target_vocabulary"], embedding, "target_embedding")
        self.source_dropout, self.target_dropout, self.output_dropout = (
            layers.dropout(f"{place}_dropout") for place in ("source", "target", "output")
        )
        self.encoders, self.encoder_dropouts, self.bridges = [], [], []
        for states in self.state_names:
            name = "encoder" + "".join(states[0].partition("_")[1:])
            encoder = keras.layers.Bidirectional(
                self._recurrent(layers, name),
                backward_layer=self._recurrent(layers, f"{name}_backward", go_backwards=True),
                dtype=self.dtype_policy,
                name=name,
            )
            encoder.build((None, None, 2 * units if self.encoders else embedding))
            self.encoder_dropouts.append(layers.dropout(f"{name}_dropout") if self.encoders else self.source_dropout)
            self.encoders.append(encoder)
            self.bridges.append(
                [layers.dense(units, 2 * units, f"initial_{s}", activation="tanh", use_bias=True) for s in states]
            )

    def _make_decoder(self, layers, units, embedding):
        context = 0 if self.attention is None else 2 * units  # the width of a memory vector
        if self.attention == "bahdanau":
            self.decoder = self._recurrent(layers, "decoder", CELLS)
            self.decoder.build((None, embedding + context))
            self.query = layers.dense(units, units, "query")
            self.score = layers.dense(1, units, "score")
        else:
            self.decoder = self._recurrent(layers, "decoder")
            self.decoder.build((None, None, embedding))
        if self.attention is not None:
            self.keys = layers.dense(units, context, "keys")
        self.combine = layers.dense(units, units + context, "combine", activation="tanh")
        self.logits = layers.logits(self.settings["target_vocabulary"], units)
        self.upper_decoders = [self._recurrent(layers, f"decoder_{n}") for n in range(1, len(self.state_names))]
        self.upper_dropouts = [layers.dropout(f"{decoder.name}_dropout") for decoder in self.upper_decoders]
        for decoder in self.upper_decoders:
            decoder.build((None, None, units))

    def _recurrent(self, layers, name, kinds=RECURRENT, **more):
        """Returns a recurrent layer that gives all its states and the last one, or, of `CELLS`, a single cell."""
        if kinds is RECURRENT:
            more.update(return_sequences=True, return_state=True)
        return kinds[self.settings["cell"]](
            self.settings["units"],
            kernel_initializer=layers.glorot(),
            recurrent_initializer=keras.initializers.Orthogonal(seed=next(layers.seeds)),
            dtype=self.dtype_policy,
            name=name,
            **more,
        )

    def _teacher_forced(self, source, target, training):
        states, context, _ = self._decode(target, self._encode(source, training), training)
        return self._read_out(states, context, training)

    def initial_state(self, source):
        """Returns the state from which `step` decodes `source`, integers (batch, source time): a dict of tensors."""
        return self._encode(tokens_of("source", source, 2))

    def step(self, tokens, state):
        """Returns the logits (batch, target_vocabulary) after the previous `tokens`, (batch,), and the new state."""
        x = self.target_embedding(tokens_of("tokens", tokens, 1))
        first, *upper = ([state[name] for name in names] for names in self.state_names)
        context = None
        if self.attention == "bahdanau":
            carry, context, _ = self._attend_and_step(x, first, state)
        else:
            _, carry = self.decoder.cell(x, first)
        carries = [carry]
        for decoder, states in zip(self.upper_decoders, upper):
            carries.append(decoder.cell(carries[-1][0], states)[1])
        new = {name: value for names, values in zip(self.state_names, carries) for name, value in zip(names, values)}
        top = carries[-1][0]
        if self.attention == "luong":
            context = ops.squeeze(self._luong(top[:, None], state)[0], 1)
        return self._read_out(top, context), {**state, **new}

    def attention_weights(self, inputs):
        """Returns the weights of the source positions at each target position, (batch, target time, source time)."""
        if self.attention is None:
            raise ValueError("`attention` must be 'luong' or 'bahdanau' for weights to exist. Received: attention=None")
        source, target = pair(inputs)
        weights = self._decode(tokens_of("target", target, 2), self._encode(tokens_of("source", source, 2)))[2]
        return ops.cast(weights, "float32")

    def _encode(self, source, training=None):
        """Returns the decoder's initial states, and what attention needs, by name."""
        mask = ops.not_equal(source, 0)
        memory, state = self.source_embedding(source), {}
        count = len(self.state_names[0])
        for dropout, encoder, bridges, names in zip(
            self.encoder_dropouts, self.encoders, self.bridges, self.state_names
        ):
            memory = dropout(memory, training=training)
            memory, *last = encoder(memory, mask=never_empty(mask), training=training)
            for i, (name, bridge) in enumerate(zip(names, bridges)):
                state[name] = bridge(ops.concatenate([last[i], last[count + i]], axis=-1))
        if self.attention is not None:
            state.update(memory=memory, keys=self.keys(memory), mask=mask)
        return state

    def _decode(self, target, state, training=None):
        """Returns h_t, c_t and a_t of all target positions."""
        x = self.target_dropout(self.target_embedding(target), training=training)  # (batch, target time, embedding)
        first, *upper = ([state[name] for name in names] for names in self.state_names)
        # No mask: the padding of the target is at its end, where nothing that counts follows.
        if self.attention == "bahdanau":
            states, context, weights = self._scan(x, first, state)
        else:
            states = self.decoder(x, initial_state=first, training=training)[0]
        for dropout, decoder, initial in zip(self.upper_dropouts, self.upper_decoders, upper):
            states = decoder(dropout(states, training=training), initial_state=initial, training=training)[0]
        if self.attention != "bahdanau":
            context, weights = self._luong(states, state) if self.attention else (None, None)
        return states, context, weights

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


def _masked_softmax(scores, mask):
    """Returns weights that are exactly 0 where `mask` is False, also where it is nowhere True."""
    scores, dtype = ops.where(mask, ops.cast(scores, "float32"), -1e9), scores.dtype
    # Not ops.softmax, which warns of sources of one token.
    weights = ops.where(mask, ops.exp(scores - ops.max(scores, axis=-1, keepdims=True)), 0.0)
    total = ops.sum(weights, axis=-1, keepdims=True)
    return ops.cast(weights / ops.maximum(total, 1e-9), dtype)
