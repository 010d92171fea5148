"""The broker against a model that keeps a plain list of messages and lives through time second by second.

The model puts every accepted message in exactly one `Place` and notes each failed delivery; after every step
the broker must agree about every message: none lost, none in two places, none under two locks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.broker.broker import (
    Broker,
    BrokerError,
    Locked,
    Message,
    MessageState,
    Queue,
    Session,
)

LOCK, WINDOW, MAX_DELIVERIES = 10, 20, 3


class Place(Enum):
    ACTIVE = "active"
    DEFERRED = "deferred"
    SCHEDULED = "scheduled"
    DEAD = "dead-lettered"
    DEAD_DEFERRED = "dead-lettered and deferred"
    COMPLETED = "completed"
    EXPIRED = "expired"


HELD = (Place.ACTIVE, Place.DEFERRED, Place.SCHEDULED)
BURIED = (Place.DEAD, Place.DEAD_DEFERRED)


@dataclass(eq=False)
class Record:
    """`message` is the broker's own object: only its numbers are believed."""

    message: Message
    place: Place
    ttl: float | None
    due: float
    failed: int = 0
    token: UUID | None = None
    lock_end: float = 0
    expires_at: float | None = None
    reason: str | None = None

    @property
    def session(self) -> str | None:
        return self.message.session_id

    def available(self, place: Place) -> bool:
        return self.place is place and self.token is None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class Model:
    def __init__(self, *, bury_expired: bool) -> None:
        self.now = 0.0
        self.records: list[Record] = []
        self.bury_expired = bury_expired

    def live_until(self, now: float) -> None:
        while self.now < now:
            self.now += 1
            self.live_one_second()

    def live_one_second(self) -> None:
        for record in self.records:
            if record.token is not None and record.lock_end <= self.now:
                self.fail(record)
            if record.place is Place.SCHEDULED and record.due <= self.now:
                self.enqueue(record)
            if record.available(Place.ACTIVE) and record.expired(self.now):
                self.expire(record)

    def enqueue(self, record: Record) -> None:
        record.place = Place.ACTIVE
        record.expires_at = None if record.ttl is None else self.now + record.ttl

    def fail(self, record: Record) -> None:
        record.failed += 1
        if record.place in HELD and record.failed >= MAX_DELIVERIES:
            self.bury(record, "MaxDeliveryCountExceeded")
        else:
            self.give_back(record)

    def give_back(self, record: Record) -> None:
        record.token = None
        if record.place is Place.ACTIVE and record.expired(self.now):
            self.expire(record)

    def expire(self, record: Record) -> None:
        if self.bury_expired:
            self.bury(record, "TTLExpiredException")
        else:
            record.place, record.token = Place.EXPIRED, None

    def bury(self, record: Record, reason: str | None) -> None:
        record.place, record.token, record.reason, record.expires_at = Place.DEAD, None, reason, None

    def defer(self, record: Record) -> None:
        record.failed += 1
        record.token = None
        record.place = Place.DEFERRED if record.place in HELD else Place.DEAD_DEFERRED

    def complete(self, record: Record) -> None:
        record.place, record.token = Place.COMPLETED, None

    def in_place(self, *places: Place) -> list[Record]:
        return [record for record in self.records if record.place in places]

    def locked(self) -> list[Record]:
        return [record for record in self.records if record.token is not None]

    def next_event(self) -> float:
        times = [record.lock_end for record in self.locked()]
        times += [record.due for record in self.in_place(Place.SCHEDULED)]
        times += [r.expires_at for r in self.records if r.available(Place.ACTIVE) and r.expires_at is not None]
        return min(times, default=float("inf"))


class QueueMachine(RuleBasedStateMachine):
    """A queue without sessions."""

    requires_session = False

    @initialize(bury_expired=st.booleans())
    def open(self, bury_expired: bool) -> None:
        self.now = 0.0
        self.model = Model(bury_expired=bury_expired)
        self.accepted_ids: dict[str, float] = {}
        self.lost_tokens = [uuid4()]
        spec = QueueSpec(
            name="q",
            lock_duration=LOCK,
            max_delivery_count=MAX_DELIVERIES,
            duplicate_detection_window=WINDOW,
            dead_letter_on_expiry=bury_expired,
            requires_session=self.requires_session,
        )
        self.queue = Broker([spec], lambda: self.now).entity("q")
        assert self.queue.dead_letters is not None
        self.dead: Queue = self.queue.dead_letters
        self.timer = float("inf")
        self.queue.watch_deadline(self.set_timer)

    def set_timer(self) -> None:
        at = self.queue.next_deadline()
        self.timer = float("inf") if at is None else at

    # -- time

    @rule(seconds=st.integers(1, 4) | st.integers(1, 25))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        before = {record: record.token for record in self.model.locked()}
        self.model.live_until(self.now)
        self.lost_tokens += [token for record, token in before.items() if token and record.token is None]
        if self.timer <= self.now:
            self.queue.expire()
            self.set_timer()

    # -- sending

    @rule(
        drafts=st.lists(
            st.tuples(
                st.integers(0, 60),
                st.sampled_from("abc"),
                st.none() | st.integers(1, 30),
                st.none() | st.integers(-1, 15),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def send(self, drafts: list[tuple[int, str, int | None, int | None]]) -> None:
        messages = []
        for number, session, ttl, delay in drafts:
            message = Message(
                sections=object(),
                size=1,
                message_id=f"m{number}",
                session_id=session if self.requires_session else None,
                time_to_live=ttl,
                scheduled_enqueue_time=None if delay is None else self.now + delay,
            )
            messages.append(message)
            self.accept_unless_known(message, f"m{number}", ttl, self.now + (delay or 0))
        assert len(self.queue.send(messages)) == len(messages)

    def accept_unless_known(self, message: Message, message_id: str, ttl: int | None, due: float) -> None:
        if self.accepted_ids.get(message_id, -WINDOW) + WINDOW > self.now:
            return
        self.accepted_ids[message_id] = self.now
        record = Record(message, Place.SCHEDULED, ttl, due)
        self.model.records.append(record)
        if due <= self.now:
            self.model.enqueue(record)

    @precondition(lambda self: self.model.in_place(Place.SCHEDULED))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.model.in_place(Place.SCHEDULED)))
        self.queue.cancel_scheduled([record.message.sequence_number])
        record.place = Place.COMPLETED

    # -- receiving

    @rule(count=st.integers(1, 3))
    def take(self, count: int) -> None:
        self.note_locks(self.queue.take(count), Place.ACTIVE, count, None)

    @rule(count=st.integers(1, 2))
    def take_dead(self, count: int) -> None:
        self.note_locks(self.dead.take(count), Place.DEAD, count, None)

    @rule(count=st.integers(1, 2), dead=st.booleans())
    def take_and_delete(self, count: int, dead: bool) -> None:
        if dead or not self.requires_session:
            taken = (self.dead if dead else self.queue).take_and_delete(count)
            for record in self.expect(taken, Place.DEAD if dead else Place.ACTIVE, count, None):
                self.model.complete(record)

    def expect(self, taken: list[Message], place: Place, count: int, session: str | None) -> list[Record]:
        """Exactly the oldest of those the model has available."""
        waiting = [r for r in self.model.records if r.available(place) and session in (None, r.session)]
        waiting.sort(key=lambda record: record.message.sequence_number)
        # deleted messages keep their numbers, so this holds after the fact too
        assert [r.message for r in waiting[:count]] == taken
        return waiting[:count]

    def note_locks(
        self, taken: list[Locked], place: Place, count: int, session: str | None, until: float | None = None
    ) -> None:
        expected = self.expect([locked.message for locked in taken], place, count, session)
        for record, locked in zip(expected, taken, strict=True):
            record.token, record.lock_end = locked.token, until or self.now + LOCK
            assert locked.locked_until == record.lock_end
            assert locked.message.delivery_count == record.failed

    @precondition(lambda self: self.model.in_place(Place.DEFERRED))
    @rule(data=st.data())
    def take_deferred(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.model.in_place(Place.DEFERRED)))
        self.ask_for_deferred(record, None, self.now + LOCK)

    def ask_for_deferred(self, record: Record, session: Session | None, until: float) -> None:
        def ask() -> list[Locked]:
            return self.queue.take_deferred([record.message.sequence_number], session=session)

        if record.token is not None:
            refused("com.microsoft:message-not-found", ask)
        elif record.expired(self.now):
            refused("com.microsoft:message-not-found", ask)
            self.model.expire(record)
        else:
            (locked,) = ask()
            record.token, record.lock_end = locked.token, until

    # -- settling

    # one rule each: they must come up as often as the rest taken together
    @precondition(lambda self: self.model.locked())
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self.settle(data, "complete")

    @precondition(lambda self: self.model.locked())
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.settle(data, "abandon")

    @precondition(lambda self: self.model.locked())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.settle(data, "release")

    @precondition(lambda self: self.model.locked())
    @rule(data=st.data())
    def defer(self, data: st.DataObject) -> None:
        self.settle(data, "defer")

    @precondition(lambda self: self.model.locked())
    @rule(data=st.data())
    def dead_letter(self, data: st.DataObject) -> None:
        self.settle(data, "dead_letter")

    def settle(self, data: st.DataObject, how: str) -> None:
        record = data.draw(st.sampled_from(self.model.locked()))
        token = record.token
        assert token is not None
        queue = self.dead if record.place in BURIED else self.queue
        if how == "dead_letter" and queue is self.dead:
            refused("amqp:not-allowed", lambda: queue.dead_letter(token))
            return
        getattr(queue, how)(token)
        self.lost_tokens.append(token)
        self.settle_in_model(record, how)

    def settle_in_model(self, record: Record, how: str) -> None:
        match how:
            case "complete":
                self.model.complete(record)
            case "abandon":
                self.model.fail(record)
            case "release":
                self.model.give_back(record)
            case "defer":
                self.model.defer(record)
            case _:
                self.model.bury(record, None)

    @rule(data=st.data(), how=st.sampled_from(["complete", "abandon", "release", "defer", "dead_letter"]))
    def settle_with_a_lost_token(self, data: st.DataObject, how: str) -> None:
        token = data.draw(st.sampled_from(self.lost_tokens))
        refused("com.microsoft:message-lock-lost", lambda: getattr(self.queue, how)(token))

    @precondition(lambda self: not self.requires_session and self.model.locked())
    @rule(data=st.data(), with_a_lost_one=st.booleans())
    def renew(self, data: st.DataObject, with_a_lost_one: bool) -> None:
        record = data.draw(st.sampled_from(self.model.locked()))
        assert record.token is not None
        tokens = [record.token] + self.lost_tokens[:1] * with_a_lost_one
        queue = self.dead if record.place in BURIED else self.queue
        if with_a_lost_one:
            refused("com.microsoft:message-lock-lost", lambda: queue.renew(tokens))
        else:
            record.lock_end = self.now + LOCK
            assert queue.renew(tokens) == [record.lock_end]

    # -- agreement

    @invariant()
    def the_broker_agrees_about_every_message(self) -> None:
        held = [r for r in self.model.in_place(*HELD) if not r.expired(self.now)]
        assert view(self.queue) == {describe(record) for record in held}
        assert view(self.dead) == {describe(record) for record in self.model.in_place(*BURIED)}

    @invariant()
    def the_counts_agree(self) -> None:
        counts, model = self.queue.counts(), self.model
        assert counts.active == len(model.in_place(Place.ACTIVE))
        assert counts.deferred == len(model.in_place(Place.DEFERRED))
        assert counts.scheduled == len(model.in_place(Place.SCHEDULED))
        assert counts.dead_lettered == len(model.in_place(*BURIED))

    @invariant()
    def the_timer_never_sleeps_past_an_event(self) -> None:
        assert self.timer <= self.model.next_event()

    @invariant()
    def bytes_are_those_of_the_messages_held(self) -> None:
        assert self.queue._bytes == len(self.model.in_place(*HELD))
        assert self.dead._bytes == len(self.model.in_place(*BURIED))


class SessionQueueMachine(QueueMachine):
    """A queue that requires sessions; the model knows who holds one until when."""

    requires_session = True

    @initialize()
    def without_holders(self) -> None:
        self.holders: dict[str, tuple[Session, float]] = {}

    def held(self) -> dict[str, tuple[Session, float]]:
        return {name: (session, until) for name, (session, until) in self.holders.items() if until > self.now}

    @rule(session_id=st.sampled_from("abc"))
    def accept(self, session_id: str) -> None:
        if session_id in self.held():
            refused("com.microsoft:session-cannot-be-locked", lambda: self.queue.accept_session(session_id))
        else:
            self.note_session(self.queue.accept_session(session_id))

    @rule()
    def accept_next(self) -> None:
        waiting = {r.session for r in self.model.records if r.available(Place.ACTIVE)} - set(self.held())
        session = self.queue.accept_session(None)
        assert (session.id in waiting) if session else not waiting
        if session:
            self.note_session(session)

    def note_session(self, session: Session | None) -> None:
        assert session is not None
        assert session.held
        self.holders[session.id] = (session, self.now + LOCK)
        assert session.locked_until == self.now + LOCK

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release_session(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(sorted(self.holders)))
        session, until = self.holders.pop(session_id)
        session.release()  # nothing if it was lost
        if until > self.now:
            for record in self.locked_under(session_id):
                self.model.give_back(record)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def renew_session(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(sorted(self.holders)))
        session, until = self.holders[session_id]
        if until <= self.now:
            refused("com.microsoft:session-lock-lost", session.renew)
            return
        assert session.renew() == self.now + LOCK
        self.holders[session_id] = (session, self.now + LOCK)
        for record in self.locked_under(session_id):
            record.lock_end = self.now + LOCK

    @rule(count=st.integers(1, 3))
    def take(self, count: int) -> None:
        refused("amqp:not-allowed", lambda: self.queue.take(count))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), count=st.integers(1, 3))
    def take_under_session(self, data: st.DataObject, count: int) -> None:
        session_id = data.draw(st.sampled_from(sorted(self.holders)))
        session, until = self.holders[session_id]
        if until <= self.now:
            refused("com.microsoft:session-lock-lost", lambda: self.queue.take(count, session=session))
        else:
            self.note_locks(self.queue.take(count, session=session), Place.ACTIVE, count, session_id, until)

    @precondition(lambda self: self.model.in_place(Place.DEFERRED))
    @rule(data=st.data())
    def take_deferred(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.model.in_place(Place.DEFERRED)))
        if record.session in self.held():
            session, until = self.held()[record.session]
            self.ask_for_deferred(record, session, until)

    def locked_under(self, session_id: str) -> list[Record]:
        return [r for r in self.model.locked() if r.session == session_id and r.place in HELD]

    @invariant()
    def the_sessions_listed_are_those_with_active_messages(self) -> None:
        listed = self.queue.sessions(0, 99)
        assert sorted(listed) == sorted({r.session or "" for r in self.model.in_place(Place.ACTIVE)})


def refused(condition: str, call: Callable[[], object]) -> None:
    with pytest.raises(BrokerError) as error:
        call()
    assert error.value.condition == condition


def view(queue: Queue) -> set[tuple[object, ...]]:
    messages = queue.peek(0, 10_000)
    seen: set[tuple[object, ...]] = {
        (m, m.state, m.delivery_count, m.lock_token, m.dead_letter_reason) for m in messages
    }
    assert len(seen) == len(messages)
    return seen


def describe(record: Record) -> tuple[object, ...]:
    states = {
        Place.SCHEDULED: MessageState.SCHEDULED,
        Place.DEFERRED: MessageState.DEFERRED,
        Place.DEAD_DEFERRED: MessageState.DEFERRED,
    }
    state = states.get(record.place, MessageState.ACTIVE)
    return (record.message, state, record.failed, record.token, record.reason)


SETTINGS = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = SETTINGS
TestSessionQueueMachine = SessionQueueMachine.TestCase
TestSessionQueueMachine.settings = SETTINGS
