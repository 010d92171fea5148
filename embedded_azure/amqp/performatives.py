"""The frames' bodies (2.7), SASL's (5.3.3), and the composite values inside them, as frozen values.

A composite's fields say their wire type once, with `wire`; encoding, decoding and checking all follow from
that. Trailing nulls are left out. An absent field and an explicit null both read as the default (1.4).
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar

from embedded_azure.amqp.codec import (
    Array,
    DecodeError,
    Described,
    Symbol,
    UByte,
    UInt,
    ULong,
    UShort,
    decode,
    decode_whole,
    encode,
    encode_list,
)

_WIDE_UINT = struct.Struct(">BI")

ROLE_SENDER: Final = False
ROLE_RECEIVER: Final = True
SETTLE_MODE_UNSETTLED: Final = 0
SETTLE_MODE_SETTLED: Final = 1
SETTLE_MODE_MIXED: Final = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """A field's wire type: how it is encoded, and how what was decoded is checked; None if it is not such."""

    name: str
    encode: Callable[[Any], bytes]
    check: Callable[[Any], Any]


def wire(kind: Kind, *, default: Any = None, required: bool = False) -> Any:
    """A dataclass field of a composite; its position in the class is its position on the wire."""
    metadata = {"kind": kind, "required": required}
    return field(metadata=metadata) if required else field(default=default, metadata=metadata)


def optional(kind: Kind) -> Mapping[str, object]:
    """The metadata of a field that may be absent, where `wire` cannot be used: ruff trusts only `field`."""
    return {"kind": kind, "required": False}


def _exactly(python_type: type) -> Callable[[Any], Any]:
    return lambda value: value if type(value) is python_type else None


def _unsigned(name: str, wire_type: Callable[[int], Any], bits: int) -> Kind:
    limit = 1 << bits
    return Kind(
        name,
        lambda value: encode(wire_type(value)),
        lambda value: value if type(value) is int and 0 <= value < limit else None,
    )


def _symbols(value: Any) -> tuple[Symbol, ...] | None:
    """A field that may have several values is an array, or one value without an array (1.4)."""
    if type(value) is Symbol:
        return (value,)
    if type(value) is list and all(type(item) is Symbol for item in value):
        return tuple(value)
    return None


BOOLEAN = Kind("a boolean", encode, _exactly(bool))
UBYTE = _unsigned("a ubyte", UByte, 8)
USHORT = _unsigned("a ushort", UShort, 16)
UINT = _unsigned("a uint", UInt, 32)
ULONG = _unsigned("a ulong", ULong, 64)
STRING = Kind("a string", encode, _exactly(str))
SYMBOL = Kind("a symbol", lambda value: encode(Symbol(value)), _exactly(Symbol))
SYMBOLS = Kind("symbols", lambda value: encode(Array(Symbol, tuple(value))), _symbols)
BINARY = Kind("binary", encode, _exactly(bytes))
MAP = Kind("a map", lambda value: encode(dict(value)), _exactly(dict))


def one_of(*classes: "type[Composite]") -> Kind:
    """A described list that is one of these composites."""

    def check(value: Any) -> "Composite | None":
        decoded = _composite_of(value, 0) if type(value) is Described else None
        return decoded if isinstance(decoded, classes) else None

    return Kind(" or ".join(cls.__name__ for cls in classes), lambda value: encode_composite(value), check)


class Composite:
    """A described list. `CODE` is its descriptor, `LAYOUT` its fields in order of the wire."""

    __slots__ = ()
    CODE: ClassVar[int]
    PADDED: ClassVar[bool] = False
    """Written with all its fields, for readers that count on them."""
    LAYOUT: ClassVar[tuple[tuple[str, Kind, bool], ...]]


_Class = TypeVar("_Class", bound=type[Composite])


def composite(code: int) -> Callable[[_Class], _Class]:
    def describe(cls: _Class) -> _Class:
        cls.CODE = code
        cls.LAYOUT = tuple(
            (member.name, member.metadata["kind"], member.metadata["required"])
            for member in fields(cls)  # type: ignore[arg-type]  # each is a dataclass; a base cannot say so
        )
        return cls

    return describe


@composite(0x1D)
@dataclass(frozen=True, slots=True, kw_only=True)
class Error(Composite):
    """Why a link, session or connection was closed, or a delivery rejected (2.8.14)."""

    # The SDK reads the third field of a rejected delivery's error without looking whether it is there.
    PADDED: ClassVar[bool] = True

    condition: str = wire(SYMBOL, required=True)
    description: str | None = wire(STRING)
    info: Mapping[Any, Any] | None = wire(MAP)


@composite(0x23)
@dataclass(frozen=True, slots=True, kw_only=True)
class Received(Composite):
    section_number: int = wire(UINT, required=True)
    section_offset: int = wire(ULONG, required=True)


@composite(0x24)
@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Composite):
    pass


@composite(0x25)
@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(Composite):
    error: Error | None = field(default=None, metadata=optional(one_of(Error)))


@composite(0x26)
@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Composite):
    pass


@composite(0x27)
@dataclass(frozen=True, slots=True, kw_only=True)
class Modified(Composite):
    delivery_failed: bool | None = wire(BOOLEAN)
    undeliverable_here: bool | None = wire(BOOLEAN)
    message_annotations: Mapping[Any, Any] | None = wire(MAP)


Outcome = Accepted | Rejected | Released | Modified
DeliveryState = Outcome | Received
OUTCOME = one_of(Accepted, Rejected, Released, Modified)
DELIVERY_STATE = one_of(Accepted, Rejected, Released, Modified, Received)


@composite(0x28)
@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Composite):
    address: str | None = wire(STRING)
    durable: int | None = wire(UINT)
    expiry_policy: str | None = wire(SYMBOL)
    timeout: int | None = wire(UINT)
    dynamic: bool | None = wire(BOOLEAN)
    dynamic_node_properties: Mapping[Any, Any] | None = wire(MAP)
    distribution_mode: str | None = wire(SYMBOL)
    filter: Mapping[Any, Any] | None = wire(MAP)
    default_outcome: Outcome | None = field(default=None, metadata=optional(OUTCOME))
    outcomes: tuple[Symbol, ...] | None = wire(SYMBOLS)
    capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)


@composite(0x29)
@dataclass(frozen=True, slots=True, kw_only=True)
class Target(Composite):
    address: str | None = wire(STRING)
    durable: int | None = wire(UINT)
    expiry_policy: str | None = wire(SYMBOL)
    timeout: int | None = wire(UINT)
    dynamic: bool | None = wire(BOOLEAN)
    dynamic_node_properties: Mapping[Any, Any] | None = wire(MAP)
    capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)


@composite(0x30)
@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator(Composite):
    """The target of a link that controls transactions (4.5.1): decoded so that it can be refused by name."""

    capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)


@composite(0x10)
@dataclass(frozen=True, slots=True, kw_only=True)
class Open(Composite):
    container_id: str = wire(STRING, required=True)
    hostname: str | None = wire(STRING)
    max_frame_size: int = wire(UINT, default=4294967295)
    channel_max: int = wire(USHORT, default=65535)
    idle_time_out: int | None = wire(UINT)
    """Milliseconds."""
    outgoing_locales: tuple[Symbol, ...] | None = wire(SYMBOLS)
    incoming_locales: tuple[Symbol, ...] | None = wire(SYMBOLS)
    offered_capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)
    desired_capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)
    properties: Mapping[Any, Any] | None = wire(MAP)


@composite(0x11)
@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(Composite):
    remote_channel: int | None = wire(USHORT)
    next_outgoing_id: int = wire(UINT, required=True)
    incoming_window: int = wire(UINT, required=True)
    outgoing_window: int = wire(UINT, required=True)
    handle_max: int = wire(UINT, default=4294967295)
    offered_capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)
    desired_capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)
    properties: Mapping[Any, Any] | None = wire(MAP)


@composite(0x12)
@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(Composite):
    name: str = wire(STRING, required=True)
    handle: int = wire(UINT, required=True)
    role: bool = wire(BOOLEAN, required=True)
    snd_settle_mode: int = wire(UBYTE, default=SETTLE_MODE_MIXED)
    rcv_settle_mode: int = wire(UBYTE, default=0)
    source: Source | None = field(default=None, metadata=optional(one_of(Source)))
    target: Target | Coordinator | None = field(default=None, metadata=optional(one_of(Target, Coordinator)))
    unsettled: Mapping[Any, Any] | None = wire(MAP)
    incomplete_unsettled: bool = wire(BOOLEAN, default=False)
    initial_delivery_count: int | None = wire(UINT)
    max_message_size: int | None = wire(ULONG)
    offered_capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)
    desired_capabilities: tuple[Symbol, ...] | None = wire(SYMBOLS)
    properties: Mapping[Any, Any] | None = wire(MAP)


@composite(0x13)
@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(Composite):
    next_incoming_id: int | None = wire(UINT)
    incoming_window: int = wire(UINT, required=True)
    next_outgoing_id: int = wire(UINT, required=True)
    outgoing_window: int = wire(UINT, required=True)
    handle: int | None = wire(UINT)
    delivery_count: int | None = wire(UINT)
    link_credit: int | None = wire(UINT)
    available: int | None = wire(UINT)
    drain: bool = wire(BOOLEAN, default=False)
    echo: bool = wire(BOOLEAN, default=False)
    properties: Mapping[Any, Any] | None = wire(MAP)


@composite(0x14)
@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Composite):
    """The message's bytes, or a part of them, follow it in the frame."""

    handle: int = wire(UINT, required=True)
    delivery_id: int | None = wire(UINT)
    delivery_tag: bytes | None = wire(BINARY)
    message_format: int | None = wire(UINT)
    settled: bool | None = wire(BOOLEAN)
    more: bool = wire(BOOLEAN, default=False)
    rcv_settle_mode: int | None = wire(UBYTE)
    state: DeliveryState | None = field(default=None, metadata=optional(DELIVERY_STATE))
    resume: bool = wire(BOOLEAN, default=False)
    aborted: bool = wire(BOOLEAN, default=False)
    batchable: bool = wire(BOOLEAN, default=False)


@composite(0x15)
@dataclass(frozen=True, slots=True, kw_only=True)
class Disposition(Composite):
    role: bool = wire(BOOLEAN, required=True)
    first: int = wire(UINT, required=True)
    last: int | None = wire(UINT)
    settled: bool = wire(BOOLEAN, default=False)
    state: DeliveryState | None = field(default=None, metadata=optional(DELIVERY_STATE))
    batchable: bool = wire(BOOLEAN, default=False)


@composite(0x16)
@dataclass(frozen=True, slots=True, kw_only=True)
class Detach(Composite):
    handle: int = wire(UINT, required=True)
    closed: bool = wire(BOOLEAN, default=False)
    error: Error | None = field(default=None, metadata=optional(one_of(Error)))


@composite(0x17)
@dataclass(frozen=True, slots=True, kw_only=True)
class End(Composite):
    error: Error | None = field(default=None, metadata=optional(one_of(Error)))


@composite(0x18)
@dataclass(frozen=True, slots=True, kw_only=True)
class Close(Composite):
    error: Error | None = field(default=None, metadata=optional(one_of(Error)))


@composite(0x40)
@dataclass(frozen=True, slots=True, kw_only=True)
class SaslMechanisms(Composite):
    sasl_server_mechanisms: tuple[Symbol, ...] = wire(SYMBOLS, required=True)


@composite(0x41)
@dataclass(frozen=True, slots=True, kw_only=True)
class SaslInit(Composite):
    mechanism: str = wire(SYMBOL, required=True)
    initial_response: bytes | None = wire(BINARY)
    hostname: str | None = wire(STRING)


@composite(0x42)
@dataclass(frozen=True, slots=True, kw_only=True)
class SaslChallenge(Composite):
    challenge: bytes = wire(BINARY, required=True)


@composite(0x43)
@dataclass(frozen=True, slots=True, kw_only=True)
class SaslResponse(Composite):
    response: bytes = wire(BINARY, required=True)


@composite(0x44)
@dataclass(frozen=True, slots=True, kw_only=True)
class SaslOutcome(Composite):
    code: int = wire(UBYTE, required=True)
    additional_data: bytes | None = wire(BINARY)


_COMPOSITES: Final[Mapping[int, type[Composite]]] = MappingProxyType(
    {
        cls.CODE: cls
        for cls in (
            *(Error, Received, Accepted, Rejected, Released, Modified, Source, Target, Coordinator),
            *(Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close),
            *(SaslMechanisms, SaslInit, SaslChallenge, SaslResponse, SaslOutcome),
        )
    }
)
_CODES_BY_NAME: Final[Mapping[Symbol, int]] = MappingProxyType(
    {
        Symbol("amqp:error:list"): Error.CODE,
        Symbol("amqp:received:list"): Received.CODE,
        Symbol("amqp:accepted:list"): Accepted.CODE,
        Symbol("amqp:rejected:list"): Rejected.CODE,
        Symbol("amqp:released:list"): Released.CODE,
        Symbol("amqp:modified:list"): Modified.CODE,
        Symbol("amqp:source:list"): Source.CODE,
        Symbol("amqp:target:list"): Target.CODE,
    }
)


def encode_transfer(
    *, handle: int, delivery_id: int, tag: bytes, message_format: int, settled: bool, more: bool
) -> bytes:
    """What `encode_composite(Transfer(...))` makes, ten times as fast: there is one for each message."""
    return b"\x00\x53\x14\xc0%c\x06%b%b\xa0%c%b%b%c%c" % (
        len(tag) + 20,
        _WIDE_UINT.pack(0x70, handle),
        _WIDE_UINT.pack(0x70, delivery_id),
        len(tag),
        tag,
        _WIDE_UINT.pack(0x70, message_format),
        0x41 if settled else 0x42,
        0x41 if more else 0x42,
    )


def encode_settlement(*, role: bool, delivery_id: int, state: bytes) -> bytes:
    """A settled disposition of one delivery, its state encoded already; as fast as `encode_transfer`."""
    fields = b"%c%b\x40\x41%b" % (0x41 if role else 0x42, _WIDE_UINT.pack(0x70, delivery_id), state)
    return b"\x00\x53\x15" + encode_list(fields, 5)


def encode_composite(value: Composite) -> bytes:
    """Raises TypeError or ValueError when a field does not fit its wire type."""
    parts, used = [], 0
    for position, (name, kind, _) in enumerate(value.LAYOUT, 1):
        member = getattr(value, name)
        parts.append(b"\x40" if member is None else kind.encode(member))
        if member is not None or value.PADDED:
            used = position
    return b"\x00\x53%c%b" % (value.CODE, encode_list(b"".join(parts[:used]), used))


def decode_performative(buffer: bytes) -> tuple[Composite, int]:
    """The composite a frame's body starts with, and where its payload starts. Raises DecodeError."""
    described, end = decode(buffer)
    return _composite_of(described, 0), end


def decode_composite(buffer: bytes) -> Composite:
    """The composite `buffer` consists of. Raises DecodeError."""
    return _composite_of(decode_whole(buffer), 0)


def _composite_of(value: Any, at: int) -> Composite:
    if type(value) is not Described:
        raise DecodeError(at, f"a described list, not {type(value).__name__}")
    code = value.descriptor
    cls = _COMPOSITES.get(_CODES_BY_NAME.get(code, -1) if type(code) is Symbol else code)
    if cls is None:
        raise DecodeError(at, f"the descriptor of a known composite, not {code!r}")
    if type(value.value) is not list:
        raise DecodeError(at, f"a list of the fields of {cls.__name__}, not {type(value.value).__name__}")
    return _build(cls, value.value, at)


def _build(cls: type[Composite], values: list[Any], at: int) -> Composite:
    layout = cls.LAYOUT
    if len(values) > len(layout):
        raise DecodeError(at, f"at most {len(layout)} fields of {cls.__name__}, not {len(values)}")
    arguments = {}
    for (name, kind, _), value in zip(layout, values, strict=False):
        if value is None:
            continue
        checked = kind.check(value)
        if checked is None:
            raise DecodeError(at, f"{kind.name} as {cls.__name__}.{name}, not {value!r:.80}")
        arguments[name] = checked
    missing = [name for name, _, required in layout if required and name not in arguments]
    if missing:
        raise DecodeError(at, f"{cls.__name__}.{missing[0]}, which is mandatory")
    return cls(**arguments)
