"""Whether fewer threads would train faster, as is so where other processes keep the cores busy."""
import time

import numba
import numpy as np

ROUNDS = 5
WORTH = 0.8         # fewer threads are worth a hint where a step takes less than this part of the time


class ThreadTrial:
    """Runs a training's first steps with all threads and with fewer, in turn. The number of threads changes no bit of a result.

    Attributes
    ----------
    hint : str
        A hint for the user; "" while nothing is known, and where all threads are best.
    """

    def __init__(self):
        self.most, self.hint = numba.get_num_threads(), ""
        counts = sorted({self.most, self.most - 1, -(-self.most // 2)} - {0})
        self._seconds = {count: [] for count in counts}
        self._turns = counts * ROUNDS if len(counts) > 1 else []
        self._started = None

    def step(self):
        """To be called after each step: choose the threads of the next one."""
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
        """End the trial, and go on with all threads."""
        if self._turns:
            self._turns = []
            numba.set_num_threads(self.most)
