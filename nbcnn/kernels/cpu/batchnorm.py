"""Batch normalization on the CPU, with the activation behind it where there is one: statistics, forward, and the gradients.

What a line is. A few pixels of a sample side by side: `width` numbers, of which number l is of channel l % C. The inner loops go
over the numbers of a line, which are many, so the compiler makes vector instructions of them also where a pixel has few channels:

     mean, scale, shift    [ channel 0, 1, ..., C-1, 0, 1, ..., C-1 ]      a channel's number in all its places
     line 0 of x           [ pixel 0            | pixel 1           ]
     line 1 of x           [ pixel 2            | pixel 3           ]

Sums over lines are made place by place. In the end the places of a channel are added up, by the kernels without a parallel loop.

A part is so many lines, one after another, in which one thread adds up. How many parts there are follows from the shapes alone.
"""
import functools
from collections import namedtuple

import numpy as np

from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.activations import activate, activate_gradient
from nbcnn.kernels.cpu.buffer import allocate
from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange
from nbcnn.kernels.operation import Call, Normalizing

MOST_PARTS = 64
LEAST_WIDTH = 128   # of a line, where a sample has as many numbers
AT_ONCE = 2**14     # bytes of x that statistics are made of in two passes, the second one from the first cache

# Line k is x[k // per_sample * step + k % per_sample * width], and `width - 1` numbers behind; there are `count` lines.
Lines = namedtuple("Lines", "count per_sample step width C parts")


@njit
def line_start(k, g):
    """Where line k begins."""
    return k // g.per_sample * g.step + k % g.per_sample * g.width


@njit
def part_bounds(part, g):
    """The first line of a part, and its end."""
    return part * g.count // g.parts, (part + 1) * g.count // g.parts


# ---- statistics: they are those of x less its first line, whose digits a mean that is much larger than the deviation does not take

@njit(parallel=True, error_model="numpy")
def batchnorm_statistics(sums, x, at_once, g):
    """sums[part, 0] = the mean of d = x - the first line over a part's lines, sums[part, 1] = the sum of (d - that mean)^2.

    `at_once` lines after another: their mean, then their squares. Those of the lines before are combined with them (Chan, Golub,
    LeVeque 1983).
    """
    for part in prange(g.parts):
        mean, squares, new_mean, new_squares = sums[part, 0], sums[part, 1], sums[part, 2], sums[part, 3]
        begin, end = part_bounds(part, g)
        mean[:] = squares[:] = sums.dtype.type(0)
        for start in range(begin, end, at_once):
            stop = min(start + at_once, end)
            new_mean[:] = new_squares[:] = sums.dtype.type(0)
            for k in range(start, stop):
                at = line_start(k, g)
                for l in range(g.width):
                    new_mean[l] += tile.get(x, at + l) - tile.get(x, l)
            for l in range(g.width):
                new_mean[l] /= sums.dtype.type(stop - start)
            for k in range(start, stop):
                at = line_start(k, g)
                for l in range(g.width):
                    d = tile.get(x, at + l) - tile.get(x, l) - new_mean[l]
                    new_squares[l] += d * d
            combine(mean, squares, new_mean, new_squares, start - begin, stop - start)


@njit(error_model="numpy")
def combine(mean, squares, new_mean, new_squares, before, new):
    """Mean and squares of `before` lines become those of them and `new` others."""
    share = mean.dtype.type(new) / mean.dtype.type(before + new)
    weight = share * mean.dtype.type(before)
    for l in range(len(mean)):
        d = new_mean[l] - mean[l]
        mean[l] += d * share
        squares[l] += new_squares[l] + d * d * weight


@njit(error_model="numpy")
def batchnorm_moments(mean, var, sums, x, g):
    """mean[c] and var[c], the biased variance, of a batch whose parts' statistics are `sums`."""
    zero, places = sums.dtype.type(0), sums.dtype.type(g.width // g.C)
    means, squares = sums[0, 0], sums[0, 1]
    for part in range(1, g.parts):
        begin, end = part_bounds(part, g)
        combine(means, squares, sums[part, 0], sums[part, 1], begin, end - begin)
    for c in range(g.C):
        first, total = tile.get(x, c), zero
        for l in range(c, g.width, g.C):
            total += tile.get(x, l) - first + means[l]
        middle, total = total / places, zero
        for l in range(c, g.width, g.C):
            d = tile.get(x, l) - first + means[l] - middle
            total += squares[l] / sums.dtype.type(g.count) + d * d
        mean[c], var[c] = first + middle, total / places


@njit(error_model="numpy")
def batchnorm_prepare(mean, scale, shift, channel_mean, channel_var, weight, bias, eps, C):
    """A line of each channel's mean, weight/sqrt(var + eps) and bias; weight and bias may have no elements, for 1 and 0."""
    for l in range(len(mean)):
        c = l % C
        mean[l] = channel_mean[c]
        scale[l] = (weight[c] if len(weight) else type(eps)(1)) / np.sqrt(channel_var[c] + eps)
        shift[l] = bias[c] if len(bias) else type(eps)(0)


@njit(error_model="numpy")
def batchnorm_commit(running_mean, running_var, batches, mean, var, values, momentum, cumulative):
    """running = (1 - momentum)*running + momentum*batch, the variance that of the batch with `values` - 1 degrees of freedom.

    `cumulative`: momentum = 1/batches, with which the running statistics are the mean of all batches'.
    """
    batches[0] += 1
    one = type(momentum)(1)
    new = one / type(momentum)(batches[0]) if cumulative else momentum
    unbiased = type(momentum)(values) / type(momentum)(values - 1)
    for c in range(len(mean)):
        running_mean[c] = (one - new) * running_mean[c] + new * mean[c]
        running_var[c] = (one - new) * running_var[c] + new * (var[c] * unbiased)


# ---- forward and backward, for the activation f of a name; z = (x - mean) scale + shift is computed anew in all of them

@functools.cache
def make_batchnorm(FUNCTION):
    """The kernels with this activation: forward, the sums for backward, and backward."""

    @njit(parallel=True, error_model="numpy")
    def batchnorm_forward(y, x, mean, scale, shift, options, g):
        """y = f(z), z = (x - mean) scale + shift"""
        for k in prange(g.count):
            at = line_start(k, g)
            for l in range(g.width):
                tile.put(y, at + l, activate(FUNCTION, (tile.get(x, at + l) - mean[l]) * scale[l] + shift[l], options))

    @njit(parallel=True, error_model="numpy")
    def batchnorm_backward_sums(sums, dy, x, mean, scale, shift, options, g):
        """sums[part, 0] = the sum of dz = dy f'(z) over a part's lines, sums[part, 1] = that of dz (x - mean)."""
        for part in prange(g.parts):
            total, moment = sums[part, 0], sums[part, 1]
            begin, end = part_bounds(part, g)
            total[:] = moment[:] = sums.dtype.type(0)
            for k in range(begin, end):
                at = line_start(k, g)
                for l in range(g.width):
                    d = tile.get(x, at + l) - mean[l]
                    dz = activate_gradient(FUNCTION, tile.get(dy, at + l), d * scale[l] + shift[l], options)
                    total[l] += dz
                    moment[l] += dz * d

    @njit(parallel=True, error_model="numpy")
    def batchnorm_backward(dx, dy, x, mean, scale, shift, mean_dz, slope, options, g):
        """dx = scale (dz - mean_dz - (x - mean) slope), dz = dy f'(z)"""
        for k in prange(g.count):
            at = line_start(k, g)
            for l in range(g.width):
                d = tile.get(x, at + l) - mean[l]
                dz = activate_gradient(FUNCTION, tile.get(dy, at + l), d * scale[l] + shift[l], options)
                tile.put(dx, at + l, scale[l] * (dz - mean_dz[l] - d * slope[l]))

    return batchnorm_forward, batchnorm_backward_sums, batchnorm_backward


@njit(error_model="numpy")
def batchnorm_backward_moments(mean_dz, slope, dweight, dbias, sums, var, eps, add_dweight, add_dbias, g):
    """dbias = (or +=) sum dz, dweight = (or +=) sum dz xhat, where they have elements, xhat = (x - mean)/sqrt(var + eps).

    A line of mean_dz = the mean of dz, and of slope = that of dz xhat, over sqrt(var + eps).
    """
    total, moment, values = sums[0, 0], sums[0, 1], type(eps)(g.count * (g.width // g.C))
    for part in range(1, g.parts):
        for l in range(g.width):
            total[l] += sums[part, 0, l]
            moment[l] += sums[part, 1, l]
    for c in range(g.C):
        for l in range(c + g.C, g.width, g.C):
            total[c] += total[l]
            moment[c] += moment[l]
        inverse = type(eps)(1) / np.sqrt(var[c] + eps)
        db, dw = total[c], moment[c] * inverse if g.count else moment[c]      # of no samples, var is that of others
        if len(dbias):
            dbias[c] = dbias[c] + db if add_dbias else db
        if len(dweight):
            dweight[c] = dweight[c] + dw if add_dweight else dw
        for l in range(c, g.width, g.C):
            mean_dz[l], slope[l] = db / values, dw * inverse / values


class BatchNorm(Normalizing):
    """Batch normalization by lines, and an activation of what comes out."""

    bfloat16 = True

    def __init__(self, shape, eps, momentum, activation, running, dtype):
        super().__init__(shape, eps, momentum, activation, running, dtype)
        self.kernels = make_batchnorm(self.function)
        # As few pixels to a line as divide a sample's and have LEAST_WIDTH numbers, or else all.
        self.width = self.C * next(p for p in range(1, self.pixels + 1)
                                   if self.pixels % p == 0 and (p * self.C >= LEAST_WIDTH or p == self.pixels))
        self.mean, self.var, self.nothing = (allocate((size,), dtype) for size in (self.C, self.C, 0))
        self.line_mean, self.scale, self.shift, self.mean_dz, self.slope = (allocate((self.width,), dtype) for _ in range(5))

    def lines(self, n):
        """Of n samples."""
        return n * self.pixels * self.C // self.width

    def parts(self, n):
        return max(1, min(MOST_PARTS, self.lines(n)))

    def reserve(self, batch):
        """Allocate for each part two sums, and two of the lines that lie in a cache."""
        self.sums = allocate((self.parts(batch), 4, self.width), self.dtype)

    def bytes(self, batch):
        return self.parts(batch) * 4 * self.width * self.dtype.itemsize

    def geometry(self, n, x):
        """The lines of n samples; where there are no gaps between these, it is one long sample."""
        per_sample = self.lines(1) if x.step > self.pixels * self.C else max(1, self.lines(n))
        return Lines(self.lines(n), per_sample, x.step, self.width, self.C, self.parts(n))

    def statistics(self, n, x):
        g, at_once = self.geometry(n, x), max(1, AT_ONCE // (self.width * self.dtype.itemsize))
        return [Call(batchnorm_statistics, (self.sums, x.array, at_once, g)),
                Call(batchnorm_moments, (self.mean, self.var, self.sums, x.array, g))]

    def normalize(self, n, y, x, params, mean, var):
        return [self.prepare(params, mean, var), Call(self.kernels[0], (
            y.array, x.array, self.line_mean, self.scale, self.shift, self.options, self.geometry(n, x)))]

    def prepare(self, params, mean, var):
        """The call that makes lines of a mean and a variance of each channel, and of the parameters."""
        weight, bias = (self.nothing if p is None else p for p in params)
        return Call(batchnorm_prepare, (self.line_mean, self.scale, self.shift, mean, var, weight, bias, self.eps, self.C))

    def update(self, n):
        return [Call(batchnorm_commit, (
            *self.running, self.mean, self.var, n * self.pixels, self.momentum, self.cumulative))]

    def backward(self, n, dx, dparams, dy, x, y, params, add):
        if all(result is None for result in (dx, *dparams)):
            return []
        g, (dweight, dbias) = self.geometry(n, x), (self.nothing if d is None else d for d in dparams)
        read = dy.array, x.array, self.line_mean, self.scale, self.shift
        calls = [self.prepare(params, self.mean, self.var),
                 Call(self.kernels[1], (self.sums, *read, self.options, g)),
                 Call(batchnorm_backward_moments, (
                     self.mean_dz, self.slope, dweight, dbias, self.sums, self.var, self.eps, *add, g))]
        if dx is None:
            return calls
        return [*calls, Call(self.kernels[2], (dx.array, *read, self.mean_dz, self.slope, self.options, g))]
