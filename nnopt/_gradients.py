"""Values and gradients of a function of tensors, in one form on the three backends."""

import functools

import keras
from keras import ops


def value_and_gradients(function, tensors):
    """Returns what a function gives, and the gradients of its first value.

    Call it as it is, or inside a compiled function. The function must be pure: it computes with the tensors it is given
    and assigns nothing, as within a `keras.StatelessScope` or by `stateless_call`.

    Args:
        function: Takes the list of tensors, and returns a pair: a scalar and any nest of tensors beside it, or None.
        tensors: List of floating tensors by which to differentiate.

    Returns:
        The pair that the function returned, and the list of the gradients of its scalar, zero for a tensor on which it
        does not depend.

    Example:

    >>> (value, _), (gradient,) = value_and_gradients(lambda x: (ops.sum(x[0] ** 2), None), [ops.ones(2)])
    >>> float(value), ops.convert_to_numpy(gradient).tolist()
    (2.0, [2.0, 2.0])
    """
    return _BACKENDS[keras.backend.backend()](function, list(tensors))


def compiled(function):
    """Returns the function compiled by the backend, where that makes it faster; its arguments are nests of tensors."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        # TensorFlow counts the traces of a piece of code, and would warn of the fifth model; a `partial` counts alone.
        return tf.function(functools.partial(function))
    return function


def _jax(function, tensors):
    import jax

    return jax.value_and_grad(function, has_aux=True)(tensors)


def _tensorflow(function, tensors):
    import tensorflow as tf

    tensors = [ops.convert_to_tensor(tensor) for tensor in tensors]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        value, others = function(tensors)
    gradients = tape.gradient(value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    # Those of an embedding come in slices.
    return (value, others), [tf.convert_to_tensor(gradient) for gradient in gradients]


def _torch(function, tensors):
    import torch

    with torch.enable_grad():
        tensors = [ops.convert_to_tensor(tensor).detach().requires_grad_() for tensor in tensors]
        value, others = function(tensors)
        gradients = torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)
    detach = torch.Tensor.detach
    return (detach(value), None if others is None else keras.tree.map_structure(detach, others)), list(gradients)


_BACKENDS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
