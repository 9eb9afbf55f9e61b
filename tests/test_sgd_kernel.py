"""SGD's kernel: frozen values, oracle, contract, errors, and parity with PyTorch."""
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels.cpu.sgd import sgd
from nbcnn.kernels.sgd import sgd_step

import oracles
from arrays import in_both_dtypes
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
seeds = st.integers(0, 2**32 - 1)


@st.composite
def options(draw, rates):
    """A legal combination of options, each rate one of `rates` or zero."""
    rate = st.sampled_from((0.0, *rates))
    drawn = {name: draw(rate) for name in ("lr", "momentum", "dampening", "weight_decay")}
    nesterov = drawn["momentum"] > 0 and drawn["dampening"] == 0 and draw(st.booleans())
    return {**drawn, "nesterov": nesterov, "maximize": draw(st.booleans())}


def train(param, grads, options):
    """Parameter and momentum after a step for each gradient. The buffer begins as NaN: the first step may not read it."""
    param, buffer = param.copy(), np.full_like(param, np.nan)
    for step, grad in enumerate(grads):
        assert sgd_step(param, grad, buffer if options["momentum"] else None, **options, first=step == 0) is None
    return param, buffer


def dyadic(seed, *shape, dtype):
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand, first step: g = 4 + 0.5*2 = 5, buffer = 5, g = 5 + 0.5*5 = 7.5, param = 2 - 0.25*7.5.
    param, buffer = np.array([2], dtype), np.array([np.nan], dtype)
    options = {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.5, "nesterov": True}
    sgd_step(param, np.array([4], dtype), buffer, **options, first=True)
    assert param == 0.125 and buffer == 5
    # Second step: g = -1 + 0.5*0.125 = -0.9375, buffer = 0.5*5 - 0.9375 = 1.5625, g = -0.9375 + 0.5*1.5625 = -0.15625.
    sgd_step(param, np.array([-1], dtype), buffer, **options)
    assert param == 0.1640625 and buffer == 1.5625
    # Without momentum: 2 - 0.25*3. Up instead of down: 2 + 0.25*3. Dampened: buffer = 0.5*8 + (1 - 0.75)*4 = 5.
    for options, expected in (({}, 1.25), ({"maximize": True}, 2.75)):
        param = np.array([2], dtype)
        sgd_step(param, np.array([3], dtype), lr=0.25, **options)
        assert param == expected
    param, buffer = np.array([2], dtype), np.array([8], dtype)
    sgd_step(param, np.array([4], dtype), buffer, lr=0.25, momentum=0.5, dampening=0.75)
    assert param == 0.75 and buffer == 5


@pytest.mark.parametrize("dtype", DTYPES)
@given(options=options((0.5, 0.25)), size=st.integers(0, 100), steps=st.integers(1, 3), seed=seeds)
def test_equals_oracle(dtype, options, size, steps, seed):
    """Powers of two and small integers: nothing is rounded in three steps of at most 6 binary places each."""
    param, *grads = dyadic(seed, steps + 1, size, dtype=dtype)
    got, buffer = train(param, grads, options)
    expected, expected_buffer = oracles.sgd(param, grads, **options)
    assert got.dtype == dtype and (got == expected).all()
    if options["momentum"]:
        assert (buffer == expected_buffer).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_nothing_else(dtype):
    memory = np.full((3, 40), np.nan, dtype)
    param, grad, buffer = memory[:, 4:35]
    grad[:] = dyadic(0, 31, dtype=dtype)
    param[:] = dyadic(1, 31, dtype=dtype)
    sgd_step(param, grad, buffer, lr=0.5, momentum=0.5, weight_decay=0.5, first=True)
    assert np.isfinite(memory[:, 4:35]).all() and np.isnan(memory[:, :4]).all() and np.isnan(memory[:, 35:]).all()
    assert (grad == dyadic(0, 31, dtype=dtype)).all()
    buffer[:] = 7
    sgd_step(param, grad, buffer, lr=0.5, weight_decay=0.5)         # no momentum: the buffer is left alone
    assert (buffer == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_gradients(dtype):
    param, grad = dyadic(0, 2, 31, dtype=dtype)
    expected = param - grad / 2
    wide = np.zeros(62, dtype)
    wide[::-2] = grad
    grad.flags.writeable = False
    for same in (wide[::-2], grad):
        updated = param.copy()
        sgd_step(updated, same, lr=0.5)
        assert (updated == expected).all()


def test_any_number_of_threads_gives_equal_bits():
    param, grad, buffer = np.random.default_rng(0).standard_normal((3, 1001), np.float32)
    results = []
    for _ in one_and_all_threads():
        p, b = param.copy(), buffer.copy()
        sgd_step(p, grad, b, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        results.append((p.tobytes(), b.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_decays_ends_at_zero_not_in_denormal_numbers(dtype):
    tiny = np.finfo(dtype).tiny         # the smallest normal number
    param, buffer = np.array([4 * tiny, 4 * tiny, np.nan], dtype), np.array([2 * tiny, 8 * tiny, np.nan], dtype)
    sgd_step(param, np.zeros(3, dtype), buffer, lr=1.0, momentum=0.25)
    assert buffer[:2].tolist() == [0, 2 * tiny] and param[:2].tolist() == [4 * tiny, 2 * tiny]
    assert np.isnan(param[2]) and np.isnan(buffer[2])
    param = np.array([4 * tiny, -4 * tiny, 2 * tiny], dtype)
    sgd_step(param, np.array([3.5 * tiny, -3.5 * tiny, tiny], dtype), lr=1.0)
    assert param.tolist() == [0, 0, tiny]


def ones(dtype=np.float32):
    return np.ones(4, dtype)


def read_only():
    param = ones()
    param.flags.writeable = False
    return param


@pytest.mark.parametrize("arguments, error, message", [
    ({"param": [1.0] * 4}, TypeError, "param: expected a float32 or float64 array, got list"),
    ({"param": ones(int)}, TypeError, "param: .*got ndarray of dtype int64"),
    ({"param": np.ones((2, 2), np.float32)}, ValueError, r"param: expected shape \(P,\), got shape \(2, 2\)"),
    ({"param": np.ones(8, np.float32)[::2]}, ValueError, r"param: expected a writable C-contiguous array.*strides \(8,\)"),
    ({"param": read_only()}, ValueError, "param: expected a writable.*writeable=False"),
    ({"grad": ones(float)}, TypeError, "grad: expected float32, the dtype of param, got float64"),
    ({"grad": ones(int)}, TypeError, "grad: expected a float32 or float64 array"),
    ({"grad": np.ones(3, np.float32)}, ValueError, r"grad: expected shape \(4,\), that of param, got shape \(3,\)"),
    ({"momentum": 0.5}, ValueError, "momentum_buffer: expected an array for a momentum of 0.5, got None"),
    ({"momentum": 0.5, "momentum_buffer": ones(float)}, TypeError, "momentum_buffer: expected float32"),
    ({"momentum": 0.5, "momentum_buffer": np.ones(5, np.float32)}, ValueError, r"momentum_buffer: expected shape \(4,\)"),
    ({"momentum": 0.5, "momentum_buffer": read_only()}, ValueError, "momentum_buffer: expected a writable"),
    ({"lr": -0.1}, ValueError, "lr: expected a number >= 0, got -0.1"),
    ({"lr": np.nan}, ValueError, "lr: expected a number >= 0, got nan"),
    ({"lr": "0.1"}, TypeError, "lr: expected a number >= 0, got '0.1'"),
    ({"lr": None}, TypeError, "lr: expected a number >= 0, got None"),
    ({"momentum": -0.9}, ValueError, "momentum: expected a number >= 0, got -0.9"),
    ({"weight_decay": -1}, ValueError, "weight_decay: expected a number >= 0, got -1"),
    ({"dampening": True}, TypeError, "dampening: expected a number, got True"),
    ({"nesterov": True}, ValueError, "nesterov: expected a momentum > 0 and a dampening of 0, got momentum 0.0"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1, "momentum_buffer": ones()}, ValueError, "nesterov: .*dampening 0.1"),
])
def test_errors(arguments, error, message):
    arguments = {"param": ones(), "grad": ones(), "lr": 0.5} | arguments
    before = {name: np.array(value) for name, value in arguments.items()}
    with pytest.raises(error, match=message):
        sgd_step(**arguments)
    assert all(np.array_equal(before[name], value) for name, value in arguments.items() if isinstance(value, np.ndarray))


def test_shared_memory_is_refused():
    memory = np.ones(8, np.float32)
    for param, grad, buffer, name in ((memory[:4], memory[3:7], ones(), "grad"),
                                      (memory[:4], ones(), memory[:4], "momentum_buffer"),
                                      (ones(), memory[:4], memory[2:6], "momentum_buffer")):
        with pytest.raises(ValueError, match=f"{name}: expected memory of its own"):
            sgd_step(param, grad, buffer, lr=0.5, momentum=0.5)


def test_float32_kernel_holds_no_double():
    sgd_step(ones(), ones(), ones(), lr=0.1, momentum=0.9)
    assert not double_operations(sgd)


def torch_train(param, grads, options):
    import torch
    tensor = torch.from_numpy(param.copy()).requires_grad_()
    optimizer = torch.optim.SGD([tensor], **options)
    for grad in grads:
        tensor.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    return tensor.detach().numpy(), optimizer.state[tensor].get("momentum_buffer")


GRID = [dict(zip(("lr", "momentum", "dampening", "weight_decay", "maximize", "nesterov"), values, strict=True))
        for values in itertools.product((0.0, 0.25), (0.0, 0.5), (0.0, 0.25), (0.0, 0.125), (False, True), (False, True))
        if not values[5] or (values[1] and not values[2])]


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_torch_over_the_option_grid(dtype):
    """Powers of two and small integers: nothing is rounded in three steps, so PyTorch's fused products change nothing."""
    for seed, options in enumerate(GRID):
        param, *grads = dyadic(seed, 4, 37, dtype=dtype)
        got, buffer = train(param, grads, options)
        expected, expected_buffer = torch_train(param, grads, options)
        assert (got == expected).all(), options
        if options["momentum"]:
            assert (buffer == expected_buffer.numpy()).all(), options


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(options=options((0.01, 0.1, 0.9)), steps=st.integers(1, 5), seed=seeds)
def test_follows_torch(dtype, options, steps, seed):
    param, *grads = np.random.default_rng(seed).standard_normal((steps + 1, 50)).astype(dtype)
    got, _ = train(param, grads, options)
    expected, _ = torch_train(param, grads, options)
    # Each step rounds seven numbers, none larger than a few times the largest value and gradient so far, once or twice each.
    scale = np.abs([param, *grads]).sum(0)
    assert (np.abs(got - expected) <= 8 * steps * np.finfo(dtype).eps * scale).all()


def test_rates_of_any_kind_of_number():
    """A fraction is no type that Numba knows, and an int may be too large for a float."""
    results = []
    for lr in (Fraction(1, 4), np.float16(0.25), 0.25):
        param = np.ones(3, np.float32)
        sgd_step(param, np.ones(3, np.float32), np.ones(3, np.float32), lr=lr, momentum=lr)
        results.append(param.tolist())
    assert results[0] == results[1] == results[2]
    with pytest.raises(ValueError, match=r"^lr: expected a number >= 0, got <int>"):
        sgd_step(param, param.copy(), lr=10**5000)
    with pytest.raises(TypeError, match=r"^first: expected True or False"):
        sgd_step(param, param.copy(), lr=1, first=np.zeros(2))
    assert param.tolist() == results[0]
