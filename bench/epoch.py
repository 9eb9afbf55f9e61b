"""An epoch of CIFAR-10 from its files, as whole processes: `python -m nbcnn.train` beside the loop of PyTorch's tutorials.

    python bench/epoch.py [--data-dir data] [--repeats 1] [--limit N]

Each side imports, reads the python version's files, trains on all images once in batches of 64, and tests: seconds from the start
of the process to its end, and its largest resident set. nbcnn's kernels have been compiled before. `tutorial_loop.py`, the other
side, runs without worker processes and with two, and the faster one counts; the resident set is that of the largest process.
"""
import itertools
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import Parser, describe, process, ratio, table, whole

HERE = Path(__file__).resolve().parent
# The command line with the first images of each file set only.
LIMITED = """
import sys
from nbcnn import train
from nbcnn.datasets import Dataset, choice
limit, (find, whole) = int(sys.argv.pop(1)), choice.FILES["cifar10"]
choice.FILES["cifar10"] = find, lambda folder: tuple(
    Dataset(part.images[:limit], part.labels[:limit], part.classes, part.name) for part in whole(folder))
sys.exit(train.main())
"""


def main():
    parser = Parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder that holds cifar-10-batches-py")
    parser.add_argument("--repeats", type=whole, default=1, help="processes of each kind")
    parser.add_argument("--limit", type=whole, help="so many images to train and to test with, to try this out")
    options = parser.parse_args()
    folder, python = options.data_dir / "cifar-10-batches-py", sys.executable
    if not (folder / "test_batch").exists():
        parser.error(f"--data-dir: expected a folder with cifar-10-batches-py in it, got {options.data_dir}")
    limit = ["--limit", str(options.limit)] if options.limit else []

    with tempfile.TemporaryDirectory() as runs:
        numbers = itertools.count()

        def nbcnn(limit):
            return process([python, *(["-c", LIMITED, str(limit)] if limit else ["-m", "nbcnn.train"]), "--dataset", "cifar10",
                            "--data-dir", str(folder), "--recipe", "tutorial", "--epochs", "1", "--batch-size", "64",
                            "--out", f"{runs}/{next(numbers)}", "--quiet"])

        def tutorial(workers):
            return process([python, str(HERE / "tutorial_loop.py"), "--data-dir", str(folder), "--workers", str(workers), *limit])

        nbcnn(80)       # compiles what a batch of 64 and a smaller one need
        sides = {"python -m nbcnn.train": lambda: nbcnn(options.limit), "PyTorch, no workers": lambda: tutorial(0),
                 "PyTorch, 2 workers": lambda: tutorial(2)}
        results = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, run in sides.items():
                seconds, memory, output = run()
                learned = re.search(r"train(?: loss)? +([\d.]+).*acc(?:uracy)? +([\d.]+%)", output).groups()
                results[name].append((seconds, memory, learned))
                print(name, f"{seconds:.1f} s", f"{memory:.0f} MiB", *learned, sep="  ", flush=True)

    seconds = {name: np.array([result[0] for result in several]) for name, several in results.items()}
    mine, *theirs = seconds.values()
    rows = []
    for name, several in results.items():
        rows.append([name, f"{np.median(seconds[name]):.1f}", f"{max(memory for _, memory, _ in several):.0f}",
                     *several[0][2]])
    print(f"\n{describe('all')}; {options.limit or 'all'} images, {options.repeats} of each process\n")
    print(table(["process", "seconds", "largest resident set, MiB", "train loss", "test accuracy"], rows))
    print(f"\nbetter of PyTorch's / nbcnn's: {ratio(np.min(theirs, axis=0), mine)}")


if __name__ == "__main__":
    main()
