"""Memory the kernels work on: aligned, with slack behind it, and with borders around pictures."""
import math
import sys

import numpy as np

ALIGNMENT = 64      # bytes; unaligned vector loads cost 1.4-1.6x in the weight gradient
SLACK = 64          # elements that may be read behind every buffer: a vector that begins at its last element


def allocate(shape, dtype):
    """A zeroed C-contiguous array that starts on 64 bytes, with SLACK readable elements behind its end."""
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    size = (count + SLACK) * dtype.itemsize + ALIGNMENT
    if size > sys.maxsize:
        raise MemoryError(f"{size} bytes for an array are more than any machine has")
    memory = np.zeros(size, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start:start + count * dtype.itemsize].view(dtype).reshape(shape)


def to_device(array):
    """A copy of an array in memory of this backend."""
    copy = allocate(array.shape, array.dtype)
    copy[...] = array
    return copy


def place(array):
    """An array of NumPy in memory of this backend: itself."""
    return array


def copy_of(array):
    """A copy in this backend's memory."""
    return to_host(array)


def to_host(array):
    """An array of this backend as a NumPy array of its own, in C order."""
    return np.array(array, order="C")


def write(array, values):
    """Overwrite an array with values of its shape."""
    array[...] = values


def flat_weight(w):
    """Weights (O, C, ...) in the kernels' order (O, ..., C), flat: a copy in aligned memory."""
    flat, last = allocate((w.size,), w.dtype), np.moveaxis(w, 1, -1) if w.ndim > 1 else w
    flat.reshape(last.shape)[...] = last
    return flat


def unflat_weight(flat, shape):
    """Weights in the kernels' order as a view in PyTorch's shape (O, C, ...)."""
    return np.moveaxis(flat.reshape(shape[0], *shape[2:], shape[1]), -1, 1) if len(shape) > 1 else flat


class Gradients:
    """Where the gradients of some parameters go that are not a model's.

    Parameters
    ----------
    operation : Operation
    n : int
        Samples.
    sizes : sequence of ints
        Elements of each parameter.

    Attributes
    ----------
    arrays : list of flat arrays
    targets : tuple
        What the operation's backward takes as dparams.
    calls : list of Calls
        What is to be run after it.
    """

    def __init__(self, operation, n, sizes, dtype):
        self.arrays = [allocate((size,), dtype) for size in sizes]
        self.targets, self.calls = tuple(self.arrays), []


class Partials:
    """Where the gradients of a model's parameters go: to the vector itself, since each operation adds up its own partial sums.

    Parameters
    ----------
    vector : ParameterVector
    parts : dict
        The Parameters, and of how many partial sums of n samples the gradient of each is made: a function.
    batch : int
        The most samples.
    """

    def __init__(self, vector, parts, batch):
        """Nothing is allocated."""

    def target(self, parameter):
        """What an operation takes in dparams."""
        return parameter.flat_grad

    def sum(self, n, add):
        """The calls that end a backward pass of n samples; `add` are the parameters whose gradients were added to."""
        return []


class Buffer:
    """Activations or gradients of up to `batch` samples, channels last, with a border of zeros.

    Parameters
    ----------
    batch : int
    shape : tuple
        (C, H, W) of a picture. Anything else is a vector of so many elements, a picture of 1 x 1 pixels.
    dtype : dtype
    border : pair of ints
        Rows above and below, columns left and right. Kernels write the interior only, so the border stays zero.

    Attributes
    ----------
    array : array (batch, H + 2*border[0], W + 2*border[1], C)
    strides : tuple of ints
        (start, image, row, pixel), in elements: pixel (n, r, s) of the interior lies at start + n*image + r*row + s*pixel.
    """

    def __init__(self, batch, shape, dtype, border=(0, 0)):
        self.shape, self.border = tuple(shape), tuple(border)
        channels, height, width = shape if len(shape) == 3 else (math.prod(shape), 1, 1)
        self.array = allocate((batch, height + 2 * border[0], width + 2 * border[1], channels), dtype)
        image, row, pixel, _ = (stride // self.array.itemsize for stride in self.array.strides)
        self.strides = (border[0] * row + border[1] * pixel, image, row, pixel)

    def set(self, samples):
        """Overwrite the first samples with an array in PyTorch's shape."""
        self.view(len(samples))[...] = samples

    def view(self, n):
        """The first n samples in PyTorch's shape, (n, C, H, W) or (n, F): a writable view."""
        if len(self.shape) != 3:
            return self.array[:n, self.border[0], self.border[1]].reshape(n, *self.shape)
        (top, left), (_, height, width) = self.border, self.shape
        return self.array[:n, top:top + height, left:left + width].transpose(0, 3, 1, 2)

    def __reduce__(self):
        raise TypeError("a buffer is not copied or pickled, which would lose its alignment and slack; make a new BackpropScheduler")

    @classmethod
    def holding(cls, x, border=(0, 0)):
        """A buffer with a copy of x (N, C, H, W) or (N, F), whatever its strides."""
        buffer = cls(len(x), x.shape[1:], x.dtype, border)
        buffer.view(len(x))[...] = x
        return buffer
