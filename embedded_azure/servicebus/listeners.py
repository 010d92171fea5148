"""The ports of the embedded Service Bus, which can be closed for a while and then opened again as they were."""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

_REOPENING: Final = 5.0
"""Seconds for which a port that somebody else has taken is tried again."""
_AGAIN: Final = 0.05


@dataclass(slots=True)
class Endpoint:
    """`port` 0 is any free one until it is opened. Without `tls` it is plaintext."""

    port: int
    tls: ssl.SSLContext | None = None
    server: asyncio.Server | None = None


class Listeners:
    def __init__(
        self, protocol: Callable[[Endpoint], asyncio.Protocol], host: str, endpoints: Sequence[Endpoint]
    ) -> None:
        self._protocol = protocol
        self._host = host
        self._endpoints = endpoints
        self._reopening: asyncio.Task[None] | None = None

    @property
    def are_closed(self) -> bool:
        return any(endpoint.server is None for endpoint in self._endpoints)

    async def open(self) -> None:
        """Raises OSError when a port is taken."""
        loop = asyncio.get_running_loop()
        for endpoint in self._endpoints:
            if endpoint.server is None:
                protocol = partial(self._protocol, endpoint)
                endpoint.server = await loop.create_server(protocol, self._host, endpoint.port, ssl=endpoint.tls)
                endpoint.port = endpoint.server.sockets[0].getsockname()[1]

    def close(self) -> list[asyncio.Server]:
        """New connections are refused from now on. Returns what can be waited for."""
        if self._reopening is not None:
            self._reopening.cancel()
        servers = [endpoint.server for endpoint in self._endpoints if endpoint.server is not None]
        for server in servers:
            server.close()
        for endpoint in self._endpoints:
            endpoint.server = None
        return servers

    def close_for(self, seconds: float) -> None:
        self.close()
        self._reopening = asyncio.get_running_loop().create_task(self._reopen(seconds), name="reopening")

    async def stop(self) -> None:
        """Closes them for good. Raises what kept them from opening again."""
        reopening = self._reopening
        self.close()
        if reopening is not None:
            with suppress(asyncio.CancelledError):
                await reopening

    async def _reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with asyncio.timeout(_REOPENING):
            while self.are_closed:
                with suppress(OSError):  # the port is ours no longer while it is closed: somebody may have had it
                    await self.open()
                if self.are_closed:
                    await asyncio.sleep(_AGAIN)
