"""Every layer on a simulated GPU: the CPU's results, but for some roundings."""
import pytest

import checks
from arrays import mostly_float32
from cases import LAYERS

pytestmark = pytest.mark.sim


def name(value):
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("dtype, case", mostly_float32(LAYERS, lambda case: case.layer), ids=name)
def test_equals_cpu(dtype, case):
    checks.check_equals_cpu(case, dtype)
