"""What is handed on: the source distribution passes its own tests, and the wheel holds what the package needs."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import nbcnn

ROOT = Path(__file__).parents[1]
FOLDERS = "nbcnn", "tests", "bench", "examples"
FILES = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "conftest.py", "setup.cfg", "pyproject.toml")
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="setuptools is not installed")


def python(folder, *arguments):
    """What a process prints that finds nbcnn in this folder."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(folder)})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked, with the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("package")
    clone, build = folder / "clone", "from setuptools import build_meta; build_meta.build_{}({!r})"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*FILES, "MANIFEST.in", "data/README.md"):
        (clone / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, clone / file)
    (clone / "data" / "downloaded").write_text("large")
    python(clone, "-c", build.format("sdist", str(folder)))
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **{"filter": "data"} if hasattr(tarfile, "data_filter") else {})
    (unpacked,) = folder.glob("nbcnn-*[0-9]")
    python(unpacked, "-c", build.format("wheel", str(folder)))
    return unpacked


def test_the_source_holds_what_its_tests_read(source):
    assert all((source / file).is_file() for file in FILES) and os.listdir(source / "data") == ["README.md"]
    for folder in FOLDERS:
        there, here = ({path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
                       for root in (source, ROOT))
        assert there == here


def test_tests_pass_in_the_source(source):
    """Some: of a table, of a kernel's documentation, and a block of the README."""
    done = python(source, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_table.py", "tests/test_readme.py",
                  "nbcnn/kernels/linear.py", "-k", "linear or snippet and 1 or table and not fits")
    assert int(re.search(r"(\d+) passed", done)[1]) > 3


def test_the_wheel_holds_the_package_and_the_table_of_data_sets(source):
    (wheel,) = source.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (info,) = (name for name in names if name.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(file.read(info).decode())
        file.extractall(source.parent / "installed")
    assert {name for name in names if ".dist-info/" not in name} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "nbcnn").rglob("*") if path.suffix in (".py", ".md")}
    assert any(name.endswith("LICENSE") for name in names)
    table = python(source.parent / "installed", "-c", "from importlib.resources import files; "
                   "print((files('nbcnn.datasets') / 'README.md').read_text(), __import__('nbcnn').__file__)")
    assert "c32a1d4ab5d03f1284b67883e8d87530" in table and str(source.parent / "installed") in table
    assert "MIT" in (metadata["License-Expression"] or metadata["License"]) and metadata["Keywords"]
    assert not any(metadata[name] for name in ("Author", "Author-email", "Maintainer", "Home-page", "Project-URL"))


def test_versions_are_one():
    for name in ("CITATION.cff", "CHANGELOG.md"):
        assert nbcnn.__version__ in (ROOT / name).read_text()
