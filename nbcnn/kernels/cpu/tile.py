"""The register tile: P rows x V vectors of sums that stay in vector registers while a loop runs.

Everything clever about the fast kernels is in this file; the kernels themselves are plain loop nests around
`tile_outer`. A loop that carries a tile looks like this (P and V are compile-time constants):

    acc = tile_zero(P, V, y)                             # P x (V * lanes) sums, all zero
    for k in range(K):
        acc = tile_outer(acc, x, rows, k, w, k * O)      # acc[i, :] += x[rows[i] + k] * w[k*O : k*O + V*lanes]
    tile_store(acc, y, rows_out, o, n_rows, n_lanes)     # y[rows_out[i] + o : ...] = acc[i, :]

To LLVM a tile is an array of vectors; it splits the array, so each vector gets a register. Arrays are addressed flat, in
elements, whatever their shape: `rows` holds one offset per row of the tile, made by `rows_strided` or `rows_of_pixels`.
How many lanes a vector has follows from the array's dtype and from the CPU that Numba compiles for: see `lanes`.

Nothing is checked, as in every hot loop, unless NUMBA_BOUNDSCHECK=1: then each verb compares what it is about to touch
with the array's size (a read may go SLACK elements beyond the end, see `buffer.py`) and raises IndexError.
"""
import zlib
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_model

from nbcnn.kernels.cpu.buffer import SLACK

# Numba's cache does not see that a kernel of another file depends on this one. A factory closes over this number, and the
# kernel mentions it: an edit of this file then makes another kernel.
TILE_VERSION = zlib.crc32(Path(__file__).read_bytes())

INDEX, INT32 = ir.IntType(64), ir.IntType(32)
# Numba's target, not the host: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES decide what may be used.
FEATURES = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
VECTOR_BYTES = 64 if "+avx512f" in FEATURES else 32 if "+avx" in FEATURES else 16
MULTIPLY_ADD = "fma" if FEATURES & {"+fma", "+avx512f"} else "fmuladd"


def lanes(dtype):
    """How many elements of a dtype a vector register holds."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def tile_shape(width, dtype, adjacent=False):
    """The (P, V) that keeps the multipliers busy for `width` channels without running out of registers.

    A vector beyond the width would only multiply padding. 16 sums are the most that 32 registers of 512 bits carry well beside
    their operands, 8 the most with 16 registers; and 8 rows the most, unless they are adjacent in memory and share an address.
    """
    if width <= lanes(dtype):
        return (16 if adjacent and VECTOR_BYTES == 64 else 8), 1
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


def _pointer(context, builder, array_type, array, offset, count, slack):
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
    vector = builder.load(builder.bitcast(pointer, tile.vector.as_pointer()))
    vector.align = tile.dtype.bitwidth // 8
    return vector


def _store(builder, tile, vector, pointer):
    builder.store(vector, builder.bitcast(pointer, tile.vector.as_pointer())).align = tile.dtype.bitwidth // 8


def _splat(builder, tile, scalar):
    undefined = ir.Constant(tile.vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, tile.lanes), [0] * tile.lanes))


def _multiply_add(builder, tile, a, b, c):
    name = f"llvm.{MULTIPLY_ADD}.v{tile.lanes}f{tile.dtype.bitwidth}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(tile.vector, [tile.vector] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic(prefer_literal=True)
def tile_zero(typingctx, p, v, y):
    """A tile of zeros with the dtype of array y."""
    tile = TileType(y.dtype, p.literal_value, v.literal_value)

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(tile.vector, tile.p * tile.v), None)
    return tile(p, v, y), codegen


@intrinsic(prefer_literal=True)
def tile_rows(typingctx, p, v, b, b_offset):
    """A tile with b[b_offset : b_offset + V*lanes] in every row."""
    tile = TileType(b.dtype, p.literal_value, v.literal_value)

    def codegen(context, builder, signature, args):
        width = tile.v * tile.lanes
        start = _pointer(context, builder, signature.args[2], args[2], args[3], _constant(width), SLACK)
        acc = ir.Constant(ir.ArrayType(tile.vector, tile.p * tile.v), ir.Undefined)
        for k in range(tile.v):
            vector = _load(builder, tile, builder.gep(start, [_constant(k * tile.lanes)]))
            for i in range(tile.p):
                acc = builder.insert_value(acc, vector, i * tile.v + k)
        return acc
    return tile(p, v, b, types.intp), codegen


@intrinsic
def tile_outer(typingctx, acc, x, rows, x_offset, w, w_offset):
    """acc[i, :] += x[rows[i] + x_offset] * w[w_offset : w_offset + V*lanes], for every row i."""
    tile = acc

    def codegen(context, builder, signature, args):
        acc, x, rows, x_offset, w, w_offset = args
        width = _constant(tile.v * tile.lanes)
        start = _pointer(context, builder, signature.args[4], w, w_offset, width, SLACK)
        vectors = [_load(builder, tile, builder.gep(start, [_constant(k * tile.lanes)])) for k in range(tile.v)]
        for i in range(tile.p):
            offset = builder.add(builder.extract_value(rows, i), x_offset)
            scalar = builder.load(_pointer(context, builder, signature.args[1], x, offset, _constant(1), SLACK))
            splat = _splat(builder, tile, scalar)
            for k in range(tile.v):
                j = i * tile.v + k
                acc = builder.insert_value(
                    acc, _multiply_add(builder, tile, splat, vectors[k], builder.extract_value(acc, j)), j)
        return acc
    return tile(tile, x, rows, types.intp, w, types.intp), codegen


@intrinsic
def tile_store(typingctx, acc, y, rows, y_offset, n_rows, n_lanes):
    """y[rows[i] + y_offset : ...] = acc[i, :n_lanes] for i < n_rows; both may exceed the tile, which is then stored whole."""
    tile = acc

    def codegen(context, builder, signature, args):
        acc, y, rows, y_offset, n_rows, n_lanes = args
        width = tile.v * tile.lanes
        whole = builder.and_(builder.icmp_signed(">=", n_rows, _constant(tile.p)),
                             builder.icmp_signed(">=", n_lanes, _constant(width)))

        def row(i, count):
            offset = builder.add(builder.extract_value(rows, i), y_offset)
            return _pointer(context, builder, signature.args[1], y, offset, count, 0)

        def store_row(i, start):
            for k in range(tile.v):
                pointer = builder.gep(start, [_constant(k * tile.lanes)])
                _store(builder, tile, builder.extract_value(acc, i * tile.v + k), pointer)

        spare = cgutils.alloca_once(builder, tile.element, size=width)
        with builder.if_else(whole) as (then, otherwise):
            with then:
                for i in range(tile.p):
                    store_row(i, row(i, _constant(width)))
            with otherwise:
                short = builder.select(builder.icmp_signed("<", n_lanes, _constant(width)), n_lanes, _constant(width))
                for i in range(tile.p):
                    with builder.if_then(builder.icmp_signed("<", _constant(i), n_rows)):
                        store_row(i, spare)
                        cgutils.raw_memcpy(builder, row(i, short), spare, short, tile.dtype.bitwidth // 8)
        return context.get_dummy_value()
    return types.void(tile, y, rows, types.intp, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def rows_strided(typingctx, p, start, stride):
    """Rows at start, start + stride, start + 2*stride, ..."""
    rows = RowsType(p.literal_value)

    def codegen(context, builder, signature, args):
        out = ir.Constant(ir.ArrayType(INDEX, rows.p), ir.Undefined)
        for i in range(rows.p):
            out = builder.insert_value(out, builder.add(args[1], builder.mul(args[2], _constant(i))), i)
        return out
    return rows(p, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def rows_of_pixels(typingctx, p, first, count, width, height, pixel, row, image):
    """Rows at the offsets of pixels first, first + 1, ... of pictures, counted row by row and picture by picture.

    Pixel (n, i, j) lies at n*image + i*row + j*pixel. Beyond pixel count - 1 that one's offset is repeated.
    """
    rows = RowsType(p.literal_value)

    def codegen(context, builder, signature, args):
        _, first, count, width, height, pixel, row, image = args
        j = builder.srem(first, width)
        line = builder.sdiv(first, width)
        i, n = builder.srem(line, height), builder.sdiv(line, height)
        offset = builder.add(builder.mul(n, image), builder.add(builder.mul(i, row), builder.mul(j, pixel)))
        # What a step at the end of a row, and of a picture, adds: computed once, so that a pixel costs no division.
        next_row = builder.sub(row, builder.mul(width, pixel))
        next_image = builder.sub(image, builder.mul(height, row))
        out = ir.Constant(ir.ArrayType(INDEX, rows.p), ir.Undefined)
        zero, one = _constant(0), _constant(1)
        for k in range(rows.p):
            out = builder.insert_value(out, offset, k)
            j = builder.add(j, one)
            row_ends = builder.icmp_signed("==", j, width)
            i = builder.select(row_ends, builder.add(i, one), i)
            image_ends = builder.icmp_signed("==", i, height)
            j, i = builder.select(row_ends, zero, j), builder.select(image_ends, zero, i)
            step = builder.add(pixel, builder.add(builder.select(row_ends, next_row, zero),
                                                  builder.select(image_ends, next_image, zero)))
            last = builder.icmp_signed(">=", builder.add(first, _constant(k + 1)), count)
            offset = builder.select(last, offset, builder.add(offset, step))
        return out
    return rows(p, *[types.intp] * 7), codegen
