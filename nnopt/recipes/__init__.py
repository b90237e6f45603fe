"""The two case studies: every setting in a dataclass with presets, and their training, test and report."""

from nnopt.recipes.image import ImageRecipe, classify, test_images, train_images
from nnopt.recipes.search import grid_search
from nnopt.recipes.translation import TranslationRecipe, Translator, test_translation, train_translation

__all__ = [
    "ImageRecipe",
    "TranslationRecipe",
    "Translator",
    "classify",
    "grid_search",
    "test_images",
    "test_translation",
    "train_images",
    "train_translation",
]
