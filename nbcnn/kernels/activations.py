"""Activations, functions of each element, and their gradients."""
from nbcnn.kernels.arguments import finite, floats, one_of, same_dtype, same_shape
from nbcnn.kernels.backend import backend_of, on_device
from nbcnn.kernels.operation import reads

__all__ = ["relu_forward", "relu_backward", "leaky_relu_forward", "leaky_relu_backward", "tanh_forward", "tanh_backward",
           "sigmoid_forward", "sigmoid_backward", "gelu_forward", "gelu_backward"]

GELUS = {"none": "gelu", "tanh": "gelu_tanh"}       # the function for each value of `approximate`


def relu_forward(x):
    """Set negative values to zero: y = max(x, 0).

    Parameters
    ----------
    x : float array (any shape)
        A NumPy or a device array; the result lives where it does.

    Returns
    -------
    y : float array (shape of x)

    Raises
    ------
    TypeError
        x is not float32 or float64.

    Notes
    -----
    NaN stays NaN.

    Source: PyTorch's torch.nn.functional.relu.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    >>> y = np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     y[k] = x[k] if x[k] > 0 else 0
    >>> bool((relu_forward(x) == y).all())
    True
    """
    return activation_forward("relu", x)


def relu_backward(dy, y):
    """Let the gradient through where the output is positive: dx = dy where y > 0, else 0.

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy. It and y are both NumPy or both device arrays; the result lives where they do.
    y : float array (shape of dy)
        What forward returned.

    Returns
    -------
    dx : float array (shape of dy)

    Raises
    ------
    TypeError
        An array is not float32 or float64, or dy's dtype is not that of y.
    ValueError
        Shapes that differ.

    Notes
    -----
    Zero where y is 0, so relu'(0) = 0; dy where y is NaN.

    Source: PyTorch's aten threshold_backward.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    >>> y, dx = relu_forward(x), np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     dx[k] = dy[k] if y[k] > 0 else 0
    >>> bool((relu_backward(dy, y) == dx).all())
    True
    """
    return activation_backward("relu", dy, y)


def leaky_relu_forward(x, negative_slope=0.01):
    """Make negative values small: y = x where x > 0, else negative_slope*x.

    Parameters
    ----------
    x : float array (any shape)
        A NumPy or a device array; the result lives where it does.
    negative_slope : float
        Any finite number, rounded to the dtype of x.

    Returns
    -------
    y : float array (shape of x)

    Raises
    ------
    TypeError
        x is not float32 or float64, or negative_slope is no number.
    ValueError
        negative_slope is not finite.

    Notes
    -----
    NaN stays NaN; 0 keeps its sign, but for a negative slope.

    Source: PyTorch's torch.nn.functional.leaky_relu.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    >>> y = np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     y[k] = x[k] if x[k] > 0 else 0.25 * x[k]
    >>> bool((leaky_relu_forward(x, 0.25) == y).all())
    True
    """
    return activation_forward("leaky_relu", x, finite(negative_slope, "negative_slope"))


def leaky_relu_backward(dy, x, negative_slope=0.01):
    """Make the gradient small where the input is not positive: dx = dy where x > 0, else negative_slope*dy.

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy. It and x are both NumPy or both device arrays; the result lives where they do.
    x : float array (shape of dy)
        What forward was given.
    negative_slope : float
        As in forward.

    Returns
    -------
    dx : float array (shape of dy)

    Raises
    ------
    TypeError
        An array is not float32 or float64, dy's dtype is not that of x, or negative_slope is no number.
    ValueError
        Shapes that differ, or a negative_slope that is not finite.

    Notes
    -----
    negative_slope*dy where x is 0 or NaN.

    Source: PyTorch's aten leaky_relu_backward.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    >>> dx = np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     dx[k] = dy[k] if x[k] > 0 else 0.25 * dy[k]
    >>> bool((leaky_relu_backward(dy, x, 0.25) == dx).all())
    True
    """
    return activation_backward("leaky_relu", dy, x, finite(negative_slope, "negative_slope"))


def tanh_forward(x):
    """The hyperbolic tangent: y = (e^x - e^-x) / (e^x + e^-x).

    Parameters
    ----------
    x : float array (any shape)
        A NumPy or a device array; the result lives where it does.

    Returns
    -------
    y : float array (shape of x)

    Raises
    ------
    TypeError
        x is not float32 or float64.

    Notes
    -----
    Within 2 units in the last place. 0 keeps its sign, NaN stays NaN.

    Source: PyTorch's torch.tanh.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> y = np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     y[k] = (math.exp(x[k]) - math.exp(-x[k])) / (math.exp(x[k]) + math.exp(-x[k]))
    >>> bool(np.allclose(tanh_forward(x), y, rtol=1e-12, atol=0))
    True
    """
    return activation_forward("tanh", x)


def tanh_backward(dy, y):
    """The gradient of tanh, by its result: dx = dy (1 - y^2).

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy. It and y are both NumPy or both device arrays; the result lives where they do.
    y : float array (shape of dy)
        What forward returned.

    Returns
    -------
    dx : float array (shape of dy)

    Raises
    ------
    TypeError
        An array is not float32 or float64, or dy's dtype is not that of y.
    ValueError
        Shapes that differ.

    Notes
    -----
    Source: PyTorch's aten tanh_backward.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> y, dx = tanh_forward(x), np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     dx[k] = dy[k] * (1 - y[k] ** 2)
    >>> bool(np.allclose(tanh_backward(dy, y), dx, rtol=1e-12, atol=0))
    True
    """
    return activation_backward("tanh", dy, y)


def sigmoid_forward(x):
    """The logistic function: y = 1 / (1 + e^-x).

    Parameters
    ----------
    x : float array (any shape)
        A NumPy or a device array; the result lives where it does.

    Returns
    -------
    y : float array (shape of x)

    Raises
    ------
    TypeError
        x is not float32 or float64.

    Notes
    -----
    Within 3 units in the last place, also where y is next to nothing: PyTorch gives 0 for -89 in float32, here it is 2.2e-39.
    Nothing overflows; NaN stays NaN.

    Source: PyTorch's torch.sigmoid.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> y = np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     y[k] = 1 / (1 + math.exp(-x[k]))
    >>> bool(np.allclose(sigmoid_forward(x), y, rtol=1e-12, atol=0))
    True
    """
    return activation_forward("sigmoid", x)


def sigmoid_backward(dy, y):
    """The gradient of the logistic function, by its result: dx = dy y (1 - y).

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy. It and y are both NumPy or both device arrays; the result lives where they do.
    y : float array (shape of dy)
        What forward returned.

    Returns
    -------
    dx : float array (shape of dy)

    Raises
    ------
    TypeError
        An array is not float32 or float64, or dy's dtype is not that of y.
    ValueError
        Shapes that differ.

    Notes
    -----
    Source: PyTorch's aten sigmoid_backward.

    Examples
    --------
    >>> import numpy as np
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> y, dx = sigmoid_forward(x), np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     dx[k] = dy[k] * y[k] * (1 - y[k])
    >>> bool(np.allclose(sigmoid_backward(dy, y), dx, rtol=1e-12, atol=0))
    True
    """
    return activation_backward("sigmoid", dy, y)


def gelu_forward(x, approximate="none"):
    """The Gaussian error linear unit: y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2 the normal distribution's cdf.

    Parameters
    ----------
    x : float array (any shape)
        A NumPy or a device array; the result lives where it does.
    approximate : {"none", "tanh"}
        With "tanh" y = x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3).

    Returns
    -------
    y : float array (shape of x)

    Raises
    ------
    TypeError
        x is not float32 or float64.
    ValueError
        An unknown `approximate`.

    Notes
    -----
    Computed without the cancellation of 1 + erf and 1 + tanh for x < 0, so that small results keep their digits: gelu(-6) is
    -5.9e-9, and not the 0 of PyTorch in float32. inf stays inf; -inf gives NaN, which is -inf*0, as in PyTorch; NaN stays NaN.

    Source: PyTorch's torch.nn.functional.gelu.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> y, approximate = np.zeros_like(x), np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     y[k] = x[k] * (1 + math.erf(x[k] / math.sqrt(2))) / 2
    ...     approximate[k] = x[k] * (1 + math.tanh(math.sqrt(2 / math.pi) * (x[k] + 0.044715 * x[k] ** 3))) / 2
    >>> bool(np.allclose(gelu_forward(x), y, rtol=1e-12, atol=0))
    True
    >>> bool(np.allclose(gelu_forward(x, "tanh"), approximate, rtol=1e-12, atol=0))
    True
    """
    return activation_forward(GELUS[one_of(approximate, "approximate", GELUS)], x)


def gelu_backward(dy, x, approximate="none"):
    """The gradient of gelu: dx = dy (Phi(x) + x phi(x)), phi(x) = e^(-x^2 / 2) / sqrt(2 pi) the normal distribution's density.

    Parameters
    ----------
    dy : float array (any shape)
        The upstream gradient dLoss/dy. It and x are both NumPy or both device arrays; the result lives where they do.
    x : float array (shape of dy)
        What forward was given.
    approximate : {"none", "tanh"}
        As in forward. With "tanh" dx = dy (1 + tanh u + x (1 - tanh^2 u) u') / 2, u' = sqrt(2 / pi) (1 + 3*0.044715 x^2).

    Returns
    -------
    dx : float array (shape of dy)

    Raises
    ------
    TypeError
        An array is not float32 or float64, or dy's dtype is not that of x.
    ValueError
        Shapes that differ, or an unknown `approximate`.

    Notes
    -----
    NaN where x is inf or -inf, as in PyTorch; finite for every finite x, which PyTorch's "tanh" is not once x^2 overflows.

    Source: PyTorch's aten gelu_backward.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> dx, approximate = np.zeros_like(x), np.zeros_like(x)
    >>> for k in np.ndindex(x.shape):
    ...     density = math.exp(-x[k] ** 2 / 2) / math.sqrt(2 * math.pi)
    ...     dx[k] = dy[k] * ((1 + math.erf(x[k] / math.sqrt(2))) / 2 + x[k] * density)
    ...     t = math.tanh(math.sqrt(2 / math.pi) * (x[k] + 0.044715 * x[k] ** 3))
    ...     slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x[k] ** 2)
    ...     approximate[k] = dy[k] * (1 + t + x[k] * (1 - t ** 2) * slope) / 2
    >>> bool(np.allclose(gelu_backward(dy, x), dx, rtol=1e-12, atol=0))
    True
    >>> bool(np.allclose(gelu_backward(dy, x, "tanh"), approximate, rtol=1e-12, atol=0))
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
    y = backend.Buffer(len(rows), rows.shape[1:], x.dtype)
    operation = backend.Activation(kernels_of(function, backend), y.shape, options, x.dtype)
    backend.run(operation.forward(len(rows), y, backend.Buffer.holding(rows), ()))
    return y.view(len(rows)).reshape(x.shape)


def activation_backward(function, dy, read, *options):
    """dx of a function of each element, whose backward kernel reads x or y, the argument `read`; see `activation_forward`."""
    name = reads(kernels_of(function, backend_of(dy=dy))[1])
    backend, dy, read = backend_of(**{"dy": dy, name: read}), floats(dy, "dy"), floats(read, name)
    same_dtype(dy, "dy", read, name)
    same_shape(dy, "dy", read.shape, f"that of {name}")
    rows, read = _rows(backend, dy), backend.Buffer.holding(_rows(backend, read))
    dx = backend.Buffer(len(rows), rows.shape[1:], dy.dtype)
    operation = backend.Activation(kernels_of(function, backend), dx.shape, options, dy.dtype)
    backend.run(operation.backward(len(rows), dx, (), backend.Buffer.holding(rows), read, read, (), ()))
    return dx.view(len(rows)).reshape(dy.shape)


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
