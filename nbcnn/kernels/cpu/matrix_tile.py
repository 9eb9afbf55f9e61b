"""The matrix tile: ROWS x V*16 float32 sums of products of bfloat16, on the unit made for them. The sibling of `tile.py`.

    matrix_tile.begin(pairs)                                # before the loops of a thread, for products of so many pairs
    acc = matrix_tile.zero(V)
    for k in range(K // (2 * pairs)):
        acc = matrix_tile.dot(acc, x, at_x, x_step, w, at_w, w_step, pairs)
    matrix_tile.sums(acc, out, at)                          # out[at + row*V*16 + lane], float32
    matrix_tile.end()

`dot` multiplies ROWS rows of x with columns of w, which lie in pairs, as the units read them:

    acc[row, lane] += sum over k < pairs of  x[row, 2k] * w[k, lane, 0] + x[row, 2k+1] * w[k, lane, 1]

    x[row, k] lies at at_x + row*x_step + k;  w[k, lane, half] at at_w + k*w_step + 2*lane + half.

All are uint16 arrays of bfloat16; `pairs` is 16 at most. ROWS rows are read, whatever they hold. A kernel is written once: which
unit it is compiled for, `unit.py` says. Products are exact, as long as they are numbers of float32 (units round a product and a sum
once, the definition each). Sums are rounded to nearest even, denormals count as 0, and their order is the unit's own:

    amx, emulated    all first products of the pairs one after another, all second ones likewise, both sums, then acc + that
    avx512bf16       acc + second product + first product, pair after pair

Where only some numbers count, `pair`, `axpy` and `in_order` work on a tile of `tile.py`, whatever the unit; see there.
"""
import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import CHOICES
from nbcnn.kernels.cpu.unit import compiled_for

UNIT = CHOICES["matrix_tile.py"] = compiled_for()
LANES = 16                      # sums in a vector, columns of a tile register
ROWS = 8 if UNIT == "avx512bf16" else 32
MOST_PAIRS = 16                 # 64 bytes of a row
ALLOCATES = UNIT == "emulated"  # whether a tile is an array
SKIPS = UNIT == "avx512bf16"    # whether it pays to leave out the zeros behind max pooling: a matrix unit should be faster

BYTE, INT32, INDEX, VOID = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.VoidType()
FLOATS = ir.VectorType(ir.FloatType(), LANES)
VECTORS = {"amx": 0, "avx512bf16": ROWS}        # of a tile that LLVM holds; AMX's lie in registers that it does not know


# ---- the definition

@numba.njit
def _flush(v):
    """Denormal numbers as 0."""
    return np.float32(0) if abs(v) < np.float32(2.0**-126) else v


@numba.njit
def emulated_begin(pairs):
    """Nothing is to be configured."""


@numba.njit
def emulated_end():
    """Nothing is to be released."""


@numba.njit
def emulated_zero(V):
    """ROWS x V*16 sums of 0, and behind them two rows in which `dot` adds up."""
    return np.zeros((ROWS + 2) * V * LANES, np.float32)


@numba.njit
def emulated_dot(acc, x, at_x, x_step, w, at_w, w_step, pairs):
    """acc plus the products, in the order of AMX's instruction."""
    width = len(acc) // (ROWS + 2)
    firsts, seconds = acc[ROWS * width:(ROWS + 1) * width], acc[(ROWS + 1) * width:]
    for row in range(ROWS):
        firsts[:] = seconds[:] = np.float32(0)
        for k in range(pairs):
            a, b = (_flush(tile.get(x, at_x + row * x_step + 2 * k)), _flush(tile.get(x, at_x + row * x_step + 2 * k + 1)))
            for lane in range(width):
                at = at_w + k * w_step + 2 * lane
                firsts[lane] = _flush(firsts[lane] + a * _flush(tile.get(w, at)))
                seconds[lane] = _flush(seconds[lane] + b * _flush(tile.get(w, at + 1)))
        for lane in range(width):
            acc[row * width + lane] = _flush(acc[row * width + lane] + _flush(firsts[lane] + seconds[lane]))
    return acc


@numba.njit
def emulated_sums(acc, out, at):
    """out[at:] = the sums, row by row."""
    for k in range(len(acc) * ROWS // (ROWS + 2)):
        out[at + k] = acc[k]


# ---- the units

class MatrixTileType(types.Type):
    """ROWS x V*16 sums in a unit's registers."""

    def __init__(self, v):
        self.v = v
        super().__init__(name=f"MatrixTile({UNIT},{v})")


@register_model(MatrixTileType)
class MatrixTileModel(models.PrimitiveModel):
    def __init__(self, manager, acc):
        super().__init__(manager, acc, ir.ArrayType(FLOATS, VECTORS.get(UNIT, 0) * acc.v))


def _call(builder, name, *arguments):
    """Call an instruction of AMX, which has numbers for its registers."""
    function = ir.FunctionType(VOID, [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.{name}"), arguments)


def _byte(n):
    return ir.Constant(BYTE, n)


def _at(context, builder, array_type, array, offset, target):
    """A pointer to an element of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), target.as_pointer())


# AMX's eight registers: 0 and 1 the sums of the first 16 rows, 2 and 3 of the others; 4 and 5 rows of x; 6 and 7 columns of w.
X, W = (4, 5), (6, 7)


def _sums_register(half, v):
    return 2 * half + v


@intrinsic
def amx_begin(typingctx, pairs):
    """Give the registers their sizes: 16 rows of 64 bytes, but `pairs` pairs in a row of x, and `pairs` rows of w."""
    def codegen(context, builder, signature, args):
        layout = [_byte(0)] * 64
        layout[0] = _byte(1)        # palette 1
        for register in range(8):
            layout[16 + 2 * register], layout[48 + register] = _byte(64), _byte(16)
        config = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(BYTE, 64), layout))
        count = builder.trunc(args[0], BYTE)
        start = builder.bitcast(config, BYTE.as_pointer())
        for register in X:
            builder.store(builder.mul(count, _byte(4)), builder.gep(start, [ir.Constant(INDEX, 16 + 2 * register)]))
        for register in W:
            builder.store(count, builder.gep(start, [ir.Constant(INDEX, 48 + register)]))
        _call(builder, "ldtilecfg", start)
        return context.get_dummy_value()
    return types.void(types.intp), codegen


@intrinsic
def amx_end(typingctx):
    """Give the registers back: threads that hold them make every switch to another one longer."""
    def codegen(context, builder, signature, args):
        _call(builder, "tilerelease")
        return context.get_dummy_value()
    return types.void(), codegen


@intrinsic(prefer_literal=True)
def amx_zero(typingctx, v):
    acc = MatrixTileType(v.literal_value)

    def codegen(context, builder, signature, args):
        for half in range(2):
            for k in range(acc.v):
                _call(builder, "tilezero", _byte(_sums_register(half, k)))
        return ir.Constant(ir.ArrayType(FLOATS, 0), ir.Undefined)
    return acc(v), codegen


@intrinsic
def amx_dot(typingctx, acc, x, at_x, x_step, w, at_w, w_step, pairs):
    def codegen(context, builder, signature, args):
        _, x, at_x, x_step, w, at_w, w_step, _ = args
        x_bytes, w_bytes = (builder.mul(step, ir.Constant(INDEX, 2)) for step in (x_step, w_step))
        for half, register in enumerate(X):
            at = builder.add(at_x, builder.mul(x_step, ir.Constant(INDEX, 16 * half)))
            _call(builder, "tileloadd64", _byte(register), _at(context, builder, signature.args[1], x, at, BYTE), x_bytes)
        for k, register in enumerate(W[:acc.v]):
            at = builder.add(at_w, ir.Constant(INDEX, 2 * LANES * k))
            _call(builder, "tileloadd64", _byte(register), _at(context, builder, signature.args[4], w, at, BYTE), w_bytes)
        for half in range(2):
            for k in range(acc.v):
                _call(builder, "tdpbf16ps", _byte(_sums_register(half, k)), _byte(X[half]), _byte(W[k]))
        return args[0]
    return acc(acc, x, types.intp, types.intp, w, *[types.intp] * 3), codegen


@intrinsic
def amx_sums(typingctx, acc, out, at):
    def codegen(context, builder, signature, args):
        for half in range(2):
            for k in range(acc.v):
                at = builder.add(args[2], ir.Constant(INDEX, LANES * (16 * half * acc.v + k)))
                _call(builder, "tilestored64", _byte(_sums_register(half, k)),
                      _at(context, builder, signature.args[1], args[1], at, BYTE), ir.Constant(INDEX, 4 * LANES * acc.v))
        return context.get_dummy_value()
    return types.void(acc, out, types.intp), codegen


class BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not know."""
    intrinsic_name = "bf16"

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


# LLVM 15, which Numba 0.61 has, takes pairs as integers.
PAIR_VECTOR = ir.VectorType(BFloat(), 2 * LANES) if llvmlite.binding.llvm_version_info[0] > 15 else ir.VectorType(INT32, LANES)


def _vdpbf16ps(builder, sums, x, w):
    """sums plus the products of two vectors of pairs, of whatever type."""
    dot = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS, PAIR_VECTOR, PAIR_VECTOR]),
                                         "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(dot, [sums, builder.bitcast(x, PAIR_VECTOR), builder.bitcast(w, PAIR_VECTOR)])


@intrinsic(prefer_literal=True)
def avx512bf16_zero(typingctx, v):
    acc = MatrixTileType(v.literal_value)

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(FLOATS, ROWS * acc.v), None)
    return acc(v), codegen


@intrinsic
def avx512bf16_dot(typingctx, acc, x, at_x, x_step, w, at_w, w_step, pairs):
    def codegen(context, builder, signature, args):
        acc, x, at_x, x_step, w, at_w, w_step, pairs = args
        kind = signature.args[0]
        rows = [_at(context, builder, signature.args[1], x, builder.add(at_x, builder.mul(x_step, ir.Constant(INDEX, row))), INT32)
                for row in range(ROWS)]
        # A loop of its own, which carries the sums.
        before, loop, end = builder.block, builder.append_basic_block("pairs"), builder.append_basic_block("pairs.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, held = builder.phi(INDEX), builder.phi(acc.type)
        out, columns = held, []
        for v in range(kind.v):
            at = builder.add(builder.add(at_w, builder.mul(k, w_step)), ir.Constant(INDEX, 2 * LANES * v))
            columns.append(builder.load(_at(context, builder, signature.args[4], w, at, PAIR_VECTOR)))
            columns[-1].align = 2
        for row in range(ROWS):
            pair = builder.load(builder.gep(rows[row], [k]))
            pair.align = 2
            pair = tile.broadcast(builder, ir.VectorType(INT32, LANES), pair)
            for v, column in enumerate(columns):
                at = row * kind.v + v
                value = _vdpbf16ps(builder, builder.extract_value(out, at), pair, column)
                out = builder.insert_value(out, value, at)
        following = builder.add(k, ir.Constant(INDEX, 1))
        k.add_incoming(ir.Constant(INDEX, 0), before)
        k.add_incoming(following, builder.block)
        held.add_incoming(acc, before)
        held.add_incoming(out, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, end)
        builder.position_at_end(end)
        return out
    return acc(acc, x, types.intp, types.intp, w, *[types.intp] * 3), codegen


@intrinsic
def avx512bf16_sums(typingctx, acc, out, at):
    def codegen(context, builder, signature, args):
        for k in range(ROWS * acc.v):
            at = _at(context, builder, signature.args[1], args[1], builder.add(args[2], ir.Constant(INDEX, LANES * k)), FLOATS)
            builder.store(builder.extract_value(args[0], k), at).align = 4
        return context.get_dummy_value()
    return types.void(acc, out, types.intp), codegen


# ---- where only some numbers count: a tile of `tile.py` whose vectors get products in pairs

IN_PAIR = 2         # numbers of bfloat16 that `axpy` multiplies at a time


def _interleaved(lanes, half):
    """Which of 4*lanes numbers, of two vectors of 2*lanes, the pairs are made of that a vector of sums gets: as x86 unpacks them,
    the lower or the upper four of each eight."""
    return [side * 2 * lanes + 8 * (pair // 4) + 4 * half + pair % 4 for pair in range(lanes) for side in range(2)]


@intrinsic
def pair(typingctx, g, one, other, both):
    """The pair g[one], g[other] for `axpy`, rounded where g is float32; not `both`: g[one], 0."""
    def codegen(context, builder, signature, args):
        g, one, other, both = args
        first, second = (builder.load(tile.pointer_to(context, builder, signature.args[0], g, at, ir.Constant(INDEX, 1), 0))
                         for at in (one, other))
        if first.type != tile.INT16:
            first, second = (tile.to_bfloat16(builder, value) for value in (first, second))
        second = builder.select(both, second, ir.Constant(tile.INT16, 0))
        return builder.or_(builder.zext(first, INT32), builder.shl(builder.zext(second, INT32), ir.Constant(INT32, 16)))
    return types.uint32(g, types.intp, types.intp, types.boolean), codegen


@intrinsic
def axpy(typingctx, acc, g, x, rows, one, other, first):
    """acc[first + i, :] += g[0] * x[rows[i] + one : ...] + g[1] * x[rows[i] + other : ...], for a pair g and every row of `rows`.

    g and x are bfloat16, of which acc is the sums; a tile has an even number V of vectors. Its lanes are in another order than
    x's until `in_order`. First the second product is added, then the first one; denormals count as 0 on AVX512-BF16 alone.
    """
    kind, count = acc, rows.p

    def codegen(context, builder, signature, args):
        acc, g, x, rows, one, other, first = args
        lanes = kind.lanes
        halves, words = ir.VectorType(tile.INT16, 2 * lanes), ir.VectorType(INT32, lanes)
        g = tile.broadcast(builder, words, g)

        def upper(bits):
            return builder.bitcast(builder.and_(bits, ir.Constant(words, [0xffff0000] * lanes)), kind.vector)

        def lower(bits):
            return builder.bitcast(builder.shl(bits, ir.Constant(words, [16] * lanes)), kind.vector)

        def add(value, pairs):
            if UNIT == "avx512bf16":
                return _vdpbf16ps(builder, value, g, pairs)
            value = tile.multiply_add(builder, kind, upper(g), upper(pairs), value)
            return tile.multiply_add(builder, kind, lower(g), lower(pairs), value)

        def row(i, k):
            """Numbers of both rows."""
            for offset in (one, other):
                at = builder.add(builder.add(builder.extract_value(rows, i), offset), ir.Constant(INDEX, 2 * lanes * k))
                loaded = builder.load(builder.bitcast(tile.pointer_to(context, builder, signature.args[2], x, at, ir.Constant(
                    INDEX, 2 * lanes), tile.SLACK), halves.as_pointer()))
                loaded.align = 2
                yield loaded

        def add_rows(out, shift):
            for i in range(count):
                for k in range(kind.v // 2):
                    numbers = list(row(i, k))
                    for half in range(2):
                        mask = ir.Constant(ir.VectorType(INT32, 2 * lanes), _interleaved(lanes, half))
                        pairs = builder.bitcast(builder.shuffle_vector(*numbers, mask), words)
                        j = (i + shift) * kind.v + 2 * k + half
                        out = builder.insert_value(out, add(builder.extract_value(out, j), pairs), j)
            return out
        return tile.for_first(builder, acc, first, kind.p - count, add_rows)
    return kind(kind, types.uint32, x, rows, *[types.intp] * 3), codegen


@intrinsic
def in_order(typingctx, acc):
    """The tile that `axpy` has added to, its lanes in the order of x."""
    kind = acc

    def codegen(context, builder, signature, args):
        acc, lanes = args[0], kind.lanes
        places = [_interleaved(lanes, half)[::2] for half in range(2)]        # of a number of x: which lane of which vector
        order = [half.index(number) + lanes * k for number in range(2 * lanes) for k, half in enumerate(places) if number in half]
        for j in range(0, kind.p * kind.v, 2):
            pair = builder.extract_value(acc, j), builder.extract_value(acc, j + 1)
            for half in range(2):
                mask = ir.Constant(ir.VectorType(INT32, lanes), order[half * lanes:(half + 1) * lanes])
                acc = builder.insert_value(acc, builder.shuffle_vector(*pair, mask), j + half)
        return acc
    return kind(kind), codegen


avx512bf16_begin, avx512bf16_end = emulated_begin, emulated_end
begin, end, zero, dot, sums = (globals()[f"{UNIT}_{verb}"] for verb in ("begin", "end", "zero", "dot", "sums"))
