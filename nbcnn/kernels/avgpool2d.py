"""Average pooling: the mean of each window, or of each whole plane, and the gradient's way back to all cells of it."""
from nbcnn.kernels.arguments import flag, floats, four_sizes, integer, pair, pooled_size, same_shape
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_backward, run_forward

__all__ = ["avgpool2d_forward", "avgpool2d_backward", "global_avgpool2d_forward", "global_avgpool2d_backward"]


@documented()
def avgpool2d_forward(x, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """Compute the mean of each window.

    y[n, c, i, j] = sum over p, q of x[n, c, i*stride + p - padding, j*stride + q - padding] / divisor[i, j],
    cells outside the image left out of the sum. A window is added up row by row, then divided. A NaN makes every window NaN that it
    lies in.

    Cells that `ceil_mode` adds beyond the padding are in no divisor but `divisor_override`. PyTorch takes that below 0, too.
    Source: PyTorch's aten/src/ATen/native/cpu/AvgPoolKernel.cpp.

    Parameters
    ----------
    x : float array (N, C, H, W)
    kernel_size, padding : int or pair of ints
        Along H and along W. The padding is at most half the kernel.
    stride : int or pair of ints, optional
        The kernel size when not given.
    ceil_mode : bool
        Whether a last window that begins inside the padded image and ends outside counts.
    count_include_pad : bool
        Whether the divisor is the number of a window's cells in the padded image, or of those in the image itself.
    divisor_override : int, optional
        The divisor of all windows instead, at least 1.

    Returns
    -------
    y : float array (N, C, OH, OW)
        OH = floor((H + 2*padding - kernel_size) / stride) + 1, OW likewise; ceil instead of floor with `ceil_mode`, less a last
        window that would begin beyond the image; both at least 1. A view of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).integers(-9, 10, (2, 3, 6, 5)).astype(np.float32)
    >>> y = np.zeros((2, 3, 4, 2), np.float32)
    >>> for n, c, i, j in np.ndindex(y.shape):
    ...     divisor = 0
    ...     for p, q in np.ndindex(3, 2):
    ...         r, s = 2 * i + p - 1, 3 * j + q - 0                  # stride (2, 3), padding (1, 0)
    ...         divisor += -1 <= r < 6 + 1 and 0 <= s < 5            # not what ceil_mode adds beyond the padding
    ...         if 0 <= r < 6 and 0 <= s < 5:
    ...             y[n, c, i, j] += x[n, c, r, s]
    ...     y[n, c, i, j] /= divisor
    >>> np.array_equal(avgpool2d_forward(x, (3, 2), stride=(2, 3), padding=(1, 0), ceil_mode=True), y)
    True
    """
    backend, x = backend_of(x=x), floats(x, "x", "(N, C, H, W)")
    y_shape, windows = _geometry(x.shape, "x", kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return run_forward(backend, backend.AvgPool2d(x.shape[1:], *windows, y_shape, x.dtype), x, y_shape)


@documented(avgpool2d_forward)
def avgpool2d_backward(dy, x_shape, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
                       divisor_override=None):
    """Hand each window's gradient to all of its cells: dx[n, c, r, s] += dy[n, c, i, j] / divisor[i, j].

    Windows that overlap share cells: these get the sum of the quotients, added row by row of the output.
    Source: PyTorch's aten/src/ATen/native/cpu/AvgPoolKernel.cpp.

    Parameters
    ----------
    dy : float array (N, C, OH, OW)
        The upstream gradient dLoss/dy.
    x_shape : tuple of ints (N, C, H, W)

    Returns
    -------
    dx : float array (N, C, H, W)
        Zero where no window lies. A view of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> dy = np.random.default_rng(0).integers(-9, 10, (2, 3, 5, 4)).astype(np.float32)
    >>> dx = np.zeros((2, 3, 6, 5), np.float32)
    >>> for n, c, i, j in np.ndindex(dy.shape):
    ...     for p, q in np.ndindex(2, 2):
    ...         dx[n, c, i + p, j + q] += dy[n, c, i, j] / 4
    >>> np.array_equal(avgpool2d_backward(dy, dx.shape, 2, stride=1), dx)
    True
    """
    backend, dy, x_shape = backend_of(dy=dy), floats(dy, "dy", "(N, C, OH, OW)"), four_sizes(x_shape, "x_shape")
    y_shape, windows = _geometry(x_shape, "x_shape", kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    same_shape(dy, "dy", (x_shape[0], *y_shape), "that of the output for x_shape")
    return run_backward(backend, backend.AvgPool2d(x_shape[1:], *windows, y_shape, dy.dtype), dy, x_shape[1:])


@documented(avgpool2d_forward)
def global_avgpool2d_forward(x):
    """Compute the mean of each plane: `avgpool2d_forward` with a window that is the whole image, of at least one pixel.

    Source: PyTorch's torch.nn.AdaptiveAvgPool2d(1), which adds up in another order.

    Returns
    -------
    y : float array (N, C, 1, 1)

    >>> import numpy as np
    >>> x = np.random.default_rng(0).integers(-9, 10, (2, 3, 5, 4)).astype(np.float32)
    >>> y = np.zeros((2, 3, 1, 1), np.float32)
    >>> for n, c, r, s in np.ndindex(x.shape):
    ...     y[n, c, 0, 0] += x[n, c, r, s]
    >>> np.array_equal(global_avgpool2d_forward(x), y / np.float32(5 * 4))
    True
    """
    x = floats(x, "x", "(N, C, H, W)")
    return avgpool2d_forward(x, _plane(x.shape, "x"))


@documented(avgpool2d_backward)
def global_avgpool2d_backward(dy, x_shape):
    """Hand each plane's gradient to all of its cells: dx[n, c, r, s] = dy[n, c, 0, 0] / (H*W), with OH = OW = 1.

    Source: the derivative of PyTorch's torch.mean over (H, W).

    >>> import numpy as np
    >>> dy = np.random.default_rng(0).standard_normal((2, 3, 1, 1), np.float32)
    >>> dx = np.zeros((2, 3, 5, 4), np.float32)
    >>> for n, c, r, s in np.ndindex(dx.shape):
    ...     dx[n, c, r, s] = dy[n, c, 0, 0] / np.float32(5 * 4)
    >>> np.array_equal(global_avgpool2d_backward(dy, dx.shape), dx)
    True
    """
    x_shape = four_sizes(x_shape, "x_shape")
    return avgpool2d_backward(dy, x_shape, _plane(x_shape, "x_shape"))


def _geometry(x_shape, name, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """The shape of a sample's output, and what an operation takes of the options, which are checked."""
    kernel_size, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel_size if stride is None else pair(stride, "stride", 1)
    divisor_override = None if divisor_override is None else integer(divisor_override, "divisor_override", 1)
    size = pooled_size(x_shape[2:], kernel_size, stride, padding, (1, 1), flag(ceil_mode, "ceil_mode"), name)
    return (x_shape[1], *size), (kernel_size, stride, padding, flag(count_include_pad, "count_include_pad"), divisor_override)


def _plane(x_shape, name):
    """The (H, W) of images, which have a cell."""
    if min(x_shape[2:]) < 1:
        raise ValueError(f"{name}: expected planes of at least 1x1, got {x_shape[2]}x{x_shape[3]}")
    return tuple(x_shape[2:])
