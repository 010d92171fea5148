"""What queues, topics and subscriptions have in common: a name, a clock, and being watched.

Pure state over a clock: nothing here waits. What time does (locks that end, messages that expire or fall due) is
caught up with at the start of every call, as if each had happened at its own moment.
"""

from collections.abc import Callable
from math import inf

from embedded_azure.servicebus.broker.timetable import Subscribers, Timetable


class Entity:
    """`upstream` is the entity that messages come from: a queue for its dead-letter queue, a topic for its
    subscriptions. Time reaches it first."""

    def __init__(self, name: str, clock: Callable[[], float], upstream: "Entity | None" = None) -> None:
        self.name = name
        self._clock = clock
        self._upstream = upstream
        self._availability = Subscribers()
        self._deadline = Subscribers()
        self._timetable = Timetable(self._deadline)

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """`callback` runs when messages may have become available, or a session free or lost.

        Time makes neither happen by itself: `expire` (or any other call) finds out. Returns the
        function that unsubscribes.
        """
        return self._availability.add(callback)

    def watch_deadline(self, callback: Callable[[], None]) -> Callable[[], None]:
        """`callback` runs when `next_deadline` has moved closer. Returns the function that unsubscribes.

        One timer serves all receivers: set it for `next_deadline`, set it anew when called back, and when
        it fires call `expire` and set it anew.
        """
        endings = [entity._deadline.add(callback) for entity in self.family()]

        def unwatch() -> None:
            for end in endings:
                end()

        return unwatch

    def next_deadline(self) -> float | None:
        """Unix seconds at which a lock ends, a message expires or falls due; None if nothing will.

        Like `watch_deadline` and `expire` it speaks for the whole family.
        """
        at = min(entity._timetable.next_at() for entity in self.family())
        return None if at == inf else at

    def expire(self, now: float | None = None) -> None:
        """Catches up with the clock (or `now`) and tells the subscribers."""
        now = self._clock() if now is None else now
        for entity in self.family():
            entity._catch_up(now)

    def family(self) -> "tuple[Entity, ...]":
        """The entity and those that exist only because of it: its dead-letter queues."""
        return (self,)

    def _advance(self) -> float:
        now = self._clock() if self._upstream is None else self._upstream._advance()
        if self._timetable.soonest <= now:
            self._catch_up(now)
        return now

    def _catch_up(self, now: float) -> None:
        if self._timetable.strike_until(now):
            self._availability.tell()
