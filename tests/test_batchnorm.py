"""Batch normalization: frozen values, oracle, gradients, accuracy, contract, errors, parity with PyTorch; and with activations."""
import re
from typing import NamedTuple

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nbcnn
from nbcnn.kernels import batchnorm_backward, batchnorm_evaluate, batchnorm_forward, cpu
from nbcnn.kernels.cpu import batchnorm as loops
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.cpu.parallel import PARALLEL

import oracles
from activations import each
from arrays import awkward, equal, filled_buffer, in_both_dtypes
from llvm import afresh, double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
EPS = 1e-3
seeds = st.integers(0, 2**32 - 1)
# Of all kinds of lines: of one pixel and of many, of pixels that divide a sample and of all; with gaps between samples and without.
shapes = st.one_of(
    st.tuples(st.integers(2, 5), st.integers(1, 200), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(2, 40), st.sampled_from([8, 16, 64, 128]), st.sampled_from([1, 2, 4]), st.sampled_from([2, 4])),
    st.tuples(st.integers(2, 300), st.integers(1, 140)))
GAPS, LONG, PRIME = (3, 16, 8, 8), (40, 3, 20, 20), (2, 5, 1, 127)


class Data(NamedTuple):
    """What a layer is given."""
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def astype(self, dtype):
        return Data(*(a.astype(dtype) for a in self))


def data(seed, shape, dtype):
    """Channels of several means and deviations."""
    rng = np.random.default_rng(seed)
    C, tail = shape[1], [1] * (len(shape) - 2)
    x = rng.standard_normal(shape) * rng.uniform(0.1, 4, (C, *tail)) + rng.uniform(-3, 3, (C, *tail))
    return Data(x, rng.standard_normal(shape), rng.uniform(-2, 2, C), rng.uniform(-2, 2, C)).astype(dtype)


class Layer:
    """An operation on the CPU that was run once, forward and backward, in memory full of NaN."""

    def __init__(self, d, activation=None, momentum=0.1, eps=EPS, running=None, more=0, need_dx=True, none=(), add=(False, False)):
        (N, *shape), dtype = d.x.shape, d.x.dtype
        self.N, self.operation = N, cpu.BatchNorm(tuple(shape), eps, momentum, activation, running, dtype)
        self.operation.reserve(N + more)
        self.x, self.dy = (filled_buffer(N, shape, dtype, 99, a) for a in (d.x, d.dy))
        self.y, self.dx = (filled_buffer(N, shape, dtype, np.nan) for _ in range(2))
        self.params = d.weight, d.bias
        self.gradients = [None if k in none else np.full(shape[0], 7 if add[k] else np.nan, dtype) for k in range(2)]
        before = self.x.array.copy(), self.dy.array.copy(), d.weight.copy(), d.bias.copy()
        run(self.operation.forward(N, self.y, self.x, self.params))
        y = self.y.array.copy()
        run(self.operation.backward(N, self.dx if need_dx else None, tuple(self.gradients), self.dy, self.x, self.y, self.params,
                                    add))
        assert all(map(equal, before, (self.x.array, self.dy.array, *self.params))) and equal(y, self.y.array)

    def results(self):
        """y, dx, dweight and dbias."""
        return self.y.view(self.N), self.dx.view(self.N), *self.gradients


def near(got, expected, bound):
    """Same shape, and within the bounds, element by element."""
    return got.shape == expected.shape and (np.abs(got - expected) <= bound).all()


def agree(d, y, dx, dweight, dbias):
    """What the oracle gives in float64, but for roundings.

    Those of x, mean and deviation are some of eps times the size of x, over the deviation; the terms of sums are of random sign.
    """
    eps, wide = 16 * np.finfo(d.x.dtype).eps, d.astype(float)
    axes, tail = (0, *range(2, d.x.ndim)), [1] * (d.x.ndim - 2)
    expected, _, var = oracles.batchnorm_forward(wide.x, wide.weight, wide.bias, EPS)
    deviation = np.sqrt(var + EPS)
    size = 1 + np.abs(wide.x).max(axes) / deviation
    scale, shift = (np.abs(a).reshape(-1, *tail) for a in (wide.weight * size ** 2, wide.bias))
    expected_dx, *sums = oracles.batchnorm_backward(wide.dy, wide.x, wide.weight, EPS)
    most = np.abs(wide.dy).max(axes)
    many = most * size ** 2 * (d.x.size // d.x.shape[1])
    return (near(y, expected, eps * (scale + shift))
            and near(dx, expected_dx, eps * (scale * (most * size / deviation).reshape(-1, *tail)))
            and near(dweight, sums[0], eps * many) and near(dbias, sums[1], eps * many))


# ---- values

@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: 1 3 5 7 have mean 4 and variance 5, so with eps = 4 they are -1 -1/3 1/3 1; 2 2 2 2 have no variance.
    x = np.array([[[[1, 3]], [[2, 2]]], [[[5, 7]], [[2, 2]]]], dtype)
    y, mean, var = batchnorm_forward(x, np.array([3, 4], dtype), np.array([1, -5], dtype), eps=4)
    assert y.dtype == mean.dtype == var.dtype == dtype and (mean.tolist(), var.tolist()) == ([4, 2], [5, 0])
    assert y.tolist() == [[[[-2, 0]], [[-5, -5]]], [[[2, 4]], [[-5, -5]]]]
    # By hand: dbias = 1 + 3, dweight = -1*1 + 1*3, dx = 3/3 (dy - 4/4 - xhat 2/4); of the others 2 (dy - 1).
    dy = np.array([[[[1, 0]], [[1, 2]]], [[[0, 3]], [[4, -3]]]], dtype)
    dx, dweight, dbias = batchnorm_backward(dy, x, mean, var, np.array([3, 4], dtype), eps=4)
    assert (dweight.tolist(), dbias.tolist()) == ([2, 0], [4, 4])
    expected = np.array([[[[1 / 2, -5 / 6]], [[0, 2]]], [[[-7 / 6, 3 / 2]], [[6, -8]]]])
    assert near(dx, expected, 4 * np.finfo(dtype).eps)          # of thirds
    # By hand: with mean 3 and variance 12, over 4; without weight and bias, they are 1 and 0.
    given_ones = np.array([3, 3], dtype), np.array([12, 12], dtype)
    assert batchnorm_evaluate(x, *given_ones, eps=4).tolist() == [[[[-.5, 0]], [[-.25, -.25]]], [[[.5, 1]], [[-.25, -.25]]]]
    assert equal(batchnorm_evaluate(x, *given_ones, np.array([4, 8], dtype), np.array([1, 2], dtype), eps=4),
                 np.array([[[[-1, 1]], [[0, 0]]], [[[3, 5]], [[0, 0]]]], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@example(shape=GAPS, seed=0)
@example(shape=LONG, seed=1)
@example(shape=PRIME, seed=2)
@given(shape=shapes, seed=seeds)
def test_equals_oracle(dtype, shape, seed):
    """The operation, in memory that was full of NaN; the public functions are the same, bit by bit."""
    d = data(seed, shape, dtype)
    y, dx, dweight, dbias = Layer(d).results()
    if d.x.size // shape[1] <= 3000:            # the oracle has a matrix of so many rows
        assert agree(d, y, dx, dweight, dbias)
    found, mean, var = batchnorm_forward(d.x, d.weight, d.bias, eps=EPS)
    assert equal(found, y)
    assert all(map(equal, batchnorm_backward(d.dy, d.x, mean, var, d.weight, eps=EPS), (dx, dweight, dbias)))
    expected = oracles.batchnorm_forward(d.x.astype(float), np.ones(shape[1]), np.zeros(shape[1]), EPS, d.weight, d.bias ** 2)[0]
    got = batchnorm_evaluate(d.x, d.weight, d.bias ** 2, eps=EPS)
    assert near(got, expected, 8 * np.finfo(dtype).eps * (1 + np.abs(d.x)).max() / np.sqrt(EPS))


@given(shape=st.sampled_from([(2, 3, 2, 2), (5, 4), (2, 2, 1, 5)]), seed=seeds)
def test_gradients_are_slopes(shape, seed):
    """Central differences of every element, in float64: truncation and rounding are below 1e-8 of gradients of order 1 to 1000."""
    d = data(seed, shape, np.float64)
    _, mean, var = batchnorm_forward(d.x, eps=0.1)
    dx, dweight, dbias = batchnorm_backward(d.dy, d.x, mean, var, d.weight, eps=0.1)
    for got, (f, at) in zip((dx, dweight, dbias), (
            (lambda x: batchnorm_forward(x, d.weight, d.bias, eps=0.1)[0], d.x),
            (lambda weight: batchnorm_forward(d.x, weight, d.bias, eps=0.1)[0], d.weight),
            (lambda bias: batchnorm_forward(d.x, d.weight, bias, eps=0.1)[0], d.bias)), strict=True):
        slopes = oracles.central_differences(f, at, d.dy, 1e-5)
        np.testing.assert_allclose(got, slopes, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ratio", [1e3, 1e4, -1e5])
@pytest.mark.parametrize("shape", [(64, 16, 15, 15), (700, 24)])
def test_a_mean_much_larger_than_the_deviation(shape, ratio):
    """The statistics are those of the float32 numbers, to the last digits: what they are of is the deviations alone."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + ratio).astype(np.float32)
    axes = (0, *range(2, x.ndim))
    _, mean, var = batchnorm_forward(x)
    exact, exact_var = x.astype(float).mean(axes), x.astype(float).var(axes)
    assert near(mean, exact, np.finfo(np.float32).eps * abs(ratio))
    assert near(var, exact_var, 8 * np.finfo(np.float32).eps * exact_var)


# ---- running statistics

def running_statistics(C, dtype):
    return np.zeros(C, dtype), np.ones(C, dtype), np.zeros(1, np.int64)


@in_both_dtypes
def test_frozen_running_statistics(dtype):
    # By hand: 1 3 5 7 have mean 4 and, of three degrees of freedom, variance 20/3; 3 5 7 9 have mean 6 and the same.
    x = np.array([[1], [3], [5], [7]], dtype)
    for momentum, means, variances in ((0.25, [1, 2.25], [29 / 12, 167 / 48]), (None, [4, 5], [20 / 3, 20 / 3])):
        running = running_statistics(1, dtype)
        for step, (mean, var) in enumerate(zip(means, variances, strict=True)):
            x_buffer, y = (cpu.Buffer.holding(a) for a in (x + dtype(2 * step), x))
            operation = cpu.BatchNorm((1,), EPS, momentum, None, running, dtype)
            operation.reserve(4)
            before = [a.copy() for a in running]
            run(operation.forward(4, y, x_buffer, (None, None)))
            run(operation.evaluate(4, y, x_buffer, (None, None)))
            assert all(map(equal, running, before))                     # until the step counts
            run(operation.commit(4))
            assert running[2].tolist() == [step + 1]
            np.testing.assert_allclose([*running[0], *running[1]], [mean, var], rtol=4 * np.finfo(dtype).eps)
    assert equal(y.view(4), batchnorm_evaluate(x + 2, *before[:2], eps=EPS))
    assert operation.commit(0) == []


def test_without_running_statistics_a_batch_has_its_own():
    d = data(0, (5, 3, 4, 4), np.float32)
    layer = Layer(d)
    expected = layer.y.view(5).copy()
    layer.y.array[...] = np.nan
    run(layer.operation.evaluate(5, layer.y, layer.x, layer.params))
    assert equal(layer.y.view(5), expected) and layer.operation.commit(5) == []


# ---- the contract of operations

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [GAPS, LONG, PRIME, (2, 5, 1, 1), (7, 3)])
def test_operation_writes_its_outputs_and_nothing_else(dtype, shape):
    d = data(1, shape, dtype)
    layer = Layer(d, more=3)
    y, mean, var = batchnorm_forward(d.x, d.weight, d.bias, eps=EPS)
    expected = y, *batchnorm_backward(d.dy, d.x, mean, var, d.weight, eps=EPS)
    assert all(map(equal, layer.results(), expected))           # for fewer samples than there is room for, too
    for written in (layer.y, layer.dx):
        assert np.isnan(written.array).sum() == written.zeros - written.view(layer.N).size


def test_only_what_is_asked_for():
    d = data(2, (4, 5, 3, 3), np.float32)
    _, dx, dweight, dbias = Layer(d).results()
    layer = Layer(d, need_dx=False, none=(0,))
    assert np.isnan(layer.dx.view(4)).all() and equal(layer.gradients[1], dbias)
    assert equal(Layer(d, none=(0, 1)).dx.view(4), dx)
    added = Layer(d, none=(1,), add=(True, False))
    assert equal(added.gradients[0], dweight + np.float32(7)) and equal(added.dx.view(4), dx)
    assert equal(Layer(d, add=(False, True)).gradients[1], dbias + np.float32(7))
    assert layer.operation.backward(4, None, (None, None), layer.dy, layer.x, layer.y, layer.params, (False, False)) == []
    for params in ((None, d.bias), (d.weight, None)):
        run(layer.operation.forward(4, layer.y, layer.x, params))
        assert equal(layer.y.view(4), batchnorm_forward(d.x, *params, eps=EPS)[0])


def test_no_samples():
    d = data(3, (6, 5, 3, 3), np.float32)
    layer = Layer(d._replace(x=d.x * np.float32(np.nan)))
    empty = [np.full(5, np.nan, np.float32) for _ in range(2)]
    run(layer.operation.forward(0, layer.y, layer.x, layer.params))
    run(layer.operation.backward(0, layer.dx, tuple(empty), layer.dy, layer.x, layer.y, layer.params, (False, False)))
    assert not np.any(empty)
    y, mean, var = batchnorm_forward(d.x[:0], d.weight)
    assert y.shape == (0, 5, 3, 3) and not mean.any() and not var.any()
    dx, *sums = batchnorm_backward(d.dy[:0], d.x[:0], mean, var)
    assert dx.shape == (0, 5, 3, 3) and not np.any(sums)
    assert batchnorm_evaluate(d.x[:0], mean, var).shape == (0, 5, 3, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_what_is_not_finite_stays_in_its_channel(value, place):
    d = data(4, (4, 3, 7, 9), np.float32)
    expected = Layer(d).results()
    d.x[place, 1, place, place] = value
    for got, finite in zip(Layer(d).results(), expected, strict=True):
        got, finite = (np.moveaxis(a, 1, 0) if a.ndim > 1 else a for a in (got, finite))
        assert equal(got[::2], finite[::2])
    assert np.isnan(Layer(d).y.view(4)[:, 1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    d = data(5, (3, 5, 4, 2), dtype)
    y, mean, var = batchnorm_forward(d.x, d.weight, d.bias)
    views = Data(*map(awkward, d))
    assert all(map(equal, batchnorm_forward(views.x, views.weight, views.bias), (y, mean, var)))
    expected = batchnorm_backward(d.dy, d.x, mean, var, d.weight)
    assert all(map(equal, batchnorm_backward(views.dy, views.x, awkward(mean), awkward(var), views.weight), expected))
    without = batchnorm_backward(d.dy, d.x, mean, var, d.weight, need_dx=False)
    assert without[0] is None and all(map(equal, without[1:], expected[1:]))
    assert equal(batchnorm_evaluate(views.x, awkward(mean), awkward(var), views.weight), batchnorm_evaluate(
        d.x, mean, var, d.weight))


@example(shape=LONG, seed=0)
@given(shape=shapes, seed=seeds)
def test_any_number_of_threads_gives_equal_bits(shape, seed):
    d = data(seed, shape, np.float32)
    results = [[a.tobytes() for a in Layer(d, ("gelu", ())).results()] for _ in one_and_all_threads()]
    assert results[0] == results[1]


# ---- with an activation

@each
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [GAPS, PRIME, (5, 40)])
def test_with_an_activation_as_two_layers(case, dtype, shape):
    """With equal bits: each product and sum of the normalization is rounded, in both."""
    d, (N, *sample) = data(6, shape, dtype), shape
    activation = case.operation(cpu, tuple(sample), dtype)
    layer = case.layer(*case.options)
    alone = Layer(d)
    y, dz = (cpu.Buffer(N, sample, dtype) for _ in range(2))
    run(activation.forward(N, y, alone.y, ()))
    run(activation.backward(N, dz, (), alone.dy, alone.y, y, (), ()))
    expected = y.view(N), *Layer(d._replace(dy=np.ascontiguousarray(dz.view(N)))).results()[1:]
    assert all(map(equal, Layer(d, (layer.function, layer.options)).results(), expected))


def require_float32_vectors(*kernels):
    for kernel in kernels:
        assert not double_operations(kernel)
        again = afresh(kernel)
        again.compile(next(s for s in kernel.signatures if s[0].dtype == numba.float32))
        if PARALLEL:      # what is compiled with checks of bounds has them in its loops
            assert re.search(r"fsub <\d+ x float>", again.inspect_llvm(again.signatures[0]))


@each
def test_float32_kernels_of_an_activation_hold_no_double_and_are_vectors(case):
    layer = case.layer(*case.options)
    require_float32_vectors(*Layer(data(7, GAPS, np.float32), (layer.function, layer.options)).operation.kernels)


def test_float32_kernels_hold_no_double_and_are_vectors():
    layer = Layer(data(7, GAPS, np.float32), running=running_statistics(16, np.float32))
    run(layer.operation.commit(3))
    require_float32_vectors(*layer.operation.kernels, loops.batchnorm_statistics)
    for kernel in (loops.batchnorm_moments, loops.batchnorm_prepare, loops.batchnorm_backward_moments, loops.batchnorm_commit):
        assert not double_operations(kernel)


# ---- layers

def network(dtype=np.float64, **options):
    """Images and vectors, before an activation and not, with a weight and bias and without, in one go with what follows or not."""
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(2, 4, 3, padding=1, bias=False)), ("norm1", nbcnn.BatchNorm2d(4)), ("gelu1", nbcnn.GELU()),
        ("norm2", nbcnn.BatchNorm2d(4, eps=1e-12, momentum=0.4, affine=False)), ("maxpool2", nbcnn.MaxPool2d(2)),
        ("flatten", nbcnn.Flatten()), ("norm3", nbcnn.BatchNorm1d(36, momentum=None)), ("relu3", nbcnn.ReLU()),
        ("linear3", nbcnn.Linear(36, 3)), ("norm4", nbcnn.BatchNorm1d(3, track_running_stats=False)),
    ], input_shape=(2, 6, 6), dtype=dtype, **options)


def batches(dtype=np.float64):
    rng = np.random.default_rng(10)
    return [(rng.standard_normal((5, 2, 6, 6)).astype(dtype), rng.integers(0, 3, 5)) for _ in range(3)]


STATISTICS = [f"norm{k}.{key}" for k in (1, 2, 3) for key in ("running_mean", "running_var", "num_batches_tracked")]


def test_state_of_layers():
    """Under PyTorch's names, with PyTorch's first values; in no optimizer."""
    model = network()
    state = model.state_dict()
    assert set(STATISTICS) == {name for name in state if "running" in name or "batches" in name}
    assert all(len(state[f"norm{k}.running_var"]) == state[f"norm{k}.running_var"].sum() for k in (1, 2, 3))
    assert not any(state[name].any() for name in STATISTICS if not name.endswith("var"))
    assert state["norm1.num_batches_tracked"].shape == () and state["norm1.num_batches_tracked"].dtype == np.int64
    assert (state["norm1.weight"] == 1).all() and not state["norm3.bias"].any()
    assert [name for name, _ in model.named_parameters()] == [
        "conv1.weight", *(f"{layer}.{name}" for layer in ("norm1", "norm3", "linear3", "norm4") for name in ("weight", "bias"))]
    assert repr(model.norm2) == "BatchNorm2d(num_features=4, eps=1e-12, momentum=0.4, affine=False)"


@pytest.mark.parametrize("fuse", [True, False])
def test_gradients_of_a_network(fuse):
    check = nbcnn.check_gradients(network(), (2, 6, 6), fuse=fuse)
    assert check, check


def test_fused_training_is_that_of_the_layers():
    """With equal bits, statistics and parameters; a loss that is not finite and evaluation change no statistic."""
    states = []
    for fuse in (True, False):
        model = network(np.float32)
        step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), fuse=fuse), nbcnn.SGD(model.parameters(), lr=0.1)
        assert ("norm1+gelu1" in str(step)) == ("norm3+relu3" in str(step)) == fuse
        for x, labels in batches(np.float32):
            step.train_step(x, labels, optimizer)
        states.append(model.state_dict())
        x[0, 0, 0, 0] = np.nan
        assert np.isnan(step.forward(x, labels))
        model(batches(np.float32)[0][0])
        after = model.state_dict()
        assert all(equal(after[name], states[-1][name]) for name in after)
    assert all(equal(states[0][name], states[1][name]) for name in states[0])
    assert [int(states[0][name]) for name in STATISTICS if name.endswith("tracked")] == [3, 3, 3]


def test_frozen_parameters_stay():
    """Without learned scales, as some networks have it; and with nothing that learns in front of the layer."""
    model = network()
    for name in ("conv1", "norm1"):
        getattr(model, name).weight.trainable = False
    before = model.state_dict()
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.1)
    step.train_step(*batches()[0], optimizer)
    same = {name for name, value in model.state_dict().items() if equal(value, before[name])}
    assert same == {"conv1.weight", "norm1.weight"} and model.norm1.weight.grad is None


@pytest.mark.torch
def test_a_network_trains_as_in_torch():
    """Three steps in float64, to 1e-12; its state goes to and fro."""
    import torch
    from torch import nn
    model = network()
    theirs = nn.Sequential()
    for name, layer in (
            ("conv1", nn.Conv2d(2, 4, 3, padding=1, bias=False)), ("norm1", nn.BatchNorm2d(4)), ("gelu1", nn.GELU()),
            ("norm2", nn.BatchNorm2d(4, eps=1e-12, momentum=0.4, affine=False)), ("maxpool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()), ("norm3", nn.BatchNorm1d(36, momentum=None)), ("relu3", nn.ReLU()),
            ("linear3", nn.Linear(36, 3)), ("norm4", nn.BatchNorm1d(3, track_running_stats=False))):
        theirs.add_module(name, layer)
    theirs.double().load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in model.state_dict().items()})
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.1)
    torch_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for x, labels in batches():
        loss = nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
        torch_optimizer.zero_grad()
        loss.backward()
        torch_optimizer.step()
        assert step.train_step(x, labels, optimizer) == pytest.approx(loss.item(), rel=1e-12)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(value, state[name], rtol=1e-10, atol=1e-12)
    found = network(state=state)
    np.testing.assert_allclose(found(x), theirs.eval()(torch.from_numpy(x)).detach().numpy(), rtol=1e-12, atol=1e-12)


# ---- errors

X, ONES = np.ones((2, 3, 4, 4), np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize("call, error, message", [
    (lambda: batchnorm_forward(X[0]), ValueError, r"x: expected shape \(N, C, H, W\) or \(N, C\), got shape \(3, 4, 4\)"),
    (lambda: batchnorm_forward(X.astype(int)), TypeError, "x: expected a float32 or float64 array"),
    (lambda: batchnorm_forward(X[:, :, :0]), ValueError, r"x: expected at least one value in a sample, got shape \(2, 3, 0, 4\)"),
    (lambda: batchnorm_forward(X, ONES[:2]), ValueError, r"weight: expected shape \(3,\), a number for each channel of x, got"),
    (lambda: batchnorm_forward(X, bias=ONES.astype(float)), TypeError, "bias: expected float32, the dtype of x, got float64"),
    (lambda: batchnorm_forward(X, eps=-1), ValueError, "eps: expected a finite number of float32 >= 0, got -1"),
    (lambda: batchnorm_forward(X, eps=None), TypeError, "eps: expected a finite number of float32 >= 0, got None"),
    (lambda: batchnorm_forward(X[:1, :, :1, :1]), ValueError,
     r"input: expected more than 1 value per channel when training, got input size \(1, 3, 1, 1\)"),
    (lambda: batchnorm_forward(X[:1, :, 0, 0]), ValueError, r"more than 1 value per channel .* got input size \(1, 3\)"),
    (lambda: batchnorm_evaluate(X, ONES, ONES[0]), ValueError, r"var: expected shape \(C,\), got shape \(\)"),
    (lambda: batchnorm_evaluate(X, ONES[:1], ONES), ValueError, r"mean: expected shape \(3,\)"),
    (lambda: batchnorm_backward(X[:1], X, ONES, ONES), ValueError, r"dy: expected shape \(2, 3, 4, 4\), that of x, got"),
    (lambda: batchnorm_backward(X.astype(float), X, ONES, ONES), TypeError, "dy: expected float32, the dtype of x"),
    (lambda: batchnorm_backward(X, X, ONES, ONES, need_dx=np.ones(2)), TypeError, "need_dx: expected True or False"),
    (lambda: nbcnn.BatchNorm2d(0), ValueError, "num_features: expected an int >= 1, got 0"),
    (lambda: nbcnn.BatchNorm2d(3, eps=-1e-5), ValueError, "eps: expected a finite number of float32 >= 0, got -1e-05"),
    (lambda: nbcnn.BatchNorm2d(3, momentum=1.5), ValueError, r"momentum: expected a number in \[0, 1\], got 1.5"),
    (lambda: nbcnn.Sequential([nbcnn.BatchNorm2d(3)], input_shape=(4, 2, 2)), ValueError,
     r"expected images \(N, 3, H, W\), got \(N, 4, 2, 2\)"),
    (lambda: nbcnn.Sequential([nbcnn.BatchNorm1d(3)], input_shape=(3, 2, 2)), ValueError,
     r"expected vectors \(N, 3\), got \(N, 3, 2, 2\); a Flatten layer"),
    (lambda: nbcnn.BackpropScheduler(nbcnn.Sequential([nbcnn.Flatten(), nbcnn.BatchNorm1d(4)], input_shape=(1, 2, 2)),
                                     nbcnn.CrossEntropyLoss()).forward(X[:1, :1, :2, :2], [0]), ValueError,
     r"expected more than 1 value per channel when training, got input size \(1, 4\)"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- PyTorch

def torch_layer(shape, dtype, **options):
    import torch
    kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    return kind(shape[1], eps=EPS, dtype=getattr(torch, np.dtype(dtype).name), **options)


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.1, 0.4, None])
@pytest.mark.parametrize("shape", [GAPS, LONG, (70, 24)])
def test_three_steps_and_an_evaluation_equal_torch(shape, momentum):
    """In float64, to 1e-12 of values of order 1."""
    import torch
    theirs, running = torch_layer(shape, np.float64, momentum=momentum), running_statistics(shape[1], np.float64)
    for step in range(3):
        d = data([8, step], shape, np.float64)
        theirs.weight.data, theirs.bias.data, theirs.weight.grad, theirs.bias.grad = *map(torch.from_numpy, d[2:]), None, None
        x = torch.from_numpy(d.x).requires_grad_()
        y = theirs(x)
        y.backward(torch.from_numpy(d.dy))
        layer = Layer(d, momentum=momentum, running=running)
        run(layer.operation.commit(len(d.x)))
        tensors = y.detach(), x.grad, theirs.weight.grad, theirs.bias.grad, theirs.running_mean, theirs.running_var
        for got, expected in zip((*layer.results(), *running[:2]), tensors, strict=True):
            assert near(got, expected.numpy(), 1e-12 * max(1, np.abs(expected.numpy()).max()))
        assert running[2] == theirs.num_batches_tracked.numpy()
    run(layer.operation.evaluate(len(d.x), layer.y, layer.x, layer.params))
    assert near(layer.y.view(len(d.x)), theirs.eval()(x).detach().numpy(), 1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_no_less_exact_than_torch(ratio):
    """Of means so many times the deviation, float32's distance from float64 of the same numbers is at most PyTorch's.

    It has two ways, by the order of memory, and the better one counts, whose sums are double: to 8 roundings, as here they are not.
    """
    import torch
    shape = 64, 16, 15, 15
    d = data(9, shape, np.float32)
    d = d._replace(x=(np.random.default_rng(9).standard_normal(shape) + ratio).astype(np.float32))

    def results(dtype, layout):
        layer, x = torch_layer(shape, dtype), torch.from_numpy(d.x.astype(dtype)).contiguous(memory_format=layout).requires_grad_()
        layer.weight.data, layer.bias.data = (torch.from_numpy(a.astype(dtype)) for a in d[2:])
        y = layer(x)
        y.backward(torch.from_numpy(d.dy.astype(dtype)))
        return [a.detach().numpy() for a in (y, x.grad, layer.weight.grad, layer.bias.grad)]

    exact = results(np.float64, torch.contiguous_format)
    theirs = [results(np.float32, layout) for layout in (torch.channels_last, torch.contiguous_format)]
    for mine, right, *others in zip(Layer(d).results(), exact, *theirs, strict=True):
        error, *errors = (np.linalg.norm(a - right) for a in (mine, *others))
        assert error <= 1.1 * min(errors) + 8 * np.finfo(np.float32).eps * np.linalg.norm(right)
