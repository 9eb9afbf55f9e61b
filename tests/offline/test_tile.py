"""What the tile's verbs write into a kernel, compiled for the CPU: it passes what their Python definitions pass in tests/sim."""
import functools
import inspect

import numba
import numpy as np
import pytest
from numba.extending import intrinsic

from . import installed  # noqa: F401
from sim import test_tile as definitions
from sim.test_tile import *  # noqa: F403

pytestmark = pytest.mark.offline
VERBS = [name for name, value in vars(definitions).items() if hasattr(value, "_defn")]      # intrinsics


@functools.cache
def compiled(verb, constants):
    """A function of what is not in capitals."""
    names = list(inspect.signature(verb._defn).parameters)[1:]
    space = {"verb": intrinsic(prefer_literal=True)(verb._defn), **dict(constants)}
    exec(f"def f({', '.join(name for name in names if name not in space)}): return verb({', '.join(names)})", space)
    return numba.njit(space["f"])


def on_host(verb):
    """Call the verb as a kernel would, with NumPy's arrays."""
    def call(*arguments):
        named = inspect.signature(verb._defn).bind(None, *arguments).arguments
        constants = tuple((name, value) for name, value in named.items() if name.isupper())
        return compiled(verb, constants)(*(value for name, value in named.items() if not name.isupper() and name != "typingctx"))
    return call


@pytest.fixture(autouse=True)
def generated(monkeypatch):
    for name in VERBS:
        monkeypatch.setattr(definitions, name, on_host(getattr(definitions, name)))


def test_all_verbs_are_here():
    from nbcnn.kernels.cuda import tile
    assert set(VERBS) == {name for name, value in vars(tile).items() if hasattr(value, "_defn")}


def test_a_product_and_its_sum_are_rounded_once():
    """As the GPU does it; the definition rounds twice, and gives 0."""
    x = 1 + np.full(1, 2**-12, np.float32)
    acc = np.full(1, -np.float32(x[0] * x[0]))
    definitions.tile_dot(acc, x, 0, x, 0, 1)
    assert acc[0] == 2**-24
