"""Max pooling: frozen values, oracle, gradients, contract, errors, and parity with PyTorch."""
import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nbcnn.kernels import arguments, cpu
from nbcnn.kernels.arguments import pooled_size
from nbcnn.kernels.cpu import maxpool2d as kernels
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.maxpool2d import maxpool2d_backward, maxpool2d_forward

import oracles
from arrays import awkward, equal, filled_buffer, in_both_dtypes
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]


@st.composite
def geometries(draw, half_kernel=False):
    """A shape of x and the options of a pooling with at least one pixel of output, padded by at most half the window.

    PyTorch wants at most half the kernel instead.
    """
    def pairs(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, dilation = pairs(1, 5), pairs(1, 4), pairs(1, 3)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, (k if half_kernel else span) // 2)) for k, span in zip(kernel, spans, strict=True))
    size = tuple(max(1, span - 2 * p) + extra for span, p, extra in zip(spans, padding, pairs(0, 9), strict=True))
    # A dilated window around a tiny image can miss it altogether: not legal.
    assume(all(start % d < i for i, p, d, s in zip(size, padding, dilation, stride, strict=True) for start in range(-p, 0, s)))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": draw(st.booleans())}
    return (draw(st.integers(0, 3)), draw(st.integers(1, 40)), *size), options


def test_windows_that_cover_no_cell_are_found(monkeypatch):
    """As by looking at every window; where images and windows are small, all of them are looked at, so FEW is made smaller."""
    monkeypatch.setattr(arguments, "FEW", 1)
    seen = set()
    for i, k, s, d, p in itertools.product(range(1, 5), range(1, 4), range(1, 4), range(1, 8), range(1, 8)):
        if 2 * p <= (k - 1) * d + 1 <= i + 2 * p and p <= max(1, i, d):
            count = (i + 2 * p - d * (k - 1) - 1) // s + 1
            empty = any(all(not 0 <= start + j * d < i for j in range(k)) for start in range(-p, count * s - p, s))
            try:
                found = pooled_size((i, 1), (k, 1), (s, 1), (p, 0), (d, 1), False, "x") != (count, 1)
            except ValueError as error:
                found = "every window to cover a cell" in str(error)
            assert found == empty
            seen.add(empty)
    assert seen == {False, True}


# x and y of 8 channels and 8x8 and 4x4 pixels: in both there are gaps between the samples.
GAPS = (3, 8, 8, 8), {"kernel_size": (2, 3), "stride": (2, 2), "padding": (0, 1), "dilation": (1, 1), "ceil_mode": False}


def images(seed, shape, dtype):
    """Small integers, so that ties are common; in half of the draws also infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, shape).astype(dtype)
    if seed % 2:
        x[rng.random(shape) < 0.3] = -np.inf
        for value in (np.inf, np.nan):
            x[rng.random(shape) < 0.1] = value
    return x


def small_integers(seed, shape, dtype):
    return np.random.default_rng([seed, 1]).integers(-9, 10, shape).astype(dtype)


seeds = st.integers(0, 2**32 - 1)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand. Windows: ordinary; a tie, won by its first cell; NaN, won by the last one; -inf only, won by the first cell.
    nan, inf = np.nan, np.inf
    x = np.array([[1, 2, 5, 0], [4, 3, 0, 5], [nan, 9, -inf, -inf], [nan, 1, -inf, -inf]], dtype).reshape(1, 1, 4, 4)
    y, argmax = maxpool2d_forward(x, 2)
    assert y.dtype == dtype and argmax.dtype == np.int64
    assert equal(y, np.array([[[[4, 5], [nan, -inf]]]], dtype)) and argmax.tolist() == [[[[4, 2], [12, 10]]]]
    dx = maxpool2d_backward(np.array([[[[1, -2], [3, 4]]]], dtype), argmax, x.shape)
    assert dx.dtype == dtype and dx.tolist() == [[[[0, 0, -2, 0], [1, 0, 0, 0], [0, 0, 4, 0], [3, 0, 0, 0]]]]
    # By hand: three windows of three cells over 1 3 2, padded by one cell to each side. All share the 3.
    y, argmax = maxpool2d_forward(np.array([[[[1, 3, 2]]]], dtype), (1, 3), stride=1, padding=(0, 1))
    assert y.tolist() == [[[[3, 3, 3]]]] and argmax.tolist() == [[[[1, 1, 1]]]]
    assert maxpool2d_backward(np.array([[[[1, -2, 4]]]], dtype), argmax, (1, 1, 1, 3)).tolist() == [[[[0, 3, 0]]]]
    # The padding does not count as zero: it never wins over negative numbers, nor over -inf.
    y, argmax = maxpool2d_forward(np.array([[[[-inf, -1]]]], dtype), 2, stride=1, padding=1)
    assert y.tolist() == [[[[-inf, -1, -1], [-inf, -1, -1]]]] and argmax.tolist() == [[[[0, 1, 1], [0, 1, 1]]]]


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries(), seed=seeds)
def test_equals_oracle(dtype, geometry, seed):
    shape, options = geometry
    x = images(seed, shape, dtype)
    y, argmax = maxpool2d_forward(x, **options)
    expected_y, expected_argmax = oracles.maxpool2d_forward(x, *options.values())
    assert equal(y, expected_y) and equal(argmax, expected_argmax)
    dy = small_integers(seed, y.shape, dtype)
    assert equal(maxpool2d_backward(dy, argmax, shape), oracles.maxpool2d_backward(dy, argmax, shape))


@given(seed=seeds, planes=st.tuples(*[st.integers(1, 6)] * 4))
def test_backward_takes_any_cells(seed, planes):
    """Not only those that a forward pass could have chosen."""
    H, W, OH, OW = planes
    x_shape, dy = (2, 3, H, W), small_integers(seed, (2, 3, OH, OW), np.float32)
    argmax = np.random.default_rng(seed).integers(0, H * W, dy.shape)
    for kind in (np.int64, np.int32, np.uint8):
        assert equal(maxpool2d_backward(dy, argmax.astype(kind), x_shape), oracles.maxpool2d_backward(dy, argmax, x_shape))


@given(geometry=geometries(), seed=seeds)
def test_gradient_is_the_jacobian(geometry, seed):
    """Central differences of every element. Values are distinct integers, so a step of 1/4 changes no winner: exact."""
    (_, _, H, W), options = geometry
    x = np.random.default_rng(seed).permutation(2 * H * W).astype(float).reshape(1, 2, H, W)
    y, argmax = maxpool2d_forward(x, **options)
    dy = small_integers(seed, y.shape, np.float64)
    dx = maxpool2d_backward(dy, argmax, x.shape)
    steps = 0.25 * np.eye(x.size).reshape(-1, *x.shape[1:])         # a batch with one cell moved in each image
    above, below = maxpool2d_forward(x + steps, **options)[0], maxpool2d_forward(x - steps, **options)[0]
    assert ((dy * (above - below)).sum((1, 2, 3)) / 0.5 == dx.ravel()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries(), seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN; what lies around what is read are larger numbers; both ways back agree."""
    shape, options = geometry
    N = shape[0]
    x = images(2 * (seed // 2), shape, dtype)                     # without NaN, which marks what is not written
    expected, cells = maxpool2d_forward(x, **options)
    dy = small_integers(seed, expected.shape, dtype)
    operation = cpu.MaxPool2d(shape[1:], *list(options.values())[:4], expected.shape[1:], dtype)
    operation.reserve(N + 1)
    operation.argmax.array[...] = -7

    y, dx = (filled_buffer(N, a.shape[1:], dtype, np.nan) for a in (expected, x))
    x, dy = (filled_buffer(N, a.shape[1:], dtype, 99, a) for a in (x, dy))
    before = x.array.copy(), dy.array.copy()
    run(operation.forward(N, y, x, ()))
    saved = y.array.copy()
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    run(operation.backward(N, None, (), dy, x, y, (), ()))               # nothing asked for
    assert equal(y.view(N), expected) and equal(dx.view(N), maxpool2d_backward(dy.view(N), cells, shape))
    assert equal(operation.argmax.view(N), cells.astype(np.int32)) and (operation.argmax.array != -7).sum() == cells.size
    for written in (y, dx):
        assert np.isnan(written.array).sum() == written.zeros - written.view(N).size
    assert equal(x.array, before[0]) and equal(dy.array, before[1]) and equal(y.array, saved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    x = images(1, (2, 3, 9, 8), dtype)
    y, argmax = maxpool2d_forward(x, 3, stride=2)
    dy = small_integers(1, y.shape, dtype)

    assert all(equal(a, b) for a, b in zip(maxpool2d_forward(awkward(x), 3, stride=2), (y, argmax), strict=True))
    assert equal(maxpool2d_backward(awkward(dy), awkward(argmax), x.shape), maxpool2d_backward(dy, argmax, x.shape))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 0, 4, 4), (1, 1, 1, 1)])
def test_smallest_shapes(shape):
    y, argmax = maxpool2d_forward(np.ones(shape, np.float32), 1)
    assert equal(y, np.ones(shape, np.float32)) and argmax.shape == shape
    assert equal(maxpool2d_backward(y, argmax, shape), y)


@given(geometry=geometries(), seed=seeds)
def test_any_number_of_threads_gives_equal_bits(geometry, seed):
    shape, options = geometry
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    results = []
    for _ in one_and_all_threads():
        y, argmax = maxpool2d_forward(x, **options)
        dy = np.random.default_rng([seed, 1]).standard_normal(y.shape, np.float32)
        operation = cpu.MaxPool2d(shape[1:], *list(options.values())[:4], y.shape[1:], x.dtype)
        operation.reserve(len(x))
        packed, dx = cpu.Buffer(len(x), y.shape[1:], x.dtype), cpu.Buffer(len(x), shape[1:], x.dtype)
        run(operation.forward(len(x), packed, cpu.Buffer.holding(x), ()))
        run(operation.backward(len(x), dx, (), cpu.Buffer.holding(dy), None, None, (), ()))
        results.append((y, argmax, maxpool2d_backward(dy, argmax, shape), dx.view(len(x))))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True))
    assert equal(*results[0][2:])                                  # both kernels of the way back add in the same order


@pytest.mark.parametrize("options, error, message", [
    ({"x": np.ones((1, 4, 4), np.float32)}, ValueError, r"x: expected shape \(N, C, H, W\), got shape \(1, 4, 4\)"),
    ({"x": np.ones((1, 1, 4, 4), int)}, TypeError, "x: expected a float32 or float64 array, got ndarray of dtype int64"),
    ({"kernel_size": 0}, ValueError, "kernel_size: expected an int or a pair of ints >= 1, got 0"),
    ({"kernel_size": 1.5}, TypeError, "kernel_size: .*got 1.5"),
    ({"stride": (1, 0)}, ValueError, "stride: .*>= 1, got"),
    ({"padding": -1}, ValueError, "padding: .*>= 0, got -1"),
    ({"dilation": "2"}, TypeError, "dilation: .*got '2'"),
    ({"padding": 2}, ValueError, "padding: expected at most half the window"),
    ({"kernel_size": 10**15, "padding": 5 * 10**14}, ValueError, "kernel_size: expected an int <= 2147483647, got 10{15}"),
    ({"kernel_size": 10**9, "padding": 5 * 10**8, "stride": 1}, ValueError, "padding: expected at most 64 for an input of 4"),
    ({"kernel_size": 2, "padding": 5 * 10**8, "dilation": 10**9 - 1, "stride": 1}, ValueError, "x: expected every window to cover"),
    ({"kernel_size": 5}, ValueError, "x: expected an output of at least 1x1, got 0x0 from an input of 4x4"),
    ({"x": np.ones((1, 1, 1, 4), np.float32), "kernel_size": (2, 1), "padding": (1, 0), "dilation": (2, 1)}, ValueError,
     "x: expected every window to cover a cell, got one with padding only from an input of 1x4"),
])
def test_errors_of_forward(options, error, message):
    with pytest.raises(error, match=message):
        maxpool2d_forward(**{"x": np.ones((1, 1, 4, 4), np.float32), "kernel_size": 2} | options)


@pytest.mark.parametrize("options, error, message", [
    ({"dy": np.ones((1, 2, 2), np.float32)}, ValueError, r"dy: expected shape \(N, C, OH, OW\), got shape"),
    ({"dy": np.ones((1, 1, 2, 2), int)}, TypeError, "dy: expected a float32 or float64 array"),
    ({"dy": np.ones((1, 2, 2, 2), np.float32)}, ValueError, r"dy: .*N, C = 1, 1, as x_shape says, got shape \(1, 2, 2, 2\)"),
    ({"argmax": np.zeros((1, 1, 2, 2))}, TypeError, "argmax: expected an array of ints, got ndarray of dtype float64"),
    ({"argmax": np.zeros((1, 1, 2, 1), int)}, ValueError, r"argmax: expected shape \(1, 1, 2, 2\), that of dy"),
    ({"argmax": np.array([[[[0, 1], [2, -1]]]])}, IndexError, r"argmax: .*0 to 15 .*4x4, got -1 at position \(0, 0, 1, 1\)"),
    ({"argmax": np.array([[[[0, 16], [2, 3]]]])}, IndexError, r"argmax: .*got 16 at position \(0, 0, 0, 1\)"),
    ({"x_shape": (1, 4, 4)}, ValueError, r"x_shape: expected four sizes \(N, C, H, W\), got \(1, 4, 4\)"),
    ({"x_shape": 4}, TypeError, r"x_shape: expected four sizes \(N, C, H, W\), got 4"),
    ({"x_shape": (1, 1, 4, 4.0)}, TypeError, "x_shape: expected an int >= 0, got 4.0"),
])
def test_errors_of_backward(options, error, message):
    arguments = {"dy": np.ones((1, 1, 2, 2), np.float32), "argmax": np.zeros((1, 1, 2, 2), int), "x_shape": (1, 1, 4, 4)}
    with pytest.raises(error, match=message):
        maxpool2d_backward(**arguments | options)


def test_planes_too_large_for_the_index():
    with pytest.raises(ValueError, match="x: expected planes of less than 2\\*\\*31 cells, got 65536x32768"):
        cpu.MaxPool2d((1, 2**16, 2**15), (2, 2), (2, 2), (0, 0), (1, 1), (1, 2**15, 2**14), np.dtype(np.float32))


def test_float32_kernels_hold_no_double():
    x = np.ones((1, 2, 4, 4), np.float32)
    y, argmax = maxpool2d_forward(x, 2)
    maxpool2d_backward(y, argmax, x.shape)
    operation, dx = cpu.MaxPool2d((2, 4, 4), *[(2, 2)] * 2, (0, 0), (1, 1), (2, 2, 2), x.dtype), cpu.Buffer(1, (2, 4, 4), x.dtype)
    operation.reserve(1)
    run(operation.backward(1, dx, (), cpu.Buffer.holding(y), None, None, (), ()))
    for kernel in (kernels.maxpool2d_forward, kernels.maxpool2d_backward, kernels.maxpool2d_scatter):
        assert not double_operations(kernel)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(half_kernel=True), seed=seeds, channels_last=st.booleans())
def test_equals_torch(dtype, geometry, seed, channels_last):
    import torch
    shape, options = geometry
    x = images(seed, shape, dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensor = torch.from_numpy(x).contiguous(memory_format=layout).requires_grad_()
    expected, indices = torch.nn.functional.max_pool2d(tensor, **options, return_indices=True)
    y, argmax = maxpool2d_forward(x, **options)
    assert equal(y, expected.detach().numpy()) and equal(argmax, indices.numpy())
    dy = small_integers(seed, y.shape, dtype)
    expected.backward(torch.from_numpy(dy))
    assert equal(maxpool2d_backward(dy, argmax, shape), tensor.grad.numpy())


def test_where_the_cells_lie_is_not_where_y_lies():
    """Samples of bfloat16 buffers have other gaps: those of 256 elements, as here, lie further apart."""
    from nbcnn.kernels import cpu
    rng, n = np.random.default_rng(0), 64
    x, dy = (rng.integers(-9, 10, (n, 16, size, size)).astype(np.float32) for size in (8, 4))
    found = []
    for kind in (cpu.Buffer, cpu.BFloat16Buffer):
        operation = cpu.MaxPool2d((16, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1), (16, 4, 4), np.float32)
        operation.reserve(n)
        xs, dys, y, dx = kind.holding(x), kind.holding(dy), kind(n, (16, 4, 4), np.float32), kind(n, (16, 8, 8), np.float32)
        cpu.run(operation.forward(n, y, xs, ()) + operation.backward(n, dx, (), dys, xs, y, (), ()))
        found.append([y.view(n).copy(), dx.view(n).copy(), operation.winners(n)])
    assert y.step != operation.argmax.step and all((a == b).all() for a, b in zip(*found, strict=True))
