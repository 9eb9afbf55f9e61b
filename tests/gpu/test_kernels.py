"""The public kernels on a GPU, on the network's shapes: equal to the CPU's on small integers, near them on other numbers."""
import numpy as np
import pytest

from nbcnn import kernels

from activations import each
from arrays import integers

pytestmark = pytest.mark.gpu

LAYERS = ["conv1", "conv2", "conv3"]
# Rounding errors of random signs make a float32 sum of up to 16,384 terms wrong by about 2^-25.5 * sqrt(16,384) = 3e-6 of its size.
TOLERANCE = 1e-5
FEW = 2e-6      # and of results with some twenty roundings


def run(cuda, function, *arguments, **options):
    """What the CPU gives and what the GPU gives, two lists of arrays; the GPU the same bits again."""
    def listed(results):
        return list(results) if isinstance(results, tuple) else [results]

    def on_gpu():
        return [None if r is None else cuda.to_host(r) for r in listed(function(*map(cuda.to_device, arguments), **options))]

    expected, got, again = listed(function(*arguments, **options)), on_gpu(), on_gpu()
    assert [None if r is None else r.tobytes() for r in got] == [None if r is None else r.tobytes() for r in again]
    return expected, got


def assert_equal(results):
    for expected, got in zip(*results, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            assert expected.dtype == got.dtype and expected.shape == got.shape
            assert (expected == got).all()


def assert_near(cuda, function, *arguments, tolerance=TOLERANCE, **options):
    """Against the CPU in float64: the size of the difference beside the result's own."""
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arguments]
    exact = function(*wide, **options)
    exact = exact if isinstance(exact, tuple) else [exact]
    for expected, got in zip(exact, run(cuda, function, *arguments, **options)[1], strict=True):
        assert got.dtype == np.float32 and got.shape == np.shape(expected)
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("options", [
    dict(padding=2), dict(padding=1, stride=2), dict(padding=(2, 1), stride=(1, 3), dilation=(2, 1))])
@pytest.mark.parametrize("layer", LAYERS)
def test_conv2d(cuda, sizes, layer, options):
    x, w = sizes.convolutions[layer]
    y = kernels.conv2d_forward(np.zeros(x, np.float32), np.zeros(w, np.float32), **options).shape
    x, w, b, dy = integers(0, x, w, w[:1], y)
    assert_equal(run(cuda, kernels.conv2d_forward, x, w, b, **options))
    assert_equal(run(cuda, kernels.conv2d_forward, x, w, **options))
    assert_equal(run(cuda, kernels.conv2d_backward, dy, x, w, **options))
    assert_equal(run(cuda, kernels.conv2d_backward, dy, x, w, need_dx=False, **options))
    x, w, b, dy = normal(1, x.shape, w.shape, b.shape, dy.shape)
    assert_near(cuda, kernels.conv2d_forward, x, w, b, **options)
    assert_near(cuda, kernels.conv2d_backward, dy, x, w, **options)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_conv2d_maxpool2d(cuda, sizes, layer, relu):
    """Small integers tie often. Other numbers are only added up: which of two nearly equal sums wins, rounding decides."""
    (x, w), options = sizes.convolutions[layer], dict(padding=2, relu=relu)
    x, w, b = integers(2, x, w, w[:1])
    expected, got = run(cuda, kernels.conv2d_maxpool2d_forward, x, w, b, **options)
    assert_equal((expected, got))
    y, cells = expected
    dy, = integers(3, y.shape)
    assert_equal(run(cuda, kernels.conv2d_maxpool2d_backward, dy, cells, x, w, **options))
    assert_equal(run(cuda, kernels.conv2d_maxpool2d_backward, dy, cells, x, w, need_dx=False, **options))
    x, w, b, dy = normal(4, x.shape, w.shape, b.shape, dy.shape)
    assert_near(cuda, lambda *arguments: kernels.conv2d_maxpool2d_forward(*arguments, **options)[0], x, w, b)
    assert_near(cuda, kernels.conv2d_maxpool2d_backward, dy, cells, x, w, **options)


@pytest.mark.parametrize("options", [dict(kernel_size=2), dict(kernel_size=3, stride=2, padding=1, ceil_mode=True)])
@pytest.mark.parametrize("layer", LAYERS)
def test_maxpool2d(cuda, sizes, layer, options):
    x, = integers(5, sizes.convolutions[layer][0])
    x.flat[::17] = np.nan
    size = {"kernel_size": options["kernel_size"]}
    rest = {name: value for name, value in options.items() if name not in size}
    (y, argmax), (on_gpu, argmax_on_gpu) = run(cuda, lambda x: kernels.maxpool2d_forward(x, *size.values(), **rest), x)
    assert np.array_equal(y, on_gpu, equal_nan=True) and np.isnan(y).any() and not np.isnan(y).all()
    assert_equal(([argmax], [argmax_on_gpu]))
    dy, = integers(6, y.shape)
    assert_equal(run(cuda, lambda dy, argmax: kernels.maxpool2d_backward(dy, argmax, x.shape), dy, argmax))


@pytest.mark.parametrize("options", [
    dict(kernel_size=2), dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(kernel_size=3, stride=1, padding=1, count_include_pad=False), dict(kernel_size=2, stride=3, divisor_override=8)])
@pytest.mark.parametrize("layer", LAYERS)
def test_avgpool2d(cuda, sizes, layer, options):
    """Any numbers: both sides add up in the same order."""
    shape = sizes.convolutions[layer][0]
    x, = normal(12, shape)
    dy, = normal(13, kernels.avgpool2d_forward(x, **options).shape)
    assert_equal(run(cuda, kernels.avgpool2d_forward, x, **options))
    assert_equal(run(cuda, kernels.avgpool2d_backward, dy, x_shape=shape, **options))
    dy, = normal(14, (*shape[:2], 1, 1))
    assert_equal(run(cuda, kernels.global_avgpool2d_forward, x))
    assert_equal(run(cuda, kernels.global_avgpool2d_backward, dy, x_shape=shape))


@each
def test_activations(cuda, sizes, case):
    """Those without rounding are equal; the others near, also element by element where y is small."""
    forward, backward = (lambda *a, way=way: case.public(way)(*a, *case.options) for way in ("forward", "backward"))
    x, dy = integers(7, *[sizes.convolutions["conv2"][0]] * 2)
    if case.exact:
        assert_equal(run(cuda, forward, x))
        assert_equal(run(cuda, backward, dy, {"x": x, "y": forward(x)}[case.reads]))
        return
    x, dy = normal(15, x.shape, x.shape)
    assert_near(cuda, forward, x, tolerance=FEW)
    assert_near(cuda, backward, dy, {"x": x, "y": forward(x)}[case.reads], tolerance=FEW)
    ends = np.array([0, -0.0, -1e-40, 1e-40, -6, -20, 20, -90, 90, -1e20, 1e20, np.inf, -np.inf, np.nan], np.float32)
    (expected,), (got,) = run(cuda, forward, ends)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-37)       # x^2/2 = 18, rounded; a GPU's erfc may flush denormals
    (expected,), (got,) = run(cuda, backward, np.ones_like(ends), {"x": ends, "y": forward(ends)}[case.reads])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", ["linear1", "linear2"])
def test_linear(cuda, sizes, layer):
    x, w = sizes.linears[layer]
    x, w, b, dy = integers(8, x, w, w[:1], (x[0], w[0]))
    assert_equal(run(cuda, kernels.linear_forward, x, w, b))
    assert_equal(run(cuda, kernels.linear_forward, x, w))
    assert_equal(run(cuda, kernels.linear_backward, dy, x, w))
    x, w, b, dy = normal(9, x.shape, w.shape, b.shape, dy.shape)
    assert_near(cuda, kernels.linear_forward, x, w, b)
    assert_near(cuda, kernels.linear_backward, dy, x, w)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(cuda, sizes, reduction):
    """L1 and MSE of integers are exact where nothing is divided by a number that is no power of two; logarithms are near."""
    shape = sizes.batch, 10
    x, t = integers(10, shape, shape)
    for name in ("l1", "mse"):
        forward, backward = (getattr(kernels, f"{name}_loss_{way}") for way in ("forward", "backward"))
        if reduction == "mean":
            assert_near(cuda, forward, x, t, reduction=reduction, tolerance=FEW)
            assert_near(cuda, backward, x, t, reduction=reduction, tolerance=FEW)
        else:
            assert_equal(run(cuda, forward, x, t, reduction=reduction))
            if reduction == "sum":      # else the upstream gradient is an array
                assert_equal(run(cuda, backward, x, t, reduction=reduction))
    rng = np.random.default_rng(11)
    (logits,), (probabilities, targets) = normal(11, shape), rng.uniform(0.05, 0.95, (2, *shape)).astype(np.float32)
    labels, classes = rng.integers(0, 10, sizes.batch), (targets / targets.sum(1, keepdims=True)).astype(np.float32)
    for name, *arguments in (("bce_loss", probabilities, targets), ("bce_with_logits", logits, targets),
                             ("cross_entropy", logits, labels), ("cross_entropy", logits, classes)):
        forward, backward = (getattr(kernels, f"{name}_{way}") for way in ("forward", "backward"))
        assert_near(cuda, forward, *arguments, reduction=reduction, tolerance=FEW)
        if reduction != "none":
            assert_near(cuda, backward, *arguments, reduction=reduction, tolerance=FEW)
    weight = rng.uniform(0.5, 2, 10).astype(np.float32)
    for way in ("forward", "backward"):
        if way == "backward" and reduction == "none":
            continue
        function = getattr(kernels, f"cross_entropy_{way}")
        assert_near(cuda, lambda x, t, w, f=function: f(x, t, weight=w, label_smoothing=0.125, reduction=reduction), logits, labels,
                    weight, tolerance=FEW)
    assert_near(cuda, lambda x: kernels.softmax(x), logits, tolerance=FEW)
    assert_near(cuda, lambda x: kernels.log_softmax(x), logits, tolerance=FEW)


def test_update(cuda, sizes):
    """Powers of two, so that nothing is rounded: three steps, the first without a momentum before it."""
    size = int(np.prod(sizes.convolutions["conv2"][1]))
    param, *grads = np.random.default_rng(12).integers(-8, 9, (4, size)).astype(np.float32)
    buffer = np.full(size, np.nan, np.float32)
    moved = cuda.to_device(param), cuda.to_device(buffer)
    options = dict(lr=0.25, momentum=0.5, weight_decay=0.125, nesterov=True)
    for step, grad in enumerate(grads):
        kernels.sgd_step(param, grad, buffer, first=step == 0, **options)
        kernels.sgd_step(moved[0], cuda.to_device(grad), moved[1], first=step == 0, **options)
        assert_equal(([param, buffer], [cuda.to_host(a) for a in moved]))


def test_images(cuda, sizes, pictures):
    drawn, rng = pictures(3 * sizes.batch).images, np.random.default_rng(13)
    index, flip = rng.integers(0, len(drawn), sizes.batch), np.arange(sizes.batch) % 2 == 0
    channels = drawn.shape[1]
    table = kernels.normalization_table([0.4] * channels, [0.3] * channels, channels, np.float32)
    for shift in ((0, 0), (1, -2), (-2, 1)):
        out = np.empty((sizes.batch, *drawn.shape[1:]), np.float32)
        on_gpu = cuda.to_device(np.full_like(out, np.nan))
        kernels.load_images(out, drawn, index, flip, shift, table)
        kernels.load_images(on_gpu, *map(cuda.to_device, (drawn, index, flip)), shift, cuda.to_device(table))
        assert_equal(([out], [cuda.to_host(on_gpu)]))
