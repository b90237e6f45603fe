import hashlib
import socket
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nnopt.data import Dataset, digits, embedded, label_noise, photos, subsample

PARTS = ("train", "validation", "test")


@pytest.fixture
def data():
    return digits()


def test_digits_are_split_1077_360_360_with_the_promised_shapes_and_types(data):
    for name, size in zip(PARTS, (1077, 360, 360)):
        x, y = getattr(data, name)
        assert (x.shape, y.shape) == ((size, 64), (size,))
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        assert x.min() == 0
        assert x.max() == 1
        assert set(y) == set(range(10))
    assert data.classes == 10
    assert "1,797" in data.description


def test_every_digit_of_scikit_learn_is_in_one_part_with_its_label(data):
    pixels, labels = load_digits(return_X_y=True)
    expected = sorted((*image, label) for image, label in zip(pixels, labels))
    found = sorted((*image * 16, label) for name in PARTS for image, label in zip(*getattr(data, name)))
    np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_parts_hold_the_classes_in_the_same_proportions(data):
    shares = np.bincount(load_digits().target) / 1797
    for name in PARTS:
        y = getattr(data, name)[1]
        assert np.max(np.abs(np.bincount(y) - shares * len(y))) <= 1


def test_split_is_the_same_on_every_machine_and_day(data):
    labels = np.concatenate([getattr(data, name)[1] for name in PARTS])
    digest = hashlib.sha256(labels.astype("int64").tobytes()).hexdigest()
    assert digest[:16] == "23beffc904e55b46"


def test_another_seed_gives_another_split(data):
    assert not np.array_equal(digits(seed=1).train[1], data.train[1])


def test_images_are_the_same_pixels_in_two_dimensions(data):
    images = digits(images=True)
    assert images.test[0].shape == (360, 8, 8, 1)
    np.testing.assert_array_equal(images.test[0].reshape(360, 64), data.test[0])


def test_a_change_to_one_result_does_not_reach_the_next(data):
    data.train[0][:] = -1
    assert digits().train[0].min() == 0


def test_digits_need_no_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(digits().train[1]) == 1077


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seed": -1}, ValueError),
        ({"images": 1}, TypeError),
    ],
)
def test_digits_name_the_argument_that_is_wrong(arguments, error):
    with pytest.raises(error, match=f"`{next(iter(arguments))}` must be"):
        digits(**arguments)


@pytest.mark.parametrize("examples", [1, 10, 37, 100, 1000, 1077])
def test_subsample_keeps_the_class_shares_to_within_one_example(data, examples):
    x, y = subsample(data, examples, seed=3).train
    assert len(x) == len(y) == examples
    wanted = np.bincount(data.train[1]) / 1077 * examples
    assert np.max(np.abs(np.bincount(y, minlength=10) - wanted)) <= 1


def test_subsample_touches_only_the_training_part_and_keeps_pairs_together(data):
    few = subsample(data, 50, seed=0)
    assert few.validation is data.validation
    assert few.test is data.test
    assert (few.classes, few.description) == (data.classes, data.description)
    originals = {image.tobytes(): label for image, label in zip(*data.train)}
    assert all(originals[image.tobytes()] == label for image, label in zip(*few.train))
    assert len(data.train[1]) == 1077


def test_a_smaller_subsample_is_part_of_a_larger_one(data):
    small, large, other = (
        {image.tobytes() for image in subsample(data, examples, seed=seed).train[0]}
        for examples, seed in [(30, 0), (200, 0), (30, 1)]
    )
    assert small < large
    assert len(small & other) < 30


def test_the_whole_subsample_is_the_data_set_itself(data):
    np.testing.assert_array_equal(subsample(data, 1077, seed=5).train[0], data.train[0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_label_noise_leaves_the_stated_share_of_labels_wrong(data, share):
    wrong = np.mean([np.mean(label_noise(data, share, seed).train[1] != data.train[1]) for seed in range(20)])
    assert wrong == pytest.approx(share * 0.9, abs=0.01)


def test_fully_noisy_labels_are_uniform_and_tell_nothing_about_the_class(data):
    table = np.zeros((10, 10))
    for seed in range(20):
        np.add.at(table, (data.train[1], label_noise(data, 1.0, seed).train[1]), 1)
    np.testing.assert_allclose(table / table.sum(axis=1, keepdims=True), 0.1, atol=0.03)


def test_label_noise_touches_only_training_labels(data):
    before = data.train[1].copy()
    noisy = label_noise(data, 0.5, seed=0)
    assert noisy.train[0] is data.train[0]
    assert noisy.validation is data.validation
    assert noisy.test is data.test
    assert noisy.train[1].dtype == np.int32
    np.testing.assert_array_equal(data.train[1], before)


def test_more_label_noise_contains_less(data):
    less, more = (label_noise(data, share, seed=0).train[1] for share in (0.2, 0.6))
    changed = less != data.train[1]
    np.testing.assert_array_equal(more[changed], less[changed])
    assert np.sum(more != data.train[1]) > np.sum(changed)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "named"),
    [
        (subsample, {"examples": 1078}, ValueError, "examples"),
        (subsample, {"examples": 5, "seed": -1}, ValueError, "seed"),
        (label_noise, {"share": 1.1}, ValueError, "share"),
        (label_noise, {"share": 0.5, "seed": 1.0}, TypeError, "seed"),
    ],
)
def test_changes_name_the_argument_that_is_wrong(data, function, arguments, error, named):
    with pytest.raises(error, match=f"`{named}` must be"):
        function(data, **{"seed": 0, **arguments})


def test_changes_refuse_data_without_classes():
    x, y = np.zeros((4, 2)), np.zeros(4)
    with pytest.raises(ValueError, match="integer labels"):
        subsample(Dataset((x, y), (x, y), (x, y)), 2, seed=0)
    y = y.astype(int)
    with pytest.raises(ValueError, match="number of classes"):
        label_noise(Dataset((x, y), (x, y), (x, y)), 0.5, seed=0)


@pytest.mark.parametrize(
    "part",
    [
        None,
        (np.zeros(3),),
        (np.zeros(3), np.zeros(2)),
        ({"left": np.zeros(3), "right": np.zeros(2)}, np.zeros(2)),  # two inputs are not two examples
        ((np.zeros(3), np.zeros(3)), np.zeros(2)),
    ],
)
def test_dataset_refuses_a_part_that_is_no_pair_of_equal_length(part):
    good = (np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"`validation` must be a pair .*Received: validation of shape"):
        Dataset(good, part, good)


def test_dicts_and_tuples_of_arrays_are_counted_by_their_examples():
    labels = np.arange(6) % 2
    several = {"pixels": np.arange(12).reshape(6, 2), "size": np.arange(6)}
    data = Dataset((several, labels), ((labels, labels), labels), (labels, {"label": labels}), classes=2)
    assert repr(data) == "Dataset(train=6, validation=6, test=6, classes=2)"
    few = subsample(data, 2, seed=0)
    assert repr(few) == "Dataset(train=2, validation=6, test=6, classes=2)"
    kept = few.train[0]["size"]
    np.testing.assert_array_equal(few.train[0]["pixels"], several["pixels"][kept])
    np.testing.assert_array_equal(few.train[1], labels[kept])


@pytest.fixture(scope="module", params=[32, 64])
def patches(request):
    pytest.importorskip("skimage")
    return photos(size=request.param)


@pytest.fixture
def coordinates(monkeypatch):
    """Puts images of the photographs' sizes in their place, whose colours tell row and column."""
    pytest.importorskip("skimage")
    coded = []
    for image in embedded._photographs():
        row, column = np.indices(image.shape[:2])
        coded.append(np.stack([row % 256, column % 256, row // 256 * 16 + column // 256], axis=2).astype("uint8"))
    monkeypatch.setattr(embedded, "_photographs", lambda: coded)
    return coded


def places(part, label):
    """Rows and columns of all pixels of a class's patches, (patches, side, side, 2)."""
    x, y = part
    colors = np.rint(x[y == label] * 255).astype("int64")
    row, column, high = np.moveaxis(colors, -1, 0)
    return np.stack([row + high // 16 * 256, column + high % 16 * 256], axis=-1)


def test_photos_have_ten_balanced_classes_and_the_promised_shapes(patches):
    side = patches.train[0].shape[1]
    assert side in (32, 64)
    for name, count in zip(PARTS, (240, 60, 60)):
        x, y = getattr(patches, name)
        assert (x.shape, x.dtype, y.dtype) == ((10 * count, side, side, 3), np.float32, np.int32)
        assert np.bincount(y).tolist() == [count] * 10
        assert x.min() >= 0
        assert 0.9 < x.max() <= 1
    assert patches.classes == 10


def test_patches_are_cut_out_of_their_photograph(patches):
    side = patches.test[0].shape[1]
    for label, image in enumerate(embedded._photographs()):
        patch = np.rint(patches.test[0][patches.test[1] == label][0] * 255).astype("uint8")
        windows = np.lib.stride_tricks.sliding_window_view(image[:, :, 0], side, axis=1)[:, :, 0]
        candidates = np.argwhere(windows == patch[0, 0, 0])
        assert any(np.array_equal(image[r : r + side, c : c + side], patch) for r, c in candidates)


@pytest.mark.parametrize("size", [32, 64])
def test_parts_of_photos_share_no_pixel_and_keep_a_gap(coordinates, size):
    data = photos(seed=3, size=size)
    for label, image in enumerate(coordinates):
        near = np.zeros((3, *image.shape[:2]), bool)
        for number, name in enumerate(PARTS):
            rows, columns = np.moveaxis(places(getattr(data, name), label), -1, 0)
            # Patches are contiguous windows.
            assert (np.diff(rows, axis=1) == 1).all()
            assert (np.diff(columns, axis=2) == 1).all()
            near[number][rows, columns] = True
        gap = size // 8
        for one, other in [(0, 1), (0, 2), (1, 2)]:
            for down in range(-gap, gap + 1):
                for right in (-gap, 0, gap):
                    moved = np.roll(near[other], (down, right), axis=(0, 1))
                    # The images' far borders are never reached together, so that rolling round them adds nothing.
                    assert not (near[one] & moved)[gap:-gap, gap:-gap].any()


def test_no_patch_of_photos_comes_twice(coordinates):
    data = photos(size=32)
    for name in PARTS:
        x, y = getattr(data, name)
        corners = {(label, *place) for label in range(10) for place in places((x, y), label)[:, 0, 0].tolist()}
        assert len(corners) == len(y)


def test_photos_follow_the_seed():
    pytest.importorskip("skimage")
    first, again, other = photos(seed=1), photos(seed=1), photos(seed=2)
    np.testing.assert_array_equal(first.test[0], again.test[0])
    np.testing.assert_array_equal(first.train[1], again.train[1])
    assert not np.array_equal(first.test[0], other.test[0])


def test_the_choice_of_patches_is_the_same_on_every_machine_and_day(coordinates):
    data = photos()  # of coordinates, since JPEG decoders differ in the last bit
    corners = [places(getattr(data, name), label)[:, 0, 0] for name in PARTS for label in range(10)]
    digest = hashlib.sha256(np.concatenate(corners).astype("int64").tobytes()).hexdigest()
    assert digest[:16] == "7841661338b75fcd"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 48}, ValueError, "`size` must be 32 or 64. Received: size=48"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
    ],
)
def test_photos_refuse_other_sizes_and_seeds(arguments, error, message):
    with pytest.raises(error, match=message):
        photos(**arguments)


def test_photos_without_scikit_image_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        photos()
