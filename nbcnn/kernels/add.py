"""The sum of several inputs, and the gradient, which is the same for each."""
from nbcnn.kernels.arguments import MOST_ITEMS, floats, integer, same_shape, several_floats
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_backward_of, run_forward

__all__ = ["add_forward", "add_backward"]


@documented()
def add_forward(xs):
    """Add up inputs of one shape, in their order: y = xs[0] + xs[1] + ...

    Source: a sum in PyTorch, without its broadcasting.

    Parameters
    ----------
    xs : sequence of float arrays (N, C, H, W) or (N, F)
        At least two.

    Returns
    -------
    y : float array (shape of xs[0])
        Images are a view of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> xs = [np.random.default_rng(k).standard_normal((2, 3, 4, 5)) for k in range(3)]
    >>> y = np.zeros((2, 3, 4, 5))
    >>> for index in np.ndindex(y.shape):
    ...     for x in xs:
    ...         y[index] += x[index]
    >>> np.array_equal(add_forward(xs), y)
    True
    """
    arrays = several_floats(xs, "xs", "(N, C, H, W)", "(N, F)")
    backend, xs = backend_of(**arrays), list(arrays.values())
    for name, x in arrays.items():
        same_shape(x, name, xs[0].shape, "that of xs[0]")
    return run_forward(backend, backend.Add(tuple(x.shape[1:] for x in xs), xs[0].dtype), xs, xs[0].shape[1:])


@documented(add_forward)
def add_backward(dy, count):
    """Hand the gradient to each of `count` inputs: dx = dy.

    Source: PyTorch's torch.autograd.

    Parameters
    ----------
    dy : float array (N, C, H, W) or (N, F)
        The upstream gradient dLoss/dy.
    count : int
        How many inputs there are, at least two.

    Returns
    -------
    dxs : tuple of float arrays (shape of dy)
        Each in memory of its own.

    >>> import numpy as np
    >>> dy = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    >>> dxs = [np.zeros(dy.shape) for _ in range(3)]
    >>> for dx in dxs:
    ...     for index in np.ndindex(dy.shape):
    ...         dx[index] = dy[index]
    >>> all(map(np.array_equal, add_backward(dy, 3), dxs))
    True
    """
    backend, dy, count = backend_of(dy=dy), floats(dy, "dy", "(N, C, H, W)", "(N, F)"), integer(count, "count", 2, MOST_ITEMS)
    shapes = (dy.shape[1:],) * count
    return run_backward_of(backend, backend.Add(shapes, dy.dtype), dy, shapes)
