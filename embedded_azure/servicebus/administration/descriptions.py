"""Queues, topics and subscriptions as the administration API describes them, and back.

What the broker has no notion of (metadata, partitioning and the like) is kept as it was given and shown again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, cast, get_args
from xml.etree.ElementTree import Element

from embedded_azure.config import EntityStatus, QueueSpec, SubscriptionSpec, TopicSpec
from embedded_azure.servicebus.administration.atom import COUNTS, SERVICE_BUS, add_text, child_text, description_of
from embedded_azure.servicebus.administration.values import (
    read_bool,
    read_duration,
    read_int,
    write_duration,
    write_time,
)
from embedded_azure.servicebus.broker.broker import Counts, Queue, Subscription, Topic
from embedded_azure.servicebus.broker.messages import ARGUMENT_ERROR, BrokerError

_MEGABYTE: Final = 1 << 20
_KEPT: Final[Mapping[str, str]] = {
    "EnableBatchedOperations": "true",
    "EnablePartitioning": "false",
    "EnableExpress": "false",
    "SupportOrdering": "true",
    "AutoDeleteOnIdle": write_duration(None),
}
"""Shown though nothing here depends on them, with what Azure says of an entity for which they were not given."""


@dataclass(slots=True)
class Record:
    """What is known of an entity beside the broker's own. Times in unix seconds."""

    created: float
    updated: float
    accessed: float
    kept: Mapping[str, str]


class Fields:
    """The elements of a description, each read once at most. Every getter raises BrokerError naming the element."""

    def __init__(self, description: Element) -> None:
        self._description = description

    def text(self, name: str) -> str | None:
        return child_text(self._description, name) or None

    def duration(self, name: str, default: float | None) -> float | None:
        text = self.text(name)
        return default if text is None else read_duration(name, text)

    def limited(self, name: str, default: float, most: float) -> float:
        seconds = self.duration(name, default)
        if seconds is None or not 0 < seconds <= most:
            raise BrokerError(ARGUMENT_ERROR, f"{name} is more than zero and at most {write_duration(most)}")
        return seconds

    def bool(self, name: str, default: bool) -> bool:
        text = self.text(name)
        return default if text is None else read_bool(name, text)

    def int(self, name: str, default: int, least: int, most: int) -> int:
        text = self.text(name)
        return default if text is None else read_int(name, text, least, most)

    def path(self, name: str) -> str | None:
        """The entity that an address, or a path, names."""
        text = self.text(name)
        if text is None:
            return None
        _, separator, rest = text.partition("://")
        return (rest.partition("/")[2] if separator else text).strip("/") or None

    def status(self) -> EntityStatus:
        found = self.text("Status") or "Active"
        for status in get_args(EntityStatus):
            if found == status:
                return cast(EntityStatus, status)
        known = ", ".join(get_args(EntityStatus))
        raise BrokerError(ARGUMENT_ERROR, f"Status is one of {known}, not {found[:40]!r}")

    def kept(self) -> dict[str, str]:
        given = {name: self.text(name) for name in (*_KEPT, "UserMetadata")}
        return {name: value for name, value in given.items() if value is not None}


def read_queue(name: str, description: Element) -> tuple[QueueSpec, dict[str, str]]:
    """Raises BrokerError naming the element that is wrong."""
    given = Fields(description)
    spec = QueueSpec(
        name=name,
        **_receiving(given),
        **_sending(given),
        dead_letter_on_expiry=given.bool("DeadLetteringOnMessageExpiration", False),
    )
    return spec, given.kept()


def read_topic(name: str, description: Element) -> tuple[TopicSpec, dict[str, str]]:
    """Without subscriptions. Raises as `read_queue`."""
    given = Fields(description)
    ttl = given.duration("DefaultMessageTimeToLive", None)
    spec = TopicSpec(name=name, default_time_to_live=ttl, status=given.status(), **_sending(given))
    return spec, given.kept()


def read_subscription(name: str, description: Element) -> tuple[SubscriptionSpec, dict[str, str]]:
    """With the default rule. Raises as `read_queue`."""
    given = Fields(description)
    spec = SubscriptionSpec(
        name=name,
        **_receiving(given),
        dead_letter_on_expiry=given.bool("DeadLetteringOnMessageExpiration", False),
        dead_letter_on_filter_error=given.bool("DeadLetteringOnFilterEvaluationExceptions", True),
    )
    return spec, given.kept()


def _receiving(given: Fields) -> dict[str, Any]:
    return {
        "lock_duration": given.limited("LockDuration", 60.0, 300.0),
        "max_delivery_count": given.int("MaxDeliveryCount", 10, 1, 2_000),
        "requires_session": given.bool("RequiresSession", False),
        "default_time_to_live": given.duration("DefaultMessageTimeToLive", None),
        "forward_to": given.path("ForwardTo"),
        "forward_dead_letters_to": given.path("ForwardDeadLetteredMessagesTo"),
        "status": given.status(),
    }


def _sending(given: Fields) -> dict[str, Any]:
    window = given.limited("DuplicateDetectionHistoryTimeWindow", 600.0, 7 * 86_400.0)
    kilobytes = given.int("MaxMessageSizeInKilobytes", 256, 1, 102_400)
    return {
        "duplicate_detection_window": window if given.bool("RequiresDuplicateDetection", False) else None,
        "max_size_bytes": given.int("MaxSizeInMegabytes", 1024, 1, 81_920) * _MEGABYTE,
        "max_message_bytes": kilobytes * 1024,
    }


def describe_queue(queue: Queue, record: Record) -> Element:
    element = description_of("QueueDescription")
    spec, counts = queue.spec, queue.counts()
    _add_receiving(element, spec)
    _add_sending(element, spec)
    add_text(element, "SizeInBytes", queue.size_in_bytes)
    add_text(element, "MessageCount", _total(counts))
    _add_common(element, record, counts, spec.status)
    return element


def describe_topic(topic: Topic, record: Record) -> Element:
    element = description_of("TopicDescription")
    add_text(element, "DefaultMessageTimeToLive", write_duration(topic.spec.default_time_to_live))
    _add_sending(element, topic.spec)
    sizes = (each.queue.size_in_bytes for each in topic.subscriptions)
    add_text(element, "SizeInBytes", topic.size_in_bytes + sum(sizes))
    _add_common(element, record, topic.counts(), topic.spec.status)
    add_text(element, "SubscriptionCount", len(topic.subscriptions))
    return element


def describe_subscription(subscription: Subscription, record: Record) -> Element:
    element = description_of("SubscriptionDescription")
    counts = subscription.queue.counts()
    _add_receiving(element, subscription.queue.spec)
    on_filter = subscription.spec.dead_letter_on_filter_error
    add_text(element, "DeadLetteringOnFilterEvaluationExceptions", on_filter)
    add_text(element, "MessageCount", _total(counts))
    _add_common(element, record, counts, subscription.queue.spec.status)
    return element


def _add_receiving(element: Element, spec: QueueSpec) -> None:
    add_text(element, "LockDuration", write_duration(spec.lock_duration))
    add_text(element, "RequiresSession", spec.requires_session)
    add_text(element, "DefaultMessageTimeToLive", write_duration(spec.default_time_to_live))
    add_text(element, "DeadLetteringOnMessageExpiration", spec.dead_letter_on_expiry)
    add_text(element, "MaxDeliveryCount", spec.max_delivery_count)
    if spec.forward_to:
        add_text(element, "ForwardTo", spec.forward_to)
    if spec.forward_dead_letters_to:
        add_text(element, "ForwardDeadLetteredMessagesTo", spec.forward_dead_letters_to)


def _add_sending(element: Element, spec: QueueSpec) -> None:
    window = spec.duplicate_detection_window
    add_text(element, "RequiresDuplicateDetection", window is not None)
    add_text(element, "DuplicateDetectionHistoryTimeWindow", write_duration(600.0 if window is None else window))
    add_text(element, "MaxSizeInMegabytes", spec.max_size_bytes // _MEGABYTE)
    add_text(element, "MaxMessageSizeInKilobytes", spec.max_message_bytes // 1024)


def _add_common(element: Element, record: Record, counts: Counts, status: EntityStatus) -> None:
    for name, value in {**_KEPT, **record.kept}.items():
        add_text(element, name, value)
    add_text(element, "Status", status)
    add_text(element, "EntityAvailabilityStatus", "Available")
    add_text(element, "IsAnonymousAccessible", False)
    for field in ("created", "updated", "accessed"):
        add_text(element, f"{field.capitalize()}At", write_time(getattr(record, field)))
    details = add_text(element, "CountDetails", "")
    for name, count in (
        ("ActiveMessageCount", counts.active + counts.deferred),
        ("DeadLetterMessageCount", counts.dead_lettered),
        ("ScheduledMessageCount", counts.scheduled),
        ("TransferMessageCount", 0),
        ("TransferDeadLetterMessageCount", counts.transfer_dead_lettered),
    ):
        add_text(details, name, count, COUNTS)


def _total(counts: Counts) -> int:
    return sum(getattr(counts, field.name) for field in fields(counts))


def describe_namespace(name: str, created: float) -> Element:
    element = Element(f"{{{SERVICE_BUS}}}NamespaceInfo")
    add_text(element, "CreatedTime", write_time(created))
    add_text(element, "MessagingSKU", "Standard")
    add_text(element, "ModifiedTime", write_time(created))
    add_text(element, "Name", name)
    add_text(element, "NamespaceType", "Messaging")
    return element
