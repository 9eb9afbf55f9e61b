"""How parallel kernels are compiled and started."""
import threading

from numba import config

# An IndexError cannot leave a parallel loop, so a run with NUMBA_BOUNDSCHECK=1 compiles the loops to be serial.
PARALLEL = not config.BOUNDSCHECK
# Numba's cache key does not tell checked code from unchecked: what is compiled with checks is not kept.
CACHE = not config.BOUNDSCHECK

_one_at_a_time = threading.Lock()


def launch(kernel, *arguments):
    """Call a kernel while no other Python thread runs one: Numba's workqueue layer aborts the process otherwise."""
    with _one_at_a_time:
        return kernel(*arguments)
