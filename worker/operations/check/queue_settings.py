"""How a queue is set, where this identity may see it: only the administration API tells, to who may Manage.

Judging is pure; `look` asks.
"""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from worker.azure.servicebus.faults import FAULTS, describe_fault
from worker.flow.startup import Queue
from worker.operations.check.findings import Finding, State
from worker.operations.check.suggestions import create_queue, replace_queue, show_queue, update_queue
from worker.settings import ConnectionSettings

SHORTEST_LOCK = 120.0
"""Seconds. Locks are renewed at half of it, and a broken link must recover within the other half."""

FEWEST_DELIVERIES = 20
"""A bad job that kills its pod counts up its neighbours too."""

SHORTEST_WINDOW = 86_400.0
"""Seconds in which what is sent again must still be known: as long as a job may live by default."""


class QueueReader(Protocol):
    """What is needed of a ServiceBusAdministrationClient."""

    async def get_queue(self, queue_name: str, /) -> Any: ...


class OpenAdministration(Protocol):
    def __call__(
        self, settings: ConnectionSettings, credential: AsyncTokenCredential
    ) -> AbstractAsyncContextManager[QueueReader] | None:
        """None where the administration API cannot be found from the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Durations in seconds. The names are those of the resource type Microsoft.ServiceBus/namespaces/queues."""

    lock_duration: float
    max_delivery_count: int
    requires_session: bool
    requires_duplicate_detection: bool
    duplicate_detection_window: float
    dead_lettering_on_expiration: bool
    enable_partitioning: bool

    @classmethod
    def read(cls, properties: Any) -> "QueueSettings":
        """From the SDK's QueueProperties."""
        return cls(
            lock_duration=_seconds(properties.lock_duration),
            max_delivery_count=properties.max_delivery_count or 0,
            requires_session=bool(properties.requires_session),
            requires_duplicate_detection=bool(properties.requires_duplicate_detection),
            duplicate_detection_window=_seconds(properties.duplicate_detection_history_time_window),
            dead_lettering_on_expiration=bool(properties.dead_lettering_on_message_expiration),
            enable_partitioning=bool(properties.enable_partitioning),
        )


def open_administration(
    settings: ConnectionSettings, credential: AsyncTokenCredential
) -> AbstractAsyncContextManager[QueueReader] | None:
    """An endpoint beside the namespace's own is one of AMQP; where its administration is, no setting says."""
    if settings.servicebus_endpoint:
        return None
    trust = {"connection_verify": str(settings.ca_file)} if settings.ca_file else {}
    return ServiceBusAdministrationClient(settings.servicebus_namespace, credential, retry_total=0, **trust)


async def look(reader: QueueReader, queue: Queue) -> Finding:
    try:
        seen = QueueSettings.read(await reader.get_queue(queue.name))
    except ResourceNotFoundError:
        return Finding(
            state=State.WRONG, name=_name(queue), detail="the queue does not exist", suggestion=create_queue(queue)
        )
    except HttpResponseError as error:
        if error.status_code in (401, 403):
            return unseen(queue, "not visible to this identity, as it should be")
        return unseen(queue, describe_fault(error))
    except FAULTS as error:
        return unseen(queue, describe_fault(error))
    return judge(queue, seen)


def unseen(queue: Queue, why: str) -> Finding:
    return Finding(state=State.UNSEEN, name=_name(queue), detail=why, suggestion=show_queue(queue))


def judge(queue: Queue, seen: QueueSettings) -> Finding:
    """What needs another queue is fixed by replacing it, which fixes the rest too."""
    wrong, lacking = list(_wrong(queue, seen)), list(_lacking(seen))
    low = dict(_low(seen))
    problems = [*wrong, *lacking, *low.values()]
    if not problems:
        return Finding(state=State.OK, name=_name(queue), detail=_describe(seen))
    return Finding(
        state=State.WRONG if wrong else State.WARNING,
        name=_name(queue),
        detail="; ".join(problems),
        suggestion=replace_queue(queue) if wrong or lacking else update_queue(queue, list(low)),
    )


def _wrong(queue: Queue, seen: QueueSettings) -> Iterator[str]:
    """What keeps the worker from working; fixed when the queue was created."""
    if queue.with_sessions and not seen.requires_session:
        yield "requiresSession is false: results of one batch could not be collected separately"
    if seen.requires_session and not queue.with_sessions:
        yield "requiresSession is true: the worker receives without sessions"
    if seen.enable_partitioning:
        yield "enablePartitioning is true: batches of messages would be refused"


def _lacking(seen: QueueSettings) -> Iterator[str]:
    if not seen.requires_duplicate_detection:
        yield "requiresDuplicateDetection is false: messages sent again are processed again"


def _low(seen: QueueSettings) -> Iterator[tuple[str, str]]:
    """What can be updated, by its option."""
    if seen.lock_duration < SHORTEST_LOCK:
        yield "--lock-duration", f"lockDuration is {seen.lock_duration:g} s; reconnecting needs at least 120 s"
    if seen.max_delivery_count < FEWEST_DELIVERIES:
        yield (
            "--max-delivery-count",
            f"maxDeliveryCount is {seen.max_delivery_count}, less than {FEWEST_DELIVERIES}",
        )
    if seen.requires_duplicate_detection and seen.duplicate_detection_window < SHORTEST_WINDOW:
        yield (
            "--duplicate-detection-history-time-window",
            f"duplicateDetectionHistoryTimeWindow is {seen.duplicate_detection_window:g} s, less than a day",
        )
    if not seen.dead_lettering_on_expiration:
        yield (
            "--enable-dead-lettering-on-message-expiration",
            "deadLetteringOnMessageExpiration is false: jobs that expire end without a result",
        )


def _describe(seen: QueueSettings) -> str:
    sessions = "with" if seen.requires_session else "without"
    return (
        f"{sessions} sessions, locks of {seen.lock_duration:g} s, {seen.max_delivery_count} deliveries, duplicates "
        f"detected for {seen.duplicate_detection_window / 3600:g} h, expired messages are dead-lettered"
    )


def _name(queue: Queue) -> str:
    return f"settings of queue {queue.name}"


def _seconds(duration: Any) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else 0.0
