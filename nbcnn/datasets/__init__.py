"""Data sets, and the loader that cuts them into batches."""
from .cifar10 import cifar10, find_cifar10
from .dataset import Dataset
from .loader import Loader
from .shapes import shapes

__all__ = ["Dataset", "Loader", "cifar10", "find_cifar10", "shapes"]
