"""Convolution: frozen values, oracle, gradients, contract, errors, and parity with PyTorch."""
import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels import cpu
from nbcnn.kernels.conv2d import conv2d_backward, conv2d_forward
from nbcnn.kernels.cpu import conv2d as kernels
from nbcnn.kernels.cpu.launch import run

import oracles
from arrays import awkward, equal, filled_buffer, in_both_dtypes, integers
from gradients import check_every_element
from llvm import double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]


@st.composite
def geometries(draw, channels=40, outputs=70):
    """Shapes of x and w with stride, padding and dilation, such that the output has at least one pixel."""
    def pairs(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, dilation, padding = pairs(1, 5), pairs(1, 3), pairs(1, 3), pairs(0, 6)
    size = tuple(max(1, d * (k - 1) + 1 - 2 * p) + extra
                 for k, d, p, extra in zip(kernel, dilation, padding, pairs(0, 20), strict=True))
    C, O = draw(st.integers(1, channels)), draw(st.integers(1, outputs))
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return (draw(st.sampled_from([0, 1, 2, 3, 8, 11, 17])), C, *size), (O, C, *kernel), options


def output_shape(x_shape, w_shape, options):
    return oracles.conv2d_forward(np.zeros(x_shape), np.zeros(w_shape), np.zeros(w_shape[0]), *options.values()).shape


@in_both_dtypes
def test_frozen_values(dtype):
    # By hand: the kernel [[1, 0], [0, -1]] takes x[i, j] - x[i+1, j+1], which is -4 everywhere in 1..9 row by row.
    x = np.arange(1, 10, dtype=dtype).reshape(1, 1, 3, 3)
    w = np.array([[[[1, 0], [0, -1]]]], dtype)
    y = conv2d_forward(x, w, np.array([0.5], dtype))
    assert y.dtype == dtype and y.tolist() == [[[[-3.5, -3.5], [-3.5, -3.5]]]]
    # By hand: each of the four windows hands dy to its first cell with +1 and to its last with -1.
    dx, dw, db = conv2d_backward(np.array([[[[1, 2], [3, 4]]]], dtype), x, w)
    assert dx.tolist() == [[[[1, 2, 0], [3, 3, -2], [0, -3, -4]]]]
    # dw[p, q] = sum of dy[i, j] * x[i+p, j+q]: 1*1+2*2+3*4+4*5 = 37, and each step to the right adds 1+2+3+4 = 10, down 30.
    assert dw.tolist() == [[[[37, 47], [67, 77]]]] and db.tolist() == [10]


def require_oracle(x_shape, w_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), dtype=np.float32, seed=0):
    """Forward and backward are the oracle's, for integers."""
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    y_shape = output_shape(x_shape, w_shape, options)
    x, w, b, dy = integers(seed, x_shape, w_shape, w_shape[:1], y_shape, dtype=dtype)
    got = conv2d_forward(x, w, b, **options), *conv2d_backward(dy, x, w, **options)
    expected = oracles.conv2d_forward(x, w, b, *options.values()), *oracles.conv2d_backward(dy, x, w, *options.values())
    for name, a, e in zip(("y", "dx", "dw", "db"), got, expected, strict=True):
        assert a.shape == e.shape and a.dtype == dtype and (a == e).all(), (name, x_shape, w_shape, options)


@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))
def test_equals_oracle(dtype, geometry, seed):
    x_shape, w_shape, options = geometry
    require_oracle(x_shape, w_shape, **options, dtype=dtype, seed=seed)


@pytest.mark.parametrize("options", [dict(padding=(1, 2)), dict(padding=(0, 5), stride=(1, 2), dilation=(2, 1)),
                                     dict(padding=(2, 1), stride=(2, 3), dilation=(1, 2))])
def test_last_groups_of_any_size(options):
    """A tile holds samples, and where fewer are left also the next pixels of the row, some of them with taps beside the image."""
    for N in range(1, 17):
        require_oracle((N, 3, 5, 9), (5, 3, 3, 3), **options)


@pytest.mark.parametrize("workspace", [0, 1, 700])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)])
def test_weight_gradient_of_rows_and_samples_taken_a_few_at_a_time(dilation, workspace, monkeypatch):
    """A row of a sample at least, some rows, or some samples. Parts of the batch are of equal and unequal sizes."""
    monkeypatch.setattr(kernels, "WORKSPACE", workspace)
    for N in (7, 8, 9, 16, 17, 33, 66):         # of 2x2 pixels 1, 2 and 4 parts; of 33 samples parts of 16 and 17
        require_oracle((N, 3, dilation[0] + 2, dilation[1] + 2), (5, 3, 2, 2), padding=(0, 0), dilation=dilation)
        require_oracle((N, 3, dilation[0] + 1, dilation[1] + 2), (5, 3, 2, 2), padding=(1, 0), stride=(2, 1), dilation=dilation)
    require_oracle((3, 3, 9, 4), (5, 3, 3, 3), padding=(1, 1), dilation=dilation)


def test_kernels_larger_than_the_image():
    """Of the taps in a vector, those in the middle may read the image where both ends lie beside it."""
    for C, H, W, stride in itertools.product((1, 3), (1, 2, 3), (1, 2, 3), (1, 2)):
        require_oracle((2, C, H, W), (2, C, 4, 5), padding=(3, 4), stride=(1, stride))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_kernel_that_begin_and_end_anywhere_in_a_vector(dtype):
    """A vector's last weight may be the first channel of a tap, and the only one of that tap in it."""
    for C, KW in itertools.product(range(1, 18), (1, 2, 3, 5)):
        require_oracle((2, C, 2, 4), (2, C, 2, KW), padding=(1, KW - 1), dtype=dtype)


def test_input_gradient_of_packed_weights_in_several_blocks():
    """From PACK_FROM samples on; 70 channels are more than two blocks of any vectors."""
    require_oracle((kernels.PACK_FROM, 70, 3, 4), (5, 70, 2, 3), padding=(1, 1))


def test_large_input_equals_oracle():
    """More images than partial sums and more pixels than a few tiles, as in training."""
    x, w, b, dy = integers(0, (33, 3, 32, 32), (32, 3, 5, 5), 32, (33, 32, 32, 32))
    options = {"stride": (1, 1), "padding": (2, 2), "dilation": (1, 1)}
    assert (conv2d_forward(x, w, b, padding=2) == oracles.conv2d_forward(x, w, b, *options.values())).all()
    for a, e in zip(conv2d_backward(dy, x, w, padding=2), oracles.conv2d_backward(dy, x, w, *options.values()), strict=True):
        assert (a == e).all()


@given(geometry=geometries(channels=20, outputs=20), seed=st.integers(0, 2**32 - 1))
def test_gradients_are_adjoint(geometry, seed):
    """<dy, conv(x', w)> = <dx, x'> and <dy, conv(x, w')> = <dw, w'>: conv is linear in each. Integers, so == holds."""
    x_shape, w_shape, options = geometry
    x, w, u, v, dy = integers(seed, x_shape, w_shape, x_shape, w_shape, output_shape(*geometry), dtype=np.float64)
    dx, dw, db = conv2d_backward(dy, x, w, **options)
    assert (dy * conv2d_forward(u, w, **options)).sum() == (dx * u).sum()
    assert (dy * conv2d_forward(x, v, **options)).sum() == (dw * v).sum()
    bias = np.arange(1.0, 1 + len(w))
    assert (dy * conv2d_forward(x, 0 * w, bias, **options)).sum() == (db * bias).sum()


def test_full_jacobian():
    """Central differences of every element; conv is linear in each argument, so a step of 1 has no truncation error."""
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((4, 3, 3, 2)), rng.standard_normal(4)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    dy = rng.standard_normal(conv2d_forward(x, w, b, **options).shape)
    check_every_element(lambda: conv2d_forward(x, w, b, **options), (x, w, b), conv2d_backward(dy, x, w, **options), dy)


@pytest.mark.parametrize("dtype", DTYPES)
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))
def test_operation_writes_its_outputs_and_nothing_else(dtype, geometry, seed):
    """Results lie in buffers full of NaN, with guard zones around them; the buffers read from stay as they are."""
    x_shape, w_shape, options = geometry
    y_shape = output_shape(*geometry)
    x, w, b, dy = integers(seed, x_shape, w_shape, w_shape[:1], y_shape, dtype=dtype)
    operation = cpu.Conv2d(x_shape[1:], y_shape[1:], w_shape[2:], *options.values(), dtype)
    operation.reserve(len(x))

    def written(buffer):
        assert np.isfinite(buffer.view(len(x))).all()
        assert np.isfinite(buffer.array[:buffer.zeros]).sum() == buffer.view(len(x)).size and not buffer.array[buffer.zeros:].any()

    y, dx = (filled_buffer(len(x), shape[1:], dtype, np.nan) for shape in (y_shape, x_shape))
    guards = 8
    vectors = {name: np.full(size + 2 * guards, np.nan, dtype) for name, size in (("dw", w.size), ("db", b.size))}
    dw, db = (vector[guards:-guards] for vector in vectors.values())
    flat = cpu.flat_weight(w)
    # What lies between and behind the samples may reach nothing.
    x_buffer, dy_buffer = (filled_buffer(len(x), a.shape[1:], dtype, np.nan, a) for a in (x, dy))
    before = [a.copy() for a in (x_buffer.array, dy_buffer.array, flat, b)]

    run(operation.forward(len(x), y, x_buffer, (flat, b)))
    run(operation.backward(len(x), dx, (dw, db), dy_buffer, x_buffer, y, (flat, b), (False, False)))
    written(y)
    written(dx)
    for vector in vectors.values():
        assert np.isfinite(vector[guards:-guards]).all() and np.isnan(vector[:guards]).all() and np.isnan(vector[-guards:]).all()
    assert all(equal(a, e) for a, e in zip((x_buffer.array, dy_buffer.array, flat, b), before, strict=True))
    # Without a bias, none of the last call's is left.
    run(operation.forward(len(x), y, x_buffer, (flat, None)))
    assert (y.view(len(x)) == oracles.conv2d_forward(x, w, 0 * b, *options.values())).all()
    # Asked to add, it adds to what is there.
    once = dw.copy(), db.copy()
    run(operation.backward(len(x), None, (dw, db), dy_buffer, x_buffer, y, (flat, b), (True, False)))
    assert (dw == 2 * once[0]).all() and (db == once[1]).all()
    # Of frozen weights there is no gradient, and the bias's is the same.
    run(operation.backward(len(x), None, (None, db), dy_buffer, x_buffer, y, (flat, b), (False, True)))
    assert (dw == 2 * once[0]).all() and (db == 2 * once[1]).all()


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
    # Outputs and channels of one vector, then of several: many partial sums; a last group of a few samples; padding in which whole
    # windows lie; steps of all kinds.
    [((19, 3, 9, 7), (5, 3, 3, 3), dict(padding=(1, 4))), ((3, 5, 8, 9), (9, 5, 3, 2), dict(stride=(3, 2), dilation=(2, 3)))],
    [((19, 33, 4, 7), (41, 33, 1, 3), dict(padding=(0, 4))), ((3, 33, 8, 9), (70, 33, 3, 2), dict(stride=(2, 3), dilation=(3, 2)))],
])
def test_touches_nothing_outside_its_arrays(cases):
    """NUMBA_BOUNDSCHECK=1 adds a check to all that kernels and tiles read and write."""
    done = subprocess.run([sys.executable, "-c", CHECKED.format(cases=cases)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "NUMBA_BOUNDSCHECK": "1"})      # of which the kernel cache's names know
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    x, w, b, dy = integers(3, (2, 3, 8, 7), (5, 3, 3, 3), 5, (2, 5, 6, 5), dtype=dtype)
    y, gradients = conv2d_forward(x, w, b), conv2d_backward(dy, x, w)
    x, w, b, dy = map(awkward, (x, w, b, dy))
    assert (conv2d_forward(x, w, b) == y).all()
    assert all((a == e).all() for a, e in zip(conv2d_backward(dy, x, w), gradients, strict=True))


def test_same_bits_for_any_batch_and_any_threads():
    rng = np.random.default_rng(5)
    x, w, b, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((21, 5, 9, 7), (33, 5, 3, 3), 33, (21, 33, 9, 7)))
    y, gradients = conv2d_forward(x, w, b, padding=1), conv2d_backward(dy, x, w, padding=1)
    for n in (0, 7, 20):
        assert (conv2d_forward(x[n:n + 1], w, b, padding=1) == y[n]).all()
        assert (conv2d_forward(x[n:n + 3], w, b, padding=1) == y[n:n + 3]).all()
    for _ in one_and_all_threads():
        assert (conv2d_forward(x, w, b, padding=1) == y).all()
        assert all((a == e).all() for a, e in zip(conv2d_backward(dy, x, w, padding=1), gradients, strict=True))


def test_float32_kernel_of_a_bias_holds_no_double():
    """The one for frozen weights, which no other test of types sees."""
    operation = cpu.Conv2d((1, 3, 3), (1, 3, 3), (1, 1), (1, 1), (0, 0), (1, 1), np.float32)
    buffer = cpu.Buffer(1, (1, 3, 3), np.float32)
    run(operation.backward_bias(1, cpu.allocate((1,), np.float32), buffer, buffer, True))
    assert not double_operations(kernels.conv2d_backward_bias)


def test_need_dx_false_leaves_it_out():
    x, w, dy = integers(0, (2, 3, 4, 4), (5, 3, 3, 3), (2, 5, 2, 2))
    dx, dw, db = conv2d_backward(dy, x, w, need_dx=False)
    assert dx is None and (dw == conv2d_backward(dy, x, w)[1]).all() and (db == dy.sum((0, 2, 3))).all()


X, W, B = np.zeros((2, 3, 8, 8), np.float32), np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    ((X[0], W), {}, ValueError, r"x: expected shape \(N, C, H, W\), got shape \(3, 8, 8\)"),
    ((X.astype(int), W), {}, TypeError, "x: expected a float32 or float64 array, got ndarray of dtype int64"),
    ((X, W.astype(np.float64)), {}, TypeError, "w: expected float32, the dtype of x, got float64"),
    ((X, W[0]), {}, ValueError, r"w: expected shape \(O, C, KH, KW\), got shape \(3, 3, 3\)"),
    ((X, W[:, :2]), {}, ValueError, r"x: expected shape .* C = 2 channels.* got shape \(2, 3, 8, 8\)"),
    ((X, W[:0]), {}, ValueError, "w: .*every size >= 1"),
    ((X, W, B[:3]), {}, ValueError, r"b: expected shape \(4,\).* got shape \(3,\)"),
    ((X, W, B.astype(np.float64)), {}, TypeError, "b: expected float32"),
    ((X, W), {"stride": 0}, ValueError, "stride: expected an int or a pair of ints >= 1, got 0"),
    ((X, W), {"stride": 1.5}, TypeError, "stride: .* got 1.5"),
    ((X, W), {"padding": -1}, ValueError, "padding: .* >= 0, got -1"),
    ((X, W), {"padding": 10**9}, ValueError, "padding: expected at most 64 for an input of 8 pixels .* got 10{9}"),
    ((X, W), {"padding": 65}, ValueError, "padding: expected at most 64"),
    ((X, W), {"stride": 2**64}, ValueError, "stride: expected an int <= 2147483647, got 18446744073709551616"),
    ((X, W), {"dilation": (1, 2, 3)}, ValueError, r"dilation: .* got \(1, 2, 3\)"),
    ((X, W), {"dilation": 4}, ValueError, "x: expected an output of at least 1x1, got 0x0 from an input of 8x8"),
])
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        conv2d_forward(*arguments, **options)


@pytest.mark.parametrize(("dy", "error", "message"), [
    (np.zeros((2, 4, 5, 6), np.float32), ValueError, r"dy: expected shape \(2, 4, 6, 6\).* got shape \(2, 4, 5, 6\)"),
    (np.zeros((2, 4, 6, 6)), TypeError, "dy: expected float32, the dtype of x, got float64"),
    (None, TypeError, "dy: expected a float32 or float64 array, got NoneType"),
])
def test_errors_of_backward(dy, error, message):
    with pytest.raises(error, match=message):
        conv2d_backward(dy, X, W)


@pytest.mark.torch
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))
def test_no_less_exact_than_torch(geometry, seed):
    """Against float64, the largest float32 error is at most twice PyTorch's plus two roundings of the largest sum of |products|."""
    import torch
    x_shape, w_shape, options = geometry
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s, dtype=np.float32) for s in (x_shape, w_shape, w_shape[:1], output_shape(*geometry))]

    def by_nbcnn(x, w, b, dy):
        return [conv2d_forward(x, w, b, **options), *conv2d_backward(dy, x, w, **options)]

    def by_torch(x, w, b, dy):
        x, w, b = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
        y = torch.nn.functional.conv2d(x, w, b, **options)
        return [a.detach().numpy() for a in (y, *torch.autograd.grad(y, (x, w, b), torch.tensor(dy)))]

    doubles = [a.astype(np.float64) for a in arrays]
    scales = by_nbcnn(*map(np.abs, doubles))
    for mine, theirs, double, reference, scale in zip(
            by_nbcnn(*arrays), by_torch(*arrays), by_torch(*doubles), by_nbcnn(*doubles), scales, strict=True):
        scale = scale.max(initial=0)
        assert np.abs(reference - double).max(initial=0) <= 8 * np.finfo(np.float64).eps * scale
        bound = 2 * np.abs(theirs - double).max(initial=0) + 2 * np.finfo(np.float32).eps * scale
        assert np.abs(mine - double).max(initial=0) <= bound


def test_the_largest_stride_and_paddings():
    """A stride beyond the image is as good as any other; a padding may be as large as the image or the window."""
    x, w = np.arange(100, dtype=np.float32).reshape(1, 1, 1, 100), np.ones((1, 1, 1, 2), np.float32)
    assert conv2d_forward(x, w, stride=2**31 - 1).tolist() == [[[[1]]]]
    assert conv2d_backward(np.ones((1, 1, 1, 1), np.float32), x, w, stride=2**31 - 1)[0].sum() == 2
    assert conv2d_forward(x, w, padding=(0, 100)).shape == (1, 1, 1, 299)
    assert conv2d_forward(x, w, padding=(0, 150), dilation=(1, 150)).shape == (1, 1, 1, 250)


def test_a_kernel_larger_than_memory():
    """Its taps are not listed one by one: a campaign's case took all memory for that, and said nothing."""
    x, w = np.broadcast_to(np.float32(1), (2, 3, 2**40, 8)), np.broadcast_to(np.float32(1), (4, 3, 2**33, 3))
    started = time.process_time()
    with pytest.raises(MemoryError, match=r".+"):
        conv2d_forward(x, w)
    assert time.process_time() - started < 1
