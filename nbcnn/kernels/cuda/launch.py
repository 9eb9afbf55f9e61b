"""How kernels are started: one after another, on the default stream."""
from nbcnn.kernels.cuda.compat import SIMULATED, Launch, unavailable
from nbcnn.kernels.operation import Call

THREADS = 32 if SIMULATED else 256      # of a block, where each thread has one element


def each(kernel, count):
    """The launch of a kernel with one thread for each of `count` elements."""
    return Launch(kernel, max(1, -(-count // THREADS)), THREADS)


def call_each(kernel, count, *arguments):
    """The call of kernel(*arguments, count) with one thread for each of `count` elements."""
    return Call(each(kernel, count), (*arguments, count))


def compile_calls(calls):
    """Nothing: each is compiled when it is started for the first time."""


def run(calls):
    """Start these calls in order."""
    for kernel, arguments, _ in calls:
        kernel(*arguments)


def require():
    """Raise RuntimeError where this backend cannot run; the simulator counts as a GPU for who asked for it."""
    if not SIMULATED and (reason := unavailable()):
        raise RuntimeError(f"no GPU that CUDA can use: {reason}")
