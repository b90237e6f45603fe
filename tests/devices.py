"""Several devices made of one processor, for scripts that tests start as processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nnopt.recipes.running import RunFolder


def losses_on_one_and_two(words, strategy, backend, place):
    """Trains by a script beside this one without a strategy and with it on two devices; returns both first losses.

    Args:
        words: Name of the script and its arguments, without strategy and output.
        strategy, backend: Those of the second run.
        place: Folder for both runs.
    """
    environment = {**os.environ, "KERAS_BACKEND": backend, "LOGICAL_CPUS": "2" if backend == "tensorflow" else "0"}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    losses = []
    for name, count in (("none", 1), (strategy, 2)):
        script, folder = Path(__file__).with_name(words[0]), place / name
        command = [sys.executable, script, *words[1:], "--strategy", name, "--output", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((folder / "versions.json").read_text())["devices"] == count
        losses.append(RunFolder(folder).history()["loss"][0])
    return losses


def split_processor(count=None):
    """Lets TensorFlow take the processor for `count` devices, or LOGICAL_CPUS; it does so only before its first use."""
    if count := count or int(os.environ.get("LOGICAL_CPUS", "0")):
        import tensorflow as tf

        shares = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], shares)
