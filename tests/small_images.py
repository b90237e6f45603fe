"""The command line on 160 of the `photos`, for tests that need a process of their own.

    LOGICAL_CPUS=2 python tests/small_images.py train image --preset laptop --output DIR

With LOGICAL_CPUS TensorFlow splits the processor, which it does only before its first use.
"""

import dataclasses
import os
import sys

from nnopt.data import images

FAST = ["epochs=2", "depth=8", "width=4", "batch_size=16"]
LOAD = images.load


def small(name="photos", seed=0):
    """Returns a small part of a data set."""
    data = LOAD(name, seed)
    parts = {"train": 96, "validation": 32, "test": 32}
    cut = {part: tuple(array[:count] for array in getattr(data, part)) for part, count in parts.items()}
    return dataclasses.replace(data, **cut)


def split_processor(count):
    """Lets TensorFlow take the processor for several devices."""
    import tensorflow as tf

    shares = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], shares)


if __name__ == "__main__":
    if "LOGICAL_CPUS" in os.environ:
        split_processor(int(os.environ["LOGICAL_CPUS"]))
    from nnopt.__main__ import main

    images.load = small
    sys.exit(main())
