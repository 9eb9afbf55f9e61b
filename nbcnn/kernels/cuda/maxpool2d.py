"""Max pooling on the GPU: each window's largest value and where it stood, and the way back.

Every cell of an input plane has one number, r*W + s; `argmax` (batch, C, OH, OW), flat, holds those, as int32. The kernels are
compiled for one geometry: names in capitals are constants, pairs of them along H and W.
"""
import functools
import math

import numpy as np

from nbcnn.kernels.cuda.buffer import Buffer, allocate, copy, flat
from nbcnn.kernels.cuda.compat import cuda, empty, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each, each
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put
from nbcnn.kernels.operation import Operation


@functools.cache
def make_maxpool2d(X_SIZE, KERNEL, STRIDE, PADDING, DILATION, Y_SIZE, VERSION=CODE_VERSION):
    """The forward and the backward kernel of one geometry, for any number of planes."""
    (H, W), (OH, OW), (KH, KW), (SH, SW) = X_SIZE, Y_SIZE, KERNEL, STRIDE
    (PAD_H, PAD_W), (DH, DW) = PADDING, DILATION
    SPAN_H, SPAN_W = (KH - 1) * DH, (KW - 1) * DW       # from the first to the last cell of a window

    @kernel(THREADS)
    def maxpool2d_forward(y, argmax, x, count):
        """y, argmax = the largest value of each of `count` windows and its cell: a thread per window."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            plane = k // (OH * OW) * (H * W)
            r_first, s_first = k // OW % OH * SH - PAD_H, k % OW * SW - PAD_W
            best, won = x.dtype.type(0), -1
            for p in range(KH):
                for q in range(KW):
                    r, s = r_first + p * DH, s_first + q * DW
                    if 0 <= r < H and 0 <= s < W:
                        v = get(x, plane + r * W + s)
                        if won < 0 or v > best or v != v:       # v != v: NaN
                            best, won = v, r * W + s
            put(y, k, best)
            put(argmax, k, won)

    @kernel(THREADS)
    def maxpool2d_backward(dx, dy, argmax, count):
        """dx = dy at the cells that won: a thread per cell adds up the windows that reach it, in the order of the output."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            plane, cell = k // (H * W) * (OH * OW), k % (H * W)
            r, s = cell // W + PAD_H, cell % W + PAD_W
            total = dx.dtype.type(0)
            for i in range(max(0, (r - SPAN_H + SH - 1) // SH), min(OH, r // SH + 1)):
                for j in range(max(0, (s - SPAN_W + SW - 1) // SW), min(OW, s // SW + 1)):
                    at = plane + i * OW + j
                    if get(argmax, at) == cell:
                        total += get(dy, at)
            put(dx, k, total)

    return maxpool2d_forward, maxpool2d_backward


@kernel(THREADS)
def maxpool2d_scatter(dx, dy, argmax, planes, cells, windows):
    """dx += dy at the cells that argmax names, whatever windows they come from: a thread per plane, since planes share no cell."""
    plane = cuda.grid(1)
    if plane < planes:
        for k in range(plane * windows, (plane + 1) * windows):
            dx[plane * cells + np.int64(argmax[k])] += dy[k]


def scatter(dy, argmax, x_shape):
    """dx of x_shape (N, C, H, W): dy (N, C, OH, OW) added up at the cells that `argmax`, of any dtype of ints, names."""
    (N, C, H, W), (_, _, OH, OW) = x_shape, dy.shape
    dx = allocate((N * C * H * W,), dy.dtype)
    each(maxpool2d_scatter, N * C)(dx, flat(dy), flat(argmax), N * C, H * W, OH * OW)
    return dx.reshape(N, C, H, W)


class MaxPool2d(Operation):
    """Max pooling of images (C, H, W); remembers which cells won.

    Attributes
    ----------
    argmax : Buffer of int32
    """

    def __init__(self, x_shape, kernel_size, stride, padding, dilation, y_shape, dtype):
        _, H, W = x_shape
        if H * W > np.iinfo(np.int32).max:
            raise ValueError(f"x: expected planes of less than 2**31 cells, got {H}x{W}")
        self.x_size, self.y_shape = math.prod(x_shape), tuple(y_shape)
        self.kernels = make_maxpool2d((H, W), kernel_size, stride, padding, dilation, self.y_shape[1:])

    def reserve(self, batch):
        self.argmax = Buffer(batch, self.y_shape, np.int32)

    def winners(self, n):
        """The argmax of the first n images as an int64 device array (n, C, OH, OW)."""
        winners = empty((n, *self.y_shape), np.int64)
        copy(winners, self.argmax.view(n))
        return winners

    def forward(self, n, y, x, params):
        return [call_each(self.kernels[0], n * math.prod(self.y_shape), y.array, self.argmax.array, x.array)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [call_each(self.kernels[1], n * self.x_size, dx.array, dy.array, self.argmax.array)]
