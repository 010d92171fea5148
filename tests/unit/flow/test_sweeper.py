"""What the broker dead-lettered gets its error line; what the worker dead-lettered stays for people."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tests.support.bench import wall_clock
from worker.admission.admission import Admission
from worker.errors import DeadLetterReason
from worker.flow.sweeper import Sweeper
from worker.interfaces import DeadLetters, DeadLettersLeft, DeadLetterSwept, SweepFailed
from worker.jobs.outcomes import Complete, Release
from worker.testing import EventList, FakeQueue, FakeSink, job_line
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

EXPIRED = "TTLExpiredException"
TOO_OFTEN = "MaxDeliveryCountExceeded"


class Yard:
    """A sweeper with its dead-letter queue, sink and events."""

    def __init__(self, *, sink: FakeSink | None = None) -> None:
        self.dead = FakeQueue(clock=wall_clock)
        self.sink = sink or FakeSink()
        self.events = EventList()
        self.admission = Admission({}, slots=4, observer=self.events)
        self.sweeper = Sweeper(
            queue="jobs",
            open_dead_letters=self.open,
            sink=self.sink,
            claims=None,
            admission=self.admission,
            observer=self.events,
            pod="pod-1",
            every=60,
            chance=lambda: 0.5,
            clock=wall_clock,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[DeadLetters]:
        yield self.dead

    def bury(self, name: str, reason: str | None, *, body: bytes | None = None, delivery_count: int = 0) -> None:
        self.dead.send(
            body or job_line(name),
            message_id=f"batch/{name}",
            dead_letter_reason=reason,
            delivery_count=delivery_count,
        )

    async def sweep(self) -> None:
        await self.sweeper.sweep(self.dead)

    def error_of(self, name: str) -> Any:
        return self.sink.results[f"batch/{name}"]["error"]


async def test_an_expired_job_gets_an_error_line_and_leaves_the_dead_letter_queue() -> None:
    yard = Yard()
    yard.bury("a", EXPIRED)
    await yard.sweep()
    assert yard.error_of("a")["code"] == "expired"
    assert yard.dead.settled == [("batch/a", Complete())]
    assert yard.events.of(DeadLetterSwept) == [DeadLetterSwept(queue="jobs", message_id="batch/a", code="expired")]


async def test_a_job_delivered_too_often_says_how_often() -> None:
    yard = Yard()
    yard.bury("a", TOO_OFTEN, delivery_count=19)
    await yard.sweep()
    assert yard.error_of("a")["code"] == "max_deliveries"
    assert "19 times" in yard.error_of("a")["message"]


@pytest.mark.parametrize("reason", [*DeadLetterReason, "MyOwnReason", None])
async def test_what_was_dead_lettered_for_people_is_not_touched(reason: str | None) -> None:
    yard = Yard()
    yard.bury("a", reason)
    await yard.sweep()
    assert yard.sink.lines == {}
    assert yard.dead.settled == [], "it is only looked at, never locked"


async def test_what_lies_behind_dead_letters_for_people_is_reached_and_they_stay() -> None:
    yard = Yard()
    for number in range(150):
        yard.bury(f"broken{number}", "InvalidJob")
    yard.bury("a", EXPIRED)
    await yard.sweep()
    assert yard.error_of("a")["code"] == "expired"
    assert len(yard.dead) == 150
    assert yard.dead.locked == []


async def test_over_many_receives_all_that_is_to_be_swept_goes_and_all_else_stays() -> None:
    yard = Yard()
    for number in range(347):
        yard.bury(f"{number}", (EXPIRED, TOO_OFTEN, "InvalidJob")[number % 3], delivery_count=number % 7)
    await yard.sweep()
    assert set(yard.sink.lines) == {f"batch/{number}" for number in range(347) if number % 3 < 2}
    assert len(yard.events.of(DeadLetterSwept)) == len(yard.sink.lines) == 232
    assert len(yard.dead) == 115
    assert yard.events.of(DeadLettersLeft) == [DeadLettersLeft(queue="jobs", count=115)]
    assert yard.dead.locked == []


async def test_a_pass_holds_no_more_than_is_bearable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.flow.sweeper.HELD_BYTES", 30_000)
    yard = Yard()
    for number in range(347):
        yard.bury(f"broken{number}", "InvalidJob", body=b"x" * 173)
    yard.bury("a", EXPIRED)
    await yard.sweep()
    assert yard.sink.lines == {}
    assert len(yard.dead.settled) == 200, "the second hundred passes the limit"
    assert yard.dead.locked == []


async def test_what_does_not_decode_stays_for_people() -> None:
    yard = Yard()
    yard.bury("a", EXPIRED, body=b"{")
    yard.bury("b", EXPIRED)
    await yard.sweep()
    assert set(yard.sink.lines) == {"batch/b"}
    assert yard.events.of(DeadLettersLeft) == [DeadLettersLeft(queue="jobs", count=1)]
    assert yard.dead.settled == [("batch/b", Complete()), ("batch/a", Release())]


async def test_a_job_whose_result_is_there_gets_no_second_one() -> None:
    sink = FakeSink(knows=True)
    sink.lines["batch/a"] = b'{"answer": 1}'
    yard = Yard(sink=sink)
    yard.bury("a", TOO_OFTEN)
    await yard.sweep()
    assert sink.lines == {"batch/a": b'{"answer": 1}'}
    assert sink.writes == 0
    assert yard.dead.settled == [("batch/a", Complete())]


async def test_while_the_sink_is_down_everything_stays_and_the_next_pass_sweeps_it() -> None:
    yard = Yard()
    yard.bury("a", EXPIRED)
    yard.sink.down = True
    loop = asyncio.get_running_loop()
    loop.call_at(90, setattr, yard.sink, "down", False)
    loop.call_at(150, yard.admission.stop)
    await yard.sweeper.run()
    assert [event.queue for event in yard.events.of(SweepFailed)] == ["jobs"]
    assert yard.dead.settled == [("batch/a", Release()), ("batch/a", Complete())]
    assert yard.error_of("a")["code"] == "expired"


async def test_a_stop_ends_the_sweeper_at_once() -> None:
    yard = Yard()
    asyncio.get_running_loop().call_at(3, yard.admission.stop)
    await yard.sweeper.run()
    assert loop_time() == 3


async def test_a_fault_of_our_own_in_a_sweep_is_reported_and_costs_nothing_else() -> None:
    yard = Yard()
    yard.bury("a", EXPIRED)
    yard.sweeper.sink = cast(FakeSink, None)
    asyncio.get_running_loop().call_at(100, yard.admission.stop)
    await yard.sweeper.run()
    assert len(yard.events.of(SweepFailed)) == 1


async def test_a_dead_letter_queue_that_is_down_is_reported_and_tried_again() -> None:
    yard = Yard()
    yard.dead.down = True
    asyncio.get_running_loop().call_at(150, yard.admission.stop)
    await yard.sweeper.run()
    assert len(yard.events.of(SweepFailed)) == 2
