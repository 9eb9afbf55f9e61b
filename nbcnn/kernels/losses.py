"""Losses, softmax and log_softmax on arrays of PyTorch's shapes. All NumPy or all device arrays; the result lives where they do.

Every loss is computed element by element (l), then reduced. Reduction "none" returns l, "sum" its sum, "mean" its sum divided by
the number of elements, unless a function says otherwise; the mean of nothing is NaN. The backward functions return dx = +dLoss/dx
for the upstream gradient `dloss`, a number or an array of the loss's shape. Sums are taken in a fixed order: equal input gives
equal bits. On a GPU a loss is a device array, of shape () where it is reduced.

These functions check their arguments; the backend's loss, a `LossOperation`, computes.
"""
import numpy as np

from nbcnn.kernels.arguments import INT64, floats, fraction, integer, numeric, one_of, same_dtype, same_shape
from nbcnn.kernels.backend import as_array, backend_of, on_device, on_host
from nbcnn.kernels.cpu import losses as cpu
from nbcnn.kernels.docs import documented
from nbcnn.kernels.shown import one_line, shown

__all__ = ["l1_loss_forward", "l1_loss_backward", "mse_loss_forward", "mse_loss_backward", "cross_entropy_forward",
           "cross_entropy_backward", "bce_loss_forward", "bce_loss_backward", "bce_with_logits_forward",
           "bce_with_logits_backward", "softmax", "log_softmax"]

REDUCTIONS = ("none", "mean", "sum")


def _gradient(loss, dloss):
    """dx of a backend's loss.

    Parameters
    ----------
    dloss : float or array of the loss's shape
        Upstream gradient; an array has x's dtype.

    Returns
    -------
    dx : float array (shape of x)
    """
    dloss = _like(dloss, "dloss", loss.x)
    if dloss.ndim:
        same_shape(dloss, "dloss", loss.shape if loss.reduction == "none" else (), "the shape of the loss")
    return loss.backward(backend_of(x=loss.x).place(dloss))


@documented()
def l1_loss_forward(x, t, *, reduction="mean"):
    """Absolute error, l = |x - t|.

    Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Parameters
    ----------
    x : float array (any shape)
    t : array (shape of x)
        Targets, of x's dtype; integers are converted. Nothing is broadcast.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    loss : scalar of x's dtype, or array (shape of x) with reduction "none"

    >>> x, t = [0.5, -1.0, 2.0], [1.0, 0.5, -1.0]
    >>> l = [abs(x_k - t_k) for x_k, t_k in zip(x, t)]
    >>> np.allclose(l1_loss_forward(x, t), sum(l) / 3)
    True
    """
    return _elementwise("L1Loss", x, t, reduction, integers=True).forward()


@documented(_gradient, l1_loss_forward)
def l1_loss_backward(x, t, *, reduction="mean", dloss=1.0):
    """Gradient of the absolute error, dx = dloss * sign(x - t), for the mean divided by the number of elements.

    The signs of 0 and of NaN are 0, as in PyTorch: a NaN shows in the loss, not in the gradient.

    >>> x, t = [0.5, -1.0, 2.0], [1.0, 0.5, -1.0]
    >>> dx = [0.5 * np.sign(x_k - t_k) / 3 for x_k, t_k in zip(x, t)]
    >>> np.allclose(l1_loss_backward(x, t, dloss=0.5), dx)
    True
    """
    return _gradient(_elementwise("L1Loss", x, t, reduction, integers=True), dloss)


@documented(l1_loss_forward)
def mse_loss_forward(x, t, *, reduction="mean"):
    """Squared error, l = (x - t)^2.

    Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    >>> x, t = [0.5, -1.0, 2.0], [1.0, 0.5, -1.0]
    >>> l = [(x_k - t_k) ** 2 for x_k, t_k in zip(x, t)]
    >>> np.allclose(mse_loss_forward(x, t), sum(l) / 3)
    True
    """
    return _elementwise("MSELoss", x, t, reduction, integers=True).forward()


@documented(_gradient, mse_loss_forward)
def mse_loss_backward(x, t, *, reduction="mean", dloss=1.0):
    """Gradient of the squared error, dx = dloss * 2 (x - t), for the mean divided by the number of elements.

    Source: PyTorch's aten mse_loss_backward.

    >>> x, t = [0.5, -1.0, 2.0], [1.0, 0.5, -1.0]
    >>> dx = [0.5 * 2 * (x_k - t_k) / 3 for x_k, t_k in zip(x, t)]
    >>> np.allclose(mse_loss_backward(x, t, dloss=0.5), dx)
    True
    """
    return _gradient(_elementwise("MSELoss", x, t, reduction, integers=True), dloss)


@documented()
def cross_entropy_forward(x, t, *, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0):
    """Cross-entropy of class scores, l = -sum_c w[c] q[c] log_softmax(x)[c] at every position; w is `weight` or ones.

    For class indices t, q is (1 - label_smoothing) onehot(t) + label_smoothing / C, and l is 0 at `ignore_index`.
    The mean is the sum of l, divided by the sum of w[t] at the positions that count. For class probabilities t, q is
    (1 - label_smoothing) t + label_smoothing / C. The mean is the sum of l, divided by the number of positions.

    The mean is NaN where no position counts and, with class indices, where the weights that count sum to 0.
    Source: aten/src/ATen/native/LossNLL.cpp of PyTorch.

    Parameters
    ----------
    x : float array (C,), (N, C) or (N, C, d1, ..., dK)
        Class scores (logits).
    t : int array (), (N,) or (N, d1, ..., dK), or float array of x's shape
        Class indices, or class probabilities of x's dtype.
    reduction : {"mean", "sum", "none"}
    weight : array (C,), optional
        Of x's dtype; lists and numbers are converted.
    ignore_index : int
        Positions with this index do not count, whether it is a class or not. Negative where t holds probabilities.
    label_smoothing : float in [0, 1]

    Returns
    -------
    loss : scalar of x's dtype, or with reduction "none" array (), (N,) or (N, d1, ..., dK)

    Raises
    ------
    IndexError
        A class index is neither in [0, C) nor `ignore_index`; the message names its position.

    >>> x, w, y = np.random.default_rng(0).normal(size=(4, 3)), [1.0, 2.0, 0.5], [2, 0, -100, 1]
    >>> total = weights = 0
    >>> for n in range(4):
    ...     if y[n] != -100:
    ...         log_sum = np.log(sum(np.exp(x[n, c]) for c in range(3)))
    ...         total += w[y[n]] * (log_sum - x[n, y[n]])
    ...         weights += w[y[n]]
    >>> np.allclose(cross_entropy_forward(x, y, weight=w), total / weights)
    True
    """
    return _cross_entropy(x, t, reduction, weight, ignore_index, label_smoothing).forward()


@documented(_gradient, cross_entropy_forward)
def cross_entropy_backward(x, t, *, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0, dloss=1.0):
    """Gradient of the cross-entropy, dx = dloss * (softmax(x) sum_c w[c] q[c] - w q), for the mean divided as the loss is.

    w and q are those of `cross_entropy_forward`.

    Exactly 0 at ignored positions, even if all are ignored and the mean is NaN. NaN elsewhere if the weights that count
    sum to 0.

    >>> x, w, y = np.random.default_rng(0).normal(size=(4, 3)), [1.0, 2.0, 0.5], [2, 0, -100, 1]
    >>> dx = np.zeros((4, 3))
    >>> for n in range(4):
    ...     if y[n] != -100:
    ...         for c in range(3):
    ...             p = np.exp(x[n, c]) / sum(np.exp(x[n, k]) for k in range(3))
    ...             dx[n, c] = 0.5 * w[y[n]] * (p - (c == y[n])) / (w[2] + w[0] + w[1])
    >>> np.allclose(cross_entropy_backward(x, y, weight=w, dloss=0.5), dx)
    True
    """
    return _gradient(_cross_entropy(x, t, reduction, weight, ignore_index, label_smoothing), dloss)


@documented(cross_entropy_forward)
def cross_entropy_forward_backward(x, t, *, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0):
    """The cross-entropy and its gradient, (loss, dx): what a training step needs. The arguments are checked once.

    Returns
    -------
    loss, dx
        As of cross_entropy_forward and cross_entropy_backward.

    >>> x, y = np.random.default_rng(0).normal(size=(4, 3)), [2, 0, 1, 1]
    >>> loss, dx = cross_entropy_forward_backward(x, y)
    >>> loss == cross_entropy_forward(x, y) and np.array_equal(dx, cross_entropy_backward(x, y))
    True
    """
    loss = _cross_entropy(x, t, reduction, weight, ignore_index, label_smoothing)
    return loss.forward(), _gradient(loss, 1.0)


@documented(l1_loss_forward)
def bce_loss_forward(x, t, *, reduction="mean", weight=None):
    """Binary cross-entropy of probabilities, l = -weight (t log x + (1 - t) log(1 - x)), each logarithm at least -100.

    The mean divides by the number of elements, not by the weights. Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Parameters
    ----------
    x : float array (any shape)
        Probabilities in [0, 1].
    t : float array (shape of x)
        Targets in [0, 1], of x's dtype.
    weight : array that broadcasts to x's shape, optional
        Of x's dtype; lists and numbers are converted.

    Raises
    ------
    ValueError
        An argument has another shape than given above, or a value out of range. Of x and t the message names the element.

    >>> x, t = [0.25, 0.5, 0.75], [0.0, 0.75, 1.0]
    >>> l = [-t_k * np.log(x_k) - (1 - t_k) * np.log(1 - x_k) for x_k, t_k in zip(x, t)]
    >>> np.allclose(bce_loss_forward(x, t), sum(l) / 3)
    True
    """
    return _elementwise("BCELoss", x, t, reduction, weight, unit=True).forward()


@documented(_gradient, bce_loss_forward)
def bce_loss_backward(x, t, *, reduction="mean", weight=None, dloss=1.0):
    """Gradient of the binary cross-entropy, dx = dloss weight (x - t) / max(x (1 - x), 1e-12).

    For the mean it is divided by the number of elements.
    The loss is clamped, the gradient is not: x = 1, t = 0 gives loss 100 and gradient 1e12 (PyTorch issue #171327).

    >>> x, t = [0.25, 0.5, 0.75], [0.0, 0.75, 1.0]
    >>> dx = [0.5 * (x_k - t_k) / (x_k * (1 - x_k)) / 3 for x_k, t_k in zip(x, t)]
    >>> np.allclose(bce_loss_backward(x, t, dloss=0.5), dx)
    True
    """
    return _gradient(_elementwise("BCELoss", x, t, reduction, weight, unit=True), dloss)


@documented(l1_loss_forward)
def bce_with_logits_forward(x, t, *, reduction="mean", weight=None, pos_weight=None):
    """Binary cross-entropy of logits, l = weight ((1 - t) x - (1 + (pos_weight - 1) t) log sigmoid(x)).

    Stable for large |x|: exp is taken of negative numbers only. The mean divides by the number of elements, not by the
    weights. Source: aten/src/ATen/native/Loss.cpp of PyTorch.

    Parameters
    ----------
    x : float array (any shape)
        Logits.
    t : float array (shape of x)
        Targets, of x's dtype; meant to lie in [0, 1], which is not checked.
    weight, pos_weight : arrays that broadcast to x's shape, optional
        Of x's dtype; lists and numbers are converted. `pos_weight` scales the part of the loss due to positive targets.

    >>> x, t = [0.5, -1.0, 2.0], [0.0, 0.75, 1.0]
    >>> p = [1 / (1 + np.exp(-x_k)) for x_k in x]
    >>> l = [-3 * t_k * np.log(p_k) - (1 - t_k) * np.log(1 - p_k) for p_k, t_k in zip(p, t)]
    >>> np.allclose(bce_with_logits_forward(x, t, pos_weight=3), sum(l) / 3)
    True
    """
    return _elementwise("BCEWithLogitsLoss", x, t, reduction, weight, pos_weight).forward()


@documented(_gradient, bce_with_logits_forward)
def bce_with_logits_backward(x, t, *, reduction="mean", weight=None, pos_weight=None, dloss=1.0):
    """Gradient of `bce_with_logits_forward`, dx = dloss weight ((pos_weight t + 1 - t) sigmoid(x) - pos_weight t).

    For the mean it is divided by the number of elements. Source: PyTorch's binary_cross_entropy_with_logits_backward.

    >>> x, t = [0.5, -1.0, 2.0], [0.0, 0.75, 1.0]
    >>> p = [1 / (1 + np.exp(-x_k)) for x_k in x]
    >>> dx = [0.5 * ((3 * t_k + 1 - t_k) * p_k - 3 * t_k) / 3 for p_k, t_k in zip(p, t)]
    >>> np.allclose(bce_with_logits_backward(x, t, pos_weight=3, dloss=0.5), dx)
    True
    """
    return _gradient(_elementwise("BCEWithLogitsLoss", x, t, reduction, weight, pos_weight), dloss)


@documented()
def softmax(x, axis=1):
    """Probabilities p = exp(x) / sum exp(x) along one axis, whose maximum is subtracted first.

    NaN all along the axis where x holds a NaN or +inf, or nothing but -inf.
    Source: aten/src/ATen/native/SoftMax.cpp of PyTorch.

    Parameters
    ----------
    x : float array
    axis : int
        One of the axes of x; -1 is the last one.

    Returns
    -------
    p : float array of x's shape

    >>> x = [[0.5, -1.0, 2.0]]
    >>> p = [np.exp(x_c) / sum(np.exp(x_k) for x_k in x[0]) for x_c in x[0]]
    >>> np.allclose(softmax(x), [p])
    True
    """
    return _along(x, axis, log=False)


@documented(softmax)
def log_softmax(x, axis=1):
    """Log-probabilities a = x - log sum exp(x) along one axis, whose maximum is subtracted first.

    NaN where softmax is. Source: aten/src/ATen/native/SoftMax.cpp of PyTorch.

    Returns
    -------
    a : float array of x's shape

    >>> x = [[0.5, -1.0, 2.0]]
    >>> a = [x_c - np.log(sum(np.exp(x_k) for x_k in x[0])) for x_c in x[0]]
    >>> np.allclose(log_softmax(x), [a])
    True
    """
    return _along(x, axis, log=True)


# ---- arguments

def _elementwise(name, x, t, reduction, weight=None, pos_weight=None, *, integers=False, unit=False):
    """The backend's elementwise loss of this name, of checked arguments; with `unit`, x and t must lie in [0, 1]."""
    one_of(reduction, "reduction", REDUCTIONS)
    backend, x = backend_of(x=x, t=t), floats(x, "x")
    t = numeric_targets(t, x, integers)
    if unit:
        require_unit(x, "x")
        require_unit(t, "t")
    weights = _broadcast(backend, weight, "weight", x), _broadcast(backend, pos_weight, "pos_weight", x)
    return getattr(backend, name)(x, t, reduction, *weights)


def _cross_entropy(x, t, reduction, weight, ignore_index, label_smoothing):
    """The backend's cross-entropy of checked arguments."""
    one_of(reduction, "reduction", REDUCTIONS)
    backend, x, t = backend_of(x=x, t=t), floats(x, "x"), as_array(t, "t")
    axis = min(1, x.ndim - 1)
    if x.ndim == 0 or x.shape[axis] == 0:
        raise ValueError(f"x: expected shape (C,), (N, C) or (N, C, d1, ..., dK) with C >= 1, got shape {shown(x.shape)}")
    if weight is not None:
        weight = _like(weight, "weight", x)
        same_shape(weight, "weight", (x.shape[axis],), "one for each class")
        weight = backend.place(weight)
    ignore_index = integer(ignore_index, "ignore_index", None, INT64)
    label_smoothing = fraction(label_smoothing, "label_smoothing")
    keep, share = x.dtype.type(1 - label_smoothing), x.dtype.type(label_smoothing / x.shape[axis])
    t = backend.place(class_targets(t, x, ignore_index))
    return backend.CrossEntropyLoss(x, t, reduction, weight, ignore_index, keep, share)


def _along(x, axis, log):
    """softmax or log_softmax along one axis of x."""
    backend, x, axis = backend_of(x=x), floats(x, "x"), integer(axis, "axis")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of x of shape {x.shape}, got {axis}")
    return backend.softmax_along(x, axis % x.ndim, log)


def numeric_targets(t, x, integers=False):
    """The targets of an elementwise loss of x, as an array of x's dtype or, where `integers` are allowed, of an integer dtype."""
    array = numeric(t, "t", x.shape, "the shape of x")
    kind = array.dtype.kind
    if array.dtype == x.dtype or (integers and kind in "iu"):
        return array
    if kind in "iub" and not integers:
        raise TypeError(f"t: expected {x.dtype}, the dtype of x, got {one_line(str(array.dtype))}; write t.astype(x.dtype)")
    return _like(t, "t", x)


def class_targets(t, x, ignore_index):
    """The targets of the cross-entropy of x: class probabilities as they are, or class indices as an int64 array of NumPy."""
    axis = min(1, x.ndim - 1)
    classes, shape = x.shape[axis], x.shape[:axis] + x.shape[axis + 1:]
    if t.shape == x.shape:
        if t.dtype != x.dtype:
            raise TypeError(f"t: expected class probabilities of dtype {x.dtype}, as x and of x's shape, "
                            f"got {one_line(str(t.dtype))}")
        if ignore_index >= 0:
            raise ValueError(f"ignore_index: expected a negative number with class probabilities, got {ignore_index}")
        return t
    if t.shape != shape:
        raise ValueError(f"t: expected class indices of shape {shape} or class probabilities of shape {x.shape}, "
                         f"got shape {t.shape}")
    if t.dtype.kind not in "iu":
        raise TypeError(f"t: expected class indices of an integer dtype, got {one_line(str(t.dtype))}; write t.astype(int)")
    t = on_host(t)
    if t.dtype == np.uint64:
        t = np.minimum(t, np.uint64(INT64))         # no number wraps round to a negative one
    indices = cpu.flat(t, np.int64)
    position = cpu.first_bad_class(indices, classes, ignore_index)
    if position >= 0:
        raise IndexError(f"t: expected class indices in [0, {classes}) or ignore_index {ignore_index}, "
                         f"got {indices[position]} at position {_place(position, shape)}")
    return indices.reshape(shape)


def require_unit(x, name):
    """Raise ValueError unless all elements are in [0, 1]."""
    elements = cpu.flat(on_host(x), x.dtype)
    position = cpu.first_outside_unit(elements)
    if position >= 0:
        raise ValueError(f"{name}: expected values in [0, 1], got {elements[position]} at position {_place(position, x.shape)}")


def _place(position, shape):
    """The indices of an element that has this position among all."""
    return tuple(map(int, np.unravel_index(position, shape)))


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


def _broadcast(backend, weight, name, x):
    """`weight` as an array of x's dtype and shape in the backend's memory, or None."""
    if weight is None:
        return None
    weight = _like(weight, name, x)
    if weight.shape != x.shape:
        try:
            weight = np.broadcast_to(on_host(weight), x.shape)
        except ValueError:
            raise ValueError(f"{name}: expected a shape that broadcasts to {x.shape}, the shape of x, "
                             f"got shape {weight.shape}") from None
    return backend.place(weight)
