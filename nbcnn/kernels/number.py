"""Losses as numbers. Unlike PyTorch's they know nothing of where they come from, but they say who does."""
import numpy as np


def where_backward_is(self, name):
    """`__getattr__` of a number that is a loss."""
    if name == "backward":
        raise AttributeError("a loss is a number and has no backward; write step.backward() of the nbcnn.BackpropScheduler whose "
                             "step.forward(images, targets) gave it, or criterion.backward(x, t), which gives dLoss/dx")
    raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Number(float):
    """What `BackpropScheduler.forward` gives: a float."""
    __getattr__ = where_backward_is

    def item(self):
        return float(self)


class Float32(np.float32):
    """What a loss gives of float32 arrays."""
    __getattr__ = where_backward_is


class Float64(np.float64):
    """What a loss gives of float64 arrays."""
    __getattr__ = where_backward_is


KINDS = {float: Number, np.float32: Float32, np.float64: Float64}


def loss_number(value):
    """A loss of float, np.float32 or np.float64 as one of the above; anything else, as an array or a device's number, as it is."""
    kind = KINDS.get(type(value))
    return value if kind is None else kind(value)
