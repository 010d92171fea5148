"""Sending received messages on through the real SDK: what arrives is what came, in batches, and faults are told."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageProperties

from tests.support.local_azure import Bus
from tests.support.patience import PATIENCE
from tests.support.service_bus import HELD, JOBS, broker_of, jobs_queue, settings_for
from worker.azure.servicebus.forwarding import ForwardingSender
from worker.azure.servicebus.jobs_queue import connect
from worker.errors import Cause, SourceUnavailable
from worker.interfaces import Delivery, Forward
from worker.jobs.job import Envelope, rfc3339
from worker.jobs.outcomes import Complete
from worker.jobs.sorting import sorted_copy
from worker.testing import job_line

MODEL = "gpt-5.4-mini"


class Sent:
    """What became of forwards, by message-id."""

    def __init__(self) -> None:
        self.batches: list[list[str | None]] = []
        self.refused: list[str | None] = []

    async def forward_singly(self, sender: ForwardingSender, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await self.forward(sender, [delivery])

    async def forward(self, sender: ForwardingSender, deliveries: Sequence[Delivery]) -> None:
        forwards = [
            Forward(each, sorted_copy(each.envelope, MODEL, each.envelope.enqueued_at + 1)) for each in deliveries
        ]
        await sender.send_on(forwards, sent=self._note, refuse=lambda one: self.refused.append(_id(one)))

    def _note(self, some: Sequence[Forward]) -> None:
        self.batches.append([_id(one) for one in some])


def _id(forward: Forward) -> str | None:
    return forward.delivery.envelope.message_id


@asynccontextmanager
async def sender_to(bus: Bus, queue: str, identity: str = "owner") -> AsyncIterator[ForwardingSender]:
    async with (
        connect(settings_for(bus), bus.credential(identity), retries=0) as client,
        ForwardingSender(client, queue) as sender,
    ):
        yield sender


async def put(bus: Bus, *messages: ServiceBusMessage | AmqpAnnotatedMessage) -> None:
    async with bus.client() as client, client.get_queue_sender(JOBS) as sender:
        for message in messages:
            await sender.send_messages(message)


async def take(bus: Bus, queue: str, count: int) -> list[Envelope]:
    async with jobs_queue(bus, queue) as source:
        envelopes: list[Envelope] = []
        async with asyncio.timeout(PATIENCE):
            while len(envelopes) < count:
                for delivery in await source.receive(500, wait=0.5):
                    envelopes.append(delivery.envelope)
                    await delivery.settle(Complete())
        return envelopes


async def test_a_message_arrives_with_all_that_it_had_and_what_sorting_adds(bus: Bus) -> None:
    message = ServiceBusMessage(
        job_line("a"),
        message_id="batch/a",
        correlation_id="batch",
        content_type="application/json",
        subject="s",
        time_to_live=timedelta(hours=1),
        application_properties={"traceparent": "00-1", "deadline": "2030-01-01T00:00:00Z", "n": 7},
    )
    await put(bus, message, AmqpAnnotatedMessage(data_body=[job_line("b")]))
    sent = Sent()
    async with jobs_queue(bus) as source, sender_to(bus, HELD) as sender:
        first, second = deliveries = list(await source.receive(2, wait=5))
        await sent.forward(sender, deliveries)
    copy, nameless = await take(bus, HELD, 2)
    assert (copy.body, copy.message_id, copy.correlation_id) == (job_line("a"), "batch/a", "batch")
    assert copy.content_type == "application/json"
    assert copy.properties == {
        "traceparent": "00-1",
        "deadline": "2030-01-01T00:00:00Z",
        "n": 7,
        "enqueued-at": rfc3339(first.envelope.enqueued_at),
    }
    assert copy.expires_at is not None
    assert copy.expires_at - copy.enqueued_at == pytest.approx(3_599, abs=0.01)
    assert nameless.message_id == second.envelope.message_id, "which Service Bus has given it"
    assert nameless.expires_at is None


@pytest.mark.parametrize("body", [{"value_body": job_line("a").decode()}, {"value_body": job_line("a")}])
async def test_a_body_that_is_a_value_stays_one(bus: Bus, body: dict[str, Any]) -> None:
    await put(bus, AmqpAnnotatedMessage(**body, properties=AmqpMessageProperties(message_id="v")))
    async with jobs_queue(bus) as source, sender_to(bus, HELD) as sender:
        await Sent().forward(sender, await source.receive(1, wait=5))
    (copy,) = await take(bus, HELD, 1)
    assert (copy.message_id, copy.body) == ("v", job_line("a"))


async def test_thousands_of_messages_of_varied_sizes_go_in_full_batches_and_twice_sent_arrive_once(
    bus: Bus,
) -> None:
    chance = random.Random(5)
    bodies = {f"batch/{n}": job_line(f"{n}", content="x" * chance.randrange(1, 3_000)) for n in range(757)}
    sent, deliveries = Sent(), list[Delivery]()
    async with bus.client() as client, client.get_queue_sender(JOBS) as producer:
        for name, body in bodies.items():
            await producer.send_messages(ServiceBusMessage(body, message_id=name))
    async with jobs_queue(bus) as source, sender_to(bus, HELD) as sender:
        async with asyncio.timeout(PATIENCE):
            while len(deliveries) < len(bodies):
                deliveries += await source.receive(500, wait=1)
        await sent.forward(sender, deliveries)
        await sent.forward(sender, deliveries)  # as after a crash before they were completed
    assert [name for batch in sent.batches for name in batch] == [*bodies, *bodies]
    assert 8 <= len(sent.batches) <= 14
    assert broker_of(bus).entity(HELD).counts().active == len(bodies)
    assert {envelope.message_id: envelope.body for envelope in await take(bus, HELD, len(bodies))} == bodies


async def test_what_a_queue_never_takes_is_refused_and_the_others_go(bus: Bus) -> None:
    large = ServiceBusMessage(job_line("b", content="x" * 2_500), message_id="large")
    await put(
        bus,
        ServiceBusMessage(job_line("a"), message_id="a"),
        large,
        ServiceBusMessage(job_line("c"), message_id="c"),
    )
    sent = Sent()
    async with jobs_queue(bus) as source, sender_to(bus, "small") as sender:
        await sent.forward(sender, await source.receive(3, wait=5))
    assert sent.refused == ["large"]
    assert [envelope.message_id for envelope in await take(bus, "small", 2)] == ["a", "c"]


@pytest.mark.parametrize(
    ("queue", "identity", "cause"),
    [("nowhere", "owner", Cause.MISSING), (HELD, "stranger", Cause.ROLE_MISSING), ("narrow", "owner", None)],
)
async def test_a_queue_that_is_missing_refused_or_full_is_told_with_its_name(
    bus: Bus, queue: str, identity: str, cause: Cause | None
) -> None:
    messages = [ServiceBusMessage(job_line(f"{n}", content="x" * 900), message_id=f"{n}") for n in range(9)]
    await put(bus, *messages)
    sent = Sent()
    async with jobs_queue(bus) as source, sender_to(bus, queue, identity) as sender:
        deliveries = await source.receive(9, wait=5)
        with pytest.raises(SourceUnavailable, match=queue) as told:
            await sent.forward_singly(sender, deliveries)
    assert told.value.cause == cause
