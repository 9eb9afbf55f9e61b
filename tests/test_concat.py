"""Concatenation: frozen values, oracle, contract, errors, parity with PyTorch."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbcnn.kernels import concat_backward, concat_forward, cpu
from nbcnn.kernels.cpu import concat as kernels
from nbcnn.kernels.cpu.launch import run

from arrays import awkward, equal, filled_buffer, in_both_dtypes
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
GAPS = 3, (8, 3, 5), (4, 4)     # on the CPU there is one between the samples of the first input, and of the output


@st.composite
def geometries(draw):
    """The number of samples, the channels of each input, and the size of a plane, () for vectors."""
    size = draw(st.one_of(st.just(()), st.tuples(st.integers(1, 5), st.integers(1, 5))))
    return draw(st.integers(0, 4)), tuple(draw(st.lists(st.integers(0, 20), min_size=2, max_size=4))), size


def numbers(seed, geometry, dtype):
    """An array for each input, NaN and infinities among them."""
    N, channels, size = geometry
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((N, C, *size)).astype(dtype) for C in channels]
    for a in arrays:
        for value in (np.nan, np.inf):
            a[rng.random(a.shape) < 0.05] = value
    return arrays


seeds = st.integers(0, 2**32 - 1)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: two channels, then one, then the two of the first input again.
    first, second = np.array([[[[1, 2]], [[3, 4]]], [[[5, 6]], [[7, 8]]]], dtype), np.array([[[[-1, -2]]], [[[-3, -4]]]], dtype)
    y = concat_forward([first, second, first])
    assert equal(y, np.array([[[[1, 2]], [[3, 4]], [[-1, -2]], [[1, 2]], [[3, 4]]],
                              [[[5, 6]], [[7, 8]], [[-3, -4]], [[5, 6]], [[7, 8]]]], dtype))
    assert all(map(equal, concat_backward(y, (2, 1, 2)), (first, second, first)))
    assert concat_forward([dtype([[1, 2]]), dtype([[3]])]).tolist() == [[1, 2, 3]]
    assert [dx.tolist() for dx in concat_backward(dtype([[1, 2, 3]]), (2, 1))] == [[[1, 2]], [[3]]]


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries(), seed=seeds)
def test_equals_numpy(dtype, geometry, seed):
    xs = numbers(seed, geometry, dtype)
    y = concat_forward(xs)
    assert equal(y, np.concatenate(xs, 1))
    dxs = concat_backward(y, geometry[1])
    assert isinstance(dxs, tuple) and len(dxs) == len(xs) and all(map(equal, dxs, xs))


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries(), seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN; what lies around what is read are other numbers. Of dx, some are asked for."""
    N, channels, size = geometry
    values = [np.nan_to_num(x, posinf=7) for x in numbers(seed, geometry, dtype)]
    shapes, joined = tuple((C, *size) for C in channels), np.concatenate(values, 1)
    operation = cpu.Concat(shapes, dtype)
    operation.reserve(N + 1)
    *x, dy = (filled_buffer(N, a.shape[1:], dtype, 99, a) for a in (*values, joined))
    y, dx = filled_buffer(N, joined.shape[1:], dtype, np.nan), [filled_buffer(N, shape, dtype, np.nan) for shape in shapes]
    before = [buffer.array.copy() for buffer in (*x, dy)]
    run(operation.forward(N, y, tuple(x), ()))
    run(operation.backward(N, tuple(d if k % 2 else None for k, d in enumerate(dx)), (), dy, x, y, (), ()))
    assert all(np.isnan(d.view(N + 1)).all() for d in dx[::2])
    assert all(equal(d.view(N), value) for d, value in zip(dx[1::2], values[1::2], strict=True))
    run(operation.backward(N, tuple(dx), (), dy, x, y, (), ()))
    assert operation.backward(N, (None,) * len(dx), (), dy, x, y, (), ()) == []
    assert equal(y.view(N), joined) and all(equal(d.view(N), value) for d, value in zip(dx, values, strict=True))
    for written in (y, *dx):
        assert np.isnan(written.array).sum() == written.zeros - written.view(N).size
    assert all(map(equal, (buffer.array for buffer in (*x, dy)), before))


def test_an_input_named_twice():
    """It is one buffer, of which both are read; each has a dx of its own."""
    x, y = cpu.Buffer.holding(np.array([[1.0, 2]])), cpu.Buffer(1, (4,), np.float64)
    operation, dx = cpu.Concat(((2,), (2,)), np.float64), (cpu.Buffer(1, (2,), np.float64), cpu.Buffer(1, (2,), np.float64))
    run(operation.forward(1, y, (x, x), ()))
    dy = cpu.Buffer.holding(np.array([[1.0, 2, 3, 4]]))
    run(operation.backward(1, dx, (), dy, (x, x), y, (), ()))
    assert y.view(1).tolist() == [[1, 2, 1, 2]] and [d.view(1).tolist() for d in dx] == [[[1, 2]], [[3, 4]]]


@given(geometry=geometries(), seed=seeds)
def test_any_number_of_threads_gives_equal_bits(geometry, seed):
    xs, results = numbers(seed, geometry, np.float32), []
    for _ in one_and_all_threads():
        y = concat_forward(xs)
        results.append((y.tobytes(), *(dx.tobytes() for dx in concat_backward(y, geometry[1]))))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    xs = numbers(0, (2, (3, 1, 4), (3, 5)), dtype)
    y = concat_forward(map(awkward, xs))
    assert equal(y, concat_forward(xs)) and all(map(equal, concat_backward(awkward(y), (3, 1, 4)), xs))


def test_float32_kernels_hold_no_double():
    concat_backward(concat_forward([np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)]), (3, 4))
    assert not double_operations(kernels.concat_forward) and not double_operations(kernels.concat_backward)


@pytest.mark.parametrize("call, error, message", [
    (lambda x: concat_forward([x]), ValueError, "^xs: expected at least two arrays, got 1"),
    (lambda x: concat_forward(3), TypeError, "^xs: expected a sequence of float arrays, got 3"),
    (lambda x: concat_forward([x, None]), TypeError, r"^xs\[1\]: expected a float32 or float64 array, got NoneType"),
    (lambda x: concat_forward(x), ValueError, r"^xs\[0\]: expected shape \(N, C, H, W\) or \(N, F\), got shape \(3, 4, 5\)"),
    (lambda x: concat_forward([x, x.astype(float)]), TypeError, r"^xs\[1\]: expected float32, the dtype of xs\[0\], got float64"),
    (lambda x: concat_forward([x, x[:1]]), ValueError,
     r"^xs\[1\]: expected shape \(2, 3, 4, 5\), that of xs\[0\] but for the channels, got shape \(1, 3, 4, 5\)"),
    (lambda x: concat_forward([x, x[:, :1, :1]]), ValueError, r"^xs\[1\]: expected shape \(2, 1, 4, 5\), .* \(2, 1, 1, 5\)"),
    (lambda x: concat_forward([x, x[:, :, 0, 0]]), ValueError, r"^xs\[1\]: expected shape \(2, 3, 4, 5\), .* got shape \(2, 3\)"),
    (lambda x: concat_backward(x[0], (3,)), ValueError, r"^dy: expected shape \(N, C, H, W\) or \(N, F\), got shape \(3, 4, 5\)"),
    (lambda x: concat_backward(x, (1, 1)), ValueError,
     r"^channels: expected numbers whose sum is 3, as dy \(2, 3, 4, 5\) has, got \(1, 1\)"),
    (lambda x: concat_backward(x, [1] * 99), ValueError, r"^channels: .* got \(1, 1, 1, 1, 1, 1, 1, 1, \.\.\.\)$"),
    (lambda x: concat_backward(x, ()), ValueError, r"^channels: expected numbers whose sum is 3, .* got \(\)"),
    (lambda x: concat_backward(x, (4, -1)), ValueError, "^channels: expected an int >= 0, got -1"),
    (lambda x: concat_backward(x, (1.0, 2)), TypeError, "^channels: expected an int >= 0, got 1.0"),
    (lambda x: concat_backward(x, 3), TypeError, "^channels: expected a sequence of ints >= 0, got 3"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3, 4, 5), np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(), seed=seeds)
def test_equals_torch(dtype, geometry, seed):
    import torch
    xs = numbers(seed, geometry, dtype)
    tensors = [torch.from_numpy(x).requires_grad_() for x in xs]
    expected = torch.cat(tensors, 1)
    dy, = numbers(seed + 1, (geometry[0], (sum(geometry[1]),), geometry[2]), dtype)
    expected.backward(torch.from_numpy(dy))
    assert equal(concat_forward(xs), expected.detach().numpy())
    assert all(equal(dx, tensor.grad.numpy()) for dx, tensor in zip(concat_backward(dy, geometry[1]), tensors, strict=True))
