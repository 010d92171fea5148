"""A batch on the results queue: count what waits there, move it into files.

A batch is a session of the queue: one collector at a time holds it, and what is collected is gone from there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusAuthorizationError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionLockLostError,
)

from worker.azure.servicebus.faults import describe_fault
from worker.client.batches import (
    FOLLOW_TIMEOUT,
    REPEAT_DELAYS,
    AlreadyCollected,
    BatchStatus,
    CollectionRecord,
    OnProgress,
    Progress,
    counted,
    is_whole,
    require_submittable,
)
from worker.client.result_files import ResultOutput, UnusableOutput
from worker.client.result_session import (
    BeingCollected,
    BusSession,
    Received,
    ResultSession,
    open_session,
)
from worker.errors import NotAJob, WorkerError
from worker.interfaces import Claims
from worker.jobs.batch_records import Manifest, decode_manifest
from worker.jobs.job import parse_claim, rfc3339
from worker.jobs.results import ResultLine, decode_result
from worker.roles import SERVICE_BUS_DATA_RECEIVER

SETTLED_AFTER = 60.0
"""Seconds that a session has lived after which the delays before it is opened again begin anew."""
HELD_DELAY = 5.0
"""Seconds between two tries to open a session that another collector holds."""

SUBMIT_PATIENCE = 5.0
"""Seconds that submit waits for a session that another process holds; `status` holds it for a moment only."""
SUBMIT_DELAY = 0.5

SESSION_FAILURES = (
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionLockLostError,
)
"""What a new session fixes: a session's receiver never recovers by itself."""


class UncheckedBatch(WorkerError):
    """An id that was chosen by hand, and no way to see whether another file has it. `reason`: why."""

    def __init__(self, batch_id: str, reason: str, next_step: str) -> None:
        super().__init__(
            f"batch {batch_id} cannot be checked: {reason}. If another file was submitted under this id, the "
            f"results of both would be mixed. Nothing was sent. Next: {next_step}, or leave out --batch: an id "
            "made from the file's content needs no check"
        )


class ClaimsNotConfigured(WorkerError):
    """A result lies in Blob storage, and these settings name no container."""

    def __init__(self) -> None:
        super().__init__(
            "a result is too large for the queue and is in Blob storage. Nothing is lost. Next: set "
            "AOAI_WORKER_CLAIMS_CONTAINER or AOAI_WORKER_BLOB_CONTAINER to the workers' value, then collect again."
        )


async def count_waiting(client: ServiceBusClient, queue: str, batch_id: str, claims: Claims | None) -> BatchStatus:
    """Look at what waits to be collected. Nothing is taken from the queue."""
    try:
        async with open_session(client, queue, batch_id) as session:
            return await _count(batch_id, session, claims)
    except BeingCollected:
        return BatchStatus(batch_id=batch_id, being_collected_by_other=True)


async def announce(
    client: ServiceBusClient,
    queue: str,
    manifest: Manifest,
    send: Callable[[], Awaitable[None]],
    *,
    must_check: bool,
    patience: float = SUBMIT_PATIENCE,
) -> str | None:
    """Send a batch's manifest by `send`, unless another file has its id or it was collected before.

    Returns when it was submitted before, None where it is new. The session is held meanwhile, so that of two
    producers with one id the second sees the first's manifest. Where the session cannot be looked at (no right to
    listen, or held by another for `patience` seconds), a batch that `must_check` raises UncheckedBatch.
    Raises OtherBatch and AlreadyCollected.
    """
    async with AsyncExitStack() as stack:
        try:
            session = await _open_patiently(stack, client, queue, manifest.batch_id, patience)
        except ServiceBusAuthorizationError as error:
            if must_check:
                raise UncheckedBatch(
                    manifest.batch_id,
                    f"this identity may not receive from the queue {queue}",
                    f'give it the role "{SERVICE_BUS_DATA_RECEIVER.name}" there',
                ) from error
            session = None
        except BeingCollected as error:
            if must_check:
                raise UncheckedBatch(
                    manifest.batch_id,
                    f"another process has held its session on the queue {queue} for {patience:g} s",
                    "wait until that has ended",
                ) from error
            session = None
        before = None
        if session:
            record = await session.read_record()
            before = require_submittable(manifest, await _first_manifest(session), record)
        await send()
        return before


async def _open_patiently(
    stack: AsyncExitStack, client: ServiceBusClient, queue: str, batch_id: str, patience: float
) -> "BusSession":
    """Raises BeingCollected."""
    clock = asyncio.get_running_loop().time
    give_up = clock() + patience
    while True:
        try:
            return await stack.enter_async_context(open_session(client, queue, batch_id))
        except BeingCollected:
            if clock() >= give_up:
                raise
            await asyncio.sleep(min(SUBMIT_DELAY, patience))


async def take_all(
    client: ServiceBusClient,
    queue: str,
    batch_id: str,
    collector: "QueueCollector",
    waiting: Callable[[str], None],
) -> None:
    """Open the session as often as it takes; give up when it fails again and again. `waiting` is told what for."""
    waiting_for = f"queue {queue!r} to answer about batch {batch_id}"
    clock = asyncio.get_running_loop().time
    delays = iter(REPEAT_DELAYS)
    opened: float | None = None
    waiting(waiting_for)
    while True:
        try:
            async with open_session(client, queue, batch_id) as session:
                opened = clock()
                return await collector.take(session)
        except BeingCollected:
            if not collector.follow or collector.is_overdue():
                raise
            collector.report_held()
            await asyncio.sleep(HELD_DELAY)
        except SESSION_FAILURES as error:
            if opened is None:
                raise  # it never worked: an answer now is better than patience
            if clock() - opened > SETTLED_AFTER:
                delays = iter(REPEAT_DELAYS)
            delay = next(delays, None)
            if delay is None:
                raise
            waiting(f"{waiting_for}, again after {delay:g} s; the last try failed: {describe_fault(error)}")
            await asyncio.sleep(delay)


class QueueCollector:
    """One collection: from a session into files, over as many sessions as it takes."""

    def __init__(
        self,
        files: ResultOutput,
        *,
        follow: bool,
        report: OnProgress,
        claims: Claims | None = None,
        timeout: float = FOLLOW_TIMEOUT,
    ) -> None:
        self.follow = follow
        self.manifest: Manifest | None = None
        self.timed_out = False
        self.cancelled = self.outdated = 0
        self.cancelled_at: str | None = None
        self._timeout = timeout
        self._clock = asyncio.get_running_loop().time
        self._news_at = self._clock()
        self._snapshot: int | None = None
        self._files = files
        self._report = report
        self._claims = claims

    @property
    def total(self) -> int | None:
        return self.manifest.total if self.manifest else None

    @property
    def complete(self) -> bool:
        return self._files.published

    def is_overdue(self) -> bool:
        """Whether neither a manifest nor a new result has come for the timeout."""
        return self._clock() >= self._news_at + self._timeout

    def report_held(self) -> None:
        self._report(self._progress(held=True))

    async def take(self, session: ResultSession) -> None:
        """Return when the batch is whole and published; not following, when all is taken that was there at the
        beginning; following, when nothing new has come for the timeout (`timed_out`).

        A result is on the disk before it is completed. The manifest is completed last of all, after the record of
        this collection is written: at any moment one of the two says how many results there are.
        Raises AlreadyCollected, or UnusableOutput where OUT is the whole of an earlier submission.
        """
        record = await session.read_record()
        if record is not None and not self._has_all_of(record):
            await self._require_anew(session, record)
        if self._files.published and not self._files.is_stream:
            await self._require_same_submission(session, record)
        if not self.follow and self._snapshot is None:
            self._snapshot = await session.newest()  # else a live batch would go on bringing more
        manifests: list[Received] = []
        reached = 0
        while True:
            is_due = self._snapshot is None or reached < self._snapshot
            received = await session.receive() if is_due else ()
            reached = max([reached, *(one.number for one in received)])
            manifests += await self._keep(session, received)
            if self._files.published and received:
                continue  # a batch that was whole before: take what has come since, superseding or not
            if self._files.published or is_whole(len(self._files), self.total):
                self._files.publish()
                await self._write_record(session, record)
                return await session.complete(manifests)
            if not received and not self.follow:
                return None
            if not received and self.is_overdue():
                self.timed_out = True
                return None

    def _has_all_of(self, record: CollectionRecord) -> bool:
        """OUT alone does not, where the failed jobs went to another file that is not named this time."""
        return self._files.published and len(self._files) >= record.succeeded + record.failed

    async def _require_anew(self, session: ResultSession, record: CollectionRecord) -> None:
        """Raises AlreadyCollected unless the batch was submitted again since it was collected."""
        later = 0
        async for one in session.peek():
            manifest = _manifest_of(one)
            if manifest and not record.is_of(manifest):
                return None
            later += not one.is_manifest
        if later and self._files.is_stream:
            return self._files.publish()  # a stream cannot be added to: it gets the later results alone
        if later:
            waiting = counted(later, "later result")
            left = f"Left in the queue: {waiting}. Next: add them to the same file, or print them with -o -"
        else:
            left = "Nothing is left in the queue. Next: read that file, or submit again with another --batch"
        raise AlreadyCollected(self._files.batch_id, record, left)

    async def _require_same_submission(self, session: ResultSession, record: CollectionRecord | None) -> None:
        """OUT is whole; else it would pass for the whole of a later batch of the same id. Raises UnusableOutput."""
        manifest = await _first_manifest(session)
        if manifest is None or (record.is_of(manifest) if record else len(self._files) >= manifest.total):
            return  # without a record: its collector died before it was written
        raise UnusableOutput(
            f"{self._files.name} holds {counted(len(self._files), 'result')} of an earlier batch "
            f"{self._files.batch_id}, not of the batch of {counted(manifest.total, 'job')} that was submitted at "
            f"{manifest.submitted_at}. Next: move the file away, or collect into another file"
        )

    async def _write_record(self, session: ResultSession, before: CollectionRecord | None) -> None:
        failed = self._files.failed
        succeeded = len(self._files) - failed
        now = rfc3339(datetime.now(UTC).timestamp())
        if self.manifest is not None:
            record = CollectionRecord(
                total=self.manifest.total,
                sha256=self.manifest.sha256,
                submitted_at=self.manifest.submitted_at,
                succeeded=succeeded,
                failed=failed,
                collected_at=now,
                out=self._files.name,
            )
        elif before is not None and not self._files.is_stream:
            same_time = replace(before, succeeded=succeeded, failed=failed, out=self._files.name)
            if same_time == before:
                return  # it says the same already, and the time of the collection stays
            record = replace(same_time, collected_at=now)
        else:
            return  # collected by a version without records, or later results alone
        await session.write_record(record)

    async def _keep(self, session: ResultSession, received: Sequence[Received]) -> Sequence[Received]:
        """Make the results durable, then complete them. Returns the manifests, which are still to complete."""
        lines, done, manifests = [], [], []
        before = (len(self._files), self.manifest)
        for one in received:
            try:
                if one.is_manifest:
                    self.manifest = decode_manifest(one.body)
                    manifests.append(one)
                else:
                    lines.append(await read_result(one, self._claims))
                    done.append(one)
            except (ValueError, NotAJob) as error:
                await session.refuse(one, str(error))
            if one.is_claim:  # each may be as large as a whole group of others
                self._files.add(lines)
                lines.clear()
        self._files.add(lines)
        if (len(self._files), self.manifest) != before:
            self._news_at = self._clock()
        self._report(self._progress())
        await session.complete(done)
        return manifests

    def _progress(self, *, held: bool = False) -> Progress:
        total = len(self._files) if self._files.published else self.total
        return Progress(done=len(self._files), total=total, failed=self._files.failed, held=held)


async def read_result(received: Received, claims: Claims | None) -> ResultLine:
    """Raises ValueError or NotAJob where this is no result, ClaimUnavailable or ClaimsNotConfigured where it cannot
    be read here and now."""
    if not received.is_claim:
        return decode_result(received.body)
    if claims is None:
        raise ClaimsNotConfigured
    return decode_result(await claims.fetch(parse_claim(received.body)))


async def _first_manifest(session: ResultSession) -> Manifest | None:
    """It is sent before the jobs, so it is looked for behind results only where there is none."""
    async for message in session.peek():
        if manifest := _manifest_of(message):
            return manifest
    return None


def _manifest_of(received: Received) -> Manifest | None:
    try:
        return decode_manifest(received.body) if received.is_manifest else None
    except ValueError:
        return None  # the collector will refuse it


async def _count(batch_id: str, session: ResultSession, claims: Claims | None) -> BatchStatus:
    record = await session.read_record()
    manifest: Manifest | None = None
    verdicts: dict[str, tuple[int, bool]] = {}
    async for message in session.peek():
        try:
            if message.is_manifest:
                manifest = decode_manifest(message.body)
            else:
                line = await read_result(message, claims)
                verdicts[line.job_id] = max(verdicts.get(line.job_id, line.rank), line.rank)
        except (ValueError, NotAJob):
            continue  # neither; the collector will refuse it
    if record and (manifest is None or record.is_of(manifest)):
        return BatchStatus(
            batch_id=batch_id,
            total=record.total,
            succeeded=record.succeeded,
            failed=record.failed,
            collected=record,
            later=len(verdicts),
        )
    succeeded = sum(is_answer for _, is_answer in verdicts.values())
    total = manifest.total if manifest else None
    return BatchStatus(batch_id=batch_id, total=total, succeeded=succeeded, failed=len(verdicts) - succeeded)
