"""An admission that runs, and what tests ask of it."""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from worker.admission.admission import Admission, Permit, Slot
from worker.admission.costs import Cost
from worker.admission.gate import Gate
from worker.admission.intake import QueueIntake
from worker.admission.plan import room
from worker.admission.routes import Demand, Route
from worker.interfaces import Target
from worker.testing import EventList
from worker.waits import loop_time


class RunningAdmission(Admission):
    """It runs until its loop is closed. What it decides wrongly ends the test."""

    def __init__(
        self,
        targets: Mapping[str, Sequence[Target]] | None,
        *,
        slots: int = 64,
        observer: EventList | None = None,
        fleet_size: int = 1,
        bytes_limit: float = math.inf,
    ) -> None:
        super().__init__(
            targets,
            slots=slots,
            endpoint="https://account.openai.azure.com",
            observer=observer or EventList(),
            fleet_size=fleet_size,
            bytes_limit=bytes_limit,
        )
        self.running = asyncio.get_running_loop().create_task(self.run())

    @property
    def gates(self) -> Sequence[Gate]:
        return self.state.routes.gates

    def demand(self, models: Iterable[str] | None = None) -> Demand:
        """When jobs are wanted; how many is for `room_now`."""
        return replace(self.state.routes.demand(models, loop_time()), count=math.inf)

    def at(self, model: str = "mini") -> "AtRoute":
        route = self.route(model)
        assert route is not None, f"no route for {model}"
        return AtRoute(self, route)

    def room_now(self, intake: QueueIntake) -> int:
        """What the plan would let it receive."""
        return room(self.state, intake, loop_time())[0]


MIB = 1 << 20


class Receiver:
    """A receiver's view of the admission: which messages it may ask for, and what became of them."""

    def __init__(self, admission: RunningAdmission, queue: str, models: frozenset[str] | None = None) -> None:
        self.admission = admission
        self.intake = admission.intake(queue, models)

    async def room(self) -> int:
        return await self.admission.room(self.intake)

    def received(self, count: int) -> None:
        self.admission.received(self.intake, count)

    def fail(self, detail: str) -> None:
        self.admission.not_received(self.intake, detail)

    def slot(self, size: int = 0) -> Slot:
        return self.admission.slot(self.intake, size)

    def room_now(self) -> int:
        return self.admission.room_now(self.intake)


def admission_of(slots: int, *, bytes_limit: float = math.inf, events: EventList | None = None) -> RunningAdmission:
    """It knows no model, so jobs are wanted without end."""
    return RunningAdmission({}, slots=slots, bytes_limit=bytes_limit, observer=events)


@dataclass(frozen=True)
class AtRoute:
    """A route of an admission."""

    admission: RunningAdmission = field(repr=False, compare=False)
    route: Route

    async def admit(self, cost: Cost, *, until: float) -> Permit:
        return await self.admission.admit(self.route.model, cost, until=until)

    @property
    def gates(self) -> Sequence[Gate]:
        return self.route.gates

    @property
    def waiting(self) -> int:
        return self.route.waiting

    @property
    def blocked_until(self) -> float:
        return self.route.blocked_until

    @property
    def is_closed(self) -> bool:
        return self.blocked_until > loop_time()


def at(seconds: float, action: object, *arguments: object) -> None:
    asyncio.get_running_loop().call_at(seconds, action, *arguments)  # type: ignore[arg-type]
