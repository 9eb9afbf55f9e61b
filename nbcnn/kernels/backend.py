"""Where arrays live, and which backend computes on them: the CPU's, or a GPU's, which is imported only when it is asked for."""
import functools
import importlib

import numpy as np

BACKENDS = {"cpu": "nbcnn.kernels.cpu", "cuda": "nbcnn.kernels.cuda"}


@functools.cache
def load_backend(name):
    """The namespace of kernels of a device, "cpu" or "cuda".

    Raises
    ------
    ValueError
        When there is no such device.
    ImportError
        When it needs packages that are not installed: a line that says which.
    """
    if name not in BACKENDS:
        raise ValueError(f"device: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return importlib.import_module(BACKENDS[name])


def on_device(value):
    """Whether an array's memory is a GPU's, whatever library it comes from: Numba, CuPy, PyTorch."""
    # The arrays of numba-cuda's simulator have no interface to other libraries.
    return not isinstance(value, np.ndarray) and (hasattr(value, "__cuda_array_interface__")
                                                  or type(value).__name__ == "FakeCUDAArray")


def as_array(value):
    """`value` as an array where it is: device arrays as Numba's, without a copy, all else as NumPy's."""
    if isinstance(value, np.ndarray):
        return value
    return load_backend("cuda").as_device_array(value) if on_device(value) else np.asarray(value)


def backend_of(**arrays):
    """The backend of the arrays; None stands for an argument left out.

    Raises
    ------
    TypeError
        When some are a GPU's and others the CPU's.
    """
    if all(value is None or isinstance(value, np.ndarray) for value in arrays.values()):       # the usual case takes a microsecond
        return load_backend("cpu")
    there = {name: on_device(value) for name, value in arrays.items() if value is not None}
    if len(set(there.values())) > 1:
        device, host = (", ".join(name for name in there if there[name] is where) for where in (True, False))
        raise TypeError(f"{host}: expected device arrays, as {device} is one; got NumPy arrays or lists. Nothing is copied to or "
                        "from a GPU without being asked for")
    return load_backend("cuda" if any(there.values()) else "cpu")
