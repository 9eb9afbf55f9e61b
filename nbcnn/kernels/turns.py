"""Whose turn it is: whatever Python threads ask for at once is computed one after another.

Kernels run with all cores, and Numba's workqueue layer aborts a process that starts two at once. A pass through a network is one
turn as well, since its buffers are the scheduler's; and so is a copy of all parameters, from or to a network.
"""
import os
import threading

import numba

# Reach both as `turns.lock` and `turns.stranded`: a forked process gets others.
lock = threading.RLock()
stranded = False        # whether the threads of this process stayed behind in the one it was forked from


def renew():
    """In a forked process: whoever held the lock is not here."""
    global lock, stranded
    lock = threading.RLock()
    try:
        stranded = numba.threading_layer() != "tbb"     # which starts new threads after a fork
    except ValueError:          # none were started yet
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew)
