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


def get4(a, i):
    """a[i : i+4], read as 16 bytes at a time; i is a multiple of 4."""
    return a[i], a[i + 1], a[i + 2], a[i + 3]


def tile_zero(acc, COUNT):
    """acc[:COUNT] = 0"""
    for k in range(COUNT):
        acc[k] = 0


def tile_dot(acc, xs, at, ws, w_at, COUNT):
    """acc[0] += xs[at + k] * ws[w_at + k] for each k < COUNT."""
    for k in range(COUNT):
        acc[0] += xs[at + k] * ws[w_at + k]


def tile_taps(acc, xs, at, ws, w_at, PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS):
    """acc[k*OUTPUTS + o] += xs[at + pixel k + tap] * ws[w_at + tap*W_STEP + o] for each pixel, each tap and each o < OUTPUTS.

    OUTPUTS, W_STEP and w_at are multiples of 4. PIXELS and TAPS are (rows, columns), X_STEPS the steps in xs (from row to row of
    pixels, from pixel to pixel, from row to row of taps, from tap to tap).
    """
    for p in range(TAPS[0]):
        for q in range(TAPS[1]):
            for u in range(PIXELS[0]):
                for v in range(PIXELS[1]):
                    x = xs[at + u * X_STEPS[0] + v * X_STEPS[1] + p * X_STEPS[2] + q * X_STEPS[3]]
                    for o in range(OUTPUTS):
                        k = (u * PIXELS[1] + v) * OUTPUTS + o
                        acc[k] += x * ws[w_at + (p * TAPS[1] + q) * W_STEP + o]


def tile_winners(acc, gs, g_at, cells, cell_at, xs, at, OUTPUTS, TAPS, WINDOW, X_STEPS):
    """acc[o, p, q] += gs[g_at + o] * xs[at + the cell that won + tap (p, q)] for each o < OUTPUTS and (p, q) of TAPS.

    cells[cell_at + o] = u*WINDOW[1] + v won, or none of the window did. X_STEPS = (from row to row of taps, from tap to tap, from
    cell to cell down, right). Of a window of one cell that one wins; cells is not looked at.
    """
    for o in range(OUTPUTS):
        cell = int(cells[cell_at + o]) if WINDOW[0] * WINDOW[1] > 1 else 0
        if cell < WINDOW[0] * WINDOW[1]:
            won = at + cell // WINDOW[1] * X_STEPS[2] + cell % WINDOW[1] * X_STEPS[3]
            for p in range(TAPS[0]):
                for q in range(TAPS[1]):
                    acc[(o * TAPS[0] + p) * TAPS[1] + q] += gs[g_at + o] * xs[won + p * X_STEPS[0] + q * X_STEPS[1]]


def tile_patch(acc, gs, g_at, cells, cell_at, ws, w_at, WINDOWS, TAPS, WINDOW, W_STEP):
    """acc[pixel (p, q) right and down of the winner] += gs[g] * ws[w_at + tap (p, q)] for each of WINDOWS windows in a row.

    acc is the patch of pixels that they touch, row by row: WINDOW[0] + TAPS[0] - 1 rows, WINDOWS*WINDOW[1] + TAPS[1] - 1 columns.
    """
    columns = WINDOWS * WINDOW[1] + TAPS[1] - 1
    for j in range(WINDOWS):
        cell = int(cells[cell_at + j])
        if cell < WINDOW[0] * WINDOW[1]:
            u, v = cell // WINDOW[1], j * WINDOW[1] + cell % WINDOW[1]
            for p in range(TAPS[0]):
                for q in range(TAPS[1]):
                    k = (u + p) * columns + v + q
                    acc[k] += gs[g_at + j] * ws[w_at + (p * TAPS[1] + q) * W_STEP]


def tile_put(acc, y, at, rows, SIZE, Y_STEPS):
    """y[at + i*Y_STEPS[0] + j*Y_STEPS[1]] = acc[i, j] for i < rows, acc of SIZE = (rows at most, columns)."""
    for i in range(min(rows, SIZE[0])):
        for j in range(SIZE[1]):
            y[at + i * Y_STEPS[0] + j * Y_STEPS[1]] = acc[i * SIZE[1] + j]


def tile_add(acc, y, at, r, s, H, W, SIZE, Y_STEPS):
    """y[at + (r+i)*Y_STEPS[0] + (s+j)*Y_STEPS[1]] += acc[i, j] where (r+i, s+j) is inside H x W, acc of SIZE = (rows, columns)."""
    for i in range(SIZE[0]):
        for j in range(SIZE[1]):
            if 0 <= r + i < H and 0 <= s + j < W:
                y[at + (r + i) * Y_STEPS[0] + (s + j) * Y_STEPS[1]] += acc[i * SIZE[1] + j]


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

    @intrinsic
    def get4(typingctx, a, i):
        def codegen(context, builder, sig, args):
            emit = _Emit(context, builder, sig, args)
            return context.make_tuple(builder, sig.return_type, emit.load_row(emit.base(0, 1), 0, 4))
        return signature(types.UniTuple(a.dtype, 4), a, i), codegen

    @verb
    def tile_zero(typingctx, acc, COUNT):
        def codegen(context, builder, sig, args):
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            for k in range(COUNT.literal_value):
                builder.store(ir.Constant(data.type.pointee, 0), builder.gep(data, [ir.Constant(INDEX, k)]))
            return context.get_dummy_value()
        return signature(types.void, acc, COUNT), codegen

    @verb
    def tile_dot(typingctx, acc, xs, at, ws, w_at, COUNT):
        def emit(e, count):
            acc, x, w = e.data(0), e.base(1, 2), e.base(3, 4)
            for k in range(count):
                e.multiply_add(acc, 0, e.load(x, k), e.load(w, k))
        return _verb(emit, (acc, xs, at, ws, w_at), (COUNT,))

    @verb
    def tile_taps(typingctx, acc, xs, at, ws, w_at, PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS):
        def emit(e, pixels, taps, x_steps, w_step, outputs):
            acc, x, w = e.data(0), e.base(1, 2), e.base(3, 4)
            for p in range(taps[0]):
                for q in range(taps[1]):
                    row = e.load_row(w, (p * taps[1] + q) * w_step, outputs)
                    for u in range(pixels[0]):
                        for v in range(pixels[1]):
                            value = e.load(x, u * x_steps[0] + v * x_steps[1] + p * x_steps[2] + q * x_steps[3])
                            for o in range(outputs):
                                e.multiply_add(acc, (u * pixels[1] + v) * outputs + o, value, row[o])
        return _verb(emit, (acc, xs, at, ws, w_at), (PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS))

    @verb
    def tile_winners(typingctx, acc, gs, g_at, cells, cell_at, xs, at, OUTPUTS, TAPS, WINDOW, X_STEPS):
        def emit(e, outputs, taps, window, x_steps):
            acc, g, cell, x = e.data(0), e.base(1, 2), e.base(3, 4), e.base(5, 6)
            size = taps[0] * taps[1]
            for u in range(window[0]):
                # All that any winner in this row needs, loaded before the branches: neighbouring cells share most of it.
                values = [[e.load(x, k // taps[1] * x_steps[0] + k % taps[1] * x_steps[1] + u * x_steps[2] + v * x_steps[3])
                           for k in range(size)] for v in range(window[1])]
                for o in range(outputs):
                    gradient = e.load(g, o)

                    def add(v, o=o, gradient=gradient, values=values):
                        for k in range(size):
                            e.multiply_add(acc, o * size + k, gradient, values[v][k])
                    e.for_winner(e.load(cell, o), u * window[1], window[1], add) if window != (1, 1) else add(0)
        return _verb(emit, (acc, gs, g_at, cells, cell_at, xs, at), (OUTPUTS, TAPS, WINDOW, X_STEPS))

    @verb
    def tile_patch(typingctx, acc, gs, g_at, cells, cell_at, ws, w_at, WINDOWS, TAPS, WINDOW, W_STEP):
        def emit(e, windows, taps, window, w_step):
            acc, g, cell, w = e.data(0), e.base(1, 2), e.base(3, 4), e.base(5, 6)
            columns = windows * window[1] + taps[1] - 1
            weights = [e.load(w, k * w_step) for k in range(taps[0] * taps[1])]
            for j in range(windows):
                gradient = e.load(g, j)

                def add(k, j=j, gradient=gradient):
                    first = k // window[1] * columns + j * window[1] + k % window[1]
                    for p in range(taps[0]):
                        for q in range(taps[1]):
                            e.multiply_add(acc, first + p * columns + q, gradient, weights[p * taps[1] + q])
                e.for_winner(e.load(cell, j), 0, window[0] * window[1], add)
        return _verb(emit, (acc, gs, g_at, cells, cell_at, ws, w_at), (WINDOWS, TAPS, WINDOW, W_STEP))

    @verb
    def tile_put(typingctx, acc, y, at, rows, SIZE, Y_STEPS):
        def emit(e, size, y_steps):
            acc, y, rows = e.data(0), e.base(1, 2), e.index(3)
            for i in range(size[0]):
                with e.builder.if_then(e.builder.icmp_signed(">", rows, ir.Constant(INDEX, i))):
                    for j in range(size[1]):
                        value = e.builder.load(e.builder.gep(acc, [ir.Constant(INDEX, i * size[1] + j)]))
                        e.builder.store(value, e.builder.gep(y, [ir.Constant(INDEX, i * y_steps[0] + j * y_steps[1])]))
        return _verb(emit, (acc, y, at, rows), (SIZE, Y_STEPS))

    @verb
    def tile_add(typingctx, acc, y, at, r, s, H, W, SIZE, Y_STEPS):
        def emit(e, H, W, size, y_steps):
            acc, y, r, s = e.data(0), e.base(1, 2), e.index(3), e.index(4)
            for start, step in ((r, y_steps[0]), (s, y_steps[1])):
                y = e.builder.gep(y, [e.builder.mul(start, ir.Constant(INDEX, step))])

            def inside(start, k, limit):    # one comparison: what is negative is large without a sign
                return e.builder.icmp_unsigned("<", e.builder.add(start, ir.Constant(INDEX, k)), ir.Constant(INDEX, limit))
            columns = [inside(s, j, W) for j in range(size[1])]
            for i in range(size[0]):
                row = inside(r, i, H)
                for j in range(size[1]):
                    with e.builder.if_then(e.builder.and_(row, columns[j])):
                        at = e.builder.gep(y, [ir.Constant(INDEX, i * y_steps[0] + j * y_steps[1])])
                        value = e.builder.load(e.builder.gep(acc, [ir.Constant(INDEX, i * size[1] + j)]))
                        e.builder.store(e.builder.fadd(e.builder.load(at), value), at)
        return _verb(emit, (acc, y, at, r, s), (H, W, SIZE, Y_STEPS))

    # The cache's key of a kernel holds the device functions it calls, and these hold what they call: by a name that lasts.
    for _name in ("get", "put", "get4", "tile_zero", "tile_dot", "tile_taps", "tile_winners", "tile_patch", "tile_put", "tile_add"):
        globals()[_name]._set_uuid(f"nbcnn.{_name}.{CODE_VERSION}")
