"""The jobs queue on Azure Service Bus: receive, and reconnect when a link fails.

`links` is what happens on a link (locks are kept, messages settled), `private` what the SDK's
public surface cannot do, `messages` how a message is read.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

from azure.core.credentials_async import AsyncTokenCredential
from azure.servicebus import ServiceBusSubQueue, TransportType
from azure.servicebus.aio import ServiceBusClient

from worker.azure.network import proxy_to, trust
from worker.azure.servicebus.faults import FAULTS, cause_of_fault, describe_fault
from worker.azure.servicebus.links import SETTLE_TIMEOUT, Link, LockedMessage, Settlements, close
from worker.errors import SourceUnavailable
from worker.interfaces import Delivery, Observer
from worker.jobs.job import Envelope
from worker.settings import ServiceBusSettings

SERVICEBUS_SCOPE = "https://servicebus.azure.net//.default"
"""As the SDK asks for it, two slashes included, so that its links find in the cache what start-up has proved."""

SOCKET_TIMEOUT = 0.02
"""Seconds a read of the SDK holds the lock that its writes need too. At the SDK's 0.2 a settlement beside a waiting
receive takes 0.2 s, at 0.02 it takes 0.02 s; it costs half a per cent of a core when idle. Receivers do not inherit
it from their client."""


def connect(
    settings: ServiceBusSettings, credential: AsyncTokenCredential, *, retries: int = 3
) -> ServiceBusClient:
    """A client of the namespace. Every sender and receiver made from it opens a connection of its own.

    `retries` are the SDK's, which reopen links by themselves; the worker's adapters want none and see to it.
    """
    return ServiceBusClient(
        settings.servicebus_namespace,
        credential,
        ssl_context=trust(settings.ca_file),
        retry_total=retries,
        **_way_to(settings),
    )


def _way_to(settings: ServiceBusSettings) -> dict[str, Any]:
    """The SDK's options for where its sockets go; names in tokens and links stay the namespace's.

    The transport type is always said: with an endpoint or a proxy the SDK would choose WebSockets by itself.
    """
    way: dict[str, Any] = {"transport_type": TransportType.Amqp}
    if settings.servicebus_endpoint:
        way["custom_endpoint_address"] = f"sb://{settings.servicebus_endpoint}"
    if settings.servicebus_transport == "websockets":
        logging.getLogger("asyncio").addFilter(_is_worth_telling)
        way["transport_type"] = TransportType.AmqpOverWebsocket
        proxy = proxy_to(*settings.servicebus_address)
        if proxy is not None:
            # the SDK puts the port behind the name and takes that for a URL
            way["http_proxy"] = {
                "proxy_hostname": proxy.address,
                "proxy_port": proxy.port,
                "username": proxy.user,
                "password": proxy.password,
            }
    return way


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """The SDK leaves a WebSocket that it could not open to the garbage collector, and aiohttp complains of each."""
    return not record.getMessage().startswith(("Unclosed client session", "Unclosed connection"))


class JobsQueue:
    """A `Source`: competing consumer of one queue with peek-lock. Use it as a context manager.

    With `dead_letters` it is the `DeadLetters` of that queue.

    A link that fails is retired: the next receive opens another, and the old one keeps its locks renewed until
    its last delivery is settled. What is unsettled at the end comes again when its lock lapses.
    """

    def __init__(
        self,
        client: ServiceBusClient,
        queue: str,
        *,
        observer: Observer,
        dead_letters: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self.queue = queue
        self._options: dict[str, Any] = {"sub_queue": ServiceBusSubQueue.DEAD_LETTER} if dead_letters else {}
        self._observer = observer
        self._clock = clock
        self._link: Link | None = None
        self._links: set[Link] = set()
        self._renewing = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._renewing.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self._links:
            link.retire()
            link.forget()
        # the block's own error is not the group's: handed to it, it would come back wrapped, known to nobody
        await self._renewing.__aexit__(None, None, None)

    async def open(self) -> None:
        """Prove that the queue exists and that we may listen to it. Raises SourceUnavailable."""
        if self._link is not None and not self._link.is_retired:
            return
        receiver = self._client.get_queue_receiver(
            self.queue,
            prefetch_count=0,
            socket_timeout=SOCKET_TIMEOUT,
            timeout=SETTLE_TIMEOUT,
            **self._options,
        )
        try:
            await receiver.__aenter__()
        except FAULTS as error:
            await close(receiver)
            raise SourceUnavailable(
                describe_fault(error), subject=f"queue {self.queue!r}", cause=cause_of_fault(error)
            ) from error
        link = self._link = Link(receiver, self.queue, self._observer, self._clock)
        self._links.add(link)
        renewing = self._renewing.create_task(link.keep_locks_renewed(), name=f"locks of {self.queue}")
        renewing.add_done_callback(lambda _: self._links.discard(link))

    async def receive(self, count: int, *, wait: float) -> Sequence[Delivery]:
        await self.open()
        assert self._link is not None
        return await self._link.receive(count, wait)

    async def complete(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        # of a retired link too: what came through it before it failed is still under its locks
        links = defaultdict[Settlements, list[LockedMessage]](list)
        for locked in cast(Sequence[LockedMessage], deliveries):
            links[locked.settlements].append(locked)
        confirmed = list[Delivery]()
        # one after the other: there is one link but after a fault, and gather's cycles would keep the messages
        for settlements, some in links.items():
            confirmed += await settlements.complete(some)
        return confirmed

    async def peek(self, following: int, count: int) -> Sequence[Envelope]:
        await self.open()
        assert self._link is not None
        return await self._link.peek(following, count)
