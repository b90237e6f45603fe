"""What the lab sets on a backend, and Keras has no name for: threads, and the notes that TensorFlow prints."""

import contextlib
import logging

import keras


def threads(number=None, operations=None):
    """Returns how many threads one operation may use on the running backend, and sets it if a number is given.

    0 stands for TensorFlow's own choice. JAX takes no orders: None, whatever the number. `operations` sets how many
    operations TensorFlow computes at a time.

    Raises:
        RuntimeError: TensorFlow has computed something with another number of threads.
    """
    if keras.backend.backend() == "tensorflow":
        from tensorflow import config

        if number is not None:
            config.threading.set_intra_op_parallelism_threads(number)
        if operations is not None:
            config.threading.set_inter_op_parallelism_threads(operations)
        return config.threading.get_intra_op_parallelism_threads()
    if keras.backend.backend() == "torch":
        import torch

        if number is not None:
            torch.set_num_threads(number)
        return torch.get_num_threads()
    return None


def first_process():
    """Returns whether this process is the first of those that compute together on JAX, or alone."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def quiet_tensorflow():
    """Holds back TensorFlow's notes that it maps some operations (dropout's) by a loop, and that it traces often."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
