"""The functions of each element and their independent forms. A new one joins the tests, on all devices, by its line in CASES."""
import functools
import inspect
import math
from typing import NamedTuple

import numpy as np
import pytest

import nbcnn
from nbcnn import kernels
from nbcnn.kernels.activations import activation_backward, activation_forward, kernels_of
from nbcnn.kernels.backend import load_backend
from nbcnn.kernels.operation import reads


def relu(x, dy):
    """y and dx."""
    keep = ~(x <= 0)
    return np.where(keep, x, 0), np.where(keep, dy, 0)


def leaky_relu(x, dy, negative_slope):
    """y and dx."""
    with np.errstate(invalid="ignore"):
        return np.maximum(x, 0) + negative_slope * np.minimum(x, 0), dy * np.where(x > 0, 1, negative_slope)


def scale(x, dy, factor):
    """y and dx."""
    return factor * x, factor * dy


def tanh(x, dy):
    """y and dx, dx without y."""
    with np.errstate(over="ignore"):
        return np.tanh(x), dy / np.cosh(x) ** 2


def sigmoid(x, dy):
    """y and dx, dx without y: 1 - sigmoid(x) = sigmoid(-x)."""
    with np.errstate(invalid="ignore"):
        log_y, log_rest = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    return np.exp(log_y), dy * np.exp(log_y + log_rest)


def gelu(x, dy, approximate):
    """y and dx: x times a share of the normal distribution, or of the logistic one at 2u that stands in for it."""
    with np.errstate(invalid="ignore", over="ignore"):
        if approximate == "tanh":
            c = np.sqrt(2 / np.pi)
            share, slope = sigmoid(2 * c * (x + 0.044715 * x ** 3), 2 * c * (1 + 3 * 0.044715 * x ** 2))
        else:
            share = np.vectorize(math.erfc, otypes=[float])(-x / np.sqrt(2)) / 2
            slope = np.exp(-x ** 2 / 2) / np.sqrt(2 * np.pi)
        return x * share, dy * (share + x * slope)


class Case(NamedTuple):
    """A function: its layer, its oracle, values known by hand, the constructor's arguments, and whether nothing is rounded.

    The values are (x, y, dy/dx), as decimal numbers of 9 digits or more.
    """
    layer: type
    form: callable
    known: tuple
    options: tuple = ()
    exact: bool = False

    @property
    def name(self):
        """What its functions in `nbcnn.kernels` begin with."""
        return self.form.__name__

    def __str__(self):
        return "-".join(map(str, (self.name, *self.options)))

    @property
    def arguments(self):
        """The options by name."""
        return dict(zip(inspect.signature(self.layer).parameters, self.options, strict=True))

    def public(self, way):
        """The function in `nbcnn.kernels`; for a layer from outside, what does the same with its kernels."""
        general = {"forward": activation_forward, "backward": activation_backward}[way]
        return getattr(kernels, f"{self.name}_{way}", None) or functools.partial(general, self.layer(*self.options).function)

    @property
    def reads(self):
        """What backward reads besides dy: "x" or "y"."""
        return reads(kernels_of(self.layer(*self.options).function, load_backend("cpu"))[1])

    def forward(self, x):
        return self.public("forward")(x, *self.options)

    def backward(self, dy, x, y):
        return self.public("backward")(dy, {"x": x, "y": y}[self.reads], *self.options)

    def oracle(self, x, dy):
        return self.form(x, dy, *self.options)

    def operation(self, backend, shape, dtype):
        return self.layer(*self.options).operation(backend, shape, dtype)


CASES = [
    Case(nbcnn.ReLU, relu, ((-1.5, 0, 0), (2.5, 2.5, 1)), exact=True),
    Case(nbcnn.LeakyReLU, leaky_relu, ((-1.5, -0.375, 0.25), (2.5, 2.5, 1)), (0.25,), exact=True),
    Case(nbcnn.LeakyReLU, leaky_relu, ((-1.5, 3, -2), (2.5, 2.5, 1)), (-2,), exact=True),
    Case(nbcnn.Scale, scale, ((-1.5, -0.375, 0.25), (2.5, 0.625, 0.25)), (0.25,), exact=True),
    Case(nbcnn.Tanh, tanh, ((0, 0, 1), (0.5, 0.46211715726, 0.786447732966)),),
    Case(nbcnn.Sigmoid, sigmoid, ((0, 0.5, 0.25), (1, 0.73105857863, 0.196611933241))),
    Case(nbcnn.GELU, gelu, ((0, 0, 0.5), (1, 0.841344746069, 1.083315470588)), ("none",)),
    Case(nbcnn.GELU, gelu, ((0, 0, 0.5), (1, 0.841191990608, 1.082964083846)), ("tanh",)),
]
each = pytest.mark.parametrize("case", CASES, ids=str)
