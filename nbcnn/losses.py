"""Losses with PyTorch's options: call them on arrays, or give them to the scheduler.

    loss = nbcnn.CrossEntropyLoss(label_smoothing=0.1)
    value = loss(logits, labels)                # or loss.forward(logits, labels)
    dlogits = loss.backward(logits, labels)

Formulas, shapes and errors are those of the functions of nbcnn.kernels, which a class names in `kernels`.
"""
import numpy as np

from nbcnn.kernels import losses
from nbcnn.kernels.arguments import INT64, floats, fraction, integer, numeric, one_of
from nbcnn.kernels.backend import as_array, backend_of, on_host
from nbcnn.kernels.number import loss_number
from nbcnn.kernels.shown import one_line, shown


class Loss:
    """What all losses share: a reduction, weights, and calls of two functions.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
    size_average, reduce
        Deprecated in PyTorch, refused here.
    **weights : arrays, optional
        Of any dtype of numbers; they are converted to that of x.
    """

    kernels = ()                # (forward, backward)
    options = ("reduction",)    # the attributes that both take as arguments
    casts = False               # whether integers are accepted as targets, and converted

    def __init__(self, reduction, size_average, reduce, **weights):
        for name, value in (("size_average", size_average), ("reduce", reduce)):
            if value is not None:
                raise TypeError(f"{name} is retired: choose reduction='mean', 'sum' or 'none'")
        self.reduction = one_of(reduction, "reduction", losses.REDUCTIONS)
        for name, value in weights.items():
            setattr(self, name, None if value is None else on_host(numeric(value, name)))

    def __new__(cls, *arguments, **options):
        if arguments and isinstance(arguments[-1], str):
            raise TypeError(f"{cls.__name__}: options have names; write {cls.__name__}(reduction={arguments[-1]!r})")
        if len(arguments) > 1:
            raise TypeError(f"{cls.__name__}: a loss is made first, and then called; write {cls.__name__}()(x, t)")
        return super().__new__(cls)

    def __call__(self, x, t):
        return self.forward(x, t)

    def forward(self, x, t):
        """The loss: a scalar of x's dtype, or an array with reduction "none"."""
        return loss_number(self.kernels[0](x, t, **self._arguments(x)))

    def backward(self, x, t, dloss=1.0):
        """dx = dLoss/dx for the upstream gradient `dloss`, a number or an array of the loss's shape."""
        return self.kernels[1](x, t, dloss=dloss, **self._arguments(x))

    def forward_backward(self, x, t):
        """(forward(x, t), backward(x, t)): what a training step needs."""
        return self.forward(x, t), self.backward(x, t)

    def targets(self, shape, dtype, t):
        """Targets for outputs of a shape and dtype, as an array in C order: of that dtype, or of int64 for class indices.

        Raises what `forward` raises.
        """
        return np.ascontiguousarray(losses.numeric_targets(t, _zeros(shape, dtype), self.casts), dtype).reshape(shape)

    def numbers(self, dtype):
        """The options but the reduction, by name; arrays are converted to a dtype."""
        values = {name: getattr(self, name) for name in self.options if name != "reduction"}
        return {name: value.astype(dtype, copy=False) if isinstance(value, np.ndarray) else value for name, value in values.items()}

    def _arguments(self, x):
        place = backend_of(x=x).place       # the weights go where x is
        numbers = self.numbers(floats(x, "x").dtype)
        return {"reduction": self.reduction,
                **{name: place(value) if isinstance(value, np.ndarray) else value for name, value in numbers.items()}}

    def __repr__(self):
        options = (f"{name}={getattr(self, name)!r}" for name in self.options if getattr(self, name) is not None)
        return f"{type(self).__name__}({', '.join(options)})"


class L1Loss(Loss):
    """Absolute error, |x - t|."""

    kernels = losses.l1_loss_forward, losses.l1_loss_backward
    casts = True

    def __init__(self, *, reduction="mean", size_average=None, reduce=None):
        super().__init__(reduction, size_average, reduce)


class MSELoss(Loss):
    """Squared error, (x - t)^2."""

    kernels = losses.mse_loss_forward, losses.mse_loss_backward
    casts = True

    def __init__(self, *, reduction="mean", size_average=None, reduce=None):
        super().__init__(reduction, size_average, reduce)


class CrossEntropyLoss(Loss):
    """Cross-entropy of class scores (logits) with class indices or class probabilities."""

    kernels = losses.cross_entropy_forward, losses.cross_entropy_backward
    options = ("weight", "ignore_index", "reduction", "label_smoothing")

    def __init__(self, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0,
                 size_average=None, reduce=None):
        super().__init__(reduction, size_average, reduce, weight=weight)
        self.ignore_index = integer(ignore_index, "ignore_index", None, INT64)
        self.label_smoothing = fraction(label_smoothing, "label_smoothing")

    def targets(self, shape, dtype, t):
        return np.ascontiguousarray(losses.class_targets(as_array(t, "t"), _zeros(shape, dtype), self.ignore_index))

    def forward_backward(self, x, t):
        return losses.cross_entropy_forward_backward(x, t, **self._arguments(x))


class BCELoss(Loss):
    """Binary cross-entropy of probabilities."""

    kernels = losses.bce_loss_forward, losses.bce_loss_backward
    options = ("weight", "reduction")

    def __init__(self, weight=None, *, reduction="mean", size_average=None, reduce=None):
        super().__init__(reduction, size_average, reduce, weight=weight)

    def targets(self, shape, dtype, t):
        t = super().targets(shape, dtype, t)
        losses.require_unit(t, "t")
        return t


class BCEWithLogitsLoss(Loss):
    """Binary cross-entropy of logits."""

    kernels = losses.bce_with_logits_forward, losses.bce_with_logits_backward
    options = ("weight", "reduction", "pos_weight")

    def __init__(self, weight=None, *, reduction="mean", pos_weight=None, size_average=None, reduce=None):
        super().__init__(reduction, size_average, reduce, weight=weight, pos_weight=pos_weight)


LOSSES = {"cross_entropy": CrossEntropyLoss, "mse": MSELoss, "l1": L1Loss, "bce": BCEWithLogitsLoss}     # by the names of --loss


def require_loss(loss):
    """The loss itself; TypeError where it is none, which says what to write for a class or a name."""
    if isinstance(loss, Loss):
        return loss
    kinds = {kind.__name__: kind for kind in LOSSES.values()} | LOSSES | {"BCELoss": BCELoss}
    kind = loss if isinstance(loss, type) and issubclass(loss, Loss) else kinds.get(loss) if isinstance(loss, str) else None
    there = ", ".join(sorted({kind.__name__ for kind in kinds.values()}))
    hint = f"; write nbcnn.{kind.__name__}()" if kind else f"; there are {there}"
    got = shown(loss) if isinstance(loss, str | type) else one_line(type(loss).__name__)
    raise TypeError(f"loss: expected a loss of nbcnn.losses, got {got}{hint}")


def _zeros(shape, dtype):
    """An array of zeros that takes the memory of one: it stands for outputs while targets are checked."""
    return np.broadcast_to(np.zeros((), dtype), shape)
