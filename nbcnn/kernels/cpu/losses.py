"""Losses on the CPU: arrays in C order; one row of C class scores per position, elementwise losses as vectors.

Everything is computed in the arrays' own dtype. Sums fold in half, so that float32 loses log2(M) roundings, not M.
A kernel knows no reduction: `dlosses` holds the upstream gradient of each single loss, over the mean's divisor.
"""
import functools
import math

import numpy as np

from nbcnn.kernels.cpu import kernel_cache
from nbcnn.kernels.operation import LossOperation

# Division by zero gives inf and NaN, as in NumPy, instead of a Python exception.
njit = kernel_cache.njit(error_model="numpy")


@njit
def tree_sum(a):
    """Sum of a (M,), which is overwritten: the upper half is added to the lower until one element is left."""
    n = len(a)
    while n > 1:
        half = (n + 1) // 2
        for k in range(n - half):
            a[k] += a[half + k]
        n = half
    return a[0] if n == 1 else a.dtype.type(0)


@njit
def first_outside_unit(x):
    """Index of the first element of x (M,) that is not in [0, 1], NaN included; -1 without one."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for k in range(len(x)):
        if not (zero <= x[k] <= one):
            return k
    return -1


@njit
def first_bad_class(t, classes, ignore_index):
    """Position of the first index in t (R,) that is neither ignored nor a class; -1 without one."""
    for i in range(len(t)):
        if t[i] != ignore_index and not 0 <= t[i] < classes:
            return i
    return -1


# ---- elementwise losses: every array (M,)

@njit
def l1_loss_forward(losses, x, t):
    """losses = |x - t|"""
    for k in range(len(x)):
        losses[k] = abs(x[k] - t[k])


@njit
def l1_loss_backward(dx, dlosses, x, t):
    """dx = dlosses * sign(x - t)"""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for k in range(len(x)):
        d = x[k] - t[k]
        dx[k] = dlosses[k] * (one if d > zero else -one if d < zero else zero)


@njit
def mse_loss_forward(losses, x, t):
    """losses = (x - t)^2"""
    for k in range(len(x)):
        d = x[k] - t[k]
        losses[k] = d * d


@njit
def mse_loss_backward(dx, dlosses, x, t):
    """dx = dlosses * 2 (x - t)"""
    two = x.dtype.type(2)
    for k in range(len(x)):
        dx[k] = dlosses[k] * (two * (x[k] - t[k]))


@njit
def bce_loss_forward(losses, x, t):
    """losses = -(t log x + (1 - t) log(1 - x)), each logarithm at least -100"""
    one, floor = x.dtype.type(1), x.dtype.type(-100)
    for k in range(len(x)):
        losses[k] = (t[k] - one) * max(math.log1p(-x[k]), floor) - t[k] * max(math.log(x[k]), floor)


@njit
def bce_loss_backward(dx, dlosses, x, t):
    """dx = dlosses * (x - t) / (x (1 - x)), the denominator at least 1e-12"""
    one, tiny = x.dtype.type(1), x.dtype.type(1e-12)
    for k in range(len(x)):
        dx[k] = dlosses[k] * (x[k] - t[k]) / max((one - x[k]) * x[k], tiny)


@njit
def bce_with_logits_forward(losses, x, t, pos_weight):
    """losses = (1 - t) x + (1 + (pos_weight - 1) t) (max(-x, 0) + log(1 + exp(-|x|)))"""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for k in range(len(x)):
        scale = one + (pos_weight[k] - one) * t[k]
        # In this order the large parts of a sure and right answer cancel exactly, and the small one survives.
        linear = (one - t[k]) * x[k] + scale * max(-x[k], zero)
        losses[k] = linear + scale * math.log1p(math.exp(-abs(x[k])))


@njit
def bce_with_logits_backward(dx, dlosses, x, t, pos_weight):
    """dx = dlosses * ((pos_weight t + 1 - t) sigmoid(x) - pos_weight t)"""
    one = x.dtype.type(1)
    for k in range(len(x)):
        positive = pos_weight[k] * t[k]
        dx[k] = dlosses[k] * ((positive + one - t[k]) / (one + math.exp(-x[k])) - positive)


# ---- rows of class scores: x and dx (R, C), row (C,) scratch

@njit
def exponentials(row, x):
    """row (C,) = exp(x - max x); returns max x. A NaN anywhere makes the row's sum NaN."""
    highest = x[0]
    for c in range(len(x)):
        if x[c] > highest:
            highest = x[c]
    for c in range(len(x)):
        row[c] = math.exp(x[c] - highest)
    return highest


@njit
def softmax_row(p, row, x):
    """p (C,) = exp(x) / sum exp(x)"""
    exponentials(p, x)
    for c in range(len(x)):
        row[c] = p[c]
    total = tree_sum(row)
    for c in range(len(x)):
        p[c] /= total


@njit
def softmax(p, row, x):
    """p (R, C) = exp(x) / sum exp(x) along each row"""
    for i in range(len(x)):
        softmax_row(p[i], row, x[i])


@njit
def log_softmax(a, row, x):
    """a (R, C) = x - log sum exp(x) along each row"""
    for i in range(len(x)):
        highest = exponentials(row, x[i])
        log_sum = math.log(tree_sum(row))
        for c in range(len(row)):
            a[i, c] = x[i, c] - highest - log_sum


@njit
def total_weight(kept, t, w, ignore_index):
    """Sum of w[t[i]] over the positions that are not ignored; kept (R,) is scratch."""
    for i in range(len(t)):
        kept[i] = w.dtype.type(0) if t[i] == ignore_index else w[t[i]]
    return tree_sum(kept)


@njit
def cross_entropy_forward(losses, row, x, t, w, ignore_index, keep, share):
    """losses (R,) = -sum_c w[c] q[c] log_softmax(x)[c], q = share for every class plus keep for t (R,); 0 if ignored"""
    for i in range(len(t)):
        y = t[i]
        if y == ignore_index:
            losses[i] = x.dtype.type(0)
            continue
        highest = exponentials(row, x[i])
        log_sum = math.log(tree_sum(row))
        loss = w[y] * (log_sum - (x[i, y] - highest))
        if share > x.dtype.type(0):     # else other classes do not count, not even one at -inf
            for c in range(len(row)):
                row[c] = w[c] * (log_sum - (x[i, c] - highest))
            loss = keep * loss + share * tree_sum(row)
        losses[i] = loss


@njit
def cross_entropy_backward(dx, row, dlosses, x, t, w, ignore_index, keep, share):
    """dx (R, C) = dlosses * (softmax(x) sum_c w[c] q[c] - w q), q as in forward; 0 if ignored"""
    for c in range(len(w)):
        row[c] = w[c]
    all_weights = tree_sum(row)
    for i in range(len(t)):
        y = t[i]
        if y == ignore_index:
            for c in range(len(row)):
                dx[i, c] = x.dtype.type(0)
            continue
        softmax_row(dx[i], row, x[i])
        mass = keep * w[y] + share * all_weights
        for c in range(len(row)):
            dx[i, c] = mass * dx[i, c] - share * w[c]
        dx[i, y] -= keep * w[y]
        for c in range(len(row)):
            dx[i, c] *= dlosses[i]


@njit
def soft_cross_entropy_forward(losses, row, x, t, w, keep, share):
    """losses (R,) = -sum_c w[c] q[c] log_softmax(x)[c], q = keep * t + share with probabilities t (R, C)"""
    for i in range(len(x)):
        highest = exponentials(row, x[i])
        log_sum = math.log(tree_sum(row))
        for c in range(len(row)):
            row[c] = w[c] * (keep * t[i, c] + share) * (log_sum - (x[i, c] - highest))
        losses[i] = tree_sum(row)


@njit
def soft_cross_entropy_backward(dx, row, dlosses, x, t, w, keep, share):
    """dx (R, C) = dlosses * (softmax(x) sum_c w[c] q[c] - w q), q as in forward"""
    for i in range(len(x)):
        softmax_row(dx[i], row, x[i])
        for c in range(len(row)):
            row[c] = w[c] * (keep * t[i, c] + share)
        mass = tree_sum(row)
        for c in range(len(row)):
            dx[i, c] = dlosses[i] * (mass * dx[i, c] - w[c] * (keep * t[i, c] + share))


# ---- losses of arrays

class _Loss(LossOperation):
    """What the losses share: the reduction of single losses.

    A loss has `write(losses)`, which computes them, and `gradient(dlosses)`, which returns dx. Both take flat arrays.
    """

    def __init__(self, x, shape, reduction, divisor, weight=None):
        self.x, self.shape, self.reduction, self.weight = x, shape, reduction, weight
        self.divisor = x.dtype.type(divisor or np.nan)      # the mean of nothing is NaN

    def forward(self):
        losses = np.empty(self.shape, self.x.dtype)
        self.write(losses.reshape(-1))
        if self.weight is not None:
            losses *= self.weight
        if self.reduction == "none":
            return losses[()]
        total = losses.dtype.type(tree_sum(losses.reshape(-1)))
        return total / self.divisor if self.reduction == "mean" else total

    def backward(self, dloss):
        dlosses = np.empty(self.shape, self.x.dtype)
        dlosses[...] = dloss / self.divisor if self.reduction == "mean" else dloss
        if self.weight is not None:
            dlosses *= self.weight
        return self.gradient(dlosses.reshape(-1))


class _ElementwiseLoss(_Loss):
    """A loss of each element; `kernels` are (forward, backward)."""

    def __init__(self, x, t, reduction, weight=None, pos_weight=None):
        super().__init__(x, x.shape, reduction, x.size, weight)
        self.inputs = flat(x, x.dtype), flat(t, x.dtype)

    def write(self, losses):
        self.kernels[0](losses, *self.inputs)

    def gradient(self, dlosses):
        dx = np.empty(self.shape, self.x.dtype)
        self.kernels[1](dx.reshape(-1), dlosses, *self.inputs)
        return dx


class L1Loss(_ElementwiseLoss):
    """|x - t|"""
    kernels = l1_loss_forward, l1_loss_backward


class MSELoss(_ElementwiseLoss):
    """(x - t)^2"""
    kernels = mse_loss_forward, mse_loss_backward


class BCELoss(_ElementwiseLoss):
    """Binary cross-entropy of probabilities."""
    kernels = bce_loss_forward, bce_loss_backward


class BCEWithLogitsLoss(_ElementwiseLoss):
    """Binary cross-entropy of logits."""
    kernels = bce_with_logits_forward, bce_with_logits_backward

    def __init__(self, x, t, reduction, weight=None, pos_weight=None):
        super().__init__(x, t, reduction, weight)
        self.inputs += (np.ones(x.size, x.dtype) if pos_weight is None else flat(pos_weight, x.dtype)),


class CrossEntropyLoss(_Loss):
    """Cross-entropy of class scores with class indices or class probabilities."""

    def __init__(self, x, t, reduction, weight, ignore_index, keep, share):
        axis = min(1, x.ndim - 1)
        w = _ones(x.shape[axis], x.dtype) if weight is None else flat(weight, x.dtype)
        self.soft = t.shape == x.shape
        if self.soft:
            t = _rows(t, axis)
            self.inputs, divisor = (_rows(x, axis), t, w, keep, share), len(t)
        else:
            t = flat(t, t.dtype)
            self.inputs, divisor = (_rows(x, axis), t, w, ignore_index, keep, share), 1
            if reduction == "mean":
                divisor = total_weight(np.empty(len(t), w.dtype), t, w, ignore_index)
        super().__init__(x, x.shape[:axis] + x.shape[axis + 1:], reduction, divisor)
        self.row = np.empty_like(w)     # scratch

    def write(self, losses):
        (soft_cross_entropy_forward if self.soft else cross_entropy_forward)(losses, self.row, *self.inputs)

    def gradient(self, dlosses):
        dx = np.empty_like(self.inputs[0])
        (soft_cross_entropy_backward if self.soft else cross_entropy_backward)(dx, self.row, dlosses, *self.inputs)
        dx = dx.reshape(*self.shape, len(self.row))
        return dx if dx.ndim < 3 else np.moveaxis(dx, -1, 1)


def run_loss(loss, logits, targets, training):
    """The value of a `nbcnn.losses` loss and, in training, its gradient."""
    if not training:
        return float(loss(logits, targets)), None
    value, dlogits = loss.forward_backward(logits, targets)
    return float(value), dlogits


# ---- softmax

def softmax_along(x, axis, log):
    """softmax or log_softmax of an array along one of its axes."""
    if x.size == 0:
        return np.empty(x.shape, x.dtype)
    rows = _rows(x, axis)
    y, row = np.empty_like(rows), np.empty(x.shape[axis], x.dtype)
    (log_softmax if log else softmax)(y, row, rows)
    return np.moveaxis(y.reshape(np.moveaxis(x, axis, -1).shape), -1, axis)


# ---- layouts

def _packed(x):
    """x, or a copy of it, in C order and writable: the one array type the loops are compiled for."""
    return x if x.flags.carray else x.copy(order="C")


def flat(x, dtype):
    """The elements of x in a dtype, packed."""
    return _packed(x.astype(dtype, copy=False)).reshape(-1)


def _rows(x, axis):
    """x with an axis moved last, packed, as rows along it."""
    moved = x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1)
    return _packed(moved).reshape(-1, x.shape[axis])


@functools.lru_cache(maxsize=8)
def _ones(classes, dtype):
    """The weights of classes without weights; nothing writes to them."""
    return np.ones(classes, dtype)
