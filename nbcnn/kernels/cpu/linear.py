"""The linear layer on the CPU: a 1x1 convolution of pictures of one pixel, so the tile of `conv2d.py` carries it."""
from nbcnn.kernels.cpu.conv2d import Conv2d
from nbcnn.kernels.cpu.tile import lanes, tile_shape


class Linear(Conv2d):
    """y = x W^T + b for vectors of in_features; the weights are (out_features, in_features), flat."""

    @staticmethod
    def tile_shape(width, dtype):
        """The wide tile for few features too: it costs next to nothing, another compilation seconds."""
        return tile_shape(max(width, 2 * lanes(dtype)), dtype)

    def __init__(self, x_shape, y_shape, dtype):
        super().__init__((*x_shape, 1, 1), (*y_shape, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), dtype)
