"""Messages into batches, as few transfers as the queue's limit allows. Whoever sends a batch packs it here.

The SDK copies the message-id and the session of the first message onto the batch itself and does not count these
bytes. A batch that it fills to the limit is therefore larger than the queue takes, by 28 bytes for an id of 8
characters and by 84 for one of 64. So room for them is kept from the beginning.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType
from azure.servicebus.exceptions import MessageSizeExceededError

ENVELOPE_BYTES = 512
"""Room for what a batch has beside its messages. With ids as long as Service Bus allows, 128 characters each for
message and session, it is about 290."""

MESSAGE_FIELDS_BYTES = 512
"""Room for all that a job's or result's message has beside its body: message-id and correlation-id of at most 128
and 48 bytes, type, times, deadline, and a `traceparent` that the SDK may add."""

MOST_MESSAGES = 4_500
"""Messages in a batch. Microsoft's SDK for .NET sets this limit because the service does; Python's does not."""

Entry = TypeVar("Entry")


class MakesBatches(Protocol):
    """A sender of the SDK, or what stands before one."""

    async def create_message_batch(self, max_size_in_bytes: int | None = None) -> ServiceBusMessageBatch: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed(Generic[Entry]):
    """A batch that is ready to be sent, and what it was made of. Neither is empty."""

    batch: ServiceBusMessageBatch
    entries: list[Entry]


async def largest_body(sender: MakesBatches) -> int:
    """Bytes of a body that a message to this queue carries beside its own fields."""
    return (await _empty_batch(sender)).max_size_in_bytes - MESSAGE_FIELDS_BYTES


async def pack(
    sender: MakesBatches,
    entries: AsyncIterable[Entry],
    message_of: Callable[[Entry], ServiceBusMessage | AmqpAnnotatedMessage],
    refuse: Callable[[Entry, int], None],
) -> AsyncIterator[Packed[Entry]]:
    """Batches in the order of the entries; one of them is in memory at a time.

    `refuse` is called with an entry whose message fits no batch, and the bytes that a batch takes; the entry is
    left out.
    """
    batch, aboard = await _empty_batch(sender), list[Entry]()
    async for entry in entries:
        message = message_of(entry)
        added = _add(batch, message)
        if not added and aboard:
            yield Packed(batch=batch, entries=aboard)
            batch, aboard = await _empty_batch(sender), []
            added = _add(batch, message)
        if added:
            aboard.append(entry)
        else:
            refuse(entry, batch.max_size_in_bytes)
    if aboard:
        yield Packed(batch=batch, entries=aboard)


async def _empty_batch(sender: MakesBatches) -> ServiceBusMessageBatch:
    limit = (await sender.create_message_batch()).max_size_in_bytes
    return await sender.create_message_batch(max_size_in_bytes=limit - ENVELOPE_BYTES)


def _add(batch: ServiceBusMessageBatch, message: ServiceBusMessage | AmqpAnnotatedMessage) -> bool:
    """Whether the message could be added, and so was."""
    # a body that alone is too large is not encoded to find out: that takes twice its size again
    body = message.body if message.body_type == AmqpMessageBodyType.DATA else ()
    if len(batch) >= MOST_MESSAGES or any(len(part) > batch.max_size_in_bytes for part in body):
        return False
    try:
        batch.add_message(message)
    except MessageSizeExceededError:
        return False
    return True
