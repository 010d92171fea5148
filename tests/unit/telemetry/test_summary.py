"""One line a minute: what was done, how fast, and what is waited for."""

import asyncio
from typing import Any

import pytest

from tests.support.bench import Bench
from worker.admission.admission import Admission
from worker.interfaces import CallEnded, JobEnded
from worker.jobs.outcomes import (
    Answered,
    Failed,
    FailureCode,
    HandBackReason,
    Outcome,
    Refused,
    Response,
    Unfinished,
    Usage,
)
from worker.telemetry.summary import Summary
from worker.testing import job_line
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

OK = Answered(response=Response(status=200, request_id=None, body=b"{}"))
REFUSED = Refused(response=Response(status=400, request_id=None, body=b"{}"))
EXPIRED = Failed(code=FailureCode.EXPIRED, message="too late")


def ended(outcome: Outcome) -> JobEnded:
    return JobEnded(
        queue="jobs", message_id="a", job_id="a", outcome=outcome, deployment=None, calls=1, seconds=1.0
    )


def called(status: str, usage: Usage | None = None) -> CallEnded:
    return CallEnded(job_id="a", deployment="mini", status=status, seconds=1.0, usage=usage)


async def test_it_counts_jobs_failures_tokens_and_throttles_and_says_how_many_a_second() -> None:
    lines: list[dict[str, Any]] = []
    summary = Summary(lines.append)
    for _ in range(28):
        summary(ended(OK))
        summary(called("200", Usage(prompt=100, completion=7, cached=0)))
    for outcome in (REFUSED, EXPIRED, Unfinished(reason=HandBackReason.SHUTDOWN)):
        summary(ended(outcome))
    summary(called("429"))
    await asyncio.sleep(10)
    summary.tell(3, {"sink": "it is full"})
    assert lines == [
        {
            "seconds": 10.0,
            "done": 30,
            "failed": 2,
            "without_result": 1,
            "throttled_calls": 1,
            "prompt_tokens": 2_800,
            "completion_tokens": 196,
            "jobs_per_second": 3.0,
            "in_flight": 3,
            "waits_for": {"sink": "it is full"},
        }
    ]


async def test_an_idle_worker_is_silent_and_one_that_waits_is_not() -> None:
    lines: list[dict[str, Any]] = []
    summary = Summary(lines.append)
    summary.tell()
    assert lines == []
    summary.tell(1)
    summary.tell(0, {"setup": "a role is missing"})
    assert [line["waits_for"] for line in lines] == [{}, {"setup": "a role is missing"}]


async def test_a_line_is_written_each_minute_until_the_worker_stops() -> None:
    lines: list[dict[str, Any]] = []
    summary = Summary(lines.append)
    admission = Admission({}, slots=2, observer=lambda _: None)
    asyncio.get_running_loop().call_later(150, admission.stop)
    asyncio.get_running_loop().call_later(70, summary, ended(OK))
    await summary.run(admission, dict)
    assert loop_time() == 150
    assert [line["done"] for line in lines] == [1]
    summary(ended(OK))
    summary.tell()
    assert [line["done"] for line in lines] == [1, 1]
    assert lines[1]["seconds"] == 30.0


async def test_the_events_of_a_worker_are_what_it_counts() -> None:
    bench = Bench(slots=8)
    for number in range(500):
        bench.queue.send(job_line(f"q-{number}"), message_id=f"batch/q-{number}")
    await bench.work()
    lines: list[dict[str, Any]] = []
    summary = Summary(lines.append)
    for event in bench.events.all:
        summary(event)
    summary.tell()
    assert lines[0]["done"] == 500
    assert lines[0]["completion_tokens"] > 0
