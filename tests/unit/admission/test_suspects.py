"""Deliveries whose process may have died of them run apart, fewer together each time."""

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bench import Bench, answers
from worker.admission.suspects import Suspect, Suspects, cohort_size
from worker.errors import Throttled
from worker.interfaces import JobEnded, JobsReceived, SuspectMet, Target
from worker.jobs.job import Job
from worker.jobs.outcomes import Complete, HandBackReason, Release, Response, Unfinished
from worker.testing import answer, job_line
from worker.waits import loop_time


class Recorder:
    """A service that remembers who was in flight together."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.together: list[frozenset[str]] = []

    async def __call__(self, job: Job, target: Target) -> Response:
        self.now.add(job.line.custom_id)
        self.together.append(frozenset(self.now))
        await asyncio.sleep(1)
        self.now.discard(job.line.custom_id)
        return answer()


@pytest.mark.looptime
async def test_a_suspect_waits_until_nothing_else_is_in_flight_and_then_runs_alone() -> None:
    service = Recorder()
    bench = Bench(service, slots=4)
    for name in "ab":
        bench.queue.send(job_line(name), message_id=name)
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=3)
    for name in "cd":
        bench.queue.send(job_line(name), message_id=name)
    await bench.work()
    assert {group for group in service.together if "poison" in group} == {frozenset({"poison"})}
    assert len(bench.sink.lines) == 5
    assert [event.delivery_count for event in bench.events.of(SuspectMet)] == [3]


@pytest.mark.looptime
async def test_nothing_is_received_while_suspects_run() -> None:
    bench = Bench(Recorder(), slots=4)
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=3)
    asyncio.get_running_loop().call_at(0.5, lambda: bench.queue.send(job_line("late"), message_id="late"))
    await bench.work(until=lambda: "batch:late" in bench.sink.lines)
    received = bench.events.of(JobsReceived)
    assert sum(event.count for event in received) <= 3, "one hand-back of what was asked for before, at the most"


@pytest.mark.looptime
async def test_a_cohort_shrinks_to_a_quarter_with_each_delivery_and_the_rest_is_handed_back_unharmed() -> None:
    service = Recorder()
    bench = Bench(service, slots=16)
    names = [f"s{number}" for number in range(10)]
    for name in names:
        bench.queue.send(job_line(name), message_id=name, delivery_count=2)
    await bench.work()
    assert max(len(group) for group in service.together) == 4
    assert set(bench.sink.lines) == {f"batch:{name}" for name in names}
    handed_back = [name for name, settlement in bench.queue.settled if settlement == Release()]
    assert 6 + 2 <= len(handed_back) <= 2 * (6 + 2), "once, and once more by the receive that was under way"
    assert all(event.delivery_count == 2 for event in bench.events.of(SuspectMet)), "a release costs no delivery"


async def test_nobody_runs_before_those_that_are_handed_back_are_settled() -> None:
    suspects, loop = Suspects(), asyncio.get_running_loop()
    one, two, three = (Suspect(2, loop.create_future()) for _ in range(3))
    for suspect in (one, two, three):
        suspects.add(suspect, loop_time())
    assert suspects.decide(held=3) == (three, False)
    suspects.waiting.remove(three)
    assert suspects.decide(held=3) is None
    assert suspects.decide(held=2) == (one, True)


@pytest.mark.looptime
async def test_the_smallest_cohort_counts_where_suspects_of_different_counts_meet() -> None:
    service = Recorder()
    bench = Bench(service, slots=16)
    bench.queue.send(job_line("worse"), message_id="worse", delivery_count=4)
    bench.queue.send(job_line("bad"), message_id="bad", delivery_count=2)
    await bench.work()
    assert max(len(group) for group in service.together) == 1


@pytest.mark.looptime
async def test_a_delivery_that_came_once_before_is_no_suspect() -> None:
    service = Recorder()
    bench = Bench(service, slots=4)
    bench.queue.send(job_line("a"), message_id="a", delivery_count=1)
    bench.queue.send(job_line("b"), message_id="b")
    await bench.work()
    assert frozenset("ab") in service.together


@pytest.mark.looptime
async def test_a_stop_does_not_wait_for_suspects_beyond_the_grace_period() -> None:
    async def slow(job: Job, target: Target) -> Response:
        await asyncio.sleep(100)
        return answer()

    bench = Bench(slow, slots=4, grace=3)
    bench.queue.send(job_line("a"), message_id="a")
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=5)
    await bench.run_for(2)
    assert loop_time() < 8
    assert {settlement for _, settlement in bench.queue.settled} == {Release()}


@pytest.mark.looptime
async def test_after_the_suspects_all_goes_on_as_before() -> None:
    bench = Bench(answers, slots=4)
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=9)
    for number in range(20):
        bench.queue.send(job_line(f"j{number}"), message_id=f"j{number}")
    await bench.work()
    assert len(bench.sink.lines) == 21
    assert bench.model.peak == 4
    assert ("poison", Complete()) in bench.queue.settled


async def throttles_at_first(job: Job, target: Target) -> Response:
    await asyncio.sleep(1)
    if loop_time() < 10:
        raise Throttled("429", status=429, retry_after=20)
    await asyncio.sleep(50)
    return answer()


@pytest.mark.looptime
async def test_jobs_that_wait_at_a_gate_do_not_keep_a_suspect_waiting() -> None:
    bench = Bench(throttles_at_first, slots=4)
    bench.queue.send(job_line("parked"), message_id="parked")
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=3)
    told: list[Mapping[str, str]] = []
    for moment in (0.5, 40, 100):
        asyncio.get_running_loop().call_at(moment, lambda: told.append(bench.admission.closures))
    await bench.work()
    # the call that was under way again when the time at gates was over was waited for
    text = "suspects that run apart: 1; jobs that must end before them: {}"
    assert told == [{"suspects": text.format(left)} for left in (1, 1, 0)]
    assert loop_time() == pytest.approx(1 + 20 + 51 + 51, abs=1)


@pytest.mark.looptime
async def test_jobs_go_back_from_a_gate_that_stays_closed_while_a_suspect_waits() -> None:
    async def throttles(job: Job, target: Target) -> Response:
        raise Throttled("429", status=429, retry_after=60)

    bench = Bench(throttles, slots=4, parking=900)
    bench.queue.send(job_line("parked"), message_id="parked")
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=3)
    await bench.run_for(20)
    ended = bench.events.of(JobEnded)
    assert {event.message_id for event in ended} == {"parked", "poison"}
    assert len(ended) <= 3, "each once, and once more by the receive that was under way"
    assert {event.outcome for event in ended} == {Unfinished(reason=HandBackReason.SUSPECT)}
    assert bench.admission.closures == {}


@pytest.mark.looptime
async def test_after_the_suspects_jobs_may_wait_at_gates_as_long_as_before() -> None:
    async def throttles_at_first(job: Job, target: Target) -> Response:
        await asyncio.sleep(1)
        if 10 < loop_time() < 20:
            raise Throttled("429", status=429, retry_after=300)
        return answer()

    bench = Bench(throttles_at_first, slots=4)
    bench.queue.send(job_line("poison"), message_id="poison", delivery_count=3)
    asyncio.get_running_loop().call_at(15, lambda: bench.queue.send(job_line("late"), message_id="late"))
    await bench.work(until=lambda: len(bench.sink.lines) == 2)
    assert bench.queue.settled == [("poison", Complete()), ("late", Complete())]


@given(count=st.integers(2, 100), slots=st.integers(1, 4_096))
def test_a_cohort_is_never_empty_and_never_grows(count: int, slots: int) -> None:
    assert 1 <= cohort_size(count + 1, slots) <= cohort_size(count, slots) <= max(1, slots // 4)
