"""Data sets, and the order in which a training run visits them."""

from nnopt.data.augment import RandomShift, augmentation
from nnopt.data.embedded import Dataset, digits, label_noise, photos, subsample
from nnopt.data.images import evaluation_data, load, training_data
from nnopt.data.number_phrases import Phrases, phrases
from nnopt.data.ordered import EpochData, EpochPipeline, OrderedDataset, epoch_order
from nnopt.data.pictures import PictureBatches, Pictures, read_picture
from nnopt.data.text import PairBatches, Subwords, multi30k, train_subwords, wmt14

__all__ = [
    "Dataset", "EpochData", "EpochPipeline", "OrderedDataset", "PairBatches", "Phrases", "PictureBatches",
    "Pictures", "RandomShift", "Subwords", "augmentation", "digits", "epoch_order", "evaluation_data", "label_noise",
    "load", "multi30k", "photos", "phrases", "read_picture", "subsample", "train_subwords", "training_data", "wmt14",
]  # fmt: skip
