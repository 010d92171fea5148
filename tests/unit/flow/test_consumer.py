"""Pulling while there is room, and draining on stop."""

import asyncio

import pytest

from tests.support.bench import Bench, answers
from worker.errors import SinkUnavailable
from worker.interfaces import Drained, Draining, IntakeClosed, IntakeOpened, JobsReceived, Target
from worker.jobs.job import Job
from worker.jobs.outcomes import Abandon, Complete, Release, Response
from worker.jobs.results import Result
from worker.testing import FakeSink, answer, job_line
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


def send(bench: Bench, *names: str) -> None:
    for name in names:
        bench.queue.send(job_line(name), message_id=f"batch/{name}")


async def slow(job: Job, target: Target) -> Response:
    await asyncio.sleep(10)
    return answer()


async def test_no_more_jobs_are_in_flight_than_there_are_slots() -> None:
    bench = Bench(slots=3)
    send(bench, *"abcdefghij")
    await bench.work()
    assert bench.model.peak == 3
    assert len(bench.sink.lines) == 10


async def test_a_free_slot_is_filled_while_the_others_still_work() -> None:
    begun: dict[str, float] = {}

    async def first_is_slow(job: Job, target: Target) -> Response:
        begun[job.line.custom_id] = loop_time()
        return await (slow if job.line.custom_id == "a" else answers)(job, target)

    bench = Bench(first_is_slow, slots=2)
    send(bench, *"abcdef")
    await bench.work(until=lambda: len(bench.sink.lines) == 5)
    # calls of 0.2 s follow each other: a slot is free when its result is written, and filled at once
    assert [begun[name] for name in "bcdef"] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8], abs=0.05)


async def test_on_stop_jobs_under_way_end_within_the_grace_period() -> None:
    bench = Bench(slow, slots=2, grace=25)
    send(bench, *"abcd")
    await bench.run_for(5)
    assert sorted(bench.sink.lines) == ["batch/a", "batch/b"]
    assert {settlement for _, settlement in bench.queue.settled} == {Complete()}
    assert len(bench.queue) == 2, "what was not received stays in the queue"
    assert bench.events.of(Drained) == [Drained(handed_back=0)]
    assert loop_time() == pytest.approx(10, abs=1.1)


async def test_what_does_not_end_within_the_grace_period_is_handed_back_without_a_result() -> None:
    bench = Bench(slow, slots=2, grace=3)
    send(bench, "a", "b")
    await bench.run_for(2)
    assert bench.sink.lines == {}
    assert {settlement for _, settlement in bench.queue.settled} == {Release()}
    assert len(bench.queue) == 2
    assert bench.model.in_flight == 0
    assert bench.events.of(Drained) == [Drained(handed_back=2)]
    assert loop_time() == pytest.approx(2 + 1 + 3, abs=1.1)


async def test_nothing_is_handed_back_before_receiving_has_stopped() -> None:
    bench = Bench(slow, slots=2, grace=0)
    send(bench, "a", "b")
    await bench.run_for(2)
    received = sum(event.count for event in bench.events.of(JobsReceived))
    assert received == 2, "a job handed back must not come back to this pod"


async def test_a_delivery_that_arrives_while_stopping_is_handed_back_at_once() -> None:
    bench = Bench(slots=2)
    loop = asyncio.get_running_loop()
    loop.call_at(0.5, bench.admission.stop)
    loop.call_at(0.6, lambda: send(bench, "late"))
    await bench.core.run()
    assert bench.queue.settled == [("batch/late", Release())]
    assert bench.model.calls == []


async def test_while_the_queue_cannot_be_reached_it_is_tried_again_with_backoff() -> None:
    bench = Bench()
    bench.queue.down = True
    send(bench, "a")

    def fix() -> None:
        bench.queue.down = False

    asyncio.get_running_loop().call_at(6, fix)
    await bench.work()
    assert loop_time() == pytest.approx(1 + 2 + 4, abs=1.3)
    assert [event.reason for event in bench.events.of(IntakeClosed)] == ["source"]
    assert [event.reason for event in bench.events.of(IntakeOpened)] == ["source"]
    assert list(bench.sink.lines) == ["batch/a"]


async def test_a_stop_does_not_wait_for_the_backoff_of_a_queue_that_is_down() -> None:
    bench = Bench()
    bench.queue.down = True
    await bench.run_for(10)
    assert loop_time() == pytest.approx(10, abs=0.1)


async def test_redeliveries_are_counted_apart() -> None:
    bench = Bench()
    bench.queue.send(job_line("a"), message_id="batch/a", delivery_count=1)
    send(bench, "b")
    await bench.work()
    received = bench.events.of(JobsReceived)
    assert (sum(e.count for e in received), sum(e.redelivered for e in received)) == (2, 1)


async def test_stopping_an_idle_worker_takes_no_longer_than_one_receive() -> None:
    bench = Bench()
    await bench.run_for(7.5)
    assert loop_time() <= 8.5
    assert [event.in_flight for event in bench.events.of(Draining)] == [0]


class LosesAnswers(FakeSink):
    """What it was asked for is done, and nobody is told: at once, or only after `silence` seconds."""

    def __init__(self, silence: float = 0.0) -> None:
        super().__init__(knows=True)
        self._silence = silence

    async def write(self, result: Result) -> bool:
        if not await super().write(result):
            return False
        await asyncio.sleep(self._silence)
        self.down = True  # or the next try would find its own result
        raise SinkUnavailable("no answer")


@pytest.mark.parametrize("silence", [0.0, 60.0])
async def test_a_result_that_was_perhaps_written_when_the_grace_ended_is_looked_for_and_not_paid_for_again(
    silence: float,
) -> None:
    sink = LosesAnswers(silence)
    stopped = Bench(grace=3, sink=sink)
    send(stopped, "a")
    await stopped.run_for(2)
    assert list(sink.lines) == ["batch/a"]
    sink.down = False
    following = Bench(queue=stopped.queue, sink=sink)
    await following.work()
    assert stopped.queue.settled == [("batch/a", Abandon()), ("batch/a", Complete())]
    assert following.model.calls == []
