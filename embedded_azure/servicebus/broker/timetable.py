"""When what happens in one entity: its agendas, struck in the order of their times, and who waits for the next."""

from collections.abc import Callable
from math import inf
from typing import Any

from embedded_azure.servicebus.broker.order import Agenda, Key


class Subscribers:
    """Callbacks without arguments. One must return at once and leave the entity alone: set an event."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[], None]] = {}

    def add(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Returns the function that ends the subscription; calling it again does nothing."""
        key = object()
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    def tell(self) -> None:
        for callback in tuple(self._callbacks.values()):
            callback()


class Timetable:
    """The agendas of one entity. `deadline` is told when something is put before all that was there."""

    def __init__(self, deadline: Subscribers) -> None:
        self._deadline = deadline
        self._agendas: list[Agenda[Any]] = []
        self.soonest = inf
        """Never later than the true next time, and never than `deadline` was told of."""

    def agenda(self, on_due: Callable[[Key, float], None]) -> Agenda[Key]:
        """A new one; `on_due(key, at)` runs when a key's time has come."""
        agenda = Agenda[Key](on_due)
        self._agendas.append(agenda)
        return agenda

    def put(self, agenda: Agenda[Key], key: Key, at: float) -> None:
        agenda.put(key, at)
        if at < self.soonest:
            self.soonest = at
            self._deadline.tell()

    def next_at(self) -> float:
        """The earliest time of all agendas, `inf` if there is none."""
        self.soonest = min(agenda.next_at() for agenda in self._agendas)
        return self.soonest

    def strike_until(self, now: float) -> bool:
        """Whatever is due, each thing at its own time. False if there was nothing."""
        struck = False
        while self.next_at() <= now:
            min(self._agendas, key=_next_at).strike()
            struck = True
        return struck


def _next_at(agenda: Agenda[Any]) -> float:
    return agenda.next_at()
