"""Depthwise convolution on the CPU: each channel has a kernel of its own.

Channels meet no other channel, so the lanes of a tile are channels of x, of w and of y alike, and the line in all kernels here is

    acc = tile.product(acc, x, rows, at_x, w, at_w)     # acc[row, lane] += x[at_x + rows[row] + lane] * w[at_w + lane]

A tile's rows are P pixels of an image row, and in the weight gradient P taps of a kernel row. Pixels beside the image are read from
the pixel of zeros. `conv2d.py` says which pixel a tap reads.
"""
import functools
import math

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.conv2d import MOST_PARTS, Conv2d, add_pixels, make_pack_weight
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call

SUMS = 24 if tile.VECTOR_BYTES == 64 else 12    # vectors of a weight gradient's tile, beside V of dy, of 32 or 16 registers
MOST_TAPS, MOST_VECTORS = 8, 4                  # its rows and vectors: more of these would be read beyond an array's end


@functools.cache
def make_conv2d_depthwise(P, V, LANES):
    """The kernels conv2d_depthwise_forward and conv2d_depthwise_backward_input, for a tile of P pixels x V vectors of channels."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def conv2d_depthwise_forward(y, x, w, b, g):
        """y[m, i, j, c] = b[c] + sum over p, q of x[m, r + p*dilation_h, s + q*dilation_w, c] * w[p, q, c].

        r = i*stride_h - padding_h, s = j*stride_w - padding_w. The formula's w is stored as (block, KH, KW, WIDTH), for blocks of
        WIDTH channels. A task is a row i of a sample.
        """
        for task in prange(g.n * g.OH):
            m, i = task // g.OH, task % g.OH
            top = i * g.stride_h - g.padding_h
            p_first, p_end = tile.range_inside(top, g.dilation_h, g.KH, g.H)
            x_rows, columns = tile.rows_strided(P, 0, g.stride_w * g.C), tile.rows_strided(P, 0, g.stride_w)
            for j in range(0, g.OW, P):
                left = j * g.stride_w - g.padding_w
                q_first, _ = tile.range_inside(left + (P - 1) * g.stride_w, g.dilation_w, g.KW, g.W)
                _, q_end = tile.range_inside(left, g.dilation_w, g.KW, g.W)
                for block in range((g.C + WIDTH - 1) // WIDTH):
                    acc = tile.repeat(P, V, b, block * WIDTH)
                    for p in range(p_first, p_end):
                        for q in range(q_first, q_end):
                            s = left + q * g.dilation_w
                            at_x = m * g.x_step + ((top + p * g.dilation_h) * g.W + s) * g.C + block * WIDTH
                            at_w = ((block * g.KH + p) * g.KW + q) * WIDTH
                            rows = x_rows
                            if s < 0 or s + (P - 1) * g.stride_w >= g.W:
                                rows = tile.rows_or_zeros(x_rows, columns, s, g.W, g.x_zeros + block * WIDTH - at_x)
                            acc = tile.product(acc, x, rows, at_x, w, at_w)
                    at_y = m * g.y_step + (i * g.OW + j) * g.C + block * WIDTH
                    tile.store(acc, y, tile.rows_strided(P, 0, g.C), at_y, 0, g.OW - j, g.C - block * WIDTH)

    @njit(parallel=True, error_model="numpy")
    def conv2d_depthwise_backward_input(dx, dy, w, g):
        """dx[m, r, s, c] = sum over p, q of dy[m, i, j, c] * w[p, q, c].

        i = (r + padding_h - p*dilation_h) / stride_h, j likewise, where these are whole numbers; `conv2d_backward_input` says how
        the loops find them. A task is a row r of a sample. A tile's pixels are of one class: every stride_w-th column from s on.
        """
        period_h, step_h = g.stride_h // math.gcd(g.stride_h, g.dilation_h), g.dilation_h // math.gcd(g.stride_h, g.dilation_h)
        period_w, step_w = g.stride_w // math.gcd(g.stride_w, g.dilation_w), g.dilation_w // math.gcd(g.stride_w, g.dilation_w)
        for task in prange(g.n * g.H):
            m, r = task // g.H, task % g.H
            p_last = tile.last_tap(r + g.padding_h, g.KH, g.stride_h, g.dilation_h)
            i = (r + g.padding_h - p_last * g.dilation_h) // g.stride_h
            u_first, u_end = tile.range_inside(i, step_h, p_last // period_h + 1, g.OH)
            dy_rows, columns = tile.rows_strided(P, 0, g.C), tile.rows_strided(P, 0, 1)
            for s in range(min(g.stride_w, g.W)):
                q_last = tile.last_tap(s + g.padding_w, g.KW, g.stride_w, g.dilation_w)
                j = (s + g.padding_w - q_last * g.dilation_w) // g.stride_w
                pixels = (g.W - s + g.stride_w - 1) // g.stride_w
                for k in range(0, pixels, P):
                    v_first, _ = tile.range_inside(j + k + P - 1, step_w, q_last // period_w + 1, g.OW)
                    _, v_end = tile.range_inside(j + k, step_w, q_last // period_w + 1, g.OW)
                    for block in range((g.C + WIDTH - 1) // WIDTH):
                        acc = tile.zero(P, V, dx)
                        for u in range(u_first, u_end):
                            for v in range(v_first, v_end):
                                p, q, column = p_last - u * period_h, q_last - v * period_w, j + k + v * step_w
                                at_dy = m * g.y_step + ((i + u * step_h) * g.OW + column) * g.C + block * WIDTH
                                at_w = ((block * g.KH + p) * g.KW + q) * WIDTH
                                rows = dy_rows
                                if column < 0 or column + P > g.OW:
                                    rows = tile.rows_or_zeros(dy_rows, columns, column, g.OW, g.y_zeros + block * WIDTH - at_dy)
                                acc = tile.product(acc, dy, rows, at_dy, w, at_w)
                        dx_rows = tile.rows_strided(P, 0, g.stride_w * g.C)
                        at_dx = m * g.x_step + (r * g.W + s + k * g.stride_w) * g.C + block * WIDTH
                        tile.store(acc, dx, dx_rows, at_dx, 0, pixels - k, g.C - block * WIDTH)

    return conv2d_depthwise_forward, conv2d_depthwise_backward_input


@functools.cache
def make_conv2d_depthwise_backward_weight(P, V, LANES):
    """The kernel of the weight gradient, for a tile of P taps of a kernel row x V vectors of channels."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def conv2d_depthwise_backward_weight(dw, db, dy, x, one, g, parts):
        """dw[part, block, p, q] = sum over the part's samples m and all i, j of dy[m, i, j, block] * x[m, r, s, block].

        r = i*stride_h + p*dilation_h - padding_h, s likewise. A block is WIDTH channels side by side. A task is a part and a block;
        its sums lie in dw from one row of dy to the next. It sums db too.
        """
        blocks, size, zero = (g.C + WIDTH - 1) // WIDTH, g.KH * g.KW * WIDTH, dw.dtype.type(0)
        for task in prange(parts * blocks):
            part, c = task // blocks, task % blocks * WIDTH
            dw[task * size:(task + 1) * size] = zero
            db[task * WIDTH:(task + 1) * WIDTH] = zero
            for m in range(part * g.n // parts, (part + 1) * g.n // parts):
                add_pixels(db, task * WIDTH, dy, one, g, m, m + 1, c, True, V, WIDTH)
                for row in range(g.OH * g.KH):
                    i, p = row // g.KH, row % g.KH
                    r = i * g.stride_h + p * g.dilation_h - g.padding_h
                    if 0 <= r < g.H:
                        for q in range(0, g.KW, P):
                            taps = min(P, g.KW - q)
                            x_rows = tile.rows_inside(P, 0, g.dilation_w * g.C, 0, taps)
                            columns = tile.rows_inside(P, 0, g.dilation_w, 0, taps)
                            dw_rows = tile.rows_inside(P, task * size + (p * g.KW + q) * WIDTH, WIDTH, 0, taps)
                            acc = tile.load(P, V, dw, dw_rows, 0)
                            for j in range(g.OW):
                                s = j * g.stride_w + q * g.dilation_w - g.padding_w
                                at_x, rows = m * g.x_step + (r * g.W + s) * g.C + c, x_rows
                                if s < 0 or s + (taps - 1) * g.dilation_w >= g.W:
                                    rows = tile.rows_or_zeros(x_rows, columns, s, g.W, g.x_zeros + c - at_x)
                                acc = tile.product(acc, x, rows, at_x, dy, m * g.y_step + (i * g.OW + j) * g.C + c)
                            tile.store(acc, dw, dw_rows, 0, 0, taps, WIDTH)

    return conv2d_depthwise_backward_weight


class Conv2dDepthwise(Conv2d):
    """A convolution of as many outputs as channels, each of its own channel. Weights are (C, KH, KW), flat.

    Its memory is that of a convolution of one channel; both passes read packed weights.
    """

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        super().__init__((1, *x_shape[1:]), y_shape, kernel_size, stride, padding, dilation, dtype)
        _, KW = kernel_size
        P = -(-KW // -(-KW // MOST_TAPS))
        lanes = tile.lanes(dtype)
        self.dw_tile = P, max(1, min(SUMS // P, MOST_VECTORS, -(-self.O // lanes))), lanes

    def geometry(self, n, x, y):
        return super().geometry(n, x, y)._replace(C=self.O)

    def parts(self, n):
        """Into how many partial sums the weight gradient of n samples is split: enough to give 32 tasks, at least a sample each."""
        _, V, lanes = self.dw_tile
        return max(1, min(MOST_PARTS, n, -(-32 // -(-self.O // (V * lanes)))))

    def sums(self, batch):
        _, V, lanes = self.dw_tile
        outputs = self.parts(batch) * -(-self.O // (V * lanes)) * V * lanes
        return outputs * self.run, outputs, 0

    def forward(self, n, y, x, params):
        forward, _ = make_conv2d_depthwise(*self.tile)
        return [self.pack(params), Call(forward, (y.array, x.array, self.packed_w, self.packed_b, self.geometry(n, x, y)),
                                        self.flop(n))]

    def pack(self, params):
        _, V, lanes = self.tile
        return super().pack(params, V * lanes)

    def backward_weight(self, n, dparams, dy, x, add):
        (dw, db), (_, V, lanes), parts = dparams, self.dw_tile, self.parts(n)
        return [
            Call(make_conv2d_depthwise_backward_weight(*self.dw_tile), (
                self.dw_parts, self.db_parts, dy.array, x.array, self.one, self.geometry(n, x, dy), parts), self.flop(n)),
            Call(make_pack_weight(lanes)[1], (
                dw, self.zeros[:0] if db is None else db, self.dw_parts, self.db_parts, V * lanes, self.O, self.run, parts, *add))]

    def backward_input(self, n, dx, dy, w):
        _, backward_input = make_conv2d_depthwise(*self.tile)
        return [self.pack((w, None)), Call(backward_input, (dx.array, dy.array, self.packed_w, self.geometry(n, dx, dy)),
                                           self.flop(n))]
