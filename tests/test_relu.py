"""ReLU: frozen values, oracle, gradients, contract, errors, and parity with PyTorch."""
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels import cpu
from nbcnn.kernels.cpu import relu as kernels
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.relu import relu_backward, relu_forward

import oracles
from arrays import awkward
from llvm import double_operations

DTYPES = [np.float32, np.float64]
shapes = st.lists(st.integers(0, 9), max_size=5).map(tuple)
seeds = st.integers(0, 2**32 - 1)


def values(seed, shape, dtype):
    """Small integers, many of them zero, with some infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(dtype)
    return np.where(rng.random(shape) < 0.2, rng.choice([np.inf, -np.inf, np.nan], shape).astype(dtype), x)


def upstream(seed, shape, dtype):
    return np.random.default_rng([seed, 1]).standard_normal(shape).astype(dtype)


def equal(a, b):
    """Same shape, dtype and values, NaN at the same places."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_values(dtype):
    # From the definition: nothing below zero passes, NaN does, and so does the gradient where the output is positive or NaN.
    x = np.array([-np.inf, -1, -0.0, 0, 1e-30, 2, np.inf, np.nan], dtype)
    y = relu_forward(x)
    assert equal(y, np.array([0, 0, 0, 0, 1e-30, 2, np.inf, np.nan], dtype)) and not np.signbit(y[:4]).any()
    dy = np.array([1, 2, 3, -4, -5, 6, 7, 8], dtype)
    assert equal(relu_backward(dy, y), np.array([0, 0, 0, 0, -5, 6, 7, 8], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, seed=seeds)
def test_equals_oracle(dtype, shape, seed):
    x, dy = values(seed, shape, dtype), upstream(seed, shape, dtype)
    expected_y, expected_dx = oracles.relu(x, dy)
    y = relu_forward(x)
    assert equal(y, expected_y) and equal(relu_backward(dy, y), expected_dx)


@given(shape=shapes, seed=seeds)
def test_gradient_is_the_difference_quotient(shape, seed):
    """Integers other than 0 are away from the kink, so a step of 1/4 has no truncation error."""
    rng = np.random.default_rng(seed)
    x, dy = rng.choice([-2.0, -1.0, 1.0, 2.0], shape), rng.integers(-9, 10, shape).astype(float)
    assert equal(relu_backward(dy, relu_forward(x)), dy * (relu_forward(x + 0.25) - relu_forward(x - 0.25)) / 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 90))),
       N=st.integers(0, 3), seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, shape, N, seed):
    """Results lie in buffers full of NaN, all with borders of different widths; what is read stays as it is."""
    x, dy = np.nan_to_num(values(seed, (N, *shape), dtype)), upstream(seed, (N, *shape), dtype)

    def buffer(border, fill, value=None):
        buffer = cpu.Buffer(N + 1, shape, dtype, border if len(shape) == 3 else (0, 0))
        buffer.array[...] = fill
        if value is not None:
            buffer.view(N)[...] = value
        return buffer

    y, dx = buffer((2, 1), np.nan), buffer((1, 3), np.nan)
    x, dy = buffer((3, 2), 99, x), buffer((1, 2), 99, dy)
    before = x.array.copy(), dy.array.copy()
    operation = cpu.ReLU(shape, dtype)
    operation.reserve(N + 1)
    run(operation.forward(N, y, x, ()))
    saved = y.array.copy()
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    run(operation.backward(N, None, (), dy, x, y, (), ()))                   # nothing asked for
    expected_y, expected_dx = oracles.relu(x.view(N), dy.view(N))
    assert equal(y.view(N), expected_y) and equal(dx.view(N), expected_dx)
    for written in (y, dx):
        assert np.isnan(written.array).sum() == written.array.size - written.view(N).size
    assert equal(x.array, before[0]) and equal(dy.array, before[1]) and equal(y.array, saved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    x, dy = values(1, (2, 3, 5, 4), dtype), upstream(1, (2, 3, 5, 4), dtype)

    y = relu_forward(x)
    assert equal(relu_forward(awkward(x)), y) and equal(relu_backward(awkward(dy), awkward(y)), relu_backward(dy, y))
    assert equal(x, values(1, (2, 3, 5, 4), dtype))


@given(shape=shapes, seed=seeds)
def test_any_number_of_threads_gives_equal_bits(shape, seed):
    x, dy = values(seed, shape, np.float32), upstream(seed, shape, np.float32)
    results, threads = [], numba.get_num_threads()
    for count in (1, threads):
        numba.set_num_threads(count)
        y = relu_forward(x)
        results.append((y.tobytes(), relu_backward(dy, y).tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("call, error, message", [
    (lambda x: relu_forward(x.astype(int)), TypeError, "x: expected a float32 or float64 array, got ndarray of dtype int64"),
    (lambda x: relu_forward(None), TypeError, "x: expected a float32 or float64 array, got NoneType"),
    (lambda x: relu_backward([True], x), TypeError, "dy: expected a float32 or float64 array, got list of dtype bool"),
    (lambda x: relu_backward(x, x.astype(np.float16)), TypeError, "y: expected a float32 or float64 array, got .* float16"),
    (lambda x: relu_backward(x, x.astype(float)), TypeError, "dy: expected float64, the dtype of y, got float32"),
    (lambda x: relu_backward(x, x[:, :1]), ValueError, r"dy: expected shape \(2, 1\), that of y, got shape \(2, 3\)"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3), np.float32))


def test_float32_kernels_hold_no_double():
    x = np.ones((2, 3), np.float32)
    relu_backward(x, relu_forward(x))
    assert not double_operations(kernels.relu_forward) and not double_operations(kernels.relu_backward)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, seed=seeds)
def test_equals_torch(dtype, shape, seed):
    import torch
    x, dy = values(seed, shape, dtype), upstream(seed, shape, dtype)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.relu(tensor)
    expected.backward(torch.from_numpy(dy))
    y = relu_forward(x)
    assert equal(y, expected.detach().numpy()) and equal(relu_backward(dy, y), tensor.grad.numpy())
