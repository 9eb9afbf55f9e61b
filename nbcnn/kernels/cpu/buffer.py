"""Memory the kernels work on: aligned, with slack behind it."""
import math
import sys

import numpy as np

ALIGNMENT = 64      # bytes; unaligned vector loads cost 1.4-1.6x in the weight gradient
SLACK = 64          # elements that may be read behind every buffer: a vector that begins at its last element
LINE = 16           # elements, of float32 a line of a cache


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
    """Where the gradients of some parameters go that are not a model's: to `arrays`, which are the targets themselves."""

    def __init__(self, operation, n, sizes, dtype):
        self.arrays = [allocate((size,), dtype) for size in sizes]
        self.targets, self.calls = tuple(self.arrays), []


class Partials:
    """Where the gradients of a model's parameters go: to the vector itself, since each operation adds up its own partial sums."""

    def __init__(self, vector, parts, batch):
        """Nothing is allocated."""

    def target(self, parameter):
        """What an operation takes in dparams."""
        return parameter.flat_grad

    def sum(self, n, add):
        """The calls that end a backward pass of n samples; `add` are the parameters whose gradients were added to."""
        return []


class Buffer:
    """Activations or gradients of up to `batch` samples, channels last; see `contract.Buffer`.

    Attributes
    ----------
    array : array (elements,)
        Element c of pixel (r, s) of sample m lies at m*step + (r*W + s)*C + c.
    step : int
        From a sample to the next one.
    zeros : int
        Where in `array` a pixel of zeros begins, which stands for those beside an image.
    """

    LINE = LINE

    def __init__(self, batch, shape, dtype, array=None):
        self.shape, self.step = tuple(shape), self._step(shape)
        self.array = allocate((self.elements(batch, shape),), dtype) if array is None else array
        self.zeros = len(self.array) - (shape[0] if len(shape) == 3 else 0)

    @classmethod
    def elements(cls, batch, shape):
        """How many elements a buffer has."""
        return batch * cls._step(shape) + (shape[0] if len(shape) == 3 else 0)

    def set(self, samples):
        """Overwrite the first samples with an array in PyTorch's shape."""
        self.view(len(samples))[...] = samples

    def view(self, n):
        """The first n samples in PyTorch's shape, (n, C, H, W) or (n, F): a writable view."""
        if len(self.shape) != 3:
            return self.array[:n * self.step].reshape(n, *self.shape)
        C, H, W = self.shape
        samples = self.array[:n * self.step].reshape(n, self.step)[:, :H * W * C]
        return samples.reshape(n, H, W, C).transpose(0, 3, 1, 2)

    def __reduce__(self):
        raise TypeError("a buffer is not copied or pickled, which would lose its alignment and slack; make a new BackpropScheduler")

    @classmethod
    def holding(cls, x):
        """A buffer with a copy of x (N, C, H, W) or (N, F), whatever its strides."""
        buffer = cls(len(x), x.shape[1:], x.dtype)
        buffer.set(x)
        return buffer

    @classmethod
    def _step(cls, shape):
        """Elements from a sample to the next. Images have a gap of a line where a pixel of two would share a set of a cache."""
        size = math.prod(shape)
        return size + cls.LINE if len(shape) == 3 and size and size % (8 * cls.LINE) == 0 else size


class BFloat16Buffer(Buffer):
    """A buffer that may hold bfloat16: lines have twice the elements, and there is memory for whole tiles of samples."""

    LINE, TILE = 2 * LINE, 32

    @classmethod
    def elements(cls, batch, shape):
        return super().elements(-(-batch // cls.TILE) * cls.TILE, shape)
