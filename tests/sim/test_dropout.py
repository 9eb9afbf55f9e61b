"""Dropout on a simulated GPU: the known answers of its random numbers, and equal to the CPU's, in every bit."""
import numpy as np
import pytest
from test_dropout import DTYPES, KNOWN, scaled, values

from nbcnn.kernels import cuda, dropout2d_backward, dropout2d_forward, dropout_backward, dropout_forward
from nbcnn.kernels.cuda import dropout as kernels
from nbcnn.kernels.cuda import to_device, to_host
from nbcnn.kernels.cuda.compat import transposed
from nbcnn.kernels.operation import Place

import oracles
from arrays import equal

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore:invalid")]

PLACE = dict(seed=2**63 + 2**33 + 5, layer=3, step=2**32 + 9)
FUNCTIONS = pytest.mark.parametrize("forward, backward", [
    (dropout_forward, dropout_backward), (dropout2d_forward, dropout2d_backward)])


@pytest.mark.parametrize("counter, key, numbers", KNOWN)
def test_known_answers(counter, key, numbers):
    words, expected = ([int(word, 16) for word in text.split()] for text in (f"{counter} {key}", numbers))
    assert [int(number) for number in kernels.philox(*map(np.uint64, words))] == expected


@FUNCTIONS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3, 2, 3), (4, 1, 1, 1), (0, 2, 2, 2), (2, 0, 2, 2), (6, 9)])
@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_equals_cpu(forward, backward, dtype, shape, p):
    if len(shape) == 2 and forward is dropout2d_forward:
        return
    x, dy = values(0, shape, dtype), values(1, shape, dtype)
    (y, mask), (there, drawn) = forward(x, p, **PLACE), forward(to_device(x), p, **PLACE)
    assert equal(to_host(drawn), mask) and equal(to_host(there), y)
    assert equal(to_host(backward(to_device(dy), drawn, p)), backward(dy, mask, p))


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operation_writes_its_outputs_and_nothing_else(planes, dtype):
    """Three samples of five that are reserved; the step moves on before backward."""
    shape, cells = (3, 2, 3), (3,) if planes else (3, 2, 3)
    samples, upstream = values(2, (5, *shape), dtype), values(3, (5, *shape), dtype)
    x, dy = (cuda.Buffer.holding(to_device(a)) for a in (samples, upstream))
    y, dx, passed = (cuda.Buffer.holding(to_device(np.full((5, *shape), 99, dtype))) for _ in range(3))
    operation, steps = cuda.Dropout(shape, 0.25, planes, dtype), to_device(np.array([4]))
    operation.place = Place(7, 1, steps)
    operation.reserve(5)
    cuda.run(operation.forward(3, y, x, ()))
    cuda.write(steps, np.array([5]))
    cuda.run(operation.evaluate(3, passed, x, ()))
    cuda.run(operation.backward(3, dx, (), dy, x, y, (), ()))
    assert operation.backward(3, None, (), dy, x, y, (), ()) == []
    mask = oracles.dropout_mask(3, cells, 0.25, 7, 1, 4).reshape(3, 3, *(1, 1) if planes else (2, 3))
    for written, expected in ((y, scaled(samples[:3], mask, 0.25)), (dx, scaled(upstream[:3], mask, 0.25)), (passed, samples[:3])):
        assert equal(to_host(written.view(3)), expected) and (to_host(written.view(5))[3:] == 99).all()
    assert equal(to_host(x.view(5)), samples) and equal(to_host(dy.view(5)), upstream)


@FUNCTIONS
def test_strided_arrays(forward, backward):
    x = values(4, (2, 3, 4, 5), np.float32)
    view, host = transposed(to_device(x), (3, 2, 1, 0)), x.transpose()
    y, mask = forward(view)
    assert equal(to_host(y), forward(host)[0])
    assert equal(to_host(backward(view, mask)), backward(host, to_host(mask)))


def test_errors():
    dy, mask = to_device(np.ones((2, 3), np.float32)), np.ones((2, 3), np.uint8)
    with pytest.raises(TypeError, match=r"^mask: expected device arrays, as dy is one"):
        dropout_backward(dy, mask)
    with pytest.raises(ValueError, match=r"^mask: expected shape \(2, 3\), as forward returns it, got shape \(1, 3\)"):
        dropout_backward(dy, to_device(mask[:1]))
