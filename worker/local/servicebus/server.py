"""The listening side of the embedded Service Bus: TLS as in Azure, plaintext as the emulator has it.

`serve` is the whole interface. Both ports check tokens and roles alike; one `Broker` is behind them.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from worker.local.amqp.connection import Connection, Container
from worker.local.amqp.performatives import Error
from worker.local.servicebus.access import Access
from worker.local.servicebus.broker import Broker, Queue
from worker.local.servicebus.links import Dispatch
from worker.local.servicebus.peers import Peer
from worker.local.tokens import AccessTokens
from worker.local.world import World

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})
_GOODBYE: Final = 1.0
"""Seconds that clients have to close their end when the server stops."""
_MAX_TIMER: Final = 86_400.0


class ServiceBus:
    """The namespace: its broker, and the connections to it. `clock` gives unix seconds."""

    def __init__(self, world: World, tokens: AccessTokens, clock: Callable[[], float] = time.time) -> None:
        self.broker = Broker(world.queues, clock)
        self._world = world
        self._tokens = tokens
        self._clock = clock
        self._hosts = LOOPBACK | {world.namespace.casefold()}
        self._loop = asyncio.get_running_loop()
        self._dispatches: dict[Queue, Dispatch] = {}
        self._peers: set[Peer] = set()
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._unwatch = self.broker.watch_deadline(self._watch_deadline)
        self._idle.set()
        self._watch_deadline()

    def connection(self) -> Connection:
        """A protocol for one new connection."""
        return Connection(self._admit, container_id=self._world.namespace)

    def drop_connections(self) -> None:
        """Breaks all of them without a word, as a failing network does."""
        for peer in tuple(self._peers):
            peer.connection.abort()

    async def close(self) -> None:
        """Says goodbye to every client, and leaves those behind that do not answer."""
        for peer in tuple(self._peers):
            peer.connection.close(
                Error(condition="amqp:connection:forced", description="The service is shutting down.")
            )
        try:
            async with asyncio.timeout(_GOODBYE):
                await self._idle.wait()
        except TimeoutError:
            self.drop_connections()
            await self._idle.wait()
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        for dispatch in self._dispatches.values():
            dispatch.close()

    def _admit(self, connection: Connection) -> Container:
        peer = Peer(
            connection,
            access=Access(self._tokens, self._world, self._hosts, self._clock),
            broker=self.broker,
            dispatch_for=self._dispatch_for,
            clock=self._clock,
            on_closed=self._forget,
        )
        self._peers.add(peer)
        self._idle.clear()
        return peer

    def _forget(self, peer: Peer) -> None:
        self._peers.discard(peer)
        if not self._peers:
            self._idle.set()

    def _dispatch_for(self, queue: Queue) -> Dispatch:
        if queue not in self._dispatches:
            self._dispatches[queue] = Dispatch(queue, self._loop)
        return self._dispatches[queue]

    def _watch_deadline(self) -> None:
        """One timer for everything that time does in the broker."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.broker.next_event_at()
        if at is not None:
            pause = min(max(0.0, at - self._clock()), _MAX_TIMER)
            self._timer = self._loop.call_later(pause, self._expire)

    def _expire(self) -> None:
        self.broker.expire()
        self._watch_deadline()


class Served:
    """A namespace that listens. A port is None if it was not asked for."""

    def __init__(self, bus: ServiceBus, tls_port: int | None, plain_port: int | None) -> None:
        self.bus = bus
        self.tls_port = tls_port
        self.plain_port = plain_port

    @property
    def ports(self) -> dict[str, int]:
        """Those that are open, by name."""
        ports = {"tls_port": self.tls_port, "plain_port": self.plain_port}
        return {name: port for name, port in ports.items() if port is not None}


@asynccontextmanager
async def serve(
    world: World,
    tokens: AccessTokens,
    *,
    tls: ssl.SSLContext | None = None,
    tls_port: int = 0,
    plain_port: int | None = 0,
    host: str = "127.0.0.1",
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Served]:
    """Listens until the block ends. Port 0 is any free one; there is no TLS port without `tls`, and no plaintext
    port if `plain_port` is None.

    Raises OSError when a port is taken.
    """
    bus = ServiceBus(world, tokens, clock)
    listen = partial(asyncio.get_running_loop().create_server, bus.connection, host)
    listeners: list[asyncio.Server] = []
    try:
        secure = await listen(tls_port, ssl=tls) if tls is not None else None
        listeners += [secure] if secure else []
        plain = await listen(plain_port) if plain_port is not None else None
        listeners += [plain] if plain else []
        yield Served(bus, _port(secure), _port(plain))
    finally:
        for listener in listeners:
            listener.close()
        await bus.close()
        for listener in listeners:
            await listener.wait_closed()


def _port(listener: asyncio.Server | None) -> int | None:
    return None if listener is None else listener.sockets[0].getsockname()[1]
