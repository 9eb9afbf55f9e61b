"""Pictures as vectors on the CPU: from channels-last memory to PyTorch's (C, H, W) order and back.

Serial, as compiling parallel loops takes a second longer and running these some millionths of one.
"""

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.operation import Call, Operation


@njit
def flatten_forward(y, x, n, y_border, x_border):
    """y (batch, 1+2b, 1+2b, C*H*W) = the first n pictures of x (batch, H+2b, W+2b, C), channel by channel."""
    H, W, C = x.shape[1] - 2 * x_border[0], x.shape[2] - 2 * x_border[1], x.shape[3]
    for m in range(n):
        for c in range(C):
            for r in range(H):
                for s in range(W):
                    y[m, y_border[0], y_border[1], (c * H + r) * W + s] = x[m, r + x_border[0], s + x_border[1], c]


@njit
def flatten_backward(dx, dy, n, dx_border, dy_border):
    """dx = dy, each number back where it came from."""
    H, W, C = dx.shape[1] - 2 * dx_border[0], dx.shape[2] - 2 * dx_border[1], dx.shape[3]
    for m in range(n):
        for r in range(H):
            for s in range(W):
                for c in range(C):
                    dx[m, r + dx_border[0], s + dx_border[1], c] = dy[m, dy_border[0], dy_border[1], (c * H + r) * W + s]


class Flatten(Operation):
    """Pictures (C, H, W) as vectors (C*H*W,)."""
    def __init__(self, x_shape, dtype):
        """Nothing depends on the shape or the dtype."""

    def forward(self, n, y, x, params):
        return [Call(flatten_forward, (y.array, x.array, n, y.border, x.border))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return [] if dx is None else [Call(flatten_backward, (dx.array, dy.array, n, dx.border, dy.border))]
