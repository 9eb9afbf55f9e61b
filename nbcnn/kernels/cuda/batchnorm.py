"""Batch normalization on the GPU, with the activation behind it where there is one: statistics, forward, and the gradients.

A block adds up a channel: each thread its own values in order, then the threads' sums are added in pairs. The rest is a thread for
each element. Names in capitals are constants: PIXELS of C channels are a sample.
"""
import functools
import math

from nbcnn.kernels.cuda.activations import element_functions
from nbcnn.kernels.cuda.buffer import allocate, nothing
from nbcnn.kernels.cuda.compat import Launch, cuda, kernel
from nbcnn.kernels.cuda.launch import THREADS, call_each
from nbcnn.kernels.cuda.losses import BLOCK, block_sum
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put
from nbcnn.kernels.operation import Call, Normalizing


@functools.cache
def make_batchnorm(FUNCTION, C, PIXELS, VERSION=CODE_VERSION):
    """The kernels for samples of one shape, with the activation f of a name: statistics, forward, sums for backward, backward."""
    activate, activate_gradient = element_functions(FUNCTION)

    @cuda.jit(device=True)
    def channel_place(k, c):
        """Where value k of channel c lies."""
        return k // PIXELS * (C * PIXELS) + c * PIXELS + k % PIXELS

    @cuda.jit(device=True)
    def scale_and_shift(c, var, weight, bias, eps):
        """weight/sqrt(var + eps) and bias of a channel; weight and bias may have no elements, for 1 and 0."""
        scale = get(weight, c) if len(weight) > 0 else type(eps)(1)
        shift = get(bias, c) if len(bias) > 0 else type(eps)(0)
        return scale / math.sqrt(get(var, c) + eps), shift

    @kernel(BLOCK)
    def batchnorm_statistics(mean, var, x, count):
        """mean[c] and var[c], the biased variance, of `count` values of each channel: added up less its first one."""
        _ = VERSION
        sums = cuda.shared.array(BLOCK, x.dtype)
        c, t = cuda.blockIdx.x, cuda.threadIdx.x
        first, total, squares = get(x, c * PIXELS), x.dtype.type(0), x.dtype.type(0)
        for k in range(t, count, BLOCK):
            total += get(x, channel_place(k, c)) - first
        middle = block_sum(sums, total) / x.dtype.type(count)
        for k in range(t, count, BLOCK):
            d = get(x, channel_place(k, c)) - first - middle
            squares += d * d
        squares = block_sum(sums, squares)
        if t == 0:
            put(mean, c, first + middle)
            put(var, c, squares / x.dtype.type(count))

    @kernel(THREADS)
    def batchnorm_forward(y, x, mean, var, weight, bias, eps, options, count):
        """y = f(z), z = (x - mean) scale + shift, scale = weight/sqrt(var + eps), shift = bias"""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            c = k // PIXELS % C
            scale, shift = scale_and_shift(c, var, weight, bias, eps)
            put(y, k, activate((get(x, k) - get(mean, c)) * scale + shift, *options))

    @kernel(BLOCK)
    def batchnorm_backward_sums(mean_dz, slope, dweight, dweight_at, dbias, dbias_at, dy, x, mean, var, weight, bias, eps, options,
                                count):
        """dbias[c] = sum dz, dweight[c] = sum dz xhat, where they have elements; dz = dy f'(z), xhat = (x - mean)/sqrt(var + eps).

        mean_dz[c] = the mean of dz, slope[c] = that of dz xhat, over sqrt(var + eps).
        """
        _ = VERSION
        sums = cuda.shared.array(BLOCK, x.dtype)
        c, t = cuda.blockIdx.x, cuda.threadIdx.x
        (scale, shift), middle = scale_and_shift(c, var, weight, bias, eps), get(mean, c)
        total, moment = x.dtype.type(0), x.dtype.type(0)
        for k in range(t, count, BLOCK):
            at = channel_place(k, c)
            d = get(x, at) - middle
            dz = activate_gradient(get(dy, at), d * scale + shift, *options)
            total += dz
            moment += dz * d
        total, moment = block_sum(sums, total), block_sum(sums, moment)
        if t == 0:
            if count > 0:       # else var is that of others
                inverse = type(eps)(1) / math.sqrt(get(var, c) + eps)
                moment *= inverse
                put(mean_dz, c, total / x.dtype.type(count))
                put(slope, c, moment * inverse / x.dtype.type(count))
            if len(dbias) > 0:
                put(dbias, dbias_at + c, total)
            if len(dweight) > 0:
                put(dweight, dweight_at + c, moment)

    @kernel(THREADS)
    def batchnorm_backward(dx, dy, x, mean, var, weight, bias, mean_dz, slope, eps, options, count):
        """dx = scale (dz - mean_dz - (x - mean) slope), dz = dy f'(z)"""
        _ = VERSION
        k = cuda.grid(1)
        if k < count:
            c = k // PIXELS % C
            scale, shift = scale_and_shift(c, var, weight, bias, eps)
            d = get(x, k) - get(mean, c)
            dz = activate_gradient(get(dy, k), d * scale + shift, *options)
            put(dx, k, scale * (dz - get(mean_dz, c) - d * get(slope, c)))

    return batchnorm_statistics, batchnorm_forward, batchnorm_backward_sums, batchnorm_backward


@kernel(THREADS)
def batchnorm_commit(running_mean, running_var, batches, mean, var, values, momentum, cumulative, count):
    """running = (1 - momentum)*running + momentum*batch, the variance that of the batch with `values` - 1 degrees of freedom.

    `cumulative`: momentum = 1/batches, with which the running statistics are the mean of all batches'. `batches` counts this one
    already: see batchnorm_count.
    """
    c, one = cuda.grid(1), type(momentum)(1)
    if c < count:
        new = one / type(momentum)(batches[0]) if cumulative else momentum
        unbiased = type(momentum)(values) / type(momentum)(values - 1)
        running_mean[c] = (one - new) * running_mean[c] + new * mean[c]
        running_var[c] = (one - new) * running_var[c] + new * (var[c] * unbiased)


@kernel(THREADS)
def batchnorm_count(batches, count):
    """One batch more."""
    if cuda.grid(1) < count:
        batches[0] += 1


class BatchNorm(Normalizing):
    """Batch normalization by blocks, and an activation of what comes out."""

    def __init__(self, shape, eps, momentum, activation, running, dtype):
        super().__init__(shape, eps, momentum, activation, running, dtype)
        self.kernels = make_batchnorm(self.function, self.C, self.pixels)
        self.mean, self.var, self.mean_dz, self.slope = (allocate((self.C,), dtype) for _ in range(4))

    def statistics(self, n, x):
        return [Call(Launch(self.kernels[0], self.C, BLOCK), (self.mean, self.var, x.array, n * self.pixels))]

    def normalize(self, n, y, x, params, mean, var):
        return [call_each(self.kernels[1], n * self.C * self.pixels, y.array, x.array, mean, var, *self.arrays(params), self.eps,
                          self.options)]

    def arrays(self, params):
        """Weight and bias, empty arrays for those that are not there."""
        return [nothing(self.dtype) if p is None else p for p in params]

    def update(self, n):
        return [call_each(batchnorm_count, 1, self.running[2]),
                call_each(batchnorm_commit, self.C, *self.running, self.mean, self.var, n * self.pixels, self.momentum,
                          self.cumulative)]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        if all(result is None for result in (dx, *dparams)):
            return []
        read, options = (dy.array, x.array, self.mean, self.var, *self.arrays(params)), (self.eps, self.options)
        targets = [value for d in dparams for value in ((nothing(self.dtype), 0) if d is None else (d.partial, d.start))]
        calls = [Call(Launch(self.kernels[2], self.C, BLOCK), (
            self.mean_dz, self.slope, *targets, *read, *options, n * self.pixels))]
        if dx is None:
            return calls
        return [*calls, call_each(self.kernels[3], n * self.C * self.pixels, dx.array, *read, self.mean_dz, self.slope, *options)]
