"""The idx files of MNIST and Fashion-MNIST: read whole, plain and gzipped, and refused where damaged."""
import gzip
import os

import numpy as np
import pytest

from nbcnn.datasets import fashion_mnist, find_fashion_mnist, find_mnist, mnist
from nbcnn.datasets import idx as module
from nbcnn.datasets.idx import read_idx
from nbcnn.datasets.sources import IDX

from archives import SHAPES, idx


@pytest.fixture
def few(monkeypatch, tmp_path):
    """(folder with the four files of 30 and 20 images, the four arrays); two of the files are gzipped."""
    monkeypatch.setattr(module, "COUNTS", (30, 20))
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256 if len(shape) == 3 else 10, (30 if shape[0] == 60_000 else 20, *shape[1:]), dtype=np.uint8)
              for shape in SHAPES]
    for k, (name, array) in enumerate(zip(IDX, arrays, strict=True)):
        (tmp_path / (name + ".gz" * (k % 3 == 0))).write_bytes(gzip.compress(idx(array)) if k % 3 == 0 else idx(array))
    return tmp_path, arrays


def test_reads_every_image(few):
    folder, (images, labels, others, more) = few
    for read, name, first in ((mnist, "mnist", "0"), (fashion_mnist, "fashion-mnist", "T-shirt/top")):
        train, test = read(str(folder))
        assert np.array_equal(train.images, images[:, None]) and np.array_equal(train.labels, labels)
        assert np.array_equal(test.images, others[:, None]) and np.array_equal(test.labels, more)
        assert train.name == name and train.classes == test.classes and len(train.classes) == 10 and train.classes[0] == first
        train.images[0, 0, 0, 0] = 1        # they can be written to


def test_where_it_looks(few, tmp_path):
    folder, _ = few
    assert find_mnist(folder) == find_fashion_mnist(folder) == (folder, "idx")
    for name in ("MNIST", "FashionMNIST"):      # where torchvision puts them
        (folder / name / "raw").mkdir(parents=True)
        (folder / name / "raw" / IDX[3]).touch()
    assert find_mnist(folder) == (folder / "MNIST" / "raw", "idx")
    assert find_fashion_mnist(folder) == (folder / "FashionMNIST" / "raw", "idx")
    assert find_mnist(folder / "MNIST") is None
    with pytest.raises(FileNotFoundError, match=rf"no MNIST there; looked for {IDX[0]} and {IDX[0]}\.gz, also in MNIST/raw; "
                                                "nbcnn data get mnist, or download=True, brings it"):
        mnist(folder / "none")


@pytest.mark.parametrize("change, message", [
    (lambda content: content[:-1], "expected 66 bytes in it, got 65"), (lambda content: content[:5], "expected 66 .* got 5"),
    (lambda content: content + b"x", "expected 66 bytes in it, got more"), (lambda content: b"", "expected 66 .* got 0"),
    (lambda content: b"\0\0\x0d" + content[3:], r"byte 2: expected 8 in the header of an idx file of shape \(2, 5, 5\), got 13"),
    (lambda content: content[:7] + b"\x03" + content[8:], "byte 7: expected 2 in the header of .*, got 3"),
    (lambda content: b"\x1f\x8b" + content[2:], "byte 0: expected 0 in the header of .*, got 31"),
])
def test_damaged(tmp_path, change, message):
    """16 bytes say what follows, 50 are pixels."""
    content = idx(np.ones((2, 5, 5), np.uint8))
    for path, write in ((tmp_path / "x", bytes), (tmp_path / "x.gz", gzip.compress)):
        path.write_bytes(write(change(content)))
        with pytest.raises(ValueError, match=f"{path.name}: {message}$"):
            read_idx(path, (2, 5, 5))


@pytest.mark.parametrize("content", [
    gzip.compress(idx(np.ones((2, 5, 5), np.uint8)))[:-1], gzip.compress(idx(np.ones((2, 5, 5), np.uint8)))[:-12], b"plain",
    gzip.compress(idx(np.ones((2, 5, 5), np.uint8)))[:-8] + bytes(8)], ids=["cut", "cut in the data", "not gzipped", "checksum"])
def test_damaged_gzip(tmp_path, content):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.gz: damaged: "):
        read_idx(tmp_path / "x.gz", (2, 5, 5))


def test_a_bomb_is_not_unpacked(tmp_path):
    """A megabyte of zeros, of which 67 bytes are read; and a file that is too large by itself."""
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(ValueError, match="byte 2: expected 8"):
        read_idx(tmp_path / "x.gz", (2, 5, 5))
    for name in ("x", "x.gz"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(10**12)
        with pytest.raises(ValueError, match=f"{name}: expected at most 66 bytes, got 1000000000000"):
            read_idx(tmp_path / name, (2, 5, 5))


def test_label_out_of_range(few):
    folder, (_, labels, *_) = few
    labels[7] = 10
    (folder / IDX[1]).write_bytes(idx(labels))
    with pytest.raises(ValueError, match=rf"{IDX[1]}: byte 15: expected a label from 0 to 9 for image 7, got 10"):
        mnist(folder)


def test_a_pipe_is_no_file(few):
    folder, _ = few
    (folder / IDX[1]).unlink()
    os.mkfifo(folder / IDX[1])
    with pytest.raises(OSError, match=f"not a regular file: .*{IDX[1]}"):
        mnist(folder)
