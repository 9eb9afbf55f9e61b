"""Signals: those that ask a training to stop; and Ctrl-C outside of a command's main function.

That is while a command's modules are imported, and while Python comes to its end. Nothing is to be kept then, so the process ends
at once, without Python's traceback. Other programs that import nbcnn keep what they do on Ctrl-C.
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


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP, as a training takes them: the first is noted, a second ends the process at once.

    Parameters
    ----------
    leave : callable
        What is to be done when a signal comes before `training` is set. Nothing is to be finished then, and an exception would come
        from within the compiler, which may ignore it: the process ends there.

    Attributes
    ----------
    number : int or None
        Of the signal that has come.
    training : bool
    """

    def __init__(self, leave):
        self.leave, self.number, self.training, self.handlers = leave, None, False, {}

    def listen(self):
        """Handle the signals from now on."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):        # the last one is not everywhere, and ignored under nohup
            number = getattr(signal, name, None)
            if number and (name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN):
                self.handlers[number] = signal.signal(number, self._handle)

    def restore(self):
        """Let them do what they did before."""
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def _handle(self, number, frame):
        if not self.training:
            self.leave()
            os._exit(128 + number)
        self.number = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if is_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
