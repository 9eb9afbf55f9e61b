"""`nbcnn train`, or `python -m nbcnn.train`: train a network and keep what it learned; --help lists the options.

Here are arguments, messages and files; the training loop is `nbcnn.fit`. The exit status is 0 when all epochs are done, 2 when
something asked for cannot be done, 3 when the loss is no longer finite, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and
141 when nobody reads the output any more.
"""
import argparse
import contextlib
import copy
import csv
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import sys
import time
import zlib
from pathlib import Path

import numba
import numpy as np
from tqdm import tqdm

import nbcnn
from nbcnn import checkpoint, cli, datasets, files, models, optim
from nbcnn.cli import flag, number, paint, say, whole
from nbcnn.fit import NonFiniteLoss, fit
from nbcnn.losses import LOSSES
from nbcnn.memory import set_max_memory
from nbcnn.model import Sequential
from nbcnn.progress import Progress
from nbcnn.table import format_table
from nbcnn.threads import ThreadTrial

NAME = "nbcnn train"
RECIPES = {
    "default": dict(epochs=None, batch_size=64, lr=0.02, schedule="one_cycle", momentum=0.9, nesterov=True, weight_decay=5e-4,
                    augment=True, normalize=True, shuffle=True),
    "tutorial": dict(epochs=20, batch_size=64, lr=0.01, schedule="constant", momentum=0.0, nesterov=False, weight_decay=0.0,
                     augment=False, normalize=False, shuffle=True),
}
EPOCHS = {"cifar10": 16, "shapes": 6, "folder": 16}     # of the default recipe
OTHERS = dict(recipe="default", dataset="auto", data_dir="data", split="train", size=32, model="cifar10_quick",
              loss="cross_entropy", label_smoothing=0.0, seed=0, threads=None, save_every=None, fingerprint=None)
FREE = {"resume", "out", "quiet", "profile", "data_dir", "threads", "save_every"}      # change no bit of the result
MEAN_STD = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), "shapes": ((0.5,) * 3, (0.29,) * 3)}
SCHEDULES = {
    "constant": lambda lr, total: optim.constant(lr),
    "step": lambda lr, total: optim.step(lr, -(-total // 3)),
    "cosine": optim.cosine,
    "one_cycle": optim.one_cycle,
}
BEST = "best.safetensors"
FILES = r"config\.json|metrics\.csv|(last|best|epoch-\d+)\.safetensors"
LONGEST_METRICS = 10**7      # bytes of metrics.csv: a line has about a hundred
COLUMNS = ["epoch", "lr", "train_loss", "test_loss", "test_accuracy", "images_per_second", "seconds"]


def main(argv=None):
    """Train, and return the exit status."""
    return cli.run(NAME, _main, argv)


def _main(argv):
    run = Run(_parser().options(argv))
    try:
        return run.train()
    except NonFiniteLoss as error:
        kept = f"{run.last} is the last good checkpoint" if run.last.exists() else "there was no checkpoint yet"
        return cli.fail(NAME, f"{error}. Training has stopped; {kept}. A smaller --lr usually helps.", 3)
    finally:
        run.leave()


class Run:
    """One run of the command. Whatever can be wrong with it is found in the constructor, before anything is trained."""

    def __init__(self, given):
        self.quiet, self.profile = given.pop("quiet", False), given.pop("profile", False)
        set_max_memory(given.pop("max_memory", None))
        self.device, self.device_why = cli.choose_device(given.pop("device", "cpu"))
        if self.profile and self.device != "cpu":
            raise ValueError("--profile: expected --device cpu, whose kernels it measures; bench/gpu.py measures those of a GPU")
        self.interrupted = self.bar = self.lock = self.trial = None
        self.claimed = self.training = self.folder_is_ours = False
        max_pixels = given.pop("max_pixels", None)
        classes = None
        if "resume" in given:
            self.source = Path(given["resume"])
            saved = checkpoint.load(self.source)
            classes = saved.model.classes
            self.options, self.progress = _resumed_options(given, saved, self.source), saved.progress
        else:
            self.source, self.progress = None, Progress()
            self.options = {**OTHERS, **RECIPES[given.get("recipe", OTHERS["recipe"])],
                            **{name: value for name, value in given.items() if name != "out"}}
            if self.options["momentum"] == 0 and "nesterov" not in given:
                self.options["nesterov"] = False
        o = self.options
        maker = None if self.source else _found(o["model"])       # before pictures are read
        if o["label_smoothing"] and o["loss"] != "cross_entropy":
            raise ValueError(f"--label-smoothing: expected 0 with --loss {o['loss']}, got {o['label_smoothing']}")
        if "threads" not in given and (o["threads"] or 0) > numba.config.NUMBA_NUM_THREADS:
            o["threads"] = None         # resumed from a larger machine: it changes no bit
        cli.set_threads(o["threads"])
        if o["dataset"] == "auto" and "data_dir" in given:
            o["dataset"] = "cifar10"        # who says where it is does not want the shapes
        (self.train_set, self.test_set), self.why = datasets.choose(o["dataset"], o["data_dir"], shape=(3, o["size"], o["size"]),
                                                                    classes=classes, max_pixels=max_pixels)
        if classes not in (None, self.train_set.classes):
            raise ValueError(f"--resume: {self.source} knows the classes {', '.join(classes)}, the pictures have "
                             f"{', '.join(self.train_set.classes)}")
        if o["split"] == "test":
            self.train_set = self.test_set
        o["dataset"] = self.train_set.name
        if o["dataset"] != "folder" and o["size"] != OTHERS["size"]:
            raise ValueError(f"--size: expected with --dataset folder only, got {o['size']} with {o['dataset']}")
        fingerprint = _fingerprint(self.train_set) if o["dataset"] == "folder" else None      # the others are always the same
        if self.source and o["fingerprint"] != fingerprint:
            raise ValueError(f"--resume: the training pictures in {o['data_dir']} are not those of {self.source} any more")
        o["fingerprint"] = fingerprint
        o["epochs"] = o["epochs"] or EPOCHS[o["dataset"]]
        self.loss = cli.make_loss(o)
        self.batches = -(-len(self.train_set) // o["batch_size"])
        if self.progress.step > self.batches:
            raise ValueError(f"--resume: {self.source} is {self.progress.step} batches into an epoch, but these pictures make "
                             f"only {self.batches}")
        self.schedule = SCHEDULES[o["schedule"]](o["lr"], o["epochs"] * self.batches)
        if self.source:
            self.model, self.optimizer = saved.model, saved.optimizer
        else:
            self.model = _network(maker, o, self.train_set)
            self.optimizer = optim.SGD(self.model.parameters(), o["lr"], momentum=o["momentum"], nesterov=o["nesterov"],
                                       weight_decay=o["weight_decay"])
        self.model.to(self.device)
        config = {"options": o, "device": self.device, "train_pictures": len(self.train_set), "test_pictures": len(self.test_set),
                  "versions": {"nbcnn": nbcnn.__version__, "numba": numba.__version__, "numpy": np.__version__,
                               "python": platform.python_version()}}
        self.handlers = {}
        try:
            self._handle_signals()
            self._open_folder(given.get("out"), saved if self.source else None)
            files.write_atomically(self.folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
        except BaseException:
            self.leave()
            raise

    def _open_folder(self, out, saved):
        """Take the run's folder, with the files that the checkpoint speaks of. No file of another run is ever overwritten."""
        home = self.source and self.source.parent
        self.rows = _read_metrics(home / "metrics.csv", self.progress.epoch) if home else []
        if out is not None:
            self.folder = Path(out)
        elif home:
            self.folder = home
        else:
            model = re.sub(r"[^\w.-]+", "-", self.options["model"])
            self.folder = _new_folder(Path("runs") / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{self.options['dataset']}-{model}")
            self.folder_is_ours = True
        self.last, self.best = self.folder / "last.safetensors", self.folder / BEST
        elsewhere = home and self.folder.resolve() != home.resolve()
        self.copies = self._copies(saved, home / BEST if elsewhere else None) if home else {}
        if home and not elsewhere:
            self._lock("--resume", "wait for its end, or give --out another folder")
            self._require_furthest()
            self.lock.mark("")
        else:
            self._claim()
            if self.rows:
                files.write_atomically(self.folder / "metrics.csv", _csv(self.rows))
        for name, content in self.copies.items():
            if self._is_behind(self.folder / name):
                files.write_atomically(self.folder / name, content)

    def _lock(self, option, way_out):
        """Be the only process at work in the folder, and clean up after one that was killed in it."""
        try:
            self.lock = files.Lock(self.folder)
        except BlockingIOError:
            raise ValueError(f"{option}: {self.folder} holds a run already, which another process is at work on; "
                             f"{way_out}") from None
        if self.lock.held:
            files.remove_temporaries(self.folder, FILES)

    def _claim(self):
        """Make the folder this run's; ValueError where it is another one's, be it one that has just begun."""
        if not self.folder_is_ours:
            self.folder_is_ours = files.make_folder(self.folder)
        self._lock("--out", "choose another folder")
        abandoned = self.lock.marked        # by a run that was killed before it had learned anything
        found = sorted(file for file in self.folder.glob("*.safetensors")
                       if not (abandoned and _holds(file, self.copies.get(file.name))))
        records = [file for name in ("config.json", "metrics.csv") if (file := self.folder / name).exists()]
        if found:
            best = next((file for file in (self.last, self.best) if file in found), found[0])
            raise ValueError(f"--out: {self.folder} holds a run already; choose another folder, or continue that run with "
                             f"--resume {shlex.quote(str(best))}")
        if records and not abandoned:
            names = " and ".join(file.name for file in records)
            raise ValueError(f"--out: {self.folder} holds a run already, but no checkpoint; choose another folder, or, if no "
                             f"process is at work on it, move {names} away")
        if not self.lock.held:      # where there are no locks, this is the first file of a run, made by one of them only
            (self.folder / "config.json").touch(exist_ok=False)
        self.claimed = True
        self.lock.mark("a run that has no checkpoint yet\n")
        for file in records:
            file.unlink()

    def _copies(self, saved, best):
        """The bytes of checkpoints that must be there to go on from `saved`, by name; `best` is a file that may hold one of them.

        A run writes last.safetensors first, so one that was killed may lack the others of that epoch, which are equal to it.
        """
        copies, p = {}, self.progress
        if p.epoch and not p.step:
            content = checkpoint.to_bytes(**vars(saved))
            if p.best_epoch == p.epoch:
                copies[BEST] = content
            if self._keeps(p.epoch):
                copies[f"epoch-{p.epoch}.safetensors"] = content
        if BEST not in copies and best and best.exists() and (found := checkpoint.load(best)).progress.best_epoch == p.best_epoch:
            copies[BEST] = checkpoint.to_bytes(**vars(found))
        return copies

    def _is_behind(self, path):
        """Whether a checkpoint is older than where this run goes on, or not there."""
        try:
            return checkpoint.load(path).progress.epoch < self.progress.epoch
        except (OSError, ValueError):
            return True

    def _keeps(self, epoch):
        every = self.options["save_every"]
        return every and epoch % every == 0

    def leave(self):
        """Give back the folder: where nothing was learned, without what this run has made in it."""
        with contextlib.suppress(OSError):      # what then stays says that it is abandoned
            if self.claimed:
                if not self.last.exists():
                    files.remove_temporaries(self.folder, FILES)
                    for name in ("config.json", "metrics.csv", *self.copies):
                        (self.folder / name).unlink(missing_ok=True)
                self.lock.mark("")
        if self.lock:
            self.lock.release()
        if self.folder_is_ours:
            with contextlib.suppress(OSError):      # it is in use
                self.folder.rmdir()
        self._restore_signals()

    def _require_furthest(self):
        """Raise ValueError when going on from `source` would overwrite a checkpoint that is further."""
        try:
            last = checkpoint.load(self.last).progress
        except (OSError, ValueError):       # nothing there that could be lost
            return
        if (last.epoch, last.step) > (self.progress.epoch, self.progress.step):
            raise ValueError(f"--resume: {self.last} is further, with {last.epoch} epochs and {last.step} "
                             "batches done, and would be overwritten; resume from that, or give --out another folder")

    def train(self):
        """Train to the end or until a signal; the exit status."""
        o = self.options
        if o["split"] == "test":
            cli.remark("WARNING", "--split test trains on the TEST pictures, as some tutorials do. The test accuracy below is "
                                  "measured on the very pictures trained on: it does not say how well the network does on others.",
                       "yellow")
        self._say(f"data     {self.train_set.name}: {len(self.train_set):,} pictures to train, {len(self.test_set):,} to test; "
                  f"{self.why}")
        if self.device_why:
            self._say(f"device   {self.device}: {self.device_why}")
        self._say(f"recipe   {o['recipe']}: epochs {o['epochs']}, batches per epoch {self.batches}, "
                  f"pictures per batch {o['batch_size']}")
        self._say(f"folder   {self.folder}")
        if self.source:
            self._say(f"resume   {self.source}: {self._where()}")
        self._say("", *self.model.summary().split("\n"), "")
        try:
            self._compile()
            self.trial = ThreadTrial()
            self.training = True
            state = fit(self.model, self.train_set, self.test_set, epochs=o["epochs"], batch_size=o["batch_size"],
                        loss=self.loss, optimizer=self.optimizer, schedule=self.schedule, shuffle=o["shuffle"],
                        augment=o["augment"], seed=o["seed"], progress=self.progress, on_step=self._on_step,
                        on_epoch=self._on_epoch, profile=self.profile)
            self.progress = state.progress
            if self.interrupted:
                self._save_last()
        finally:
            self._close_bar()
            if self.trial:
                self.trial.stop()
            self._restore_signals()
        if self.interrupted:
            say(f"stopped: {self._where()}. To go on: python -m nbcnn.train --resume {shlex.quote(str(self.last))}")
            self._print_profile(state)
            return 128 + self.interrupted
        best = f" as {self.best.name}" if self.best.exists() else ""
        say(f"done: test accuracy at best {self.progress.best_accuracy:.2%} after epoch {self.progress.best_epoch}, "
            f"kept in {self.folder}{best}")
        self._print_profile(state)
        return 0

    def _print_profile(self, state):
        if self.profile:
            say("", *str(state.profile).split("\n"))

    def _handle_signals(self):
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):        # the last one is not everywhere, and ignored under nohup
            number = getattr(signal, name, None)
            if number and (name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN):
                self.handlers[number] = signal.signal(number, self._interrupt)

    def _restore_signals(self):
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def _interrupt(self, number, frame):
        """Handles a signal: the batch is finished first, or a second signal ends the process at once.

        Before the first batch there is nothing to finish, and an exception would come from within the compiler, which may ignore
        it: the process ends here.
        """
        if not self.training:
            self.leave()
            os._exit(128 + number)
        self.interrupted = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _on_step(self, state):
        if self.bar is None:
            self.bar = tqdm(desc=f"epoch {state.progress.epoch + 1}/{state.epochs}", total=len(self.train_set), unit=" pictures",
                            leave=False, disable=self.quiet or not sys.stderr.isatty())
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {state.progress.loss_sum / state.progress.samples:.4f}", refresh=False)
            self.bar.update(state.progress.samples - self.bar.n)
        state.stop = self.interrupted is not None
        if self.device == "cpu":
            self.trial.step()

    def _on_epoch(self, state):
        self._close_bar()
        self.progress, metrics = state.progress, state.history[-1]
        epoch = metrics["epoch"]
        self.rows.append({**metrics, "images_per_second": round(metrics["images_per_second"], 1),
                          "seconds": round(metrics["seconds"], 3)})
        files.write_atomically(self.folder / "metrics.csv", _csv(self.rows))
        self._save_last()       # before the others, which can be made from it, see _copies: where any is, it is
        if self.progress.best_epoch == epoch:
            self._save(self.best)
        if self._keeps(epoch):
            self._save(self.folder / f"epoch-{epoch}.safetensors")
        accuracy = f"accuracy {metrics['test_accuracy']:6.2%}"
        if self.progress.best_epoch == epoch:
            accuracy = paint(accuracy, "bold", sys.stdout)
        cli.put(f"epoch {epoch:{len(str(state.epochs))}}/{state.epochs}  train loss {metrics['train_loss']:.4f}  "
                f"test loss {metrics['test_loss']:.4f}  {accuracy}  lr {metrics['lr']:.2e}  "
                f"{metrics['images_per_second']:6,.0f} images/s  {metrics['seconds']:5.1f} s")
        if self.trial.hint:
            self._hint(self.trial.hint)
            self.trial.hint = ""
        guessing = math.log(len(self.train_set.classes))
        if self.options["loss"] == "cross_entropy" and guessing and -0.005 < metrics["train_loss"] - guessing < 0.02:
            self._hint(f"the loss stays at {guessing:.4f} = ln({len(self.train_set.classes)}), which is what guessing gives. "
                       "Another --lr (ten times smaller, or larger) or --normalize may get it going.")
        state.stop = self.interrupted is not None

    def _hint(self, text):
        cli.put(f"{paint('hint:', 'yellow', sys.stdout)} {text}")

    def _save(self, path):
        checkpoint.save(path, self.model, optimizer=self.optimizer, progress=self.progress, options=self.options)

    def _save_last(self):
        self._save(self.last)
        if self.claimed:        # until now nothing was learned that could be lost
            self.claimed = False
            self.lock.mark("")

    def _where(self):
        p = self.progress
        within = f", {p.step} of {self.batches} batches of the next" if p.step else ""
        return f"{p.epoch} of {self.options['epochs']} epochs done{within}"

    def _compile(self):
        """Train a copy of the model on one batch, so that no epoch's time holds the compiler's."""
        self._say("compiling kernels ...", end=" ")
        started, size = time.perf_counter(), min(self.options["batch_size"], 64)
        few = datasets.Dataset(self.train_set.images[:size], self.train_set.labels[:size], self.train_set.classes, "few")
        model = copy.deepcopy(self.model).to(self.device)
        optimizer = optim.SGD(model.parameters(), lr=0, momentum=self.optimizer.momentum)
        # On a GPU the first step is not like the others: it has no momentum yet.
        epochs = 1 if self.device == "cpu" else 2
        fit(model, few, few, epochs=epochs, batch_size=size, loss=self.loss, optimizer=optimizer)
        self._say(f"{time.perf_counter() - started:.1f} s")

    def _say(self, *lines, end="\n"):
        if not self.quiet:
            say(*lines, end=end)

    def _close_bar(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _resumed_options(given, saved, source):
    """The options a checkpoint was trained with, and of the flags given those that may differ from them."""
    options = dict(saved.options)
    for name in ("size", "fingerprint"):        # which the first checkpoints do not have
        options.setdefault(name, OTHERS[name])
    if saved.optimizer is None or set(options) != {*OTHERS, *RECIPES["default"]}:
        raise ValueError(f"--resume: {source} was not written by this command and does not say how it was trained")
    if saved.progress.epoch and saved.progress.best_accuracy is None:
        raise ValueError(f"--resume: {source} was not written by this command: it has finished epochs, but no best accuracy")
    optional = [name for name, default in OTHERS.items() if default is None]
    try:        # by the rules for those on the command line, and as the types there
        options.update(_parser().options([_argument(name, value) for name, value in options.items()
                                          if name != "fingerprint" and not (name in optional and value is None)]))
    except ValueError as error:
        raise ValueError(f"--resume: {source} was written with options that do not exist: {error}") from None
    for name, value in given.items():
        longer = name == "epochs" and options["schedule"] == "constant" and value >= saved.progress.epoch
        same = (name, value) == ("dataset", "auto") or (name in options and value == options[name])
        if not (same or longer or name in FREE):
            reason = f", which its {options['schedule']} schedule is laid out for" if name == "epochs" else ""
            raise ValueError(f"{flag(name)} {value} contradicts {source}, trained with {options[name]}{reason}")
        if name in options and value != "auto":
            options[name] = value
    return options


def _argument(name, value):
    """An option and its value as one argument."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)}={value}"


def _found(name):
    """The function that makes the network of a name."""
    try:
        return models.find(name)
    except ValueError as error:
        raise ValueError(f"--model {name}: {error}") from None


def _network(maker, options, train_set):
    """The network that was asked for, with what the pictures say of it."""
    shape, mean, std = train_set.images.shape[1:], None, None
    if options["normalize"]:
        mean, std = MEAN_STD.get(train_set.name) or _mean_std(train_set.images)
    classes = train_set.classes
    try:
        model = models.make(maker, input_shape=shape, mean=mean, std=std, classes=classes, seed=options["seed"])
        outputs = model.output_shape(model.input_shape or shape)
        if outputs != (len(classes),):
            raise ValueError(f"expected {len(classes)} outputs, one for each class of the pictures, got outputs of shape {outputs}")
        if model.mean is not None or model.std is not None:
            mean, std = model.mean, model.std
        # What its function has left open; and it is known that a checkpoint can be loaded again before there is one.
        model = Sequential.from_structure(
            model.structure(), model.state_dict(), input_shape=model.input_shape or shape, mean=mean, std=std,
            classes=model.classes or classes, seed=model.seed, dtype=model.dtype)
        if model.input_shape != shape:
            hint = " (see --size)" if train_set.name == "folder" else ""
            raise ValueError(f"expected a network for the pictures' {shape}{hint}, got one for {model.input_shape}")
        if model.classes != classes:
            raise ValueError(f"expected the classes of the pictures, {', '.join(classes)}, got {', '.join(model.classes)}")
        model.table(shape[0])       # mean and std fit
    except ValueError as error:
        raise ValueError(f"--model {options['model']}: {error}") from None
    return model


def _fingerprint(dataset):
    """A CRC-32 of pictures and labels."""
    return zlib.crc32(dataset.labels, zlib.crc32(dataset.images))


def _mean_std(images):
    """Mean and standard deviation of each channel, in units of the pixel range [0, 1]."""
    counts = np.zeros((images.shape[1], 256))
    for start in range(0, len(images), 100):        # counting takes eight times the memory of what it counts
        counts += [np.bincount(channel.reshape(-1), minlength=256) for channel in images[start:start + 100].swapaxes(0, 1)]
    share = counts / counts[0].sum()
    mean = share @ np.arange(256)
    variance = share @ np.arange(256)**2 - mean**2
    return (mean / 255).tolist(), np.sqrt(variance.clip(1) / 255**2).tolist()


def _new_folder(path):
    """Make a folder that was not there, with a number behind its name if need be."""
    for k in range(1, 1000):
        folder = path if k == 1 else path.with_name(f"{path.name}-{k}")
        if files.make_folder(folder):
            return folder
    raise ValueError(f"--out: {path} and 998 numbered ones are taken")


def _holds(path, content):
    """Whether there is a file with this content."""
    return path.is_file() and path.read_bytes() == content


def _read_metrics(path, epochs):
    """The rows of a metrics.csv up to an epoch."""
    try:
        files.require_file(path)
        if os.stat(path).st_size > LONGEST_METRICS:
            raise ValueError
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["epoch"]) <= epochs]
        if reader.fieldnames != COLUMNS or any(None in row or None in row.values() for row in rows):
            raise ValueError
        return rows
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}; move it away to go on without it") from None


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def list_models():
    """A table of the networks that --model knows by name."""
    rows = [[name, f"{sum(parameter.size for parameter in make().parameters()):,}", make.__doc__.splitlines()[0].replace("`", "")]
            for name, make in models.MODELS.items()]
    return format_table(["model", "parameters", ""], rows) + "\n\nOr yours: module:function or FILE.py:function"


def _parser():
    parser = cli.Parser(
        NAME, "Train a convolutional network: on CIFAR-10 where its files are at hand, else on built-in pictures.",
        """\
  nbcnn train                                                  the small network of the tutorials, about half a minute
  nbcnn train --recipe tutorial --data-dir ~/cifar10           SGD lr 0.01, batch 64, 20 epochs
  nbcnn train --model net.py:make --epochs 10                  the Sequential that make() in net.py returns
  nbcnn train --dataset folder --data-dir pets --size 32       pictures in pets/train/cat/..., pets/test/cat/...
  nbcnn train --config run.toml --lr 0.01                      options from a file, and one that wins over it
  nbcnn train --resume runs/.../last.safetensors               go on after Ctrl-C, with the same bits""",
        "0 done, 2 cannot be done, 3 loss not finite, 130 Ctrl-C, 143 SIGTERM; after either of these --resume goes on, "
        "unless training had not begun")

    def add(name, text, **arguments):
        dest = name[2:].replace("-", "_")
        if dest in OTHERS:
            default = OTHERS[dest]
            text += "" if default is None else f" (default: {default})"
        elif dest in RECIPES["default"]:
            values = {recipe: rest[dest] for recipe, rest in RECIPES.items()}
            if dest == "epochs":
                values["default"] = ", ".join(f"{count} for {dataset}" for dataset, count in EPOCHS.items())
            text += f" (recipe {'; '.join(f'{recipe}: {_text(value)}' for recipe, value in values.items())})"
        parser.add(name, text, **arguments)

    add("--recipe", "values for all flags below that name a recipe; a flag given wins", choices=list(RECIPES))
    add("--dataset", "auto: CIFAR-10 where --data-dir holds it, else shapes", choices=["auto", *datasets.DATASETS])
    add("--data-dir", "folder with the CIFAR-10 batches, or its parent; with --dataset folder the one that holds train and test",
        metavar="DIR")
    add("--size", "pictures of --dataset folder are scaled to N x N", type=whole(2, 65_535), metavar="N")
    parser.add_max_pixels()
    add("--split", "pictures to train on; test is for comparison with tutorials that do so", choices=["train", "test"])
    add("--model", "network: a name of --list-models, or module:function or FILE.py:function that returns a nbcnn.Sequential; it "
                   "is called with those of input_shape, mean, std, classes and seed that it has parameters for", metavar="NAME")
    add("--epochs", "passes over the training pictures", type=whole(1), metavar="N")
    add("--batch-size", "pictures per step", type=whole(1), metavar="N")
    add("--lr", "learning rate, with a schedule the largest", type=number(), metavar="RATE")
    add("--schedule", "how it changes from step to step; step: a tenth after each third of the run", choices=list(SCHEDULES))
    add("--momentum", "momentum", type=number(), metavar="M")
    add("--nesterov", "Nesterov's momentum", action=argparse.BooleanOptionalAction)
    add("--weight-decay", "weight decay", type=number(), metavar="D")
    add("--loss", "mse and l1 compare with one-hot rows, so does bce after a sigmoid", choices=list(LOSSES))
    add("--label-smoothing", "for cross_entropy", type=number(1), metavar="E")
    add("--augment", "mirror pictures and shift batches at random", action=argparse.BooleanOptionalAction)
    add("--normalize", "subtract a mean and divide by a standard deviation; else pixels are in [0, 1]",
        action=argparse.BooleanOptionalAction)
    add("--shuffle", "a new order every epoch", action=argparse.BooleanOptionalAction)
    add("--seed", "of initial values, order and augmentation", type=whole(0, math.inf), metavar="N")
    parser.add_device("where to train; a run may go on on another device")
    add("--out", "folder for config.json, metrics.csv, last.safetensors and best.safetensors; it must not hold a run yet "
                 "(default: a new runs/DATE-TIME-DATASET-MODEL, with --resume the checkpoint's folder)", metavar="DIR")
    add("--save-every", "also keep epoch-N.safetensors every so many epochs", type=whole(1), metavar="N")
    add("--resume", "go on from a checkpoint, with its options; others may be given only where they do not contradict them",
        metavar="FILE")
    add("--quiet", "only a line per epoch", action="store_true")
    add("--profile", "at the end print what each kernel of the training steps took, tests left out: milliseconds, share, GFLOP/s "
                     "and share of the measured peak; changes no result", action="store_true")
    parser.add_config()
    parser.add_lists(models=list_models)
    return parser


def _text(value):
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


if __name__ == "__main__":
    sys.exit(main())
