"""Ctrl-C outside of a command's main function: while its modules are imported, and while Python comes to its end.

Nothing is to be kept then, so the process ends at once, without Python's traceback. Other programs that import nbcnn keep what they
do on Ctrl-C.
"""
import os
import signal
import sys


def end(number, frame):
    """Handles a signal: end the process, with the status that shells give it."""
    os._exit(128 + number)


def is_command(argv, orig_argv):
    """Whether a process was started as the command, `nbcnn` or `python -m nbcnn...`, by what `sys` says of it."""
    if argv[:1] == ["-m"]:      # while Python imports what is to be run
        module = orig_argv[orig_argv.index("-m") + 1] if "-m" in orig_argv else ""
        return module.split(".")[0] == "nbcnn"
    return os.path.basename(argv[0] if argv else "") in ("nbcnn", "nbcnn.exe")


if is_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
