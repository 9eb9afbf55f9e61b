"""Adam on the GPU: one pass over parameters, gradient and both moving averages, a thread per element."""
import math

from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, each, run
from nbcnn.kernels.operation import Call


@kernel(THREADS)
def adam(param, exp_avg, exp_avg_sq, grad, rates, options):
    """One step, in place, on flat vectors; rates = (keep, step_size, scale), options = (beta1, 1 - beta1, beta2, 1 - beta2, eps,
    weight_decay, has_decay, maximize). Where exp_avg is 0 nothing moves, even if eps is 0 too."""
    k, zero = cuda.grid(1), param.dtype.type(0)
    if k < len(param):
        keep, step_size, scale = rates
        beta1, rest1, beta2, rest2, eps, weight_decay, has_decay, maximize = options
        g = -grad[k] if maximize else grad[k]
        if has_decay:
            g += weight_decay * param[k]
        m = beta1 * exp_avg[k] + rest1 * g
        v = beta2 * exp_avg_sq[k] + rest2 * g * g
        exp_avg[k] = m
        exp_avg_sq[k] = v
        p = keep * param[k]
        if m != zero:
            p -= step_size * m / (scale * math.sqrt(v) + eps)
        param[k] = p


def adam_update(param, exp_avg, exp_avg_sq, grad, rates, options):
    """Run `adam` once."""
    rates = tuple(map(param.dtype.type, rates))
    run([Call(each(adam, param.size), (param, exp_avg, exp_avg_sq, grad, rates, options))])
