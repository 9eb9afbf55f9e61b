"""Images of bytes to network input: the gathering kernel against NumPy, exactly."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels.cpu.buffer import Buffer
from nbcnn.kernels.images import load_images, normalization_table, normalize_images

import oracles
from arrays import in_both_dtypes
from threads import one_and_all_threads

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@st.composite
def batches(draw):
    """Arguments of load_images after out, images, index, flip, shift, table, and its options."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, batch = draw(st.integers(1, 6)), draw(st.integers(0, 7))
    C, H, W = draw(st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)))
    table = rng.standard_normal((C, 256)).astype(draw(st.sampled_from([np.float32, np.float64])))
    border, cutout = draw(st.sampled_from(["zero", "reflect"])), draw(st.integers(0, 9))
    furthest = (H, W) if border == "zero" else (H - 1, W - 1)
    shift = tuple(draw(st.integers(-most, most)) for most in furthest)
    if draw(st.booleans()):
        shift = rng.integers(np.negative(furthest), furthest, (batch, 2), endpoint=True)
    options = dict(border=border, cutout=cutout)
    if cutout:
        options["corners"] = rng.integers(-cutout, (H, W), (batch, 2), endpoint=True)
        if draw(st.booleans()):
            options["corners"] = tuple(map(int, rng.integers(-cutout, (H, W))))
    return (rng.integers(0, 256, (count, C, H, W), np.uint8), rng.integers(0, count, batch), rng.random(batch) < 0.5,
            shift, table), options


def outputs(shape, dtype):
    """Arrays of NaN to write to: a buffer's, channels last, and C-contiguous; each with all memory around it."""
    buffer = Buffer(shape[0], shape[1:], dtype)
    buffer.array[...] = np.nan
    flat = np.full(shape, np.nan, dtype)
    return [(buffer.view(shape[0]), buffer.array), (flat, flat)]


@in_both_dtypes
def test_frozen_values(dtype):
    """Worked by hand: 1x2x3 images 10..15 and 20..25, the table doubles."""
    images = np.array([[[[10, 11, 12], [13, 14, 15]]], [[[20, 21, 22], [23, 24, 25]]]], np.uint8)
    table = 2 * np.arange(256, dtype=dtype)[None] + 1
    out = np.full((3, 1, 2, 3), np.nan, dtype)
    load_images(out, images, np.array([1, 0, 1]), np.array([False, True, True]), (1, -1), table)
    assert out[:, 0].tolist() == [[[1, 1, 1], [43, 45, 1]], [[1, 1, 1], [23, 21, 1]], [[1, 1, 1], [43, 41, 1]]]


@given(batches())
def test_equals_numpy(drawn):
    arguments, options = drawn
    images, index, *_, table = arguments
    expected = oracles.load_images(*arguments, **options)
    for out, memory in outputs((len(index), *images.shape[1:]), table.dtype):
        around = np.isnan(memory).sum() - out.size
        load_images(out, *arguments, **options)
        assert np.array_equal(out, expected)
        assert np.isnan(memory).sum() == around        # all of out is written, and nothing else


@given(batches())
def test_inputs_of_any_layout_stay_as_they_are(drawn):
    (images, index, flip, shift, table), options = drawn
    expected = oracles.load_images(images, index, flip, shift, table, **options)
    strided = [np.asfortranarray(images), np.repeat(images, 2, 0)[::2],
               np.repeat(index, 2).astype(np.int16)[::2], np.repeat(flip, 2)[::2], np.repeat(table, 2, 1)[:, ::2]]
    strided += [np.asfortranarray(pairs.astype(np.int8)) for pairs in (shift, options.get("corners"))
                if isinstance(pairs, np.ndarray)]
    copies = [array.copy() for array in (*strided, images)]
    for array in (*strided, images):
        array.flags.writeable = False
    fortran, spread, index, flip, table, *moves = strided
    if isinstance(shift, np.ndarray):
        shift = moves[0]
    if isinstance(options.get("corners"), np.ndarray):
        options["corners"] = moves[-1]
    for these in (images, fortran, spread):
        out = np.full((len(index), *images.shape[1:]), np.nan, table.dtype)
        load_images(out, these, index, flip, shift, table, **options)
        assert np.array_equal(out, expected)
    assert all(np.array_equal(array, copy) for array, copy in zip((*strided, images), copies, strict=True))


@dtypes
def test_normalization(dtype):
    """bytes / 255, minus mean, over std: computed in float64, so float32 is the nearest float32 to float64's values."""
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 4), np.uint8)
    out = np.full(images.shape, np.nan, dtype)
    normalize_images(out, images, normalization_table(mean, std, 3, dtype))
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert np.array_equal(out, expected.astype(dtype))
    normalize_images(out, images, normalization_table(None, None, 3, dtype))
    assert np.array_equal(out, (images / 255).astype(dtype))


def test_threads_do_not_matter():
    rng = np.random.default_rng(0)
    images, index, flip = rng.integers(0, 256, (50, 3, 32, 32), np.uint8), rng.permutation(50), rng.random(50) < 0.5
    table, shift = normalization_table(None, None, 3, np.float32), rng.integers(-8, 9, (50, 2))
    results = []
    for _ in one_and_all_threads():
        out = np.full(images.shape, np.nan, np.float32)
        load_images(out, images, index, flip, shift, table, border="reflect", cutout=9, corners=shift)
        results.append(out)
    assert np.array_equal(*results)


GOOD = dict(out=np.full((2, 3, 4, 5), np.nan, np.float32), images=np.zeros((6, 3, 4, 5), np.uint8), index=np.array([5, 0]),
            flip=np.array([True, False]), shift=(4, -5), table=np.zeros((3, 256), np.float32))
READ_ONLY = np.zeros((2, 3, 4, 5), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize("name, value, error, message", [
    ("out", np.zeros((2, 3, 4, 5), np.int32), TypeError, "out: expected a float32 or float64 array"),
    ("out", np.zeros((2, 3, 20), np.float32), ValueError, r"out: expected shape \(B, C, H, W\)"),
    ("out", np.zeros((2, 3, 5, 4), np.float32), ValueError, r"out: expected shape \(2, 3, 4, 5\)"),
    ("out", np.zeros((2, 3, 4, 5)).tolist(), ValueError, "out: expected a writable NumPy array"),
    ("out", READ_ONLY, ValueError, "out: expected a writable NumPy array"),
    ("images", np.zeros((6, 3, 4, 5)), TypeError, "images: expected an array of dtype uint8"),
    ("images", np.zeros((3, 4, 5), np.uint8), ValueError, r"images: expected shape \(M, C, H, W\)"),
    ("index", np.array([0.0, 1.0]), TypeError, "index: expected an array of dtype integer"),
    ("index", np.array([0, 1, 2]), ValueError, r"index: expected shape \(2,\)"),
    ("index", np.array([5, 6]), IndexError, r"index: expected numbers in \[0, 6\), got 6 at position 1"),
    ("index", np.array([-1, 0]), IndexError, "got -1 at position 0"),
    ("index", np.array([2**64 - 1, 0], np.uint64), IndexError, "got 18446744073709551615 at position 0"),
    ("flip", np.array([0, 1]), TypeError, "flip: expected an array of dtype bool"),
    ("flip", np.array([True]), ValueError, r"flip: expected shape \(2,\)"),
    ("shift", (5, 0), ValueError, r"shift: expected pairs from \(-4, -5\) to \(4, 5\), got \(5, 0\)$"),
    ("shift", (0, -6), ValueError, r"shift: expected pairs from \(-4, -5\) to \(4, 5\), got \(0, -6\)$"),
    ("shift", (0.5, 0), TypeError, "shift: expected an int, got 0.5"),
    ("shift", None, TypeError, r"shift: expected a pair of ints, or an int array \(B, 2\), got None"),
    ("shift", (1, 2, 3), ValueError, r"shift: expected a pair of ints, or an int array \(B, 2\), got \(1, 2, 3\)"),
    ("shift", np.array([[4, -5], [0, 6]]), ValueError, r"got \(0, 6\) at position 1$"),
    ("shift", np.array([[2**64 - 1, 0], [0, 0]], np.uint64), ValueError, r"got \(18446744073709551615, 0\) at position 0$"),
    ("shift", np.zeros((3, 2), int), ValueError, r"shift: expected shape \(2, 2\), out's B, and a pair of each, got"),
    ("shift", np.zeros((2, 2)), TypeError, "shift: expected an array of dtype integer, got ndarray of dtype float64"),
    ("table", np.zeros((3, 255), np.float32), ValueError, r"table: expected shape \(3, 256\)"),
    ("table", np.zeros((3, 256)), TypeError, "table: expected float32, the dtype of out"),
    ("border", "mirror", ValueError, "border: expected one of 'zero', 'reflect', got 'mirror'"),
    ("border", "reflect", ValueError, r"shift: expected pairs from \(-3, -4\) to \(3, 4\), got \(4, -5\)$"),
    ("cutout", -1, ValueError, "cutout: expected an int >= 0, got -1"),
    ("cutout", 3, TypeError, r"corners: expected a pair of ints, or an int array \(B, 2\), got None"),
])
def test_errors(name, value, error, message):
    with pytest.raises(error, match=message):
        load_images(**{**GOOD, name: value})
    assert np.isnan(GOOD["out"]).all()


@pytest.mark.parametrize("corners, error, message", [
    ([[-3, 5], [4, 6]], ValueError, r"corners: expected pairs from \(-3, -3\) to \(4, 5\), got \(4, 6\) at position 1$"),
    ([[-4, 5], [4, 5]], ValueError, r"got \(-4, 5\) at position 0$"),
    (np.zeros((2, 3), int), ValueError, r"corners: expected shape \(2, 2\), out's B, and a pair of each, got shape \(2, 3\)"),
])
def test_corners_that_do_not_fit(corners, error, message):
    with pytest.raises(error, match=message):
        load_images(**GOOD, cutout=3, corners=corners)
    assert np.isnan(GOOD["out"]).all()


@pytest.mark.torch
def test_reflects_as_pytorch():
    """RandomCrop's way: pad all around, and cut a part of the first size out of that."""
    import torch
    rng = np.random.default_rng(0)
    images, shift = rng.integers(0, 256, (9, 3, 5, 4), np.uint8), rng.integers(-3, 4, (9, 2))
    padded = torch.nn.functional.pad(torch.tensor(images / 255), (3, 3, 3, 3), mode="reflect").numpy()
    out = np.full(images.shape, np.nan)
    table = normalization_table(None, None, 3, np.float64)
    load_images(out, images, np.arange(9), np.zeros(9, bool), shift, table, border="reflect")
    for b, (dy, dx) in enumerate(shift):
        assert np.array_equal(out[b], padded[b, :, 3 - dy:8 - dy, 3 - dx:7 - dx])


@pytest.mark.parametrize("mean, std, channels, dtype, error, message", [
    ([0.5], None, 3, np.float32, ValueError, "mean: expected 3 finite numbers, one per channel"),
    (None, [0.5, np.nan, 1], 3, np.float32, ValueError, "std: expected 3 finite numbers"),
    (None, [0.5, 0, 1], 3, np.float32, ValueError, "std: expected positive numbers"),
    (None, None, 3, np.int64, TypeError, "dtype: expected float32 or float64, got int64"),
])
def test_table_errors(mean, std, channels, dtype, error, message):
    with pytest.raises(error, match=message):
        normalization_table(mean, std, channels, dtype)


def test_normalize_images_takes_as_many_as_there_are():
    with pytest.raises(ValueError, match="that of the images"):
        normalize_images(GOOD["out"], GOOD["images"], GOOD["table"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_std_next_to_zero_is_no_warning(dtype, recwarn):
    assert normalization_table([0.0, 1e300], [5e-324, 1.0], 2, dtype)[0, 255] == np.inf and not recwarn.list
