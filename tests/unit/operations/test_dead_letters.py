"""Looking through dead letters, and taking those that are wanted while the others stay."""

from collections.abc import Callable
from typing import cast

import pytest

import worker.operations.dead_letters.queue as module
from tests.support.bench import wall_clock
from worker.errors import SourceUnavailable
from worker.interfaces import Delivery
from worker.jobs.job import Envelope
from worker.jobs.outcomes import Complete, Release, Settlement
from worker.operations.dead_letters.queue import Taken, look_at, survey, take
from worker.testing import FakeDelivery, FakeQueue

pytestmark = pytest.mark.looptime


def queue_of(count: int, *, size: int = 1) -> FakeQueue:
    """Dead letters with the sequence numbers from 1 on, whose message-ids are the same."""
    dead = FakeQueue(clock=wall_clock)
    for number in range(1, count + 1):
        dead.send(b"x" * size, message_id=str(number), dead_letter_reason="Mine")
    return dead


def left_in(dead: FakeQueue) -> int:
    """How many there are, none of them locked."""
    assert dead.locked == []
    return len(dead)


class Notes:
    """An act that is told of, and what was reported."""

    def __init__(self, instead: Callable[[Delivery], None] | None = None) -> None:
        self.acted: list[int] = []
        self.reported: list[int] = []
        self._instead = instead

    async def __call__(self, delivery: Delivery, /) -> None:
        self.acted.append(delivery.envelope.sequence_number)
        if self._instead:
            self._instead(delivery)

    def report(self, envelope: Envelope) -> None:
        self.reported.append(envelope.sequence_number)


async def test_only_what_is_wanted_is_acted_on_and_goes() -> None:
    dead, notes = queue_of(200), Notes()
    taken = await take(dead, {3, 150}, notes, notes.report)
    assert taken == Taken(done=2, unconfirmed=[], missing=[], is_full=False)
    assert notes.acted == notes.reported == [3, 150]
    assert [message for message, settlement in dead.settled if settlement == Complete()] == ["3", "150"]
    assert left_in(dead) == 198


async def test_nothing_more_is_received_when_the_last_wanted_one_has_come() -> None:
    dead, notes = queue_of(200), Notes()
    await take(dead, {3}, notes, notes.report)
    assert len(dead.settled) == module.TOGETHER


async def test_it_goes_only_after_the_act() -> None:
    dead = queue_of(1)

    def look(delivery: Delivery) -> None:
        assert dead.settled == []

    await take(dead, {1}, Notes(look), lambda _: None)
    assert left_in(dead) == 0


async def test_an_act_that_fails_ends_the_pass_and_releases_all_that_is_held() -> None:
    dead = queue_of(5)

    def fail(delivery: Delivery) -> None:
        if delivery.envelope.sequence_number == 3:
            raise OSError("the disk is full")

    notes = Notes(fail)
    with pytest.raises(OSError, match="the disk is full"):
        await take(dead, {2, 3, 4}, notes, notes.report)
    assert notes.reported == [2]
    released: list[tuple[str | None, Settlement]] = [(message, Release()) for message in "1345"]
    assert sorted(dead.settled[1:], key=str) == released
    assert left_in(dead) == 4


async def test_what_somebody_else_holds_or_took_is_missing() -> None:
    dead, notes = queue_of(2), Notes()
    await dead.receive(1, wait=0)
    taken = await take(dead, {1, 2, 9}, notes, notes.report)
    assert taken == Taken(done=1, unconfirmed=[], missing=[1, 9], is_full=False)


async def test_a_lock_that_is_lost_after_the_act_is_told() -> None:
    dead = queue_of(2)
    notes = Notes(lambda delivery: cast(FakeDelivery, delivery).lose())
    taken = await take(dead, {1}, notes, notes.report)
    assert taken == Taken(done=0, unconfirmed=[1], missing=[], is_full=False)
    assert notes.reported == []


async def test_a_broker_that_does_not_confirm_ends_the_pass() -> None:
    dead, notes = queue_of(2), Notes()
    dead.mute = True
    with pytest.raises(SourceUnavailable):
        await take(dead, {1, 2}, notes, notes.report)
    assert (notes.acted, notes.reported) == ([1], [])


@pytest.mark.parametrize("limit", ["worker.flow.dead_letters.HELD", f"{module.__name__}.HELD_BYTES"])
async def test_no_more_is_held_than_is_bearable(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, 100)
    dead, notes = queue_of(200), Notes()
    taken = await take(dead, {200}, notes, notes.report)
    assert taken == Taken(done=0, unconfirmed=[], missing=[200], is_full=True)
    assert len(dead.settled) == 100
    assert left_in(dead) == 200


async def test_a_survey_sees_all_and_locks_nothing() -> None:
    dead = queue_of(120)
    found = await survey(dead)
    assert [letter.sequence_number for letter in found.letters] == list(range(1, 121))
    assert (found.is_whole, found.count) == (True, "120")
    assert left_in(dead) == 120


@pytest.mark.parametrize(("limit", "most"), [("LOOKED_AT", 100), ("LOOKED_AT_BYTES", 1_000)])
async def test_a_survey_ends_somewhere_and_says_so(limit: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, limit, most)
    found = await survey(queue_of(120, size=10))
    assert (len(found.letters), found.is_whole, found.count) == (100, False, "more than 100")
    assert (await survey(queue_of(100, size=10))).is_whole


async def test_one_is_found_by_its_number_and_no_other_in_its_place() -> None:
    dead = queue_of(3)
    await dead.receive(1, wait=0)
    assert await look_at(dead, 1) is None
    found = await look_at(dead, 2)
    assert found is not None
    assert found.message_id == "2"
    assert await look_at(dead, 4) is None
