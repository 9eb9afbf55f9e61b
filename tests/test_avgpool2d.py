"""Average pooling: frozen values, oracle, gradients, contract, errors, parity with PyTorch; and the layers in networks."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nbcnn
from nbcnn.kernels import cpu
from nbcnn.kernels.avgpool2d import (
    avgpool2d_backward,
    avgpool2d_forward,
    global_avgpool2d_backward,
    global_avgpool2d_forward,
)
from nbcnn.kernels.cpu import avgpool2d as kernels
from nbcnn.kernels.cpu.launch import run

import oracles
from arrays import awkward, equal, filled_buffer, in_both_dtypes
from gradients import check_directional_gradients
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
# Drawn windows have up to 5 x 5 cells: a multiple of the square of lcm(1, ..., 5) is divided by their number without rounding.
DIVISIBLE = 60 ** 2


@st.composite
def geometries(draw):
    """A shape of x and the options of a pooling with at least one pixel of output."""
    def pairs(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride = pairs(1, 5), pairs(1, 6)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(max(1, k - 2 * p) + extra for k, p, extra in zip(kernel, padding, pairs(0, 9), strict=True))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": draw(st.booleans()),
               "count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from([None, None, 1, 3, 8]))}
    return (draw(st.integers(0, 3)), draw(st.integers(1, 40)), *size), options


# x and y of 8 channels and 8x8 and 4x4 pixels: in both there are gaps between the samples.
GAPS = (3, 8, 8, 8), {"kernel_size": (2, 3), "stride": (2, 2), "padding": (0, 1), "ceil_mode": False, "count_include_pad": True,
                      "divisor_override": None}


def images(seed, shape, dtype):
    """Numbers whose sums round, so that another order shows; in half of the draws also infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    if seed % 2:
        for value in (-np.inf, np.inf, np.nan):
            x[rng.random(shape) < 0.03] = value
    return x


def upstream(seed, shape, dtype):
    return np.random.default_rng([seed, 1]).standard_normal(shape).astype(dtype)


def divisible(seed, shape, dtype=np.float64):
    return DIVISIBLE * np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


def operation_of(shape, options, y_shape, dtype):
    names = "kernel_size", "stride", "padding", "count_include_pad", "divisor_override"
    return cpu.AvgPool2d(shape[1:], *(options[name] for name in names), y_shape[1:], dtype)


seeds = st.integers(0, 2**32 - 1)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand. Ordinary windows; a NaN and an infinity stay in theirs.
    nan, inf = np.nan, np.inf
    x = np.array([[1, 2, 5, 0], [4, 3, 0, 6], [nan, 9, -inf, 1], [2, 1, 7, 1]], dtype).reshape(1, 1, 4, 4)
    y = avgpool2d_forward(x, 2)
    assert equal(y, np.array([[[[2.5, 2.75], [nan, -inf]]]], dtype))
    dx = avgpool2d_backward(np.array([[[[1, -2], [4, 8]]]], dtype), x.shape, 2)
    assert equal(dx, np.array([[[[.25, .25, -.5, -.5]] * 2 + [[1, 1, 2, 2]] * 2]], dtype))
    # By hand: three windows of three cells over 3 6 12, padded by one cell to each side; they hold 0 3 6, 3 6 12 and 6 12 0.
    x, dy, options = np.array([[[[3, 6, 12]]]], dtype), np.array([[[[6, -12, 30]]]], dtype), dict(stride=1, padding=(0, 1))
    for more, means, shares in (({}, [3, 7, 6], [2 - 4, 2 - 4 + 10, -4 + 10]),
                                ({"count_include_pad": False}, [4.5, 7, 9], [3 - 4, 3 - 4 + 15, -4 + 15]),
                                ({"divisor_override": 2}, [4.5, 10.5, 9], [3 - 6, 3 - 6 + 15, -6 + 15])):
        assert avgpool2d_forward(x, (1, 3), **options, **more).tolist() == [[[means]]]
        assert avgpool2d_backward(dy, x.shape, (1, 3), **options, **more).tolist() == [[[shares]]]
    # By hand: of the windows 0 2 4, 4 6 8 and 8 0 _ over 2 4 6 8, padded, the last ends outside: only with ceil_mode it counts.
    x, options = np.array([[[[2], [4], [6], [8]]]], dtype), dict(stride=(2, 1), padding=(1, 0))
    for more, means in (({}, [2, 6]), ({"ceil_mode": True}, [2, 6, 4]), ({"ceil_mode": True, "divisor_override": 4}, [1.5, 4.5, 2]),
                        ({"ceil_mode": True, "count_include_pad": False}, [3, 6, 8])):
        assert avgpool2d_forward(x, (3, 1), **options, **more).ravel().tolist() == means
    # By hand: 1 + 2 + ... + 6 = 21.
    x = np.arange(1, 7, dtype=dtype).reshape(1, 1, 2, 3)
    assert global_avgpool2d_forward(x).tolist() == [[[[3.5]]]]
    assert global_avgpool2d_backward(np.array([[[[12]]]], dtype), x.shape).tolist() == [[[[2, 2, 2], [2, 2, 2]]]]


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries(), seed=seeds)
def test_equals_oracle(dtype, geometry, seed):
    """With equal bits: both add up in the same order."""
    shape, options = geometry
    x = images(seed, shape, dtype)
    with np.errstate(invalid="ignore"):         # inf - inf
        expected = oracles.avgpool2d_forward(x, *options.values())
    assert equal(avgpool2d_forward(x, **options), expected)
    dy = upstream(seed, expected.shape, dtype)
    assert equal(avgpool2d_backward(dy, shape, **options), oracles.avgpool2d_backward(dy, shape, *options.values()))


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 9), st.integers(1, 9)), seed=seeds)
def test_global_equals_oracle(dtype, shape, seed):
    """A window that is the image; the sum in the image's own order."""
    x, dy = images(2 * (seed // 2), shape, dtype), upstream(seed, (*shape[:2], 1, 1), dtype)
    y = global_avgpool2d_forward(x)
    total = np.add.accumulate(x.reshape(*shape[:2], shape[2] * shape[3]), -1)[..., -1]
    assert equal(y, (total / dtype(shape[2] * shape[3]))[..., None, None])
    assert equal(global_avgpool2d_backward(dy, shape), np.broadcast_to(dy / dtype(shape[2] * shape[3]), shape))


@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(), seed=seeds)
def test_backward_is_the_adjoint(dtype, geometry, seed):
    """<dy, A x> = <A' dy, x>, exactly: sums of at most 3 * 40 * 14 * 14 products below 25 * (9 * DIVISIBLE)**2 are below 2**53."""
    shape, options = geometry
    x = divisible(seed, shape, dtype)
    y = avgpool2d_forward(x, **options)
    dy = divisible([seed, 1], y.shape, dtype)
    dx = avgpool2d_backward(dy, shape, **options)
    assert (dy.astype(np.float64) * y).sum() == (dx * x.astype(np.float64)).sum()


@given(geometry=geometries(), seed=seeds)
def test_gradient_is_the_jacobian(geometry, seed):
    """Central differences of every element, exactly: steps are divisible as well."""
    (_, _, H, W), options = geometry
    x = divisible(seed, (1, 2, H, W))
    dy = divisible([seed, 1], avgpool2d_forward(x, **options).shape)
    dx = avgpool2d_backward(dy, x.shape, **options)
    steps = DIVISIBLE * np.eye(x.size).reshape(-1, *x.shape[1:])            # a batch with one cell moved in each image
    above, below = avgpool2d_forward(x + steps, **options), avgpool2d_forward(x - steps, **options)
    assert ((dy * (above - below)).sum((1, 2, 3)) / (2 * DIVISIBLE) == dx.ravel()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=GAPS, seed=0)
@given(geometry=geometries(), seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN; what lies around what is read are other numbers."""
    shape, options = geometry
    N = shape[0]
    x = images(2 * (seed // 2), shape, dtype)                     # without NaN, which marks what is not written
    expected = avgpool2d_forward(x, **options)
    dy = upstream(seed, expected.shape, dtype)
    expected_dx = avgpool2d_backward(dy, shape, **options)
    operation = operation_of(shape, options, expected.shape, dtype)
    operation.reserve(N + 1)

    y, dx = (filled_buffer(N, a.shape[1:], dtype, np.nan) for a in (expected, x))
    x, dy = (filled_buffer(N, a.shape[1:], dtype, 99, a) for a in (x, dy))
    before = x.array.copy(), dy.array.copy()
    run(operation.forward(N, y, x, ()))
    saved = y.array.copy()
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    assert operation.backward(N, None, (), dy, x, y, (), ()) == []               # nothing asked for
    assert equal(y.view(N), expected) and equal(dx.view(N), expected_dx)
    for written in (y, dx):
        assert np.isnan(written.array).sum() == written.zeros - written.view(N).size
    assert equal(x.array, before[0]) and equal(dy.array, before[1]) and equal(y.array, saved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    x, options = images(1, (2, 3, 9, 8), dtype), dict(stride=2, padding=1)
    y = avgpool2d_forward(x, 3, **options)
    dy, mean = upstream(1, y.shape, dtype), upstream(2, (2, 3, 1, 1), dtype)

    assert equal(avgpool2d_forward(awkward(x), 3, **options), y)
    assert equal(avgpool2d_backward(awkward(dy), x.shape, 3, **options), avgpool2d_backward(dy, x.shape, 3, **options))
    assert equal(global_avgpool2d_forward(awkward(x)), global_avgpool2d_forward(x))
    assert equal(global_avgpool2d_backward(awkward(mean), x.shape), global_avgpool2d_backward(mean, x.shape))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 0, 4, 4), (1, 1, 1, 1)])
def test_smallest_shapes(shape):
    y = avgpool2d_forward(np.ones(shape, np.float32), 1)
    assert equal(y, np.ones(shape, np.float32)) and equal(avgpool2d_backward(y, shape, 1), y)
    assert equal(global_avgpool2d_forward(y), np.ones((*shape[:2], 1, 1), np.float32))


@given(geometry=geometries(), seed=seeds)
def test_any_number_of_threads_gives_equal_bits(geometry, seed):
    shape, options = geometry
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    results = []
    for _ in one_and_all_threads():
        y = avgpool2d_forward(x, **options)
        results.append((y.tobytes(), avgpool2d_backward(upstream(seed, y.shape, np.float32), shape, **options).tobytes()))
    assert results[0] == results[1]


FORWARD = [
    ({"kernel_size": 0}, ValueError, "kernel_size: expected an int or a pair of ints >= 1, got 0"),
    ({"kernel_size": 1.5}, TypeError, "kernel_size: .*got 1.5"),
    ({"stride": (1, 0)}, ValueError, "stride: .*>= 1, got"),
    ({"padding": -1}, ValueError, "padding: .*>= 0, got -1"),
    ({"padding": 2}, ValueError, "padding: expected at most half the window"),
    ({"kernel_size": 2**33, "padding": 2**32}, ValueError, "kernel_size: expected an int <= 2147483647, got 8589934592"),
    ({"divisor_override": 2**63}, ValueError, "divisor_override: expected an int <= 2147483647, got 9223372036854775808"),
    ({"divisor_override": 0}, ValueError, "divisor_override: expected an int >= 1, got 0"),
    ({"divisor_override": 2.0}, TypeError, "divisor_override: expected an int >= 1, got 2.0"),
]


@pytest.mark.parametrize("options, error, message", [
    *FORWARD,
    ({"x": np.ones((1, 4, 4), np.float32)}, ValueError, r"x: expected shape \(N, C, H, W\), got shape \(1, 4, 4\)"),
    ({"x": np.ones((1, 1, 4, 4), int)}, TypeError, "x: expected a float32 or float64 array, got ndarray of dtype int64"),
    ({"kernel_size": 5}, ValueError, "^x: expected an output of at least 1x1, got 0x0 from an input of 4x4"),
])
def test_errors_of_forward(options, error, message):
    with pytest.raises(error, match=message):
        avgpool2d_forward(**{"x": np.ones((1, 1, 4, 4), np.float32), "kernel_size": 2} | options)


@pytest.mark.parametrize("options, error, message", [
    *FORWARD,
    ({"dy": np.ones((1, 2, 2), np.float32)}, ValueError, r"dy: expected shape \(N, C, OH, OW\), got shape"),
    ({"dy": np.ones((1, 1, 2, 2), int)}, TypeError, "dy: expected a float32 or float64 array"),
    ({"dy": np.ones((1, 1, 2, 1), np.float32)}, ValueError,
     r"dy: expected shape \(1, 1, 2, 2\), that of the output for x_shape, got shape \(1, 1, 2, 1\)"),
    ({"dy": np.ones((2, 1, 2, 2), np.float32)}, ValueError, r"dy: expected shape \(1, 1, 2, 2\), .* got shape \(2, 1, 2, 2\)"),
    ({"kernel_size": 5}, ValueError, "^x_shape: expected an output of at least 1x1, got 0x0 from an input of 4x4"),
    ({"x_shape": (1, 4, 4)}, ValueError, r"x_shape: expected four sizes \(N, C, H, W\), got \(1, 4, 4\)"),
    ({"x_shape": 4}, TypeError, r"x_shape: expected four sizes \(N, C, H, W\), got 4"),
    ({"x_shape": (1, 1, 4, 4.0)}, TypeError, "x_shape: expected an int >= 0, got 4.0"),
])
def test_errors_of_backward(options, error, message):
    with pytest.raises(error, match=message):
        avgpool2d_backward(**{"dy": np.ones((1, 1, 2, 2), np.float32), "x_shape": (1, 1, 4, 4), "kernel_size": 2} | options)


@pytest.mark.parametrize("call, error, message", [
    (lambda x: global_avgpool2d_forward(x[0]), ValueError, r"x: expected shape \(N, C, H, W\), got shape \(1, 4, 3\)"),
    (lambda x: global_avgpool2d_forward(x.astype(int)), TypeError, "x: expected a float32 or float64 array"),
    (lambda x: global_avgpool2d_forward(x[:, :, :0]), ValueError, "x: expected planes of at least 1x1, got 0x3"),
    (lambda x: global_avgpool2d_backward(x, x.shape), ValueError, r"dy: expected shape \(1, 1, 1, 1\), .* \(1, 1, 4, 3\)"),
    (lambda x: global_avgpool2d_backward(x, (1, 1, 4, 0)), ValueError, "x_shape: expected planes of at least 1x1, got 4x0"),
    (lambda x: global_avgpool2d_backward(x, (1, 4, 3)), ValueError, "x_shape: expected four sizes"),
    (lambda x: nbcnn.AvgPool2d("2"), TypeError, "kernel_size: .* got '2'"),
    (lambda x: nbcnn.AvgPool2d(2, divisor_override=-1), ValueError, "divisor_override: expected an int >= 1, got -1"),
    (lambda x: nbcnn.Sequential([nbcnn.AvgPool2d(2, padding=2)], input_shape=(1, 8, 8)), ValueError, "0: .*at most half"),
    (lambda x: nbcnn.Sequential([nbcnn.AvgPool2d(2)], input_shape=(8,)), ValueError,
     r"0: expected images \(N, C, H, W\), got \(N, 8\)"),
    (lambda x: nbcnn.Sequential([nbcnn.GlobalAvgPool2d()], input_shape=(8,)), ValueError,
     r"0: expected images \(N, C, H, W\), got \(N, 8\)"),
])
def test_errors_of_global_and_layers(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((1, 1, 4, 3), np.float32))


def test_float32_kernels_hold_no_double():
    x = np.ones((1, 2, 4, 4), np.float32)
    avgpool2d_backward(avgpool2d_forward(x, 2, divisor_override=3), x.shape, 2)
    assert not double_operations(kernels.avgpool2d_forward) and not double_operations(kernels.avgpool2d_backward)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(), seed=seeds, channels_last=st.booleans())
def test_equals_torch(dtype, geometry, seed, channels_last):
    """With equal bits on whole numbers, whose sums are exact, also where a mean rounds; and so does the layer, option by option."""
    import torch
    shape, options = geometry
    x = divisible(seed, shape, dtype) / DIVISIBLE
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensor = torch.from_numpy(x).contiguous(memory_format=layout).requires_grad_()
    expected = torch.nn.functional.avg_pool2d(tensor, **options)
    y = avgpool2d_forward(x, **options)
    assert equal(y, expected.detach().numpy())
    dy = divisible([seed, 1], y.shape, dtype) / DIVISIBLE
    expected.backward(torch.from_numpy(dy))
    assert equal(avgpool2d_backward(dy, shape, **options), tensor.grad.numpy())
    layer = nbcnn.AvgPool2d(**options)
    assert equal(nbcnn.Sequential([layer], dtype=dtype)(x), torch.nn.AvgPool2d(**layer.arguments)(tensor).detach().numpy())


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)), seed=seeds)
def test_global_equals_torch(dtype, shape, seed):
    """PyTorch adds up in another order: of whole numbers the same sum."""
    import torch
    x, dy = np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype), upstream(seed, (*shape[:2], 1, 1), dtype)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.AdaptiveAvgPool2d(1)(tensor)
    expected.backward(torch.from_numpy(dy))
    assert equal(global_avgpool2d_forward(x), expected.detach().numpy())
    assert equal(global_avgpool2d_backward(dy, shape), tensor.grad.numpy())


@example(geometry=((2, 3, 4, 6), {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True,
                                  "count_include_pad": False, "divisor_override": None}), seed=0)     # all of them matter
@given(geometry=geometries(), seed=seeds)
def test_layers_compute_what_the_functions_do(geometry, seed):
    shape, options = geometry
    x = images(seed, shape, np.float32)
    assert equal(nbcnn.Sequential([nbcnn.AvgPool2d(**options)])(x), avgpool2d_forward(x, **options))
    assert equal(nbcnn.Sequential([nbcnn.GlobalAvgPool2d()])(x), global_avgpool2d_forward(x))


def network(**options):
    """Pools that overlap, reach outside, leave gaps and are read with a border, and a global one."""
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 6, 3, padding=2)),
        ("avgpool1", nbcnn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)),
        ("conv2", nbcnn.Conv2d(6, 7, (3, 2), padding=(2, 1), bias=False)),
        ("avgpool2", nbcnn.AvgPool2d((2, 1), stride=(3, 2), divisor_override=3)),
        ("conv3", nbcnn.Conv2d(7, 4, 3, padding=1)), ("pool", nbcnn.GlobalAvgPool2d()),
        ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(4, 5)),
    ], input_shape=(3, 10, 9), **options)


@pytest.mark.parametrize("seed", range(3))
def test_directional_gradients(seed):
    rng = np.random.default_rng(seed)
    model, images, labels = network(dtype=np.float64, seed=seed), rng.standard_normal((4, 3, 10, 9)), rng.integers(0, 5, 4)
    check_directional_gradients(nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), images, labels, rng)


def test_checkpoint(tmp_path):
    """The same layers come back, with the same outputs."""
    model, images = network(seed=1), np.random.default_rng(0).standard_normal((2, 3, 10, 9)).astype(np.float32)
    nbcnn.checkpoint.save(tmp_path / "model.safetensors", model)
    loaded = nbcnn.checkpoint.load(tmp_path / "model.safetensors").model
    assert loaded.structure() == model.structure() and equal(loaded(images), model(images))
    shown = "AvgPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)"
    assert repr(loaded.avgpool1) == shown and repr(loaded.pool) == "GlobalAvgPool2d()"


def test_plan(monkeypatch):
    """A convolution and the average of its pixels are computed one after the other, and the plan says why."""
    monkeypatch.setenv("COLUMNS", "200")
    lines = str(nbcnn.BackpropScheduler(network(), None)).splitlines()[2:]
    assert [line.split()[:2] for line in lines[:2]] == [["conv1", "Conv2d"], ["avgpool1", "AvgPool2d"]]
    assert lines[0].endswith("plain: no max-pooling follows") and lines[5].split()[:2] == ["pool", "AvgPool2d"]
