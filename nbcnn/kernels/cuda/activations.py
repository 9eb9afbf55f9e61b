"""Activations on the GPU: one function of each element, a thread per element."""
import math

from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.operation import Elementwise

# ---- kernels, each for the first `count` elements

@kernel(THREADS)
def relu_forward(y, x, count):
    """y = max(x, 0); NaN stays NaN."""
    k, zero = cuda.grid(1), x.dtype.type(0)
    if k < count:
        y[k] = zero if x[k] <= zero else x[k]


@kernel(THREADS)
def relu_backward(dx, dy, y, count):
    """dx = dy where y > 0 or y is NaN, else 0."""
    k, zero = cuda.grid(1), y.dtype.type(0)
    if k < count:
        dx[k] = zero if y[k] <= zero else dy[k]


@kernel(THREADS)
def leaky_relu_forward(y, x, slope, count):
    """y = x where x > 0, else slope*x."""
    k, zero = cuda.grid(1), x.dtype.type(0)
    if k < count:
        y[k] = x[k] if x[k] > zero else slope * x[k]


@kernel(THREADS)
def leaky_relu_backward(dx, dy, x, slope, count):
    """dx = dy where x > 0, else slope*dy."""
    k, zero = cuda.grid(1), x.dtype.type(0)
    if k < count:
        dx[k] = dy[k] if x[k] > zero else slope * dy[k]


@kernel(THREADS)
def scale_forward(y, x, factor, count):
    """y = factor*x"""
    k = cuda.grid(1)
    if k < count:
        y[k] = factor * x[k]


@kernel(THREADS)
def scale_backward(dx, dy, x, factor, count):
    """dx = factor*dy, whatever x is."""
    k = cuda.grid(1)
    if k < count:
        dx[k] = factor * dy[k]


@kernel(THREADS)
def tanh_forward(y, x, count):
    """y = tanh x"""
    k = cuda.grid(1)
    if k < count:
        y[k] = math.tanh(x[k])


@kernel(THREADS)
def tanh_backward(dx, dy, y, count):
    """dx = dy (1 - y^2)"""
    k, one = cuda.grid(1), y.dtype.type(1)
    if k < count:
        dx[k] = dy[k] * (one - y[k] * y[k])


@cuda.jit(device=True)
def sigmoid(x, zero, one):
    """1/(1 + e^-x), of a power that cannot overflow."""
    power = math.exp(-abs(x))
    return (power if x < zero else one) / (one + power)


@kernel(THREADS)
def sigmoid_forward(y, x, count):
    """y = 1/(1 + e^-x)"""
    k, zero, one = cuda.grid(1), x.dtype.type(0), x.dtype.type(1)
    if k < count:
        y[k] = sigmoid(x[k], zero, one)


@kernel(THREADS)
def sigmoid_backward(dx, dy, y, count):
    """dx = dy y (1 - y)"""
    k, one = cuda.grid(1), y.dtype.type(1)
    if k < count:
        dx[k] = dy[k] * (y[k] * (one - y[k]))


# Phi(x) = erfc(-x/sqrt 2)/2, phi(x) = PEAK e^(-x^2/2)
ROOT, PEAK = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


@kernel(THREADS)
def gelu_forward(y, x, count):
    """y = x Phi(x)"""
    k, half, root = cuda.grid(1), x.dtype.type(0.5), x.dtype.type(ROOT)
    if k < count:
        y[k] = x[k] * (half * math.erfc(-root * x[k]))


@kernel(THREADS)
def gelu_backward(dx, dy, x, count):
    """dx = dy (Phi(x) + x phi(x))"""
    k, half, root, peak = cuda.grid(1), x.dtype.type(0.5), x.dtype.type(ROOT), x.dtype.type(PEAK)
    if k < count:
        v = x[k]
        dx[k] = dy[k] * (half * math.erfc(-root * v) + v * (peak * math.exp(-half * v * v)))


# (1 + tanh u)/2 = sigmoid(2u), which does not cancel; 2u = x (LINEAR + CUBIC x^2)
LINEAR, CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


@kernel(THREADS)
def gelu_tanh_forward(y, x, count):
    """y = x (1 + tanh u)/2, u = sqrt(2/pi) (x + 0.044715 x^3)"""
    k, zero, one, linear, cubic = cuda.grid(1), x.dtype.type(0), x.dtype.type(1), x.dtype.type(LINEAR), x.dtype.type(CUBIC)
    if k < count:
        v = x[k]
        y[k] = v * sigmoid(v * (linear + cubic * v * v), zero, one)


@kernel(THREADS)
def gelu_tanh_backward(dx, dy, x, count):
    """dx = dy (s + x s (1 - s) 2u'), s = (1 + tanh u)/2"""
    k, zero, one, linear, cubic = cuda.grid(1), x.dtype.type(0), x.dtype.type(1), x.dtype.type(LINEAR), x.dtype.type(CUBIC)
    three = x.dtype.type(3)
    if k < count:
        v = x[k]
        s = sigmoid(v * (linear + cubic * v * v), zero, one)
        slope = v * s * (one - s)       # 0 long before v^2 is inf
        dx[k] = dy[k] * (s + slope * linear + slope * v * v * (three * cubic))


class Activation(Elementwise):
    """A function of each element of images (C, H, W) or vectors (F,)."""

    def call(self, kernel, n, *buffers):
        return call_each(kernel, n * self.size, *(buffer.array for buffer in buffers), *self.options)
