"""Memory on a simulated GPU: layouts, copies of any strides, and the way from partial sums to gradients and updates."""
import numpy as np
import pytest

import nbcnn
from nbcnn.kernels import cuda
from nbcnn.kernels.cuda import gradients, to_device, to_host
from nbcnn.kernels.cuda.buffer import contiguous, nothing
from nbcnn.kernels.cuda.compat import Launch, transposed
from nbcnn.kernels.cuda.launch import THREADS
from nbcnn.kernels.cuda.state import STOPPED, make_state

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]


def numbers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 0)])
def test_allocate_is_zero_and_nothing_is_empty(shape):
    array = cuda.allocate(shape, np.float32)
    assert array.shape == shape and array.dtype == np.float32 and (to_host(array) == 0).all()
    assert nothing(np.dtype(np.uint8)).shape == (0,) and nothing(np.dtype(np.uint8)).dtype == np.uint8


@pytest.mark.parametrize("shape, axes", [
    ((5, 3), (1, 0)), ((2, 3, 4), (2, 0, 1)), ((2, 3, 4, 5), (3, 1, 0, 2)), ((40,), (0,)), ((2, 0), (1, 0))])
def test_copies_of_any_strides(shape, axes):
    """More elements than one block copies, too."""
    a = numbers(*shape)
    view, expected = transposed(to_device(a), axes), a.transpose(axes)
    assert (to_host(view) == expected).all()
    for result in (contiguous(view), cuda.copy_of(view)):
        assert result.is_c_contiguous() and result.dtype == a.dtype and (to_host(result) == expected).all()
    for values in (expected * 2, to_device(expected * 2), (expected * 2).astype(int).tolist()):
        memory = to_device(a)
        cuda.write(transposed(memory, axes), values)
        assert (to_host(memory) == a * 2).all()


def test_what_is_shared_and_what_is_not():
    device = to_device(numbers(2, 3))
    assert contiguous(device) is device and cuda.place(device) is device
    copy = cuda.copy_of(device)
    cuda.write(device, np.zeros((2, 3)))
    assert (to_host(copy) == numbers(2, 3)).all() and (to_host(cuda.place(numbers(2, 3))) == numbers(2, 3)).all()
    host = to_host(device)
    host += 1
    assert (to_host(device) == 0).all()
    with pytest.raises(ValueError, match=r"x: expected at most 4 axes of a strided device array, got shape \(2, 1, 1, 1, 3\)"):
        contiguous(transposed(to_device(numbers(3, 1, 1, 1, 2)), (4, 3, 2, 1, 0)))


@pytest.mark.parametrize("shape, steps", [((3, 4, 5), (0, 60, 20, 5, 1)), ((7,), (0, 7, 1, 1, 1))])
def test_buffer(shape, steps):
    """Samples one after another; a view, a buffer of another shape and what holds an array share its memory."""
    samples = numbers(3, *shape)
    buffer = cuda.Buffer(4, shape, np.float32)
    assert buffer.steps == steps and (to_host(buffer.array) == 0).all() and buffer.array.shape == (4 * samples[0].size,)
    buffer.set(samples)
    buffer.set(to_device(samples[:2] * 2))
    expected = np.concatenate([samples[:2] * 2, samples[2:], 0 * samples[:1]])
    assert (to_host(buffer.view(4)) == expected).all() and buffer.view(0).shape == (0, *shape)
    other = cuda.Buffer(4, (samples[0].size,), np.float32, buffer.array)
    other.set(samples.reshape(3, -1))
    assert (to_host(buffer.view(3)) == samples).all() and other.steps == (0, samples[0].size, 1, 1, 1)
    cuda.write(buffer.view(2), np.ones((2, *shape)))
    assert (to_host(buffer.array) == np.concatenate([0 * samples[:2] + 1, samples[2:], 0 * samples[:1]]).ravel()).all()
    device = to_device(samples)
    cuda.write(cuda.Buffer.holding(device).view(3), samples * 3)
    assert (to_host(device) == samples * 3).all()
    strided = cuda.Buffer.holding(transposed(to_device(samples.transpose().copy()), tuple(range(samples.ndim))[::-1]))
    assert (to_host(strided.view(3)) == samples).all()


def test_weights_lie_with_the_channels_last():
    w = numbers(4, 3, 2, 5)
    flat = cuda.flat_weight(to_device(w))
    assert flat.shape == (w.size,) and (to_host(flat) == w.transpose(0, 2, 3, 1).ravel()).all()
    view = cuda.unflat_weight(flat, w.shape)
    assert view.shape == w.shape and (to_host(view) == w).all()
    cuda.write(view, 2 * w)
    assert (to_host(flat) == 2 * w.transpose(0, 2, 3, 1).ravel()).all()
    for other in (w[0, 0], w[0, 0, 0]):
        assert (to_host(cuda.flat_weight(to_device(other))) == other.ravel()).all()
        assert (to_host(cuda.unflat_weight(to_device(other.ravel()), other.shape)) == other).all()


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 3, 1, 1), (1, 1, 1, 1), (1, 4), (0,)])
def test_axes_of_size_1_are_written(shape):
    """To a parameter's memory, from what has its shape and from what is spread over it."""
    for values in (numbers(*shape), numbers(*shape).tolist(), 3.0):
        flat = cuda.allocate((int(np.prod(shape)),), np.float32)
        cuda.write(cuda.unflat_weight(flat, shape), values)
        assert (to_host(cuda.unflat_weight(flat, shape)) == np.asarray(values)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_partial_sums_are_added_in_order(dtype):
    """Numbers whose sum depends on the order; chunks with other numbers of sums, added to what is there or not, or left alone."""
    rng = np.random.default_rng(0)
    chunk = 64 // np.dtype(dtype).itemsize
    partial, grad = rng.standard_normal(20 * chunk).astype(dtype), rng.standard_normal(3 * chunk).astype(dtype)
    where, expected = np.array([[5, 3, 2 * chunk, 1], [0, 0, 0, 1], [3, 7, chunk, 0]]), grad.copy()
    for k in range(3 * chunk):
        count, first, step, add = where[k // chunk]
        if count:
            total = grad[k] if add else dtype(0)
            for part in range(count):
                total = dtype(total + partial[first + k + part * step])
            expected[k] = total
    device = to_device(grad)
    gradients.each(gradients.sum_parts, grad.size)(device, to_device(partial), to_device(where.ravel()), chunk)
    assert (to_host(device) == expected).all()


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("momentum", [0, 0.5])
def test_sums_and_update_in_one(momentum, stopped):
    """Equal to the sums and then an update; chunks without sums, and all once training has stopped, keep their values."""
    param, buffer, partial, chunk = numbers(48, seed=1), numbers(48, seed=2), numbers(2, 48, seed=3), 16
    parts, state = np.array([2, 0, 1]), make_state()
    where = np.stack([parts, 0 * parts, 0 * parts + 48, 0 * parts], 1)
    state[STOPPED], state[1] = int(stopped), 1
    rates = to_device(np.array([9, 0.25, 9], np.float32))
    options = np.float32(momentum), np.float32(1), np.float32(0.5), True, momentum > 0, False, False
    device = [to_device(a) for a in (np.zeros(48, np.float32), partial.ravel(), param, buffer if momentum else buffer[:0])]
    Launch(gradients.make_update_and_gather((1, 1, 1, False, False, 0)), -(-48 // THREADS), THREADS)(
        *device[:2], to_device(where.ravel()), chunk, *device[2:], rates, options, state,
        *[nothing(np.dtype(np.float32))] * 7, 0, 0)     # no images
    count = np.repeat(parts, chunk)
    grad = np.where(count == 2, partial.sum(0), np.where(count == 1, partial[0], 0))
    g = grad + np.float32(0.5) * param
    moved = np.float32(momentum) * buffer + g if momentum else g
    change = (count > 0) & (not stopped)
    assert (to_host(device[0]) == grad).all()
    assert (to_host(device[2]) == np.where(change, param - np.float32(0.25) * moved, param)).all()
    if momentum:
        assert (to_host(device[3]) == np.where(change, moved, buffer)).all()


def test_the_gaps_between_parameters_stay_zero(monkeypatch):
    """Whatever memory held before: an update runs over them."""
    monkeypatch.setattr(gradients, "empty", lambda shape, dtype: to_device(np.full(shape, np.nan, dtype)), raising=False)
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(5, 3)]).to("cuda")
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.MSELoss()), nbcnn.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for _ in range(2):
        step.train_step(numbers(2, 5), numbers(2, 3), optimizer)
    used = np.zeros(model.vector.data.size, bool)
    for parameter in model.parameters():
        used[parameter.start:parameter.stop] = True
    assert not used.all()
    for vector in (model.vector.grad, model.vector.data):
        assert (to_host(vector)[~used] == 0).all() and (to_host(vector)[used] != 0).any()
