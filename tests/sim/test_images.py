"""The way from bytes to a network's input on a simulated GPU: equal to the CPU's."""
import numpy as np
import pytest

from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed
from nbcnn.kernels.cuda.images import gather_call
from nbcnn.kernels.cuda.launch import run
from nbcnn.kernels.cuda.state import STEP, make_state
from nbcnn.kernels.images import load_images, normalization_table, normalize_images

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
SHAPE = (3, 4, 5)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (6, *SHAPE), dtype=np.uint8)       # no 0, which fills the gap
INDEX, FLIP = np.array([4, 0, 5, 4]), np.array([True, False, True, False])
TABLE = normalization_table([0.4, 0.5, 0.6], [0.25, 0.5, 1], 3, np.float64)


def expected(index, flip, shift, table, images=IMAGES, **options):
    out = np.empty((len(index), *images.shape[1:]), table.dtype)
    load_images(out, images, index, flip, shift, table, **options)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-2, 1), (4, 0), (0, -5), (-1, 0)])
def test_equals_cpu(dtype, shift):
    table = TABLE.astype(dtype)
    out = to_device(np.full((4, *SHAPE), np.nan, dtype))
    load_images(out, *map(to_device, (IMAGES, INDEX, FLIP)), shift, to_device(table))
    assert (to_host(out) == expected(INDEX, FLIP, shift, table)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("border", ["zero", "reflect"])
@pytest.mark.parametrize("shift", [(-3, 4), [[3, 4], [-3, -4], [0, 1], [2, 0]]])
@pytest.mark.parametrize("cutout", [
    {}, dict(cutout=3, corners=[[-2, 3], [4, 5], [-3, -3], [1, 0]]), dict(cutout=1, corners=(3, 4))])
def test_borders_shifts_of_each_and_cutouts(dtype, border, shift, cutout):
    """From NumPy and from the device."""
    table, options = TABLE.astype(dtype), dict(border=border, **cutout)
    same = expected(INDEX, FLIP, shift, table, **options)
    assert (same == 0).sum() == {0: 0, 3: 3 * (2 + 9), 1: 3 * 4}[options.get("cutout", 0)]
    for place in (np.asarray, lambda pairs: to_device(np.array(pairs, np.int16)) if np.ndim(pairs) == 2 else pairs):
        out = to_device(np.full((4, *SHAPE), np.nan, dtype))
        options = {name: place(value) if name == "corners" else value for name, value in options.items()}
        load_images(out, *map(to_device, (IMAGES, INDEX, FLIP)), place(shift), to_device(table), **options)
        assert (to_host(out) == same).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shifts, options", [
    (shifts, options) for shifts in ([[1, -1], [0, 2], [-1, 0]], [[1, -1], [0, 2], [-1, 0], [3, 3], [-2, 4]])
    for options in ({}, dict(border="reflect", cutout=2))
])
def test_steps_of_an_epoch(dtype, shifts, options):
    """Each step takes its own part of index, flips, corners and shifts, of each step or each image; the last batch is smaller."""
    index, flip, corners, shifts = RNG.permutation(6)[:5], RNG.random(5) < 0.5, RNG.integers(-2, 4, (5, 2)), np.array(shifts)
    table, state, own_shifts = TABLE.astype(dtype), make_state(), len(shifts) == 5
    kind = *SHAPE, own_shifts, "border" in options, options.get("cutout", 0)
    arrays = [to_device(a) for a in (index, flip.view(np.uint8), shifts.ravel(), corners.ravel(), table.ravel())]
    for step, count in enumerate((2, 2, 1)):
        state[STEP] = step
        out = to_device(np.full((2, *SHAPE), np.nan, dtype))
        run([gather_call(out.reshape(out.size), to_device(IMAGES.ravel()), kind, *arrays, state, 2, count)])
        own = slice(2 * step, 2 * step + count)
        shift = shifts[own] if own_shifts else shifts[step].tolist()
        assert (to_host(out)[:count] == expected(index[own], flip[own], shift, table, corners=corners[own], **options)).all()
        assert np.isnan(to_host(out)[count:]).all()


def test_any_layout_and_int_type():
    table, images = TABLE.astype(np.float32), IMAGES[:, :, :, ::-1]
    out = to_device(np.full((4, 4, 5, 3), np.nan, np.float32))
    load_images(transposed(out, (0, 3, 1, 2)), transposed(to_device(images.transpose(3, 0, 1, 2).copy()), (1, 2, 3, 0)),
                to_device(INDEX.astype(np.int8)), to_device(FLIP), (1, 1), transposed(to_device(table.T.copy()), (1, 0)))
    assert (to_host(out).transpose(0, 3, 1, 2) == expected(INDEX, FLIP, (1, 1), table, images)).all()
    out = to_device(np.full((0, *SHAPE), np.nan, np.float32))
    load_images(out, to_device(images), to_device(INDEX[:0]), to_device(FLIP[:0]), (1, 1), to_device(table))


def test_normalize_images():
    out = to_device(np.full((2, *SHAPE), np.nan))
    normalize_images(out, to_device(IMAGES[:2]), to_device(TABLE))
    assert (to_host(out) == expected(np.arange(2), np.zeros(2, bool), (0, 0), TABLE)).all()


GOOD = dict(out=np.ones((4, *SHAPE)), images=IMAGES, index=INDEX, flip=FLIP, table=TABLE)


@pytest.mark.parametrize("name, value, error, message", [
    ("out", GOOD["out"], TypeError, "^out: expected device arrays, as images, index, flip, table is one"),
    ("images", IMAGES, TypeError, "^images: expected device arrays"),
    ("index", INDEX.tolist(), TypeError, "^index: expected device arrays"),
    ("flip", FLIP, TypeError, "^flip: expected device arrays"),
    ("table", TABLE, TypeError, "^table: expected device arrays"),
    ("images", to_device(IMAGES.astype(int)), TypeError, "images: expected an array of dtype uint8, got .* int64"),
    ("index", to_device(INDEX + 1), IndexError, r"index: expected numbers in \[0, 6\), got 6 at position 2"),
    ("index", to_device(INDEX - 1), IndexError, r"index: expected numbers in \[0, 6\), got -1 at position 1"),
    ("table", to_device(TABLE.astype(np.float32)), TypeError, "table: expected float64, the dtype of out, got float32"),
    ("out", to_device(GOOD["out"][:3]), ValueError, r"index: expected shape \(3,\), out's B, got shape \(4,\)"),
])
def test_errors(name, value, error, message):
    arguments = {key: to_device(a) for key, a in GOOD.items()} | {name: value}
    with pytest.raises(error, match=message):
        load_images(shift=(0, 0), **arguments)
