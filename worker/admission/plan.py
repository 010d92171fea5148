"""What to do next: who may call, who is handed back, which queue may be received and how much.

The problem: slots, memory, budgets, pauses, probes, suspects and deadlines all have a say in that, and each may
change at any time. The idea, as in httpcore's `_assign_requests_to_connections`: one function without I/O looks at
the whole state and says the first thing that can be done, or until when nothing can. `Admission.run` does it and
asks again; whatever changes the state rings one bell. So no rule needs to know what made it apply.

The cost of a decision grows with the queues and models, never with the jobs in flight or waiting: only the head of
each line is looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from worker.admission.closures import Closures
from worker.admission.gate import Gate
from worker.admission.intake import QueueIntake
from worker.admission.memory import Memory
from worker.admission.routes import Demand, Route, Routes, Waiter
from worker.admission.suspects import GATE_PATIENCE, Suspect, Suspects
from worker.jobs.outcomes import HandBackReason


@dataclass(slots=True, kw_only=True)
class State:
    """All that a decision depends on.

    A slot is taken by a delivery and free once its result is written; the delivery stays held until it is settled.
    While its gate is closed it takes none, or a throttled model would leave half of the slots to the others. At
    most twice the slots are held, so neither these nor slow settlements can pile up without end; of each queue that
    was empty one message may come beyond the slots.
    """

    slots: int
    setup_patience: float
    routes: Routes
    memory: Memory
    closures: Closures
    suspects: Suspects = field(default_factory=Suspects)
    intakes: list[QueueIntake] = field(default_factory=list)
    held: int = 0
    aside: int = 0
    """Deliveries that take no slot, as their jobs wait for something other than a call."""
    sorting: int = 0
    """Messages that the sorter holds, or that may come to it."""
    is_stopping: bool = False

    @property
    def in_flight(self) -> int:
        return sum([intake.in_flight for intake in self.intakes])

    @property
    def may_call(self) -> bool:
        """Whether one call more may be under way. The jobs that wait at closed gates take no slots, so when these
        open there are more jobs than calls that we can carry."""
        return sum([gate.in_flight for gate in self.routes.gates]) < self.slots

    def busy(self, now: float) -> int:
        """Deliveries that take a slot: all but the jobs that wait at closed gates."""
        return self.in_flight - sum([route.waiting for route in self.routes.all if route.blocked_until > now])

    @property
    def is_anyone_waiting(self) -> bool:
        return any(route.line for route in self.routes.all)

    @property
    def is_over(self) -> bool:
        """Whether nothing will ever have to be decided again."""
        return (
            self.is_stopping
            and not self.held + self.aside
            and not any(intake.reserved or intake.asks for intake in self.intakes)
        )


@dataclass(frozen=True, slots=True)
class GrantPermit:
    """Let the first of a line in at a gate."""

    route: Route
    waiter: Waiter
    gate: Gate


@dataclass(frozen=True, slots=True)
class HandBack:
    """End a wait that can bring nothing more in time."""

    route: Route
    waiter: Waiter
    reason: HandBackReason


@dataclass(frozen=True, slots=True)
class DecideSuspect:
    """Let a suspect run, or hand it back."""

    suspect: Suspect
    may_run: bool


@dataclass(frozen=True, slots=True)
class Receive:
    """Let a receiver that asks receive so many messages; none once it is stopping."""

    intake: QueueIntake
    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done before `until`, unless the state changes."""

    until: float


Step = GrantPermit | HandBack | DecideSuspect | Receive | Wait


def plan(state: State, now: float) -> Step:
    """The first thing to do at `now`, a time of the event loop's clock. Changes nothing that can be seen."""
    waiting = sorted([route for route in state.routes.all if route.line], key=_ticket)
    suspects = state.suspects
    if suspects.waiting and not suspects.together:
        # a receive that is under way would bring what is handed back again
        others = state.held + state.sorting + sum([intake.reserved for intake in state.intakes])
        if (decision := suspects.decide(others)) is not None:
            return DecideSuspect(*decision)
    may_call = bool(waiting) and state.may_call
    for route in waiting if may_call else ():
        if (gate := route.ready_gate(now)) is not None:
            return GrantPermit(route, route.line.first, gate)
    until = math.inf
    for route in waiting:
        hand_back, at = _hand_back(state, route, now)
        if hand_back is not None:
            return hand_back
        until = min(until, at, route.ready_at(now) if may_call else math.inf)
    for intake in sorted([intake for intake in state.intakes if intake.asks is not None], key=_asked):
        count, at = room(state, intake, now)
        if count or state.is_stopping:
            return Receive(intake, count)
        until = min(until, at)
    return Wait(until)


def _ticket(route: Route) -> int:
    return route.line.first.ticket


def _asked(intake: QueueIntake) -> int:
    return intake.asked


def _hand_back(state: State, route: Route, now: float) -> tuple[HandBack | None, float]:
    """Whose wait ends now, or is known to be in vain; else when the next one ends."""
    known_until = max(now, route.blocked_until)
    limit, reason = _patience(state, route)
    if limit <= known_until:
        return HandBack(route, route.line.first, reason), now
    waiter = route.line.least_patient
    if waiter.until <= known_until:
        return HandBack(route, waiter, HandBackReason.PARKED), now
    return None, min(limit, waiter.until)


def _patience(state: State, route: Route) -> tuple[float, HandBackReason]:
    """Until when anybody may wait there: suspects must not wait for gates, nor jobs long for our set-up,
    unless a role is spreading. Then none
    is kept but one that probes."""
    return min(
        (state.suspects.since + GATE_PATIENCE, HandBackReason.SUSPECT),
        (route.waits_for_setup_until(state.setup_patience), HandBackReason.SETUP),
    )


def room(state: State, intake: QueueIntake, now: float) -> tuple[int, float]:
    """How many messages may be asked for, and when that may change by itself."""
    if state.is_stopping or state.closures.stops_receiving:
        return 0, math.inf
    reserved = sum([other.reserved for other in state.intakes])
    # what waits at an empty queue holds up nobody; should a message come there, it is one too many
    idle = sum([other.reserved for other in state.intakes if not other.has_backlog]) if intake.has_backlog else 0
    free = min(state.slots - state.busy(now), 2 * state.slots - state.held) - reserved + idle
    if free <= 0:
        return 0, math.inf
    if state.closures.is_half_open:
        may_probe = intake.is_owed or not any(other.is_owed for other in state.intakes)
        return (0 if state.in_flight or reserved or not may_probe else 1), math.inf
    demand = demand_of(state, intake, now)
    if demand.at > now:
        return 0, demand.at
    mates = [other for other in state.intakes if other.queue == intake.queue]
    if demand.is_probe:
        is_probing = any(mate.in_flight or mate.reserved for mate in mates)
        return (0 if is_probing else 1), math.inf
    wanted = demand.count - sum([mate.reserved for mate in mates])
    fair = _fair_share(state, intake, free, now)
    return max(0, int(min(wanted, fair, state.memory.fitting(reserved - idle)))), math.inf


def demand_of(state: State, intake: QueueIntake, now: float) -> Demand:
    """When a job of its queue is wanted."""
    demand = state.routes.demand(intake.models, now)
    return demand if demand.at >= intake.backed_off_until else replace(demand, at=intake.backed_off_until)


def _fair_share(state: State, intake: QueueIntake, free: int, now: float) -> int:
    """Of so many free slots, those that other queues are not owed.

    Each queue has an equal share of the slots, however many receivers it has, for as long as it has messages; what
    one leaves, the others use. One that was found empty is asked for one message only, so that waiting for it holds
    no slots.
    """
    queues: dict[str, list[QueueIntake]] = {}
    for other in state.intakes:
        queues.setdefault(other.queue, []).append(other)
    if len(queues) == 1:
        return free
    if not intake.has_backlog:
        return 1
    fair = max(1, state.slots // len(queues))
    taken = _taken(queues.pop(intake.queue))
    owed = sum([max(0, fair - _taken(others)) for others in queues.values() if _is_owed(state, others, now)])
    return max(free - owed, min(free, fair - taken), 0)


def _taken(intakes: Sequence[QueueIntake]) -> int:
    return sum([intake.in_flight + intake.reserved for intake in intakes])


def _is_owed(state: State, intakes: Sequence[QueueIntake], now: float) -> bool:
    """Whether a queue could be received now, beyond a probe."""
    if not any(intake.is_owed for intake in intakes):
        return False
    demand = demand_of(state, intakes[0], now)
    return demand.at <= now and not demand.is_probe
