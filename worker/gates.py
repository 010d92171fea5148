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

from worker.budgets import Cost
from worker.errors import HandedBack
from worker.gate import Gate, Permit, by_age
from worker.interfaces import Observer, Target
from worker.outcomes import HandBackReason
from worker.waits import loop_time

MAX_PASSTHROUGH_MODELS = 64
"""Models that producers may bring in under `passthrough`: each is a gate and a value of a metric's label."""

LOOKAHEAD = 2.0
"""Seconds' worth of jobs to keep waiting at a gate that paces them, so that it never waits for a receive."""


class _Waiter:
    """A job in line. Its future brings the permit, or None where it must not wait any longer."""

    __slots__ = ("cost", "future", "ticket", "until")

    def __init__(self, ticket: int, cost: Cost, until: float) -> None:
        self.ticket = ticket
        self.cost = cost
        self.until = until
        self.future: asyncio.Future[Permit | None] = asyncio.get_running_loop().create_future()


class Route:
    """The gates that can carry a model, in the order in which they are preferred, and the jobs that wait for one.

    First come, first served: also among routes that share a gate.
    """

    def __init__(self, model: str, gates: Sequence[Gate], tickets: Callable[[], int]) -> None:
        self.model = model
        self.gates = tuple(gates)
        self._tickets = tickets
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
        """Whether every deployment is paused."""
        return self.blocked_until > loop_time()

    @property
    def blocked_until(self) -> float:
        """When the first pause ends; in the past where a deployment is not paused."""
        return min(gate.opens_at for gate in self.gates)

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
        if until <= max(now, self.blocked_until):
            raise HandedBack(HandBackReason.PARKED)
        return await self._wait(_Waiter(self._tickets(), cost, until))

    def opens_at(self, now: float) -> float:
        """When another job is wanted here; -inf if now, infinity where that depends on the end of a call.

        A few are wanted in line before their turn, as a receive takes its time.
        """
        if self.blocked_until > now:
            return self.blocked_until
        ready_at = min([gate.ready_at(now) for gate in self.gates])
        open_gates = [gate for gate in self.gates if gate.opens_at <= now]
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
        if permit is None:
            raise HandedBack(HandBackReason.PARKED)
        return permit

    def _forget(self, waiter: _Waiter) -> None:
        """Of a job that was cancelled while it waited, or just after it was let in."""
        self._line.pop(waiter.ticket, None)
        if not waiter.future.cancelled() and (permit := waiter.future.result()) is not None:
            permit.__exit__(None, None, None)

    def _hand_back(self, until: float) -> None:
        """Those who would not wait longer than `until`."""
        while self._first_end() <= until:
            waiter = self._line.pop(heapq.heappop(self._ends)[1])
            if not waiter.future.done():
                waiter.future.set_result(None)

    def _first_end(self) -> float:
        while self._ends and self._ends[0][1] not in self._line:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def _set_timer(self, now: float) -> None:
        """One for the whole line: when the first may go, or has waited long enough."""
        when = math.inf
        if self._line:
            when = min(self._first_end(), *[gate.ready_at(now) for gate in self.gates])
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
    most calls that this pod will have under way. `on_change` is called where `opens_at` could not tell a time, when
    it may have come.
    """

    def __init__(
        self,
        routes: Mapping[str, Sequence[Target]] | None,
        *,
        endpoint: str,
        observer: Observer,
        slots: int,
        fleet_size: int = 1,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._is_passthrough = routes is None
        self._gate = partial(Gate, observer=observer, fleet_size=fleet_size, slots=slots, on_change=on_change)
        self._tickets = count().__next__
        gates = {target: self._gate(target) for targets in (routes or {}).values() for target in targets}
        self._routes = {
            model: Route(model, [gates[target] for target in targets], self._tickets)
            for model, targets in (routes or {}).items()
        }

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._routes)

    def all(self) -> Iterable[Gate]:
        return {gate.target: gate for route in self._routes.values() for gate in route.gates}.values()

    def of(self, model: str) -> Route | None:
        """The gates that can carry a model, None if it is not allowed here."""
        route = self._routes.get(model)
        if route is None and self._is_passthrough and len(self._routes) < MAX_PASSTHROUGH_MODELS:
            gate = self._gate(Target(deployment=model, endpoint=self._endpoint))
            route = self._routes[model] = Route(model, [gate], self._tickets)
        return route

    def opens_at(self, models: Iterable[str] | None = None) -> float:
        """When a job of one of these models is wanted, of any model if none are named; -inf if now."""
        now = loop_time()
        names = self._routes if models is None else models
        return min([self._opens_at(name, now) for name in names], default=-math.inf)

    def _opens_at(self, model: str, now: float) -> float:
        route = self._routes.get(model)
        return -math.inf if route is None else route.opens_at(now)
