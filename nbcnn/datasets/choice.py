"""Data sets by their names, as the commands offer them."""
from dataclasses import replace
from pathlib import Path

from nbcnn.datasets.cifar import cifar10, cifar100, find_cifar10, find_cifar100
from nbcnn.datasets.folder import SHAPE, folder
from nbcnn.datasets.idx import fashion_mnist, find_fashion_mnist, find_mnist, mnist
from nbcnn.datasets.shapes import shapes
from nbcnn.datasets.sources import SOURCES
from nbcnn.kernels.arguments import one_of
from nbcnn.pictures import fit_pictures

DATASETS = {
    **{name: f"{source.title}: {source.what}, from its files in --data-dir" for name, source in SOURCES.items()},
    "shapes": "10,000 + 2,000 drawn images of 32x32, ten kinds of figures; built in",
    "folder": "your own: --data-dir holds train/CLASS/..., test/CLASS/... and perhaps val/CLASS/..., images of any kind and size",
}
FILES = {       # of those with files of their own: how to find these, and how to read them
    "cifar10": (find_cifar10, cifar10), "cifar100": (find_cifar100, cifar100),
    "mnist": (find_mnist, mnist), "fashion-mnist": (find_fashion_mnist, fashion_mnist),
}


def choose(name, place, splits=("train", "test"), *, shape=None, classes=None, max_pixels=None,
           skip_broken=False):
    """Data sets by name.

    Parameters
    ----------
    name : str
        One of DATASETS, or "auto": CIFAR-10 where its files are found, else the built-in shapes.
    place : path
        The folder to look for files in.
    splits : sequence of "train", "test" and, for a "folder", "val"
        The wanted ones. For a single one, a "folder" that holds neither train nor test may hold the classes itself.
    shape : tuple (C, H, W), optional
        What the images are brought to. None, for all three or one of them, leaves the data set's own; a "folder" has 3, 32, 32.
    classes, max_pixels, skip_broken
        As of `folder`. The other splits must have the classes of the first one.

    Returns
    -------
    datasets : list of Dataset
    why : str
        Where they are from.

    Raises
    ------
    OSError, ValueError
        When there is no such data set or split, or its files are missing or damaged.
    """
    one_of(name, "name", ["auto", *DATASETS])
    for split in splits:
        one_of(split, "splits", ["train", "test", "val"][:3 if name == "folder" else 2])
    if name == "folder":
        found, home = [], Path(place)
        holds_splits = len(splits) > 1 or any((home / split).is_dir() for split in ("train", "test", "val"))
        for split in splits:
            if holds_splits and not (home / split).is_dir():
                raise FileNotFoundError(f"{home / split}: no such folder; expected {home} to hold train and test, and these a "
                                        "folder for each class")
            found.append(folder(home / split if holds_splits else home, _filled(shape, SHAPE), classes, max_pixels, skip_broken))
            classes = found[-1].classes
        return found, f"from {home / splits[0] if holds_splits and len(splits) == 1 else home}"
    found = FILES["cifar10"][0](place) if name == "auto" else None
    if found or name in FILES:
        (train, test), why = FILES["cifar10" if found else name][1](place), f"found in {found[0]}" if found else f"from {place}"
    else:
        (train, test), why = shapes(), "built in"
        if name == "auto":
            why += f", as there is no CIFAR-10 in {place} (see --data-dir)"
    both = {"train": train, "test": test}
    return [_fitted(both[split], shape) for split in splits], why


def _fitted(dataset, shape):
    """The data set with images of a shape."""
    return dataset if shape is None else replace(dataset, images=fit_pictures(
        dataset.images, _filled(shape, dataset.images.shape[1:])))


def _filled(shape, own):
    """The shape, with what it leaves open as in `own`."""
    return own if shape is None else tuple(given or mine for given, mine in zip(shape, own, strict=False))
