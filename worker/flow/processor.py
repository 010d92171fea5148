"""The life of one job: receive, decode, admit, call, classify, write, settle.

Read `process` first, then downwards: each function is one verb of that life. Admitting, calling and classifying
are the caller's (`caller.py`); what is said to the broker decides `outcomes.settlement_of`.
The result is written before the message is settled: at least once, and effects once, because results are keyed by
the job's id.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.admission.admission import Admission, Place, Slot
from worker.admission.closures import Closure
from worker.admission.suspects import is_suspect
from worker.errors import (
    ClaimUnavailable,
    DeadLetterReason,
    HandedBack,
    LockLost,
    NotAJob,
    ResultTooLarge,
    SinkUnavailable,
    SourceUnavailable,
)
from worker.flow.caller import Caller
from worker.flow.retry import JobProgress, RetryPolicy
from worker.interfaces import (
    Claims,
    Delivery,
    JobEnded,
    JobFaulted,
    JobStarted,
    Observer,
    ResultWritten,
    Settled,
    Sink,
    SuspectMet,
)
from worker.jobs.copies import CHECK_RESULT
from worker.jobs.job import Claim, Envelope, Job, claim_of, decode
from worker.jobs.outcomes import (
    AlreadyDone,
    Concluded,
    Failed,
    FailureCode,
    Faulted,
    HandBackReason,
    Lapse,
    Lost,
    Outcome,
    Settlement,
    Unfinished,
    Unreadable,
    settlement_of,
    without_body,
)
from worker.jobs.results import Record, Result, make_result
from worker.waits import Interrupt, loop_time, release_frames


@dataclass(kw_only=True)
class Processor:
    """Takes deliveries through their lives, many at a time. `clock` is Unix time."""

    caller: Caller
    sink: Sink
    claims: Claims | None = None
    admission: Admission
    observer: Observer
    pod: str
    max_age: float = 86_400.0
    """Seconds from enqueuing to the deadline of a job that names none."""
    store_policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(base=0.25, cap=10.0))
    clock: Callable[[], float] = time.time
    chance: Callable[[], float] = field(default=random.random)

    async def process(
        self, delivery: Delivery, slot: Slot, interrupt: Interrupt, verdict: Failed | None = None
    ) -> None:
        """Bring a delivery to its outcome and settle it. The slot is free once the result is written. With a
        `verdict` nothing is called: it becomes the result."""
        delivery.when_lost(lambda: interrupt.by(LockLost("the lock lapsed")))
        progress = JobProgress()
        with slot:
            outcome = await self._conclude(delivery, slot, interrupt, progress, verdict)
            slot.free()
            self._report(delivery, outcome, progress)
            await self._settle(delivery, settlement_of(outcome))

    async def _conclude(
        self,
        delivery: Delivery,
        slot: Slot,
        interrupt: Interrupt,
        progress: JobProgress,
        verdict: Failed | None,
    ) -> Outcome:
        envelope = delivery.envelope
        try:
            async with interrupt, self._place(envelope):
                job = await self._decode(envelope, slot)
                if _may_be_done(envelope) and await self._is_done(job):
                    return AlreadyDone()
                started = self._start(job, envelope, progress)
                # not by name: the answer's bytes are let go once its line is made
                return await self._write(
                    job, verdict or await self.caller.answer(job, slot, progress), slot, progress, started
                )
        except NotAJob as error:
            return Unreadable(reason=error.reason, description=error.description)
        except LockLost:
            return Lost()
        except HandedBack as error:
            return Unfinished(reason=HandBackReason(error.reason), is_perhaps_written=progress.is_perhaps_written)
        except Exception as error:  # a fault of ours must cost one job, not the pod and all it holds
            self.observer(JobFaulted(message_id=envelope.message_id, error=error))
            return Faulted()

    def _place(self, envelope: Envelope) -> Place:
        count = envelope.delivery_count
        if is_suspect(count):
            self.observer(SuspectMet(queue=envelope.queue, message_id=envelope.message_id, delivery_count=count))
        return self.admission.place(count)

    async def _decode(self, envelope: Envelope, slot: Slot) -> Job:
        claim = claim_of(envelope)
        body = None if claim is None else await self._fetch(claim, slot)
        return decode(envelope, max_age=self.max_age, body=body)

    async def _fetch(self, claim: Claim, slot: Slot) -> bytes:
        """Fetch until it can be read: a store that is down is no fault of the job."""
        if self.claims is None:
            raise NotAJob(
                DeadLetterReason.INVALID_CLAIM,
                "this worker accepts no claim checks: it has no claims container. Set AOAI_WORKER_CLAIMS_CONTAINER",
            )
        self.claims.require_ours(claim)
        await slot.memory.hold(claim.length)
        failures = 0
        try:
            while True:
                try:
                    return await self.claims.fetch(claim)
                except ClaimUnavailable as error:
                    failures += 1
                    self.admission.close(Closure.CLAIMS, str(error))
                    await self._wait_for_store(failures)
        finally:
            # however it ended: jobs without a claim would never show that the store is up again
            self.admission.open(Closure.CLAIMS)

    async def _is_done(self, job: Job) -> bool:
        """Whether an earlier delivery wrote its result. Asks until the sink can say, as it could take no answer."""
        failures = 0
        while True:
            try:
                is_done = await self.sink.has(job)
            except SinkUnavailable as error:
                failures += 1
                await self._wait_for_sink(error, failures)
                continue
            if failures or is_done:  # a sink that knows nothing says no without being asked
                self.admission.open(Closure.SINK)
            return is_done

    def _start(self, job: Job, envelope: Envelope, progress: JobProgress) -> float:
        now = self.clock()
        progress.job_id = job.id
        traceparent = envelope.properties.get("traceparent")
        self.observer(
            JobStarted(
                job_id=job.id,
                queue=job.queue,
                operation=job.line.operation,
                model=job.line.model,
                waited=max(0.0, now - job.enqueued_at),
                traceparent=traceparent if isinstance(traceparent, str) else None,
            )
        )
        return now

    async def _write(
        self, job: Job, outcome: Concluded, slot: Slot, progress: JobProgress, started: float
    ) -> Concluded:
        """The answer is paid for, so it is kept as long as the lock is."""
        result = self._result(job, outcome, progress, started)
        slot.memory.keep(len(result.line))
        outcome = without_body(outcome)
        try:
            await self._write_until_durable(result, progress)
        except ResultTooLarge as error:
            release_frames(error)  # the sink's future keeps it, and they hold the job
            if isinstance(outcome, Failed):
                raise
            outcome = Failed(code=FailureCode.ANSWER_TOO_LARGE, message=str(error))
            await self._write_until_durable(self._result(job, outcome, progress, started), progress)
        return outcome

    async def _write_until_durable(self, result: Result, progress: JobProgress) -> None:
        failures = 0
        while True:
            begun = loop_time()
            progress.is_perhaps_written = True
            try:
                is_new = await self.sink.write(result)
            except SinkUnavailable as error:
                failures += 1
                await self._wait_for_sink(error, failures)
                continue
            self.admission.open(Closure.SINK)
            # after a failure it may be our own first try that is there
            paid_twice = not (is_new or failures or result.failed)
            seconds = loop_time() - begun
            self.observer(ResultWritten(queue=result.job.queue, seconds=seconds, paid_twice=paid_twice))
            return

    async def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        if isinstance(settlement, Lapse):
            return
        try:
            await delivery.settle(settlement)
        except (LockLost, SourceUnavailable):
            # the result is written and keyed by the job: a redelivery changes nothing
            self.observer(Settled(settlement=settlement, confirmed=False))
        else:
            self.observer(Settled(settlement=settlement, confirmed=True))

    async def _wait_for_sink(self, error: SinkUnavailable, failures: int) -> None:
        release_frames(error)
        self.admission.close(Closure.SINK, str(error))
        await self._wait_for_store(failures)

    async def _wait_for_store(self, failures: int) -> None:
        await asyncio.sleep(self.store_policy.backoff(failures, self.chance()))

    def _result(self, job: Job, outcome: Concluded, progress: JobProgress, started: float) -> Result:
        target = progress.target
        record = Record(
            attempts=progress.calls,
            deployment=target.deployment if target else None,
            endpoint=target.endpoint if target else None,
            started=started,
            finished=self.clock(),
            call_seconds=progress.call_seconds,
            pod=self.pod,
        )
        return make_result(job, outcome, record)

    def _report(self, delivery: Delivery, outcome: Outcome, progress: JobProgress) -> None:
        envelope = delivery.envelope
        self.observer(
            JobEnded(
                queue=envelope.queue,
                message_id=envelope.message_id,
                job_id=progress.job_id,
                outcome=outcome,
                deployment=progress.target.label if progress.target else None,
                calls=progress.calls,
                seconds=max(0.0, self.clock() - envelope.waiting_since),
            )
        )


def _may_be_done(envelope: Envelope) -> bool:
    return envelope.delivery_count > 0 or bool(envelope.properties.get(CHECK_RESULT))
