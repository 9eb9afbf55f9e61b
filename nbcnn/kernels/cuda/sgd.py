"""Stochastic gradient descent on the GPU: one pass over parameters, gradient and momentum, a thread per element."""
import numpy as np

from nbcnn.kernels.cuda.compat import SIMULATED, cuda, kernel, to_device
from nbcnn.kernels.cuda.launch import THREADS, each, run
from nbcnn.kernels.cuda.state import STOPPED, UPDATE, no_training
from nbcnn.kernels.operation import Call

HAS_MOMENTUM = 4        # where that is in the options


@cuda.jit(device=True)
def sgd_element(param, buffer, grad, lr, options, first):
    """A parameter and its momentum after one step. The buffer stays as it is without has_momentum."""
    momentum, one_minus_dampening, weight_decay, has_decay, has_momentum, nesterov, maximize = options
    g = -grad if maximize else grad
    if has_decay:
        g += weight_decay * param
    if has_momentum:
        buffer = g if first else momentum * buffer + one_minus_dampening * g
        g = g + momentum * buffer if nesterov else buffer
    return param - lr * g, buffer


@kernel(THREADS)
def sgd(param, momentum_buffer, grad, lr, options, first, state):
    """One step, in place, on flat vectors, with the learning rate lr[step]. Nothing changes once a loss was not finite.

    options = (momentum, one_minus_dampening, weight_decay, has_decay, has_momentum, nesterov, maximize). The buffer is not looked
    at without has_momentum.
    """
    k, has_momentum = cuda.grid(1), options[HAS_MOMENTUM]
    if k < len(param) and state[STOPPED] == 0:
        buffer = momentum_buffer[k] if has_momentum else grad[k]
        param[k], buffer = sgd_element(param[k], buffer, grad[k], lr[state[UPDATE]], options, first)
        if has_momentum:
            momentum_buffer[k] = buffer


def update_call(param, momentum_buffer, grad, lr, options, first, state):
    """The call of `sgd`."""
    return Call(each(sgd, param.size), (param, momentum_buffer, grad, lr, options, first, state))


def update(param, momentum_buffer, grad, lr, options, first):
    """Run `sgd` once with one learning rate."""
    run([update_call(param, momentum_buffer, grad, to_device(np.array([lr], param.dtype)), options, first, no_training())])


def overlap(a, b):
    """Whether two vectors share memory."""
    if SIMULATED:
        return np.may_share_memory(a, b)
    first, second = (x.__cuda_array_interface__["data"][0] for x in (a, b))
    return first < second + b.alloc_size and second < first + a.alloc_size
