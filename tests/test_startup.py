"""Starting: many processes at once on one empty cache of compiled kernels, and one on a full one."""
import os
import subprocess
import sys

# One of the kernels that compile soonest; `python bench/startup.py --processes 8` does the same with a whole training step.
STEP = """
import numpy as np
import nbcnn.kernels
from nbcnn.kernels.cpu.activations import relu_forward
y = nbcnn.kernels.relu_forward(np.random.default_rng(0).standard_normal((2, 3, 4, 5), dtype=np.float32))
print(y.tobytes().hex(), sum(relu_forward.stats.cache_hits.values()))
"""


def start(cache):
    return subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "NUMBA_CACHE_DIR": str(cache)})


def test_eight_processes_on_one_empty_cache(tmp_path):
    """All succeed with the same bits, whoever compiled and whoever found what another one had written; then all is found."""
    processes = [start(tmp_path) for _ in range(8)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, [error[-1000:] for _, error in outputs]
    assert len({output.split()[0] for output, _ in outputs}) == 1
    output, error = start(tmp_path).communicate(timeout=300)
    assert output.split()[1:] == ["1"], error
