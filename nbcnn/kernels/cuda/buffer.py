"""Memory on the device: arrays in PyTorch's order, without borders or slack."""
import functools
import math

import numpy as np

from nbcnn.kernels.backend import on_device
from nbcnn.kernels.cuda.compat import as_device_array, copy_to, cuda, empty, kernel, to_device, transposed, with_axes
from nbcnn.kernels.cuda.launch import THREADS, each

ALIGNMENT = 64      # bytes between the parameters of a vector, as on the CPU: one layout, one copy


def allocate(shape, dtype):
    """A zeroed device array in C order."""
    array = empty(shape, dtype)
    if math.prod(shape):
        copy_to(array, np.zeros(shape, dtype))
    return array


@functools.cache
def nothing(dtype):
    """An empty device array, in the place of one that a kernel does not need."""
    return empty((0,), dtype)


class Buffer:
    """Activations or gradients of up to `batch` samples: (batch, C, H, W) or (batch, F) in C order; see `contract.Buffer`.

    Attributes
    ----------
    array : flat device array
    steps : tuple of ints
        (start, sample, channel, row, column) in elements. A vector of F features is an image of F channels of one pixel.
    """

    def __init__(self, batch, shape, dtype, array=None):
        self.shape = tuple(shape)
        self.size = math.prod(shape)
        self.array = allocate((self.elements(batch, shape),), dtype) if array is None else array
        _, H, W = shape if len(shape) == 3 else (self.size, 1, 1)
        self.steps = 0, self.size, H * W, W, 1

    @classmethod
    def elements(cls, batch, shape):
        """How many elements a buffer has."""
        return batch * math.prod(shape)

    def set(self, samples):
        """Overwrite the first samples with an array in PyTorch's shape, of NumPy or on the device."""
        write(self.view(len(samples)), samples)

    def view(self, n):
        """The first n samples in PyTorch's shape: a device array that shares the memory."""
        return self.array[:n * self.size].reshape(n, *self.shape)

    @classmethod
    def holding(cls, x):
        """A buffer with the values of a device array (N, ...), which it shares where that is in C order."""
        return cls(len(x), x.shape[1:], x.dtype, array=flat(x))


def contiguous(x):
    """A device array in C order: x itself, or a copy."""
    if x.is_c_contiguous():
        return x
    y = empty(x.shape, x.dtype)
    copy(y, x)
    return y


def flat(x):
    """The elements of a device array in C order: a view, or a copy."""
    return contiguous(x).reshape(x.size)


def copy(y, x):
    """y[...] = x for device arrays of one shape, whatever their strides."""
    if y.ndim > 4:
        raise ValueError(f"x: expected at most 4 axes of a strided device array, got shape {tuple(y.shape)}")
    if y.size:
        y, x = with_axes(y, 4), with_axes(x, 4)
        each(copy_elements, y.size)(y, x, *y.shape[1:])


@kernel(THREADS)
def copy_elements(y, x, C, H, W):
    """y = x, element by element."""
    k = cuda.grid(1)
    if k < y.size:
        m, c, r, s = k // (C * H * W), k // (H * W) % C, k // W % H, k % W
        y[m, c, r, s] = x[m, c, r, s]


def place(array):
    """An array in memory of this backend: a copy, unless it is a device array."""
    return as_device_array(array) if on_device(array) else to_device(array)


def copy_of(array):
    """A copy in this backend's memory."""
    result = empty(array.shape, array.dtype)
    copy(result, array)
    return result


def write(array, values):
    """Overwrite a device array with values of its shape and any strides, of NumPy or on the device."""
    if on_device(values):
        copy(array, as_device_array(values))
    elif array.is_c_contiguous() and array.size:
        copy_to(array, np.broadcast_to(np.asarray(values, array.dtype), array.shape))
    else:
        copy(array, to_device(np.asarray(values, array.dtype)))


def flat_weight(w):
    """Weights (O, C, ...) in the kernels' order (O, ..., C), flat: w itself, or a copy."""
    return flat(transposed(w, (0, 2, 3, 1)) if w.ndim == 4 else w)


def unflat_weight(flat, shape):
    """Weights in the kernels' order as a view in PyTorch's shape (O, C, ...)."""
    if len(shape) != 4:
        return flat.reshape(*shape)
    O, C, KH, KW = shape
    return transposed(flat.reshape(O, KH, KW, C), (0, 3, 1, 2))
