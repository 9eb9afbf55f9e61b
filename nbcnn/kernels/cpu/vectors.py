"""What is done with a whole flat vector besides an update: its norm, a factor, a moving average."""
import numpy as np

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import launch
from nbcnn.kernels.cpu.parallel import prange

LANES = 64          # sums side by side, enough for several vector registers
CHUNK = 1 << 14     # elements that one thread adds up


@njit(parallel=True)
def squares(sums, x):
    """sums[part*LANES + lane] += the squares of the elements lane, lane + LANES, ... of each CHUNK of x."""
    for part in prange(len(sums) // LANES):
        start, stop, first = part * CHUNK, min(part * CHUNK + CHUNK, len(x)), part * LANES
        whole = stop - (stop - start) % LANES
        for k in range(start, whole, LANES):
            for lane in range(LANES):
                sums[first + lane] += x[k + lane] * x[k + lane]
        for k in range(whole, stop):
            sums[first + k - whole] += x[k] * x[k]


@njit(parallel=True)
def scale(x, factor):
    """x *= factor"""
    for k in prange(len(x)):
        x[k] *= factor


@njit(parallel=True)
def average(slow, fast, keep, rest):
    """slow = keep * slow + rest * fast. What decays ends at 0, not in denormal numbers."""
    zero, tiny = slow.dtype.type(0), np.finfo(slow.dtype).tiny
    for k in prange(len(slow)):
        v = keep * slow[k] + rest * fast[k]
        slow[k] = zero if abs(v) < tiny else v


def sum_of_squares(x):
    """The sum of the squares of a flat vector, a float64: of partial sums, whose number follows from the length alone."""
    sums = np.zeros(-(-len(x) // CHUNK) * LANES, x.dtype)
    launch(squares, sums, x)
    return sums.sum(dtype=np.float64)


def multiply(x, factor):
    """x *= factor, in place."""
    launch(scale, x, x.dtype.type(factor))


def move_average(slow, fast, decay):
    """slow = decay * slow + (1 - decay) * fast, in place."""
    launch(average, slow, fast, slow.dtype.type(decay), slow.dtype.type(1 - decay))
