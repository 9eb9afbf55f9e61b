"""How much memory the buffers of a network may take: by default half of what the process can have."""
import os
import sys

from nbcnn.kernels.arguments import INT64, integer

CGROUPS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"      # of a container, by either version

_most = None


def set_max_memory(size):
    """Limit the memory that a network's buffers take on the CPU. A batch that needs more raises a MemoryError.

    The limit holds for each `nbcnn.BackpropScheduler` and for each model that predicts. Parameters and images are not counted.

    Parameters
    ----------
    size : int or None
        In bytes. None stands for the default: half of the memory of the machine or of the container.

    Examples
    --------
    >>> import numpy as np, nbcnn
    >>> model = nbcnn.Sequential([nbcnn.Conv2d(3, 8, 3), nbcnn.GlobalAvgPool2d()])
    >>> nbcnn.set_max_memory(1_000_000)
    >>> model(np.zeros((1, 3, 1000, 1000), np.float32))     # doctest: +ELLIPSIS
    Traceback (most recent call last):
    MemoryError: 0: expected buffers of at most 1,000,000 bytes for all layers and a batch of 1, got ...
    >>> nbcnn.set_max_memory(None)
    """
    global _most
    _most = None if size is None else integer(size, "size", 1, INT64)


def max_memory():
    """The limit in bytes."""
    return machine_memory() // 2 if _most is None else _most


def machine_memory():
    """How many bytes of memory this process can have: the machine's, or those of its container."""
    found = [sys.maxsize]
    if hasattr(os, "sysconf"):      # not on Windows
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CGROUPS:
        try:
            with open(path) as file:
                found.append(int(file.read()))
        except (OSError, ValueError):       # there is none, or it says "max"
            pass
    return min(found)
