"""The linear layer on the CPU: three products of matrices. The top of `tile.py` says what a tile is."""
import functools

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.conv2d import Conv2d
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call


@functools.cache
def make_linear(P, V, LANES):
    """The kernels for a tile of P rows x V vectors: forward, backward_input and backward_weight."""
    WIDTH = V * LANES

    @njit(parallel=True, error_model="numpy")
    def linear_forward(y, x, w, b, n, C, O):
        """y[m, o] = b[o] + sum over c of x[m, c] * w[o, c]; w is packed: (blocks of WIDTH outputs, C, WIDTH)."""
        blocks = (O + WIDTH - 1) // WIDTH
        for task in prange((n + P - 1) // P * blocks):
            m, block = task // blocks * P, task % blocks
            rows = tile.rows_inside(P, m * C, C, 0, n - m)
            acc = tile.repeat(P, V, b, block * WIDTH)
            for c in range(C):
                acc = tile.outer(acc, x, rows, c, w, (block * C + c) * WIDTH)
            tile.store(acc, y, tile.rows_strided(P, m * O, O), block * WIDTH, 0, n - m, O - block * WIDTH)

    @njit(parallel=True, error_model="numpy")
    def linear_backward_input(dx, dy, w, n, C, O):
        """dx[m, c] = sum over o of dy[m, o] * w[o, c]."""
        blocks = (C + WIDTH - 1) // WIDTH
        for task in prange((n + P - 1) // P * blocks):
            m, c = task // blocks * P, task % blocks * WIDTH
            acc, rows = tile.zero(P, V, dx), tile.rows_inside(P, m * O, O, 0, n - m)
            for o in range(O):
                acc = tile.outer(acc, dy, rows, o, w, o * C + c)
            tile.store(acc, dx, tile.rows_strided(P, m * C, C), c, 0, n - m, C - c)

    @njit(parallel=True, error_model="numpy")
    def linear_backward_weight(dw, db, dy, x, n, C, O, add_dw, add_db):
        """dw[o, c] = (or, with add_dw, +=) the sum over m of dy[m, o] * x[m, c]; db[o] that of dy[m, o], where db has elements."""
        blocks, unit = (O + P - 1) // P, dw.dtype.type(1)
        for task in prange((C + WIDTH - 1) // WIDTH * blocks):
            c, o = task // blocks * WIDTH, task % blocks * P
            acc, rows = tile.zero(P, V, dw), tile.rows_strided(P, 0, 1)
            for m in range(n):
                acc = tile.outer(acc, dy, rows, m * O + o, x, m * C + c)
            dw_rows = tile.rows_inside(P, o * C + c, C, 0, O - o)
            if add_dw:
                acc = tile.axpy(acc, unit, dw, dw_rows, 0, 0)
            tile.store(acc, dw, dw_rows, 0, 0, O - o, C - c)
            if c == 0:
                for k in range(o, min(o + P, len(db))):
                    total = dw.dtype.type(0)
                    for m in range(n):
                        total += dy[m * O + k]
                    db[k] = total + db[k] if add_db else total

    return linear_forward, linear_backward_input, linear_backward_weight


class Linear(Conv2d):
    """y = x W^T + b for vectors of in_features; the weights are (out_features, in_features), flat.

    Its memory is that of a 1x1 convolution of images of one pixel.
    """

    @staticmethod
    def tile_shape(width, dtype):
        """The wide tile for few features too: it costs next to nothing, another compilation seconds."""
        return tile.shape_for(max(width, 2 * tile.lanes(dtype)), dtype)

    def __init__(self, x_shape, y_shape, dtype):
        super().__init__((*x_shape, 1, 1), (*y_shape, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), dtype)
        self.kernels = make_linear(*self.tile)

    def reserve(self, batch):
        """Nothing: the gradients are summed where they go."""

    def bytes(self, batch):
        return 0

    def _call(self, kernel, n, *arrays, add=()):
        return Call(kernel, (*arrays, n, self.C, self.O, *add), self.flop(n))

    def forward(self, n, y, x, params):
        _, V, width = self.tile
        return [self.pack(params, V * width), self._call(self.kernels[0], n, y.array, x.array, self.packed_w, self.packed_b)]

    def backward_input(self, n, dx, dy, w):
        return [self._call(self.kernels[1], n, dx.array, dy.array, w)]

    def backward_weight(self, n, dparams, dy, x, add):
        dw, db = dparams
        return [self._call(self.kernels[2], n, dw, self.zeros[:0] if db is None else db, dy.array, x.array, add=add)]
