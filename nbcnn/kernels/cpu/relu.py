"""ReLU on the CPU: max(x, 0), a row of pixels at a time."""
from numba import njit, prange

from nbcnn.kernels.cpu.launch import CACHE, PARALLEL
from nbcnn.kernels.operation import Call, Operation


@njit(cache=CACHE, parallel=PARALLEL)
def relu_forward(y, x, n, y_border, x_border):
    """y = max(x, 0) for the first n pictures of x (batch, H+2b, W+2b, C); NaN stays NaN."""
    for row in prange(n * (x.shape[1] - 2 * x_border[0])):
        _forward_row(_row(y, row, y_border), _row(x, row, x_border))


@njit(cache=CACHE, parallel=PARALLEL)
def relu_backward(dx, dy, y, n, dx_border, dy_border, y_border):
    """dx = dy where y > 0 or y is NaN, else 0."""
    for row in prange(n * (y.shape[1] - 2 * y_border[0])):
        _backward_row(_row(dx, row, dx_border), _row(dy, row, dy_border), _row(y, row, y_border))


@njit(cache=CACHE)
def _row(a, row, border):
    """Row number `row`, counted through all pictures without their borders, of a (batch, H+2b, W+2b, C): a view (W, C)."""
    H, W = a.shape[1] - 2 * border[0], a.shape[2] - 2 * border[1]
    return a[row // H, row % H + border[0], border[1]:border[1] + W]


@njit(cache=CACHE)
def _forward_row(y, x):
    zero = x.dtype.type(0)
    for s in range(x.shape[0]):
        for c in range(x.shape[1]):
            y[s, c] = zero if x[s, c] <= zero else x[s, c]


@njit(cache=CACHE)
def _backward_row(dx, dy, y):
    zero = y.dtype.type(0)
    for s in range(y.shape[0]):
        for c in range(y.shape[1]):
            dx[s, c] = zero if y[s, c] <= zero else dy[s, c]


class ReLU(Operation):
    """max(x, 0) of pictures (C, H, W) or vectors (F,)."""
    def __init__(self, x_shape, dtype):
        """Nothing depends on the shape or the dtype."""

    def forward(self, n, y, x, params):
        return [Call(relu_forward, (y.array, x.array, n, y.border, x.border))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [Call(relu_backward, (dx.array, dy.array, y.array, n, dx.border, dy.border, y.border))]
