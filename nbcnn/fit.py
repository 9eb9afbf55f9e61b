"""The training loop: it gives batches to the scheduler, sets a learning rate for each step, and tests after each epoch."""
import contextlib
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from nbcnn.datasets import Loader
from nbcnn.evaluation import make_targets, measure, require_dataset, require_mean
from nbcnn.kernels.arguments import flag, function, instance, integer, rate, real
from nbcnn.kernels.shown import one_line, shown
from nbcnn.layers import require_network
from nbcnn.losses import CrossEntropyLoss
from nbcnn.model import Network
from nbcnn.optim import EMA, RECIPE, SGD, Lookahead, Optimizer, one_cycle
from nbcnn.profile import Profile
from nbcnn.progress import Progress, ProgressBar, epoch_line
from nbcnn.scheduler import BackpropScheduler
from nbcnn.steps import DeviceSteps, HostSteps
from nbcnn.tensorboard import add_epoch, require_writer
from nbcnn.views import require_views


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
        each with the parameters of its step), test_loss, test_accuracy (None without test images), val_loss, val_accuracy (only
        with `val`), images_per_second (of training alone), seconds (of the whole epoch, or of this call's part of it).
    stop : bool
        A callback sets it to end the training after this batch or epoch.
    profile : Profile or None
        What `profile=True` measures.
    """
    model: Network
    optimizer: Optimizer
    scheduler: BackpropScheduler
    progress: Progress
    epochs: int
    batches: int
    loss: float = math.nan
    history: list = field(default_factory=list)
    stop: bool = False
    profile: Profile | None = None


def total_steps(epochs, batches):
    """How many steps so many epochs are, of which the last may be a part, of so many batches each."""
    return math.ceil(round(epochs * batches, 6))        # 9.9 * 10 is 99, and no part of a step more


def fit(model, train, test=None, *, epochs=1, batch_size=64, loss=None, optimizer=None, schedule=None, shuffle=True,
        augment=None, seed=0, progress=None, val=None, on_step=None, on_epoch=None, profile=False, verbose=1,
        writer=None, clip_norm=None, ema=None, freeze=None, patience=None, views=1, drop_last=False, precision="f32"):
    """Train a model, by default with the default recipe of `nbcnn train`.

    Parameters
    ----------
    model : Network or Sequential
        Its mean and std normalise the images. Where it has no input_shape or classes, it gets those of the images.
    train, test : Dataset
        What to learn from, and what to test with after each epoch.
    epochs : int or float
        How many in all, including those that `progress` counts as finished. Of 9.9 the last has nine tenths of its batches.
    batch_size : int
    loss : loss of `nbcnn.losses`, optional
        CrossEntropyLoss() by default. Any other loss gets one-hot rows as targets: 1 in the column of the class, 0 elsewhere.
    optimizer : Optimizer, optional
        By default SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4).
    schedule : callable, optional
        From the number of a step, counted from 0 over all epochs, to its learning rate; see `nbcnn.optim`. By default the default
        optimizer's rate follows `nbcnn.optim.one_cycle`, and any other one's stays as it is.
    shuffle, augment, seed, drop_last
        As of `nbcnn.datasets.Loader`. By default images are augmented, but for MNIST's: no digit is another one's mirror image.
        `augment` may be a mapping of the Loader's options: dict(flip="alternate", shift=4, shift_per="image").
    progress : Progress, optional
        Where to go on. Model and optimizer must be as they were then, and all other arguments the same.
    val : Dataset, optional
        Images to choose the best epoch with, measured after each. Without them it is the one that is best on the test images.
    on_step, on_epoch : callable, optional
        Called with the State after each batch and after each epoch. On a GPU, which does many batches without waiting for the host,
        on_step is called after these.
    profile : bool
        Whether to measure in `State.profile` the time of the training, kernel by kernel, without tests and `on_epoch`. See
        `BackpropScheduler.profile`.
    verbose : {0, 1}
        1 prints a line for each epoch, and shows a bar within it on a terminal or in a notebook; 0 is silent.
    writer : SummaryWriter, optional
        Of tensorboardX or torch.utils.tensorboard: each epoch is written for TensorBoard before `on_epoch`. See
        `nbcnn.tensorboard`.
    clip_norm : float, optional
        The largest norm of all gradients together; see `nbcnn.optim.clip_grad_norm_`.
    ema : EMA, optional
        Of the model: it is updated after each step, and tests are made with its averaged values.
    freeze : mapping, optional
        From names of parameters to the number of epochs after which they stay as they are: {"conv1.bias": 3}.
    patience : int, optional
        The training ends after so many epochs in which the best accuracy was not surpassed.
    views : {1, 2, 6}
        As of `nbcnn.evaluate`, for the tests after the last epoch; the others look at each image once.
    precision : {"f32", "bf16"}
        As of `nbcnn.BackpropScheduler`, for training and tests.

    Returns
    -------
    State

    Raises
    ------
    TypeError
        When train, test or val is no Dataset.
    ValueError
        When there are no images or they do not fit the network; when data sets and network differ in their classes; when the
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
    >>> nbcnn.fit(model, train, train, epochs=10, batch_size=8, verbose=0).history[-1]["test_accuracy"]
    1.0
    """
    require_network(model)
    loss = CrossEntropyLoss() if loss is None else loss
    require_mean(loss)
    require_dataset(model, train, "train")
    others = {name: dataset for name, dataset in (("test", test), ("val", val)) if dataset is not None}
    for name, dataset in others.items():
        require_dataset(model, dataset, name)
        if dataset.classes != train.classes:
            raise ValueError(f"{name}: expected the classes of train, {one_line(', '.join(train.classes))}, "
                             f"got {one_line(', '.join(dataset.classes))}")
    epochs, verbose = real(epochs, "epochs", "a number >= 0", 0, sys.maxsize), integer(verbose, "verbose", 0, 1)
    own = optimizer is not None
    optimizer = (instance(optimizer, "optimizer", Optimizer, "an optimizer, as nbcnn.SGD(...)") if own
                 else SGD(model.parameters(), **RECIPE))
    clip_norm = None if clip_norm is None else real(clip_norm, "clip_norm", "a positive number", sys.float_info.min, math.inf)
    views = require_views(views)
    patience = None if patience is None else integer(patience, "patience", 1)
    if ema is not None and instance(ema, "ema", EMA, "a nbcnn.optim.EMA").model is not model:
        raise ValueError("ema: expected that of the model, got another one's")
    freeze = {name: integer(count, f"freeze[{shown(name)}]", 0)
              for name, count in instance(freeze or {}, "freeze", Mapping, "names of parameters and epochs").items()}
    if unknown := freeze.keys() - {name for name, _ in model.named_parameters()}:
        raise ValueError(f"freeze: expected names of parameters, got {shown(min(unknown, key=str))}")
    if not set(optimizer.params) & set(model.parameters()):
        raise ValueError("optimizer: expected one with parameters of the model, got one with none of them")
    if model.input_shape is None:
        model.input_shape = train.images.shape[1:]
    if model.classes is None and model.output_shape(model.input_shape) == (len(train.classes),):
        model.classes = list(train.classes)
    progress = Progress() if progress is None else replace(instance(progress, "progress", Progress))
    profile = flag(profile, "profile")
    for name, call in (("schedule", schedule), ("on_step", on_step), ("on_epoch", on_epoch)):
        function(call, name)
    if writer is not None:
        require_writer(writer)
    augment = train.name != "mnist" if augment is None else augment
    how = dict(augment) if isinstance(augment, Mapping) else {"shift": min(2, *train.images.shape[2:])}
    loader = Loader(train, batch_size, shuffle, seed, bool(augment), mean=model.mean, std=model.std, dtype=model.dtype,
                    drop_last=drop_last, **how)
    if not len(loader):
        raise ValueError(f"batch_size: expected at most the {len(train)} images with drop_last, got {batch_size}")
    total, epochs = total_steps(epochs, len(loader)), math.ceil(epochs)
    if schedule is None and not own:
        schedule = one_cycle(optimizer.lr, max(1, total))
    scheduler = BackpropScheduler(model, loss, precision=precision)
    scheduler.plan(train.images.shape[1:])
    rates = schedule and (lambda k: rate(schedule(k), "schedule"))
    # On a GPU the device goes on by itself where it has all that a step needs.
    plain = type(optimizer) is SGD and len(optimizer.param_groups) == 1 and clip_norm is None and ema is None
    if model.device == "cpu" or scheduler.stateful or not plain:
        steps = HostSteps(scheduler, optimizer, loader, make_targets(loss, len(train.classes), model.dtype), rates, clip_norm, ema)
    else:
        steps = DeviceSteps(scheduler, optimizer, loader, rates)
    state = State(model, optimizer, scheduler, progress, epochs, len(loader),
                  profile=Profile(model.dtype, scheduler.precision) if profile else None)
    bar = ProgressBar(len(train), silent=not verbose)
    while progress.epoch < epochs and not state.stop:
        last = progress.epoch == epochs - 1
        batches = total - progress.epoch * len(loader) if last else len(loader)
        for name, parameter in model.named_parameters():
            if progress.epoch >= freeze.get(name, epochs):
                parameter.trainable = False
        with scheduler.profile(state.profile) if profile else contextlib.nullcontext():
            started, before = time.perf_counter(), progress.samples
            steps.begin(progress.epoch, progress.step)
            while progress.step < batches and not state.stop:
                for state.loss, count in steps.run():
                    if not math.isfinite(state.loss):
                        layer = steps.first_nonfinite(progress.step) or "loss"
                        raise NonFiniteLoss(progress.epoch + 1, progress.step + 1, state.loss, layer)
                    progress.step += 1
                    progress.samples += count
                    progress.loss_sum += state.loss * count
                bar.show(state)
                if on_step:
                    on_step(state)
        trained = time.perf_counter()
        if last and not state.stop and isinstance(optimizer, Lookahead):
            optimizer.finish()
        for name, tensor in model.named_tensors():      # after the last update, whose result no loss has shown yet
            if not np.isfinite(tensor.numpy()).all():
                raise NonFiniteLoss(progress.epoch + 1, progress.step, state.loss, name.split(".")[0])
        if state.stop:
            break
        measured = {"test_loss": None, "test_accuracy": None}
        with contextlib.nullcontext() if ema is None else ema.weights():
            for name, dataset in others.items():
                found = measure(scheduler, dataset, max(batch_size, 64), views=views if last else 1)
                measured |= {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy}
                if not math.isfinite(found.loss):
                    raise NonFiniteLoss(progress.epoch + 1, progress.step, found.loss, scheduler.first_nonfinite() or "loss")
        accuracy = measured["test_accuracy" if val is None else "val_accuracy"]
        state.history.append({
            "epoch": progress.epoch + 1, "lr": optimizer.lr, "train_loss": progress.loss_sum / progress.samples, **measured,
            "images_per_second": (progress.samples - before) / (trained - started), "seconds": time.perf_counter() - started})
        progress.epoch, progress.step, progress.loss_sum, progress.samples = progress.epoch + 1, 0, 0.0, 0
        if accuracy is not None and (progress.best_accuracy is None or accuracy > progress.best_accuracy):
            progress.best_accuracy, progress.best_epoch = accuracy, progress.epoch
        elif patience and accuracy is not None and progress.epoch - progress.best_epoch >= patience:
            state.stop = True
        bar.close()
        if verbose:
            print(epoch_line(state), flush=True)
        if writer is not None:
            add_epoch(writer, state, train)
        if on_epoch:
            on_epoch(state)
    return state
