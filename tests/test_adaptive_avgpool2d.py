"""Adaptive average pooling: frozen values, oracle, gradients, contract, errors, and parity with PyTorch."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nbcnn
from nbcnn.kernels import adaptive_avgpool2d_backward, adaptive_avgpool2d_forward, avgpool2d_backward, avgpool2d_forward, cpu
from nbcnn.kernels.cpu import adaptive_avgpool2d as kernels
from nbcnn.kernels.cpu.launch import run

import oracles
from arrays import awkward, equal, filled_buffer, in_both_dtypes
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
seeds, sizes = st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 9), st.integers(1, 9))
geometries = st.tuples(st.tuples(st.integers(0, 3), st.integers(1, 40)), sizes, sizes)      # (N, C), (H, W), (OH, OW)
# x and y of 8 channels and 8x8 and 4x4 pixels: in both there are gaps between the samples.
GAPS = example(geometry=((3, 8), (8, 8), (4, 4)), seed=0)


def normal(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: of 5 columns 3 windows have the columns 0 1, 1 2 3 and 3 4.
    x = np.array([[[[2, 4, 6, 8, 14]]]], dtype)
    assert adaptive_avgpool2d_forward(x, (1, 3)).tolist() == [[[[3, 6, 11]]]]
    dx = adaptive_avgpool2d_backward(np.array([[[[2, 3, 8]]]], dtype), x.shape)
    assert dx.tolist() == [[[[1, 1 + 1, 1, 1 + 4, 4]]]]
    # By hand: of 2 columns 3 windows have the columns 0, 0 1 and 1.
    x = np.array([[[[2, 4]]]], dtype)
    assert adaptive_avgpool2d_forward(x, (None, 3)).tolist() == [[[[2, 3, 4]]]]
    assert adaptive_avgpool2d_backward(np.array([[[[1, 2, 3]]]], dtype), x.shape).tolist() == [[[[2, 4]]]]
    # By hand: 4 windows of an image of one pixel repeat it.
    x = np.array([[[[7]]]], dtype)
    assert adaptive_avgpool2d_forward(x, 2).tolist() == [[[[7, 7], [7, 7]]]]
    assert adaptive_avgpool2d_backward(np.array([[[[1, 2], [3, 4]]]], dtype), x.shape).tolist() == [[[[10]]]]


@pytest.mark.parametrize("dtype", DTYPES)
@GAPS
@given(geometry=geometries, seed=seeds)
def test_equals_oracle(dtype, geometry, seed):
    """With equal bits: of whole numbers, whose sums are exact; gradients are divided without a remainder."""
    (N, C), size, out = geometry
    x, dy = (np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype) for shape in ((N, C, *size), (N, C, *out)))
    dy *= oracles.adaptive_avgpool2d_cells(size, out).astype(dtype)
    assert equal(adaptive_avgpool2d_forward(x, out), oracles.adaptive_avgpool2d_forward(x, out))
    assert equal(adaptive_avgpool2d_backward(dy, x.shape), oracles.adaptive_avgpool2d_backward(dy, x.shape))


@pytest.mark.parametrize("windows", [(2, 3), (1, 1), (4, 6)])
def test_equals_windows_side_by_side(windows):
    """Where the output's size divides the image's, it is the average pooling of such windows, with equal bits."""
    x, dy, kernel = normal(0, 3, 5, 4, 6), normal(1, 3, 5, *windows), (4 // windows[0], 6 // windows[1])
    assert equal(adaptive_avgpool2d_forward(x, windows), avgpool2d_forward(x, kernel))
    assert equal(adaptive_avgpool2d_backward(dy, x.shape), avgpool2d_backward(dy, x.shape, kernel))


@given(size=sizes, out=sizes, seed=seeds)
def test_gradient_is_the_jacobian(size, out, seed):
    """Central differences of every element, with steps of 1: pooling is linear. Sums of at most 81 terms of order 1."""
    x, dy = normal(seed, 1, 1, *size), normal([seed, 1], 1, 1, *out)
    dx, steps = adaptive_avgpool2d_backward(dy, x.shape), np.eye(x.size).reshape(-1, 1, *size)
    above, below = adaptive_avgpool2d_forward(x + steps, out), adaptive_avgpool2d_forward(x - steps, out)
    np.testing.assert_allclose((dy * (above - below)).sum((1, 2, 3)) / 2, dx.ravel(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@GAPS
@given(geometry=geometries, seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN; what lies around what is read are other numbers."""
    (N, C), size, out = geometry
    x, dy = normal(seed, N, C, *size, dtype=dtype), normal([seed, 1], N, C, *out, dtype=dtype)
    expected = adaptive_avgpool2d_forward(x, out), adaptive_avgpool2d_backward(dy, x.shape)
    operation = cpu.AdaptiveAvgPool2d((C, *size), (C, *out), dtype)
    operation.reserve(N + 1)
    y, dx = (filled_buffer(N, a.shape[1:], dtype, np.nan) for a in expected)
    x, dy = (filled_buffer(N, a.shape[1:], dtype, 99, a) for a in (x, dy))
    before = x.array.copy(), dy.array.copy()
    run(operation.forward(N, y, x, ()))
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    assert operation.backward(N, None, (), dy, x, y, (), ()) == []
    for buffer, values in zip((y, dx), expected, strict=True):
        assert equal(buffer.view(N), values) and np.isnan(buffer.array).sum() == buffer.zeros - values.size
    assert equal(x.array, before[0]) and equal(dy.array, before[1])


def test_nan_and_infinities_stay_in_their_windows():
    x = np.ones((1, 2, 5, 5), np.float32)
    x[0, 1, 0, 0], x[0, 1, 4, 2] = np.nan, np.inf
    expected = np.ones((1, 2, 3, 3), np.float32)
    expected[0, 1, 0, 0], expected[0, 1, 2, 1] = np.nan, np.inf
    assert equal(adaptive_avgpool2d_forward(x, 3), expected)


def test_strided_and_read_only_inputs():
    x, dy = normal(1, 2, 3, 7, 8), normal(2, 2, 3, 3, 5)
    assert equal(adaptive_avgpool2d_forward(awkward(x), (3, 5)), adaptive_avgpool2d_forward(x, (3, 5)))
    assert equal(adaptive_avgpool2d_backward(awkward(dy), x.shape), adaptive_avgpool2d_backward(dy, x.shape))


def test_any_number_of_threads_gives_equal_bits():
    x, dy = normal(3, 9, 17, 7, 9, dtype=np.float32), normal(4, 9, 17, 4, 12, dtype=np.float32)
    one, most = ([adaptive_avgpool2d_forward(x, (4, 12)), adaptive_avgpool2d_backward(dy, x.shape)] for _ in one_and_all_threads())
    assert all(map(equal, one, most))


def test_float32_kernels_hold_no_double():
    x = np.ones((1, 2, 5, 4), np.float32)
    adaptive_avgpool2d_backward(adaptive_avgpool2d_forward(x, 3), x.shape)
    assert not double_operations(kernels.adaptive_avgpool2d_forward)
    assert not double_operations(kernels.adaptive_avgpool2d_backward)


X = np.ones((1, 2, 5, 4), np.float32)


@pytest.mark.parametrize("call, error, message", [
    (lambda: adaptive_avgpool2d_forward(X[0], 2), ValueError, r"x: expected shape \(N, C, H, W\), got shape \(2, 5, 4\)"),
    (lambda: adaptive_avgpool2d_forward(X.astype(int), 2), TypeError, "x: expected a float32 or float64 array"),
    (lambda: adaptive_avgpool2d_forward(X[:, :, :0], 2), ValueError, "x: expected images of at least 1x1, got 0x4"),
    (lambda: adaptive_avgpool2d_forward(X, 0), ValueError, "output_size: expected an int or a pair of ints >= 1, got 0"),
    (lambda: adaptive_avgpool2d_forward(X, (2, 0)), ValueError, "output_size: .*>= 1, or None in a pair, got 0"),
    (lambda: adaptive_avgpool2d_forward(X, (2, 1.5)), TypeError, "output_size: .*None in a pair, got 1.5"),
    (lambda: adaptive_avgpool2d_forward(X, (2, 1, 1)), ValueError, r"output_size: .*None in a pair, got \(2, 1, 1\)"),
    (lambda: adaptive_avgpool2d_forward(X, None), TypeError, "output_size: .*got None"),
    (lambda: adaptive_avgpool2d_backward(X[0], X.shape), ValueError, r"dy: expected shape \(N, C, OH, OW\), got"),
    (lambda: adaptive_avgpool2d_backward(X[:, :, :0], X.shape), ValueError, r"dy: expected an output of at least 1x1, got shape"),
    (lambda: adaptive_avgpool2d_backward(X, (1, 3, 5, 4)), ValueError, r"dy: expected shape \(1, 3, 5, 4\), that of"),
    (lambda: adaptive_avgpool2d_backward(X, (1, 2, 5, 0)), ValueError, "x_shape: expected images of at least 1x1, got 5x0"),
    (lambda: adaptive_avgpool2d_backward(X, (2, 5, 4)), ValueError, "x_shape: expected four sizes"),
    (lambda: nbcnn.AdaptiveAvgPool2d("2"), TypeError, "output_size: .* got '2'"),
    (lambda: nbcnn.Sequential([nbcnn.AdaptiveAvgPool2d(2)], input_shape=(8,)), ValueError,
     r"0: expected images \(N, C, H, W\), got \(N, 8\)"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.torch
@given(geometry=geometries, seed=seeds, own=st.sampled_from([(False, False), (True, False), (False, True)]))
def test_equals_torch(geometry, seed, own):
    """The functions and the layer, in float64: sums of at most 81 terms of order 1. PyTorch divides twice."""
    import torch
    (N, C), size, out = geometry
    output_size = tuple(None if same else n for same, n in zip(own, out, strict=True))
    x = normal(seed, N, C, *size)
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.AdaptiveAvgPool2d(output_size)(tensor)
    y = adaptive_avgpool2d_forward(x, output_size)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    dy = normal([seed, 1], *y.shape)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(adaptive_avgpool2d_backward(dy, x.shape), tensor.grad.numpy(), rtol=1e-12, atol=1e-12)
    layer = nbcnn.AdaptiveAvgPool2d(output_size)
    assert equal(nbcnn.Sequential([layer], dtype=np.float64)(x), y) and layer.output_shape((C, *size)) == y.shape[1:]


def test_window_cells():
    """Of 5 rows three windows have 2, 3 and 2; of 2 columns three have 1, 2 and 1."""
    assert nbcnn.AdaptiveAvgPool2d(3).window_cells((7, 5, 2)) == (2 + 3 + 2) * (1 + 2 + 1)
