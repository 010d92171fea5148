"""Pull while there is room; on stop receive no more, let the jobs under way end, hand the rest back."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from worker.admission.admission import Admission, Slot
from worker.admission.intake import QueueIntake
from worker.errors import HandedBack, SourceUnavailable
from worker.flow.processor import Processor
from worker.flow.retry import RetryPolicy
from worker.flow.rollouts import Rollouts
from worker.interfaces import Delivery, Drained, Draining, JobsReceived, Observer, Source
from worker.jobs.outcomes import Failed, HandBackReason
from worker.waits import Interrupt, loop_time

RECEIVE_WAIT = 1.0
"""Seconds that one receive may wait for a first message. It must not be cancelled, so it bounds the drain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A connection to a queue, and what it has taken of the slots."""

    source: Source
    intake: QueueIntake


class Consumer:
    """Feeds the deliveries of the receivers to the processor. `grace`: seconds for jobs under way at a stop."""

    def __init__(
        self,
        *,
        receivers: Sequence[Receiver],
        processor: Processor,
        rollouts: Rollouts,
        admission: Admission,
        observer: Observer,
        chance: Callable[[], float],
        grace: float,
        policy: RetryPolicy = RetryPolicy(base=1.0, cap=10.0),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._receivers = receivers
        self._processor = processor
        self._rollouts = rollouts
        self._admission = admission
        self._observer = observer
        self._chance = chance
        self._grace = grace
        self._policy = policy
        self._clock = clock
        self._interrupts: set[Interrupt] = set()

    async def run(self) -> None:
        """Until it is stopped and everything held is settled."""
        async with asyncio.TaskGroup() as jobs:
            async with asyncio.TaskGroup() as pulls:
                for receiver in self._receivers:
                    pulls.create_task(self._pull(receiver, jobs), name=f"receiver of {receiver.intake.queue}")
            handed_back = await self._drain()
        self._observer(Drained(handed_back=handed_back))

    async def _pull(self, receiver: Receiver, jobs: asyncio.TaskGroup) -> None:
        admission, intake = self._admission, receiver.intake
        failures = 0
        while room := await admission.room(intake):
            had_backlog = intake.has_backlog
            try:
                deliveries = await receiver.source.receive(room, wait=RECEIVE_WAIT)
            except SourceUnavailable as error:
                failures += 1
                admission.not_received(intake, str(error))
                await admission.stopping(loop_time() + self._policy.backoff(failures, self._chance()))
                continue
            failures = 0
            admission.received(intake, len(deliveries))
            if deliveries or had_backlog:
                self._note_received(intake.queue, deliveries)
            for delivery in deliveries:
                jobs.create_task(self.work(delivery, intake))

    def _note_received(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        redelivered = sum(delivery.envelope.delivery_count > 0 for delivery in deliveries)
        age = self._clock() - deliveries[-1].envelope.waiting_since if deliveries else 0.0
        self._observer(JobsReceived(queue=queue, count=len(deliveries), redelivered=redelivered, age=max(0.0, age)))

    def work(
        self, delivery: Delivery, intake: QueueIntake, verdict: Failed | None = None
    ) -> Coroutine[Any, Any, None]:
        """Take a slot for the delivery at once; the rest of its life is to be awaited."""
        interrupt = Interrupt()
        if self._admission.state.is_stopping:
            interrupt.by(HandedBack(HandBackReason.SHUTDOWN))
        self._interrupts.add(interrupt)
        return self._work(delivery, self._admission.slot(intake, len(delivery.envelope.body)), interrupt, verdict)

    async def _work(self, delivery: Delivery, slot: Slot, interrupt: Interrupt, verdict: Failed | None) -> None:
        try:
            await self._processor.process(delivery, slot, interrupt, verdict)
        finally:
            self._interrupts.discard(interrupt)

    async def _drain(self) -> int:
        """How many jobs were still under way after the grace period, and are handed back.

        Receiving has stopped, so they go to another pod and not to this one again.
        """
        self._observer(Draining(in_flight=self._admission.state.in_flight, grace=self._grace))
        self._rollouts.stop()
        if await self._admission.settled(loop_time() + self._grace):
            return 0
        left = tuple(self._interrupts)
        for interrupt in left:
            interrupt.by(HandedBack(HandBackReason.SHUTDOWN))
        return len(left)
