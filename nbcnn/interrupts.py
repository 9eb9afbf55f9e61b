"""Signals: those that ask a training to stop; and Ctrl-C before and after a command's main function.

Before, modules are imported; after, Python ends. There is nothing to be kept then, so the process ends at once, without Python's
traceback. Other programs that import nbcnn handle Ctrl-C as they did.
"""
import os
import signal
import sys


def end(number, frame):
    """Handle a signal: end the process, with the exit status that shells expect."""
    os._exit(128 + number)


def is_command(argv, orig_argv):
    """Whether these arguments, of `sys`, are those of the command `nbcnn` or `python -m nbcnn...`."""
    if argv[:1] == ["-m"]:      # while Python imports what is to be run
        module = orig_argv[orig_argv.index("-m") + 1] if "-m" in orig_argv else ""
        return module.split(".")[0] == "nbcnn"
    return os.path.basename(argv[0] if argv else "") in ("nbcnn", "nbcnn.exe")


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP during a training: the first is noted as `number`, a second ends the process at once.

    While `training` is False there is nothing to finish, and an exception would come from within the compiler, which may ignore it.
    A signal then calls `leave` and ends the process.
    """

    def __init__(self, leave):
        self.leave, self.number, self.training, self.handlers = leave, None, False, {}

    def listen(self):
        """Begin to handle the signals."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):        # the last one is not everywhere, and ignored under nohup
            number = getattr(signal, name, None)
            if number and (name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN):
                self.handlers[number] = signal.signal(number, self._handle)

    def restore(self):
        """Handle the signals as before `listen`."""
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
