"""From stored bytes to a network's input on the GPU, in one pass, a thread per pixel and channel."""
import functools
import math

import numpy as np

from nbcnn.kernels.cuda.buffer import copy, flat
from nbcnn.kernels.cuda.compat import cuda, empty, kernel, to_device
from nbcnn.kernels.cuda.launch import THREADS, call_each, run
from nbcnn.kernels.cuda.state import STEP, no_training
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put


@functools.cache
def make_gather(C, H, W, VERSION=CODE_VERSION):
    """The kernel for images of one shape, and what its thread k does: a device function."""

    @cuda.jit(device=True)
    def gather_part(k, out, images, index, flip, shift, table, state, batch, count):
        if k < count:
            step = state[STEP]
            b, c, i, j = step * batch + k // (C * H * W), k // (H * W) % C, k // W % H, k % W
            if b < len(index):      # else the last step is done
                r, s = i - shift[2 * step], j - shift[2 * step + 1]
                byte = 0
                if 0 <= r < H and 0 <= s < W:
                    if flip[b] != 0:
                        s = W - 1 - s
                    byte = int(get(images, ((index[b] * C + c) * H + r) * W + s))
                put(out, k, get(table, c * 256 + byte))

    @kernel(THREADS)
    def gather(out, images, index, flip, shift, table, state, batch, count):
        """out[b, c, i, j] = table[c, byte], the byte of image index[first + b] at (i, j) after its flip and the shift.

        In the gap the byte is 0. Written are the first `count` elements of out (n, C, H, W); images (M, C, H, W) uint8, table
        (C, 256). index int64 and flip uint8 hold those of all steps, `batch` to a step, of which `first` is the first of this one;
        so does shift, int64 pairs (dy, dx). All arrays are flat.
        """
        _ = VERSION
        gather_part(cuda.grid(1), out, images, index, flip, shift, table, state, batch, count)

    return gather, gather_part


def gather_call(out, images, shape, index, flip, shift, table, state, batch, n):
    """The call that writes n images of `shape` (C, H, W) to out; the arrays are flat, as the kernel says."""
    return call_each(make_gather(*shape)[0], n * math.prod(shape), out, images, index, flip, shift, table, state, batch)


def gather(out, images, index, flip, shift, table):
    """Write all of `out`, a device array (B, C, H, W) with any strides, from device arrays; index and shift are the host's."""
    written = out if out.is_c_contiguous() else empty(out.shape, out.dtype)
    images, flip, table = map(flat, (images, flip, table))
    index, shift = (to_device(np.asarray(a, np.int64)) for a in (index, shift))
    run([gather_call(written.reshape(out.size), images, out.shape[1:], index, flip.view(np.uint8), shift, table, no_training(), 0,
                     len(out))])
    if written is not out:
        copy(out, written)
