"""Data sets, and the loader that cuts them into batches."""
from nbcnn.datasets.choice import DATASETS, choose
from nbcnn.datasets.cifar import cifar10, cifar100, find_cifar10, find_cifar100
from nbcnn.datasets.dataset import Dataset, class_weights
from nbcnn.datasets.folder import folder
from nbcnn.datasets.idx import fashion_mnist, find_fashion_mnist, find_mnist, mnist
from nbcnn.datasets.loader import Loader
from nbcnn.datasets.shapes import shapes
from nbcnn.instead import say_instead

__all__ = ["Dataset", "class_weights", "Loader", "DATASETS", "choose", "cifar10", "find_cifar10", "cifar100", "find_cifar100",
           "mnist", "find_mnist", "fashion_mnist", "find_fashion_mnist", "folder", "shapes"]
__getattr__ = say_instead("nbcnn.datasets", __all__)
