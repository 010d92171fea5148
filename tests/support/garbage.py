"""Ways to feed garbage to the embedded Service Bus. Each returns what it answered; an exception is a defect.

Used by the property tests (tests/embedded/test_garbage.py) and by the fuzzer (tests/fuzz).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from embedded_azure.amqp.frames import AMQP_FRAME, PROTOCOL_AMQP, PROTOCOL_SASL, SASL_FRAME, encode_frame, frame_of
from embedded_azure.amqp.performatives import Attach, SaslInit, Source, Target, Transfer
from embedded_azure.servicebus.administration.service import Request
from embedded_azure.servicebus.server import ServiceBus
from tests.support.raw_client import Client, Keys
from tests.support.wire import Wire

Feed = Callable[[ServiceBus, Keys, bytes], bytes]
MANAGEMENT: Final = "jobs/$management"


def feed_socket(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    """A client that never was one."""
    return _feed(bus, data)


def feed_sasl(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    return _feed(bus, PROTOCOL_SASL + frame_of(data, 0, kind=SASL_FRAME))


def feed_open(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    sasl = encode_frame(SaslInit(mechanism="ANONYMOUS"), kind=SASL_FRAME)
    return _feed(bus, PROTOCOL_SASL + sasl + PROTOCOL_AMQP + frame_of(data, 0, kind=AMQP_FRAME))


def feed_frames(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    """Frames of an open session with links of every kind, each up to where a zero follows a length."""
    client = _attached(bus, keys)
    while data:
        size = data[0]
        client.line.data_received(frame_of(data[1 : 1 + size], 1))
        data = data[1 + size :]
    return _end(client)


def feed_message(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    """What is sent to a queue: as one message, and as a batch."""
    client = _attached(bus, keys)
    for number, message_format in enumerate((0, 0x80013700)):
        client.send(_transfer(3, number + 1, message_format), payload=data)
    return _end(client)


def feed_management(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    client = _attached(bus, keys)
    client.send(_transfer(4, 1, 0), payload=data)
    return _end(client)


def feed_token(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    client = _attached(bus, keys)
    client.send(_transfer(0, 1, 0), payload=data)
    return _end(client)


def feed_administration(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    """A body, to an entity of every kind."""
    answers = b""
    for path in ("new", "jobs", "topic", "topic/Subscriptions/s", "topic/Subscriptions/s/rules/r"):
        request = Request(
            method="PUT",
            path=path,
            url=f"https://localhost/{path}",
            query={},
            body=data,
            token=f"Bearer {keys.token}",
            is_update=path == "jobs",
        )
        reply = bus.administration().answer(request)
        assert reply.status < 500, reply.body
        answers += reply.body
    return answers


def feed_faults(bus: ServiceBus, keys: Keys, data: bytes) -> bytes:
    try:
        bus.faults.set(data)
    except ValueError as refusal:
        return str(refusal).encode()
    return b""


FEEDS: Final[Mapping[str, Feed]] = MappingProxyType(
    {
        feed.__name__: feed
        for feed in (
            feed_socket,
            feed_sasl,
            feed_open,
            feed_frames,
            feed_message,
            feed_management,
            feed_token,
            feed_administration,
            feed_faults,
        )
    }
)


def _feed(bus: ServiceBus, data: bytes) -> bytes:
    wire, line = Wire(), bus.connection()
    line.connection_made(wire)
    line.data_received(data)
    line.connection_lost(None)
    return wire.written


def _attached(bus: ServiceBus, keys: Keys) -> Client:
    """Handle 0 is `$cbs`, 1 and 2 receive (the latter requests' answers), 3 sends, 4 asks."""
    client = Client(bus, keys)
    client.receive_from("jobs", "in", 1)
    client.receive_from(MANAGEMENT, "answers", 2)
    client.give_credit(1)
    client.give_credit(2)
    for handle, name in ((3, "jobs"), (4, MANAGEMENT)):
        target = Target(address=name)
        attach = Attach(
            name=name, handle=handle, role=False, source=Source(), target=target, initial_delivery_count=0
        )
        client.send(attach)
    client.wire.written = b""
    return client


def _transfer(handle: int, delivery_id: int, message_format: int) -> Transfer:
    return Transfer(
        handle=handle, delivery_id=delivery_id, delivery_tag=b"%d" % delivery_id, message_format=message_format
    )


def _end(client: Client) -> bytes:
    written = client.wire.written
    client.hang_up()
    return written
