"""The matrix tile: its definition, this processor's unit where NBCNN_UNIT names it, and what is compiled for the others."""
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from nbcnn.kernels.bfloat16 import from_bfloat16, to_bfloat16
from nbcnn.kernels.cpu import kernel_cache, matrix_tile, tile, unit
from nbcnn.kernels.cpu.matrix_tile import LANES, ROWS, UNIT

from arrays import equal

TINY = np.float32(2.0**-126)        # the smallest number that is not denormal


def flush(x):
    """Denormal numbers as 0."""
    return np.where(np.abs(x) < TINY, np.float32(0), x)


def by_pairs(acc, x, w):
    """What AMX does: x (rows, K), w (K, columns); all first products, all second ones, their sum, all flushed."""
    x, w, sums = flush(x), flush(w), [np.zeros_like(acc), np.zeros_like(acc)]
    for k in range(x.shape[1]):
        sums[k % 2] = flush(sums[k % 2] + x[:, k:k + 1] * w[k])
    return flush(acc + flush(sums[0] + sums[1]))


def one_by_one(acc, x, w):
    """What AVX512-BF16 does: the second product of a pair, then the first one."""
    x, w = flush(x), flush(w)
    for k in range(0, x.shape[1], 2):
        acc = flush(flush(acc + x[:, k + 1:k + 2] * w[k + 1]) + x[:, k:k + 1] * w[k])
    return acc


ORDER = one_by_one if UNIT == "avx512bf16" else by_pairs


@functools.cache
def make_multiply(V):
    """The product of `product`, for tiles of V vectors."""

    @numba.njit
    def multiply(out, at_out, x, at_x, x_step, w, at_w, w_step, pairs, times):
        matrix_tile.begin(pairs)
        acc = matrix_tile.zero(V)
        for k in range(times):
            acc = matrix_tile.dot(acc, x, at_x + 2 * pairs * k, x_step, w, at_w + k * pairs * w_step, w_step, pairs)
        matrix_tile.sums(acc, out, at_out)
        matrix_tile.end()

    return multiply


def product(x, w, pairs, before=3, gap=4):
    """The sums of x (ROWS, K) times w (K, V*16), K a multiple of 2*pairs, of bits in memory that is NaN besides."""
    (_, K), columns = x.shape, w.shape[1]
    x_step, w_step = K + gap, 2 * columns + gap
    memory_x, memory_w = (np.full(before + size, 0x7fc0, np.uint16) for size in (ROWS * x_step, K // 2 * w_step))
    memory_x[before:].reshape(ROWS, x_step)[:, :K] = x
    memory_w[before:].reshape(K // 2, w_step)[:, :2 * columns] = w.reshape(K // 2, 2, columns).swapaxes(1, 2).reshape(K // 2, -1)
    out = np.full(ROWS * columns + 2 * before, np.nan, np.float32)
    make_multiply(columns // LANES)(out, before, memory_x, before, x_step, memory_w, before, w_step, pairs, K // (2 * pairs))
    assert np.isnan(out[[*range(before), *range(-before, 0)]]).all()
    return out[before:len(out) - before].reshape(ROWS, columns)


def test_the_unit_is_the_one_asked_for():
    """By NBCNN_UNIT, or by conftest.py: else the tests here would be of another one."""
    assert UNIT == os.environ["NBCNN_UNIT"]


@pytest.mark.parametrize("V", [1, 2])
@pytest.mark.parametrize("pairs, times", [(1, 1), (3, 2), (8, 1), (12, 3), (16, 1), (16, 5)])
def test_integers_are_exact(pairs, times, V):
    rng = np.random.default_rng(pairs)
    K = 2 * pairs * times
    x, w = (rng.integers(-16, 17, shape).astype(np.float32) for shape in ((ROWS, K), (K, V * LANES)))
    assert (product(to_bfloat16(x), to_bfloat16(w), pairs) == x @ w).all()


@pytest.mark.parametrize("V", [1, 2])
@pytest.mark.parametrize("pairs, times", [(1, 1), (5, 3), (16, 2)])
def test_the_order_of_sums(pairs, times, V):
    """Equal bits to the unit's definition, of numbers of any size."""
    rng = np.random.default_rng(pairs)
    shapes = (ROWS, 2 * pairs * times), (2 * pairs * times, V * LANES)
    x, w = (to_bfloat16(rng.standard_normal(shape, np.float32) * np.exp(rng.normal(0, 3, shape))) for shape in shapes)
    expected = np.zeros((ROWS, V * LANES), np.float32)
    for k in range(0, shapes[1][0], 2 * pairs):
        expected = ORDER(expected, from_bfloat16(x[:, k:k + 2 * pairs]), from_bfloat16(w[k:k + 2 * pairs]))
    assert product(x, w, pairs).tobytes() == expected.tobytes()
    other = by_pairs if ORDER is one_by_one else one_by_one
    assert times == pairs or (other(np.zeros_like(expected), *map(from_bfloat16, (x, w))) != expected).any()      # it matters


def test_denormals_count_as_zero():
    """As what is multiplied, and as what comes out."""
    x, w = np.zeros((ROWS, 2), np.float32), np.zeros((2, LANES), np.float32)
    x[0], w[:, 0] = TINY / 2, 2**20         # a denormal, times a large number
    x[1], w[:, 1] = 2.0**-70, 2.0**-60      # a product that is denormal
    x[2], w[:, 2] = TINY, 1
    found = product(to_bfloat16(x), to_bfloat16(w), 1)
    assert found[0, 0] == 0 and found[1, 1] == 0 and found[2, 2] == 2 * TINY


def test_denormals_count_as_zero_in_the_midst_of_a_sum():
    """Of both products of a pair: as a number of w, and as a sum, before what would lift it out of the denormal ones is added."""
    for half in range(2):
        x, w = np.zeros((ROWS, 4), np.float32), np.zeros((4, LANES), np.float32)
        x[0, half], w[half, 0] = 2**20, TINY / 2
        x[1, half], w[half, 1] = 2.0**-70, 2.0**-57         # half of TINY
        x[1, 2 + half], w[2 + half, 1] = 2.0**-63, 2.0**-63
        found = product(to_bfloat16(x), to_bfloat16(w), 2)
        assert found[0, 0] == 0 and found[1, 1] == TINY


def test_nan_and_infinity():
    x, w = np.ones((ROWS, 4), np.float32), np.ones((4, LANES), np.float32)
    x[1, 3], x[2, 0], x[3, :2] = np.nan, np.inf, (np.inf, -np.inf)
    found = product(to_bfloat16(x), to_bfloat16(w), 2)
    assert (found[0] == 4).all() and np.isnan(found[[1, 3]]).all() and (found[2] == np.inf).all()


# ---- a tile of tile.py that gets products in pairs

@functools.cache
def make_pairs(P, V):
    """Sums of P rows of V vectors: one pair of numbers, times two places of x, added to all rows but the first, in order."""
    REST = P - 1

    @numba.njit
    def pairs(out, g, both, x, rows_apart, one, other, WIDTH):
        acc = tile.zero(P, V, out)
        for k in range(0, len(g), 2):
            pair = matrix_tile.pair(g, k, k + 1, both)
            acc = matrix_tile.axpy(acc, pair, x, tile.rows_strided(REST, 0, rows_apart), one + k, other + k, 1)
        tile.store(matrix_tile.in_order(acc), out, tile.rows_strided(P, 0, WIDTH), 0, 0, P, WIDTH)

    return pairs


@pytest.mark.parametrize("kind", [np.uint16, np.float32], ids=str)
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("P, V", [(2, 2), (3, 4)])
def test_sums_of_pairs_at_two_places(P, V, both, kind):
    """The second product of a pair is added first; each product is exact in float32, so each sum is rounded once."""
    rng, width = np.random.default_rng(V), V * tile.lanes(np.float32)
    g, x = rng.standard_normal(6, np.float32), to_bfloat16(rng.standard_normal(1000, np.float32))
    out = np.full((P, width), np.nan, np.float32)
    make_pairs(P, V)(out, to_bfloat16(g) if kind == np.uint16 else g, both, x, 200, 30, 351, width)
    expected, g, x = np.zeros((P, width), np.float32), from_bfloat16(to_bfloat16(g)), from_bfloat16(x)
    for k in range(0, 6, 2):
        for row in range(1, P):
            one, other = (x[(row - 1) * 200 + place + k:][:width] for place in (30, 351))
            if both:
                expected[row] += g[k + 1] * other
            expected[row] += g[k] * one
    assert equal(out, expected)


# ---- which unit

def units(monkeypatch, features, granted, wanted=""):
    """(the units at hand, the one in use) of a processor with these features."""
    monkeypatch.setattr(unit, "FEATURES", set(features.split()))
    monkeypatch.setattr(unit, "tiles_granted", lambda: granted)
    monkeypatch.setenv("NBCNN_UNIT", wanted)
    for function in (unit.at_hand, unit.unit_in_use):
        function.cache_clear()
    try:
        return unit.at_hand(), unit.unit_in_use()
    finally:
        unit.unit_in_use.cache_clear()
        unit.at_hand.cache_clear()


XEON, ZEN4 = "+avx512f +avx512bf16 +amx-tile +amx-bf16", "+avx512f +avx512bf16"


def test_the_fastest_unit_at_hand_is_used(monkeypatch):
    assert units(monkeypatch, XEON, True) == (["amx", "avx512bf16"], "amx")
    assert units(monkeypatch, XEON, True, "avx512bf16")[1] == "avx512bf16"
    assert units(monkeypatch, XEON, False) == (["avx512bf16"], "avx512bf16")        # the operating system lends no tiles
    assert units(monkeypatch, ZEN4, False)[1] == "avx512bf16"
    assert units(monkeypatch, "+avx2 +fma", True) == ([], None)
    assert units(monkeypatch, "+avx2 +fma", True, "emulated")[1] == "emulated"
    assert units(monkeypatch, "+avx512f +amx-tile", True) == ([], None)             # tiles for integers alone


@pytest.mark.parametrize("features, wanted, there", [
    (ZEN4, "amx", "avx512bf16 or emulated"), ("+avx2", "avx512bf16", "emulated"), (XEON, "AMX", "amx or avx512bf16 or emulated")])
def test_a_unit_that_is_not_there_is_refused(monkeypatch, features, wanted, there):
    with pytest.raises(ValueError, match=rf"^NBCNN_UNIT: expected {there} on this processor, got '{wanted}'$"):
        units(monkeypatch, features, True, wanted)


def test_where_there_is_no_unit(monkeypatch):
    """Kernels can be compiled all the same, also where the variable names one that is not there."""
    monkeypatch.setattr(unit, "unit_in_use", unit.unit_in_use.__wrapped__)
    for hand, wanted, compiled in (([], "", "emulated"), ([], "amx", "emulated"), (["avx512bf16"], "", "avx512bf16")):
        monkeypatch.setattr(unit, "at_hand", lambda hand=hand: hand)
        monkeypatch.setenv("NBCNN_UNIT", wanted)
        assert unit.compiled_for() == compiled


def test_tiles_are_asked_for(monkeypatch):
    """Linux answers 0 where it gives them; other systems are not asked."""
    asked = []
    for answer, platform, granted in ((0, "linux", True), (-1, "linux", False), (0, "darwin", False)):
        system = SimpleNamespace(syscall=lambda *numbers, answer=answer: asked.append(numbers) or answer)
        monkeypatch.setattr(unit.ctypes, "CDLL", lambda *_, system=system, **__: system)
        monkeypatch.setattr(unit.sys, "platform", platform)
        assert unit.tiles_granted.__wrapped__() == granted
    assert asked == [(158, 0x1023, 18)] * 2


def test_kernels_of_different_units_are_kept_apart(monkeypatch):
    """The file of a kernel with a matrix tile depends on the unit, that of any other does not."""
    from nbcnn.kernels.cpu.conv2d import make_conv2d_forward as plain
    from nbcnn.kernels.cpu.conv2d_bfloat16 import make_conv2d_forward
    for make, differs in ((lambda: make_conv2d_forward(2), True), (lambda: plain(4, 2, 8), False)):
        kernel, paths = make(), []
        for name in ("amx", "avx512bf16"):
            monkeypatch.setitem(kernel_cache.CHOICES, "matrix_tile.py", name)
            paths.append(kernel._cache._path((), kernel.targetctx.codegen()))
        assert (paths[0] != paths[1]) == differs


# ---- what LLVM makes of the verbs for each unit, whatever this processor has

@pytest.fixture(scope="module", params=["amx", "avx512bf16"])
def compiled(request):
    """The unit's name, and what tests/units.py says of its kernels."""
    environment = {name: value for name, value in os.environ.items() if name not in ("NBCNN_UNIT", "NUMBA_BOUNDSCHECK")}
    found = subprocess.run([sys.executable, Path(__file__).with_name("units.py"), request.param], capture_output=True, text=True,
                           timeout=600, env=environment)
    assert found.returncode == 0, found.stderr
    return request.param, json.loads(found.stdout)


def test_kernels_are_made_of_the_units_instructions(compiled):
    """Tiles of AMX are configured once and given back once; sums of AVX512-BF16 stay in registers around the products."""
    name, kernels = compiled
    dense = {"conv2d_forward", "conv2d_maxpool2d_forward", "conv2d_backward_input", "conv2d_backward_weight"}
    skipping = {"conv2d_maxpool2d_backward_input", "conv2d_maxpool2d_backward_weight"} if name == "avx512bf16" else set()
    assert {kernel.split()[0] for kernel in kernels} == dense | skipping
    assert len(kernels) == 2 * len(dense | skipping)        # of one and of two vectors; of kernels of 5x5 and 3x3
    for kernel, counts in kernels.items():
        assert counts["spills"] == [], kernel
        assert counts["references"] == 0, kernel
        if kernel.split()[0] in skipping:
            continue
        if name == "amx":
            assert counts["ldtilecfg"] == counts["tilerelease"] == 1 and "vdpbf16ps" not in counts
            V = counts["tilestored"] // 2
            assert V in (1, 2) and counts["tilezero"] and counts["tilezero"] % (2 * V) == counts["tdpbf16ps"] % (2 * V) == 0
            assert counts["tileloadd"] * 2 * V == counts["tdpbf16ps"] * (2 + V)
        else:
            assert counts["vdpbf16ps"] % 8 == 0 and "tdpbf16ps" not in counts


def test_a_spill_is_found():
    """As LLVM writes it where a loop has more vectors than there are registers."""
    from units import looked_at
    loop = ".LBB0_1:\n\tvmovups\t%zmm3, 64(%rsp)\n\tvdpbf16ps\t%zmm0, %zmm1, %zmm2\n\tjne\t.LBB0_1\n"
    assert looked_at(loop)["spills"] == ["vmovups\t%zmm3, 64(%rsp)"]
    assert looked_at(loop.replace("vdpbf16ps", "vaddps"))["spills"] == []
