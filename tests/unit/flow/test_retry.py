"""When a job is called again, and when not: the policy's arithmetic, and tenacity's keeping to it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import (
    CallFailed,
    Expired,
    HandedBack,
    LockLost,
    RefusedByService,
    SetupWrong,
    Throttled,
    Unavailable,
)
from worker.flow.retry import JobProgress, Retrier, RetryPolicy
from worker.jobs.outcomes import Response

policies = st.builds(
    RetryPolicy, attempts=st.integers(1, 50), base=st.floats(0.01, 10.0), cap=st.floats(0.01, 3_600.0)
)
chances = st.floats(0, 1, exclude_max=True)


# Arithmetic


@given(policies, st.integers(1, 10**9), chances)
def test_a_backoff_is_within_zero_and_the_cap(policy: RetryPolicy, failures: int, chance: float) -> None:
    assert 0 <= policy.backoff(failures, chance) <= policy.cap


@given(policies, st.integers(1, 1_000), chances)
def test_a_backoff_never_shrinks_with_failures_nor_more_than_doubles(
    policy: RetryPolicy, failures: int, chance: float
) -> None:
    this, following = policy.backoff(failures, chance), policy.backoff(failures + 1, chance)
    assert this <= following <= 2 * this + 1e-9


def test_backoffs_double_from_the_base_to_the_cap_with_full_jitter() -> None:
    policy = RetryPolicy(base=1.0, cap=60.0)
    assert [policy.backoff(failures, 1.0) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [policy.backoff(failures, 0.5) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert policy.backoff(5, 0.0) == 0.0


@pytest.mark.parametrize(
    ("failures", "upcoming", "left", "ends"),
    [
        (1, 1.0, 100.0, False),
        (2, 1.0, 100.0, False),
        (3, 1.0, 100.0, True),
        (4, 1.0, 100.0, True),
        (1, 99.9, 100.0, False),
        (1, 100.0, 100.0, True),
        (1, 1.0, 0.0, True),
        (1, 1.0, -5.0, True),
    ],
)
def test_it_ends_with_the_attempts_or_where_the_next_would_be_too_late(
    failures: int, upcoming: float, left: float, ends: bool
) -> None:
    assert RetryPolicy(attempts=3).ends(failures, upcoming, left) is ends


# Keeping to it


ANSWER = Response(status=200, request_id=None, body=b"{}")


@dataclass
class Bench:
    """One job's attempts, which fail as told, one error after another, and then bring an answer, and when they were
    made. The jitter is the whole of each backoff unless told otherwise."""

    failures: Sequence[Exception]
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    deadline: float = 86_400.0
    chance: float = 1.0
    progress: JobProgress = field(default_factory=JobProgress)
    times: list[float] = field(default_factory=list)
    waits: list[tuple[float, str]] = field(default_factory=list)

    async def run(self) -> Response:
        return await Retrier(self.policy, lambda: self.chance).run(self)

    async def make(self) -> Response:
        self.times.append(round(asyncio.get_running_loop().time(), 6))
        if len(self.times) > len(self.failures):
            return ANSWER
        error = self.failures[len(self.times) - 1]
        self.progress.failures += isinstance(error, Unavailable)
        raise error

    def left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    def note_backoff(self, seconds: float, error: Unavailable) -> None:
        self.waits.append((seconds, error.detail))


@pytest.mark.looptime
async def test_an_answer_at_the_first_call_takes_no_time() -> None:
    bench = Bench([])
    assert await bench.run() is ANSWER
    assert bench.times == [0.0]
    assert bench.waits == []


@pytest.mark.looptime
async def test_what_failed_on_the_way_backs_off_ever_longer_and_says_so() -> None:
    bench = Bench([Unavailable("first"), Unavailable("second"), Unavailable("third")])
    assert await bench.run() is ANSWER
    assert bench.times == [0.0, 1.0, 3.0, 7.0]
    assert bench.waits == [(1.0, "first"), (2.0, "second"), (4.0, "third")]


@pytest.mark.looptime
async def test_the_last_failure_is_raised_when_the_attempts_are_used() -> None:
    bench = Bench([Unavailable(str(number)) for number in range(9)], RetryPolicy(attempts=3))
    with pytest.raises(Unavailable, match=r"^2$"):
        await bench.run()
    assert bench.times == [0.0, 1.0, 3.0]
    assert len(bench.waits) == 2


@pytest.mark.looptime
async def test_a_single_attempt_is_one_call() -> None:
    bench = Bench([Unavailable("down")], RetryPolicy(attempts=1))
    with pytest.raises(Unavailable):
        await bench.run()
    assert bench.times == [0.0]


@pytest.mark.looptime
async def test_an_attempt_that_would_begin_after_the_deadline_is_not_waited_for() -> None:
    bench = Bench([Unavailable("down")] * 9, deadline=5.0)
    with pytest.raises(Unavailable):
        await bench.run()
    assert bench.times == [0.0, 1.0, 3.0]  # the next would begin at 7
    assert asyncio.get_running_loop().time() == 3.0


@pytest.mark.looptime
async def test_the_service_is_not_asked_again_before_it_said() -> None:
    bench = Bench([Unavailable("down", retry_after=20.0), Unavailable("down", retry_after=0.5)])
    await bench.run()
    assert bench.times == [0.0, 20.0, 22.0]  # the longer of its wait and ours


@pytest.mark.looptime
@pytest.mark.parametrize("error", [Throttled("slow down", retry_after=30.0), SetupWrong("403")])
async def test_throttles_and_a_wrong_set_up_are_no_attempts_and_wait_elsewhere(error: CallFailed) -> None:
    bench = Bench([error] * 100, RetryPolicy(attempts=1), deadline=-1.0)
    assert await bench.run() is ANSWER
    assert bench.times == [0.0] * 101
    assert bench.waits == []


@pytest.mark.looptime
async def test_failures_count_on_across_throttles() -> None:
    down, slow = Unavailable("down"), Throttled("slow down")
    bench = Bench([down, slow, down, slow, down], RetryPolicy(attempts=3))
    with pytest.raises(Unavailable):
        await bench.run()
    assert bench.times == [0.0, 1.0, 1.0, 3.0, 3.0]
    assert bench.progress.failures == 3


@pytest.mark.looptime
@pytest.mark.parametrize(
    "error",
    [RefusedByService("400"), Expired("late"), HandedBack("parked"), LockLost("lost"), ValueError("ours")],
)
async def test_what_no_repetition_would_mend_is_raised_at_once(error: Exception) -> None:
    bench = Bench([error])
    with pytest.raises(type(error)) as caught:
        await bench.run()
    assert caught.value is error
    assert bench.times == [0.0]


@pytest.mark.looptime
async def test_a_cancelled_job_ends_in_the_middle_of_its_backoff() -> None:
    bench = Bench([Unavailable("down")] * 9)
    running = asyncio.create_task(bench.run())
    await asyncio.sleep(2.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bench.times == [0.0, 1.0]


@pytest.mark.looptime
async def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    benches = [Bench([Unavailable("down")], chance=number / 10) for number in range(10)]
    await asyncio.gather(*[bench.run() for bench in benches])
    assert [bench.times[1] for bench in benches] == pytest.approx([number / 10 for number in range(10)])


@pytest.mark.looptime
async def test_jobs_that_share_a_retrier_know_nothing_of_each_other() -> None:
    retrier = Retrier(RetryPolicy(attempts=3), lambda: 1.0)
    benches = [
        Bench([Unavailable(f"{job}.{number}", retry_after=job * 0.7) for number in range(job % 4)])
        for job in range(37)
    ]
    ended = await asyncio.gather(*[retrier.run(bench) for bench in benches], return_exceptions=True)
    for job, (bench, end) in enumerate(zip(benches, ended, strict=True)):
        assert bench.progress.failures == job % 4
        assert end is (ANSWER if job % 4 < 3 else bench.failures[-1])
        assert [detail for _, detail in bench.waits] == [f"{job}.{number}" for number in range(min(job % 4, 2))]
        assert [seconds for seconds, _ in bench.waits] == [max(2.0**n, job * 0.7) for n in range(len(bench.waits))]


@pytest.mark.looptime
@given(st.lists(st.sampled_from([Unavailable, Throttled, SetupWrong]), max_size=20), st.integers(1, 10))
async def test_calls_that_failed_on_the_way_are_never_more_than_the_attempts(
    kinds: list[type[CallFailed]], attempts: int
) -> None:
    bench = Bench([kind("no") for kind in kinds], RetryPolicy(attempts=attempts))
    with suppress(Unavailable):
        await bench.run()
    assert bench.progress.failures == min(kinds.count(Unavailable), attempts)
    assert len(bench.waits) <= attempts - 1
