"""Adaptive average pooling: the means of so many windows that cover the image, and the gradient's way back to their cells."""
from nbcnn.kernels.arguments import adaptive_size, floats, four_sizes, pair_or_none, same_shape
from nbcnn.kernels.avgpool2d import avgpool2d_backward, avgpool2d_forward
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_backward, run_forward

__all__ = ["adaptive_avgpool2d_forward", "adaptive_avgpool2d_backward"]


@documented(avgpool2d_forward)
def adaptive_avgpool2d_forward(x, output_size):
    """Compute the mean of each of OH x OW windows that cover the image.

    Window (i, j) has the rows from floor(i*H/OH) to ceil((i+1)*H/OH), the end left out, and such columns. So windows overlap where
    OH is no divisor of H, and pixels are repeated where it is larger. A window is added up row by row, then divided.

    Source: PyTorch's aten/src/ATen/native/cpu/AdaptiveAvgPoolKernel.cpp, which divides by the rows and then by the columns.

    Parameters
    ----------
    x : float array (N, C, H, W)
        Images of at least one pixel.
    output_size : int or pair of ints
        OH and OW, of any size; None in a pair for the image's own.

    Returns
    -------
    y : float array (N, C, OH, OW)
        A view of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).integers(-9, 10, (2, 3, 5, 4)).astype(np.float32)
    >>> y = np.zeros((2, 3, 3, 6), np.float32)
    >>> for n, c, i, j in np.ndindex(y.shape):
    ...     r, r_end, s, s_end = i * 5 // 3, -(-(i + 1) * 5 // 3), j * 4 // 6, -(-(j + 1) * 4 // 6)
    ...     y[n, c, i, j] = x[n, c, r:r_end, s:s_end].sum() / np.float32((r_end - r) * (s_end - s))
    >>> np.array_equal(adaptive_avgpool2d_forward(x, (3, 6)), y)
    True
    """
    backend, x = backend_of(x=x), floats(x, "x", "(N, C, H, W)")
    size = adaptive_size(x.shape[2:], pair_or_none(output_size, "output_size", 1), "x")
    y_shape = x.shape[1], *size
    return run_forward(backend, backend.AdaptiveAvgPool2d(x.shape[1:], y_shape, x.dtype), x, y_shape)


@documented(avgpool2d_backward)
def adaptive_avgpool2d_backward(dy, x_shape):
    """Hand each window's gradient to all of its cells: dx[n, c, r, s] += dy[n, c, i, j] / (rows * columns) of window (i, j).

    Cells of several windows get the sum of the quotients, added row by row of the output.
    Source: PyTorch's aten/src/ATen/native/cpu/AdaptiveAvgPoolKernel.cpp.

    Returns
    -------
    dx : float array (N, C, H, W)
        A view of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> dy = np.random.default_rng(0).integers(-9, 10, (2, 3, 2, 6)).astype(np.float32)
    >>> dx = np.zeros((2, 3, 4, 3), np.float32)
    >>> for n, c, i, j in np.ndindex(dy.shape):
    ...     r, r_end, s, s_end = i * 4 // 2, -(-(i + 1) * 4 // 2), j * 3 // 6, -(-(j + 1) * 3 // 6)
    ...     dx[n, c, r:r_end, s:s_end] += dy[n, c, i, j] / np.float32((r_end - r) * (s_end - s))
    >>> np.array_equal(adaptive_avgpool2d_backward(dy, dx.shape), dx)
    True
    """
    backend, dy, x_shape = backend_of(dy=dy), floats(dy, "dy", "(N, C, OH, OW)"), four_sizes(x_shape, "x_shape")
    if min(dy.shape[2:]) < 1:
        raise ValueError(f"dy: expected an output of at least 1x1, got shape {tuple(dy.shape)}")
    size = adaptive_size(x_shape[2:], dy.shape[2:], "x_shape")
    same_shape(dy, "dy", (*x_shape[:2], *size), "that of the output for x_shape")
    return run_backward(backend, backend.AdaptiveAvgPool2d(x_shape[1:], dy.shape[1:], dy.dtype), dy, x_shape[1:])
