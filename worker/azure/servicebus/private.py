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
from azure.servicebus._pyamqp.error import AMQPError, AMQPException
from azure.servicebus._pyamqp.outcomes import Accepted
from azure.servicebus._pyamqp.receiver import check_disposition_outcome
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import MessageLockLostError, ServiceBusError

from worker.azure.servicebus.faults import FAULTS
from worker.jobs.outcomes import Abandon, Complete, DeadLetter, Lapse, Release, Settlement


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


async def settle_on_link(
    receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, settlement: Settlement, *, timeout: float
) -> None:
    """One disposition on the receiver's link and its confirmation.

    Spares the retry machine and the tracing that the public methods run for each message, and offers `released`.
    """
    if not _came_by(_link_of(receiver), message):
        raise _link_is_gone()
    outcome, details = _disposition(settlement)
    try:
        await receiver._handler.settle_messages_async(  # type: ignore[call-overload]
            message._delivery_id,
            message._delivery_tag,
            outcome,
            await_outcome=True,
            outcome_timeout=timeout,
            **details,
        )
    except FAULTS:
        raise
    except Exception as error:  # the AMQP layer's own errors have no public class
        raise _translate(error) from error


async def complete_on_link(
    receiver: ServiceBusReceiver, messages: Sequence[ServiceBusReceivedMessage], *, timeout: float
) -> Sequence[ServiceBusError | None]:
    """Complete many messages of the receiver's link with one wait for all; for each None or why it was refused.

    A wait for each costs a task and a look at the connection for each, about half of what a settlement costs.
    Raises one of FAULTS where the confirmations do not come: which of them were completed is not known then.
    """
    link = _link_of(receiver)
    of_this_link = [message for message in messages if _came_by(link, message)]
    refusals = await _complete_together(link, of_this_link, timeout) if of_this_link else []
    told = dict(zip(map(id, of_this_link), refusals, strict=True))
    return [told[id(message)] if id(message) in told else _link_is_gone() for message in messages]


def _link_of(receiver: ServiceBusReceiver) -> Any:
    return getattr(receiver._handler, "_link", None)


def _came_by(link: Any, message: ServiceBusReceivedMessage) -> bool:
    """Not where the SDK has reconnected since. The message's delivery-id may be that of another by now, whose
    settlement the SDK would take for this one's."""
    return link is not None and message._delivery_tag in link._received_delivery_tags


def _link_is_gone() -> ServiceBusError:
    return ServiceBusError("the link that the message came by is gone")


async def _complete_together(
    link: Any, messages: Sequence[ServiceBusReceivedMessage], timeout: float
) -> Sequence[ServiceBusError | None]:
    pending = {cast(int, message._delivery_id): {"settled": False, "outcome": None} for message in messages}
    link._pending_dispositions.update(pending)
    try:
        for message in messages:
            await link._outgoing_disposition(
                message._delivery_id, None, message._delivery_tag, False, Accepted(), None
            )
        await link._wait_for_disposition_outcome([*pending], timeout)
    except FAULTS:
        raise
    except Exception as error:  # the AMQP layer's own errors have no public class
        if not all(each["settled"] for each in pending.values()):
            raise _translate(error) from error
    finally:
        for delivery_id in pending:
            link._pending_dispositions.pop(delivery_id, None)
    return [_refusal(delivery_id, each["outcome"]) for delivery_id, each in pending.items()]


def _refusal(delivery_id: int, outcome: Any) -> ServiceBusError | None:
    try:
        check_disposition_outcome(delivery_id, outcome)
    except AMQPException as error:
        return _translate(error)
    return None


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


async def withdraw_credit(receiver: ServiceBusReceiver, *, timeout: float) -> None:
    """Let the broker send nothing more before the next receive.

    A receive that returns with fewer messages than it asked for leaves its link the credit for the others. What the
    broker sends by it is locked for us, though nobody looks before the next receive: nobody else can have it, and
    when the process dies it loses a delivery, perhaps the same messages each time.
    """
    link = _link_of(receiver)
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
