"""Cross-entropy: frozen values, oracle, gradients, contract, errors."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels.losses import cross_entropy_backward, cross_entropy_forward

import oracles
from arrays import in_both_dtypes

DTYPES = [np.float32, np.float64]
REDUCTIONS = ["none", "mean", "sum"]


@st.composite
def problems(draw, dtypes=DTYPES):
    """x, t and options: any rank, indices or probabilities, ignored positions, weights, smoothing."""
    dtype, rng = draw(st.sampled_from(dtypes)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    C = draw(st.integers(1, 9))
    positions = draw(st.one_of(st.just(()), st.tuples(st.integers(0, 5)),
                               st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3))))
    shape = (*positions[:1], C, *positions[1:])
    x = (rng.normal(size=shape) * draw(st.sampled_from([0.1, 1, 20]))).astype(dtype)
    options = {"reduction": draw(st.sampled_from(REDUCTIONS)), "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]))}
    if draw(st.booleans()):
        options["weight"] = rng.uniform(0.1, 2, C).astype(dtype)
    if draw(st.booleans()):
        t = rng.dirichlet(np.ones(C), positions).astype(dtype)
        t = np.moveaxis(t, -1, min(1, t.ndim - 1))
    else:
        t = rng.integers(0, C, positions)
        options["ignore_index"] = draw(st.sampled_from([-100, 0, C - 1, C + 7]))
        t = np.where(rng.random(positions) < 0.3, options["ignore_index"], t)
    dloss = rng.normal(size=positions if options["reduction"] == "none" else ()).astype(dtype)
    return x, t, options, dloss


def expected(x, t, options, dloss):
    x, dloss = x.astype(np.float64), dloss.astype(np.float64)
    options = dict(options)
    reduction = options.pop("reduction")
    losses, gradient, divisor = oracles.cross_entropy(x, t, **options)
    return oracles.reduce_loss(losses, gradient, reduction, divisor, dloss)


@in_both_dtypes
def test_frozen_values(dtype):
    # Worked by hand: -0.2 + ln(e^0.1 + e^0.2 + e^0.3) = 1.10194, and -0.8 + ln(e^0.8 + e^0.1 + e^0.2) = 0.71559.
    x = np.array([[0.1, 0.2, 0.3], [0.8, 0.1, 0.2]], dtype)
    losses = cross_entropy_forward(x, [1, 0], reduction="none")
    assert losses.dtype == dtype and losses.tolist() == pytest.approx([1.10194285, 0.71559187], abs=1e-6)
    for reduction in REDUCTIONS:
        loss = cross_entropy_forward(x[0], 1, reduction=reduction)
        assert type(loss) is dtype and loss == losses[0]
    # By hand, equal scores: softmax is 1/4 everywhere, the loss ln 4 whatever the smoothing.
    zeros = np.zeros((2, 4), dtype)
    for smoothing in (0.0, 0.25, 1.0):
        assert cross_entropy_forward(zeros, [3, 0], label_smoothing=smoothing) == pytest.approx(math.log(4), rel=1e-6)
    # q = (1-0.2)*onehot + 0.2/4: dx = (1/4 - q) * dloss / N, with dloss = 4 and N = 2.
    dx = cross_entropy_backward(zeros, [3, 0], label_smoothing=0.2, dloss=4.0)
    assert dx.dtype == dtype and dx == pytest.approx(np.array([[0.4, 0.4, 0.4, -1.2], [-1.2, 0.4, 0.4, 0.4]]), abs=1e-6)


@in_both_dtypes
def test_frozen_values_from_torch(dtype):
    # torch 2.13, float64: F.cross_entropy(x, t, weight=w, ignore_index=2, label_smoothing=0.1, reduction=...) and x.grad.
    x = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0], [2.0, 2.0, -1.0], [-1.0, 0.0, 4.0]], dtype)
    t, w = np.array([0, 1, 1, 2]), np.array([1.0, 2.0, 0.5], dtype)
    options = {"weight": w, "ignore_index": 2, "label_smoothing": 0.1}
    losses = cross_entropy_forward(x, t, reduction="none", **options)
    assert losses == pytest.approx([0.72134018, 0.45887154, 1.42566051, 0], abs=1e-6)
    assert cross_entropy_forward(x, t, reduction="sum", **options) == pytest.approx(2.60587223, abs=1e-6)
    assert cross_entropy_forward(x, t, **options) == pytest.approx(0.52117445, abs=1e-6)
    dx = np.array([[-0.06390439, -0.00722136, 0.07112575], [0.00943719, -0.04987869, 0.04044149],
                   [0.18034463, -0.18632204, 0.00597741], [0, 0, 0]])
    assert cross_entropy_backward(x, t, **options) == pytest.approx(dx, abs=1e-6)


@given(problem=problems())
def test_equals_oracle(problem):
    x, t, options, dloss = problem
    loss, dx = cross_entropy_forward(x, t, **options), cross_entropy_backward(x, t, dloss=dloss, **options)
    expected_loss, expected_dx = expected(*problem)
    assert np.shape(loss) == np.shape(expected_loss) and loss.dtype == dx.dtype == x.dtype and dx.shape == x.shape
    # A log-softmax is a difference of numbers up to max|x|: some eps of that remain. The rest is a few roundings.
    eps = np.finfo(x.dtype).eps
    absolute = 16 * eps * (1 + np.abs(x).max(initial=0))
    terms = np.size(t) if options["reduction"] == "sum" else 4
    np.testing.assert_allclose(loss, expected_loss, rtol=16 * eps, atol=absolute * terms)
    np.testing.assert_allclose(dx, expected_dx, rtol=16 * eps, atol=absolute * np.abs(dloss).max(initial=1))
    ignored = np.broadcast_to(np.expand_dims(t == options.get("ignore_index"), min(1, t.ndim)), x.shape) \
        if t.ndim < x.ndim else np.zeros(x.shape, bool)
    assert (dx[ignored] == 0).all()


@pytest.mark.quick
@given(problem=problems([np.float64]))
def test_gradient_is_the_slope(problem):
    x, t, options, dloss = problem
    dx = cross_entropy_backward(x, t, dloss=dloss, **options)
    slope = oracles.central_differences(lambda x: cross_entropy_forward(x, t, **options), x, dloss)
    finite = np.isfinite(slope)     # an all-ignored mean is NaN, its gradient zero
    assert finite.all() or not dx.any()
    # Step 1e-6: the truncation is below 1e-11, the rounding of a loss up to 100 leaves 1e-16 * 100 / 1e-6.
    np.testing.assert_allclose(dx[finite], slope[finite], rtol=1e-6, atol=1e-7)


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_layout_does_not_matter(problem, seed):
    x, t, options, dloss = problem
    # Fortran order, a view with gaps and reversed axes, both read-only.
    views = np.array(x, order="F"), np.zeros([2 * size for size in x.shape], x.dtype)[(slice(None, None, -2),) * x.ndim]
    views[1][...] = x
    targets = np.array(t, order="F"), np.repeat(t, 2).reshape(*t.shape, 2)[..., 0]
    loss, dx = cross_entropy_forward(x, t, **options), cross_entropy_backward(x, t, dloss=dloss, **options)
    for x_view, t_view in zip(views, targets, strict=True):
        x_view.flags.writeable = t_view.flags.writeable = False
        np.testing.assert_array_equal(cross_entropy_forward(x_view, t_view, **options), loss)
        np.testing.assert_array_equal(cross_entropy_backward(x_view, t_view, dloss=dloss, **options), dx)


@given(problem=problems())
def test_inputs_stay(problem):
    x, t, options, dloss = problem
    arrays = [x, t, dloss, options.get("weight", x)]
    before = [a.tobytes() for a in arrays]
    cross_entropy_forward(x, t, **options)
    cross_entropy_backward(x, t, dloss=dloss, **options)
    assert before == [a.tobytes() for a in arrays]


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint8, np.uint16, ">i4"])
def test_integer_targets_of_any_dtype(kind):
    x = np.random.default_rng(0).normal(size=(5, 4))
    t = np.array([3, 0, 1, 2, 3])
    assert cross_entropy_forward(x, t.astype(kind)) == cross_entropy_forward(x, t) == cross_entropy_forward(x, t.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_positions(dtype):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    for smoothing in (0.0, 0.1):
        loss = cross_entropy_forward(x, [-100] * 3, label_smoothing=smoothing)
        dx = cross_entropy_backward(x, [-100] * 3, label_smoothing=smoothing)
        assert math.isnan(loss) and (dx == 0).all()
        assert cross_entropy_forward(x, [-100] * 3, label_smoothing=smoothing, reduction="sum") == 0
    # A valid class that is ignored masks its samples, not its column; an ignored NaN or inf harms nobody.
    x[1] = [np.nan, np.inf, -np.inf, 0]
    dx = cross_entropy_backward(x, [0, 2, 1], ignore_index=2)
    assert (dx[1] == 0).all() and (dx[0] != 0).all() and (dx[2] != 0).all()
    np.testing.assert_array_equal(dx[[0, 2]], cross_entropy_backward(x[[0, 2]], [0, 1]))
    assert cross_entropy_forward(x, [0, 2, 1], ignore_index=2) == cross_entropy_forward(x[[0, 2]], [0, 1])
    # Tested before the range: any ignored index is fine.
    assert cross_entropy_forward(x, [0, 77, 1], ignore_index=77) == cross_entropy_forward(x[[0, 2]], [0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_that_sum_to_zero(smoothing):
    x = np.random.default_rng(0).normal(size=(3, 3))
    options = {"weight": [0.0, 1.0, 0.0], "label_smoothing": smoothing}
    assert math.isnan(cross_entropy_forward(x, [0, -100, 2], **options))
    dx = cross_entropy_backward(x, [0, -100, 2], **options)
    assert np.isnan(dx[[0, 2]]).all() and (dx[1] == 0).all()


def test_nothing():
    for t in (np.empty(0, np.int64), np.empty((0, 3), np.float32)):
        x = np.empty((0, 3), np.float32)
        assert math.isnan(cross_entropy_forward(x, t)) and cross_entropy_forward(x, t, reduction="sum") == 0
        assert cross_entropy_forward(x, t, reduction="none").shape == (0,)
        assert cross_entropy_backward(x, t).shape == (0, 3)


def test_infinite_scores():
    # torch 2.13: a class at -inf that is not the target has probability 0 and harms nothing without smoothing.
    x = np.array([[1.0, -np.inf, 2.0]])
    assert cross_entropy_forward(x, [0]) == pytest.approx(math.log1p(math.e))
    assert cross_entropy_backward(x, [0])[0] == pytest.approx([1 / (1 + math.e) - 1, 0, math.e / (1 + math.e)])
    assert cross_entropy_forward(x, [1]) == cross_entropy_forward(x, [0], label_smoothing=0.1) == np.inf
    assert math.isnan(cross_entropy_forward(np.array([[1.0, np.inf]]), [0]))
    assert math.isnan(cross_entropy_forward(np.array([[1.0, 2.0, np.nan]]), [0]))
    # Large scores do not overflow.
    assert cross_entropy_forward(np.array([1e4, 0], np.float32), 1) == 1e4


def test_largest_rows_lose_no_digits():
    # A sum of 100,000 terms in sequence would be off by 1e-4 and more; folding leaves log2(100,000) = 17 roundings at most.
    x = np.random.default_rng(0).uniform(size=(2, 100_000)).astype(np.float32)
    onehot = np.zeros(x.shape)
    onehot[[0, 1], [5, 7]] = 1
    losses, dx, _ = oracles.cross_entropy(x.astype(np.float64), onehot)
    np.testing.assert_allclose(cross_entropy_forward(x, [5, 7], reduction="none"), losses, rtol=3e-7)
    np.testing.assert_allclose(cross_entropy_backward(x, [5, 7], reduction="sum"), dx, rtol=1e-6)
    q = np.full(x.shape, 1e-5, np.float32)
    losses, dx, _ = oracles.cross_entropy(x.astype(np.float64), q.astype(np.float64))
    np.testing.assert_allclose(cross_entropy_forward(x, q, reduction="none"), losses, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy_backward(x, q, reduction="sum"), dx, rtol=1e-5, atol=1e-11)


X, T = np.zeros((2, 3), np.float32), np.array([0, 1])
DEEP = np.zeros((2, 3, 4, 5))


@pytest.mark.parametrize("x, t, options, error, message", [
    (X, [0, 3], {}, IndexError, r"t: expected class indices in \[0, 3\) or ignore_index -100, got 3 at position \(1,\)"),
    (X, [-1, 0], {}, IndexError, r"got -1 at position \(0,\)"),
    (X, np.array([0, 2**64 - 100], np.uint64), {}, IndexError, r"got 9223372036854775807 at position \(1,\)"),
    (X, [-100, 0], {"ignore_index": 5}, IndexError, r"got -100 at position \(0,\)"),
    (X, [0, 3], {"reduction": "none", "label_smoothing": 0.1}, IndexError, r"position \(1,\)"),
    (X[0], 3, {}, IndexError, r"got 3 at position \(\)"),
    (DEEP, np.arange(40).reshape(2, 4, 5) // 38 * 9, {}, IndexError, r"got 9 at position \(1, 3, 3\)"),
    (X.astype(int), T, {}, TypeError, "x: expected a float32 or float64 array, got ndarray of dtype int64"),
    (X.astype(np.float16), T, {}, TypeError, "x: expected .* got ndarray of dtype float16"),
    (X[0, 0], 0, {}, ValueError, r"x: expected shape \(C,\).* got shape \(\)"),
    (X[:, :0], T, {}, ValueError, r"x: expected .* with C >= 1, got shape \(2, 0\)"),
    (X, T.astype(np.float32), {}, TypeError, "t: expected class indices of an integer dtype, got float32"),
    (X, T == 0, {}, TypeError, "t: expected class indices of an integer dtype, got bool"),
    (X, X.astype(int), {}, TypeError, "t: expected class probabilities of dtype float32, .* got int64"),
    (X, X.astype(np.float64), {}, TypeError, "t: expected class probabilities of dtype float32, .* got float64"),
    (X, T[:1], {}, ValueError, r"t: expected class indices of shape \(2,\) or .* of shape \(2, 3\), got shape \(1,\)"),
    (X, T[:, None], {}, ValueError, r"got shape \(2, 1\)"),
    (DEEP, np.zeros((2, 5, 4), int), {}, ValueError, r"indices of shape \(2, 4, 5\) .* got shape \(2, 5, 4\)"),
    (X, T, {"reduction": "max"}, ValueError, "reduction: expected one of 'none', 'mean', 'sum', got 'max'"),
    (X, T, {"weight": [1, 2]}, ValueError, r"weight: expected shape \(3,\), one for each class, got shape \(2,\)"),
    (X, T, {"weight": 2.0}, ValueError, r"weight: expected shape \(3,\)"),
    (X, T, {"weight": np.ones(3)}, TypeError, "weight: expected float32, the dtype of x, got float64"),
    (X, T, {"weight": ["a", "b", "c"]}, TypeError, "weight: expected an array of float32"),
    (X, T, {"ignore_index": 1.5}, TypeError, "ignore_index: expected an int, got 1.5"),
    (X, X, {"ignore_index": 0}, ValueError, "ignore_index: expected a negative number .* got 0"),
    (X, X, {"ignore_index": 1}, ValueError, "ignore_index: expected a negative number .* got 1"),
    (X, T, {"label_smoothing": 1.1}, ValueError, r"label_smoothing: expected a number in \[0, 1\], got 1.1"),
    (X, T, {"label_smoothing": -0.1}, ValueError, "label_smoothing"),
    (X, T, {"label_smoothing": np.nan}, ValueError, "label_smoothing"),
    (X, T, {"label_smoothing": "a lot"}, TypeError, "label_smoothing"),
])
def test_errors(x, t, options, error, message):
    for function in (cross_entropy_forward, cross_entropy_backward):
        with pytest.raises(error, match=message):
            function(x, t, **options)


def test_errors_of_dloss():
    with pytest.raises(ValueError, match=r"dloss: expected shape \(\), the shape of the loss, got shape \(2,\)"):
        cross_entropy_backward(X, T, dloss=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"dloss: expected shape \(2,\), the shape of the loss, got shape \(2, 3\)"):
        cross_entropy_backward(X, T, reduction="none", dloss=X)
    with pytest.raises(TypeError, match="dloss: expected float32, the dtype of x, got float64"):
        cross_entropy_backward(X, T, reduction="none", dloss=np.ones(2))
    # A number is a number: it counts for every position.
    np.testing.assert_array_equal(cross_entropy_backward(X, T, reduction="none", dloss=np.float64(2)),
                                  cross_entropy_backward(X, T, reduction="sum", dloss=2))
