"""`nbcnn.check_gradients`: what is right passes, and a wrong number of a gradient is found and named."""
import re

import numpy as np
import pytest
from numba import njit, prange
from own_layers import Scale, ScaleCPU, Softplus
from test_own_layers import Forgetful

import nbcnn
from nbcnn.kernels.operation import Call, Operation

from cases import LAYERS, OWN_LAYERS


@pytest.mark.parametrize("case", [case for case in LAYERS + OWN_LAYERS if case.layer.inputs == 1], ids=str)
def test_every_layer(case):
    layer = case.make()
    check = nbcnn.check_gradients(layer, case.shape)
    assert check and check.ok, check
    assert [row.name for row in check.rows] == ["x", *layer.parameters]
    assert [row.shape for row in check.rows] == [(2, *case.shape), *(p.shape for p in layer.parameters.values())]
    assert all(0 < row.compared == min(64, np.prod(row.shape)) for row in check.rows)


def small_model(**options):
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(2, 4, 3)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(2)),
                             ("softplus1", Softplus(2.0)), ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(16, 3))],
                            **options)


@pytest.mark.parametrize("fuse", [True, False])
def test_a_network_with_its_own_values(fuse):
    model = small_model(classes=["a", "b", "c"])
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    step.forward(np.ones((1, 2, 6, 6), np.float32), [1])
    step.backward()
    before = model.vector.data.copy(), model.vector.grad.copy()
    check = nbcnn.check_gradients(model, [2, 6, 6], fuse=fuse, seed=3)
    assert check and [row.name for row in check.rows] == ["x", "conv1.weight", "conv1.bias", "linear1.weight", "linear1.bias"]
    assert (model.vector.data == before[0]).all() and (model.vector.grad == before[1]).all() and model.dtype == np.float32
    model.conv1.weight.data[0, 0, 0, 0] = np.nan        # its values are those that count
    assert not nbcnn.check_gradients(model, (2, 6, 6))


class Own(nbcnn.Layer):
    """A layer whose loops are NumPy's."""
    y_of, dx_of = None, None

    def output_shape(self, shape):
        return shape

    def operation(self, backend, shape, dtype):
        operation = Operation()
        operation.forward = lambda n, y, x, params: [Call(lambda: y.set(self.y_of(x.view(n))), ())]
        operation.backward = lambda n, dx, dparams, dy, x, *rest: [Call(lambda: dx.set(self.dx_of(dy.view(n), x.view(n))), ())]
        return operation


@pytest.mark.parametrize("slope, right", [(-0.1, False), (0, True), (0.4, True), (1, True), (1.1, False)])
def test_at_a_kink_any_slope_between_those_of_both_sides_is_right(slope, right):
    """A ReLU whose kink is at 1, which is one of six numbers from -2 to 2 that are 2/3 apart."""
    class Shifted(Own):
        y_of = staticmethod(lambda x: np.maximum(x - 1, 0))
        dx_of = staticmethod(lambda dy, x: dy * np.where(abs(x - 1) < 1e-9, slope, x > 1))
    assert nbcnn.check_gradients(Shifted(), (3,)).ok is right


@pytest.mark.parametrize("shape, index, where", [((3, 4), (1, 2, 3), (1, 2, 3)), ((3, 40, 50), (1, 2, 33, 49), "all")])
@pytest.mark.parametrize("change", [lambda d: d, lambda d: d + 1e-2, lambda d: -d, lambda d: np.nan])
def test_one_wrong_number_is_found(shape, index, where, change):
    class Cube(Own):
        y_of = staticmethod(lambda x: x ** 3)

        @staticmethod
        def dx_of(dy, x):
            dx = 3 * dy * x ** 2
            dx[index] = change(dx[index])
            return dx
    check = nbcnn.check_gradients(Cube(), shape)
    (row,) = check.rows
    right = change(2) == 2
    assert check.ok is bool(check) is row.ok is right
    assert re.search(rf"^x +2 x {' x '.join(map(str, shape))} .* {'ok' if right else 'WRONG'}$", str(check), re.MULTILINE)
    if right:
        assert 0 < row.error < 1e-7     # h squared is 1e-12, a rounding over h 1e-10
    else:
        assert row.where == where and str(check).splitlines()[-1].startswith(f"x {where}: backward ")


@pytest.mark.parametrize("given, shape, error, message", [
    (nbcnn.ReLU, (3,), TypeError, "model: expected a nbcnn.Sequential, got <class 'nbcnn.layers.ReLU'>; write ReLU"),
    ("relu", (3,), TypeError, "model: expected a nbcnn.Sequential, got str"),
    (nbcnn.ReLU(), 3, TypeError, "shape: expected a tuple of ints, of one sample, got 3"),
    (nbcnn.ReLU(), (3, 0), ValueError, "shape: expected an int >= 1, got 0"),
    (nbcnn.Conv2d(2, 3, 3), (1, 2, 5, 5), ValueError, r"layer: expected images \(N, 2, H, W\), got \(N, 1, 2, 5, 5\)"),
    (Forgetful(3), (3,), ValueError, "layer_or_model: expected self.arguments of Forgetful to hold what its constructor takes, to "
                                     "make it again: .*'size'"),
])
def test_errors(given, shape, error, message):
    with pytest.raises(error, match=f"^{message}"):
        nbcnn.check_gradients(given, shape)


def test_the_table():
    lines = str(nbcnn.check_gradients(nbcnn.Linear(40, 3), (40,))).splitlines()
    assert lines[:3] == ["backward against (f(+h) - f(-h)) / 2h, f = sum(dy * y) with a random dy,",
                         "in float64, h = 9.5e-07, tolerance 1e-06", ""]
    assert [re.sub(r"\S+e[-+]\d+", "?", line).split() for line in lines[3:]] == [
        ["gradient", "shape", "compared", "error"], [lines[4]], ["x", "2", "x", "40", "64", "of", "80", "?", "ok"],
        ["weight", "3", "x", "40", "64", "of", "120", "?", "ok"], ["bias", "3", "3", "of", "3", "?", "ok"]]


@njit(parallel=True)
def square_forward(y, x, count):
    for k in prange(count):
        y[k] = x[k] * x[k]


@njit(parallel=True)
def square_backward(dx, dy, x, count):
    for k in prange(count):
        dx[k] = 2 * dy[k] * x[k]


@njit(parallel=True)
def adding_forward(y, x, count):
    for k in prange(count):
        y[k] += x[k] * x[k]


@njit(parallel=True)
def adding_backward(dx, dy, x, count):
    for k in prange(count):
        dx[k] += 2 * dy[k] * x[k]


@pytest.mark.parametrize("forward, backward, right", [
    (square_forward, square_backward, True), (adding_forward, square_backward, False), (square_forward, adding_backward, False)])
def test_what_is_to_be_written_is_not_added_to(forward, backward, right):
    """In a fresh buffer of zeros it would be the same; in a second step it is not."""
    kind = type("Square", (nbcnn.Activation,), {"function": {"cpu": (forward, backward)}})
    assert bool(nbcnn.check_gradients(kind(), (3, 4))) == right
    model = nbcnn.Sequential(nbcnn.Linear(4, 5), kind(), nbcnn.Linear(5, 2))
    assert bool(nbcnn.check_gradients(model, (4,))) == right


def test_gradients_that_are_to_be_added_to_are_not_overwritten():
    class OverwritingCPU(ScaleCPU):
        def backward(self, n, dx, dparams, dy, x, y, params, add):
            return super().backward(n, dx, dparams, dy, x, y, params, (False, True))

    class Overwriting(Scale):
        def operation(self, backend, shape, dtype):
            return OverwritingCPU(shape)
    check = nbcnn.check_gradients(Overwriting(3), (3, 2, 2))
    assert [row.ok for row in check.rows] == [True, False, True] and "after two backwards" in repr(check)
