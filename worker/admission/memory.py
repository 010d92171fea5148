"""The bytes that jobs in flight may hold: bodies as they come, answers before they are asked for.

An answer is reserved, by an estimate, before its call, and a body that lies in Blob before it is fetched. What may
go beyond the limit: what one receive brings, one such body, and one answer that is larger than was estimated, or
than the limit, so that there is always a job that gets on.
"""

import asyncio
import math

from worker.errors import HandedBack
from worker.jobs.outcomes import HandBackReason
from worker.waits import Bell

COPIES = 2
"""Of a job, in the bytes that it came in, while it is called: as objects, and as the request."""

ASIDE_SHARE = 0.25
"""Of the limit, at most, that deliveries hold which are set aside: the rest is for jobs that can be called."""


class Memory:
    """The pod's bytes. `bell` rings where messages may be received for what was freed."""

    def __init__(self, limit: float, bell: Bell) -> None:
        self.limit = limit
        self.used = 0
        self.aside = 0
        """Of `used`, what deliveries hold that are set aside."""
        self._typical = 0.0
        self._bell = bell
        self._freed = Bell()
        # who holds one is the first in a line and waits for `_freed` alone: were all woken for what each job
        # frees, a job would cost as much as there are that wait
        self._fetching, self._reserving, self._growing = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._fetched = 0
        self._answers = 0
        """Deliveries that have room for an answer."""
        self._outgrown: Reservation | None = None
        """The one whose answer may go beyond the limit."""

    def take(self, size: int) -> "Reservation":
        """The bytes of a delivery that has come."""
        # up at once and down slowly: a large message is rarely alone
        self._typical = max(float(size), 0.9 * self._typical + 0.1 * size)
        return Reservation(self, size)

    def fitting(self, asked_for: int) -> float:
        """As many messages of the usual size as the free bytes hold, besides those that are asked for already."""
        free = self.limit - self.used - asked_for * self._typical
        if free <= 0:
            return 0
        return max(1.0, free / self._typical) if self._typical else math.inf

    def may_set_aside(self, size: int) -> bool:
        return self.aside + size <= self.limit * ASIDE_SHARE

    def fits(self, size: int) -> bool:
        return self.used + size <= self.limit


class Reservation:
    """What one delivery holds: its body, copies while it is called, and its answer."""

    def __init__(self, memory: Memory, size: int) -> None:
        self.size = size
        """Of the body, wherever it came from."""
        self._memory = memory
        self._reserved = 0
        self._copies = 0
        self._fetched = 0
        self._has_room = False
        self._is_free = False
        memory.used += size

    @property
    def reserved(self) -> int:
        """Bytes of an answer that may be held now."""
        return self._reserved

    async def reserve(self, size: int, *, until: float) -> None:
        """Return once an answer of `size` bytes may be asked for: it fits, or no other answer is held. First come,
        first served, so that many small answers never keep a large one waiting.

        Raises HandedBack at `until`, a time of the loop.
        """
        memory, copies = self._memory, COPIES * self.size
        try:
            async with asyncio.timeout_at(until if until < math.inf else None), memory._reserving:
                while not memory.fits(size + copies) and memory._answers:
                    await memory._freed.wait()
                memory._answers += 1
                self._has_room = True
                self._copies = copies
                memory.used += copies
                self._add(size)
        except TimeoutError:
            raise HandedBack(HandBackReason.PARKED) from None

    async def grow(self, size: int) -> None:
        """Return once an answer of `size` bytes, in all, may be held: it fits, or no other goes beyond the limit.

        Who waits here keeps what it has, so one must always be let through: the others wait for it to be written.
        """
        memory = self._memory
        if memory._outgrown is not self:
            async with memory._growing:
                while not memory.fits(size - self._reserved) and memory._outgrown is not None:
                    await memory._freed.wait()
                if not memory.fits(size - self._reserved):
                    memory._outgrown = self
        self._add(size - self._reserved)

    def unreserve(self) -> None:
        """There is no answer."""
        self._drop_copies()
        self._add(-self._reserved)
        if self._has_room:
            self._has_room = False
            self._memory._answers -= 1
        if self._memory._outgrown is self:
            self._memory._outgrown = None
        self._note_freed()

    def keep(self, size: int) -> None:
        """So much became of the answer: a line that is to be written."""
        self._drop_copies()
        self._add(size - self._reserved)
        self._note_freed()

    async def hold(self, size: int) -> None:
        """Return once so many bytes more may be held for this delivery: a body that is fetched. First come, first
        served; all such bodies together leave room for their copies, or else no other is held.
        """
        memory = self._memory
        async with memory._fetching:
            while memory._fetched and (memory._fetched + size) * (1 + COPIES) > memory.limit:
                await memory._freed.wait()
            memory._fetched += size
        self._fetched += size
        self.size += size
        memory.used += size

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self._memory._fetched -= self._fetched
            self._memory.used -= self.size
            self.unreserve()

    def _drop_copies(self) -> None:
        self._memory.used -= self._copies
        self._copies = 0

    def _add(self, size: int) -> None:
        self._reserved += size
        self._memory.used += size

    def _note_freed(self) -> None:
        self._memory._freed.ring()
        self._memory._bell.ring()
