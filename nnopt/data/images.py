"""Image data sets by name, and the batches that training and evaluation read from them."""

import dataclasses
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path

import keras
import numpy as np
from sklearn.model_selection import train_test_split

from nnopt.checks import check_choice, check_instance, check_integer
from nnopt.data.download import through_tfds
from nnopt.data.embedded import Dataset, photos
from nnopt.data.ordered import OrderedDataset
from nnopt.data.pictures import EncodedPictures, PictureBatches, Pictures

HELD_OUT = 0.1  # share of the training images of `cifar10`, `cifar100` and `fashion_mnist` for validation
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist

# What the data sets are, without where a copy of them was found.
SETS = {
    "photos": "patches of ten photographs",
    "cifar10": "CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels; no licence stated",
    "cifar100": "CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels; no licence stated",
    "fashion_mnist": "Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of 28x28 pixels; MIT licence",
    "imagenette": "Imagenette (Howard 2019): ten easy classes of ImageNet, 13,394 pictures; Apache 2.0 licence",
    "imagenet2012": "ImageNet (Russakovsky et al. 2015): 1,331,167 labelled pictures; for research, by registration",
}
PICTURES = {"imagenette": 0.1, "imagenet2012": 0.01}  # share of the training pictures for validation
# What to do where TFDS cannot prepare a data set.
ADVICE = {
    "cifar10": "Run it once with a network, or set NNOPT_DATA to a folder with cifar10_jpeg.tar.xz.",
    "cifar100": "Run it once with a network.",
    "fashion_mnist": "Run it once with a network, or install Debian's package dataset-fashion-mnist.",
    "imagenette": "Run it once with a network.",
    "imagenet2012": "Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from image-net.org after registration, "
    "into the folder downloads/manual there.",
}
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGENETTE = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump",
    "golf ball", "parachute",
)  # fmt: skip


def load(name, seed=0):
    """Returns an image data set; where nothing local is found, through tensorflow-datasets (TFDS).

    | name | images | training / validation / test | local copy |
    |---|---|---|---|
    | photos | 32x32x3 | 2,400 / 600 / 600 | comes with scikit-image and scikit-learn |
    | cifar10 | 32x32x3 | 45,000 / 5,000 / 10,000 | `cifar10_jpeg.tar.xz`: lossy JPEG files |
    | cifar100 | 32x32x3 | 45,000 / 5,000 / 10,000 | |
    | fashion_mnist | 28x28x1 | 54,000 / 6,000 / 10,000 | folder `fashion-mnist`, or Debian's dataset-fashion-mnist |
    | imagenette | JPEG files | 8,522 / 947 / 3,925 | |
    | imagenet2012 | JPEG files | 1,268,355 / 12,812 / 50,000 | |

    Local copies are looked for in the folder that the environment variable NNOPT_DATA names. The test part is the
    official one (of imagenette and imagenet2012 the official validation part, as in the literature). Validation is cut
    from training: in the same class proportions for arrays, at random for the two sets of JPEG files, whose labels are
    not known before they are read.

    TFDS shows its progress, checks what it fetched, and keeps it in `~/tensorflow_datasets`, or where the environment
    variable TFDS_DATA_DIR says.

    Args:
        name: One of the names above.
        seed: Integer >= 0 that decides the validation part. Results of different seeds are not comparable: keep it.

    Returns:
        A `Dataset` of arrays: x uint8 0 ... 255 (examples, height, width, channels), y int32 (examples,); for the two
        sets of JPEG files, `Pictures`.

    Raises:
        ValueError: `name` is unknown, `seed` is out of its range, or a local copy is damaged.
        FileNotFoundError: The data set is not here and cannot be fetched.

    Example:

    >>> data = load("photos")
    >>> data, data.train[0].shape, data.train[0].dtype, data.class_names[0]
    (Dataset(train=2400, validation=600, test=600, classes=10), (2400, 32, 32, 3), dtype('uint8'), 'astronaut')
    """
    check_choice("name", name, tuple(SETS))
    seed = check_integer("seed", seed, at_least=0, at_most=2**32 - 1)
    if name == "photos":
        return _of_bytes(photos(seed))
    if name in PICTURES:
        return _pictures(name, seed)
    train, test, class_names, source = _local(name) or _from_tfds(name)
    x, y = train
    held_out = round(HELD_OUT * len(y))
    rest, validation = train_test_split(np.arange(len(y)), test_size=held_out, random_state=seed, stratify=y)
    parts = [(x[np.sort(part)], y[np.sort(part)]) for part in (rest, validation)]
    description = f"{SETS[name]}; {source}"
    return Dataset(*parts, test, classes=len(class_names), description=description, class_names=class_names)


def training_data(data, *, image_size, batch_size, seed):
    """Returns the batches of the training part in an order of its own for each epoch, for `fit` with `Resume`.

        data = training_data(load("cifar10"), image_size=32, batch_size=128, seed=0)
        model.fit(data, epochs=20, callbacks=[Resume("runs/cifar10", data)])

    Args:
        data: What `load` returns.
        image_size: Side of the images in pixels. Arrays of another size are resized; of `Pictures`, a random crop of 8
            % to 100 % of the area is taken while they are decoded.
        batch_size: Images in a batch, an integer >= 1.
        seed: Integer >= 0 for the order and the crops.

    Returns:
        `OrderedDataset` or `PictureBatches`, both `EpochData`, of batches x uint8 (batch, image_size, image_size,
        channels) and y int32 (batch,).

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> batches = training_data(load("photos"), image_size=32, batch_size=64, seed=0)
    >>> x, y = next(batches.batches(epoch=0))
    >>> len(batches), x.shape, x.dtype, y.shape
    (38, (64, 32, 32, 3), dtype('uint8'), (64,))
    """
    _check_data(data)
    seed = check_integer("seed", seed, at_least=0)
    if isinstance(data, Pictures):
        return PictureBatches(data.train, image_size, batch_size, seed)
    x, y = data.train
    return OrderedDataset(_resized(x, image_size), y, batch_size=batch_size, seed=seed)


def evaluation_data(data, part, *, image_size, batch_size):
    """Returns the batches of one part as they are, for `evaluate` and `predict`.

    Args:
        data: What `load` returns.
        part: "validation" or "test".
        image_size: Side of the images in pixels. Arrays of another size are resized; of `Pictures` the middle is
            taken, with the shorter side at 256/224 of `image_size`.
        batch_size: Images in a batch, an integer >= 1.

    Returns:
        A `keras.utils.PyDataset` of batches as `training_data` has them.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of its range.

    Example:

    >>> x, y = evaluation_data(load("photos"), "test", image_size=32, batch_size=100)[5]
    >>> x.shape
    (100, 32, 32, 3)
    """
    _check_data(data)
    check_choice("part", part, ("validation", "test"))
    if isinstance(data, Pictures):
        return PictureBatches(getattr(data, part), image_size, batch_size)
    x, y = getattr(data, part)
    return OrderedDataset(_resized(x, image_size), y, batch_size=batch_size, shuffle=False)


def _check_data(data):
    check_instance("data", data, (Dataset, Pictures), "what `load` returns")


def _of_bytes(data):
    """Returns a data set of images 0 ... 1 as one of bytes 0 ... 255."""
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return dataclasses.replace(data, **{name: (np.round(x * 255).astype("uint8"), y) for name, (x, y) in parts.items()})


def _resized(images, image_size):
    """Returns uint8 images of shape (examples, image_size, image_size, channels)."""
    image_size = check_integer("image_size", image_size, at_least=1)
    if images.shape[1:3] == (image_size, image_size):
        return images
    resized = np.empty((len(images), image_size, image_size, images.shape[3]), "uint8")
    for first in range(0, len(images), 1000):
        chunk = images[first : first + 1000].astype("float32")
        chunk = keras.ops.image.resize(chunk, (image_size, image_size), antialias=True, data_format="channels_last")
        resized[first : first + 1000] = np.clip(np.round(keras.ops.convert_to_numpy(chunk)), 0, 255)
    return resized


def _local(name):
    """Returns (train, test, class_names, source) from a copy on this machine, or None."""
    folder = os.environ.get("NNOPT_DATA")
    if name == "cifar10" and folder and (path := Path(folder, "cifar10_jpeg.tar.xz")).is_file():
        return *_from_archive(path), "lossy JPEG copy, so accuracies are only close to those on the published data"
    if name == "fashion_mnist":
        for path in (Path(folder, "fashion-mnist") if folder else DEBIAN, DEBIAN):
            if path.is_dir():
                train, test = (_from_idx(path, part) for part in ("train", "t10k"))
                return train, test, FASHION, f"from {path}"
    return None


def _from_archive(path):
    """Returns (train, test, class_names) from a tar of pictures train/CLASS/*, test/CLASS/*, all of one size."""
    from PIL import Image

    found = {"train": [], "test": []}
    try:
        with tarfile.open(path, "r|*") as archive:  # a stream: nothing is extracted to disk
            for member in filter(tarfile.TarInfo.isfile, archive):
                part, label, file = Path(member.name).parts[-3:]
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                found[part].append((label, file, np.asarray(image)))
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or no archive of train/CLASS/* and test/CLASS/*: {error}") from error
    class_names = tuple(sorted({label for label, _, _ in found["train"] + found["test"]}))
    parts = []
    for part in ("train", "test"):
        labels, _, images = zip(*sorted(found[part], key=lambda item: item[:2]))
        parts.append((np.stack(images), np.array([class_names.index(label) for label in labels], "int32")))
    return *parts, class_names


def _from_idx(folder, part):
    """Returns (x, y) of "train" or "t10k" from the files of the original Fashion-MNIST."""
    arrays = []
    for kind, header, shape in (("images-idx3", 16, (-1, 28, 28, 1)), ("labels-idx1", 8, (-1,))):
        path = folder / f"{part}-{kind}-ubyte.gz"
        try:
            content = gzip.decompress(path.read_bytes())
            arrays.append(np.frombuffer(content, "uint8", offset=header).reshape(shape))
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path} is missing or damaged: {error}") from error
    return arrays[0], arrays[1].astype("int32")


def _from_tfds(name):
    """Returns (train, test, class_names, source) through TFDS."""
    with through_tfds(name, ADVICE[name]) as tfds:
        parts, info = tfds.load(name, split=["train", "test"], batch_size=1000, as_supervised=True, with_info=True)
        train, test = (_joined(tfds.as_numpy(part)) for part in parts)
    return train, test, tuple(info.features["label"].names), f"from TFDS {info.full_name}"


def _joined(batches):
    x, y = map(np.concatenate, zip(*batches))
    return x, y.astype("int32")


def _pictures(name, seed):
    """Returns `Pictures` through the data sources of TFDS, whose pictures are read one by one, in any order."""
    with through_tfds(name, ADVICE[name]) as tfds:
        decoders = {"image": tfds.decode.SkipDecoding()}
        train, test = tfds.data_source(name, split=["train", "validation"], decoders=decoders)
    order = np.random.default_rng([seed, len(train)]).permutation(len(train))
    held_out = max(1, round(PICTURES[name] * len(train)))
    label = train.dataset_info.features["label"]
    return Pictures(
        EncodedPictures(train, np.sort(order[held_out:])),
        EncodedPictures(train, np.sort(order[:held_out])),
        EncodedPictures(test),
        classes=label.num_classes,
        description=f"{SETS[name]}; from TFDS {train.dataset_info.full_name}",
        class_names=IMAGENETTE if name == "imagenette" else tuple(label.names),
    )
