"""What the model builders share: seeds, initializers, the type of the logits, checks of shapes and names."""

import keras
import numpy as np

from nnopt.checks import check_instance, check_integer


def derived_seeds(seed, count, stream=0):
    """Returns `count` seeds that follow from `seed`, other ones for every stream; all None if `seed` is None."""
    if seed is None:
        return [None] * count
    sequence = np.random.SeedSequence([check_seed(seed), stream])
    return [int(word) >> 1 for word in sequence.generate_state(count)]  # 31 bits: some backends take no more


def initializer(initialization, seed, depth):
    """Returns the initializer of one layer: a copy of the template with a seed of its own where there is any."""
    template = _template(initialization)
    config = template.get_config()
    if "seed" not in config:
        return template
    if seed is None and isinstance(config["seed"], int):
        # Keras' initializers draw the same numbers each time: layers of one shape would start as twins.
        seed = derived_seeds(config["seed"], depth + 1)[depth]
    elif seed is None and config["seed"] is not None:
        return template  # a keras.random.SeedGenerator, which moves on by itself
    return type(template).from_config({**config, "seed": seed})


def _template(initialization):
    try:
        template = keras.initializers.get(initialization)
    except (ValueError, TypeError):
        template = None
    if not isinstance(template, keras.Initializer):
        raise ValueError(
            "`initialization` must be the name of a Keras initializer or an instance of one. "
            f"Received: initialization={initialization!r}"
        )
    return template


def logits_dtype(policy=None):
    """Returns float32 where the policy computes in half precision, whose logits would overflow or lose the loss."""
    policy = policy or keras.config.dtype_policy()
    return "float32" if policy.compute_dtype in ("float16", "bfloat16") else policy


def check_seed(seed):
    return None if seed is None else check_integer("seed", seed, at_least=0)


def check_sizes(name, value, least):
    check_instance(name, value, (list, tuple), "a list or tuple of integers >= 1")
    if len(value) < least:
        raise ValueError(f"`{name}` must hold at least {least} integer. Received: {name}={value!r}")
    return tuple(check_integer(f"{name}[{i}]", size, at_least=1) for i, size in enumerate(value))


def check_image_shape(input_shape):
    input_shape = check_sizes("input_shape", input_shape, least=1)
    if len(input_shape) != 3:
        raise ValueError(f"`input_shape` must be (height, width, channels). Received: input_shape={input_shape!r}")
    return input_shape


def check_activation(name, activation):
    try:
        return keras.activations.get(activation)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`{name}` must be the name of a Keras activation or a callable. Received: {name}={activation!r}"
        ) from error
