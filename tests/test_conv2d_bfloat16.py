"""Convolution, with and without max pooling, and the linear layer in bfloat16: oracle, memory, NaN, bits, errors and bytes.

Small integers are bfloat16 numbers, and all sums of their products exact in float32. So what is computed of them is the oracle's
result, rounded once.
"""
import math
import tracemalloc
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcnn.kernels import cpu
from nbcnn.kernels.bfloat16 import BFLOAT16, from_bfloat16, numbers, to_bfloat16
from nbcnn.kernels.cpu.buffer import SLACK
from nbcnn.kernels.cpu.conv2d_bfloat16 import CHUNK, pairs_of
from nbcnn.kernels.cpu.launch import run

import oracles
from arrays import equal
from threads import one_and_all_threads

FLOAT32 = np.dtype(np.float32)
NAN = {BFLOAT16: 0x7fc0, FLOAT32: np.nan, np.dtype(np.uint8): 99}
KINDS = {"bfloat16": (BFLOAT16, BFLOAT16), "float32-to-bfloat16": (FLOAT32, BFLOAT16), "bfloat16-to-float32": (BFLOAT16, FLOAT32),
         "float32": (FLOAT32, FLOAT32)}        # of x and dx, and of y and dy


class Case(NamedTuple):
    """A convolution: sizes and options. With a `pool` it has windows, and perhaps a ReLU. Without a kernel it is a linear layer.

    `skips` is whether its backward visits the pixels alone that won, whatever the unit would choose.
    """
    C: int
    size: tuple
    O: int
    kernel: tuple
    n: int
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dilation: tuple = (1, 1)
    pool: tuple = None
    relu: bool = False
    skips: bool = False

    def __str__(self):
        return "-".join(str(value).replace(" ", "") for name, value in self._asdict().items()
                        if value != self._field_defaults.get(name, ()))

    @property
    def images(self):
        """Sizes of the convolution, of a linear layer too: size, kernel, and the size of what comes out before it is pooled."""
        size, kernel = self.size or (1, 1), self.kernel or (1, 1)
        out = tuple((s + 2 * p - d * (k - 1) - 1) // stride + 1 for s, k, stride, p, d in zip(
            size, kernel, self.stride, self.padding, self.dilation, strict=True))
        return size, kernel, out

    @property
    def shapes(self):
        """(x, y) of a sample."""
        *_, out = self.images
        if self.pool:
            out = tuple(size // cells for size, cells in zip(out, self.pool, strict=True))
        return (self.C, *self.size), (self.O, *(out if self.kernel else ()))

    def operation(self):
        (x_shape, y_shape), (*_, out) = self.shapes, self.images
        if not self.kernel:
            return cpu.BFloat16Linear(x_shape, y_shape, FLOAT32)
        if self.pool:
            y_shape, options = (self.O, *out), (self.kernel, self.padding, self.pool, self.relu)
            operation = cpu.BFloat16Conv2dMaxPool2d(x_shape, y_shape, *options, FLOAT32)
            operation.skips = self.skips
            return operation
        return cpu.BFloat16Conv2d(x_shape, y_shape, self.kernel, self.stride, self.padding, self.dilation, FLOAT32)

    def arrays(self, seed, make):
        """x, w, b and dy in PyTorch's shapes, by make(rng, shape)."""
        rng, (x_shape, y_shape) = np.random.default_rng(seed), self.shapes
        w_shape = self.O, self.C, *self.kernel
        return [make(rng, shape) for shape in ((self.n, *x_shape), w_shape, w_shape[:1], (self.n, *y_shape))]

    def expected(self, x, w, b, dy):
        """By the oracle: y, argmax or None, dx, dw and db, of x's dtype."""
        size, kernel, out = self.images
        x4, w4 = x.reshape(self.n, self.C, *size), w.reshape(self.O, self.C, *kernel)
        if self.pool:
            y, argmax = oracles.conv2d_maxpool2d_forward(x4, w4, b, self.padding, self.pool, self.relu)
            return y, argmax, *oracles.conv2d_maxpool2d_backward(dy, argmax, x4, w4, self.padding, self.pool)
        options = self.stride, self.padding, self.dilation
        y, dy = oracles.conv2d_forward(x4, w4, b, *options), dy.reshape(self.n, self.O, *out)
        dx, dw, db = oracles.conv2d_backward(dy, x4, w4, *options)
        return y.reshape(self.n, *self.shapes[1]), None, dx.reshape(x.shape), dw.reshape(w.shape), db


def integers(rng, shape):
    """Of which many are 0, so that sums in a window are often equal."""
    return (rng.integers(-3, 4, shape) * (rng.random(shape) < 0.5)).astype(FLOAT32)


def normal(rng, shape):
    return rng.standard_normal(shape, FLOAT32)


def with_slack(array):
    """A flat array with what may be read behind it."""
    return np.lib.stride_tricks.as_strided(array, (array.size + SLACK,))


def held(batch, shape, dtype, values=None):
    """A buffer for `batch` samples whose memory is NaN, but for the given values of the first samples, rounded if need be.

    And but for the pixel of zeros.
    """
    buffer = cpu.BFloat16Buffer(batch, shape, dtype)
    with_slack(buffer.array)[:] = NAN[dtype]
    buffer.array[buffer.zeros:] = 0
    if values is not None:
        buffer.set(to_bfloat16(values) if dtype == BFLOAT16 else values)
    return buffer


def flat(n):
    """A gradient of parameters, full of NaN."""
    array = cpu.allocate((n,), FLOAT32)
    with_slack(array)[:] = np.nan
    return array


def require_untouched(buffer, n):
    """All is NaN, or what `held` fills in its place, but for the first n samples."""
    left = with_slack(buffer.array).copy()
    size = math.prod(buffer.shape)
    for m in range(n):
        left[m * buffer.step:m * buffer.step + size] = NAN[buffer.array.dtype]
    assert not left[buffer.zeros:len(buffer.array)].any()
    left[buffer.zeros:len(buffer.array)] = NAN[buffer.array.dtype]
    assert equal(left, np.full(left.shape, NAN[buffer.array.dtype], left.dtype))


def passes(operation, n, x, w, b, dy, kinds=(BFLOAT16, BFLOAT16), batch=None, bias=True, add=None):
    """What forward and backward give of arrays in PyTorch's shapes: y, argmax, dx, dw, db, each as it lies in memory.

    Memory besides the samples is NaN; what is written lies in the first n samples.
    """
    (x_kind, y_kind), batch = kinds, n if batch is None else batch
    x, y, dx, dy = (held(batch, shape, kind, values) for shape, kind, values in (
        (x.shape[1:], x_kind, x), (dy.shape[1:], y_kind, None), (x.shape[1:], x_kind, None), (dy.shape[1:], y_kind, dy)))
    params, dw, db = (cpu.flat_weight(w), b if bias else None), flat(w.size), flat(b.size)
    if add:
        dw[:], db[:] = add
    if getattr(operation, "argmax", None):
        with_slack(operation.argmax.array)[:] = 99
        operation.argmax.array[operation.argmax.zeros:] = 0
    read = [a.array.copy() for a in (x, dy)] + [params[0].copy(), b.copy()]
    run(operation.forward(n, y, x, params))
    run(operation.backward(n, dx, (dw, db if bias else None), dy, x, y, params, (add is not None,) * 2))
    assert all(map(equal, [x.array, dy.array, params[0], b], read))
    argmax = getattr(operation, "argmax", None)
    for buffer in (y, dx, argmax):
        if buffer is not None:
            require_untouched(buffer, n)
    for vector in (dw, db):
        assert np.isnan(with_slack(vector)[len(vector):]).all()
    y, dx, argmax = (buffer and np.ascontiguousarray(buffer.view(n)) for buffer in (y, dx, argmax))
    return SimpleNamespace(y=y, dx=dx, dw=np.ascontiguousarray(cpu.unflat_weight(dw, w.shape)), db=db, argmax=argmax)


def ready(case, batch=None):
    """The operation of a case, for `batch` samples."""
    operation = case.operation()
    operation.reserve(case.n if batch is None else batch)
    return operation


def require_oracle(case, kinds=(BFLOAT16, BFLOAT16), seed=0, **options):
    """Forward and backward are the oracle's, for integers."""
    x, w, b, dy = case.arrays(seed, integers)
    if not options.get("bias", True):
        b[:] = 0
    batch = case.n + case.n % 2         # for an odd number of samples there is memory for one more
    found = passes(ready(case, batch), case.n, x, w, b, dy, kinds, batch, **options)
    y, argmax, dx, dw, db = case.expected(x, w, b, dy)
    more = options.get("add") or (0, 0)
    for name, a, e, kind in zip(("y", "dx", "dw"), (found.y, found.dx, found.dw), (y, dx, dw + np.float32(more[0])),
                                (*kinds[::-1], FLOAT32), strict=True):
        assert equal(a, to_bfloat16(e) if kind == BFLOAT16 else np.ascontiguousarray(e)), (name, case)
    assert not options.get("bias", True) or equal(found.db, db + np.float32(more[1])), case
    assert argmax is None or equal(found.argmax, argmax), case


CONVOLUTIONS = [
    Case(1, (7, 6), 5, (3, 3), 33, padding=(1, 1)),
    Case(3, (9, 8), 10, (5, 5), 5, padding=(2, 2)),
    Case(5, (9, 8), 16, (3, 2), 31, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    Case(16, (6, 5), 20, (3, 3), 1, padding=(1, 1)),
    Case(24, (5, 6), 32, (2, 3), 32, stride=(1, 2), padding=(1, 2), dilation=(2, 1)),
    Case(32, (5, 5), 66, (3, 3), 5, stride=(2, 2), padding=(1, 1)),
    Case(34, (3, 4), 16, (1, 1), 70),
    Case(48, (5, 6), 1, (3, 3), 33, stride=(2, 3), padding=(1, 2)),
    Case(64, (4, 4), 20, (2, 2), 31),
    Case(100, (3, 4), 10, (1, 2), 1, padding=(0, 1)),
    Case(16, (4, 4), 16, (3, 3), 130, padding=(1, 1)),                                      # gaps between samples; three chunks
    Case(3, (7, 9), 66, (3, 3), 70, stride=(3, 2), padding=(0, 1), dilation=(2, 3)),
    Case(5, (2, 3), 5, (4, 5), 5, padding=(3, 4)),                                          # a kernel larger than the image
    Case(32, (7, 6), 5, (1, 1), 5, stride=(3, 2)),                                          # pixels that nothing reads
    Case(33, (3, 3), 33, (2, 2), 5, stride=(2, 1), padding=(1, 1), dilation=(1, 2)),
]
POOLED = [
    Case(3, (8, 8), 32, (5, 5), 5, padding=(2, 2), pool=(2, 2)),
    Case(32, (9, 8), 32, (3, 3), 33, padding=(1, 1), pool=(2, 2), relu=True),
    Case(24, (9, 11), 66, (2, 2), 5, pool=(3, 2)),                                          # windows that do not cover the image
    Case(16, (7, 7), 5, (3, 3), 70, padding=(1, 1), pool=(2, 3), relu=True),
    Case(34, (3, 4), 10, (1, 1), 31, pool=(1, 2), relu=True),
    Case(5, (5, 4), 16, (3, 3), 1, padding=(2, 1), pool=(3, 1)),
]
POOLED += [case._replace(skips=True) for case in POOLED]
POOLED += [Case(33, (22, 22), 5, (3, 3), 2, padding=(1, 1), pool=(2, 2), skips=True)]       # a full list of winners, an odd one
LINEAR = [Case(C, (), O, (), n) for C, O, n in ((1, 1, 1), (33, 5, 33), (100, 66, 5), (48, 20, 130), (64, 10, 70), (256, 32, 32))]
FLOAT32_CASES = [*(CONVOLUTIONS[k] for k in (1, 4, 14)), *(POOLED[k] for k in (0, 3, 6, 9)), LINEAR[1], LINEAR[4]]


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *POOLED, *LINEAR], ids=str)
def test_equals_oracle(case):
    require_oracle(case)


@pytest.mark.parametrize("kinds", [*KINDS][1:])
@pytest.mark.parametrize("case", FLOAT32_CASES, ids=str)
def test_float32_is_read_and_written(case, kinds):
    """As images and a network's outputs are."""
    require_oracle(case, KINDS[kinds], seed=1)


SOME = [CONVOLUTIONS[1], CONVOLUTIONS[14], POOLED[1], POOLED[7], LINEAR[1]]
some = pytest.mark.parametrize("case", SOME, ids=str)


@some
def test_gradients_are_added(case):
    require_oracle(case, add=(1, -2))


@some
def test_without_a_bias(case):
    require_oracle(case, bias=False)


@some
def test_no_samples(case):
    require_oracle(case._replace(n=0))
    require_oracle(case._replace(n=0), add=(1, -2))


@some
def test_what_is_not_wanted_is_left_out(case):
    """dw, db or dx: the others are the same, and what is None is not computed."""
    x, w, b, dy = case.arrays(2, integers)
    operation = ready(case)
    found = passes(operation, case.n, x, w, b, dy)
    x, dy, y = (held(case.n, a.shape[1:], BFLOAT16, a) for a in (x, dy, dy))
    params = cpu.flat_weight(w), b
    run(operation.forward(case.n, y, x, params))
    for wants_dw, wants_db, wants_dx in np.ndindex(2, 2, 2):
        dw, db, dx = flat(w.size), flat(b.size), held(case.n, case.shapes[0], BFLOAT16)
        calls = operation.backward(case.n, dx if wants_dx else None, (dw if wants_dw else None, db if wants_db else None), dy, x, y,
                                   params, (True, False))
        if wants_dw:
            dw[:] = 3
        run(calls)
        assert equal(db, found.db) if wants_db else np.isnan(db).all()
        assert equal(cpu.unflat_weight(dw, w.shape), found.dw + 3) if wants_dw else np.isnan(dw).all()
        if wants_dx:
            assert equal(np.ascontiguousarray(dx.view(case.n)), found.dx)
        names = {call.kernel.__name__ for call in calls}
        conv, pack = ("conv2d_maxpool2d", "pack_weight_for_input") if case.skips else ("conv2d", "pack_weight")
        assert (f"{conv}_backward_input" in names) == (pack in names) == wants_dx
        assert (f"{conv}_backward_weight" in names) == wants_dw
        assert (f"{conv}_backward_bias" in names) == (wants_db and not (case.skips and wants_dw))


@st.composite
def geometries(draw):
    """A case whose output has at least one pixel, or one window; with dilation and stride only where nothing is pooled."""
    def pairs(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, pool = pairs(1, 3), draw(st.none() | st.just(pairs(1, 3)))
    padding = tuple(draw(st.integers(0, k + 1)) for k in kernel)
    stride, dilation = ((1, 1), (1, 1)) if pool else (pairs(1, 3), pairs(1, 3))
    size = tuple(max(1, d * (k - 1) + cells - 2 * p) + more for k, d, cells, p, more in zip(
        kernel, dilation, pool or (1, 1), padding, pairs(0, 4), strict=True))
    relu, skips = draw(st.tuples(st.booleans(), st.booleans())) if pool else (False, False)
    return Case(draw(st.integers(1, 40)), size, draw(st.integers(1, 40)), kernel, draw(st.sampled_from([1, 2, 3, 32, 33])),
                stride, padding, dilation, pool, relu, skips)


@given(case=geometries(), seed=st.integers(0, 2**32 - 1))
def test_any_geometry_equals_oracle(case, seed):
    require_oracle(case, seed=seed)


def test_sizes_of_blocks_of_channels():
    """By hand: all channels in equal blocks of 8 to 16 pairs, or of fewer where there is one block."""
    assert [pairs_of(C) for C in (2, 16, 24, 30, 32)] == [1, 8, 12, 15, 16]
    assert [pairs_of(C) for C in (36, 48, 64, 96, 100, 120, 272)] == [9, 12, 16, 16, 10, 15, 8]
    assert [pairs_of(C) for C in (1, 3, 33, 34, 38, 46)] == [None] * 6


def test_channels_of_many_sizes():
    """A tile's read of them: in one block or several, as they are or from a copy; so for outputs, which dx reads."""
    for C in (2, 8, 15, 17, 30, 36, 38, 46, 96):
        require_oracle(Case(C, (2, 3), 3, (2, 1), 2))
        require_oracle(Case(3, (2, 3), C, (1, 2), 2))


@pytest.mark.parametrize(("case", "kinds", "copies"), [
    (Case(16, (3, 3), 16, (3, 3), 1), "bfloat16", (None, None)),
    (Case(14, (3, 5), 33, (3, 3), 1), "bfloat16", ((42 + 22, 3, 3), (64, 1, 3))),          # a kernel row's channels are a pixel's
    (Case(14, (3, 5), 5, (3, 1), 1), "bfloat16", (None, (6, 1, 5))),
    (Case(34, (3, 3), 100, (3, 3), 1), "bfloat16", ((64, 3, 3), None)),
    (Case(32, (3, 3), 32, (3, 3), 1), "float32", ((32, 3, 3), (32, 1, 1))),
], ids=str)
def test_what_is_copied(case, kinds, copies):
    """Few channels, float32, and numbers of channels that do not fall into blocks; nothing else."""
    operation = ready(case)
    passes(operation, case.n, *case.arrays(0, integers), KINDS[kinds])
    assert tuple(copy and copy.shape for copy in (operation.x_copy, operation.dy_copy)) == copies


@some
def test_nothing_is_left_of_a_pass_before(case):
    """Of more samples, all NaN."""
    x, w, b, dy = case.arrays(3, normal)
    n = max(1, case.n // 2)
    expected = passes(ready(case), n, x[:n], w, b, dy[:n])
    operation = ready(case)
    passes(operation, case.n, x * np.float32(np.nan), w, b, dy * np.float32(np.nan), (FLOAT32, FLOAT32))
    found = passes(operation, n, x[:n], w, b, dy[:n])
    assert all(map(equal, (found.y, found.dx, found.dw, found.db), (expected.y, expected.dx, expected.dw, expected.db)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@some
def test_nan_and_infinity_stay_in_their_sample(case, value):
    """All that such a number reaches is NaN, or infinite where the number is; other samples do not change."""
    x, w, b, dy = case.arrays(4, normal)
    bad = case.n // 2
    others = np.arange(case.n) != bad
    before = passes(ready(case), case.n, x, w, b, dy)
    x.reshape(case.n, -1)[bad, x[0].size // 2] = value
    forward = passes(ready(case), case.n, x, w, b, dy)
    with np.errstate(invalid="ignore"):
        y, _, _, dw, _ = case.expected(x, w, b, dy)
    dy.reshape(case.n, -1)[bad, dy[0].size // 2] = value
    backward = passes(ready(case), case.n, x, w, b, dy)
    assert equal(forward.y[others], before.y[others]) and equal(backward.y, forward.y)
    assert equal(forward.dx[others], before.dx[others]) and equal(backward.dx[others], before.dx[others])
    found_y, found_dx = from_bfloat16(forward.y), from_bfloat16(backward.dx)
    assert not np.isfinite(found_y[~np.isfinite(y)]).any()
    # Where a backward skips pixels that did not win, they are not multiplied with 0 either, as the oracle does.
    assert not np.isfinite(forward.dw).all() if case.skips else not np.isfinite(forward.dw[~np.isfinite(dw)]).any()
    if case.pool is None:
        assert not np.isfinite(y).all() and not np.isfinite(found_dx[bad]).all()
        assert np.isfinite(before.dw).all() and not np.isfinite(backward.db).all()
    if np.isnan(value):
        assert not np.isinf(found_y).any() and not np.isinf(found_dx).any() and not np.isinf(backward.dw).any()


BITS = [CONVOLUTIONS[1], CONVOLUTIONS[6], POOLED[3], POOLED[9], LINEAR[4]._replace(n=70)]


@pytest.mark.parametrize("case", BITS, ids=str)
def test_same_bits_for_any_batch_and_any_threads(case):
    x, w, b, dy = case.arrays(5, normal)
    whole = passes(ready(case), case.n, x, w, b, dy)
    for first, last in ((0, 1), (1, 4), (case.n - 3, case.n), (2, 36)):
        part = slice(first, min(last, case.n))
        found = passes(ready(case), len(x[part]), x[part], w, b, dy[part])
        assert equal(found.y, whole.y[part]) and equal(found.dx, whole.dx[part])
    for _ in one_and_all_threads():
        found = passes(ready(case), case.n, x, w, b, dy)
        assert all(map(equal, (found.y, found.dx, found.dw, found.db), (whole.y, whole.dx, whole.dw, whole.db)))


@some
def test_y_and_dx_are_rounded_once(case):
    """In bfloat16 they are what they are in float32, rounded: for numbers that bfloat16 has, of dy too."""
    x, w, b, dy = (from_bfloat16(to_bfloat16(a)) for a in case.arrays(6, normal))
    found, expected = (passes(ready(case), case.n, x, w, b, dy, kinds) for kinds in ((BFLOAT16, BFLOAT16), (FLOAT32, FLOAT32)))
    assert equal(found.y, to_bfloat16(expected.y)) and equal(found.dx, to_bfloat16(expected.dx))
    assert equal(found.dw, expected.dw) and equal(found.db, expected.db)
    assert (from_bfloat16(found.y) != expected.y).any() and (from_bfloat16(found.dx) != expected.dx).any()


@pytest.mark.parametrize("kinds", ["bfloat16", "float32"])
@some
def test_error(case, kinds):
    """Against float64, of the numbers rounded to bfloat16.

    Products of two bfloat16 numbers are exact in float32. A sum of `count` of them, in any order, is off by at most count - 1
    roundings of 2^-24 of the sum of their absolute values each; the bias and the sums that a tile begins with are a few more.
    Rounding to bfloat16, which has 8 digits, is off by at most 2^-8 of the result. With sums in bfloat16 this does not hold.
    """
    x, w, b, dy = case.arrays(7, normal)
    found = passes(ready(case), case.n, x, w, b, dy, KINDS[kinds])
    doubles = [from_bfloat16(to_bfloat16(a)).astype(np.float64) for a in (x, w)] + [b.astype(np.float64)] + [
        from_bfloat16(to_bfloat16(dy)).astype(np.float64)]
    if case.pool:
        # The cells that won, which forward takes of sums before they are rounded, are those of float64 but for ties.
        y, argmax, *gradients = case.expected(*doubles)
        assert equal(found.argmax, argmax)
    else:
        y, _, *gradients = case.expected(*doubles)
    scales = case._replace(pool=None).expected(*map(np.abs, doubles[:3]), np.abs(spread(case, doubles[3], found.argmax)))
    _, kernel, out = case.images
    counts = case.C * math.prod(kernel), case.O * math.prod(kernel), case.n * math.prod(out)
    scale_y = window_largest(scales[0], case.pool) if case.pool else scales[0]
    for name, a, e, scale, count, rounds in zip(("y", "dx", "dw"), (found.y, found.dx, found.dw), (y, *gradients[:2]),
                                                (scale_y, *scales[2:4]), counts, (1, 1, 0), strict=True):
        once = 2.0**-8 if rounds and kinds == "bfloat16" else 0
        bound = (count + 4) * 2.0**-24 * scale
        assert (np.abs(numbers(a) - e) <= bound * (1 + once) + once * np.abs(e)).all(), name
        assert np.abs(numbers(a) - e).any()


def test_images_are_not_rounded_for_products_in_float32():
    """Where all that a kernel row reads is a vector of float32, the skipping weight gradient multiplies x and dy as they are.

    The bound is that of `test_error`; what rounding the images would change is larger.
    """
    case = Case(1, (13, 11), 9, (3, 3), 17, padding=(1, 1), pool=(2, 2), relu=True, skips=True)
    x, w, b, dy = case.arrays(8, normal)
    found = passes(ready(case), case.n, x, w, b, dy, (FLOAT32, FLOAT32))
    x, w, dz = (a.astype(np.float64) for a in (x, w, spread(case, dy, found.argmax)))
    dense, bound = case._replace(pool=None), (case.n * 13 * 11 + 4) * 2.0**-24
    *_, dw, _ = dense.expected(x, w, b, dz)
    *_, scale, _ = dense.expected(*map(np.abs, (x, w, b, dz)))
    *_, rounded, _ = dense.expected(from_bfloat16(to_bfloat16(x.astype(FLOAT32))).astype(np.float64), w, b, dz)
    assert (np.abs(found.dw - dw) <= bound * scale).all() and (np.abs(found.dw - rounded) > bound * scale).any()


def spread(case, dy, argmax):
    """dy of the convolution itself: of a pooled one, 0 but where a cell won."""
    if not case.pool:
        return dy
    (WH, WW), (*_, out) = case.pool, case.images
    N, O, PH, PW = dy.shape
    cells = np.where(np.arange(WH * WW) == argmax[..., None], dy[..., None], 0)
    dz = np.zeros((N, O, *out), dy.dtype)
    dz[:, :, :PH * WH, :PW * WW] = cells.reshape(N, O, PH, PW, WH, WW).swapaxes(3, 4).reshape(N, O, PH * WH, PW * WW)
    return dz


def window_largest(z, pool):
    """The largest number of each window."""
    (WH, WW), (N, O, OH, OW) = pool, z.shape
    PH, PW = OH // WH, OW // WW
    return z[:, :, :PH * WH, :PW * WW].reshape(N, O, PH, WH, PW, WW).max((3, 5))


@pytest.mark.parametrize("case", [
    Case(3, (32, 32), 32, (5, 5), 70, padding=(2, 2)), Case(32, (16, 16), 33, (3, 3), 20, padding=(1, 1)),
    Case(34, (12, 12), 16, (1, 1), 100, stride=(2, 2)), Case(32, (16, 16), 32, (3, 3), 64, padding=(1, 1), pool=(2, 2), relu=True),
    Case(3, (32, 32), 32, (5, 5), 128, padding=(2, 2), pool=(2, 2)),
    Case(32, (16, 16), 32, (3, 3), 64, padding=(1, 1), pool=(2, 2), relu=True, skips=True),
    Case(3, (32, 32), 32, (5, 5), 128, padding=(2, 2), pool=(2, 2), skips=True),
    Case(1000, (), 10, (), 512), Case(999, (), 33, (), 33),
], ids=str)
def test_bytes(case):
    """What an operation says it takes is what it takes, with what the first pass allocates, but for packed weights."""
    operation, batch = case.operation(), case.n
    assert operation.packed_w_for_input.size

    def run():
        operation.reserve(batch)
        operation.forward(batch, y, x, (w, b))
        operation.backward(batch, None if x_kind == FLOAT32 else dx, (w, b), dy, x, y, (w, b), (False, False))

    x_kind = FLOAT32 if case.C == 3 else BFLOAT16
    x, dx, y, dy = (cpu.BFloat16Buffer(batch, shape, kind) for shape, kind in (
        *[(case.shapes[0], x_kind)] * 2, *[(case.shapes[1], BFLOAT16)] * 2))
    w, b = (cpu.allocate((size,), FLOAT32) for size in (case.O * case.C * math.prod(case.kernel), case.O))
    run()       # makes the kernels, which take memory too
    operation.reserve(1)
    tracemalloc.start()
    try:
        run()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * taken <= operation.bytes(batch) + operation.backward_bytes(batch, x_kind != FLOAT32) <= 1.3 * taken
    if case.skips:
        strips, foretold = operation.skipping.strip_sums, [operation.backward_bytes(batch, dx) for dx in (False, True)]
        assert (strips is None) == (x_kind == FLOAT32) and (strips is None or strips.nbytes == foretold[1] - foretold[0])


def test_memory_for_whole_tiles_of_samples():
    """For 32 samples at a time, as a tile reads them, and no more of them are read; lines have twice the elements of float32's."""
    assert [LINEAR[0].operation().samples(n) for n in (0, 1, 32, 33, 64, 65, 1000)] == [0, 32, 32, 64, 64, 64, 64]
    for batch, samples in ((0, 0), (1, 32), (32, 32), (33, 64), (CHUNK, CHUNK)):
        assert cpu.BFloat16Buffer.elements(batch, (3, 4, 5)) == samples * 60 + 3
        assert cpu.BFloat16Buffer.elements(batch, (7,)) == samples * 7
    assert cpu.BFloat16Buffer(1, (16, 4, 4), BFLOAT16).step == 256 + 32
    assert cpu.BFloat16Buffer(1, (8, 4, 4), BFLOAT16).step == 128
