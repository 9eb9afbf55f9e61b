"""Adaptive average pooling on a simulated GPU: equal to the CPU's, in every bit."""
import numpy as np
import pytest

from nbcnn.kernels import adaptive_avgpool2d_backward, adaptive_avgpool2d_forward, cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

from arrays import equal

pytestmark = pytest.mark.sim


def normal(seed, shape, dtype=np.float32):
    """Numbers whose sums and quotients round, so that another order shows."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape, output_size", [
    ((2, 2, 4, 6), (2, 3)), ((1, 2, 5, 7), (3, 4)), ((1, 2, 3, 2), (5, 7)), ((2, 1, 5, 3), (1, 8)), ((3, 1, 1, 1), (2, 2)),
    ((0, 2, 4, 4), (2, 2))])
def test_equals_cpu(dtype, shape, output_size):
    """The public functions, and the operation in buffers that hold another image: nothing but its outputs is written."""
    x, dy = normal(0, shape, dtype), normal(1, (*shape[:2], *output_size), dtype)
    x.flat[3::17] = np.nan
    y, dx = adaptive_avgpool2d_forward(x, output_size), adaptive_avgpool2d_backward(dy, shape)
    assert equal(to_host(adaptive_avgpool2d_forward(to_device(x), output_size)), y)
    assert equal(to_host(adaptive_avgpool2d_backward(to_device(dy), shape)), dx)

    N, operation = len(x), cuda.AdaptiveAvgPool2d(shape[1:], y.shape[1:], dtype)
    x, dy = (cuda.Buffer.holding(to_device(np.concatenate([a, np.ones((1, *a.shape[1:]), dtype)]))) for a in (x, dy))
    written = [cuda.Buffer.holding(to_device(np.full((N + 1, *a.shape[1:]), 99, dtype))) for a in (y, dx)]
    cuda.run(operation.forward(N, written[0], x, ()))
    assert operation.backward(N, None, (), dy, x, written[0], (), ()) == []
    cuda.run(operation.backward(N, written[1], (), dy, x, written[0], (), ()))
    for buffer, expected in zip(written, (y, dx), strict=True):
        assert equal(to_host(buffer.view(N)), expected) and (to_host(buffer.view(N + 1))[N] == 99).all()


def test_strided_arrays():
    x, dy = normal(4, (5, 6, 2, 1)), normal(5, (2, 3, 2, 1))
    y = adaptive_avgpool2d_forward(transposed(to_device(x), (3, 2, 1, 0)), 4)
    assert equal(to_host(y), adaptive_avgpool2d_forward(x.transpose(), 4))
    dx = adaptive_avgpool2d_backward(transposed(to_device(dy), (3, 2, 1, 0)), (1, 2, 6, 5))
    assert equal(to_host(dx), adaptive_avgpool2d_backward(dy.transpose(), (1, 2, 6, 5)))
