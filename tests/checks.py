"""What every layer goes through: nbcnn's own, and those from outside."""
import numpy as np

import nbcnn
from nbcnn import checkpoint
from nbcnn.kernels.backend import load_backend, on_host
from nbcnn.kernels.operation import Place

from arrays import equal


def network(case, dtype, seed=0):
    """A case's layer, with a layer that learns before each of its inputs, and one behind it."""
    layer, shapes = case.make(), case.shapes
    if len(shapes[0]) == 3:
        first, input_shape = [], (2, *shapes[0][1:])
        before = [(f"before{k}", nbcnn.Conv2d(2, C, 1), ["input"]) for k, (C, *_) in enumerate(shapes)]
    else:
        first, input_shape = [("vectors", nbcnn.Flatten())], (1, 2, 2)
        before = [(f"before{k}", nbcnn.Linear(4, F), ["vectors"]) for k, (F,) in enumerate(shapes)]
    outputs = int(np.prod(layer.output_shape(case.shape)))
    return nbcnn.Network([
        *first, *before, ("layer", layer, [name for name, *_ in before]), ("flatten", nbcnn.Flatten()),
        ("behind", nbcnn.Linear(outputs, 3))], input_shape=input_shape, dtype=dtype, seed=seed)


def batch(model, dtype):
    """Five images, the brighter the higher their class."""
    rng, labels = np.random.default_rng(0), np.array([0, 1, 2, 0, 1])
    images = rng.standard_normal((*model.input_shape, 5)) + 2 * labels
    return np.moveaxis(images, -1, 0).astype(dtype), labels


def check_gradients(case):
    """Gradients of the input and of the parameters before, in and behind the layer are the slopes of what the network gives."""
    for fuse in (True, False):
        model = network(case, np.float64)
        check = nbcnn.check_gradients(model, model.input_shape, fuse=fuse)
        assert check, check


def check_training(case, path, dtype=np.float32):
    """Five images are learned by heart, and the network comes back from a checkpoint."""
    model = network(case, dtype)
    (images, labels), optimizer = batch(model, dtype), nbcnn.SGD(model.parameters(), lr=0.02, momentum=0.9)
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    losses = [step.train_step(images, labels, optimizer) for _ in range(80)]
    assert losses[-1] < losses[0] / 2
    nbcnn.save(model, path)
    found = nbcnn.load(path, layers=model.own_layers())
    assert type(found.layer) is case.layer and repr(found.layer) == repr(model.layer)
    assert found.structure() == model.structure() and equal(found(images), model(images))
    checkpoint.save(path.with_name("again"), found)
    assert path.with_name("again").read_bytes() == path.read_bytes()


def layer_and_operation(case, device, dtype):
    """A case's layer, with values where it has any, and its operation."""
    layer = case.make()
    if layer.parameters or layer.buffers:
        nbcnn.Sequential([("layer", layer)], dtype=dtype).to(device)
    return layer, layer.operation(load_backend(device), case.shape, np.dtype(dtype))


def results(case, device, dtype, fill):
    """y, dx and the gradients of parameters of four samples, computed in memory that was full of `fill` before.

    Asserts that forward and backward write nothing else.
    """
    backend, rng, n, shapes = load_backend(device), np.random.default_rng(0), 4, case.shapes
    layer, operation = layer_and_operation(case, device, dtype)
    y_shape = layer.output_shape(case.shape)
    operation.place = Place(0, 0, backend.allocate((1,), np.int64))
    *xs, dy = (rng.choice([-3, -2, -1, 1, 2, 4], (n + 1, *shape)).astype(dtype) for shape in (*shapes, y_shape))
    *xs, dy, y = (backend.Buffer.holding(backend.place(a)) for a in (*xs, dy, np.full_like(dy, fill)))
    dxs = [backend.Buffer.holding(backend.place(np.full((n + 1, *shape), fill, dtype))) for shape in shapes]
    x, dx = (xs[0], dxs[0]) if layer.inputs == 1 else (tuple(xs), tuple(dxs))
    operation.reserve(n + 1)
    params = tuple(p and p.flat for p in layer.params)
    gradients = backend.Gradients(operation, n, [p.size for p in layer.parameters.values()], dtype)
    before = [on_host(a.array).copy() for a in (*xs, dy)]
    backend.run(operation.forward(n, y, x, params))
    saved = on_host(y.array).copy()
    targets = iter(gradients.targets)
    dparams = tuple(p and next(targets) for p in layer.params)
    backend.run([*operation.backward(n, dx, dparams, dy, x, y, params, (False,) * len(params)), *gradients.calls])
    assert all(equal(on_host(a.array), b) for a, b in zip((*xs, dy, y), (*before, saved), strict=True))
    for written in (y, *dxs):
        assert equal(on_host(written.view(n + 1))[n], np.full(written.shape, fill, dtype)), "a sample that nobody asked for"
    return [*(on_host(buffer.view(n)).copy() for buffer in (y, *dxs)), *map(on_host, gradients.arrays)]


def check_contract(case, device, dtype):
    """What was in memory before changes no bit of the results, on a device."""
    if not layer_and_operation(case, device, dtype)[1].shares:
        assert all(map(equal, results(case, device, dtype, np.nan), results(case, device, dtype, 99)))


def check_equals_cpu(case, dtype):
    """A GPU's results are the CPU's but for some roundings, and what was in memory before changes no bit of them."""
    check_contract(case, "cuda", dtype)
    if not layer_and_operation(case, "cuda", dtype)[1].shares:
        for there, here in zip(*(results(case, device, dtype, np.nan) for device in ("cuda", "cpu")), strict=True):
            np.testing.assert_allclose(there, here, rtol=16 * np.finfo(dtype).eps, atol=64 * np.finfo(dtype).eps)
