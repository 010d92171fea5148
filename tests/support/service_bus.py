"""The adapters before the embedded Service Bus of this loop, what is in its queues, and its faults."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from azure.servicebus import ServiceBusMessage

from embedded_azure.servicebus.broker.broker import Broker
from embedded_azure.servicebus.server import ServiceBus
from tests.support.local_azure import Bus
from worker.azure.servicebus.jobs_queue import JobsQueue, connect
from worker.azure.servicebus.results_queue import ResultsQueue
from worker.jobs.job import Envelope, Job, decode
from worker.settings import ConnectionSettings
from worker.testing import EventList, job_line

JOBS, RESULTS, HELD = "jobs", "chat", "held"
"""Queues of `bus_config`: `chat` has sessions, locks of `held` last two seconds."""


async def send(bus: Bus, queue: str, *bodies: bytes) -> None:
    async with bus.client() as client, client.get_queue_sender(queue) as sender:
        for number, body in enumerate(bodies):
            await sender.send_messages(
                ServiceBusMessage(
                    body,
                    message_id=f"m{number}",
                    correlation_id="batch",
                    application_properties={"deadline": "2099-01-01T00:00:00Z"},
                )
            )


def service_of(bus: Bus) -> ServiceBus:
    assert bus.service is not None, "it runs in this process"
    return bus.service


def broker_of(bus: Bus) -> Broker:
    return service_of(bus).broker


def settings_for(
    bus: Bus, *, jobs: str = JOBS, results: str = RESULTS, queues: dict[str, str | None] | None = None
) -> ConnectionSettings:
    return ConnectionSettings(
        servicebus_namespace=bus.config.namespace,
        servicebus_endpoint=f"localhost:{bus.tls_port}",
        ca_file=bus.authority.ca_file,
        jobs_queue=jobs,
        queues=queues,
        sink="queue",
        results_queue=results,
    )


@asynccontextmanager
async def jobs_queue(
    bus: Bus, queue: str = JOBS, identity: str = "owner", events: EventList | None = None
) -> AsyncIterator[JobsQueue]:
    async with (
        connect(settings_for(bus), bus.credential(identity), retries=0) as client,
        JobsQueue(client, queue, observer=events or EventList()) as source,
    ):
        yield source


@asynccontextmanager
async def results_queue(bus: Bus, identity: str = "owner", queue: str = RESULTS) -> AsyncIterator[ResultsQueue]:
    async with (
        connect(settings_for(bus), bus.credential(identity), retries=0) as client,
        ResultsQueue(client, queue) as sink,
    ):
        yield sink


async def stored(bus: Bus) -> list[bytes]:
    """The bodies in the results queue, session by session."""
    lines: list[bytes] = []
    async with bus.client() as client:
        for session in broker_of(bus).entity(RESULTS).sessions(0, 100):
            async with client.get_queue_receiver(RESULTS, session_id=session) as receiver:
                messages = await receiver.peek_messages(max_message_count=1_000, sequence_number=1)
                lines += [b"".join(message.body) for message in messages]
    return lines


def a_job(custom_id: str, batch: str = "batch") -> Job:
    envelope = Envelope(
        body=job_line(custom_id),
        queue=JOBS,
        sequence_number=1,
        enqueued_at=time.time(),
        message_id=f"{batch}/{custom_id}",
        correlation_id=batch,
        properties={},
    )
    return decode(envelope, max_age=60)


def disturb(bus: Bus, *faults: dict[str, Any]) -> None:
    service_of(bus).faults.set(json.dumps(faults).encode())
