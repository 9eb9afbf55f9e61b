"""Numbers of threads, for tests that compare what they give."""
import numba
import pytest

ONE_CORE = "one core: nothing to compare"


def one_and_all_threads():
    """1, then as many as there are cores: so many threads run the kernels in the body of a loop over this. One core is a skip."""
    threads = numba.config.NUMBA_NUM_THREADS
    if threads == 1:
        pytest.skip(ONE_CORE)
    try:
        for count in (1, threads):
            numba.set_num_threads(count)
            yield count
    finally:
        numba.set_num_threads(threads)
