"""Convolution in groups on the GPU, up to one for each channel: a thread for each number of y and of dx, a block for each of dw.

The kernels are compiled for one geometry: names in capitals are constants. An output reads CG channels, those of its group; weights
are (O, KH, KW, CG).
"""
import functools
import math

import numpy as np

from nbcnn.kernels.cuda.buffer import nothing
from nbcnn.kernels.cuda.compat import SIMULATED, Launch, cuda, kernel
from nbcnn.kernels.cuda.conv2d import backward_bias_calls
from nbcnn.kernels.cuda.launch import THREADS, each
from nbcnn.kernels.cuda.losses import BLOCK, block_sum
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put
from nbcnn.kernels.operation import Call, Operation

BLOCKS = 1 if SIMULATED else 1024       # of a weight gradient: with fewer weights the samples are divided into parts


@functools.cache
def make_conv2d_groups(X_SHAPE, Y_SHAPE, KERNEL, STRIDE, PADDING, DILATION, GROUPS, VERSION=CODE_VERSION):
    """The kernels of one geometry: forward, and the gradients of the input and of the weights."""
    (C, H, W), (O, OH, OW), (KH, KW), (SH, SW), (PH, PW), (DH, DW) = X_SHAPE, Y_SHAPE, KERNEL, STRIDE, PADDING, DILATION
    CG, OG = C // GROUPS, O // GROUPS

    @kernel(THREADS)
    def conv2d_groups_forward(y, x, w, b, count):
        """y[m, o, i, j] = b[o] + sum over c, p, q of x[m, c, r, s] * w[o, p, q, c], for `count` numbers of y."""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            m, o, i, j = k // (O * OH * OW), k // (OH * OW) % O, k // OW % OH, k % OW
            total = get(b, o) if len(b) > 0 else x.dtype.type(0)
            for p in range(KH):
                for q in range(KW):
                    r, s = i * SH + p * DH - PH, j * SW + q * DW - PW
                    if 0 <= r < H and 0 <= s < W:
                        at_x, at_w = ((m * C + o // OG * CG) * H + r) * W + s, ((o * KH + p) * KW + q) * CG
                        for c in range(CG):
                            total += get(x, at_x + c * H * W) * get(w, at_w + c)
            put(y, k, total)

    @kernel(THREADS)
    def conv2d_groups_backward_input(dx, dy, w, count):
        """dx[m, c, r, s] = sum over o, p, q of dy[m, o, i, j] * w[o, p, q, c], for `count` numbers of dx.

        i = (r + PH - p*DH) / SH, j likewise, where these are whole numbers.
        """
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            m, c, r, s = k // (C * H * W), k // (H * W) % C, k // W % H, k % W
            total, o_first = dx.dtype.type(0), c // CG * OG
            for p in range(KH):
                for q in range(KW):
                    down, right = r + PH - p * DH, s + PW - q * DW
                    i, j = down // SH, right // SW
                    if down % SH == 0 and right % SW == 0 and 0 <= i < OH and 0 <= j < OW:
                        at_dy, at_w = ((m * O + o_first) * OH + i) * OW + j, ((o_first * KH + p) * KW + q) * CG + c % CG
                        for o in range(OG):
                            total += get(dy, at_dy + o * OH * OW) * get(w, at_w + o * KH * KW * CG)
            put(dx, k, total)

    @kernel(BLOCK)
    def conv2d_groups_backward_weight(partial, dy, x, at_w, size, n, parts):
        """partial[part, o, p, q, c] = sum over the part's m, i, j of dy[m, o, i, j] * x[m, c, r, s]: a block for each number.

        Parts are of equal size and may begin or end within a sample.
        """
        _ = VERSION
        sums = cuda.shared.array(BLOCK, x.dtype)
        weight, part = cuda.blockIdx.x % (O * KH * KW * CG), cuda.blockIdx.x // (O * KH * KW * CG)
        o, p, q, c = weight // (KH * KW * CG), weight // (KW * CG) % KH, weight // CG % KW, weight % CG
        total = x.dtype.type(0)
        for k in range(part * n * OH * OW // parts + cuda.threadIdx.x, (part + 1) * n * OH * OW // parts, BLOCK):
            m, i, j = k // (OH * OW), k // OW % OH, k % OW
            r, s = i * SH + p * DH - PH, j * SW + q * DW - PW
            if 0 <= r < H and 0 <= s < W:
                total += get(dy, ((m * O + o) * OH + i) * OW + j) * get(x, ((m * C + o // OG * CG + c) * H + r) * W + s)
        total = block_sum(sums, total)
        if cuda.threadIdx.x == 0:
            put(partial, part * size + at_w + weight, total)

    return conv2d_groups_forward, conv2d_groups_backward_input, conv2d_groups_backward_weight


class Conv2dGroups(Operation):
    """A convolution whose channels and outputs are divided into groups: outputs see the channels of their own group."""

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, groups, dtype):
        self.x_count, self.y_count, self.y_size, self.dtype = math.prod(x_shape), math.prod(y_shape), y_shape[1:], np.dtype(dtype)
        self.run = math.prod(kernel_size) * x_shape[0] // groups
        self.weights, self.kernels = y_shape[0] * self.run, make_conv2d_groups(
            tuple(x_shape), tuple(y_shape), tuple(kernel_size), stride, padding, dilation, groups)

    def parts(self, n):
        """Into how many partial sums gradients of parameters are split: it follows from the shapes alone."""
        return max(1, min(n, BLOCKS // self.weights))

    def flop(self, n):
        """Of each formula, multiplications with padding included."""
        return 2 * n * self.y_count * self.run

    def forward(self, n, y, x, params):
        w, b = params
        return [Call(each(self.kernels[0], n * self.y_count), (
            y.array, x.array, w, nothing(self.dtype) if b is None else b, n * self.y_count), self.flop(n))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        (dw, db), parts, (_, backward_input, backward_weight) = dparams, self.parts(n), self.kernels
        calls = backward_bias_calls("conv2d_backward_bias", n, db, dy, nothing(np.dtype(np.uint8)), parts)
        if dw is not None:
            calls.append(Call(Launch(backward_weight, parts * self.weights, BLOCK), (
                dw.partial, dy.array, x.array, dw.start, dw.size, n, parts), self.flop(n)))
        if dx is not None:
            count = n * self.x_count
            calls.append(Call(each(backward_input, count), (dx.array, dy.array, params[0], count), self.flop(n)))
        return calls


class Conv2dDepthwise(Conv2dGroups):
    """As many groups as channels, and as outputs."""

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        super().__init__(x_shape, y_shape, kernel_size, stride, padding, dilation, x_shape[0], dtype)
