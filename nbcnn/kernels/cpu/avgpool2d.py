"""Average pooling on the CPU: the mean of each window, and its gradient's way back to all cells of the window.

Pictures are channels last, so the inner loops run over the channels of a pixel: 16 float32 windows side by side in a vector. All
geometry is along (H, W); `divisor_override` is 0 where there is none. Sums are divided, not multiplied by a reciprocal, which
would round twice.
"""
from numba import prange

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import PARALLEL
from nbcnn.kernels.operation import Call, Operation


@njit(parallel=PARALLEL)
def avgpool2d_forward(y, x, n, y_border, x_border, kernel_size, stride, padding, count_include_pad, divisor_override):
    """y = the mean of each window, for the first n pictures of x (batch, H+2b, W+2b, C)."""
    OH = y.shape[1] - 2 * y_border[0]
    for row in prange(n * OH):
        _forward_row(y, x, row // OH, row % OH, y_border, x_border, kernel_size, stride, padding, count_include_pad,
                     divisor_override)


@njit
def _forward_row(y, x, m, i, y_border, x_border, kernel_size, stride, padding, count_include_pad, divisor_override):
    """Row i of y of picture m. Each pass over the channels adds two cells of a window, row by row, to the sum so far."""
    H, W, C = x.shape[1] - 2 * x_border[0], x.shape[2] - 2 * x_border[1], x.shape[3]
    zero = x.dtype.type(0)
    rows = _window(i, H, kernel_size[0], stride[0], padding[0])
    r_first, r_end, _ = rows
    for j in range(y.shape[2] - 2 * y_border[1]):
        columns = _window(j, W, kernel_size[1], stride[1], padding[1])
        s_first, s_end, _ = columns
        total = y[m, i + y_border[0], j + y_border[1]]
        for r in range(r_first, r_end):
            for s in range(s_first, s_end, 2):
                start = r == r_first and s == s_first
                a = x[m, r + x_border[0], s + x_border[1]]
                if s + 1 < s_end:
                    b = x[m, r + x_border[0], s + 1 + x_border[1]]
                    for c in range(C):
                        total[c] = (zero if start else total[c]) + a[c] + b[c]
                else:
                    for c in range(C):
                        total[c] = (zero if start else total[c]) + a[c]
        divisor = x.dtype.type(_divisor(rows, columns, count_include_pad, divisor_override))
        for c in range(C):
            total[c] /= divisor


@njit(parallel=PARALLEL)
def avgpool2d_backward(dx, dy, n, dx_border, dy_border, kernel_size, stride, padding, count_include_pad, divisor_override):
    """dx = dy / divisor in all cells of a window. Each task owns a row of dx, so overlapping windows need no atomics."""
    H = dx.shape[1] - 2 * dx_border[0]
    for row in prange(n * H):
        _backward_row(dx, dy, row // H, row % H, dx_border, dy_border, kernel_size, stride, padding, count_include_pad,
                      divisor_override)


@njit
def _backward_row(dx, dy, m, r, dx_border, dy_border, kernel_size, stride, padding, count_include_pad, divisor_override):
    """Row r of dx of picture m: the windows that reach into it, in the order of the output."""
    H, W, C = dx.shape[1] - 2 * dx_border[0], dx.shape[2] - 2 * dx_border[1], dx.shape[3]
    OH, OW = dy.shape[1] - 2 * dy_border[0], dy.shape[2] - 2 * dy_border[1]
    dx[m, r + dx_border[0], dx_border[1]:dx_border[1] + W] = dx.dtype.type(0)
    i_first = max(0, (r + padding[0] - kernel_size[0]) // stride[0] + 1)
    i_end = min(OH, (r + padding[0]) // stride[0] + 1)
    for i in range(i_first, i_end):
        rows = _window(i, H, kernel_size[0], stride[0], padding[0])
        for j in range(OW):
            columns = _window(j, W, kernel_size[1], stride[1], padding[1])
            divisor = dx.dtype.type(_divisor(rows, columns, count_include_pad, divisor_override))
            g = dy[m, i + dy_border[0], j + dy_border[1]]
            for s in range(columns[0], columns[1]):
                d = dx[m, r + dx_border[0], s + dx_border[1]]
                for c in range(C):
                    d[c] += g[c] / divisor


@njit
def _window(i, size, kernel, stride, padding):
    """Of window i along an axis of `size` cells: its first cell, its end, and its cells with those of the padding."""
    start = i * stride - padding
    end = min(start + kernel, size + padding)
    return max(0, start), min(size, end), end - start


@njit
def _divisor(rows, columns, count_include_pad, divisor_override):
    """What the sum of a window is divided by."""
    if divisor_override:
        return divisor_override
    return rows[2] * columns[2] if count_include_pad else (rows[1] - rows[0]) * (columns[1] - columns[0])


class AvgPool2d(Operation):
    """Average pooling of pictures (C, H, W); nothing is kept for backward."""
    def __init__(self, x_shape, kernel_size, stride, padding, count_include_pad, divisor_override, y_shape, dtype):
        self.windows = kernel_size, stride, padding, count_include_pad, divisor_override or 0

    def forward(self, n, y, x, params):
        return [Call(avgpool2d_forward, (y.array, x.array, n, y.border, x.border, *self.windows))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [Call(avgpool2d_backward, (dx.array, dy.array, n, dx.border, dy.border, *self.windows))]
