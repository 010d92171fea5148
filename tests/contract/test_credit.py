"""A receive asks for messages, and what it asked for ends with it: others get what comes later."""

import asyncio

from azure.servicebus import ServiceBusMessage

from tests.support.local_azure import Bus
from tests.support.patience import PATIENCE
from tests.support.service_bus import JOBS, jobs_queue
from worker.interfaces import Delivery
from worker.testing import job_line

LATER = 37


async def put(bus: Bus, first: int, count: int) -> None:
    async with bus.client() as client, client.get_queue_sender(JOBS) as sender:
        numbers = range(first, first + count)
        await sender.send_messages([ServiceBusMessage(job_line(f"{n}"), message_id=f"{n}") for n in numbers])


async def test_what_comes_after_a_receive_that_asked_for_more_is_another_receiver_s(bus: Bus) -> None:
    async with jobs_queue(bus) as first, jobs_queue(bus) as second:
        await put(bus, 0, 3)
        assert len(await first.receive(LATER + 3, wait=1)) == 3
        await put(bus, 3, LATER)
        others = list[Delivery]()
        async with asyncio.timeout(PATIENCE):
            while len(others) < LATER:
                others += await second.receive(LATER, wait=1)
        assert [delivery.envelope.delivery_count for delivery in others] == [0] * LATER


async def test_a_receiver_that_took_its_credit_back_receives_again(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        for begin in (0, 3, 6):
            await put(bus, begin, 3)
            received = list[Delivery]()
            async with asyncio.timeout(PATIENCE):
                while len(received) < 3:
                    received += await source.receive(10, wait=1)
            assert len(received) == 3
