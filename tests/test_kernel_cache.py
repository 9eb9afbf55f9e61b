"""Compiled kernels that are kept: found again, never believed when damaged, and never in the way."""
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time

import numba
import pytest
from numba import config
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

from nbcnn import user_cache
from nbcnn.kernels.cpu import kernel_cache, tile
from nbcnn.kernels.cpu.kernel_cache import compile_calls, njit
from nbcnn.kernels.operation import Call

pytestmark = pytest.mark.filterwarnings("error:compiled kernels:RuntimeWarning")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_cache, "warned", False)
    return tmp_path / "nbcnn"


def times(n):
    """A kernel as another process has it: nothing is compiled yet."""
    @njit
    def product(x):
        return n * x
    return product


def found(kernel):
    return sum(kernel.stats.cache_hits.values())


def kept(folder):
    file, = folder.iterdir()
    return file


def run(n, hits=0):
    kernel = times(n)
    assert kernel(7) == 7 * n and found(kernel) == hits


def test_found_by_the_next_process(folder):
    run(2)
    run(2, hits=1)
    assert kept(folder).name.startswith("product-")


def test_arguments_and_closures_tell_kernels_apart(folder):
    run(2)
    run(3)
    kernel = times(2)
    assert kernel(0.5) == 1.0 and found(kernel) == 0
    assert len(list(folder.iterdir())) == 3
    for n in (2, 3):
        run(n, hits=1)


@pytest.mark.parametrize("where, name, value", [
    (numba, "__version__", "0.0"), (config, "BOUNDSCHECK", 1), (sys.implementation, "cache_tag", "cpython-00")])
def test_whatever_else_decides_the_code_tells_kernels_apart(monkeypatch, where, name, value):
    run(2)
    monkeypatch.setattr(where, name, value)
    run(2)
    run(2, hits=1)


def test_an_edited_source_is_compiled_anew(tmp_path):
    source = tmp_path / "kernels.py"

    def call(text):
        source.write_text(f"from nbcnn.kernels.cpu.kernel_cache import njit\nN = {text}\n@njit\ndef f(x):\n    return N * x\n")
        names = {"__name__": "kernels"}
        exec(compile(source.read_text(), source, "exec"), names)
        return names["f"](7), found(names["f"])
    assert [call(n) for n in (2, 2, 3, 2)] == [(14, 0), (14, 1), (21, 0), (14, 1)]


def test_an_edited_source_that_a_kernel_takes_code_from_is_compiled_anew(tmp_path, monkeypatch):
    source = tmp_path / "kernels.py"
    source.write_text("@njit\ndef f(x):\n    return x + tile.range_inside(0, 1, 5, 3)[1]\n")

    def call():
        names = {"__name__": "kernels", "njit": njit, "tile": tile}
        exec(compile(source.read_text(), source, "exec"), names)
        return names["f"](7), found(names["f"])
    assert [call(), call()] == [(10, 0), (10, 1)]      # the range is 0 <= k < 3
    monkeypatch.setitem(kernel_cache.SOURCES, tile.__file__, "the sum of another text")
    assert [call(), call()] == [(10, 0), (10, 1)]


def damage(kind, data):
    """The bytes with something wrong."""
    rng, data = random.Random(kind), bytearray(data)
    if kind == "empty":
        data = b""
    elif kind == "half":
        del data[len(data) // 2:]
    elif kind == "longer":
        data += b"\0"
    elif kind == "zeros":
        data[len(data) // 2:] = bytes(len(data) - len(data) // 2)
    elif kind == "garbage":
        data = rng.randbytes(len(data))
    elif kind == "first bit":
        data[0] ^= 1
    elif kind == "last bit":
        data[-1] ^= 128
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def test_a_damaged_file_is_compiled_anew(folder):
    run(2)
    file = kept(folder)
    content = file.read_bytes()
    for kind in ("empty", "longer", "zeros", "garbage", "first bit", "last bit", *range(50)):
        file.write_bytes(damage(kind, content))
        assert kernel_cache.read(file) is None, kind
    for kind in ("half", "some bit"):
        file.write_bytes(damage(kind, content))
        run(2)
        assert kept(folder) == file
        run(2, hits=1)


def test_a_file_of_another_kernel_is_not_believed(folder):
    run(2)
    file = kept(folder)
    run(3)
    other, = set(folder.iterdir()) - {file}
    file.write_bytes(other.read_bytes())
    run(2)
    run(2, hits=1)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_what_is_not_ours_is_not_unpickled(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(2)
    kept(folder).write_bytes(pickle.dumps(Trap()))
    run(2)
    assert not os.path.exists("ran")


def test_a_directory_in_its_place_is_one_warning(folder):
    run(2)
    file = kept(folder)
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept, .*product-.*: Is a directory; NUMBA_CACHE_DIR"):
        run(2)
    run(2)      # no second one, which would be an error
    assert kept(folder) == file     # nothing temporary


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "file"))


def no_home(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


class FullDisk(io.FileIO):
    """A file of which half is written."""

    def write(self, data):
        super().write(data[:len(data) // 2])
        raise OSError(28, "No space left on device")


def full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(user_cache, "open", FullDisk, raising=False)


def read_only(monkeypatch, tmp_path):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(user_cache, "open", refused, raising=False)


@pytest.mark.parametrize("obstacle, reason", [(no_folder, "Not a directory"), (no_home, "No home folder"),
                                              (full_disk, "No space left on device"), (read_only, "Permission denied")])
def test_unwritable_is_one_warning_and_nothing_is_left(folder, monkeypatch, tmp_path, obstacle, reason):
    obstacle(monkeypatch, tmp_path)
    with pytest.warns(RuntimeWarning, match=f": {reason}; NUMBA_CACHE_DIR can name another folder") as warned:
        run(2)
        run(3)
    assert len(warned) == 1
    assert not [path for path in tmp_path.rglob("*") if path.name != "file" and path != folder]


def test_what_cannot_be_rebuilt_is_compiled(folder, monkeypatch):
    """A later release of Numba may put its pieces together in another way."""
    run(2)
    monkeypatch.setattr(kernel_cache.CompileResult, "_rebuild", lambda context: None)
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept, .*TypeError"):
        run(2)


def test_those_used_last_stay(folder, monkeypatch):
    monkeypatch.setattr(kernel_cache, "KEEP", 3)
    run(2)
    run(3)
    dead = folder / f".of-a-killed-writer{kernel_cache.ENDING}"
    dead.write_bytes(b"half")
    for file in folder.iterdir():
        os.utime(file, (file != dead,) * 2)
    run(2, hits=1)
    run(4)
    assert len(list(folder.iterdir())) == 3 and not dead.exists()
    run(5)
    assert len(list(folder.iterdir())) == 3
    for n in (2, 4, 5):
        run(n, hits=1)


def test_every_kernel_is_kept_so_and_nobody_elses():
    caches = [type(value._cache) for name, module in sys.modules.items() if name.startswith("nbcnn.kernels.cpu.")
              for value in vars(module).values() if isinstance(value, Dispatcher)]
    assert caches.count(kernel_cache.KernelCache) > 20 and FunctionCache not in caches
    assert type(numba.njit(cache=True)(damage)._cache) is FunctionCache


def test_uncompiled_kernels(monkeypatch):
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert times(2)(7) == 14


# ---- on several cores

@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threading, "active_count", lambda: 1)      # other tests may have left some that sleep


def some_calls():
    return [Call(times(n), (7,)) for n in range(2, 10)]


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled by several processes on Linux only")
def test_other_processes_compile_too(folder, cores):
    """All are compiled, some of them by another process, whose files are read when they are called."""
    calls = some_calls()
    compile_calls([*calls, *calls])     # each once, however often it is called
    here = [call for call in calls if call.kernel.signatures]
    assert 0 < len(here) < len(calls) == len(list(folder.iterdir()))
    for n, call in enumerate(calls, 2):
        assert call.kernel(7) == 7 * n and found(call.kernel) == (call not in here)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_kernels_of_one_factory_have_names_of_their_own(folder, cores):
    """Whichever process compiled them: of two symbols of one name, one would be called for the other."""
    calls = some_calls()
    compile_calls(calls)
    assert [call.kernel(7) for call in calls] == [7 * n for n in range(2, 10)]
    names = {compiled.fndesc.unique_name for call in calls for compiled in call.kernel.overloads.values()}
    assert len(names) == len(calls)


def test_what_is_kept_needs_no_other_process(folder, cores, monkeypatch):
    for n in range(2, 10):
        run(n)
    monkeypatch.setattr(os, "fork", None)
    compile_calls(some_calls())


@pytest.mark.parametrize("name, value", [("get_num_threads", lambda: 1), ("active_count", lambda: 2)])
def test_one_core_or_several_threads_fork_nothing(folder, cores, monkeypatch, name, value):
    monkeypatch.setattr(numba if name == "get_num_threads" else threading, name, value)
    monkeypatch.setattr(os, "fork", None)
    compile_calls(some_calls())
    assert not folder.exists()


def test_another_process_that_ends_early_loses_nothing(folder, cores, monkeypatch):
    parent, compile = os.getpid(), Dispatcher.compile
    monkeypatch.setattr(Dispatcher, "compile", lambda *args: compile(*args) if os.getpid() == parent else os._exit(3))
    calls = some_calls()
    compile_calls(calls)
    assert [call.kernel(7) for call in calls] == [7 * n for n in range(2, 10)]


def test_where_no_process_can_be_started_this_one_compiles(folder, cores, monkeypatch):
    def fork():
        raise BlockingIOError("no more processes")
    monkeypatch.setattr(os, "fork", fork)
    calls = some_calls()
    compile_calls(calls)
    assert [call.kernel(7) for call in calls] == [7 * n for n in range(2, 10)]


@pytest.mark.skipif(sys.platform != "linux", reason="SIGCHLD is of POSIX systems")
def test_processes_that_nobody_waits_for(folder, cores):
    """Where SIGCHLD is ignored, the system forgets a process as soon as it ends."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        compile_calls(some_calls())
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert len(list(folder.iterdir())) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled by several processes on Linux only")
def test_an_interrupt_ends_the_other_processes(folder, cores, monkeypatch):
    parent = os.getpid()

    def compile(*args):
        if os.getpid() == parent:
            raise KeyboardInterrupt
        time.sleep(60)      # longer than anybody waits
    monkeypatch.setattr(Dispatcher, "compile", compile)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compile_calls(some_calls())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert time.monotonic() - started < 30


def test_unwritable_is_one_warning_for_all_processes(folder, cores, capfd):
    folder.write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept") as caught:
        compile_calls(some_calls())
    assert len(caught) == 1 and capfd.readouterr() == ("", "")


FIRST = """
import os
import numpy as np
import nbcnn
fork, children = os.fork, []
os.fork = lambda: children.append(fork()) or children[-1]
model = nbcnn.Sequential([nbcnn.Flatten(), nbcnn.Linear(12, 3)])
assert model.predict(np.ones((2, 3, 2, 2), np.float32)).shape == (2, 3) and len(children) == 1
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled by several processes on Linux only")
def test_the_first_thing_that_a_process_does(tmp_path):
    """A process is forked before any kernel ran, says nothing and leaves nothing behind."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True,
                          env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
