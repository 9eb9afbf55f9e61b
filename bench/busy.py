"""Training steps beside processes that keep the cores busy, as a browser or a test run does; PyTorch's in the same run.

    python bench/busy.py [--busy 0 1 2] [--seconds 3] [--rounds 5] [--base FOLDER]

Each figure is of a process of its own, so that each has its own threads; nbcnn and PyTorch (channels_last) take turns, and the
median of the rounds is shown. --base adds the nbcnn of another checkout.
"""
import os
import subprocess
import sys
import time

if "PyTorch" in sys.argv:       # loaded before nbcnn, so that its threads wait as they do without it
    import torch

import numpy as np

from common import MODELS, Parser, describe, duration, process, ratio, table, thread_count, torch_model, training, whole

CASES = [("cifar10_quick", 1), ("cifar10_quick", 64)]


def torch_training(model, images, labels):
    """PyTorch's step of the same network and images, a call without arguments."""
    net = torch_model(model).to(memory_format=torch.channels_last)
    x, t = torch.from_numpy(images).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)
    criterion, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.01)

    def run():
        optimizer.zero_grad()
        loss = criterion(net(x), t)
        loss.backward()
        optimizer.step()
        return loss.item()
    return run


def measure(side, seconds):
    """Print the mean milliseconds of a step of each case: what the process of a side does."""
    for name, batch in CASES:
        run, images, labels = training(MODELS[name](), batch)
        if side == "PyTorch":
            run = torch_training(MODELS[name](), images, labels)
        for _ in range(3):
            run()
        count, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            run()
            count += 1
        print(spent / count * 1e3)


def main():
    parser = Parser(__doc__)
    parser.add_argument("--busy", type=lambda text: whole(text, 0), nargs="+", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--seconds", type=duration, default=3.0, help="for each case in each process")
    parser.add_argument("--rounds", type=whole, default=5, help="processes of each side")
    parser.add_argument("--threads", type=thread_count, default=None, help="threads of both sides; all cores if not given")
    parser.add_argument("--base", help="folder of another checkout of nbcnn")
    parser.add_argument("--side", help="used by the bench itself: measure one side in this process")
    options = parser.parse_args()
    if options.side:
        return measure(options.side, options.seconds)
    here, threads = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), options.threads or os.cpu_count()
    sides = {"nbcnn": here, **({"base": os.path.abspath(options.base)} if options.base else {}), "PyTorch": here}
    rows = []
    for busy in options.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            times = np.array([[[float(line) for line in process(
                [sys.executable, __file__, "--side", side, "--seconds", str(options.seconds)], PYTHONPATH=folder,
                NUMBA_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))[2].split()]
                for side, folder in sides.items()] for _ in range(options.rounds)])      # (rounds, sides, cases)
        finally:
            for other in others:
                other.kill()
        for k, (name, batch) in enumerate(CASES):
            rows.append([name, batch, busy, *(f"{ms:.2f}" for ms in np.median(times[:, :, k], 0)),
                         *(ratio(times[:, j, k], times[:, 0, k]) for j in range(1, len(sides)))])
            print(*rows[-1], sep="  ", flush=True)
    print(f"\n{describe(threads)}; means of {options.seconds:g} s, medians of {options.rounds} processes\n")
    print(table(["network", "batch", "busy processes", *(f"{side} ms" for side in sides),
                 *(f"{side}'s / nbcnn's" for side in list(sides)[1:])], rows))


if __name__ == "__main__":
    main()
