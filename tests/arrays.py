"""Arrays for tests."""
import numpy as np
import pytest

from nbcnn.kernels import cpu

# `-m quick` has float64 alone, in which gradients are tested: every kernel is compiled once.
in_both_dtypes = pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.quick)])


def mostly_float32(cases, kind=lambda case: None):
    """(dtype, case) of all cases in float32, and of the first one of each kind in float64: for the simulator, where they take
    seconds."""
    first = {kind(case): case for case in reversed(cases)}
    return [(np.float32, case) for case in cases] + [(np.float64, case) for case in first.values()]


def integers(seed, *shapes, dtype=np.float32):
    """Arrays of small integers: every sum of their products is exact in float32, in any order."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 5, shape).astype(dtype) for shape in shapes]


def equal(a, b):
    """Same shape, dtype and values, NaN at the same places."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def awkward(a):
    """The same values, backwards in memory along every axis, with 99 between them, not writable."""
    view = np.full(tuple(2 * size for size in a.shape), 99, a.dtype)[tuple(slice(None, None, -2) for _ in a.shape)]
    view[...] = a
    view.flags.writeable = False
    return view


def filled_buffer(n, shape, dtype, fill, value=None):
    """A CPU buffer for n + 1 samples, full of `fill` but for its pixel of zeros; its first n samples are `value`, if given."""
    buffer = cpu.Buffer(n + 1, shape, dtype)
    buffer.array[:buffer.zeros] = fill
    if value is not None:
        buffer.view(n)[...] = value
    return buffer


class Reshaped(np.ndarray):
    """A subclass with a reshape of its own, and copies too small for the shape."""
    def reshape(self, *shape, **options):
        return np.zeros(1, self.dtype)

    transpose = ravel = astype = copy = reshape
