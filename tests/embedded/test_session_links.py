"""Receivers of sessions as generic AMQP clients attach them, frame by frame."""

from typing import Any

import pytest

from embedded_azure.amqp.codec import Described, Int, Symbol, ULong
from embedded_azure.amqp.performatives import Attach, Detach, Source, Target
from embedded_azure.servicebus.links.session_links import SESSION_FILTER
from tests.support.raw_client import Client, Keys


@pytest.fixture
async def client() -> Client:
    keys = Keys()
    return Client(keys.service(), keys)


def attach(value: Any) -> Attach:
    source = Source(address="chat", filter={SESSION_FILTER: value})
    return Attach(name="in", handle=1, role=True, source=source, target=Target())


@pytest.mark.parametrize("descriptor", [ULong(0x0000_0137_0000_000C), Symbol(SESSION_FILTER)])
async def test_a_described_session_filter_is_as_good_as_a_bare_one(client: Client, descriptor: Any) -> None:
    client.send(attach(Described(descriptor, "s1")))
    *_, granted = client.heard(Attach)
    assert granted.source.filter == {SESSION_FILTER: "s1"}


async def test_a_described_session_id_that_is_no_string_is_refused(client: Client) -> None:
    client.send(attach(Described(ULong(1), Int(7))))
    (detach,) = client.heard(Detach)
    assert detach.error.condition == "amqp:not-allowed"
