"""What the openai client's HTTP client does and leaves out, before servers that do as they are told.

What its failures become is in `test_model.py` and `test_model_streams.py`.
"""

import asyncio
import gzip
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from aiohttp import web

from embedded_azure.state import StateDirectory
from embedded_azure.supervisor import prepare_state
from tests.support.model_service import CONFIG, Handler, serve
from tests.support.patience import PATIENCE
from worker.azure.openai.transport import MAX_ANSWER, MAX_REFUSAL, AiohttpClient, take_in
from worker.errors import AnswerTooLarge, RefusedByService

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path)
    prepare_state(state, CONFIG)
    return state


@asynccontextmanager
async def server(state: StateDirectory, handle: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with serve(state, app) as endpoint:
        yield endpoint


@asynccontextmanager
async def client(
    state: StateDirectory, *, connections: int = 64, max_answer: int = MAX_ANSWER
) -> AsyncIterator[AiohttpClient]:
    async with AiohttpClient(state.ca, connections=connections, max_answer=max_answer) as client:
        yield client


async def post(client: AiohttpClient, url: str, *, stream: bool = False) -> httpx2.Response:
    return await client.send(client.build_request("POST", url, content=b"{}", headers=TOKEN), stream=stream)


async def test_a_redirect_is_not_followed_and_the_token_goes_nowhere_else(state: StateDirectory) -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{other}/taken"}, text="over there")

    async with server(state, elsewhere) as other, server(state, redirect) as first, client(state) as lean:
        response = await post(lean, first)
        with_an_order = await lean.send(
            lean.build_request("POST", first, content=b"{}", headers=TOKEN), stream=True, follow_redirects=True
        )
        assert await take_in(with_an_order) == b"over there"
    assert [response.status_code, with_an_order.status_code] == [307, 307]
    assert seen == []


async def test_no_cookie_is_kept(state: StateDirectory) -> None:
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "affinity=pod-1; Path=/"})

    async with server(state, handle) as endpoint, client(state) as lean:
        for _ in range(2):
            await post(lean, endpoint)
    assert seen == [None, None]
    assert not lean.cookies


async def test_the_body_of_a_stream_is_left_to_be_read(state: StateDirectory) -> None:
    asked_for = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asked_for.wait()
        await response.write(b"late")
        return response

    async with server(state, handle) as endpoint, client(state) as lean:
        response = await post(lean, endpoint, stream=True)
        asked_for.set()
        assert await take_in(response) == b"late"


async def test_what_is_not_asked_for_as_a_stream_is_read(state: StateDirectory) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.method} {await request.text()}")

    async with server(state, handle) as endpoint, client(state) as lean:
        response = await post(lean, endpoint)
    assert (response.text, response.is_closed) == ("POST {}", True)
    assert response.request.url == endpoint


async def test_a_refusal_is_read_no_further_than_it_is_kept(state: StateDirectory) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=500, text="x" * (2 * MAX_REFUSAL))

    async with server(state, handle) as endpoint, client(state) as lean:
        assert (await post(lean, endpoint)).content == b"x" * MAX_REFUSAL


async def test_the_address_is_sent_as_it_is_with_its_parameters(state: StateDirectory) -> None:
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response()

    async with server(state, handle) as endpoint, client(state) as lean:
        for params in ("api-version=1", "api-version=2"):
            url = f"{endpoint}/d%2F1/a%20b"
            await lean.send(lean.build_request("POST", url, content=b"{}", params=params))
    assert seen == ["/d%2F1/a%20b?api-version=1", "/d%2F1/a%20b?api-version=2"]


async def test_an_answer_that_is_compressed_all_the_same_is_unfolded(state: StateDirectory) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b"answer"), headers={"Content-Encoding": "gzip"})

    async with server(state, handle) as endpoint, client(state) as lean:
        assert await take_in(await post(lean, endpoint, stream=True)) == b"answer"
        assert (await post(lean, endpoint)).content == b"answer"


async def test_a_compressed_answer_is_unfolded_within_the_limit_and_its_memory(state: StateDirectory) -> None:
    packed = gzip.compress(bytes(600 << 20), compresslevel=1)

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with server(state, handle) as endpoint, client(state, max_answer=3 << 20) as lean:
        await asyncio.gather(*[_refuse_large(lean, endpoint) for _ in range(2)])  # opens what stays open
        tracemalloc.start()
        try:
            await asyncio.gather(*[_refuse_large(lean, endpoint) for _ in range(8)])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 64 << 20


async def _refuse_large(lean: AiohttpClient, endpoint: str) -> None:
    with pytest.raises(AnswerTooLarge, match="more than the 3,145,728 bytes"):
        await take_in(await post(lean, endpoint, stream=True))


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 700_001])
async def test_a_compressed_answer_is_whole_whatever_its_size(state: StateDirectory, size: int) -> None:
    plain = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(plain), headers={"Content-Encoding": "GZIP"})

    async with server(state, handle) as endpoint, client(state) as lean:
        assert await take_in(await post(lean, endpoint, stream=True)) == plain
        response = await post(lean, endpoint, stream=True)
        assert b"".join([chunk async for chunk in response.aiter_bytes()]) == plain


async def test_a_compressed_refusal_is_unfolded_no_further_than_it_is_kept(state: StateDirectory) -> None:
    async def handle(_: web.Request) -> web.Response:
        body = gzip.compress(b"x" * (100 * MAX_REFUSAL))
        return web.Response(status=500, body=body, headers={"Content-Encoding": "gzip"})

    async with server(state, handle) as endpoint, client(state) as lean:
        assert (await post(lean, endpoint)).content == b"x" * MAX_REFUSAL


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
async def test_an_encoding_that_cannot_be_unfolded_is_refused_by_name(state: StateDirectory, encoding: str) -> None:
    async def handle(request: web.Request) -> web.Response:
        status = 429 if request.path == "/busy" else 200
        return web.Response(status=status, body=b"packed", headers={"Content-Encoding": encoding})

    async with server(state, handle) as endpoint, client(state) as lean:
        with pytest.raises(RefusedByService, match=f"encoded as '{encoding}'.*gateway"):
            await take_in(await post(lean, endpoint, stream=True))
        busy = await post(lean, f"{endpoint}/busy")
    assert (busy.status_code, busy.content) == (429, b"")


async def test_broken_compression_is_a_failure_of_the_connection(state: StateDirectory) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=b"no gzip", headers={"Content-Encoding": "gzip"})

    async with server(state, handle) as endpoint, client(state) as lean:
        with pytest.raises(httpx2.DecodingError, match="gzip is broken"):
            await take_in(await post(lean, endpoint, stream=True))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (gzip.compress(b"answer") + b"x" * 5_000_001, "goes on after the end"),
        (gzip.compress(b"answer" * 70_001)[:-9], "ends before its gzip does"),
    ],
)
async def test_an_answer_that_is_more_or_less_than_its_gzip_is_a_failure_of_the_connection(
    state: StateDirectory, body: bytes, fault: str
) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async with server(state, handle) as endpoint, client(state) as lean:
        with pytest.raises(httpx2.DecodingError, match=fault):
            await take_in(await post(lean, endpoint, stream=True))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_given_up_frees_its_connection(state: StateDirectory, stream: bool) -> None:
    given_up = []  # kept, as the garbage collector would free the connection too

    async with (
        server(state, answer_without_end) as endpoint,
        client(state, connections=1, max_answer=100) as lean,
        asyncio.timeout(PATIENCE),
    ):
        for _ in range(3):
            with pytest.raises(AnswerTooLarge, match="more than the 100 bytes") as caught:
                await take_in(await post(lean, endpoint, stream=stream))
            given_up.append(caught)
    assert len(given_up) == 3


async def answer_without_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"x" * 1_000)
    await asyncio.Event().wait()
    return response


async def test_one_connection_serves_one_answer_after_another(state: StateDirectory) -> None:
    peers: set[object] = set()

    async def handle(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text="x")

    async with server(state, handle) as endpoint, client(state) as lean:
        for _ in range(3):
            await take_in(await post(lean, endpoint, stream=True))
            await post(lean, endpoint)
    assert len(peers) == 1


async def test_a_server_that_hangs_up_is_an_error_of_httpx2_that_knows_its_request(state: StateDirectory) -> None:
    async def handle(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with server(state, handle) as endpoint, client(state) as lean:
        with pytest.raises(httpx2.NetworkError, match="Server disconnected") as caught:
            await post(lean, endpoint)
    assert caught.value.request.url == endpoint
