"""Memory on the CPU: where a buffer's numbers lie, and that what lies around them is zero."""
import math

import numpy as np
import pytest

from nbcnn.kernels import cpu
from nbcnn.kernels.cpu.buffer import LINE, SLACK


@pytest.mark.parametrize(("shape", "gap"), [
    # By the rule of `_step`: a line between images whose size is a multiple of eight lines. Never between vectors.
    ((7,), 0), ((8 * LINE,), 0), ((2, 3), 0), ((3, 4, 5), 0), ((2, 8, 8), LINE), ((8 * LINE, 3, 1), LINE), ((200, 1, 1), 0),
    ((2, 0, 3), 0),
])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_each_number_lies_where_it_is_said_to(shape, gap, batch):
    samples = np.arange(1, 1 + batch * math.prod(shape), dtype=np.float32).reshape(batch, *shape)
    buffer = cpu.Buffer(batch, shape, np.float32)
    buffer.set(samples)
    assert buffer.step == math.prod(shape) + gap and buffer.zeros == batch * buffer.step
    # Behind the samples an image has a pixel of zeros, however many channels that is.
    C, H, W = shape if len(shape) == 3 else (math.prod(shape), 1, 1)
    expected = np.zeros(buffer.zeros + (C if len(shape) == 3 else 0), np.float32)
    flat = samples.reshape(batch, C, H, W)
    for m, c, r, s in np.ndindex(flat.shape):
        expected[m * buffer.step + (r * W + s) * C + c] = flat[m, c, r, s]
    assert buffer.array.shape == expected.shape == (cpu.Buffer.elements(batch, shape),) and (buffer.array == expected).all()
    for n in range(batch + 1):
        assert buffer.view(n).shape == (n, *shape) and (buffer.view(n) == samples[:n]).all()


def test_allocate_is_aligned_and_zero_with_slack_behind():
    for shape, dtype in (((3,), np.float32), ((2, 5), np.float64), ((1, 4), np.uint8)):
        array = cpu.allocate(shape, dtype)
        assert array.shape == shape and array.dtype == dtype and array.ctypes.data % cpu.ALIGNMENT == 0
        behind = np.lib.stride_tricks.as_strided(array.reshape(-1), (array.size + SLACK,))
        assert not behind.any()
