"""Convolution on a simulated GPU: equal to the CPU's, in every bit."""
import inspect

import numpy as np
import pytest

from nbcnn.kernels import conv2d_backward, conv2d_forward, cuda
from nbcnn.kernels.arguments import conv_size, pair
from nbcnn.kernels.cuda import buffer, conv2d, gradients, to_device, to_host
from nbcnn.kernels.cuda.compat import Launch, transposed

import oracles
from arrays import equal, integers, mostly_float32

pytestmark = pytest.mark.sim

GEOMETRIES = [      # shapes of x and w, options
    ((2, 3, 6, 5), (4, 3, 3, 2), dict(stride=(2, 3), padding=(1, 0))),
    ((1, 2, 7, 6), (5, 2, 3, 3), dict(padding=1)),                              # an odd number of rows, computed in pairs
    ((1, 2, 9, 8), (3, 2, 2, 3), dict(padding=(1, 2), dilation=(2, 1))),
    ((3, 2, 4, 4), (2, 2, 3, 3), dict(stride=2, padding=2, dilation=2)),        # only every other pixel is read
    ((1, 1, 7, 8), (2, 1, 2, 2), dict(stride=(3, 4))),                          # pixels that no tap reads
    ((1, 2, 2, 3), (2, 2, 1, 2), dict(padding=(2, 3))),                         # more padding than kernel
    ((1, 3, 5, 4), (9, 3, 4, 2), dict(stride=(1, 2), padding=(2, 1))),
    ((1, 2, 2, 8), (1, 2, 2, 5), dict(stride=(1, 2), padding=(0, 3), dilation=(1, 2))),
    ((2, 5, 3, 4), (9, 5, 1, 1), {}),
    ((1, 1, 6, 5), (2, 1, 9, 9), dict(padding=4)),                              # more taps than one piece of code has
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((0, 2, 4, 4), (3, 2, 3, 3), dict(padding=1)),
]


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """New memory is full of NaN: what is not written shows."""
    def garbage(shape, dtype):
        return to_device(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 77, dtype))
    for module, name in ((buffer, "allocate"), (buffer, "empty"), (gradients, "allocate")):
        monkeypatch.setattr(module, name, garbage)


def expected(dy, x, w, b, stride=1, padding=0, dilation=1):
    """(y, dx, dw, db): float32 by the CPU kernels, float64 by NumPy, which needs no compiling."""
    if x.dtype == np.float32:
        options = dict(stride=stride, padding=padding, dilation=dilation)
        return conv2d_forward(x, w, b, **options), *conv2d_backward(dy, x, w, **options)
    options = [option if isinstance(option, tuple) else (option, option) for option in (stride, padding, dilation)]
    return oracles.conv2d_forward(x, w, b, *options), *oracles.conv2d_backward(dy, x, w, *options)


def numbers(dtype, x_shape, w_shape, stride=1, padding=0, dilation=1):
    """dy, x, w, b for a geometry."""
    size = conv_size(x_shape[2:], w_shape[2:], *(pair(option, "", 0) for option in (stride, padding, dilation)), "x")
    return integers(0, (x_shape[0], w_shape[0], *size), x_shape, w_shape, w_shape[0], dtype=dtype)


def check(dtype, x_shape, w_shape, options):
    arrays = numbers(dtype, x_shape, w_shape, **options)
    y, *gradients = expected(*arrays, **options)
    dy, x, w, b = map(to_device, arrays)
    result = conv2d_forward(x, w, b, **options)
    assert equal(to_host(result), y)
    results = conv2d_backward(dy, x, w, **options)
    for name, a, e in zip(("dx", "dw", "db"), results, gradients, strict=True):
        assert equal(to_host(a), e), name


@pytest.mark.parametrize("dtype, geometry", mostly_float32(GEOMETRIES))
def test_equals_cpu(dtype, geometry):
    check(dtype, *geometry)


@pytest.mark.parametrize("x_shape, w_shape, options", [
    ((2, 3, 4, 5), (5, 3, 3, 2), dict(padding=(1, 0))),
    ((1, 3, 5, 6), (5, 3, 2, 2), dict(stride=(1, 2), padding=(0, 1), dilation=(2, 1))),
])
@pytest.mark.parametrize("tile", [      # rows, columns of cells, groups of outputs, outputs of a thread, channels at a time
    (1, 1, 1, 4, 2), (1, 2, 2, 4, 3), (2, 1, 1, 8, 1)])
def test_blocks_of_a_correlation(monkeypatch, tile, x_shape, w_shape, options):
    """Several blocks along rows, columns and outputs, the last ones cut off, and channels in several turns."""
    monkeypatch.setattr(conv2d, "correlation_tile", lambda *_: tile)
    check(np.float32, x_shape, w_shape, options)


@pytest.mark.parametrize("options", [dict(padding=(1, 0)), dict(stride=(1, 2), padding=(0, 1), dilation=(2, 1))])
@pytest.mark.parametrize("tile, parts", [      # channels, columns of taps of a thread, groups of outputs, its outputs, rows
    ((2, 1, 1, 4, 1), 1), ((3, 3, 1, 4, 4), 2), ((3, 1, 1, 8, 2), 5), ((1, 3, 2, 4, 3), 3)])
def test_blocks_of_a_weight_gradient(monkeypatch, tile, parts, options):
    """Several blocks along channels and outputs, the last ones cut off; rows in several turns; parts that end within an image."""
    monkeypatch.setattr(conv2d, "backward_weight_tile", lambda *_: tile)
    monkeypatch.setattr(conv2d, "MOST_PARTS", parts)
    x_shape, w_shape = (3, 3, 5, 4), (5, 3, 2, 3)
    dy, x, w, b = numbers(np.float32, x_shape, w_shape, **options)
    dx, dw, db = conv2d_backward(*map(to_device, (dy, x, w)), **options, need_dx=False)
    _, _, dw_expected, db_expected = expected(dy, x, w, b, **options)
    assert dx is None and equal(to_host(dw), dw_expected) and equal(to_host(db), db_expected)


def test_parts():
    """Partial sums: neither more than strips of rows in all images, nor than MOST_PARTS, nor of more than MOST_SUMS numbers."""
    for C, n in ((4, 0), (4, 1), (4, 7), (4, 500), (256, 3), (256, 500)):
        operation = cuda.Conv2d((C, 6, 4), (C, 6, 4), (3, 3), (1, 1), (1, 1), (1, 1), np.float32)
        strips, parts = n * -(-6 // operation.weight_tile()[-1]), operation.parts(n)
        assert 1 <= parts <= max(1, min(strips, conv2d.MOST_PARTS)) and (parts == 1 or parts * 9 * C * C <= conv2d.MOST_SUMS)
        assert parts == 1 or parts > strips // 2 or 2 * parts > min(conv2d.MOST_PARTS, conv2d.MOST_SUMS // (9 * C * C)), (C, n)


def test_without_a_bias_and_without_dx():
    dy, x, w, b = numbers(np.float64, (1, 2, 4, 3), (3, 2, 3, 3), padding=1)
    assert equal(to_host(conv2d_forward(to_device(x), to_device(w), padding=1)), expected(dy, x, w, 0 * b, padding=1)[0])
    dx, *others = conv2d_backward(*map(to_device, (dy, x, w)), padding=1, need_dx=False)
    assert dx is None and all(map(equal, map(to_host, others), expected(dy, x, w, b, padding=1)[2:]))


def test_nothing_but_the_outputs_is_written():
    """Buffers for three images, of which two are computed."""
    dy, x, w, b = numbers(np.float32, (3, 2, 5, 4), (3, 2, 3, 2), stride=(2, 1), padding=(1, 0))
    y, dx, *_ = expected(dy[:2], x[:2], w, b, stride=(2, 1), padding=(1, 0))
    operation = cuda.Conv2d(x.shape[1:], dy.shape[1:], (3, 2), (2, 1), (1, 0), (1, 1), x.dtype)
    flat = cuda.flat_weight(to_device(w)), to_device(b)
    read = [cuda.Buffer.holding(to_device(a)) for a in (dy, x)]
    written = [cuda.Buffer.holding(to_device(np.full_like(a, 99))) for a in (dy, x)]
    targets = cuda.Gradients(operation, 2, (w.size, len(w)), x.dtype).targets
    cuda.run(operation.forward(2, written[0], read[1], flat))
    cuda.run(operation.backward(2, written[1], targets, *read, None, flat, (False, False)))
    for result, wanted in zip(written, (y, dx), strict=True):
        assert equal(to_host(result.view(2)), wanted) and (to_host(result.view(3))[2] == 99).all()
    for array, values in zip((read[0].view(3), read[1].view(3), *flat), (dy, x, w.transpose(0, 2, 3, 1).ravel(), b), strict=True):
        assert equal(to_host(array), values)


def test_strided_arrays():
    dy, x, w, b = numbers(np.float32, (2, 3, 4, 5), (2, 3, 3, 2), padding=1)

    def strided(a):     # the axes backwards in memory
        return transposed(to_device(a.transpose().copy()), tuple(range(a.ndim))[::-1])
    y, *gradients = expected(dy, x, w, b, padding=1)
    assert not strided(x).is_c_contiguous()
    assert equal(to_host(conv2d_forward(strided(x), strided(w), to_device(b), padding=1)), y)
    assert all(map(equal, map(to_host, conv2d_backward(strided(dy), strided(x), strided(w), padding=1)), gradients))


def test_infinities_and_nan():
    """Each output that reads one, and no other."""
    dy, x, w, b = numbers(np.float32, (2, 3, 4, 5), (2, 3, 3, 2), padding=1)
    x[0, 1, 2, 3], x[1, 0, 0, 0], dy[0, 1, 1, 1] = np.nan, np.inf, np.nan
    w[w == 0] = 1       # 0 times infinity
    assert equal(to_host(conv2d_forward(*map(to_device, (x, w, b)), padding=1)), expected(dy, x, w, b, padding=1)[0])
    x[np.isinf(x)] = 1
    got = conv2d_backward(*map(to_device, (dy, x, w)), padding=1)
    oracle = oracles.conv2d_backward(dy, x, w, (1, 1), (1, 1), (1, 1))
    assert equal(to_host(got[0]), oracle[0]) and equal(to_host(got[1]), oracle[1]) and equal(to_host(got[2]), oracle[2])


def test_no_blocks():
    """A GPU refuses a launch without blocks: an empty batch launches nothing."""
    class Refusing:
        def __getitem__(self, configuration):
            raise RuntimeError(f"launched with {configuration}")
    Launch(Refusing(), (0, 3), 32)()
    with pytest.raises(RuntimeError, match="launched with"):
        Launch(Refusing(), (1, 3), 32)()


def test_tiles_fit_into_a_block(monkeypatch):
    """Shared memory and threads within what any GPU has, for geometries up to those of large networks; in warps, as on a GPU."""
    monkeypatch.setattr(conv2d, "WARP", 32)
    rng, refused = np.random.default_rng(0), []
    for _ in range(4_000):
        C, O, H, W, KH, KW = (int(2 ** rng.uniform(0, high)) for high in (9, 9, 8, 8, 3.5, 3.5))
        stride, dilation, padding = (tuple(rng.integers(low, high, 2).tolist()) for low, high in ((1, 4), (1, 3), (0, 5)))
        padding = tuple(max(p, -(-(d * (k - 1) + 1 - n) // 2))
                        for p, d, k, n in zip(padding, dilation, (KH, KW), (H, W), strict=True))
        size = conv_size((H, W), (KH, KW), stride, padding, dilation, "x")
        itemsize = int(rng.choice([4, 8]))
        operation = cuda.Conv2d((C, H, W), (O, *size), (KH, KW), stride, padding, dilation, np.dtype(f"f{itemsize}"))
        shapes = cuda.Buffer(0, (O, *size), operation.dtype), cuda.Buffer(0, (C, H, W), operation.dtype)
        try:
            targets = cuda.Gradients(operation, 1, (1, 1), operation.dtype).targets
            calls = operation.forward(1, *shapes, (None, None)) + operation.backward(
                1, shapes[1], targets, shapes[0], shapes[1], None, (None, None), ())
        except ValueError as error:
            refused.append(str(error))
            continue
        for call in calls:
            sizes = inspect.getclosurevars(call.kernel.kernel.fn).nonlocals
            shared = sum(sizes.get(name, 0) for name in ("X_SIZE", "W_SIZE", "FLOATS")) * itemsize + sizes.get("WON", 0)
            assert 0 < shared <= 48 * 1024 and 1 <= call.kernel.block <= 1024, (shared, call.kernel.block, operation.__dict__)
    assert len(refused) < 200 and all("fit into a GPU's shared memory" in message for message in refused), refused


def test_kernels_and_images_that_do_not_fit():
    with pytest.raises(ValueError, match=r"w: expected kernels of which one channel fits into a GPU's shared memory, got 60x60"):
        conv2d.correlation_tile((1, 60, 60), (1, 1, 1), (1, 1), False, (60, 60), ((0, 1, 1), (0, 1, 1)), 4)
    with pytest.raises(ValueError, match=r"x: expected images of which a few rows fit .*, got 9000 columns"):
        conv2d.backward_weight_tile((1, 1, 9000), (1, 1, 9000), (1, 1), (1, 1), ((0, 1, 1), (0, 1, 1)), 8)
    with pytest.raises(ValueError, match=r"w: expected kernels of at most 1024 columns.* got 1025"):
        conv2d.backward_weight_tile((1, 1, 1026), (1, 1, 2), (1, 1), (1, 1025), ((0, 1, 1), (0, 1, 1)), 4)


DY, X, W, B = (np.ones(shape, np.float32) for shape in ((2, 4, 4, 3), (2, 3, 5, 4), (4, 3, 2, 2), 4))


@pytest.mark.parametrize("function, arrays", [(conv2d_forward, dict(x=X, w=W, b=B)), (conv2d_backward, dict(dy=DY, x=X, w=W))])
def test_all_or_none_on_the_device(function, arrays):
    for name in arrays:
        others = ", ".join(other for other in arrays if other != name)
        with pytest.raises(TypeError, match=f"^{name}: expected device arrays, as {others} is one; got NumPy"):
            function(**{other: a if other == name else to_device(a) for other, a in arrays.items()})
        with pytest.raises(TypeError, match=f"^{others}: expected device arrays, as {name} is one; got NumPy"):
            function(**{other: to_device(a) if other == name else a for other, a in arrays.items()})


@pytest.mark.parametrize("function, arrays", [
    (conv2d_forward, (X[0], W, B)), (conv2d_forward, (X, W[:, :2], B)), (conv2d_forward, (X, W, B[:3])),
    (conv2d_forward, (X, W.astype(np.float64), B)), (conv2d_forward, (X.astype(int), W, B)), (conv2d_forward, (X[:, :, :1], W, B)),
    (conv2d_forward, (X, W[:0], B)), (conv2d_backward, (DY[:1], X, W)), (conv2d_backward, (DY[:, :, :3], X, W)),
    (conv2d_backward, (DY.astype(np.float64), X, W)),
])
def test_errors_are_those_of_the_cpu(function, arrays):
    with pytest.raises((TypeError, ValueError)) as on_cpu:
        function(*arrays)
    with pytest.raises(type(on_cpu.value)) as on_gpu:
        function(*map(to_device, arrays))
    assert str(on_gpu.value).replace("FakeCUDAArray", "ndarray") == str(on_cpu.value)
