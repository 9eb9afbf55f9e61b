"""From the partial sums of all parameters' gradients to the gradients, and on to the update, in one launch each."""
import numpy as np

from nbcnn.kernels.cuda.buffer import ALIGNMENT, Gradient, allocate
from nbcnn.kernels.cuda.compat import cuda, empty, kernel, to_device
from nbcnn.kernels.cuda.launch import THREADS, each
from nbcnn.kernels.cuda.sgd import sgd_element
from nbcnn.kernels.cuda.state import STOPPED, UPDATE
from nbcnn.kernels.operation import Call


@kernel(THREADS)
def sum_parts(grad, partial, parts, add, chunk):
    """grad[k] (+)= partial[0, k] + partial[1, k] + ..., in this order, for a thread's k.

    parts and add have a number for each `chunk` elements: how many sums there are, none for what is left alone, and whether to add.
    """
    k = cuda.grid(1)
    if k < grad.size:
        count = parts[k // chunk]
        if count > 0:
            total = grad[k] if add[k // chunk] else grad.dtype.type(0)
            for part in range(count):
                total += partial[part * grad.size + k]
            grad[k] = total


@kernel(THREADS)
def sum_parts_and_update(grad, partial, parts, chunk, param, buffer, lr, momentum, keep, weight_decay, has_decay, has_momentum,
                         nesterov, maximize, state):
    """What sum_parts and then sgd do, for gradients that are not added to and momentum that is there."""
    k = cuda.grid(1)
    if k < grad.size:
        count = parts[k // chunk]
        if count > 0:
            total = grad.dtype.type(0)
            for part in range(count):
                total += partial[part * grad.size + k]
            grad[k] = total
            if state[STOPPED] == 0:
                param[k], moved = sgd_element(param[k], buffer[k] if has_momentum else total, total, lr[state[UPDATE]], momentum, keep,
                                              weight_decay, has_decay, has_momentum, nesterov, maximize, False)
                if has_momentum:
                    buffer[k] = moved


class Gradients:
    """Where the gradients of some parameters go that are not a model's: `arrays`, flat, once `calls` have run after the backward pass
    of an operation that took `targets` as dparams.
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
        self.rows = max([parts[p](batch) for p in parts], default=0)
        self.partial = empty((self.rows * vector.grad.size,), vector.grad.dtype)
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

    def sum_and_update(self, n, buffer, lr, options, state):
        """The calls that do that, without adding to what is there, and update the parameters."""
        vector = self.vector
        return [Call(each(sum_parts_and_update, vector.grad.size), (
            vector.grad, self.partial, self._per_chunk(lambda p: self.parts[p](n)), self.chunk, vector.data, buffer, lr, *options, state))]
