"""What a job is charged, how fast a budget lets jobs in, and how many calls a deployment bears."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.admission.budgets import FILL, PaceController
from worker.admission.concurrency import REOPENING, Concurrency
from worker.admission.costs import ASSUMED_ANSWER, ASSUMED_REASONING, Cost, estimate
from worker.jobs.job import Job, JobLine, Operation


def job(body: dict[str, Any], operation: Operation = Operation.CHAT_COMPLETIONS, model: str = "mini") -> Job:
    line = JobLine(custom_id="q-1", operation=operation, model=model, body=body)
    return Job(id="b/q-1", batch_id="b", queue="jobs", line=line, enqueued_at=0.0, deadline=1.0)


def test_a_job_costs_its_prompt_and_the_longest_answer_that_it_allows() -> None:
    chat = {"messages": [{"role": "user", "content": "x" * 2_000}], "max_tokens": 200}
    assert estimate(job(chat)) == Cost(502, 200)
    assert estimate(job(chat)).tokens == 702


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_limit_of_an_answer_counts_under_each_of_its_names(name: str) -> None:
    assert estimate(job({name: 77})).answer == 77


@pytest.mark.parametrize("limit", [None, True, -1, 0, "many", 1.5, 10**30])
def test_a_limit_that_means_nothing_counts_as_none(limit: object) -> None:
    assert estimate(job({"max_tokens": limit})).answer == ASSUMED_ANSWER


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_each_choice_costs_an_answer(name: str) -> None:
    assert estimate(job({"max_tokens": 10, name: 3})).answer == 30


def test_without_a_limit_a_model_that_reasons_costs_more_the_harder_it_shall_reason() -> None:
    efforts = ["none", "minimal", "low", "medium", "high", "xhigh"]
    costs = [estimate(job({"reasoning_effort": effort, "n": 2}, model="gpt-5.4")) for effort in efforts]
    assert [cost.reasoning for cost in costs] == [2 * ASSUMED_REASONING[effort] for effort in efforts]
    assert [cost.tokens for cost in costs] == sorted({cost.tokens for cost in costs})
    of_response = estimate(job({"reasoning": {"effort": "high"}}, Operation.RESPONSES, "gpt-5.4"))
    assert of_response.reasoning == ASSUMED_REASONING["high"]


@pytest.mark.parametrize("effort", [None, 7, "beyond", []])
def test_an_effort_that_means_nothing_counts_as_the_usual_one(effort: object) -> None:
    assert estimate(job({"reasoning_effort": effort}, model="gpt-5.4")).reasoning == ASSUMED_REASONING["medium"]


def test_a_limit_includes_what_is_reasoned() -> None:
    asked = {"reasoning_effort": "high", "max_completion_tokens": 300}
    assert estimate(job(asked, model="gpt-5.4")) == Cost(1 + len("high") // 4, 300)


def test_embeddings_have_no_answer_and_may_be_tokens_already() -> None:
    assert estimate(job({"input": [[1, 2, 3], [4, 5]]}, Operation.EMBEDDINGS)) == Cost(6)


def test_an_image_in_the_prompt_costs_no_more_for_being_long() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    assert estimate(job({"messages": [{"content": [image]}]})).prompt < 2_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
)


@settings(deadline=None)
@given(body=st.dictionaries(st.sampled_from(["messages", "input", "max_tokens", "n", "best_of", "x"]), JSON))
def test_whatever_a_body_holds_its_cost_is_known(body: dict[str, Any]) -> None:
    assert estimate(job(body)).tokens >= 1


def drive(pace: PaceController, amounts: list[float], begin: float = 0.0) -> list[tuple[float, float]]:
    """Admit as soon as it lets; when, and how much."""
    admitted, now = [], begin
    for amount in amounts:
        now = max(now, pace.ready_at(now))
        pace.take(amount, now)
        admitted.append((now, amount))
    return admitted


@settings(deadline=None)
@given(
    limit=st.integers(60, 10_000_000),
    fleet_size=st.integers(1, 20),
    tolerance=st.floats(0, 10),
    amounts=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60),
    window=st.floats(0.1, 60),
)
def test_no_window_admits_more_than_burst_and_rate_and_one_more(
    limit: int, fleet_size: int, tolerance: float, amounts: list[float], window: float
) -> None:
    pace = PaceController(limit, fleet_size=fleet_size, tolerance=tolerance)
    costs = [amount * limit / 20 for amount in amounts]
    rate = pace.rate
    admitted = drive(pace, costs)
    for start, _ in admitted:
        inside = [amount for at, amount in admitted if start <= at < start + window]
        if admitted[-1][0] < 60:  # at one rate
            assert sum(inside) - max(inside) <= rate * (window + tolerance) * 1.001 + rate * 1e-4


def test_an_unknown_budget_admits_everything() -> None:
    pace = PaceController(None)
    assert drive(pace, [1e9] * 10)[-1][0] == 0.0


def test_a_pod_has_an_equal_part_of_the_budget() -> None:
    assert PaceController(600, fleet_size=3).rate == pytest.approx(FILL * 200 / 60)


def test_a_limit_that_the_service_names_stands_in_for_one_that_is_not_configured() -> None:
    pace = PaceController(None, fleet_size=2)
    pace.observe(1_000, None, admitted_at=0, mark=0)
    assert (pace.limit, pace.share) == (1_000, 500)


def test_a_configured_budget_below_the_quota_stays() -> None:
    pace = PaceController(400)
    pace.observe(1_000, None, admitted_at=0, mark=0)
    assert pace.limit == 400


def test_a_quota_below_the_configured_budget_is_kept_to() -> None:
    pace = PaceController(4_000)
    pace.observe(1_000, None, admitted_at=0, mark=0)
    assert pace.limit == 1_000


class Service:
    """Counts the minute as Azure does, for a pace that is always short of budget. `others` is what other users take
    of each minute."""

    def __init__(self, limit: float, *, bias: float = 1.0, others: float = 0.0) -> None:
        self.limit, self.bias, self.others = limit, bias, others
        self.minute, self.used = -1, 0.0
        self.full: dict[int, float] = {}

    def charge(self, amount: float, now: float) -> float:
        """What remains."""
        if int(now // 60) != self.minute:
            self.minute, self.used = int(now // 60), 0.0
        self.used += amount * self.bias
        self.full[self.minute] = self.used
        return self.limit - self.used - self.others * (now % 60) / 60


def saturate(pace: PaceController, service: Service, *, minutes: float, amount: float = 10.0) -> list[float]:
    """Which part of each whole minute was used."""
    now = 17.0
    while now < 60 * minutes:
        now = max(now, pace.ready_at(now))
        mark = pace.take(amount, now)
        pace.observe(service.limit, service.charge(amount, now), admitted_at=now, mark=mark)
    used = list(service.full.values())[1:-1]
    return [part / service.limit for part in used]


@settings(max_examples=25, deadline=None)
@given(bias=st.floats(0.5, 1.5), fleet_size=st.integers(1, 4))
def test_what_the_service_says_remains_brings_the_pace_to_the_quota(bias: float, fleet_size: int) -> None:
    used = saturate(PaceController(6_000, fleet_size=fleet_size), Service(6_000, bias=bias), minutes=12)
    assert all(0.95 < part <= 1.0 for part in used[-4:]), used


@settings(max_examples=25, deadline=None)
@given(bias=st.floats(0.3, 3), fleet_size=st.integers(1, 9), minutes=st.integers(2, 20))
def test_the_share_is_never_more_than_the_budget_nor_less_than_an_equal_part(
    bias: float, fleet_size: int, minutes: int
) -> None:
    pace = PaceController(6_000, fleet_size=fleet_size)
    saturate(pace, Service(6_000, bias=bias), minutes=minutes, amount=60)
    assert 6_000 / fleet_size * 0.999 <= pace.share <= 6_000


def test_a_pod_that_is_alone_takes_what_its_fleet_leaves() -> None:
    pace = PaceController(6_000, fleet_size=3)
    assert saturate(pace, Service(6_000), minutes=8)[-1] > 0.95
    assert pace.share > 5_500


@pytest.mark.parametrize(("says", "minutes"), [(True, 30), (False, 120)])
def test_a_pod_alone_in_a_fleet_of_a_hundred_comes_to_use_the_budget(says: bool, minutes: float) -> None:
    """Though its share is less than a job in six minutes."""
    pace = PaceController(30_000, fleet_size=100)
    service = Service(30_000)
    now = 0.0
    while now < 60 * minutes:
        now = max(now, pace.ready_at(now))
        mark = pace.take(2_000, now)
        left = service.charge(2_000, now)
        if left < 0:
            service.full[service.minute] = 30_000
            pace.overdraw(60 - now % 60, now)
            now += 60 - now % 60
        elif says:
            pace.observe(30_000, left, admitted_at=now, mark=mark)
    used = list(service.full.values())[-6:-1]
    assert all(part >= 0.85 * 30_000 for part in used), used


def test_an_hour_without_jobs_is_not_taken_for_an_hour_without_budget() -> None:
    pace = PaceController(30_000, fleet_size=20)
    for number in range(10):
        mark = pace.take(8_000, 3_600.0 * number)
        pace.observe(30_000, 22_000, admitted_at=3_600.0 * number, mark=mark)
    assert pace.share == 1_500


def test_pods_that_are_all_there_keep_to_their_parts() -> None:
    pace = PaceController(6_000, fleet_size=3)
    service = Service(6_000, others=FILL * 4_000)
    saturate(pace, service, minutes=10)
    assert pace.rate * 60 == pytest.approx(2_000, rel=0.1)


def test_a_pod_without_jobs_does_not_take_its_idleness_for_a_wrong_estimate() -> None:
    pace = PaceController(6_000, fleet_size=3)
    now = 0.0
    while now < 600:
        mark = pace.take(10, now)
        pace.observe(6_000, 6_000 - 6_000 * (now % 60) / 60, admitted_at=now, mark=mark)
        now += 5.0
    assert pace.rate * 60 > 1_600


def test_other_users_of_a_quota_above_our_budget_need_not_be_given_way_to() -> None:
    pace = PaceController(2_000)
    now = 0.0
    while now < 600:
        now = max(now, pace.ready_at(now))
        mark = pace.take(10, now)
        pace.observe(6_000, 6_000 - 5_000 * (now % 60) / 60, admitted_at=now, mark=mark)
    assert pace.rate * 60 == pytest.approx(FILL * 2_000)


def test_an_answer_to_a_call_of_the_last_minute_says_nothing_of_this_one() -> None:
    pace = PaceController(1_000)
    for now in (0.0, 59.0, 61.0):
        pace.observe(1_000, {0.0: 990.0, 59.0: 20.0, 61.0: 990.0}[now], admitted_at=now, mark=pace.take(10, now))
    pace.observe(1_000, 15.0, admitted_at=59.5, mark=0)
    assert pace.remaining == 990


@settings(deadline=None)
@given(retry_after=st.floats(0, 1e6) | st.none(), fleet_size=st.integers(1, 9))
def test_a_429_slows_the_pace_down_but_not_at_once_to_a_crawl(retry_after: float | None, fleet_size: int) -> None:
    pace = PaceController(6_000, fleet_size=fleet_size)
    before = pace.rate
    pace.overdraw(retry_after, 30.0)
    assert 0.69 * before < pace.rate < before


def test_a_minute_that_was_used_up_early_tells_which_pace_would_have_lasted() -> None:
    pace = PaceController(6_000)
    before = pace.rate
    pace.overdraw(12.0, 100.0)  # 48 s of 60
    assert pace.rate == pytest.approx(0.8 * before)


def test_silence_without_a_429_is_taken_for_room_and_more_so_each_minute() -> None:
    pace = PaceController(6_000)
    rates = [pace.rate]
    now = 0.0
    while now < 400:
        now = max(now, pace.ready_at(now))
        pace.take(10, now)
        if pace.rate != rates[-1]:
            rates.append(pace.rate)
    steps = [later / earlier for earlier, later in itertools.pairwise(rates)]
    assert steps[:4] == [pytest.approx(factor) for factor in (1.02, 1.04, 1.08, 1.16)]


def test_every_slot_may_be_used_until_there_is_overload_and_then_the_limit_comes_back_by_small_steps() -> None:
    calls = Concurrency(1_000)
    assert calls.limit == 1_000
    calls.overload(1.0, 1.0)
    assert calls.limit == pytest.approx(700)
    round_trip(calls)
    assert 700 < calls.limit <= 700 + 1_000 / 20


def round_trip(calls: Concurrency, ended: Callable[[Concurrency], None] = Concurrency.succeed) -> None:
    """As many calls as may be, and their ends."""
    for _ in range(int(calls.limit)):
        calls.enter()
    for _ in range(calls.in_flight):
        ended(calls)
    for _ in range(calls.in_flight):
        calls.leave()


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    calls = Concurrency(1_000)
    calls.overload(1.0, 1.0)
    for _ in range(1_000):
        calls.enter()
        calls.succeed()
        calls.leave()
    assert calls.limit == pytest.approx(700)


def test_overload_counts_once_for_all_calls_under_way() -> None:
    calls = Concurrency(64)
    for _ in range(64):
        calls.overload(admitted_at=1.0, now=2.0)
        calls.overload(admitted_at=1.5, now=2.1)
    assert calls.limit == pytest.approx(0.7 * 64)
    calls.overload(admitted_at=2.5, now=3.0)
    assert calls.limit == pytest.approx(0.49 * 64)


def test_a_failure_now_and_then_is_bad_luck_and_many_are_overload() -> None:
    calls = Concurrency(64)
    for number in range(1_000):
        calls.fail(number, number) if number % 50 == 0 else calls.succeed()
    assert calls.limit == 64
    for number in range(1_000, 1_010):
        calls.fail(number, number)
    assert calls.limit < 64


@settings(deadline=None)
@given(
    endings=st.lists(st.sampled_from(["succeed", "fail", "overload"]), max_size=200), ceiling=st.integers(1, 500)
)
def test_the_limit_stays_between_one_and_its_ceiling(endings: list[str], ceiling: int) -> None:
    calls = Concurrency(ceiling)
    for now, ending in enumerate(endings):
        calls.succeed() if ending == "succeed" else getattr(calls, ending)(now, now)
        assert 1 <= calls.limit <= ceiling


@settings(deadline=None)
@given(after=st.floats(0, REOPENING), in_flight=st.integers(0, 64))
def test_a_gate_that_opens_again_comes_back_to_its_limit_step_by_step(after: float, in_flight: int) -> None:
    calls = Concurrency(64)
    calls.reopen(100.0)
    for _ in range(in_flight):
        calls.enter()
    is_ready = calls.ready_at(100.0 + after) <= 100.0 + after
    assert is_ready == (in_flight < 64 and in_flight * REOPENING / 64 <= after)
    assert (calls.ready_at(200) <= 200) == (in_flight < 64)


@pytest.mark.parametrize("says", [True, False])
def test_a_pace_that_is_not_used_does_not_rise(says: bool) -> None:
    pace = PaceController(6_000, fleet_size=3)
    rate = pace.rate
    for number in range(200):
        now = 5.0 * number
        mark = pace.take(10, now)
        if says:
            pace.observe(6_000, 6_000 - 3_000 * (now % 60) / 60, admitted_at=now, mark=mark)
    assert pace.rate == rate
