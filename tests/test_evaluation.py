"""How good a network is: the figures against their definitions, and the command that prints them."""
import json
import math

import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint
from nbcnn.datasets import Dataset, choice
from nbcnn.evaluate import __main__ as evaluate
from nbcnn.evaluation import Evaluation

CLASSES = ["ant", "bee", "cow"]


def network(classes=CLASSES, **options):
    """Takes the byte of an image's three pixels as the logits, so that a test says what comes out."""
    model = nbcnn.Sequential([("flatten", nbcnn.Flatten()), ("linear", nbcnn.Linear(3, 3, bias=False))], input_shape=(1, 1, 3),
                             classes=classes, **options)
    model.linear.weight.set(np.eye(3))
    return model


def dataset(pairs, name="folder"):
    """Images of the class on the left that `network` takes for that on the right."""
    images = np.zeros((len(pairs), 1, 1, 3), np.uint8)
    images[np.arange(len(pairs)), 0, 0, [taken for _, taken in pairs]] = 255
    return Dataset(images, np.array([label for label, _ in pairs]), CLASSES, name)


PAIRS = [(0, 0)] * 3 + [(0, 1)] + [(1, 0)] * 2 + [(1, 1)] * 4
# From the definitions: 4 ants, of which 3 found, 5 taken for ants; 6 bees, of which 4 found, 5 taken for bees; no cow. 10 in all.
CONFUSION = [[3, 1, 0], [2, 4, 0], [0, 0, 0]]


def test_figures_by_their_definitions():
    found = network().evaluate(dataset(PAIRS))
    assert found.confusion.tolist() == CONFUSION and found.confusion.dtype == np.int64 and found.classes == CLASSES
    assert found.accuracy == 7 / 10
    assert found.class_accuracy.tolist() == pytest.approx([7 / 10, 7 / 10, 1])
    assert found.precision.tolist() == pytest.approx([3 / 5, 4 / 5, math.nan], nan_ok=True)
    assert found.recall.tolist() == pytest.approx([3 / 4, 4 / 6, math.nan], nan_ok=True)
    # An image found has the loss -1 + ln(e + 2), one that is not ln(e + 2).
    assert found.loss == pytest.approx(math.log(math.e + 2) - 0.7, rel=1e-6)
    assert json.loads(json.dumps(found.as_dict())) == {
        "pictures": 10, "loss": found.loss, "accuracy": 0.7, "confusion": CONFUSION, "classes": [
            {"class": "ant", "pictures": 4, "accuracy": pytest.approx(0.7), "precision": 0.6, "recall": 0.75},
            {"class": "bee", "pictures": 6, "accuracy": pytest.approx(0.7), "precision": 0.8, "recall": 4 / 6},
            {"class": "cow", "pictures": 0, "accuracy": 1, "precision": None, "recall": None}]}
    assert str(found).splitlines()[2:7] == [
        "class  images  accuracy  precision  recall", "------------------------------------------",
        "ant         4    70.00%     60.00%  75.00%", "bee         6    70.00%     80.00%  66.67%",
        "cow         0   100.00%          -       -"]
    assert str(found).splitlines()[-3:] == ["ant               3    1    0", "bee               2    4    0",
                                            "cow               0    0    0"]


def test_a_loss_that_is_not_finite():
    found = Evaluation(math.inf, np.array(CONFUSION), CLASSES).as_dict()
    assert found["loss"] is None


def test_any_loss_batch_size_and_a_callback():
    done = []
    mse = nbcnn.BackpropScheduler(network(), nbcnn.MSELoss())
    found = nbcnn.evaluation.measure(mse, dataset(PAIRS), 4, done.append)
    assert found.loss == pytest.approx(3 * 2 / 3 / 10) and done == [4, 8, 10]     # two of three outputs are wrong by 1 in 3 of 10
    assert network().evaluate(dataset(PAIRS), nbcnn.MSELoss(), batch_size=3).confusion.tolist() == CONFUSION


def test_function_and_method_are_one_and_no_command_takes_its_place():
    import nbcnn.evaluate.__main__
    found = nbcnn.evaluate(network(), dataset(PAIRS), nbcnn.MSELoss(), batch_size=3)
    assert str(found) == str(network().evaluate(dataset(PAIRS), nbcnn.MSELoss(), 3))
    with pytest.raises(TypeError, match=r"^model: expected a nbcnn\.Sequential, got Dataset$"):
        nbcnn.evaluate(dataset(PAIRS), network())


def test_more_outputs_than_classes_have_numbers():
    few = Dataset(dataset(PAIRS).images, dataset(PAIRS).labels, CLASSES[:2], "few")
    assert network(classes=None).evaluate(few).classes == ["ant", "bee", "2"]


@pytest.mark.parametrize("change, message", [
    (lambda d: Dataset(d.images, d.labels, ["bee", "ant", "cow"], "other"),
     "dataset: expected the network's classes, ant, bee, cow, got bee, ant, cow"),
    (lambda d: Dataset(d.images[:0], d.labels[:0], CLASSES, "none"), "at least one image, got none"),
    (lambda d: Dataset(d.images.repeat(2, 2), d.labels, CLASSES, "high"), r"linear: expected vectors \(N, 3\), got \(N, 6\)"),
])
def test_data_that_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        network().evaluate(change(dataset(PAIRS)))


def test_more_classes_than_outputs():
    more = Dataset(dataset(PAIRS).images, dataset(PAIRS).labels, [*CLASSES, "dog"], "more")
    with pytest.raises(ValueError, match=r"as many classes as the network has outputs, \(3,\), got 4"):
        network(classes=None).evaluate(more)


@pytest.mark.parametrize("data", [(np.zeros((1, 1, 1, 3), np.uint8), [0]), np.zeros((1, 1, 1, 3), np.uint8), None])
def test_what_is_no_data_set(data):
    with pytest.raises(TypeError, match=r"dataset: expected a nbcnn\.datasets\.Dataset, got (tuple|ndarray|NoneType)"):
        network().evaluate(data)


def test_what_is_no_loss_and_no_scheduler():
    with pytest.raises(TypeError, match=r"^loss: expected a loss of nbcnn\.losses, got int; there are "):
        network().evaluate(dataset(PAIRS), loss=3)
    with pytest.raises(TypeError, match=r"^scheduler: expected a BackpropScheduler, got int$"):
        nbcnn.evaluation.measure(3, dataset(PAIRS))
    with pytest.raises(TypeError, match=r"^on_batch: expected a function, got 3$"):
        nbcnn.evaluation.measure(nbcnn.BackpropScheduler(network(), nbcnn.CrossEntropyLoss()), dataset(PAIRS), on_batch=3)


def test_other_numbers_of_views():
    for views, error, got in ((3, ValueError, "3"), (-1, ValueError, "-1"), ("2", TypeError, "'2'"), (True, TypeError, "True")):
        with pytest.raises(error, match=f"^views: expected 1, 2 or 6, got {got}$"):
            nbcnn.evaluate(network(), dataset(PAIRS), views=views)
    with pytest.raises(ValueError, match=r"^views: expected 1 or 2 for images of 1 x 3 pixels, got 6$"):
        nbcnn.evaluate(network(), dataset(PAIRS), views=6)


def test_a_loss_that_is_no_mean():
    with pytest.raises(ValueError, match="loss: expected reduction 'mean', got 'sum'"):
        network().evaluate(dataset(PAIRS), nbcnn.CrossEntropyLoss(reduction="sum"))


# ---- the command ----

@pytest.fixture
def small(monkeypatch, tmp_path):
    """The built-in images are those above; the checkpoint says how the network was trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choice, "shapes", lambda: (dataset(PAIRS[:2], "shapes"), dataset(PAIRS, "shapes")))
    checkpoint.save("net.safetensors", network(), options={"dataset": "shapes", "loss": "cross_entropy", "label_smoothing": 0.0})
    return tmp_path


def run(*argv):
    return evaluate.main(["--checkpoint", "net.safetensors", *argv])


def test_it_prints_what_evaluate_finds(small, capsys):
    assert run() == 0
    out, err = capsys.readouterr()
    assert out == f"net.safetensors on the test images of shapes, built in\n\n{network().evaluate(dataset(PAIRS))}\n"
    assert err == ""
    assert run("--json", "--split", "train", "--batch-size", "1", "--threads", "1") == 0
    out = json.loads(capsys.readouterr().out)
    assert out["pictures"] == 2 and (out["checkpoint"], out["dataset"], out["split"]) == ("net.safetensors", "shapes", "train")


def test_views_of_each_image(small, capsys):
    """An ant's mirror image is a cow's: half of each."""
    assert run("--views", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == nbcnn.evaluate(network(), dataset(PAIRS), views=2).loss != network().evaluate(dataset(PAIRS)).loss


def test_it_measures_the_loss_of_the_training(small, capsys):
    for loss, smoothing in (("mse", 0.0), ("cross_entropy", 0.1), ("bce", 0.0), ("l1", 0.0)):
        checkpoint.save("net.safetensors", network(), options={"dataset": "shapes", "loss": loss, "label_smoothing": smoothing})
        expected = {"mse": nbcnn.MSELoss(), "l1": nbcnn.L1Loss(), "bce": nbcnn.BCEWithLogitsLoss(),
                    "cross_entropy": nbcnn.CrossEntropyLoss(label_smoothing=smoothing)}[loss]
        assert run("--json") == 0
        assert json.loads(capsys.readouterr().out)["loss"] == network().evaluate(dataset(PAIRS), expected).loss


def test_where_the_images_are_from(small, monkeypatch, capsys):
    """Those of the training by default, from where they were; any others when asked for."""
    places = []

    def folder(path, shape, classes, max_pixels, skip_broken):
        places.append((str(path), tuple(shape), classes, max_pixels))
        return dataset(PAIRS)
    monkeypatch.setattr(choice, "folder", folder)
    checkpoint.save("net.safetensors", network(), options={"dataset": "folder", "data_dir": "pets"})
    assert run() == 0 and run("--data-dir", "other", "--max-pixels", "9") == 0
    assert "net.safetensors on the images from other\n" in capsys.readouterr().out
    assert places == [("pets", (1, 1, 3), CLASSES, None), ("other", (1, 1, 3), CLASSES, 9)]
    network().save("net.safetensors")       # of a library user: says nothing of images
    assert run() == 0
    assert "built in, as there is no CIFAR-10 in data" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("argv, message", [
    (["--dataset", "cifar10"], "data: no CIFAR-10 there"),
    (["--dataset", "folder", "--data-dir", "nowhere"], "nowhere: No such file"),
    (["--data-dir", "elsewhere"], "--data-dir elsewhere: the shapes are built in; give --dataset cifar10 or --dataset folder"),
    (["--batch-size", "0"], "--batch-size"), (["--views", "3"], "--views: invalid choice: 3 (choose from 1, 2, 6)"),
    (["--views", "6"], "views: expected 1 or 2 for images of 1 x 3 pixels, got 6"),
    (["--dataset", "kmnist"], "choice: 'kmnist'"), (["--top", "3"], "unrecognized"),
    (["--checkpoint", "nowhere"], "nowhere: No such file"), (["--checkpoint", "text"], "text: not a safetensors file"),
    (["--checkpoint", "other.safetensors"],
     "dataset: expected the network's classes, x, y, z, got ant, bee, cow"),
    (["--checkpoint", "huber.safetensors"], "huber.safetensors: written with an option that does not exist, loss 'huber'"),
    (["--checkpoint", "place.safetensors"], "place.safetensors: written with an option that does not exist, data_dir 3"),
    (["--checkpoint", "empty.safetensors"], "empty.safetensors: a safetensors file, but not a checkpoint of nbcnn"),
])
def test_errors_are_one_line(small, capsys, argv, message):
    from safetensors.numpy import save_file
    (small / "text").write_text("no checkpoint")
    network(["x", "y", "z"]).save("other.safetensors")
    save_file({"a": np.zeros(3)}, "empty.safetensors")
    checkpoint.save("huber.safetensors", network(), options={"loss": "huber"})
    checkpoint.save("place.safetensors", network(), options={"data_dir": 3})
    before = sorted(small.iterdir())
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("nbcnn evaluate: ") and err.count("\n") == 1
    assert sorted(small.iterdir()) == before


def test_memory_has_a_limit_that_is_checked_before_images_are_read(small, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.datasets, "choose", None)
    nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(3 * 32 * 32, 3)], input_shape=(3, 32, 32)).save("net.safetensors")
    assert run() == 2
    assert "--dataset: net.safetensors does not say what it was trained with" in capsys.readouterr().err
    assert run("--max-memory", "20000", "--dataset", "shapes") == 2
    err = capsys.readouterr().err
    assert "nbcnn evaluate: 0: expected buffers of at most 20,000 bytes" in err and err.count("\n") == 1


def test_without_a_checkpoint(capsys):
    assert evaluate.main([]) == 2
    assert "expected a file that training or nbcnn.save wrote, a run's folder or latest, got none" in capsys.readouterr().err


def test_a_confusion_matrix_is_bounded_and_printed_only_where_it_is_small():
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(1, 101)], input_shape=(1, 1, 1))
    data = Dataset(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3), list("abc"), "x")
    shown = str(model.evaluate(data))
    assert "is not shown" in shown and "is \\ taken for" not in shown and len(shown.splitlines()) < 120
    nbcnn.set_max_memory(100_000)       # 24 bytes for each pair of classes are more
    try:
        with pytest.raises(MemoryError, match="confusion matrix of at most 100,000 bytes, got one of 101 x 101"):
            model.evaluate(data)
    finally:
        nbcnn.set_max_memory(None)
