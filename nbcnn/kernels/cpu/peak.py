"""The register tile alone, on data in the first cache: as fast as the multipliers go."""
import functools

from numba import prange

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import PARALLEL
from nbcnn.kernels.cpu.tile import TILE_VERSION, rows_strided, tile_outer, tile_store, tile_zero


@functools.cache
def make_multiply_add(P, V, LANES, VERSION=TILE_VERSION):
    """The kernel for a tile of P rows x V vectors."""

    @njit(parallel=PARALLEL)
    def multiply_add(y, x, w, repeats):
        """y[task, i, lane] = repeats * (x w)[i, lane] in every task, x (P, K), w (K, V*LANES): 2*P*K*V*LANES*repeats flop each."""
        _ = VERSION
        tasks, K = y.shape[0], x.shape[1]
        x_rows = rows_strided(P, 0, K)
        for task in prange(tasks):
            acc = tile_zero(P, V, y)
            for _ in range(repeats):
                for k in range(K):
                    acc = tile_outer(acc, x, x_rows, k, w, k * V * LANES)
            tile_store(acc, y, rows_strided(P, task * P * V * LANES, V * LANES), 0, 0, P, V * LANES)

    return multiply_add
