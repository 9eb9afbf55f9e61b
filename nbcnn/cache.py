"""`nbcnn cache`, or `python -m nbcnn.cache`: what is kept to save time, compiled kernels and drawn images."""
import contextlib
import sys
from pathlib import Path

import nbcnn
from nbcnn import cli, user_cache
from nbcnn.datasets.shapes import ENDING, read
from nbcnn.kernels.cpu import kernel_cache
from nbcnn.table import format_table

NAME = "nbcnn cache"


def main(argv=None):
    """Show or remove, and return the exit status."""
    return cli.run(NAME, _main, argv)


def _main(argv):
    kinds = list(_kinds())
    if _parser().options(argv).get("clear"):
        cli.put(_clear(kinds))
    else:
        cli.put(format_table(["what", "files", "MB", "damaged", "where"], [
            [what, str(len(files)), f"{sum(map(_size, files)) / 1e6:.1f}", str(sum(check(file) is None for file in files)),
             str(folder)] for what, folder, files, check in kinds]))
    return 0


def _kinds():
    """For each kind of file that is kept: (its name, the folder, the files, a function that gives None for a damaged file)."""
    folder = kernel_cache.folder()
    yield "compiled kernels", folder, user_cache.files(folder, kernel_cache.ENDING), kernel_cache.read
    folder = user_cache.folder()
    yield "images of the data set shapes", folder, user_cache.files(folder, ENDING), read
    folder = Path(nbcnn.__file__).parent / "kernels"
    if files := sorted(folder.glob("*/__pycache__/*.nb[ic]")):
        yield "Numba's own: for a GPU, or of an older nbcnn", folder, files, _size


def _clear(kinds):
    """Remove the files, and folders that are empty afterwards; return a sentence that says so."""
    removed, failed = [], None
    for _, folder, files, _ in kinds:
        for file in files:
            size = _size(file)
            try:
                file.unlink(missing_ok=True)
                removed.append(size)
            except OSError as error:
                failed = error
        with contextlib.suppress(OSError):
            folder.rmdir()
    if failed:
        raise failed
    return f"removed {len(removed)} files, {sum(removed) / 1e6:.1f} MB"


def _size(file):
    """Bytes; 0 where another process has just removed it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _parser():
    parser = cli.Parser(
        NAME, "Show what is kept to save time: how much of it there is, and where. What is missing or damaged is made again.",
        """\
  nbcnn cache
  nbcnn cache --clear""",
        "0 done, 2 cannot be done, 130 Ctrl-C")
    parser.add("--clear", "remove all of it, also what killed processes have left", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
