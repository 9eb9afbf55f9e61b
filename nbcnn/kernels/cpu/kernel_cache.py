"""How kernels are compiled, and kept for the next process: a file each, believed only where its sum is right.

Numba's own cache unpickles whatever lies in its files, and raises where it can write none. What it asks a cache for, and how
it takes compiled code apart and puts it together, has no public name; all that depends on that is here.
"""
import contextlib
import functools
import hashlib
import itertools
import os
import pickle
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

import numba
from numba import config
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from nbcnn import user_cache
from nbcnn.files import require_file, said
from nbcnn.kernels.cpu.parallel import PARALLEL, on_threads, require_threads

ENDING = ".kernel"
KEEP = 1000         # files, of about 50 KB; training a network takes 30 of them
SUM = hashlib.sha256().digest_size
# Of the kernels' sources when they are imported: what a factory makes may be compiled hours later, when they were edited.
SOURCES = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(__file__).parent.glob("*.py")}

CHOICES = {}        # by name of a file that kernels take code from: what it has chosen for this process, besides Numba's target


def number_apart():
    """Let Numba number the functions that it compiles here from where no other process does.

    The number is all that tells the symbols of two kernels of one factory apart, and of their parallel loops. Where two processes
    have compiled one each, under the same number, a third one that loads both would run the first in the place of the second.
    """
    FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(6), "little"))


number_apart()


def njit(function=None, **options):
    """`numba.njit`, with or without options, keeping what it compiles. `parallel` and `allocates` mean what `parallel.py` says."""
    if function is None:
        return functools.partial(njit, **options)
    parallel, allocates = options.pop("parallel", False), options.pop("allocates", False)
    if parallel and PARALLEL and not config.DISABLE_JIT:
        body, start = on_threads(function, allocates, **options)
        # Without the GIL: where tracemalloc is on, a thread that allocates waits for it, and would do so for ever.
        kernel = numba.njit(no_cfunc_wrapper=True, nogil=True)(start)
        kernel.body = body
    else:
        kernel = numba.njit(**options)(function)
    if not config.DISABLE_JIT:
        kernel._cache = KernelCache(function)
    return kernel


def folder():
    """Where compiled kernels are kept."""
    return Path(config.CACHE_DIR) / "nbcnn" if config.CACHE_DIR else user_cache.folder() / "kernels"


def read(path):
    """What a file keeps, or None where it is missing, damaged or was written under another name."""
    try:
        require_file(path)
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    return data[SUM:] if data[:SUM] == _sum(path, data[SUM:]) else None


def compile_calls(calls):
    """Compile what these calls need, on as many cores as kernels run on: in this process, and in others forked from it.

    What another one compiles comes here by its file, when the kernel is called. Where it does not, and where it cannot be shared
    out, a kernel is compiled when it is called, like any other.
    """
    wanted = {(call.kernel, tuple(map(call.kernel.typeof_pyval, call.arguments))): None for call in calls
              if isinstance(getattr(call.kernel, "_cache", None), KernelCache)}
    missing = [(kernel, types) for kernel, types in wanted
               if types not in kernel.overloads and not kernel._cache.holds(types, kernel.targetctx)]
    # Where this process has several threads, another one may keep a lock for ever that one of them held.
    if sys.platform != "linux" or threading.active_count() > 1 or numba.get_num_threads() < 2 or not 2 <= len(missing) < 256:
        return
    missing.sort(key=lambda item: item[0]._cache.length, reverse=True)     # the longest first, by and large
    turns, end, parent, children = *os.pipe(), os.getpid(), []
    os.write(end, bytes(range(len(missing))))
    os.close(end)

    def work():
        """Compile one after another, of those that no process has begun with."""
        while (turn := os.read(turns, 1)) and parent in (os.getpid(), os.getppid()):
            kernel, types = missing[turn[0]]
            kernel.compile(types)

    try:
        with contextlib.suppress(OSError):      # no more processes are allowed
            for _ in range(min(numba.get_num_threads(), len(missing)) - 1):
                children.append(_fork(work))
        work()
        while children:
            _wait(children[-1])
            children.pop()
    finally:
        os.close(turns)
        for child in children:      # what interrupts this process ends them too
            os.kill(child, signal.SIGKILL)
            _wait(child)


def _fork(work):
    """Start a process that does this and nothing else; its number."""
    kept = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # Python's, of threads that libraries have
            child = os.fork()
        if child:
            return child
        try:
            number_apart()
            for number in kept:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, kept)
            warnings.simplefilter("ignore")     # this process says it too
            work()
        finally:
            os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, kept)


def _wait(child):
    """Wait until a process has ended."""
    with contextlib.suppress(ChildProcessError):        # nobody is told of it where SIGCHLD is ignored
        os.waitpid(child, 0)


class KernelCache(NullCache):
    """What Numba asks for the compiled code of a function. Nothing that happens to the files keeps a kernel from running."""

    def __init__(self, function):
        self._function, self._source = function, _sum_of_source(function.__code__.co_filename)

    @property
    def length(self):
        """How long the function is."""
        return len(self._function.__code__.co_code)

    @functools.cached_property
    def _other_sources(self):
        """The sums of what the function takes code from: walked once, though every look for a file asks for them."""
        return _sums_of_sources(self._function.__globals__)

    def holds(self, sig, target_context):
        """Whether there is a file of the function compiled for these types."""
        try:
            return self._path(sig, target_context.codegen()).exists()
        except OSError:     # there is no home folder
            return False

    def load_overload(self, sig, target_context):
        """The function compiled for these types, or None."""
        target_context.refresh()
        require_threads()
        try:
            path = self._path(sig, target_context.codegen())
        except OSError:     # there is no home folder
            return None
        payload = read(path)
        if payload is None:
            return None
        user_cache.used(path)
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception as error:      # not damage, whose sum would be wrong
            return _warn(error)

    def save_overload(self, sig, compiled):
        """Keep the function compiled for these types."""
        if compiled.library.has_dynamic_globals:        # addresses in this process
            return
        try:
            path = self._path(sig, compiled.codegen)
            payload = dumps(compiled._reduce())
            user_cache.write(path, lambda file: file.write(_sum(path, payload) + payload), KEEP)
        except Exception as error:
            _warn(error)

    def _path(self, sig, codegen):
        """The file of the function compiled for these types: a name that changes with all that decides what the code is."""
        function = self._function
        closure = [cell.cell_contents for cell in function.__closure__ or ()]       # numbers, which repr tells apart
        chosen = [CHOICES[name] for name, _ in self._other_sources if name in CHOICES]
        key = (numba.__version__, sys.implementation.cache_tag, config.BOUNDSCHECK, codegen.magic_tuple(), self._source,
               self._other_sources, *chosen, function.__module__, function.__qualname__,
               function.__code__.co_firstlineno, closure, sig)
        return folder() / f"{function.__name__}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}{ENDING}"


warned = False      # whether this process has said that it can keep nothing


def _warn(error):
    """Say, once in a process, why every process compiles its kernels."""
    global warned
    if not warned:
        warned = True
        reason = said(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        warnings.warn(f"compiled kernels cannot be kept, so every start compiles them: {reason}; NUMBA_CACHE_DIR can name another "
                      "folder", RuntimeWarning, stacklevel=2)


def _sums_of_sources(names, found=None):
    """The sums, by file name, of this package's files that these names come from, that the names in those come from, and so on."""
    found = {} if found is None else found
    for value in list(names.values()):
        module = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", ""))
        file = getattr(module, "__file__", None)
        if file in SOURCES and Path(file).name not in found:
            found[Path(file).name] = SOURCES[file]      # not the whole path: code is the same wherever its source lies
            _sums_of_sources(vars(module), found)
    return sorted(found.items())


def _sum_of_source(path):
    return SOURCES.get(path) or hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _sum(path, payload):
    """Binds a payload to the name of its file."""
    found = hashlib.sha256(path.name.encode())
    found.update(payload)
    return found.digest()
