"""What the SDK hands over as a body, read into bytes."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from azure.servicebus import ServiceBusReceivedMessage

from worker.azure.servicebus.messages import open_envelope


def read(body: object) -> bytes:
    """The fields that a received message has, with this body."""
    fields: dict[str, Any] = dict.fromkeys(
        (
            "enqueued_time_utc",
            "sequence_number",
            "message_id",
            "correlation_id",
            "content_type",
            "delivery_count",
            "dead_letter_reason",
            "application_properties",
        )
    )
    message = cast(ServiceBusReceivedMessage, SimpleNamespace(**fields, body=body))
    return open_envelope(message, "jobs").body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (iter([b"{}", b" "]), b"{} "),
        ("{}", b"{}"),
        (b"{}", b"{}"),
        ({b"a": 1}, b""),
        ([1, 2], b""),
        (7, b""),
        (None, b""),
    ],
)
def test_a_body_is_its_data_or_its_text_and_else_nothing(body: object, expected: bytes) -> None:
    assert read(body) == expected
