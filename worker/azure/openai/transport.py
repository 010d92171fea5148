"""The connections to Azure OpenAI: one pool over aiohttp, sockets that are kept alive, answers of bounded size.

The openai client speaks to `AiohttpClient` as to any client of httpx2, and aiohttp carries: httpx2's own transport
costs two to three times the CPU with many calls at once, and much of its client is for what is never asked of it.
"""

import contextlib
import socket
import zlib
from collections.abc import AsyncIterable, AsyncIterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import aiohttp
import httpx2

from worker.azure.network import has_proxy, trust
from worker.errors import AnswerTooLarge, RefusedByService
from worker.interfaces import AnswerMemory

MAX_ANSWER = 64 << 20
"""Bytes of an answer, or of a whole stream. The largest real ones are embeddings: 2,048 texts of 1,536 numbers
come to 43 MB; a stream has some 300 bytes for each token."""

MAX_REFUSAL = 1 << 20
"""Bytes of an error body that are read; what it is cut to still tells what a proxy's page begins with."""

ENCODING = "content-encoding"
GZIP = 16 + zlib.MAX_WBITS
PIECE = 1 << 16
"""Bytes that are unpacked at once."""

CONNECT_TIMEOUT = 10.0

KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Seconds, seconds, probes. NAT drops silent flows after 4 min, and long answers are silent."""

ADDRESSES_KEPT = 256
"""URLs that are parsed only once: there is one for each endpoint and operation, or for each deployment."""


class AiohttpClient(httpx2.AsyncClient):
    """httpx2's client for posting bytes, without what costs CPU at every call and is not used or could do harm.

    It follows no redirect, which could carry a token elsewhere, keeps no cookie and calls no hook. Only connecting
    has a time-out of its own: await answers within `asyncio.timeout`. At most so many `connections`.
    To be opened within a running loop.
    """

    def __init__(self, ca_file: Path | None, *, connections: int, max_answer: int = MAX_ANSWER) -> None:
        self._carrier = _Carrier(_open_session(ca_file, connections), max_answer)
        self._parsed = lru_cache(ADDRESSES_KEPT)(_parse)
        super().__init__(transport=self._carrier, timeout=None)

    def build_request(
        self,
        method: str,
        url: httpx2.URL | str,
        *,
        content: Any = b"",
        params: Any = None,
        headers: Any = None,
        **_: Any,
    ) -> httpx2.Request:
        """Nothing else is sent."""
        body = httpx2.ByteStream(content)
        request = httpx2.Request(method, self._parsed(url, params), headers=headers, stream=body)
        request.read()
        return request

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        """The body of a response that is asked for as a `stream` is not read yet."""
        response = await self._carrier.handle_async_request(request)
        if not stream:
            await response.aread()
        return response


async def take_in(response: httpx2.Response, room: AnswerMemory | None = None) -> bytes:
    """The body of a response that was asked for as a stream. Raises AnswerTooLarge.

    `room`: what is read is counted there, and reading pauses while there is none.
    """
    body = cast(_Body, response.stream)
    try:
        return b"".join([chunk async for chunk in (body if room is None else counted(body, room))])
    finally:
        await body.aclose()


async def counted(chunks: AsyncIterable[bytes], room: AnswerMemory, weight: float = 1.0) -> AsyncIterator[bytes]:
    """The chunks, each once there is room for it besides those before. `weight`: bytes held for each that comes."""
    size = 0.0
    async for chunk in chunks:
        size += weight * len(chunk)
        if size > room.reserved:
            await room.grow(int(size))
        yield chunk


class _Carrier(httpx2.AsyncBaseTransport):
    """aiohttp as httpx2's transport. A server may send `max_answer` bytes, or MAX_REFUSAL of what is no answer."""

    def __init__(self, session: aiohttp.ClientSession, max_answer: int) -> None:
        self._session = session
        self._max_answer = max_answer

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            answer = await self._session.request(
                request.method,
                str(request.url),
                headers=request.headers.multi_items(),
                data=request.content,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.NetworkError(str(error) or repr(error), request=request) from error
        body = _Body(answer, self._max_answer) if answer.status < 300 else _CutBody(answer, MAX_REFUSAL)
        headers = answer.raw_headers
        if ENCODING in answer.headers:  # `body` is unpacked here, within its bounds, and not by httpx2
            headers = tuple((name, value) for name, value in headers if name.lower() != ENCODING.encode())
        return httpx2.Response(answer.status, headers=headers, stream=body, request=request)

    async def aclose(self) -> None:
        await self._session.close()


class _Body(httpx2.AsyncByteStream):
    """What a server sends, unpacked. More than `maximum` bytes of it raise AnswerTooLarge."""

    def __init__(self, answer: aiohttp.ClientResponse, maximum: int) -> None:
        self._answer = answer
        self._maximum = maximum

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._pieces():
            size += len(chunk)
            if size > self._maximum:
                raise AnswerTooLarge(f"the answer has more than the {self._maximum:,} bytes that are taken in")
            yield chunk

    async def aclose(self) -> None:
        """Before its end, the connection is closed too."""
        self._answer.release()

    def _pieces(self) -> AsyncIterator[bytes]:
        """Raises RefusedByService for an encoding that cannot be unpacked."""
        chunks = self._answer.content.iter_any()
        encoding = self._answer.headers.get(ENCODING, "identity").strip().lower()
        if encoding == "identity":
            return chunks
        if encoding not in ("gzip", "x-gzip"):
            raise RefusedByService(
                f"the answer is encoded as {encoding[:40]!r} though nothing but identity was asked for; "
                "only gzip is unpacked. Turn compression off in the gateway before the service"
            )
        return _unpacked(chunks)


class _CutBody(_Body):
    """Of a refusal: its beginning, as far as it can be read."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        with contextlib.suppress(RefusedByService, httpx2.DecodingError):  # its status says enough
            async for chunk in self._pieces():
                yield chunk[: self._maximum - size]
                size += len(chunk)
                if size >= self._maximum:
                    return


async def _unpacked(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """gzip, in pieces of at most PIECE bytes: a chunk may unfold to a thousand times its size."""
    unpacker = zlib.decompressobj(GZIP)
    async for chunk in chunks:
        more = True
        while more:
            try:
                piece = unpacker.decompress(chunk, PIECE)
            except zlib.error as error:
                raise httpx2.DecodingError(f"the answer's gzip is broken: {error}") from error
            if piece:
                yield piece
            chunk = unpacker.unconsumed_tail
            more = bool(chunk) or len(piece) == PIECE
        if unpacker.unused_data:  # zlib keeps it, as much as there comes
            raise httpx2.DecodingError("the answer goes on after the end of its gzip")
    if not unpacker.eof:
        raise httpx2.DecodingError("the answer ends before its gzip does")


def _open_session(ca_file: Path | None, connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        ssl=trust(ca_file), limit=connections, ttl_dns_cache=60, socket_factory=_keep_alive_socket
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT),
        headers={"Accept-Encoding": "identity"},  # compressed bytes are bounded, but not what they unfold to
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=has_proxy(),
    )


def _parse(url: httpx2.URL | str, params: str | None) -> httpx2.URL:
    return httpx2.URL(url) if params is None else httpx2.URL(url, params=params)


def _keep_alive_socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):  # not every platform of developers has them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
