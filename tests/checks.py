"""What every layer goes through: nbcnn's own, and those from outside."""
import numpy as np

import nbcnn
from nbcnn import checkpoint
from nbcnn.kernels.backend import load_backend, on_host

from arrays import equal


def network(case, dtype, seed=0):
    """A case's layer, with layers that learn before and behind it."""
    if len(case.shape) == 3:
        before, input_shape = [("before", nbcnn.Conv2d(2, case.shape[0], 1))], (2, *case.shape[1:])
    else:
        before, input_shape = [("vectors", nbcnn.Flatten()), ("before", nbcnn.Linear(4, *case.shape))], (1, 2, 2)
    layer = case.make()
    outputs = int(np.prod(layer.output_shape(case.shape)))
    return nbcnn.Sequential([*before, ("layer", layer), ("flatten", nbcnn.Flatten()), ("behind", nbcnn.Linear(outputs, 3))],
                            input_shape=input_shape, dtype=dtype, seed=seed)


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


def results(case, device, dtype, fill):
    """y, dx and the gradients of parameters of four samples, computed in memory that was full of `fill` before.

    Asserts that forward and backward write nothing else.
    """
    backend, rng, n = load_backend(device), np.random.default_rng(0), 4
    model = nbcnn.Sequential([("layer", case.make())], dtype=dtype).to(device)
    layer, operation = model.layer, model.layer.operation(backend, case.shape, np.dtype(dtype))
    y_shape = layer.output_shape(case.shape)
    x, dy = (rng.choice([-3, -2, -1, 1, 2, 4], (n + 1, *shape)).astype(dtype) for shape in (case.shape, y_shape))
    x, dy, y, dx = (backend.Buffer.holding(backend.place(a))
                    for a in (x, dy, np.full_like(dy, fill), np.full_like(x, fill)))
    operation.reserve(n + 1)
    params = tuple(p and p.flat for p in (layer.weight, layer.bias)) if layer.parameters else ()
    gradients = backend.Gradients(operation, n, [p.size for p in layer.parameters.values()], dtype)
    before = [on_host(a).copy() for a in (x.array, dy.array)]
    backend.run(operation.forward(n, y, x, params))
    saved = on_host(y.array).copy()
    backend.run([*operation.backward(n, dx, gradients.targets, dy, x, y, params, (False,) * len(params)), *gradients.calls])
    assert all(equal(on_host(a), b) for a, b in zip((x.array, dy.array, y.array), (*before, saved), strict=True))
    for written in (y, dx):
        assert equal(on_host(written.view(n + 1))[n], np.full(written.shape, fill, dtype)), "a sample that nobody asked for"
    return [on_host(y.view(n)).copy(), on_host(dx.view(n)).copy(), *map(on_host, gradients.arrays)]


def check_contract(case, device, dtype):
    """What was in memory before changes no bit of the results, on a device."""
    if not case.make().operation(load_backend(device), case.shape, np.dtype(dtype)).shares:
        assert all(map(equal, results(case, device, dtype, np.nan), results(case, device, dtype, 99)))


def check_equals_cpu(case, dtype):
    """A GPU's results are the CPU's but for some roundings, and what was in memory before changes no bit of them."""
    check_contract(case, "cuda", dtype)
    if not case.make().operation(load_backend("cuda"), case.shape, np.dtype(dtype)).shares:
        for there, here in zip(*(results(case, device, dtype, np.nan) for device in ("cuda", "cpu")), strict=True):
            np.testing.assert_allclose(there, here, rtol=16 * np.finfo(dtype).eps, atol=64 * np.finfo(dtype).eps)
