"""Convolution in groups, up to one for each channel, and padding by name: frozen values, oracle, gradients, contract, errors, and
parity with PyTorch."""
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nbcnn
from nbcnn.kernels import conv2d_backward, conv2d_forward, conv2d_maxpool2d_backward, conv2d_maxpool2d_forward, cpu
from nbcnn.kernels.conv2d import convolution
from nbcnn.kernels.cpu.launch import run

import oracles
from arrays import awkward, equal, filled_buffer, in_both_dtypes, integers
from gradients import check_every_element
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
seeds = st.integers(0, 2**32 - 1)


@st.composite
def geometries(draw):
    """Shapes of x and w with stride, padding, dilation and groups, such that the output has at least one pixel.

    A kernel's width and the channels choose the tiles, and compiling one takes seconds, so of these there are a few.
    """
    def pairs(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    depthwise = draw(st.booleans())
    groups = draw(st.sampled_from([3, 35, 70] if depthwise else [2, 3, 5]))
    C, O = (1, 1) if depthwise else (draw(st.integers(1, 5)), draw(st.integers(1, 20)))
    stride, dilation, padding = pairs(1, 3), pairs(1, 3), pairs(0, 6)
    kernel = draw(st.integers(1, 5)), draw(st.sampled_from([3, 2, 11]))
    size = tuple(max(1, d * (k - 1) + 1 - 2 * p) + extra
                 for k, d, p, extra in zip(kernel, dilation, padding, pairs(0, 12), strict=True))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (draw(st.sampled_from([0, 1, 2, 3, 9])), groups * C, *size), (groups * O, C, *kernel), options


def by_groups(x, w, b, dy, groups, **options):
    """y, dx, dw and db of the oracle, group by group."""
    options = (options["stride"], options["padding"], options["dilation"])
    parts = zip(np.split(x, groups, 1), np.split(w, groups), np.split(b, groups), np.split(dy, groups, 1), strict=True)
    results = [(oracles.conv2d_forward(x, w, b, *options), *oracles.conv2d_backward(dy, x, w, *options)) for x, w, b, dy in parts]
    return [np.concatenate(arrays, axis) for arrays, axis in zip(zip(*results, strict=True), (1, 1, 0, 0), strict=True)]


def numbers(seed, x_shape, w_shape, options, dtype):
    """x, w, b and dy, of integers."""
    y_shape = nbcnn.Conv2d(x_shape[1], w_shape[0], w_shape[2:], **options).output_shape(x_shape[1:])
    return integers(seed, x_shape, w_shape, w_shape[:1], (x_shape[0], *y_shape), dtype=dtype)


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: one channel is added up, the other one's first column is taken twice.
    x = np.array([[[[1, 2, 3]], [[4, 5, 6]]]], dtype)
    w, b, dy = np.array([[[[1, 1]]], [[[2, 0]]]], dtype), np.array([10, 20], dtype), np.array([[[[1, 2]], [[3, 4]]]], dtype)
    y = conv2d_forward(x, w, b, groups=2)
    assert y.dtype == dtype and y.tolist() == [[[[13, 15]], [[28, 30]]]]
    dx, dw, db = conv2d_backward(dy, x, w, groups=2)
    # dw[0] = 1*1 + 2*2, 1*2 + 2*3; dw[1] = 3*4 + 4*5, 3*5 + 4*6.
    assert dx.tolist() == [[[[1, 3, 2]], [[6, 8, 0]]]]
    assert dw.tolist() == [[[[5, 8]]], [[[32, 39]]]] and db.tolist() == [3, 7]
    # By hand: two outputs of each channel, a multiple of it each.
    w = np.array([1, 2, 3, 4], dtype).reshape(4, 1, 1, 1)
    y = conv2d_forward(x, w, groups=2)
    assert y[0, :, 0].tolist() == [[1, 2, 3], [2, 4, 6], [12, 15, 18], [16, 20, 24]]
    dx, dw, db = conv2d_backward(y, x, w, groups=2)
    assert dx[0, :, 0].tolist() == [[5, 10, 15], [100, 125, 150]] and db.tolist() == [6, 12, 45, 60]
    assert dw.ravel().tolist() == [14, 28, 3 * 77, 4 * 77]
    # By hand: with "same" a kernel of two columns reads a zero behind the last one, and none before the first.
    assert conv2d_forward(x[:, :1], np.array([[[[1, 10]]]], dtype), padding="same").tolist() == [[[[21, 32, 3]]]]
    assert conv2d_forward(x[:, :1], np.array([[[[1, 10]]]], dtype), padding="valid").tolist() == [[[[21, 32]]]]


@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(), seed=seeds)
def test_equals_oracle(dtype, geometry, seed):
    *_, options = geometry
    x, w, b, dy = numbers(seed, *geometry, dtype)
    got = conv2d_forward(x, w, b, **options), *conv2d_backward(dy, x, w, **options)
    for name, a, e in zip(("y", "dx", "dw", "db"), got, by_groups(x, w, b, dy, **options), strict=True):
        assert equal(a, e), name


@given(geometry=geometries(), seed=seeds)
def test_gradients_are_adjoint(geometry, seed):
    """<dy, conv(x', w)> = <dx, x'> and <dy, conv(x, w')> = <dw, w'>: conv is linear in each. Integers, so == holds."""
    *_, options = geometry
    x, w, b, dy = numbers(seed, *geometry, np.float64)
    u, v, _, _ = numbers(seed + 1, *geometry, np.float64)
    dx, dw, db = conv2d_backward(dy, x, w, **options)
    assert (dy * conv2d_forward(u, w, **options)).sum() == (dx * u).sum()
    assert (dy * conv2d_forward(x, v, **options)).sum() == (dw * v).sum()
    assert (dy * conv2d_forward(x, 0 * w, b, **options)).sum() == (db * b).sum()


@pytest.mark.parametrize("groups, channels, outputs", [(3, 3, 3), (2, 4, 6)])
def test_full_jacobian(groups, channels, outputs):
    """Central differences of every element; conv is linear in each argument, so a step of 1 has no truncation error."""
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((2, channels, 5, 4)), rng.standard_normal((outputs, channels // groups, 3, 2)), np.zeros(outputs)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": groups}
    dy = rng.standard_normal(conv2d_forward(x, w, b, **options).shape)
    check_every_element(lambda: conv2d_forward(x, w, b, **options), (x, w, b), conv2d_backward(dy, x, w, **options), dy)


@pytest.mark.parametrize("dtype", DTYPES)
@example(geometry=((3, 35, 6, 7), (35, 1, 3, 3), dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=35)), seed=0)
@example(geometry=((3, 8, 8, 8), (8, 4, 3, 3), dict(stride=(1, 2), padding=(1, 2), dilation=(1, 1), groups=2)), seed=0)
@given(geometry=geometries(), seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN, with guard zones around them; the buffers read from stay as they are."""
    x_shape, w_shape, options = geometry
    x, w, b, dy = numbers(seed, *geometry, dtype)
    N = len(x)
    operation = convolution(cpu, x_shape[1:], dy.shape[1:], w_shape[2:], *options.values(), dtype)
    operation.reserve(N + 1)
    y, dx = (filled_buffer(N, shape[1:], dtype, np.nan) for shape in (dy.shape, x_shape))
    guards = 8
    vectors = [np.full(size + 2 * guards, np.nan, dtype) for size in (w.size, b.size)]
    dw, db = (vector[guards:-guards] for vector in vectors)
    flat = cpu.flat_weight(w)
    # What lies between and behind the samples may reach nothing.
    x_buffer, dy_buffer = (filled_buffer(N, a.shape[1:], dtype, np.nan, a) for a in (x, dy))
    before = [a.copy() for a in (x_buffer.array, dy_buffer.array, flat, b)]
    expected = by_groups(x, w, b, dy, **options)
    once = cpu.flat_weight(expected[2]), expected[3]

    run(operation.forward(N, y, x_buffer, (flat, b)))
    run(operation.backward(N, dx, (dw, db), dy_buffer, x_buffer, y, (flat, b), (False, False)))
    assert equal(y.view(N), expected[0]) and equal(dx.view(N), expected[1]) and equal(dw, once[0]) and equal(db, once[1])
    for buffer in (y, dx):
        assert np.isfinite(buffer.array[:buffer.zeros]).sum() == buffer.view(N).size and not buffer.array[buffer.zeros:].any()
    assert all(np.isnan(vector[:guards]).all() and np.isnan(vector[-guards:]).all() for vector in vectors)
    assert all(equal(a, e) for a, e in zip((x_buffer.array, dy_buffer.array, flat, b), before, strict=True))
    # Asked to add, it adds to what is there; a bias that is not there, and frozen weights, have no gradient.
    run(operation.backward(N, None, (dw, db), dy_buffer, x_buffer, y, (flat, b), (True, False)))
    assert equal(dw, 2 * once[0]) and equal(db, once[1])
    run(operation.backward(N, None, (dw, None), dy_buffer, x_buffer, y, (flat, None), (False, False)))
    run(operation.backward(N, None, (None, db), dy_buffer, x_buffer, y, (flat, b), (False, True)))
    assert equal(dw, once[0]) and equal(db, 2 * once[1])
    # Without a bias, and for another number of images, none of the last call's is left.
    n = N // 2
    run(operation.forward(n, y, x_buffer, (flat, None)))
    run(operation.backward(n, dx, (dw, db), dy_buffer, x_buffer, y, (flat, None), (False, False)))
    expected = by_groups(x[:n], w, 0 * b, dy[:n], **options)
    assert equal(y.view(n), expected[0]) and equal(dx.view(n), expected[1])
    assert equal(dw, cpu.flat_weight(expected[2])) and equal(db, expected[3])


CHECKED = """
import numpy as np
from nbcnn.kernels import conv2d_backward, conv2d_forward
from nbcnn.kernels.cpu.parallel import PARALLEL
assert not PARALLEL
for x_shape, w_shape, options in {cases}:
    x, w = np.ones(x_shape, np.float32), np.ones(w_shape, np.float32)
    y = conv2d_forward(x, w, w[:, 0, 0, 0], **options)
    conv2d_backward(y, x, w, **options)
"""


@pytest.mark.parametrize("cases", [
    # Many partial sums; padding in which whole windows lie; steps of all kinds; channels that fill a last vector or do not.
    [((19, 3, 9, 7), (3, 1, 3, 3), dict(padding=(1, 4), groups=3)),
     ((3, 70, 8, 9), (70, 1, 3, 11), dict(stride=(3, 2), dilation=(2, 1), padding=5, groups=70))],
    [((9, 6, 4, 7), (8, 3, 1, 3), dict(padding=(0, 4), groups=2)),
     ((3, 4, 8, 9), (4, 2, 3, 2), dict(stride=(2, 3), dilation=(3, 2), groups=2))],
])
def test_touches_nothing_outside_its_arrays(cases):
    """NUMBA_BOUNDSCHECK=1 adds a check to all that kernels and tiles read and write."""
    done = subprocess.run([sys.executable, "-c", CHECKED.format(cases=cases)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "NUMBA_BOUNDSCHECK": "1"})      # of which the kernel cache's names know
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("groups", [6, 2])
def test_strided_and_read_only_inputs(groups):
    x, w, b, dy = integers(3, (2, 6, 8, 7), (6, 6 // groups, 3, 3), 6, (2, 6, 6, 5))
    y, gradients = conv2d_forward(x, w, b, groups=groups), conv2d_backward(dy, x, w, groups=groups)
    x, w, b, dy = map(awkward, (x, w, b, dy))
    assert equal(conv2d_forward(x, w, b, groups=groups), y)
    assert all(map(equal, conv2d_backward(dy, x, w, groups=groups), gradients))


@pytest.mark.parametrize("groups", [35, 5])
def test_same_bits_for_any_batch_and_any_threads(groups):
    rng, options = np.random.default_rng(5), dict(padding=1, groups=groups)
    x, w, b, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((21, 35, 9, 7), (35, 35 // groups, 3, 3), 35, (21, 35, 9, 7)))
    y, gradients = conv2d_forward(x, w, b, **options), conv2d_backward(dy, x, w, **options)
    for n in (0, 7, 20):
        assert equal(conv2d_forward(x[n:n + 1], w, b, **options), y[n:n + 1])
    for _ in one_and_all_threads():
        assert equal(conv2d_forward(x, w, b, **options), y)
        assert all(map(equal, conv2d_backward(dy, x, w, **options), gradients))


@pytest.mark.parametrize("groups", [70, 2])
def test_nan_stays_in_its_group(groups):
    """A NaN of one channel reaches the outputs of its own group alone, and of their pixels those that read it."""
    x, w, b, dy = integers(4, (2, 70, 5, 6), (70, 70 // groups, 3, 3), 70, (2, 70, 5, 6))
    options, w = dict(padding=1, groups=groups), np.where(w == 0, 1, w)
    clean, gradients = conv2d_forward(x, w, b, **options), conv2d_backward(dy, x, w, **options)
    x[1, 40, 2, 3] = dy[1, 40, 2, 3] = np.nan
    read, own = np.zeros(dy.shape, bool), np.arange(70) // (70 // groups) == 40 // (70 // groups)
    read[1, own, 1:4, 2:5] = True
    y, (dx, dw, db) = conv2d_forward(x, w, b, **options), conv2d_backward(dy, x, w, **options)
    assert (np.isnan(y) == read).all() and equal(y[~read], clean[~read])
    assert (np.isnan(dx) == read).all() and equal(dx[~read], gradients[0][~read])
    assert (np.isnan(dw).any((1, 2, 3)) == own).all() and (np.isnan(db) == (np.arange(70) == 40)).all()


def test_float32_kernels_hold_no_double():
    operation = cpu.Conv2dDepthwise((2, 3, 3), (2, 3, 3), (1, 1), (1, 1), (0, 0), (1, 1), np.float32)
    operation.reserve(1)
    x, y = (cpu.Buffer(1, (2, 3, 3), np.float32) for _ in range(2))
    w, b = (cpu.allocate((2,), np.float32) for _ in range(2))
    calls = operation.forward(1, y, x, (w, b)) + operation.backward(1, x, (w, b), y, x, y, (w, b), (True, True))
    run(calls)
    assert {call.kernel.__name__ for call in calls} >= {
        f"conv2d_depthwise_{name}" for name in ("forward", "backward_input", "backward_weight")}
    for call in calls:
        assert not double_operations(call.kernel), call.kernel.__name__


X, W = np.zeros((2, 6, 8, 8), np.float32), np.zeros((4, 3, 3, 3), np.float32)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    ((X, W), {}, ValueError, r"x: expected shape \(N, C, H, W\) with C = 3 channels, as w \(4, 3, 3, 3\) has, got"),
    ((X, W), {"groups": 4}, ValueError, r"x: expected .* C = 12 channels, as w \(4, 3, 3, 3\) has in each of 4 groups, got"),
    ((X, W), {"groups": 3}, ValueError, "groups: expected a divisor of the 4 outputs of w, got 3"),
    ((X, W), {"groups": 0}, ValueError, "groups: expected an int >= 1, got 0"),
    ((X, W), {"groups": 2.0}, TypeError, "groups: expected an int >= 1, got 2.0"),
    ((X, W[0]), {"groups": 2}, ValueError, r"w: expected shape \(O, C/groups, KH, KW\), got shape \(3, 3, 3\)"),
    ((X, W[:, :0]), {"groups": 2}, ValueError, r"w: expected shape \(O, C/groups, KH, KW\) with every size >= 1"),
    ((X, W), {"groups": 2, "padding": "full"}, ValueError,
     "padding: expected an int or a pair of ints >= 0, 'same' or 'valid', got 'full'"),
    ((X, W), {"groups": 2, "padding": "same", "stride": (1, 2)}, ValueError,
     r"padding: expected ints with a stride of \(1, 2\), got 'same', which takes a stride of 1"),
    ((X[:, :, :0], W), {"groups": 2, "padding": "same"}, ValueError, "x: expected an output of at least 1x1, got 0x8"),
    ((X[:, :, :2], W), {"groups": 2, "padding": "valid"}, ValueError, "x: expected an output of at least 1x1, got 0x6"),
])
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        conv2d_forward(*arguments, **options)


@pytest.mark.parametrize(("options", "error", "message"), [
    (dict(groups=4), ValueError, "groups: expected a divisor of in_channels 6 and of out_channels 4, got 4"),
    (dict(groups=3), ValueError, "groups: expected a divisor of in_channels 6 and of out_channels 4, got 3"),
    (dict(groups=-1), ValueError, "groups: expected an int >= 1, got -1"),
    (dict(padding="reflect"), ValueError, "padding: .*'same' or 'valid', got 'reflect'"),
    (dict(padding="same", stride=2), ValueError, r"padding: expected ints with a stride of \(2, 2\), got 'same'"),
])
def test_errors_of_the_layer(options, error, message):
    with pytest.raises(error, match=message):
        nbcnn.Conv2d(6, 4, 3, **options)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Using padding='same'")      # that it may need a copy of the input
@example(geometry=((3, 4, 6, 5), (6, 2, 2, 4), dict(stride=(1, 1), padding="same", dilation=(1, 3), groups=2)), seed=0)
@example(geometry=((3, 4, 6, 5), (4, 1, 4, 2), dict(stride=(1, 1), padding="same", dilation=(1, 1), groups=4)), seed=0)
@example(geometry=((3, 4, 6, 5), (5, 4, 4, 3), dict(stride=(1, 1), padding="same", dilation=(3, 2), groups=1)), seed=0)
@given(geometry=geometries(), seed=seeds)
def test_equals_torch(geometry, seed):
    """The layer and the functions, in float64: sums of at most 1,500 products of order 1, so 1e-12 is some roundings of them."""
    import torch
    x_shape, w_shape, options = geometry
    rng = np.random.default_rng(seed)
    layer = nbcnn.Conv2d(x_shape[1], w_shape[0], w_shape[2:], **options)
    model, theirs = nbcnn.Sequential([("conv", layer)], dtype=np.float64), torch.nn.Conv2d(**layer.arguments, dtype=torch.float64)
    assert layer.weight.shape == tuple(theirs.weight.shape) == w_shape
    x = rng.standard_normal(x_shape)
    tensor = torch.tensor(x, requires_grad=True)
    theirs.load_state_dict({"weight": torch.tensor(layer.weight.numpy()), "bias": torch.tensor(layer.bias.numpy())})
    expected = theirs(tensor)
    np.testing.assert_allclose(model(x), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    dy = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(dy))
    got = conv2d_backward(dy, x, layer.weight.numpy(), **options)
    for a, e in zip(got, (tensor.grad, theirs.weight.grad, theirs.bias.grad), strict=True):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kernel", [(2, 3), (4, 4)])
def test_padding_by_name_where_it_is_pooled(kernel):
    """As by itself and then pooled; a pixel may win whose last taps read the zeros on the far side."""
    x, w, dy = integers(7, (5, 3, 6, 8), (4, 3, *kernel), (5, 4, 3, 4))
    for padding in ("same", "valid"):
        z = conv2d_forward(x, w, padding=padding)
        y, argmax = conv2d_maxpool2d_forward(x, w, padding=padding)
        windows = z[:, :, :z.shape[2] // 2 * 2, :z.shape[3] // 2 * 2].reshape(5, 4, z.shape[2] // 2, 2, z.shape[3] // 2, 2)
        assert equal(y, windows.max((3, 5)))
        own = dy[:, :, :y.shape[2], :y.shape[3]]
        spread = np.zeros_like(z)
        n, o, i, j = np.indices(argmax.shape)
        spread[n, o, 2 * i + argmax // 2, 2 * j + argmax % 2] = own
        expected = conv2d_backward(spread, x, w, padding=padding)
        assert all(map(equal, conv2d_maxpool2d_backward(own, argmax, x, w, padding=padding), expected))


def test_layers_in_a_network(tmp_path, monkeypatch):
    """Not fused, and the plan says why; back from a checkpoint with the arguments as they were given."""
    monkeypatch.setenv("COLUMNS", "200")
    model = nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 8, 4, padding="same")), ("pool1", nbcnn.MaxPool2d(2)),
        ("conv2", nbcnn.Conv2d(8, 8, 3, padding=1, groups=8)), ("pool2", nbcnn.MaxPool2d(2)),
    ], input_shape=(3, 12, 12))
    lines = str(nbcnn.BackpropScheduler(model, None)).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["conv1+pool1", "conv2", "pool2"]
    assert lines[1].rstrip().endswith("plain: the convolution is one of groups")
    nbcnn.save(model, tmp_path / "file")
    loaded = nbcnn.load(tmp_path / "file")
    assert repr(loaded.conv1) == "Conv2d(in_channels=3, out_channels=8, kernel_size=4, padding=same)"
    assert repr(loaded.conv2) == "Conv2d(in_channels=8, out_channels=8, kernel_size=3, padding=1, groups=8)"
    images = np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32)
    assert equal(loaded(images), model(images)) and loaded.conv1.padding == "same"
    bound = np.sqrt(1 / (3 * 3))        # of 1 channel and 3x3 taps, not of 8
    assert 0.9 * bound < np.abs(model.conv2.weight.numpy()).max() <= bound
