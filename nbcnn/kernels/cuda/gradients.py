"""From the partial sums of all parameters' gradients to the gradients, and on to the update, in one launch each."""
import functools
from typing import NamedTuple

import numpy as np

from nbcnn.kernels.cuda.buffer import ALIGNMENT, allocate
from nbcnn.kernels.cuda.compat import Launch, cuda, kernel, to_device
from nbcnn.kernels.cuda.images import make_gather
from nbcnn.kernels.cuda.launch import THREADS, each
from nbcnn.kernels.cuda.sgd import HAS_MOMENTUM, sgd_element
from nbcnn.kernels.cuda.state import STOPPED, UPDATE
from nbcnn.kernels.cuda.tile import CODE_VERSION
from nbcnn.kernels.operation import Call


@cuda.jit(device=True)
def sum_of_parts(partial, k, where, chunk, grad):
    """The gradient's element k: partial sums, added up in their order, and what is there where that is asked for.

    where = (count, first, step, add) of each `chunk` elements, one after another: partial[first + k] is the first of `count` sums,
    the next is `step` further on.
    """
    at, total = k // chunk * 4, grad.dtype.type(0)
    if where[at + 3] != 0:
        total = grad[k]
    for part in range(where[at]):
        total += partial[where[at + 1] + k + part * where[at + 2]]
    return total


@kernel(THREADS)
def sum_parts(grad, partial, where, chunk):
    """grad[k] = its sum of partial sums, for a thread's k; what has none is left alone."""
    k = cuda.grid(1)
    if k < grad.size and where[k // chunk * 4] > 0:
        grad[k] = sum_of_parts(partial, k, where, chunk, grad)


@functools.cache
def make_update_and_gather(kind, VERSION=CODE_VERSION):
    """The kernel that ends a training step and begins the next one, for images of one kind, of which `make_gather` knows."""
    _, gather_part = make_gather(*kind)

    @kernel(THREADS)
    def update_and_gather(grad, partial, where, chunk, param, buffer, lr, options, state, out, images, index, flip, shift, corners,
                          table, batch, count):
        """In the first blocks what sum_parts and then sgd do; in the others what gather does."""
        _ = VERSION
        k, blocks, has_momentum = cuda.grid(1), (grad.size + THREADS - 1) // THREADS, options[HAS_MOMENTUM]
        if cuda.blockIdx.x >= blocks:
            gather_part(k - blocks * THREADS, out, images, index, flip, shift, corners, table, state, batch, count)
        elif k < grad.size and where[k // chunk * 4] > 0:
            g = sum_of_parts(partial, k, where, chunk, grad)
            grad[k] = g
            if state[STOPPED] == 0:
                param[k], moved = sgd_element(param[k], buffer[k] if has_momentum else g, g, lr[state[UPDATE]], options, False)
                if has_momentum:
                    buffer[k] = moved

    return update_and_gather


class Gradient(NamedTuple):
    """Where the partial sums of a parameter's gradient go: partial[start + k + part*size] for its element k."""
    partial: object
    start: int
    size: int


class Gradients:
    """Where the gradients of some parameters go that are not a model's: to partial sums, which `calls` add up in `arrays`."""

    def __init__(self, operation, n, sizes, dtype):
        chunk, starts, total = ALIGNMENT // np.dtype(dtype).itemsize, [], 0
        for size in sizes:
            starts.append(total)
            total += -(-size // chunk) * chunk
        grad, rows = allocate((total,), dtype), operation.parts(n)
        partial, where = allocate((rows * total,), dtype), np.tile(np.array([rows, 0, total, 0], np.int64), total // chunk)
        self.arrays = [grad[start:start + size] for start, size in zip(starts, sizes, strict=True)]
        self.targets = tuple(Gradient(partial, start, total) for start in starts)
        self.calls = [Call(each(sum_parts, total), (grad, partial, to_device(where), chunk))]


class Partials:
    """The partial sums of the gradients of a model's parameters: each operation has its own rows, one for each part of a batch."""

    def __init__(self, vector, parts, batch):
        self.vector, self.parts, self.chunk = vector, parts, ALIGNMENT // vector.grad.dtype.itemsize
        operations, self.first, self.step, size = {}, {}, {}, 0
        for parameter in sorted(parts, key=lambda p: p.start):
            operations.setdefault(parts[parameter], []).append(parameter)
        for count, own in operations.items():       # own parameters lie side by side
            step = self._chunks(own[-1]).stop * self.chunk - own[0].start
            for parameter in own:
                self.first[parameter], self.step[parameter] = size - own[0].start, step
            size += step * max(count(n) for n in range(batch + 1))
        self.partial = allocate((size,), vector.grad.dtype)     # zeros, which stay in the gaps between parameters

    def _chunks(self, parameter):
        """The chunks of the vector that a parameter lies in, no other does."""
        return slice(parameter.start // self.chunk, -(-parameter.stop // self.chunk))

    def target(self, parameter):
        """Where the partial sums of a parameter go."""
        return Gradient(self.partial, self.first[parameter] + parameter.start, self.step[parameter])

    def _where(self, n, add=()):
        """What sum_of_parts wants to know of each chunk."""
        where = np.zeros((-(-self.vector.grad.size // self.chunk), 4), np.int64)
        for p in self.parts:
            where[self._chunks(p)] = self.parts[p](n), self.first[p], self.step[p], p in add
        return to_device(where.reshape(-1))

    def sum(self, n, add):
        """The calls that end a backward pass of n samples; `add` are the parameters whose gradients are added to."""
        grad = self.vector.grad
        return [Call(each(sum_parts, grad.size), (grad, self.partial, self._where(n, add), self.chunk))]

    def update_and_gather(self, n, buffer, lr, options, kind, gather):
        """The calls that do so without adding, update the parameters, and do what a gather call of images of a kind does."""
        vector, (out, *feed, state, batch, count) = self.vector, gather.arguments
        blocks = -(-vector.grad.size // THREADS) + -(-count // THREADS)
        return [Call(Launch(make_update_and_gather(kind), blocks, THREADS), (
            vector.grad, self.partial, self._where(n), self.chunk, vector.data, buffer, lr, options, state, out,
            *feed, batch, count))]
