"""Training on a GPU: the same bits with and without graphs and again; the CPU's numbers where nothing is rounded, else nearly."""
import csv
import subprocess
import sys

import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint, datasets, optim
from nbcnn import steps as training
from nbcnn.datasets import Dataset, Loader
from nbcnn.steps import DeviceSteps

pytestmark = pytest.mark.gpu


def parameters(model):
    return {name: p.numpy() for name, p in model.named_parameters()}


def same(a, b):
    """Whether two dicts of arrays, None among them, hold the same bits."""
    return list(a) == list(b) and all((a[k] is None and b[k] is None) or a[k].tobytes() == b[k].tobytes() for k in a)


def device_steps(model, dataset, batch, schedule=None, momentum=0.5, graph=True, loss=None, lr=0.01, **options):
    """A training whose steps are to be started."""
    optimizer = nbcnn.SGD(model.parameters(), lr, momentum=momentum)
    scheduler = nbcnn.BackpropScheduler(model, loss or nbcnn.CrossEntropyLoss())
    scheduler.plan(dataset.images.shape[1:])
    return DeviceSteps(scheduler, optimizer, Loader(dataset, batch, **options), schedule, graph=graph)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_graphs_and_repetitions_give_the_same_bits(cuda, sizes, pictures, monkeypatch, momentum):
    """Two epochs, each with a last batch that is shorter, started in two pieces: graphs of one step, and of several."""
    monkeypatch.setattr(training, "GRAPH_STEPS", sizes.graph_steps)
    full = 2 * sizes.graph_steps + 2
    dataset, results = pictures(full * sizes.batch + 1), []
    for graph in (True, True, False):
        model = sizes.make().to("cuda")
        steps = device_steps(model, dataset, sizes.batch, optim.cosine(0.05, 3 * full), momentum, graph, augment=True)
        losses = {}
        for epoch in range(2):
            steps.begin(epoch)
            steps.start(sizes.graph_steps + 1)
            steps.start(full - sizes.graph_steps)
            assert steps.step == full + 1 == len(steps.loader)
            losses[f"losses {epoch}"] = cuda.to_host(steps.losses)
            assert np.isfinite(losses[f"losses {epoch}"]).all()
        assert set(steps._graphs) == ({1, sizes.graph_steps} if graph else set())
        momenta = dict(zip("abcdefghijklm", steps.optimizer.state_dict()["momentum_buffers"], strict=False))
        results.append({**losses, **parameters(model), **momenta})
    assert same(results[0], results[1]) and same(results[0], results[2])
    assert not same(results[0], {**results[0], "losses 1": results[0]["losses 0"]})


def sparse(model):
    """Give a model whole numbers for parameters, two of a sum's weights being 1 or -1: what it computes are small whole numbers."""
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        values = np.zeros(parameter.shape)
        if name.endswith("bias"):
            values[...] = rng.integers(-1, 2, parameter.shape)
        else:
            for row in values.reshape(len(values), -1):
                row[rng.choice(row.size, 2, replace=False)] = rng.choice([-1, 1], 2)
        parameter.set(values)
    return model


@pytest.mark.parametrize("by", ["train_step", "steps"])
def test_a_step_of_whole_numbers_equals_the_cpus(cuda, sizes, pictures, by):
    """MSE, rates that are powers of two, pictures of 0 and 1: nothing is rounded, as float64 shows."""
    dataset = pictures(sizes.batch, choices=2)
    results = []
    for device, dtype in (("cpu", np.float64), ("cpu", np.float32), ("cuda", np.float32)):
        model, loss = sparse(sizes.make(dtype=dtype)).to(device), nbcnn.MSELoss(reduction="sum")
        if by == "steps" and device == "cuda":
            steps = device_steps(model, dataset, sizes.batch, loss=loss, lr=2 ** -12, shuffle=False)
            steps.begin(0)
            steps.start(1)
            value = float(cuda.to_host(steps.losses)[0])
        else:
            scheduler, optimizer = nbcnn.BackpropScheduler(model, loss), nbcnn.SGD(model.parameters(), lr=2 ** -12, momentum=0.5)
            targets = np.eye(len(dataset.classes), dtype=dtype)[dataset.labels]
            value = float(scheduler.train_step(dataset.images, targets, optimizer))
        results.append((value, parameters(model)))
    before = parameters(sparse(sizes.make()))
    for name, moved in results[0][1].items():
        assert (moved != before[name]).any(), name
    for value, moved in results[1:]:
        assert value == results[0][0]
        for name in moved:
            assert (moved[name] == results[0][1][name]).all(), name


@pytest.mark.parametrize("there, back", [("cuda", "cpu"), ("cpu", "cuda")])
def test_checkpoints_cross_over(sizes, pictures, tmp_path, there, back):
    """What was trained on one device goes on on the other: the file holds the very bits, and the next epoch is nearly the same."""
    dataset, path = pictures(4 * sizes.batch + 1), tmp_path / "model.safetensors"
    model = sizes.make(mean=[0.5] * len(dataset.images[0]), std=[0.3] * len(dataset.images[0])).to(there)
    optimizer = nbcnn.SGD(model.parameters(), lr=0.01, momentum=0.9)
    options = dict(batch_size=sizes.batch, augment=True)
    state = nbcnn.fit(model, dataset, epochs=1, optimizer=optimizer, **options)
    checkpoint.save(path, model, optimizer=optimizer, progress=state.progress)
    saved = checkpoint.load(path)
    assert same(parameters(saved.model), parameters(model))
    momenta, expected = ([buffer.tobytes() for buffer in o.state_dict()["momentum_buffers"]] for o in (saved.optimizer, optimizer))
    assert momenta == expected
    middle = parameters(model)
    went_on = nbcnn.fit(model, dataset, epochs=2, optimizer=optimizer, progress=state.progress, **options)
    assert saved.model.to(back).device == back
    crossed = nbcnn.fit(saved.model, dataset, epochs=2, optimizer=saved.optimizer, progress=saved.progress, **options)
    losses = [s.history[-1]["train_loss"] for s in (went_on, crossed)]
    # Rounding may turn the winner of a window, which moves what is learned by far more than a last digit.
    assert abs(losses[1] / losses[0] - 1) < 1e-4
    ends = [parameters(m) for m in (model, saved.model)]
    moved = [np.concatenate([(end[name] - middle[name]).ravel() for name in middle]) for end in ends]
    assert np.linalg.norm(moved[1] - moved[0]) < 0.01 * np.linalg.norm(moved[0])


def lamps(count, seed):
    """Dark and bright pictures."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 128, (count, 1, 4, 4)) + 127 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels, ["dark", "bright"], "lamps")


def test_learns_what_the_cpu_learns(sizes):
    """Ten epochs of the built-in pictures with the default recipe: within a point of the CPU's accuracy."""
    small = sizes.batch < 64
    train, test = (lamps(12, 0), lamps(6, 1)) if small else datasets.shapes()
    total = sizes.epochs * -(-len(train) // sizes.batch)
    accuracies = []
    for device in ("cpu", "cuda"):
        channels = train.images.shape[1]
        model = sizes.make(mean=[0.5] * channels, std=[0.29] * channels).to(device)
        optimizer = nbcnn.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
        state = nbcnn.fit(model, train, test, epochs=sizes.epochs, batch_size=sizes.batch, optimizer=optimizer,
                          schedule=optim.one_cycle(0.02 * (5 if small else 1), total), augment=not small)
        accuracies.append(state.history[-1]["test_accuracy"])
    assert min(accuracies) > 0.95 and abs(accuracies[0] - accuracies[1]) <= 0.01, accuracies


def test_nothing_is_updated_after_a_loss_that_is_not_finite(sizes, pictures, monkeypatch):
    """The sixth step is far too wide: the seventh loss is not finite; parameters and momentum stay those of its forward pass."""
    monkeypatch.setattr(training, "GRAPH_STEPS", sizes.graph_steps)
    dataset, raised = pictures(10 * sizes.batch), {}

    def schedule(step):
        return 1e30 if step == 5 else 0.01

    for device in ("cpu", "cuda"):
        model = sizes.make().to(device)
        optimizer = nbcnn.SGD(model.parameters(), lr=0.01, momentum=0.5)
        with pytest.raises(nbcnn.NonFiniteLoss) as error:
            nbcnn.fit(model, dataset, epochs=2, batch_size=sizes.batch, optimizer=optimizer, schedule=schedule, shuffle=False)
        raised[device] = error.value
    assert (raised["cuda"].epoch, raised["cuda"].step) == (raised["cpu"].epoch, raised["cpu"].step) == (1, 7)
    assert raised["cuda"].layer == raised["cpu"].layer and not np.isfinite(raised["cuda"].loss)
    until = sizes.make().to("cuda")
    steps = device_steps(until, dataset, sizes.batch, schedule, shuffle=False)
    steps.begin(0)
    steps.start(6)
    assert same(parameters(until), parameters(model)) and max(np.abs(p).max() for p in parameters(until).values()) > 1e20
    buffers, expected = ([b.tobytes() for b in o.state_dict()["momentum_buffers"]] for o in (optimizer, steps.optimizer))
    assert buffers == expected


def test_predictions(sizes, pictures):
    """Those of a model on the GPU are the CPU's but for rounding, in batches of any size."""
    images, model = pictures(2 * sizes.batch + 1).images, sizes.make()
    expected = model.predict(images)
    model.to("cuda")
    got = model.predict(images, batch_size=sizes.batch)
    assert isinstance(got, np.ndarray) and got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    assert got.tobytes() == model.predict(images).tobytes()


def test_command_line(tmp_path, real):
    """An epoch on the GPU, then one on the CPU that goes on from its checkpoint."""
    def train(*arguments):
        done = subprocess.run([sys.executable, "-m", "nbcnn.train", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run = tmp_path / "run"
    output = train("--device", "cuda", "--dataset", "shapes", "--epochs", "1", "--schedule", "constant", "--out", str(run))
    assert "device   cuda: " in output
    train("--device", "cpu", "--resume", str(run / "last.safetensors"), "--epochs", "2")
    rows = list(csv.DictReader(open(run / "metrics.csv")))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    # Guessing is right for a tenth, at a loss of ln 10 = 2.303; the second epoch improves on the first.
    assert float(rows[0]["train_loss"]) < 2.2 and float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
