"""How kernels run on all threads: each task once, whatever the number of threads."""
import sys
from pathlib import Path
from subprocess import run

import numba
import numpy as np
import pytest
from numba import types

from nbcnn.kernels.cpu import parallel
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange

from llvm import afresh
from threads import one_and_all_threads


@njit(parallel=True)
def count_tasks(done, first, second):
    for k in prange(first):
        done[0, k] += 1
    for k in prange(second):
        done[1, k] += k


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0), (2, 3), (7, 64), (1000, 1), (-1, 5), (-(2**40), 0)])
def test_each_task_is_done_once(first, second):
    """Of two loops, with fewer tasks than threads, with none, and with a number below 0, which is none too."""
    for _ in one_and_all_threads():
        done, tasks = np.zeros((2, 1001), np.int64), np.arange(1001)
        count_tasks(done, first, second)
        assert (done[0] == (tasks < first)).all() and (done[1] == tasks * (tasks < second)).all()


@numba.njit
def sum_of_tasks(count):
    total = 0
    for k in prange(count):
        total += k
    return total


def test_the_first_function_of_a_process_may_be_any():
    """What Numba's threads are started with is named by the code that `prange` makes."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_parallel; print(test_parallel.sum_of_tasks(10))"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "45\n"), done.stderr


def test_outside_of_a_kernel_the_tasks_are_all():
    """Also after a kernel has run on this thread and on others."""
    assert sum_of_tasks(10) == sum(range(10))
    count_tasks(np.zeros((2, 100), np.int64), 100, 100)
    assert sum_of_tasks(10) == sum(range(10))
    assert not parallel.SHARES[::parallel.LINE].any() and (parallel.SHARES[1::parallel.LINE] == 1).all()


def test_a_kernel_is_called_from_a_function_of_ones_own():
    @numba.njit
    def twice(done):
        count_tasks(done, 50, 20)
        count_tasks(done, 50, 20)

    done = np.zeros((2, 50), np.int64)
    twice(done)
    assert (done[0] == 2).all() and done[1].sum() == 2 * sum(range(20))


@njit(parallel=True, allocates=True)
def allocate(y):
    """Each thread has memory of its own."""
    own = np.ones(3, y.dtype)
    for k in prange(len(y)):
        y[k] = own.sum()


def test_references_are_counted_only_where_a_kernel_allocates():
    """Their counts lie in memory that all threads share."""
    def falls(found, y):
        """A slice from one task to the next, whose references LLVM does not find to be needless."""
        before = y[:1]
        for k in prange(len(y)):
            if before[0] > y[k]:
                break
            before = y[k:]
            found[0] = before[0]

    counts = []
    for allocates in (False, True):
        kernel = afresh(njit(parallel=True, allocates=allocates)(falls))
        kernel.compile((types.float64[::1],) * 2)
        (code,) = kernel.inspect_llvm().values()
        counts.append("@NRT_decref(" in code)
    assert counts == [not parallel.PARALLEL, True]


def test_threads_may_allocate_while_memory_is_traced():
    """tracemalloc asks for the GIL in each of them: a process of its own, as a kernel that kept it would never end."""
    code = ("import sys, tracemalloc\nsys.path.insert(0, sys.argv[1])\nimport numpy as np\nfrom test_parallel import allocate\n"
            "y = np.zeros(8)\nallocate(y)\ntracemalloc.start()\nfor _ in range(50):\n    allocate(y)\nassert (y == 3).all()")
    found = run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
