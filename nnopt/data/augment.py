"""Random changes of images that keep their label, drawn on the device while a model trains."""

import keras
import numpy as np
from keras import ops

from nnopt.checks import check_choice, check_instance, check_integer

AUGMENTATIONS = ("crop", "flip", "jitter")


@keras.saving.register_keras_serializable("nnopt")
class RandomShift(keras.layers.Layer):
    """Moves each image by whole pixels, up to `pixels` along each axis, and fills what comes into view with black.

    This is the usual crop of CIFAR-10: pad by `pixels`, and cut a window of the old size out at random. Each image of a
    batch has a window of its own; `keras.layers.RandomCrop` takes one window for the whole batch.

    Args:
        pixels: Largest shift, an integer >= 1.
        seed: Integer >= 0.

    Input: images of shape (batch, height, width, channels). Output: float images of the same shape; in inference, the
    same images.

    Raises:
        TypeError, ValueError: `pixels` or `seed` is no integer or out of its range.

    Example:

    >>> image = np.ones((1, 4, 4, 1), "float32")
    >>> moved = ops.convert_to_numpy(RandomShift(1, seed=0)(image, training=True))
    >>> float(moved.sum()) in (9, 12, 16)
    True

    Reference: He et al. 2016, Deep residual learning for image recognition, section 4.2.
    """

    def __init__(self, pixels, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.pixels = check_integer("pixels", pixels, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        self.generator = keras.random.SeedGenerator(self.seed)

    def call(self, images, training=False):
        images = ops.cast(images, self.compute_dtype)
        if not training:
            return images
        batch, height, width, channels = ops.shape(images)
        pixels = self.pixels
        padded = ops.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
        corners = keras.random.randint((batch, 2), 0, 2 * pixels + 1, seed=self.generator)  # high is exclusive
        rows = corners[:, :1] + ops.arange(height)  # (batch, height)
        columns = corners[:, 1:] + ops.arange(width)  # (batch, width)
        # One gather from the pixels of all images: ten times as fast as a slice of each image on TensorFlow.
        rows = rows + ops.arange(batch)[:, None] * (height + 2 * pixels)
        places = rows[:, :, None] * (width + 2 * pixels) + columns[:, None, :]  # (batch, height, width)
        return ops.take(ops.reshape(padded, (-1, channels)), places, axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "pixels": self.pixels, "seed": self.seed}


def augmentation(names, image_size, *, seed):
    """Returns layers that change images at random in training, and pass them on in inference.

    | name | what it does to each image |
    |---|---|
    | crop | `RandomShift`: moved by up to an eighth of `image_size`, filled with black |
    | flip | mirrored left to right, or not, with equal probability |
    | jitter | brightness +-20 % of the range, contrast and saturation times 0.6 ... 1.4, hue +-5 % of the circle |

    Each image is changed on its own. The layers count their draws in `keras.random.SeedGenerator` variables, so that a
    model that is saved and restored by `nnopt.callbacks.Resume` goes on with the same draws.

    Args:
        names: Tuple of names from the table, in the order in which they apply; () for none.
        image_size: Side of the images in pixels, an integer >= 1.
        seed: Integer >= 0.

    Returns:
        A `keras.Sequential` from images 0 ... 255, (batch, height, width, channels), uint8 or float, to float32 images
        0 ... 255 of the same shape. "jitter" takes colour images only (three channels).

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range; a name is unknown or stands twice.

    Example:

    >>> images = np.full((2, 32, 32, 3), 100, dtype="uint8")
    >>> layers = augmentation(("crop", "flip", "jitter"), image_size=32, seed=0)
    >>> bool(ops.all(layers(images, training=False) == 100)), bool(ops.all(layers(images, training=True) == 100))
    (True, False)
    """
    image_size = check_integer("image_size", image_size, at_least=1)
    seed = check_integer("seed", seed, at_least=0)
    check_instance("names", names, (tuple, list), "a tuple of names")
    for name in names:
        check_choice("names", name, AUGMENTATIONS)
    if len(set(names)) < len(names):
        raise ValueError(f"`names` must hold each name once. Received: names={names!r}")
    # On JAX, Keras' colour layers take uint8 for what it is: brightness wraps around, saturation raises.
    layers = [keras.layers.Rescaling(1.0, dtype="float32", name="as_float")]
    for name in names:
        layers += _layers(name, image_size, seed)
    return keras.Sequential(layers, name="augmentation")


def _layers(name, image_size, seed):
    """Returns the layers behind one name, each with a seed of its own, in float32 whatever the policy."""
    draws = np.random.SeedSequence([seed, AUGMENTATIONS.index(name)]).generate_state(4) >> 1
    seeds = [{"seed": int(draw), "dtype": "float32"} for draw in draws]
    if name == "crop":
        return [RandomShift(max(1, image_size // 8), **seeds[0])]
    if name == "flip":
        return [keras.layers.RandomFlip("horizontal", **seeds[0])]
    return [
        keras.layers.RandomBrightness(0.2, value_range=(0, 255), **seeds[0]),
        keras.layers.RandomContrast(0.4, value_range=(0, 255), **seeds[1]),
        # The factor f multiplies the saturation by f / (1 - f). It lies in 0 ... 1 whatever the range of the pixels:
        # with value_range=(0, 255), as in keras.layers.RandomColorJitter, pixels would leave their range, to -100.
        keras.layers.RandomSaturation((0.6 / 1.6, 1.4 / 2.4), value_range=(0, 1), **seeds[2]),
        # Hue turns by half its factor.
        keras.layers.RandomHue(0.1, value_range=(0, 255), **seeds[3]),
    ]
