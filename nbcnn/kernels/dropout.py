"""Dropout in training: elements, or planes, that a random mask multiplies by zero, and the gradient of those that stay."""
import numpy as np

from nbcnn.kernels.arguments import SEEDS, describe, floats, fraction, integer, same_shape
from nbcnn.kernels.backend import as_array, backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import Place, run_backward, run_forward

__all__ = ["dropout_forward", "dropout_backward", "dropout2d_forward", "dropout2d_backward"]

IMAGES, VECTORS = "(N, C, H, W)", "(N, F)"


@documented()
def dropout_forward(x, p=0.5, *, seed=0, layer=0, step=0):
    """Multiply each element by 0 with probability p, and by 1/(1 - p) else: y = x * mask / (1 - p).

    With p = 1 all are multiplied by 0. An infinity or NaN times 0 is NaN, as in PyTorch. The mask depends on the numbers below and
    on where an element lies, and on nothing else: it is the same on every device and for any number of threads, and the first
    samples of a large batch have that of a small one. An element stays where a random number of 32 bits is at least p * 2**32,
    rounded. The numbers are those of Philox4x32-10: J. K. Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011.
    Source: PyTorch's torch.nn.functional.dropout, whose masks are others.

    Parameters
    ----------
    x : float array (N, C, H, W) or (N, F)
    p : float
        In [0, 1].
    seed : int
        Of a model, from 0 to 2**128 - 1: seed ^ seed >> 64, of which the last 64 bits count.
    layer, step : int
        The layer's number in the model, and how many steps of training there were before; of a step the last 32 bits count.

    Returns
    -------
    y : float array (shape of x)
    mask : uint8 array (shape of x)
        1 where an element stays, else 0.

    >>> import numpy as np
    >>> def philox(c0, c1, c2, c3, key0, key1):
    ...     for _ in range(10):
    ...         first, third = 0xD2511F53 * c0, 0xCD9E8D57 * c2
    ...         c0, c1, c2, c3 = third >> 32 ^ c1 ^ key0, third % 2**32, first >> 32 ^ c3 ^ key1, first % 2**32
    ...         key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    ...     return c0, c1, c2, c3
    >>> x = np.random.default_rng(0).standard_normal((6, 3, 2, 4))
    >>> expected = np.zeros(x.shape, np.uint8)
    >>> for n, c, h, w in np.ndindex(x.shape):
    ...     numbers = philox((c * 2 + h) * 4 + w, n // 4, 9, 2, 7, 5)       # the seed's last 32 bits, then its first
    ...     expected[n, c, h, w] = numbers[n % 4] >= 0.25 * 2**32
    >>> y, mask = dropout_forward(x, 0.25, seed=5 * 2**32 + 7, layer=2, step=9)
    >>> np.array_equal(mask, expected) and np.array_equal(y, x * expected * (1 / (1 - 0.25)))
    True
    """
    return _forward(x, (IMAGES, VECTORS), False, p, seed, layer, step)


@documented(dropout_forward)
def dropout_backward(dy, mask, p=0.5):
    """Let the gradient through where an element stayed: dx = dy * mask / (1 - p).

    Source: PyTorch's aten native_dropout_backward.

    Parameters
    ----------
    dy : float array (N, C, H, W) or (N, F)
        The upstream gradient dLoss/dy.
    mask : uint8 array (shape of dy)
        What forward returned: an element stayed where it is not 0.

    Returns
    -------
    dx : float array (shape of dy)

    >>> import numpy as np
    >>> dy, mask = np.array([[3.0, -1.0, 0.5, 2.0]]), np.array([[1, 0, 0, 1]], np.uint8)
    >>> np.array_equal(dropout_backward(dy, mask, 0.25), dy * mask * (1 / (1 - 0.25)))
    True
    """
    return _backward(dy, (IMAGES, VECTORS), mask, p)


@documented(dropout_forward)
def dropout2d_forward(x, p=0.5, *, seed=0, layer=0, step=0):
    """Multiply each plane by 0 with probability p, and by 1/(1 - p) else: y[n, c] = x[n, c] * mask[n, c] / (1 - p).

    `dropout_forward` says what decides on a mask; here a plane has one number. Source: PyTorch's torch.nn.functional.dropout2d.

    Parameters
    ----------
    x : float array (N, C, H, W)

    Returns
    -------
    y : float array (N, C, H, W)
    mask : uint8 array (N, C)
        1 where a plane stays, else 0: that of vectors (N, C).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((6, 8, 2, 4))
    >>> y, mask = dropout2d_forward(x, 0.25, seed=7, layer=2, step=9)
    >>> expected = np.zeros_like(x)
    >>> for n, c, h, w in np.ndindex(x.shape):
    ...     expected[n, c, h, w] = x[n, c, h, w] * mask[n, c] * (1 / (1 - 0.25))
    >>> np.array_equal(y, expected)
    True
    >>> np.array_equal(mask, dropout_forward(x[:, :, 0, 0], 0.25, seed=7, layer=2, step=9)[1])
    True
    """
    return _forward(x, (IMAGES,), True, p, seed, layer, step)


@documented(dropout_backward)
def dropout2d_backward(dy, mask, p=0.5):
    """Let the gradient through where a plane stayed: dx[n, c] = dy[n, c] * mask[n, c] / (1 - p).

    Source: PyTorch's aten feature_dropout, whose gradient this is.

    Parameters
    ----------
    dy : float array (N, C, H, W)
        The upstream gradient dLoss/dy.
    mask : uint8 array (N, C)
        What forward returned: a plane stayed where it is not 0.

    >>> import numpy as np
    >>> dy, mask = np.random.default_rng(0).standard_normal((2, 3, 2, 4)), np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    >>> np.array_equal(dropout2d_backward(dy, mask, 0.25), dy * mask[:, :, None, None] * (1 / (1 - 0.25)))
    True
    """
    return _backward(dy, (IMAGES,), mask, p, planes=True)


def _forward(x, layouts, planes, p, seed, layer, step):
    """y and the mask."""
    backend, x = backend_of(x=x), floats(x, "x", *layouts)
    p, seed, layer = fraction(p, "p"), integer(seed, "seed", 0, SEEDS), integer(layer, "layer", 0)
    step = integer(step, "step", 0, 2**63 - 1)
    operation = backend.Dropout(x.shape[1:], p, planes, x.dtype)
    operation.place = Place(seed, layer, backend.to_device(np.array([step])))
    operation.reserve(len(x))
    return run_forward(backend, operation, x, x.shape[1:]), operation.mask.view(len(x))


def _backward(dy, layouts, mask, p, planes=False):
    """dx"""
    backend, dy, p = backend_of(dy=dy, mask=mask), floats(dy, "dy", *layouts), fraction(p, "p")
    array = as_array(mask, "mask")
    if array.dtype != np.uint8:
        raise TypeError(f"mask: expected a uint8 array, got {describe(mask, array)}")
    same_shape(array, "mask", dy.shape[:2] if planes else dy.shape, "as forward returns it")
    operation = backend.Dropout(dy.shape[1:], p, planes, dy.dtype)
    operation.reserve(len(dy))
    operation.mask.set(array)
    return run_backward(backend, operation, dy, dy.shape[1:])
