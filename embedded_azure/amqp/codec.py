"""The AMQP 1.0 type system (part 1): values to bytes and back.

Python has one int where AMQP has eight, so what is encoded says its wire type (`UInt(5)`, `Symbol("x")`); what
is decoded is a plain int or float, for nothing here is ever decoded to be encoded again. `skip` and the raw
map functions let a broker hand on what it need not understand.
"""

import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_DEPTH: Final = 64
"""Compound and described values may be nested this deep; the SDK has the same bound."""
MAX_COUNT: Final = 65_536
"""Elements one list, map or array may have; the SDK has the same bound."""

MAX_EMPTY_ITEMS: Final = 255
"""Array elements that have no bytes of their own cost the sender nothing, so there may be only a few."""


class DecodeError(Exception):
    """Bytes that are not what AMQP says they should be."""

    def __init__(self, offset: int, expected: str) -> None:
        super().__init__(f"at byte {offset}: expected {expected}")
        self.offset = offset
        self.expected = expected


class Symbol(str):
    """A name out of a known domain; ASCII."""

    __slots__ = ()


class UByte(int):
    __slots__ = ()


class UShort(int):
    __slots__ = ()


class UInt(int):
    __slots__ = ()


class ULong(int):
    __slots__ = ()


class Byte(int):
    __slots__ = ()


class Short(int):
    __slots__ = ()


class Int(int):
    __slots__ = ()


class Long(int):
    __slots__ = ()


class Timestamp(int):
    """Milliseconds since the epoch."""

    __slots__ = ()


class Float(float):
    """32 bits; a plain float is encoded with 64."""

    __slots__ = ()


class Char(str):
    """One Unicode character."""

    __slots__ = ()


class DecimalBits(bytes):
    """An IEEE 754 decimal (4, 8 or 16 bytes), kept as its bits: nothing here calculates with it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Described:
    """A value with a descriptor that says what it means: a ULong or a Symbol, usually."""

    descriptor: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Array:
    """Values of one wire type, to be encoded as an array; a decoded array is a plain list."""

    of: type
    items: tuple[Any, ...]


_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_I8 = struct.Struct(">b")
_I16 = struct.Struct(">h")
_I32 = struct.Struct(">i")
_I64 = struct.Struct(">q")
_F32 = struct.Struct(">f")
_F64 = struct.Struct(">d")
_SIZE_COUNT_8 = struct.Struct(">BB")
_SIZE_COUNT_32 = struct.Struct(">II")

Encoder = Callable[[Any], bytes]
Decoder = Callable[[bytes, int, int], tuple[Any, int]]


# Encoding


def encode(value: object) -> bytes:
    """Raises TypeError for a type that has no AMQP encoding (a plain int among them), ValueError out of range."""
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise TypeError(
            f"{value!r} has no AMQP type; use one of {', '.join(sorted(kind.__name__ for kind in _ENCODERS))}"
        )
    try:
        return encoder(value)
    except struct.error as error:
        raise ValueError(f"{value!r} does not fit {type(value).__name__}: {error}") from error


def encode_map(pairs: bytes, count: int) -> bytes:
    """A map of `count` pairs that are encoded already: keys and values, one after the other."""
    return _compound(0xC1, 0xD1, pairs, count * 2)


def encode_list(fields: bytes, count: int) -> bytes:
    """A list of `count` values that are encoded already."""
    return _compound(0xC0, 0xD0, fields, count) if count else b"\x45"


def _compound(small: int, large: int, body: bytes, count: int) -> bytes:
    if len(body) < 255 and count < 256:
        return b"%c%c%c%b" % (small, len(body) + 1, count, body)
    return b"%c%b%b" % (large, _SIZE_COUNT_32.pack(len(body) + 4, count), body)


def _variable(small: int, large: int, body: bytes) -> bytes:
    if len(body) < 256:
        return b"%c%c%b" % (small, len(body), body)
    return b"%c%b%b" % (large, _U32.pack(len(body)), body)


def _fixed(code: int, layout: struct.Struct) -> Encoder:
    prefix = bytes([code])
    return lambda value: prefix + layout.pack(value)


def _compact(zero: bytes, small: int, large: int, layout: struct.Struct) -> Encoder:
    """Unsigned: no bytes for 0, one byte below 256, else all of them."""
    prefix = bytes([large])

    def encode_unsigned(value: int) -> bytes:
        if value == 0:
            return zero
        return b"%c%c" % (small, value) if 0 < value < 256 else prefix + layout.pack(value)

    return encode_unsigned


def _signed(small: int, large: int, layout: struct.Struct) -> Encoder:
    prefix = bytes([large])

    def encode_signed(value: int) -> bytes:
        return b"%c%b" % (small, _I8.pack(value)) if -128 <= value < 128 else prefix + layout.pack(value)

    return encode_signed


def _encode_decimal(value: DecimalBits) -> bytes:
    codes = {4: 0x74, 8: 0x84, 16: 0x94}
    if len(value) not in codes:
        raise ValueError(f"a decimal has 4, 8 or 16 bytes, not {len(value)}")
    return b"%c%b" % (codes[len(value)], value)


def _encode_items(values: Iterable[object]) -> bytes:
    return b"".join([encode(value) for value in values])


def _encode_mapping(value: Mapping[object, object]) -> bytes:
    return encode_map(_encode_items(part for pair in value.items() for part in pair), len(value))


def _encode_described(value: Described) -> bytes:
    return b"\x00%b%b" % (encode(value.descriptor), encode(value.value))


def _encode_array(array: Array) -> bytes:
    """The elements share one constructor, so each has the widest form of its type."""
    constructor, encode_element = _ARRAY_ELEMENTS[array.of]
    try:
        body = b"%c%b" % (constructor, b"".join([encode_element(item) for item in array.items]))
    except struct.error as error:
        raise ValueError(f"{array.items!r} does not fit an array of {array.of.__name__}: {error}") from error
    return _compound(0xE0, 0xF0, body, len(array.items))


def _sized(body: bytes) -> bytes:
    return _U32.pack(len(body)) + body


_ARRAY_ELEMENTS: Final[Mapping[type, tuple[int, Encoder]]] = {
    UInt: (0x70, _U32.pack),
    ULong: (0x80, _U64.pack),
    Int: (0x71, _I32.pack),
    Long: (0x81, _I64.pack),
    Timestamp: (0x83, _I64.pack),
    uuid.UUID: (0x98, lambda value: value.bytes),
    bytes: (0xB0, _sized),
    str: (0xB1, lambda value: _sized(value.encode())),
    Symbol: (0xB3, lambda value: _sized(value.encode("ascii"))),
}

_ENCODERS: Final[Mapping[type, Encoder]] = {
    type(None): lambda _: b"\x40",
    bool: lambda value: b"\x41" if value else b"\x42",
    UByte: _fixed(0x50, _U8),
    UShort: _fixed(0x60, _U16),
    UInt: _compact(b"\x43", 0x52, 0x70, _U32),
    ULong: _compact(b"\x44", 0x53, 0x80, _U64),
    Byte: _fixed(0x51, _I8),
    Short: _fixed(0x61, _I16),
    Int: _signed(0x54, 0x71, _I32),
    Long: _signed(0x55, 0x81, _I64),
    Float: _fixed(0x72, _F32),
    float: _fixed(0x82, _F64),
    DecimalBits: _encode_decimal,
    Char: lambda value: b"\x73" + _U32.pack(ord(value)),
    Timestamp: _fixed(0x83, _I64),
    uuid.UUID: lambda value: b"\x98" + value.bytes,
    bytes: lambda value: _variable(0xA0, 0xB0, value),
    str: lambda value: _variable(0xA1, 0xB1, value.encode()),
    Symbol: lambda value: _variable(0xA3, 0xB3, value.encode("ascii")),
    list: lambda value: encode_list(_encode_items(value), len(value)),
    tuple: lambda value: encode_list(_encode_items(value), len(value)),
    dict: _encode_mapping,
    Described: _encode_described,
    Array: _encode_array,
}


# Decoding


def decode(buffer: bytes, at: int = 0, depth: int = 0) -> tuple[Any, int]:
    """The value that starts at `at`, and where the next one starts. Raises DecodeError."""
    try:
        decoder = _DECODERS[buffer[at]]
    except IndexError:
        raise DecodeError(at, "a value, but the bytes end") from None
    try:
        return decoder(buffer, at + 1, depth)
    except (struct.error, IndexError):
        raise DecodeError(at, f"all bytes of the value with constructor 0x{buffer[at]:02x}") from None


def decode_whole(buffer: bytes) -> Any:
    """The one value that `buffer` consists of. Raises DecodeError, also when bytes are left over."""
    value, end = decode(buffer)
    if end != len(buffer):
        raise DecodeError(end, f"the end, but {len(buffer) - end} bytes follow")
    return value


def skip(buffer: bytes, at: int) -> int:
    """Where the value after the one at `at` starts. Raises DecodeError; does not look inside compounds."""
    try:
        return _skip(buffer, at)
    except (struct.error, IndexError):
        raise DecodeError(at, "all bytes of a value") from None


def raw_pairs(buffer: bytes, at: int) -> tuple[int, int, int]:
    """Of the map at `at`: where its first pair starts, where the map ends, and its pairs. Raises DecodeError."""
    try:
        if buffer[at] == 0xC1:
            size, count = _SIZE_COUNT_8.unpack_from(buffer, at + 1)
            start, end = at + 3, at + 2 + size
        elif buffer[at] == 0xD1:
            size, count = _SIZE_COUNT_32.unpack_from(buffer, at + 1)
            start, end = at + 9, at + 5 + size
        else:
            raise DecodeError(at, f"a map, not constructor 0x{buffer[at]:02x}")
    except (struct.error, IndexError):
        raise DecodeError(at, "all bytes of a map") from None
    _check_extent(buffer, start, end, count)
    if count % 2:
        raise DecodeError(at, f"a key and a value for each pair, not {count} elements")
    return start, end, count // 2


def _check_extent(buffer: bytes, start: int, end: int, count: int) -> None:
    if not start <= end <= len(buffer):
        raise DecodeError(start, f"a size that fits the {len(buffer)} bytes there are, not an end at {end}")
    if count > MAX_COUNT:
        raise DecodeError(start, f"at most {MAX_COUNT} elements, not {count}")


def _skip(buffer: bytes, at: int) -> int:
    descriptors = 0
    while buffer[at] == 0:
        descriptors += 1
        if descriptors > MAX_DEPTH:
            raise DecodeError(at, f"at most {MAX_DEPTH} nested descriptors")
        at = _skip_undescribed(buffer, at + 1)
    return _skip_undescribed(buffer, at)


def _skip_undescribed(buffer: bytes, at: int) -> int:
    # The upper half of a constructor says how wide its value is (1.2).
    width = _WIDTHS.get(buffer[at] >> 4)
    if width is None:
        raise DecodeError(at, f"a constructor, not 0x{buffer[at]:02x}")
    fixed, layout = width
    end = at + 1 + fixed + (layout.unpack_from(buffer, at + 1)[0] if layout else 0)
    if end > len(buffer):
        raise DecodeError(at, f"{end - at} bytes of a value, but {len(buffer) - at} are left")
    return end


_WIDTHS: Final[Mapping[int, tuple[int, struct.Struct | None]]] = {
    0x4: (0, None),
    0x5: (1, None),
    0x6: (2, None),
    0x7: (4, None),
    0x8: (8, None),
    0x9: (16, None),
    0xA: (1, _U8),
    0xB: (4, _U32),
    0xC: (1, _U8),
    0xD: (4, _U32),
    0xE: (1, _U8),
    0xF: (4, _U32),
}


def _constant(value: object) -> Decoder:
    return lambda buffer, at, depth: (value, at)


def _number(layout: struct.Struct) -> Decoder:
    unpack, size = layout.unpack_from, layout.size
    return lambda buffer, at, depth: (unpack(buffer, at)[0], at + size)


def _decode_octet(buffer: bytes, at: int, depth: int) -> tuple[int, int]:
    return buffer[at], at + 1


def _decode_boolean(buffer: bytes, at: int, depth: int) -> tuple[bool, int]:
    if buffer[at] > 1:
        raise DecodeError(at, f"a boolean's 0x00 or 0x01, not 0x{buffer[at]:02x}")
    return buffer[at] == 1, at + 1


def _decode_char(buffer: bytes, at: int, depth: int) -> tuple[Char, int]:
    (code,) = _U32.unpack_from(buffer, at)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise DecodeError(at, f"a Unicode character, not 0x{code:x}")
    return Char(chr(code)), at + 4


def _decode_uuid(buffer: bytes, at: int, depth: int) -> tuple[uuid.UUID, int]:
    return uuid.UUID(bytes=_take(buffer, at, at + 16)), at + 16


def _decimal(size: int) -> Decoder:
    return lambda buffer, at, depth: (DecimalBits(_take(buffer, at, at + size)), at + size)


def _take(buffer: bytes, at: int, end: int) -> bytes:
    if end > len(buffer):
        raise DecodeError(at, f"{end - at} bytes, but {len(buffer) - at} are left")
    return buffer[at:end]


def _as_bytes(raw: bytes, at: int) -> bytes:
    return raw


def _as_string(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(at + error.start, "UTF-8 in a string") from None


def _as_symbol(raw: bytes, at: int) -> Symbol:
    try:
        return Symbol(raw, "ascii")
    except UnicodeDecodeError as error:
        raise DecodeError(at + error.start, "ASCII in a symbol") from None


def _text(layout: struct.Struct, convert: Callable[[bytes, int], Any]) -> Decoder:
    unpack, width = layout.unpack_from, layout.size

    def decode_variable(buffer: bytes, at: int, depth: int) -> tuple[Any, int]:
        start = at + width
        end = start + unpack(buffer, at)[0]
        return convert(_take(buffer, start, end), start), end

    return decode_variable


def _list(layout: struct.Struct) -> Decoder:
    def decode_list(buffer: bytes, at: int, depth: int) -> tuple[list[Any], int]:
        start, end, count = _enter(layout, buffer, at, depth)
        return _elements(buffer, start, end, count, depth + 1), end

    return decode_list


def _map(layout: struct.Struct) -> Decoder:
    def decode_map(buffer: bytes, at: int, depth: int) -> tuple[dict[Any, Any], int]:
        start, end, count = _enter(layout, buffer, at, depth)
        if count % 2:
            raise DecodeError(at, f"a key and a value for each pair, not {count} elements")
        parts = _elements(buffer, start, end, count, depth + 1)
        try:
            pairs = dict(zip(parts[::2], parts[1::2], strict=True))
        except TypeError:
            raise DecodeError(start, "keys that are simple values") from None
        if len(pairs) * 2 != count:
            raise DecodeError(start, "keys that are all different")
        return pairs, end

    return decode_map


def _array(layout: struct.Struct) -> Decoder:
    def decode_array(buffer: bytes, at: int, depth: int) -> tuple[list[Any], int]:
        start, end, count = _enter(layout, buffer, at, depth)
        if not count and start == end:  # the constructor of no elements is left out by some
            return [], end
        descriptor, start = _array_descriptor(buffer, start, depth + 1)
        if buffer[start] >> 4 == 0x4 and count > MAX_EMPTY_ITEMS:
            raise DecodeError(start, f"at most {MAX_EMPTY_ITEMS} elements without bytes, not {count}")
        decoder = _DECODERS[buffer[start]]
        start += 1
        values = []
        for _ in range(count):
            value, start = decoder(buffer, start, depth + 1)
            values.append(value if descriptor is None else Described(descriptor, value))
        _check_end(start, end)
        return values, end

    return decode_array


def _array_descriptor(buffer: bytes, at: int, depth: int) -> tuple[Any, int]:
    return decode(buffer, at + 1, depth) if buffer[at] == 0 else (None, at)


def _enter(layout: struct.Struct, buffer: bytes, at: int, depth: int) -> tuple[int, int, int]:
    """Where the elements of the compound start, where it ends, and how many they are."""
    _check_depth(at, depth)
    size, count = layout.unpack_from(buffer, at)
    start, end = at + layout.size, at + layout.size // 2 + size
    _check_extent(buffer, start, end, count)
    return start, end, count


def _elements(buffer: bytes, at: int, end: int, count: int, depth: int) -> list[Any]:
    values = []
    for _ in range(count):
        value, at = _DECODERS[buffer[at]](buffer, at + 1, depth)
        values.append(value)
    _check_end(at, end)
    return values


def _check_depth(at: int, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise DecodeError(at, f"at most {MAX_DEPTH} nested values")


def _check_end(at: int, end: int) -> None:
    if at != end:
        raise DecodeError(at, f"the compound's end at byte {end}")


def _decode_described(buffer: bytes, at: int, depth: int) -> tuple[Described, int]:
    _check_depth(at, depth)
    descriptor, at = decode(buffer, at, depth + 1)
    value, at = decode(buffer, at, depth + 1)
    return Described(descriptor, value), at


def _decode_empty_list(buffer: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    return [], at


def _decode_unknown(buffer: bytes, at: int, depth: int) -> tuple[Any, int]:
    raise DecodeError(at - 1, f"a constructor, not 0x{buffer[at - 1]:02x}")


_KNOWN_DECODERS: Final[Mapping[int, Decoder]] = {
    0x00: _decode_described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(0),
    0x44: _constant(0),
    0x45: _decode_empty_list,
    0x50: _decode_octet,
    0x51: _number(_I8),
    0x52: _decode_octet,
    0x53: _decode_octet,
    0x54: _number(_I8),
    0x55: _number(_I8),
    0x56: _decode_boolean,
    0x60: _number(_U16),
    0x61: _number(_I16),
    0x70: _number(_U32),
    0x71: _number(_I32),
    0x72: _number(_F32),
    0x73: _decode_char,
    0x74: _decimal(4),
    0x80: _number(_U64),
    0x81: _number(_I64),
    0x82: _number(_F64),
    0x83: _number(_I64),
    0x84: _decimal(8),
    0x94: _decimal(16),
    0x98: _decode_uuid,
    0xA0: _text(_U8, _as_bytes),
    0xA1: _text(_U8, _as_string),
    0xA3: _text(_U8, _as_symbol),
    0xB0: _text(_U32, _as_bytes),
    0xB1: _text(_U32, _as_string),
    0xB3: _text(_U32, _as_symbol),
    0xC0: _list(_SIZE_COUNT_8),
    0xC1: _map(_SIZE_COUNT_8),
    0xD0: _list(_SIZE_COUNT_32),
    0xD1: _map(_SIZE_COUNT_32),
    0xE0: _array(_SIZE_COUNT_8),
    0xF0: _array(_SIZE_COUNT_32),
}
_DECODERS: Final = [_KNOWN_DECODERS.get(code, _decode_unknown) for code in range(256)]
