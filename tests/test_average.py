"""Lookahead and EMA: by hand, over parameters and statistics, and whatever happens while weights are lent."""
import contextlib
import threading

import numpy as np
import pytest
from test_optim import small_model
from test_own_layers import Shift

import nbcnn
from nbcnn import EMA, SGD, Lookahead


def small(dtype=np.float32):
    """A parameter beta of 2, a statistic `seen` of 0.5 and a count of 7."""
    return nbcnn.Sequential([("shift", Shift(3))], input_shape=(3,), dtype=dtype)


def integers(model, seed):
    """Values that are exact after some halvings."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-64, 65, value.shape).astype(value.dtype) * 64 for name, value in model.state_dict().items()}


def values(model):
    return {name: value for name, value in model.state_dict().items() if value.dtype.kind == "f"}


def same(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and (a[name] == b[name]).all() for name in a)


# ---- Lookahead

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("every, decay", [(1, 0.5), (3, 0.25), (2, lambda step: step / 8), (2, 1.0), (2, 0.0)])
def test_lookahead_by_hand(dtype, every, decay):
    """The optimizer alone, on another model, gives the fast values; gradients and statistics are integers."""
    model, fast, rng = small(dtype), small(dtype), np.random.default_rng(0)
    optimizer, alone = Lookahead(SGD(model.parameters(), lr=1.0), every, decay), SGD(fast.parameters(), lr=1.0)
    slow = values(model)
    for k in range(1, 8):
        grad, seen = rng.integers(-8, 9, (2, 3)) * 1024.0       # exact after seven steps of three halvings each
        for one, own in ((model, optimizer), (fast, alone)):
            one.shift.beta.grad = grad
            one.shift.seen.set(one.shift.seen.data + seen)      # as a layer does in its forward pass
            own.step()
        if k % every == 0:
            d = decay(k) if callable(decay) else decay
            slow = {name: d * slow[name] + (1 - d) * value for name, value in values(fast).items()}
            fast.load_state_dict(fast.state_dict() | slow)
        assert same(values(model), values(fast)), k
        assert (optimizer.slow[:3] == slow["shift.beta"]).all() and optimizer.steps == k
    optimizer.finish()
    assert same(values(model), slow) and model.shift.count.numpy() == 7


def test_lookahead_is_an_optimizer():
    model = small_model()
    inner = SGD([dict(params=[model.conv1.weight]), dict(params=[model.linear1.weight], lr=0.5)], lr=0.25, momentum=0.5)
    optimizer = Lookahead(inner)
    assert optimizer.params == inner.params and optimizer.param_groups is inner.param_groups and optimizer.lr == 0.25
    optimizer.lr = 0.5
    assert [group["lr"] for group in inner.param_groups] == [0.5, 1.0]
    model.conv1.weight.grad = np.ones((3, 1, 3, 3))
    optimizer.zero_grad()
    assert model.conv1.weight.grad is None and optimizer.update_of_all() is None
    assert repr(optimizer) == f"Lookahead({inner!r}, every=5, decay=0.5)"


def lookahead(model, decay=0.25):
    return Lookahead(nbcnn.Adam(model.parameters(), lr=0.125), every=2, decay=decay)


def random_steps(model, optimizer, count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = rng.standard_normal(parameter.shape)
        optimizer.step()


@pytest.mark.parametrize("decay", [0.25, lambda step: 1 / step])
def test_a_state_dict_carries_a_run_over(decay):
    model, copy = small_model(), small_model(seed=9)
    optimizer, follower = lookahead(model, decay), lookahead(copy, decay)
    random_steps(model, optimizer, 3, 0)
    copy.load_state_dict(model.state_dict())
    follower.load_state_dict(optimizer.state_dict())
    for one, other in ((model, optimizer), (copy, follower)):
        random_steps(one, other, 4, 1)
    assert (model.vector.data == copy.vector.data).all() and (optimizer.slow == follower.slow).all()
    assert follower.steps == 7 and follower.decay is optimizer.decay


def test_a_state_dict_that_does_not_fit_changes_nothing():
    model = small_model()
    optimizer = lookahead(model)
    random_steps(model, optimizer, 3, 0)
    state = optimizer.state_dict()
    for change, error, message in (
            (dict(every=0), ValueError, "every: expected an int >= 1, got 0"), (dict(steps=-1), ValueError, "steps: expected an"),
            (dict(decay=2), ValueError, r"decay: expected a number in \[0, 1\], got 2"),
            (dict(slow=np.zeros(3)), ValueError, "slow: expected shape"), (dict(slow="x"), TypeError, "slow: expected an array"),
            (dict(optimizer={}), ValueError, "state: expected what Adam"), (dict(more=1), ValueError, "what Lookahead.state_dict")):
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state | change)
    for wrong in (3, {}):
        with pytest.raises((TypeError, ValueError), match=r"^state: expected what Lookahead.state_dict\(\) gives"):
            optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert (after["slow"] == state["slow"]).all() and after["optimizer"]["steps"] == state["optimizer"]["steps"] == [3] * 6


@pytest.mark.parametrize("arguments, error, message", [
    ((3,), TypeError, r"optimizer: expected an optimizer, as nbcnn.SGD\(...\), got int"),
    ((lookahead(small_model()),), TypeError, "optimizer: expected an optimizer without Lookahead, got a Lookahead"),
    ((SGD(small_model().parameters(), lr=1), 0), ValueError, "every: expected an int >= 1, got 0"),
    ((SGD(small_model().parameters(), lr=1), 5, 1.5), ValueError, r"decay: expected a number in \[0, 1\], got 1.5"),
    ((SGD(small_model().parameters(), lr=1), 5, "x"), TypeError, r"decay: expected a number in \[0, 1\], got 'x'"),
])
def test_errors_of_lookahead(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Lookahead(*arguments)


def test_a_decay_that_is_none_stops_before_the_step():
    model = small_model()
    optimizer = lookahead(model, decay=lambda step: 3 - step)
    random_steps(model, optimizer, 1, 0)
    before = model.vector.data.copy()
    optimizer.decay = lambda step: 2
    with pytest.raises(ValueError, match=r"^decay: expected a number in \[0, 1\], got 2"):
        random_steps(model, optimizer, 1, 1)
    assert (model.vector.data == before).all() and optimizer.steps == 1


# ---- EMA

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ema_by_hand(dtype):
    model = small(dtype)
    ema, expected = EMA(model, 0.75), values(model)
    for seed in range(4):
        model.load_state_dict(integers(model, seed))
        before = model.state_dict()
        ema.update()
        expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in values(model).items()}
        assert same(model.state_dict(), before)
    found = ema.state_dict()
    assert same(found, before | expected)
    with ema.weights():
        assert same(model.state_dict(), found) and not same(found, before)
    assert same(model.state_dict(), before) and same(ema.state_dict(), found)
    assert repr(ema) == "EMA(1 parameters, decay=0.75)"


def test_what_is_lent_is_what_predicts():
    model, images = small_model(), np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32)
    ema = EMA(model, 0.5)
    random_steps(model, SGD(model.parameters(), lr=1.0), 1, 0)
    ema.update()
    twin = small_model(seed=5)
    twin.load_state_dict(ema.state_dict())
    own = model(images)
    with ema.weights():
        assert (model(images) == twin(images)).all() and not (own == twin(images)).any()
    assert (model(images) == own).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize("inside", ["training", "loading", "an update", "an exception", "lent again", "counting"])
def test_own_values_come_back_whatever_happens(inside):
    model = small()
    ema = EMA(model, 0.5)
    model.load_state_dict(integers(model, 0))
    model.vector.steps[0] = 5
    ema.update()
    before, average, counts = model.state_dict(), ema.average.copy(), model.vector.counts.copy()
    try:
        with ema.weights():
            if inside == "training":
                step = nbcnn.BackpropScheduler(model, nbcnn.MSELoss())
                step.train_step(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), SGD(model.parameters(), lr=1.0))
                assert model.vector.steps[0] == 6
            elif inside == "loading":
                model.load_state_dict(integers(model, 1))
            elif inside == "an update":
                ema.update()        # with the average itself
            elif inside == "an exception":
                raise Stop
            elif inside == "lent again":
                with ema.weights():
                    model.shift.beta.set([0, 0, 0])
            else:
                model.shift.count.set(3)
    except Stop:
        pass
    assert same(model.state_dict(), before) and (ema.average == average).all() and (model.vector.counts == counts).all()


def test_a_state_dict_is_taken_over():
    model, other = small(), small()
    ema, follower = EMA(model, 0.5), EMA(other, 0.5)
    model.load_state_dict(integers(model, 0))
    ema.update()
    before = other.state_dict()
    follower.load_state_dict(ema.state_dict())
    assert (follower.average == ema.average).all() and same(other.state_dict(), before)
    with pytest.raises(ValueError, match=r"^state: missing shift\.beta"):
        follower.load_state_dict({})
    assert (follower.average == ema.average).all() and same(other.state_dict(), before)


@pytest.mark.parametrize("lend", [True, False])
def test_other_threads_see_one_or_the_other(lend):
    """While weights are lent, predictions are with all of the average or all of the own values; with these while it is copied."""
    model, images = small_model(), np.ones((1, 1, 4, 4), np.float32)
    ema = EMA(model, 0.5)
    random_steps(model, SGD(model.parameters(), lr=1.0), 1, 0)
    ema.update()
    allowed = {model(images).tobytes()}
    if lend:
        with ema.weights():
            allowed.add(model(images).tobytes())
    found, done = set(), threading.Event()

    def predict():
        while not done.is_set():
            found.add(model(images).tobytes())
    thread = threading.Thread(target=predict)
    thread.start()
    for _ in range(200):
        with ema.weights() if lend else contextlib.nullcontext():
            ema.state_dict()
    done.set()
    thread.join()
    assert found and found <= allowed


def test_averages_hold_no_denormal_numbers():
    tiny = float(np.finfo(np.float32).tiny)
    model = small()
    ema = EMA(model, 0.25)
    optimizer = Lookahead(SGD(model.parameters(), lr=1.0), every=1, decay=0.25)
    ema.average[:3] = optimizer.slow[:3] = [tiny, -8 * tiny, np.nan]
    model.vector.data[:3] = 0
    model.shift.beta.grad = np.zeros(3)
    ema.update()
    optimizer.step()
    for average in (ema.average, optimizer.slow):
        assert average[:2].tolist() == [0, -2 * tiny] and np.isnan(average[2])


@pytest.mark.parametrize("model, decay, error, message", [
    (3, 0.5, TypeError, "model: expected a nbcnn"), (small(), 1.5, ValueError, r"decay: expected a number in \[0, 1\], got 1.5"),
    (small(), "x", TypeError, r"decay: expected a number in \[0, 1\], got 'x'")])
def test_errors_of_ema(model, decay, error, message):
    with pytest.raises(error, match=f"^{message}"):
        EMA(model, decay)


def test_gaps_stay_zero():
    """One pass runs over the whole vector, the gaps between its tensors included."""
    model = small_model()
    ema, optimizer = EMA(model, 0.5), lookahead(model)
    random_steps(model, optimizer, 4, 0)
    ema.update()
    gaps = np.ones(len(model.vector.data), bool)
    for parameter in model.parameters():
        gaps[parameter.start:parameter.stop] = False
    vectors = model.vector.data, ema.average, optimizer.slow, *optimizer.optimizer._beside.arrays.values()
    assert gaps.any() and not any(array[gaps].any() for array in vectors)
    assert all(array.ctypes.data % 64 == 0 for array in vectors)
