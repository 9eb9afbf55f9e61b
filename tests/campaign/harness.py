"""Many hostile cases, each tried in a process that may die of it.

    def prepare():                          # in the worker, once: imports, compiles, returns what the cases share
    def case(shared, rng):                  # draws one case: (what it is, a function without arguments that does it)

    records = survey(__name__, 1000, seed)
    assert not [record for record in records if record["outcome"] not in ("ok", "ValueError")]

A worker runs the cases one after another under a limit of its memory and an alarm. What kills it (a crash, the alarm's second
ring) becomes the outcome of the case it was at, and a new worker goes on with the next.
"""
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
GIB = 2**30


class Overdue(BaseException):
    """The alarm of a case; no `except Exception` swallows it."""


def survey(module, count, seed, *, first=0, memory=3 * GIB, seconds=20, environment=None):
    """Try `count` cases of a test module, and say what became of each.

    Parameters
    ----------
    module : str
        The name of a module of this folder, "campaign.test_...", with `prepare` and `case`.
    count, seed, first : int
        Case k is drawn from random.Random(seed * 10**7 + k), k from `first` on: a record can be repeated by itself.
    memory : int
        Bytes a worker may take beyond those it has after `prepare`.
    seconds : float
        How long a case may take before it is ended.
    environment : dict, optional
        Variables of the workers.

    Returns
    -------
    records : list of dict
        For each case "case" (k), "what", "outcome" ("ok", or the name of the exception; "Overdue"; "crash"), "message",
        "seconds", "bytes" (the most that it took beyond what the worker had), and "place" (the last two frames of an exception).
    """
    records, at, own = [], first, environment or {}
    with tempfile.TemporaryDirectory() as folder:
        log, errors = os.path.join(folder, "log"), os.path.join(folder, "errors")
        while at < first + count:
            with open(errors, "w") as stderr:
                worker = subprocess.Popen(
                    [sys.executable, __file__, module, str(at), str(first + count), str(seed), str(memory), str(seconds), log],
                    stdout=stderr, stderr=stderr, env={"NUMBA_NUM_THREADS": "1", **os.environ, "TMPDIR": folder, **own})
                while _running(worker, 2 * seconds):
                    if os.path.exists(log) and time.time() - os.stat(log).st_mtime > 2 * seconds + 60:     # deaf to the alarm
                        worker.kill()
            lines = [json.loads(line) for line in open(log)] if os.path.exists(log) else []
            records += [line for line in lines if "outcome" in line]
            if worker.returncode == 0:
                break
            begun = [line["case"] for line in lines]
            assert begun, f"the worker of {module} did not begin: {Path(errors).read_text()[-2000:]}"
            at = begun[-1] + 1
            if "outcome" not in lines[-1]:
                records.append({**lines[-1], "outcome": "crash", "message": f"exit {worker.returncode}", "seconds": 0.0, "bytes": 0,
                                "place": Path(errors).read_text()[-1500:]})
            os.unlink(log)
    assert [record["case"] for record in records] == list(range(first, first + count))
    return records


def _running(worker, seconds):
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def outcomes(records):
    """How many cases had each outcome."""
    counts = {}
    for record in records:
        counts[record["outcome"]] = counts.get(record["outcome"], 0) + 1
    return counts


def work(module, start, stop, seed, memory, seconds, log):
    """What a worker does."""
    module = importlib.import_module(module)
    shared = module.prepare()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_virtual() + memory, hard))

    def ring(number, frame):
        raise Overdue
    signal.signal(signal.SIGALRM, ring)
    with open(log, "w", 1) as out:
        for k in range(start, stop):
            what, function = module.case(shared, random.Random(seed * 10**7 + k))
            out.write(json.dumps({"case": k, "what": what}) + "\n")
            record = {"case": k, "what": what, "outcome": "ok", "message": "", "place": ""}
            Path("/proc/self/clear_refs").write_text("5")       # the peak begins anew
            before, started = _peak(), time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                record["message"] = str(function() or "")
            except BaseException as error:
                frames = traceback.format_tb(error.__traceback__)[-2:]
                record.update(outcome=type(error).__name__, message=str(error), place="".join(frames))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            record.update(seconds=time.perf_counter() - started, bytes=_peak() - before)
            out.write(json.dumps(record) + "\n")


def _virtual():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak():
    """The largest resident set so far, in bytes."""
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)
    name, *numbers, path = sys.argv[1:]
    start, stop, seed, memory = map(int, numbers[:4])
    work(name, start, stop, seed, memory, float(numbers[4]), path)
