"""The sum of inputs on a simulated GPU: equal to the CPU's, in every bit."""
import numpy as np
import pytest
from test_add import DTYPES, numbers

from nbcnn.kernels import add_backward, add_forward, cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

from arrays import equal

pytestmark = pytest.mark.sim

GEOMETRIES = pytest.mark.parametrize("geometry", [(2, 2, (3, 2, 3)), (3, 4, (5,)), (0, 2, (2, 3, 2)), (2, 3, (0, 2, 2))])


@GEOMETRIES
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_cpu(dtype, geometry):
    xs, count = numbers(0, geometry, dtype), geometry[1]
    y = add_forward(map(to_device, xs))
    assert equal(to_host(y), add_forward(xs))
    dxs = add_backward(y, count)
    assert len(dxs) == count and all(equal(to_host(dx), add_forward(xs)) for dx in dxs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operation_writes_its_outputs_and_nothing_else(dtype):
    """Of one sample more nothing is read or written; an input that nobody needs the gradient of gets none."""
    values = numbers(1, (3, 3, (2, 2, 3)), dtype)
    *x, dy = (cuda.Buffer.holding(to_device(a)) for a in (*values, values[0]))
    y, *dx = (cuda.Buffer.holding(to_device(np.full_like(values[0], 99))) for _ in range(4))
    operation = cuda.Add(((2, 2, 3),) * 3, dtype)
    cuda.run(operation.forward(2, y, tuple(x), ()))
    cuda.run(operation.backward(2, (None, *dx[1:]), (), dy, tuple(x), y, (), ()))
    assert (to_host(dx[0].view(3)) == 99).all() and operation.backward(2, (None,) * 3, (), dy, tuple(x), y, (), ()) == []
    for written, expected in zip((y, *dx[1:]), (add_forward(values), values[0], values[0]), strict=True):
        assert equal(to_host(written.view(2)), expected[:2]) and (to_host(written.view(3))[2:] == 99).all()
    assert all(equal(to_host(a.view(3)), b) for a, b in zip((*x, dy), (*values, values[0]), strict=True))


def test_strided_arrays():
    x, other = numbers(2, (2, 2, (3, 4, 5)), np.float32)
    views = [transposed(to_device(a), (3, 2, 1, 0)) for a in (x, other)]
    assert equal(to_host(add_forward(views)), x.transpose() + other.transpose())
    assert equal(to_host(add_backward(views[0], 2)[1]), x.transpose())


def test_errors():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"^xs\[0\]: expected device arrays, as xs\[1\] is one"):
        add_forward([x, to_device(x)])
