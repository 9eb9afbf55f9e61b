"""Imported by tests that compile GPU kernels: it skips them, all for one reason, where something for that is not installed."""
import pytest


def missing():
    """What it is, in words; "" where nothing is missing."""
    try:
        import gpu_offline
    except ImportError as error:
        return str(error)
    return gpu_offline.missing()


if reason := missing():
    pytest.skip(f"the GPU kernels cannot be compiled here: {reason}", allow_module_level=True)
