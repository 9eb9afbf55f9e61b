"""Kernels of arrays that hold bfloat16: float32 arithmetic of what is read, and what is written is rounded once."""
import re
from typing import NamedTuple

import numba
import numpy as np
import pytest

from nbcnn.kernels import cpu
from nbcnn.kernels.activations import kernels_of
from nbcnn.kernels.cpu import tile
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.cpu.parallel import PARALLEL
from nbcnn.kernels.operation import Place

from arrays import equal
from llvm import afresh

FLOAT32, BFLOAT16 = np.float32, np.uint16


def rounded(values):
    """The bits of the nearest bfloat16 of float32 values, of the even one of two; of a NaN the quiet one with its upper digits."""
    bits = values.view(np.uint32)
    upper, lower = bits >> 16, bits & 0xffff
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    return np.where(np.isnan(values), upper | 0x40, upper + up).astype(BFLOAT16)


def single(bits):
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(FLOAT32)


# ---- single numbers

@numba.njit
def move(y, x):
    for k in range(x.size):
        tile.put(y, k, tile.get(x, k))


def moved(x, dtype):
    """x, read and written by the tile's verbs."""
    y = np.zeros(x.shape, dtype)
    move(y, x)
    return y


def test_all_numbers_are_read():
    bits = np.arange(2**16, dtype=BFLOAT16)
    assert moved(bits, FLOAT32).tobytes() == single(bits).tobytes()
    with np.errstate(invalid="ignore"):
        assert equal(moved(bits, np.float64), single(bits).astype(np.float64))


def test_all_numbers_come_back():
    """With all their bits; but a NaN is quiet then."""
    bits = np.arange(2**16, dtype=BFLOAT16)
    expected = np.where(np.isnan(single(bits)), bits | 0x40, bits).astype(BFLOAT16)
    assert equal(moved(bits, BFLOAT16), expected) and equal(moved(single(bits), BFLOAT16), expected)


@pytest.mark.parametrize(("bits", "expected"), [
    (0x3f808000, 0x3f80), (0x3f818000, 0x3f82), (0x3f808001, 0x3f81), (0x3f80ffff, 0x3f81), (0x3fffffff, 0x4000),     # about 1
    (0x00000001, 0x0000), (0x80008000, 0x8000), (0x00008001, 0x0001), (0x807fffff, 0x8080),                           # denormal
    (0x7f7fffff, 0x7f80), (0xff7fffff, 0xff80), (0x7f7f7fff, 0x7f7f), (0x7f800000, 0x7f80), (0xff800000, 0xff80),     # infinite
    (0x7f800001, 0x7fc0), (0xff800001, 0xffc0), (0x7fffffff, 0x7fff), (0xffffffff, 0xffff), (0x7fc00000, 0x7fc0),     # NaN
])
def test_rounding_by_hand(bits, expected):
    value = np.array([bits], np.uint32).view(FLOAT32)
    assert moved(value, BFLOAT16).tolist() == rounded(value).tolist() == [expected]


def halves_and_neighbours():
    """Float32 numbers of all upper halves: those of bfloat16, those halfway between two, and the next ones to these."""
    lower = np.array([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff], np.uint32)
    return (np.arange(2**16, dtype=np.uint32)[:, None] << 16 | lower).ravel().view(FLOAT32)


def test_rounding():
    values = halves_and_neighbours()
    assert equal(moved(values, BFLOAT16), rounded(values))


@numba.njit
def move_vectors(y, x, lanes):
    one = tile.rows_strided(1, 0, 0)
    for k in range(0, x.size, lanes):
        tile.store(tile.load(1, 1, x, one, k), y, one, k, 0, 1, lanes)


def test_rounding_of_vectors():
    """Of whole ones, and where a number of each is not written."""
    values, lanes = halves_and_neighbours(), tile.lanes(FLOAT32)
    for count in (lanes, lanes - 1):
        x = cpu.allocate((values.size // lanes * count,), FLOAT32)      # the last vector reads beyond
        x[:] = values.reshape(-1, lanes)[:, :count].ravel()
        y = np.zeros(x.shape, BFLOAT16)
        move_vectors(y, x, count)
        assert equal(y, rounded(x))


@pytest.mark.torch
def test_rounding_equals_torch():
    import torch
    values = halves_and_neighbours()
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(BFLOAT16)
    assert equal(single(moved(values, BFLOAT16)), single(expected))        # PyTorch has one NaN


def test_other_integers_are_numbers():
    for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.int64):
        x = np.array([0, 1, 200], dtype)
        assert equal(moved(x, dtype), x)


def test_arrays_with_gaps_are_refused():
    with pytest.raises(numba.TypingError, match="expected an array without gaps"):
        move(np.zeros(4, FLOAT32), np.zeros(8, FLOAT32)[::2])
    with pytest.raises(numba.TypingError, match="expected an array without gaps"):
        move(np.zeros(8, FLOAT32)[::2], np.zeros(4, FLOAT32))


# ---- operations

def running(C):
    """Statistics of C channels, and the number of batches."""
    return np.linspace(-1, 1, C, dtype=FLOAT32), np.linspace(0.5, 2, C, dtype=FLOAT32), np.array([3])


class Case(NamedTuple):
    """An operation's name and arguments, but for the dtype; the shapes of its inputs and of y."""
    name: str
    arguments: tuple
    shapes: tuple
    y_shape: tuple

    def __str__(self):
        return "-".join(map(str, (self.name, *self.arguments)))

    def operation(self):
        arguments = self.arguments
        if self.name == "Activation":
            arguments = kernels_of(arguments[0], cpu), *arguments[1:]
        elif self.name == "BatchNorm":
            arguments = *arguments, running(self.y_shape[0])
        operation = getattr(cpu, self.name)(*arguments, np.dtype(FLOAT32))
        operation.place = Place(1, 2, np.zeros(1, np.int64))
        operation.reserve(N)
        return operation


N = 5
X, GAPS, ODD = (3, 6, 4), (16, 4, 4), (5, 7, 9)       # images of GAPS have a gap between them
FUNCTIONS = {"relu": (), "leaky_relu": (0.3,), "scale": (0.3,), "tanh": (), "sigmoid": (), "gelu": (), "gelu_tanh": ()}
ACTIVATIONS = [Case("Activation", (name, GAPS, options), (GAPS,), GAPS) for name, options in FUNCTIONS.items()]
OTHERS = [
    Case("Add", ((GAPS, GAPS),), (GAPS, GAPS), GAPS),
    Case("Flatten", (GAPS,), (GAPS,), (256,)),
    Case("MaxPool2d", (X, (2, 2), (2, 2), (0, 0), (1, 1), (3, 3, 2)), (X,), (3, 3, 2)),
    Case("MaxPool2d", (ODD, (3, 3), (1, 1), (1, 1), (1, 1), (5, 7, 9)), (ODD,), (5, 7, 9)),
    Case("MaxPool2d", (GAPS, (2, 2), (1, 1), (1, 1), (2, 2), (16, 4, 4)), (GAPS,), (16, 4, 4)),
    Case("AvgPool2d", (X, (2, 2), (2, 2), (0, 0), True, None, (3, 3, 2)), (X,), (3, 3, 2)),
    Case("AvgPool2d", (ODD, (3, 3), (1, 2), (1, 1), False, None, (5, 7, 5)), (ODD,), (5, 7, 5)),
    Case("AdaptiveAvgPool2d", (GAPS, (16, 1, 1)), (GAPS,), (16, 1, 1)),
    Case("AdaptiveAvgPool2d", (ODD, (5, 4, 6)), (ODD,), (5, 4, 6)),
    Case("BatchNorm", (GAPS, 1e-5, 0.1, None), (GAPS,), GAPS),
    Case("BatchNorm", (ODD, 1e-3, 0.1, ("relu", ())), (ODD,), ODD),
    Case("BatchNorm", ((7,), 1e-5, 0.1, ("leaky_relu", (0.3,))), ((7,),), (7,)),
    Case("Concat", ((GAPS, (3, 4, 4)),), (GAPS, (3, 4, 4)), (19, 4, 4)),
    Case("Dropout", (GAPS, 0.25, False), (GAPS,), GAPS),
    Case("Dropout", (ODD, 0.5, True), (ODD,), ODD),
]
# How x and dx are held, and how y and dy; of several inputs every other one is held as y is.
KINDS = {"bfloat16": (BFLOAT16, BFLOAT16), "float32-to-bfloat16": (FLOAT32, BFLOAT16), "bfloat16-to-float32": (BFLOAT16, FLOAT32)}


def numbers(seed, shape):
    """Normal numbers that bfloat16 has."""
    return single(rounded(np.random.default_rng(seed).standard_normal((N, *shape), FLOAT32)))


def held(values, kind):
    """A buffer of float32 or bfloat16."""
    return cpu.Buffer.holding(rounded(values) if kind == BFLOAT16 else values)


def samples(buffer):
    """What a buffer holds, without the gaps."""
    return np.ascontiguousarray(buffer.view(N))


def results(case, x_kind, y_kind):
    """y, y of evaluation and each dx, as they lie in memory, then what is float32 in any case: statistics, gradients of parameters.

    Forward and backward of given numbers. What backward reads of y is rounded, so that all kinds of y hold it.
    """
    operation, C, kinds = case.operation(), case.y_shape[0], [x_kind, y_kind]
    normalizes = case.name == "BatchNorm"
    params, dparams = (tuple(np.linspace(k, 2, C, dtype=FLOAT32) for k in (0.5, -1)) if normalizes else () for _ in range(2))
    xs = [held(numbers(k, shape), kinds[k % 2]) for k, shape in enumerate(case.shapes)]
    dxs = [cpu.Buffer(N, shape, kinds[k % 2]) for k, shape in enumerate(case.shapes)]
    y, evaluated = (cpu.Buffer(N, case.y_shape, y_kind) for _ in range(2))
    x, dx = (buffers[0] if len(buffers) == 1 else tuple(buffers) for buffers in (xs, dxs))
    run(operation.evaluate(N, evaluated, x, params))
    run(operation.forward(N, y, x, params))
    y_read = y if y_kind == BFLOAT16 else held(single(rounded(samples(y))), FLOAT32)
    run(operation.backward(N, dx, dparams, held(numbers(9, case.y_shape), y_kind), x, y_read, params, (False, False)))
    exact = [*dparams, operation.mean, operation.var] if normalizes else []
    exact += [operation.argmax.view(N)] if case.name == "MaxPool2d" else []
    return [samples(a) for a in (y, evaluated, *dxs)], exact


# One of the activations stands for all where x and y are held differently.
@pytest.mark.parametrize(("case", "kinds"), [*((case, "bfloat16") for case in ACTIVATIONS[1:]),
                                             *((case, kind) for case in (ACTIVATIONS[0], *OTHERS) for kind in KINDS)], ids=str)
def test_equals_float32_rounded_once(case, kinds):
    expected, expected_exact = results(case, FLOAT32, FLOAT32)
    found, exact = results(case, *KINDS[kinds])
    assert any(a.dtype == BFLOAT16 for a in found)
    for a, b in zip(found, expected, strict=True):
        assert np.unique(b).size > 8
        assert equal(a, rounded(b) if a.dtype == BFLOAT16 else b)
    assert all(map(equal, exact, expected_exact)) and len(exact) == len(expected_exact)


def test_a_sum_of_three_is_rounded_after_each_sum():
    operation = cpu.Add((X, X, X), np.dtype(FLOAT32))
    a, b, c = (numbers(k, X) for k in range(3))
    y = cpu.Buffer(N, X, BFLOAT16)
    run(operation.forward(N, y, tuple(held(x, BFLOAT16) for x in (a, b, c)), ()))
    assert equal(samples(y), rounded(single(rounded(a + b)) + c))


@pytest.mark.skipif(not PARALLEL, reason="what is compiled with checks of bounds has them in its loops")
@pytest.mark.parametrize("case", [ACTIVATIONS[3], *(case for case in OTHERS if case.name != "Flatten" and X not in case.shapes)],
                         ids=str)
def test_kernels_are_vectors(case):
    """Where a read depends on a condition the compiler leaves 16 bits one by one, which takes three times as long."""
    operation = case.operation()
    *xs, dy, y = (held(numbers(0, shape), BFLOAT16) for shape in (*case.shapes, case.y_shape, case.y_shape))
    x = xs[0] if len(xs) == 1 else tuple(xs)
    params = (np.ones(case.y_shape[0], FLOAT32),) * 2 if case.name == "BatchNorm" else ()
    calls = [*operation.forward(N, y, x, params), *operation.backward(N, x, params, dy, x, y, params, (False, False))]
    run(calls)
    for kernel in {call.kernel for call in calls}:
        again = afresh(kernel)
        signature = next((s for s in kernel.signatures if any(getattr(a, "dtype", None) == numba.uint16 for a in s)), None)
        if signature and kernel.__name__ not in ("batchnorm_moments", "dropout_draw"):
            again.compile(signature)
            assert re.search(r"load <\d+ x i16>", again.inspect_llvm(again.signatures[0])), kernel.__name__
