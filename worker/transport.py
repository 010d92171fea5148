"""The connections to Azure OpenAI: one pool over aiohttp, sockets that are kept alive, answers of bounded size.

httpx2 asks, aiohttp carries: httpx2's own transport costs two to three times the CPU with many calls at once.
"""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import httpx2
from openai._vendor.httpx_aiohttp.transport import AiohttpTransport

from worker.errors import AnswerTooLarge
from worker.tls import has_proxy, trust

MAX_ANSWER = 64 << 20
"""Bytes of an answer, or of a whole stream. The largest real ones are embeddings: 2,048 texts of 1,536 numbers
come to 43 MB; a stream has some 300 bytes for each token."""

MAX_REFUSAL = 1 << 20
"""Bytes of an error body that are read; what it is cut to still tells what a proxy's page begins with."""

KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Seconds, seconds, probes. NAT drops silent flows after 4 min, and long answers are silent."""


def open_transport(ca_file: Path | None, *, connections: int, max_answer: int = MAX_ANSWER) -> "BoundedTransport":
    """At most so many `connections`. To be opened within a running loop; closing the client closes it."""
    connector = aiohttp.TCPConnector(
        ssl=trust(ca_file), limit=connections, ttl_dns_cache=60, socket_factory=_keep_alive_socket
    )
    session = aiohttp.ClientSession(connector=connector, trust_env=has_proxy())
    return BoundedTransport(session, max_answer=max_answer)


class BoundedTransport(AiohttpTransport):
    """aiohttp as httpx2's transport. A server may send `max_answer` bytes, or MAX_REFUSAL of an error."""

    def __init__(self, session: aiohttp.ClientSession, *, max_answer: int) -> None:
        super().__init__(client=session)
        self._max_answer = max_answer

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        stream = cast(httpx2.AsyncByteStream, response.stream)
        response.stream = (
            _CutStream(stream) if response.status_code >= 400 else _BoundedStream(stream, self._max_answer)
        )
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, maximum: int) -> None:
        self._stream = stream
        self._maximum = maximum

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._maximum:
                raise AnswerTooLarge(f"the answer has more than the {self._maximum:,} bytes that are taken in")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _CutStream(_BoundedStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        super().__init__(stream, MAX_REFUSAL)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            yield chunk[: self._maximum - size]
            size += len(chunk)
            if size >= self._maximum:
                return


def _keep_alive_socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):  # not every platform of developers has them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
