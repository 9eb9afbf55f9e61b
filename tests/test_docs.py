"""What help() shows of the public kernels is complete, though the source says once what several share."""
import inspect
import re
import subprocess
import sys

import pytest

from nbcnn import kernels
from nbcnn.kernels.docs import documented

WRITE = {"adam_step", "load_images", "normalize_images", "sgd_step"}     # instead of returning something


def sections(docstring):
    """The sections by title, in their order."""
    _, *parts = re.split(r"^(\w+)\n-+\n", docstring, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", kernels.__all__)
def test_complete(name):
    function = getattr(kernels, name)
    parts = sections(function.__doc__)
    assert list(parts) == ["Parameters", *["Returns"] * (name not in WRITE), "Raises", "Notes", "Examples"]
    described = re.findall(r"^(\w.*?) : ", parts["Parameters"], re.MULTILINE)
    assert sorted(", ".join(described).split(", ")) == sorted(inspect.signature(function).parameters)
    assert {"TypeError", "ValueError"} <= set(re.findall(r"^\w+", parts["Raises"], re.MULTILINE))
    assert ">>> " in parts["Examples"] and not re.search(r"\{\w*\}", function.__doc__)
    assert "Source: " in function.__doc__ or not name.endswith("_forward")


def plain(x, axis=1, out=None):
    """Nothing.

    Parameters
    ----------
    x, axis : anything
        Of plain.
    out : array

    Returns
    -------
    y : array

    Raises
    ------
    ValueError
        Of plain.
    KeyError
        Of plain.
    """


def test_what_is_taken_over():
    """What the function says itself comes first, the order is that of the signature, and a group of parameters stays together."""
    @documented(plain)
    def own(b, out, x):
        """Own text.

        Parameters
        ----------
        x : array
            Of own.
        b : int

        Raises
        ------
        KeyError
            Of own.

        >>> own
        """
    parts = sections(own.__doc__)
    assert own.__doc__.startswith("Own text.\n\nParameters\n") and list(parts) == [
        "Parameters", "Returns", "Raises", "Notes", "Examples"]
    assert parts["Parameters"] == "b : int\nout : array\nx : array\n    Of own.\n\n" and parts["Returns"] == "y : array\n\n"
    assert re.findall(r"^\w+|Of \w+", parts["Raises"], re.MULTILINE)[-4:] == ["ValueError", "Of plain", "KeyError", "Of own"]
    assert parts["Examples"] == ">>> own"


@pytest.mark.parametrize("option, kept", [("-O", True), ("-OO", False)])
def test_optimized(option, kept):
    code = "from nbcnn.kernels import gelu_backward as f; print('dx : float array' in (f.__doc__ or ''))"
    assert subprocess.run([sys.executable, option, "-c", code], capture_output=True, text=True, check=True).stdout == f"{kept}\n"
