"""nnopt: what Keras 3 lacks to put claims about neural-network optimization to the test."""

from nnopt.experiment import sweep

__all__ = ["sweep"]
__version__ = "0.1.0"
