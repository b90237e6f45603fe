"""nnopt: what Keras 3 lacks to put claims about neural-network optimization to the test."""

__version__ = "0.1.0"
