"""The sums a thread keeps in registers, and what is added to them in one go.

Everything clever about the fast GPU kernels is in this file; the kernels themselves are plain loop nests around one of these verbs.
`acc` is a `cuda.local.array`. It lies in registers only while every index into it is known to the compiler, and whether that
unrolls a loop depends on its size. So a verb is a Python function that runs while a kernel is compiled. Its loops are over then;
what it does to a number or an array of the kernel becomes an instruction there, a product and its sum one, which is rounded once.
The simulator calls the same function with real numbers and arrays.

Arguments in capitals are compile-time constants. Arrays are flat; nothing is checked, and no index may be negative.
"""
import functools
import inspect
import zlib
from dataclasses import dataclass
from pathlib import Path

from llvmlite import ir

from nbcnn.kernels.cuda.compat import SIMULATED, intrinsic

if not SIMULATED:
    from numba.cuda import types
    from numba.cuda.typing import signature

# Numba's cache does not see that a kernel depends on other files: factories close over this number, which all of them decide.
CODE_VERSION = zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))


# ---- from a verb to code

def verb(function, gives_element=False):
    """Decorate a verb, so that kernels can call it. It then runs on what stands for their numbers and arrays."""
    if SIMULATED:
        return function
    names = inspect.signature(function).parameters

    def typed(typingctx, *kinds):
        def codegen(context, builder, sig, args):
            stand_ins, array = [], None
            for name, kind, value in zip(names, sig.args, args, strict=True):
                stand_ins.append(constant(kind) if name.isupper() else stand_in(context, builder, kind, value, array))
                array = stand_ins[-1] if isinstance(kind, types.Array) else None
            result = function(*stand_ins)
            return result.value if gives_element else context.get_dummy_value()
        return signature(kinds[0].dtype if gives_element else types.void, *kinds), codegen

    first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typed.__name__, typed.__signature__ = function.__name__, inspect.Signature([first, *names.values()])
    made = intrinsic(typed)
    # The cache's key of a kernel holds the device functions it calls, and these hold what they call: by a name that lasts.
    made._set_uuid(f"nbcnn.{function.__name__}.{CODE_VERSION}")
    return made


def constant(kind):
    """The number, or the tuple of numbers, that a type stands for."""
    return tuple(map(constant, kind.types)) if isinstance(kind, types.BaseTuple) else kind.literal_value


def stand_in(context, builder, kind, value, array):
    """What a verb gets in the place of an argument. An integer behind an array is a place in it."""
    if isinstance(kind, types.Array):
        return Array(context, Place(builder, context.make_array(kind)(context, builder, value).data), kind.dtype)
    if isinstance(kind, types.Integer):
        number = Number(builder, context.cast(builder, value, kind, types.intp), types.intp)
        return array.start + number if array else number
    return Number(builder, value, kind)


@dataclass
class Number:
    """A number of a kernel: LLVM's value and Numba's type of it."""
    builder: object
    value: object
    kind: object

    def _of(self, instruction, *others):
        others = [ir.Constant(self.value.type, other) if isinstance(other, int) else other.value for other in others]
        return Number(self.builder, getattr(self.builder, instruction)(self.value, *others), self.kind)

    def __mul__(self, other):
        return self._of("mul", other) if isinstance(other, int) else (self, other)      # not rounded before it is added

    def __add__(self, other):
        if isinstance(other, tuple):
            return other[0]._of("fma", other[1], self)
        return self._of("add" if isinstance(other, int) else "fadd", other)

    def __and__(self, other):
        return self._of("and_", other)

    def __gt__(self, limit):
        return self.compared(self.builder.icmp_signed, ">", limit)

    def compared(self, instruction, sign, limit):
        """A condition, for `when`."""
        return Number(self.builder, instruction(sign, self.value, ir.Constant(self.value.type, limit)), types.boolean)


@dataclass
class Place:
    """A pointer into an array. Verbs add up first what they know of a step, in parentheses: one addition for the kernel."""
    builder: object
    pointer: object

    def __add__(self, step):
        step = ir.Constant(ir.IntType(64), step) if isinstance(step, int) else step.value
        return Place(self.builder, self.builder.gep(self.pointer, [step]))


@dataclass
class Array:
    """A flat array of a kernel. Its places are those of verbs' arguments, or numbers known to the compiler."""
    context: object
    start: Place
    kind: object        # of its elements

    def _place(self, index):
        return index if isinstance(index, Place) else self.start + index

    def __getitem__(self, index):
        at = self._place(index)
        return Number(at.builder, at.builder.load(at.pointer), self.kind)

    def __setitem__(self, index, value):
        at = self._place(index)
        value = (ir.Constant(at.pointer.type.pointee, value) if isinstance(value, int)
                 else self.context.cast(at.builder, value.value, value.kind, self.kind))
        at.builder.store(value, at.pointer)


def row(a, at, COUNT):
    """COUNT elements from a[at] on, four at a time, which are 16 bytes or 32: COUNT and `at` are multiples of 4."""
    if SIMULATED:
        return a[at:at + COUNT]
    elements, builder = [], at.builder
    for k in range(0, COUNT, 4):
        pointer = (at + k).pointer
        four = builder.load(builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, 4).as_pointer(pointer.type.addrspace)))
        four.align = 16
        elements += [Number(builder, builder.extract_element(four, ir.Constant(ir.IntType(32), lane)), a.kind) for lane in range(4)]
    return elements


def inside(k, SIZE):
    """Whether 0 <= k < SIZE, by one comparison: what is negative is large without a sign."""
    return 0 <= k < SIZE if SIMULATED else k.compared(k.builder.icmp_unsigned, "<", SIZE)


def when(condition):
    """The body of a loop over this is done where the condition holds."""
    if not SIMULATED:
        with condition.builder.if_then(condition.value):
            yield
    elif condition:
        yield


def winner(cell, FIRST, COUNT):
    """The body of a loop over this is done for the k < COUNT with FIRST + k the byte `cell`, and for none where it is another."""
    if SIMULATED:
        if FIRST <= cell < FIRST + COUNT:
            yield int(cell) - FIRST
        return
    builder = cell.builder
    done = builder.append_basic_block("done")
    switch = builder.switch(cell.value, done)
    for k in range(COUNT):      # a branch for each
        case = builder.append_basic_block(f"cell{k}")
        switch.add_case(ir.Constant(cell.value.type, FIRST + k), case)
        builder.position_at_end(case)
        yield k
        builder.branch(done)
    builder.position_at_end(done)


# ---- verbs

@functools.partial(verb, gives_element=True)
def get(a, i):
    """a[i], without Numba's test for a negative index."""
    return a[i]


@verb
def put(a, i, value):
    """a[i] = value, without the test."""
    a[i] = value


@verb
def tile_zero(acc, COUNT):
    """acc[:COUNT] = 0"""
    for k in range(COUNT):
        acc[k] = 0


@verb
def tile_dot(acc, x, at_x, w, at_w, COUNT):
    """acc[0] += x[at_x + k] * w[at_w + k] for each k < COUNT."""
    for k in range(COUNT):
        acc[0] += x[at_x + k] * w[at_w + k]


@verb
def tile_taps(acc, x, at_x, w, at_w, PIXELS, TAPS, X_STEPS, W_STEP, OUTPUTS):
    """acc[k*OUTPUTS + o] += x[at_x + pixel k + tap] * w[at_w + tap*W_STEP + o] for each pixel, each tap and each o < OUTPUTS.

    OUTPUTS, W_STEP and at_w are multiples of 4. PIXELS and TAPS are (rows, columns), X_STEPS the steps in x (from row to row of
    pixels, from pixel to pixel, from row to row of taps, from tap to tap).
    """
    (ROWS, COLUMNS), (KH, KW), (PIXEL_ROW, PIXEL, TAP_ROW, TAP) = PIXELS, TAPS, X_STEPS
    for p in range(KH):
        for q in range(KW):
            weights = row(w, at_w + (p * KW + q) * W_STEP, OUTPUTS)
            for u in range(ROWS):
                for v in range(COLUMNS):
                    value = x[at_x + (u * PIXEL_ROW + v * PIXEL + p * TAP_ROW + q * TAP)]
                    for o in range(OUTPUTS):
                        acc[(u * COLUMNS + v) * OUTPUTS + o] += value * weights[o]


@verb
def tile_winners(acc, dy, at_dy, argmax, at_argmax, x, at_x, OUTPUTS, TAPS, POOL_SIZE, X_STEPS):
    """acc[o, p, q] += dy[at_dy + o] * x[at_x + the winner + tap (p, q)] for each o < OUTPUTS and (p, q) of TAPS.

    The winner of a window of POOL_SIZE cells is cell (u, v), where argmax[at_argmax + o] = u*POOL_W + v; any other number says that
    there is none. X_STEPS = (from row to row of taps, from tap to tap, from cell to cell down, right). A window of one cell always
    has a winner, and argmax is not read.
    """
    (KH, KW), (POOL_H, POOL_W), (TAP_ROW, TAP, DOWN, RIGHT) = TAPS, POOL_SIZE, X_STEPS
    taps = [p * TAP_ROW + q * TAP for p in range(KH) for q in range(KW)]
    for u in range(POOL_H):
        # All that any winner in this row needs, loaded before the branches: neighbouring cells share most of it.
        values = [[x[at_x + (u * DOWN + v * RIGHT + tap)] for tap in taps] for v in range(POOL_W)]
        for o in range(OUTPUTS):
            gradient = dy[at_dy + o]
            for v in winner(argmax[at_argmax + o], u * POOL_W, POOL_W) if POOL_H * POOL_W > 1 else [0]:
                for k, value in enumerate(values[v], o * len(taps)):
                    acc[k] += gradient * value


@verb
def tile_patch(acc, dy, at_dy, argmax, at_argmax, w, at_w, WINDOWS, TAPS, POOL_SIZE, W_STEP):
    """acc[the winner + (p, q)] += dy[at_dy + j] * w[at_w + tap (p, q)*W_STEP] for each window j < WINDOWS of a row of windows.

    acc is the patch of pixels that they touch, row by row: POOL_H + KH - 1 rows, WINDOWS*POOL_W + KW - 1 columns. Winners are those
    that argmax[at_argmax + j] names, as above.
    """
    (KH, KW), (POOL_H, POOL_W) = TAPS, POOL_SIZE
    columns = WINDOWS * POOL_W + KW - 1
    weights = [w[at_w + k * W_STEP] for k in range(KH * KW)]
    for j in range(WINDOWS):
        gradient = dy[at_dy + j]
        for cell in winner(argmax[at_argmax + j], 0, POOL_H * POOL_W):
            first = cell // POOL_W * columns + j * POOL_W + cell % POOL_W
            for p in range(KH):
                for q in range(KW):
                    acc[first + p * columns + q] += gradient * weights[p * KW + q]


@verb
def tile_put(acc, y, at_y, rows, SIZE, Y_STEPS):
    """y[at_y + i*DOWN + j*RIGHT] = acc[i, j] for i < rows, acc of SIZE = (rows at most, columns), Y_STEPS = (DOWN, RIGHT)."""
    (ROWS, COLUMNS), (DOWN, RIGHT) = SIZE, Y_STEPS
    for i in range(ROWS):
        for _ in when(i < rows):
            for j in range(COLUMNS):
                y[at_y + (i * DOWN + j * RIGHT)] = acc[i * COLUMNS + j]


@verb
def tile_add(acc, y, at_y, r, s, H, W, SIZE, Y_STEPS):
    """y[at_y + (r+i)*DOWN + (s+j)*RIGHT] += acc[i, j] where (r+i, s+j) is inside H x W; SIZE and Y_STEPS as above."""
    (ROWS, COLUMNS), (DOWN, RIGHT) = SIZE, Y_STEPS
    first, columns = at_y + r * DOWN + s * RIGHT, [inside(s + j, W) for j in range(COLUMNS)]
    for i in range(ROWS):
        row_inside = inside(r + i, H)
        for j in range(COLUMNS):
            for _ in when(row_inside & columns[j]):
                y[first + (i * DOWN + j * RIGHT)] += acc[i * COLUMNS + j]
