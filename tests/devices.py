"""Several devices made of one processor, for scripts that tests start as processes of their own."""

import os


def environment(backend, count):
    """Returns the environment of a script with so many devices."""
    flags = f"--xla_force_host_platform_device_count={count}"
    own = (
        {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        if backend == "jax"
        else {"LOGICAL_CPUS": f"{count}"}
    )
    return {**os.environ, "KERAS_BACKEND": backend, **own}


def split_processor(count=None):
    """Lets TensorFlow take the processor for `count` devices, or LOGICAL_CPUS; it does so only before its first use."""
    if count := count or int(os.environ.get("LOGICAL_CPUS", "0")):
        import tensorflow as tf

        shares = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], shares)
