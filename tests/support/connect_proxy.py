"""An HTTP proxy that tunnels: it takes CONNECT and nothing else, as those of closed networks do."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """`asked` has the host:port of each CONNECT, refused ones too."""

    credentials: str | None = None
    """`user:password`, without which it answers 407."""

    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            await _close(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        verb, target, _ = request.split()
        self.asked.append(target)
        if verb != "CONNECT" or not self._admits(headers):
            status = "407 Proxy Authentication Required" if verb == "CONNECT" else "405 Method Not Allowed"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            return await writer.drain()
        host, _, port = target.rpartition(":")
        from_there, there = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pipe(reader, there), _pipe(from_there, writer))
        finally:
            await _close(there)
        return None

    def _admits(self, headers: list[str]) -> bool:
        if self.credentials is None:
            return True
        expected = base64.b64encode(self.credentials.encode()).decode()
        return f"Proxy-Authorization: Basic {expected}" in headers


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side closes, which closes the other."""
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def connect_proxy(credentials: str | None = None) -> AsyncIterator[ConnectProxy]:
    """Tunnels that are open at the end of the block are cut."""
    proxy = ConnectProxy(credentials=credentials)
    tunnels: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tunnels[task] = writer
        try:
            await proxy.tunnel(reader, writer)
        finally:
            del tunnels[task]

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            # not by cancelling: Python 3.11 tells of a cancelled handler as of an error
            for writer in tunnels.values():
                writer.transport.abort()
            await asyncio.gather(*tunnels)
