"""Deliveries whose process may have died of them run apart from the rest, fewer together each time.

A job that kills its process takes everything along that is in flight there: each of those messages loses one of
its deliveries. So what was delivered twice before waits until nothing else is in flight, nothing more is received
meanwhile, and no more run together than `cohort_size` allows; the others go back to the queue, which costs them
nothing. The poison is soon alone, long before an innocent has used up its deliveries. Calls are waited for, as they
are paid for; jobs that wait at a gate go back to the queue after `GATE_PATIENCE`, suspects too. What the sorter
cannot send on goes back to the entry queue at once.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

SUSPECT_FROM = 2
"""Earlier deliveries that ended without a settlement. One is everyday: a node was lost."""

GATE_PATIENCE = 30.0
"""Seconds that jobs may wait at gates once a suspect has come: the pod receives nothing in that time."""


def is_suspect(delivery_count: int) -> bool:
    return delivery_count >= SUSPECT_FROM


def cohort_size(delivery_count: int, slots: int) -> int:
    """How many may run together with a delivery of that count: slots/4, /16, ... 1."""
    return max(1, slots >> 2 * (delivery_count - SUSPECT_FROM + 1))


@dataclass(frozen=True, slots=True, eq=False)
class Suspect:
    """One that waits for all others to end; no more than `cohort` may then run together. `decided` brings True if
    it may run, False if it is handed back."""

    cohort: int
    decided: asyncio.Future[bool]


class Suspects:
    """Who runs apart, who waits for that, and how many run together as usual."""

    def __init__(self) -> None:
        self.together = 0
        self.apart = 0
        self.waiting: deque[Suspect] = deque()
        self.since = math.inf
        """When the first of them came; infinity if there are none."""
        self._cohort = 0

    @property
    def count(self) -> int:
        return len(self.waiting) + self.apart

    @property
    def detail(self) -> str | None:
        if not self.count:
            return None
        return f"suspects that run apart: {self.count}; jobs that must end before them: {self.together}"

    def add(self, suspect: Suspect, now: float) -> None:
        self.waiting.append(suspect)
        self.since = min(self.since, now)

    def decide(self, held: int) -> tuple[Suspect, bool] | None:
        """The next of those that wait, and whether it may run; `held` deliveries are not settled or may
        come. None: not yet.

        Whoever has no place is handed back first, and that must be settled before anybody runs: a process that dies
        at its first call would take a delivery of theirs along, and of the same ones each time.
        """
        apart, cohort = self.apart, self._cohort
        for suspect in self.waiting:
            cohort = min(suspect.cohort, cohort) if apart else suspect.cohort
            if apart >= cohort:
                return suspect, False
            apart += 1
        return None if held > self.count else (self.waiting[0], True)

    def admit(self, suspect: Suspect) -> None:
        self._cohort = self._cohort_with(suspect)
        self.apart += 1

    def note_end(self) -> None:
        if not self.count:
            self.since = math.inf

    def _cohort_with(self, suspect: Suspect) -> int:
        return min(suspect.cohort, self._cohort) if self.apart else suspect.cohort
