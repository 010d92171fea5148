"""A sender for a person who waits: each try has an end, and so has the trying.

A batch whose confirmation is lost may have arrived. It is sent again as it is, over a new link: its messages have
the same message-ids, so the queue's duplicate detection drops those that come twice.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusQuotaExceededError,
)

from worker.azure.network import causes_of
from worker.azure.servicebus.faults import FAULTS, describe_fault, is_not_allowed
from worker.errors import TokenUnavailable
from worker.waits import backoff, loop_time

TRY_TIMEOUT = 30.0
"""Seconds for one try: opening a link where there is none, sending, and the queue's confirmation. A batch of 1 MB
passes a line of 280 kbit/s in that time."""

PATIENCE = 120.0
"""Seconds after which nothing is tried again, once the queue has been reached; a failover takes less."""

FIRST_PATIENCE = 10.0
"""The same before it has been reached: then a wrong name or a closed port is likelier than an outage."""

LONGEST_PAUSE = 10.0
"""Seconds between two tries at the most; the first pause is 1 s, and each is twice the last."""

CLOSE_TIMEOUT = 5.0
"""Seconds for saying goodbye to a broker that may be gone."""

FINAL = (
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusQuotaExceededError,
    TokenUnavailable,
)
"""Answers, not faults: the next try would bring the same."""

Answer = TypeVar("Answer")


class RetryingSender:
    """A sender to one queue; an async context manager. `waiting` is told what is waited for, and why again.

    Its methods raise what the SDK raised last (`servicebus_faults.FAULTS`). The link is opened by the first use.
    One coroutine at a time sends, as the SDK's senders require; another may make the next batch meanwhile.
    """

    def __init__(self, client: ServiceBusClient, queue: str, waiting: Callable[[str], None]) -> None:
        """`client` should not retry by itself: its retries would say nothing, and share the time of one try."""
        self._client = client
        self._queue = queue
        self._waiting = waiting
        self._sender: ServiceBusSender | None = None
        self._opening = asyncio.Lock()
        self._was_reached = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def create_message_batch(self, max_size_in_bytes: int | None = None) -> ServiceBusMessageBatch:
        return await self._keep_trying(
            lambda sender: sender.create_message_batch(max_size_in_bytes), f"a link to queue {self._queue!r}"
        )

    async def send(self, message: ServiceBusMessage | ServiceBusMessageBatch) -> None:
        """Return when the queue has confirmed it."""
        count = len(message) if isinstance(message, ServiceBusMessageBatch) else 1
        what = "a message" if count == 1 else f"{count:,} messages"
        await self._keep_trying(
            lambda sender: sender.send_messages(message, timeout=TRY_TIMEOUT),
            f"queue {self._queue!r} to confirm {what}",
        )
        self._waiting("the next messages to be made ready")

    async def _keep_trying(
        self, operation: Callable[[ServiceBusSender], Awaitable[Answer]], waiting_for: str
    ) -> Answer:
        started = loop_time()
        self._waiting(waiting_for)
        for number in itertools.count(1):
            try:
                return await self._try_once(operation)
            except FAULTS as error:
                await self._close()
                pause = backoff(number, base=1.0, cap=LONGEST_PAUSE)
                patience = PATIENCE if self._was_reached else FIRST_PATIENCE
                if _is_final(error) or loop_time() + pause - started > patience:
                    error.add_note(f"Queue {self._queue!r}")  # which the SDK's errors do not tell
                    raise
                self._waiting(f"{waiting_for}, try {number + 1}; the last one failed: {describe_fault(error)}")
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: itertools.count does not end")

    async def _try_once(self, operation: Callable[[ServiceBusSender], Awaitable[Answer]]) -> Answer:
        try:
            async with asyncio.timeout(TRY_TIMEOUT):
                return await operation(await self._open())
        except TimeoutError as error:
            silence = f"queue {self._queue!r} did not answer within {TRY_TIMEOUT:.0f} s"
            raise OperationTimeoutError(message=silence) from error

    async def _open(self) -> ServiceBusSender:
        async with self._opening:
            if self._sender is None:
                self._sender = self._client.get_queue_sender(self._queue)
                await self._sender.__aenter__()
                self._was_reached = True
            return self._sender

    async def _close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            with contextlib.suppress(*FAULTS):  # it is being thrown away
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await sender.close()


def _is_final(error: BaseException) -> bool:
    return any(isinstance(cause, FINAL) or is_not_allowed(cause) for cause in causes_of(error))
