"""A worker is killed at every step of a job's life; another finishes, and each job has one result.

The step is brought about by a fault that holds the first worker there: a service that never answers, a sink that
takes nothing, a broker that does not hear settlements. What is paid twice thereby is not asserted: a kill between
answer and result cannot be told from one before.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import (
    Worker,
    assert_one_result_each,
    azure,
    command,
    config_for_tests,
    results_in,
    until,
    worker,
    write_batch,
)

JOBS = 40
SLOTS = 16


@dataclass(frozen=True)
class Step:
    """Where the worker is held, by which fault, and how one sees from outside that it is there."""

    name: str
    fault: dict[str, Any]
    metric: str
    at_least: float
    servicebus: bool = False

    def __str__(self) -> str:
        return self.name


STEPS = (
    Step(
        "calls-that-have-no-answer-yet",
        {"kind": "connection", "how": "hang"},
        "aoai_worker_jobs_in_flight",
        SLOTS,
    ),
    Step(
        "answers-that-are-half-read",
        {"kind": "body", "how": "hang", "after": 50},
        "aoai_worker_jobs_in_flight",
        SLOTS,
    ),
    Step(
        "failed-calls-that-back-off",
        {"kind": "answer", "status": 503, "retry_after": 30},
        "aoai_worker_calls_total",
        SLOTS,
    ),
    Step(
        "jobs-that-wait-at-a-closed-gate",
        {"kind": "answer", "status": 429, "retry_after": 30},
        "aoai_worker_gate_closed_seconds_total",
        1,
    ),
    Step(
        "answers-that-cannot-be-written",
        {"kind": "refuse", "on": "send", "entity": "results"},
        "aoai_worker_calls_total",
        SLOTS,
        servicebus=True,
    ),
    Step(
        "results-whose-writing-is-not-confirmed",
        {"kind": "lose_answer", "on": "send", "entity": "results"},
        "aoai_worker_calls_total",
        SLOTS,
        servicebus=True,
    ),
    Step(
        "results-whose-messages-are-not-settled",
        {"kind": "lose_answer", "on": "settle", "applied": False, "entity": "jobs"},
        "aoai_worker_result_write_seconds_count",
        SLOTS,
        servicebus=True,
    ),
    Step(
        "settlements-that-were-not-confirmed",
        {"kind": "lose_answer", "on": "settle", "entity": "jobs"},
        "aoai_worker_result_write_seconds_count",
        SLOTS,
        servicebus=True,
    ),
)


def has_reached(one: Worker, step: Step) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return await one.metric(step.metric) >= step.at_least

    return reached


@pytest.mark.parametrize("step", STEPS, ids=str)
async def test_a_worker_killed_at_this_step_loses_and_doubles_no_result(step: Step, tmp_path: Path) -> None:
    async with azure(tmp_path, config_for_tests(lock_duration=5.0)) as cloud:
        batch = str(write_batch(tmp_path / "in.jsonl", JOBS))
        code, output = await command(cloud, "submit", batch, "--batch", "a-batch")
        assert code == 0, output
        await cloud.control("/local/faults", step.fault, servicebus=step.servicebus)
        async with worker(cloud, slots=str(SLOTS)) as dying:
            await until(has_reached(dying, step))
            dying.process.child.kill()
            await dying.process.ended()
        await cloud.control("/local/faults", [], servicebus=step.servicebus)
        async with worker(cloud, slots=str(SLOTS)):
            out = tmp_path / "out.jsonl"
            code, output = await command(cloud, "collect", "a-batch", "-o", str(out), "--follow")
            assert code == 0, output
    assert_one_result_each(results_in(out), JOBS)
