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
from worker.interfaces import Delivery, EntryQueue, ReceiverRestarted
from worker.jobs.outcomes import Complete
from worker.testing import EventList, job_line

COUNT = 337
"""Four times what is completed with one wait, and no multiple of it."""


async def put_and_take(bus: Bus, source: EntryQueue, mark: str = "") -> Sequence[Delivery]:
    async with bus.client() as client, client.get_queue_sender(JOBS) as sender:
        names = [f"{mark}{number}" for number in range(COUNT)]
        await sender.send_messages([ServiceBusMessage(job_line(name), message_id=name) for name in names])
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


BY_LOCK = "com.microsoft:update-disposition"


async def before_and_after_a_reconnect(
    bus: Bus, source: EntryQueue
) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
    """Deliveries of two links of one receiver, with the same delivery-ids; the first link is gone."""
    last, *before = reversed(await put_and_take(bus, source))
    disturb(bus, {"kind": "cut"})
    await last.settle(Complete())  # over the management link, for which the SDK opens another connection
    return before[::-1], await put_and_take(bus, source, "after-")


async def test_messages_from_before_a_reconnect_are_settled_by_the_lock_and_hinder_none_of_those_after_it(
    bus: Bus,
) -> None:
    events = EventList()
    async with jobs_queue(bus, events=events) as source:
        before, after = await before_and_after_a_reconnect(bus, source)
        settled = [delivery.settle(Complete()) for pair in zip(after, before, strict=False) for delivery in pair]
        async with asyncio.timeout(PATIENCE):
            assert set(await asyncio.gather(*settled)) == {None}
        assert events.of(ReceiverRestarted) == []  # as for a link that confirms nothing
    assert left(bus) == 1


async def test_messages_from_before_a_reconnect_keep_no_other_from_being_completed_on_the_link(bus: Bus) -> None:
    async with jobs_queue(bus) as source:
        before, after = await before_and_after_a_reconnect(bus, source)
        disturb(bus, {"kind": "refuse", "on": "management", "operation": BY_LOCK})
        mixed = [delivery for pair in zip(before, after, strict=False) for delivery in pair]
        assert {id(delivery) for delivery in await source.complete(mixed)} == set(map(id, after[:-1]))
        disturb(bus)
    assert left(bus) == COUNT


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
