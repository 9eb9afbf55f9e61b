"""Settings of the whole suite: Hypothesis profiles, the torch marker; what tests of signals need."""
import importlib.util
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Kernels for bfloat16 run everywhere as they are defined. NBCNN_UNIT= lets them run on this processor's unit.
os.environ.setdefault("NBCNN_UNIT", "emulated")

# Asserts of modules that tests share say what was compared, and are there under `python -O` too.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob("[!_]*.py")), "campaign")

# The default deadline of 200 ms would time the compiler, not the kernel.
COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("default", max_examples=40, **COMMON)
settings.register_profile("small", max_examples=8, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=500, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def web(monkeypatch):
    """A web server on this machine that does what the test wants."""
    from web import Web
    monkeypatch.setenv("no_proxy", "*")
    with Web() as server:
        yield server


@pytest.fixture
def signals():
    """SIGINT and SIGHUP as at a terminal, in processes started here too: nohup or & have them ignored, which is inherited."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): action for name, action in defaults.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, action) for number, action in numbers.items()}
    yield
    for number, action in before.items():
        signal.signal(number, action)


def pytest_collection_modifyitems(config, items):
    if "campaign" not in config.getoption("-m"):
        items[:] = [item for item in items if not item.get_closest_marker("campaign")]


def pytest_runtest_setup(item):
    if item.get_closest_marker("torch") and not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")     # from here, so that all are one line of the summary
