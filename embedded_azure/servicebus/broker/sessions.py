"""A queue that requires sessions: its messages are taken under the lock of a session.

One holder at a time has a session, and with it the locks of all messages taken under it. If the session's
lock ends by time, these deliveries have failed; if the holder releases it, they have not (as the Service Bus
documentation on sessions and delivery counts says).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from uuid import UUID

from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.broker import checks
from embedded_azure.servicebus.broker.entities import Entity
from embedded_azure.servicebus.broker.messages import (
    NOT_ALLOWED,
    SESSION_CANNOT_BE_LOCKED,
    SESSION_LOCK_LOST,
    BrokerError,
    Message,
)
from embedded_azure.servicebus.broker.order import Backlog
from embedded_azure.servicebus.broker.queues import Queue
from embedded_azure.servicebus.broker.session_locks import Session, SessionRecord


class SessionQueue(Queue):
    """Without a session only sending, peeking, scheduling and settling by token are allowed."""

    def __init__(
        self, spec: QueueSpec, clock: Callable[[], float] = time.time, upstream: Entity | None = None
    ) -> None:
        super().__init__(spec, clock, upstream)
        self._records: dict[str, SessionRecord] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # free, with messages; longest ready first
        self._session_ends = self._timetable.agenda(self._lose_session)

    def accept_session(self, session_id: str | None) -> Session | None:
        now = self._advance()
        if session_id is None:
            session_id = next(iter(self._ready), None)
        if session_id is None:
            return None
        checks.check_session_id(session_id, self.name)
        record = self._record(session_id)
        if record.holder is not None:
            raise BrokerError(
                SESSION_CANNOT_BE_LOCKED,
                f"session {session_id!r} of {self.name!r} is locked by another receiver until "
                f"{record.holder.locked_until:.0f}; try later, or ask for the next available session",
            )
        record.holder = session = Session(self, record)
        self._prolong(session, now)
        self._review(record)
        return session

    def held_session(self, session_id: str) -> Session:
        self._advance()
        record = self._records.get(session_id)
        if record is None or record.holder is None:
            raise self._session_lost(session_id)
        return record.holder

    def sessions(self, skip: int, top: int, state_set_after: float | None = None) -> list[str]:
        self._advance()
        found = (record.id for record in self._records.values() if _listed(record, state_set_after))
        return list(islice(found, skip, skip + top))

    def set_state(self, session: Session, state: bytes | None) -> None:
        """Raises session-lock-lost."""
        now = self._advance()
        record = self._held_record(session)
        record.state, record.state_set_at = state, now

    def renew(self, tokens: Sequence[UUID]) -> list[float]:
        """Raises not-allowed: the lock to renew is the session's."""
        raise BrokerError(
            NOT_ALLOWED, f"messages of {self.name!r} are locked by their session; renew the session's lock"
        )

    def holds(self, session: Session) -> bool:
        self._advance()
        return session.record.holder is session

    def record_of(self, session: Session) -> SessionRecord:
        """Raises session-lock-lost unless `session` holds its session now."""
        self._advance()
        return self._held_record(session)

    def renew_session(self, session: Session) -> float:
        now = self._advance()
        self._held_record(session)
        return self._prolong(session, now)

    def release_session(self, session: Session) -> None:
        now = self._advance()
        if session.record.holder is session:
            self._session_ends.drop(session.id)
            self._free(session.record, lambda message: self._put_back(message, now))
            self._availability.tell()

    def _held_record(self, session: Session) -> SessionRecord:
        if session.record.holder is not session:
            raise self._session_lost(session.id)
        return session.record

    def _lose_session(self, session_id: str, at: float) -> None:
        self._free(self._records[session_id], lambda message: self._fail(message, at))

    def _free(self, record: SessionRecord, give_back: Callable[[Message], None]) -> None:
        for message in tuple(record.locked.values()):
            assert message.lock_token is not None
            give_back(self._unlock(message.lock_token))
        record.holder = None
        self._review(record)

    def _prolong(self, session: Session, now: float) -> float:
        session.locked_until = now + self.spec.lock_duration
        self._timetable.put(self._session_ends, session.id, session.locked_until)
        return session.locked_until

    def _record(self, session_id: str) -> SessionRecord:
        return self._records.setdefault(session_id, SessionRecord(id=session_id))

    def _review(self, record: SessionRecord) -> None:
        if record.backlog and record.holder is None:
            self._ready.setdefault(record.id)
        else:
            self._ready.pop(record.id, None)
        if record.forgettable:
            self._records.pop(record.id, None)

    # -- what Queue asks of its kinds ---------------------------------------------------------------------

    def _backlog_for(self, session: Session | None) -> Backlog:
        if session is None:
            raise BrokerError(
                NOT_ALLOWED,
                f"{self.name!r} requires sessions; open a receiver with a session filter (an id, or null for "
                "the next available session)",
            )
        return self._held_record(session).backlog

    def _offer(self, message: Message) -> None:
        record = self._record(self._session_id(message))
        record.backlog.add(message)
        self._review(record)

    def _withdraw(self, message: Message) -> None:
        record = self._record(self._session_id(message))
        record.backlog.discard(message)
        self._review(record)

    def _hold(self, message: Message, session: Session | None, now: float) -> float:
        assert session is not None  # `_backlog_for` saw to it
        session.record.locked[message.sequence_number] = message
        return session.locked_until

    def _let_go(self, message: Message) -> None:
        del self._records[self._session_id(message)].locked[message.sequence_number]

    def _check_own(self, message: Message) -> None:
        if message.session_id is None:
            raise BrokerError(
                NOT_ALLOWED,
                f"message {message.message_id!r} has no session id, which {self.name!r} needs; set group-id",
            )

    def _session_id(self, message: Message) -> str:
        assert message.session_id is not None  # checked when it was sent
        return message.session_id

    def _session_lost(self, session_id: str) -> BrokerError:
        return BrokerError(
            SESSION_LOCK_LOST,
            f"the lock of session {session_id!r} of {self.name!r} expired or was released; accept it anew",
        )


def _listed(record: SessionRecord, state_set_after: float | None) -> bool:
    if state_set_after is None:
        return record.has_active_messages or record.state is not None
    return record.state_set_at > state_set_after
