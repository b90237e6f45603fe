"""The one place that saves and restores variables and the states of random generators, and that seeds these.

`nnopt.callbacks.Resume` writes them to a file, `nnopt.find_learning_rate` holds them in memory, and a sweep seeds the
generators for each run and puts them back.
"""

import contextlib
import random
import sys
import threading

import keras
import numpy as np
from keras import ops

from nnopt import _keras

_one_at_a_time = threading.RLock()  # the random states that `seeded` seeds are the whole process's


def values(variables):
    """Returns copies of the variables' values as NumPy arrays; a list of arrays where replicas hold unlike ones.

    Args:
        variables: Keras variables. Under a distribution strategy of TensorFlow the replicas may differ, as the moving
            statistics of BatchNormalization and the sums of metrics do.

    Example:

    >>> import keras
    >>> variable = keras.Variable([1.0, 2.0])
    >>> saved = values([variable])
    >>> variable.assign([0.0, 0.0]) is None
    False
    >>> assign([variable], saved)
    >>> variable.numpy().tolist()
    [1.0, 2.0]
    """
    return [_value(variable) for variable in variables]


def assign(variables, saved):
    """Gives the variables the values that `values` returned for them, or for variables of the same shapes."""
    for variable, value in zip(variables, saved):
        parts = _replicas(variable)
        if len(parts) == 1:
            variable.assign(value)
            continue
        for part, own in zip(parts, value if isinstance(value, list) else [value] * len(parts)):
            part.assign(own)


class SavedVariables:
    """The values of variables, added in several steps; `restore` may be called several times.

    Example:

    >>> import keras
    >>> variable = keras.Variable(1.0)
    >>> saved = SavedVariables([variable])
    >>> variable.assign(2.0) is None
    False
    >>> saved.restore()
    >>> float(variable.numpy())
    1.0
    """

    def __init__(self, variables=()):
        self._saved = {}
        self.add(variables)

    def add(self, variables):
        """Saves the values of those variables that were not added before."""
        for variable in variables:
            if id(variable) not in self._saved:
                self._saved[id(variable)] = variable, _value(variable)

    def restore(self):
        """Gives all variables the values with which they were added."""
        for variable, value in self._saved.values():
            assign([variable], [value])


def stateless(step, parts, values, data):
    """Returns what a step gives that reads and assigns `values` instead of variables, and the values afterwards.

    So JAX, which hands a training step all state and takes it back, runs a step that is written with variables.

    Args:
        step: Function of the data.
        parts: Lists of variables.
        values: A list of values for each of them.
        data: What the step gets.

    Example:

    >>> variable = keras.Variable(1.0)
    >>> _, ((after,),) = stateless(variable.assign_add, [[variable]], [[ops.convert_to_tensor(5.0)]], 2.0)
    >>> float(after), float(variable.value)
    (7.0, 1.0)
    """
    pairs = [pair for variables, own in zip(parts, values) for pair in zip(variables, own)]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        result = step(data)
    return result, tuple([scope.get_current_value(variable) for variable in variables] for variables in parts)


def random_states():
    """Returns the states of all global random generators, as a tree of numbers, strings, lists and NumPy arrays.

    They are those of Python, of NumPy, the one behind `keras.random` without a seed (None before its first use), and,
    where they are loaded, of torch and TensorFlow's `tf.random.get_global_generator()`. What nobody can read is left
    out: the counters behind TensorFlow's stateful operations, such as `tf.random.uniform`.
    """
    generator = _keras.global_seed_generator()
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "keras": None if generator is None else _value(generator.state),
    }
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state().numpy()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = [state.numpy() for state in torch.cuda.get_rng_state_all()]
    if generator := _tensorflow_generator():
        states["tensorflow"] = generator.state.numpy()
    return states


def set_random_states(states):
    """Takes back what `random_states` returned, in this process or another; what is not loaded here is passed over."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])
    # Keras makes its generator at the first use, seeded by Python's.
    if states["keras"] is None:
        _keras.set_global_seed_generator(None)
    else:
        _keras.made_global_seed_generator().state.assign(states["keras"])
        random.setstate((version, tuple(internal), gauss))
    if "torch" in states and (torch := sys.modules.get("torch")):
        torch.set_rng_state(torch.from_numpy(states["torch"].copy()))
        if "cuda" in states:
            torch.cuda.set_rng_state_all([torch.from_numpy(state.copy()) for state in states["cuda"]])
    if "tensorflow" in states and (generator := _tensorflow_generator()):
        generator.reset(states["tensorflow"])


@contextlib.contextmanager
def preserved_random_state():
    """Lets the body draw random numbers and seed as it likes; afterwards all generators are where they were.

    Example:

    >>> random.seed(3)
    >>> with preserved_random_state():
    ...     random.seed(0)
    ...     inside = random.random()
    >>> after = random.random()
    >>> random.seed(3)
    >>> after == random.random()
    True
    """
    generator, states = _keras.global_seed_generator(), random_states()
    try:
        yield
    finally:
        # The very object: a compiled function may hold on to it.
        _keras.set_global_seed_generator(generator)
        set_random_states(states)


@contextlib.contextmanager
def seeded(seed):
    """Begins as after `keras.utils.set_random_seed(seed)` and puts the random states back; one thread at a time.

    Example:

    >>> with seeded(3):
    ...     inside = random.random()
    >>> with seeded(3):
    ...     inside == random.random()
    True
    """
    with _one_at_a_time, preserved_random_state():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        _keras.set_global_seed_generator(None)
        # Not Keras' function itself: on JAX it would load TensorFlow for this.
        if keras.backend.backend() == "tensorflow":
            import tensorflow

            tensorflow.random.set_seed(seed)
        elif keras.backend.backend() == "torch":
            import torch

            torch.manual_seed(seed)
        yield


def _value(variable):
    parts = [np.array(ops.convert_to_numpy(part)) for part in _replicas(variable)]
    alike = all(part.tobytes() == parts[0].tobytes() for part in parts[1:])
    return parts[0] if alike else parts


def _replicas(variable):
    """What holds the variable's values: itself, or one variable of TensorFlow on each device."""
    value = variable.value
    if hasattr(value, "distribute_strategy") and "tensorflow" in sys.modules:
        parts = value.distribute_strategy.experimental_local_results(value)
        return parts if len(parts) > 1 else (variable,)
    return (variable,)


def _tensorflow_generator():
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return None
    try:
        return tensorflow.random.get_global_generator()
    except RuntimeError:  # not seeded, and TensorFlow was told to be deterministic
        return None
