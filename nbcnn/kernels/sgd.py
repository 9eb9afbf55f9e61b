"""Stochastic gradient descent: one update of parameters along their gradient."""
import math

import numpy as np

from nbcnn.kernels.arguments import FLOATS, axes, describe, flag, floats, nesterov_fits, real, same_dtype, same_shape
from nbcnn.kernels.backend import as_array, backend_of, load_backend, on_device
from nbcnn.kernels.docs import documented

__all__ = ["sgd_step"]


@documented()
def sgd_step(param, grad, momentum_buffer=None, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
             maximize=False, first=False):
    """Update parameters, and their momentum, in place.

    g = grad, or -grad to maximize; g = g + weight_decay * param;
    momentum_buffer = momentum * momentum_buffer + (1 - dampening) * g, but = g in the first step;
    g = g + momentum * momentum_buffer with Nesterov's momentum, else g = momentum_buffer;
    param = param - lr * g. Without momentum the two lines in the middle are left out.

    The rates are cast to the dtype of param. Each product and sum is rounded by itself on the CPU; PyTorch fuses some,
    and so does a GPU. On the CPU a parameter or momentum that becomes denormal, smaller than 1.2e-38 in float32, becomes 0.
    Source: PyTorch's torch.optim.SGD.

    Parameters
    ----------
    param : float array (P,), written
        C-contiguous, as momentum_buffer. No array may share another's memory.
    grad : float array (P,)
        dLoss/dparam.
    momentum_buffer : float array (P,), written, optional
        Needed with momentum; what it held does not matter in the first step.
    lr : float
        Learning rate; not negative, as momentum and weight_decay.
    momentum, dampening, weight_decay : float
    nesterov, maximize : bool
        Nesterov's needs a momentum, and no dampening.
    first : bool
        Whether this is the first step, in which momentum_buffer takes the gradient itself, dampening or not.

    >>> param, *grads = np.random.default_rng(0).integers(-8, 9, (4, 5)).astype(np.float32)     # exact, as are powers of two
    >>> expected, buffer, momentum_buffer = param.copy(), np.zeros(5, np.float32), np.empty(5, np.float32)
    >>> for step, grad in enumerate(grads):
    ...     sgd_step(param, grad, momentum_buffer, lr=0.25, momentum=0.5, weight_decay=0.125, nesterov=True, first=step == 0)
    ...     for k in range(5):
    ...         g = grad[k] + 0.125 * expected[k]
    ...         buffer[k] = 0.5 * buffer[k] + g
    ...         expected[k] -= 0.25 * (g + 0.5 * buffer[k])
    >>> np.array_equal(param, expected) and np.array_equal(momentum_buffer, buffer)
    True
    """
    lr, momentum, weight_decay = (real(rate, name, "a number >= 0", 0, math.inf) for name, rate in (
        ("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)))
    dampening = real(dampening, "dampening", "a number", -math.inf, math.inf)
    nesterov, maximize, first = (flag(value, name) for name, value in (
        ("nesterov", nesterov), ("maximize", maximize), ("first", first)))
    nesterov_fits(nesterov, momentum, dampening)
    backend = backend_of(param=param, grad=grad, momentum_buffer=momentum_buffer)
    param = _written(param, "param")
    grad = floats(grad, "grad", "(P,)")
    _check_fits(grad, "grad", param)
    if on_device(grad):
        grad = backend.buffer.contiguous(grad)
    elif not grad.flags.carray:
        grad = grad.copy()
    if momentum > 0:
        if momentum_buffer is None:
            raise ValueError(f"momentum_buffer: expected an array for a momentum of {momentum!r}, got None")
        momentum_buffer = _written(momentum_buffer, "momentum_buffer")
        _check_fits(momentum_buffer, "momentum_buffer", param)
        if _overlap(momentum_buffer, grad):
            raise ValueError("momentum_buffer: expected memory of its own, got some of grad's")
    else:
        momentum_buffer = param[:0]
    cast = param.dtype.type
    backend.update(param, momentum_buffer, grad, lr, (cast(momentum), cast(1 - dampening), cast(weight_decay), weight_decay > 0,
                                                      momentum > 0, nesterov, maximize), first)


def _written(value, name):
    """`value`, which must be a flat vector that a kernel can write."""
    array = as_array(value, name)
    if not (isinstance(value, np.ndarray) or on_device(value)) or array.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a float32 or float64 array, got {describe(value, array)}")
    axes(array, name, "(P,)")
    if on_device(array):
        if not array.is_c_contiguous():
            raise ValueError(f"{name}: expected a C-contiguous array, as it is updated in place, got strides {array.strides}")
    elif not array.flags.carray:
        raise ValueError(f"{name}: expected a writable C-contiguous array, as it is updated in place, "
                         f"got strides {array.strides} and writeable={array.flags.writeable}")
    return array


def _check_fits(array, name, param):
    """Raise unless `array` has param's dtype and shape, and other memory."""
    same_dtype(array, name, param, "param")
    same_shape(array, name, param.shape, "that of param")
    if _overlap(array, param):
        raise ValueError(f"{name}: expected memory of its own, got some of param's")


def _overlap(a, b):
    """Whether two arrays share memory."""
    return load_backend("cuda").sgd.overlap(a, b) if on_device(a) else np.may_share_memory(a, b)
