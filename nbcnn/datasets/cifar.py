"""CIFAR-10 and CIFAR-100 as their authors distribute them: binary versions, or python versions without running what they pickle."""
import itertools
import pickletools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nbcnn.datasets import sources
from nbcnn.datasets.dataset import Dataset
from nbcnn.datasets.unpickle import Pickled, unpickle
from nbcnn.kernels.arguments import one_of

RECORDS, SHAPE = 10_000, (3, 32, 32)        # in each batch file of CIFAR-10
PIXELS = 3 * 32 * 32
LONGEST_META = 10_000       # bytes of a binary version's class names
BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def cifar10(folder, download=False):
    """Read CIFAR-10: 50,000 training and 10,000 test images of ten classes.

    Parameters
    ----------
    folder : path
        It holds the official batches, or their folder: `cifar-10-batches-bin` (preferred) or `cifar-10-batches-py`.
    download : bool
        Whether to bring them there first, as `nbcnn data get cifar10` does, where there are none: 170 MB.

    Returns
    -------
    train, test : Dataset
        Images uint8 (50000, 3, 32, 32) and (10000, 3, 32, 32), in the files' order.

    Raises
    ------
    FileNotFoundError
        When the folder holds no batches, or a file is missing; the message says which, and where to get it.
    ConnectionError
        When no place delivers them.
    ValueError
        When a file is damaged; the message names the file and the byte.

    Notes
    -----
    A pickle that Python's own module reads can run any code. Here `nbcnn.datasets.unpickle` reads it, which knows only what these
    files need, and calls nothing that they name.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return _read("cifar10", CIFAR10, folder, download)


def cifar100(folder, labels="fine", download=False):
    """Read CIFAR-100: 50,000 training and 10,000 test images of 100 classes in 20 superclasses.

    Parameters
    ----------
    folder : path
        It holds the official files, or their folder: `cifar-100-binary` (preferred) or `cifar-100-python`.
    labels : "fine" or "coarse"
        The 100 classes, or the 20 superclasses.
    download : bool
        Whether to bring the files there first, as `nbcnn data get cifar100` does, where there are none: 169 MB.

    Returns
    -------
    train, test : Dataset
        As of `cifar10`, which says also what is raised.
    """
    return _read("cifar100", CIFAR100[one_of(labels, "labels", CIFAR100)], folder, download)


def find_cifar10(folder):
    """What `cifar10(folder)` would read: (folder of the batches, "binary" or "python"), or None where there are none."""
    return _find(CIFAR10, folder)


def find_cifar100(folder):
    """What `cifar100(folder)` would read: (folder of the files, "binary" or "python"), or None where there are none."""
    return _find(CIFAR100["fine"], folder)


def _find(versions, folder):
    for name, version in versions.items():
        for place in (Path(folder) / version.home, Path(folder)):
            if any((place / file).is_file() for file in version.files):
                return place, name
    return None


def _read(name, versions, folder, download):
    """(training set, test set) of one of the two sets."""
    first = " and ".join(next(iter(version.files)) for version in versions.values())
    homes = " and ".join(version.home for version in versions.values())
    folder, found = sources.locate(name, folder, lambda: _find(versions, folder), f"{first}, also in {homes}", download)
    _, files, meta, classes, kind = versions[found]
    *paths, meta = sources.require(name, folder, [*files, meta])
    names = kind.read_names(meta, classes)
    if len(names) != classes:
        raise ValueError(f"{meta}: expected {classes} class names, got {len(names)}")
    images, done = np.empty((sum(files.values()), *SHAPE), np.uint8), 0
    labels = np.empty(len(images), np.int64)
    for path, records in zip(paths, files.values(), strict=True):
        part = slice(done, done := done + records)
        labels[part], pixels = kind.read_batch(path, records, classes)
        images[part] = pixels.reshape(records, *SHAPE)
    train, test = slice(-RECORDS), slice(-RECORDS, None)
    return tuple(Dataset(images[part], labels[part], names, name) for part in (train, test))


class Binary(NamedTuple):
    """Records of one or more labels, a byte each, of which that at `place` counts, and of the channels R, G, B."""
    labels: int = 1
    place: int = 0

    def read_batch(self, path, records, classes):
        """Labels (records,) and pixels (records, 3072)."""
        length, size = path.stat().st_size, self.labels + PIXELS
        if length != records * size:
            raise ValueError(f"{path}: expected {records * size} bytes, {records} records of {size}, but it ends at byte "
                             f"{length}, {length % size} bytes into record {length // size}")
        content = np.memmap(path, np.uint8, "r").reshape(records, size)     # copied only once, into the images
        labels = content[:, self.place]
        _check_labels(path, labels.tolist(), classes, lambda k: k * size + self.place)
        return labels, content[:, self.labels:]

    def read_names(self, path, classes):
        if (length := path.stat().st_size) > LONGEST_META:
            raise ValueError(f"{path}: expected {classes} class names in at most {LONGEST_META} bytes, got {length}")
        return path.read_bytes().decode("latin-1").split()


class Python(NamedTuple):
    """A pickled dict with a list of labels and an array `data`, and another one with the names: their keys."""
    labels: str = "labels"
    names: str = "label_names"

    def read_batch(self, path, records, classes):
        """Labels (records,) and pixels (records, 3072)."""
        match unpickle(path, -(-records // RECORDS)):
            case {self.labels: list(labels), "data": Pickled(state=(
                    _, (int(rows), int(columns)), Pickled(arguments=(b"u1" | "u1", *_)), is_fortran, bytes(data)))} \
                    if {type(label) for label in labels} <= {int}:
                pass
            case _:
                raise ValueError(f"{path}: expected a dict with a list of whole numbers {self.labels!r} and a table of "
                                 "uint8 'data'")
        if (rows, columns) != (records, PIXELS) or len(data) != records * PIXELS or len(labels) != records:
            raise ValueError(f"{path}: expected {records} labels and data of shape {(records, PIXELS)}, "
                             f"got {len(labels)} labels and {len(data)} bytes of shape {(rows, columns)}")
        _check_labels(path, labels, classes, lambda k: self._label_byte(path, k))
        return labels, np.frombuffer(data, np.uint8).reshape(records, PIXELS, order="F" if is_fortran else "C")

    def read_names(self, path, classes):
        match unpickle(path):
            case {self.names: [*names]} if {type(name) for name in names} <= {bytes, str}:
                return [name if isinstance(name, str) else name.decode("latin-1") for name in names]
        raise ValueError(f"{path}: expected a dict with a list of class names {self.names!r}")

    def _label_byte(self, path, k):
        """The position of the k-th number after the key of the labels in a pickle that was read already."""
        operations = pickletools.genops(path.read_bytes())
        operations = itertools.dropwhile(lambda operation: operation[1] not in (self.labels, self.labels.encode()), operations)
        numbers = (byte for operation, _, byte in operations
                   if operation.stack_after in ([pickletools.pyint], [pickletools.pyinteger_or_bool]))
        try:
            return next(itertools.islice(numbers, k, None), "unknown")
        except ValueError:      # a string of the oldest protocol, of which pickletools reads only ASCII
            return "unknown"


def _check_labels(path, labels, classes, byte_of):
    """Raise ValueError at the first number that is no label; byte_of(k) is the position of label k in the file."""
    known = range(classes)
    for k, label in enumerate(labels):
        if label not in known:
            raise ValueError(f"{path}: byte {byte_of(k)}: expected a label from 0 to {classes - 1} for record {k}, got {label}")


class Version(NamedTuple):
    """The files of a set."""
    home: str           # their folder
    files: dict         # how many records each has; the last 10,000 images are for testing
    meta: str           # the file of the class names
    classes: int
    kind: Binary | Python


CIFAR10 = {
    "binary": Version("cifar-10-batches-bin", {f"{name}.bin": RECORDS for name in BATCHES}, "batches.meta.txt", 10, Binary()),
    "python": Version("cifar-10-batches-py", dict.fromkeys(BATCHES, RECORDS), "batches.meta", 10, Python()),
}
CIFAR100 = {labels: {
    "binary": Version("cifar-100-binary", {"train.bin": 5 * RECORDS, "test.bin": RECORDS}, f"{labels}_label_names.txt", classes,
                      Binary(2, place)),
    "python": Version("cifar-100-python", {"train": 5 * RECORDS, "test": RECORDS}, "meta", classes,
                      Python(f"{labels}_labels", f"{labels}_label_names")),
} for labels, classes, place in (("fine", 100, 1), ("coarse", 20, 0))}
