"""A file outside the package, as a user writes it: a function of each element and two other layers, for the CPU."""
import math

from numba import njit, prange

import nbcnn
from nbcnn.kernels.operation import Call, Operation

# ---- a function of each element: two kernels, and a class that names them


@njit(parallel=True, error_model="numpy")
def softplus_forward(y, x, beta, count):
    """y = log(1 + e^(beta x)) / beta, of a power that cannot overflow."""
    zero = x.dtype.type(0)
    for k in prange(count):
        y[k] = max(x[k], zero) + math.log1p(math.exp(-abs(beta * x[k]))) / beta


@njit(parallel=True, error_model="numpy")
def softplus_backward(dx, dy, x, beta, count):
    """dx = dy / (1 + e^(-beta x))"""
    one = x.dtype.type(1)
    for k in prange(count):
        dx[k] = dy[k] / (one + math.exp(-beta * x[k]))


class Softplus(nbcnn.Activation):
    """log(1 + e^(beta x)) / beta: a ReLU without a kink."""
    function = {"cpu": (softplus_forward, softplus_backward)}

    def __init__(self, beta=1.0):
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < 1000:
            raise ValueError(f"beta: expected a number from 0 to 1000, got {beta!r}")
        self.arguments = {"beta": float(beta)}
        self.options = (beta,)


# ---- any other layer: kernels, the operation that calls them, and a class that says what shape comes out


@njit(parallel=True)
def upsample2d_forward(y, x, n, C, H, W, scale, y_step, x_step):
    """y[m, i, j, c] = x[m, i // scale, j // scale, c]: in memory the channels of a pixel lie side by side."""
    for task in prange(n * H * scale):
        m, i = task // (H * scale), task % (H * scale)
        for j in range(W * scale):
            at_y = m * y_step + (i * W * scale + j) * C
            at_x = m * x_step + (i // scale * W + j // scale) * C
            for c in range(C):
                y[at_y + c] = x[at_x + c]


@njit(parallel=True)
def upsample2d_backward(dx, dy, n, C, H, W, scale, y_step, x_step):
    """dx[m, r, s, c] = the sum of dy over the pixels that forward has copied to."""
    for task in prange(n * H):
        m, r = task // H, task % H
        for s in range(W):
            at_x = m * x_step + (r * W + s) * C
            for c in range(C):
                dx[at_x + c] = 0
            for u in range(scale):
                for v in range(scale):
                    at_y = m * y_step + ((r * scale + u) * W * scale + s * scale + v) * C
                    for c in range(C):
                        dx[at_x + c] += dy[at_y + c]


class UpsampleCPU(Operation):
    """Calls the kernels for n samples, which lie `step` numbers apart."""

    def __init__(self, shape, scale):
        self.shape, self.scale = shape, scale

    def forward(self, n, y, x, params):
        return [Call(upsample2d_forward, (y.array, x.array, n, *self.shape, self.scale, y.step, x.step))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        if dx is None:
            return []
        return [Call(upsample2d_backward, (dx.array, dy.array, n, *self.shape, self.scale, dy.step, dx.step))]


class Upsample2d(nbcnn.Layer):
    """Each pixel becomes scale x scale pixels."""

    def __init__(self, scale):
        if type(scale) is not int or not 1 <= scale <= 64:
            raise ValueError(f"scale: expected an int from 1 to 64, got {scale!r}")
        self.arguments = {"scale": scale}
        self.scale = scale

    def output_shape(self, shape):
        if len(shape) != 3:
            raise ValueError(f"expected images (C, H, W), got {shape}")
        return shape[0], shape[1] * self.scale, shape[2] * self.scale

    def operation(self, backend, shape, dtype):
        if backend.device != "cpu":
            raise ValueError(f"Upsample2d: expected a model on the CPU, got one on {backend.device}")
        return UpsampleCPU(shape, self.scale)


# ---- a layer with parameters: its operation gets their values, and writes, or adds to, their gradients


@njit(parallel=True)
def scale_forward(y, x, w, b, n, C, pixels, y_step, x_step):
    """y[m, pixel, c] = w[c] * x[m, pixel, c] + b[c]"""
    for task in prange(n * pixels):
        m, pixel = task // pixels, task % pixels
        for c in range(C):
            y[m * y_step + pixel * C + c] = w[c] * x[m * x_step + pixel * C + c] + b[c]


@njit(parallel=True)
def scale_backward_input(dx, dy, w, n, C, pixels, dx_step, dy_step):
    """dx[m, pixel, c] = w[c] * dy[m, pixel, c]"""
    for task in prange(n * pixels):
        m, pixel = task // pixels, task % pixels
        for c in range(C):
            dx[m * dx_step + pixel * C + c] = w[c] * dy[m * dy_step + pixel * C + c]


@njit(parallel=True)
def scale_backward_weight(dw, db, dy, x, n, C, pixels, dy_step, x_step, add_w, add_b):
    """dw[c] = (or, with add_w, +=) the sum over m and pixel of dy * x, and db[c] that of dy; a channel is one thread's."""
    for c in prange(C):
        w_sum, b_sum = dw[c] if add_w else dw.dtype.type(0), db[c] if add_b else db.dtype.type(0)
        for m in range(n):
            for pixel in range(pixels):
                value = dy[m * dy_step + pixel * C + c]
                w_sum += value * x[m * x_step + pixel * C + c]
                b_sum += value
        dw[c], db[c] = w_sum, b_sum


class ScaleCPU(Operation):
    """Calls the kernels for n samples."""

    def __init__(self, shape):
        self.sizes = shape[0], math.prod(shape[1:])

    def forward(self, n, y, x, params):
        return [Call(scale_forward, (y.array, x.array, *params, n, *self.sizes, y.step, x.step))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        calls = [Call(scale_backward_weight, (*dparams, dy.array, x.array, n, *self.sizes, dy.step, x.step, *add))]
        if dx is not None:
            calls.append(Call(scale_backward_input, (dx.array, dy.array, params[0], n, *self.sizes, dx.step, dy.step)))
        return calls


class Scale(nbcnn.Layer):
    """A factor and an addend for each channel."""

    def __init__(self, channels):
        if type(channels) is not int or channels < 1:
            raise ValueError(f"channels: expected an int >= 1, got {channels!r}")
        self.arguments = {"channels": channels}
        self.channels = channels
        self.weight = nbcnn.Parameter((channels,), nbcnn.init.uniform(channels))
        self.bias = nbcnn.Parameter((channels,), nbcnn.init.uniform(channels))

    def output_shape(self, shape):
        if shape[0] != self.channels:
            raise ValueError(f"expected {self.channels} channels, got samples of shape {shape}")
        return shape

    def operation(self, backend, shape, dtype):
        if backend.device != "cpu":
            raise ValueError(f"Scale: expected a model on the CPU, got one on {backend.device}")
        return ScaleCPU(shape)
