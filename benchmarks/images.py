"""What the input of image training costs: augmentation and decoding, beside training and beside albumentations.

    python benchmarks/images.py       # on the backend of KERAS_BACKEND, TensorFlow by default, on one core

- `augmentation(("crop", "flip", "jitter"))` on batches of 128 images of 32x32, compiled, beside a training step of
  ResNet-20 on the same batches and beside albumentations (or its successor AlbumentationsX), which works image by
  image. All on one core: the goal is three times the rate of training.
- `training_data` on pictures: JPEG files of 500x375 decoded at random crops of 224, scaled without aliasing, beside
  albumentations' random resized crop after OpenCV's decoding.
- The time and the peak memory of an epoch of 1, 2, 4 and 8 thousand images through both pipelines, each in a process of
  its own. Before the epoch it holds the libraries, the images in memory and the first batch of another epoch.
- `load("cifar10")` from a local copy, where NNOPT_DATA names one.

Albumentations is no dependency; where it is missing, its lines are left out. The sides take turns, and the medians over
the turns are compared.
"""

import importlib.util
import io
import multiprocessing
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import keras
import numpy as np
from PIL import Image
from turns import TURNS, here, rates, report

from nnopt.data import Dataset, Pictures, augmentation, load, training_data
from nnopt.data.pictures import EncodedPictures
from nnopt.models import resnet

BATCH, CALLS = 128, 4
NAMES = ("crop", "flip", "jitter")
THOUSANDS = (1, 2, 4, 8)


def compiled(layers, example):
    """Returns a compiled function of a batch that returns it augmented, as an array."""
    backend = keras.backend.backend()
    layers.build(example.shape)
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda batch: layers(batch, training=True))
        return lambda batch: function(tf.constant(batch)).numpy()
    if backend == "jax":
        import jax

        function = jax.jit(lambda state, batch: layers.stateless_call([], state, batch, training=True))
        state = [variable.value for variable in layers.non_trainable_variables]

        def augment(batch):
            nonlocal state
            images, state = function(state, batch)
            return np.asarray(images)

        return augment
    return lambda batch: keras.ops.convert_to_numpy(layers(batch, training=True))


def albumentations():
    """Returns the package, or None and a line that says so."""
    if importlib.util.find_spec("albumentations") is None:
        print("albumentations is not installed (pip install albumentationsx, beside the requirements): left out")
        return None
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    return albumentations


def small_images(peer):
    generator = np.random.default_rng(0)
    x = generator.integers(256, size=(BATCH, 32, 32, 3), dtype="uint8")
    y = generator.integers(10, size=BATCH)
    augment = compiled(augmentation(NAMES, 32, seed=0), x)
    model = resnet(20, (32, 32, 3), 10)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def repeated(function, calls):
        def take():
            for _ in range(calls):
                function()
            return calls * BATCH

        return take

    sides = {
        "augmentation": repeated(lambda: augment(x), CALLS),
        "a training step of ResNet-20": repeated(lambda: model.train_on_batch(x / np.float32(255), y), 1),
    }
    if peer:
        change = peer.Compose(
            [
                peer.PadIfNeeded(40, 40, border_mode=0),
                peer.RandomCrop(32, 32),
                peer.HorizontalFlip(p=0.5),
                peer.ColorJitter((0.8, 1.2), (0.6, 1.4), (0.6, 1.4), (-0.05, 0.05), p=1),
            ]
        )
        sides["albumentations"] = repeated(lambda: [change(image=image)["image"] for image in x], CALLS)
    report(f"crop, flip and jitter of 32x32 images, batches of {BATCH}: images", rates(sides))


def jpeg():
    """Returns a smooth picture with some noise as a JPEG file of 500x375, about 50 kB."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(256, size=(38, 50, 3), dtype="uint8")).resize((500, 375))
    noisy = np.asarray(coarse, "int16") + generator.integers(-8, 9, size=(375, 500, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(file, "JPEG", quality=90)
    return file.getvalue()


class Source:
    """So many times the same picture."""

    def __init__(self, count):
        self.count, self.content = count, jpeg()

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return {"image": self.content, "label": row % 10}


def picture_batches(count):
    part = EncodedPictures(Source(count))
    return training_data(Pictures(part, part, part, classes=10), image_size=224, batch_size=64, seed=0)


def large_images(peer):
    batches = picture_batches(1024)
    content = np.frombuffer(jpeg(), "uint8")
    sides = {"training_data": lambda: sum(len(y) for _, y in batches.batches(0))}
    if peer:
        import cv2

        def side(interpolation):
            crop = peer.RandomResizedCrop((224, 224), (0.08, 1), (3 / 4, 4 / 3), interpolation=interpolation)

            def take(count=256):
                for _ in range(count):
                    crop(image=cv2.cvtColor(cv2.imdecode(content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
                return count

            return take

        sides["OpenCV and albumentations, aliased"] = side(cv2.INTER_LINEAR)
        sides["OpenCV and albumentations, by area"] = side(cv2.INTER_AREA)
    report(
        f"decoding of JPEG files ({len(content) / 1000:.0f} kB, 500x375) at random crops of 224: images", rates(sides)
    )


def epoch(kind, thousands, connection):
    """Sends the time of an epoch in seconds, and the process' peak memory before it and after it in MB."""
    count = 1000 * thousands
    if kind == "small":
        x = np.random.default_rng(0).integers(256, size=(count, 32, 32, 3), dtype="uint8")
        y = np.zeros(count, "int32")
        data = training_data(Dataset((x, y), (x, y), (x, y), 10), image_size=32, batch_size=100, seed=0)
        augment = compiled(augmentation(NAMES, 32, seed=0), x[:100])
    else:
        data, augment = picture_batches(count), lambda batch: batch
    augment(next(iter(data.batches(0)))[0])
    before = peak_megabytes()
    start = time.perf_counter()
    for batch, _ in data.batches(1):
        augment(batch)
    seconds = time.perf_counter() - start
    connection.send((seconds, before, peak_megabytes()))


def peak_megabytes():
    """Returns the peak of this process' memory; `getrusage` would begin with that of the process that started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def growth(kind, title):
    print(title)
    context = multiprocessing.get_context("spawn")
    for thousands in THOUSANDS:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=epoch, args=(kind, thousands, sender))
        process.start()
        seconds, before, after = receiver.recv()
        process.join()
        each = 1e6 * seconds / (1000 * thousands)
        memory = f"peak {after:.0f} MB, {before:.0f} before the epoch"
        print(f"  {1000 * thousands:5} images {seconds:7.2f} s, {each:6.0f} µs each, {memory}", flush=True)


def main():
    print(f"{here('numpy', 'albumentationsx', 'albumentations')}, on one of them")
    print(f"median of {TURNS} turns")
    peer = albumentations()
    small_images(peer)
    large_images(peer)
    growth("small", "An epoch of 32x32 images, augmented:")
    growth("large", "An epoch of JPEG files, decoded at crops of 224:")
    if os.environ.get("NNOPT_DATA"):
        start = time.perf_counter()
        data = load("cifar10")
        print(f"load('cifar10'): {time.perf_counter() - start:.1f} s ({data.description})")


if __name__ == "__main__":
    # One core for everything, the threads that read ahead included.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
