"""Several Python threads at once, and forked processes: right answers, or an error that says what to do."""
import functools
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import nbcnn
from nbcnn.kernels import turns

LAYERS = pytest.mark.parametrize("layer", ["omp", "workqueue"])
COMMON = """
    import multiprocessing, os, sys, threading, time
    import numpy as np, nbcnn
    def make(seed=0):
        return nbcnn.Sequential([nbcnn.Conv2d(3, 8, 3, padding=1), nbcnn.ReLU(), nbcnn.MaxPool2d(2), nbcnn.Flatten(),
                                 nbcnn.Linear(128, 3)], seed=seed, input_shape=(3, 8, 8))
    images = np.random.default_rng(0).random((64, 3, 8, 8), dtype=np.float32)
    model = make()
    def predict(k):
        return model(images[k:k + 1])
    def outcome(k):
        try:
            return predict(k).shape
        except RuntimeError as error:
            return str(error)
"""


def run(code, layer):
    """What a program prints in a process of its own, with one of Numba's threading layers."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(code)], capture_output=True, text=True,
                          env={**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@LAYERS
def test_a_model_shared_by_threads_answers_each_its_own_question(layer):
    # At ac8c110 three of four of these answers are another thread's.
    assert run("""
        expected, wrong, faults = model(images), [], []
        def ask(seed):
            rng = np.random.default_rng(seed)
            for _ in range(250):
                start = int(rng.integers(0, 63))
                stop = int(rng.integers(start + 1, 65))
                try:
                    if not np.array_equal(model.predict(images[start:stop], int(rng.integers(1, 40))), expected[start:stop]):
                        wrong.append((start, stop))
                except Exception as error:
                    faults.append(error)
        threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(len(wrong), faults)
        """, layer) == "0 []"


@LAYERS
def test_training_and_predicting_at_once(layer):
    # Other models train in two threads while two threads ask this one: all as if nobody else were there.
    assert run("""
        from nbcnn.datasets import Dataset
        rng = np.random.default_rng(0)
        data = Dataset(rng.integers(0, 256, (32, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 32), ["a", "b", "c"], "x")
        def train(seed):
            own = make(seed)
            nbcnn.fit(own, data, epochs=4, batch_size=8, verbose=0)
            return [value.tobytes() for value in own.state_dict().values()]
        expected, alone, right = model(images), [train(0), train(1)], []
        def trains(seed):
            right.append(train(seed) == alone[seed])
        def asks(seed):
            right.append(all(np.array_equal(model(images), expected) for _ in range(100)))
        threads = [threading.Thread(target=f, args=(k,)) for k in (0, 1) for f in (trains, asks)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(right)
        """, layer) == "[True, True, True, True]"


def scheduler():
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(4, 2)], input_shape=(4,))
    return nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())


def in_a_thread(function):
    """What a function that is called in a thread of its own raises."""
    errors = []

    def call():
        try:
            function()
        except Exception as error:
            errors.append(error)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_two_steps_of_a_scheduler_at_once_are_refused():
    step, x, t = scheduler(), np.ones((3, 4), np.float32), np.array([0, 1, 1])
    optimizer, found = nbcnn.SGD(step.model.parameters(), lr=0.1), []

    class Watched(nbcnn.CrossEntropyLoss):
        """Called in the middle of a step."""
        def forward_backward(self, x, t):
            for name, arguments in {"forward": (x, t), "backward": (), "predict": (x,), "train_step": (x, t, optimizer),
                                    "images": (2,)}.items():
                found.append((name, in_a_thread(functools.partial(getattr(step, name), *arguments))))
            return super().forward_backward(x, t)

    step.loss = Watched()
    expected = scheduler().forward(x, t)
    assert step.train_step(x, t, optimizer) == expected
    assert len(found) == 5
    for name, error in found:
        assert isinstance(error, RuntimeError) and str(error).startswith(f"{name}: another thread is using this scheduler")


def test_a_backward_pass_after_another_threads_forward_is_refused():
    step, x, t = scheduler(), np.ones((3, 4), np.float32), np.array([0, 1, 1])
    assert in_a_thread(lambda: step.forward(x, t)) is None
    with pytest.raises(RuntimeError, match="expected a forward pass by the same thread"):
        step.backward()
    step.forward(x, t)
    step.backward()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("k", range(8))
def test_buffers_that_could_not_be_made_are_never_used(k, error, monkeypatch):
    # At ac8c110 the last answers and gradients are those of other images.
    def make():
        model = nbcnn.Sequential([nbcnn.Conv2d(1, 2, 2), nbcnn.ReLU(), nbcnn.Flatten(), nbcnn.Linear(8, 2)], input_shape=(1, 3, 3))
        return nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())

    def step(scheduler, n):
        for parameter in scheduler.model.parameters():
            parameter.grad = None
        loss = scheduler.forward(images[:n], np.zeros(n, int))
        scheduler.backward()
        return loss, [parameter.grad.copy() for parameter in scheduler.model.parameters()]

    images = np.random.default_rng(0).random((16, 1, 3, 3), dtype=np.float32)
    scheduler = make()
    step(scheduler, 4)          # whose calls are kept
    count, buffer = [0], scheduler.backend.Buffer.__init__

    def failing(self, *arguments):
        count[0] += 1
        if count[0] == k + 1:
            raise error
        buffer(self, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.backend.Buffer, "__init__", failing)
        with pytest.raises(error):
            step(scheduler, 16)
    images = images[::-1].copy()
    expected = step(make(), 4)
    loss, gradients = step(scheduler, 4)
    assert loss == expected[0] and all((a == b).all() for a, b in zip(gradients, expected[1], strict=True))


def test_a_call_within_a_call_is_refused():
    # As from a handler of a signal. At ac8c110 the outer answer is the inner one's.
    step, x = scheduler(), np.ones((3, 4), np.float32)
    step.plan((4,))
    operation, found = step.steps[0].operation, []
    forward = operation.forward

    def interrupted(*arguments):
        try:
            step.predict(x)
        except RuntimeError as error:
            found.append(str(error))
        return forward(*arguments)
    operation.forward = interrupted
    step.predict(x)
    assert found == ["predict: another thread is using this scheduler, or this one further up; give each one of its own"]


def test_parameters_are_copied_as_a_whole():
    # At ac8c110 a quarter of these answers belong to neither state.
    model = nbcnn.Sequential([nbcnn.Linear(6, 50), nbcnn.Linear(50, 50), nbcnn.Linear(50, 3)], input_shape=(6,))
    other = nbcnn.Sequential([nbcnn.Linear(6, 50), nbcnn.Linear(50, 50), nbcnn.Linear(50, 3)], input_shape=(6,), seed=1)
    x, states = np.ones((2, 6), np.float32), [model.state_dict(), other.state_dict()]
    allowed, stop, wrong = {model(x).tobytes(), other(x).tobytes()}, threading.Event(), []
    sums = {sum(float(value.sum()) for value in state.values()) for state in states}

    def ask():
        while not stop.is_set():
            if model(x).tobytes() not in allowed or sum(float(value.sum()) for value in model.state_dict().values()) not in sums:
                wrong.append(1)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    [thread.start() for thread in threads]
    for k in range(400):
        model.load_state_dict(states[k % 2])
    stop.set()
    [thread.join() for thread in threads]
    assert not wrong


def test_a_failed_step_leaves_the_scheduler_free():
    step, x = scheduler(), np.ones((3, 4), np.float32)
    with pytest.raises(IndexError):
        step.forward(x, np.array([0, 1, 7]))
    assert in_a_thread(lambda: step.forward(x, np.array([0, 1, 1]))) is None


@LAYERS
def test_a_pool_forked_after_use_says_spawn_and_one_forked_before_works(layer):
    assert run("""
        with multiprocessing.get_context("fork").Pool(2) as pool:
            before = pool.map_async(outcome, range(4)).get(60)
        predict(0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            after = pool.map_async(outcome, range(4)).get(60)
        print(set(before), all("spawn" in answer for answer in after), predict(0).shape)
        """, layer) == "{(1, 3)} True (1, 3)"


@LAYERS
def test_workers_that_load_batches_say_spawn(layer):
    # As a DataLoader's: each worker makes batches and sends them through a queue.
    assert run("""
        from nbcnn.datasets import Dataset, Loader
        loader = Loader(Dataset(np.zeros((8, 3, 8, 8), np.uint8), np.zeros(8, int), ["a"], "x"), 4)
        next(loader.epoch(0))
        def work(queue):
            try:
                queue.put([labels.tolist() for _, labels in loader.epoch(0)])
            except RuntimeError as error:
                queue.put(str(error))
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        workers = [context.Process(target=work, args=(queue,)) for _ in range(2)]
        [worker.start() for worker in workers]
        answers = [queue.get(timeout=60) for _ in workers]
        [worker.join(60) for worker in workers]
        print(all("spawn" in answer for answer in answers), [worker.exitcode for worker in workers])
        """, layer) == "True [0, 0]"


@LAYERS
def test_forks_of_a_process_whose_threads_are_at_work(layer):
    assert run("""
        stop = False
        def busy():
            while not stop:
                model(images)
        predict(0)
        thread = threading.Thread(target=busy)
        thread.start()
        codes = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(7 if "spawn" in str(outcome(0)) else 8)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop = True
        thread.join()
        print(codes)
        """, layer) == str([7] * 10)


def test_a_spawned_process_works():
    assert run("""
        predict(0)
        import subprocess
        code = "import numpy, nbcnn; print(nbcnn.kernels.relu_forward(numpy.ones((2, 2))).sum())"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
        """, "omp") == "4.0"


def test_the_lock_of_a_child_is_fresh(monkeypatch):
    monkeypatch.setattr(turns, "lock", threading.RLock())
    monkeypatch.setattr(turns, "stranded", False)
    monkeypatch.setattr(turns.numba, "threading_layer", lambda: "tbb")      # its threads are started anew after a fork
    held = turns.lock
    assert in_a_thread(held.acquire) is None        # by a thread that will not be there
    turns.renew()
    assert turns.lock is not held and turns.lock.acquire(blocking=False)
