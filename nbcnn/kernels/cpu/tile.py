"""The register tile: P rows x V vectors of sums that stay in vector registers while a loop runs.

Everything clever about the fast kernels is in this file; the kernels themselves are plain loop nests around
`tile.outer`. A loop that carries a tile looks like this (P and V are compile-time constants):

    acc = tile.zero(P, V, y)                             # P x (V * lanes) sums, all zero
    for k in range(K):
        acc = tile.outer(acc, x, rows, k, w, k * O)      # acc[i, :] += x[rows[i] + k] * w[k*O : k*O + V*lanes]
    tile.store(acc, y, rows_out, o, 0, n_rows, n_lanes)  # y[rows_out[i] + o : ...] = acc[i, :]

Where each lane has a factor of its own, `tile.product` multiplies vectors with vectors. Where only some pixels count, `tile.axpy`
adds a number times vectors to some rows; `tile.pool` keeps the larger of a tile and
what is in memory; `tile.shift` and `tile.transpose` move rows.

To LLVM a tile is an array of vectors; it splits the array, so each vector gets a register. Arrays are addressed flat, in
elements, whatever their shape: `rows` holds one offset per row of the tile, made by `tile.rows_strided` or `tile.rows_counted`.
How many lanes a vector has follows from the array's dtype and from the CPU that Numba compiles for: see `tile.lanes`.

Nothing is checked, as in every hot loop, unless NUMBA_BOUNDSCHECK=1: then each verb compares what it is about to touch
with the array's size (a read may go SLACK elements beyond the end, see `buffer.py`) and raises IndexError.
"""
import numba
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload, register_model

from nbcnn.kernels.cpu.buffer import SLACK

INDEX, INT32, INT16 = ir.IntType(64), ir.IntType(32), ir.IntType(16)
# Numba's target, not the host: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES decide what may be used.
FEATURES = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
VECTOR_BYTES = 64 if "+avx512f" in FEATURES else 32 if "+avx" in FEATURES else 16
MULTIPLY_ADD = "fma" if FEATURES & {"+fma", "+avx512f"} else "fmuladd"


def lanes(dtype):
    """How many elements of a dtype a vector register holds."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def shape_for(width, dtype):
    """The (P, V) that keeps the multipliers busy for `width` channels without running out of registers.

    A vector beyond the width would only multiply padding. 16 sums are the most that 32 registers of 512 bits carry well beside
    their operands, 8 the most with 16 registers; and 8 rows the most, as each has an address.
    """
    if width <= lanes(dtype):
        return 8, 1
    return (8, 2) if VECTOR_BYTES == 64 else (4, 2)


class TileType(types.Type):
    """P rows x V vectors of lanes of a float type."""

    def __init__(self, dtype, p, v):
        self.dtype, self.p, self.v = dtype, p, v
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        self.element = ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)
        super().__init__(name=f"Tile({dtype},{p},{v},{VECTOR_BYTES})")


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.p * tile.v))


class RowsType(types.Type):
    """One offset, in elements, for each of P rows."""

    def __init__(self, p):
        self.p = p
        super().__init__(name=f"Rows({p})")


@register_model(RowsType)
class RowsModel(models.PrimitiveModel):
    def __init__(self, manager, rows):
        super().__init__(manager, rows, ir.ArrayType(INDEX, rows.p))


def _constant(n):
    return ir.Constant(INDEX, n)


def _bytes(element):
    """The size of an element of an array."""
    return {ir.DoubleType(): 8, ir.FloatType(): 4, INT16: 2}[element]


def pointer_to(context, builder, array_type, array, offset, count, slack):
    """Where element `offset` of an array lies; under NUMBA_BOUNDSCHECK, that `count` elements from there may be touched."""
    struct = context.make_array(array_type)(context, builder, array)
    if config.BOUNDSCHECK:
        end = builder.add(struct.nitems, _constant(slack))
        outside = builder.or_(builder.icmp_signed("<", offset, _constant(0)),
                              builder.icmp_signed(">", builder.add(offset, count), end))
        with builder.if_then(outside, likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("a tile reaches outside its array",))
    return builder.gep(struct.data, [offset])


def _load(builder, tile, pointer):
    element = pointer.type.pointee
    loaded = builder.load(builder.bitcast(pointer, ir.VectorType(element, tile.lanes).as_pointer()))
    loaded.align = _bytes(element)
    if element != INT16:
        return loaded
    words = ir.VectorType(INT32, tile.lanes)
    return builder.bitcast(builder.shl(builder.zext(loaded, words), ir.Constant(words, [16] * tile.lanes)), tile.vector)


def _store(builder, tile, vector, pointer):
    element = pointer.type.pointee
    if element == INT16:
        vector = to_bfloat16(builder, vector)
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = _bytes(element)


def _load_row(context, builder, tile, array_type, array, offset):
    """The vectors of array[offset : offset + V*lanes]."""
    start = pointer_to(context, builder, array_type, array, offset, _constant(tile.v * tile.lanes), SLACK)
    return [_load(builder, tile, builder.gep(start, [_constant(k * tile.lanes)])) for k in range(tile.v)]


def _array_of(builder, element, values):
    """What LLVM has for a tile of these vectors, row by row, or for rows at these offsets."""
    array = ir.Constant(ir.ArrayType(element, len(values)), ir.Undefined)
    for j, value in enumerate(values):
        array = builder.insert_value(array, value, j)
    return array


def broadcast(builder, vector, scalar):
    """A number in all lanes of a vector of this type."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, vector.count), [0] * vector.count))


def multiply_add(builder, tile, a, b, c):
    """a*b + c, rounded once, for vectors of a tile."""
    name = f"llvm.{MULTIPLY_ADD}.v{tile.lanes}f{tile.dtype.bitwidth}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(tile.vector, [tile.vector] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic(prefer_literal=True)
def zero(typingctx, p, v, y):
    """A tile of zeros with the dtype of array y, float32 where that holds bfloat16."""
    tile = TileType(_number(y), p.literal_value, v.literal_value)

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(tile.vector, tile.p * tile.v), None)
    return tile(p, v, y), codegen


@intrinsic(prefer_literal=True)
def repeat(typingctx, p, v, b, b_offset):
    """A tile with b[b_offset : b_offset + V*lanes] in every row."""
    tile = TileType(b.dtype, p.literal_value, v.literal_value)

    def codegen(context, builder, signature, args):
        return _array_of(builder, tile.vector, _load_row(context, builder, tile, signature.args[2], args[2], args[3]) * tile.p)
    return tile(p, v, b, types.intp), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, p, v, y, rows, y_offset):
    """The tile whose row i is y[rows[i] + y_offset : ... + V*lanes]; float32 where y holds bfloat16."""
    tile = TileType(_number(y), p.literal_value, v.literal_value)

    def codegen(context, builder, signature, args):
        _, _, y, rows, y_offset = args
        vectors = []
        for i in range(tile.p):
            offset = builder.add(builder.extract_value(rows, i), y_offset)
            vectors += _load_row(context, builder, tile, signature.args[2], y, offset)
        return _array_of(builder, tile.vector, vectors)
    return tile(p, v, y, rows, types.intp), codegen


@intrinsic(prefer_literal=True)
def load_pairs(typingctx, p, x, rows, x_offset, step, count):
    """A tile of one vector a row: lane l of row i holds the bits of x[r + l] and x[r + step + l], uint16, r = rows[i] + x_offset.

    It is a tile of float32, to be moved and stored, not to be computed with. The rows hold `count` such x, two each: where there
    are fewer, those behind are 0. For count = 3 and x[k] = k, row 0 has 0 | step << 16, 1 | (step + 1) << 16, ...; row 1 has
    rows[1], rows[1] + 1, ... alone.
    """
    tile = TileType(types.float32, p.literal_value, 1)
    halves, words = (ir.VectorType(kind, tile.lanes) for kind in (INT16, INT32))

    def codegen(context, builder, signature, args):
        _, x, rows, x_offset, step, count = args
        vectors = []
        for i in range(tile.p):
            at, pair = builder.add(builder.extract_value(rows, i), x_offset), []
            for half in range(2):
                pointer = pointer_to(context, builder, signature.args[1], x, at, _constant(tile.lanes), SLACK)
                loaded = builder.load(builder.bitcast(pointer, halves.as_pointer()))
                loaded.align = 2
                there = builder.icmp_signed("<", _constant(2 * i + half), count)
                pair.append(builder.select(there, builder.zext(loaded, words), ir.Constant(words, None)))
                at = builder.add(at, step)
            upper = builder.shl(pair[1], ir.Constant(words, [16] * tile.lanes))
            vectors.append(builder.bitcast(builder.or_(pair[0], upper), tile.vector))
        return _array_of(builder, tile.vector, vectors)
    return tile(p, x, rows, *[types.intp] * 3), codegen


@intrinsic
def shift(typingctx, acc, y, rows, y_offset):
    """As many rows as `rows` has leave the tile at its beginning, as many are loaded from y at its end."""
    tile = acc

    def codegen(context, builder, signature, args):
        acc, y, rows, y_offset = args
        count = signature.args[2].p
        vectors = [builder.extract_value(acc, j) for j in range(count * tile.v, tile.p * tile.v)]
        for i in range(count):
            offset = builder.add(builder.extract_value(rows, i), y_offset)
            vectors += _load_row(context, builder, tile, signature.args[1], y, offset)
        return _array_of(builder, tile.vector, vectors)
    return tile(tile, y, rows, types.intp), codegen


@intrinsic
def outer(typingctx, acc, x, rows, x_offset, w, w_offset):
    """acc[i, :] += x[rows[i] + x_offset] * w[w_offset : w_offset + V*lanes], for every row i."""
    tile = acc

    def codegen(context, builder, signature, args):
        acc, x, rows, x_offset, w, w_offset = args
        vectors = _load_row(context, builder, tile, signature.args[4], w, w_offset)
        for i in range(tile.p):
            offset = builder.add(builder.extract_value(rows, i), x_offset)
            scalar = builder.load(pointer_to(context, builder, signature.args[1], x, offset, _constant(1), SLACK))
            splat = broadcast(builder, tile.vector, scalar)
            for k in range(tile.v):
                j = i * tile.v + k
                acc = builder.insert_value(
                    acc, multiply_add(builder, tile, splat, vectors[k], builder.extract_value(acc, j)), j)
        return acc
    return tile(tile, x, rows, types.intp, w, types.intp), codegen


@intrinsic
def product(typingctx, acc, x, rows, x_offset, w, w_offset):
    """acc[i, :] += x[rows[i] + x_offset : ... + V*lanes] * w[w_offset : ... + V*lanes], lane by lane, for every row i."""
    tile = acc

    def codegen(context, builder, signature, args):
        acc, x, rows, x_offset, w, w_offset = args
        vectors = _load_row(context, builder, tile, signature.args[4], w, w_offset)
        for i in range(tile.p):
            offset = builder.add(builder.extract_value(rows, i), x_offset)
            for k, vector in enumerate(_load_row(context, builder, tile, signature.args[1], x, offset)):
                j = i * tile.v + k
                acc = builder.insert_value(acc, multiply_add(builder, tile, vector, vectors[k], builder.extract_value(acc, j)), j)
        return acc
    return tile(tile, x, rows, types.intp, w, types.intp), codegen


def for_first(builder, acc, first, most, change):
    """What `change(acc, first)` makes of a tile, for a `first` of 0 to `most`.

    Which registers are changed must be known when compiling: a piece of code for each.
    """
    before, end, ways = builder.block, builder.append_basic_block("first.end"), []
    for shift in range(most + 1):
        block = builder.append_basic_block(f"first.{shift}")
        builder.position_at_end(block)
        ways.append((block, change(acc, shift), builder.block))
        builder.branch(end)
    builder.position_at_end(before)
    switch = builder.switch(first, ways[0][0])
    for shift in range(1, len(ways)):
        switch.add_case(_constant(shift), ways[shift][0])
    builder.position_at_end(end)
    merged = builder.phi(acc.type)
    for _, out, block in ways:
        merged.add_incoming(out, block)
    return merged


@intrinsic
def axpy(typingctx, acc, g, x, rows, x_offset, first):
    """acc[first + i, :] += g * x[rows[i] + x_offset : ... + V*lanes], for a number g and every row i that `rows` has."""
    tile = acc

    def codegen(context, builder, signature, args):
        acc, g, x, rows, x_offset, first = args
        splat, count = broadcast(builder, tile.vector, g), signature.args[3].p

        def add_rows(out, shift):
            for i in range(count):
                offset = builder.add(builder.extract_value(rows, i), x_offset)
                for k, vector in enumerate(_load_row(context, builder, tile, signature.args[2], x, offset)):
                    j = (i + shift) * tile.v + k
                    out = builder.insert_value(out, multiply_add(builder, tile, splat, vector, builder.extract_value(out, j)), j)
            return out
        return for_first(builder, acc, first, tile.p - count, add_rows)
    return tile(tile, tile.dtype, x, rows, types.intp, types.intp), codegen


@intrinsic
def transpose(typingctx, acc):
    """Rows become lanes and lanes rows, of a tile of as many rows as a vector has lanes."""
    tile = acc

    def codegen(context, builder, signature, args):
        rows, step = [builder.extract_value(args[0], i) for i in range(tile.lanes)], 1
        while step < tile.lanes:
            # Of two rows `step` apart, every other `step` lanes change places.
            for i in (i for i in range(tile.lanes) if not i & step):
                lower = [j if not j & step else tile.lanes + j - step for j in range(tile.lanes)]
                upper = [j + step if not j & step else tile.lanes + j for j in range(tile.lanes)]
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = (builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, tile.lanes), mask))
                                           for mask in (lower, upper))
            step *= 2
        return _array_of(builder, tile.vector, rows)
    return tile(tile), codegen


@intrinsic
def pool(typingctx, acc, y, argmax, rows, offset, n_lanes, cell, low, none):
    """Where acc[i, :n_lanes] is larger than y[rows[i] + offset : ...], or is NaN: y = acc and argmax (uint8, there too) = cell.

    Cell 0 begins: it is compared with `low` instead of y, and where it does not win, y = low and argmax = none. For a row of one
    number, acc = 5, cell = 2: y = 3 becomes 5 and its argmax 2; y = 7 stays, and its argmax.
    """
    tile = acc
    bytes_type = ir.VectorType(ir.IntType(8), tile.lanes)

    def codegen(context, builder, signature, args):
        acc, y, argmax, rows, offset, n_lanes, cell, low, none = args
        width = tile.v * tile.lanes
        begins = builder.icmp_unsigned("==", cell, ir.Constant(ir.IntType(8), 0))
        low, none, cell = (broadcast(builder, kind, n) for kind, n in ((tile.vector, low), (bytes_type, none), (bytes_type, cell)))

        def row(i, count):
            """Pointers to y and argmax of row i."""
            at = builder.add(builder.extract_value(rows, i), offset)
            return (pointer_to(context, builder, signature.args[1], y, at, count, 0),
                    pointer_to(context, builder, signature.args[2], argmax, at, count, 0))

        def pool_row(i, source, target):
            for k in range(tile.v):
                at = [_constant(k * tile.lanes)]
                best = builder.select(begins, low, _load(builder, tile, builder.gep(source[0], at)))
                where = builder.load(builder.bitcast(builder.gep(source[1], at), bytes_type.as_pointer()))
                where.align = 1
                where = builder.select(begins, none, where)
                value = builder.extract_value(acc, i * tile.v + k)
                wins = builder.or_(builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value))
                _store(builder, tile, builder.select(wins, value, best), builder.gep(target[0], at))
                pointer = builder.bitcast(builder.gep(target[1], at), bytes_type.as_pointer())
                builder.store(builder.select(wins, cell, where), pointer).align = 1

        spare = cgutils.alloca_once(builder, tile.element, size=width), cgutils.alloca_once(builder, ir.IntType(8), size=width)
        with builder.if_else(builder.icmp_signed(">=", n_lanes, _constant(width))) as (whole, otherwise):
            with whole:
                for i in range(tile.p):
                    pointers = row(i, _constant(width))
                    pool_row(i, pointers, pointers)
            with otherwise:
                for i in range(tile.p):
                    pointers = row(i, n_lanes)
                    pool_row(i, pointers, spare)
                    for to, source, size in zip(pointers, spare, (tile.dtype.bitwidth // 8, 1), strict=True):
                        cgutils.raw_memcpy(builder, to, source, n_lanes, size)
        return context.get_dummy_value()
    return types.void(tile, y, argmax, rows, types.intp, types.intp, types.uint8, tile.dtype, types.uint8), codegen


@intrinsic
def store(typingctx, acc, y, rows, y_offset, first, last, n_lanes):
    """y[rows[i] + y_offset : ...] = acc[i, :n_lanes] for first <= i < last and every row that `rows` has.

    Ranges beyond these, and beyond the lanes of the tile, store all. Where y is uint16, float32 is rounded to bfloat16; see `put`.
    """
    tile = acc
    element = INT16 if y.dtype == types.uint16 else tile.element

    def codegen(context, builder, signature, args):
        acc, y, rows, y_offset, first, last, n_lanes = args
        width = tile.v * tile.lanes

        def store_row(i, start):
            for k in range(tile.v):
                pointer = builder.gep(start, [_constant(k * tile.lanes)])
                _store(builder, tile, builder.extract_value(acc, i * tile.v + k), pointer)

        def each_row():
            """(i, where y has row i) for each row that is asked for, within code that runs only then."""
            for i in range(signature.args[2].p):
                with builder.if_then(builder.and_(builder.icmp_signed("<=", first, _constant(i)),
                                                  builder.icmp_signed("<", _constant(i), last))):
                    yield i, builder.add(builder.extract_value(rows, i), y_offset)

        spare = cgutils.alloca_once(builder, element, size=width)
        with builder.if_else(builder.icmp_signed(">=", n_lanes, _constant(width))) as (whole, ragged):
            with whole:
                for i, offset in each_row():
                    store_row(i, pointer_to(context, builder, signature.args[1], y, offset, _constant(width), 0))
            with ragged:
                for i, offset in each_row():
                    store_row(i, spare)
                    pointer = pointer_to(context, builder, signature.args[1], y, offset, n_lanes, 0)
                    cgutils.raw_memcpy(builder, pointer, spare, n_lanes, _bytes(element))
        return context.get_dummy_value()
    return types.void(tile, y, rows, *[types.intp] * 4), codegen


@intrinsic(prefer_literal=True)
def rows_strided(typingctx, p, start, stride):
    """Rows at start, start + stride, start + 2*stride, ..."""
    rows = RowsType(p.literal_value)

    def codegen(context, builder, signature, args):
        return _array_of(builder, INDEX, [builder.add(args[1], builder.mul(args[2], _constant(i))) for i in range(rows.p)])
    return rows(p, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def rows_inside(typingctx, p, start, stride, first, last):
    """Rows at start + i*stride for first <= i < last; the others, which lie outside the image, repeat the nearest of these."""
    rows = RowsType(p.literal_value)

    def codegen(context, builder, signature, args):
        _, start, stride, first, last = args
        offsets, end = [], builder.sub(last, _constant(1))
        for i in range(rows.p):
            k = builder.select(builder.icmp_signed("<", end, _constant(i)), end, _constant(i))
            k = builder.select(builder.icmp_signed("<", k, first), first, k)
            offsets.append(builder.add(start, builder.mul(stride, k)))
        return _array_of(builder, INDEX, offsets)
    return rows(p, *[types.intp] * 4), codegen


@intrinsic(prefer_literal=True)
def rows_counted(typingctx, p, k, size, count, outer, inner):
    """Rows at the places k, k + 1, ... of two nested loops: place k is at k // size * outer + k % size * inner.

    Beyond place count - 1 that one's offset is repeated. For 4 rows, k = 2 and size = 3: 2*inner, outer, outer + inner,
    outer + 2*inner.
    """
    rows = RowsType(p.literal_value)

    def codegen(context, builder, signature, args):
        _, k, size, count, outer, inner = args
        offsets, one = [], _constant(1)
        m = builder.srem(k, size)
        offset = builder.add(builder.mul(builder.sdiv(k, size), outer), builder.mul(m, inner))
        wrap = builder.sub(outer, builder.mul(builder.sub(size, one), inner))       # from the last place of an inner loop
        for i in range(rows.p):
            offsets.append(offset)
            m = builder.add(m, one)
            ends = builder.icmp_signed("==", m, size)
            m = builder.select(ends, _constant(0), m)
            last = builder.icmp_signed(">=", builder.add(k, _constant(i + 1)), count)
            step = builder.select(ends, wrap, inner)
            offset = builder.add(offset, builder.select(last, _constant(0), step))
        return _array_of(builder, INDEX, offsets)
    return rows(p, *[types.intp] * 5), codegen


@intrinsic
def rows_or_zeros(typingctx, rows, columns, shift, size, zeros):
    """Row i stays where 0 <= columns[i] + shift < size; the others, which lie beside the image, become `zeros`."""
    def codegen(context, builder, signature, args):
        rows, columns, shift, size, zeros = args
        out = rows
        for i in range(signature.args[0].p):
            column = builder.add(builder.extract_value(columns, i), shift)
            inside = builder.icmp_unsigned("<", column, size)       # a negative number is a large one without its sign
            out = builder.insert_value(out, builder.select(inside, builder.extract_value(rows, i), zeros), i)
        return out
    return rows(rows, columns, *[types.intp] * 3), codegen


@numba.njit
def range_inside(start, step, count, size):
    """The range (first, end) of the k < count for which 0 <= start + k*step < size; empty where end <= first."""
    if step == 1:       # spares the divisions, which loops over small images feel
        return max(0, -start), min(count, size - start)
    return max(0, -(start // step)), min(count, (size - 1 - start) // step + 1)


@numba.njit
def last_tap(start, taps, stride, dilation):
    """The last of so many taps k for which start - k*dilation is a multiple of the stride; -1 where none is."""
    for k in range(taps - 1, max(-1, taps - 1 - stride), -1):
        if (start - k * dilation) % stride == 0:
            return k
    return -1


@intrinsic
def bytes_equal(typingctx, x, offset, count, value):
    """A uint64 whose bit k says whether x[offset + k] (uint8) equals value, for k < count <= 64."""
    vector = ir.VectorType(ir.IntType(8), 64)

    def codegen(context, builder, signature, args):
        x, offset, count, value = args
        start = pointer_to(context, builder, signature.args[0], x, offset, count, 0)
        loaded = builder.load(builder.bitcast(start, vector.as_pointer()))
        loaded.align = 1
        equal = builder.bitcast(builder.icmp_unsigned("==", loaded, broadcast(builder, vector, value)), INDEX)
        # A shift by 64 is undefined, so the upper bits go by a shift to the right, by at most 63.
        keep = builder.lshr(ir.Constant(INDEX, -1), builder.sub(_constant(64), count))
        return builder.and_(equal, keep)
    return types.uint64(x, types.intp, types.intp, types.uint8), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """The position of the lowest bit set in a uint64; 64 where none is."""
    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))
    return types.intp(types.uint64), codegen


# ---- single numbers, of arrays of float32, float64 or bfloat16
#
# NumPy has no bfloat16. An array of uint16 holds such numbers: each is the upper half of a float32, which is what is computed with.

def _number(x):
    """The type of a number of array x, which must have no gaps: `get` and `put` would count them as numbers."""
    if x.layout == "A":
        raise TypingError("expected an array without gaps, as np.ascontiguousarray makes")
    return types.float32 if x.dtype == types.uint16 else x.dtype


def to_bfloat16(builder, value):
    """The bits of a float32 rounded to the nearest bfloat16, to the even one of two; of a vector of them, all."""
    count = getattr(value.type, "count", None)

    def of(kind):
        return ir.VectorType(kind, count) if count else kind

    def constant(n):
        return ir.Constant(of(INT32), [n] * count if count else n)
    bits = builder.bitcast(value, of(INT32))
    upper = builder.lshr(bits, constant(16))
    up = builder.add(constant(0x7fff), builder.and_(upper, constant(1)))      # carries where the lower half is more than a half
    rounded = builder.lshr(builder.add(bits, up), constant(16))
    # A NaN whose lower half alone is not 0 must not become infinity: it gets the bit that makes it quiet.
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, builder.or_(upper, constant(0x40)), rounded), of(INT16))


@intrinsic
def get(typingctx, x, offset):
    """x[offset], flat. Numba's own indexing tests for negative indices, which a short inner loop feels."""
    def codegen(context, builder, signature, args):
        value = builder.load(pointer_to(context, builder, signature.args[0], *args, _constant(1), 0))
        if x.dtype != types.uint16:
            return value
        bits = builder.shl(builder.zext(value, INT32), ir.Constant(INT32, 16))
        return builder.bitcast(bits, ir.FloatType())
    return _number(x)(x, types.intp), codegen


@intrinsic
def put(typingctx, x, offset, value):
    """x[offset] = value, flat; see `get`."""
    def codegen(context, builder, signature, args):
        value = to_bfloat16(builder, args[2]) if x.dtype == types.uint16 else args[2]
        builder.store(value, pointer_to(context, builder, signature.args[0], *args[:2], _constant(1), 0))
        return context.get_dummy_value()
    return types.void(x, types.intp, _number(x)), codegen


def number_type(x):
    """The type of what `get` gives of x, for jitted code: x.dtype.type, but float32 for bfloat16."""


@overload(number_type)
def _number_type(x):
    number = np.dtype(_number(x).name).type
    return lambda x: number


def sums(x, at, count):
    """Where x[at : at + count] is added up, for jitted code: there, but float32 apart from x where that holds bfloat16."""


def store_sums(x, at, sums):
    """x[at : at + len(sums)] = what was added up; for bfloat16 this rounds, once, otherwise the sums lie there."""


@overload(sums)
def _sums(x, at, count):
    if x.dtype == types.uint16:
        return lambda x, at, count: np.empty(count, np.float32)
    return lambda x, at, count: x[at:at + count]


@overload(store_sums)
def _store_sums(x, at, sums):
    def rounded(x, at, sums):
        for k in range(len(sums)):
            put(x, at + k, sums[k])
    return rounded if x.dtype == types.uint16 else lambda x, at, sums: None
