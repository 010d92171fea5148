"""One queue without sessions, and the rules every queue shares: send, take, settle, expire, dead-letter.

A queue may pass on what it is sent, or its dead letters, to another entity; transfers.py says how. sessions.py adds
sessions, topics.py gives subscriptions, which are queues that nobody sends to.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Final, Literal
from uuid import UUID

from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.broker import checks
from embedded_azure.servicebus.broker.entities import Entity
from embedded_azure.servicebus.broker.lives import Lives
from embedded_azure.servicebus.broker.messages import (
    NOT_ALLOWED,
    BrokerError,
    Counts,
    Locked,
    Message,
    MessageState,
)
from embedded_azure.servicebus.broker.rules import Rules
from embedded_azure.servicebus.broker.session_locks import Session

DEAD_LETTER_SUFFIX = "/$DeadLetterQueue"
TRANSFER_DEAD_LETTER_SUFFIX = "/$Transfer/$DeadLetterQueue"
UNCHANGED: Final[Mapping[str, object]] = MappingProxyType({})


class Queue(Lives):
    """Every method may raise BrokerError; a call that raises has changed nothing."""

    dead_letters: "Queue | None" = None
    transfer_dead_letters: "Queue | None" = None

    def __init__(
        self, spec: QueueSpec, clock: Callable[[], float] = time.time, upstream: Entity | None = None
    ) -> None:
        super().__init__(spec, clock, upstream)
        self.rules: Rules | None = None
        """A subscription's; None for every other queue."""
        self._add_dead_letter_queues()

    # -- sending ----------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> list[int]:
        """All or nothing. Returns one sequence number for each message, a duplicate's being the original's.

        The objects are the broker's from then on: send none of them twice.
        A message whose `scheduled_enqueue_time` lies ahead is scheduled. Raises message-size-exceeded,
        resource-limit-exceeded, argument-error, or not-allowed (no entity to send to, session id missing).
        """
        now = self._advance()
        self.check_enabled("Send")
        for message in messages:
            self._check_sendable(message)
        self._check_room(sum(message.size for message in messages))
        numbers = [self._admit(message, now) for message in messages]
        self._availability.tell()
        return numbers

    def schedule(self, messages: Sequence[Message]) -> list[int]:
        """As `send`, but every message must say when. A time gone by enqueues it now."""
        checks.check_scheduled(messages, self.name)
        return self.send(messages)

    def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> None:
        """All or nothing; raises message-not-found. Their ids stay in the duplicate history."""
        self._advance()
        for message in self._find(sequence_numbers, MessageState.SCHEDULED):
            self._schedule.drop(message.sequence_number)
            self._remove(message)

    def check_enabled(self, operation: Literal["Send", "Receive"]) -> None:
        """Raises entity-disabled."""
        checks.check_enabled(self.name, self.spec.status, operation)

    def set_terms(self, spec: QueueSpec) -> None:
        """Receivers learn at once that they may not (or may again) receive."""
        self.spec = spec
        self._availability.tell()

    def arrive(self, message: Message, at: float) -> None:
        """Takes what another entity passes on, at the unix time `at`. Raises as `send` does."""
        if self._timetable.soonest <= at:
            self._catch_up(at)
        if self.rules is None:  # a subscription takes messages whatever its status
            self.check_enabled("Send")
        checks.check_message(message, self.name, self.spec.max_message_bytes)
        self._check_own(message)
        self._check_room(message.size)
        self._admit(message, at)
        self._availability.tell()

    # -- receiving --------------------------------------------------------------------------------------

    def check_receivable(self) -> None:
        """Raises not-allowed when nothing can ever be received here, entity-disabled when it cannot now."""
        self.check_enabled("Receive")
        if self.passes_on is not None:
            raise BrokerError(
                NOT_ALLOWED,
                f"Cannot create a message receiver on an entity with auto-forwarding enabled: {self.name!r} passes "
                f"its messages on to {self.spec.forward_to!r}.",
            )

    def take(self, count: int, *, session: Session | None = None) -> list[Locked]:
        """Locks up to `count` available messages, oldest first; fewer or none if there are no more."""
        now = self._advance()
        self.check_enabled("Receive")  # a link may be older than the status
        backlog = self._backlog_for(session)
        taken: list[Locked] = []
        while len(taken) < count and (message := backlog.pop()) is not None:
            taken.append(self._lock(message, session, now))
        return taken

    def take_and_delete(self, count: int, *, session: Session | None = None) -> list[Message]:
        """Receive-and-delete: the messages are gone when this returns."""
        self._advance()
        self.check_enabled("Receive")
        backlog = self._backlog_for(session)
        taken: list[Message] = []
        while len(taken) < count and (message := backlog.pop()) is not None:
            self._remove(message)
            taken.append(message)
        return taken

    def take_deferred(
        self, sequence_numbers: Sequence[int], *, delete: bool = False, session: Session | None = None
    ) -> list[Locked]:
        """All or nothing; message-not-found if one is not deferred, or locked, expired, of another session.

        With `delete` the messages are gone and the tokens of the answer open nothing.
        """
        now = self._advance()
        self.check_enabled("Receive")
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
    # `change` are application properties to set on the message; None removes one.

    def complete(self, token: UUID) -> None:
        self._advance()
        self._remove(self._unlock(token))

    def abandon(self, token: UUID, change: Mapping[str, object] = UNCHANGED) -> None:
        """A failed delivery. After the last one allowed the message is dead-lettered."""
        now = self._advance()
        message = self._unlock(token)
        message.change(change)
        self._fail(message, now)
        self._availability.tell()

    def release(self, token: UUID) -> None:
        """Gives the message back as if it had not been delivered."""
        now = self._advance()
        self._put_back(self._unlock(token), now)
        self._availability.tell()

    def defer(self, token: UUID, change: Mapping[str, object] = UNCHANGED) -> None:
        """Counts as a delivery, but never as the last one allowed."""
        self._advance()
        message = self._unlock(token)
        message.change(change)
        message.delivery_count += 1
        if message.state is not MessageState.DEFERRED:
            message.state = MessageState.DEFERRED
            self._deferred += 1

    def dead_letter(
        self,
        token: UUID,
        reason: str | None = None,
        description: str | None = None,
        change: Mapping[str, object] = UNCHANGED,
    ) -> None:
        """Raises not-allowed on a dead-letter queue."""
        now = self._advance()
        if self.dead_letters is None:
            raise BrokerError(
                NOT_ALLOWED,
                f"a message of {self.name!r} cannot be dead-lettered again; complete, abandon or defer it",
            )
        message = self._unlock(token)
        message.change(change)
        self._bury(message, reason, description, now)

    def renew(self, tokens: Sequence[UUID]) -> list[float]:
        """All or nothing: the new end of each lock."""
        now = self._advance()
        messages = [self._holder_of(token) for token in tokens]
        until = now + self.spec.lock_duration
        for message in messages:
            self._timetable.put(self._lock_ends, message.sequence_number, until)
        return [until] * len(messages)

    # -- sessions (see SessionQueue) ----------------------------------------------------------------------

    def accept_session(self, session_id: str | None) -> Session | None:
        """Locks the session, or for None the next free one with active messages; None if there is none.

        Raises session-cannot-be-locked if somebody holds it, not-allowed on a queue without sessions.
        """
        raise checks.without_sessions(self.name)

    def held_session(self, session_id: str) -> Session:
        """The session as its present holder has it; raises session-lock-lost if nobody does."""
        raise checks.without_sessions(self.name)

    def sessions(self, skip: int, top: int, state_set_after: float | None = None) -> list[str]:
        """Sessions with active messages, locked ones included, or with a state.

        With a unix time only those whose state was set after it.
        """
        raise checks.without_sessions(self.name)

    def counts(self) -> Counts:
        self._advance()
        scheduled = len(self._schedule)
        return Counts(
            active=len(self._ledger) - scheduled - self._deferred,
            deferred=self._deferred,
            scheduled=scheduled,
            dead_lettered=self.dead_letters.held if self.dead_letters else 0,
            transfer_dead_lettered=self.transfer_dead_letters.held if self.transfer_dead_letters else 0,
        )

    @property
    def size_in_bytes(self) -> int:
        """Of all messages, dead letters included."""
        self._advance()
        return self._all_bytes()

    def family(self) -> tuple[Entity, ...]:
        return (self, *(queue for queue in (self.dead_letters, self.transfer_dead_letters) if queue))

    # -- what other kinds of queues do differently ----------------------------------------------------------

    def _add_dead_letter_queues(self) -> None:
        self.dead_letters = DeadLetterQueue(self, DEAD_LETTER_SUFFIX)
        self.transfer_dead_letters = DeadLetterQueue(self, TRANSFER_DEAD_LETTER_SUFFIX)

    def _check_sendable(self, message: Message) -> None:
        if self.rules is not None:
            raise BrokerError(
                NOT_ALLOWED, f"nothing can be sent to the subscription {self.name!r}; send to its topic"
            )
        checks.check_message(message, self.name, self.spec.max_message_bytes)
        self._check_own(message)

    def _check_own(self, message: Message) -> None:
        """What this kind of queue asks of a message beyond its size and ids."""


class DeadLetterQueue(Queue):
    """A queue's own: nothing can be sent to it, dead-lettered in it, or expires in it."""

    def __init__(self, owner: Queue, suffix: str) -> None:
        spec = replace(
            owner.spec,
            name=f"{owner.name}{suffix}",
            requires_session=False,
            duplicate_detection_window=None,
            default_time_to_live=None,
            forward_to=None,
            forward_dead_letters_to=None,
            status="Active",
        )
        super().__init__(spec, owner._clock, owner)
        self._owner = owner.name

    def _add_dead_letter_queues(self) -> None:
        self.dead_letters = self.transfer_dead_letters = None

    def _check_sendable(self, message: Message) -> None:
        raise BrokerError(NOT_ALLOWED, f"nothing can be sent to {self.name!r}; send to {self._owner!r}")
