"""ReLU, the rectified linear unit, and its gradient."""
from nbcnn.kernels.arguments import floats, same_dtype, same_shape
from nbcnn.kernels.backend import backend_of, on_device


def relu_forward(x):
    """Set negative values to zero: y = max(x, 0).

    Parameters
    ----------
    x : float array (any shape)
        A NumPy array, or a GPU's, as then is the result.

    Returns
    -------
    y : float array (shape of x)

    Raises
    ------
    TypeError
        x is not float32 or float64.

    Notes
    -----
    NaN stays NaN.

    Source: PyTorch's torch.nn.functional.relu.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    >>> y = np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     y[k] = x[k] if x[k] > 0 else 0
    >>> bool((relu_forward(x) == y).all())
    True
    """
    backend, x = backend_of(x=x), floats(x, "x")
    rows = _rows(backend, x)
    y = backend.Buffer(len(rows), rows.shape[1:], x.dtype)
    backend.run(backend.ReLU(y.shape, x.dtype).forward(len(rows), y, backend.Buffer.holding(rows), ()))
    return y.view(len(rows)).reshape(x.shape)


def relu_backward(dy, y):
    """Let the gradient through where the output is positive: dx = dy where y > 0, else 0.

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy: a NumPy array, as y, or both a GPU's, as then is the result.
    y : float array (shape of dy)
        What forward returned.

    Returns
    -------
    dx : float array (shape of dy)

    Raises
    ------
    TypeError
        An array is not float32 or float64, or dy's dtype is not that of y.
    ValueError
        Shapes that differ.

    Notes
    -----
    Zero where y is 0, so relu'(0) = 0; dy where y is NaN.

    Source: PyTorch's aten threshold_backward.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    >>> y, dx = relu_forward(x), np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     dx[k] = dy[k] if y[k] > 0 else 0
    >>> bool((relu_backward(dy, y) == dx).all())
    True
    """
    backend, dy, y = backend_of(dy=dy, y=y), floats(dy, "dy"), floats(y, "y")
    same_dtype(dy, "dy", y, "y")
    same_shape(dy, "dy", y.shape, "that of y")
    rows = _rows(backend, dy)
    dx = backend.Buffer(len(rows), rows.shape[1:], dy.dtype)
    operation = backend.ReLU(dx.shape, dy.dtype)
    backend.run(operation.backward(
        len(rows), dx, (), backend.Buffer.holding(rows), None, backend.Buffer.holding(_rows(backend, y)), (), ()))
    return dx.view(len(rows)).reshape(dy.shape)


def _rows(backend, x):
    """x as vectors (N, F), one for each entry of its first axis."""
    n = len(x) if x.ndim else 1
    if on_device(x):
        x = backend.buffer.contiguous(x)
    return x.reshape(n, x.size // max(n, 1))
