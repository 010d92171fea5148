"""What becomes of the messages that a queue holds: they wait, are locked, fail, expire, are put aside or leave.

Operations on a queue are in queues.py; here is what they and time do to one message. At any moment a message is in
the ledger, and in the backlog unless it is locked, deferred or scheduled.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count as count_from
from uuid import UUID, uuid4

from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.broker import checks
from embedded_azure.servicebus.broker.duplicates import DuplicateHistory
from embedded_azure.servicebus.broker.entities import Entity
from embedded_azure.servicebus.broker.messages import Locked, Message, MessageState
from embedded_azure.servicebus.broker.order import Backlog, Ledger
from embedded_azure.servicebus.broker.session_locks import Session

Route = Callable[[Message, float], None]
"""Takes a message elsewhere at once, at a unix time; it may not raise."""


class Lives(Entity):
    """A queue as its messages see it."""

    dead_letters: "Lives | None" = None
    transfer_dead_letters: "Lives | None" = None
    """Where messages rest that could not be passed on."""

    def __init__(
        self, spec: QueueSpec, clock: Callable[[], float] = time.time, upstream: Entity | None = None
    ) -> None:
        super().__init__(spec.name, clock, upstream)
        self.spec = spec
        self.passes_on: Route | None = None
        """Where messages go instead of resting here."""
        self.passes_dead_letters_on: Route | None = None
        self._numbers = count_from(1)
        self._ledger = Ledger()
        self._bytes = 0
        self._deferred = 0
        self._backlog = Backlog()
        self._history = DuplicateHistory(spec.duplicate_detection_window)
        self._locked: dict[UUID, Message] = {}
        self._lock_ends = self._timetable.agenda(self._lose_lock)
        self._expiries = self._timetable.agenda(self._end_life)
        self._schedule = self._timetable.agenda(self._fall_due)

    @property
    def held(self) -> int:
        """Messages in any state."""
        return len(self._ledger)

    def lay_aside(self, message: Message, reason: str | None, description: str | None) -> None:
        """Rests in `transfer_dead_letters`: it could not be passed on."""
        _label(message, reason, description)
        assert self.transfer_dead_letters is not None
        self.transfer_dead_letters.rest(message)

    def refuse(self, message: Message, reason: str, description: str, at: float) -> None:
        """Dead-letters a message that could not be taken in."""
        self._enter(message)
        message.enqueued_at = at
        self._bury(message, reason, description, at)

    def rest(self, message: Message) -> None:
        """Takes in a dead letter."""
        message.expires_at = None  # nothing expires in a dead-letter queue
        message.state = MessageState.ACTIVE
        self._enter(message)
        self._offer(message)
        self._availability.tell()

    # -- time -------------------------------------------------------------------------------------------

    def _lose_lock(self, number: int, at: float) -> None:
        message = self._ledger.get(number)
        if message is not None and message.lock_token is not None:
            self._fail(self._unlock(message.lock_token), at)

    def _end_life(self, number: int, at: float) -> None:
        message = self._ledger.get(number)
        # its holder may still settle a locked one; a deferred one is looked at when it is asked for
        if message is not None and message.lock_token is None and message.state is MessageState.ACTIVE:
            self._withdraw(message)
            self._expire(message, at)

    def _fall_due(self, number: int, at: float) -> None:
        message = self._ledger.remove(number)
        message.sequence_number = next(self._numbers)
        self._ledger.add(message)
        self._enqueue(message, at)

    def _expire_deferred(self, sequence_numbers: Sequence[int], now: float) -> None:
        for number in sequence_numbers:
            message = self._ledger.get(number)
            if message is None or message.state is not MessageState.DEFERRED or message.lock_token is not None:
                continue
            if message.expired(now):
                self._expire(message, now)

    # -- from state to state ------------------------------------------------------------------------------

    def _admit(self, message: Message, now: float) -> int:
        known = self._history.number_of(message.message_id, now)
        if known is not None:
            return known
        number = self._enter(message)
        message.enqueued_sequence_number = message.enqueued_sequence_number or number
        self._history.remember(message.message_id, number, now)
        due = message.scheduled_enqueue_time
        if due is not None and due > now:
            message.state = MessageState.SCHEDULED
            message.enqueued_at = now
            self._timetable.put(self._schedule, number, due)
        else:
            self._enqueue(message, now)
        return number

    def _enter(self, message: Message) -> int:
        message.sequence_number = number = next(self._numbers)
        self._ledger.add(message)
        self._bytes += message.size
        return number

    def _enqueue(self, message: Message, at: float) -> None:
        message.state = MessageState.ACTIVE
        message.enqueued_at = at
        lives = [ttl for ttl in (message.time_to_live, self.spec.default_time_to_live) if ttl is not None]
        if self.passes_on is not None:
            self._remove(message)
            message.time_to_live = min(lives, default=None)
            self.passes_on(message, at)
            return
        if lives:
            message.expires_at = at + min(lives)
            self._timetable.put(self._expiries, message.sequence_number, message.expires_at)
        self._offer(message)

    def _lock(self, message: Message, session: Session | None, now: float) -> Locked:
        message.lock_token = token = uuid4()
        self._locked[token] = message
        return Locked(message=message, token=token, locked_until=self._hold(message, session, now))

    def _unlock(self, token: UUID) -> Message:
        message = self._holder_of(token)
        self._let_go(message)
        del self._locked[token]
        message.lock_token = None
        return message

    def _fail(self, message: Message, now: float) -> None:
        message.delivery_count += 1
        if self.dead_letters is not None and message.delivery_count >= self.spec.max_delivery_count:
            self._bury(
                message,
                "MaxDeliveryCountExceeded",
                f"Message could not be consumed after {message.delivery_count} delivery attempts.",
                now,
            )
        else:
            self._put_back(message, now)

    def _put_back(self, message: Message, now: float) -> None:
        if message.state is MessageState.DEFERRED:
            return
        if message.expired(now):
            self._expire(message, now)
        else:
            self._offer(message)

    def _expire(self, message: Message, at: float) -> None:
        if self.spec.dead_letter_on_expiry and self.dead_letters is not None:
            self._bury(message, "TTLExpiredException", "The message expired and was dead lettered.", at)
        else:
            self._remove(message)

    def _bury(self, message: Message, reason: str | None, description: str | None, at: float) -> None:
        self._remove(message)
        _label(message, reason, description)
        if self.passes_dead_letters_on is not None:
            message.dead_letter_source = self.name
            self.passes_dead_letters_on(message, at)
        else:
            assert self.dead_letters is not None
            self.dead_letters.rest(message)

    def _remove(self, message: Message) -> None:
        self._ledger.remove(message.sequence_number)
        self._bytes -= message.size
        if message.expires_at is not None:
            self._expiries.drop(message.sequence_number)
        if message.state is MessageState.DEFERRED:
            self._deferred -= 1

    # -- what other kinds of queues do differently ----------------------------------------------------------

    def _backlog_for(self, session: Session | None) -> Backlog:
        if session is not None:
            raise checks.without_sessions(self.name)
        return self._backlog

    def _offer(self, message: Message) -> None:
        self._backlog.add(message)

    def _withdraw(self, message: Message) -> None:
        self._backlog.discard(message)

    def _hold(self, message: Message, session: Session | None, now: float) -> float:
        until = now + self.spec.lock_duration
        self._timetable.put(self._lock_ends, message.sequence_number, until)
        return until

    def _let_go(self, message: Message) -> None:
        self._lock_ends.drop(message.sequence_number)

    # -- looking up and refusing --------------------------------------------------------------------------

    def _holder_of(self, token: UUID) -> Message:
        message = self._locked.get(token)
        if message is None:
            raise checks.lock_lost(token, self.name)
        return message

    def _find(self, numbers: Sequence[int], state: MessageState, session: Session | None = None) -> list[Message]:
        found: dict[int, Message] = {}
        for number in numbers:
            message = self._ledger.get(number)
            if (
                message is None
                or message.state is not state
                or message.lock_token is not None
                or (session is not None and message.session_id != session.id)
            ):
                raise checks.not_found(state, number, self.name)
            found[number] = message
        return list(found.values())

    def _check_room(self, size: int) -> None:
        checks.check_room(self.name, self._all_bytes(), size, self.spec.max_size_bytes)

    def _all_bytes(self) -> int:
        """As in Service Bus, dead letters take room in their queue."""
        return self._bytes + sum(
            queue._bytes for queue in (self.dead_letters, self.transfer_dead_letters) if queue is not None
        )


def _label(message: Message, reason: str | None, description: str | None) -> None:
    message.dead_letter_reason = reason
    message.dead_letter_description = description
