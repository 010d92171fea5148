"""The broker's queues without sessions: sending, locking, settling, expiry, dead letters, wake-ups."""

from dataclasses import replace
from itertools import count
from uuid import UUID, uuid4

import pytest

from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.broker.broker import (
    Broker,
    BrokerError,
    Counts,
    Locked,
    Message,
    MessageState,
    Queue,
)
from tests.support.clock import Clock

JOBS = QueueSpec(name="jobs", lock_duration=30, max_delivery_count=3)
ids = count()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> Queue:
    return Broker([JOBS], clock).entity("jobs")


def dead_letters(queue: Queue) -> Queue:
    assert queue.dead_letters is not None
    return queue.dead_letters


def message(
    name: str | None = None, *, ttl: float | None = None, at: float | None = None, size: int = 10
) -> Message:
    return Message(
        sections=name,
        size=size,
        message_id=name or f"m{next(ids)}",
        time_to_live=ttl,
        scheduled_enqueue_time=at,
    )


def names(found: list[Locked] | list[Message]) -> list[str | None]:
    return [(item.message if isinstance(item, Locked) else item).message_id for item in found]


def take_one(queue: Queue) -> Locked:
    (locked,) = queue.take(1)
    return locked


def refusal(error: pytest.ExceptionInfo[BrokerError]) -> str:
    return error.value.condition


# -- finding entities


@pytest.mark.parametrize("path", ["jobs", "JOBS", "/jobs", "jobs/"])
def test_an_entity_is_found_whatever_the_case_of_its_path(path: str) -> None:
    assert Broker([JOBS]).entity(path).name == "jobs"


@pytest.mark.parametrize("path", ["jobs/$DeadLetterQueue", "jobs/$deadletterqueue"])
def test_every_queue_has_a_dead_letter_queue_at_its_path(path: str) -> None:
    broker = Broker([JOBS])
    assert broker.entity(path) is broker.entity("jobs").dead_letters


def test_an_unknown_entity_is_refused_by_name_with_those_that_exist() -> None:
    with pytest.raises(BrokerError, match=r"'nope' could not be found; there are jobs, b") as error:
        Broker([JOBS, QueueSpec(name="b")]).entity("nope")
    assert refusal(error) == "amqp:not-found"


# -- sending


def test_messages_are_numbered_in_the_order_of_arrival_and_taken_oldest_first(jobs: Queue) -> None:
    assert jobs.send([message("a"), message("b")]) == [1, 2]
    assert jobs.send([message("c")]) == [3]
    assert names(jobs.take(2)) == ["a", "b"]
    assert names(jobs.take(9)) == ["c"]
    assert jobs.take(9) == []


def test_a_batch_with_one_message_too_large_is_refused_whole(jobs: Queue) -> None:
    with pytest.raises(BrokerError, match="262145 bytes, 'jobs' takes at most 262144") as error:
        jobs.send([message(), message(size=262_145)])
    assert refusal(error) == "amqp:link:message-size-exceeded"
    assert jobs.counts() == Counts(active=0, deferred=0, scheduled=0, dead_lettered=0)


def test_a_full_queue_refuses_until_messages_are_completed_and_counts_its_dead_letters(clock: Clock) -> None:
    jobs = Broker([replace(JOBS, max_size_bytes=25)], clock).entity("jobs")
    jobs.send([message(), message()])
    jobs.dead_letter(take_one(jobs).token)
    with pytest.raises(BrokerError, match="holds 20 bytes of at most 25") as error:
        jobs.send([message()])
    assert refusal(error) == "amqp:resource-limit-exceeded"
    dead_letters(jobs).take_and_delete(1)
    jobs.send([message()])


def test_an_id_longer_than_128_characters_is_an_argument_error(jobs: Queue) -> None:
    jobs.send([message("x" * 128)])
    with pytest.raises(BrokerError, match="has 129 characters; at most 128") as error:
        jobs.send([message("x" * 129)])
    assert refusal(error) == "com.microsoft:argument-error"


def test_nothing_can_be_sent_to_a_dead_letter_queue(jobs: Queue) -> None:
    with pytest.raises(BrokerError, match="send to 'jobs'") as error:
        dead_letters(jobs).send([message()])
    assert refusal(error) == "amqp:not-allowed"


# -- duplicate detection


def test_a_repeated_message_id_is_dropped_and_answered_with_the_number_of_the_original(jobs: Queue) -> None:
    assert jobs.send([message("a"), message("b"), message("a")]) == [1, 2, 1]
    assert jobs.send([message("b")]) == [2]
    assert jobs.counts().active == 2


def test_a_completed_message_still_hides_its_duplicates(jobs: Queue) -> None:
    jobs.send([message("a")])
    jobs.complete(take_one(jobs).token)
    jobs.send([message("a")])
    assert jobs.take(1) == []


def test_a_duplicate_does_not_prolong_the_window_and_its_end_admits_the_id_again(clock: Clock) -> None:
    jobs = Broker([replace(JOBS, duplicate_detection_window=60)], clock).entity("jobs")
    jobs.send([message("a")])
    clock.advance(59.9)
    assert jobs.send([message("a")]) == [1]
    clock.advance(0.1)
    assert jobs.send([message("a")]) == [2]
    assert len(jobs._history) == 1


def test_messages_without_an_id_are_never_duplicates(jobs: Queue) -> None:
    jobs.send([Message(sections=None, size=1), Message(sections=None, size=1)])
    assert jobs.counts().active == 2


def test_a_queue_without_a_window_takes_the_same_id_twice(clock: Clock) -> None:
    jobs = Broker([replace(JOBS, duplicate_detection_window=None)], clock).entity("jobs")
    assert jobs.send([message("a"), message("a")]) == [1, 2]


def test_a_scheduled_message_hides_a_later_one_sent_at_once(jobs: Queue, clock: Clock) -> None:
    jobs.schedule([message("a", at=clock.now + 10)])
    jobs.send([message("a")])
    assert jobs.take(1) == []


def test_a_refused_batch_leaves_no_trace_in_the_duplicate_history(jobs: Queue) -> None:
    with pytest.raises(BrokerError):
        jobs.send([message("a"), message(size=1 << 20)])
    jobs.send([message("a")])
    assert names(jobs.take(1)) == ["a"]


# -- locks and settlement


def test_a_locked_message_is_not_taken_again_and_a_completed_one_is_gone(jobs: Queue, clock: Clock) -> None:
    jobs.send([message("a")])
    locked = take_one(jobs)
    assert locked.locked_until == clock.now + 30
    assert jobs.take(1) == []
    jobs.complete(locked.token)
    assert jobs.counts().active == 0


def test_a_lock_lasts_until_just_before_its_end_and_its_expiry_counts_as_a_failed_delivery(
    jobs: Queue, clock: Clock
) -> None:
    jobs.send([message()])
    first = take_one(jobs)
    assert first.message.delivery_count == 0
    clock.advance(29.9)
    assert jobs.take(1) == []
    clock.advance(0.1)
    assert take_one(jobs).message.delivery_count == 1
    with pytest.raises(BrokerError, match=r"has expired or was settled already") as error:
        jobs.complete(first.token)
    assert refusal(error) == "com.microsoft:message-lock-lost"


@pytest.mark.parametrize("settle", ["complete", "abandon", "release", "defer", "dead_letter"])
def test_no_settlement_works_twice_or_with_an_unknown_token(jobs: Queue, settle: str) -> None:
    jobs.send([message()])
    token = take_one(jobs).token
    getattr(jobs, settle)(token)
    for lost in (token, uuid4()):
        with pytest.raises(BrokerError) as error:
            getattr(jobs, settle)(lost)
        assert refusal(error) == "com.microsoft:message-lock-lost"


def test_abandoning_raises_the_delivery_count_and_releasing_does_not(jobs: Queue) -> None:
    jobs.send([message()])
    jobs.abandon(take_one(jobs).token)
    jobs.release(take_one(jobs).token)
    assert take_one(jobs).message.delivery_count == 1


def test_a_returned_message_takes_its_old_place(jobs: Queue) -> None:
    jobs.send([message("a"), message("b"), message("c")])
    a, _ = jobs.take(2)
    jobs.abandon(a.token)
    assert names(jobs.take(2)) == ["a", "c"]


def test_after_the_last_allowed_delivery_fails_the_message_is_dead_lettered(jobs: Queue, clock: Clock) -> None:
    jobs.send([message("a")])
    jobs.abandon(take_one(jobs).token)
    jobs.abandon(take_one(jobs).token)
    take_one(jobs)
    clock.advance(30)
    assert jobs.take(1) == []
    dead = take_one(dead_letters(jobs)).message
    assert (dead.message_id, dead.sections) == ("a", "a")
    assert dead.dead_letter_reason == "MaxDeliveryCountExceeded"
    assert dead.dead_letter_description == "Message could not be consumed after 3 delivery attempts."


def test_renewing_prolongs_all_locks_from_now_or_none_of_them(jobs: Queue, clock: Clock) -> None:
    jobs.send([message(), message()])
    a, b = (locked.token for locked in jobs.take(2))
    clock.advance(20)
    assert jobs.renew([a, b]) == [clock.now + 30] * 2
    clock.advance(20)
    with pytest.raises(BrokerError) as error:
        jobs.renew([a, uuid4()])
    assert refusal(error) == "com.microsoft:message-lock-lost"
    clock.advance(10)
    assert [locked.message.delivery_count for locked in jobs.take(2)] == [1, 1]


def test_receive_and_delete_leaves_nothing_behind(jobs: Queue) -> None:
    jobs.send([message("a"), message("b")])
    assert names(jobs.take_and_delete(1)) == ["a"]
    assert names(jobs.peek(0, 9)) == ["b"]


# -- deferring


def deferred(queue: Queue) -> int:
    (number,) = queue.send([message()])
    queue.defer(take_one(queue).token)
    return number


def test_a_deferred_message_is_had_by_its_number_only_and_goes_back_to_deferred(jobs: Queue, clock: Clock) -> None:
    number = deferred(jobs)
    assert jobs.take(1) == []
    (locked,) = jobs.take_deferred([number])
    assert locked.message.state is MessageState.DEFERRED
    jobs.release(locked.token)
    (again,) = jobs.take_deferred([number])
    assert again.message.delivery_count == 1  # that of the deferral
    clock.advance(30)
    assert jobs.take(1) == []
    (last,) = jobs.take_deferred([number])
    jobs.complete(last.token)
    assert jobs.counts() == Counts(active=0, deferred=0, scheduled=0, dead_lettered=0)


def test_deferred_messages_are_taken_all_or_none(jobs: Queue) -> None:
    number = deferred(jobs)
    (active,) = jobs.send([message()])
    for unavailable in (active, 99):
        with pytest.raises(BrokerError, match=f"no deferred and unlocked message {unavailable}") as error:
            jobs.take_deferred([number, unavailable])
        assert refusal(error) == "com.microsoft:message-not-found"
    assert len(jobs.take_deferred([number])) == 1
    with pytest.raises(BrokerError):
        jobs.take_deferred([number])


def test_a_deferred_message_can_be_taken_and_deleted(jobs: Queue) -> None:
    number = deferred(jobs)
    (gone,) = jobs.take_deferred([number], delete=True)
    with pytest.raises(BrokerError):
        jobs.complete(gone.token)
    assert jobs.peek(0, 9) == []


def test_an_expired_deferred_message_is_dead_lettered_when_it_is_asked_for(jobs: Queue, clock: Clock) -> None:
    (number,) = jobs.send([message(ttl=5)])
    jobs.defer(take_one(jobs).token)
    clock.advance(5)
    assert jobs.counts().deferred == 1
    with pytest.raises(BrokerError):
        jobs.take_deferred([number])
    assert jobs.counts() == Counts(active=0, deferred=0, scheduled=0, dead_lettered=1)


# -- expiry


def test_a_message_expires_to_the_dead_letter_queue_and_stays_there(jobs: Queue, clock: Clock) -> None:
    jobs.send([message("a", ttl=5)])
    clock.advance(4.9)
    assert names(jobs.peek(0, 1)) == ["a"]
    clock.advance(0.1)
    assert jobs.take(1) == []
    clock.advance(1e9)
    dead = take_one(dead_letters(jobs)).message
    assert dead.dead_letter_reason == "TTLExpiredException"
    assert dead.dead_letter_description == "The message expired and was dead lettered."


def test_an_expired_message_is_dropped_where_the_queue_does_not_keep_them(clock: Clock) -> None:
    jobs = Broker([replace(JOBS, dead_letter_on_expiry=False)], clock).entity("jobs")
    jobs.send([message(ttl=5)])
    clock.advance(5)
    assert jobs.counts() == Counts(active=0, deferred=0, scheduled=0, dead_lettered=0)


def test_the_shorter_of_the_messages_and_the_queues_time_to_live_counts(clock: Clock) -> None:
    jobs = Broker([replace(JOBS, default_time_to_live=10)], clock).entity("jobs")
    jobs.send([message("long", ttl=100), message("short", ttl=3), message("none")])
    clock.advance(3)
    assert names(jobs.peek(0, 9)) == ["long", "none"]
    clock.advance(7)
    assert jobs.peek(0, 9) == []


def test_a_message_locked_when_its_time_to_live_ends_can_still_be_completed(jobs: Queue, clock: Clock) -> None:
    jobs.send([message(ttl=5)])
    locked = take_one(jobs)
    clock.advance(10)
    jobs.renew([locked.token])
    jobs.complete(locked.token)
    assert jobs.counts().dead_lettered == 0


@pytest.mark.parametrize("settle", ["abandon", "release"])
def test_a_message_given_back_after_its_time_to_live_expires_then(jobs: Queue, clock: Clock, settle: str) -> None:
    jobs.send([message(ttl=5)])
    locked = take_one(jobs)
    clock.advance(5)
    assert jobs.peek(0, 1) == []
    getattr(jobs, settle)(locked.token)
    assert jobs.counts() == Counts(active=0, deferred=0, scheduled=0, dead_lettered=1)


def test_looking_late_finds_what_looking_in_time_would_have(jobs: Queue, clock: Clock) -> None:
    # due at 10, so enqueued then; expired at 15
    jobs.schedule([message(ttl=5, at=clock.now + 10)])
    clock.advance(1_000)
    (dead,) = dead_letters(jobs).peek(0, 9)
    assert dead.enqueued_at == clock.now - 990


# -- scheduling


def test_a_scheduled_message_is_enqueued_when_due_under_a_new_number(jobs: Queue, clock: Clock) -> None:
    (number,) = jobs.schedule([message("late", at=clock.now + 10)])
    jobs.send([message("soon")])
    clock.advance(9.9)
    assert [m.state for m in jobs.peek(number, 1)] == [MessageState.SCHEDULED]
    clock.advance(0.1)
    _, late = jobs.take(2)
    assert (late.message.sequence_number, late.message.enqueued_sequence_number) == (3, number)
    assert (late.message.state, late.message.enqueued_at) == (MessageState.ACTIVE, clock.now)


def test_sending_with_a_time_ahead_schedules_and_with_a_time_gone_by_enqueues(jobs: Queue, clock: Clock) -> None:
    jobs.send([message(at=clock.now + 1), message(at=clock.now)])
    assert jobs.counts() == Counts(active=1, deferred=0, scheduled=1, dead_lettered=0)


def test_scheduling_without_a_time_is_an_argument_error(jobs: Queue, clock: Clock) -> None:
    with pytest.raises(BrokerError, match="no scheduled enqueue time") as error:
        jobs.schedule([message(at=clock.now + 1), message()])
    assert refusal(error) == "com.microsoft:argument-error"
    assert jobs.counts().scheduled == 0


def test_cancelling_removes_scheduled_messages_all_or_none(jobs: Queue, clock: Clock) -> None:
    a, b = jobs.schedule([message(at=clock.now + 1), message(at=clock.now + 1)])
    with pytest.raises(BrokerError) as error:
        jobs.cancel_scheduled([a, b, 99])
    assert refusal(error) == "com.microsoft:message-not-found"
    jobs.cancel_scheduled([a, b])
    assert jobs.next_deadline() is None
    clock.advance(1)
    assert jobs.take(1) == []


# -- peeking and counting


def test_peeking_shows_every_state_from_a_number_on_and_changes_nothing(jobs: Queue, clock: Clock) -> None:
    deferred(jobs)
    jobs.send([message()])
    take_one(jobs)
    jobs.send([message(), message(at=clock.now + 1)])
    assert [(m.sequence_number, m.state) for m in jobs.peek(0, 9)] == [(1, 1), (2, 0), (3, 0), (4, 2)]
    assert [m.sequence_number for m in jobs.peek(2, 2)] == [2, 3]
    assert jobs.counts() == Counts(active=2, deferred=1, scheduled=1, dead_lettered=0)


# -- dead letters


def test_a_dead_letter_can_be_abandoned_for_ever_and_deferred_but_not_dead_lettered(jobs: Queue) -> None:
    jobs.send([message()])
    jobs.dead_letter(take_one(jobs).token, "Why", "because")
    queue = dead_letters(jobs)
    for _ in range(5):
        queue.abandon(take_one(queue).token)
    locked = take_one(queue)
    assert (locked.message.dead_letter_reason, locked.message.dead_letter_description) == ("Why", "because")
    with pytest.raises(BrokerError, match="cannot be dead-lettered again") as error:
        queue.dead_letter(locked.token)
    assert refusal(error) == "amqp:not-allowed"
    queue.defer(locked.token)
    assert queue.counts() == Counts(active=0, deferred=1, scheduled=0, dead_lettered=0)


# -- sessions on a queue without them


def test_a_queue_without_sessions_refuses_sessions(jobs: Queue) -> None:
    for call in (
        lambda: jobs.accept_session("a"),
        lambda: jobs.sessions(0, 1),
        lambda: jobs.held_session("a"),
    ):
        with pytest.raises(BrokerError, match="does not require sessions") as error:
            call()
        assert refusal(error) == "amqp:not-allowed"


# -- waking up


class Bell:
    def __init__(self) -> None:
        self.rings = 0

    def __call__(self) -> None:
        self.rings += 1

    def rang(self) -> bool:
        rang, self.rings = self.rings > 0, 0
        return rang


def test_a_subscriber_hears_of_every_way_a_message_becomes_available(jobs: Queue, clock: Clock) -> None:
    bell = Bell()
    unsubscribe = jobs.subscribe(bell)
    jobs.send([message(), message(at=clock.now + 10)])
    assert bell.rang()
    jobs.abandon(take_one(jobs).token)
    assert bell.rang()
    jobs.release(take_one(jobs).token)
    assert bell.rang()
    take_one(jobs)
    assert not bell.rang()
    clock.advance(10)
    jobs.expire()
    assert bell.rang()  # the scheduled message
    clock.advance(20)
    jobs.expire()
    assert bell.rang()  # the lock
    unsubscribe()
    unsubscribe()
    jobs.send([message()])
    assert not bell.rang()


def test_subscribers_of_the_dead_letter_queue_hear_of_dead_letters(jobs: Queue, clock: Clock) -> None:
    bell = Bell()
    dead_letters(jobs).subscribe(bell)
    jobs.send([message(), message(ttl=5)])
    jobs.dead_letter(take_one(jobs).token)
    assert bell.rang()
    clock.advance(5)
    jobs.expire()
    assert bell.rang()


def test_the_next_deadline_is_the_earliest_of_locks_expiries_and_due_times(jobs: Queue, clock: Clock) -> None:
    start = clock.now
    assert jobs.next_deadline() is None
    jobs.send([message(ttl=50)])
    assert jobs.next_deadline() == start + 50
    token = take_one(jobs).token
    assert jobs.next_deadline() == start + 30
    jobs.schedule([message(at=start + 20)])
    assert jobs.next_deadline() == start + 20
    clock.advance(20)
    assert names(jobs.take(1)) != []
    assert jobs.next_deadline() == start + 30
    jobs.complete(token)
    assert jobs.next_deadline() == start + 50


def test_the_deadline_of_a_queue_and_its_dead_letter_queue_is_one(jobs: Queue, clock: Clock) -> None:
    jobs.send([message()])
    jobs.dead_letter(take_one(jobs).token)
    take_one(dead_letters(jobs))
    assert jobs.next_deadline() == dead_letters(jobs).next_deadline() == clock.now + 30


def test_one_timer_kept_by_the_watch_never_sleeps_past_an_event(clock: Clock) -> None:
    broker = Broker([JOBS, QueueSpec(name="b", lock_duration=5)], clock)
    jobs, other = broker.entity("jobs"), broker.entity("b")
    timer: list[float | None] = [None]
    broker.watch_deadline(lambda: timer.append(broker.next_event_at()))
    jobs.send([message(), message()])
    assert timer == [None]
    first, second = take_one(jobs).token, take_one(jobs).token
    assert timer == [None, clock.now + 30]  # the second lock ends no earlier
    jobs.complete(first)
    jobs.complete(second)
    other.send([message()])
    take_one(other)
    assert timer[-1] == clock.now + 5
    clock.advance(5)
    broker.expire()
    assert broker.next_event_at() is None
    take_one(other)
    assert timer[-1] == clock.now + 5


def test_a_deadline_read_after_earlier_ones_were_dropped_is_still_watched(jobs: Queue, clock: Clock) -> None:
    bell = Bell()
    jobs.watch_deadline(bell)
    jobs.send([message(at=clock.now + 100)])
    jobs.send([message()])
    jobs.complete(take_one(jobs).token)
    assert jobs.next_deadline() == clock.now + 100
    bell.rang()
    jobs.schedule([message(at=clock.now + 60)])
    assert bell.rang()


def test_tokens_differ(jobs: Queue) -> None:
    jobs.send([message() for _ in range(100)])
    tokens: set[UUID] = {locked.token for locked in jobs.take(100)}
    assert len(tokens) == 100
