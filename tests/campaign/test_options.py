"""A run's checkpoint whose options or progress somebody has changed, given to --resume: it goes on, or says why not in one line."""
import itertools

import numpy as np
import pytest

import nbcnn
from nbcnn import checkpoint, recipes, train
from nbcnn.datasets import Dataset, choice

VALUES = ["64", "0.1", True, None, [], {}, -1, 0, 1e400, float("nan"), 2**70, "x" * 9, "--help", "a\nb", 3.0, "1e3", " 5 ",
          "\u096b", "\0"]
OPTIONS = list(itertools.product({**recipes.OTHERS, **recipes.RECIPES["default"]}, VALUES))
PROGRESS = [
    {"epoch": 5, "best_accuracy": None, "best_epoch": 0}, {"epoch": 10**30}, {"step": 9}, {"step": 10, "samples": 0},
    {"loss_sum": "x", "step": 1, "samples": 8}, {"loss_sum": None, "step": 1, "samples": 8}, {"samples": 0, "step": 9},
    {"loss_sum": float("nan"), "step": 1, "samples": 8}, {"loss_sum": float("inf"), "step": 1, "samples": 8},
    {"best_accuracy": True, "best_epoch": 1}, {"best_epoch": 10**40, "best_accuracy": 0.5}, {"epoch": 2**31},
    {"best_accuracy": None, "best_epoch": 0},
    {"step": 3, "samples": 10**400, "loss_sum": 1.0}, {"step": 1, "samples": 1, "loss_sum": -(10**400)},
]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Few images, in a folder of the test's own; nothing is trained to have its kernels compiled."""
    rng = np.random.default_rng(0)
    images = Dataset(rng.integers(0, 256, (16, 3, 8, 8), np.uint8), np.arange(16) % 2, ["dark", "light"], "shapes")
    monkeypatch.setattr(choice, "shapes", lambda: (images, images))
    monkeypatch.setattr(train, "fit", lambda *rest, **options: nbcnn.fit(*rest, **options) if "on_step" in options else None)
    monkeypatch.chdir(tmp_path)


def resumed(capsys, options=None, progress=None):
    """What becomes of a run of five epochs, of which four are done, that goes on with other options or progress."""
    model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(192, 2)], input_shape=(3, 8, 8), classes=["dark", "light"])
    done = nbcnn.Progress(4, 0, 0.0, 0, 0.5, 1)
    done.__dict__.update(progress or {})        # unchecked
    checkpoint.save("file", model, optimizer=nbcnn.SGD(model.parameters(), lr=0.1), progress=done, options={
        **recipes.OTHERS, **recipes.RECIPES["default"], "epochs": 5, "dataset": "shapes", "batch_size": 8, **(options or {})})
    status = train.main(["--resume", "file", "--out", "out", "--quiet"])
    out, err = capsys.readouterr()
    if status == 2:
        assert not out and err.startswith("nbcnn train: ") and err.count("\n") == 1 and len(err) < 500, err
    else:
        assert status == 0 and (not err or options == {"split": "test"}), (status, err)
    return status


def test_options(full, tmp_path, monkeypatch, capsys):
    found = []
    for k, (name, value) in enumerate(OPTIONS[::1 if full else 7]):
        (tmp_path / str(k)).mkdir()
        monkeypatch.chdir(tmp_path / str(k))
        found.append(resumed(capsys, {name: value}))
    assert set(found) == {0, 2}


@pytest.mark.parametrize("progress", PROGRESS, ids=range(len(PROGRESS)))
def test_progress(capsys, progress):
    assert resumed(capsys, progress=progress) == (0 if progress == {"best_accuracy": True, "best_epoch": 1} else 2)
