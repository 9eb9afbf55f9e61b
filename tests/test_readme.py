"""The README's Python examples, run as they stand."""
import doctest
import importlib
import re
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import test_activations
import test_docs

import nbcnn
from nbcnn import datasets, kernels, models, train
from nbcnn.datasets import Dataset, choice
from nbcnn.evaluate import __main__ as evaluate

import activations
import checks
from cases import Case

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
GUIDE = TEXT.split("## How to add a layer")[1].split("\n## ")[0]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path, monkeypatch):
    """Each block is a whole program; it asserts what it claims."""
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec", optimize=0), {"__name__": "readme"})


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


def test_the_layer_of_ones_own(tmp_path, monkeypatch, capsys):
    """It passes what nbcnn's layers pass, trains from its file, and comes back as the README says."""
    (text,) = (text for text in SNIPPETS if "class SiLU" in text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("silu.py").write_text(text)
    model = models.make("silu.py:make", classes=["a", "b"], seed=3)
    case = Case(type(model.silu1), {}, (3, 4, 4))
    shown = str(nbcnn.check_gradients(case.make(), case.shape))
    assert re.sub(r"\S+  ok$", "", shown) in GUIDE
    checks.check_gradients(case)
    checks.check_contract(case, "cpu", np.float32)
    checks.check_training(case, tmp_path / "file")
    few = [Dataset(part.images[:64], part.labels[:64], part.classes, part.name) for part in datasets.shapes()]
    monkeypatch.setattr(choice, "shapes", lambda: few)
    assert train.main(["--model", "silu.py:make", "--epochs", "1", "--out", "run", "--quiet"]) == 0
    for more, status in ([], 2), (["--model", "silu.py"], 0):
        assert evaluate.main(["--checkpoint", "run/best.safetensors", *more]) == status
    assert "--model FILE.py" in capsys.readouterr().err


def test_the_places_of_a_layer_are_files():
    """Those that exist whatever the layer's name is."""
    places = re.findall(r"^\d\. `([\w/<>.]+)`:", GUIDE, re.MULTILINE)
    assert len(places) == 5 + 7 and all((README.parent / place).is_file() for place in places if "<" not in place)


def test_the_five_places_of_a_function_of_each_element(tmp_path, monkeypatch):
    """What the README writes into five files is written into their modules, and passes what is there."""
    places = re.findall(r"^\d\. `([\w/.]+)`:.*?^   ```py\n(.*?)^   ```$", GUIDE, re.DOTALL | re.MULTILINE)
    assert [place.split("/")[-2:] for place, _ in places] == [
        ["cpu", "activations.py"], ["cuda", "activations.py"], ["kernels", "activations.py"], ["nbcnn", "layers.py"],
        ["tests", "activations.py"]]
    for place, text in places:
        if "cuda" in place and not find_spec("numba_cuda"):
            continue
        module = importlib.import_module(place.removeprefix("tests/").removesuffix(".py").replace("/", "."))
        file = tmp_path / place.replace("/", "-")
        file.write_text(textwrap.dedent(text))
        for name in re.findall(r"^(?:def|class) (\w+)", file.read_text(), re.MULTILINE):
            monkeypatch.setattr(module, name, None, raising=False)      # forgotten after this test
        exec(compile(file.read_text(), file, "exec"), vars(module))
    for name in ("silu_forward", "silu_backward"):
        monkeypatch.setattr(kernels, name, getattr(kernels.activations, name), raising=False)
        test_docs.test_complete(name)
        runner = doctest.DocTestRunner()
        (example,) = doctest.DocTestFinder().find(getattr(kernels, name), name, globs=vars(kernels.activations))
        assert runner.run(example).failed == 0 and runner.tries > 1
    monkeypatch.setattr(nbcnn, "SiLU", nbcnn.layers.SiLU, raising=False)
    case = eval(re.search(r"`(Case\(.*\))`", GUIDE)[1], vars(activations))
    for dtype in (np.float32, np.float64):
        test_activations.test_known_values(case, dtype)
        test_activations.test_equals_oracle(case, dtype)
    test_activations.test_gradient_is_the_difference_quotient(case)
    test_activations.test_float32_kernels_hold_no_double_and_are_vectors(case)
    assert nbcnn.check_gradients(nbcnn.SiLU(), (3, 4, 4))
