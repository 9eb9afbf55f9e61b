"""How good a network is on labelled images: loss, accuracy, precision and recall, and the confusion matrix."""
from dataclasses import dataclass

import numpy as np

from nbcnn.datasets import Dataset, Loader
from nbcnn.kernels.arguments import function, instance, integer
from nbcnn.kernels.shown import one_line
from nbcnn.layers import require_network
from nbcnn.losses import CrossEntropyLoss, require_loss
from nbcnn.memory import max_memory
from nbcnn.scheduler import BackpropScheduler
from nbcnn.steps import DeviceSteps
from nbcnn.table import fill, format_table
from nbcnn.views import mean_of_views, require_views

SHOWN = 100         # a confusion matrix of more classes is not printed


@dataclass(eq=False)
class Evaluation:
    """What `nbcnn.evaluate` finds.

    Parameters
    ----------
    loss : float
        The mean over the images.
    confusion : int64 array (K, K)
        How many images of each class (row) were taken for each class (column).
    classes : list of str

    Attributes
    ----------
    accuracy : float
        The share of images whose class was found.
    class_accuracy, precision, recall : float arrays (K,)
        For each class c. TP counts the images of c taken for c, FP others taken for c, FN those of c taken for another class,
        TN the rest. class_accuracy is (TP + TN) / all, the share of right answers to "is it c?"; precision is TP / (TP + FP), NaN
        where nothing was taken for c; recall is TP / (TP + FN), NaN where there is no c. Tutorials call recall a class's accuracy.
    """
    loss: float
    confusion: np.ndarray
    classes: list

    @property
    def accuracy(self):
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def class_accuracy(self):
        wrong = self.confusion.sum(0) + self.confusion.sum(1) - 2 * np.diag(self.confusion)
        return 1 - wrong / self.confusion.sum()

    @property
    def precision(self):
        return _share(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def recall(self):
        return _share(np.diag(self.confusion), self.confusion.sum(1))

    def as_dict(self):
        """All figures as numbers, lists and dicts that JSON can hold; None stands for NaN."""
        return {
            "pictures": int(self.confusion.sum()), "loss": number_or_none(self.loss), "accuracy": self.accuracy,
            "classes": [{"class": name, "pictures": int(count), "accuracy": float(accuracy), "precision": number_or_none(precision),
                         "recall": number_or_none(recall)} for name, count, accuracy, precision, recall in self._rows()],
            "confusion": self.confusion.tolist()}

    def _rows(self):
        return zip(self.classes, self.confusion.sum(1), self.class_accuracy, self.precision, self.recall, strict=True)

    def __str__(self):
        classes = format_table(["class", "images", "accuracy", "precision", "recall"], [
            [name, f"{count:,}", *("-" if np.isnan(share) else f"{share:.2%}" for share in shares)]
            for name, count, *shares in self._rows()])
        confusion = "\n".join(fill(f"the confusion matrix of more than {SHOWN} classes is not shown; it is in `confusion`, and in "
                                   "--json"))
        if len(self.classes) <= SHOWN:
            confusion = format_table(["is \\ taken for", *self.classes], [
                [name, *(str(count) for count in row)] for name, row in zip(self.classes, self.confusion, strict=True)])
        return (f"loss {self.loss:.4f}  accuracy {self.accuracy:.2%} of {self.confusion.sum():,} images\n\n"
                f"{classes}\n\n{confusion}")


def evaluate(model, dataset, loss=None, batch_size=256, views=1, precision="f32"):
    """Measure a network on labelled images: `nbcnn.evaluate`.

    Parameters
    ----------
    model : Network or Sequential
    dataset : Dataset
    loss : loss of `nbcnn.losses`, optional
        CrossEntropyLoss() by default. Any other loss gets one-hot rows as targets.
    batch_size : int
        It changes the rounding of the loss, and more only where the loss has class weights: batches count by their sizes.
    views : {1, 2, 6}
        Over how many views of each image the network's outputs are averaged; see `nbcnn.views.mean_of_views`.
    precision : {"f32", "bf16"}
        As of `nbcnn.BackpropScheduler`.

    Returns
    -------
    evaluation : Evaluation
        print(evaluation) shows loss, accuracy, precision and recall of each class, and the confusion matrix.

    Raises
    ------
    TypeError
        When `model` is no Sequential, or `dataset` no Dataset.
    ValueError
        When there are no images, or they or their classes do not fit the network; when the loss's reduction is not "mean"; when
        there are other numbers of views.

    Examples
    --------
    >>> import nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(4, 2)])
    >>> model[1].weight.set([[0] * 4, [1] * 4])         # the brighter an image, the surer of the second class
    >>> model[1].bias.set([2, 0])
    >>> images = np.array([0, 255, 0], np.uint8).reshape(3, 1, 1, 1).repeat(4, 3)
    >>> data = nbcnn.datasets.Dataset(images, [0, 1, 1], ["dark", "bright"], "lamps")
    >>> nbcnn.evaluate(model, data).confusion
    array([[1, 0],
           [1, 1]])
    """
    require_network(model)
    scheduler = BackpropScheduler(model, CrossEntropyLoss() if loss is None else loss, precision=precision)
    return measure(scheduler, dataset, batch_size, views=views)


def measure(scheduler, dataset, batch_size=256, on_batch=None, views=1):
    """`evaluate` for the network and the loss of a scheduler.

    on_batch is called after each batch with the number of images done; on a GPU once all are done.
    """
    model, loss = instance(scheduler, "scheduler", BackpropScheduler).model, scheduler.loss
    require_mean(loss)
    function(on_batch, "on_batch")
    views = require_views(views)
    require_dataset(model, dataset, "dataset")
    scheduler.plan(dataset.images.shape[1:])
    outputs = scheduler.steps[-1].y_shape
    if len(outputs) != 1 or outputs[0] < len(dataset.classes):
        raise ValueError(f"dataset: expected as many classes as the network has outputs, {outputs}, got {len(dataset.classes)}")
    batch_size, (K,) = integer(batch_size, "batch_size", 1), outputs
    if 24 * K**2 > max_memory():        # 24 bytes a cell: with one-hot rows, and as JSON
        raise MemoryError(f"dataset: expected a confusion matrix of at most {max_memory():,} bytes, got one of {K} x {K} classes; "
                          "--max-memory or nbcnn.set_max_memory allows more")

    def all_at_once(images):
        data = Dataset(images, dataset.labels, dataset.classes, dataset.name)
        loader = Loader(data, batch_size, shuffle=False, mean=model.mean, std=model.std, dtype=model.dtype)
        return DeviceSteps(scheduler, None, loader).outputs()

    targets, loss_sum, confusion = make_targets(loss, K, model.dtype), 0.0, np.zeros((K, K), np.int64)
    found = None if model.device == "cpu" else mean_of_views(all_at_once, dataset.images, views)
    for start in range(0, len(dataset), batch_size):
        images, labels = (array[start:start + batch_size] for array in (dataset.images, dataset.labels))
        logits = mean_of_views(scheduler.predict, images, views) if found is None else found[start:start + batch_size]
        loss_sum += float(loss(logits, targets(labels))) * len(labels)
        np.add.at(confusion, (labels, logits.argmax(1)), 1)
        if on_batch:
            on_batch(start + len(labels))
    names = dataset.classes + [str(k) for k in range(len(dataset.classes), K)]
    return Evaluation(loss_sum / len(dataset), confusion, names)


def require_mean(loss):
    """Raise TypeError or ValueError unless the loss of a batch is a mean."""
    if require_loss(loss).reduction != "mean":
        raise ValueError(f"loss: expected reduction 'mean', got {loss.reduction!r}")


def require_dataset(model, dataset, name):
    """Raise TypeError or ValueError unless `dataset` is a Dataset with images and with the model's classes."""
    if not len(instance(dataset, name, Dataset, "a nbcnn.datasets.Dataset")):
        raise ValueError(f"{name}: expected at least one image, got none")
    if model.classes is not None and dataset.classes != model.classes:
        raise ValueError(f"{name}: expected the network's classes, {one_line(', '.join(model.classes))}, "
                         f"got {one_line(', '.join(dataset.classes))}")


def make_targets(loss, classes, dtype):
    """A function from labels to the loss's targets: labels for cross-entropy, one-hot rows for the others."""
    if isinstance(loss, CrossEntropyLoss):
        return lambda labels: labels
    one_hot = np.eye(classes, dtype=dtype)
    return lambda labels: one_hot[labels]


def _share(part, whole):
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def number_or_none(value):
    """The number, or None for NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None
