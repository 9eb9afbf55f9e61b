"""Losses on the GPU. One launch of one block computes the loss, its gradient and, in training, moves on to the next step.

A batch's output is small: what counts is the number of launches. Everything is computed in the arrays' own dtype. Each thread adds
up its own losses in order, then the threads' sums are added in pairs. So equal input gives equal bits.

An array of length 0 stands for one that is left out: weights that are all 1, or a result that is not wanted.
"""
import functools
import math

import numpy as np

from nbcnn.kernels.backend import on_device
from nbcnn.kernels.cuda.buffer import copy, flat, nothing
from nbcnn.kernels.cuda.compat import SIMULATED, Launch, as_device_array, cuda, empty, kernel, to_device, to_host
from nbcnn.kernels.cuda.launch import THREADS, each, run
from nbcnn.kernels.cuda.state import STEP, STOPPED, UPDATE, no_training
from nbcnn.kernels.cuda.tile import CODE_VERSION
from nbcnn.kernels.number import where_backward_is
from nbcnn.kernels.operation import Call, LossOperation

BLOCK = 4 if SIMULATED else THREADS      # a power of 2; threads that wait for each other take long to simulate

L1, MSE, BCE, BCE_WITH_LOGITS = range(4)


@cuda.jit(device=True)
def block_sum(sums, value):
    """The sum of the values of a block's threads, in pairs: the upper half is added to the lower until one is left."""
    t, half = cuda.threadIdx.x, BLOCK // 2
    sums[t] = value
    cuda.syncthreads()
    while half > 0:
        if t < half:
            sums[t] += sums[t + half]
        cuda.syncthreads()
        half //= 2
    total = sums[0]
    cuda.syncthreads()      # all have read it before the next sum begins
    return total


@cuda.jit(device=True)
def finish(loss, step, sums, value, divisor, state, advance):
    """loss[step] = the sum of the threads' values over divisor, unless it is left out.

    With `advance` the state moves on to the update and the next batch. After a loss that is not finite there is no update.
    """
    total = block_sum(sums, value) / divisor
    if cuda.threadIdx.x == 0:
        if len(loss) > 0:
            loss[step] = total
        if advance:
            if not math.isfinite(total):
                state[STOPPED] = 1
            state[UPDATE] = step
            state[STEP] = step + 1


# ---- elementwise losses

@functools.cache
def make_elementwise(KIND, CLASSES, VERSION=CODE_VERSION):
    """The kernel of one loss. Targets are labels of so many CLASSES; where that is 0, they are numbers."""

    @kernel(BLOCK)
    def elementwise(loss, losses, dx, x, t, weight, pos_weight, dloss, divisor, count, state, batch, advance):
        """losses = weight * l(x, t), loss[step] = their sum / divisor, dx = dloss / divisor * weight * dl/dx, of `count` elements.

        loss, losses, dx, weight and pos_weight may be left out. dloss has 1 or `count` numbers. With CLASSES, t holds the
        classes of all steps' samples, `batch` to a step: a sample's target is 1 for its class and 0 for the others. `advance` moves
        the state to the next step.
        """
        _ = VERSION
        sums = cuda.shared.array(BLOCK, x.dtype)
        zero, one, two, nan = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2), x.dtype.type(np.nan)
        floor, tiny = x.dtype.type(-100), x.dtype.type(1e-12)
        step, total = state[STEP], zero
        for k in range(cuda.threadIdx.x, count, BLOCK):
            value = x[k]
            if CLASSES > 0:
                target = one if t[step * batch + k // CLASSES] == k % CLASSES else zero
            else:
                target = t[k]
            if KIND == L1:
                d = value - target
                l, slope = abs(d), one if d > zero else -one if d < zero else zero
            elif KIND == MSE:
                d = value - target
                l, slope = d * d, two * d
            elif KIND == BCE:
                l = slope = nan                 # x or t is no probability
                if zero <= value <= one and zero <= target <= one:
                    log_p = max(math.log(value), floor) if value > zero else floor
                    log_q = max(math.log1p(-value), floor) if value < one else floor
                    l = (target - one) * log_q - target * log_p
                    slope = (value - target) / max((one - value) * value, tiny)
            else:
                positive = target * pos_weight[k] if len(pos_weight) > 0 else target
                scale = positive + one - target
                small = math.exp(-abs(value))
                # In this order the large parts of a sure and right answer cancel exactly, and the small one survives.
                l = (one - target) * value + scale * (zero if value > zero else -value) + scale * math.log1p(small)
                slope = scale * ((one if value >= zero else small) / (one + small)) - positive
            w = weight[k] if len(weight) > 0 else one
            if len(losses) > 0:
                losses[k] = l * w
            if len(dx) > 0:
                dx[k] = dloss[k if len(dloss) > 1 else 0] / divisor * w * slope
            total += l * w
        finish(loss, step, sums, total, divisor, state, advance)

    return elementwise


# ---- rows of class scores: class c of row i lies at (i // inner*classes + c)*inner + i % inner

@cuda.jit(device=True)
def row_start(i, classes, inner):
    """Where the first class of row i lies."""
    return i // inner * classes * inner + i % inner


@cuda.jit(device=True)
def row_maximum(x, start, classes, inner):
    """The largest score of a row."""
    highest = x[start]
    for c in range(1, classes):
        v = x[start + c * inner]
        if v > highest:
            highest = v
    return highest


@cuda.jit(device=True)
def row_sum(x, start, classes, inner, highest):
    """sum exp(x - highest) of a row. A NaN anywhere makes it NaN."""
    total = x.dtype.type(0)
    for c in range(classes):
        total += math.exp(x[start + c * inner] - highest)
    return total


@functools.cache
def make_cross_entropy(SOFT, VERSION=CODE_VERSION):
    """The kernel for class indices or, SOFT, for class probabilities."""

    @kernel(BLOCK)
    def cross_entropy(loss, losses, dx, x, t, weight, dloss, ignore_index, keep, share, mean, rows, classes, inner, state, batch,
                      advance):
        """losses = -sum_c w[c] q[c] log_softmax(x)[c] of each row, q = keep * t + share with t as probabilities, w = weight;
        loss[step] = their sum / divisor, dx = dloss / divisor * (softmax(x) sum_c w[c] q[c] - w q). The divisor is 1 or that of
        the mean: the sum of w[t], or, SOFT, the number of rows.

        loss, losses, dx and weight may be left out. dloss has 1 or `rows` numbers. Indices t are those of all steps, `batch`
        samples to a step; a row with ignore_index counts for nothing, an index that is no class makes it NaN. `advance` moves the
        state to the next step.
        """
        _ = VERSION
        sums = cuda.shared.array(BLOCK, x.dtype)
        zero, one, nan = x.dtype.type(0), x.dtype.type(1), x.dtype.type(np.nan)
        step, total, divisor = state[STEP], zero, one
        first = step * batch * inner
        all_weights = zero
        for c in range(classes):
            all_weights += weight[c] if len(weight) > 0 else one
        if mean:
            if SOFT:
                divisor = x.dtype.type(rows)
            else:
                kept = zero
                for i in range(cuda.threadIdx.x, rows, BLOCK):
                    y = t[first + i]
                    if y != ignore_index:
                        kept += nan if y < 0 or y >= classes else weight[y] if len(weight) > 0 else one
                divisor = block_sum(sums, kept)
            if divisor == zero:
                divisor = nan
        for i in range(cuda.threadIdx.x, rows, BLOCK):
            start = row_start(i, classes, inner)
            y, w = 0, zero
            counts = True
            if not SOFT:
                y = t[first + i]
                counts = y != ignore_index
                if y < 0 or y >= classes:
                    y, w = 0, nan               # no memory but x's is touched
                else:
                    w = weight[y] if len(weight) > 0 else one
            l = zero
            if counts:
                highest = row_maximum(x, start, classes, inner)
                exp_sum = row_sum(x, start, classes, inner, highest)
                log_sum = x.dtype.type(math.log(exp_sum))
                mass = keep * w + share * all_weights
                if SOFT:
                    mass = zero
                    for c in range(classes):
                        at = start + c * inner
                        q = (weight[c] if len(weight) > 0 else one) * (keep * t[at] + share)
                        mass += q
                        l += q * (log_sum - (x[at] - highest))
                else:
                    l = w * (log_sum - (x[start + y * inner] - highest))
                    if share > zero:            # else other classes do not count, not even one at -inf
                        smooth = zero
                        for c in range(classes):
                            smooth += (weight[c] if len(weight) > 0 else one) * (log_sum - (x[start + c * inner] - highest))
                        l = keep * l + share * smooth
                if len(dx) > 0:
                    g = dloss[i if len(dloss) > 1 else 0] / divisor
                    for c in range(classes):
                        at, v = start + c * inner, weight[c] if len(weight) > 0 else one
                        if SOFT:
                            q = v * (keep * t[at] + share)
                        else:
                            q = share * v + (keep * w if c == y else zero)
                        dx[at] = g * (mass * (math.exp(x[at] - highest) / exp_sum) - q)
            elif len(dx) > 0:
                for c in range(classes):
                    dx[start + c * inner] = zero
            if len(losses) > 0:
                losses[i] = l
            total += l
        finish(loss, step, sums, total, divisor, state, advance)

    return cross_entropy


@functools.cache
def make_softmax(LOG):
    """The kernel of softmax or, LOG, of log_softmax."""

    @kernel(THREADS)
    def softmax(y, x, rows, classes, inner):
        """y = exp(x) / sum exp(x) along each row, or its logarithm: a thread per row."""
        i = cuda.grid(1)
        if i < rows:
            start = row_start(i, classes, inner)
            highest = row_maximum(x, start, classes, inner)
            total = row_sum(x, start, classes, inner, highest)
            log_sum = x.dtype.type(math.log(total))
            for c in range(classes):
                v = x[start + c * inner] - highest
                y[start + c * inner] = v - log_sum if LOG else math.exp(v) / total

    return softmax


def softmax_along(x, axis, log):
    """softmax or log_softmax of a device array along one of its axes."""
    y = empty(x.shape, x.dtype)
    if x.size:
        rows, classes, inner = x.size // x.shape[axis], x.shape[axis], math.prod(x.shape[axis + 1:])
        each(make_softmax(bool(log)), rows)(flat(y), flat(x), rows, classes, inner)
    return y


# ---- losses of arrays

class _Loss(LossOperation):
    """One launch, of kernel(loss, losses, dx, *inputs, dloss, *numbers, state, batch, advance).

    It computes the results that it has memory for. `shape` is that of `losses`; inputs are device arrays, None for one left out.
    """

    def __init__(self, x, shape, reduction, kernel, inputs, numbers):
        self.x, self.shape, self.reduction, self.kernel, self.numbers = x, shape, reduction, kernel, numbers
        self.inputs = self._flat(*inputs)

    def _flat(self, *arrays):
        return [nothing(self.x.dtype) if array is None else flat(array) for array in arrays]

    def call(self, loss=None, losses=None, dx=None, dloss=None, state=None, batch=0, advance=False):
        """The call that fills those of loss, losses and dx that are not None; the others as the kernels take them."""
        *results, dloss = self._flat(loss, losses, dx, dloss)
        return Call(Launch(self.kernel, 1, BLOCK), (
            *results, *self.inputs, dloss, *self.numbers, no_training() if state is None else state, batch, bool(advance)))

    def forward(self):
        if self.reduction == "none":
            losses = empty(self.shape, self.x.dtype)
            run([self.call(losses=losses)])
            return losses
        loss = empty((1,), self.x.dtype)
        run([self.call(loss)])
        return loss.reshape(())

    def backward(self, dloss):
        dx = empty(self.x.shape, self.x.dtype)
        run([self.call(dx=dx, dloss=dloss)])
        return dx


class _ElementwiseLoss(_Loss):
    """A loss of each element; `kind` says which one to the kernel. Targets of fewer axes than x are the labels of all steps."""

    def __init__(self, x, t, reduction, weight=None, pos_weight=None):
        t, classes = (t, math.prod(x.shape[1:])) if t.ndim < x.ndim else (converted(t, x.dtype), 0)
        divisor = (x.size or np.nan) if reduction == "mean" else 1
        super().__init__(x, x.shape, reduction, make_elementwise(self.kind, classes), (x, t, weight, pos_weight),
                         (x.dtype.type(divisor), x.size))


class L1Loss(_ElementwiseLoss):
    """|x - t|"""
    kind = L1


class MSELoss(_ElementwiseLoss):
    """(x - t)^2"""
    kind = MSE


class BCELoss(_ElementwiseLoss):
    """Binary cross-entropy of probabilities."""
    kind = BCE


class BCEWithLogitsLoss(_ElementwiseLoss):
    """Binary cross-entropy of logits."""
    kind = BCE_WITH_LOGITS


class CrossEntropyLoss(_Loss):
    """Cross-entropy of class scores with class indices, which may be those of all steps, or class probabilities."""

    def __init__(self, x, t, reduction, weight, ignore_index, keep, share):
        axis, cast = min(1, x.ndim - 1), x.dtype.type
        shape, classes, inner = x.shape[:axis] + x.shape[axis + 1:], x.shape[axis], math.prod(x.shape[axis + 1:])
        super().__init__(x, shape, reduction, make_cross_entropy(t.dtype.kind == "f"), (x, t, weight),
                         (ignore_index, cast(keep), cast(share), reduction == "mean", math.prod(shape), classes, inner))


def converted(x, dtype):
    """A device array with its values in another dtype, in C order; itself where it has that dtype already."""
    if x.dtype == dtype:
        return x
    y = empty((x.size,), dtype)
    copy(y, flat(x))
    return y.reshape(x.shape)


# ---- losses of `nbcnn.losses`

def loss_call(loss, value, dx, x, t, shape, state=None, batch=0, advance=False):
    """The call that computes a loss of `nbcnn.losses`, and its gradient where dx has elements.

    Parameters
    ----------
    loss : loss of `nbcnn.losses`
    value : flat device array
        Receives the loss, at the position of the step that `state` says.
    dx, x : flat device arrays
        Outputs (N, C, ...) of this `shape`. More elements may follow.
    t : flat device array
        Targets of x's shape, or int64 class labels: those of all steps, `batch` to a step. For an elementwise loss a label stands
        for its one-hot row.
    state, batch, advance
        As the kernels take them.
    """
    x, t = x[:math.prod(shape)].reshape(*shape), t if t.dtype.kind == "i" else t.reshape(*shape)
    operation, options, weighted = globals()[type(loss).__name__], loss.numbers(x.dtype), shape
    if operation is CrossEntropyLoss:
        smoothing, classes = options.pop("label_smoothing"), shape[min(1, len(shape) - 1)]
        options |= {"keep": 1 - smoothing, "share": smoothing / classes}
        weighted = classes,
    weights = {name: to_device(np.broadcast_to(a, weighted)) for name, a in options.items() if isinstance(a, np.ndarray)}
    one = to_device(np.ones(1, x.dtype))
    return operation(x, t, loss.reduction, **options | weights).call(value, None, dx, one, state, batch, advance)


class LazyNumber:
    """A number on the device, which is fetched when it is asked for."""

    def __init__(self, array):
        self.array = array

    def __float__(self):
        return float(to_host(self.array).reshape(-1)[0])

    item, __getattr__ = __float__, where_backward_is

    def __format__(self, spec):
        return format(float(self), spec)

    def __repr__(self):
        return repr(float(self))


def run_loss(loss, logits, targets, training):
    """The value of a loss, not waited for, and, in training, its gradient."""
    x, shape = logits.reshape(logits.size), tuple(logits.shape)
    t = as_device_array(targets) if on_device(targets) else to_device(loss.targets(shape, x.dtype, targets))
    value, dx = empty((1,), x.dtype), empty((x.size,), x.dtype) if training else nothing(x.dtype)
    run([loss_call(loss, value, dx, x, t.reshape(t.size), shape)])
    return LazyNumber(value), dx.reshape(*shape) if training else None
