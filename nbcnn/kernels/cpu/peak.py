"""The register tile and the matrix tile alone, on data in the first cache: as fast as the multipliers go."""
import functools

import numpy as np

from nbcnn.kernels.cpu import matrix_tile, tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange


@functools.cache
def make_multiply_add(P, V, LANES):
    """The kernel for a tile of P rows x V vectors."""

    @njit(parallel=True)
    def multiply_add(y, x, w, repeats):
        """y[task, i, lane] = repeats * (x w)[i, lane] in every task, x (P, K), w (K, V*LANES): 2*P*K*V*LANES*repeats flop each."""
        tasks, K = y.shape[0], x.shape[1]
        x_rows = tile.rows_strided(P, 0, K)
        for task in prange(tasks):
            acc = tile.zero(P, V, y)
            for _ in range(repeats):
                for k in range(K):
                    acc = tile.outer(acc, x, x_rows, k, w, k * V * LANES)
            tile.store(acc, y, tile.rows_strided(P, task * P * V * LANES, V * LANES), 0, 0, P, V * LANES)

    return multiply_add


@functools.cache
def make_multiply_pairs(V):
    """The kernel for a matrix tile of V vectors."""
    WIDTH = V * matrix_tile.LANES

    @njit(parallel=True, allocates=True)
    def multiply_pairs(y, x, w, repeats):
        """y[task] = the sums of repeats * x w, x (ROWS, K) and w (K, WIDTH) in bfloat16: 2*ROWS*K*WIDTH*repeats flop each.

        K is a multiple of 32. w lies in pairs.
        """
        K, sums = len(x) // matrix_tile.ROWS, np.empty(matrix_tile.ROWS * WIDTH, np.float32)
        matrix_tile.begin(matrix_tile.MOST_PAIRS)
        for task in prange(len(y)):
            acc = matrix_tile.zero(V)
            for _ in range(repeats):
                for k in range(0, K, 2 * matrix_tile.MOST_PAIRS):
                    acc = matrix_tile.dot(acc, x, k, K, w, k * WIDTH, 2 * WIDTH, matrix_tile.MOST_PAIRS)
            matrix_tile.sums(acc, sums, 0)
            y[task] = sums[0]
        matrix_tile.end()

    return multiply_pairs
