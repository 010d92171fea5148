"""The producer's side in Python: submit a Batch input file, ask how far it is, collect a Batch output file.

    async with JobClient.from_environment() as client:
        submission = await client.submit(read_batch_file(Path("jobs.jsonl")))
        await client.collect(submission.batch_id, Path("out.jsonl"), follow=True)

`batch_files.py` checks what goes in, `submission.py` sends it; `queue_collector.py` or `blob_collector.py`, as the
sink is, gets what comes out, and `result_files.py` keeps it.
"""

import asyncio
import contextlib
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from azure.core.credentials_async import AsyncTokenCredential
from azure.servicebus.aio import ServiceBusClient

from worker.azure.blob.claims import BlobClaims
from worker.azure.blob.container import STORAGE_SCOPE
from worker.azure.blob.storage import Storage, open_storage
from worker.azure.identity import open_broker
from worker.azure.servicebus.jobs_queue import SERVICEBUS_SCOPE, connect
from worker.azure.servicebus.packing import largest_body
from worker.azure.servicebus.sending import RetryingSender
from worker.client import queue_collector
from worker.client.batch_files import (
    BatchFile,
    check_sizes,
    check_unchanged,
    read_jobs,
)
from worker.client.batches import (
    FOLLOW_TIMEOUT,
    BatchStatus,
    Collection,
    NeedsBlob,
    OnProgress,
    Submission,
    require_batch_id,
    require_queue_name,
    require_timeout,
)
from worker.client.blob_batches import BlobBatches
from worker.client.blob_collector import BlobCollector
from worker.client.queue_collector import QueueCollector
from worker.client.result_files import ResultOutput, output_of
from worker.client.retries import BatchRetry, begin_retry, require_codes
from worker.client.submission import JobQueues, Stamp, make_manifest, require_times, send_jobs, send_manifest
from worker.client.watching import watch
from worker.environment import load
from worker.jobs.batch_records import Manifest
from worker.settings import ConnectionSettings, Price

NEWEST = 20
"""Batches that are listed: each is counted anew."""

CLOSE_TIMEOUT = 10.0
"""Seconds for closing all connections. Each waits up to a second for the SDK's keep-alive task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Links:
    """Where links come from. The SDK retries nothing: `RetryingSender` does, and for sessions the SDK would only
    ask 11 seconds long for one that another collector holds."""

    senders: ServiceBusClient
    sessions: ServiceBusClient
    storage: Storage
    batches: BlobBatches | None
    """None with the queue sink."""


class LikelyRefused(UserWarning):
    """Jobs have a parameter that the model they name is likely to refuse. They are sent all the same."""


class JobClient:
    """A connection to the queues and, where the settings name one, to Blob storage; an async context manager."""

    def __init__(self, settings: ConnectionSettings, credential: AsyncTokenCredential | None = None) -> None:
        """`credential`: instead of the one that the settings name; it is not closed here."""
        self._settings = settings
        self._credential = credential
        self._stack = AsyncExitStack()
        self._links: _Links | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """Raises InvalidSettings with every problem at once."""
        return cls(load(ConnectionSettings))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            credential = await self._open_credential(stack)
            # the broker's own refusal, at once; the SDK would wrap it and retry for 11 seconds
            await credential.get_token(SERVICEBUS_SCOPE if self._settings.sink == "queue" else STORAGE_SCOPE)
            self._links = await self._connect(stack, credential)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *details: Any) -> None:
        self._links = None
        with contextlib.suppress(TimeoutError):  # a broker that is gone; the process's end closes what is left
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._stack.aclose()

    async def submit(
        self,
        batch: BatchFile,
        *,
        batch_id: str | None = None,
        time_to_live: timedelta | None = None,
        deadline: datetime | None = None,
        enqueue_at: datetime | None = None,
        queue: str | None = None,
        on_progress: OnProgress | None = None,
        on_waiting: Callable[[str], None] | None = None,
    ) -> Submission:
        """Send the manifest, then every line: to the queue of its model where the settings name it
        (AOAI_WORKER_QUEUES), else to the entry queue; all to `queue` where that is given. Before `enqueue_at` no
        worker receives them. Both moments need a time zone; `time_to_live` begins at `enqueue_at`.

        Safe to repeat: without a `batch_id` the same file is the same batch, and what Service Bus has seen
        within its duplicate-detection window it drops. So a file that shall run twice needs another id.
        What is not confirmed is sent again for two minutes, under the same message-ids. `on_waiting` is told
        what is waited for, and why it is tried again.
        Raises InvalidBatchId, InvalidQueueName, InvalidDeadline, InvalidBatch if the file has changed or a line
        fits no message and no claim, OtherBatch where another file has this id, AlreadyCollected, UncheckedBatch
        where a `batch_id` other than the file's own cannot be checked, BlobFailed, or the SDK's ServiceBusError
        where a queue of jobs cannot be reached, all before anything is sent; SubmissionInterrupted after that.
        Warns with LikelyRefused, once for each, of parameters that a model is likely to refuse.
        """
        _require_batch_file(batch)
        for warning in batch.warnings:
            warnings.warn(warning, LikelyRefused, stacklevel=2)
        links, settings = self._open_links, self._settings
        claims = links.storage.claims
        stamp = Stamp(
            batch_id=require_batch_id(make_batch_id(batch) if batch_id is None else batch_id),
            time_to_live=time_to_live,
            deadline=deadline,
            enqueue_at=enqueue_at,
        )
        require_times(stamp, time.time())
        waiting = on_waiting or _ignore
        if queue is None:
            entry, queue_of = settings.jobs_queue, settings.named_queues
        else:
            entry, queue_of = require_queue_name(queue), {}
        async with JobQueues(links.senders, entry, queue_of, waiting) as queues:
            await _require_room(queues, batch, claims)
            before = await self._announce(make_manifest(batch, stamp), waiting)
            stamp = replace(stamp, check_result=before is not None)
            jobs = read_jobs(batch)
            await send_jobs(queues, jobs, batch.total, stamp, claims=claims, report=on_progress or _ignore)
        return Submission(batch_id=stamp.batch_id, total=batch.total, sha256=batch.sha256, submitted_before=before)

    async def status(self, batch_id: str) -> BatchStatus:
        """Look at what is there to be collected. Nothing is taken away."""
        require_batch_id(batch_id)
        links, settings = self._open_links, self._settings
        if links.batches:
            return await links.batches.status(batch_id)
        return await queue_collector.count_waiting(
            links.sessions, settings.results_queue, batch_id, links.storage.claims
        )

    def watch(
        self, batch_id: str, *, on_waiting: Callable[[str], None] | None = None
    ) -> AsyncIterator[BatchStatus]:
        """What `status` tells, every few seconds until the batch is complete or nothing of it is there. A large
        batch is looked at less often: a tenth of the time at most goes into looking.

        What failed once it had worked is tried again for a minute and a half. `on_waiting` is told what is waited
        for; an empty text is a pause between two looks.
        Raises NeedsBlob or InvalidBatchId; the iterator BlobFailed or UnusableBlob.
        """
        return watch(self._blob_batches("watching"), require_batch_id(batch_id), on_waiting or _ignore)

    @property
    def prices(self) -> Mapping[str, Price]:
        """Of the settings, by model."""
        return self._settings.prices or {}

    async def newest(self, limit: int = NEWEST) -> Sequence[BatchStatus]:
        """The batches that were submitted last, the newest first, `limit` of them at most, which is from 1 on.

        Raises NeedsBlob, BlobFailed or UnusableBlob.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be a whole number from 1 on")
        return await self._blob_batches("list").newest(limit)

    async def cancel(self, batch_id: str) -> BatchStatus:
        """No job of the batch is called any more; within 10 s that holds on every pod. Calls under way end, and
        their results come. Cancelling again is harmless. A batch that is complete is left as it is.

        Raises NeedsBlob, UnknownBatch, BlobFailed or UnusableBlob.
        """
        return await self._blob_batches("cancel").cancel(require_batch_id(batch_id))

    async def retry(
        self,
        batch: BatchFile,
        batch_id: str,
        *,
        only: Iterable[str] | str = (),
        on_progress: OnProgress | None = None,
        on_waiting: Callable[[str], None] | None = None,
    ) -> BatchRetry:
        """Send again the jobs of `batch` that failed or, where the batch is cancelled, have no result. Their new
        results supersede the old ones.

        `batch` is the file that was submitted, or any that has the lines of the failed jobs. `only`: this code or
        these, HTTP statuses or failure codes. Safe to repeat: an interrupted retry is finished under its own
        number, and jobs whose retry has no result yet are sent under the number that they have, whatever `only`
        says.
        Raises NeedsBlob, InvalidBatchId, InvalidCode, InvalidBatch, UnknownBatch, RetryRefused, BlobFailed,
        UnusableBlob or the SDK's ServiceBusError, all before anything is sent; SubmissionInterrupted after that.
        """
        _require_batch_file(batch)
        batches, codes = self._blob_batches("retry"), require_codes(only)
        links, settings = self._open_links, self._settings
        claims, waiting = links.storage.claims, on_waiting or _ignore
        stamp = Stamp(batch_id=require_batch_id(batch_id), time_to_live=None, deadline=None)
        async with JobQueues(links.senders, settings.jobs_queue, settings.named_queues, waiting) as queues:
            await _require_room(queues, batch, claims)
            waiting(f"Blob storage to tell the results of batch {batch_id}")
            plan = await begin_retry(batches, batch_id, batch, codes)
            if len(plan):
                stamp = replace(stamp, check_result=bool(plan.resumed))
                jobs = plan.jobs(batch, batch_id)
                await send_jobs(queues, jobs, len(plan), stamp, claims=claims, report=on_progress or _ignore)
        return plan.outcome(batch_id)

    def _blob_batches(self, purpose: str) -> BlobBatches:
        if self._open_links.batches is None:
            raise NeedsBlob(purpose)
        return self._open_links.batches

    async def collect(
        self,
        batch_id: str,
        out: Path | str,
        errors: Path | str | None = None,
        *,
        follow: bool = False,
        timeout: float = FOLLOW_TIMEOUT,
        on_progress: OnProgress | None = None,
        on_waiting: Callable[[str], None] | None = None,
    ) -> Collection:
        """Bring the batch's results into `out`, those that failed into `errors` if named. The queue then has them
        no longer; Blob storage keeps them.

        The files have the suffix `.partial` until each job has its result. Killed or stopped at any moment, the
        next collection into the same files goes on. It takes what was there when it began; with `follow` it waits
        until the batch is whole, or until no manifest and no new result has come for `timeout` seconds, 15 minutes
        by default. `Path("-")` is standard output: a result is settled once it is written there, and what an
        interrupted collection wrote does not come again. `on_waiting` is told whose answer is waited for, and why
        again; an empty text is a pause between two looks. `on_progress` is called at least every few seconds while
        answers come.
        Raises BeingCollected, AlreadyCollected where other files have all of it, UnusableOutput, OutputGone,
        UnwritableOutput, UnusableBlob, ClaimUnavailable, BlobFailed, OSError, or the SDK's ServiceBusError.
        """
        require_timeout(timeout)
        with output_of(require_batch_id(batch_id), Path(out), Path(errors) if errors else None) as files:
            collector = await self._collect_into(
                files, batch_id, follow, timeout, on_progress or _ignore, on_waiting or _ignore
            )
            return Collection(
                batch_id=batch_id,
                total=len(files) if files.published else collector.total,
                succeeded=len(files) - files.failed,
                failed=files.failed,
                complete=collector.complete,
                timed_out=collector.timed_out,
                cancelled=collector.cancelled,
                outdated=collector.outdated,
                cancelled_at=collector.cancelled_at,
            )

    async def _collect_into(
        self,
        files: ResultOutput,
        batch_id: str,
        follow: bool,
        timeout: float,
        report: OnProgress,
        waiting: Callable[[str], None],
    ) -> BlobCollector | QueueCollector:
        links, settings = self._open_links, self._settings
        if links.batches:
            blobs = BlobCollector(links.batches, batch_id, files, report, waiting)
            await blobs.gather(follow=follow, timeout=timeout)
            return blobs
        queue = QueueCollector(files, follow=follow, timeout=timeout, report=report, claims=links.storage.claims)
        await queue_collector.take_all(links.sessions, settings.results_queue, batch_id, queue, waiting)
        return queue

    async def _announce(self, manifest: Manifest, waiting: Callable[[str], None]) -> str | None:
        """When the batch was submitted before. Raises OtherBatch, AlreadyCollected or UncheckedBatch."""
        links, settings = self._open_links, self._settings
        place = "Blob storage" if links.batches else f"queue {settings.results_queue!r}"
        waiting(f"{place} to tell whether batch id {manifest.batch_id} is taken")
        if links.batches:
            return await links.batches.announce(manifest)
        async with RetryingSender(links.senders, settings.results_queue, waiting) as sender:
            return await queue_collector.announce(
                links.sessions,
                settings.results_queue,
                manifest,
                lambda: send_manifest(sender, manifest),
                must_check=manifest.batch_id != make_batch_id(manifest),
            )

    async def _open_credential(self, stack: AsyncExitStack) -> AsyncTokenCredential:
        if self._credential is not None:
            return self._credential
        broker = open_broker(self._settings, _ignore)
        await stack.enter_async_context(broker)
        return broker

    async def _connect(self, stack: AsyncExitStack, credential: AsyncTokenCredential) -> _Links:
        settings = self._settings
        storage = await stack.enter_async_context(open_storage(settings, credential))
        return _Links(
            senders=await stack.enter_async_context(connect(settings, credential, retries=0)),
            sessions=await stack.enter_async_context(connect(settings, credential, retries=0)),
            storage=storage,
            batches=BlobBatches(storage.results, settings.blob_prefix) if storage.results else None,
        )

    @property
    def _open_links(self) -> _Links:
        if self._links is None:
            raise RuntimeError("this JobClient is not open: async with JobClient.from_environment() as client")
        return self._links


def _require_batch_file(batch: object) -> None:
    """Raises TypeError."""
    if not isinstance(batch, BatchFile):
        raise TypeError(f"batch is {batch!r}; it must be a BatchFile. Next: read_batch_file(path) makes one")


async def _require_room(queues: JobQueues, batch: BatchFile, claims: BlobClaims | None) -> None:
    """Raises InvalidBatch where a line fits no message and no claim, or the file has changed."""
    names = {queues.queue(model) for model in batch.models}
    largest = min([await largest_body(queues.sender(name)) for name in sorted(names)])
    check_sizes(batch, message=largest, claim=claims.largest if claims else None)
    check_unchanged(batch)


def make_batch_id(batch: BatchFile | Manifest) -> str:
    """From what the file holds, so the same file is the same batch."""
    return f"batch-{batch.sha256[:16]}"


def _ignore(_: object) -> None:
    """Nobody listens."""
