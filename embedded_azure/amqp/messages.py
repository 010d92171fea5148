"""Messages (3.2), taken apart as far as a broker needs and put together again without being re-encoded.

What the sender may expect to arrive unchanged (properties, application properties, body, footer, annotations of
its own) stays the bytes it was; what the broker sets (delivery count, its annotations) is put before it.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedded_azure.amqp.codec import (
    DecodeError,
    Symbol,
    UByte,
    UInt,
    ULong,
    decode,
    encode,
    encode_list,
    encode_map,
    raw_pairs,
    skip,
)

BATCH_FORMAT: Final = 0x80013700
"""A transfer's message-format when each data section of the message is itself a message (Service Bus)."""

HEADER: Final = 0x70
DELIVERY_ANNOTATIONS: Final = 0x71
MESSAGE_ANNOTATIONS: Final = 0x72
PROPERTIES: Final = 0x73
APPLICATION_PROPERTIES: Final = 0x74
DATA: Final = 0x75
SEQUENCE: Final = 0x76
VALUE: Final = 0x77
FOOTER: Final = 0x78

_NAMES: Final[Mapping[Any, int]] = {
    Symbol("amqp:header:list"): HEADER,
    Symbol("amqp:delivery-annotations:map"): DELIVERY_ANNOTATIONS,
    Symbol("amqp:message-annotations:map"): MESSAGE_ANNOTATIONS,
    Symbol("amqp:properties:list"): PROPERTIES,
    Symbol("amqp:application-properties:map"): APPLICATION_PROPERTIES,
    Symbol("amqp:data:binary"): DATA,
    Symbol("amqp:amqp-sequence:list"): SEQUENCE,
    Symbol("amqp:amqp-value:*"): VALUE,
    Symbol("amqp:footer:map"): FOOTER,
    **{code: code for code in range(HEADER, FOOTER + 1)},
}
_EMPTY_HEADER: Final[list[Any]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section's place in the bytes: the descriptor at `start`, its value from `value` up to `end`."""

    code: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMessage:
    """A message as its sender encoded it. `raw` parts are complete sections; `pairs` are a map's inside."""

    durable: bool | None
    priority: int | None
    ttl: int | None
    """Milliseconds."""
    annotations: Mapping[Any, Any]
    raw_annotations: bytes
    properties: Sequence[Any]
    """The fields in the order of 3.2.4; trailing ones may be missing."""
    raw_properties: bytes
    raw_application_properties: bytes
    raw_body: bytes
    """The body's sections and the footer."""
    raw_delivery_annotations: bytes = b""

    @property
    def message_id(self) -> Any:
        return self.property(0)

    @property
    def correlation_id(self) -> Any:
        return self.property(5)

    @property
    def group_id(self) -> Any:
        return self.property(10)

    def property(self, position: int) -> Any:
        return self.properties[position] if position < len(self.properties) else None

    def application_properties(self) -> dict[Any, Any]:
        """Decoded at each call. Raises DecodeError."""
        return decode_application_properties(self.raw_application_properties)

    def value(self) -> Any:
        """What the body's amqp-value section holds; None when the body is something else. Raises DecodeError."""
        for section in sections_of(self.raw_body):
            if section.code == VALUE:
                return decode(self.raw_body, section.value)[0]
        return None


# Reading


def sections_of(buffer: bytes) -> list[Section]:
    """Where the sections are. Raises DecodeError when they are no message: unknown, twice, or in wrong order."""
    found: list[Section] = []
    at = last = 0
    while at < len(buffer):
        section = _section_at(buffer, at)
        # The SDK writes delivery annotations after everything else, so their place is not held against it.
        if section.code != DELIVERY_ANNOTATIONS:
            _check_order(last, section)
            last = section.code
        found.append(section)
        at = section.end
    return found


def _section_at(buffer: bytes, at: int) -> Section:
    if buffer[at] != 0:
        raise DecodeError(at, f"the descriptor of a section, not 0x{buffer[at]:02x}")
    if buffer[at + 1 : at + 2] == b"\x53":
        code, value = buffer[at + 2] if at + 2 < len(buffer) else -1, at + 3
    else:
        name, value = decode(buffer, at + 1)
        code = _NAMES.get(name, -1) if isinstance(name, int | str) else -1
    if not HEADER <= code <= FOOTER:
        raise DecodeError(at, f"the descriptor of a section (0x70 to 0x78), not {code:#x}")
    return Section(code=code, start=at, value=value, end=skip(buffer, value))


def _check_order(last: int, section: Section) -> None:
    code = section.code
    repeated = code == last and code not in (DATA, SEQUENCE)
    two_bodies = code != last and DATA <= last <= VALUE and DATA <= code <= VALUE
    if repeated or two_bodies or code < last:
        raise DecodeError(section.start, f"a section that may follow 0x{last:02x}, not 0x{code:02x}")


def decode_message(buffer: bytes) -> EncodedMessage:
    """Raises DecodeError. Of what is handed on unread (application properties, body) only the extent is checked."""
    header = properties = _EMPTY_HEADER
    annotations: Mapping[Any, Any] = {}
    raw_annotations = raw_properties = raw_application = raw_delivery = b""
    body = []
    for section in sections_of(buffer):
        match section.code:
            case 0x70:
                header = _fields(buffer, section)
            case 0x71:
                raw_delivery = buffer[section.start : section.end]
            case 0x72:
                annotations = _mapping(buffer, section)
                raw_annotations = buffer[section.start : section.end]
            case 0x73:
                properties = _fields(buffer, section)
                raw_properties = buffer[section.start : section.end]
            case 0x74:
                raw_pairs(buffer, section.value)
                raw_application = buffer[section.start : section.end]
            case 0x75 | 0x76 | 0x77 | 0x78:
                body.append(buffer[section.start : section.end])
    durable, priority, ttl = _header(header)
    return EncodedMessage(
        durable=durable,
        priority=priority,
        ttl=ttl,
        annotations=annotations,
        raw_annotations=raw_annotations,
        properties=properties,
        raw_properties=raw_properties,
        raw_application_properties=raw_application,
        raw_body=b"".join(body),
        raw_delivery_annotations=raw_delivery,
    )


def decode_properties(raw: bytes) -> Sequence[Any]:
    """The fields of a properties section, none if there is no section. Raises DecodeError."""
    return _fields(raw, _only_section(raw)) if raw else ()


def decode_application_properties(raw: bytes) -> dict[Any, Any]:
    """What is in the section, nothing if there is none. Raises DecodeError."""
    return _mapping(raw, _only_section(raw)) if raw else {}


def _fields(buffer: bytes, section: Section) -> list[Any]:
    value, _ = decode(buffer, section.value)
    if type(value) is not list:
        raise DecodeError(section.value, f"a list as section 0x{section.code:02x}, not {value!r:.80}")
    return value


def _mapping(buffer: bytes, section: Section) -> dict[Any, Any]:
    value, _ = decode(buffer, section.value)
    if type(value) is not dict:
        raise DecodeError(section.value, f"a map as section 0x{section.code:02x}, not {value!r:.80}")
    return value


def _header(fields: Sequence[Any]) -> tuple[bool | None, int | None, int | None]:
    durable, priority, ttl = (*fields[:3], None, None, None)[:3]
    if durable is not None and type(durable) is not bool:
        raise DecodeError(0, f"a boolean as the header's durable, not {durable!r:.80}")
    for name, number in (("priority", priority), ("ttl", ttl)):
        if number is not None and type(number) is not int:
            raise DecodeError(0, f"a number as the header's {name}, not {number!r:.80}")
    return durable, priority, ttl


def _only_section(raw: bytes) -> Section:
    return sections_of(raw)[0]


def read_batch(buffer: bytes) -> list[bytes]:
    """The messages inside a message of BATCH_FORMAT, each still encoded. Raises DecodeError."""
    messages = []
    for section in sections_of(buffer):
        if section.code == DATA:
            content, _ = decode(buffer, section.value)
            if type(content) is not bytes:
                raise DecodeError(section.value, f"binary as a data section, not {content!r:.80}")
            messages.append(content)
    if not messages:
        raise DecodeError(len(buffer), "at least one data section with a message of the batch")
    return messages


# Writing


def encode_header(durable: bool | None, priority: int | None, ttl: int | None, delivery_count: int) -> bytes:
    """The delivery count is always there, 0 too: the SDK reads an absent one as None."""
    fields = (durable, None if priority is None else UByte(priority), None if ttl is None else UInt(ttl))
    head = b"".join([encode(value) for value in fields])
    return b"\x00\x53\x70" + encode_list(b"%b\x40%b" % (head, encode(UInt(delivery_count))), 5)


def encode_annotations(pairs: bytes, count: int) -> bytes:
    """Message annotations of `count` pairs that are encoded already."""
    return b"\x00\x53\x72" + encode_map(pairs, count)


def encode_pairs(pairs: Mapping[Any, Any]) -> bytes:
    """Keys and values one after the other, for `encode_annotations` and `change_application_properties`."""
    return b"".join([encode(part) for pair in pairs.items() for part in pair])


def pairs_without(raw: bytes, dropped: Collection[str]) -> tuple[bytes, int]:
    """The pairs of the map section `raw` whose key is not in `dropped`, still encoded, and their number.

    Raises DecodeError.
    """
    at, end, _ = raw_pairs(raw, _only_section(raw).value)
    kept = []
    while at < end:
        key, value_at = decode(raw, at)
        following = skip(raw, value_at)
        if key not in dropped:
            kept.append(raw[at:following])
        at = following
    return b"".join(kept), len(kept)


def add_delivery_annotations(raw: bytes, pair: bytes, name: str) -> bytes:
    """The section `raw` (or none, if empty) with the encoded `pair` in it, which replaces one of the same name."""
    kept, count = pairs_without(raw, (name,)) if raw else (b"", 0)
    return b"\x00\x53\x71" + encode_map(kept + pair, count + 1)


def change_application_properties(raw: bytes, changes: Mapping[str, Any]) -> bytes:
    """The section `raw` (or none, if empty) with `changes` in it; None takes out what has that name."""
    if not changes:
        return raw
    pairs, count = pairs_without(raw, changes) if raw else (b"", 0)
    more = {name: value for name, value in changes.items() if value is not None}
    return b"\x00\x53\x74" + encode_map(pairs + encode_pairs(more), count + len(more))


def add_message_id(raw: bytes, message_id: str) -> bytes:
    """The properties section `raw` (or none, if empty), whose message-id is null, with that one. The other fields
    stay the bytes they were."""
    fields, count = b"\x40", 1
    if raw:
        value = _only_section(raw).value
        count = len(decode(raw, value)[0])
        # after the list's constructor: nothing (list0), or its size and count, in one byte each or in four
        fields = raw[value + {0x45: 1, 0xC0: 3, 0xD0: 9}[raw[value]] :] or b"\x40"
    return b"\x00\x53\x73" + encode_list(encode(message_id) + fields[1:], max(count, 1))


def encode_message(
    *,
    message_id: uuid.UUID | str | None = None,
    correlation_id: Any = None,
    application_properties: Mapping[str, Any] | None = None,
    value: Any = None,
) -> bytes:
    """A message of the broker's own, whose body is one value: the answer to a request."""
    # Of the types an id may have, only the ulong loses its wire type when it is decoded.
    correlation = ULong(correlation_id) if type(correlation_id) is int else correlation_id
    properties = [message_id, None, None, None, None, correlation]
    parts = [b"\x00\x53\x73" + encode(properties)]
    if application_properties:
        parts.append(b"\x00\x53\x74" + encode(dict(application_properties)))
    parts.append(b"\x00\x53\x77" + encode(value))
    return b"".join(parts)
