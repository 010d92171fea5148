"""A client of the embedded Service Bus that writes frames itself: a whole service behind a socket that is none."""

from typing import Any

from embedded_azure.amqp.connection import MAX_FRAME_SIZE
from embedded_azure.amqp.frames import PROTOCOL_AMQP, PROTOCOL_SASL, SASL_FRAME, FrameReader, encode_frame
from embedded_azure.amqp.messages import encode_message
from embedded_azure.amqp.performatives import (
    Attach,
    Begin,
    Composite,
    Flow,
    Open,
    SaslInit,
    Source,
    Target,
    Transfer,
    decode_performative,
)
from embedded_azure.certificates import make_signing_key, private_pem, public_pem
from embedded_azure.entra.tokens import AccessTokens, TokenIssuer, issuer_of
from embedded_azure.servicebus.links.idle import IdleTimes
from embedded_azure.servicebus.server import ServiceBus
from tests.support.local_azure import bus_config
from tests.support.wire import Wire

CONFIG = bus_config()


class Keys:
    """Entra's, and a token of the owner signed with them."""

    def __init__(self) -> None:
        key = make_signing_key()
        owner = CONFIG.identity("owner")
        self.tokens = AccessTokens(public_pem(key), issuer_of(CONFIG.tenant_id))
        self.token = TokenIssuer(private_pem(key), CONFIG.tenant_id, 86_400).issue(
            audience="https://servicebus.azure.net", client_id=owner.client_id, object_id=owner.object_id
        )

    def service(self, **times: float) -> ServiceBus:
        """Needs a running loop."""
        return ServiceBus(CONFIG, self.tokens, idle=IdleTimes(**{"silence": 1e6, **times}))


class Client:
    """The peer: a connection to the whole service, with a token for all of it."""

    def __init__(self, bus: ServiceBus, keys: Keys) -> None:
        self.keys = keys
        self.wire = Wire()
        self.line = bus.connection()
        self.line.connection_made(self.wire)
        self.reader = FrameReader(MAX_FRAME_SIZE)
        self.line.data_received(PROTOCOL_SASL + encode_frame(SaslInit(mechanism="ANONYMOUS"), kind=SASL_FRAME))
        begin = Begin(next_outgoing_id=0, incoming_window=5_000, outgoing_window=5_000)
        opening = Open(container_id="client", max_frame_size=1 << 20)
        self.line.data_received(PROTOCOL_AMQP + encode_frame(opening) + encode_frame(begin, channel=1))
        self.wire.written = b""
        self.put_token()

    def send(self, *frames: Composite, payload: bytes = b"") -> None:
        for frame in frames:
            self.line.data_received(encode_frame(frame, channel=1, payload=payload))

    def put_token(self) -> None:
        properties = {"operation": "put-token", "name": f"sb://{CONFIG.namespace}/", "type": "jwt"}
        request = encode_message(application_properties=properties, value=self.keys.token)
        source, target = Source(address="$cbs"), Target(address="$cbs")
        self.send(
            Attach(name="tokens", handle=0, role=False, initial_delivery_count=0, source=source, target=target)
        )
        self.send(Transfer(handle=0, delivery_id=0, delivery_tag=b"0", settled=True), payload=request)

    def receive_from(self, queue: str, name: str, handle: int) -> None:
        self.send(Attach(name=name, handle=handle, role=True, source=Source(address=queue), target=Target()))

    def give_credit(self, handle: int) -> None:
        self.send(
            Flow(
                next_incoming_id=0,
                incoming_window=5_000,
                next_outgoing_id=1,
                outgoing_window=5_000,
                handle=handle,
                delivery_count=0,
                link_credit=10,
            )
        )

    def heard(self, kind: type[Any]) -> list[Any]:
        data, self.wire.written = self.wire.written, b""
        self.reader.feed(data)
        found = []
        while frame := self.reader.next_frame():
            if frame.body and isinstance(performative := decode_performative(frame.body)[0], kind):
                found.append(performative)
        return found

    def hang_up(self) -> None:
        """As the socket does when both ends are done."""
        self.line.connection_lost(None)
