"""Runs of `nbcnn train` that something happens to, at a file operation or at a moment; what they leave must be a way on.

    python crashes.py FOLDER EVERY SEED KILLS

tries each EVERY-th file operation of four commands (a run, --resume into another folder, --resume in place, a run in a folder
that a killed one has abandoned) with everything in EVENTS, then KILLS kills at random moments, and prints a JSON object: counts,
and a list of what was wrong. Every case is a fork of this process, in which the kernels are loaded already.
"""
import builtins
import csv
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from nbcnn import checkpoint, train
from nbcnn.files import Lock
from nbcnn.kernels import turns
from nbcnn.run_folder import read_metrics

NET = """
import nbcnn

def make(classes, seed, input_shape):
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(3, 8, 3, padding=1)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(2)),
                             ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(128, len(classes)))], seed=seed)
"""
OPERATIONS = [*((os, name) for name in ("open", "mkdir", "replace", "unlink", "rmdir", "fsync", "fchown", "fchmod", "ftruncate",
                                        "pwrite")), (fcntl, "flock")]


def fails(number):
    """An operation fails; the error names a file where the operation does."""
    def happen(target):
        raise OSError(number, os.strerror(number), *[target] * (not isinstance(target, int)))
    return happen


def gets(*numbers):
    """The process gets signals."""
    def happen(target):
        for number in numbers:
            os.kill(os.getpid(), number)
    return happen


# What happens, whether it happens at every later operation too, and the exit statuses that are right. A cleaning that fails says
# nothing; a signal after the training ends the process as in any other.
EVENTS = {
    "killed": (gets(signal.SIGKILL), False, {-signal.SIGKILL}),
    "full disk": (fails(errno.ENOSPC), False, {0, 2}),
    "broken disk": (fails(errno.EIO), True, {0, 2}),
    "SIGTERM": (gets(signal.SIGTERM), False, {0, 143, -signal.SIGTERM}),
    "SIGINT twice": (gets(signal.SIGINT, signal.SIGINT), False, {0, 130}),
}


class Halves:
    """A file whose writing is two operations."""

    def __init__(self, file, tick):
        self.file, self.tick = file, tick

    def __enter__(self):
        return self

    def __exit__(self, *error):
        try:
            self.tick("close")
        finally:
            self.file.close()

    def write(self, data):
        self.file.write(data[:len(data) // 2])
        self.file.flush()
        self.tick("half written")
        self.file.write(data[len(data) // 2:])

    def __getattr__(self, name):
        return getattr(self.file, name)


def arm(happen, point, lasting):
    """Let it happen before the operation with this number, counted from 1; returns the list that their names come to."""
    log = []

    def tick(name, target=0):
        log.append(name)
        if len(log) == point or (lasting and len(log) > point > 0):
            happen(target)

    def wrap(module, name):
        real = getattr(module, name)

        def operation(target, *rest, **options):
            if name == "open" and not rest[0] & os.O_CREAT:
                return real(target, *rest, **options)
            tick(name, target)
            # What was written outlives the process with and without syncing, which takes long.
            return real(target, *rest, **options) if name != "fsync" else None
        setattr(module, name, operation)
    for module, name in OPERATIONS:
        wrap(module, name)
    real_open = builtins.open

    def opened(path, mode="r", *rest, **options):
        file = real_open(path, mode, *rest, **options)
        return Halves(file, tick) if "x" in mode else file
    builtins.open = opened
    return log


def fork(arguments, folder, prepare=lambda: []):
    """The id of a child that runs the command; its output and the list that `prepare` gives come to the folder."""
    child = os.fork()
    if child == 0:
        turns.stranded = False              # one thread of the workqueue layer goes on in a fork; several would not
        tqdm.set_lock(threading.RLock())    # its own is one for all forks, of which one may be killed while it has it
        status = 99
        try:
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            log = prepare()
            status = train.main([*map(str, arguments), "--quiet"])
            (folder / "log").write_text("\n".join(log))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return child


def run(arguments, folder, event="killed", point=0):
    """(exit status, standard output, standard error, operations) of a command to which something happens."""
    happen, lasting, _ = EVENTS[event]
    (folder / "log").write_text("")
    status = ended(fork(arguments, folder, lambda: arm(happen, point, lasting)))
    return status, (folder / "stdout").read_text(), (folder / "stderr").read_text(), (folder / "log").read_text().splitlines()


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder):
    """All that must be equal: the names of the files, the checkpoints' bytes, the metrics without times."""
    files = {file.name: file.read_bytes() if file.suffix == ".safetensors" else None for file in folder.iterdir()}
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{name: row[name] for name in row if name not in ("images_per_second", "seconds")} for row in csv.DictReader(file)]
    return files, rows


def damages(folder, output):
    """What is not as it must be in a folder after a crash, by what its run had said."""
    found, done = [], 0
    for line in output.splitlines():
        if line.startswith("epoch"):
            done = int(line[5:].split("/")[0])
    for file in folder.glob("*.safetensors"):
        try:
            checkpoint.load(file)
        except ValueError as error:
            found.append(str(error))
    try:
        rows = read_metrics(folder / "metrics.csv", 10**9)
        if (folder / "config.json").exists() and (text := (folder / "config.json").read_text()):
            json.loads(text)
        if done and (checkpoint.load(folder / "last.safetensors").progress.epoch < done or len(rows) < done):
            found.append(f"lost: of {done} epochs not all are there")
    except (OSError, ValueError) as error:
        found.append(str(error))
    return found


def go_on(command, out, expected, folder):
    """What is wrong with the end of a run that had crashed: resumed, or where there is nothing to resume, started again."""
    last = out / "last.safetensors"
    status, _, error, _ = run(["--resume", last] if last.exists() else command, folder)
    if status:
        return [f"blocked: exit {status}, {error}"]
    return [] if contents(out) == expected else ["other than a run that nothing happened to"]


def faults(event, out, before, status, output, error):
    """What is wrong with how a run ended that had found the files `before`."""
    found = [] if status in EVENTS[event][2] else [f"exit {status}: {error[-300:]}"]
    if status == 2:
        if not (error.startswith("nbcnn train: ") and error.count("\n") == 1 and ("/" in error or "standard output" in error)):
            found.append(f"not one line that names a file: {error!r}")
    elif error:
        found.append(f"exit {status}, but said {error[-300:]!r}")
    if "To go on" in output and not (out / "last.safetensors").exists():
        found.append(f"names a file that is not there: {output!r}")
    if status in (130, 143) and not (out / "last.safetensors").exists() and out.exists():
        if left := {file.name for file in out.iterdir()} - {Lock.NAME} - before:
            found.append(f"learned nothing, but left {left}")
    return found + (damages(out, output) if out.exists() else [])


def prepare(folder):
    """Commands, as functions of the folder they write to, with what these hold at the end; kernels are loaded."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 8), ("test", 4)):
        for name, level in (("dark", 60), ("bright", 190), ("mid", 125)):
            (folder / "images" / split / name).mkdir(parents=True)
            for k in range(count):
                image = rng.normal(level, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / "images" / split / name / f"{k}.png")
    (folder / "net.py").write_text(NET)
    base = ["--dataset", "folder", "--data-dir", folder / "images", "--size", 8, "--model", f"{folder / 'net.py'}:make",
            "--batch-size", 8, "--save-every", 1]
    whole = folder / "whole"
    assert train.main([*map(str, base), "--epochs", "4", "--out", str(whole), "--quiet"]) == 0
    checkpoints = [whole / f"epoch-{epoch}.safetensors" for epoch in (2, 3)]
    # One whose best epoch is another, so that there are two files to copy.
    source = min(checkpoints, key=lambda file: (p := checkpoint.load(file).progress).best_epoch == p.epoch)

    def plain(out, epochs=2):
        return [*base, "--epochs", epochs, "--out", out]

    def elsewhere(out):
        return ["--resume", source, "--out", out]

    def in_place(out):
        if not out.exists():        # as a run leaves it that is killed when it has written last.safetensors
            out.mkdir(parents=True)
            for name, copy in (("metrics.csv",) * 2, ("config.json",) * 2, ("epoch-1.safetensors", "last.safetensors")):
                shutil.copy(whole / name, out / copy)
        return ["--resume", out / "last.safetensors"]

    def abandoned(out):
        if not out.exists():        # as a run leaves it that is killed before it has learned anything
            out.mkdir(parents=True)
            (out / Lock.NAME).write_bytes(Lock.MARK + b"the folder of a run that has learned nothing yet")
            shutil.copy(whole / "config.json", out)
        return plain(out)
    return {"plain": plain, "elsewhere": elsewhere, "in place": in_place, "abandoned": abandoned,
            "long": lambda out: plain(out, 12)}


def survey(folder, every, seed, kills):
    """(how often each event happened, what was wrong after it)."""
    rng, counts = random.Random(seed), {"killed at random": kills}
    commands = prepare(folder)
    wrong = killed_at_random(folder, commands.pop("long"), rng, kills)
    for name, command in commands.items():
        whole = folder / "a" / "b" / f"whole {name}"
        status, _, error, log = run(command(whole), folder)
        assert status == 0, error
        expected = contents(whole)
        shutil.rmtree(folder / "a")
        for event in EVENTS:
            for point in range(1 + rng.randrange(every), len(log) + 1, every):
                out = folder / "a" / "b" / "case"
                arguments = command(out)
                before = {file.name for file in out.iterdir()} if out.exists() else set()
                status, output, error, _ = run(arguments, folder, event, point)
                found = faults(event, out, before, status, output, error) + go_on(arguments, out, expected, folder)
                wrong += [f"{name}, {event} at operation {point} of {len(log)}, {log[point - 1]}: {text}" for text in found]
                counts[event] = counts.get(event, 0) + 1
                shutil.rmtree(folder / "a")
    return counts, wrong


def killed_at_random(folder, command, rng, kills):
    """What is wrong with longer runs that are killed at any moment, again and again until they end."""
    started = time.perf_counter()
    assert run(command(folder / "long"), folder)[0] == 0
    seconds, expected, wrong = time.perf_counter() - started, contents(folder / "long"), []
    out = folder / "random"
    while kills:
        last = out / "last.safetensors"
        child = fork(["--resume", last] if last.exists() else command(out), folder)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        found, output = [], (folder / "stdout").read_text()
        if ended(child) == -signal.SIGKILL:
            kills -= 1
            found = damages(out, output) if out.exists() else []
        if found or "done:" in output or not kills:
            found += go_on(command(out), out, expected, folder)
            shutil.rmtree(out, ignore_errors=True)
        wrong += [f"killed at random after {output!r}: {text}" for text in found]
    return wrong


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)        # as at a terminal, in the background too
    folder, every, seed, kills = Path(sys.argv[1]), *map(int, sys.argv[2:])
    started = time.perf_counter()
    counts, wrong = survey(folder, every, seed, kills)
    print(json.dumps({"counts": counts, "wrong": wrong, "seconds": round(time.perf_counter() - started, 1)}))
