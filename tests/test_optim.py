"""SGD and the learning-rate schedules."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbcnn
from nbcnn import optim
from nbcnn.kernels import cpu
from nbcnn.optim import SGD

import oracles

OPTIONS = [dict(momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov, maximize=maximize)
           for momentum, dampening, weight_decay, nesterov, maximize in itertools.product(
               (0, 0.5), (0, 0.25), (0, 0.125), (False, True), (False, True))
           if not nesterov or (momentum and not dampening)]


def small_model(dtype=np.float32, seed=0):
    """Six parameters, none of whose sizes fills whole cache lines."""
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(1, 3, 3)), ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(12, 5)),
                             ("linear2", nbcnn.Linear(5, 3))], input_shape=(1, 4, 4), seed=seed, dtype=dtype)


def integers(rng, shape):
    return rng.integers(-8, 9, shape).astype(float)


def reference(theta, grads, lr, **options):
    """One parameter through the steps; a gradient that is None skips its step, and without momentum there is no buffer."""
    theta, buffer = oracles.sgd(theta, [g for g in grads if g is not None], lr, **options)
    return theta, buffer if options["momentum"] else None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_three_steps_are_exact_with_dyadic_values(options, dtype):
    model, rng = small_model(dtype), np.random.default_rng(0)
    before, grads = {}, {}
    for name, parameter in model.named_parameters():
        parameter.data[...] = integers(rng, parameter.shape)
        before[name] = parameter.data.copy()
        grads[name] = [integers(rng, parameter.shape) for _ in range(3)]
    grads["linear1.weight"][0] = None       # its momentum begins a step later than its neighbours'
    grads["linear1.bias"][1] = None
    optimizer = SGD(model.parameters(), lr=0.5, **options)
    for k in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name][k]
        optimizer.step()
    for name, parameter in model.named_parameters():
        theta, buffer = reference(before[name], grads[name], 0.5, **options)
        assert (parameter.data == theta).all(), name
        found = optimizer.momentum_buffer(parameter)
        assert (found is None) == (buffer is None)
        assert buffer is None or (found == buffer).all(), name
    gaps = np.ones(len(model.vector.data), bool)
    for parameter in model.parameters():
        gaps[parameter.start:parameter.stop] = False
    assert gaps.any() and not model.vector.data[gaps].any()


@given(seed=st.integers(0, 2**32 - 1), options=st.sampled_from(OPTIONS))
def test_any_pattern_of_gradients_and_any_choice_of_parameters(seed, options):
    rng, model = np.random.default_rng(seed), small_model()
    chosen = rng.random(len(model.parameters())) < 0.7
    chosen[rng.integers(len(chosen))] = True
    model.vector.data[:], model.vector.grad[:] = 0, np.nan      # what has no gradient must not be read
    before, grads = {}, {name: [] for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data[...] = integers(rng, parameter.shape)
        before[name] = parameter.data.copy()
    gap = model.vector.grad.copy()
    for parameter in model.parameters():
        gap[parameter.start:parameter.stop] = 0
    model.vector.grad[np.isnan(gap)] = 0
    params = [parameter for parameter, use in zip(model.parameters(), chosen, strict=True) if use]
    rng.shuffle(params)
    optimizer = SGD(params, lr=0.5, **options)
    for _ in range(3):
        for name, parameter in model.named_parameters():
            grads[name].append(integers(rng, parameter.shape) if rng.random() < 0.7 else None)
            parameter.grad = grads[name][-1]
        optimizer.step()
    for (name, parameter), use in zip(model.named_parameters(), chosen, strict=True):
        theta, _ = reference(before[name], grads[name], 0.5, **options) if use else (before[name], None)
        assert (parameter.data == theta).all(), name


@pytest.mark.torch
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parity_with_torch(options):
    import torch
    model, rng = small_model(np.float64), np.random.default_rng(1)
    twins = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in model.state_dict().items()}
    optimizer, twin = SGD(model.parameters(), lr=0.1, **options), torch.optim.SGD(twins.values(), lr=0.1, **options)
    for k in range(5):
        for position, (name, parameter) in enumerate(model.named_parameters()):
            grad = rng.standard_normal(parameter.shape) if (position + k) % 3 else None
            parameter.grad = grad
            twins[name].grad = None if grad is None else torch.tensor(grad)
        optimizer.lr = twin.param_groups[0]["lr"] = 0.1 / (k + 1)
        optimizer.step()
        twin.step()
    for name, parameter in model.named_parameters():
        theirs = twins[name].detach().numpy()
        # Five steps of four roundings each, on numbers below 8.
        np.testing.assert_allclose(parameter.data, theirs, rtol=0, atol=20 * 8 * np.finfo(float).eps)


def test_a_whole_model_is_one_call_of_the_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "update", lambda data, *rest: calls.append(len(data)))
    model = small_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    assert calls == []
    for parameter in model.parameters():
        parameter.grad = np.zeros(parameter.shape)
    for _ in range(3):
        optimizer.step()
    assert calls == [model.parameters()[-1].stop] * 3
    model.linear1.weight.grad = None
    calls.clear()
    optimizer.step()
    assert len(calls) == 2


def test_zero_grad_gives_none_and_a_step_then_changes_nothing():
    model = small_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = model.vector.data.copy()
    optimizer.step()
    assert (model.vector.data == before).all() and optimizer.momentum_buffer(model.linear1.bias) is None


def test_a_state_dict_carries_a_run_over():
    def run(model, optimizer, rng, steps):
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = rng.standard_normal(parameter.shape)
            model.conv1.bias.grad = None
            optimizer.step()
    model, rng = small_model(), np.random.default_rng(0)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    run(model, optimizer, rng, 2)
    state, values = optimizer.state_dict(), model.state_dict()
    assert state["momentum_buffers"][1] is None and state["momentum_buffers"][0].shape == (3, 1, 3, 3)
    copy, seed = small_model(seed=9), rng.integers(1000)
    copy.load_state_dict(values)
    follower = SGD(copy.parameters(), lr=1)
    follower.load_state_dict(state)
    run(model, optimizer, np.random.default_rng(seed), 2)
    run(copy, follower, np.random.default_rng(seed), 2)
    assert (model.vector.data == copy.vector.data).all() and repr(follower) == repr(optimizer)
    assert (state["momentum_buffers"][0] != optimizer.momentum_buffer(model.conv1.weight)).any()    # it was a copy


def test_a_state_dict_that_does_not_fit_changes_nothing():
    model = small_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = optimizer.state_dict()
    for change in (dict(momentum_buffers=[None]), dict(momentum_buffers=[np.zeros(3)] * 6), dict(lr=-1), dict(rate=1)):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(state | change)
    with pytest.raises(ValueError, match="what SGD"):
        optimizer.load_state_dict({})
    assert optimizer.state_dict() == state


@pytest.mark.parametrize("options, error, message", [
    (dict(lr=-0.1), ValueError, "lr: expected a finite number >= 0, got -0.1"),
    (dict(lr=float("nan")), ValueError, "lr"),
    (dict(lr="0.1"), TypeError, "lr: expected a finite number >= 0, got '0.1'"),
    (dict(weight_decay=1e39), ValueError, r"weight_decay: expected a finite number of float32 >= 0, got 1e\+39"),
    (dict(momentum=-1), ValueError, "momentum"),
    (dict(dampening=-1), ValueError, "dampening"),
    (dict(weight_decay=float("inf")), ValueError, "weight_decay"),
    (dict(nesterov=True), ValueError, "nesterov: expected a momentum > 0"),
    (dict(nesterov=True, momentum=0.9, dampening=0.1), ValueError, "dampening 0.1"),
])
def test_errors_of_options(options, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        SGD(model.parameters(), **({"lr": 0.1} | options))
    optimizer = SGD(model.parameters(), lr=0.1)
    if "lr" in options:
        with pytest.raises(error, match=message):
            optimizer.lr = options["lr"]
        assert optimizer.lr == 0.1


def test_what_is_no_state():
    optimizer = SGD(small_model().parameters(), lr=0.1)
    state = optimizer.state_dict()
    for wrong, message in ((3, "what SGD"), (state | {"momentum_buffers": 3}, "a list of momentum buffers, got 3"),
                           (state | {"momentum_buffers": ["x"] * 6}, "an array of numbers, got str")):
        with pytest.raises(TypeError, match=f"^state: expected {message}"):
            optimizer.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"^state: expected what SGD.state_dict\(\) gives, got missing or other entries \[.*1.*\]"):
        optimizer.load_state_dict({1: 2})
    assert optimizer.state_dict() == state


def test_rates_that_overflow():
    with pytest.raises(ValueError, match=r"^lr: expected a finite number >= 0, got <int>"):
        optim.constant(10**5000)
    assert optim.step(0.1, 1, 1e300)(5) == float("inf")


def test_errors_of_parameters():
    model, other = small_model(), small_model()
    for params, error, message in (
            ([], ValueError, "at least one"),
            (model.parameters() + other.parameters(), ValueError, "of one nbcnn.Sequential"),
            (model.parameters() + model.parameters()[:1], ValueError, "got one twice"),
            (nbcnn.Linear(2, 3).parameters.values(), ValueError, "of one nbcnn.Sequential"),
            (3, TypeError, "params: expected a list of nbcnn Parameters, got 3"),
            ([np.zeros(3)], TypeError, "params: expected nbcnn Parameters, got ndarray")):
        with pytest.raises(error, match=message):
            SGD(params, lr=0.1)


# ---- schedules ----

@pytest.mark.torch
@pytest.mark.parametrize("total", [7, 40, 1000])
def test_schedules_follow_torch(total):
    import torch
    kinds = torch.optim.lr_scheduler
    for ours, theirs in (
            (optim.constant(0.3), lambda opt: kinds.LambdaLR(opt, lambda k: 1)),
            (optim.step(0.3, 3, 0.7), lambda opt: kinds.StepLR(opt, 3, 0.7)),
            (optim.cosine(0.3, total, 0.01), lambda opt: kinds.CosineAnnealingLR(opt, total, 0.01)),
            (optim.one_cycle(0.3, total), lambda opt: kinds.OneCycleLR(opt, 0.3, total_steps=total, pct_start=0.2)),
            (optim.one_cycle(0.3, total, 0.45, 10, 50), lambda opt: kinds.OneCycleLR(
                opt, 0.3, total_steps=total, pct_start=0.45, div_factor=10, final_div_factor=50))):
        twin = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule = theirs(twin)
        for k in range(total):
            # StepLR and CosineAnnealingLR go on from the previous value, so their rounding errors add up over the steps.
            assert ours(k) == pytest.approx(twin.param_groups[0]["lr"], rel=1e-12, abs=1e-15), (k, total)
            twin.step()
            if k < total - 1:
                schedule.step()


@pytest.mark.torch
@pytest.mark.parametrize("total", [*range(1, 13), 50, 333])
@pytest.mark.parametrize("pct_start", [0.0, 1e-6, 0.01, 0.05, 0.1, 0.125, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.75, 0.99, 1.0])
def test_one_cycle_follows_torch_however_short_the_way_up(total, pct_start):
    import torch
    learning_rate, twin = optim.one_cycle(0.3, total, pct_start), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    if pct_start * total == 1:
        with pytest.raises(ZeroDivisionError):
            torch.optim.lr_scheduler.OneCycleLR(twin, 0.3, total_steps=total, pct_start=pct_start)
        assert learning_rate(0) == 0.3
        return
    schedule = torch.optim.lr_scheduler.OneCycleLR(twin, 0.3, total_steps=total, pct_start=pct_start)
    for k in range(total):
        assert learning_rate(k) == pytest.approx(twin.param_groups[0]["lr"], rel=1e-12, abs=1e-15), k
        twin.step()
        if k < total - 1:
            schedule.step()


def test_one_cycle_without_a_way_up():
    """By hand: the way down begins a step before step 0, so step k is (k + 1)/3 of it, where cos is 1/2, -1/2 and -1."""
    learning_rate = optim.one_cycle(1.0, 3, 0.0, div_factor=1.0, final_div_factor=5.0)
    assert [learning_rate(k) for k in range(3)] == pytest.approx([0.2 + 0.8 * 0.75, 0.2 + 0.8 * 0.25, 0.2])


def test_one_cycle_as_the_default_recipe_has_it():
    total = 16 * 782
    learning_rate = optim.one_cycle(0.02, total)
    rates = np.array([learning_rate(k) for k in range(total)])
    assert rates[0] == pytest.approx(0.02 / 25) and rates[-1] == pytest.approx(0.02 / 25e4)
    assert rates.max() == pytest.approx(0.02, rel=1e-6) and abs(rates.argmax() / total - 0.2) < 1e-3
    assert (np.diff(rates[:rates.argmax()]) > 0).all() and (np.diff(rates[rates.argmax():]) < 0).all()


@given(total=st.integers(1, 6), pct_start=st.floats(0, 1))
def test_schedules_of_few_steps_stay_in_range(total, pct_start):
    for k in range(total + 2):      # a step too many is no fault
        assert 0 <= optim.one_cycle(0.5, total, pct_start)(k) <= 0.5
        assert 0 <= optim.cosine(0.5, total)(k) <= 0.5


def test_errors_of_schedules():
    for call, message in ((lambda: optim.cosine(0.1, 0), "total"), (lambda: optim.step(0.1, 0), "step_size"),
                          (lambda: optim.one_cycle(-1, 5), "max_lr"), (lambda: optim.one_cycle(1, 5, pct_start=1.5), "pct_start"),
                          (lambda: optim.one_cycle(1, 5, div_factor=0), "div_factor"),
                          (lambda: optim.constant(float("nan")), "lr")):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("options, message", [
    (dict(peak=0.1), "peak is now max_lr"),
    (dict(max_lr=0.1, rise=0.3, divide_first=10.0, divide_last=50.0),
     "rise is now pct_start, divide_first is now div_factor, divide_last is now final_div_factor")])
def test_former_names_of_one_cycle(options, message):
    with pytest.raises(TypeError) as caught:
        optim.one_cycle(total=5, **options)
    assert str(caught.value) == f"{message}: the arguments have PyTorch's names"
