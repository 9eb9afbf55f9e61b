"""Arrays for tests."""
import numpy as np


def integers(seed, *shapes, dtype=np.float32):
    """Arrays of small integers: every sum of their products is exact in float32, in any order."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 5, shape).astype(dtype) for shape in shapes]


def awkward(a):
    """The same values, backwards in memory along every axis, with 99 between them, not writable."""
    view = np.full(tuple(2 * size for size in a.shape), 99, a.dtype)[tuple(slice(None, None, -2) for _ in a.shape)]
    view[...] = a
    view.flags.writeable = False
    return view
