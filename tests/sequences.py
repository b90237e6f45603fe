"""Encoder-decoder models and a batch of sentences with padding, for the tests of `seq2seq` and `transformer`."""

import functools

import keras
import numpy as np
import pytest

from nnopt.models import seq2seq, transformer

GENERATOR = np.random.default_rng(0)
SOURCE, TARGET = GENERATOR.integers(2, 11, (4, 6)), GENERATOR.integers(2, 13, (4, 5))
TARGET[:, 0] = 1
for _row, (_source, _target) in enumerate([(6, 5), (4, 2), (1, 4), (5, 1)]):
    SOURCE[_row, _source:] = 0
    TARGET[_row, _target:] = 0
REAL = TARGET != 0

BUILDERS = {
    "luong": lambda **more: seq2seq(11, 13, 6, embedding=5, **more),
    "luong gru": lambda **more: seq2seq(11, 13, 6, embedding=5, cell="gru", **more),
    "bahdanau": lambda **more: seq2seq(11, 13, 6, embedding=5, attention="bahdanau", **more),
    "bahdanau gru": lambda **more: seq2seq(11, 13, 6, embedding=5, cell="gru", attention="bahdanau", **more),
    "none": lambda **more: seq2seq(11, 13, 6, embedding=5, attention=None, **more),
    "luong deep": lambda **more: seq2seq(11, 13, 6, embedding=5, layers=2, **more),
    "luong gru deep": lambda **more: seq2seq(11, 13, 6, embedding=5, cell="gru", layers=2, **more),
    "bahdanau deep": lambda **more: seq2seq(11, 13, 6, embedding=5, attention="bahdanau", layers=2, **more),
    "bahdanau gru deep": lambda **more: seq2seq(
        11, 13, 6, embedding=5, cell="gru", attention="bahdanau", layers=2, **more
    ),
    "none deep": lambda **more: seq2seq(11, 13, 6, embedding=5, attention=None, layers=2, **more),
    "none gru deep": lambda **more: seq2seq(11, 13, 6, embedding=5, cell="gru", attention=None, layers=2, **more),
    "transformer": lambda **more: transformer(11, 13, 8, heads=2, **more),
}
# Where a case costs seconds, the plain runs take a few kinds and the thorough ones all.
FOUR = ("luong", "bahdanau", "bahdanau gru deep", "transformer")
USUALLY_FOUR = [kind if kind in FOUR else pytest.param(kind, marks=pytest.mark.thorough) for kind in BUILDERS]
USUALLY_ONE = ["luong", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in BUILDERS if kind != "luong")]


class Made(dict):
    """What a function returns for each key, made when first asked for."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, key):
        self[key] = self.make(key)
        return self[key]


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


@functools.cache
def compiled(function):
    """On JAX, where compiling each operation by itself takes far longer, the function compiled as a whole."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def padded(batch, more):
    return np.pad(batch, ((0, 0), (0, more)))


def make(kind):
    """A model with numbers that every backend draws alike, also where initial weights are all 0 or 1."""
    model, random = BUILDERS[kind](seed=0), np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(0.4 * random.normal(size=weight.shape))
    return model


MODELS = Made(make)
LOGITS = Made(lambda kind: array(compiled(MODELS[kind])([SOURCE, TARGET])))
