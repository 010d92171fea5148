"""The gate of one deployment: whether it takes a job now, and if not, when and why.

It is open unless a 429 paused it, our set-up is wrong there, it is out of service, its budget is used up for now or
it has as many calls under way as it bears. `budgets.py` and `probing.py` have that arithmetic; who waits at it, and
in which order, is for `gates.py`.
"""

import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from worker.admission.budgets import REOPENING, Concurrency, Cost, Pace, UnadvisedPause
from worker.admission.probing import Probation
from worker.errors import CallFailed, NoToken, RefusedByService, SetupWrong, Throttled, Unavailable
from worker.interfaces import GateClosed, Observer, Target
from worker.jobs.outcomes import Response
from worker.rate_limits import Headroom, ThrottleKind
from worker.waits import loop_time

MAX_PAUSE = 600.0
"""No header closes a gate for longer."""

SETUP, OUTAGE = "setup", "outage"
"""The reasons of a gate that is closed because our set-up is wrong there, or because hardly a call gets through;
the others are the kinds of a 429."""

OUT_OF_SERVICE = 0.7
"""The share of failed calls from which a deployment counts as out of service: 24 that fail one after the other."""

REQUEST_TOLERANCE = 0.01
"""Seconds by which a request may come early: Azure counts requests by the second, and timers are late."""

DENSITY_MEMORY = 0.02
MOST_DENSITY = 4.0
"""How far, as a factor either way, a prompt's tokens may be from our four characters each."""


class Line(Protocol):
    """Jobs that wait at a gate. `is_awaited`: somebody wants to hear when another job may come."""

    is_awaited: bool

    @property
    def waiting(self) -> int: ...

    @property
    def oldest_ticket(self) -> int:
        """Of the job that has waited longest; there must be one."""

    def let_in(self, now: float) -> None:
        """Look again whether somebody can go."""

    def note_pause(self) -> None:
        """A gate has been closed for a while."""

    def note_probation(self) -> None:
        """A gate takes jobs only to probe from now on, or all again."""


L = TypeVar("L", bound=Line)


class Gate:
    """The admission to one deployment, for every job and every route that may use it."""

    def __init__(
        self, target: Target, *, observer: Observer, fleet_size: int, slots: int, on_change: Callable[[], None]
    ) -> None:
        self.target = target
        self.opens_at = -math.inf
        """When the last pause ends."""
        self.reason: ThrottleKind | None = None
        self.headroom: Headroom | None = None
        """What the service said last."""
        self.setup = Probation()
        self.outage = Probation()
        self.tokens = Pace(target.tokens_per_minute, fleet_size=fleet_size)
        self.requests = Pace(target.requests_per_minute, fleet_size=fleet_size, tolerance=REQUEST_TOLERANCE)
        self.concurrency = Concurrency(slots)
        self.unadvised = UnadvisedPause()
        self.routes: list[Line] = []
        self._density = 1.0
        self._observer = observer
        self._on_change = on_change

    @property
    def in_flight(self) -> int:
        return self.concurrency.in_flight

    @property
    def limit(self) -> int:
        """Calls that may be under way at once, as adapted."""
        return int(self.concurrency.limit)

    @property
    def is_probed(self) -> bool:
        """Whether it takes one job at a time, to see whether what was wrong is mended."""
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

    def enter(self, cost: Cost, now: float) -> "Permit":
        """Take a job in, ready or not."""
        self.concurrency.enter()
        tokens = cost.prompt * self._density + cost.answer
        is_probe = self.setup.enter() | self.outage.enter()
        return Permit(self, cost, now, self.tokens.take(tokens, now), self.requests.take(1, now), is_probe)

    def jobs_a_second(self) -> float:
        """At which it lets the jobs in that are like those it has seen; infinite where no budget paces it."""
        return min(self.tokens.rate / max(1.0, self.tokens.typical), self.requests.rate)

    def describe(self) -> dict[str, Any]:
        """For people: what it waits for, and until when."""
        now = loop_time()
        waits_for = self.waits_for
        return {
            "deployment": self.target.deployment,
            "endpoint": self.target.endpoint,
            "state": "open" if waits_for is None else "closed",
            "waits_for": waits_for,
            "opens_in_seconds": _finite(max(0.0, self.ready_at(now) - now)),
            "in_flight": self.in_flight,
            "limit": self.limit,
            "waiting": self.waiting,
            "tokens_per_minute": _described(self.tokens),
            "requests_per_minute": _described(self.requests),
        }

    def gauges(self) -> dict[str, float | None]:
        """The same for metrics; None where it is not known."""
        tokens, requests = self.tokens, self.requests
        return {
            "gate_open": float(self.opens_at <= loop_time() and not self.is_probed),
            "calls_in_flight": self.in_flight,
            "concurrency_limit": self.limit,
            "jobs_parked": self.waiting,
            "budget_tokens_per_minute": None if tokens.limit is None else tokens.share,
            "budget_requests_per_minute": None if requests.limit is None else requests.share,
            "quota_remaining_tokens": tokens.remaining,
            "quota_remaining_requests": requests.remaining,
        }

    @property
    def waiting(self) -> int:
        """Jobs that wait for this deployment or, on routes that have several, for another."""
        return sum(route.waiting for route in self.routes)

    @property
    def waits_for(self) -> str | None:
        """What keeps the next job from being called here now."""
        now = loop_time()
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

    def _answered(self, permit: "Permit", response: Response) -> None:
        self._end_probations()
        self.concurrency.succeed()
        self.unadvised.succeed(after_pause=permit.admitted_at >= self.opens_at)
        self._hear(permit, response.headroom)
        if response.usage is not None and response.usage.prompt > 0:
            density = response.usage.prompt / max(1, permit.cost.prompt)
            density = min(max(density, 1 / MOST_DENSITY), MOST_DENSITY)
            self._density += DENSITY_MEMORY * (density - self._density)

    def _failed(self, permit: "Permit", error: CallFailed) -> None:
        self._hear(permit, error.headroom)
        match error:
            case Throttled():
                self._end_probations()
                self._throttle(permit, error)
            case RefusedByService():  # it has looked at the job
                self._end_probations()
            case SetupWrong():
                self._begin_probation(self.setup, SETUP, permit, error)
            case Unavailable():
                self.concurrency.fail(permit.admitted_at, loop_time())
                if self.concurrency.failing > OUT_OF_SERVICE:
                    self._begin_probation(self.outage, OUTAGE, permit, error)

    def _begin_probation(self, probation: Probation, reason: str, permit: "Permit", error: CallFailed) -> None:
        scope = error.scope if isinstance(error, NoToken) else None
        more = probation.begin(error.detail, was_probe=permit.is_probe, now=loop_time(), missing_token=scope)
        if more:
            self._observer(GateClosed(deployment=self.target.label, reason=reason, seconds=more))
            for route in self.routes:
                route.note_probation()

    def note_token(self, scope: str) -> None:
        """A token for `scope` has come: where only that was missing, nothing is left to probe."""
        if self.setup.missing_token != scope:
            return
        self.setup.end()
        now = loop_time()
        for route in self.routes:
            route.note_probation()
        for route in by_age(self.routes):
            route.let_in(now)

    def _end_probations(self) -> None:
        """A call got through."""
        if not self.is_probed:
            return
        self.setup.end()
        self.outage.end()
        self.concurrency.recover()
        for route in self.routes:
            route.note_probation()

    def _throttle(self, permit: "Permit", error: Throttled) -> None:
        now = loop_time()
        tells_more = permit.admitted_at >= self.opens_at and now >= self.opens_at  # than the last pause knows
        if error.retry_after is not None:
            seconds, reopening = min(max(error.retry_after, 0.0), MAX_PAUSE), REOPENING
        else:
            seconds = reopening = self.unadvised.refuse() if tells_more else 0.0
            error.is_stray = not seconds
            if error.is_stray:
                return
        is_paced = False
        if error.kind is not ThrottleKind.QUOTA:
            self.concurrency.overload(permit.admitted_at, now)
        elif (pace := self._scarcer()) is not None:
            is_paced = True
            if tells_more:
                pace.overdraw(error.retry_after, now)
        self._pause(seconds, error.kind, now, reopening=0.0 if is_paced else reopening)

    def _pause(self, seconds: float, kind: ThrottleKind, now: float, *, reopening: float) -> None:
        """Close, never shortening an earlier pause; `reopening`: seconds over which it comes back afterwards."""
        if now + seconds <= self.opens_at:
            return
        more = now + seconds - max(now, self.opens_at)
        self.opens_at, self.reason = now + seconds, kind
        if reopening:
            self.concurrency.reopen(self.opens_at, reopening)
        self._observer(GateClosed(deployment=self.target.label, reason=kind, seconds=more))
        for route in self.routes:
            route.note_pause()

    def _scarcer(self) -> Pace | None:
        """The budget that jobs like those of late use up first: the one a 429 is about, as its words do not say."""
        paces = [pace for pace in (self.tokens, self.requests) if pace.limit is not None]
        return max(paces, key=lambda pace: pace.typical / pace.rate, default=None)

    def _hear(self, permit: "Permit", said: Headroom | None) -> None:
        if said is None:
            return
        self.headroom = said
        at = permit.admitted_at
        self.tokens.hear(said.limit_tokens, said.remaining_tokens, admitted_at=at, mark=permit.tokens_mark)
        self.requests.hear(said.limit_requests, said.remaining_requests, admitted_at=at, mark=permit.requests_mark)

    def _left(self, permit: "Permit") -> None:
        self.concurrency.leave()
        if permit.is_probe:
            self.setup.leave()
            self.outage.leave()
        for route in by_age(self.routes) if len(self.routes) > 1 else self.routes:
            if route.waiting:
                route.let_in(loop_time())
        if any(route.is_awaited for route in self.routes):
            self._note_change()

    def _note_change(self) -> None:
        for route in self.routes:
            route.is_awaited = False
        self._on_change()


class Permit:
    """A job's place at a deployment, given back at the end of its block.

    Say within it how the call ended, by `answered` or `failed`; a call that was cancelled tells nothing.
    """

    __slots__ = ("_gate", "admitted_at", "cost", "is_probe", "requests_mark", "tokens_mark")

    def __init__(
        self,
        gate: Gate,
        cost: Cost,
        admitted_at: float,
        tokens_mark: float,
        requests_mark: float,
        is_probe: bool = False,
    ) -> None:
        self.cost = cost
        self.admitted_at = admitted_at
        self.tokens_mark = tokens_mark
        self.requests_mark = requests_mark
        self.is_probe = is_probe
        self._gate = gate

    @property
    def target(self) -> Target:
        return self._gate.target

    def answered(self, response: Response) -> None:
        self._gate._answered(self, response)

    def failed(self, error: CallFailed) -> None:
        self._gate._failed(self, error)

    def is_outsized(self, error: CallFailed) -> bool:
        """Whether a 429 is about this job alone, which is larger than a whole minute's quota and no pause helps:
        the service then asks for a wait that no window of its quota needs."""
        quota = self._gate.tokens.limit
        is_long = error.retry_after is not None and error.retry_after > MAX_PAUSE
        return is_long and quota is not None and self.cost.tokens > quota / 2

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._gate._left(self)


def by_age(routes: Iterable[L]) -> list[L]:
    """Those at which jobs wait, the longest wait first; each once."""
    waiting = {route.oldest_ticket: route for route in routes if route.waiting}
    return [waiting[ticket] for ticket in sorted(waiting)]


def _described(pace: Pace) -> dict[str, float | None] | None:
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
