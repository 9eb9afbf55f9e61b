"""The input gradient of a strided convolution, as convolutions of stride 1."""
import math
from typing import NamedTuple


class Phase(NamedTuple):
    """The input rows first, first + stride, ...: their gradient is a correlation of stride 1 with every so-manyth tap.

    The taps are counted backwards: the first is `tap`, the next tap + tap_step. Input row first + i*stride receives from dy's
    row read + i + t*read_step under the t-th of them.
    """
    first: int
    count: int
    taps: int
    tap: int
    tap_step: int
    read: int
    read_step: int
    reach: int      # how far it reads beyond dy on either side


def phases(size, out_size, kernel, stride, padding, dilation):
    """The phases of one axis: input r gets w[p] * dy[(r + padding - p*dilation) / stride] where that division is exact."""
    found, period = [], stride // math.gcd(stride, dilation)
    for first in range(min(stride, size)):
        count = (size - first + stride - 1) // stride
        # Every period-th tap divides exactly, so a range names them all, however large the kernel.
        begin = next((p for p in range(min(kernel, period)) if (first + padding - p * dilation) % stride == 0), kernel)
        taps = range(begin, kernel, period)
        tap = taps[-1] if taps else 0
        read, read_step = (first + padding - tap * dilation) // stride, dilation // math.gcd(stride, dilation)
        end = read + count - 1 + (len(taps) - 1) * read_step
        reach = max(-read, end - (out_size - 1)) if taps else 0
        found.append(Phase(first, count, len(taps), tap, -period, read, read_step, reach))
    return found
