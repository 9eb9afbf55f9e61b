"""The linear layer on a simulated GPU: equal to the CPU's, in every bit.

A block there has 3 x 3 results, and takes in 4 terms of their sums at a time.
"""
import numpy as np
import pytest

from nbcnn.kernels import cuda, linear_backward, linear_forward
from nbcnn.kernels.cuda import buffer, gradients, to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

from arrays import equal, integers

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1, 1), (3, 3, 4), (2, 4, 3), (5, 7, 4), (4, 8, 2), (3, 5, 9), (7, 2, 1), (0, 4, 3)]      # N, in, out


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """New memory is full of NaN: what is not written shows."""
    def garbage(shape, dtype):
        return to_device(np.full(shape, np.nan, dtype))
    for module, name in ((buffer, "allocate"), (buffer, "empty"), (gradients, "allocate")):
        monkeypatch.setattr(module, name, garbage)


def numbers(dtype, N, IN, OUT):
    return integers(0, (N, OUT), (N, IN), (OUT, IN), OUT, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_cpu(dtype, shape):
    dy, x, w, b = numbers(dtype, *shape)
    on_gpu = [to_device(a) for a in (dy, x, w, b)]
    assert equal(to_host(linear_forward(*on_gpu[1:])), linear_forward(x, w, b))
    assert equal(to_host(linear_forward(*on_gpu[1:3])), linear_forward(x, w))
    expected = linear_backward(dy, x, w)
    for name, a, e in zip(("dx", "dw", "db"), linear_backward(*on_gpu[:3]), expected, strict=True):
        assert equal(to_host(a), e), name
    dx, *others = linear_backward(*on_gpu[:3], need_dx=False)
    assert dx is None and all(map(equal, map(to_host, others), expected[1:]))


def test_nan_and_infinities():
    """In what reads them, and nowhere else."""
    dy, x, w, b = numbers(np.float32, 5, 7, 4)
    x[1, 2], x[3, 6], w[2, 4], dy[4, 1] = np.nan, np.inf, np.nan, -np.inf
    w[:, 6], dy[3], x[4], w[1] = 1, 2, 3, 1      # 0 times infinity is NaN
    assert equal(to_host(linear_forward(*map(to_device, (x, w, b)))), x @ w.T + b)
    dx, dw, db = map(to_host, linear_backward(*map(to_device, (dy, x, w))))
    assert equal(dw, dy.T @ x) and equal(db, dy.sum(0)) and equal(dx, dy @ w)


def test_nothing_but_the_outputs_is_written():
    """Buffers for four samples, of which three are computed."""
    dy, x, w, b = numbers(np.float64, 4, 5, 3)
    operation = cuda.Linear((5,), (3,), x.dtype)
    flat, read = (to_device(w.ravel()), to_device(b)), [cuda.Buffer.holding(to_device(a)) for a in (dy, x)]
    written = [cuda.Buffer.holding(to_device(np.full_like(a, 99))) for a in (dy, x)]
    targets = cuda.Gradients(operation, 3, (w.size, len(w)), x.dtype).targets
    cuda.run(operation.forward(3, written[0], read[1], flat))
    cuda.run(operation.backward(3, written[1], targets, *read, None, flat, (False, False)))
    for result, wanted in zip(written, (x @ w.T + b, dy @ w), strict=True):
        assert equal(to_host(result.view(4)), np.concatenate([wanted[:3], np.full_like(wanted[:1], 99)]))
    for array, values in zip((read[0].view(4), read[1].view(4), *flat), (dy, x, w.ravel(), b), strict=True):
        assert equal(to_host(array), values)


def test_gradients_without_a_bias():
    """Nothing is written where a bias would have its gradient."""
    dy, x, w, _ = numbers(np.float32, 5, 4, 4)
    operation = cuda.Linear((4,), (4,), x.dtype)
    gradients = cuda.Gradients(operation, 5, (w.size, len(w)), x.dtype)
    read = [cuda.Buffer.holding(to_device(a)) for a in (dy, x)]
    cuda.run(operation.backward(5, None, (gradients.targets[0], None), *read, None, (to_device(w.ravel()), None), (False,)))
    cuda.run(gradients.calls)
    assert equal(to_host(gradients.arrays[0]), (dy.T @ x).ravel()) and np.isnan(to_host(gradients.arrays[1])).all()


def test_strided_arrays():
    dy, x, w, b = numbers(np.float32, 5, 7, 4)

    def strided(a):
        return transposed(to_device(a.T.copy()), (1, 0))
    assert not strided(x).is_c_contiguous()
    assert equal(to_host(linear_forward(strided(x), strided(w), to_device(b))), x @ w.T + b)
    assert all(map(equal, map(to_host, linear_backward(strided(dy), strided(x), strided(w))), (dy @ w, dy.T @ x, dy.sum(0))))


DY, X, W, B = (np.ones(shape, np.float32) for shape in ((2, 4), (2, 3), (4, 3), 4))


@pytest.mark.parametrize("function, arrays", [(linear_forward, dict(x=X, w=W, b=B)), (linear_backward, dict(dy=DY, x=X, w=W))])
def test_all_or_none_on_the_device(function, arrays):
    for name in arrays:
        others = ", ".join(other for other in arrays if other != name)
        with pytest.raises(TypeError, match=f"^{name}: expected device arrays, as {others} is one; got NumPy"):
            function(**{other: a if other == name else to_device(a) for other, a in arrays.items()})


@pytest.mark.parametrize("function, arrays", [
    (linear_forward, (X[0], W, B)), (linear_forward, (X[:, :2], W, B)), (linear_forward, (X, W, B[:3])),
    (linear_forward, (X, W[:0], B)), (linear_forward, (X, W.astype(np.float64), B)), (linear_forward, (X, W, B.astype(np.float64))),
    (linear_backward, (DY[:1], X, W)), (linear_backward, (DY.astype(np.float64), X, W)),
])
def test_errors_are_those_of_the_cpu(function, arrays):
    with pytest.raises((TypeError, ValueError)) as on_cpu:
        function(*arrays)
    with pytest.raises(type(on_cpu.value)) as on_gpu:
        function(*map(to_device, arrays))
    assert str(on_gpu.value) == str(on_cpu.value)
