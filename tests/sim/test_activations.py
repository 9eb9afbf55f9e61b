"""Activations on a simulated GPU: equal to the CPU's, in every bit where nothing is rounded."""
import numpy as np
import pytest

from nbcnn.kernels import cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

import arrays
from activations import each

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")]

DTYPES = [np.float32, np.float64]
def values(seed, shape, dtype):
    """Small numbers, zeros of both signs, infinities and NaN."""
    return np.random.default_rng(seed).choice([-2, -1, -0.5, -0.0, 0, 0.5, 1, 2, np.inf, -np.inf, np.nan], shape).astype(dtype)


def equal(a, b):
    """The same, and zeros of the same sign."""
    return arrays.equal(a, b) and (np.signbit(a) == np.signbit(b))[~np.isnan(b)].all()


def agree(case, a, b):
    """Equal; with roundings, a few of them apart: b is of the CPU."""
    if case.exact:
        return equal(a, b)
    small = 8 * np.finfo(b.dtype).eps       # gelu's derivative is 0 near -0.75: it is a sum of terms of at most 1, here times 2
    return (equal(np.where(np.isfinite(a), 0, a), np.where(np.isfinite(b), 0, b))
            and np.allclose(a, b, rtol=small, atol=2 * small, equal_nan=True) and equal(a[a == 0], b[b == 0]))


@each
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 0), (5, 7), (2, 3, 4), (2, 3, 4, 5)])
def test_equals_cpu(case, dtype, shape):
    x, dy = values(0, shape, dtype), values(1, shape, dtype)
    dy[np.isinf(dy)] = 3        # an infinity less what is rounded is no number
    y, expected = case.forward(to_device(x)), case.forward(x)
    dx = case.backward(to_device(dy), to_device(x), to_device(expected))
    assert agree(case, to_host(y), expected) and agree(case, to_host(dx), case.backward(dy, x, expected))


@each
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 5), (33,)])
def test_operation_writes_its_outputs_and_nothing_else(case, dtype, shape):
    x, dy = values(2, (3, *shape), dtype), values(3, (3, *shape), dtype)
    x, dy = (cuda.Buffer.holding(to_device(a)) for a in (x, dy))
    y, dx = (cuda.Buffer.holding(to_device(np.full((3, *shape), 99, dtype))) for _ in range(2))
    before = to_host(x.array), to_host(dy.array)
    operation = case.operation(cuda, shape, dtype)
    operation.reserve(3)
    cuda.run(operation.forward(2, y, x, ()))
    saved = to_host(y.array)
    assert operation.backward(2, None, (), dy, x, y, (), ()) == []
    cuda.run(operation.backward(2, dx, (), dy, x, y, (), ()))
    xs, dys, ys, dxs = (to_host(buffer.view(2)) for buffer in (x, dy, y, dx))
    assert agree(case, ys, case.forward(xs)) and agree(case, dxs, case.backward(dys, xs, ys))
    assert (to_host(y.view(3))[2] == 99).all() and (to_host(dx.view(3))[2] == 99).all()
    assert equal(to_host(x.array), before[0]) and equal(to_host(dy.array), before[1]) and equal(to_host(y.array), saved)


@each
def test_strided_arrays(case):
    x, dy = values(4, (2, 3, 4, 5), np.float32), values(5, (5, 4, 3, 2), np.float32)
    view = transposed(to_device(x), (3, 2, 1, 0))
    y, host = case.forward(view), x.transpose()
    assert agree(case, to_host(y), case.forward(host))
    dx = case.backward(to_device(dy), view, y)
    assert agree(case, to_host(dx), case.backward(dy, host, to_host(y)))
    dx = case.backward(view, to_device(dy), to_device(dy))
    assert agree(case, to_host(dx), case.backward(host, dy, dy))


@each
@pytest.mark.parametrize("dy, y, error, message", [
    (np.ones((2, 3), np.float32), to_device(np.ones((2, 3), np.float32)), TypeError, "^dy: expected device arrays, as {} is"),
    (to_device(np.ones((2, 3), np.float32)), [[1.0]], TypeError, "^{}: expected device arrays, as dy"),
    (to_device(np.ones((2, 3), int)), to_device(np.ones((2, 3))), TypeError, "dy: expected a float32 or .* int64"),
    (to_device(np.ones((2, 3), np.float32)), to_device(np.ones((2, 3))), TypeError, "dy: expected float64, the dtype of {}"),
    (to_device(np.ones((2, 3))), to_device(np.ones((2, 1))), ValueError, r"dy: expected shape \(2, 1\), .* got shape \(2, 3\)"),
])
def test_errors(case, dy, y, error, message):
    with pytest.raises(error, match=message.format(case.reads)):
        case.backward(dy, y, y)
