"""From the partial sums of all parameters' gradients to the gradients, and on to the update, in one launch each."""
import functools

import numpy as np

from nbcnn.kernels.cuda.buffer import ALIGNMENT, Gradient, allocate
from nbcnn.kernels.cuda.compat import Launch, cuda, kernel, to_device
from nbcnn.kernels.cuda.images import make_gather_part
from nbcnn.kernels.cuda.launch import THREADS, each
from nbcnn.kernels.cuda.sgd import sgd_element
from nbcnn.kernels.cuda.state import STOPPED, UPDATE
from nbcnn.kernels.cuda.tile import CODE_VERSION
from nbcnn.kernels.operation import Call


@cuda.jit(device=True)
def sum_of_parts(partial, k, count, size, total):
    """total + partial[0, k] + partial[1, k] + ..., in this order."""
    for part in range(count):
        total += partial[part * size + k]
    return total


@kernel(THREADS)
def sum_parts(grad, partial, parts, add, chunk):
    """grad[k] (+)= partial[0, k] + partial[1, k] + ... for a thread's k.

    parts and add have a number for each `chunk` elements: how many sums there are, none for what is left alone, and whether to add.
    """
    k = cuda.grid(1)
    if k < grad.size:
        count = parts[k // chunk]
        if count > 0:
            grad[k] = sum_of_parts(partial, k, count, grad.size, grad[k] if add[k // chunk] else grad.dtype.type(0))


@functools.cache
def make_update_and_gather(C, H, W, VERSION=CODE_VERSION):
    """The kernel that ends a training step and begins the next one, for pictures of one shape."""
    gather_part = make_gather_part(C, H, W)

    @kernel(THREADS)
    def update_and_gather(grad, partial, parts, chunk, param, buffer, lr, momentum, keep, weight_decay, has_decay, has_momentum,
                          nesterov, maximize, state, out, pictures, index, flip, shift, table, batch, count):
        """In the first blocks what sum_parts and sgd do, without adding to what is there; in the others what gather does."""
        _ = VERSION
        k, blocks = cuda.grid(1), (grad.size + THREADS - 1) // THREADS
        if cuda.blockIdx.x >= blocks:
            gather_part(k - blocks * THREADS, out, pictures, index, flip, shift, table, state, batch, count)
        elif k < grad.size and parts[k // chunk] > 0:
            g = sum_of_parts(partial, k, parts[k // chunk], grad.size, grad.dtype.type(0))
            grad[k] = g
            if state[STOPPED] == 0:
                param[k], moved = sgd_element(param[k], buffer[k] if has_momentum else g, g, lr[state[UPDATE]], momentum, keep,
                                              weight_decay, has_decay, has_momentum, nesterov, maximize, False)
                if has_momentum:
                    buffer[k] = moved

    return update_and_gather


class Gradients:
    """Where the gradients of some parameters go that are not a model's: `arrays`, flat, once `calls` have run.

    They do so after the backward pass of an operation that took `targets` as dparams.
    """

    def __init__(self, operation, n, sizes, dtype):
        chunk, starts, total = ALIGNMENT // np.dtype(dtype).itemsize, [], 0
        for size in sizes:
            starts.append(total)
            total += -(-size // chunk) * chunk
        grad, rows = allocate((total,), dtype), operation.parts(n)
        partial, chunks = allocate((rows * total,), dtype), np.ones(total // chunk, np.int32)
        self.arrays = [grad[start:start + size] for start, size in zip(starts, sizes, strict=True)]
        self.targets = tuple(Gradient(partial, start, total) for start in starts)
        self.calls = [Call(each(sum_parts, total), (grad, partial, to_device(rows * chunks), to_device(0 * chunks), chunk))]


class Partials:
    """The partial sums of the gradients of a model's parameters, which lie as these do: a row for each part of a batch.

    Parameters
    ----------
    vector : ParameterVector
    parts : dict
        Of each Parameter with a gradient: into how many sums that is split for a number of samples, a function.
    batch : int
        The most samples.
    """

    def __init__(self, vector, parts, batch):
        self.vector, self.parts = vector, parts
        self.rows = max([parts[p](n) for p in parts for n in range(batch + 1)], default=0)
        # Zeros, which stay in the gaps between parameters.
        self.partial = allocate((self.rows * vector.grad.size,), vector.grad.dtype)
        self.chunk = ALIGNMENT // vector.grad.dtype.itemsize

    def target(self, parameter):
        """Where the partial sums of a parameter go."""
        return Gradient(self.partial, parameter.start, self.vector.grad.size)

    def _per_chunk(self, value):
        numbers = np.zeros(-(-self.vector.grad.size // self.chunk), np.int32)
        for parameter in self.parts:
            numbers[parameter.start // self.chunk:-(-parameter.stop // self.chunk)] = value(parameter)
        return to_device(numbers)

    def sum(self, n, add):
        """The calls that end a backward pass of n samples; `add` are the parameters whose gradients are added to."""
        parts, adds = self._per_chunk(lambda p: self.parts[p](n)), self._per_chunk(lambda p: p in add)
        return [Call(each(sum_parts, self.vector.grad.size), (self.vector.grad, self.partial, parts, adds, self.chunk))]

    def update_and_gather(self, n, buffer, lr, options, shape, gather):
        """The calls that do so without adding, update the parameters, and do what a gather call of pictures of a shape does."""
        vector, (out, *feed, state, batch, count) = self.vector, gather.arguments
        parts = self._per_chunk(lambda p: self.parts[p](n))
        blocks = -(-vector.grad.size // THREADS) + -(-count // THREADS)
        return [Call(Launch(make_update_and_gather(*shape), blocks, THREADS), (
            vector.grad, self.partial, parts, self.chunk, vector.data, buffer, lr, *options, state, out, *feed, batch, count))]
