"""The type system, with the SDK's own codec as the oracle in both directions."""

import struct
import uuid
from typing import Any

import pytest
from azure.servicebus._pyamqp import _decode, _encode
from azure.servicebus._pyamqp.types import AMQPTypes
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.amqp.codec import (
    MAX_COUNT,
    MAX_DEPTH,
    Array,
    Byte,
    Char,
    DecimalBits,
    DecodeError,
    Described,
    Float,
    Int,
    Long,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    decode,
    decode_whole,
    encode,
    encode_map,
    raw_pairs,
    skip,
)

SDK_TYPES: dict[type, str] = {
    UByte: AMQPTypes.ubyte,
    UShort: AMQPTypes.ushort,
    UInt: AMQPTypes.uint,
    ULong: AMQPTypes.ulong,
    Byte: AMQPTypes.byte,
    Short: AMQPTypes.short,
    Int: AMQPTypes.int,
    Long: AMQPTypes.long,
    Timestamp: AMQPTypes.timestamp,
    Float: AMQPTypes.float,
    float: AMQPTypes.double,
    bool: AMQPTypes.boolean,
    type(None): AMQPTypes.null,
    uuid.UUID: AMQPTypes.uuid,
    bytes: AMQPTypes.binary,
    str: AMQPTypes.string,
    Symbol: AMQPTypes.symbol,
    list: AMQPTypes.list,
    dict: AMQPTypes.map,
    Array: AMQPTypes.array,
    Described: AMQPTypes.described,
}


def number(wire_type: Any, bits: int, *, signed: bool) -> st.SearchStrategy[Any]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return st.integers(low, high).map(wire_type)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
symbols = st.text(st.characters(max_codepoint=127), max_size=300).map(Symbol)
simple = st.one_of(
    st.none(),
    st.booleans(),
    number(UByte, 8, signed=False),
    number(UShort, 16, signed=False),
    number(UInt, 32, signed=False),
    number(ULong, 64, signed=False),
    number(Byte, 8, signed=True),
    number(Short, 16, signed=True),
    number(Int, 32, signed=True),
    number(Long, 64, signed=True),
    number(Timestamp, 64, signed=True),
    st.floats(width=32, allow_nan=False).map(Float),
    st.floats(allow_nan=False),
    st.uuids(),
    st.binary(max_size=300),
    texts,
    symbols,
)
arrays = st.one_of(
    st.lists(symbols, min_size=1, max_size=40).map(lambda items: Array(Symbol, tuple(items))),
    st.lists(st.uuids(), min_size=1, max_size=40).map(lambda items: Array(uuid.UUID, tuple(items))),
    st.lists(number(Timestamp, 64, signed=True), min_size=1).map(lambda items: Array(Timestamp, tuple(items))),
    st.lists(number(Long, 64, signed=True), min_size=1).map(lambda items: Array(Long, tuple(items))),
    st.lists(texts, min_size=1, max_size=5).map(lambda items: Array(str, tuple(items))),
)
described = st.builds(Described, st.integers(0x70, 0x90).map(ULong), simple)
keys = st.one_of(symbols, texts, number(ULong, 64, signed=False), st.uuids())
values = st.recursive(
    simple | arrays | described,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(keys, inner, max_size=8),
    max_leaves=20,
)


def plain(value: Any) -> Any:
    """What decoding gives back: the value without its wire type."""
    match value:
        case Array():
            return [plain(item) for item in value.items]
        case list():
            return [plain(item) for item in value]
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case Described():
            return Described(plain(value.descriptor), plain(value.value))
    return value


def as_the_sdk_reads(value: Any) -> Any:
    """The SDK leaves texts as bytes, and takes a described value for the value itself."""
    match value:
        case str():
            return value.encode()
        case Array():
            return [as_the_sdk_reads(item) for item in value.items]
        case list():
            return [as_the_sdk_reads(item) for item in value]
        case dict():
            return {as_the_sdk_reads(key): as_the_sdk_reads(item) for key, item in value.items()}
        case Described():
            return as_the_sdk_reads(value.value)
    return value


def as_the_sdk_writes(value: Any) -> Any:
    kind = SDK_TYPES[type(value)]
    match value:
        case Array():
            return {"TYPE": kind, "VALUE": [as_the_sdk_writes(item) for item in value.items]}
        case list():
            return {"TYPE": kind, "VALUE": [as_the_sdk_writes(item) for item in value]}
        case dict():
            pairs = [(as_the_sdk_writes(key), as_the_sdk_writes(item)) for key, item in value.items()]
            return {"TYPE": kind, "VALUE": pairs}
        case Described():
            pair = (as_the_sdk_writes(value.descriptor), as_the_sdk_writes(value.value))
            return {"TYPE": kind, "VALUE": pair}
    return {"TYPE": kind, "VALUE": value}


def sdk_decode(buffer: bytes) -> Any:
    rest, value = _decode._DECODE_BY_CONSTRUCTOR[buffer[0]](memoryview(buffer)[1:])
    assert not rest
    return value


def has_colliding_keys(value: Any) -> bool:
    """A string and a symbol of the same letters are two keys on the wire and one in Python."""
    match value:
        case dict():
            reads = [as_the_sdk_reads(key) for key in value]
            return len(set(reads)) < len(reads) or any(map(has_colliding_keys, value.values()))
        case list():
            return any(map(has_colliding_keys, value))
    return False


@given(values)
def test_what_is_encoded_is_decoded_again(value: Any) -> None:
    assert decode_whole(encode(value)) == plain(value)


@given(values.filter(lambda value: not has_colliding_keys(value)))
def test_the_sdk_reads_what_is_encoded(value: Any) -> None:
    assert sdk_decode(encode(value)) == as_the_sdk_reads(value)


@given(values)
def test_what_the_sdk_writes_is_read(value: Any) -> None:
    output = bytearray()
    _encode.encode_value(output, as_the_sdk_writes(value))
    assert decode_whole(bytes(output)) == plain(value)


@given(values, st.binary(max_size=5), st.binary(max_size=5))
def test_skipping_ends_where_decoding_ends(value: Any, before: bytes, after: bytes) -> None:
    buffer = before + encode(value) + after
    assert skip(buffer, len(before)) == decode(buffer, len(before))[1] == len(buffer) - len(after)


@given(st.binary(max_size=200))
def test_garbage_is_a_decode_error_and_nothing_else(garbage: bytes) -> None:
    for read in (decode, decode_whole, lambda buffer: skip(buffer, 0), lambda buffer: raw_pairs(buffer, 0)):
        try:
            read(garbage)
        except DecodeError as error:
            assert 0 <= error.offset <= len(garbage)  # noqa: PT017  # no error at all is right, too


@given(values, st.data())
def test_a_value_cut_short_is_refused(value: Any, data: st.DataObject) -> None:
    whole = encode(value)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DecodeError):
        decode_whole(whole[:cut])


@given(values, st.data())
def test_a_damaged_byte_never_escapes_as_another_error(value: Any, data: st.DataObject) -> None:
    damaged = bytearray(encode(value))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_whole(bytes(damaged))
    except DecodeError as error:
        assert "expected" in str(error)  # noqa: PT017  # still a value, often


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=8, max_size=8) | st.binary(min_size=16, max_size=16))
def test_decimals_are_kept_bit_by_bit(bits: bytes) -> None:
    assert decode_whole(encode(DecimalBits(bits))) == bits


@given(st.characters(exclude_categories=["Cs"]))
def test_a_char_is_a_char_again(letter: str) -> None:
    assert decode_whole(encode(Char(letter))) == letter


@given(st.dictionaries(symbols, simple, max_size=20))
def test_the_raw_pairs_of_a_map_make_the_same_map(value: dict[Symbol, Any]) -> None:
    encoded = encode(value)
    start, end, count = raw_pairs(encoded, 0)
    assert encode_map(encoded[start:end], count) == encoded


@pytest.mark.parametrize(
    ("garbage", "offset", "expected"),
    [
        (b"", 0, "a value"),
        (b"\x3f", 0, "a constructor, not 0x3f"),
        (b"\x56\x02", 1, "0x00 or 0x01"),
        (b"\xa1\x02\xff\xff", 2, "UTF-8"),
        (b"\xa3\x01\xc3", 2, "ASCII"),
        (b"\xa1\x05ab", 2, "5 bytes, but 2 are left"),
        (b"\x73\x00\x00\xd8\x00", 1, "a Unicode character"),
        (b"\xc1\x02\x01\x40", 1, "a key and a value"),
        (b"\xc1\x09\x04\xa1\x00\xa1\x00", 3, "a size that fits"),
        (b"\xc0\x03\x01\x40\x40", 4, "the compound's end"),
        (b"\xd0\x00\x00\x00\x04\xff\xff\xff\xff", 9, f"at most {MAX_COUNT} elements"),
        (b"\xf0" + struct.pack(">II", 5, MAX_COUNT) + b"\x40", 9, "at most 255 elements without bytes"),
        (b"\x00" * 200, 65, f"at most {MAX_DEPTH} nested"),
    ],
)
def test_an_error_names_the_place_and_what_was_expected(garbage: bytes, offset: int, expected: str) -> None:
    with pytest.raises(DecodeError, match="at byte") as caught:
        decode(garbage)
    assert (caught.value.offset, expected in caught.value.expected) == (offset, True), caught.value


def test_nesting_is_bounded_for_lists_too() -> None:
    def nested(depth: int) -> bytes:
        body = b"\x45"
        for _ in range(depth):
            body = b"\xd0" + struct.pack(">II", len(body) + 4, 1) + body
        return body

    decode_whole(nested(MAX_DEPTH))
    with pytest.raises(DecodeError, match="nested"):
        decode_whole(nested(MAX_DEPTH + 1))


def test_a_map_with_the_same_key_twice_is_refused() -> None:
    twice = encode(Symbol("a")) + encode(True)
    with pytest.raises(DecodeError, match="all different"):
        decode_whole(encode_map(twice * 2, 2))


def test_a_number_without_a_wire_type_is_not_guessed_at() -> None:
    with pytest.raises(TypeError, match="5 has no AMQP type"):
        encode(5)


@pytest.mark.parametrize(
    "value", [UByte(256), UInt(-1), UInt(1 << 32), ULong(1 << 64), Long(1 << 63), Int(-1 << 40)]
)
def test_a_number_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode(value)
