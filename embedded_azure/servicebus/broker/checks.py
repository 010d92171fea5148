"""What an entity refuses, and how it says so. Every function raises BrokerError or returns the one to raise."""

from collections.abc import Sequence
from typing import Final, Literal
from uuid import UUID

from embedded_azure.config import EntityStatus
from embedded_azure.servicebus.broker.messages import (
    ARGUMENT_ERROR,
    ENTITY_DISABLED,
    MESSAGE_LOCK_LOST,
    MESSAGE_NOT_FOUND,
    MESSAGE_TOO_LARGE,
    NOT_ALLOWED,
    QUEUE_FULL,
    BrokerError,
    Message,
    MessageState,
)

LONGEST_ID: Final = 128


def check_message(message: Message, entity: str, most_bytes: int) -> None:
    if message.size > most_bytes:
        raise BrokerError(
            MESSAGE_TOO_LARGE,
            f"message {message.message_id!r} has {message.size} bytes, {entity!r} takes at most {most_bytes}; "
            "send less, or keep the content elsewhere",
        )
    for name, value in (("message-id", message.message_id), ("session id", message.session_id)):
        if value is not None and len(value) > LONGEST_ID:
            raise BrokerError(
                ARGUMENT_ERROR,
                f"the {name} {value[:20]!r}... for {entity!r} has {len(value)} characters; at most "
                f"{LONGEST_ID} are allowed",
            )


def check_enabled(entity: str, status: EntityStatus, operation: Literal["Send", "Receive"]) -> None:
    if status in ("Disabled", f"{operation}Disabled"):
        raise BrokerError(
            ENTITY_DISABLED,
            f"Messaging entity '{entity}' is currently disabled for {operation} operations: its status is "
            f"{status}. Set it to Active.",
        )


def check_scheduled(messages: Sequence[Message], entity: str) -> None:
    for message in messages:
        if message.scheduled_enqueue_time is None:
            raise BrokerError(
                ARGUMENT_ERROR,
                f"message {message.message_id!r} for {entity!r} has no scheduled enqueue time; "
                "set the annotation x-opt-scheduled-enqueue-time, or send it instead of scheduling it",
            )


def check_room(entity: str, held: int, more: int, most: int) -> None:
    if held + more > most:
        raise BrokerError(
            QUEUE_FULL,
            f"{entity!r} holds {held} bytes of at most {most}, dead letters included; {more} more do not fit: "
            "receive messages first",
        )


def check_session_id(session_id: str, entity: str) -> None:
    if len(session_id) > LONGEST_ID:
        raise BrokerError(
            ARGUMENT_ERROR,
            f"the session id {session_id[:20]!r}... has {len(session_id)} characters; {entity!r} allows at most "
            f"{LONGEST_ID}",
        )


def lock_lost(token: UUID, entity: str) -> BrokerError:
    return BrokerError(
        MESSAGE_LOCK_LOST,
        f"the lock {token} of a message in {entity!r} has expired or was settled already; "
        "receive the message again",
    )


def not_found(state: MessageState, number: int, entity: str) -> BrokerError:
    return BrokerError(
        MESSAGE_NOT_FOUND,
        f"there is no {state.name.lower()} and unlocked message {number} in {entity!r}; peek shows what is there",
    )


def without_sessions(entity: str) -> BrokerError:
    return BrokerError(
        NOT_ALLOWED, f"{entity!r} does not require sessions; open a receiver without a session filter"
    )
