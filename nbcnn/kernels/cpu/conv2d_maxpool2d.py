"""Convolution, max pooling and perhaps ReLU in one on the CPU: no convolution's output in memory, and a backward without its zeros.

Of the pixels in a pooling window only one, for each channel, has a gradient: the one that `argmax` names. The backward kernels
visit these pixels and no others: for 2x2 windows a quarter of the dense work, less where a ReLU let nothing through.
`argmax` is uint8 and lies in memory as y does: u*pool_w + v for cell (u, v) of the window, NO_WINNER where the ReLU gave 0.

With PAIRS the backward kernels are made for activations in bfloat16, see `conv2d_bfloat16.py`. Its products come in pairs: of two
winners, which lie anywhere. One that is left alone makes a pair with 0, so that an infinite number gives NaN there.
"""
import functools
import math
from collections import namedtuple

import numba
import numpy as np

from nbcnn.kernels.bfloat16 import BFLOAT16
from nbcnn.kernels.cpu import matrix_tile, tile
from nbcnn.kernels.cpu.buffer import Buffer, allocate
from nbcnn.kernels.cpu.conv2d import Conv2d, add_taps, output_places, task_row
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.matrix_tile import IN_PAIR
from nbcnn.kernels.cpu.parallel import THREADS, prange, share
from nbcnn.kernels.operation import NO_WINNER, Call

SUMS = 25 if tile.VECTOR_BYTES == 64 else 12    # vectors of a tile, of 32 or 16 registers
MOST_PARTS = 4                                  # partial sums of a weight gradient: fixed, whatever the number of threads
WORKSPACE = 26 * 1024                           # bytes of x that a task works on, to stay in a first cache of 32 KiB
BLOCK = 64                                      # output channels whose weights for a kernel row stay in the first cache

# How the weight gradient is divided. A task is one of `parts` parts of the samples and one of `groups` groups of outputs. It works
# on strips: `samples` samples, and `rows` rows of their windows. Of x it keeps a copy whose rows have `columns` vectors. A vector
# holds a pixel's channels, in `blocks` vectors for all of them, and a kernel row has `taps` = KW of these; or it holds all that a
# kernel row reads, and `taps` = `blocks` = 1. An output's list of winners has room for `capacity`.
Strips = namedtuple("Strips", "parts groups samples rows columns taps blocks capacity")


@functools.cache
def make_conv2d_maxpool2d_forward(P, V, LANES):
    """The forward kernel for a tile of P places, each with V vectors of output channels."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def conv2d_maxpool2d_forward(y, argmax, x, w, b, low, none, g):
        """y[m, i, j, o] = the largest over the window's u, v of z[m, i*stride_h + u, j*stride_w + v, o]; argmax says which one.

        z is what conv2d_forward computes with a stride of 1; tasks and tiles are as there. Where no z is larger than `low`, y = low
        and argmax = none.
        """
        blocks = (g.O + WIDTH - 1) // WIDTH
        for task in prange((g.n + P - 1) // P * blocks * g.OH):
            first, block, i = task_row(task, P, blocks, g.OH)
            samples, at_y = min(P, g.n - first), first * g.y_step + i * g.OW * g.O + block * WIDTH
            for k in range(0, g.OW * samples, P):
                j, j_last, x_rows, columns, y_rows = output_places(k, P, samples, g)
                for cell in range(g.stride_h * g.stride_w):
                    top, left = i * g.stride_h + cell // g.stride_w - g.padding_h, cell % g.stride_w - g.padding_w
                    p_range = tile.range_inside(top, g.dilation_h, g.KH, g.H)
                    acc = tile.repeat(P, V, b, block * WIDTH)
                    acc = add_taps(acc, x, x_rows, columns, w, block, WIDTH, g, first, top, left, p_range, j, j_last)
                    tile.pool(acc, y, argmax, y_rows, at_y, g.O - block * WIDTH, np.uint8(cell), low, none)

    return conv2d_maxpool2d_forward


@functools.cache
def make_conv2d_maxpool2d_backward_input(P, V, POOL_W, PAIRS, LANES):
    """The kernel of the input gradient for a tile of P pixels, which a window's taps reach in a row, x V vectors of channels.

    With PAIRS it is made for bfloat16, whose products come in pairs. What is added up lies apart from dx then, in float32.
    """
    REST, WIDTH = P - POOL_W, V * LANES
    KW = REST + 1

    @njit(parallel=True, error_model="numpy")
    def conv2d_maxpool2d_backward_input(dx, dy, argmax, sums, w, steps, g, strips):
        """dx[m, r, s, c] = sum over p, q, o of dy[m, i, j, o] * w[o, p, q, c] for the windows (i, j) that pixel (r - p, s - q) won.

        `steps` says how w is stored. A task is one of `strips` strips of rows of a sample, for a block of V vectors of channels.
        Row r of dx gets from row t of the convolution, t = r + padding_h - p, under each p: the windows along that row hand on
        what they won there, one output after another, to the KW pixels under a row of taps. It is added up in `sums`: that is dx
        itself, or with PAIRS memory with a strip for each thread.
        """
        blocks = (g.C + WIDTH - 1) // WIDTH
        tap_rows, one = tile.rows_strided(KW, 0, steps.tap), np.uint64(1)
        zeros, one_row = tile.zero(1, V, dx), tile.rows_strided(1, 0, 0)
        pixel, at_strip = (WIDTH, share() * ((g.H + strips - 1) // strips * g.W * WIDTH)) if PAIRS else (g.C, 0)
        for task in prange(g.n * strips * blocks):
            m, strip, block = task // (strips * blocks), task // blocks % strips, task % blocks
            r_first, r_end = strip * g.H // strips, (strip + 1) * g.H // strips
            c, at_dx = block * WIDTH, m * g.x_step + block * WIDTH
            at_m, lanes = (at_strip - r_first * g.W * WIDTH, WIDTH) if PAIRS else (at_dx, g.C - c)
            for k in range(r_first * g.W, r_end * g.W):
                tile.store(zeros, sums, one_row, at_m + k * pixel, 0, 1, lanes)
            for o_first in range(0, g.O, BLOCK):
                count = min(BLOCK, g.O - o_first)
                for p in range(g.KH):
                    at_w = block * steps.block + p * steps.row + o_first * steps.output
                    for r in range(r_first, r_end):
                        t, s = r + g.padding_h - p, -g.padding_w
                        if t < 0 or t >= g.OH * g.stride_h:
                            continue
                        i, u = t // g.stride_h, t % g.stride_h
                        at_r = at_m + r * g.W * pixel
                        acc = tile.load(P, V, sums, tile.rows_inside(P, at_r + s * pixel, pixel, -s, g.W - s), 0)
                        for j in range(g.OW):
                            at = m * g.y_step + (i * g.OW + j) * g.O + o_first
                            for v in range(POOL_W):
                                won = tile.bytes_equal(argmax, at, count, np.uint8(u * POOL_W + v))
                                while won != np.uint64(0):
                                    o = tile.lowest_bit(won)
                                    won &= won - one
                                    if PAIRS:
                                        other = tile.lowest_bit(won) if won != np.uint64(0) else o     # the last one, alone: with 0
                                        pair = matrix_tile.pair(dy, at + o, at + other, won != np.uint64(0))
                                        acc = matrix_tile.axpy(acc, pair, w, tap_rows, at_w + o * steps.output,
                                                               at_w + other * steps.output, v)
                                        won &= won - one
                                    else:
                                        acc = tile.axpy(acc, tile.get(dy, at + o), w, tap_rows, at_w + o * steps.output, v)
                            tile.store(acc, sums, tile.rows_strided(POOL_W, at_r + s * pixel, pixel), 0, -s, g.W - s, lanes)
                            s += POOL_W
                            rest = s + REST
                            acc = tile.shift(acc, sums, tile.rows_inside(POOL_W, at_r + rest * pixel, pixel, -rest, g.W - rest), 0)
                        tile.store(acc, sums, tile.rows_strided(REST, at_r + s * pixel, pixel), 0, -s, g.W - s, lanes)
            if PAIRS:
                for k in range(r_first * g.W, r_end * g.W):
                    acc = matrix_tile.in_order(tile.load(1, V, sums, one_row, at_m + k * pixel))
                    tile.store(acc, dx, one_row, at_dx + k * g.C, 0, 1, g.C - c)

    return conv2d_maxpool2d_backward_input


@functools.cache
def make_conv2d_maxpool2d_backward_weight(P, Q, V, WIDTH, PAIRS):
    """The kernel of the weight gradient, for a tile of P x Q taps, each WIDTH channels: V vectors of sums.

    With PAIRS it is made for bfloat16, whose products come in pairs: `work` and `values` are bfloat16.
    """
    ROW = Q * V     # vectors

    @njit(parallel=True, error_model="numpy")
    def conv2d_maxpool2d_backward_weight(dw_parts, db_parts, dy, argmax, x, work, values, places, counts, place_of_window,
                                         place_of_cell, g, s):
        """dw_parts[part, block, o, p, q] = sum over m, i, j of dy[m, i, j, o] * x[m, r + p, s + q, block], vectors of WIDTH.

        (r, s) is the pixel that won window (i, j) of sample m and output o. db_parts[part, o] = sum of these dy.

        Of each strip, `values` lists for each output the dy of the windows with a winner, and `places` where in `work`, the copy of
        x, the winner's first tap reads. Then each tap of each output goes through the output's list. The sums lie in dw_parts from
        one strip to the next.
        """
        size = work.size // (s.parts * s.groups)
        for task in prange(s.parts * s.groups):
            part, o_first, o_end = task // s.groups, task % s.groups * g.O // s.groups, (task % s.groups + 1) * g.O // s.groups
            lists, first, stop = task * (values.size // (s.parts * s.groups)), part * g.n // s.parts, (part + 1) * g.n // s.parts
            for m in range(first, max(stop, first + 1), s.samples):         # of no samples too, whose sums are 0
                m_end = min(m + s.samples, stop)
                for i in range(0, g.OH, s.rows):
                    i_end, begins = min(i + s.rows, g.OH), m == first and i == 0
                    list_winners(values, places, lists, counts, task * g.O, db_parts, part * g.O, dy, argmax, place_of_window,
                                 place_of_cell, g, s, m, m_end, i, i_end, o_first, o_end, begins, WIDTH)
                    for block in range(s.blocks):
                        unfold(work, task * size, (task + 1) * size, x, g, s, m, m_end, i, i_end, block * WIDTH, V, WIDTH)
                        for o in range(o_first, o_end):
                            begin = lists + (o - o_first) * s.capacity
                            end = begin + tile.get(counts, task * g.O + o)
                            for p in range(0, g.KH, P):
                                tap_rows = tile.rows_inside(P, 0, s.columns * WIDTH, 0, g.KH - p)
                                dw_rows = tile.rows_inside(P, 0, s.taps * WIDTH, 0, g.KH - p)
                                for q in range(0, s.taps, Q):
                                    at = (((part * s.blocks + block) * g.O + o) * g.KH + p) * s.taps + q
                                    at_tap = task * size + (p * s.columns + q) * WIDTH
                                    acc = (tile.zero(P, ROW, x) if begins else
                                           tile.load(P, ROW, dw_parts, dw_rows, at * WIDTH))
                                    for k in range(begin, end, IN_PAIR if PAIRS else 1):
                                        if PAIRS:
                                            pair = matrix_tile.pair(values, k, k + 1, True)
                                            acc = matrix_tile.axpy(acc, pair, work, tap_rows, at_tap + tile.get(places, k),
                                                                   at_tap + tile.get(places, k + 1), 0)
                                        else:
                                            acc = tile.axpy(acc, tile.get(values, k), work, tap_rows,
                                                            at_tap + tile.get(places, k), 0)
                                    tile.store(acc, dw_parts, dw_rows, at * WIDTH, 0, g.KH - p, Q * WIDTH)

    return conv2d_maxpool2d_backward_weight


# What is part of the kernels that call it, and cached with those: nothing else calls it, so it needs no wrappers.
helper = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)


@helper
def list_winners(values, places, begin, counts, at_counts, db, at_db, dy, argmax, place_of_window, place_of_cell, g, s, m, m_end,
                 i, i_end, o_first, o_end, begins, WIDTH):
    """List each output's dy of a strip, but for windows without a winner, and add them to what `db` has from other strips."""
    zero = tile.number_type(dy)(0)
    for o in range(o_first, o_end):
        count, total = begin, zero
        for sample in range(m, m_end):
            at = sample * g.y_step + i * g.OW * g.O + o
            place = (sample - m) * (s.rows * g.stride_h + g.KH - 1) * s.columns * WIDTH
            for window in range((i_end - i) * g.OW):
                cell, value = tile.get(argmax, at), tile.get(dy, at)
                wins = cell != np.uint8(NO_WINNER)
                tile.put(values, count, value)
                tile.put(places, count, np.int32(place + tile.get(place_of_window, window) + tile.get(place_of_cell, cell)))
                total += value if wins else zero
                count += wins
                at += g.O
        if (count - begin) % IN_PAIR:       # for kernels that read pairs: 0 times what is there already
            tile.put(values, count, zero)
            tile.put(places, count, tile.get(places, count - 1))
        tile.put(counts, at_counts + o, count - begin)
        tile.put(db, at_db + o, total if begins else total + tile.get(db, at_db + o))
        begin += s.capacity


@helper
def unfold(work, to, to_end, x, g, s, m, m_end, i, i_end, c, V, WIDTH):
    """Copy what a strip's windows read of x from channel c on, WIDTH of each pixel, with zeros for pixels beside the image.

    Where a vector holds all that a kernel row reads, an image row with its zeros is first copied to the end of the work space.
    """
    one, zero, whole = tile.rows_strided(1, 0, 0), tile.zero(1, V, work), s.taps < g.KW
    line, line_columns = to_end - (s.columns + g.KW) * g.C - WIDTH, s.columns + g.KW - 1
    for sample in range(m, m_end):
        for row in range((i_end - i) * g.stride_h + g.KH - 1):
            r = i * g.stride_h + row - g.padding_h
            at, columns = sample * g.x_step + r * g.W * g.C + c, g.W if 0 <= r < g.H else 0     # a row beside the image has none
            if whole:
                for k in range(0, line_columns * g.C, WIDTH):
                    tile.store(zero, work, one, line + k, 0, 1, WIDTH)
                count = min(columns, line_columns - g.padding_w) * g.C
                for k in range(0, count, WIDTH):
                    tile.store(tile.load(1, V, x, one, at + k), work, one, line + g.padding_w * g.C + k, 0, 1, count - k)
            at_work = to + ((sample - m) * (s.rows * g.stride_h + g.KH - 1) + row) * s.columns * WIDTH
            for column in range(s.columns):
                if whole:
                    vector = tile.load(1, V, work, one, line + column * g.C)
                else:
                    inside = 0 <= column - g.padding_w < columns
                    vector = tile.load(1, V, x, one, at + (column - g.padding_w) * g.C if inside else g.x_zeros + c)
                tile.store(vector, work, one, at_work + column * WIDTH, 0, 1, WIDTH)


@functools.cache
def make_add_parts(V, WIDTH, PAIRS):
    """What adds the weight gradient's partial sums, and puts their vectors where they belong."""

    @njit(parallel=True)
    def add_parts(dw, db, dw_parts, db_parts, parts, blocks, O, taps, channels, add_dw, add_db):
        """dw[o, tap, block*WIDTH + lane] (+)= dw_parts[0, block, o, tap, lane] + dw_parts[1, ...] + ..., in this order; db too."""
        one, unit = tile.rows_strided(1, 0, 0), dw.dtype.type(1)
        for o in prange(O):
            total = db_parts[o]
            for part in range(1, parts):
                total += db_parts[part * O + o]
            if len(db):
                db[o] = total + db[o] if add_db else total
            for block in range(blocks):
                for tap in range(taps):
                    to, source = (o * taps + tap) * channels + block * WIDTH, ((block * O + o) * taps + tap) * WIDTH
                    acc = tile.load(1, V, dw_parts, one, source)
                    for part in range(1, parts):
                        acc = tile.axpy(acc, unit, dw_parts, one, part * blocks * O * taps * WIDTH + source, 0)
                    if PAIRS:
                        acc = matrix_tile.in_order(acc)
                    if add_dw:
                        acc = tile.axpy(acc, unit, dw, one, to, 0)
                    tile.store(acc, dw, one, to, 0, 1, channels - block * WIDTH)

    return add_parts


@njit(parallel=True)
def conv2d_maxpool2d_backward_bias(sums, dy, argmax, g, parts):
    """sums[part, o] = the sum of dy[m, i, j, o] over the windows with a winner of a part's samples, where weights are frozen."""
    zero = tile.number_type(dy)(0)
    for part in prange(parts):
        row = sums[part * g.O:(part + 1) * g.O]
        row[:] = zero
        for m in range(part * g.n // parts, (part + 1) * g.n // parts):
            for at in range(m * g.y_step, m * g.y_step + g.OH * g.OW * g.O, g.O):
                for o in range(g.O):
                    row[o] += tile.get(dy, at + o) if tile.get(argmax, at + o) != np.uint8(NO_WINNER) else zero


class Conv2dMaxPool2d(Conv2d):
    """A convolution of stride and dilation 1, pooled in windows side by side, its ReLU included where there is one.

    Parameters
    ----------
    x_shape, conv_shape : tuple
        (C, H, W) of the input, (O, OH, OW) of the convolution.
    kernel_size, padding, pool_size : pair of ints
    relu : bool

    Attributes
    ----------
    pairs : bool
        Whether activations are bfloat16, and sums float32. Forward is another operation's then.
    argmax : Buffer of uint8
    """

    pairs = False

    bias_kernel = staticmethod(conv2d_maxpool2d_backward_bias)

    def __init__(self, x_shape, conv_shape, kernel_size, padding, pool_size, relu, dtype):
        super().__init__(x_shape, conv_shape, kernel_size, (1, 1), padding, (1, 1), dtype)
        self.pool_size, self.relu = pool_size, relu
        self.size = conv_shape[1] // pool_size[0], conv_shape[2] // pool_size[1]
        self.product_dtype = np.dtype(BFLOAT16 if self.pairs else dtype)
        (KH, KW), (pool_h, pool_w), width = kernel_size, pool_size, tile.lanes(dtype)

        # Where all that a kernel row reads fits into a vector, it is one; else each pixel is, for so many channels.
        # Pairs gain nothing in the first case: a vector of bfloat16 would be half empty.
        whole = KW * self.C <= width
        vectors, self.dw_product_dtype = (IN_PAIR, self.product_dtype) if self.pairs and not whole else (1, self.dtype)
        width *= vectors
        taps, self.channels = (1, KW * self.C) if whole else (KW, self.C)
        Q = max(q for q in range(1, taps + 1) if taps % q == 0 and (q == 1 or q * vectors <= SUMS))
        P = -(-KH // -(-KH // max(1, SUMS // (Q * vectors))))
        self.dw_tile = P, Q, vectors, width, vectors == IN_PAIR
        columns = self.size[1] * pool_w + taps - 1
        row = columns * width * self.dw_product_dtype.itemsize
        rows = min(self.size[0], max(1, (WORKSPACE - (KH - 1) * row) // (row * pool_h)))
        read = rows * pool_h + KH - 1
        samples = max(1, WORKSPACE // (read * row)) if rows == self.size[0] else 1
        windows = samples * rows * self.size[1]
        self.strips = Strips(1, 1, samples, rows, columns, taps, -(-self.channels // width), -(-windows // IN_PAIR) * IN_PAIR)
        self.work = (samples * read * columns + -(-(columns + KW) * self.C // width) + 1) * width
        (i, j), (u, v) = np.divmod(np.arange(rows * self.size[1]), self.size[1]), np.divmod(np.arange(256), pool_w)
        self.place_of_window = ((i * pool_h * columns + j * pool_w) * width).astype(np.int32)
        self.place_of_cell = ((u * columns + v) * width).astype(np.int32)

        P = KW + pool_w - 1
        width, step = tile.lanes(dtype), IN_PAIR if self.pairs else 1     # pairs fill two vectors of sums
        V = min(range(step, max(step, SUMS // P) + 1, step), key=lambda v: (-(-self.C // (v * width)) * v, -v))
        self.dx_tile = P, V, pool_w, self.pairs, width

    def geometry(self, n, x, y):
        """As of a convolution by windows: OH and OW are the pooled sizes, the strides the window's."""
        (OH, OW), (stride_h, stride_w) = self.size, self.pool_size
        return super().geometry(n, x, y)._replace(OH=OH, OW=OW, stride_h=stride_h, stride_w=stride_w)

    def parts(self, n):
        """Into how many partial sums the weight gradient of n samples is split: it follows from n alone."""
        return max(1, min(MOST_PARTS, n // 8))

    def groups(self, n):
        """Into how many tasks the output channels of a part are split: enough for the threads, and no bit depends on it."""
        return max(1, min(self.O // 4, -(-THREADS // self.parts(n))))

    def reserve(self, batch, argmax=None):
        """Allocate what is kept for backward, the partial sums and the work space, for up to `batch` samples.

        `argmax` is where forward leaves it, unless that is this operation's.
        """
        super().reserve(batch)
        self.argmax = Buffer(batch, (self.O, *self.size), np.uint8) if argmax is None else argmax
        tasks = max(self.parts(n) * self.groups(n) for n in range(batch + 1))
        self.workspace, lists = allocate((tasks, self.work), self.dw_product_dtype), (tasks, self.O * self.strips.capacity)
        self.values, self.places, self.counts = (allocate(shape, dtype) for shape, dtype in (
            (lists, self.dw_product_dtype), (lists, np.int32), ((tasks, self.O), np.int32)))

    def bytes(self, batch):
        tasks, itemsize = MOST_PARTS + THREADS, self.dw_product_dtype.itemsize
        argmax = 0 if self.pairs else Buffer.elements(batch, (self.O, *self.size))
        return (super().bytes(batch) + argmax
                + tasks * (self.work * itemsize + self.O * self.strips.capacity * (itemsize + 4) + 4 * self.O))

    def sums(self, batch):
        """Elements of the partial sums of dw and of db, and no workspace of this kind."""
        s, outputs = self.strips, self.parts(batch) * self.O
        return outputs * s.blocks * self.kernel_size[0] * s.taps * self.dw_tile[3], outputs, 0

    def forward(self, n, y, x, params):
        """y = the largest of each window of conv(x, w) + b, and of 0 with a ReLU."""
        low, none = (0, NO_WINNER) if self.relu else (-np.inf, 0)
        P, V, width = self.forward_tile(n)
        return [self.pack(params, V * width), Call(make_conv2d_maxpool2d_forward(P, V, width), (
            y.array, self.argmax.array, x.array, self.packed_w, self.packed_b, self.dtype.type(low), np.uint8(none),
            self.geometry(n, x, y)), self.flop(n) * math.prod(self.pool_size))]

    def bias_arguments(self, dy):
        return dy.array, self.argmax.array

    def backward_weight(self, n, dparams, dy, x, add):
        """dw and db: partial sums over parts of the batch, then their sum."""
        (dw, db), s = dparams, self.strips._replace(parts=self.parts(n), groups=self.groups(n))
        tasks = s.parts * s.groups
        return [
            Call(make_conv2d_maxpool2d_backward_weight(*self.dw_tile), (
                self.dw_parts, self.db_parts, dy.array, self.argmax.array, x.array, self.workspace[:tasks],
                self.values[:tasks], self.places[:tasks], self.counts, self.place_of_window, self.place_of_cell,
                self.geometry(n, x, dy), s), self.flop(n)),
            Call(make_add_parts(*self.dw_tile[2:]), (
                dw, self.zeros[:0] if db is None else db, self.dw_parts, self.db_parts, s.parts, s.blocks, self.O,
                self.kernel_size[0] * s.taps, self.channels, *add))]

    def backward_input(self, n, dx, dy, w):
        """dx."""
        calls, *weights = self.weights_for_input(n, w)
        return [*calls, Call(make_conv2d_maxpool2d_backward_input(*self.dx_tile), (
            dx.array, dy.array, self.argmax.array, self.input_sums(dx), *weights, self.geometry(n, dx, dy), self.input_strips(n)),
            self.flop(n))]

    def input_strips(self, n):
        """Into how many strips the rows of an image are divided for the input gradient of n samples."""
        return max(1, min(self.x_size[0] // 4, -(-2 * THREADS // max(1, n))))

    def input_sums(self, dx):
        """Where the input gradient is added up."""
        return dx.array

    def flop(self, n):
        """Of the formula, where one pixel of each window counts."""
        return 2 * n * self.O * self.run * math.prod(self.size)
