"""Image sets that are too large to come with the installation: read from where they lie, else downloaded once."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from nnopt.checks import check_integer
from nnopt.data.download import fetch
from nnopt.data.embedded import Dataset

FASHION_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
# Name -> bytes and sha256 of the file, sha256 of what it holds: Debian's files are the same data, packed anew.
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": (
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION_HELD_OUT = 6000  # of the 60,000 training images, for validation
NO_NETWORK = (
    "Without a network: copy the four .gz files into the folder fashion-mnist of the folder that the environment "
    "variable NNOPT_DATA names, or, on Debian, `apt-get install dataset-fashion-mnist`."
)


def fashion_mnist(seed=0):
    """Returns the 70,000 grey images of clothes of Fashion-MNIST: 54,000 / 6,000 / 10,000.

    The test part is the published one; the validation part is cut from the training images, all classes alike. The
    four files are looked for in `$NNOPT_DATA/fashion-mnist`, in Keras' cache (where `keras.datasets.fashion_mnist`
    puts them) and in `/usr/share/datasets/fashion-mnist` (Debian's package dataset-fashion-mnist). Where they are in
    none of them they are downloaded into Keras' cache, 31 MB.

    Args:
        seed: Integer >= 0 that decides which training images are for validation.

    Returns:
        A `Dataset`: x float32 in 0 ... 1 of shape (examples, 28, 28, 1), y int32 in 0 ... 9, in the order of
        `FASHION_CLASSES`.

    Raises:
        TypeError, ValueError: `seed` is no integer >= 0, or a file is not what it should be.
        ConnectionError: The files are not here, and cannot be fetched.

    Example:

    >>> fashion_mnist()  # doctest: +SKIP
    Dataset(train=54000, validation=6000, test=10000, classes=10)

    Reference: Xiao, Rasul and Vollgraf 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms (MIT licence, Zalando SE).
    """
    seed = check_integer("seed", seed, at_least=0, at_most=2**32 - 1)
    folder = _fashion_folder()
    images, labels, test_images, test_labels = (_unpacked(folder / name) for name in FASHION_FILES)
    # A header of 16 or 8 bytes is in front of the values, one byte each.
    x, test_x = ((part[16:].reshape(-1, 28, 28, 1) / np.float32(255)) for part in (images, test_images))
    y, test_y = (part[8:].astype("int32") for part in (labels, test_labels))
    train, validation = train_test_split(np.arange(len(y)), test_size=FASHION_HELD_OUT, random_state=seed, stratify=y)
    description = "70,000 grey 28x28 images of clothes, Fashion-MNIST (Xiao et al. 2017, MIT licence, Zalando SE)"
    parts = (x[train], y[train]), (x[validation], y[validation]), (test_x, test_y)
    return Dataset(*parts, classes=10, description=description)


def _fashion_folders():
    """Returns where the files may lie; the second one is Keras' cache, where a download goes."""
    local = os.environ.get("NNOPT_DATA")
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets"
    return [
        Path(local) / "fashion-mnist" if local else None,
        cache / "fashion-mnist",
        Path("/usr/share/datasets/fashion-mnist"),
    ]


def _fashion_folder():
    """Returns a folder that holds all four files, after a download if there is none."""
    folders = _fashion_folders()
    for folder in folders:
        if folder is not None and all((folder / name).is_file() for name in FASHION_FILES):
            return folder
    for name, (size, sha256, _) in FASHION_FILES.items():
        fetch(FASHION_URL + name, folders[1] / name, sha256=sha256, size=size, licence="MIT", advice=NO_NETWORK)
    return folders[1]


def _unpacked(path):
    """Returns the bytes that a file of Fashion-MNIST holds, (bytes,), after a look at their checksum."""
    with gzip.open(path) as file:
        content = file.read()
    expected, found = FASHION_FILES[path.name][2], hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"The content of {path} must have the sha256 {expected}. Received: {found}. Delete the file.")
    return np.frombuffer(content, dtype="uint8")
