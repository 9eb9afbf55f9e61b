"""The linear layer on the GPU: three products of matrices, of which backward computes two in one launch."""
import functools
import inspect

import numpy as np

from nbcnn.kernels.cuda.buffer import allocate, nothing
from nbcnn.kernels.cuda.compat import SIMULATED, Launch, cuda, kernel
from nbcnn.kernels.cuda.conv2d import backward_bias_calls
from nbcnn.kernels.cuda.losses import BLOCK
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put, tile_dot
from nbcnn.kernels.operation import Call, Operation

SIDE, DEPTH = (2, 4) if SIMULATED else (16, 128)    # a block has SIDE x SIDE results, and takes in DEPTH terms of each at a time
THREADS, ROW, SHARED, AT_ONCE = SIDE * SIDE, DEPTH + 1, SIDE * (DEPTH + 1), min(DEPTH, 16)
assert THREADS == BLOCK, "a block of linear_loss computes a loss"


@cuda.jit(device=True)
def product(a, a_row, a_step, rows, b, b_column, b_step, columns, ones, depth, row_first, column_first, a_tile, b_tile):
    """This thread's sum over k < depth of a[row, k] * b[k, column], for the block that begins at (row_first, column_first).

    Element (row, k) of a lies at row*a_row + k*a_step; column `ones` of b holds ones and lies nowhere.
    """
    t = cuda.threadIdx.x
    zero, one = a.dtype.type(0), a.dtype.type(1)
    acc = cuda.local.array(1, a.dtype)
    acc[0] = zero
    for first in range(0, depth, DEPTH):
        for e in range(t, SIDE * DEPTH, THREADS):
            # Neighbouring threads read what lies side by side.
            line, k = (e // DEPTH, e % DEPTH) if a_step == 1 else (e % SIDE, e // SIDE)
            row = row_first + line
            put(a_tile, line * ROW + k, get(a, row * a_row + (first + k) * a_step) if row < rows and first + k < depth else zero)
            line, k = (e // DEPTH, e % DEPTH) if b_step == 1 else (e % SIDE, e // SIDE)
            column, value = column_first + line, zero
            if first + k < depth:
                if column < columns:
                    value = get(b, column * b_column + (first + k) * b_step)
                elif column == ones:
                    value = one
            put(b_tile, line * ROW + k, value)
        cuda.syncthreads()
        for k in range(0, min(DEPTH, depth - first), AT_ONCE):      # beyond the depth there are zeros
            tile_dot(acc, a_tile, t // SIDE * ROW + k, b_tile, t % SIDE * ROW + k, AT_ONCE)
        cuda.syncthreads()
    return acc[0]


@cuda.jit(device=True)
def linear_part(y, x, w, b, n, IN, OUT, a_tile, b_tile):
    """A block's part of y = x W^T + b."""
    t = cuda.threadIdx.x
    row_first, column_first = cuda.blockIdx.x * SIDE, cuda.blockIdx.y * SIDE
    total = product(x, IN, 1, n, w, IN, 1, OUT, -1, IN, row_first, column_first, a_tile, b_tile)
    row, column = row_first + t // SIDE, column_first + t % SIDE
    if row < n and column < OUT:
        put(y, row * OUT + column, total + get(b, column) if len(b) > 0 else total)


@functools.cache
def make_linear_loss(IN, OUT, loss_kernel, VERSION=CODE_VERSION):
    """Forward of a last layer with its loss, for which one block is all there is."""
    loss_part = cuda.jit(device=True)(inspect.unwrap(loss_kernel))

    @kernel(THREADS)
    def linear_loss(y, x, w, b, n, finished, arguments):
        """What linear_forward does, and then, in the block that is the last to finish, what a kernel of losses.py does."""
        _ = VERSION
        a_tile = cuda.shared.array(SHARED, y.dtype)
        b_tile = cuda.shared.array(SHARED, y.dtype)
        last = cuda.shared.array(1, np.int32)
        linear_part(y, x, w, b, n, IN, OUT, a_tile, b_tile)
        cuda.threadfence()          # before it counts as finished, other blocks can see what it wrote
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            last[0] = cuda.atomic.add(finished, 0, 1) + 1 == cuda.gridDim.x * cuda.gridDim.y
        cuda.syncthreads()
        if last[0] != 0:
            cuda.threadfence()
            loss_part(*arguments)
            if cuda.threadIdx.x == 0:
                finished[0] = 0

    return linear_loss


@functools.cache
def make_linear(IN, OUT, VERSION=CODE_VERSION):
    """Forward and backward of y = x W^T + b for so many features."""
    W_BLOCKS_X = -(-(IN + 1) // SIDE)
    X_BLOCKS_X = -(-IN // SIDE)
    W_BLOCKS = -(-OUT // SIDE) * W_BLOCKS_X

    @kernel(THREADS)
    def linear_forward(y, x, w, b, n):
        """y[n, o] = b[o] + sum of x[n, c] * w[o, c]"""
        _ = VERSION
        a_tile = cuda.shared.array(SHARED, y.dtype)      # on lines of their own: the simulator tells arrays apart by line
        b_tile = cuda.shared.array(SHARED, y.dtype)
        linear_part(y, x, w, b, n, IN, OUT, a_tile, b_tile)

    @kernel(THREADS)
    def linear_backward(partial, at_w, at_b, dx, dy, x, w, n, x_blocks):
        """dx[n, c] = sum of dy[n, o] * w[o, c]; in blocks from x_blocks on dw[o, c] = sum of dy[n, o] * x[n, c].

        db[o] = sum of dy[n, o] is a column of dw, of an x that is 1 there.
        """
        _ = VERSION
        a_tile = cuda.shared.array(SHARED, dy.dtype)      # on lines of their own: the simulator tells arrays apart by line
        b_tile = cuda.shared.array(SHARED, dy.dtype)
        t, block = cuda.threadIdx.x, cuda.blockIdx.x - x_blocks
        if block >= 0:
            row_first, column_first = block // W_BLOCKS_X * SIDE, block % W_BLOCKS_X * SIDE
            total = product(dy, 1, OUT, OUT, x, 1, IN, IN, IN, n, row_first, column_first, a_tile, b_tile)
            row, column = row_first + t // SIDE, column_first + t % SIDE
            if row < OUT:
                if column < IN:
                    put(partial, at_w + row * IN + column, total)
                elif column == IN and at_b >= 0:
                    put(partial, at_b + row, total)
        else:
            row_first, column_first = cuda.blockIdx.x // X_BLOCKS_X * SIDE, cuda.blockIdx.x % X_BLOCKS_X * SIDE
            total = product(dy, OUT, 1, n, w, 1, IN, IN, -1, OUT, row_first, column_first, a_tile, b_tile)
            row, column = row_first + t // SIDE, column_first + t % SIDE
            if row < n and column < IN:
                put(dx, row * IN + column, total)

    return linear_forward, linear_backward, W_BLOCKS, X_BLOCKS_X


class Linear(Operation):
    """y = x W^T + b for vectors of in_features; the weights are (out_features, in_features), flat."""

    def __init__(self, x_shape, y_shape, dtype):
        (self.IN,), (self.O,), self.dtype = x_shape, y_shape, np.dtype(dtype)
        self.kernels, self.finished = make_linear(self.IN, self.O), None

    def parts(self, n):
        """Into how many partial sums the weight gradient is split: none, there are blocks enough."""
        return 1

    def forward(self, n, y, x, params):
        return self._forward(self.kernels[0], n, y, x, params)

    def forward_with_loss(self, n, y, x, params, loss):
        """y and its loss in one launch."""
        if self.finished is None:
            self.finished = allocate((1,), np.int32)
        return self._forward(make_linear_loss(self.IN, self.O, loss.kernel.kernel), n, y, x, params, self.finished, loss.arguments)

    def _forward(self, kernel, n, y, x, params, *loss):
        w, b = params
        return [Call(Launch(kernel, (-(-n // SIDE), -(-self.O // SIDE)), THREADS),
                     (y.array, x.array, w, nothing(self.dtype) if b is None else b, n, *loss), 2 * n * self.O * self.IN)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        (dw, db), (_, kernel, w_blocks, x_blocks) = dparams, self.kernels
        w_blocks, x_blocks = 0 if dw is None else w_blocks, 0 if dx is None else x_blocks * -(-n // SIDE)
        calls = backward_bias_calls("linear_backward_bias", n, db, dy, nothing(np.dtype(np.uint8)), 1) if dw is None else []
        if dw is None and dx is None:
            return calls
        partial, at_w = (nothing(self.dtype), 0) if dw is None else (dw.partial, dw.start)
        at_b, dx_array = -1 if db is None else db.start, nothing(self.dtype) if dx is None else dx.array
        arguments = partial, at_w, at_b, dx_array, dy.array, x.array, params[0], n, x_blocks
        flop = 2 * n * self.O * self.IN * ((dw is not None) + (dx is not None))
        return [*calls, Call(Launch(kernel, w_blocks + x_blocks, THREADS), arguments, flop)]
