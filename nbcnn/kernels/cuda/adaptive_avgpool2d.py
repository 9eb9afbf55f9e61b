"""Adaptive average pooling on the GPU: the mean of each of so many windows as are asked for, and its gradient's way back.

The kernels are compiled for one geometry: names in capitals are constants.
"""
import functools
import math

from nbcnn.kernels.cuda.avgpool2d import AvgPool2d
from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put


@cuda.jit(device=True)
def first_cell(i, windows, size):
    """Of window i, of so many over `size` cells; with both in each other's places the first window that cell i lies in."""
    return i * size // windows


@cuda.jit(device=True)
def end_cell(i, windows, size):
    """The end of what begins there."""
    return ((i + 1) * size + windows - 1) // windows


@functools.cache
def make_adaptive_avgpool2d(H, W, OH, OW, VERSION=CODE_VERSION):
    """The forward and the backward kernel of one geometry, for any number of planes."""

    @cuda.jit(device=True)
    def divisor(i, j):
        """How many cells window (i, j) has."""
        return (end_cell(i, OH, H) - first_cell(i, OH, H)) * (end_cell(j, OW, W) - first_cell(j, OW, W))

    @kernel(THREADS)
    def adaptive_avgpool2d_forward(y, x, count):
        """y = the mean of each of `count` windows: a thread per window."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            plane, i, j = k // (OH * OW) * (H * W), k // OW % OH, k % OW
            total = x.dtype.type(0)
            for r in range(first_cell(i, OH, H), end_cell(i, OH, H)):
                for s in range(first_cell(j, OW, W), end_cell(j, OW, W)):
                    total += get(x, plane + r * W + s)
            put(y, k, total / x.dtype.type(divisor(i, j)))

    @kernel(THREADS)
    def adaptive_avgpool2d_backward(dx, dy, count):
        """dx = the sum of dy / divisor over the windows that a cell lies in, in output order: a thread per cell."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            plane, r, s = k // (H * W) * (OH * OW), k // W % H, k % W
            total = dx.dtype.type(0)
            for i in range(first_cell(r, H, OH), end_cell(r, H, OH)):
                for j in range(first_cell(s, W, OW), end_cell(s, W, OW)):
                    total += get(dy, plane + i * OW + j) / dx.dtype.type(divisor(i, j))
            put(dx, k, total)

    return adaptive_avgpool2d_forward, adaptive_avgpool2d_backward


class AdaptiveAvgPool2d(AvgPool2d):
    """The means of windows that cover images (C, H, W): as average pooling, with other kernels."""

    def __init__(self, x_shape, y_shape, dtype):
        self.x_size, self.y_size = math.prod(x_shape), math.prod(y_shape)
        self.kernels = make_adaptive_avgpool2d(*x_shape[1:], *y_shape[1:])
