"""The checks that all public functions share, each with what used to slip through, and how messages show it."""
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

import nbcnn
from nbcnn.kernels import arguments as check
from nbcnn.kernels import cross_entropy_forward, load_images, maxpool2d_forward, mse_loss_forward, relu_forward, sgd_step
from nbcnn.kernels.backend import as_array
from nbcnn.kernels.shown import shown

from arrays import Reshaped

X = np.ones((2, 3), np.float32)


class Evil:
    """An object of which nothing works."""
    def fail(self, *arguments):
        raise RuntimeError("evil\nobject")
    __array__ = __index__ = __float__ = __bool__ = __len__ = __iter__ = __repr__ = __eq__ = __hash__ = __getattr__ = fail


class Liar(np.ndarray):
    """A subclass that says what the kernels like to hear."""
    dtype = property(lambda self: np.dtype(np.float32))
    shape = property(lambda self: (200, 300))


def test_of_a_subclass_the_memory_is_taken():
    x = np.random.default_rng(0).standard_normal((300, 40), np.float32)
    assert (relu_forward(x.view(Reshaped)) == relu_forward(x)).all()
    assert mse_loss_forward(x.view(Reshaped), x.view(Reshaped)) == 0
    param = np.ones(4, np.float32)
    sgd_step(param.view(Reshaped), param.copy().view(Reshaped), lr=1)
    assert not param.any()
    array = as_array(x.view(Reshaped), "x")
    assert type(array) is np.ndarray and np.shares_memory(array, x) and as_array(x, "x") is x


def test_a_liar_is_judged_by_its_memory():
    with pytest.raises(TypeError, match=r"^x: expected a float32 or float64 array, got Liar of dtype float16$"):
        relu_forward(X.astype(np.float16).view(Liar))
    assert relu_forward(X.view(Liar)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"^dy: expected shape \(2, 3\), that of y, got shape \(1, 3\)$"):
        nbcnn.kernels.relu_backward(X[:1].view(Liar), X)


def test_memory_maps_are_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 3))
    mapped[...] = -1
    assert not relu_forward(mapped).any()


@pytest.mark.parametrize("value, message", [
    (np.ma.masked_array(X, X > 0), r"expected an array without a mask, got a masked array; see its method filled\(value\)"),
    (np.ma.masked, "expected an array without a mask"), (np.matrix(X), "expected an array, got a np.matrix; np.asarray"),
    (Evil, "expected an array, got <Evil instance at 0x[0-9a-f]*>: evil object"),
    ([[1, 2], [3]], r"expected an array, got \[\[1, 2\], \[3\]\]: "),
])
@pytest.mark.parametrize("name, function", [
    ("x", relu_forward), ("x", lambda x: maxpool2d_forward(x, 2)), ("t", lambda t: cross_entropy_forward(X, t)),
    ("weight", lambda w: nbcnn.BCELoss(w)), ("dloss", lambda d: nbcnn.kernels.mse_loss_backward(X, X, dloss=d)),
    ("param", lambda p: sgd_step(p, X[0], lr=1)), ("mean", lambda m: nbcnn.kernels.normalization_table(m, None, 3, np.float32)),
    ("index", lambda i: load_images(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2), np.uint8), i, [True], (0, 0), np.ones((1, 256)))),
    ("images", lambda images: nbcnn.Sequential([nbcnn.ReLU()])(images)),
    ("images", lambda images: nbcnn.datasets.Dataset(images, [0], ["a"], "a")),
])
def test_what_is_no_array_is_refused_by_name(name, function, value, message):
    value = Evil() if value is Evil else value
    with pytest.raises(TypeError, match=f"^{name}: {message}"):
        function(value)


@pytest.mark.parametrize("function, value, error", [
    (lambda v: check.integer(v, "n", 1), 2**31, ValueError), (lambda v: check.integer(v, "n", 1), Evil, TypeError),
    (lambda v: check.integer(v, "n"), True, TypeError), (lambda v: check.integer(v, "n", None, 5), -6, ValueError),
    (lambda v: check.pair(v, "n", 1), range(2**40), ValueError), (lambda v: check.pair(v, "n", 1), itertools.count(), ValueError),
    (lambda v: check.pair(v, "n", 1), Evil, TypeError), (lambda v: check.pair(v, "n", 1), "22", TypeError),
    (lambda v: check.pair(v, "n", 1), (2**31, 1), ValueError), (lambda v: check.pair(v, "n", 0), {1: 2, 3: 4}, TypeError),
    (lambda v: check.four_sizes(v, "n"), (2**30, 2**30, 2**30, 1), ValueError),
    (lambda v: check.four_sizes(v, "n"), (1, 1, 2**63, 1), ValueError),
    (lambda v: check.rate(v, "n"), 10**400, ValueError), (lambda v: check.rate(v, "n"), Fraction(10**400), ValueError),
    (lambda v: check.rate(v, "n"), True, TypeError), (lambda v: check.rate(v, "n"), math.nan, ValueError),
    (lambda v: check.fraction(v, "n"), Evil, TypeError), (lambda v: check.finite(v, "n"), np.array(2.5), TypeError),
    (lambda v: check.flag(v, "n"), np.zeros(2), TypeError), (lambda v: check.flag(v, "n"), Evil, TypeError),
    (lambda v: check.one_of(v, "n", ["a"]), np.array(["a", "b"]), ValueError),
    (lambda v: check.one_of(v, "n", {"a": 1}), [], ValueError),
    (lambda v: check.float_dtype(v, "n"), {"names": 3}, TypeError), (lambda v: check.float_dtype(v, "n"), ">f4", TypeError),
    (lambda v: check.strings(v, "n"), ["a", 1], TypeError), (lambda v: check.strings(v, "n"), "ab", TypeError),
    (lambda v: check.sequence(v, "n", "a list"), iter(int, 1), ValueError), (lambda v: check.function(v, "n"), 3, TypeError),
    (lambda v: check.numeric(v, "n"), np.array([1j]), TypeError), (lambda v: check.finite_row(v, "n"), [math.inf], ValueError),
])
def test_oddities_are_refused_in_one_short_line(function, value, error):
    value = Evil() if value is Evil else value
    with pytest.raises(error, match=r"^n: expected [^\n]{1,250}$"):
        function(value)


def test_what_is_unusual_and_right():
    assert check.pair(np.array([2, 3]), "n", 1) == (2, 3)
    assert check.pair(np.int8(2), "n", 1) == check.pair(np.array(2), "n", 1) == (2, 2)
    assert check.fraction(Fraction(1, 4), "n") == 0.25 and check.fraction(True, "n") == check.finite(np.float16(1), "n") == 1.0
    assert check.integer(2**100, "n", 0, check.SEEDS) == 2**100 and check.strings(np.array(["a", "b"]), "n") == ["a", "b"]
    assert check.four_sizes([0, 3, np.int64(8), 8], "n") == (0, 3, 8, 8)
    assert check.sequence((k for k in "ab"), "n", "") == ["a", "b"]


@pytest.mark.parametrize("value, text", [
    ("x", "'x'"), (1.5, "1.5"), ((1, 2), "(1, 2)"), ([1] * 1000, "[1, 1, 1, 1, 1, 1, 1, 1, ...]"),
    ("\ud800\u202e\n", r"'\ud800\u202e\n'"), (type("two\nlines", (), {"__repr__": lambda self: "a\nb\x1b"})(), r"a b\x1b"),
])
def test_shown(value, text):
    assert shown(value) == text


def test_shown_is_short_whatever_repr_does():
    assert len(shown("a" * 10**6)) <= 100 and len(shown(np.zeros((50, 50)))) <= 100
    assert shown(10**5000) == "<int>" and shown(Evil()).startswith("<Evil instance at")


def test_arrays_too_large_for_any_memory_are_no_hang():
    huge = np.broadcast_to(np.float32(1), (2, 3, 2**40, 8))
    for call in (lambda: relu_forward(huge),
                 lambda: nbcnn.Sequential([nbcnn.ReLU()])(np.broadcast_to(np.float32(1), (2**42, 2))),
                 lambda: nbcnn.kernels.maxpool2d_backward(np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1), int),
                                                          (1, 1, 2**30, 2**20))):
        with pytest.raises(MemoryError):
            call()
