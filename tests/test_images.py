import gzip
import hashlib
import io
import urllib.error
import urllib.request

import numpy as np
import pytest

from nnopt.data import fashion_mnist, images

PARTS = ("train", "validation", "test")
COUNTS = {"train": 200, "t10k": 40}


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Hides every place where the files may lie; returns the three folders that are looked at instead."""
    folders = [tmp_path / name for name in ("local", "cache", "debian")]
    monkeypatch.setattr(images, "_fashion_folders", lambda: folders)
    return folders


@pytest.fixture
def files(monkeypatch):
    """A Fashion-MNIST of 200 + 40 images, whose checksums stand in the place of the true ones: name -> bytes."""
    random, made = np.random.default_rng(0), {}
    for name in images.FASHION_FILES:
        count = COUNTS[name.split("-")[0]]
        if "images" in name:
            content = bytes(16) + random.integers(256, size=(count, 28, 28), dtype="uint8").tobytes()
        else:
            content = bytes(8) + (np.arange(count) % 10).astype("uint8").tobytes()
        packed = gzip.compress(content, mtime=0)
        digests = [hashlib.sha256(data).hexdigest() for data in (packed, content)]
        monkeypatch.setitem(images.FASHION_FILES, name, (len(packed), *digests))
        made[name] = packed
    monkeypatch.setattr(images, "FASHION_HELD_OUT", 50)
    return made


@pytest.fixture
def server(monkeypatch, files):
    """Answers for the network; returns the addresses that were asked for."""
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(files[url.rsplit("/", 1)[1]])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def put(files, folder):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def is_installed():
    return any(
        folder is not None and all((folder / name).is_file() for name in images.FASHION_FILES)
        for folder in images._fashion_folders()
    )


@pytest.mark.skipif(not is_installed(), reason="Fashion-MNIST is not on this machine, and tests download nothing")
def test_the_real_fashion_mnist_has_the_published_sizes_and_classes():
    data = fashion_mnist()
    assert repr(data) == "Dataset(train=54000, validation=6000, test=10000, classes=10)"
    for part, count in zip(PARTS, (5400, 600, 1000)):
        x, y = getattr(data, part)
        assert (x.shape[1:], x.dtype, y.dtype) == ((28, 28, 1), np.float32, np.int32)
        assert np.bincount(y).tolist() == [count] * 10
    # The first test images, as in the table of the project: ankle boot, pullover, trouser, trouser, shirt.
    assert data.test[1][:5].tolist() == [9, 2, 1, 1, 6]
    assert (data.train[0].min(), data.train[0].max()) == (0, 1)
    np.testing.assert_allclose(np.mean(data.train[0]), 0.286, atol=0.002)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_files_are_found_in_each_of_the_three_places(nowhere, files, server, place):
    put(files, nowhere[place])
    data = fashion_mnist()
    assert [len(getattr(data, part)[1]) for part in PARTS] == [150, 50, 40]
    assert server == []


def test_validation_is_cut_from_training_all_classes_alike_by_the_seed(nowhere, files):
    put(files, nowhere[0])
    first, again, other = fashion_mnist(seed=1), fashion_mnist(seed=1), fashion_mnist(seed=2)
    np.testing.assert_array_equal(first.validation[0], again.validation[0])
    assert not np.array_equal(first.validation[0], other.validation[0])
    np.testing.assert_array_equal(first.test[0], other.test[0])
    assert np.bincount(first.validation[1]).tolist() == [5] * 10
    rows = [{image.tobytes() for image in getattr(first, part)[0]} for part in PARTS]
    assert [len(part) for part in rows] == [150, 50, 40]
    assert not rows[0] & rows[1]


def test_pixels_are_read_in_their_order_and_scaled(nowhere, files):
    put(files, nowhere[0])
    content = np.frombuffer(gzip.decompress(files["t10k-images-idx3-ubyte.gz"]), "uint8")[16:]
    np.testing.assert_allclose(fashion_mnist().test[0].ravel(), content / 255, rtol=1e-6)


def test_a_download_names_address_size_and_licence_and_is_made_once(nowhere, server, capsys):
    fashion_mnist()
    told = capsys.readouterr().out
    assert len(server) == 4
    assert all(url.startswith("https://") and url in told for url in server)
    assert told.count("licence: MIT") == 4
    assert told.count(" MB") == 4
    assert sorted(path.name for path in nowhere[1].iterdir()) == sorted(images.FASHION_FILES)
    fashion_mnist()
    assert len(server) == 4


def test_without_a_network_the_error_says_what_to_do(nowhere, files, monkeypatch, capsys):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ConnectionError, match=r"NNOPT_DATA.*apt-get install dataset-fashion-mnist"):
        fashion_mnist()
    assert list(nowhere[1].iterdir()) == []


def test_a_download_that_is_not_the_file_leaves_nothing_behind(nowhere, server, monkeypatch):
    name = "train-images-idx3-ubyte.gz"
    size, _, content = images.FASHION_FILES[name]
    monkeypatch.setitem(images.FASHION_FILES, name, (size, "0" * 64, content))
    with pytest.raises(ValueError, match="sha256"):
        fashion_mnist()
    assert list(nowhere[1].iterdir()) == []


def test_a_file_with_other_content_is_refused(nowhere, files):
    files["t10k-labels-idx1-ubyte.gz"] = gzip.compress(bytes(48))
    put(files, nowhere[0])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz must have the sha256"):
        fashion_mnist()


def test_the_local_folder_comes_first_then_keras_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NNOPT_DATA", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    folders = images._fashion_folders()
    assert folders[0] == tmp_path / "fashion-mnist"
    assert folders[1] == tmp_path / "keras" / "datasets" / "fashion-mnist"
    monkeypatch.delenv("NNOPT_DATA")
    assert images._fashion_folders()[0] is None


def test_a_wrong_seed_is_named():
    with pytest.raises(TypeError, match="`seed` must be an integer"):
        fashion_mnist(seed=0.5)
