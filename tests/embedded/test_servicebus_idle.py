"""What the embedded Service Bus ends because nobody uses it, in virtual time."""

import asyncio

import pytest

from embedded_azure.amqp.frames import EMPTY_FRAME
from embedded_azure.amqp.performatives import Attach, Close, Detach, Source, Target
from embedded_azure.servicebus.server import ServiceBus
from tests.support.raw_client import Client, Keys

KEYS = Keys()
pytestmark = pytest.mark.looptime


async def start(**times: float) -> tuple[ServiceBus, Client]:
    bus = KEYS.service(**times)
    return bus, Client(bus, KEYS)


async def finish(bus: ServiceBus, client: Client) -> None:
    client.hang_up()
    await bus.close()


async def test_a_link_without_traffic_for_ten_minutes_is_detached(looptime: float) -> None:
    bus, client = await start()
    client.receive_from("jobs", "idle", 1)
    client.receive_from("brief", "busy", 2)
    await asyncio.sleep(400)
    client.give_credit(2)
    assert client.heard(Detach) == []
    await asyncio.sleep(201)
    (detach,) = client.heard(Detach)
    assert (detach.handle, detach.error.condition) == (1, "amqp:link:detach-forced")
    assert "600000 milliseconds" in detach.error.description
    await asyncio.sleep(400)
    (detach,) = client.heard(Detach)
    assert detach.handle == 2
    await finish(bus, client)


async def test_an_idle_link_of_a_sender_is_detached_with_azures_words(looptime: float) -> None:
    bus, client = await start()
    source, target = Source(), Target(address="jobs")
    client.send(Attach(name="out", handle=3, role=False, initial_delivery_count=0, source=source, target=target))
    await asyncio.sleep(601)
    (detach,) = client.heard(Detach)
    assert detach.error.condition == "amqp:link:detach-forced"
    assert detach.error.description == (
        "The link 'out' is force detached. Code: publisher(link3). Details: AmqpMessagePublisher.IdleTimerExpired: "
        "Idle timeout: 00:10:00."
    )
    await finish(bus, client)


async def test_a_new_connection_without_links_is_closed_after_a_minute(looptime: float) -> None:
    bus, client = await start()
    await asyncio.sleep(59)
    assert client.heard(Close) == []
    await asyncio.sleep(2)
    (close,) = client.heard(Close)
    assert close.error.condition == "amqp:connection:forced"
    assert "60000 milliseconds" in close.error.description
    assert client.wire.closed
    await finish(bus, client)


async def test_a_connection_is_closed_five_minutes_after_its_last_link(looptime: float) -> None:
    bus, client = await start()
    client.receive_from("jobs", "link", 1)
    await asyncio.sleep(100)
    client.send(Detach(handle=1, closed=True))
    await asyncio.sleep(299)
    assert client.heard(Close) == []
    await asyncio.sleep(2)
    (close,) = client.heard(Close)
    assert "300000 milliseconds" in close.error.description
    await finish(bus, client)


async def test_a_silent_connection_is_closed_and_one_that_shows_life_is_not(looptime: float) -> None:
    bus, client = await start(silence=30, new_connection=1_000)
    await asyncio.sleep(29)
    client.line.data_received(EMPTY_FRAME)
    await asyncio.sleep(29)
    assert client.heard(Close) == []
    await asyncio.sleep(2)
    (close,) = client.heard(Close)
    assert close.error.condition == "amqp:connection:forced"
    await finish(bus, client)
