"""nnopt.data: image sets by name, the batches read from them, what training does to them, and a user's pictures."""

import gzip
import io
import struct
import tarfile
import zlib

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from keras import ops
from PIL import Image

from nnopt.callbacks import Resume
from nnopt.data import (
    Dataset,
    EpochData,
    Pictures,
    augmentation,
    epoch_order,
    evaluation_data,
    load,
    photos,
    read_picture,
    training_data,
)
from nnopt.data.augment import RandomShift
from nnopt.data.images import FASHION
from nnopt.data.pictures import EncodedPictures, PictureBatches, random_box


def encoded(image, format="JPEG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {}))
    return file.getvalue()


def grey(value, side=32):
    return np.full((side, side, 3), value, "uint8")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small CIFAR-10: three classes, 20 flat training pictures and 2 test pictures of each, all of other greys."""
    path = tmp_path / "cifar10_jpeg.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for number, name in enumerate(("truck", "airplane", "cat")):
            for part, count, first in (("train", 20, 20 * number), ("test", 2, 100 + 2 * number)):
                for index in range(count):
                    content = encoded(grey(2 * (first + index)))
                    member = tarfile.TarInfo(f"{part}/{name}/{index:04d}.jpg")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    monkeypatch.setenv("NNOPT_DATA", str(tmp_path))
    return path


# load ----------------------------------------------------------------------------------------------------------------


def test_photos_as_bytes_are_the_floats_of_photos_times_255():
    data, floats = load("photos", seed=3), photos(seed=3)
    for part in ("train", "validation", "test"):
        (x, y), (values, labels) = getattr(data, part), getattr(floats, part)
        assert x.dtype == np.uint8
        np.testing.assert_array_equal((x / 255).astype("float32"), values)
        np.testing.assert_array_equal(y, labels)
    assert len(data.class_names) == data.classes == 10


def test_a_local_archive_gives_bytes_and_labels_in_the_order_of_the_class_names(archive):
    data = load("cifar10")
    assert data.class_names == ("airplane", "cat", "truck")
    x, y = data.test
    assert x.dtype == np.uint8
    assert y.dtype == np.int32
    # The test pictures of truck, airplane and cat have the greys 200 and 202, 204 and 206, 208 and 210.
    assert dict(zip(x[:, 0, 0, 0].tolist(), y.tolist())) == {204: 0, 206: 0, 208: 1, 210: 1, 200: 2, 202: 2}
    assert "lossy" in data.description


def test_validation_is_cut_from_training_in_the_proportions_of_the_classes(archive):
    data = load("cifar10")
    greys = np.concatenate([data.train[0][:, 0, 0, 0], data.validation[0][:, 0, 0, 0]])
    assert sorted(greys.tolist()) == list(range(0, 120, 2))
    assert np.bincount(data.validation[1]).tolist() == [2, 2, 2]


def test_the_seed_decides_the_validation_part_and_nothing_else(archive):
    first, again, other = (load("cifar10", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.validation[0], again.validation[0])
    assert not np.array_equal(first.validation[0], other.validation[0])
    np.testing.assert_array_equal(first.test[0], other.test[0])


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.7])
def test_a_damaged_archive_is_refused_by_its_name(archive, kept):
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(ValueError, match=r"cifar10_jpeg.tar.xz is damaged"):
        load("cifar10")


def test_fashion_mnist_is_read_from_the_files_of_its_authors(tmp_path, monkeypatch):
    monkeypatch.setenv("NNOPT_DATA", str(tmp_path))
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    images = np.random.default_rng(0).integers(256, size=(200, 28, 28), dtype="uint8")
    labels = np.arange(200, dtype="uint8") % 10
    for part, count in (("train", 200), ("t10k", 20)):
        head = struct.pack(">4i", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images[:count].tobytes()))
        head = struct.pack(">2i", 0x801, count)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels[:count].tobytes()))
    data = load("fashion_mnist")
    np.testing.assert_array_equal(data.test[0], images[:20, :, :, None])
    np.testing.assert_array_equal(data.test[1], labels[:20])
    assert (len(data.train[1]), len(data.validation[1])) == (180, 20)
    assert data.class_names == FASHION
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is missing or damaged"):
        load("fashion_mnist")


def test_a_set_without_a_local_copy_comes_through_tfds(monkeypatch):
    monkeypatch.delenv("NNOPT_DATA", raising=False)
    with tfds.testing.mock_data(num_examples=1500):
        data = load("cifar100")
    assert (len(data.train[1]), len(data.validation[1]), len(data.test[1])) == (1350, 150, 1500)
    assert data.train[0].shape == (1350, 32, 32, 3)
    assert data.train[0].dtype == np.uint8
    assert data.train[1].dtype == np.int32
    assert len(data.class_names) == 100


@pytest.mark.parametrize(("name", "function"), [("cifar10", "load"), ("imagenet2012", "data_source")])
def test_what_cannot_be_fetched_is_said_in_one_sentence(name, function, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("Name or service\nnot known")

    monkeypatch.setenv("NNOPT_DATA", str(tmp_path))
    monkeypatch.setattr(tfds, function, fail)
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is not on this machine.*Name or service not known"):
        load(name)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`name` must be one of .*'cifar10'.*Received: name='cifar11'"):
        load("cifar11")


def test_a_seed_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"`seed` must be an integer >= 0"):
        load("photos", seed=-1)


# batches of arrays ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    """Twelve images, each of one grey, and its number as the label."""
    images = np.stack([grey(20 * number, side=8) for number in range(12)])
    labels = np.arange(12, dtype="int32")
    return Dataset((images[:6], labels[:6]), (images[6:9], labels[6:9]), (images[9:], labels[9:]), classes=12)


def test_training_visits_every_image_once_an_epoch_in_the_order_of_the_epoch(small):
    batches = training_data(small, image_size=8, batch_size=4, seed=5)
    labels = np.concatenate([y for _, y in batches.batches(epoch=2)])
    np.testing.assert_array_equal(labels, epoch_order(6, seed=5, epoch=2))


def test_arrays_are_resized_where_another_size_is_asked_for(small):
    x, y = next(training_data(small, image_size=16, batch_size=4, seed=5).batches(0))
    assert x.shape == (4, 16, 16, 3)
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x[:, 3, 3, 0], 20 * y)


def test_evaluation_reads_a_part_as_it_is(small):
    for part, labels in (("validation", [6, 7, 8]), ("test", [9, 10, 11])):
        batches = evaluation_data(small, part, image_size=8, batch_size=2)
        assert np.concatenate([batches[k][1] for k in range(len(batches))]).tolist() == labels


def test_evaluation_of_the_training_part_is_refused(small):
    with pytest.raises(ValueError, match=r"`part` must be one of 'validation', 'test'. Received: part='train'"):
        evaluation_data(small, "train", image_size=8, batch_size=2)


@pytest.mark.parametrize(
    ("argument", "value"), [("image_size", 0), ("batch_size", 0), ("seed", -1)]
)  # fmt: skip
def test_an_argument_of_training_data_out_of_its_range_is_refused(small, argument, value):
    arguments = {"image_size": 8, "batch_size": 2, "seed": 0, argument: value}
    with pytest.raises(ValueError, match=rf"`{argument}` must be an integer >= .*Received: {argument}={value}"):
        training_data(small, **arguments)


def test_training_data_of_an_array_is_refused():
    with pytest.raises(TypeError, match=r"`data` must be what `load` returns"):
        training_data(np.zeros((4, 8, 8, 3)), image_size=8, batch_size=2, seed=0)


# batches of pictures -------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 240, 160


class Source:
    """Pictures whose red tells the column and whose green tells the row; labels count them; `read` tells which."""

    def __init__(self, count, format="JPEG"):
        columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        self.image = encoded(np.stack([columns, rows, 0 * rows], axis=-1).astype("uint8"), format)
        self.count = count
        self.read = []

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        self.read.append(row)
        return {"image": self.image, "label": row}


@pytest.fixture(params=["tf.data", "grain"])
def batches_of(request):
    """Makes `PictureBatches` that read in one of the two ways, whatever the backend."""
    if request.param == "grain":
        pytest.importorskip("grain")

    def make(source, **arguments):
        batches = PictureBatches(EncodedPictures(source), **arguments)
        batches.reader = request.param
        return batches

    return make


def test_an_epoch_of_pictures_taken_up_in_its_middle_goes_on_with_the_same_batches(batches_of):
    batches = batches_of(Source(11), image_size=16, batch_size=3, seed=4)
    whole, tail = list(batches.batches(1)), list(batches.batches(1, start=2))
    assert [len(y) for _, y in whole] == [3, 3, 3, 2]
    assert len(tail) == 2
    for (x, y), (x_again, y_again) in zip(whole[2:], tail):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)


def test_the_batches_before_the_middle_are_not_read(batches_of):
    source = Source(12)
    list(batches_of(source, image_size=16, batch_size=3, seed=4).batches(1, start=2))
    assert sorted(source.read) == sorted(epoch_order(12, seed=4, epoch=1)[6:].tolist())


def test_pictures_come_in_the_order_of_the_epoch_as_bytes_with_whole_labels(batches_of):
    x, y = next(batches_of(Source(9), image_size=16, batch_size=9, seed=4).batches(3))
    assert (x.shape, x.dtype, y.dtype) == ((9, 16, 16, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(y, epoch_order(9, seed=4, epoch=3))


@pytest.mark.parametrize("other", [{"seed": 5, "epoch": 0}, {"seed": 4, "epoch": 1}])
def test_another_seed_or_epoch_crops_the_same_picture_elsewhere(batches_of, other):
    def first_picture(seed, epoch):
        x, y = next(batches_of(Source(8), image_size=16, batch_size=8, seed=seed).batches(epoch))
        return x[y.tolist().index(0)]

    assert not np.array_equal(first_picture(4, 0), first_picture(**other))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_crops_lie_in_the_picture_and_keep_to_their_areas_and_ratios(batches_of, format):
    size = 32
    x, _ = next(batches_of(Source(200, format), image_size=size, batch_size=200, seed=0).batches(0))
    x = x.astype("float64")
    # Red grows by one a column and green by one a row, so that the ends of the middle lines tell the crop's sides.
    half = size // 2
    widths = (x[:, half, -4, 0] - x[:, half, 3, 0]) * size / (size - 7)
    heights = (x[:, -4, half, 1] - x[:, 3, half, 1]) * size / (size - 7)
    areas, ratios = widths * heights / (WIDTH * HEIGHT), widths / heights
    assert 0.06 < areas.min() < 0.2
    assert 0.7 < areas.max() < 1.05
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.4
    assert x[:, half, 0, 0].min() < 10  # crops reach from edge to edge
    assert x[:, half, -1, 0].max() > WIDTH - 10


def test_evaluation_takes_seven_eighths_of_the_middle(batches_of):
    x, y = batches_of(Source(5), image_size=140, batch_size=5)[0]
    assert y.tolist() == [0, 1, 2, 3, 4]
    side = 140  # 160 rows times 224 / 256: no pixel is scaled
    left, top = (WIDTH - side) // 2, (HEIGHT - side) // 2
    middle = (slice(top, top + side), slice(left, left + side))
    np.testing.assert_array_equal(x[0], np.asarray(Image.open(io.BytesIO(Source(1).image)))[middle])


def test_a_model_trains_on_pictures_through_resume_and_is_evaluated_on_them(tmp_path):
    part = EncodedPictures(Source(6))
    data = Pictures(part, part, part, classes=6)
    train = training_data(data, image_size=8, batch_size=4, seed=0)
    assert isinstance(train, EpochData)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(6)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    test = evaluation_data(data, "test", image_size=8, batch_size=4)
    model.fit(train, epochs=1, validation_data=test, callbacks=[Resume(tmp_path, train)], verbose=0)
    assert int(model.optimizer.iterations) == 2
    assert model.predict(test, verbose=0).shape == (6, 6)


@pytest.mark.parametrize(("name", "classes"), [("imagenette", 10), ("imagenet2012", 1000)])
def test_the_pictures_of_tfds_are_cropped_to_224(name, classes):
    with tfds.testing.mock_data(num_examples=20):
        data = load(name)
        x, y = next(training_data(data, image_size=224, batch_size=8, seed=0).batches(0))
        tests = evaluation_data(data, "test", image_size=224, batch_size=8)[0]
    assert x.shape == tests[0].shape == (8, 224, 224, 3)
    assert y.dtype == np.int32
    assert data.classes == len(data.class_names) == classes
    assert len(data.train) + len(data.validation) == len(data.test) == 20


def test_the_validation_pictures_are_none_of_training():
    with tfds.testing.mock_data(num_examples=50):
        data = load("imagenette")
        rows = [{data_part[k][0] for k in range(len(data_part))} for data_part in (data.train, data.validation)]
    assert (len(rows[0]), len(rows[1])) == (45, 5)
    assert not rows[0] & rows[1]


def test_a_random_box_of_a_thin_picture_is_the_square_in_its_middle():
    assert random_box(1000, 10, np.random.default_rng(0)) == (495, 0, 505, 10)


# augmentation --------------------------------------------------------------------------------------------------------


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(64, 32, 32, 3), dtype="uint8")


def augmented(layers, images, training=True):
    return ops.convert_to_numpy(layers(images, training=training))


@pytest.mark.parametrize("names", [(), ("crop", "flip", "jitter"), ("jitter",)])
def test_inference_passes_images_on_as_floats(names, images):
    result = augmented(augmentation(names, 32, seed=0), images, training=False)
    np.testing.assert_array_equal(result, images.astype("float32"))
    assert result.dtype == np.float32


@pytest.mark.parametrize("name", ["crop", "flip", "jitter"])
def test_each_image_of_a_batch_is_changed_on_its_own(name, images):
    same = np.repeat(images[:1], 64, axis=0)
    result = augmented(augmentation((name,), 32, seed=0), same)
    different = {image.tobytes() for image in result}
    assert len(different) == 2 if name == "flip" else len(different) > 20


def test_a_flip_mirrors_about_half_of_the_images_left_to_right(images):
    result = augmented(augmentation(("flip",), 32, seed=0), images)
    mirrored = [np.array_equal(after, before[:, ::-1]) for before, after in zip(images, result)]
    kept = [np.array_equal(after, before) for before, after in zip(images, result)]
    assert all(np.logical_xor(mirrored, kept))
    assert 16 <= sum(mirrored) <= 48  # of 64: four standard deviations


def test_a_crop_moves_by_at_most_an_eighth_and_fills_with_black(images):
    result = augmented(augmentation(("crop",), 32, seed=0), images)
    shifts = [shift_between(before, after, reach=4) for before, after in zip(images, result)]
    assert None not in shifts
    assert {down for down, _ in shifts} == {across for _, across in shifts} == set(range(-4, 5))


def shift_between(before, after, reach):
    """Returns the shift (down, across) that makes `after` of `before`, or None."""
    padded = np.pad(before, ((reach, reach), (reach, reach), (0, 0)))
    height, width = before.shape[:2]
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            top, left = reach - down, reach - across
            if np.array_equal(padded[top : top + height, left : left + width], after):
                return down, across
    return None


def test_a_jitter_keeps_to_the_range_of_pixels_even_of_bytes(images):
    result = augmented(augmentation(("jitter",), 32, seed=0), images)
    assert result.min() >= 0
    assert result.max() <= 255.001
    assert not np.array_equal(result, images)


def test_a_jitter_changes_brightness_by_a_fifth_of_the_range_at_most():
    result = augmented(augmentation(("jitter",), 32, seed=0), np.full((200, 4, 4, 3), 128, "uint8"))
    # Contrast, saturation and hue leave a flat grey image as it is.
    changes = result[:, 0, 0, 0] - 128
    assert -51.01 <= changes.min() < -40
    assert 40 < changes.max() <= 51.01


def test_augmentation_goes_on_with_the_same_draws_from_the_same_state(images):
    names = ("crop", "flip", "jitter")
    first, second = (augmentation(names, 32, seed=seed) for seed in (0, 1))
    for layers in (first, second):
        layers.build(images.shape)
    augmented(first, images)  # the state moves on
    for mine, other in zip(second.variables, first.variables):
        mine.assign(other)
    expected = augmented(first, images)
    np.testing.assert_array_equal(augmented(second, images), expected)
    assert not np.array_equal(augmented(first, images), expected)


def test_two_seeds_draw_differently(images):
    results = [augmented(augmentation(("crop",), 32, seed=seed), images) for seed in (0, 1)]
    assert not np.array_equal(*results)


def test_a_model_with_augmentation_is_saved_and_loaded(tmp_path, images):
    model = keras.Sequential([keras.Input((32, 32, 3)), augmentation(("crop", "flip", "jitter"), 32, seed=0)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(augmented(loaded, images), augmented(model, images))


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match=r"`names` must be one of 'crop', 'flip', 'jitter'. Received: names='zoom'"):
        augmentation(("zoom",), 32, seed=0)


def test_an_augmentation_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"`names` must hold each name once"):
        augmentation(("flip", "flip"), 32, seed=0)


def test_a_string_for_a_tuple_of_names_is_refused():
    with pytest.raises(TypeError, match=r"`names` must be a tuple of names. Received: names='flip'"):
        augmentation("flip", 32, seed=0)


def test_a_shift_of_no_pixel_is_refused():
    with pytest.raises(ValueError, match=r"`pixels` must be an integer >= 1. Received: pixels=0"):
        RandomShift(0)


# read_picture --------------------------------------------------------------------------------------------------------


def saved(folder, image, name="picture.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_a_picture_gives_its_largest_square_in_the_middle(tmp_path):
    image = np.zeros((20, 60, 3), "uint8")
    image[:, 20:40] = (10, 200, 30)
    result = read_picture(saved(tmp_path, Image.fromarray(image)), image_size=10)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.broadcast_to(np.array([10, 200, 30], "uint8"), (10, 10, 3)))


def test_a_grey_picture_becomes_rgb(tmp_path):
    result = read_picture(saved(tmp_path, Image.new("L", (9, 9), 77)), image_size=4)
    assert (result == 77).all()
    assert result.shape == (4, 4, 3)


def test_a_colour_picture_becomes_grey_for_one_channel(tmp_path):
    result = read_picture(saved(tmp_path, Image.new("RGB", (9, 9), (255, 255, 255))), image_size=4, channels=1)
    assert result.shape == (4, 4, 1)
    assert (result == 255).all()


def test_sixteen_bits_of_grey_become_eight(tmp_path):
    values = np.full((6, 6), 100 * 257, "uint16")
    assert (read_picture(saved(tmp_path, Image.fromarray(values)), image_size=3) == 100).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode, tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    assert (read_picture(saved(tmp_path, image, **options), image_size=4) == 255).all()


def test_half_transparent_red_on_white_is_pink(tmp_path):
    result = read_picture(saved(tmp_path, Image.new("RGBA", (8, 8), (255, 0, 0, 128))), image_size=4)
    assert result[0, 0].tolist() == [255, 127, 127]


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    image = np.zeros((16, 16, 3), "uint8")
    image[:8] = 255  # white above, and by orientation 6 to be turned clockwise: white on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(image), "turned.jpg", exif=exif, quality=100)
    result = read_picture(path, image_size=16)
    assert result[:, 9:].min() > 200
    assert result[:, :7].max() < 50


def test_a_picture_of_one_pixel_fills_the_image(tmp_path):
    result = read_picture(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3))), image_size=5)
    assert np.unique(result.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]


def test_a_large_photograph_is_read(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (6000, 4000), (9, 99, 199)), "large.jpg")
    assert abs(read_picture(path, image_size=32).astype(int) - [9, 99, 199]).max() <= 2


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (struct.pack(">4sII5B", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bomb.png' has more than 178 million pixels"):
        read_picture(tmp_path / "bomb.png", image_size=32)


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.gif", "picture.tif", "picture.webp"])
def test_a_picture_that_is_cut_off_is_refused_by_its_name(name, tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype="uint8")
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name}' is (damaged or cut off|no picture)|picture.*{name}' is damaged"):
        read_picture(path, image_size=16)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", r"odd.jpg' is empty: 0 bytes"), (b"#!/bin/sh\necho hello\n", r"odd.jpg' is no picture")],
)
def test_a_file_that_is_no_picture_is_refused_by_its_name(content, message, tmp_path):
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / "odd.jpg", image_size=16)


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no picture '.*none.jpg'"):
        read_picture(tmp_path / "none.jpg", image_size=16)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder, no picture"):
        read_picture(tmp_path, image_size=16)


@pytest.mark.parametrize(("argument", "value"), [("image_size", 0), ("channels", 2)])
def test_an_argument_of_read_picture_out_of_its_range_is_refused(argument, value, tmp_path):
    path = saved(tmp_path, Image.new("L", (4, 4)))
    with pytest.raises(ValueError, match=rf"`{argument}` must be .*Received: {argument}={value}"):
        read_picture(path, **{"image_size": 8, argument: value})
