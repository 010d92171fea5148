"""The life of one job: receive, decode, admit, call, classify, write, settle.

Read `process` first, then downwards: each function is one verb of that life. Which failure is called again
decides `retry.py`, what may happen now `limits.py`, what is said to the broker `outcomes.settlement_of`.
The result is written before the message is settled: at least once, and effects once, because results are keyed by
the job's id.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from worker.errors import (
    CallFailed,
    Expired,
    HandedBack,
    LockLost,
    NotAJob,
    RefusedByService,
    ResultTooLarge,
    SinkUnavailable,
    SourceUnavailable,
    Throttled,
    Unavailable,
)
from worker.interfaces import (
    BackedOff,
    CallEnded,
    Delivery,
    JobEnded,
    JobFaulted,
    JobStarted,
    Model,
    Observer,
    ResultWritten,
    Settled,
    Sink,
    Source,
)
from worker.jobs import Job, Record, decode, encode_result
from worker.limits import Gate, Gates, Intake, Setup, Slot, admit
from worker.outcomes import (
    Answered,
    Concluded,
    Failed,
    FailureCode,
    Faulted,
    HandBackReason,
    Lapse,
    Lost,
    Outcome,
    Refused,
    Response,
    Settlement,
    Unfinished,
    Unreadable,
    settlement_of,
)
from worker.retry import Course, RetryPolicy, retrying
from worker.waits import Interrupt, loop_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a job is kept. Seconds."""

    max_age: float = 86_400.0
    """From enqueuing to the deadline of a job that names none."""
    parking: float = 900.0
    """At closed gates, before it is handed back."""
    setup: float = 60.0
    """For our own set-up to be mended, before it is handed back."""


@dataclass(kw_only=True)
class Processor:
    """Takes deliveries through their lives, many at a time. `clock` is Unix time."""

    source: Source
    model: Model
    sink: Sink
    gates: Gates
    setup: Setup
    intake: Intake
    policy: RetryPolicy
    sink_policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(base=0.25, cap=10.0))
    patience: Patience
    observer: Observer
    pod: str
    clock: Callable[[], float] = time.time
    chance: Callable[[], float] = field(default=random.random)

    async def process(self, delivery: Delivery, slot: Slot, interrupt: Interrupt) -> None:
        """Bring a delivery to its outcome and settle it. The slot is free once the result is written."""
        delivery.when_lost(lambda: interrupt.by(LockLost("the lock lapsed")))
        course = Course()
        with slot:
            outcome = await self._conclude(delivery, interrupt, course)
            slot.free()
            self._report(delivery, outcome, course)
            await self._settle(delivery, settlement_of(outcome))

    async def _conclude(self, delivery: Delivery, interrupt: Interrupt, course: Course) -> Outcome:
        try:
            async with interrupt:
                job = decode(delivery.envelope, max_age=self.patience.max_age)
                started = self._start(job)
                outcome = await self._answer(job, course)
                return await self._write(job, outcome, course, started)
        except NotAJob as error:
            return Unreadable(reason=error.reason, description=error.description)
        except LockLost:
            return Lost()
        except HandedBack as error:
            return Unfinished(reason=HandBackReason(error.reason))
        except Exception as error:  # a fault of ours must cost one job, not the pod and all it holds
            self.observer(JobFaulted(message_id=delivery.envelope.message_id, error=error))
            return Faulted()

    def _start(self, job: Job) -> float:
        now = self.clock()
        self.observer(JobStarted(queue=job.queue, waited=max(0.0, now - job.enqueued_at)))
        return now

    async def _answer(self, job: Job, course: Course) -> Concluded:
        """Call until there is a last word."""
        gates = self.gates.of(job.line.model)
        if gates is None:
            return self._not_allowed(job)
        retrier = retrying(
            self.policy,
            course,
            left=lambda: job.deadline - self.clock(),
            chance=self.chance,
            on_backoff=lambda seconds, error: self._back_off(job, course, seconds, error),
        )
        try:
            return Answered(response=await retrier(self._attempt, job, gates, course))
        except Expired as error:
            return Failed(code=FailureCode.EXPIRED, message=str(error))
        except (RefusedByService, Unavailable) as error:
            return last_word(error, course)

    async def _attempt(self, job: Job, gates: Sequence[Gate], course: Course) -> Response:
        """One call, once our set-up and a gate let it through. Raises CallFailed, HandedBack or Expired."""
        left = job.deadline - self.clock()
        if left <= 0:
            raise Expired(f"the deadline passed {-left:.0f} s ago, after {course.calls} calls")
        gate = await self._admit(gates, course, left)
        async with self.setup.trial(self._held_until(course)):
            return await self._call(job, gate, course)

    async def _admit(self, gates: Sequence[Gate], course: Course, left: float) -> Gate:
        now = loop_time()
        if course.parked_until is None and all(gate.opens_at > now for gate in gates):
            course.parked_until = now + self.patience.parking
        until = now if course.parked_until is None else course.parked_until
        deadline = now + left
        try:
            return await admit(gates, until=min(until, deadline))
        except HandedBack:
            if until < deadline:
                raise
            raise Expired(f"no deployment was open before the deadline, after {course.calls} calls") from None

    async def _call(self, job: Job, gate: Gate, course: Course) -> Response:
        started = loop_time()
        course.calls += 1
        course.deployment, course.endpoint = gate.target.deployment, gate.target.endpoint
        try:
            response = await self.model.complete(job, gate.target)
        except CallFailed as error:
            self._note_call(gate, course, started, error.status, error.detail)
            if isinstance(error, Throttled):
                gate.throttle(error.retry_after)
            elif isinstance(error, Unavailable):
                course.failures += 1
            raise
        self._note_call(gate, course, started, response.status)
        return response

    def _note_call(
        self, gate: Gate, course: Course, started: float, status: int | None, detail: str | None = None
    ) -> None:
        seconds = loop_time() - started
        course.call_seconds += seconds
        self.observer(
            CallEnded(
                deployment=gate.target.deployment,
                status=str(status) if status else "none",
                seconds=seconds,
                detail=detail,
            )
        )

    async def _write(self, job: Job, outcome: Concluded, course: Course, started: float) -> Concluded:
        """Write until the sink has it: the answer is paid for, so it is kept as long as the lock is."""
        line = self._encode(job, outcome, course, started)
        failures = 0
        while True:
            begun = loop_time()
            try:
                await self.sink.write(job, line)
            except SinkUnavailable as error:
                failures += 1
                self.intake.close("sink", str(error))
                await self._wait_for_sink(failures)
            except ResultTooLarge as error:
                if isinstance(outcome, Failed):
                    raise
                outcome = Failed(code=FailureCode.ANSWER_TOO_LARGE, message=str(error))
                line = self._encode(job, outcome, course, started)
            else:
                self.intake.open("sink")
                self.observer(ResultWritten(seconds=loop_time() - begun))
                return outcome

    async def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        if isinstance(settlement, Lapse):
            return
        try:
            await self.source.settle(delivery, settlement)
        except (LockLost, SourceUnavailable):
            # the result is written and keyed by the job: a redelivery changes nothing
            self.observer(Settled(settlement=settlement, confirmed=False))
        else:
            self.observer(Settled(settlement=settlement, confirmed=True))

    def _held_until(self, course: Course) -> float:
        """A job's patience with a wrong set-up begins when it first meets it."""
        if course.held_until is None and self.setup.is_wrong:
            course.held_until = loop_time() + self.patience.setup
        return math.inf if course.held_until is None else course.held_until

    def _not_allowed(self, job: Job) -> Failed:
        allowed = ", ".join(sorted(self.gates.models)[:20]) or "any deployment's name"
        message = f"the model {job.line.model[:80]!r} is not one that this worker may call; allowed are: {allowed}"
        return Failed(code=FailureCode.MODEL_NOT_ALLOWED, message=message)

    def _back_off(self, job: Job, course: Course, seconds: float, error: Unavailable) -> None:
        self.observer(BackedOff(job_id=job.id, failures=course.failures, seconds=seconds, detail=error.detail))

    async def _wait_for_sink(self, failures: int) -> None:
        await asyncio.sleep(self.sink_policy.backoff(failures, self.chance()))

    def _encode(self, job: Job, outcome: Concluded, course: Course, started: float) -> bytes:
        record = Record(
            attempts=course.calls,
            deployment=course.deployment,
            endpoint=course.endpoint,
            started=started,
            finished=self.clock(),
            call_seconds=course.call_seconds,
            pod=self.pod,
        )
        return encode_result(job, outcome, record)

    def _report(self, delivery: Delivery, outcome: Outcome, course: Course) -> None:
        envelope = delivery.envelope
        self.observer(
            JobEnded(
                queue=envelope.queue,
                message_id=envelope.message_id,
                outcome=outcome,
                deployment=course.deployment,
                calls=course.calls,
                seconds=max(0.0, self.clock() - envelope.enqueued_at),
            )
        )


def last_word(error: RefusedByService | Unavailable, course: Course) -> Concluded:
    """What the service said last becomes the result; where it said nothing, how often it was tried."""
    if error.status is None:
        message = f"no answer in {course.calls} calls; the last: {error.detail}"
        return Failed(code=FailureCode.ATTEMPTS_EXHAUSTED, message=message)
    return Refused(response=Response(status=error.status, request_id=error.request_id, body=error.body or b"null"))
