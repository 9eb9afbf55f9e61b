"""Flatten: the operation between images and vectors. NumPy's reshape is its oracle."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbcnn.kernels import cpu
from nbcnn.kernels.cpu import flatten as kernels
from nbcnn.kernels.cpu.launch import run

from arrays import filled_buffer, in_both_dtypes
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
images = st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**32 - 1)


def nans(N, shape, dtype):
    return filled_buffer(N, shape, dtype, np.nan)


def holding(x):
    """A buffer with x, 99 behind and between its samples."""
    return filled_buffer(len(x), x.shape[1:], x.dtype, 99, x)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: cells of the first channel row by row, then those of the second.
    x = holding(np.array([[[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]], dtype))
    y, dx = cpu.Buffer(1, (12,), dtype), cpu.Buffer(1, (2, 2, 3), dtype)
    operation = cpu.Flatten((2, 2, 3), dtype)
    run(operation.forward(1, y, x, ()))
    assert y.view(1).tolist() == [list(range(1, 13))]
    run(operation.backward(1, dx, (), y, x, y, (), ()))
    assert dx.view(1).tolist() == x.view(1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@example(shape=(3, 8, 4, 4), seed=0)        # with gaps between the samples
@given(shape=images, seed=seeds)
def test_moves_every_number_there_and_back(dtype, shape, seed):
    """Results lie in buffers full of NaN, of which nothing but the samples is written; what is read stays as it is."""
    N, F = shape[0], int(np.prod(shape[1:]))
    rng = np.random.default_rng(seed)
    values, upstream = rng.standard_normal(shape).astype(dtype), rng.standard_normal((N, F)).astype(dtype)
    x, y, dy, dx = holding(values), nans(N, (F,), dtype), holding(upstream), nans(N, shape[1:], dtype)
    operation = cpu.Flatten(shape[1:], dtype)
    operation.reserve(N + 1)
    run(operation.forward(N, y, x, ()))
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    run(operation.backward(N, None, (), dy, x, y, (), ()))               # nothing asked for
    assert (y.view(N) == values.reshape(N, F)).all() and (dx.view(N) == upstream.reshape(shape)).all()
    for written in (y, dx):
        assert np.isnan(written.array).sum() == written.zeros - written.view(N).size
    assert (x.array == holding(values).array).all() and (dy.array == holding(upstream).array).all()


@given(N=st.integers(0, 3), F=st.integers(1, 50))
def test_leaves_vectors_alone(N, F):
    x, y = holding(np.random.default_rng(F).standard_normal((N, F))), nans(N, (F,), float)
    run(cpu.Flatten((F,), np.dtype(float)).forward(N, y, x, ()))
    assert (y.view(N) == x.view(N)).all()


def test_any_number_of_threads_gives_equal_bits():
    x = holding(np.random.default_rng(0).standard_normal((5, 8, 3, 4), np.float32))
    results = []
    for _ in one_and_all_threads():
        y = nans(5, (96,), np.float32)
        run(cpu.Flatten((8, 3, 4), np.float32).forward(5, y, x, ()))
        results.append(y.array.tobytes())
    assert results[0] == results[1]


def test_float32_kernels_hold_no_double():
    operation, x, y = cpu.Flatten((2, 3, 3), np.float32), cpu.Buffer(1, (2, 3, 3), np.float32), cpu.Buffer(1, (18,), np.float32)
    run(operation.forward(1, y, x, ()))
    run(operation.backward(1, x, (), y, x, y, (), ()))
    assert not double_operations(kernels.flatten_forward) and not double_operations(kernels.flatten_backward)


@pytest.mark.torch
@given(shape=images, seed=seeds)
def test_equals_torch(shape, seed):
    import torch
    x = holding(np.random.default_rng(seed).standard_normal(shape, np.float32))
    y = nans(shape[0], (int(np.prod(shape[1:])),), np.float32)
    run(cpu.Flatten(shape[1:], np.float32).forward(shape[0], y, x, ()))
    assert (y.view(shape[0]) == torch.flatten(torch.from_numpy(x.view(shape[0]).copy()), 1).numpy()).all()
