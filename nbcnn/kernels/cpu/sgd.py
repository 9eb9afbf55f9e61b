"""Stochastic gradient descent on the CPU: one pass over parameters, gradient and momentum."""
from numba import njit, prange

from nbcnn.kernels.cpu.launch import CACHE, PARALLEL, launch


@njit(cache=CACHE, parallel=PARALLEL)
def sgd(param, momentum_buffer, grad, lr, momentum, keep, weight_decay, has_decay, has_momentum, nesterov, maximize, first):
    """One step, in place, on flat vectors; `keep` is 1 - dampening. The buffer is not looked at without has_momentum."""
    for k in prange(len(param)):
        g = -grad[k] if maximize else grad[k]
        if has_decay:
            g += weight_decay * param[k]
        if has_momentum:
            b = g if first else momentum * momentum_buffer[k] + keep * g
            momentum_buffer[k] = b
            g = g + momentum * b if nesterov else b
        param[k] -= lr * g


def update(param, momentum_buffer, grad, lr, options, first):
    """Run `sgd` with options (momentum, keep, weight_decay, has_decay, has_momentum, nesterov, maximize)."""
    launch(sgd, param, momentum_buffer, grad, param.dtype.type(lr), *options, first)
