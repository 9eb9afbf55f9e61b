"""The training loop: it gives batches to the scheduler, sets a learning rate for each step, and tests after each epoch."""
import contextlib
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np

from nbcnn.datasets import Loader
from nbcnn.evaluation import make_targets, measure, require_dataset, require_mean
from nbcnn.kernels.arguments import flag, function, instance, integer, rate
from nbcnn.kernels.shown import one_line
from nbcnn.losses import CrossEntropyLoss
from nbcnn.model import Sequential
from nbcnn.optim import SGD
from nbcnn.profile import Profile
from nbcnn.progress import Progress
from nbcnn.scheduler import BackpropScheduler
from nbcnn.steps import DeviceSteps, HostSteps


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite. The parameters are as before the step, unless they were not finite already.

    Attributes
    ----------
    epoch, step : int
        Where it happened, counted from 1.
    loss : float
    layer : str
        The first layer whose output or parameter is not finite; "loss" where all of them are finite.
    """

    def __init__(self, epoch, step, loss, layer):
        super().__init__(f"epoch {epoch}, step {step}: the loss is {loss}; the first value that is not finite is in {layer}")
        self.epoch, self.step, self.loss, self.layer = epoch, step, loss, layer


@dataclass
class State:
    """What `fit` hands to its callbacks, and returns.

    Attributes
    ----------
    model, optimizer, scheduler
    progress : Progress
        It changes as the training goes on: copy what you want to keep.
    epochs, batches : int
        How many epochs, and how many batches in each.
    loss : float
        Of the last batch.
    history : list of dict
        For each epoch finished in this call: epoch (counted from 1), lr (of its last step), train_loss (mean over its images,
        each with the parameters of its step), test_loss, test_accuracy (None without test images), images_per_second (of training
        alone), seconds (of the whole epoch, or of this call's part of it).
    stop : bool
        A callback sets it to end the training after this batch or epoch.
    profile : Profile or None
        What `profile=True` measures.
    """
    model: Sequential
    optimizer: SGD
    scheduler: BackpropScheduler
    progress: Progress
    epochs: int
    batches: int
    loss: float = math.nan
    history: list = field(default_factory=list)
    stop: bool = False
    profile: Profile | None = None


def fit(model, train, test=None, *, epochs=1, batch_size=64, loss=None, optimizer=None, schedule=None, shuffle=True,
        augment=False, seed=0, progress=None, on_step=None, on_epoch=None, profile=False):
    """Train a model.

    Parameters
    ----------
    model : Sequential
        Its mean and std normalise the images.
    train, test : Dataset
        What to learn from, and what to test with after each epoch.
    epochs : int
        How many in all, including those that `progress` counts as finished.
    batch_size : int
    loss : loss of `nbcnn.losses`, optional
        CrossEntropyLoss() by default. Any other loss gets one-hot rows as targets: 1 in the column of the class, 0 elsewhere.
    optimizer : SGD, optional
        By default SGD(model.parameters(), lr=0.01).
    schedule : callable, optional
        From the number of a step, counted from 0 over all epochs, to its learning rate; see `nbcnn.optim`. By default the
        optimizer's rate stays as it is.
    shuffle, augment, seed
        As of `nbcnn.datasets.Loader`.
    progress : Progress, optional
        Where to go on. Model and optimizer must be as they were then, and all other arguments the same.
    on_step, on_epoch : callable, optional
        Called with the State after each batch and after each epoch. On a GPU, which does many batches without waiting for the host,
        on_step is called after these.
    profile : bool
        Whether to measure in `State.profile` the time of the training, kernel by kernel, without tests and `on_epoch`. See
        `BackpropScheduler.profile`.

    Returns
    -------
    State

    Raises
    ------
    TypeError
        When train or test is no Dataset.
    ValueError
        When there are no images or they do not fit the network; when train, test and the network differ in their classes; when the
        loss's reduction is not "mean"; when the optimizer has none of the model's parameters.
    NonFiniteLoss
        As soon as the loss of a batch or of a test is not finite. That batch changes nothing.

    Examples
    --------
    >>> import numpy as np, nbcnn
    >>> labels = np.arange(64) % 2                      # dark and bright images
    >>> images = np.full((64, 1, 4, 4), 255, np.uint8) * labels[:, None, None, None].astype(np.uint8)
    >>> train = nbcnn.datasets.Dataset(images, labels, ["dark", "bright"], "lamps")
    >>> model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(16, 2)], input_shape=(1, 4, 4))
    >>> nbcnn.fit(model, train, train, epochs=10, batch_size=8).history[-1]["test_accuracy"]
    1.0
    """
    instance(model, "model", Sequential, "a nbcnn.Sequential")
    loss = CrossEntropyLoss() if loss is None else loss
    require_mean(loss)
    require_dataset(model, train, "train")
    if test is not None:
        require_dataset(model, test, "test")
        if test.classes != train.classes:
            raise ValueError(f"test: expected the classes of train, {one_line(', '.join(train.classes))}, "
                             f"got {one_line(', '.join(test.classes))}")
    optimizer = SGD(model.parameters(), lr=0.01) if optimizer is None else instance(optimizer, "optimizer", SGD, "a nbcnn.SGD")
    if not set(optimizer.params) & set(model.parameters()):
        raise ValueError("optimizer: expected one with parameters of the model, got one with none of them")
    progress = Progress() if progress is None else replace(instance(progress, "progress", Progress))
    profile = flag(profile, "profile")
    for name, call in (("schedule", schedule), ("on_step", on_step), ("on_epoch", on_epoch)):
        function(call, name)
    loader = Loader(train, batch_size, shuffle, seed, augment, mean=model.mean, std=model.std, dtype=model.dtype)
    scheduler = BackpropScheduler(model, loss)
    scheduler.plan(train.images.shape[1:])
    rates = schedule and (lambda k: rate(schedule(k), "schedule"))
    if model.device == "cpu":
        steps = HostSteps(scheduler, optimizer, loader, make_targets(loss, len(train.classes), model.dtype), rates)
    else:
        steps = DeviceSteps(scheduler, optimizer, loader, rates)
    state = State(model, optimizer, scheduler, progress, integer(epochs, "epochs", 0), len(loader),
                  profile=Profile(model.dtype) if profile else None)
    while progress.epoch < epochs and not state.stop:
        with scheduler.profile(state.profile) if profile else contextlib.nullcontext():
            started, before = time.perf_counter(), progress.samples
            steps.begin(progress.epoch, progress.step)
            while progress.step < len(loader) and not state.stop:
                for state.loss, count in steps.run():
                    if not math.isfinite(state.loss):
                        layer = steps.first_nonfinite(progress.step) or "loss"
                        raise NonFiniteLoss(progress.epoch + 1, progress.step + 1, state.loss, layer)
                    progress.step += 1
                    progress.samples += count
                    progress.loss_sum += state.loss * count
                if on_step:
                    on_step(state)
        trained = time.perf_counter()
        for name, parameter in model.named_parameters():        # after the last update, whose result no loss has shown yet
            if not np.isfinite(parameter.numpy()).all():
                raise NonFiniteLoss(progress.epoch + 1, progress.step, state.loss, name.split(".")[0])
        if state.stop:
            break
        test_loss, accuracy = None, None
        if test is not None:
            evaluation = measure(scheduler, test, max(batch_size, 64))
            test_loss, accuracy = evaluation.loss, evaluation.accuracy
        if test_loss is not None and not math.isfinite(test_loss):
            raise NonFiniteLoss(progress.epoch + 1, progress.step, test_loss, scheduler.first_nonfinite() or "loss")
        state.history.append({
            "epoch": progress.epoch + 1, "lr": optimizer.lr, "train_loss": progress.loss_sum / progress.samples,
            "test_loss": test_loss, "test_accuracy": accuracy,
            "images_per_second": (progress.samples - before) / (trained - started), "seconds": time.perf_counter() - started})
        progress.epoch, progress.step, progress.loss_sum, progress.samples = progress.epoch + 1, 0, 0.0, 0
        if accuracy is not None and (progress.best_accuracy is None or accuracy > progress.best_accuracy):
            progress.best_accuracy, progress.best_epoch = accuracy, progress.epoch
        if on_epoch:
            on_epoch(state)
    return state
