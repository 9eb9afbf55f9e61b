"""What is done with a whole flat vector besides an update: its norm, a factor, a moving average."""
import numpy as np

from nbcnn.kernels.cuda.compat import Launch, cuda, empty, kernel, to_host
from nbcnn.kernels.cuda.launch import THREADS, each, run
from nbcnn.kernels.cuda.losses import BLOCK, block_sum
from nbcnn.kernels.operation import Call

MOST_BLOCKS = 256       # each leaves a sum for the host


@kernel(BLOCK)
def squares(sums, x):
    """sums[block] = the sum of the squares of its threads' elements, each of which has every (number of threads)-th one."""
    shared, total = cuda.shared.array(BLOCK, x.dtype), x.dtype.type(0)
    for k in range(cuda.grid(1), len(x), cuda.gridsize(1)):
        total += x[k] * x[k]
    total = block_sum(shared, total)
    if cuda.threadIdx.x == 0:
        sums[cuda.blockIdx.x] = total


@kernel(THREADS)
def scale(x, factor):
    """x *= factor"""
    k = cuda.grid(1)
    if k < len(x):
        x[k] *= factor


@kernel(THREADS)
def average(slow, fast, keep, rest):
    """slow = keep * slow + rest * fast"""
    k = cuda.grid(1)
    if k < len(slow):
        slow[k] = keep * slow[k] + rest * fast[k]


def sum_of_squares(x):
    """The sum of the squares of a flat vector, a float64: of partial sums, whose number follows from the length alone."""
    sums = empty((min(-(-len(x) // BLOCK), MOST_BLOCKS),), x.dtype)
    run([Call(Launch(squares, len(sums), BLOCK), (sums, x))])
    return to_host(sums).sum(dtype=np.float64)


def multiply(x, factor):
    """x *= factor, in place."""
    run([Call(each(scale, x.size), (x, x.dtype.type(factor)))])


def move_average(slow, fast, decay):
    """slow = decay * slow + (1 - decay) * fast, in place."""
    run([Call(each(average, slow.size), (slow, fast, slow.dtype.type(decay), slow.dtype.type(1 - decay)))])
