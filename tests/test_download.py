"""Downloads from a server that does all that servers do: what is there afterwards is whole, and what was there before is used."""
import errno
import gzip
import hashlib
import os
import stat
import tarfile
import time

import numpy as np
import pytest

from nbcnn.datasets import download
from nbcnn.datasets.download import bring, unpack
from nbcnn.datasets.sources import File
from nbcnn.files import Lock

from archives import tar
from web import answer, corrupt, cut, deliver, ignore_range, redirect, refuse, stall

CONTENT = np.random.default_rng(0).bytes(300_000)
FILE = File("a.bin", len(CONTENT), hashlib.md5(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)


@pytest.fixture
def get(web, tmp_path):
    """get(...) downloads a.bin from the places in a folder of the server, or from /first and /second; its content is returned."""
    web.files.update({"/first/a.bin": CONTENT, "/second/a.bin": CONTENT})

    def run(*places):
        bring([FILE], tmp_path / "set", None, [web.url + place for place in places or ("/first", "/second/")])
        assert [path.name for path in tmp_path.iterdir()] == ["set"] and os.listdir(tmp_path / "set") == ["a.bin"]
        return (tmp_path / "set" / "a.bin").read_bytes()
    return run


def kept(tmp_path):
    """How much of a file is there after a download that failed; the set is not."""
    assert [path.name for path in tmp_path.iterdir()] == [".set.part"]
    return (tmp_path / ".set.part" / "a.bin").stat().st_size


def test_a_file(get, web):
    assert get("/first") == CONTENT and web.asked == [("/first/a.bin", None)]


def test_the_address_of_the_file_itself(get, web):
    assert get("/first/a.bin") == CONTENT and web.asked == [("/first/a.bin", None)]


@pytest.mark.parametrize("act", [cut(100_000), stall(100_000)], ids=["cut", "stall"])
def test_goes_on_where_it_broke_off(get, web, act):
    web.plan = [act]
    assert get() == CONTENT
    (path, none), (again, wanted) = web.asked
    assert path == again == "/first/a.bin" and none is None and wanted == "bytes=100000-"


def test_silence_has_an_end(get, web):
    web.plan, started = [stall(0)], time.perf_counter()
    assert get() == CONTENT and 0.3 <= time.perf_counter() - started < 15


def test_goes_on_in_another_call(get, web, tmp_path):
    web.plan = [cut(100_000), refuse(503)]
    with pytest.raises(ConnectionError, match=r"^a\.bin cannot be had: .*/first/a\.bin: ended after 100,000 of 300,000 bytes; .*"
                                              r"/first/a\.bin: HTTP 503 Service Unavailable\. The same again goes on .*--url"):
        get("/first")
    assert kept(tmp_path) == 100_000
    assert get("/second") == CONTENT and web.asked[2:] == [("/second/a.bin", "bytes=100000-")]


def test_a_server_without_ranges_begins_again(get, web):
    web.plan = [cut(100_000), ignore_range]
    assert get("/first") == CONTENT and len(web.asked) == 2


def test_beginning_again_loses_nothing(get, web, tmp_path):
    def cut_without_ranges(handler, content):
        del handler.headers["Range"]
        cut(1000)(handler, content)
    web.plan = [cut(100_000), cut_without_ranges]
    with pytest.raises(ConnectionError, match="ended after 1,000 of 300,000 bytes"):
        get("/first")
    assert kept(tmp_path) == 100_000
    assert get("/first") == CONTENT


def test_so_many_connections_and_no_more(get, web, tmp_path):
    web.plan = [cut(1000)] * 9
    with pytest.raises(ConnectionError):
        get("/first")
    assert len(web.asked) == download.TRIES and kept(tmp_path) == 1000 * download.TRIES


@pytest.mark.parametrize("act, reason", [
    (refuse(404), "HTTP 404 Not Found"), (refuse(503), "HTTP 503 Service Unavailable"), (cut(0), "ended after 0 of 300,000 bytes"),
    (stall(0), "timed out"), (redirect("/first/a.bin"), "HTTP 302 .*redirect"), (redirect("file:///etc/hostname"), "HTTP 302 "),
    (answer(b"<html>", Content_Length=6), "expected Content-Length 300000, got 6"), (answer(b"<html>"), "ended after 6 of 300,000"),
    (corrupt, f"expected the MD5 {FILE.md5}, got "), (lambda handler, content: None, ".*closed connection"),
], ids=["404", "503", "nothing", "silence", "circle", "a file here", "a page", "a page of unknown length", "corrupt", "no answer"])
def test_another_place_helps(get, web, tmp_path, act, reason):
    web.plan = [act] * 12
    with pytest.raises(ConnectionError, match=f"/first/a.bin: {reason}") as error:
        get("/first")
    assert "\n" not in str(error.value)
    web.plan = [act if path == "/first/a.bin" else deliver for path in ("/first/a.bin", "/second/a.bin")]
    if "redirect" not in reason:
        assert get() == CONTENT and web.asked[-1][0] == "/second/a.bin"


def test_a_bar(get, web, monkeypatch):
    """One a connection: it begins with what is there, and ends at what has come."""
    shown = []

    class Bar:
        def __init__(self, total, initial, **more):
            self.first = self.n = initial
            shown.append(self)
            assert total == 300_000 and more["desc"] == "a.bin"

        def update(self, count):
            self.n += count

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    web.plan = [cut(100_000), cut(50_000), ignore_range]
    assert get("/first") == CONTENT
    assert [(bar.first, bar.n) for bar in shown] == [(0, 100_000), (100_000, 150_000), (150_000, 300_000)]


def test_nobody_there(get, tmp_path):
    with pytest.raises(ConnectionError, match="Connection refused"):
        bring([FILE], tmp_path / "set", None, ["http://127.0.0.1:9"])
    with pytest.raises(ConnectionError, match="nonnumeric port"):
        bring([FILE], tmp_path / "set", None, ["http://127.0.0.1:x"])


def test_a_redirect_is_followed(get, web):
    web.plan = [redirect("/second/a.bin")]
    assert get("/first") == CONTENT and [path for path, _ in web.asked] == ["/first/a.bin", "/second/a.bin"]


def test_a_part_that_is_wrong_is_asked_for_anew(get, web, tmp_path):
    work = tmp_path / ".set.part"
    for there in (bytes(100_000), bytes(300_000), bytes(400_000)):
        work.mkdir()
        (work / "a.bin").write_bytes(there)
        web.asked.clear()
        assert get("/first") == CONTENT and web.asked[-1] == ("/first/a.bin", None)
        for path in (tmp_path / "set" / "a.bin", tmp_path / "set"):
            path.unlink() if path.is_file() else path.rmdir()


def test_a_part_that_is_whole_is_not_asked_for(get, web, tmp_path):
    (tmp_path / ".set.part").mkdir()
    (tmp_path / ".set.part" / "a.bin").write_bytes(CONTENT)
    assert get() == CONTENT and web.asked == []


@pytest.mark.parametrize("headers", [dict(Content_Range="bytes 5-299999/300000"), dict(Content_Range="bytes 100000-399999/400000")])
def test_a_wrong_range_is_not_taken(get, web, tmp_path, headers):
    web.plan = [cut(100_000), answer(CONTENT, Status=206, **headers)]
    with pytest.raises(ConnectionError, match="expected Content-Range bytes 100000-299999/300000, got bytes"):
        get("/first")
    assert kept(tmp_path) == 100_000


def test_a_page_instead_of_the_file_leaves_what_came_before(get, web, tmp_path):
    web.plan = [cut(100_000), answer(b"<html>", Content_Length=6)]
    with pytest.raises(ConnectionError, match="expected Content-Length 300000, got 6"):
        get("/first")
    assert kept(tmp_path) == 100_000


def test_more_than_the_file_is_not_read(get, web):
    web.plan = [answer(CONTENT + bytes(100_000))]
    assert get("/first") == CONTENT


def test_a_full_disk_is_no_matter_of_the_place(get, web, tmp_path, monkeypatch):
    def full(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):      # no folder
            raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
        get()
    assert len(web.asked) <= 1 and kept(tmp_path) > 0


def test_no_set_before_all_files_are_there(web, tmp_path):
    other = File("b.bin", 4, hashlib.md5(b"more").hexdigest())
    web.files.update({"/a.bin": CONTENT})
    with pytest.raises(ConnectionError, match=r"b\.bin cannot be had: .*404"):
        bring([FILE, other], tmp_path / "set", None, [web.url])
    assert not (tmp_path / "set").exists()
    web.files["/b.bin"] = b"more"
    (tmp_path / ".set.part" / "whole").mkdir()      # of a process that was killed
    (tmp_path / ".set.part" / "whole" / "c.bin").touch()
    web.asked.clear()
    bring([FILE, other], tmp_path / "set", None, [web.url])
    assert sorted(os.listdir(tmp_path / "set")) == ["a.bin", "b.bin"] and web.asked == [("/b.bin", None)]


def test_one_process_at_a_time(get, tmp_path):
    (tmp_path / ".set.part").mkdir()
    lock = Lock(tmp_path / ".set.part")
    with pytest.raises(ValueError, match="set: another process is downloading it"):
        get()
    lock.release()
    assert get() == CONTENT


# ---- archives ----

MEMBERS = {"train": 1000, "test": 1000}


GOOD = [("set/train", b"abc"), ("set/test", b"d" * 1000)]


def test_an_archive(web, tmp_path):
    content = tar(("set", b"", {"type": tarfile.DIRTYPE}), *GOOD, ("set/readme.html", b""), ("../outside", b"!"), ("/etc/x", b"!"))
    web.files["/set.tar.gz"] = content
    bring([File("set.tar.gz", len(content), hashlib.md5(content).hexdigest())], tmp_path / "in" / "set", MEMBERS, [web.url])
    assert os.listdir(tmp_path) == ["in"] and os.listdir(tmp_path / "in") == ["set"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "in" / "set").iterdir()} == {"train": b"abc", "test": b"d" * 1000}


@pytest.mark.parametrize("content, message", [
    (tar(("set/train", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/x"}), GOOD[1]), "set/train: expected a regular file of"),
    (tar(("set/train", b"", {"type": tarfile.LNKTYPE, "linkname": "set/test"}), GOOD[1]), "set/train: expected a regular file of"),
    (tar(("set/train", b"", {"type": tarfile.CHRTYPE}), GOOD[1]), "set/train: expected a regular file of"),
    (tar(("set/train", b"", {"type": tarfile.FIFOTYPE}), GOOD[1]), "set/train: expected a regular file of"),
    (tar(("set/train", b"", {"type": tarfile.DIRTYPE}), GOOD[1]), "set/train: expected a regular file of"),
    (tar(("set/train", b"x" * 1001), GOOD[1]), "set/train: expected a regular file of at most 1,000 bytes"),
    (tar(*GOOD, GOOD[0]), "train"), (tar(GOOD[0]), "it lacks test"), (tar(("set/../set/train", b"abc"), GOOD[1]), "it lacks train"),
    (tar(("other/train", b"abc"), GOOD[1]), "it lacks train"),
    (tar(("zeros", bytes(2_000_000)), *GOOD), "it has more in it than what is wanted"),
    (tar(("set/train", b"abc", {"pax_headers": {"comment": "x" * 2_000_000}}), GOOD[1]), "it has more in it than what is wanted"),
    (tar(*GOOD)[:-20], "Compressed file ended"), (tar(*GOOD, compress=bytes), "Not a gzipped file"),
    (gzip.compress(b"x" * 1024), "invalid header"), (b"", "empty file"),
], ids=["symbolic link", "hard link", "device", "pipe", "folder", "too large", "twice", "missing", "a way round", "another folder",
        "bomb", "header bomb", "cut", "no gzip", "no tar", "empty"])
def test_an_archive_with_anything_else_makes_no_set(tmp_path, content, message):
    archive, target = tmp_path / "a.tar.gz", tmp_path / "whole"
    archive.write_bytes(content)
    target.mkdir()
    with pytest.raises(ValueError, match=f"a.tar.gz: not the archive it should be: .*({message})"):
        unpack(archive, "set", MEMBERS, target)
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", "whole"]
    assert all(path.is_file() and not path.is_symlink() and path.stat().st_size <= 1000 for path in target.iterdir())


def test_a_bomb_takes_no_time(tmp_path):
    """Ten gigabytes of zeros in ten megabytes: it is left after those two that the members may take."""
    archive = tmp_path / "a.tar.gz"
    piece = gzip.compress(bytes(10_000_000))
    header = tarfile.TarInfo("zeros")
    header.size = 10**10
    archive.write_bytes(gzip.compress(header.tobuf()) + piece * 1000)
    (tmp_path / "whole").mkdir()
    with pytest.raises(ValueError, match="more in it than what is wanted"):
        unpack(archive, "set", MEMBERS, tmp_path / "whole")
