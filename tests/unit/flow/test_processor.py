"""The life of one job, row by row of the failure table. Out of scope: what the SDKs do (contract tests)."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import pytest

from tests.support.bench import EPOCH, Bench, answers, target, wall_clock
from worker.admission.closures import Closure
from worker.admission.memory import Reservation
from worker.errors import (
    CallFailed,
    ClaimUnavailable,
    DeadLetterReason,
    NotAJob,
    RefusedByService,
    SetupWrong,
    Throttled,
    Unavailable,
)
from worker.interfaces import (
    BackedOff,
    Delivery,
    GateClosed,
    IntakeClosed,
    IntakeOpened,
    JobEnded,
    JobFaulted,
    ResultWritten,
    Settled,
    Target,
)
from worker.jobs.job import Claim, Job, rfc3339
from worker.jobs.outcomes import (
    Abandon,
    AlreadyDone,
    Answered,
    Complete,
    HandBackReason,
    Lost,
    Release,
    Response,
    Settlement,
    Unfinished,
)
from worker.testing import FakeQueue, FakeSink, answer, job_line
from worker.waits import loop_time

pytestmark = pytest.mark.looptime


class FailsFirst:
    """Raises the given errors in turn, then answers at once."""

    def __init__(self, *errors: CallFailed) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def __call__(self, job: Job, target: Target) -> Response:
        self.times.append(loop_time())
        if self.errors:
            raise self.errors.pop(0)
        return answer()


def unavailable(status: int | None = 503) -> Unavailable:
    return Unavailable("gone", status=status, body=b'{"error":{"code":"x"}}', request_id="r")


async def never_answers(job: Job, target: Target) -> Response:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def test_an_answered_job_is_written_before_its_message_is_completed() -> None:
    bench = Bench()
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert bench.queue.settled == [("batch/a", Complete())]
    result = bench.sink.results["batch/a"]
    assert result["custom_id"] == "a"
    assert result["error"] is None
    assert result["response"] == {
        "status_code": 200,
        "request_id": "req-1",
        "body": {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "to a"}}]},
    }


async def test_the_result_says_who_did_the_job_and_how_long_it_took() -> None:
    bench = Bench(FailsFirst(unavailable()))
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    worker = bench.sink.results["batch/a"]["worker"]
    assert isinstance(worker, dict)
    assert worker["attempts"] == 2
    assert worker["deployment"] == "mini"
    assert worker["endpoint"] == "https://account.openai.azure.com"
    assert worker["pod"] == "pod-1"
    assert worker["usage"] == {"prompt": 10, "completion": 2, "cached": 0}
    assert worker["batch_id"] == "batch"
    assert worker["schema"] == 1


async def test_what_is_not_a_job_is_dead_lettered_with_its_reason_and_costs_no_call() -> None:
    bench = Bench()
    bench.queue.send(b"not json", message_id="m")
    await bench.work()
    [(envelope, settlement)] = bench.queue.dead
    assert settlement is not None
    assert envelope.message_id == "m"
    assert settlement.reason == DeadLetterReason.INVALID_JSON
    assert "Send one line of a Batch input file" in settlement.description
    assert bench.model.calls == []
    assert bench.sink.lines == {}


async def test_a_refusal_by_the_service_becomes_the_result_and_is_not_called_again() -> None:
    refusal = RefusedByService("no", status=400, body=b'{"error":{"code":"content_filter"}}', request_id="req-9")
    bench = Bench(FailsFirst(refusal))
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert bench.sink.results["batch/a"]["response"] == {
        "status_code": 400,
        "request_id": "req-9",
        "body": {"error": {"code": "content_filter"}},
    }
    assert bench.sink.results["batch/a"]["error"] is None
    assert len(bench.model.calls) == 1
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_a_model_that_is_not_listed_becomes_an_error_line_that_names_what_is_allowed() -> None:
    bench = Bench()
    bench.queue.send(job_line("a", model="gpt-unlisted"), message_id="batch/a")
    await bench.work()
    assert bench.model.calls == []
    assert bench.sink.results["batch/a"]["response"] is None
    assert bench.sink.results["batch/a"]["error"] == {
        "code": "model_not_allowed",
        "message": "the model 'gpt-unlisted' is not one that this worker may call; allowed are: gpt-5.4-mini",
    }


async def test_under_passthrough_the_model_names_the_deployment() -> None:
    bench = Bench(passthrough=True)
    bench.queue.send(job_line("a", model="any-deployment"), message_id="batch/a")
    await bench.work()
    assert bench.model.calls == [("a", "any-deployment")]


async def test_under_passthrough_producers_cannot_open_gates_without_end() -> None:
    bench = Bench(passthrough=True)
    for number in range(70):
        bench.queue.send(job_line(f"{number}", model=f"m{number}"), message_id=f"batch/{number}")
    await bench.work()
    assert {name for name, _ in bench.model.calls} == {str(number) for number in range(70)}
    assert [result["error"] for result in bench.sink.results.values()] == [None] * 70
    assert len(bench.admission.state.routes.models) == 64


async def test_an_outage_of_an_hour_costs_a_few_jobs_and_not_all_that_are_in_the_queue() -> None:
    async def down(job: Job, target: Target) -> Response:
        await asyncio.sleep(0.2)
        if loop_time() < 3_600:
            raise Unavailable("connection refused")
        return answer()

    bench = Bench(down, slots=16)
    for number in range(1_000):
        bench.queue.send(job_line(f"j{number}"), message_id=f"batch/j{number}")
    await bench.run_for(3_600 + 60 + 1_000 / 16 * 0.2 + 5)
    failed = [result for result in bench.sink.results.values() if result["error"]]
    # 24 failures close the gate; then one call each 20 s fails, and a job may fail six times
    assert len(failed) <= (24 + 16 + 3_600 / 20 + 5) / 6
    assert len(bench.sink.results) == 1_000


async def test_a_failure_on_the_way_backs_off_twice_as_long_each_time() -> None:
    service = FailsFirst(unavailable(), unavailable(None), unavailable(500))
    bench = Bench(service)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert service.times == [0, 1, 3, 7]
    assert [event.seconds for event in bench.events.of(BackedOff)] == [1, 2, 4]
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_a_failure_that_names_its_own_wait_is_not_asked_earlier() -> None:
    service = FailsFirst(Unavailable("busy", status=503, retry_after=9))
    bench = Bench(service)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert service.times == [0, 9]


async def test_when_attempts_are_used_up_the_last_status_becomes_the_result() -> None:
    bench = Bench(FailsFirst(unavailable(502), unavailable(503)), attempts=2)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert bench.sink.results["batch/a"]["response"] == {
        "status_code": 503,
        "request_id": "r",
        "body": {"error": {"code": "x"}},
    }
    assert len(bench.model.calls) == 2


async def test_when_the_service_never_said_anything_the_result_is_an_error() -> None:
    bench = Bench(FailsFirst(unavailable(None), unavailable(None)), attempts=2)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert bench.sink.results["batch/a"]["error"] == {
        "code": "attempts_exhausted",
        "message": "no answer in 2 calls; the last: gone",
    }


async def test_a_throttle_waits_as_long_as_the_service_asks_and_is_not_an_attempt() -> None:
    service = FailsFirst(*[Throttled("slow down", status=429, retry_after=3) for _ in range(8)])
    bench = Bench(service, attempts=1)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert service.times == [3 * call for call in range(9)]
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_throttles_take_nothing_from_the_attempts_that_a_failure_has() -> None:
    throttles = [Throttled("slow down", status=429, retry_after=1) for _ in range(5)]
    service = FailsFirst(*throttles, unavailable(), unavailable())
    bench = Bench(service, attempts=3)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert service.times == [0, 1, 2, 3, 4, 5, 6, 8]
    assert bench.sink.results["batch/a"]["response"] is not None
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_a_throttle_closes_the_gate_of_its_deployment_only() -> None:
    async def mini_is_busy(job: Job, target: Target) -> Response:
        if target.deployment == "mini" and loop_time() < 5:
            raise Throttled("slow down", status=429, retry_after=5)
        return await answers(job, target)

    routes = {"gpt-5.4-mini": [target("mini")], "gpt-5.4": [target("large")]}
    bench = Bench(mini_is_busy, slots=12, routes=routes)
    bench.queue.send(job_line("a", model="gpt-5.4-mini"), message_id="batch/a")
    bench.queue.send(job_line("b", model="gpt-5.4"), message_id="batch/b")
    bench.queue.send(job_line("c", model="gpt-5.4-mini"), message_id="batch/c")
    await bench.work()
    assert bench.queue.settled[0][0] == "batch/b"
    assert bench.model.calls[:2] == [("a", "mini"), ("b", "large")]
    assert sorted(bench.model.calls[2:]) == [("a", "mini"), ("c", "mini")]
    assert len(bench.events.of(GateClosed)) == 1


async def test_a_job_goes_to_the_next_deployment_of_its_model_while_the_first_is_closed() -> None:
    async def first_is_full(job: Job, target: Target) -> Response:
        if target.deployment == "provisioned":
            raise Throttled("full", status=429, retry_after=60)
        return await answers(job, target)

    bench = Bench(first_is_full, routes={"gpt-5.4-mini": [target("provisioned"), target("standard")]})
    for name in "ab":
        bench.queue.send(job_line(name), message_id=f"batch/{name}")
    await bench.work()
    assert [deployment for _, deployment in bench.model.calls].count("standard") == 2
    assert loop_time() < 60


async def test_a_job_that_would_be_parked_too_long_is_handed_back_at_once() -> None:
    bench = Bench(
        FailsFirst(*[Throttled("later", status=429, retry_after=100) for _ in range(9)]),
        parking=250,
    )
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.run_for(350)
    first = bench.events.of(JobEnded)[0]
    assert first.outcome == Unfinished(reason=HandBackReason.PARKED)
    assert bench.queue.settled[0] == ("batch/a", Release())


async def test_a_stray_throttle_that_names_no_time_delays_its_own_job_only() -> None:
    service = FailsFirst(Throttled("slow down", status=429))
    bench = Bench(service)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert service.times == [0, 0.5]
    assert bench.events.of(GateClosed) == []


class Strays:
    """A service of 0.2 s a call that refuses one now and then, and names no time."""

    def __init__(self, is_refused: Callable[[], bool]) -> None:
        self._is_refused = is_refused

    async def __call__(self, job: Job, target: Target) -> Response:
        await asyncio.sleep(0.2)
        if self._is_refused():
            raise Throttled("slow down", status=429)
        return answer()


async def seconds_for(is_refused: Callable[[], bool]) -> float:
    """Of virtual time for 1,000 jobs of 1,200, so that the last few, each on its own, are not measured."""
    bench = Bench(Strays(is_refused), slots=64)
    for number in range(1_200):
        bench.queue.send(job_line(f"q-{number}"), message_id=f"batch/q-{number}")
    begun, ended = loop_time(), 0.0

    def are_done() -> bool:
        nonlocal ended
        ended = loop_time()
        return len(bench.sink.lines) >= 1_000

    await bench.work(until=are_done)
    return ended - begun


async def test_a_stray_throttle_every_third_of_a_second_hardly_delays_the_work() -> None:
    last = loop_time()

    def every_third_of_a_second() -> bool:
        nonlocal last
        is_due = loop_time() - last >= 0.3
        last = loop_time() if is_due else last
        return is_due

    undisturbed = await seconds_for(lambda: False)
    assert await seconds_for(every_third_of_a_second) < undisturbed / 0.9


async def test_at_5_percent_of_stray_throttles_four_fifths_of_the_throughput_are_kept() -> None:
    undisturbed = await seconds_for(lambda: False)
    chances = random.Random(1)
    assert await seconds_for(lambda: chances.random() < 0.05) < undisturbed / 0.8


@pytest.mark.parametrize("broken_for", [3.0, 47.0, 60.0, 200.0, 1_000.0])
async def test_work_goes_on_within_half_a_minute_of_when_a_wrong_set_up_is_mended(broken_for: float) -> None:
    async def service(job: Job, target: Target) -> Response:
        await asyncio.sleep(0.2)
        if loop_time() < broken_for:
            raise SetupWrong("403: the role is missing", status=403)
        return answer()

    bench = Bench(service, slots=8)
    for number in range(40):
        bench.queue.send(job_line(f"q-{number}"), message_id=f"batch/q-{number}")
    await bench.work()
    assert len(bench.sink.lines) == 40
    assert loop_time() < broken_for + 30


async def test_a_job_whose_deadline_has_passed_is_not_called() -> None:
    bench = Bench()
    bench.queue.send(job_line("a"), message_id="batch/a", properties={"deadline": "2020-01-01T00:00:00Z"})
    await bench.work()
    assert bench.model.calls == []
    error = bench.sink.results["batch/a"]["error"]
    assert isinstance(error, dict)
    assert error["code"] == "expired"
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_a_job_that_no_deployment_takes_before_its_deadline_expires_without_waiting_for_it() -> None:
    bench = Bench(
        FailsFirst(*[Throttled("later", status=429, retry_after=100) for _ in range(9)]),
        max_age=150,
    )
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    error = bench.sink.results["batch/a"]["error"]
    assert error == {
        "code": "expired",
        "message": "no deployment was open before the deadline, after 2 calls",
    }
    assert loop_time() <= 101


async def test_no_attempt_is_begun_after_the_deadline() -> None:
    service = FailsFirst(*[unavailable() for _ in range(9)])
    bench = Bench(service, max_age=5)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert service.times == [0, 1, 3]
    assert bench.sink.results["batch/a"]["response"] is not None


async def test_a_wrong_setup_stops_receiving_and_one_job_probes_until_it_is_mended() -> None:
    mended_at = 12.0

    async def forbidden(job: Job, target: Target) -> Response:
        await asyncio.sleep(0.1)
        if loop_time() < mended_at:
            raise SetupWrong("403: no role", status=403)
        return answer()

    bench = Bench(forbidden, slots=3)
    for name in "abcdef":
        bench.queue.send(job_line(name), message_id=f"batch/{name}")
    await bench.work()
    closed = bench.events.of(IntakeClosed)
    assert [(event.reason, event.detail) for event in closed] == [("setup", "gpt-5.4-mini: 403: no role")]
    assert [event.reason for event in bench.events.of(IntakeOpened)] == ["setup"]
    # three first calls, a probe after 5 s, another 10 s later; then everybody
    assert len(bench.model.calls) == 3 + 1 + 1 + 5
    assert {settlement for _, settlement in bench.queue.settled} == {Complete()}
    assert loop_time() == pytest.approx(16, abs=1)


async def test_a_job_that_is_handed_back_for_our_setup_has_not_expired() -> None:
    async def forbidden(job: Job, target: Target) -> Response:
        raise SetupWrong("403: no role", status=403)

    bench = Bench(forbidden, max_age=500)
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.run_for(100)
    assert {settlement for _, settlement in bench.queue.settled} == {Release()}
    assert bench.sink.lines == {}


async def test_a_deployment_that_forbids_us_is_passed_over_and_receiving_goes_on() -> None:
    async def forbids_at_first(job: Job, target: Target) -> Response:
        await asyncio.sleep(0.2)
        if target.deployment == "provisioned":
            raise SetupWrong("403: no role", status=403)
        return answer()

    bench = Bench(forbids_at_first, routes={"gpt-5.4-mini": [target("provisioned"), target("standard")]})
    for number in range(200):
        bench.queue.send(job_line(f"j{number}"), message_id=f"batch/j{number}")
    await bench.work()
    deployments = [deployment for _, deployment in bench.model.calls]
    assert deployments.count("standard") == 200
    assert deployments.count("provisioned") == bench.admission.state.slots + 1, (
        "those under way at first, and one probe"
    )
    assert bench.events.of(IntakeClosed) == []
    assert {settlement for _, settlement in bench.queue.settled} == {Complete()}


async def test_jobs_held_for_a_wrong_setup_are_handed_back_and_later_probes_are_single() -> None:
    async def forbidden(job: Job, target: Target) -> Response:
        await asyncio.sleep(0.1)
        raise SetupWrong("403: no role", status=403)

    bench = Bench(forbidden, slots=4)
    for name in "abcdefgh":
        bench.queue.send(job_line(name), message_id=f"batch/{name}")
    await bench.run_for(600)
    assert {settlement for _, settlement in bench.queue.settled} == {Release()}
    assert len(bench.queue) == 8
    assert bench.sink.lines == {}
    # 4 at first, then probes at 5, 15, 35 s and each 20 s from there to 600
    assert len(bench.model.calls) == 4 + 3 + 28


async def test_an_answer_is_kept_while_the_sink_is_down_and_nothing_more_is_received() -> None:
    bench = Bench(slots=4)
    bench.sink.down = True
    for name in "ab":
        bench.queue.send(job_line(name), message_id=f"batch/{name}")
    loop = asyncio.get_running_loop()
    waiting: list[int] = []

    def send_more() -> None:
        for name in "cd":
            bench.queue.send(job_line(name), message_id=f"batch/{name}")

    def fix() -> None:
        waiting.append(len(bench.queue))
        bench.sink.down = False

    loop.call_at(5, send_more)
    loop.call_at(20, fix)
    await bench.work(until=lambda: len(bench.queue.settled) == 4)
    assert waiting == [2], "slots were free, but what cannot be written must not be received"
    assert len(bench.model.calls) == 4, "no answer is paid for twice"
    assert sorted(bench.sink.lines) == ["batch/a", "batch/b", "batch/c", "batch/d"]


async def test_a_result_that_the_sink_can_never_take_becomes_an_error_line() -> None:
    async def long_answer(job: Job, target: Target) -> Response:
        return answer("x" * 10_000)

    bench = Bench(long_answer, sink=FakeSink(largest=2_000))
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    error = bench.sink.results["batch/a"]["error"]
    assert isinstance(error, dict)
    assert error["code"] == "answer_too_large"
    assert "2,000" in error["message"]
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_a_refusal_that_the_sink_can_never_take_becomes_an_error_line_and_is_not_called_for_again() -> None:
    bench = Bench(
        FailsFirst(*[RefusedByService("no", status=400, body=b'"%s"' % (b"x" * 10_000)) for _ in range(30)]),
        sink=FakeSink(largest=2_000),
    )
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert bench.queue.settled == [("batch/a", Complete())]
    assert len(bench.model.calls) == 1
    error = bench.sink.results["batch/a"]["error"]
    assert isinstance(error, dict)
    assert error["code"] == "answer_too_large"


async def test_a_lost_lock_cancels_the_call_and_nothing_is_said_to_the_broker() -> None:
    bench = Bench(never_answers)
    bench.queue.send(job_line("a"), message_id="batch/a")
    loop = asyncio.get_running_loop()
    loop.call_at(5, lambda: bench.queue.locked[0].lose())
    await bench.run_for(10)
    [ended] = bench.events.of(JobEnded)
    assert ended.outcome == Lost()
    assert bench.model.in_flight == 0
    assert bench.queue.settled == []
    assert bench.sink.lines == {}


async def test_a_job_redelivered_after_its_lock_was_lost_has_one_result() -> None:
    bench = Bench(slots=1)
    bench.queue.send(job_line("a"), message_id="batch/a")
    asyncio.get_running_loop().call_at(0.1, lambda: bench.queue.lapse(bench.queue.locked[0]))
    await bench.work()
    assert list(bench.sink.lines) == ["batch/a"]
    assert bench.queue.settled == [("batch/a", Complete())]


async def test_a_settlement_that_is_not_confirmed_is_reported_and_the_result_stays() -> None:
    bench = Bench()
    bench.queue.mute = True
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.run_for(5)
    assert [event.confirmed for event in bench.events.of(Settled)] == [False]
    assert list(bench.sink.lines) == ["batch/a"]


async def test_a_fault_of_our_own_costs_one_job_and_raises_its_delivery_count() -> None:
    async def has_a_bug(job: Job, target: Target) -> Response:
        if job.line.custom_id == "a":
            raise ZeroDivisionError("a bug")
        return answer()

    bench = Bench(has_a_bug)
    bench.queue.send(job_line("a"), message_id="batch/a")
    bench.queue.send(job_line("b"), message_id="batch/b")
    await bench.work(until=lambda: "batch/b" in bench.sink.lines)
    assert ("batch/a", Abandon()) in bench.queue.settled
    assert isinstance(bench.events.of(JobFaulted)[0].error, ZeroDivisionError)


class ConfirmsLate:
    """A queue that confirms settlements only when told to."""

    queue = "jobs"

    def __init__(self, behind: FakeQueue) -> None:
        self.behind = behind
        self.confirmed = asyncio.Event()

    async def receive(self, count: int, *, wait: float) -> Sequence[Delivery]:
        deliveries = await self.behind.receive(count, wait=wait)
        return [ConfirmedLate(delivery, self.confirmed) for delivery in deliveries]


class ConfirmedLate:
    def __init__(self, delivery: Delivery, confirmed: asyncio.Event) -> None:
        self.envelope = delivery.envelope
        self.when_lost = delivery.when_lost
        self._settle = delivery.settle
        self._confirmed = confirmed

    async def settle(self, settlement: Settlement) -> None:
        await self._confirmed.wait()
        await self._settle(settlement)


async def test_the_slot_is_free_before_the_settlement_is_confirmed() -> None:
    source = ConfirmsLate(FakeQueue(clock=wall_clock))
    bench = Bench(slots=1, queue=source.behind, source=source)
    bench.queue.send(job_line("a"), message_id="batch/a")
    bench.queue.send(job_line("b"), message_id="batch/b")
    loop = asyncio.get_running_loop()
    written_by_then: list[str] = []
    loop.call_at(20, lambda: written_by_then.extend(bench.sink.lines))
    loop.call_at(30, source.confirmed.set)
    await bench.work()
    assert written_by_then == ["batch/a", "batch/b"]
    assert [settlement for _, settlement in bench.queue.settled] == [Complete(), Complete()]


async def test_a_replayed_job_writes_a_result_of_its_own() -> None:
    bench = Bench()
    bench.queue.send(job_line("a"), message_id="batch/a~r2", properties={"job-id": "batch/a"})
    await bench.work()
    assert list(bench.sink.lines) == ["batch/a~r2"]
    worker = bench.sink.results["batch/a~r2"]["worker"]
    assert isinstance(worker, dict)
    assert (worker["job_id"], worker["replay"]) == ("batch/a", 2)


# Several models in one queue


async def mini_is_closed(job: Job, target: Target) -> Response:
    if target.deployment == "mini" and loop_time() < 600:
        raise Throttled("slow down", status=429, retry_after=600 - loop_time())
    return await answers(job, target)


async def test_jobs_that_are_handed_back_again_and_again_are_not_asked_for_without_a_pause() -> None:
    """Jobs of a closed model in a queue whose other model is open, as under `passthrough`."""
    routes = {"mini": [target("mini")], "large": [target("large")]}
    bench = Bench(mini_is_closed, slots=4, routes=routes, parking=20)
    for number in range(8):
        bench.queue.send(job_line(f"m{number}", model="mini"), message_id=f"m{number}")
    await bench.run_for(300)
    assert 8 < len(bench.queue.settled) < 200, "the broker would give them back at once"
    assert bench.sink.lines == {}


# Redeliveries and results that are there already


async def test_a_redelivered_job_whose_result_is_there_is_not_paid_for_again() -> None:
    bench = Bench(sink=FakeSink(knows=True))
    bench.sink.lines["batch/a"] = b'{"first": true}'
    bench.queue.send(job_line("a"), message_id="batch/a", delivery_count=1)
    bench.queue.send(job_line("b"), message_id="batch/b", delivery_count=1)
    await bench.work()
    assert bench.model.calls == [("b", "mini")]
    assert bench.sink.lines["batch/a"] == b'{"first": true}'
    assert ("batch/a", Complete()) in bench.queue.settled
    assert [type(event.outcome) for event in bench.events.of(JobEnded)] == [AlreadyDone, Answered]


async def test_a_first_delivery_does_not_look_for_a_result() -> None:
    bench = Bench(sink=FakeSink(knows=True))
    bench.sink.lines["batch/a"] = b'{"first": true}'
    bench.queue.send(job_line("a"), message_id="batch/a")
    await bench.work()
    assert bench.model.calls == [("a", "mini")]
    assert [event.paid_twice for event in bench.events.of(ResultWritten)] == [True]
    assert bench.sink.lines["batch/a"] == b'{"first": true}', "the first result stays"


async def test_a_result_that_is_found_shows_that_the_sink_is_up() -> None:
    bench = Bench(sink=FakeSink(knows=True))
    bench.sink.lines["batch/a"] = b"{}"
    bench.admission.close(Closure.SINK, "the lock of the job that met this was lost")
    bench.queue.send(job_line("a"), message_id="batch/a", delivery_count=1)
    await bench.work()
    assert bench.model.calls == []
    assert not bench.admission.state.closures.is_half_open


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_redelivered_job_is_not_called_before_the_sink_can_say(is_there: bool) -> None:
    bench = Bench(sink=FakeSink(knows=True))
    if is_there:
        bench.sink.lines["batch/a"] = b"{}"
    bench.sink.down = True
    asyncio.get_running_loop().call_at(5, setattr, bench.sink, "down", False)
    bench.queue.send(job_line("a"), message_id="batch/a", delivery_count=1)
    await bench.work()
    assert bench.model.calls == ([] if is_there else [("a", "mini")])
    assert "batch/a" in bench.sink.lines
    assert not bench.admission.state.closures.is_half_open


# Claim checks

CLAIM: dict[str, Any] = {
    "url": "https://a.blob.core.windows.net/c/claims/1",
    "length": 5,
    "sha256": "0" * 64,
    "etag": None,
}


class FakeClaims:
    """`bodies` by url; what is not there cannot be read until `up_at`."""

    def __init__(self, bodies: Mapping[str, bytes], *, up_at: float = 0.0) -> None:
        self.bodies = bodies
        self.up_at = up_at
        self.on_fetch: Callable[[], None] = lambda: None

    def require_ours(self, claim: Claim) -> None:
        if claim.length > 1_000:
            raise NotAJob(DeadLetterReason.INVALID_CLAIM, "too large")

    async def fetch(self, claim: Claim) -> bytes:
        self.on_fetch()
        if loop_time() < self.up_at:
            raise ClaimUnavailable("blob storage is down")
        if claim.url not in self.bodies:
            raise NotAJob(DeadLetterReason.INVALID_CLAIM, "no such blob; send the job again")
        return self.bodies[claim.url]


def send_claim(bench: Bench, message_id: str = "batch/a", **changes: Any) -> None:
    body = orjson.dumps({"claim": CLAIM | changes})
    bench.queue.send(body, message_id=message_id, content_type="application/vnd.aoai-worker.claim+json")


async def test_a_job_is_fetched_for_its_claim() -> None:
    bench = Bench(claims=FakeClaims({CLAIM["url"]: job_line("a")}))
    send_claim(bench)
    await bench.work()
    assert bench.model.calls == [("a", "mini")]
    assert bench.admission.state.memory.used == 0


async def test_jobs_wait_for_memory_before_they_are_fetched_for_their_claims() -> None:
    claims = FakeClaims({CLAIM["url"]: job_line("a")})
    bench = Bench(slots=23, bytes_limit=9_000, claims=claims)
    held: list[int] = []
    claims.on_fetch = lambda: held.append(bench.admission.state.memory.used)
    for number in range(79):
        send_claim(bench, f"batch/{number}", length=990)
    await bench.work()
    assert len(bench.model.calls) == 79
    messages = 23 * len(orjson.dumps({"claim": CLAIM}))
    assert max(held) <= 9_000 + messages
    assert bench.admission.state.memory.used == 0


async def test_while_a_claim_cannot_be_fetched_the_job_is_kept_and_nothing_more_is_received() -> None:
    bench = Bench(claims=FakeClaims({CLAIM["url"]: job_line("a")}, up_at=30))
    send_claim(bench)
    seen: list[Mapping[str, str]] = []
    asyncio.get_running_loop().call_at(10, lambda: seen.append(bench.admission.closures))
    await bench.work()
    assert seen == [{"claims": "blob storage is down"}]
    assert bench.model.calls == [("a", "mini")]
    assert bench.admission.closures == {}


async def test_a_claim_that_proves_bad_after_an_outage_leaves_nothing_closed() -> None:
    bench = Bench(claims=FakeClaims({}, up_at=30))
    send_claim(bench)
    await bench.work()
    assert bench.admission.closures == {}
    assert len(bench.queue.dead) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"url": None},
        {"url": 7},
        {"length": "5"},
        {"length": -1},
        {"length": True},
        {"length": 1.5},
        {"sha256": "abc"},
        {"sha256": None},
        {"etag": 5},
    ],
)
async def test_a_claim_that_is_not_whole_is_dead_lettered(changes: dict[str, Any]) -> None:
    bench = Bench(claims=FakeClaims({}))
    send_claim(bench, **changes)
    await bench.work()
    (envelope, settlement) = bench.queue.dead[0]
    assert settlement is not None
    assert settlement.reason is DeadLetterReason.INVALID_CLAIM
    assert "sha256 in hex" in settlement.description
    assert envelope.message_id == "batch/a"


async def test_a_claim_of_a_hostile_length_holds_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    async def hold(reservation: Reservation, size: int) -> None:
        held.append(size)

    monkeypatch.setattr(Reservation, "hold", hold)
    bench = Bench(claims=FakeClaims({}))
    send_claim(bench, length=1 << 40)
    await bench.work()
    assert bench.queue.dead[0][1] is not None
    assert held == []


async def test_a_worker_without_a_claims_container_says_which_setting_is_missing() -> None:
    bench = Bench()
    send_claim(bench)
    await bench.work()
    assert bench.queue.dead[0][1] is not None
    assert "AOAI_WORKER_CLAIMS_CONTAINER" in bench.queue.dead[0][1].description


@pytest.mark.parametrize("content_type", ["image/png", "application/xml", "text/html; charset=utf-8"])
async def test_a_content_type_that_is_no_jobs_is_dead_lettered_and_named(content_type: str) -> None:
    bench = Bench()
    bench.queue.send(job_line("a"), message_id="batch/a", content_type=content_type)
    await bench.work()
    settlement = bench.queue.dead[0][1]
    assert settlement is not None
    assert settlement.reason is DeadLetterReason.UNSUPPORTED_CONTENT_TYPE
    assert content_type in settlement.description


@pytest.mark.parametrize("content_type", [None, "", "application/json; charset=utf-8", "TEXT/PLAIN"])
async def test_a_content_type_that_says_nothing_against_json_passes(content_type: str | None) -> None:
    bench = Bench()
    bench.queue.send(job_line("a"), message_id="batch/a", content_type=content_type)
    await bench.work()
    assert set(bench.sink.lines) == {"batch/a"}


async def test_a_job_larger_than_a_whole_minutes_quota_is_refused_and_closes_no_gate() -> None:
    async def refuses_the_large(job: Job, target: Target) -> Response:
        if job.line.custom_id == "large":
            raise Throttled("too many tokens", status=429, body=b'{"error":{"code":"429"}}', retry_after=86_400)
        return await answers(job, target)

    small = Target(deployment="mini", endpoint="https://a", tokens_per_minute=1_000)
    bench = Bench(refuses_the_large, routes={"gpt-5.4-mini": [small]})
    bench.queue.send(job_line("large", content="word " * 2_000), message_id="batch/large")
    bench.queue.send(job_line("small"), message_id="batch/small")
    await bench.work()
    large: Any = bench.sink.results["batch/large"]["response"]
    assert large["status_code"] == 429
    assert bench.events.of(GateClosed) == []
    assert "batch/small" in bench.sink.lines


async def test_a_job_whose_deadline_passes_while_it_waits_for_memory_is_not_called() -> None:
    async def slow(job: Job, target: Target) -> Response:
        await asyncio.sleep(120)
        return answer()

    bench = Bench(slow, slots=2, max_age=200, bytes_limit=10_000, parking=10_000)
    bench.queue.send(job_line("a"), message_id="batch/a")
    asyncio.get_running_loop().call_later(
        1,
        lambda: bench.queue.send(
            job_line("b"), message_id="batch/b", properties={"deadline": rfc3339(EPOCH + 100)}
        ),
    )
    bench.admission.state.memory.limit = 2_000
    await bench.work()
    error: Any = bench.sink.results["batch/b"]["error"]
    assert error["code"] == "expired"
    assert bench.model.calls == [("a", "mini")]


async def test_a_job_whose_route_makes_way_while_it_backs_off_still_ends_by_its_deadline() -> None:
    async def fails_then_throttles(job: Job, target: Target) -> Response:
        if target.deployment != "first":
            return await answers(job, target)
        if loop_time() < 0.5:
            raise Unavailable("gone")
        raise Throttled("429", status=429, retry_after=600)

    bench = Bench(fails_then_throttles, slots=200, passthrough=True, max_age=100)
    bench.queue.send(job_line("a", model="first"), message_id="batch/a")
    for number in range(64):
        bench.queue.send(job_line(f"q-{number}", model=f"other-{number}"), message_id=f"batch/q-{number}")
    await bench.work()
    error: Any = bench.sink.results["batch/a"]["error"]
    assert error["code"] == "expired"
    assert loop_time() < 110
