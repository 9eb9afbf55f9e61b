"""The command `nbcnn data`, and networks for images of one channel from their files to a prediction."""
import csv
import gzip
import hashlib
import io
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from nbcnn import __main__, cli, data, predict, recipes, train
from nbcnn.datasets import DATASETS, Dataset, choice
from nbcnn.datasets import idx as module
from nbcnn.datasets.sources import IDX, SOURCES, File
from nbcnn.evaluate import __main__ as evaluate

from archives import idx
from web import refuse

NET = """
import nbcnn

def make(input_shape, mean, std, classes, seed):
    return nbcnn.Sequential([
        ("conv", nbcnn.Conv2d(1, 4, 5, padding=2)), ("pool", nbcnn.MaxPool2d(4)), ("flatten", nbcnn.Flatten()),
        ("linear", nbcnn.Linear(4 * 7 * 7, len(classes)))], input_shape=input_shape, mean=mean, std=std, classes=classes, seed=seed)
"""


@pytest.fixture
def small(monkeypatch, tmp_path, web):
    """MNIST of 200 and 50 images, in which the digit is the row of a white bar, on the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")        # no message goes on in another line
    monkeypatch.setattr(module, "COUNTS", (200, 50))
    rng, contents = np.random.default_rng(0), []
    for count in (200, 50):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 * labels + 4] = 255
        contents += [gzip.compress(idx(images)), gzip.compress(idx(labels))]
    for name, content in zip(IDX, contents, strict=True):
        web.files[f"/{name}.gz"] = content
    wanted = tuple(File(path[1:], len(content), hashlib.md5(content).hexdigest()) for path, content in web.files.items())
    monkeypatch.setitem(SOURCES, "mnist", SOURCES["mnist"]._replace(places=(web.url,), wanted=wanted))
    return web


def test_get_list_show(small, capsys):
    assert __main__.main(["data", "get", "mnist"]) == 0
    assert capsys.readouterr().out == ("mnist: 200 images to train, 50 to test, in data/MNIST/raw; to train on them: "
                                       "nbcnn train --dataset mnist --data-dir data\n")
    assert data.main(["get", "mnist"]) == 0 and len(small.asked) == 4
    capsys.readouterr()

    assert data.main(["list"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == list(SOURCES)
    assert [line.split()[-1] for line in out.splitlines()[2:6]] == ["no", "no", "yes", "no"]
    assert " 169  no" in out and out.endswith("\nthere: in data; nbcnn data get NAME downloads one\n")
    assert max(map(len, out.splitlines())) <= 80

    assert data.main(["show", "mnist"]) == 0
    out = capsys.readouterr().out
    images, _ = choice.FILES["mnist"][1]("data")
    assert out.startswith("mnist: 200 images to train, 50 to test, of 1 x 28 x 28; from data\n")
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "20", "5"] in rows and ["9", "20", "5"] in rows
    pixels = images.images / 255
    assert ["grey", f"{pixels.mean():.4f}", f"{pixels.std():.4f}"] in rows
    assert "contact sheet" not in out and "of each class: mnist.png" in out and max(map(len, out.splitlines())) <= 80
    with Image.open("mnist.png") as sheet:
        assert sheet.mode == "L"
        check_sheet(np.asarray(sheet)[..., None], images)


def check_sheet(sheet, images):
    """Each row has the first ten images of a class, with their pixels as they are, to the right of its name."""
    size = images.images.shape[2] + data.GAP
    for row in range(len(images.classes)):
        line = sheet[row * size:(row + 1) * size]
        assert (line[:, :data.LABEL] < 100).any()       # the name
        few = images.images[images.labels == row][:10]
        for column in range(10):
            part = line[:-data.GAP, data.LABEL + column * size:][:, :size - data.GAP]
            assert np.array_equal(part, few[column].transpose(1, 2, 0)) if column < len(few) else (part == 255).all()


def test_a_contact_sheet_in_colour():
    rng = np.random.default_rng(0)
    images = Dataset(rng.integers(0, 256, (25, 3, 9, 12), dtype=np.uint8), [0] * 12 + [1] * 3 + [2] * 10,
                     ["a", "b" * 200, "\x1b[31m\u0416"], "mine")
    with Image.open(io.BytesIO(data.contact_sheet(images))) as sheet:
        assert sheet.mode == "RGB" and sheet.size == (data.LABEL + 140, 33)
        pixels = np.asarray(sheet)
    assert np.array_equal(pixels[:9, data.LABEL + 14:data.LABEL + 26], images.images[1].transpose(1, 2, 0))
    assert np.array_equal(pixels[11:20, data.LABEL:data.LABEL + 12], images.images[12].transpose(1, 2, 0))
    assert (pixels[11:20, data.LABEL + 42:] == 255).all()       # the second class has three


def test_show_shapes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    few = [Dataset(rng.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8), [0, 1, 1, 1], ["x", "y"], "shapes") for _ in range(2)]
    monkeypatch.setattr(choice, "shapes", lambda: few)
    assert data.main(["show", "shapes", "--out", "sheet.png"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["x", "1", "1"] in rows and ["y", "3", "3"] in rows and (tmp_path / "sheet.png").exists()
    mean, std = recipes.mean_std(few[0].images)
    assert ["blue", f"{mean[2]:.4f}", f"{std[2]:.4f}"] in rows


def test_show_a_folder_with_a_broken_file(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / split / "cat" / "1.png")
    (tmp_path / "pets" / "train" / "cat" / "2.png").write_bytes(b"no image")
    assert data.main(["show", "folder", "--data-dir", "pets"]) == 2 and "--skip-broken" in capsys.readouterr().err
    assert data.main(["show", "folder", "--data-dir", "pets", "--skip-broken"]) == 0
    assert "1 images to train, 1 to test" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    ([], "the following arguments are required: action"), (["gte", "mnist"], "invalid choice: 'gte'"),
    (["get"], "get: expected one of cifar10, cifar100, mnist, fashion-mnist, got none"),
    (["get", "minst"], "got 'minst'; did you mean mnist?"), (["get", "shapes"], "got 'shapes'"),
    (["show", "auto"], "show: expected one of cifar10, cifar100, mnist, fashion-mnist, shapes, folder, got 'auto'"),
    (["list", "mnist"], "list: expected no NAME, got 'mnist'"), (["get", "mnist", "x"], "unrecognized arguments: x"),
    (["get", "mnist", "--url", "x"], "url: expected an address that begins with http:// or https://, got 'x'"),
    (["show", "mnist"], "data: no MNIST there; looked for"), (["get", "mnist", "--dir", "x"], "did you mean --data-dir?"),
])
def test_errors_are_one_line(small, capsys, argv, message):
    assert data.main(argv) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("nbcnn data: ") and error.count("\n") == 1 and message in error


def test_a_download_that_fails(small, capsys):
    small.plan = [refuse(503)]
    assert data.main(["get", "mnist"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "HTTP 503 Service Unavailable. The same again goes on with what came so far; --url" in error
    assert train.main(["--dataset", "mnist"]) == 2
    assert "data: no MNIST there; looked for train-images" in capsys.readouterr().err
    assert data.main(["get", "mnist", "--url", small.url]) == 0


def test_a_set_that_lost_a_file_is_not_there(small, capsys):
    assert data.main(["get", "mnist"]) == 0
    os.unlink(f"data/MNIST/raw/{IDX[1]}.gz")
    capsys.readouterr()
    assert data.main(["get", "mnist"]) == 2
    assert f"data/MNIST/raw: MNIST lacks {IDX[1]} there; move the folder away, and nbcnn data get" in capsys.readouterr().err


def test_ctrl_c_leaves_no_set(small, signals, capsys):
    def interrupt(handler, content):
        handler.wfile.write(handler.start(content)[:100])
        os.kill(os.getpid(), signal.SIGINT)
        handler.server.ended.wait()
    small.plan = [interrupt]
    assert data.main(["get", "mnist"]) == 130 and capsys.readouterr() == ("", "")
    assert os.listdir("data/MNIST") == [".raw.part"] and choice.FILES["mnist"][0]("data") is None
    assert data.main(["get", "mnist"]) == 0 and os.listdir("data/MNIST") == ["raw"]


@pytest.mark.parametrize("model", ["net.py:make", "cifar10_quick"])
def test_one_channel_from_files_to_a_prediction(small, tmp_path, capsys, model):
    (tmp_path / "net.py").write_text(NET)
    assert data.main(["get", "mnist"]) == 0
    assert train.main(["--dataset", "mnist", "--model", model, "--epochs", "4", "--batch-size", "20", "--out", "run"]) == 0
    with open("run/metrics.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["test_accuracy"]) > 0.9
    saved = cli.load_checkpoint("run/best.safetensors")
    assert saved.options["augment"] is False and saved.model.mean == [0.1307] and saved.model.classes[7] == "7"
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", "run/best.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dataset"] == "mnist" and found["accuracy"] > 0.9
    _, test = choice.FILES["mnist"][1]("data")
    Image.fromarray(test.images[3, 0]).save("three.png")
    Image.fromarray(test.images[3].repeat(3, 0).transpose(1, 2, 0)).resize((56, 56)).save("large.png")      # in colour
    assert predict.main(["three.png", "large.png", "--top", "1", "--checkpoint", "run/best.safetensors"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["three.png", "3"], ["large.png", "3"]]


def test_what_training_knows_of_each_set():
    assert set(recipes.EPOCHS) == set(DATASETS) and set(SOURCES) <= set(recipes.MEAN_STD)
    assert recipes.new_options({"dataset": "mnist"})["augment"] is False
    assert recipes.new_options({"dataset": "mnist", "augment": True})["augment"] is True
    assert recipes.new_options({"dataset": "fashion-mnist"})["augment"] is True
