"""Imported by tests that compile GPU kernels: it skips them, all for one reason, where something for that is not installed."""
import pytest


def missing():
    """What it is, in words; "" where nothing is missing."""
    try:
        import gpu_offline
    except ImportError:
        return "numba-cuda is not installed"
    return gpu_offline.missing()


if reason := missing():
    pytest.skip(f"needs the extra cuda-dev: {reason}", allow_module_level=True)
