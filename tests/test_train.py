"""The command line: its files, its messages and exit statuses, and that no training is ever lost."""
import csv
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from PIL import Image

import nbcnn
from nbcnn import checkpoint, cli, models, optim, predict, recipes, run_folder, train
from nbcnn.datasets import Dataset, choice
from nbcnn.evaluate import __main__ as evaluate
from nbcnn.fit import fit
from nbcnn.losses import CrossEntropyLoss
from nbcnn.threads import ThreadTrial

CLASSES = [f"class{k}" for k in range(10)]


def images(count, seed, size=32):
    """Images of size x size pixels, of one colour per class: easy to tell apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = rng.integers(0, 60, (count, 3, size, size)) + 150 * (labels[:, None] >> np.arange(3) & 1)[:, :, None, None]
    return Dataset(images.astype(np.uint8), labels, CLASSES, "shapes")


SMALL = images(40, 0), images(20, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small images instead of the built-in ones, in a folder of the test's own; one thread is faster for so little."""
    monkeypatch.setattr(choice, "shapes", lambda: SMALL)
    monkeypatch.setenv("COLUMNS", "200")        # no message goes on in another line
    monkeypatch.chdir(tmp_path)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield tmp_path
    numba.set_num_threads(threads)


def run(*arguments):
    return train.main(["--batch-size", "16", *map(str, arguments)])


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def untimed(folder):
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_second")} for row in rows(folder)]


def fails(capsys, *arguments, status=2):
    """Run a command that must end in one line on stderr; return it."""
    capsys.readouterr()
    assert train.main([str(argument) for argument in arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("nbcnn train: ") and error.count("\n") == 1 and error.endswith("\n")
    return error


# ---- a run ----

def test_a_run_tells_what_it_does_and_writes_its_files(small, capsys):
    assert run("--epochs", 3, "--out", "run", "--save-every", 2) == 0
    out, err = capsys.readouterr()
    assert "shapes: 40 images to train, 20 to test; built in, as there is no CIFAR-10 in data" in out
    assert "recipe   default: epochs 3, batches per epoch 3, images per batch 16\nfolder   run\n" in out
    assert "conv3" in out and "145,578" in out and out.count("compiling kernels") == 1 and err == ""
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3 and "test loss" in lines[0] and "images/s" in lines[0]
    assert sorted(os.listdir("run")) == ["best.safetensors", "config.json", "epoch-2.safetensors", "last.safetensors",
                                         "metrics.csv"]

    text = (small / "run" / "metrics.csv").read_text()
    assert text.splitlines()[0] == "epoch,lr,train_loss,test_loss,test_accuracy,images_per_second,seconds"
    table = rows(small / "run")
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert all(0 <= float(row["test_accuracy"]) <= 1 and float(row["images_per_second"]) > 0 for row in table)
    last, best = checkpoint.load("run/last.safetensors"), checkpoint.load("run/best.safetensors")
    assert (last.progress.epoch, last.progress.step, last.model.classes) == (3, 0, CLASSES)
    accuracies = [float(row["test_accuracy"]) for row in table]
    assert best.progress.best_accuracy == last.progress.best_accuracy == max(accuracies)
    assert best.progress.epoch == best.progress.best_epoch == accuracies.index(max(accuracies)) + 1
    config = json.loads((small / "run" / "config.json").read_text())
    assert config["options"] == last.options and config["train_pictures"] == 40
    assert last.options["dataset"] == "shapes" and last.options["nesterov"] is True and last.options["lr"] == 0.02
    assert last.model.mean == [0.5] * 3 and float(table[-1]["lr"]) == pytest.approx(0.02 / 25e4)


def test_recipes_and_flags_that_override_them(small):
    assert run("--recipe", "tutorial", "--epochs", 1, "--lr", 0.25, "--out", "run", "--seed", 3, "--quiet") == 0
    found = checkpoint.load("run/last.safetensors")
    expected = dict(lr=0.25, momentum=0, weight_decay=0, nesterov=False, schedule="constant", augment=False, normalize=False,
                    shuffle=True, epochs=1, batch_size=16, seed=3)
    assert {name: found.options[name] for name in expected} == expected
    assert found.model.mean is None and found.optimizer.momentum == 0 and found.model.seed == 3
    assert recipes.RECIPES["tutorial"]["epochs"] == 20 and recipes.RECIPES["tutorial"]["batch_size"] == 64
    assert run("--epochs", 1, "--momentum", 0, "--no-normalize", "--no-augment", "--out", "other", "--quiet") == 0
    options = checkpoint.load("other/last.safetensors").options
    assert not options["nesterov"] and not options["normalize"] and not options["augment"] and options["weight_decay"] == 5e-4


def test_the_command_is_a_call_of_fit(small):
    assert run("--epochs", 2, "--seed", 5, "--lr", 0.04, "--label-smoothing", 0.1, "--out", "run", "--quiet") == 0
    model = models.cifar10_quick(mean=[0.5] * 3, std=[0.29] * 3, seed=5)
    optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    state = fit(model, *SMALL, epochs=2, batch_size=16, loss=CrossEntropyLoss(label_smoothing=0.1), optimizer=optimizer,
                schedule=optim.one_cycle(0.04, 6), augment=True, seed=5)
    assert (checkpoint.load("run/last.safetensors").model.vector.data == model.vector.data).all()
    assert [float(row["train_loss"]) for row in rows(small / "run")] == [row["train_loss"] for row in state.history]


@pytest.mark.parametrize("loss, schedule", [("mse", "constant"), ("l1", "step"), ("bce", "cosine"), ("cross_entropy", "step")])
def test_every_loss_and_schedule(small, loss, schedule):
    smoothing = ["--label-smoothing", 0.1] if loss == "cross_entropy" else []
    assert run("--epochs", 1, "--loss", loss, "--schedule", schedule, "--out", "run", "--quiet", *smoothing) == 0
    if loss != "cross_entropy":     # its logits are compared with the ten columns of a one-hot row
        assert float(rows(small / "run")[0]["test_loss"]) < 1


def test_it_learns(small):
    assert run("--epochs", 8, "--model", "cifar10_quick_relu", "--out", "run", "--quiet", "--no-augment") == 0
    first, *_, last = (float(row["test_loss"]) for row in rows(small / "run"))
    assert last < first - 0.4


def test_quiet_is_a_line_per_epoch(capsys):
    run("--epochs", 2, "--out", "run", "--quiet")
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["epoch", "epoch", "done:"] and err == ""


def test_a_progress_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run("--epochs", 2, "--out", "run")
    assert "epoch 1/2" in capsys.readouterr().err
    run("--epochs", 2, "--out", "other", "--quiet")
    assert capsys.readouterr().err == ""


def test_without_out_every_run_gets_a_new_folder(small, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "2031-02-03-040506")
    for _ in range(3):
        assert run("--epochs", 1, "--quiet") == 0
    name = "2031-02-03-040506-shapes-cifar10_quick"
    assert sorted(os.listdir("runs")) == [name, f"{name}-2", f"{name}-3"]
    assert all((small / "runs" / folder / "last.safetensors").exists() for folder in os.listdir("runs"))


def test_split_test_says_what_it_means(small, capsys):
    run("--split", "test", "--epochs", 1, "--out", "run", "--quiet")
    assert "WARNING: --split test trains on the TEST images" in capsys.readouterr().err
    assert checkpoint.load("run/last.safetensors").progress.epoch == 1
    assert json.loads((small / "run" / "config.json").read_text())["train_pictures"] == 20


def test_cifar10_is_taken_where_it_is_found(capsys, monkeypatch):
    train_set, test_set = (Dataset(part.images, part.labels, CLASSES, "cifar10") for part in SMALL)
    monkeypatch.setitem(choice.FILES, "cifar10", (lambda folder: ("mine/cifar-10-batches-bin", "binary"),
                                                  lambda folder: (train_set, test_set)))
    assert run("--epochs", 1, "--out", "run") == 0
    assert "cifar10: 40 images to train, 20 to test; found in mine/cifar-10-batches-bin" in capsys.readouterr().out
    found = checkpoint.load("run/last.safetensors")
    assert found.options["dataset"] == "cifar10" and found.model.mean == [0.4914, 0.4822, 0.4465]
    assert recipes.EPOCHS["cifar10"] == 16


def test_shapes_do_not_stand_in_for_images_that_are_not_where_somebody_says(capsys):
    assert "nowhere: no CIFAR-10 there" in fails(capsys, "--data-dir", "nowhere", "--quiet")


def test_threads(monkeypatch):
    chosen = []
    monkeypatch.setattr(ThreadTrial, "step", lambda self: None)
    monkeypatch.setattr(numba, "set_num_threads", chosen.append)
    assert run("--epochs", 1, "--out", "one", "--quiet") == 0 and chosen == []
    assert run("--epochs", 1, "--threads", 1, "--out", "other", "--quiet") == 0 and chosen == [1]


def test_a_hint_where_fewer_threads_are_faster(monkeypatch, capsys):
    monkeypatch.setattr(ThreadTrial, "step", lambda self: setattr(self, "hint", "with 1 thread"))
    run("--epochs", 2, "--out", "run")
    lines = capsys.readouterr().out.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("epoch 1/2"))
    assert lines[first + 1] == "hint: with 1 thread"


def test_a_hint_where_nothing_is_learned(monkeypatch, capsys):
    hint = f"hint: the loss stays at {math.log(10):.4f} = ln(10)"
    for few, said in ((1, True), (train.FEW_STEPS, False)):
        monkeypatch.setattr(train, "FEW_STEPS", few)
        run("--epochs", 1, "--lr", 0, "--out", f"run{few}", "--recipe", "tutorial")
        assert (hint in capsys.readouterr().out) == said
    monkeypatch.setattr(train, "FEW_STEPS", 1)
    run("--epochs", 1, "--lr", 0, "--out", "mse", "--recipe", "tutorial", "--loss", "mse")
    run("--epochs", 3, "--out", "learns", "--no-augment")
    assert hint not in capsys.readouterr().out


def test_a_hint_where_a_class_has_few_images(monkeypatch, capsys):
    for counts, hint in (((27, 9), False), ((28, 9), True), ((20, 0), True)):
        some = Dataset(SMALL[0].images[:sum(counts)], np.repeat([0, 1], counts), ["cat\x1b", "dog"], "shapes")
        monkeypatch.setattr(choice, "shapes", lambda some=some: (some, some))
        run("--epochs", 1, "--out", f"run{counts}")
        expected = f"hint: there are {counts[0]} of cat\\x1b and {counts[1]} of dog to train with, more than 3 to 1."
        assert (expected in capsys.readouterr().out) == hint


def profile_rows(out, first):
    """The rows of the table below a line that begins with `first`: by their first words, the numbers behind them."""
    lines = out.splitlines()
    below = lines[next(k for k, line in enumerate(lines) if line.startswith(first)) + 1:]
    return [line.split() for line in below[below.index("", 1) + 3:]]


def test_profile_prints_a_table_and_changes_no_bit(small, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("nbcnn.profile.Profile.start", None)      # nothing is measured
        assert run("--epochs", 2, "--out", "plain", "--quiet") == 0
    capsys.readouterr()
    assert run("--epochs", 2, "--out", "profiled", "--quiet", "--profile") == 0
    out = capsys.readouterr().out
    assert "\n\n6 training steps, 1 thread, measured peak " in out      # 40 images in batches of 16, twice
    table = profile_rows(out, "done: ")
    kernels = [row for row in table if row[0] not in ("everything", "total")]
    assert [row[0] for row in table[-2:]] == ["everything", "total"] and len(kernels) == len(table) - 2 and table[-1][2] == "100.0%"
    assert {row[0].split("+")[0] for row in kernels} == {"conv1", "conv2", "conv3", "flatten", "linear1", "linear2", "loss",
                                                         "optimizer"}
    # The tests are left out. Of 16 images, not of the last 8, the input gradient packs the weights; its name may be shortened.
    packs = [row for row in kernels if row[1].startswith("pack_w") and row[1].endswith("input")]
    assert packs and all(int(row[2]) == 4 if row in packs else int(row[2]) in (6, 12) for row in kernels)
    for name in ("last.safetensors", "best.safetensors", "config.json"):
        assert (small / "profiled" / name).read_bytes() == (small / "plain" / name).read_bytes()
    assert untimed(small / "profiled") == untimed(small / "plain")


# ---- TensorBoard ----

def events(folder):
    """What TensorBoard reads in a folder: {tag: [(step, number), ...]}, images as None, and how many graphs there are."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)
    pytest.importorskip("tensorboardX")
    read = accumulator.EventAccumulator(str(folder), {"images": 0}).Reload()
    return {**{tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]},
            **{tag: [(event.step, None) for event in read.Images(tag)] for tag in read.Tags()["images"]}}, read.Tags()["graph"]


def assert_metrics(folder, found):
    """The numbers of metrics.csv are there, each once; TensorBoard's are float32."""
    table = rows(folder)
    for tag, name in (("loss/train", "train_loss"), ("loss/test", "test_loss"), ("accuracy/test", "test_accuracy"), ("lr", "lr")):
        assert found[tag] == [(int(row["epoch"]), np.float32(row[name])) for row in table]


def test_tensorboard_shows_the_numbers_of_the_metrics(small, capsys):
    events(small)       # or skips
    assert run("--epochs", 2, "--out", "run", "--tensorboard") == 0
    assert "\nevents   to be seen with: tensorboard --logdir run/tensorboard\n" in capsys.readouterr().out
    found, graph = events("run/tensorboard")
    assert_metrics(small / "run", found)
    assert graph and [step for step, _ in found["filters/conv1"]] == [step for step, _ in found["gradient_norm/linear2"]] == [1, 2]
    assert run("--epochs", 2, "--out", "plain", "--quiet") == 0
    assert (small / "run" / "last.safetensors").read_bytes() == (small / "plain" / "last.safetensors").read_bytes()
    assert "run/tensorboard holds another run's events" in fails(capsys, "--tensorboard", "run/tensorboard")
    assert os.listdir("runs") == []


def test_tensorboard_goes_on_where_the_run_does(small, monkeypatch, capsys):
    events(small)
    (small / "run.toml").write_text('tensorboard = "curves"\nsave-every = 1')
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert run("--config", "run.toml", "--epochs", 3, "--out", "run") == 130
    assert capsys.readouterr().out.endswith("--resume run/last.safetensors --tensorboard curves\n")
    os.remove("run/last.safetensors")
    for source in ("epoch-1", "last"):      # the second one has nothing left to do
        assert train.main(["--resume", f"run/{source}.safetensors", "--tensorboard", "curves", "--quiet"]) == 0
    found, _ = events("curves")
    assert_metrics(small / "run", found)
    assert [step for step, _ in found["filters/conv1"]] == [1, 2, 3]
    # An old checkpoint, in another folder: the curves are whole there, the images begin with the epochs that were done there.
    assert train.main(["--resume", "run/epoch-2.safetensors", "--out", "fork", "--tensorboard", "--quiet"]) == 0
    found, _ = events("fork/tensorboard")
    assert_metrics(small / "fork", found)
    assert [step for step, _ in found["filters/conv1"]] == [3]
    # And in the same one, where the last two epochs are done again.
    for name in ("last", "epoch-3"):
        os.remove(f"run/{name}.safetensors")
    assert train.main(["--resume", "run/epoch-1.safetensors", "--tensorboard", "curves", "--quiet"]) == 0
    found, _ = events("curves")
    assert_metrics(small / "run", found)


def test_a_run_that_learned_nothing_leaves_no_events(small, monkeypatch, capsys):
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(train, "fit", broken)
    for folder in ([], ["curves"]):
        assert "broken" in fails(capsys, "--out", "run", "--tensorboard", *folder)
        assert not os.path.exists("run") and not os.path.exists("curves")


def test_tensorboard_without_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fails(capsys, "--tensorboard").endswith("--tensorboard needs the extra tensorboard: "
                                                   "python -m pip install tensorboardX tensorboard crc32c\n")


# ---- stopping and going on ----

def after_each_batch(monkeypatch, act):
    """Call `act` with the State after each batch of a training, before the command hears of the batch."""
    def watched(*arguments, on_step=None, **options):
        def both(state):
            act(state)
            on_step(state)
        return fit(*arguments, on_step=on_step and both, **options)
    monkeypatch.setattr(train, "fit", watched)


def stop_after(monkeypatch, batches, number=signal.SIGINT):
    """Send this process a signal in the middle of a batch."""
    count = [0]

    def interrupt(state):
        count[0] += 1
        if count[0] == batches:
            signal.raise_signal(number)
    after_each_batch(monkeypatch, interrupt)


def broken(*arguments, **options):
    """In the place of `fit`: nothing is learned."""
    raise ValueError("broken")


@pytest.mark.parametrize("batches, number, status", [(1, signal.SIGINT, 130), (4, signal.SIGTERM, 143), (6, signal.SIGINT, 130),
                                                     pytest.param(5, getattr(signal, "SIGHUP", 1), 129, marks=pytest.mark.skipif(
                                                         not hasattr(signal, "SIGHUP"), reason="needs SIGHUP"))])
def test_a_signal_saves_and_resume_ends_with_the_same_bits(small, signals, monkeypatch, capsys, batches, number, status):
    run("--epochs", 3, "--out", "whole", "--quiet")
    with monkeypatch.context() as patch:
        stop_after(patch, batches, number)
        assert run("--epochs", 3, "--out", "a run", "--quiet") == status
    assert capsys.readouterr().out.endswith("To go on: python -m nbcnn.train --resume 'a run/last.safetensors'\n")
    progress = checkpoint.load("a run/last.safetensors").progress
    assert 3 * progress.epoch + progress.step == batches
    assert train.main(["--resume", "a run/last.safetensors"]) == 0
    assert (small / "a run" / "last.safetensors").read_bytes() == (small / "whole" / "last.safetensors").read_bytes()
    assert untimed(small / "a run") == untimed(small / "whole")
    assert (small / "a run" / "best.safetensors").read_bytes() == (small / "whole" / "best.safetensors").read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_profile_of_what_a_signal_has_stopped_and_of_what_went_on(signals, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run("--epochs", 1, "--out", "run", "--quiet", "--profile") == 130
    out = capsys.readouterr().out
    assert "2 training steps, " in out and profile_rows(out, "stopped: ")[-1][0] == "total"
    for expected in ("\n1 training step, ", "\nno training step was profiled\n"):
        assert train.main(["--resume", "run/last.safetensors", "--quiet", "--profile"]) == 0
        assert expected in capsys.readouterr().out


def test_a_second_signal_ends_at_once(signals, monkeypatch):
    def twice(state):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    after_each_batch(monkeypatch, twice)
    assert run("--epochs", 1, "--out", "run", "--quiet") == 130 and not os.path.exists("run/last.safetensors")


@pytest.mark.parametrize("name", ["epoch-1", "epoch-2"])
def test_resume_from_any_epoch_into_another_folder(small, capsys, name):
    run("--epochs", 3, "--out", "whole", "--save-every", 1, "--quiet")
    before = {file.name: file.read_bytes() for file in (small / "whole").iterdir()}
    error = fails(capsys, "--resume", f"whole/{name}.safetensors")
    assert "last.safetensors is further" in error and "--out" in error
    assert train.main(["--resume", f"whole/{name}.safetensors", "--out", "fork"]) == 0
    assert f"resume   whole/{name}.safetensors: {name[-1]} of 3 epochs done" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in (small / "whole").iterdir()} == before
    for file in ("last.safetensors", "best.safetensors", "epoch-3.safetensors"):
        assert (small / "fork" / file).read_bytes() == before[file]
    assert untimed(small / "fork") == untimed(small / "whole")


@pytest.mark.parametrize("lost", [["epoch-3.safetensors"], ["epoch-3.safetensors", "best.safetensors", "last.safetensors"],
                                  ["epoch-2.safetensors", "epoch-3.safetensors", "best.safetensors"]])
def test_a_run_killed_between_two_files_goes_on(small, lost):
    """The files of an epoch are written one after the other: metrics.csv, last.safetensors, and those that are equal to it."""
    run("--epochs", 3, "--out", "whole", "--quiet", "--save-every", 1)
    shutil.copytree("whole", "killed")
    for name in lost:
        os.remove(f"killed/{name}")
    shutil.copy("whole/epoch-2.safetensors", "killed/last.safetensors")
    assert train.main(["--resume", "killed/last.safetensors", "--quiet"]) == 0
    assert untimed(small / "killed") == untimed(small / "whole") and len(untimed(small / "killed")) == 3
    assert {file.name for file in (small / "killed").iterdir()} == {file.name for file in (small / "whole").iterdir()}
    for file in (small / "whole").glob("*.safetensors"):
        assert (small / "killed" / file.name).read_bytes() == file.read_bytes()


def test_a_resumed_run_does_not_replace_a_better_best(small):
    """As when somebody has removed last.safetensors, and goes on from an old checkpoint."""
    run("--epochs", 3, "--out", "run", "--quiet", "--save-every", 1, "--no-augment")
    best = (small / "run" / "best.safetensors").read_bytes()
    found = checkpoint.load("run/epoch-1.safetensors")
    assert found.progress.best_epoch == 1 < checkpoint.load("run/best.safetensors").progress.epoch
    os.remove("run/last.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert train.main(["--resume", "run/epoch-1.safetensors", "--quiet"]) == 130
    assert (small / "run" / "best.safetensors").read_bytes() == best


def test_the_metrics_are_in_the_other_folder_before_its_first_checkpoint(small, monkeypatch):
    run("--epochs", 3, "--out", "whole", "--quiet", "--save-every", 1)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert train.main(["--resume", "whole/epoch-2.safetensors", "--out", "fork", "--quiet"]) == 130
    assert train.main(["--resume", "fork/last.safetensors", "--quiet"]) == 0
    assert untimed(small / "fork") == untimed(small / "whole")


def test_a_constant_rate_may_be_trained_on_with(small, capsys):
    run("--recipe", "tutorial", "--epochs", 3, "--out", "whole", "--quiet")
    run("--recipe", "tutorial", "--epochs", 1, "--out", "run", "--quiet")
    assert train.main(["--resume", "run/last.safetensors", "--epochs", "3", "--quiet"]) == 0
    assert (small / "run" / "last.safetensors").read_bytes() == (small / "whole" / "last.safetensors").read_bytes()
    assert "trained with 3; leave it out\n" in fails(capsys, "--resume", "run/last.safetensors", "--epochs", 2)


def test_resume_takes_flags_that_contradict_nothing(capsys):
    run("--epochs", 1, "--out", "run", "--quiet", "--seed", 4)
    assert train.main(["--resume", "run/last.safetensors", "--seed", "4", "--lr", "0.02", "--dataset", "auto", "--quiet",
                       "--threads", "1", "--data-dir", "elsewhere"]) == 0
    assert checkpoint.load("run/last.safetensors").options["dataset"] == "shapes"
    for flags, message in (
            (["--lr", 0.5], "--lr 0.5 contradicts run/last.safetensors, trained with 0.02"),
            (["--seed", 5], "--seed 5 contradicts run/last.safetensors, trained with 4"),
            (["--model", "cifar10_quick_relu"], "--model cifar10_quick_relu contradicts"),
            (["--no-augment"], "--augment False contradicts"),
            (["--recipe", "tutorial"], "--recipe tutorial contradicts"),
            (["--batch-size", 64], "trained with 16"),
            (["--epochs", 22], "--epochs 22 contradicts run/last.safetensors, trained with 1, which its one_cycle schedule is laid "
                               "out for; leave it out, or begin a new run of 21 epochs with its weights: --init-from "
                               "run/last.safetensors --epochs 21 --dataset shapes\n")):
        assert message in fails(capsys, "--resume", "run/last.safetensors", *flags)


def test_a_folder_or_latest_stands_for_the_checkpoint_in_it(small, capsys):
    for name in ("one", "two"):
        assert run("--epochs", 2, "--out", f"runs/{name}", "--quiet", "--save-every", 1, "--seed", len(os.listdir("."))) == 0
    os.utime("runs/one/best.safetensors", (2e9, 2e9))
    capsys.readouterr()
    for place, found in (("runs/two", "two"), ("latest", "one")):
        assert evaluate.main(["--checkpoint", place, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["checkpoint"] == os.path.join("runs", found, "best.safetensors")
    shutil.copy("runs/two/epoch-1.safetensors", "runs/two/last.safetensors")
    assert train.main(["--resume", "latest"]) == 0 and "resume   runs/two/last.safetensors: 1 of 2" in capsys.readouterr().out
    assert train.main(["--resume", "runs/one", "--quiet"]) == 0
    os.remove("runs/one/best.safetensors")
    assert predict.main(["a.png", "--checkpoint", "runs/one"]) == 2
    assert ("runs/one: expected a folder with best.safetensors, got one with epoch-1.safetensors, epoch-2.safetensors, last.safet"
            in capsys.readouterr().err)


def test_a_new_run_from_the_weights_of_another(small, monkeypatch, capsys):
    """Its network, mean and std, but options of its own; the last layer begins anew where the classes are not the same."""
    assert run("--epochs", 1, "--out", "first", "--quiet", "--model", "cifar10_quick_relu", "--size", 16) == 0
    first = checkpoint.load("first/best.safetensors")

    def start(out, *more):
        assert run("--init-from", "first", "--epochs", 1, "--lr", 0, "--out", out, "--momentum", 0, *more) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights ")]
        assert line.startswith("weights  from first/best.safetensors")
        return checkpoint.load(f"{out}/last.safetensors"), line

    def same(found, *but):
        old, new = first.model.state_dict(), found.model.state_dict()
        assert (found.model.mean, found.model.std) == (first.model.mean, first.model.std) and found.model.input_shape == (3, 16, 16)
        return all(np.array_equal(old[name], new[name]) == (name.split(".")[0] not in but) for name in old)
    found, line = start("second", "--seed", 3)
    assert same(found) and line.endswith("best.safetensors") and found.progress.epoch == 1
    expected = dict(model="cifar10_quick_relu", init_from=os.path.join("first", "best.safetensors"), seed=3, lr=0)
    assert {name: found.options[name] for name in expected} == expected
    assert train.main(["--resume", "second", "--quiet"]) == 0
    for classes, remark in ((["a", "b"], "for 2 classes instead of 10"), ([*"abcdefghij"], "as the classes are others")):
        some = [Dataset(part.images, part.labels % len(classes), classes, "shapes") for part in SMALL]
        monkeypatch.setattr(choice, "shapes", lambda some=some: some)
        found, line = start(remark)
        assert same(found, "linear2") and line.endswith(f"; linear2 begins anew, {remark}") and found.model.classes == classes
    for more in (["--model", "cifar10_quick"], ["--no-normalize"]):
        assert "expected without --init-from" in fails(capsys, "--init-from", "first", *more)
    assert "--init-from first/best.safetensors: linear1: expected vectors (N, 256)" in fails(
        capsys, "--init-from", "first", "--size", 32)


def test_a_library_users_weights_to_begin_with(small, capsys):
    layers = [nbcnn.Conv2d(1, 4, 3), nbcnn.ReLU(), nbcnn.Conv2d(4, 3, 1), nbcnn.GlobalAvgPool2d(), nbcnn.Flatten()]
    nbcnn.Sequential(layers, input_shape=(1, 9, 9), dtype="float64").save("own.safetensors")
    assert run("--init-from", "own.safetensors", "--epochs", 1, "--size", 20, "--quiet", "--out", "run") == 0
    found = checkpoint.load("run/last.safetensors")
    assert found.model.input_shape == (1, 20, 20) and found.model.classes == CLASSES and found.model.dtype == np.float64
    assert found.model.mean is None and found.options["normalize"] is False and found.options["model"] == "own.safetensors"
    assert train.main(["--resume", "run", "--quiet"]) == 0
    nbcnn.Sequential([nbcnn.Flatten(), nbcnn.ReLU()]).save("none.safetensors")
    assert "none.safetensors: expected a last layer that can be made anew" in fails(capsys, "--init-from", "none.safetensors")


def test_a_run_that_has_just_begun_is_not_overwritten(small, monkeypatch, capsys):
    """Not by another one either whose first epoch is not done."""
    begun = []

    def try_too(state):
        if not begun:
            begun.append(fails(capsys, "--out", "run"))
    after_each_batch(monkeypatch, try_too)
    assert run("--epochs", 1, "--out", "run", "--quiet") == 0
    assert "run holds a run already" in begun[0] and os.path.exists("run/last.safetensors")


def test_a_run_that_learned_nothing_leaves_nothing_but_what_was_there(small, monkeypatch, capsys):
    monkeypatch.setattr(train, "fit", broken)
    (small / "mine").mkdir()
    (small / "mine" / "notes.txt").touch()
    for out in (["--out", "run"], ["--out", "mine"], []):
        assert "broken" in fails(capsys, *out)
    assert os.listdir("mine") == ["notes.txt"] and not os.path.exists("run") and os.listdir("runs") == []


def test_a_folder_that_was_the_users_stays(small, monkeypatch, capsys):
    (small / "mine").mkdir(mode=0o700)
    monkeypatch.setattr(train, "fit", broken)
    assert "broken" in fails(capsys, "--out", "mine") and os.listdir("mine") == []


def test_what_is_left_of_a_run_without_checkpoints_is_not_overwritten(small, capsys):
    """Somebody has removed the large files, or keeps files of these names for something else."""
    run("--epochs", 1, "--out", "run", "--quiet")
    os.remove("run/last.safetensors")
    assert "run holds a run already" in (error := fails(capsys, "--out", "run")) and "--resume run/best.safetensors\n" in error
    os.remove("run/best.safetensors")
    before = {file.name: file.read_bytes() for file in (small / "run").iterdir()}
    assert "run holds a run already, but no checkpoint" in (error := fails(capsys, "--out", "run"))
    assert "move config.json and metrics.csv away\n" in error
    assert {file.name: file.read_bytes() for file in (small / "run").iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_metrics_that_are_no_file_or_have_no_end_are_not_read(small, capsys, monkeypatch):
    run("--epochs", 1, "--out", "run", "--quiet")
    monkeypatch.setattr(run_folder, "LONGEST_METRICS", 10)
    assert "run/metrics.csv: expected the columns" in fails(capsys, "--resume", "run/last.safetensors")
    os.remove("run/metrics.csv")
    os.mkfifo("run/metrics.csv")
    assert "run/metrics.csv: not a regular file" in fails(capsys, "--resume", "run/last.safetensors")


def test_two_processes_do_not_go_on_in_one_folder(small, monkeypatch, capsys):
    run("--epochs", 2, "--out", "run", "--quiet", "--save-every", 1)
    shutil.copy("run/epoch-1.safetensors", "run/last.safetensors")
    begun = []

    def try_too(state):
        if not begun:
            begun.append(fails(capsys, "--resume", "run/last.safetensors"))
    after_each_batch(monkeypatch, try_too)
    assert train.main(["--resume", "run/last.safetensors", "--quiet"]) == 0
    assert "--resume: run holds a run already, which another process is at work on; wait for its end, or give --out" in begun[0]


def test_temporary_files_of_killed_saves_are_removed(small):
    run("--epochs", 1, "--out", "run", "--quiet")
    stale = [".last.safetensors.0123abcd", ".metrics.csv.00000000", ".epoch-12.safetensors.ffffffff"]
    mine = [".notes.0123abcd", ".last.safetensors.mine", "last.safetensors.0123abcd"]
    for name in stale + mine:
        (small / "run" / name).touch()
    assert train.main(["--resume", "run/last.safetensors", "--quiet"]) == 0
    assert {name for name in os.listdir("run") if name in stale + mine} == set(mine)


def test_a_full_disk_leaves_no_part_of_a_copy(small, monkeypatch, capsys):
    """Whichever write of --resume into another folder fails."""
    run("--epochs", 3, "--out", "whole", "--quiet", "--save-every", 1, "--no-augment")
    shutil.copy("whole/epoch-2.safetensors", "whole/last.safetensors")
    fsync = os.fsync
    for nth in range(1, 11):        # the folder, the lock's mark, and two each: metrics.csv, the best, epoch-2, config.json
        calls = []

        def full(descriptor, nth=nth, calls=calls):
            calls.append(descriptor)
            if len(calls) == nth:
                raise OSError(28, "No space left on device")
            fsync(descriptor)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            error = fails(capsys, "--resume", "whole/last.safetensors", "--out", "fork", "--quiet")
        assert re.search(r"fork\S*: No space left on device", error) and not os.path.exists("fork")
    assert train.main(["--resume", "whole/last.safetensors", "--out", "fork", "--quiet"]) == 0
    assert untimed(small / "fork") == untimed(small / "whole")


def test_no_run_is_overwritten(small, capsys):
    run("--epochs", 1, "--out", "run", "--quiet")
    before = {file.name: file.read_bytes() for file in (small / "run").iterdir()}
    error = fails(capsys, "--out", "run")
    assert "run holds a run already" in error and "--resume run/last.safetensors" in error
    run("--epochs", 1, "--out", "other", "--quiet")
    assert "run holds a run already" in fails(capsys, "--resume", "other/last.safetensors", "--out", "run")
    assert {file.name: file.read_bytes() for file in (small / "run").iterdir()} == before


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(small, monkeypatch, capsys):
    arguments = ("--loss", "mse", "--recipe", "tutorial", "--lr", 1e30, "--quiet", "--out")
    error = fails(capsys, "--batch-size", 16, *arguments, "run", status=3)
    assert "epoch 1, step " in error and "the loss is" in error and "there was no checkpoint yet" in error
    assert not os.path.exists("run")

    run("--epochs", 1, "--out", "good", "--recipe", "tutorial", "--quiet")
    before = (small / "good" / "last.safetensors").read_bytes()

    def poison(state):
        state.model.conv2.bias.data[0] = math.nan
    after_each_batch(monkeypatch, poison)
    error = fails(capsys, "--resume", "good/last.safetensors", "--epochs", 3, status=3)
    assert "epoch 2, step 2" in error and "in conv2" in error and "good/last.safetensors is the last good checkpoint" in error
    assert (small / "good" / "last.safetensors").read_bytes() == before and len(rows(small / "good")) == 1


# ---- errors ----

@pytest.mark.parametrize("arguments, message", [
    (["--epochs", 0], "argument --epochs: expected a number above 0, got '0'"),
    (["--batch-size", "many"], "argument --batch-size: expected a whole number"),
    (["--lr", -1], "--lr: expected a number from 0 to 3.4e+38, got '-1'"),
    (["--lr", "nan"], "--lr"), (["--lr", "inf"], "--lr"),
    (["--label-smoothing", 1.5], "expected a number from 0 to 1, got '1.5'"),
    (["--label-smoothing", 0.1, "--loss", "mse"], "--label-smoothing: expected 0 with --loss mse"),
    (["--momentum", 0, "--nesterov"], "nesterov: expected a momentum > 0"),
    (["--threads", 4096], "--threads: expected at most"), (["--threads", 0], "--threads"),
    (["--seed", -1], "--seed"), (["--save-every", 0], "--save-every"),
    (["--model", "resnet"], "--model resnet: expected the name of a network, cifar10_quick, cifar10_quick_relu, lenet5, mlp, "),
    (["--dataset", "kmnist"], "invalid choice: 'kmnist'"), (["--dataset", "mnist"], "data: no MNIST there"),
    (["--learning-rate", 1], "unrecognized arguments: --learning-rate"), (["--epoch", 1], "unrecognized arguments"),
    (["--dataset", "cifar10", "--data-dir", "nowhere"], "nowhere: no CIFAR-10 there"),
    (["--size", 7], "--model cifar10_quick: ValueError: input_shape: expected images of at least 8x8 pixels"),
    (["--size", 1], "--size"),
    (["--channels", 2], "argument --channels: invalid choice: 2 (choose from 1, 3)"),
    (["--out", "file/run"], "file/run: Not a directory"), (["--out", "file"], "file: File exists"),
    (["--resume", "nowhere.safetensors"], "nowhere.safetensors: No such file or directory"),
    (["--resume", "file"], "file: not a safetensors file"),
    (["--resume", "."], ".: expected a folder with last.safetensors, got one with no checkpoint"),
    (["--resume", "latest"], "with last.safetensors, got none"), (["--init-from", "latest"], "with best.safetensors, got none"),
    (["--init-from", "file"], "file: not a safetensors file"), (["--init-from", "file", "--resume", "file"], "choose one"),
    (["--optimizer", "lion"], "argument --optimizer: invalid choice: 'lion' (choose from "),
    (["--adam"], "--adam; it is --optimizer sgd, adam or adamw"),
    (["--lr_scheduler=step"], "--schedule constant, step, cosine, one_cycle, multistep or triangle changes the rate"),
    (["--class-weights", "balanced", "--loss", "mse"], "--class-weights: expected none with --loss mse, got balanced"),
    (["--flip", "never"], "argument --flip: expected a number from 0 to 1, got 'never'"),
    (["--freeze", "conv1.bias"], "argument --freeze: expected NAME:EPOCHS, as conv1.bias:3, got 'conv1.bias'"),
    (["--freeze", "conv1.bias:x"], "argument --freeze: expected a whole number"),
    (["--freeze", "conv.bias:1"], "--freeze: expected names of parameters, conv1.weight, conv1.bias, "),
    (["--shift", 32, "--border", "reflect"], "--augment: shift: expected at most 31"),
    (["--views", 3], "--views: invalid choice: 3"),
    (["--drop-last", "--batch-size", 64], "--drop-last: expected a batch of at most the 40 images, got 64"),
    (["--clip-norm", 0], "--clip-norm: expected a number above 0, got '0'"), (["--lookahead", "no"], "argument --lookahead"),
])
def test_errors_are_one_line_and_leave_nothing_behind(small, capsys, arguments, message):
    (small / "file").write_text("no checkpoint")
    assert message in fails(capsys, *arguments)
    assert os.listdir() == ["file"]


def test_incomplete_cifar10_is_not_replaced_by_shapes(small, capsys):
    (small / "data").mkdir()
    (small / "data" / "data_batch_1.bin").write_bytes(b"")
    assert "lacks data_batch_2.bin" in fails(capsys)
    for name in (*(f"data_batch_{k}" for k in range(2, 6)), "test_batch"):
        (small / "data" / f"{name}.bin").write_bytes(b"123")
    (small / "data" / "batches.meta.txt").write_text("\n".join(CLASSES))
    assert "data_batch_1.bin: expected" in fails(capsys)


@pytest.mark.parametrize("name, value", [
    ("loss", "huber"), ("schedule", 3), ("batch_size", 0), ("batch_size", "many"), ("lr", [1]), ("epochs", True), ("seed", -1),
    ("threads", 0), ("label_smoothing", 2), ("augment", 1), ("model", True),
])
def test_a_checkpoint_with_options_that_do_not_exist_is_not_resumed(small, capsys, name, value):
    model = models.cifar10_quick(classes=CLASSES)
    options = {**recipes.OTHERS, **recipes.RECIPES["default"], "epochs": 3, "dataset": "shapes", name: value}
    checkpoint.save("odd.safetensors", model, optimizer=optim.SGD(model.parameters(), 0.1), options=options)
    assert "--resume: odd.safetensors was written with options that do not exist: " in fails(capsys, "--resume", "odd.safetensors")


def test_a_checkpoint_of_a_library_user_is_not_resumed(small, capsys):
    checkpoint.save("own.safetensors", models.cifar10_quick())
    assert "own.safetensors was not written by this command" in fails(capsys, "--resume", "own.safetensors")


def test_a_full_disk_keeps_what_was_saved(small, monkeypatch, capsys):
    save = checkpoint.save

    def full(path, model, **rest):
        if rest["progress"].epoch == 2:
            raise OSError(28, "No space left on device", str(path))
        save(path, model, **rest)
    monkeypatch.setattr(checkpoint, "save", full)
    error = fails(capsys, "--batch-size", 16, "--epochs", 3, "--out", "run", "--quiet", "--save-every", 1)
    assert "safetensors: No space left on device" in error
    assert checkpoint.load("run/last.safetensors").progress.epoch == 1


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in ("(default: 0.02; 0.01 of tutorial; 1.5 of airbench94; 0.1 of resnet20)",
                    "(default: 16 for cifar10, 16 for cifar100, 4 for mnist, 8 for fashion-mnist, 6 for shapes, 16 for folder; "
                    "20 of tutorial; 9.9 of airbench94; 60 of resnet20)", "(default: none; conv1.bias:3 of airbench94)",
                    "(default: data)", "(default: cross_entropy)", "--profile at the end print what each kernel"):
        assert default in text


# ---- a network and images of one's own ----

NET = """
import nbcnn

def make(classes, seed):
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 8, 3, padding=1)), ("gelu1", nbcnn.GELU("tanh")), ("avgpool1", nbcnn.AvgPool2d(4)),
        ("conv2", nbcnn.Conv2d(8, 16, 3, padding=1)), ("leaky2", nbcnn.LeakyReLU(0.1)), ("globalavgpool", nbcnn.GlobalAvgPool2d()),
        ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(16, 16)), ("tanh", nbcnn.Tanh()),
        ("linear2", nbcnn.Linear(16, len(classes))), ("sigmoid", nbcnn.Sigmoid())], seed=seed)

def no_deviation():
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 10)], std=[0] * 3)

def seven_outputs():
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 7)])

def other_size():
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 8 * 8, 10)], input_shape=(3, 8, 8))

def does_not_fit():
    return nbcnn.Sequential([("a", nbcnn.Flatten()), ("b", nbcnn.Linear(99, 10))])

def other_classes():
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 10)], classes=list("abcdefghij"))

def float64():
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 10)], mean=[0.1] * 3, std=[0.2] * 3, seed=7,
                            dtype="float64")

def preset():
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 10)])
    model[1].weight.set([[0.25] * 3072] * 10)
    return model

def own_layer():
    class Mine(nbcnn.ReLU):
        pass
    return nbcnn.Sequential([("mine", Mine()), ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(3 * 32 * 32, 10))])

def nothing():
    pass

def mean_only():
    return nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 10)], mean=[0.25] * 3)

def fails():
    raise RuntimeError("boom")
"""


def test_a_network_of_ones_own_needs_no_code_afterwards(small, monkeypatch, capsys):
    (small / "net.py").write_text(NET)
    arguments = ("--model", "net.py:make", "--epochs", 3, "--seed", 5, "--quiet", "--loss", "mse")
    assert run(*arguments, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert run(*arguments, "--out", "run") == 130
    os.remove("net.py")
    assert train.main(["--resume", "run/last.safetensors", "--quiet", "--model", "net.py:make"]) == 0
    assert (small / "run" / "last.safetensors").read_bytes() == (small / "whole" / "last.safetensors").read_bytes()
    found = checkpoint.load("run/last.safetensors")
    assert found.options["model"] == "net.py:make"
    assert [kind for _, kind, _ in found.model.structure()] == ["Conv2d", "GELU", "AvgPool2d", "Conv2d", "LeakyReLU",
                                                                "GlobalAvgPool2d", "Flatten", "Linear", "Tanh", "Linear", "Sigmoid"]
    assert (found.model.classes, found.model.input_shape, found.model.mean) == (CLASSES, (3, 32, 32), [0.5] * 3)
    assert found.model.seed == 5
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", "run/last.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == float(rows(small / "run")[-1]["test_loss"])
    Image.fromarray(SMALL[1].images[3].transpose(1, 2, 0)).save("a.png")
    assert predict.main(["--checkpoint", "run/last.safetensors", "a.png", "--top", "1"]) == 0
    logits = found.model(SMALL[1].images[3:4])[0]
    assert capsys.readouterr().out == f"a.png\t{CLASSES[logits.argmax()]} {logits.max():.3f}\n"


OWN = """
import helper_of_net
import nbcnn

print("net.py runs")

class Swish(helper_of_net.Softplus):
    pass

def make(classes, seed):
    return nbcnn.Sequential([("up", helper_of_net.Upsample2d(1)), ("swish", Swish(2)), ("flatten", nbcnn.Flatten()),
                             ("linear", nbcnn.Linear(3 * 32 * 32, len(classes)))], seed=seed)
"""


def test_layers_of_ones_own(small, monkeypatch, capsys):
    """Training, going on, predicting and evaluating: each runs the file that --model names, and nothing runs it unasked."""
    shutil.copy(Path(__file__).parent / "own_layers.py", "helper_of_net.py")
    (small / "net.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    arguments = ("--model", "net.py:make", "--epochs", 3, "--seed", 5, "--quiet", "--save-every", 1)
    assert run(*arguments, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert run(*arguments, "--out", "run") == 130
    assert "To go on: python -m nbcnn.train --resume run/last.safetensors --model net.py:make\n" in capsys.readouterr().out
    last = "run/last.safetensors"
    Image.fromarray(SMALL[1].images[3].transpose(1, 2, 0)).save("a.png")
    for command, *given in ((train.main, "--resume", last), (predict.main, "a.png", "--checkpoint", last),
                            (evaluate.main, "--checkpoint", last)):
        assert command(given) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and (
            f"{last}: layer up is a Upsample2d from helper_of_net, none of nbcnn's, and loading imports nothing") in error
        for model, message in (("nowhere.py", "FileNotFoundError: no file nowhere.py"), ("cifar10_quick", "layer up is a ")):
            assert command([*given, "--model", model]) == 2
            assert message in capsys.readouterr().err
    for model, status, message in (("net.py", 0, ""), (      # in processes that know nothing of these files
            "helper_of_net.py", 2, f"helper_of_net.py: expected the file that defines the layers of {last}: layer swish is a ")):
        done = subprocess.run([sys.executable, "-m", "nbcnn.predict", "a.png", "--checkpoint", last, "--model", model],
                              capture_output=True, text=True, timeout=300)
        assert (done.returncode, "net.py runs" in done.stdout) == (status, not status) and message in done.stderr
    assert train.main(["--resume", last, "--model", "net.py:other"]) == 2
    assert "--model net.py:other contradicts run/last.safetensors" in capsys.readouterr().err
    for model in ("net.py", "net.py:make", "net"):
        assert predict.main(["a.png", "--checkpoint", last, "--model", model]) == 0
        assert evaluate.main(["--checkpoint", last, "--model", model]) == 0
        assert "net.py runs" in capsys.readouterr().out
    shutil.copytree("run", "again")
    for folder, model in (("run", "net.py"), ("again", "net.py:make")):
        assert train.main(["--resume", f"{folder}/last.safetensors", "--quiet", "--model", model]) == 0
        assert Path(folder, "last.safetensors").read_bytes() == Path("whole/last.safetensors").read_bytes()
    assert train.main(["--resume", "whole/epoch-2.safetensors", "--model", "net.py"]) == 2
    assert "whole/last.safetensors is further, with 3 epochs" in capsys.readouterr().err
    (small / "options.toml").write_text("model = 'net.py'")
    assert predict.main(["a.png", "--checkpoint", last, "--config", "options.toml"]) == 2
    assert "options.toml: unknown key 'model'" in capsys.readouterr().err


def test_a_network_in_float64_stays_there_with_bf16(small, capsys):
    (small / "net.py").write_text(NET)
    for precision in ("f32", "bf16"):
        assert run("--model", "net.py:float64", "--epochs", 1, "--out", precision, "--seed", 1, "--precision", precision) == 0
    assert "numbers  f64: the model's numbers are float64" in capsys.readouterr().out
    assert (small / "bf16/last.safetensors").read_bytes() == (small / "f32/last.safetensors").read_bytes()
    assert evaluate.main(["--checkpoint", "bf16", "--precision", "bf16"]) == 0
    assert "--precision bf16 takes f64: the model's numbers are float64" in capsys.readouterr().err


def test_what_a_network_of_ones_own_says_itself_stays(small):
    (small / "net.py").write_text(NET)
    assert run("--model", "net.py:float64", "--epochs", 1, "--out", "run", "--quiet", "--seed", 1) == 0
    model = checkpoint.load("run/last.safetensors").model
    assert (model.mean, model.std, model.seed, model.dtype) == ([0.1] * 3, [0.2] * 3, 7, np.float64)
    assert run("--model", "net.py:mean_only", "--epochs", 1, "--out", "mean", "--quiet") == 0
    model = checkpoint.load("mean/last.safetensors").model
    assert (model.mean, model.std) == ([0.25] * 3, None)
    assert run("--model", "net.py:float64", "--epochs", 1, "--quiet") == 0
    assert os.listdir("runs")[0].endswith("-shapes-net.py-float64")
    assert run("--model", "net.py:preset", "--epochs", 1, "--lr", 0, "--out", "preset", "--quiet") == 0
    assert (checkpoint.load("preset/last.safetensors").model[1].weight.data == 0.25).all()


@pytest.mark.parametrize("function, message", [
    ("seven_outputs", "expected 10 outputs, one for each class of the images, got outputs of shape (7,)"),
    ("no_deviation", "std: expected positive numbers, got [0.0, 0.0, 0.0]"),
    ("other_size", "expected a network for the images' (3, 32, 32), got one for (3, 8, 8); --size and --channels change "),
    ("does_not_fit", "b: expected vectors (N, 99), got (N, 3072)"),
    ("other_classes", "expected the classes of the images, class0, "),
    ("own_layer", "expected layers that a checkpoint can name, got own_layer.<locals>.Mine; define the class at the top of its f"),
    ("fails", "RuntimeError: boom ("),
    ("nothing", "expected a function that returns a nbcnn.Sequential or Network, got NoneType"),
    ("nowhere", "no function 'nowhere' in net.py"),
])
def test_networks_that_cannot_be_trained_are_one_line(small, capsys, function, message):
    (small / "net.py").write_text(NET)
    error = fails(capsys, "--model", f"net.py:{function}", "--out", "run")
    assert error.startswith(f"nbcnn train: --model net.py:{function}: ") and error.count("net.py:") == 1 and message in error
    assert [name for name in os.listdir() if name != "__pycache__"] == ["net.py"]


def test_pictures_of_ones_own(small, capsys):
    """Folders of images of any size; mean and standard deviation are those of the training images."""
    for split, dataset in zip(("train", "test"), SMALL, strict=True):
        for k, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            folder = small / "pets" / split / ("cat" if label % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).resize((64, 48), Image.Resampling.NEAREST).save(folder / f"{k}.png")
    assert run("--dataset", "folder", "--data-dir", "pets", "--epochs", 8, "--out", "run") == 0
    assert "data     folder: 40 images to train, 20 to test; from pets" in capsys.readouterr().out
    found = checkpoint.load("run/last.safetensors")
    assert found.model.classes == ["cat", "dog"] and found.options["dataset"] == "folder"
    images = choice.folder("pets/train").images / 255
    assert found.model.mean == pytest.approx(images.mean((0, 2, 3)).tolist())
    assert found.model.std == pytest.approx(images.std((0, 2, 3)).tolist())
    assert float(rows(small / "run")[-1]["test_accuracy"]) > 0.8
    assert evaluate.main(["--checkpoint", "run/last.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == float(rows(small / "run")[-1]["test_accuracy"])
    (small / "pets" / "train" / "cat").rename(small / "pets" / "train" / "ant")
    assert "expected folders named after the classes cat, dog, got ant" in fails(capsys, "--resume", "run/last.safetensors")
    (small / "pets" / "train" / "ant").rename(small / "pets" / "train" / "cat")
    assert train.main(["--resume", "run/last.safetensors", "--quiet"]) == 0
    shutil.copy("pets/train/cat/1.png", "pets/train/cat/more.png")
    assert "the training images in pets are not those of run/last.safetensors any more" in fails(
        capsys, "--resume", "run/last.safetensors")
    (small / "pets" / "train" / "cat" / "more.png").unlink()


def test_images_of_another_size_in_grey(small, capsys):
    """Of any data set, and for all that comes after training."""
    for split, dataset in zip(("train", "test"), SMALL, strict=True):
        for k, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            folder = small / "pets" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{k}.png")
    last = "shapes/last.safetensors"
    for out, more in (("shapes", []), ("folder", ["--dataset", "folder", "--data-dir", "pets"])):
        assert run("--size", 40, "--channels", 1, "--epochs", 1, "--quiet", "--out", out, *more) == 0
        found = checkpoint.load(f"{out}/last.safetensors")
        assert found.model.input_shape == (1, 40, 40) and (found.options["size"], found.options["channels"]) == (40, 1)
        grey = [Image.fromarray(image.transpose(1, 2, 0)).convert("L").resize((40, 40), Image.Resampling.BICUBIC)
                for image in SMALL[0].images]
        assert found.model.mean == pytest.approx([np.mean(grey) / 255]) and found.model.std == pytest.approx([np.std(grey) / 255])
        assert train.main(["--resume", f"{out}/last.safetensors", "--quiet", "--channels", "1", "--size", "40"]) == 0
        assert "--size 32 contradicts" in fails(capsys, "--resume", f"{out}/last.safetensors", "--size", 32)
        assert evaluate.main(["--checkpoint", f"{out}/last.safetensors", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["loss"] == float(rows(small / out)[-1]["test_loss"])
        assert predict.main(["pets/test/class3", "--checkpoint", f"{out}/last.safetensors", "--top", "1"]) == 0
        assert capsys.readouterr().out.count("\n") == 2
    assert evaluate.main(["--checkpoint", last, "--dataset", "folder", "--data-dir", "pets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(float(rows(small / "shapes")[-1]["test_loss"]), rel=1e-5)


def test_a_part_of_the_training_images_chooses_the_best_epoch(small, capsys):
    """A quarter of each class is not trained on; a resumed run has the same part, and ends with the same bits."""
    assert run("--epochs", 4, "--val-share", 0.25, "--out", "run", "--save-every", 2) == 0
    out = capsys.readouterr().out
    assert "data     shapes: 30 images to train, 10 to validate, 20 to test;" in out and out.count("  val loss ") == 4
    table = rows(small / "run")
    accuracies = [float(row["val_accuracy"]) for row in table]
    assert list(table[0])[3:7] == ["test_loss", "test_accuracy", "val_loss", "val_accuracy"]
    best = checkpoint.load("run/best.safetensors").progress
    assert best.best_epoch == best.epoch == accuracies.index(max(accuracies)) + 1
    assert f"done: validation accuracy at best {max(accuracies):.2%} after epoch {best.epoch}, kept in run" in out
    assert train.main(["--resume", "run/epoch-2.safetensors", "--out", "again", "--quiet"]) == 0
    assert untimed(small / "again") == untimed(small / "run")
    assert "--val-share 0.5 contradicts" in fails(capsys, "--resume", "run/epoch-2.safetensors", "--val-share", 0.5)
    assert "expected a part of 40 images that leaves some on both sides, got 0.01" in fails(capsys, "--val-share", 0.01)
    for split, column in (("val", "val_accuracy"), ("test", "test_accuracy")):
        assert evaluate.main(["--checkpoint", "run/last.safetensors", "--split", split, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == float(table[-1][column])
    part, val = recipes.split_off(SMALL[0], 0.25, 0)
    assert len(part) == 30 and sorted(val.labels) == sorted(SMALL[0].labels)[::4]        # 4 images of each of 10 classes
    whole = {image.tobytes() for image in SMALL[0].images}
    assert {image.tobytes() for image in part.images} | {image.tobytes() for image in val.images} == whole
    assert recipes.split_off(SMALL[0], 0.25, 1)[1].images.tobytes() != val.images.tobytes()     # another seed draws others


def test_a_folder_may_have_validation_images(small, capsys):
    for split, dataset in zip(("train", "test", "val"), (*SMALL, SMALL[1]), strict=True):
        for k, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            folder = small / "pets" / split / ("cat" if label % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{k}.png")
    assert run("--dataset", "folder", "--data-dir", "pets", "--epochs", 2, "--out", "run") == 0
    assert "data     folder: 40 images to train, 20 to validate, 20 to test; from pets" in capsys.readouterr().out
    assert all(row["val_loss"] == row["test_loss"] for row in rows(small / "run"))
    assert "--val-share: expected none, as pets has val, got 0.5" in fails(
        capsys, "--dataset", "folder", "--data-dir", "pets", "--val-share", 0.5)
    assert evaluate.main(["--checkpoint", "run/last.safetensors", "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == float(rows(small / "run")[-1]["val_accuracy"])
    assert "pets: no CIFAR-10 there; " in (error := fails(capsys, "--data-dir", "pets")) and "with --dataset folder" in error
    with pytest.raises(ValueError, match="pets: expected a folder for each class, got test and train and val; read each of them"):
        choice.folder("pets")
    assert run("--init-from", "run", "--epochs", 1, "--out", "more") == 0       # with the same images
    assert "data     folder: 40 images to train, 20 to validate, 20 to test; from pets" in capsys.readouterr().out
    assert "; its network takes images of (3, 32, 32): leave out --size and --channels" in fails(
        capsys, "--init-from", "run", "--size", 16)
    (small / "pets" / "val" / "cat" / "1.png").unlink()
    assert "the training images in pets are not those of run/last" in fails(capsys, "--resume", "run/last.safetensors")


def test_mean_and_standard_deviation_of_any_images():
    images = np.random.default_rng(0).integers(0, 256, (250, 3, 5, 4), dtype=np.uint8)
    images[:, 1] = 77       # a channel without any deviation: that of one step of a byte stands in
    mean, std = recipes.mean_std(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)).tolist())
    assert std == pytest.approx([(images[:, 0] / 255).std(), 1 / 255, (images[:, 2] / 255).std()])


def test_a_checkpoint_of_before_size_goes_on(small):
    run("--epochs", 2, "--out", "run", "--quiet", "--save-every", 1)
    found = checkpoint.load("run/epoch-1.safetensors")
    del found.options["size"], found.options["fingerprint"], found.options["val_share"]
    checkpoint.save("old.safetensors", found.model, optimizer=found.optimizer, progress=found.progress, options=found.options)
    assert train.main(["--resume", "old.safetensors", "--out", "again", "--quiet"]) == 0
    again, whole = (checkpoint.load(f"{folder}/last.safetensors") for folder in ("again", "run"))
    assert again.options["size"] == 32 and (again.model.vector.data == whole.model.vector.data).all()


def test_options_from_a_file(small, capsys):
    (small / "run.toml").write_text('recipe = "tutorial"\nepochs = 3\nlr = 0.5\nbatch-size = 8\naugment = true\nquiet = true\n')
    assert train.main(["--config", "run.toml", "--epochs", "1", "--out", "run"]) == 0
    options = checkpoint.load("run/last.safetensors").options
    expected = dict(recipe="tutorial", epochs=1, lr=0.5, batch_size=8, augment=True, normalize=False)
    assert {name: options[name] for name in expected} == expected and "data " not in capsys.readouterr().out
    (small / "run.toml").write_text("bach-size = 8\n")
    assert "run.toml: unknown key 'bach-size'; did you mean batch-size?" in fails(capsys, "--config", "run.toml")


def test_no_colour_where_there_is_no_terminal(small, monkeypatch, capsys):
    run("--epochs", 1, "--out", "one")
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    run("--epochs", 1, "--out", "two")
    assert "\033[1maccuracy" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run("--epochs", 1, "--out", "three")
    assert "\033" not in capsys.readouterr().out


# ---- as a process ----

def process(*arguments, before=""):
    """The command in a process of its own, on small images; `before` it is a line of Python."""
    tests = os.path.dirname(os.path.abspath(__file__))
    code = textwrap.dedent("""
        import os, sys, time
        from test_train import SMALL
        from nbcnn import train
        from nbcnn.datasets import choice
        choice.shapes = lambda: SMALL
        BEFORE
        sys.exit(train.main(sys.argv[1:]))
    """).replace("BEFORE", before)
    return subprocess.Popen([sys.executable, "-c", code, "--batch-size", "16", *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.path.dirname(tests)]),
                                 "NUMBA_NUM_THREADS": "1"})


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_gets_a_signal(signals, number, status):
    running = process("--epochs", 100_000, "--out", "run", "--quiet")
    assert running.stdout.readline().startswith("epoch ")
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == status and err == ""
    assert out.splitlines()[-1].endswith("To go on: python -m nbcnn.train --resume run/last.safetensors")
    assert checkpoint.load("run/last.safetensors").progress.epoch >= 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_run_killed_before_its_first_checkpoint_blocks_nothing(small, capsys):
    with process("--out", "run", before="train.fit = lambda *rest, **options: os.kill(os.getpid(), 9)") as killed:
        killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL and os.path.exists("run/config.json")
    assert run("--epochs", 1, "--out", "run", "--quiet") == 0
    assert sorted(os.listdir("run")) == ["best.safetensors", "config.json", "last.safetensors", "metrics.csv"]
    assert "holds a run already" in fails(capsys, "--out", "run")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("numbers", [["SIGTERM"], ["SIGHUP"], ["SIGINT", "SIGINT"]])
def test_a_signal_while_kernels_are_compiled_ends_the_process_at_once(small, signals, numbers):
    """Also within something that swallows exceptions, as a callback of the compiler does."""
    before = "\n".join(["def compile(*rest, **options):", "    print('compiling', flush=True)", "    while True:", "        try:",
                        "            time.sleep(0.01)", "        except BaseException:", "            pass",
                        "train.fit = compile"])
    with process("--out", "run", "--quiet", before=before) as running:
        assert running.stdout.readline() == "compiling\n" and os.path.exists("run/config.json")
        for name in numbers:
            running.send_signal(getattr(signal, name))
        try:
            out, error = running.communicate(timeout=10)
        finally:
            running.kill()
    assert (running.returncode, out, error) == (128 + getattr(signal, numbers[0]), "", "") and os.listdir() == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_reader_that_goes_away():
    running = process("--epochs", 100_000, "--out", "run", "--quiet")
    running.stdout.readline()
    running.stdout.close()
    error = running.stderr.read()
    assert running.wait(60) == 141 and error == ""
    assert len(rows(Path("run"))) == checkpoint.load("run/last.safetensors").progress.epoch


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "nbcnn.train", "--epochs", "0"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nbcnn train: argument --epochs") and done.stderr.count("\n") == 1


# ---- devices ----

class Gpu:
    """A GPU backend as far as the command line asks it before training."""

    def __init__(self, reason):
        self.reason = reason

    def unavailable(self):
        return self.reason

    def describe(self):
        return "a very fast one"


def test_device_cuda_without_a_gpu_is_one_line_and_auto_says_why_not(small, monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_backend", lambda name: Gpu("none was found"))
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name)
    assert "--device cuda: no GPU can be used: none was found" in fails(capsys, "--device", "cuda", "--out", "run")
    assert not (small / "run").exists()
    assert run("--device", "auto", "--epochs", 1, "--out", "run") == 0
    assert "device   cpu: no GPU can be used: none was found\n" in capsys.readouterr().out
    assert json.loads((small / "run" / "config.json").read_text())["device"] == "cpu"


def test_device_without_numba_cuda_says_what_to_install(small, monkeypatch, capsys):
    def missing(name):
        raise ImportError("GPU kernels need numba-cuda: python -m pip install 'numba-cuda[cu13]'")
    monkeypatch.setattr(cli, "load_backend", missing)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert "python -m pip install 'numba-cuda[cu13]'" in fails(capsys, "--device", "cuda", "--out", "run")
    assert cli.choose_device("auto") == ("cpu", "numba-cuda, which a GPU needs, is not installed")


def test_device_auto_takes_a_gpu_and_the_model_goes_there(small, monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_backend", lambda name: Gpu(""))
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name)
    moved = []
    monkeypatch.setattr("nbcnn.model.Sequential.to", lambda model, device: moved.append(device) or model)
    assert cli.choose_device("auto") == ("cuda", "a very fast one")
    assert run("--device", "auto", "--epochs", 1, "--out", "run") == 0
    assert set(moved) == {"cuda"} and "device   cuda: a very fast one\n" in capsys.readouterr().out
    assert "--profile: expected --device cpu" in fails(capsys, "--device", "auto", "--profile", "--out", "other")
