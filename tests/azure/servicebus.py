"""The probes of Service Bus, through the SDK and the worker's ways past it (`worker/azure/servicebus/private.py`).

Each marks the messages that it sends, and completes what another has left behind.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage, ServiceBusSubQueue, TransportType
from azure.servicebus._pyamqp.error import TokenAuthFailure
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.exceptions import ServiceBusError

from tests.azure.probing import INHERITED, Exchange, Observation, Target, decide, undecided
from worker.azure.network import trust
from worker.azure.servicebus.private import renew_locks, settle_on_link
from worker.jobs.outcomes import Abandon, Complete, Release

WAIT = 10.0
"""Seconds for a message that is on its way."""
_TOO_LARGE = 300_000
"""Bytes: more than a message of a Standard namespace may have."""
_DRAIN_CREDIT = 5
UNKNOWN_QUEUE = "no-such-queue"
_NOT_REFUSED = "not refused"
_OF_THE_CLIENT = (None, "amqp:client-error", "amqp:socket-error", "amqp:unknown-error")


@asynccontextmanager
async def _open(target: Target) -> AsyncIterator[ServiceBusClient]:
    options: dict[str, Any] = {}
    if target.servicebus_endpoint is not None:
        options["custom_endpoint_address"] = f"sb://{target.servicebus_endpoint}"
    async with ServiceBusClient(
        target.namespace,
        target.credential,
        transport_type=TransportType.Amqp,
        ssl_context=trust(target.ca_file),
        retry_total=0,
        **options,
    ) as client:
        yield client


async def _send(client: ServiceBusClient, target: Target, *names: str | None) -> str:
    """Messages with these message-ids. Returns their mark, which is their subject."""
    mark = uuid.uuid4().hex
    async with client.get_queue_sender(target.queue) as sender:
        for name in names:
            await sender.send_messages(ServiceBusMessage(b"{}", message_id=name, subject=mark))
    return mark


async def _receive(receiver: ServiceBusReceiver, mark: str, count: int = 1) -> list[ServiceBusReceivedMessage]:
    """Exactly so many of that mark. Raises LookupError where they do not come."""
    messages: list[ServiceBusReceivedMessage] = []
    while len(messages) < count:
        more = await receiver.receive_messages(count - len(messages), max_wait_time=WAIT)
        if not more:
            raise LookupError(f"{len(messages)} of {count} messages came within {WAIT:g} s")
        for message in more:
            if message.subject == mark:
                messages.append(message)
            else:
                await receiver.complete_message(message)
    return messages


async def _settle(receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, outcome: Any) -> None:
    await settle_on_link(receiver, message, outcome, timeout=WAIT)


def _name() -> str:
    return f"probe/{uuid.uuid4().hex}"


def _counted(asked: str, *counts: int | None) -> Exchange:
    return Exchange(asked=asked, headers={}, body={"delivery_counts": list(counts)})


async def _counts_after(target: Target, asked: str, **settlement: Any) -> Observation:
    """Delivery counts before and after `settlement`; `wanted` is what the second must be."""
    wanted = settlement.pop("wanted")
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, _name())
        (first,) = await _receive(receiver, mark)
        await receiver._handler.settle_messages_async(
            first._delivery_id, first._delivery_tag, await_outcome=True, **settlement
        )
        (second,) = await _receive(receiver, mark)
        await _settle(receiver, second, Complete())
    counts = (first.delivery_count, second.delivery_count)
    return decide(counts == (0, wanted), _counted(asked, *counts), seen=f"{counts[0]}, then {counts[1]}")


async def released(target: Target) -> Observation:
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, _name())
        (first,) = await _receive(receiver, mark)
        await _settle(receiver, first, Release())
        (second,) = await _receive(receiver, mark)
        await _settle(receiver, second, Complete())
    counts = (first.delivery_count, second.delivery_count)
    return decide(counts == (0, 0), _counted("released", *counts), seen=f"{counts[0]}, then {counts[1]}")


async def modified_without_failure(target: Target) -> Observation:
    return await _counts_after(
        target,
        "modified, delivery-failed false",
        outcome="modified",
        delivery_failed=False,
        undeliverable_here=False,
        wanted=1,
    )


async def modified_with_failure(target: Target) -> Observation:
    return await _counts_after(
        target,
        "modified, delivery-failed true",
        outcome="modified",
        delivery_failed=True,
        undeliverable_here=False,
        wanted=1,
    )


async def first_delivery(target: Target) -> Observation:
    """The header as it came: the SDK makes a 0 of one that is absent."""
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, _name())
        (message,) = await _receive(receiver, mark)
        header = message._raw_amqp_message.header
        count = None if header is None else header.delivery_count
        await _settle(receiver, message, Complete())
    return decide(count == 0, _counted("the first delivery", count), seen=f"delivery-count {count}")


async def dead_letter_count(target: Target) -> Observation:
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, _name())
        (first,) = await _receive(receiver, mark)
        await _settle(receiver, first, Abandon())
        (second,) = await _receive(receiver, mark)
        await receiver.dead_letter_message(second, reason="Probe", error_description="none")
        async with client.get_queue_receiver(target.queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
            (message,) = await _receive(dead, mark)
            await dead.complete_message(message)
    counts = (second.delivery_count, message.delivery_count)
    is_kept = counts == (1, 1)
    return decide(
        is_kept, _counted("a dead letter", *counts), seen=f"{counts[0]} before, {counts[1]} as dead letter"
    )


async def assigned_message_id(target: Target) -> Observation:
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, None)
        (message,) = await _receive(receiver, mark)
        await _settle(receiver, message, Complete())
    found = "a message-id" if message.message_id else "no message-id"
    return decide(bool(message.message_id), Exchange(asked="sent without one", headers={}, body=found), seen=found)


async def duplicates(target: Target) -> Observation:
    name = _name()
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, name, name, _name())
        messages = await _receive(receiver, mark, 2)
        for message in messages:
            await _settle(receiver, message, Complete())
    ids = [message.message_id == name for message in messages]
    exchange = Exchange(asked="one message-id twice, then another", headers={}, body={"is_the_first": ids})
    return decide(
        ids == [True, False], exchange, seen="two of three arrived" if ids == [True, False] else "all came"
    )


async def locks_in_one_request(target: Target) -> Observation:
    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        mark = await _send(client, target, _name(), _name(), _name())
        messages = await _receive(receiver, mark, 3)
        before = [message.locked_until_utc for message in messages]
        after = await renew_locks(receiver, messages, timeout=WAIT)
        for message in messages:
            await _settle(receiver, message, Complete())
    is_later = [end >= old.timestamp() for end, old in zip(after, before, strict=True) if old is not None]
    exchange = Exchange(asked="renew-lock with three tokens", headers={}, body={"is_later": is_later})
    return decide(is_later == [True] * 3, exchange, seen=f"{sum(is_later)} of 3 locks last longer")


async def drain(target: Target) -> Observation:
    """A receiver gives credit for more than there is and asks for a drain; the next flow must say `drain`."""
    flows: list[Any] = []

    async def note(frame: Any) -> None:
        flows.append(frame)

    async with _open(target) as client, client.get_queue_receiver(target.queue) as receiver:
        handler: Any = receiver._handler
        link = handler._link
        link._incoming_flow = note
        await link.flow(link_credit=_DRAIN_CREDIT, drain=True)
        for _ in range(int(WAIT)):
            if any(flow[8] for flow in flows):
                break
            await handler._connection.listen(wait=1)
    answered = [bool(flow[8]) for flow in flows]
    exchange = Exchange(asked="flow with drain=true", headers={}, body={"drain": answered})
    return decide(any(answered), exchange, seen="drain=true" if any(answered) else "no flow with drain=true")


async def unknown_entity(target: Target) -> Observation:
    """To a caller with roles on other queues of the namespace only."""
    refusal = await _refusal(target, UNKNOWN_QUEUE, "put-token for a queue that does not exist")
    return decide(refusal.status == 401, refusal)


async def missing_role(target: Target) -> Observation:
    refusal = await _refusal(target, target.closed_queue, "a receiver where the caller has no role")
    if refusal.body == _NOT_REFUSED:
        return undecided(INHERITED, refusal)
    return decide(refusal.code == "amqp:unauthorized-access" or refusal.status == 401, refusal)


async def _refusal(target: Target, queue: str, asked: str) -> Exchange:
    async with _open(target) as client:
        try:
            async with client.get_queue_receiver(queue) as receiver:
                await receiver.receive_messages(1, max_wait_time=1)
        except ServiceBusError as error:
            return _refusal_of(asked, error)
    return Exchange(asked=asked, headers={}, body=_NOT_REFUSED)


def _refusal_of(asked: str, error: ServiceBusError) -> Exchange:
    """Raises the error where it is the client's own, such as a lost connection, and says nothing of the service."""
    refusal = _exchange(asked, error)
    if refusal.status is None and refusal.code in _OF_THE_CLIENT:
        raise error
    return refusal


def _exchange(asked: str, error: ServiceBusError) -> Exchange:
    inner: Any = error.inner_exception
    if isinstance(inner, TokenAuthFailure):
        return Exchange(asked=asked, status=inner.status_code, headers={}, body=_words(inner.status_description))
    condition = getattr(inner, "condition", None) or error._condition
    condition = getattr(condition, "value", condition)
    return Exchange(asked=asked, code=None if condition is None else _words(condition), headers={}, body=str(error))


def _words(given: Any) -> str:
    return given.decode(errors="replace") if isinstance(given, bytes) else str(given)


async def too_large(target: Target) -> Observation:
    async with _open(target) as client, client.get_queue_sender(target.queue) as sender:
        limit = sender._max_message_size_on_link
        try:
            await sender.send_messages(ServiceBusMessage(b"x" * _TOO_LARGE, message_id=_name()))
        except ServiceBusError as error:
            refusal = _refusal_of(f"a message of {_TOO_LARGE:,} bytes", error)
            seen = f"{type(error).__name__}; the link tells {limit:,} bytes"
            return decide(refusal.code == "amqp:link:message-size-exceeded", refusal, seen=seen)
    return undecided(f"it was taken; the link tells {limit:,} bytes")
