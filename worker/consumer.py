"""Pull while there is room; on stop receive no more, let the jobs under way end, hand the rest back."""

import asyncio
from collections.abc import Callable, Sequence

from worker.errors import HandedBack, SourceUnavailable
from worker.interfaces import Delivery, Drained, Draining, JobsReceived, Observer, Source
from worker.limits import Intake
from worker.outcomes import HandBackReason
from worker.processor import Processor
from worker.retry import RetryPolicy
from worker.waits import Interrupt, loop_time

RECEIVE_WAIT = 1.0
"""Seconds that one receive may wait for a first message. It must not be cancelled, so it bounds the drain."""


class Consumer:
    """Feeds the deliveries of one source to the processor. `grace`: seconds for jobs under way at a stop."""

    def __init__(
        self,
        *,
        source: Source,
        processor: Processor,
        intake: Intake,
        observer: Observer,
        chance: Callable[[], float],
        grace: float,
        policy: RetryPolicy = RetryPolicy(base=1.0, cap=30.0),
    ) -> None:
        self._source = source
        self._processor = processor
        self._intake = intake
        self._observer = observer
        self._chance = chance
        self._grace = grace
        self._policy = policy
        self._interrupts: set[Interrupt] = set()

    async def run(self) -> None:
        """Until the intake is stopped and everything held is settled."""
        async with asyncio.TaskGroup() as jobs:
            while room := await self._intake.room():
                for delivery in await self._receive(room):
                    self._take(delivery, jobs)
            handed_back = await self._drain()
        self._observer(Drained(handed_back=handed_back))

    async def _receive(self, room: int) -> Sequence[Delivery]:
        failures = 0
        while True:
            try:
                deliveries = await self._source.receive(room, wait=RECEIVE_WAIT)
            except SourceUnavailable as error:
                failures += 1
                self._intake.close("source", str(error))
                pause = self._policy.backoff(failures, self._chance())
                if await self._intake.stopping(loop_time() + pause):
                    return ()
            else:
                self._intake.open("source")
                self._note_received(deliveries)
                return deliveries

    def _note_received(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            redelivered = sum(delivery.envelope.delivery_count > 0 for delivery in deliveries)
            queue = deliveries[0].envelope.queue
            self._observer(JobsReceived(queue=queue, count=len(deliveries), redelivered=redelivered))

    def _take(self, delivery: Delivery, jobs: asyncio.TaskGroup) -> None:
        interrupt = Interrupt()
        if self._intake.is_stopping:
            interrupt.by(HandedBack(HandBackReason.SHUTDOWN))
        self._interrupts.add(interrupt)
        job = jobs.create_task(self._processor.process(delivery, self._intake.slot(), interrupt))
        job.add_done_callback(lambda _: self._interrupts.discard(interrupt))

    async def _drain(self) -> int:
        """How many jobs were still under way after the grace period, and are handed back.

        Receiving has stopped, so they go to another pod and not to this one again.
        """
        self._observer(Draining(in_flight=self._intake.in_flight, grace=self._grace))
        if await self._intake.settled(loop_time() + self._grace):
            return 0
        left = tuple(self._interrupts)
        for interrupt in left:
            interrupt.by(HandedBack(HandBackReason.SHUTDOWN))
        return len(left)
