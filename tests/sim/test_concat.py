"""Concatenation on a simulated GPU: equal to NumPy's."""
import numpy as np
import pytest
from test_concat import DTYPES, numbers

from nbcnn.kernels import concat_backward, concat_forward, cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

from arrays import equal

pytestmark = pytest.mark.sim

GEOMETRIES = pytest.mark.parametrize("geometry", [
    (2, (3, 1, 2), (2, 3)), (3, (4, 5), ()), (1, (1, 1), (1, 1)), (0, (2, 3), (2, 2)), (2, (0, 3), (2, 2))])


@GEOMETRIES
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_numpy(dtype, geometry):
    xs = numbers(0, geometry, dtype)
    y = concat_forward(map(to_device, xs))
    assert equal(to_host(y), np.concatenate(xs, 1))
    assert all(map(equal, map(to_host, concat_backward(y, geometry[1])), xs))


@GEOMETRIES
@pytest.mark.parametrize("dtype", DTYPES)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry):
    """Of one sample more nothing is read or written; an input that nobody needs the gradient of gets none."""
    N, channels, size = geometry
    values = numbers(1, (N + 1, channels, size), dtype)
    joined, shapes = np.concatenate(values, 1), tuple((C, *size) for C in channels)
    x, dy = tuple(cuda.Buffer.holding(to_device(a)) for a in values), cuda.Buffer.holding(to_device(joined))
    y, *dx = (cuda.Buffer.holding(to_device(np.full_like(a, 99))) for a in (joined, *values))
    operation = cuda.Concat(shapes, dtype)
    cuda.run(operation.forward(N, y, x, ()))
    cuda.run(operation.backward(N, (None, *dx[1:]), (), dy, x, y, (), ()))
    assert (to_host(dx[0].view(N + 1)) == 99).all()
    cuda.run(operation.backward(N, tuple(dx), (), dy, x, y, (), ()))
    assert operation.backward(N, (None,) * len(dx), (), dy, x, y, (), ()) == []
    for written, expected in zip((y, *dx), (joined, *values), strict=True):
        assert equal(to_host(written.view(N)), expected[:N]) and (to_host(written.view(N + 1))[N:] == 99).all()
    assert all(equal(to_host(a.view(N + 1)), b) for a, b in zip((*x, dy), (*values, joined), strict=True))


def test_strided_arrays():
    x, = numbers(2, (2, (3,), (4, 5)), np.float32)
    view, host = transposed(to_device(x), (3, 2, 1, 0)), x.transpose()
    assert equal(to_host(concat_forward([view, view])), np.concatenate([host, host], 1))
    first, second = concat_backward(view, (1, 3))
    assert equal(to_host(first), host[:, :1]) and equal(to_host(second), host[:, 1:])


def test_errors():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"^xs\[0\]: expected device arrays, as xs\[1\] is one"):
        concat_forward([x, to_device(x)])
