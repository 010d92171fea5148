"""How many messages may be received now, and from which queue: free slots, unless something is wrong.

Arithmetic and time only; times are those of the event loop's clock. Every wait here has a computed end or is
ended by the bell, never by polling.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from worker.errors import HandedBack
from worker.interfaces import IntakeClosed, IntakeOpened, Observer
from worker.jobs.outcomes import HandBackReason
from worker.waits import EARLY, Bell, loop_time

FIRST_SHYNESS = 1.0
LAST_SHYNESS = 30.0
"""Seconds without receiving after a job was handed back because too many of its like wait here: doubling from the
first to the last. The broker would give us the same job at once, again and again."""


ASIDE_AT_MOST = 1_000
"""Deliveries that are set aside under their locks, all of which must be renewed."""
ASIDE_SHARE = 0.25
"""Of the bytes, at most, that they hold: the rest is for jobs that can be called."""

COPIES = 2
"""Of a job, in the bytes that it came in, while it is called: as objects, and as the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """When jobs are wanted: in the past if now, infinity if nobody knows. `is_probe`: one, to find out."""

    at: float = -math.inf
    is_probe: bool = False


class Intake:
    """The pod's slots and bytes, which the lanes of its queues share.

    A slot is taken by a delivery and free once its result is written; the delivery stays held until it is
    settled. At most twice the slots are held, so slow settlements cannot pile up without end; of each queue that
    was empty one message may come beyond the slots. `bytes_limit` bounds the bodies and answers in flight: an
    answer is reserved, by an estimate, before it is asked for, and a body that lies elsewhere before it is fetched.
    What may go beyond: what one receive brings, one such body, and one answer that is larger than was estimated, or
    than the limit, so that there is always a job that gets on.
    """

    def __init__(self, slots: int, observer: Observer, *, bytes_limit: float = math.inf) -> None:
        self.slots = slots
        self.bytes_limit = bytes_limit
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.held = 0
        self.aside = 0
        """Deliveries that take no slot, as their jobs wait for something other than a call."""
        self.aside_bytes = 0
        self.is_stopping = False
        self.lanes: list[Lane] = []
        self._observer = observer
        self._closures: dict[str, str] = {}
        self._troubles: dict[str, str] = {}
        self.is_paused = False
        self._typical_bytes = 0.0
        self._bell = Bell()
        self._room_bell = Bell()
        """Rings when memory is freed."""
        # who holds one is the first in a line and waits for the bell alone: were all woken for what is freed by
        # each job, a job would cost as much as there are that wait
        self._fetching, self._reserving, self._growing = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._fetched_bytes = 0
        self._answers = 0
        """Slots that have room for an answer."""
        self._outgrown: Slot | None = None
        """The one whose answer may go beyond the limit."""

    @property
    def closures(self) -> Mapping[str, str]:
        """What keeps it closed, all of it or the way in from some queues; reason to detail."""
        return self._closures | self._troubles

    def lane(self, queue: str, wanted: Callable[[], Wanted] = Wanted) -> "Lane":
        """A way in from `queue`, which is received while jobs of it are wanted."""
        lane = Lane(self, queue, wanted)
        self.lanes.append(lane)
        return lane

    def close(self, reason: str, detail: str) -> None:
        """Receive nothing more but, whenever nothing is in flight, one message to find out."""
        self._note(self._closures, reason, detail)

    def open(self, reason: str) -> None:
        if reason in self._closures:
            self._note(self._closures, reason, None)
            self._bell.ring()

    def note_trouble(self, reason: str, detail: str | None) -> None:
        """Something keeps some queues, or all for a while, from being received; None once nothing does. This only
        tells it."""
        self._note(self._troubles, reason, detail)

    def _note(self, notes: dict[str, str], reason: str, detail: str | None) -> None:
        if detail is not None:
            if reason not in notes:
                self._observer(IntakeClosed(reason=reason, detail=detail))
            notes[reason] = detail
        elif notes.pop(reason, None) is not None:
            self._observer(IntakeOpened(reason=reason))

    def pause(self, reason: str, detail: str) -> None:
        """Receive nothing for a while, though nothing is wrong."""
        self.is_paused = True
        self.note_trouble(reason, detail)

    def resume(self, reason: str) -> None:
        self.is_paused = False
        self.note_trouble(reason, None)
        self._bell.ring()

    def stop(self) -> None:
        """Let nothing more in, for good."""
        self.is_stopping = True
        self._bell.ring()

    async def settled(self, until: float) -> bool:
        """Wait until nothing is held any more, at most until `until`; whether that is so."""
        while self.held + self.aside and loop_time() + EARLY < until:
            await self._bell.wait(until)
        return self.held + self.aside == 0

    async def stopping(self, until: float) -> bool:
        """Wait until it is stopping, at most until `until`; whether that is so."""
        while not self.is_stopping and loop_time() + EARLY < until:
            await self._bell.wait(until)
        return self.is_stopping

    def look_again(self) -> None:
        """What the lanes wait for may have changed."""
        self._bell.ring()

    async def wait_for_change(self, until: float) -> None:
        await self._bell.wait(until)

    def room_for(self, lane: "Lane", now: float) -> tuple[int, float]:
        """How many messages the lane may ask for, and when that may change without the bell."""
        reserved = sum(other.reserved for other in self.lanes)
        # what waits at an empty queue holds up nobody; should a message come there, it is one too many
        idle = sum(other.reserved for other in self.lanes if not other.is_hungry) if lane.is_hungry else 0
        free = min(self.slots - self.in_flight, 2 * self.slots - self.held) - reserved + idle
        if free <= 0 or self.is_paused:
            return 0, math.inf
        if self._closures:
            may_probe = lane.is_hungry or not any(other.is_hungry for other in self.lanes)
            return (0 if self.in_flight or reserved or not may_probe else 1), math.inf
        wanted = lane.wanted()
        if wanted.at > now + EARLY:
            return 0, wanted.at
        if wanted.is_probe:
            is_probing = any(mate.in_flight or mate.reserved for mate in self.lanes if mate.queue == lane.queue)
            return (0 if is_probing else 1), math.inf
        return min(lane.part_of(free), self._fitting(reserved)), math.inf

    def _fitting(self, reserved: int) -> int:
        """As many messages of the usual size as the free bytes hold, besides those that are asked for already."""
        free = self.bytes_limit - self.in_flight_bytes - reserved * self._typical_bytes
        if free <= 0 or math.isinf(free) or not self._typical_bytes:
            return self.slots if free > 0 else 0
        return max(1, int(free / self._typical_bytes))

    def _note_source(self) -> None:
        troubles = sorted({lane.trouble for lane in self.lanes if lane.trouble})
        self.note_trouble("source", "; ".join(troubles) or None)

    def _fits(self, size: int) -> bool:
        return self.in_flight_bytes + size <= self.bytes_limit

    def _enter(self, size: int) -> None:
        self.in_flight += 1
        self.held += 1
        self.in_flight_bytes += size
        # up at once and down slowly: a large message is rarely alone
        self._typical_bytes = max(float(size), 0.9 * self._typical_bytes + 0.1 * size)

    def _free(self, size: int) -> None:
        self.in_flight -= 1
        self.in_flight_bytes -= size
        self._bell.ring()

    def _let_go(self) -> None:
        self.held -= 1
        self._bell.ring()


class Lane:
    """One receiver's share of the intake.

    Each lane has an equal share of the slots for as long as its queue has messages; what one leaves, the
    others use. A queue that was found empty is asked for one message only, so that waiting for it holds no slots.
    """

    def __init__(self, intake: Intake, queue: str, wanted: Callable[[], Wanted]) -> None:
        self.queue = queue
        self.in_flight = 0
        self.reserved = 0
        self.is_hungry = True
        self.trouble: str | None = None
        self._intake = intake
        self._wanted = wanted
        self._shyness = 0.0
        self._shy_until = -math.inf

    def wanted(self) -> Wanted:
        wanted = self._wanted()
        return wanted if wanted.at >= self._shy_until else replace(wanted, at=self._shy_until)

    def _is_open(self) -> bool:
        wanted = self.wanted()
        return wanted.at <= loop_time() and not wanted.is_probe

    def has_open_gate(self) -> bool:
        wanted = self._wanted()
        return wanted.at <= loop_time() and not wanted.is_probe

    async def room(self) -> int:
        """How many messages to ask for, at least 1, waiting until there is room; 0 once it is stopping.

        They are reserved until `received` tells how many came.
        """
        while not self._intake.is_stopping:
            room, changes_at = self._intake.room_for(self, loop_time())
            if room > 0:
                self.reserved = room
                return room
            await self._intake.wait_for_change(changes_at)
        return 0

    def received(self, count: int) -> None:
        self.is_hungry = count > 0
        self._end_receive(None)

    def fail(self, detail: str) -> None:
        """The queue could not be received; the other lanes go on."""
        self._end_receive(detail)

    def _end_receive(self, trouble: str | None) -> None:
        self.reserved = 0
        self.trouble = trouble
        self._intake._note_source()
        self._intake._bell.ring()

    def slot(self, size: int = 0) -> "Slot":
        """For a delivery of `size` bytes."""
        return Slot(self._intake, self, size)

    def shy_away(self) -> None:
        """Receive nothing for a while, longer each time: jobs that cannot be kept would come again at once."""
        now = loop_time()
        if now >= self._shy_until:
            self._shyness = min(max(FIRST_SHYNESS, 2 * self._shyness), LAST_SHYNESS)
            self._shy_until = now + self._shyness

    def take_heart(self) -> None:
        """A job of this queue could be called."""
        self._shyness = 0.0

    def part_of(self, free: int) -> int:
        """Of so many free slots, those that others are not owed."""
        if len(self._intake.lanes) == 1:
            return free
        if not self.is_hungry:
            return 1
        fair = max(1, self._intake.slots // len(self._intake.lanes))
        owed = sum(
            max(0, fair - lane.in_flight - lane.reserved)
            for lane in self._intake.lanes
            if lane is not self and lane.is_hungry and lane._is_open()
        )
        return max(free - owed, min(free, fair - self.in_flight), 0)


class Slot(AbstractContextManager["Slot"]):
    """One delivery's place. `free` it when the result is written; leaving the block lets the delivery go."""

    def __init__(self, intake: Intake, lane: Lane, size: int) -> None:
        self.lane = lane
        self._intake = intake
        self._size = size
        self._reserved = 0
        self._copies = 0
        self._fetched = 0
        self._has_room = False
        self._is_free = False
        lane.in_flight += 1
        intake._enter(size)

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

    @property
    def may_be_set_aside(self) -> bool:
        intake = self._intake
        return intake.aside < ASIDE_AT_MOST and intake.aside_bytes + self._size <= intake.bytes_limit * ASIDE_SHARE

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Meanwhile it takes no slot. Its bytes still count, and its lock is kept."""
        self._move_aside(1)
        try:
            yield
        finally:
            self._move_aside(-1)

    def _move_aside(self, count: int) -> None:
        intake = self._intake
        intake.aside += count
        intake.aside_bytes += count * self._size
        intake.held -= count
        intake.in_flight -= count
        self.lane.in_flight -= count
        intake._bell.ring()

    @property
    def reserved(self) -> int:
        """Bytes of an answer that may be held now."""
        return self._reserved

    async def reserve(self, size: int, *, until: float) -> None:
        """Return once an answer of `size` bytes may be asked for: it fits, or no other answer is held. First come,
        first served, so that many small answers never keep a large one waiting.

        Raises HandedBack at `until`, a time of the loop.
        """
        intake, copies = self._intake, COPIES * self._size
        try:
            async with asyncio.timeout_at(until if until < math.inf else None), intake._reserving:
                while not intake._fits(size + copies) and intake._answers:
                    await intake._room_bell.wait()
                intake._answers += 1
                self._has_room = True
                self._copies = copies
                intake.in_flight_bytes += copies
                self._add(size)
        except TimeoutError:
            raise HandedBack(HandBackReason.PARKED) from None

    async def grow(self, size: int) -> None:
        """Return once an answer of `size` bytes, in all, may be held: it fits, or no other goes beyond the limit.

        Who waits here keeps what it has, so one must always be let through: the others wait for it to be written.
        """
        intake = self._intake
        if intake._outgrown is not self:
            async with intake._growing:
                while not intake._fits(size - self._reserved) and intake._outgrown is not None:
                    await intake._room_bell.wait()
                if not intake._fits(size - self._reserved):
                    intake._outgrown = self
        self._add(size - self._reserved)

    def unreserve(self) -> None:
        """There is no answer."""
        self._drop_copies()
        self._add(-self._reserved)
        if self._has_room:
            self._has_room = False
            self._intake._answers -= 1
        if self._intake._outgrown is self:
            self._intake._outgrown = None
        self._intake._room_bell.ring()
        self._intake._bell.ring()

    def keep(self, size: int) -> None:
        """So much became of the answer: a line that is to be written."""
        self._drop_copies()
        self._add(size - self._reserved)
        self._intake._room_bell.ring()

    async def hold(self, size: int) -> None:
        """Return once so many bytes more may be held for this delivery: a body that is fetched. First come, first
        served; all such bodies together leave room for their copies, or else no other is held.
        """
        intake = self._intake
        async with intake._fetching:
            while intake._fetched_bytes and (intake._fetched_bytes + size) * (1 + COPIES) > intake.bytes_limit:
                await intake._room_bell.wait()
            intake._fetched_bytes += size
        self._fetched += size
        self._size += size
        intake.in_flight_bytes += size

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self.lane.in_flight -= 1
            self._intake._fetched_bytes -= self._fetched
            self._intake._free(self._size)
            self.unreserve()

    def _drop_copies(self) -> None:
        self._intake.in_flight_bytes -= self._copies
        self._copies = 0

    def _add(self, size: int) -> None:
        self._reserved += size
        self._intake.in_flight_bytes += size
