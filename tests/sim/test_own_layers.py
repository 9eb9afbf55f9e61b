"""A function of each element from outside the package, on a simulated GPU."""
import math

import numpy as np
import own_layers
import pytest

import nbcnn
from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS

import checks
from cases import Case

pytestmark = pytest.mark.sim


@kernel(THREADS)
def softplus_forward(y, x, beta, count):
    """y = log(1 + e^(beta x)) / beta, a thread per element."""
    k = cuda.grid(1)
    if k < count:
        y[k] = max(x[k], 0) + math.log1p(math.exp(-abs(beta * x[k]))) / beta


@kernel(THREADS)
def softplus_backward(dx, dy, x, beta, count):
    """dx = dy / (1 + e^(-beta x))"""
    k = cuda.grid(1)
    if k < count:
        dx[k] = dy[k] / (1 + math.exp(-beta * x[k]))


class Softplus(own_layers.Softplus):
    function = own_layers.Softplus.function | {"cuda": (softplus_forward, softplus_backward)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_cpu(dtype):
    checks.check_equals_cpu(Case(Softplus, {"beta": 2.0}, (3, 4, 4)), dtype)


def test_without_kernels_for_the_device():
    model = nbcnn.Sequential([("act", own_layers.Softplus())], input_shape=(3,)).to("cuda")
    with pytest.raises(ValueError, match=r"^function: expected kernels for 'cuda', got those for 'cpu'"):
        model(np.ones((2, 3), np.float32))
