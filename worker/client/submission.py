"""Sending a batch: its manifest, then a message for each line, as few transfers as the queue's message size allows.

A line that is too large for a message lies in Blob storage, and its message is the claim of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import MessageSizeExceededError

from worker.azure.blob.claims import BlobClaims
from worker.azure.blob.container import BlobFailed
from worker.azure.servicebus.faults import FAULTS
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
from worker.jobs.replays import replay_id

READ_AHEAD = 8 << 20
"""Bytes of lines that are read, sorted by their queues, and where they are too large put into Blob storage,
together: dozens of batches, so that the last one for each queue, which is not full, costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What every message of a submission has. `deadline` has a time zone. `check_result`: the batch was submitted
    before, so its jobs may have been answered."""

    batch_id: str
    time_to_live: timedelta | None
    deadline: datetime | None
    check_result: bool = False


class SubmissionInterrupted(WorkerError):
    """`sent` jobs of `total` were confirmed. The cause ended it; what it kept unconfirmed may have arrived too."""

    def __init__(self, sent: int, total: int) -> None:
        super().__init__(f"{sent:,} of {total:,} jobs were sent")
        self.sent = sent
        self.total = total


async def send_manifest(sender: RetryingSender, manifest: Manifest) -> None:
    """Raises SubmissionInterrupted."""
    await _send(sender, manifest_message(manifest), SubmissionInterrupted(0, manifest.total))


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
    """Each of these `total` jobs to the queue of its model. Raises SubmissionInterrupted: by Service Bus, by Blob
    storage, or because the file has changed."""
    sent = 0
    try:
        for group in _read_ahead(jobs):
            for queue, alike in _by_queue(group, queues).items():
                sender = queues.sender(queue)
                messages = _job_messages(alike, stamp, await _largest(sender, sent, total), claims)
                async for packed in pack(sender, messages, lambda message: message, _refuse):
                    await _send(sender, packed.batch, SubmissionInterrupted(sent, total))
                    sent += len(packed.entries)
                    report(Progress(done=sent, total=total))
    except (InvalidBatch, BlobFailed) as error:
        raise SubmissionInterrupted(sent, total) from error


def _by_queue(group: Sequence[FileJob], queues: JobQueues) -> Mapping[str, Sequence[FileJob]]:
    by_queue: dict[str, list[FileJob]] = {}
    for job in group:
        by_queue.setdefault(queues.queue(job.model), []).append(job)
    return by_queue


async def _largest(sender: RetryingSender, sent: int, total: int) -> int:
    try:
        return await largest_body(sender)
    except FAULTS as error:
        raise SubmissionInterrupted(sent, total) from error


async def _send(
    sender: RetryingSender, message: ServiceBusMessage | ServiceBusMessageBatch, if_not: SubmissionInterrupted
) -> None:
    try:
        await sender.send(message)
    except FAULTS as error:
        raise if_not from error


def _refuse(message: ServiceBusMessage, allowed: int) -> None:
    """No line comes here: what is too large is refused or stored before. A message must not be lost silently."""
    raise MessageSizeExceededError(
        message=f"the message of job {message.message_id!r} is larger than the {allowed:,} bytes of a batch"
    )


def make_manifest(batch: BatchFile, batch_id: str) -> Manifest:
    submitted_at = rfc3339(datetime.now(UTC).timestamp())
    return Manifest(batch_id=batch_id, total=batch.total, sha256=batch.sha256, submitted_at=submitted_at)


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
) -> AsyncIterator[ServiceBusMessage]:
    """Each job's message, made when it is asked for."""
    claimed = [] if claims is None else [job.line for job in jobs if len(job.line) > largest]
    claim_of = dict(zip(claimed, await _store(claims, stamp.batch_id, claimed), strict=True))
    for job in jobs:
        yield job_message(job, claim_of.get(job.line), stamp)


def job_message(job: FileJob, claim: bytes | None, stamp: Stamp) -> ServiceBusMessage:
    job_id = make_job_id(stamp.batch_id, job.custom_id)
    properties: dict[str | bytes, Any] = {"job-id": job_id} if job.replay else {}
    if stamp.deadline:
        properties["deadline"] = rfc3339(stamp.deadline.timestamp())
    if stamp.check_result:
        properties[CHECK_RESULT] = True
    if claim is not None:
        properties[MODEL_PROPERTY] = job.model
    return ServiceBusMessage(
        job.line if claim is None else claim,
        message_id=replay_id(job_id, job.replay) if job.replay else job_id,
        correlation_id=stamp.batch_id,
        content_type="application/json" if claim is None else CLAIM_TYPE,
        time_to_live=stamp.time_to_live,
        application_properties=properties or None,
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
