"""What the broker itself dead-letters gets its error line, so that a batch always ends.

A job whose time to live has passed, or that was delivered too often, is moved by the broker without a word to its
producer. The sweeper looks into the dead-letter queue every minute or so, writes `expired` or `max_deliveries` and
completes the message. Dead letters with any other reason stay where they are: they are for people.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from worker.admission.admission import Admission
from worker.errors import NotAJob, ResultTooLarge
from worker.flow.dead_letters import Pass, pages
from worker.interfaces import (
    Claims,
    DeadLetters,
    DeadLettersLeft,
    DeadLetterSwept,
    Delivery,
    Observer,
    Sink,
    SweepFailed,
)
from worker.jobs.job import Envelope, Job, claim_of, decode
from worker.jobs.outcomes import Failed, FailureCode
from worker.jobs.results import Record, Result, make_result
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

HELD_BYTES = 16 << 20
"""Of dead letters for people that one pass holds about so many bytes at most."""

RECEIVE_WAIT = 1.0


@dataclass(kw_only=True)
class Sweeper:
    """Sweeps one queue's dead letters every `every` seconds, with jitter, as each pod does so."""

    queue: str
    open_dead_letters: Callable[[], AbstractAsyncContextManager[DeadLetters]]
    sink: Sink
    claims: Claims | None
    admission: Admission
    observer: Observer
    pod: str
    every: float
    chance: Callable[[], float]
    clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Until it is stopping."""
        while not await self.admission.stopping(loop_time() + self.every * (0.5 + self.chance())):
            try:
                async with self.open_dead_letters() as dead_letters:
                    await self.sweep(dead_letters)
            except Exception as error:  # whatever lies in that queue must not cost the pod what it has in flight
                self.observer(SweepFailed(queue=self.queue, detail=str(error) or repr(error)))

    async def sweep(self, dead_letters: DeadLetters) -> None:
        """One pass. Nothing is locked where there is nothing to sweep."""
        left, wanted = await _count(dead_letters)
        async with Pass(dead_letters, count=TOGETHER, wait=RECEIVE_WAIT, held_bytes=HELD_BYTES) as one_pass:
            while wanted > 0 and not self.admission.state.is_stopping and (deliveries := await one_pass.receive()):
                sweepable = [delivery for delivery in deliveries if _is_sweepable(delivery.envelope)]
                wanted -= len(sweepable)
                sweeps = [self._sweep_one(one_pass, delivery) for delivery in sweepable]
                # each is seen to its end, or one would be released while it is being written
                for outcome in await asyncio.gather(*sweeps, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
                    left -= outcome
        self.observer(DeadLettersLeft(queue=self.queue, count=left))

    async def _sweep_one(self, one_pass: Pass, delivery: Delivery) -> bool:
        """Whether it is gone. A message that cannot be decoded, or whose lock was lost, stays in the queue."""
        envelope = delivery.envelope
        code = CODES[envelope.dead_letter_reason or ""]
        try:
            job = await self._decode(envelope)
            if not await self.sink.has(job):
                await self.sink.write(self._error(job, code, envelope))
        except (NotAJob, ResultTooLarge):
            return False
        if not await one_pass.complete(delivery):
            return False
        self.observer(DeadLetterSwept(queue=self.queue, message_id=envelope.message_id, code=code))
        return True

    async def _decode(self, envelope: Envelope) -> Job:
        claim = claim_of(envelope)
        body = await self.claims.fetch(claim) if claim and self.claims else None
        return decode(envelope, max_age=0.0, body=body)

    def _error(self, job: Job, code: FailureCode, envelope: Envelope) -> Result:
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
        return make_result(job, Failed(code=code, message=explain(code, envelope)), record)


def _is_sweepable(envelope: Envelope) -> bool:
    return envelope.dead_letter_reason in CODES


async def _count(dead_letters: DeadLetters) -> tuple[int, int]:
    """How many there are, and how many of these can be swept."""
    looked_at = found = 0
    async for envelopes in pages(dead_letters, TOGETHER):
        looked_at += len(envelopes)
        found += sum(map(_is_sweepable, envelopes))
        if looked_at >= LOOKED_AT:
            break
    return looked_at, found


def explain(code: FailureCode, envelope: Envelope) -> str:
    """What the producer reads of it."""
    if code is FailureCode.EXPIRED:
        return "the message's time to live passed before a worker took the job"
    return (
        f"the job was delivered {envelope.delivery_count} times and never finished: "
        "its workers died or lost their locks; read their logs before you send it again"
    )
