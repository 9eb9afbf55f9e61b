"""Images as vectors on the CPU: from channels-last memory to PyTorch's (C, H, W) order in each sample, and back.

Serial, as compiling parallel loops takes a second longer and running these some millionths of one.
"""

import math

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.operation import Call, Operation


@njit
def flatten_forward(y, x, n, C, pixels, x_step):
    """y[m, c, pixel] = x[m, pixel, c]"""
    for m in range(n):
        for pixel in range(pixels):
            for c in range(C):
                tile.put(y, (m * C + c) * pixels + pixel, tile.get(x, m * x_step + pixel * C + c))


@njit
def flatten_backward(dx, dy, n, C, pixels, x_step):
    """dx[m, pixel, c] = dy[m, c, pixel]"""
    for m in range(n):
        for pixel in range(pixels):
            for c in range(C):
                tile.put(dx, m * x_step + pixel * C + c, tile.get(dy, (m * C + c) * pixels + pixel))


class Flatten(Operation):
    """Images (C, H, W) as vectors (C*H*W,)."""

    bfloat16 = True

    def __init__(self, x_shape, dtype):
        self.C, self.pixels = (x_shape[0], math.prod(x_shape[1:])) if len(x_shape) == 3 else (math.prod(x_shape), 1)

    def forward(self, n, y, x, params):
        return [Call(flatten_forward, (y.array, x.array, n, self.C, self.pixels, x.step))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [Call(flatten_backward, (dx.array, dy.array, n, self.C, self.pixels, dx.step))]
