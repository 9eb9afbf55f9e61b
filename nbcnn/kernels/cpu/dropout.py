"""Dropout on the CPU: what stays is drawn by a counter, so it is the same for any number of threads, and on any device.

The numbers are those of Philox4x32-10, which keeps no state: ten rounds make four of them of a counter and a key (J. K. Salmon and
others, "Parallel random numbers: as easy as 1, 2, 3", 2011). The key is the model's seed. The counter is made of the cell's number
in its sample, that of the sample over four, the step and the layer, and the four numbers go to four samples in a row. A cell is an
element, counted in PyTorch's order (c, h, w), or, where planes are dropped, a plane c.
"""
import math

import numpy as np

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.add import copy_call
from nbcnn.kernels.cpu.buffer import Buffer
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Dropping, groups_of_four

# All are numbers of 32 bits, in 64: their products are whole there.
MULTIPLY_0, MULTIPLY_2, ADD_0, ADD_1, LOW, HIGH = map(np.uint64, (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 2**32 - 1, 32))


@njit(forceinline=True)     # so that the loop around it computes a vector of counters at a time
def philox(c0, c1, c2, c3, key0, key1):
    """The four random numbers of a counter and a key."""
    for _ in range(10):
        first, third = MULTIPLY_0 * c0, MULTIPLY_2 * c2
        c0, c1, c2, c3 = (third >> HIGH) ^ c1 ^ key0, third & LOW, (first >> HIGH) ^ c3 ^ key1, first & LOW
        key0, key1 = (key0 + ADD_0) & LOW, (key1 + ADD_1) & LOW
    return c0, c1, c2, c3


@njit(parallel=True)
def dropout_draw(mask, groups, C, pixels, step, limit, key0, key1, layer, steps):
    """mask[4*group + k, pixel, c] = whether the k-th random number of (c, pixel) is at least the limit."""
    done = np.uint64(steps[0]) & LOW
    for task in prange(groups * pixels):
        group, pixel = task // pixels, task % pixels
        at = 4 * group * step + pixel * C
        first, second, third, fourth = (mask[at:at + C], mask[at + step:at + step + C],
                                        mask[at + 2 * step:at + 2 * step + C], mask[at + 3 * step:at + 3 * step + C])
        for c in range(C):
            a, b, d, e = philox(np.uint64(c * pixels + pixel), np.uint64(group), done, layer, key0, key1)
            first[c], second[c], third[c], fourth[c] = a >= limit, b >= limit, d >= limit, e >= limit


@njit(parallel=True)
def dropout(y, x, mask, scale, n, cells, copies, step, mask_step):
    """y[m, copy, cell] = x[m, copy, cell] times mask[m, cell] and the scale. Backward is the same, of dy."""
    zero = type(scale)(0)
    for task in prange(n * copies):
        m, copy = task // copies, task % copies
        at, at_mask = m * step + copy * cells, m * mask_step
        for cell in range(cells):
            tile.put(y, at + cell, tile.get(x, at + cell) * (scale if tile.get(mask, at_mask + cell) else zero))


class Dropout(Dropping):
    """Dropout of elements, or of planes, of images (C, H, W) or vectors (F,)."""

    bfloat16 = True

    def reserve(self, batch):
        self.mask = Buffer(4 * groups_of_four(batch), self.cells, np.uint8)

    def bytes(self, batch):
        return Buffer.elements(4 * groups_of_four(batch), self.cells)

    def draw(self, n):
        sizes = self.cells[0], math.prod(self.cells[1:]), self.mask.step
        return Call(dropout_draw, (self.mask.array, groups_of_four(n), *sizes, self.limit, *self.key()))

    def apply(self, n, y, x):
        sizes = math.prod(self.cells), self.copies, x.step, self.mask.step
        return Call(dropout, (y.array, x.array, self.mask.array, self.scale, n, *sizes))

    def evaluate(self, n, y, x, params):
        return [copy_call(y, x, n)]
