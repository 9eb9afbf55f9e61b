"""The harness itself: what kills a worker, or makes it slow or large, is noticed."""
import os

import numpy as np

from campaign.harness import survey

EXPECTED = {"fine": "ok", "raises": "ValueError", "dies": "crash", "never ends": "Overdue", "fills": "MemoryError", "grows": "ok"}


def forever():
    while True:
        pass


def prepare():
    return {
        "fine": lambda: "said", "raises": lambda: int("x"), "dies": lambda: os._exit(7),
        "never ends": forever, "fills": lambda: np.ones(2**31, np.uint8),
        "grows": lambda: np.ones(2**26, np.uint8)[0],
    }


def case(shared, rng):
    name = rng.choice(list(EXPECTED))
    return name, shared[name]


def test_every_case_has_its_outcome():
    records = survey(__name__, 24, seed=0, seconds=0.3, memory=2**30)
    assert {record["what"]: record["outcome"] for record in records} == EXPECTED
    by_name = {record["what"]: record for record in records}
    assert by_name["fine"]["message"] == "said" and by_name["dies"]["message"] == "exit 7"
    assert "int" in by_name["raises"]["place"] and 0.3 <= by_name["never ends"]["seconds"] < 2
    assert max(record["bytes"] for record in records if record["what"] == "grows") > 2**25


def test_a_case_can_be_repeated_by_itself():
    several, one = (survey(__name__, count, 1, first=first, seconds=0.3) for count, first in ((4, 0), (1, 3)))
    assert one[0]["what"] == several[3]["what"] and one[0]["case"] == 3
