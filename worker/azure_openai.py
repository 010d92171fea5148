"""The deployments of Azure OpenAI on their v1 surface: one lean call, and what its failures mean.

The openai client does the talking, with retries off (tenacity owns them) and answers as bytes: building its
models costs 0.4 ms more of CPU for each call. `classify` decides what a status means; `read_answer` what
counts as an answer, which is all that the operations differ in (`FORMS`).
"""

import asyncio
import math
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx2
import openai
import orjson
from openai._vendor.httpx_aiohttp.transport import AiohttpTransport

from worker.errors import (
    CallFailed,
    RefusedByService,
    SetupWrong,
    Throttled,
    TokenUnavailable,
    Unavailable,
)
from worker.interfaces import Target, Tokens
from worker.jobs import Job, Operation, on_one_line
from worker.outcomes import Response, Usage
from worker.tls import has_proxy, trust

PATHS = {
    Operation.CHAT_COMPLETIONS: "/chat/completions",
    Operation.RESPONSES: "/responses",
    Operation.EMBEDDINGS: "/embeddings",
    Operation.COMPLETIONS: "/completions",
}

NOT_SENT = frozenset({"stream", "stream_options", "background"})
"""What a job may ask for and does not get: an answer is awaited and comes whole."""

WHOLE_STATUSES = ("completed", "incomplete")
"""Of a response; an incomplete one was cut by `max_output_tokens` or by the content filter."""

RETRIED_STATUSES = frozenset({408, 409, 424})
"""4xx that speak of the moment and not of the request; the openai SDK retries 408 and 409 too."""

CONNECT_TIMEOUT = 10.0

PROOF_TIMEOUT = 20.0
"""Seconds for a refusal that costs the service nothing; a stop during start-up waits no longer."""

LONGEST_WAIT = 86_400.0
"""Seconds that a `retry-after` may ask for: Azure's quotas are counted over a day at most."""

MAX_ERROR_TEXT = 2_000
"""Characters of an error body that is not JSON, such as a proxy's page, kept in the result."""

_WORD = re.compile(r"[a-z_]{1,40}")

KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Seconds, seconds, probes. NAT drops silent flows after 4 min, and long answers are silent."""


class AzureOpenAI:
    """A `Model`: every endpoint's client over one connector. Use it as a context manager.

    `timeout`: seconds for one call, all in all. `connections`: at most so many at once.
    `passthrough`: producers name deployments, so a missing one is the job's fault and not ours.
    `responses_store`: leave it to the service, which keeps them, whether to keep responses of jobs that do not say.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        scope: str,
        ca_file: Any = None,
        timeout: float = 600.0,
        connections: int = 64,
        passthrough: bool = False,
        responses_store: bool = False,
    ) -> None:
        self._tokens = tokens
        self._scope = scope
        self._timeout = timeout
        self._passthrough = passthrough
        self._responses_store = responses_store
        connector = aiohttp.TCPConnector(
            ssl=trust(ca_file), limit=connections, ttl_dns_cache=60, socket_factory=_keep_alive_socket
        )
        self._http = httpx2.AsyncClient(
            transport=AiohttpTransport(client=aiohttp.ClientSession(connector=connector, trust_env=has_proxy())),
            timeout=httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT),
        )
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def complete(self, job: Job, target: Target) -> Response:
        operation = job.line.operation
        body = request_body(job, target, responses_store=self._responses_store)
        answer = await self._ask(target, PATHS[operation], orjson.dumps(body))
        return read_answer(operation, answer.content, _request_id(answer.headers))

    async def prove(self, target: Target) -> None:
        """Raise SetupWrong where the deployment does not exist or we may not call it, free of charge.

        A chat without messages is refused by the deployment itself, after identity, role and name have been
        checked. One of embeddings refuses the chat (`OperationNotSupported`), which says as much.
        Raises Unavailable when nothing can be said now.
        """
        try:
            await self._ask(
                target,
                PATHS[Operation.CHAT_COMPLETIONS],
                b'{"messages":[],"model":%b}' % (orjson.dumps(target.deployment)),
                timeout=PROOF_TIMEOUT,
            )
        except (RefusedByService, Throttled):
            return

    async def _ask(
        self, target: Target, path: str, body: bytes, *, timeout: float | None = None
    ) -> httpx2.Response:
        """Post, once more with a fresh token after a 401. Raises CallFailed."""
        try:
            return await self._post(target, path, body, timeout or self._timeout)
        except openai.AuthenticationError as error:
            rejected = error.request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            await self._tokens.replace(self._scope, rejected)
            return await self._post(target, path, body, timeout or self._timeout)
        except TokenUnavailable as error:
            raise SetupWrong(str(error)) from error
        except openai.AuthenticationError as error:
            raise self._explain(error, target) from error

    async def _post(self, target: Target, path: str, body: bytes, timeout: float) -> httpx2.Response:
        try:
            async with asyncio.timeout(timeout):
                return await self._client(target.endpoint).post(
                    path,
                    cast_to=httpx2.Response,
                    content=body,
                    options={"headers": {"Content-Type": "application/json"}},
                )
        except openai.AuthenticationError:
            raise
        except openai.APIStatusError as error:
            raise self._explain(error, target) from error
        except TokenUnavailable as error:
            raise SetupWrong(str(error)) from error
        except TimeoutError as error:
            raise Unavailable(f"no whole answer within {timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Unavailable(f"connection to {target.endpoint}: {error.__cause__ or error}") from error
        except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"connection to {target.endpoint}: {error!r}") from error

    def _explain(self, error: openai.APIStatusError, target: Target) -> CallFailed:
        return classify(
            error.status_code,
            error.response.headers,
            error.response.content,
            target=target,
            passthrough=self._passthrough,
        )

    def _client(self, endpoint: str) -> openai.AsyncOpenAI:
        client = self._clients.get(endpoint)
        if client is None:
            client = self._clients[endpoint] = openai.AsyncOpenAI(
                base_url=f"{endpoint}/openai/v1/",
                api_key=self._bearer,
                http_client=self._http,
                max_retries=0,
            )
        return client

    async def _bearer(self) -> str:
        return await self._tokens.bearer(self._scope)


def request_body(job: Job, target: Target, *, responses_store: bool) -> dict[str, Any]:
    """The job's body as it is sent: to the deployment, for a whole answer that the service need not keep."""
    body = {name: value for name, value in job.line.body.items() if name not in NOT_SENT}
    body["model"] = target.deployment
    # null stands for the service's default, which is to keep
    if job.line.operation is Operation.RESPONSES and not responses_store and body.get("store") is None:
        body["store"] = False
    return body


def classify(
    status: int, headers: Mapping[str, str], body: bytes, *, target: Target, passthrough: bool
) -> CallFailed:
    """What an error status of a deployment means for the job and for the worker."""
    kind = _kind(status, passthrough)
    detail = f"{status} from {target.deployment} at {target.endpoint}: {_message(body)}"
    return kind(
        detail,
        status=status,
        body=_one_line(body, status),
        request_id=_request_id(headers),
        retry_after=retry_after(headers, time.time()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an answer of an operation looks like. `lacks` tells what it lacks to be whole, or None."""

    name: str
    lacks: Callable[[dict[str, Any]], str | None]
    prompt: str = "prompt_tokens"
    completion: str = "completion_tokens"


def read_answer(operation: Operation, body: bytes, request_id: str | None) -> Response:
    """The answer of a 200. Raises Unavailable where it is not a whole answer of that operation."""
    form = FORMS[operation]
    what = f"the answer of {len(body):,} bytes is not a whole {form.name}"
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unavailable(f"{what}: {error}{_beginning(body)}") from None
    if not isinstance(document, dict):
        raise Unavailable(f"{what}: it is no object")
    if lack := form.lacks(document):
        raise Unavailable(f"{what}: {lack}")
    usage = _usage(document.get("usage"), form)
    return Response(status=200, request_id=request_id, body=on_one_line(body), usage=usage)


def _lacks_choices(document: dict[str, Any]) -> str | None:
    return None if _is_filled(document.get("choices")) else "it has no choices"


def _lacks_data(document: dict[str, Any]) -> str | None:
    return None if _is_filled(document.get("data")) else "it has no data"


def _lacks_output(document: dict[str, Any]) -> str | None:
    """A response that failed comes with a 200 too; its status tells."""
    status, error = document.get("status"), document.get("error")
    if status not in WHOLE_STATUSES:
        code = error.get("code") if isinstance(error, dict) else None
        return f"its status is {_word(status)}" + (f", its error's code {_word(code)}" if code else "")
    return None if isinstance(document.get("output"), list) else "it has no output"


def _is_filled(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _word(value: object) -> str:
    """One of the service's own words; not what else could stand in its place, as this goes to the log."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "none that is known"


FORMS = {
    Operation.CHAT_COMPLETIONS: Form(name="chat completion", lacks=_lacks_choices),
    Operation.RESPONSES: Form(
        name="response", lacks=_lacks_output, prompt="input_tokens", completion="output_tokens"
    ),
    Operation.EMBEDDINGS: Form(name="list of embeddings", lacks=_lacks_data),
    Operation.COMPLETIONS: Form(name="completion", lacks=_lacks_choices),
}


def _beginning(body: bytes) -> str:
    """What a proxy's page begins with; nothing of what could be half an answer, as this goes to the log."""
    return "" if body.lstrip()[:1] in (b"", b"{") else f"; it begins with {body[:60]!r}"


def _usage(usage: Any, form: Form) -> Usage | None:
    """Counts that are missing, or none such as a string or -1, are 0."""
    if not isinstance(usage, dict):
        return None
    details = usage.get(f"{form.prompt}_details")
    return Usage(
        prompt=_count(usage.get(form.prompt)),
        completion=_count(usage.get(form.completion)),
        cached=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that the service asks for in seconds; None where it names none, or nonsense: below 0, over a day.

    `retry-after-ms` is the more exact; `retry-after` may hold seconds or an HTTP date.
    """
    plain = headers.get("retry-after")
    waits = (_number(headers.get("retry-after-ms")) / 1_000, _number(plain), _moment(plain) - now)
    return next((seconds for seconds in waits if 0 < seconds <= LONGEST_WAIT), None)


def _kind(status: int, passthrough: bool) -> type[CallFailed]:
    if status == 429:
        return Throttled
    if status >= 500 or status in RETRIED_STATUSES:
        return Unavailable
    if status in (401, 403) or (status == 404 and not passthrough):
        return SetupWrong
    return RefusedByService


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _moment(date: str | None) -> float:
    """An HTTP date as Unix seconds; it is in UTC even where it does not say so."""
    try:
        moment = parsedate_to_datetime(date or "")
    except (ValueError, OverflowError):
        return math.nan
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _request_id(headers: Mapping[str, str]) -> str | None:
    return headers.get("x-request-id") or headers.get("apim-request-id")


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])[:300]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:100].decode(errors="replace")


def _one_line(body: bytes, status: int) -> bytes:
    """The service's error as JSON on one line; what is not JSON becomes the message of an error object."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:MAX_ERROR_TEXT].decode(errors="replace")
        return orjson.dumps({"error": {"code": str(status), "message": text}})
    return on_one_line(body)


def _keep_alive_socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):  # not every platform of developers has them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
