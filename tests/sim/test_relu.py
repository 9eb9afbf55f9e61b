"""ReLU on a simulated GPU: equal to the CPU's, in every bit."""
import numpy as np
import pytest

from nbcnn.kernels import cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed
from nbcnn.kernels.relu import relu_backward, relu_forward

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]


def values(seed, shape, dtype):
    """Small integers, zeros of both signs, infinities and NaN."""
    return np.random.default_rng(seed).choice([-2, -1, -0.0, 0, 1, 2, np.inf, -np.inf, np.nan], shape).astype(dtype)


def equal(a, b):
    """Same shape, dtype and values, NaN at the same places, zeros of the same sign."""
    return (a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
            and (np.signbit(a) == np.signbit(b)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 0), (5, 7), (2, 3, 4), (2, 3, 4, 5)])
def test_equals_cpu(dtype, shape):
    x, dy = values(0, shape, dtype), values(1, shape, dtype)
    y = relu_forward(to_device(x))
    dx = relu_backward(to_device(dy), y)
    assert equal(to_host(y), relu_forward(x)) and equal(to_host(dx), relu_backward(dy, relu_forward(x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 5), (33,)])
def test_operation_writes_its_outputs_and_nothing_else(dtype, shape):
    x, dy = values(2, (3, *shape), dtype), values(3, (3, *shape), dtype)
    x, dy = (cuda.Buffer.holding(to_device(a)) for a in (x, dy))
    y, dx = (cuda.Buffer.holding(to_device(np.full((3, *shape), 99, dtype))) for _ in range(2))
    before = to_host(x.array), to_host(dy.array)
    operation = cuda.ReLU(shape, dtype)
    operation.reserve(3)
    cuda.run(operation.forward(2, y, x, ()))
    saved = to_host(y.array)
    assert operation.backward(2, None, (), dy, x, y, (), ()) == []
    cuda.run(operation.backward(2, dx, (), dy, x, y, (), ()))
    assert equal(to_host(y.view(2)), relu_forward(to_host(x.view(2))))
    assert equal(to_host(dx.view(2)), relu_backward(to_host(dy.view(2)), to_host(y.view(2))))
    assert (to_host(y.view(3))[2] == 99).all() and (to_host(dx.view(3))[2] == 99).all()
    assert equal(to_host(x.array), before[0]) and equal(to_host(dy.array), before[1]) and equal(to_host(y.array), saved)


def test_strided_arrays():
    x, dy = values(4, (2, 3, 4, 5), np.float32), values(5, (5, 4, 3, 2), np.float32)
    view = transposed(to_device(x), (3, 2, 1, 0))
    y = relu_forward(view)
    assert equal(to_host(y), relu_forward(x.transpose()))
    assert equal(to_host(relu_backward(to_device(dy), y)), relu_backward(dy, relu_forward(x.transpose())))
    assert equal(to_host(relu_backward(view, to_device(dy))), relu_backward(x.transpose(), dy))


@pytest.mark.parametrize("dy, y, error, message", [
    (np.ones((2, 3), np.float32), to_device(np.ones((2, 3), np.float32)), TypeError, "^dy: expected device arrays, as y"),
    (to_device(np.ones((2, 3), np.float32)), [[1.0]], TypeError, "^y: expected device arrays, as dy"),
    (to_device(np.ones((2, 3), int)), to_device(np.ones((2, 3))), TypeError, "dy: expected a float32 or .* int64"),
    (to_device(np.ones((2, 3), np.float32)), to_device(np.ones((2, 3))), TypeError, "dy: expected float64, the dtype of y"),
    (to_device(np.ones((2, 3))), to_device(np.ones((2, 1))), ValueError, r"dy: expected shape \(2, 1\), .* got shape \(2, 3\)"),
])
def test_errors(dy, y, error, message):
    with pytest.raises(error, match=message):
        relu_backward(dy, y)
