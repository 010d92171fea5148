"""Jobs of a model that this pod does not know, which a rollout may be bringing."""

import asyncio
from collections.abc import Mapping

import pytest

from tests.support.bench import Bench, target
from worker.app import waits
from worker.errors import HandedBack
from worker.flow.rollouts import FORGET_AFTER, HOLD, KNOWN_AT_MOST, Rollouts
from worker.interfaces import Drained, JobsReceived
from worker.jobs.outcomes import HandBackReason, Release
from worker.testing import job_line
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

PATIENCE = 600.0


def send(bench: Bench, count: int, model: str, name: str) -> None:
    for number in range(count):
        line = job_line(f"{name}-{number}", model=model)
        bench.queue.send(line, message_id=f"batch/{name}-{number}")


def codes(bench: Bench) -> dict[str, int]:
    """How many results there are of each outcome."""
    counts: dict[str, int] = {}
    for result in bench.sink.results.values():
        error = result["error"]
        assert error is None or isinstance(error, dict)
        code = "answered" if error is None else error["code"]
        counts[code] = counts.get(code, 0) + 1
    return counts


async def test_a_model_is_refused_once_this_pod_has_known_its_name_for_ten_minutes() -> None:
    bench = Bench(unknown_model_patience=PATIENCE)
    send(bench, 1, "gpt-new", "new")
    await bench.work()
    assert codes(bench) == {"model_not_allowed": 1}
    assert loop_time() == pytest.approx(PATIENCE, abs=1)
    released = [settlement for _, settlement in bench.queue.settled if settlement == Release()]
    assert PATIENCE / HOLD - 1 <= len(released) <= 2 * PATIENCE / HOLD


async def test_the_clock_runs_for_the_name_and_not_for_the_job() -> None:
    bench = Bench(unknown_model_patience=PATIENCE)
    send(bench, 1, "gpt-new", "early")
    asyncio.get_running_loop().call_at(PATIENCE + 50, send, bench, 40, "gpt-new", "late")
    await bench.work(until=lambda: len(bench.sink.lines) == 41)
    assert codes(bench) == {"model_not_allowed": 41}
    assert loop_time() == pytest.approx(PATIENCE + 50, abs=2)


async def test_jobs_of_unknown_models_stand_in_the_way_of_no_other() -> None:
    bench = Bench(slots=8, unknown_model_patience=PATIENCE)
    send(bench, 250, "gpt-new", "new")
    send(bench, 400, "gpt-5.4-mini", "known")
    await bench.work(until=lambda: len(bench.sink.lines) == 400)
    assert codes(bench) == {"answered": 400}
    assert loop_time() - 25 < 400 / 8 * 0.2 + 3


async def test_a_pod_that_knows_the_model_answers_what_another_gives_back() -> None:
    old = Bench(slots=16, unknown_model_patience=PATIENCE)
    new = Bench(slots=16, routes={"gpt-5.4-mini": [target("mini")], "gpt-new": [target("new")]}, queue=old.queue)
    send(old, 250, "gpt-new", "new")

    async def roll_out() -> None:
        await asyncio.sleep(100)
        await new.work(until=lambda: len(new.sink.lines) == 250)
        old.admission.stop()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(old.core.run())
        tasks.create_task(roll_out())
    assert codes(new) == {"answered": 250}
    assert old.sink.lines == {}
    assert loop_time() < PATIENCE


async def test_more_than_are_held_are_received_at_growing_intervals() -> None:
    bench = Bench(slots=16, unknown_model_patience=PATIENCE)
    send(bench, 3_000, "gpt-new", "new")
    await bench.run_for(120)
    receives = len(bench.events.of(JobsReceived))
    settled = len(bench.queue.settled)
    assert bench.sink.lines == {}
    assert settled < 2 * 1_100 * 120 / HOLD, "each message is held, and so comes again after a while only"
    assert receives < 2_500


async def test_what_is_held_for_a_rollout_is_told_while_it_waits() -> None:
    bench = Bench(unknown_model_patience=PATIENCE)
    send(bench, 137, "gpt-new", "new")
    told: list[Mapping[str, str]] = []
    asyncio.get_running_loop().call_at(10, lambda: told.append(waits(bench.admission, bench.rollouts)))
    await bench.run_for(11)
    assert told == [{"rollout": "137 jobs are held for models that this pod does not know: gpt-new"}]
    assert waits(bench.admission, bench.rollouts) == {}


async def test_on_stop_what_is_held_is_handed_back_at_once() -> None:
    bench = Bench(unknown_model_patience=PATIENCE)
    send(bench, 100, "gpt-new", "new")
    await bench.run_for(20)
    assert loop_time() == pytest.approx(20, abs=1.1)
    assert bench.events.of(Drained) == [Drained(handed_back=0)]
    assert len(bench.queue) == 100
    state = bench.admission.state
    assert state.aside == state.held == state.in_flight == state.memory.aside == 0


async def test_a_deadline_that_passes_meanwhile_is_the_result() -> None:
    bench = Bench(unknown_model_patience=PATIENCE, max_age=45.0)
    send(bench, 1, "gpt-new", "new")
    await bench.work()
    assert codes(bench) == {"expired": 1}
    assert loop_time() == pytest.approx(45, abs=1)


async def test_a_name_that_nobody_asked_for_in_an_hour_counts_as_never_seen() -> None:
    rollouts = Rollouts(PATIENCE)
    assert rollouts.left("new", 0) == PATIENCE
    assert rollouts.left("new", 500) == 100
    assert rollouts.left("new", 1_000) == 0
    assert rollouts.left("new", 1_001 + FORGET_AFTER) == PATIENCE


async def test_names_are_bounded_and_one_more_is_refused_at_once() -> None:
    rollouts = Rollouts(PATIENCE)
    for number in range(KNOWN_AT_MOST):
        assert rollouts.left(f"m-{number}", 0) == PATIENCE
    assert rollouts.left("one-more", 10) == 0
    assert rollouts.left("m-7", 10) == PATIENCE - 10
    assert len(rollouts.describe(10)) == 20
    assert rollouts.left("one-more", 11 + FORGET_AFTER) == PATIENCE, "old names make room"


async def test_what_is_held_when_it_stops_is_given_back_for_that_reason() -> None:
    rollouts = Rollouts(PATIENCE)
    asyncio.get_running_loop().call_later(3, rollouts.stop)
    for _ in range(2):
        with pytest.raises(HandedBack) as caught:
            await rollouts.hold(20)
        assert caught.value.reason is HandBackReason.SHUTDOWN
    assert loop_time() == 3
