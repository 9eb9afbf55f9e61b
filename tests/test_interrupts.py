"""Ctrl-C before and after a command's main function."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbcnn import cli, interrupts


@pytest.mark.parametrize("argv, orig_argv, expected", [
    (["-m"], ["python", "-m", "nbcnn", "train"], True), (["-m"], ["python", "-u", "-m", "nbcnn.train"], True),
    (["/usr/bin/nbcnn", "train"], ["python", "/usr/bin/nbcnn", "train"], True),
    (["-m"], ["python", "-m", "pytest", "-m", "nbcnn"], False), (["-m"], ["python", "-mnbcnn"], False),
    (["mine.py", "-m", "nbcnn"], ["python", "mine.py", "-m", "nbcnn"], False), ([""], ["python"], False), ([], [], False),
])
def test_the_command_is_known_by_how_it_was_started(argv, orig_argv, expected):
    assert interrupts.is_command(argv, orig_argv) == expected


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("command, status", [(["-m", "nbcnn.train"], 130), (["-m", "nbcnn"], 130), (["nbcnn"], 130),
                                             (["other.py"], -signal.SIGINT)])
def test_ctrl_c_while_modules_are_imported(tmp_path, signals, command, status):
    """A numba that takes for ever to import stands in for the real one; other programs keep Python's traceback."""
    (tmp_path / "numba.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(100)\n")
    for name in ("nbcnn", "other.py"):
        (tmp_path / name).write_text("from nbcnn.__main__ import main\nmain()\n")
    with subprocess.Popen([sys.executable, *command], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(cli.__file__).parents[1]}"}) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == status and ("KeyboardInterrupt" in error) == (status != 130)
    assert status != 130 or error == ""


def test_within_a_command_ctrl_c_is_an_exception_and_afterwards_the_end_again(signals, monkeypatch):
    ended, before = [], signal.getsignal(signal.SIGINT)

    def command(argv):
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(interrupts.os, "_exit", ended.append)
    try:
        signal.signal(signal.SIGINT, interrupts.end)
        assert cli.run("nbcnn test", command, []) == 130 and ended == []
        signal.raise_signal(signal.SIGINT)
        assert ended == [130]
    finally:
        signal.signal(signal.SIGINT, before)
