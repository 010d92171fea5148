"""Receivers that want a session: a certain one, or the next available, for which they wait."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from embedded_azure.amqp.codec import Described, Long, Symbol
from embedded_azure.amqp.links import OutgoingLink
from embedded_azure.amqp.performatives import Error
from embedded_azure.servicebus.broker.broker import BrokerError, Queue, Session
from embedded_azure.servicebus.broker.messages import NOT_ALLOWED

SESSION_FILTER: Final = Symbol("com.microsoft:session-filter")
LOCKED_UNTIL_UTC: Final = Symbol("com.microsoft:locked-until-utc")
TIMEOUT: Final = Symbol("com.microsoft:timeout")
SESSION_PATIENCE: Final = 65.0
"""Seconds a receiver waits for the next available session if it does not say how long."""
_TICKS_AT_EPOCH: Final = 621_355_968_000_000_000
_TICKS_PER_SECOND: Final = 10_000_000


def error_of(refusal: BrokerError) -> Error:
    return Error(condition=refusal.condition, description=refusal.description)


class SessionWait:
    """A receiver that wants a session: a certain one, or (None) the next available, for which it waits."""

    def __init__(
        self,
        link: OutgoingLink,
        queue: Queue,
        session_id: str | None,
        on_accepted: Callable[[Session], None],
    ) -> None:
        self._link = link
        self._queue = queue
        self._session_id = session_id
        self._on_accepted = on_accepted
        self._timer: asyncio.TimerHandle | None = None

    def start_timer(self, loop: asyncio.AbstractEventLoop, give_up: Callable[["SessionWait"], None]) -> None:
        """Once the receiver has waited as long as it asked for, `give_up` is called and its link refused."""
        self._timer = loop.call_later(_patience(self._link), self._refuse, give_up)

    def try_accept(self) -> bool:
        """True when there is nothing more to wait for: accepted, refused, or gone."""
        if not self._link.attaching:
            self._stop()
            return True
        try:
            session = self._queue.accept_session(self._session_id)
        except BrokerError as refusal:
            self._stop()
            self._link.refuse(error_of(refusal))
            return True
        if session is None:
            return False
        self._stop()
        self._on_accepted(session)
        return True

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _refuse(self, give_up: Callable[["SessionWait"], None]) -> None:
        give_up(self)
        if self._link.attaching:
            self._link.refuse(
                Error(
                    condition=TIMEOUT,
                    description=f"The operation did not complete within {_patience(self._link):g} s: "
                    f"'{self._queue.name}' has no session available.",
                )
            )


def _patience(link: OutgoingLink) -> float:
    milliseconds = (link.attach.properties or {}).get(TIMEOUT)
    return milliseconds / 1000 if isinstance(milliseconds, int) else SESSION_PATIENCE


def session_filter(link: OutgoingLink) -> tuple[bool, str | None]:
    """Whether a session is asked for, and which; None is the next available one.

    Generic clients describe the value, as the standard wants; Microsoft's own do not. Azure takes both.
    Raises BrokerError for a session id that is no string.
    """
    filters = (link.attach.source and link.attach.source.filter) or {}
    if SESSION_FILTER not in filters:
        return False, None
    value: Any = filters[SESSION_FILTER]
    session_id = value.value if isinstance(value, Described) else value
    if session_id is not None and not isinstance(session_id, str):
        raise BrokerError(NOT_ALLOWED, f"a session id is a string or null, not {session_id!r:.80}")
    return True, session_id


def session_terms(session: Session) -> dict[Symbol, Any]:
    """The properties of the attach that grants a session. The SDK fails without them."""
    return {LOCKED_UNTIL_UTC: Long(int(session.locked_until * _TICKS_PER_SECOND) + _TICKS_AT_EPOCH)}
