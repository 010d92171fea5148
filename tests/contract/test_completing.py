"""Completing many messages with one wait through the real SDK: each is told confirmed or not, whatever breaks."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage

from tests.support.local_azure import Bus
from tests.support.patience import PATIENCE
from tests.support.service_bus import JOBS, broker_of, disturb, jobs_queue
from worker.interfaces import Delivery, EntryQueue
from worker.testing import job_line

COUNT = 337
"""Four times what is completed with one wait, and no multiple of it."""


async def put_and_take(bus: Bus, source: EntryQueue) -> Sequence[Delivery]:
    async with bus.client() as client, client.get_queue_sender(JOBS) as sender:
        await sender.send_messages([ServiceBusMessage(job_line(f"{n}"), message_id=f"{n}") for n in range(COUNT)])
    deliveries = list[Delivery]()
    async with asyncio.timeout(PATIENCE):
        while len(deliveries) < COUNT:
            deliveries += await source.receive(COUNT, wait=1)
    return deliveries


def left(bus: Bus) -> int:
    return broker_of(bus).entity(JOBS).counts().active


async def test_many_are_completed_and_each_of_them_is_confirmed(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        deliveries = await put_and_take(bus, source)
        halves = await asyncio.gather(source.complete(deliveries[::2]), source.complete(deliveries[1::2]))
        assert sorted(map(id, [*halves[0], *halves[1]])) == sorted(map(id, deliveries))
        assert await source.complete([]) == []
    assert left(bus) == 0


async def test_those_whose_lock_is_lost_are_not_confirmed_and_keep_no_other_from_it(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        deliveries = await put_and_take(bus, source)
        disturb(bus, {"kind": "refuse", "on": "settle", "condition": "com.microsoft:message-lock-lost", "count": 3})
        confirmed = await source.complete(deliveries)
        assert [*confirmed] == [*deliveries[3:]]
    assert left(bus) == 3


@pytest.mark.parametrize(
    "fault", [{"kind": "cut"}, {"kind": "refuse", "on": "settle", "condition": "amqp:internal-error", "count": 5}]
)
async def test_what_the_link_does_not_confirm_is_completed_over_the_management_link(
    bus: Bus, fault: dict[str, Any]
) -> None:
    async with jobs_queue(bus) as source:
        deliveries = await put_and_take(bus, source)
        disturb(bus, fault)
        confirmed = await source.complete(deliveries)
        assert {id(delivery) for delivery in confirmed} == {id(delivery) for delivery in deliveries}
    assert left(bus) == 0


async def test_a_message_that_is_completed_is_freed_at_once(bus: Bus) -> None:
    """Although who is told of its lost lock holds it, as the sorter does."""
    async with jobs_queue(bus) as source:
        deliveries, holder = [*await put_and_take(bus, source)], list[Delivery]()
        for delivery in deliveries:
            delivery.when_lost(partial(holder.append, delivery))
        kept = [weakref.ref(delivery) for delivery in deliveries]
        gc.disable()
        try:
            await source.complete(deliveries)
            del delivery
            deliveries.clear()
            assert sum(reference() is not None for reference in kept) == 0
        finally:
            gc.enable()
