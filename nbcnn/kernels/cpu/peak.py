"""The register tile alone, on data in the first cache: as fast as the multipliers go."""
import functools

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import PARALLEL, prange


@functools.cache
def make_multiply_add(P, V, LANES):
    """The kernel for a tile of P rows x V vectors."""

    @njit(parallel=PARALLEL)
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
