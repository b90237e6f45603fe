"""What PyTorch computes for the schedules and the optimizers: `python tests/torch_golden.py` writes torch_golden.json.

The tests compare with the file, so that they need no torch; where torch is there, one of them computes it anew.
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".json")
STEPS = 12

# A linear regression: 12 batches of 4 examples, 3 inputs, 2 targets, from weights of 0.
X = np.sin(1.7 * np.arange(STEPS * 4 * 3)).reshape(STEPS, 4, 3)
Y = np.cos(0.9 * np.arange(STEPS * 4 * 2)).reshape(STEPS, 4, 2)

CYCLES = {
    f"{mode} {size}": dict(mode=mode, step_size_up=size)
    for mode in ("triangular", "triangular2", "exp_range")
    for size in (1, 7)
}
ONE_CYCLES = {
    f"{total} {share} {anneal} {'three' if three else 'two'}": dict(
        total_steps=total, pct_start=share, anneal_strategy=anneal, three_phase=three
    )
    for anneal in ("cos", "linear")
    for total, share, three in [
        (2, 0.3, False), (3, 0.0, False), (10, 0.3, False), (11, 1 / 3, False), (23, 0.77, False), (1000, 0.99, False),
        (3, 0.0, True), (10, 0.45, True), (23, 0.4, True), (1000, 0.5, True),
    ]
}  # fmt: skip
FACTORS = {
    f"factors {div} {final}": dict(div_factor=div, final_div_factor=final, total_steps=23, pct_start=0.4)
    for div, final in [(25.0, 2.0), (1.0, 1.0), (10.0, 0.2), (3.0, 1e8)]
}
ONE_CYCLES.update(FACTORS)


def curves():
    """The rate, and for the one-cycles the momentum, at up to 24 of the steps."""
    from torch.optim import lr_scheduler as torch

    makers = {
        "StepDecay list": (14, lambda optimizer: torch.MultiStepLR(optimizer, [3, 4, 10], gamma=0.3)),
        "StepDecay 1": (9, lambda optimizer: torch.StepLR(optimizer, 1, gamma=0.3)),
        "StepDecay 4": (18, lambda optimizer: torch.StepLR(optimizer, 4, gamma=0.3)),
        "ExponentialDecay": (300, lambda optimizer: torch.ExponentialLR(optimizer, 0.93)),
    }
    for name, arguments in CYCLES.items():
        count = 10 * arguments["step_size_up"] + 2
        makers[name] = (count, lambda optimizer, a=arguments: torch.CyclicLR(
            optimizer, 0.001, 0.3, gamma=0.99, cycle_momentum=False, **a))  # fmt: skip
    for name, arguments in ONE_CYCLES.items():
        makers[name] = (arguments["total_steps"], lambda optimizer, a=arguments: torch.OneCycleLR(optimizer, 0.5, **a))
    return {name: _curve(*maker) for name, maker in makers.items()}


def _curve(count, make):
    import torch

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates, momenta = [], []
    for step in range(count):
        group = optimizer.param_groups[0]
        rates.append(float(group["lr"]))
        momenta.append(float(group["betas"][0]))
        optimizer.step()
        if step + 1 < count:
            scheduler.step()
    steps = np.unique(np.linspace(0, count - 1, 24).round().astype(int)).tolist()
    return {"steps": steps, "rate": [rates[step] for step in steps], "momentum": [momenta[step] for step in steps]}


def trainings():
    """The weights after each step of trainings under OneCycleLR, which cycles the momentum too."""
    import torch

    sgd = dict(momentum=0.9)
    return {
        "SGD": _training(torch.optim.SGD, **sgd),
        "SGD nesterov": _training(torch.optim.SGD, nesterov=True, **sgd),
        "SGD, rate in the velocity": _training(torch.optim.SGD, rate_in_velocity=True, **sgd),
        "SGD nesterov, rate in the velocity": _training(torch.optim.SGD, nesterov=True, rate_in_velocity=True, **sgd),
        "AdamW": _training(torch.optim.AdamW, eps=1e-12, weight_decay=0.1),
    }


def _training(make, rate_in_velocity=False, **arguments):
    import torch

    weights = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimizer = make([weights], lr=1.0, **arguments)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, STEPS, base_momentum=0.4, max_momentum=0.9)
    after = []
    for step, (x, y) in enumerate(zip(torch.from_numpy(X), torch.from_numpy(Y))):
        group = optimizer.param_groups[0]
        rate = group["lr"]
        optimizer.zero_grad()
        loss = torch.mean((x @ weights - y) ** 2)
        if rate_in_velocity:
            # As Keras has it: the velocity sums gradients that are multiplied by the rates of their own steps.
            loss, group["lr"] = loss * rate, 1.0
        loss.backward()
        optimizer.step()
        group["lr"] = rate
        after.append(weights.detach().flatten().tolist())
        if step + 1 < STEPS:
            scheduler.step()
    return after


def compute():
    """Everything that the file holds."""
    return {"curves": curves(), "trainings": trainings()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")
