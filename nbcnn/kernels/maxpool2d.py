"""Max pooling: the largest value of each window, and the gradient's way back to where it stood."""
import numpy as np

from nbcnn.kernels.arguments import flag, floats, four_sizes, pair, pooled_size, winners
from nbcnn.kernels.backend import as_array, backend_of, on_device
from nbcnn.kernels.cpu.launch import launch
from nbcnn.kernels.cpu.maxpool2d import maxpool2d_scatter
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_forward

__all__ = ["maxpool2d_forward", "maxpool2d_backward"]


@documented()
def maxpool2d_forward(x, kernel_size, *, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Find the largest value of each window and where it stands.

    y[n, c, i, j] = maximum over p, q of x[n, c, i*stride + p*dilation - padding, j*stride + q*dilation - padding],
    cells outside the image left out. Windows are scanned row by row. The first of equal values wins. A NaN wins over every number,
    and over an earlier NaN.

    A dilated window can lie in the padding with every cell. PyTorch then gives -inf and an index outside the image;
    here such a geometry is an error. Source: PyTorch's aten/src/ATen/native/cpu/MaxPoolKernel.cpp.

    Parameters
    ----------
    x : float array (N, C, H, W)
    kernel_size, padding, dilation : int or pair of ints
        Along H and along W. The padding is at most half the window of (kernel_size-1)*dilation + 1 cells.
    stride : int or pair of ints, optional
        The kernel size when not given.
    ceil_mode : bool
        Whether a last window that begins inside the padded image and ends outside counts.

    Returns
    -------
    y : float array (N, C, OH, OW)
        OH = floor((H + 2*padding - dilation*(kernel_size-1) - 1) / stride) + 1, OW likewise; ceil instead of floor with
        `ceil_mode`, less a last window that would begin beyond the image; both at least 1. A view of channels-last memory, as
        argmax; on a GPU both are in C order.
    argmax : int64 array (N, C, OH, OW)
        The cell r*W + s of the input plane that won, as PyTorch's return_indices.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.integers(-9, 10, (2, 3, 6, 5)).astype(np.float32)
    >>> y, argmax = np.full((2, 3, 3, 2), -np.inf, np.float32), np.zeros((2, 3, 3, 2), np.int64)
    >>> for n, c, i, j in np.ndindex(y.shape):
    ...     for p, q in np.ndindex(3, 2):
    ...         r, s = 2 * i + p - 1, 3 * j + q - 0                  # stride (2, 3), padding (1, 0)
    ...         if 0 <= r < 6 and 0 <= s < 5 and x[n, c, r, s] > y[n, c, i, j]:
    ...             y[n, c, i, j], argmax[n, c, i, j] = x[n, c, r, s], r * 5 + s
    >>> all(map(np.array_equal, maxpool2d_forward(x, (3, 2), stride=(2, 3), padding=(1, 0)), (y, argmax)))
    True
    """
    backend, x = backend_of(x=x), floats(x, "x", "(N, C, H, W)")
    kernel_size, padding, dilation = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0), pair(dilation, "dilation", 1)
    stride = kernel_size if stride is None else pair(stride, "stride", 1)
    (N, C, H, W) = x.shape
    y_shape = C, *pooled_size((H, W), kernel_size, stride, padding, dilation, flag(ceil_mode, "ceil_mode"), "x")
    operation = backend.MaxPool2d((C, H, W), kernel_size, stride, padding, dilation, y_shape, x.dtype)
    operation.reserve(N)
    return run_forward(backend, operation, x, y_shape), operation.winners(N)


@documented()
def maxpool2d_backward(dy, argmax, x_shape):
    """Hand each window's gradient to the cell that won: dx[n, c, argmax[n, c, i, j]] += dy[n, c, i, j].

    Windows that overlap can share a cell: it gets the sum, added row by row of the output.
    Source: PyTorch's aten/src/ATen/native/cpu/MaxPoolKernel.cpp.

    Parameters
    ----------
    dy : float array (N, C, OH, OW)
        The upstream gradient dLoss/dy.
    argmax : int array (N, C, OH, OW)
        Cells r*W + s, as forward returns them; any cells of the input plane are accepted.
    x_shape : tuple of ints (N, C, H, W)

    Returns
    -------
    dx : float array (N, C, H, W)
        Zero where no window had its maximum; in C order.

    Raises
    ------
    IndexError
        A cell outside the input plane.

    >>> rng = np.random.default_rng(0)
    >>> x, dy = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((2, 3, 6, 5), (2, 3, 5, 4)))
    >>> y, argmax = maxpool2d_forward(x, 2, stride=1)
    >>> dx = np.zeros_like(x)
    >>> for n, c, i, j in np.ndindex(dy.shape):
    ...     dx[n, c].flat[argmax[n, c, i, j]] += dy[n, c, i, j]
    >>> np.array_equal(maxpool2d_backward(dy, argmax, x.shape), dx)
    True
    """
    backend, dy = backend_of(dy=dy, argmax=argmax), floats(dy, "dy", "(N, C, OH, OW)")
    N, C, H, W = four_sizes(x_shape, "x_shape")
    if dy.shape[:2] != (N, C):
        raise ValueError(f"dy: expected shape (N, C, OH, OW) with N, C = {N}, {C}, as x_shape says, got shape {dy.shape}")
    cells = winners(argmax, dy, (H, W), "plane")
    if on_device(dy):
        return backend.maxpool2d.scatter(dy, as_array(argmax, "argmax"), (N, C, H, W))
    dx, windows = np.zeros((N, C, H, W), dy.dtype), (N, C, dy.shape[2] * dy.shape[3])
    dy, cells = np.ascontiguousarray(dy).reshape(windows), cells.astype(np.int64).reshape(windows)
    launch(maxpool2d_scatter, dx.reshape(N, C, H * W), dy, cells)
    return dx
