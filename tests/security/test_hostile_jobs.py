"""A producer that may send jobs tries to reach more than the answers to them."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state
from tests.support.bench import Bench
from tests.support.decoders import ANSWER
from tests.support.model_service import CONFIG, SCOPE, ScriptedTokens, scripted
from worker.azure.openai.model import AzureOpenAI
from worker.errors import DeadLetterReason, NotAJob
from worker.interfaces import JobEnded, Target
from worker.jobs.job import Envelope, Job, decode, parse_line
from worker.jobs.outcomes import Response, label_of
from worker.testing import answer, job_line

ELSEWHERE = [
    "/v1/../admin",
    "/v1/chat/completions/../../admin",
    "/v1/chat/completions/",
    "/v1/chat/completions?api-version=1",
    "/v1/chat/completions#a",
    "/v1/chat/completions\r\nHost: evil.example",
    "/v1/chat/completions\x00",
    "/v1/chat%2Fcompletions",
    "/v1/%63hat/completions",
    "/V1/chat/completions",
    "/v1//chat/completions",
    "/v1/v1/chat/completions",
    "/v1\\chat\\completions",
    " /v1/chat/completions",
    "v1/chat/completions",
    "/v1/files",
    "https://evil.example/v1/chat/completions",
    "//evil.example/v1/chat/completions",
    "@evil.example/v1/chat/completions",
    "",
    None,
    ["/v1/chat/completions"],
    {"path": "/v1/chat/completions"},
]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_url_that_is_not_letter_by_letter_one_of_the_operations_is_dead_lettered(url: Any) -> None:
    with pytest.raises(NotAJob) as refused:
        parse_line(json.dumps(json.loads(job_line()) | {"url": url}).encode())
    assert refused.value.reason is DeadLetterReason.UNSUPPORTED_OPERATION
    assert refused.value.description.isprintable()


HOSTILE_IDS = {
    "message_id": "b/a\r\nX-Injected: 1",
    "correlation_id": "b",
    "content_type": "application/json; charset=utf-8\r\nX-Injected: 1",
    "properties": {
        "job-id": "b/a\r\nX-Injected: 1",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Injected: 1",
        "Authorization": "Bearer of-the-producer",
        "api-key": "of-the-producer",
    },
}


def hostile_job(model: str = "gpt-5.4-mini") -> Job:
    line = json.loads(job_line("a\r\nX-Injected: 1", model=model)) | {
        "headers": {"X-Injected": "1"},
        "extra_headers": {"X-Injected": "1"},
    }
    line["body"] |= {"extra_headers": {"X-Injected": "1"}, "extra_query": {"injected": "1"}}
    fields: dict[str, Any] = HOSTILE_IDS
    envelope = Envelope(
        body=json.dumps(line).encode(), queue="jobs", sequence_number=1, enqueued_at=1_795_000_000.0, **fields
    )
    return decode(envelope, max_age=60.0)


@pytest.mark.parametrize(
    ("api_version", "path"),
    [
        (None, "/openai/v1/chat/completions"),
        (
            "2025-04-01-preview",
            "/openai/deployments/a%2F..%2F..%2Fadmin/chat/completions?api-version=2025-04-01-preview",
        ),
    ],
)
async def test_nothing_of_a_job_becomes_a_header_or_another_address(
    tmp_path: Path, api_version: str | None, path: str
) -> None:
    state = StateDirectory(tmp_path)
    prepare_state(state, CONFIG)
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(body=ANSWER, content_type="application/json")

    async with (
        scripted(state, handle) as target,
        AzureOpenAI(
            ScriptedTokens(["of-the-worker"]),
            scope=SCOPE,
            ca_file=state.ca,
            api_version=api_version,
            passthrough=True,
        ) as model,
    ):
        job = hostile_job("a/../../admin")
        named = type(target)(deployment=job.line.model, endpoint=target.endpoint)
        assert (await model.complete(job, named)).status == 200
    [request] = seen
    assert request.raw_path == path
    assert request.headers.getall("Authorization") == ["Bearer of-the-worker"]
    sent = "\n".join(f"{name}: {value}" for name, value in request.headers.items()).lower()
    assert "injected" not in sent
    assert "api-key" not in sent
    assert "of-the-producer" not in sent


@pytest.mark.parametrize("batch_id", ["..", ".", "a/../b", "a/b", "~fleet", "a\nb", "a" * 49, "", "b\u202e", "b\n"])
def test_a_batch_id_is_a_plain_word_or_the_message_is_dead_lettered_unless_blob_storage_keeps_it_apart(
    batch_id: str,
) -> None:
    envelope = Envelope(
        body=job_line(), queue="jobs", sequence_number=1, enqueued_at=0.0, correlation_id=batch_id, properties={}
    )
    if set(batch_id) == {"."}:  # a folder of its own: tests/contract/test_blob_results.py
        assert decode(envelope, max_age=1.0).batch_id == batch_id
        return
    with pytest.raises(NotAJob) as refused:
        decode(envelope, max_age=1.0)
    assert refused.value.description.isprintable()


@pytest.mark.looptime
@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "\x00", ""])
async def test_a_job_that_was_first_enqueued_at_no_time_of_the_calendar_is_called_once_and_has_its_result(
    moment: str,
) -> None:
    async def call(job: Job, target: Target) -> Response:
        return answer(job.line.custom_id)

    bench = Bench(call)
    bench.queue.send(job_line("a"), message_id="a", properties={"enqueued-at": moment})
    await bench.work()
    [ended] = bench.events.of(JobEnded)
    assert label_of(ended.outcome) == "answered"
