"""The register tile: what LLVM makes of it, its checks, and its place in the cache key."""
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numba
import numpy as np
import pytest

from nbcnn.kernels.conv2d import conv2d_backward, conv2d_forward
from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.conv2d import make_correlate, make_weight_gradient
from nbcnn.kernels.cpu.tile import (
    VECTOR_BYTES,
    lanes,
    rows_of_pixels,
    rows_strided,
    tile_outer,
    tile_rows,
    tile_shape,
    tile_store,
    tile_zero,
)

import llvm


def run(code, **environment):
    """Run Python code in a process of its own, with these environment variables."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})


@numba.njit
def accumulate(y, x, w, b, rows, columns, n_rows, n_lanes):
    """One 4x1 tile: y[rows] = b + x[:, :columns] w, for x (4, columns) and w (columns, lanes)."""
    acc = tile_rows(4, 1, b, 0)
    for k in range(columns):
        acc = tile_outer(acc, x, rows_strided(4, 0, columns), k, w, k * len(b))
    tile_store(acc, y, rows_strided(4, 0, rows), 0, 0, n_rows, n_lanes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_rows", "n_lanes"), [(4, 99), (9, 99), (3, 99), (4, 1), (1, 2), (0, 99), (4, 0)])
def test_outer_and_guarded_store(dtype, n_rows, n_lanes):
    rng = np.random.default_rng(0)
    L = lanes(dtype)
    x, w, b = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((4, 5), (5, L), L))
    y = np.full((5, 2 * L), np.nan, dtype)
    accumulate(y, x, w, b, 2 * L, 5, n_rows, n_lanes)
    rows, width = min(n_rows, 4), min(n_lanes, L)
    assert (y[:rows, :width] == (x @ w + b)[:rows, :width]).all()
    assert np.isfinite(y).sum() == rows * width


@numba.njit
def offsets(out, first, count, width, height, pixel, row, image):
    """The offsets of 8 pixels, read through a tile: x[offset] = offset."""
    acc = tile_zero(8, 1, out)
    x = np.arange(4096).astype(out.dtype)
    acc = tile_outer(acc, x, rows_of_pixels(8, first, count, width, height, pixel, row, image), 0, np.ones(64, out.dtype), 0)
    tile_store(acc, out, rows_strided(8, 0, 1), 0, 0, 8, 1)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3), (3, 1), (2, 2), (5, 3), (8, 2), (16, 16)])
def test_rows_of_pixels(width, height):
    pixel, row, image = 3, 3 * width + 7, (3 * width + 7) * height + 11
    count = min(4 * width * height, 40)
    for first in range(count):
        out = np.zeros(8 + 64)
        offsets(out, first, count, width, height, pixel, row, image)
        for k in range(8):
            line, j = divmod(min(first + k, count - 1), width)
            n, i = divmod(line, height)
            assert out[k] == n * image + i * row + j * pixel


def test_code_has_the_target_s_vectors_and_no_doubles():
    """The inner loop multiplies and adds whole registers, at the width of Numba's target, not of the host; and in float32."""
    x, w = np.ones((2, 32, 8, 8), np.float32), np.ones((32, 32, 3, 3), np.float32)
    y = conv2d_forward(x, w)
    conv2d_backward(y, x, w)
    P, V = tile_shape(32, np.float32)
    for make, options in ((make_correlate, (False,)), (make_weight_gradient, ())):
        kernel = make(P, V, lanes(np.float32), *options)
        assert not llvm.double_operations(kernel)
        fresh = numba.jit(**{**kernel.targetoptions, "parallel": False})(kernel.py_func)
        fresh.compile(kernel.signatures[0])
        assembly = fresh.inspect_asm(fresh.signatures[0])
        register = {64: "zmm", 32: "ymm", 16: "xmm"}[VECTOR_BYTES]
        assert len(re.findall(rf"vfmadd\w+ps.*%{register}", assembly)) >= P * V
        assert VECTOR_BYTES == 64 or "zmm" not in assembly


CHECKED = """
import numpy as np
from nbcnn.kernels import cpu
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.cpu.conv2d import make_correlate
operation = cpu.Conv2d((3, 8, 8), (4, 6, 6), (3, 3), (1, 1), (0, 0), (1, 1), np.float32)
x, y = cpu.Buffer(1, (3, 8, 8), np.float32), cpu.Buffer(1, (4, 6, 6), np.float32)
w = np.zeros(4 * 27, np.float32)
run(operation.forward(1, y, x, (w, None)))
try:
    run(operation.forward({n}, y, x, (w, None)))
except IndexError as error:
    print("IndexError:", error)
"""


def test_boundscheck_reaches_into_the_tile(tmp_path):
    """With NUMBA_BOUNDSCHECK=1 a second picture in a buffer for one is noticed; a legal call is not."""
    done = run(CHECKED.format(n=2), NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout == "IndexError: a tile reaches outside its array\n", done.stderr
    done = run(CHECKED.format(n=1), NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout == "", done.stderr


def test_kernels_close_over_the_tile_s_text():
    """What Numba's cache keys on includes the hash of tile.py, so an edit there is never stale."""
    text = zlib.crc32(Path(tile.__file__).read_bytes())
    for make, options in ((make_correlate, (False,)), (make_weight_gradient, ())):
        function = make(8, 1, lanes(np.float32), *options).py_func
        closure = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        assert closure["VERSION"].cell_contents == text
