"""A batch that its producer cancels: what is not called ends, what is called is kept; and what pods tell."""

import asyncio

import pytest

from tests.support.bench import EPOCH, Bench, answers
from worker.errors import Throttled, Unavailable
from worker.flow.batches import LOOK_EVERY, LOOKS_AT_ONCE, PATIENCE, REPORT_EVERY, Batches
from worker.interfaces import JobEnded, Target
from worker.jobs.job import Job
from worker.jobs.outcomes import Complete, Failed, FailureCode, Response
from worker.testing import FakeFleet, answer, job_line
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

CODE = FailureCode.BATCH_CANCELLED


def send(bench: Bench, *names: str, batch: str = "batch", replay: int = 0) -> None:
    for name in names:
        suffix = f"~r{replay}" if replay else ""
        bench.queue.send(
            job_line(name),
            message_id=f"{batch}/{name}{suffix}",
            correlation_id=batch,
            properties={"job-id": f"{batch}/{name}"} if replay else None,
        )


def ended(bench: Bench) -> dict[str, FailureCode | None]:
    """Each job to its failure, None where it was answered."""
    return {
        event.job_id or "": event.outcome.code if isinstance(event.outcome, Failed) else None
        for event in bench.events.of(JobEnded)
    }


async def test_jobs_of_a_cancelled_batch_end_without_a_call_and_leave_the_queue() -> None:
    fleet = FakeFleet()
    fleet.cancelled["batch"] = 999
    bench = Bench(fleet=fleet)
    send(bench, "a", "b")
    send(bench, "c", batch="other")
    await bench.work()
    assert ended(bench) == {"batch/a": CODE, "batch/b": CODE, "other/c": None}
    assert bench.model.calls == [("c", "mini")]
    assert bench.sink.results["batch/a"]["error"] == {
        "code": "batch_cancelled",
        "message": "batch batch was cancelled before this job was answered. Next: `aoai-worker retry`",
    }
    assert {settlement for _, settlement in bench.queue.settled} == {Complete()}


async def test_a_retry_since_the_cancellation_runs() -> None:
    fleet = FakeFleet()
    fleet.cancelled["batch"] = 1_000
    bench = Bench(fleet=fleet)
    send(bench, "a", replay=1_000)
    send(bench, "b", replay=1_001)
    await bench.work()
    assert ended(bench) == {"batch/a": CODE, "batch/b": None}


async def test_what_waits_at_a_closed_gate_ends_within_seconds() -> None:
    fleet = FakeFleet()

    async def throttles(job: Job, target: Target) -> Response:
        raise Throttled("slow down", status=429, retry_after=600.0)

    bench = Bench(throttles, fleet=fleet)
    send(bench, "a", "b", "c")
    asyncio.get_running_loop().call_later(61.0, fleet.cancelled.update, {"batch": 999})
    await bench.work()
    assert ended(bench) == dict.fromkeys(("batch/a", "batch/b", "batch/c"), CODE)
    assert 61 <= loop_time() <= 61 + LOOK_EVERY + 1


async def test_a_call_under_way_ends_and_is_kept() -> None:
    fleet = FakeFleet()

    async def slow(job: Job, target: Target) -> Response:
        await asyncio.sleep(30.0)
        return answer()

    bench = Bench(slow, fleet=fleet, slots=2)
    send(bench, "a", "b", "c")
    asyncio.get_running_loop().call_later(1.0, fleet.cancelled.update, {"batch": 999})
    await bench.work()
    assert ended(bench) == {"batch/a": None, "batch/b": None, "batch/c": CODE}
    assert len(bench.model.calls) == 2


async def test_a_call_that_fails_after_the_cancellation_is_not_made_again() -> None:
    fleet = FakeFleet()

    async def fails(job: Job, target: Target) -> Response:
        await asyncio.sleep(30.0)
        raise Unavailable("gone", status=503)

    bench = Bench(fails, fleet=fleet)
    send(bench, "a")
    asyncio.get_running_loop().call_later(1.0, fleet.cancelled.update, {"batch": 999})
    await bench.work()
    assert ended(bench) == {"batch/a": CODE}
    assert len(bench.model.calls) == 1
    assert loop_time() < 32


async def test_a_store_that_is_down_cancels_nothing_and_holds_nothing_up() -> None:
    fleet = FakeFleet()
    fleet.cancelled["batch"] = 999
    fleet.down = True
    bench = Bench(fleet=fleet)
    send(bench, "a")
    await bench.work()
    assert ended(bench) == {"batch/a": None}


async def test_a_store_that_does_not_answer_delays_the_first_jobs_for_seconds_only() -> None:
    class Hangs(FakeFleet):
        async def cancelled_up_to(self, batch_id: str) -> int | None:
            await asyncio.Event().wait()
            return None

    bench = Bench(fleet=Hangs())
    send(bench, "a", "b")
    await bench.work()
    assert ended(bench) == {"batch/a": None, "batch/b": None}
    assert loop_time() < PATIENCE + 2


async def test_one_look_is_made_for_all_the_jobs_of_a_batch_and_none_for_jobs_without_one() -> None:
    fleet = FakeFleet()
    bench = Bench(fleet=fleet, slots=10)
    send(bench, *[str(number) for number in range(100)])
    bench.queue.send(job_line("x"), message_id="x", correlation_id=None)
    await bench.work()
    assert len(ended(bench)) == 101
    assert fleet.looks == ["batch"]


async def test_many_batches_are_looked_for_in_turn() -> None:
    fleet = FakeFleet()

    async def slow(job: Job, target: Target) -> Response:
        await asyncio.sleep(100.0)
        return answer()

    count = 2 * LOOKS_AT_ONCE
    bench = Bench(slow, fleet=fleet, slots=count)
    for number in range(count):
        send(bench, "a", batch=f"b{number}")
    await bench.run_for(1.0 + 4 * LOOK_EVERY)
    looks = [fleet.looks.count(f"b{number}") for number in range(count)]
    assert set(looks) == {6}, "the first, and every other of the ten rounds until the end of the grace"


async def test_a_pod_tells_what_it_works_on_and_takes_that_away_when_it_ends() -> None:
    fleet = FakeFleet()

    async def slow(job: Job, target: Target) -> Response:
        await asyncio.sleep(25.0)
        return answer()

    bench = Bench(slow, fleet=fleet)
    send(bench, "a", "b")
    send(bench, "c", batch="other")
    await bench.work()
    assert [report.at - EPOCH for report in fleet.reports] == [0.0, REPORT_EVERY, 2 * REPORT_EVERY]
    assert fleet.reports[1].running == {"batch": 2, "other": 1}
    assert fleet.reports[1].pod == "pod-1"
    assert fleet.withdrawn


async def test_without_blob_storage_nothing_is_looked_for() -> None:
    bench = Bench(answers)
    send(bench, "a")
    await bench.work()
    assert ended(bench) == {"batch/a": None}
    await Batches().run()
