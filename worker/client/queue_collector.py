"""A batch on the results queue: count what waits there, move it into files.

A batch is a session of the queue: one collector at a time holds it, and what is collected is gone from there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusAuthorizationError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from worker.azure.servicebus.faults import describe_fault
from worker.client.batches import (
    FOLLOW_TIMEOUT,
    AlreadyCollected,
    BatchStatus,
    CollectionRecord,
    OnProgress,
    Progress,
    counted,
    decode_record,
    encode_record,
    is_whole,
    require_submittable,
)
from worker.client.result_files import ResultOutput, UnusableOutput
from worker.errors import NotAJob, WorkerError
from worker.interfaces import Claims
from worker.jobs.job import (
    CLAIM_TYPE,
    Manifest,
    ResultLine,
    decode_manifest,
    decode_result,
    parse_claim,
    rfc3339,
)

MANIFEST_SUBJECT = "batch-manifest"
GROUP = 250
"""Results that are received, made durable and completed together."""
IDLE_WAIT = 1.0
"""Seconds that one receive waits for a first result."""
REOPEN_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0)
"""Seconds before a session that was lost is opened again, until it has lived for a minute."""
HELD_DELAY = 5.0
"""Seconds between two tries to open a session that another collector holds."""

SUBMIT_PATIENCE = 5.0
"""Seconds that submit waits for a session that another process holds; `status` holds it for a moment only."""
SUBMIT_DELAY = 0.5
REQUEST_TIMEOUT = 30.0
"""Seconds for one answer of the broker about a session, and for opening it."""

SESSION_FAILURES = (
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionLockLostError,
)
"""What a new session mends: a session's receiver never recovers by itself."""


class BeingCollected(WorkerError):
    """Another collector holds the batch's session."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id} is being collected by another process. If that one has died, its lock lapses "
            "within the queue's lock duration, 5 minutes at most; then collect again."
        )
        self.batch_id = batch_id


class UncheckedBatch(WorkerError):
    """An id that was chosen by hand, and no way to see whether another file has it. `reason`: why."""

    def __init__(self, batch_id: str, reason: str, next_step: str) -> None:
        super().__init__(
            f"batch {batch_id} cannot be checked: {reason}. If another file was submitted under this id, the "
            f"results of both would be mixed. Nothing was sent. Next: {next_step}, or leave out --batch: an id "
            "that is made from the file's content needs no check"
        )


class ClaimsNotConfigured(WorkerError):
    """A result lies in Blob storage, and these settings name no container."""

    def __init__(self) -> None:
        super().__init__(
            "a result is too large for the queue and lies in Blob storage. Set AOAI_WORKER_CLAIMS_CONTAINER, or "
            "AOAI_WORKER_BLOB_CONTAINER, to the workers' value and collect again; nothing is lost."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message of a results session. `body` is empty where it is not bytes; a claim stands for the result."""

    is_manifest: bool
    body: bytes
    is_claim: bool = False
    number: int = 0
    """Sequence number; of two messages of a session the later one has the larger."""
    message: ServiceBusReceivedMessage | None = None


class ResultSession(Protocol):
    """A batch's session on the results queue, under our lock; one coroutine uses it."""

    async def receive(self) -> Sequence[Received]:
        """Up to GROUP messages, in order; empty if none came in about a second. Keeps the lock renewed."""

    async def complete(self, received: Sequence[Received]) -> None:
        """Take them off the queue. If it raises, any of them may come again."""

    async def refuse(self, received: Received, description: str) -> None:
        """Move what is neither a result nor a manifest to the dead-letter queue, where it is not lost."""

    def peek(self) -> AsyncIterator[Received]:
        """Everything in the session, in order, without taking it."""

    async def newest(self) -> int:
        """The sequence number of the last message that is there now, 0 if there is none."""

    async def read_record(self) -> CollectionRecord | None:
        """What the session remembers of an earlier collection."""

    async def write_record(self, record: CollectionRecord) -> None:
        """It stays when the session is empty and its lock is gone."""


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
                    f"this identity may not listen to the queue {queue}",
                    'give it the role "Azure Service Bus Data Receiver" there',
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
    delays = iter(REOPEN_DELAYS)
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
            if clock() - opened > 60:
                delays = iter(REOPEN_DELAYS)
            delay = next(delays, None)
            if delay is None:
                raise
            waiting(f"{waiting_for}, again after {delay:g} s; the last try failed: {describe_fault(error)}")
            await asyncio.sleep(delay)


@asynccontextmanager
async def open_session(client: ServiceBusClient, queue: str, batch_id: str) -> "AsyncIterator[BusSession]":
    """Raises BeingCollected."""
    receiver = client.get_queue_receiver(queue, session_id=batch_id)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await stack.enter_async_context(receiver)
        except TimeoutError as error:
            raise OperationTimeoutError(
                message=f"no answer within {REQUEST_TIMEOUT:g} s when the session {batch_id} was opened"
            ) from error
        except SessionCannotBeLockedError as error:
            raise BeingCollected(batch_id) from error
        yield BusSession(receiver)


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
            left = f"Left in the queue: {waiting}. Next: collect into the same file, which adds, or -o - for these"
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
            f"{self._files.batch_id}; the one of {counted(manifest.total, 'job')} that was submitted at "
            f"{manifest.submitted_at} is another. Next: move the file away, or collect into another name"
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


class BusSession:
    """ResultSession over the SDK."""

    def __init__(self, receiver: ServiceBusReceiver) -> None:
        self._receiver = receiver
        self._renew_before = datetime.now(UTC) + self._half_of_lock()
        self._idle_wait = min(IDLE_WAIT, self._half_of_lock().total_seconds() / 2)

    async def receive(self) -> Sequence[Received]:
        if datetime.now(UTC) >= self._renew_before:
            await self._receiver.session.renew_lock(timeout=REQUEST_TIMEOUT)
            self._renew_before = datetime.now(UTC) + self._half_of_lock()
        messages = await self._receiver.receive_messages(max_message_count=GROUP, max_wait_time=self._idle_wait)
        return [_read_message(message) for message in messages]

    async def complete(self, received: Sequence[Received]) -> None:
        # all at once, while nothing else uses the receiver: one by one each would cost a round trip
        completions = [self._receiver.complete_message(one.message) for one in received if one.message]
        for outcome in await asyncio.gather(*completions, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def refuse(self, received: Received, description: str) -> None:
        if received.message:
            await self._receiver.dead_letter_message(
                received.message, reason="InvalidResult", error_description=description
            )

    async def peek(self) -> AsyncIterator[Received]:
        following = 1
        while messages := await self._receiver.peek_messages(
            GROUP, sequence_number=following, timeout=REQUEST_TIMEOUT
        ):
            for message in messages:
                yield _read_message(message)
            following = (messages[-1].sequence_number or 0) + 1

    async def newest(self) -> int:
        return await find_last(self._first_number_from)

    async def _first_number_from(self, number: int) -> int | None:
        messages = await self._receiver.peek_messages(1, sequence_number=number, timeout=REQUEST_TIMEOUT)
        return messages[0].sequence_number if messages else None

    async def read_record(self) -> CollectionRecord | None:
        state = await self._receiver.session.get_state(timeout=REQUEST_TIMEOUT)
        try:
            return decode_record(state) if state else None
        except ValueError:
            return None  # another program's state; the next record replaces it

    async def write_record(self, record: CollectionRecord) -> None:
        await self._receiver.session.set_state(encode_record(record), timeout=REQUEST_TIMEOUT)

    def _half_of_lock(self) -> timedelta:
        """Half of what is left of it; a moment if the SDK does not know or the clocks disagree."""
        now = datetime.now(UTC)
        locked_until = self._receiver.session.locked_until_utc or now
        return max((locked_until - now) / 2, timedelta(seconds=0.1))


async def find_last(first_from: Callable[[int], Awaitable[int | None]]) -> int:
    """The largest number there is, 0 if there is none; `first_from(n)` tells the smallest from n on.

    By doubling steps and then by halves, some thirty questions for a thousand messages among a million: to peek at
    every message would bring each result twice.
    """
    last = await first_from(1)
    if last is None:
        return 0
    step = 1
    while (found := await first_from(last + step)) is not None:
        last, step = found, 2 * step
    absent = last + step  # from here on there was nothing
    while absent - last > 1:
        middle = (last + absent) // 2
        found = await first_from(middle)
        if found is None:
            absent = middle
        else:
            last = found
    return last


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


def _read_message(message: ServiceBusReceivedMessage) -> Received:
    body = message.body
    chunks = [] if isinstance(body, (str, bytes)) else list(body)
    is_bytes = all(isinstance(chunk, bytes) for chunk in chunks)
    return Received(
        is_manifest=message.subject == MANIFEST_SUBJECT,
        is_claim=message.content_type == CLAIM_TYPE,
        body=b"".join(chunks) if is_bytes else b"",
        number=message.sequence_number or 0,
        message=message,
    )
