"""What the worker relies on in the openai client and its interface does not promise."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web

from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state
from tests.support.model_service import CONFIG, Handler, scripted
from worker.azure.openai import private
from worker.azure.openai.private import make_client, post
from worker.azure.openai.transport import AiohttpClient, take_in

BODY = b'{ "model":"m",\n"messages": [] }'
VERSIONS = [None, "2024-10-21"]


class Recorder(AiohttpClient):
    """Keeps what it is asked for besides what it takes."""

    def __init__(self, ca_file: Path) -> None:
        super().__init__(ca_file, connections=8)
        self.ignored: list[dict[str, Any]] = []

    def build_request(self, method: str, url: httpx2.URL | str, **given: Any) -> httpx2.Request:
        self.ignored.append({name: given[name] for name in given.keys() - {"content", "params", "headers"}})
        return super().build_request(method, url, **given)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path)
    prepare_state(state, CONFIG)
    return state


class Bench:
    def __init__(self, endpoint: str, http: Recorder, api_version: str | None) -> None:
        self.url = f"{endpoint}/openai/d%2F1/chat"
        self.http = http
        self.asked_for_tokens = 0
        self._client = make_client(endpoint, api_version=api_version, bearer=self._bearer, http=http)

    async def _bearer(self) -> str:
        self.asked_for_tokens += 1
        return f"token-{self.asked_for_tokens}"

    async def post(self, body: bytes = BODY) -> httpx2.Response:
        return await post(self._client, self.url, body)


@asynccontextmanager
async def bench(state: StateDirectory, handle: Handler, api_version: str | None) -> AsyncIterator[Bench]:
    async with scripted(state, handle) as target, Recorder(state.ca) as http:
        yield Bench(target.endpoint, http, api_version)


@pytest.mark.parametrize("api_version", VERSIONS)
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_a_response_comes_unread_whatever_its_kind(
    state: StateDirectory, content_type: str, api_version: str | None
) -> None:
    asked_for = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        await asked_for.wait()
        await response.write(b"late")
        return response

    async with bench(state, handle, api_version) as one:
        response = await one.post()
        assert isinstance(response, httpx2.Response)
        assert not response.is_stream_consumed
        asked_for.set()
        assert await take_in(response) == b"late"


@pytest.mark.parametrize("api_version", VERSIONS)
async def test_address_and_body_are_sent_as_they_are_with_a_token_for_each_call(
    state: StateDirectory, api_version: str | None
) -> None:
    seen: list[tuple[str, str, bytes]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers["Authorization"], await request.read()))
        return web.Response()

    async with bench(state, handle, api_version) as one:
        for _ in range(3):
            await take_in(await one.post())
    path = "/openai/d%2F1/chat" + (f"?api-version={api_version}" if api_version else "")
    assert seen == [(path, f"Bearer token-{number}", BODY) for number in (1, 2, 3)]


@pytest.mark.parametrize("api_version", VERSIONS)
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_nothing_is_tried_again_and_a_refusal_is_read(
    state: StateDirectory, status: int, api_version: str | None
) -> None:
    calls: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        calls.append(request)
        headers = {"x-should-retry": "true", "retry-after-ms": "1"}
        return web.Response(status=status, headers=headers, text="why")

    async with bench(state, handle, api_version) as one:
        with pytest.raises(openai.APIStatusError) as caught:
            await one.post()
    assert (caught.value.status_code, caught.value.response.content) == (status, b"why")
    assert caught.value.request.headers["authorization"] == "Bearer token-1"
    assert len(calls) == 1


@pytest.mark.parametrize("api_version", VERSIONS)
async def test_calls_at_once_leave_the_options_and_headers_they_share_as_they_are(
    state: StateDirectory, api_version: str | None
) -> None:
    bodies: list[bytes] = []

    async def handle(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    before = copy.deepcopy((private._OPTIONS, private._HEADERS))
    sent = [b'{"n": %d}' % number for number in range(23)]
    async with bench(state, handle, api_version) as one:
        for response in await asyncio.gather(*map(one.post, sent)):
            await take_in(response)
    assert sorted(bodies) == sorted(sent)
    assert before == (private._OPTIONS, private._HEADERS)


@pytest.mark.parametrize("api_version", VERSIONS)
async def test_what_the_http_client_ignores_says_nothing(state: StateDirectory, api_version: str | None) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response()

    async with bench(state, handle, api_version) as one:
        await take_in(await one.post())
    assert {value for given in one.http.ignored for value in given.values()} == {None}
