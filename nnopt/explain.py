"""What in the input a classifier's answer rests on: maps of attributions, and curves that judge such maps."""

import functools

import keras
import numpy as np
from keras import ops

from nnopt._classifiers import check_classifier, checked_examples, in_batches, logits_of, of_class, weights_of
from nnopt._gradients import compiled, value_and_gradients
from nnopt.checks import check_boolean, check_instance, check_integer, check_number, shown


def saliency(model, x, y=None):
    """Returns the gradient of the logit of a class by the input.

    Args:
        model: A built keras.Model from inputs (batch, ...) to logits (batch, classes), run in inference mode.
        x: Array of floating-point inputs, (examples, ...).
        y: Integer classes, (examples,); None for the model's own answers.

    Returns:
        A NumPy array of the shape of x. Its absolute value is what Simonyan et al. draw.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]])])
    >>> saliency(model, np.zeros((1, 2)), np.array([1])).tolist()
    [[2.0, 4.0]]

    Reference: Simonyan, Vedaldi and Zisserman 2014, "Deep inside convolutional networks", section 3.
    """
    x, y = _checked(model, x, y)
    return _gradient(model, x, y)


def smooth_grad(model, x, y=None, *, noise=0.15, samples=32, seed=None):
    """Returns the mean saliency of copies of the input with normal noise.

    Args:
        model, x, y: As in `saliency`.
        noise: Standard deviation of the noise as a share of the range of x, max x - min x of an example, >= 0.
        samples: Copies of an example, >= 1.
        seed: Integer >= 0; with None NumPy draws it.

    Returns:
        A NumPy array of the shape of x.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Reference: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", section 3.1.
    """
    x, y = _checked(model, x, y)
    noise = check_number("noise", noise, at_least=0)
    random = np.random.default_rng(seed if seed is None else check_integer("seed", seed, at_least=0))
    axes = tuple(range(1, x.ndim))
    scale = noise * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    total = np.zeros(x.shape)
    for _ in range(check_integer("samples", samples, at_least=1)):
        total += _gradient(model, (x + scale * random.normal(size=x.shape)).astype("float32"), y)
    return total / samples


def integrated_gradients(model, x, y=None, *, baseline=0.0, steps=32):
    """Returns attributions that add up to the change of the logit f_y between a baseline x0 and the input:

        attribution = (x - x0) * integral over a from 0 to 1 of the gradient of f_y at x0 + a (x - x0),

    by Gauss-Legendre quadrature with `steps` points.

    Args:
        model, x, y: As in `saliency`.
        baseline: What stands for "no input": a number, or an array that broadcasts to x.
        steps: Points on the way, >= 1.

    Returns:
        attributions: A NumPy array of the shape of x.
        delta: (examples,), sum of the attributions - (f_y(x) - f_y(x0)): the error of the quadrature. Take more steps
            where it is not small beside the change of the logit.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]])])
    >>> attributions, delta = integrated_gradients(model, np.array([[1.0, 0.5]]), np.array([1]))
    >>> attributions.round(4).tolist(), bool(abs(delta[0]) < 1e-5)
    ([[2.0, 2.0]], True)

    Reference: Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks", equation 1.
    """
    x, y = _checked(model, x, y)
    baseline = _checked_fill("baseline", baseline, x)
    points, weights = np.polynomial.legendre.leggauss(check_integer("steps", steps, at_least=1))
    total = np.zeros(x.shape)
    for point, weight in zip((points + 1) / 2, weights / 2):
        total += weight * _gradient(model, (baseline + point * (x - baseline)).astype("float32"), y)
    attributions = (x - baseline) * total
    change = _logit(model, x, y) - _logit(model, baseline, y)
    return attributions, attributions.sum(tuple(range(1, x.ndim))) - change


def grad_cam(model, x, layer, y=None):
    """Returns where a layer's feature maps speak for a class:

        max(0, sum over channels k of w_k A_k),      w_k = mean over positions of the gradient of f_y by A_k,

    resized to the input by bilinear interpolation.

    Args:
        model, x, y: As in `saliency`; x is (examples, height, width, channels).
        layer: A layer that the model calls once, also one of a network within the network, whose output A is (batch,
            height, width, channels): `model.get_layer("backbone").get_layer("conv5")`.

    Returns:
        A NumPy array (examples, height, width), >= 0.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range, or the model does not call the
            layer once, with such an output.

    Reference: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks", equations 1 and 2.
    """
    x, y = _checked(model, x, y)
    check_instance("layer", layer, keras.layers.Layer, "a layer of the model")
    return in_batches(functools.partial(_heat_for(model, layer), weights_of(model)), x, y)[0][..., 0]


def occlusion(model, x, y=None, *, size=2, stride=1, fill=0.0):
    """Returns by how much the logit of a class falls where a square window of the image is covered.

    Args:
        model, x, y: As in `saliency`; x is (examples, height, width, channels).
        size: Pixels of the window's side, >= 1.
        stride: Pixels from one window to the next, >= 1.
        fill: What covers: a number, or an array that broadcasts to x.

    Returns:
        A NumPy array (examples, height, width): of each pixel the mean over the windows that cover it, and 0 where
        none does.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Reference: Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2.
    """
    x, y = _checked(model, x, y)
    fill = _checked_fill("fill", fill, x)
    if x.ndim != 4:
        raise ValueError(f"`x` must be images (examples, height, width, channels). Received: x={shown(x)}")
    height, width = x.shape[1:3]
    size = check_integer("size", size, at_least=1, at_most=min(height, width))
    stride = check_integer("stride", stride, at_least=1)
    before = _logit(model, x, y)
    falls, windows = np.zeros((len(x), height, width)), np.zeros((height, width))
    for top in range(0, height - size + 1, stride):
        for left in range(0, width - size + 1, stride):
            window = np.zeros((height, width), bool)
            window[top : top + size, left : left + size] = True
            covered = np.where(window[..., None], fill, x)
            falls += (before - _logit(model, covered, y))[:, None, None] * window
            windows += window
    return falls / np.maximum(windows, 1)


def deletion_curve(model, x, attributions, y=None, *, steps=16, fill=0.0, insertion=False):
    """Returns the probability of a class while the positions are covered, those of the largest attribution first.

    A map that shows what the model uses makes the probability fall fast, and with `insertion`, where the positions are
    uncovered one after the other, rise fast. The mean of a curve is its area: compare it with that of a random map.

    Args:
        model, x, y: As in `saliency`.
        attributions: Array of the shape of x, or of x without its last axis: then all channels of a position are
            covered at once.
        steps: Equal portions in which the positions are covered, >= 1.
        fill: What covers: a number, or an array that broadcasts to x.
        insertion: Whether to begin covered.

    Returns:
        A NumPy array (examples, steps + 1), from nothing to all.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Reference: Petsiuk, Das and Saenko 2018, "RISE: randomized input sampling for explanation", section 4.2.
    """
    x, y = _checked(model, x, y)
    fill = _checked_fill("fill", fill, x)
    steps = check_integer("steps", steps, at_least=1)
    check_boolean("insertion", insertion)
    attributions = np.asarray(attributions, "float64")
    if attributions.shape not in (x.shape, x.shape[:-1]) or not np.all(np.isfinite(attributions)):
        raise ValueError(
            "`attributions` must be finite and of the shape of x, with or without its last axis. "
            f"Received: attributions={shown(attributions)}, x={shown(x)}"
        )
    flat = attributions.reshape(len(x), -1)
    ranks = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1).reshape(attributions.shape)
    ranks = ranks if attributions.ndim == x.ndim else ranks[..., None]
    curve = []
    for count in np.round(np.linspace(0, flat.shape[1], steps + 1)):
        chosen = ranks < count
        inputs = np.where(chosen, x, fill) if insertion else np.where(chosen, fill, x)
        shares = ops.convert_to_numpy(ops.softmax(_logits(model, inputs.astype("float32"))))
        curve.append(shares[np.arange(len(y)), y])
    return np.stack(curve, axis=1)


@functools.lru_cache(maxsize=16)
def _gradient_for(model):
    """Returns the compiled gradient of the logit of y by x; the weights are an argument."""

    @compiled
    def gradient(weights, x, y):
        def logit(tensors):
            return ops.sum(of_class(logits_of(model, weights, tensors[0]), y)), None

        return value_and_gradients(logit, [x])[1]

    return gradient


@functools.lru_cache(maxsize=16)
def _logits_for(model):
    return compiled(lambda weights, x: [logits_of(model, weights, x)])


@functools.lru_cache(maxsize=16)
def _heat_for(model, layer):
    """Returns the compiled map of `grad_cam`, (batch, height, width, 1); the weights are an argument."""
    inner = layer.call

    @compiled
    def heat(weights, x, y):
        maps, added = [], [0.0]

        def call(*arguments, **options):
            maps.append(inner(*arguments, **options))
            return maps[-1] + added[0]

        def logit(tensors):
            added[0] = tensors[0]
            return ops.sum(of_class(logits_of(model, weights, x), y)), None

        layer.call = call
        try:
            logits_of(model, weights, x)
            if len(maps) != 1 or len(getattr(maps[0], "shape", ())) != 4:
                raise ValueError(
                    "`layer` must be called once by the model and return (batch, height, width, channels). "
                    f"Received: layer {layer.name!r}, which returned {[tuple(one.shape) for one in maps]}"
                )
            _, (gradient,) = value_and_gradients(logit, [ops.zeros_like(maps[0])])
        finally:
            del layer.call
        channels = ops.mean(gradient, axis=(1, 2), keepdims=True)  # (examples, 1, 1, channels)
        return [ops.image.resize(ops.relu(ops.sum(channels * maps[0], axis=-1, keepdims=True)), x.shape[1:3])]

    return heat


def _gradient(model, x, y):
    return in_batches(functools.partial(_gradient_for(model), weights_of(model)), x, y)[0]


def _logits(model, x):
    return in_batches(functools.partial(_logits_for(model), weights_of(model)), x)[0]


def _logit(model, x, y):
    """Returns each example's logit of its class y, (examples,)."""
    return _logits(model, x)[np.arange(len(y)), y]


def _checked(model, x, y):
    check_classifier("model", model)
    x, labels = checked_examples(model, x, np.zeros(len(x), int) if y is None else y)
    return x, _logits(model, x).argmax(axis=1).astype("int32") if y is None else labels


def _checked_fill(name, fill, x):
    """Returns a number or an array as an array of the shape of x."""
    try:
        return np.broadcast_to(np.asarray(fill, "float32"), x.shape).copy()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a number or an array that fits x. Received: {name}={shown(fill)}"
        ) from error
