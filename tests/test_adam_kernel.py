"""Adam's kernel: frozen values, oracle, contract, errors, and parity with PyTorch."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels.adam import adam_step
from nbcnn.kernels.cpu.adam import adam

import oracles
from arrays import in_both_dtypes
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
OPTIONS = [dict(weight_decay=decay, decoupled_weight_decay=decoupled, maximize=maximize, betas=betas)
           for decay, decoupled, maximize, betas in itertools.product(
               (0, 0.125), (False, True), (False, True), ((0.9, 0.999), (0.0, 0.5)))]
seeds = st.integers(0, 2**32 - 1)


def train(param, grads, **options):
    """Parameter and averages after a step for each gradient."""
    param, exp_avg, exp_avg_sq = param.copy(), np.zeros_like(param), np.zeros_like(param)
    for step, grad in enumerate(grads, 1):
        assert adam_step(param, grad, exp_avg, exp_avg_sq, step, **options) is None
    return param, exp_avg, exp_avg_sq


def close(got, expected, steps):
    """Each step rounds about ten numbers, all below 8. An eps of 0.5 keeps the quotients' errors as small as the others."""
    assert np.abs(got - expected).max() <= 8 * 16 * steps * np.finfo(got.dtype).eps


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: beta1 = 0.5, beta2 = 0.75, g = 4. m = 2, v = 4; m / (1 - 0.5) = 4, v / (1 - 0.75) = 16: a step of lr * 4 / (4 + 4).
    param, m, v = np.array([2], dtype), np.zeros(1, dtype), np.zeros(1, dtype)
    options = dict(lr=0.5, betas=(0.5, 0.75), eps=4)
    adam_step(param, np.array([4], dtype), m, v, 1, **options)
    assert param == 1.75 and m == 2 and v == 4
    # Second step, g = -2: m = 1 - 1 = 0, v = 3 + 1 = 4: nothing moves. Third, g = 8: m = 4, v = 3 + 16.
    adam_step(param, np.array([-2], dtype), m, v, 2, **options)
    assert param == 1.75 and m == 0 and v == 4
    adam_step(param, np.array([8], dtype), m, v, 3, **options)
    assert m == 4 and v == 19
    expected = 1.75 - 0.5 / (1 - 0.125) * 4 / (np.sqrt(19 / (1 - 0.75 ** 3)) + 4)
    assert abs(param[0] - expected) <= 4 * np.finfo(dtype).eps
    # Decay in the gradient: g = 3 + 0.5*2 = 4, the first step again. By itself: 2 - 0.5*0.5*2 = 1.5, then 0.25 less.
    for decoupled, g, expected in ((False, 3, 1.75), (True, 4, 1.25)):
        param, m, v = np.array([2], dtype), np.zeros(1, dtype), np.zeros(1, dtype)
        adam_step(param, np.array([g], dtype), m, v, 1, **options, weight_decay=0.5, decoupled_weight_decay=decoupled)
        assert param == expected and m == 2 and v == 4
    param = np.array([2], dtype)
    adam_step(param, np.array([4], dtype), np.zeros(1, dtype), np.zeros(1, dtype), 1, **options, maximize=True)
    assert param == 2.25


@pytest.mark.parametrize("dtype", DTYPES)
@given(options=st.sampled_from(OPTIONS), size=st.integers(0, 100), steps=st.integers(1, 5), seed=seeds)
def test_follows_the_oracle(dtype, options, size, steps, seed):
    param, *grads = np.random.default_rng(seed).uniform(-1, 1, (steps + 1, size)).astype(dtype)
    found = train(param, grads, lr=0.125, eps=0.5, **options)
    for got, expected in zip(found, oracles.adam(param, grads, lr=0.125, eps=0.5, **options), strict=True):
        assert got.dtype == dtype
        if size:
            close(got, expected, steps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_nothing_else(dtype):
    memory = np.full((4, 40), np.nan, dtype)
    param, grad, m, v = memory[:, 4:35]
    grad[:], param[:], m[:], v[:] = 1, 2, 0, 0
    adam_step(param, grad, m, v, 1)
    assert np.isfinite(memory[:, 4:35]).all() and np.isnan(memory[:, :4]).all() and np.isnan(memory[:, 35:]).all()
    assert (grad == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_gradients(dtype):
    param, grad = np.random.default_rng(0).standard_normal((2, 31)).astype(dtype)
    expected, wide = train(param, [grad]), np.zeros(62, dtype)
    wide[::-2] = grad
    grad.flags.writeable = False
    for same in (wide[::-2], grad):
        assert all((a == b).all() for a, b in zip(train(param, [same]), expected, strict=True))


def test_any_number_of_threads_gives_equal_bits():
    param, grad, m, v = np.random.default_rng(0).standard_normal((4, 1001), np.float32)
    results = []
    for _ in one_and_all_threads():
        arrays = param.copy(), grad, m.copy(), v ** 2
        adam_step(*arrays, 7, weight_decay=0.1)
        results.append(b"".join(a.tobytes() for a in arrays))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_decays_ends_at_zero_not_in_denormal_numbers(dtype):
    tiny = np.finfo(dtype).tiny         # the smallest normal number
    param, m, v = (np.array([4 * tiny, 1, np.nan], dtype) for _ in range(3))
    m[0], v[1] = 1.5 * tiny, tiny
    adam_step(param, np.zeros(3, dtype), m, v, 9, lr=0, betas=(0.5, 0.5))
    assert m.tolist()[:2] == [0, 0.5] and v.tolist()[:2] == [2 * tiny, 0] and param.tolist()[:2] == [4 * tiny, 1]
    assert np.isnan([param[2], m[2], v[2]]).all()
    param, *zeros = np.array([2 * tiny, -2 * tiny], dtype), *np.zeros((3, 2), dtype)
    adam_step(param, *zeros, 1, lr=1, weight_decay=0.75, decoupled_weight_decay=True)
    assert param.tolist() == [0, 0]


def test_without_eps_what_has_no_gradient_stays():
    param, m, v = np.array([2.0, 2.0]), np.zeros(2), np.zeros(2)
    adam_step(param, np.array([0.0, 3.0]), m, v, 1, lr=0.5, eps=0)
    assert param.tolist() == [2, 1.5]


def ones(dtype=np.float32):
    return np.ones(4, dtype)


@pytest.mark.parametrize("arguments, error, message", [
    ({"param": [1.0] * 4}, TypeError, "param: expected a float32 or float64 array, got list"),
    ({"param": np.ones(8, np.float32)[::2]}, ValueError, r"param: expected a writable C-contiguous array.*strides \(8,\)"),
    ({"grad": ones(float)}, TypeError, "grad: expected float32, the dtype of param, got float64"),
    ({"exp_avg": ones(float)}, TypeError, "exp_avg: expected float32, the dtype of param, got float64"),
    ({"exp_avg": None}, TypeError, "exp_avg: expected a float32 or float64 array, got NoneType"),
    ({"exp_avg_sq": np.ones(5, np.float32)}, ValueError, r"exp_avg_sq: expected shape \(4,\), that of param, got shape \(5,\)"),
    ({"step": 0}, ValueError, "step: expected an int >= 1, got 0"),
    ({"step": 1.5}, TypeError, "step: expected an int >= 1, got 1.5"),
    ({"lr": -0.1}, ValueError, "lr: expected a number >= 0, got -0.1"),
    ({"eps": np.nan}, ValueError, "eps: expected a number >= 0, got nan"),
    ({"weight_decay": "x"}, TypeError, "weight_decay: expected a number >= 0, got 'x'"),
    ({"betas": 0.9}, TypeError, r"betas: expected two numbers in \[0, 1\), got 0.9"),
    ({"betas": (0.9,)}, ValueError, r"betas: expected two numbers in \[0, 1\), got \(0.9,\)"),
    ({"betas": (0.9, 1)}, ValueError, r"betas: expected two numbers in \[0, 1\), got 1"),
    ({"maximize": np.zeros(2)}, TypeError, "maximize: expected True or False"),
])
def test_errors(arguments, error, message):
    arguments = {"param": ones(), "grad": ones(), "exp_avg": ones(), "exp_avg_sq": ones(), "step": 1} | arguments
    before = {name: np.array(value) for name, value in arguments.items()}
    with pytest.raises(error, match=f"^{message}"):
        adam_step(**arguments)
    assert all(np.array_equal(before[name], value) for name, value in arguments.items() if isinstance(value, np.ndarray))


def test_shared_memory_is_refused():
    memory = np.ones(16, np.float32)
    parts = dict(param=memory[:4], grad=memory[4:8], exp_avg=memory[8:12], exp_avg_sq=memory[12:])
    adam_step(**parts, step=1)
    for one, other in itertools.combinations(parts, 2):
        with pytest.raises(ValueError, match=f"^{other}: expected memory of its own, got some of {one}'s"):
            adam_step(**parts | {other: parts[one]}, step=1)


def test_float32_kernel_holds_no_double():
    adam_step(ones(), ones(), ones(), ones(), 1, lr=0.1, weight_decay=0.1)
    assert not double_operations(adam)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_with_torch(dtype):
    """20 steps over the grid of options, all on numbers of about 1."""
    import torch
    for seed, options in enumerate(OPTIONS):
        param, *grads = np.random.default_rng(seed).standard_normal((21, 37)).astype(dtype)
        got, exp_avg, exp_avg_sq = train(param, grads, lr=0.01, **options)
        twin = torch.from_numpy(param.copy()).requires_grad_()
        optimizer = torch.optim.Adam([twin], lr=0.01, **options)
        for grad in grads:
            twin.grad = torch.from_numpy(grad.copy())
            optimizer.step()
        state = optimizer.state[twin]
        for mine, theirs in ((got, twin.detach()), (exp_avg, state["exp_avg"]), (exp_avg_sq, state["exp_avg_sq"])):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=20 * 4 * np.finfo(dtype).eps)    # numbers below 4
