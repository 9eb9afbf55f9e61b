"""What a scheduler runs for a loss: one launch, which computes its value and its gradient."""
import numpy as np

from nbcnn.kernels.backend import on_device
from nbcnn.kernels.cuda import losses
from nbcnn.kernels.cuda.buffer import nothing
from nbcnn.kernels.cuda.compat import as_device_array, empty, to_device, to_host
from nbcnn.kernels.cuda.launch import run
from nbcnn.kernels.cuda.state import no_training


class LazyNumber:
    """A number on the device, which is fetched when it is asked for."""

    def __init__(self, array):
        self.array = array

    def __float__(self):
        return float(to_host(self.array).reshape(-1)[0])

    item = __float__

    def __format__(self, spec):
        return format(float(self), spec)

    def __repr__(self):
        return repr(float(self))


def loss_call(loss, value, dx, x, t, shape, state=None, batch=0, advance=False):
    """The call that computes a `nbcnn.losses` loss, and its gradient where dx has elements.

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
    state, one, dtype = no_training() if state is None else state, to_device(np.ones(1, x.dtype)), x.dtype
    size, labels, options = int(np.prod(shape)), t.dtype.kind == "i", loss.numbers(dtype)

    def weights(name):      # one for each element
        weight = options.get(name)
        return nothing(dtype) if weight is None else to_device(np.broadcast_to(np.asarray(weight, dtype), shape).reshape(-1))
    operation = getattr(losses, type(loss).__name__)
    if operation is not losses.CrossEntropyLoss:
        return losses.elementwise_call(
            operation.kind, value, nothing(dtype), dx, x, t, weights("weight"), weights("pos_weight"), one,
            (size or np.nan) if loss.reduction == "mean" else 1, size, size // shape[0] if labels and size else 0, state, batch,
            advance)
    weight, smoothing = options["weight"], options["label_smoothing"]
    classes, inner = (shape[1], int(np.prod(shape[2:]))) if len(shape) > 1 else (shape[0], 1)
    weight = nothing(dtype) if weight is None else to_device(np.asarray(weight, dtype))
    return losses.cross_entropy_call(
        not labels, value, nothing(dtype), dx, x, t, weight, one, options["ignore_index"], 1 - smoothing, smoothing / classes,
        loss.reduction == "mean", size // classes, classes, inner, state, batch, advance)


def run_loss(loss, logits, targets, training):
    """The value of a loss, not waited for, and, in training, its gradient."""
    x, shape = logits.reshape(logits.size), tuple(logits.shape)
    t = as_device_array(targets) if on_device(targets) else to_device(loss.targets(shape, x.dtype, targets))
    value, dx = empty((1,), x.dtype), empty((x.size,), x.dtype) if training else nothing(x.dtype)
    run([loss_call(loss, value, dx, x, t.reshape(t.size), shape)])
    return LazyNumber(value), dx.reshape(*shape) if training else None
