"""What the book measures with: many runs at once, evidence and verdicts, figures."""

from nnopt.lab import evidence, plots
from nnopt.lab.grid import SweepResult, sweep

__all__ = ["SweepResult", "evidence", "plots", "sweep"]
