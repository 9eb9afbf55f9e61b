"""Sums of inputs on the CPU, the gaps between samples included, which is simpler than to leave them out."""
from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Operation


@njit(parallel=True)
def add_forward(y, a, b, count):
    """y = a + b"""
    for k in prange(count):
        tile.put(y, k, tile.get(a, k) + tile.get(b, k))


@njit(parallel=True)
def add_to(y, x, count):
    """y += x. As `add_forward` of y and x this would be a loop of single numbers: LLVM could not tell that y may be read first."""
    for k in prange(count):
        tile.put(y, k, tile.get(y, k) + tile.get(x, k))


@njit(parallel=True)
def copy(y, x, count):
    """y = x"""
    for k in prange(count):
        tile.put(y, k, tile.get(x, k))


def add_call(y, a, b, n):
    """The call of `add_forward` for n samples; y may be a."""
    if y.array is a.array:
        return Call(add_to, (y.array, b.array, n * y.step))
    return Call(add_forward, (y.array, a.array, b.array, n * y.step))


def copy_call(y, x, n):
    """The call of `copy` for n samples."""
    return Call(copy, (y.array, x.array, n * y.step))


class Add(Operation):
    """The sum of two or more inputs of one shape, added up in their order. The gradient of each is that of the sum."""
    hands_on = bfloat16 = True

    def __init__(self, shapes, dtype):
        """Nothing depends on the shapes or the dtype."""

    def forward(self, n, y, x, params):
        return [add_call(y, a, b, n) for a, b in zip((x[0], *[y] * (len(x) - 2)), x[1:], strict=True)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [copy_call(to, dy, n) for to in dx if to is not None and to.array is not dy.array]
