"""Convolution and max pooling in one on the GPU; backward visits only the pixels that won their window.

Forward is conv2d.py's correlation, whose threads compute a window each, and so is the weight gradient, which follows the winners.
"""
import functools
import math

import numpy as np

from nbcnn.kernels.cuda.buffer import allocate
from nbcnn.kernels.cuda.compat import Launch, copy_to, cuda, kernel
from nbcnn.kernels.cuda.conv2d import MOST_THREADS, SHARED, Conv2d, even, lanes, make_weight_part, weight_threads
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put, tile_add, tile_patch, tile_zero
from nbcnn.kernels.operation import NOBODY, Call


@functools.cache
def make_input_part(TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, PADDING, THREADS):
    """What a block of so many threads does for the input gradient: a device function, its blocks for each picture, and its memory.

    TILE = (channels, strips at a time, groups of outputs, windows of a strip, outputs at a time, rows, columns of windows).
    X_SHAPE = (C, H, W), Y_SHAPE = (O, PH, PW).
    """
    CB, STRIPS, GROUPS, WINDOWS, OC, ROWS, COLUMNS = TILE
    (C, H, W), (O, PH, PW), (WH, WW), (KH, KW), (PAD_H, PAD_W) = X_SHAPE, Y_SHAPE, WINDOW, TAPS, PADDING
    LANES, TAPS_SIZE = lanes(CB), KH * KW
    TH, TW = ROWS * WH, COLUMNS * WW            # the block's part of dx
    TILES_X, C_BLOCKS = -(-W // TW), -(-C // CB)
    TILES = TILES_X * -(-H // TH)
    PATCH_H, PATCH_W = WH + KH - 1, WINDOWS * WW + KW - 1
    # Strips of one colour do not touch the same pixels.
    COLOURS_Y, COLOURS_X = -(-PATCH_H // WH), -(-PATCH_W // (WINDOWS * WW))
    CP = CB | 1
    W_SIZE, G_SIZE, TILE_SIZE = OC * TAPS_SIZE * CB, STRIPS * OC * WINDOWS, TH * TW * CP
    GS, TILE_AT = W_SIZE, W_SIZE + G_SIZE       # in `floats` there are the weights, then dy, then the part of dx
    ACC, TILE_ROW = PATCH_H * PATCH_W, TW * CP

    @cuda.jit(device=True)
    def input_part(block, floats, won, dx, dy, cells, w):
        acc = cuda.local.array(ACC, dx.dtype)
        zero = dx.dtype.type(0)
        t = cuda.threadIdx.x
        own, lane = t // LANES % STRIPS, t % LANES
        group = t // (LANES * STRIPS)
        picture, c_first = block // (TILES * C_BLOCKS), block // TILES % C_BLOCKS * CB
        r_first, s_first = block % TILES // TILES_X * TH, block % TILES_X * TW
        # Window row i touches the rows i*WH - PAD_H and PATCH_H - 1 more.
        i_first = max(0, -((PATCH_H - 1 - PAD_H - r_first) // WH))
        i_stop = min(PH, (min(H, r_first + TH) - 1 + PAD_H) // WH + 1)
        j_first = max(0, -((WW + KW - 2 - PAD_W - s_first) // WW))
        j_stop = min(PW, (min(W, s_first + TW) - 1 + PAD_W) // WW + 1)
        across = max(0, j_stop - j_first + WINDOWS - 1) // WINDOWS
        strips = max(0, i_stop - i_first) * across
        for k in range(t, TILE_SIZE, THREADS):
            put(floats, TILE_AT + k, zero)
        for strip_first in range(0, strips, STRIPS):
            strip = strip_first + own
            busy = strip < strips and lane < CB and group < GROUPS
            row, column = strip // across, strip % across
            tile_zero(acc, ACC)
            for o_first in range(0, O, OC):
                cuda.syncthreads()
                for k in range(t, W_SIZE, THREADS):
                    c, tap = c_first + k % CB, o_first * TAPS_SIZE + k // CB
                    put(floats, k, get(w, tap * C + c) if c < C and tap < O * TAPS_SIZE else zero)
                for k in range(t, G_SIZE, THREADS):
                    # Neighbouring threads read neighbouring windows.
                    o, other, j = o_first + k // WINDOWS % OC, strip_first + k // (WINDOWS * OC), k % WINDOWS
                    i, j = i_first + other // across, j_first + other % across * WINDOWS + j
                    inside = other < strips and o < O and j < j_stop
                    at = ((picture * O + o) * PH + i) * PW + j
                    put(floats, GS + k, get(dy, at) if inside else zero)
                    put(won, k, get(cells, at) if inside else NOBODY)
                cuda.syncthreads()
                if busy:
                    for o in range(group, OC, GROUPS):
                        at = (own * OC + o) * WINDOWS
                        w_at = o * TAPS_SIZE * CB + lane
                        tile_patch(acc, floats, GS + at, won, at, floats, w_at, WINDOWS, (KH, KW), (WH, WW), CB)
            for colour in range(COLOURS_Y * COLOURS_X * GROUPS):
                cuda.syncthreads()
                if busy and (group * COLOURS_Y + row % COLOURS_Y) * COLOURS_X + column % COLOURS_X == colour:
                    tile_add(acc, floats, TILE_AT + lane, (i_first + row) * WH - PAD_H - r_first,
                             (j_first + column * WINDOWS) * WW - PAD_W - s_first, TH, TW, (PATCH_H, PATCH_W), (TILE_ROW, CP))
        cuda.syncthreads()
        for k in range(t, TH * TW, THREADS):
            r, s = r_first + k // TW, s_first + k % TW
            if r < H and s < W:
                at = ((picture * C + c_first) * H + r) * W + s
                for c in range(CB):
                    if c_first + c < C:
                        put(dx, at + c * H * W, get(floats, TILE_AT + k * CP + c))

    return input_part, TILES * C_BLOCKS, TILE_AT + TILE_SIZE, G_SIZE


@functools.cache
def make_sparse_backward(WEIGHT_TILE, INPUT_TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, PADDING, VERSION=CODE_VERSION):
    """The kernel of both gradients of one geometry; the tiles as above."""
    reads = tuple((-padding, 1, 1) for padding in PADDING)
    channels, strips, groups, *_ = INPUT_TILE
    THREADS = max(weight_threads(WEIGHT_TILE, TAPS), lanes(channels) * strips * groups)
    weight_part, W_BLOCKS, W_FLOATS, W_WON = make_weight_part(WEIGHT_TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, reads, THREADS)
    input_part, X_BLOCKS, X_FLOATS, X_WON = make_input_part(INPUT_TILE, X_SHAPE, Y_SHAPE, WINDOW, TAPS, PADDING, THREADS)
    FLOATS, WON = max(W_FLOATS, X_FLOATS), max(W_WON, X_WON)

    @kernel(THREADS)
    def backward(partial, dy, cells, x, w_at, b_at, size, n, parts, dx, w):
        """dx[c, winning pixel + (p, q)] = sum of dy[o, window] * w[o, p, q, c]; in the last blocks conv2d.py's weight gradient.

        A block has a picture's tile and some channels, a thread one channel c and the patch of pixels that a strip of windows
        touches. All its sums done, a strip adds its patch to the block's tile, in turn with the strips that overlap it: in the same
        order every time.
        """
        _ = VERSION
        floats = cuda.shared.array(FLOATS, x.dtype)
        won = cuda.shared.array(WON, np.uint8)
        block = cuda.blockIdx.x
        if block < n * X_BLOCKS:
            input_part(block, floats, won, dx, dy, cells, w)
        else:
            weight_part(block - n * X_BLOCKS, floats, won, partial, dy, cells, x, w_at, b_at, size, n, parts)

    return backward, W_BLOCKS, X_BLOCKS, THREADS


def reaching(size, windows, step, window, taps, padding):
    """How many windows at most touch one of the pieces of `step` rows, or columns, of dx."""
    return max(1, *(min(windows, (min(size, start + step) - 1 + padding) // window + 1)
                    - max(0, -((window + taps - 2 - padding - start) // window)) for start in range(0, size, step)))


@functools.cache
def input_tile(x_shape, y_shape, window, taps, padding, itemsize, taken=0):
    """A block's part of the input gradient: a warp of channels for each strip, and a tile of dx that shared memory holds.

    `taken` are bytes of shared memory that there are not.
    """
    (C, H, W), (O, PH, PW), (WH, WW), (KH, KW) = x_shape, y_shape, window, taps
    channels = min(C, 32)
    windows = max([1] + [k for k in range(2, min(PW, 8) + 1) if (WH + KH - 1) * (k * WW + KW - 1) + KH * KW <= 150])
    rows, columns = PH, PW
    while True:
        # Windows that reach into the tile.
        high = reaching(H, PH, rows * WH, WH, KH, padding[0])
        wide = -(-reaching(W, PW, columns * WW, WW, KW, padding[1]) // windows)
        strips = max(1, min(high * wide, MOST_THREADS // lanes(channels)))
        fixed = rows * WH * columns * WW * (channels | 1) * itemsize
        output = KH * KW * channels * itemsize + strips * windows * (itemsize + 1)
        outputs = min(8, O, max(0, SHARED - taken - fixed) // output)
        if outputs >= min(4, O):
            outputs = even(O, outputs)
            groups = max(1, min(outputs, MOST_THREADS // (lanes(channels) * strips)))
            return channels, strips, groups, windows, outputs, rows, columns
        if rows * columns == 1 and channels == 1:
            raise ValueError(f"w: expected kernels and windows that fit into a GPU's shared memory, got {KH}x{KW} and {WH}x{WW}")
        if rows * columns == 1:
            channels = -(-channels // 2)
        elif rows >= columns:
            rows = -(-rows // 2)
        else:
            columns = -(-columns // 2)


class Conv2dMaxPool2d(Conv2d):
    """A convolution of stride and dilation 1, pooled in windows side by side, its ReLU included where there is one.

    Attributes
    ----------
    cells : uint8 device array (batch, O, PH, PW), flat
    """

    def __init__(self, x_shape, conv_shape, kernel_size, padding, window, relu, dtype):
        super().__init__(x_shape, conv_shape, kernel_size, (1, 1), padding, (1, 1), dtype)
        self.window, self.relu = window, relu
        self.size = conv_shape[1] // window[0], conv_shape[2] // window[1]

    def reserve(self, batch):
        """Allocate what is kept for backward, for up to `batch` pictures."""
        self.cells = allocate((batch * self.O * math.prod(self.size),), np.uint8)

    def cells_view(self):
        """The cells in PyTorch's shape, a view."""
        return self.cells.reshape(self.cells.size // (self.O * math.prod(self.size)), self.O, *self.size)

    def set_cells(self, cells):
        """Take over cells in PyTorch's shape, a NumPy array."""
        copy_to(self.cells, cells.astype(np.uint8).reshape(-1))

    def winners(self):
        return self.cells

    def forward(self, n, y, x, params):
        """y = the largest of each window of conv(x, w) + b, and of 0 with a ReLU."""
        return [self._correlate(n, y.array, x.array, *params, self.x_shape, (self.O, *self.size), self.window, self.kernel_size,
                                self.reads, self.w_steps, y.steps, self.cells)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """dw, db and, unless dx is None, dx, in one launch."""
        if dx is None:
            return [self.weight_backward(n, dparams, dy, x)]
        x_shape, y_shape, window, taps, _ = self.geometry()
        _, _, groups, outputs, rows = weight_tile = self.weight_tile()
        taken = groups * outputs * rows * y_shape[2]       # the cells that the weight gradient keeps, if more
        tile = input_tile(x_shape, y_shape, window, taps, self.padding, self.dtype.itemsize, taken)
        kernel, w_blocks, x_blocks, threads = make_sparse_backward(weight_tile, tile, x_shape, y_shape, window, taps, self.padding)
        return [Call(Launch(kernel, self.parts(n) * w_blocks + n * x_blocks, threads),
                     (*self.weight_arguments(n, dparams, dy, x), dx.array, params[0]), 2 * self.weight_flop(n))]
