"""A session as its queue keeps it, and as the receiver that has locked it. `SessionQueue` decides what happens."""

from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from embedded_azure.servicebus.broker.messages import Message, MessageState
from embedded_azure.servicebus.broker.order import Backlog


@dataclass(slots=True, kw_only=True, eq=False)
class SessionRecord:
    """What the queue keeps of a session, whoever holds it."""

    id: str
    backlog: Backlog = field(default_factory=Backlog)
    locked: dict[int, Message] = field(default_factory=dict)
    state: bytes | None = None
    state_set_at: float = -inf
    holder: "Session | None" = None

    @property
    def forgettable(self) -> bool:
        return not (self.backlog or self.locked or self.holder) and self.state is None

    @property
    def has_active_messages(self) -> bool:
        return bool(self.backlog) or any(m.state is MessageState.ACTIVE for m in self.locked.values())


class LockingQueue(Protocol):
    """What a lock asks of its queue. All but `holds` and `release_session` raise session-lock-lost."""

    def holds(self, session: "Session") -> bool: ...
    def record_of(self, session: "Session") -> SessionRecord: ...
    def set_state(self, session: "Session", state: bytes | None) -> None: ...
    def renew_session(self, session: "Session") -> float: ...
    def release_session(self, session: "Session") -> None: ...


class Session:
    """One holder's lock on a session. Once lost it stays lost: accept the session anew."""

    def __init__(self, queue: LockingQueue, record: SessionRecord) -> None:
        self._queue = queue
        self.record = record
        self.id = record.id
        self.locked_until = 0.0
        """Unix seconds; lies in the past once the lock is lost by time."""

    @property
    def held(self) -> bool:
        return self._queue.holds(self)

    @property
    def state(self) -> bytes | None:
        """Outlives the lock. Raises session-lock-lost, to read or to set."""
        return self._queue.record_of(self).state

    @state.setter
    def state(self, state: bytes | None) -> None:
        self._queue.set_state(self, state)

    def renew(self) -> float:
        """The new end of the lock. Raises session-lock-lost."""
        return self._queue.renew_session(self)

    def release(self) -> None:
        """Frees the session and the messages locked under it, uncounted. Nothing happens if it was lost."""
        self._queue.release_session(self)
