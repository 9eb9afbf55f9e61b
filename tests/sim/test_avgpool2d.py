"""Average pooling on a simulated GPU: equal to the CPU's, in every bit."""
import numpy as np
import pytest

from nbcnn.kernels import cuda
from nbcnn.kernels.avgpool2d import (
    avgpool2d_backward,
    avgpool2d_forward,
    global_avgpool2d_backward,
    global_avgpool2d_forward,
)
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

from arrays import equal

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
GEOMETRIES = [      # shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    ((2, 2, 4, 6), (2, 2), (2, 2), (0, 0), False, True, None),
    ((1, 2, 5, 7), (2, 2), (2, 2), (0, 0), False, True, None),          # a last row and column that no window covers
    ((1, 2, 5, 7), (2, 3), (2, 3), (0, 1), True, True, None),           # a last window that ends outside
    ((1, 2, 4, 6), (3, 3), (2, 2), (1, 1), True, True, None),           # and whose padding counts
    ((1, 2, 4, 6), (3, 3), (2, 2), (1, 1), True, False, None),          # and does not
    ((2, 1, 5, 6), (3, 3), (1, 1), (1, 1), False, False, None),         # windows that overlap
    ((1, 2, 7, 5), (3, 2), (2, 1), (1, 1), False, True, None),
    ((1, 2, 7, 5), (3, 2), (2, 1), (1, 1), True, False, 5),             # a divisor for all
    ((1, 1, 6, 9), (1, 2), (3, 4), (0, 1), False, True, None),          # gaps between windows
    ((1, 2, 5, 5), (3, 5), (1, 1), (0, 0), False, True, None),          # one window in a row, which overlaps that below
    ((3, 1, 1, 1), (1, 1), (1, 1), (0, 0), False, True, None),
]


def normal(seed, shape, dtype):
    """Numbers whose sums and quotients round, so that another order shows."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override", GEOMETRIES)
def test_equals_cpu(dtype, shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """The public functions, and the operation in buffers that hold another image: nothing but its outputs is written."""
    x = normal(0, shape, dtype)
    x.flat[3::17] = np.nan
    options = dict(stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
                   divisor_override=divisor_override)
    y = avgpool2d_forward(x, kernel, **options)
    dy = normal(1, y.shape, dtype)
    dx = avgpool2d_backward(dy, shape, kernel, **options)
    assert equal(to_host(avgpool2d_forward(to_device(x), kernel, **options)), y)
    assert equal(to_host(avgpool2d_backward(to_device(dy), shape, kernel, **options)), dx)

    N = len(x)
    operation = cuda.AvgPool2d(shape[1:], kernel, stride, padding, count_include_pad, divisor_override, y.shape[1:], dtype)
    operation.reserve(N + 1)
    x, dy = (cuda.Buffer.holding(to_device(np.concatenate([a, a[:1]]))) for a in (x, dy))
    written = [cuda.Buffer.holding(to_device(np.full((N + 1, *s[1:]), 99, dtype))) for s in (y.shape, shape)]
    before = to_host(x.array), to_host(dy.array)
    cuda.run(operation.forward(N, written[0], x, ()))
    assert operation.backward(N, None, (), dy, x, written[0], (), ()) == []
    cuda.run(operation.backward(N, written[1], (), dy, x, written[0], (), ()))
    for buffer, expected in zip(written, (y, dx), strict=True):
        assert equal(to_host(buffer.view(N)), expected) and (to_host(buffer.view(N + 1))[N] == 99).all()
    assert equal(to_host(x.array), before[0]) and equal(to_host(dy.array), before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 1)])
def test_global_equals_cpu(dtype, size):
    x, dy = normal(2, (2, 3, *size), dtype), normal(3, (2, 3, 1, 1), dtype)
    assert equal(to_host(global_avgpool2d_forward(to_device(x))), global_avgpool2d_forward(x))
    assert equal(to_host(global_avgpool2d_backward(to_device(dy), x.shape)), global_avgpool2d_backward(dy, x.shape))


def test_strided_arrays_and_empty_ones():
    x, dy = normal(4, (5, 6, 2, 1), np.float32), normal(5, (2, 3, 2, 1), np.float64)
    y = avgpool2d_forward(transposed(to_device(x), (3, 2, 1, 0)), 2)
    assert equal(to_host(y), avgpool2d_forward(x.transpose(), 2))
    dx = avgpool2d_backward(transposed(to_device(dy), (3, 2, 1, 0)), (1, 2, 6, 5), 2)
    assert equal(to_host(dx), avgpool2d_backward(dy.transpose(), (1, 2, 6, 5), 2))
    y = avgpool2d_forward(to_device(np.ones((0, 3, 4, 4))), 2)
    assert y.shape == (0, 3, 2, 2) and avgpool2d_backward(y, (0, 3, 4, 4), 2).shape == (0, 3, 4, 4)


def test_errors():
    with pytest.raises(ValueError, match=r"dy: expected shape \(1, 1, 1, 2\), that of the output .* got shape \(1, 1, 2, 2\)"):
        avgpool2d_backward(to_device(np.ones((1, 1, 2, 2))), (1, 1, 3, 4), 2)
