"""Activations on the CPU: one function of each element, the gaps between samples included, which is simpler than to leave them out.

In float64, which is for checks, the functions of the C library do. Calling one for each element takes ten times as long as
computing a vector at a time, so float32 has polynomials of its own, without branches, which the compiler makes vector
instructions of.
"""
import inspect
import math

import numpy as np
from numba import types
from numba.extending import overload

from nbcnn.kernels.cpu import kernel_cache, tile
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Elementwise

# Division by zero gives inf, as in NumPy. A product and a sum may become one instruction that rounds once; nothing else is relaxed.
OPTIONS = dict(error_model="numpy", fastmath={"contract"})
kernel = kernel_cache.njit(parallel=True, **OPTIONS)
njit = kernel_cache.njit(**OPTIONS)


# ---- float32 functions, for vectors: every constant is a float32, every choice a selection
#
# The coefficients of EXP, TANH, UPPER and LOWER are minimax fits: least squares with NumPy at Chebyshev points, repeated with the
# weights multiplied by the errors until the largest are equal.

def _singles(*values):
    return tuple(map(np.float32, values))


ZERO, ONE, HALF, PEAK = _singles(0, 1, 0.5, 1 / math.sqrt(2 * math.pi))
LOG2_E, LN2_HIGH, LN2_LOW = _singles(math.log2(math.e), 0.693359375, -2.12194440e-4)    # the product of HIGH and 8 bits is exact
LOWEST = np.float32(-104)                   # e^x is 0 below
ROUND = np.float32(1.5 * 2**23)             # a sum with it is whole, and its last bits are those of the integer
MANTISSA, BIAS, LIFT = np.int32(23), np.int32(127 + 64), np.float32(2**-64)
EXP = _singles(0.00138427236, 0.00837495644, 0.0416680574, 0.166664213, 0.49999994, 1, 1)
TANH = _singles(-0.000358451973, 0.00230136444, -0.00794610661, 0.0214866567, -0.0538798012, 0.133323446, -0.333332956)
FAR = np.float32(15)                        # float32 has nothing between 0 and the cdf at -15
UPPER = _singles(0.0144776087, 0.108573541, 0.342752784, 0.49999997)
LOWER = _singles(0.0363012441, 0.271773428, 0.900756299, 1.4833864, 1)


@njit
def polynomial(x, coefficients):
    """The highest power's coefficient first."""
    p = coefficients[0]
    for c in coefficients[1:]:
        p = p * x + c
    return p


@njit
def exp32(x):
    """e^x = 2^k e^r, |r| <= ln(2)/2, for x <= 0; within 1.4 ulp, denormal results included."""
    x = LOWEST if x < LOWEST else x         # NaN stays
    shifted = np.float32(x * LOG2_E + ROUND)
    k = shifted - ROUND
    power = polynomial(x - k * LN2_HIGH - k * LN2_LOW, EXP)
    scale = np.int32((shifted.view(np.int32) + BIAS) << MANTISSA).view(np.float32)      # 2^(k + 64), as 2^-150 is no number
    return power * scale * LIFT


@njit
def tanh32(x):
    """tanh x = x + x^3 P(x^2) to 1, from there on 1 - 2p/(1 + p), p = e^-2|x|; within 1 ulp.

    That 1/(1 + p) is rounded matters less in 2p - 2p p/(1 + p). The gradient 1 - y^2 loses digits near 1: no formula of y gives
    back what y was rounded off, so all its accuracy comes from here.
    """
    size, square = abs(x), x * x
    power = exp32(-size - size)
    double = power + power
    far = ONE - (double - double * (power / (ONE + power)))
    return math.copysign(size + size * square * polynomial(square, TANH) if size < ONE else far, x)


@njit
def normal32(x):
    """The normal distribution's cdf Phi(x), the probability of a number below x, and its pdf phi(x), the density at x.

    Phi(x) = (1 + erf(x/sqrt 2))/2, without the cancellation of that for x < 0: Phi(-|x|) = e^(-x^2/2) U(|x|)/L(|x|), where U and L
    have positive coefficients. Their relative error is at most 7e-8 (1 + x^2/2), to |x| = 14.5, as rounding x^2/2 costs as much.
    Within 3 ulp for x >= 0, 4 + x^2 ulp below.
    """
    size = abs(x)
    size = FAR if size > FAR else size
    power = exp32(-HALF * x * x)
    below = power * (polynomial(size, UPPER) / polynomial(size, LOWER))
    return below if x < ZERO else ONE - below, PEAK * power


# ---- of either dtype

def exp(x):
    """e^x for x <= 0, for jitted code, as the following."""


def tanh(x):
    """The hyperbolic tangent."""


def normal(x):
    """The normal distribution's cdf Phi(x) and pdf phi(x)."""


@overload(exp)
def _exp(x):
    return (lambda x: exp32(x)) if x == types.float32 else lambda x: math.exp(x)


@overload(tanh)
def _tanh(x):
    return (lambda x: tanh32(x)) if x == types.float32 else lambda x: math.tanh(x)


@overload(normal)
def _normal(x):
    def normal64(x):
        return 0.5 * math.erfc(-math.sqrt(0.5) * x), math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return (lambda x: normal32(x)) if x == types.float32 else normal64


@njit
def sigmoid(x):
    """1/(1 + e^-x), of a power that cannot overflow."""
    power, one = exp(-abs(x)), type(x)(1)
    return (power if x < type(x)(0) else one) / (one + power)


# ---- functions of an element, and their gradients: dx of dy and of x or y, as the second argument is called

@njit
def relu(x):
    """max(x, 0); NaN stays NaN."""
    zero = type(x)(0)
    return zero if x <= zero else x


@njit
def relu_gradient(dy, y):
    """dy where y > 0 or y is NaN, else 0."""
    zero = type(y)(0)
    return zero if y <= zero else dy


@njit
def leaky_relu(x, slope):
    """x where x > 0, else slope*x."""
    return x if x > type(x)(0) else slope * x


@njit
def leaky_relu_gradient(dy, x, slope):
    """dy where x > 0, else slope*dy."""
    return dy if x > type(x)(0) else slope * dy


@njit
def scale(x, factor):
    """factor*x"""
    return factor * x


@njit
def scale_gradient(dy, x, factor):
    """factor*dy, whatever x is."""
    return factor * dy


@njit
def tanh_gradient(dy, y):
    """dy (1 - y^2)"""
    return dy * (type(y)(1) - y * y)


@njit
def sigmoid_gradient(dy, y):
    """dy y (1 - y)"""
    return dy * (y * (type(y)(1) - y))


@njit
def gelu(x):
    """x Phi(x)"""
    cdf, _ = normal(x)
    return x * cdf


@njit
def gelu_gradient(dy, x):
    """dy (Phi(x) + x phi(x))"""
    cdf, pdf = normal(x)
    return dy * (cdf + x * pdf)


# (1 + tanh u)/2 = sigmoid(2u), which does not cancel; 2u = x (LINEAR + CUBIC x^2)
LINEAR, CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


@njit
def gelu_tanh(x):
    """x (1 + tanh u)/2, u = sqrt(2/pi) (x + 0.044715 x^3)"""
    linear, cubic = type(x)(LINEAR), type(x)(CUBIC)
    return x * sigmoid(x * (linear + cubic * x * x))


@njit
def gelu_tanh_gradient(dy, x):
    """dy (s + x s (1 - s) 2u'), s = (1 + tanh u)/2"""
    one, three, linear, cubic = type(x)(1), type(x)(3), type(x)(LINEAR), type(x)(CUBIC)
    s = sigmoid(x * (linear + cubic * x * x))
    slope = x * s * (one - s)           # 0 long before x^2 is inf
    return dy * (s + slope * linear + slope * x * x * (three * cubic))


@njit
def identity(x):
    """x"""
    return x


@njit
def identity_gradient(dy, x):
    """dy"""
    return dy


def activate(function, x, options):
    """A function above, of x and its options, by its name, a constant: for kernels of other files that end with one."""


def activate_gradient(function, dy, x, options):
    """dx of such a function, of x, whatever its gradient reads."""


@overload(activate, prefer_literal=True)
def _activate(function, x, options):
    value = globals()[function.literal_value]
    return lambda function, x, options: value(x, *options)


@overload(activate_gradient, prefer_literal=True)
def _activate_gradient(function, dy, x, options):
    value, gradient = globals()[function.literal_value], globals()[f"{function.literal_value}_gradient"]
    if "y" in inspect.signature(gradient).parameters:
        return lambda function, dy, x, options: gradient(dy, value(x, *options), *options)
    return lambda function, dy, x, options: gradient(dy, x, *options)


# ---- kernels, each for the first `count` numbers of flat arrays

@kernel
def relu_forward(y, x, count):
    """y = max(x, 0); NaN stays NaN."""
    for k in prange(count):
        tile.put(y, k, relu(tile.get(x, k)))


@kernel
def relu_backward(dx, dy, y, count):
    """dx = dy where y > 0 or y is NaN, else 0."""
    for k in prange(count):
        tile.put(dx, k, relu_gradient(tile.get(dy, k), tile.get(y, k)))


@kernel
def leaky_relu_forward(y, x, slope, count):
    """y = x where x > 0, else slope*x."""
    for k in prange(count):
        tile.put(y, k, leaky_relu(tile.get(x, k), slope))


@kernel
def leaky_relu_backward(dx, dy, x, slope, count):
    """dx = dy where x > 0, else slope*dy."""
    for k in prange(count):
        tile.put(dx, k, leaky_relu_gradient(tile.get(dy, k), tile.get(x, k), slope))


@kernel
def scale_forward(y, x, factor, count):
    """y = factor*x"""
    for k in prange(count):
        tile.put(y, k, scale(tile.get(x, k), factor))


@kernel
def scale_backward(dx, dy, x, factor, count):
    """dx = factor*dy, whatever x is."""
    for k in prange(count):
        tile.put(dx, k, scale_gradient(tile.get(dy, k), tile.get(x, k), factor))


@kernel
def tanh_forward(y, x, count):
    """y = tanh x"""
    for k in prange(count):
        tile.put(y, k, tanh(tile.get(x, k)))


@kernel
def tanh_backward(dx, dy, y, count):
    """dx = dy (1 - y^2)"""
    for k in prange(count):
        tile.put(dx, k, tanh_gradient(tile.get(dy, k), tile.get(y, k)))


@kernel
def sigmoid_forward(y, x, count):
    """y = 1/(1 + e^-x)"""
    for k in prange(count):
        tile.put(y, k, sigmoid(tile.get(x, k)))


@kernel
def sigmoid_backward(dx, dy, y, count):
    """dx = dy y (1 - y)"""
    for k in prange(count):
        tile.put(dx, k, sigmoid_gradient(tile.get(dy, k), tile.get(y, k)))


@kernel
def gelu_forward(y, x, count):
    """y = x Phi(x)"""
    for k in prange(count):
        tile.put(y, k, gelu(tile.get(x, k)))


@kernel
def gelu_backward(dx, dy, x, count):
    """dx = dy (Phi(x) + x phi(x))"""
    for k in prange(count):
        tile.put(dx, k, gelu_gradient(tile.get(dy, k), tile.get(x, k)))


@kernel
def gelu_tanh_forward(y, x, count):
    """y = x (1 + tanh u)/2, u = sqrt(2/pi) (x + 0.044715 x^3)"""
    for k in prange(count):
        tile.put(y, k, gelu_tanh(tile.get(x, k)))


@kernel
def gelu_tanh_backward(dx, dy, x, count):
    """dx = dy (s + x s (1 - s) 2u'), s = (1 + tanh u)/2"""
    for k in prange(count):
        tile.put(dx, k, gelu_tanh_gradient(tile.get(dy, k), tile.get(x, k)))


class Activation(Elementwise):
    """A function of each element of images (C, H, W) or vectors (F,)."""

    @property
    def bfloat16(self):
        """The kernels here know it, one's own take arrays of floats."""
        return self.kernels[0] is globals().get(self.kernels[0].__name__)

    def call(self, kernel, n, *buffers):
        return Call(kernel, (*(buffer.array for buffer in buffers), *self.options, n * buffers[0].step))
