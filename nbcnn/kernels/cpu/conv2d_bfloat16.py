"""Convolution, with or without max pooling, and the linear layer in bfloat16, on the units of `unit.py`.

The loops are those of `conv2d.py`; what they carry is a matrix tile, whose rows are always ROWS samples at one pixel:

    acc = matrix_tile.dot(acc, x, at_x, x_step, w, at_w, w_step, pairs)     # 2*pairs channels of ROWS samples, times weights

So a tap beside the image is left out for all rows alike. Samples behind the last one are computed too, and not stored;
`BFloat16Buffer` has memory for them. Activations and their gradients are bfloat16, as uint16, and may be float32 as images and a
network's outputs are. Weights, their gradients and all sums are float32.

Behind a max pooling the backward pass is that of a convolution, or on AVX512-BF16 that of `conv2d_maxpool2d.py`, which visits only
the pixels that won.

What a tile reads. The channels of a pixel in blocks of 2*pairs, see `pairs_of`. Where channels do not fall into such blocks, where
there are few, and where they are float32, `unfold` makes a copy that is read in their place.

The weight gradient sums over samples. For this `pair_samples` lays x so that two samples are neighbours, and `transpose_samples` dy
so that all samples are, CHUNK samples at a time.
"""
import functools
import math
from collections import namedtuple

import numpy as np

from nbcnn.kernels.bfloat16 import BFLOAT16
from nbcnn.kernels.cpu import matrix_tile, tile
from nbcnn.kernels.cpu.buffer import BFloat16Buffer, allocate
from nbcnn.kernels.cpu.conv2d import Geometry, add_rows, conv2d_backward_bias, task_row
from nbcnn.kernels.cpu.conv2d_maxpool2d import Conv2dMaxPool2d, helper
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.matrix_tile import LANES, MOST_PAIRS, ROWS
from nbcnn.kernels.cpu.parallel import THREADS, prange, share
from nbcnn.kernels.operation import NO_WINNER, Call, Operation

FEW = 16            # channels: fewer are unfolded, so that a kernel row becomes one pixel's channels
CHUNK = 64          # samples whose weight gradient is computed at a time, so that they stay in the second cache
MOST_PARTS = 8      # partial sums of a weight gradient
P = 4               # rows of sums that are rounded at a time
MOST_VECTORS = 2    # of a tile's row
LANES_OF_TILE = tile.lanes(np.float32)

# The sizes of x as forward and the weight gradient read it. Where channels are few, a kernel row is one tap, whose channels are
# those of all its taps: KW is 1 then, C the KW*C of the convolution, and W its OW.
Read = namedtuple("Read", "C H W KW stride_w padding_w dilation_w")
AS_IT_LIES = 1, 1, 0, 1     # the kernel width, stride, padding and dilation of an `unfold` that only rounds, and adds channels of 0


def round_up(size, to):
    """The next multiple."""
    return -(-size // to) * to


def vectors(width):
    """How many vectors of a tile's row so many outputs fill."""
    return min(MOST_VECTORS, -(-width // LANES))


def pairs_of(channels):
    """How many pairs of channels a product takes, so that products take all of them; None where no number of 8 to 16 does.

    Up to 32 channels are one block. 64 are two blocks of 16 pairs, 24 are one of 12, 100 are five of 10.
    """
    if channels % 2 == 0:
        if channels <= 2 * MOST_PAIRS:
            return channels // 2
        return next((pairs for pairs in range(MOST_PAIRS, MOST_PAIRS // 2 - 1, -1) if channels % (2 * pairs) == 0), None)
    return None


def in_pairs(channels):
    """As many channels, or the next more that `pairs_of` has a number for."""
    if pairs_of(channels) is not None:
        return channels
    return round_up(channels, 2 * MOST_PAIRS if channels > 2 * MOST_PAIRS else 2)


@helper
def add_taps(acc, x, w, block, WIDTH, pairs, g, first, top, left):
    """acc + sum over p, q, c of x[m, top + p*dilation_h, left + q*dilation_w, c] * w[p, q, c] for ROWS samples m >= first."""
    p_first, p_end = tile.range_inside(top, g.dilation_h, g.KH, g.H)
    q_first, q_end = tile.range_inside(left, g.dilation_w, g.KW, g.W)
    for p in range(p_first, p_end):
        for q in range(q_first, q_end):
            at_x = first * g.x_step + ((top + p * g.dilation_h) * g.W + left + q * g.dilation_w) * g.x_pixel
            at_w = ((block * g.KH + p) * g.KW + q) * g.x_pixel * WIDTH
            for c in range(0, g.x_pixel, 2 * pairs):
                acc = matrix_tile.dot(acc, x, at_x + c, g.x_step, w, at_w + c * WIDTH, 2 * WIDTH, pairs)
    return acc


@functools.cache
def make_conv2d_forward(V):
    """The forward kernel for a tile of ROWS samples, each with V vectors of output channels."""
    WIDTH, VECTORS, one = V * LANES, V * LANES // LANES_OF_TILE, np.float32(1)

    @njit(parallel=True, error_model="numpy", allocates=matrix_tile.ALLOCATES)
    def conv2d_forward(y, x, w, b, sums, pairs, g):
        """y[m, i, j, o] = b[o] + sum over p, q, c of x[m, r + p*dilation_h, s + q*dilation_w, c] * w[o, p, q, c].

        r = i*stride_h - padding_h, s = j*stride_w - padding_w. w is stored as (block of WIDTH outputs, KH, KW, C/2, WIDTH, 2); see
        pack_weight. A task is ROWS samples, a block of outputs and an image row i. `sums` has memory for a tile of each thread.
        """
        blocks, at_sums = (g.O + WIDTH - 1) // WIDTH, share() * ROWS * WIDTH
        matrix_tile.begin(pairs)
        for task in prange((g.n + ROWS - 1) // ROWS * blocks * g.OH):
            first, block, i = task_row(task, ROWS, blocks, g.OH)
            top = i * g.stride_h - g.padding_h
            for j in range(g.OW):
                acc = add_taps(matrix_tile.zero(V), x, w, block, WIDTH, pairs, g, first, top, j * g.stride_w - g.padding_w)
                matrix_tile.sums(acc, sums, at_sums)
                at_y = first * g.y_step + (i * g.OW + j) * g.y_pixel + block * WIDTH
                for row in range(0, min(ROWS, g.n - first), P):
                    rows = tile.rows_strided(P, at_sums + row * WIDTH, WIDTH)
                    acc = tile.axpy(tile.repeat(P, VECTORS, b, block * WIDTH), one, sums, rows, 0, 0)
                    y_rows = tile.rows_strided(P, at_y + row * g.y_step, g.y_step)
                    tile.store(acc, y, y_rows, 0, 0, g.n - first - row, g.O - block * WIDTH)
        matrix_tile.end()

    return conv2d_forward


@functools.cache
def make_conv2d_maxpool2d_forward(V):
    """The forward kernel with max pooling, for a tile of ROWS samples, each with V vectors of output channels."""
    WIDTH, VECTORS, one = V * LANES, V * LANES // LANES_OF_TILE, np.float32(1)

    @njit(parallel=True, error_model="numpy", allocates=matrix_tile.ALLOCATES)
    def conv2d_maxpool2d_forward(y, argmax, x, w, b, low, none, sums, best, winner, pairs, g):
        """y[m, i, j, o] = the largest over the window's u, v of z[m, i*stride_h + u, j*stride_w + v, o]; argmax says which one.

        z is what conv2d_forward computes with a stride of 1, before it is rounded. Where no z is larger than `low`, y = low and
        argmax = none. `sums`, `best` and `winner` have memory for a tile of each thread.
        """
        blocks, at_sums = (g.O + WIDTH - 1) // WIDTH, share() * ROWS * WIDTH
        matrix_tile.begin(pairs)
        for task in prange((g.n + ROWS - 1) // ROWS * blocks * g.OH):
            first, block, i = task_row(task, ROWS, blocks, g.OH)
            for j in range(g.OW):
                for cell in range(g.stride_h * g.stride_w):
                    top, left = i * g.stride_h + cell // g.stride_w - g.padding_h, j * g.stride_w + cell % g.stride_w - g.padding_w
                    acc = add_taps(matrix_tile.zero(V), x, w, block, WIDTH, pairs, g, first, top, left)
                    matrix_tile.sums(acc, sums, at_sums)
                    for row in range(0, ROWS, P):
                        rows = tile.rows_strided(P, at_sums + row * WIDTH, WIDTH)
                        acc = tile.axpy(tile.repeat(P, VECTORS, b, block * WIDTH), one, sums, rows, 0, 0)
                        tile.pool(acc, best, winner, rows, 0, WIDTH, np.uint8(cell), low, none)
                at_y, lanes = first * g.y_step + (i * g.OW + j) * g.y_pixel + block * WIDTH, min(WIDTH, g.O - block * WIDTH)
                for row in range(0, min(ROWS, g.n - first), P):
                    acc = tile.load(P, VECTORS, best, tile.rows_strided(P, at_sums + row * WIDTH, WIDTH), 0)
                    y_rows = tile.rows_strided(P, at_y + row * g.y_step, g.y_step)
                    tile.store(acc, y, y_rows, 0, 0, g.n - first - row, lanes)
                for row in range(min(ROWS, g.n - first)):
                    for lane in range(lanes):
                        tile.put(argmax, at_y + row * g.y_step + lane, tile.get(winner, at_sums + row * WIDTH + lane))
        matrix_tile.end()

    return conv2d_maxpool2d_forward


@njit(parallel=True, error_model="numpy")
def unpool(dz, z_step, dy, argmax, OH, OW, g):
    """dz[m, i*stride_h + u, j*stride_w + v, o] = dy[m, i, j, o] at the cell (u, v) of its window that won, else 0.

    dz has the OH x OW pixels of the convolution, those too that lie in no window.
    """
    for task in prange(g.n * OH):
        m, t = task // OH, task % OH
        at_z, i = m * z_step + t * OW * g.O, t // g.stride_h
        dz[at_z:at_z + OW * g.O] = np.uint16(0)
        for j in range(g.OW if i < g.OH else 0):
            at_y = m * g.y_step + (i * g.OW + j) * g.O
            for v in range(g.stride_w):
                cell, at = np.uint8(t % g.stride_h * g.stride_w + v), at_z + (j * g.stride_w + v) * g.O
                for o in range(g.O):
                    tile.put(dz, at + o, tile.get(dy, at_y + o) if argmax[at_y + o] == cell else np.float32(0))


@functools.cache
def make_conv2d_backward_input(V):
    """The kernel of the input gradient, for a tile of ROWS samples, each with V vectors of input channels."""
    WIDTH, VECTORS = V * LANES, V * LANES // LANES_OF_TILE

    @njit(parallel=True, error_model="numpy", allocates=matrix_tile.ALLOCATES)
    def conv2d_backward_input(dx, dy, w, sums, pairs, g):
        """dx[m, r, s, c] = sum over p, q, o of dy[m, i, j, o] * w[o, p, q, c].

        i = (r + padding_h - p*dilation_h) / stride_h, j likewise; only taps that give whole numbers count, see `conv2d.py`. w is
        stored as (block of WIDTH channels, KH, KW, O/2, WIDTH, 2). A task is ROWS samples, a block of channels and an image row r.
        """
        blocks, at_sums = (g.C + WIDTH - 1) // WIDTH, share() * ROWS * WIDTH
        period_h, step_h = g.stride_h // math.gcd(g.stride_h, g.dilation_h), g.dilation_h // math.gcd(g.stride_h, g.dilation_h)
        period_w, step_w = g.stride_w // math.gcd(g.stride_w, g.dilation_w), g.dilation_w // math.gcd(g.stride_w, g.dilation_w)
        matrix_tile.begin(pairs)
        for task in prange((g.n + ROWS - 1) // ROWS * blocks * g.H):
            first, block, r = task_row(task, ROWS, blocks, g.H)
            p_last = tile.last_tap(r + g.padding_h, g.KH, g.stride_h, g.dilation_h)
            i = (r + g.padding_h - p_last * g.dilation_h) // g.stride_h
            u_first, u_end = tile.range_inside(i, step_h, p_last // period_h + 1, g.OH)
            for s in range(g.W):
                q_last = tile.last_tap(s + g.padding_w, g.KW, g.stride_w, g.dilation_w)
                j = (s + g.padding_w - q_last * g.dilation_w) // g.stride_w
                v_first, v_end = tile.range_inside(j, step_w, q_last // period_w + 1, g.OW)
                acc = matrix_tile.zero(V)
                for u in range(u_first, u_end):
                    for v in range(v_first, v_end):
                        at_dy = first * g.y_step + ((i + u * step_h) * g.OW + j + v * step_w) * g.y_pixel
                        at_w = ((block * g.KH + p_last - u * period_h) * g.KW + q_last - v * period_w) * g.y_pixel * WIDTH
                        for o in range(0, g.y_pixel, 2 * pairs):
                            acc = matrix_tile.dot(acc, dy, at_dy + o, g.y_step, w, at_w + o * WIDTH, 2 * WIDTH, pairs)
                matrix_tile.sums(acc, sums, at_sums)
                at_dx = first * g.x_step + (r * g.W + s) * g.C + block * WIDTH
                for row in range(0, min(ROWS, g.n - first), P):
                    acc = tile.load(P, VECTORS, sums, tile.rows_strided(P, at_sums + row * WIDTH, WIDTH), 0)
                    dx_rows = tile.rows_strided(P, at_dx + row * g.x_step, g.x_step)
                    tile.store(acc, dx, dx_rows, 0, 0, g.n - first - row, g.C - block * WIDTH)
        matrix_tile.end()

    return conv2d_backward_input


@functools.cache
def make_conv2d_backward_weight(V):
    """The kernel of the weight gradient, for a tile of ROWS outputs, each with V vectors of input channels."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy", allocates=matrix_tile.ALLOCATES)
    def conv2d_backward_weight(dw, dy, x, sums, samples, rows, parts, add, g):
        """dw[part, o, p, q, c] = (or, with add, +=) the sum over m, j and the part's i of dy[m, i, j, o] * x[m, r, s, c].

        r = i*stride_h + p*dilation_h - padding_h, s likewise. x comes from pair_samples, dy from transpose_samples, of so many
        `samples`, a multiple of 32, and `rows` outputs. A task is a part of the image rows i, a tap, a block of outputs and one of
        channels.
        """
        outputs, blocks, at_sums = (g.O + ROWS - 1) // ROWS, (g.C + WIDTH - 1) // WIDTH, share() * ROWS * WIDTH
        x_pixel, y_pixel = samples * blocks * WIDTH, samples * rows
        matrix_tile.begin(MOST_PAIRS)
        for task in prange(parts * g.KH * g.KW * outputs * blocks):
            part, tap = task // (blocks * outputs * g.KW * g.KH), task // (blocks * outputs) % (g.KW * g.KH)
            o, c, p, q = task // blocks % outputs * ROWS, task % blocks * WIDTH, tap // g.KW, tap % g.KW
            i_first, i_end = tile.range_inside(p * g.dilation_h - g.padding_h, g.stride_h, g.OH, g.H)
            j_first, j_end = tile.range_inside(q * g.dilation_w - g.padding_w, g.stride_w, g.OW, g.W)
            acc = matrix_tile.zero(V)
            for i in range(max(i_first, part * g.OH // parts), min(i_end, (part + 1) * g.OH // parts)):
                for j in range(j_first, j_end):
                    r, s = i * g.stride_h + p * g.dilation_h - g.padding_h, j * g.stride_w + q * g.dilation_w - g.padding_w
                    at_dy, at_x = (i * g.OW + j) * y_pixel + o * samples, (r * g.W + s) * x_pixel + 2 * c
                    for m in range(0, samples, 2 * MOST_PAIRS):
                        acc = matrix_tile.dot(acc, dy, at_dy + m, samples, x, at_x + m * blocks * WIDTH, 2 * blocks * WIDTH,
                                              MOST_PAIRS)
            matrix_tile.sums(acc, sums, at_sums)
            for row in range(min(ROWS, g.O - o)):
                at_dw = (((part * g.O + o + row) * g.KH + p) * g.KW + q) * g.C + c
                for lane in range(min(WIDTH, g.C - c)):
                    dw[at_dw + lane] = sums[at_sums + row * WIDTH + lane] + (dw[at_dw + lane] if add else np.float32(0))
        matrix_tile.end()

    return conv2d_backward_weight


@functools.cache
def make_lay_samples(LANES):
    """The kernels that lay out samples for the weight gradient, LANES pairs of channels at a time. They move bits, as float32."""

    @njit(parallel=True, error_model="numpy")
    def pair_samples(paired, x, first, samples, width, pixels, C, n, step, pixel_step):
        """paired[pixel, k, c] = the pair x[first + 2k, pixel, c], x[first + 2k + 1, pixel, c], of `samples` samples, 0 behind n.

        There are `width` pairs for each k; those behind C may be anything.
        """
        for task in prange(pixels * (samples // (2 * P))):
            pixel, k = task // (samples // (2 * P)), task % (samples // (2 * P)) * P
            m = first + 2 * k
            x_rows = tile.rows_strided(P, m * step + pixel * pixel_step, 2 * step)
            rows = tile.rows_strided(P, (pixel * (samples // 2) + k) * width, width)
            for c in range(0, C, LANES):
                tile.store(tile.load_pairs(P, x, x_rows, c, step, n - m), paired, rows, c, 0, P, LANES)

    @njit(parallel=True, error_model="numpy")
    def transpose_samples(transposed, dy, first, samples, outputs, pixels, O, n, step, pixel_step):
        """transposed[pixel, o, k] = the pair dy[first + 2k, pixel, o], dy[first + 2k + 1, pixel, o], of `samples` samples.

        Samples behind n are 0. There are `outputs` rows for each pixel; those behind O may be anything.
        """
        blocks = (O + LANES - 1) // LANES
        for task in prange(pixels * blocks):
            pixel, o = task // blocks, task % blocks * LANES
            for k in range(0, samples // 2, LANES):
                m = first + 2 * k
                dy_rows = tile.rows_strided(LANES, m * step + pixel * pixel_step, 2 * step)
                rows = tile.rows_strided(LANES, (pixel * outputs + o) * (samples // 2) + k, samples // 2)
                acc = tile.transpose(tile.load_pairs(LANES, dy, dy_rows, o, step, n - m))
                tile.store(acc, transposed, rows, 0, 0, LANES, LANES)

    return pair_samples, transpose_samples


@njit(parallel=True)
def add_parts(dw, parts, count, add):
    """dw[k] = (or, with add, +=) parts[0, k] + parts[1, k] + ..., in this order, of `count` parts."""
    size = len(dw)
    for k in prange(size):
        total = parts[k]
        for part in range(1, count):
            total += parts[part * size + k]
        dw[k] = total + dw[k] if add else total


@njit(parallel=True, error_model="numpy")
def pack_weight(packed, w, columns, taps, K, channels, width, column_step, tap_step, step):
    """packed[block, tap, k/2, lane, k%2] = w[column*column_step + tap*tap_step + k*step], column = block*width + lane.

    Of `channels` k, 0 behind the last one of K; and 0 behind the last column. For forward the columns are outputs and k counts
    input channels, for the input gradient it is the other way round.
    """
    for task in prange((columns + width - 1) // width * taps * channels):
        block, tap, k = task // (taps * channels), task // channels % taps, task % channels
        at = ((block * taps + tap) * channels + k // 2 * 2) * width + k % 2
        for lane in range(width):
            column = block * width + lane
            inside = column < columns and k < K
            tile.put(packed, at + 2 * lane, w[column * column_step + tap * tap_step + k * step] if inside else np.float32(0))


@njit(parallel=True, error_model="numpy", allocates=True)
def unfold(out, out_step, channels, columns, x, KW, stride_w, padding_w, dilation_w, n, C, H, W, x_step):
    """out[m, r, j, q*C + c] = x[m, r, j*stride_w + q*dilation_w - padding_w, c], rounded; 0 beside the image and behind KW*C.

    Each pixel of out has `channels` channels, each row `columns` pixels. With dilation_w = 1 a kernel row reads neighbours, one
    piece of KW*C numbers; else each tap is a piece.
    """
    pieces, size = (1, KW * C) if dilation_w == 1 else (KW, C)
    by_vectors, one = pieces == 1 and channels >= LANES_OF_TILE, tile.rows_strided(1, 0, 0)
    line = np.zeros(max((columns - 1) * stride_w + (KW - 1) * dilation_w + 1, padding_w + W) * C + LANES_OF_TILE, np.uint16)
    for task in prange(n * H):
        m, r = task // H, task % H
        for k in range(W * C):
            tile.put(line, padding_w * C + k, tile.get(x, m * x_step + r * W * C + k))
        for j in range(columns):
            at = m * out_step + (r * columns + j) * channels
            for piece in range(pieces):
                read, to = (j * stride_w + piece * dilation_w) * C, at + piece * C
                if by_vectors:
                    for k in range(0, size, LANES_OF_TILE):
                        c = min(k, channels - LANES_OF_TILE)
                        tile.store(tile.load(1, 1, line, one, read + c), out, one, to + c, 0, 1, LANES_OF_TILE)
                else:
                    for c in range(size):
                        tile.put(out, to + c, tile.get(line, read + c))
            for c in range(KW * C, channels):
                out[at + c] = np.uint16(0)


class BFloat16Conv2d(Operation):
    """A convolution of images of one shape in bfloat16. Weights are (O, KH, KW, C), flat, in float32."""

    bfloat16 = sums_float32 = True

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        (self.C, *self.x_size), (self.O, *self.y_size) = x_shape, y_shape
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        (KH, KW), (_, stride_w), (_, padding_w), (_, dilation_w) = kernel_size, stride, padding, dilation
        (H, W), (_, OW) = self.x_size, self.y_size
        few = self.C < FEW and KW > 1
        self.unfolds = (KW, stride_w, padding_w, dilation_w) if few else AS_IT_LIES
        self.read = Read(KW * self.C, H, OW, 1, 1, 0, 1) if few else Read(self.C, H, W, KW, stride_w, padding_w, dilation_w)
        self.taps, self.channels, self.outputs = KH * self.read.KW, in_pairs(self.read.C), in_pairs(self.O)
        self.copies_x, self.copies_dy = few or self.channels > self.C, self.outputs > self.O
        self.V, self.dx_V, self.dw_V = vectors(self.O), vectors(self.C), vectors(self.read.C)
        self.packed_w = allocate((round_up(self.O, self.V * LANES) * self.taps * self.channels,), BFLOAT16)
        self.zeros, self.bias_sums = allocate((self.O,), np.float32), allocate((MOST_PARTS * self.O,), np.float32)
        self.tiles = self.allocate_tiles(np.float32)

    def allocate_tiles(self, dtype):
        """Memory for a tile of each thread."""
        return allocate((THREADS * ROWS * MOST_VECTORS * LANES,), dtype)

    def geometry(self, n, x, y):
        """The sizes of a pass of n samples through these buffers."""
        return Geometry(n, self.C, *self.x_size, self.O, *self.y_size, *self.kernel_size, *self.stride, *self.padding,
                        *self.dilation, x.step, y.step, x.shape[0], y.shape[0], x.zeros, y.zeros)

    def reading(self, g, x):
        """The sizes of a pass as forward and the weight gradient read x, or its copy."""
        return g._replace(**self.read._asdict(), x_step=x.step, x_pixel=x.shape[0])

    def parts(self, n):
        """Into how many partial sums the weight gradient is split, by image rows: it follows from the shapes alone."""
        tasks = self.taps * -(-self.O // ROWS) * -(-self.read.C // (self.dw_V * LANES))
        return max(1, min(MOST_PARTS, self.y_size[0], -(-32 // tasks)))

    def stored(self, x_dtypes, y_dtype):
        self.copies_x, self.copies_dy = self.copies_x or x_dtypes != (BFLOAT16,), self.copies_dy or y_dtype != BFLOAT16

    def reserve(self, batch):
        """What is needed is allocated by the first forward and the first backward."""
        self.batch, self.x_copy, self.dy_copy, self.workspace = batch, None, None, None

    def weight_workspace(self):
        """The memory of the weight gradient: samples of x and of dy as it reads them, and partial sums."""
        if self.workspace is None:
            sizes = [size * self.samples(self.batch) for size in self.work()]
            self.workspace = *(allocate((size,), BFLOAT16) for size in sizes), allocate((self.sums(self.batch),), np.float32)
        return self.workspace

    def sums(self, n):
        """Elements of the partial sums of dw."""
        return self.parts(n) * self.O * self.taps * self.read.C

    def samples(self, n):
        """Of a chunk that begins n samples before the end: no more than buffers have memory for."""
        return min(CHUNK, round_up(n, 2 * MOST_PAIRS))

    def work(self):
        """Numbers for each sample of the copies that the weight gradient reads, of x and of dy."""
        x_size = self.read.H * self.read.W * round_up(self.read.C, self.dw_V * LANES)
        return x_size, math.prod(self.y_size) * round_up(self.O, max(ROWS, LANES))

    def bytes(self, batch):
        return 2 * BFloat16Buffer.elements(batch, self.x_copy_shape()) * self.copies_x

    def backward_bytes(self, batch, dx):
        copy = BFloat16Buffer.elements(batch, (self.outputs, *self.y_size)) * self.copies_dy
        return 2 * (copy + sum(self.work()) * self.samples(batch)) + 4 * self.sums(batch)

    def x_copy_shape(self):
        return self.channels, self.read.H, self.read.W

    def operand(self, n, x):
        """(calls, buffer): what forward reads in the place of x, and the calls that make it."""
        if not (self.copies_x or x.array.dtype != BFLOAT16):
            return [], x
        if self.x_copy is None:
            self.x_copy = BFloat16Buffer(self.batch, self.x_copy_shape(), BFLOAT16)
        return [Call(unfold, (self.x_copy.array, self.x_copy.step, self.channels, self.read.W, x.array, *self.unfolds, n, self.C,
                              *self.x_size, x.step))], self.x_copy

    def dy_operand(self, n, dy):
        """As `operand`, of dy."""
        if not (self.copies_dy or dy.array.dtype != BFLOAT16):
            return [], dy
        if self.dy_copy is None:
            self.dy_copy = BFloat16Buffer(self.batch, (self.outputs, *self.y_size), BFLOAT16)
        return [Call(unfold, (self.dy_copy.array, self.dy_copy.step, self.outputs, self.y_size[1], dy.array, *AS_IT_LIES, n, self.O,
                              *self.y_size, dy.step))], self.dy_copy

    def pack(self, w):
        """The call that packs the weights for forward."""
        C = self.read.C
        return Call(pack_weight, (self.packed_w, w, self.O, self.taps, C, self.channels, self.V * LANES, self.taps * C, C, 1))

    def forward(self, n, y, x, params):
        w, b = params
        calls, read = self.operand(n, x)
        return [*calls, self.pack(w), self.forward_call(n, y, read, self.zeros if b is None else b,
                                                        self.reading(self.geometry(n, x, y), read))]

    def forward_call(self, n, y, x, b, g):
        """The call of the kernel."""
        return Call(make_conv2d_forward(self.V), (
            y.array, x.array, self.packed_w, b, self.tiles, pairs_of(self.channels), g), self.flop(n))

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        calls, dy = self.of_convolution(n, dy)
        dw, db = dparams
        calls += self.backward_bias(n, db, dy, x, add[1])
        if dw is None and dx is None:
            return calls
        copying, read = self.dy_operand(n, dy)
        calls += copying
        g = self.convolution_geometry(n, x, dy)._replace(y_step=read.step, y_pixel=read.shape[0])
        if dw is not None:
            calls += self.backward_weight(n, dw, read, x, add[0], g)
        return calls if dx is None else calls + self.backward_input(n, dx, read, params[0], g)

    def of_convolution(self, n, dy):
        """(calls, buffer): the gradient of what the convolution gives."""
        return [], dy

    def convolution_geometry(self, n, x, y):
        """The sizes of the convolution itself."""
        return self.geometry(n, x, y)

    def backward_bias(self, n, db, dy, x, add):
        """The calls that compute db, unless it is None: partial sums over parts of the batch, then their sum."""
        parts = max(1, min(MOST_PARTS, n))
        return [] if db is None else [
            Call(conv2d_backward_bias, (self.bias_sums, dy.array, self.convolution_geometry(n, x, dy), parts)),
            Call(add_rows, (db, self.bias_sums, self.O, parts, add))]

    def backward_weight(self, n, dw, dy, x, add, g):
        """The calls that compute dw, chunk by chunk of the samples."""
        _, x = self.operand(n, x)
        g, parts = self.reading(g, x), self.parts(n)
        width, rows = round_up(self.read.C, self.dw_V * LANES), round_up(self.O, max(ROWS, LANES))
        pair_samples, transpose_samples = make_lay_samples(LANES_OF_TILE)
        calls, (paired, transposed, dw_parts) = [], self.weight_workspace()
        for first in range(0, max(1, n), CHUNK):
            samples = self.samples(n - first)
            calls += [
                Call(pair_samples, (paired.view(np.float32), x.array, first, samples, width, g.H * g.W, g.C, n, g.x_step,
                                    g.x_pixel)),
                Call(transpose_samples, (transposed.view(np.float32), dy.array, first, samples, rows, g.OH * g.OW, g.O, n,
                                         g.y_step, g.y_pixel)),
                Call(make_conv2d_backward_weight(self.dw_V), (
                    dw_parts, transposed, paired, self.tiles, samples, rows, parts, first > 0, g),
                    self.flop(min(samples, n - first)))]
        return [*calls, Call(add_parts, (dw, dw_parts, parts, add))]

    def backward_input(self, n, dx, dy, w, g):
        """The calls that compute dx."""
        taps = math.prod(self.kernel_size)
        pack = Call(pack_weight, (self.packed_w_for_input, w, self.C, taps, self.O, self.outputs, self.dx_V * LANES, 1, self.C,
                                  taps * self.C))
        return [pack, Call(make_conv2d_backward_input(self.dx_V), (
            dx.array, dy.array, self.packed_w_for_input, self.tiles, pairs_of(self.outputs), g), self.flop(n))]

    @functools.cached_property
    def packed_w_for_input(self):
        """Memory for the weights as the input gradient reads them, which a first layer does not need."""
        return allocate((round_up(self.C, self.dx_V * LANES) * math.prod(self.kernel_size) * self.outputs,), BFLOAT16)

    def flop(self, n):
        """Multiplications and additions of the formula, those with padding included."""
        return 2 * n * self.O * math.prod(self.kernel_size) * self.C * math.prod(self.y_size)


class BFloat16Conv2dMaxPool2d(BFloat16Conv2d):
    """A convolution of stride and dilation 1, pooled in windows side by side, its ReLU included where there is one.

    Backward is that of a convolution where the unit should be so fast that products with the zeros of `unpool` cost less than to
    leave them out. Else (`skips`) it visits the pixels that won alone, as in float32. Parameters are as of
    `conv2d_maxpool2d.Conv2dMaxPool2d`.

    Attributes
    ----------
    argmax : Buffer of uint8
    """

    skips = matrix_tile.SKIPS

    def __init__(self, x_shape, conv_shape, kernel_size, padding, pool_size, relu, dtype):
        super().__init__(x_shape, conv_shape, kernel_size, (1, 1), padding, (1, 1), dtype)
        self.arguments = x_shape, conv_shape, kernel_size, padding, pool_size, relu, dtype
        self.pool_size, self.relu = pool_size, relu
        self.size = conv_shape[1] // pool_size[0], conv_shape[2] // pool_size[1]
        self.best, self.winner = self.allocate_tiles(np.float32), self.allocate_tiles(np.uint8)

    def geometry(self, n, x, y):
        """As of a convolution by windows: OH and OW are the pooled sizes, the strides the window's."""
        (OH, OW), (stride_h, stride_w) = self.size, self.pool_size
        return super().geometry(n, x, y)._replace(OH=OH, OW=OW, stride_h=stride_h, stride_w=stride_w)

    def reading(self, g, x):
        """The strides are the window's here, or those of the convolution, which are 1."""
        return super().reading(g, x)._replace(stride_w=g.stride_w)

    def convolution_geometry(self, n, x, y):
        return super().geometry(n, x, y)

    def reserve(self, batch):
        super().reserve(batch)
        self.argmax = BFloat16Buffer(batch, (self.O, *self.size), np.uint8)
        self.dz, self.ready = None, False

    def bytes(self, batch):
        return super().bytes(batch) + BFloat16Buffer.elements(batch, (self.O, *self.size))

    def backward_bytes(self, batch, dx):
        if self.skips:
            return self.skipping.backward_bytes(batch, dx)
        return super().backward_bytes(batch, dx) + 2 * BFloat16Buffer.elements(batch, (self.O, *self.y_size))

    @functools.cached_property
    def skipping(self):
        """The operation whose backward is this one's."""
        return WinnersInPairs(*self.arguments)

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        if not self.skips:
            return super().backward(n, dx, dparams, dy, x, y, params, add)
        if not self.ready:
            self.skipping.reserve(self.batch, self.argmax)
            self.ready = True
        return self.skipping.backward(n, dx, dparams, dy, x, y, params, add)

    def forward_call(self, n, y, x, b, g):
        low, none = (0, NO_WINNER) if self.relu else (-np.inf, 0)
        return Call(make_conv2d_maxpool2d_forward(self.V), (
            y.array, self.argmax.array, x.array, self.packed_w, b, np.float32(low), np.uint8(none), self.tiles, self.best,
            self.winner, pairs_of(self.channels), g), self.flop(n))

    def stored(self, x_dtypes, y_dtype):
        super().stored(x_dtypes, BFLOAT16)      # which `dz` is, the gradient of the convolution, whatever y is stored in

    def of_convolution(self, n, dy):
        if self.dz is None:
            self.dz = BFloat16Buffer(self.batch, (self.O, *self.y_size), BFLOAT16)
        g = self.geometry(n, dy, dy)
        return [Call(unpool, (self.dz.array, self.dz.step, dy.array, self.argmax.array, *self.y_size, g))], self.dz


class WinnersInPairs(Conv2dMaxPool2d):
    """A backward pass that visits only the pixels that won, for activations in bfloat16."""
    pairs = True

    def reserve(self, batch, argmax):
        super().reserve(batch, argmax)
        self.batch, self.strip_sums = batch, None

    def backward_bytes(self, batch, dx):
        return self.bytes(batch) + 4 * self.strip_size(batch) * dx

    def strip_size(self, batch):
        """Elements of the strips that threads add up the input gradient of a batch in: those of fewer samples have no more rows."""
        (H, W), (_, V, *_, width) = self.x_size, self.dx_tile
        return THREADS * -(-H // self.input_strips(batch)) * W * V * width

    def input_sums(self, dx):
        if self.strip_sums is None:
            self.strip_sums = allocate((self.strip_size(self.batch),), self.dtype)
        return self.strip_sums


class BFloat16Linear(BFloat16Conv2d):
    """y = x W^T + b for vectors: a convolution of images of one pixel."""

    def __init__(self, x_shape, y_shape, dtype):
        super().__init__((*x_shape, 1, 1), (*y_shape, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), dtype)
