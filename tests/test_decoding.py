"""`greedy_search` and `beam_search`: against exhaustive search, against plain Python, and what each option promises."""

import functools
import itertools

import keras
import numpy as np
import pytest
from keras import ops
from sequences import MODELS, SOURCE, array, compiled

from nnopt import decoding
from nnopt.decoding import beam_search, greedy_search
from nnopt.models import seq2seq

START, END = 1, 2
UNITS = 4
CLOSE = {"rtol": 1e-5, "atol": 5e-5}  # float32 here, float64 in NumPy


class RandomModels:
    """Small recurrent networks, one for each source, whose logits depend on every token so far.

    Their weights are in the state, so that one compiled `step` serves all of them.
    """

    def __init__(self, count, vocabulary, seed):
        random = np.random.default_rng(seed)
        shapes = ((vocabulary, UNITS), (UNITS, UNITS), (UNITS, vocabulary))
        self.weights = tuple(2 * random.normal(size=(count, *shape)).astype("float32") for shape in shapes)
        self.count, self.vocabulary = count, vocabulary

    def state(self, rows=slice(None)):
        weights = tuple(weight[rows] for weight in self.weights)
        count = len(weights[0])
        seen = np.zeros((count, self.vocabulary), "bool")
        return {"weights": weights, "past": [np.zeros((count, UNITS), "float32"), (seen, np.zeros(count, "int32"))]}

    def log_probabilities(self, model, prefix):
        """What follows a sequence of tokens, in NumPy, from the start token on."""
        embedding, recurrent, output = (weight[model].astype("float64") for weight in self.weights)
        hidden, seen = np.zeros(UNITS), np.zeros(self.vocabulary)
        for number, token in enumerate((START, *prefix)):
            hidden = np.tanh(hidden @ recurrent + embedding[token] + 0.1 * number)
            seen[token] = 1
        logits = hidden @ output - 1.5 * seen
        return logits - np.log(np.exp(logits).sum())


def step(tokens, state):
    embedding, recurrent, output = state["weights"]
    hidden, (seen, number) = state["past"]
    one = ops.one_hot(tokens, embedding.shape[1], dtype="float32")
    read = ops.einsum("rv,rvu->ru", one, embedding) + ops.einsum("ru,ruw->rw", hidden, recurrent)
    hidden = ops.tanh(read + 0.1 * ops.cast(number, "float32")[:, None])
    seen = ops.logical_or(seen, one > 0)
    logits = ops.einsum("ru,ruv->rv", hidden, output) - 1.5 * ops.cast(seen, "float32")
    return logits, {"weights": state["weights"], "past": [hidden, (seen, number + 1)]}


def arrays(decoded):
    return type(decoded)(*map(array, decoded))


def search(models, width, length, **options):
    return arrays(beam_search(options.pop("step", step), models.state(), START, END, width, length, **options))


@functools.cache
def initial_state(kind, **room):
    return compiled(lambda source: MODELS[kind].initial_state(source, **room))


def penalty(length, alpha):
    return length if alpha == "average" else ((5 + length) / 6) ** alpha


def generated(row):
    """The tokens of a row of the result up to the end token, all of them if there is none."""
    row = row.tolist()
    return tuple(row[: row.index(END) + 1]) if END in row else tuple(row)


def every_sequence(models, model, length):
    """Each sequence of at most `length` tokens that ends, with its log-probability."""
    found, prefixes = {}, {(): 0.0}
    for _ in range(length):
        longer = {}
        for prefix, total in prefixes.items():
            for token, value in enumerate(models.log_probabilities(model, prefix)):
                (found if token == END else longer)[(*prefix, token)] = total + value
        prefixes = longer
    return found


# (vocabulary, length, alpha, number of models): 500 models in all.
EXHAUSTIVE = [
    (4, 5, 0.6, 20),
    (5, 4, 0.0, 20),
    (6, 3, 1.0, 20),
    *(
        pytest.param(*case, marks=pytest.mark.thorough)
        for case in [
            *((4, length, alpha, 40) for length, alpha in [(2, 0.0), (3, 2.0), (4, "average"), (5, 0.0), (5, 1.5)]),
            *((5, length, alpha, 30) for length, alpha in [(3, 0.6), (4, 2.0), (5, 0.6), (5, "average")]),
            *((6, length, alpha, 30) for length, alpha in [(3, 0.0), (4, 0.6)]),
            (6, 5, 1.0, 30),
            (6, 5, 0.0, 30),
        ]
    ),
]


def test_the_cases_make_500_models():
    assert sum((case.values if hasattr(case, "values") else case)[3] for case in EXHAUSTIVE) == 500


@pytest.mark.parametrize(("vocabulary", "length", "alpha", "count"), EXHAUSTIVE)
def test_full_width_finds_every_sequence(vocabulary, length, alpha, count):
    models = RandomModels(count, vocabulary, seed=vocabulary * 10 + length)
    # So many candidates has the last step; the pool then has room for all that ended.
    width = vocabulary * (vocabulary - 1) ** (length - 1)
    found = search(models, width, length, length_penalty=alpha, early_stopping=False)
    for model in range(count):
        expected = every_sequence(models, model, length)
        scores = {tokens: value / penalty(len(tokens), alpha) for tokens, value in expected.items()}
        number = len(expected)
        assert np.isneginf(found.scores[model, number:]).all()
        best = generated(found.tokens[model, 0])
        assert scores[best] == pytest.approx(max(scores.values()), abs=5e-5)  # the optimum
        kept = [generated(row) for row in found.tokens[model, :number]]
        assert set(kept) == set(expected)
        np.testing.assert_allclose(found.log_probabilities[model, :number], [*map(expected.get, kept)], **CLOSE)
        penalties = np.array([penalty(len(tokens), alpha) for tokens in kept], "float32")
        # XLA may divide by multiplying with the reciprocal, which can differ in the last bit.
        exact = found.log_probabilities[model, :number] / penalties
        np.testing.assert_allclose(found.scores[model, :number], exact, rtol=3e-7)
        assert (np.diff(found.scores[model, :number]) <= 0).all()


def plain_search(models, model, width, length, length_penalty=0.0, early_stopping=True, **rules):
    """The same search for one source, with lists, written from the docstring."""
    min_length, no_repeat_ngram, forbidden_tokens = map(
        rules.get, ("min_length", "no_repeat_ngram", "forbidden_tokens")
    )

    def allowed(prefix, token):
        n, longer = no_repeat_ngram, (*prefix, token)
        grams = [longer[i : i + n] for i in range(len(longer) - n + 1)] if n else []
        early = token == END and len(longer) < (min_length or 1)
        return not early and token not in (forbidden_tokens or ()) and len(set(grams)) == len(grams)

    running, pool = [(0.0, ())], []
    for time in range(1, length + 1):
        candidates = [
            (total + value, (*prefix, token))
            for total, prefix in running
            for token, value in enumerate(models.log_probabilities(model, prefix))
            if allowed(prefix, token)
        ]
        candidates.sort(reverse=True)
        ended = [one for one in candidates[:width] if one[1][-1] == END]
        pool += [(total / penalty(time, length_penalty), total, tokens) for total, tokens in ended]
        pool = sorted(pool, reverse=True)[:width]
        running = [one for one in candidates if one[1][-1] != END][:width]
        bound = running[0][0] / penalty(length, length_penalty) if running else -np.inf
        if not running or (len(pool) == width and (early_stopping or bound <= pool[-1][0])):
            break
    return pool or [(total / penalty(length, length_penalty), total, tokens) for total, tokens in running]


OPTIONS = {
    "plain": {},
    "penalty": {"length_penalty": 0.8},
    "exact": {"length_penalty": 0.8, "early_stopping": False},
    "exact, no penalty": {"early_stopping": False},
    "average": {"length_penalty": "average", "early_stopping": False},
    "min_length": {"min_length": 4, "early_stopping": False},
    "no token twice": {"no_repeat_ngram": 1, "early_stopping": False},
    "no pair twice": {"no_repeat_ngram": 2, "length_penalty": 2.0, "early_stopping": False},
    "no triple twice": {"no_repeat_ngram": 3, "length_penalty": 2.0, "early_stopping": False},
    "forbidden": {"forbidden_tokens": (0, 4)},
    "all": {"min_length": 3, "no_repeat_ngram": 2, "forbidden_tokens": [0], "length_penalty": 1.0},
}


@functools.cache
def searched(name, width, length=8):
    models = RandomModels(12, 6, seed=5)
    return models, search(models, width, length, **OPTIONS[name])


@pytest.mark.parametrize(("name", "width"), [*((name, 3) for name in OPTIONS), ("exact", 1), ("all", 1)])
def test_same_as_a_plain_search(name, width):
    models, found = searched(name, width)
    for model in range(models.count):
        expected = plain_search(models, model, width, 8, **OPTIONS[name])
        number = len(expected)
        assert [generated(row) for row in found.tokens[model, :number]] == [tokens for _, _, tokens in expected]
        np.testing.assert_allclose(found.scores[model, :number], [one[0] for one in expected], **CLOSE)
        np.testing.assert_allclose(found.log_probabilities[model, :number], [one[1] for one in expected], **CLOSE)
        assert np.isneginf(found.scores[model, number:]).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_width_one_is_greedy(alpha):
    models = RandomModels(30, 5, seed=3)
    greedy = arrays(greedy_search(step, models.state(), START, END, 7))
    for found in (greedy, search(models, 1, 7, length_penalty=alpha)):
        assert found.tokens.shape == (30, 1, 7)
        for model in range(30):
            tokens, total = (), 0.0
            while len(tokens) < 7 and END not in tokens:
                values = models.log_probabilities(model, tokens)
                tokens, total = (*tokens, int(values.argmax())), total + values.max()
            assert generated(found.tokens[model, 0]) == tokens
            assert found.log_probabilities[model, 0] == pytest.approx(total, abs=5e-5)


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_source_does_not_depend_on_its_batch(early_stopping):
    models = RandomModels(16, 5, seed=8)
    options = {"length_penalty": 1.0, "early_stopping": early_stopping}
    together = search(models, 3, 9, **options)
    assert len({len(generated(row[0])) for row in together.tokens}) > 2  # they stop at different times
    for row in range(models.count):
        alone = arrays(beam_search(step, models.state(slice(row, row + 1)), START, END, 3, 9, **options))
        assert np.array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], **CLOSE)


@pytest.mark.parametrize("kind", ["luong", "transformer", pytest.param("bahdanau", marks=pytest.mark.thorough)])
def test_ragged_sources_of_a_model_are_as_each_alone(kind):
    room = {"maximal_length": 6} if kind == "transformer" else {}

    def found(source):
        return arrays(beam_search(MODELS[kind].step, initial_state(kind, **room)(source), START, END, 3, 6, 0.6))

    together = found(SOURCE)
    for row in (1, 2):  # of four tokens and of one, where the batch has room for six
        alone = found(SOURCE[None, row, SOURCE[row] != 0])
        assert np.array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-4)


@pytest.mark.parametrize("kind", ["luong gru", "transformer"])
def test_log_probabilities_are_those_of_teacher_forcing(kind):
    model, width, length = MODELS[kind], 3, 6
    state = initial_state(kind, **({"maximal_length": length} if kind == "transformer" else {}))(SOURCE)
    found = arrays(beam_search(model.step, state, START, END, width, length, forbidden_tokens=(0,)))
    rows = found.tokens.reshape(-1, length)
    read = np.concatenate([np.full((len(rows), 1), START), rows[:, :-1]], axis=1)
    values = array(ops.log_softmax(model([SOURCE.repeat(width, axis=0), read])))
    values = np.take_along_axis(values, rows[..., None], axis=2)[..., 0]
    expected = (values * (rows != 0)).sum(axis=1).reshape(-1, width)
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-4)


def test_a_finished_score_never_changes():
    models, width = RandomModels(20, 5, seed=1), 4
    options = {"length_penalty": 0.6, "early_stopping": False}
    changes = 0
    shorter = None
    for length in (2, 4, 7):
        now = search(models, width, length, **options)
        if shorter is not None:
            for old, old_scores, new, new_scores in zip(shorter.tokens, shorter.scores, now.tokens, now.scores):
                scores = {generated(tokens): score for tokens, score in zip(new, new_scores) if END in tokens}
                for tokens, score in zip(map(generated, old), old_scores):
                    if tokens in scores:
                        assert scores[tokens] == pytest.approx(score, rel=3e-7)  # to the last bit or two
                    elif END in tokens:
                        changes += 1
                        assert len(scores) == width
                        assert score <= min(scores.values())  # left the pool for better ones
        shorter = now
    assert changes > 5


@pytest.mark.parametrize("name", OPTIONS)
def test_only_padding_follows_the_end_token(name):
    found = searched(name, 3)[1]
    ended = 0
    for row in found.tokens.reshape(-1, found.tokens.shape[-1]):
        ended += END in row
        assert not row[len(generated(row)) :].any()
    assert ended > 10
    assert found.tokens.dtype == np.int32
    assert found.scores.dtype == found.log_probabilities.dtype == np.float32


def test_the_options_do_what_they_say():
    def kept(name):
        found = searched(name, 3)[1]
        return [generated(row) for row in found.tokens[np.isfinite(found.scores)]]

    assert any(len(tokens) < 4 for tokens in kept("plain"))
    assert all(len(tokens) >= 4 for tokens in kept("min_length"))
    assert any(len(set(tokens)) < len(tokens) for tokens in kept("plain"))
    assert all(len(set(tokens)) == len(tokens) for tokens in kept("no token twice"))
    pairs = [[*itertools.pairwise(tokens)] for tokens in kept("no pair twice")]
    assert all(len(set(one)) == len(one) for one in pairs)
    assert any({0, 4} & set(tokens) for tokens in kept("plain"))
    assert not any({0, 4} & set(tokens) for tokens in kept("forbidden"))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_early_stopping_never_scores_higher(alpha):
    models = RandomModels(40, 5, seed=2)
    early = search(models, 3, 8, length_penalty=alpha, early_stopping=True).scores
    exact = search(models, 3, 8, length_penalty=alpha, early_stopping=False).scores
    assert (early <= exact).all()
    assert (early < exact).any()


def test_xla_finds_the_same():
    models, expected = searched("all", 3)
    found = search(models, 3, 8, jit_compile=True, **OPTIONS["all"])
    assert np.array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, **CLOSE)


def test_unfinished_sequences_compete_only_where_nothing_is_finished():
    def step(tokens, state):
        return ops.where(ops.one_hot(tokens * 0 + END, 4) > 0, state["end"][:, None], state["others"]), state

    others = np.zeros((3, 4), "float32")
    state = {"end": np.array([-20.0, 2.0, 0.1], "float32"), "others": others}
    found = arrays(beam_search(step, state, START, END, 2, 3, 1.0))
    unfinished = (found.tokens != END).all(axis=-1)
    assert unfinished[0].all()
    assert (found.tokens[0] != END).all()
    np.testing.assert_allclose(found.scores[0], found.log_probabilities[0] / (8 / 6), rtol=1e-6)
    assert not unfinished[1:].any()


def test_beams_without_a_sequence_are_empty():
    def only_end(tokens, state):
        return ops.where(ops.one_hot(tokens * 0 + END, 4) > 0, 0.0, float("-inf")), state

    found = arrays(beam_search(only_end, np.zeros((2, 1)), START, END, 3, 4))
    assert found.tokens.tolist() == [[[END, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]] * 2
    assert found.scores.tolist() == found.log_probabilities.tolist() == [[0.0, -np.inf, -np.inf]] * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_summed_in_float32(dtype):
    def half(tokens, state):
        logits, state = step(tokens, state)
        return ops.cast(logits, dtype), state

    def rounded(tokens, state):
        logits, state = step(tokens, state)
        return ops.cast(ops.cast(logits, dtype), "float32"), state

    models = RandomModels(8, 5, seed=4)
    ours, expected = (search(models, 3, 6, step=one) for one in (half, rounded))
    assert np.array_equal(ours.tokens, expected.tokens)
    assert np.array_equal(ours.log_probabilities, expected.log_probabilities)
    assert ours.log_probabilities.dtype == np.float32


def test_weights_that_changed_are_used():
    model = seq2seq(11, 13, 6, embedding=5, seed=0)

    def found():
        return arrays(beam_search(model.step, model.initial_state(SOURCE), START, END, 2, 5))

    before = found()
    for weight in model.weights:
        weight.assign(3 * weight)
    after = found()
    decoding._compiled.cache_clear()
    assert np.array_equal(after.log_probabilities, found().log_probabilities)
    assert not np.allclose(before.log_probabilities, after.log_probabilities)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch runs the loop eagerly")
def test_compiled_once_for_each_shape():
    calls = []

    def counted(tokens, state):
        calls.append(tokens.shape)
        return step(tokens, state)

    models = RandomModels(4, 5, seed=0)
    search(models, 2, 4, step=counted)
    first = len(calls)
    search(RandomModels(4, 5, seed=1), 2, 4, step=counted)
    assert len(calls) == first > 0
    search(RandomModels(5, 5, seed=1), 2, 4, step=counted)
    assert len(calls) > first


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="elsewhere `step` is traced once for all steps")
def test_a_state_that_changes_only_sometimes_is_reordered():
    """On torch a step may return a tensor as it was, though an earlier one has made it different for each beam."""

    def now_and_then(tokens, state):
        logits, new = step(tokens, {**state, "past": state["past"][:2]})
        mark = state["past"][2]
        logits = logits + 2.0 * ops.one_hot(mark % 5, 5)
        return logits, {**new, "past": [*new["past"], tokens if bool(ops.all(new["past"][1][1] == 2)) else mark]}

    def always(tokens, state):
        logits, new = now_and_then(tokens, state)
        return logits, {**new, "past": [*new["past"][:2], new["past"][2] + 0]}

    models = RandomModels(8, 5, seed=6)
    state = models.state()
    state["past"].append(np.zeros(8, "int32"))
    found, expected = (arrays(beam_search(one, state, START, END, 3, 6)) for one in (now_and_then, always))
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.scores, expected.scores)


GOOD = {
    "step": step,
    "state": {"h": np.zeros((2, 3), "float32")},
    "start_token": 1,
    "end_token": 2,
    "beam_width": 2,
    "max_length": 4,
}


def returning(logits, state=None):
    """A step with such logits, whose new state is the old one, or what `state` makes of it."""
    return lambda tokens, old: (logits(tokens.shape[0]), old if state is None else state(old))


def zeros(rows):
    return ops.zeros((rows, 4))


BAD = {
    "`step` must be a class or a function": {"step": 3},
    "`state` must be a nest .* Received: state=\\{'h': '3.0'": {"state": {"h": 3.0}},
    "`state` must be a nest": {"state": (np.zeros((2, 3)), np.zeros((3, 3)))},
    "`state` must be a nest .* the batch": {"state": {}},
    "`start_token` must be an integer >= 0": {"start_token": -1},
    "`end_token` must be an integer >= 0. Received: end_token=2.0": {"end_token": 2.0},
    "`beam_width` must be an integer >= 1. Received: beam_width=0": {"beam_width": 0},
    "`max_length` must be an integer >= 1": {"max_length": 0},
    "`length_penalty` must be a finite number >= 0. Received: length_penalty=-1": {"length_penalty": -1},
    "`length_penalty` must be a finite number": {"length_penalty": "mean"},
    "`early_stopping` must be True or False": {"early_stopping": "never"},
    "`min_length` must be an integer >= 1 and <= 4. Received: min_length=5": {"min_length": 5},
    "`no_repeat_ngram` must be an integer >= 0": {"no_repeat_ngram": None},
    "`jit_compile` must be True or False": {"jit_compile": "auto"},
    "`forbidden_tokens` must be a list of integers": {"forbidden_tokens": 3},
    "`forbidden_tokens` must be an integer >= 0": {"forbidden_tokens": [0.5]},
    "`step` must return the pair": {"step": lambda tokens, state: zeros(tokens.shape[0])},
    "`step` must return logits .* Received: logits of shape \\(3, 4\\)": {"step": returning(lambda rows: zeros(3))},
    "`step` must return logits \\(4, vocabulary >= 8\\)": {"step": returning(zeros), "end_token": 7},
    "`step` must return logits \\(4, vocabulary >= 10\\)": {"step": returning(zeros), "forbidden_tokens": [9]},
    "`step` must return a state .* Received: .*float16": {
        "step": returning(zeros, lambda old: {"h": ops.cast(old["h"], "float16")})
    },
    "`step` must return a state": {"step": returning(zeros, lambda old: (old["h"],))},
    "`step` must return logits without NaN": {"step": returning(lambda rows: zeros(rows) + float("nan"))},
    "`step` must return logits .* nor all of a row -infinity": {
        "step": returning(lambda rows: zeros(rows) - float("inf"))
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    with pytest.raises((TypeError, ValueError), match=message):
        beam_search(**{**GOOD, **BAD[message]})


def test_logits_that_are_missing_late_are_found():
    """The Transformer gives NaN beyond the room of its state; some sources are finished by then."""
    model = MODELS["transformer"]
    state = initial_state("transformer", maximal_length=3)(SOURCE)
    beam_search(model.step, state, START, END, 3, 3)
    with pytest.raises(ValueError, match="`step` must return logits without NaN"):
        beam_search(model.step, state, START, END, 3, 8, min_length=6)
