"""Adam and AdamW as optimizers: parity with PyTorch, groups, states. Their kernel has tests of its own."""
import numpy as np
import pytest
from test_optim import small_model

import nbcnn
from nbcnn import Adam, AdamW
from nbcnn.kernels import cpu

KINDS = {"Adam": Adam, "AdamW": AdamW}


def groups(model, make=lambda name, parameter: parameter):
    """Three groups, each with options of its own; the parameters of two alternate in memory."""
    named = {name: make(name, parameter) for name, parameter in model.named_parameters()}
    return [dict(params=[named["linear1.weight"], named["conv1.weight"]], weight_decay=0.25),
            dict(params=[named["conv1.bias"]], lr=0.5, betas=(0.5, 0.75), eps=1e-3),
            dict(params=[named["linear2.weight"], named["linear1.bias"], named["linear2.bias"]], maximize=True)]


def random_steps(model, optimizer, count, seed):
    rng = np.random.default_rng(seed)
    for k in range(count):
        for position, parameter in enumerate(model.parameters()):
            parameter.grad = rng.standard_normal(parameter.shape) if (position + k) % 3 else None
        optimizer.step()


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, dict(weight_decay=0.1), dict(maximize=True, betas=(0.5, 0.75), eps=1e-4)], ids=str)
@pytest.mark.parametrize("grouped", [False, True])
def test_parity_with_torch(kind, options, grouped):
    """20 steps in which each parameter is left out every third time, and in which the rates change."""
    import torch
    model, rng, twins = small_model(np.float64), np.random.default_rng(1), {}

    def twin_of(name, parameter):
        twins[name] = torch.nn.Parameter(torch.tensor(parameter.numpy()))
        return twins[name]
    theirs = groups(model, twin_of) if grouped else [twin_of(name, p) for name, p in model.named_parameters()]
    optimizer = KINDS[kind](groups(model) if grouped else model.parameters(), lr=0.01, **options)
    twin = getattr(torch.optim, kind)(theirs, lr=0.01, **options)
    for k in range(20):
        for position, (name, parameter) in enumerate(model.named_parameters()):
            grad = rng.standard_normal(parameter.shape) if (position + k) % 3 else None
            parameter.grad, twins[name].grad = grad, None if grad is None else torch.tensor(grad)
        optimizer.lr = 0.01 / (k + 1)
        for group, first in zip(twin.param_groups, (0.01, 0.5, 0.01), strict=False):
            group["lr"] = first / (k + 1)
        optimizer.step()
        twin.step()
    for name, parameter in model.named_parameters():
        state = twin.state[twins[name]]
        # 20 steps of about ten roundings each, on numbers below 8.
        close = dict(rtol=0, atol=20 * 10 * 8 * np.finfo(float).eps)
        np.testing.assert_allclose(parameter.data, twins[name].detach().numpy(), **close)
        for slot in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_allclose(optimizer.slot(slot, parameter), state[slot].numpy(), **close)
    assert optimizer.state_dict()["steps"] == [int(twin.state[p]["step"]) for group in theirs for p in (
        group["params"] if grouped else [group])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_is_one_call_of_the_kernel(kind, monkeypatch):
    calls, update = [], cpu.adam_update
    monkeypatch.setattr(cpu, "adam_update", lambda data, *rest: (calls.append(len(data)), update(data, *rest)))
    model = small_model()
    optimizer = KINDS[kind](model.parameters())
    optimizer.step()
    assert calls == [] and optimizer.state_dict()["steps"] == [0] * 6
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape)
    for _ in range(3):
        optimizer.step()
    assert calls == [model.parameters()[-1].stop] * 3
    model.linear1.weight.grad = None
    optimizer.step()
    assert len(calls) == 5
    model.linear1.weight.grad = np.ones((5, 12))
    optimizer.step()        # now it is a step behind the others
    assert len(calls) == 8 and optimizer.state_dict()["steps"] == [5, 5, 4, 5, 5, 5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_state_dict_carries_a_run_over(kind, grouped):
    model = small_model()
    make = groups if grouped else nbcnn.Sequential.parameters
    optimizer = KINDS[kind](make(model), lr=0.1, betas=(0.5, 0.75))
    random_steps(model, optimizer, 4, 0)
    state, copy = optimizer.state_dict(), small_model(seed=9)
    copy.load_state_dict(model.state_dict())
    follower = KINDS[kind](make(copy))
    group = follower.param_groups[0]
    follower.load_state_dict(state)
    for one, other in ((model, optimizer), (copy, follower)):
        random_steps(one, other, 4, 1)
    assert (model.vector.data == copy.vector.data).all() and repr(follower) == repr(optimizer)
    assert group is follower.param_groups[0] and group["betas"] == (0.5, 0.75)
    assert list(state) == (["param_groups"] if grouped else ["lr", "betas", "eps", "weight_decay", "maximize"]) + [
        "exp_avgs", "exp_avg_sqs", "steps"]


def test_before_the_first_step_there_is_nothing():
    optimizer = Adam(small_model().parameters())
    state = optimizer.state_dict()
    assert state["exp_avgs"] == state["exp_avg_sqs"] == [None] * 6 and state["steps"] == [0] * 6
    assert optimizer.slot("exp_avg", optimizer.params[0]) is None
    assert repr(optimizer) == "Adam(6 parameters, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, maximize=False)"
    assert AdamW(optimizer.params).weight_decay == 0.01


def test_a_state_dict_that_does_not_fit_changes_nothing():
    model = small_model()
    optimizer = Adam(groups(model))
    random_steps(model, optimizer, 2, 0)
    state = optimizer.state_dict()
    wrong_group = [*state["param_groups"][:2], state["param_groups"][2] | {"betas": (2, 0)}]
    for change, error, message in (
            (dict(steps=[1] * 5), ValueError, "state: expected exp_avg of the parameters that were updated"),
            (dict(steps=[0] * 6), ValueError, "state: expected exp_avg of the parameters that were updated"),
            (dict(steps=[-1] * 6), ValueError, "state: expected an int >= 0, got -1"),
            (dict(steps=None), ValueError, "state: expected what Adam.state_dict.. gives, got missing or other entries"),
            (dict(steps=3), TypeError, "state: expected a list of steps, got 3"),
            (dict(exp_avgs=[None] * 6), ValueError, "state: expected exp_avg of the parameters that were updated"),
            (dict(exp_avg_sqs=[np.zeros(3)] * 6), ValueError, "state: expected exp_avg_sq of shapes"),
            (dict(exp_avgs=["x"] * 6), TypeError, "state: expected an array of numbers, got str"),
            (dict(param_groups=state["param_groups"][:2]), ValueError, "state: .* gives of 3 groups, got 2"),
            (dict(param_groups=[3, 4, 5]), TypeError, "state: expected what Adam.state_dict.. gives, got int"),
            (dict(param_groups=state["param_groups"][::-1]), ValueError, r"state: expected a group of parameters \[0, 1\], got"),
            (dict(param_groups=wrong_group), ValueError, r"betas: expected two numbers in \[0, 1\), got 2"),
            (dict(momentum_buffers=[]), ValueError, "got missing or other entries .'momentum_buffers'.")):
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state | change)
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"] and after["steps"] == state["steps"]
    assert all(np.array_equal(a, b) for name in ("exp_avgs", "exp_avg_sqs") for a, b in zip(after[name], state[name], strict=True))


@pytest.mark.parametrize("options, error, message", [
    (dict(lr=-0.1), ValueError, "lr: expected a finite number >= 0, got -0.1"),
    (dict(betas=(0.9, 1)), ValueError, r"betas: expected two numbers in \[0, 1\), got 1"),
    (dict(betas=0.9), TypeError, r"betas: expected two numbers in \[0, 1\), got 0.9"),
    (dict(eps=-1), ValueError, "eps: expected a finite number of float32 >= 0, got -1"),
    (dict(weight_decay=1e39), ValueError, "weight_decay: expected a finite number of float32 >= 0"),
    (dict(amsgrad=True), ValueError, "amsgrad: expected False, as AdamW is here without it, got True"),
    (dict(maximize=np.zeros(2)), TypeError, "maximize: expected True or False"),
])
def test_errors_of_options(options, error, message):
    model = small_model()
    with pytest.raises(error, match=f"^{message}"):
        AdamW(model.parameters(), **options)
    if "lr" not in options and "amsgrad" not in options:
        optimizer = AdamW(model.parameters())
        with pytest.raises(error, match=f"^{message}"):
            setattr(optimizer, *next(iter(options.items())))
        optimizer.param_groups[0].update(options)
        with pytest.raises(error, match=f"^{message}"):
            model.linear1.bias.grad = np.ones(5)
            optimizer.step()


def test_it_learns():
    """Two classes of dark and bright images, in float32."""
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    images = (rng.standard_normal((32, 1, 4, 4)) + labels[:, None, None, None]).astype(np.float32)
    for kind in KINDS.values():
        model = small_model()
        step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), kind(model.parameters(), lr=0.02)
        losses = [step.train_step(images, labels, optimizer) for _ in range(40)]
        assert losses[-1] < losses[0] / 4
