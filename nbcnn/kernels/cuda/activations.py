"""Activations on the GPU: one function of each element, a thread per element."""
import functools
import inspect
import math

from nbcnn.kernels.cuda.compat import cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.operation import Elementwise

element = cuda.jit(device=True)

# ---- functions of an element, and their gradients: dx of dy and of x or y, as the second argument is called

@element
def relu(x):
    """max(x, 0); NaN stays NaN."""
    zero = type(x)(0)
    return zero if x <= zero else x


@element
def relu_gradient(dy, y):
    """dy where y > 0 or y is NaN, else 0."""
    zero = type(y)(0)
    return zero if y <= zero else dy


@element
def leaky_relu(x, slope):
    """x where x > 0, else slope*x."""
    return x if x > type(x)(0) else slope * x


@element
def leaky_relu_gradient(dy, x, slope):
    """dy where x > 0, else slope*dy."""
    return dy if x > type(x)(0) else slope * dy


@element
def tanh(x):
    """The hyperbolic tangent."""
    return math.tanh(x)


@element
def scale(x, factor):
    """factor*x"""
    return factor * x


@element
def scale_gradient(dy, x, factor):
    """factor*dy, whatever x is."""
    return factor * dy


@element
def tanh_gradient(dy, y):
    """dy (1 - y^2)"""
    return dy * (type(y)(1) - y * y)


@element
def sigmoid(x):
    """1/(1 + e^-x), of a power that cannot overflow."""
    power, one = math.exp(-abs(x)), type(x)(1)
    return (power if x < type(x)(0) else one) / (one + power)


@element
def sigmoid_gradient(dy, y):
    """dy y (1 - y)"""
    return dy * (y * (type(y)(1) - y))


# Phi(x) = erfc(-x/sqrt 2)/2, phi(x) = PEAK e^(-x^2/2)
ROOT, PEAK = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


@element
def gelu(x):
    """x Phi(x)"""
    half, root = type(x)(0.5), type(x)(ROOT)
    return x * (half * math.erfc(-root * x))


@element
def gelu_gradient(dy, x):
    """dy (Phi(x) + x phi(x))"""
    half, root, peak = type(x)(0.5), type(x)(ROOT), type(x)(PEAK)
    return dy * (half * math.erfc(-root * x) + x * (peak * math.exp(-half * x * x)))


# (1 + tanh u)/2 = sigmoid(2u), which does not cancel; 2u = x (LINEAR + CUBIC x^2)
LINEAR, CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


@element
def gelu_tanh(x):
    """x (1 + tanh u)/2, u = sqrt(2/pi) (x + 0.044715 x^3)"""
    linear, cubic = type(x)(LINEAR), type(x)(CUBIC)
    return x * sigmoid(x * (linear + cubic * x * x))


@element
def gelu_tanh_gradient(dy, x):
    """dy (s + x s (1 - s) 2u'), s = (1 + tanh u)/2"""
    one, three, linear, cubic = type(x)(1), type(x)(3), type(x)(LINEAR), type(x)(CUBIC)
    s = sigmoid(x * (linear + cubic * x * x))
    slope = x * s * (one - s)           # 0 long before x^2 is inf
    return dy * (s + slope * linear + slope * x * x * (three * cubic))


@element
def identity(x):
    """x"""
    return x


@element
def identity_gradient(dy, x):
    """dy"""
    return dy


@functools.cache
def element_functions(function):
    """A function here by its name, and dx of dy, of x, whatever its gradient reads, and of the options: for kernels of others."""
    value, gradient = globals()[function], globals()[f"{function}_gradient"]
    if "y" not in inspect.signature(gradient).parameters:
        return value, gradient

    @element
    def gradient_of_x(dy, x, *options):
        return gradient(dy, value(x, *options), *options)

    return value, gradient_of_x


# ---- kernels, each for the first `count` elements

@kernel(THREADS)
def relu_forward(y, x, count):
    """y = max(x, 0); NaN stays NaN."""
    k = cuda.grid(1)
    if k < count:
        y[k] = relu(x[k])


@kernel(THREADS)
def relu_backward(dx, dy, y, count):
    """dx = dy where y > 0 or y is NaN, else 0."""
    k = cuda.grid(1)
    if k < count:
        dx[k] = relu_gradient(dy[k], y[k])


@kernel(THREADS)
def leaky_relu_forward(y, x, slope, count):
    """y = x where x > 0, else slope*x."""
    k = cuda.grid(1)
    if k < count:
        y[k] = leaky_relu(x[k], slope)


@kernel(THREADS)
def leaky_relu_backward(dx, dy, x, slope, count):
    """dx = dy where x > 0, else slope*dy."""
    k = cuda.grid(1)
    if k < count:
        dx[k] = leaky_relu_gradient(dy[k], x[k], slope)


@kernel(THREADS)
def scale_forward(y, x, factor, count):
    """y = factor*x"""
    k = cuda.grid(1)
    if k < count:
        y[k] = scale(x[k], factor)


@kernel(THREADS)
def scale_backward(dx, dy, x, factor, count):
    """dx = factor*dy, whatever x is."""
    k = cuda.grid(1)
    if k < count:
        dx[k] = scale_gradient(dy[k], x[k], factor)


@kernel(THREADS)
def tanh_forward(y, x, count):
    """y = tanh x"""
    k = cuda.grid(1)
    if k < count:
        y[k] = tanh(x[k])


@kernel(THREADS)
def tanh_backward(dx, dy, y, count):
    """dx = dy (1 - y^2)"""
    k = cuda.grid(1)
    if k < count:
        dx[k] = tanh_gradient(dy[k], y[k])


@kernel(THREADS)
def sigmoid_forward(y, x, count):
    """y = 1/(1 + e^-x)"""
    k = cuda.grid(1)
    if k < count:
        y[k] = sigmoid(x[k])


@kernel(THREADS)
def sigmoid_backward(dx, dy, y, count):
    """dx = dy y (1 - y)"""
    k = cuda.grid(1)
    if k < count:
        dx[k] = sigmoid_gradient(dy[k], y[k])


@kernel(THREADS)
def gelu_forward(y, x, count):
    """y = x Phi(x)"""
    k = cuda.grid(1)
    if k < count:
        y[k] = gelu(x[k])


@kernel(THREADS)
def gelu_backward(dx, dy, x, count):
    """dx = dy (Phi(x) + x phi(x))"""
    k = cuda.grid(1)
    if k < count:
        dx[k] = gelu_gradient(dy[k], x[k])


@kernel(THREADS)
def gelu_tanh_forward(y, x, count):
    """y = x (1 + tanh u)/2, u = sqrt(2/pi) (x + 0.044715 x^3)"""
    k = cuda.grid(1)
    if k < count:
        y[k] = gelu_tanh(x[k])


@kernel(THREADS)
def gelu_tanh_backward(dx, dy, x, count):
    """dx = dy (s + x s (1 - s) 2u'), s = (1 + tanh u)/2"""
    k = cuda.grid(1)
    if k < count:
        dx[k] = gelu_tanh_gradient(dy[k], x[k])


class Activation(Elementwise):
    """A function of each element of images (C, H, W) or vectors (F,)."""

    def call(self, kernel, n, *buffers):
        return call_each(kernel, n * self.size, *(buffer.array for buffer in buffers), *self.options)
