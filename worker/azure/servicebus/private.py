"""What the worker needs and the SDK for Service Bus cannot do by its public surface: `released`, settling without a
retry machine for each message or after a lost link, completing many messages with one wait, renewing many locks in
one request, taking back what was asked for and did not come.

These functions are all that touches what the SDK keeps to itself (docs/decisions/004-settle-on-the-link.md).
The contract tests hold them to their promises with every version of it: `test_source_and_sink.py` to releasing,
abandoning, dead-lettering, settling after a lost connection and keeping locks, `test_servicebus_faults.py` to what
happens where no answer comes, `test_completing.py` to completing many, `test_credit.py` to taking credit back.
Each `timeout` is in seconds.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus._common import mgmt_handlers
from azure.servicebus._pyamqp.constants import LinkState
from azure.servicebus._pyamqp.error import AMQPError, AMQPException
from azure.servicebus._pyamqp.outcomes import Accepted, Modified, Rejected, Released
from azure.servicebus._pyamqp.receiver import check_disposition_outcome, outcome_name
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import MessageLockLostError, ServiceBusError

from worker.azure.servicebus.faults import FAULTS
from worker.jobs.outcomes import Abandon, Complete, DeadLetter, Lapse, Release, Settlement
from worker.waits import loop_time


async def settle_by_token(
    receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, settlement: Settlement, *, timeout: float
) -> None:
    """One request on the management link, which needs the lock's token but not the old link.

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
        b"com.microsoft:update-disposition", request, mgmt_handlers.default, timeout=timeout
    )


_Entries = dict[int, dict[str, Any]]
"""As the SDK's link has them: by delivery-id whether a disposition is `settled`, and the broker's `outcome`."""


class Dispositions:
    """Settlements on a receiver's link, each confirmed by the broker; one that waits reads the connection for all.

    Spares the retry machine and the tracing that the public methods run for each message, and offers `released`.
    Their wait reads the connection for each message, and each that reads wakes the others: at 1,000 in flight a job
    took 2.4 ms of CPU with them.
    """

    def __init__(self, receiver: ServiceBusReceiver) -> None:
        self._receiver = receiver
        self._is_reading = False
        self._waiting: dict[asyncio.Future[None], _Entries] = {}

    async def settle(self, message: ServiceBusReceivedMessage, settlement: Settlement, *, timeout: float) -> None:
        """Raises MessageLockLostError where the broker says so, else one of FAULTS."""
        [refusal] = await self._dispose([message], _outcome(settlement), timeout)
        if refusal is not None:
            raise refusal

    async def complete(
        self, messages: Sequence[ServiceBusReceivedMessage], *, timeout: float
    ) -> Sequence[ServiceBusError | None]:
        """Many with one wait for all; for each None or why it was refused.

        Raises one of FAULTS where the confirmations do not come: which of them were completed is not known then.
        """
        return await self._dispose(messages, Accepted(), timeout)

    async def _dispose(
        self, messages: Sequence[ServiceBusReceivedMessage], outcome: Any, timeout: float
    ) -> Sequence[ServiceBusError | None]:
        link: Any = getattr(self._receiver._handler, "_link", None)
        if link is None:
            raise ServiceBusError("the receiver has no link")
        gives_up_at = loop_time() + timeout
        entries: _Entries = {
            cast(int, message._delivery_id): {"settled": False, "outcome": None} for message in messages
        }
        link._pending_dispositions.update(entries)
        try:
            for message in messages:
                await link._outgoing_disposition(
                    message._delivery_id, None, message._delivery_tag, False, outcome, None
                )
            await self._until_settled(link, entries, gives_up_at)
        except FAULTS:
            raise
        except Exception as error:  # the AMQP layer's own errors have no public class
            raise _translate(error) from error
        finally:
            for delivery_id in entries:
                link._pending_dispositions.pop(delivery_id, None)
        return [_refusal(delivery_id, entry["outcome"], outcome) for delivery_id, entry in entries.items()]

    async def _until_settled(self, link: Any, entries: _Entries, gives_up_at: float) -> None:
        try:
            while not _are_settled(entries):
                if link.state in (LinkState.DETACHED, LinkState.ERROR):
                    raise ServiceBusError("the link was lost before the broker confirmed", error=link._error)
                if loop_time() >= gives_up_at:
                    raise TimeoutError("the broker has not confirmed in time")
                if self._is_reading:
                    await self._told(entries, gives_up_at)
                else:
                    await self._read(link)
        finally:
            if not self._is_reading and self._waiting:
                _wake(next(iter(self._waiting)))  # to read from now on

    async def _read(self, link: Any) -> None:
        """A frame, or none if none comes for a moment; the link notes in its entries what is confirmed."""
        self._is_reading = True
        try:
            await link._session._connection.listen(wait=False)
        finally:
            self._is_reading = False
            for waiter, entries in self._waiting.items():
                if _are_settled(entries):
                    _wake(waiter)

    async def _told(self, entries: _Entries, gives_up_at: float) -> None:
        """Return once they are settled, nobody reads any more, or it is `gives_up_at`."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(gives_up_at, _wake, waiter)
        self._waiting[waiter] = entries
        try:
            await waiter
        finally:
            del self._waiting[waiter]
            timer.cancel()


def _are_settled(entries: _Entries) -> bool:
    return all(entry["settled"] for entry in entries.values())


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _refusal(delivery_id: int, confirmed: Any, wanted: Any) -> ServiceBusError | None:
    try:
        check_disposition_outcome(delivery_id, confirmed, outcome_name(wanted))
    except AMQPException as error:
        return _translate(error)
    return None


def _translate(error: Exception) -> ServiceBusError:
    condition = getattr(error, "condition", b"")
    name = condition.decode() if isinstance(condition, bytes) else str(getattr(condition, "value", condition))
    if name.endswith("message-lock-lost"):
        return MessageLockLostError(message=str(error))
    return ServiceBusError(str(error), error=error)


def _outcome(settlement: Settlement) -> Any:
    match settlement:
        case Complete():
            return Accepted()
        case Release():
            return Released()
        case Abandon():
            return Modified(delivery_failed=True, undeliverable_here=False, message_annotations=None)
        case DeadLetter(reason=reason, description=description):
            info = {b"DeadLetterReason": reason.value, b"DeadLetterErrorDescription": description}
            condition = b"com.microsoft:dead-letter"
            return Rejected(error=AMQPError(condition=condition, description=description, info=info))
        case Lapse():
            raise ValueError("a lapse is not told to the broker")


async def withdraw_credit(receiver: ServiceBusReceiver, *, timeout: float) -> None:
    """Let the broker send nothing more before the next receive.

    A receive that returns with fewer messages than it asked for leaves its link the credit for the others. What the
    broker sends by it is locked for us, though nobody looks before the next receive: nobody else can have it, and
    when the process dies it loses a delivery, perhaps the same messages each time.
    """
    link: Any = getattr(receiver._handler, "_link", None)
    if link is None or link.current_link_credit <= 0:
        return
    # the link is gone, which the next receive finds; what came is ours still, and must not be lost by an error here
    with contextlib.suppress(Exception):
        async with asyncio.timeout(timeout):
            await link.flow(link_credit=0)


async def renew_locks(
    receiver: ServiceBusReceiver, messages: Sequence[ServiceBusReceivedMessage], *, timeout: float
) -> Sequence[float]:
    """One request for many locks; their new ends in Unix seconds. Without it, one by one.

    Raises MessageLockLostError where any of them is lost.
    """
    if not hasattr(receiver, "_renew_locks"):
        return [(await receiver.renew_message_lock(message)).timestamp() for message in messages]
    # on the wire a token is a UUID, whatever the signature says; the service refuses text
    tokens = cast(Sequence[str], [message.lock_token for message in messages])
    answer = await receiver._renew_locks(*tokens, timeout=timeout)
    moments = [moment / 1000 for moment in cast(Sequence[int], answer[b"expirations"])]
    for message, moment in zip(messages, moments, strict=True):
        # the public settlements refuse a message whose lock they believe to be over
        message._expiry = datetime.fromtimestamp(moment, UTC)
    return moments
