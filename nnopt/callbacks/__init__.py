"""Callbacks: learning rates set from outside, early stopping, training that survives `kill -9`, gradients by layer.

The clock of all of them is the optimizer's own count of steps, never a counter in Python: a second `fit`, a resumed one
or `steps_per_execution` cannot put a curve out of step.

Callbacks that have a state of their own keep it over a restart by two methods that `Resume` calls: `get_state()`
returns a dict of numbers, strings, None, lists, dicts and NumPy arrays, and `set_state(state)`, called after
`on_train_begin`, takes it back.
"""

from nnopt.callbacks.early_stopping import EarlyStopping
from nnopt.callbacks.gradient_monitor import GradientMonitor
from nnopt.callbacks.learning_rate import CyclicalLR, ExponentialDecayLR, OneCycleLR, StepDecayLR
from nnopt.callbacks.resume import Resume

__all__ = [
    "CyclicalLR",
    "EarlyStopping",
    "ExponentialDecayLR",
    "GradientMonitor",
    "OneCycleLR",
    "Resume",
    "StepDecayLR",
]
