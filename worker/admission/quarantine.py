"""Deliveries whose process may have died of them run apart from the rest, fewer together each time.

A job that kills its process takes everything along that is in flight there: each of those messages loses one of
its deliveries. So what was delivered twice before waits until nothing else is in flight, nothing more is received
meanwhile, and no more run together than `cohort_size` allows; the others go back to the queue, which costs them
nothing. The poison is soon alone, long before an innocent has used up its deliveries. Calls are waited for, as they
are paid for; jobs that wait at a gate go back to the queue after `GATE_PATIENCE`, suspects too.
"""

from types import TracebackType
from typing import Self

from worker.admission.gates import Gates
from worker.admission.intake import Intake
from worker.errors import HandedBack
from worker.jobs.outcomes import HandBackReason
from worker.waits import Bell, loop_time

SUSPECT_FROM = 2
"""Earlier deliveries that ended without a settlement. One is everyday: a node was lost."""

GATE_PATIENCE = 30.0
"""Seconds that jobs may wait at gates once a suspect has come: the pod receives nothing in that time."""


def cohort_size(delivery_count: int, slots: int) -> int:
    """How many may run together with a delivery of that count: slots/4, /16, ... 1."""
    return max(1, slots >> 2 * (delivery_count - SUSPECT_FROM + 1))


class Quarantine:
    """Every delivery is worked in a place of it."""

    def __init__(self, intake: Intake, gates: Gates) -> None:
        self._intake = intake
        self._gates = gates
        self._together = 0
        self._waiting = 0
        self._apart = 0
        self._smallest = intake.slots
        self._bell = Bell()

    @property
    def suspects(self) -> int:
        """How many wait or run apart now."""
        return self._waiting + self._apart

    def place(self, delivery_count: int) -> "Place":
        """Entering it may wait for all others to end; raises HandedBack where the cohort is full."""
        return Place(self, delivery_count)

    async def enter(self, delivery_count: int) -> None:
        if delivery_count >= SUSPECT_FROM:
            await self._enter_apart(cohort_size(delivery_count, self._intake.slots))
        elif self._apart:  # it was on its way when the cohort began
            raise HandedBack(HandBackReason.SUSPECT)
        else:
            self._together += 1

    def leave(self, delivery_count: int) -> None:
        if delivery_count >= SUSPECT_FROM:
            self._apart -= 1
            self._go_on()
        else:
            self._together -= 1
            if self._waiting and not self._together:
                self._bell.ring()

    async def _enter_apart(self, size: int) -> None:
        self._waiting += 1
        self._pause()
        try:
            while self._together:
                await self._bell.wait()
            smallest = min(size, self._smallest) if self._apart else size
            if self._apart >= smallest:
                raise HandedBack(HandBackReason.SUSPECT)
            self._smallest = smallest
            self._apart += 1
        finally:
            self._waiting -= 1
            self._go_on()

    def _pause(self) -> None:
        if not self._intake.is_paused:
            self._gates.limit_waiting(HandBackReason.SUSPECT, loop_time() + GATE_PATIENCE)
        detail = f"suspects that run apart: {self.suspects}; jobs that must end before them: {self._together}"
        self._intake.pause("suspects", detail)

    def _go_on(self) -> None:
        if self.suspects:
            self._pause()
        else:
            self._gates.unlimit(HandBackReason.SUSPECT)
            self._intake.resume("suspects")


class Place:
    """One delivery's place in the quarantine."""

    __slots__ = ("_delivery_count", "_quarantine")

    def __init__(self, quarantine: Quarantine, delivery_count: int) -> None:
        self._quarantine = quarantine
        self._delivery_count = delivery_count

    async def __aenter__(self) -> Self:
        await self._quarantine.enter(self._delivery_count)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._quarantine.leave(self._delivery_count)
