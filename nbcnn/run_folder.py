"""The folder of a run: config.json, metrics.csv, checkpoints, events. One process at a time works in it; no run is overwritten."""
import contextlib
import csv
import io
import json
import os
import re
import shlex
import time
from pathlib import Path

from nbcnn import checkpoint, files, tensorboard
from nbcnn.model import MissingLayer
from nbcnn.scheduler import BackpropScheduler

BEST = "best.safetensors"
FILES = r"config\.json|metrics\.csv|(last|best|epoch-\d+)\.safetensors"
LONGEST_METRICS = 10**7      # bytes of metrics.csv; a line has about a hundred
LONGEST_CONFIG = 10**6       # bytes of config.json, which has some two thousand
COLUMNS = ["epoch", "lr", "train_loss", "test_loss", "test_accuracy", "images_per_second", "seconds"]
COLUMNS_VAL = [*COLUMNS[:5], "val_loss", "val_accuracy", *COLUMNS[5:]]      # of a run with images to choose the best epoch with


def read_config(folder):
    """What config.json says of a run; {} where nothing can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        path = folder / "config.json"
        files.require_file(path)
        with open(path, encoding="utf-8") as file:
            config = json.loads(file.read(LONGEST_CONFIG))
        if isinstance(config, dict):
            return config
    return {}


class RunFolder:
    """The folder of a run. It is not touched before `open`, and `close` may be called at any time.

    `out` is the value of --out. Without it a resumed run goes on in the folder of its checkpoint, and any other run gets a new
    folder in runs/. A resumed run goes on from the Checkpoint `saved` of the file `source`. The attributes path, last and best, the
    folder and two checkpoints in it, are known after `open`.
    """

    def __init__(self, out, options, source=None, saved=None):
        self.out, self.options, self.source, self.saved = out, options, source, saved
        self.home = source and source.parent
        self.path = self.last = self.best = self.lock = None
        self.copies = {}            # the bytes of checkpoints that must be there to go on, by name
        self.made = False           # whether this run has made the folder
        self.empty = False          # whether the folder is this run's, and holds nothing that it has learned

    def open(self):
        """Take the folder, and put the files there that a resumed run needs; ValueError where it holds another run."""
        self.rows = read_metrics(self.home / "metrics.csv", self.saved.progress.epoch) if self.home else []
        if self.out is not None:
            self.path = Path(self.out)
        elif self.home:
            self.path = self.home
        else:
            model = re.sub(r"[^\w.-]+", "-", self.options["model"])
            self.path = _new_folder(Path("runs") / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{self.options['dataset']}-{model}")
            self.made = True
        self.last, self.best = self.path / "last.safetensors", self.path / BEST
        elsewhere = self.home and self.path.resolve() != self.home.resolve()
        if self.home:
            self._copy(self.home / BEST if elsewhere else None)
        if self.home and not elsewhere:
            self._lock("--resume", "wait for its end, or give --out another folder")
            self._require_furthest()
            self.lock.mark("")
        else:
            self._claim()
            if self.rows:
                self._write_metrics()
        for name, content in self.copies.items():
            there = self._progress(self.path / name)
            if there is None or there.epoch < self.saved.progress.epoch:
                files.write_atomically(self.path / name, content)

    def _copy(self, best):
        """Fill `copies`; `best` is a file that may hold one of them.

        A run writes last.safetensors first. One that was killed then lacks the other checkpoints of the epoch, which are equal.
        """
        p = self.saved.progress
        if p.epoch and not p.step:
            content = checkpoint.to_bytes(**vars(self.saved))
            if p.best_epoch == p.epoch:
                self.copies[BEST] = content
            if name := self._kept(p.epoch):
                self.copies[name] = content
        if BEST not in self.copies and best and best.exists():
            found = checkpoint.load(best, self.saved.model.own_layers())
            if found.progress.best_epoch == p.best_epoch:
                self.copies[BEST] = checkpoint.to_bytes(**vars(found))

    def _kept(self, epoch):
        """The name of the checkpoint that --save-every keeps of an epoch, or None."""
        every = self.options["save_every"]
        return f"epoch-{epoch}.safetensors" if every and epoch % every == 0 else None

    def _lock(self, option, way_out):
        """Be the only process at work in the folder, and remove the temporary files of one that was killed."""
        try:
            self.lock = files.Lock(self.path)
        except BlockingIOError:
            raise ValueError(f"{option}: {self.path} holds a run already, which another process is at work on; "
                             f"{way_out}") from None
        if self.lock.held:
            files.remove_temporaries(self.path, FILES)

    def _claim(self):
        """Make the folder this run's; ValueError where another run is in it, even one that has just begun."""
        if not self.made:
            self.made = files.make_folder(self.path)
        self._lock("--out", "choose another folder")
        abandoned = self.lock.marked        # by a run that was killed before it had learned anything
        found = sorted(file for file in self.path.glob("*.safetensors")
                       if not (abandoned and file.is_file() and file.read_bytes() == self.copies.get(file.name)))
        records = [file for name in ("config.json", "metrics.csv") if (file := self.path / name).exists()]
        if found:
            best = next((file for file in (self.last, self.best) if file in found), found[0])
            raise ValueError(f"--out: {self.path} holds a run already; choose another folder, or continue that run with "
                             f"--resume {shlex.quote(str(best))}")
        if records and not abandoned:
            names = " and ".join(file.name for file in records)
            raise ValueError(f"--out: {self.path} holds a run already, but no checkpoint; choose another folder, or, if no "
                             f"process is at work on it, move {names} away")
        if not self.lock.held:      # where there are no locks: only one of several runs can make this file
            (self.path / "config.json").touch(exist_ok=False)
        self.empty = True
        self.lock.mark("a run that has no checkpoint yet\n")
        for file in records:
            file.unlink()

    def _progress(self, path):
        """How far a checkpoint is; None where there is none, or a damaged one."""
        try:
            return checkpoint.load(path, self.saved.model.own_layers()).progress
        except MissingLayer:        # it is another network's, and whole
            raise
        except (OSError, ValueError):
            return None

    def _require_furthest(self):
        """Raise ValueError where this run would overwrite a last.safetensors that is further than its source."""
        last = self._progress(self.last)
        if last and (last.epoch, last.step) > (self.saved.progress.epoch, self.saved.progress.step):
            raise ValueError(f"--resume: {self.last} is further, with {last.epoch} epochs and {last.step} "
                             "batches done, and would be overwritten; resume from that, or give --out another folder")

    def write_config(self, config):
        """Write config.json."""
        files.write_atomically(self.path / "config.json", json.dumps(config, indent=2).encode() + b"\n")

    def save_epoch(self, metrics, current):
        """Write a row of metrics.csv, and the Checkpoint `current` to the files that are due after an epoch."""
        self.rows.append({**metrics, "images_per_second": round(metrics["images_per_second"], 1),
                          "seconds": round(metrics["seconds"], 3)})
        self._write_metrics()
        self.save_last(current)       # first: the others can be made from it, see _copy
        if current.progress.best_epoch == metrics["epoch"]:
            checkpoint.save(self.best, **vars(current))
        if name := self._kept(metrics["epoch"]):
            checkpoint.save(self.path / name, **vars(current))

    def save_last(self, current):
        """Write last.safetensors."""
        checkpoint.save(self.last, **vars(current))
        if self.empty:      # from now on there is something to lose
            self.empty = False
            self.lock.mark("")

    def _write_metrics(self):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS_VAL if any("val_loss" in row for row in self.rows) else COLUMNS,
                                lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_atomically(self.path / "metrics.csv", text.getvalue().encode())

    def close(self):
        """Unlock the folder. Where nothing was learned, remove what this run has made in it."""
        with contextlib.suppress(OSError):      # then the mark stays, and says that the run is abandoned
            if self.empty:
                if not self.last.exists():
                    files.remove_temporaries(self.path, FILES)
                    for name in ("config.json", "metrics.csv", *self.copies):
                        (self.path / name).unlink(missing_ok=True)
                self.lock.mark("")
        if self.lock:
            self.lock.release()
        if self.made:
            with contextlib.suppress(OSError):      # it is not empty
                self.path.rmdir()


class Events:
    """The folder of what TensorBoard shows of a run: tensorboard in the RunFolder `run`, which is open, unless `path` says another.

    A run that learns nothing leaves no events. Those that go on write on; they hide what was written of epochs that they do again.
    """

    def __init__(self, path, run):
        self.path, self.run, self.writer = Path(path or run.path / "tensorboard"), run, None
        if not run.source and self._found():
            raise ValueError(f"--tensorboard: {self.path} holds another run's events; choose another folder")
        self.made = files.make_folder(self.path)

    def _found(self):
        return any(self.path.glob("events.out.tfevents.*"))

    def prepare(self, model, images):
        """What takes long the first time, so that no epoch's time includes it."""
        import tensorboardX  # noqa: F401       it imports PyTorch where that is installed
        BackpropScheduler(model, None, fuse=False).predict(images[:1])      # feature maps need the kernels of single layers

    def write(self, state, train):
        """Write an epoch, after its row of metrics.csv; the first time those before it, too, where there are no events yet."""
        if self.writer is None:
            from tensorboardX import SummaryWriter
            earlier = [] if self._found() else self.run.rows[:-1]
            # No queue is ever full: nobody waits for a slow disk. Without a suffix, files made in the same second are one.
            epoch = state.history[-1]["epoch"]
            self.writer = SummaryWriter(str(self.path), purge_step=epoch, max_queue=0, flush_secs=5, filename_suffix=f".{epoch}")
            for row in earlier:
                tensorboard.add_metrics(self.writer, row)
        tensorboard.add_epoch(self.writer, state, train)

    def close(self):
        """Write what is left, or remove the folder where this run has made it and nothing was written."""
        if self.writer:
            with files.naming(self.path):
                self.writer.close()
        elif self.made:
            with contextlib.suppress(OSError):      # it is not empty
                self.path.rmdir()


def _new_folder(path):
    """Make a folder that was not there before, with a number after its name if necessary."""
    for k in range(1, 1000):
        folder = path if k == 1 else path.with_name(f"{path.name}-{k}")
        if files.make_folder(folder):
            return folder
    raise ValueError(f"--out: {path} and 998 numbered ones are taken")


def read_metrics(path, epochs):
    """The rows of a metrics.csv up to an epoch; none where there is no such file."""
    try:
        files.require_file(path)
        if os.stat(path).st_size > LONGEST_METRICS:
            raise ValueError
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["epoch"]) <= epochs]
        if reader.fieldnames not in (COLUMNS, COLUMNS_VAL) or any(None in row or None in row.values() for row in rows):
            raise ValueError
        return rows
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}; move it away to go on without it") from None
