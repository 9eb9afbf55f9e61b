"""L1, MSE, softmax, the loss classes, and what all kernels of the losses have in common."""
import inspect
import math

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbcnn.losses
from nbcnn.kernels import losses
from nbcnn.kernels.cpu import losses as cpu
from nbcnn.kernels.losses import (
    l1_loss_backward,
    l1_loss_forward,
    log_softmax,
    mse_loss_backward,
    mse_loss_forward,
    softmax,
)

import llvm
import oracles
from arrays import in_both_dtypes

DTYPES = [np.float32, np.float64]
FUNCTIONS = {"l1": (l1_loss_forward, l1_loss_backward, oracles.l1_loss),
             "mse": (mse_loss_forward, mse_loss_backward, oracles.mse_loss)}
CLASSES = {"L1Loss": "l1_loss", "MSELoss": "mse_loss", "CrossEntropyLoss": "cross_entropy", "BCELoss": "bce_loss",
           "BCEWithLogitsLoss": "bce_with_logits"}
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


# ---- L1 and MSE

@in_both_dtypes
def test_frozen_values(dtype):
    # Worked by hand: the differences are 0, 0 and -2.
    x, t = np.array([1, 2, 3], dtype), np.array([1, 2, 5])
    assert l1_loss_forward(x, t) == dtype(2 / 3) and l1_loss_forward(x, t, reduction="sum") == 2
    assert mse_loss_forward(x, t) == dtype(4 / 3) and mse_loss_forward(x, t, reduction="sum") == 4
    assert l1_loss_forward(x, t, reduction="none").tolist() == [0, 0, 2]
    assert mse_loss_forward(x, t, reduction="none").tolist() == [0, 0, 4]
    assert type(l1_loss_forward(x, t)) is type(mse_loss_forward(x, t)) is dtype
    assert l1_loss_backward(x, t, dloss=6).tolist() == [0, 0, -2]
    assert mse_loss_backward(x, t, dloss=6).tolist() == [0, 0, -8]
    assert mse_loss_backward(x, t, reduction="none", dloss=[1, 2, 3]).tolist() == [0, 0, -12]
    assert mse_loss_forward(dtype(3), dtype(5), reduction="none") == 4
    assert type(mse_loss_forward(dtype(3), dtype(5), reduction="none")) is dtype


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, reduction=st.sampled_from(["none", "sum", "mean"]), seed=seeds, whole=st.booleans())
def test_equals_oracle(name, dtype, shape, reduction, seed, whole):
    forward, backward, oracle = FUNCTIONS[name]
    rng = np.random.default_rng(seed)
    x, t, dloss = (rng.integers(-9, 10, s).astype(dtype) for s in (shape, shape, shape if reduction == "none" else ()))
    loss = forward(x, t.astype(np.int64) if whole else t, reduction=reduction)
    dx = backward(x, t, reduction=reduction, dloss=dloss)
    # Whole numbers: only the mean's division rounds, once forward, once backward before a product.
    expected_loss, expected_dx = oracles.reduce_loss(*oracle(x, t), "sum" if reduction == "mean" else reduction, 1, dloss)
    if reduction == "mean":
        expected_loss = dtype(expected_loss) / dtype(x.size or np.nan)
        with np.errstate(invalid="ignore"):
            expected_dx = oracle(x, t)[1] * (dloss / dtype(x.size or np.nan))
    assert loss.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(loss, expected_loss, strict=reduction == "none")
    np.testing.assert_array_equal(dx, expected_dx.astype(dtype), strict=True)


@pytest.mark.quick
@pytest.mark.parametrize("name", FUNCTIONS)
@given(shape=shapes, reduction=st.sampled_from(["none", "sum", "mean"]), seed=seeds)
def test_gradient_is_the_slope(name, shape, reduction, seed):
    forward, backward, _ = FUNCTIONS[name]
    rng = np.random.default_rng(seed)
    x, dloss = rng.normal(size=shape), rng.normal(size=shape if reduction == "none" else ())
    t = x + rng.choice([-1, 1], shape) * rng.uniform(1.5, 3, shape)     # |x - t| > 1: no kink within a step
    slope = oracles.central_differences(lambda x: forward(x, t, reduction=reduction), x, dloss, step=1.0)
    # Polynomials of degree 1 and 2 have no truncation error.
    np.testing.assert_allclose(backward(x, t, reduction=reduction, dloss=dloss), slope, rtol=1e-11, atol=1e-11)


def test_ties_and_nan():
    x, t = np.array([1, np.nan, 2, np.inf]), np.array([1, 0, np.nan, np.inf])
    assert l1_loss_backward(x, t, reduction="sum").tolist() == [0, 0, 0, 0]     # as torch 2.13: a sign of NaN is 0
    assert np.isnan(mse_loss_backward(x, t, reduction="sum")).tolist() == [False, True, True, True]
    for forward in (l1_loss_forward, mse_loss_forward):
        assert np.isnan(forward(x, t, reduction="none")).tolist() == [False, True, True, True] and math.isnan(forward(x, t))


@pytest.mark.parametrize("name", FUNCTIONS)
@given(shape=shapes, reduction=st.sampled_from(["none", "sum", "mean"]), seed=seeds)
def test_layout_does_not_matter_and_inputs_stay(name, shape, reduction, seed):
    forward, backward, _ = FUNCTIONS[name]
    rng = np.random.default_rng(seed)
    x, t = (np.asarray(rng.normal(size=shape), np.float32) for _ in "xt")
    gaps = (*[slice(None, None, -2)] * x.ndim, ...)
    views = np.zeros([2 * size for size in shape], np.float32)[gaps], np.array(t, order="F")
    views[0][...] = x
    for view in views:
        view.flags.writeable = False
    np.testing.assert_array_equal(forward(*views, reduction=reduction), forward(x, t, reduction=reduction))
    np.testing.assert_array_equal(backward(*views, reduction=reduction), backward(x, t, reduction=reduction))
    for view, array in zip(views, (x, t), strict=True):
        np.testing.assert_array_equal(view, array)


def test_nothing():
    x = np.empty((0, 3), np.float32)
    for forward, backward, _ in FUNCTIONS.values():
        assert math.isnan(forward(x, x)) and forward(x, x, reduction="sum") == 0 and backward(x, x).shape == (0, 3)
        assert type(forward(x, x, reduction="sum")) is np.float32


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize("x, t, options, error, message", [
    (X.astype(int), X, {}, TypeError, "x: expected a float32 or float64 array, got ndarray of dtype int64"),
    (X, X.astype(np.float64), {}, TypeError, "t: expected float32, the dtype of x, got float64"),
    (X, X == 0, {}, TypeError, "t: expected float32, the dtype of x, got bool"),
    (X, X[:1], {}, ValueError, r"t: expected shape \(2, 3\), the shape of x, got shape \(1, 3\)"),
    (X, np.zeros(3, int), {}, ValueError, r"t: expected shape \(2, 3\), the shape of x, got shape \(3,\)"),
    (X, "target", {}, TypeError, "t: expected an array of numbers, got str of dtype <U6"),
    (X, X, {"reduction": "average"}, ValueError, "reduction: expected one of 'none', 'mean', 'sum', got 'average'"),
])
def test_errors(x, t, options, error, message):
    for *functions, _ in FUNCTIONS.values():
        for function in functions:
            with pytest.raises(error, match=message):
                function(x, t, **options)


def test_errors_of_dloss():
    for _, backward, _ in FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"dloss: expected shape \(\), the shape of the loss, got shape \(2, 3\)"):
            backward(X, X, dloss=X)
        with pytest.raises(ValueError, match=r"dloss: expected shape \(2, 3\), the shape of the loss, got shape \(3,\)"):
            backward(X, X, dloss=X[0], reduction="none")
        with pytest.raises(TypeError, match="dloss: expected an array of float32, got 'much'"):
            backward(X, X, dloss="much")


# ---- softmax and log_softmax

@in_both_dtypes
def test_softmax_frozen_values(dtype):
    # By hand: exp of 0, ln 2, ln 5 is 1, 2, 5; a shift by 1000 changes nothing and does not overflow.
    x = np.log(np.array([[1, 2, 5]], dtype))
    p = np.array([1 / 8, 2 / 8, 5 / 8])
    assert softmax(x)[0] == pytest.approx(p) and log_softmax(x)[0] == pytest.approx(np.log(p))
    assert softmax(x + dtype(1000))[0] == pytest.approx(p, rel=1e-3) and softmax(x).dtype == dtype
    assert softmax(np.array([0, 1e4], dtype), 0).tolist() == [0, 1]
    assert softmax(np.array([-1e4, -1e4], dtype), 0).tolist() == [0.5, 0.5]
    assert log_softmax(np.array([1e4, 1e4], dtype), 0) == pytest.approx(np.log([0.5, 0.5]), rel=1e-6)
    assert log_softmax(np.array([0, 1e4], dtype), -1).tolist() == [-1e4, 0]
    # torch 2.13: -inf is probability 0, but a row of nothing else, +inf or NaN is NaN.
    x = np.array([[1, -np.inf], [np.inf, 1], [-np.inf, -np.inf], [1, np.nan], [np.nan, 1]], dtype)
    np.testing.assert_array_equal(softmax(x), [[1, 0]] + [[np.nan] * 2] * 4)
    np.testing.assert_array_equal(log_softmax(x), [[0, -np.inf]] + [[np.nan] * 2] * 4)


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), data=st.data(), seed=seeds)
def test_softmax_equals_oracle(dtype, shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = (np.random.default_rng(seed).normal(size=shape) * data.draw(st.sampled_from([0.1, 1, 30]))).astype(dtype)
    wide = np.repeat(x, 2, axis=0)[::-2]
    wide.flags.writeable = False
    for function, logarithm in ((softmax, False), (log_softmax, True)):
        y = function(x, axis)
        a = x - np.logaddexp.reduce(x.astype(np.float64), axis, keepdims=True) if x.size else x
        # One eps for each subtraction of numbers up to max|x|; in p that is relative, down to the denormals.
        tolerance = 8 * np.finfo(dtype).eps * (1 + np.abs(x).max(initial=0))
        assert y.dtype == dtype and y.shape == x.shape
        expected, smallest = (a, tolerance) if logarithm else (np.exp(a), np.finfo(dtype).tiny)
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=smallest)
        np.testing.assert_array_equal(function(wide, axis), np.flip(y, 0) if axis % x.ndim else function(x[::-1], axis))


@pytest.mark.parametrize("x, axis, error, message", [
    (X, 2, ValueError, r"axis: expected an axis of x of shape \(2, 3\), got 2"),
    (X, -3, ValueError, "axis: .* got -3"),
    (X[0], 1, ValueError, r"axis: expected an axis of x of shape \(3,\), got 1"),
    (X, 0.5, TypeError, "axis: expected an int, got 0.5"),
    (X.astype(int), 1, TypeError, "x: expected a float32 or float64 array"),
])
def test_softmax_errors(x, axis, error, message):
    for function in (softmax, log_softmax):
        with pytest.raises(error, match=message):
            function(x, axis)


# ---- all kernels

ROWS = ["softmax", "log_softmax", "total_weight", "cross_entropy_forward", "cross_entropy_backward",
        "soft_cross_entropy_forward", "soft_cross_entropy_backward"]
ELEMENTWISE = ["l1_loss_forward", "l1_loss_backward", "mse_loss_forward", "mse_loss_backward", "bce_loss_forward",
               "bce_loss_backward", "bce_with_logits_forward", "bce_with_logits_backward"]


@pytest.mark.parametrize("name", ROWS + ELEMENTWISE)
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_write_their_outputs_and_nothing_else(name, size, dtype):
    """Outputs and scratch lie between guards and hold NaN before; a kernel's arguments are found by their names."""
    kernel, rng = getattr(cpu, name), np.random.default_rng(0)
    R, C = size, 3
    vector = R if name in ROWS else (R,)
    x_shape = (R, C) if name in ROWS else (R,)
    inputs = {"x": x_shape, "t": x_shape, "dlosses": vector, "pos_weight": vector, "w": C}
    inputs = {key: rng.uniform(0.1, 0.9, shape).astype(dtype) for key, shape in inputs.items()}
    inputs |= {"keep": dtype(0.9), "share": dtype(0.1 / C), "ignore_index": 1}
    if name in ROWS and not name.startswith("soft"):
        inputs["t"] = np.arange(R) % C
    outputs = {"losses": R, "kept": R, "dx": x_shape, "p": x_shape, "a": x_shape, "row": C}
    guarded = {key: np.full(np.prod(shape, dtype=int) + 16, np.nan, dtype) for key, shape in outputs.items()}
    for memory in guarded.values():
        memory[:8] = memory[-8:] = -7
    arguments = inputs | {key: memory[8:-8].reshape(outputs[key]) for key, memory in guarded.items()}
    before = {key: np.array(value) for key, value in inputs.items()}
    names = list(inspect.signature(kernel.py_func).parameters)
    kernel(*(arguments[key] for key in names))
    for key, memory in guarded.items():
        assert (memory[:8] == -7).all() and (memory[-8:] == -7).all(), key
        if key in names and key != "row":
            assert not np.isnan(memory).any(), key
    for key, value in before.items():
        np.testing.assert_array_equal(inputs[key], value)


def test_layouts_need_no_compilation():
    kernels = [getattr(cpu, name) for name in (*ROWS, *ELEMENTWISE, "tree_sum", "first_outside_unit", "first_bad_class")]
    x = np.random.default_rng(0).uniform(size=(2, 3)).astype(np.float32)
    t = np.array([0, 1])
    call_all(x, x, t)
    before = [kernel.signatures for kernel in kernels]
    for a in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1]):
        call_all(a, a, t.astype(np.int32))
    x.flags.writeable = t.flags.writeable = False
    call_all(x, x, t)
    assert [kernel.signatures for kernel in kernels] == before


def call_all(x, p, t):
    """Every public function: x and p (N, C) in [0, 1], t (N,) class indices."""
    for name in CLASSES.values():
        for pass_ in ("forward", "backward"):
            getattr(losses, f"{name}_{pass_}")(x, p)
    for function in (losses.cross_entropy_forward, losses.cross_entropy_backward):
        function(x, t, label_smoothing=0.1, weight=p[0])
    softmax(x)
    log_softmax(x)


@given(count=st.integers(0, 300), seed=seeds)
def test_tree_sum(count, seed):
    whole = np.random.default_rng(seed).integers(-99, 100, count)
    assert cpu.tree_sum(whole.astype(np.float32)) == whole.sum()


def test_sums_lose_no_digits():
    # In sequence, float32 would lose 1e-3 here; a tree of 20 levels loses at most 20 half eps, and mostly one.
    x, t = np.random.default_rng(0).uniform(size=(2, 1_000_000)).astype(np.float32)
    for forward, _, oracle in FUNCTIONS.values():
        losses, _ = oracle(x.astype(np.float64), t.astype(np.float64))
        assert forward(x, t) == pytest.approx(losses.mean(), rel=2e-7)


def test_no_double_in_float32_kernels():
    x = np.random.default_rng(0).uniform(size=(2, 3)).astype(np.float32)
    call_all(x, x, [0, 1])
    for name in [*ROWS, *ELEMENTWISE, "tree_sum", "first_outside_unit"]:
        assert llvm.double_operations(getattr(cpu, name)) == [], name


def test_a_double_would_be_seen():
    @numba.njit
    def callee(x, a):
        x[0] = x[0] * 1.1 + a

    @numba.njit
    def caller(x, a):
        callee(x, a)

    x = np.ones(3, np.float32)
    caller(x, np.float32(2))
    assert llvm.double_operations(caller)       # 1.1 is a float64
    with pytest.raises(ValueError, match="has not been called with float32"):
        llvm.double_operations(numba.njit(callee.py_func))


# ---- classes

@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights_as", [list, np.float64, np.float16, np.int32, None])
def test_classes_call_their_kernels(name, dtype, weights_as):
    """Weights may have any dtype of numbers, or none as in a list: x's counts."""
    rng = np.random.default_rng(0)
    x, t = rng.uniform(size=(2, 4, 3)).astype(dtype)
    options = {"reduction": "none"}
    if name not in ("L1Loss", "MSELoss"):
        options["weight"] = np.array([1, 3, 2], dtype)      # all of these dtypes have them
    if name == "BCEWithLogitsLoss":
        options["pos_weight"] = np.array([[2], [5], [1], [3]], dtype)
    if name == "CrossEntropyLoss":
        options |= {"ignore_index": 1, "label_smoothing": 0.2}
        t = np.array([0, 1, 2, 2])
    forward, backward = (getattr(losses, f"{CLASSES[name]}_{pass_}") for pass_ in ("forward", "backward"))
    dloss = rng.normal(size=np.shape(forward(x, t, **options))).astype(dtype)
    given = {key: value.tolist() if weights_as is list else value.astype(weights_as or dtype)
             for key, value in options.items() if isinstance(value, np.ndarray)}
    loss = getattr(nbcnn.losses, name)(**{**options, **given})
    for value in (loss(x, t), loss.forward(x, t)):
        np.testing.assert_array_equal(value, forward(x, t, **options), strict=True)
    np.testing.assert_array_equal(loss.backward(x, t, dloss), backward(x, t, dloss=dloss, **options), strict=True)
    np.testing.assert_array_equal(loss.backward(x, t), backward(x, t, **options), strict=True)
    assert all(isinstance(getattr(loss, key), np.ndarray) for key in options if key.endswith("weight"))
    assert repr(loss).startswith(f"{name}(") and "reduction='none'" in repr(loss)


@pytest.mark.parametrize("name", CLASSES)
def test_class_defaults(name):
    x = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    t = np.array([0, 1, -100, 2]) if name == "CrossEntropyLoss" else x[::-1]
    loss = getattr(nbcnn.losses, name)()
    assert loss.reduction == "mean" and loss(x, t) == getattr(losses, f"{CLASSES[name]}_forward")(x, t)
    assert isinstance(loss(x, t), np.float32)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("option", ["size_average", "reduce"])
def test_retired_options_are_refused(name, option):
    for value in (True, False):
        with pytest.raises(TypeError, match=f"{option} is retired: choose reduction='mean', 'sum' or 'none'"):
            getattr(nbcnn.losses, name)(**{option: value})
    with pytest.raises(ValueError, match="reduction: expected one of"):
        getattr(nbcnn.losses, name)(reduction="average")


def test_errors_of_classes():
    with pytest.raises(ValueError, match="label_smoothing"):
        nbcnn.losses.CrossEntropyLoss(label_smoothing=2)
    with pytest.raises(TypeError, match="weight: expected an array of numbers, got ndarray of dtype complex128"):
        nbcnn.losses.CrossEntropyLoss(weight=np.ones(3, complex))


def test_an_index_to_ignore_that_is_no_int64():
    for function in (losses.cross_entropy_forward, lambda x, t, **options: nbcnn.losses.CrossEntropyLoss(**options)(x, t)):
        with pytest.raises(ValueError, match=r"^ignore_index: expected an int <= 9223372036854775807, got 1000"):
            function(np.ones((2, 3)), [0, 1], ignore_index=10**30)
