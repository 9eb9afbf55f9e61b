"""BackpropScheduler: gradients of whole networks, PyTorch's semantics of grad, batches of any size, threads."""
import os
import subprocess
import sys

import numpy as np
import pytest

import nbcnn

from gradients import check_directional_gradients
from threads import one_and_all_threads

LOSSES = {
    "cross_entropy": (nbcnn.CrossEntropyLoss(label_smoothing=0.1), lambda rng, n: rng.integers(0, 5, n)),
    "mse": (nbcnn.MSELoss(), lambda rng, n: rng.standard_normal((n, 5))),
    "l1": (nbcnn.L1Loss(reduction="sum"), lambda rng, n: rng.standard_normal((n, 5))),
    "bce": (nbcnn.BCEWithLogitsLoss(), lambda rng, n: rng.random((n, 5))),
}


def network(dtype=np.float64, seed=0):
    """Every layer type, stride, dilation, overlapping pools, no bias, paddings of several widths."""
    return nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(3, 6, 3, padding=2)), ("relu1", nbcnn.ReLU()), ("maxpool1", nbcnn.MaxPool2d(3, stride=2, padding=1)),
        ("conv2", nbcnn.Conv2d(6, 7, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), bias=False)),
        ("conv3", nbcnn.Conv2d(7, 4, 3, padding=1)), ("maxpool2", nbcnn.MaxPool2d(2, ceil_mode=True)),
        ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(16, 9)), ("relu2", nbcnn.ReLU()), ("linear2", nbcnn.Linear(9, 5)),
    ], input_shape=(3, 10, 9), dtype=dtype, seed=seed)


def batch(n=4, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3, 10, 9)).astype(dtype), rng.integers(0, 5, n)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_directional_gradients(name, seed):
    loss, targets = LOSSES[name]
    rng = np.random.default_rng(seed)
    model, (images, _) = network(seed=seed), batch(seed=seed)
    check_directional_gradients(nbcnn.BackpropScheduler(model, loss), images, targets(rng, 4), rng)


def test_gradient_semantics():
    """None before backward; backward adds; zero_grad resets; a parameter whose grad is None gets a fresh one."""
    model, (images, labels) = network(), batch()
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.1)
    assert all(p.grad is None for p in model.parameters())

    def gradients():
        step.forward(images, labels)
        step.backward()
        return {name: p.grad.copy() for name, p in model.named_parameters()}

    once = gradients()
    twice = gradients()
    assert all((twice[name] == 2 * once[name]).all() and once[name].any() for name in once)
    model.conv3.weight.grad = None
    model.linear1.bias.grad[:] *= 0
    mixed = gradients()
    for name, factor in {"conv3.weight": 1, "linear1.bias": 1, "conv1.weight": 3, "linear2.bias": 3}.items():
        np.testing.assert_allclose(mixed[name], factor * once[name], rtol=1e-12, err_msg=name)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert all((v == once[name]).all() for name, v in gradients().items())


def test_backward_needs_a_forward_of_its_own():
    model, (images, labels) = network(), batch()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    for prepare in (lambda: None,
                    lambda: (step.forward(images, labels), step.images(2)),
                    lambda: (step.forward(images, labels), step.images(9)),
                    lambda: (step.forward(images, labels), step.backward()),
                    lambda: (step.forward(images, labels), step.predict(images)),
                    lambda: (step.forward(images, labels), step.forward(images, labels, training=False))):
        prepare()
        with pytest.raises(RuntimeError, match="forward pass of its own"):
            step.backward()
    step.forward(images, labels)
    with pytest.raises(IndexError):
        step.forward(images, labels + 5)
    with pytest.raises(RuntimeError):
        step.backward()


@pytest.mark.parametrize("first", [[], [("flatten0", nbcnn.Flatten())]])
def test_the_gradient_of_the_images(first):
    """What backward of the layers' functions gives; None unless asked for, or before backward; parameters' stay the same."""
    model = nbcnn.Sequential([*first, ("relu1", nbcnn.ReLU())], dtype=np.float64)
    images, targets = np.random.default_rng(0).standard_normal((2, 2, 3, 3, 5))
    targets = targets.reshape(model(images).shape)
    step = nbcnn.BackpropScheduler(model, nbcnn.MSELoss(reduction="sum"), need_dx=True)
    step.forward(images, targets)
    assert step.dx is None
    step.backward()
    expected = 2 * (np.maximum(images, 0) - targets.reshape(images.shape)) * (images > 0)
    assert step.dx.shape == images.shape and (step.dx == expected).all()


def test_the_gradient_of_the_images_costs_the_others_no_bit():
    gradients = []
    for need_dx in (False, True):
        model, (images, labels) = network(), batch()
        step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss(), need_dx=need_dx)
        step.forward(images, labels)
        step.backward()
        gradients.append(model.vector.grad.copy())
        assert (step.dx is not None) == need_dx
    assert (gradients[0] == gradients[1]).all()


def test_a_failed_call_leaves_the_scheduler_usable():
    model, (images, labels) = network(), batch()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    loss = step.forward(images, labels)
    for bad in (images[0], images[:, :2], images.astype(int), images[:, :, :2, :2]):
        with pytest.raises((ValueError, TypeError)):
            step.forward(bad, labels)
    assert step.forward(images, labels) == loss
    step.backward()


def test_layers_before_the_first_that_learns():
    """Their backward is not run, and what follows gets its gradients all the same."""
    model = nbcnn.Sequential([nbcnn.ReLU(), nbcnn.MaxPool2d(2), nbcnn.Flatten(), nbcnn.Linear(8, 3)], dtype=np.float64)
    images = np.random.default_rng(0).standard_normal((4, 2, 4, 4))
    step = nbcnn.BackpropScheduler(model, nbcnn.MSELoss(reduction="sum"))
    step.forward(images, np.zeros((4, 3)))
    step.backward()
    x = np.maximum(images, 0).reshape(4, 2, 2, 2, 2, 2).max((3, 5)).reshape(4, 8)
    np.testing.assert_allclose(model[-1].weight.grad, 2 * model(images).T @ x, rtol=1e-12)


def test_what_has_nothing_to_learn_and_what_cannot_be_learned():
    step = nbcnn.BackpropScheduler(nbcnn.Sequential([nbcnn.Flatten()]), nbcnn.MSELoss())
    assert step.forward(np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)) == 1
    step.backward()
    with pytest.raises(ValueError, match=r"loss: expected reduction 'mean' or 'sum'.* got 'none'"):
        nbcnn.BackpropScheduler(network(), nbcnn.MSELoss(reduction="none"))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_pictures_without_an_axis_of_channels(dtype):
    """(N, 28, 28), as digits often come."""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(dtype)
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(784, 10)])
    floats = images.reshape(5, 784) / np.float32(255 if dtype == np.uint8 else 1)
    np.testing.assert_allclose(model(images), model(floats.astype(np.float32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("images", "message"), [
    (np.zeros((2, 4, 10, 9)), r"conv1: expected images \(N, 3, H, W\), got \(N, 4, 10, 9\)"),
    (np.zeros((3, 10, 9)), r"conv1: expected images \(N, 3, H, W\), got \(N, 10, 9\) from images of shape \(3, 10, 9\); "
                           "a single image is"),
    (np.zeros((2, 3, 32, 32)), r"linear1: expected vectors \(N, 16\), got \(N, \d+\)"),
])
def test_a_wrong_shape_names_the_layer(images, message):
    with pytest.raises(ValueError, match=message):
        nbcnn.BackpropScheduler(network(), nbcnn.CrossEntropyLoss()).forward(images, np.zeros(len(images), int))


def test_batches_of_any_size_in_any_order():
    """A large batch, then smaller and larger ones: the same as a fresh scheduler would give; nothing is left over."""
    model = network()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    for n in (5, 2, 9, 1, 9, 0, 3):
        images, labels = batch(n, seed=n)
        results = []
        for scheduler in (step, nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())):
            for p in model.parameters():
                p.grad = None
            loss = scheduler.forward(images, labels)
            scheduler.backward()
            results.append([loss, *(p.grad.copy() for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)     # NaN, the mean over no samples, equals NaN here


def test_images_is_the_first_buffer():
    model, (images, labels) = network(), batch()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    view = step.images(4)
    view[...] = images
    loss = step.forward(view, labels)
    assert np.shares_memory(step.images(4), view) and loss == nbcnn.BackpropScheduler(model, step.loss).forward(images, labels)
    assert step.images(2).shape == (2, 3, 10, 9)
    with pytest.raises(RuntimeError, match="input_shape"):
        nbcnn.BackpropScheduler(nbcnn.Sequential([nbcnn.ReLU()]), None).images(2)


def test_outputs_and_plan(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")        # as long as its lines are
    model, (images, labels) = network(), batch()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    plan = str(step).splitlines()
    assert len(plan) == 2 + len(model) and plan[2].split()[:2] == ["conv1", "Conv2d"]
    step.forward(images, labels)
    assert list(step.outputs) == list(model.layers) and (step.outputs["linear2"] == model(images)).all()
    assert (step.outputs["relu1"] == np.maximum(step.outputs["conv1"], 0)).all()


def test_first_nonfinite_names_the_layer():
    model, (images, labels) = network(), batch()
    step = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss())
    optimizer = nbcnn.SGD(model.parameters(), lr=0.1)
    step.train_step(images, labels, optimizer)
    assert step.first_nonfinite() is None
    model.conv3.bias.data[0] = np.inf
    before = model.state_dict()
    assert not np.isfinite(step.train_step(images, labels, optimizer))
    assert step.first_nonfinite() == "conv3" and all((v == before[name]).all() for name, v in model.state_dict().items())
    images[2] = np.nan
    step.forward(images, labels)
    assert step.first_nonfinite() == "input"


def train(model, steps):
    """A few training steps on random data."""
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for seed in range(steps):
        step.train_step(*batch(8, seed=seed, dtype=model.dtype), optimizer)
    return model.state_dict()


def test_any_number_of_threads_gives_equal_bits():
    one, most = [train(network(np.float32), 5) for _ in one_and_all_threads()]
    assert all((one[name] == most[name]).all() for name in one)


TWO_THREADS = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import numba, numpy as np
from test_scheduler import network, train
alone = [train(network(np.float32, seed), 12) for seed in (1, 2)]
together = [None, None]
def run(k):
    together[k] = train(network(np.float32, k + 1), 12)
threads = [threading.Thread(target=run, args=(k,)) for k in (0, 1)]
[t.start() for t in threads]; [t.join() for t in threads]
assert all((a[name] == t[name]).all() for a, t in zip(alone, together) for name in a)
print(numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_two_python_threads_train_two_models_at_once(layer):
    """As each would alone. Without the lock of launch.py the workqueue layer aborts the process."""
    done = subprocess.run([sys.executable, "-c", TWO_THREADS, os.path.dirname(__file__)], capture_output=True,
                          text=True, timeout=300, env={**os.environ, "NUMBA_THREADING_LAYER": layer})
    assert done.returncode == 0 and done.stdout.strip() == layer, done.stderr[-2000:]


ALLOCATIONS = """
import sys
sys.path.insert(0, sys.argv[1])
import numba, numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys
import nbcnn
from test_scheduler import batch, network

handed_over = 0     # Numba counts a descriptor for each array that Python hands to a kernel; it is no memory for data
def counting(kernel):
    def call(*arguments):
        global handed_over
        handed_over += sum(isinstance(a, np.ndarray) for a in arguments)
        return kernel(*arguments)
    return call
def counting_all(run):
    def call(calls):
        global handed_over
        handed_over += sum(isinstance(a, np.ndarray) for call in calls for a in call.arguments)
        run(calls)
    return call

model = network()
step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), lr=0.01, momentum=0.9)
for name, module in list(sys.modules.items()):
    if name.startswith("nbcnn"):
        if hasattr(module, "launch") and callable(module.launch):
            module.launch = counting(module.launch)
        if hasattr(module, "run") and getattr(module.run, "__module__", "") == "nbcnn.kernels.cpu.launch":
            module.run = counting_all(module.run)
        if name == "nbcnn.kernels.cpu.losses":
            for key, value in list(vars(module).items()):
                if isinstance(value, Dispatcher) and key in {"cross_entropy_forward", "cross_entropy_backward", "total_weight",
                                                             "tree_sum", "first_bad_class"}:
                    setattr(module, key, counting(value))
images, labels = batch(6)
for n in (6, 6):
    step.train_step(images, labels, optimizer)
before, handed_over = rtsys.get_allocation_stats(), 0
for n in (6, 3, 6):
    step.train_step(images[:n], labels[:n], optimizer)
after = rtsys.get_allocation_stats()
assert handed_over > 100, "the counter is off"
print(after.alloc - before.alloc - handed_over, after.alloc - after.free - (before.alloc - before.free))

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])      # pages
numba.set_num_threads(1)          # faster for so little, and beside other processes
for k in range(1200):
    if k == 200:
        settled = resident()
    step.train_step(images, labels, optimizer)
print(resident() - settled <= 64)               # a quarter of a megabyte; one leaked activation a step would be tens of them
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_a_step_allocates_nothing():
    """Numba: beyond one descriptor for each array that Python hands to a kernel, freed when it returns. And 1,000 steps take no
    more memory than 200."""
    done = subprocess.run([sys.executable, "-c", ALLOCATIONS, os.path.dirname(__file__)], capture_output=True,
                          text=True, timeout=300, env={**os.environ, "NUMBA_NRT_STATS": "1"})
    assert done.returncode == 0 and done.stdout.split() == ["0", "0", "True"], done.stdout + done.stderr[-2000:]


@pytest.mark.torch
@pytest.mark.parametrize(("make", "dtype", "momentum", "steps", "tolerance"), [
    (nbcnn.models.cifar10_quick, np.float32, 0, 200, 1e-4),
    # Roundings only, which the steps multiply. In float32 PyTorch's own losses leave its float64 ones by 1e-4 here.
    (nbcnn.models.cifar10_quick_relu, np.float64, 0.9, 60, 1e-10),
])
def test_training_follows_torch(make, dtype, momentum, steps, tolerance):
    """From the same weights on the same batches, each loss is PyTorch's."""
    import torch
    model = make(seed=1, dtype=dtype)
    net = torch.nn.Sequential(*[getattr(torch.nn, kind)(**arguments) for _, kind, arguments in model.structure()])
    for p, q in zip(net.parameters(), model.parameters(), strict=True):
        p.data = torch.tensor(np.ascontiguousarray(q.data))
    step, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), nbcnn.SGD(model.parameters(), 0.01, momentum)
    torch_optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum)
    rng = np.random.default_rng(0)
    patterns = rng.random((10, 3, 32, 32))
    for k in range(steps):
        labels = rng.integers(0, 10, 16)
        images = (0.3 * patterns[labels] + 0.7 * rng.random((16, 3, 32, 32))).astype(dtype)
        loss = step.train_step(images, labels, optimizer)
        torch_optimizer.zero_grad()
        expected = torch.nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
        expected.backward()
        torch_optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=tolerance), k


def test_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"^loss: expected a loss of nbcnn\.losses, got int; there are BCELoss, "):
        nbcnn.BackpropScheduler(network(), 3)
    for loss, got in ((nbcnn.MSELoss, "<class .*MSELoss'>"), ("mse", "'mse'"), ("MSELoss", "'MSELoss'")):
        with pytest.raises(TypeError, match=rf"^loss: expected a loss of nbcnn\.losses, got {got}; write nbcnn\.MSELoss\(\)$"):
            nbcnn.BackpropScheduler(network(), loss)
    step = nbcnn.BackpropScheduler(network(), nbcnn.MSELoss())
    with pytest.raises(TypeError, match=r"^shape: expected a tuple of ints, got 3$"):
        step.plan(3)
    with pytest.raises(ValueError, match=r"^n: expected an int <= 2147483647"):
        step.images(2**63)
