"""Training on a simulated GPU: the steps, bits and errors of the CPU.

Images are black and white and become -1 and 1, parameters are multiples of 1/2, learning rates and momentum powers of two: with
MSE the first two steps of a network of two layers are exact in float64.
"""
from types import SimpleNamespace

import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint, optim, steps, tensorboard
from nbcnn.datasets import Dataset, Loader
from nbcnn.evaluation import make_targets, measure
from nbcnn.fit import NonFiniteLoss, fit
from nbcnn.kernels.cuda import to_host
from nbcnn.optim import SGD

pytestmark = pytest.mark.sim

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 14)
IMAGES = Dataset(RNG.integers(0, 2, (14, 1, 4, 4)).astype(np.uint8) * 255, LABELS, ["a", "b"], "checks")
GREY = Dataset(RNG.integers(0, 256, (14, 1, 4, 4)).astype(np.uint8), LABELS, ["a", "b"], "noise")
TWO_STEPS = Dataset(IMAGES.images[:6], LABELS[:6], ["a", "b"], "few")      # batches of 4 and 2


def network(device="cpu", dtype=np.float64):
    model = nbcnn.Sequential([("conv1", nbcnn.Conv2d(1, 2, 3, padding=1)), ("pool1", nbcnn.MaxPool2d(2)), ("relu1", nbcnn.ReLU()),
                              ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(8, 2))], mean=[0.5], std=[0.5], dtype=dtype)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.set(rng.integers(-1, 2, parameter.shape) / 2)
    return model.to(device)


def sgd(model, **options):
    return SGD(model.parameters(), **(dict(lr=2 ** -4, momentum=0.5, weight_decay=2 ** -3) | options))


def assert_same(model, other, rtol=0.0, atol=0.0):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=rtol, atol=atol, err_msg=name)


def rows(state):
    """The history without the times."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_second")} for row in state.history]


def one_at_a_time(monkeypatch):
    """on_step after each step, as on the CPU."""
    monkeypatch.setattr(steps, "AT_ONCE", 1)


@pytest.mark.parametrize("nesterov, augment", [(False, True), (True, False)])
def test_exact_steps_equal_the_cpus(nesterov, augment):
    """An epoch of two steps, the last one short: every bit of parameters, momentum, losses and accuracies."""
    results = []
    for device in ("cpu", "cuda"):
        model = network(device)
        optimizer = sgd(model, nesterov=nesterov)
        state = fit(model, TWO_STEPS, TWO_STEPS, batch_size=4, loss=nbcnn.MSELoss(), optimizer=optimizer, augment=augment)
        results.append((model, optimizer.state_dict()["momentum_buffers"], rows(state), state.progress, state.loss))
    assert_same(results[0][0], results[1][0])
    assert all((a == b).all() for a, b in zip(results[0][1], results[1][1], strict=True))
    assert results[0][2:] == results[1][2:] and results[0][4] > 0


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-14)])
def test_within_rounding(dtype, tolerance):
    """Cross-entropy of grey images with everything on: seven steps, each with sums of up to 16 terms of order 1."""
    results = []
    for device in ("cpu", "cuda"):
        model = network(device, dtype)
        state = fit(model, GREY, GREY, epochs=1, batch_size=2, augment=True, schedule=optim.one_cycle(0.1, 7),
                    optimizer=sgd(model, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True))
        results.append((model, rows(state)[0], state.optimizer.lr))
    (model, row, lr), (other, same, same_lr) = results
    assert_same(model, other, tolerance, tolerance)
    assert row == pytest.approx(same, rel=100 * float(np.finfo(dtype).eps)) and lr == same_lr == row["lr"] and len(row) == 5


@pytest.mark.parametrize("options", [
    dict(shift_per="image"), dict(border="reflect", cutout=2),
    dict(shift_per="image", border="reflect", flip="alternate", cutout=3)])
def test_whatever_is_done_to_images(options):
    """The second epoch's two steps, which are exact, with the images gathered in the kernel of the update."""
    results = []
    for device in ("cpu", "cuda"):
        model = network(device)
        scheduler, optimizer = nbcnn.BackpropScheduler(model, nbcnn.MSELoss()), sgd(model)
        scheduler.plan((1, 4, 4))
        loader = Loader(TWO_STEPS, 4, augment=True, mean=model.mean, std=model.std, dtype=model.dtype, **options)
        run = (steps.HostSteps(scheduler, optimizer, loader, make_targets(scheduler.loss, 2, model.dtype), None) if device == "cpu"
               else steps.DeviceSteps(scheduler, optimizer, loader))
        run.begin(1)
        losses = []
        while len(losses) < 2:
            losses += run.run()
        results.append((model, losses))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def train(monkeypatch, device="cuda", graph=True, **options):
    """Two epochs of 2, 2, 2, 1 images, in graphs of two steps and of one."""
    monkeypatch.setattr(steps, "GRAPH_STEPS", 2)
    model = network(device, np.float32)
    data = Dataset(GREY.images[:7], LABELS[:7], ["a", "b"], "noise")
    scheduler, optimizer = nbcnn.BackpropScheduler(model, nbcnn.CrossEntropyLoss()), sgd(model, lr=0.1, momentum=0.9)
    scheduler.plan((1, 4, 4))
    loader = Loader(data, 2, augment=True, mean=model.mean, std=model.std, dtype=model.dtype)
    run = steps.DeviceSteps(scheduler, optimizer, loader, lambda k: 0.1 / (1 + k), graph=graph)
    losses = []
    for epoch in (0, 1):
        run.begin(epoch)
        losses += run.run()
    return model, losses, optimizer.state_dict()["momentum_buffers"], {count: len(g.calls) for count, g in run._graphs.items()}


def test_graphs_and_steps_one_by_one_give_equal_bits(monkeypatch):
    """And so do two runs."""
    (model, losses, momentum, graphs), *others = (train(monkeypatch, graph=graph) for graph in (True, True, False))
    assert set(graphs) == {1, 2} and graphs[2] == 2 * graphs[1] and others[1][3] == {}
    for other, same, buffers, _ in others:
        assert_same(model, other)
        assert losses == same and all((a == b).all() for a, b in zip(momentum, buffers, strict=True))
    assert [count for _, count in losses] == [2, 2, 2, 1] * 2


@pytest.mark.parametrize("then", ["cpu", "cuda"])
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(monkeypatch, tmp_path, first, then):
    """Stopped after the first of two steps, kept in a file, and gone on with on either device: as if it had never stopped."""
    one_at_a_time(monkeypatch)
    options = dict(batch_size=4, loss=nbcnn.MSELoss(), augment=True, schedule=lambda k: 2.0 ** -4 / (k + 1))
    whole = network()
    expected = fit(whole, TWO_STEPS, optimizer=sgd(whole), **options)
    model, seen = network(first), []

    def on_step(state):
        seen.append(state.progress.step)
        state.stop = True
    state = fit(model, TWO_STEPS, optimizer=sgd(model), on_step=on_step, **options)
    assert seen == [1] and (state.progress.epoch, state.progress.step) == (0, 1)
    checkpoint.save(tmp_path / "half", model, optimizer=state.optimizer, progress=state.progress)
    read = checkpoint.load(tmp_path / "half")
    read.model.to(then)
    state = fit(read.model, TWO_STEPS, optimizer=read.optimizer, progress=read.progress, **options)
    assert_same(whole, read.model)
    assert state.progress == expected.progress and rows(state) == rows(expected)


def test_on_step_comes_after_every_so_many(monkeypatch):
    """And the rest of the epoch; a stop ends the run there."""
    monkeypatch.setattr(steps, "AT_ONCE", 3)
    model, seen = network("cuda"), []

    def on_step(state):
        seen.append((state.progress.epoch, state.progress.step, state.progress.samples, state.optimizer.lr))
        state.stop = len(seen) == 3
    state = fit(model, IMAGES, epochs=5, batch_size=4, optimizer=sgd(model), schedule=lambda k: 0.5 ** k, on_step=on_step)
    assert seen == [(0, 3, 12, 0.5 ** 2), (0, 4, 14, 0.5 ** 3), (1, 3, 12, 0.5 ** 6)] and state.progress.step == 3
    other = network("cpu")
    count = [0]

    def on_cpu(state):
        count[0] += 1
        state.stop = count[0] == 7
    fit(other, IMAGES, epochs=5, batch_size=4, optimizer=sgd(other), schedule=lambda k: 0.5 ** k, on_step=on_cpu)
    assert_same(model, other, 1e-12, 1e-12)     # cross-entropy, in seven steps of float64


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
@pytest.mark.parametrize("graph_steps, momentum", [(1, 0), (2, 0.5)])
def test_a_loss_that_is_not_finite(monkeypatch, graph_steps, momentum):
    """The second step of the second epoch: named as on the CPU, with the parameters as they were before it, whatever came later."""
    monkeypatch.setattr(steps, "GRAPH_STEPS", graph_steps)
    results, data = [], Dataset(IMAGES.images[:10], LABELS[:10], ["a", "b"], "ten")
    for device in ("cpu", "cuda"):
        model = network(device)
        with pytest.raises(NonFiniteLoss) as caught:
            fit(model, data, epochs=3, batch_size=3, loss=nbcnn.MSELoss(), shuffle=False,
                optimizer=sgd(model, momentum=momentum, weight_decay=0), schedule=lambda k: 2.0 ** 600 if k == 4 else 2.0 ** -20)
        results.append((model, caught.value))
    (model, error), (other, same) = results
    assert (same.epoch, same.step, same.layer) == (error.epoch, error.step, error.layer) == (2, 2, "linear1")
    assert str(same) == str(error)
    assert_same(model, other, 1e-12)
    assert all(np.isfinite(p.numpy()).all() for p in other.parameters()) and abs(other.conv1.weight.numpy()).max() > 2.0 ** 500


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_the_layer_is_that_of_the_step_that_failed():
    """Of three steps the second has bright images, which overflow; the steps after it are finite, and change nothing."""
    bright = np.zeros((6, 1, 4, 4), np.uint8)
    bright[2:4] = 255
    data, results = Dataset(bright, LABELS[:6], ["a", "b"], "flash"), []
    for device in ("cpu", "cuda"):
        model = network(device, np.float32)
        model.mean, model.std = [0.0], [1e-30]
        model.conv1.weight.set(np.full((2, 1, 3, 3), 1e10))
        with pytest.raises(NonFiniteLoss) as caught:
            fit(model, data, batch_size=2, shuffle=False, optimizer=sgd(model))
        results.append((model, caught.value.step, caught.value.layer))
    assert results[0][1:] == results[1][1:] == (2, "conv1+pool1+relu1")
    assert_same(results[0][0], results[1][0], 1e-6, 1e-7)       # cross-entropy, in one step of float32


@pytest.mark.parametrize("views", [1, 6])
def test_evaluate_equals_the_cpus(views):
    """Loss and confusion matrix, in batches of which the last one is short."""
    cpu, gpu = (measure(nbcnn.BackpropScheduler(network(device), nbcnn.MSELoss()), IMAGES, 4, views=views)
                for device in ("cpu", "cuda"))
    assert cpu.loss == gpu.loss > 0 and (cpu.confusion == gpu.confusion).all()


@pytest.mark.parametrize("momentum", [0, 0.5])
def test_an_optimizer_of_some_parameters(momentum):
    """The others stay, and their gradients add up from step to step, as on the CPU."""
    results = []
    for device in ("cpu", "cuda"):
        model = network(device)
        before = model.state_dict()
        own = [model.conv1.bias, model.linear1.weight]
        fit(model, TWO_STEPS, batch_size=4, loss=nbcnn.MSELoss(), optimizer=SGD(own, lr=2 ** -4, momentum=momentum))
        assert all((parameter in own) != (before[name] == parameter.numpy()).all() for name, parameter in model.named_parameters())
        results.append(model)
    assert_same(*results)
    for (name, p), q in zip(results[0].named_parameters(), results[1].parameters(), strict=True):
        assert q.grad is not None and (p.grad == to_host(q.grad)).all(), name


def test_tensorboard_shows_what_it_shows_of_the_cpu():
    """Gradients are those of the epoch's last batch on both devices, and what is drawn is the same."""
    shown = []
    keep = SimpleNamespace(**dict.fromkeys(("add_scalar", "add_histogram_raw", "add_image"), lambda *what: shown[-1].append(what)))
    for device in ("cpu", "cuda"):
        model = network(device)
        shown.append([])
        fit(model, TWO_STEPS, batch_size=4, loss=nbcnn.MSELoss(), optimizer=sgd(model))
        tensorboard.add_gradient_norms(keep, model, 1)
        tensorboard.add_histograms(keep, model, 1)
        tensorboard.add_filters(keep, model, "conv1", 1)
        tensorboard.add_feature_maps(keep, model, IMAGES.images[0], 1)
    assert len(shown[0]) == 2 + 2 * 4 + 1 + 5
    for one, other in zip(*shown, strict=True):
        np.testing.assert_equal(other, one)


def test_training_goes_on_with_the_optimizer_and_the_scheduler():
    """What fit leaves behind is what steps by hand go on from."""
    results = []
    for device in ("cpu", "cuda"):
        model, first = network(device), Dataset(IMAGES.images[:4], LABELS[:4], ["a", "b"], "one batch")
        state = fit(model, first, batch_size=4, loss=nbcnn.MSELoss(), optimizer=sgd(model))
        state.scheduler.train_step(IMAGES.images[4:8], np.eye(2)[LABELS[4:8]], state.optimizer)
        results.append(model)
    assert_same(*results)
