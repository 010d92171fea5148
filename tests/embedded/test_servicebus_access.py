"""Who is let in by which words: audiences of tokens, what is told of an absent entity, names with keys."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus._base_handler import _generate_sas_token
from azure.servicebus._pyamqp import _encode
from azure.servicebus._pyamqp.error import TokenAuthFailure
from azure.servicebus.exceptions import ServiceBusError

from embedded_azure.amqp.frames import PROTOCOL_AMQP, PROTOCOL_SASL, SASL_FRAME, FrameReader, encode_frame
from embedded_azure.amqp.performatives import (
    Attach,
    Begin,
    Detach,
    Open,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Source,
    Target,
    decode_performative,
)
from embedded_azure.certificates import make_signing_key, public_pem
from embedded_azure.config import SharedAccessRule
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.servicebus.access import Access, AccessRefused, Address, Claim
from embedded_azure.servicebus.server import ServiceBus
from tests.support.local_azure import Bus, bus_config
from tests.support.raw_client import Keys
from tests.support.wire import Wire

NAMESPACE = bus_config().namespace
RULE = SharedAccessRule(name="app", key="k/+=", rights=("Listen",))


async def refused(bus: Bus, identity: str, queue: str) -> tuple[int, str]:
    """What put-token says."""
    async with bus.client(identity, retry_total=0) as client:
        with pytest.raises(ServiceBusError) as caught:
            async with client.get_queue_receiver(queue):
                pass
    failure: Any = caught.value.inner_exception
    assert isinstance(failure, TokenAuthFailure)
    return failure.status_code, str(failure.status_description)


async def test_only_who_has_a_right_there_learns_that_an_entity_is_not_there(bus: Bus) -> None:
    status, words = await refused(bus, "owner", "nope")
    assert (status, "The messaging entity" in words, "could not be found" in words) == (404, True, True)
    status, words = await refused(bus, "receiver", "nope")
    assert (status, "InvalidAudience" in words) == (401, True)


def access(*rules: SharedAccessRule) -> Access:
    config = bus_config()
    tokens = AccessTokens(public_pem(make_signing_key()), issuer_of(config.tenant_id))
    return Access(tokens, config, frozenset({NAMESPACE}), lambda: 1_000.0, rules=rules)


def test_a_token_for_the_management_node_is_good_there_and_nowhere_else() -> None:
    keys = Keys()
    rights = Access(keys.tokens, bus_config(), frozenset({NAMESPACE}), lambda: 1_000.0)
    rights.put_token(f"sb://{NAMESPACE}/jobs/$management", keys.token)
    rights.check(Address(None, "jobs/$management"), Claim.LISTEN)
    with pytest.raises(AccessRefused, match="A token for"):
        rights.check(Address(None, "jobs"), Claim.LISTEN)


def test_a_key_grants_what_its_rule_does_and_a_wrong_one_nothing() -> None:
    rights = access(SharedAccessRule(name="r", key="secret", rights=("Send",), path="jobs"))
    assert not rights.put_key("r", "wrong")
    assert not rights.put_key("other", "secret")
    with pytest.raises(AccessRefused):
        rights.check(Address(None, "jobs"), Claim.SEND)
    assert rights.put_key("r", "secret")
    rights.check(Address(None, "jobs"), Claim.SEND)
    for path, claim in (("jobs", Claim.LISTEN), ("held", Claim.SEND)):
        with pytest.raises(AccessRefused):
            rights.check(Address(None, path), claim)


@pytest.mark.parametrize("resource", [f"sb://{NAMESPACE}/jobs", f"{NAMESPACE}/jobs"])
def test_a_signature_may_name_its_resource_without_a_scheme(resource: str) -> None:
    rights = access(RULE)
    rights.put_token(f"sb://{NAMESPACE}/jobs", _generate_sas_token(resource, RULE.name, RULE.key).token)
    rights.check(Address(None, "jobs"), Claim.LISTEN)
    with pytest.raises(AccessRefused, match="InvalidAudience"):
        rights.put_token(f"sb://{NAMESPACE}/held", _generate_sas_token(resource, RULE.name, RULE.key).token)


class PlainClient:
    """Says who it is by SASL PLAIN, as generic AMQP clients do."""

    def __init__(self, bus: ServiceBus) -> None:
        self.wire = Wire()
        self.line = bus.connection()
        self.line.connection_made(self.wire)
        self._reader = FrameReader(1 << 20)

    def mechanisms(self) -> list[str]:
        self.line.data_received(PROTOCOL_SASL)
        assert self._reader_header() == PROTOCOL_SASL
        (offered,) = self.heard(SaslMechanisms)
        return [str(name) for name in offered.sasl_server_mechanisms]

    def sign_in(self, response: bytes) -> int:
        init = SaslInit(mechanism="PLAIN", initial_response=response)
        self.line.data_received(encode_frame(init, kind=SASL_FRAME))
        (outcome,) = self.heard(SaslOutcome)
        return int(outcome.code)

    def attach(self, queue: str) -> list[Detach]:
        begin = Begin(next_outgoing_id=0, incoming_window=5_000, outgoing_window=5_000)
        self.line.data_received(PROTOCOL_AMQP + encode_frame(Open(container_id="c", max_frame_size=1 << 20)))
        self.line.data_received(encode_frame(begin, channel=1))
        link = Attach(name="in", handle=1, role=True, source=Source(address=queue), target=Target())
        self.line.data_received(encode_frame(link, channel=1))
        self._reader_header()
        return self.heard(Detach)

    def _reader_header(self) -> bytes:
        data, self.wire.written = self.wire.written, b""
        self._reader.feed(data)
        return self._reader.next_protocol_header() or b""

    def heard(self, kind: type[Any]) -> list[Any]:
        data, self.wire.written = self.wire.written, b""
        self._reader.feed(data)
        found = []
        while frame := self._reader.next_frame():
            if frame.body and isinstance(performative := decode_performative(frame.body)[0], kind):
                found.append(performative)
        return found


@asynccontextmanager
async def service(*rules: SharedAccessRule) -> AsyncIterator[ServiceBus]:
    bus = ServiceBus(dataclasses.replace(bus_config(), shared_access_rules=rules), Keys().tokens)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.mark.parametrize(
    ("response", "code"), [(b"\0app\0k/+=", 0), (b"\0app\0wrong", 1), (b"\0other\0k/+=", 1), (b"", 1), (b"app", 1)]
)
async def test_plain_is_for_those_with_a_key(response: bytes, code: int) -> None:
    async with service(RULE) as bus:
        client = PlainClient(bus)
        assert client.mechanisms() == ["PLAIN", "ANONYMOUS"]
        assert client.sign_in(response) == code
        if code == 0:
            assert client.attach("jobs") == []
        client.line.connection_lost(None)


async def test_without_keys_plain_is_neither_offered_nor_taken() -> None:
    async with service() as bus:
        client = PlainClient(bus)
        assert client.mechanisms() == ["ANONYMOUS"]
        assert client.sign_in(b"\0app\0k/+=") == 1
        client.line.connection_lost(None)


@pytest.mark.parametrize(("length", "missing"), [(8, 28), (64, 84)])
async def test_a_full_batch_is_longer_than_the_sdk_counts(bus: Bus, length: int, missing: int) -> None:
    """It puts the first message's id on the envelope without counting it."""
    async with bus.client() as client, client.get_queue_sender("jobs") as sender:
        batch = await sender.create_message_batch()
        for number in range(7):
            batch.add_message(ServiceBusMessage(b"x" * (100 * number), message_id=f"{number:0{length}d}"))
        encoded = bytearray()
        _encode.encode_payload(encoded, batch._message)
        assert len(encoded) - batch.size_in_bytes == missing
