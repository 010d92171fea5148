"""Links (2.6): the two ends we can have, credit, deliveries, and what a node behind a link must be.

`OutgoingLink` sends the peer messages, `IncomingLink` takes messages from it. A node is whatever serves a link;
it is called synchronously, in the order of the frames, and answers by calling the link.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from embedded_azure.amqp.codec import Symbol
from embedded_azure.amqp.performatives import (
    ROLE_RECEIVER,
    ROLE_SENDER,
    Attach,
    Composite,
    Coordinator,
    DeliveryState,
    Detach,
    Error,
    Flow,
    Rejected,
    Source,
    Target,
    Transfer,
    encode_composite,
    encode_settlement,
    encode_transfer,
)

INCOMING_CREDIT: Final = 1_000
"""Messages a peer may send on a link before we say more; topped up when half of it is used."""
_SERIAL_MASK: Final = 0xFFFF_FFFF
_LONGEST_TRANSFER: Final = 72
"""Bytes a transfer's frame has beside its payload, at most: with a tag of 32 bytes, the longest there are."""


class LinkFailure(Exception):
    """The peer broke a rule of one link, which is detached with `error`; the session goes on."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(f"{condition}: {description}")
        self.error = Error(condition=condition, description=description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A whole message from the peer. When `settled`, no answer is wanted."""

    delivery_id: int
    message_format: int
    payload: bytes
    settled: bool


class Consumer(Protocol):
    """A node that takes messages from the peer."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Settle it once with `IncomingLink.settle`, now or later, unless it is settled already."""

    def on_detached(self) -> None:
        """The link is gone, for whatever reason. Called once."""


class Producer(Protocol):
    """A node that sends messages to the peer."""

    def on_ready(self) -> None:
        """The link may have become `ready`: credit or room arrived."""

    def on_disposition(self, delivery_id: int, state: DeliveryState | None, settled: bool) -> None:
        """The peer's word on a delivery not settled yet. Answer with `OutgoingLink.settle` unless `settled`."""

    def on_detached(self) -> None:
        """The link is gone, for whatever reason. Called once."""


class LinkSession(Protocol):
    """What a link asks of its session."""

    max_frame_size: int
    unsettled: dict[int, "OutgoingLink"]

    @property
    def writable(self) -> bool: ...
    def now(self) -> float: ...
    def next_delivery_id(self) -> int: ...
    def expect_delivery_id(self, delivery_id: int | None) -> None: ...
    def overhear_delivery_id(self, delivery_id: int | None) -> None: ...
    def send(self, performative: Composite) -> None: ...
    def send_body(self, body: bytes) -> None: ...
    def send_transfer(self, body: bytes, payload: bytes) -> None: ...
    def send_flow(
        self,
        *,
        handle: int | None = None,
        delivery_count: int | None = None,
        link_credit: int | None = None,
        drain: bool = False,
    ) -> None: ...


class LinkState(Enum):
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHED = "detached"


class Link(ABC):
    """What both ends have in common. The handle of our end is always the number the peer gave its own."""

    def __init__(self, session: LinkSession, attach: Attach) -> None:
        self.session = session
        self.attach = attach
        self.handle = attach.handle
        self.name = attach.name
        self.state = LinkState.ATTACHING
        self.used_at = session.now()
        """When a message, a settlement or credit last passed, in seconds of the loop."""
        self._node: Consumer | Producer | None = None

    @property
    def attaching(self) -> bool:
        """The peer waits for our answer to its attach."""
        return self.state is LinkState.ATTACHING

    def refuse(self, error: Error) -> None:
        """Says that there is no such link: an attach without the terminus asked for, then a detach (2.6.3)."""
        self._answer(
            source=self.attach.role == ROLE_SENDER,
            target=self.attach.role == ROLE_RECEIVER,
        )
        self.detach(error)

    def detach(self, error: Error | None = None) -> None:
        """Closes the link from our side. Does nothing when it is closed already."""
        if self.state is not LinkState.DETACHED:
            self.session.send(Detach(handle=self.handle, closed=True, error=error))
            self.forget()

    def forget(self) -> None:
        """The link is gone, and the peer knows."""
        if self.state is LinkState.DETACHED:
            return
        self.state = LinkState.DETACHED
        node, self._node = self._node, None
        if node is not None:
            node.on_detached()

    @abstractmethod
    def settle(self, delivery_id: int, state: DeliveryState) -> None:
        """Tells the peer the delivery's final state; it is then forgotten on both sides."""

    def _answer(
        self,
        *,
        source: bool = True,
        target: bool = True,
        filters: Mapping[Symbol, Any] | None = None,
        properties: Mapping[Symbol, Any] | None = None,
        max_message_size: int | None = None,
    ) -> None:
        """Of the termini the peer asked for only the address is echoed: nothing more is promised."""
        asked = self.attach
        self.session.send(
            Attach(
                name=self.name,
                handle=self.handle,
                role=not asked.role,
                snd_settle_mode=asked.snd_settle_mode,
                rcv_settle_mode=asked.rcv_settle_mode,
                source=Source(address=_address(asked.source), filter=filters) if source else None,
                target=Target(address=_address(asked.target)) if target else None,
                initial_delivery_count=0 if asked.role == ROLE_RECEIVER else None,
                max_message_size=max_message_size,
                properties=properties,
            )
        )


def _address(terminus: Source | Target | Coordinator | None) -> str | None:
    return terminus.address if isinstance(terminus, Source | Target) else None


class IncomingLink(Link):
    """The peer sends, we receive."""

    def __init__(self, session: LinkSession, attach: Attach) -> None:
        super().__init__(session, attach)
        self._delivery_count = attach.initial_delivery_count or 0
        self._credit = 0
        self._max_message_size = 0
        self._first: Transfer | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def accept(
        self, node: Consumer, *, max_message_size: int, properties: Mapping[Symbol, Any] | None = None
    ) -> None:
        """Attaches the link as asked for. A message of more than `max_message_size` bytes is rejected."""
        if self.state is not LinkState.ATTACHING:
            return
        self._node = node
        self._max_message_size = max_message_size
        self.state = LinkState.ATTACHED
        self._answer(properties=properties, max_message_size=max_message_size)
        self._grant()

    def on_flow(self, flow: Flow) -> None:
        """The peer's view of its credit; nothing to learn from it but that it wants an answer."""
        if flow.echo and self.state is LinkState.ATTACHED:
            self._send_flow()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        """Raises LinkFailure."""
        self.used_at = self.session.now()
        if self.state is not LinkState.ATTACHED:
            self.session.overhear_delivery_id(transfer.delivery_id)  # in flight when the link was detached
            return
        if self._first is None:
            self._begin_delivery(transfer)
        if transfer.aborted:
            self._end_delivery()
            return
        self._add(payload)
        if not transfer.more:
            self._end_transfer(transfer)

    def settle(self, delivery_id: int, state: DeliveryState) -> None:
        body = encode_settlement(role=ROLE_RECEIVER, delivery_id=delivery_id, state=encode_composite(state))
        self.session.send_body(body)

    def _begin_delivery(self, transfer: Transfer) -> None:
        if self._credit <= 0:
            raise LinkFailure(
                "amqp:link:transfer-limit-exceeded",
                f"link {self.name!r} has no credit left for delivery {transfer.delivery_id}; wait for a flow",
            )
        self.session.expect_delivery_id(transfer.delivery_id)
        self._first = transfer

    def _add(self, payload: bytes) -> None:
        """Of a message that is too large nothing is kept, but its end is waited for."""
        self._size += len(payload)
        if self._size > self._max_message_size:
            self._parts.clear()
        else:
            self._parts.append(payload)

    def _end_transfer(self, last: Transfer) -> None:
        first, parts, size = self._first, self._parts, self._size
        assert first is not None
        assert first.delivery_id is not None
        self._end_delivery()
        settled = bool(first.settled or last.settled)
        if size > self._max_message_size:
            self._refuse_size(first.delivery_id, size, settled)
            return
        delivery = Delivery(
            delivery_id=first.delivery_id,
            message_format=first.message_format or 0,
            payload=parts[0] if len(parts) == 1 else b"".join(parts),
            settled=settled,
        )
        self._node.on_delivery(delivery)  # type: ignore[union-attr]  # it is attached, to a consumer

    def _refuse_size(self, delivery_id: int, size: int, settled: bool) -> None:
        """Raises LinkFailure if the sender does not wait for an answer, and would learn of it in no other way."""
        failure = LinkFailure(
            "amqp:link:message-size-exceeded",
            f"The received message (delivery-id:{delivery_id}, size:{size} bytes) exceeds the limit "
            f"({self._max_message_size} bytes) currently allowed on the link.",
        )
        if settled:
            raise failure
        self.settle(delivery_id, Rejected(error=failure.error))

    def _end_delivery(self) -> None:
        self._first, self._parts, self._size = None, [], 0
        self._delivery_count = (self._delivery_count + 1) & _SERIAL_MASK
        self._credit -= 1
        if self._credit < INCOMING_CREDIT // 2:
            self._grant()

    def _grant(self) -> None:
        self._credit = INCOMING_CREDIT
        self._send_flow()

    def _send_flow(self) -> None:
        self.session.send_flow(handle=self.handle, delivery_count=self._delivery_count, link_credit=self._credit)


class OutgoingLink(Link):
    """We send, the peer receives, as many messages as it has given credit for."""

    def __init__(self, session: LinkSession, attach: Attach) -> None:
        super().__init__(session, attach)
        self._delivery_count = 0
        self.credit = 0

    def accept(
        self,
        node: Producer,
        *,
        filters: Mapping[Symbol, Any] | None = None,
        properties: Mapping[Symbol, Any] | None = None,
    ) -> None:
        """Attaches the link, its source with `filters`. `node` is told when the link is ready."""
        if self.state is not LinkState.ATTACHING:
            return
        self._node = node
        self.state = LinkState.ATTACHED
        self._answer(filters=filters, properties=properties)
        if self.ready:
            node.on_ready()

    @property
    def ready(self) -> bool:
        """A message may be sent now."""
        return self.credit > 0 and self.state is LinkState.ATTACHED and self.session.writable

    def send(self, payload: bytes, tag: bytes, *, settled: bool) -> int:
        """Sends one message and uses one credit; ask `ready` first. Returns the delivery-id."""
        delivery_id = self.session.next_delivery_id()
        self.used_at = self.session.now()
        self.credit -= 1
        self._delivery_count = (self._delivery_count + 1) & _SERIAL_MASK
        if not settled:
            self.session.unsettled[delivery_id] = self
        room = self.session.max_frame_size - _LONGEST_TRANSFER
        at = 0
        while len(payload) - at > room:
            self._send_transfer(delivery_id, tag, settled, payload[at : at + room], more=True)
            at += room
        self._send_transfer(delivery_id, tag, settled, payload[at:] if at else payload, more=False)
        return delivery_id

    def settle(self, delivery_id: int, state: DeliveryState) -> None:
        self.session.unsettled.pop(delivery_id, None)
        body = encode_settlement(role=ROLE_SENDER, delivery_id=delivery_id, state=encode_composite(state))
        self.session.send_body(body)

    def on_flow(self, flow: Flow) -> None:
        self.used_at = self.session.now()
        if flow.link_credit is not None:
            # The peer may not have seen what we sent last: credit counts from its delivery-count (2.6.7).
            sent_since = (self._delivery_count - (flow.delivery_count or 0)) & _SERIAL_MASK
            self.credit = max(0, flow.link_credit - sent_since)
        self.wake()
        if flow.drain:
            self._delivery_count = (self._delivery_count + self.credit) & _SERIAL_MASK
            self.credit = 0
        if (flow.drain or flow.echo) and self.state is LinkState.ATTACHED:
            self.session.send_flow(
                handle=self.handle,
                delivery_count=self._delivery_count,
                link_credit=self.credit,
                drain=flow.drain,  # 2.6.7: clients wait for an answer that says so
            )

    def wake(self) -> None:
        if self.ready and self._node is not None:
            self._node.on_ready()  # type: ignore[union-attr]  # an outgoing link has a producer

    def on_disposition(self, delivery_id: int, state: DeliveryState | None, settled: bool) -> None:
        self.used_at = self.session.now()
        if settled:
            self.session.unsettled.pop(delivery_id, None)
        if self._node is not None:
            self._node.on_disposition(delivery_id, state, settled)  # type: ignore[union-attr]  # as above

    def forget(self) -> None:
        unsettled = self.session.unsettled
        for delivery_id in [number for number, link in unsettled.items() if link is self]:
            del unsettled[delivery_id]
        super().forget()

    def _send_transfer(self, delivery_id: int, tag: bytes, settled: bool, payload: bytes, *, more: bool) -> None:
        body = encode_transfer(
            handle=self.handle,
            delivery_id=delivery_id,
            tag=tag,
            message_format=0,
            settled=settled,
            more=more,
        )
        self.session.send_transfer(body, payload)
