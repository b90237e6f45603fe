"""Model families, one file each, named as the article names them."""

from nnopt.models.feedforward import mlp

__all__ = ["mlp"]
