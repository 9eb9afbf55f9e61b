"""Convolution, max pooling and perhaps ReLU in one, with gradients that visit only the pixels that won their window."""
import math

from nbcnn.kernels.arguments import flag, floats, pair, pooled_size, same_dtype, same_shape, winners
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.conv2d import _check as check_conv
from nbcnn.kernels.conv2d import conv2d_backward, conv2d_forward, flat_parameters, run_gradients
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import NO_WINNER, run_forward

__all__ = ["conv2d_maxpool2d_forward", "conv2d_maxpool2d_backward"]


@documented(conv2d_forward)
def conv2d_maxpool2d_forward(x, w, b=None, *, padding=0, pool_size=2, relu=False):
    """Convolve images with a bank of kernels and find the largest value of each window, without a convolution's output in memory.

    With z = conv2d_forward(x, w, b, padding=padding), of stride 1,
    y[n, o, i, j] = maximum over u, v of z[n, o, i*WH + u, j*WW + v], and of 0 with `relu`.
    It is what conv2d_forward, maxpool2d_forward and, if asked for, relu_forward give one after another; a ReLU before the pooling
    would give the same.

    Windows are scanned row by row. The first of equal values wins. A NaN wins over every number and over an earlier NaN, and the
    ReLU lets it through.

    The order of the additions depends on the kernel's shape alone: with finite weights an image's result has the same bits in any
    batch. Source: PyTorch's torch.nn.functional.conv2d, max_pool2d and relu.

    Parameters
    ----------
    padding : int or pair of ints, or {"same", "valid"}
        Of the convolution, as in `conv2d_forward`.
    pool_size : int or pair of ints
        Size (WH, WW) of the pooling's windows, which lie side by side: at most 255 cells, and KW + WW at most 25.
    relu : bool

    Returns
    -------
    y : float array (N, O, PH, PW)
        PH = floor((H + 2*padding - KH + 1) / WH), PW likewise: the convolution's last rows and columns that fill no window are
        left out, and both are at least 1. A view of channels-last memory, as argmax.
    argmax : uint8 array (N, O, PH, PW)
        The cell u*WW + v of the window that won; 255 where the ReLU gave 0.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)                               # of integers, so that every sum is exact
    >>> x, w, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 3, 6, 7), (4, 3, 3, 2), 4))
    >>> y, argmax = np.zeros((2, 4, 3, 2), np.float32), np.full((2, 4, 3, 2), 255, np.uint8)
    >>> for n, o, i, j in np.ndindex(y.shape):
    ...     for u, v in np.ndindex(2, 3):                            # the window
    ...         z = b[o]
    ...         for c, p, q in np.ndindex(w.shape[1:]):
    ...             r, s = 2 * i + u + p - 1, 3 * j + v + q - 0      # padding (1, 0)
    ...             if 0 <= r < 6 and 0 <= s < 7:
    ...                 z += x[n, c, r, s] * w[o, c, p, q]
    ...         if z > y[n, o, i, j]:                                # begins at 0: the ReLU
    ...             y[n, o, i, j], argmax[n, o, i, j] = z, 3 * u + v
    >>> got = conv2d_maxpool2d_forward(x, w, b, padding=(1, 0), pool_size=(2, 3), relu=True)
    >>> all(map(np.array_equal, got, (y, argmax)))
    True

    Or as the kernels that it replaces:

    >>> from nbcnn.kernels import conv2d_forward, maxpool2d_forward, relu_forward
    >>> pooled, argmax = maxpool2d_forward(conv2d_forward(x, w, b, padding=(1, 0)), (2, 3))
    >>> np.array_equal(got[0], relu_forward(pooled))
    True
    """
    backend = backend_of(x=x, w=w, b=b)
    x, w, operation = _check(backend, x, w, padding, pool_size, relu)
    params = flat_parameters(backend, x, w, b)
    operation.reserve(len(x))
    return run_forward(backend, operation, x, (len(w), *operation.size), params), operation.argmax.view(len(x))


@documented(conv2d_backward, conv2d_maxpool2d_forward)
def conv2d_maxpool2d_backward(dy, argmax, x, w, *, padding=0, pool_size=2, relu=False, need_dx=True):
    """Gradients of a convolution that is pooled, with respect to its input, its kernels and its bias.

    Of a window only the pixel that won receives dy[n, o, i, j]: the one at (u, v), with argmax[n, o, i, j] = u*WW + v. Where the
    cell is 255 none does. With r = i*WH + u + p - padding and s = j*WW + v + q - padding:
    dx[.., r, s] += dy[.., i, j] * w[.., p, q] and dw[.., p, q] += dy[.., i, j] * x[.., r, s]; db = sum of dy, without those
    where the cell is 255.

    dw and db are sums of a few partial sums whose limits follow from the shapes alone: equal bits for any number of threads. Pixels
    that did not win are left out instead of multiplied by 0: an infinity or a NaN of x that only they read is not in dw.
    Source: PyTorch's torch.ops.aten.threshold_backward, max_pool2d_with_indices_backward and convolution_backward.

    Parameters
    ----------
    dy : float array (N, O, PH, PW)
        The upstream gradient dLoss/dy.
    argmax : int array (N, O, PH, PW)
        As forward returns them; any cells of the window are accepted, and 255 with `relu`.

    Raises
    ------
    IndexError
        A cell outside the window.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, w, dy = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 3, 6, 7), (4, 3, 3, 2), (2, 4, 3, 2)))
    >>> y, argmax = conv2d_maxpool2d_forward(x, w, padding=(1, 0), pool_size=(2, 3), relu=True)
    >>> dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(4, np.float32)
    >>> for n, o, i, j in np.ndindex(dy.shape):
    ...     if argmax[n, o, i, j] == 255:
    ...         continue
    ...     u, v = divmod(int(argmax[n, o, i, j]), 3)
    ...     db[o] += dy[n, o, i, j]
    ...     for c, p, q in np.ndindex(w.shape[1:]):
    ...         r, s = 2 * i + u + p - 1, 3 * j + v + q - 0          # padding (1, 0)
    ...         if 0 <= r < 6 and 0 <= s < 7:
    ...             dx[n, c, r, s] += dy[n, o, i, j] * w[o, c, p, q]
    ...             dw[o, c, p, q] += dy[n, o, i, j] * x[n, c, r, s]
    >>> got = conv2d_maxpool2d_backward(dy, argmax, x, w, padding=(1, 0), pool_size=(2, 3), relu=True)
    >>> all(map(np.array_equal, got, (dx, dw, db)))
    True

    Or as the kernels that it replaces:

    >>> from nbcnn.kernels import conv2d_backward, conv2d_forward, maxpool2d_backward, maxpool2d_forward, relu_backward
    >>> z = conv2d_forward(x, w, padding=(1, 0))
    >>> pooled, argmax = maxpool2d_forward(z, (2, 3))
    >>> plain = conv2d_backward(maxpool2d_backward(relu_backward(dy, y), argmax, z.shape), x, w, padding=(1, 0))
    >>> all(map(np.array_equal, got, plain))
    True
    """
    backend = backend_of(dy=dy, argmax=argmax, x=x, w=w)
    x, w, operation = _check(backend, x, w, padding, pool_size, relu)
    dy = floats(dy, "dy", "(N, O, PH, PW)")
    same_dtype(dy, "dy", x, "x")
    same_shape(dy, "dy", (len(x), len(w), *operation.size), "that of the pooling's result")
    cells = winners(argmax, dy, operation.pool_size, "window", NO_WINNER if operation.relu else None)
    return run_gradients(backend, operation, dy, x, w, need_dx, cells)


def _check(backend, x, w, padding, pool_size, relu):
    """x and w as arrays, and the operation that fits them."""
    x, w, conv = check_conv(backend, x, w, 1, padding, 1)
    pool_size, relu = pair(pool_size, "pool_size", 1), flag(relu, "relu")
    if math.prod(pool_size) > NO_WINNER or conv.kernel_size[1] + pool_size[1] > 25:
        raise ValueError(f"pool_size: expected at most {NO_WINNER} cells, and at most 25 columns together with the kernels' "
                         f"{conv.kernel_size[1]}, got {pool_size}")
    pooled_size(conv.y_size, pool_size, pool_size, (0, 0), (1, 1), False, "pool_size")
    conv_shape = conv.O, *conv.y_size
    return x, w, backend.Conv2dMaxPool2d(x.shape[1:], conv_shape, conv.kernel_size, conv.padding, pool_size, relu, x.dtype)
