"""The producer's side in Python: submit a Batch input file, ask how far it is, collect a Batch output file.

    async with JobClient.from_environment() as client:
        submission = await client.submit(read_batch_file(Path("jobs.jsonl")))
        await client.collect(submission.batch_id, Path("out.jsonl"), follow=True)

`batch_files.py` checks what goes in, `result_files.py` keeps what comes out; here is the traffic between them
and the queues.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, Self

from azure.core.credentials_async import AsyncTokenCredential
from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from worker.batch_files import BatchFile, InvalidBatch, LineProblem, read_batch_file, read_jobs
from worker.errors import WorkerError
from worker.identity import open_broker
from worker.jobs import (
    BATCH_ID,
    Manifest,
    decode_manifest,
    decode_result,
    encode_manifest,
    make_job_id,
    rfc3339,
)
from worker.result_files import ResultFiles, UnusableOutput
from worker.servicebus import SERVICEBUS_SCOPE, connect
from worker.settings import ConnectionSettings, load

__all__ = [
    "BatchFile",
    "BatchStatus",
    "BeingCollected",
    "Collection",
    "InvalidBatch",
    "InvalidBatchId",
    "JobClient",
    "LineProblem",
    "Progress",
    "Submission",
    "UnusableOutput",
    "make_batch_id",
    "read_batch_file",
]

MANIFEST_SUBJECT = "batch-manifest"
GROUP = 250
"""Results that are received, made durable and completed together."""
IDLE_WAIT = 1.0
"""Seconds that one receive waits for a first result."""
REOPEN_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0)
"""Seconds before a session that was lost is opened again, until it has lived for a minute."""
HELD_DELAY = 5.0
HELD_PATIENCE = 330.0
"""Seconds to wait for a session that another collector holds: a dead one's lock lapses in 5 minutes at most."""

SESSION_FAILURES = (
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionLockLostError,
)
"""What a new session mends: a session's receiver never recovers by itself."""


class InvalidBatchId(WorkerError):
    """Not `[A-Za-z0-9._-]{1,48}`."""


class BeingCollected(WorkerError):
    """Another collector holds the batch's session."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id} is being collected by another process. If that one has died, its lock lapses "
            "within the queue's lock duration, 5 minutes at most; then collect again."
        )
        self.batch_id = batch_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`total` is None until the batch's manifest has come. `held`: another collector is being waited for."""

    done: int
    total: int | None
    failed: int = 0
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    batch_id: str
    total: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """What of a batch waits to be collected; what has been collected is no longer counted.

    `total` is None where there is no manifest (nothing submitted under this id, or all of it collected).
    While another process collects the batch nobody else can look: `being_collected_by_other`, and no counts.
    """

    batch_id: str
    total: int | None = None
    succeeded: int = 0
    failed: int = 0
    being_collected_by_other: bool = False

    @property
    def complete(self) -> bool:
        return self.total is not None and self.succeeded + self.failed >= self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """`complete`: the files have their own names; else they are `.partial` and the next collection goes on.

    `total` is None where no manifest has come yet.
    """

    batch_id: str
    total: int | None
    succeeded: int
    failed: int
    complete: bool

    @property
    def missing(self) -> int | None:
        return None if self.total is None else max(0, self.total - self.succeeded - self.failed)


OnProgress = Callable[[Progress], None]


class JobClient:
    """A connection to the two queues; an async context manager."""

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
            credential = await self._be_somebody(stack)
            # the broker's own refusal, at once; the SDK would wrap it and retry for 11 seconds
            await credential.get_token(SERVICEBUS_SCOPE)
            self._links = _Links(
                senders=await stack.enter_async_context(connect(self._settings, credential)),
                sessions=await stack.enter_async_context(connect(self._settings, credential, retries=0)),
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *details: Any) -> None:
        self._links = None
        await self._stack.aclose()

    async def submit(
        self,
        batch: BatchFile,
        *,
        batch_id: str | None = None,
        time_to_live: timedelta | None = None,
        deadline: datetime | None = None,
        on_progress: OnProgress | None = None,
    ) -> Submission:
        """Send the manifest, then every line. `deadline` needs a time zone.

        Safe to repeat: without a `batch_id` the same file is the same batch, and what Service Bus has seen
        within its duplicate-detection window it drops. So a file that shall run twice needs another id.
        Raises InvalidBatchId, InvalidBatch if the file has changed, or the SDK's ServiceBusError; of an
        interrupted submission those lines were sent that `on_progress` told of.
        """
        batch_id = require_batch_id(batch_id or make_batch_id(batch))
        report = on_progress or _ignore
        async with self._open_links.senders.get_queue_sender(self._settings.results_queue) as sender:
            await sender.send_messages(_manifest_message(batch, batch_id))
        messages = _job_messages(batch, batch_id, time_to_live, deadline)
        async with self._open_links.senders.get_queue_sender(self._settings.jobs_queue) as sender:
            sent = 0
            async for packed in _pack(sender, messages):
                await sender.send_messages(packed)
                sent += len(packed)
                report(Progress(done=sent, total=batch.total))
        return Submission(batch_id=batch_id, total=batch.total, sha256=batch.sha256)

    async def status(self, batch_id: str) -> BatchStatus:
        """Look at what waits to be collected. Nothing is taken from the queue."""
        try:
            async with self._session(require_batch_id(batch_id)) as session:
                return await _count(batch_id, session.peek())
        except BeingCollected:
            return BatchStatus(batch_id=batch_id, being_collected_by_other=True)

    async def collect(
        self,
        batch_id: str,
        out: Path,
        errors: Path | None = None,
        *,
        follow: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Collection:
        """Move the batch's results from the queue into `out`, those that failed into `errors` if named.

        The files have the suffix `.partial` until each job has its result. Killed or stopped at any moment, the
        next collection into the same files goes on. With `follow` it waits until the batch is whole.
        Raises BeingCollected, UnusableOutput, OSError, or the SDK's ServiceBusError.
        """
        with ResultFiles(require_batch_id(batch_id), out, errors) as files:
            taking = Taking(files, follow=follow, report=on_progress or _ignore)
            await self._take_through_failures(batch_id, taking)
            return Collection(
                batch_id=batch_id,
                total=len(files) if files.published else taking.total,
                succeeded=len(files) - files.failed,
                failed=files.failed,
                complete=files.published,
            )

    async def _take_through_failures(self, batch_id: str, taking: "Taking") -> None:
        """Open the session as often as it takes; give up when it fails again and again."""
        clock = asyncio.get_running_loop().time
        delays = iter(REOPEN_DELAYS)
        give_up_waiting = clock() + (HELD_PATIENCE if taking.follow else 0.0)
        opened: float | None = None
        while True:
            try:
                async with self._session(batch_id) as session:
                    opened = clock()
                    return await taking.take(session)
            except BeingCollected:
                if clock() >= give_up_waiting:
                    raise
                taking.report_held()
                await asyncio.sleep(HELD_DELAY)
            except SESSION_FAILURES:
                if opened is None:
                    raise  # it never worked: an answer now is better than patience
                if clock() - opened > 60:
                    delays = iter(REOPEN_DELAYS)
                delay = next(delays, None)
                if delay is None:
                    raise
                await asyncio.sleep(delay)

    @asynccontextmanager
    async def _session(self, batch_id: str) -> "AsyncIterator[_BusSession]":
        """Raises BeingCollected."""
        sessions = self._open_links.sessions
        receiver = sessions.get_queue_receiver(self._settings.results_queue, session_id=batch_id)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(receiver)
            except SessionCannotBeLockedError as error:
                raise BeingCollected(batch_id) from error
            yield _BusSession(receiver)

    async def _be_somebody(self, stack: AsyncExitStack) -> AsyncTokenCredential:
        if self._credential is not None:
            return self._credential
        broker = open_broker(self._settings, _ignore)
        await stack.enter_async_context(broker)
        return broker

    @property
    def _open_links(self) -> "_Links":
        if self._links is None:
            raise RuntimeError("this JobClient is not open: async with JobClient.from_environment() as client")
        return self._links


@dataclass(frozen=True, slots=True, kw_only=True)
class _Links:
    """Where links come from. The SDK retries what senders do; for sessions it would only ask 11 seconds long for
    one that another collector holds."""

    senders: ServiceBusClient
    sessions: ServiceBusClient


def make_batch_id(batch: BatchFile) -> str:
    """From what the file holds, so the same file is the same batch."""
    return f"batch-{batch.sha256[:16]}"


def require_batch_id(batch_id: str) -> str:
    """Raises InvalidBatchId."""
    if not BATCH_ID.fullmatch(batch_id):
        raise InvalidBatchId(
            f"batch id {batch_id!r}: allowed are 1 to 48 letters, digits, dots, underscores and hyphens"
        )
    return batch_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message of a results session. `body` is empty where it is not bytes."""

    is_manifest: bool
    body: bytes
    message: ServiceBusReceivedMessage | None = None


class ResultSession(Protocol):
    """A batch's session on the results queue, under our lock; one coroutine uses it."""

    async def receive(self) -> Sequence[Received]:
        """Up to GROUP messages, in order; empty if none came in about a second. Keeps the lock renewed."""

    async def complete(self, received: Sequence[Received]) -> None:
        """Take them off the queue. If it raises, any of them may come again."""

    async def refuse(self, received: Received, description: str) -> None:
        """Move what is neither a result nor a manifest to the dead-letter queue, where it is not lost."""


class Taking:
    """One collection: from a session into files, over as many sessions as it takes."""

    def __init__(self, files: ResultFiles, *, follow: bool, report: OnProgress) -> None:
        self.follow = follow
        self.total: int | None = None
        self._files = files
        self._report = report

    def report_held(self) -> None:
        self._report(self._progress(held=True))

    async def take(self, session: ResultSession) -> None:
        """Return when the batch is whole and published or, not following, when nothing more is there.

        A result is on the disk before it is completed; the manifest is completed last of all, because until
        then it alone says how many results there will be.
        """
        manifests: list[Received] = []
        while True:
            received = await session.receive()
            manifests += await self._keep(session, received)
            if self._files.published and received:
                continue  # a batch that was whole before: take what has come since, superseding or not
            if self._is_whole():
                self._files.publish()
                return await session.complete(manifests)
            if not received and not self.follow:
                return None

    async def _keep(self, session: ResultSession, received: Sequence[Received]) -> Sequence[Received]:
        """Make the results durable, then complete them. Returns the manifests, which are still to complete."""
        lines, done, manifests = [], [], []
        for one in received:
            try:
                if one.is_manifest:
                    self.total = decode_manifest(one.body).total
                    manifests.append(one)
                else:
                    lines.append(decode_result(one.body))
                    done.append(one)
            except ValueError as error:
                await session.refuse(one, str(error))
        self._files.add(lines)
        self._report(self._progress())
        await session.complete(done)
        return manifests

    def _progress(self, *, held: bool = False) -> Progress:
        total = len(self._files) if self._files.published else self.total
        return Progress(done=len(self._files), total=total, failed=self._files.failed, held=held)

    def _is_whole(self) -> bool:
        return self._files.published or (self.total is not None and len(self._files) >= self.total)


class _BusSession:
    """ResultSession over the SDK."""

    def __init__(self, receiver: ServiceBusReceiver) -> None:
        self._receiver = receiver
        self._renew_before = datetime.now(UTC) + self._half_of_lock()
        self._idle_wait = min(IDLE_WAIT, self._half_of_lock().total_seconds() / 2)

    async def receive(self) -> Sequence[Received]:
        if datetime.now(UTC) >= self._renew_before:
            await self._receiver.session.renew_lock()
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
        """Everything in the session, without taking it."""
        following = 1
        while messages := await self._receiver.peek_messages(GROUP, sequence_number=following):
            for message in messages:
                yield _read_message(message)
            following = (messages[-1].sequence_number or 0) + 1

    def _half_of_lock(self) -> timedelta:
        """Half of what is left of it; a moment if the SDK does not know or the clocks disagree."""
        now = datetime.now(UTC)
        locked_until = self._receiver.session.locked_until_utc or now
        return max((locked_until - now) / 2, timedelta(seconds=0.1))


async def _count(batch_id: str, messages: AsyncIterator[Received]) -> BatchStatus:
    total: int | None = None
    verdicts: dict[str, tuple[int, bool]] = {}
    async for message in messages:
        try:
            if message.is_manifest:
                total = decode_manifest(message.body).total
            else:
                line = decode_result(message.body)
                verdicts[line.job_id] = max(verdicts.get(line.job_id, (-1, False)), (line.replay, line.failed))
        except ValueError:
            continue  # neither; the collector will refuse it
    failed = sum(failed for _, failed in verdicts.values())
    return BatchStatus(batch_id=batch_id, total=total, succeeded=len(verdicts) - failed, failed=failed)


def _manifest_message(batch: BatchFile, batch_id: str) -> ServiceBusMessage:
    submitted_at = rfc3339(datetime.now(UTC).timestamp())
    manifest = Manifest(batch_id=batch_id, total=batch.total, sha256=batch.sha256, submitted_at=submitted_at)
    return ServiceBusMessage(
        encode_manifest(manifest),
        message_id=f"{batch_id}/manifest",
        subject=MANIFEST_SUBJECT,
        session_id=batch_id,
        correlation_id=batch_id,
        content_type="application/json",
    )


def _job_messages(
    batch: BatchFile, batch_id: str, time_to_live: timedelta | None, deadline: datetime | None
) -> Iterator[ServiceBusMessage]:
    """Each line's message, made when it is asked for."""
    properties: dict[str | bytes, Any] | None = {"deadline": rfc3339(deadline.timestamp())} if deadline else None
    for custom_id, line in read_jobs(batch):
        yield ServiceBusMessage(
            line,
            message_id=make_job_id(batch_id, custom_id),
            correlation_id=batch_id,
            content_type="application/json",
            time_to_live=time_to_live,
            application_properties=properties,
        )


async def _pack(
    sender: ServiceBusSender, messages: Iterator[ServiceBusMessage]
) -> AsyncIterator[ServiceBusMessageBatch]:
    """As few transfers as the queue's message size allows; one of them is in memory at a time."""
    packed = await sender.create_message_batch()
    for message in messages:
        if not _fits(packed, message):
            yield packed
            packed = await sender.create_message_batch()
            packed.add_message(message)
    yield packed


def _fits(packed: ServiceBusMessageBatch, message: ServiceBusMessage) -> bool:
    """Whether the message could be added, and so was."""
    try:
        packed.add_message(message)
    except MessageSizeExceededError:
        return False
    return True


def _read_message(message: ServiceBusReceivedMessage) -> Received:
    body = message.body
    chunks = [] if isinstance(body, (str, bytes)) else list(body)
    is_bytes = all(isinstance(chunk, bytes) for chunk in chunks)
    return Received(
        is_manifest=message.subject == MANIFEST_SUBJECT,
        body=b"".join(chunks) if is_bytes else b"",
        message=message,
    )


def _ignore(_: object) -> None:
    """Nobody listens."""
