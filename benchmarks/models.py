"""Training speed of the larger models beside their peers.

`resnet(50)`, with fused and with Keras' own normalization, beside Keras' and a plain PyTorch ResNet-50; the attentive
`seq2seq` beside a plain PyTorch one.

    python benchmarks/models.py             # all, on the backend of KERAS_BACKEND, TensorFlow by default
    python benchmarks/models.py 32 64       # ResNet-50 at these image sizes only
    python benchmarks/models.py seq2seq     # the encoder-decoder only

A step is a whole training step on a batch that lies in memory: forward, backward, update by Adam. Compilation is not
counted. The sides take turns, a few steps each, and the medians over the turns are compared. PyTorch runs as people
write it: images channels first, and in its faster layout (channels last); sentences packed, so that padding is not
computed. Tokens are those of the target that are real, padding not counted.
"""

import functools
import importlib.util
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from turns import TURNS, here, rates, report

from nnopt.models import resnet, seq2seq

CLASSES = 1000
BATCHES = {32: 64, 64: 32, 224: 8}  # images a batch, by the side of an image
STEPS = {32: 4, 64: 2, 224: 1}  # steps a turn
VOCABULARY, UNITS, SENTENCES, LONGEST = 6000, 256, 64, 20


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


def turns(sides, count, steps):
    """Returns the rates of sides whose turns are `steps` steps on `count` examples each."""

    def take(train):
        train(steps)
        return steps * count

    return rates({name: functools.partial(take, train) for name, train in sides.items()})


def images(size):
    generator, count = np.random.default_rng(0), BATCHES[size]
    x = generator.normal(size=(count, size, size, 3)).astype("float32")
    y = generator.integers(0, CLASSES, count)
    sides = {
        "resnet(50), fused normalization": keras_side(
            resnet(50, (size, size, 3), CLASSES, fused_normalization=True), x, y
        ),
        "nnopt.models.resnet(50)": keras_side(resnet(50, (size, size, 3), CLASSES), x, y),
        "keras.applications.ResNet50": keras_side(applications_resnet50(size), x, y),
    }
    if importlib.util.find_spec("torch"):
        sides["PyTorch"] = torch_side(x, y, channels_last=False)
        sides["PyTorch, channels last"] = torch_side(x, y, channels_last=True)
    report(f"ResNet-50, {size}x{size} pixels, batches of {count}: images", turns(sides, count, STEPS[size]))


def sentences():
    """Returns sources, decoder inputs and targets of 8 to `LONGEST` random tokens, padded with 0."""
    generator = np.random.default_rng(0)
    batch = generator.integers(3, VOCABULARY, (3, SENTENCES, LONGEST))
    lengths = generator.integers(8, LONGEST + 1, (2, SENTENCES, 1))
    source, target = (batch[i] * (np.arange(LONGEST) < lengths[i]) for i in range(2))
    inputs = np.concatenate([np.ones((SENTENCES, 1), target.dtype), target[:, :-1]], axis=1) * (target > 0)
    return source, inputs, target


def torch_seq2seq(weights):
    """Returns the plain twin in PyTorch, given the weights of ours in the order in which Keras lists them."""
    import torch
    from torch import nn

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.source_embedding, self.target_embedding = (nn.Embedding(VOCABULARY, UNITS) for _ in range(2))
            self.encoder = nn.LSTM(UNITS, UNITS, batch_first=True, bidirectional=True)
            self.bridges = nn.ModuleList([nn.Linear(2 * UNITS, UNITS) for _ in range(2)])
            self.decoder = nn.LSTM(UNITS, UNITS, batch_first=True)
            self.keys = nn.Linear(2 * UNITS, UNITS, bias=False)
            self.combine = nn.Linear(3 * UNITS, UNITS, bias=False)
            self.logits = nn.Linear(UNITS, VOCABULARY)

        def forward(self, source, target, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                self.source_embedding(source), lengths, batch_first=True, enforce_sorted=False
            )
            memory, last = self.encoder(packed)
            memory, _ = nn.utils.rnn.pad_packed_sequence(memory, batch_first=True, total_length=source.shape[1])
            initial = [
                torch.tanh(bridge(torch.cat([*state], dim=-1)))[None] for bridge, state in zip(self.bridges, last)
            ]
            states, _ = self.decoder(self.target_embedding(target), tuple(initial))
            scores = states @ self.keys(memory).transpose(1, 2)
            weights = torch.softmax(scores.masked_fill((source == 0)[:, None], -torch.inf), dim=-1)
            return self.logits(torch.tanh(self.combine(torch.cat([weights @ memory, states], dim=-1))))

    twin, zeros = Twin(), np.zeros(4 * UNITS, "float32")
    tables, rest = weights[:2], weights[2:]
    values = [*tables]
    for i in (0, 3):  # PyTorch's LSTM has two biases
        values += [rest[i].T, rest[i + 1].T, rest[i + 2], zeros]
    values += [rest[6].T, rest[7], rest[8].T, rest[9]]
    values += [rest[10].T, rest[11].T, rest[12], zeros]
    values += [rest[13].T, rest[14].T, rest[15].T, rest[16]]
    with torch.no_grad():
        for parameter, value in zip(twin.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(np.array(value)))
    return twin


def torch_sentences_side(twin, source, inputs, target):
    import torch

    optimizer = torch.optim.Adam(twin.parameters(), 1e-3)
    source, inputs, target = (torch.from_numpy(one) for one in (source, inputs, target))
    lengths = (source != 0).sum(1)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            logits = twin(source, inputs, lengths)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0).backward()
            optimizer.step()

    return train


def check_same_function(model, twin, source, inputs):
    import torch

    with torch.no_grad():
        expected = twin(*(torch.from_numpy(one) for one in (source, inputs)), torch.from_numpy((source > 0).sum(1)))
    ours = keras.ops.convert_to_numpy(model([source, inputs]))
    np.testing.assert_allclose(ours[inputs > 0], expected.numpy()[inputs > 0], rtol=1e-3, atol=1e-4)


def translation():
    source, inputs, target = sentences()
    model = seq2seq(VOCABULARY, VOCABULARY, UNITS, embedding=UNITS, seed=0)
    sides = {'nnopt.models.seq2seq("luong")': keras_side(model, [source, inputs], target)}
    if importlib.util.find_spec("torch"):
        twin = torch_seq2seq(model.get_weights())
        check_same_function(model, twin, source, inputs)
        sides["PyTorch"] = torch_sentences_side(twin, source, inputs, target)
    title = (
        f"LSTM encoder-decoder with attention, {UNITS} units, {SENTENCES} sentences of up to {LONGEST} tokens: tokens"
    )
    report(title, turns(sides, int((target > 0).sum()), 4))


def main():
    print(here("torch"))
    print(f"median of {TURNS} turns")
    for chosen in sys.argv[1:] or [*BATCHES, "seq2seq"]:
        keras.utils.clear_session()
        translation() if chosen == "seq2seq" else images(int(chosen))


if __name__ == "__main__":
    main()
