"""How parallel kernels are compiled and started."""
import threading

from numba import config

# An IndexError cannot leave a parallel loop, so a run with NUMBA_BOUNDSCHECK=1 compiles the loops to be serial.
PARALLEL = not config.BOUNDSCHECK
# Numba's cache key does not tell checked code from unchecked: what is compiled with checks is not kept.
CACHE = not config.BOUNDSCHECK

# Numba's workqueue layer aborts the process when two Python threads run kernels at once.
_one_at_a_time = threading.Lock()


def launch(kernel, *arguments):
    """Call a kernel while no other Python thread runs one."""
    with _one_at_a_time:
        return kernel(*arguments)


def run(calls):
    """Make these calls in order, while no other Python thread runs a kernel."""
    with _one_at_a_time:
        for kernel, arguments, _ in calls:
            kernel(*arguments)


def require():
    """Raise RuntimeError where this backend cannot run; this one always can."""
