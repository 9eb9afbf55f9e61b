"""The gradient of a strided convolution's input, as correlations of stride 1."""
import math
from typing import NamedTuple


class Phase(NamedTuple):
    """The gradient of the input rows first, first + stride, ...: a correlation of dy, of stride 1, with some of the taps.

    These are visited from the last one down: `tap`, tap + tap_step, ... Under the t-th of them input row first + i*stride reads row
    read + i + t*read_step of dy. There are `count` such rows and `taps` taps. Columns likewise.
    """
    first: int
    count: int
    taps: int
    tap: int
    tap_step: int
    read: int
    read_step: int


def phases(size, kernel, stride, padding, dilation):
    """The phases of one axis: input row r gets w[p] * dy[(r + padding - p*dilation) / stride] where that division is exact."""
    found, period = [], stride // math.gcd(stride, dilation)
    for first in range(min(stride, size)):
        # Every period-th tap divides exactly, so a range names them all, however large the kernel.
        begin = next((p for p in range(min(kernel, period)) if (first + padding - p * dilation) % stride == 0), kernel)
        taps = range(begin, kernel, period)
        tap = taps[-1] if taps else 0
        found.append(Phase(first, (size - first + stride - 1) // stride, len(taps), tap, -period,
                           (first + padding - tap * dilation) // stride, dilation // math.gcd(stride, dilation)))
    return found
