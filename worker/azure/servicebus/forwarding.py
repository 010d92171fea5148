"""A message sent on as it was: to the queue of its model, or as the replay of a dead letter to its own.

`copy_of` is the one place where a received message becomes one that is sent.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self, cast

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.servicebus.amqp import (
    AmqpAnnotatedMessage,
    AmqpMessageBodyType,
    AmqpMessageHeader,
    AmqpMessageProperties,
)
from azure.servicebus.exceptions import MessageSizeExceededError

from worker.azure.servicebus.faults import FAULTS, cause_of_fault, describe_fault
from worker.azure.servicebus.links import LockedMessage
from worker.azure.servicebus.packing import pack
from worker.errors import SourceUnavailable
from worker.interfaces import Forward
from worker.jobs.copies import Copy

SEND_TIMEOUT = 10.0
"""Seconds for opening the link, and for each batch: less than the grace of a pod that stops. A batch of 256 KB
passes a line of 210 kbit/s in that time."""

CLOSE_TIMEOUT = 5.0
"""Seconds for closing a link whose broker may be silent."""

LONGEST_LIFE = 0xFFFFFFFF
"""Milliseconds, about 50 days: what a message can say."""

_Copied = tuple[Forward, AmqpAnnotatedMessage]

CARRIED = (
    "correlation_id",
    "content_type",
    "content_encoding",
    "subject",
    "to",
    "reply_to",
    "reply_to_group_id",
    "group_id",
    "group_sequence",
    "user_id",
)
"""Properties of a message that its copy keeps. Its time to live is the copy's to say, and its times are over."""


class ForwardingSender:
    """A `JobSender` to one queue. Use it as a context manager; the link is opened by the first use."""

    def __init__(self, client: ServiceBusClient, queue: str) -> None:
        self.queue = queue
        self._client = client
        self._sender: ServiceBusSender | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def open(self) -> None:
        """Prove that the queue exists and that we may send to it. Raises SourceUnavailable."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._open()
        except FAULTS as error:
            await self._close()
            raise self._unavailable(error) from error

    async def send_on(
        self,
        forwards: Sequence[Forward],
        *,
        sent: Callable[[Sequence[Forward]], None],
        refuse: Callable[[Forward], None],
    ) -> None:
        await self.open()
        try:
            await self._send_in_batches(_copies(forwards, refuse), sent, refuse)
        except FAULTS as error:
            await self._close()
            raise self._unavailable(error) from error

    async def _send_in_batches(
        self,
        copies: AsyncIterator[_Copied],
        sent: Callable[[Sequence[Forward]], None],
        refuse: Callable[[Forward], None],
    ) -> None:
        sender = await self._open()
        async for packed in pack(sender, copies, _message, lambda copied, _: refuse(copied[0])):
            forwards = [forward for forward, _ in packed.entries]
            try:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await sender.send_messages(packed.batch, timeout=SEND_TIMEOUT)
            except MessageSizeExceededError:
                # the queue counts more than the SDK has counted: find out which message it will never take
                if len(forwards) == 1:
                    refuse(forwards[0])
                    continue
                for copied in packed.entries:
                    await self._send_in_batches(_each([copied]), sent, refuse)
            else:
                sent(forwards)

    async def _open(self) -> ServiceBusSender:
        if self._sender is None:
            self._sender = self._client.get_queue_sender(self.queue)
            await self._sender.__aenter__()
        return self._sender

    async def _close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            with contextlib.suppress(*FAULTS):  # it is being thrown away
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await sender.close()

    def _unavailable(self, error: BaseException) -> SourceUnavailable:
        return SourceUnavailable(
            describe_fault(error), subject=f"queue {self.queue!r}", cause=cause_of_fault(error)
        )


async def _copies(forwards: Sequence[Forward], refuse: Callable[[Forward], None]) -> AsyncIterator[_Copied]:
    for forward in forwards:
        try:
            message = copy_of(cast(LockedMessage, forward.delivery).message, forward.copy)
        except FAULTS:  # a message of a kind that the SDK reads and cannot write must not keep the others
            refuse(forward)
        else:
            yield forward, message


async def _each(copies: Sequence[_Copied]) -> AsyncIterator[_Copied]:
    for copied in copies:
        yield copied


def _message(copied: _Copied) -> AmqpAnnotatedMessage:
    return copied[1]


def copy_of(message: ServiceBusReceivedMessage, copy: Copy) -> AmqpAnnotatedMessage:
    """The message as it was, with what the copy changes."""
    raw = message.raw_amqp_message
    properties = raw.properties or AmqpMessageProperties()
    carried = {name: as_sent(getattr(properties, name)) for name in CARRIED}
    originals = {as_sent(name): as_sent(value) for name, value in (raw.application_properties or {}).items()}
    left = copy.time_to_live
    return AmqpAnnotatedMessage(
        **_body_of(raw),
        header=None
        if left is None
        else AmqpMessageHeader(time_to_live=min(LONGEST_LIFE, max(1, round(1000 * left)))),
        properties=AmqpMessageProperties(message_id=copy.message_id, **carried),
        application_properties=copy.apply(originals),
    )


def as_sent(value: Any) -> Any:
    """AMQP's strings are received as bytes, and bytes would be sent as binary."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value
        case dict():
            return {as_sent(key): as_sent(item) for key, item in value.items()}
        case list():
            return [as_sent(item) for item in value]
        case _:
            return value


def _body_of(raw: AmqpAnnotatedMessage) -> dict[str, Any]:
    match raw.body_type:
        case AmqpMessageBodyType.VALUE:
            return {"value_body": as_sent(raw.body)}
        case AmqpMessageBodyType.SEQUENCE:
            return {"sequence_body": as_sent(list(raw.body))}
        case _:
            return {"data_body": list(raw.body)}
