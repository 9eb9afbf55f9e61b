"""Tests of what the GPU kernels compile to; no GPU and no driver is needed, numba-cuda, ptxas and nvdisasm are.

    python -m pytest tests/offline -s

prints the tables. Nothing here runs a kernel, so none of it makes sense in numba-cuda's simulator.
"""
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

collect_ignore_glob = ["test_*.py"] if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0") else []


@pytest.fixture(scope="session")
def offline():
    """bench/gpu_offline.py, which plans and compiles."""
    import gpu_offline
    return gpu_offline
