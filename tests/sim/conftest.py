"""Tests of the GPU kernels in numba-cuda's simulator. It is asked for before numba is imported, so they need a run of their own:

    NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/sim

A simulated thread takes 0.1-0.3 ms: shapes are tiny.
"""
import os

collect_ignore_glob = [] if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0") else ["test_*.py"]
