"""Files in the user's cache folder, kept only to save time: a file that is lost or damaged is made again."""
import contextlib
import os
import sys
import uuid
from pathlib import Path

from nbcnn.files import naming


def folder():
    """The folder nbcnn in the user's cache folder, which is where the platform has it; FileNotFoundError without a home folder."""
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
    """The paths of the files with an ending, the one used last first. Files that killed processes left are among them."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(ending):
                with contextlib.suppress(FileNotFoundError):        # another process has just replaced or removed it
                    found.append((entry.stat().st_mtime_ns, entry.path))
    return [Path(path) for _, path in sorted(found, reverse=True)]


def used(path):
    """Note that a file is used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def write(path, save, keep):
    """Write a file, completely or not at all: `save` writes the content to an open file.

    Of the files with its ending in the folder, `keep` stay, those used last.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")     # with the same ending, so that it does not stay for ever
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
