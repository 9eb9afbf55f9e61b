"""Dropout: known answers of the random numbers, frozen values, oracle, statistics, contract, errors, parity with PyTorch."""
import re

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbcnn.kernels import cpu, dropout2d_backward, dropout2d_forward, dropout_backward, dropout_forward
from nbcnn.kernels.cpu import dropout as kernels
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.cpu.parallel import PARALLEL
from nbcnn.kernels.operation import Place

import oracles
from arrays import awkward, equal, filled_buffer, in_both_dtypes
from llvm import afresh, double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
# Counter, key and numbers from Random123's own known answers (kat_vectors, philox4x32 10).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
images = st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))
vectors = st.tuples(st.integers(0, 9), st.integers(1, 200))
seeds, probabilities = st.integers(0, 2**64 - 1), st.one_of(st.sampled_from([0, 1, 0.5]), st.floats(0, 1))
GAPS = (5, 8, 4, 4)     # on the CPU there is one between the samples


def values(seed, shape, dtype):
    """Numbers of both signs, infinities and NaN."""
    rng = np.random.default_rng(seed % 2**32)
    x = rng.standard_normal(shape).astype(dtype)
    return np.where(rng.random(shape) < 0.1, rng.choice([np.inf, -np.inf, np.nan], shape).astype(dtype), x)


def scaled(x, mask, p):
    """x * mask / (1 - p), with one rounding of the factor and one of the product."""
    factor = x.dtype.type(0 if p == 1 else 1 / (1 - p))
    with np.errstate(invalid="ignore", over="ignore"):
        return x * np.where(mask, factor, x.dtype.type(0))


@numba.njit
def philox(c0, c1, c2, c3, key0, key1):
    return kernels.philox(c0, c1, c2, c3, key0, key1)


@pytest.mark.quick
@pytest.mark.parametrize("counter, key, numbers", KNOWN)
def test_known_answers(counter, key, numbers):
    words, expected = ([int(word, 16) for word in text.split()] for text in (f"{counter} {key}", numbers))
    assert list(philox(*map(np.uint64, words))) == expected
    assert list(oracles.philox4x32(words[:4], words[4:])) == expected


@in_both_dtypes
def test_frozen_values(dtype):
    # The known answers to zeros are those of four samples: each stays up to the p that is its number, and no further.
    x, numbers = np.array([[3], [-1], [0.5], [2]], dtype), [int(number, 16) for number in KNOWN[0][2].split()]
    for number in numbers:
        for p, stay in ((number / 2**32, [other >= number for other in numbers]),
                        ((number + 1) / 2**32, [other > number for other in numbers])):
            y, mask = dropout_forward(x, p)
            assert mask.ravel().tolist() == stay and mask.dtype == np.uint8
            assert equal(y, scaled(x, mask, p)) and equal(dropout_backward(x, mask, p), y)
    # By hand: half of the planes stay, twice as large; a NaN and an infinity that do not are NaN, and zeros keep their signs.
    x = np.array([[[[1, -2]], [[np.nan, np.inf]]], [[[-0.0, 5]], [[7, -8]]]], dtype)
    mask = np.array([[1, 0], [0, 1]], np.uint8)
    dx = dropout2d_backward(x, mask)
    assert equal(dx, np.array([[[[2, -4]], [[np.nan, np.nan]]], [[[0, 0]], [[14, -16]]]], dtype)) and np.signbit(dx[1, 0, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@example(shape=GAPS, p=0.3, seed=2**63 - 1, layer=3, step=2**33 + 5)
@given(shape=st.one_of(images, vectors), p=probabilities, seed=seeds, layer=st.integers(0, 5000), step=st.integers(0, 2**40))
def test_equals_oracle(dtype, shape, p, seed, layer, step):
    """With equal bits, the mask and the numbers; of elements and of planes."""
    x, dy, place = values(seed, shape, dtype), values(seed + 1, shape, dtype), dict(seed=seed, layer=layer, step=step)
    y, mask = dropout_forward(x, p, **place)
    assert equal(mask, oracles.dropout_mask(shape[0], shape[1:], p, **place))
    assert equal(y, scaled(x, mask, p)) and equal(dropout_backward(dy, mask, p), scaled(dy, mask, p))
    if len(shape) == 4:
        y, mask = dropout2d_forward(x, p, **place)
        assert equal(mask, oracles.dropout_mask(shape[0], shape[1:2], p, **place))
        planes = mask[:, :, None, None]
        assert equal(y, scaled(x, planes, p)) and equal(dropout2d_backward(dy, mask, p), scaled(dy, planes, p))


def mask_of(shape=(64, 16, 8, 8), p=0.5, **place):
    return dropout_forward(np.zeros(shape, np.float32), p, **place)[1]


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.8])
def test_share_that_stays(p):
    """Within five standard deviations of 1 - p: of all, and of any one sample, channel, row and column."""
    mask = mask_of(p=p)
    assert abs(mask.mean() - (1 - p)) < 5 * (p * (1 - p) / mask.size) ** 0.5
    for axis, size in enumerate(mask.shape):
        shares = np.moveaxis(mask, axis, 0).reshape(size, -1).mean(1)
        assert (abs(shares - (1 - p)) < 5 * (p * (1 - p) * size / mask.size) ** 0.5).all()


def test_neighbours_are_independent():
    """What stays agrees in half of the cases with its neighbour's along any axis, within five standard deviations."""
    mask = mask_of()
    for axis, size in enumerate(mask.shape):
        for distance in range(1, min(size, 9)):
            first, second = np.take(mask, range(size - distance), axis), np.take(mask, range(distance, size), axis)
            assert abs((first == second).mean() - 0.5) < 5 * 0.5 / first.size ** 0.5, (axis, distance)


def test_another_seed_layer_or_step_gives_another_mask():
    """Any two agree in half of their elements, within five standard deviations; the same place gives the same mask."""
    places = [dict(seed=7, layer=1, step=2)] + [dict(seed=7 ^ 1 << bit, layer=1, step=2) for bit in (0, 31, 32, 62, 63)]
    places += [dict(seed=7, layer=2, step=2), dict(seed=7, layer=1, step=3), dict(seed=7, layer=2, step=1)]
    masks = [mask_of(**place) for place in places]
    assert all(equal(mask, mask_of(**place)) for mask, place in zip(masks, places, strict=True))
    for k, mask in enumerate(masks):
        for other in masks[:k]:
            assert abs((mask == other).mean() - 0.5) < 5 * 0.5 / mask.size ** 0.5
    assert equal(mask_of(seed=2**64 + 6), mask_of(seed=7))      # 128 bits become 64


def test_a_sample_has_its_mask_whatever_is_behind_it():
    for N in range(10):
        assert equal(mask_of((N, 3, 4, 5)), mask_of((10, 3, 4, 5))[:N])


# ---- the operation

def operation_of(shape, p=0.5, planes=False, dtype=np.float32, seed=3, layer=1, steps=(4,)):
    operation = cpu.Dropout(shape, p, planes, dtype)
    operation.place = Place(seed, layer, np.array(steps))
    return operation


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@example(shape=GAPS, seed=0)
@given(shape=images, seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(planes, dtype, shape, seed):
    """Results lie in buffers full of NaN; what lies around what is read are other numbers. More samples are reserved."""
    N, cells = shape[0], shape[1:2] if planes else shape[1:]
    rng = np.random.default_rng(seed)
    samples, upstream = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    operation, steps = operation_of(shape[1:], 0.25, planes, dtype), np.array([4])
    operation.place = Place(seed, 1, steps)
    operation.reserve(N + 3)
    x, dy = (filled_buffer(N, shape[1:], dtype, 99, a) for a in (samples, upstream))
    y, dx, passed = (filled_buffer(N, shape[1:], dtype, np.nan) for _ in range(3))
    before = x.array.copy(), dy.array.copy()
    run(operation.forward(N, y, x, ()))
    saved = y.array.copy()
    steps += 1                              # before backward, in training
    run(operation.evaluate(N, passed, x, ()))
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    assert operation.backward(N, None, (), dy, x, y, (), ()) == []               # nothing asked for
    mask = oracles.dropout_mask(N, cells, 0.25, seed, 1, 4).reshape(*shape[:2], *(1, 1) if planes else shape[2:])
    assert equal(y.view(N), scaled(samples, mask, 0.25)) and equal(dx.view(N), scaled(upstream, mask, 0.25))
    assert equal(passed.view(N), samples)
    for written in (y, dx, passed):
        assert np.isnan(written.view(N + 1)[N]).all() and not written.array[written.zeros:].any()
    assert equal(x.array, before[0]) and equal(dy.array, before[1]) and equal(y.array, saved)


def test_bytes():
    operation = operation_of((3, 4, 5))
    operation.reserve(6)
    assert operation.bytes(6) == operation.mask.array.nbytes


def test_gradient_is_the_difference_quotient():
    """Exactly, in powers of 2: forward is linear while its step is the same."""
    rng = np.random.default_rng(0)
    x, dy = rng.integers(-4, 5, (6, 3, 4, 5)).astype(float), rng.integers(-4, 5, (6, 3, 4, 5)).astype(float)
    for forward, backward in ((dropout_forward, dropout_backward), (dropout2d_forward, dropout2d_backward)):
        dx = backward(dy, forward(x, 0.75, seed=1)[1], 0.75)
        for k in range(0, x.size, 7):
            above, below = x.copy(), x.copy()
            above.flat[k], below.flat[k] = above.flat[k] + 1, below.flat[k] - 1
            quotient = (dy * (forward(above, 0.75, seed=1)[0] - forward(below, 0.75, seed=1)[0])).sum() / 2
            assert quotient == dx.flat[k]


@pytest.mark.parametrize("forward, backward", [(dropout_forward, dropout_backward), (dropout2d_forward, dropout2d_backward)])
@given(shape=images, seed=seeds)
def test_any_number_of_threads_gives_equal_bits(forward, backward, shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    results = []
    for _ in one_and_all_threads():
        y, mask = forward(x, seed=seed)
        results.append((y.tobytes(), mask.tobytes(), backward(x, mask).tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(dtype):
    x = np.random.default_rng(0).standard_normal((5, 3, 4, 6)).astype(dtype)
    for forward, backward in ((dropout_forward, dropout_backward), (dropout2d_forward, dropout2d_backward)):
        y, mask = forward(x)
        assert equal(forward(awkward(x))[0], y) and equal(backward(awkward(x), awkward(mask)), y)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 0, 4, 4), (1, 1, 1, 1), (0, 5), (1, 0)])
def test_smallest_shapes(shape):
    x = np.ones(shape, np.float32)
    y, mask = dropout_forward(x, 0)
    assert equal(y, x) and equal(mask, np.ones(shape, np.uint8)) and equal(dropout_backward(x, mask, 0), x)


def test_float32_kernels_hold_no_double_and_draw_vectors():
    """Of random numbers one at a time a mask would take five times as long."""
    dropout_backward(*dropout_forward(np.ones((4, 32, 3, 3), np.float32)))
    assert not double_operations(kernels.dropout)
    again = afresh(kernels.dropout_draw)
    again.compile(kernels.dropout_draw.signatures[0])
    if PARALLEL:        # what is compiled with checks of bounds has them in its loops
        assert re.search(r"mul .*<\d+ x i64>", again.inspect_llvm(again.signatures[0]))


# ---- errors

def errors_of(function, *arguments):
    return [(lambda x, a=arguments, o=options: function(x, *a, **o), error, message) for options, error, message in (
        (dict(p=1.5), ValueError, r"^p: expected a number in \[0, 1\], got 1.5"),
        (dict(p=-0.1), ValueError, r"^p: expected a number in \[0, 1\], got -0.1"),
        (dict(p=np.nan), ValueError, r"^p: expected a number in \[0, 1\], got nan"),
        (dict(p="0.5"), TypeError, r"^p: expected a number in \[0, 1\], got '0.5'"))]


@pytest.mark.parametrize("call, error, message", [
    *errors_of(dropout_forward), *errors_of(dropout2d_forward),
    *errors_of(dropout_backward, np.ones((2, 3, 4, 5), np.uint8)), *errors_of(dropout2d_backward, np.ones((2, 3), np.uint8)),
    (lambda x: dropout_forward(x, seed=-1), ValueError, "^seed: expected an int >= 0, got -1"),
    (lambda x: dropout_forward(x, seed=2**128), ValueError, "^seed: expected an int <= 34028[0-9]*, got 34028"),
    (lambda x: dropout_forward(x, seed=0.5), TypeError, "^seed: expected an int >= 0, got 0.5"),
    (lambda x: dropout_forward(x, layer=-1), ValueError, "^layer: expected an int >= 0, got -1"),
    (lambda x: dropout2d_forward(x, step=-1), ValueError, "^step: expected an int >= 0, got -1"),
    (lambda x: dropout_forward(x[0]), ValueError, r"^x: expected shape \(N, C, H, W\) or \(N, F\), got shape \(3, 4, 5\)"),
    (lambda x: dropout2d_forward(x[0, 0]), ValueError, r"^x: expected shape \(N, C, H, W\), got shape \(4, 5\)"),
    (lambda x: dropout_forward(x.astype(int)), TypeError, "^x: expected a float32 or float64 array, got ndarray of dtype int64"),
    (lambda x: dropout_backward(x, x), TypeError, "^mask: expected a uint8 array, got ndarray of dtype float32"),
    (lambda x: dropout_backward(x, np.ones((2, 3), np.uint8)), ValueError,
     r"^mask: expected shape \(2, 3, 4, 5\), as forward returns it, got shape \(2, 3\)"),
    (lambda x: dropout2d_backward(x, np.ones((2, 3, 4, 5), np.uint8)), ValueError,
     r"^mask: expected shape \(2, 3\), as forward returns it, got shape \(2, 3, 4, 5\)"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3, 4, 5), np.float32))


# ---- PyTorch

@pytest.mark.torch
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=images, p=probabilities, seed=st.integers(0, 2**32 - 1))
def test_equals_torch(planes, dtype, shape, p, seed):
    """With PyTorch's mask: y and dx, infinities and NaN among them. It divides by 1 - p in float32, one rounding more."""
    import torch
    function = torch.nn.functional.dropout2d if planes else torch.nn.functional.dropout
    backward = dropout2d_backward if planes else dropout_backward
    x, dy = values(seed, shape, dtype), values(seed + 1, shape, dtype)
    torch.manual_seed(seed)
    mask = (function(torch.ones(shape, dtype=torch.float64), p) != 0).numpy().astype(np.uint8)
    torch.manual_seed(seed)
    tensor = torch.from_numpy(x).requires_grad_()
    y = function(tensor, p)
    y.backward(torch.from_numpy(dy))
    mask = mask.all((2, 3)).astype(np.uint8) if planes else mask
    for ours, theirs in ((backward(x, mask, p), y.detach()), (backward(dy, mask, p), tensor.grad)):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=4 * np.finfo(dtype).eps, atol=0)
