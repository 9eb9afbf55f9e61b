"""From stored bytes to a network's input, in one pass."""
import numpy as np

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.parallel import prange


@njit
def source(r, size, reflect):
    """The row of `size` rows that is seen at r: beside them -1 or, with `reflect`, the one as far behind the outermost one."""
    if 0 <= r < size:
        return r
    if not reflect:
        return -1
    return -r if r < 0 else 2 * (size - 1) - r


@njit(parallel=True, allocates=True)
def gather(out, images, index, flip, shift, reflect, table):
    """out[b, c, i, j] = table[c, byte], the byte of image index[b] at (i, j) after its flip and its shift.

    In the gap that the shift leaves the byte is 0 or, with `reflect`, that of the reflected image.

    out (B, C, H, W) with any strides, though channels last is fastest; images (M, C, H, W) uint8; index (B,) int64 below M;
    flip (B,) bool; shift int64, (down, right) of each image (B, 2) or of all (1, 2); table (C, 256).
    """
    batch, channels, height, width = out.shape
    for b in prange(batch):
        image, moved = images[index[b]], b % len(shift)
        dy, dx = shift[moved, 0], shift[moved, 1]
        columns = np.empty(width, np.int64)     # where each pixel of a row comes from, the same for all rows
        for j in range(width):
            s = source(j - dx, width, reflect)
            columns[j] = width - 1 - s if flip[b] and s >= 0 else s
        for i in range(height):
            r = source(i - dy, height, reflect)
            for c in range(channels):
                for j in range(width):
                    s = columns[j]
                    out[b, c, i, j] = table[c, image[c, r, s] if r >= 0 and s >= 0 else 0]


@njit(parallel=True)
def cut_out(out, corners, size):
    """out[b, :, i, j] = 0 in a square of each image: `size` rows and columns from corners[b] on, as far as they lie in the image.

    out (B, C, H, W) with any strides; corners (B, 2) int64, row and column.
    """
    batch, channels, height, width = out.shape
    for b in prange(batch):
        top, left = corners[b, 0], corners[b, 1]
        for i in range(max(top, 0), min(top + size, height)):
            for j in range(max(left, 0), min(left + size, width)):
                for c in range(channels):
                    out[b, c, i, j] = 0
