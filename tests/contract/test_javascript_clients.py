"""The embedded Azure as clients for JavaScript find it: all of the cases of tests/foreign/javascript."""

from pathlib import Path

import pytest

from tests.foreign.clients import node, run_javascript


async def test_the_clients_for_javascript_find_what_azure_offers(tmp_path: Path) -> None:
    if node() is None:
        pytest.skip("NOT CHECKED WITH THE SDKS FOR JAVASCRIPT: Node.js 20 or newer is missing on this machine")
    cases = await run_javascript(tmp_path)
    assert [f"{case.case}: {case.reason}" for case in cases if case.outcome != "passed"] == []
