"""Queues that require sessions: who may hold one, and what its lock does to the messages under it."""

from dataclasses import replace

import pytest

from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.broker.broker import (
    Broker,
    BrokerError,
    Locked,
    Message,
    Queue,
    Session,
    SessionQueue,
)
from tests.support.clock import Clock

RESULTS = QueueSpec(name="results", requires_session=True, lock_duration=30, max_delivery_count=2)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def results(clock: Clock) -> Queue:
    return Broker([RESULTS], clock).entity("results")


def message(session_id: str | None, name: str | None = None, ttl: float | None = None) -> Message:
    return Message(sections=name, size=10, message_id=name, session_id=session_id, time_to_live=ttl)


def accept(queue: Queue, session_id: str | None = None) -> Session:
    session = queue.accept_session(session_id)
    assert session is not None
    return session


def take_one(queue: Queue, session: Session) -> Locked:
    (locked,) = queue.take(1, session=session)
    return locked


def names(locked: list[Locked]) -> list[str | None]:
    return [item.message.message_id for item in locked]


def test_a_message_without_a_session_id_is_refused(results: Queue) -> None:
    with pytest.raises(BrokerError, match="set group-id") as error:
        results.send([message("s"), message(None)])
    assert error.value.condition == "amqp:not-allowed"
    assert results.counts().active == 0


def test_messages_are_taken_only_under_the_session_they_belong_to(results: Queue) -> None:
    results.send([message("a", "a1"), message("b", "b1"), message("a", "a2")])
    assert names(results.take(9, session=accept(results, "a"))) == ["a1", "a2"]
    assert names(results.take(9, session=accept(results, "b"))) == ["b1"]


@pytest.mark.parametrize("take", ["take", "take_and_delete"])
def test_taking_without_a_session_is_not_allowed(results: Queue, take: str) -> None:
    with pytest.raises(BrokerError, match="requires sessions") as error:
        getattr(results, take)(1)
    assert error.value.condition == "amqp:not-allowed"


def test_a_held_session_cannot_be_locked_by_another_and_says_until_when(results: Queue, clock: Clock) -> None:
    accept(results, "a")
    with pytest.raises(BrokerError, match="'a' of 'results' is locked by another receiver") as error:
        results.accept_session("a")
    assert error.value.condition == "com.microsoft:session-cannot-be-locked"
    clock.advance(30)
    accept(results, "a")


def test_the_next_available_session_is_a_free_one_with_active_messages(results: Queue) -> None:
    assert results.accept_session(None) is None
    results.send([message("a"), message("b"), message("a")])
    assert accept(results).id == "a"
    assert accept(results).id == "b"
    assert results.accept_session(None) is None


def test_a_freed_session_waits_its_turn_behind_the_others(results: Queue) -> None:
    results.send([message("a"), message("b")])
    accept(results, "a").release()
    assert [accept(results).id, accept(results).id] == ["b", "a"]


def test_a_session_emptied_or_expired_is_no_longer_available(results: Queue, clock: Clock) -> None:
    results.send([message("a"), message("b", ttl=5)])
    session = accept(results, "a")
    results.complete(take_one(results, session).token)
    session.release()
    clock.advance(5)
    assert results.accept_session(None) is None
    assert isinstance(results, SessionQueue)
    assert not results._records


def test_a_released_session_gives_its_messages_back_uncounted(results: Queue) -> None:
    results.send([message("a")])
    session = accept(results, "a")
    token = take_one(results, session).token
    session.release()
    with pytest.raises(BrokerError) as error:
        results.complete(token)
    assert error.value.condition == "com.microsoft:message-lock-lost"
    assert take_one(results, accept(results, "a")).message.delivery_count == 0


def test_a_session_lock_that_ends_fails_the_deliveries_under_it(results: Queue, clock: Clock) -> None:
    results.send([message("a", "one"), message("a", "two")])
    take_one(results, accept(results, "a"))
    clock.advance(30)
    one, two = results.take(2, session=accept(results, "a"))
    assert (one.message.delivery_count, two.message.delivery_count) == (1, 0)
    clock.advance(30)
    assert results.counts().dead_lettered == 1  # `one`, after two deliveries
    assert names(results.take(2, session=accept(results, "a"))) == ["two"]


def test_a_session_lock_holds_all_its_messages_for_as_long_as_it_is_renewed(results: Queue, clock: Clock) -> None:
    results.send([message("a")])
    session = accept(results, "a")
    locked = take_one(results, session)
    assert locked.locked_until == session.locked_until == clock.now + 30
    clock.advance(29)
    assert session.renew() == session.locked_until == clock.now + 30
    clock.advance(29)
    results.complete(locked.token)


def test_renewing_a_single_message_of_a_session_is_not_allowed(results: Queue) -> None:
    results.send([message("a")])
    token = take_one(results, accept(results, "a")).token
    with pytest.raises(BrokerError, match="renew the session's lock") as error:
        results.renew([token])
    assert error.value.condition == "amqp:not-allowed"


def test_a_lost_session_can_do_nothing_more_even_if_it_has_a_new_holder(results: Queue, clock: Clock) -> None:
    results.send([message("a")])
    lost = accept(results, "a")
    clock.advance(30)
    accept(results, "a")
    for use in (
        lost.renew,
        lambda: lost.state,
        lambda: setattr(lost, "state", b"x"),
        lambda: results.take(1, session=lost),
        lambda: results.take_deferred([1], session=lost),
    ):
        with pytest.raises(BrokerError, match="lock of session 'a'") as error:
            use()
        assert error.value.condition == "com.microsoft:session-lock-lost"
    lost.release()
    assert results.held_session("a").held
    assert not lost.held


def test_the_state_of_a_session_outlives_its_holder_and_its_messages(results: Queue) -> None:
    first = accept(results, "a")
    assert first.state is None
    first.state = b"half way"
    first.release()
    second = accept(results, "a")
    assert second.state == b"half way"
    second.state = None
    second.release()
    assert isinstance(results, SessionQueue)
    assert not results._records


def test_the_present_holder_is_found_by_session_id(results: Queue) -> None:
    session = accept(results, "a")
    assert results.held_session("a") is session
    session.release()
    with pytest.raises(BrokerError) as error:
        results.held_session("a")
    assert error.value.condition == "com.microsoft:session-lock-lost"


def test_sessions_with_active_messages_are_listed_in_pages_locked_ones_too(results: Queue) -> None:
    results.send([message(name) for name in ("a", "b", "c", "d")])
    take_one(results, accept(results, "a"))
    results.complete(take_one(results, accept(results, "c")).token)
    accept(results, "empty")
    assert results.sessions(0, 2) == ["a", "b"]
    assert results.sessions(2, 2) == ["d"]


def test_a_deferred_message_is_had_under_its_own_session_only(results: Queue) -> None:
    (number,) = results.send([message("a")])
    holder, stranger = accept(results, "a"), accept(results, "b")
    results.defer(take_one(results, holder).token)
    with pytest.raises(BrokerError) as error:
        results.take_deferred([number], session=stranger)
    assert error.value.condition == "com.microsoft:message-not-found"
    (locked,) = results.take_deferred([number], session=holder)
    holder.release()
    with pytest.raises(BrokerError):
        results.complete(locked.token)
    (again,) = results.take_deferred([number], session=accept(results, "a"))
    assert again.message.delivery_count == 1  # that of the deferral; the release did not count


def test_peeking_may_be_narrowed_to_a_session(results: Queue) -> None:
    results.send([message("a", "1"), message("b", "2"), message("a", "3")])
    assert [m.message_id for m in results.peek(0, 9, "a")] == ["1", "3"]


def test_dead_letters_of_a_session_queue_need_no_session(results: Queue) -> None:
    results.send([message("a", "1")])
    results.dead_letter(take_one(results, accept(results, "a")).token, "Why")
    assert results.dead_letters is not None
    (locked,) = results.dead_letters.take(1)
    assert (locked.message.session_id, locked.message.dead_letter_reason) == ("a", "Why")


def test_subscribers_and_the_deadline_cover_session_locks(results: Queue, clock: Clock) -> None:
    rings: list[float] = []
    results.subscribe(lambda: rings.append(clock.now))
    session = accept(results, "a")
    assert results.next_deadline() == clock.now + 30
    session.release()
    assert rings == [clock.now]
    assert results.next_deadline() is None
    accept(results, "a")
    clock.advance(30)
    results.expire()
    assert rings == [clock.now - 30, clock.now]


def test_a_message_expiring_under_a_session_lock_is_its_holders_until_given_back(
    results: Queue, clock: Clock
) -> None:
    results.send([message("a", "1", ttl=5), message("a", "2", ttl=5)])
    session = accept(results, "a")
    take_one(results, session)
    clock.advance(5)
    assert results.take(1, session=session) == []  # the second expired unlocked
    session.release()
    assert results.counts().dead_lettered == 2


def test_a_session_id_longer_than_128_characters_is_an_argument_error(results: Queue, clock: Clock) -> None:
    with pytest.raises(BrokerError) as error:
        results.accept_session("x" * 129)
    assert error.value.condition == "com.microsoft:argument-error"
    roomy = Broker([replace(RESULTS, name="r")], clock).entity("r")
    with pytest.raises(BrokerError):
        roomy.send([message("x" * 129)])


def test_sessions_with_messages_or_a_state_are_listed_and_by_the_time_their_state_was_set(
    results: Queue, clock: Clock
) -> None:
    results.send([message("messages", "1")])
    for name in ("early", "late"):
        session = accept(results, name)
        session.state = b"x"
        session.release()
        clock.advance(10)
    assert results.sessions(0, 9) == ["messages", "early", "late"]
    assert results.sessions(1, 1) == ["early"]
    assert results.sessions(0, 9, clock.now - 10.5) == ["late"]
    assert results.sessions(0, 9, clock.now) == []
