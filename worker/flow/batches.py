"""The batches that this pod works on: whether a producer cancelled one, and what the pod tells producers of itself.

A cancellation lies beside the results. It is looked for when the first job of a batch comes, and every few seconds
while there are jobs of it. Calls under way end and are written, as they are paid for; whatever waits ends at once.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest, nsmallest
from types import MappingProxyType, TracebackType
from typing import Self

from worker.errors import BatchCancelled, SinkUnavailable
from worker.interfaces import Fleet
from worker.jobs.batch_records import PodReport
from worker.jobs.job import UNBATCHED, Job
from worker.waits import Interrupt, loop_time

LOOK_EVERY = 4.0
"""Seconds: within 10 no new call is made, slow answers of Blob storage included."""
REPORT_EVERY = 10.0
PATIENCE = 5.0
"""Seconds for which the first job of a batch waits to hear whether that is cancelled, before it goes on; and for
which a pod that ends tries to take its report away."""
LOOKS_AT_ONCE = 64
"""Batches that are looked for in one round, first those whose last look is longest ago."""
REMEMBERED = 1_000
"""Batches without a job here that are remembered."""
REPORTED = 1_000
"""Batches in a report, those with most jobs."""


@dataclass(slots=True, eq=False)
class _Batch:
    """`cancelled`: the last replay that is; -1 where none is. `looked_at`: of the loop's clock."""

    id: str
    cancelled: int = -1
    looked_at: float = -math.inf
    is_known: asyncio.Event = field(default_factory=asyncio.Event)
    members: set["Membership"] = field(default_factory=set)

    def note(self, cancelled: int | None) -> None:
        if cancelled is not None and cancelled > self.cancelled:
            self.cancelled = cancelled
            for member in self.members:
                member.end_if_cancelled()


class Membership:
    """A job in its batch: within `async with` it is worked. Raises BatchCancelled at its beginning and, but for a
    call that is under way, at any moment."""

    __slots__ = ("_batch", "_batches", "_interrupt", "_replay", "is_calling")

    def __init__(self, batches: "Batches", batch: _Batch, replay: int) -> None:
        self.is_calling = False
        self._batches = batches
        self._batch = batch
        self._replay = replay
        self._interrupt = Interrupt()

    def end_if_cancelled(self) -> None:
        if self._replay <= self._batch.cancelled and not self.is_calling:
            self._interrupt.by(BatchCancelled(self._batch.id))

    def require_live(self) -> None:
        """Raises BatchCancelled."""
        if self._replay <= self._batch.cancelled:
            raise BatchCancelled(self._batch.id)

    async def __aenter__(self) -> Self:
        self._batch.members.add(self)
        try:
            if not self._batch.is_known.is_set():
                await self._batches.learn(self._batch)
            self.require_live()
            await self._interrupt.__aenter__()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()
        await self._interrupt.__aexit__(exc_type, exc_value, traceback)

    def _leave(self) -> None:
        self._batch.members.discard(self)
        self._batches.left(self._batch)


class Batches:
    """`fleet` is None where results do not lie in Blob storage: then nothing can be cancelled. `waits_for`: what
    keeps jobs from being received or called. `clock` is Unix time."""

    def __init__(
        self,
        fleet: Fleet | None = None,
        pod: str = "",
        *,
        waits_for: Callable[[], Mapping[str, str]] = lambda: MappingProxyType({}),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._pod = pod
        self._waits_for = waits_for
        self._clock = clock
        self._worked: dict[str, _Batch] = {}
        self._idle: dict[str, _Batch] = {}

    def join(self, job: Job) -> Membership:
        batch = self._worked.get(job.batch_id)
        if batch is None:
            known = self._idle.pop(job.batch_id, None)
            batch = self._worked[job.batch_id] = _Batch(job.batch_id) if known is None else known
            if not self._can_be_cancelled(batch):
                batch.is_known.set()
            elif batch.looked_at < loop_time() - LOOK_EVERY:
                batch.is_known.clear()
        return Membership(self, batch, job.replay)

    def left(self, batch: _Batch) -> None:
        if batch.members:
            return
        self._worked.pop(batch.id, None)
        self._idle[batch.id] = batch
        if len(self._idle) > REMEMBERED:
            self._idle.pop(next(iter(self._idle)))

    async def learn(self, batch: _Batch) -> None:
        """The first job of a batch looks; the others wait for it."""
        is_first = len(batch.members) == 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await (self._look(batch) if is_first else batch.is_known.wait())
        batch.is_known.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        if self._fleet is None:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(), name="cancellations")
                tasks.create_task(self._tell(self._fleet), name="report")
        finally:
            with contextlib.suppress(SinkUnavailable, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._fleet.withdraw()

    def report(self) -> PodReport:
        counts = {batch.id: len(batch.members) for batch in self._worked.values()}
        largest = nlargest(REPORTED, counts.items(), key=lambda pair: pair[1])
        return PodReport(pod=self._pod, at=self._clock(), running=dict(largest), waits=self._waits_for())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            worked = filter(self._can_be_cancelled, self._worked.values())
            oldest = nsmallest(LOOKS_AT_ONCE, worked, key=lambda batch: batch.looked_at)
            await asyncio.gather(*[self._look(batch) for batch in oldest])

    async def _look(self, batch: _Batch) -> None:
        assert self._fleet is not None, "without a fleet nothing can be cancelled"
        batch.looked_at = loop_time()
        # a store that is down is told of where results are written; until it is up, jobs go on
        with contextlib.suppress(SinkUnavailable):
            batch.note(await self._fleet.cancelled_up_to(batch.id))

    async def _tell(self, fleet: Fleet) -> None:
        while True:
            with contextlib.suppress(SinkUnavailable):
                await fleet.report(self.report())
            await asyncio.sleep(REPORT_EVERY)

    def _can_be_cancelled(self, batch: _Batch) -> bool:
        # that name is for jobs without a batch, so it is nobody's to cancel
        return self._fleet is not None and batch.id != UNBATCHED
