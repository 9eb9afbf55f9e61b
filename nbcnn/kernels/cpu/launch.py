"""How parallel kernels are compiled and started."""
import contextlib
import importlib
import os

from nbcnn.kernels import turns

# How often a thread of GNU OpenMP that waits for the others looks before it gives its core away. Its own 300,000 times are
# milliseconds, many more than a kernel takes: beside another busy process they keep the very threads they wait for from a core.
SPINS = 10_000


def load_openmp():
    """Load GNU OpenMP with SPINS, unless the user has chosen; it reads the environment when it is loaded, and only then."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    with contextlib.suppress(ImportError):      # Numba has no OpenMP here, or another one
        importlib.import_module("numba.np.ufunc.omppool")
    del os.environ["GOMP_SPINCOUNT"]            # processes that this one starts choose for themselves


load_openmp()


def launch(kernel, *arguments):
    """Call a kernel while no other Python thread runs one."""
    require()
    with turns.lock:
        return kernel(*arguments)


def run(calls):
    """Make these calls in order, while no other Python thread runs a kernel."""
    require()
    with turns.lock:
        for kernel, arguments, _ in calls:
            kernel(*arguments)


def require():
    """Raise RuntimeError where this backend cannot run: in a process that was forked after kernels ran."""
    if turns.stranded:
        raise RuntimeError("a process that was forked after kernels ran has none of their threads and can run no kernel; start it "
                           "with multiprocessing.get_context('spawn'), or fork before the first kernel runs")
