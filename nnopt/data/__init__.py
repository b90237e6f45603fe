"""Data sets, and the order in which a training run visits them."""

from nnopt.data.augment import RandomShift, augmentation
from nnopt.data.embedded import Dataset, digits, label_noise, photos, subsample
from nnopt.data.images import evaluation_data, load, training_data
from nnopt.data.number_phrases import Phrases, phrases
from nnopt.data.ordered import EpochData, EpochPipeline, OrderedDataset, epoch_order
from nnopt.data.pictures import PictureBatches, Pictures, read_picture

__all__ = [
    "Dataset",
    "EpochData",
    "EpochPipeline",
    "OrderedDataset",
    "Phrases",
    "PictureBatches",
    "Pictures",
    "RandomShift",
    "augmentation",
    "digits",
    "epoch_order",
    "evaluation_data",
    "label_noise",
    "load",
    "photos",
    "phrases",
    "read_picture",
    "subsample",
    "training_data",
]
