"""Data sets for training, auditing and checking exports."""

from .splits import Images, Splits, image_folder, load_splits

__all__ = ["Images", "Splits", "image_folder", "load_splits"]
