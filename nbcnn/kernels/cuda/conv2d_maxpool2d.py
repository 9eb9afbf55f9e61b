"""Convolution, max pooling and perhaps ReLU in one on the GPU; backward visits only the pixels that won their window.

Forward is conv2d.py's correlation, whose threads compute a window each. The weight gradient is conv2d.py's too, which reads x where
a window's winner is. Backward computes both gradients in one launch, each in blocks of its own.
"""
import functools

import numpy as np

from nbcnn.kernels.cuda.buffer import Buffer
from nbcnn.kernels.cuda.compat import Launch, cuda, kernel
from nbcnn.kernels.cuda.conv2d import (
    MOST_THREADS,
    SHARED,
    Conv2d,
    backward_weight_threads,
    largest_divisor,
    make_backward_weight_part,
    round_up_to_warp,
)
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put, tile_add, tile_patch, tile_zero
from nbcnn.kernels.operation import NO_WINNER, Call


@functools.cache
def make_conv2d_maxpool2d_backward_input(TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, PADDING, THREADS):
    """What a block of so many threads does for dx: a device function, its blocks for each sample, and its memory.

    TILE = (channels, strips at a time, groups of outputs, windows of a strip, outputs at a time, rows, columns of windows).
    X_SHAPE = (C, H, W), Y_SHAPE = (O, PH, PW).
    """
    CB, STRIPS, GROUPS, WINDOWS, OC, ROWS, COLUMNS = TILE
    (C, H, W), (O, PH, PW), (POOL_H, POOL_W), (KH, KW), (PAD_H, PAD_W) = X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, PADDING
    LANES, TAPS_SIZE = round_up_to_warp(CB), KH * KW
    TH, TW = ROWS * POOL_H, COLUMNS * POOL_W            # the block's part of dx
    TILES_X, C_BLOCKS = -(-W // TW), -(-C // CB)
    TILES = TILES_X * -(-H // TH)
    PATCH_H, PATCH_W = POOL_H + KH - 1, WINDOWS * POOL_W + KW - 1
    # Strips of one colour do not touch the same pixels.
    COLOURS_Y, COLOURS_X = -(-PATCH_H // POOL_H), -(-PATCH_W // (WINDOWS * POOL_W))
    CP = CB | 1
    W_SIZE, DY_SIZE, TILE_SIZE = OC * TAPS_SIZE * CB, STRIPS * OC * WINDOWS, TH * TW * CP
    DY, DX = W_SIZE, W_SIZE + DY_SIZE           # in `floats` the weights come first, dy begins at DY, the part of dx at DX
    ACC, TILE_ROW = PATCH_H * PATCH_W, TW * CP

    @cuda.jit(device=True)
    def conv2d_maxpool2d_backward_input(block, floats, won, dx, dy, argmax, w):
        acc = cuda.local.array(ACC, dx.dtype)
        zero = dx.dtype.type(0)
        t = cuda.threadIdx.x
        own, lane = t // LANES % STRIPS, t % LANES
        group = t // (LANES * STRIPS)
        m, c_first = block // (TILES * C_BLOCKS), block // TILES % C_BLOCKS * CB
        r_first, s_first = block % TILES // TILES_X * TH, block % TILES_X * TW
        # Window row i touches the rows i*POOL_H - PAD_H and PATCH_H - 1 more.
        i_first = max(0, -((PATCH_H - 1 - PAD_H - r_first) // POOL_H))
        i_stop = min(PH, (min(H, r_first + TH) - 1 + PAD_H) // POOL_H + 1)
        j_first = max(0, -((POOL_W + KW - 2 - PAD_W - s_first) // POOL_W))
        j_stop = min(PW, (min(W, s_first + TW) - 1 + PAD_W) // POOL_W + 1)
        across = max(0, j_stop - j_first + WINDOWS - 1) // WINDOWS
        strips = max(0, i_stop - i_first) * across
        for k in range(t, TILE_SIZE, THREADS):
            put(floats, DX + k, zero)
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
                for k in range(t, DY_SIZE, THREADS):
                    # Neighbouring threads read neighbouring windows.
                    o, other, j = o_first + k // WINDOWS % OC, strip_first + k // (WINDOWS * OC), k % WINDOWS
                    i, j = i_first + other // across, j_first + other % across * WINDOWS + j
                    inside = other < strips and o < O and j < j_stop
                    at = ((m * O + o) * PH + i) * PW + j
                    put(floats, DY + k, get(dy, at) if inside else zero)
                    put(won, k, get(argmax, at) if inside else NO_WINNER)
                cuda.syncthreads()
                if busy:
                    for o in range(group, OC, GROUPS):
                        at = (own * OC + o) * WINDOWS
                        at_w = o * TAPS_SIZE * CB + lane
                        tile_patch(acc, floats, DY + at, won, at, floats, at_w, WINDOWS, (KH, KW), (POOL_H, POOL_W), CB)
            for colour in range(COLOURS_Y * COLOURS_X * GROUPS):
                cuda.syncthreads()
                if busy and (group * COLOURS_Y + row % COLOURS_Y) * COLOURS_X + column % COLOURS_X == colour:
                    tile_add(acc, floats, DX + lane, (i_first + row) * POOL_H - PAD_H - r_first,
                             (j_first + column * WINDOWS) * POOL_W - PAD_W - s_first, TH, TW, (PATCH_H, PATCH_W), (TILE_ROW, CP))
        cuda.syncthreads()
        for k in range(t, TH * TW, THREADS):
            r, s = r_first + k // TW, s_first + k % TW
            if r < H and s < W:
                at = ((m * C + c_first) * H + r) * W + s
                for c in range(CB):
                    if c_first + c < C:
                        put(dx, at + c * H * W, get(floats, DX + k * CP + c))

    return conv2d_maxpool2d_backward_input, TILES * C_BLOCKS, DX + TILE_SIZE, DY_SIZE


@functools.cache
def make_conv2d_maxpool2d_backward(WEIGHT_TILE, INPUT_TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, PADDING, VERSION=CODE_VERSION):
    """The kernel of all gradients of one geometry; constants as above."""
    reads = tuple((-padding, 1, 1) for padding in PADDING)
    channels, strips, groups, *_ = INPUT_TILE
    THREADS = max(backward_weight_threads(WEIGHT_TILE, TAPS), round_up_to_warp(channels) * strips * groups)
    backward_weight_part, W_BLOCKS, W_FLOATS, W_WON = make_backward_weight_part(
        WEIGHT_TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, reads, THREADS)
    conv2d_maxpool2d_backward_input, X_BLOCKS, X_FLOATS, X_WON = make_conv2d_maxpool2d_backward_input(
        INPUT_TILE, X_SHAPE, Y_SHAPE, POOL_SIZE, TAPS, PADDING, THREADS)
    FLOATS, WON = max(W_FLOATS, X_FLOATS), max(W_WON, X_WON)

    @kernel(THREADS)
    def conv2d_maxpool2d_backward(partial, dy, argmax, x, at_w, at_b, size, n, parts, dx, w):
        """dx[c, winning pixel + (p, q)] = sum of dy[o, window] * w[o, p, q, c]; in the last blocks dw and db.

        A block has a tile of a sample and some channels, a thread one channel c and the patch of pixels that a strip of windows
        touches. When all its sums are done, a strip adds its patch to the block's tile. Strips that overlap take turns, in the same
        order every time.
        """
        _ = VERSION
        floats = cuda.shared.array(FLOATS, x.dtype)
        won = cuda.shared.array(WON, np.uint8)
        block = cuda.blockIdx.x
        if block < n * X_BLOCKS:
            conv2d_maxpool2d_backward_input(block, floats, won, dx, dy, argmax, w)
        else:
            backward_weight_part(block - n * X_BLOCKS, floats, won, partial, dy, argmax, x, at_w, at_b, size, n, parts)

    return conv2d_maxpool2d_backward, W_BLOCKS, X_BLOCKS, THREADS


def most_windows_touching(size, windows, step, window, taps, padding):
    """How many rows of windows touch a piece of `step` rows of dx, for the piece with the most; columns likewise."""
    return max(1, *(min(windows, (min(size, start + step) - 1 + padding) // window + 1)
                    - max(0, -((window + taps - 2 - padding - start) // window)) for start in range(0, size, step)))


@functools.cache
def backward_input_tile(x_shape, y_shape, pool_size, taps, padding, itemsize, taken=0):
    """A block's part of the input gradient: a warp of channels for each strip, and a tile of dx that shared memory holds.

    `taken` are bytes of shared memory that something else needs.
    """
    (C, H, W), (O, PH, PW), (pool_h, pool_w), (KH, KW), (padding_h, padding_w) = x_shape, y_shape, pool_size, taps, padding
    channels = min(C, 32)
    windows = max([1] + [k for k in range(2, min(PW, 8) + 1) if (pool_h + KH - 1) * (k * pool_w + KW - 1) + KH * KW <= 150])
    rows, columns = PH, PW
    while True:
        rows_touching = most_windows_touching(H, PH, rows * pool_h, pool_h, KH, padding_h)
        columns_touching = -(-most_windows_touching(W, PW, columns * pool_w, pool_w, KW, padding_w) // windows)
        strips = max(1, min(rows_touching * columns_touching, MOST_THREADS // round_up_to_warp(channels)))
        fixed = rows * pool_h * columns * pool_w * (channels | 1) * itemsize
        output = KH * KW * channels * itemsize + strips * windows * (itemsize + 1)
        outputs = min(8, O, max(0, SHARED - taken - fixed) // output)
        if outputs >= min(4, O):
            outputs = largest_divisor(O, outputs)
            groups = max(1, min(outputs, MOST_THREADS // (round_up_to_warp(channels) * strips)))
            return channels, strips, groups, windows, outputs, rows, columns
        if rows * columns == 1 and channels == 1:
            raise ValueError(f"w: expected kernels and windows that fit into a GPU's shared memory, "
                             f"got {KH}x{KW} and {pool_h}x{pool_w}")
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
    argmax : Buffer of uint8
    """

    forward_kernel, weight_kernel, pooled = "conv2d_maxpool2d_forward", "conv2d_maxpool2d_backward_weight", True
    bias_kernel = "conv2d_maxpool2d_backward_bias"

    def __init__(self, x_shape, conv_shape, kernel_size, padding, pool_size, relu, dtype):
        super().__init__(x_shape, conv_shape, kernel_size, (1, 1), padding, (1, 1), dtype)
        self.pool_size, self.relu = pool_size, relu
        self.size = tuple(n // k for n, k in zip(self.y_size, pool_size, strict=True))

    def reserve(self, batch):
        self.argmax = Buffer(batch, (self.O, *self.size), np.uint8)

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """dw, db and dx, each unless it is None: in one launch, unless db is all there is of the parameters."""
        if dx is None:
            return super().backward(n, dx, dparams, dy, x, y, params, add)
        (*geometry, _), (_, PW) = self.geometry(), self.size
        _, _, groups, outputs, rows = weight_tile = self.weight_tile()
        taken = groups * outputs * rows * PW        # the part of argmax that the weight gradient keeps, if that is more
        tile = backward_input_tile(*geometry, self.padding, self.dtype.itemsize, taken)
        kernel, w_blocks, x_blocks, threads = make_conv2d_maxpool2d_backward(weight_tile, tile, *geometry, self.padding)
        frozen = dparams[0] is None
        call = Call(Launch(kernel, n * x_blocks + (0 if frozen else self.parts(n) * w_blocks), threads),
                    (*self.weight_arguments(n, dparams, dy, x), dx.array, params[0]), self.flop(n) * (2 - frozen))
        return [call, *self.backward_bias(n, dparams[1], dy)] if frozen else [call]
