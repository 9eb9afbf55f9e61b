"""Every layer on a simulated GPU: the CPU's results, but for some roundings."""
import numpy as np
import pytest

import checks
from cases import LAYERS

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_cpu(case, dtype):
    checks.check_equals_cpu(case, dtype)
