"""What may happen now, and if not, when: gates of deployments, our own set-up, and the intake of messages.

Arithmetic and time only; times are those of the event loop's clock. Every wait here has a computed end or is
ended by the bell, never by polling.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from worker.errors import HandedBack, RefusedByService, SetupWrong, Throttled
from worker.interfaces import GateClosed, IntakeClosed, IntakeOpened, Observer, Target
from worker.outcomes import HandBackReason
from worker.waits import Bell, loop_time

MAX_PASSTHROUGH_MODELS = 64
"""Models that producers may bring in under `passthrough`: each is a gate and a value of a metric's label."""

DEFAULT_PAUSE = 10.0
"""Seconds a gate stays closed after a 429 that names no time; Azure counts requests over 1 s and 10 s."""

MAX_PAUSE = 600.0
"""No header closes a gate for longer."""

FIRST_PROBE = 5.0
LAST_PROBE = 300.0
"""Seconds between probes of a set-up that is wrong: doubling from the first to the last."""


class Gate:
    """The admission to one deployment. A throttle closes it for every job, for as long as the service asked."""

    def __init__(self, target: Target, observer: Observer) -> None:
        self.target = target
        self.opens_at = -math.inf
        self.reason: str | None = None
        self._observer = observer

    def throttle(self, retry_after: float | None) -> None:
        """Close, never shortening an earlier closing."""
        now = loop_time()
        opens_at = now + (DEFAULT_PAUSE if retry_after is None else min(max(retry_after, 0.0), MAX_PAUSE))
        if opens_at <= self.opens_at:
            return
        more = opens_at - max(now, self.opens_at)
        self.opens_at, self.reason = opens_at, "throttled"
        self._observer(GateClosed(deployment=self.target.deployment, reason="throttled", seconds=more))


class Gates:
    """The gates of every model, in the order in which its deployments are preferred.

    `routes` is None under `passthrough`: the model's name is the deployment's name at `endpoint`.
    """

    def __init__(self, routes: Mapping[str, Sequence[Target]] | None, *, endpoint: str, observer: Observer) -> None:
        self._endpoint = endpoint
        self._observer = observer
        self._passthrough = routes is None
        gates = {target: Gate(target, observer) for targets in (routes or {}).values() for target in targets}
        self._routes = {model: [gates[target] for target in targets] for model, targets in (routes or {}).items()}

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._routes)

    def all(self) -> Iterable[Gate]:
        return {gate.target: gate for gates in self._routes.values() for gate in gates}.values()

    def of(self, model: str) -> Sequence[Gate] | None:
        """The gates that can carry a model, None if it is not allowed here."""
        gates = self._routes.get(model)
        if gates is None and self._passthrough and len(self._routes) < MAX_PASSTHROUGH_MODELS:
            gates = [Gate(Target(deployment=model, endpoint=self._endpoint), self._observer)]
            self._routes[model] = gates
        return gates

    def opens_at(self) -> float:
        """When the first gate of any model opens; -inf while one is open."""
        return min((gate.opens_at for gate in self.all()), default=-math.inf)


async def admit(gates: Sequence[Gate], *, until: float) -> Gate:
    """The first open gate, waiting for one to open.

    Raises HandedBack at once where none will be open by `until`.
    """
    while True:
        now = loop_time()
        for gate in gates:
            if gate.opens_at <= now:
                return gate
        opens_at = min(gate.opens_at for gate in gates)
        if opens_at > until:
            raise HandedBack(HandBackReason.PARKED)
        await asyncio.sleep(opens_at - now)


@dataclass(slots=True)
class _Closure:
    """Why nothing is received. With nothing in flight, one message is let in at `probe_at` to find out."""

    detail: str
    probe_at: float


class Intake:
    """How many messages may be received now: free slots, unless something is wrong.

    A slot is taken by a delivery and free once its result is written; the delivery stays held until it is
    settled. At most twice the slots are held, so slow settlements cannot pile up without end.
    """

    def __init__(
        self, slots: int, observer: Observer, *, gates_open_at: Callable[[], float] = lambda: -math.inf
    ) -> None:
        self.slots = slots
        self.in_flight = 0
        self.held = 0
        self.is_stopping = False
        self._observer = observer
        self._gates_open_at = gates_open_at
        self._closures: dict[str, _Closure] = {}
        self._bell = Bell()

    @property
    def closures(self) -> Mapping[str, str]:
        """What keeps it closed: reason to detail."""
        return {reason: closure.detail for reason, closure in self._closures.items()}

    def close(self, reason: str, detail: str, *, probe_at: float = -math.inf) -> None:
        if reason not in self._closures:
            self._observer(IntakeClosed(reason=reason, detail=detail))
        self._closures[reason] = _Closure(detail, probe_at)

    def open(self, reason: str) -> None:
        if self._closures.pop(reason, None):
            self._observer(IntakeOpened(reason=reason))
            self._bell.ring()

    def stop(self) -> None:
        """Let nothing more in, for good."""
        self.is_stopping = True
        self._bell.ring()

    def slot(self) -> "Slot":
        self.in_flight += 1
        self.held += 1
        return Slot(self)

    async def room(self) -> int:
        """How many messages to ask for, at least 1, waiting until there is room; 0 once it is stopping."""
        while not self.is_stopping:
            room, changes_at = self._room_now(loop_time())
            if room > 0:
                return room
            await self._bell.wait(changes_at)
        return 0

    async def settled(self, until: float) -> bool:
        """Wait until nothing is held any more, at most until `until`; whether that is so."""
        while self.held and loop_time() < until:
            await self._bell.wait(until)
        return self.held == 0

    async def stopping(self, until: float) -> bool:
        """Wait until it is stopping, at most until `until`; whether that is so."""
        while not self.is_stopping and loop_time() < until:
            await self._bell.wait(until)
        return self.is_stopping

    def _room_now(self, now: float) -> tuple[int, float]:
        """Room, and when it may change without the bell."""
        free = min(self.slots - self.in_flight, 2 * self.slots - self.held)
        if free <= 0:
            return 0, math.inf
        if self._closures:
            probe_at = max(closure.probe_at for closure in self._closures.values())
            if self.in_flight:
                return 0, math.inf
            return (1, math.inf) if probe_at <= now else (0, probe_at)
        gates_open_at = self._gates_open_at()
        return (0, gates_open_at) if gates_open_at > now else (free, math.inf)

    def _free(self) -> None:
        self.in_flight -= 1
        self._bell.ring()

    def _let_go(self) -> None:
        self.held -= 1
        self._bell.ring()


class Slot:
    """One delivery's place. `free` it when the result is written; leaving the block lets the delivery go."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._is_free = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.free()
        self._intake._let_go()

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self._intake._free()


class Setup:
    """Whether our own set-up works: identity, roles, deployments.

    Once a call has shown that it does not, the intake is closed and the jobs at hand wait, one of them probing
    after 5 s, 10 s ... 5 min, until a call gets through.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._bell = Bell()
        self._interval = 0.0
        self._probe_at = -math.inf
        self._is_probing = False

    @property
    def is_wrong(self) -> bool:
        return self._interval > 0

    @asynccontextmanager
    async def trial(self, until: float) -> AsyncIterator[None]:
        """Around a call. Raises HandedBack where the turn to probe would not come by `until`."""
        is_probe = self.is_wrong and await self._turn(until)
        if is_probe:
            self._is_probing = True
        try:
            yield
        except SetupWrong as error:
            self._note_wrong(error.detail, is_probe)
            raise
        except (Throttled, RefusedByService):
            self._note_works()
            raise
        else:
            self._note_works()
        finally:
            if is_probe:
                self._is_probing = False
                self._bell.ring()

    async def _turn(self, until: float) -> bool:
        """Whether to probe; False if meanwhile all is well."""
        while self.is_wrong:
            now = loop_time()
            turn = math.inf if self._is_probing else self._probe_at
            if turn <= now:
                return True
            if now >= until or until < turn < math.inf:
                raise HandedBack(HandBackReason.SETUP)
            await self._bell.wait(min(until, turn))
        return False

    def _note_wrong(self, detail: str, was_probe: bool) -> None:
        if was_probe or not self.is_wrong:
            self._interval = min(max(FIRST_PROBE, self._interval * 2), LAST_PROBE)
            self._probe_at = loop_time() + self._interval
        self._intake.close("setup", detail, probe_at=self._probe_at)

    def _note_works(self) -> None:
        if self.is_wrong:
            self._interval = 0.0
            self._intake.open("setup")
            self._bell.ring()
