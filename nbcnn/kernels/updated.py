"""Checks of the vectors that an update of parameters takes."""
import numpy as np

from nbcnn.kernels.arguments import FLOATS, axes, describe, floats, same_dtype, same_shape
from nbcnn.kernels.backend import as_array, load_backend, on_device


def vectors(param, grad, **kept):
    """param and grad as flat vectors, and those that are kept from step to step: all are written but the gradient.

    They have one dtype and one length, and share no memory. The gradient becomes a C-contiguous one.
    """
    found = {"param": _written(param, "param"), "grad": floats(grad, "grad", "(P,)")}
    for name, array in kept.items():
        found[name] = _written(array, name)
    for k, (name, array) in enumerate(found.items()):
        if k:
            same_dtype(array, name, found["param"], "param")
            same_shape(array, name, found["param"].shape, "that of param")
        for other in list(found)[:k]:
            if _overlap(array, found[other]):
                raise ValueError(f"{name}: expected memory of its own, got some of {other}'s")
    grad = found["grad"]
    if on_device(grad):
        found["grad"] = load_backend("cuda").buffer.contiguous(grad)
    elif not grad.flags.carray:
        found["grad"] = grad.copy()
    return tuple(found.values())


def _written(value, name):
    """`value`, which must be a flat vector that a kernel can write."""
    array = as_array(value, name)
    if not (isinstance(value, np.ndarray) or on_device(value)) or array.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a float32 or float64 array, got {describe(value, array)}")
    axes(array, name, "(P,)")
    if on_device(array):
        if not array.is_c_contiguous():
            raise ValueError(f"{name}: expected a C-contiguous array, as it is updated in place, got strides {array.strides}")
    elif not array.flags.carray:
        raise ValueError(f"{name}: expected a writable C-contiguous array, as it is updated in place, "
                         f"got strides {array.strides} and writeable={array.flags.writeable}")
    return array


def _overlap(a, b):
    """Whether two arrays share memory."""
    return load_backend("cuda").sgd.overlap(a, b) if on_device(a) else np.may_share_memory(a, b)
