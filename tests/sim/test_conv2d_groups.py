"""Convolution in groups, and padding by name, on a simulated GPU: equal to the oracle's and to the CPU's, in every bit."""
import numpy as np
import pytest

from nbcnn.kernels import conv2d_backward, conv2d_forward, conv2d_maxpool2d_backward, conv2d_maxpool2d_forward, cuda
from nbcnn.kernels.arguments import conv_size, pair
from nbcnn.kernels.cuda import buffer, conv2d_groups, gradients, to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

import oracles
from arrays import equal, integers, mostly_float32

pytestmark = pytest.mark.sim

GEOMETRIES = [      # shapes of x and w, options
    ((2, 3, 5, 4), (3, 1, 3, 3), dict(padding=1, groups=3)),
    ((1, 3, 6, 5), (3, 1, 3, 2), dict(stride=(2, 3), padding=(1, 0), groups=3)),
    ((1, 2, 6, 7), (6, 1, 2, 3), dict(padding=(1, 2), dilation=(2, 1), groups=2)),      # several outputs of each channel
    ((2, 4, 4, 5), (6, 2, 3, 2), dict(stride=(1, 2), padding=(0, 1), groups=2)),
    ((1, 6, 4, 4), (3, 2, 3, 3), dict(stride=2, padding=2, dilation=2, groups=3)),
    ((0, 4, 4, 4), (4, 2, 3, 3), dict(padding=1, groups=2)),
]


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """New memory is full of NaN: what is not written shows."""
    def garbage(shape, dtype):
        return to_device(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 77, dtype))
    for module, name in ((buffer, "allocate"), (buffer, "empty"), (gradients, "allocate")):
        monkeypatch.setattr(module, name, garbage)


def numbers(dtype, x_shape, w_shape, groups, stride=1, padding=0, dilation=1):
    """x, w, b and dy; y, dx, dw and db by the oracle, group by group."""
    options = [pair(option, "", 0) for option in (stride, padding, dilation)]
    size = conv_size(x_shape[2:], w_shape[2:], *options, "x")
    arrays = integers(0, x_shape, w_shape, w_shape[0], (x_shape[0], w_shape[0], *size), dtype=dtype)
    parts = zip(*(np.split(a, groups, axis) for a, axis in zip(arrays, (1, 0, 0, 1), strict=True)), strict=True)
    results = [(oracles.conv2d_forward(x, w, b, *options), *oracles.conv2d_backward(dy, x, w, *options)) for x, w, b, dy in parts]
    return arrays, [np.concatenate(own, axis) for own, axis in zip(zip(*results, strict=True), (1, 1, 0, 0), strict=True)]


@pytest.mark.parametrize("dtype, geometry", mostly_float32(GEOMETRIES))
@pytest.mark.parametrize("blocks", [1, 1024])
def test_equals_oracle(monkeypatch, dtype, geometry, blocks):
    """The weight gradient in one part, and in as many as there are samples."""
    x_shape, w_shape, options = geometry
    monkeypatch.setattr(conv2d_groups, "BLOCKS", blocks)
    (x, w, b, dy), (y, *others) = numbers(dtype, x_shape, w_shape, **options)
    x, w, b, dy = map(to_device, (x, w, b, dy))
    assert equal(to_host(conv2d_forward(x, w, b, **options)), y)
    for name, a, e in zip(("dx", "dw", "db"), conv2d_backward(dy, x, w, **options), others, strict=True):
        assert equal(to_host(a), e), name
    dx, dw, _ = conv2d_backward(dy, x, w, **options, need_dx=False)
    assert dx is None and equal(to_host(dw), others[1])


def test_nothing_but_the_outputs_is_written():
    """Buffers for three images, of which two are computed; without a bias."""
    options = dict(stride=(2, 1), padding=(1, 0), groups=2)
    (x, w, _, dy), _ = numbers(np.float32, (3, 4, 5, 4), (6, 2, 3, 2), **options)
    y, (dx, *_) = conv2d_forward(x[:2], w, **options), conv2d_backward(dy[:2], x[:2], w, **options)
    operation = cuda.Conv2dGroups(x.shape[1:], dy.shape[1:], (3, 2), (2, 1), (1, 0), (1, 1), 2, x.dtype)
    flat, read = cuda.flat_weight(to_device(w)), [cuda.Buffer.holding(to_device(a)) for a in (dy, x)]
    written = [cuda.Buffer.holding(to_device(np.full_like(a, 99))) for a in (dy, x)]
    found = cuda.Gradients(operation, 2, (w.size, len(w)), x.dtype)
    cuda.run(operation.forward(2, written[0], read[1], (flat, None)))
    cuda.run(operation.backward(2, written[1], (found.targets[0], None), *read, None, (flat, None), (False, False)))
    cuda.run(found.calls)
    for result, wanted in zip(written, (y, dx), strict=True):
        assert equal(to_host(result.view(2)), wanted) and (to_host(result.view(3))[2] == 99).all()
    for array, values in zip((read[0].view(3), read[1].view(3), flat), (dy, x, w.transpose(0, 2, 3, 1).ravel()), strict=True):
        assert equal(to_host(array), values)
    assert np.isnan(to_host(found.arrays[1])).all()         # nothing is written where a bias would have its gradient


def test_strided_arrays():
    options = dict(padding=1, groups=2)
    (x, w, b, dy), (y, *others) = numbers(np.float32, (2, 4, 4, 5), (6, 2, 3, 2), **options)

    def strided(a):     # the axes backwards in memory
        return transposed(to_device(a.transpose().copy()), tuple(range(a.ndim))[::-1])
    assert equal(to_host(conv2d_forward(strided(x), strided(w), to_device(b), **options)), y)
    assert all(map(equal, map(to_host, conv2d_backward(strided(dy), strided(x), strided(w), **options)), others))


@pytest.mark.parametrize("kernel", [(2, 3), (4, 4)])
@pytest.mark.parametrize("groups", [1, 2])
def test_padding_by_name(kernel, groups):
    x, w, b, dy = integers(1, (2, 2, 4, 6), (2, 2 // groups, *kernel), 2, (2, 2, 4, 6))
    options = dict(padding="same", groups=groups)
    assert equal(to_host(conv2d_forward(*map(to_device, (x, w, b)), **options)), conv2d_forward(x, w, b, **options))
    got = conv2d_backward(*map(to_device, (dy, x, w)), **options)
    assert all(map(equal, map(to_host, got), conv2d_backward(dy, x, w, **options)))


@pytest.mark.parametrize("kernel", [(2, 3), (4, 4)])
def test_padding_by_name_where_it_is_pooled(kernel):
    x, w, dy = integers(2, (2, 3, 4, 6), (2, 3, *kernel), (2, 2, 2, 3))
    y, argmax = conv2d_maxpool2d_forward(x, w, padding="same")
    results = conv2d_maxpool2d_forward(to_device(x), to_device(w), padding="same")
    assert equal(to_host(results[0]), y) and equal(to_host(results[1]), argmax)
    got = conv2d_maxpool2d_backward(to_device(dy), results[1], to_device(x), to_device(w), padding="same")
    assert all(map(equal, map(to_host, got), conv2d_maxpool2d_backward(dy, argmax, x, w, padding="same")))
