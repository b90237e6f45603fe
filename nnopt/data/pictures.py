"""Encoded pictures: sets too large for memory, decoded and cropped batch by batch, and a user's own files."""

import dataclasses
import io
import math
import os
import warnings
from pathlib import Path

import keras
import numpy as np

from nnopt.checks import check_integer
from nnopt.data.ordered import EpochPipeline, epoch_order

AREA = (0.08, 1.0)  # of a random crop, as a share of the picture
RATIO = (3 / 4, 4 / 3)  # width / height of a random crop
CENTRE = 224 / 256  # side of the centre crop, as a share of the picture's shorter side


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pictures:
    """Three disjoint parts of a set of encoded pictures, with the attributes of a `Dataset`.

    Args:
        train: `EncodedPictures` to which a model is fitted.
        validation: `EncodedPictures` that choose between models.
        test: `EncodedPictures` that are looked at once, at the end.
        classes: Number of classes.
        description: Source, size and licence in a sentence or two.
        class_names: Tuple of the names of the classes.
    """

    train: "EncodedPictures"
    validation: "EncodedPictures"
    test: "EncodedPictures"
    classes: int
    description: str = ""
    class_names: tuple = ()

    def __repr__(self):
        sizes = ", ".join(f"{name}={len(getattr(self, name))}" for name in ("train", "validation", "test"))
        return f"Pictures({sizes}, classes={self.classes})"


class EncodedPictures:
    """Part of a source of encoded pictures: `part[k]` is the pair (bytes of a JPEG or PNG file, label).

    Args:
        source: Anything with `len(source)` and `source[row]["image"]` (bytes) and `source[row]["label"]`, such as
            `tfds.data_source(name, decoders={"image": tfds.decode.SkipDecoding()})`.
        rows: Array of the rows of `source` that make up the part, in order; None for all.
    """

    def __init__(self, source, rows=None):
        self._source = source
        self._rows = np.arange(len(source)) if rows is None else np.asarray(rows)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        example = self._source[int(self._rows[index])]
        return example["image"], np.int32(example["label"])


class PictureBatches(EpochPipeline):
    """Decodes batches of pictures, in training at random crops, by tf.data on TensorFlow, else by Grain.

    The crop of a picture is a function of the seed, the epoch and the picture's index, and an epoch that is taken up at
    its batch k decodes none of the batches before. `nnopt.callbacks.Resume` takes it in the place of an
    `OrderedDataset`.

    Args:
        part: `EncodedPictures`.
        image_size: Side of the square images in pixels, an integer >= 1.
        batch_size: Images in a batch, an integer >= 1. The last batch of an epoch has what is left.
        seed: Integer >= 0 for the order and the crops of training; None for centre crops in the order of the part.

    A random crop has 8 % to 100 % of the picture's area and a ratio of width to height of 3/4 to 4/3. A centre crop is
    the middle `image_size` of the picture with its shorter side at 256/224 `image_size`.

    Batches are pairs: x uint8 of shape (batch, image_size, image_size, 3), y int32 of shape (batch,).

    Reference: Szegedy et al. 2015, Going deeper with convolutions, section 6 (the random crop).
    """

    def __init__(self, part, image_size, batch_size, seed=None):
        self.part = part
        self.image_size = check_integer("image_size", image_size, at_least=1)
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.seed = seed if seed is None else check_integer("seed", seed, at_least=0)
        self.reader = "tf.data" if keras.backend.backend() == "tensorflow" else "grain"
        super().__init__(
            self.batches,
            steps_per_epoch=-(-len(part) // self.batch_size),
            fingerprint={
                "examples": len(part), "image_size": self.image_size, "batch_size": self.batch_size, "seed": self.seed,
                "reader": self.reader,
            },
        )  # fmt: skip

    def batches(self, epoch, start=0):
        """Returns an iterator over the batches of an epoch from batch `start` on."""
        epoch = check_integer("epoch", epoch, at_least=0)
        start = check_integer("start", start, at_least=0)
        order = np.arange(len(self.part)) if self.seed is None else epoch_order(len(self.part), self.seed, epoch)
        rows = order[start * self.batch_size :]
        key = None if self.seed is None else (self.seed, epoch)
        read = READERS[self.reader]
        return read(self.part, rows, self.image_size, self.batch_size, key) if len(rows) else iter(())


def _by_tensorflow(part, rows, image_size, batch_size, key):
    import tensorflow as tf

    def read(row):
        return part[row]

    # What tells one seed and epoch from others goes into the first half of the crop's seed, the row into the second.
    first = None if key is None else int(np.random.SeedSequence(key).generate_state(1, "uint64")[0] >> 1)

    def decode(row):
        encoded, label = tf.numpy_function(read, [row], (tf.string, tf.int32), stateful=False)
        label.set_shape(())
        return _decoded(tf, encoded, image_size, None if first is None else tf.stack([first, row])), label

    pictures = tf.data.Dataset.from_tensor_slices(rows)
    pictures = pictures.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return pictures.batch(batch_size).prefetch(2).as_numpy_iterator()


def _decoded(tf, encoded, image_size, seed):
    """Returns a crop of an encoded picture, uint8 (image_size, image_size, 3); random with a seed, else the centre."""

    def of_jpeg():  # decodes little more than the crop
        window = _window(tf, tf.image.extract_jpeg_shape(encoded), seed)
        # The default is a faster transform that shifts red and blue by one; this one equals Pillow's.
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")

    def of_others():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        window = _window(tf, tf.shape(image), seed)
        return tf.image.crop_to_bounding_box(image, *tf.unstack(window))

    crop = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_others)
    # Scaled down by averages, which do not alias and take a quarter of the time of `antialias=True`.
    size = (image_size, image_size)
    smaller = tf.reduce_min(tf.shape(crop)[:2]) >= image_size
    crop = tf.cond(smaller, lambda: tf.image.resize(crop, size, "area"), lambda: tf.image.resize(crop, size))
    return tf.ensure_shape(tf.cast(tf.round(crop), "uint8"), (*size, 3))


def _window(tf, shape, seed):
    """Returns [top, left, height, width] of a crop of a picture of `shape` (height, width, channels), int32."""
    if seed is None:
        side = tf.cast(tf.round(CENTRE * tf.cast(tf.reduce_min(shape[:2]), "float32")), "int32")
        side = tf.maximum(side, 1)
        return tf.concat([(shape[:2] - side) // 2, [side, side]], axis=0)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape, tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), seed, min_object_covered=0.0,
        area_range=AREA, aspect_ratio_range=RATIO, max_attempts=100,
    )  # fmt: skip
    return tf.concat([begin[:2], size[:2]], axis=0)


def _by_grain(part, rows, image_size, batch_size, key):
    try:
        import grain
    except ImportError as error:
        raise ImportError("Pictures are read through Grain on JAX and torch: pip install grain") from error

    def decode(row):
        encoded, label = part[row]
        random = None if key is None else np.random.default_rng([*key, int(row)])
        return _cropped(encoded, image_size, random), label

    # Threads, as Pillow decodes outside Python's lock. They read ahead by single pictures, which takes little memory.
    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=2 * batch_size)
    return iter(grain.MapDataset.source(rows).map(decode).to_iter_dataset(options).batch(batch_size))


READERS = {"tf.data": _by_tensorflow, "grain": _by_grain}


def _cropped(encoded, image_size, random):
    """Returns a crop of an encoded picture, uint8 (image_size, image_size, 3); the centre where `random` is None."""
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    width, height = image.size
    left, top, right, bottom = centre_box(width, height) if random is None else random_box(width, height, random)
    # A JPEG can be decoded at a half, quarter or eighth of its size, which must leave enough pixels in the crop.
    share = min(1.0, image_size / min(right - left, bottom - top))
    image.draft("RGB", (math.ceil(width * share), math.ceil(height * share)))
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, right * across, bottom * down)
    return np.asarray(image.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR, box=box))


def random_box(width, height, random):
    """Returns (left, top, right, bottom) of a random crop of a picture, in pixels.

    Its area is uniform in 8 % to 100 % of the picture's, the logarithm of its ratio in that of 3/4 to 4/3; what does
    not fit is drawn again, ten times at most, and then it is the largest square in the middle.

    Args:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        random: `np.random.Generator`.
    """
    for _ in range(10):
        area = random.uniform(*AREA) * width * height
        ratio = math.exp(random.uniform(*np.log(RATIO)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = random.integers(width - across + 1), random.integers(height - down + 1)
            return int(left), int(top), int(left) + across, int(top) + down
    return centre_box(width, height, share=1)


def centre_box(width, height, share=CENTRE):
    """Returns (left, top, right, bottom) of the square in the middle, by default 224/256 of the shorter side."""
    side = max(1, round(share * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def read_picture(path, image_size, channels=3):
    """Returns a picture file as a model takes it: its largest square in the middle, scaled to `image_size`.

    Reads whatever Pillow reads (JPEG, PNG, WebP, TIFF, the first image of a GIF ...). The camera's orientation is
    applied, grey becomes RGB, and what is transparent lies on white.

    Args:
        path: Path of the file.
        image_size: Side of the result in pixels, an integer >= 1.
        channels: 3 for RGB, or 1 for grey.

    Returns:
        An array uint8 0 ... 255 of shape (image_size, image_size, channels).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, cut off, damaged or no picture, or has more than 178 million pixels (Pillow's
            limit against files that blow up in memory); or an argument is out of its range.

    Example:

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (40, 30), 200).save(Path(folder, "grey.png"))
    ...     image = read_picture(Path(folder, "grey.png"), image_size=8)
    >>> image.shape, image.dtype, image[0, 0].tolist()
    ((8, 8, 3), dtype('uint8'), [200, 200, 200])
    """
    from PIL import Image

    path = Path(path)
    image_size = check_integer("image_size", image_size, at_least=1)
    if check_integer("channels", channels) not in (1, 3):
        raise ValueError(f"`channels` must be 1 or 3. Received: channels={channels!r}")
    if not path.exists():
        raise FileNotFoundError(f"There is no picture {str(path)!r}.")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is a folder, no picture.")
    if path.stat().st_size == 0:
        raise ValueError(f"The picture {str(path)!r} is empty: 0 bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as much is an error
            with Image.open(path) as image:
                square = _square(image, image_size)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{str(path)!r} is no picture in a format that Pillow knows.") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise ValueError(f"The picture {str(path)!r} has more than {limit} million pixels.") from error
    except PermissionError:
        raise
    except Exception as error:  # Pillow's readers raise what comes up in a damaged file
        raise ValueError(f"The picture {str(path)!r} is damaged or cut off: {error}") from error
    return np.asarray(square.convert("L" if channels == 1 else "RGB")).reshape(image_size, image_size, channels)


def _square(image, image_size):
    """Returns the middle of an open picture as an RGB image of `image_size`, on white where it is transparent."""
    from PIL import Image, ImageOps

    image.draft(None, (2 * image_size, 2 * image_size))  # a JPEG at a part of its size, where that is enough
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        image = Image.fromarray((np.clip(np.asarray(image, "int64"), 0, 2**16 - 1) >> 8).astype("uint8"))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image.crop(centre_box(*image.size, share=1))
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
