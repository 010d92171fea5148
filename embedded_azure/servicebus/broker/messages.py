"""The values the broker deals in: messages, locks, counts, and the errors it answers with.

A message is decoded only as far as the broker must look; its content stays the opaque `sections` of
whoever speaks AMQP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from uuid import UUID

NOT_FOUND = "amqp:not-found"
NOT_ALLOWED = "amqp:not-allowed"
MESSAGE_TOO_LARGE = "amqp:link:message-size-exceeded"
QUEUE_FULL = "amqp:resource-limit-exceeded"
ARGUMENT_ERROR = "com.microsoft:argument-error"
MESSAGE_LOCK_LOST = "com.microsoft:message-lock-lost"
MESSAGE_NOT_FOUND = "com.microsoft:message-not-found"
SESSION_LOCK_LOST = "com.microsoft:session-lock-lost"
ENTITY_DISABLED = "com.microsoft:entity-disabled"
SESSION_CANNOT_BE_LOCKED = "com.microsoft:session-cannot-be-locked"


class BrokerError(Exception):
    """A refusal, with the AMQP condition a client knows it by."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(f"{condition}: {description}")
        self.condition = condition
        self.description = description


class MessageState(IntEnum):
    """The values of the annotation `x-opt-message-state`. A lock is no state: see `Message.lock_token`."""

    ACTIVE = 0
    DEFERRED = 1
    SCHEDULED = 2


@dataclass(slots=True, kw_only=True, eq=False)
class Message:
    """One message: above what its sender said of it, below what the broker keeps and others only read.

    Times are unix seconds, `time_to_live` seconds, `size` bytes. The broker changes the object it was
    given, so encode what `peek` and `take` return before the next call.
    """

    sections: object
    size: int
    message_id: str | None = None
    session_id: str | None = None
    partition_key: str | None = None
    time_to_live: float | None = None
    scheduled_enqueue_time: float | None = None

    sequence_number: int = 0
    """Changes when a scheduled message falls due."""
    enqueued_sequence_number: int = 0
    """The first number the message was given; it never changes."""
    enqueued_at: float = 0.0
    expires_at: float | None = None
    delivery_count: int = 0
    """Deliveries so far that were abandoned, deferred or timed out, as on the wire: 0 on the first delivery."""
    state: MessageState = MessageState.ACTIVE
    lock_token: UUID | None = None
    dead_letter_reason: str | None = None
    dead_letter_description: str | None = None
    dead_letter_source: str | None = None
    """The entity that this dead letter was passed on from."""
    hops: int = 0
    """How often it was passed on from entity to entity."""
    changed_properties: Mapping[str, object] = field(default_factory=dict)
    """Application properties set since it was sent, by whoever settled it; None removes one."""

    def change(self, properties: Mapping[str, object]) -> None:
        if properties:
            self.changed_properties = {**self.changed_properties, **properties}

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def copied(self) -> "Message":
        """The message as it goes to another entity: without what this queue keeps of it."""
        return Message(
            sections=self.sections,
            size=self.size,
            message_id=self.message_id,
            session_id=self.session_id,
            partition_key=self.partition_key,
            time_to_live=self.time_to_live,
            enqueued_sequence_number=self.enqueued_sequence_number,
            dead_letter_reason=self.dead_letter_reason,
            dead_letter_description=self.dead_letter_description,
            dead_letter_source=self.dead_letter_source,
            hops=self.hops,
            changed_properties=self.changed_properties,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A delivery under peek-lock. `locked_until` is as of the delivery; renewing does not change it."""

    message: Message
    token: UUID
    locked_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Messages of one queue by state. Locked ones count under the state they are in."""

    active: int
    deferred: int
    scheduled: int
    dead_lettered: int
    transfer_dead_lettered: int = 0
