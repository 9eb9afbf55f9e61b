"""Images of your own: a folder with a folder of images for each class."""
import os
import warnings
from pathlib import Path

import numpy as np

from nbcnn.datasets.dataset import Dataset
from nbcnn.files import said
from nbcnn.pictures import empty_images, find_pictures, picture_shape, read_pictures

AT_ONCE = 1000      # images that are read together
SHAPE = (3, 32, 32)
LISTED = 3          # files that an error names


def folder(path, shape=SHAPE, classes=None, max_pixels=None, skip_broken=False):
    """Read the images of a folder that holds a folder for each class, as torchvision's ImageFolder.

    Parameters
    ----------
    path : path
        It holds `cat/...`, `dog/...`; these may hold further folders with images.
    shape : tuple (C, H, W)
        Every image is brought to this shape; see `nbcnn.pictures.read_picture`.
    classes : sequence of str, optional
        The names of all classes in the order of their labels; by default those of the folders, sorted.
    max_pixels : int, optional
        How many pixels a file may have; see `nbcnn.pictures.read_picture`.
    skip_broken : bool
        Whether files that cannot be read are left out, each with a warning.

    Returns
    -------
    dataset : Dataset
        The images sorted by class and then by path.

    Raises
    ------
    OSError
        When a folder cannot be read.
    ValueError
        When there are no classes, a class without images, a folder that is none of `classes`, or images that cannot be read; the
        message names the folder, or the first files.
    """
    shape = picture_shape(shape)
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise ValueError(f"{path}: expected a folder for each class, with its images, got none")
    if classes is None and set(names) <= {"train", "test", "val"}:
        raise ValueError(f"{path}: expected a folder for each class, got {' and '.join(names)}; read each of them by itself")
    classes = names if classes is None else list(classes)
    strangers = [name for name in names if name not in classes]
    if strangers:
        raise ValueError(f"{path}: expected folders named after the classes {', '.join(classes)}, got {strangers[0]}")
    files = []
    for name in names:
        found = find_pictures(Path(path) / name)
        if not found:
            raise ValueError(f"{Path(path) / name}: expected images, got no file whose name ends as an image's")
        files += [(file, classes.index(name)) for file in found]
    images, broken = empty_images(len(files), shape), {}
    for start in range(0, len(files), AT_ONCE):
        some = [file for file, _ in files[start:start + AT_ONCE]]
        for k, image in enumerate(read_pictures(some, shape, max_pixels=max_pixels), start):
            if isinstance(image, Exception):
                broken[k] = said(image)
            else:
                images[k] = image
    labels = np.array([label for _, label in files])
    if broken:
        if not skip_broken:
            listed, more = list(broken.values())[:LISTED], len(broken) - LISTED
            raise ValueError(f"{path}: {len(broken)} of {len(files)} images cannot be read: {'; '.join(listed)}"
                             f"{f'; and {more} more' if more > 0 else ''}. --skip-broken (skip_broken=True) leaves them out")
        for reason in broken.values():
            warnings.warn(f"left out: {reason}", stacklevel=2)
        images, labels = (np.delete(array, list(broken), 0) for array in (images, labels))
        for name in names:
            if classes.index(name) not in labels:
                raise ValueError(f"{Path(path) / name}: expected images, got none that can be read")
    return Dataset(images, labels, classes, "folder")
