"""The linear layer: frozen values, oracle, gradients, contract, errors, and parity with PyTorch."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels import cpu
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.linear import linear_backward, linear_forward

from arrays import awkward, in_both_dtypes, integers

DTYPES = [np.float32, np.float64]
sizes = st.tuples(st.integers(0, 40), st.integers(1, 200), st.integers(1, 100))
seeds = st.integers(0, 2**32 - 1)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: y = [1*1 + 2*3 + 10, 1*2 + 2*4 + 20], dx = 5*[1, 3] + 6*[2, 4], dw = dy^T x.
    x, w, b = np.array([[1, 2]], dtype), np.array([[1, 3], [2, 4]], dtype), np.array([10, 20], dtype)
    y = linear_forward(x, w, b)
    assert y.dtype == dtype and y.tolist() == [[17, 30]]
    dx, dw, db = linear_backward(np.array([[5, 6]], dtype), x, w)
    assert (dx.tolist(), dw.tolist(), db.tolist()) == ([[17, 39]], [[5, 10], [6, 12]], [5, 6])


@pytest.mark.parametrize("dtype", DTYPES)
@given(size=sizes, seed=seeds)
def test_equals_oracle(dtype, size, seed):
    """NumPy's matrix product; integers, so == holds."""
    N, F, O = size
    x, w, b, dy = integers(seed, (N, F), (O, F), O, (N, O), dtype=dtype)
    assert (linear_forward(x, w, b) == x @ w.T + b).all() and (linear_forward(x, w) == x @ w.T).all()
    for name, got, expected in zip(("dx", "dw", "db"), linear_backward(dy, x, w), (dy @ w, dy.T @ x, dy.sum(0)), strict=True):
        assert got.shape == expected.shape and got.dtype == dtype and (got == expected).all(), name


@given(size=sizes, seed=seeds)
def test_gradients_are_adjoint(size, seed):
    N, F, O = size
    x, w, u, v, dy = integers(seed, (N, F), (O, F), (N, F), (O, F), (N, O), dtype=np.float64)
    dx, dw, db = linear_backward(dy, x, w)
    assert (dy * linear_forward(u, w)).sum() == (dx * u).sum()
    assert (dy * linear_forward(x, v)).sum() == (dw * v).sum()
    assert (dy * linear_forward(x, 0 * w, np.arange(O) + 1.0)).sum() == (db * (np.arange(O) + 1)).sum()


def test_full_jacobian():
    """Central differences of every element with a step of 1: the layer is linear in each argument."""
    rng = np.random.default_rng(1)
    x, w, b, dy = (rng.standard_normal(shape) for shape in ((3, 7), (5, 7), 5, (3, 5)))
    for array, gradient in zip((x, w, b), linear_backward(dy, x, w), strict=True):
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1
            above = linear_forward(x, w, b)
            array[index] = value - 1
            below = linear_forward(x, w, b)
            array[index] = value
            # Sums of at most 15 products of order 1 in float64.
            assert abs((dy * (above - below)).sum() / 2 - gradient[index]) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
def test_operation_writes_its_outputs_and_nothing_else(dtype):
    N, F, O = 5, 37, 19
    x, w, b, dy = integers(0, (N, F), (O, F), O, (N, O), dtype=dtype)
    operation = cpu.Linear((F,), (O,), dtype)
    operation.reserve(N)
    y, dx, dw, db = (cpu.Buffer(N + 1, shape, dtype) for shape in ((O,), (F,), (O * F,), (O,)))
    for buffer in (y, dx, dw, db):
        buffer.array[...] = np.nan
    x_buffer, dy_buffer, flat = cpu.Buffer.holding(x), cpu.Buffer.holding(dy), cpu.flat_weight(w)
    run(operation.forward(N, y, x_buffer, (flat, b)))
    run(operation.backward(N, dx, (dw.view(1)[0], db.view(1)[0]), dy_buffer, x_buffer, y, (flat, b), (False, False)))
    for buffer, written, expected in ((y, N, x @ w.T + b), (dx, N, dy @ w),
                                      (dw, 1, (dy.T @ x).reshape(1, -1)), (db, 1, [dy.sum(0)])):
        assert (buffer.view(written) == expected).all() and np.isnan(buffer.array[written * buffer.step:]).all()
    assert (x_buffer.view(N) == x).all() and (dy_buffer.view(N) == dy).all() and (flat == w.ravel()).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    x, w, b, dy = integers(3, (4, 9), (6, 9), 6, (4, 6), dtype=dtype)
    views = [awkward(a) for a in (x, w, b, dy)]
    assert (linear_forward(*views[:3]) == linear_forward(x, w, b)).all()
    assert all((a == e).all() for a, e in zip(linear_backward(views[3], *views[:2]), linear_backward(dy, x, w), strict=True))


def test_same_bits_for_any_batch():
    rng = np.random.default_rng(5)
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((21, 100), (33, 100), 33))
    y = linear_forward(x, w, b)
    for n in (0, 7, 20):
        assert (linear_forward(x[n:n + 1], w, b) == y[n]).all()


X, W = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((X[0], W), ValueError, r"x: expected shape \(N, in\), got shape \(3,\)"),
    ((X.astype(int), W), TypeError, "x: expected a float32 or float64 array"),
    ((X, W.astype(np.float64)), TypeError, "w: expected float32, the dtype of x, got float64"),
    ((X, W[:, :2]), ValueError, r"x: expected shape \(N, in\) with in = 2 features.* got shape \(2, 3\)"),
    ((X, W[:, :0]), ValueError, "w: .*both sizes >= 1"),
    ((X, W, np.zeros(3, np.float32)), ValueError, r"b: expected shape \(4,\)"),
    ((X, W, np.zeros(4)), TypeError, "b: expected float32"),
])
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_forward(*arguments)


def test_errors_of_backward():
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 4\).* got shape \(2, 3\)"):
        linear_backward(X, X, W)


@pytest.mark.torch
@given(size=sizes, seed=seeds)
def test_no_less_exact_than_torch(size, seed):
    """Against float64, the largest float32 error is at most twice PyTorch's plus two roundings of the largest sum of |products|."""
    import torch
    N, F, O = size
    rng = np.random.default_rng(seed)
    x, w, b, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in ((N, F), (O, F), O, (N, O)))

    def by_numpy(x, w, b, dy):
        return x @ w.T + b, dy @ w, dy.T @ x, dy.sum(0)

    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    ty = torch.nn.functional.linear(tx, tw, tb)
    theirs = [a.detach().numpy() for a in (ty, *torch.autograd.grad(ty, (tx, tw, tb), torch.tensor(dy)))]
    mine = linear_forward(x, w, b), *linear_backward(dy, x, w)
    doubles = [a.astype(np.float64) for a in (x, w, b, dy)]
    for m, t, exact, scale in zip(mine, theirs, by_numpy(*doubles), by_numpy(*map(np.abs, doubles)), strict=True):
        bound = 2 * np.abs(t - exact).max(initial=0) + 2 * np.finfo(np.float32).eps * scale.max(initial=0)
        assert np.abs(m - exact).max(initial=0) <= bound
