"""Argument checks with one form of error message: the argument, the rule, the value received.

Every constructor of the package calls these, so that a wrong value fails where it was written
and not three hours into a training run. Beside them stand how a value is shown and how it is told from another.
"""

import math
import numbers

import numpy as np


def check_number(name, value, *, above=None, at_least=None, below=None, at_most=None):
    """Returns `value` as a float, or says which rule it breaks.

    Args:
        name: Name of the argument, for the message.
        value: What the caller passed. Booleans, strings, arrays and tensors are no numbers.
        above: Exclusive lower bound.
        at_least: Inclusive lower bound.
        below: Exclusive upper bound.
        at_most: Inclusive upper bound.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is NaN, infinite or out of its bounds.

    Example:

    >>> check_number("rate", 0.5, above=0)
    0.5
    >>> check_number("rate", -1, above=0)
    Traceback (most recent call last):
    ...
    ValueError: `rate` must be a finite number > 0. Received: rate=-1
    """
    rule = "a finite number" + _bounds(above, at_least, below, at_most)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be {rule}. Received: {name}={value!r} (of type {type(value).__name__})")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result) or not _within(result, above, at_least, below, at_most):
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return result


def check_integer(name, value, *, at_least=None, at_most=None):
    """Returns `value` as an int, or says which rule it breaks. A float is no integer, not even 3.0.

    Args:
        name: Name of the argument, for the message.
        value: What the caller passed.
        at_least: Inclusive lower bound.
        at_most: Inclusive upper bound.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is out of its bounds.

    Example:

    >>> check_integer("steps", 10, at_least=1)
    10
    >>> check_integer("steps", 2.5, at_least=1)
    Traceback (most recent call last):
    ...
    TypeError: `steps` must be an integer >= 1. Received: steps=2.5 (of type float)
    """
    rule = "an integer" + _bounds(None, at_least, None, at_most)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be {rule}. Received: {name}={value!r} (of type {type(value).__name__})")
    if not _within(value, None, at_least, None, at_most):
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return int(value)


def check_boolean(name, value):
    """Returns `value` if it is True or False, and raises TypeError otherwise.

    Example:

    >>> check_boolean("staircase", True)
    True
    """
    return check_instance(name, value, bool, "True or False")


def check_instance(name, value, kind, rule):
    """Returns `value` if it is an instance of `kind`, a class or a tuple of classes, and raises TypeError otherwise.

    Args:
        name: Name of the argument, for the message.
        value: What the caller passed.
        kind: As the second argument of `isinstance`.
        rule: What it must be, in words.

    Example:

    >>> check_instance("sizes", 3, (list, tuple), "a list or tuple")
    Traceback (most recent call last):
    ...
    TypeError: `sizes` must be a list or tuple. Received: sizes=3 (of type int)
    """
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {rule}. Received: {name}={value!r} (of type {type(value).__name__})")
    return value


def check_choice(name, value, choices):
    """Returns `value` if it is one of `choices` (strings).

    Raises:
        TypeError: `value` is not a string.
        ValueError: `value` is none of the choices.

    Example:

    >>> check_choice("anneal", "cos", ("cos", "linear"))
    'cos'
    """
    rule = "one of " + ", ".join(repr(choice) for choice in choices)
    check_instance(name, value, str, rule)
    if value not in choices:
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return value


def check_callable(name, value):
    """Returns `value` if it can be called, and raises TypeError otherwise.

    Example:

    >>> check_callable("build", dict)
    <class 'dict'>
    """
    if not callable(value):
        raise TypeError(f"`{name}` must be a class or a function. Received: {name}={shown(value)}")
    return value


def check_seeds(seeds):
    """Returns the seeds as a list of distinct integers >= 0.

    Raises:
        TypeError: `seeds` is no list, range or array, or holds something else than integers.
        ValueError: One is negative or stands twice, or there is none.

    Example:

    >>> check_seeds(range(3))
    [0, 1, 2]
    """
    if isinstance(seeds, (str, dict)) or not hasattr(seeds, "__iter__") or np.ndim(seeds) == 0:
        raise TypeError(f"`seeds` must be a list or range of integers. Received: seeds={shown(seeds)}")
    seeds = [check_integer("seeds", seed, at_least=0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must hold at least one integer, none of them twice. Received: seeds={seeds!r}")
    return seeds


def shown(value):
    """Returns a value as an error message shows it: an array by its shape, anything long by its beginning.

    Example:

    >>> shown(np.zeros((2, 3)))
    '<ndarray of shape (2, 3), float64>'
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}>"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def identity(value):
    """Returns what is equal for two values that mean the same: their contents, or the object itself.

    Not `repr`, which abbreviates long arrays and says of many an object only its class.

    Example:

    >>> identity([1, "a"]) == identity([1, "a"]), identity(1) == identity(True)
    (True, False)
    """
    if isinstance(value, dict):
        return "dict", *((name, identity(one)) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *map(identity, value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape, value.dtype.str, value.tobytes()
    plain = value is None or isinstance(value, (bool, int, float, str, bytes, np.generic))
    return type(value).__name__, value if plain else id(value)


def _bounds(above, at_least, below, at_most):
    rules = [(">", above), (">=", at_least), ("<", below), ("<=", at_most)]
    return " and".join(
        f" {sign} {bound:g}" if bound < 1e6 else f" {sign} {bound}" for sign, bound in rules if bound is not None
    )


def _within(value, above, at_least, below, at_most):
    return (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
