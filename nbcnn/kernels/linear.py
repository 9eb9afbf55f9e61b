"""The linear (fully connected) layer and its gradients."""
from nbcnn.kernels.arguments import floats, same_dtype, same_shape
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.conv2d import flat_parameters, run_gradients
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_forward

__all__ = ["linear_forward", "linear_backward"]


@documented()
def linear_forward(x, w, b=None):
    """Multiply vectors with a matrix: y = x W^T + b.

    The order of the additions depends on `in` alone: a sample's result has the same bits in any batch.
    Source: PyTorch's torch.nn.functional.linear.

    Parameters
    ----------
    x : float array (N, in)
    w : float array (out, in)
    b : float array (out,), optional

    Returns
    -------
    y : float array (N, out)

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, w, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 5), (3, 5), 3))
    >>> y = np.zeros((2, 3), np.float32)
    >>> for n, o in np.ndindex(y.shape):
    ...     y[n, o] = b[o]
    ...     for c in range(5):
    ...         y[n, o] += x[n, c] * w[o, c]
    >>> np.array_equal(linear_forward(x, w, b), y)
    True
    """
    backend = backend_of(x=x, w=w, b=b)
    x, w, operation = _check(backend, x, w)
    params = flat_parameters(backend, x, w, b, "(out,)", "row of w")
    return run_forward(backend, operation, x, w.shape[:1], params)


@documented(linear_forward)
def linear_backward(dy, x, w, *, need_dx=True):
    """Gradients of the linear layer: dx = dy W, dw = dy^T x, db = sum of dy over n.

    Source: PyTorch's torch.nn.functional.linear, differentiated.

    Parameters
    ----------
    dy : float array (N, out)
        The upstream gradient dLoss/dy.
    need_dx : bool
        False leaves dx out.

    Returns
    -------
    dx : float array (N, in) or None
    dw : float array (out, in)
    db : float array (out,)

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> dy, x, w = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 3), (2, 5), (3, 5)))
    >>> dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(3, np.float32)
    >>> for n, o in np.ndindex(dy.shape):
    ...     db[o] += dy[n, o]
    ...     for c in range(5):
    ...         dx[n, c] += dy[n, o] * w[o, c]
    ...         dw[o, c] += dy[n, o] * x[n, c]
    >>> all(map(np.array_equal, linear_backward(dy, x, w), (dx, dw, db)))
    True
    """
    backend = backend_of(dy=dy, x=x, w=w)
    x, w, operation = _check(backend, x, w)
    dy = floats(dy, "dy", "(N, out)")
    same_dtype(dy, "dy", x, "x")
    same_shape(dy, "dy", (len(x), len(w)), "that of the layer's result")
    return run_gradients(backend, operation, dy, x, w, need_dx)


def _check(backend, x, w):
    """x and w as arrays, and the linear layer that fits them."""
    x, w = floats(x, "x", "(N, in)"), floats(w, "w", "(out, in)")
    same_dtype(w, "w", x, "x")
    if 0 in w.shape:
        raise ValueError(f"w: expected shape (out, in) with both sizes >= 1, got shape {w.shape}")
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"x: expected shape (N, in) with in = {w.shape[1]} features, as w {w.shape} has, got shape {x.shape}")
    return x, w, backend.Linear(x.shape[1:], w.shape[:1], x.dtype)
