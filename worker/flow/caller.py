"""From a decoded job to the service's last word: admit, call, classify, again where that may help.

`retry.py` decides which failure is called again, `admission/plan.py` which deployment takes a job and when, and the
model's adapter what a status means.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from worker.admission.admission import Admission, Permit, Slot
from worker.admission.costs import Cost, answer_bytes, estimate
from worker.admission.intake import QueueIntake
from worker.errors import (
    AnswerTooLarge,
    BatchCancelled,
    CallFailed,
    Expired,
    HandedBack,
    RefusedByService,
    Throttled,
    Unavailable,
)
from worker.flow.batches import Batches, Membership
from worker.flow.retry import JobProgress, Retrier, RetryPolicy
from worker.flow.rollouts import Rollouts
from worker.interfaces import AnswerUnfit, BackedOff, CallEnded, Model, Observer, Target
from worker.jobs.answers import check_answer
from worker.jobs.job import Job
from worker.jobs.outcomes import (
    Answered,
    Concluded,
    Failed,
    FailureCode,
    HandBackReason,
    Refused,
    Response,
)
from worker.waits import loop_time


@dataclass(kw_only=True)
class Caller:
    """Gets jobs answered, many at a time.

    `parking`: seconds for which a job waits at gates, all in all, before it is handed back. `clock` is Unix time.
    """

    model: Model
    admission: Admission
    policy: RetryPolicy
    parking: float = 900.0
    unfit_answers: int = 0
    """How often an answer that is not the JSON which its job asked for is sought again, and paid for again."""
    observer: Observer
    rollouts: Rollouts = field(default_factory=lambda: Rollouts(0.0))
    batches: Batches = field(default_factory=Batches)
    models: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    """Of each queue, the models that its jobs should ask for: those of others are answered too. None, and a queue
    that is not named: any. Where there are none the queue is drained, and its jobs are refused."""
    clock: Callable[[], float] = time.time
    chance: Callable[[], float] = field(default=random.random)
    _retrier: Retrier = field(init=False)

    def __post_init__(self) -> None:
        self._retrier = Retrier(self.policy, self.chance)

    async def answer(self, job: Job, slot: Slot, progress: JobProgress) -> Concluded:
        """Call until there is a last word. Raises HandedBack."""
        try:
            async with self.batches.join(job) as batch:
                return await self._answer(job, slot, batch, progress)
        except BatchCancelled as error:
            return Failed(code=FailureCode.BATCH_CANCELLED, message=str(error))

    async def _answer(self, job: Job, slot: Slot, batch: Membership, progress: JobProgress) -> Concluded:
        if self._is_drained(job.queue):
            return self._not_allowed(job)
        if self.admission.route(job.line.model) is None:
            return await self._wait_for_rollout(job, slot)
        attempts = _Attempts(self, job, slot, batch, estimate(job), progress)
        try:
            return await self._fitting_answer(attempts)
        except Expired as error:
            return Failed(code=FailureCode.EXPIRED, message=str(error))
        except (RefusedByService, Unavailable) as error:
            return last_word(error, progress)

    async def _fitting_answer(self, attempts: "_Attempts") -> Answered:
        """The first answer that is what the job asked for, or the last that was paid for."""
        answered = Answered(response=await self._retrier.run(attempts))
        for left in reversed(range(self.unfit_answers + 1)):
            warning = check_answer(attempts.job, answered.response.body)
            if warning is None:
                break
            answered = replace(answered, warning=warning)
            self.observer(
                AnswerUnfit(
                    job_id=attempts.job.id,
                    deployment=attempts.progress.target.label if attempts.progress.target else "",
                    code=warning.code,
                    is_called_again=left > 0,
                )
            )
            if not left:
                break
            try:
                answered = Answered(response=await self._retrier.run(attempts))
            except (Expired, RefusedByService, Unavailable, HandedBack):
                break
        return answered

    async def _wait_for_rollout(self, job: Job, slot: Slot) -> Failed:
        """Refuse a job whose model is unknown once no rollout can be bringing it. Raises HandedBack until then."""
        patience = self.rollouts.left(job.line.model, loop_time())
        left = job.deadline - self.clock()
        if patience > 0 and left > 0:
            if not slot.may_be_set_aside:
                slot.intake.back_off(loop_time())
                raise HandedBack(HandBackReason.UNKNOWN_MODEL)
            with slot.set_aside():
                await self.rollouts.hold(min(patience, left))
        if left <= patience:
            return Failed(code=FailureCode.EXPIRED, message="the deadline passed while no pod here knew the model")
        return self._not_allowed(job)

    def _is_drained(self, queue: str) -> bool:
        models = self.models.get(queue)
        return models is not None and not models

    async def _attempt(
        self, job: Job, slot: Slot, batch: Membership, cost: Cost, progress: JobProgress
    ) -> Response:
        """One call, once there is memory for its answer and a gate lets it through.

        Raises CallFailed, HandedBack, BatchCancelled or Expired.
        """
        left = job.deadline - self.clock()
        if left <= 0:
            raise Expired(f"the deadline passed {-left:.0f} s ago, after {progress.calls} calls")
        try:
            deadline = loop_time() + left
            await self._reserve(slot, answer_bytes(job, cost), progress, deadline)
            with await self._admit(job.line.model, slot.intake, cost, progress, deadline) as permit:
                batch.is_calling = True
                try:
                    return await self._call(job, permit, slot, progress)
                finally:
                    batch.is_calling = False
        except CallFailed:
            slot.memory.unreserve()
            batch.require_live()  # what is not called again need not wait for that
            raise
        except BaseException:
            slot.memory.unreserve()  # a job that waits for its next attempt holds no room
            raise

    async def _reserve(self, slot: Slot, size: int, progress: JobProgress, deadline: float) -> None:
        """`deadline` is a time of the loop."""
        now = loop_time()
        until = now + self.parking - progress.parked_seconds
        try:
            await slot.memory.reserve(size, until=min(until, deadline))
        except HandedBack:
            if until >= deadline:
                raise Expired(f"no memory was free before the deadline, after {progress.calls} calls") from None
            slot.intake.back_off(loop_time())
            raise
        progress.parked_seconds += loop_time() - now

    async def _admit(
        self, model: str, intake: QueueIntake, cost: Cost, progress: JobProgress, deadline: float
    ) -> Permit:
        now = loop_time()
        until = now + self.parking - progress.parked_seconds
        try:
            permit = await self.admission.admit(model, cost, until=min(until, deadline))
        except HandedBack as error:
            if error.reason == HandBackReason.PARKED and until >= deadline:
                raise Expired(f"no deployment was open before the deadline, after {progress.calls} calls") from None
            intake.back_off(loop_time())
            raise
        progress.parked_seconds += loop_time() - now
        intake.reset_backoff()
        return permit

    async def _call(self, job: Job, permit: Permit, slot: Slot, progress: JobProgress) -> Response:
        started = loop_time()
        target = progress.target = permit.target
        progress.calls += 1
        try:
            response = await self.model.complete(job, target, slot.memory)
        except CallFailed as error:
            self._note_call(job, target, progress, started, error=error)
            if permit.is_outsized(error):
                raise RefusedByService(
                    error.detail, status=error.status, body=error.body, request_id=error.request_id
                ) from error
            permit.observe(error)
            progress.failures += isinstance(error, Unavailable)
            raise
        permit.observe(response)
        self._note_call(job, target, progress, started, response=response)
        return response

    def _note_call(
        self,
        job: Job,
        target: Target,
        progress: JobProgress,
        started: float,
        *,
        response: Response | None = None,
        error: CallFailed | None = None,
    ) -> None:
        seconds = loop_time() - started
        progress.call_seconds += seconds
        status = response.status if response else error.status if error else None
        self.observer(
            CallEnded(
                job_id=progress.job_id or "",
                queue=job.queue,
                batch_id=job.batch_id,
                model=job.line.model,
                deployment=target.label,
                status=str(status) if status else "none",
                seconds=seconds,
                first_token=response.first_token if response else None,
                throttle=error.kind if isinstance(error, Throttled) else None,
                usage=response.usage if response else None,
                detail=error.detail if error else None,
            )
        )

    def _not_allowed(self, job: Job) -> Failed:
        if self._is_drained(job.queue):
            message = f"the queue {job.queue!r} is drained: AOAI_WORKER_QUEUES maps it to null"
            return Failed(code=FailureCode.MODEL_NOT_ALLOWED, message=message)
        models = self.admission.state.routes.models
        allowed = ", ".join(sorted(models)[:20]) or "any deployment's name"
        message = f"the model {job.line.model[:80]!r} is not one that this worker may call; allowed are: {allowed}"
        return Failed(code=FailureCode.MODEL_NOT_ALLOWED, message=message)


@dataclass(slots=True)
class _Attempts:
    """A job's attempts at being answered."""

    caller: Caller
    job: Job
    slot: Slot
    batch: Membership
    cost: Cost
    progress: JobProgress

    async def make(self) -> Response:
        return await self.caller._attempt(self.job, self.slot, self.batch, self.cost, self.progress)

    def left(self) -> float:
        return self.job.deadline - self.caller.clock()

    def note_backoff(self, seconds: float, error: Unavailable) -> None:
        self.caller.observer(
            BackedOff(job_id=self.job.id, failures=self.progress.failures, seconds=seconds, detail=error.detail)
        )


def last_word(error: RefusedByService | Unavailable, progress: JobProgress) -> Concluded:
    """What the service said last becomes the result; where it said nothing, how often it was tried."""
    if isinstance(error, AnswerTooLarge):
        return Failed(code=FailureCode.ANSWER_TOO_LARGE, message=error.detail)
    if error.status is None:
        message = f"no answer in {progress.calls} calls; the last: {error.detail}"
        return Failed(code=FailureCode.ATTEMPTS_EXHAUSTED, message=message)
    return Refused(response=Response(status=error.status, request_id=error.request_id, body=error.body or b"null"))
