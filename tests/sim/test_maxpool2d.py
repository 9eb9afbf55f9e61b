"""Max pooling on a simulated GPU: equal to the CPU's, in every bit."""
import numpy as np
import pytest

from nbcnn.kernels import cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed
from nbcnn.kernels.maxpool2d import maxpool2d_backward, maxpool2d_forward

from arrays import equal

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
GEOMETRIES = [      # shape, kernel, stride, padding, dilation, ceil_mode
    ((2, 2, 4, 6), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((1, 2, 5, 7), (2, 2), (2, 2), (0, 0), (1, 1), False),              # a last row and column that no window covers
    ((1, 2, 5, 7), (2, 3), (2, 3), (0, 1), (1, 1), True),               # a last window that ends outside
    ((2, 1, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1), False),              # windows that overlap
    ((1, 2, 7, 5), (3, 2), (2, 1), (1, 1), (1, 2), False),
    ((1, 1, 9, 8), (3, 2), (2, 3), (2, 1), (2, 3), False),              # dilated, with padding
    ((1, 1, 6, 9), (1, 2), (3, 4), (0, 1), (1, 1), False),              # gaps between windows
    ((1, 2, 5, 5), (3, 5), (1, 1), (0, 0), (1, 1), False),              # one window in a row, which overlaps that below
    ((3, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
]


def images(seed, shape, dtype):
    """Small integers, so that ties are common, with infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, shape).astype(dtype)
    x[rng.random(shape) < 0.3] = -np.inf
    x[rng.random(shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, kernel, stride, padding, dilation, ceil_mode", GEOMETRIES)
def test_equals_cpu(dtype, shape, kernel, stride, padding, dilation, ceil_mode):
    """The public functions, and the operation in buffers that hold another image: nothing but its outputs is written."""
    x, options = images(0, shape, dtype), dict(stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
    y, argmax = maxpool2d_forward(x, kernel, **options)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)        # so that another order shows
    dx = maxpool2d_backward(dy, argmax, shape)
    device_y, device_argmax = maxpool2d_forward(to_device(x), kernel, **options)
    assert equal(to_host(device_y), y) and equal(to_host(device_argmax), argmax)
    assert equal(to_host(maxpool2d_backward(to_device(dy), device_argmax, shape)), dx)

    N = len(x)
    operation = cuda.MaxPool2d(shape[1:], kernel, stride, padding, dilation, y.shape[1:], dtype)
    operation.reserve(N + 1)
    cuda.write(operation.argmax.array, -7)
    x, dy = (cuda.Buffer.holding(to_device(np.concatenate([a, a[:1]]))) for a in (x, dy))
    written = [cuda.Buffer.holding(to_device(np.full((N + 1, *s[1:]), 99, dtype))) for s in (y.shape, shape)]
    before = to_host(x.array), to_host(dy.array)
    cuda.run(operation.forward(N, written[0], x, ()))
    assert operation.backward(N, None, (), dy, x, written[0], (), ()) == []
    cuda.run(operation.backward(N, written[1], (), dy, x, written[0], (), ()))
    for buffer, expected in zip(written, (y, dx), strict=True):
        assert equal(to_host(buffer.view(N)), expected) and (to_host(buffer.view(N + 1))[N] == 99).all()
    won = to_host(operation.argmax.array)
    assert won.dtype == np.int32 and equal(won[:y.size], argmax.ravel().astype(np.int32)) and (won[y.size:] == -7).all()
    assert equal(to_host(operation.winners(N)), argmax)
    assert equal(to_host(x.array), before[0]) and equal(to_host(dy.array), before[1])


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
def test_backward_takes_any_cells(kind):
    rng = np.random.default_rng(2)
    dy, argmax = rng.standard_normal((2, 3, 2, 4)).astype(np.float32), rng.integers(0, 12, (2, 3, 2, 4)).astype(kind)
    dx = maxpool2d_backward(to_device(dy), to_device(argmax), (2, 3, 3, 4))
    assert equal(to_host(dx), maxpool2d_backward(dy, argmax, (2, 3, 3, 4)))


def test_strided_arrays_and_empty_ones():
    x = images(3, (5, 6, 2, 1), np.float32)
    y, argmax = maxpool2d_forward(transposed(to_device(x), (3, 2, 1, 0)), 2)
    expected = maxpool2d_forward(x.transpose(), 2)
    assert equal(to_host(y), expected[0]) and equal(to_host(argmax), expected[1])
    dy = np.random.default_rng(4).standard_normal((2, 3, 2, 1))
    argmax = to_device(expected[1].transpose().copy())
    dx = maxpool2d_backward(transposed(to_device(dy), (3, 2, 1, 0)), transposed(argmax, (3, 2, 1, 0)), (1, 2, 6, 5))
    assert equal(to_host(dx), maxpool2d_backward(dy.transpose(), expected[1], (1, 2, 6, 5)))
    empty = to_device(np.ones((0, 3, 4, 4)))
    y, argmax = maxpool2d_forward(empty, 2)
    assert y.shape == argmax.shape == (0, 3, 2, 2) and maxpool2d_backward(y, argmax, (0, 3, 4, 4)).shape == (0, 3, 4, 4)


DY, ARGMAX = np.ones((1, 1, 2, 2)), np.array([[[[0, 3], [9, 11]]]])


@pytest.mark.parametrize("dy, argmax, error, message", [
    (DY, to_device(ARGMAX), TypeError, "^dy: expected device arrays, as argmax is one"),
    (to_device(DY), ARGMAX, TypeError, "^argmax: expected device arrays, as dy"),
    (to_device(DY), to_device(DY), TypeError, "argmax: expected an array of ints, got .* float64"),
    (to_device(DY), to_device(ARGMAX[:, :, :1]), ValueError, r"argmax: expected .* that of dy, got shape \(1, 1, 1, 2\)"),
    (to_device(DY), to_device(ARGMAX + 1), IndexError, r"cells from 0 to 11 of a plane of 3x4, got 12 at position \(0, 0, 1, 1\)"),
    (to_device(DY), to_device(ARGMAX - 1), IndexError, r"cells from 0 to 11 of a plane of 3x4, got -1 at position \(0, 0, 0, 0\)"),
])
def test_errors(dy, argmax, error, message):
    with pytest.raises(error, match=message):
        maxpool2d_backward(dy, argmax, (1, 1, 3, 4))
