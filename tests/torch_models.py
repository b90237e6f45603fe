"""What PyTorch computes with the weights of our models: `python tests/torch_models.py` writes torch_models.json.

The tests compare with the file, so that they need no torch; where torch is there, one of them computes it anew.
"""

import json
import pathlib

import keras
import numpy as np
from sequences import BUILDERS, MODELS, REAL, SOURCE, TARGET, array

from nnopt.models import gan, resnet, rnn

FILE = pathlib.Path(__file__).with_suffix(".json")
IMAGES = np.sin(np.arange(2 * 75 * 75 * 3) ** 1.5).reshape(2, 75, 75, 3).astype("float32")
EXAMPLES, NOISES = np.sin(np.arange(16.0)).reshape(8, 2), np.cos(np.arange(48.0) ** 1.3).reshape(2, 8, 3)
EXAMPLES, NOISES = EXAMPLES.astype("float32"), NOISES.astype("float32")
SEQUENCES = np.sin(np.arange(60) ** 1.5).reshape(4, 5, 3).astype("float32")
RATES = (0.3, 0.5)  # of generator and discriminator
LOSSES = ("non_saturating", "saturating")


def given_weights(model):
    """Returns the model with numbers that every backend draws alike, and no activation that grows with depth."""
    random = np.random.default_rng(2)
    for weight in model.weights:
        shape, name = tuple(weight.shape), weight.path.split("/")[-1]
        spread = {"gamma": (0.5, 1.0), "moving_variance": (0.5, 2.0)}.get(name)
        values = random.uniform(*spread, shape) if spread else 0.2 * random.normal(size=shape)
        if name == "kernel":
            values *= 5 * (2 / np.prod(shape[:-1])) ** 0.5
        weight.assign(values)
    return model


def small_resnet():
    """ResNet-50 with 8 instead of 64 channels, for images of an odd size."""
    return given_weights(resnet(50, (75, 75, 3), 7, width=8, seed=0))


def small_rnn(cell, return_sequences):
    return given_weights(rnn((None, 3), [5], 2, cell=cell, return_sequences=return_sequences, seed=0))


def small_gan(loss):
    return given_weights(gan((2,), 3, [6], loss=loss, seed=0))


def torch_recurrent(cell, layers):
    """PyTorch's recurrent layers with the weights of one or two directions of Keras' (a GRU's gates: r, z, n)."""
    import torch

    width, units = (weight.shape[0] for weight in layers[0].weights[:2])
    kind = {"simple": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    twin = kind(width, units, len(layers), batch_first=True, bidirectional=len(layers[0].weights) == 6)
    values = {}
    for number, layer in enumerate(layers):
        for end, direction in (("", layer.weights[:3]), ("_reverse", layer.weights[3:])):
            if not direction:
                continue
            kernel, recurrent, bias = (array(weight) for weight in direction)
            inputs, hidden = bias if cell == "gru" else (bias, np.zeros_like(bias))
            matrices = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": inputs, "bias_hh": hidden}
            for name, value in matrices.items():
                if cell == "gru":
                    value = np.concatenate([np.split(value, 3)[i] for i in (1, 0, 2)])
                values[f"{name}_l{number}{end}"] = torch.tensor(np.array(value))
    twin.load_state_dict(values)
    return twin


def torch_seq2seq(model, cell, attention):
    """Returns logits and weights of `SOURCE`, `TARGET` as PyTorch's layers and the articles' equations give them."""
    import torch

    def matrix(layer, i=0):
        return torch.tensor(array(layer.weights[i]))

    source, target = torch.from_numpy(SOURCE), torch.from_numpy(TARGET)
    lengths = (source != 0).sum(1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        matrix(model.source_embedding)[source], lengths, batch_first=True, enforce_sorted=False
    )
    memory, last = torch_recurrent(cell, model.encoders)(packed)
    memory = torch.nn.utils.rnn.pad_packed_sequence(memory, batch_first=True)[0]
    last = last if cell == "lstm" else (last,)
    # PyTorch has the states of both directions of a layer one after the other.
    states = [
        torch.stack(
            [
                torch.tanh(torch.cat([*state[2 * layer : 2 * layer + 2]], dim=-1) @ matrix(bridge) + matrix(bridge, 1))
                for layer, bridge in enumerate(bridges)
            ]
        )
        for state, bridges in zip(last, zip(*model.bridges))
    ]
    x = matrix(model.target_embedding)[target]
    decoder = torch_recurrent(cell, [model.decoder, *model.upper_decoders])
    outputs, all_weights = [], []
    for time in range(target.shape[1]):
        now, before = x[:, time : time + 1], states[0][0]

        def advance(inputs, states=tuple(states)):
            after = decoder(inputs, states if cell == "lstm" else states[0])[1]
            return list(after) if cell == "lstm" else [after]

        if attention == "luong":
            states = advance(now)
            scores = torch.einsum("bu,bsk,ku->bs", states[0][-1], memory, matrix(model.keys))
        elif attention == "bahdanau":
            hidden = torch.tanh((before @ matrix(model.query))[:, None] + memory @ matrix(model.keys))
            scores = (hidden @ matrix(model.score))[..., 0]
        if attention is None:
            states = advance(now)
            read = states[0][-1]
        else:
            weights = torch.softmax(scores.masked_fill(source == 0, -torch.inf), dim=-1)
            context = torch.einsum("bs,bsk->bk", weights, memory)
            if attention == "bahdanau":
                states = advance(torch.cat([now, context[:, None]], dim=-1))
            read = torch.cat([context, states[0][-1]], dim=-1)
            all_weights.append(weights.numpy())
        combined = torch.tanh(read @ matrix(model.combine))
        outputs.append((combined @ matrix(model.logits) + matrix(model.logits, 1)).numpy())
    return np.stack(outputs, axis=1), np.stack(all_weights, axis=1) if all_weights else None


def torch_attention(layer, width):
    """The weights of a Keras MultiHeadAttention under the names of PyTorch's."""
    import torch

    projections = (layer.query_dense, layer.key_dense, layer.value_dense)
    kernels = [array(dense.kernel).reshape(width, width).T for dense in projections]
    biases = [array(dense.bias).reshape(width) for dense in projections]
    values = {
        "in_proj_weight": np.concatenate(kernels),
        "in_proj_bias": np.concatenate(biases),
        "out_proj.weight": array(layer.output_dense.kernel).reshape(width, width).T,
        "out_proj.bias": array(layer.output_dense.bias),
    }
    return {name: torch.tensor(np.array(value)) for name, value in values.items()}


def torch_transformer(model, width, depth, heads, hidden):
    """torch.nn.Transformer with the weights of ours, and the cross-attention's weights of its last block."""
    import torch

    twin = torch.nn.Transformer(width, heads, depth, depth, hidden, 0.0, batch_first=True, norm_first=True)

    def load(module, layer):
        first, second = (torch.tensor(np.array(array(weight).T)) for weight in layer.weights)
        module.load_state_dict({"weight": first, "bias": second})

    for ours, theirs in [*zip(model.encoder, twin.encoder.layers), *zip(model.decoder, twin.decoder.layers)]:
        theirs.self_attn.load_state_dict(torch_attention(ours.own, width))
        load(theirs.norm1, ours.own_normalization)
        if ours.reads_memory:
            theirs.multihead_attn.load_state_dict(torch_attention(ours.cross, width))
            load(theirs.norm2, ours.cross_normalization)
        load(theirs.norm3 if ours.reads_memory else theirs.norm2, ours.normalization)
        load(theirs.linear1, ours.hidden)
        load(theirs.linear2, ours.output_layer)
    load(twin.encoder.norm, model.encoder_normalization)
    load(twin.decoder.norm, model.decoder_normalization)
    return twin.eval()


def sinusoids(length, width):
    """Section 3.5 of Vaswani et al. 2017, entry by entry."""
    table = np.zeros((length, width), "float32")
    for position in range(length):
        for i in range(width // 2):
            table[position, 2 * i] = np.sin(position / 10000 ** (2 * i / width))
            table[position, 2 * i + 1] = np.cos(position / 10000 ** (2 * i / width))
    return table


def of_transformer(model):
    """Returns the logits of `SOURCE`, `TARGET` and the weights of the last cross-attention."""
    import torch

    twin = torch_transformer(model, 8, 2, 2, 32)
    sides = []
    for tokens, embedding in ((SOURCE, model.source_embedding), (TARGET, model.target_embedding)):
        vectors = array(embedding.weights[0])[tokens] * np.float32(8**0.5)
        sides.append(torch.from_numpy(vectors + sinusoids(tokens.shape[1], 8)))
    padding = torch.from_numpy(SOURCE == 0)
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    seen = {}
    inner = twin.decoder.layers[-1].multihead_attn
    inner.register_forward_pre_hook(lambda _, arguments: seen.update(query=arguments[0], memory=arguments[1]))
    states = twin(*sides, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    weights = inner(seen["query"], seen["memory"], seen["memory"], key_padding_mask=padding)[1].numpy()
    return states.numpy() @ array(model.logits.kernel) + array(model.logits.bias), weights


def torch_resnet(blocks, width, classes):
    """ResNet v1.5 written with PyTorch's own layers, the layout of torchvision's."""
    import torch

    nn = torch.nn

    class Bottleneck(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
            self.downsample = None
            if stride > 1 or channels != 4 * width:
                convolution = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
                self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    stem = [nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    body, channels = [], width
    for stage, count in enumerate(blocks):
        for block in range(count):
            own = width * 2**stage
            body.append(Bottleneck(channels, own, 2 if stage > 0 and block == 0 else 1))
            channels = 4 * own
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1), *body, *head)


def of_resnet(model):
    """Returns the logits of `IMAGES`; weights are matched in the order of computation, shortcuts by name."""
    import torch

    twin = torch_resnet((3, 4, 6, 3), 8, 7)
    modules = [(name, part) for name, part in twin.named_modules() if not list(part.children())]
    kinds = [(keras.layers.Conv2D, torch.nn.Conv2d), (keras.layers.BatchNormalization, torch.nn.BatchNorm2d)]
    for kind, torch_kind in kinds:
        for shortcut in (False, True):
            own = [
                layer for layer in model.layers if isinstance(layer, kind) and ("shortcut" in layer.name) == shortcut
            ]
            theirs = [
                part for name, part in modules if isinstance(part, torch_kind) and ("downsample" in name) == shortcut
            ]
            assert len(own) == len(theirs)
            for layer, part in zip(own, theirs):
                take_weights(part, *map(array, layer.weights))
    take_weights(twin[-1], *map(array, model.get_layer("logits").weights))
    return twin.eval()(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).numpy()


def take_weights(part, *values):
    """Gives a layer of PyTorch the weights of one of Keras."""
    import torch

    names = ("weight", "bias", "running_mean", "running_var")
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}  # units or filters first
    for name, value in zip(names, values):
        value = value.transpose(axes.get(value.ndim, range(value.ndim)))
        getattr(part, name).copy_(torch.tensor(np.ascontiguousarray(value)))


def of_gan(loss, weights, other_weights):
    """One step of each network in plain PyTorch; returns the new weights, both losses and both gradient norms."""
    import torch
    from torch.nn import functional

    softplus = functional.softplus

    def network(parts, x):
        kernel, bias, kernel_out, bias_out = parts
        return functional.leaky_relu(x @ kernel + bias, 0.2) @ kernel_out + bias_out

    def discriminator_loss(real, fake):
        return -torch.log(torch.sigmoid(real)).mean() - torch.log(1 - torch.sigmoid(fake)).mean()

    def generator_loss(fake):
        if loss == "saturating":
            return torch.log(1 - torch.sigmoid(fake)).mean()
        return softplus(-fake).mean()

    def step(value, parts, rate):
        gradients = torch.autograd.grad(value, parts)
        norm = torch.cat([gradient.ravel() for gradient in gradients]).norm()
        moved = [(part - rate * gradient).detach() for part, gradient in zip(parts, gradients)]
        return moved, float(value.detach()), float(norm)

    generator, discriminator = (
        [torch.tensor(part, requires_grad=True) for part in own] for own in (weights, other_weights)
    )
    real, noise, other_noise = (torch.from_numpy(np.array(part)) for part in (EXAMPLES, *NOISES))
    value = discriminator_loss(network(discriminator, real), network(discriminator, network(generator, noise).detach()))
    moved_discriminator, *first = step(value, discriminator, RATES[1])
    value = generator_loss(network(moved_discriminator, network(generator, other_noise)))
    moved_generator, *second = step(value, generator, RATES[0])
    return [part.numpy() for part in moved_generator], [part.numpy() for part in moved_discriminator], second, first


def computed():
    """Returns what the file holds."""
    import torch

    values = {}
    with torch.no_grad():
        for kind in BUILDERS:
            attention, cell = kind.split()[0], "gru" if "gru" in kind else "lstm"
            if kind == "transformer":
                logits, weights = of_transformer(MODELS[kind])
            else:
                logits, weights = torch_seq2seq(MODELS[kind], cell, None if attention == "none" else attention)
            values[f"{kind} logits"] = logits[REAL]
            if weights is not None:
                values[f"{kind} attention"] = weights[REAL]
        for cell in ("simple", "lstm", "gru"):
            model = small_rnn(cell, return_sequences=True)
            states = torch_recurrent(cell, [model.get_layer("recurrent_1")])(torch.from_numpy(SEQUENCES))[0]
            kernel, bias = (array(weight) for weight in model.get_layer("logits").weights)
            values[f"rnn {cell} logits"] = states.numpy() @ kernel + bias
        values["resnet logits"] = of_resnet(small_resnet())
    for loss in LOSSES:
        model = small_gan(loss)
        weights = ([array(weight) for weight in network.weights] for network in (model.generator, model.discriminator))
        generator, discriminator, second, first = of_gan(loss, *weights)
        values[f"{loss} weights"] = np.concatenate([part.ravel() for part in (*generator, *discriminator)])
        values[f"{loss} logs"] = [*second, *first]
    return {name: np.asarray(value) for name, value in values.items()}


def recorded():
    """Returns what PyTorch computed when the file was written."""
    return {name: np.array(value) for name, value in json.loads(FILE.read_text()).items()}


if __name__ == "__main__":
    rounded = {
        name: np.vectorize(lambda number: float(f"{number:.7g}"))(value).tolist() for name, value in computed().items()
    }
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in rounded.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
