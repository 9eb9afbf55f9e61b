"""The suite itself: its tests can fail, and pass, however it is started."""
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbcnn

TESTS = Path(__file__).parent


@pytest.mark.parametrize("path", [str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py")
                                  if not path.name.startswith(("test_", "conftest")) and "assert " in path.read_text()])
def test_asserts_of_helpers_hold_without_asserts(path):
    """`python -O` takes away those that pytest does not rewrite."""
    module = path.removesuffix(".py").replace(os.sep, ".")
    assert type(importlib.util.find_spec(module).loader).__name__ == "AssertionRewritingHook"


def test_documentation_examples_print_instead_of_asserting():
    texts = {path: path.read_text() for path in Path(nbcnn.__file__).parent.rglob("*.py")}
    assert [path for path, text in texts.items() if re.search(r"^ *(>>>|\.\.\.) +assert\b", text, re.MULTILINE)] == []
    assert sum(">>> " in text for text in texts.values()) > 10


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_tests_of_signals_pass_where_signals_are_ignored():
    """As in the background, where SIGINT is ignored, and under nohup, where SIGHUP is."""
    ignoring = ("import os, signal, sys; [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)];"
                "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    done = subprocess.run([sys.executable, "-c", ignoring, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_interrupts.py",
                           "test_train.py", "-k", "command1 or 1-129"], cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-3000:]
