"""The time of a training, kernel by kernel, and its share of the processor's peak of multiplications."""
import math
import time

import numba
import numpy as np

from nbcnn.kernels import cpu
from nbcnn.kernels.arguments import FLOATS, integer
from nbcnn.kernels.bfloat16 import BFLOAT16
from nbcnn.kernels.cpu.launch import launch, run
from nbcnn.kernels.cpu.matrix_tile import LANES, MOST_PAIRS, ROWS
from nbcnn.kernels.cpu.peak import make_multiply_add, make_multiply_pairs
from nbcnn.kernels.cpu.tile import lanes, shape_for
from nbcnn.table import fill, format_table

ELSE = "everything else"


def fma_peak(threads=None, dtype=np.float32):
    """The highest rate that the kernels' instructions can reach: the register tile alone, on data in the first cache.

    Parameters
    ----------
    threads : int, optional
        By default as many as Numba uses now.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    rate : float
        GFLOP/s of all threads together, the best of many runs within 0.3 s. A multiplication with an addition counts as two. The
        rate is too small where something else keeps the cores busy all that time.

    Raises
    ------
    TypeError
        When `threads` is no int, or `dtype` is another dtype.
    ValueError
        When there are not so many threads.
    """
    threads, dtype = _threads(threads), np.dtype(dtype)
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    P, V = shape_for(2 * lanes(dtype), dtype)
    width, K = V * lanes(dtype), 64     # x and w take 10 KiB together, with registers of 512 bits
    x, w, y = cpu.allocate((P, K), dtype), cpu.allocate((K, width), dtype), cpu.allocate((threads, P, width), dtype)
    # Sums that neither grow nor become denormal: 1 - 1 + 1 - 1 ...
    x[...], w[...] = 1, (-1.0) ** np.arange(K)[:, None]
    return _rate(make_multiply_add(P, V, lanes(dtype)), (y, x, w), 2 * P * width * K, threads, 100_000_000)


def bfloat16_peak(threads=None):
    """As `fma_peak`, of the processor's unit for bfloat16: the matrix tile alone."""
    threads, K, V = _threads(threads), 2 * MOST_PAIRS, 2     # x and w take 4 KiB
    x, w = cpu.allocate((ROWS * K,), BFLOAT16), cpu.allocate((K * V * LANES,), BFLOAT16)
    return _rate(make_multiply_pairs(V), (np.zeros(threads, np.float32), x, w), 2 * ROWS * K * V * LANES, threads, 1_000_000_000)


def _threads(threads):
    """How many threads to measure with."""
    threads = numba.get_num_threads() if threads is None else integer(threads, "threads", 1)
    if threads > numba.config.NUMBA_NUM_THREADS:
        raise ValueError(f"threads: expected at most {numba.config.NUMBA_NUM_THREADS}, got {threads}")
    return threads


def _rate(kernel, arrays, flop, threads, at_once):
    """GFLOP/s of kernel(*arrays, repeats), of so many flop in each thread and repetition; `at_once`: flop a call, about."""
    before, repeats, best = numba.get_num_threads(), at_once // flop, math.inf
    numba.set_num_threads(threads)
    try:
        launch(kernel, *arrays, 1)      # compiles, and starts the threads
        end = time.perf_counter() + 0.3     # the operating system needs time to give each thread a core
        while (started := time.perf_counter()) < end:
            launch(kernel, *arrays, repeats)
            best = min(best, time.perf_counter() - started)
    finally:
        numba.set_num_threads(before)
    return threads * flop * repeats / best / 1e9


class Profile:
    """What `BackpropScheduler.profile` has measured; print(profile) shows a table.

    Parameters
    ----------
    dtype : dtype
        That of the model: the peak depends on it.
    precision : str
        That of the scheduler.

    Attributes
    ----------
    steps : int
        Training steps: forward passes with training=True.
    threads : int
        How many threads the block had.
    peak : float
        The `fma_peak` of these threads, measured before the block began; with "bf16" the `bfloat16_peak`.

    Notes
    -----
    GFLOP/s count the multiplications and additions in a kernel's formula. Taps that read padding count, although the kernels skip
    most of them, so a share of the peak may exceed 1. Kernels that move or compare numbers have no GFLOP/s.
    """

    def __init__(self, dtype=np.float32, precision="f32"):
        self.steps, self.dtype, self.precision, self.threads, self.peak = 0, np.dtype(dtype), precision, None, None
        self._before, self._started = 0.0, None     # seconds of the blocks that have ended, and when this one began
        self._recorded = {}                         # [calls, seconds, flop] by (step, pass, kernel)

    @property
    def seconds(self):
        """The seconds in the block; up to now if it has not ended."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    @property
    def rows(self):
        """The rows of the table without the total: a list of dicts, empty before the first training step.

        Each has step (names of layers, "loss", "optimizer" or "everything else"), pass ("forward", "backward", "both", "update"
        or ""), kernel (or class), calls (in all), ms (milliseconds per step), share (of the time in the block; all shares add up
        to 1), gflops (GFLOP/s) and peak_share (of `peak`). A value that does not apply is None.
        """
        return self._table()[:-1]

    def start(self):
        """The block begins or goes on."""
        if self.threads is None:
            self.threads = numba.get_num_threads()
            self.peak = bfloat16_peak(self.threads) if self.precision == "bf16" else fma_peak(self.threads, self.dtype)
        self._started = time.perf_counter()

    def stop(self):
        """The block ends."""
        self._before, self._started = self.seconds, None

    def call(self, key, function, *arguments):
        """Call a function and return its result; the time is recorded under key = (step, pass, kernel)."""
        started = time.perf_counter()
        result = function(*arguments)
        seconds = time.perf_counter() - started
        self._record(key, seconds)
        return result

    def run(self, steps, direction, calls):
        """Run the calls of kernels one by one, and record the time of each under its step's name."""
        for step, call in zip(steps, calls, strict=True):
            started = time.perf_counter()
            run([call])
            self._record((step, direction, call.kernel.__name__), time.perf_counter() - started, call.flop)

    def _record(self, key, seconds, flop=0):
        calls, seconds_before, flop_before = self._recorded.get(key, (0, 0.0, 0))
        self._recorded[key] = calls + 1, seconds_before + seconds, flop_before + flop

    def _table(self):
        """All rows, with the total as the last one."""
        if not self.steps:
            return []
        total, (seconds, flops) = self.seconds, map(sum, list(zip(*self._recorded.values(), strict=True))[1:])

        def row(names, calls, seconds, flop):
            rate = flop / seconds / 1e9 if flop and seconds else None       # the clock may be too coarse for a time above 0
            return {**dict(zip(("step", "pass", "kernel"), names, strict=True)), "calls": calls, "ms": seconds / self.steps * 1e3,
                    "share": seconds / total, "gflops": rate, "peak_share": rate and rate / self.peak}
        return [*(row(names, *entry) for names, entry in self._recorded.items()),
                row((ELSE, "", ""), None, total - seconds, 0), row(("total", "", ""), None, total, flops)]

    def __str__(self):
        if not self.steps:
            return "no training step was profiled"
        # Without the pass, which the names of kernels say.
        formats = {"step": "", "kernel": "", "calls": ",", "ms": ".3f", "share": ".1%", "gflops": ".1f", "peak_share": ".0%"}
        cells = [["" if row[name] is None else format(row[name], form) for name, form in formats.items()] for row in self._table()]
        above = (f"{self.steps:,} training step{'s' * (self.steps > 1)}, {self.threads} thread{'s' * (self.threads > 1)}, "
                 f"measured peak {self.peak:.0f} GFLOP/s{' in bf16' * (self.precision == 'bf16')}. What a kernel saves by skipping "
                 "padding counts as done.")
        header = ["step", "kernel", "calls", "ms/step", "share", "GFLOP/s", "peak"]
        return "\n".join([*fill(above), "", format_table(header, cells)])
