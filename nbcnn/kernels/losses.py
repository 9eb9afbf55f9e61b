"""Losses, softmax and log_softmax on arrays of PyTorch's shapes: NumPy's, or all of them a GPU's, as then are the results.

Every loss is computed element by element (l), then reduced: "none" returns l, "sum" its sum, "mean" the sum over the
number of elements, where nothing else is said; the mean of nothing is NaN. The backward functions return dx = +dLoss/dx
for the upstream gradient `dloss`, a number or an array of the loss's shape. Sums are taken in a fixed order: equal
input, equal bits. On a GPU a loss is a device array, of shape () where it is reduced.
"""
import functools

import numpy as np

from nbcnn.kernels.arguments import INT64, floats, fraction, integer, numeric, one_of, same_dtype, same_shape
from nbcnn.kernels.backend import as_array, backend_of, load_backend, on_device, on_host
from nbcnn.kernels.cpu import losses as cpu
from nbcnn.kernels.shown import one_line, shown

REDUCTIONS = ("none", "mean", "sum")


def l1_loss_forward(x, t, *, reduction="mean"):
    """Absolute error, l = |x - t|.

    Parameters
    ----------
    x : float array (...)
        A NumPy array, as t, or both a GPU's.
    t : array (...)
        Target, of x's shape and dtype; integers are converted.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    loss : scalar of x's dtype, or array (...) with reduction "none"

    Raises
    ------
    TypeError
        x is not a float array, or the dtype of t differs.
    ValueError
        The shapes differ (nothing is broadcast), or the reduction is unknown.

    Notes
    -----
    Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Examples
    --------
    >>> x, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    >>> total = 0
    >>> for n in range(4):
    ...     for c in range(3):
    ...         total += abs(x[n, c] - t[n, c])
    >>> assert np.isclose(l1_loss_forward(x, t), total / 12)
    """
    x, t = _elementwise(x, t, reduction, integers=True)
    if on_device(x):
        return _on_gpu("L1", x, t, reduction)
    losses = np.empty(x.shape, x.dtype)
    cpu.l1_loss_forward(losses.reshape(-1), x.reshape(-1), t.reshape(-1))
    return _reduced(losses, reduction, x.size)


def l1_loss_backward(x, t, *, reduction="mean", dloss=1.0):
    """Gradient of the absolute error, dx = dloss * sign(x - t), for the mean over the number of elements.

    Parameters
    ----------
    x, t, reduction
        As in `l1_loss_forward`, which also raises the same.
    dloss : float or array of the loss's shape
        Upstream gradient.

    Returns
    -------
    dx : float array (...)

    Notes
    -----
    sign(0) = 0, and so is the sign of NaN, as in PyTorch: a NaN shows in the loss, not in the gradient.

    Examples
    --------
    >>> x, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    >>> dx = np.empty((4, 3))
    >>> for n in range(4):
    ...     for c in range(3):
    ...         dx[n, c] = 0.5 * np.sign(x[n, c] - t[n, c]) / 12
    >>> assert np.allclose(l1_loss_backward(x, t, dloss=0.5), dx)
    """
    x, t = _elementwise(x, t, reduction, integers=True)
    if on_device(x):
        return _on_gpu("L1", x, t, reduction, dloss=_upstream(dloss, x, x.shape, reduction))
    dx, dlosses = np.empty(x.shape, x.dtype), _dlosses(dloss, x, x.shape, reduction, x.size)
    cpu.l1_loss_backward(dx.reshape(-1), dlosses.reshape(-1), x.reshape(-1), t.reshape(-1))
    return dx


def mse_loss_forward(x, t, *, reduction="mean"):
    """Squared error, l = (x - t)^2.

    Parameters
    ----------
    x : float array (...)
        A NumPy array, as t, or both a GPU's.
    t : array (...)
        Target, of x's shape and dtype; integers are converted.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    loss : scalar of x's dtype, or array (...) with reduction "none"

    Raises
    ------
    TypeError
        x is not a float array, or the dtype of t differs.
    ValueError
        The shapes differ (nothing is broadcast), or the reduction is unknown.

    Notes
    -----
    Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Examples
    --------
    >>> x, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    >>> total = 0
    >>> for n in range(4):
    ...     for c in range(3):
    ...         total += (x[n, c] - t[n, c]) ** 2
    >>> assert np.isclose(mse_loss_forward(x, t), total / 12)
    """
    x, t = _elementwise(x, t, reduction, integers=True)
    if on_device(x):
        return _on_gpu("MSE", x, t, reduction)
    losses = np.empty(x.shape, x.dtype)
    cpu.mse_loss_forward(losses.reshape(-1), x.reshape(-1), t.reshape(-1))
    return _reduced(losses, reduction, x.size)


def mse_loss_backward(x, t, *, reduction="mean", dloss=1.0):
    """Gradient of the squared error, dx = dloss * 2 (x - t), for the mean over the number of elements.

    Parameters
    ----------
    x, t, reduction
        As in `mse_loss_forward`, which also raises the same.
    dloss : float or array of the loss's shape
        Upstream gradient.

    Returns
    -------
    dx : float array (...)

    Examples
    --------
    >>> x, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    >>> dx = np.empty((4, 3))
    >>> for n in range(4):
    ...     for c in range(3):
    ...         dx[n, c] = 0.5 * 2 * (x[n, c] - t[n, c]) / 12
    >>> assert np.allclose(mse_loss_backward(x, t, dloss=0.5), dx)
    """
    x, t = _elementwise(x, t, reduction, integers=True)
    if on_device(x):
        return _on_gpu("MSE", x, t, reduction, dloss=_upstream(dloss, x, x.shape, reduction))
    dx, dlosses = np.empty(x.shape, x.dtype), _dlosses(dloss, x, x.shape, reduction, x.size)
    cpu.mse_loss_backward(dx.reshape(-1), dlosses.reshape(-1), x.reshape(-1), t.reshape(-1))
    return dx


def cross_entropy_forward(x, t, *, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0):
    """Cross-entropy of class scores, l = -sum_c w[c] q[c] log_softmax(x)[c] at every position; w is `weight` or ones.

    For class indices t, q is (1 - label_smoothing) onehot(t) + label_smoothing / C, and l is 0 at `ignore_index`;
    the mean is the sum of l over the sum of w[t] at the positions that count. For class probabilities t, q is
    (1 - label_smoothing) t + label_smoothing / C; the mean is the sum of l over the number of positions.

    Parameters
    ----------
    x : float array (C,), (N, C) or (N, C, d1, ..., dK)
        Class scores (logits). A NumPy array, as t, or both a GPU's.
    t : int array (), (N,) or (N, d1, ..., dK), or float array of x's shape
        Class indices, or class probabilities of x's dtype.
    reduction : {"mean", "sum", "none"}
    weight : array (C,), optional
        Of x's dtype; lists and numbers are converted.
    ignore_index : int
        Positions with this index do not count, even if it is a class; tested before the range of the index is.
    label_smoothing : float in [0, 1]

    Returns
    -------
    loss : scalar of x's dtype, or with reduction "none" array (), (N,) or (N, d1, ..., dK)

    Raises
    ------
    TypeError, ValueError
        Something has another dtype, shape or range than given above; `ignore_index` is not negative though t holds
        probabilities.
    IndexError
        A class index is neither in [0, C) nor `ignore_index`; the message names its position.

    Notes
    -----
    The mean over no position is NaN, and so it is, with class indices, where the weights that count sum to 0.
    Source: aten/src/ATen/native/LossNLL.cpp of PyTorch.

    Examples
    --------
    >>> x, w, y = np.random.default_rng(0).normal(size=(4, 3)), [1.0, 2.0, 0.5], [2, 0, -100, 1]
    >>> total = weights = 0
    >>> for n in range(4):
    ...     if y[n] != -100:
    ...         log_sum = np.log(sum(np.exp(x[n, c]) for c in range(3)))
    ...         total += w[y[n]] * (log_sum - x[n, y[n]])
    ...         weights += w[y[n]]
    >>> assert np.isclose(cross_entropy_forward(x, y, weight=w), total / weights)
    """
    classes = _classes(x, t, reduction, weight, ignore_index, label_smoothing)
    if on_device(classes[0]):
        return _gpu().cross_entropy(*classes, reduction)
    return _cross_entropy(*classes, reduction, _positions(*classes[1:4], reduction))


def cross_entropy_backward(x, t, *, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0, dloss=1.0):
    """Gradient of the cross-entropy, dx = dloss * (softmax(x) sum_c w[c] q[c] - w q), for the mean over its divisor.

    Parameters
    ----------
    x, t, reduction, weight, ignore_index, label_smoothing
        As in `cross_entropy_forward`, which also explains q and w and raises the same.
    dloss : float or array of the loss's shape
        Upstream gradient.

    Returns
    -------
    dx : float array of x's shape

    Notes
    -----
    Exactly 0 at ignored positions, even if all are ignored and the mean is NaN. NaN elsewhere if the weights that count
    sum to 0.

    Examples
    --------
    >>> x, w, y = np.random.default_rng(0).normal(size=(4, 3)), [1.0, 2.0, 0.5], [2, 0, -100, 1]
    >>> dx = np.zeros((4, 3))
    >>> for n in range(4):
    ...     if y[n] != -100:
    ...         for c in range(3):
    ...             p = np.exp(x[n, c]) / sum(np.exp(x[n, k]) for k in range(3))
    ...             dx[n, c] = 0.5 * w[y[n]] * (p - (c == y[n])) / (w[2] + w[0] + w[1])
    >>> assert np.allclose(cross_entropy_backward(x, y, weight=w, dloss=0.5), dx)
    """
    classes = _classes(x, t, reduction, weight, ignore_index, label_smoothing)
    if on_device(classes[0]):
        return _gpu().cross_entropy(*classes, reduction, _upstream(dloss, classes[0], classes[-1], reduction))
    return _cross_entropy_gradient(*classes, reduction, _positions(*classes[1:4], reduction), dloss)


def cross_entropy_forward_backward(x, t, *, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0):
    """The cross-entropy and its gradient, (loss, dx), for arguments that are checked once: what a training step needs.

    Equals (cross_entropy_forward(...), cross_entropy_backward(...)) with the same arguments, which these explain.

    Examples
    --------
    >>> x, y = np.random.default_rng(0).normal(size=(4, 3)), [2, 0, 1, 1]
    >>> loss, dx = cross_entropy_forward_backward(x, y)
    >>> bool(loss == cross_entropy_forward(x, y)), bool((dx == cross_entropy_backward(x, y)).all())
    (True, True)
    """
    classes = _classes(x, t, reduction, weight, ignore_index, label_smoothing)
    if on_device(classes[0]):
        dloss = _upstream(1.0, classes[0], classes[-1], reduction)
        return _gpu().cross_entropy(*classes, reduction), _gpu().cross_entropy(*classes, reduction, dloss)
    divisor = _positions(*classes[1:4], reduction)
    return _cross_entropy(*classes, reduction, divisor), _cross_entropy_gradient(*classes, reduction, divisor, 1.0)


def bce_loss_forward(x, t, *, reduction="mean", weight=None):
    """Binary cross-entropy of probabilities, l = -weight (t log x + (1 - t) log(1 - x)), each logarithm at least -100.

    Parameters
    ----------
    x : float array (...)
        Probabilities in [0, 1]. A NumPy array, as t, or both a GPU's.
    t : float array (...)
        Targets in [0, 1], of x's shape and dtype.
    reduction : {"mean", "sum", "none"}
    weight : array that broadcasts to x's shape, optional
        Of x's dtype; lists and numbers are converted.

    Returns
    -------
    loss : scalar of x's dtype, or array (...) with reduction "none"

    Raises
    ------
    TypeError
        x is not a float array, or the dtype of t or weight differs.
    ValueError
        An element of x or t is outside [0, 1] or NaN (the message names its position), a shape does not fit, or the
        reduction is unknown.

    Notes
    -----
    The mean divides by the number of elements, not by the weights. Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Examples
    --------
    >>> x, t = np.random.default_rng(0).uniform(size=(2, 4, 3))
    >>> total = 0
    >>> for n in range(4):
    ...     for c in range(3):
    ...         total -= t[n, c] * np.log(x[n, c]) + (1 - t[n, c]) * np.log(1 - x[n, c])
    >>> assert np.isclose(bce_loss_forward(x, t), total / 12)
    """
    x, t = _elementwise(x, t, reduction)
    _require_unit(x, "x")
    _require_unit(t, "t")
    weight = _broadcast(weight, "weight", x)
    if on_device(x):
        return _on_gpu("BCE", x, t, reduction, weight)
    losses = np.empty(x.shape, x.dtype)
    cpu.bce_loss_forward(losses.reshape(-1), x.reshape(-1), t.reshape(-1))
    return _reduced(losses, reduction, x.size, weight)


def bce_loss_backward(x, t, *, reduction="mean", weight=None, dloss=1.0):
    """Gradient of the binary cross-entropy, dx = dloss weight (x - t) / max(x (1 - x), 1e-12).

    For the mean it is divided by the number of elements.

    Parameters
    ----------
    x, t, reduction, weight
        As in `bce_loss_forward`, which also raises the same.
    dloss : float or array of the loss's shape
        Upstream gradient.

    Returns
    -------
    dx : float array (...)

    Notes
    -----
    The loss is clamped, the gradient is not: x = 1, t = 0 gives loss 100 and gradient 1e12 (PyTorch issue #171327).

    Examples
    --------
    >>> x, t = np.random.default_rng(0).uniform(size=(2, 4, 3))
    >>> dx = np.empty((4, 3))
    >>> for n in range(4):
    ...     for c in range(3):
    ...         dx[n, c] = 0.5 * (x[n, c] - t[n, c]) / (x[n, c] * (1 - x[n, c])) / 12
    >>> assert np.allclose(bce_loss_backward(x, t, dloss=0.5), dx)
    """
    x, t = _elementwise(x, t, reduction)
    _require_unit(x, "x")
    _require_unit(t, "t")
    weight = _broadcast(weight, "weight", x)
    if on_device(x):
        return _on_gpu("BCE", x, t, reduction, weight, dloss=_upstream(dloss, x, x.shape, reduction))
    dx, dlosses = np.empty(x.shape, x.dtype), _dlosses(dloss, x, x.shape, reduction, x.size, weight)
    cpu.bce_loss_backward(dx.reshape(-1), dlosses.reshape(-1), x.reshape(-1), t.reshape(-1))
    return dx


def bce_with_logits_forward(x, t, *, reduction="mean", weight=None, pos_weight=None):
    """Binary cross-entropy of logits, l = weight ((1 - t) x - (1 + (pos_weight - 1) t) log sigmoid(x)).

    Parameters
    ----------
    x : float array (...)
        Logits. A NumPy array, as t, or both a GPU's.
    t : float array (...)
        Targets, of x's shape and dtype; meant to lie in [0, 1], which is not checked.
    reduction : {"mean", "sum", "none"}
    weight, pos_weight : arrays that broadcast to x's shape, optional
        Of x's dtype; lists and numbers are converted. `pos_weight` scales the part of the loss due to positive targets.

    Returns
    -------
    loss : scalar of x's dtype, or array (...) with reduction "none"

    Raises
    ------
    TypeError
        x is not a float array, or the dtype of t or of a weight differs.
    ValueError
        A shape does not fit, or the reduction is unknown.

    Notes
    -----
    Stable for large |x|: exp is taken of negative numbers only. The mean divides by the number of elements, not by the
    weights. Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Examples
    --------
    >>> x, t = np.random.default_rng(0).uniform(size=(2, 4, 3))
    >>> total = 0
    >>> for n in range(4):
    ...     for c in range(3):
    ...         p = 1 / (1 + np.exp(-x[n, c]))
    ...         total -= 3 * t[n, c] * np.log(p) + (1 - t[n, c]) * np.log(1 - p)
    >>> assert np.isclose(bce_with_logits_forward(x, t, pos_weight=3), total / 12)
    """
    x, t = _elementwise(x, t, reduction)
    weight, pos_weight = _broadcast(weight, "weight", x), _broadcast(pos_weight, "pos_weight", x)
    if on_device(x):
        return _on_gpu("BCE_WITH_LOGITS", x, t, reduction, weight, pos_weight)
    pos_weight = (_broadcast(1.0, "pos_weight", x) if pos_weight is None else pos_weight).copy()
    losses = np.empty(x.shape, x.dtype)
    cpu.bce_with_logits_forward(losses.reshape(-1), x.reshape(-1), t.reshape(-1), pos_weight.reshape(-1))
    return _reduced(losses, reduction, x.size, weight)


def bce_with_logits_backward(x, t, *, reduction="mean", weight=None, pos_weight=None, dloss=1.0):
    """Gradient of the above, dx = dloss weight ((pos_weight t + 1 - t) sigmoid(x) - pos_weight t).

    For the mean it is divided by the number of elements.

    Parameters
    ----------
    x, t, reduction, weight, pos_weight
        As in `bce_with_logits_forward`, which also raises the same.
    dloss : float or array of the loss's shape
        Upstream gradient.

    Returns
    -------
    dx : float array (...)

    Examples
    --------
    >>> x, t = np.random.default_rng(0).uniform(size=(2, 4, 3))
    >>> dx = np.empty((4, 3))
    >>> for n in range(4):
    ...     for c in range(3):
    ...         p = 1 / (1 + np.exp(-x[n, c]))
    ...         dx[n, c] = 0.5 * ((3 * t[n, c] + 1 - t[n, c]) * p - 3 * t[n, c]) / 12
    >>> assert np.allclose(bce_with_logits_backward(x, t, pos_weight=3, dloss=0.5), dx)
    """
    x, t = _elementwise(x, t, reduction)
    weight, pos_weight = _broadcast(weight, "weight", x), _broadcast(pos_weight, "pos_weight", x)
    if on_device(x):
        return _on_gpu("BCE_WITH_LOGITS", x, t, reduction, weight, pos_weight, dloss=_upstream(dloss, x, x.shape, reduction))
    pos_weight = (_broadcast(1.0, "pos_weight", x) if pos_weight is None else pos_weight).copy()
    dx, dlosses = np.empty(x.shape, x.dtype), _dlosses(dloss, x, x.shape, reduction, x.size, weight)
    cpu.bce_with_logits_backward(dx.reshape(-1), dlosses.reshape(-1), x.reshape(-1), t.reshape(-1),
                                 pos_weight.reshape(-1))
    return dx


def softmax(x, axis=1):
    """Probabilities p = exp(x) / sum exp(x) along one axis, whose maximum is subtracted first.

    Parameters
    ----------
    x : float array
        A NumPy array, or a GPU's, as then is the result.
    axis : int

    Returns
    -------
    p : float array of x's shape

    Raises
    ------
    TypeError
        x is not a float array, or the axis not an int.
    ValueError
        x has no such axis.

    Notes
    -----
    NaN all along the axis where x holds NaN or +inf, or nothing but -inf.
    Source: aten/src/ATen/native/SoftMax.cpp of PyTorch.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(2, 3))
    >>> p = np.empty((2, 3))
    >>> for n in range(2):
    ...     for c in range(3):
    ...         p[n, c] = np.exp(x[n, c]) / sum(np.exp(x[n, k]) for k in range(3))
    >>> assert np.allclose(softmax(x), p)
    """
    return _along(cpu.softmax, x, axis)


def log_softmax(x, axis=1):
    """Log-probabilities a = x - log sum exp(x) along one axis, whose maximum is subtracted first.

    Parameters
    ----------
    x : float array
        A NumPy array, or a GPU's, as then is the result.
    axis : int

    Returns
    -------
    a : float array of x's shape

    Raises
    ------
    TypeError
        x is not a float array, or the axis not an int.
    ValueError
        x has no such axis.

    Notes
    -----
    NaN all along the axis where x holds NaN or +inf, or nothing but -inf.
    Source: aten/src/ATen/native/SoftMax.cpp of PyTorch.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(2, 3))
    >>> a = np.empty((2, 3))
    >>> for n in range(2):
    ...     for c in range(3):
    ...         a[n, c] = x[n, c] - np.log(sum(np.exp(x[n, k]) for k in range(3)))
    >>> assert np.allclose(log_softmax(x), a)
    """
    return _along(cpu.log_softmax, x, axis)


# ---- arguments

def _gpu():
    """What computes the losses of device arrays."""
    return load_backend("cuda").losses


def _on_gpu(kind, x, t, reduction, weight=None, pos_weight=None, dloss=None):
    """An elementwise loss of device arrays or, given `dloss`, its gradient."""
    return _gpu().elementwise(getattr(_gpu(), kind), x, t, reduction, weight, pos_weight, dloss)


def _beside(value, x):
    """An array where x is."""
    return load_backend("cuda").to_device(value) if on_device(x) and not on_device(value) else value


def _packed(x):
    """x, or a copy of it, in C order and writable: the one array type the loops are compiled for."""
    if on_device(x):
        return _gpu().contiguous(x)
    return x if x.flags.carray else x.copy(order="C")


def _like(value, name, x):
    """`value` as an array of x's dtype. An array must have that already, and be where x is; lists and numbers are converted."""
    array = as_array(value, name)
    if on_device(array) or (isinstance(value, np.ndarray) and array.ndim):
        backend_of(x=x, **{name: array})
        same_dtype(array, name, x, "x")
        return array
    try:
        if array.dtype.kind not in "biufO":
            raise TypeError
        return array.astype(x.dtype)
    except Exception:
        raise TypeError(f"{name}: expected an array of {x.dtype}, got {shown(value)}") from None


def _broadcast(weight, name, x):
    """`weight` as an array of x's dtype that broadcasts to x's shape, or None."""
    if weight is None:
        return None
    weight = _like(weight, name, x)
    if on_device(weight) and weight.shape == x.shape:
        return _packed(weight)
    try:
        return _beside(np.broadcast_to(on_host(weight), x.shape), x)
    except ValueError:
        raise ValueError(f"{name}: expected a shape that broadcasts to {x.shape}, the shape of x, "
                         f"got shape {weight.shape}") from None


@functools.lru_cache(maxsize=8)
def _ones(classes, dtype):
    """The weights of classes without weights; nothing writes to them."""
    return np.ones(classes, dtype)


def _elementwise(x, t, reduction, integers=False):
    """Check the arguments of an elementwise loss; returns x and t packed and of one dtype."""
    one_of(reduction, "reduction", REDUCTIONS)
    backend_of(x=x, t=t)
    x = floats(x, "x")
    array = numeric(t, "t", x.shape, "the shape of x")
    if array.dtype != x.dtype:
        if array.dtype.kind in "iub" and not integers:
            raise TypeError(f"t: expected {x.dtype}, the dtype of x, got {one_line(str(array.dtype))}")
        if array.dtype.kind in "iu":
            array = _gpu().converted(array, x.dtype) if on_device(array) else array.astype(x.dtype)
        else:
            array = _like(t, "t", x)
    return _packed(x), _packed(array)


def _require_unit(x, name):
    x = on_host(x)
    position = cpu.first_outside_unit(x.reshape(-1))
    if position >= 0:
        position = tuple(map(int, np.unravel_index(position, x.shape)))
        raise ValueError(f"{name}: expected values in [0, 1], got {x[position]} at position {position}")


def _classes(x, t, reduction, weight, ignore_index, label_smoothing):
    """Check the arguments of cross-entropy.

    Returns x as rows (R, C), t as class indices (R,) or probabilities (R, C), the weights (C,), `ignore_index`, what
    label smoothing leaves of the target (`keep`) and gives every class (`share`), and the loss's shape if not reduced.
    Of device arrays x and probabilities t keep their shapes, and no weights are None.
    """
    one_of(reduction, "reduction", REDUCTIONS)
    backend_of(x=x, t=t)
    x, t = floats(x, "x"), as_array(t, "t")
    axis = min(1, x.ndim - 1)
    if x.ndim == 0 or x.shape[axis] == 0:
        raise ValueError(f"x: expected shape (C,), (N, C) or (N, C, d1, ..., dK) with C >= 1, got shape {shown(x.shape)}")
    classes, shape = x.shape[axis], x.shape[:axis] + x.shape[axis + 1:]
    if weight is None:
        weight = None if on_device(x) else _ones(classes, x.dtype)
    else:
        weight = _like(weight, "weight", x)
        same_shape(weight, "weight", (classes,), "one for each class")
        weight = _packed(_beside(weight, x))
    ignore_index = integer(ignore_index, "ignore_index", None, INT64)
    label_smoothing = fraction(label_smoothing, "label_smoothing")
    if t.shape == x.shape:
        t = _class_probabilities(t, x, ignore_index)
    else:
        t = _class_indices(t, x, shape, classes, ignore_index)
    keep, share = x.dtype.type(1 - label_smoothing), x.dtype.type(label_smoothing / classes)
    return _rows(x, axis), t, weight, ignore_index, keep, share, shape


def _class_probabilities(t, x, ignore_index):
    """Check probabilities t of x's shape; returns them as rows (R, C)."""
    if t.dtype != x.dtype:
        raise TypeError(f"t: expected class probabilities of dtype {x.dtype}, as x and of x's shape, got {one_line(str(t.dtype))}")
    if ignore_index >= 0:
        raise ValueError(f"ignore_index: expected a negative number with class probabilities, got {ignore_index}")
    return _rows(t, min(1, t.ndim - 1))


def _class_indices(t, x, shape, classes, ignore_index):
    """Check class indices t of the given shape; returns them as int64 (R,)."""
    if t.shape != shape:
        raise ValueError(f"t: expected class indices of shape {shape} or class probabilities of shape {x.shape}, "
                         f"got shape {t.shape}")
    if t.dtype.kind not in "iu":
        raise TypeError(f"t: expected class indices of an integer dtype, got {one_line(str(t.dtype))}")
    given, t = t, on_host(t)
    if t.dtype == np.uint64:
        t = np.minimum(t, np.uint64(np.iinfo(np.int64).max))       # no number wraps round to a negative one
    indices = _packed(t.astype(np.int64, copy=False)).reshape(-1)
    position = cpu.first_bad_class(indices, classes, ignore_index)
    if position >= 0:
        place = tuple(map(int, np.unravel_index(position, shape)))
        raise IndexError(f"t: expected class indices in [0, {classes}) or ignore_index {ignore_index}, "
                         f"got {indices[position]} at position {place}")
    return _beside(indices, given)


def _cross_entropy(rows, t, w, ignore_index, keep, share, shape, reduction, divisor):
    """The loss of arguments as `_classes` returns them."""
    losses, row = np.empty(len(rows), rows.dtype), np.empty_like(w)
    if t.ndim == 1:
        cpu.cross_entropy_forward(losses, row, rows, t, w, ignore_index, keep, share)
    else:
        cpu.soft_cross_entropy_forward(losses, row, rows, t, w, keep, share)
    return _reduced(losses.reshape(shape), reduction, divisor)


def _cross_entropy_gradient(rows, t, w, ignore_index, keep, share, shape, reduction, divisor, dloss):
    """The gradient of arguments as `_classes` returns them."""
    dlosses = _dlosses(dloss, rows, shape, reduction, divisor).reshape(-1)
    dx, row = np.empty_like(rows), np.empty_like(w)
    if t.ndim == 1:
        cpu.cross_entropy_backward(dx, row, dlosses, rows, t, w, ignore_index, keep, share)
    else:
        cpu.soft_cross_entropy_backward(dx, row, dlosses, rows, t, w, keep, share)
    dx = dx.reshape(*shape, len(w))
    return dx if dx.ndim < 3 else np.moveaxis(dx, -1, 1)


# ---- layouts and reductions

def _rows(x, axis):
    """x with `axis` moved last, packed, as rows along it; device arrays packed only."""
    if on_device(x):
        return _packed(x)
    moved = x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1)
    return _packed(moved).reshape(-1, x.shape[axis])


def _along(kernel, x, axis):
    """Run kernel(y, row, rows) along one axis of x; returns y in x's shape."""
    x, axis = floats(x, "x"), integer(axis, "axis")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of x of shape {x.shape}, got {axis}")
    if on_device(x):
        return _gpu().softmax(x, axis % x.ndim, kernel is cpu.log_softmax)
    if x.size == 0:
        return np.empty(x.shape, x.dtype)
    rows = _rows(x, axis % x.ndim)
    y = np.empty_like(rows)
    kernel(y, np.empty(x.shape[axis], x.dtype), rows)
    moved = np.moveaxis(x, axis, -1).shape
    return np.moveaxis(y.reshape(moved), -1, axis)


def _positions(t, w, ignore_index, reduction):
    """What the mean of the cross-entropy divides by."""
    if reduction != "mean":
        return 1
    return cpu.total_weight(np.empty(len(t), w.dtype), t, w, ignore_index) if t.ndim == 1 else len(t)


def _reduced(losses, reduction, divisor, weight=None):
    """The loss: `losses`, which may be overwritten, times `weight`, reduced. A divisor of 0 makes the mean NaN."""
    if weight is not None:
        losses *= weight
    if reduction == "none":
        return losses[()]
    total = losses.dtype.type(cpu.tree_sum(losses.reshape(-1)))
    return total / losses.dtype.type(divisor or np.nan) if reduction == "mean" else total


def _upstream(dloss, x, shape, reduction):
    """The upstream gradient as an array of x's dtype, where x is: a number, or one for each loss of the given shape."""
    dloss = _like(dloss, "dloss", x)
    if dloss.ndim:
        same_shape(dloss, "dloss", shape if reduction == "none" else (), "the shape of the loss")
    return _packed(_beside(dloss, x)) if on_device(x) else dloss


def _dlosses(dloss, x, shape, reduction, divisor, weight=None):
    """The gradient of every single loss, before the reduction: an array of the given shape and x's dtype."""
    dloss = _upstream(dloss, x, shape, reduction)
    dlosses = np.empty(shape, x.dtype)
    dlosses[...] = dloss / x.dtype.type(divisor or np.nan) if reduction == "mean" else dloss
    if weight is not None:
        dlosses *= weight
    return dlosses
