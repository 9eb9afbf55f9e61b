"""Convolution on the GPU: one correlation kernel runs forward and input gradient, a second one the weight gradient.

Pictures are (N, C, H, W) in memory, weights (O, KH, KW, C). A kernel is compiled for one geometry: all sizes are constants, only
the number of pictures is not. Names in capitals are such constants.
"""
import functools
import math

import numpy as np

from nbcnn.kernels.cuda.buffer import nothing
from nbcnn.kernels.cuda.compat import ALIGNMENT, WARP, Launch, cuda, kernel
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put, tile_put, tile_taps, tile_winners, tile_zero
from nbcnn.kernels.operation import NOBODY, Call, Operation
from nbcnn.kernels.phases import phases

MOST_THREADS = 256          # of a block of a gradient: then a thread can have 255 registers
SHARED = 48 * 1024          # bytes of shared memory that a block may have
MOST_PARTS, MOST_SUMS = 512, 2 ** 21    # of a weight gradient: partial sums, and numbers in them; enough blocks, few bytes


def extent(count, step, taps, tap_step):
    """How many rows, or columns, of the input so many rows of pixels read."""
    return (count - 1) * step + max(0, taps - 1) * tap_step + 1


def lanes(run):
    """So many threads, in whole warps, since threads of a warp should take the same branches."""
    return -(-run // WARP) * WARP


def pixels(size):
    """The (rows, columns) of pixels that a thread computes where there is no window."""
    return min(2, size[0]), min(2, size[1])


def even(total, most):
    """The largest number up to `most` that divides `total`, or `most` where that wastes less than half."""
    return next((k for k in range(most, most // 2, -1) if total % k == 0), most)


@functools.cache
def correlate_tile(C, y_shape, cell, pooled, taps, reads, itemsize):
    """A block's part of the correlation: around 128 threads of up to 32 sums each, and as many channels as shared memory holds."""
    O, *size = y_shape
    rows, columns = size if pooled else (-(-n // k) for n, k in zip(size, cell, strict=True))
    TY, TX = min(8, rows), min(8, columns)
    OC = 8 if TY * TX > 16 and math.prod(cell) <= 4 else 4
    groups = max(1, min(128 // (TY * TX), -(-O // OC)))
    while True:
        IY, IX = (extent(n * k, read[1], tap, read[2]) for n, k, read, tap in zip((TY, TX), cell, reads, taps, strict=True))
        channel = (IY * IX + math.prod(taps) * (groups * OC + 4)) * itemsize
        if channel <= SHARED or (TY, TX, groups) == (1, 1, 1):
            break
        groups, TY, TX = (groups // 2, TY, TX) if groups > 1 else (1, -(-TY // 2), -(-TX // 2))
    if channel > SHARED:
        raise ValueError(f"w: expected kernels of which one channel fits into a GPU's shared memory, got {taps[0]}x{taps[1]}")
    return TY, TX, groups, OC, even(C, max(1, min(C, SHARED * 2 // 3 // channel)))


@functools.cache
def weight_tile(C, O, size, window, taps, reads, itemsize):
    """A block's part of the weight gradient: up to MOST_THREADS threads, and as many rows of windows as shared memory holds."""
    (PH, PW), (KH, KW) = size, taps
    # All taps of a channel in a thread take the fewest instructions, if there are channels for whole warps and registers.
    whole = C % WARP == 0 and KH * KW <= 25
    Q, OC = (KW, max(1, 100 // (KH * KW))) if whole else (1, 8 if KH <= 8 else 4)
    OC = min(OC, 8)
    channels = min(C, WARP) if whole else min(C, max(1, MOST_THREADS // KW))
    columns = extent(PW * window[1], reads[1][1], KW, reads[1][2])
    while True:
        groups = max(1, min(-(-O // OC), MOST_THREADS // lanes(KW // Q * channels)))
        x_row, g_row = columns * (channels | 1) * itemsize, PW * groups * OC * (itemsize + 1)
        rows = next((k for k in range(min(PH, 4), 0, -1) if extent(k * window[0], reads[0][1], KH, reads[0][2]) * x_row + k * g_row
                     <= SHARED * 5 // 6), 0)
        if rows or channels == 1:
            break
        channels = -(-channels // 2)
    if KW > 1024:
        raise ValueError(f"w: expected kernels of at most 1024 columns, a thread of a block for each, got {KW}")
    if not rows:
        raise ValueError(f"x: expected pictures of which a few rows fit into a GPU's shared memory, got {columns} columns")
    return channels, Q, groups, OC, -(-PH // -(-PH // rows))


def weight_threads(tile, taps):
    """The threads that such a tile keeps busy."""
    channels, columns, groups, outputs, _ = tile
    return max(lanes(taps[1] // columns * channels) * groups, lanes(groups * outputs))


@functools.cache
def make_correlate(TILE, X_SHAPE, Y_SHAPE, CELL, POOLED, TAPS, READS, W_STEPS, Y_STEPS, VERSION=CODE_VERSION):
    """The correlation kernel of one geometry.

    TILE = (rows, columns of cells, groups of outputs, outputs of a thread, input channels at a time): a block's part of the work.
    X_SHAPE = (C, H, W), Y_SHAPE = (O, rows, columns) of pixels or, POOLED, of windows. CELL = (rows, columns) of pixels that a
    thread computes: the window where they are pooled. READS = for rows and for columns (first, step of an output pixel, step of a
    tap). W_STEPS = steps in w of (start, o, c, p, q), Y_STEPS = steps in y of (start, picture, o, row, column).
    """
    TY, TX, GROUPS, OC, CK = TILE
    (C, H, W), (O, OH, OW), (TH, TW), (KH, KW) = X_SHAPE, Y_SHAPE, CELL, TAPS
    (R0, SH, DH), (S0, SW, DW) = READS
    W0, WO, WC, WP, WQ = W_STEPS
    Y0, YN, YO, YI, YJ = Y_STEPS
    CELLS, OUTPUTS = TY * TX, GROUPS * OC
    THREADS = CELLS * GROUPS
    TILES_X = -(-OW // (TX if POOLED else TX * TW))
    TILES = TILES_X * -(-OH // (TY if POOLED else TY * TH))
    IY, IX = extent(TY * TH, SH, KH, DH), extent(TX * TW, SW, KW, DW)       # the block's part of x
    ROW = OUTPUTS + 4       # a tap's weights: multiples of 16 bytes, and neighbouring taps in different banks
    X_SIZE, W_SIZE, ACC = CK * IY * IX, max(1, CK * KH * KW) * ROW, TH * TW * OC
    PIXEL_ROW, TAP_ROW = SH * IX, DH * IX
    P = KH if KH * KW * TH * TW * OC <= 1024 else min(KH, 1)      # rows of taps in one piece of code

    @kernel(THREADS)
    def correlate(y, cells, x, w, b, low, none):
        """y[pixel, o] = b[o] + sum over (c, p, q) of x[c, x's pixel + (p, q)] * w[o, p, q, c]: a picture's tile in each block.

        Pooled: the largest of a window's sums, where `low` is not larger, and which it was in cells; else `low` and `none`.
        """
        _ = VERSION
        xs = cuda.shared.array(X_SIZE, x.dtype)
        ws = cuda.shared.array(W_SIZE, x.dtype, ALIGNMENT)
        acc = cuda.local.array(ACC, x.dtype)
        zero = x.dtype.type(0)
        t = cuda.threadIdx.x
        group, ty, tx = t // CELLS, t % CELLS // TX, t % TX
        picture, tile = cuda.blockIdx.x // TILES, cuda.blockIdx.x % TILES
        o_block = cuda.blockIdx.y * OUTPUTS
        i, j = tile // TILES_X * TY, tile % TILES_X * TX        # the first cell
        r_first, s_first = i * TH * SH + R0, j * TW * SW + S0
        tile_zero(acc, ACC)
        for c_first in range(0, C, CK):
            for k in range(t, IY * IX, THREADS):
                r, s = r_first + k // IX, s_first + k % IX
                inside = 0 <= r < H and 0 <= s < W
                at = ((picture * C + c_first) * H + r) * W + s
                for c in range(CK):
                    put(xs, c * IY * IX + k, get(x, at + c * H * W) if inside and c_first + c < C else zero)
            for k in range(t, OUTPUTS * KH * KW, THREADS):
                tap, o = k % (KH * KW), k // (KH * KW)
                at = W0 + (o_block + o) * WO + c_first * WC + tap // KW * WP + tap % KW * WQ
                for c in range(CK):
                    put(ws, (c * KH * KW + tap) * ROW + o, get(w, at + c * WC) if c_first + c < C and o_block + o < O else zero)
            cuda.syncthreads()
            for c in range(CK):
                for p in range(0, KH, max(1, P)):
                    tile_taps(acc, xs, (c * IY + ty * TH * SH + p * DH) * IX + tx * TW * SW, ws,
                              (c * KH + p) * KW * ROW + group * OC, (TH, TW), (P, KW), (PIXEL_ROW, SW, TAP_ROW, DW), ROW, OC)
            cuda.syncthreads()
        i, j, o_first = i + ty, j + tx, o_block + group * OC
        at = Y0 + picture * YN + o_first * YO
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
                        put(y, at + o * YO + i * YI + j * YJ, best)
                        put(cells, at + o * YO + i * YI + j * YJ, won)
                else:
                    for k in range(TH * TW):
                        row, column = i * TH + k // TW, j * TW + k % TW
                        if row < OH and column < OW:
                            put(y, at + o * YO + row * YI + column * YJ, acc[k * OC + o] + bias)

    return correlate, (TILES, -(-O // OUTPUTS)), THREADS


@functools.cache
def make_weight_part(TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, READS, THREADS):
    """What a block of so many threads does for the weight gradient: a device function, its blocks for each part, and its memory.

    TILE = (channels, columns of taps of a thread, groups of outputs, outputs of a thread, rows of windows at a time). X_SHAPE =
    (C, H, W), Y_SHAPE = (O, PH, PW): windows of pixels, of one pixel where there is no pooling. READS as in the correlation.
    """
    CB, Q, GROUPS, OC, ROWS = TILE
    (C, H, W), (O, PH, PW), (WH, WW), (KH, KW) = X_SHAPE, Y_SHAPE, WINDOW, TAPS
    (R0, SH, DH), (S0, SW, DW) = READS
    RUN = KW // Q * CB
    LANES, OUTPUTS = lanes(RUN), GROUPS * OC
    C_BLOCKS, O_BLOCKS = -(-C // CB), -(-O // OUTPUTS)
    IY, IX = extent(ROWS * WH, SH, KH, DH), extent(PW * WW, SW, KW, DW)
    CP = CB | 1             # odd: pixels side by side lie in different banks
    SPARSE = WH * WW > 1
    GS, ACC, SUMS = IY * IX * CP, OC * KH * Q, KH * Q       # in `floats` there is x, then dy
    TAP_ROW, TAP_STEP, DOWN, RIGHT = DH * IX * CP, DW * CP, SH * IX * CP, SW * CP
    O_STEP, TAP = KH * KW * C, C if Q == KW else KW * C     # a thread's taps are evenly spaced in w
    G_SIZE, STRIPS = ROWS * PW * OUTPUTS, -(-PH // ROWS)

    @cuda.jit(device=True)
    def weight_part(block, floats, won, partial, dy, cells, x, w_at, b_at, size, n, parts):
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
            picture, i = strip // STRIPS, strip % STRIPS * ROWS
            for k in range(t, IY * IX, THREADS):
                r, s = i * WH * SH + R0 + k // IX, S0 + k % IX
                inside = 0 <= r < H and 0 <= s < W
                at = ((picture * C + c_first) * H + r) * W + s
                for m in range(CB):
                    put(floats, k * CP + m, get(x, at + m * H * W) if inside and c_first + m < C else zero)
            windows = min(ROWS, PH - i) * PW
            for k in range(t, G_SIZE, THREADS):
                window, o = k % (ROWS * PW), k // (ROWS * PW)
                at = ((picture * O + o_block + o) * PH + i) * PW + window
                inside = window < windows and o_block + o < O
                if inside and not SPARSE and len(cells) > 0:    # windows of one cell, which a ReLU may have emptied
                    inside = get(cells, at) != NOBODY
                put(floats, GS + window * OUTPUTS + o, get(dy, at) if inside else zero)
                if SPARSE:
                    put(won, window * OUTPUTS + o, get(cells, at) if inside else NOBODY)
            cuda.syncthreads()
            if busy:
                tap = q * DW * CP + lane % CB
                for window in range(windows):
                    at = (window // PW * WH * SH * IX + window % PW * WW * SW) * CP + tap
                    g_at = window * OUTPUTS + group * OC
                    tile_winners(acc, floats, GS + g_at, won, g_at, floats, at, OC, (KH, Q), (WH, WW),
                                 (TAP_ROW, TAP_STEP, DOWN, RIGHT))
            if t < OUTPUTS:
                for window in range(windows):
                    if not SPARSE or get(won, window * OUTPUTS + t) != NOBODY:
                        total += get(floats, GS + window * OUTPUTS + t)
            cuda.syncthreads()
        if busy:
            o = o_block + group * OC
            tile_put(acc, partial, part * size + w_at + (o * KH * KW + q) * C + c, O - o, (OC, SUMS), (O_STEP, TAP))
        if b_at >= 0 and t < OUTPUTS and o_block + t < O and c_first == 0:
            put(partial, part * size + b_at + o_block + t, total)

    return weight_part, O_BLOCKS * C_BLOCKS, GS + G_SIZE, G_SIZE if SPARSE else 1


@functools.cache
def make_weight_gradient(TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, READS, VERSION=CODE_VERSION):
    """The weight gradient kernel of one geometry, of a convolution or of one whose output was pooled; the tile as above."""
    THREADS = weight_threads(TILE, TAPS)
    weight_part, blocks, FLOATS, WON = make_weight_part(TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, READS, THREADS)

    @kernel(THREADS)
    def weight_gradient(partial, dy, cells, x, w_at, b_at, size, n, parts):
        """partial[part, o, p, q, c] = sum over the part's windows of dy[o, window] * x[c, winning pixel + (p, q)].

        A part is so many strips of rows of windows, of as many pictures as it takes.

        A thread has one c, one or all q, all p, and the sums of some outputs o. A row of `partial` has `size` numbers; the weights
        begin at w_at, the bias, where there is one, at b_at.
        """
        _ = VERSION
        floats = cuda.shared.array(FLOATS, x.dtype)
        won = cuda.shared.array(WON, np.uint8)
        weight_part(cuda.blockIdx.x, floats, won, partial, dy, cells, x, w_at, b_at, size, n, parts)

    return weight_gradient, blocks, THREADS


class Conv2d(Operation):
    """A convolution of pictures of one shape: its kernels, and how its blocks share the work."""

    window, relu = (1, 1), False

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        self.x_shape, self.y_shape, self.dtype = tuple(x_shape), tuple(y_shape), np.dtype(dtype)
        self.C, self.O, self.y_size = x_shape[0], y_shape[0], y_shape[1:]
        self.size = self.y_size         # of dy
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.reads = tuple((-p, s, d) for p, s, d in zip(padding, stride, dilation, strict=True))
        KH, KW = kernel_size
        self.run = KH * KW * self.C
        self.w_steps = 0, self.run, 1, KW * self.C, self.C
        self.phases = [phases(*axis) for axis in zip(
            x_shape[1:], y_shape[1:], kernel_size, stride, padding, dilation, strict=True)]

    def parts(self, n):
        """Into how many partial sums the weight gradient of n pictures is split, all alike: it follows from the shapes alone."""
        strips = n * -(-self.size[0] // self.weight_tile()[4])
        most = max(1, min(MOST_PARTS, MOST_SUMS // (self.O * self.run)))
        return -(-strips // -(-strips // most)) if strips else 1

    def forward(self, n, y, x, params):
        """y = conv(x, w) + b for n pictures."""
        return [self._correlate(n, y.array, x.array, *params, self.x_shape, self.y_shape, pixels(self.y_size), self.kernel_size,
                                self.reads, self.w_steps, y.steps)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """dw, db and, unless dx is None, dx."""
        return [self.weight_backward(n, dparams, dy, x)] + ([] if dx is None else self.input_backward(n, dx, dy, params[0]))

    def weight_backward(self, n, dparams, dy, x):
        """dw and db, in partial sums."""
        kernel, blocks, threads = make_weight_gradient(self.weight_tile(), *self.geometry())
        return Call(Launch(kernel, self.parts(n) * blocks, threads), self.weight_arguments(n, dparams, dy, x), self.weight_flop(n))

    def weight_tile(self):
        """How the weight gradient is shared out."""
        _, y_shape, window, taps, reads = self.geometry()
        return weight_tile(self.C, self.O, y_shape[1:], window, taps, reads, self.dtype.itemsize)

    def geometry(self):
        """What a weight gradient depends on: shapes of x and dy, the window, taps and what they read."""
        return self.x_shape, (self.O, *self.size), self.window, self.kernel_size, self.reads

    def weight_arguments(self, n, dparams, dy, x):
        """The arguments of the weight gradient's kernel."""
        dw, db = dparams
        return (dw.partial, dy.array, self.winners(), x.array, dw.start, -1 if db is None else db.start, dw.size, n, self.parts(n))

    def weight_flop(self, n):
        """Of either gradient: one pixel of each window."""
        return 2 * n * self.O * self.run * math.prod(self.size)

    def winners(self):
        """The cell that won each window, for the weight gradient; nothing where there are no windows."""
        return nothing(np.dtype(np.uint8))

    def input_backward(self, n, dx, dy, w):
        """dx: the correlation of dy with the flipped weights, one phase of the stride at a time."""
        calls = []
        start, image, channel, row, column = dx.steps
        _, _, _, WP, WQ = self.w_steps
        for u in self.phases[0]:
            for v in self.phases[1]:
                size = u.count, v.count
                calls.append(self._correlate(
                    n, dx.array, dy.array, w, None, self.y_shape, (self.C, *size), pixels(size), (u.taps, v.taps),
                    ((u.read, 1, u.read_step), (v.read, 1, v.read_step)),
                    (u.tap * WP + v.tap * WQ, 1, self.run, u.tap_step * WP, v.tap_step * WQ),
                    (start + u.first * row + v.first * column, image, channel, self.stride[0] * row, self.stride[1] * column)))
        return calls

    def _correlate(self, n, y, x, w, b, x_shape, y_shape, cell, taps, reads, w_steps, y_steps, cells=None):
        """The call of the correlation for n pictures; with `cells` it pools its cells of pixels."""
        pooled, low, none = cells is not None, *((0, NOBODY) if self.relu else (-np.inf, 0))
        tile = correlate_tile(x_shape[0], y_shape, cell, pooled, taps, reads, self.dtype.itemsize)
        kernel, (tiles, blocks), threads = make_correlate(tile, x_shape, y_shape, cell, pooled, taps, reads, w_steps, y_steps)
        sums = n * math.prod(y_shape) * (math.prod(cell) if pooled else 1)
        return Call(Launch(kernel, (n * tiles, blocks), threads), (
            y, cells if pooled else nothing(np.dtype(np.uint8)), x, w, nothing(self.dtype) if b is None else b,
            self.dtype.type(low), np.uint8(none)), 2 * sums * x_shape[0] * math.prod(taps))
