"""Convolution on the CPU: forward, the gradient of the input, the gradients of the weights and of the bias.

`__init__.py` says what a tile is and which pixel a tap reads. Two lines are in all kernels here:

    acc = tile.outer(acc, x, rows, at_x, w, at_w)                # acc[row, lane] += x[at_x + rows[row]] * w[at_w + lane]
    rows = tile.rows_counted(P, k, samples, end, pixel, sample)  # rows[row] of place k + row

A place is a pixel of an image row and a sample: place pixel*samples + sample. A tile takes P places from k on. Of P samples these
are one pixel; where fewer samples are left, they are several neighbouring pixels.
"""
import functools
import math
from collections import namedtuple

import numba
import numpy as np

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.buffer import allocate
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Operation

MOST_PARTS = 8      # at most so many partial sums of a weight gradient; how many depends on the shapes alone, not on the threads
WORKSPACE = 2**14   # bytes of dy, about, that a task of the weight gradient works on, to stay in the first cache
PACK_FROM = 16      # samples from which on packing the weights for the input gradient pays

# The sizes of a convolution of n samples. x_step and y_step are the elements from a sample of x or y to the next one, x_pixel and
# y_pixel those from a pixel to the next: C and O, or more where a group has some of the channels. At x_zeros and y_zeros lies a
# pixel of zeros, which is read in the place of pixels beside the image; see `Buffer`.
Geometry = namedtuple("Geometry", (
    "n C H W O OH OW KH KW stride_h stride_w padding_h padding_w dilation_h dilation_w x_step y_step x_pixel y_pixel x_zeros "
    "y_zeros"))

# How weights are stored for the input gradient: the elements from a block of channels to the next one, from a kernel row to the
# next one, from a tap to the next one, and from an output to the next one.
Steps = namedtuple("Steps", "block row tap output")


@functools.cache
def make_conv2d_forward(P, V, LANES):
    """The forward kernel, for a tile of P places, each with V vectors of output channels."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def conv2d_forward(y, x, w, b, g):
        """y[m, i, j, o] = b[o] + sum over p, q, c of x[m, r + p*dilation_h, s + q*dilation_w, c] * w[o, p, q, c].

        r = i*stride_h - padding_h, s = j*stride_w - padding_w. The formula's w is stored as (block, KH, KW, C, WIDTH), for blocks
        of WIDTH outputs; see pack_weight.

        A task is a group of P samples, a block of outputs, and an image row i, P places at a time. The last group may have fewer
        samples: then its rows have fewer places.
        """
        blocks = (g.O + WIDTH - 1) // WIDTH
        for task in prange((g.n + P - 1) // P * blocks * g.OH):
            first, block, i = task_row(task, P, blocks, g.OH)
            samples, top, left = min(P, g.n - first), i * g.stride_h - g.padding_h, -g.padding_w
            p_range = tile.range_inside(top, g.dilation_h, g.KH, g.H)
            at_y = first * g.y_step + i * g.OW * g.y_pixel + block * WIDTH
            for k in range(0, g.OW * samples, P):
                j, j_last, x_rows, columns, y_rows = output_places(k, P, samples, g)
                acc = tile.repeat(P, V, b, block * WIDTH)
                acc = add_taps(acc, x, x_rows, columns, w, block, WIDTH, g, first, top, left, p_range, j, j_last)
                tile.store(acc, y, y_rows, at_y, 0, P, g.O - block * WIDTH)

    return conv2d_forward


@numba.njit(inline="always")        # these helpers are part of the kernels that call them
def task_row(task, P, blocks, rows):
    """The first sample of a task's group, its block of channels, and its image row."""
    return task // (rows * blocks) * P, task // rows % blocks, task % rows


@numba.njit(inline="always")
def output_places(k, P, samples, g):
    """Of P places of an image row from place k on: the first and the last one's column j; where the tile's rows read x, their
    j*stride_w, and where they write y.
    """
    end = g.OW * samples
    x_rows = tile.rows_counted(P, k, samples, end, g.stride_w * g.x_pixel, g.x_step)
    columns = tile.rows_counted(P, k, samples, end, g.stride_w, 0)
    y_rows = tile.rows_counted(P, k, samples, end, g.y_pixel, g.y_step)
    return k // samples, min((k + P - 1) // samples, g.OW - 1), x_rows, columns, y_rows


@numba.njit(inline="always")
def add_taps(acc, x, x_rows, columns, w, block, WIDTH, g, first, top, left, p_range, j, j_last):
    """acc + sum over p in p_range, q, c of x[m, top + p*dilation_h, left + j*stride_w + q*dilation_w, c] * w[p, q, c].

    Each row has its own m and j: its sample, and its pixel from j to j_last; columns[row] is that pixel's j*stride_w. A tap that
    lies beside the image for all rows is left out. Where it does for some only, these read zeros.
    """
    p_first, p_end = p_range
    q_first, _ = tile.range_inside(left + j_last * g.stride_w, g.dilation_w, g.KW, g.W)
    _, q_end = tile.range_inside(left + j * g.stride_w, g.dilation_w, g.KW, g.W)        # of the first pixel: the last to be inside
    for p in range(p_first, p_end):
        for q in range(q_first, q_end):
            column = left + q * g.dilation_w
            at_x = first * g.x_step + ((top + p * g.dilation_h) * g.W + column) * g.x_pixel
            at_w = ((block * g.KH + p) * g.KW + q) * g.C * WIDTH
            rows = x_rows if j == j_last else tile.rows_or_zeros(x_rows, columns, column, g.W, g.x_zeros - at_x)
            for c in range(g.C):
                acc = tile.outer(acc, x, rows, at_x + c, w, at_w + c * WIDTH)
    return acc


@functools.cache
def make_conv2d_backward_input(P, V, LANES):
    """The kernel of the input gradient, for a tile of P places, each with V vectors of input channels."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def conv2d_backward_input(dx, dy, w, steps, g):
        """dx[m, r, s, c] = sum over p, q, o of dy[m, i, j, o] * w[o, p, q, c]; `steps` says how w is stored.

        i = (r + padding_h - p*dilation_h) / stride_h, j likewise. Only taps that give whole numbers count. They are period_h
        (period_w) taps apart, and i (j) of one is step_h (step_w) from that of the next. The loops count them from the last one
        down, by u and v, so that i and j go up.

        Pixels of a tile must share their taps. So an image row r is split into classes of every stride_w-th column. A task is a
        group of P samples, a block of channels, and such a class, whose first column is s, P places at a time as in forward.
        """
        blocks, classes = (g.C + WIDTH - 1) // WIDTH, min(g.stride_w, g.W)
        period_h, step_h = g.stride_h // math.gcd(g.stride_h, g.dilation_h), g.dilation_h // math.gcd(g.stride_h, g.dilation_h)
        period_w, step_w = g.stride_w // math.gcd(g.stride_w, g.dilation_w), g.dilation_w // math.gcd(g.stride_w, g.dilation_w)
        for task in prange((g.n + P - 1) // P * blocks * g.H * classes):
            first, block, row = task_row(task, P, blocks, g.H * classes)
            r, s, samples = row // classes, row % classes, min(P, g.n - first)
            pixels = (g.W - s + g.stride_w - 1) // g.stride_w
            p_last = tile.last_tap(r + g.padding_h, g.KH, g.stride_h, g.dilation_h)
            q_last = tile.last_tap(s + g.padding_w, g.KW, g.stride_w, g.dilation_w)
            i = (r + g.padding_h - p_last * g.dilation_h) // g.stride_h
            j = (s + g.padding_w - q_last * g.dilation_w) // g.stride_w
            u_first, u_end = tile.range_inside(i, step_h, p_last // period_h + 1, g.OH)
            q_count, at_dx = q_last // period_w + 1, first * g.x_step + (r * g.W + s) * g.x_pixel + block * WIDTH
            for k in range(0, pixels * samples, P):
                pixel, pixel_last = k // samples, min((k + P - 1) // samples, pixels - 1)
                v_first, _ = tile.range_inside(j + pixel_last, step_w, q_count, g.OW)
                _, v_end = tile.range_inside(j + pixel, step_w, q_count, g.OW)
                dy_rows = tile.rows_counted(P, k, samples, pixels * samples, g.y_pixel, g.y_step)
                columns = tile.rows_counted(P, k, samples, pixels * samples, 1, 0)
                acc = tile.zero(P, V, dx)
                for u in range(u_first, u_end):
                    for v in range(v_first, v_end):
                        p, q, column = p_last - u * period_h, q_last - v * period_w, j + v * step_w
                        at_dy = first * g.y_step + ((i + u * step_h) * g.OW + column) * g.y_pixel
                        at_w = block * steps.block + p * steps.row + q * steps.tap
                        rows = dy_rows
                        if pixel != pixel_last:
                            rows = tile.rows_or_zeros(dy_rows, columns, column, g.OW, g.y_zeros - at_dy)
                        for o in range(g.O):
                            acc = tile.outer(acc, dy, rows, at_dy + o, w, at_w + o * steps.output)
                dx_rows = tile.rows_counted(P, k, samples, pixels * samples, g.stride_w * g.x_pixel, g.x_step)
                tile.store(acc, dx, dx_rows, at_dx, 0, P, g.C - block * WIDTH)

    return conv2d_backward_input


@functools.cache
def make_conv2d_backward_weight(P, V, LANES):
    """The kernel of the weight gradient, for a tile of P neighbouring weights of a kernel row by V vectors of outputs."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def conv2d_backward_weight(dw, db, work, dy, x, one, g, parts, samples, rows):
        """dw[part, block, p, q, c] = sum over the part's samples m and all i, j of dy[m, i, j, block] * x[m, r, s, c].

        r = i*stride_h + p*dilation_h - padding_h, s likewise. A block is WIDTH outputs side by side, as in forward's weights. The
        tasks that hold a block's first weights sum db too.

        A task is a part, a block and a kernel row p. All its tiles go through `rows` image rows of `samples` samples, of which
        `work` holds the block's dy side by side, then through the next ones; between these the sums lie in dw. So both stay in a
        first cache. With dilation_w = 1 a kernel row reads KW*C neighbouring elements of x, where C is all channels: one piece,
        whose weights are the rows of the tiles. Else each tap is a piece of C elements.
        """
        whole = g.dilation_w == 1 and g.x_pixel == g.C
        blocks, (pieces, size) = (g.O + WIDTH - 1) // WIDTH, (1, g.KW * g.C) if whole else (g.KW, g.C)
        for task in prange(parts * blocks * g.KH):
            p, block, at_work = task % g.KH, task // g.KH, task * samples * rows * g.OW * WIDTH
            part, o = block // blocks, block % blocks * WIDTH       # block: of all parts
            first, last = part * g.n // parts, (part + 1) * g.n // parts
            if p == 0:
                add_pixels(db, block * WIDTH, dy, one, g, first, last, o, False, V, WIDTH)
            i_first, i_end = tile.range_inside(p * g.dilation_h - g.padding_h, g.stride_h, g.OH, g.H)
            at_dw = task * g.KW * g.C
            dw[at_dw * WIDTH:(at_dw + g.KW * g.C) * WIDTH] = dw.dtype.type(0)
            for m in range(first, last, samples):
                for i in range(i_first, i_end, rows):
                    some = g, m, min(m + samples, last), i, min(i + rows, i_end)
                    copy_pixels(work, at_work, dy, o, some, V, WIDTH)
                    for piece in range(pieces):
                        for k in range(0, size, P):
                            add_image_rows(dw, at_dw + piece * g.C + k, work, at_work, x, p, piece, k, size, some, P, V, WIDTH)

    return conv2d_backward_weight


@numba.njit(inline="always")
def copy_pixels(work, at, dy, o, some, V, WIDTH):
    """Copy dy[m, i, :, o:o+WIDTH] of some image rows, pixel by pixel."""
    g, m_first, m_end, i_first, i_end = some
    one = tile.rows_strided(1, 0, 0)
    for m in range(m_first, m_end):
        at_dy = m * g.y_step + i_first * g.OW * g.y_pixel + o
        for pixel in range((i_end - i_first) * g.OW):
            tile.store(tile.load(1, V, dy, one, at_dy + pixel * g.y_pixel), work, one, at, 0, 1, WIDTH)
            at += WIDTH


@numba.njit(inline="always")
def add_image_rows(dw, at_dw, work, at_work, x, p, piece, k, size, some, P, V, WIDTH):
    """dw[at_dw + row] += the sum over some image rows of dy, which lies in `work`, times what weight k + row of a piece reads.

    Where the weights are of several taps q, there are columns j at which all of them read the image, and columns to the left and
    the right of these, at which some do and the others read zeros.
    """
    g, m_first, m_end, i_first, i_end = some
    adjacent, columns = tile.rows_strided(P, 0, 1), tile.rows_counted(P, k, g.C, size, 1, 0)
    q, q_last = piece + k // g.C, piece + (min(k + P, size) - 1) // g.C
    j_first, all_end = tile.range_inside(q_last * g.dilation_w - g.padding_w, g.stride_w, g.OW, g.W)
    all_first, j_end = tile.range_inside(q * g.dilation_w - g.padding_w, g.stride_w, g.OW, g.W)
    all_end, left = max(all_first, all_end), all_first - j_first
    dw_rows = tile.rows_inside(P, at_dw * WIDTH, WIDTH, 0, size - k)
    acc = tile.load(P, V, dw, dw_rows, 0)
    for m in range(m_first, m_end):
        for i in range(i_first, i_end):
            r, s = i * g.stride_h + p * g.dilation_h - g.padding_h, piece * g.dilation_w - g.padding_w
            row_x = m * g.x_step + (r * g.W + s) * g.x_pixel + k
            for j in range(all_first, all_end):
                acc = tile.outer(acc, x, adjacent, row_x + j * g.stride_w * g.x_pixel, work, at_work + j * WIDTH)
            for beside in range(left + j_end - all_end):
                j = j_first + beside if beside < left else all_end + beside - left
                at_x = row_x + j * g.stride_w * g.x_pixel
                rows = tile.rows_or_zeros(adjacent, columns, j * g.stride_w - g.padding_w, g.W, g.x_zeros - at_x)
                acc = tile.outer(acc, x, rows, at_x, work, at_work + j * WIDTH)
            at_work += g.OW * WIDTH
    tile.store(acc, dw, dw_rows, 0, 0, size - k, WIDTH)


@numba.njit(inline="always")
def add_pixels(db, at, dy, one, g, first, end, o, add, V, WIDTH):
    """db[at] = (or, with `add`, +=) the sum over first <= m < end and all i, j of dy[m, i, j, o], for V vectors of outputs."""
    row = tile.rows_strided(1, 0, 0)
    acc = tile.load(1, V, db, row, at) if add else tile.zero(1, V, db)
    for m in range(first, end):
        for pixel in range(g.OH * g.OW):
            acc = tile.outer(acc, one, row, 0, dy, m * g.y_step + pixel * g.y_pixel + o)
    tile.store(acc, db, row, at, 0, 1, WIDTH)


@njit(parallel=True)
def conv2d_backward_bias(sums, dy, g, parts):
    """sums[part, o] = the sum over the part's samples m and all i, j of dy[m, i, j, o]: what is left where weights are frozen."""
    for part in prange(parts):
        row = sums[part * g.O:(part + 1) * g.O]
        row[:] = sums.dtype.type(0)
        for m in range(part * g.n // parts, (part + 1) * g.n // parts):
            for at in range(m * g.y_step, m * g.y_step + g.OH * g.OW * g.y_pixel, g.y_pixel):
                pixel = dy[at:at + g.O]
                for o in range(g.O):
                    row[o] += tile.get(pixel, o)


@njit
def add_rows(db, sums, O, parts, add):
    """db[o] = (or, with add, +=) sums[0, o] + sums[1, o] + ..., in this order."""
    for o in range(O):
        total = sums[o]
        for part in range(1, parts):
            total += sums[part * O + o]
        db[o] = total + db[o] if add else total


@functools.cache
def make_pack_weight(LANES):
    """The kernels that rearrange weights for the others, and gradients back, LANES outputs x LANES weights at a time."""

    @njit(parallel=True)
    def pack_weight(packed, packed_b, w, b, width, O, run):
        """packed[block, k, lane] = w[block*width + lane, k]: for each of `run` weights the values of `width` outputs side by side.

        The bias likewise. Lanes beyond the last output may hold anything: their results are never stored.
        """
        steps = (run + LANES - 1) // LANES
        for task in prange((O + LANES - 1) // LANES * steps):
            o, k = task // steps * LANES, task % steps * LANES
            w_rows = tile.rows_inside(LANES, o * run, run, 0, O - o)
            packed_rows = tile.rows_strided(LANES, o // width * run * width + o % width, width)
            tile.store(tile.transpose(tile.load(LANES, 1, w, w_rows, k)), packed, packed_rows, k * width, 0, run - k, LANES)
            if k == 0:
                for lane in range(o, min(o + LANES, O)):
                    packed_b[lane] = b[lane]

    @njit(parallel=True)
    def unpack_weight(dw, db, packed, packed_b, width, O, run, parts, add_dw, add_db):
        """dw[block*width + lane, k] = (or, with add_dw, +=) packed[0, block, k, lane] + packed[1, ...] + ..., in this order.

        db likewise; it may have no elements.
        """
        steps, blocks, unit = (run + LANES - 1) // LANES, (O + width - 1) // width, dw.dtype.type(1)
        for task in prange((O + LANES - 1) // LANES * steps):
            o, k = task // steps * LANES, task % steps * LANES
            packed_rows = tile.rows_inside(LANES, (o // width * run + k) * width + o % width, width, 0, run - k)
            dw_rows = tile.rows_inside(LANES, o * run + k, run, 0, O - o)
            acc = tile.load(LANES, 1, packed, packed_rows, 0)
            for part in range(1, parts):
                acc = tile.axpy(acc, unit, packed, packed_rows, part * blocks * run * width, 0)
            acc = tile.transpose(acc)
            if add_dw:
                acc = tile.axpy(acc, unit, dw, dw_rows, 0, 0)
            tile.store(acc, dw, dw_rows, 0, 0, O - o, run - k)
            if k == 0:
                for lane in range(o, min(o + LANES, len(db))):
                    total = packed_b[lane]
                    for part in range(1, parts):
                        total += packed_b[part * blocks * width + lane]
                    db[lane] = total + db[lane] if add_db else total

    return pack_weight, unpack_weight


@functools.cache
def make_pack_weight_for_input(V, LANES):
    """The kernel that rearranges weights for the input gradient."""
    WIDTH = V * LANES

    @njit(parallel=True)
    def pack_weight_for_input(packed, w, O, taps, C):
        """packed[block, tap, o, lane] = w[o, tap, block*WIDTH + lane]. Lanes beyond the last channel may hold anything."""
        for task in prange((C + WIDTH - 1) // WIDTH * taps):
            one, at_w = tile.rows_strided(1, 0, 0), task % taps * C + task // taps * WIDTH
            for o in range(O):
                tile.store(tile.load(1, V, w, one, at_w + o * taps * C), packed, one, (task * O + o) * WIDTH, 0, 1, WIDTH)

    return pack_weight_for_input


class Conv2d(Operation):
    """A convolution of images of one shape.

    Weights are (O, KH, KW, C), flat. Forward and the input gradient pack them, each into rows of lanes as it reads them.
    """

    tile_shape, bias_kernel = staticmethod(tile.shape_for), staticmethod(conv2d_backward_bias)

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, dtype):
        (self.C, *self.x_size), (self.O, *self.y_size) = x_shape, y_shape
        self.size = self.y_size
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.dtype = self.product_dtype = np.dtype(dtype)       # of sums, and of what is multiplied
        self.run = math.prod(kernel_size) * self.C
        width = tile.lanes(dtype)
        self.tile = *self.tile_shape(self.O, dtype), width
        self.dx_tile = *self.tile_shape(self.C, dtype), width
        widest = 2 * self.tile[1] * width
        outputs = -(-self.O // widest) * widest
        self.packed_w, self.packed_b = allocate((outputs * self.run,), dtype), allocate((outputs,), dtype)
        self.zeros, self.one = allocate((self.O,), dtype), np.ones(1, dtype)
        self.bias_sums = allocate((MOST_PARTS * self.O,), dtype)

    def geometry(self, n, x, y):
        """The sizes of a pass of n samples through these buffers."""
        return Geometry(n, self.C, *self.x_size, self.O, *self.y_size, *self.kernel_size, *self.stride, *self.padding,
                        *self.dilation, x.step, y.step, x.shape[0], y.shape[0], x.zeros, y.zeros)

    def parts(self, n):
        """Into how many partial sums the weight gradient of n samples is split: it follows from the shapes alone.

        Enough to give 32 tasks, but at most MOST_PARTS, and at least a sample and 64 output pixels each.
        """
        (_, V, width), (KH, _) = self.tile, self.kernel_size
        tasks = KH * -(-self.O // (V * width))
        return max(1, min(MOST_PARTS, n, -(-32 // tasks), n * math.prod(self.y_size) // 64))

    def reserve(self, batch):
        """Allocate what the weight gradient of up to `batch` samples needs."""
        self.dw_parts, self.db_parts, self.dy_work = (allocate((size,), self.dtype) for size in self.sums(batch))

    def sums(self, batch):
        """Elements of the partial sums of dw and of db, and of the workspace of the weight gradient."""
        (_, V, width), KH = self.tile, self.kernel_size[0]
        blocks = self.parts(batch) * -(-self.O // (V * width))
        outputs = blocks * V * width
        return outputs * self.run, outputs, outputs * KH * math.prod(self.at_once()) * self.y_size[1]

    def at_once(self):
        """How many samples, and of these how many rows of dy, a task of the weight gradient works on at a time."""
        (_, V, width), (OH, OW) = self.tile, self.y_size
        pixels = WORKSPACE // (V * width * self.dtype.itemsize)
        return max(1, pixels // max(1, OH * OW)), max(1, min(OH, pixels // max(1, OW)))

    def bytes(self, batch):
        return sum(self.sums(batch)) * self.dtype.itemsize

    def forward(self, n, y, x, params):
        """The calls that compute y = conv(x, w) + b for n samples."""
        P, V, width = self.forward_tile(n)
        return [self.pack(params, V * width), Call(make_conv2d_forward(P, V, width), (
            y.array, x.array, self.packed_w, self.packed_b, self.geometry(n, x, y)), self.flop(n))]

    def forward_tile(self, n):
        """The tile for n samples. Where half of its places would stay empty, it has half of them and twice the outputs."""
        P, V, width = self.tile
        return (P // 2, 2 * V, width) if 2 * n * self.size[1] <= P and self.O > V * width else self.tile

    def pack(self, params, width):
        """The call that packs weights and bias, for tiles of `width` outputs."""
        w, b = params
        return Call(make_pack_weight(tile.lanes(self.dtype))[0], (
            self.packed_w, self.packed_b, w, self.zeros[:self.O] if b is None else b, width, self.O, self.run))

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        """The calls that compute dw and db, and dx, each unless it is None."""
        dw, db = dparams
        calls = self.backward_bias(n, db, dy, x, add[1]) if dw is None else self.backward_weight(n, dparams, dy, x, add)
        return calls if dx is None else calls + self.backward_input(n, dx, dy, params[0])

    def backward_bias(self, n, db, dy, x, add):
        """The calls that compute db alone, unless it is None: partial sums over parts of the batch, then their sum."""
        parts = max(1, min(MOST_PARTS, n))
        return [] if db is None else [
            Call(self.bias_kernel, (self.bias_sums, *self.bias_arguments(dy), self.geometry(n, x, dy), parts)),
            Call(add_rows, (db, self.bias_sums, self.O, parts, add))]

    def bias_arguments(self, dy):
        """The arrays that the bias's kernel reads."""
        return (dy.array,)

    def backward_weight(self, n, dparams, dy, x, add):
        """The calls that compute dw and db: partial sums over parts of the batch, then their sum."""
        (dw, db), parts, (_, V, width) = dparams, self.parts(n), self.tile
        return [
            Call(make_conv2d_backward_weight(*self.tile), (
                self.dw_parts, self.db_parts, self.dy_work, dy.array, x.array, self.one, self.geometry(n, x, dy), parts,
                *self.at_once()), self.flop(n)),
            Call(make_pack_weight(width)[1], (
                dw, self.zeros[:0] if db is None else db, self.dw_parts, self.db_parts, V * width, self.O, self.run, parts, *add))]

    def backward_input(self, n, dx, dy, w):
        """The calls that compute dx."""
        calls, *weights = self.weights_for_input(n, w)
        return [*calls, Call(make_conv2d_backward_input(*self.dx_tile), (
            dx.array, dy.array, *weights, self.geometry(n, dx, dy)), self.flop(n))]

    def weights_for_input(self, n, w):
        """The calls that prepare the weights for an input gradient; where they lie then; and their Steps.

        A few samples read them where they are, unless they must be rounded. There the outputs of a tap are far apart and share a
        few sets of a cache.
        """
        (KH, KW), (_, V, *_, width) = self.kernel_size, self.dx_tile
        if n < PACK_FROM and self.product_dtype == self.dtype:
            return [], w, Steps(V * width, KW * self.C, self.C, self.run)
        packed, tap = self.packed_w_for_input, self.O * V * width
        pack = Call(make_pack_weight_for_input(V, width), (packed, w, self.O, KH * KW, self.C))
        return [pack], packed, Steps(KH * KW * tap, KW * tap, tap, V * width)

    @functools.cached_property
    def packed_w_for_input(self):
        """Memory for these weights, made when a layer needs its input's gradient, which a first one does not."""
        _, V, *_, width = self.dx_tile
        return allocate((-(-self.C // (V * width)) * math.prod(self.kernel_size) * self.O * V * width,), self.product_dtype)

    def flop(self, n):
        """Multiplications and additions of the formula, those with padding included."""
        return 2 * n * self.O * self.run * math.prod(self.y_size)
