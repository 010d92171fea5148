"""When a job is called again: pure decisions, and tenacity to carry them out.

A throttle and a wrong set-up are no attempts and wait at their gate; only what failed on the way (`Unavailable`) is
counted and backs off.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from worker.errors import SetupWrong, Throttled, Unavailable
from worker.interfaces import Target
from worker.jobs.outcomes import Response
from worker.waits import backoff, release_frames

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
        return chance * backoff(failures, base=self.base, cap=self.cap)

    def ends(self, failures: int, upcoming: float, left: float) -> bool:
        """Whether to give up: the attempts are used, or the next would start after the deadline."""
        return failures >= self.attempts or upcoming >= left


@dataclass(slots=True)
class JobProgress:
    """How a job has fared so far: `calls` made, `failures` counted, seconds spent in calls, and where."""

    calls: int = 0
    failures: int = 0
    call_seconds: float = 0.0
    job_id: str | None = None
    target: Target | None = None
    parked_seconds: float = 0.0
    """For which it has waited at gates before its calls."""
    is_perhaps_written: bool = False
    """Its result is on its way to the sink, or there."""


class Attempts(Protocol):
    """A job's attempts, which the retrier makes until one brings a last word."""

    progress: JobProgress

    async def make(self) -> Response:
        """One attempt. Raises CallFailed, among others."""

    def left(self) -> float:
        """Seconds to the job's deadline."""

    def note_backoff(self, seconds: float, error: Unavailable) -> None:
        """The job waits so long before its next attempt."""


class Retrier:
    """tenacity's loop, one for all jobs: a job's own would be garbage that only the collector frees.

    It can be shared because tenacity keeps no state in it across an await: its callbacks are plain functions.
    """

    def __init__(self, policy: RetryPolicy, chance: Callable[[], float]) -> None:
        self._policy = policy
        self._chance = chance
        self._retrying = AsyncRetrying(
            retry=retry_if_exception_type((Throttled, Unavailable, SetupWrong)),
            wait=self._wait,
            stop=self._stops,
            before_sleep=_note_backoff,
            sleep=asyncio.sleep,
            reraise=True,
        )

    async def run(self, attempts: Attempts) -> Response:
        """Attempt until there is an answer. The last error is raised when it gives up."""
        try:
            response: Response = await self._retrying(_make, attempts)
        except BaseException as error:
            release_frames(error)  # tenacity's hold the state of the attempts, and that holds the error
            raise
        return response

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Throttled) and error.is_stray:
            return STRAY_BACKOFF * self._chance()
        if not isinstance(error, Unavailable):
            return 0.0
        failures = _attempts_of(state).progress.failures
        return max(self._policy.backoff(failures, self._chance()), min(error.retry_after or 0.0, MAX_WAIT))

    def _stops(self, state: RetryCallState) -> bool:
        if _failed_on_the_way(state) is None:
            return False
        attempts = _attempts_of(state)
        return self._policy.ends(attempts.progress.failures, state.upcoming_sleep, attempts.left())


async def _make(attempts: Attempts) -> Response:
    return await attempts.make()


def _attempts_of(state: RetryCallState) -> Attempts:
    attempts: Attempts = state.args[0]
    return attempts


def _note_backoff(state: RetryCallState) -> None:
    if error := _failed_on_the_way(state):
        _attempts_of(state).note_backoff(state.upcoming_sleep, error)


def _failed_on_the_way(state: RetryCallState) -> Unavailable | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, Unavailable) else None
