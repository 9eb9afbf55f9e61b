"""Binary cross-entropy, of probabilities and of logits: frozen values, oracle, gradients, contract, errors."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels.losses import (
    bce_loss_backward,
    bce_loss_forward,
    bce_with_logits_backward,
    bce_with_logits_forward,
)

import oracles
from arrays import in_both_dtypes

DTYPES = [np.float32, np.float64]
FUNCTIONS = {"probabilities": (bce_loss_forward, bce_loss_backward, oracles.bce_loss),
             "logits": (bce_with_logits_forward, bce_with_logits_backward, oracles.bce_with_logits)}


@st.composite
def problems(draw, dtypes=DTYPES, ends=True):
    """Forward, backward, oracle, x, t, options and dloss; x and t touch the ends of [0, 1] if `ends`."""
    kind, dtype = draw(st.sampled_from(list(FUNCTIONS))), draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    t = rng.uniform(size=shape).astype(dtype)
    t = np.where(rng.random(shape) < 0.5, np.round(t), t)
    if kind == "logits":
        x = (rng.normal(size=shape) * draw(st.sampled_from([0.1, 1, 50] if ends else [0.1, 1, 5]))).astype(dtype)
    else:
        x = rng.uniform(0.02, 0.98, shape).astype(dtype)
        if ends:
            x = np.where(rng.random(shape) < 0.2, np.round(x), x)
    options = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    for name in ["weight", "pos_weight"][:1 + (kind == "logits")]:
        if draw(st.booleans()):
            kept = draw(st.integers(0, len(shape)))     # leading axes left out, some of the others broadcast
            sizes = [1 if draw(st.booleans()) else size for size in shape[kept:]]
            options[name] = rng.uniform(0.1, 3, sizes).astype(dtype)
    dloss = rng.normal(size=shape if options["reduction"] == "none" else ()).astype(dtype)
    return *FUNCTIONS[kind], x, t, options, dloss


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: -ln 0.25 = ln 4 for the positive, -ln(1 - 0.5) = ln 2 for the negative; half of each for a target of 1/2.
    x, t = np.array([0.25, 0.5, 0.5], dtype), np.array([1, 0, 0.5], dtype)
    losses = bce_loss_forward(x, t, reduction="none")
    assert losses.dtype == dtype and losses.tolist() == pytest.approx([math.log(4), math.log(2), math.log(2)])
    assert bce_loss_forward(x, t, reduction="none", weight=[1, 2, 3]) == pytest.approx(losses * np.array([1, 2, 3]))
    # (x - t) / (x (1 - x)): -0.75 / 0.1875 = -4, 0.5 / 0.25 = 2 and 0.
    assert bce_loss_backward(x, t, reduction="sum").tolist() == [-4, 2, 0]
    assert bce_loss_backward(x, t, dloss=1.5, weight=np.array([2], dtype)).tolist() == [-4, 2, 0]
    # A logit of 0 is a probability of 1/2: ln 2 each, times pos_weight for the positive; dx = 1/2 - 1 and 1/2.
    x, t = np.zeros(2, dtype), np.array([1, 0], dtype)
    assert bce_with_logits_forward(x, t, reduction="none", pos_weight=3.0) == pytest.approx(np.log([8, 2]))
    assert bce_with_logits_backward(x, t, reduction="sum", pos_weight=3.0).tolist() == [-1.5, 0.5]
    assert type(bce_with_logits_forward(x, t)) is dtype and bce_with_logits_backward(x, t, dloss=4).tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_is_clamped_the_gradient_is_not(dtype):
    # torch 2.13 on the same numbers.
    x, t = np.array([1, 0, 1, 0, 1e-30], dtype), np.array([0, 1, 1, 0, 1], dtype)
    assert bce_loss_forward(x, t, reduction="none").tolist() == pytest.approx([100, 100, 0, 0, 69.0775528])
    dx = bce_loss_backward(x, t, reduction="sum")
    assert dx.tolist() == pytest.approx([1e12, -1e12, 0, 0, -1e12])
    # Small probabilities keep their digits: -log(1 - 1e-10) = 1e-10.
    assert bce_loss_forward(np.array([1e-10], dtype), np.array([0], dtype)) == pytest.approx(1e-10, rel=1e-6, abs=0)


def test_logits_far_out():
    # Nothing overflows, a sure and right answer keeps its small loss: log(1 + e^-20) = 2.06e-9.
    for dtype in DTYPES:
        x, t = np.array([200, -200, 200, -200, -20, 20], dtype), np.array([0, 1, 1, 0, 0, 1], dtype)
        losses = bce_with_logits_forward(x, t, reduction="none")
        assert losses.tolist() == pytest.approx([200, 200, 0, 0, 2.06115362e-9, 2.06115362e-9], rel=1e-7, abs=1e-30)
        dx = bce_with_logits_backward(x, t, reduction="sum")
        assert dx[:5].tolist() == pytest.approx([1, -1, 0, 0, 2.06115362e-9], rel=1e-7, abs=1e-30)
        assert np.isnan(bce_with_logits_forward(x * dtype(np.nan), t)) and np.isnan(
            bce_with_logits_backward(x * dtype(np.nan), t)).all()


@given(problem=problems())
def test_equals_oracle(problem):
    forward, backward, oracle, x, t, options, dloss = problem
    loss, dx = forward(x, t, **options), backward(x, t, dloss=dloss, **options)
    wide = {name: value for name, value in options.items() if name != "reduction"}
    losses, gradient = oracle(x.astype(np.float64), t.astype(np.float64), **wide)
    expected_loss, expected_dx = oracles.reduce_loss(losses, gradient, options["reduction"], x.size, dloss)
    assert np.shape(loss) == np.shape(expected_loss) and loss.dtype == dx.dtype == x.dtype and dx.shape == x.shape
    # A few roundings each. Terms of size x cancel in the loss of a logit, terms of size 1 in its gradient; the weights are < 9.
    eps = np.finfo(x.dtype).eps
    terms = losses.size if options["reduction"] == "sum" else 1
    np.testing.assert_allclose(loss, expected_loss, rtol=16 * eps, atol=32 * eps * (1 + np.abs(x).max(initial=0)) * terms)
    np.testing.assert_allclose(dx, expected_dx, rtol=16 * eps, atol=32 * eps * np.abs(dloss).max(initial=1))


@pytest.mark.quick
@given(problem=problems([np.float64], ends=False))
def test_gradient_is_the_slope(problem):
    forward, backward, _, x, t, options, dloss = problem
    slope = oracles.central_differences(lambda x: forward(x, t, **options), x, dloss)
    # Step 1e-6: third derivatives up to 2/0.02^3 times 1e-12 / 6 for the truncation, 1e-16 * 100 / 1e-6 for the rounding.
    np.testing.assert_allclose(backward(x, t, dloss=dloss, **options), slope, rtol=1e-6, atol=1e-6)


@given(problem=problems())
def test_layout_does_not_matter_and_inputs_stay(problem):
    forward, backward, _, x, t, options, dloss = problem
    loss, dx = forward(x, t, **options), backward(x, t, dloss=dloss, **options)
    gaps = (*[slice(None, None, -2)] * x.ndim, ...)
    x_view, t_view = np.zeros([2 * size for size in x.shape], x.dtype)[gaps], np.array(t, order="F")
    x_view[...] = x
    for a in (x_view, t_view, dloss, *(value for value in options.values() if isinstance(value, np.ndarray))):
        a.flags.writeable = False
    np.testing.assert_array_equal(forward(x_view, t_view, **options), loss)
    np.testing.assert_array_equal(backward(x_view, t_view, dloss=dloss, **options), dx)
    np.testing.assert_array_equal(x_view, x)
    np.testing.assert_array_equal(t_view, t)


def test_nothing():
    x = np.empty((0, 3), np.float32)
    for forward, backward, _ in FUNCTIONS.values():
        assert math.isnan(forward(x, x)) and forward(x, x, reduction="sum") == 0 and backward(x, x).shape == (0, 3)
        assert forward(x, x, reduction="none", weight=[1, 2, 3]).shape == (0, 3)


HALF = np.full((2, 3), 0.5, np.float32)


def with_value(value):
    x = HALF.copy()
    x[1, 2] = value
    return x


@pytest.mark.parametrize("x, t, options, error, message", [
    (HALF, HALF.astype(int), {}, TypeError, "t: expected float32, the dtype of x, got int64"),
    (HALF, HALF.astype(int).tolist(), {}, TypeError, "t: expected float32, the dtype of x, got int64"),
    (HALF, HALF > 0, {}, TypeError, "t: expected float32, the dtype of x, got bool"),
    (HALF, HALF.astype(np.float64), {}, TypeError, "t: expected float32, the dtype of x, got float64"),
    (HALF.astype(int), HALF, {}, TypeError, "x: expected a float32 or float64 array"),
    (HALF, HALF[0], {}, ValueError, r"t: expected shape \(2, 3\), the shape of x, got shape \(3,\)"),
    (HALF, HALF, {"reduction": None}, ValueError, "reduction: expected one of 'none', 'mean', 'sum', got None"),
    (HALF, HALF, {"weight": np.ones(3)}, TypeError, "weight: expected float32, the dtype of x, got float64"),
    (HALF, HALF, {"weight": [1, 2]}, ValueError, r"weight: expected a shape that broadcasts to \(2, 3\).* got shape \(2,\)"),
    (HALF, HALF, {"weight": np.ones((2, 2, 3), np.float32)}, ValueError, r"weight: .* got shape \(2, 2, 3\)"),
    (HALF, HALF, {"weight": "heavy"}, TypeError, "weight: expected an array of float32, got 'heavy'"),
])
def test_errors(x, t, options, error, message):
    for *functions, _ in FUNCTIONS.values():
        for function in functions:
            with pytest.raises(error, match=message):
                function(x, t, **options)


def test_errors_of_probabilities():
    above = np.nextafter(np.float32(1), np.float32(2))
    for value, shown in ((1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan"), (np.inf, "inf"), (above, "1.0")):
        for function in (bce_loss_forward, bce_loss_backward):
            with pytest.raises(ValueError, match=rf"x: expected values in \[0, 1\], got {shown}.* at position \(1, 2\)"):
                function(with_value(value), HALF)
            with pytest.raises(ValueError, match=rf"t: expected values in \[0, 1\], got {shown}.* at position \(1, 2\)"):
                function(HALF, with_value(value))


def test_errors_of_pos_weight_and_dloss():
    for function in (bce_with_logits_forward, bce_with_logits_backward):
        with pytest.raises(ValueError, match=r"pos_weight: expected a shape that broadcasts to \(2, 3\).* got shape \(2,\)"):
            function(HALF, HALF, pos_weight=[1, 2])
        with pytest.raises(TypeError, match="pos_weight: expected float32, the dtype of x, got float64"):
            function(HALF, HALF, pos_weight=np.ones(3))
    for _, backward, _ in FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"dloss: expected shape \(\), the shape of the loss, got shape \(2, 3\)"):
            backward(HALF, HALF, dloss=HALF)
