"""Numbers of threads, for tests that compare what they give."""
import numba
import pytest


def need_two_cores():
    """Skip the test where there is nothing to compare."""
    if numba.config.NUMBA_NUM_THREADS == 1:
        pytest.skip("one core: nothing to compare")


def one_and_all_threads():
    """1, then as many as there are cores: so many threads run the kernels in the body of a loop over this."""
    need_two_cores()
    threads = numba.config.NUMBA_NUM_THREADS
    try:
        for count in (1, threads):
            numba.set_num_threads(count)
            yield count
    finally:
        numba.set_num_threads(threads)
