"""Greedy search and beam search: the sequence of tokens to which a model gives a high probability.

Both know nothing of the model but a function `step`, from the previous tokens and a state to logits and a new state.
The whole search, all sources and all their beams at once, is one compiled loop on TensorFlow and JAX.
"""

import functools
from collections import namedtuple

import keras
import numpy as np
from keras import ops

from nnopt._backend import quiet_tensorflow
from nnopt.checks import check_boolean, check_callable, check_instance, check_integer, check_number, shown

NEVER = float("-inf")


class Decoded(namedtuple("Decoded", "tokens log_probabilities scores")):
    """What a search found for each source, best first.

    Attributes:
        tokens: int32 (batch, beams, max_length), the end token included, the start token not, 0 behind the end.
        log_probabilities: float32 (batch, beams), the sum of the tokens' log-probabilities, the end token's included.
        scores: float32 (batch, beams), `log_probabilities` divided by the length penalty.

    Example:

    >>> found = Decoded(tokens=[[[5, 2, 0]]], log_probabilities=[[-1.2]], scores=[[-1.2]])
    >>> found.tokens[0][0]
    [5, 2, 0]
    """


def greedy_search(step, state, start_token, end_token, max_length):
    """Takes the most probable token at each step, until it is the end token or `max_length` tokens are there.

        y_t = argmax_v log P(v | y_1, ..., y_{t-1}, source)

    It is `beam_search` of width 1, and its result has one beam.

    Args:
        step: As in `beam_search`.
        state: As in `beam_search`.
        start_token: Token that the first step reads, an integer >= 0.
        end_token: Token that ends a sequence, an integer >= 0.
        max_length: Most tokens to generate, the end token included, >= 1.

    Returns:
        A `Decoded` with arrays (batch, 1, max_length) and (batch, 1).

    Raises:
        TypeError, ValueError: As `beam_search`.

    Example: a model that counts upwards.

    >>> def step(tokens, state):
    ...     return ops.one_hot(tokens + 1, 6, dtype="float32") * 9.0, state
    >>> found = greedy_search(step, {"source": np.zeros((1, 1))}, start_token=1, end_token=4, max_length=5)
    >>> ops.convert_to_numpy(found.tokens).tolist()
    [[[2, 3, 4, 0, 0]]]

    Reference: Sutskever, Vinyals and Le 2014, "Sequence to sequence learning with neural networks", section 3.2 (a
    beam of size 1).
    """
    return beam_search(step, state, start_token, end_token, 1, max_length)


def beam_search(
    step,
    state,
    start_token,
    end_token,
    beam_width,
    max_length,
    length_penalty=0.0,
    early_stopping=True,
    *,
    min_length=1,
    no_repeat_ngram=0,
    forbidden_tokens=(),
    jit_compile=False,
):
    """Keeps the `beam_width` most probable unfinished sequences at each step, and the best finished ones apart.

    Each step extends every unfinished sequence by every token. Of all these candidates of a source, ordered by
    log-probability, those among the first `beam_width` that end with the end token are finished: they go to the
    source's pool, where nothing changes them, and which keeps the `beam_width` best scores. The first `beam_width`
    candidates that do not end go on. With n the length, end token included, and alpha = `length_penalty`,

        score(y) = log P(y | source) / ((5 + n) / 6) ** alpha

    `early_stopping=True` stops the search of a source as soon as its pool holds `beam_width` sequences, as if none
    found later could be better. `early_stopping=False` goes on until that is certain: log-probabilities only fall and
    the penalty only grows, so no unfinished sequence of log-probability s can score above s / penalty(max_length).
    The search of a source stops when this bound, for its best unfinished sequence, is no higher than the lowest score
    of its full pool. It finds every score that the early one finds or a higher one, and takes longer. A source is not
    affected by the others in its batch: when its search has stopped, its pool stays as it is.

    Sequences of `max_length` tokens without an end are returned only for a source of which nothing finished. Where
    fewer than `beam_width` sequences exist, the beams left over are 0 with a log-probability of -infinity.

    Args:
        step: Function `step(tokens, state) -> (logits, new state)`, with the previous tokens, int32 (rows,), and
            logits (rows, vocabulary) of any floating type, which become float32 log-probabilities here. The new state
            has the structure, shapes and types of the old one. Rows are the sources times the beams. On TensorFlow and
            JAX it is compiled, once for each shape of the state: pass the same function (or method of the same model)
            again to use what was compiled. Its model's weights may change between calls, but nothing else that it
            reads from outside of its arguments.
        state: Any nest (dict, tuple, list) of tensors whose first axis is the batch, such as a decoder's first states
            and the encoder's outputs. It is repeated for the beams here.
        start_token: Token that the first step reads, an integer >= 0.
        end_token: Token that ends a sequence, an integer >= 0.
        beam_width: Number of beams, >= 1.
        max_length: Most tokens to generate, the end token included, >= 1.
        length_penalty: The exponent alpha, >= 0; 0 compares log-probabilities, more prefers longer sequences. Or
            "average" for the mean log-probability of a token, score = log P / n.
        early_stopping: Whether to stop when `beam_width` sequences are finished, see above.
        min_length: Least number of tokens, the end token included, >= 1.
        no_repeat_ngram: An integer n: no n tokens in a row appear twice in a sequence. 0 allows it.
        forbidden_tokens: Tokens never to generate, such as those of padding and of unknown words. What is forbidden,
            by this or another argument, loses its probability; that of the other tokens stays what the model says.
        jit_compile: Whether TensorFlow compiles by XLA, as in `keras.Model.compile`. On two CPU cores a batch of 64
            then took 70 to 90 % of the time, and each new shape of the state two seconds more, which pays from some
            thirty batches of one shape on. JAX always compiles so, torch never.

    Returns:
        A `Decoded`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range; `step` returns something of another form, or logits that are NaN
            or infinite.

    Example: the most probable first token, 3, is a trap: whatever follows it has a probability of at most 0.4.

    >>> first, then = np.log([0.01, 0.01, 0.01, 0.52, 0.45]), np.log(np.ones((5, 5)) / 5)
    >>> then[3], then[4] = np.log([0.1, 0.1, 0.4, 0.3, 0.1]), np.log([0.02, 0.02, 0.9, 0.03, 0.03])
    >>> table = np.array([first if token == 1 else then[token] for token in range(5)], "float32")
    >>> def step(tokens, state):
    ...     return ops.take(table, tokens, axis=0), state
    >>> source = {"source": np.zeros((1, 1))}
    >>> ops.convert_to_numpy(greedy_search(step, source, 1, 2, max_length=4).tokens)[0, 0].tolist()
    [3, 2, 0, 0]
    >>> found = beam_search(step, source, start_token=1, end_token=2, beam_width=2, max_length=4)
    >>> ops.convert_to_numpy(found.tokens)[0].tolist()
    [[4, 2, 0, 0], [3, 2, 0, 0]]
    >>> [round(float(p), 3) for p in ops.exp(found.log_probabilities[0])]
    [0.405, 0.208]

    Reference: Graves 2012, "Sequence transduction with recurrent neural networks", section 2.5, and Sutskever, Vinyals
    and Le 2014, section 3.2 (beam search); Wu et al. 2016, "Google's neural machine translation system", eq. 14 (length
    penalty, without the coverage term).
    """
    check_instance("forbidden_tokens", forbidden_tokens, (list, tuple, set, range, np.ndarray), "a list of integers")
    penalties = lengths = np.arange(1, 1 + check_integer("max_length", max_length, at_least=1))
    if length_penalty != "average":
        penalties = ((5 + lengths) / 6) ** check_number("length_penalty", length_penalty, at_least=0)
    search = _Search(
        check_callable("step", step),
        check_integer("start_token", start_token, at_least=0),
        check_integer("end_token", end_token, at_least=0),
        check_integer("beam_width", beam_width, at_least=1),
        tuple(penalties.tolist()),
        check_boolean("early_stopping", early_stopping),
        check_integer("min_length", min_length, at_least=1, at_most=max_length),
        check_integer("no_repeat_ngram", no_repeat_ngram, at_least=0),
        tuple(check_integer("forbidden_tokens", token, at_least=0) for token in forbidden_tokens),
    )
    state = _checked_state(state)
    decoded, sound = _compiled(search, _form(state), check_boolean("jit_compile", jit_compile))(state)
    if not bool(sound):
        _refuse("step", "return logits without NaN and +infinity, nor all of a row -infinity", "logits that have such")
    return decoded


def _refuse(name, rule, received):
    raise ValueError(f"`{name}` must {rule}. Received: {received}")


def _checked_state(state):
    sizes = {tuple(getattr(leaf, "shape", ()))[:1] for leaf in keras.tree.flatten(state)}
    if len(sizes) != 1 or () in sizes:
        found = keras.tree.map_structure(shown, state)
        _refuse("state", "be a nest of tensors whose first axis is the batch, the same for all", f"state={found}")
    return keras.tree.map_structure(ops.convert_to_tensor, state)


def _form(state):
    """Returns the structure of a state, and the type and shape of its tensors, as what can be compared and hashed."""
    leaves = keras.tree.flatten_with_path(state)
    return tuple((path, keras.backend.standardize_dtype(leaf.dtype), tuple(leaf.shape)) for path, leaf in leaves)


@functools.lru_cache(maxsize=64)
def _compiled(search, form, jit_compile):
    """Returns `search.run` compiled. `form` is there so that each form of the state has a compilation of its own.

    The least recently used ones are dropped, since each keeps its model alive.
    """
    if keras.backend.backend() == "jax":
        return _compiled_by_jax(search)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Quiet, since it would warn of a function that is traced for each shape.
        return quiet_tensorflow()(tf.function(search.run, autograph=False, jit_compile=jit_compile))
    import torch

    return torch.no_grad()(search.run)


def _compiled_by_jax(search):
    """Returns `search.run` compiled with the weights that `step` reads as inputs; JAX would take them as constants."""
    import jax

    variables, results = {}, []

    class Reads(keras.StatelessScope):
        """Notes which variables are read inside of it."""

        def get_current_value(self, variable):
            variables[id(variable)] = variable
            return super().get_current_value(variable)

    @jax.jit
    def run(values, state):
        with keras.StatelessScope(zip(variables.values(), values)):
            return search.run(state)

    def call(state):
        if not results:
            with Reads():
                results.append(jax.eval_shape(search.run, state))
        return run([variable.value for variable in variables.values()], state)

    return call


# What the loop carries: the number of tokens so far; of the unfinished sequences, best first, the tokens (batch, width,
# 1 + max_length), the start token before them, and the log-probabilities (batch, width); the state's tensors (batch *
# width, ...); the finished, a `Decoded` with tokens as above; which sources are done, (batch,).
_Now = namedtuple("_Now", "time tokens log_probabilities leaves pool done")
_ARGUMENTS = "step start_token end_token width penalties early_stopping min_length no_repeat_ngram forbidden_tokens"


class _Search(namedtuple("_Search", _ARGUMENTS)):
    """The arguments of `beam_search`, checked, and its loop. `penalties` are those of 1, 2, ..., max_length tokens."""

    def run(self, state):
        """Returns a `Decoded`, and whether all logits that counted were sound."""
        changed = set()  # which of the state's leaves some step has changed

        def advance(*now):
            now = _Now(*now)
            logits, leaves = self._step(now, state)
            changed.update(i for i, leaf in enumerate(leaves) if leaf is not now.leaves[i])
            tokens, log_probabilities, rows, pool, done = self._choose(now, logits)
            # What no step has changed is the same for all beams of a source. To reorder it would change nothing, and
            # copy the encoder's outputs at every step.
            leaves = [ops.take(leaf, rows, axis=0) if i in changed else leaf for i, leaf in enumerate(leaves)]
            return _Now(now.time + 1, tokens, log_probabilities, leaves, pool, done)

        def goes_on(time, *others):
            return (time < len(self.penalties)) & ~ops.all(others[-1])

        return self._result(_Now(*ops.while_loop(goes_on, advance, self._begin(keras.tree.flatten(state)))))

    def _begin(self, leaves):
        shape = (leaves[0].shape[0], self.width)
        tokens, never = np.zeros((*shape, 1 + len(self.penalties)), "int32"), np.full(shape, NEVER, "float32")
        tokens[:, :, 0] = self.start_token
        one = np.where(np.arange(self.width) == 0, np.float32(0), never)  # beams that begin alike would stay alike
        leaves = [ops.repeat(leaf, self.width, axis=0) for leaf in leaves]
        now = _Now(0, tokens, one, leaves, Decoded(tokens, never, never), np.zeros(shape[0], "bool"))
        return keras.tree.map_structure(ops.convert_to_tensor, now)

    def _step(self, now, state):
        """Returns the logits as float32 (batch * width, vocabulary), and the leaves of the new state."""
        tokens = ops.reshape(ops.take(now.tokens, now.time, axis=2), (-1,))
        old = keras.tree.pack_sequence_as(state, now.leaves)
        result = self.step(tokens, old)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            _refuse("step", "return the pair (logits, new state)", shown(result))
        logits, new = keras.tree.map_structure(ops.convert_to_tensor, tuple(result))
        rows, least = tokens.shape[0], 1 + max(self.end_token, *self.forbidden_tokens, 0)
        if len(logits.shape) != 2 or logits.shape[0] != rows or logits.shape[1] < least:
            _refuse("step", f"return logits ({rows}, vocabulary >= {least})", f"logits of shape {tuple(logits.shape)}")
        if _form(new) != _form(old):
            _refuse("step", f"return a state of the old one's structure, types and shapes, {_form(old)}", _form(new))
        return ops.cast(logits, "float32"), keras.tree.flatten(new)

    def _choose(self, now, logits):
        """Returns what follows, all but the state, and the row of `logits` that each new beam continues."""
        totals, parents, chosen = self._candidates(now, logits)
        here = ops.arange(now.tokens.shape[2], dtype="int32") == now.time + 1
        tokens = ops.where(here, chosen[..., None], _pick(now.tokens, parents))
        ended = chosen == self.end_token

        finished = ops.where(ended, totals, NEVER)[:, : self.width]
        scores = finished / ops.take(ops.convert_to_tensor(self.penalties, "float32"), now.time)
        both = [ops.concatenate(pair, axis=1) for pair in zip(now.pool, (tokens[:, : self.width], finished, scores))]
        order = ops.top_k(both[2], self.width)[1]
        pool = Decoded(*(_pick(one, order) for one in both))

        goes_on, order = ops.top_k(ops.where(ended, NEVER, totals), self.width)
        rows = ops.reshape(_rows(_pick(parents, order), self.width), (-1,))
        best, worst = goes_on[:, 0], pool.scores[:, -1]  # an empty place of the pool has -infinity
        # A log-probability, <= 0, is worth most at the greatest length.
        done = (worst > NEVER) | (best == NEVER) if self.early_stopping else best / self.penalties[-1] <= worst
        return _pick(tokens, order), goes_on, rows, pool, now.done | done

    def _candidates(self, now, logits):
        """Returns the best 2 * width extensions of each source: log-probabilities, beams extended and tokens.

        As a beam can end in one way only, they hold `width` that go on.
        """
        shape = now.log_probabilities.shape
        most_blocked = 1 + len(self.forbidden_tokens) + (len(self.penalties) if self.no_repeat_ngram else 0)
        values, tokens = ops.top_k(logits, min(logits.shape[1], 2 * self.width + most_blocked))
        values = ops.where(self._blocked(now, tokens), NEVER, values - ops.logsumexp(logits, axis=1)[:, None])
        values = ops.reshape(values, (*shape, -1)) + now.log_probabilities[..., None]
        alive = ((now.log_probabilities > NEVER) & ~now.done[:, None])[..., None]
        # What is NaN becomes the best and stays it to the end, where `_result` sees it.
        values = ops.where(alive, ops.where(ops.isnan(values), -NEVER, values), NEVER)
        totals, places = ops.top_k(ops.reshape(values, (shape[0], -1)), self.width * min(2, tokens.shape[1]))
        return totals, places // tokens.shape[1], ops.cast(_pick(ops.reshape(tokens, (shape[0], -1)), places), "int32")

    def _blocked(self, now, tokens):
        """Returns which of `tokens`, (rows, count), the options forbid."""
        blocked = (tokens == self.end_token) & (now.time + 1 < self.min_length)
        for token in self.forbidden_tokens:
            blocked = blocked | (tokens == token)
        n, length = self.no_repeat_ngram, len(self.penalties)
        if 0 < n <= length:
            past = ops.reshape(now.tokens, (-1, length + 1))[:, 1:]
            ngrams = ops.stack([past[:, i : i + length - n + 1] for i in range(n)], axis=-1)  # (rows, starts, n)
            start = now.time - n + 1  # of the n-gram that the next token completes
            last = ops.take(ngrams, ops.maximum(start, 0), axis=1)
            same = ops.all(ngrams[..., :-1] == last[:, None, :-1], axis=-1)
            same = same & (ops.arange(length - n + 1, dtype="int32") < start)
            blocked = blocked | ops.any(same[:, None] & (tokens[..., None] == ngrams[:, None, :, -1]), axis=-1)
        return blocked

    def _result(self, last):
        unfinished = Decoded(last.tokens, last.log_probabilities, last.log_probabilities / self.penalties[-1])
        nothing = last.pool.scores[:, :1] == NEVER
        masks = (nothing[..., None], nothing, nothing)
        tokens, log_probabilities, scores = (ops.where(*three) for three in zip(masks, unfinished, last.pool))
        tokens = ops.where((log_probabilities > NEVER)[..., None], tokens[:, :, 1:], 0)
        sound = ops.all(ops.maximum(last.log_probabilities, last.pool.log_probabilities) < -NEVER)
        return Decoded(tokens, log_probabilities, scores), sound


def _rows(places, size):
    """Returns places (batch, n) among the `size` of each source as rows among those of all sources."""
    return places + size * ops.arange(places.shape[0], dtype="int32")[:, None]


def _pick(x, places):
    """Returns the entries of x, (batch, size, ...), that `places`, (batch, n), says: (batch, n, ...)."""
    return ops.take(ops.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:])), _rows(places, x.shape[1]), axis=0)
