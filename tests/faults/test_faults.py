"""The scenarios that are short enough for every run; `make faults` has all, and writes docs/reliability.md."""

from pathlib import Path

import pytest

from tests.faults.scenario import Scenario, run
from tests.faults.scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.in_subset], ids=str)
async def test_nothing_is_lost_doubled_or_paid_twice_without_need(scenario: Scenario, tmp_path: Path) -> None:
    ledger = await run(scenario, tmp_path)
    assert not ledger.problems(scenario), ledger
