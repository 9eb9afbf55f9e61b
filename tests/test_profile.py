"""The profile: a row for each kernel, times that add up, results that it does not change; and the measured peak."""
import math
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import nbcnn
from nbcnn import profile as profile_module
from nbcnn.kernels.cpu.peak import make_multiply_add
from nbcnn.kernels.cpu.tile import lanes
from nbcnn.kernels.operation import Call
from nbcnn.profile import Profile, fma_peak

PEAK = 50.0     # GFLOP/s, instead of a measured one


@pytest.fixture
def peaks(monkeypatch):
    """What the peak is measured with; it is PEAK at once."""
    asked = []

    def fixed(threads, dtype):
        asked.append((threads, dtype))
        return PEAK
    monkeypatch.setattr(profile_module, "fma_peak", fixed)
    return asked


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to; its attribute `now` is in seconds."""
    clock = SimpleNamespace(now=1000.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(profile_module, "time", clock)
    return clock


def network(dtype=np.float32, fuse=True):
    """A scheduler of a network with a fused step, plain ones and a layer without parameters; its optimizer."""
    model = nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 4, 3, padding=1)), ("maxpool1", nbcnn.MaxPool2d(2)),
        ("conv2", nbcnn.Conv2d(4, 5, 3, stride=2)), ("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(20, 3)),
    ], input_shape=(3, 10, 10), dtype=dtype, seed=0)
    scheduler = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), fuse=fuse)
    return scheduler, nbcnn.SGD(model.parameters(), lr=0.1, momentum=0.9)


def batch(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 3, 10, 10), dtype=np.float32), rng.integers(0, 3, n)


def by_name(profile):
    """The rows by (step, pass, kernel)."""
    rows = {(row["step"], row["pass"], row["kernel"]): row for row in profile.rows}
    assert len(rows) == len(profile.rows)
    return rows


# ---- rows ----

@pytest.mark.parametrize("fuse", [True, False])
def test_a_row_for_each_kernel(peaks, fuse):
    """The names, calls and flop of the rows are those of the calls that the operations of the plan give."""
    step, optimizer = network(fuse=fuse)
    with step.profile() as profile:
        for seed in range(3):
            step.train_step(*batch(seed=seed), optimizer)
    assert profile.steps == 3
    optimizer.zero_grad()       # the calls of a backward pass depend on whether there is something to add to
    expected = {("loss", "both", "CrossEntropyLoss"): [3, 0],
                ("optimizer", "update", "SGD"): [3, 0], ("everything else", "", ""): [None, 0]}
    for direction, calls in (("forward", step.forward_calls(6)), ("backward", step.backward_calls(6))):
        for name, call in calls:
            entry = expected.setdefault((name, direction, call.kernel.__name__), [0, 0])
            entry[0], entry[1] = entry[0] + 3, entry[1] + 3 * call.flop
    rows = by_name(profile)
    assert rows.keys() == expected.keys()
    for key, (calls, flop) in expected.items():
        row = rows[key]
        assert row["calls"] == calls, key
        if flop:    # GFLOP/s times seconds; a quotient and products, each rounded to 1e-16
            assert row["gflops"] * 1e9 * row["ms"] / 1e3 * 3 == pytest.approx(flop, rel=1e-12), key
            assert row["peak_share"] == row["gflops"] / PEAK
        else:
            assert row["gflops"] is None and row["peak_share"] is None, key
    assert sum(row["share"] for row in profile.rows) == pytest.approx(1, abs=1e-12)     # some twenty roundings of 1e-16
    assert all(row["share"] > 0 for row in profile.rows)
    assert sum(row["ms"] for row in profile.rows) * 3 / 1e3 == pytest.approx(profile.seconds, rel=1e-12)


def test_the_order_is_that_of_a_training_step(peaks):
    step, optimizer = network()
    with step.profile() as profile:
        step.train_step(*batch(), optimizer)
    passes = [(row["step"], row["pass"]) for row in profile.rows]
    names = ["conv1+maxpool1", "conv2", "flatten", "linear"]
    assert list(dict.fromkeys(passes)) == [
        *((name, "forward") for name in names), ("loss", "both"),
        *((name, "backward") for name in reversed(names)), ("optimizer", "update"), ("everything else", "")]


def test_the_peak_is_that_of_the_threads_and_the_dtype(peaks):
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with network(np.float64)[0].profile() as profile:
            pass
    finally:
        numba.set_num_threads(before)
    assert peaks == [(1, np.float64)] and (profile.threads, profile.peak) == (1, PEAK)
    with network()[0].profile(profile):     # goes on, so nothing is measured again
        pass
    assert len(peaks) == 1


def test_known_times(peaks, clock):
    """Two steps in 16 s: 8 s in a kernel with 200 GFLOP, 2 s in one without, 4 s in an optimizer, 2 s outside of them."""
    class Optimizer:
        def step(self, seconds):
            clock.now += seconds
            return "updated"

    def multiply(seconds):
        clock.now += seconds

    def move(seconds):
        clock.now += seconds

    profile = Profile()
    profile.start()
    for _ in range(2):
        profile.run(["conv", "pool"], "forward", [Call(multiply, (4,), 100 * 10**9), Call(move, (1,))])
        assert profile.call(("optimizer", "update", "Optimizer"), Optimizer().step, 2) == "updated"
        profile.steps += 1
        clock.now += 1
    assert profile.seconds == 16
    inside = profile.rows
    profile.stop()
    clock.now += 100
    profile.threads = 2     # whatever the tests run with
    assert profile.seconds == 16 and profile.rows == inside == [
        {"step": "conv", "pass": "forward", "kernel": "multiply", "calls": 2, "ms": 4000, "share": 0.5, "gflops": 25,
         "peak_share": 0.5},
        {"step": "pool", "pass": "forward", "kernel": "move", "calls": 2, "ms": 1000, "share": 0.125, "gflops": None,
         "peak_share": None},
        {"step": "optimizer", "pass": "update", "kernel": "Optimizer", "calls": 2, "ms": 2000, "share": 0.25, "gflops": None,
         "peak_share": None},
        {"step": "everything else", "pass": "", "kernel": "", "calls": None, "ms": 1000, "share": 0.125, "gflops": None,
         "peak_share": None}]
    first, _, empty, *table = str(profile).splitlines()
    assert first.startswith("2 training steps, 2 threads, measured peak 50 GFLOP/s") and not empty
    assert table == [
        "step             kernel     calls   ms/step   share  GFLOP/s  peak",
        "------------------------------------------------------------------",
        "conv             multiply       2  4000.000   50.0%     25.0   50%",
        "pool             move           2  1000.000   12.5%",
        "optimizer        Optimizer      2  2000.000   25.0%",
        "everything else                    1000.000   12.5%",
        "total                              8000.000  100.0%     12.5   25%"]
    profile.start()         # another block: its time is added
    clock.now += 8
    profile.stop()
    assert profile.seconds == 24 and profile.rows[-1]["ms"] == 5000


# ---- what is recorded ----

def test_nothing_is_recorded_outside_of_the_block(peaks, monkeypatch):
    step, optimizer = network()
    with step.profile() as profile:
        step.train_step(*batch(), optimizer)
    rows, seconds = profile.rows, profile.seconds
    monkeypatch.setattr(profile_module, "time", None)       # nobody looks at the clock
    step.train_step(*batch(), optimizer)
    step.predict(batch()[0])
    assert profile.rows == rows and profile.seconds == seconds and profile.steps == 1


def test_passes_without_training_are_everything_else(peaks):
    step, _ = network()
    images, labels = batch()
    with step.profile() as profile:
        step.predict(images)
        step.forward(images, labels, training=False)
        assert profile.steps == 0 and profile.rows == [] and str(profile) == "no training step was profiled"
        step.forward(images, labels)
    rows = by_name(profile)
    assert profile.steps == 1 and rows["conv1+maxpool1", "forward", "pack_weight"]["calls"] == 1
    assert not [key for key in rows if key[1] in ("backward", "update")]


def test_batches_of_several_sizes_and_added_gradients_are_the_same_rows(peaks):
    step, _ = network()
    with step.profile() as profile:
        for n in (6, 2, 6):
            step.forward(*batch(n))
            step.backward()
    rows = by_name(profile)
    assert rows["linear", "forward", "pack_weight"]["calls"] == rows["flatten", "backward", "flatten_backward"]["calls"] == 3


def test_a_loss_that_is_not_finite_has_no_backward_pass(peaks):
    step, optimizer = network()
    step.model.linear.bias.data[0] = math.nan
    with step.profile() as profile:
        assert math.isnan(step.train_step(*batch(), optimizer))
    assert profile.steps == 1 and {row["pass"] for row in profile.rows} == {"forward", "both", ""}


def test_a_block_goes_on_with_an_earlier_one(peaks):
    step, optimizer = network()
    with step.profile() as profile:
        step.train_step(*batch(), optimizer)
    seconds = profile.seconds
    with step.profile(profile) as again:
        step.train_step(*batch(), optimizer)
    assert again is profile and profile.steps == 2 and profile.seconds > seconds
    assert by_name(profile)["optimizer", "update", "SGD"]["calls"] == 2
    with step.profile() as other:
        pass
    assert other.steps == 0 and profile.steps == 2


def test_blocks_do_not_nest_and_end_with_an_error(peaks):
    step, optimizer = network()
    with pytest.raises(ZeroDivisionError), step.profile() as profile:
        step.train_step(*batch(), optimizer)
        raise ZeroDivisionError
    step.train_step(*batch(), optimizer)
    assert profile.steps == 1
    with step.profile() as outer:
        with pytest.raises(RuntimeError, match=r"^profile: expected no such block around this one"), step.profile():
            pass
        step.train_step(*batch(), optimizer)
    assert outer.steps == 1
    with pytest.raises(TypeError, match=r"^into: expected a Profile, got 3"), step.profile(3):
        pass


# ---- the same bits ----

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_profiled_training_gives_the_same_bits(peaks, dtype):
    def train(profiled):
        step, optimizer = network(dtype)
        losses = []
        for seed in range(6):
            if profiled and seed in (1, 2, 4):
                with step.profile():
                    losses.append(step.train_step(*batch(4 + seed, seed), optimizer))
            else:
                losses.append(step.train_step(*batch(4 + seed, seed), optimizer))
        return losses, step.model.vector.data
    (plain, vector), (profiled, profiled_vector) = train(False), train(True)
    assert plain == profiled and (vector == profiled_vector).all() and len(set(plain)) == 6


def test_fit_profiles_the_training_and_not_the_tests(peaks, clock, monkeypatch):
    """A batch takes 1 s, a test 100 s, what on_epoch does 1000 s."""
    def train(**arguments):
        rng = np.random.default_rng(0)
        dataset = nbcnn.datasets.Dataset(rng.integers(0, 256, (20, 3, 10, 10)).astype(np.uint8), rng.integers(0, 3, 20),
                                         ["a", "b", "c"], "noise")
        model = network()[0].model
        state = nbcnn.fit(model, dataset, dataset, epochs=3, batch_size=8, on_step=lambda state: pass_time(1),
                          on_epoch=lambda state: pass_time(1000), **arguments)
        return state, [(row["train_loss"], row["test_loss"]) for row in state.history], model.vector.data

    def pass_time(seconds):
        clock.now += seconds

    def test(*arguments, **options):
        pass_time(100)
        return measure(*arguments, **options)

    module = sys.modules["nbcnn.fit"]       # nbcnn.fit is the function
    measure = module.measure
    monkeypatch.setattr(module, "measure", test)
    (plain, losses, vector), (state, profiled, profiled_vector) = train(), train(profile=True)
    assert losses == profiled and (vector == profiled_vector).all()
    assert plain.profile is None and state.profile.steps == 9       # 20 images in batches of 8, three times
    assert by_name(state.profile)["conv1+maxpool1", "forward", "conv2d_maxpool2d_forward"]["calls"] == 9
    assert state.profile.seconds == 9 and len(peaks) == 1


# ---- the peak ----

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("P, V", [(8, 2), (4, 2), (3, 1)])
def test_the_kernel_multiplies_matrices(dtype, P, V):
    """Small whole numbers, so every sum is exact."""
    rng, width = np.random.default_rng(0), V * lanes(dtype)
    x, w = rng.integers(-4, 5, (P, 7)).astype(dtype), rng.integers(-4, 5, (7, width)).astype(dtype)
    y = np.full((3, P, width), np.nan, dtype)
    make_multiply_add(P, V, lanes(dtype))(y, x, w, 5)
    assert (y == 5 * (x @ w)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_peak_is_positive_and_leaves_the_threads_as_they_were(dtype):
    before = numba.get_num_threads()
    assert 0 < fma_peak(1, dtype) < math.inf
    assert 0 < fma_peak(dtype=dtype) < math.inf
    assert numba.get_num_threads() == before


def test_the_peak_uses_the_threads_asked_for(monkeypatch):
    used, before = [], numba.get_num_threads()

    def launch(kernel, y, x, w, repeats):
        used.append((numba.get_num_threads(), len(y)))
    monkeypatch.setattr(profile_module, "launch", launch)
    numba.set_num_threads(1)
    try:
        fma_peak()
        assert set(used) == {(1, 1)}
        used.clear()
        fma_peak(before)
        assert set(used) == {(before, before)} and numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("arguments, error, message", [
    ((0,), ValueError, "^threads: expected an int >= 1, got 0"),
    ((1.5,), TypeError, "^threads: expected an int >= 1, got 1.5"),
    ((10_000,), ValueError, "^threads: expected at most [0-9]+, got 10000"),
    ((1, np.int32), TypeError, "^dtype: expected float32 or float64, got int32"),
])
def test_errors_of_the_peak(arguments, error, message):
    with pytest.raises(error, match=message):
        fma_peak(*arguments)
