"""Whether fewer threads would train faster, as they do where other processes keep the cores busy."""
import time

import numba
import numpy as np

ROUNDS = 5
WORTH = 0.8         # a step must take less than this part of the time to be worth a word


class ThreadTrial:
    """Does a training's first steps with all threads and with fewer, in turns. The number of threads changes no bit of a result.

    Attributes
    ----------
    hint : str
        What a user may want to know; "" while nothing is known, and where all threads are best.
    """

    def __init__(self):
        self.most, self.hint = numba.get_num_threads(), ""
        counts = sorted({self.most, self.most - 1, -(-self.most // 2)} - {0})
        self._seconds = {count: [] for count in counts}
        self._turns = counts * ROUNDS if len(counts) > 1 else []
        self._started = None

    def step(self):
        """A step has been done: choose the threads of the next one."""
        if not self._turns:
            return
        if self._started is not None:
            self._seconds[self._turns.pop()].append(time.perf_counter() - self._started)
        if self._turns:
            numba.set_num_threads(self._turns[-1])
        else:
            numba.set_num_threads(self.most)
            took = {count: np.median(seconds) * 1e3 for count, seconds in self._seconds.items()}
            best = min(took, key=took.get)
            if took[best] < WORTH * took[self.most]:
                self.hint = (f"with {best} thread{'s' * (best > 1)} a step takes {took[best]:.3g} ms, with {self.most} "
                             f"{took[self.most]:.3g} ms, as if other processes kept the cores busy; --threads {best} gives the "
                             "same result sooner.")
        self._started = time.perf_counter()

    def stop(self):
        """Try no more, and go on with all threads."""
        if self._turns:
            self._turns = []
            numba.set_num_threads(self.most)
