"""Which deployment takes a job now, and who waits for what.

Jobs wait in line at the route of their model until one of its gates (`gate.py`) can take them. A waiter is handed
its permit, so none wakes in vain; a route has one timer at most.
"""

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count

from worker.admission.budgets import Cost
from worker.admission.gate import Gate, Permit, by_age
from worker.admission.intake import Wanted
from worker.errors import HandedBack
from worker.interfaces import Observer, Target
from worker.jobs.outcomes import HandBackReason
from worker.waits import loop_time

MAX_PASSTHROUGH_MODELS = 64
"""Models that producers may bring in under `passthrough` at a time: each is a gate. The one that was asked for
longest ago makes way, where it is idle."""

SETUP_PATIENCE = 60.0
"""Seconds for which jobs wait for our set-up to be mended."""

LOOKAHEAD = 2.0
"""Seconds' worth of jobs to keep waiting at a gate that paces them, so that it never waits for a receive."""


_NO_LIMIT = (math.inf, HandBackReason.PARKED)


class _Waiter:
    """A job in line. Its future brings the permit, or the reason why it must not wait any longer."""

    __slots__ = ("cost", "future", "ticket", "until")

    def __init__(self, ticket: int, cost: Cost, until: float) -> None:
        self.ticket = ticket
        self.cost = cost
        self.until = until
        self.future: asyncio.Future[Permit | HandBackReason] = asyncio.get_running_loop().create_future()


class Route:
    """The gates that can carry a model, in the order in which they are preferred, and the jobs that wait for one.

    First come, first served: also among routes that share a gate. While our set-up is wrong at every gate, jobs
    wait for `setup_patience` seconds at most; then none is kept but one that probes.
    """

    def __init__(
        self,
        model: str,
        gates: Sequence[Gate],
        tickets: Callable[[], int],
        *,
        setup_patience: float = SETUP_PATIENCE,
        on_setup: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.gates = tuple(gates)
        self._tickets = tickets
        self._setup_patience = setup_patience
        self._on_setup = on_setup
        self._limits: dict[HandBackReason, float] = {}
        self._line: OrderedDict[int, _Waiter] = OrderedDict()
        self._ends: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        self.is_awaited = False
        for gate in self.gates:
            gate.routes.append(self)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def is_closed(self) -> bool:
        """Whether every deployment is paused, or our set-up wrong there."""
        return self.blocked_until > loop_time()

    @property
    def blocked_until(self) -> float:
        """When the first pause ends or the first probe is due; in the past where a deployment is not closed."""
        return min([gate.blocked_until for gate in self.gates])

    @property
    def setup_trouble(self) -> str | None:
        """What is wrong with our set-up where no deployment can be called for it."""
        details = [gate.setup.detail for gate in self.gates]
        return None if None in details else "; ".join(dict.fromkeys(filter(None, details)))

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it: no call, nobody in line, nothing closed."""
        return not (self._line or self.is_closed or any(gate.in_flight for gate in self.gates))

    @property
    def oldest_ticket(self) -> int:
        return next(iter(self._line))

    async def admit(self, cost: Cost, *, until: float) -> Permit:
        """Wait in line for a place at the first of the gates that has one.

        Raises HandedBack at `until`, and as soon as it is known that no gate will be open by then.
        """
        now = loop_time()
        if not self._line and (gate := self._ready_gate(now)) is not None:
            return gate.enter(cost, now)
        limit, reason = self._first_limit()
        if min(until, limit) <= max(now, self.blocked_until):
            raise HandedBack(reason if limit < until else HandBackReason.PARKED)
        return await self._wait(_Waiter(self._tickets(), cost, until))

    def limit_waiting(self, reason: HandBackReason, until: float) -> None:
        """Hand back who still waits then, and afterwards whoever cannot go at once; until `unlimit`."""
        self._limits[reason] = until
        self._set_timer(loop_time())

    def unlimit(self, reason: HandBackReason) -> None:
        self._limits.pop(reason, None)

    def wanted(self, now: float) -> Wanted:
        """When another job is wanted here; only one where it could do no more than probe a deployment."""
        usable = [gate for gate in self.gates if not gate.is_probed]
        wanted = [Wanted(at=gate.ready_at(now), is_probe=True) for gate in self.gates if gate.is_probed]
        if usable:
            wanted.append(Wanted(at=self._opens_at(usable, now)))
        return min(wanted, key=_moment)

    def _opens_at(self, gates: Sequence[Gate], now: float) -> float:
        """-inf if now, infinity where that depends on the end of a call.

        A few are wanted in line before their turn, as a receive takes its time.
        """
        opens_at = min([gate.opens_at for gate in gates])
        if opens_at > now:
            return opens_at
        ready_at = min([gate.ready_at(now) for gate in gates])
        open_gates = [gate for gate in gates if gate.opens_at <= now]
        pace = sum([gate.jobs_a_second() for gate in open_gates])
        if math.isinf(pace) or math.isinf(ready_at):
            is_supplied = self.waiting >= max(1.0, sum([gate.limit for gate in open_gates]) / 4)
            self.is_awaited = is_supplied and ready_at == math.inf
            return ready_at if is_supplied else -math.inf
        surplus = max(0.0, ready_at - now) + self.waiting / pace - LOOKAHEAD
        return now + surplus if surplus > 0 else -math.inf

    def note_pause(self) -> None:
        """Hand back whose patience ends before the pause does. The timer, ringing early, will set itself again."""
        self._hand_back(self.blocked_until)

    def note_probation(self) -> None:
        """The clock of the patience runs from when the last gate became wrong, until any works."""
        if self.setup_trouble is None:
            self.unlimit(HandBackReason.SETUP)
        elif HandBackReason.SETUP not in self._limits:
            self.limit_waiting(HandBackReason.SETUP, loop_time() + self._setup_patience)
        self._hand_back(self.blocked_until)
        self._on_setup()

    def let_in(self, now: float) -> None:
        """Hand permits to those in front, as many as there are places."""
        while self._line and (gate := self._ready_gate(now)) is not None:
            _, waiter = self._line.popitem(last=False)
            if not waiter.future.done():  # not cancelled
                waiter.future.set_result(gate.enter(waiter.cost, now))
        self._set_timer(now)

    def _ready_gate(self, now: float) -> Gate | None:
        for gate in self.gates:
            if gate.ready_at(now) <= now:
                return gate
        return None

    async def _wait(self, waiter: _Waiter) -> Permit:
        self._line[waiter.ticket] = waiter
        heapq.heappush(self._ends, (waiter.until, waiter.ticket))
        self._set_timer(loop_time())
        try:
            permit = await waiter.future
        except asyncio.CancelledError:
            self._forget(waiter)
            raise
        if isinstance(permit, HandBackReason):
            raise HandedBack(permit)
        return permit

    def _forget(self, waiter: _Waiter) -> None:
        """Of a job that was cancelled while it waited, or just after it was let in."""
        self._line.pop(waiter.ticket, None)
        if not waiter.future.cancelled() and isinstance(permit := waiter.future.result(), Permit):
            permit.__exit__(None, None, None)

    def _hand_back(self, until: float) -> None:
        """Those who would not wait longer than `until`."""
        while self._first_end() <= until:
            self._end_wait(heapq.heappop(self._ends)[1], HandBackReason.PARKED)
        limit, reason = self._first_limit()
        if limit <= until:
            for ticket in tuple(self._line):
                self._end_wait(ticket, reason)

    def _end_wait(self, ticket: int, reason: HandBackReason) -> None:
        waiter = self._line.pop(ticket)
        if not waiter.future.done():
            waiter.future.set_result(reason)

    def _first_limit(self) -> tuple[float, HandBackReason]:
        return min(((until, reason) for reason, until in self._limits.items()), default=_NO_LIMIT)

    def _first_end(self) -> float:
        while self._ends and self._ends[0][1] not in self._line:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def _set_timer(self, now: float) -> None:
        """One for the whole line: when the first may go, or has waited long enough."""
        when = math.inf
        if self._line:
            when = min(self._first_end(), self._first_limit()[0], *[gate.ready_at(now) for gate in self.gates])
        if when == self._rings_at:
            return
        self._rings_at = when
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(when, self._on_time, when) if when < math.inf else None

    def _on_time(self, when: float) -> None:
        self._timer, self._rings_at = None, math.inf
        now = max(loop_time(), when)  # timers ring a little early
        for route in by_age(route for gate in self.gates for route in gate.routes):
            route.let_in(now)
        self._hand_back(now)
        self._set_timer(now)


class Gates:
    """The routes of every model.

    `routes` is None under `passthrough`: the model's name is the deployment's name at `endpoint`. `slots` is the
    most calls that this pod will have under way. `on_change` is called where `wanted` could not tell a time, when
    it may have come; `on_setup` with what is wrong with our set-up for some model, and with None once nothing is.
    """

    def __init__(
        self,
        routes: Mapping[str, Sequence[Target]] | None,
        *,
        endpoint: str,
        observer: Observer,
        slots: int,
        fleet_size: int = 1,
        setup_patience: float = SETUP_PATIENCE,
        on_change: Callable[[], None] = lambda: None,
        on_setup: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._endpoint = endpoint
        self._on_change = on_change
        self._on_setup = on_setup
        self._is_passthrough = routes is None
        self._gate = partial(Gate, observer=observer, fleet_size=fleet_size, slots=slots, on_change=on_change)
        self._route = partial(
            Route, tickets=count().__next__, setup_patience=setup_patience, on_setup=self._note_setup
        )
        gates = {target: self._gate(target) for targets in (routes or {}).values() for target in targets}
        self._routes = {
            model: self._route(model, [gates[target] for target in targets])
            for model, targets in (routes or {}).items()
        }

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._routes)

    def all(self) -> Iterable[Gate]:
        return {gate.target: gate for route in self._routes.values() for gate in route.gates}.values()

    def of(self, model: str) -> Route | None:
        """The gates that can carry a model, None if it is not allowed here."""
        return self._bring_in(model) if self._is_passthrough else self._routes.get(model)

    def _bring_in(self, model: str) -> Route | None:
        route = self._routes.pop(model, None) or self._make_way_for(model)
        if route is not None:
            self._routes[model] = route  # as the one that was asked for last
        return route

    def _make_way_for(self, model: str) -> Route | None:
        if len(self._routes) >= MAX_PASSTHROUGH_MODELS:
            idle = next((name for name, route in self._routes.items() if route.is_idle), None)
            if idle is None:
                return None
            del self._routes[idle]
        return self._route(model, [self._gate(Target(deployment=model, endpoint=self._endpoint))])

    def note_token(self, scope: str) -> None:
        """A token has come; jobs go on at once at the gates that were closed for want of it."""
        for gate in self.all():
            gate.note_token(scope)

    def wanted(self, models: Iterable[str] | None = None) -> Wanted:
        """When a job of one of these models is wanted, of any model if none are named."""
        now = loop_time()
        names = self._routes if models is None else models
        wanted = [route.wanted(now) if (route := self._routes.get(name)) else Wanted() for name in names]
        return min(wanted, default=Wanted(), key=_moment)

    def limit_waiting(self, reason: HandBackReason, until: float) -> None:
        for route in self._routes.values():
            route.limit_waiting(reason, until)

    def unlimit(self, reason: HandBackReason) -> None:
        for route in self._routes.values():
            route.unlimit(reason)

    def _note_setup(self) -> None:
        troubles = [
            f"{route.model}: {detail}" for route in self._routes.values() if (detail := route.setup_trouble)
        ]
        self._on_setup("; ".join(troubles) or None)
        self._on_change()


def _moment(wanted: Wanted) -> float:
    return wanted.at
