"""Files: checked before they are read, written so that they outlive a crash; folders locked by one process; errors with names."""
import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None

UNSUPPORTED = errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL      # the errors of disks without locks


def require_file(path):
    """Raise an OSError with the path unless it is a regular file, or a link to one: reading a pipe or a device may never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


@contextlib.contextmanager
def naming(path):
    """Every OSError raised in the block names this file: by itself it may name none, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        with contextlib.suppress(AttributeError):       # None would be shown
            del error.filename2
        raise


@contextlib.contextmanager
def about(name):
    """The message of every ValueError raised in the block begins with this name, of a file or an option."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def said(error):
    """An exception's message for people who do not know Python."""
    if isinstance(error, OSError) and error.filename:
        file = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return f"{file}: {error.strerror or ' '.join(map(str, error.args)) or type(error).__name__}"
    return str(error) or type(error).__name__


def write_atomically(path, data):
    """Replace a file by bytes. At any moment, even after a power cut, either the old or the new file is there, complete.

    A link is followed; what is no regular file, such as a device, is refused. The new file has the old one's mode, access list and
    user attributes, and its owner and group where the process may set them. Where it may not, the group gets no rights. A process
    that is killed meanwhile leaves a temporary file: see `remove_temporaries`.
    """
    path = Path(os.path.realpath(path))
    with naming(path):
        old = os.stat(path) if path.exists() else None
        if old and not stat.S_ISREG(old.st_mode):
            raise OSError(errno.EEXIST, "not a regular file")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        mode = 0o600 if old else 0o666      # it is never more readable than the file it becomes
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(data)
                file.flush()
                if old and hasattr(os, "fchown"):       # elsewhere modes mean little
                    _make_like(file.fileno(), path, old)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def _make_like(descriptor, path, old):
    """Give a file the owner, attributes and mode of the one at `path`, whose `os.stat` is `old`."""
    try:
        os.fchown(descriptor, old.st_uid, old.st_gid)
    except OSError:         # only root may change the owner, but a process may choose among its own groups
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, old.st_gid)
    names = []
    with contextlib.suppress(AttributeError, OSError):      # not every system has them, nor every disk
        names = os.listxattr(path)
    for name in names:
        if name.startswith("user.") or name == "system.posix_acl_access":
            os.setxattr(descriptor, name, os.getxattr(path, name))
    os.fchmod(descriptor, old.st_mode & (0o777 if os.fstat(descriptor).st_gid == old.st_gid else 0o707))


def remove_temporaries(folder, names):
    """Remove what killed processes left in a folder while they wrote files; `names` is a regular expression for these files.

    To be called only when no other process is writing them. What cannot be removed stays, as it does no harm.
    """
    for file in Path(folder).iterdir():
        if re.fullmatch(rf"\.({names})\.[0-9a-f]{{8}}", file.name) and file.is_file():
            with contextlib.suppress(OSError):
                file.unlink()


def make_folder(path):
    """Make a folder, and those above it, so that it outlives a power cut. False where it was there before."""
    path = Path(path)
    try:
        path.mkdir()
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent)
        return make_folder(path)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    try:
        with naming(path):
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise
    return True


def sync_folder(path):
    """Make sure that what was made, renamed or removed in a folder outlives a power cut."""
    if hasattr(os, "O_DIRECTORY"):      # elsewhere folders cannot be opened
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Lock:
    """Locks a folder for this process, until `release`; the system releases it when the process dies.

    Locked is a file in the folder; BlockingIOError where another process, or another Lock of this one, has locked it. A mark in
    that file outlives a crash: it says that there is nothing worth keeping in the folder yet. Where files cannot be locked, as on
    Windows and on some network disks, `held` is False, and there is neither lock nor mark.
    """
    NAME, MARK = ".nbcnn.lock", b"nbcnn: "

    def __init__(self, folder):
        self.path = Path(folder) / self.NAME
        self.held = False
        while fcntl and not self.held:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                with naming(self.path):
                    status = os.fstat(self.descriptor)
                    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or \
                            os.pread(self.descriptor, len(self.MARK), 0) not in (b"", self.MARK):
                        raise OSError(errno.EEXIST, "not a lock of nbcnn; move it away")
                    fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):    # another process may have removed the file since it was opened
                    self.held = os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self.path.unlink()
                return
            finally:
                if not self.held:
                    os.close(self.descriptor)

    @property
    def marked(self):
        """Whether the mark is there: from this process, or from one that was killed."""
        return self.held and os.fstat(self.descriptor).st_size > 0

    def mark(self, text):
        """Write the mark, with a text for people who find the file; "" removes the mark."""
        if self.held and (text or self.marked):
            with naming(self.path):
                data = self.MARK + text.encode() if text else b""
                os.pwrite(self.descriptor, data, 0)     # over an older mark, so that there is one at every moment
                os.ftruncate(self.descriptor, len(data))
                os.fsync(self.descriptor)

    def release(self):
        """Unlock the folder, and remove the file unless it is marked."""
        if self.held:
            if not self.marked:
                with contextlib.suppress(OSError):
                    self.path.unlink()      # while it is locked, so that no other process has it
            self.held = False
            os.close(self.descriptor)
