"""The built-in data set: the same for a seed, whatever happens to its cache."""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbcnn.datasets import shapes

module = sys.modules["nbcnn.datasets.shapes"]       # the function stands before it in nbcnn.datasets


@pytest.fixture
def few(monkeypatch, tmp_path):
    """The set with 100 and 50 pictures, in a cache folder that is not there yet."""
    for name, value in (("TRAIN", 100), ("TEST", 50)):
        monkeypatch.setattr(module, name, value)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def drawings(monkeypatch):
    """The list of the drawings made so far, by their size."""
    made, draw = [], module.draw
    monkeypatch.setattr(module, "draw", lambda count, rng: made.append(count) or draw(count, rng))
    return made


def same(splits, others):
    return all(np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
               for a, b in zip(splits, others, strict=True))


def cache_file(folder):
    file, = (folder / "nbcnn").iterdir()
    return file


def test_whole_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    train, test = shapes()
    assert train.images.shape == (10_000, 3, 32, 32) and test.images.shape == (2_000, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [1000] * 10 and np.bincount(test.labels).tolist() == [200] * 10
    assert train.classes == test.classes == sorted(train.classes) and len(train.classes) == 10
    assert len({image.tobytes() for part in (train, test) for image in part.images}) == 12_000      # no two are alike
    assert len(set(train.labels[:100].tolist())) == 10      # mixed
    assert same(shapes(), (train, test))                    # from the cache


def test_same_pictures_for_a_seed(few, drawings):
    splits = shapes(5)
    cache_file(few).unlink()
    assert same(shapes(5), splits) and drawings == [100, 50] * 2
    others = shapes(6)
    assert not np.array_equal(others[0].images, splits[0].images)
    assert not np.array_equal(splits[0].images[:50], splits[1].images)


def test_same_pictures_in_another_process():
    code = ("import hashlib, sys, numpy as np, nbcnn.datasets\n"
            "images, labels = sys.modules['nbcnn.datasets.shapes'].draw(40, np.random.default_rng(0))\n"
            "print(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())")
    images, labels = module.draw(40, np.random.default_rng(0))
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == digest


def test_cached_after_the_first_time(few, drawings):
    splits = shapes()
    assert drawings == [100, 50]
    assert same(shapes(), splits) and drawings == [100, 50]


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-1], lambda content: content[:1000], flip_a_bit,
    lambda content: b"\x00" * len(content), lambda content: content[:40] + b"\xff" * 40 + content[80:]])
def test_damaged_cache_is_mended(few, drawings, damage):
    splits = shapes()
    file = cache_file(few)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert same(shapes(), splits) and drawings == [100, 50] * 2
    assert cache_file(few) == file and file.read_bytes() == content


@pytest.mark.parametrize("change", [
    lambda images, labels: [images, labels],
    lambda images, labels: [images[1:], labels[1:], images[:50], labels[:50]],
    lambda images, labels: [images, labels.astype(np.int32), images[:50], labels[:50]]])
def test_cache_of_something_else_is_not_believed(few, drawings, change):
    splits = shapes()
    np.savez(cache_file(few), *change(splits[0].images, splits[0].labels))
    assert same(shapes(), splits) and drawings == [100, 50] * 2


class Trap:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_no_pickle_in_the_cache_is_run(few, monkeypatch, tmp_path):
    splits = shapes()
    np.savez(cache_file(few), np.array([Trap()], object))
    monkeypatch.chdir(tmp_path)
    assert same(shapes(), splits)
    assert not Path("ran").exists()


def test_unwritable_cache(few, drawings):
    few.write_text("a file where the folder should be")
    assert same(shapes(), shapes()) and drawings == [100, 50] * 2


def test_full_disk_leaves_nothing(few, monkeypatch):
    def half_written(file, *arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez", half_written)
    assert len(shapes()[0]) == 100
    assert list((few / "nbcnn").iterdir()) == []


def test_no_home(few, monkeypatch, tmp_path):
    def nowhere():
        raise FileNotFoundError(2, "No home folder", "~/.cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.user_cache, "folder", nowhere)
    assert len(shapes()[0]) == 100
    assert list(tmp_path.iterdir()) == []


def test_the_last_four_seeds_are_kept(few, drawings):
    for seed in range(4):
        shapes(seed)
    for age, file in enumerate(sorted((few / "nbcnn").iterdir())):
        os.utime(file, (age, age))
    shapes(0)
    assert drawings == [100, 50] * 4
    shapes(4)
    assert [file.name.split("-")[1] for file in sorted((few / "nbcnn").iterdir())] == ["0", "2", "3", "4"]


def test_figures_tell_the_class():
    """Subtract the colour of the frame, centre what differs, halve the resolution: least squares then tells 3 of 4."""
    images, labels = module.draw(2_500, np.random.default_rng(1))
    pictures, numbers = images.astype(np.float32), np.arange(32)
    frame = np.concatenate([pictures[:, :, 0], pictures[:, :, -1], pictures[..., 0], pictures[..., -1]], axis=2)
    figure = abs(pictures - np.median(frame, axis=2)[..., None, None]).sum(1)
    figure[figure < 0.4 * figure.max((1, 2), keepdims=True)] = 0
    down, right = ((figure.sum(axis) * numbers).sum(1) / figure.sum((1, 2)) for axis in (2, 1))
    padded = np.pad(figure / figure.max((1, 2), keepdims=True), ((0, 0), (16, 16), (16, 16)))
    centred = padded[np.arange(len(figure))[:, None, None], (np.rint(down)[:, None].astype(int) + numbers)[:, :, None],
                     (np.rint(right)[:, None].astype(int) + numbers)[:, None]]
    features = np.column_stack([centred.reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(-1, 256), np.ones(len(figure))])
    weights = np.linalg.lstsq(features[:2_000], np.eye(10)[labels[:2_000]], rcond=None)[0]
    assert ((features[2_000:] @ weights).argmax(1) == labels[2_000:]).mean() > 0.75
    assert (abs(figure).max((1, 2)) > 150).all()        # every figure stands out
