"""Concatenation on the CPU: the channels of several inputs side by side in each pixel, and their gradients taken apart again."""
import math

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Operation


@njit(parallel=True)
def concat_forward(x, y, n, pixels, C, x_step, first, y_C, y_step):
    """y[m, pixel, first + c] = x[m, pixel, c], for one of the inputs."""
    for task in prange(n * pixels):
        m, pixel = task // pixels, task % pixels
        at_x, at_y = m * x_step + pixel * C, m * y_step + pixel * y_C + first
        for c in range(C):
            tile.put(y, at_y + c, tile.get(x, at_x + c))


@njit(parallel=True)
def concat_backward(dx, dy, n, pixels, C, x_step, first, y_C, y_step):
    """dx[m, pixel, c] = dy[m, pixel, first + c], for one of the inputs."""
    for task in prange(n * pixels):
        m, pixel = task // pixels, task % pixels
        at_x, at_y = m * x_step + pixel * C, m * y_step + pixel * y_C + first
        for c in range(C):
            tile.put(dx, at_x + c, tile.get(dy, at_y + c))


class Concat(Operation):
    """The channels of images (C, H, W) of one size, or the numbers of vectors (F,), one input's behind another's."""

    bfloat16 = True

    def __init__(self, x_shapes, dtype):
        self.C, self.pixels = [shape[0] for shape in x_shapes], math.prod(x_shapes[0][1:])

    def calls(self, kernel, n, y, xs):
        """The calls of a kernel for each of the inputs that is there."""
        return [Call(kernel, (x.array, y.array, n, self.pixels, C, x.step, sum(self.C[:k]), sum(self.C), y.step))
                for k, (C, x) in enumerate(zip(self.C, xs, strict=True)) if x is not None]

    def forward(self, n, y, x, params):
        return self.calls(concat_forward, n, y, x)

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return self.calls(concat_backward, n, dy, dx)
