"""What the book measures with: many runs at once, evidence and verdicts, figures."""

from nnopt.lab import evidence, plots
from nnopt.lab.chapter import open_chapter
from nnopt.lab.evidence import Claim, Verdict
from nnopt.lab.grid import SweepResult, run_grid
from nnopt.lab.plan import Block, BlockRuns, Plan, run_blocks
from nnopt.lab.results import statements
from nnopt.lab.training import sweep

__all__ = [
    "Block",
    "BlockRuns",
    "Claim",
    "Plan",
    "SweepResult",
    "Verdict",
    "evidence",
    "open_chapter",
    "plots",
    "run_blocks",
    "run_grid",
    "statements",
    "sweep",
]
