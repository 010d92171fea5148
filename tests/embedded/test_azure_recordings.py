"""The kit of `make azure` against the embedded Azure, and the embedded Azure against recordings of Azure.

One run of 20 s proves all of it, so it is one test: the tests of a file may be spread over processes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from azure.servicebus._pyamqp.aio._client_async import AMQPClientAsync

from embedded_azure.config import default_config
from tests.azure.__main__ import run_embedded
from tests.azure.assumptions import ASSUMPTIONS
from tests.azure.page import PAGE, make_page
from tests.azure.probing import Result, Verdict
from tests.azure.recordings import Recording, compare, read_all


def test_the_kit_runs_from_end_to_end_and_the_embedded_azure_answers_as_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # closing a link waits out a second's sleep of the SDK's keep-alive task
    monkeypatch.setattr(AMQPClientAsync, "_keep_alive_async", lambda client: asyncio.sleep(0))
    calls, run = run_embedded(tmp_path)
    results = {result.name: result for result in run}

    assert_made_and_deleted(calls)
    assert_as_assumed(results)
    assert PAGE.read_text(encoding="utf-8") == make_page(read_all("azure"), results), (
        "`make azure TARGET=embedded` writes it anew"
    )
    assert_nothing_secret(tmp_path / "recordings")
    recordings = read_all("embedded", tmp_path / "recordings")
    assert recordings.keys() == results.keys()
    assert_recorded(recordings, results)
    assert_recorded(read_all("azure"), results)  # there once somebody has run it in a subscription


def assert_made_and_deleted(calls: Sequence[Sequence[str]]) -> None:
    verbs = [" ".join(call[:3]) for call in calls]
    assert verbs[1] == "group create -n"  # after the question who is logged in
    assert verbs.count("role assignment create") == 8
    assert verbs[-4:] == ["group delete -n", *["cognitiveservices account purge"] * 3]


def assert_as_assumed(results: Mapping[str, Result]) -> None:
    assert {name: result.failure for name, result in results.items() if result.failure} == {}
    assert list(results) == [assumption.name for assumption in ASSUMPTIONS]
    otherwise = {
        name: result.observation.seen
        for name, result in results.items()
        if result.observation.verdict is not Verdict.CONFIRMED
    }
    assert otherwise == {"openai-capacity": "nobody can provoke it"}


def assert_nothing_secret(folder: Path) -> None:
    """No recording names the tenant, the caller, a host or a token."""
    config = default_config()
    worker = config.identity("worker")
    secrets = (config.tenant_id, worker.client_id, worker.object_id, config.namespace, "localhost:", "eyJ")
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert [secret for secret in secrets if secret in text] == [], path.name


def assert_recorded(recordings: Mapping[str, Recording], results: Mapping[str, Result]) -> None:
    found = {name: [*compare(recording, results[name])] for name, recording in recordings.items()}
    assert {name: each for name, each in found.items() if each} == {}
