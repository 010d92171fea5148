"""Messages, with the SDK's own codec as the oracle in both directions; and frames cut out of a stream."""

import uuid
from typing import Any

import pytest
from azure.servicebus._pyamqp import _decode, _encode
from azure.servicebus._pyamqp.message import BatchMessage, Header, Message, Properties
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.amqp.codec import DecodeError, Symbol
from embedded_azure.amqp.frames import EMPTY_FRAME, FrameReader, frame_of
from embedded_azure.amqp.messages import (
    change_application_properties,
    decode_message,
    encode_annotations,
    encode_header,
    encode_message,
    encode_pairs,
    pairs_without,
    read_batch,
)
from embedded_azure.servicebus.broker.broker import Locked
from embedded_azure.servicebus.broker.broker import Message as BrokerMessage
from embedded_azure.servicebus.links.contents import encode_delivery, encode_locked, read_message, read_messages

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
words = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=20)
scalars = texts | st.integers(-(1 << 31), (1 << 31) - 1) | st.booleans() | st.binary(max_size=20) | st.uuids()
headers = st.none() | st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 1 << 31)).map(
    lambda fields: Header(*fields)
)
properties = st.builds(
    lambda **fields: Properties(**fields),  # of a named tuple hypothesis would fill in the other fields, too
    message_id=st.one_of(st.none(), texts, st.uuids(), st.binary(max_size=20), st.integers(0, 1 << 60)),
    subject=st.none() | texts,
    correlation_id=st.none() | texts,
    content_type=st.none() | words,
    group_id=st.none() | texts,
    creation_time=st.none() | st.integers(0, 1 << 50),
)
bodies = st.one_of(
    st.lists(st.binary(max_size=400), min_size=1, max_size=3).map(lambda data: {"data": data}),
    texts.filter(bool).map(lambda value: {"value": value}),
    st.lists(st.lists(st.integers(0, 100), max_size=5), min_size=1, max_size=3).map(
        lambda sequence: {"sequence": sequence}
    ),
)
sdk_messages = st.builds(
    lambda header, annotations, fields, application, body: Message(
        header=header,
        message_annotations=annotations,
        properties=fields,
        application_properties=application,
        **body,
    ),
    headers,
    st.dictionaries(words, scalars, max_size=5),
    st.none() | properties,
    st.dictionaries(texts, scalars, max_size=5),
    bodies,
)


def sdk_encode(message: Any) -> bytes:
    output = bytearray()
    _encode.encode_payload(output, message)
    return bytes(output)


def sdk_decode(payload: bytes) -> Message:
    return _decode.decode_payload(memoryview(payload))


@given(sdk_messages)
def test_a_delivery_holds_what_the_sender_put_in(sent: Any) -> None:
    payload = sdk_encode(sent)
    original = sdk_decode(payload)
    message = read_message(payload)
    message.sequence_number = message.enqueued_sequence_number = 77
    message.enqueued_at, message.delivery_count = 1_700_000_000.25, 3
    locked = Locked(message=message, token=uuid.uuid4(), locked_until=1_700_000_060.5)
    delivered = sdk_decode(encode_locked(locked))
    if original.properties is not None and original.properties.message_id is not None:
        assert delivered.properties == original.properties
    assert delivered.application_properties == original.application_properties
    assert (delivered.data, delivered.value, delivered.sequence) == (
        original.data,
        original.value,
        original.sequence,
    )
    assert delivered.header is not None
    assert delivered.header.delivery_count == 3
    assert delivered.header.ttl == (original.header.ttl if original.header else None)
    assert delivered.message_annotations == {
        **(original.message_annotations or {}),
        b"x-opt-sequence-number": 77,
        b"x-opt-enqueued-time": 1_700_000_000_250,
        b"x-opt-locked-until": 1_700_000_060_500,
        b"x-opt-message-state": 0,
    }
    assert delivered.delivery_annotations == {
        **(original.delivery_annotations or {}),
        b"x-opt-lock-token": locked.token,
    }


@given(sdk_messages)
def test_the_broker_reads_what_it_must_know(sent: Any) -> None:
    payload = sdk_encode(sent)
    message = read_message(payload)
    fields = sent.properties or Properties()
    wanted = fields.message_id
    if isinstance(wanted, bytes):
        wanted = wanted.hex()
    assert wanted is None or message.message_id == str(wanted)
    assert message.session_id == fields.group_id
    assert message.time_to_live == (sent.header.ttl / 1000 if sent.header else None)
    assert message.size == len(payload)


@given(st.lists(sdk_messages, min_size=1, max_size=5))
def test_a_batch_is_split_into_its_messages(sent: list[Any]) -> None:
    encoded = [sdk_encode(message) for message in sent]
    envelope = sdk_encode(BatchMessage(properties=Properties(message_id="first"), data=encoded))
    assert read_batch(envelope) == encoded
    assert len(read_messages(envelope, 0x80013700)) == len(sent)


@given(sdk_messages, st.data())
def test_a_message_cut_short_or_damaged_is_a_decode_error_and_nothing_else(sent: Any, data: st.DataObject) -> None:
    payload = bytearray(sdk_encode(sent))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(payload[: data.draw(st.integers(1, len(payload)))])
    try:
        read_message(cut)
    except DecodeError as error:
        assert error.expected  # noqa: PT017  # some damage is still a message


@given(
    st.none() | st.booleans(),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 1 << 31),
    st.integers(0, 99),
)
def test_a_header_says_the_delivery_count_even_if_it_is_0(
    durable: bool | None, priority: int | None, ttl: int | None, count: int
) -> None:
    header = sdk_decode(encode_header(durable, priority, ttl, count)).header
    assert header == Header(durable, priority, ttl, None, count)


@given(st.dictionaries(words, texts, max_size=30), st.dictionaries(words, texts, min_size=1, max_size=3))
def test_application_properties_are_added_and_replaced(before: dict[str, str], more: dict[str, str]) -> None:
    raw = change_application_properties(b"", before) if before else b""
    after = sdk_decode(change_application_properties(raw, more)).application_properties
    assert after == {key.encode(): value.encode() for key, value in {**before, **more}.items()}


@given(st.dictionaries(words, texts, max_size=30), st.sets(words, min_size=1, max_size=3))
def test_application_properties_are_taken_out(before: dict[str, str], gone: set[str]) -> None:
    raw = change_application_properties(b"", before) if before else b""
    after = sdk_decode(change_application_properties(raw, dict.fromkeys(gone))).application_properties or {}
    assert after == {key.encode(): value.encode() for key, value in before.items() if key not in gone}


@given(properties.map(lambda fields: fields._replace(message_id=None)) | st.none())
def test_a_message_without_id_gets_one_and_keeps_its_other_properties(fields: Properties | None) -> None:
    message = read_message(sdk_encode(Message(properties=fields, data=[b"x"])))
    assert message.message_id is not None
    arrived = sdk_decode(encode_delivery(message)).properties
    sent = sdk_decode(sdk_encode(Message(properties=fields, data=[b"x"]))).properties or Properties()
    assert arrived == sent._replace(message_id=message.message_id.encode())


@given(st.dictionaries(words.map(Symbol), texts, min_size=1, max_size=10), st.sets(words, max_size=5))
def test_annotations_are_kept_but_for_those_dropped(pairs: dict[Symbol, str], dropped: set[str]) -> None:
    raw = encode_annotations(encode_pairs(pairs), len(pairs))
    kept, count = pairs_without(raw, dropped)
    assert kept == encode_pairs({key: value for key, value in pairs.items() if key not in dropped})
    assert count == len(pairs.keys() - dropped)


def test_a_forged_annotation_of_the_broker_is_not_handed_on() -> None:
    forged: dict[str | bytes, Any] = {b"x-opt-sequence-number": 1, b"x-opt-enqueued-time": 2, b"mine": "kept"}
    message = read_message(sdk_encode(Message(message_annotations=forged, data=[b"x"])))
    message.sequence_number = message.enqueued_sequence_number = 9
    # The SDK would take the last of two keys that are the same; our own decoder refuses them.
    assert decode_message(encode_delivery(message)).annotations == {
        "mine": "kept",
        "x-opt-sequence-number": 9,
        "x-opt-enqueued-time": 0,
        "x-opt-message-state": 0,
    }


def test_why_a_message_was_dead_lettered_is_among_its_application_properties() -> None:
    sent = Message(application_properties={"mine": "kept"}, data=[b"x"])
    message: BrokerMessage = read_message(sdk_encode(sent))
    message.dead_letter_reason, message.dead_letter_description = "InvalidJson", "line 1"
    assert sdk_decode(encode_delivery(message)).application_properties == {
        b"mine": b"kept",
        b"DeadLetterReason": b"InvalidJson",
        b"DeadLetterErrorDescription": b"line 1",
    }


@pytest.mark.parametrize("identifier", [uuid.UUID(int=7), "text", b"bytes", 1 << 40])
def test_an_answer_correlates_with_whatever_id_the_request_had(identifier: Any) -> None:
    request = decode_message(sdk_encode(Message(properties=Properties(message_id=identifier), value="x")))
    answer = sdk_decode(encode_message(correlation_id=request.message_id, value="ok"))
    assert answer.properties is not None
    expected = identifier.encode() if isinstance(identifier, str) else identifier
    assert answer.properties.correlation_id == expected


DATA = b"\x00\x53\x75\xa0\x01x"
PROPERTIES = b"\x00\x53\x73\x45"
VALUE = b"\x00\x53\x77\x40"


@pytest.mark.parametrize(
    ("payload", "offset", "expected"),
    [
        (b"\x41", 0, "the descriptor of a section"),
        (b"\x00\x53\x10\x45", 0, "the descriptor of a section"),
        (PROPERTIES + PROPERTIES, 4, "a section that may follow"),
        (DATA + PROPERTIES, 6, "a section that may follow"),
        (DATA + VALUE, 6, "a section that may follow"),
        (VALUE + VALUE, 4, "a section that may follow"),
        (b"\x00\x53\x73\xa1\x00", 3, "a list as section"),
        (b"\x00\x53\x74\x45", 3, "a map"),
        (b"\x00\x53\x75\xa0\x05x", 3, "bytes of a value"),
    ],
)
def test_what_is_no_message_is_refused(payload: bytes, offset: int, expected: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_message(payload)
    assert (caught.value.offset, expected in caught.value.expected) == (offset, True), caught.value


def test_a_batch_without_messages_or_an_unknown_format_is_refused() -> None:
    with pytest.raises(DecodeError, match="at least one data section"):
        read_batch(PROPERTIES)
    with pytest.raises(DecodeError, match="message-format 0"):
        read_messages(DATA, 5)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=600)), max_size=8), st.data())
def test_frames_are_found_however_the_stream_is_cut(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame_of(body, channel) for channel, body in sent) + EMPTY_FRAME
    reader, found = FrameReader(1024), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:size])
        stream = stream[size:]
        while frame := reader.next_frame():
            found.append((frame.channel, frame.body))
    assert found == [*sent, (0, b"")]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"\x00\x00\x04\x01\x02\x00\x00\x00", "at most 1024 bytes"),
        (b"\x00\x00\x00\x10\x01\x00\x00\x00", "a body that starts within"),
        (b"\x00\x00\x00\x10\x05\x00\x00\x00", "a body that starts within"),
        (b"\x00\x00\x00\x07\x02\x00\x00\x00", "a body that starts within"),
        (b"\x00\x00\x00\x10\x02\x07\x00\x00", "frame type 0"),
    ],
)
def test_an_impossible_frame_header_is_refused_before_its_body_arrives(header: bytes, expected: str) -> None:
    reader = FrameReader(1024)
    reader.feed(header)
    with pytest.raises(DecodeError, match=expected):
        reader.next_frame()
