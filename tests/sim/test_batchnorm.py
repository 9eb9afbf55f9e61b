"""Batch normalization on a simulated GPU: near the CPU's, whose sums have another order."""
import numpy as np
import pytest

from nbcnn.kernels import batchnorm_backward, batchnorm_evaluate, batchnorm_forward, cpu, cuda
from nbcnn.kernels.cuda import to_device, to_host

from activations import each
from arrays import equal

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
SHAPES = [(2, 3, 4, 3), (3, 2, 1, 5), (7, 5)]
EPS = 1e-3


def data(shape, dtype):
    """x, dy, weight, bias."""
    rng = np.random.default_rng(0)
    C = shape[1]
    return [a.astype(dtype) for a in (rng.standard_normal(shape) + 2, rng.standard_normal(shape), *rng.uniform(-2, 2, (2, C)))]


def near(got, expected):
    """Some tens of roundings of values of order 1 to 10."""
    few = 100 * np.finfo(expected.dtype).eps
    np.testing.assert_allclose(to_host(got), expected, rtol=few, atol=few)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_cpu(dtype, shape):
    x, dy, weight, bias = data(shape, dtype)
    there = [to_device(a) for a in (x, dy, weight, bias)]
    y, mean, var = batchnorm_forward(x, weight, bias, eps=EPS)
    results = batchnorm_forward(there[0], *there[2:], eps=EPS)
    for got, expected in zip(results, (y, mean, var), strict=True):
        near(got, expected)
    for need_dx in (True, False):
        got = batchnorm_backward(there[1], there[0], *results[1:], there[2], eps=EPS, need_dx=need_dx)
        dx, *sums = batchnorm_backward(dy, x, mean, var, weight, eps=EPS)
        for g, expected in zip(got[not need_dx:], (dx, *sums)[not need_dx:], strict=True):
            near(g, expected)
    near(batchnorm_evaluate(there[0], *results[1:], eps=EPS), batchnorm_evaluate(x, mean, var, eps=EPS))
    x += 1000
    near(batchnorm_forward(to_device(x), eps=EPS)[2], batchnorm_forward(x, eps=EPS)[2])       # the digits of the deviation


@each
@pytest.mark.parametrize("shape", [(2, 3, 4, 3), (5, 4)])
def test_operation_writes_its_outputs_and_nothing_else(case, shape):
    """With an activation, in memory that was full of 99: what the CPU's gives, and the running statistics it takes over."""
    (N, *sample), dtype, layer = shape, np.float64, case.layer(*case.options)
    x, dy, weight, bias = data((N + 1, *sample), dtype)
    results = []
    for backend in (cpu, cuda):
        place = backend.to_device
        running = [place(a) for a in (np.zeros(sample[0]), np.ones(sample[0]), np.array([4]))]
        operation = backend.BatchNorm(tuple(sample), EPS, 0.1, (layer.function, layer.options), running, dtype)
        operation.reserve(N + 1)
        x_buffer, dy_buffer, y, dx = (
            backend.Buffer.holding(place(a)) for a in (x, dy, np.full_like(x, 99), np.full_like(x, 99)))
        params, gradients = (place(weight), place(bias)), backend.Gradients(operation, N, (sample[0],) * 2, dtype)
        backend.run(operation.forward(N, y, x_buffer, params))
        forward = backend.to_host(y.view(N + 1))
        kept = [backend.to_host(a) for a in running]
        backend.run(operation.commit(N))
        backend.run(operation.backward(N, dx, gradients.targets, dy_buffer, x_buffer, y, params, (False, False)))
        backend.run(gradients.calls)
        assert operation.backward(N, None, (None, None), dy_buffer, x_buffer, y, params, (False, False)) == []
        assert equal(backend.to_host(y.view(N + 1)), forward) and equal(backend.to_host(x_buffer.view(N + 1)), x)
        backward = [backend.to_host(a) for a in (dx.view(N + 1), *gradients.arrays)]
        assert (forward[N] == 99).all() and (backward[0][N] == 99).all()
        dbias = backend.Gradients(operation, N, (sample[0],), dtype)      # a frozen weight, of a first layer
        backend.run(operation.backward(N, None, (None, *dbias.targets), dy_buffer, x_buffer, y, params, (False, False)))
        backend.run(dbias.calls)
        assert equal(backend.to_host(dbias.arrays[0]), backward[2])
        backend.run(operation.evaluate(N, y, x_buffer, params))
        results.append([forward, *backward, *kept, *map(backend.to_host, running), backend.to_host(y.view(N))])
    for here, there in zip(*results, strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-12)
    assert results[1][6].tolist() == [4] and results[1][9].tolist() == [5]


@pytest.mark.parametrize("momentum", [0.25, None])
def test_running_statistics(momentum):
    """Of two batches, by hand: 1 3 5 7 have mean 4 and variance 20/3, 3 5 7 9 mean 6 and the same."""
    means, variances = {0.25: ([1, 2.25], [29 / 12, 167 / 48]), None: ([4, 5], [20 / 3, 20 / 3])}[momentum]
    running = [to_device(a) for a in (np.zeros(1), np.ones(1), np.zeros(1, np.int64))]
    operation = cuda.BatchNorm((1,), EPS, momentum, None, running, np.float64)
    y = cuda.Buffer(4, (1,), np.float64)
    for step in range(2):
        x = cuda.Buffer.holding(to_device(np.array([[1.0], [3], [5], [7]]) + 2 * step))
        cuda.run(operation.forward(4, y, x, (None, None)))
        cuda.run(operation.commit(4))
        np.testing.assert_allclose([to_host(a)[0] for a in running], [means[step], variances[step], step + 1], rtol=1e-15)


def test_empty_batches_and_errors():
    x, ones = to_device(np.ones((0, 3, 2, 2))), to_device(np.ones(3))
    y, mean, var = batchnorm_forward(x, ones)
    assert y.shape == x.shape and not to_host(mean).any() and not to_host(var).any()
    dx, dweight, dbias = batchnorm_backward(x, x, ones, ones)
    assert dx.shape == x.shape and not to_host(dweight).any() and not to_host(dbias).any()
    with pytest.raises(ValueError, match="input: expected more than 1 value per channel when training"):
        batchnorm_forward(to_device(np.ones((1, 3))))
    with pytest.raises(TypeError, match=r"^weight: expected device arrays, as x is"):
        batchnorm_forward(x, np.ones(3))
