"""What the broker itself dead-letters gets its error line, so that a batch always ends.

A job whose time to live has passed, or that was delivered too often, is moved by the broker without a word to its
producer. The sweeper looks into the dead-letter queue every minute or so, writes `expired` or `max_deliveries` and
completes the message. Dead letters with any other reason stay where they are: they are for people.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from worker.admission.intake import Intake
from worker.errors import LockLost, NotAJob, ResultTooLarge, SourceUnavailable
from worker.interfaces import Claims, DeadLetters, DeadLetterSwept, Delivery, Observer, Sink, SweepFailed
from worker.jobs.job import Envelope, Job, Record, claim_of, decode, encode_result
from worker.jobs.outcomes import Complete, Failed, FailureCode, Release
from worker.waits import loop_time

CODES = {
    "TTLExpiredException": FailureCode.EXPIRED,
    "MaxDeliveryCountExceeded": FailureCode.MAX_DELIVERIES,
}
"""The broker's own reasons for jobs that were in order (Service Bus's documentation of dead-letter queues)."""

TOGETHER = 100
"""Dead letters received and written at once."""

LOOKED_AT = 10_000
"""Dead letters that one pass looks through at most."""

KEPT = 2_000
"""Dead letters for people that one pass locks at most, to reach what lies behind them."""

KEPT_BYTES = 16 << 20
"""Of these, so many bytes at most."""

RECEIVE_WAIT = 1.0


@dataclass(kw_only=True)
class Sweeper:
    """Sweeps one queue's dead letters every `every` seconds, with jitter, as each pod does so."""

    queue: str
    open_dead_letters: Callable[[], AbstractAsyncContextManager[DeadLetters]]
    sink: Sink
    claims: Claims | None
    intake: Intake
    observer: Observer
    pod: str
    every: float
    chance: Callable[[], float]
    clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Until the intake is stopping."""
        while not await self.intake.stopping(loop_time() + self.every * (0.5 + self.chance())):
            try:
                async with self.open_dead_letters() as dead_letters:
                    await self.sweep(dead_letters)
            except Exception as error:  # whatever lies in that queue must not cost the pod what it has in flight
                self.observer(SweepFailed(queue=self.queue, detail=str(error) or repr(error)))

    async def sweep(self, dead_letters: DeadLetters) -> None:
        """One pass. Nothing is locked where there is nothing to sweep."""
        wanted = await self._count_sweepable(dead_letters)
        kept: list[Delivery] = []
        try:
            while wanted > 0 and _is_bearable(kept) and not self.intake.is_stopping:
                deliveries = await dead_letters.receive(TOGETHER, wait=RECEIVE_WAIT)
                if not deliveries:
                    break
                wanted -= await self._bury(deliveries, kept)
        finally:
            await _release(kept)

    async def _count_sweepable(self, dead_letters: DeadLetters) -> int:
        looked_at, found, following = 0, 0, 0
        while looked_at < LOOKED_AT:
            envelopes = await dead_letters.peek(following, TOGETHER)
            if not envelopes:
                break
            looked_at += len(envelopes)
            found += sum(envelope.dead_letter_reason in CODES for envelope in envelopes)
            following = envelopes[-1].sequence_number + 1
        return found

    async def _bury(self, deliveries: Sequence[Delivery], kept: list[Delivery]) -> int:
        """Write and complete what can be; the others are added to `kept`. How many were swept."""
        codes = [CODES.get(delivery.envelope.dead_letter_reason or "") for delivery in deliveries]
        kept += [delivery for delivery, code in zip(deliveries, codes, strict=True) if code is None]
        pairs = [(delivery, code) for delivery, code in zip(deliveries, codes, strict=True) if code]
        swept = await asyncio.gather(*[self._sweep_one(*pair) for pair in pairs], return_exceptions=True)
        for (delivery, _), is_swept in zip(pairs, swept, strict=True):
            if is_swept is not True:
                kept.append(delivery)
        for outcome in swept:
            if isinstance(outcome, BaseException):
                raise outcome
        return len(pairs)

    async def _sweep_one(self, delivery: Delivery, code: FailureCode) -> bool:
        """Whether it has its line and is gone; what does not decode, or is not ours any more, is left."""
        envelope = delivery.envelope
        try:
            job = await self._decode(envelope)
            if not await self.sink.has(job):
                await self.sink.write(job, self._error_line(job, code, envelope))
            await delivery.settle(Complete())
        except (NotAJob, ResultTooLarge, LockLost):
            return False
        self.observer(DeadLetterSwept(queue=self.queue, message_id=envelope.message_id, code=code))
        return True

    async def _decode(self, envelope: Envelope) -> Job:
        claim = claim_of(envelope)
        body = await self.claims.fetch(claim) if claim and self.claims else None
        return decode(envelope, max_age=0.0, body=body)

    def _error_line(self, job: Job, code: FailureCode, envelope: Envelope) -> bytes:
        now = self.clock()
        record = Record(
            attempts=0,
            deployment=None,
            endpoint=None,
            started=now,
            finished=now,
            call_seconds=0.0,
            pod=self.pod,
        )
        return encode_result(job, Failed(code=code, message=explain(code, envelope)), record)


def _is_bearable(kept: Sequence[Delivery]) -> bool:
    return len(kept) < KEPT and sum(len(delivery.envelope.body) for delivery in kept) < KEPT_BYTES


def explain(code: FailureCode, envelope: Envelope) -> str:
    """What the producer reads of it."""
    if code is FailureCode.EXPIRED:
        return "the message's time to live passed before a worker took the job"
    return (
        f"the job was delivered {envelope.delivery_count} times and never finished: "
        "its workers died or lost their locks; see their logs before it is sent again"
    )


async def _release(kept: Sequence[Delivery]) -> None:
    """Back to where they were; a lock that cannot be given back lapses."""
    releases = [delivery.settle(Release()) for delivery in kept]
    for outcome in await asyncio.gather(*releases, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, (LockLost, SourceUnavailable)):
            raise outcome
