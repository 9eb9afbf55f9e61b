"""Convolution on the CPU: one correlation kernel runs forward and input gradient, a second one the weight gradient."""
import functools
import math

import numpy as np
from numba import prange

from nbcnn.kernels.cpu.buffer import allocate
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import PARALLEL
from nbcnn.kernels.cpu.tile import (
    TILE_VERSION,
    lanes,
    rows_inside,
    rows_of_pixels,
    rows_strided,
    tile_load,
    tile_outer,
    tile_pool,
    tile_rows,
    tile_shape,
    tile_store,
    tile_transpose,
    tile_zero,
)
from nbcnn.kernels.operation import Call, Operation
from nbcnn.kernels.phases import phases

NO_CELLS = allocate((0, 0, 0, 0), np.uint8)     # in the place of what max-pooling writes, where there is none
MOST_PARTS = 8      # partial sums of a weight gradient: fixed, so that no result depends on the number of threads


@functools.cache
def make_correlate(P, V, LANES, VERSION=TILE_VERSION):
    """The correlation kernel for a tile of P pixels x V vectors of channels."""

    @njit(parallel=PARALLEL, error_model="numpy")
    def correlate(y, cells, x, w, b, low, none, n, size, window, taps, y_at, cells_at, x_at, w_at, rows_read, columns_read):
        """y[pixel, o] = b[o] + sum over (p, q, k) of x[x's pixel + (p, q) + k] * w[o's block, p, q, k, o], for n pictures.

        size = (OH, OW, O), taps = (KH, KW, K): K is the length of a contiguous run of x under a tap. The *_at are strides in
        elements, y_at = (start, image, row, pixel), x_at = (start, image, row, pixel, p, q, u, v), w_at = (start, block, p, q, k).
        rows_read = (start, i, p, H, u) says that output row i reads under tap p the row start + i*rows_read[1] + p*rows_read[2]
        of H, and columns_read the same of columns: taps that fall outside the picture are left out.

        Where `cells` is not empty, a pixel of y is the largest of the window = (WH, WW) of such sums, cell (u, v) read
        rows_read[4]*u and columns_read[4]*v further on, and cells[pixel, o] = u*WW + v says which; `none` where none is larger
        than `low`.

        A tile is P pixels. Where many of them lie near a side, it is the same pixel of P pictures, so that all leave out the
        same taps; else they are neighbours, which share what they read.
        """
        _ = VERSION
        OH, OW, O = size
        KH, KW, K = taps
        count = n * OH * OW
        tiles = (count + P - 1) // P
        blocks = (O + V * LANES - 1) // (V * LANES)
        across = n >= P and OW <= 2 * P
        # Taps side by side in x and in w are one run.
        joined = KW > 1 and x_at[5] == K and w_at[3] == K * w_at[4]
        grouped = across and n % P == 0
        for task in prange(blocks * tiles):
            if grouped:     # P pictures, then the next: they stay in the cache, and with the thread that backward gives them
                first = task % (OH * OW) * n + task // (OH * OW * blocks) * P
                block = task // (OH * OW) % blocks
            else:
                first, block = task % tiles * P, task // tiles
            last = min(first + P, count) - 1
            if across:
                x_rows = rows_of_pixels(P, first, count, n, OW, x_at[1], x_at[3], x_at[2])
                y_rows = rows_of_pixels(P, first, count, n, OW, y_at[1], y_at[3], y_at[2])
                cell_rows = rows_of_pixels(P, first, count, n, OW, cells_at[0], cells_at[2], cells_at[1])
                pixel, last_pixel = first // n, last // n
            else:
                x_rows = rows_of_pixels(P, first, count, OW, OH, x_at[3], x_at[2], x_at[1])
                y_rows = rows_of_pixels(P, first, count, OW, OH, y_at[3], y_at[2], y_at[1])
                cell_rows = rows_of_pixels(P, first, count, OW, OH, cells_at[2], cells_at[1], cells_at[0])
                pixel, last_pixel = first, last
            line, last_line = pixel // OW, last_pixel // OW
            i, j, j_last = line % OH, pixel % OW, last_pixel % OW
            i_last = i + last_line - line
            if line != last_line:
                j, j_last = 0, OW - 1
            if i_last >= OH:        # on into the next picture
                i, i_last = 0, OH - 1
            o = block * V * LANES
            for cell in range(window[0] * window[1]):
                u, v = cell // window[1], cell % window[1]
                r, s = rows_read[0] + u * rows_read[4], columns_read[0] + v * columns_read[4]
                p_start = max(0, -((r + i_last * rows_read[1]) // rows_read[2]))
                p_stop = min(KH, (rows_read[3] - 1 - r - i * rows_read[1]) // rows_read[2] + 1)
                q_start = max(0, -((s + j_last * columns_read[1]) // columns_read[2]))
                q_stop = min(KW, (columns_read[3] - 1 - s - j * columns_read[1]) // columns_read[2] + 1)
                q_step, run = (q_stop - q_start, (q_stop - q_start) * K) if joined else (1, K)
                acc = tile_rows(P, V, b, o)
                for p in range(p_start, p_stop):
                    for q in range(q_start, q_stop, max(1, q_step)):
                        at_x = x_at[0] + p * x_at[4] + q * x_at[5] + u * x_at[6] + v * x_at[7]
                        at_w = w_at[0] + block * w_at[1] + p * w_at[2] + q * w_at[3]
                        for k in range(run):
                            acc = tile_outer(acc, x, x_rows, at_x + k, w, at_w + k * w_at[4])
                # Rows beyond the last pixel repeat it.
                if len(cells) > 0:
                    tile_pool(acc, y, y_rows, y_at[0] + o, cells, cell_rows, o, O - o, np.uint8(cell), low, none)
                else:
                    tile_store(acc, y, y_rows, y_at[0] + o, 0, P, O - o)

    return correlate


@functools.cache
def make_weight_gradient(P, V, LANES, VERSION=TILE_VERSION):
    """The weight gradient kernel for a tile of P output channels x V vectors of one kernel row."""
    P_VECS = -(-P // LANES)     # vectors that hold P channels of dy, for db

    @njit(parallel=PARALLEL, error_model="numpy")
    def weight_gradient(dw_parts, db_parts, dy, x, one, n, parts, size, taps, dy_at, x_at, rows_read, columns_read):
        """dw_parts[part, o, p, q, k] = sum over the part's pictures and all (i, j) of dy[n, i, j, o] * x[x's pixel + (p, q) + k].

        size = (OH, OW, O), taps = (KH, KW, K), strides as in the correlation: dy_at = (start, image, row, pixel), x_at =
        (start, image, row, pixel, p, q). rows_read and columns_read = (start, step of i, step of p, H): only the pixels (i, j)
        that read inside the picture under a tap are visited.
        """
        _ = VERSION
        OH, OW, O = size
        KH, KW, K = taps
        blocks = (O + P - 1) // P
        dy_rows, dw_rows = rows_strided(P, 0, 1), rows_strided(P, 0, KH * KW * K)
        for task in prange(parts * blocks):
            part, o = task // blocks, task % blocks * P
            start, stop = part * n // parts, (part + 1) * n // parts
            sums = tile_zero(1, P_VECS, dy)
            for m in range(start, stop):
                for i in range(OH):
                    at_dy = dy_at[0] + m * dy_at[1] + i * dy_at[2] + o
                    for j in range(OW):
                        sums = tile_outer(sums, one, rows_strided(1, 0, 0), 0, dy, at_dy + j * dy_at[3])
            tile_store(sums, db_parts, rows_strided(1, 0, 0), part * O + o, 0, 1, min(P, O - o))
            for p in range(KH):
                r = rows_read[0] + p * rows_read[2]
                i_start = max(0, -(r // rows_read[1]))
                i_stop = min(OH, (rows_read[3] - 1 - r) // rows_read[1] + 1)
                for q in range(KW):
                    s = columns_read[0] + q * columns_read[2]
                    j_start = max(0, -(s // columns_read[1]))
                    j_stop = min(OW, (columns_read[3] - 1 - s) // columns_read[1] + 1)
                    for k in range(0, K, V * LANES):
                        acc = tile_zero(P, V, dy)
                        for m in range(start, stop):
                            for i in range(i_start, i_stop):
                                at_dy = dy_at[0] + m * dy_at[1] + i * dy_at[2] + j_start * dy_at[3] + o
                                at_x = x_at[0] + m * x_at[1] + i * x_at[2] + j_start * x_at[3] + p * x_at[4] + q * x_at[5] + k
                                for _ in range(j_start, j_stop):
                                    acc = tile_outer(acc, dy, dy_rows, at_dy, x, at_x)
                                    at_dy += dy_at[3]
                                    at_x += x_at[3]
                        tile_store(acc, dw_parts, dw_rows, ((part * O + o) * KH * KW + p * KW + q) * K + k, 0, O - o, K - k)

    return weight_gradient


@functools.cache
def make_pack_weight(LANES, VERSION=TILE_VERSION):
    """What lays out weights for the correlation, LANES outputs x LANES weights at a time."""

    @njit(parallel=PARALLEL)
    def pack_weight(packed, packed_b, w, b, width, O, run):
        """packed[block, k, lane] = w[block*width + lane, k]: a row of `width` lanes for each of `run` weights; packed_b likewise.

        Lanes beyond the last output hold anything: what is computed from them is not stored.
        """
        _ = VERSION
        steps = (run + LANES - 1) // LANES
        for task in prange((O + LANES - 1) // LANES * steps):
            o, k = task // steps * LANES, task % steps * LANES
            w_rows = rows_inside(LANES, o * run, run, 0, O - o)
            packed_rows = rows_strided(LANES, o // width * run * width + o % width, width)
            tile_store(tile_transpose(tile_load(LANES, 1, w, w_rows, k)), packed, packed_rows, k * width, 0, run - k, LANES)
            if k == 0:
                for lane in range(o, min(o + LANES, O)):
                    packed_b[lane] = b[lane]

    return pack_weight


@njit(parallel=PARALLEL)
def add_parts(total, partial, parts, add):
    """total (+)= partial[0] + partial[1] + ..., added up in this order, in partial[0]."""
    size = total.size
    chunk = 1024
    for task in prange((size + chunk - 1) // chunk):
        start, stop = task * chunk, min((task + 1) * chunk, size)
        for part in range(1, parts):
            for k in range(start, stop):
                partial[k] += partial[part * size + k]
        for k in range(start, stop):
            total[k] = partial[k] + total[k] if add else partial[k]


class Conv2d(Operation):
    """A convolution of pictures of one shape: its borders, tiles, strides and workspace.

    Weights are (O, KH, KW, C), flat. Forward packs them into rows of lanes; the input gradient reads them where they are.
    """

    tile_shape = staticmethod(tile_shape)

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        self.x_size, self.y_size = x_shape[1:], y_shape[1:]
        self.C, self.O, self.dtype = x_shape[0], y_shape[0], np.dtype(dtype)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.phases = [phases(*axis) for axis in zip(
            self.x_size, self.y_size, kernel_size, stride, padding, dilation, strict=True)]
        self.x_border = padding
        self.dy_border = tuple(max([0, *(phase.reach for phase in axis)]) for axis in self.phases)
        KH, KW = kernel_size
        width = lanes(dtype)
        self.taps, self.run = (KH, KW, self.C), KH * KW * self.C

        self.tile = *self.tile_shape(self.O, dtype), width
        self.width = self.tile[1] * width
        blocks = -(-self.O // self.width)
        self.packed_w = allocate((blocks * self.run * self.width,), dtype)
        self.packed_b = allocate((blocks * self.width,), dtype)
        self.w_at = (0, self.run * self.width, KW * self.C * self.width, self.C * self.width, self.width)

        self.dx_tile = *self.tile_shape(self.C, dtype), width
        self.dx_width = self.dx_tile[1] * width
        self.zeros = allocate((max(self.O, -(-self.C // self.dx_width) * self.dx_width),), dtype)

        # Without dilation the taps of a kernel row touch one contiguous run of x, which wastes fewer lanes than a run for each
        # tap; but where the channels fill whole tiles, a tap by itself can leave out the pixels that it reads in the border.
        self.dw_taps = (KH, 1, KW * self.C) if dilation[1] == 1 and self.C % (2 * width) else self.taps
        P, V = tile_shape(self.dw_taps[2], dtype, adjacent=True)
        self.weight_gradient = make_weight_gradient(P, V, width)
        self.one = np.ones(1, dtype)

    def parts(self, n):
        """Into how many partial sums the weight gradient of n pictures is split: it follows from the shapes alone.

        Enough for 32 tasks of 8 channels and for parts of 16 pictures, which a cache holds; fewer where there is little to sum.
        """
        wanted = max(32 // -(-self.O // 8), n // 16)
        return max(1, min(MOST_PARTS, n, wanted, n * self.y_size[0] * self.y_size[1] // 64))

    def reserve(self, batch):
        """Allocate the partial sums for up to `batch` pictures."""
        parts = self.parts(batch)
        self.dw_parts = allocate((parts * self.O * self.run,), self.dtype)
        self.db_parts = allocate((parts * self.O,), self.dtype)

    def bytes(self, batch):
        return self.parts(batch) * self.O * (self.run + 1) * self.dtype.itemsize

    def forward(self, n, y, x, params):
        """y = conv(x, w) + b for n pictures."""
        return [self._pack(params), self._correlate(
            n, y.array, y.strides, x, self.y_size, make_correlate(*self.tile), NO_CELLS, (0, 0, 0), (1, 1), 0, 0)]

    def _pack(self, params):
        w, b = params
        return Call(make_pack_weight(lanes(self.dtype)), (
            self.packed_w, self.packed_b, w, self.zeros[:self.O] if b is None else b, self.width, self.O, self.run))

    def _correlate(self, n, y, y_at, x, size, kernel, cells, cells_at, window, low, none):
        """The correlation of n pictures, each pixel of y the largest in a window of sums."""
        return Call(kernel, (
            y, cells, x.array, self.packed_w, self.packed_b, self.dtype.type(low), np.uint8(none), n, (*size, self.O), window,
            self.taps, y_at, cells_at, self._x_at(x, window), self.w_at, self._reads(0, window), self._reads(1, window)),
            2 * n * self.O * self.run * math.prod(size) * math.prod(window))

    def _x_at(self, x, window=(1, 1)):
        """Strides by which an output pixel, a tap, and a cell of the window that pixels are pooled in move in x."""
        start, image, row, pixel = x.strides
        step_h, step_w = self.stride[0] * row, self.stride[1] * pixel
        return (start - self.padding[0] * row - self.padding[1] * pixel, image, step_h * window[0], step_w * window[1],
                self.dilation[0] * row, self.dilation[1] * pixel, step_h, step_w)

    def _reads(self, axis, window=(1, 1)):
        """Input row (or column) start + i*step + p*tap_step + u*stride, of so many, is what cell u of output i reads."""
        stride = self.stride[axis]
        return -self.padding[axis], stride * window[axis], self.dilation[axis], self.x_size[axis], stride

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """dw, db and, unless dx is None, dx."""
        calls = self.weight_backward(n, dparams, dy, x, add)
        return calls if dx is None else calls + self.input_backward(n, dx, dy, params[0])

    def weight_backward(self, n, dparams, dy, x, add):
        """dw and db: partial sums over parts of the batch, then their sum."""
        parts = self.parts(n)
        columns = self._reads(1)[:4] if self.dw_taps == self.taps else (0, 1, 0, self.y_size[1])
        flop = 2 * n * self.O * self.run * math.prod(self.y_size)
        # A single part that adds to nothing needs no place of its own.
        targets = [total if total is not None and parts == 1 and not to_add else partial
                   for total, partial, to_add in zip(dparams, (self.dw_parts, self.db_parts), add, strict=True)]
        return [Call(self.weight_gradient, (
            *targets, dy.array, x.array, self.one, n, parts, (*self.y_size, self.O), self.dw_taps, dy.strides,
            self._x_at(x)[:6], self._reads(0)[:4], columns), flop)] + [
                Call(add_parts, (total, partial, parts, to_add)) for total, partial, to_add
                in zip(dparams, targets, add, strict=True) if total is not None and total is not partial]

    def input_backward(self, n, dx, dy, w):
        """dx: the correlation of dy with the flipped weights, one phase of the stride at a time."""
        KW, calls = self.kernel_size[1], []
        dx_start, dx_image, dx_row, dx_pixel = dx.strides
        dy_start, dy_image, dy_row, dy_pixel = dy.strides
        for u in self.phases[0]:
            for v in self.phases[1]:
                calls.append(Call(make_correlate(*self.dx_tile), (
                    dx.array, NO_CELLS, dy.array, w, self.zeros, self.dtype.type(0), np.uint8(0), n, (u.count, v.count, self.C),
                    (1, 1), (u.taps, v.taps, self.O),
                    (dx_start + u.first * dx_row + v.first * dx_pixel, dx_image,
                     self.stride[0] * dx_row, self.stride[1] * dx_pixel), (0, 0, 0),
                    (dy_start + u.read * dy_row + v.read * dy_pixel, dy_image, dy_row, dy_pixel,
                     u.read_step * dy_row, v.read_step * dy_pixel, 0, 0),
                    ((u.tap * KW + v.tap) * self.C, self.dx_width, u.tap_step * KW * self.C, v.tap_step * self.C, self.run),
                    (u.read, 1, u.read_step, self.y_size[0], 0), (v.read, 1, v.read_step, self.y_size[1], 0)),
                    2 * n * self.C * self.O * u.count * v.count * u.taps * v.taps))
        return calls
