"""Whether our own set-up works, found out by one job at a time once a call has shown that it does not."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.errors import HandedBack, RefusedByService, SetupWrong, Throttled
from worker.intake import Intake
from worker.outcomes import HandBackReason
from worker.waits import Bell, loop_time

FIRST_PROBE = 5.0
LAST_PROBE = 300.0
"""Seconds between probes of a set-up that is wrong: doubling from the first to the last."""


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
