"""A message as the Service Bus SDK hands it over, read into what the worker knows: an envelope, and the end of the
lock. The SDK leaves keys and texts of others as bytes, and bodies in parts."""

import time
from collections.abc import Mapping
from typing import Any

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.amqp import AmqpMessageBodyType

from worker.jobs.job import Envelope


def open_envelope(message: ServiceBusReceivedMessage, queue: str) -> Envelope:
    enqueued, time_to_live = message.enqueued_time_utc, message.time_to_live
    enqueued_at = enqueued.timestamp() if enqueued else time.time()
    return Envelope(
        body=read_body(message),
        queue=queue,
        sequence_number=message.sequence_number or 0,
        enqueued_at=enqueued_at,
        message_id=_word(message.message_id),
        correlation_id=_word(message.correlation_id),
        content_type=_word(message.content_type),
        delivery_count=message.delivery_count or 0,
        dead_letter_reason=_word(message.dead_letter_reason),
        expires_at=enqueued_at + time_to_live.total_seconds() if time_to_live else None,
        properties=_properties(message.application_properties),
    )


def read_body(message: ServiceBusReceivedMessage) -> bytes:
    """The bytes of a data body; a text or binary value is what some AMQP clients send for JSON; else nothing."""
    body = message.body
    match message.body_type:
        case AmqpMessageBodyType.DATA:
            return b"".join(body)
        case AmqpMessageBodyType.VALUE if isinstance(body, (str, bytes)):
            return body.encode() if isinstance(body, str) else body
        case _:
            return b""


def read_structure(message: ServiceBusReceivedMessage) -> object:
    """An AMQP map, list, number or sequence: a body of which `read_body` has nothing. None where it has it."""
    body = message.body
    match message.body_type:
        case AmqpMessageBodyType.SEQUENCE:
            return list(body)
        case AmqpMessageBodyType.VALUE if not isinstance(body, (str, bytes)):
            return body
        case _:
            return None


def _properties(properties: Mapping[Any, Any] | None) -> Mapping[str, object]:
    """Received keys and strings are bytes."""
    return {_text(key): _text(value) for key, value in (properties or {}).items()}


def _word(value: object) -> str | None:
    """As text: AMQP lets a client send an id as a number, a UUID or bytes too."""
    return None if value is None else str(_text(value))


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def end_of_lock(message: ServiceBusReceivedMessage) -> float:
    """Unix seconds by the broker's clock."""
    moment = message.locked_until_utc
    return moment.timestamp() if moment else 0.0
