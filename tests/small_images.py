"""The command line on 160 of the `photos`, for tests that need a process of their own.

python tests/small_images.py train image --preset laptop --output DIR
"""

import dataclasses
import sys

from devices import split_processor

from nnopt.data import images

FAST = ["epochs=2", "depth=8", "width=4", "batch_size=16"]
LOAD = images.load


def small(name="photos", seed=0):
    """Returns a small part of a data set."""
    data = LOAD(name, seed)
    parts = {"train": 96, "validation": 32, "test": 32}
    cut = {part: tuple(array[:count] for array in getattr(data, part)) for part, count in parts.items()}
    return dataclasses.replace(data, **cut)


if __name__ == "__main__":
    split_processor()
    from nnopt.__main__ import main

    images.load = small
    sys.exit(main())
