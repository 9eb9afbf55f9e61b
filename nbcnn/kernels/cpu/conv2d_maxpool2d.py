"""Convolution, max pooling and perhaps ReLU in one on the CPU: no conv output in memory, and a backward pass that leaves out zeros.

Of the pixels in a pooling window only one, for each channel, has a gradient: where `cells` says the largest value stood. The
backward kernels visit these pixels and no others, for 2x2 windows a quarter of the dense work, less where a ReLU let
nothing through.
`cells` (batch, PH, PW, O) is uint8: u*WW + v for cell (u, v) of the window, NOBODY where the ReLU gave 0.
"""
import functools
import math

import numba
import numpy as np
from numba import prange

from nbcnn.kernels.cpu.buffer import allocate
from nbcnn.kernels.cpu.conv2d import Conv2d, make_correlate
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import PARALLEL
from nbcnn.kernels.cpu.tile import (
    TILE_VERSION,
    VECTOR_BYTES,
    cells_equal,
    get,
    lanes,
    lowest_bit,
    put,
    rows_inside,
    rows_strided,
    tile_axpy,
    tile_load,
    tile_outer,
    tile_shift,
    tile_store,
)
from nbcnn.kernels.operation import NOBODY, Call

SUMS = 25 if VECTOR_BYTES == 64 else 12         # vectors of a tile, of 32 or 16 registers
MOST_PARTS = 4                                  # partial sums of a weight gradient: fixed, whatever the number of threads
WORKSPACE = 26 * 1024                           # bytes of x that a task works on, to stay in a first cache of 32 KiB
BLOCK = 64                                      # output channels whose weights for a kernel row stay in the first cache


@numba.njit       # part of the kernel that calls it, and cached with that
def list_winners(g, at, count, dy, cells, source, step, windows, base, cell_at):
    """List dy (.., step) from `source` on with where its vectors begin, leaving out what nobody won; where the list ends."""
    for k in range(windows):
        cell = get(cells, source)
        put(g, count, get(dy, source))
        put(at, count, get(base, k) + get(cell_at, cell))
        count += cell != np.uint8(NOBODY)
        source += step
    return count


@functools.cache
def make_sparse_weight_gradient(P, Q, LANES, VERSION=TILE_VERSION):
    """The weight gradient at the winning pixels, for a tile of P x Q taps, each a vector of channels."""

    @njit(parallel=PARALLEL, error_model="numpy")
    def weight_gradient(dw_parts, db_parts, dy, cells, x, unit, unfolded, g, at, counts, base, cell_at, n, split, size, taps,
                        window, strip, columns, x_at):
        """dw_parts[part, block, o, p, q, lane] = sum of dy[m, i, j, o] * x[pixel + (p, q), lane], db_parts[part, o] = sum of dy.

        The pixel is the one that won window (m, i, j) of channel o. split = (parts, groups of output channels), size = (PH, PW, O),
        taps = (KH, taps of a row, blocks of channels), strip = (pictures, rows of windows) worked on at a time, x_at = (start,
        image, row, pixel). Copied to `unfolded` (task, picture, row, column, LANES), which the first cache holds, whatever a tap
        touches is one aligned vector; `base` says where there window k of a strip begins, cell_at how far from that a cell is,
        and g and at (task, o, k) list the gradients that are not left out with the vectors they begin at.
        """
        _ = VERSION
        parts, groups = split
        PH, PW, O = size
        KH, KW, blocks = taps
        pictures, rows_of_windows = strip
        capacity = pictures * rows_of_windows * PW
        unfolded_rows = rows_of_windows * window[0] + KH - 1
        one, zero = rows_strided(1, 0, 0), dy.dtype.type(0)
        lists_size, work_size = g.size // (parts * groups), unfolded.size // (parts * groups)
        for task in prange(parts * groups):
            part, o_start, o_stop = task // groups, task % groups * O // groups, (task % groups + 1) * O // groups
            start, stop = part * n // parts, (part + 1) * n // parts
            work, lists = task * work_size, task * lists_size
            for block in range(blocks):
                begin = ((part * blocks + block) * O + o_start) * KH * KW * LANES
                for k in range(begin, begin + (o_stop - o_start) * KH * KW * LANES):
                    put(dw_parts, k, zero)
            for k in range((part * O + o_start) * LANES, (part * O + o_stop) * LANES):
                put(db_parts, k, zero)
            for m in range(start, stop, pictures):
                m_stop = min(m + pictures, stop)
                for i in range(0, PH, rows_of_windows):
                    i_stop = min(i + rows_of_windows, PH)
                    windows = (m_stop - m) * (i_stop - i) * PW          # contiguous: one picture, or whole pictures
                    first = (m * PH + i) * PW
                    for o in range(o_start, o_stop):
                        begin = lists + (o - o_start) * capacity
                        count = list_winners(g, at, begin, dy, cells, first * O + o, O, windows, base, cell_at)
                        put(counts, task * O + o, count - begin)
                        for k in range(count, count + LANES):
                            put(g, k, zero)
                        sums = tile_load(1, 1, db_parts, one, (part * O + o) * LANES)
                        for k in range(begin, count, LANES):
                            sums = tile_outer(sums, unit, one, 0, g, k)
                        tile_store(sums, db_parts, one, (part * O + o) * LANES, 0, 1, LANES)
                    for block in range(blocks):
                        for picture in range(m_stop - m):
                            from_row = x_at[0] + (m + picture) * x_at[1] + i * window[0] * x_at[2] + block * LANES
                            to_row = work + picture * unfolded_rows * columns * LANES
                            for r in range((i_stop - i) * window[0] + KH - 1):
                                for s in range(columns):
                                    vector = tile_load(1, 1, x, one, from_row + r * x_at[2] + s * x_at[3])
                                    tile_store(vector, unfolded, one, to_row + (r * columns + s) * LANES, 0, 1, LANES)
                        for o in range(o_start, o_stop):
                            listed = lists + (o - o_start) * capacity
                            count = get(counts, task * O + o)
                            for p in range(0, KH, P):
                                tap_rows = rows_inside(P, 0, columns * LANES, 0, KH - p)
                                dw_rows = rows_inside(P, 0, KW * LANES, 0, KH - p)
                                for q in range(0, KW, Q):
                                    to = (((part * blocks + block) * O + o) * KH * KW + p * KW + q) * LANES
                                    from_tap = work + (p * columns + q) * LANES
                                    acc = tile_load(P, Q, dw_parts, dw_rows, to)
                                    for k in range(listed, listed + count):
                                        acc = tile_axpy(acc, get(g, k), unfolded, tap_rows, from_tap + get(at, k), 0)
                                    tile_store(acc, dw_parts, dw_rows, to, 0, KH - p, Q * LANES)

    return weight_gradient


@functools.cache
def make_add_tiles(LANES, VERSION=TILE_VERSION):
    """What adds the weight gradient's partial sums, and puts their vectors where they belong."""

    @njit(parallel=PARALLEL)
    def add_tiles(dw, db, dw_parts, db_parts, parts, size, add_dw, add_db):
        """dw[o, tap, block*LANES + lane] (+)= dw_parts[0, block, o, tap, lane] + dw_parts[1, ...] + ..., in this order; db too.

        size = (blocks, O, taps, channels of a tap in dw).
        """
        _ = VERSION
        blocks, O, taps, channels = size
        one, unit = rows_strided(1, 0, 0), dw.dtype.type(1)
        for o in prange(O):
            total = db_parts[o * LANES]
            for k in range(1, parts * LANES):
                total += db_parts[(k // LANES * O + o) * LANES + k % LANES]
            if len(db):
                db[o] = total + db[o] if add_db else total
            for block in range(blocks):
                for tap in range(taps):
                    to, source = (o * taps + tap) * channels + block * LANES, ((block * O + o) * taps + tap) * LANES
                    acc = tile_load(1, 1, dw_parts, one, source)
                    for part in range(1, parts):
                        acc = tile_axpy(acc, unit, dw_parts, one, part * blocks * O * taps * LANES + source, 0)
                    if add_dw:
                        acc = tile_axpy(acc, unit, dw, one, to, 0)
                    tile_store(acc, dw, one, to, 0, 1, channels - block * LANES)

    return add_tiles


@functools.cache
def make_sparse_input_gradient(P, V, WW, LANES, VERSION=TILE_VERSION):
    """The input gradient from the winning pixels, for a tile of P pixels, which a window's taps reach in a row, x V vectors."""
    REST = P - WW
    KW = REST + 1

    @njit(parallel=PARALLEL, error_model="numpy")
    def input_gradient(dx, dy, cells, w, n, strips, size, channels, KH, WH, padding, dx_at):
        """dx[m, pixel + (p, q), c] = sum of dy[m, i, j, o] * w[o, p, q, c], the pixel the one that won window (i, j) of channel o.

        size = (PH, PW, O, H, W); dx_at = (start, image, row, pixel). A task is one of `strips` strips of rows of a picture, for V
        vectors of channels. Row r of dx gets from row t = r + padding - p of the conv output under each p: the windows along that
        row hand on what they won there, one channel after another, to the KW pixels under a row of taps.
        """
        _ = VERSION
        PH, PW, O, H, W = size
        blocks = (channels + V * LANES - 1) // (V * LANES)
        tap_rows, one, zero = rows_strided(KW, 0, channels), np.uint64(1), dx.dtype.type(0)
        pixel, w_step = dx_at[3], KH * KW * channels
        for task in prange(n * strips * blocks):
            m, strip, block = task // (strips * blocks), task // blocks % strips, task % blocks
            c = block * V * LANES
            c_stop = min(channels, c + V * LANES)
            r_start, r_stop = strip * H // strips, (strip + 1) * H // strips
            for r in range(r_start, r_stop):
                for s in range(W):
                    at = dx_at[0] + m * dx_at[1] + r * dx_at[2] + s * dx_at[3]
                    for k in range(at + c, at + c_stop):
                        put(dx, k, zero)
            for o_start in range(0, O, BLOCK):
                count = min(BLOCK, O - o_start)
                for p in range(KH):
                    at_w = (o_start * KH + p) * KW * channels + c
                    for r in range(r_start, r_stop):
                        t = r + padding[0] - p
                        if t < 0 or t >= PH * WH:
                            continue
                        i, u = t // WH, t % WH
                        row_at, s = dx_at[0] + m * dx_at[1] + r * dx_at[2] + c, -padding[1]
                        acc = tile_load(P, V, dx, rows_inside(P, row_at + s * pixel, pixel, -s, W - s), 0)
                        for j in range(PW):
                            at = ((m * PH + i) * PW + j) * O + o_start
                            for v in range(WW):
                                won = cells_equal(cells, at, count, np.uint8(u * WW + v))
                                while won != np.uint64(0):
                                    o = lowest_bit(won)
                                    won &= won - one
                                    acc = tile_axpy(acc, get(dy, at + o), w, tap_rows, at_w + o * w_step, v)
                            tile_store(acc, dx, rows_strided(WW, row_at + s * pixel, pixel), 0, -s, W - s, channels - c)
                            acc = tile_shift(acc, dx, rows_inside(WW, row_at + (s + P) * pixel, pixel, -(s + P), W - (s + P)), 0)
                            s += WW
                        tile_store(acc, dx, rows_strided(REST, row_at + s * pixel, pixel), 0, -s, W - s, channels - c)

    return input_gradient


class Conv2dMaxPool2d(Conv2d):
    """A convolution of stride and dilation 1, pooled in windows side by side, its ReLU included where there is one.

    Parameters
    ----------
    x_shape, conv_shape : tuple
        (C, H, W) of the input, (O, OH, OW) of the convolution.
    kernel_size, padding, window : pair of ints
    relu : bool

    Attributes
    ----------
    cells : uint8 array (batch, PH, PW, O)
    """

    def __init__(self, x_shape, conv_shape, kernel_size, padding, window, relu, dtype):
        super().__init__(x_shape, conv_shape, kernel_size, (1, 1), padding, (1, 1), dtype)
        self.dy_border = (0, 0)
        self.window, self.relu = window, relu
        self.size = conv_shape[1] // window[0], conv_shape[2] // window[1]
        KH, KW = kernel_size
        width = lanes(dtype)

        # Where a row of taps fits into a vector, it is one; else each tap is, for so many channels.
        joined = KW * self.C <= width
        self.row_taps, self.row_channels = (1, KW * self.C) if joined else (KW, self.C)
        self.blocks = -(-self.row_channels // width)
        Q = max(q for q in range(1, self.row_taps + 1) if self.row_taps % q == 0 and q <= SUMS)
        P = -(-KH // -(-KH // (SUMS // Q)))
        self.sparse_weight_gradient = make_sparse_weight_gradient(P, Q, width)
        self.columns = self.size[1] * window[1] + self.row_taps - 1
        line = self.columns * width * self.dtype.itemsize * window[0]
        rows = min(self.size[0], max(1, (WORKSPACE - (KH - 1) * line // window[0]) // line))
        self.unfolded_rows = rows * window[0] + KH - 1
        self.strip = max(1, WORKSPACE // (self.unfolded_rows * line // window[0])) if rows == self.size[0] else 1, rows
        k = np.arange(math.prod(self.strip) * self.size[1])
        picture, i, j = k // (rows * self.size[1]), k // self.size[1] % rows, k % self.size[1]
        column = j * window[1] * width
        self.base = ((picture * self.unfolded_rows + i * window[0]) * self.columns * width + column).astype(np.int32)
        self.cell_at = np.zeros(256, np.int32)
        for cell in range(math.prod(window)):
            self.cell_at[cell] = (cell // window[1] * self.columns + cell % window[1]) * width

        P = KW + window[1] - 1
        vectors = -(-self.C // width)
        V = min(range(1, max(1, SUMS // P) + 1), key=lambda v: (-(-vectors // v) * v, -v))
        self.sparse_input_gradient = make_sparse_input_gradient(P, V, window[1], width)

    def parts(self, n):
        """Into how many partial sums the weight gradient of n pictures is split: it follows from n alone."""
        return max(1, min(MOST_PARTS, n // 8))

    def groups(self, n):
        """Into how many tasks the output channels of a part are split: enough for the threads, and no bit depends on it."""
        return max(1, min(self.O // 4, -(-numba.config.NUMBA_NUM_THREADS // self.parts(n))))

    def reserve(self, batch):
        """Allocate what is kept for backward, the partial sums and the workspace, for up to `batch` pictures."""
        self.cells = allocate((batch, *self.size, self.O), np.uint8)
        parts, width = self.parts(batch), lanes(self.dtype)
        self.dw_parts = allocate((parts * self.blocks * self.O * self.kernel_size[0] * self.row_taps * width,), self.dtype)
        self.db_parts = allocate((parts * self.O * width,), self.dtype)
        tasks = max(self.parts(n) * self.groups(n) for n in range(1, batch + 1)) if batch else 1
        capacity = self.O * math.prod(self.strip) * self.size[1]
        self.unfolded = allocate((tasks, self.strip[0] * self.unfolded_rows * self.columns * width), self.dtype)
        self.g = allocate((tasks, capacity + width), self.dtype)
        self.at = allocate((tasks, capacity + width), np.int32)
        self.counts = allocate((tasks, self.O), np.int32)

    def bytes(self, batch):
        width, itemsize, capacity = lanes(self.dtype), self.dtype.itemsize, self.O * math.prod(self.strip) * self.size[1]
        sums = self.parts(batch) * self.O * width * (self.blocks * self.kernel_size[0] * self.row_taps + 1)
        tasks, work = MOST_PARTS + numba.config.NUMBA_NUM_THREADS, self.strip[0] * self.unfolded_rows * self.columns * width
        return (batch * math.prod(self.size) * self.O + sums * itemsize
                + tasks * (work * itemsize + (capacity + width) * (itemsize + 4) + 4 * self.O))

    def cells_view(self):
        """The cells in PyTorch's shape, a view."""
        return self.cells.transpose(0, 3, 1, 2)

    def set_cells(self, cells):
        """Take over cells in PyTorch's shape."""
        self.cells_view()[...] = cells

    def forward(self, n, y, x, params):
        """y = the largest of each window of conv(x, w) + b, and of 0 with a ReLU."""
        _, PH, PW, O = self.cells.shape
        return [self._pack(params), self._correlate(
            n, y.array, y.strides, x, self.size, make_correlate(*self.tile), self.cells, (PH * PW * O, PW * O, O),
            self.window, *((0, NOBODY) if self.relu else (-np.inf, 0)))]

    def weight_backward(self, n, dparams, dy, x, add):
        """dw and db: partial sums over parts of the batch, then their sum."""
        parts, KH, width = self.parts(n), self.kernel_size[0], lanes(self.dtype)
        groups, (dw, db) = self.groups(n), dparams
        tasks = parts * groups
        return [
            Call(self.sparse_weight_gradient, (
                self.dw_parts, self.db_parts, dy.array, self.cells, x.array, self.one, self.unfolded[:tasks], self.g[:tasks],
                self.at[:tasks], self.counts, self.base, self.cell_at, n, (parts, groups), (*self.size, self.O),
                (KH, self.row_taps, self.blocks), self.window, self.strip, self.columns, self._x_at(x)[:4]), self._flop(n)),
            Call(make_add_tiles(width), (
                dw, self.zeros[:0] if db is None else db, self.dw_parts, self.db_parts, parts,
                (self.blocks, self.O, KH * self.row_taps, self.row_channels), *add))]

    def input_backward(self, n, dx, dy, w):
        """dx, from the winning pixels."""
        strips = max(1, min(self.x_size[0] // 4, -(-2 * numba.config.NUMBA_NUM_THREADS // n))) if n else 1
        return [Call(self.sparse_input_gradient, (
            dx.array, dy.array, self.cells, w, n, strips, (*self.size, self.O, *self.x_size), self.C, self.kernel_size[0],
            self.window[0], self.padding, dx.strides), self._flop(n))]

    def _flop(self, n):
        """Of either gradient: one pixel of each window."""
        return 2 * n * self.O * self.run * math.prod(self.size)
