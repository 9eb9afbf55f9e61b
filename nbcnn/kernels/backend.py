"""Where arrays live, and which backend computes on them: the CPU's, or a GPU's, which is imported only when it is asked for."""
import functools
import importlib

import numpy as np

from nbcnn.kernels.shown import one_line, shown

BACKENDS = {"cpu": "nbcnn.kernels.cpu", "cuda": "nbcnn.kernels.cuda"}


@functools.cache
def load_backend(name):
    """The namespace of kernels of a device, "cpu" or "cuda": a `contract.Backend`. An ImportError says which packages it lacks."""
    if name not in BACKENDS:
        raise ValueError(f"device: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return importlib.import_module(BACKENDS[name])


def on_device(value):
    """Whether an array's memory is a GPU's, whatever library it comes from: Numba, CuPy, PyTorch."""
    if isinstance(value, np.ndarray):
        return False
    try:
        # The arrays of numba-cuda's simulator have no interface to other libraries.
        return hasattr(value, "__cuda_array_interface__") or type(value).__name__ == "FakeCUDAArray"
    except Exception:       # of somebody else's __getattr__
        return False


def as_array(value, name):
    """`value` as an array where it is: device arrays as Numba's, without a copy, all else as NumPy's own class.

    A subclass may say what it likes of its shape, strides, dtype and flags, which the kernels would follow: of it the memory is
    taken, and what NumPy knows of that. Masked arrays and matrices, which would lose what they mean, are refused.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected an array without a mask, got a masked array; see its method filled(value)")
        if isinstance(value, np.matrix):
            raise TypeError(f"{name}: expected an array, got a np.matrix; np.asarray makes an array of it")
    try:
        return load_backend("cuda").as_device_array(value) if on_device(value) else np.asarray(value)
    except MemoryError:
        raise MemoryError(f"{name}: expected an array that fits in memory, got {shown(value)}") from None
    except Exception as error:
        raise TypeError(f"{name}: expected an array, got {shown(value)}: {one_line(str(error))}") from None


def on_host(array):
    """An array as one of NumPy: itself, or a copy of a device array."""
    return load_backend("cuda").to_host(array) if on_device(array) else array


def backend_of(**arrays):
    """The backend of the arrays, which must all be in its memory; None stands for an argument left out."""
    if all(value is None or isinstance(value, np.ndarray) for value in arrays.values()):       # the usual case takes a microsecond
        return load_backend("cpu")
    there = {name: on_device(value) for name, value in arrays.items() if value is not None}
    if len(set(there.values())) > 1:
        device, host = (", ".join(name for name in there if there[name] is where) for where in (True, False))
        raise TypeError(f"{host}: expected device arrays, as {device} is one; got NumPy arrays or lists. Nothing is copied to or "
                        "from a GPU without being asked for")
    try:
        return load_backend("cuda" if any(there.values()) else "cpu")
    except ImportError as error:
        raise TypeError(f"{', '.join(there)}: expected NumPy arrays, got a GPU's, and {one_line(str(error), 300)}") from None
