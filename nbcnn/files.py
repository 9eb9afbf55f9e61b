"""What files must be before they are opened."""
import errno
import os
import stat


def require_file(path):
    """Raise an OSError that names it unless it is a regular file, or a link to one: pipes and devices may wait for ever.

    Parameters
    ----------
    path : path
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
