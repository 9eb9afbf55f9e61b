"""Max pooling on the CPU: each window's largest value and where it stood, and the way back.

Images are channels last, so the inner loops run over the channels of a pixel: 16 float32 windows side by side in a vector. Every
cell of an input plane has one number, r*W + s; `argmax` holds those, as int32.
"""
from collections import namedtuple

import numpy as np

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.buffer import Buffer
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Operation

# The sizes of a pooling of n samples; a step leads from a sample to the next one.
Geometry = namedtuple("Geometry", (
    "n C H W OH OW KH KW stride_h stride_w padding_h padding_w dilation_h dilation_w x_step y_step argmax_step"))


@njit(parallel=True)
def maxpool2d_forward(y, argmax, x, g):
    """y[m, i, j, c] = the largest of x[m, r + p*dilation_h, s + q*dilation_w, c] over p, q, argmax its cell.

    r = i*stride_h - padding_h, s = j*stride_w - padding_w. Each pass over the channels compares two cells of a window with the
    largest so far, which lies in y: rounded where y is bfloat16 and x is not, and then the cell's number is one that rounds to y.
    """
    for task in prange(g.n * g.OH):
        m, i = task // g.OH, task % g.OH
        r_first, r_end = _cells_inside(i * g.stride_h - g.padding_h, g.dilation_h, g.KH, g.H)
        for j in range(g.OW):
            s_first, s_end = _cells_inside(j * g.stride_w - g.padding_w, g.dilation_w, g.KW, g.W)
            at_y, at_argmax = m * g.y_step + (i * g.OW + j) * g.C, m * g.argmax_step + (i * g.OW + j) * g.C
            for r in range(r_first, r_end, g.dilation_h):
                for s in range(s_first, s_end, 2 * g.dilation_w):
                    t = s + g.dilation_w if s + g.dilation_w < s_end else s     # an odd last cell is compared twice: no harm
                    a_cell, b_cell, start = np.int32(r * g.W + s), np.int32(r * g.W + t), r == r_first and s == s_first
                    at_a, at_b = m * g.x_step + a_cell * g.C, m * g.x_step + b_cell * g.C
                    for c in range(g.C):
                        a, b = tile.get(x, at_a + c), tile.get(x, at_b + c)
                        best, cell = (a, a_cell) if start else (tile.get(y, at_y + c), tile.get(argmax, at_argmax + c))
                        wins = (a > best) | (a != a)                            # a != a: NaN
                        best, cell = (a, a_cell) if wins else (best, cell)
                        wins = (b > best) | (b != b)
                        best, cell = (b, b_cell) if wins else (best, cell)
                        tile.put(y, at_y + c, best)
                        tile.put(argmax, at_argmax + c, cell)


@njit(parallel=True, allocates=True)
def maxpool2d_backward(dx, dy, argmax, g):
    """dx = dy at the cells that won. A task owns a row of dx, so overlapping windows need no atomics and keep their order."""
    zero = tile.number_type(dx)(0)
    for task in prange(g.n * g.H):
        m, r = task // g.H, task % g.H
        row = m * g.x_step + r * g.W * g.C
        sums = tile.sums(dx, row, g.W * g.C)
        sums[:] = zero
        i_first, i_end = _windows_over(r + g.padding_h, (g.KH - 1) * g.dilation_h, g.stride_h, g.OH)
        for i in range(i_first, i_end):
            for j in range(g.OW):
                at_y, at_argmax = m * g.y_step + (i * g.OW + j) * g.C, m * g.argmax_step + (i * g.OW + j) * g.C
                s_first, s_end = _cells_inside(j * g.stride_w - g.padding_w, g.dilation_w, g.KW, g.W)
                for s in range(s_first, s_end, g.dilation_w):
                    d, cell = sums[s * g.C:(s + 1) * g.C], np.int32(r * g.W + s)
                    for c in range(g.C):
                        value = tile.get(dy, at_y + c)              # read by all, so that vectors are
                        d[c] += value if tile.get(argmax, at_argmax + c) == cell else zero
        tile.store_sums(dx, row, sums)


@njit
def _cells_inside(start, dilation, kernel, size):
    """The first of a window's cells that is inside the image along an axis, and the end of them."""
    end = min(size, start + (kernel - 1) * dilation + 1)
    return start if start >= 0 else start + (-start + dilation - 1) // dilation * dilation, end


@njit
def _windows_over(cell, reach, stride, count):
    """The first and the end of the windows that begin at most `reach` before a cell, which is counted from the padding's edge."""
    return max(0, (cell - reach + stride - 1) // stride), min(count, cell // stride + 1)


@njit(parallel=True)
def maxpool2d_scatter(dx, dy, argmax):
    """dx (N, C, H*W) += dy (N, C, OH*OW) at the cells argmax (N, C, OH*OW) names, whatever windows they come from."""
    for m in prange(len(dx)):
        for c in range(dy.shape[1]):
            for k in range(dy.shape[2]):
                dx[m, c, argmax[m, c, k]] += dy[m, c, k]


class MaxPool2d(Operation):
    """Max pooling of images (C, H, W); remembers which cells won.

    Attributes
    ----------
    argmax : Buffer of int32
    """

    bfloat16 = True

    def __init__(self, x_shape, kernel_size, stride, padding, dilation, y_shape, dtype):
        _, H, W = self.x_shape = x_shape
        if H * W > np.iinfo(np.int32).max:
            raise ValueError(f"x: expected planes of less than 2**31 cells, got {H}x{W}")
        self.windows, self.y_shape = (*kernel_size, *stride, *padding, *dilation), y_shape

    def reserve(self, batch):
        self.argmax = Buffer(batch, self.y_shape, np.int32)

    def bytes(self, batch):
        return 4 * Buffer.elements(batch, self.y_shape)

    def winners(self, n):
        """The argmax of the first n samples as an int64 array (n, C, OH, OW)."""
        return self.argmax.view(n).astype(np.int64)

    def _geometry(self, n, x, y):
        return Geometry(n, *self.x_shape, *self.y_shape[1:], *self.windows, x.step, y.step, self.argmax.step)

    def forward(self, n, y, x, params):
        return [Call(maxpool2d_forward, (y.array, self.argmax.array, x.array, self._geometry(n, x, y)))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [
            Call(maxpool2d_backward, (dx.array, dy.array, self.argmax.array, self._geometry(n, dx, dy)))]
