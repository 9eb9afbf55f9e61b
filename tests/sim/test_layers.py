"""Every layer on a simulated GPU: the CPU's results, but for some roundings."""
import pytest

import checks
from arrays import in_turns
from cases import LAYERS

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("dtype, case", in_turns([(case,) for case in LAYERS]), ids=lambda value: getattr(value, "__name__", str(
    value)))
def test_equals_cpu(dtype, case):
    checks.check_equals_cpu(case, dtype)
