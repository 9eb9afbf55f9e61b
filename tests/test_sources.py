"""Data sets by name: the table of places, downloads into a folder, what is found there, and what says how to get it."""
import gzip
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest

from nbcnn.datasets import cifar10, fashion_mnist, mnist, sources
from nbcnn.datasets.sources import IDX, SOURCES, get

from archives import idx, tar, zeros
from pickles import NAMES, python_batch, python_meta
from web import corrupt


@pytest.fixture(scope="module")
def contents():
    """{set: {file: content}}, all zeros, in place of the official ones."""
    batch = python_batch([3] * 10_000, np.zeros((10_000, 3072), np.uint8))
    members = [(f"cifar-10-batches-py/{file}", python_meta() if file == "batches.meta" else batch)
               for file in SOURCES["cifar10"].members]
    archive = tar(*members, compress=lambda content: gzip.compress(content, 1))
    return {"mnist": zeros(), "fashion-mnist": zeros(), "cifar10": {"cifar-10-python.tar.gz": archive}}


@pytest.fixture
def small(monkeypatch, web, contents):
    """A server that has them, each set in a folder, and its address in the table."""
    for name, files in contents.items():
        web.files.update({f"/{name}/{file}": content for file, content in files.items()})
        wanted = tuple(sources.File(file, len(content), hashlib.md5(content).hexdigest()) for file, content in files.items())
        monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(places=(f"{web.url}/{name}/",), wanted=wanted))
    return web


def test_the_table_of_the_readme():
    """The data sets' README says the same of every file: name, size and checksum in a row, and all addresses."""
    text = Path(sources.__file__).with_name("README.md").read_text(encoding="utf-8")
    for source in SOURCES.values():
        for file in source.wanted:
            assert re.search(rf"{re.escape(file.name)}.*\| {file.size:,} \| `{file.md5}`", text)
            assert re.fullmatch("[0-9a-f]{32}", file.md5)
        for place in source.places:
            assert place in text and place[-1] == "/"
        assert len(source.places) == 2 and f"`{source.home}/`" in text


def test_cifar10_as_the_tutorials_write_it(small, tmp_path):
    train, test = cifar10(tmp_path / "data", download=True)
    assert train.images.shape == (50_000, 3, 32, 32) and not train.images.any() and set(test.labels.tolist()) == {3}
    assert train.classes == [name.decode() for name in NAMES] and os.listdir(tmp_path / "data") == ["cifar-10-batches-py"]
    assert len(small.asked) == 1
    cifar10(tmp_path / "data", download=True)
    assert len(small.asked) == 1        # it is there


@pytest.mark.parametrize("read, name, home", [(mnist, "mnist", "MNIST"), (fashion_mnist, "fashion-mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist(small, tmp_path, read, name, home):
    train, test = read(tmp_path, download=True)
    assert (len(train), len(test), train.name) == (60_000, 10_000, name)
    assert os.listdir(tmp_path) == [home] and os.listdir(tmp_path / home) == ["raw"]
    assert sorted(os.listdir(tmp_path / home / "raw")) == sorted(f"{file}.gz" for file in IDX)
    assert {path.split("/")[1] for path, _ in small.asked} == {name}


def test_get_says_where_it_is(small, tmp_path):
    assert get("mnist", tmp_path) == get("mnist", str(tmp_path)) == tmp_path / "MNIST" / "raw"
    assert len(small.asked) == 4


def test_another_place(small, tmp_path):
    small.files["/mine/cifar-10-python.tar.gz"] = small.files["/cifar10/cifar-10-python.tar.gz"]
    get("cifar10", tmp_path / "a", f"{small.url}/mine")
    get("cifar10", tmp_path / "b", f"{small.url}/mine/cifar-10-python.tar.gz")
    assert small.asked == [("/mine/cifar-10-python.tar.gz", None)] * 2


@pytest.mark.parametrize("url", ["", "example.org/x", "file:///etc", "ftp://example.org", "\x1b[31m"])
def test_an_address_that_is_none(tmp_path, url):
    with pytest.raises(ValueError, match="url: expected an address that begins with http:// or https://, got '"):
        get("mnist", tmp_path, url)


def test_no_half_set(small, tmp_path):
    small.plan = [corrupt, corrupt]
    with pytest.raises(ConnectionError, match=r"cifar-10-python\.tar\.gz cannot be had: .*expected the MD5"):
        cifar10(tmp_path, download=True)
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 there; .*; nbcnn data get cifar10, or download=True, brings it"):
        cifar10(tmp_path)
    assert os.listdir(tmp_path) == [".cifar-10-batches-py.part"]


def test_a_set_that_lost_a_file_is_not_mended_in_silence(small, tmp_path):
    home = get("mnist", tmp_path)
    (home / f"{IDX[1]}.gz").unlink()
    for read in (lambda: mnist(tmp_path), lambda: mnist(tmp_path, download=True), lambda: get("mnist", tmp_path)):
        with pytest.raises(FileNotFoundError, match=f"MNIST lacks {IDX[1]} there; move the folder away, and nbcnn data get mnist"):
            read()
    (home / IDX[1]).write_bytes(idx(np.zeros(60_000, np.uint8)))
    assert get("mnist", tmp_path) == home


def test_names(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of 'cifar10', 'cifar100', 'mnist', 'fashion-mnist', got 'shapes'"):
        get("shapes", tmp_path)
