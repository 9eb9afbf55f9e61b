"""Concatenation on the GPU: in each sample one input's elements behind another's, and their gradients taken apart again."""
import math

from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.operation import Operation


@kernel(THREADS)
def concat_forward(x, y, size, first, y_size, count):
    """y[m, first + k] = x[m, k], for one of the inputs: a thread per element."""
    k = cuda.grid(1)
    if k < count:
        y[k // size * y_size + first + k % size] = x[k]


@kernel(THREADS)
def concat_backward(dx, dy, size, first, y_size, count):
    """dx[m, k] = dy[m, first + k], for one of the inputs: a thread per element."""
    k = cuda.grid(1)
    if k < count:
        dx[k] = dy[k // size * y_size + first + k % size]


class Concat(Operation):
    """The channels of images (C, H, W) of one size, or the numbers of vectors (F,), one input's behind another's."""

    def __init__(self, x_shapes, dtype):
        self.sizes = list(map(math.prod, x_shapes))

    def calls(self, kernel, n, y, xs):
        """The calls of a kernel for each of the inputs that is there."""
        return [call_each(kernel, n * size, x.array, y.array, size, sum(self.sizes[:k]), y.size)
                for k, (size, x) in enumerate(zip(self.sizes, xs, strict=True)) if x is not None]

    def forward(self, n, y, x, params):
        return self.calls(concat_forward, n, y, x)

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return self.calls(concat_backward, n, dy, dx)
