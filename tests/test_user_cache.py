"""The user's cache folder: where it is, and how files get there and go."""
import os
import sys
from pathlib import Path

import pytest

from nbcnn import user_cache


@pytest.mark.parametrize("platform, variables, folder", [
    ("linux", {}, "/home/ada/.cache/nbcnn"), ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/nbcnn"),
    ("darwin", {}, "/home/ada/Library/Caches/nbcnn"), ("win32", {"LOCALAPPDATA": "/local"}, "/local/nbcnn")])
def test_folder(monkeypatch, platform, variables, folder):
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ada", "USERPROFILE": "/home/ada", **variables}.items():
        monkeypatch.setenv(name, value)
    assert user_cache.folder() == Path(folder)


def test_no_home_is_no_folder_below_this_one(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(FileNotFoundError, match="No home folder"):
        user_cache.folder()


def test_files_of_a_kind_the_last_used_first(tmp_path):
    assert user_cache.files(tmp_path / "missing", ".x") == []
    for age, name in enumerate(["c.x", ".a.x", "b.x", "d.y"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert [path.name for path in user_cache.files(tmp_path, ".x")] == ["b.x", ".a.x", "c.x"]
    user_cache.used(tmp_path / "c.x")
    assert user_cache.files(tmp_path, ".x")[0].name == "c.x"
    user_cache.used(tmp_path / "missing")


def test_all_or_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise next(errors)
    path = tmp_path / "new" / "a.x"
    errors = iter([OSError(28, "No space left on device"), KeyboardInterrupt()])
    for expected in (OSError, KeyboardInterrupt):
        with pytest.raises(expected) as caught:
            user_cache.write(path, fail, 1)
        assert list(path.parent.iterdir()) == []
        assert expected is not OSError or caught.value.filename == str(path)
    user_cache.write(path, lambda file: file.write(b"old"), 1)
    user_cache.write(path, lambda file: file.write(b"new"), 1)
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_only_so_many_of_a_kind_stay(tmp_path):
    for name in ("other.y", "folder.x"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    for k in range(5):
        user_cache.write(tmp_path / f"{k}.x", lambda file: None, 2)
        os.utime(tmp_path / f"{k}.x", (k, k))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.x", "4.x", "folder.x", "other.y"]
