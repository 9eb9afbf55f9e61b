"""The campaign's size and seed.

A part of every survey runs with the other tests; `python -m pytest -m campaign` runs all of it. Another seed draws other cases:
NBCNN_CAMPAIGN_SEED=20261124 python -m pytest tests/campaign
"""
import os

import pytest


@pytest.fixture(params=["part", pytest.param("all", marks=pytest.mark.campaign)])
def full(request):
    """Whether all cases are to be tried, or a part that takes seconds."""
    return request.param == "all"


@pytest.fixture
def seed():
    return int(os.environ.get("NBCNN_CAMPAIGN_SEED", "0"))
