"""Whatever ends a run, at whatever file operation or moment: nothing is lost, other or blocked."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_crash_leaves_a_way_on(tmp_path, full, seed):
    """Every eleventh operation with each event, or every one and 270 kills at random moments."""
    every, kills = (1, 270) if full else (11, 6)
    done = subprocess.run(
        [sys.executable, str(TESTS / "campaign" / "crashes.py"), str(tmp_path), str(every), str(seed), str(kills)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(TESTS.parent), "NUMBA_NUM_THREADS": "1",
                                             "NUMBA_THREADING_LAYER": "workqueue"})      # which can be forked
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found["counts"], f"{found['seconds']} s")
    assert found["wrong"] == []
    assert min(found["counts"].values()) >= (150 if full else 6)
