"""Which dead letters are meant, and which message sends one again."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.jobs.copies import Copy
from worker.jobs.job import Envelope, decode, rfc3339
from worker.jobs.replays import (
    InvalidDeadline,
    NewDeadline,
    Plan,
    Selection,
    dead_letter_of,
    message_id_of,
    plan_replays,
    read_deadline,
    replay_of,
)
from worker.testing import job_line

NOW = 1_795_500_000.0
PAST, COMING = rfc3339(NOW - 1), rfc3339(NOW + 60)

ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=128)


def envelope(number: int = 1, message_id: str | None = "b/a", reason: str = "Mine", **properties: Any) -> Envelope:
    named = {name.replace("_", "-"): value for name, value in properties.items()}
    return Envelope(
        body=job_line("a"),
        queue="jobs",
        sequence_number=number,
        enqueued_at=NOW - 3_600,
        message_id=message_id,
        correlation_id="b",
        dead_letter_reason=reason,
        properties={"DeadLetterReason": reason, "DeadLetterErrorDescription": "so", **named},
    )


def without_none(**properties: object) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if value is not None}


def replay(of: Envelope, deadline: NewDeadline | None = None) -> Copy:
    return replay_of(dead_letter_of(of), deadline)


def sent_again(of: Envelope) -> Envelope:
    """The envelope of its replay, as the worker receives it."""
    change = replay(of)
    return replace(of, message_id=change.message_id, properties=change.apply(of.properties), sequence_number=99)


def plan(*envelopes: Envelope, deadline: NewDeadline | None = None) -> Plan:
    letters = [dead_letter_of(one) for one in envelopes]
    return plan_replays(letters, letters, deadline, NOW)


@given(message_id=st.none() | ids, job_id=st.none() | ids)
@example(message_id="m" * 128, job_id=None)
@example(message_id=None, job_id="j" * 125)
def test_every_replay_is_the_next_one_of_the_same_job_under_an_id_that_fits(
    message_id: str | None, job_id: str | None
) -> None:
    last = envelope(message_id=message_id, **without_none(job_id=job_id))
    for _ in range(12):
        again = sent_again(last)
        before, after = decode(last, max_age=1), decode(again, max_age=1)
        assert (after.id, after.replay) == (before.id, before.replay + 1)
        assert len(again.message_id or "") <= 128
        last = again


def test_a_replay_is_named_by_the_dead_letter_alone_so_that_a_second_one_is_dropped() -> None:
    assert replay(envelope()) == replay(envelope())
    assert replay(envelope()).message_id == "b/a~r1"


@pytest.mark.parametrize(
    ("message_id", "job_id", "named"),
    [
        ("b/a", None, "b/a~r1"),
        ("b/a~r1", "b/a", "b/a~r2"),
        ("b/a~r9", "b/a", "b/a~r10"),
        ("b/a~r1", None, "b/a~r1~r1"),  # without the property it is nobody's replay
        ("other", "b/a", "other~r1"),
        ("other~r1", "b/a", "other~r2"),
        (None, None, "jobs/1~r1"),
        ("b/a~r3", 5, "b/a~r4"),
        ("b/a", "x" * 129, "b/a~r1"),
        (None, "b/a", "jobs/1~r1"),
    ],
)
def test_the_number_counts_on_from_the_last_replays(message_id: str | None, job_id: object, named: str) -> None:
    assert message_id_of(dead_letter_of(envelope(message_id=message_id, **without_none(job_id=job_id)))) == named


def test_the_producers_properties_stay_and_the_brokers_go() -> None:
    one = envelope(traceparent="00-1", n=7)
    assert replay(one).apply(one.properties) == {"traceparent": "00-1", "n": 7, "job-id": "b/a"}


def test_a_job_id_that_is_none_stays_as_it_is_for_the_worker_to_refuse() -> None:
    one = envelope(job_id=5)
    assert replay(one).apply(one.properties) == {"job-id": 5}


@pytest.mark.parametrize(
    ("deadline", "left"),
    [
        (None, {"job-id": "b/a", "deadline": PAST}),
        (NewDeadline(moment=NOW + 60), {"job-id": "b/a", "deadline": COMING}),
        (NewDeadline(moment=None), {"job-id": "b/a"}),
    ],
)
def test_another_deadline_takes_the_old_ones_place(deadline: NewDeadline | None, left: dict[str, str]) -> None:
    one = envelope(deadline=PAST)
    assert replay(one, deadline).apply(one.properties) == left


def test_what_would_expire_at_once_is_left_unless_it_is_given_time() -> None:
    one = envelope(deadline=PAST)
    assert f"its deadline {PAST} has passed" in plan(one).left[1]
    assert plan(one).replays == {}
    assert plan(one, deadline=NewDeadline(moment=None)).left == {}


@pytest.mark.parametrize("deadline", [COMING, "soon", "2026-01-01T00:00:00", 7])
def test_a_deadline_to_come_or_that_cannot_be_read_is_for_the_worker_to_judge(deadline: object) -> None:
    assert plan(envelope(deadline=deadline)).left == {}


def test_of_two_that_would_be_one_message_neither_is_sent() -> None:
    planned = plan(envelope(1), envelope(2), envelope(3, message_id="b/c"))
    assert set(planned.left) == {1, 2}
    assert set(planned.replays) == {3}


def test_one_that_is_not_chosen_can_be_the_other_ones_twin() -> None:
    one, other = dead_letter_of(envelope(1)), dead_letter_of(envelope(2))
    assert set(plan_replays([one, other], [one], None, NOW).left) == {1}


def test_after_999_replays_there_is_no_other_as_retries_have_the_numbers_above() -> None:
    assert "999 times" in plan(envelope(message_id="b/a~r999", job_id="b/a")).left[1]
    assert plan(envelope(message_id="b/a~r998", job_id="b/a")).left == {}


def test_what_a_retry_sent_is_left_to_the_next_retry() -> None:
    assert "`aoai-worker retry`" in plan(envelope(message_id="b/a~r1000", job_id="b/a")).left[1]


def test_a_selection_is_of_numbers_of_a_reason_or_of_all() -> None:
    found = [
        dead_letter_of(envelope(1)),
        dead_letter_of(envelope(2, reason="InvalidJson")),
        dead_letter_of(envelope(3, reason="")),
    ]

    def numbers(**selection: Any) -> list[int]:
        return [letter.sequence_number for letter in Selection(**selection).of(found)]

    assert numbers(numbers={3, 1, 8}) == [1, 3]
    assert Selection(numbers={3, 1, 8}).missing(found) == [8]
    assert numbers(reason="invalidjson") == [2]
    assert numbers(reason="") == [3]
    assert numbers(everything=True) == [1, 2, 3]


def test_a_deadline_on_the_command_line_is_a_moment_to_come_or_none() -> None:
    assert read_deadline(None, NOW) is None
    assert read_deadline("None", NOW) == NewDeadline(moment=None)
    assert read_deadline(COMING, NOW) == NewDeadline(moment=NOW + 60)
    for wrong in (PAST, "tomorrow", "2099-01-01T00:00:00"):
        with pytest.raises(InvalidDeadline, match="RFC 3339"):
            read_deadline(wrong, NOW)
