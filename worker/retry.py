"""When a job is called again: pure decisions, and tenacity to carry them out.

A throttle and a wrong set-up are no attempts and wait at their gate; only what failed on the way (`Unavailable`) is
counted and backs off.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from worker.errors import SetupWrong, Throttled, Unavailable
from worker.interfaces import Target

STRAY_BACKOFF = 0.5
"""Seconds, with full jitter, before a job is called again that was refused while others were answered."""

MAX_WAIT = 600.0
"""Seconds; a service that asks for more is asked again all the same, as the job holds a slot and a lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`attempts` calls may fail. Waits double from `base` to `cap` seconds, with full jitter, so that jobs which
    failed together do not come back together."""

    attempts: int = 6
    base: float = 1.0
    cap: float = 60.0

    def backoff(self, failures: int, chance: float) -> float:
        """Seconds before the next attempt; `chance` in [0, 1) is the jitter."""
        return chance * min(self.cap, self.base * 2.0 ** min(failures - 1, 30))

    def ends(self, failures: int, upcoming: float, left: float) -> bool:
        """Whether to give up: the attempts are used, or the next would start after the deadline."""
        return failures >= self.attempts or upcoming >= left


@dataclass(slots=True)
class Course:
    """How a job has fared so far: `calls` made, `failures` counted, seconds spent in calls, and where."""

    calls: int = 0
    failures: int = 0
    call_seconds: float = 0.0
    job_id: str | None = None
    target: Target | None = None
    parked_seconds: float = 0.0
    """For which it has waited at gates before its calls."""


def retrying(
    policy: RetryPolicy,
    course: Course,
    *,
    left: Callable[[], float],
    chance: Callable[[], float],
    on_backoff: Callable[[float, Unavailable], None],
) -> AsyncRetrying:
    """A fresh retrier for one job; tenacity keeps state in it, so it cannot be shared.

    `left`: seconds to the job's deadline. The last error is raised when it gives up.
    """

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Throttled) and error.is_stray:
            return STRAY_BACKOFF * chance()
        if not isinstance(error, Unavailable):
            return 0.0
        return max(policy.backoff(course.failures, chance()), min(error.retry_after or 0.0, MAX_WAIT))

    def stop(state: RetryCallState) -> bool:
        error = _failed_on_the_way(state)
        return error is not None and policy.ends(course.failures, state.upcoming_sleep, left())

    def before_sleep(state: RetryCallState) -> None:
        if error := _failed_on_the_way(state):
            on_backoff(state.upcoming_sleep, error)

    return AsyncRetrying(
        retry=retry_if_exception_type((Throttled, Unavailable, SetupWrong)),
        wait=wait,
        stop=stop,
        before_sleep=before_sleep,
        sleep=asyncio.sleep,
        reraise=True,
    )


def _failed_on_the_way(state: RetryCallState) -> Unavailable | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, Unavailable) else None
