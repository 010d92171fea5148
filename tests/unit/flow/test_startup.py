"""Start-up's checks: again until they pass, all together, and whom an outage may keep from starting."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from tests.support.bench import target
from worker.admission.admission import Admission
from worker.admission.closures import Closure
from worker.errors import Cause, SetupWrong, SourceUnavailable, Unavailable, WorkerError
from worker.flow.startup import Check, Queue, prove
from worker.interfaces import SetupCheckFailed, Target
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

FIRST, SECOND = target("first"), target("second")


class Proof:
    """Fails with each of the errors in turn, then passes."""

    def __init__(self, *errors: WorkerError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


def check(about: str | Target, proof: Proof) -> Check:
    """Of a deployment, or of the queue of that name."""
    if isinstance(about, Target):
        return Check(what=about.label, place=about, prove=proof)
    return Check(what=about, place=Queue(namespace="bus", name=about, with_sessions=False), prove=proof)


class Start:
    """A start-up of a pod whose intake is closed for it."""

    def __init__(self) -> None:
        self.events = EventList()
        self.admission = Admission({}, slots=4, observer=self.events)
        self.admission.close(Closure.START_UP, "not proved yet")

    async def run(self, *checks: Check, routes: Mapping[str, Sequence[Target]] | None = None) -> None:
        await prove(checks, self.admission, self.events, lambda: 1.0, routes=routes)


async def test_what_failed_is_looked_at_again_and_nothing_else() -> None:
    start = Start()
    good, bad = Proof(), Proof(SourceUnavailable("no role"), SourceUnavailable("no role"))
    await start.run(check("token", good), check("jobs", bad))
    assert (good.calls, bad.calls) == (1, 3)
    assert loop_time() == 2 + 4
    assert start.admission.closures == {}
    told = [(event.what, event.detail) for event in start.events.of(SetupCheckFailed)]
    assert told == [("jobs", "no role")] * 2


class NeverAnswers(Proof):
    """Service Bus behind a network that swallows packets."""

    async def __call__(self) -> None:
        await asyncio.Event().wait()


async def test_a_stop_does_not_wait_for_a_check_that_gets_no_answer() -> None:
    start = Start()
    asyncio.get_running_loop().call_later(7, start.admission.stop)
    await start.run(check("token", Proof()), check("jobs", NeverAnswers()))
    assert loop_time() == 7
    assert "start-up" in start.admission.closures


async def test_a_stop_ends_the_waiting_and_opens_nothing() -> None:
    start = Start()
    asyncio.get_running_loop().call_later(3, start.admission.stop)
    await start.run(check("jobs", Proof(*[SourceUnavailable("down")] * 99)))
    assert loop_time() == 3
    assert start.admission.closures == {"start-up": "jobs: down"}


async def test_why_azure_refuses_is_told_to_who_watches_and_to_who_asks_whether_it_is_ready() -> None:
    start = Start()
    asyncio.get_running_loop().call_later(1, start.admission.stop)
    refused = SourceUnavailable("no 'Listen' claim", subject="queue 'jobs'", cause=Cause.ROLE_MISSING)
    await start.run(check("queue jobs", Proof(refused)), check("queue results", Proof(SourceUnavailable("busy"))))
    causes = [(event.what, event.cause) for event in start.events.of(SetupCheckFailed)]
    assert causes == [("queue jobs", Cause.ROLE_MISSING), ("queue results", None)]
    told = "queue jobs: role_missing: queue 'jobs': no 'Listen' claim; queue results: busy"
    assert start.admission.closures == {"start-up": told}


async def test_a_deployment_that_is_out_of_reach_keeps_no_pod_from_starting_that_has_another() -> None:
    start = Start()
    down = Proof(*[Unavailable("region down")] * 99)
    routes = {"gpt-5.4": [FIRST, SECOND]}
    await start.run(check(FIRST, down), check(SECOND, Proof()), routes=routes)
    assert loop_time() == 0
    assert start.admission.closures == {}
    assert [event.what for event in start.events.of(SetupCheckFailed)] == ["first"], "but it is told"


async def test_a_model_that_has_no_other_deployment_is_waited_for() -> None:
    start = Start()
    down = Proof(*[Unavailable("region down")] * 2)
    routes = {"gpt-5.4": [FIRST, SECOND], "gpt-5.4-mini": [FIRST]}
    await start.run(check(FIRST, down), check(SECOND, Proof()), routes=routes)
    assert down.calls == 3


async def test_a_deployment_that_refuses_us_is_waited_for_though_there_is_another() -> None:
    start = Start()
    forbidden = Proof(*[SetupWrong("403")] * 2)
    routes = {"gpt-5.4": [FIRST, SECOND]}
    await start.run(check(FIRST, forbidden), check(SECOND, Proof()), routes=routes)
    assert forbidden.calls == 3


async def test_deployments_that_are_all_out_of_reach_are_waited_for() -> None:
    start = Start()
    first, second = Proof(*[Unavailable("down")] * 9), Proof(*[Unavailable("down")] * 2)
    routes = {"gpt-5.4": [FIRST, SECOND]}
    await start.run(check(FIRST, first), check(SECOND, second), routes=routes)
    assert (first.calls, second.calls) == (3, 3)
