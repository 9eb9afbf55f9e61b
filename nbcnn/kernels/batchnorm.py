"""Batch normalization: the channels of a batch with mean 0 and variance 1, then scaled and shifted; and the gradients."""
from nbcnn.kernels.arguments import flag, floats, rate, same_dtype, same_shape
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import run_forward

__all__ = ["batchnorm_forward", "batchnorm_evaluate", "batchnorm_backward"]


@documented()
def batchnorm_forward(x, weight=None, bias=None, *, eps=1e-5):
    """Normalize each channel by its mean and variance in the batch: y = (x - mean) / sqrt(var + eps) * weight + bias.

    mean[c] = the mean of x over n, i, j; var[c] = the mean of (x - mean)^2. They are made of x less its first pixel, which keeps
    the digits of a channel whose mean is many times its deviation. What a training step does; `batchnorm_evaluate` takes
    statistics as they are. Source: PyTorch's torch.nn.functional.batch_norm with training=True.

    Parameters
    ----------
    x : float array (N, C, H, W) or (N, C)
        With more than one value of each channel, or none: N = 0.
    weight : float array (C,), optional
        1 when not given.
    bias : float array (C,), optional
        0 when not given.
    eps : float
        Not negative.

    Returns
    -------
    y : float array (shape of x)
        On the CPU a view of channels-last memory; on a GPU in C order.
    mean, var : float array (C,)
        Of the batch; 0 where N = 0.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, weight, bias = rng.standard_normal((2, 3, 5, 4)), np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 2.0])
    >>> mean, var, y = np.zeros(3), np.zeros(3), np.zeros_like(x)
    >>> for n, c, i, j in np.ndindex(x.shape):
    ...     mean[c] += x[n, c, i, j] / (2 * 5 * 4)
    >>> for n, c, i, j in np.ndindex(x.shape):
    ...     var[c] += (x[n, c, i, j] - mean[c]) ** 2 / (2 * 5 * 4)
    >>> for n, c, i, j in np.ndindex(x.shape):
    ...     y[n, c, i, j] = (x[n, c, i, j] - mean[c]) / np.sqrt(var[c] + 1e-5) * weight[c] + bias[c]
    >>> all(map(np.allclose, batchnorm_forward(x, weight, bias), (y, mean, var)))
    True
    """
    backend = backend_of(x=x, weight=weight, bias=bias)
    x, params, operation = _check(backend, x, eps, weight=weight, bias=bias)
    operation.reserve(len(x))
    return run_forward(backend, operation, x, x.shape[1:], params), operation.mean, operation.var


@documented(batchnorm_forward)
def batchnorm_evaluate(x, mean, var, weight=None, bias=None, *, eps=1e-5):
    """Normalize each channel by a given mean and variance: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Source: PyTorch's torch.nn.functional.batch_norm with training=False.

    Parameters
    ----------
    x : float array (N, C, H, W) or (N, C)
    mean, var : float array (C,)
        The running statistics of a network, for instance.

    Returns
    -------
    y : float array (shape of x)

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    >>> mean, var = np.array([0.5, 0.0, -1.0]), np.array([1.0, 4.0, 0.25])
    >>> y = np.zeros_like(x)
    >>> for n, c, i, j in np.ndindex(x.shape):
    ...     y[n, c, i, j] = (x[n, c, i, j] - mean[c]) / np.sqrt(var[c] + 1e-5)
    >>> np.allclose(batchnorm_evaluate(x, mean, var), y)
    True
    """
    backend = backend_of(x=x, mean=mean, var=var, weight=weight, bias=bias)
    x, (mean, var, *params), operation = _check(backend, x, eps, mean=mean, var=var, weight=weight, bias=bias)
    y = backend.Buffer(len(x), x.shape[1:], x.dtype)
    backend.run(operation.normalize(len(x), y, backend.Buffer.holding(x), params, mean, var))
    return y.view(len(x))


@documented(batchnorm_forward)
def batchnorm_backward(dy, x, mean, var, weight=None, *, eps=1e-5, need_dx=True):
    """Gradients of `batchnorm_forward`, whose mean and variance depend on x, too.

    xhat = (x - mean) / sqrt(var + eps), dbias = sum of dy, dweight = sum of dy xhat over n, i, j; with their means
    dx = weight / sqrt(var + eps) * (dy - mean of dy - xhat * mean of dy xhat).
    Source: PyTorch's aten/src/ATen/native/Normalization.cpp.

    Parameters
    ----------
    dy : float array (shape of x)
        The upstream gradient dLoss/dy.
    x : float array (N, C, H, W) or (N, C)
    mean, var : float array (C,)
        What forward returned.
    need_dx : bool
        False leaves dx out.

    Returns
    -------
    dx : float array (shape of x) or None
    dweight, dbias : float array (C,)

    >>> import numpy as np
    >>> dy, x = np.random.default_rng(0).standard_normal((2, 2, 3, 5, 4))
    >>> weight, eps = np.array([1.0, -2.0, 0.5]), 1e-5
    >>> y, mean, var = batchnorm_forward(x, weight)
    >>> dx, dweight, dbias, xhat = np.zeros_like(x), np.zeros(3), np.zeros(3), np.zeros_like(x)
    >>> for n, c, i, j in np.ndindex(x.shape):
    ...     xhat[n, c, i, j] = (x[n, c, i, j] - mean[c]) / np.sqrt(var[c] + eps)
    ...     dbias[c] += dy[n, c, i, j]
    ...     dweight[c] += dy[n, c, i, j] * xhat[n, c, i, j]
    >>> for n, c, i, j in np.ndindex(x.shape):
    ...     rest = dy[n, c, i, j] - dbias[c] / (2 * 5 * 4) - xhat[n, c, i, j] * dweight[c] / (2 * 5 * 4)
    ...     dx[n, c, i, j] = weight[c] / np.sqrt(var[c] + eps) * rest
    >>> all(map(np.allclose, batchnorm_backward(dy, x, mean, var, weight), (dx, dweight, dbias)))
    True
    """
    backend, need_dx = backend_of(dy=dy, x=x, mean=mean, var=var, weight=weight), flag(need_dx, "need_dx")
    x, (mean, var, weight), operation = _check(backend, x, eps, mean=mean, var=var, weight=weight)
    dy, N = floats(dy, "dy"), len(x)
    same_dtype(dy, "dy", x, "x")
    same_shape(dy, "dy", x.shape, "that of x")
    operation.reserve(N)
    backend.write(operation.mean, mean)
    backend.write(operation.var, var)
    dx = backend.Buffer(N, x.shape[1:], x.dtype) if need_dx else None
    gradients = backend.Gradients(operation, N, mean.shape * 2, x.dtype)
    dy, x = backend.Buffer.holding(dy), backend.Buffer.holding(x)
    calls = operation.backward(N, dx, gradients.targets, dy, x, None, (weight, None), (False, False))
    backend.run(calls + gradients.calls)
    return dx.view(N) if need_dx else None, *gradients.arrays


def _check(backend, x, eps, **channels):
    """x as an array, those of `channels` as flat arrays or None, and the operation for them."""
    x = floats(x, "x", "(N, C, H, W)", "(N, C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"x: expected at least one value in a sample, got shape {x.shape}")
    arrays = []
    for name, values in channels.items():
        if values is not None:
            values = floats(values, name, "(C,)")
            same_dtype(values, name, x, "x")
            same_shape(values, name, x.shape[1:2], "a number for each channel of x")
            values = backend.flat_weight(values)
        arrays.append(values)
    return x, arrays, backend.BatchNorm(x.shape[1:], rate(eps, "eps", x.dtype), None, None, None, x.dtype)
