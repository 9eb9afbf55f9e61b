"""The register tile: its verbs, what LLVM makes of them, their checks, and their place in the cache key."""
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from nbcnn.kernels import cpu
from nbcnn.kernels.conv2d import conv2d_backward, conv2d_forward
from nbcnn.kernels.cpu import kernel_cache, launch, tile
from nbcnn.kernels.cpu.conv2d import make_conv2d_backward_input, make_conv2d_backward_weight, make_conv2d_forward
from nbcnn.kernels.cpu.conv2d_maxpool2d import make_conv2d_maxpool2d_forward

import llvm


def run(code, **environment):
    """Run Python code in a process of its own, with these environment variables."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})


@numba.njit
def accumulate(y, x, w, b, rows, columns, n_rows, n_lanes):
    """One 4x1 tile: y[rows] = b + x[:, :columns] w, for x (4, columns) and w (columns, lanes)."""
    acc = tile.repeat(4, 1, b, 0)
    for k in range(columns):
        acc = tile.outer(acc, x, tile.rows_strided(4, 0, columns), k, w, k * len(b))
    tile.store(acc, y, tile.rows_strided(4, 0, rows), 0, 0, n_rows, n_lanes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_rows", "n_lanes"), [(4, 99), (9, 99), (3, 99), (4, 1), (1, 2), (0, 99), (4, 0)])
def test_outer_and_guarded_store(dtype, n_rows, n_lanes):
    rng = np.random.default_rng(0)
    L = tile.lanes(dtype)
    x, w, b = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((4, 5), (5, L), L))
    y = np.full((5, 2 * L), np.nan, dtype)
    accumulate(y, x, w, b, 2 * L, 5, n_rows, n_lanes)
    rows, width = min(n_rows, 4), min(n_lanes, L)
    assert (y[:rows, :width] == (x @ w + b)[:rows, :width]).all()
    assert np.isfinite(y).sum() == rows * width


@numba.njit
def offsets(out, k, size, count, outer, inner, shift, width, zeros):
    """The offsets of 8 places, read through a tile, as x[offset] = offset; then with those beside `width` columns at `zeros`."""
    x, ones = np.arange(4096).astype(out.dtype), np.ones(64, out.dtype)
    rows, columns = tile.rows_counted(8, k, size, count, outer, inner), tile.rows_counted(8, k, size, count, 1, 0)
    tile.store(tile.outer(tile.zero(8, 1, out), x, rows, 0, ones, 0), out, tile.rows_strided(8, 0, 1), 0, 0, 8, 1)
    rows = tile.rows_or_zeros(rows, columns, shift, width, zeros)
    tile.store(tile.outer(tile.zero(8, 1, out), x, rows, 0, ones, 0), out, tile.rows_strided(8, 8, 1), 0, 0, 8, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 20])
def test_rows_counted_and_rows_or_zeros(size):
    """Places of two nested loops of any lengths; those whose column lies beside the image are redirected."""
    outer, inner, width, zeros = 7 * size + 11, 7, 4, 4000
    count = 5 * size
    for k in range(count):
        for shift in (-3, -1, 0, 2):
            out = np.zeros(16 + 64)
            offsets(out, k, size, count, outer, inner, shift, width, zeros)
            for i in range(8):
                column, m = divmod(min(k + i, count - 1), size)
                assert out[i] == column * outer + m * inner
                assert out[8 + i] == (out[i] if 0 <= column + shift < width else zeros)


def test_range_inside_and_last_tap():
    """Against all taps, one by one."""
    for start in range(-9, 10):
        for step in (1, 2, 3):
            for taps in (1, 2, 5):
                for size in (1, 3, 7):
                    inside = [k for k in range(taps) if 0 <= start + k * step < size]
                    first, end = tile.range_inside(start, step, taps, size)
                    assert list(range(first, end)) == inside
                    whole = [k for k in range(taps) if (start - k * step) % size == 0]
                    assert tile.last_tap(start, taps, size, step) == (whole[-1] if whole else -1)


def numbers(seed, count, dtype):
    """Small integers, with room behind them for what a vector reads too much."""
    a = cpu.allocate((count,), dtype)
    a[:] = np.random.default_rng(seed).integers(-9, 10, count)
    return a


@numba.njit
def load_and_store(y, x, start, stride, first, last, n_lanes):
    """Rows of x, of which y gets the first three, 100 apart."""
    acc = tile.load(4, 2, x, tile.rows_strided(4, start, stride), 1)
    tile.store(acc, y, tile.rows_strided(3, 2, 100), 5, first, last, n_lanes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_load_and_the_range_of_rows_that_store_writes(dtype):
    x, L = numbers(0, 400, dtype), tile.lanes(dtype)
    rows = [(0, 3), (-5, 9), (1, 3), (1, 2), (0, 0), (2, 1), (3, 9), (-4, 0), (0, 1)]
    for (first, last), n_lanes, start, stride in [(r, k, 3, 7) for r in rows for k in (2 * L, 999, 2 * L - 1, L, 1, 0)] + [
            ((0, 3), 999, 60, -9), ((1, 3), L + 1, 0, 90)]:
        y = np.full(400, np.nan, dtype)
        expected = y.copy()
        for i in range(max(0, first), min(3, last)):
            for k in range(min(n_lanes, 2 * L)):
                expected[100 * i + 7 + k] = x[start + i * stride + 1 + k]
        load_and_store(y, x, start, stride, first, last, n_lanes)
        np.testing.assert_array_equal(y, expected)


def make_shifted(count):
    @numba.njit
    def shifted(y, x, start, stride, offset):
        """A tile of y's four rows whose first `count` have made place for rows of x, stored in y."""
        width = len(y) // 4
        acc = tile.load(4, 2, y, tile.rows_strided(4, 0, width), 0)
        acc = tile.shift(acc, x, tile.rows_strided(count, start, stride), offset)
        tile.store(acc, y, tile.rows_strided(4, 0, width), 0, 0, 4, width)
    return shifted


@pytest.mark.parametrize("count", [1, 3, 4])
def test_shift(count):
    W = 2 * tile.lanes(np.float32)
    y, x = numbers(1, 4 * W, np.float32), numbers(2, 300, np.float32)
    expected = [*y.copy().reshape(4, W)[count:], *(x[5 + 40 * i + 2:][:W] for i in range(count))]
    make_shifted(count)(y, x, 5, 40, 2)
    assert (y.reshape(4, W) == expected).all()


def make_added(count):
    @numba.njit
    def added(y, g, x, start, stride, offset, first):
        """y's five rows, with g times `count` rows of x added from row `first` on."""
        width = len(y) // 5
        acc = tile.load(5, 2, y, tile.rows_strided(5, 0, width), 0)
        acc = tile.axpy(acc, g[0], x, tile.rows_strided(count, start, stride), offset, first)
        tile.store(acc, y, tile.rows_strided(5, 0, width), 0, 0, 5, width)
    return added


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_axpy_at_every_row(dtype, count):
    W, added = 2 * tile.lanes(dtype), make_added(count)
    for first in range(5 - count + 1):
        y, x, g = numbers(first, 5 * W, dtype), numbers(9, 300, dtype), np.array([-3], dtype)
        expected = y.reshape(5, W).copy()
        for i in range(count):
            expected[first + i] += -3 * x[4 + 30 * i + 6:][:W]
        added(y, g, x, 4, 30, 6, first)
        assert (y.reshape(5, W) == expected).all(), first


def make_transposed(L):
    @numba.njit
    def transposed(y, x):
        """x and y are (L, L)."""
        tile.store(tile.transpose(tile.load(L, 1, x, tile.rows_strided(L, 0, L), 0)), y, tile.rows_strided(L, 0, L), 0, 0, L, L)
    return transposed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transpose(dtype):
    L = tile.lanes(dtype)
    x, y = np.arange(L * L, dtype=dtype).reshape(L, L), np.full((L, L), np.nan, dtype)
    make_transposed(L)(y, x)
    assert (y == x.T).all()


@numba.njit
def pooled(y, argmax, x, low, none, n_lanes):
    """y and argmax of 3 rows, 40 apart, over the cells of x (count, 3, 2*lanes)."""
    count, _, W = x.shape
    for cell in range(count):
        acc = tile.load(3, 2, x, tile.rows_strided(3, cell * 3 * W, W), 0)
        tile.pool(acc, y, argmax, tile.rows_strided(3, 1, 40), 2, n_lanes, np.uint8(cell), low[0], none)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("low", "none"), [(-np.inf, 0), (0, 255)])
def test_pool(dtype, low, none):
    """The first of equal values wins, NaN wins over all, and the last NaN over the others; what lies in y before does not count."""
    W, rng, n_rows = 2 * tile.lanes(dtype), np.random.default_rng(0), 3
    special = [np.nan, np.inf, -np.inf]
    for count in (1, 4, 6):
        x = rng.choice([*range(-2, 3), *special], (count, n_rows, W)).astype(dtype)
        x[:, 0, :4] = -np.inf       # nothing wins there; beside it a tie, zeros, and a NaN over everything
        x[:, 0, 4], x[:, 0, 5], x[:, 0, 6] = 2, 0, np.nan
        best, where = np.full(x.shape[1:], low, dtype), np.full(x.shape[1:], none, np.uint8)
        for cell, value in enumerate(x):
            wins = (value > best) | np.isnan(value)
            best[wins], where[wins] = value[wins], cell
        for n_lanes in (W, W + 1, W - 1, W // 2 + 1, 1, 0):
            y, argmax = np.full(130, 99, dtype), np.full(130, 77, np.uint8)
            expected_y, expected_argmax = y.copy(), argmax.copy()
            for i in range(n_rows):
                row = slice(40 * i + 3, 40 * i + 3 + min(n_lanes, W))
                expected_y[row], expected_argmax[row] = best[i, :n_lanes], where[i, :n_lanes]
            pooled(y, argmax, x, np.array([low], dtype), np.uint8(none), n_lanes)
            np.testing.assert_array_equal(y, expected_y)
            np.testing.assert_array_equal(argmax, expected_argmax)


@numba.njit
def offsets_inside(out, x, start, stride, first, last):
    """The offsets of 6 rows, read through a tile: x[offset] = offset."""
    acc = tile.load(6, 1, x, tile.rows_inside(6, start, stride, first, last), 0)
    tile.store(acc, out, tile.rows_strided(6, 0, 1), 0, 0, 6, 1)


def test_rows_inside():
    """Pixels of a row of W pixels, 5 elements each, from pixel s on: those outside repeat the nearest one inside."""
    x, out = cpu.allocate((400,), np.float64), np.zeros(6)
    x[:] = np.arange(400)
    for W in (1, 2, 5, 9):
        for s in range(-15, W + 15):
            offsets_inside(out, x, 200 + 5 * s, 5, -s, W - s)
            assert out.tolist() == [200 + 5 * min(max(s + i, 0), W - 1) for i in range(6)], (W, s)


@numba.njit
def equal_and_lowest(x, offset, count, value, positions):
    """The bits, and where they are set."""
    bits = rest = tile.bytes_equal(x, offset, count, value)
    found = 0
    while rest != np.uint64(0):
        positions[found] = tile.lowest_bit(rest)
        found += 1
        rest &= rest - np.uint64(1)
    return bits, found, tile.lowest_bit(rest)


def test_bytes_equal_and_lowest_bit():
    cells = cpu.allocate((200,), np.uint8)
    cells[:] = np.random.default_rng(0).integers(0, 3, 200) * 127       # 0, 127, and 254, which is no -2
    positions = np.zeros(64, np.int64)
    for offset in (0, 1, 63, 130):
        for count in (1, 2, 31, 32, 33, 63, 64):
            for value in (0, 127, 254, 255):
                bits, found, none = equal_and_lowest(cells, offset, count, np.uint8(value), positions)
                expected = np.flatnonzero(cells[offset:offset + count] == value)
                assert positions[:found].tolist() == expected.tolist() and bits == sum(1 << int(k) for k in expected) and none == 64


@numba.njit
def move(y, x, to, source):
    tile.put(y, to, tile.get(x, source))


def test_get_and_put_count_flat():
    x, y = np.arange(12, dtype=np.int32).reshape(3, 4), np.zeros((2, 3), np.int32)
    move(y, x, 4, 9)
    assert y.tolist() == [[0, 0, 0], [0, 9, 0]]


def vector_multiply_adds(kernel):
    """The instructions of a kernel, called before with float32, that multiply and add whole registers."""
    fresh = llvm.afresh(kernel)
    fresh.compile(kernel.signatures[0])
    assembly = fresh.inspect_asm(fresh.signatures[0])
    assert tile.VECTOR_BYTES == 64 or "zmm" not in assembly
    register = {64: "zmm", 32: "ymm", 16: "xmm"}[tile.VECTOR_BYTES]
    return re.findall(rf"vfmadd\w+ps.*%{register}", assembly)


def test_code_has_the_target_s_vectors_and_no_doubles():
    """The inner loop multiplies and adds whole registers, at the width of Numba's target, not of the host; and in float32."""
    x, w = np.ones((2, 32, 8, 8), np.float32), np.ones((32, 32, 3, 3), np.float32)
    y = conv2d_forward(x, w)
    conv2d_backward(y, x, w)
    (P, V), L = tile.shape_for(32, np.float32), tile.lanes(np.float32)
    for kernel, registers in ((make_conv2d_forward(P, V, L), P * V), (make_conv2d_backward_input(P, V, L), P * V),
                              (make_conv2d_backward_weight(P, V, L), P * V)):
        assert not llvm.double_operations(kernel)
        assert len(vector_multiply_adds(kernel)) >= registers


def test_sparse_code_has_the_target_s_vectors():
    """As above: a register for each of 3x3 taps in the weight gradient, of 3 taps x 2 vectors of channels in the input's."""
    operation = cpu.Conv2dMaxPool2d((32, 4, 4), (1, 2, 2), (3, 3), (0, 0), (2, 2), True, np.float32)
    operation.reserve(1)
    x, y, dx = (cpu.Buffer(1, shape, np.float32) for shape in ((32, 4, 4), (1, 1, 1), (32, 4, 4)))
    w, b = cpu.allocate((288,), np.float32), cpu.allocate((1,), np.float32)
    calls = operation.backward(1, dx, (w, b), y, x, y, (w, b), (False, False))
    launch.run(calls)
    kernels = {call.kernel.py_func.__name__: call.kernel for call in calls}
    for name, registers in (("conv2d_maxpool2d_backward_weight", 9), ("conv2d_maxpool2d_backward_input", 6)):
        assert len(vector_multiply_adds(kernels[name])) >= registers, name


CHECKED = """
import numpy as np
from nbcnn.kernels import cpu
from nbcnn.kernels.cpu.launch import run
operation = cpu.Conv2d((3, 8, 8), (4, 6, 6), (3, 3), (1, 1), (0, 0), (1, 1), np.float32)
x, y = cpu.Buffer(1, (3, 8, 8), np.float32), cpu.Buffer(1, (4, 6, 6), np.float32)
w = np.zeros(4 * 27, np.float32)
run(operation.forward(1, y, x, (w, None)))
try:
    run(operation.forward({n}, y, x, (w, None)))
except IndexError as error:
    print("IndexError:", error)
"""


VERBS = """
import numba, numpy as np
from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.buffer import SLACK, allocate

@numba.njit
def load(x, at):
    tile.load(2, 1, x, tile.rows_strided(2, 0, 1), at)

@numba.njit
def shift(x, at):
    tile.shift(tile.zero(2, 1, x), x, tile.rows_strided(1, 1, 1), at)

@numba.njit
def axpy(x, at):
    tile.axpy(tile.zero(2, 1, x), x[0], x, tile.rows_strided(1, 1, 1), at, 1)

@numba.njit
def store(x, at):
    tile.store(tile.zero(2, 1, x), x, tile.rows_strided(2, 0, 1), at, 0, 2, 3)

@numba.njit
def pool(x, at):
    argmax = np.zeros(300, np.uint8)[100:]
    tile.pool(tile.zero(2, 1, x), x, argmax, tile.rows_strided(2, 0, 1), at, 3, np.uint8(0), x[0], np.uint8(0))

@numba.njit
def pool_argmax(x, at):
    y, argmax = np.zeros(300, x.dtype)[100:], np.zeros(100, np.uint8)
    tile.pool(tile.zero(2, 1, x), y, argmax, tile.rows_strided(2, 0, 1), at, 3, np.uint8(0), x[0], np.uint8(0))

@numba.njit
def equal(x, at):
    tile.bytes_equal(np.zeros(100, np.uint8), at, 3, np.uint8(0))

@numba.njit
def take(x, at):
    tile.get(x, at)

@numba.njit
def give(x, at):
    tile.put(x, at, x[0])

x = allocate((100,), np.float32)
# How many elements from `at` on each touches, and how many it may touch behind the array.
vector = tile.lanes(x.dtype)
for verb, width, slack in ((load, 1 + vector, SLACK), (shift, 1 + vector, SLACK), (axpy, 1 + vector, SLACK),
                           (store, 4, 0), (pool, 4, 0), (pool_argmax, 4, 0), (equal, 3, 0), (take, 1, 0), (give, 1, 0)):
    last = 100 + slack - width
    verb(x, 0), verb(x, last)
    for at in (-2, last + 1):
        try:
            verb(x, at)
            print(verb.__name__, at)
        except IndexError:
            pass
"""


def test_boundscheck_reaches_into_each_verb(tmp_path):
    """With NUMBA_BOUNDSCHECK=1 the first and the last place that is allowed are, and those beyond are not."""
    done = run(VERBS, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr[-2000:]


def test_boundscheck_reaches_into_the_tile(tmp_path):
    """With NUMBA_BOUNDSCHECK=1 a second image in a buffer for one is noticed; a legal call is not."""
    done = run(CHECKED.format(n=2), NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout == "IndexError: a tile reaches outside its array\n", done.stderr
    done = run(CHECKED.format(n=1), NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout == "", done.stderr


def test_the_cache_knows_what_a_kernel_is_made_of():
    """A file's name depends on the sums of all sources that the kernel takes code from, so an edit there is never stale."""
    kernel = make_conv2d_forward(8, 2, tile.lanes(np.float32))
    named = dict(kernel_cache._sums_of_sources(kernel.__wrapped__.__globals__))
    assert {"tile.py", "buffer.py"} <= set(named) and "losses.py" not in named
    assert named["tile.py"] == hashlib.sha256(Path(tile.__file__).read_bytes()).hexdigest()
    kernel = make_conv2d_maxpool2d_forward(8, 2, tile.lanes(np.float32))
    assert "conv2d.py" in dict(kernel_cache._sums_of_sources(kernel.__wrapped__.__globals__))
