"""Between AMQP and the broker: what a sender's bytes mean to the broker, and a broker's message as bytes again.

Properties, application properties and body leave as they came. The broker's own facts are the delivery count in
the header and the annotations `x-opt-*`.
"""

import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from embedded_azure.amqp.codec import DecodeError, Int, Long, Symbol, Timestamp, ULong, encode
from embedded_azure.amqp.messages import (
    BATCH_FORMAT,
    EncodedMessage,
    add_delivery_annotations,
    add_message_id,
    change_application_properties,
    decode_application_properties,
    decode_message,
    decode_properties,
    encode_annotations,
    encode_header,
    encode_pairs,
    pairs_without,
    read_batch,
)
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, BrokerError, Locked, Message
from embedded_azure.servicebus.broker.sql_tree import Value

SEQUENCE_NUMBER: Final = "x-opt-sequence-number"
ENQUEUED_TIME: Final = "x-opt-enqueued-time"
LOCKED_UNTIL: Final = "x-opt-locked-until"
MESSAGE_STATE: Final = "x-opt-message-state"
ENQUEUE_SEQUENCE_NUMBER: Final = "x-opt-enqueue-sequence-number"
DEAD_LETTER_SOURCE: Final = "x-opt-deadletter-source"
SCHEDULED_ENQUEUE_TIME: Final = Symbol("x-opt-scheduled-enqueue-time")
PARTITION_KEY: Final = Symbol("x-opt-partition-key")
DEAD_LETTER_REASON: Final = "DeadLetterReason"
DEAD_LETTER_DESCRIPTION: Final = "DeadLetterErrorDescription"
_OURS: Final = frozenset(
    {SEQUENCE_NUMBER, ENQUEUED_TIME, LOCKED_UNTIL, MESSAGE_STATE, ENQUEUE_SEQUENCE_NUMBER, DEAD_LETTER_SOURCE}
)
"""Annotations only the broker sets: whoever sends a received message on cannot forge them."""

# Keys with the constructor of their value: what is left to write for each delivery is the value's bytes.
_SEQUENCE_NUMBER_LONG: Final = encode(Symbol(SEQUENCE_NUMBER)) + b"\x81"
_ENQUEUED_TIMESTAMP: Final = encode(Symbol(ENQUEUED_TIME)) + b"\x83"
_LOCKED_TIMESTAMP: Final = encode(Symbol(LOCKED_UNTIL)) + b"\x83"
_LOCK_TOKEN: Final = "x-opt-lock-token"
_LOCK_TOKEN_UUID: Final = encode(Symbol(_LOCK_TOKEN)) + b"\x98"
_STATE_INT: Final = encode(Symbol(MESSAGE_STATE)) + b"\x54"
_I64 = struct.Struct(">q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a sender said that the broker only hands on. `annotations` are encoded pairs, the rest sections."""

    durable: bool | None
    priority: int | None
    ttl: int | None
    delivery_annotations: bytes
    annotations: bytes
    annotation_count: int
    properties: bytes
    application_properties: bytes
    body: bytes


def read_messages(payload: bytes, message_format: int) -> list[Message]:
    """The messages of one transfer: one, or a batch. Raises DecodeError."""
    if message_format == BATCH_FORMAT:
        return [read_message(each) for each in read_batch(payload)]
    if message_format != 0:
        raise DecodeError(0, f"message-format 0 or {BATCH_FORMAT:#x}, not {message_format:#x}")
    return [read_message(payload)]


def read_message(payload: bytes) -> Message:
    """Raises DecodeError."""
    encoded = decode_message(payload)
    message_id = _identifier(encoded.message_id)
    if message_id is None:  # Service Bus gives it one; some clients cannot settle a message without
        message_id = uuid.uuid4().hex
        encoded = replace(encoded, raw_properties=add_message_id(encoded.raw_properties, message_id))
    return Message(
        sections=_content(encoded),
        size=len(payload),
        message_id=message_id,
        session_id=_text(encoded.group_id, "group-id"),
        partition_key=_text(encoded.annotations.get(PARTITION_KEY), PARTITION_KEY),
        time_to_live=None if encoded.ttl is None else encoded.ttl / 1000,
        scheduled_enqueue_time=_time(encoded.annotations.get(SCHEDULED_ENQUEUE_TIME)),
    )


def _content(encoded: EncodedMessage) -> Content:
    annotations, count = b"", 0
    if encoded.raw_annotations:
        annotations, count = pairs_without(encoded.raw_annotations, _OURS)
    return Content(
        durable=encoded.durable,
        priority=encoded.priority,
        ttl=encoded.ttl,
        delivery_annotations=encoded.raw_delivery_annotations,
        annotations=annotations,
        annotation_count=count,
        properties=encoded.raw_properties,
        application_properties=encoded.raw_application_properties,
        body=encoded.raw_body,
    )


def _identifier(value: Any) -> str | None:
    """A message-id may also be a ulong, a UUID or binary (3.2.11 to 3.2.14); the broker compares texts."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, int | uuid.UUID):
        return str(value)
    if type(value) is bytes:
        return value.hex()
    raise DecodeError(0, f"a string, ulong, UUID or binary as message-id, not {value!r:.80}")


def _text(value: Any, name: str) -> str | None:
    if value is None or type(value) is str:
        return value
    if type(value) is bytes:  # as the SDK writes what it has received
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    raise DecodeError(0, f"a string as {name}, not {value!r:.80}")


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) is not int:
        raise DecodeError(0, f"a timestamp as {SCHEDULED_ENQUEUE_TIME}, not {value!r:.80}")
    return value / 1000


def encode_locked(locked: Locked) -> bytes:
    """A delivery under peek-lock as a receiver gets it."""
    return encode_delivery(locked.message, locked)


def encode_delivery(message: Message, locked: Locked | None = None) -> bytes:
    """The message as a receiver gets it; `locked` when it is under peek-lock."""
    content = message.sections
    assert isinstance(content, Content)
    pairs = b"%b%b%b%b%b%b%c" % (
        content.annotations,
        _SEQUENCE_NUMBER_LONG,
        _I64.pack(message.sequence_number),
        _ENQUEUED_TIMESTAMP,
        _I64.pack(int(message.enqueued_at * 1000)),
        _STATE_INT,
        message.state,
    )
    count = content.annotation_count + 3
    if locked is not None:
        pairs += _LOCKED_TIMESTAMP + _I64.pack(int(locked.locked_until * 1000))
        count += 1
    rare = _rare_annotations(message)
    if rare:
        pairs += encode_pairs(rare)
        count += len(rare)
    return b"".join(
        (
            encode_header(content.durable, content.priority, content.ttl, message.delivery_count),
            _delivery_annotations(content, locked),
            encode_annotations(pairs, count),
            content.properties,
            _application_properties(message, content),
            content.body,
        )
    )


def _delivery_annotations(content: Content, locked: Locked | None) -> bytes:
    """The sender's, and the lock token, which the SDK reads here when there is no delivery tag."""
    if locked is None:
        return content.delivery_annotations
    return add_delivery_annotations(
        content.delivery_annotations, _LOCK_TOKEN_UUID + locked.token.bytes, _LOCK_TOKEN
    )


def _rare_annotations(message: Message) -> Mapping[Symbol, Any]:
    rare: dict[Symbol, Any] = {}
    if message.enqueued_sequence_number != message.sequence_number:
        rare[Symbol(ENQUEUE_SEQUENCE_NUMBER)] = Long(message.enqueued_sequence_number)
    if message.dead_letter_source is not None:
        rare[Symbol(DEAD_LETTER_SOURCE)] = message.dead_letter_source
    return rare


def _application_properties(message: Message, content: Content) -> bytes:
    dead_letter = {
        DEAD_LETTER_REASON: message.dead_letter_reason,
        DEAD_LETTER_DESCRIPTION: message.dead_letter_description,
    }
    said = {name: text for name, text in dead_letter.items() if text is not None}
    changed = {name: _simple(name, value) for name, value in {**message.changed_properties, **said}.items()}
    return change_application_properties(content.application_properties, changed)


def properties_of(given: Mapping[Any, Any] | None) -> dict[str, object]:
    """What a client gives for a message's application properties. Their names are strings there, not symbols.

    Raises BrokerError for a value that is not of a simple type (3.2.5).
    """
    return {str(name): _simple(str(name), value) for name, value in (given or {}).items()}


def _simple(name: str, value: Any) -> object:
    """How an integer was encoded is not known any more: it becomes an int, or what is wide enough."""
    if type(value) is int:
        return Int(value) if -(1 << 31) <= value < 1 << 31 else Long(value) if value < 1 << 63 else ULong(value)
    if value is None or isinstance(value, str | bytes | int | float | uuid.UUID):
        return value
    raise BrokerError(
        ARGUMENT_ERROR,
        f"the property {name[:80]!r} is a {type(value).__name__}; allowed are text, binary, a number, a boolean, "
        "a UUID, or null",
    )


def milliseconds(at: float) -> Timestamp:
    """A unix time in seconds as AMQP writes it."""
    return Timestamp(int(at * 1000))


class ContentProperties:
    """What rules may ask of a message, decoded when first asked for. Values that SQL has no words for are texts."""

    def __init__(self, message: Message) -> None:
        assert isinstance(message.sections, Content)
        self._message = message
        self._content = message.sections
        self._fields: Sequence[Any] | None = None
        self._user: Mapping[str, Value] | None = None

    def system(self, name: str) -> Value:
        name = name.casefold()
        if name in _FIELDS:
            return self._field(_FIELDS[name])
        return _KEPT[name](self._message)

    def user(self, name: str) -> Value:
        return self._all_user().get(name.casefold())

    def has_user(self, name: str) -> bool:
        return name.casefold() in self._all_user()

    def _field(self, position: int) -> Value:
        if self._fields is None:
            self._fields = decode_properties(self._content.properties)
        return _value(self._fields[position]) if position < len(self._fields) else None

    def _all_user(self) -> Mapping[str, Value]:
        if self._user is None:
            properties = {
                **decode_application_properties(self._content.application_properties),
                **self._message.changed_properties,
            }
            self._user = {
                str(name).casefold(): _value(value) for name, value in properties.items() if value is not None
            }
        return self._user


_FIELDS: Final = {
    "messageid": 0,
    "to": 2,
    "label": 3,
    "subject": 3,
    "replyto": 4,
    "correlationid": 5,
    "contenttype": 6,
    "sessionid": 10,
    "replytosessionid": 12,
}
_KEPT: Final[Mapping[str, Callable[[Message], Value]]] = {
    "partitionkey": lambda message: message.partition_key,
    "size": lambda message: message.size,
    "deliverycount": lambda message: message.delivery_count,
    "sequencenumber": lambda message: message.sequence_number,
    "enqueuedsequencenumber": lambda message: message.enqueued_sequence_number,
    "timetolive": lambda message: message.time_to_live,
    "deadlettersource": lambda message: message.dead_letter_source,
}


def _value(value: Any) -> Value:
    return value if value is None or isinstance(value, str | int | float) else str(value)
