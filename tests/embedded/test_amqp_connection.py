"""The protocol engine, spoken to frame by frame by a client that may break the rules."""

import asyncio
from typing import Any

import pytest

from embedded_azure.amqp.codec import Symbol
from embedded_azure.amqp.connection import MAX_FRAME_SIZE, Connection
from embedded_azure.amqp.frames import (
    AMQP_FRAME,
    PROTOCOL_AMQP,
    PROTOCOL_SASL,
    SASL_FRAME,
    FrameReader,
    encode_frame,
)
from embedded_azure.amqp.links import INCOMING_CREDIT, Delivery, IncomingLink, OutgoingLink
from embedded_azure.amqp.performatives import (
    Accepted,
    Attach,
    Begin,
    Close,
    Composite,
    DeliveryState,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Open,
    Rejected,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Source,
    Target,
    Transfer,
    decode_performative,
)
from tests.support.wire import Wire


class Node:
    """Behind every link: takes what comes, sends what it is told to, and remembers."""

    def __init__(self, link: IncomingLink | OutgoingLink) -> None:
        self.link = link
        self.deliveries: list[Delivery] = []
        self.dispositions: list[tuple[int, DeliveryState | None, bool]] = []
        self.wakes = 0
        self.detached = 0

    def on_delivery(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if not delivery.settled:
            self.link.settle(delivery.delivery_id, Accepted())

    def on_ready(self) -> None:
        self.wakes += 1

    def on_disposition(self, delivery_id: int, state: DeliveryState | None, settled: bool) -> None:
        self.dispositions.append((delivery_id, state, settled))
        if not settled and state is not None:
            self.link.settle(delivery_id, state)

    def on_detached(self) -> None:
        self.detached += 1


class Shop:
    """A container that accepts every link but those to `nowhere`, whose answers it gives in time or not at all."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.closed = 0

    def on_attach(self, link: IncomingLink | OutgoingLink) -> None:
        node = self.nodes[link.name] = Node(link)
        if link.name.startswith("nowhere"):
            link.refuse(Error(condition="amqp:not-found", description="no such thing"))
        elif isinstance(link, OutgoingLink):
            link.accept(node)
        else:
            link.accept(node, max_message_size=100_000)

    def on_closed(self) -> None:
        self.closed += 1


class Client:
    """The peer: writes frames into the connection and reads its answers."""

    def __init__(self, *, idle_time_out: float = 240.0) -> None:
        self.shop = Shop()
        self.wire = Wire()
        self.connection = Connection(lambda _: self.shop, container_id="test", idle_time_out=idle_time_out)
        self.connection.connection_made(self.wire)

    def send(self, *frames: Composite, channel: int = 1, payload: bytes = b"", kind: int = AMQP_FRAME) -> list[Any]:
        """The answers, as performatives; of a transfer also its payload, after it."""
        data = b"".join(encode_frame(frame, channel=channel, kind=kind, payload=payload) for frame in frames)
        self.connection.data_received(data)
        return self.answers()

    def answers(self) -> list[Any]:
        self.connection._flush()
        data, self.wire.written = self.wire.written, b""
        reader = FrameReader(MAX_FRAME_SIZE)
        reader.feed(data)
        found: list[Any] = []
        while frame := reader.next_frame():
            if not frame.body:
                continue
            performative, end = decode_performative(frame.body)
            found += [performative] if end == len(frame.body) else [performative, frame.body[end:]]
        return found

    def greet(self, **options: Any) -> "Client":
        """Header, SASL, open and begin, pipelined as the SDK does."""
        self.connection.data_received(PROTOCOL_SASL)
        self.connection.data_received(encode_frame(SaslInit(mechanism="ANONYMOUS"), kind=SASL_FRAME))
        opening = Open(container_id="client", **{"max_frame_size": 1 << 20, **options})
        begin = Begin(next_outgoing_id=0, incoming_window=65_536, outgoing_window=65_536)
        self.connection.data_received(PROTOCOL_AMQP + encode_frame(opening) + encode_frame(begin, channel=1))
        self.wire.written = b""
        return self

    def sender(self, name: str = "out", handle: int = 1) -> list[Any]:
        return self.send(attach_sender(name, handle))

    def receiver(self, name: str = "in", handle: int = 2, credit: int = 10) -> list[Any]:
        answers = self.send(attach_receiver(name, handle))
        self.credit(handle, credit)
        return answers

    def credit(self, handle: int, credit: int, **options: Any) -> list[Any]:
        return self.send(
            Flow(
                **{
                    "next_incoming_id": 0,
                    "incoming_window": 65_536,
                    "next_outgoing_id": 0,
                    "outgoing_window": 65_536,
                    "handle": handle,
                    "delivery_count": 0,
                    "link_credit": credit,
                    **options,
                }
            )
        )

    def outgoing(self, name: str = "in") -> OutgoingLink:
        link = self.shop.nodes[name].link
        assert isinstance(link, OutgoingLink)
        return link


def attach_sender(name: str, handle: int) -> Attach:
    return Attach(
        name=name,
        handle=handle,
        role=False,
        source=Source(address="client"),
        target=Target(address="jobs"),
        initial_delivery_count=0,
    )


def attach_receiver(name: str, handle: int) -> Attach:
    return Attach(
        name=name, handle=handle, role=True, source=Source(address="jobs"), target=Target(address="client")
    )


def transfer(number: int, *, handle: int = 1, more: bool = False, settled: bool = False) -> Transfer:
    return Transfer(
        handle=handle, delivery_id=number, delivery_tag=b"tag", message_format=0, settled=settled, more=more
    )


@pytest.fixture
async def client() -> Client:
    return Client().greet()


# Opening and closing


async def test_the_greeting_is_answered_step_by_step() -> None:
    client = Client()
    client.connection.data_received(PROTOCOL_SASL)
    assert client.wire.written.startswith(PROTOCOL_SASL)
    client.wire.written = client.wire.written[8:]
    assert client.answers() == [SaslMechanisms(sasl_server_mechanisms=(Symbol("ANONYMOUS"),))]
    assert client.send(SaslInit(mechanism="ANONYMOUS"), kind=SASL_FRAME) == [SaslOutcome(code=0)]
    client.connection.data_received(PROTOCOL_AMQP)
    assert client.wire.written == PROTOCOL_AMQP
    client.wire.written = b""
    (answer,) = client.send(Open(container_id="c"), channel=0)
    assert (answer.container_id, answer.max_frame_size) == ("test", MAX_FRAME_SIZE)
    (begun,) = client.send(Begin(next_outgoing_id=5, incoming_window=1, outgoing_window=1))
    assert begun.remote_channel == 1


@pytest.mark.parametrize("header", [PROTOCOL_AMQP, b"GET / HT", b"AMQP\x00\x00\x09\x01"])
async def test_a_client_that_does_not_begin_with_sasl_is_shown_how_and_sent_away(header: bytes) -> None:
    client = Client()
    client.connection.data_received(header)
    assert (client.wire.written, client.wire.closed) == (PROTOCOL_SASL, True)


async def test_another_sasl_mechanism_is_refused() -> None:
    client = Client()
    client.connection.data_received(PROTOCOL_SASL)
    client.wire.written = b""
    assert client.send(SaslInit(mechanism="PLAIN", initial_response=b"x"), kind=SASL_FRAME) == [SaslOutcome(code=1)]
    assert client.wire.closed


async def test_a_close_is_answered(client: Client) -> None:
    client.sender()
    assert client.send(Close(), channel=0) == [Close()]
    assert client.wire.closed
    client.connection.connection_lost(None)
    assert (client.shop.nodes["out"].detached, client.shop.closed) == (1, 1)


async def test_frames_after_the_end_of_their_session_are_overheard(client: Client) -> None:
    client.sender()
    assert client.send(End(), Detach(handle=1, closed=True)) == [End()]
    assert not client.wire.closed
    assert client.shop.nodes["out"].detached == 1


def closed_with(answers: list[Any]) -> str:
    assert isinstance(answers[-1], Close), answers
    error = answers[-1].error
    assert error is not None
    return str(error.condition)


async def test_garbage_closes_the_connection_with_a_decode_error(client: Client) -> None:
    client.connection.data_received(b"\x00\x00\x00\x0b\x02\x00\x00\x01\x00\x53\x99")
    assert closed_with(client.answers()) == "amqp:decode-error"
    assert client.wire.closed


async def test_a_frame_larger_than_allowed_closes_the_connection(client: Client) -> None:
    client.connection.data_received(b"\x00\x10\x00\x00\x02\x00\x00\x01")
    assert closed_with(client.answers()) == "amqp:decode-error"


async def test_a_frame_without_a_session_closes_the_connection(client: Client) -> None:
    assert closed_with(client.send(attach_sender("x", 1), channel=7)) == "amqp:not-allowed"


@pytest.mark.looptime
async def test_a_silent_client_is_sent_away_after_the_idle_time_out() -> None:
    client = Client(idle_time_out=30).greet()
    await asyncio.sleep(29)
    client.connection.data_received(b"\x00\x00\x00\x08\x02\x00\x00\x00")
    await asyncio.sleep(29)
    assert not client.wire.closed
    await asyncio.sleep(1.5)
    assert closed_with(client.answers()) == "amqp:connection:forced"
    client.connection.connection_lost(None)


@pytest.mark.looptime
async def test_a_client_with_an_idle_time_out_is_kept_company() -> None:
    client = Client().greet(idle_time_out=10_000)
    await asyncio.sleep(26)
    assert client.wire.written.count(b"\x00\x00\x00\x08\x02\x00\x00\x00") == 5
    client.connection.connection_lost(None)


# Links


async def test_a_link_is_mirrored_and_a_sender_given_credit(client: Client) -> None:
    attach, flow = client.sender()
    assert (attach.name, attach.role, attach.target.address, attach.max_message_size) == (
        "out",
        True,
        "jobs",
        100_000,
    )
    assert (flow.handle, flow.link_credit) == (1, INCOMING_CREDIT)
    (attach,) = client.receiver()
    assert (attach.role, attach.source.address, attach.initial_delivery_count) == (False, "jobs", 0)


async def test_a_refused_link_is_attached_without_its_end_and_detached(client: Client) -> None:
    attach, detach = client.sender("nowhere")
    assert (attach.source.address, attach.target) == ("client", None)
    assert (detach.closed, detach.error.condition) == (True, "amqp:not-found")
    attach, detach = client.receiver("nowhere-2")
    assert (attach.source, attach.target.address) == (None, "client")


async def test_a_handle_in_use_or_unknown_closes_the_connection(client: Client) -> None:
    client.sender()
    assert closed_with(client.sender("second")) == "amqp:session:handle-in-use"
    client = Client().greet()
    assert closed_with(client.send(transfer(0, handle=9))) == "amqp:session:unattached-handle"


async def test_a_handle_is_free_again_after_its_link_was_detached(client: Client) -> None:
    client.sender()
    assert client.send(Detach(handle=1, closed=True)) == [Detach(handle=1, closed=True)]
    assert client.shop.nodes["out"].detached == 1
    attach, _ = client.sender("again")
    assert attach.name == "again"


async def test_a_link_is_stolen_by_another_of_its_name_and_direction(client: Client) -> None:
    client.receiver("same", handle=1)
    first = client.shop.nodes["same"]
    client.sender("same", handle=2)
    assert first.detached == 0
    detach, attach = client.send(attach_receiver("same", 3))
    assert (detach.handle, detach.closed, detach.error.condition) == (1, True, "amqp:link:stolen")
    assert (attach.handle, first.detached) == (3, 1)
    assert client.send(Detach(handle=1, closed=True)) == []


# Messages from the peer


async def test_a_message_in_several_frames_is_put_together(client: Client) -> None:
    client.sender()
    assert client.send(transfer(0, more=True), payload=b"abc") == []
    assert client.send(transfer(0, more=True), payload=b"def") == []
    assert client.send(transfer(0), payload=b"g") == [
        Disposition(role=True, first=0, settled=True, state=Accepted())
    ]
    assert [delivery.payload for delivery in client.shop.nodes["out"].deliveries] == [b"abcdefg"]


async def test_an_aborted_message_is_forgotten(client: Client) -> None:
    client.sender()
    client.send(transfer(0, more=True), payload=b"abc")
    client.send(Transfer(handle=1, aborted=True))
    client.send(transfer(1), payload=b"next")
    assert [delivery.payload for delivery in client.shop.nodes["out"].deliveries] == [b"next"]


@pytest.mark.parametrize("second", [0, 2, 7])
async def test_delivery_ids_out_of_sequence_close_the_connection(client: Client, second: int) -> None:
    client.sender()
    client.send(transfer(0), payload=b"x")
    answers = client.send(transfer(second), payload=b"x")
    assert closed_with(answers) == "amqp:session:invalid-field"
    assert answers[-1].error.description == f"sequencing error, expected delivery-id 1, got {second}"


async def test_delivery_ids_are_one_sequence_over_all_links_of_a_session(client: Client) -> None:
    client.sender("a", 1)
    client.sender("b", 3)
    client.send(transfer(0, handle=1), payload=b"x")
    client.send(transfer(1, handle=3), payload=b"x")
    assert closed_with(client.send(transfer(1, handle=1), payload=b"x")) == "amqp:session:invalid-field"


async def test_credit_is_topped_up_and_sending_without_it_detaches_the_link(client: Client) -> None:
    client.sender()
    for number in range(INCOMING_CREDIT * 2):
        client.send(transfer(number, settled=True), payload=b"x")
    link = client.shop.nodes["out"].link
    assert isinstance(link, IncomingLink)
    link._credit = 0
    (detach,) = client.send(transfer(INCOMING_CREDIT * 2), payload=b"x")
    assert detach.error.condition == "amqp:link:transfer-limit-exceeded"
    assert not client.wire.closed


async def test_a_message_too_large_is_rejected_and_the_link_goes_on(client: Client) -> None:
    client.sender()
    for _ in range(2):
        assert client.send(transfer(0, more=True), payload=b"x" * 60_000) == []
    (rejected,) = client.send(transfer(0), payload=b"x")
    assert isinstance(rejected.state, Rejected)
    assert rejected.state.error is not None
    assert rejected.state.error.condition == "amqp:link:message-size-exceeded"
    assert client.send(transfer(1), payload=b"x")[0].state == Accepted()


# Messages to the peer


async def test_no_more_is_sent_than_there_is_credit_for(client: Client) -> None:
    client.receiver(credit=2)
    link = client.outgoing()
    for _ in range(2):
        assert link.ready
        link.send(b"x", b"t", settled=True)
    assert not link.ready
    client.credit(2, 3, next_incoming_id=1, delivery_count=1)
    assert link.credit == 2  # one was still on its way when the client counted


async def test_a_message_larger_than_a_frame_leaves_in_several(client: Client) -> None:
    client.receiver()
    payload = bytes(range(256)) * 600
    client.outgoing().send(payload, b"t" * 16, settled=False)
    answers = client.answers()
    transfers, parts = answers[::2], answers[1::2]
    assert [(each.delivery_id, each.more) for each in transfers] == [(0, True), (0, True), (0, False)]
    assert b"".join(parts) == payload


async def test_frames_are_no_larger_than_the_peer_allows() -> None:
    client = Client().greet(max_frame_size=512)
    client.receiver()
    client.outgoing().send(b"x" * 2_000, b"t" * 32, settled=True)
    client.connection._flush()
    reader = FrameReader(512)
    reader.feed(client.wire.written)
    while reader.next_frame():
        pass


async def test_nothing_is_sent_into_a_closed_window(client: Client) -> None:
    client.receiver()
    link = client.outgoing()
    client.credit(2, 10, incoming_window=1)
    link.send(b"x" * 100_000, b"t", settled=True)
    assert len(client.answers()) == 2  # one transfer with its payload
    assert not link.ready
    answers = client.credit(2, 10, next_incoming_id=1, delivery_count=0, incoming_window=5)
    assert answers[0].more is False
    assert link.ready


async def test_a_settlement_is_answered_once_and_then_forgotten(client: Client) -> None:
    client.receiver()
    client.outgoing().send(b"x", b"t", settled=False)
    client.answers()
    settle = Disposition(role=True, first=0, settled=False, state=Accepted())
    assert client.send(settle) == [Disposition(role=False, first=0, settled=True, state=Accepted())]
    assert client.send(settle) == []
    assert client.shop.nodes["in"].dispositions == [(0, Accepted(), False)]


async def test_a_range_of_settlements_touches_only_what_is_unsettled(client: Client) -> None:
    client.receiver()
    for _ in range(3):
        client.outgoing().send(b"x", b"t", settled=False)
    client.answers()
    answers = client.send(Disposition(role=True, first=1, last=(1 << 32) - 2, settled=False, state=Accepted()))
    assert [answer.first for answer in answers] == [1, 2]


async def test_a_drained_link_gives_up_its_credit_and_says_so(client: Client) -> None:
    client.receiver()
    (flow,) = client.credit(2, 5, drain=True)
    assert (flow.link_credit, flow.delivery_count, flow.drain) == (0, 5, True)
    # the credit may be used up when the drain arrives: the peer waits for the answer none the less
    (flow,) = client.credit(2, 0, drain=True, delivery_count=5)
    assert (flow.link_credit, flow.delivery_count, flow.drain) == (0, 5, True)
    assert client.credit(2, 0, delivery_count=5) == []


async def test_a_link_wakes_when_the_socket_takes_more(client: Client) -> None:
    client.receiver()
    before = client.shop.nodes["in"].wakes
    client.connection.pause_writing()
    assert not client.outgoing().ready
    client.connection.resume_writing()
    assert client.shop.nodes["in"].wakes == before + 1


async def test_a_detached_link_settles_nothing(client: Client) -> None:
    client.receiver()
    client.outgoing().send(b"x", b"t", settled=False)
    client.answers()
    client.send(Detach(handle=2, closed=True))
    assert client.send(Disposition(role=True, first=0, settled=False, state=Accepted())) == []
