"""A batch on the results queue: count what waits there, move it into files.

A batch is a session of the queue: one collector at a time holds it, and what is collected is gone from there.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
    ServiceBusServerBusyError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from worker.batches import BatchStatus, OnProgress, Progress, is_whole
from worker.errors import NotAJob, WorkerError
from worker.interfaces import Claims
from worker.jobs import CLAIM_TYPE, ResultLine, decode_manifest, decode_result, parse_claim
from worker.result_files import ResultFiles

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


class BeingCollected(WorkerError):
    """Another collector holds the batch's session."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id} is being collected by another process. If that one has died, its lock lapses "
            "within the queue's lock duration, 5 minutes at most; then collect again."
        )
        self.batch_id = batch_id


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
    message: ServiceBusReceivedMessage | None = None


class ResultSession(Protocol):
    """A batch's session on the results queue, under our lock; one coroutine uses it."""

    async def receive(self) -> Sequence[Received]:
        """Up to GROUP messages, in order; empty if none came in about a second. Keeps the lock renewed."""

    async def complete(self, received: Sequence[Received]) -> None:
        """Take them off the queue. If it raises, any of them may come again."""

    async def refuse(self, received: Received, description: str) -> None:
        """Move what is neither a result nor a manifest to the dead-letter queue, where it is not lost."""


async def count_waiting(client: ServiceBusClient, queue: str, batch_id: str, claims: Claims | None) -> BatchStatus:
    """Look at what waits to be collected. Nothing is taken from the queue."""
    try:
        async with open_session(client, queue, batch_id) as session:
            return await _count(batch_id, session.peek(), claims)
    except BeingCollected:
        return BatchStatus(batch_id=batch_id, being_collected_by_other=True)


async def take_all(client: ServiceBusClient, queue: str, batch_id: str, taking: "Taking") -> None:
    """Open the session as often as it takes; give up when it fails again and again."""
    clock = asyncio.get_running_loop().time
    delays = iter(REOPEN_DELAYS)
    give_up_waiting = clock() + (HELD_PATIENCE if taking.follow else 0.0)
    opened: float | None = None
    while True:
        try:
            async with open_session(client, queue, batch_id) as session:
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
async def open_session(client: ServiceBusClient, queue: str, batch_id: str) -> "AsyncIterator[BusSession]":
    """Raises BeingCollected."""
    receiver = client.get_queue_receiver(queue, session_id=batch_id)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(receiver)
        except SessionCannotBeLockedError as error:
            raise BeingCollected(batch_id) from error
        yield BusSession(receiver)


class Taking:
    """One collection: from a session into files, over as many sessions as it takes."""

    def __init__(
        self, files: ResultFiles, *, follow: bool, report: OnProgress, claims: Claims | None = None
    ) -> None:
        self.follow = follow
        self.total: int | None = None
        self._files = files
        self._report = report
        self._claims = claims

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
            if self._files.published or is_whole(len(self._files), self.total):
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
                    lines.append(await read_result(one, self._claims))
                    done.append(one)
            except (ValueError, NotAJob) as error:
                await session.refuse(one, str(error))
            if one.is_claim:  # each may be as large as a whole group of others
                self._files.add(lines)
                lines.clear()
        self._files.add(lines)
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


async def _count(batch_id: str, messages: AsyncIterator[Received], claims: Claims | None) -> BatchStatus:
    total: int | None = None
    verdicts: dict[str, tuple[int, bool]] = {}
    async for message in messages:
        try:
            if message.is_manifest:
                total = decode_manifest(message.body).total
            else:
                line = await read_result(message, claims)
                verdicts[line.job_id] = max(verdicts.get(line.job_id, line.rank), line.rank)
        except (ValueError, NotAJob):
            continue  # neither; the collector will refuse it
    succeeded = sum(is_answer for _, is_answer in verdicts.values())
    return BatchStatus(batch_id=batch_id, total=total, succeeded=succeeded, failed=len(verdicts) - succeeded)


def _read_message(message: ServiceBusReceivedMessage) -> Received:
    body = message.body
    chunks = [] if isinstance(body, (str, bytes)) else list(body)
    is_bytes = all(isinstance(chunk, bytes) for chunk in chunks)
    return Received(
        is_manifest=message.subject == MANIFEST_SUBJECT,
        is_claim=message.content_type == CLAIM_TYPE,
        body=b"".join(chunks) if is_bytes else b"",
        message=message,
    )
