"""Garbage of every kind is refused by the embedded Service Bus, which then serves the next client as before."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded_azure.amqp.codec import Int, Long, Symbol, encode
from embedded_azure.amqp.messages import encode_message
from embedded_azure.servicebus.links.management import _OPERATIONS
from tests.support.garbage import (
    FEEDS,
    feed_administration,
    feed_frames,
    feed_management,
    feed_open,
    feed_sasl,
    feed_socket,
)
from tests.support.raw_client import Client, Keys

KEYS = Keys()
calmly = settings(deadline=None, max_examples=40)
"""Each example starts a service, which takes what it takes on a busy machine."""


def feed(name: str, data: bytes) -> bytes:
    """The answer; another client is served by the same service afterwards."""

    async def run() -> bytes:
        bus = KEYS.service()
        try:
            answer = FEEDS[name](bus, KEYS, data)
            bus.faults.clear()
            other = Client(bus, KEYS)
            other.receive_from("jobs", "other", 1)
            assert other.wire.written, "the next client has no answer"
            other.hang_up()
            return answer
        finally:
            await bus.close()

    return asyncio.run(run())


@pytest.mark.parametrize("name", FEEDS)
def test_random_bytes_are_survived_everywhere(name: str) -> None:
    @calmly
    @given(st.binary(max_size=200))
    def survive(data: bytes) -> None:
        feed(name, data)

    survive()


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 31), (1 << 31) - 1).map(Int),
    st.integers(-(1 << 63), (1 << 63) - 1).map(Long),
    st.text(max_size=10),
    st.binary(max_size=10),
    st.uuids(),
    st.text(st.characters(codec="ascii", categories=["L"]), max_size=10).map(Symbol),
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
ARGUMENTS = (
    "lock-tokens",
    "sequence-numbers",
    "messages",
    "message-count",
    "from-sequence-number",
    "session-id",
    "session-state",
    "disposition-status",
    "receiver-settle-mode",
    "skip",
    "top",
)


@calmly
@given(st.sampled_from(sorted(_OPERATIONS)), st.dictionaries(st.sampled_from(ARGUMENTS), values, max_size=6))
def test_management_requests_with_arguments_of_any_type_are_answered(operation: str, body: dict[str, Any]) -> None:
    request = encode_message(application_properties={"operation": operation}, value=body)
    assert b"statusCode" in feed(feed_management.__name__, request)


@calmly
@given(values)
def test_frames_that_are_values_but_no_performatives_close_the_connection(value: Any) -> None:
    body = encode(value)[:255]
    assert b"amqp:" in feed(feed_frames.__name__, bytes([len(body)]) + body)


@calmly
@given(st.binary(min_size=8, max_size=40).filter(lambda data: not data.startswith(b"AMQP\x03\x01\x00\x00")))
def test_what_does_not_begin_as_amqp_is_answered_by_the_header_we_speak(data: bytes) -> None:
    assert feed(feed_socket.__name__, data) == b"AMQP\x03\x01\x00\x00"


@calmly
@given(st.binary(min_size=1, max_size=40))
def test_garbage_in_place_of_sasl_or_open_never_opens_a_connection(data: bytes) -> None:
    for name in (feed_sasl.__name__, feed_open.__name__):
        assert b"\x00\x53\x11" not in feed(name, data)  # begin


@calmly
@given(st.text(max_size=60))
def test_text_that_is_no_description_is_refused(text: str) -> None:
    assert feed(feed_administration.__name__, text.encode()).count(b"<Code>40") == 5
