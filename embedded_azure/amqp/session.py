"""Sessions (2.5): windows, delivery-ids, and the links of one channel."""

from collections import deque
from typing import Final, Protocol

from embedded_azure.amqp.frames import frame_of
from embedded_azure.amqp.links import IncomingLink, LinkFailure, LinkState, OutgoingLink
from embedded_azure.amqp.performatives import (
    ROLE_RECEIVER,
    ROLE_SENDER,
    Attach,
    Begin,
    Composite,
    Detach,
    Disposition,
    Error,
    Flow,
    Transfer,
    encode_composite,
)

INCOMING_WINDOW: Final = 5_000
OUTGOING_WINDOW: Final = 5_000
MAX_LINKS: Final = 255
_SERIAL_MASK: Final = 0xFFFF_FFFF


class ConnectionFailure(Exception):
    """The peer broke a rule for which the connection is closed with `error`."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(f"{condition}: {description}")
        self.error = Error(condition=condition, description=description)


class SessionConnection(Protocol):
    """What a session asks of its connection."""

    peer_max_frame_size: int
    strict_delivery_ids: bool
    writable: bool

    def now(self) -> float: ...
    def write(self, frame: bytes) -> None: ...
    def attach(self, link: IncomingLink | OutgoingLink) -> None: ...


class Session:
    """Our end of one session. Its channel number is the one the peer gave its own."""

    def __init__(self, connection: SessionConnection, channel: int, begin: Begin) -> None:
        self.connection = connection
        self.channel = channel
        self.max_frame_size = connection.peer_max_frame_size
        self.unsettled: dict[int, OutgoingLink] = {}
        """Deliveries we sent that are not settled, by delivery-id."""
        self._links: dict[int, IncomingLink | OutgoingLink] = {}
        self._next_incoming_id = begin.next_outgoing_id
        self._next_outgoing_id = 0
        self._next_delivery_id = 0
        self._expected_delivery_id: int | None = None
        self._peer_window = begin.incoming_window
        self._taken_since_flow = 0
        self._held: deque[bytes] = deque()
        self.send(
            Begin(
                remote_channel=channel,
                next_outgoing_id=0,
                incoming_window=INCOMING_WINDOW,
                outgoing_window=OUTGOING_WINDOW,
                handle_max=MAX_LINKS - 1,
            )
        )

    @property
    def writable(self) -> bool:
        """The peer's window and the socket have room for another message."""
        return self._peer_window > 0 and not self._held and self.connection.writable

    def now(self) -> float:
        """Seconds of the loop."""
        return self.connection.now()

    # What the peer sends

    def on_attach(self, attach: Attach) -> None:
        """Raises ConnectionFailure."""
        known = self._links.get(attach.handle)
        if attach.handle >= MAX_LINKS:
            raise ConnectionFailure(
                "amqp:session:handle-in-use", f"handle {attach.handle} exceeds handle-max {MAX_LINKS - 1}"
            )
        if known is not None and known.state is not LinkState.DETACHED:
            raise ConnectionFailure(
                "amqp:session:handle-in-use", f"handle {attach.handle} is link {known.name!r} already"
            )
        self._detach_stolen(attach)
        link: IncomingLink | OutgoingLink
        link = (OutgoingLink if attach.role == ROLE_RECEIVER else IncomingLink)(self, attach)
        self._links[attach.handle] = link
        self.connection.attach(link)

    def _detach_stolen(self, attach: Attach) -> None:
        """A new link of the same name and direction takes the place of the one that has it (2.6.1)."""
        for link in tuple(self._links.values()):
            if (link.name, link.attach.role) == (attach.name, attach.role):
                link.detach(
                    Error(condition="amqp:link:stolen", description=f"Link '{attach.name}' was attached anew.")
                )

    def on_detach(self, detach: Detach) -> None:
        """Raises ConnectionFailure."""
        link = self._link(detach.handle)
        if link.state is not LinkState.DETACHED:
            self.send(Detach(handle=detach.handle, closed=True))
            link.forget()
        del self._links[detach.handle]

    def on_flow(self, flow: Flow) -> None:
        """Raises ConnectionFailure."""
        seen = self._next_outgoing_id if flow.next_incoming_id is None else flow.next_incoming_id
        unseen = (self._next_outgoing_id - seen) & _SERIAL_MASK
        self._peer_window = max(0, flow.incoming_window - unseen)
        self._send_held()
        if flow.handle is not None:
            self._link(flow.handle).on_flow(flow)
            return
        if flow.echo:
            self.send_flow()
        self.wake()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        """Raises ConnectionFailure."""
        self._take()
        link = self._link(transfer.handle)
        if not isinstance(link, IncomingLink):
            raise ConnectionFailure("amqp:not-allowed", f"link {link.name!r} is for receiving, not sending")
        try:
            link.on_transfer(transfer, payload)
        except LinkFailure as failure:
            link.detach(failure.error)

    def on_disposition(self, disposition: Disposition) -> None:
        """Dispositions of deliveries that are settled, or of a link that is gone, mean nothing any more."""
        if disposition.role == ROLE_SENDER:
            return  # the peer settles what it sent; we have settled it, or will
        for delivery_id in self._range(disposition):
            if link := self.unsettled.get(delivery_id):
                link.on_disposition(delivery_id, disposition.state, disposition.settled)

    def _range(self, disposition: Disposition) -> list[int]:
        """Looks at what is unsettled, not at all numbers of a range the peer may choose freely."""
        first = disposition.first
        if disposition.last is None or disposition.last == first:
            return [first]
        length = (disposition.last - first) & _SERIAL_MASK
        return [number for number in self.unsettled if (number - first) & _SERIAL_MASK <= length]

    def expect_delivery_id(self, delivery_id: int | None) -> None:
        """Raises ConnectionFailure unless it is the one after the last (2.6.12); the first may be any."""
        expected = self._expected_delivery_id
        if expected is None or not self.connection.strict_delivery_ids:
            expected = delivery_id
        if delivery_id is None or delivery_id != expected:
            raise ConnectionFailure(
                "amqp:session:invalid-field",
                f"sequencing error, expected delivery-id {expected}, got {delivery_id}",
            )
        self._expected_delivery_id = (delivery_id + 1) & _SERIAL_MASK

    def overhear_delivery_id(self, delivery_id: int | None) -> None:
        """The id of a transfer nobody takes; a second part of the same delivery has it again."""
        if delivery_id is not None and delivery_id == self._expected_delivery_id:
            self.expect_delivery_id(delivery_id)

    def _take(self) -> None:
        # The SDK counts deliveries where the standard counts transfers, so the window cannot be held against it.
        self._next_incoming_id = (self._next_incoming_id + 1) & _SERIAL_MASK
        self._taken_since_flow += 1
        if self._taken_since_flow >= INCOMING_WINDOW // 2:
            self.send_flow()

    def _link(self, handle: int) -> IncomingLink | OutgoingLink:
        link = self._links.get(handle)
        if link is None:
            raise ConnectionFailure("amqp:session:unattached-handle", f"no link is attached with handle {handle}")
        return link

    # What we send

    def wake(self) -> None:
        """Tells the links there may be room again."""
        for link in list(self._links.values()):
            if isinstance(link, OutgoingLink):
                link.wake()

    def next_delivery_id(self) -> int:
        delivery_id = self._next_delivery_id
        self._next_delivery_id = (delivery_id + 1) & _SERIAL_MASK
        return delivery_id

    def send(self, performative: Composite) -> None:
        self.send_body(encode_composite(performative))

    def send_body(self, body: bytes) -> None:
        self.connection.write(frame_of(body, self.channel))

    def send_flow(
        self,
        *,
        handle: int | None = None,
        delivery_count: int | None = None,
        link_credit: int | None = None,
        drain: bool = False,
    ) -> None:
        self._taken_since_flow = 0
        self.send(
            Flow(
                next_incoming_id=self._next_incoming_id,
                incoming_window=INCOMING_WINDOW,
                next_outgoing_id=self._next_outgoing_id,
                outgoing_window=OUTGOING_WINDOW,
                handle=handle,
                delivery_count=delivery_count,
                link_credit=link_credit,
                drain=drain,
            )
        )

    def send_transfer(self, body: bytes, payload: bytes) -> None:
        """Held back while the peer's window is closed; `writable` then keeps new messages from being added."""
        frame = frame_of(body, self.channel, payload=payload)
        if self._peer_window <= 0 or self._held:
            self._held.append(frame)
        else:
            self._send_frame(frame)

    def _send_held(self) -> None:
        while self._held and self._peer_window > 0:
            self._send_frame(self._held.popleft())

    def _send_frame(self, frame: bytes) -> None:
        self._peer_window -= 1
        self._next_outgoing_id = (self._next_outgoing_id + 1) & _SERIAL_MASK
        self.connection.write(frame)

    def forget(self) -> None:
        """The session is gone: so are its links."""
        for link in list(self._links.values()):
            link.forget()
        self._links.clear()
