"""Sending a batch: its manifest, then a message for each line, as few transfers as the queue's message size allows.

A line that is too large for a message lies in Blob storage, and its message is the claim of it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageHeader, AmqpMessageProperties
from azure.servicebus.exceptions import MessageSizeExceededError

from worker.azure.blob.claims import BlobClaims
from worker.azure.blob.container import BlobFailed
from worker.azure.servicebus.faults import FAULTS
from worker.azure.servicebus.forwarding import LONGEST_LIFE
from worker.azure.servicebus.packing import largest_body, pack
from worker.azure.servicebus.sending import RetryingSender
from worker.client.batch_files import BatchFile, FileJob, InvalidBatch
from worker.client.batches import OnProgress, Progress
from worker.client.result_session import MANIFEST_SUBJECT
from worker.errors import WorkerError
from worker.jobs.batch_records import Manifest, encode_manifest, manifest_id
from worker.jobs.claims import encode_claim
from worker.jobs.copies import CHECK_RESULT, MODEL_PROPERTY
from worker.jobs.job import CLAIM_TYPE, make_job_id, rfc3339
from worker.jobs.replays import InvalidDeadline, replay_id

READ_AHEAD = 4 << 20
"""Bytes of lines that are read, sorted by their queues, and where they are too large put into Blob storage,
together: a dozen batches and more, so that the last one for each queue, which is not full, costs little."""

MILLISECOND = timedelta(milliseconds=1)
SCHEDULED = "x-opt-scheduled-enqueue-time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What every message of a submission has. `deadline` and `enqueue_at` have a time zone; until the latter
    nobody receives the message. `check_result`: the batch was submitted before, so its jobs may have been answered.
    """

    batch_id: str
    time_to_live: timedelta | None
    deadline: datetime | None
    check_result: bool = False
    enqueue_at: datetime | None = None


def require_times(stamp: Stamp, now: float) -> None:
    """Raises InvalidDeadline unless both moments have a time zone, now, enqueuing and deadline come in that order,
    and the time to live is one."""
    deadline, enqueue_at, life = stamp.deadline, stamp.enqueue_at, stamp.time_to_live
    if life is not None and life < MILLISECOND:
        raise InvalidDeadline(
            f"time_to_live is {life.total_seconds():g} s; it must be at least a millisecond. Next: a longer one, "
            "such as timedelta(hours=4)"
        )
    for name, moment in (("deadline", deadline), ("enqueue_at", enqueue_at)):
        if moment and moment.utcoffset() is None:  # Service Bus would be told another moment than is checked here
            raise InvalidDeadline(
                f"{name} is {moment.isoformat()}, which has no time zone. Next: datetime.now(UTC) has one, and "
                "astimezone() adds this machine's"
            )
    begin = now
    if enqueue_at is not None:
        begin = enqueue_at.timestamp()
        if begin <= now:
            raise InvalidDeadline(
                f"the jobs are scheduled for {rfc3339(begin)}, which is not in the future. Next: a later --at"
            )
    if deadline is not None and deadline.timestamp() <= begin:
        raise InvalidDeadline(
            f"the deadline is {rfc3339(deadline.timestamp())}; it must be after {rfc3339(begin)}, when workers can "
            "receive the jobs. Next: a later --deadline"
        )


class SubmissionInterrupted(WorkerError):
    """`sent` jobs of `total` were confirmed. The cause ended it; what it kept unconfirmed may have arrived too."""

    def __init__(self, sent: int, total: int) -> None:
        super().__init__(f"{sent:,} of {total:,} jobs were sent")
        self.sent = sent
        self.total = total


async def send_manifest(sender: RetryingSender, manifest: Manifest) -> None:
    """Raises SubmissionInterrupted."""
    try:
        await sender.send(manifest_message(manifest))
    except FAULTS as error:
        raise SubmissionInterrupted(0, manifest.total) from error


class JobQueues:
    """Senders to the queues of jobs, opened by their first use; an async context manager. `queue_of` has the models
    whose queues are named; jobs of others go to `entry`."""

    def __init__(
        self, client: ServiceBusClient, entry: str, queue_of: Mapping[str, str], waiting: Callable[[str], None]
    ) -> None:
        self._client = client
        self._entry = entry
        self._queue_of = queue_of
        self._waiting = waiting
        self._senders: dict[str, RetryingSender] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self._stack.aclose()

    def queue(self, model: str) -> str:
        return self._queue_of.get(model, self._entry)

    def sender(self, queue: str) -> RetryingSender:
        sender = self._senders.get(queue)
        if sender is None:
            sender = self._senders[queue] = RetryingSender(self._client, queue, self._waiting)
            self._stack.push_async_exit(sender)
        return sender


async def send_jobs(
    queues: JobQueues,
    jobs: Iterable[FileJob],
    total: int,
    stamp: Stamp,
    *,
    claims: BlobClaims | None,
    report: OnProgress,
) -> None:
    """Each of these `total` jobs to the queue of its model, in their order. The next batch is made while the
    confirmation of one is awaited. Raises SubmissionInterrupted: by Service Bus, by Blob storage, or because the
    file has changed."""
    sent = 0
    try:
        async with aclosing(_batches(queues, jobs, stamp, claims)) as batches:
            ready = await anext(batches, None)
            while ready is not None:
                # both to their ends: what was sent is known when the next batch cannot be made
                confirmed, following = await asyncio.gather(
                    ready.send(), anext(batches, None), return_exceptions=True
                )
                if confirmed is not None:
                    raise confirmed
                sent += ready.jobs
                report(Progress(done=sent, total=total))
                if isinstance(following, BaseException):
                    raise following
                ready = following
    except (InvalidBatch, BlobFailed, *FAULTS) as error:
        raise SubmissionInterrupted(sent, total) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    sender: RetryingSender
    batch: ServiceBusMessageBatch
    jobs: int

    async def send(self) -> None:
        await self.sender.send(self.batch)


async def _batches(
    queues: JobQueues, jobs: Iterable[FileJob], stamp: Stamp, claims: BlobClaims | None
) -> AsyncGenerator[_Batch, None]:
    for group in _read_ahead(jobs):
        for queue, alike in _by_queue(group, queues).items():
            sender = queues.sender(queue)
            messages = _job_messages(alike, stamp, await largest_body(sender), claims)
            async for packed in pack(sender, messages, lambda message: message, _refuse):
                yield _Batch(sender=sender, batch=packed.batch, jobs=len(packed.entries))


def _by_queue(group: Sequence[FileJob], queues: JobQueues) -> Mapping[str, Sequence[FileJob]]:
    by_queue: dict[str, list[FileJob]] = {}
    for job in group:
        by_queue.setdefault(queues.queue(job.model), []).append(job)
    return by_queue


def _refuse(message: AmqpAnnotatedMessage, allowed: int) -> None:
    """No line comes here: what is too large is refused or stored before. A message must not be lost silently."""
    job_id = message.properties.message_id if message.properties else None
    raise MessageSizeExceededError(
        message=f"the message of job {job_id!r} is larger than the {allowed:,} bytes of a batch"
    )


def make_manifest(batch: BatchFile, stamp: Stamp) -> Manifest:
    return Manifest(
        batch_id=stamp.batch_id,
        total=batch.total,
        sha256=batch.sha256,
        submitted_at=rfc3339(datetime.now(UTC).timestamp()),
        starts_at=rfc3339(stamp.enqueue_at.timestamp()) if stamp.enqueue_at else None,
    )


def manifest_message(manifest: Manifest) -> ServiceBusMessage:
    return ServiceBusMessage(
        encode_manifest(manifest),
        message_id=manifest_id(manifest.batch_id),
        subject=MANIFEST_SUBJECT,
        session_id=manifest.batch_id,
        correlation_id=manifest.batch_id,
        content_type="application/json",
    )


async def _job_messages(
    jobs: Sequence[FileJob], stamp: Stamp, largest: int, claims: BlobClaims | None
) -> AsyncIterator[AmqpAnnotatedMessage]:
    """Each job's message, made when it is asked for."""
    claimed = [] if claims is None else [job.line for job in jobs if len(job.line) > largest]
    claim_of = dict(zip(claimed, await _store(claims, stamp.batch_id, claimed), strict=True))
    for number, job in enumerate(jobs):
        if number % 16 == 0:
            await asyncio.sleep(0)  # a millisecond of work: the batch before goes on being written meanwhile
        yield job_message(job, claim_of.get(job.line), stamp)


def job_message(job: FileJob, claim: bytes | None, stamp: Stamp) -> AmqpAnnotatedMessage:
    """AMQP's own form: making a `ServiceBusMessage` takes twice the time, which counts for a million jobs."""
    job_id = make_job_id(stamp.batch_id, job.custom_id)
    properties: dict[str, Any] = {"job-id": job_id} if job.replay else {}
    if stamp.deadline:
        properties["deadline"] = rfc3339(stamp.deadline.timestamp())
    if stamp.check_result:
        properties[CHECK_RESULT] = True
    if claim is not None:
        properties[MODEL_PROPERTY] = job.model
    life = stamp.time_to_live
    return AmqpAnnotatedMessage(
        data_body=job.line if claim is None else claim,
        header=AmqpMessageHeader(time_to_live=min(LONGEST_LIFE, life // MILLISECOND)) if life else None,
        properties=AmqpMessageProperties(
            message_id=replay_id(job_id, job.replay) if job.replay else job_id,
            correlation_id=stamp.batch_id,
            content_type="application/json" if claim is None else CLAIM_TYPE,
        ),
        application_properties=properties or None,
        annotations={SCHEDULED: stamp.enqueue_at} if stamp.enqueue_at else None,
    )


def _read_ahead(jobs: Iterable[FileJob]) -> Iterator[Sequence[FileJob]]:
    group: list[FileJob] = []
    size = 0
    for job in jobs:
        group.append(job)
        size += len(job.line)
        if size >= READ_AHEAD:
            yield group
            group, size = [], 0
    yield group


async def _store(claims: BlobClaims | None, batch_id: str, lines: Sequence[bytes]) -> Sequence[bytes]:
    """The encoded claims of these lines."""
    if claims is None or not lines:
        return ()
    outcomes = await asyncio.gather(*[claims.store(batch_id, line) for line in lines], return_exceptions=True)
    stored = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        stored.append(encode_claim(outcome))
    return stored
