"""Initial values of parameters: functions from a random generator and a shape to an array, drawn in float64."""
import math

import numpy as np

from nbcnn.kernels.arguments import finite, integer, real

__all__ = ["uniform", "normal", "constant", "dirac"]


def uniform(fan_in):
    """uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), as PyTorch draws weights and biases of convolutions and linear layers.

    Parameters
    ----------
    fan_in : int
        How many numbers of the input one output is a sum of.

    Examples
    --------
    >>> values = uniform(4)(np.random.default_rng(0), (2, 3))
    >>> values.shape, bool((abs(values) <= 0.5).all())
    ((2, 3), True)
    """
    bound = integer(fan_in, "fan_in", 1) ** -0.5
    return lambda rng, shape: rng.uniform(-bound, bound, shape)


def normal(std):
    """Normal numbers of mean 0. For a convolution before a ReLU, He et al. (2015) take std = sqrt(2/fan_in).

    Examples
    --------
    >>> bool(1.9 < normal(2)(np.random.default_rng(0), (10_000,)).std() < 2.1)
    True
    """
    std = real(std, "std", "a number >= 0", 0, math.inf)
    return lambda rng, shape: std * rng.standard_normal(shape)


def dirac(fan_in):
    """For weights (O, C, KH, KW): output o begins as a copy of input o, as far as there are both; the others are `uniform`.

    w[o, o, KH // 2, KW // 2] = 1, all else of w[o] is 0. Source: torch.nn.init.dirac_ of the first C outputs.

    Examples
    --------
    >>> dirac(9)(np.random.default_rng(0), (1, 1, 3, 3)).tolist()
    [[[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]]
    """
    draw = uniform(fan_in)

    def values(rng, shape):
        (O, C, KH, KW), w = shape, draw(rng, shape)
        same = np.arange(min(O, C))
        w[same] = 0
        w[same, same, KH // 2, KW // 2] = 1
        return w
    return values


def constant(value):
    """The same value everywhere.

    Examples
    --------
    >>> constant(1)(None, (2,)).tolist()
    [1.0, 1.0]
    """
    value = finite(value, "value")
    return lambda rng, shape: np.full(shape, value)
