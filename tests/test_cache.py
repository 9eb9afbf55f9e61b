"""The command `nbcnn cache`: what is kept to save time, and how it goes."""
import sys

import pytest
from numba import config

import nbcnn
from nbcnn import __main__, cache
from nbcnn.datasets import shapes
from nbcnn.kernels.cpu import kernel_cache


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A cache folder with a kernel and the images of a seed."""
    monkeypatch.setattr(config, "CACHE_DIR", "")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(nbcnn, "__file__", str(tmp_path / "package" / "__init__.py"))
    for name, value in (("TRAIN", 10), ("TEST", 10)):
        monkeypatch.setattr(sys.modules[shapes.__module__], name, value)
    kernel = kernel_cache.njit(lambda x: x + 1)
    assert kernel(1) == 2
    shapes()
    return tmp_path / "cache" / "nbcnn"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Tables keep the paths of tests in their lines."""
    monkeypatch.setenv("COLUMNS", "1000")


def rows(capsys):
    """The cells behind the words of each line."""
    assert __main__.main(["cache"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    return [line.rsplit(maxsplit=4) for line in output.splitlines()[2:]]


def test_shows_how_much_there_is_and_where(home, capsys):
    kernels, images = rows(capsys)
    assert kernels[1::2] == ["1", "0"] and kernels[4] == str(home / "kernels")
    assert images[1:] == ["1", "0.1", "0", str(home)]


def test_counts_damaged_files(home, capsys):
    for folder in (home, home / "kernels"):
        file, = (path for path in folder.iterdir() if path.is_file())
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    (home / "kernels" / ".of-a-killed-writer.kernel").write_bytes(b"half")
    assert [(row[1], row[3]) for row in rows(capsys)] == [("2", "2"), ("1", "1")]


def test_clear_leaves_nothing_of_ours(home, capsys):
    (home / "mine").write_text("kept")
    numba_s = home.parents[1] / "package" / "kernels" / "cuda" / "__pycache__"
    numba_s.mkdir(parents=True)
    for name in ("a.nbi", "a.1.nbc", "a.pyc"):
        (numba_s / name).write_bytes(bytes(50_000))
    assert rows(capsys)[2][1:] == ["2", "0.1", "0", str(numba_s.parents[1])]
    assert cache.main(["--clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 4 files, 0.2 MB")
    assert [path.name for path in home.iterdir()] == ["mine"] and [path.name for path in numba_s.iterdir()] == ["a.pyc"]
    (home / "mine").unlink()
    assert cache.main(["--clear"]) == 0 and not home.exists()
    assert capsys.readouterr().out == "removed 0 files, 0.0 MB\n"
    assert [row[1] for row in rows(capsys)] == ["0", "0"]


def test_what_cannot_be_removed_is_named_and_the_rest_goes(home, capsys):
    (home / "kernels" / "0.kernel").mkdir()
    assert cache.main(["--clear"]) == 2
    assert capsys.readouterr().err == f"nbcnn cache: {home / 'kernels' / '0.kernel'}: Is a directory\n"
    assert [path.name for path in home.rglob("*")] == ["kernels", "0.kernel"]


def test_the_folder_that_numba_cache_dir_names(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "there"))
    assert rows(capsys)[0][1:] == ["0", "0.0", "0", str(tmp_path / "there" / "nbcnn")]


def test_no_options_but_its_own(capsys):
    assert cache.main(["--all"]) == 2
    assert "unrecognized arguments: --all" in capsys.readouterr().err
