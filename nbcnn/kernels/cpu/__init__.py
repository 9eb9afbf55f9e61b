"""The CPU backend: one file per operation, forward and backward one under the other.

How to read it: `activations.py` first, whose kernels are one loop, and the top of `parallel.py`, which says what `prange` is;
then `flatten.py` and `maxpool2d.py`; then the top of `tile.py`, `linear.py` and `conv2d.py`; `conv2d_maxpool2d.py` and, for
bfloat16, `matrix_tile.py` and `conv2d_bfloat16.py` last. Under the kernels of a file stands a class, the operation: it owns what
they need in memory, and its `forward` and `backward` return the calls that `launch.run` makes. `operation.py` says what the
scheduler expects of it.

Where a number lies. A `Buffer` is one flat array, sample by sample, pixel by pixel, channels last: channel c of pixel (r, s) of
sample m is x[m*step + (r*W + s)*C + c]. Behind the last sample lies a pixel of zeros.

What a tile is. The sums that stay in vector registers while a loop runs: P rows, of V vectors. In a convolution the rows are P
samples at one pixel, and the vectors hold output channels:

                     output channels o, o + 1, ...        for each tap (p, q) and channel c, a number of x for each row
    sample m     [ y[m, i, j, o]   y[m, i, j, o+1]   ... ]      += x[m,   r+p, s+q, c] * w[p, q, c, o], w[p, q, c, o+1], ...
    sample m+1   [ y[m+1, i, j, o] y[m+1, i, j, o+1] ... ]      += x[m+1, r+p, s+q, c] * the same vectors of w
    ...

How a tap finds its pixel. Output pixel (i, j) reads from (r, s) = (i*stride - padding, j*stride - padding) on; tap (p, q) reads
(r + p*dilation, s + q*dilation), one addition to the address. A tap beside the image is left out by the bounds of the loops:

      s  -2 -1 | 0  1  2  3 | 4          padding 2, the pixel at s = -2: taps q = 0, 1 lie beside the image, so
     q    0  1 | 2  3  4    |            `tile.range_inside(-2, 1, 5, 4)` is (2, 5), and the loop runs over q = 2, 3, 4

Where fewer than P samples are left, the rows go on with the next pixels of the row. Then a tap may lie beside the image for some
rows and not for others; `tile.rows_or_zeros` lets those read the pixel of zeros.
"""
import functools
from types import SimpleNamespace

from nbcnn.kernels.cpu.adam import adam_update
from nbcnn.kernels.cpu.add import add_call, copy_call
from nbcnn.kernels.cpu.buffer import (
    ALIGNMENT,
    BFloat16Buffer,
    Buffer,
    Gradients,
    Partials,
    allocate,
    copy_of,
    flat_weight,
    place,
    to_device,
    to_host,
    unflat_weight,
    write,
)
from nbcnn.kernels.cpu.kernel_cache import compile_calls
from nbcnn.kernels.cpu.launch import require, run
from nbcnn.kernels.cpu.losses import run_loss, softmax_along
from nbcnn.kernels.cpu.sgd import update
from nbcnn.kernels.cpu.unit import unit_in_use
from nbcnn.kernels.cpu.vectors import move_average, multiply, sum_of_squares
from nbcnn.kernels.operation import operations

device = "cpu"

__all__ = [
    "device", "compile_calls", "require", "run",
    # memory
    "ALIGNMENT", "BFloat16Buffer", "Buffer", "Gradients", "Partials", "allocate", "copy_of", "flat_weight", "place", "to_device",
    "to_host", "unflat_weight", "write",
    # besides the operations
    "add_call", "copy_call", "run_loss", "softmax_along", "adam_update", "update", "move_average", "multiply", "sum_of_squares",
    # bfloat16
    "bfloat16", "describe_bfloat16",
]
globals().update(operations(__name__, __path__))      # Conv2d, Activation, ...: the classes in the files here


@functools.cache
def bfloat16():
    """The same operations for activations in bfloat16; those named BFloat16 take the place of the others."""
    names = dict(globals())
    return SimpleNamespace(**names | {name.removeprefix("BFloat16"): value for name, value in names.items()
                                      if name.startswith("BFloat16") and name != "BFloat16Buffer"})


def describe_bfloat16():
    """One line on what is bfloat16, and which unit multiplies it."""
    return (f"bf16 on the unit {unit_in_use()}: values between layers are bfloat16, but around layers in float32; images, outputs, "
            "weights, sums and statistics are float32")
