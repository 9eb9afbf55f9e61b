"""Adam on the CPU: one pass over parameters, gradient and both moving averages."""
import math

import numpy as np

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import launch
from nbcnn.kernels.cpu.parallel import prange


@njit(parallel=True, error_model="numpy")
def adam(param, exp_avg, exp_avg_sq, grad, keep, step_size, scale, beta1, rest1, beta2, rest2, eps, weight_decay, has_decay,
         maximize):
    """One step, in place, on flat vectors; the rates of `update` have the corrections for averages that began with zeros.

    Where exp_avg is 0 nothing moves, even if eps is 0 too: the gaps between parameters stay 0. What decays ends at 0, not in
    denormal numbers, with which every kernel is many times slower.
    """
    zero, tiny = param.dtype.type(0), np.finfo(param.dtype).tiny
    for k in prange(len(param)):
        g = -grad[k] if maximize else grad[k]
        if has_decay:
            g += weight_decay * param[k]
        m = beta1 * exp_avg[k] + rest1 * g
        v = beta2 * exp_avg_sq[k] + rest2 * g * g
        m = zero if abs(m) < tiny else m
        v = zero if v < tiny else v
        exp_avg[k] = m
        exp_avg_sq[k] = v
        change = step_size * m / (scale * math.sqrt(v) + eps)
        p = keep * param[k] - (zero if m == zero else change)
        param[k] = zero if abs(p) < tiny else p


def adam_update(param, exp_avg, exp_avg_sq, grad, rates, options):
    """Run `adam` with rates (keep, step_size, scale) and options (beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, has_decay,
    maximize)."""
    launch(adam, param, exp_avg, exp_avg_sq, grad, *map(param.dtype.type, rates), *options)
