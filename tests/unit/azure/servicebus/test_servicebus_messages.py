"""What the SDK hands over as a body, read into bytes or into a structure."""

from typing import Any

import pytest
from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus._pyamqp.message import Message

from worker.azure.servicebus.messages import open_envelope, read_body, read_structure


def received(**body: Any) -> ServiceBusReceivedMessage:
    """As the SDK makes it of what has come over the wire, which has texts as bytes."""
    return ServiceBusReceivedMessage(Message(**body), receiver=None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"data": [b"{}"]}, b"{}"),
        ({"data": [b'{"a"', b": 1", b"}"]}, b'{"a": 1}'),
        ({"data": [b""]}, b""),
        ({"value": "{}"}, b"{}"),
        ({"value": b"{}"}, b"{}"),
    ],
)
def test_a_body_of_data_or_text_is_read_as_bytes(body: dict[str, Any], expected: bytes) -> None:
    assert read_body(received(**body)) == expected
    assert open_envelope(received(**body), "jobs").body == expected
    assert read_structure(received(**body)) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"value": {b"a": 1}}, {b"a": 1}),
        ({"value": [b"{", b"}"]}, [b"{", b"}"]),
        ({"value": 7}, 7),
        ({"value": None}, None),
        ({"sequence": [[b"{", b"}"], [1]]}, [[b"{", b"}"], [1]]),
    ],
)
def test_any_other_body_is_a_structure_without_bytes(body: dict[str, Any], expected: object) -> None:
    assert read_structure(received(**body)) == expected
    assert read_body(received(**body)) == b""
