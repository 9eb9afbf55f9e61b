"""Names of PyTorch that nbcnn does not have: a line that says what to write, in both ways to ask for them."""
import importlib

import pytest

import nbcnn
from nbcnn.instead import NAMES

MODULES = [name for name in NAMES if name != "model"]


@pytest.mark.parametrize("module, name", [(module, name) for module in MODULES for name in NAMES[module]])
def test_what_to_write_instead(module, name):
    """And `hasattr` is False, as it is of any other name that is not there."""
    place = importlib.import_module(module)
    for ask, error in ((lambda: exec(f"from {module} import {name}"), ImportError), (lambda: getattr(place, name), AttributeError)):
        with pytest.raises(error) as caught:
            ask()
        assert str(caught.value) == f"{module} has no {name}: {NAMES[module][name]}"
    assert not hasattr(place, name)


def test_other_names():
    """A slip of the pen gets the nearest name; what only asks whether there is something is not disturbed."""
    for ask, message in ((lambda: nbcnn.Conv2D, "nbcnn has no Conv2D; did you mean Conv2d?"),
                         (lambda: nbcnn.Xyz, "nbcnn has no Xyz"), (lambda: nbcnn.optim.sdg, "nbcnn.optim has no sdg"),
                         (lambda: nbcnn.datasets.xyz, "nbcnn.datasets has no xyz")):
        with pytest.raises(AttributeError) as caught:
            ask()
        assert str(caught.value).startswith(message)
    assert not hasattr(nbcnn, "__wrapped__") and not hasattr(nbcnn, "nothing")


def test_losses_are_made_first():
    with pytest.raises(TypeError, match=r"^MSELoss: a loss is made first, and then called; write MSELoss\(\)\(x, t\)$"):
        nbcnn.MSELoss([1.0], [2.0])
    with pytest.raises(TypeError, match=r"^L1Loss: options have names; write L1Loss\(reduction='sum'\)$"):
        nbcnn.L1Loss("sum")
