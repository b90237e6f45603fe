"""Data that come with the installation, so that a chapter runs without a network."""

import dataclasses

import keras
import numpy as np
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split

from nnopt.checks import check_boolean, check_integer, check_number

HELD_OUT = 360  # examples of `digits` for validation, and as many for the test

# The classes of `photos`; the last two come with scikit-learn, the others with scikit-image.
PHOTOGRAPHS = (
    "astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket",
    "stereo_motorcycle", "china", "flower",
)  # fmt: skip
PATCHES = (240, 60, 60)  # of each photograph, for training, validation and test
LEAST_CONTRAST = 4.0  # standard deviation of a tile's grey values, of 255, below which it counts as blank


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three disjoint parts of one data set, each a pair (x, y) of equal length.

    x and y are arrays, or dicts or tuples of arrays, for models of several inputs or outputs.

    Args:
        train: What a model is fitted to.
        validation: What chooses between models: rates, epochs, sizes.
        test: What is looked at once, at the end.
        classes: Number of classes, where y holds labels 0 ... classes - 1; else None.
        description: Source, size and licence in a sentence or two.
        class_names: Tuple of the names of the classes, in the order of the labels; () where they have none.

    Raises:
        ValueError: A part is no pair, or its x and y differ in length.

    Example:

    >>> x, y = np.zeros((6, 2)), np.arange(6) % 2
    >>> Dataset((x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:]), classes=2)
    Dataset(train=4, validation=1, test=1, classes=2)
    """

    train: tuple
    validation: tuple
    test: tuple
    classes: int | None = None
    description: str = ""
    class_names: tuple = ()

    def __post_init__(self):
        for name in ("train", "validation", "test"):
            part = getattr(self, name)
            if not isinstance(part, (tuple, list)) or len(part) != 2 or len(_lengths(part)) != 1:
                shapes = keras.tree.map_structure(np.shape, part)
                raise ValueError(f"`{name}` must be a pair (x, y) of equal length. Received: {name} of shape {shapes}")

    def __repr__(self):
        sizes = ", ".join(f"{name}={min(_lengths(getattr(self, name)))}" for name in ("train", "validation", "test"))
        return f"Dataset({sizes}, classes={self.classes})"


def _lengths(part):
    """Returns the numbers of examples that the arrays of a part hold: a set of one where they fit."""
    if isinstance(part, (dict, tuple, list)):
        return set().union(*map(_lengths, part.values() if isinstance(part, dict) else part))
    return set(np.shape(part)[:1])


def digits(seed=0, *, images=False):
    """Returns scikit-learn's 1,797 handwritten digits, split once and for all: 1,077 / 360 / 360.

    Each part holds the ten classes in the same proportions. The files come with scikit-learn: nothing is fetched.

    Args:
        seed: Integer >= 0 that decides the split. Results of different splits are not comparable: keep it.
        images: If True, x is of shape (examples, 8, 8, 1) rather than (examples, 64).

    Returns:
        A `Dataset`: x float32 in 0 ... 1, y int32 in 0 ... 9.

    Raises:
        TypeError, ValueError: `seed` is no integer >= 0, or `images` no boolean.

    Example:

    >>> data = digits()
    >>> data
    Dataset(train=1077, validation=360, test=360, classes=10)
    >>> data.train[0].shape, digits(images=True).train[0].shape
    ((1077, 64), (1077, 8, 8, 1))

    Reference: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI repository, CC BY 4.0).
    """
    seed = check_integer("seed", seed, at_least=0, at_most=2**32 - 1)
    shape = (-1, 8, 8, 1) if check_boolean("images", images) else (-1, 64)
    pixels, labels = load_digits(return_X_y=True)
    x, y = (pixels / 16).astype("float32").reshape(shape), labels.astype("int32")
    rest, test = train_test_split(np.arange(len(y)), test_size=HELD_OUT, random_state=seed, stratify=y)
    train, validation = train_test_split(rest, test_size=HELD_OUT, random_state=seed, stratify=y[rest])
    parts = [(x[part], y[part]) for part in (train, validation, test)]
    description = "1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak 1998, UCI, CC BY 4.0), from scikit-learn"
    return Dataset(*parts, classes=10, description=description)


def photos(seed=0, *, size=32):
    """Returns colour patches of ten photographs, 240 / 60 / 60 of each; the class is the photograph.

    Every photograph is cut into square tiles of 5/4 of the patch's side, with a gap of 1/8 of it between them. The
    seed deals the tiles, 3/5 for training and 1/5 each for validation and test, and draws patches inside them. So the
    parts share no pixel, and pixels of different parts do not touch. Patches of one tile overlap: they are no
    independent examples. Tiles that are next to blank (a black sky) are left out, since nothing tells their class.

    Args:
        seed: Integer >= 0 that decides the parts and the patches.
        size: Side of a patch in pixels, 32 or 64.

    Returns:
        A `Dataset`: x float32 in 0 ... 1 of shape (patches, size, size, 3), y int32 in 0 ... 9 in the order of
        `PHOTOGRAPHS`.

    Raises:
        TypeError, ValueError: `seed` is no integer >= 0, or `size` neither 32 nor 64.
        ImportError: scikit-image is not installed.

    Example:

    >>> data = photos()
    >>> data
    Dataset(train=2400, validation=600, test=600, classes=10)
    >>> data.train[0].shape
    (2400, 32, 32, 3)
    """
    seed = check_integer("seed", seed, at_least=0)
    if check_integer("size", size) not in (32, 64):
        raise ValueError(f"`size` must be 32 or 64. Received: size={size!r}")
    parts = [[] for _ in PATCHES]
    for label, image in enumerate(_photographs()):
        random = np.random.default_rng([seed, label])
        for part, tiles, count in zip(parts, _dealt_tiles(image, size, random), PATCHES):
            part.append(_patches(image, tiles, count, size, random))
    labels = [np.repeat(np.arange(10, dtype="int32"), count) for count in PATCHES]
    orders = [np.random.default_rng([seed, 10 + number]).permutation(len(y)) for number, y in enumerate(labels)]
    pairs = [
        ((np.concatenate(x) / 255).astype("float32")[order], y[order]) for x, y, order in zip(parts, labels, orders)
    ]
    description = (
        f"{size}x{size} patches of ten photographs from scikit-image (public domain or CC0; motorcycle: Scharstein et "
        "al. 2014, Middlebury stereo data) and scikit-learn (china, flower: CC BY 2.0, D. Buechele and vultilion)"
    )
    return Dataset(*pairs, classes=10, description=description, class_names=PHOTOGRAPHS)


def _photographs():
    """Returns the images named in PHOTOGRAPHS, uint8 of shape (height, width, 3)."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("`photos` reads photographs that scikit-image carries: pip install scikit-image") from error
    images = []
    for name in PHOTOGRAPHS:
        image = load_sample_image(f"{name}.jpg") if name in ("china", "flower") else getattr(data, name)()
        images.append(image[0] if isinstance(image, tuple) else image)  # of the stereo pair, the left one
    return images


def _dealt_tiles(image, size, random):
    """Returns the upper left corners of the tiles of each part, (tiles, 2) each."""
    side, pitch = size * 5 // 4, size * 11 // 8
    rows, columns = ((length - side) // pitch + 1 for length in image.shape[:2])
    corners = [(row * pitch, column * pitch) for row in range(rows) for column in range(columns)]
    contrasts = [image[top : top + side, left : left + side].mean(axis=2).std() for top, left in corners]
    corners = random.permutation([corner for corner, contrast in zip(corners, contrasts) if contrast >= LEAST_CONTRAST])
    held_out = round(len(corners) / 5)
    return np.split(corners, [len(corners) - 2 * held_out, len(corners) - held_out])


def _patches(image, tiles, count, size, random):
    """Returns `count` different patches, spread evenly over the tiles, (count, size, size, 3)."""
    places = size // 4 + 1  # along each axis of a tile
    tile = np.arange(count) % len(tiles)
    shifts = [random.permutation(places**2) for _ in tiles]
    shift = np.array([shifts[number][turn // len(tiles)] for turn, number in enumerate(tile)])
    tops, lefts = (tiles[tile] + np.stack([shift // places, shift % places], axis=1)).T
    return np.stack([image[top : top + size, left : left + size] for top, left in zip(tops, lefts)])


def subsample(dataset, examples, seed):
    """Returns the data set with fewer training examples, in the same class proportions; the other parts are kept.

    Each class's share is kept to within one example. With one seed a smaller subsample is contained in a larger one, so
    that a learning curve adds examples rather than exchanging them.

    Args:
        dataset: A `Dataset` whose training y holds integer labels, of shape (examples,).
        examples: Number of training examples to keep, from 1 to all of them.
        seed: Integer >= 0 that decides which.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> few = subsample(digits(), examples=20, seed=0)
    >>> np.bincount(few.train[1])
    array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    x, y = dataset.train
    _check_labels(y)
    examples = check_integer("examples", examples, at_least=1, at_most=len(y))
    order = np.random.default_rng(check_integer("seed", seed, at_least=0)).permutation(len(y))
    # The k-th example drawn from a class of n stands at (k + 1/2) / n: the first few hold all classes alike.
    place = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    kept = np.sort(order[np.argsort(place[order], kind="stable")[:examples]])
    return dataclasses.replace(dataset, train=(keras.tree.map_structure(lambda values: values[kept], x), y[kept]))


def label_noise(dataset, share, seed):
    """Returns the data set with a share of its training labels drawn anew; validation and test stay clean.

    `round(share * examples)` examples get a label that is uniform over all classes, the right one included, so about
    `share * (1 - 1 / classes)` of the labels are wrong and share=1 tells nothing about the classes. With one seed a
    larger share changes the same labels to the same values, and more.

    Args:
        dataset: A `Dataset` of labels 0 ... classes - 1.
        share: Share of the training labels to draw anew, in [0, 1].
        seed: Integer >= 0 that decides which and to what.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> data = digits()
    >>> noisy = label_noise(data, share=0.4, seed=0)
    >>> round(float(np.mean(noisy.train[1] != data.train[1])), 1)
    0.4

    Reference: Zhang et al. 2017, Understanding deep learning requires rethinking generalization, section 2.1.
    """
    x, y = dataset.train
    _check_labels(y)
    share = check_number("share", share, at_least=0, at_most=1)
    if dataset.classes is None:
        raise ValueError(f"`dataset` must state its number of classes. Received: dataset={dataset!r}")
    random = np.random.default_rng(check_integer("seed", seed, at_least=0))
    chosen = random.permutation(len(y))[: round(share * len(y))]
    noisy = y.copy()
    noisy[chosen] = random.integers(dataset.classes, size=len(y))[: len(chosen)]
    return dataclasses.replace(dataset, train=(x, noisy))


def _check_labels(y):
    if np.ndim(y) != 1 or not np.issubdtype(np.asarray(y).dtype, np.integer):
        raise ValueError(
            "`dataset` must hold integer labels of shape (examples,). "
            f"Received: an array of shape {np.shape(y)} and type {np.asarray(y).dtype}"
        )
