"""Links to entities: messages in, deliveries and their settlements out.

`Dispatch` shares what becomes available in one entity among its receivers. The settlement table is `_settle`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from embedded_azure.amqp.codec import DecodeError, Symbol
from embedded_azure.amqp.links import Delivery, IncomingLink, OutgoingLink
from embedded_azure.amqp.messages import BATCH_FORMAT
from embedded_azure.amqp.performatives import (
    SETTLE_MODE_SETTLED,
    Accepted,
    DeliveryState,
    Error,
    Modified,
    Outcome,
    Rejected,
    Released,
)
from embedded_azure.config import PREMIUM_BYTES
from embedded_azure.servicebus.broker.broker import BrokerError, Queue, Session
from embedded_azure.servicebus.broker.messages import MESSAGE_TOO_LARGE, SESSION_LOCK_LOST
from embedded_azure.servicebus.links.contents import (
    DEAD_LETTER_DESCRIPTION,
    DEAD_LETTER_REASON,
    encode_delivery,
    encode_locked,
    properties_of,
    read_messages,
)
from embedded_azure.servicebus.links.session_links import SessionWait, error_of

MAX_BATCH_SIZE: Final = Symbol("com.microsoft:max-message-batch-size")
LOSS_NOTICE: Final = 1.0
"""Seconds between the end of a session's lock and the end of the link, if its holder asks for nothing meanwhile.
The lock is lost at once. Tests of the SDK wait as long as the lock lasts and expect not to be told."""
_CHUNK: Final = 100
_REASONS: Final = (DEAD_LETTER_REASON, DEAD_LETTER_DESCRIPTION)


class Inlet:
    """The node behind a sender's link to a queue."""

    def __init__(self, link: IncomingLink, queue: Queue, on_detached: Callable[[], None]) -> None:
        self._link = link
        self._queue = queue
        self._on_detached = on_detached

    def on_delivery(self, delivery: Delivery) -> None:
        state = self._send(delivery)
        if not delivery.settled:
            self._link.settle(delivery.delivery_id, state)

    def on_detached(self) -> None:
        self._on_detached()

    def _send(self, delivery: Delivery) -> Outcome:
        try:
            self._check_batch(delivery)
            self._queue.send(read_messages(delivery.payload, delivery.message_format))
        except BrokerError as refusal:
            return Rejected(error=error_of(refusal))
        except DecodeError as error:
            return Rejected(error=Error(condition="amqp:decode-error", description=str(error)))
        return Accepted()

    def _check_batch(self, delivery: Delivery) -> None:
        """Raises message-size-exceeded: a namespace with large messages has no larger batches for it."""
        most = largest_batch(self._queue)
        if delivery.message_format == BATCH_FORMAT and len(delivery.payload) > most:
            raise BrokerError(
                MESSAGE_TOO_LARGE,
                f"the batch has {len(delivery.payload)} bytes, {self._queue.name!r} takes at most {most} in one",
            )


def largest_batch(queue: Queue) -> int:
    """Bytes."""
    return min(queue.spec.max_message_bytes, PREMIUM_BYTES)


class Outlet:
    """The node behind a receiver's link to an entity, or to one session of it."""

    def __init__(
        self, link: OutgoingLink, dispatch: "Dispatch", session: Session | None, on_detached: Callable[[], None]
    ) -> None:
        self.link = link
        self.queue = dispatch.queue
        self.session = session
        self._dispatch = dispatch
        self._on_detached = on_detached
        self._deletes = link.attach.snd_settle_mode == SETTLE_MODE_SETTLED
        self._tokens: dict[int, UUID] = {}
        self._telling: asyncio.TimerHandle | None = None
        dispatch.add(self)

    def on_ready(self) -> None:
        self.deliver(self.link.credit)

    def on_disposition(self, delivery_id: int, state: DeliveryState | None, settled: bool) -> None:
        token = self._tokens.get(delivery_id)
        if token is None or (not settled and not isinstance(state, Outcome)):
            return
        del self._tokens[delivery_id]
        answer = _settle(self.queue, token, state)
        if not settled:
            self.link.settle(delivery_id, answer)

    def on_detached(self) -> None:
        """Locks outlive the link, as in Service Bus; a session does not."""
        self._dispatch.remove(self)
        self._tokens.clear()
        if self._telling is not None:
            self._telling.cancel()
        if self.session is not None:
            self.session.release()
        self._on_detached()

    def deliver(self, most: int) -> bool:
        """Sends up to `most` messages, as many as there are and the link has room for; False if it sent none."""
        sent = 0
        try:
            while sent < most and self.link.ready:
                count = self._deliver_some(min(most - sent, self.link.credit, _CHUNK))
                sent += count
                if not count:
                    break
        except BrokerError as refusal:
            self.link.detach(error_of(refusal))
        return sent > 0

    @property
    def lost(self) -> bool:
        """Its session was lost, by time."""
        return self.session is not None and not self.session.held

    def tell_loss(self, loop: asyncio.AbstractEventLoop) -> None:
        """Detaches the link a little later, when its session was lost: who waits idly does not learn at once."""
        if self.lost and self._telling is None:
            self._telling = loop.call_later(LOSS_NOTICE, self._detach_lost)

    def _detach_lost(self) -> None:
        assert self.session is not None
        self.link.detach(
            Error(
                condition=SESSION_LOCK_LOST,
                description=f"The lock of session '{self.session.id}' has expired; accept it anew.",
            )
        )

    def _deliver_some(self, count: int) -> int:
        if self._deletes:
            messages = self.queue.take_and_delete(count, session=self.session)
            for message in messages:
                self.link.send(encode_delivery(message), message_tag(message.sequence_number), settled=True)
            return len(messages)
        taken = self.queue.take(count, session=self.session)
        for locked in taken:
            payload = encode_locked(locked)
            self._tokens[self.link.send(payload, locked.token.bytes_le, settled=False)] = locked.token
        return len(taken)


def message_tag(sequence_number: int) -> bytes:
    """A delivery tag for a message without lock: 16 bytes, as a lock token's."""
    return sequence_number.to_bytes(16, "little")


def _settle(queue: Queue, token: UUID, state: DeliveryState | None) -> Outcome:
    """Does what the state says, and says what to answer: the same outcome, or why it could not be."""
    try:
        match state:
            case Accepted():
                queue.complete(token)
            case Modified(undeliverable_here=True, message_annotations=change):
                queue.defer(token, properties_of(change))
            case Modified(message_annotations=change):
                # counted without `delivery-failed` too, which not every client sets: else a poison message
                # would come back for ever
                queue.abandon(token, properties_of(change))
            case Rejected(error=error):
                info = properties_of(error.info if error is not None else None)
                reason, description = (_text(info.pop(name, None)) for name in _REASONS)
                queue.dead_letter(token, reason, description, info)
                return Rejected()
            case _:
                queue.release(token)
    except BrokerError as refusal:
        return Rejected(error=error_of(refusal))
    match state:
        case Modified():
            return Modified(delivery_failed=state.delivery_failed, undeliverable_here=state.undeliverable_here)
        case Accepted() | Released():
            return state
    return Released()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class Dispatch:
    """One entity's receivers, and those who wait for one of its sessions. What becomes available goes round."""

    def __init__(self, queue: Queue, loop: asyncio.AbstractEventLoop) -> None:
        self.queue = queue
        self._loop = loop
        self._outlets: deque[Outlet] = deque()
        self._waiting: deque[SessionWait] = deque()
        self._pending: asyncio.Handle | None = None
        self._unsubscribe = queue.subscribe(self._wake)

    def close(self) -> None:
        self._unsubscribe()
        if self._pending is not None:
            self._pending.cancel()

    def add(self, outlet: Outlet) -> None:
        self._outlets.append(outlet)

    def remove(self, outlet: Outlet) -> None:
        self._outlets.remove(outlet)

    def wait(self, waiting: SessionWait) -> None:
        """Returns at once; `waiting` is tried again whenever something becomes available, until its time-out."""
        if not waiting.try_accept():
            self._waiting.append(waiting)
            waiting.start_timer(self._loop, self._give_up)

    def _give_up(self, waiting: SessionWait) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _wake(self) -> None:
        # The broker is in the middle of a call: act when it has returned.
        if self._pending is None and (self._outlets or self._waiting):
            self._pending = self._loop.call_soon(self._share)

    def _share(self) -> None:
        self._pending = None
        for outlet in tuple(self._outlets):
            outlet.tell_loss(self._loop)
        while self._waiting and self._waiting[0].try_accept():
            self._waiting.popleft()
        self._outlets.rotate(-1)
        ready = [outlet for outlet in self._outlets if outlet.link.ready and not outlet.lost]
        while ready:
            share = 1 if len(ready) > 1 else ready[0].link.credit
            ready = [outlet for outlet in ready if outlet.deliver(share) and outlet.link.ready]
