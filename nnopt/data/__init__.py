"""Data sets, and the order in which a training run visits them."""

from nnopt.data.embedded import Dataset, digits, label_noise, subsample
from nnopt.data.ordered import OrderedDataset, epoch_order

__all__ = ["Dataset", "OrderedDataset", "digits", "epoch_order", "label_noise", "subsample"]
