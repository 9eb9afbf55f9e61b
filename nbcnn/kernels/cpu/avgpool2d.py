"""Average pooling on the CPU: the mean of each window, and its gradient's way back to all cells of the window.

Images are channels last, so the inner loops run over the channels of a pixel: 16 float32 windows side by side in a vector.
`divisor_override` is 0 where there is none. Sums are divided, not multiplied by a reciprocal, which would round twice.
"""
from collections import namedtuple

import numpy as np

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Operation

# The sizes of a pooling of n samples; a step leads from a sample to the next one.
Geometry = namedtuple("Geometry", (
    "n C H W OH OW KH KW stride_h stride_w padding_h padding_w x_step y_step count_include_pad "
    "divisor_override"))


@njit(parallel=True, allocates=True)
def avgpool2d_forward(y, x, g):
    """y[m, i, j, c] = the mean of x[m, r + p, s + q, c] over p, q, with r = i*stride_h - padding_h, s = j*stride_w - padding_w.

    Each pass over the channels adds two cells of a window, row by row, to the sum so far.
    """
    total = np.empty(g.C, tile.number_type(x))
    zero = total.dtype.type(0)
    for task in prange(g.n * g.OH):
        m, i = task // g.OH, task % g.OH
        rows = _window(i, g.H, g.KH, g.stride_h, g.padding_h)
        for j in range(g.OW):
            columns = _window(j, g.W, g.KW, g.stride_w, g.padding_w)
            (r_first, r_end, _), (s_first, s_end, _), at_y = rows, columns, m * g.y_step + (i * g.OW + j) * g.C
            for r in range(r_first, r_end):
                for s in range(s_first, s_end, 2):
                    start, at = r == r_first and s == s_first, m * g.x_step + (r * g.W + s) * g.C
                    if s + 1 < s_end:
                        for c in range(g.C):
                            total[c] = (zero if start else total[c]) + tile.get(x, at + c) + tile.get(x, at + g.C + c)
                    else:
                        for c in range(g.C):
                            total[c] = (zero if start else total[c]) + tile.get(x, at + c)
            divisor = total.dtype.type(_divisor(rows, columns, g))
            for c in range(g.C):
                tile.put(y, at_y + c, total[c] / divisor)


@njit(parallel=True, allocates=True)
def avgpool2d_backward(dx, dy, g):
    """dx = dy / divisor in all cells of a window. A task owns a row of dx, so overlapping windows need no atomics."""
    for task in prange(g.n * g.H):
        m, r = task // g.H, task % g.H
        row = m * g.x_step + r * g.W * g.C
        sums = tile.sums(dx, row, g.W * g.C)
        sums[:] = sums.dtype.type(0)
        for i in range(max(0, (r + g.padding_h - g.KH) // g.stride_h + 1), min(g.OH, (r + g.padding_h) // g.stride_h + 1)):
            rows = _window(i, g.H, g.KH, g.stride_h, g.padding_h)
            for j in range(g.OW):
                columns = _window(j, g.W, g.KW, g.stride_w, g.padding_w)
                divisor, at_y = sums.dtype.type(_divisor(rows, columns, g)), m * g.y_step + (i * g.OW + j) * g.C
                for s in range(columns[0], columns[1]):
                    d = sums[s * g.C:(s + 1) * g.C]
                    for c in range(g.C):
                        d[c] += tile.get(dy, at_y + c) / divisor
        tile.store_sums(dx, row, sums)


@njit
def _window(i, size, kernel, stride, padding):
    """Of window i along an axis of `size` cells: its first cell, its end, and its cells with those of the padding."""
    start = i * stride - padding
    end = min(start + kernel, size + padding)
    return max(0, start), min(size, end), end - start


@njit
def _divisor(rows, columns, g):
    """What the sum of a window is divided by."""
    if g.divisor_override:
        return g.divisor_override
    return rows[2] * columns[2] if g.count_include_pad else (rows[1] - rows[0]) * (columns[1] - columns[0])


class AvgPool2d(Operation):
    """Average pooling of images (C, H, W); nothing is kept for backward."""

    bfloat16 = True

    def __init__(self, x_shape, kernel_size, stride, padding, count_include_pad, divisor_override, y_shape, dtype):
        self.x_shape, self.y_size, self.windows = x_shape, y_shape[1:], (*kernel_size, *stride, *padding)
        self.divisor = count_include_pad, divisor_override or 0

    def _geometry(self, n, x, y):
        return Geometry(n, *self.x_shape, *self.y_size, *self.windows, x.step, y.step, *self.divisor)

    def forward(self, n, y, x, params):
        return [Call(avgpool2d_forward, (y.array, x.array, self._geometry(n, x, y)))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [Call(avgpool2d_backward, (dx.array, dy.array, self._geometry(n, dx, dy)))]
