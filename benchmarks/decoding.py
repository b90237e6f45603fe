"""Sentences decoded in a second by `nnopt.decoding`, beside KerasHub's BeamSampler, PyTorch and a Python loop.

    python benchmarks/decoding.py           # batches of 1, 16, 64 and 256, on the backend of KERAS_BACKEND
    python benchmarks/decoding.py 64        # batches of 64 only

All sides decode with the same attentive `seq2seq`, 256 units and a vocabulary of 6,000, from sources of 8 to 20 tokens
that are encoded already, except in the Python loop. Compilation is not counted. The sides take turns, and the medians
are compared. There are two tasks:

- "translation": up to 40 tokens. The end token's logit rises with the position, so that a sentence ends a few tokens
  after as many as its source has, about as those of a trained model do.
- "20 tokens": the end token never comes, and every side has the same work. All must find sequences of the same
  log-probability (in the first task all but KerasHub, which goes on with sequences that have ended).

A Transformer with the caches of its keys and values, of width 256 and two blocks, is decoded by nnopt and KerasHub too.
The sides:

- nnopt: `beam_search` with `jit_compile=True`, as KerasHub compiles; on TensorFlow also without.
- KerasHub: `BeamSampler` (`GreedySampler` at width 1) around the model's own `step`, compiled as its `generate` does.
- PyTorch: a batched beam search as one writes it, in this file, on a twin with the same weights. It has the same rule
  for its end, and does not reorder the encoder's outputs either.
- Python loop: one sentence after the other, `model([source, target so far])` at each step, NumPy for the rest.
"""

import functools
import importlib.util
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from models import UNITS, VOCABULARY, sentences, torch_seq2seq
from turns import TURNS, here, rates, report

from nnopt.decoding import beam_search
from nnopt.models import seq2seq, transformer

START, END, NEVER = 1, 2, -1e9
BATCHES, WIDTHS, COMMON = (1, 16, 64, 256), (1, 4, 8), 64
TASKS = {"translation": 40, "20 tokens": 20}  # the maximal length
OURS, WITHOUT_XLA = "nnopt.decoding.beam_search", "nnopt, without XLA"


def array(tensor):
    return ops.convert_to_numpy(tensor)


def network():
    model, generator = seq2seq(VOCABULARY, VOCABULARY, UNITS, embedding=UNITS, seed=0), np.random.default_rng(1)
    # Larger than at first, so that the distributions of the next token are about as sharp as those of a trained model.
    model.logits.kernel.assign(10 * array(model.logits.kernel))
    model.logits.bias.assign(generator.normal(size=VOCABULARY))
    return model


class Task:
    """What is decoded, and how the end token's logit depends on the position and the length of the source."""

    def __init__(self, name, model, source):
        self.name, self.model, self.source = name, model, source
        self.length = TASKS[name]
        lengths = (source != 0).sum(axis=1).astype("float32")
        room = {"maximal_length": self.length} if hasattr(model, "maximal_length") else {}
        state = {"model": model.initial_state(source, **room), "lengths": lengths, "position": np.zeros_like(lengths)}
        self.state = keras.tree.map_structure(ops.convert_to_tensor, state)

    def lift(self, position, lengths):
        return 2 * (position - lengths) if self.name == "translation" else NEVER + 0 * lengths

    def step(self, tokens, state):
        logits, new = self.model.step(tokens, state["model"])
        lift = self.lift(state["position"], state["lengths"])
        logits = logits + lift[:, None] * ops.one_hot(END, VOCABULARY, dtype="float32")
        return logits, {**state, "model": new, "position": state["position"] + 1}

    def decoded(self, width, jit_compile=True, length=None):
        """Returns the best tokens and their log-probabilities."""
        length = length or self.length
        found = beam_search(self.step, self.state, START, END, width, length, jit_compile=jit_compile)
        return array(found.tokens)[:, 0], array(found.log_probabilities)[:, 0]


def keras_hub_side(task, width):
    """Returns a function that decodes with KerasHub: tokens, and log-probabilities where it gives them."""
    from keras_hub import samplers

    sampler = samplers.GreedySampler() if width == 1 else samplers.BeamSampler(width, return_all_beams=True)

    def following(prompt, cache, index):
        logits, cache = task.step(ops.take(prompt, index - 1, axis=1), cache)
        return logits, None, cache

    def generate(prompt, state):
        return sampler(following, prompt, state, index=1, stop_token_ids=(END,), model=task.model)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        generate = tf.function(generate, jit_compile=True)
    elif keras.backend.backend() == "jax":
        import jax

        generate = jax.jit(generate)
    prompt = np.zeros((len(task.source), task.length + 1), "int32")
    prompt[:, 0] = START
    prompt = ops.convert_to_tensor(prompt)

    def decode():
        found = generate(prompt, task.state)
        if width == 1:
            return array(found)[:, 1:], None
        return array(found[0])[:, 0, 1:], array(found[1])[:, 0]

    return decode


def torch_beam_search(twin, encoded, width, task):
    """Returns the best tokens and log-probabilities: finished sequences in a pool, as `beam_search` has it."""
    import torch

    memory, keys, mask, lengths, *states = (one.repeat_interleave(width, dim=0) for one in encoded)
    h, c = (state[None] for state in states)
    batch, minus = len(memory) // width, float("-inf")
    rows = torch.arange(batch)[:, None] * width
    tokens = torch.zeros(batch, width, task.length, dtype=torch.long)
    totals = torch.full((batch, width), minus)
    totals[:, 0] = 0
    pool_tokens, pool_scores = tokens.clone(), torch.full((batch, width), minus)
    previous = torch.full((batch * width,), START)
    for step in range(task.length):
        output, (h, c) = twin.decoder(twin.target_embedding(previous)[:, None], (h, c))
        weights = torch.softmax((output @ keys.transpose(1, 2)).masked_fill(mask, minus), dim=-1)
        logits = twin.logits(torch.tanh(twin.combine(torch.cat([weights @ memory, output], dim=-1))))[:, 0]
        logits[:, END] += task.lift(step, lengths)
        values = torch.log_softmax(logits, dim=-1).view(batch, width, -1) + totals[..., None]
        candidates, places = values.view(batch, -1).topk(2 * width)
        parents, chosen = places // VOCABULARY, places % VOCABULARY
        longer = tokens.gather(1, parents[..., None].expand(-1, -1, task.length))
        longer[:, :, step] = chosen
        ended = chosen == END
        finished = candidates.masked_fill(~ended, minus)[:, :width]
        pool_scores, order = torch.cat([pool_scores, finished], dim=1).topk(width)
        pool_tokens = torch.cat([pool_tokens, longer[:, :width]], dim=1)
        pool_tokens = pool_tokens.gather(1, order[..., None].expand(-1, -1, task.length))
        totals, order = candidates.masked_fill(ended, minus).topk(width)
        tokens = longer.gather(1, order[..., None].expand(-1, -1, task.length))
        kept = (parents.gather(1, order) + rows).flatten()
        h, c, previous = h[:, kept], c[:, kept], tokens[:, :, step].flatten()
        if bool((pool_scores[:, -1] > minus).all()):
            break
    unfinished = pool_scores[:, :1] == minus
    scores = torch.where(unfinished, totals, pool_scores)
    return torch.where(unfinished[..., None], tokens, pool_tokens)[:, 0].numpy(), scores[:, 0].numpy()


def torch_side(twin, task, width):
    import torch

    source = torch.from_numpy(task.source)
    with torch.inference_mode():
        lengths = (source != 0).sum(1)
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            twin.source_embedding(source), lengths, batch_first=True, enforce_sorted=False
        )
        memory, last = twin.encoder(packed)
        memory, _ = torch.nn.utils.rnn.pad_packed_sequence(memory, batch_first=True, total_length=source.shape[1])
        states = [torch.tanh(bridge(torch.cat([*state], dim=-1))) for bridge, state in zip(twin.bridges, last)]
        encoded = (memory, twin.keys(memory), (source == 0)[:, None], lengths, *states)

    def decode():
        with torch.inference_mode():
            return torch_beam_search(twin, encoded, width, task)

    return decode


def python_loop(task, width):
    """Returns what the others do, sentence by sentence, without any use of `step`."""
    found = []
    for sentence in task.source[:, None]:
        beams, pool, length = [(0.0, [])], [], (sentence != 0).sum()
        for position in range(task.length):
            target = np.array([[START, *tokens] for _, tokens in beams])
            logits = array(task.model([np.repeat(sentence, len(beams), axis=0), target]))[:, -1].copy()
            logits[:, END] += task.lift(position, length)
            values = array(ops.log_softmax(logits))
            longer = []
            for (total, tokens), row in zip(beams, values):
                best = np.argpartition(row, -2 * width)[-2 * width :]
                longer += [(total + row[token], [*tokens, token]) for token in best]
            longer.sort(key=lambda beam: beam[0], reverse=True)
            pool += [beam for beam in longer[:width] if beam[1][-1] == END]
            beams = [beam for beam in longer if beam[1][-1] != END][:width]
            if len(pool) >= width:
                break
        found.append(max(pool or beams, key=lambda beam: beam[0]))
    tokens = [np.pad(tokens, (0, task.length - len(tokens))) for _, tokens in found]
    return np.array(tokens), np.array([total for total, _ in found])


def check_agreement(expected, found):
    """Fails where two searches found sequences of another log-probability, or other tokens if they give none."""
    if found[1] is None:
        assert np.mean(expected[0] == found[0]) > 0.95, "other tokens"
    else:
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-3)


def turn(decode, count):
    decode()
    return count


def compared(task, twin, width):
    sides = {OURS: functools.partial(task.decoded, width)}
    if keras.backend.backend() == "tensorflow":
        sides[WITHOUT_XLA] = functools.partial(task.decoded, width, jit_compile=False)
    if importlib.util.find_spec("keras_hub"):
        sides["KerasHub"] = keras_hub_side(task, width)
    if twin is not None:
        sides["PyTorch"] = torch_side(twin, task, width)
    expected = sides[OURS]()
    for name, decode in sides.items():
        if name != "KerasHub" or task.name != "translation":
            check_agreement(expected, decode())
    return rates({name: functools.partial(turn, decode, len(task.source)) for name, decode in sides.items()})


def seconds(decode, repeats=3):
    decode()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        decode()
        times.append(time.perf_counter() - start)
    return min(times)


def growth(task):
    """Prints how the time of a batch grows with the number of beams and with the length."""
    for name, settings in (
        ("width", [{"width": width} for width in (1, 2, 4, 8, 16)]),
        ("length", [{"width": 4, "length": length} for length in (10, 20, 40, 80)]),
    ):
        times = [seconds(functools.partial(task.decoded, **setting)) for setting in settings]
        parts = (f"{one[name]}: {1000 * time:.0f} ms ({time / times[0]:.1f})" for one, time in zip(settings, times))
        print(f"time by {name} (and times the first): " + ", ".join(parts), flush=True)


def main():
    print(here("torch", "keras-hub"))
    print(f"median of {TURNS} turns")
    if not importlib.util.find_spec("keras_hub"):
        print("KerasHub is not installed, so its lines are missing; it is not needed otherwise: pip install keras-hub")
    batches = [int(one) for one in sys.argv[1:]] or BATCHES
    source = np.concatenate([sentences()[0] for _ in range(-(-max(batches) // COMMON))])
    model = network()
    twin = torch_seq2seq(model.get_weights()) if importlib.util.find_spec("torch") else None
    for name in TASKS:
        loops, few = {}, Task(name, model, source[:2])
        for width in WIDTHS:
            check_agreement(few.decoded(width), python_loop(few, width))
            loops[width] = len(few.source) / seconds(functools.partial(python_loop, few, width), 2)
        for batch in batches if name == "translation" else (min(COMMON, max(batches)),):
            task = Task(name, model, source[:batch])
            for width in WIDTHS:
                medians = {**compared(task, twin, width), "Python loop": loops[width]}
                report(f"\n{name}, batch {batch}, width {width}: sentences", medians)
    cached = Task(name, transformer(VOCABULARY, VOCABULARY, UNITS, depth=2, heads=4, seed=0), task.source)
    for width in WIDTHS:
        report(f"\nTransformer, {name}, batch {batch}, width {width}: sentences", compared(cached, None, width))
    print(f"\nbatch {batch}, the end token never comes")
    growth(task)


if __name__ == "__main__":
    main()
