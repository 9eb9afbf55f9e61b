"""Stochastic gradient descent: one update of parameters along their gradient."""
import math

from nbcnn.kernels.arguments import flag, nesterov_fits, real
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.updated import vectors

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

    >>> import numpy as np
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
    if momentum > 0 and momentum_buffer is None:
        raise ValueError(f"momentum_buffer: expected an array for a momentum of {momentum!r}, got None")
    if momentum > 0:
        param, grad, momentum_buffer = vectors(param, grad, momentum_buffer=momentum_buffer)
    else:
        param, grad = vectors(param, grad)
        momentum_buffer = param[:0]
    cast = param.dtype.type
    backend.update(param, momentum_buffer, grad, lr, (cast(momentum), cast(1 - dampening), cast(weight_decay), weight_decay > 0,
                                                      momentum > 0, nesterov, maximize), first)
