"""Streamed jobs over a real connection: before the embedded Azure OpenAI, and servers that fail in mid stream.

How events are put together is `tests/unit/azure/openai/test_streams.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

import worker.azure.openai.model
from tests.support.model_service import SCOPE, ScriptedTokens, Service, embedded_service, job, job_of, scripted
from worker.azure.openai.model import AzureOpenAI
from worker.errors import AnswerTooLarge, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.jobs.job import Job, JsonObject
from worker.jobs.outcomes import Response
from worker.rate_limits import ThrottleKind

QUESTION = "What is 17 + 25? [[tokens:30]]"
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"42"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with embedded_service(tmp_path) as service:
        yield service


def without_stamps(response: Response) -> Any:
    """What two answers to one question have in common."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: bare(inner) for name, inner in value.items() if name not in ("id", "created", "created_at")
            }
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    return bare(orjson.loads(response.body))


@pytest.mark.parametrize(
    ("url", "deployment", "question"),
    [
        ("/v1/chat/completions", "gpt-5.4-mini", {"messages": [{"role": "user", "content": QUESTION}], "n": 2}),
        (
            "/v1/chat/completions",
            "gpt-5.4-mini",
            {
                "messages": [{"role": "user", "content": QUESTION}],
                "reasoning_effort": "none",
                "max_completion_tokens": 9,
            },
        ),
        (
            "/v1/chat/completions",
            "gpt-5.4-mini",
            {"messages": [{"role": "user", "content": "[[content-filter-answer]]"}]},
        ),
        ("/v1/completions", "instruct", {"prompt": ["to be", "or not"], "max_tokens": 30}),
        ("/v1/responses", "gpt-5.4-mini", {"input": QUESTION}),
        ("/v1/responses", "gpt-5.4-mini", {"input": QUESTION, "max_output_tokens": 20}),
    ],
)
async def test_a_streamed_answer_is_what_the_unstreamed_one_is(
    service: Service, url: str, deployment: str, question: JsonObject
) -> None:
    async with service.model() as model:
        whole = await model.complete(job_of(url, "m", **question), service.target(deployment))
        streamed = await model.complete(job_of(url, "m", **question, stream=True), service.target(deployment))
    assert without_stamps(streamed) == without_stamps(whole)
    assert streamed.usage == whole.usage
    assert streamed.request_id


async def test_the_time_to_the_first_token_is_measured_of_streamed_jobs_only(service: Service) -> None:
    async with service.model() as model:
        streamed = await model.complete(job(QUESTION, stream=True), service.target())
        whole = await model.complete(job(QUESTION), service.target())
    assert streamed.first_token is not None
    assert streamed.first_token > 0
    assert whole.first_token is None


@pytest.mark.parametrize("trouble", ["[[cut-after:5]] [[tokens:30]]", "[[fail-after:5]] [[tokens:30]]"])
@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/responses"])
async def test_a_stream_that_breaks_off_may_be_tried_again(service: Service, url: str, trouble: str) -> None:
    is_chat = url == "/v1/chat/completions"
    asked = job(trouble, stream=True) if is_chat else job_of(url, "m", input=trouble, stream=True)
    async with service.model() as model:
        with pytest.raises(Unavailable):
            await model.complete(asked, service.target())


async def test_a_stream_that_hangs_is_given_up_at_its_time_out(service: Service) -> None:
    async with service.model(timeout=0.5) as model:
        with pytest.raises(Unavailable, match=r"no whole answer within 0\.5 s"):
            await model.complete(job("[[hang-after:5]] [[tokens:30]]", stream=True), service.target())


async def test_a_streamed_job_is_refused_and_throttled_as_any_other(service: Service) -> None:
    async with service.model() as model:
        with pytest.raises(RefusedByService) as refused:
            await model.complete(job("[[content-filter]]", stream=True), service.target())
        with pytest.raises(SetupWrong, match="nowhere"):
            await model.complete(job("Hi", stream=True), service.target("nowhere"))
        service.account.faults.set(b'{"status": 429, "count": 1, "retry_after_ms": 1234}')
        with pytest.raises(Throttled) as throttled:
            await model.complete(job("Hi", stream=True), service.target())
    assert orjson.loads(refused.value.body)["error"]["code"] == "content_filter"
    assert throttled.value.retry_after == pytest.approx(1.234)


async def test_a_rejected_token_is_replaced_for_a_streamed_job_too(service: Service) -> None:
    tokens = ScriptedTokens([service.token(lifetime=-10), service.token()])
    async with AzureOpenAI(tokens, scope=SCOPE, ca_file=service.state.ca) as model:
        assert (await model.complete(job("Hi", stream=True), service.target())).status == 200
    assert len(tokens.rejected) == 1


async def test_a_cancelled_stream_is_ended_at_the_service_too(service: Service) -> None:
    has_begun, is_given_up = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(CHUNK)
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_given_up.set()
            raise
        return response

    async with scripted(service.state, answer) as target, service.model() as model:
        call = asyncio.create_task(model.complete(job("Hi", stream=True), target))
        await has_begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await is_given_up.wait()


# Servers that do as they are told


async def begin(request: web.Request, **headers: str) -> web.StreamResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"} | named)
    await response.prepare(request)
    return response


async def test_the_connection_of_a_stream_is_used_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: set[object] = set()
    is_whole = asyncio.Event()
    exhaust = worker.azure.openai.model._exhaust

    async def exhaust_openly(chunks: AsyncIterator[bytes]) -> None:
        is_whole.set()
        await exhaust(chunks)

    async def answer(request: web.Request) -> web.StreamResponse:
        connections.add(request.transport)
        response = await begin(request)
        for part in (CHUNK[:30], CHUNK[30:], DONE):
            await response.write(part)
        await is_whole.wait()  # so the stream ends after the answer
        return response

    monkeypatch.setattr(worker.azure.openai.model, "_exhaust", exhaust_openly)
    async with scripted(service.state, answer) as target, service.model() as model:
        for _ in range(3):
            await model.complete(job("Hi", stream=True), target)
            is_whole.clear()
    assert len(connections) == 1


async def test_a_stream_that_failed_gives_its_connection_back(service: Service) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(b'data: {"error":{"code":"server_error"}}\n\n')
        await asyncio.Event().wait()
        return response

    async with scripted(service.state, answer) as target, service.model(connections=1) as model:
        failures: list[Unavailable] = []
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                await model.complete(job("Hi", stream=True), target)
            failures.append(caught.value)  # and with it, all that its frames hold
    assert [failure.status for failure in failures] == [500, 500, 500]


async def test_an_answer_is_whole_even_if_its_stream_never_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.azure.openai.model, "LINGER", 0.01)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(CHUNK + DONE)
        await asyncio.Event().wait()
        return response

    async with scripted(service.state, answer) as target, service.model() as model:
        response = await model.complete(job("Hi", stream=True), target)
    assert orjson.loads(response.body)["choices"][0]["message"]["content"] == "42"


async def test_an_answer_is_whole_even_if_its_connection_then_breaks(service: Service) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(CHUNK + DONE)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with scripted(service.state, answer) as target, service.model() as model:
        response = await model.complete(job("Hi", stream=True), target)
    assert response.status == 200


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error":{"code":"429","message":"The system is currently experiencing high demand."}}\n\n',
        b'event: error\ndata: {"code":"NoCapacity","message":"Try later."}\n\n',
    ],
)
async def test_a_throttle_in_mid_stream_closes_the_gate_for_as_long_as_the_headers_say(
    service: Service, error: bytes
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request, retry_after="7", x_request_id="req-1")
        await response.write(CHUNK + error)
        return response

    async with scripted(service.state, answer) as target, service.model() as model:
        with pytest.raises(Throttled) as caught:
            await model.complete(job("Hi", stream=True), target)
    assert (caught.value.retry_after, caught.value.kind) == (7.0, ThrottleKind.CAPACITY)
    assert caught.value.request_id == "req-1"


async def test_a_stream_without_end_is_given_up_once_it_is_too_large(service: Service) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        for _ in range(32):
            await response.write(b": keep waiting\n\n" * 1_000)
        await asyncio.Event().wait()  # and never ends
        return response

    async with scripted(service.state, answer) as target, service.model(max_answer=100_000) as model:
        with pytest.raises(AnswerTooLarge, match="100,000 bytes"):
            await model.complete(job("Hi", stream=True), target)


async def test_a_service_that_does_not_stream_gives_its_whole_answer(service: Service) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "42"}}]})

    async with scripted(service.state, answer) as target, service.model() as model:
        response = await model.complete(job("Hi", stream=True), target)
    assert orjson.loads(response.body)["choices"][0]["message"]["content"] == "42"
    assert response.first_token is None


@pytest.mark.parametrize(
    "asked",
    [job("Hi", stream=True), job_of("/v1/responses", "m", input="Hi", stream=True)],
    ids=["chat", "response"],
)
async def test_a_stream_that_ends_without_saying_so_may_be_tried_again(service: Service, asked: Job) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(CHUNK)
        return response

    async with scripted(service.state, answer) as target, service.model() as model:
        with pytest.raises(Unavailable, match="the stream broke off after 1 "):
            await model.complete(asked, target)
