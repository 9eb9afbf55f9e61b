"""Convolution, max pooling and ReLU in one on a simulated GPU: equal to the CPU's, in every bit."""
import inspect
import time

import numpy as np
import pytest

from nbcnn.kernels import conv2d_maxpool2d_backward, conv2d_maxpool2d_forward, cuda
from nbcnn.kernels.cuda import buffer, conv2d, conv2d_maxpool2d, gradients, to_device, to_host
from nbcnn.kernels.cuda.compat import transposed

import oracles
from arrays import equal, integers, mostly_float32

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
GEOMETRIES = [      # shapes of x and w, options
    ((2, 2, 6, 6), (5, 2, 3, 3), dict(padding=1)),
    ((1, 2, 7, 9), (3, 2, 3, 3), dict(padding=1, relu=True)),                       # pixels in no window
    ((1, 3, 6, 7), (4, 3, 3, 2), dict(padding=(1, 0), pool_size=(2, 3), relu=True)),
    ((1, 1, 7, 8), (2, 1, 2, 2), dict(padding=1, pool_size=3)),
    ((2, 1, 4, 5), (2, 1, 2, 3), dict(pool_size=(1, 2), relu=True)),
    ((1, 2, 2, 3), (2, 2, 1, 2), dict(padding=(2, 3), pool_size=(3, 1))),              # windows that see only padding
    ((1, 2, 5, 6), (3, 2, 5, 5), dict(padding=2, pool_size=(2, 2))),
    ((2, 3, 2, 3), (9, 3, 1, 1), dict(pool_size=1, relu=True)),                        # windows of one cell
    ((1, 2, 3, 2), (2, 2, 1, 1), dict(pool_size=(3, 2))),                              # one window
    ((0, 2, 4, 4), (3, 2, 3, 3), dict(padding=1)),
]


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """New memory is full of NaN: what is not written shows."""
    def garbage(shape, dtype):
        return to_device(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 77, dtype))
    for module, name in ((buffer, "allocate"), (buffer, "empty"), (gradients, "allocate")):
        monkeypatch.setattr(module, name, garbage)


def pairs(padding=0, pool_size=2, relu=False):
    return *((option if isinstance(option, tuple) else (option, option)) for option in (padding, pool_size)), relu


def numbers(dtype, x_shape, w_shape, **options):
    """dy, x, w, b; most of x and b is 0, so that ties, and sums that are 0, are common."""
    padding, window, _ = pairs(**options)
    size = ((i + 2 * p - k + 1) // cells for i, k, p, cells in zip(x_shape[2:], w_shape[2:], padding, window, strict=True))
    dy, x, w, b, keep = integers(0, (x_shape[0], w_shape[0], *size), x_shape, w_shape, w_shape[0], x_shape, dtype=dtype)
    return dy, x * (keep < -1), w, b * (abs(b) > 2)


def check(dtype, x_shape, w_shape, options):
    dy, x, w, b = numbers(dtype, x_shape, w_shape, **options)
    if dtype == np.float32 and w_shape[2:] == (3, 3):       # another size costs seconds of compiling
        y, argmax = conv2d_maxpool2d_forward(x, w, b, **options)
        wanted = conv2d_maxpool2d_backward(dy, argmax, x, w, **options)
    else:
        y, argmax = oracles.conv2d_maxpool2d_forward(x, w, b, *pairs(**options))
        padding, pool_size, _ = pairs(**options)
        wanted = oracles.conv2d_maxpool2d_backward(dy, argmax, x, w, padding, pool_size)
    results = conv2d_maxpool2d_forward(*map(to_device, (x, w, b)), **options)
    assert equal(to_host(results[0]), y) and equal(to_host(results[1]), argmax)
    results = conv2d_maxpool2d_backward(to_device(dy), results[1], *map(to_device, (x, w)), **options)
    for name, a, e in zip(("dx", "dw", "db"), results, wanted, strict=True):
        assert equal(to_host(a), e), name


@pytest.mark.parametrize("dtype, geometry", mostly_float32(GEOMETRIES))
def test_equals_cpu(dtype, geometry):
    check(dtype, *geometry)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_ties_nan_and_infinities(relu, dtype):
    """A convolution that hands x on: windows of equal values, of -inf alone, of NaN."""
    x = np.random.default_rng(0).integers(-1, 2, (2, 1, 6, 9)).astype(dtype)
    x[0, 0, :2, :4], x[0, 0, 2, 2], x[0, 0, 3, 5], x[1, 0, 4, 1:3], x[1, 0, 1, 5] = -np.inf, np.nan, np.nan, np.nan, np.inf
    w = np.zeros((1, 1, 3, 3), dtype)
    w[0, 0, 1, 1] = 1
    finite = np.nan_to_num(x, nan=3, posinf=4, neginf=-5)
    for values, kernel, padding in ((x, w[:, :, 1:2, 1:2], 0), (finite, w, 1)):
        expected = oracles.conv2d_maxpool2d_forward(values, kernel, np.zeros(1, dtype), (padding,) * 2, (2, 3), relu)
        for b in (None, to_device(np.zeros(1, dtype))):
            results = conv2d_maxpool2d_forward(
                to_device(values), to_device(kernel), b, padding=padding, pool_size=(2, 3), relu=relu)
            assert all(map(equal, map(to_host, results), expected))


def test_nan_and_infinities_through_a_kernel():
    """Windows of sums that are NaN or infinite, as on the CPU; and gradients of the pixels that won."""
    dy, x, w, b = numbers(np.float32, (2, 2, 6, 6), (3, 2, 3, 3), padding=1)
    w[w == 0] = 1
    x[0, 1, 2, 3], x[1, 0, 0, 0], dy[0, 1, 1, 1] = np.nan, -np.inf, np.nan
    expected = conv2d_maxpool2d_forward(x, w, b, padding=1)
    results = conv2d_maxpool2d_forward(*map(to_device, (x, w, b)), padding=1)
    assert all(map(equal, map(to_host, results), expected)) and np.isnan(expected[0]).any() and np.isinf(expected[0]).any()
    expected = conv2d_maxpool2d_backward(dy, expected[1], x, w, padding=1)
    results = conv2d_maxpool2d_backward(*map(to_device, (dy, to_host(results[1]), x, w)), padding=1)
    assert all(map(equal, map(to_host, results), expected))


@pytest.mark.parametrize("options", [dict(padding=(1, 0)), dict(padding=(0, 1), pool_size=(1, 3), relu=True)])
@pytest.mark.parametrize("tile", [      # rows, columns of windows, groups of outputs, outputs of a thread, channels at a time
    (1, 1, 1, 4, 2), (2, 1, 2, 4, 3), (1, 2, 1, 8, 1)])
def test_blocks_of_a_forward_pass(monkeypatch, tile, options):
    """Several blocks along rows, columns and outputs, the last ones cut off, and channels in several turns."""
    monkeypatch.setattr(conv2d, "correlation_tile", lambda *_: tile)
    _, x, w, b = numbers(np.float32, (2, 3, 6, 6), (5, 3, 3, 2), **options)
    results = conv2d_maxpool2d_forward(*map(to_device, (x, w, b)), **options)
    assert all(map(equal, map(to_host, results), oracles.conv2d_maxpool2d_forward(x, w, b, *pairs(**options))))


@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((2, 3, 4, 6), (5, 3, 3, 2), dict(padding=(1, 0))),
    ((1, 3, 4, 5), (5, 3, 2, 4), dict(padding=(0, 2), pool_size=(2, 1), relu=True)),
])
@pytest.mark.parametrize("weights, inputs, parts", [
    # channels, whether a thread has all columns of taps, groups of outputs, outputs of a thread, rows of windows at a time;
    # channels, strips at a time, groups of outputs, windows of a strip, outputs at a time, rows, columns of windows of a block
    ((2, False, 1, 4, 1), (3, 1, 1, 1, 9, 9, 9), 1),
    ((3, True, 1, 4, 2), (2, 2, 1, 2, 2, 1, 2), 2),
    ((1, True, 2, 4, 1), (2, 1, 2, 2, 3, 1, 1), 1),
])
def test_blocks_of_a_backward_pass(monkeypatch, weights, inputs, parts, x_shape, w_shape, options):
    """Several blocks along all axes, the last ones cut off; windows, strips of them and outputs in several turns; several parts."""
    channels, whole, *others = weights
    monkeypatch.setattr(conv2d, "backward_weight_tile", lambda *_: (channels, w_shape[3] if whole else 1, *others))
    monkeypatch.setattr(conv2d_maxpool2d, "backward_input_tile", lambda *_: inputs)
    monkeypatch.setattr(conv2d, "MOST_PARTS", parts)
    dy, x, w, b = numbers(np.float32, x_shape, w_shape, **options)
    padding, pool_size, relu = pairs(**options)
    _, argmax = oracles.conv2d_maxpool2d_forward(x, w, b, padding, pool_size, relu)
    results = conv2d_maxpool2d_backward(*map(to_device, (dy, argmax, x, w)), **options)
    wanted = oracles.conv2d_maxpool2d_backward(dy, argmax, x, w, padding, pool_size)
    for name, a, e in zip(("dx", "dw", "db"), results, wanted, strict=True):
        assert equal(to_host(a), e), name


def slow_add(acc, y, at, r, s, H, W, SIZE, Y_STEPS):
    """What tile_add does, with a pause between reading and writing: what another thread adds meanwhile is lost."""
    inside = [(at + (r + i) * Y_STEPS[0] + (s + j) * Y_STEPS[1], acc[i * SIZE[1] + j])
              for i, j in np.ndindex(SIZE) if 0 <= r + i < H and 0 <= s + j < W]
    sums = [(k, y[k] + value) for k, value in inside]
    time.sleep(0.003)
    for k, value in sums:
        y[k] = value


@pytest.mark.parametrize("tile", [(1, 9, 1, 1, 2, 9, 9), (1, 6, 2, 2, 2, 9, 9)])     # as above; all strips in one turn
def test_strips_that_overlap_take_turns(monkeypatch, tile):
    monkeypatch.setattr(conv2d_maxpool2d, "backward_input_tile", lambda *_: tile)
    monkeypatch.setattr(conv2d_maxpool2d, "tile_add", slow_add)
    dy, x, w, b = numbers(np.float32, (1, 1, 6, 6), (2, 1, 3, 3), padding=1)
    _, argmax = oracles.conv2d_maxpool2d_forward(x, w, b, (1, 1), (2, 2), False)
    dx, *_ = conv2d_maxpool2d_backward(*map(to_device, (dy, argmax, x, w)), padding=1)
    assert equal(to_host(dx), oracles.conv2d_maxpool2d_backward(dy, argmax, x, w, (1, 1), (2, 2))[0])


def test_without_a_bias_and_without_dx():
    dy, x, w, b = numbers(np.float64, (1, 2, 4, 4), (3, 2, 3, 3), padding=1)
    y, argmax = oracles.conv2d_maxpool2d_forward(x, w, 0 * b, (1, 1), (2, 2), False)
    results = conv2d_maxpool2d_forward(to_device(x), to_device(w), padding=1)
    assert equal(to_host(results[0]), y) and equal(to_host(results[1]), argmax)
    dx, *others = conv2d_maxpool2d_backward(*map(to_device, (dy, argmax, x, w)), padding=1, need_dx=False)
    assert dx is None
    assert all(map(equal, map(to_host, others), oracles.conv2d_maxpool2d_backward(dy, argmax, x, w, (1, 1), (2, 2))[1:]))


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint64])
def test_backward_takes_any_cells(kind):
    """Also those that lost, of any type of ints."""
    dy, x, w, _ = numbers(np.float32, (2, 2, 6, 6), (3, 2, 3, 3), padding=1)
    argmax = np.random.default_rng(1).integers(0, 4, dy.shape).astype(kind)
    got = conv2d_maxpool2d_backward(*map(to_device, (dy, argmax, x, w)), padding=1)
    assert all(map(equal, map(to_host, got), oracles.conv2d_maxpool2d_backward(dy, argmax, x, w, (1, 1), (2, 2))))


def test_nothing_but_the_outputs_is_written():
    """Buffers for three images, of which two are computed."""
    dy, x, w, b = numbers(np.float32, (3, 2, 5, 4), (3, 2, 3, 3), padding=1)
    y, argmax = oracles.conv2d_maxpool2d_forward(x[:2], w, b, (1, 1), (2, 2), False)
    dx, *_ = oracles.conv2d_maxpool2d_backward(dy[:2], argmax, x[:2], w, (1, 1), (2, 2))
    operation = cuda.Conv2dMaxPool2d(x.shape[1:], (3, 5, 4), (3, 3), (1, 1), (2, 2), False, x.dtype)
    operation.reserve(3)
    flat = cuda.flat_weight(to_device(w)), to_device(b)
    read = [cuda.Buffer.holding(to_device(a)) for a in (dy, x)]
    written = [cuda.Buffer.holding(to_device(np.full_like(a, 99))) for a in (dy, x)]
    targets = cuda.Gradients(operation, 2, (w.size, len(w)), x.dtype).targets
    cuda.run(operation.forward(2, written[0], read[1], flat))
    cuda.run(operation.backward(2, written[1], targets, *read, None, flat, (False, False)))
    for result, wanted in zip(written, (y, dx), strict=True):
        assert equal(to_host(result.view(2)), wanted) and (to_host(result.view(3))[2] == 99).all()
    won = to_host(operation.argmax.view(3))
    assert equal(won[:2], argmax) and (won[2] == 77).all()
    for array, values in zip((read[0].view(3), read[1].view(3), *flat), (dy, x, w.transpose(0, 2, 3, 1).ravel(), b), strict=True):
        assert equal(to_host(array), values)


def test_strided_arrays():
    dy, x, w, b = numbers(np.float32, (2, 2, 4, 6), (3, 2, 3, 3), padding=1)

    def strided(a):     # the axes backwards in memory
        return transposed(to_device(a.transpose().copy()), (3, 2, 1, 0))
    y, argmax = oracles.conv2d_maxpool2d_forward(x, w, b, (1, 1), (2, 2), True)
    results = conv2d_maxpool2d_forward(strided(x), strided(w), to_device(b), padding=1, relu=True)
    assert equal(to_host(results[0]), y) and equal(to_host(results[1]), argmax)
    results = conv2d_maxpool2d_backward(*map(strided, (dy, argmax, x, w)), padding=1, relu=True)
    assert all(map(equal, map(to_host, results), oracles.conv2d_maxpool2d_backward(dy, argmax, x, w, (1, 1), (2, 2))))


def test_tiles_fit_into_a_block(monkeypatch):
    """Shared memory and threads within what any GPU has, for geometries up to those of large networks; in warps, as on a GPU."""
    monkeypatch.setattr(conv2d, "WARP", 32)
    rng = np.random.default_rng(0)
    for _ in range(4_000):
        C, O, H, W, KH, KW, WH, WW = (int(2 ** rng.uniform(0, high)) for high in (9, 9, 6, 6, 3.5, 3.5, 2.5, 2.5))
        padding = tuple(max(int(rng.integers(0, k + 1)), -(-(k - 1 + cells - n) // 2)) for k, cells, n in zip(
            (KH, KW), (WH, WW), (H, W), strict=True))
        conv = tuple(n + 2 * p - k + 1 for n, p, k in zip((H, W), padding, (KH, KW), strict=True))
        itemsize = int(rng.choice([4, 8]))
        operation = cuda.Conv2dMaxPool2d((C, H, W), (O, *conv), (KH, KW), padding, (WH, WW), True, np.dtype(f"f{itemsize}"))
        operation.reserve(0)
        shapes = [cuda.Buffer(0, shape, operation.dtype) for shape in ((O, *operation.size), (C, H, W))]
        targets = cuda.Gradients(operation, 1, (1, 1), operation.dtype).targets
        for call in operation.forward(1, *shapes, (None, None)) + operation.backward(
                1, shapes[1], targets, *shapes, None, (None, None), ()):
            sizes = inspect.getclosurevars(call.kernel.kernel.fn).nonlocals
            shared = sum(sizes.get(name, 0) for name in ("X_SIZE", "W_SIZE", "FLOATS")) * itemsize + sizes.get("WON", 0)
            assert 0 < shared <= 48 * 1024 and 1 <= call.kernel.block <= 1024, (shared, call.kernel.block, operation.__dict__)


@pytest.mark.parametrize("H, padding, window, taps", [(7, 1, 2, 3), (20, 2, 2, 5), (5, 9, 1, 2), (4, 0, 3, 2)])
@pytest.mark.parametrize("pieces", [1, 2, 100])
def test_windows_that_touch_a_piece(pieces, H, padding, window, taps):
    """As many as one finds by looking at every pixel of every window."""
    windows, step = (H + 2 * padding - taps + 1) // window, pieces * window
    touched = [range(i * window - padding, (i + 1) * window - padding + taps - 1) for i in range(windows)]
    most = max(sum(any(start <= r < min(H, start + step) for r in rows) for rows in touched) for start in range(0, H, step))
    assert conv2d_maxpool2d.most_windows_touching(H, windows, step, window, taps, padding) == max(1, most)


def test_kernels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"w: expected kernels and windows that fit into a GPU's .*, got 120x120 and 1x1"):
        conv2d_maxpool2d.backward_input_tile((1, 1, 1), (1, 1, 1), (1, 1), (120, 120), (60, 60), 4)


DY, X, W, B = (np.ones(shape, np.float32) for shape in ((2, 4, 2, 1), (2, 3, 5, 4), (4, 3, 2, 2), 4))
ARGMAX = np.ones(DY.shape, np.uint8)


@pytest.mark.parametrize("function, arrays", [
    (conv2d_maxpool2d_forward, dict(x=X, w=W, b=B)), (conv2d_maxpool2d_backward, dict(dy=DY, argmax=ARGMAX, x=X, w=W))])
def test_all_or_none_on_the_device(function, arrays):
    for name in arrays:
        others = ", ".join(other for other in arrays if other != name)
        with pytest.raises(TypeError, match=f"^{name}: expected device arrays, as {others} is one; got NumPy"):
            function(**{other: a if other == name else to_device(a) for other, a in arrays.items()})


@pytest.mark.parametrize("function, arrays, options", [
    (conv2d_maxpool2d_forward, (X[0], W, B), {}), (conv2d_maxpool2d_forward, (X, W, B[:3]), {}),
    (conv2d_maxpool2d_forward, (X, W, B), dict(pool_size=5)), (conv2d_maxpool2d_forward, (X, W, B), dict(pool_size=24)),
    (conv2d_maxpool2d_backward, (DY[:1], ARGMAX, X, W), {}), (conv2d_maxpool2d_backward, (DY, ARGMAX[:1], X, W), {}),
    (conv2d_maxpool2d_backward, (DY, ARGMAX.astype(float), X, W), {}), (conv2d_maxpool2d_backward, (DY, ARGMAX + 3, X, W), {}),
    (conv2d_maxpool2d_backward, (DY, ARGMAX + 254, X, W), {}),
])
def test_errors_are_those_of_the_cpu(function, arrays, options):
    with pytest.raises((TypeError, ValueError, IndexError)) as on_cpu:
        function(*arrays, **options)
    with pytest.raises(type(on_cpu.value)) as on_gpu:
        function(*map(to_device, arrays), **options)
    # Both say what they got, and that is another class here.
    assert str(on_gpu.value).replace(type(to_device(X)).__name__, "ndarray") == str(on_cpu.value)
