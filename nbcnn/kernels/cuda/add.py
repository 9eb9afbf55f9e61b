"""Sums of inputs on the GPU, a thread per element."""
from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.operation import Operation


@kernel(THREADS)
def add_forward(y, a, b, count):
    """y = a + b"""
    k = cuda.grid(1)
    if k < count:
        y[k] = a[k] + b[k]


@kernel(THREADS)
def copy(y, x, count):
    """y = x"""
    k = cuda.grid(1)
    if k < count:
        y[k] = x[k]


def add_call(y, a, b, n):
    """The call of `add_forward` for n samples."""
    return call_each(add_forward, n * y.size, y.array, a.array, b.array)


def copy_call(y, x, n):
    """The call of `copy` for n samples."""
    return call_each(copy, n * y.size, y.array, x.array)


class Add(Operation):
    """The sum of two or more inputs of one shape, added up in their order. The gradient of each is that of the sum."""
    hands_on = True

    def __init__(self, shapes, dtype):
        """Nothing depends on the shapes or the dtype."""

    def forward(self, n, y, x, params):
        return [add_call(y, a, b, n) for a, b in zip((x[0], *[y] * (len(x) - 2)), x[1:], strict=True)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [copy_call(to, dy, n) for to in dx if to is not None and to.array is not dy.array]
