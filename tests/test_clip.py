"""Clipping gradients by their norm: by hand, against PyTorch, any number of threads."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_optim import small_model

import nbcnn
from nbcnn import clip_grad_norm_
from nbcnn.kernels.cpu import vectors

from llvm import double_operations
from threads import one_and_all_threads


def with_gradients(dtype, seed, scale=1.0, without=()):
    model, rng = small_model(dtype), np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        parameter.grad = None if name in without else scale * rng.standard_normal(parameter.shape)
    return model


def test_by_hand():
    """3^2 + 4^2 + 12^2 = 13^2; what has no gradient is neither counted nor changed, whatever lies in its memory."""
    model = small_model()
    model.vector.grad[:] = np.nan
    for parameter, values in ((model.conv1.bias, [3, 0, 4]), (model.linear2.bias, [0, 0, 12])):
        parameter.grad = values
    norm = clip_grad_norm_(model.parameters(), 6.5)
    assert norm == 13 and isinstance(norm, float)
    factor = np.float32(6.5 / (13 + 1e-6))
    assert (model.conv1.bias.grad == np.float32([3, 0, 4]) * factor).all()
    assert (model.linear2.bias.grad == np.float32([0, 0, 12]) * factor).all()
    assert np.isnan(model.linear1.weight.flat_grad).all()
    before = model.conv1.bias.grad.copy()
    assert clip_grad_norm_(model.parameters(), 6.6) == pytest.approx(6.5, rel=1e-6)       # short enough
    assert clip_grad_norm_(model.conv1.bias, 100) == pytest.approx(2.5, rel=1e-6)         # a parameter alone
    assert (model.conv1.bias.grad == before).all()
    assert clip_grad_norm_([], 1) == clip_grad_norm_([model.linear1.weight], 1) == 0.0


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1.0, 1e6]), max_norm=st.sampled_from([0.0, 1e-7, 1.0, 1e9]))
def test_parity_with_torch(dtype, seed, scale, max_norm):
    import torch
    without = ("linear1.bias",) if seed % 2 else ()
    model = with_gradients(dtype, seed, scale, without)
    grads = {name: p.grad.copy() for name, p in model.named_parameters() if p.grad is not None}
    twins = []
    for grad in grads.values():
        twins.append(torch.nn.Parameter(torch.zeros(grad.shape, dtype=torch.float32 if dtype == np.float32 else torch.float64)))
        twins[-1].grad = torch.tensor(grad)
    expected = torch.nn.utils.clip_grad_norm_(twins, max_norm).item()
    # PyTorch adds up norms of tensors, each a sum of up to 60 squares.
    close = dict(rtol=64 * np.finfo(dtype).eps, atol=0)
    np.testing.assert_allclose(clip_grad_norm_(model.parameters(), max_norm), expected, **close)
    for (name, _), twin in zip(grads.items(), twins, strict=True):
        np.testing.assert_allclose(dict(model.named_parameters())[name].grad, twin.grad.numpy(), **close)


@pytest.mark.torch
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_not_finite_is_pytorchs(value):
    import torch
    model = with_gradients(np.float32, 0)
    model.conv1.bias.grad = [1, value, 2]
    twins = [torch.nn.Parameter(torch.zeros(p.shape)) for p in model.parameters()]
    for parameter, twin in zip(model.parameters(), twins, strict=True):
        twin.grad = torch.tensor(parameter.grad.copy())
    norm, expected = clip_grad_norm_(model.parameters(), 1.0), torch.nn.utils.clip_grad_norm_(twins, 1.0).item()
    assert np.isnan(norm) == np.isnan(expected) == np.isnan(value) and (np.isnan(value) or norm == expected == np.inf)
    for parameter, twin in zip(model.parameters(), twins, strict=True):
        np.testing.assert_array_equal(parameter.grad, twin.grad.numpy())
        assert parameter is model.conv1.bias or np.isnan(parameter.grad).all() == np.isnan(value)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, vectors.CHUNK - 1, vectors.CHUNK, vectors.CHUNK + 1, 3 * vectors.CHUNK + 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_element_counts_once(size, dtype):
    """Small integers: nothing is rounded."""
    x = np.random.default_rng(size).integers(-8, 9, size).astype(dtype)
    assert vectors.sum_of_squares(x) == (x.astype(float) ** 2).sum()


def test_any_number_of_threads_gives_equal_bits():
    x = np.random.default_rng(0).standard_normal(5 * vectors.CHUNK + 77).astype(np.float32)
    results = []
    for _ in one_and_all_threads():
        y = x.copy()
        norm = vectors.sum_of_squares(y)
        vectors.multiply(y, 1 / 3)
        slow = x[::-1].copy()
        vectors.move_average(slow, y, 0.9)
        results.append((norm, y.tobytes(), slow.tobytes()))
    assert results[0] == results[1]


def test_float32_kernels_hold_no_double():
    x = np.ones(100, np.float32)
    vectors.sum_of_squares(x)
    vectors.multiply(x, 0.5)
    vectors.move_average(x, x.copy(), 0.5)
    assert not any(double_operations(kernel) for kernel in (vectors.squares, vectors.scale, vectors.average))


@pytest.mark.parametrize("parameters, max_norm, error, message", [
    (3, 1, TypeError, "parameters: expected a list of nbcnn Parameters, got 3"),
    ([np.zeros(3)], 1, TypeError, "parameters: expected nbcnn Parameters, got ndarray"),
    (small_model().parameters() + small_model().parameters(), 1, ValueError, "parameters: expected the Parameters of one nbcnn"),
    (small_model().parameters(), -1, ValueError, "max_norm: expected a number >= 0, got -1"),
    (small_model().parameters(), "1", TypeError, "max_norm: expected a number >= 0, got '1'"),
    (nbcnn.Linear(2, 3).weight, 1, ValueError, "parameters: expected the Parameters of one nbcnn"),
])
def test_errors(parameters, max_norm, error, message):
    with pytest.raises(error, match=f"^{message}"):
        clip_grad_norm_(parameters, max_norm)
