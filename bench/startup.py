"""How soon a new process has trained its first batch of 64: nbcnn with and without compiled kernels, and PyTorch.

    python bench/startup.py [--repeats 5] [--cold 2] [--processes 8]

Whole processes, from their start to their end, taking turns. "Warm" finds its kernels in the cache, "cold" has an empty one.
--processes: at last so many cold processes start at once with one empty cache between them, and all must succeed.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from common import Parser, describe, process, ratio, table, whole

CLOCK = """
import json, time
times, began = {}, time.perf_counter()
def lap(name):
    global began
    now = time.perf_counter()
    times[name], began = now - began, now
"""
NBCNN = CLOCK + """
import numba
lap("import numba, torch")
import nbcnn
lap("import nbcnn")
import numpy as np
model = nbcnn.models.cifar10_quick()
step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.01)
rng = np.random.default_rng(0)
images, labels = rng.random((64, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, 64)
step.plan(images.shape[1:])
lap("network, data")
assert np.isfinite(step.train_step(images, labels, optimizer))
lap("first step")
print(json.dumps(times))
"""
TORCH = CLOCK + """
import torch
lap("import numba, torch")
from torch import nn
net = nn.Sequential(
    nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))
optimizer, criterion = torch.optim.SGD(net.parameters(), lr=0.01), nn.CrossEntropyLoss()
images, labels = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
lap("network, data")
optimizer.zero_grad()
loss = criterion(net(images), labels)
loss.backward()
optimizer.step()
assert loss.isfinite()
lap("first step")
print(json.dumps(times))
"""


def main():
    parser = Parser(__doc__)
    parser.add_argument("--repeats", type=whole, default=5, help="processes of nbcnn, warm, and of PyTorch")
    parser.add_argument("--cold", type=whole, default=2, help="processes of nbcnn, cold")
    parser.add_argument("--processes", type=lambda text: whole(text, 0), default=8, help="cold ones at once; 0: none")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        def run(code, cache):
            seconds, _, output = process([sys.executable, "-c", code], NUMBA_CACHE_DIR=f"{folder}/{cache}")
            return {"whole process": seconds, **json.loads(output)}

        cold, warm, torch = [], [], []
        for k in range(max(options.cold, options.repeats)):
            if k < options.cold:
                cold.append(run(NBCNN, k))
            if k < options.repeats:
                warm.append(run(NBCNN, 0))      # what the first cold one has compiled
                torch.append(run(TORCH, 0))
        print(describe("all"), "\n")
        header = ["process", "whole process", "import numba, torch", "import nbcnn", "network, data", "first step"]
        print(table([f"{name} s" if k else name for k, name in enumerate(header)], [
            [name, *(f"{np.median([times[part] for times in several]):.2f}" if part in several[0] else "" for part in header[1:])]
            for name, several in ((f"nbcnn, warm ({len(warm)})", warm), (f"PyTorch ({len(torch)})", torch),
                                  (f"nbcnn, cold ({len(cold)})", cold))]))
        print(f"\nPyTorch's / nbcnn's, warm: "
              f"{ratio([times['whole process'] for times in torch], [times['whole process'] for times in warm])}", flush=True)

        if options.processes:
            start, command = time.perf_counter(), [sys.executable, "-c", NBCNN]
            environment = {**os.environ, "NUMBA_CACHE_DIR": f"{folder}/shared"}
            several = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for _ in range(options.processes)]
            failed = sum(one.wait() != 0 for one in several)
            print(f"\n{options.processes} cold processes at once, one cache: {failed} failed, "
                  f"{time.perf_counter() - start:.1f} s until the last was done")
            sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
