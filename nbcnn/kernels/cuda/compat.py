"""Everything that depends on numba-cuda's version, on whether its simulator runs, and on cuda-core.

`NUMBA_ENABLE_CUDASIM=1`, set before numba is imported, runs the kernels as Python threads on the CPU. It knows no alignment, no
launch bounds, no intrinsics and no graphs; what stands in for them is here and in `tile.py`, and nowhere else.
"""
import functools
import inspect
import threading
import warnings

import numpy as np
from numba import config
from numba.core.errors import NumbaPerformanceWarning

try:
    from numba import cuda
    if getattr(cuda, "implementation", None) != "NVIDIA":
        raise ImportError("numba.cuda comes from numba itself, which no longer maintains it")
except ImportError as error:
    raise ImportError(f"GPU kernels need numba-cuda ({error}), the extra cuda13: python -m pip install 'numba-cuda[cu13]==0.30.4' "
                      "'cuda-toolkit[nvrtc,nvvm]==13.0.*'; with a driver of CUDA 12 'numba-cuda[cu12]==0.30.4'") from None

SIMULATED = bool(config.ENABLE_CUDASIM)
ALIGNMENT = None if SIMULATED else 16       # of shared memory that is read 16 bytes at a time

WARP = 1 if SIMULATED else 32               # threads that take their branches together

# The simulator runs one kernel at a time, and a graph records what one thread launches.
_one_at_a_time = threading.RLock()


if SIMULATED:
    intrinsic = None
else:
    from numba.cuda.extending import _intrinsic
    intrinsic = _intrinsic(target="cuda", prefer_literal=True)      # sees constant arguments as such; no public name gives that


def kernel(threads, name=None):
    """Decorate a kernel whose blocks have up to so many threads; it is compiled at its first launch and kept in Numba's cache.

    A function that computes several things gets the name of what it is made for.
    """
    def decorate(function):
        if name:
            function.__name__ = function.__qualname__ = name
        return cuda.jit(function) if SIMULATED else cuda.jit(cache=True, launch_bounds=(threads, 1))(function)
    return decorate


def unavailable():
    """Why no GPU can be used, in a few words; "" where one can. The simulator is none."""
    if SIMULATED:
        return "NUMBA_ENABLE_CUDASIM is set, which simulates one on the CPU"
    if cuda.is_available():
        return ""
    try:
        cuda.current_context()
    except Exception as error:      # whatever the driver, or its absence, raises
        return " ".join(str(error).split()).rstrip(" :.") or type(error).__name__
    return "numba-cuda finds none"


def describe():
    """The GPU in use, in words."""
    if SIMULATED:
        return "numba-cuda's simulator"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return f"{name}, {device.MULTIPROCESSOR_COUNT} multiprocessors"


def is_device_array(value):
    """Whether a value's memory is a GPU's: an array of Numba, CuPy or PyTorch on a GPU, for instance."""
    # What the simulator stands in for has no interface to other libraries.
    return type(value).__name__ == "FakeCUDAArray" if SIMULATED else hasattr(value, "__cuda_array_interface__")


def as_device_array(value):
    """A device array of any library as one of Numba's, without a copy."""
    return value if SIMULATED else cuda.as_cuda_array(value)


def empty(shape, dtype):
    """A device array in C order whose contents are undefined."""
    return cuda.device_array(shape, np.dtype(dtype))


def to_device(array):
    """A copy of a NumPy array on the device, in C order."""
    if not np.size(array):      # there is nothing to copy
        return empty(np.shape(array), np.asarray(array).dtype)
    return cuda.to_device(np.ascontiguousarray(array).reshape(np.shape(array)))


def to_host(array):
    """A device array as a NumPy array of its own, once all that was started before is done."""
    if not SIMULATED and not array.is_c_contiguous() and array.size:
        # numba-cuda copies one piece of memory: all from the first element to the last, whose steps are then those of the array.
        last = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
        itemsize = array.dtype.itemsize
        flat = _strided(array, (last // itemsize + 1,), (itemsize,)).copy_to_host()
        return np.array(np.lib.stride_tricks.as_strided(flat, array.shape, array.strides), order="C")
    return np.array(array.copy_to_host(), order="C")


def copy_to(array, host):
    """Overwrite a device array in C order with a NumPy array of its shape and dtype."""
    if array.size:
        # A copy: numba-cuda drops axes without a step, as those of size 1 of a broadcast array.
        array.copy_to_device(np.array(host, order="C").reshape(array.shape))


def transposed(array, axes):
    """A view of a device array with its axes in another order."""
    if SIMULATED:
        return array.transpose(axes)
    return _strided(array, tuple(array.shape[a] for a in axes), tuple(array.strides[a] for a in axes))


def with_axes(array, ndim):
    """A view of a device array with axes of size 1 in front, so that there are so many."""
    more = ndim - array.ndim
    if SIMULATED:
        return array.reshape((1,) * more + tuple(array.shape))
    return _strided(array, (1,) * more + tuple(array.shape), (0,) * more + tuple(array.strides))


def _strided(array, shape, strides):
    """A view of other shape and strides, in bytes, that begins where the array does."""
    return type(array)(shape=shape, strides=strides, dtype=array.dtype, gpu_data=array.gpu_data)


def synchronize():
    """Wait until all that was started is done."""
    if not SIMULATED:
        cuda.synchronize()


class Launch:
    """A kernel with its grid and block, which is called as if it were a function."""

    def __init__(self, kernel, grid, block):
        self.kernel, self.grid, self.block, self._configured = kernel, grid, block, None
        functools.update_wrapper(self, inspect.unwrap(kernel))

    def __call__(self, *arguments):
        if not np.all(self.grid):
            return      # of no samples; CUDA refuses a launch without blocks
        if SIMULATED or self._configured is None:       # the simulator keeps the last configuration in the kernel
            self._configured = self.configured()
        with _one_at_a_time:
            self._configured(*arguments)

    def configured(self, stream=0):
        """What starts the kernel on a stream."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaPerformanceWarning)        # about small grids, which small work has
            return self.kernel[self.grid, self.block, stream]


class Graph:
    """Calls recorded once, to be started together with one call of the driver.

    Every kernel has to have run before, since compiling and loading cannot be recorded. The simulator has no graphs; there the
    calls run one after another.
    """

    def __init__(self, calls):
        self.calls = calls      # a graph does not keep its arguments alive
        if SIMULATED:
            return
        from cuda.core import Device
        device = Device(cuda.get_current_device().id)
        device.set_current()
        self.stream = device.default_stream
        builder = device.create_graph_builder()
        # Memory that nobody needs any more cannot be freed while calls are recorded.
        with _one_at_a_time, cuda.defer_cleanup():
            launches = [(call.kernel.configured(builder), call.arguments) for call in calls]
            builder.begin_building()
            try:
                for launch, arguments in launches:
                    launch(*arguments)
            finally:
                builder.end_building()
        self.graph = builder.complete()
        builder.close()
        self.graph.upload(self.stream)

    def launch(self):
        """Start the calls, behind all that was started before."""
        if SIMULATED:
            for call in self.calls:
                call.kernel(*call.arguments)
        else:
            self.graph.launch(self.stream)
