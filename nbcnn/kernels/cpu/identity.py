"""The identity on the CPU: nothing is computed."""
from nbcnn.kernels.operation import Operation


class Identity(Operation):
    """What comes out is what goes in, in the same memory."""
    shares = bfloat16 = True

    def __init__(self, x_shape, dtype):
        """Nothing depends on the shape or the dtype."""

    def forward(self, n, y, x, params):
        return []

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        return []
