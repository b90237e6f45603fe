"""Case study 1: image classification by a residual network, at four sizes with one code path.

    recipe = ImageRecipe.preset("laptop")
    report = train_images(recipe, "runs/laptop")
    classify("runs/laptop", ["holiday.jpg"])

The same from the command line: `python -m nnopt train image --preset laptop --output runs/laptop`.
"""

import dataclasses
import json
from typing import Literal

import keras
import numpy as np
from keras import ops

from nnopt import optimizers, schedules
from nnopt.checks import check_integer, check_number
from nnopt.data import augment, images, pictures
from nnopt.models import resnet
from nnopt.recipes import report as reports
from nnopt.recipes import running
from nnopt.recipes.hosts import Hosts
from nnopt.recipes.recipe import Recipe

DATA = tuple(images.SETS)
# Normalization and biases set scales and offsets: shrinking them regularizes nothing.
WITHOUT_WEIGHT_DECAY = ("gamma", "beta", "bias")


@dataclasses.dataclass(frozen=True)
class ImageRecipe(Recipe):
    """Every setting of one training on images. Printed, it is a table.

    Args:
        data: Name of the data set, as `nnopt.data.load` knows it.
        image_size: Side of the square images in pixels, an integer >= 8.
        depth: Layers of the residual network: 50, 101 or 152, else 6n + 2.
        width: Channels of its first stage, an integer >= 1; None for the usual ones (16, or 64 for depths from 50).
        stem: Size of its first kernel, 3 for small images or 7; None for the usual one.
        epochs: Passes over the training images, an integer >= 1.
        batch_size: Images in a batch, over all devices, an integer >= 1.
        optimizer: "adamw", "adam" (the article's recipe; no weight decay), or "sgd" (Nesterov momentum).
        learning_rate: The highest rate, > 0.
        momentum: Momentum of "sgd", in [0, 1); the others ignore it.
        weight_decay: Share of a kernel that a step at rate 1 takes away, >= 0. Normalization and biases keep theirs.
        schedule: "exponential": a linear rise, then the rate shrinks by the same factor in every step; or "one_cycle".
        warmup: Share of the steps in which the rate rises to its highest value, in [0, 1).
        final_share: Rate at the end divided by the highest, in (0, 1], for "exponential"; "one_cycle" ignores it.
        augmentation: Names out of "crop", "flip", "jitter".
        label_smoothing: Share of each target that is spread over all classes, in [0, 1).
        precision: "float32", or "mixed_bfloat16", which GPUs since 2020 compute several times as fast.
        jit_compile: Whether TensorFlow compiles the training step by XLA; "auto" measures both on a processor. JAX
            always compiles, torch never.
        seed: Integer >= 0 that decides the first weights, the order of the images and the augmentation.

    Raises:
        TypeError, ValueError: A field is of the wrong type or out of its range.

    Example:

    >>> recipe = ImageRecipe.preset("paper")
    >>> print(recipe.replace(epochs=2))  # doctest: +ELLIPSIS
    data             imagenet2012
    image_size       224
    ...
    >>> ImageRecipe.from_json(recipe.to_json()) == recipe
    True
    """

    data: Literal[DATA] = "photos"
    image_size: int = 32
    depth: int = 20
    width: int | None = None
    stem: int | None = None
    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    schedule: Literal["exponential", "one_cycle"] = "exponential"
    warmup: float = 0.1
    final_share: float = 0.03
    augmentation: tuple[str, ...] = ("crop", "flip")
    label_smoothing: float = 0.0
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    jit_compile: bool | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self):
        self.check_choices()
        for name, least in (("image_size", 8), ("depth", 8), ("epochs", 1), ("batch_size", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), at_least=least)
        if self.width is not None:
            check_integer("width", self.width, at_least=1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("final_share", self.final_share, above=0, at_most=1)
        for name in ("momentum", "warmup", "label_smoothing"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        self.refuse_broken(self._rules())

    def _rules(self):
        """Returns what the values of some fields must be, and whether they are, by field."""
        names, known = self.augmentation, augment.AUGMENTATIONS
        return {
            "depth": ("50, 101, 152 or 6n + 2 (8, 14, 20 ...)", self.depth in (50, 101, 152) or self.depth % 6 == 2),
            "stem": ("3, 7 or None", self.stem in (3, 7, None)),
            "augmentation": (
                f"a tuple of different names out of {known}, without 'jitter' for the grey fashion_mnist",
                isinstance(names, tuple)
                and len(set(names)) == len(names)
                and set(names) <= set(known)
                and not (self.data == "fashion_mnist" and "jitter" in names),
            ),
            "jit_compile": ("True, False or 'auto'", self.jit_compile in (True, False, "auto")),
            "weight_decay": (
                "0 with optimizer='adam', which has none: take 'adamw', or set it to 0",
                self.optimizer != "adam" or self.weight_decay == 0,
            ),
        }

    def learning_rate_schedule(self, steps_per_epoch):
        """Returns the learning rate as a schedule of the step.

        With T = epochs * steps_per_epoch and W = warmup * T, the exponential one is

            rate(t) = learning_rate * t / W                                     t < W
            rate(t) = learning_rate * final_share ** ((t - W) / (T - W))        t >= W

        Args:
            steps_per_epoch: Batches of an epoch, an integer >= 1.

        Example:

        >>> rate = ImageRecipe.preset("paper").learning_rate_schedule(steps_per_epoch=1252)
        >>> [round(float(rate(epoch * 1252)) / 1e-3, 4) for epoch in (5, 6, 90)]  # 0.95 an epoch: 0.95 ** 85 is left
        [1.0, 0.95, 0.0128]
        """
        total = self.epochs * check_integer("steps_per_epoch", steps_per_epoch, at_least=1)
        if self.schedule == "one_cycle":
            return schedules.OneCycle(self.learning_rate, total_steps=total, pct_start=self.warmup)
        rising = round(self.warmup * total)
        falling = schedules.ExponentialDecay(self.learning_rate, max(total - rising, 1), self.final_share)
        return schedules.Warmup(falling, rising)

    def build_optimizer(self, steps_per_epoch):
        """Returns the optimizer with its schedule; its weight decay leaves normalization and biases alone.

        Args:
            steps_per_epoch: Batches of an epoch, an integer >= 1.
        """
        rate = self.learning_rate_schedule(steps_per_epoch)
        if self.optimizer == "adam":
            return keras.optimizers.Adam(rate)
        decay = self.weight_decay or None
        if self.optimizer == "sgd":
            optimizer = optimizers.SGD(rate, momentum=self.momentum, nesterov=True, weight_decay=decay)
        else:
            optimizer = optimizers.AdamW(rate, weight_decay=self.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=list(WITHOUT_WEIGHT_DECAY))
        return optimizer

    def build_network(self, channels, classes, *, fused_normalization=False):
        """Returns the network for pixels 0 ... 255: it scales them to -2 ... 2 and ends in logits.

        Args:
            channels: Channels of an image, 1 or 3.
            classes: Number of classes, an integer >= 2.
            fused_normalization: As in `nnopt.models.resnet`: faster to train, the same function and weights.

        Example:

        >>> network = ImageRecipe().build_network(channels=3, classes=10)
        >>> network.output_shape
        (None, 10)
        """
        shape = (self.image_size, self.image_size, channels)
        with running.dtype_policy(self.precision):
            inputs = keras.Input(shape, name="pixels")
            pixels = keras.layers.Rescaling(1 / 64, -2, name="scaling")(inputs)
            network = resnet(
                self.depth, shape, classes, width=self.width, stem=self.stem, seed=self.seed,
                fused_normalization=fused_normalization,
            )  # fmt: skip
            return keras.Model(inputs, network(pixels), name="classifier")

    def build_training_model(self, network, classes, steps_per_epoch, jit_compile="auto"):
        """Returns a compiled model that augments its images in training and passes them to `network`.

        Args:
            network: What `build_network` returned; the two share their weights.
            classes: Number of classes.
            steps_per_epoch: Batches of an epoch, an integer >= 1.
            jit_compile: As in `keras.Model.compile`.
        """
        inputs = pixels = keras.Input(network.input_shape[1:], name="pixels")
        if self.augmentation:
            pixels = augment.augmentation(self.augmentation, self.image_size, seed=self.seed)(pixels)
        model = keras.Model(inputs, network(pixels), name="training")

        def loss(labels, logits):
            targets = ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), classes)
            return keras.losses.categorical_crossentropy(targets, logits, True, self.label_smoothing)

        top = keras.metrics.SparseTopKCategoricalAccuracy(5, name="top_5")
        model.compile(
            self.build_optimizer(steps_per_epoch),
            loss=loss,
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy"), top],
            jit_compile=jit_compile,
        )
        return model


def laptop():
    """The notebook's run: `photos`, a narrow ResNet-50 with a 3x3 stem, AdamW, decay to about 3 % of the start.

    python -m nnopt train image --preset laptop --output runs/laptop

    Took 8.8 minutes on two cores that were busy with other work, on TensorFlow (alone they compute about twice as many
    images a second). Reached 74.0 % of the 600 test images, 95 % interval 70.4 to 77.3 %.
    """
    return ImageRecipe(
        data="photos", depth=50, width=16, stem=3, epochs=12, batch_size=64, learning_rate=2e-3, warmup=1 / 12,
        final_share=0.03, augmentation=augment.AUGMENTATIONS, jit_compile=False,
    )  # fmt: skip


def cpu():
    """Real data in under an hour on two cores: CIFAR-10, ResNet-20, SGD with Nesterov momentum and one cycle.

    python -m nnopt train image --preset cpu --output runs/cpu

    Took 41.7 minutes on two cores that were busy with other work, on TensorFlow (alone they compute about twice as many
    images a second), from a lossy JPEG copy of CIFAR-10. Reached 86.1 % of the 10,000 test images, 95 % interval 85.4
    to 86.7 %.
    """
    return ImageRecipe(
        data="cifar10", depth=20, epochs=20, optimizer="sgd", learning_rate=0.4, weight_decay=2e-3,
        schedule="one_cycle", warmup=0.25,
    )  # fmt: skip


def gpu():
    """Minutes on one GPU: CIFAR-10, ResNet-50 with a 3x3 stem, AdamW, in bfloat16.

    KERAS_BACKEND=jax python -m nnopt train image --preset gpu --output runs/gpu

    Not run yet.
    """
    return ImageRecipe(
        data="cifar10", depth=50, stem=3, epochs=30, batch_size=512, learning_rate=2.5e-3, warmup=2 / 30,
        final_share=0.85**28, precision="mixed_bfloat16",
    )  # fmt: skip


def paper():
    """The article's case: ImageNet, ResNet-50 at 224 pixels, 90 epochs; 25,557,032 parameters.

    KERAS_BACKEND=jax python -m nnopt train image --preset paper --strategy jax --output runs/paper

    Not run yet. The article's literal optimizer: --set optimizer=adam weight_decay=0
    """
    return ImageRecipe(
        data="imagenet2012", image_size=224, depth=50, epochs=90, batch_size=1024, weight_decay=0.1, warmup=5 / 90,
        final_share=0.95**85, augmentation=("flip", "jitter"), precision="mixed_bfloat16",
    )  # fmt: skip


ImageRecipe.presets = {function.__name__: function for function in (laptop, cpu, gpu, paper)}


def train_images(recipe, output, *, strategy="none", save_every=200, hosts=(), index=0):
    """Trains by a recipe, tests, and writes a run folder that describes itself. Killed, it goes on where it was.

    The folder holds recipe.json, versions.json (strategy, compilation, packages, machine), history.csv, tensorboard/
    (on TensorFlow, where the package tensorboard is installed), checkpoints/, and at the end model.keras (which plain
    Keras loads; it takes pixels 0 ... 255), report.json and report.png.

    Args:
        recipe: An `ImageRecipe`.
        output: Folder of this run, new or one that the same call began.
        strategy: "none", "mirrored" (TensorFlow's devices) or "jax" (JAX's devices).
        save_every: Batches between two checkpoints within an epoch, an integer >= 1.
        hosts, index: With strategy "jax" the addresses of all hosts that train together, and this one's place among
            them: see `nnopt.recipes.hosts.Hosts`. Only the first one writes to `output`.

    Returns:
        The report, a dict: see `nnopt.recipes.report.measure`.

    Raises:
        ValueError: The folder holds another run, another process trains in it, or the strategy does not fit backend or
            data.
        OSError: The data set is missing, or the folder cannot be written.
        ConnectionError: Another host has left the training.
        FloatingPointError: The loss became NaN.
    """
    hosts = Hosts(hosts, index, strategy)
    with hosts.together():
        return _train(recipe, hosts.folder(output), running.Devices(strategy), hosts, save_every)


def _train(recipe, folder, devices, hosts, save_every):
    folder.check(recipe)
    data = images.load(recipe.data)
    parts = {"image_size": recipe.image_size, "batch_size": recipe.batch_size}
    train = images.training_data(data, **parts, seed=recipe.seed)
    validation = images.evaluation_data(data, "validation", **parts)
    steps, channels = len(train), int(np.shape(next(iter(train.batches(0)))[0])[-1])

    def build(jit_compile):
        keras.utils.set_random_seed(recipe.seed)
        with devices.scope():
            network = recipe.build_network(channels, data.classes, fused_normalization=True)
            return network, recipe.build_training_model(network, data.classes, steps, jit_compile)

    sizes = [_examples(part) for part in (data.train, data.validation)]
    devices.check_batches(sizes, recipe.batch_size)
    settings = folder.begin(
        recipe, devices, lambda: running.choose_jit(recipe.jit_compile, devices, lambda jit: build(jit)[1], train)
    )
    with folder.alone():
        network, model = build(settings["jit_compile"])
        training = running.fit(model, train, validation, sizes[0], recipe.epochs, folder, devices, hosts, save_every)
        saved = recipe.build_network(channels, data.classes)  # without a layer of ours, so that plain Keras loads it
        saved.set_weights(network.get_weights())
        folder.save_model(saved)
        return _report(folder, recipe, data, {**training, **settings})


def test_images(output):
    """Tests the network of a finished run again, and writes its report anew.

    Args:
        output: The run folder.

    Returns:
        The report, a dict.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """
    folder = running.RunFolder(output)
    recipe = folder.recipe(ImageRecipe)
    return _report(folder, recipe, images.load(recipe.data), folder.report()["training"])


def classify(output, paths, top=5):
    """Returns the most probable classes of a user's own pictures.

    Args:
        output: The run folder.
        paths: Paths of picture files.
        top: Number of classes to return, an integer >= 1.

    Returns:
        For each picture a list of (class name, probability), the best first.

    Raises:
        FileNotFoundError: The folder holds no finished run, or a picture is missing.
        ValueError: A file holds no readable picture.
    """
    folder, top = running.RunFolder(output), check_integer("top", top, at_least=1)
    folder.recipe(ImageRecipe)
    network, names = folder.load_model(), folder.report()["class_names"]
    size, channels = network.input_shape[1], network.input_shape[3]
    pixels = np.stack([pictures.read_picture(path, size, channels) for path in paths])
    probabilities = reports.softmax(network.predict(pixels, verbose=0))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [[(names[k], float(row[k])) for k in order] for row, order in zip(probabilities, best)]


def _report(folder, recipe, data, training):
    """Tests the saved network, and writes report.json and report.png."""
    network = folder.load_model()
    test = images.evaluation_data(data, "test", image_size=recipe.image_size, batch_size=min(recipe.batch_size, 256))
    batches = [(network.predict_on_batch(x), y) for x, y in (test[index] for index in range(len(test)))]
    logits, labels = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*batches))
    report = {
        "recipe": json.loads(recipe.to_json()),
        "data": data.description,
        "parameters": sum(int(np.prod(weight.shape)) for weight in network.trainable_weights),
        **reports.measure(logits, labels, data.class_names),
        "training": training,
    }
    reports.draw(report, folder.history(), folder.path)
    folder.write("report.json", json.dumps(report, indent=1) + "\n")
    return report


def _examples(part):
    return len(part[1]) if isinstance(part, tuple) else len(part)
