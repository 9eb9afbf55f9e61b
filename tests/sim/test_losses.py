"""Losses and softmax on a simulated GPU, against the CPU's; the state that training keeps."""
import math

import numpy as np
import pytest

from nbcnn.kernels import losses
from nbcnn.kernels.cuda import losses as gpu
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed
from nbcnn.kernels.cuda.launch import run
from nbcnn.kernels.cuda.state import STEP, STOPPED, UPDATE, make_state

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
REDUCTIONS = ["none", "mean", "sum"]
ELEMENTWISE = {"L1": (losses.l1_loss_forward, losses.l1_loss_backward), "MSE": (losses.mse_loss_forward, losses.mse_loss_backward),
               "BCE": (losses.bce_loss_forward, losses.bce_loss_backward),
               "BCEWithLogits": (losses.bce_with_logits_forward, losses.bce_with_logits_backward)}
CROSS_ENTROPY = losses.cross_entropy_forward, losses.cross_entropy_backward


def on_gpu(value):
    """Arrays go to the device, what else there is stays."""
    return to_device(value) if isinstance(value, np.ndarray) and value.ndim else value


def check(functions, x, t, options, dloss, scale, terms=1):
    """Forward and backward on the GPU against those on the CPU, where terms up to `scale` cancel: a few roundings each."""
    moved = {name: on_gpu(value) for name, value in options.items()}
    arguments = to_device(x), to_device(np.asarray(t))
    loss, dx = functions[0](*arguments, **moved), functions[1](*arguments, dloss=on_gpu(dloss), **moved)
    eps = np.finfo(x.dtype).eps
    for result, expected, atol in ((loss, functions[0](x, t, **options), 8 * eps * scale * terms),
                                   (dx, functions[1](x, t, dloss=dloss, **options), 8 * eps * np.abs(dloss).max(initial=1))):
        assert result.shape == np.shape(expected) and result.dtype == x.dtype
        np.testing.assert_allclose(to_host(result), expected, rtol=8 * eps, atol=atol)
    return to_host(loss), to_host(dx)


def upstream(rng, shape, reduction, dtype):
    return rng.normal(size=shape).astype(dtype) if reduction == "none" else dtype(rng.normal())


# ---- elementwise losses

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["L1", "MSE"])
def test_whole_numbers_are_exact(kind, reduction, dtype):
    """More elements than threads; integer targets; dloss a number, a device array of shape () or one for each loss."""
    forward, backward = ELEMENTWISE[kind]
    rng = np.random.default_rng(0)
    x, t = rng.integers(-9, 10, (2, 3, 4)).astype(dtype), rng.integers(-9, 10, (2, 3, 4))
    assert x.size > 2 * gpu.BLOCK
    for target in (t, t.astype(dtype), t.astype(np.uint8)):
        loss = forward(to_device(x), to_device(target), reduction=reduction)
        assert loss.dtype == dtype and loss.shape == (t.shape if reduction == "none" else ())
        assert (to_host(loss) == forward(x, target, reduction=reduction)).all()
    x[0, 0, 0] = np.nan
    for dloss in (3.0, np.array(3, dtype), rng.integers(-9, 10, x.shape).astype(dtype))[:2 + (reduction == "none")]:
        given = to_device(dloss) if isinstance(dloss, np.ndarray) else dloss
        dx = backward(to_device(x), to_device(t), reduction=reduction, dloss=given)
        np.testing.assert_array_equal(to_host(dx), backward(x, t, reduction=reduction, dloss=dloss), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", range(4))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["BCE", "BCEWithLogits"])
def test_binary_cross_entropy(kind, reduction, weighted, dtype):
    rng = np.random.default_rng(weighted)
    shape = [(19,), (), (3, 5), (2, 3, 4)][weighted]
    t = rng.uniform(size=shape)
    t = np.where(rng.random(shape) < 0.5, np.round(t), t).astype(dtype)
    options = {"reduction": reduction}
    if weighted & 1:
        options["weight"] = [rng.uniform(0.1, 3, shape[-1:]).astype(dtype), 2.0][weighted == 1]
    if kind == "BCE":
        x = rng.uniform(size=shape)
        x = np.where(rng.random(shape) < 0.3, np.round(x), x).astype(dtype)
    else:
        x = (rng.normal(size=shape) * 20).astype(dtype)
        if weighted & 2:
            options["pos_weight"] = rng.uniform(0.1, 3, shape).astype(dtype)
    check(ELEMENTWISE[kind], x, t, options, upstream(rng, shape, reduction, dtype), 1 + np.abs(x).max(), max(1, x.size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends(dtype):
    """The loss of a probability is clamped, its gradient is not; large logits do not overflow, small losses keep their digits."""
    x, t = np.array([1, 0, 1, 0, 1e-30, 1e-10, np.finfo(dtype).smallest_subnormal], dtype), np.array([0, 1, 1, 0, 1, 0, 1], dtype)
    loss, dx = check(ELEMENTWISE["BCE"], x, t, {"reduction": "none"}, np.ones(7, dtype), 0)
    assert loss[0] == loss[6] == 100 and dx[:2].tolist() == [dtype(1) / dtype(1e-12), -dtype(1) / dtype(1e-12)]
    x, t = np.array([1e4, -1e4, 1e4, -1e4, -20, 20, np.nan], dtype), np.array([0, 1, 1, 0, 0, 1, 1], dtype)
    with np.errstate(over="ignore"):
        loss, _ = check(ELEMENTWISE["BCEWithLogits"], x, t, {"reduction": "none"}, np.ones(7, dtype), 0)
    assert loss[:4].tolist() == [1e4, 1e4, 0, 0] and loss[4] > 0 and np.isnan(loss[6])


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_nothing(kind):
    forward, backward = ELEMENTWISE[kind]
    x = to_device(np.empty((0, 3), np.float32))
    assert math.isnan(to_host(forward(x, x))) and to_host(forward(x, x, reduction="sum")) == 0
    assert forward(x, x, reduction="none").shape == backward(x, x).shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_elementwise_training(kind, dtype):
    """Labels for targets: each step takes its own, writes its own loss, and moves on. Loss, losses and gradient are one launch."""
    rng, forward, backward = np.random.default_rng(0), *ELEMENTWISE[kind]
    labels, state = np.array([2, 0, 1, 1, 2]), make_state()
    loss = to_device(np.full(4, 99, dtype))
    for step, count in enumerate((2, 2, 1)):
        x = rng.uniform(0.1, 0.9, (count, 3)).astype(dtype)
        t = np.eye(3, dtype=dtype)[labels[2 * step:2 * step + count]]
        each, dx = (to_device(np.full((3, 3), 99, dtype)) for _ in range(2))
        operation = getattr(gpu, f"{kind}Loss")(to_device(x), to_device(labels), "mean")
        run([operation.call(loss, each, dx, to_device(np.ones(1, dtype)), state, 2, True)])
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(to_host(each)[:count], forward(x, t, reduction="none"), rtol=8 * eps)
        np.testing.assert_allclose(to_host(dx)[:count], backward(x, t), rtol=8 * eps, atol=8 * eps)
        np.testing.assert_allclose(to_host(loss)[step], forward(x, t), rtol=8 * eps)
        assert (to_host(each)[count:] == 99).all() and (to_host(dx)[count:] == 99).all() and (to_host(loss)[step + 1:] == 99).all()
        assert to_host(state).tolist() == [step + 1, step, 0]
    assert state.dtype == np.int64 and (STEP, UPDATE, STOPPED) == (0, 1, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops(value):
    state, loss = make_state(), to_device(np.zeros(3, np.float32))
    for step, x in enumerate((1.0, value, 2.0)):
        x = to_device(np.array([2.0, x], np.float32))
        t = to_device(np.zeros(2, np.float32))
        run([gpu.MSELoss(x, t, "mean").call(loss, state=state, advance=True)])
        assert to_host(state).tolist() == [step + 1, step, min(step, 1)]
    assert to_host(loss)[0] == 2.5 and not np.isfinite(to_host(loss)[1]) and to_host(loss)[2] == 4


def test_numbers_that_are_no_probabilities_give_nan_in_training():
    state = make_state()
    bad, good = [-0.25, 1.5, np.nan], [0.5] * 3
    x, t = (to_device(np.array([*values, 0.5], np.float32)) for values in (bad + good, good + bad))
    each, dx = (to_device(np.zeros(7, np.float32)) for _ in range(2))
    dloss = to_device(np.ones(1, np.float32))
    run([gpu.BCELoss(x, t, "sum").call(None, each, dx, dloss, state, 0, True)])
    for result in (each, dx):
        assert np.isnan(to_host(result)).tolist() == [True] * 6 + [False]
    assert to_host(state).tolist() == [1, 0, 1]


# ---- cross-entropy

@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positions, dtype", [((), np.float64), ((19,), np.float32), ((2, 2, 3), np.float64)])
def test_cross_entropy(positions, dtype, reduction, smoothing, weighted):
    """Class indices, with an ignored class, and probabilities; more rows than threads; classes on the second of many axes."""
    C = 4
    rng = np.random.default_rng(len(positions))
    x = (rng.normal(size=(*positions[:1], C, *positions[1:])) * 5).astype(dtype)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = rng.uniform(0.1, 2, C).astype(dtype)
    dloss = upstream(rng, positions, reduction, dtype)
    t = rng.integers(0, C, positions)
    for ignored in (int(t.flat[0]), 77):
        targets = np.where(rng.random(positions) < 0.3, ignored, t)
        loss, dx = check(CROSS_ENTROPY, x, targets, options | {"ignore_index": ignored}, dloss, 1 + np.abs(x).max(), 4 + t.size)
        rows = np.moveaxis(dx, min(1, x.ndim - 1), -1)
        assert (rows[targets == ignored] == 0).all() and (reduction != "none" or (loss[targets == ignored] == 0).all())
    t = rng.dirichlet(np.ones(C), positions).astype(dtype)
    check(CROSS_ENTROPY, x, np.moveaxis(t, -1, min(1, x.ndim - 1)), options, dloss, 1 + np.abs(x).max(), 4 + t.size)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_that_do_not_count(smoothing):
    rng = np.random.default_rng(0)
    x, options = rng.normal(size=(3, 4)), {"label_smoothing": smoothing}
    loss, dx = check(CROSS_ENTROPY, x, np.full(3, -100), options, 1.0, 1)
    assert math.isnan(loss) and (dx == 0).all()
    assert check(CROSS_ENTROPY, x, np.full(3, -100), options | {"reduction": "sum"}, 1.0, 1)[0] == 0
    x[1] = [np.nan, np.inf, -np.inf, 0]         # an ignored row harms nobody
    loss, dx = check(CROSS_ENTROPY, x, np.array([0, 2, 1]), options | {"ignore_index": 2}, 1.0, 1)
    assert math.isfinite(loss) and (dx[1] == 0).all()
    x = rng.normal(size=(3, 3))                 # weights that sum to 0
    loss, dx = check(CROSS_ENTROPY, x, np.array([0, -100, 2]), options | {"weight": np.array([0.0, 1.0, 0.0])}, 1.0, 1)
    assert math.isnan(loss) and np.isnan(dx[[0, 2]]).all() and (dx[1] == 0).all()
    for t in (np.empty(0, np.int64), np.empty((0, 3))):
        assert math.isnan(check(CROSS_ENTROPY, np.empty((0, 3)), t, options, 1.0, 1)[0])
        assert check(CROSS_ENTROPY, np.empty((0, 3)), t, options | {"reduction": "sum"}, 1.0, 1)[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_scores_that_are_not_finite(dtype):
    nan, inf = np.nan, np.inf
    x = np.array([[1, -inf, 2], [1, -inf, 2], [1, inf, 0], [nan, 1, 2], [1, 2, nan], [-inf] * 3, [1e4, 0, -1e4]], dtype)
    t = np.array([0, 1, 0, 1, 0, 1, 2])
    for smoothing in (0.0, 0.1):
        check(CROSS_ENTROPY, x, t, {"reduction": "none", "label_smoothing": smoothing}, np.ones(7, dtype), 1)
    assert np.isnan(check(CROSS_ENTROPY, x, t, {}, 1.0, 1)[0])
    for function in (losses.softmax, losses.log_softmax):
        np.testing.assert_allclose(to_host(function(to_device(x))), function(x), rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint8, np.uint64])
def test_indices_of_any_dtype_and_strided_arrays(kind):
    x, t = np.random.default_rng(0).normal(size=(5, 4)), np.array([3, 0, 1, 2, 3])
    expected = losses.cross_entropy_forward(x, t)
    view = transposed(to_device(x.T.copy()), (1, 0))
    loss, dx = losses.cross_entropy_forward_backward(view, to_device(t.astype(kind)))
    assert abs(to_host(loss) - expected) < 1e-15
    np.testing.assert_allclose(to_host(dx), losses.cross_entropy_backward(x, t), atol=1e-15)
    assert abs(to_host(losses.cross_entropy_forward(view, to_device(t), weight=[1, 1, 1, 1])) - expected) < 1e-15
    strided = to_device(np.repeat(np.ones(4), 2))[::2]
    assert abs(to_host(losses.cross_entropy_forward(view, to_device(t), weight=strided)) - expected) < 1e-15
    assert abs(to_host(losses.mse_loss_forward(view, view, reduction="sum"))) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_training(dtype):
    """Each step takes its own labels, writes its own loss, and moves on; the last batch is smaller."""
    labels, state = np.array([[2, 0], [1, -100], [1, 2], [0, 0], [2, 1]]), make_state()
    loss, rng = to_device(np.full(4, 99, dtype)), np.random.default_rng(0)
    for step, count in enumerate((2, 2, 1)):
        x, t = rng.normal(size=(count, 3, 2)).astype(dtype), labels[2 * step:2 * step + count]
        each, dx = to_device(np.full(4, 99, dtype)), to_device(np.full((2, 3, 2), 99, dtype))
        operation = gpu.CrossEntropyLoss(*map(to_device, (x, labels)), "mean", None, -100, 0.9, 0.1 / 3)
        run([operation.call(loss, each, dx, to_device(np.ones(1, dtype)), state, 2, True)])
        eps, options = np.finfo(dtype).eps, {"label_smoothing": 0.1}
        np.testing.assert_allclose(to_host(loss)[step], losses.cross_entropy_forward(x, t, **options), rtol=16 * eps)
        np.testing.assert_allclose(to_host(each)[:t.size], losses.cross_entropy_forward(x, t, reduction="none", **options).ravel(),
                                   rtol=16 * eps)
        np.testing.assert_allclose(to_host(dx)[:count], losses.cross_entropy_backward(x, t, **options), rtol=16 * eps, atol=8 * eps)
        assert all((a == 99).all() for a in (to_host(each)[t.size:], to_host(dx)[count:], to_host(loss)[step + 1:]))
        assert to_host(state).tolist() == [step + 1, step, 0]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_that_are_no_class_give_nan_in_training(weighted, mean):
    """They touch no foreign memory: the arrays are the first third of longer ones."""
    guarded = [to_device(np.full(size, 99.0)) for size in (12, 36, 36)]
    each, dx, x = (a[:a.size // 3] for a in guarded)
    x.copy_to_device(np.random.default_rng(0).normal(size=12))
    weight, state = to_device(np.ones(9))[3:6] if weighted else None, make_state()
    labels, loss = to_device(np.array([1, -1, 3, -100])), to_device(np.zeros(1))
    operation = gpu.CrossEntropyLoss(x.reshape(4, 3), labels, "mean" if mean else "sum", weight, -100, 1, 0)
    run([operation.call(loss, each, dx, to_device(np.ones(1)), state, 4, True)])
    assert np.isnan(to_host(loss)).all() and to_host(state).tolist() == [1, 0, 1]
    assert np.isnan(to_host(each)).tolist() == [False, True, True, False]
    assert np.isnan(to_host(dx).reshape(4, 3)).all(1).tolist() == [mean, True, True, False]
    assert (to_host(dx)[9:] == 0).all()
    assert all((to_host(a)[a.size // 3:] == 99).all() for a in guarded)


# ---- softmax

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axis", [((4,), 0), ((3, 4), 1), ((3, 4), 0), ((2, 3, 4), 1), ((2, 3, 4), -1), ((35, 2), 1),
                                         ((0, 3), 1)])
def test_softmax(shape, axis, dtype):
    x = (np.random.default_rng(0).normal(size=shape) * 5).astype(dtype)
    for function in (losses.softmax, losses.log_softmax):
        y = function(to_device(x), axis)
        assert y.shape == shape and y.dtype == dtype
        np.testing.assert_allclose(to_host(y), function(x, axis), rtol=8 * np.finfo(dtype).eps, atol=32 * np.finfo(dtype).eps)


# ---- errors

HALF, LABELS = np.full((2, 3), 0.5, np.float32), np.array([0, 2])
X, T = to_device(HALF), to_device(LABELS)
FORWARD, BACKWARD = CROSS_ENTROPY


def with_value(value):
    x = HALF.copy()
    x[1, 2] = value
    return to_device(x)


@pytest.mark.parametrize("function, x, t, options, error, message", [
    *((function, *pair, {}, TypeError, message) for functions in (*ELEMENTWISE.values(), CROSS_ENTROPY) for function in functions
      for pair, message in (((HALF, X), "^x: expected device arrays, as t is one"),
                            ((X, HALF), "^t: expected device arrays, as x is one"),
                            ((X, HALF.tolist()), "^t: expected device arrays"))),
    (FORWARD, X, LABELS, {}, TypeError, "^t: expected device arrays, as x is one"),
    (FORWARD, X, T, {"weight": HALF[0]}, TypeError, "^weight: expected device arrays"),
    (BACKWARD, X, T, {"dloss": HALF[:, 0], "reduction": "none"}, TypeError,
     "^dloss: expected device arrays"),
    (losses.bce_loss_forward, X, X, {"weight": HALF}, TypeError, "^weight: expected device arrays"),
    (losses.mse_loss_backward, HALF, HALF, {"dloss": to_device(np.ones(1, np.float32))}, TypeError, "^x: expected device arrays"),
    (FORWARD, X, to_device(LABELS + 1), {}, IndexError, r"indices in \[0, 3\) or .* -100, got 3 at position \(1,\)"),
    (BACKWARD, X, to_device(LABELS - 1), {}, IndexError, r"indices in \[0, 3\) or .* got -1 at position \(0,\)"),
    (FORWARD, X, to_device(np.array([0, 2**64 - 100], np.uint64)), {}, IndexError, r"got 9223372036854775807"),
    (FORWARD, X, to_device(LABELS.astype(np.float32)), {}, TypeError, "t: expected class indices of an integer dtype"),
    (FORWARD, X, to_device(HALF.astype(float)), {}, TypeError, "t: expected class probabilities of dtype float32"),
    (FORWARD, X, to_device(LABELS[:1]), {}, ValueError, r"t: expected class indices of .*got shape \(1,\)"),
    (FORWARD, X, T, {"weight": to_device(np.ones(3))}, TypeError, "weight: expected float32"),
    (FORWARD, X, T, {"weight": [1, 2]}, ValueError, r"weight: expected shape \(3,\)"),
    (BACKWARD, X, T, {"dloss": to_device(np.ones(2, np.float32))}, ValueError,
     r"dloss: expected shape \(\), the shape .* got shape \(2,\)"),
    (losses.bce_loss_forward, with_value(1.5), X, {}, ValueError, r"x: expected values in .* got 1.5 at position \(1, 2\)"),
    (losses.bce_loss_backward, X, with_value(np.nan), {}, ValueError, r"t: expected values in .* got nan at position \(1, 2\)"),
    (losses.bce_loss_forward, X, to_device(np.ones((2, 3), np.int64)), {}, TypeError,
     "t: expected float32, the dtype of x, got int64"),
    (losses.l1_loss_forward, X, to_device(HALF.astype(float)), {}, TypeError, "t: expected float32, the dtype of x"),
    (losses.l1_loss_forward, X, to_device(HALF[0]), {}, ValueError, r"t: expected shape \(2, 3\), the shape of x"),
    (losses.bce_with_logits_forward, X, X, {"pos_weight": to_device(HALF[:, :2])}, ValueError,
     r"pos_weight: expected a shape that broadcasts to \(2, 3\).* got shape \(2, 2\)"),
    (losses.mse_loss_forward, T, T, {}, TypeError, "x: expected a float32 or .* int64"),
])
def test_errors(function, x, t, options, error, message):
    with pytest.raises(error, match=message):
        function(x, t, **options)
