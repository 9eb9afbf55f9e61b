"""The update on a simulated GPU: equal to the CPU's where powers of two leave nothing to round."""
import itertools

import numpy as np
import pytest

from nbcnn.kernels import cuda
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.launch import each
from nbcnn.kernels.cuda.state import STEP, STOPPED, UPDATE, make_state
from nbcnn.kernels.sgd import sgd_step

pytestmark = pytest.mark.sim

DTYPES = [np.float32, np.float64]
OPTIONS = [dict(momentum=momentum, dampening=dampening, weight_decay=decay, nesterov=nesterov, maximize=maximize)
           for momentum, dampening, decay, nesterov, maximize
           in itertools.product((0, 0.5), (0, 0.25), (0, 0.125), (False, True), (False, True))
           if not (nesterov and (dampening or not momentum))]


def vectors(count, size, dtype):
    return np.random.default_rng(0).integers(-8, 9, (count, size)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_cpu(dtype, options):
    param, *grads = vectors(4, 37, dtype)
    buffer = np.full(37, np.nan, dtype)
    on_gpu, buffer_on_gpu = to_device(param), to_device(buffer)
    for step, grad in enumerate(grads):
        given = (buffer, buffer_on_gpu) if options["momentum"] else (None, None)
        sgd_step(param, grad, given[0], lr=0.25, first=step == 0, **options)
        sgd_step(on_gpu, to_device(grad), given[1], lr=0.25, first=step == 0, **options)
        assert (to_host(on_gpu) == param).all() and np.array_equal(to_host(buffer_on_gpu), buffer, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_state(dtype):
    """The learning rate is the update's, not the next step's; once a loss was not finite, nothing moves."""
    param, grad, buffer = vectors(3, 5, dtype)
    lr, state = to_device(np.array([0.5, 0.25, 0.125], dtype)), make_state()
    assert to_host(state).tolist() == [0, 0, 0] and state.dtype == np.int64
    state[STEP], state[UPDATE] = 2, 1
    on_gpu, buffer_on_gpu = to_device(param), to_device(buffer)
    options = (dtype(0.5), dtype(1), dtype(0), False, True, False, False)
    run = each(cuda.sgd.sgd, 5)
    run(on_gpu, buffer_on_gpu, to_device(grad), lr, options, False, state)
    sgd_step(param, grad, buffer, lr=0.25, momentum=0.5)
    assert (to_host(on_gpu) == param).all() and (to_host(buffer_on_gpu) == buffer).all()
    assert to_host(state).tolist() == [2, 1, 0]
    state[STOPPED] = 1
    run(on_gpu, buffer_on_gpu, to_device(grad), lr, options, False, state)
    assert (to_host(on_gpu) == param).all() and (to_host(buffer_on_gpu) == buffer).all()


def test_parts_of_vectors_and_strided_gradients():
    param, grad, _ = vectors(3, 9, np.float32)
    on_gpu, wide = to_device(param), to_device(np.repeat(grad, 2))
    sgd_step(on_gpu[2:6], wide[4:12:2], lr=0.5)
    expected = param.copy()
    expected[2:6] -= grad[2:6] / 2
    assert (to_host(on_gpu) == expected).all()
    sgd_step(on_gpu[:0], wide[:0], lr=0.5)
    sgd_step(on_gpu[:3], on_gpu[3:6], on_gpu[6:], lr=0.5, momentum=0.5, first=True)     # neighbours share no memory
    expected[:3] -= expected[3:6] / 2
    expected[6:] = expected[3:6]
    assert (to_host(on_gpu) == expected).all()


HOST = np.ones(4, np.float32)
GPU, OTHER = to_device(HOST), to_device(HOST)


@pytest.mark.parametrize("param, grad, buffer, options, error, message", [
    (HOST, GPU, None, {}, TypeError, "^param: expected device arrays, as grad is one"),
    (GPU, HOST, None, {}, TypeError, "^grad: expected device arrays, as param is one"),
    (GPU, OTHER, HOST, {"momentum": 0.5}, TypeError, "^momentum_buffer: expected device arrays, as param, grad is one"),
    (GPU, to_device(np.ones(4)), None, {}, TypeError, "grad: expected float32, the dtype of param, got float64"),
    (to_device(np.ones(4, int)), GPU, None, {}, TypeError, "param: expected a float32 or .* int64"),
    (GPU, to_device(np.ones(3, np.float32)), None, {}, ValueError, r"grad: expected shape \(4,\), that of param, got shape \(3,\)"),
    (GPU[::2], GPU[1::2], None, {}, ValueError, r"param: expected a C-contiguous array, .* got strides \(8,\)"),
    (GPU, GPU, None, {}, ValueError, "grad: expected memory of its own, got some of param's"),
    (GPU[:3], GPU[1:], None, {}, ValueError, "grad: expected memory of its own, got some of param's"),
    (GPU, OTHER, GPU, {"momentum": 0.5}, ValueError, "momentum_buffer: expected memory of its own, got some of param's"),
    (GPU, OTHER, OTHER, {"momentum": 0.5}, ValueError, "momentum_buffer: expected memory of its own, got some of grad's"),
])
def test_errors(param, grad, buffer, options, error, message):
    with pytest.raises(error, match=message):
        sgd_step(param, grad, buffer, lr=0.5, **options)
