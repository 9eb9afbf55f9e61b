"""The sum of inputs: frozen values, oracle, contract, errors, parity with PyTorch."""
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba import types

from nbcnn.kernels import add_backward, add_forward, cpu
from nbcnn.kernels.cpu import add as kernels
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.cpu.parallel import PARALLEL

from arrays import awkward, equal, filled_buffer, in_both_dtypes
from llvm import afresh, double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
GAPS = 3, 2, (8, 4, 4)      # on the CPU there is one between the samples
geometries = st.tuples(     # samples, inputs, and the shape of a sample
    st.integers(0, 4), st.integers(2, 5), st.one_of(st.tuples(st.integers(0, 50)), st.tuples(*[st.integers(0, 9)] * 3)))
seeds = st.integers(0, 2**32 - 1)


def numbers(seed, geometry, dtype):
    """An array for each input whose sums round, so that another order shows; some are infinite."""
    N, count, shape = geometry
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((N, *shape)).astype(dtype) for _ in range(count)]
    for a in arrays:
        a[rng.random(a.shape) < 0.05] = np.inf
    return arrays


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand; 1 + 2^60 - 2^60 is 0 when added up from the left.
    xs = dtype([[1, -2, 3, 1]]), dtype([[4, 2, np.nan, 2**60]]), dtype([[-5, 0, 1, -2**60]])
    assert equal(add_forward(xs), dtype([[0, 0, np.nan, 0]])) and equal(add_forward(xs[:2]), dtype([[5, 0, np.nan, 2**60]]))
    assert all(equal(dx, xs[0]) for dx in add_backward(xs[0], 3)) and len(add_backward(xs[0], 3)) == 3


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries, seed=seeds)
def test_equals_numpy(dtype, geometry, seed):
    """In every bit: both add up from the left."""
    xs = numbers(seed, geometry, dtype)
    y = add_forward(xs)
    assert equal(y, np.add.accumulate(xs)[-1])
    dxs = add_backward(y, len(xs))
    assert isinstance(dxs, tuple) and len(dxs) == len(xs) and all(equal(dx, y) for dx in dxs)
    assert not y.size or not np.shares_memory(dxs[0], dxs[1])


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries, seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN. An input named twice is one buffer; of dx, some are asked for."""
    N, count, shape = geometry
    values, operation = numbers(seed, geometry, dtype), cpu.Add((shape,) * (count + 1), dtype)
    operation.reserve(N + 1)
    *x, dy = (filled_buffer(N, shape, dtype, 99, a) for a in (*values, values[0]))
    y, *dx = (filled_buffer(N, shape, dtype, np.nan) for _ in range(count + 2))
    before = [buffer.array.copy() for buffer in (*x, dy)]
    run(operation.forward(N, y, (*x, x[0]), ()))
    run(operation.backward(N, (None, *dx[1:]), (), dy, (*x, x[0]), y, (), ()))
    assert np.isnan(dx[0].view(N + 1)).all()
    run(operation.backward(N, tuple(dx), (), dy, (*x, x[0]), y, (), ()))
    assert operation.backward(N, (None,) * len(dx), (), dy, x, y, (), ()) == []
    assert equal(y.view(N), np.add.accumulate([*values, values[0]])[-1]) and all(equal(d.view(N), values[0]) for d in dx)
    for written in (y, *dx):
        assert np.isnan(written.view(N + 1)[N]).all() and not written.array[written.zeros:].any()
    assert all(map(equal, (buffer.array for buffer in (*x, dy)), before))


@given(geometry=geometries, seed=seeds)
def test_any_number_of_threads_gives_equal_bits(geometry, seed):
    xs, results = numbers(seed, geometry, np.float32), []
    for _ in one_and_all_threads():
        y = add_forward(xs)
        results.append((y.tobytes(), *(dx.tobytes() for dx in add_backward(y, 2))))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    xs = numbers(0, (2, 3, (3, 4, 5)), dtype)
    y = add_forward(xs)
    assert equal(add_forward(map(awkward, xs)), y) and equal(add_backward(awkward(y), 2)[1], y)


@pytest.mark.skipif(not PARALLEL, reason="what is compiled with checks of bounds has them in its loops")
@pytest.mark.parametrize("dtype", [types.float32, types.uint16], ids=["float32", "bfloat16"])
def test_kernels_are_vectors(dtype):
    """Sums of single numbers would be many times as slow without a failure elsewhere."""
    for kernel, arrays in ((kernels.add_forward, 3), (kernels.add_to, 2)):
        again = afresh(kernel)
        again.compile((dtype[::1],) * arrays + (types.intp,))
        assert re.search(r"fadd <\d+ x float>", again.inspect_llvm(again.signatures[0])), kernel


def test_float32_kernels_hold_no_double():
    add_backward(add_forward([np.ones((2, 3), np.float32)] * 3), 2)
    assert not double_operations(kernels.add_forward) and not double_operations(kernels.copy)


@pytest.mark.parametrize("call, error, message", [
    (lambda x: add_forward([x]), ValueError, "^xs: expected at least two arrays, got 1"),
    (lambda x: add_forward(None), TypeError, "^xs: expected a sequence of float arrays, got None"),
    (lambda x: add_forward([x, x.astype(int)]), TypeError, r"^xs\[1\]: expected a float32 or .*, got ndarray of dtype int64"),
    (lambda x: add_forward([x, x, x.astype(float)]), TypeError, r"^xs\[2\]: expected float32, the dtype of xs\[0\], got float64"),
    (lambda x: add_forward([x[0], x[0]]), ValueError, r"^xs\[0\]: expected shape \(N, C, H, W\) or \(N, F\), got shape"),
    (lambda x: add_forward([x, x[:, :1]]), ValueError, r"^xs\[1\]: expected shape \(2, 3, 4, 5\), that of xs\[0\], got shape"),
    (lambda x: add_backward(x[0], 2), ValueError, r"^dy: expected shape \(N, C, H, W\) or \(N, F\), got shape \(3, 4, 5\)"),
    (lambda x: add_backward(x, 1), ValueError, "^count: expected an int >= 2, got 1"),
    (lambda x: add_backward(x, 2.0), TypeError, "^count: expected an int >= 2, got 2.0"),
    (lambda x: add_backward(x, 2**30), ValueError, "^count: expected an int <= 1000000, got 1073741824"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3, 4, 5), np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries, seed=seeds)
def test_equals_torch(dtype, geometry, seed):
    import torch
    xs = numbers(seed, geometry, dtype)
    tensors = [torch.from_numpy(x).requires_grad_() for x in xs]
    expected = sum(tensors[1:], tensors[0])
    expected.backward(torch.from_numpy(xs[0]))
    assert equal(add_forward(xs), expected.detach().numpy())
    assert all(equal(dx, tensor.grad.numpy()) for dx, tensor in zip(add_backward(xs[0], len(xs)), tensors, strict=True))
