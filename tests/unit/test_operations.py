"""An operation of Azure OpenAI has its entry in each table that asks for one."""

import pytest

from worker.azure.openai.answers import FORMS
from worker.azure.openai.model import PATHS
from worker.jobs.job import Operation
from worker.telemetry.traces import OPERATIONS


@pytest.mark.parametrize("table", [FORMS, PATHS, OPERATIONS], ids=["FORMS", "PATHS", "OPERATIONS"])
def test_no_operation_is_forgotten(table: dict[Operation, object]) -> None:
    assert set(table) == set(Operation)
