"""What is written for TensorBoard: each number against NumPy's, and what TensorBoard and a browser make of it."""
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import nbcnn
from nbcnn import tensorboard
from nbcnn.datasets import Dataset
from nbcnn.fit import fit

import chromium


class Recorder:
    """A SummaryWriter that keeps what it is given, by tag and step."""

    def __init__(self):
        self.scalars, self.histograms, self.images, self.graphs = {}, {}, {}, []
        self.file_writer = SimpleNamespace(add_onnx_graph=self.graphs.append)

    def add_scalar(self, tag, value, step=None):
        self.scalars[tag, step] = value

    def add_histogram_raw(self, tag, *numbers):
        *self.histograms[tag, numbers[-1]], _ = numbers

    def add_image(self, tag, image, step=None):
        assert image.dtype == np.uint8 and len(image) in (1, 3)
        self.images[tag, step] = image


def small_model(channels=1):
    return nbcnn.Sequential([("conv1", nbcnn.Conv2d(channels, 4, 3, padding=1)), ("relu1", nbcnn.ReLU()),
                             ("maxpool1", nbcnn.MaxPool2d(2)), ("flatten", nbcnn.Flatten()), ("linear1", nbcnn.Linear(36, 3))],
                            input_shape=(channels, 6, 6))


def noise(channels=1, count=10):
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (count, channels, 6, 6), np.uint8), rng.integers(0, 3, count), ["a", "b", "c"], "noise")


@pytest.fixture
def graph():
    """Where one of both packages is installed that define a graph."""
    try:
        return tensorboard._new_graph()
    except ImportError:
        pytest.skip("neither tensorboardX nor tensorboard is installed")


def test_fit_writes_every_epoch(graph):
    model, writer, seen = small_model(), Recorder(), []

    def on_epoch(state):
        epoch = state.history[-1]["epoch"]      # it is written before
        assert writer.scalars["loss/train", epoch] == state.history[-1]["train_loss"]
        seen.append({name: (p.numpy(), p.grad.copy()) for name, p in model.named_parameters()})
    state = fit(model, noise(), noise(count=5), epochs=2, batch_size=4, verbose=0, writer=writer, on_epoch=on_epoch)
    for metrics, parameters in zip(state.history, seen, strict=True):
        step = metrics["epoch"]
        for tag, name in (("loss/test", "test_loss"), ("accuracy/test", "test_accuracy"), ("lr", "lr"), ("seconds", "seconds"),
                          ("images_per_second", "images_per_second")):
            assert writer.scalars[tag, step] == metrics[name]
        for name, both in parameters.items():
            for kind, values in zip(("parameters", "gradients"), both, strict=True):
                low, high, count, total, squares, limits, counts = writer.histograms[f"{kind}/{name}", step]
                assert (low, high, count, sum(counts)) == (values.min(), values.max(), values.size, values.size)
                assert (total, squares) == pytest.approx((values.sum(dtype=float), np.square(values, dtype=float).sum()))
                assert limits[-1] == pytest.approx(high) and len(limits) == len(counts) == 64
                # Up to the limits themselves, which are rounded: so many values lie below each.
                below = [(values < limit).sum() for limit in limits]
                assert np.abs(np.cumsum(counts) - below).max() <= 1
        for layer in ("conv1", "linear1"):
            whole = np.concatenate([parameters[f"{layer}.{part}"][1].reshape(-1) for part in ("weight", "bias")])
            assert writer.scalars[f"gradient_norm/{layer}", step] == pytest.approx(np.linalg.norm(whole.astype(float)))
    assert {tag for tag, _ in writer.images} == {"images", "filters/conv1", *(f"feature_maps/{name}" for name in model.layers)}
    assert len(writer.scalars) == 2 * 8 and len(writer.histograms) == 2 * 8 and len(writer.images) == 2 * 6 + 1
    assert len(writer.graphs) == 1


def test_a_writer_changes_no_bit(graph):
    plain, written = small_model(), small_model()
    fit(plain, noise(), epochs=2, batch_size=4, verbose=0)
    fit(written, noise(), epochs=2, batch_size=4, verbose=0, writer=Recorder())
    assert (plain.vector.data == written.vector.data).all()


def test_metrics_of_a_file():
    """Rows of a metrics.csv are text, and may have gaps."""
    writer = Recorder()
    tensorboard.add_metrics(writer, {"epoch": "3", "lr": "0.5", "train_loss": "1.25", "test_loss": "", "test_accuracy": None})
    assert writer.scalars == {("lr", 3): 0.5, ("loss/train", 3): 1.25}


def test_histograms_of_one_number_and_of_none_finite():
    model, writer = small_model(), Recorder()
    model.conv1.bias.set(np.full(4, 0.25))
    tensorboard.add_histograms(writer, model)
    low, high, count, total, squares, limits, counts = writer.histograms["parameters/conv1.bias", None]
    assert (low, high, count, total, squares) == (0.25, 0.25, 4, 1.0, 0.25)
    assert counts[32] == 4 and limits[-1] == 0.75       # in the middle of a range of one
    model.linear1.bias.data[1] = np.nan
    with pytest.raises(ValueError, match=r"^parameters/linear1.bias: expected finite numbers, got NaN or infinity$"):
        tensorboard.add_histograms(writer, model)
    with pytest.raises(ValueError, match=r"^linear1: expected finite numbers"):
        tensorboard.add_feature_maps(writer, model, noise().images[0])
    assert not any(tag.startswith("gradients") for tag, _ in writer.histograms)     # there are none yet


def test_filters():
    writer = Recorder()
    for channels in (3, 2):
        model = small_model(channels)
        weight = model.conv1.weight.numpy()
        tensorboard.add_filters(writer, model, "conv1", channels)
        shade = np.round((weight - weight.min()) / (weight.max() - weight.min()) * 255)
        image = writer.images["filters/conv1", channels].astype(int)
        # Three channels: 2x2 coloured filters. Two: a row for each of the four filters. Both with a pixel between them.
        assert image.shape == ((3, 8, 8) if channels == 3 else (1, 16, 8))
        for k in range(4):
            for c in range(channels):
                i, j = divmod(k, 2) if channels == 3 else (k, c)
                part = image[c if channels == 3 else 0, 4 * i:4 * i + 3, 4 * j:4 * j + 3]
                assert np.abs(part - shade[k, c]).max() <= 1 and (image[:, 4 * i + 3] == 0).all()
    with pytest.raises(ValueError, match=r"^layer: expected one of 'conv1', got 'linear1'$"):
        tensorboard.add_filters(writer, model, "linear1")


def test_feature_maps_are_the_layers_outputs():
    model, writer, image = small_model(), Recorder(), noise().images[0]
    tensorboard.add_feature_maps(writer, model, image, 7)
    step = nbcnn.BackpropScheduler(model, None, fuse=False)
    step.predict(image[None])
    for name, side in (("relu1", 6), ("maxpool1", 3)):
        maps = step.outputs[name][0]
        shown = writer.images[f"feature_maps/{name}", 7][0].reshape(2, side + 1, 2, side + 1).swapaxes(1, 2)[..., :side, :side]
        assert np.abs(shown.reshape(maps.shape) - (maps - maps.min()) / np.ptp(maps) * 255).max() <= 1
    assert writer.images["feature_maps/flatten", 7].shape == (1, 6, 6)
    assert writer.images["feature_maps/linear1", 7].reshape(-1).argmax() == step.outputs["linear1"].argmax()
    tensorboard.add_feature_maps(writer, model, image, 8, pixels=80)        # two maps of 6x6, all of 3x3
    assert [writer.images[f"feature_maps/{name}", 8].shape for name in ("conv1", "maxpool1")] == [(1, 7, 14), (1, 8, 8)]


def test_images_are_shown_as_they_are():
    writer, data = Recorder(), noise(3)
    tensorboard.add_images(writer, data, count=4)
    image = writer.images["images", 0]
    assert image.shape == (3, 14, 14)
    assert (image[:, :6, 7:13] == data.images[1]).all() and (image[:, 7:13, :6] == data.images[2]).all()


def test_the_graph(graph):
    writer = Recorder()
    tensorboard.add_graph(writer, small_model())
    nodes = {node.name: node for node in writer.graphs[0].node}
    assert {name: (node.op, list(node.input)) for name, node in nodes.items()} == {
        "input.images": ("Input", []), "conv1/weight": ("Parameter", []), "conv1/bias": ("Parameter", []),
        "conv1/Conv2d": ("Conv2d", ["input.images", "conv1/weight", "conv1/bias"]), "relu1": ("ReLU", ["conv1/Conv2d"]),
        "maxpool1": ("MaxPool2d", ["relu1"]), "flatten": ("Flatten", ["maxpool1"]), "linear1/weight": ("Parameter", []),
        "linear1/bias": ("Parameter", []), "linear1/Linear": ("Linear", ["flatten", "linear1/weight", "linear1/bias"])}

    def shape(name):
        return [dim.size for dim in nodes[name].attr["_output_shapes"].list.shape[0].dim]
    assert shape("conv1/Conv2d") == [-1, 4, 6, 6] and shape("maxpool1") == [-1, 4, 3, 3] and shape("linear1/weight") == [3, 36]
    assert nodes["conv1/Conv2d"].attr["kernel_size"].s == b"(3, 3)" and nodes["conv1/Conv2d"].attr["parameters"].s == b"40"


def test_arguments_of_the_wrong_kind():
    for function in (tensorboard.add_gradient_norms, tensorboard.add_histograms, tensorboard.add_graph):
        with pytest.raises(TypeError, match=r"^writer: expected a SummaryWriter of tensorboardX or .*, got str$"):
            function("runs", small_model())
        with pytest.raises(TypeError, match=r"^model: expected a nbcnn.Sequential, got int$"):
            function(Recorder(), 3)
    with pytest.raises(TypeError, match=r"^writer: expected a SummaryWriter"):
        fit(small_model(), noise(), verbose=0, writer="runs")
    writer = Recorder()
    writer.file_writer = None       # as close() leaves it
    with pytest.raises(ValueError, match=r"^writer: expected an open SummaryWriter, got a closed one$"):
        tensorboard.add_graph(writer, small_model())


# ---- with TensorBoard ----

@pytest.mark.parametrize("library", ["tensorboardX", pytest.param("torch.utils.tensorboard", marks=pytest.mark.torch)])
def test_tensorboard_reads_what_fit_writes(library, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)
    library = pytest.importorskip(library, exc_type=ImportError)
    with library.SummaryWriter(str(tmp_path)) as writer:
        state = fit(small_model(), noise(), noise(), epochs=3, batch_size=4, verbose=0, writer=writer)
    events = accumulator.EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/test")] == [
        (row["epoch"], np.float32(row["test_loss"])) for row in state.history]
    assert len(events.Tags()["scalars"]) == len(events.Tags()["histograms"]) == 8
    assert events.Histograms("parameters/conv1.weight")[0].histogram_value.num == 36
    assert [e.step for e in events.Images("filters/conv1")] == [1, 2, 3]
    assert (events.Images("images")[0].width, events.Images("images")[0].height) == (28, 21)       # ten images, four in a row
    assert [node.name for node in events.Graph().node][-1] == "linear1/Linear"


@pytest.mark.skipif(not chromium.FOUND, reason="Chromium is not installed")
def test_a_browser_shows_curves_images_and_the_graph(tmp_path):
    library = pytest.importorskip("tensorboardX")
    pytest.importorskip("tensorboard")
    with library.SummaryWriter(str(tmp_path / "run")) as writer:
        fit(small_model(), noise(), noise(), epochs=3, batch_size=4, verbose=0, writer=writer)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "run"), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, chromium.page(tmp_path / "profile") as page:
        try:
            url = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+?:\d+/", line)))
            page.open(f"{url}?#scalars")
            # A curve of three points, with the accuracy beside it.
            assert page.wait_for("all('path.line').some(e => e.getTotalLength() > 20)")
            page.open(f"{url}?images#images")
            assert page.wait_for("all('img').filter(e => e.naturalWidth > 1).length > 3")
            page.open(f"{url}?graph#graphs")
            nodes = page.wait_for("all('g.node text').map(e => e.textContent).join(' ')")
            assert all(name in nodes for name in ("conv1", "relu1", "maxpool1", "flatten", "linear1")), nodes
            assert "?\u00d74\u00d76\u00d76" in page.wait_for("all('g.edge text').map(e => e.textContent).join(' ')")
        finally:
            server.kill()
