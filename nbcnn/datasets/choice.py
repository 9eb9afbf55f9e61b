"""Data sets by their names, as the commands offer them."""
from pathlib import Path

from nbcnn.datasets.cifar10 import cifar10, find_cifar10
from nbcnn.datasets.folder import folder
from nbcnn.datasets.shapes import shapes

DATASETS = {
    "cifar10": "CIFAR-10: 50,000 + 10,000 pictures of 32x32 in ten classes, from its files in --data-dir",
    "shapes": "10,000 + 2,000 drawn pictures of 32x32, ten kinds of figures; built in",
    "folder": "your own: --data-dir holds train/CLASS/... and test/CLASS/..., pictures of any kind and size",
}


def choose(name, place, splits=("train", "test"), *, shape=(3, 32, 32), classes=None):
    """Data sets by name.

    Parameters
    ----------
    name : str
        One of DATASETS, or "auto": CIFAR-10 where its files are found, else the built-in shapes.
    place : path
        Where files are looked for.
    splits : sequence of "train" and "test"
        Which are wanted. If only one is, a "folder" may hold the classes itself.
    shape, classes
        Of `folder`, which takes the classes of the first split for the others.

    Returns
    -------
    datasets : list of Dataset
    why : str
        Where they are from.
    """
    if name == "folder":
        found = []
        for split in splits:
            home = Path(place) / split
            if len(splits) == 1 and not home.is_dir():
                home = place
            found.append(folder(home, shape, classes))
            classes = found[-1].classes
        return found, f"from {place}"
    found = find_cifar10(place) if name == "auto" else None
    if found or name == "cifar10":
        (train, test), why = cifar10(place), f"found in {found[0]}" if found else f"from {place}"
    else:
        (train, test), why = shapes(), "built in"
        if name == "auto":
            why += f", as there is no CIFAR-10 in {place} (see --data-dir)"
    both = {"train": train, "test": test}
    return [both[split] for split in splits], why
