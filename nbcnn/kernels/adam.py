"""Adam: one update of parameters along moving averages of their gradient, each divided by its size."""
import math

from nbcnn.kernels.arguments import INT64, flag, integer, real, sequence
from nbcnn.kernels.backend import backend_of
from nbcnn.kernels.docs import documented
from nbcnn.kernels.sgd import sgd_step
from nbcnn.kernels.shown import shown
from nbcnn.kernels.updated import vectors

__all__ = ["adam_step"]


@documented(sgd_step)
def adam_step(param, grad, exp_avg, exp_avg_sq, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
              decoupled_weight_decay=False, maximize=False):
    """Update parameters, and the moving averages of their gradient and of its square, in place.

    g = grad, or -grad to maximize; g = g + weight_decay * param, or, decoupled, param = param - lr * weight_decay * param;
    exp_avg = beta1 * exp_avg + (1 - beta1) * g;
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2;
    param = param - lr / (1 - beta1^step) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps).

    The rates are computed in double precision and cast to the dtype of param. Where exp_avg is 0 the last line changes nothing,
    even with eps = 0, for which PyTorch gives NaN. On the CPU a number that becomes denormal becomes 0.
    Source: PyTorch's torch.optim.Adam and, decoupled, AdamW; Kingma and Ba 2015, Loshchilov and Hutter 2019.

    Parameters
    ----------
    param : float array (P,), written
        C-contiguous, as exp_avg and exp_avg_sq. No array may share another's memory.
    exp_avg, exp_avg_sq : float arrays (P,), written
        Zeros before the first step.
    step : int
        The number of this step, counted from 1.
    lr : float
        Learning rate; not negative, as eps and weight_decay.
    betas : pair of floats
        In [0, 1).
    eps, weight_decay : float
    decoupled_weight_decay, maximize : bool

    >>> import numpy as np
    >>> param, *grads = np.random.default_rng(0).standard_normal((4, 5))
    >>> expected, m, v, exp_avg, exp_avg_sq = param.copy(), np.zeros(5), np.zeros(5), np.zeros(5), np.zeros(5)
    >>> for step, grad in enumerate(grads, 1):
    ...     adam_step(param, grad, exp_avg, exp_avg_sq, step, lr=0.1, weight_decay=0.5)
    ...     for k in range(5):
    ...         g = grad[k] + 0.5 * expected[k]
    ...         m[k] = 0.9 * m[k] + 0.1 * g
    ...         v[k] = 0.999 * v[k] + 0.001 * g ** 2
    ...         expected[k] -= 0.1 / (1 - 0.9 ** step) * m[k] / (np.sqrt(v[k] / (1 - 0.999 ** step)) + 1e-8)
    >>> np.allclose(param, expected, rtol=1e-12, atol=1e-14) and np.allclose(exp_avg_sq, v, rtol=1e-12, atol=0)
    True
    """
    lr, eps, weight_decay = (real(rate, name, "a number >= 0", 0, math.inf) for name, rate in (
        ("lr", lr), ("eps", eps), ("weight_decay", weight_decay)))
    betas, step = beta_pair(betas), integer(step, "step", 1, INT64)
    decoupled, maximize = flag(decoupled_weight_decay, "decoupled_weight_decay"), flag(maximize, "maximize")
    backend = backend_of(param=param, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    param, grad, exp_avg, exp_avg_sq = vectors(param, grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    backend.adam_update(param, exp_avg, exp_avg_sq, grad, adam_rates(step, lr, betas, weight_decay, decoupled),
                        adam_options(param.dtype, betas, eps, weight_decay, decoupled, maximize))


def beta_pair(betas):
    """Two numbers in [0, 1)."""
    expected = "two numbers in [0, 1)"
    both = sequence(betas, "betas", expected)
    if len(both) != 2:
        raise ValueError(f"betas: expected {expected}, got {shown(betas)}")
    return tuple(real(beta, "betas", expected, 0, math.nextafter(1, 0)) for beta in both)


def adam_rates(step, lr, betas, weight_decay, decoupled):
    """(keep, step_size, scale) of a step: param = keep * param - step_size * exp_avg / (scale * sqrt(exp_avg_sq) + eps)."""
    beta1, beta2 = betas
    return (1 - lr * weight_decay if decoupled else 1.0), lr / (1 - beta1 ** step), 1 / math.sqrt(1 - beta2 ** step)


def adam_options(dtype, betas, eps, weight_decay, decoupled, maximize):
    """What else the kernel takes: (beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, has_decay, maximize)."""
    cast, (beta1, beta2) = dtype.type, betas
    return (cast(beta1), cast(1 - beta1), cast(beta2), cast(1 - beta2), cast(eps), cast(weight_decay),
            weight_decay > 0 and not decoupled, maximize)
