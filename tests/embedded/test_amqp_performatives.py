"""Frames' bodies, with the SDK's own codec as the oracle in both directions."""

import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from azure.servicebus._pyamqp import _decode, _encode
from azure.servicebus._pyamqp import performatives as sdk
from azure.servicebus._pyamqp.endpoints import Source as SdkSource
from azure.servicebus._pyamqp.endpoints import Target as SdkTarget
from azure.servicebus._pyamqp.error import AMQPError
from azure.servicebus._pyamqp.outcomes import Accepted as SdkAccepted
from azure.servicebus._pyamqp.outcomes import Modified as SdkModified
from azure.servicebus._pyamqp.outcomes import Rejected as SdkRejected
from azure.servicebus._pyamqp.outcomes import Released as SdkReleased
from hypothesis import given
from hypothesis import strategies as st

from embedded_azure.amqp import performatives as ours
from embedded_azure.amqp.codec import DecodeError, Described, Symbol, ULong, encode, encode_list
from embedded_azure.amqp.performatives import (
    Accepted,
    Attach,
    Begin,
    Close,
    Composite,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Modified,
    Open,
    Rejected,
    Released,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Source,
    Target,
    Transfer,
    decode_composite,
    decode_performative,
    encode_composite,
    encode_settlement,
    encode_transfer,
)

names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)
errors = st.builds(Error, condition=names, description=names, info=st.none())
BY_KIND: Mapping[str, st.SearchStrategy[Any]] = {
    "a boolean": st.booleans(),
    "a ubyte": st.integers(0, 2),
    "a ushort": st.integers(0, (1 << 16) - 1),
    "a uint": st.integers(0, (1 << 32) - 1),
    "a ulong": st.integers(0, (1 << 64) - 1),
    "a string": names,
    "a symbol": names.map(Symbol),
    "symbols": st.lists(names.map(Symbol), min_size=1, max_size=4).map(tuple),
    "binary": st.binary(max_size=40),
    "a map": st.dictionaries(names.map(Symbol), names, min_size=1, max_size=4),
    "Error": errors,
    "Accepted or Rejected or Released or Modified": st.sampled_from([Accepted(), Released(), Rejected()]),
    "Accepted or Rejected or Released or Modified or Received": st.one_of(
        st.sampled_from([Accepted(), Released(), Rejected()]),
        st.builds(Modified, delivery_failed=st.booleans(), undeliverable_here=st.booleans()),
        errors.map(lambda error: Rejected(error=error)),
    ),
    "Source": st.builds(Source, address=names, durable=st.integers(0, 2)),
    "Target or Coordinator": st.builds(Target, address=names, durable=st.integers(0, 2)),
}


def any_of(cls: type[Composite]) -> st.SearchStrategy[Any]:
    """Values of one composite; what is optional may be missing."""
    members = {
        name: BY_KIND[kind.name] if required else st.just(default_of(cls, name)) | BY_KIND[kind.name]
        for name, kind, required in cls.LAYOUT
    }
    return st.builds(cls, **members)


def default_of(cls: type[Composite], name: str) -> Any:
    return cls.__dataclass_fields__[name].default  # type: ignore[attr-defined]  # each is a dataclass


performatives = st.one_of(
    *(any_of(cls) for cls in (Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close)),
    *(any_of(cls) for cls in (SaslMechanisms, SaslInit, SaslOutcome)),
)


def as_the_sdk_reads(value: Any) -> Any:
    match value:
        case str():
            return value.encode()
        case tuple():
            return [as_the_sdk_reads(item) for item in value]
        case dict():
            return {as_the_sdk_reads(key): as_the_sdk_reads(item) for key, item in value.items()}
        case Accepted() | Rejected() | Released() | Modified():
            return {type(value).__name__.lower(): fields_of(value)}
        case Composite():
            return fields_of(value)
    return value


def fields_of(value: Composite) -> list[Any]:
    members = [as_the_sdk_reads(getattr(value, name)) for name, _, _ in value.LAYOUT]
    while members and members[-1] is None and not value.PADDED:
        members.pop()
    return members


def all_fields_of(value: Composite) -> list[Any]:
    return [as_the_sdk_reads(getattr(value, name)) for name, _, _ in value.LAYOUT]


@given(performatives)
def test_what_is_encoded_is_decoded_again(value: Composite) -> None:
    assert decode_composite(encode_composite(value)) == value


@given(performatives)
def test_the_sdk_reads_what_is_encoded(value: Composite) -> None:
    code, fields = _decode.decode_frame(memoryview(encode_composite(value)))
    if isinstance(value, Transfer):
        fields = fields[:-1]  # the payload
    expected = all_fields_of(value)
    if isinstance(value, Transfer) and value.message_format is None:
        expected[3] = 0  # the SDK's default
    assert (code, fields) == (value.CODE, expected)


def sdk_body(frame: Any) -> bytes:
    body = _encode.encode_frame(frame)[1]
    assert body is not None
    return bytes(body)


SDK_STATES = [
    (SdkAccepted(), Accepted()),
    (SdkReleased(), Released()),
    (SdkModified(True, False, None), Modified(delivery_failed=True, undeliverable_here=False)),
    (
        SdkRejected(error=AMQPError(condition=b"com.microsoft:dead-letter", description="why", info={b"a": "b"})),
        Rejected(error=Error(condition="com.microsoft:dead-letter", description="why", info={"a": "b"})),
    ),
]


@pytest.mark.parametrize(("theirs", "expected"), SDK_STATES)
def test_the_sdks_outcomes_are_read(theirs: Any, expected: Any) -> None:
    frame = sdk.DispositionFrame(role=True, first=7, last=9, settled=False, state=theirs, batchable=None)
    assert decode_composite(sdk_body(frame)) == Disposition(
        role=True, first=7, last=9, settled=False, state=expected
    )


@given(names, st.integers(0, 255), names, st.none() | names)
def test_the_sdks_attach_with_a_session_filter_is_read(
    name: str, handle: int, address: str, session: str | None
) -> None:
    key = b"com.microsoft:session-filter"
    frame = sdk.AttachFrame(
        name=name,
        handle=handle,
        role=True,
        send_settle_mode=0,
        rcv_settle_mode=1,
        source=SdkSource(address=address, filters={key: session}),  # type: ignore[call-arg]  # its defaults are set late
        target=SdkTarget(address="receiver-link-1"),  # type: ignore[call-arg]  # its defaults are set late
        unsettled=None,
        incomplete_unsettled=None,
        initial_delivery_count=None,
        max_message_size=1 << 20,
        offered_capabilities=None,
        desired_capabilities=None,
        properties={b"com.microsoft:timeout": {"TYPE": "UINT", "VALUE": 4000}},
    )
    attach = decode_composite(sdk_body(frame))
    assert isinstance(attach, Attach)
    assert attach.source == Source(address=address, dynamic=None, filter={key.decode(): session})
    assert attach.target == Target(address="receiver-link-1")
    assert (attach.name, attach.handle, attach.rcv_settle_mode) == (name, handle, 1)
    assert attach.properties == {"com.microsoft:timeout": 4000}


@given(st.integers(0, 1 << 31), st.integers(0, 1 << 31), st.booleans(), st.binary(max_size=99))
def test_the_sdks_transfer_is_read_and_its_payload_found(number: int, tag: int, more: bool, payload: bytes) -> None:
    frame = sdk.TransferFrame(
        handle=3,
        delivery_id=number,
        delivery_tag=tag.to_bytes(4, "big"),
        message_format=0x80013700,
        settled=False,
        more=more,
        rcv_settle_mode=None,
        state=None,
        resume=None,
        aborted=None,
        batchable=None,
        payload=bytearray(payload),
    )
    body = sdk_body(frame)
    transfer, end = decode_performative(body)
    assert transfer == Transfer(
        handle=3,
        delivery_id=number,
        delivery_tag=tag.to_bytes(4, "big"),
        message_format=0x80013700,
        settled=False,
        more=more,
    )
    assert body[end:] == payload


@given(st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.binary(max_size=32), st.booleans(), st.booleans())
def test_the_fast_transfer_means_the_same_as_the_general_one(
    handle: int, number: int, tag: bytes, settled: bool, more: bool
) -> None:
    body = encode_transfer(handle=handle, delivery_id=number, tag=tag, message_format=0, settled=settled, more=more)
    assert decode_composite(body) == Transfer(
        handle=handle, delivery_id=number, delivery_tag=tag, message_format=0, settled=settled, more=more
    )


@given(
    st.booleans(),
    st.integers(0, (1 << 32) - 1),
    BY_KIND["Accepted or Rejected or Released or Modified or Received"],
)
def test_the_fast_settlement_means_the_same_as_a_disposition(role: bool, number: int, state: Any) -> None:
    body = encode_settlement(role=role, delivery_id=number, state=encode_composite(state))
    assert decode_composite(body) == Disposition(role=role, first=number, settled=True, state=state)


def test_an_error_always_has_its_three_fields_for_the_sdk_reads_the_third_unseen() -> None:
    body = encode_composite(
        Disposition(role=True, first=1, settled=True, state=Rejected(error=Error(condition="x")))
    )
    _, fields = _decode.decode_frame(memoryview(body))
    assert fields[4] == {"rejected": [[b"x", None, None]]}


def described(code: int, *fields: bytes) -> bytes:
    return encode(ULong(code)).join([b"\x00", encode_list(b"".join(fields), len(fields))])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\xa1\x01x", "a described list"),
        (described(0x99), "the descriptor of a known composite"),
        (encode(Described(Symbol("amqp:nothing:list"), [])), "the descriptor of a known composite"),
        (encode(Described(ULong(0x10), {})), "a list of the fields of Open"),
        (described(0x16), "Detach.handle, which is mandatory"),
        (described(0x16, encode("1")), "a uint as Detach.handle"),
        (described(0x16, b"\x81" + b"\xff" * 8), "a uint as Detach.handle"),
        (described(0x16, b"\x43", b"\x40", encode(uuid.UUID(int=1))), "Error as Detach.error"),
        (described(0x16, b"\x43", b"\x40", described(0x10, encode("x"))), "Error as Detach.error"),
        (described(0x17, b"\x40", b"\x40"), "at most 1 fields of End"),
    ],
)
def test_a_body_that_is_none_says_what_was_expected(body: bytes, expected: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_performative(body)
    assert expected in caught.value.expected


@given(st.binary(max_size=100))
def test_garbage_is_a_decode_error_and_nothing_else(garbage: bytes) -> None:
    for body in (garbage, b"\x00\x53\x12\xc0" + garbage):
        try:
            decode_performative(body)
        except DecodeError as error:
            assert error.expected  # noqa: PT017  # most garbage is an error, not all


def test_descriptors_may_be_symbols() -> None:
    assert decode_composite(encode(Described(Symbol("amqp:accepted:list"), []))) == ours.Accepted()
