"""One queue without sessions, and the rules every queue shares: send, take, settle, expire, dead-letter.

Pure state over a clock: nothing here waits. What time does (locks that end, messages that expire or fall
due) is caught up with at the start of every call, as if each had happened at its own moment; `next_deadline`
says when there will be something to catch up with. `sessions.py` adds sessions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count as count_from
from itertools import islice
from math import inf
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from worker.local.servicebus.duplicates import DuplicateHistory
from worker.local.servicebus.messages import (
    ARGUMENT_ERROR,
    MESSAGE_LOCK_LOST,
    MESSAGE_NOT_FOUND,
    MESSAGE_TOO_LARGE,
    NOT_ALLOWED,
    QUEUE_FULL,
    BrokerError,
    Counts,
    Locked,
    Message,
    MessageState,
)
from worker.local.servicebus.order import Agenda, Backlog, Key, Ledger
from worker.local.world import QueueSpec

if TYPE_CHECKING:
    from worker.local.servicebus.sessions import Session

DEAD_LETTER_SUFFIX = "/$DeadLetterQueue"
LONGEST_ID = 128


class Subscribers:
    """Callbacks without arguments. One must return at once and leave the queue alone: set an event."""

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


class Queue:
    """One entity. Every method may raise BrokerError; a call that raises has changed nothing."""

    def __init__(
        self, spec: QueueSpec, clock: Callable[[], float] = time.time, *, parent: "Queue | None" = None
    ) -> None:
        """`parent` makes it the dead-letter queue of that queue."""
        self.spec = spec
        self.name = spec.name
        self._parent = parent
        self._clock = clock
        self._numbers = count_from(1)
        self._ledger = Ledger()
        self._bytes = 0
        self._deferred = 0
        self._backlog = Backlog()
        self._history = DuplicateHistory(spec.duplicate_detection_window)
        self._locked: dict[UUID, Message] = {}
        self._lock_ends = Agenda[int](self._lose_lock)
        self._expiries = Agenda[int](self._end_life)
        self._schedule = Agenda[int](self._fall_due)
        self._agendas: tuple[Agenda[int] | Agenda[str], ...] = (
            self._lock_ends,
            self._expiries,
            self._schedule,
        )
        self._soonest = inf  # never later than the true next deadline, and never than a watcher knows it
        self._availability = Subscribers()
        self._deadline: Subscribers = parent._deadline if parent else Subscribers()
        self.dead_letters = None if parent else Queue(_dead_letter_spec(spec), clock, parent=self)

    # -- sending ----------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> list[int]:
        """All or nothing. Returns one sequence number for each message, a duplicate's being the original's.

        The objects are the broker's from then on: send none of them twice.
        A message whose `scheduled_enqueue_time` lies ahead is scheduled. Raises message-size-exceeded,
        resource-limit-exceeded, argument-error, or not-allowed (dead-letter queue, session id missing).
        """
        now = self._advance()
        for message in messages:
            self._check_sendable(message)
        self._check_room(sum(message.size for message in messages))
        numbers = [self._admit(message, now) for message in messages]
        self._availability.tell()
        return numbers

    def schedule(self, messages: Sequence[Message]) -> list[int]:
        """As `send`, but every message must say when. A time gone by enqueues it now."""
        for message in messages:
            if message.scheduled_enqueue_time is None:
                raise BrokerError(
                    ARGUMENT_ERROR,
                    f"message {message.message_id!r} for {self.name!r} has no scheduled enqueue time; "
                    "set the annotation x-opt-scheduled-enqueue-time, or send it instead of scheduling it",
                )
        return self.send(messages)

    def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> None:
        """All or nothing; raises message-not-found. Their ids stay in the duplicate history."""
        self._advance()
        for message in self._find(sequence_numbers, MessageState.SCHEDULED):
            self._schedule.drop(message.sequence_number)
            self._remove(message)

    # -- receiving --------------------------------------------------------------------------------------

    def take(self, count: int, *, session: "Session | None" = None) -> list[Locked]:
        """Locks up to `count` available messages, oldest first; fewer or none if there are no more."""
        now = self._advance()
        backlog = self._backlog_for(session)
        taken: list[Locked] = []
        while len(taken) < count and (message := backlog.pop()) is not None:
            taken.append(self._lock(message, session, now))
        return taken

    def take_and_delete(self, count: int, *, session: "Session | None" = None) -> list[Message]:
        """Receive-and-delete: the messages are gone when this returns."""
        self._advance()
        backlog = self._backlog_for(session)
        taken: list[Message] = []
        while len(taken) < count and (message := backlog.pop()) is not None:
            self._remove(message)
            taken.append(message)
        return taken

    def take_deferred(
        self, sequence_numbers: Sequence[int], *, delete: bool = False, session: "Session | None" = None
    ) -> list[Locked]:
        """All or nothing; message-not-found if one is not deferred, or locked, expired, of another session.

        With `delete` the messages are gone and the tokens of the answer open nothing.
        """
        now = self._advance()
        self._backlog_for(session)  # raises as `take` does without the right session
        self._expire_deferred(sequence_numbers, now)
        messages = self._find(sequence_numbers, MessageState.DEFERRED, session)
        taken = [self._lock(message, session, now) for message in messages]
        if delete:
            for locked in taken:
                self._remove(self._unlock(locked.token))
        return taken

    def peek(self, from_sequence_number: int, count: int, session_id: str | None = None) -> list[Message]:
        """Locked, deferred and scheduled messages too, not expired ones; with `session_id` only its own.

        Finding the start is fast; with `session_id` the messages of other sessions are walked over.
        """
        now = self._advance()
        found = (
            message
            for message in self._ledger.starting_at(from_sequence_number)
            if not message.expired(now) and session_id in (None, message.session_id)
        )
        return list(islice(found, count))

    # -- settling; each raises message-lock-lost when the token holds no lock (any more) ------------------

    def complete(self, token: UUID) -> None:
        self._advance()
        self._remove(self._unlock(token))

    def abandon(self, token: UUID) -> None:
        """A failed delivery. After the last one allowed the message is dead-lettered."""
        now = self._advance()
        self._fail(self._unlock(token), now)
        self._availability.tell()

    def release(self, token: UUID) -> None:
        """Gives the message back as if it had not been delivered."""
        now = self._advance()
        self._put_back(self._unlock(token), now)
        self._availability.tell()

    def defer(self, token: UUID) -> None:
        self._advance()
        message = self._unlock(token)
        if message.state is not MessageState.DEFERRED:
            message.state = MessageState.DEFERRED
            self._deferred += 1

    def dead_letter(self, token: UUID, reason: str | None = None, description: str | None = None) -> None:
        """Raises not-allowed on a dead-letter queue."""
        self._advance()
        if self.dead_letters is None:
            raise BrokerError(
                NOT_ALLOWED,
                f"a message of {self.name!r} cannot be dead-lettered again; complete, abandon or defer it",
            )
        self._bury(self._unlock(token), reason, description)

    def renew(self, tokens: Sequence[UUID]) -> list[float]:
        """All or nothing: the new end of each lock."""
        now = self._advance()
        messages = [self._holder_of(token) for token in tokens]
        until = now + self.spec.lock_duration
        for message in messages:
            self._remind(self._lock_ends, message.sequence_number, until)
        return [until] * len(messages)

    # -- sessions (see SessionQueue) ----------------------------------------------------------------------

    def accept_session(self, session_id: str | None) -> "Session | None":
        """Locks the session, or for None the next free one with active messages; None if there is none.

        Raises session-cannot-be-locked if somebody holds it, not-allowed on a queue without sessions.
        """
        raise self._without_sessions()

    def held_session(self, session_id: str) -> "Session":
        """The session as its present holder has it; raises session-lock-lost if nobody does."""
        raise self._without_sessions()

    def sessions(self, skip: int, top: int) -> list[str]:
        """Sessions with active messages, locked ones included."""
        raise self._without_sessions()

    # -- what a server watches --------------------------------------------------------------------------

    def counts(self) -> Counts:
        self._advance()
        scheduled = len(self._schedule)
        return Counts(
            active=len(self._ledger) - scheduled - self._deferred,
            deferred=self._deferred,
            scheduled=scheduled,
            dead_lettered=len(self.dead_letters._ledger) if self.dead_letters else 0,
        )

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
        return self._deadline.add(callback)

    def next_deadline(self) -> float | None:
        """Unix seconds at which a lock ends, a message expires or falls due; None if nothing will.

        Like `watch_deadline` and `expire` it speaks for the queue and its dead-letter queue together.
        """
        at = min(queue._look_ahead() for queue in self._family())
        return None if at == inf else at

    def expire(self, now: float | None = None) -> None:
        """Catches up with the clock (or `now`) and tells the subscribers."""
        now = self._clock() if now is None else now
        for queue in self._family():
            queue._catch_up(now)

    def _family(self) -> "tuple[Queue, ...]":
        if self._parent is not None:
            return (self._parent, self)
        return (self, self.dead_letters) if self.dead_letters is not None else (self,)

    # -- time -------------------------------------------------------------------------------------------

    def _advance(self) -> float:
        now = self._parent._advance() if self._parent is not None else self._clock()
        if self._soonest <= now:
            self._catch_up(now)
        return now

    def _catch_up(self, now: float) -> None:
        struck = False
        while self._look_ahead() <= now:
            min(self._agendas, key=_next_at).strike()
            struck = True
        if struck:
            self._availability.tell()

    def _look_ahead(self) -> float:
        self._soonest = min(agenda.next_at() for agenda in self._agendas)
        return self._soonest

    def _remind(self, agenda: Agenda[Key], key: Key, at: float) -> None:
        agenda.put(key, at)
        if at < self._soonest:
            self._soonest = at
            self._deadline.tell()

    def _lose_lock(self, number: int, at: float) -> None:
        message = self._ledger.get(number)
        if message is not None and message.lock_token is not None:
            self._fail(self._unlock(message.lock_token), at)

    def _end_life(self, number: int, at: float) -> None:
        message = self._ledger.get(number)
        # its holder may still settle a locked one; a deferred one is looked at when it is asked for
        if message is not None and message.lock_token is None and message.state is MessageState.ACTIVE:
            self._withdraw(message)
            self._expire(message)

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
                self._expire(message)

    # -- from state to state ------------------------------------------------------------------------------

    def _admit(self, message: Message, now: float) -> int:
        known = self._history.number_of(message.message_id, now)
        if known is not None:
            return known
        number = message.enqueued_sequence_number = self._enter(message)
        self._history.remember(message.message_id, number, now)
        due = message.scheduled_enqueue_time
        if due is not None and due > now:
            message.state = MessageState.SCHEDULED
            message.enqueued_at = now
            self._remind(self._schedule, number, due)
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
        if lives:
            message.expires_at = at + min(lives)
            self._remind(self._expiries, message.sequence_number, message.expires_at)
        self._offer(message)

    def _lock(self, message: Message, session: "Session | None", now: float) -> Locked:
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
            )
        else:
            self._put_back(message, now)

    def _put_back(self, message: Message, now: float) -> None:
        if message.state is MessageState.DEFERRED:
            return
        if message.expired(now):
            self._expire(message)
        else:
            self._offer(message)

    def _expire(self, message: Message) -> None:
        if self.spec.dead_letter_on_expiry and self.dead_letters is not None:
            self._bury(message, "TTLExpiredException", "The message expired and was dead lettered.")
        else:
            self._remove(message)

    def _bury(self, message: Message, reason: str | None, description: str | None) -> None:
        self._remove(message)
        message.dead_letter_reason = reason
        message.dead_letter_description = description
        message.expires_at = None  # nothing expires in a dead-letter queue
        message.state = MessageState.ACTIVE
        assert self.dead_letters is not None
        self.dead_letters._enter(message)
        self.dead_letters._offer(message)
        self.dead_letters._availability.tell()

    def _remove(self, message: Message) -> None:
        self._ledger.remove(message.sequence_number)
        self._bytes -= message.size
        if message.expires_at is not None:
            self._expiries.drop(message.sequence_number)
        if message.state is MessageState.DEFERRED:
            self._deferred -= 1

    # -- what a queue with sessions does differently --------------------------------------------------------

    def _backlog_for(self, session: "Session | None") -> Backlog:
        if session is not None:
            raise self._without_sessions()
        return self._backlog

    def _offer(self, message: Message) -> None:
        self._backlog.add(message)

    def _withdraw(self, message: Message) -> None:
        self._backlog.discard(message)

    def _hold(self, message: Message, session: "Session | None", now: float) -> float:
        until = now + self.spec.lock_duration
        self._remind(self._lock_ends, message.sequence_number, until)
        return until

    def _let_go(self, message: Message) -> None:
        self._lock_ends.drop(message.sequence_number)

    # -- looking up and refusing --------------------------------------------------------------------------

    def _holder_of(self, token: UUID) -> Message:
        message = self._locked.get(token)
        if message is None:
            raise BrokerError(
                MESSAGE_LOCK_LOST,
                f"the lock {token} of a message in {self.name!r} has expired or was settled already; "
                "receive the message again",
            )
        return message

    def _find(self, numbers: Sequence[int], state: MessageState, session: "Session | None" = None) -> list[Message]:
        found: dict[int, Message] = {}
        for number in numbers:
            message = self._ledger.get(number)
            if (
                message is None
                or message.state is not state
                or message.lock_token is not None
                or (session is not None and message.session_id != session.id)
            ):
                raise BrokerError(
                    MESSAGE_NOT_FOUND,
                    f"there is no {state.name.lower()} and unlocked message {number} in {self.name!r}; peek "
                    "shows what is there",
                )
            found[number] = message
        return list(found.values())

    def _check_sendable(self, message: Message) -> None:
        if self._parent is not None:
            raise BrokerError(NOT_ALLOWED, f"nothing can be sent to {self.name!r}; send to {self._parent.name!r}")
        if message.size > self.spec.max_message_bytes:
            raise BrokerError(
                MESSAGE_TOO_LARGE,
                f"message {message.message_id!r} has {message.size} bytes, {self.name!r} takes at most "
                f"{self.spec.max_message_bytes}; send less, or keep the content elsewhere",
            )
        for name, value in (("message-id", message.message_id), ("session id", message.session_id)):
            if value is not None and len(value) > LONGEST_ID:
                raise BrokerError(
                    ARGUMENT_ERROR,
                    f"the {name} {value[:20]!r}... for {self.name!r} has {len(value)} characters; at most "
                    f"{LONGEST_ID} are allowed",
                )

    def _check_room(self, size: int) -> None:
        # as in Service Bus, dead letters take room in their queue
        held = self._bytes + (self.dead_letters._bytes if self.dead_letters else 0)
        if held + size > self.spec.max_size_bytes:
            raise BrokerError(
                QUEUE_FULL,
                f"{self.name!r} holds {held} bytes of at most {self.spec.max_size_bytes}, dead letters "
                f"included; {size} more do not fit: receive messages first",
            )

    def _without_sessions(self) -> BrokerError:
        return BrokerError(
            NOT_ALLOWED, f"{self.name!r} does not require sessions; open a receiver without a session filter"
        )


def _next_at(agenda: Agenda[int] | Agenda[str]) -> float:
    return agenda.next_at()


def _dead_letter_spec(spec: QueueSpec) -> QueueSpec:
    return replace(
        spec,
        name=f"{spec.name}{DEAD_LETTER_SUFFIX}",
        requires_session=False,
        duplicate_detection_window=None,
        default_time_to_live=None,
    )
