"""The gate of one deployment: whether it takes a job now, and if not, when and why.

It is open unless a 429 paused it, our set-up is wrong there, it is out of service, its budget is used up for now or
it has as many calls under way as it bears. `budgets.py`, `concurrency.py` and `probing.py` have that arithmetic;
who gets a permit, and in which order, is for `plan.py`. Times are those of the event loop's clock, which nothing
here looks at.
"""

import math
from dataclasses import dataclass
from typing import Any

from worker.admission.budgets import PaceController
from worker.admission.concurrency import REOPENING, Concurrency, UnadvisedPause
from worker.admission.costs import Cost
from worker.admission.probing import Probation
from worker.errors import CallFailed, Cause, NoToken, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.interfaces import GateClosed, Target
from worker.jobs.outcomes import Response
from worker.rate_limits import RateLimits, ThrottleKind

MAX_PAUSE = 600.0
"""No header closes a gate for longer."""

SETUP, OUTAGE = "setup", "outage"
"""The reasons of a gate that is closed because our set-up is wrong there, or because hardly a call gets through;
the others are the kinds of a 429."""

OUT_OF_SERVICE = 0.7
"""The share of failed calls from which a deployment counts as out of service: 24 that fail one after the other."""

REQUEST_TOLERANCE = 0.01
"""Seconds by which a request may come early: Azure counts requests by the second, and timers are late."""

CallResult = Response | CallFailed
"""What one call teaches a gate. A call that was cancelled teaches nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A job that a gate has let in: when, and its marks in the budgets."""

    gate: "Gate"
    cost: Cost
    at: float
    tokens_mark: float
    requests_mark: float
    is_probe: bool


class Gate:
    """The state of one deployment, for every job and every route that may use it."""

    def __init__(self, target: Target, *, fleet_size: int, slots: int) -> None:
        self.target = target
        self.opens_at = -math.inf
        """When the last pause ends."""
        self.reason: ThrottleKind | None = None
        self.rate_limits: RateLimits | None = None
        """What the service said last."""
        self.setup = Probation()
        self.outage = Probation()
        self.tokens = PaceController(target.tokens_per_minute, fleet_size=fleet_size)
        self.requests = PaceController(
            target.requests_per_minute, fleet_size=fleet_size, tolerance=REQUEST_TOLERANCE
        )
        self.concurrency = Concurrency(slots)
        self.unadvised = UnadvisedPause()

    @property
    def in_flight(self) -> int:
        return self.concurrency.in_flight

    @property
    def limit(self) -> int:
        """Calls that may be under way at once, as adapted."""
        return int(self.concurrency.limit)

    @property
    def is_probed(self) -> bool:
        """Whether it takes one job at a time, to see whether what was wrong is fixed."""
        return self.setup.is_on or self.outage.is_on

    @property
    def blocked_until(self) -> float:
        """When it takes a job again, as far as pauses and probes are known beforehand; in the past if it does."""
        return max(self.opens_at, self.setup.probe_at, self.outage.probe_at)

    def ready_at(self, now: float) -> float:
        """When it can take a job; in the past if now, infinity where a call must end first."""
        return max(
            self.opens_at,
            self.setup.ready_at,
            self.outage.ready_at,
            self.concurrency.ready_at(now),
            self.tokens.ready_at(now),
            self.requests.ready_at(now),
        )

    def jobs_a_second(self) -> float:
        """At which it lets the jobs in that are like those it has seen; infinite where no budget paces it."""
        return min(self.tokens.rate / max(1.0, self.tokens.typical), self.requests.rate)

    def enter(self, cost: Cost, now: float) -> Entry:
        """Take a job in, ready or not. `leave` ends it."""
        self.concurrency.enter()
        return Entry(
            gate=self,
            cost=cost,
            at=now,
            tokens_mark=self.tokens.take(cost.tokens, now),
            requests_mark=self.requests.take(1, now),
            is_probe=self.setup.enter() | self.outage.enter(),
        )

    def leave(self, entry: Entry) -> None:
        """Its call is over, however it ended."""
        self.concurrency.leave()
        if entry.is_probe:
            self.setup.leave()
            self.outage.leave()

    def observe(self, entry: Entry, result: CallResult, now: float) -> GateClosed | None:
        """Learn from a call. Returns the closing where the gate is closed for longer than was known."""
        self._observe_limits(entry, result.rate_limits)
        match result:
            case Response():
                self._end_probations()
                self.concurrency.succeed()
                self.unadvised.succeed(after_pause=entry.at >= self.opens_at)
            case Throttled():
                self._end_probations()
                return self._throttle(entry, result, now)
            case RefusedByService():  # it has looked at the job
                self._end_probations()
            case SetupWrong():
                return self._begin_probation(self.setup, SETUP, entry, result, now)
            case Unavailable():
                self.concurrency.fail(entry.at, now)
                if self.concurrency.failing > OUT_OF_SERVICE:
                    return self._begin_probation(self.outage, OUTAGE, entry, result, now)
        return None

    def note_token(self, scope: str) -> bool:
        """A token for `scope` has come. Whether only that was missing, so that nothing is left to probe."""
        if self.setup.missing_token != scope:
            return False
        self.setup.end()
        return True

    def is_outsized(self, cost: Cost, error: CallFailed) -> bool:
        """Whether a 429 is about this job alone, which is larger than a whole minute's quota and no pause helps:
        the service then asks for a wait that no window of its quota needs."""
        quota = self.tokens.limit
        is_long = error.retry_after is not None and error.retry_after > MAX_PAUSE
        return is_long and quota is not None and cost.tokens > quota / 2

    def waits_for(self, now: float) -> str | None:
        """What keeps the next job from being called here now."""
        if self.setup.is_on:
            return f"set-up: {self.setup.detail}"
        if self.outage.is_on:
            return f"outage: {self.outage.detail}"
        if self.opens_at > now:
            return f"429: {self.reason}"
        if self.concurrency.ready_at(now) > now:
            return "calls under way"
        if self.tokens.ready_at(now) > now:
            return "tokens per minute"
        return "requests per minute" if self.requests.ready_at(now) > now else None

    def describe(self, now: float) -> dict[str, Any]:
        """For people: what it waits for, and until when."""
        waits_for = self.waits_for(now)
        return {
            "deployment": self.target.deployment,
            "endpoint": self.target.endpoint,
            "state": "open" if waits_for is None else "closed",
            "waits_for": waits_for,
            "opens_in_seconds": _finite(max(0.0, self.ready_at(now) - now)),
            "in_flight": self.in_flight,
            "limit": self.limit,
            "tokens_per_minute": _described(self.tokens),
            "requests_per_minute": _described(self.requests),
        }

    def gauges(self, now: float) -> dict[str, float | None]:
        """The same for metrics; None where it is not known."""
        tokens, requests = self.tokens, self.requests
        return {
            "gate_open": float(self.opens_at <= now and not self.is_probed),
            "calls_in_flight": self.in_flight,
            "concurrency_limit": self.limit,
            "budget_tokens_per_minute": None if tokens.limit is None else tokens.share,
            "budget_requests_per_minute": None if requests.limit is None else requests.share,
            "quota_remaining_tokens": tokens.remaining,
            "quota_remaining_requests": requests.remaining,
        }

    def _observe_limits(self, entry: Entry, limits: RateLimits | None) -> None:
        if limits is None:
            return
        self.rate_limits = limits
        self.tokens.observe(
            limits.limit_tokens, limits.remaining_tokens, admitted_at=entry.at, mark=entry.tokens_mark
        )
        self.requests.observe(
            limits.limit_requests, limits.remaining_requests, admitted_at=entry.at, mark=entry.requests_mark
        )

    def _begin_probation(
        self, probation: Probation, reason: str, entry: Entry, error: CallFailed, now: float
    ) -> GateClosed | None:
        scope = error.scope if isinstance(error, NoToken) else None
        more = probation.begin(
            error.detail,
            was_probe=entry.is_probe,
            now=now,
            missing_token=scope,
            is_spreading=error.cause is Cause.ROLE_SPREADING,
        )
        return self._closed(reason, more) if more else None

    def _end_probations(self) -> None:
        """A call got through."""
        if not self.is_probed:
            return
        self.setup.end()
        self.outage.end()
        self.concurrency.recover()

    def _throttle(self, entry: Entry, error: Throttled, now: float) -> GateClosed | None:
        is_news = entry.at >= self.opens_at and now >= self.opens_at  # to the last pause
        if error.retry_after is not None:
            seconds, reopening = min(max(error.retry_after, 0.0), MAX_PAUSE), REOPENING
        else:
            seconds = reopening = self.unadvised.refuse() if is_news else 0.0
            error.is_stray = not seconds
            if error.is_stray:
                return None
        if error.kind is not ThrottleKind.QUOTA:
            self.concurrency.overload(entry.at, now)
        elif (pace := self._scarcer()) is not None:
            reopening = 0.0  # the pace sees to it
            if is_news:
                pace.overdraw(error.retry_after, now)
        return self._pause(seconds, error.kind, now, reopening=reopening)

    def _pause(self, seconds: float, kind: ThrottleKind, now: float, *, reopening: float) -> GateClosed | None:
        """Close, never shortening an earlier pause; `reopening`: seconds over which it comes back afterwards."""
        if now + seconds <= self.opens_at:
            return None
        more = now + seconds - max(now, self.opens_at)
        self.opens_at, self.reason = now + seconds, kind
        if reopening:
            self.concurrency.reopen(self.opens_at, reopening)
        return self._closed(kind, more)

    def _closed(self, reason: str, seconds: float) -> GateClosed:
        return GateClosed(deployment=self.target.label, reason=reason, seconds=seconds)

    def _scarcer(self) -> PaceController | None:
        """The budget that jobs like those of late use up first: the one a 429 is about, as its words do not say."""
        paces = [pace for pace in (self.tokens, self.requests) if pace.limit is not None]
        return max(paces, key=lambda pace: pace.typical / pace.rate, default=None)


def _described(pace: PaceController) -> dict[str, float | None] | None:
    if pace.limit is None:
        return None
    return {
        "limit": pace.limit,
        "share": round(pace.share),
        "admitted_a_minute": round(pace.rate * 60),
        "remaining": pace.remaining,
    }


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else round(seconds, 3)
