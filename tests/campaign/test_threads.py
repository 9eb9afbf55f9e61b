"""One model in eight threads, as often as the campaign asks."""
import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, numpy as np, nbcnn
model = nbcnn.Sequential([nbcnn.Conv2d(3, 8, 3, padding=1), nbcnn.ReLU(), nbcnn.MaxPool2d(2), nbcnn.Flatten(),
                          nbcnn.Linear(128, 3)])
images = np.random.default_rng(0).random((64, 3, 8, 8), dtype=np.float32)
expected, wrong = model(images), []
def ask(seed):
    rng = np.random.default_rng([seed, int(sys.argv[2])])
    for _ in range(int(sys.argv[1]) // 8):
        start = int(rng.integers(0, 63))
        stop = int(rng.integers(start + 1, 65))
        if not np.array_equal(model.predict(images[start:stop], int(rng.integers(1, 65))), expected[start:stop]):
            wrong.append((start, stop))
threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(wrong))
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_every_answer_is_that_of_one_thread_alone(layer, full, seed, monkeypatch):
    monkeypatch.setenv("NUMBA_THREADING_LAYER", layer)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(100_000 if full else 800), str(seed)], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr[-2000:]
