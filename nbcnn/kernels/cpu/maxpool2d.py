"""Max pooling on the CPU: each window's largest value and where it stood, and the way back.

Pictures are channels last, so the inner loops run over the channels of a pixel: 16 float32 windows side by side in a vector.
Every cell of an input plane has one number, r*W + s, border not counted; `argmax` (batch, OH, OW, C) holds those, as int32.
`windows` in a signature stands for the pairs kernel_size, stride, padding, dilation.
"""
import math

import numpy as np
from numba import prange

from nbcnn.kernels.cpu.buffer import allocate
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import PARALLEL
from nbcnn.kernels.operation import Call, Operation


@njit(parallel=PARALLEL)
def maxpool2d_forward(y, argmax, x, n, y_border, x_border, kernel_size, stride, padding, dilation):
    """y, argmax = the largest value of each window and its cell, for the first n pictures of x (batch, H+2b, W+2b, C)."""
    OH = argmax.shape[1]
    for row in prange(n * OH):
        _forward_row(y, argmax, x, row // OH, row % OH, y_border, x_border, kernel_size, stride, padding, dilation)


@njit
def _forward_row(y, argmax, x, m, i, y_border, x_border, kernel_size, stride, padding, dilation):
    """Row i of y and argmax of picture m. Each pass over the channels compares two cells of a window with the best so far."""
    (KH, KW), (stride_h, stride_w), (dilation_h, dilation_w) = kernel_size, stride, dilation
    _, _, OW, C = argmax.shape
    H, W = x.shape[1] - 2 * x_border[0], x.shape[2] - 2 * x_border[1]
    r_first = i * stride_h - padding[0]
    r_end = min(H, r_first + (KH - 1) * dilation_h + 1)
    while r_first < 0:              # cells of the padding are skipped
        r_first += dilation_h
    for j in range(OW):
        s_first = j * stride_w - padding[1]
        s_end = min(W, s_first + (KW - 1) * dilation_w + 1)
        while s_first < 0:
            s_first += dilation_w
        best, where = y[m, i + y_border[0], j + y_border[1]], argmax[m, i, j]
        for r in range(r_first, r_end, dilation_h):
            for s in range(s_first, s_end, 2 * dilation_w):
                t = s + dilation_w if s + dilation_w < s_end else s         # an odd last cell is compared twice: no harm
                a, a_cell = x[m, r + x_border[0], s + x_border[1]], np.int32(r * W + s)
                b, b_cell = x[m, r + x_border[0], t + x_border[1]], np.int32(r * W + t)
                start = r == r_first and s == s_first
                for c in range(C):
                    v, cell = (a[c], a_cell) if start else (best[c], where[c])
                    wins = (a[c] > v) | (a[c] != a[c])                      # a[c] != a[c]: NaN
                    v, cell = (a[c], a_cell) if wins else (v, cell)
                    wins = (b[c] > v) | (b[c] != b[c])
                    best[c], where[c] = (b[c], b_cell) if wins else (v, cell)


@njit(parallel=PARALLEL)
def maxpool2d_backward(dx, dy, argmax, n, dx_border, dy_border, kernel_size, stride, padding, dilation):
    """dx = dy at the cells that won. Each task owns a row of dx, so overlapping windows need no atomics and keep their order."""
    H = dx.shape[1] - 2 * dx_border[0]
    for row in prange(n * H):
        _backward_row(dx, dy, argmax, row // H, row % H, dx_border, dy_border, kernel_size, stride, padding, dilation)


@njit
def _backward_row(dx, dy, argmax, m, r, dx_border, dy_border, kernel_size, stride, padding, dilation):
    """Row r of dx of picture m: every cell of every window that reaches into it gets dy where that cell won."""
    (KH, KW), (stride_h, stride_w), (dilation_h, dilation_w) = kernel_size, stride, dilation
    _, OH, OW, C = argmax.shape
    W = dx.shape[2] - 2 * dx_border[1]
    zero = dx.dtype.type(0)
    dx[m, r + dx_border[0], dx_border[1]:dx_border[1] + W] = zero
    i_end = min(OH, (r + padding[0]) // stride_h + 1)
    i_first = max(0, (r + padding[0] - (KH - 1) * dilation_h + stride_h - 1) // stride_h)
    for i in range(i_first, i_end):
        for j in range(OW):
            g, where = dy[m, i + dy_border[0], j + dy_border[1]], argmax[m, i, j]
            s_first = j * stride_w - padding[1]
            s_end = min(W, s_first + (KW - 1) * dilation_w + 1)
            while s_first < 0:
                s_first += dilation_w
            for s in range(s_first, s_end, dilation_w):
                d, cell = dx[m, r + dx_border[0], s + dx_border[1]], np.int32(r * W + s)
                for c in range(C):
                    d[c] += g[c] if where[c] == cell else zero


@njit(parallel=PARALLEL)
def maxpool2d_scatter(dx, dy, argmax):
    """dx (N, H*W, C) += dy (N, OH*OW, C) at the cells argmax (N, OH*OW, C) names, whatever windows they come from."""
    for m in prange(len(dx)):
        for k in range(dy.shape[1]):
            for c in range(dy.shape[2]):
                dx[m, argmax[m, k, c], c] += dy[m, k, c]


class MaxPool2d(Operation):
    """Max pooling of pictures (C, H, W); remembers which cells won.

    Attributes
    ----------
    argmax : int32 array (batch, OH, OW, C)
    """
    def __init__(self, x_shape, kernel_size, stride, padding, dilation, y_shape, dtype):
        _, H, W = x_shape
        if H * W > np.iinfo(np.int32).max:
            raise ValueError(f"x: expected planes of less than 2**31 cells, got {H}x{W}")
        self.windows = kernel_size, stride, padding, dilation
        self.y_shape = y_shape

    def reserve(self, batch):
        C, OH, OW = self.y_shape
        self.argmax = allocate((batch, OH, OW, C), np.int32)

    def bytes(self, batch):
        return 4 * batch * math.prod(self.y_shape)

    def forward(self, n, y, x, params):
        return [Call(maxpool2d_forward, (y.array, self.argmax, x.array, n, y.border, x.border, *self.windows))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [
            Call(maxpool2d_backward, (dx.array, dy.array, self.argmax, n, dx.border, dy.border, *self.windows))]
