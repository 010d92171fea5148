"""The jobs that are submitted and the results that are counted: the Service Bus SDK, and nothing of the worker."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from azure.identity.aio import WorkloadIdentityCredential
from azure.servicebus import ServiceBusMessage, ServiceBusReceiveMode, TransportType
from azure.servicebus.aio import ServiceBusClient

from benchmarks.jobs import JOB_BYTES, MODELS, job_line
from benchmarks.processes import BenchmarkFailed
from worker.azure.servicebus.packing import pack

ENTRY = "jobs"
BATCH = "benchmark"
GROUP = 500
QUIET = 1.5
"""Seconds without another result, after which none will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What came out: how many, and the seconds from the first to the last by the broker's clock. `call_seconds`:
    of each job's calls, as the worker writes them; the textbook worker writes none."""

    count: int
    seconds: float
    call_seconds: tuple[float, ...]


@asynccontextmanager
async def connect(environment: Mapping[str, str]) -> AsyncIterator[ServiceBusClient]:
    """As the identity whose pod would have that environment."""
    ca_file = environment["AOAI_WORKER_CA_FILE"]
    async with (
        WorkloadIdentityCredential(
            tenant_id=environment["AZURE_TENANT_ID"],
            client_id=environment["AZURE_CLIENT_ID"],
            token_file_path=environment["AZURE_FEDERATED_TOKEN_FILE"],
            authority=environment["AZURE_AUTHORITY_HOST"],
            connection_verify=ca_file,
        ) as credential,
        ServiceBusClient(
            environment["AOAI_WORKER_SERVICEBUS_NAMESPACE"],
            credential,
            connection_verify=ca_file,
            custom_endpoint_address=f"sb://{environment['AOAI_WORKER_SERVICEBUS_ENDPOINT']}",
            transport_type=TransportType.Amqp,
        ) as client,
    ):
        yield client


async def submit(
    client: ServiceBusClient,
    count: int,
    *,
    number_from: int = 0,
    size: int = JOB_BYTES,
    queue: str = ENTRY,
    models: Sequence[str] = MODELS,
    answer_tokens: int = 100,
) -> None:
    """Jobs of these models in turn."""
    async with client.get_queue_sender(queue) as sender:
        messages = _messages(range(number_from, number_from + count), size, models, answer_tokens)
        async for packed in pack(sender, messages, lambda message: message, _refuse):
            await sender.send_messages(packed.batch)


def _refuse(message: ServiceBusMessage, allowed: int) -> None:
    raise BenchmarkFailed(f"the message of {message.message_id} is larger than the {allowed:,} bytes of a batch")


async def _messages(
    numbers: range, size: int, models: Sequence[str], answer_tokens: int
) -> AsyncIterator[ServiceBusMessage]:
    for number in numbers:
        yield ServiceBusMessage(
            job_line(number, size, models[number % len(models)], answer_tokens),
            message_id=f"{BATCH}/q-{number}",
            correlation_id=BATCH,
            content_type="application/json",
        )


async def collect(client: ServiceBusClient, count: int) -> Results:
    """Take the results off their queue. Raises BenchmarkFailed unless each job has one, and it is its answer."""
    moments: list[float] = []
    call_seconds: list[float] = []
    times: Counter[str] = Counter()
    async with client.get_queue_receiver(
        "results", session_id=BATCH, receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE
    ) as receiver:
        while messages := await receiver.receive_messages(max_message_count=GROUP, max_wait_time=QUIET):
            for message in messages:
                result = json.loads(str(message))
                times[_answered_job(result)] += 1
                call_seconds += [result["worker"]["call_seconds"]] if "worker" in result else []
                assert message.enqueued_time_utc is not None
                moments.append(message.enqueued_time_utc.timestamp())
    return _results(count, times, moments, call_seconds)


def read_results(file: Path, count: int) -> Results:
    """The same of a collected file, by the worker's clock."""
    results = [json.loads(line) for line in file.read_text().splitlines()]
    times = Counter(map(_answered_job, results))
    moments = [datetime.fromisoformat(result["worker"]["finished"]).timestamp() for result in results]
    return _results(count, times, moments, [result["worker"]["call_seconds"] for result in results])


def _results(count: int, times: Counter[str], moments: Sequence[float], call_seconds: Sequence[float]) -> Results:
    if set(times) != {f"q-{number}" for number in range(count)} or times.total() != count:
        raise BenchmarkFailed(f"{count:,} jobs, but {times.total():,} results of {len(times):,} jobs")
    return Results(count=count, seconds=max(moments) - min(moments), call_seconds=tuple(call_seconds))


def _answered_job(result: dict[str, Any]) -> str:
    """The custom id of the job whose answer it is. Raises BenchmarkFailed."""
    custom_id, response = str(result["custom_id"]), result["response"]
    number = int(custom_id.removeprefix("q-"))
    said = response["body"]["choices"][0]["message"]["content"] if response else result["error"]
    if not response or response["status_code"] != 200 or f"{number} + {number} = {2 * number} " not in said:
        raise BenchmarkFailed(f"{custom_id} is not answered: {said!r:.200}")
    return custom_id
