"""The one room for admission: what may be received, which deployment takes a job now, and who waits for what.

`plan.py` decides, and `run` does what it says. Everything else here changes the state and rings the bell.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from types import TracebackType
from typing import Any, Self

from worker.admission.closures import Closure, Closures
from worker.admission.costs import Cost
from worker.admission.gate import CallResult, Entry
from worker.admission.intake import QueueIntake
from worker.admission.memory import Memory
from worker.admission.plan import (
    DecideSuspect,
    GrantPermit,
    HandBack,
    Receive,
    State,
    Step,
    Wait,
    demand_of,
    plan,
)
from worker.admission.routes import Route, Routes, Waiter
from worker.admission.suspects import Suspect, cohort_size, is_suspect
from worker.errors import CallFailed, HandedBack
from worker.interfaces import Observer, Target
from worker.jobs.batch_records import FOR_SO_LONG
from worker.jobs.outcomes import HandBackReason
from worker.waits import EARLY, Bell, loop_time

SETUP_PATIENCE = 60.0
"""Seconds for which jobs wait for our set-up to be fixed; for a role that spreads it is `probing.ROLE_GRACE`."""

ASIDE_AT_MOST = 1_000
"""Deliveries that are set aside under their locks, all of which must be renewed."""


class Admission:
    """Slots, memory, gates, waiting jobs, suspects and closures of a pod. `run` must run for anybody to get on.

    `targets`, `endpoint` and `fleet_size` are those of `Routes`. `bytes_limit` bounds the bodies and answers in
    flight, see `memory.py`.
    """

    def __init__(
        self,
        targets: Mapping[str, Sequence[Target]] | None,
        *,
        slots: int,
        observer: Observer,
        endpoint: str = "",
        fleet_size: int = 1,
        bytes_limit: float = math.inf,
        setup_patience: float = SETUP_PATIENCE,
    ) -> None:
        self._observer = observer
        self._bell = Bell()
        self._hand_back_bell = Bell()
        self._tickets = count()
        self.state = State(
            slots=slots,
            setup_patience=setup_patience,
            routes=Routes(targets, endpoint=endpoint, slots=slots, fleet_size=fleet_size),
            memory=Memory(bytes_limit, self._bell),
            closures=Closures(observer),
        )

    async def run(self) -> None:
        """Do what can be done, as soon as it can; until it is stopped and nothing is held any more."""
        now = loop_time()
        while not self.state.is_over:
            match plan(self.state, now):
                case Wait(until):
                    await self._bell.wait(until)
                    now = loop_time()
                    if until - EARLY <= now < until:  # timers ring a little early
                        now = until
                case step:
                    self._do(step, now)

    def _do(self, step: Step, now: float) -> None:
        match step:
            case GrantPermit(route, waiter, gate):
                route.line.remove(waiter)
                if not waiter.decided.done():  # not cancelled
                    waiter.decided.set_result(gate.enter(waiter.cost, now))
            case HandBack(route, waiter, reason):
                route.line.remove(waiter)
                if not waiter.decided.done():
                    waiter.decided.set_result(reason)
            case DecideSuspect(suspect, may_run):
                self._decide_suspect(suspect, may_run)
            case Receive(intake, count):
                asks, intake.asks = intake.asks, None
                if asks is not None and not asks.done():
                    intake.reserved = count
                    asks.set_result(count)

    # Receiving

    def intake(self, queue: str, models: frozenset[str] | None = None) -> QueueIntake:
        """For a receiver of `queue`, whose jobs may ask for these models; None: all."""
        intake = QueueIntake(queue, models)
        self.state.intakes.append(intake)
        return intake

    async def room(self, intake: QueueIntake) -> int:
        """How many messages to ask for, at least 1, waiting until there is room; 0 once it is stopping.

        They are reserved until `received` or `not_received` tells what came of it.
        """
        if self.state.is_stopping:
            return 0
        asks: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        intake.asks, intake.asked = asks, next(self._tickets)
        self._bell.ring()
        try:
            count = await asks
        except asyncio.CancelledError:
            self._take_back(intake)
            raise
        if self.state.is_stopping:
            self._take_back(intake)
            return 0
        return count

    def _take_back(self, intake: QueueIntake) -> None:
        """It will not receive after all."""
        intake.asks, intake.reserved = None, 0
        self._bell.ring()

    def received(self, intake: QueueIntake, count: int) -> None:
        intake.has_backlog = count > 0
        self._end_receive(intake, None)

    def not_received(self, intake: QueueIntake, detail: str) -> None:
        """The queue could not be received; the others go on."""
        self._end_receive(intake, detail)

    def _end_receive(self, intake: QueueIntake, trouble: str | None) -> None:
        intake.reserved, intake.trouble = 0, trouble
        troubles = sorted({other.trouble for other in self.state.intakes if other.trouble})
        self.state.closures.note(Closure.SOURCE, "; ".join(troubles) or None)
        self._bell.ring()

    def slot(self, intake: QueueIntake, size: int = 0) -> "Slot":
        """For a delivery of `size` bytes, which has come."""
        return Slot(self, intake, size)

    # Calling

    def route(self, model: str) -> Route | None:
        """The gates that can carry a model, None if it is not allowed here. It may make way for another once it is
        idle, so nobody may keep it."""
        routes = self.state.routes
        is_new = not routes.has(model)
        route = routes.of(model, loop_time())
        if is_new and route is not None:
            self._note_setup()  # what was wrong may have been a route that made way
        return route

    async def admit(self, model: str, cost: Cost, *, until: float = math.inf) -> "Permit":
        """Wait in line for a place at the first of the model's gates that has one. First come, first served, also
        among models that share a gate.

        Raises HandedBack at `until`, and as soon as it is known that no gate will be open by then.
        """
        now = loop_time()
        route = self.route(model)  # each time: under `passthrough` an idle route makes way for another
        if route is None:
            raise HandedBack(HandBackReason.PARKED)
        if not self.state.is_anyone_waiting and self.state.may_call and (gate := route.ready_gate(now)) is not None:
            return Permit(self, gate.enter(cost, now))
        waiter = Waiter(next(self._tickets), cost, until, asyncio.get_running_loop().create_future())
        route.line.add(waiter)
        self._bell.ring()
        try:
            decided = await waiter.decided
        except asyncio.CancelledError:
            self._forget(route, waiter)
            raise
        if isinstance(decided, HandBackReason):
            raise HandedBack(decided)
        return Permit(self, decided)

    def _forget(self, route: Route, waiter: Waiter) -> None:
        """Of a job that was cancelled while it waited, or just after it was let in."""
        route.line.remove(waiter)
        self._bell.ring()
        if not waiter.decided.cancelled() and isinstance(entry := waiter.decided.result(), Entry):
            self.leave(entry)

    def leave(self, entry: Entry) -> None:
        """A call is over, however it ended."""
        entry.gate.leave(entry)
        self._bell.ring()

    def observe(self, entry: Entry, result: CallResult) -> None:
        """What a call teaches its gate."""
        setup = entry.gate.setup.detail
        closed = entry.gate.observe(entry, result, loop_time())
        if closed is not None:
            self._observer(closed)
        if entry.gate.setup.detail != setup:
            self._note_setup()

    def note_token(self, scope: str) -> None:
        """A token has come; jobs go on at once at the gates that were closed for want of it."""
        opened = [gate for gate in self.state.routes.gates if gate.note_token(scope)]
        if opened:
            self._note_setup()

    def _note_setup(self) -> None:
        self.state.closures.note(Closure.SETUP, self.state.routes.setup_trouble())
        self._bell.ring()

    # Running apart

    def place(self, delivery_count: int) -> "Place":
        """Every delivery is worked in one. Entering it may wait for all others to end; raises HandedBack where too
        many suspects run already."""
        return Place(self, delivery_count)

    async def _enter(self, delivery_count: int) -> None:
        suspects = self.state.suspects
        if is_suspect(delivery_count):
            await self._enter_apart(cohort_size(delivery_count, self.state.slots))
        elif suspects.apart:  # it was on its way when they began
            raise HandedBack(HandBackReason.SUSPECT)
        else:
            suspects.together += 1

    async def _enter_apart(self, cohort: int) -> None:
        suspect = Suspect(cohort, asyncio.get_running_loop().create_future())
        self.state.suspects.add(suspect, loop_time())
        self._note_suspects()
        try:
            may_run = await suspect.decided
        except asyncio.CancelledError:
            self._forget_suspect(suspect)
            raise
        if not may_run:
            raise HandedBack(HandBackReason.SUSPECT)

    def _decide_suspect(self, suspect: Suspect, may_run: bool) -> None:
        suspects = self.state.suspects
        suspects.waiting.remove(suspect)
        if suspect.decided.done():  # cancelled
            may_run = False
        else:
            suspect.decided.set_result(may_run)
        if may_run:
            suspects.admit(suspect)
        self._note_suspects()

    def _forget_suspect(self, suspect: Suspect) -> None:
        """Of one that was cancelled while it waited, or just after it might run."""
        if suspect in self.state.suspects.waiting:
            self.state.suspects.waiting.remove(suspect)
        elif not suspect.decided.cancelled() and suspect.decided.result():
            self.state.suspects.apart -= 1
        self._note_suspects()

    def _leave(self, delivery_count: int) -> None:
        suspects = self.state.suspects
        if is_suspect(delivery_count):
            suspects.apart -= 1
        else:
            suspects.together -= 1
        self._note_suspects()

    def _note_suspects(self) -> None:
        suspects = self.state.suspects
        suspects.note_end()
        if self.state.closures.note(Closure.SUSPECTS, suspects.detail):
            self._hand_back_bell.ring()
        self._bell.ring()

    # Closing and stopping

    @property
    def closures(self) -> dict[str, str]:
        """What keeps it from receiving, all of it or some queues; reason to detail."""
        return self.state.closures.details

    def close(self, closure: Closure, detail: str) -> None:
        """Something that jobs need is not there; see `closures.py` for what that means and who ends it."""
        self.state.closures.note(closure, detail)

    def open(self, closure: Closure) -> None:
        if self.state.closures.note(closure, None):
            self._bell.ring()

    def stop(self) -> None:
        """Let nothing more in, for good."""
        self.state.is_stopping = True
        self._bell.ring()
        self._hand_back_bell.ring()

    async def stopping(self, until: float) -> bool:
        """Wait until it is stopping, at most until `until`; whether that is so."""
        while not self.state.is_stopping and loop_time() + EARLY < until:
            await self._hand_back_bell.wait(until)
        return self.state.is_stopping

    # Sorting

    def note_sorting(self, change: int) -> None:
        """The sorter holds so many messages more, or may get them; fewer, if it is negative."""
        self.state.sorting += change
        self._bell.ring()

    async def must_hand_back(self, until: float) -> bool:
        """Wait until messages that cannot be sorted now must be handed back, at most until `until`; whether that is
        so: it is stopping, or suspects run apart, whose death would count for them."""
        state = self.state
        while not (state.is_stopping or state.closures.stops_receiving) and loop_time() + EARLY < until:
            await self._hand_back_bell.wait(until)
        return state.is_stopping or state.closures.stops_receiving

    async def may_sort(self) -> bool:
        """Wait while suspects run apart, as their death would count for whatever is held; and while no more can be
        set aside. False once it is stopping."""
        state = self.state
        while not state.is_stopping:
            has_place = state.aside < ASIDE_AT_MOST and state.memory.may_set_aside(0)
            if has_place and not state.closures.stops_receiving:
                return True
            await self._bell.wait()
        return False

    async def settled(self, until: float) -> bool:
        """Wait until nothing is held any more, at most until `until`; whether that is so."""
        while self.state.held + self.state.aside and loop_time() + EARLY < until:
            await self._bell.wait(until)
        return self.state.held + self.state.aside == 0

    # Looking at it, which changes nothing

    def describe(self) -> dict[str, Any]:
        """For /statez: what is under way, and what waits for what and for how long."""
        now, state = loop_time(), self.state
        return {
            "slots": state.slots,
            "in_flight": state.in_flight,
            "in_flight_bytes": state.memory.used,
            "held": state.held,
            "set_aside": state.aside,
            "suspects": state.suspects.count,
            "stopping": state.is_stopping,
            "receiving_stopped_by": self.closures,
            "queues": [
                {
                    "queue": intake.queue,
                    "in_flight": intake.in_flight,
                    "receives_in_seconds": round(max(0.0, demand_of(state, intake, now).at - now), 3),
                    "trouble": intake.trouble,
                }
                for intake in state.intakes
            ],
            "gates": [
                gate.describe(now) | {"waiting": state.routes.waiting_at(gate)} for gate in state.routes.gates
            ],
        }

    def waits(self) -> dict[str, str]:
        """What keeps jobs from being received or called now, by what it concerns."""
        now = loop_time()
        closed = {
            gate.target.label: f"{why}{FOR_SO_LONG}{gate.opens_at - now:.0f} s" if gate.opens_at > now else why
            for gate in self.state.routes.gates
            if (why := gate.waits_for(now))
        }
        return self.closures | closed

    def gauges(self) -> dict[str, dict[str, float | None]]:
        """For metrics: of every gate by its label; None where it is not known."""
        now, routes = loop_time(), self.state.routes
        return {
            gate.target.label: gate.gauges(now) | {"jobs_parked": routes.waiting_at(gate)} for gate in routes.gates
        }


class Permit(AbstractContextManager["Permit"]):
    """A job's place at a deployment, given back at the end of its block.

    Say within it how the call ended, by `observe`; a call that was cancelled teaches nothing.
    """

    __slots__ = ("_admission", "entry")

    def __init__(self, admission: Admission, entry: Entry) -> None:
        self.entry = entry
        self._admission = admission

    @property
    def target(self) -> Target:
        return self.entry.gate.target

    def observe(self, result: CallResult) -> None:
        self._admission.observe(self.entry, result)

    def is_outsized(self, error: CallFailed) -> bool:
        """Whether a 429 is about this job alone, which is larger than a minute's quota."""
        return self.entry.gate.is_outsized(self.entry.cost, error)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.leave(self.entry)


class Place:
    """One delivery's place among those that may run together."""

    __slots__ = ("_admission", "_delivery_count")

    def __init__(self, admission: Admission, delivery_count: int) -> None:
        self._admission = admission
        self._delivery_count = delivery_count

    async def __aenter__(self) -> Self:
        await self._admission._enter(self._delivery_count)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission._leave(self._delivery_count)


class Slot(AbstractContextManager["Slot"]):
    """One delivery's slot and memory. `free` it when the result is written; leaving the block lets the delivery
    go."""

    def __init__(self, admission: Admission, intake: QueueIntake, size: int) -> None:
        self.intake = intake
        self._state = admission.state
        self._bell = admission._bell
        self.memory = self._state.memory.take(size)
        self._is_free = False
        intake.in_flight += 1
        self._state.held += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.free()
        self._state.held -= 1
        self._bell.ring()

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self.intake.in_flight -= 1
            self.memory.free()

    @property
    def may_be_set_aside(self) -> bool:
        return self._state.aside < ASIDE_AT_MOST and self._state.memory.may_set_aside(self.memory.size)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Meanwhile it takes no slot. Its bytes still count, and its lock is kept."""
        self._move_aside(1)
        try:
            yield
        finally:
            self._move_aside(-1)

    def _move_aside(self, count: int) -> None:
        self._state.aside += count
        self._state.memory.aside += count * self.memory.size
        self._state.held -= count
        self.intake.in_flight -= count
        self._bell.ring()
