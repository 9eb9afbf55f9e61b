"""From stored bytes to a network's input on the GPU, in one pass, a thread per pixel and channel."""
import functools
import math

import numpy as np

from nbcnn.kernels.cuda.buffer import copy, flat
from nbcnn.kernels.cuda.compat import cuda, empty, kernel, to_device
from nbcnn.kernels.cuda.launch import THREADS, call_each, run
from nbcnn.kernels.cuda.state import STEP, no_training
from nbcnn.kernels.cuda.tile import CODE_VERSION, get, put


@cuda.jit(device=True)
def source(r, size, reflect):
    """The row of `size` rows that is seen at r: beside them -1 or, with `reflect`, the one as far behind the outermost one."""
    if 0 <= r < size:
        return r
    if not reflect:
        return -1
    return -r if r < 0 else 2 * (size - 1) - r


@functools.cache
def make_gather(C, H, W, each_its_own, reflect, cutout, VERSION=CODE_VERSION):
    """The kernel for images of one shape and one way to change them, and what its thread k does: a device function."""

    @cuda.jit(device=True)
    def gather_part(k, out, images, index, flip, shift, corners, table, state, batch, count):
        if k < count:
            step = state[STEP]
            b, c, i, j = step * batch + k // (C * H * W), k // (H * W) % C, k // W % H, k % W
            if b < len(index):      # else the last step is done
                moved = 2 * b if each_its_own else 2 * step
                r, s = source(i - shift[moved], H, reflect), source(j - shift[moved + 1], W, reflect)
                byte = 0
                if r >= 0 and s >= 0:
                    if flip[b] != 0:
                        s = W - 1 - s
                    byte = int(get(images, ((index[b] * C + c) * H + r) * W + s))
                value = get(table, c * 256 + byte)
                if cutout and 0 <= i - corners[2 * b] < cutout and 0 <= j - corners[2 * b + 1] < cutout:
                    value = out.dtype.type(0)
                put(out, k, value)

    @kernel(THREADS)
    def gather(out, images, index, flip, shift, corners, table, state, batch, count):
        """out[b, c, i, j] = table[c, byte], the byte of image index[first + b] at (i, j) after its flip and its shift.

        In the gap the byte is 0 or, with `reflect`, that of the reflected image. The square of `cutout` rows and columns from an
        image's corner on becomes 0. Written are the first `count` elements of out (n, C, H, W); images (M, C, H, W) uint8, table
        (C, 256). index int64 and flip uint8 hold those of all steps, `batch` to a step, of which `first` is the first of this one;
        so do corners, int64 pairs (row, column), where there is a cutout, and shift, int64 pairs (dy, dx), but where one is not
        `each_its_own`, which is one of each step. All arrays are flat.
        """
        _ = VERSION
        gather_part(cuda.grid(1), out, images, index, flip, shift, corners, table, state, batch, count)

    return gather, gather_part


def gather_call(out, images, kind, index, flip, shift, corners, table, state, batch, n):
    """The call that writes n images to out; `kind` is what `make_gather` takes, the arrays are flat, as the kernel says."""
    return call_each(make_gather(*kind)[0], n * math.prod(kind[:3]), out, images, index, flip, shift, corners, table, state, batch)


def gather(out, images, index, flip, shift, reflect, cutout, corners, table):
    """Write all of `out`, a device array (B, C, H, W) with any strides; index, shift and corners are NumPy's."""
    written = out if out.is_c_contiguous() else empty(out.shape, out.dtype)
    images, flip, table = map(flat, (images, flip, table))
    kind = *out.shape[1:], len(shift) > 1, reflect, cutout
    index, shift, corners = (to_device(a.astype(np.int64).reshape(-1)) for a in (index, shift, corners))
    run([gather_call(written.reshape(out.size), images, kind, index, flip.view(np.uint8), shift, corners, table, no_training(), 0,
                     len(out))])
    if written is not out:
        copy(out, written)
