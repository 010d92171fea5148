"""Gates under virtual time: who is let in, when and in which order, and that nobody waits for ever."""

import asyncio
import itertools
import math
import random
from collections.abc import Awaitable, Callable

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.admissions import AtRoute, RunningAdmission
from worker.admission.admission import Permit
from worker.admission.budgets import FILL
from worker.admission.concurrency import REOPENING
from worker.admission.costs import Cost
from worker.admission.gate import Gate
from worker.admission.routes import Demand
from worker.app import noting_tokens
from worker.errors import (
    CallFailed,
    Cause,
    HandedBack,
    NoToken,
    RefusedByService,
    SetupWrong,
    Throttled,
    TokenUnavailable,
    Unavailable,
)
from worker.interfaces import GateClosed, IntakeClosed, IntakeOpened, Target, TokenRefreshed
from worker.jobs.outcomes import Response
from worker.rate_limits import RateLimits, ThrottleKind
from worker.testing import EventList
from worker.waits import loop_time

pytestmark = pytest.mark.looptime

COST = Cost(100, 100)


def target(deployment: str, *, tokens: int | None = None, requests: int | None = None) -> Target:
    return Target(
        deployment=deployment,
        endpoint="https://account.openai.azure.com",
        tokens_per_minute=tokens,
        requests_per_minute=requests,
    )


def build(
    *targets: Target, slots: int = 64, fleet_size: int = 1, events: EventList | None = None
) -> RunningAdmission:
    return RunningAdmission({"mini": targets}, observer=events, slots=slots, fleet_size=fleet_size)


def throttled(seconds: float | None, kind: ThrottleKind = ThrottleKind.QUOTA) -> Throttled:
    error = Throttled("429", status=429, retry_after=seconds)
    error.kind = kind
    return error


def answer(rate_limits: RateLimits | None = None) -> Response:
    return Response(status=200, request_id=None, body=b"", rate_limits=rate_limits)


async def call(
    route: AtRoute, error: CallFailed | None = None, seconds: float = 0.0, until: float = math.inf
) -> str:
    """One job's call; the deployment that took it."""
    with await route.admit(COST, until=until) as permit:
        await asyncio.sleep(seconds)
        if error is None:
            permit.observe(answer())
        else:
            permit.observe(error)
        return permit.target.deployment


async def test_a_gate_opens_when_the_service_said_it_would() -> None:
    route = build(target("mini")).at()
    await call(route, throttled(2.5))
    assert route.is_closed
    await call(route)
    assert loop_time() == 2.5
    assert not route.is_closed


async def test_a_stray_refusal_that_names_no_time_closes_nothing_and_shrinks_nothing() -> None:
    admission = build(target("mini", tokens=60_000), slots=64)
    route = admission.at()
    error = throttled(None)
    await call(route, error)
    assert error.is_stray
    assert not route.is_closed
    (gate,) = admission.gates
    assert (gate.limit, gate.tokens.bias) == (64, 1.0)


async def refuse_until_closed(route: AtRoute) -> None:
    while not route.is_closed:
        await call(route, throttled(None, kind=ThrottleKind.CAPACITY))


async def test_refusals_that_name_no_time_pause_for_a_second_and_longer_while_they_go_on() -> None:
    route = build(target("mini")).at()
    await refuse_until_closed(route)
    pauses = [route.blocked_until - loop_time()]
    for _ in range(5):
        await call(route, throttled(None))  # the first call after each pause
        pauses.append(route.blocked_until - loop_time())
    assert pauses == [1, 2, 4, 8, 10, 10]


async def test_an_answer_after_the_pause_makes_the_next_one_short_again() -> None:
    route = build(target("mini")).at()
    await refuse_until_closed(route)
    await call(route, throttled(None))
    await call(route)
    await refuse_until_closed(route)
    assert route.blocked_until - loop_time() == 1


async def test_no_header_closes_a_gate_for_longer_than_ten_minutes() -> None:
    route = build(target("mini")).at()
    await call(route, throttled(1e9))
    assert route.blocked_until == 600


async def throttle_together(route: AtRoute, *errors: Throttled) -> None:
    permits = [await route.admit(COST, until=math.inf) for _ in errors]
    for permit, error in zip(permits, errors, strict=True):
        with permit:
            permit.observe(error)


async def test_a_later_throttle_prolongs_the_pause_and_an_earlier_end_does_not_shorten_it() -> None:
    events = EventList()
    route = build(target("mini"), events=events).at()
    await throttle_together(route, throttled(5), throttled(1), throttled(8))
    assert route.blocked_until == 8
    assert [event.seconds for event in events.of(GateClosed)] == [5, 3], "an overlap counts once"


async def test_the_event_says_which_kind_of_429_it_was() -> None:
    events = EventList()
    route = build(target("mini"), events=events).at()
    await call(route, throttled(1, ThrottleKind.CAPACITY))
    assert [event.reason for event in events.of(GateClosed)] == ["capacity"]


async def test_those_who_wait_at_a_gate_wait_on_when_it_is_paused_again() -> None:
    route = build(target("mini")).at()
    late = await route.admit(COST, until=math.inf)
    await call(route, throttled(5))

    async def throttle_late() -> None:
        with late:
            await asyncio.sleep(4)
            late.observe(throttled(6))

    await asyncio.gather(throttle_late(), call(route))
    assert loop_time() == 10


async def test_a_throttle_closes_the_gate_of_its_deployment_only() -> None:
    route = build(target("provisioned"), target("elsewhere")).at()
    assert await call(route, throttled(30, ThrottleKind.PROVISIONED)) == "provisioned"
    assert await call(route) == "elsewhere"
    await asyncio.sleep(30)
    assert await call(route) == "provisioned"


async def test_what_a_full_budget_holds_up_goes_to_the_next_deployment() -> None:
    route = build(target("first", tokens=1_200), target("second")).at()
    assert [await call(route) for _ in range(3)] == ["first", "second", "second"]
    await asyncio.sleep(10)  # which pays for 200 tokens
    assert await call(route) == "first"


async def test_whoever_would_wait_too_long_does_not_wait_at_all() -> None:
    route = build(target("mini")).at()
    await call(route, throttled(50))
    with pytest.raises(HandedBack):
        await call(route, until=49)
    assert loop_time() == 0


async def test_a_pause_hands_back_at_once_those_who_would_not_outwait_it() -> None:
    route = build(target("mini"), slots=1).at()
    first = await route.admit(COST, until=math.inf)
    impatient = asyncio.ensure_future(call(route, until=20))
    patient = asyncio.ensure_future(call(route, until=100))
    await asyncio.sleep(1)
    with first:
        first.observe(throttled(50))
    with pytest.raises(HandedBack):
        await impatient
    assert loop_time() == 1
    await patient
    assert loop_time() == 51


async def test_patience_ends_at_a_gate_that_is_merely_busy() -> None:
    route = build(target("mini"), slots=1).at()
    with await route.admit(COST, until=math.inf):
        with pytest.raises(HandedBack):
            await call(route, until=7)
        assert loop_time() == 7
    assert await call(route) == "mini"


async def test_first_come_first_served() -> None:
    route = build(target("mini", tokens=6_000)).at()
    order: list[int] = []

    async def job(number: int) -> None:
        with await route.admit(COST, until=math.inf):
            order.append(number)

    await asyncio.gather(*[job(number) for number in range(50)])
    assert order == list(range(50))


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    route = build(target("mini"), slots=1).at()
    permit = await route.admit(COST, until=math.inf)
    waits = asyncio.ensure_future(call(route, seconds=5))
    await asyncio.sleep(1)
    permit.__exit__(None, None, None)
    await call(route)
    assert waits.done()
    assert loop_time() == 6


async def test_a_newcomer_goes_behind_those_in_line_even_where_there_is_a_place() -> None:
    route = build(target("mini"), slots=1).at()
    (gate,) = route.gates
    with await route.admit(COST, until=math.inf):
        waits = asyncio.ensure_future(call(route))
        await asyncio.sleep(1)
        gate.concurrency.limit = 2  # a place that the line has not been told of yet, as when a timer is late
        newcomer = asyncio.ensure_future(call(route))
        await asyncio.sleep(1)
        assert not newcomer.done()
    await asyncio.gather(waits, newcomer)


async def test_models_on_one_deployment_share_its_gate_and_take_turns() -> None:
    shared = target("x")
    admission = RunningAdmission({"a": [shared], "b": [shared]}, slots=1)
    assert len(list(admission.gates)) == 1
    order: list[str] = []

    async def job(model: str) -> None:
        with await admission.at(model).admit(COST, until=math.inf):
            order.append(model)
            await asyncio.sleep(1)

    await asyncio.gather(*[job(model) for model in "aabbab"])
    assert order == list("aabbab")


async def test_jobs_are_spread_over_the_minute() -> None:
    route = build(target("mini", tokens=12_000)).at()
    times: list[float] = []
    for _ in range(30):
        await call(route)
        times.append(loop_time())
    steps = [later - earlier for earlier, later in itertools.pairwise(times[5:])]
    assert steps == pytest.approx([60 * 200 / 12_000 / FILL] * len(steps), rel=0.01)


async def test_what_the_headers_name_paces_a_deployment_without_a_configured_budget() -> None:
    route = build(target("mini")).at()
    with await route.admit(COST, until=math.inf) as permit:
        permit.observe(answer(RateLimits(limit_tokens=600, remaining_tokens=400)))
    await call(route)
    await call(route)
    assert loop_time() > 10


async def test_a_gate_that_opens_again_is_not_met_by_all_at_once() -> None:
    route = build(target("mini"), slots=50).at()
    await call(route, throttled(5, ThrottleKind.CAPACITY))
    (gate,) = route.gates
    jobs = [asyncio.ensure_future(call(route, seconds=1_000)) for _ in range(gate.limit)]
    await asyncio.sleep(5 + REOPENING / 2)
    assert gate.in_flight == pytest.approx(gate.limit / 2, abs=2)
    await asyncio.sleep(REOPENING / 2)
    assert gate.in_flight == gate.limit
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert gate.in_flight == 0


@pytest.mark.parametrize("kind", [ThrottleKind.CAPACITY, ThrottleKind.CUT, ThrottleKind.PROVISIONED])
async def test_a_service_without_capacity_gets_fewer_calls_at_once(kind: ThrottleKind) -> None:
    route = build(target("mini", tokens=1_000_000)).at()
    (gate,) = route.gates
    rate = gate.tokens.rate
    await call(route, throttled(1, kind))
    assert gate.limit == 44
    assert gate.tokens.rate == rate


async def test_our_own_quota_corrects_the_budget_and_leaves_the_calls_at_once_alone() -> None:
    route = build(target("mini", tokens=1_000_000)).at()
    (gate,) = route.gates
    rate = gate.tokens.rate
    await throttle_together(route, *[throttled(6)] * 5)
    assert gate.limit == 64
    assert gate.tokens.rate == pytest.approx(0.9 * rate), "once for all calls that were under way"


async def test_the_budget_that_is_scarcer_is_the_one_that_a_429_corrects() -> None:
    route = build(target("mini", tokens=1_000_000, requests=60)).at()
    (gate,) = route.gates
    tokens, requests = gate.tokens.rate, gate.requests.rate
    await call(route, throttled(1))
    assert gate.tokens.rate == tokens
    assert gate.requests.rate < requests


async def test_what_is_wrong_with_a_job_says_nothing_about_the_load() -> None:
    route = build(target("mini")).at()
    (gate,) = route.gates
    for _ in range(50):
        await call(route, RefusedByService("400", status=400))
    assert gate.limit == 64


async def test_time_outs_bring_the_calls_at_once_down() -> None:
    route = build(target("mini")).at()
    (gate,) = route.gates
    for _ in range(20):
        await call(route, Unavailable("time-out"), seconds=1)
    assert gate.limit < 10


async def test_cancelled_calls_give_their_places_back() -> None:
    route = build(target("mini"), slots=2).at()
    jobs = [asyncio.ensure_future(call(route, seconds=100)) for _ in range(4)]
    await asyncio.sleep(1)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert (route.gates[0].in_flight, route.waiting) == (0, 0)


async def test_a_job_that_is_cancelled_just_as_it_is_let_in_gives_its_place_to_the_next() -> None:
    route = build(target("mini"), slots=1).at()
    permit = await route.admit(COST, until=math.inf)
    unlucky = asyncio.ensure_future(call(route))
    following = asyncio.ensure_future(call(route))
    await asyncio.sleep(1)
    permit.__exit__(None, None, None)
    unlucky.cancel()
    assert await following == "mini"
    assert unlucky.cancelled()
    assert route.gates[0].in_flight == 0


def passthrough() -> RunningAdmission:
    return RunningAdmission(None, slots=4)


async def test_passthrough_makes_a_gate_for_each_model_and_keeps_it() -> None:
    admission = passthrough()
    routes = [admission.at(f"model-{number}") for number in range(64)]
    assert [admission.at(f"model-{number}") for number in range(64)] == routes
    assert await call(routes[1]) == "model-1"


async def test_names_that_were_misspelt_take_no_place_for_good() -> None:
    admission = passthrough()
    first = admission.at("gpt-5.4")
    for number in range(200):
        await call(admission.at(f"misspelt-{number}"), RefusedByService("404", status=404))
        assert admission.at("gpt-5.4") == first, "what is asked for again and again stays"
    assert len(admission.state.routes.models) == 64


async def test_a_model_with_calls_jobs_or_a_pause_makes_way_for_none() -> None:
    admission = passthrough()
    jobs = [asyncio.ensure_future(call(admission.at(f"busy-{number}"), seconds=9)) for number in range(63)]
    await call(admission.at("paused"), throttled(5))
    assert admission.route("one-more") is None
    await asyncio.sleep(5)
    assert admission.route("one-more") is not None
    assert "paused" not in admission.state.routes.models
    await asyncio.gather(*jobs)


async def test_a_model_that_is_not_listed_has_no_route() -> None:
    assert build(target("mini")).route("maxi") is None


async def test_a_model_is_wanted_when_the_first_of_its_pauses_ends() -> None:
    admission = RunningAdmission({"a": [target("x")], "b": [target("y")]}, slots=4)
    await call(admission.at("a"), throttled(9))
    assert admission.demand().at == -math.inf
    await call(admission.at("b"), throttled(5))
    assert admission.demand().at == 5
    assert admission.demand(["a"]).at == 9
    assert admission.demand(["never seen"]).at == -math.inf


async def test_no_more_jobs_are_wanted_than_a_paced_gate_takes_in_two_seconds() -> None:
    admission = build(target("mini", tokens=12_000))
    jobs = [asyncio.ensure_future(call(admission.at())) for _ in range(2)]
    await asyncio.sleep(0)
    assert admission.demand().at == -math.inf
    jobs += [asyncio.ensure_future(call(admission.at())) for _ in range(20)]
    await asyncio.sleep(0)
    opens_at = admission.demand().at
    assert 15 < opens_at < 25
    await asyncio.sleep(opens_at)
    assert admission.at().waiting <= 3
    assert admission.demand().at == -math.inf
    await asyncio.gather(*jobs)


async def test_a_receiver_gets_room_when_the_end_of_a_call_makes_more_wanted() -> None:
    admission = RunningAdmission({"mini": [target("mini")]}, slots=4)
    admission.gates[0].concurrency.limit = 1.0
    jobs = [asyncio.ensure_future(call(admission.at(), seconds=3)) for _ in range(2)]
    await asyncio.sleep(0)
    assert admission.demand().at == math.inf
    assert await admission.room(admission.intake("jobs")) == 2, "one to call, one to wait"
    assert loop_time() == 3
    await asyncio.gather(*jobs)


FORBIDDEN = SetupWrong("403: no role", status=403)


async def fail_setup(route: AtRoute) -> None:
    await call(route, FORBIDDEN)


async def test_a_deployment_where_our_set_up_is_wrong_is_passed_over_for_the_next() -> None:
    events = EventList()
    admission = build(target("first"), target("second"), events=events)
    route = admission.at()
    await fail_setup(route)
    assert [await call(route) for _ in range(3)] == ["second"] * 3
    assert admission.demand() == Demand(), "others are wanted without end"
    await asyncio.sleep(5)
    assert await call(route) == "first", "one job probes it"
    assert [(event.deployment, event.reason, event.seconds) for event in events.of(GateClosed)] == [
        ("first", "setup", 5)
    ]
    assert [await call(route) for _ in range(2)] == ["first"] * 2


async def test_a_wrong_set_up_concerns_one_deployment_and_its_models() -> None:
    events = EventList()
    admission = RunningAdmission({"a": [target("x")], "b": [target("y")]}, slots=4, observer=events)
    await fail_setup(admission.at("a"))
    later = asyncio.ensure_future(admission.room(admission.intake("queue of a", frozenset({"a"}))))
    other = admission.intake("queue of b", frozenset({"b"}))
    assert await admission.room(other) == 4
    assert loop_time() == 0
    admission.received(other, 0)
    assert admission.demand(["a"]) == Demand(at=5, is_probe=True)
    assert admission.demand(["b"]) == Demand()
    assert await call(admission.at("b")) == "y"
    assert await later == 1, "to probe"
    assert loop_time() == 5
    await call(admission.at("a"))
    told = [event for event in events.all if isinstance(event, (IntakeClosed, IntakeOpened))]
    assert told == [IntakeClosed(reason="setup", detail="a: 403: no role"), IntakeOpened(reason="setup")]


async def test_jobs_wait_for_a_wrong_set_up_and_take_turns_at_probing_it() -> None:
    admission = build(target("mini"))
    route = admission.at()
    await fail_setup(route)
    jobs = [asyncio.ensure_future(call(route, FORBIDDEN, seconds=1)) for _ in range(2)]
    jobs.append(asyncio.ensure_future(call(route)))
    await asyncio.sleep(5.5)
    (gate,) = admission.gates
    assert gate.in_flight == 1, "the others hold no permit while one probes"
    assert admission.demand().at == math.inf, "nor is another received to probe"
    assert gate.describe(loop_time())["waits_for"] == "set-up: 403: no role"
    assert gate.gauges(loop_time())["gate_open"] == 0
    await asyncio.gather(*jobs)
    assert loop_time() == 5 + 1 + 10 + 1 + 20
    assert gate.gauges(loop_time())["gate_open"] == 1


async def test_jobs_wait_a_minute_for_a_set_up_and_none_afterwards() -> None:
    admission = build(target("mini"))
    route = admission.at()
    await fail_setup(route)

    async def wait() -> str:
        try:
            return await call(route, FORBIDDEN, until=10_000)
        except HandedBack as error:
            return f"{error.reason} at {loop_time():g}"

    jobs = [asyncio.ensure_future(wait()) for _ in range(5)]
    # probes at 5, 15, 35 and 55 s; the next would come at 75
    assert await asyncio.gather(*jobs) == ["mini", "mini", "mini", "mini", "setup at 55"]
    await asyncio.sleep(65)
    assert admission.demand() == Demand(at=75, is_probe=True)
    assert await wait() == "mini"
    assert await wait() == "setup at 120"


LACKS_ROLE = SetupWrong("401: lacks the data action", status=401, cause=Cause.ROLE_MISSING)
SPREADING = SetupWrong("401: no access to the operation", status=401, cause=Cause.ROLE_SPREADING)


async def test_no_job_is_handed_back_for_ten_minutes_while_a_role_spreads() -> None:
    events = EventList()
    admission = build(target("mini"), events=events)
    route = admission.at()
    wordings = itertools.cycle((LACKS_ROLE, SPREADING))
    await call(route, next(wordings))

    async def probe_until(spread_at: float) -> str:
        while loop_time() < spread_at:
            await call(route, next(wordings), until=10_000)
        return await call(route, until=10_000)

    assert await probe_until(560) == "mini"
    assert loop_time() == 595, "each failed call but the last was a probe, and the next would be later than 10 min"
    assert admission.closures == {}
    assert events.of(IntakeOpened) == [IntakeOpened(reason="setup")]


async def test_a_role_that_has_not_spread_within_ten_minutes_is_missing() -> None:
    admission = build(target("mini"))
    route = admission.at()
    await call(route, SPREADING)
    await asyncio.sleep(5)
    await call(route, LACKS_ROLE)
    (detail,) = admission.closures.values()
    assert detail.startswith("mini: 401: lacks the data action (a role that was just assigned may be spreading")
    assert admission.gates[0].describe(loop_time())["waits_for"] == f"set-up: {detail.removeprefix('mini: ')}"

    async def probe() -> None:
        while True:
            await call(route, LACKS_ROLE, until=10_000)

    with pytest.raises(HandedBack) as handed_back:
        await probe()
    assert handed_back.value.reason == "setup"
    assert 570 < loop_time() <= 600


async def test_a_set_up_that_was_mended_shortens_no_later_wait() -> None:
    admission = build(target("mini"))
    route = admission.at()
    await fail_setup(route)
    await asyncio.sleep(5)
    await call(route, throttled(300))
    assert await call(route, until=1_000) == "mini"
    assert loop_time() == 305


async def test_one_job_is_wanted_for_a_deployment_that_is_wrong_and_no_more_than_the_next_takes() -> None:
    admission = build(target("first"), target("second", tokens=600))
    route = admission.at()
    await fail_setup(route)
    assert await call(route) == "second"
    assert admission.demand() == Demand(at=5, is_probe=True), "the budget of the second is used up until 20.4 s"
    await asyncio.sleep(5)
    await fail_setup(route)
    assert admission.demand() == Demand(at=15, is_probe=True)
    await asyncio.sleep(10)
    probe = asyncio.ensure_future(call(route, FORBIDDEN, seconds=1))
    await asyncio.sleep(0)
    demand = admission.demand()
    assert not demand.is_probe
    assert demand.at == pytest.approx(18, abs=1), "a receive takes its time, so two seconds before there is room"
    await probe


@pytest.mark.parametrize("error", [throttled(1), RefusedByService("400", status=400), None])
async def test_a_word_from_the_service_about_the_job_shows_that_the_set_up_works(error: CallFailed | None) -> None:
    admission = build(target("mini"))
    await fail_setup(admission.at())
    await asyncio.sleep(5)
    await call(admission.at(), error)
    assert not admission.demand().is_probe


async def test_a_failure_on_the_way_says_nothing_about_the_set_up_and_the_next_probes_at_once() -> None:
    admission = build(target("mini"))
    await fail_setup(admission.at())
    await asyncio.sleep(5)
    await call(admission.at(), Unavailable("gone"))
    assert admission.demand() == Demand(at=5, is_probe=True)
    assert await call(admission.at()) == "mini"
    assert admission.demand() == Demand()


async def test_a_cancelled_probe_passes_its_turn_on() -> None:
    route = build(target("mini")).at()
    await fail_setup(route)
    first, second = (asyncio.ensure_future(call(route, seconds=10)) for _ in range(2))
    await asyncio.sleep(6)
    first.cancel()
    await second
    assert loop_time() == 16


async def test_a_job_whose_deadline_comes_before_the_probe_is_not_kept_for_it() -> None:
    route = build(target("mini")).at()
    await fail_setup(route)
    with pytest.raises(HandedBack, match="parked"):
        await call(route, until=3)
    assert loop_time() == 0


async def fail(route: AtRoute, times: int) -> None:
    for _ in range(times):
        await call(route, Unavailable("connection refused"))


async def test_a_deployment_where_hardly_a_call_gets_through_is_left_alone_for_the_next() -> None:
    events = EventList()
    admission = build(target("first"), target("second"), events=events)
    route = admission.at()
    await fail(route, 23)
    assert events.of(GateClosed) == []
    await fail(route, 1)
    assert await call(route) == "second"
    assert admission.demand() == Demand(), "others are wanted without end"
    first, _ = admission.gates
    assert first.describe(loop_time())["waits_for"] == "outage: connection refused"
    await asyncio.sleep(5)
    await fail(route, 1)  # the probe
    assert await call(route) == "second"
    await asyncio.sleep(10)
    assert await call(route) == "first"
    await fail(route, 1)
    assert await call(route) == "first", "one failure after an outage is no other"
    closed = [(event.deployment, event.reason, event.seconds) for event in events.of(GateClosed)]
    assert closed == [("first", "outage", 5), ("first", "outage", 10)]


async def test_a_token_that_arrives_opens_at_once_the_gates_that_wait_for_it() -> None:
    admission = RunningAdmission({"mini": [target("mini")], "large": [target("large")]}, slots=4)
    await call(admission.at("mini"), NoToken(TokenUnavailable("openai", "Entra is down", code="timeout")))
    await call(admission.at("large"), FORBIDDEN)
    waiting = [asyncio.ensure_future(call(admission.at("mini"))) for _ in range(3)]
    await asyncio.sleep(1.5)
    admission.note_token("servicebus")
    assert admission.at("mini").is_closed, "another token is missing"
    admission.note_token("openai")
    assert await asyncio.gather(*waiting) == ["mini"] * 3
    assert loop_time() == 1.5
    assert admission.at("large").is_closed, "a token does not assign a role"


async def test_the_event_of_a_refreshed_token_opens_the_gate_that_waits_for_it() -> None:
    admission, events = build(target("mini")), EventList()
    tell = noting_tokens(admission, events)
    await call(admission.at(), NoToken(TokenUnavailable("openai", "Entra is down", code="timeout")))
    refreshed = TokenRefreshed(scope="openai", seconds=0.1, expires_on=3_600.0, refresh_on=1_800.0)
    tell(refreshed)
    assert not admission.at().is_closed
    assert events.all == [refreshed]


async def test_an_outage_is_looked_at_every_20_seconds_at_least_and_is_no_trouble_of_ours() -> None:
    events = EventList()
    admission = build(target("mini"), events=events)
    await fail(admission.at(), 24)
    with pytest.raises(HandedBack, match="parked"):
        await call(admission.at(), until=4)
    assert loop_time() == 0, "it is known that it would wait in vain"
    for _ in range(6):
        demand = admission.demand()
        assert demand.is_probe
        await asyncio.sleep(demand.at - loop_time())
        await fail(admission.at(), 1)
    assert [event.seconds for event in events.of(GateClosed)] == [5, 10, 20, 20, 20, 20, 20]
    assert events.of(IntakeClosed) == []


@pytest.mark.parametrize("error", [throttled(1), RefusedByService("400", status=400), None])
async def test_a_word_from_the_service_about_the_job_ends_an_outage(error: CallFailed | None) -> None:
    admission = build(target("mini"))
    await fail(admission.at(), 24)
    await asyncio.sleep(5)
    await call(admission.at(), error)
    assert not admission.demand().is_probe


async def test_a_deployment_where_three_calls_in_ten_fail_is_in_service() -> None:
    events = EventList()
    route = build(target("mini"), events=events).at()
    chance = random.Random(7)
    for _ in range(5_000):
        await call(route, Unavailable("500") if chance.random() < 0.3 else None)
    assert events.of(GateClosed) == []


async def test_a_suspect_ends_the_waiting_of_those_in_line_and_of_those_to_come() -> None:
    admission = build(target("mini"), slots=1)
    route = admission.at()
    busy = asyncio.ensure_future(call(route, seconds=50))
    waits = asyncio.ensure_future(call(route))
    await asyncio.sleep(1)
    async with admission.place(3):
        with pytest.raises(HandedBack, match="suspect"):
            await waits
        assert loop_time() == 1 + 30
        with pytest.raises(HandedBack, match="suspect"):
            await call(route)
        await busy
        assert await call(route) == "mini", "who can go at once goes"
    busy = asyncio.ensure_future(call(route, seconds=9))
    await asyncio.sleep(0)
    assert await call(route) == "mini"
    await busy


async def test_a_gate_says_what_it_waits_for_and_until_when() -> None:
    admission = build(target("mini", tokens=600))
    (gate,) = admission.gates
    assert gate.describe(loop_time())["state"] == "open"
    await call(admission.at())
    paced = gate.describe(loop_time())
    assert (paced["waits_for"], paced["opens_in_seconds"]) == ("tokens per minute", pytest.approx(19.4, abs=0.1))
    await call(admission.at(), throttled(30, ThrottleKind.CUT))
    closed = gate.describe(loop_time())
    assert (closed["state"], closed["waits_for"]) == ("closed", "429: cut")
    assert closed["opens_in_seconds"] == 30
    assert list(admission.waits().values()) == ["429: cut, for another 30 s"]
    assert gate.gauges(loop_time())["gate_open"] == 0


class Deployment:
    """Takes `limit` tokens in each minute of the clock, by an estimate that is `bias` off, and tells nothing."""

    def __init__(self, limit: int, bias: float) -> None:
        self.limit, self.bias = limit, bias
        self.minute, self.used = -1, 0.0
        self.arrivals: list[float] = []
        self.refusals: list[tuple[float, float]] = []

    async def answer(self, permit: Permit) -> None:
        now = loop_time()
        self.arrivals.append(now)
        if int(now // 60) != self.minute:
            self.minute, self.used = int(now // 60), 0.0
        if self.used + COST.tokens * self.bias > self.limit:
            self.refusals.append((now, 60 - now % 60))
            permit.observe(throttled(60 - now % 60))
            return
        self.used += COST.tokens * self.bias
        await asyncio.sleep(1.0)
        permit.observe(answer())


async def saturate(
    route: AtRoute, serve: Callable[[Permit], Awaitable[None]], *, slots: int, seconds: float
) -> None:
    async def work() -> None:
        while True:
            with await route.admit(COST, until=math.inf) as permit:
                await serve(permit)

    workers = [asyncio.ensure_future(work()) for _ in range(slots)]
    await asyncio.sleep(seconds)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


@pytest.mark.parametrize("bias", [0.8, 1.0, 1.2, 2.0])
async def test_the_time_without_a_call_after_a_429_is_what_the_service_asked_for(bias: float) -> None:
    deployment = Deployment(40_000, bias)
    route = build(target("mini", tokens=40_000)).at()
    await saturate(route, deployment.answer, slots=16, seconds=1_200)
    assert deployment.refusals
    for refused_at, retry_after in deployment.refusals:
        following = next((at for at in deployment.arrivals if at > refused_at), None)
        if following is not None:
            assert retry_after <= following - refused_at <= 1.1 * retry_after + 1e-6
    assert len(deployment.refusals) < 0.01 * len(deployment.arrivals)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 8), tokens=st.none() | st.integers(1_000, 100_000))
def test_every_permit_comes_back_and_every_waiter_ends(seed: int, slots: int, tokens: int | None) -> None:
    """Jobs that are cancelled, throttled, failed and impatient at random, on two models that share deployments."""
    chance = random.Random(seed)

    async def job(route: AtRoute) -> None:
        await asyncio.sleep(chance.uniform(0, 20))
        with await route.admit(COST, until=loop_time() + chance.choice((1, 30, 10_000))) as permit:
            await asyncio.sleep(chance.uniform(0, 5))
            ending = chance.random()
            if ending < 0.5:
                permit.observe(answer())
            elif ending < 0.7:
                permit.observe(throttled(chance.uniform(0, 10), chance.choice(list(ThrottleKind))))
            elif ending < 0.8:
                permit.observe(Unavailable("gone"))
            elif ending < 0.9:
                permit.observe(SetupWrong("403"))

    async def main() -> list[Gate]:
        one, two = target("one", tokens=tokens), target("two")
        admission = RunningAdmission({"a": [one, two], "b": [two]}, slots=slots)
        jobs = [asyncio.ensure_future(job(admission.at(chance.choice("ab")))) for _ in range(40)]
        for cancelled in chance.sample(jobs, 10):
            asyncio.get_running_loop().call_later(chance.uniform(0, 40), cancelled.cancel)
        async with asyncio.timeout(20_000):  # virtual
            await asyncio.gather(*jobs, return_exceptions=True)
        assert all(admission.at(model).waiting == 0 for model in "ab")
        return list(admission.gates)

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        for gate in runner.run(main()):
            assert gate.in_flight == 0


async def test_a_job_that_comes_back_after_its_route_made_way_for_others_waits_where_it_is_seen() -> None:
    """Under `passthrough` a job holds no route while it backs off."""
    admission = passthrough()
    await call(admission.at("model"))
    for number in range(64):
        admission.at(f"other-{number}")
    with await admission.admit("model", COST) as permit:
        permit.observe(throttled(600))
    with pytest.raises(HandedBack):
        await admission.admit("model", COST, until=loop_time() + 5)
    for number in range(4):
        await admission.admit(f"other-{number}", COST)
    with pytest.raises(HandedBack):
        await admission.admit("other-4", COST, until=loop_time() + 5)
    assert loop_time() == 5, "all four slots are calling"


async def test_what_is_wrong_with_a_model_that_made_way_is_not_said_any_longer() -> None:
    admission = passthrough()
    await fail_setup(admission.at("bad"))
    assert admission.closures == {"setup": "bad: 403: no role"}
    await asyncio.sleep(6)
    for number in range(64):
        admission.at(f"other-{number}")
    assert admission.closures == {}


async def test_a_gate_is_open_once_any_call_got_through_though_its_probe_is_still_under_way() -> None:
    admission = build(target("mini"), slots=64)
    route = admission.at()
    late = await route.admit(COST, until=math.inf)
    [gate] = admission.gates
    gate.outage.begin("down", was_probe=False, now=loop_time())
    await asyncio.sleep(5)
    probe = asyncio.ensure_future(call(route, seconds=600))
    await asyncio.sleep(1)
    assert gate.ready_at(loop_time()) == math.inf
    with late:
        late.observe(answer())
    assert await call(route) == "mini"
    assert loop_time() == 6
    probe.cancel()


async def test_no_more_is_received_than_a_paced_gate_takes_in_two_seconds() -> None:
    admission = build(target("mini", requests=120), slots=64)
    intake = admission.intake("jobs")
    assert admission.room_now(intake) == pytest.approx(2 * 120 * FILL / 60, abs=1)
    waiting = [asyncio.ensure_future(call(admission.at())) for _ in range(12)]
    await asyncio.sleep(0.001)
    assert admission.room_now(intake) == 0
    assert await admission.room(intake) == 1
    assert loop_time() == pytest.approx((11 - 4) / 2 / FILL, abs=0.6)
    await asyncio.gather(*waiting)


async def test_several_receivers_of_a_queue_share_what_is_wanted() -> None:
    admission = build(target("mini", requests=120), slots=64)
    first, second = admission.intake("jobs"), admission.intake("jobs")
    assert await admission.room(first) == 3
    assert admission.room_now(second) == 0


async def test_a_gate_without_a_pace_is_sent_its_calls_and_a_quarter_more() -> None:
    admission = build(target("mini"), target("more"), slots=64)
    admission.gates[0].concurrency.limit, admission.gates[1].concurrency.limit = 8.0, 4.0
    assert admission.room_now(admission.intake("jobs")) == 12 + 3
