"""Whether fewer threads would train faster: what is tried, and what is said."""
import types

import numba
import numpy as np
import pytest

import nbcnn
from nbcnn import threads
from nbcnn.threads import ROUNDS, ThreadTrial

from threads import need_two_cores


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now` is moved."""
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)       # whatever a test before has left
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(threads, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    yield clock
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


def tried(clock, seconds, steps=100):
    """A trial whose steps take so long by the number of threads, and the numbers it chose."""
    trial, counts = ThreadTrial(), []
    for _ in range(steps):
        clock.now += seconds(numba.get_num_threads())
        trial.step()
        counts.append(numba.get_num_threads())
    return trial, counts


def test_fewer_threads_are_said_where_they_are_faster(clock):
    need_two_cores()
    most = numba.get_num_threads()
    trial, counts = tried(clock, lambda count: 0.06 if count == most else 0.02)
    assert f"with {most} 60 ms" in trial.hint and "a step takes 20 ms" in trial.hint and "--threads" in trial.hint
    fewer = {count for count in counts if count < most}
    assert fewer and all(counts.count(count) == ROUNDS for count in fewer)
    assert counts[-1] == numba.get_num_threads() == most


def test_nothing_is_said_where_all_threads_are_best_or_nearly(clock):
    need_two_cores()
    most = numba.get_num_threads()
    assert tried(clock, lambda count: 0.01 * most / count)[0].hint == ""
    assert tried(clock, lambda count: 0.0085 if count < most else 0.01)[0].hint == ""


def test_one_thread_has_nothing_to_try(clock):
    numba.set_num_threads(1)
    assert set(tried(clock, lambda count: 1)[1]) == {1}


def test_a_trial_that_is_ended_early_gives_the_threads_back(clock):
    most = numba.get_num_threads()
    trial, _ = tried(clock, lambda count: 0.01, steps=2)
    trial.stop()
    assert numba.get_num_threads() == most
    trial.step()
    assert numba.get_num_threads() == most


def test_trying_changes_no_bit(clock):
    need_two_cores()

    def trained(on_step):
        rng = np.random.default_rng(0)
        data = nbcnn.datasets.Dataset(rng.integers(0, 256, (64, 1, 6, 6), np.uint8), np.arange(64) % 2, ["a", "b"], "x")
        model = nbcnn.Sequential([nbcnn.Conv2d(1, 8, 3), nbcnn.Flatten(), nbcnn.Linear(128, 2)], input_shape=(1, 6, 6))
        nbcnn.fit(model, data, epochs=3, batch_size=16, on_step=on_step)
        return b"".join(value.tobytes() for value in model.state_dict().values())
    trial = ThreadTrial()
    assert trained(lambda state: trial.step()) == trained(None)
