"""The `queue` sink: results as messages to a session-enabled queue with duplicate detection.

One coroutine owns the sender, because two transfers at once can carry the same delivery-id; what piles up while
it sends goes out together next time. The message-id stands for the job (`jobs.result_id`), so a result that is sent
again is dropped by the queue.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Self

from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusCommunicationError,
    ServiceBusConnectionError,
)

from worker.azure.servicebus.faults import FAULTS, cause_of_fault, describe_fault
from worker.azure.servicebus.packing import pack
from worker.errors import ResultTooLarge, SinkUnavailable
from worker.jobs.job import Job
from worker.jobs.results import Result, result_id

SEND_TIMEOUTS = (5.0, 30.0)
"""Seconds for the first and the second attempt at a batch of results. A confirmation that was lost is noticed soon,
as all other results wait behind it; what is slow gets its time in the second. Nobody hears of the first: the
writers would stop the receiving of the pod."""

CLOSE_TIMEOUT = 5.0
"""Seconds for closing a link whose broker may be silent."""

_PASSING = (TimeoutError, OperationTimeoutError, ServiceBusCommunicationError, ServiceBusConnectionError)
"""What another link may fix at once."""

LINGER = 0.01
"""Seconds for which a result waits for others to go along. Without it most go alone while little is in flight, and
that costs 0.4 ms of CPU for each at 64 in flight and 0.1 ms at 256 (docs/benchmarks.md)."""


@dataclass(slots=True)
class _Pending:
    """A result on its way; `done` is resolved when the queue has taken it."""

    session: str
    message: ServiceBusMessage
    size: int
    done: "asyncio.Future[None]"


class ResultsQueue:
    """A `Sink`. Use it as a context manager; at most one result for each slot is pending."""

    def __init__(self, client: ServiceBusClient, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._pending: list[_Pending] = []
        self._wanted = asyncio.Event()
        self._sender: ServiceBusSender | None = None
        self._sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sending = asyncio.get_running_loop().create_task(self._send_forever(), name="results")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        await self._close()

    async def open(self) -> None:
        """Prove that the queue exists and that we may send to it. Raises SinkUnavailable."""
        try:
            await self._open()
        except FAULTS as error:
            await self._close()
            raise self._unavailable(error) from error

    async def has(self, job: Job) -> bool:
        """A queue of results cannot be asked."""
        return False

    async def write(self, result: Result, *, content_type: str = "application/json") -> bool:
        job, line = result.job, result.line
        message = ServiceBusMessage(
            line,
            message_id=result_id(job),
            session_id=job.batch_id,
            correlation_id=job.batch_id,
            content_type=content_type,
        )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(job.batch_id, message, len(line), done))
        self._wanted.set()
        await done
        return True

    async def _send_forever(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(LINGER)
            self._wanted.clear()
            await self._send_pending()

    async def _send_pending(self) -> None:
        """A function of its own, so that what was sent is not held until there is more to send."""
        pending = [entry for entry in self._pending if not entry.done.done()]
        self._pending.clear()
        # the messages of one batch must be of one session
        for _, group in groupby(sorted(pending, key=_session), key=_session):
            await self._send(list(group))

    async def _send(self, entries: list[_Pending]) -> None:
        try:
            await self._send_twice(entries)
        except MessageSizeExceededError:
            await self._send_singly(entries)
        except Exception as error:  # whatever it is, the writers must hear of it, or they would wait for ever
            failure = self._unavailable(error)
            await self._close()
            _fail(entries, lambda: SinkUnavailable.from_error(failure))

    async def _send_twice(self, entries: list[_Pending]) -> None:
        """Where nothing was confirmed, send again over a new link; duplicate detection drops what came twice."""
        first, second = SEND_TIMEOUTS
        try:
            async with asyncio.timeout(first):
                await self._send_in_batches(entries)
        except _PASSING:
            await self._close()
            async with asyncio.timeout(second):
                await self._send_in_batches([entry for entry in entries if not entry.done.done()])

    async def _send_singly(self, entries: list[_Pending]) -> None:
        """The queue counts more than the SDK has counted: find out whose result it will never take."""
        if len(entries) == 1:
            _fail(entries, partial(ResultTooLarge, size=entries[0].size, allowed=None))
            return
        for entry in entries:
            if not entry.done.done():
                await self._send([entry])

    async def _send_in_batches(self, entries: Iterable[_Pending]) -> None:
        sender = await self._open()
        async for packed in pack(sender, _each(entries), _message, _refuse):
            await sender.send_messages(packed.batch)
            for entry in packed.entries:
                if not entry.done.done():
                    entry.done.set_result(None)

    async def _open(self) -> ServiceBusSender:
        if self._sender is None:
            self._sender = self._client.get_queue_sender(self._queue)
            await self._sender.__aenter__()
        return self._sender

    async def _close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            # it is being thrown away, and whatever it raises must not end the sending: writers would wait for ever
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await sender.close()

    def _unavailable(self, error: BaseException) -> SinkUnavailable:
        return SinkUnavailable(describe_fault(error), subject=f"queue {self._queue!r}", cause=cause_of_fault(error))


def _session(entry: _Pending) -> str:
    return entry.session


def _message(entry: _Pending) -> ServiceBusMessage:
    return entry.message


async def _each(entries: Iterable[_Pending]) -> AsyncIterator[_Pending]:
    for entry in entries:
        yield entry


def _refuse(entry: _Pending, allowed: int) -> None:
    _fail([entry], partial(ResultTooLarge, size=entry.size, allowed=allowed))


def _fail(entries: Iterable[_Pending], make_error: Callable[[], Exception]) -> None:
    """An error of its own for each writer: one shared would gather the traces of all."""
    for entry in entries:
        if not entry.done.done():
            entry.done.set_exception(make_error())
