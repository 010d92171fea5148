"""What keeps the worker from receiving, all of it or some of its queues, and who ends that."""

from enum import StrEnum

from worker.interfaces import IntakeClosed, IntakeOpened, Observer


class Closure(StrEnum):
    """The closed list of reasons. Who closes for one opens again for it."""

    START_UP = "start-up"
    """Tokens, queues and deployments are not proved yet. Start-up's checks end it."""
    SINK = "sink"
    """A result could not be written. The next one that is written ends it."""
    CLAIMS = "claims"
    """A body in Blob could not be read. The next one that is read ends it."""
    SUSPECTS = "suspects"
    """Deliveries that may have killed a process run apart. Their end is its end."""
    SOURCE = "source"
    """Some queues cannot be received. Only reported: the receivers of the others go on."""
    SORTING = "sorting"
    """Jobs cannot be moved from the entry queue: it, or the queue of a model, cannot be used. Only reported: the
    queues of the models go on. The sorter ends it."""
    SETUP = "setup"
    """Our set-up is wrong at every deployment of some model. Only reported: demand says what to receive."""


HALF_OPEN = frozenset({Closure.START_UP, Closure.SINK, Closure.CLAIMS})
"""While one of these lasts, one message is received whenever nothing is in flight: its job finds out whether the
fault is over."""


class Closures:
    """Each closure that lasts, and its detail. The observer hears when one begins and when it ends."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._details: dict[Closure, str] = {}

    @property
    def details(self) -> dict[str, str]:
        return {str(closure): detail for closure, detail in self._details.items()}

    @property
    def stops_receiving(self) -> bool:
        return Closure.SUSPECTS in self._details

    @property
    def is_half_open(self) -> bool:
        return not HALF_OPEN.isdisjoint(self._details)

    def note(self, closure: Closure, detail: str | None) -> bool:
        """Begin or go on with `detail`; end where it is None. Whether it has begun or ended."""
        is_news = (closure in self._details) == (detail is None)
        if detail is not None:
            self._details[closure] = detail
            if is_news:
                self._observer(IntakeClosed(reason=closure, detail=detail))
        elif is_news:
            del self._details[closure]
            self._observer(IntakeOpened(reason=closure))
        return is_news
