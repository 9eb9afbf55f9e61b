"""CIFAR-10 as its authors distribute it: the binary version, or the python version without running what it pickles."""
import itertools
import pickletools
from pathlib import Path

import numpy as np

from nbcnn.datasets.dataset import Dataset
from nbcnn.datasets.unpickle import Pickled, unpickle
from nbcnn.files import require_file

RECORDS, SHAPE, CLASSES = 10_000, (3, 32, 32), 10       # in each batch file
PIXELS = 3 * 32 * 32
LONGEST_META = 10_000       # bytes of the binary version's class names
BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def cifar10(folder):
    """Read CIFAR-10: 50,000 training and 10,000 test images of ten classes.

    Parameters
    ----------
    folder : path
        It holds the official batches, or their folder: `cifar-10-batches-bin` (preferred) or `cifar-10-batches-py`.

    Returns
    -------
    train, test : Dataset
        Images uint8 (50000, 3, 32, 32) and (10000, 3, 32, 32), in the files' order.

    Raises
    ------
    FileNotFoundError
        When the folder holds no batches, or a file is missing; the message says which, and where to get it.
    ValueError
        When a file is damaged; the message names the file and the byte.

    Notes
    -----
    A pickle that Python's own module reads can run any code. Here `nbcnn.datasets.unpickle` reads it, which knows only what these
    files need, and calls nothing that they name.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    found = find_cifar10(folder)
    if found is None:
        raise FileNotFoundError(f"{folder}: no CIFAR-10 there; looked for {BATCHES[0]}.bin and {BATCHES[0]}, also in "
                                f"{' and '.join(home for home, *_ in VERSIONS.values())}; unpack {ARCHIVE} there")
    folder, version = found
    _, suffix, meta, read_batch, read_classes = VERSIONS[version]
    paths = [folder / (name + suffix) for name in BATCHES]
    missing = [path.name for path in (*paths, folder / meta) if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{folder}: CIFAR-10's {version} version lacks {', '.join(missing)} there; "
                                f"unpack {ARCHIVE} again")
    for path in (*paths, folder / meta):
        require_file(path)
    classes = read_classes(folder / meta)
    if len(classes) != CLASSES:
        raise ValueError(f"{folder / meta}: expected {CLASSES} class names, got {len(classes)}")
    images = np.empty((len(paths) * RECORDS, *SHAPE), np.uint8)
    labels = np.empty(len(images), np.int64)
    for k, path in enumerate(paths):
        part = slice(k * RECORDS, (k + 1) * RECORDS)
        labels[part], pixels = read_batch(path)
        images[part] = pixels.reshape(RECORDS, *SHAPE)
    train, test = slice(-RECORDS), slice(-RECORDS, None)
    return tuple(Dataset(images[part], labels[part], classes, "cifar10") for part in (train, test))


def find_cifar10(folder):
    """What `cifar10(folder)` would read: (folder of the batches, "binary" or "python"), or None where there are none."""
    for version, (home, suffix, *_) in VERSIONS.items():
        for place in (Path(folder) / home, Path(folder)):
            if any((place / (name + suffix)).exists() for name in BATCHES):
                return place, version
    return None


def _binary_batch(path):
    """Labels (10000,) and pixels (10000, 3072) of a binary batch: records of a label's byte and the channels R, G, B."""
    length, size = path.stat().st_size, 1 + PIXELS
    if length != RECORDS * size:
        raise ValueError(f"{path}: expected {RECORDS * size} bytes, {RECORDS} records of {size}, but it ends at byte "
                         f"{length}, {length % size} bytes into record {length // size}")
    content = np.memmap(path, np.uint8, "r")    # copied only once, into the images
    records = content.reshape(RECORDS, size)
    _check_labels(path, records[:, 0].tolist(), lambda k: k * size)
    return records[:, 0], records[:, 1:]


def _binary_classes(path):
    if (length := path.stat().st_size) > LONGEST_META:
        raise ValueError(f"{path}: expected {CLASSES} class names in at most {LONGEST_META} bytes, got {length}")
    return path.read_bytes().decode("latin-1").split()


def _python_batch(path):
    """Labels and pixels of a python batch: a pickled dict with a list `labels` and an array `data`."""
    match unpickle(path):
        case {"labels": list(labels), "data": Pickled(state=(
                _, (int(rows), int(columns)), Pickled(arguments=(b"u1" | "u1", *_)), is_fortran, bytes(data)))} \
                if {type(label) for label in labels} <= {int}:
            pass
        case _:
            raise ValueError(f"{path}: expected a dict with a list of whole numbers 'labels' and a table of uint8 'data'")
    if (rows, columns) != (RECORDS, PIXELS) or len(data) != RECORDS * PIXELS or len(labels) != RECORDS:
        raise ValueError(f"{path}: expected {RECORDS} labels and data of shape {(RECORDS, PIXELS)}, "
                         f"got {len(labels)} labels and {len(data)} bytes of shape {(rows, columns)}")
    _check_labels(path, labels, lambda k: _label_byte(path, k))
    return labels, np.frombuffer(data, np.uint8).reshape(RECORDS, PIXELS, order="F" if is_fortran else "C")


def _python_classes(path):
    match unpickle(path):
        case {"label_names": [*names]} if {type(name) for name in names} <= {bytes, str}:
            return [name if isinstance(name, str) else name.decode("latin-1") for name in names]
    raise ValueError(f"{path}: expected a dict with a list of class names 'label_names'")


def _check_labels(path, labels, byte_of):
    """Raise ValueError at the first number that is no label; byte_of(k) is the position of label k in the file."""
    known = range(CLASSES)
    for k, label in enumerate(labels):
        if label not in known:
            raise ValueError(f"{path}: byte {byte_of(k)}: expected a label from 0 to {CLASSES - 1} for record {k}, got {label}")


def _label_byte(path, k):
    """The position of the k-th number after the key `labels` in a pickle that was read already."""
    operations = pickletools.genops(path.read_bytes())
    operations = itertools.dropwhile(lambda operation: operation[1] not in ("labels", b"labels"), operations)
    numbers = (byte for operation, _, byte in operations
               if operation.stack_after in ([pickletools.pyint], [pickletools.pyinteger_or_bool]))
    try:
        return next(itertools.islice(numbers, k, None), "unknown")
    except ValueError:      # a string of the oldest protocol, of which pickletools reads only ASCII
        return "unknown"


VERSIONS = {    # folder, suffix of a batch, file of the class names, how to read either
    "binary": ("cifar-10-batches-bin", ".bin", "batches.meta.txt", _binary_batch, _binary_classes),
    "python": ("cifar-10-batches-py", "", "batches.meta", _python_batch, _python_classes),
}
