"""Convolution on the GPU: forward, the gradient of the input, the gradients of the weights and of the bias.

Forward and the gradient of the input are correlations: one kernel text, `correlation`, computes both, under the name of what it
computes. The gradients of weights and bias have a text of their own. Images are (N, C, H, W) in memory, weights (O, KH, KW, C). A
kernel is compiled for one geometry: names in capitals are constants. Only the number of samples is not.
"""
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from nbcnn.kernels.cuda.buffer import Buffer, nothing
from nbcnn.kernels.cuda.compat import ALIGNMENT, WARP, Launch, cuda, kernel
from nbcnn.kernels.cuda.gradients import Gradient
from nbcnn.kernels.cuda.losses import BLOCK, block_sum
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put, tile_put, tile_taps, tile_winners, tile_zero
from nbcnn.kernels.operation import NO_WINNER, Call, Operation

MOST_THREADS = 256          # of a block of a gradient: then a thread can have 255 registers
SHARED = 48 * 1024          # bytes of shared memory that a block may have
MOST_PARTS, MOST_SUMS = 512, 2 ** 21    # of a weight gradient: partial sums, and numbers in them; enough blocks, few bytes


def extent(count, step, taps, tap_step):
    """How many rows, or columns, of the input so many rows, or columns, of pixels read."""
    return (count - 1) * step + max(0, taps - 1) * tap_step + 1


def round_up_to_warp(count):
    """The threads of the whole warps that hold `count` threads: all threads of a warp should take the same branches."""
    return -(-count // WARP) * WARP


def pixels_of_a_thread(size):
    """The (rows, columns) of pixels that a thread computes where nothing is pooled."""
    rows, columns = size
    return min(2, rows), min(2, columns)


def largest_divisor(total, most):
    """The largest divisor of `total` up to `most`; `most` itself where there is none above half of it."""
    return next((k for k in range(most, most // 2, -1) if total % k == 0), most)


@functools.cache
def correlation_tile(x_shape, y_shape, pixels, pooled, taps, reads, itemsize):
    """A block's part of a correlation: around 128 threads of up to 32 sums each, and as many channels as shared memory holds."""
    (C, *_), (O, *size) = x_shape, y_shape
    rows, columns = size if pooled else (-(-n // k) for n, k in zip(size, pixels, strict=True))
    TY, TX = min(8, rows), min(8, columns)
    OC = 8 if TY * TX > 16 and math.prod(pixels) <= 4 else 4
    groups = max(1, min(128 // (TY * TX), -(-O // OC)))
    while True:
        IY, IX = (extent(count * cell, step, tap, tap_step)
                  for count, cell, (_, step, tap_step), tap in zip((TY, TX), pixels, reads, taps, strict=True))
        channel = (IY * IX + math.prod(taps) * (groups * OC + 4)) * itemsize
        if channel <= SHARED or (TY, TX, groups) == (1, 1, 1):
            break
        groups, TY, TX = (groups // 2, TY, TX) if groups > 1 else (1, -(-TY // 2), -(-TX // 2))
    if channel > SHARED:
        KH, KW = taps
        raise ValueError(f"w: expected kernels of which one channel fits into a GPU's shared memory, got {KH}x{KW}")
    return TY, TX, groups, OC, largest_divisor(C, max(1, min(C, SHARED * 2 // 3 // channel)))


@functools.cache
def backward_weight_tile(x_shape, y_shape, pool_size, taps, reads, itemsize):
    """A block's part of the weight gradient: up to MOST_THREADS threads, and as many rows of windows as shared memory holds."""
    (C, *_), (O, PH, PW), (KH, KW), (pool_h, pool_w) = x_shape, y_shape, taps, pool_size
    (_, step_h, tap_h), (_, step_w, tap_w) = reads
    # All taps of a channel in a thread take the fewest instructions, if there are channels for whole warps and registers.
    whole = C % WARP == 0 and KH * KW <= 25
    Q, OC = (KW, max(1, 100 // (KH * KW))) if whole else (1, 8 if KH <= 8 else 4)
    OC = min(OC, 8)
    channels = min(C, WARP) if whole else min(C, max(1, MOST_THREADS // KW))
    columns = extent(PW * pool_w, step_w, KW, tap_w)
    while True:
        groups = max(1, min(-(-O // OC), MOST_THREADS // round_up_to_warp(KW // Q * channels)))
        x_row, dy_row = columns * (channels | 1) * itemsize, PW * groups * OC * (itemsize + 1)
        rows = next((k for k in range(min(PH, 4), 0, -1)
                     if extent(k * pool_h, step_h, KH, tap_h) * x_row + k * dy_row <= SHARED * 5 // 6), 0)
        if rows or channels == 1:
            break
        channels = -(-channels // 2)
    if KW > 1024:
        raise ValueError(f"w: expected kernels of at most 1024 columns, a thread of a block for each, got {KW}")
    if not rows:
        raise ValueError(f"x: expected images of which a few rows fit into a GPU's shared memory, got {columns} columns")
    return channels, Q, groups, OC, -(-PH // -(-PH // rows))


def backward_weight_threads(tile, taps):
    """The threads that such a tile keeps busy."""
    (channels, columns, groups, outputs, _), (_, KW) = tile, taps
    return max(round_up_to_warp(KW // columns * channels) * groups, round_up_to_warp(groups * outputs))


@functools.cache
def make_correlation(NAME, TILE, X_SHAPE, Y_SHAPE, PIXELS, POOLED, TAPS, READS, W_STEPS, Y_STEPS, VERSION=CODE_VERSION):
    """The kernel conv2d_forward, conv2d_backward_input or conv2d_maxpool2d_forward, whichever NAME says: a correlation.

    TILE = (rows, columns of threads, groups of outputs, outputs of a thread, input channels at a time): a block's part of the work.
    X_SHAPE = (C, H, W), Y_SHAPE = (O, rows, columns) of pixels or, POOLED, of windows. PIXELS = (rows, columns) of pixels that a
    thread computes: a window where they are pooled. READS = for rows and for columns (first, step of an output pixel, step of a
    tap). W_STEPS = steps in w of (start, o, c, p, q), Y_STEPS = steps in y of (start, sample, o, row, column).
    """
    TY, TX, GROUPS, OC, CK = TILE
    (C, H, W), (O, OH, OW), (TH, TW), (KH, KW) = X_SHAPE, Y_SHAPE, PIXELS, TAPS
    (R0, SH, DH), (S0, SW, DW) = READS
    W0, WO, WC, WP, WQ = W_STEPS
    Y0, YN, YO, YI, YJ = Y_STEPS
    GROUP_THREADS, OUTPUTS = TY * TX, GROUPS * OC
    THREADS = GROUP_THREADS * GROUPS
    TILES_X = -(-OW // (TX if POOLED else TX * TW))
    TILES = TILES_X * -(-OH // (TY if POOLED else TY * TH))
    IY, IX = extent(TY * TH, SH, KH, DH), extent(TX * TW, SW, KW, DW)       # the block's part of x
    ROW = OUTPUTS + 4       # a tap's weights: multiples of 16 bytes, and neighbouring taps in different banks
    X_SIZE, W_SIZE, ACC = CK * IY * IX, max(1, CK * KH * KW) * ROW, TH * TW * OC
    PIXEL_ROW, TAP_ROW = SH * IX, DH * IX
    P = KH if KH * KW * TH * TW * OC <= 1024 else min(KH, 1)      # rows of taps in one piece of code

    @kernel(THREADS, NAME)
    def correlation(y, argmax, x, w, b, low, none):
        """y[m, o, pixel] = b[o] + sum over (c, p, q) of x[m, c, x's pixel + (p, q)] * w[o, p, q, c]: a block has a tile of y[m].

        Pooled: y = the largest of a window's sums, argmax = its cell; where no sum is larger than `low`, y = low and argmax = none.
        """
        _ = VERSION
        xs = cuda.shared.array(X_SIZE, x.dtype)
        ws = cuda.shared.array(W_SIZE, x.dtype, ALIGNMENT)
        acc = cuda.local.array(ACC, x.dtype)
        zero = x.dtype.type(0)
        t = cuda.threadIdx.x
        group, ty, tx = t // GROUP_THREADS, t % GROUP_THREADS // TX, t % TX
        m, tile = cuda.blockIdx.x // TILES, cuda.blockIdx.x % TILES
        o_block = cuda.blockIdx.y * OUTPUTS
        i, j = tile // TILES_X * TY, tile % TILES_X * TX        # of the first thread
        r_first, s_first = i * TH * SH + R0, j * TW * SW + S0
        tile_zero(acc, ACC)
        for c_first in range(0, C, CK):
            for k in range(t, IY * IX, THREADS):
                r, s = r_first + k // IX, s_first + k % IX
                inside = 0 <= r < H and 0 <= s < W
                at_x = ((m * C + c_first) * H + r) * W + s
                for c in range(CK):
                    put(xs, c * IY * IX + k, get(x, at_x + c * H * W) if inside and c_first + c < C else zero)
            for k in range(t, OUTPUTS * KH * KW, THREADS):
                tap, o = k % (KH * KW), k // (KH * KW)
                at_w = W0 + (o_block + o) * WO + c_first * WC + tap // KW * WP + tap % KW * WQ
                for c in range(CK):
                    put(ws, (c * KH * KW + tap) * ROW + o, get(w, at_w + c * WC) if c_first + c < C and o_block + o < O else zero)
            cuda.syncthreads()
            for c in range(CK):
                for p in range(0, KH, max(1, P)):
                    tile_taps(acc, xs, (c * IY + ty * TH * SH + p * DH) * IX + tx * TW * SW, ws,
                              (c * KH + p) * KW * ROW + group * OC, (TH, TW), (P, KW), (PIXEL_ROW, SW, TAP_ROW, DW), ROW, OC)
            cuda.syncthreads()
        i, j, o_first = i + ty, j + tx, o_block + group * OC
        at_y = Y0 + m * YN + o_first * YO
        for o in range(OC):
            if o_first + o < O:
                bias = get(b, o_first + o) if len(b) > 0 else zero
                if POOLED:
                    best, won = low, none
                    for k in range(TH * TW):
                        z = acc[k * OC + o] + bias
                        if z > best or z != z:
                            best, won = z, k
                    if i < OH and j < OW:
                        put(y, at_y + o * YO + i * YI + j * YJ, best)
                        put(argmax, at_y + o * YO + i * YI + j * YJ, won)
                else:
                    for k in range(TH * TW):
                        row, column = i * TH + k // TW, j * TW + k % TW
                        if row < OH and column < OW:
                            put(y, at_y + o * YO + row * YI + column * YJ, acc[k * OC + o] + bias)

    return correlation, (TILES, -(-O // OUTPUTS)), THREADS


@functools.cache
def make_backward_weight_part(TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, READS, THREADS):
    """What a block of so many threads does for dw and db: a device function, its blocks for each part, and its memory.

    TILE = (channels, columns of taps of a thread, groups of outputs, outputs of a thread, rows of windows at a time). X_SHAPE =
    (C, H, W), Y_SHAPE = (O, PH, PW): windows of pixels, of one pixel where there is no pooling. READS as in the correlation.
    """
    CB, Q, GROUPS, OC, ROWS = TILE
    (C, H, W), (O, PH, PW), (POOL_H, POOL_W), (KH, KW) = X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS
    (R0, SH, DH), (S0, SW, DW) = READS
    RUN = KW // Q * CB
    LANES, OUTPUTS = round_up_to_warp(RUN), GROUPS * OC
    C_BLOCKS, O_BLOCKS = -(-C // CB), -(-O // OUTPUTS)
    IY, IX = extent(ROWS * POOL_H, SH, KH, DH), extent(PW * POOL_W, SW, KW, DW)
    CP = CB | 1             # odd: neighbouring pixels lie in different banks
    SPARSE = POOL_H * POOL_W > 1
    DY, ACC, SUMS = IY * IX * CP, OC * KH * Q, KH * Q       # in `floats` x comes first, and dy begins at DY
    TAP_ROW, TAP_STEP, DOWN, RIGHT = DH * IX * CP, DW * CP, SH * IX * CP, SW * CP
    O_STEP, TAP = KH * KW * C, C if Q == KW else KW * C     # a thread's taps are evenly spaced in w
    DY_SIZE, STRIPS = ROWS * PW * OUTPUTS, -(-PH // ROWS)

    @cuda.jit(device=True)
    def backward_weight_part(block, floats, won, partial, dy, argmax, x, at_w, at_b, size, n, parts):
        acc = cuda.local.array(ACC, x.dtype)
        zero = x.dtype.type(0)
        t = cuda.threadIdx.x
        group, lane = t // LANES, t % LANES
        part, o_block = block // (C_BLOCKS * O_BLOCKS), block // C_BLOCKS % O_BLOCKS * OUTPUTS
        c_first = block % C_BLOCKS * CB
        q, c = lane // CB * Q, c_first + lane % CB
        busy = group < GROUPS and lane < RUN and c < C
        total = zero
        tile_zero(acc, ACC)
        for strip in range(part * n * STRIPS // parts, (part + 1) * n * STRIPS // parts):
            m, i = strip // STRIPS, strip % STRIPS * ROWS
            for k in range(t, IY * IX, THREADS):
                r, s = i * POOL_H * SH + R0 + k // IX, S0 + k % IX
                inside = 0 <= r < H and 0 <= s < W
                at_x = ((m * C + c_first) * H + r) * W + s
                for channel in range(CB):
                    put(floats, k * CP + channel, get(x, at_x + channel * H * W) if inside and c_first + channel < C else zero)
            windows = min(ROWS, PH - i) * PW
            for k in range(t, DY_SIZE, THREADS):
                window, o = k % (ROWS * PW), k // (ROWS * PW)
                at_dy = ((m * O + o_block + o) * PH + i) * PW + window
                inside = window < windows and o_block + o < O
                if inside and not SPARSE and len(argmax) > 0:       # windows of one cell, which a ReLU may have emptied
                    inside = get(argmax, at_dy) != NO_WINNER
                put(floats, DY + window * OUTPUTS + o, get(dy, at_dy) if inside else zero)
                if SPARSE:
                    put(won, window * OUTPUTS + o, get(argmax, at_dy) if inside else NO_WINNER)
            cuda.syncthreads()
            if busy:
                tap = q * DW * CP + lane % CB
                for window in range(windows):
                    at_x = (window // PW * POOL_H * SH * IX + window % PW * POOL_W * SW) * CP + tap
                    at_dy = window * OUTPUTS + group * OC
                    tile_winners(acc, floats, DY + at_dy, won, at_dy, floats, at_x, OC, (KH, Q), (POOL_H, POOL_W),
                                 (TAP_ROW, TAP_STEP, DOWN, RIGHT))
            if t < OUTPUTS:
                for window in range(windows):
                    if not SPARSE or get(won, window * OUTPUTS + t) != NO_WINNER:
                        total += get(floats, DY + window * OUTPUTS + t)
            cuda.syncthreads()
        if busy:
            o = o_block + group * OC
            tile_put(acc, partial, part * size + at_w + (o * KH * KW + q) * C + c, O - o, (OC, SUMS), (O_STEP, TAP))
        if at_b >= 0 and t < OUTPUTS and o_block + t < O and c_first == 0:
            put(partial, part * size + at_b + o_block + t, total)

    return backward_weight_part, O_BLOCKS * C_BLOCKS, DY + DY_SIZE, DY_SIZE if SPARSE else 1


@functools.cache
def make_backward_weight(NAME, TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, READS, VERSION=CODE_VERSION):
    """The kernel conv2d_backward_weight or conv2d_maxpool2d_backward_weight, whichever NAME says: dw and db; constants as above."""
    THREADS = backward_weight_threads(TILE, TAPS)
    backward_weight_part, blocks, FLOATS, WON = make_backward_weight_part(TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, READS, THREADS)

    @kernel(THREADS, NAME)
    def backward_weight(partial, dy, argmax, x, at_w, at_b, size, n, parts):
        """partial[part, o, p, q, c] = sum over the part's windows of dy[o, window] * x[c, winning pixel + (p, q)].

        db: the sums of dy. A part is a number of strips, which are rows of windows; it may begin or end within a sample. A thread
        has one c, one or all q, all p, and some outputs o. A row of `partial` has `size` numbers: dw begins at at_w and db at at_b,
        which is negative where there is no bias.
        """
        _ = VERSION
        floats = cuda.shared.array(FLOATS, x.dtype)
        won = cuda.shared.array(WON, np.uint8)
        backward_weight_part(cuda.blockIdx.x, floats, won, partial, dy, argmax, x, at_w, at_b, size, n, parts)

    return backward_weight, blocks, THREADS


@functools.cache
def make_backward_bias(NAME, O, PIXELS, VERSION=CODE_VERSION):
    """The kernel conv2d_backward_bias, or of whatever NAME says, for O outputs of so many pixels: db alone."""

    @kernel(BLOCK, NAME)
    def backward_bias(partial, dy, argmax, at_b, size, n, parts):
        """partial[part, o] = the sum over the part's pixels of dy[o, pixel]; of windows, over those that have a winner.

        A block has an output of a part. Parts are of equal size and may begin or end within a sample.
        """
        _ = VERSION
        sums = cuda.shared.array(BLOCK, dy.dtype)
        part, o, total = cuda.blockIdx.x // O, cuda.blockIdx.x % O, dy.dtype.type(0)
        for k in range(part * n * PIXELS // parts + cuda.threadIdx.x, (part + 1) * n * PIXELS // parts, BLOCK):
            at_dy = (k // PIXELS * O + o) * PIXELS + k % PIXELS
            if len(argmax) == 0 or get(argmax, at_dy) != NO_WINNER:
                total += get(dy, at_dy)
        total = block_sum(sums, total)
        if cuda.threadIdx.x == 0:
            put(partial, part * size + at_b + o, total)

    return backward_bias


def backward_bias_calls(name, n, db, dy, argmax, parts):
    """The call that computes db alone, in so many partial sums; none where db is None."""
    O, *size = dy.shape
    return [] if db is None else [Call(Launch(make_backward_bias(name, O, math.prod(size)), parts * O, BLOCK),
                                       (db.partial, dy.array, argmax, db.start, db.size, n, parts))]


class Phase(NamedTuple):
    """The gradient of the input rows first, first + stride, ...: a correlation of dy, of stride 1, with some of the taps.

    These are visited from the last one down: `tap`, tap + tap_step, ... Under the t-th of them input row first + i*stride reads row
    reads[0] + i*reads[1] + t*reads[2] of dy. There are `count` such rows and `taps` taps. Columns likewise.
    """
    first: int
    count: int
    taps: int
    tap: int
    tap_step: int
    reads: tuple


def phases(size, kernel, stride, padding, dilation):
    """The phases of one axis: input row r gets w[p] * dy[(r + padding - p*dilation) / stride] where that division is exact."""
    found, period = [], stride // math.gcd(stride, dilation)
    for first in range(min(stride, size)):
        # Every period-th tap divides exactly, so a range names them all, however large the kernel.
        begin = next((p for p in range(min(kernel, period)) if (first + padding - p * dilation) % stride == 0), kernel)
        taps = range(begin, kernel, period)
        tap = taps[-1] if taps else 0
        found.append(Phase(first, (size - first + stride - 1) // stride, len(taps), tap, -period,
                           ((first + padding - tap * dilation) // stride, 1, dilation // math.gcd(stride, dilation))))
    return found


class Conv2d(Operation):
    """A convolution of images of one shape: its kernels, and how their blocks divide the work."""

    forward_kernel, weight_kernel, bias_kernel = "conv2d_forward", "conv2d_backward_weight", "conv2d_backward_bias"
    pooled, pool_size, relu = False, (1, 1), False

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        self.x_shape, self.y_shape, self.dtype = tuple(x_shape), tuple(y_shape), np.dtype(dtype)
        (self.C, *_), (self.O, *self.y_size) = x_shape, y_shape
        self.size = self.y_size         # of dy
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.reads = tuple((-p, s, d) for p, s, d in zip(padding, stride, dilation, strict=True))
        KH, KW = kernel_size
        self.run = KH * KW * self.C
        self.w_steps = 0, self.run, 1, KW * self.C, self.C
        self.argmax = Buffer(0, (0,), np.uint8)         # there are no windows to win

    def parts(self, n):
        """Into how many partial sums the weight gradient of n samples is split, all alike: it follows from the shapes alone."""
        (PH, _), (*_, rows) = self.size, self.weight_tile()
        strips = n * -(-PH // rows)
        most = max(1, min(MOST_PARTS, MOST_SUMS // (self.O * self.run)))
        return -(-strips // -(-strips // most)) if strips else 1

    def forward(self, n, y, x, params):
        """y = conv(x, w) + b; where it is pooled, the largest of each window of that, and of 0 with a ReLU."""
        pixels = self.pool_size if self.pooled else pixels_of_a_thread(self.size)
        return [self.correlate(self.forward_kernel, n, y.array, x.array, *params, self.x_shape, (self.O, *self.size), pixels,
                               self.kernel_size, self.reads, self.w_steps, y.steps)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """dw, db and dx, each unless it is None."""
        dw, db = dparams
        calls = self.backward_bias(n, db, dy) if dw is None else self.backward_weight(n, dparams, dy, x)
        return calls if dx is None else calls + self.backward_input(n, dx, dy, params[0])

    def backward_bias(self, n, db, dy):
        """db alone, unless it is None."""
        return backward_bias_calls(self.bias_kernel, n, db, dy, self.argmax.array, self.parts(n))

    def backward_weight(self, n, dparams, dy, x):
        """dw and db, in partial sums, which `Partials` adds up."""
        kernel, blocks, threads = make_backward_weight(self.weight_kernel, self.weight_tile(), *self.geometry())
        return [Call(Launch(kernel, self.parts(n) * blocks, threads), self.weight_arguments(n, dparams, dy, x), self.flop(n))]

    def weight_tile(self):
        """How blocks divide the weight gradient."""
        return backward_weight_tile(*self.geometry(), self.dtype.itemsize)

    def geometry(self):
        """What a weight gradient depends on: shapes of x and dy, the windows, taps and what they read."""
        return self.x_shape, (self.O, *self.size), self.pool_size, self.kernel_size, self.reads

    def weight_arguments(self, n, dparams, dy, x):
        """The arguments of the weight gradient's kernel; where dw is None, they are not used."""
        dw, db = dparams
        dw, at_b = Gradient(nothing(self.dtype), 0, 0) if dw is None else dw, -1 if db is None else db.start
        return dw.partial, dy.array, self.argmax.array, x.array, dw.start, at_b, dw.size, n, self.parts(n)

    def flop(self, n):
        """Of either gradient's formula, where one pixel of each window counts."""
        return 2 * n * self.O * self.run * math.prod(self.size)

    def backward_input(self, n, dx, dy, w):
        """dx: a correlation of dy with the weights, whose taps are visited backwards, for each phase of the stride."""
        calls, (stride_h, stride_w), (*_, w_row, w_column) = [], self.stride, self.w_steps
        start, sample, channel, row, column = dx.steps
        axes = zip(self.x_shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        for u, v in itertools.product(*itertools.starmap(phases, axes)):
            size = u.count, v.count
            calls.append(self.correlate(
                "conv2d_backward_input", n, dx.array, dy.array, w, None, self.y_shape, (self.C, *size), pixels_of_a_thread(size),
                (u.taps, v.taps), (u.reads, v.reads),
                (u.tap * w_row + v.tap * w_column, 1, self.run, u.tap_step * w_row, v.tap_step * w_column),
                (start + u.first * row + v.first * column, sample, channel, stride_h * row, stride_w * column)))
        return calls

    def correlate(self, name, n, y, x, w, b, x_shape, y_shape, pixels, taps, reads, w_steps, y_steps):
        """The call of the correlation `name` for n samples."""
        low, none = (0, NO_WINNER) if self.relu else (-np.inf, 0)
        geometry = x_shape, y_shape, pixels, self.pooled, taps, reads
        tile = correlation_tile(*geometry, self.dtype.itemsize)
        kernel, (tiles, blocks), threads = make_correlation(name, tile, *geometry, w_steps, y_steps)
        sums = n * math.prod(y_shape) * (math.prod(pixels) if self.pooled else 1)
        return Call(Launch(kernel, (n * tiles, blocks), threads), (
            y, self.argmax.array, x, w, nothing(self.dtype) if b is None else b, self.dtype.type(low), np.uint8(none)),
            2 * sums * x_shape[0] * math.prod(taps))
