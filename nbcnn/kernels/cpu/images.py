"""From stored bytes to a network's input, in one pass."""
from numba import prange

from nbcnn.kernels.cpu.kernel_cache import njit
from nbcnn.kernels.cpu.launch import PARALLEL


@njit(parallel=PARALLEL)
def gather(out, images, index, flip, shift, table):
    """out[b, c, i, j] = table[c, byte], the byte of image index[b] at (i, j) after its flip and the shift; 0 in the gap.

    out (B, C, H, W) with any strides, though channels last is fastest; images (M, C, H, W) uint8;
    index (B,) int64 below M; flip (B,) bool; shift (dy, dx); table (C, 256).
    """
    batch, channels, height, width = out.shape
    dy, dx = shift
    for b in prange(batch):
        image = images[index[b]]
        for i in range(height):
            r = i - dy
            for j in range(width):
                s = j - dx
                inside = 0 <= r < height and 0 <= s < width
                if flip[b]:
                    s = width - 1 - s
                for c in range(channels):
                    out[b, c, i, j] = table[c, image[c, r, s] if inside else 0]
