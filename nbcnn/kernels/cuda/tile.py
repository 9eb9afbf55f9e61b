"""The sums a thread keeps in registers, and what is added to them in one go.

Everything clever about the fast GPU kernels is in this file; the kernels themselves are plain loop nests around one of these verbs.
`acc` is a `cuda.local.array`. It lies in registers only while every index into it is known to the compiler, and whether that
unrolls a loop depends on its size: so the verbs write out their loops themselves. What each of them does is its Python function
here, which runs in the simulator; the intrinsic under the same name is that, unrolled, a product and its sum rounded once.

Arguments in capitals are compile-time constants. Arrays are flat; nothing is checked, and no index may be negative.
"""
import zlib
from pathlib import Path

from nbcnn.kernels.cuda.compat import SIMULATED, intrinsic, verb

# Numba's cache does not see that a kernel depends on other files: factories close over this number, which all of them decide.
CODE_VERSION = zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))


def get(a, i):
    """a[i], without Numba's test for a negative index."""
    return a[i]


def put(a, i, value):
    """a[i] = value, without the test."""
    a[i] = value


def tile_zero(acc, COUNT):
    """acc[:COUNT] = 0"""
    for k in range(COUNT):
        acc[k] = 0


def tile_dot(acc, x, at_x, w, at_w, COUNT):
    """acc[0] += x[at_x + k] * w[at_w + k] for each k < COUNT."""
    for k in range(COUNT):
        acc[0] += x[at_x + k] * w[at_w + k]


def tile_taps(acc, x, at_x, w, at_w, PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS):
    """acc[k*OUTPUTS + o] += x[at_x + pixel k + tap] * w[at_w + tap*W_STEP + o] for each pixel, each tap and each o < OUTPUTS.

    OUTPUTS, W_STEP and at_w are multiples of 4. PIXELS and TAPS are (rows, columns), X_STEPS the steps in x (from row to row of
    pixels, from pixel to pixel, from row to row of taps, from tap to tap).
    """
    (ROWS, COLUMNS), (KH, KW), (PIXEL_ROW, PIXEL, TAP_ROW, TAP) = PIXELS, TAPS, X_STEPS
    for p in range(KH):
        for q in range(KW):
            for u in range(ROWS):
                for v in range(COLUMNS):
                    value = x[at_x + u * PIXEL_ROW + v * PIXEL + p * TAP_ROW + q * TAP]
                    for o in range(OUTPUTS):
                        acc[(u * COLUMNS + v) * OUTPUTS + o] += value * w[at_w + (p * KW + q) * W_STEP + o]


def tile_winners(acc, dy, at_dy, argmax, at_argmax, x, at_x, OUTPUTS, TAPS, POOL_SIZE, X_STEPS):
    """acc[o, p, q] += dy[at_dy + o] * x[at_x + the winner + tap (p, q)] for each o < OUTPUTS and (p, q) of TAPS.

    The winner of a window of POOL_SIZE cells is cell (u, v), where argmax[at_argmax + o] = u*POOL_W + v; any other number says that
    there is none. X_STEPS = (from row to row of taps, from tap to tap, from cell to cell down, right). A window of one cell always
    has a winner, and argmax is not read.
    """
    (KH, KW), (POOL_H, POOL_W), (TAP_ROW, TAP, DOWN, RIGHT) = TAPS, POOL_SIZE, X_STEPS
    for o in range(OUTPUTS):
        cell = int(argmax[at_argmax + o]) if POOL_H * POOL_W > 1 else 0
        if cell < POOL_H * POOL_W:
            winner = at_x + cell // POOL_W * DOWN + cell % POOL_W * RIGHT
            for p in range(KH):
                for q in range(KW):
                    acc[(o * KH + p) * KW + q] += dy[at_dy + o] * x[winner + p * TAP_ROW + q * TAP]


def tile_patch(acc, dy, at_dy, argmax, at_argmax, w, at_w, WINDOWS, TAPS, POOL_SIZE, W_STEP):
    """acc[the winner + (p, q)] += dy[at_dy + j] * w[at_w + tap (p, q)*W_STEP] for each window j < WINDOWS of a row of windows.

    acc is the patch of pixels that they touch, row by row: POOL_H + KH - 1 rows, WINDOWS*POOL_W + KW - 1 columns. Winners are those
    that argmax[at_argmax + j] names, as above.
    """
    (KH, KW), (POOL_H, POOL_W) = TAPS, POOL_SIZE
    columns = WINDOWS * POOL_W + KW - 1
    for j in range(WINDOWS):
        cell = int(argmax[at_argmax + j])
        if cell < POOL_H * POOL_W:
            u, v = cell // POOL_W, j * POOL_W + cell % POOL_W
            for p in range(KH):
                for q in range(KW):
                    acc[(u + p) * columns + v + q] += dy[at_dy + j] * w[at_w + (p * KW + q) * W_STEP]


def tile_put(acc, y, at_y, rows, SIZE, Y_STEPS):
    """y[at_y + i*DOWN + j*RIGHT] = acc[i, j] for i < rows, acc of SIZE = (rows at most, columns), Y_STEPS = (DOWN, RIGHT)."""
    (ROWS, COLUMNS), (DOWN, RIGHT) = SIZE, Y_STEPS
    for i in range(min(rows, ROWS)):
        for j in range(COLUMNS):
            y[at_y + i * DOWN + j * RIGHT] = acc[i * COLUMNS + j]


def tile_add(acc, y, at_y, r, s, H, W, SIZE, Y_STEPS):
    """y[at_y + (r+i)*DOWN + (s+j)*RIGHT] += acc[i, j] where (r+i, s+j) is inside H x W; SIZE and Y_STEPS as above."""
    (ROWS, COLUMNS), (DOWN, RIGHT) = SIZE, Y_STEPS
    for i in range(ROWS):
        for j in range(COLUMNS):
            if 0 <= r + i < H and 0 <= s + j < W:
                y[at_y + (r + i) * DOWN + (s + j) * RIGHT] += acc[i * COLUMNS + j]


if not SIMULATED:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.typing import signature

    INDEX, INT32 = ir.IntType(64), ir.IntType(32)

    def _literal(value):
        """The number, or the tuple of numbers, that a type stands for."""
        return tuple(map(_literal, value.types)) if isinstance(value, types.BaseTuple) else value.literal_value

    class _Emit:
        """Loads, stores and multiplications of one intrinsic, all of the arrays' element type."""

        def __init__(self, context, builder, sig, args):
            self.context, self.builder, self.types, self.args = context, builder, sig.args, args
            self.seen = {}

        def data(self, array):
            """Where an array begins, given as the position of an argument."""
            return self.context.make_array(self.types[array])(self.context, self.builder, self.args[array]).data

        def index(self, position):
            """An integer argument."""
            return self.context.cast(self.builder, self.args[position], self.types[position], types.intp)

        def base(self, array, index):
            """Where element `index` of an array lies, both given as positions of arguments."""
            return self.builder.gep(self.data(array), [self.index(index)])

        def load(self, pointer, offset):
            """The element so far behind a pointer; the same one is loaded once."""
            key = id(pointer), offset
            if key not in self.seen:
                self.seen[key] = pointer, self.builder.load(self.builder.gep(pointer, [ir.Constant(INDEX, offset)]))
            return self.seen[key][1]

        def load_row(self, pointer, offset, count):
            """So many elements, 16 bytes at a time: offset, count and pointer are multiples of 4 elements."""
            row, vector = [], ir.VectorType(pointer.type.pointee, 4)
            for start in range(offset, offset + count, 4):
                at = self.builder.gep(pointer, [ir.Constant(INDEX, start)])
                four = self.builder.load(self.builder.bitcast(at, vector.as_pointer(at.type.addrspace)))
                four.align = 16
                row += [self.builder.extract_element(four, ir.Constant(INT32, k)) for k in range(4)]
            return row

        def multiply_add(self, acc, k, a, b):
            """acc[k] += a * b, acc a pointer."""
            at = self.builder.gep(acc, [ir.Constant(INDEX, k)])
            element = a.type
            name = f"llvm.fma.f{32 if isinstance(element, ir.FloatType) else 64}"
            module = self.builder.module
            fma = module.globals.get(name) or ir.Function(module, ir.FunctionType(element, [element] * 3), name)
            self.builder.store(self.builder.call(fma, [a, b, self.builder.load(at)]), at)

        def for_winner(self, cell, first, count, emit):
            """Branch to emit(k) for the k < count with first + k the byte `cell`, and to nothing for any other."""
            done = self.builder.append_basic_block("done")
            switch = self.builder.switch(cell, done)
            for k in range(count):
                case = self.builder.append_basic_block(f"cell{k}")
                switch.add_case(ir.Constant(cell.type, first + k), case)
                self.builder.position_at_end(case)
                emit(k)
                self.builder.branch(done)
            self.builder.position_at_end(done)

    def _verb(emit, a, constants):
        """The signature and code of a verb that gives nothing back: its constants are literals, the rest as typed."""
        values = [_literal(c) for c in constants]

        def codegen(context, builder, sig, args):
            emit(_Emit(context, builder, sig, args), *values)
            return context.get_dummy_value()
        return signature(types.void, *a, *constants), codegen

    @intrinsic
    def get(typingctx, a, i):
        def codegen(context, builder, sig, args):
            return builder.load(_Emit(context, builder, sig, args).base(0, 1))
        return signature(a.dtype, a, i), codegen

    @intrinsic
    def put(typingctx, a, i, value):
        def codegen(context, builder, sig, args):
            value = context.cast(builder, args[2], sig.args[2], sig.args[0].dtype)
            builder.store(value, _Emit(context, builder, sig, args).base(0, 1))
            return context.get_dummy_value()
        return signature(types.void, a, i, value), codegen

    @verb
    def tile_zero(typingctx, acc, COUNT):
        def codegen(context, builder, sig, args):
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            for k in range(COUNT.literal_value):
                builder.store(ir.Constant(data.type.pointee, 0), builder.gep(data, [ir.Constant(INDEX, k)]))
            return context.get_dummy_value()
        return signature(types.void, acc, COUNT), codegen

    @verb
    def tile_dot(typingctx, acc, x, at_x, w, at_w, COUNT):
        def emit(e, COUNT):
            acc, x, w = e.data(0), e.base(1, 2), e.base(3, 4)
            for k in range(COUNT):
                e.multiply_add(acc, 0, e.load(x, k), e.load(w, k))
        return _verb(emit, (acc, x, at_x, w, at_w), (COUNT,))

    @verb
    def tile_taps(typingctx, acc, x, at_x, w, at_w, PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS):
        def emit(e, PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS):
            (ROWS, COLUMNS), (KH, KW), (PIXEL_ROW, PIXEL, TAP_ROW, TAP) = PIXELS, TAPS, X_STEPS
            acc, x, w = e.data(0), e.base(1, 2), e.base(3, 4)
            for p in range(KH):
                for q in range(KW):
                    weights = e.load_row(w, (p * KW + q) * W_STEP, OUTPUTS)
                    for u in range(ROWS):
                        for v in range(COLUMNS):
                            value = e.load(x, u * PIXEL_ROW + v * PIXEL + p * TAP_ROW + q * TAP)
                            for o in range(OUTPUTS):
                                e.multiply_add(acc, (u * COLUMNS + v) * OUTPUTS + o, value, weights[o])
        return _verb(emit, (acc, x, at_x, w, at_w), (PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS))

    @verb
    def tile_winners(typingctx, acc, dy, at_dy, argmax, at_argmax, x, at_x, OUTPUTS, TAPS, POOL_SIZE, X_STEPS):
        def emit(e, OUTPUTS, TAPS, POOL_SIZE, X_STEPS):
            (KH, KW), (POOL_H, POOL_W), (TAP_ROW, TAP, DOWN, RIGHT) = TAPS, POOL_SIZE, X_STEPS
            acc, dy, argmax, x, size = e.data(0), e.base(1, 2), e.base(3, 4), e.base(5, 6), KH * KW
            for u in range(POOL_H):
                # All that any winner in this row needs, loaded before the branches: neighbouring cells share most of it.
                values = [[e.load(x, k // KW * TAP_ROW + k % KW * TAP + u * DOWN + v * RIGHT) for k in range(size)]
                          for v in range(POOL_W)]
                for o in range(OUTPUTS):
                    gradient = e.load(dy, o)

                    def add(v, o=o, gradient=gradient, values=values):
                        for k in range(size):
                            e.multiply_add(acc, o * size + k, gradient, values[v][k])
                    e.for_winner(e.load(argmax, o), u * POOL_W, POOL_W, add) if POOL_H * POOL_W > 1 else add(0)
        return _verb(emit, (acc, dy, at_dy, argmax, at_argmax, x, at_x), (OUTPUTS, TAPS, POOL_SIZE, X_STEPS))

    @verb
    def tile_patch(typingctx, acc, dy, at_dy, argmax, at_argmax, w, at_w, WINDOWS, TAPS, POOL_SIZE, W_STEP):
        def emit(e, WINDOWS, TAPS, POOL_SIZE, W_STEP):
            (KH, KW), (POOL_H, POOL_W) = TAPS, POOL_SIZE
            acc, dy, argmax, w = e.data(0), e.base(1, 2), e.base(3, 4), e.base(5, 6)
            columns = WINDOWS * POOL_W + KW - 1
            weights = [e.load(w, k * W_STEP) for k in range(KH * KW)]
            for j in range(WINDOWS):
                gradient = e.load(dy, j)

                def add(k, j=j, gradient=gradient):
                    first = k // POOL_W * columns + j * POOL_W + k % POOL_W
                    for p in range(KH):
                        for q in range(KW):
                            e.multiply_add(acc, first + p * columns + q, gradient, weights[p * KW + q])
                e.for_winner(e.load(argmax, j), 0, POOL_H * POOL_W, add)
        return _verb(emit, (acc, dy, at_dy, argmax, at_argmax, w, at_w), (WINDOWS, TAPS, POOL_SIZE, W_STEP))

    @verb
    def tile_put(typingctx, acc, y, at_y, rows, SIZE, Y_STEPS):
        def emit(e, SIZE, Y_STEPS):
            (ROWS, COLUMNS), (DOWN, RIGHT) = SIZE, Y_STEPS
            acc, y, rows = e.data(0), e.base(1, 2), e.index(3)
            for i in range(ROWS):
                with e.builder.if_then(e.builder.icmp_signed(">", rows, ir.Constant(INDEX, i))):
                    for j in range(COLUMNS):
                        value = e.builder.load(e.builder.gep(acc, [ir.Constant(INDEX, i * COLUMNS + j)]))
                        e.builder.store(value, e.builder.gep(y, [ir.Constant(INDEX, i * DOWN + j * RIGHT)]))
        return _verb(emit, (acc, y, at_y, rows), (SIZE, Y_STEPS))

    @verb
    def tile_add(typingctx, acc, y, at_y, r, s, H, W, SIZE, Y_STEPS):
        def emit(e, H, W, SIZE, Y_STEPS):
            (ROWS, COLUMNS), (DOWN, RIGHT) = SIZE, Y_STEPS
            acc, y, r, s = e.data(0), e.base(1, 2), e.index(3), e.index(4)
            for start, step in ((r, DOWN), (s, RIGHT)):
                y = e.builder.gep(y, [e.builder.mul(start, ir.Constant(INDEX, step))])

            def inside(start, k, limit):    # one comparison: what is negative is large without a sign
                return e.builder.icmp_unsigned("<", e.builder.add(start, ir.Constant(INDEX, k)), ir.Constant(INDEX, limit))
            columns = [inside(s, j, W) for j in range(COLUMNS)]
            for i in range(ROWS):
                row = inside(r, i, H)
                for j in range(COLUMNS):
                    with e.builder.if_then(e.builder.and_(row, columns[j])):
                        at = e.builder.gep(y, [ir.Constant(INDEX, i * DOWN + j * RIGHT)])
                        value = e.builder.load(e.builder.gep(acc, [ir.Constant(INDEX, i * COLUMNS + j)]))
                        e.builder.store(e.builder.fadd(e.builder.load(at), value), at)
        return _verb(emit, (acc, y, at_y, r, s), (H, W, SIZE, Y_STEPS))

    # The cache's key of a kernel holds the device functions it calls, and these hold what they call: by a name that lasts.
    for _name in ("get", "put", "tile_zero", "tile_dot", "tile_taps", "tile_winners", "tile_patch", "tile_put", "tile_add"):
        globals()[_name]._set_uuid(f"nbcnn.{_name}.{CODE_VERSION}")
