"""nnopt: what Keras 3 lacks to put claims about neural-network optimization to the test."""

from nnopt._start import without_garbage_collection, without_tensorflow_notices

with without_garbage_collection(), without_tensorflow_notices():
    import keras  # noqa: F401

    from nnopt import attacks, callbacks, data, decoding, explain, models, schedules
    from nnopt.finder import LearningRateCurve, find_learning_rate

__all__ = [
    "LearningRateCurve",
    "attacks",
    "callbacks",
    "data",
    "decoding",
    "explain",
    "find_learning_rate",
    "models",
    "schedules",
]
__version__ = "0.1.0"
