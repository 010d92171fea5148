"""Models that jobs ask for and this pod does not know: a rollout may be bringing them, in other pods first.

To refuse them at once would fail jobs that a new pod could answer. So their messages are held under their locks,
where they take no slot, and given back to the queue again and again, until the name has been known for a while.
The age of a job says nothing, as a backlog may be older than the model.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from worker.errors import HandedBack
from worker.jobs.outcomes import HandBackReason
from worker.waits import Bell, loop_time

HOLD = 30.0
"""Seconds, less up to a half, for which a message is held before another pod may have it. Given back at once, it
would come again at once, as it stands at the head of the queue; given back together, they would all come again."""

KNOWN_AT_MOST = 1_000
"""Names that are remembered. One more is refused at once: no rollout brings so many."""

FORGET_AFTER = 3_600.0
"""Seconds without a job that asks for it after which a name counts as never seen."""


@dataclass(slots=True)
class _Seen:
    first: float
    last: float


class Rollouts:
    """Says how long jobs of an unknown model may still wait, and lets them. Times are the event loop's.

    `patience`: seconds from when this pod first saw a name until its jobs are refused; 0 refuses at once.
    """

    def __init__(self, patience: float, chance: Callable[[], float] = random.random) -> None:
        self._patience = patience
        self._chance = chance
        self._names: dict[str, _Seen] = {}
        self._bell = Bell()
        self._is_stopping = False

    def left(self, model: str, now: float) -> float:
        """Seconds until jobs of this model are refused; 0 if they are."""
        seen = self._names.get(model)
        if seen is None or now - seen.last > max(FORGET_AFTER, self._patience):
            self._forget_old(now)
            if len(self._names) >= KNOWN_AT_MOST:
                return 0.0
            seen = self._names[model] = _Seen(first=now, last=now)
        seen.last = now
        return max(0.0, seen.first + self._patience - now)

    async def hold(self, seconds: float) -> None:
        """Wait so long. Raises HandedBack after HOLD if that was not all of it, and at once when it is stopping."""
        hold = HOLD * (1.0 - self._chance() / 2)
        if not self._is_stopping:
            await self._bell.wait(loop_time() + min(seconds, hold))
        if self._is_stopping:
            raise HandedBack(HandBackReason.SHUTDOWN)
        if seconds > hold:
            raise HandedBack(HandBackReason.UNKNOWN_MODEL)

    def describe(self, now: float) -> dict[str, float]:
        """Some of the unknown names, each with the seconds until its jobs are refused."""
        names = islice(self._names.items(), 20)
        return {name: round(max(0.0, seen.first + self._patience - now), 3) for name, seen in names}

    def stop(self) -> None:
        """Give back what is held: no work is under way there that could end."""
        self._is_stopping = True
        self._bell.ring()

    def _forget_old(self, now: float) -> None:
        oldest = now - max(FORGET_AFTER, self._patience)
        self._names = {name: seen for name, seen in self._names.items() if seen.last >= oldest}
