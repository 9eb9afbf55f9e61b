"""What every data set is: images, labels and the names of the classes."""
from dataclasses import dataclass, field

import numpy as np

from nbcnn.kernels.arguments import instance, strings
from nbcnn.kernels.backend import as_array, on_host
from nbcnn.kernels.shown import one_line, shown


@dataclass(eq=False)
class Dataset:
    """Labelled images.

    Parameters
    ----------
    images : uint8 array (M, C, H, W)
    labels : int array (M,)
        Positions in `classes`; kept as int64.
    classes : list of str
    name : str

    Raises
    ------
    TypeError, ValueError
        When images or labels have the wrong dtype or shape, or a label names no class.
    """

    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: list
    name: str

    def __post_init__(self):
        images, labels = on_host(as_array(self.images, "images")), on_host(as_array(self.labels, "labels"))
        self.classes, self.name = strings(self.classes, "classes"), instance(self.name, "name", str)
        if images.dtype != np.uint8:
            raise TypeError(f"images: expected a uint8 array, got dtype {one_line(str(images.dtype))}")
        if images.ndim != 4:
            raise ValueError(f"images: expected shape (M, C, H, W), got shape {shown(images.shape)}")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels: expected an integer array, got dtype {one_line(str(labels.dtype))}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels: expected shape {images.shape[:1]}, one per image, got shape {shown(labels.shape)}")
        bad = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if bad.size:
            raise ValueError(f"labels: expected numbers in [0, {len(self.classes)}), the classes, "
                             f"got {labels[bad[0]]} at position {bad[0]}")
        self.images, self.labels = np.ascontiguousarray(images), labels.astype(np.int64)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """The image (C, H, W) and the label at a position; of a slice or of several positions a Dataset."""
        try:
            images, labels = self.images[index], self.labels[index]
        except IndexError:
            raise IndexError(f"index: expected positions of {len(self)} images, got {shown(index)}") from None
        return (images, int(labels)) if images.ndim == 3 else Dataset(images, labels, self.classes, self.name)


def class_weights(dataset):
    """Weights of classes, for a loss, with which each class counts as much as any other: M / (C * its number of images).

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    weights : float64 array (C,)
        Their mean over the images is 1.

    Raises
    ------
    TypeError
        When `dataset` is no Dataset.
    ValueError
        When a class has no image: no weight would make up for that.

    Notes
    -----
    Source: "balanced" of scikit-learn's compute_class_weight, after G. King and L. Zeng, Logistic regression in rare events data,
    2001.

    Examples
    --------
    >>> data = Dataset(np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 1, 1], ["cat", "dog"], "pets")
    >>> class_weights(data)
    array([2.        , 0.66666667])
    """
    classes = instance(dataset, "dataset", Dataset, "a nbcnn.datasets.Dataset").classes
    counts = np.bincount(dataset.labels, minlength=len(classes))
    if not counts.all():
        raise ValueError(f"dataset: expected an image of each class, got none of {one_line(classes[counts.argmin()])}")
    return len(dataset) / (len(classes) * counts)
