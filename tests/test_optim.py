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
    assert optim.step(0.1, 1, 1e300)(5) == optim.multistep(0.1, [1] * 5, 1e300)(5) == float("inf")


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


# ---- groups ----

def two_groups(model, **options):
    """Weights and biases, which alternate in memory."""
    weights = [parameter for name, parameter in model.named_parameters() if "weight" in name]
    return [dict(params=weights), dict(params=[p for p in model.parameters() if p not in weights], **options)]


@pytest.mark.torch
def test_groups_follow_torch():
    """Each has its own options, rates that a schedule changes alike, and gradients that are left out."""
    import torch
    model, rng = small_model(np.float64), np.random.default_rng(1)
    twins = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in model.state_dict().items()}
    options = dict(lr=0.25, momentum=0.5, nesterov=True, weight_decay=0.125)
    optimizer = SGD(two_groups(model, **options), lr=0.1, weight_decay=0.01)
    names = {parameter: name for name, parameter in model.named_parameters()}
    theirs = [group | {"params": [twins[names[p]] for p in group["params"]]} for group in two_groups(model, **options)]
    twin = torch.optim.SGD(theirs, lr=0.1, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(twin, lambda k: 1 / (k + 1))
    for k in range(5):
        for position, (name, parameter) in enumerate(model.named_parameters()):
            grad = rng.standard_normal(parameter.shape) if (position + k) % 3 else None
            parameter.grad, twins[name].grad = grad, None if grad is None else torch.tensor(grad)
        optimizer.lr = 0.1 / (k + 1)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([g["lr"] for g in twin.param_groups], rel=1e-15)
        optimizer.step()
        twin.step()
        schedule.step()
    for name, parameter in model.named_parameters():
        # Five steps of four roundings each, on numbers below 8.
        np.testing.assert_allclose(parameter.data, twins[name].detach().numpy(), rtol=0, atol=20 * 8 * np.finfo(float).eps)
    assert [set(group) - {"params"} for group in optimizer.param_groups] == [
        set(group) - {"params", "foreach", "differentiable", "fused"} for group in twin.param_groups]


def test_an_option_that_is_set_counts_at_the_next_step():
    """Those of a group, or of all by the optimizer's attribute; also a momentum where there was none."""
    model = small_model()
    optimizer = SGD(two_groups(model), lr=0.5)

    def step():
        before = model.state_dict()
        for parameter in model.parameters():
            parameter.grad = np.ones(parameter.shape)
        optimizer.step()
        return [np.unique(np.round(before[name] - value, 5)).tolist() for name, value in model.state_dict().items()][2:4]
    assert step() == [[0.5], [0.5]]                 # linear1.weight, linear1.bias
    optimizer.param_groups[1]["lr"] = 0.25
    assert step() == [[0.5], [0.25]]
    optimizer.param_groups[0]["momentum"] = 0.5
    assert step() == [[0.5], [0.25]] and step() == [[0.75], [0.25]]
    momenta = [optimizer.momentum_buffer(parameter) for parameter in (model.linear1.weight, model.linear1.bias)]
    assert momenta[0].shape == (5, 12) and momenta[1] is None
    optimizer.maximize = True
    assert step() == [[0.5 * -0.25], [-0.25]] and optimizer.param_groups[1]["maximize"]
    optimizer.param_groups[1]["maximize"] = False
    assert step()[1] == [0.25]
    for name, value, error in (("momentum", -1, ValueError), ("weight_decay", "x", TypeError), ("lr", -1, ValueError)):
        optimizer.param_groups[0][name], kept = value, optimizer.param_groups[0][name]
        before = model.state_dict()
        with pytest.raises(error, match=f"^{name}: "):
            step()
        assert all((before[key] == own).all() for key, own in model.state_dict().items())
        optimizer.param_groups[0][name] = kept
    with pytest.raises(ValueError, match=r"^nesterov: expected a momentum > 0"):
        optimizer.nesterov = True
    assert optimizer.nesterov is False and len(step()) == 2


def test_the_rate_is_the_first_groups_and_others_keep_their_share():
    model = small_model()
    optimizer = SGD(two_groups(model, lr=0.3), lr=0.1)
    assert optimizer.lr == 0.1 and [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.3]
    for value in (0.7, 0.0, 1 / 3):
        optimizer.lr = value
        assert [group["lr"] for group in optimizer.param_groups] == [value, 0.3 * value / 0.1]
    optimizer.lr = optimizer.lr
    assert [group["lr"] for group in optimizer.param_groups] == [1 / 3, 0.3 * (1 / 3) / 0.1]
    with pytest.raises(ValueError, match=r"^lr: expected a finite number >= 0, got -1$"):
        optimizer.lr = -1
    with pytest.raises(ValueError, match=r"^lr: expected a finite number >= 0, got inf$"):
        optimizer.lr = 1.7e308
    assert optimizer.lr == 1 / 3
    SGD(two_groups(model), lr=0).lr = 0.5
    with pytest.raises(ValueError, match=r"^lr: expected a first group with an initial_lr > 0, of which the others"):
        SGD(two_groups(model, lr=0.3), lr=0).lr = 0.5
    groups = two_groups(model, lr=0.3)
    assert repr(SGD(groups, lr=0.1)).startswith("SGD(6 parameters in 2 groups, lr=[0.1, 0.3], momentum=0.0, ")
    assert list(groups[1]) == ["params", "lr"]          # what was given is not written to


def test_a_state_dict_of_groups_carries_a_run_over():
    def run(model, optimizer, seed):
        rng = np.random.default_rng(seed)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = rng.standard_normal(parameter.shape)
            optimizer.lr *= 0.5
            optimizer.step()
    model, copy = small_model(), small_model(seed=9)
    optimizer, follower = SGD(two_groups(model, lr=0.3, momentum=0.9), lr=0.1), SGD(two_groups(copy), lr=1)
    run(model, optimizer, 0)
    state = optimizer.state_dict()
    assert state["param_groups"][1]["params"] == [3, 4, 5] and state["momentum_buffers"][:3] == [None] * 3
    copy.load_state_dict(model.state_dict())
    follower.load_state_dict(state)
    run(model, optimizer, 1)
    run(copy, follower, 1)
    assert (model.vector.data == copy.vector.data).all() and repr(follower) == repr(optimizer)
    with pytest.raises(ValueError, match=r"^state: expected what SGD.state_dict\(\) gives of 1 groups, got 2"):
        SGD(model.parameters(), lr=0.1).load_state_dict(state)


def test_errors_of_groups():
    model, other = small_model(), small_model()
    weight, bias = model.linear1.weight, model.linear1.bias
    for params, error, message in (
            ([dict(params=[weight]), dict(params=[weight])], ValueError, "params: expected each Parameter once, got one twice"),
            ([dict(params=[weight]), dict(params=[other.linear1.bias])], ValueError, "params: expected the Parameters of one"),
            ([dict(params=[weight], momentun=0.9)], ValueError,
             "params: expected groups with the options lr, momentum, .*, got 'momentun'; did you mean momentum?"),
            ([dict(lr=0.1)], ValueError, "params: expected groups with an entry params, got one with .'lr'."),
            ([dict(params=[weight]), bias], TypeError, "params: expected groups alone, or Parameters alone, got Parameter"),
            ([weight, dict(params=[bias])], TypeError, "params: expected nbcnn Parameters, got dict"),
            ([dict(params=3)], TypeError, "params: expected a list of nbcnn Parameters, got 3"),
            ([dict(params=[])], ValueError, "params: expected at least one Parameter, got none"),
            ([dict(params=[weight], lr=-1)], ValueError, "lr: expected a finite number >= 0, got -1"),
            ([dict(params=[weight], initial_lr="x")], TypeError, "initial_lr: expected a finite number >= 0, got 'x'"),
            ([dict(params=[weight], nesterov=True)], ValueError, "nesterov: expected a momentum > 0"),
            (dict(params=[weight]), TypeError, "params: expected a list of nbcnn Parameters, got")):
        with pytest.raises(error, match=f"^{message}"):
            SGD(params, lr=0.1)
    optimizer = SGD([dict(params=weight), dict(params=[])], lr=0.1)         # one alone, and none, as PyTorch
    assert optimizer.params == [weight] and len(optimizer.param_groups) == 2


def test_frozen_parameters_stay_as_they_are():
    model = small_model()
    model.linear1.bias.trainable = False
    images, labels = np.random.default_rng(0).standard_normal((4, 1, 4, 4)).astype(np.float32), np.array([0, 1, 2, 0])
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    for optimizer in (SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1), nbcnn.AdamW(model.parameters())):
        before = model.state_dict()
        for _ in range(2):
            step.train_step(images, labels, optimizer)
        changed = {name for name, value in model.state_dict().items() if (before[name] != value).any()}
        assert changed == set(before) - {"linear1.bias"} and optimizer.slot(optimizer.slots[0], model.linear1.bias) is None
        assert optimizer.update_of_all() is None


def test_an_update_of_all_is_one_of_all_or_none():
    """What a GPU's fused step takes: the same objects until an option changes."""
    model = small_model()
    assert SGD(two_groups(model), lr=0.1).update_of_all() is None and SGD(model.parameters()[1:], lr=0.1).update_of_all() is None
    buffer, options = SGD(model.parameters(), lr=0.1).update_of_all()
    assert buffer.size == 0 and options == (0, 1, 0, False, False, False, False)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
    assert optimizer.update_of_all() is None
    optimizer.updated()
    first, again = optimizer.update_of_all(), optimizer.update_of_all()
    assert first[0] is again[0] and first[1] is again[1] and first[0].shape == model.vector.grad.shape
    optimizer.momentum = 0.25
    assert optimizer.update_of_all()[1][0] == 0.25
    model.conv1.bias.trainable = False
    assert optimizer.update_of_all() is None


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
            (optim.multistep(0.3, [2, total // 2, 5, 5], 0.7), lambda opt: kinds.MultiStepLR(opt, [2, total // 2, 5, 5], 0.7)),
            (optim.piecewise(0.3, [(0, 0.25), (0.5, 1)], 2 * total), lambda opt: kinds.LinearLR(opt, 0.25, 1, total)),
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
                          (lambda: optim.multistep(0.1, [-1]), "milestones"), (lambda: optim.piecewise(0.1, [(0, 1)], 0), "total"),
                          (lambda: optim.one_cycle(-1, 5), "max_lr"), (lambda: optim.one_cycle(1, 5, pct_start=1.5), "pct_start"),
                          (lambda: optim.one_cycle(1, 5, div_factor=0), "div_factor"),
                          (lambda: optim.constant(float("nan")), "lr")):
        with pytest.raises(ValueError, match=message):
            call()


def test_piecewise_as_airbench_has_it():
    total = 475
    learning_rate = optim.piecewise(2.0, [(0, 0.2), (0.23, 1), (1, 0.07)], total)
    expected = np.interp(np.arange(total + 5), [0, 0.23 * total, total], [0.4, 2, 0.14])
    np.testing.assert_allclose([learning_rate(k) for k in range(total + 5)], expected, rtol=1e-14)


def test_piecewise_at_its_ends_and_at_jumps():
    learning_rate = optim.piecewise(1.0, [(0.25, 0.5), (0.5, 1), (0.5, 0.25), (0.75, 0.25)], 8)
    assert [learning_rate(k) for k in range(9)] == [0.5, 0.5, 0.5, 0.75, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert optim.piecewise(1.0, [(0.5, 0.75)], 3)(0) == 0.75


@pytest.mark.parametrize("points, error, message", [
    ([], ValueError, "points: expected one or more pairs"),
    ([(0, 1), (0.5, 2), (0.25, 1)], ValueError, "points: expected one or more .* in the order of their parts"),
    ([(0, 1, 2)], ValueError, r"points: expected pairs of a part in \[0, 1\] and a factor >= 0, got \(0, 1, 2\)"),
    ([(0, -1)], ValueError, "points: expected a finite number >= 0, got -1"),
    ([(2, 1)], ValueError, r"points: expected a number in \[0, 1\], got 2"),
    (3, TypeError, "points: expected a list of pairs"), ([3], TypeError, "points: expected pairs of a part")])
def test_errors_of_piecewise(points, error, message):
    with pytest.raises(error, match=f"^{message}"):
        optim.piecewise(0.1, points, 10)


PLATEAUS = [dict(), dict(patience=1), dict(patience=0, factor=0.5, cooldown=2), dict(patience=1, mode="max"),
            dict(patience=1, threshold=0.25), dict(patience=1, threshold=0.25, mode="max"),
            dict(patience=1, threshold=0.25, threshold_mode="abs"),
            dict(patience=1, threshold=0.25, threshold_mode="abs", mode="max"),
            dict(patience=0, min_lr=0.01), dict(patience=0, min_lr=[0.01, 0.2]), dict(patience=0, eps=0.02)]


@pytest.mark.torch
@pytest.mark.parametrize("options", PLATEAUS, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
def test_plateaus_follow_torch(options, seed):
    """Metrics that fall, rise, stay, jump, are negative or NaN; a state taken over in the middle."""
    import torch
    rng, model = np.random.default_rng(seed), small_model()
    optimizer = SGD(two_groups(model, lr=0.4), lr=0.1)
    twins = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    twin = torch.optim.SGD([dict(params=twins[:1]), dict(params=twins[1:], lr=0.4)], lr=0.1)
    plateau, theirs = optim.ReduceLROnPlateau(optimizer, **options), torch.optim.lr_scheduler.ReduceLROnPlateau(twin, **options)
    value = rng.uniform(-2, 2)
    for k in range(30):
        value += rng.choice([0, 0, 0.3, -0.3, 1e-5, -1e-5])
        metric = float("nan") if rng.random() < 0.1 else float("inf") if rng.random() < 0.05 else value
        plateau.step(metric)
        theirs.step(metric)
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in twin.param_groups], k
        assert plateau.num_bad_epochs == theirs.num_bad_epochs and plateau.best == theirs.best
        if k == 15:
            state, plateau = plateau.state_dict(), optim.ReduceLROnPlateau(optimizer, **options)
            plateau.load_state_dict(state)


def test_plateaus_count_no_other_things():
    optimizer = SGD(two_groups(small_model()), lr=0.1)
    for options, error, message in (
            (dict(mode="least"), ValueError, "mode: expected one of 'min', 'max', got 'least'"),
            (dict(factor=1.0), ValueError, "factor"), (dict(eps="x"), TypeError, "eps"), (dict(min_lr=-1), ValueError, "min_lr"),
            (dict(threshold_mode=3), ValueError, "threshold_mode"), (dict(patience=-1), ValueError, "patience"),
            (dict(cooldown=1.5), TypeError, "cooldown"), (dict(threshold=-1), ValueError, "threshold"),
            (dict(min_lr=[0.1]), ValueError, "min_lr: expected a number, or one for each of 2")):
        with pytest.raises(error, match=f"^{message}"):
            optim.ReduceLROnPlateau(optimizer, **options)
    with pytest.raises(TypeError, match=r"^optimizer: expected an optimizer, as nbcnn.SGD\(...\), got int"):
        optim.ReduceLROnPlateau(3)
    plateau = optim.ReduceLROnPlateau(optimizer)
    for metrics in ("x", None, np.zeros(2)):
        with pytest.raises(TypeError, match=r"^metrics: expected a number, got .*$"):
            plateau.step(metrics)
    state = plateau.state_dict()
    for wrong in ({}, 3, state | {"best": "x"}, state | {"num_bad_epochs": -1}, state | {"more": 1}):
        with pytest.raises((TypeError, ValueError), match=r"^state: expected .*$"):
            plateau.load_state_dict(wrong)
    assert plateau.state_dict() == state


@pytest.mark.parametrize("options, message", [
    (dict(peak=0.1), "peak is now max_lr"),
    (dict(max_lr=0.1, rise=0.3, divide_first=10.0, divide_last=50.0),
     "rise is now pct_start, divide_first is now div_factor, divide_last is now final_div_factor")])
def test_former_names_of_one_cycle(options, message):
    with pytest.raises(TypeError) as caught:
        optim.one_cycle(total=5, **options)
    assert str(caught.value) == f"{message}: the arguments have PyTorch's names"
