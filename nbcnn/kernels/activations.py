"""Activations, functions of each element, and their gradients."""
from nbcnn.kernels.arguments import finite, floats, one_of, same_dtype, same_shape
from nbcnn.kernels.backend import backend_of, on_device
from nbcnn.kernels.docs import documented
from nbcnn.kernels.operation import reads, run_backward, run_forward

__all__ = ["relu_forward", "relu_backward", "leaky_relu_forward", "leaky_relu_backward", "scale_forward", "scale_backward",
           "tanh_forward", "tanh_backward", "sigmoid_forward", "sigmoid_backward", "gelu_forward", "gelu_backward"]

GELUS = {"none": "gelu", "tanh": "gelu_tanh"}       # the function for each value of `approximate`


@documented()
def relu_forward(x):
    """Set negative values to zero: y = max(x, 0).

    NaN stays NaN. Source: PyTorch's torch.nn.functional.relu.

    Parameters
    ----------
    x : float array (any shape)

    Returns
    -------
    y : float array (shape of x)

    >>> x = [-2.5, -0.5, 0.0, 0.25, 3.0]
    >>> relu_forward(x).tolist() == [x_k if x_k > 0 else 0 for x_k in x]
    True
    """
    return activation_forward("relu", x)


@documented()
def relu_backward(dy, y):
    """Let the gradient through where the output is positive: dx = dy where y > 0, else 0.

    Zero where y is 0, so relu'(0) = 0; dy where y is NaN. Source: PyTorch's aten threshold_backward.

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy.
    y : float array (shape of dy)
        What forward returned.

    Returns
    -------
    dx : float array (shape of dy)

    >>> x, dy = [-2.5, -0.5, 0.0, 0.25, 3.0], [1.0, -2.0, 0.5, 3.0, -1.0]
    >>> y = relu_forward(x)
    >>> relu_backward(dy, y).tolist() == [dy_k if y_k > 0 else 0 for dy_k, y_k in zip(dy, y)]
    True
    """
    return activation_backward("relu", dy, y)


@documented(relu_forward)
def leaky_relu_forward(x, negative_slope=0.01):
    """Make negative values small: y = x where x > 0, else negative_slope*x.

    NaN stays NaN; 0 keeps its sign, but for a negative slope. Source: PyTorch's torch.nn.functional.leaky_relu.

    Parameters
    ----------
    negative_slope : float
        Any finite number, rounded to the dtype of x.

    >>> x = [-2.5, -0.5, 0.0, 0.25, 3.0]
    >>> leaky_relu_forward(x, 0.25).tolist() == [x_k if x_k > 0 else 0.25 * x_k for x_k in x]
    True
    """
    return activation_forward("leaky_relu", x, finite(negative_slope, "negative_slope"))


@documented(relu_backward, leaky_relu_forward)
def leaky_relu_backward(dy, x, negative_slope=0.01):
    """Make the gradient small where the input is not positive: dx = dy where x > 0, else negative_slope*dy.

    negative_slope*dy where x is 0 or NaN. Source: PyTorch's aten leaky_relu_backward.

    Parameters
    ----------
    x : float array (shape of dy)
        What forward was given.

    >>> x, dy = [-2.5, -0.5, 0.0, 0.25, 3.0], [1.0, -2.0, 0.5, 3.0, -1.0]
    >>> dx = [dy_k if x_k > 0 else 0.25 * dy_k for dy_k, x_k in zip(dy, x)]
    >>> leaky_relu_backward(dy, x, 0.25).tolist() == dx
    True
    """
    return activation_backward("leaky_relu", dy, x, finite(negative_slope, "negative_slope"))


@documented(relu_forward)
def scale_forward(x, factor):
    """Multiply by a number that is no parameter: y = factor*x.

    Source: a product in PyTorch, factor * x.

    Parameters
    ----------
    factor : float
        Any finite number, rounded to the dtype of x.

    >>> x = [-2.5, -0.5, 0.0, 0.25, 3.0]
    >>> scale_forward(x, 0.25).tolist() == [0.25 * x_k for x_k in x]
    True
    """
    return activation_forward("scale", x, finite(factor, "factor"))


@documented(leaky_relu_backward, scale_forward)
def scale_backward(dy, x, factor):
    """Multiply the gradient by the same number: dx = factor*dy.

    Source: PyTorch's torch.autograd.

    Parameters
    ----------
    x : float array (shape of dy)
        What forward was given; its values do not matter.

    >>> x, dy = [-2.5, -0.5, 0.0, 0.25, 3.0], [1.0, -2.0, 0.5, 3.0, -1.0]
    >>> scale_backward(dy, x, 0.25).tolist() == [0.25 * dy_k for dy_k in dy]
    True
    """
    return activation_backward("scale", dy, x, finite(factor, "factor"))


@documented(relu_forward)
def tanh_forward(x):
    """The hyperbolic tangent: y = (e^x - e^-x) / (e^x + e^-x).

    Within 2 units in the last place. 0 keeps its sign, NaN stays NaN. Source: PyTorch's torch.tanh.

    >>> import numpy as np
    >>> x = np.array([-2.5, -0.5, 0.0, 0.25, 3.0])
    >>> np.allclose(tanh_forward(x), (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)), rtol=1e-12, atol=0)
    True
    """
    return activation_forward("tanh", x)


@documented(relu_backward)
def tanh_backward(dy, y):
    """The gradient of tanh, by its result: dx = dy (1 - y^2).

    Source: PyTorch's aten tanh_backward.

    >>> import numpy as np
    >>> x, dy = np.array([[-2.5, -0.5, 0.0, 0.25, 3.0], [1.0, -2.0, 0.5, 3.0, -1.0]])
    >>> y = tanh_forward(x)
    >>> np.allclose(tanh_backward(dy, y), dy * (1 - y ** 2), rtol=1e-12, atol=0)
    True
    """
    return activation_backward("tanh", dy, y)


@documented(relu_forward)
def sigmoid_forward(x):
    """The logistic function: y = 1 / (1 + e^-x).

    Within 3 units in the last place, also where y is next to nothing: PyTorch gives 0 for -89 in float32, here it is 2.2e-39.
    Nothing overflows; NaN stays NaN. Source: PyTorch's torch.sigmoid.

    >>> import numpy as np
    >>> x = np.array([-2.5, -0.5, 0.0, 0.25, 3.0])
    >>> np.allclose(sigmoid_forward(x), 1 / (1 + np.exp(-x)), rtol=1e-12, atol=0)
    True
    """
    return activation_forward("sigmoid", x)


@documented(relu_backward)
def sigmoid_backward(dy, y):
    """The gradient of the logistic function, by its result: dx = dy y (1 - y).

    Source: PyTorch's aten sigmoid_backward.

    >>> import numpy as np
    >>> x, dy = np.array([[-2.5, -0.5, 0.0, 0.25, 3.0], [1.0, -2.0, 0.5, 3.0, -1.0]])
    >>> y = sigmoid_forward(x)
    >>> np.allclose(sigmoid_backward(dy, y), dy * y * (1 - y), rtol=1e-12, atol=0)
    True
    """
    return activation_backward("sigmoid", dy, y)


@documented(relu_forward)
def gelu_forward(x, approximate="none"):
    """The Gaussian error linear unit: y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2 the normal distribution's cdf.

    Computed without the cancellation of 1 + erf and 1 + tanh for x < 0, so that small results keep their digits: gelu(-6) is
    -5.9e-9, and not the 0 of PyTorch in float32. inf stays inf; -inf gives NaN, which is -inf*0, as in PyTorch; NaN stays NaN.
    Source: PyTorch's torch.nn.functional.gelu.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        With "tanh" y = x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3).

    >>> import math, numpy as np
    >>> x = np.array([-2.5, -0.5, 0.0, 0.25, 3.0])
    >>> np.allclose(gelu_forward(x), [x_k * (1 + math.erf(x_k / math.sqrt(2))) / 2 for x_k in x], rtol=1e-12, atol=0)
    True
    >>> u = np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)
    >>> np.allclose(gelu_forward(x, "tanh"), x * (1 + np.tanh(u)) / 2, rtol=1e-12, atol=0)
    True
    """
    return activation_forward(GELUS[one_of(approximate, "approximate", GELUS)], x)


@documented(relu_backward, leaky_relu_backward)
def gelu_backward(dy, x, approximate="none"):
    """The gradient of gelu: dx = dy (Phi(x) + x phi(x)), phi(x) = e^(-x^2 / 2) / sqrt(2 pi) the normal distribution's density.

    NaN where x is inf or -inf, as in PyTorch; finite for every finite x, which PyTorch's "tanh" is not once x^2 overflows.
    Source: PyTorch's aten gelu_backward.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        As in forward. With "tanh" dx = dy (1 + tanh u + x (1 - tanh^2 u) u') / 2, u' = sqrt(2 / pi) (1 + 3*0.044715 x^2).

    >>> import math, numpy as np
    >>> x, dy = np.array([[-2.5, -0.5, 0.0, 0.25, 3.0], [1.0, -2.0, 0.5, 3.0, -1.0]])
    >>> cdf = np.array([(1 + math.erf(x_k / math.sqrt(2))) / 2 for x_k in x])
    >>> density = np.exp(-x ** 2 / 2) / np.sqrt(2 * np.pi)
    >>> np.allclose(gelu_backward(dy, x), dy * (cdf + x * density), rtol=1e-12, atol=0)
    True
    >>> t, slope = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x ** 2)
    >>> np.allclose(gelu_backward(dy, x, "tanh"), dy * (1 + t + x * (1 - t ** 2) * slope) / 2, rtol=1e-12, atol=0)
    True
    """
    return activation_backward(GELUS[one_of(approximate, "approximate", GELUS)], dy, x)


def activation_forward(function, x, *options):
    """y of a function of each element.

    Parameters
    ----------
    function : str or mapping
        As a layer's `function`: "tanh", for instance, or kernels by device; see `kernels_of`.
    x : float array (any shape)
    *options : numbers
        What the kernels take between arrays and `count`.
    """
    backend, x = backend_of(x=x), floats(x, "x")
    rows = _rows(backend, x)
    operation = backend.Activation(kernels_of(function, backend), rows.shape[1:], options, x.dtype)
    return run_forward(backend, operation, rows, rows.shape[1:]).reshape(x.shape)


def activation_backward(function, dy, read, *options):
    """dx of a function of each element, whose backward kernel reads x or y, the argument `read`; see `activation_forward`."""
    name = reads(kernels_of(function, backend_of(dy=dy))[1])
    backend, dy, read = backend_of(**{"dy": dy, name: read}), floats(dy, "dy"), floats(read, name)
    same_dtype(dy, "dy", read, name)
    same_shape(dy, "dy", read.shape, f"that of {name}")
    rows = _rows(backend, dy)
    operation = backend.Activation(kernels_of(function, backend), rows.shape[1:], options, dy.dtype)
    return run_backward(backend, operation, rows, rows.shape[1:], _rows(backend, read)).reshape(dy.shape)


def kernels_of(function, backend):
    """The kernels of an elementwise function on a backend, (forward, backward).

    Parameters
    ----------
    function : str or mapping
        "tanh" stands for tanh_forward and tanh_backward in the backend's activations.py. A function of your own is a mapping of
        devices to kernels, {"cpu": (softplus_forward, softplus_backward)}; "cuda" is the other device.
    """
    if isinstance(function, str):
        return tuple(getattr(backend.activations, f"{function}_{way}") for way in ("forward", "backward"))
    if backend.device not in function:
        raise ValueError(f"function: expected kernels for {backend.device!r}, got those for {', '.join(map(repr, function))}")
    return function[backend.device]


def _rows(backend, x):
    """x as vectors (N, F), one for each entry of its first axis."""
    n = len(x) if x.ndim else 1
    if on_device(x):
        x = backend.buffer.contiguous(x)
    return x.reshape(n, x.size // max(n, 1))
