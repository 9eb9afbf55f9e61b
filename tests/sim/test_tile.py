"""What the tile's verbs compute, their Python definitions against NumPy."""
import numpy as np
import pytest

from nbcnn.kernels.cuda.tile import get, put, tile_add, tile_dot, tile_patch, tile_put, tile_taps, tile_winners, tile_zero
from nbcnn.kernels.operation import NO_WINNER

pytestmark = pytest.mark.sim

RNG = np.random.default_rng(0)


def numbers(*shape):
    """Small integers, which add up exactly in any order."""
    return RNG.integers(-9, 10, shape).astype(np.float32)


def test_elements():
    a = numbers(9)
    assert get(a, 3) == a[3]
    expected = np.concatenate([a[:5], [7], a[6:]])
    put(a, 5, 7)
    assert (a == expected).all()


def test_zero():
    acc = np.full(7, np.nan)
    tile_zero(acc, 5)
    assert (acc[:5] == 0).all() and np.isnan(acc[5:]).all()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_dot(count):
    x, w, acc = numbers(9), numbers(9), numbers(1)
    expected = acc[0] + x[2:2 + count] @ w[3:3 + count]
    tile_dot(acc, x, 2, w, 3, count)
    assert acc[0] == expected


@pytest.mark.parametrize("pixels, outputs", [((1, 1), 4), ((2, 3), 4), ((2, 1), 8)])
@pytest.mark.parametrize("taps", [(1, 1), (3, 2), (0, 2)])
@pytest.mark.parametrize("stride, dilation", [((1, 1), (1, 1)), ((2, 1), (1, 3))])
def test_taps(pixels, outputs, taps, stride, dilation):
    """Pixels and taps as slices of an image of 9 columns, which begins at 4."""
    image, w, before, columns = numbers(9, 9), numbers(*taps, 12), numbers(*pixels, outputs), 9
    x, weights, acc = (np.concatenate([numbers(start), a.ravel()]) for start, a in ((4, image), (3, w), (0, before)))
    steps = stride[0] * columns, stride[1], dilation[0] * columns, dilation[1]
    tile_taps(acc, x, 4 + columns + 2, weights, 3 + 1, pixels, taps, steps, 12, outputs)
    expected = before.copy()
    for u, v in np.ndindex(pixels):
        read = image[1 + stride[0] * u:, 2 + stride[1] * v:][::dilation[0], ::dilation[1]][:taps[0], :taps[1]]
        expected[u, v] += np.einsum("pq,pqo->o", read, w[:, :, 1:1 + outputs])
    assert (acc == expected.ravel()).all()


@pytest.mark.parametrize("window", [(1, 1), (2, 3)])
def test_winners(window):
    """Each cell of the window wins once, and nobody once; of a window of one cell that one always does."""
    cells = np.array([*range(window[0] * window[1]), NO_WINNER], np.uint8)
    outputs, x, g, before = len(cells), numbers(99), numbers(len(cells) + 2), numbers(len(cells), 3, 2)
    acc = before.ravel().copy()
    tile_winners(acc, g, 2, np.concatenate([cells[-1:], cells]), 1, x, 5, outputs, (3, 2), window, (20, 3, 7, 2))
    expected = before.copy()
    for o, cell in enumerate(cells):
        if window == (1, 1):
            cell = 0
        if cell != NO_WINNER:
            u, v = divmod(int(cell), window[1])
            expected[o] += g[2 + o] * x[5 + 7 * u + 2 * v:][:60].reshape(3, 20)[:, :4:3]
    assert (acc == expected.ravel()).all()


@pytest.mark.parametrize("window, taps", [((2, 3), (3, 2)), ((1, 2), (1, 1)), ((2, 2), (1, 4))])
def test_patch(window, taps):
    """A row of windows scatters taps around its winners, which overlap; one window has none."""
    (WH, WW), windows = window, 3
    w, g, cells = numbers(*taps), numbers(windows), RNG.integers(0, WH * WW, windows).astype(np.uint8)
    cells[1] = NO_WINNER
    before = numbers(WH + taps[0] - 1, windows * WW + taps[1] - 1)
    acc, gs, won, ws = before.ravel().copy(), numbers(9), np.full(9, NO_WINNER, np.uint8), numbers(60)
    gs[4:4 + windows], won[2:2 + windows], ws[6:6 + 3 * w.size:3] = g, cells, w.ravel()
    tile_patch(acc, gs, 4, won, 2, ws, 6, windows, taps, window, 3)
    expected = before.copy()
    for j in (0, 2):
        u, v = divmod(int(cells[j]), WW)
        expected[u:u + taps[0], j * WW + v:][:, :taps[1]] += g[j] * w
    assert (acc == expected.ravel()).all()


@pytest.mark.parametrize("rows", [-1, 0, 2, 3, 9])
def test_put(rows):
    """So many rows, three at most, and nothing besides."""
    acc, y = numbers(3, 2), np.full((4, 10), np.nan, np.float32)
    tile_put(acc.ravel(), y.ravel(), 12, rows, (3, 2), (10, 4))
    expected = np.full((4, 10), np.nan, np.float32)
    expected[1:1 + max(rows, 0), 2:7:4] = acc[:max(rows, 0)]
    assert np.array_equal(y, expected, equal_nan=True)


@pytest.mark.parametrize("r, s", [(0, 0), (1, 2), (-1, -2), (3, 4), (4, 1), (-3, 0), (0, 5), (0, -2)])
def test_add(r, s):
    """To the part of a 4x5 image that it covers, which may be none."""
    acc, image = numbers(3, 2), numbers(4, 5)
    y = np.concatenate([numbers(7), np.stack([image, image], -1).ravel()])       # two steps from pixel to pixel
    before = y[:7].copy()
    tile_add(acc.ravel(), y, 7, r, s, 4, 5, (3, 2), (10, 2))
    expected = np.pad(image, 5)
    expected[5 + r:8 + r, 5 + s:7 + s] += acc
    result = y[7:].reshape(4, 5, 2)
    assert (result[:, :, 0] == expected[5:9, 5:10]).all() and (result[:, :, 1] == image).all() and (y[:7] == before).all()
