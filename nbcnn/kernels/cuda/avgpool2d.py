"""Average pooling on the GPU: the mean of each window, and its gradient's way back to all cells of the window.

The kernels are compiled for one geometry: names in capitals are constants, pairs of them along H and W.
"""
import functools
import math

from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put
from nbcnn.kernels.operation import Operation


@functools.cache
def make_avgpool2d(X_SIZE, KERNEL, STRIDE, PADDING, COUNT_INCLUDE_PAD, DIVISOR_OVERRIDE, Y_SIZE, VERSION=CODE_VERSION):
    """The forward and the backward kernel of one geometry, for any number of planes; DIVISOR_OVERRIDE is 0 where there is none."""
    (H, W), (OH, OW), (KH, KW), (SH, SW), (PAD_H, PAD_W) = X_SIZE, Y_SIZE, KERNEL, STRIDE, PADDING
    MOST_H, MOST_W = -(-KH // SH), -(-KW // SW)         # windows that a cell lies in at most

    @cuda.jit(device=True)
    def divisor(i, j):
        """What the sum of window (i, j) is divided by."""
        r, s = i * SH - PAD_H, j * SW - PAD_W
        if COUNT_INCLUDE_PAD:
            cells = min(KH, H + PAD_H - r) * min(KW, W + PAD_W - s)
        else:
            cells = (min(r + KH, H) - max(r, 0)) * (min(s + KW, W) - max(s, 0))
        return DIVISOR_OVERRIDE or cells

    @kernel(THREADS)
    def avgpool2d_forward(y, x, count):
        """y = the mean of each of `count` windows: a thread per window, also where that is the whole image."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            plane, i, j = k // (OH * OW) * (H * W), k // OW % OH, k % OW
            total = x.dtype.type(0)
            for p in range(KH):
                for q in range(KW):
                    r, s = i * SH - PAD_H + p, j * SW - PAD_W + q
                    if 0 <= r < H and 0 <= s < W:
                        total += get(x, plane + r * W + s)
            put(y, k, total / x.dtype.type(divisor(i, j)))

    @kernel(THREADS)
    def avgpool2d_backward(dx, dy, count):
        """dx = dy / divisor in all cells of a window: a thread per cell adds up the windows that reach it, in output order."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            plane, r, s = k // (H * W) * (OH * OW), k // W % H + PAD_H, k % W + PAD_W
            total = dx.dtype.type(0)
            for p in range(1 - MOST_H, 1):
                for q in range(1 - MOST_W, 1):
                    i, j = r // SH + p, s // SW + q
                    if 0 <= i < OH and 0 <= j < OW and r - i * SH < KH and s - j * SW < KW:
                        total += get(dy, plane + i * OW + j) / dx.dtype.type(divisor(i, j))
            put(dx, k, total)

    return avgpool2d_forward, avgpool2d_backward


class AvgPool2d(Operation):
    """Average pooling of images (C, H, W); nothing is kept for backward."""

    def __init__(self, x_shape, kernel_size, stride, padding, count_include_pad, divisor_override, y_shape, dtype):
        self.x_size, self.y_size = math.prod(x_shape), math.prod(y_shape)
        self.kernels = make_avgpool2d(
            tuple(x_shape[1:]), kernel_size, stride, padding, count_include_pad, divisor_override or 0, tuple(y_shape[1:]))

    def forward(self, n, y, x, params):
        return [call_each(self.kernels[0], n * self.y_size, y.array, x.array)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [call_each(self.kernels[1], n * self.x_size, dx.array, dy.array)]
