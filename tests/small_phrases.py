"""The command line on a few short `phrases`, for tests that need a process of their own.

python tests/small_phrases.py train translation --preset laptop --set pairs=120 vocabulary=150 --output DIR
"""

import dataclasses
import sys

import keras
from devices import split_processor

from nnopt.data import number_phrases
from nnopt.recipes import TranslationRecipe, translation

FAST = ["pairs=120", "vocabulary=150", "longest=17", "units=8", "embedding=8", "epochs=2", "batch_size=16"]
LOAD = number_phrases.phrases


def small(seed=0, *, pairs):
    """Returns phrases of one clause with small numbers; of validation and test the eight shortest."""
    data = LOAD(seed, pairs=(pairs[0], 40, 40), clauses=1, largest=99)
    short = {}
    for part in ("validation", "test"):
        x, y = getattr(data, part)
        rows = sorted(range(len(x)), key=lambda row, x=x, y=y: len(x[row]) + len(y[row]))[:8]
        short[part] = x[rows], y[rows]
    return dataclasses.replace(data, **short)


def quicken(patch):
    """Spares the search for translations, whose references come without their first word, and TensorFlow's tracing.

    Args:
        patch: A pytest.MonkeyPatch.
    """
    data = small(pairs=(120, 8, 8))
    known = {x: y.split(" ", 1)[1] for part in (data.validation, data.test) for x, y in zip(*part)}
    build = TranslationRecipe.build_training_model

    def untraced(*arguments, **options):
        model = build(*arguments, **options)
        model.run_eagerly = keras.backend.backend() == "tensorflow"
        return model

    patch.setattr(number_phrases, "phrases", small)
    patch.setattr(translation, "decode", lambda network, subwords, x, *_, **__: [known[one] for one in x])
    patch.setattr(TranslationRecipe, "build_training_model", untraced)


if __name__ == "__main__":
    split_processor()
    from nnopt.__main__ import main

    number_phrases.phrases = small
    sys.exit(main())
