"""The broker of the embedded Service Bus: queues with their dead-letter queues, found by path.

Read messages.py, then queues.py, then sessions.py; order.py and duplicates.py are the structures below them.
Nothing here knows AMQP, sockets or tasks.
"""

import time
from collections.abc import Callable, Iterable

from worker.local.servicebus.messages import (
    NOT_FOUND,
    BrokerError,
    Counts,
    Locked,
    Message,
    MessageState,
)
from worker.local.servicebus.queues import Queue
from worker.local.servicebus.sessions import Session, SessionQueue
from worker.local.world import QueueSpec

__all__ = [
    "Broker",
    "BrokerError",
    "Counts",
    "Locked",
    "Message",
    "MessageState",
    "Queue",
    "Session",
    "SessionQueue",
]


class Broker:
    """All entities of one namespace. `clock` gives unix seconds."""

    def __init__(self, queues: Iterable[QueueSpec], clock: Callable[[], float] = time.time) -> None:
        self._queues = [_open_queue(spec, clock) for spec in queues]
        self._entities = {entity.name.casefold(): entity for entity in _with_dead_letters(self._queues)}

    def entity(self, path: str) -> Queue:
        """`jobs` or `jobs/$DeadLetterQueue`, case and slashes around it aside. Raises not-found."""
        entity = self._entities.get(path.strip("/").casefold())
        if entity is None:
            names = ", ".join(queue.name for queue in self._queues)
            raise BrokerError(
                NOT_FOUND,
                f"The messaging entity {path!r} could not be found; there are {names or 'none'}, each with "
                "/$DeadLetterQueue",
            )
        return entity

    def next_event_at(self) -> float | None:
        """The earliest `next_deadline` of all entities."""
        times = (queue.next_deadline() for queue in self._queues)
        return min((at for at in times if at is not None), default=None)

    def watch_deadline(self, callback: Callable[[], None]) -> Callable[[], None]:
        """As `Queue.watch_deadline`, for `next_event_at`."""
        endings = [queue.watch_deadline(callback) for queue in self._queues]

        def unwatch() -> None:
            for end in endings:
                end()

        return unwatch

    def expire(self, now: float | None = None) -> None:
        """Catches up with the clock (or `now`) everywhere, and tells the subscribers of what that freed."""
        for queue in self._queues:
            queue.expire(now)


def _open_queue(spec: QueueSpec, clock: Callable[[], float]) -> Queue:
    return SessionQueue(spec, clock) if spec.requires_session else Queue(spec, clock)


def _with_dead_letters(queues: Iterable[Queue]) -> Iterable[Queue]:
    for queue in queues:
        yield queue
        if queue.dead_letters is not None:
            yield queue.dead_letters
