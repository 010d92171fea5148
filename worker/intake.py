"""How many messages may be received now, and from which queue: free slots, unless something is wrong.

Arithmetic and time only; times are those of the event loop's clock. Every wait here has a computed end or is
ended by the bell, never by polling.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from worker.interfaces import IntakeClosed, IntakeOpened, Observer
from worker.waits import Bell, loop_time

FIRST_SHYNESS = 1.0
LAST_SHYNESS = 30.0
"""Seconds without receiving after a job was handed back because too many of its like wait here: doubling from the
first to the last. The broker would give us the same job at once, again and again."""


@dataclass(slots=True)
class _Closure:
    """Why nothing is received. With nothing in flight, one message is let in at `probe_at` to find out."""

    detail: str
    probe_at: float


class Intake:
    """The pod's slots and bytes, which the lanes of its queues share.

    A slot is taken by a delivery and free once its result is written; the delivery stays held until it is
    settled. At most twice the slots are held, so slow settlements cannot pile up without end; of each queue that
    was empty one message may come beyond the slots. `bytes_limit` bounds
    the bodies and answers in flight; a receive may overshoot it by what it brings.
    """

    def __init__(self, slots: int, observer: Observer, *, bytes_limit: float = math.inf) -> None:
        self.slots = slots
        self.bytes_limit = bytes_limit
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.held = 0
        self.is_stopping = False
        self.lanes: list[Lane] = []
        self._observer = observer
        self._closures: dict[str, _Closure] = {}
        self.is_paused = False
        self._is_in_trouble = False
        self._typical_bytes = 0.0
        self._bell = Bell()

    @property
    def closures(self) -> Mapping[str, str]:
        """What keeps it closed, reason to detail; `source` for queues that cannot be received, while others can."""
        closures = {reason: closure.detail for reason, closure in self._closures.items()}
        if troubles := [lane.trouble for lane in self.lanes if lane.trouble]:
            closures["source"] = "; ".join(sorted(set(troubles)))
        return closures

    def lane(self, queue: str, gates_open_at: Callable[[], float] = lambda: -math.inf) -> "Lane":
        """A way in from `queue`, which is received while one of its gates is open."""
        lane = Lane(self, queue, gates_open_at)
        self.lanes.append(lane)
        return lane

    def close(self, reason: str, detail: str, *, probe_at: float = -math.inf) -> None:
        if reason not in self._closures:
            self._observer(IntakeClosed(reason=reason, detail=detail))
        self._closures[reason] = _Closure(detail, probe_at)

    def open(self, reason: str) -> None:
        if self._closures.pop(reason, None):
            self._observer(IntakeOpened(reason=reason))
            self._bell.ring()

    def pause(self) -> None:
        """Receive nothing for a while, though nothing is wrong."""
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._bell.ring()

    def stop(self) -> None:
        """Let nothing more in, for good."""
        self.is_stopping = True
        self._bell.ring()

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
            probe_at = max(closure.probe_at for closure in self._closures.values())
            may_probe = lane.is_hungry or not any(other.is_hungry for other in self.lanes)
            if self.in_flight or reserved or not may_probe:
                return 0, math.inf
            return (1, math.inf) if probe_at <= now else (0, probe_at)
        opens_at = lane.opens_at()
        if opens_at > now:
            return 0, opens_at
        return min(lane.part_of(free), self._fitting()), math.inf

    def _fitting(self) -> int:
        """As many messages of the usual size as the free bytes hold."""
        free = self.bytes_limit - self.in_flight_bytes
        if free <= 0 or math.isinf(free) or not self._typical_bytes:
            return self.slots if free > 0 else 0
        return max(1, int(free / self._typical_bytes))

    def _note_trouble(self, trouble: str | None) -> None:
        is_in_trouble = any(lane.trouble for lane in self.lanes)
        if is_in_trouble == self._is_in_trouble:
            return
        self._is_in_trouble = is_in_trouble
        if trouble is None:
            self._observer(IntakeOpened(reason="source"))
        else:
            self._observer(IntakeClosed(reason="source", detail=trouble))

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

    def __init__(self, intake: Intake, queue: str, gates_open_at: Callable[[], float]) -> None:
        self.queue = queue
        self.in_flight = 0
        self.reserved = 0
        self.is_hungry = True
        self.trouble: str | None = None
        self._intake = intake
        self._gates_open_at = gates_open_at
        self._shyness = 0.0
        self._shy_until = -math.inf

    def opens_at(self) -> float:
        """When it may be received; -inf if now."""
        return max(self._gates_open_at(), self._shy_until)

    def has_open_gate(self) -> bool:
        return self._gates_open_at() <= loop_time()

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
        self._intake._note_trouble(trouble)
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
            if lane is not self and lane.is_hungry and lane.opens_at() <= loop_time()
        )
        return max(free - owed, min(free, fair - self.in_flight), 0)


class Slot(AbstractContextManager["Slot"]):
    """One delivery's place. `free` it when the result is written; leaving the block lets the delivery go."""

    def __init__(self, intake: Intake, lane: Lane, size: int) -> None:
        self.lane = lane
        self._intake = intake
        self._size = size
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

    def grow(self, size: int) -> None:
        """So many bytes more are held for this delivery: a fetched body, an answer."""
        self._size += size
        self._intake.in_flight_bytes += size

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self.lane.in_flight -= 1
            self._intake._free(self._size)
