"""What settling does to a message where clients differ: delivery counts, properties they give, ids they leave out.

What Azure does is known from its team and from the live tests of its SDKs.
"""

import re
from typing import Any

from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage, ServiceBusSubQueue
from azure.servicebus._common.constants import (
    MGMT_REQUEST_LOCK_TOKENS,
    REQUEST_RESPONSE_UPDATE_DISPOSTION_OPERATION,
)
from azure.servicebus._common.mgmt_handlers import default
from azure.servicebus._pyamqp.error import AMQPError
from azure.servicebus._pyamqp.types import AMQPTypes
from azure.servicebus.aio import ServiceBusReceiver

from tests.support.local_azure import Bus

WAIT: dict[str, Any] = {"max_wait_time": 5}


async def send(bus: Bus, queue: str, *messages: ServiceBusMessage) -> None:
    async with bus.client() as client, client.get_queue_sender(queue) as sender:
        for message in messages:
            await sender.send_messages(message)


async def receive(receiver: ServiceBusReceiver) -> ServiceBusReceivedMessage:
    (message,) = await receiver.receive_messages(1, **WAIT)
    return message


async def settle(receiver: ServiceBusReceiver, message: Any, outcome: Any, **fields: Any) -> None:
    """As clients of other languages do."""
    await receiver._handler.settle_messages_async(
        message._delivery_id, message._delivery_tag, outcome, await_outcome=True, **fields
    )


async def test_modified_without_delivery_failed_counts_and_released_does_not(bus: Bus) -> None:
    await send(bus, "brief", ServiceBusMessage(b"poison"))
    async with bus.client() as client, client.get_queue_receiver("brief") as receiver:
        await settle(receiver, await receive(receiver), "released")
        counts = []
        for _ in range(3):  # as many deliveries as the queue allows
            message = await receive(receiver)
            counts.append(message.delivery_count)
            await settle(receiver, message, "modified", undeliverable_here=False)
        assert counts == [0, 1, 2]
    async with bus.client() as client:
        sub_queue = ServiceBusSubQueue.DEAD_LETTER
        async with client.get_queue_receiver("brief", sub_queue=sub_queue) as receiver:
            dead = await receive(receiver)
            assert (dead.dead_letter_reason, dead.delivery_count) == ("MaxDeliveryCountExceeded", 3)
            await receiver.abandon_message(dead)
            assert (await receive(receiver)).delivery_count == 4


async def test_a_deferred_message_was_delivered_once(bus: Bus) -> None:
    await send(bus, "jobs", ServiceBusMessage(b"later"))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        message = await receive(receiver)
        await receiver.defer_message(message)
        assert message.sequence_number is not None
        (again,) = await receiver.receive_deferred_messages(message.sequence_number)
        assert again.delivery_count == 1


async def test_properties_given_when_settling_are_kept(bus: Bus) -> None:
    sent = ServiceBusMessage(b"x", application_properties={"attempt": 1, "lang": "de"})
    await send(bus, "jobs", sent)
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        change: dict[Any, Any] = {b"attempt": 2}
        await settle(receiver, await receive(receiver), "modified", message_annotations=change)
        message = await receive(receiver)
        assert message.application_properties == {b"attempt": 2, b"lang": b"de"}
        change = {b"attempt": 3, b"why": "later"}
        await settle(receiver, message, "modified", undeliverable_here=True, message_annotations=change)
        (message,) = await receiver.receive_deferred_messages(message.sequence_number or 0)
        assert message.application_properties == {b"attempt": 3, b"lang": b"de", b"why": b"later"}
        await _update_disposition(
            receiver, message, "suspended", {"deadletter-reason": "bad", "properties-to-modify": {"lang": "fr"}}
        )
    async with bus.client() as client:
        sub_queue = ServiceBusSubQueue.DEAD_LETTER
        async with client.get_queue_receiver("jobs", sub_queue=sub_queue) as receiver:
            dead = await receive(receiver)
            assert dead.application_properties == {
                b"attempt": 3,
                b"lang": b"fr",
                b"why": b"later",
                b"DeadLetterReason": b"bad",
            }


async def _update_disposition(
    receiver: ServiceBusReceiver, message: Any, status: str, more: dict[str, Any]
) -> None:
    await receiver._mgmt_request_response_with_retry(
        REQUEST_RESPONSE_UPDATE_DISPOSTION_OPERATION,
        {
            "disposition-status": status,
            MGMT_REQUEST_LOCK_TOKENS: {
                "TYPE": AMQPTypes.array,
                "VALUE": [{"TYPE": AMQPTypes.uuid, "VALUE": message.lock_token}],
            },
            **more,
        },
        default,
    )


async def test_properties_given_to_a_dead_letter_are_kept(bus: Bus) -> None:
    await send(bus, "jobs", ServiceBusMessage(b"x"))
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        info = {"DeadLetterReason": "bad", "DeadLetterErrorDescription": "worse", "line": "7"}
        condition = b"com.microsoft:dead-letter"
        await settle(receiver, await receive(receiver), "rejected", error=_error(condition, info))
    async with bus.client() as client:
        sub_queue = ServiceBusSubQueue.DEAD_LETTER
        async with client.get_queue_receiver("jobs", sub_queue=sub_queue) as receiver:
            dead = await receive(receiver)
            assert (dead.dead_letter_reason, dead.dead_letter_error_description) == ("bad", "worse")
            assert (dead.application_properties or {})[b"line"] == b"7"


def _error(condition: bytes, info: dict[str, str]) -> AMQPError:
    return AMQPError(condition=condition, description="", info=info)


async def test_a_message_sent_without_an_id_has_one_of_its_own(bus: Bus) -> None:
    sent = [ServiceBusMessage(b"x", subject="s", content_type="t") for _ in range(3)]
    for each in sent:
        each.message_id = None  # the SDK for Python sets one, others do not
    await send(bus, "jobs", *sent)
    async with bus.client() as client, client.get_queue_receiver("jobs") as receiver:
        messages = [await receive(receiver) for _ in range(3)]
        ids = {str(message.message_id) for message in messages}
        assert len(ids) == 3
        assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
        assert {(message.subject, message.content_type) for message in messages} == {("s", "t")}
