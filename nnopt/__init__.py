"""nnopt: what Keras 3 lacks to put claims about neural-network optimization to the test."""

from nnopt import data, evidence, models, schedules
from nnopt.experiment import SweepResult, sweep

__all__ = ["SweepResult", "data", "evidence", "models", "schedules", "sweep"]
__version__ = "0.1.0"
