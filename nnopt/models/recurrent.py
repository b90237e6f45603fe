"""The recurrent network with a plain, an LSTM or a GRU cell, for tokens or real-valued sequences of any length."""

import keras

from nnopt.checks import check_boolean, check_choice, check_instance, check_integer, check_number
from nnopt.models._common import check_sizes, derived_seeds, logits_dtype

CELLS = {"simple": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


def rnn(
    input_shape,
    units,
    classes,
    *,
    cell="lstm",
    vocabulary=None,
    embedding=None,
    mask_value=None,
    return_sequences=False,
    dropout=0.0,
    seed=None,
):
    """Returns a recurrent network that ends in logits: compile it with a loss of `from_logits=True`.

    The plain cell computes `h_t = tanh(x_t W + h_{t-1} U + b)`; LSTM and GRU put gates around this. Each layer reads
    the states of the one below. The logits follow from the last state, or with `return_sequences` from every state.

    Padding is masked: at a padded position the states stay as they are, so it changes no logits at other positions,
    and the loss does not count it. (On JAX, Keras loses the mask before the metrics that `fit` reports: with
    `return_sequences` these count padding; those of `evaluate` do not.)

    Args:
        input_shape: Shape of one sequence. Real-valued: (time, features). Tokens: (time,), together with `vocabulary`
            and `embedding`. time is None where batches may be of any length.
        units: Numbers of units of the recurrent layers, from the lowest, such as [64].
        classes: Number of logits, >= 1.
        cell: "simple", "lstm" or "gru".
        vocabulary: Number of different tokens, >= 2, the padding token 0 among them. None for real-valued sequences.
        embedding: Width of the token vectors that are learned, >= 1. None for real-valued sequences.
        mask_value: A step of a real-valued sequence whose features all equal this number is padding. None: all count.
        return_sequences: True for logits at every position, False for those after the last one.
        dropout: Share of each recurrent layer's outputs set to zero in training, in [0, 1).
        seed: Integer >= 0 from which every kernel and every dropout layer derives a seed of its own. With None Keras
            draws them, so that `keras.utils.set_random_seed` decides.

    Returns:
        A functional `keras.Model`: (batch, time, features), or (batch, time) of integers, -> (batch, classes), or with
        `return_sequences` (batch, time, classes); in float32 also under a mixed dtype policy. Layers are named by what
        they are and their depth ("embedding", "recurrent_1", "dropout_1", ..., "logits").

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or does not go with another.

    Example:

    >>> model = rnn(input_shape=(None, 2), units=[32], classes=1, cell="gru", seed=0)
    >>> model.output_shape
    (None, 1)
    >>> tagger = rnn((None,), [32], 5, cell="lstm", vocabulary=100, embedding=16, return_sequences=True, seed=0)
    >>> tagger.output_shape
    (None, None, 5)

    Reference: Elman 1990 (the plain network); Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al.
    2000 (LSTM); Cho et al. 2014, in the variant that resets after the product with U (GRU).
    """
    input_shape = _check_sequence_shape(input_shape, vocabulary, embedding, mask_value)
    units = check_sizes("units", units, least=1)
    classes = check_integer("classes", classes, at_least=1)
    check_choice("cell", cell, tuple(CELLS))
    check_boolean("return_sequences", return_sequences)
    dropout = check_number("dropout", dropout, at_least=0, below=1)
    seeds, dropout_seeds = iter(derived_seeds(seed, 2 * len(units) + 2)), derived_seeds(seed, len(units), stream=1)

    if vocabulary is None:
        inputs = x = keras.Input(input_shape)
        if mask_value is not None:
            x = keras.layers.Masking(mask_value, name="masking")(x)
        next(seeds)
    else:
        inputs = keras.Input(input_shape, dtype="int32")
        initializer = keras.initializers.RandomUniform(-0.05, 0.05, seed=next(seeds))
        x = keras.layers.Embedding(vocabulary, embedding, initializer, mask_zero=True, name="embedding")(inputs)
    for depth, width in enumerate(units):
        x = CELLS[cell](
            width,
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
            recurrent_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
            return_sequences=return_sequences or depth < len(units) - 1,
            name=f"recurrent_{depth + 1}",
        )(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=dropout_seeds[depth], name=f"dropout_{depth + 1}")(x)
    initializer = keras.initializers.GlorotUniform(seed=next(seeds))
    logits = keras.layers.Dense(classes, kernel_initializer=initializer, dtype=logits_dtype(), name="logits")(x)
    return keras.Model(inputs, logits, name=f"rnn_{cell}")


def _check_sequence_shape(input_shape, vocabulary, embedding, mask_value):
    """Returns `input_shape` as a tuple, checked together with the arguments that say what a step is."""
    if (vocabulary is None) != (embedding is None):
        missing, value = ("embedding", embedding) if embedding is None else ("vocabulary", vocabulary)
        raise ValueError(f"`{missing}` must be an integer, too: tokens need both. Received: {missing}={value!r}")
    if vocabulary is not None:
        check_integer("vocabulary", vocabulary, at_least=2)
        check_integer("embedding", embedding, at_least=1)
    if mask_value is not None:
        check_number("mask_value", mask_value)
        if vocabulary is not None:
            raise ValueError(
                "`mask_value` must be None with a vocabulary, whose token 0 is padding. "
                f"Received: mask_value={mask_value!r}"
            )
    rule = "(time, features)" if vocabulary is None else "(time,)"
    check_instance("input_shape", input_shape, (list, tuple), rule)
    if len(input_shape) != (2 if vocabulary is None else 1):
        raise ValueError(f"`input_shape` must be {rule}. Received: input_shape={input_shape!r}")
    first, *rest = input_shape
    first = None if first is None else check_integer("input_shape[0]", first, at_least=1)
    return (first, *(check_integer(f"input_shape[{i}]", size, at_least=1) for i, size in enumerate(rest, start=1)))
