"""Training speed of the larger models beside their peers: `resnet(50)` beside Keras' and a plain PyTorch ResNet-50.

    python benchmarks/models.py           # on the backend of KERAS_BACKEND, TensorFlow by default
    python benchmarks/models.py 32 64     # only these image sizes

A step is a whole training step on a batch that lies in memory: forward, backward, update by Adam, 1,000 classes.
Compilation is not counted. The sides take turns, a few steps each, and the medians over the turns are compared.
PyTorch runs as people write it (eager, channels first) and in its faster layout (channels last).
"""

import importlib.metadata
import os
import platform
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import nnopt
from nnopt.models import resnet

CLASSES, TURNS = 1000, 5
BATCHES = {32: 64, 64: 32, 224: 8}  # images a batch, by the side of an image
STEPS = {32: 4, 64: 2, 224: 1}  # steps a turn


def keras_side(model, x, y):
    """Returns a function that trains so many steps, one call of the compiled step each, as the loop of PyTorch does.

    Not `fit`, whose fixed cost for each call would weigh on turns of so few steps.
    """
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def train(steps):
        for _ in range(steps):
            model.train_on_batch(x, y)

    return train


def torch_resnet50():
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            layers = []
            for size, source, target, step in ((1, channels, width, 1), (3, width, width, stride)):
                convolution = nn.Conv2d(source, target, size, step, padding=size // 2, bias=False)
                layers += [convolution, nn.BatchNorm2d(target), nn.ReLU(inplace=True)]
            self.branch = nn.Sequential(*layers, nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))
            self.shortcut = nn.Identity()
            if stride > 1 or channels != 4 * width:
                convolution = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
                self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            return torch.relu_(self.branch(x) + self.shortcut(x))

    stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    body, channels = [], 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            width = 64 * 2**stage
            body.append(Bottleneck(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = 4 * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1), *body, *head)


def torch_side(x, y, channels_last):
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_resnet50().to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=layout)
    labels = torch.from_numpy(y.astype("int64"))

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return train


def applications_resnet50(size):
    """keras.applications.ResNet50 as published, but for logits instead of probabilities (as in the other models)."""
    return keras.applications.ResNet50(
        weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None
    )


def rates(sides, count, steps):
    """Returns the median rate of each side in examples/s; each turn of a side trains `steps` steps of `count`."""
    times = {name: [] for name in sides}
    for train in sides.values():
        train(steps)  # compiles
    for _ in range(TURNS):
        for name, train in sides.items():
            start = time.perf_counter()
            train(steps)
            times[name].append((time.perf_counter() - start) / (steps * count))
    return {name: 1 / statistics.median(own) for name, own in times.items()}


def report(title, medians):
    ours = next(iter(medians.values()))
    print(title)
    for name, rate in medians.items():
        print(f"  {name:34} {rate:8.1f}/s   nnopt is {ours / rate:5.2f} times as fast", flush=True)


def images(size):
    generator, count = np.random.default_rng(0), BATCHES[size]
    x = generator.normal(size=(count, size, size, 3)).astype("float32")
    y = generator.integers(0, CLASSES, count)
    sides = {
        "nnopt.models.resnet(50)": keras_side(resnet(50, (size, size, 3), CLASSES), x, y),
        "keras.applications.ResNet50": keras_side(applications_resnet50(size), x, y),
    }
    if importlib.util.find_spec("torch"):
        sides["PyTorch"] = torch_side(x, y, channels_last=False)
        sides["PyTorch, channels last"] = torch_side(x, y, channels_last=True)
    report(f"ResNet-50, {size}x{size} pixels, batches of {count}: images", rates(sides, count, STEPS[size]))


def main():
    backend = keras.backend.backend()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in sorted({backend, "torch"})
        if importlib.util.find_spec(name)
    )
    print(
        f"nnopt {nnopt.__version__}, Keras {keras.__version__} on {backend}, {versions}, "
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs"
    )
    print(f"median of {TURNS} turns")
    for size in [int(size) for size in sys.argv[1:]] or BATCHES:
        keras.utils.clear_session()
        images(size)


if __name__ == "__main__":
    main()
