"""Concatenation: the channels of several inputs side by side, and each one's part of the gradient."""
from nbcnn.kernels.arguments import floats, ints, same_shape, several_floats
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_backward_of, run_forward
from nbcnn.kernels.shown import shown

__all__ = ["concat_forward", "concat_backward"]


@documented()
def concat_forward(xs):
    """Join the channels of several inputs, in their order: y[:, first:first + C] = x, where `first` is how many are before.

    Source: PyTorch's torch.cat(xs, 1).

    Parameters
    ----------
    xs : sequence of float arrays (N, C, H, W) or (N, F)
        At least two; C or F may differ.

    Returns
    -------
    y : float array (N, sum of C, H, W) or (N, sum of F)
        Images are a view of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> xs = [np.random.default_rng(C).standard_normal((2, C, 4, 3)) for C in (3, 1, 2)]
    >>> y, first = np.zeros((2, 6, 4, 3)), 0
    >>> for x in xs:
    ...     for n, c, h, w in np.ndindex(x.shape):
    ...         y[n, first + c, h, w] = x[n, c, h, w]
    ...     first += x.shape[1]
    >>> np.array_equal(concat_forward(xs), y)
    True
    """
    arrays = several_floats(xs, "xs", "(N, C, H, W)", "(N, F)")
    backend, xs = backend_of(**arrays), list(arrays.values())
    for name, x in arrays.items():
        expected = len(xs[0]), *x.shape[1:2], *xs[0].shape[2:]
        same_shape(x, name, expected, "that of xs[0] but for the channels")
    x_shapes, size = tuple(x.shape[1:] for x in xs), xs[0].shape[2:]
    return run_forward(backend, backend.Concat(x_shapes, xs[0].dtype), xs, (sum(x.shape[1] for x in xs), *size))


@documented()
def concat_backward(dy, channels):
    """Hand each input its part of the gradient: dx = dy[:, first:first + C], where `first` is how many channels are before.

    Source: PyTorch's torch.split(dy, channels, 1).

    Parameters
    ----------
    dy : float array (N, C, H, W) or (N, F)
        The upstream gradient dLoss/dy.
    channels : sequence of ints
        C or F of each input.

    Returns
    -------
    dxs : tuple of float arrays
        Images are views of channels-last memory; on a GPU in C order.

    >>> import numpy as np
    >>> dy, first = np.random.default_rng(0).standard_normal((2, 6, 4, 3)), 0
    >>> dxs = [np.zeros((2, C, 4, 3)) for C in (3, 1, 2)]
    >>> for dx in dxs:
    ...     for n, c, h, w in np.ndindex(dx.shape):
    ...         dx[n, c, h, w] = dy[n, first + c, h, w]
    ...     first += dx.shape[1]
    >>> all(map(np.array_equal, concat_backward(dy, (3, 1, 2)), dxs))
    True
    """
    backend, dy = backend_of(dy=dy), floats(dy, "dy", "(N, C, H, W)", "(N, F)")
    channels = ints(channels, "channels", "a sequence of ints >= 0", 0)
    if not channels or sum(channels) != dy.shape[1]:
        raise ValueError(f"channels: expected numbers whose sum is {dy.shape[1]}, as dy {tuple(dy.shape)} has, got "
                         f"{shown(channels)}")
    shapes = tuple((C, *dy.shape[2:]) for C in channels)
    return run_backward_of(backend, backend.Concat(shapes, dy.dtype), dy, shapes)
