"""What is no regular file is not read; files that outlive a crash: modes and owners, syncing, temporary files, locks, errors."""
import errno
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbcnn import files

posix = pytest.mark.skipif(os.name == "nt", reason="needs modes, owners and locks")


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "file"
    files.write_atomically(file, b"old")
    return file


def mode(path):
    return os.stat(path).st_mode & 0o7777


# ---- reading ----

def test_a_regular_file_also_behind_a_link(tmp_path):
    (tmp_path / "a").touch()
    os.symlink("a", tmp_path / "b")
    files.require_file(tmp_path / "a")
    files.require_file(str(tmp_path / "b"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_devices_and_folders_also_behind_links(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, target, number, text in (("a", "pipe", errno.EINVAL, "not a regular file"), ("b", "/dev/zero", errno.EINVAL, "not a"),
                                       ("c", ".", errno.EISDIR, "directory"), ("d", "nowhere", errno.ENOENT, "No such file")):
        os.symlink(target, tmp_path / name)
        with pytest.raises(OSError, match=text) as caught:
            files.require_file(tmp_path / name)
        assert caught.value.errno == number and caught.value.filename in (tmp_path / name, str(tmp_path / name))


# ---- writing ----

@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
def test_every_error_names_the_file(file, monkeypatch, name):
    """Those of the temporary file and of the folder too."""
    for nth in (1, 2):
        real, calls = getattr(os, name), []

        def fail(*arguments, real=real, calls=calls, nth=nth, **options):
            calls.append(arguments)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            if name == "replace" and nth == 2:
                files.write_atomically(file, b"new")
                continue
            with pytest.raises(OSError, match="No space left on device") as caught:
                files.write_atomically(file, b"new")
        assert caught.value.filename == str(file) and caught.value.filename2 is None
        assert os.listdir(file.parent) == ["file"]


@posix
@pytest.mark.parametrize("umask, expected", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_any_new_file(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == expected


@posix
@pytest.mark.parametrize("kept", [0o600, 0o640, 0o444, 0o666])
def test_the_temporary_file_is_never_more_readable_than_the_result(file, monkeypatch, kept):
    file.chmod(kept)
    modes, folder = [], file.parent

    def watched(name):
        real = getattr(os, name)

        def call(*arguments, **options):
            modes.extend(mode(other) for other in folder.iterdir() if other != file)
            return real(*arguments, **options)
        return call
    for name in ("fchown", "fchmod", "fsync", "replace"):
        monkeypatch.setattr(os, name, watched(name))
    files.write_atomically(file, b"new")
    assert len(modes) == 4 and modes[0] == 0o600 and not any(found & ~(kept | 0o200) for found in modes)
    assert mode(file) == kept and file.read_bytes() == b"new"


@posix
@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() != 0, reason="only root gives files away")
def test_owner_and_group_stay(file):
    os.chown(file, 1234, 2345)
    file.chmod(0o640)
    files.write_atomically(file, b"new")
    assert (os.stat(file).st_uid, os.stat(file).st_gid, mode(file)) == (1234, 2345, 0o640)


@posix
def test_a_group_that_cannot_be_kept_gives_its_rights_to_no_other(file, monkeypatch):
    """Who is not root gives files to groups of its own only."""
    file.chmod(0o664)
    tried, fstat = [], os.fstat

    def refuse(descriptor, *ids):
        tried.append(ids)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def other_group(descriptor):
        values = list(fstat(descriptor))
        values[5] += 1
        return os.stat_result(values)
    monkeypatch.setattr(os, "fchown", refuse)
    files.write_atomically(file, b"new")
    assert mode(file) == 0o664 and tried == [(os.stat(file).st_uid, os.stat(file).st_gid), (-1, os.stat(file).st_gid)]
    monkeypatch.setattr(os, "fstat", other_group)
    files.write_atomically(file, b"newer")
    assert mode(file) == 0o604 and file.read_bytes() == b"newer"


def test_user_attributes_stay(file):
    try:
        os.setxattr(file, "user.comment", b"mine")
    except (AttributeError, OSError):
        pytest.skip("needs a disk with attributes")
    files.write_atomically(file, b"new")
    assert os.getxattr(file, "user.comment") == b"mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_new_folders_are_synced_with_what_holds_them(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def logged(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)
    monkeypatch.setattr(os, "fsync", logged)
    assert files.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert not files.make_folder(tmp_path / "a") and len(synced) == 3
    (tmp_path / "file").touch()
    for path, error in ((tmp_path / "file", FileExistsError), (tmp_path / "file" / "x", NotADirectoryError)):
        with pytest.raises(error) as caught:
            files.make_folder(path)
        assert Path(caught.value.filename) == path


def test_only_temporary_files_of_these_names_are_removed(tmp_path):
    others = ["last", ".last", ".last.0123abc", ".last.0123abcg", ".last.0123abcde", "x.last.0123abcd", ".best.0123abcd"]
    for name in [*others, ".last.0123abcd"]:
        (tmp_path / name).touch()
    (tmp_path / ".last.00000000").mkdir()
    files.remove_temporaries(tmp_path, "last|first")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, ".last.00000000"])


# ---- locks ----

HOLD = """
import os, sys, time
from nbcnn import files
lock = files.Lock(sys.argv[1])
lock.mark("x")
print("held", flush=True)
time.sleep(100)
"""


@posix
def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    lock = files.Lock(tmp_path)
    assert lock.held and not lock.marked and os.listdir(tmp_path) == [files.Lock.NAME]
    with pytest.raises(BlockingIOError) as caught:
        files.Lock(tmp_path)
    assert caught.value.filename == str(tmp_path / files.Lock.NAME)
    lock.mark("here")
    assert lock.marked
    lock.mark("")
    assert not lock.marked
    lock.release()
    lock.release()
    assert os.listdir(tmp_path) == []
    files.Lock(tmp_path).release()


@posix
def test_a_lock_ends_with_its_process_and_a_mark_stays(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])})
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            files.Lock(tmp_path)
        process.send_signal(signal.SIGKILL)
    lock = files.Lock(tmp_path)
    assert lock.marked
    lock.release()      # nobody has taken the mark away: the next one has to see it
    assert os.listdir(tmp_path) == [files.Lock.NAME]


@posix
def test_a_lock_on_a_file_that_its_holder_has_just_removed_is_none(tmp_path, monkeypatch):
    first, flock = files.Lock(tmp_path), files.fcntl.flock

    def late(descriptor, how):
        monkeypatch.setattr(files.fcntl, "flock", flock)
        first.release()
        flock(descriptor, how)
    monkeypatch.setattr(files.fcntl, "flock", late)
    second = files.Lock(tmp_path)
    assert second.held and os.listdir(tmp_path) == [files.Lock.NAME]
    with pytest.raises(BlockingIOError):
        files.Lock(tmp_path)
    second.release()


@posix
@pytest.mark.parametrize("number", [None, errno.ENOLCK, errno.ENOTSUP])
def test_where_files_cannot_be_locked_nothing_is_held_or_left(tmp_path, monkeypatch, number):
    def refuse(descriptor, how):
        raise OSError(number, "no locks here")
    if number is None:
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", refuse)
    lock = files.Lock(tmp_path)
    lock.mark("x")
    assert not lock.held and not lock.marked
    lock.release()
    assert os.listdir(tmp_path) == []


@posix
@pytest.mark.parametrize("make", [
    lambda lock, other: other.write_text("precious") and os.link(other, lock), lambda lock, other: lock.write_text("precious"),
    lambda lock, other: os.mkfifo(lock), lambda lock, other: os.symlink(other, lock)])
def test_a_file_of_somebody_else_s_is_no_lock(tmp_path, make):
    lock, other = tmp_path / files.Lock.NAME, tmp_path / "other"
    make(lock, other)
    before = lock.lstat()
    with pytest.raises(OSError, match=r"not a lock of nbcnn|symbolic links") as caught:
        files.Lock(tmp_path)
    assert str(caught.value.filename) == str(lock) and os.path.samestat(lock.lstat(), before)
    assert not other.exists() or other.read_text() == "precious"


@posix
def test_a_mark_that_is_written_again_is_there_at_any_moment(tmp_path, monkeypatch):
    # A run that takes over an abandoned folder may be killed, too.
    lock, sizes = files.Lock(tmp_path), []
    lock.mark("by the first")

    def watched(real, *arguments):
        sizes.append(lock.path.stat().st_size)
        return real(*arguments)
    for name in ("ftruncate", "pwrite", "fsync"):
        monkeypatch.setattr(os, name, functools.partial(watched, getattr(os, name)))
    lock.mark("by the second")
    assert len(sizes) == 3 and min(sizes) > 0 and lock.path.read_text().endswith("by the second")
