"""The README's Python examples, run as they stand."""
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from nbcnn import datasets, models, train
from nbcnn.datasets import Dataset, choice
from nbcnn.evaluate import __main__ as evaluate

import checks
from cases import Case

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path, monkeypatch):
    """Each block is a whole program; it asserts what it claims."""
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {"__name__": "readme"})


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


def test_the_layer_of_ones_own(tmp_path, monkeypatch, capsys):
    """It passes what nbcnn's layers pass, trains from its file, and comes back as the README says."""
    (text,) = (text for text in SNIPPETS if "class Softplus" in text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("softplus.py").write_text(text)
    model = models.make("softplus.py:make", classes=["a", "b"], seed=3)
    case = Case(type(model.softplus1), {}, (3, 4, 4))
    checks.check_gradients(case)
    checks.check_contract(case, "cpu", np.float32)
    checks.check_training(case, tmp_path / "file")
    few = [Dataset(part.images[:64], part.labels[:64], part.classes, part.name) for part in datasets.shapes()]
    monkeypatch.setattr(choice, "shapes", lambda: few)
    assert train.main(["--model", "softplus.py:make", "--epochs", "1", "--out", "run", "--quiet"]) == 0
    for more, status in ([], 2), (["--model", "softplus.py"], 0):
        assert evaluate.main(["--checkpoint", "run/best.safetensors", *more]) == status
    assert "--model FILE.py" in capsys.readouterr().err


def test_the_places_of_a_layer_are_files():
    """Those that exist whatever the layer's name is."""
    guide = README.read_text(encoding="utf-8").split("## How to add a layer")[1].split("\n## ")[0]
    places = re.findall(r"^\d\. `([\w/<>.]+)`:", guide, re.MULTILINE)
    assert len(places) == 5 + 7 and all((README.parent / place).is_file() for place in places if "<" not in place)
