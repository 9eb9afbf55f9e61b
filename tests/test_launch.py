"""How OpenMP is started."""
import os
import subprocess
import sys

import pytest

from nbcnn.kernels.cpu.launch import SPINS


def shown(code, **environment):
    """What GNU OpenMP says of its settings when it is loaded: the lines that name the number of spins."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, "OMP_DISPLAY_ENV": "verbose", **environment},
                          capture_output=True, text=True, check=True)
    if "OPENMP DISPLAY ENVIRONMENT" not in done.stderr:
        pytest.skip("Numba's OpenMP is not GNU's here")
    return [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line], done.stdout


RUN = "import os, numpy, nbcnn; nbcnn.kernels.relu_forward(numpy.ones((2, 2), 'f4')); print(os.environ.get('GOMP_SPINCOUNT'))"


def test_threads_that_wait_soon_give_their_core_away():
    assert shown(RUN) == ([str(SPINS)], "None\n")          # and child processes are left to choose for themselves


def test_what_the_user_has_set_stays():
    assert shown(RUN, GOMP_SPINCOUNT="77") == (["77"], "77\n")
    assert shown(RUN, OMP_WAIT_POLICY="PASSIVE")[0] == ["0"]       # what GNU OpenMP makes of it
