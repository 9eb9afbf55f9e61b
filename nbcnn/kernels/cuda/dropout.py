"""Dropout on the GPU: what stays is drawn by a counter; `cpu/dropout.py` says how, and the bits are the same."""
import math

import numpy as np

from nbcnn.kernels.cuda.add import copy_call
from nbcnn.kernels.cuda.buffer import Buffer
from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.operation import Dropping, groups_of_four

# All are numbers of 32 bits, in 64: their products are whole there.
MULTIPLY_0, MULTIPLY_2, ADD_0, ADD_1, LOW, HIGH = map(np.uint64, (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 2**32 - 1, 32))


@cuda.jit(device=True)
def philox(c0, c1, c2, c3, key0, key1):
    """The four random numbers of a counter and a key."""
    for _ in range(10):
        first, third = MULTIPLY_0 * c0, MULTIPLY_2 * c2
        c0, c1, c2, c3 = (third >> HIGH) ^ c1 ^ key0, third & LOW, (first >> HIGH) ^ c3 ^ key1, first & LOW
        key0, key1 = (key0 + ADD_0) & LOW, (key1 + ADD_1) & LOW
    return c0, c1, c2, c3


@kernel(THREADS)
def dropout_draw(mask, cells, limit, key0, key1, layer, steps, count):
    """mask[4*group + k, cell] = whether the k-th random number of the cell is at least the limit: a thread for each of `count`."""
    thread = cuda.grid(1)
    if thread < count:
        group, cell = thread // cells, thread % cells
        a, b, c, d = philox(np.uint64(cell), np.uint64(group), np.uint64(steps[0]) & LOW, layer, key0, key1)
        at = 4 * group * cells + cell
        mask[at], mask[at + cells], mask[at + 2 * cells], mask[at + 3 * cells] = a >= limit, b >= limit, c >= limit, d >= limit


@kernel(THREADS)
def dropout(y, x, mask, scale, copies, count):
    """y = x times the mask of its cell, which `copies` elements in a row have in common, and the scale: a thread per element."""
    k, zero = cuda.grid(1), x.dtype.type(0)
    if k < count:
        y[k] = x[k] * (scale if mask[k // copies] else zero)


class Dropout(Dropping):
    """Dropout of elements, or of planes, of images (C, H, W) or vectors (F,)."""

    def reserve(self, batch):
        self.mask = Buffer(4 * groups_of_four(batch), self.cells, np.uint8)

    def draw(self, n):
        cells = math.prod(self.cells)
        return call_each(dropout_draw, groups_of_four(n) * cells, self.mask.array, cells, self.limit, *self.key())

    def apply(self, n, y, x):
        return call_each(dropout, n * x.size, y.array, x.array, self.mask.array, self.scale, self.copies)

    def evaluate(self, n, y, x, params):
        return [copy_call(y, x, n)]
