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

from aiohttp import web

from embedded_azure.amqp.connection import Connection, Container
from embedded_azure.amqp.performatives import Error
from embedded_azure.config import Config
from embedded_azure.entra.tokens import AccessTokens
from embedded_azure.faults import Fault, Faults
from embedded_azure.process import PATIENCE
from embedded_azure.servicebus.access import Access
from embedded_azure.servicebus.administration.service import Administration
from embedded_azure.servicebus.broker.broker import Broker, Queue
from embedded_azure.servicebus.broker.messages import NOT_FOUND
from embedded_azure.servicebus.faults.control import FAULTS, CutFault, DetachFault, RestartFault
from embedded_azure.servicebus.faults.links import LinkFaults
from embedded_azure.servicebus.faults.timing import Line
from embedded_azure.servicebus.front import build_front
from embedded_azure.servicebus.links.contents import ContentProperties
from embedded_azure.servicebus.links.idle import IdleTimes
from embedded_azure.servicebus.links.links import Dispatch
from embedded_azure.servicebus.listeners import Endpoint, Listeners
from embedded_azure.servicebus.peers import Peer
from embedded_azure.servicebus.shared_access import EMULATOR_RULE

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})
_GOODBYE: Final = 1.0
"""Seconds that clients have to close their end when the server stops."""
_MAX_TIMER: Final = 86_400.0
_GRACE: Final = 0.1


class ServiceBus:
    """The namespace: its broker, and the connections to it. `clock` gives unix seconds."""

    def __init__(
        self,
        config: Config,
        tokens: AccessTokens,
        clock: Callable[[], float] = time.time,
        *,
        idle: IdleTimes = IdleTimes(),
    ) -> None:
        """Raises ValueError when the config's fault is wrong."""
        self.broker = _fill_broker(config, clock)
        self.faults = Faults(*FAULTS, initial=config.faults.get("servicebus"))
        self.faults.watch(self._act)
        self._idle_times = idle
        self._config = config
        self._tokens = tokens
        self._clock = clock
        self._hosts = LOOPBACK | {config.namespace.casefold()}
        self._loop = asyncio.get_running_loop()
        self._dispatches: dict[Queue, Dispatch] = {}
        self._peers: set[Peer] = set()
        self._accessed: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._unwatch = self.broker.watch_deadline(self._watch_deadline)
        self._idle.set()
        self._watch_deadline()

    def connection(self, *, secure: bool = True) -> Line:
        """A protocol for one new connection. Without TLS the key of Microsoft's emulator is good too."""
        access = self._access(secure=secure, exists=self.broker.has)
        connection = Connection(
            partial(self._admit, access=access),
            container_id=self._config.namespace,
            idle_time_out=self._idle_times.silence,
            strict_delivery_ids=self._config.strict_delivery_ids,
            check_key=access.put_key if access.has_keys else None,
        )
        return Line(connection, self.faults)

    def administration(self) -> Administration:
        return Administration(
            self._config.namespace,
            lambda: self.broker,
            self._access,
            self._accessed.get,
            self._end_entity,
            self._clock,
        )

    def _end_entity(self, path: str) -> None:
        """Nobody waits any longer for what was deleted."""
        gone = Error(condition=NOT_FOUND, description=f"The messaging entity '{path}' was deleted.")
        for peer in tuple(self._peers):
            peer.detach(path.lower(), gone)
        for queue in [queue for queue in self._dispatches if not self.broker.has(queue.name)]:
            self._dispatches.pop(queue).close()
        self._accessed.pop(path.lower(), None)

    def drop_connections(self) -> None:
        """Breaks all of them without a word, as a failing network does."""
        for peer in tuple(self._peers):
            peer.connection.abort()

    def lose_messages(self) -> None:
        """The entities are those of the start again, and empty. Drop the connections first."""
        self._unwatch()
        for dispatch in self._dispatches.values():
            dispatch.close()
        self._dispatches.clear()
        self.broker = _fill_broker(self._config, self._clock)
        self._unwatch = self.broker.watch_deadline(self._watch_deadline)
        self._watch_deadline()

    def _act(self, fault: Fault) -> None:
        match fault:
            case CutFault(after_bytes=None):
                self.drop_connections()
            case DetachFault(condition=condition, description=description, entity=entity):
                for peer in tuple(self._peers):
                    peer.detach(entity, Error(condition=condition, description=description))
            case RestartFault(messages=messages):
                self.drop_connections()
                if messages == "lost":
                    self.lose_messages()

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

    def _admit(self, connection: Connection, *, access: Access) -> Container:
        peer = Peer(
            connection,
            access=access,
            broker=self.broker,
            dispatch_for=self._dispatch_for,
            clock=self._clock,
            faults=LinkFaults(self.faults, self._note_access),
            idle=self._idle_times,
            on_closed=self._forget,
        )
        self._peers.add(peer)
        self._idle.clear()
        return peer

    def _access(self, *, secure: bool = True, exists: Callable[[str], bool] = lambda _path: True) -> Access:
        rules = self._config.shared_access_rules
        return Access(
            self._tokens,
            self._config,
            self._hosts,
            self._clock,
            rules=rules if secure else (*rules, EMULATOR_RULE),
            exists=exists,
        )

    def _note_access(self, path: str) -> None:
        if self.broker.has(path):
            self._accessed[path.lower()] = self._clock()

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

    def __init__(
        self, bus: ServiceBus, tls_port: int | None, plain_port: int | None, https_port: int | None = None
    ) -> None:
        self.bus = bus
        self.tls_port = tls_port
        self.plain_port = plain_port
        self.https_port = https_port

    @property
    def ports(self) -> dict[str, int]:
        """Those that are open, by name."""
        ports = {"tls_port": self.tls_port, "plain_port": self.plain_port, "https_port": self.https_port}
        return {name: port for name, port in ports.items() if port is not None}


@asynccontextmanager
async def serve(
    config: Config,
    tokens: AccessTokens,
    *,
    tls: ssl.SSLContext | None = None,
    tls_port: int = 0,
    plain_port: int | None = 0,
    https_port: int | None = None,
    host: str = "127.0.0.1",
    clock: Callable[[], float] = time.time,
    idle: IdleTimes = IdleTimes(),
) -> AsyncIterator[Served]:
    """Listens until the block ends. Port 0 is any free one; there is no TLS port without `tls`, and no plaintext
    port if `plain_port` is None. `https_port` (see front.py) needs `tls` too.

    Raises OSError when a port is taken.
    """
    bus = ServiceBus(config, tokens, clock, idle=idle)
    secure = None if tls is None else Endpoint(tls_port, tls)
    plain = None if plain_port is None else Endpoint(plain_port)
    listeners = Listeners(
        partial(_connection, bus), host, [endpoint for endpoint in (secure, plain) if endpoint is not None]
    )

    def restart(fault: Fault) -> None:
        if isinstance(fault, RestartFault):
            listeners.close_for(fault.seconds or 0.0)

    bus.faults.watch(restart)
    front = web.AppRunner(
        build_front(bus.administration(), bus.faults, bus.connection, lambda: listeners.are_closed),
        access_log=None,
        shutdown_timeout=_GRACE,
        keepalive_timeout=PATIENCE,
    )
    try:
        await listeners.open()
        https = None if tls is None or https_port is None else await _open_front(front, host, https_port, tls)
        yield Served(bus, None if secure is None else secure.port, None if plain is None else plain.port, https)
    finally:
        servers = listeners.close()
        await bus.close()
        await front.cleanup()
        for server in servers:
            await server.wait_closed()
        await listeners.stop()


async def _open_front(front: web.AppRunner, host: str, port: int, tls: ssl.SSLContext) -> int:
    await front.setup()
    await web.TCPSite(front, host, port, ssl_context=tls).start()
    opened: int = front.addresses[0][1]
    return opened


def _connection(bus: ServiceBus, endpoint: Endpoint) -> Line:
    return bus.connection(secure=endpoint.tls is not None)


def _fill_broker(config: Config, clock: Callable[[], float]) -> Broker:
    return Broker(config.queues, clock, topics=config.topics, describe=ContentProperties)
