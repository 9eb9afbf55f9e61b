"""The scheduler with a model on a simulated GPU: the numbers, and the bits, of the CPU."""
import copy

import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint
from nbcnn.kernels.cuda import to_device, to_host

import arrays

pytestmark = pytest.mark.sim

RNG = np.random.default_rng(0)
IMAGES, TARGETS = RNG.integers(-1, 2, (4, 2, 4, 4)), RNG.integers(-1, 2, (4, 4))
LABELS = np.array([0, 3, 1, 1])


def network(dtype=np.float32, device="cpu"):
    """Every layer type. The parameters are multiples of 1/2: sums are exact in float32."""
    model = nbcnn.Sequential([
        ("conv1", nbcnn.Conv2d(2, 3, 3, padding=1)), ("pool1", nbcnn.MaxPool2d(2)),
        ("conv2", nbcnn.Conv2d(3, 2, 2, stride=(1, 2), padding=1)), ("relu1", nbcnn.ReLU()),
        ("conv3", nbcnn.Conv2d(2, 2, 3, padding=1, bias=False)), ("pool2", nbcnn.MaxPool2d((2, 1))), ("relu2", nbcnn.ReLU()),
        ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(4, 3)), ("relu3", nbcnn.ReLU()), ("linear2", nbcnn.Linear(3, 4)),
    ], input_shape=(2, 4, 4), mean=[0.5, 0.25], std=[0.5, 0.25], dtype=dtype)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.set(rng.integers(-1, 2, parameter.shape) * (rng.random(parameter.shape) < 0.7) / 2)
    return model.to(device)


def host(array):
    return array if isinstance(array, np.ndarray) else to_host(array)


def equal(a, b):
    return arrays.equal(host(a), host(b))


def after(model, loss, *batches, **options):
    """The scheduler after forward and backward passes, and the losses."""
    step, losses = nbcnn.BackpropScheduler(model, loss, **options), []
    for images, targets in batches:
        losses.append(float(step.forward(images, targets)))
        step.backward()
    return step, losses


@pytest.mark.parametrize("fuse, dtype", [(True, np.float32), (True, np.float64), (False, np.float32)])
def test_equals_cpu(fuse, dtype):
    """Loss, every output and every gradient, which a second backward pass adds to."""
    model, other = network(dtype), network(dtype, "cuda")
    batch, images = (IMAGES.astype(dtype), TARGETS.astype(dtype)), IMAGES.astype(dtype)[:2]
    (step, losses), (same, others) = (after(m, nbcnn.MSELoss(), batch, (images, batch[1][:2]), fuse=fuse) for m in (model, other))
    assert losses == others and losses[0] > 0 and list(step.outputs) == list(same.outputs)
    assert all(equal(step.outputs[name], same.outputs[name]) and host(step.outputs[name]).any() for name in step.outputs)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert equal(p.grad, q.grad) and p.grad.any(), name
    assert other.conv2.weight.grad[1, 2, 0, 1] == model.conv2.weight.grad[1, 2, 0, 1]
    # A gradient removed begins anew, one assigned is added to.
    for parameter, there in ((model.conv2.weight, np.array), (other.conv2.weight, to_device)):
        parameter.grad = None
        assert parameter.grad is None
        parameter.grad = there(np.ones(parameter.shape, dtype))
    model.linear1.bias.grad = other.linear1.bias.grad = None
    before = to_host(other.conv1.weight.grad)
    for scheduler in (step, same):
        scheduler.forward(*batch)
        scheduler.backward()
    assert all(equal(p.grad, q.grad) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert not equal(before, other.conv1.weight.grad)
    optimizer = nbcnn.SGD(other.parameters(), lr=0.1)
    optimizer.zero_grad()
    assert all(p.grad is None for p in other.parameters())
    # float32 rounds nothing: it is what float64 gives.
    if dtype == np.float32:
        exact, _ = after(network(np.float64), nbcnn.MSELoss(), (IMAGES.astype(np.float64), TARGETS.astype(np.float64)))
        fresh, _ = after(network(np.float32), nbcnn.MSELoss(), batch)
        assert all((p.grad == q.grad).all() for p, q in zip(exact.model.parameters(), fresh.model.parameters(), strict=True))


def test_inputs_of_all_kinds():
    """Floats of NumPy and of the device, float64 for a float32 model, and bytes, of which 0 and 255 are normalised exactly."""
    cpu, model = (nbcnn.BackpropScheduler(network(device=device), nbcnn.MSELoss()) for device in ("cpu", "cuda"))
    whole, targets = IMAGES[:2], TARGETS[:2]
    floats, pictures = whole.astype(np.float32), (whole > 0).astype(np.uint8) * 255
    for images in (floats, whole.astype(np.float64), pictures, pictures.transpose(0, 1, 3, 2)):
        expected = cpu.forward(images, targets)
        for there in (images, to_device(images)):
            assert float(model.forward(there, targets)) == expected
        assert float(model.forward(images, to_device(targets.astype(np.float32)))) == expected
    view = model.images(2)
    view[...] = floats
    assert float(model.forward(view, targets)) == cpu.forward(floats, targets)
    for bad in (floats[0], floats[:, :1], whole, floats[:, :, :1]):
        messages = []
        for scheduler in (cpu, model):
            with pytest.raises((TypeError, ValueError)) as caught:
                scheduler.forward(bad, targets)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_labels():
    """Cross-entropy of labels: within a few roundings of what the CPU computes."""
    results = []
    for device in ("cpu", "cuda"):
        model = network(np.float64, device)
        _, losses = after(model, nbcnn.CrossEntropyLoss(label_smoothing=0.125), (IMAGES.astype(np.float64), LABELS))
        results.append([losses[0], *(host(p.grad) for p in model.parameters())])
    for a, b in zip(*results, strict=True):     # sums of a few dozen terms of order 1
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_predict():
    cpu, model, images = network(), network(device="cuda"), IMAGES.astype(np.float32)
    expected = cpu(images)
    assert isinstance(model(images), np.ndarray) and equal(model(images), expected) and equal(model.predict(images, 3), expected)
    first, second = model(to_device(images)), model(to_device(0 * images))
    assert not isinstance(first, np.ndarray) and equal(first, expected) and equal(second, cpu(0 * images))      # a copy


def test_the_loss_is_fetched_when_it_is_asked_for():
    step = nbcnn.BackpropScheduler(network(device="cuda"), nbcnn.MSELoss())
    expected = nbcnn.BackpropScheduler(network(), nbcnn.MSELoss()).forward(IMAGES.astype(np.float32), TARGETS)
    loss = step.forward(IMAGES.astype(np.float32), TARGETS)
    other = step.forward(0 * IMAGES.astype(np.float32), TARGETS)
    assert not isinstance(loss, float) and float(loss) == loss.item() == expected != float(other)
    assert repr(loss) == repr(float(expected)) and f"{loss:.3f}" == f"{expected:.3f}"


def test_backward_needs_a_forward_of_its_own():
    step, images = nbcnn.BackpropScheduler(network(device="cuda"), nbcnn.MSELoss()), IMAGES[:1].astype(np.float32)
    for prepare in (lambda: None, lambda: step.forward(images, TARGETS[:1], training=False), lambda: step.predict(images),
                    lambda: step.images(2), lambda: step.backward()):
        with pytest.raises(RuntimeError, match="forward pass of its own"):
            prepare()
            step.backward()
        step.forward(images, TARGETS[:1])


def test_the_plan_and_the_profile():
    cpu, step = (nbcnn.BackpropScheduler(network(device=device), nbcnn.MSELoss()) for device in ("cpu", "cuda"))
    rows, expected = ([line.split() for line in str(s).splitlines()[2:]] for s in (step, cpu))
    assert [row[:2] for row in rows] == [row[:2] for row in expected] and rows[0][:2] == ["conv1+pool1", "Conv2dMaxPool2d"]
    with pytest.raises(RuntimeError, match="profile: expected a model on the CPU, got one on cuda"):
        with step.profile():
            pass


def test_first_nonfinite():
    step = nbcnn.BackpropScheduler(network(device="cuda"), nbcnn.MSELoss())
    optimizer = nbcnn.SGD(step.model.parameters(), lr=0.5)
    images = IMAGES[:2].astype(np.float32)
    assert step.first_nonfinite() == "input"
    step.train_step(images, TARGETS[:2], optimizer)
    assert step.first_nonfinite() is None
    bias = step.model.conv2.bias
    bias.set([np.inf, 0])
    before = step.model.state_dict()
    assert not np.isfinite(float(step.train_step(images, TARGETS[:2], optimizer))) and step.first_nonfinite() == "conv2"
    assert all(equal(before[name], value) for name, value in step.model.state_dict().items())
    bias.set([0, 0])
    images[1] = np.nan
    step.forward(images, TARGETS[:2])
    assert step.first_nonfinite() == "input"


def steps(model, count, optimizer=None, step=None):
    step = step or nbcnn.BackpropScheduler(model, nbcnn.MSELoss())
    optimizer = optimizer or nbcnn.SGD(model.parameters(), lr=2 ** -4, momentum=0.5, weight_decay=2 ** -3)
    for _ in range(count):
        step.train_step(IMAGES.astype(model.dtype), TARGETS, optimizer)
    return optimizer, step


def assert_close(model, other):
    """Equal but for roundings, which float64 needs from the second step on; momentum that was lost changes the second digit."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-12, atol=1e-13, err_msg=name)


def test_there_and_back_again():
    """Scheduler and momentum follow the model."""
    stays, moves = network(np.float64), network(np.float64)
    steps(stays, 3)
    optimizer, step = steps(moves, 1)
    gradient = moves.conv1.weight.grad.copy()
    moves.to("cuda")
    assert moves.device == "cuda" and moves.to("cuda") is moves and equal(moves.conv1.weight.grad, gradient)
    assert equal(moves.conv1.weight.data, moves.conv1.weight.numpy()) and isinstance(moves.conv1.weight.numpy(), np.ndarray)
    assert not isinstance(optimizer.momentum_buffer(moves.conv1.weight), np.ndarray)
    steps(moves, 1, optimizer, step)
    moves.to("cpu")
    assert moves.device == "cpu" and isinstance(moves.conv1.weight.data, np.ndarray)
    steps(moves, 1, optimizer, step)
    assert_close(stays, moves)
    with pytest.raises(ValueError, match="device: expected one of 'cpu', 'cuda', got 'nonsense'"):
        moves.to("nonsense")
    assert moves.device == "cpu"


def test_copies_and_checkpoints(tmp_path):
    """They hold what is on the device, and begin on the CPU."""
    model = network(np.float64, "cuda")
    optimizer, _ = steps(model, 1)
    checkpoint.save(tmp_path / "there", model, optimizer=optimizer)
    read, twin = checkpoint.load(tmp_path / "there"), copy.deepcopy(model)
    on_cpu = network(np.float64)
    checkpoint.save(tmp_path / "here", on_cpu, optimizer=steps(on_cpu, 1)[0])
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    for other in (read.model, twin):
        assert other.device == "cpu" and all((v == model.state_dict()[name]).all() for name, v in other.state_dict().items())
    model.to("cpu")
    read.model.to("cuda")
    steps(model, 1, optimizer)
    steps(read.model, 1, read.optimizer)
    assert_close(model, read.model)
    assert not (twin.state_dict()["conv1.weight"] == model.state_dict()["conv1.weight"]).all()      # memory of its own


def test_batches_of_any_size():
    """Larger, smaller and empty ones: as a fresh scheduler on the CPU would give."""
    model, cpu = network(np.float64, "cuda"), network(np.float64)
    step = nbcnn.BackpropScheduler(model, nbcnn.MSELoss())
    for n in (2, 4, 1, 0):
        results = []
        for scheduler in (step, nbcnn.BackpropScheduler(cpu, nbcnn.MSELoss())):
            for p in scheduler.model.parameters():
                p.grad = None
            loss = float(scheduler.forward(IMAGES[:n].astype(np.float64), TARGETS[:n]))
            scheduler.backward()
            results.append([np.float64(loss), *(host(p.grad) for p in scheduler.model.parameters())])
        assert all(equal(np.asarray(a), np.asarray(b)) for a, b in zip(*results, strict=True)), n
