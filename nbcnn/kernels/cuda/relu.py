"""ReLU on the GPU: max(x, 0), a thread per element."""
import math

from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, each
from nbcnn.kernels.operation import Call, Operation


@kernel(THREADS)
def relu_forward(y, x, count):
    """y = max(x, 0) for the first `count` elements; NaN stays NaN."""
    k, zero = cuda.grid(1), x.dtype.type(0)
    if k < count:
        y[k] = zero if x[k] <= zero else x[k]


@kernel(THREADS)
def relu_backward(dx, dy, y, count):
    """dx = dy where y > 0 or y is NaN, else 0."""
    k, zero = cuda.grid(1), y.dtype.type(0)
    if k < count:
        dx[k] = zero if y[k] <= zero else dy[k]


class ReLU(Operation):
    """max(x, 0) of pictures (C, H, W) or vectors (F,)."""

    def __init__(self, x_shape, dtype):
        self.size = math.prod(x_shape)

    def forward(self, n, y, x, params):
        count = n * self.size
        return [Call(each(relu_forward, count), (y.array, x.array, count))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        count = n * self.size
        return [] if dx is None else [Call(each(relu_backward, count), (dx.array, dy.array, y.array, count))]
