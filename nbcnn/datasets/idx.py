"""MNIST and Fashion-MNIST as their authors distribute them: idx files, plain or gzipped."""
import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from nbcnn.datasets import sources
from nbcnn.datasets.dataset import Dataset
from nbcnn.datasets.sources import ENDS, IDX, SOURCES

COUNTS, SIZE = (60_000, 10_000), 28
CLASSES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion-mnist": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
}


def mnist(folder, download=False):
    """Read MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Parameters
    ----------
    folder : path
        It holds the four official files, as `train-images-idx3-ubyte` or `train-images-idx3-ubyte.gz`, or `MNIST/raw` with them.
    download : bool
        Whether to bring them there first, as `nbcnn data get mnist` does, where there are none: 12 MB.

    Returns
    -------
    train, test : Dataset
        Images uint8 (60000, 1, 28, 28) and (10000, 1, 28, 28), white on black, in the files' order.

    Raises
    ------
    FileNotFoundError
        When a file is missing; the message says which, and where to get it.
    ConnectionError
        When no place delivers them.
    ValueError
        When a file is damaged; the message names the file and the byte.

    Notes
    -----
    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    return _read("mnist", folder, download)


def fashion_mnist(folder, download=False):
    """Read Fashion-MNIST: 60,000 training and 10,000 test images of ten kinds of clothes.

    As `mnist`, with whose files these share their names: their folder in `folder` is `FashionMNIST/raw`, a download takes 31 MB.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
    2017.
    """
    return _read("fashion-mnist", folder, download)


def find_mnist(folder):
    """What `mnist(folder)` would read: (folder of the files, "idx"), or None where there are none."""
    return _find("mnist", folder)


def find_fashion_mnist(folder):
    """What `fashion_mnist(folder)` would read: (folder of the files, "idx"), or None where there are none."""
    return _find("fashion-mnist", folder)


def _find(name, folder):
    for place in (Path(folder) / SOURCES[name].home, Path(folder)):
        if any((place / (file + end)).is_file() for file in IDX for end in ENDS):
            return place, "idx"
    return None


def _read(name, folder, download):
    """(training set, test set) of one of the two sets."""
    looked_for = f"{IDX[0]} and {IDX[0]}.gz, also in {SOURCES[name].home}"
    folder, _ = sources.locate(name, folder, lambda: _find(name, folder), looked_for, download)
    paths, classes = sources.require(name, folder, IDX, ENDS), CLASSES[name]
    sets = []
    for images, labels, count in zip(paths[::2], paths[1::2], COUNTS, strict=True):
        numbers = read_idx(labels, (count,))
        if (bad := np.flatnonzero(numbers >= len(classes))).size:
            raise ValueError(f"{labels}: byte {8 + bad[0]}: expected a label from 0 to {len(classes) - 1} for image {bad[0]}, "
                             f"got {numbers[bad[0]]}")
        sets.append(Dataset(read_idx(images, (count, SIZE, SIZE))[:, None], numbers, classes, name))
    return tuple(sets)


def read_idx(path, shape):
    """The uint8 array of this shape in an idx file, which may be gzipped.

    The file begins with two zeros, the type, 8, and the number of axes, a byte each, and the sizes, four bytes each with the
    highest first. A ValueError names the file and the byte.
    """
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    size = len(header) + math.prod(shape)
    if os.stat(path).st_size > 1.01 * size + 1000:      # no compression makes noise larger than that
        raise ValueError(f"{path}: expected at most {size} bytes, got {os.stat(path).st_size}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = bytearray(file.read(size + 1))        # one more: so the end is reached, where the checksum is
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    for k, (got, expected) in enumerate(zip(content, header, strict=False)):
        if got != expected:
            raise ValueError(f"{path}: byte {k}: expected {expected} in the header of an idx file of shape {shape}, got {got}")
    if len(content) != size:
        raise ValueError(f"{path}: expected {size} bytes in it, got {'more' if len(content) > size else len(content)}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
