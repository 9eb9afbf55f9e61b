"""Activations: frozen values, oracles, accuracy, gradients, contract, errors, whole networks, and parity with PyTorch."""
import functools
import math
import re

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbcnn
from nbcnn import checkpoint, kernels
from nbcnn.kernels import cpu
from nbcnn.kernels.cpu import activations as loops
from nbcnn.kernels.cpu.launch import run
from nbcnn.kernels.cpu.parallel import PARALLEL

from activations import CASES, each
from arrays import awkward, equal, in_both_dtypes
from gradients import check_directional_gradients
from llvm import afresh, double_operations
from threads import one_and_all_threads

DTYPES = [np.float32, np.float64]
TANH, SIGMOID = (next(case for case in CASES if case.name == name) for name in ("tanh", "sigmoid"))
shapes = st.lists(st.integers(0, 9), max_size=5).map(tuple)
seeds = st.integers(0, 2**32 - 1)


def values(seed, shape, dtype):
    """Multiples of 1/2, many of them zero, with some infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-4, 5, shape) * rng.choice([0.5, 1, 2], shape)).astype(dtype)
    return np.where(rng.random(shape) < 0.2, rng.choice([np.inf, -np.inf, np.nan], shape).astype(dtype), x)


def upstream(seed, shape, dtype):
    return np.random.default_rng([seed, 1]).standard_normal(shape).astype(dtype)


def near(a, b, bound):
    """Same shape, the same where b is not finite, and within the bounds elsewhere."""
    finite = np.isfinite(b)
    with np.errstate(invalid="ignore"):
        return a.shape == b.shape and np.array_equal(a[~finite], b[~finite], equal_nan=True) and (
            np.abs(a - b) <= bound)[finite].all()


def agree(case, x, dy, y, dx):
    """y and dx are the oracle's: in every bit where nothing is rounded, else within the roundings.

    Of y these are some five of at most eps each, and those of the exponent, x^2/2 or 2u, which costs eps times its size:
    below 2 + x^2 for |x| <= 8, the largest here. Of dx they are as many, of a sum of terms of at most 2.
    """
    expected_y, expected_dx = case.oracle(*(a.astype(a.dtype if case.exact else float) for a in (x, dy)))
    if case.exact:
        return equal(y, expected_y.astype(x.dtype)) and equal(dx, expected_dx.astype(x.dtype))
    eps, tiny = np.finfo(x.dtype).eps, np.finfo(x.dtype).smallest_subnormal
    return y.dtype == dx.dtype == x.dtype and (
        near(y, expected_y, (5 + np.clip(x, -8, 8) ** 2) * eps * np.abs(expected_y) + tiny)
        and near(dx, expected_dx, 8 * eps * np.abs(dy) + tiny))


# ---- frozen values

@in_both_dtypes
def test_frozen_values_relu(dtype):
    # From the definition: nothing below zero passes, NaN does, and so does the gradient where the output is positive or NaN.
    x = np.array([-np.inf, -1, -0.0, 0, 1e-30, 2, np.inf, np.nan], dtype)
    y = kernels.relu_forward(x)
    assert equal(y, np.array([0, 0, 0, 0, 1e-30, 2, np.inf, np.nan], dtype)) and not np.signbit(y[:4]).any()
    dy = np.array([1, 2, 3, -4, -5, 6, 7, 8], dtype)
    assert equal(kernels.relu_backward(dy, y), np.array([0, 0, 0, 0, -5, 6, 7, 8], dtype))


@in_both_dtypes
def test_frozen_values_leaky_relu(dtype):
    # From the definition: what is not positive, NaN included, is multiplied by the slope, and so is the gradient there.
    x = np.array([-np.inf, -1, -0.0, 0, 1e-30, 2, np.inf, np.nan], dtype)
    y = kernels.leaky_relu_forward(x, 0.25)
    assert equal(y, np.array([-np.inf, -0.25, 0, 0, 1e-30, 2, np.inf, np.nan], dtype))
    assert list(np.signbit(y[:4])) == [True, True, True, False]
    dy = np.array([1, 2, 3, -4, -5, 6, 7, 8], dtype)
    assert equal(kernels.leaky_relu_backward(dy, x, 0.25), np.array([0.25, 0.5, 0.75, -1, -5, 6, 7, 2], dtype))
    zeros = kernels.leaky_relu_forward(x[2:4], -2)
    assert not zeros.any() and list(np.signbit(zeros)) == [False, True]         # -2 times a zero
    # PyTorch's default; a float32 times the float32 that is nearest to 0.01.
    assert equal(kernels.leaky_relu_forward(np.array([-3], dtype)), np.array([-3], dtype) * dtype(0.01))
    assert equal(kernels.leaky_relu_backward(dy[:1], x[:1]), dtype([0.01]))


@in_both_dtypes
def test_frozen_values_tanh_and_sigmoid(dtype):
    # By hand: e^ln 3 is 3, so tanh(ln 3) = (3 - 1/3)/(3 + 1/3), sigmoid(ln 3) = 1/(1 + 1/3). Roundings of ln 3 and of the result.
    x = np.array([-np.inf, -math.log(3), -0.0, 0, math.log(3), np.inf, np.nan], dtype)
    expected = np.array([-1, -0.8, -0.0, 0, 0.8, 1, np.nan]), np.array([0, 0.25, 0.5, 0.5, 0.75, 1, np.nan])
    dy, slopes = np.arange(1, 8).astype(dtype), ([0, 0.36, 1, 1, 0.36, 0, np.nan], [0, 3 / 16, 0.25, 0.25, 3 / 16, 0, np.nan])
    for case, values, slope in zip((TANH, SIGMOID), expected, slopes, strict=True):
        y = case.forward(x)
        assert near(y, values, 3 * np.finfo(dtype).eps) and (np.signbit(y) == np.signbit(values))[:-1].all()
        assert near(case.backward(dy, x, y), dy * np.array(slope), 9 * np.finfo(dtype).eps)


@in_both_dtypes
@pytest.mark.parametrize("approximate, expected, slopes", [
    # PyTorch 2.13 in float64; -6 too, where 1 + erf has 7 digits and 1 + tanh has 5.
    ("none", [-5.919525869479969e-09, -0.15865525393145702, 0.34573123063700656, 0.841344746068543, 2.99595030590511],
     [-3.546870945402639e-08, -0.08331547058768635, 0.8674951246561629, 1.0833154705876864, 1.011945647204184]),
    ("tanh", [-8.43964897967453e-11, -0.15880800939172324, 0.34571400982514394, 0.8411919906082768, 2.996362607918227],
     [-7.709976012836329e-10, -0.08296408384578252, 0.8673699035346424, 1.0829640838457826, 1.0115841666309695]),
])
def test_frozen_values_gelu(approximate, expected, slopes, dtype):
    x, dy = np.array([-6, -1, 0.5, 1, 3], dtype), np.array([2, -3, 5, 7, -11], dtype)
    eps, expected = np.finfo(dtype).eps, np.array(expected)
    y, dx = kernels.gelu_forward(x, approximate), kernels.gelu_backward(dy, x, approximate)
    # float64's are compared with what PyTorch lost to cancellation: eps*|x|.
    assert near(y, expected, 2.0**-52 * 6 + 16 * eps * np.abs(expected)) and near(dx, dy * np.array(slopes), 4 * eps * np.abs(dy))
    # Where x^2 overflows, nothing else does; x*0 at an infinite x is NaN; 0 keeps its sign.
    large = np.sqrt(np.finfo(dtype).max) * np.array([8, -8], dtype)
    ends = np.array([np.inf, -np.inf, np.nan, *large], dtype)
    assert equal(kernels.gelu_forward(ends, approximate), np.array([np.inf, np.nan, np.nan, large[0], 0], dtype))
    assert equal(kernels.gelu_backward(dy, ends, approximate), np.array([np.nan, np.nan, np.nan, 7, 0], dtype))
    zero = kernels.gelu_forward(np.array([0, -0.0], dtype), approximate)
    assert not zero.any() and list(np.signbit(zero)) == [False, True]
    assert equal(kernels.gelu_backward(dy, np.zeros(5, dtype), approximate), dy / 2)       # half of a distribution is below 0


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_known_values(case, dtype):
    x, y, slope = np.array(case.known, dtype).T
    computed, tolerance = case.forward(x), max(4 * np.finfo(dtype).eps, 1e-9)
    assert near(computed, y, tolerance) and near(case.backward(np.full_like(x, 2), x, computed), 2 * slope, 4 * tolerance)


# ---- oracles

@each
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, seed=seeds)
def test_equals_oracle(case, dtype, shape, seed):
    x, dy = values(seed, shape, dtype), upstream(seed, shape, dtype)
    y = case.forward(x)
    assert agree(case, x, dy, y, case.backward(dy, x, y))


# ---- accuracy of the float32 functions, in units of the last place of the float32 nearest to what float64 says

@numba.njit
def float32_functions(x):
    exponential, share, density = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    for k in range(len(x)):
        exponential[k] = loops.exp32(-abs(x[k]))
        share[k], density[k] = loops.normal32(x[k])
    return exponential, share, density


def ulps(result, exact):
    with np.errstate(over="ignore"):
        return np.abs(result - exact) / np.spacing(np.abs(exact).astype(np.float32))


def test_accuracy_in_float32():
    """Over all exponents, denormal numbers included, and densely where the functions are neither 0 nor 1."""
    positive = np.arange(0, np.float32(np.inf).view(np.uint32), 4999, dtype=np.uint32).view(np.float32)
    dense = np.linspace(0, 20, 200_001, dtype=np.float32), np.linspace(80, 110, 20_001, dtype=np.float32)
    x = np.concatenate([positive, *dense])
    x = np.concatenate([x, -x])
    wide = x.astype(float)
    exponential, share, density = float32_functions(x)
    power = np.exp(-np.abs(wide))
    assert ulps(exponential, power).max() < 1.4
    assert ulps(kernels.tanh_forward(x), np.tanh(wide)).max() < 1
    assert ulps(kernels.sigmoid_forward(x), np.where(x < 0, power, 1) / (1 + power)).max() < 3
    # A float32 argument of e^(-x^2/2) is off by x^2/2 of the result's last places, and up to the next power of 2 by twice that.
    with np.errstate(over="ignore"):
        assert (ulps(density, np.exp(-wide ** 2 / 2) / math.sqrt(2 * math.pi)) < 3 + np.minimum(wide ** 2, 250)).all()
    exact = np.vectorize(math.erfc)(-wide * math.sqrt(0.5)) / 2
    assert (ulps(share, exact) < np.where(x >= 0, 3, 4 + np.minimum(wide ** 2, 250))).all()
    assert (kernels.tanh_forward(x)[np.abs(x) < 1e-4] == x[np.abs(x) < 1e-4]).all()       # x^3/3 is below half of the last place


def tanh_gradient_errors(backward):
    """The largest errors of a float32 gradient of tanh in parts of -10 to 10, where 1 - y^2 has more and more of y's error."""
    x = np.linspace(-10, 10, 500_001, dtype=np.float32)
    errors = np.abs(backward(x) - np.cosh(x.astype(float)) ** -2)
    return np.array([errors[(low <= np.abs(x)) & (np.abs(x) < high)].max() for low, high in
                     ((0, 0.625), (0.625, 1), (1, 2), (2, 4), (4, 8), (8, 10))])


def tanh_gradient(x):
    return kernels.tanh_backward(np.ones_like(x), kernels.tanh_forward(x))


def test_accuracy_of_the_gradient_of_tanh_in_float32():
    """Little above the error of a tanh that is off by nothing but its rounding to float32."""
    best = tanh_gradient_errors(lambda x: (1 - np.tanh(x.astype(float)).astype(np.float32).astype(float) ** 2).astype(np.float32))
    assert (tanh_gradient_errors(tanh_gradient) < 1.5 * best).all()


@pytest.mark.torch
def test_accuracy_of_the_gradient_of_tanh_in_float32_beside_torch():
    import torch

    def theirs(x):
        leaf = torch.tensor(x, requires_grad=True)
        torch.tanh(leaf).sum().backward()
        return leaf.grad.numpy()
    assert (tanh_gradient_errors(tanh_gradient) < 1.5 * tanh_gradient_errors(theirs)).all()


def test_float32_functions_of_nan():
    assert all(np.isnan(result).all() for result in float32_functions(np.array([np.nan], np.float32)))


# ---- gradients

@each
@given(shape=shapes, seed=seeds)
def test_gradient_is_the_difference_quotient(case, shape, seed):
    rng = np.random.default_rng(seed)
    if case.exact:       # Integers other than 0 are away from the kink, so a step of 1/4 has no truncation error.
        x, dy, h, tolerance = rng.choice([-2.0, -1.0, 1.0, 2.0], shape), rng.integers(-9, 10, shape).astype(float), 0.25, 0
    else:                   # Truncation h^2/6 times a third derivative below 3: 5e-11; rounding 1e-15/h = 1e-10.
        x, dy, h, tolerance = 2 * rng.standard_normal(shape), rng.standard_normal(shape), 1e-5, 1e-9
    quotient = (case.forward(x + h) - case.forward(x - h)) / (2 * h)
    assert near(case.backward(dy, x, case.forward(x)), dy * quotient, tolerance * np.abs(dy))


# ---- contract

@each
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 90))),
       N=st.integers(0, 3), seed=seeds)
def test_operation_writes_its_outputs_and_nothing_else(case, dtype, shape, N, seed):
    require_outputs_and_nothing_else(case, dtype, shape, N, seed)


@each
@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 65, 1001])
def test_a_number_has_equal_bits_wherever_it_lies(case, count):
    """In a vector or, at the end of a thread's share, by itself: whatever the count and the number of threads."""
    x, dy = upstream(7, (1001,), np.float32), upstream(8, (1001,), np.float32)
    y = case.forward(x)
    dx = case.backward(dy, x, y)
    threads = numba.get_num_threads()
    try:
        for n in (1, threads):
            numba.set_num_threads(n)
            part = case.forward(x[-count:])
            assert equal(part, y[-count:]) and equal(case.backward(dy[-count:], x[-count:], part), dx[-count:])
    finally:
        numba.set_num_threads(threads)


def require_outputs_and_nothing_else(case, dtype, shape, N, seed):
    """Results lie in buffers full of NaN; what is read stays as it is, and so does the sample behind the last one."""
    x, dy = values(seed, (N + 1, *shape), dtype), upstream(seed, (N + 1, *shape), dtype)
    x[~np.isfinite(x)] = 3
    x, dy, y, dx = (cpu.Buffer.holding(a) for a in (x, dy, np.full_like(x, np.nan), np.full_like(x, np.nan)))
    before = x.array.copy(), dy.array.copy()
    operation = case.operation(cpu, shape, dtype)
    operation.reserve(N + 1)
    run(operation.forward(N, y, x, ()))
    saved = y.array.copy()
    run(operation.backward(N, dx, (), dy, x, y, (), ()))
    run(operation.backward(N, None, (), dy, x, y, (), ()))                   # nothing asked for
    assert agree(case, x.view(N), dy.view(N), y.view(N), dx.view(N))
    assert np.isnan(y.view(N + 1)[N]).all() and np.isnan(dx.view(N + 1)[N]).all()
    assert equal(x.array, before[0]) and equal(dy.array, before[1]) and equal(y.array, saved)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_read_only_inputs(case, dtype):
    x, dy = values(1, (2, 3, 5, 4), dtype), upstream(1, (2, 3, 5, 4), dtype)
    y = case.forward(x)
    assert equal(case.forward(awkward(x)), y)
    assert equal(case.backward(awkward(dy), awkward(x), awkward(y)), case.backward(dy, x, y))
    assert equal(x, values(1, (2, 3, 5, 4), dtype)) and equal(dy, upstream(1, (2, 3, 5, 4), dtype))


@each
@given(shape=shapes, seed=seeds)
def test_any_number_of_threads_gives_equal_bits(case, shape, seed):
    x, dy = values(seed, shape, np.float32), upstream(seed, shape, np.float32)
    results = []
    for _ in one_and_all_threads():
        y = case.forward(x)
        # Of two NaN a product has the one that the compiler puts first, in vectors and in single numbers as it likes.
        results.append([np.where(np.isnan(a), np.nan, a).tobytes() for a in (y, case.backward(dy, x, y))])
    assert results[0] == results[1]


@each
def test_float32_kernels_hold_no_double_and_are_vectors(case):
    """A call in a loop, or a choice that is none of two values, would make it ten times as slow without a failure elsewhere."""
    x = np.ones((2, 3), np.float32)
    case.backward(x, x, case.forward(x))
    for kernel in case.operation(cpu, (3,), np.float32).kernels:
        assert not double_operations(kernel)
        again = afresh(kernel)
        again.compile(next(s for s in kernel.signatures if s[0].dtype == numba.float32))
        if not case.exact and PARALLEL:       # what is compiled with checks of bounds has them in its loops
            assert re.search(r"fmul .*<\d+ x float>", again.inspect_llvm(again.signatures[0]))


# ---- errors

def checks(case):
    """Wrong calls that all have in common: (call of forward and backward, error, message)."""
    forward, backward = (functools.partial(case.public(way), **case.arguments) for way in ("forward", "backward"))
    read = case.reads
    return [
        (lambda x: forward(x.astype(int)), TypeError, "^x: expected a float32 or float64 array, got ndarray of dtype int64"),
        (lambda x: forward(None), TypeError, "^x: expected a float32 or float64 array, got NoneType"),
        (lambda x: backward([True], x), TypeError, "^dy: expected a float32 or float64 array, got list of dtype bool"),
        (lambda x: backward(x, x.astype(np.float16)), TypeError, f"^{read}: expected a float32 or float64 array, got .* float16"),
        (lambda x: backward(x, x.astype(float)), TypeError, f"^dy: expected float64, the dtype of {read}, got float32"),
        (lambda x: backward(x, x[:, :1]), ValueError, rf"^dy: expected shape \(2, 1\), that of {read}, got shape \(2, 3\)")]


@pytest.mark.parametrize("call, error, message", [
    *(check for case in {case.name: case for case in CASES}.values() for check in checks(case)),
    *((call, error, rf"^negative_slope: expected a finite number[a-z0-9 ]*, got {value.split('*')[0]}") for value, error in (
        ("'1'", TypeError), ("None", TypeError), ("nan", ValueError), ("-inf", ValueError), ("10**99", ValueError),
        ("10**400", ValueError)) for call in (
            lambda x, v=value: kernels.leaky_relu_forward(x, eval(v, vars(np))),
            lambda x, v=value: kernels.leaky_relu_backward(x, x, eval(v, vars(np))),
            lambda x, v=value: nbcnn.LeakyReLU(eval(v, vars(np))))),
    *((call, error, f"^factor: expected a finite number of float32, got {value!r}") for value, error in (
        (np.inf, ValueError), ("1", TypeError)) for call in (
            lambda x, v=value: kernels.scale_forward(x, v), lambda x, v=value: kernels.scale_backward(x, x, v),
            lambda x, v=value: nbcnn.Scale(v))),
    *((call, ValueError, "^approximate: expected one of 'none', 'tanh', got 'erf'") for call in (
        lambda x: kernels.gelu_forward(x, "erf"), lambda x: kernels.gelu_backward(x, x, "erf"), lambda x: nbcnn.GELU("erf"))),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3), np.float32))


# ---- whole networks

def network(case, dtype=np.float64):
    """The activation of images that a padded convolution reads, and of vectors."""
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(2, 3, 3)), ("act1", case.layer(*case.options)), ("conv2", nbcnn.Conv2d(3, 2, 3, padding=1)),
        ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(32, 6)), ("act2", case.layer(*case.options)),
        ("linear2", nbcnn.Linear(6, 4)),
    ], input_shape=(2, 6, 6), dtype=dtype)


def batch(dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((5, 2, 6, 6)).astype(dtype), rng.integers(0, 4, 5)


@each
def test_gradients_of_a_network(case):
    step = nbcnn.BackpropScheduler(network(case), nbcnn.CrossEntropyLoss())
    check_directional_gradients(step, *batch(), np.random.default_rng(1))


@each
def test_training_and_a_checkpoint(case, tmp_path):
    model, (images, labels) = network(case, np.float32), batch(np.float32)
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = [step.train_step(images, labels, optimizer) for _ in range(80)]
    assert losses[-1] < losses[0] / 2           # five images are learned by heart
    checkpoint.save(tmp_path / "file", model)
    found = checkpoint.load(tmp_path / "file").model
    assert found.structure() == model.structure() and (found(images) == model(images)).all()
    assert repr(found.act1) == repr(case.layer(*case.options))


def test_layers_show_their_options():
    layers = nbcnn.LeakyReLU(), nbcnn.LeakyReLU(np.float64(0.5)), nbcnn.Tanh(), nbcnn.Sigmoid(), nbcnn.GELU(), nbcnn.GELU("tanh")
    assert list(map(repr, layers)) == ["LeakyReLU()", "LeakyReLU(negative_slope=0.5)", "Tanh()", "Sigmoid()", "GELU()",
                                       "GELU(approximate=tanh)"]
    assert layers[0].arguments == {"negative_slope": 0.01} and type(layers[1].negative_slope) is float      # as JSON has it
    assert layers[4].arguments == {"approximate": "none"}


# ---- PyTorch

@pytest.mark.torch
@each
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, seed=seeds)
def test_equals_torch(case, dtype, shape, seed):
    import torch
    x, dy = values(seed, shape, dtype), upstream(seed, shape, dtype)
    if case.name == "gelu":
        x[np.isposinf(x)] = 8       # PyTorch's gelu(inf) in float32 is NaN
    of_tensors = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "scale": torch.mul}
    function = of_tensors.get(case.name) or getattr(torch.nn.functional, case.name)
    names = {"leaky_relu": ["negative_slope"], "gelu": ["approximate"], "scale": ["other"]}.get(case.name, [])
    options = dict(zip(names, case.options, strict=True))
    tensor = torch.from_numpy(x).requires_grad_()
    expected = function(tensor, **options)
    expected.backward(torch.from_numpy(dy))
    expected, y = expected.detach().numpy(), case.forward(x)
    dx = case.backward(dy, x, y)
    if case.exact:
        assert equal(y, expected) and equal(dx, tensor.grad.numpy())
    else:       # On both sides a few roundings of terms of at most 1, times x in gelu; dx is at most 1.2*dy.
        eps = np.finfo(dtype).eps
        assert near(y, expected, 4 * eps * np.maximum(1, np.abs(x)))
        assert near(dx, tensor.grad.numpy(), 16 * eps * np.abs(dy))
