"""Data sets, and the order in which a training run visits them."""

from nnopt.data.embedded import Dataset, digits, label_noise, photos, subsample
from nnopt.data.number_phrases import Phrases, phrases
from nnopt.data.ordered import EpochData, EpochPipeline, OrderedDataset, epoch_order

__all__ = [
    "Dataset",
    "EpochData",
    "EpochPipeline",
    "OrderedDataset",
    "Phrases",
    "digits",
    "epoch_order",
    "label_noise",
    "photos",
    "phrases",
    "subsample",
]
