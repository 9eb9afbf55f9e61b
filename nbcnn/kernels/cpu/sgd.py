"""Stochastic gradient descent on the CPU: one pass over parameters, gradient and momentum."""
import numpy as np

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import launch
from nbcnn.kernels.cpu.parallel import prange


@njit(parallel=True)
def sgd(param, momentum_buffer, grad, lr, momentum, one_minus_dampening, weight_decay, has_decay, has_momentum, nesterov, maximize,
        first):
    """One step, in place, on flat vectors. The buffer is not looked at without has_momentum.

    What decays ends at 0, not in denormal numbers, with which every kernel is many times slower.
    """
    zero, tiny = param.dtype.type(0), np.finfo(param.dtype).tiny
    for k in prange(len(param)):
        g = -grad[k] if maximize else grad[k]
        if has_decay:
            g += weight_decay * param[k]
        if has_momentum:
            b = g if first else momentum * momentum_buffer[k] + one_minus_dampening * g
            b = zero if abs(b) < tiny else b
            momentum_buffer[k] = b
            g = g + momentum * b if nesterov else b
        p = param[k] - lr * g
        param[k] = zero if abs(p) < tiny else p


def update(param, momentum_buffer, grad, lr, options, first):
    """Run `sgd` with options (momentum, one_minus_dampening, weight_decay, has_decay, has_momentum, nesterov, maximize)."""
    launch(sgd, param, momentum_buffer, grad, param.dtype.type(lr), *options, first)
