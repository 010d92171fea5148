"""A batch's session on the results queue: what a collector may do with it, and that over the SDK."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    SessionCannotBeLockedError,
)

from worker.azure.servicebus.messages import read_body
from worker.client.batches import (
    CollectionRecord,
    decode_record,
    encode_record,
)
from worker.errors import WorkerError
from worker.jobs.job import (
    CLAIM_TYPE,
)

MANIFEST_SUBJECT = "batch-manifest"
GROUP = 250
"""Results that are received, made durable and completed together."""
IDLE_WAIT = 1.0
"""Seconds that one receive waits for a first result."""
REQUEST_TIMEOUT = 30.0
"""Seconds for one answer of the broker about a session, and for opening it."""


class BeingCollected(WorkerError):
    """Another collector holds the batch's session."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"batch {batch_id} is being collected by another process. If that one has died, its lock lapses "
            "within the queue's lock duration, 5 minutes at most; then collect again."
        )
        self.batch_id = batch_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message of a results session. `body` is empty where it is neither bytes nor text; a claim stands for the
    result."""

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


def _read_message(message: ServiceBusReceivedMessage) -> Received:
    return Received(
        is_manifest=message.subject == MANIFEST_SUBJECT,
        is_claim=message.content_type == CLAIM_TYPE,
        body=read_body(message),
        number=message.sequence_number or 0,
        message=message,
    )
