"""`nbcnn train`, or `python -m nbcnn.train`: train a network and keep what it learned; --help lists the options.

Here are the options and the messages. What the options mean is in `recipes.py`, what a run keeps in `run_folder.py`, and the
training loop is `nbcnn.fit`.
"""
import argparse
import contextlib
import copy
import importlib.util
import math
import platform
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np

import nbcnn
from nbcnn import cli, datasets, models, optim, recipes
from nbcnn.checkpoint import Checkpoint
from nbcnn.cli import number, paint, say, tell, whole
from nbcnn.files import about
from nbcnn.find_lr import find_lr
from nbcnn.fit import NonFiniteLoss, fit, total_steps
from nbcnn.interrupts import StopSignals
from nbcnn.kernels.cpu.unit import unit_in_use
from nbcnn.losses import LOSSES
from nbcnn.memory import set_max_memory
from nbcnn.precision import why_not_bfloat16
from nbcnn.progress import Progress, ProgressBar, epoch_line
from nbcnn.recipes import RECIPES, SCHEDULES
from nbcnn.run_folder import Events, RunFolder, read_config
from nbcnn.table import fill
from nbcnn.threads import ThreadTrial

NAME = "nbcnn train"
UNBALANCED = 3      # a class with more than so many times the images of another is worth a hint
FEW_STEPS = 100     # after which a loss may still be what guessing gives


def main(argv=None):
    """Train, and return the exit status."""
    return cli.run(NAME, _main, argv)


def _main(argv):
    run = Run(_parser().options(argv))
    try:
        return run.find_lr() if run.range_test else run.train()
    except NonFiniteLoss as error:
        last = run.folder.last
        kept = f"{last} is the last good checkpoint" if last.exists() else "there was no checkpoint yet"
        return cli.fail(NAME, f"{error}. Training has stopped; {kept}. A smaller --lr usually helps.", 3)
    finally:
        run.leave()


class Run:
    """One run of the command. The constructor finds whatever is wrong with its options, before anything is trained."""

    def __init__(self, given):
        self.quiet, self.profile = given.pop("quiet", False), given.pop("profile", False)
        self.range_test = given.pop("find_lr", False)
        self.board = given.pop("tensorboard", None)     # "" stands for a folder in the run's
        if self.board is not None and importlib.util.find_spec("tensorboardX") is None:
            raise ImportError("--tensorboard needs the extra tensorboard: python -m pip install tensorboardX tensorboard crc32c")
        out, source, max_pixels = given.pop("out", None), given.pop("resume", None), given.pop("max_pixels", None)
        set_max_memory(given.pop("max_memory", None))
        self.device, self.device_why = cli.choose_device(given.pop("device", "cpu"))
        if self.profile and self.device != "cpu":
            raise ValueError("--profile: expected --device cpu, whose kernels it measures; bench/gpu.py measures those of a GPU")
        self.source = saved = start = None
        self.remark = ""        # on the weights that a new run begins with
        if source is not None:
            if "init_from" in given:
                raise ValueError("--init-from: expected without --resume, which goes on with all of a run; choose one")
            self.source = Path(cli.checkpoint_file(source, "last.safetensors"))
            saved = cli.load_checkpoint(self.source, given.get("model"))
            o = recipes.resumed_options(given, saved, self.source, _parser().options)
            self.checkpoint = replace(saved, options=o)      # of this run, as it stands
        elif "init_from" in given:
            given["init_from"] = cli.checkpoint_file(given["init_from"])
            start = cli.load_checkpoint(given["init_from"], given.get("model"))
            start.averaged()
            o = recipes.started_options(given, start)
            self.checkpoint = Checkpoint(None, None, Progress(), o)
        else:
            o = recipes.new_options(given)
            self.checkpoint = Checkpoint(None, None, Progress(), o)
            with about(f"--model {o['model']}"):
                maker = models.find(o["model"])     # before images are read, which takes long
        if o["loss"] != "cross_entropy":
            if o["label_smoothing"]:
                raise ValueError(f"--label-smoothing: expected 0 with --loss {o['loss']}, got {o['label_smoothing']}")
            if o["class_weights"] != "none":
                raise ValueError(f"--class-weights: expected none with --loss {o['loss']}, got {o['class_weights']}")
        cli.set_threads(o["threads"])
        self.train_set, self.val_set, self.test_set, self.why = recipes.load_datasets(o, self.source, saved, max_pixels)
        self.bar = ProgressBar(len(self.train_set), self.quiet)
        balanced = o["class_weights"] == "balanced"
        with about("--class-weights balanced"):
            self.loss = cli.make_loss(o, datasets.class_weights(self.train_set) if balanced else None)
        self.batches = len(self.train_set) // o["batch_size"] if o["drop_last"] else -(-len(self.train_set) // o["batch_size"])
        if not self.batches:
            raise ValueError(f"--drop-last: expected a batch of at most the {len(self.train_set)} images, got {o['batch_size']}")
        if (step := self.checkpoint.progress.step) > self.batches:
            raise ValueError(f"--resume: {self.source} is {step} batches into an epoch, but these images make "
                             f"only {self.batches}")
        self.total = total_steps(o["epochs"], self.batches)
        self.schedule = SCHEDULES[o["schedule"]](o["lr"], self.total)
        if start:
            self.checkpoint.model, self.remark = recipes.started_network(start, o, self.train_set)
        elif not self.source:
            self.checkpoint.model = recipes.make_network(maker, o, self.train_set)
        model = self.checkpoint.model
        if not self.source:
            self.checkpoint.optimizer = recipes.make_optimizer(model, o, self.total)
            self.checkpoint.ema = o["ema"] and optim.EMA(model, o["ema"])
        recipes.scheduled(self.checkpoint.optimizer, self.total)
        names, self.freeze = [name for name, _ in model.named_parameters()], cli.frozen_after(o["freeze"]) if o["freeze"] else {}
        if unknown := [name for name in self.freeze if name not in names]:
            raise ValueError(f"--freeze: expected names of parameters, {', '.join(names)}, got {unknown[0]}")
        if o["augment"]:
            with about("--augment"):
                datasets.Loader(self.train_set, 1, augment=True, **recipes.augmentation(o))
        model.to(self.device)
        if o["precision"] == "bf16" and "precision" not in given and (reason := why_not_bfloat16(model)):
            raise ValueError(f"--resume: {self.source} was trained with bf16, and {reason}; a new run may begin with its weights: "
                             f"--init-from {shlex.quote(str(self.source))}")
        self.precision_why = ""
        if o["precision"] != "f32":
            unit_in_use()       # raises where NBCNN_UNIT names none of this processor's
        if o["precision"] != "auto":
            o["precision"], self.precision_why = cli.precision_of(o, model, o["batch_size"])
        self.trial = self.events = None
        self.signals = StopSignals(self.leave)
        self.folder = RunFolder(out, o, self.source, saved)

    def leave(self):
        """Unlock the folder, and handle signals as before."""
        try:
            if self.events:
                self.events.close()
        finally:
            self.folder.close()
            self.signals.restore()

    def train(self):
        """Train to the end or until a signal, and return the exit status."""
        o = self.checkpoint.options
        self.signals.listen()
        self._introduce_data(o)
        self._choose_precision()
        precision = cli.precision_name(o["precision"], self.checkpoint.model)
        unit = unit_in_use() if precision == "bf16" else None
        before = read_config(self.source.parent).get("unit") if self.source else None       # which is written anew below
        self.folder.open()
        if self.board is not None:
            self.events = Events(self.board, self.folder)
        self.folder.write_config({
            "options": o, "device": self.device, "precision": precision, "unit": unit,
            "train_pictures": len(self.train_set), "test_pictures": len(self.test_set),
            "versions": {"nbcnn": nbcnn.__version__, "numba": numba.__version__, "numpy": np.__version__,
                         "python": platform.python_version()}})
        self._introduce(o, precision, unit, before)
        try:
            self._compile()
            self.trial = ThreadTrial()
            self.signals.training = True
            done = fit(self.checkpoint.model, self.train_set, self.test_set, epochs=o["epochs"], batch_size=o["batch_size"],
                       loss=self.loss, optimizer=self.checkpoint.optimizer, schedule=self.schedule, shuffle=o["shuffle"],
                       augment=recipes.augmentation(o), seed=o["seed"], progress=self.checkpoint.progress,
                       on_step=self._on_step, val=self.val_set, on_epoch=self._on_epoch, profile=self.profile, verbose=0,
                       clip_norm=o["clip_norm"], ema=self.checkpoint.ema, freeze=self.freeze, patience=o["patience"],
                       views=o["views"], drop_last=o["drop_last"], precision=o["precision"])
            self.checkpoint.progress = progress = done.progress
            if self.signals.number:
                self.folder.save_last(self.checkpoint)
        finally:
            self.bar.close()
            if self.trial:
                self.trial.stop()
            self.signals.restore()
        if self.signals.number:
            own = f" --model {shlex.quote(o['model'])}" if self.checkpoint.model.own_layers() else ""
            own += f" --tensorboard {shlex.quote(str(self.events.path))}" if self.events else ""
            tell(f"stopped: {self._where()}. To go on:", 9,
                 f"python -m nbcnn.train --resume {shlex.quote(str(self.folder.last))}{own}")
        else:
            best = f" as {self.folder.best.name}" if self.folder.best.exists() else ""
            chosen = "validation" if self.val_set else "test"
            tell(f"done: {chosen} accuracy at best {progress.best_accuracy:.2%} after epoch {progress.best_epoch}, "
                 f"kept in {self.folder.path}{best}", 6)
        if self.profile:
            say("", *str(done.profile).split("\n"))
        return 128 + self.signals.number if self.signals.number else 0

    def find_lr(self):
        """Say how the loss changes with the learning rate, and return the exit status. Nothing is kept."""
        o = self.checkpoint.options
        self._choose_precision()
        found = find_lr(self.checkpoint.model, self.train_set, batch_size=o["batch_size"], loss=self.loss,
                        make_optimizer=lambda model: recipes.make_optimizer(model, o, self.total), seed=o["seed"],
                        augment=recipes.augmentation(o), shuffle=o["shuffle"], clip_norm=o["clip_norm"], drop_last=o["drop_last"],
                        precision=o["precision"])
        say(*str(found).split("\n"))
        return 0

    def _choose_precision(self):
        """Let a measurement decide what --precision auto leaves open: what is resumed goes on with it."""
        o = self.checkpoint.options
        if o["precision"] == "auto":
            if not why_not_bfloat16(self.checkpoint.model):
                self._say("numbers  auto: compiling and measuring some steps with bf16 and with f32 ...")
            o["precision"], self.precision_why = cli.precision_of(o, self.checkpoint.model, o["batch_size"], self.loss)

    def _introduce_data(self, o):
        """Say what images there are and how they are learned."""
        if o["split"] == "test":
            cli.remark("WARNING", "--split test trains on the TEST images, as some tutorials do. The test accuracy below is "
                                  "measured on the very images trained on: it does not say how well the network does on others.",
                       "yellow")
        val = f"{len(self.val_set):,} to validate, " if self.val_set else ""
        self._say(f"data     {self.train_set.name}: {len(self.train_set):,} images to train, {val}{len(self.test_set):,} to test; "
                  f"{self.why}")
        if self.device_why:
            self._say(f"device   {self.device}: {self.device_why}")
        self._say(f"recipe   {o['recipe']}: epochs {o['epochs']}, batches per epoch {self.batches}, "
                  f"images per batch {o['batch_size']}")

    def _introduce(self, o, precision, unit, unit_before):
        """Say what is about to be trained."""
        if self.precision_why or precision == "bf16":
            on = f" on the unit {unit}" if unit else ""
            self._say(f"numbers  {precision}{on}{self.precision_why and f': {self.precision_why}'}")
        if unit and unit_before and unit != unit_before:
            self._say(f"unit     {unit_before} until now, whose last digits are others")
        self._say(f"folder   {self.folder.path}")
        if o["init_from"]:
            self._say(f"weights  from {o['init_from']}{self.remark}")
        if self.events:
            self._say("events   to be seen with:", f"tensorboard --logdir {shlex.quote(str(self.events.path))}")
        if self.source:
            self._say(f"resume   {self.source}: {self._where()}")
        classes = self.train_set.classes
        counts = np.bincount(self.train_set.labels, minlength=len(classes))
        if counts.max() > UNBALANCED * counts.min() and not self.quiet:
            most, fewest = (f"{counts[k]:,} of {classes[k]}" for k in (counts.argmax(), counts.argmin()))
            self._hint(f"there are {most} and {fewest} to train with, more than {UNBALANCED} to 1. A high accuracy may hide that "
                       "small classes are not found: nbcnn evaluate shows the recall of each. More images of them help, or "
                       "--class-weights balanced.")
        if not self.quiet:
            say("", *self.checkpoint.model.summary().split("\n"), "")

    def _compile(self):
        """Train a copy of the model on one batch, so that no epoch's time includes the compiler's."""
        if not self.quiet:
            cli.put("compiling kernels ...", end=" ")
        started, size = time.perf_counter(), min(self.checkpoint.options["batch_size"], 64)
        few = datasets.Dataset(self.train_set.images[:size], self.train_set.labels[:size], self.train_set.classes, "few")
        model = copy.deepcopy(self.checkpoint.model).to(self.device)
        optimizer = recipes.make_optimizer(model, self.checkpoint.options, 1)
        # On a GPU the first step is not like the others: it has no momentum yet.
        epochs = 1 if self.device == "cpu" else 2
        with contextlib.suppress(NonFiniteLoss):        # of a few images; the run will say so of all
            fit(model, few, few, epochs=epochs, batch_size=size, loss=self.loss, optimizer=optimizer, augment=False, verbose=0,
                schedule=lambda k: 0.0, precision=self.checkpoint.options["precision"])
        if self.events:
            self.events.prepare(model, few.images)
        self._say(f"{time.perf_counter() - started:.1f} s")

    def _on_step(self, state):
        self.bar.show(state)
        state.stop = self.signals.number is not None
        if self.device == "cpu":
            self.trial.step()

    def _on_epoch(self, state):
        self.bar.close()
        self.checkpoint.progress, metrics = state.progress, state.history[-1]
        self.folder.save_epoch(metrics, self.checkpoint)
        if self.events:
            self.events.write(state, self.train_set)
        cli.put(epoch_line(state, lambda text: paint(text, "bold", sys.stdout)))
        if self.trial.hint:
            self._hint(self.trial.hint)
            self.trial.hint = ""
        guessing = math.log(len(self.train_set.classes))
        shows = self.checkpoint.options["loss"] == "cross_entropy" and self.checkpoint.progress.epoch * self.batches >= FEW_STEPS
        if shows and guessing and -0.005 < metrics["train_loss"] - guessing < 0.02:
            self._hint(f"the loss stays at {guessing:.4f} = ln({len(self.train_set.classes)}), which is what guessing gives. "
                       "Another --lr (ten times smaller, or larger) or --normalize may get it going.")
        state.stop = self.signals.number is not None

    def _hint(self, text):
        first, *more = fill(f"hint: {cli.printable(text)}", 6)
        cli.put("\n".join([first.replace("hint:", paint("hint:", "yellow", sys.stdout), 1), *more]))

    def _where(self):
        p = self.checkpoint.progress
        within = f", {p.step} of {self.batches} batches of the next" if p.step else ""
        return f"{p.epoch} of {self.checkpoint.options['epochs']} epochs done{within}"

    def _say(self, text, command=""):
        if not self.quiet:
            tell(text, 9, command)


def _parser():
    parser = cli.Parser(
        NAME, "Train a convolutional network: on CIFAR-10 where its files are at hand, else on built-in images.",
        """\
  nbcnn train                                          the tutorials' network
  nbcnn train --recipe tutorial --data-dir ~/cifar10   SGD lr 0.01, 20 epochs
  nbcnn train --model net.py:make --epochs 10          make() in net.py
  nbcnn train --dataset folder --data-dir pets         images in pets/train/...
  nbcnn train --config run.toml --lr 0.01              options from a file
  nbcnn train --resume latest                          go on after Ctrl-C
  nbcnn train --init-from latest --lr 0.001            a new run from weights""",
        "0 done, 2 cannot be done, 3 loss not finite, 130 Ctrl-C, 143 SIGTERM; after the last two --resume goes on, if "
        "training had begun")

    def add(name, text, **arguments):
        parser.add(name, text + recipes.default_text(name[2:].replace("-", "_")), **arguments)

    add("--recipe", "values for all flags below that name a recipe; a flag given wins", choices=list(RECIPES))
    add("--dataset", "auto: CIFAR-10 where --data-dir holds it, else shapes; or one of --list-datasets", metavar="NAME",
        choices=["auto", *datasets.DATASETS])
    add("--data-dir", "folder with the data set's files, or its parent; with --dataset folder the one that holds train and test",
        metavar="DIR")
    add("--size", "scale images to N x N (default: the data set's; 32 for folder)", type=whole(2, 65_535), metavar="N")
    add("--channels", "1 for grey, 3 for colours (default: the data set's; 3 for folder)", type=whole(1), choices=[1, 3])
    parser.add_max_pixels()
    parser.add_skip_broken()
    add("--split", "images to train on; test is for comparison with tutorials that do so", choices=["train", "test"])
    add("--val-share", "part of the training images, from 0 to 0.9, that is not trained on: the best epoch is chosen with it, not "
                       "with the test images; a folder may have val/CLASS/... for this", type=number(0.9), metavar="P")
    add("--model", "network: a name of --list-models, or module:function or FILE.py:function that returns a nbcnn.Sequential or "
                   "Network; it is called with those of input_shape, mean, std, classes and seed that it has parameters for",
        metavar="NAME")
    add("--epochs", "passes over the training images; of 9.9 the last is nine tenths of one", type=cli.epochs, metavar="N")
    add("--batch-size", "images per step", type=whole(1), metavar="N")
    add("--lr", "learning rate; the largest one where the schedule changes it", type=number(), metavar="RATE")
    add("--find-lr", "train nothing, but say how the loss changes in 100 steps with ever larger learning rates, and which one it "
                     "would take", action="store_true")
    add("--schedule", f"how the learning rate changes: {', '.join(SCHEDULES)}. step divides it by ten after each third of the run, "
                      "multistep after the half and after three quarters; triangle is that of airbench94", choices=list(SCHEDULES),
        metavar="NAME")
    add("--optimizer", "what updates the parameters", choices=list(recipes.OPTIMIZERS))
    add("--momentum", "of sgd, from 0 to 1", type=number(1), metavar="M")
    add("--nesterov", "Nesterov's momentum, of sgd", action=argparse.BooleanOptionalAction)
    add("--weight-decay", "weight decay", type=number(), metavar="D")
    add("--norm-bias-lr", "how many times as fast batch norm's biases learn", type=number(), metavar="F")
    add("--lookahead", "every N steps draw the parameters back to a slow copy that follows them; 0 for none", type=whole(0),
        metavar="N")
    add("--clip-norm", "the largest norm of all gradients together", type=cli.positive(), metavar="N")
    add("--ema", "test and keep a moving average of the parameters that holds to this part of itself in a step, as 0.999",
        type=number(1), metavar="D")
    add("--freeze", "parameters that stay as they are after some epochs, with commas between", type=cli.freeze,
        metavar="NAME:EPOCHS")
    add("--patience", "stop after N epochs that were not better than the best before", type=whole(1), metavar="N")
    add("--loss", "mse and l1 compare outputs with one-hot rows; bce does so after a sigmoid", choices=list(LOSSES))
    add("--label-smoothing", "for cross_entropy", type=number(1), metavar="E")
    add("--class-weights", "for cross_entropy; balanced: each class counts as much as any other", choices=["none", "balanced"])
    add("--augment", "mirror and shift images at random; not for mnist unless given", action=argparse.BooleanOptionalAction)
    add("--flip", "probability that an image is mirrored, or alternate: one half of them in the first epoch, the other in the next",
        type=cli.flip, metavar="P")
    add("--shift", "the most pixels that images move along each axis", type=whole(0), metavar="N")
    add("--shift-per", "whether all images of a batch move together", choices=["batch", "image"])
    add("--border", "what fills the gap", choices=["zero", "reflect"])
    add("--cutout", "side of a square in each image that becomes 0", type=whole(0), metavar="N")
    add("--drop-last", "leave out a last batch with fewer images", action=argparse.BooleanOptionalAction)
    add("--views", "the last test averages over 1, 2 (also mirrored) or 6 (also moved) views of an image", type=int,
        choices=[1, 2, 6])
    add("--normalize", "subtract a mean and divide by a standard deviation; else pixels are in [0, 1]",
        action=argparse.BooleanOptionalAction)
    add("--shuffle", "a new order every epoch", action=argparse.BooleanOptionalAction)
    add("--seed", "seed of the initial values, the order and the augmentation", type=whole(0, math.inf), metavar="N")
    parser.add_precision(recipes.default_text("precision"))
    parser.add_device("where to train; a run may be resumed on another device")
    add("--out", "folder for config.json, metrics.csv, last.safetensors and best.safetensors; it must not hold a run yet "
                 "(default: a new runs/DATE-TIME-DATASET-MODEL, with --resume the checkpoint's folder)", metavar="DIR")
    add("--save-every", "also keep epoch-N.safetensors after every N-th epoch", type=whole(1), metavar="N")
    add("--resume", "go on from a checkpoint, with its options; options given with it must not contradict these. Or a folder "
                    "with last.safetensors, or latest: the newest in runs/", metavar="FILE")
    add("--init-from", "begin a new run with the network and the weights of a checkpoint, a folder with best.safetensors, or "
                       "latest; the last layer begins anew where the classes are others", metavar="FILE")
    add("--tensorboard", "write curves, histograms, images and the graph for TensorBoard, by default into tensorboard in the run's "
                         "folder; to be given with --resume again; needs the extra tensorboard", nargs="?", const="",
        metavar="DIR")
    add("--quiet", "only a line per epoch", action="store_true")
    add("--profile", "at the end print what each kernel of the training steps took, without tests: milliseconds, share, GFLOP/s "
                     "and share of the measured peak; changes no result", action="store_true")
    parser.add_config()
    parser.add_lists(models=cli.list_models)
    return parser


if __name__ == "__main__":
    sys.exit(main())
