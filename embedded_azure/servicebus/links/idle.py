"""What Service Bus ends because nobody uses it: links without traffic, connections without links."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta

from embedded_azure.amqp.links import IncomingLink, OutgoingLink
from embedded_azure.amqp.performatives import Error


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleTimes:
    """Seconds, as in Azure. `silence` is what the connection announces as its idle time-out."""

    silence: float = 240.0
    new_connection: float = 60.0
    connection: float = 300.0
    link: float = 600.0


class IdleWatch:
    """Watches one connection. Links to `$cbs` count neither as links nor as traffic."""

    def __init__(
        self,
        times: IdleTimes,
        links: Callable[[], Collection[IncomingLink | OutgoingLink]],
        close: Callable[[Error], None],
    ) -> None:
        self._times = times
        self._links = links
        self._close = close
        self._loop = asyncio.get_running_loop()
        self._unused_since = self._loop.time()
        self._patience = times.new_connection
        self._timer = self._loop.call_later(times.new_connection, self._look)

    def note_detached(self) -> None:
        """A link is gone; it may have been the last."""
        if not self._links():
            self._unused_since = self._loop.time()
            self._patience = self._times.connection
            self._set_timer(self._unused_since + self._patience)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        for link in tuple(self._links()):
            if link.used_at + self._times.link <= now:
                link.detach(_idle_link(link, self._times.link))
        if links := self._links():
            self._set_timer(min(link.used_at for link in links) + self._times.link)
        elif self._unused_since + self._patience <= now:
            self._close(_idle_connection(self._patience))
        else:
            self._set_timer(self._unused_since + self._patience)

    def _set_timer(self, at: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(at, self._look)


def _idle_link(link: IncomingLink | OutgoingLink, seconds: float) -> Error:
    name = link.name
    if isinstance(link, IncomingLink):  # Azure has other words for the link of a sender
        return Error(
            condition="amqp:link:detach-forced",
            description=f"The link '{name}' is force detached. Code: publisher(link{link.handle}). Details: "
            f"AmqpMessagePublisher.IdleTimerExpired: Idle timeout: {timedelta(seconds=round(seconds))!s:0>8}.",
        )
    return Error(
        condition="amqp:link:detach-forced",
        description=f"The link '{name}' is force detached by the broker because it was idle for more than the "
        f"allowed {seconds * 1000:.0f} milliseconds. Detach origin: IdleTimerExpired.",
    )


def _idle_connection(seconds: float) -> Error:
    return Error(
        condition="amqp:connection:forced",
        description=f"The connection was inactive for more than the allowed {seconds * 1000:.0f} milliseconds "
        "and is closed by container 'LinkTracker'.",
    )
