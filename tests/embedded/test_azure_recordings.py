"""The kit of `make azure` against the embedded Azure, and the embedded Azure against recordings of Azure.

A recording of the real Azure is read where there is one; the day it is committed, what the embedded Azure does
otherwise fails here.
"""

import asyncio
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from azure.servicebus._pyamqp.aio._client_async import AMQPClientAsync

from embedded_azure.config import default_config
from tests.azure.__main__ import run_embedded
from tests.azure.assumptions import ASSUMPTIONS
from tests.azure.page import PAGE, make_page
from tests.azure.probing import Result, Verdict
from tests.azure.recordings import differences, read_all, recording_of, write

DAY = date(2026, 11, 29)
Met = tuple[list[list[str]], dict[str, Result]]


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Met:
    """What az was asked for, and the result of each probe."""
    with pytest.MonkeyPatch.context() as patch:
        # closing a link waits out a second's sleep of the SDK's keep-alive task
        patch.setattr(AMQPClientAsync, "_keep_alive_async", lambda client: asyncio.sleep(0))
        calls, results = run_embedded(tmp_path_factory.mktemp("azure"))
    return calls, {result.name: result for result in results}


def test_every_probe_ends_and_the_embedded_azure_does_as_we_assume(met: Met) -> None:
    _, results = met
    assert {name: result.failure for name, result in results.items() if result.failure} == {}
    assert list(results) == [assumption.name for assumption in ASSUMPTIONS]
    otherwise = {
        name: result.observation.seen
        for name, result in results.items()
        if result.observation.verdict is not Verdict.CONFIRMED
    }
    assert otherwise == {"openai-capacity": "nobody can provoke it"}


def test_everything_is_made_before_the_probes_and_deleted_after_them(met: Met) -> None:
    calls, _ = met
    verbs = [" ".join(call[:3]) for call in calls]
    assert verbs[1] == "group create -n"
    assert verbs[-4:] == ["group delete -n", *["cognitiveservices account purge"] * 3]
    assert verbs.count("role assignment create") == 8


def test_the_page_is_what_the_code_makes(met: Met) -> None:
    _, results = met
    assert PAGE.read_text(encoding="utf-8") == make_page(read_all("azure"), results), (
        "`make azure TARGET=embedded` writes it anew"
    )


def test_the_embedded_azure_answers_as_the_recordings_of_azure(met: Met) -> None:
    """Those that are there; the first run against a real subscription brings them."""
    _, results = met
    found = {
        name: [*differences(recording.exchanges, results[name].observation.exchanges)]
        for name, recording in read_all("azure").items()
    }
    assert {name: each for name, each in found.items() if each} == {}


def test_a_recording_of_the_embedded_azure_is_what_it_answers(met: Met, tmp_path: Path) -> None:
    _, results = met
    for result in results.values():
        write(recording_of(result, "embedded", DAY), tmp_path)
    recordings = read_all("embedded", tmp_path)
    assert recordings.keys() == results.keys()
    for name, recording in recordings.items():
        assert [*differences(recording.exchanges, results[name].observation.exchanges)] == [], name
    assert read_all("azure", tmp_path) == {}


def test_another_status_code_header_or_shape_is_a_difference(met: Met) -> None:
    _, results = met
    (exchange,) = results["openai-missing-role"].observation.exchanges
    for changed, what in (
        (replace(exchange, status=403), "status"),
        (replace(exchange, code="AccessDenied"), "code"),
        (replace(exchange, headers={}), "headers"),
        (replace(exchange, body={"statusCode": 401}), "body"),
    ):
        (difference,) = differences([changed], [exchange])
        assert f": {what} " in difference
    assert [*differences([], [exchange])] == ["0 exchanges there, 1 here"]
    reworded = replace(exchange, body={"error": {"code": "PermissionDenied", "message": "other words"}})
    assert [*differences([reworded], [exchange])] == []


def test_no_recording_names_the_tenant_the_caller_a_host_or_a_token(met: Met, tmp_path: Path) -> None:
    _, results = met
    config = default_config()
    worker = config.identity("worker")
    secrets = (config.tenant_id, worker.client_id, worker.object_id, config.namespace, "localhost:", "eyJ")
    for result in results.values():
        text = write(recording_of(result, "embedded", DAY), tmp_path).read_text(encoding="utf-8")
        assert [secret for secret in secrets if secret in text] == [], result.name
