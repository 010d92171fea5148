"""AMQP over WebSockets: a WebSocket that looks like a transport, so that the same connection can be behind it."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Final, cast

from aiohttp import WSMsgType, web

PATH: Final = "/$servicebus/websocket"
SUBPROTOCOL: Final = "AMQPWSB10"
_LARGEST: Final = 1 << 20


async def serve_websocket(request: web.Request, connection: asyncio.Protocol) -> web.StreamResponse:
    """Lasts as long as the connection. What a client sends may be cut into messages in any way."""
    if SUBPROTOCOL not in request.headers.get("Sec-WebSocket-Protocol", ""):
        raise web.HTTPBadRequest(text=f"this is AMQP over WebSockets: ask for the subprotocol {SUBPROTOCOL}")
    socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), max_msg_size=_LARGEST, autoclose=False)
    await socket.prepare(request)
    transport = WebSocketTransport(socket, request.transport)
    # it has what a line uses of a transport
    connection.connection_made(cast(asyncio.Transport, transport))
    writing = asyncio.get_running_loop().create_task(transport.write_all(), name="websocket")
    try:
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            connection.data_received(message.data)
    finally:
        transport.abort()
        await asyncio.gather(writing, return_exceptions=True)
        connection.connection_lost(None)
    return socket


class WebSocketTransport:
    """Writes in the order asked for. `close` lets what was written leave, `abort` does not."""

    def __init__(self, socket: web.WebSocketResponse, below: asyncio.Transport | None) -> None:
        self._socket = socket
        self._below = below
        self._waiting: deque[bytes] = deque()
        self._wanted = asyncio.Event()
        self._closing = False
        self._aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """aiohttp's own are used."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._below is None else self._below.get_extra_info(name, default)

    def write(self, data: bytes) -> None:
        if not self._closing:
            self._waiting.append(data)
            self._wanted.set()

    def close(self) -> None:
        self._closing = True
        self._wanted.set()

    def abort(self) -> None:
        self._closing = self._aborted = True
        self._waiting.clear()
        self._wanted.set()
        if self._below is not None:
            self._below.abort()

    def pause_reading(self) -> None:
        """Not needed: the reader awaits each message."""

    def resume_reading(self) -> None:
        """As above."""

    async def write_all(self) -> None:
        """Ends when it is closed and everything was sent."""
        with suppress(ConnectionError):  # the peer has gone; the reader notices
            while not self._closing or self._waiting:
                self._wanted.clear()
                while self._waiting:
                    await self._socket.send_bytes(self._waiting.popleft())
                if not self._closing:
                    await self._wanted.wait()
            if not self._aborted:
                await self._socket.close()
