"""Whose turn it is: whatever Python threads ask for at once is computed one after another.

Kernels run with all cores, and Numba's workqueue layer aborts a process that starts two at once. A pass through a network is one
turn as well, since its buffers are the scheduler's.
"""
import os
import threading

import numba

lock = threading.RLock()        # reach it as `turns.lock`: a forked process gets another one


class Threadless:
    """The lock of a process whose threads were left behind in the one it was forked from: nobody's turn comes."""

    def __enter__(self):
        raise RuntimeError("a process that was forked after kernels ran has none of their threads and can run no kernel; start it "
                           "with multiprocessing.get_context('spawn'), or fork before the first kernel runs")

    def __exit__(self, *error):
        """Never called."""


def renew():
    """In a forked process: whoever held the lock is not here."""
    global lock
    try:
        threads = numba.threading_layer() != "tbb"      # which starts new ones after a fork
    except ValueError:          # none were started yet
        threads = False
    lock = Threadless() if threads else threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew)
