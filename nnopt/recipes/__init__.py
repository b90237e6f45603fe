"""The two case studies: every setting in a dataclass with presets, and their training, test and report."""

from nnopt.recipes.image import ImageRecipe, classify, test_images, train_images

__all__ = ["ImageRecipe", "classify", "test_images", "train_images"]
