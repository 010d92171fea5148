"""The jobs queue on Azure Service Bus: receive, keep locks, settle, reconnect.

What the SDK cannot do by its public surface (`released`, settling without a retry machine for each message or
after a lost link, renewing many locks in one request) is reached in three functions at the end, and only there;
`tests/contract` holds them to their promises with every version of the SDK.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

from azure.core.credentials_async import AsyncTokenCredential
from azure.servicebus import ServiceBusReceivedMessage, ServiceBusSubQueue, TransportType
from azure.servicebus._common import mgmt_handlers
from azure.servicebus._pyamqp.error import AMQPError
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.exceptions import MessageLockLostError, ServiceBusError

from worker.errors import LockLost, SourceUnavailable
from worker.interfaces import Delivery, LocksNotRenewed, LocksRenewed, Observer, ReceiverRestarted
from worker.jobs import Envelope
from worker.outcomes import Abandon, Complete, DeadLetter, Lapse, Release, Settlement
from worker.servicebus_faults import FAULTS, describe_fault
from worker.settings import ConnectionSettings
from worker.tls import trust
from worker.waits import Bell, loop_time

SERVICEBUS_SCOPE = "https://servicebus.azure.net//.default"
"""As the SDK asks for it, two slashes included, so that its links find in the cache what start-up has proved."""

SOCKET_TIMEOUT = 0.02
"""Seconds a read of the SDK holds the lock that its writes need too. At the SDK's 0.2 a settlement beside a waiting
receive takes 0.2 s, at 0.02 it takes 0.02 s; it costs half a per cent of a core when idle. Receivers do not inherit
it from their client."""

SETTLE_TIMEOUT = 10.0
"""Seconds for the confirmation of a settlement on the link, and again for the fall-back."""

SETTLE_TOGETHER = 32
"""Settlements of one link that wait for their confirmations at once. Each that waits reads the connection for all
and wakes all, so the cost of one grows with their number: at 1,000 in flight a job took 2.4 ms of CPU without this
limit and 1.5 ms with it. A confirmation takes 0.02 s, so 32 are 1,000 a second and more."""

HUNG_AFTER = 30.0
"""Seconds beyond its wait after which a receive counts as hung and its link as dead: the SDK's keep-alive task can
die silently, and a connection that NAT has dropped says nothing."""

RENEW_AT = 0.5
"""Share of a lock's life after which it is renewed; the other half is for trying again."""

SOONEST_RENEWAL = 0.25
"""Seconds between renewals at the least, whatever the clocks of pod and broker make of a lock's end."""

RENEW_TOGETHER = 100
"""Locks in one request; 100 take 0.02 s."""

RENEW_AGAIN = 2.0
"""Seconds before a failed renewal is tried again."""


def connect(
    settings: ConnectionSettings, credential: AsyncTokenCredential, *, retries: int = 3
) -> ServiceBusClient:
    """A client of the namespace. Every sender and receiver made from it opens a connection of its own.

    `retries` are the SDK's, which reopen links by themselves; the worker's adapters want none and see to it.
    """
    elsewhere: dict[str, Any] = {}
    if settings.servicebus_endpoint:
        # without the transport type the SDK would switch to WebSockets
        elsewhere["custom_endpoint_address"] = f"sb://{settings.servicebus_endpoint}"
        elsewhere["transport_type"] = TransportType.Amqp
    return ServiceBusClient(
        settings.servicebus_namespace,
        credential,
        ssl_context=trust(settings.ca_file),
        retry_total=retries,
        **elsewhere,
    )


class LockedMessage:
    """A delivery under a lock that lasts until `locked_until` (Unix seconds, by the broker's clock)."""

    def __init__(self, message: ServiceBusReceivedMessage, link: "_Link", queue: str, now: float) -> None:
        self.message = message
        self.link = link
        self.envelope = _open_envelope(message, queue)
        self.token = str(message.lock_token)
        self.renew_at = 0.0
        self.is_lost = False
        self._callback: Callable[[], None] | None = None
        self.note_renewed(_locked_until(message), now)

    def when_lost(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.is_lost:
            callback()

    def note_renewed(self, locked_until: float, now: float) -> None:
        self.locked_until = locked_until
        self.renew_at = now + max(SOONEST_RENEWAL, (locked_until - now) * RENEW_AT)

    def lose(self) -> None:
        self.is_lost = True
        if self._callback is not None:
            self._callback()


class JobsQueue:
    """A `Source`: competing consumer of one queue with peek-lock. Use it as a context manager.

    With `dead_letters` it is the `DeadLetters` of that queue.

    A link that fails is retired: the next receive opens another, and the old one keeps its locks renewed until
    its last delivery is settled. What is unsettled at the end comes again when its lock lapses.
    """

    def __init__(
        self,
        client: ServiceBusClient,
        queue: str,
        *,
        observer: Observer,
        dead_letters: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self.queue = queue
        self._options: dict[str, Any] = {"sub_queue": ServiceBusSubQueue.DEAD_LETTER} if dead_letters else {}
        self._observer = observer
        self._clock = clock
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._tending = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tending.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._retire()
        for link in self._links:
            link.forget()
        # the block's own error is not the group's: handed to it, it would come back wrapped, known to nobody
        await self._tending.__aexit__(None, None, None)

    async def open(self) -> None:
        """Prove that the queue exists and that we may listen to it. Raises SourceUnavailable."""
        if self._link is not None:
            return
        receiver = self._client.get_queue_receiver(
            self.queue,
            prefetch_count=0,
            socket_timeout=SOCKET_TIMEOUT,
            timeout=SETTLE_TIMEOUT,
            **self._options,
        )
        try:
            await receiver.__aenter__()
        except FAULTS as error:
            await _close(receiver)
            raise SourceUnavailable(f"queue {self.queue!r}: {describe_fault(error)}") from error
        link = self._link = _Link(receiver, self._observer, self._clock)
        self._links.add(link)
        tending = self._tending.create_task(link.tend(), name=f"locks of {self.queue}")
        tending.add_done_callback(lambda _: self._links.discard(link))

    async def receive(self, count: int, *, wait: float) -> Sequence[Delivery]:
        await self.open()
        link = self._link
        assert link is not None
        try:
            async with asyncio.timeout(wait + HUNG_AFTER):
                messages = await link.receiver.receive_messages(max_message_count=count, max_wait_time=wait)
        except FAULTS as error:
            self._retire()
            detail = f"queue {self.queue!r}: {describe_fault(error)}"
            self._observer(ReceiverRestarted(queue=self.queue, detail=detail))
            raise SourceUnavailable(detail) from error
        return link.take(messages, self.queue)

    async def peek(self, following: int, count: int) -> Sequence[Envelope]:
        await self.open()
        link = self._link
        assert link is not None
        try:
            messages = await link.peek(following, count)
        except FAULTS as error:
            self._retire()
            raise SourceUnavailable(f"queue {self.queue!r}: {describe_fault(error)}") from error
        return [_open_envelope(message, self.queue) for message in messages]

    async def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        locked = cast(LockedMessage, delivery)
        await locked.link.settle(locked, settlement)

    def _retire(self) -> None:
        if self._link is not None:
            self._link.retire()
            self._link = None


class _Link:
    """One receiver of the SDK and the deliveries that came through it.

    One coroutine at a time uses its management link: concurrent requests get the same delivery-id, and the
    service drops the connection.
    """

    def __init__(self, receiver: ServiceBusReceiver, observer: Observer, clock: Callable[[], float]) -> None:
        self.receiver = receiver
        self._observer = observer
        self._clock = clock
        self._deliveries: dict[str, LockedMessage] = {}
        self._management = asyncio.Lock()
        self._settling = asyncio.Semaphore(SETTLE_TOGETHER)
        self._is_retired = False
        self._bell = Bell()

    def take(self, messages: Iterable[ServiceBusReceivedMessage], queue: str) -> Sequence[LockedMessage]:
        now = self._clock()
        taken = [LockedMessage(message, self, queue, now) for message in messages]
        if taken:
            self._deliveries.update((locked.token, locked) for locked in taken)
            self._bell.ring()
        return taken

    async def peek(self, following: int, count: int) -> Sequence[ServiceBusReceivedMessage]:
        # the SDK takes 0 for "after the one received last"
        first = max(1, following)
        async with self._management:
            return await self.receiver.peek_messages(count, sequence_number=first, timeout=SETTLE_TIMEOUT)

    def retire(self) -> None:
        self._is_retired = True
        self._bell.ring()

    def forget(self) -> None:
        """Renew nothing more: what is unsettled comes again when its lock lapses."""
        self._deliveries.clear()
        self._bell.ring()

    async def settle(self, locked: LockedMessage, settlement: Settlement) -> None:
        try:
            await self._settle_once(locked, settlement)
        except MessageLockLostError as error:
            raise LockLost(f"lock lost before {type(settlement).__name__}") from error
        except FAULTS as error:
            raise SourceUnavailable(f"unconfirmed {type(settlement).__name__}: {describe_fault(error)}") from error
        finally:
            self._deliveries.pop(locked.token, None)
            if self._is_retired:
                self._bell.ring()

    async def _settle_once(self, locked: LockedMessage, settlement: Settlement) -> None:
        try:
            async with self._settling:
                await _settle_on_link(self.receiver, locked.message, settlement)
        except MessageLockLostError:
            raise
        except FAULTS:
            # the link is gone or silent; over the management link the lock's token still counts
            async with self._management, asyncio.timeout(2 * SETTLE_TIMEOUT):
                await self._settle_by_token(locked.message, settlement)

    async def _settle_by_token(self, message: ServiceBusReceivedMessage, settlement: Settlement) -> None:
        """Twice if need be: over a dead connection the first try fails and makes the SDK open another."""
        try:
            await _settle_by_token(self.receiver, message, settlement)
        except MessageLockLostError:
            raise
        except FAULTS:
            await _settle_by_token(self.receiver, message, settlement)

    async def tend(self) -> None:
        """Keep every lock renewed until the link is retired and its last delivery settled."""
        try:
            while self._deliveries or not self._is_retired:
                due_at = min((locked.renew_at for locked in self._deliveries.values()), default=None)
                if due_at is None or due_at > self._clock():
                    until = {} if due_at is None else {"until": loop_time() + due_at - self._clock()}
                    await self._bell.wait(**until)
                else:
                    await self._renew_due()
        finally:
            await _close(self.receiver)

    async def _renew_due(self) -> None:
        """Renew what is due, and what soon will be, in as few requests as possible."""
        now = self._clock()
        due = [locked for locked in self._deliveries.values() if locked.renew_at <= now + RENEW_AGAIN]
        for first in range(0, len(due), RENEW_TOGETHER):
            await self._renew(due[first : first + RENEW_TOGETHER])

    async def _renew(self, due: Sequence[LockedMessage]) -> None:
        due = [locked for locked in due if locked.token in self._deliveries]
        if not due:
            return
        started = loop_time()
        try:
            async with self._management:
                expirations = await _renew_locks(self.receiver, [locked.message for locked in due])
        except MessageLockLostError:
            await self._find_lost(due)
        except FAULTS as error:
            self._postpone(due, error)
        else:
            now = self._clock()
            for locked, expiration in zip(due, expirations, strict=True):
                locked.note_renewed(expiration, now)
            self._observer(LocksRenewed(count=len(due), lost=0, seconds=loop_time() - started))

    async def _find_lost(self, due: Sequence[LockedMessage]) -> None:
        """One lost lock fails the request for all: halve it until the lost ones stand alone."""
        if len(due) == 1:
            self._lose(due[0])
            return
        middle = len(due) // 2
        await self._renew(due[:middle])
        await self._renew(due[middle:])

    def _postpone(self, due: Sequence[LockedMessage], error: BaseException) -> None:
        now = self._clock()
        for locked in due:
            locked.renew_at = now + RENEW_AGAIN
            if locked.locked_until <= now:
                self._lose(locked)
        self._observer(LocksNotRenewed(count=len(due), detail=describe_fault(error)))

    def _lose(self, locked: LockedMessage) -> None:
        if self._deliveries.pop(locked.token, None):
            self._observer(LocksRenewed(count=0, lost=1, seconds=0.0))
            locked.lose()


def _open_envelope(message: ServiceBusReceivedMessage, queue: str) -> Envelope:
    enqueued = message.enqueued_time_utc
    return Envelope(
        body=_body(message),
        queue=queue,
        sequence_number=message.sequence_number or 0,
        enqueued_at=enqueued.timestamp() if enqueued else time.time(),
        message_id=_word(message.message_id),
        correlation_id=_word(message.correlation_id),
        content_type=_word(message.content_type),
        delivery_count=message.delivery_count or 0,
        dead_letter_reason=_word(message.dead_letter_reason),
        properties=_properties(message.application_properties),
    )


def _body(message: ServiceBusReceivedMessage) -> bytes:
    """The bytes of a data body; a text value is what some AMQP clients send for JSON; else nothing."""
    body = message.body
    if isinstance(body, (str, bytes)):
        return body.encode() if isinstance(body, str) else body
    parts = list(body) if isinstance(body, Iterable) else []
    return b"".join(part for part in parts if isinstance(part, bytes))


def _properties(properties: Mapping[Any, Any] | None) -> Mapping[str, object]:
    """Received keys and strings are bytes."""
    return {_text(key): _text(value) for key, value in (properties or {}).items()}


def _word(value: object) -> str | None:
    """As text: AMQP lets a client send an id as a number, a UUID or bytes too."""
    return None if value is None else str(_text(value))


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _locked_until(message: ServiceBusReceivedMessage) -> float:
    moment = message.locked_until_utc
    return moment.timestamp() if moment else 0.0


async def _close(receiver: ServiceBusReceiver) -> None:
    with contextlib.suppress(*FAULTS):  # it is being thrown away
        await receiver.close()


async def _settle_by_token(
    receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, settlement: Settlement
) -> None:
    """Private surface: one request on the management link, which needs the lock's token but not the old link.

    The public methods refuse every message of a receiver that has lost its link. A release becomes an abandon
    here, which costs one of the message's deliveries.
    """
    tokens = receiver._amqp_transport.AMQP_ARRAY_VALUE([message.lock_token])
    request = {"disposition-status": "completed", "lock-tokens": tokens}
    match settlement:
        case DeadLetter(reason=reason, description=description):
            request["disposition-status"] = "suspended"
            request |= {"deadletter-reason": reason.value, "deadletter-description": description}
        case Release() | Abandon():
            request["disposition-status"] = "abandoned"
        case Complete() | Lapse():
            pass
    await receiver._mgmt_request_response_with_retry(
        b"com.microsoft:update-disposition", request, mgmt_handlers.default, timeout=SETTLE_TIMEOUT
    )


async def _settle_on_link(
    receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, settlement: Settlement
) -> None:
    """Private surface: one disposition on the receiver's link and its confirmation.

    Spares the retry machine and the tracing that the public methods run for each message, and offers `released`.
    """
    outcome, details = _disposition(settlement)
    try:
        await receiver._handler.settle_messages_async(  # type: ignore[call-overload]
            message._delivery_id,
            message._delivery_tag,
            outcome,
            await_outcome=True,
            outcome_timeout=SETTLE_TIMEOUT,
            **details,
        )
    except FAULTS:
        raise
    except Exception as error:  # the AMQP layer's own errors have no public class
        raise _translate(error) from error


def _translate(error: Exception) -> ServiceBusError:
    condition = getattr(error, "condition", b"")
    name = condition.decode() if isinstance(condition, bytes) else str(getattr(condition, "value", condition))
    if name.endswith("message-lock-lost"):
        return MessageLockLostError(message=str(error))
    return ServiceBusError(str(error), error=error)


def _disposition(settlement: Settlement) -> tuple[str, dict[str, Any]]:
    match settlement:
        case Complete():
            return "accepted", {}
        case Release():
            return "released", {}
        case Abandon():
            return "modified", {"delivery_failed": True, "undeliverable_here": False}
        case DeadLetter(reason=reason, description=description):
            info = {b"DeadLetterReason": reason.value, b"DeadLetterErrorDescription": description}
            error = AMQPError(condition=b"com.microsoft:dead-letter", description=description, info=info)
            return "rejected", {"error": error}
        case Lapse():
            raise ValueError("a lapse is not told to the broker")


async def _renew_locks(
    receiver: ServiceBusReceiver, messages: Sequence[ServiceBusReceivedMessage]
) -> Sequence[float]:
    """Private surface: one request for many locks; their new ends in Unix seconds. Without it, one by one.

    Raises MessageLockLostError where any of them is lost.
    """
    if not hasattr(receiver, "_renew_locks"):
        return [(await receiver.renew_message_lock(message)).timestamp() for message in messages]
    # on the wire a token is a UUID, whatever the signature says; the service refuses text
    tokens = cast(Sequence[str], [message.lock_token for message in messages])
    answer = await receiver._renew_locks(*tokens, timeout=SETTLE_TIMEOUT)
    moments = [moment / 1000 for moment in cast(Sequence[int], answer[b"expirations"])]
    for message, moment in zip(messages, moments, strict=True):
        # the public settlements refuse a message whose lock they believe to be over
        message._expiry = datetime.fromtimestamp(moment, UTC)
    return moments
