"""What is behind one connection: its tokens, and which node each of its links leads to.

A link is refused unless its address is in this namespace, a token covers it, the entity exists and the token's
owner has the role. When the token expires without a new one having been put, the link is detached.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from embedded_azure.amqp.codec import ULong
from embedded_azure.amqp.connection import Connection
from embedded_azure.amqp.links import IncomingLink, OutgoingLink
from embedded_azure.amqp.performatives import Coordinator, Error
from embedded_azure.servicebus.access import UNAUTHORIZED, Access, AccessRefused, Address, Claim
from embedded_azure.servicebus.broker.broker import Broker, BrokerError, Queue, Session
from embedded_azure.servicebus.broker.messages import NOT_ALLOWED, SESSION_LOCK_LOST
from embedded_azure.servicebus.faults.links import Answer, LinkFaults
from embedded_azure.servicebus.links.cbs import CBS, TokenDesk
from embedded_azure.servicebus.links.idle import IdleTimes, IdleWatch
from embedded_azure.servicebus.links.links import MAX_BATCH_SIZE, Dispatch, Inlet, Outlet, largest_batch
from embedded_azure.servicebus.links.management import MANAGEMENT, Desk
from embedded_azure.servicebus.links.requests import MAX_REQUEST, Requests, Responses
from embedded_azure.servicebus.links.session_links import (
    SESSION_FILTER,
    SessionWait,
    error_of,
    session_filter,
    session_terms,
)

MAX_LINKS: Final = 1_000
_MAX_TIMER: Final = 86_400.0


class Peer:
    """The `Container` of one connection. `dispatch_for` gives the one `Dispatch` of an entity."""

    def __init__(
        self,
        connection: Connection,
        *,
        access: Access,
        broker: Broker,
        dispatch_for: Callable[[Queue], Dispatch],
        clock: Callable[[], float],
        faults: LinkFaults,
        idle: IdleTimes,
        on_closed: Callable[["Peer"], None],
    ) -> None:
        self.connection = connection
        self._access = access
        self._broker = broker
        self._dispatch_for = dispatch_for
        self._clock = clock
        self._faults = faults
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._links: dict[IncomingLink | OutgoingLink, Address] = {}
        self._outlets: dict[OutgoingLink, Outlet] = {}
        self._responses: dict[tuple[object, str], Responses] = {}
        self._idle = IdleWatch(idle, self._links.keys, connection.close)

    # What the connection calls

    def on_attach(self, link: IncomingLink | OutgoingLink) -> None:
        try:
            address = self._access.own(_address_of(link))
            if address.path == CBS:
                self._attach_cbs(link)
            elif address.path.endswith(MANAGEMENT):
                self._attach_management(link, address)
            else:
                self._attach_entity(link, address)
        except AccessRefused as refusal:
            link.refuse(Error(condition=UNAUTHORIZED, description=refusal.description))
        except BrokerError as refusal:
            link.refuse(error_of(refusal))

    def detach(self, entity: str | None, error: Error) -> None:
        """Every link of the entity (its path in lower case) and what belongs to it, or of all."""
        for link, address in tuple(self._links.items()):
            if entity is None or f"{address.path.lower()}/".startswith(f"{entity}/"):
                link.detach(error)

    def on_closed(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._idle.stop()
        self._on_closed(self)

    # Nodes

    def _attach_cbs(self, link: IncomingLink | OutgoingLink) -> None:
        if isinstance(link, OutgoingLink):
            self._accept_responses(link, CBS)
        else:
            desk = TokenDesk(self._access, self._watch_expiry)
            answer = self._faults.put_token(desk.answer)
            link.accept(self._requests(link, CBS, answer), max_message_size=MAX_REQUEST)

    def _attach_management(self, link: IncomingLink | OutgoingLink, address: Address) -> None:
        # The token may have been put for the node itself, as the SDK for JavaScript does.
        queue = self._entity(address, Claim.SEND, Claim.LISTEN)
        self._links[link] = address
        if isinstance(link, OutgoingLink):
            self._accept_responses(link, address.path)
        else:
            named = Address(None, f"{queue.name}{MANAGEMENT}")
            desk = Desk(queue, partial(self._access.check, named), self._held_session)
            answer = self._faults.management(queue.name, desk.answer)
            link.accept(self._requests(link, address.path, answer), max_message_size=MAX_REQUEST)

    def _attach_entity(self, link: IncomingLink | OutgoingLink, address: Address) -> None:
        self._faults.check_attach(address.path)
        if isinstance(link, OutgoingLink):
            self._attach_receiver(link, address)
            return
        queue = self._entity(address, Claim.SEND)
        queue.check_enabled("Send")
        self._links[link] = address
        inlet = Inlet(link, queue, partial(self._forget, link))
        link.accept(
            self._faults.consumer(inlet, link, queue.name),
            max_message_size=queue.spec.max_message_bytes,
            properties={MAX_BATCH_SIZE: ULong(largest_batch(queue))},
        )

    def _attach_receiver(self, link: OutgoingLink, address: Address) -> None:
        queue = self._entity(address, Claim.LISTEN)
        queue.check_receivable()
        dispatch = self._dispatch_for(queue)
        wanted, session_id = session_filter(link)
        if not wanted:
            if queue.spec.requires_session:
                raise BrokerError(
                    NOT_ALLOWED,
                    "It is not possible for an entity that requires sessions to create a non-sessionful message "
                    f"receiver. '{queue.name}' requires sessions.",
                )
            self._open(link, address, dispatch, None)
        else:
            on_accepted = partial(self._open_session, link, address, dispatch)
            dispatch.wait(SessionWait(link, queue, session_id, on_accepted))

    def _open_session(self, link: OutgoingLink, address: Address, dispatch: Dispatch, session: Session) -> None:
        try:
            self._access.check_token(address)  # it may have waited longer than its token lives
        except AccessRefused as refusal:
            session.release()
            link.refuse(Error(condition=UNAUTHORIZED, description=refusal.description))
        else:
            self._open(link, address, dispatch, session)

    def _open(self, link: OutgoingLink, address: Address, dispatch: Dispatch, session: Session | None) -> None:
        self._links[link] = address
        outlet = Outlet(link, dispatch, session, partial(self._forget, link))
        self._outlets[link] = outlet
        producer = self._faults.producer(outlet, link, dispatch.queue.name)
        if session is None:
            link.accept(producer)
        else:
            link.accept(producer, filters={SESSION_FILTER: session.id}, properties=session_terms(session))

    def _entity(self, address: Address, *claims: Claim) -> Queue:
        """Raises AccessRefused or BrokerError. Whether an entity exists is told only to those with a token."""
        if len(self._links) >= MAX_LINKS:
            raise BrokerError("amqp:resource-limit-exceeded", f"a connection may have {MAX_LINKS} links")
        self._access.check_token(address)
        path = address.path.removesuffix(MANAGEMENT)
        queue = self._broker.entity(path)
        named = queue.name + address.path[len(path) :]  # roles know queues by their real names
        self._access.check(Address(None, named), *claims)
        return queue

    # Requests and responses travel on two links of one session that have the same address.

    def _accept_responses(self, link: OutgoingLink, path: str) -> None:
        responses = Responses(link, partial(self._forget_responses, link, path))
        self._responses[link.session, path] = responses
        link.accept(responses)

    def _requests(self, link: IncomingLink, path: str, answer: Answer) -> Requests:
        return Requests(
            link,
            answer,
            lambda: self._responses.get((link.session, path)),
            partial(self._forget, link),
        )

    def _forget_responses(self, link: OutgoingLink, path: str) -> None:
        self._responses.pop((link.session, path), None)
        self._forget(link)

    def _forget(self, link: IncomingLink | OutgoingLink) -> None:
        self._links.pop(link, None)
        if isinstance(link, OutgoingLink):
            self._outlets.pop(link, None)
        self._idle.note_detached()

    def _held_session(self, queue: Queue, session_id: str) -> Session:
        for outlet in self._outlets.values():
            if outlet.queue is queue and outlet.session is not None and outlet.session.id == session_id:
                return outlet.session
        raise BrokerError(
            SESSION_LOCK_LOST,
            f"no receiver on this connection holds session {session_id!r} of '{queue.name}'; accept it first",
        )

    # Tokens end

    def _watch_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        at = self._access.next_expiry()
        if at is not None:
            pause = min(max(0.0, at - self._clock()), _MAX_TIMER)
            self._expiry = self._loop.call_later(pause, self._expire)

    def _expire(self) -> None:
        for link, address in tuple(self._links.items()):
            try:
                self._access.check_token(address)
            except AccessRefused as refusal:
                link.detach(Error(condition=UNAUTHORIZED, description=refusal.description))
        self._access.drop_expired()
        self._watch_expiry()


def _address_of(link: IncomingLink | OutgoingLink) -> str:
    """Raises BrokerError for a link that leads nowhere."""
    terminus = link.attach.source if isinstance(link, OutgoingLink) else link.attach.target
    if isinstance(terminus, Coordinator):
        raise BrokerError("amqp:not-implemented", "there are no transactions here")
    if terminus is None or not terminus.address:
        raise BrokerError("amqp:invalid-field", "a link needs the address of an entity as source or target")
    return terminus.address
