"""Adaptive average pooling on the CPU: the mean of each of so many windows as are asked for, and its gradient's way back.

Images are channels last, so the inner loops run over the channels of a pixel. Sums are divided, as in avgpool2d.py.
"""
from collections import namedtuple

import numpy as np

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Operation

Geometry = namedtuple("Geometry", "n C H W OH OW x_step y_step")    # of n samples; a step leads from a sample to the next one


@njit
def window(i, windows, size):
    """The first cell and the end of window i, of so many over `size` cells.

    With windows and size in each other's places: the windows that cell i lies in. For window k reaches it if k*size/windows < i + 1
    and (k+1)*size/windows > i.
    """
    return i * size // windows, ((i + 1) * size + windows - 1) // windows


@njit(parallel=True, allocates=True)
def adaptive_avgpool2d_forward(y, x, g):
    """y[m, i, j, c] = the mean of x[m, r, s, c] over the rows r of window i and the columns s of window j."""
    total = np.empty(g.C, tile.number_type(x))
    for task in prange(g.n * g.OH):
        m, i = task // g.OH, task % g.OH
        r_first, r_end = window(i, g.OH, g.H)
        for j in range(g.OW):
            s_first, s_end = window(j, g.OW, g.W)
            at_y = m * g.y_step + (i * g.OW + j) * g.C
            divisor = total.dtype.type((r_end - r_first) * (s_end - s_first))
            total[:] = total.dtype.type(0)
            for r in range(r_first, r_end):
                for s in range(s_first, s_end):
                    at_x = m * g.x_step + (r * g.W + s) * g.C
                    for c in range(g.C):
                        total[c] += tile.get(x, at_x + c)
            for c in range(g.C):
                tile.put(y, at_y + c, total[c] / divisor)


@njit(parallel=True, allocates=True)
def adaptive_avgpool2d_backward(dx, dy, g):
    """dx[m, r, s, c] = the sum of dy[m, i, j, c] / cells of the window, over the windows (i, j) that pixel (r, s) lies in."""
    total = np.empty(g.C, tile.number_type(dx))
    zero = total.dtype.type(0)
    for task in prange(g.n * g.H):
        m, r = task // g.H, task % g.H
        i_first, i_end = window(r, g.H, g.OH)
        for s in range(g.W):
            j_first, j_end = window(s, g.W, g.OW)
            at_x = m * g.x_step + (r * g.W + s) * g.C
            for i in range(i_first, i_end):
                r_first, r_end = window(i, g.OH, g.H)
                for j in range(j_first, j_end):
                    s_first, s_end = window(j, g.OW, g.W)
                    at_y = m * g.y_step + (i * g.OW + j) * g.C
                    start, divisor = i == i_first and j == j_first, total.dtype.type((r_end - r_first) * (s_end - s_first))
                    for c in range(g.C):
                        total[c] = (zero if start else total[c]) + tile.get(dy, at_y + c) / divisor
            for c in range(g.C):
                tile.put(dx, at_x + c, total[c])


class AdaptiveAvgPool2d(Operation):
    """The means of windows that cover images (C, H, W); nothing is kept for backward."""

    bfloat16 = True

    def __init__(self, x_shape, y_shape, dtype):
        self.sizes = *x_shape, *y_shape[1:]

    def _geometry(self, n, x, y):
        return Geometry(n, *self.sizes, x.step, y.step)

    def forward(self, n, y, x, params):
        return [Call(adaptive_avgpool2d_forward, (y.array, x.array, self._geometry(n, x, y)))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [Call(adaptive_avgpool2d_backward, (dx.array, dy.array, self._geometry(n, dx, dy)))]
