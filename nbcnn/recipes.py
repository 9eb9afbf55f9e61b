"""What --recipe and the other options of `nbcnn train` mean: values, images, network, optimizer and learning rates."""
import shlex
import zlib
from pathlib import Path

import numba
import numpy as np

from nbcnn import datasets, models, optim
from nbcnn.cli import flag
from nbcnn.files import about
from nbcnn.layers import BatchNorm2d
from nbcnn.model import Network

PLAIN = dict(
    model="cifar10_quick", batch_size=64, optimizer="sgd", momentum=0.0, nesterov=False, weight_decay=0.0, norm_bias_lr=1.0,
    lookahead=0, clip_norm=None, ema=None, freeze=None, label_smoothing=0.0, class_weights="none", drop_last=False, augment=True,
    flip="0.5", shift=2, shift_per="batch", border="zero", cutout=0, normalize=True, shuffle=True, views=1, patience=None)
RECIPES = {
    "default": PLAIN | dict(epochs=None, schedule="one_cycle", **optim.RECIPE),
    "tutorial": PLAIN | dict(epochs=20, lr=0.01, schedule="constant", augment=False, normalize=False),
    # K. Jordan's, where the loss is summed over the batch of 1024: lr 11.5/k and a decay of 0.0153 * 1024/k a step, with
    # k = 1024 (1 + 1/(1 - 0.85)). The mean of the batch has 1024 times that rate. Batch norm's biases learn 64 times as fast.
    "airbench94": PLAIN | dict(
        model="airbench94", epochs=9.9, batch_size=1024, lr=11.5 / (1 + 1 / (1 - 0.85)), momentum=0.85, nesterov=True,
        weight_decay=0.0153 / 11.5, norm_bias_lr=64.0, schedule="triangle", lookahead=5, freeze="conv1.bias:3", label_smoothing=0.2,
        drop_last=True, flip="alternate", shift_per="image", border="reflect", views=6),
    # He et al. 2015, section 4.2, in 60 epochs instead of 164.
    "resnet20": PLAIN | dict(
        model="resnet20", epochs=60, batch_size=128, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="multistep", shift=4,
        shift_per="image"),
}
EPOCHS = {"cifar10": 16, "cifar100": 16, "mnist": 4, "fashion-mnist": 8, "shapes": 6, "folder": 16}     # of the default recipe
OTHERS = dict(recipe="default", dataset="auto", data_dir="data", split="train", val_share=0.0, size=None, channels=None,
              skip_broken=False, init_from=None, loss="cross_entropy", precision="f32", seed=0, threads=None, save_every=None,
              fingerprint=None)
# What older checkpoints do not say.
BEFORE = {name: PLAIN[name] for name in (
    "optimizer", "norm_bias_lr", "lookahead", "clip_norm", "ema", "freeze", "class_weights", "drop_last", "flip", "shift",
    "shift_per", "border", "cutout", "views", "patience")}
BEFORE |= dict(precision="f32", val_share=0.0, size=32, channels=3, skip_broken=False, init_from=None, fingerprint=None)
FREE = {"data_dir", "threads", "save_every", "skip_broken"}     # these change no bit of the result
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)), "fashion-mnist": ((0.2860,), (0.3530,)), "shapes": ((0.5,) * 3, (0.29,) * 3),
}
WIDTHS = {"Linear": "out_features", "Conv2d": "out_channels"}       # the arguments that say how many outputs there are
SCHEDULES = {
    "constant": lambda lr, total: optim.constant(lr),
    "step": lambda lr, total: optim.step(lr, -(-total // 3)),
    "cosine": optim.cosine,
    "one_cycle": optim.one_cycle,
    "multistep": lambda lr, total: optim.multistep(lr, [total // 2, total * 3 // 4]),
    "triangle": lambda lr, total: optim.piecewise(lr, [(0, 0.2), (0.23, 1), (1, 0.07)], total),
}
OPTIMIZERS = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}


def default_text(name):
    """An option's default, as --help shows it; "" where there is none."""
    if name in OTHERS:
        return "" if OTHERS[name] is None else f" (default: {OTHERS[name]})"
    if name not in RECIPES["default"]:
        return ""
    values = {recipe: options[name] for recipe, options in RECIPES.items()}
    if name == "epochs":
        values["default"] = ", ".join(f"{count} for {dataset}" for dataset, count in EPOCHS.items())
    first, words = values.pop("default"), {True: "yes", False: "no", None: "none"}

    def said(value):
        return words[value] if value is None or isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else value
    others = [f"{said(value)} of {recipe}" for recipe, value in values.items() if value != first]
    return f" (default: {said(first)}{''.join(f'; {text}' for text in others)})" if others or first is not None else ""


def new_options(given):
    """All options of a new run: those given, and the recipe's values for the others."""
    options = {**OTHERS, **RECIPES[given.get("recipe", OTHERS["recipe"])], **given}
    if options["momentum"] == 0 and "nesterov" not in given:
        options["nesterov"] = False
    if options["dataset"] == "mnist" and "augment" not in given:
        options["augment"] = False      # as nbcnn.fit
    if options["dataset"] == "auto" and "data_dir" in given:
        options["dataset"] = "cifar10"      # a user who says where the files are does not want the shapes
    return options


def started_options(given, start):
    """All options of a new run that begins with the weights of the Checkpoint `start`, whose network and images it takes over."""
    for name in ("model", "normalize"):
        if name in given and not (name == "model" and start.model.own_layers()):        # --model says where these are
            raise ValueError(f"{flag(name)}: expected without --init-from, which says what network, mean and std to go on with")
    data = {name: value for name in ("dataset", "data_dir") if isinstance(value := start.options.get(name), str)}
    options = new_options({"model": str(start.options.get("model", given["init_from"])), **data, **given})
    options["normalize"] = start.model.mean is not None or start.model.std is not None
    for name, own in zip(("channels", "size"), start.model.input_shape or (), strict=False):
        options[name] = options[name] or own
    return options


def resumed_options(given, saved, source, parse):
    """The options that the checkpoint `saved` was trained with, changed by those of the given ones that may differ.

    `source` is the checkpoint's file. `parse` makes options of arguments: those in a file must obey the rules of the command line.
    """
    options = saved.options | {name: value for name, value in BEFORE.items() if name not in saved.options}
    if saved.optimizer is None or set(options) != {*OTHERS, *RECIPES["default"]}:
        raise ValueError(f"--resume: {source} was not written by this command and does not say how it was trained")
    if saved.progress.epoch and saved.progress.best_accuracy is None:
        raise ValueError(f"--resume: {source} was not written by this command: it has finished epochs, but no best accuracy")
    optional = [name for name, default in (PLAIN | OTHERS).items() if default is None]
    with about(f"--resume: {source} was written with options that do not exist"):
        options.update(parse([_argument(name, value) for name, value in options.items()
                              if name != "fingerprint" and not (name in optional and value is None)]))
    for name, value in given.items():
        # For a network with layers of its own, --model may say where these are, and names no function then.
        layers = name == "model" and saved.model.own_layers() and (value.endswith(".py") or ":" not in value)
        stays = name == "precision" and saved.model.dtype != np.float32
        if layers or stays or (name, value) in (("dataset", "auto"), ("precision", "auto")):
            continue
        longer = name == "epochs" and options["schedule"] == "constant" and value >= saved.progress.epoch
        if not (value == options[name] or longer or name in FREE):
            message = f"{flag(name)} {value} contradicts {source}, trained with {options[name]}"
            if name == "epochs" and options["schedule"] != "constant":
                message += f", which its {options['schedule']} schedule is laid out for"
            message += "; leave it out"
            if name == "epochs" and (more := value - saved.progress.epoch) > 0:
                place = f" --data-dir {shlex.quote(options['data_dir'])}" if options["dataset"] != "shapes" else ""
                message += (f", or begin a new run of {more} epochs with its weights: --init-from {shlex.quote(str(source))} "
                            f"--epochs {more} --dataset {options['dataset']}{place}")
            raise ValueError(message)
        options[name] = value
    if "threads" not in given and (options["threads"] or 0) > numba.config.NUMBA_NUM_THREADS:
        options["threads"] = None       # it was trained on a larger machine
    return options


def _argument(name, value):
    """An option and its value as one argument."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)}={value}"


def load_datasets(options, source=None, saved=None, max_pixels=None):
    """(training set, validation set or None, test set, where they are from) as the options ask for.

    The options say afterwards what they had left open.

    A resumed run goes on from the checkpoint `saved` of the file `source`, which must fit.
    """
    size, classes = options["size"], saved and saved.model.classes
    wanted = ["train", "test"]
    if options["dataset"] == "folder" and (Path(options["data_dir"]) / "val").is_dir():
        wanted.append("val")
    (train, test, *more), why = datasets.choose(
        options["dataset"], options["data_dir"], wanted, shape=(options["channels"], size, size), classes=classes,
        max_pixels=max_pixels, skip_broken=options["skip_broken"])
    if classes not in (None, train.classes):
        raise ValueError(f"--resume: {source} knows the classes {', '.join(classes)}, the images have "
                         f"{', '.join(train.classes)}")
    if options["split"] == "test":
        train = test
    options["dataset"], (options["channels"], options["size"]) = train.name, train.images.shape[1:3]
    # A CRC-32 of images and labels; those of the other sets are always the same.
    fingerprint = None
    if train.name == "folder":
        fingerprint = 0
        for part in (train, *more):
            fingerprint = zlib.crc32(part.labels, zlib.crc32(part.images, fingerprint))
    if source and options["fingerprint"] != fingerprint:
        raise ValueError(f"--resume: the training images in {options['data_dir']} are not those of {source} any more")
    options["fingerprint"] = fingerprint
    options["epochs"] = options["epochs"] or EPOCHS[train.name]
    if more and options["val_share"]:
        raise ValueError(f"--val-share: expected none, as {options['data_dir']} has val, got {options['val_share']}")
    train, val = (train, more[0]) if more else split_off(train, options["val_share"], options["seed"])
    return train, val, test, why


def split_off(dataset, share, seed):
    """(the rest, a share of each class) of a data set, drawn by the seed, in the order that they had; (all, None) for none."""
    if not share:
        return dataset, None
    rng, chosen = np.random.default_rng([seed, 3]), np.zeros(len(dataset), bool)        # 0 to 2 are the loader's
    for label in range(len(dataset.classes)):
        places = rng.permutation(np.flatnonzero(dataset.labels == label))
        chosen[places[:round(share * len(places))]] = True
    if not chosen.any() or chosen.all():
        raise ValueError(f"--val-share: expected a part of {len(dataset)} images that leaves some on both sides, got {share}")
    return dataset[~chosen], dataset[chosen]


def started_network(start, options, train):
    """(network, remark): the network of the Checkpoint `start` for the training images, and what of it begins anew.

    That is the last layer with parameters, where the classes of the images are not those it has learned.
    """
    old, classes = start.model, train.classes
    structure, state, remark = old.structure(), old.state_dict(), ""
    with about(f"--init-from {options['init_from']}"):
        try:
            outputs = old.output_shape(train.images.shape[1:])
        except ValueError as error:
            hint = f"; its network takes images of {old.input_shape}: leave out --size and --channels" if old.input_shape else ""
            raise ValueError(f"{error}{hint}") from None
        if outputs != (len(classes),) or old.classes not in (None, classes):
            learning = [entry for entry, layer in zip(structure, old, strict=True) if layer.parameters]
            name, kind, arguments, *_ = learning[-1] if learning else ("", "none", {})
            if WIDTHS.get(kind) not in arguments:
                raise ValueError(f"expected a last layer that can be made anew for the classes {', '.join(classes)}, one of "
                                 f"{', '.join(WIDTHS)}, got {kind}")
            remark = (f"; {name} begins anew, for {len(classes)} classes instead of {arguments[WIDTHS[kind]]}"
                      if arguments[WIDTHS[kind]] != len(classes) else f"; {name} begins anew, as the classes are others")
            arguments[WIDTHS[kind]] = len(classes)
            state = {key: value for key, value in state.items() if key.rpartition(".")[0] != name}
        model = Network.from_structure(structure, None, old.own_layers(), input_shape=train.images.shape[1:], mean=old.mean,
                                          std=old.std, classes=classes, seed=options["seed"], dtype=old.dtype,
                                       frozen=old.frozen)
        model.load_state_dict(model.state_dict() | state)
    return model, remark


def make_network(maker, options, train):
    """The network that the options ask for, with the mean, std and classes of the training images."""
    shape, mean, std, classes = train.images.shape[1:], None, None, train.classes
    if options["normalize"]:
        mean, std = MEAN_STD.get(train.name, ((), ()))
        if len(mean) != shape[0]:
            mean, std = mean_std(train.images)
    with about(f"--model {options['model']}"):
        model = models.make(maker, input_shape=shape, mean=mean, std=std, classes=classes, seed=options["seed"])
        outputs = model.output_shape(model.input_shape or shape)
        if outputs != (len(classes),):
            raise ValueError(f"expected {len(classes)} outputs, one for each class of the images, got outputs of shape {outputs}")
        if model.mean is not None or model.std is not None:
            mean, std = model.mean, model.std
        for kind in model.own_layers():
            if not models.is_importable(kind):
                raise ValueError(f"expected layers that a checkpoint can name, got {kind.__qualname__}; define the class at the "
                                 "top of its file")
        # Built again as from a checkpoint, to know that this works, with what its function has left open.
        model = Network.from_structure(
            model.structure(), model.state_dict(), model.own_layers(), input_shape=model.input_shape or shape, mean=mean, std=std,
            classes=model.classes or classes, seed=model.seed, dtype=model.dtype, frozen=model.frozen)
        if model.input_shape != shape:
            raise ValueError(f"expected a network for the images' {shape}, got one for {model.input_shape}; --size and --channels "
                             "change the images")
        if model.classes != classes:
            raise ValueError(f"expected the classes of the images, {', '.join(classes)}, got {', '.join(model.classes)}")
        model.table(shape[0])       # raises where mean and std do not fit
    if options["model"] == "airbench94":
        models.whiten(model, train.images[:5000])
    return model


def mean_std(images):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""
    counts = np.zeros((images.shape[1], 256))
    for start in range(0, len(images), 100):        # counting takes eight times the memory of the pixels counted
        counts += [np.bincount(channel.reshape(-1), minlength=256) for channel in images[start:start + 100].swapaxes(0, 1)]
    share = counts / counts[0].sum()
    mean = share @ np.arange(256)
    variance = share @ np.arange(256)**2 - mean**2
    return (mean / 255).tolist(), np.sqrt(variance.clip(1) / 255**2).tolist()


def make_optimizer(model, options, total):
    """The optimizer of a new run of so many steps."""
    own = {"weight_decay": options["weight_decay"]}
    if options["optimizer"] == "sgd":
        own |= {name: options[name] for name in ("momentum", "nesterov")}
    factor, biases = options["norm_bias_lr"], set()
    if factor != 1:
        biases = {layer.bias for layer in model.layers.values() if isinstance(layer, BatchNorm2d) and layer.bias is not None}
    groups = [{"params": [parameter for parameter in model.parameters() if parameter not in biases]}]
    if biases:      # with the same decay a step
        groups.append({"params": [parameter for parameter in model.parameters() if parameter in biases],
                       "lr": options["lr"] * factor, "weight_decay": options["weight_decay"] / factor})
    optimizer = OPTIMIZERS[options["optimizer"]](groups if biases else model.parameters(), lr=options["lr"], **own)
    if options["lookahead"]:
        optimizer = optim.Lookahead(optimizer, options["lookahead"])
    return scheduled(optimizer, total)


def scheduled(optimizer, total):
    """The optimizer; what of it changes in the course of so many steps follows these: no checkpoint holds a function."""
    if isinstance(optimizer, optim.Lookahead):
        optimizer.decay = lambda step: 0.95 ** optimizer.every * min(1, step / total) ** 3
    return optimizer


def augmentation(options):
    """What `fit` takes as `augment`."""
    flip = options["flip"] if options["flip"] == "alternate" else float(options["flip"])
    return options["augment"] and dict(flip=flip, **{name: options[name] for name in ("shift", "shift_per", "border", "cutout")})
