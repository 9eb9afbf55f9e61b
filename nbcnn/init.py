"""Initial values of parameters: functions from a random generator and a shape to an array, drawn in float64."""
import numpy as np

from nbcnn.kernels.arguments import finite, integer

__all__ = ["uniform", "constant"]


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


def constant(value):
    """The same value everywhere.

    Examples
    --------
    >>> constant(1)(None, (2,)).tolist()
    [1.0, 1.0]
    """
    value = finite(value, "value")
    return lambda rng, shape: np.full(shape, value)
