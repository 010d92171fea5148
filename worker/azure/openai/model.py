"""The deployments of Azure OpenAI: one lean call, on the v1 surface or on that of an api-version.

The openai client does the talking, with retries off (tenacity owns them) and answers as bytes: building its
models costs 0.4 ms more of CPU for each call (`private.py`). What is an answer decides `answers.py`, how a stream
becomes one `streams.py`, and what a refusal means `refusals.py`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import httpx2
import openai
import orjson

from worker.azure.network import find_cause
from worker.azure.openai.answers import read_answer
from worker.azure.openai.private import make_client, post
from worker.azure.openai.refusals import Exchange, classify, plain_headers
from worker.azure.openai.streams import ASSEMBLIES, read_stream
from worker.azure.openai.transport import MAX_ANSWER, AiohttpClient, counted, take_in
from worker.errors import (
    AnswerTooLarge,
    CallFailed,
    Cause,
    NoToken,
    RefusedByService,
    Throttled,
    TokenUnavailable,
    Unavailable,
)
from worker.interfaces import AnswerMemory, Target, Tokens
from worker.jobs.job import Job, JsonObject, Operation
from worker.jobs.outcomes import Response
from worker.waits import release_frames

PATHS = {
    Operation.CHAT_COMPLETIONS: "/chat/completions",
    Operation.RESPONSES: "/responses",
    Operation.EMBEDDINGS: "/embeddings",
    Operation.COMPLETIONS: "/completions",
}

NOT_SENT = frozenset({"background"})
"""What a job may ask for and does not get: an answer is awaited."""

PROOF_TIMEOUT = 20.0
"""Seconds for a refusal that costs the service nothing; a stop during start-up waits no longer."""

TEXT_WEIGHT, LOGPROBS_WEIGHT = 0.25, 2.0
"""Bytes that are held for each byte of a stream: of its 300 bytes for a token only the text stays, but logprobs
are held as objects."""

LINGER = 1.0
"""Seconds for a stream to end once its answer is whole; only then can its connection be used again."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as it goes out. `timeout`: seconds, all in all. `room` is for its answer; None: any."""

    target: Target
    operation: Operation
    body: bytes
    timeout: float
    room: AnswerMemory | None = None
    stream_weight: float = TEXT_WEIGHT


class AzureOpenAI:
    """A `Model`: every endpoint's client over one connector. Use it as a context manager.

    `timeout`: seconds for one call, all in all. `connections`: at most so many at once.
    `api_version`: call the surface of that version, `/openai/deployments/...`; None is v1.
    `passthrough`: producers name deployments, so a missing one is the job's fault and not ours.
    `responses_store`: leave it to the service, which keeps them, whether to keep responses of jobs that do not say.
    `max_answer`: bytes that are taken in for an answer; more is AnswerTooLarge.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        scope: str,
        ca_file: Any = None,
        timeout: float = 600.0,
        connections: int = 64,
        api_version: str | None = None,
        passthrough: bool = False,
        responses_store: bool = False,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self._tokens = tokens
        self._scope = scope
        self._timeout = timeout
        self._api_version = api_version
        self._passthrough = passthrough
        self._responses_store = responses_store
        self._http = AiohttpClient(ca_file, connections=connections, max_answer=max_answer)
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def complete(self, job: Job, target: Target, room: AnswerMemory | None = None) -> Response:
        """A streamed job's answer is the final object, and its `first_token` is known."""
        operation = job.line.operation
        body = request_body(job, target, responses_store=self._responses_store)
        call = Call(
            target=target,
            operation=operation,
            body=encode_request(body),
            timeout=self._timeout,
            room=room,
            stream_weight=LOGPROBS_WEIGHT if body.get("logprobs") else TEXT_WEIGHT,
        )
        return await self._ask(call, self._read_streamed if "stream" in body else self._read_whole)

    async def prove(self, target: Target) -> None:
        """Raise SetupWrong where the deployment does not exist or we may not call it, free of charge.

        A chat without messages is refused by the deployment itself, after identity, role and name have been
        checked. One of embeddings refuses the chat (`OperationNotSupported`), which says as much.
        Raises Unavailable when nothing can be said now.
        """
        body = b'{"messages":[],"model":%b}' % orjson.dumps(target.deployment)
        call = Call(target=target, operation=Operation.CHAT_COMPLETIONS, body=body, timeout=PROOF_TIMEOUT)
        with contextlib.suppress(RefusedByService, Throttled):
            await self._ask(call, self._read_nothing)

    async def _ask(self, call: Call, perform: Callable[[Call], Awaitable[T]]) -> T:
        """Perform the call, once more with a fresh token after a 401. Raises CallFailed."""
        try:
            return await self._attempt(call, perform)
        except openai.AuthenticationError as error:
            rejected = error.request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            await self._tokens.replace(self._scope, rejected)
            return await self._attempt(call, perform)
        except TokenUnavailable as error:
            raise NoToken(error) from error
        except openai.AuthenticationError as error:
            raise self._explain(error, call.target) from error

    async def _attempt(self, call: Call, perform: Callable[[Call], Awaitable[T]]) -> T:
        endpoint = call.target.endpoint
        try:
            async with asyncio.timeout(call.timeout):
                return await perform(call)
        except openai.AuthenticationError:
            raise
        except openai.APIStatusError as error:
            raise self._explain(error, call.target) from error
        except TokenUnavailable as error:
            raise NoToken(error) from error
        except TimeoutError as error:
            detail = f"no whole answer within {call.timeout:g} s"
            raise Unavailable(detail, cause=Cause.UNREACHABLE) from error
        except openai.APIConnectionError as error:
            detail = f"connection to {endpoint}: {error.__cause__ or error}"
            raise Unavailable(detail, cause=find_cause(error)) from error
        except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            release_frames(error)  # aiohttp's reader keeps it, and they hold the reader
            raise Unavailable(f"connection to {endpoint}: {error!r}", cause=find_cause(error)) from error

    async def _read_whole(self, call: Call) -> Response:
        response = await self._send(call)
        return read_answer(
            call.operation, await take_in(response, call.room), self._exchange(response, call.target)
        )

    async def _read_streamed(self, call: Call) -> Response:
        started = time.perf_counter()
        response = await self._send(call)
        try:
            exchange = self._exchange(response, call.target)
            if not exchange.headers.get("content-type", "").startswith("text/event-stream"):
                return read_answer(call.operation, await take_in(response, call.room), exchange)
            chunks = response.aiter_bytes()
            held = chunks if call.room is None else counted(chunks, call.room, call.stream_weight)
            answer = await read_stream(call.operation, held, exchange, started=started)
            await _exhaust(chunks)
            return answer
        finally:
            await response.aclose()

    async def _read_nothing(self, call: Call) -> None:
        response = await self._send(call)
        await response.aclose()

    async def _send(self, call: Call) -> httpx2.Response:
        """A response whose body is not read yet. To be closed."""
        return await post(self._client(call.target.endpoint), self._url(call), call.body)

    def _url(self, call: Call) -> str:
        path = PATHS[call.operation]
        if self._api_version is None:
            return f"{call.target.endpoint}/openai/v1{path}"
        if call.operation is not Operation.RESPONSES:
            path = f"/deployments/{quote(call.target.deployment, safe='')}{path}"
        return f"{call.target.endpoint}/openai{path}"

    def _exchange(self, response: httpx2.Response, target: Target) -> Exchange:
        return Exchange(target=target, headers=plain_headers(response.headers.raw), passthrough=self._passthrough)

    def _explain(self, error: openai.APIStatusError, target: Target) -> CallFailed:
        return classify(error.status_code, error.response.content, self._exchange(error.response, target))

    def _client(self, endpoint: str) -> openai.AsyncOpenAI:
        client = self._clients.get(endpoint)
        if client is None:
            client = self._clients[endpoint] = make_client(
                endpoint, api_version=self._api_version, bearer=self._bearer, http=self._http
            )
        return client

    async def _bearer(self) -> str:
        return await self._tokens.bearer(self._scope)


def request_body(job: Job, target: Target, *, responses_store: bool) -> JsonObject:
    """The job's body as it is sent: to the deployment, for an answer that the service need not keep."""
    operation = job.line.operation
    body = {name: value for name, value in job.line.body.items() if name not in NOT_SENT}
    body["model"] = target.deployment
    # null stands for the service's default, which is to keep
    if operation is Operation.RESPONSES and not responses_store and body.get("store") is None:
        body["store"] = False
    if "stream" in body or "stream_options" in body:
        _set_stream(body, operation)
    return body


def encode_request(body: JsonObject) -> bytes:
    """orjson's own bytes keep all the room that it reserved for escapes, ten times the length of a long text, and a
    request is held until its answer has come."""
    return bytes(memoryview(orjson.dumps(body)))


def _set_stream(body: JsonObject, operation: Operation) -> None:
    """Leave `stream` in only where it is true and means something; then have the usage told at the end."""
    is_streamed = body.pop("stream", None) is True and operation in ASSEMBLIES
    options = body.pop("stream_options", None)
    if not is_streamed:
        return
    body["stream"] = True
    if isinstance(options, dict) or operation is not Operation.RESPONSES:
        body["stream_options"] = options if isinstance(options, dict) else {}
    if operation is not Operation.RESPONSES:  # which tell it anyway, and refuse the option
        body["stream_options"] = body["stream_options"] | {"include_usage": True}


async def _exhaust(chunks: AsyncIterator[bytes]) -> None:
    """Read on to the end of a stream whose answer is whole, so nothing that goes wrong now matters."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError, aiohttp.ClientError, OSError, AnswerTooLarge):
        async with asyncio.timeout(LINGER):
            async for _ in chunks:
                pass
