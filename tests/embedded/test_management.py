"""`$management`, spoken to by somebody who is not the SDK: without the right, or with arguments that do not fit."""

from typing import Any
from uuid import uuid4

import pytest

from embedded_azure.amqp.codec import Array, Int, Long, Timestamp, encode
from embedded_azure.amqp.messages import EncodedMessage, decode_message, encode_message
from embedded_azure.config import QueueSpec
from embedded_azure.servicebus.access import AccessRefused, Claim
from embedded_azure.servicebus.broker.broker import Broker, BrokerError, Queue, Session
from embedded_azure.servicebus.links.management import Desk


def request(operation: Any, **body: Any) -> EncodedMessage:
    arguments = {name.replace("_", "-"): value for name, value in body.items()}
    properties = {"operation": operation, "type": "entity-mgmt"}
    return decode_message(encode_message(message_id=uuid4(), application_properties=properties, value=arguments))


def no_session(queue: Queue, session_id: str) -> Session:
    raise BrokerError("com.microsoft:session-lock-lost", f"nobody here holds {session_id}")


def ask(operation: Any, *, claims: tuple[Claim, ...] = tuple(Claim), **body: Any) -> tuple[int, str | None]:
    """The status and the condition of the answer, asked by somebody who has `claims`."""

    def check(claim: Claim) -> None:
        if claim not in claims:
            raise AccessRefused(f"'{claim.value}' claim(s) are required")

    queue = Broker([QueueSpec(name="jobs")]).entity("jobs")
    answer = Desk(queue, check, no_session).answer(request(operation, **body))
    assert encode(dict(answer.application_properties))
    assert encode(answer.body)
    return answer.application_properties["statusCode"], answer.application_properties.get("errorCondition")


@pytest.mark.parametrize(
    ("operation", "claim"),
    [
        ("com.microsoft:peek-message", Claim.LISTEN),
        ("com.microsoft:renew-lock", Claim.LISTEN),
        ("com.microsoft:receive-by-sequence-number", Claim.LISTEN),
        ("com.microsoft:update-disposition", Claim.LISTEN),
        ("com.microsoft:renew-session-lock", Claim.LISTEN),
        ("com.microsoft:get-session-state", Claim.LISTEN),
        ("com.microsoft:set-session-state", Claim.LISTEN),
        ("com.microsoft:get-message-sessions", Claim.LISTEN),
        ("com.microsoft:add-rule", Claim.LISTEN),
        ("com.microsoft:remove-rule", Claim.LISTEN),
        ("com.microsoft:enumerate-rules", Claim.LISTEN),
        ("com.microsoft:schedule-message", Claim.SEND),
        ("com.microsoft:cancel-scheduled-message", Claim.SEND),
    ],
)
def test_each_operation_needs_its_claim(operation: str, claim: Claim) -> None:
    others = tuple(other for other in Claim if other is not claim)
    assert ask(operation, claims=others) == (401, "amqp:unauthorized-access")
    assert ask(operation, claims=(claim,)) != (401, "amqp:unauthorized-access")


@pytest.mark.parametrize(
    ("operation", "body", "answer"),
    [
        ("com.microsoft:nothing", {}, (501, "amqp:not-implemented")),
        (None, {}, (501, "amqp:not-implemented")),
        ("com.microsoft:peek-message", {}, (400, "com.microsoft:argument-error")),
        ("com.microsoft:peek-message", {"from_sequence_number": Long(1), "message_count": Int(9)}, (204, None)),
        ("com.microsoft:renew-lock", {"lock_tokens": "x"}, (400, "com.microsoft:argument-error")),
        (
            "com.microsoft:renew-lock",
            {"lock_tokens": Array(type(uuid4()), (uuid4(),))},
            (410, "com.microsoft:message-lock-lost"),
        ),
        (
            "com.microsoft:update-disposition",
            {"disposition_status": "eaten", "lock_tokens": Array(type(uuid4()), (uuid4(),))},
            (400, "com.microsoft:argument-error"),
        ),
        (
            "com.microsoft:schedule-message",
            {"messages": [{"message": b"?"}]},
            (400, "com.microsoft:argument-error"),
        ),
        ("com.microsoft:get-session-state", {"session_id": "s"}, (410, "com.microsoft:session-lock-lost")),
    ],
)
def test_what_cannot_be_done_has_a_status_and_a_condition(operation: Any, body: Any, answer: Any) -> None:
    assert ask(operation, **body) == answer


@pytest.mark.parametrize(
    ("last_updated", "listed"), [(1_500_000, ["s"]), (2_500_000, None), (253_402_300_800_000, ["s"])]
)
def test_sessions_are_listed_by_when_their_state_was_set_unless_the_time_is_the_end_of_all_times(
    last_updated: int, listed: list[str] | None
) -> None:
    queue = Broker([QueueSpec(name="chat", requires_session=True)], lambda: 2_000.0).entity("chat")
    session = queue.accept_session("s")
    assert session is not None
    session.state = b"x"
    asked = request(
        "com.microsoft:get-message-sessions", last_updated_time=Timestamp(last_updated), skip=Int(0), top=Int(9)
    )
    answer = Desk(queue, lambda _claim: None, no_session).answer(asked)
    found = answer.body.get("sessions-ids")
    assert (found and list(found.items)) == listed
