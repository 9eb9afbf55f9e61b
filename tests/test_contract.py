"""What `nbcnn.kernels.contract` promises, of each backend. The GPU's is tested in the simulator:

    NUMBA_ENABLE_CUDASIM=1 python -m pytest -m sim tests/test_contract.py
"""
import inspect
import os

import numpy as np
import pytest

import nbcnn
from nbcnn.kernels import contract
from nbcnn.kernels.backend import load_backend
from nbcnn.kernels.operation import Operation, Place

from arrays import equal, integers

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
BACKENDS = ["cpu", *[pytest.param("cuda", marks=pytest.mark.sim)] * SIMULATED]
SHAPES = [(3, 4, 5), (8, 4, 4), (7,), (128,)]       # some of whose samples have a gap behind them on the CPU

# An operation's arguments but for the dtype, and the shapes of x and y.
X, CONV, POOLED = (2, 6, 4), (3, 6, 4), (3, 3, 2)
OPERATIONS = {
    "Conv2d": ((X, CONV, (3, 3), (1, 1), (1, 1), (1, 1)), X, CONV),
    "Conv2dDepthwise": ((CONV, CONV, (3, 3), (1, 1), (1, 1), (1, 1)), CONV, CONV),
    "Conv2dGroups": (((4, 6, 4), (6, 6, 4), (1, 3), (1, 1), (0, 1), (1, 1), 2), (4, 6, 4), (6, 6, 4)),
    "Conv2dMaxPool2d": ((X, CONV, (3, 3), (1, 1), (2, 2), True), X, POOLED),
    "MaxPool2d": ((CONV, (2, 2), (2, 2), (0, 0), (1, 1), POOLED), CONV, POOLED),
    "AvgPool2d": ((CONV, (2, 2), (2, 2), (0, 0), True, None, POOLED), CONV, POOLED),
    "BatchNorm": ((X, 1e-5, 0.1, None, None), X, X),
    "AdaptiveAvgPool2d": ((CONV, POOLED), CONV, POOLED),
    "Flatten": ((POOLED,), POOLED, (18,)),
    "Linear": (((18,), (5,)), (18,), (5,)),
    "Identity": ((X,), X, X),
    "Dropout": ((X, 0.5, False), X, X),
    "Activation": (("relu", X, ()), X, X),              # the name stands for its kernels
}
# Shapes of the weights of those that learn.
WEIGHTS = {"Conv2d": (3, 2, 3, 3), "Conv2dDepthwise": (3, 1, 3, 3), "Conv2dGroups": (6, 2, 1, 3), "Conv2dMaxPool2d": (3, 2, 3, 3),
           "Linear": (5, 18)}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return load_backend(request.param)


def public(protocol):
    """A protocol's functions by name, `__init__` among them."""
    return {name: value for name, value in vars(protocol).items()
            if (inspect.isfunction(value) or isinstance(value, classmethod)) and value.__module__ == contract.__name__}


def parameters(function):
    """Names and defaults."""
    return [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]


def test_every_name_is_there(backend):
    assert backend.device in ("cpu", "cuda") and backend.ALIGNMENT == 64
    names = public(contract.Backend) | public(contract.DeviceBackend if backend.device == "cuda" else contract.HostBackend)
    assert len(names) > 20 and set(OPERATIONS) <= set(names)
    for name, function in names.items():
        assert parameters(getattr(backend, name)) == parameters(function), name
    if backend.device == "cuda":
        assert all(map(callable, (
            backend.state.make_state, backend.images.gather_call, backend.images.gather, backend.buffer.contiguous,
            backend.maxpool2d.scatter, backend.sgd.overlap, backend.Partials.update_and_gather)))


@pytest.mark.parametrize("kind", [contract.Buffer, contract.Gradients, contract.Partials])
def test_every_method_is_there(backend, kind):
    own = getattr(backend, kind.__name__)
    methods = public(kind)
    assert "__init__" in methods
    for name in methods:
        assert parameters(getattr(own, name)) == parameters(getattr(kind, name)), name


def test_operations_for_bfloat16():
    """All that there are, with the same arguments, and those that only sum up products are others."""
    backend = load_backend("cpu")
    half = backend.bfloat16()
    assert issubclass(backend.BFloat16Buffer, backend.Buffer)
    for name in OPERATIONS:
        assert parameters(getattr(half, name)) == parameters(getattr(backend, name)), name
    others = {name for name in OPERATIONS if getattr(half, name) is not getattr(backend, name)}
    assert others == {"Conv2d", "Conv2dMaxPool2d", "Linear"} and all(getattr(half, name).sums_float32 for name in others)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_buffer(backend, shape, dtype):
    """What is set is what is seen, in any number of samples; the rest stays zero, and a view is the memory itself."""
    samples, = integers(0, (4, *shape), dtype=dtype)
    buffer = backend.Buffer(4, shape, dtype)
    assert buffer.shape == shape and buffer.array.shape == (backend.Buffer.elements(4, shape),) and buffer.array.dtype == dtype
    assert not backend.to_host(buffer.array).any()
    for n in (3, 1, 0):
        buffer.set(n + samples[:n])
        assert equal(backend.to_host(buffer.view(n)), n + samples[:n])
    assert equal(backend.to_host(buffer.view(4)[1:3]), 3 + samples[1:3]) and not backend.to_host(buffer.view(4)[3:]).any()
    backend.write(buffer.view(2), samples[2:])
    assert equal(backend.to_host(buffer.view(3)), np.concatenate([samples[2:], 3 + samples[2:3]]))
    other = backend.Buffer(4, shape, dtype, buffer.array)
    other.set(samples)
    assert other.array is buffer.array and equal(backend.to_host(buffer.view(4)), samples)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_buffer_that_holds_an_array(backend, shape):
    samples, = integers(1, (3, *shape))
    held = backend.Buffer.holding(backend.to_device(samples))
    assert held.shape == shape and equal(backend.to_host(held.view(3)), samples) and held.array.dtype == samples.dtype
    assert backend.Buffer.holding(backend.to_device(samples[:0])).view(0).shape == (0, *shape)


def test_memory(backend):
    a, = integers(2, (3, 4))
    array = backend.to_device(a)
    copy, host = backend.copy_of(array), backend.to_host(array)
    assert backend.place(array) is array and host.flags.carray and equal(backend.to_host(backend.place(a)), a)
    backend.write(array, np.ones((3, 4), np.float32))
    assert equal(backend.to_host(copy), a) and equal(host, a) and (backend.to_host(array) == 1).all()
    backend.write(array, 2.0)
    assert (backend.to_host(array) == 2).all()
    zeros = backend.allocate((2, 3), np.float64)
    assert zeros.shape == (2, 3) and zeros.dtype == np.float64 and not backend.to_host(zeros).any()


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 3), (6,)])
def test_weights(backend, shape):
    """Channels last, and back again in a view."""
    w, = integers(3, shape)
    flat = backend.flat_weight(backend.to_device(w))
    assert equal(backend.to_host(flat), (w.transpose(0, 2, 3, 1) if w.ndim == 4 else w).ravel())
    view = backend.unflat_weight(flat, shape)
    backend.write(view, 2 * w)
    assert view.shape == shape and equal(backend.to_host(backend.unflat_weight(flat, shape)), 2 * w)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(backend, name):
    """Forward writes y, backward dx and the gradients, of two samples out of three; kernels are named for what they compute."""
    arguments, x_shape, y_shape = OPERATIONS[name]
    if name == "Activation":
        kernels = backend.activations
        arguments = ((kernels.relu_forward, kernels.relu_backward), *arguments[1:])
    operation = getattr(backend, name)(*arguments, np.float32)
    assert isinstance(operation, Operation) and operation.bytes(3) >= 0 and 1 <= operation.parts(2)
    assert operation.shares == (name == "Identity" or (name == "Flatten" and backend.device == "cuda"))
    operation.place = Place(0, 0, backend.allocate((1,), np.int64))
    operation.reserve(3)
    samples, dys, w, b = integers(4, (3, *x_shape), (3, *y_shape), WEIGHTS.get(name, y_shape[0]), y_shape[0])
    x, dy = (backend.Buffer.holding(backend.to_device(a)) for a in (samples, dys))
    y, dx = (backend.Buffer(3, shape, np.float32, from_.array if operation.shares else None)
             for shape, from_ in ((y_shape, x), (x_shape, dy)))
    learns = name in WEIGHTS or name == "BatchNorm"
    params = tuple(backend.flat_weight(backend.to_device(a)) for a in (w, b)) if learns else ()
    gradients = backend.Gradients(operation, 2, (w.size, b.size), np.float32)
    targets, add = (gradients.targets, (False, False)) if learns else ((), ())
    forward = operation.forward(2, y, x, params)
    backend.run(forward)
    backward, without_dx = (operation.backward(2, to, targets, dy, x, y, params, add) for to in (dx, None))
    backend.run(backward + gradients.calls * learns)
    assert bool(without_dx) == learns and bool(forward) == bool(backward) != operation.shares
    for written in (y, dx):
        assert backend.to_host(written.view(2)).any() and (operation.shares or not backend.to_host(written.view(3)[2:]).any())
    if name == "Flatten":
        assert equal(backend.to_host(y.view(2)), samples[:2].reshape(2, -1))
        assert equal(backend.to_host(dx.view(2)).reshape(2, -1), dys[:2])
    if learns:
        dw, db = map(backend.to_host, gradients.arrays)
        assert dw.shape == (w.size,) and db.shape == (b.size,) and dw.any() and db.any()
    if "Conv2d" in name:
        kind = {"Conv2d": "conv2d", "Conv2dMaxPool2d": "conv2d_maxpool2d", "Conv2dDepthwise": "conv2d_depthwise",
                "Conv2dGroups": "conv2d"}[name]     # on the CPU those of a convolution for each group
        if backend.device == "cuda" and name in ("Conv2dDepthwise", "Conv2dGroups"):
            kind = "conv2d_groups"
        kernels = {call.kernel.__name__ for call in forward + backward + without_dx}
        assert {f"{kind}_forward", f"{kind}_backward_weight"} <= kernels
        assert kernels & {f"{kind}_backward_input", f"{kind}_backward"}         # in one launch with the weights' or in its own
        assert all(call.flop > 0 for call in forward + backward if call.kernel.__name__.startswith(kind))


@pytest.mark.parametrize("name, expected", [("Add", lambda xs: sum(xs[1:], xs[0])), ("Concat", lambda xs: np.concatenate(xs, 1))])
def test_operations_of_several_inputs(backend, name, expected):
    """Forward writes y, backward each dx that is asked for, of two samples out of three."""
    operation = getattr(backend, name)((X, X, X), np.float32)
    assert isinstance(operation, Operation) and operation.bytes(3) >= 0 and not operation.shares and not operation.stateful
    operation.reserve(3)
    samples = integers(5, *[(3, *X)] * 3)
    whole = expected([a[:2] for a in samples])
    dys, = integers(6, (3, *whole.shape[1:]))
    *xs, dy = (backend.Buffer.holding(backend.to_device(a)) for a in (*samples, dys))
    y, first, _, last = (backend.Buffer(3, shape, np.float32) for shape in (whole.shape[1:], X, X, X))
    backend.run(operation.forward(2, y, tuple(xs), ()))
    backend.run(operation.backward(2, (first, None, last), (), dy, tuple(xs), y, (), ()))
    for written, values in ((y, whole), (first, dys[:2, :2]), (last, dys[:2, -2:])):
        assert equal(backend.to_host(written.view(2)), values) and not backend.to_host(written.view(3)[2:]).any()
    assert operation.hands_on == (name == "Add")
    if operation.hands_on:      # a dx in dy's memory is there already
        here = backend.Buffer(3, X, np.float32, dy.array)
        assert not operation.backward(2, (here, None, here), (), dy, tuple(xs), y, (), ())


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("add", [(True, False), (False, True)])
def test_each_gradient_is_added_to_where_asked(backend, name, add):
    if backend.device == "cuda":
        pytest.skip("a GPU's partial sums are added up elsewhere")
    arguments, x_shape, y_shape = OPERATIONS[name]
    operation = getattr(backend, name)(*arguments, np.float32)
    operation.reserve(2)
    samples, dys, w, b = integers(4, (2, *x_shape), (2, *y_shape), WEIGHTS[name], y_shape[0])
    x, dy, y = (backend.Buffer.holding(a) for a in (samples, dys, dys))
    params = backend.flat_weight(w), backend.flat_weight(b)
    gradients = [backend.allocate((a.size,), np.float32) for a in params]
    backend.run(operation.forward(2, y, x, params))
    backend.run(operation.backward(2, None, gradients, dy, x, y, params, (False, False)))
    once = [gradient.copy() for gradient in gradients]
    backend.run(operation.backward(2, None, gradients, dy, x, y, params, add))
    assert once[0].any() and once[1].any()
    assert all(equal(gradient, (1 + added) * first) for gradient, added, first in zip(gradients, add, once, strict=True))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("frozen", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("n", [3, 2, 0])
def test_frozen_parameters(backend, name, frozen, n):
    """What is left is what it is without; the weights' kernel does not run, and none does where nobody asks for anything."""
    arguments, x_shape, y_shape = OPERATIONS[name]
    operation = getattr(backend, name)(*arguments, np.float32)
    operation.reserve(3)
    samples, dys, w, b = integers(6, (3, *x_shape), (3, *y_shape), WEIGHTS[name], y_shape[0])
    b[:] = -99
    b[:2] = 9, 0        # with a ReLU windows that all, some and none win
    x, dy = (backend.Buffer.holding(backend.to_device(a)) for a in (samples, dys))
    y, params = backend.Buffer(3, y_shape, np.float32), tuple(backend.flat_weight(backend.to_device(a)) for a in (w, b))
    backend.run(operation.forward(n, y, x, params))

    def gradients(frozen, with_dx, repeat=1):
        """dx, dw and db, None in the places of those that nobody asks for; the kernels' names."""
        dx = backend.Buffer.holding(backend.to_device(np.full_like(samples, 99))) if with_dx else None
        found = backend.Gradients(operation, n, (w.size, b.size), np.float32)
        targets, calls = tuple(None if none else target for none, target in zip(frozen, found.targets, strict=True)), []
        for k in range(repeat):
            calls += operation.backward(n, dx, targets, dy, x, y, params, (k > 0, k > 0))
        backend.run(calls + found.calls)
        arrays = [None if none else backend.to_host(array) for none, array in zip(frozen, found.arrays, strict=True)]
        return [dx and backend.to_host(dx.view(3)), *arrays], [call.kernel.__name__ for call in calls]

    whole, _ = gradients((False, False), True)
    assert n == 0 or all(array.any() for array in whole)
    for with_dx in (True, False):
        results, kernels = gradients(frozen, with_dx)
        for result, expected, wanted in zip(results, whole, (with_dx, *(not none for none in frozen)), strict=True):
            assert equal(result, expected) if wanted else result is None
        assert len(kernels) == 0 or with_dx or not all(frozen)
        assert not frozen[0] or not any("backward_weight" in kernel for kernel in kernels)
        if backend.device == "cpu":
            results, _ = gradients(frozen, False, repeat=2)
            assert all(result is None or equal(result, 2 * expected) for result, expected in zip(results, whole, strict=True))


def test_loss_and_update(backend):
    """A loss that float() makes a number of, its gradient, and a step of SGD along it."""
    x, t = integers(5, (4, 4), (4, 4))
    loss, gradient = backend.run_loss(nbcnn.MSELoss(), backend.to_device(x), t, True)
    assert float(loss) == ((x - t) ** 2).mean() and equal(backend.to_host(gradient), (x - t) / 8)
    assert backend.run_loss(nbcnn.MSELoss(), backend.to_device(x), t, False)[1] is None
    param, grad, momentum = (backend.to_device(a.ravel()) for a in (x, t, 2 * x))
    options = np.float32(0.5), np.float32(1), np.float32(0), False, True, False, False
    backend.update(param, momentum, grad, 0.25, options, False)
    assert equal(backend.to_host(momentum), (x + t).ravel()) and equal(backend.to_host(param), (x - (x + t) / 4).ravel())


def test_adam(backend):
    """Powers of two, so that only the quotient is rounded: averages of 0 and 4 halves, and squares of quarters."""
    x, g, m = integers(6, 16, 16, 16)
    param, grad, exp_avg, exp_avg_sq = (backend.to_device(a) for a in (x, g, m, abs(m)))
    options = (*map(np.float32, (0.5, 0.5, 0.75, 0.25, 1, 0.5)), True, True)
    backend.adam_update(param, exp_avg, exp_avg_sq, grad, (0.5, 0.25, 2), options)
    g = x / 2 - g
    m, v = (m + g) / 2, np.float32(0.75) * abs(m) + g * g / 4
    assert equal(backend.to_host(exp_avg), m) and equal(backend.to_host(exp_avg_sq), v) and m.any()
    # Up to three roundings of numbers below 8.
    assert abs(backend.to_host(param) - (x / 2 - m / 4 / (2 * np.sqrt(v) + 1))).max() <= 3 * 8 * np.finfo(np.float32).eps


@pytest.mark.parametrize("size", [0, 1, 3, 4, 37])
def test_whole_vectors(backend, size):
    x, y = integers(7, size, size)
    slow, fast = backend.to_device(x), backend.to_device(y)
    found = backend.sum_of_squares(slow)
    assert found == (x * x).sum() and isinstance(found, np.float64)
    backend.move_average(slow, fast, 0.75)
    assert equal(backend.to_host(slow), np.float32(0.75) * x + np.float32(0.25) * y)
    backend.multiply(fast, 0.5)
    assert equal(backend.to_host(fast), y / 2)
