"""The gates that can carry each model, and the jobs that wait for one: state that `plan.py` decides on."""

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from worker.admission.costs import Cost
from worker.admission.gate import Entry, Gate
from worker.interfaces import Target
from worker.jobs.outcomes import HandBackReason

MAX_PASSTHROUGH_MODELS = 64
"""Models that producers may bring in under `passthrough` at a time: each is a gate. The one that was asked for
longest ago makes way, where it is idle."""

LOOKAHEAD = 2.0
"""Seconds' worth of jobs to keep waiting at a gate that paces them, so that it never waits for a receive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """When jobs are wanted: in the past if now, infinity if nobody knows; and how many. `is_probe`: one, to find
    out."""

    at: float = -math.inf
    is_probe: bool = False
    count: float = math.inf


class Waiter:
    """A job that waits at its route since it drew its `ticket`, until `until` at most.

    `decided` brings its entry at a gate, or the reason why it is handed back.
    """

    __slots__ = ("cost", "decided", "ticket", "until")

    def __init__(
        self, ticket: int, cost: Cost, until: float, decided: asyncio.Future[Entry | HandBackReason]
    ) -> None:
        self.ticket = ticket
        self.cost = cost
        self.until = until
        self.decided = decided


class Line:
    """Those who wait, first come first served. Every question costs the same however many there are."""

    def __init__(self) -> None:
        self._waiters: OrderedDict[int, Waiter] = OrderedDict()
        self._ends: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def first(self) -> Waiter:
        """Who has waited longest; there must be one."""
        return next(iter(self._waiters.values()))

    @property
    def least_patient(self) -> Waiter:
        """Whose wait ends first; there must be one."""
        while self._ends[0][1] not in self._waiters:
            heapq.heappop(self._ends)
        return self._waiters[self._ends[0][1]]

    def add(self, waiter: Waiter) -> None:
        self._waiters[waiter.ticket] = waiter
        heapq.heappush(self._ends, (waiter.until, waiter.ticket))

    def remove(self, waiter: Waiter) -> None:
        """Nothing happens where it has left already."""
        self._waiters.pop(waiter.ticket, None)
        if not self._waiters:
            self._ends.clear()


class Route:
    """The gates that can carry a model, preferred ones first, and the jobs that wait for one."""

    def __init__(self, model: str, gates: Sequence[Gate]) -> None:
        self.model = model
        self.gates = tuple(gates)
        self.line = Line()

    @property
    def waiting(self) -> int:
        return len(self.line)

    @property
    def blocked_until(self) -> float:
        """When the first pause ends or the first probe is due; in the past where a deployment is not closed."""
        return min([gate.blocked_until for gate in self.gates])

    @property
    def setup_trouble(self) -> str | None:
        """What is wrong with our set-up where no deployment can be called for it."""
        details = [gate.setup.detail for gate in self.gates]
        return None if None in details else "; ".join(dict.fromkeys(filter(None, details)))

    def waits_for_setup_until(self, patience: float) -> float:
        """Until when jobs wait for our set-up to be fixed: `patience` seconds from when it became wrong at the last
        gate, or as long as a role may spread there. Infinity while it is right at one."""
        return max([gate.setup.waits_until(patience) for gate in self.gates])

    def is_idle(self, now: float) -> bool:
        """Whether nothing would be lost with it: no call, nobody in line, nothing closed."""
        return not (self.line or self.blocked_until > now or any(gate.in_flight for gate in self.gates))

    def ready_gate(self, now: float) -> Gate | None:
        """The first that can take a job."""
        for gate in self.gates:
            if gate.ready_at(now) <= now:
                return gate
        return None

    def ready_at(self, now: float) -> float:
        """When one can; infinity where a call must end first."""
        return min([gate.ready_at(now) for gate in self.gates])

    def demand(self, now: float) -> Demand:
        """When another job is wanted here; only one where it could do no more than probe a deployment."""
        usable = [gate for gate in self.gates if not gate.is_probed]
        demands = [Demand(at=gate.ready_at(now), is_probe=True, count=1) for gate in self.gates if gate.is_probed]
        if usable:
            demands.append(self._demand_of(usable, now))
        return min(demands, key=_moment)

    def _demand_of(self, gates: Sequence[Gate], now: float) -> Demand:
        """A few are wanted in line before their turn, as a receive takes its time: those of the look-ahead; where
        nothing paces them, a quarter of the calls that may be under way."""
        opens_at = min([gate.opens_at for gate in gates])
        if opens_at > now:
            return Demand(at=opens_at)
        ready_at = min([gate.ready_at(now) for gate in gates])
        open_gates = [gate for gate in gates if gate.opens_at <= now]
        pace = sum([gate.jobs_a_second() for gate in open_gates])
        if math.isinf(pace) or ready_at == math.inf:
            limit = sum([gate.limit for gate in open_gates])
            places = limit - sum([gate.in_flight for gate in open_gates])
            wanted = max(0, places) + max(1, limit // 4) - self.waiting
            return Demand(count=wanted) if wanted > 0 else Demand(at=ready_at if places <= 0 else math.inf)
        ahead = LOOKAHEAD - max(0.0, ready_at - now) - self.waiting / pace
        return Demand(count=max(1, int(ahead * pace))) if ahead >= 0 else Demand(at=now - ahead)


class Routes:
    """The route of every model.

    `targets` is None under `passthrough`: the model's name is the deployment's name at `endpoint`. `slots` is the
    most calls that this pod will have under way.
    """

    def __init__(
        self, targets: Mapping[str, Sequence[Target]] | None, *, endpoint: str, slots: int, fleet_size: int = 1
    ) -> None:
        self._endpoint = endpoint
        self._is_passthrough = targets is None
        self._gate = partial(Gate, fleet_size=fleet_size, slots=slots)
        gates = {target: self._gate(target) for some in (targets or {}).values() for target in some}
        self._routes = {
            model: Route(model, [gates[target] for target in some]) for model, some in (targets or {}).items()
        }

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._routes)

    @property
    def all(self) -> Iterable[Route]:
        return self._routes.values()

    @property
    def gates(self) -> Sequence[Gate]:
        """Each once, however many models it serves."""
        return list({gate.target: gate for route in self.all for gate in route.gates}.values())

    def has(self, model: str) -> bool:
        return model in self._routes

    def of(self, model: str, now: float) -> Route | None:
        """The gates that can carry a model, None if it is not allowed here."""
        return self._bring_in(model, now) if self._is_passthrough else self._routes.get(model)

    def waiting_at(self, gate: Gate) -> int:
        """Jobs that wait for this deployment or, on routes that have several, for another."""
        return sum(route.waiting for route in self.all if gate in route.gates)

    def demand(self, models: Iterable[str] | None, now: float) -> Demand:
        """When a job of one of these models is wanted, of any model if none are named."""
        names = self._routes if models is None else models
        demands = [route.demand(now) if (route := self._routes.get(name)) else Demand() for name in names]
        first = min(demands, default=Demand(), key=_moment)
        # under `passthrough` jobs may ask for models that have no route yet
        if not demands or (models is None and self._is_passthrough):
            return replace(first, count=math.inf)
        return replace(first, count=sum([demand.count for demand in demands if demand.at <= now]))

    def setup_trouble(self) -> str | None:
        """What is wrong with our set-up for the models that cannot be called for it."""
        troubles = [f"{route.model}: {detail}" for route in self.all if (detail := route.setup_trouble)]
        return "; ".join(troubles) or None

    def _bring_in(self, model: str, now: float) -> Route | None:
        route = self._routes.pop(model, None) or self._make_way_for(model, now)
        if route is not None:
            self._routes[model] = route  # as the one that was asked for last
        return route

    def _make_way_for(self, model: str, now: float) -> Route | None:
        if len(self._routes) >= MAX_PASSTHROUGH_MODELS:
            idle = next((name for name, route in self._routes.items() if route.is_idle(now)), None)
            if idle is None:
                return None
            del self._routes[idle]
        return Route(model, [self._gate(Target(deployment=model, endpoint=self._endpoint))])


def _moment(demand: Demand) -> float:
    return demand.at
