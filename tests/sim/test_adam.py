"""Adam's update, clipping and averages on a simulated GPU: as on the CPU."""
import itertools

import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint
from nbcnn.kernels.adam import adam_step
from nbcnn.kernels.cuda import to_device, to_host

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
OPTIONS = [dict(weight_decay=decay, decoupled_weight_decay=decoupled, maximize=maximize)
           for decay, decoupled, maximize in itertools.product((0, 0.125), (False, True), (False, True))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_cpu(dtype, options):
    """The simulator computes each product and sum by itself, as the CPU; a root and a quotient may differ by a last place."""
    param, *grads = np.random.default_rng(0).standard_normal((4, 37)).astype(dtype)
    host = param, np.zeros_like(param), np.zeros_like(param)
    device = tuple(map(to_device, host))
    for step, grad in enumerate(grads, 1):
        adam_step(host[0], grad, *host[1:], step, lr=0.125, **options)
        adam_step(device[0], to_device(grad), *device[1:], step, lr=0.125, **options)
        for mine, theirs in zip(map(to_host, device), host, strict=True):
            assert mine.dtype == dtype and np.abs(mine - theirs).max() <= 4 * step * np.finfo(dtype).eps       # numbers below 4


def test_parts_of_vectors_strided_gradients_and_no_eps():
    param, m, v = (to_device(np.full(9, value, np.float32)) for value in (2, 0, 0))
    grad = to_device(np.repeat(np.array([3, 0, -3, 0], np.float32), 2))
    adam_step(param[2:6], grad[::2], m[2:6], v[2:6], 1, lr=0.5, eps=0)
    assert to_host(param).tolist() == [2, 2, 1.5, 2, 2.5, 2, 2, 2, 2]
    adam_step(param[:0], grad[:0], m[:0], v[:0], 1)


def test_shared_memory_and_mixed_places_are_refused():
    host, memory = np.ones(4, np.float32), to_device(np.ones(16, np.float32))
    parts = dict(param=memory[:4], grad=memory[4:8], exp_avg=memory[8:12], exp_avg_sq=memory[12:])
    adam_step(**parts, step=1)
    for one, other in itertools.combinations(parts, 2):
        with pytest.raises(ValueError, match=f"^{other}: expected memory of its own, got some of {one}'s"):
            adam_step(**parts | {other: parts[one]}, step=1)
        with pytest.raises(TypeError, match=f"^{other}: expected device arrays"):
            adam_step(**parts | {other: host}, step=1)


def small_model(dtype=np.float32):
    return nbcnn.Sequential([nbcnn.Linear(6, 4), nbcnn.ReLU(), nbcnn.Linear(4, 3)], input_shape=(6,), dtype=dtype)


def steps(model, optimizer, ema, count, seed=0):
    rng, norms = np.random.default_rng(seed), []
    for k in range(count):
        for parameter in model.parameters():
            parameter.grad = rng.standard_normal(parameter.shape)
        if k % 2:
            model[0].bias.grad = None
        norms.append(nbcnn.clip_grad_norm_(model.parameters(), 2.0))
        optimizer.step()
        ema.update()
    return norms


def make(model):
    groups = [dict(params=[model[0].weight, model[2].weight]), dict(params=[model[0].bias, model[2].bias], lr=0.25, weight_decay=0)]
    return nbcnn.Lookahead(nbcnn.AdamW(groups, lr=0.125), every=2), nbcnn.EMA(model, 0.75)


def test_a_training_moves_between_the_devices(tmp_path):
    """There and back in the middle, and by a checkpoint, beside one that stays."""
    stays, moves = small_model(np.float64), small_model(np.float64)
    alone, moved = make(stays), make(moves)
    norms, others = steps(stays, *alone, 3), []
    others += steps(moves, *moved, 1)
    moves.to("cuda")
    rng = np.random.default_rng(0)
    for parameter in moves.parameters():        # the first step's
        rng.standard_normal(parameter.shape)
    for k in (1, 2):
        for parameter in moves.parameters():
            parameter.grad = rng.standard_normal(parameter.shape)
        if k % 2:
            moves[0].bias.grad = None
        others.append(nbcnn.clip_grad_norm_(moves.parameters(), 2.0))
        moved[0].step()
        moved[1].update()
    exp_avg = moved[0].optimizer.slot("exp_avg", moves[0].bias)
    assert not isinstance(moved[0].slow, np.ndarray) and not isinstance(exp_avg, np.ndarray)
    close = dict(rtol=1e-13, atol=1e-14)        # some roundings of float64 numbers of about 1
    np.testing.assert_allclose(others, norms, **close)
    images = np.ones((2, 6))
    with moved[1].weights(), alone[1].weights():
        np.testing.assert_allclose(moves(images), stays(images), **close)
        moves.to("cpu")
    for name, value in stays.state_dict().items():
        np.testing.assert_allclose(moves.state_dict()[name], value, **close)
        np.testing.assert_allclose(moved[1].state_dict()[name], alone[1].state_dict()[name], **close)
    checkpoint.save(tmp_path / "file", moves.to("cuda"), optimizer=moved[0], ema=moved[1])
    found = checkpoint.load(tmp_path / "file")
    steps(found.model, found.optimizer, found.ema, 2, 1)
    steps(moves, *moved, 2, 1)
    for name, value in found.model.state_dict().items():
        np.testing.assert_allclose(moves.state_dict()[name], value, **close)
        np.testing.assert_allclose(moved[1].state_dict()[name], found.ema.state_dict()[name], **close)
    moved[0].finish()
    assert (to_host(moved[0].slow) == to_host(moves.vector.data)).all()


@pytest.mark.parametrize("make_optimizer", [nbcnn.Adam, lambda params: nbcnn.SGD(params, lr=0.5, momentum=0.5)])
def test_there_and_back_between_two_steps(make_optimizer):
    """The device is the same again, the memory is not."""
    model = small_model().to("cuda")
    optimizer, before = make_optimizer(model.parameters()), None
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = np.ones(parameter.shape)
        optimizer.step()
        model.to("cpu").to("cuda")
        values = model.state_dict()
        assert before is None or not any((before[name] == value).any() for name, value in values.items())
        before = values


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite(value):
    model = small_model().to("cuda")
    model[0].bias.grad, model[2].bias.grad = [1, value, 2, 3], [1, 1, 1]
    norm = nbcnn.clip_grad_norm_(model.parameters(), 1.0)
    assert np.array_equal(norm, value, equal_nan=True) and isinstance(norm, float)
    expected = np.full(3, np.nan) if np.isnan(value) else np.zeros(3)
    assert np.array_equal(to_host(model[2].bias.grad), expected, equal_nan=True)
