"""Files in the user's cache folder, kept to save time alone: whatever happens to one, its content is made anew."""
import contextlib
import os
import sys
import uuid
from pathlib import Path

from nbcnn.files import naming


def folder():
    """The user's cache folder by the platform's custom, in it a folder of our own.

    Raises
    ------
    FileNotFoundError
        When the user has no home folder.
    """
    if sys.platform == "win32":
        name = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        name = os.environ.get("XDG_CACHE_HOME") or "~/Library/Caches"
    else:
        name = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.path.expanduser(name)) / "nbcnn"
    if not path.is_absolute():
        raise FileNotFoundError(2, "No home folder", name)
    return path


def files(folder, ending):
    """The paths of the files of a kind, by the ending of their names, the one used last first; what dead writers left included."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(ending):
                with contextlib.suppress(FileNotFoundError):        # another process has just replaced or removed it
                    found.append((entry.stat().st_mtime_ns, entry.path))
    return [Path(path) for _, path in sorted(found, reverse=True)]


def used(path):
    """Note that a file was used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def write(path, save, keep):
    """Write a file, all or nothing, and remove the files of its kind that were used longest ago.

    Parameters
    ----------
    path : Path
    save : callable
        Of the open file.
    keep : int
        How many files of this folder with the same ending may stay.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")     # of the same kind: what dead writers leave goes in time
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                save(file)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    for other in files(path.parent, path.suffix)[keep:]:
        with contextlib.suppress(OSError):
            os.unlink(other)
