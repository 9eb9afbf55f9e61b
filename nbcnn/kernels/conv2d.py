"""2-D convolution (cross-correlation, as in every deep-learning library) and its gradients."""
from nbcnn.kernels.arguments import (
    conv_padding,
    conv_size,
    flag,
    floats,
    integer,
    padding_before,
    pair,
    same_dtype,
    same_shape,
)
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_forward

__all__ = ["conv2d_forward", "conv2d_backward"]


@documented()
def conv2d_forward(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1):
    """Convolve images with a bank of kernels.

    y[n, o, i, j] = b[o] + sum over c, p, q of x[n, c, i*stride + p*dilation - padding, j*stride + q*dilation - padding]
    * w[o, c, p, q], where x is zero outside the image.

    In `groups` the channels, and the outputs, are divided into so many equal parts, one after another: an output sees the C/groups
    channels of its own part alone. With a group for each channel the convolution is depthwise.

    The order of the additions depends on the kernel's shape alone: with finite weights an image's result has the same bits in any
    batch. Source: PyTorch's torch.nn.functional.conv2d.

    Parameters
    ----------
    x : float array (N, C, H, W)
    w : float array (O, C/groups, KH, KW)
    b : float array (O,), optional
    stride, dilation : int or pair of ints
        Along H and along W, in pixels.
    padding : int or pair of ints, or {"same", "valid"}
        Of zeros on all sides, along H and along W. "valid" is 0. "same", which takes a stride of 1, makes the output as large as
        the input: dilation*(K-1) zeros in all, of an odd number one more at the bottom or on the right.
    groups : int
        A divisor of C and of O.

    Returns
    -------
    y : float array (N, O, OH, OW)
        OH = floor((H + 2*padding - dilation*(KH-1) - 1) / stride) + 1, OW likewise, both at least 1.
        A view of channels-last memory.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)                               # of integers, so that every sum is exact
    >>> x, w, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 3, 6, 5), (4, 3, 3, 2), 4))
    >>> y = np.zeros((2, 4, 3, 2), np.float32)
    >>> for n, o, i, j in np.ndindex(y.shape):
    ...     y[n, o, i, j] = b[o]
    ...     for c, p, q in np.ndindex(w.shape[1:]):
    ...         r, s = 2 * i + p - 1, 3 * j + q - 0                  # stride (2, 3), padding (1, 0)
    ...         if 0 <= r < 6 and 0 <= s < 5:
    ...             y[n, o, i, j] += x[n, c, r, s] * w[o, c, p, q]
    >>> np.array_equal(conv2d_forward(x, w, b, stride=(2, 3), padding=(1, 0)), y)
    True

    Two groups are two convolutions:

    >>> w = rng.integers(-3, 4, (4, 2, 3, 2)).astype(np.float32)
    >>> x = rng.integers(-3, 4, (2, 4, 6, 5)).astype(np.float32)
    >>> halves = [conv2d_forward(x[:, :2], w[:2]), conv2d_forward(x[:, 2:], w[2:])]
    >>> np.array_equal(conv2d_forward(x, w, groups=2), np.concatenate(halves, axis=1))
    True
    """
    backend = backend_of(x=x, w=w, b=b)
    x, w, operation = _check(backend, x, w, stride, padding, dilation, groups)
    params = flat_parameters(backend, x, w, b)
    return run_forward(backend, operation, x, (len(w), *operation.y_size), params)


@documented(conv2d_forward)
def conv2d_backward(dy, x, w, *, stride=1, padding=0, dilation=1, groups=1, need_dx=True):
    """Gradients of a convolution with respect to its input, its kernels and its bias.

    Each product x * w that forward added into y passes dy on to both of its factors:
    dx[.., r, s] += dy[.., i, j] * w[.., p, q] and dw[.., p, q] += dy[.., i, j] * x[.., r, s]; db = sum of dy over n, i, j.
    dw and db are sums of at most 8 partial sums whose limits follow from the shapes alone: equal bits for any number of threads.
    Source: PyTorch's torch.ops.aten.convolution_backward.

    Parameters
    ----------
    dy : float array (N, O, OH, OW)
        The upstream gradient dLoss/dy.
    need_dx : bool
        False leaves dx out: the first layer of a network needs none.

    Returns
    -------
    dx : float array (N, C, H, W) or None
    dw : float array (O, C/groups, KH, KW)
    db : float array (O,)

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, w, dy = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 3, 6, 5), (4, 3, 3, 2), (2, 4, 3, 2)))
    >>> dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(4, np.float32)
    >>> for n, o, i, j in np.ndindex(dy.shape):
    ...     db[o] += dy[n, o, i, j]
    ...     for c, p, q in np.ndindex(w.shape[1:]):
    ...         r, s = 2 * i + p - 1, 3 * j + q - 0                  # stride (2, 3), padding (1, 0)
    ...         if 0 <= r < 6 and 0 <= s < 5:
    ...             dx[n, c, r, s] += dy[n, o, i, j] * w[o, c, p, q]
    ...             dw[o, c, p, q] += dy[n, o, i, j] * x[n, c, r, s]
    >>> all(map(np.array_equal, conv2d_backward(dy, x, w, stride=(2, 3), padding=(1, 0)), (dx, dw, db)))
    True
    """
    backend = backend_of(dy=dy, x=x, w=w)
    x, w, operation = _check(backend, x, w, stride, padding, dilation, groups)
    dy = floats(dy, "dy", "(N, O, OH, OW)")
    same_dtype(dy, "dy", x, "x")
    same_shape(dy, "dy", (len(x), len(w), *operation.y_size), "that of the convolution's result")
    return run_gradients(backend, operation, dy, x, w, need_dx)


def flat_parameters(backend, x, w, b, layout="(O,)", each="kernel in w"):
    """w and b, which is checked here, in the kernels' order."""
    if b is not None:
        b = floats(b, "b", layout)
        same_dtype(b, "b", x, "x")
        same_shape(b, "b", w.shape[:1], f"one bias for each {each}")
        b = backend.flat_weight(b)
    return backend.flat_weight(w), b


def run_gradients(backend, operation, dy, x, w, need_dx, argmax=None):
    """dx or None, dw and db of an operation with weights; `argmax` is what one that pools has kept from forward."""
    need_dx, N = flag(need_dx, "need_dx"), len(x)
    operation.reserve(N)
    if argmax is not None:
        operation.argmax.set(argmax)
    dx = backend.Buffer(N, x.shape[1:], x.dtype) if need_dx else None
    gradients = backend.Gradients(operation, N, (w.size, len(w)), x.dtype)
    dy, x = backend.Buffer.holding(dy), backend.Buffer.holding(x)
    calls = operation.backward(N, dx, gradients.targets, dy, x, None, (backend.flat_weight(w), None), (False, False))
    backend.run(calls + gradients.calls)
    dw, db = gradients.arrays
    return dx.view(N) if need_dx else None, backend.unflat_weight(dw, w.shape), db


def convolution(backend, x_shape, y_shape, kernel_size, stride, padding, dilation, groups, dtype):
    """The operation of a convolution of images of one shape, of all channels, of each, or of groups of them."""
    geometry = x_shape, y_shape, kernel_size, stride, padding_before(padding, kernel_size, dilation), dilation
    if groups == 1:
        return backend.Conv2d(*geometry, dtype)
    if groups == x_shape[0] == y_shape[0]:
        return backend.Conv2dDepthwise(*geometry, dtype)
    return backend.Conv2dGroups(*geometry, groups, dtype)


def _check(backend, x, w, stride, padding, dilation, groups=1):
    """x and w as arrays, and the convolution that fits them."""
    groups = integer(groups, "groups", 1)
    layout = "(O, C, KH, KW)" if groups == 1 else "(O, C/groups, KH, KW)"
    x, w = floats(x, "x", "(N, C, H, W)"), floats(w, "w", layout)
    same_dtype(w, "w", x, "x")
    if 0 in w.shape:
        raise ValueError(f"w: expected shape {layout} with every size >= 1, got shape {w.shape}")
    if len(w) % groups:
        raise ValueError(f"groups: expected a divisor of the {len(w)} outputs of w, got {groups}")
    if x.shape[1] != groups * w.shape[1]:
        of_groups = f" in each of {groups} groups" if groups > 1 else ""
        raise ValueError(f"x: expected shape (N, C, H, W) with C = {groups * w.shape[1]} channels, as w {w.shape} has{of_groups}, "
                         f"got shape {x.shape}")
    stride, dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    padding = conv_padding(padding, stride)
    size = conv_size(x.shape[2:], w.shape[2:], stride, padding, dilation, "x")
    return x, w, convolution(backend, x.shape[1:], (len(w), *size), w.shape[2:], stride, padding, dilation, groups, x.dtype)
